// mma.sync: a warp multiplies 16 rows by 8 columns over one slice of 32 bytes, sums in FP32.
#ifdef __CUDACC__

namespace unspool {

// What stands in operand A; operand B is binary16 for f16, E4M3 for all others.
enum class Kind { f16, e4m3, e5m2, f8f6f4_e2m1, f8f6f4_e2m3, f8f6f4_e3m2 };

// LDSM: 8 x 16 byte matrices whose rows' addresses are given by lanes 0-7, 8-15, ...
UNSPOOL_DEVICE void load_matrices(word (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row))
                 : "memory");
}
UNSPOOL_DEVICE void load_matrices(word (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory");
}

#define UNSPOOL_MMA(spelling)                                                                      \
    asm(spelling " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                           \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))

// Where a machine has no such product, or only an emulation of it (FP8 on sm_90 and sm_100), this
// must not compile: without the check it would be no instruction at all, and no error.
UNSPOOL_DEVICE constexpr bool has_mma(Kind kind, int architecture) {
    if (kind == Kind::f16) return true;
    const bool eight = kind == Kind::e4m3 || kind == Kind::e5m2;
    return architecture >= 1200 || (eight && architecture == 890);
}

template <Kind kind>
UNSPOOL_DEVICE void mma(float (&d)[4], const word (&a)[4], word b0, word b1) {
    static_assert(has_mma(kind, __CUDA_ARCH__), "mma.sync does not multiply this kind here");
    if constexpr (kind == Kind::f16)
        UNSPOOL_MMA("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32");
#if __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200
    if constexpr (kind == Kind::e4m3)
        UNSPOOL_MMA("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32");
    if constexpr (kind == Kind::e5m2)
        UNSPOOL_MMA("mma.sync.aligned.m16n8k32.row.col.f32.e5m2.e4m3.f32");
#endif
#if __CUDA_ARCH__ >= 1200
    if constexpr (kind == Kind::f8f6f4_e2m1)
        UNSPOOL_MMA("mma.sync.aligned.kind::f8f6f4.m16n8k32.row.col.f32.e2m1.e4m3.f32");
    if constexpr (kind == Kind::f8f6f4_e2m3)
        UNSPOOL_MMA("mma.sync.aligned.kind::f8f6f4.m16n8k32.row.col.f32.e2m3.e4m3.f32");
    if constexpr (kind == Kind::f8f6f4_e3m2)
        UNSPOOL_MMA("mma.sync.aligned.kind::f8f6f4.m16n8k32.row.col.f32.e3m2.e4m3.f32");
#endif
}
#undef UNSPOOL_MMA

}  // namespace unspool

#endif
