// mma.sync: a warp multiplies 16 rows by 8 columns over one slice of 32 bytes, D = A B + C in FP32;
// of INT8 in whole numbers. C may be D; where it is zeros no register holds it.
#ifdef __CUDACC__

namespace unspool {

// What stands in operand A; operand B is binary16 for f16, packed E2M1 for mxf4nvf4, INT8 for s8,
// E4M3 for all others.
enum class Kind { f16, e4m3, e5m2, f8f6f4_e2m1, f8f6f4_e2m3, f8f6f4_e3m2, mxf4nvf4, s8 };

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
    asm(spelling " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"            \
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])                                           \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]),      \
          "f"(c[2]), "f"(c[3]))

// Where a machine has no such product, or only an emulation of it (FP8 on sm_90 and sm_100), this
// must not compile: without the check it would be no instruction at all, and no error.
UNSPOOL_DEVICE constexpr bool has_mma(Kind kind, int architecture) {
    if (kind == Kind::f16) return true;
    if (kind == Kind::mxf4nvf4) return false;  // mma_scaled
    const bool eight = kind == Kind::e4m3 || kind == Kind::e5m2;
    return architecture >= 1200 || (eight && architecture == 890);
}

template <Kind kind>
UNSPOOL_DEVICE void mma(
    float (&d)[4], const float (&c)[4], const word (&a)[4], word b0, word b1) {
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

// Sums wrap at 2**31; 2**14 a column, they reach it after 2**17 columns, more than a product has.
template <Kind kind>
UNSPOOL_DEVICE void mma(int (&d)[4], const int (&c)[4], const word (&a)[4], word b0, word b1) {
    static_assert(kind == Kind::s8, "whole sums are of INT8");
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]),
          "r"(c[2]), "r"(c[3]));
}

// The same of 8-bit operands with an E8M0 scale per row and slice, a byte of a word that one of two
// pairs of threads of a quad has; columns are scaled by one. E5M2 is no kernel's here.
#define UNSPOOL_MX(type)                                                                           \
    asm("mma.sync.aligned.m16n8k32.row.col.kind::mxf8f6f4.block_scale.scale_vec::1X.f32." type     \
        ".e4m3.f32.ue8m0 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13}, "     \
        "{%14}, {%16, %17}, {%15}, {0, 0};"                                                        \
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])                                           \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]),      \
          "f"(c[2]), "f"(c[3]), "r"(scale_a), "r"(0x7F7F7F7F), "h"((unsigned short)byte_a),        \
          "h"((unsigned short)pair_a))
template <Kind kind>
UNSPOOL_DEVICE void mma_mx(float (&d)[4], const float (&c)[4], const word (&a)[4], word b0, word b1,
                           word scale_a, int pair_a, int byte_a) {
    constexpr bool narrow = kind == Kind::f8f6f4_e2m1 || kind == Kind::f8f6f4_e2m3 ||
                            kind == Kind::f8f6f4_e3m2;
    static_assert((narrow || kind == Kind::e4m3) && __CUDA_ARCH__ >= 1200, "no E8M0 scales here");
#if __CUDA_ARCH__ >= 1200
    if constexpr (kind == Kind::e4m3) UNSPOOL_MX("e4m3");
    if constexpr (kind == Kind::f8f6f4_e2m1) UNSPOOL_MX("e2m1");
    if constexpr (kind == Kind::f8f6f4_e2m3) UNSPOOL_MX("e2m3");
    if constexpr (kind == Kind::f8f6f4_e3m2) UNSPOOL_MX("e3m2");
#endif
}
#undef UNSPOOL_MX

// FP4: 64 packed E2M1 of a row and of a column, and of either four E4M3 scales, one per 16. They come
// from one of two pairs of threads of a quad (rows) and from one of its four threads (columns).
template <Kind kind>
UNSPOOL_DEVICE void mma_scaled(float (&d)[4], const word (&a)[4], word b0, word b1, word scale_a,
                               word scale_b, int pair_a, int thread_b) {
    static_assert(kind == Kind::mxf4nvf4 && __CUDA_ARCH__ >= 1200, "no block scales here");
#if __CUDA_ARCH__ >= 1200
    asm("mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X"
        ".f32.e2m1.e2m1.f32.ue4m3 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3}, "
        "{%10}, {0, %12}, {%11}, {0, %13};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(scale_a),
          "r"(scale_b), "h"((unsigned short)pair_a), "h"((unsigned short)thread_b));
#endif
}

}  // namespace unspool

#endif
