// Tensor memory and tcgen05 (sm_100): 128 lanes (rows) x 512 columns of 32 bits; address: lane << 16 | column.
namespace unspool {

// As wgmma's descriptor, with the version of this family in bits 46-48.
UNSPOOL_DEVICE unsigned long long tmem_descriptor(const void* shared, int leading, int stride) {
    const unsigned long long start = (shared_address(shared) & 0x3FFFF) >> 4;
    return start | (unsigned long long)(leading >> 4) << 16 |
           (unsigned long long)(stride >> 4) << 32 | 1ULL << 46;
}

// The instruction descriptor: formats of D, A and B at bits 4, 7 and 10, N / 8 at 17, M / 16 at 24.
// D: FP32 1, whole numbers 2. E4M3 0, E5M2 1, E2M3 3, E3M2 4, E2M1 5; of kind::f16 binary16 is 0, of
// kind::i8 signed is 1, of kind::mxf4nvf4 E2M1 is 1; that has no format of D, and E4M3 scales for 0 at
// bit 23, whole words of them for 0 at 4 and 29.
UNSPOOL_DEVICE word product_of(Kind kind, int n) {
    const word four = kind == Kind::mxf4nvf4, integer = kind == Kind::s8;
    const word format = kind == Kind::e5m2 || four || integer ? 1
                        : kind == Kind::f8f6f4_e2m3           ? 3
                        : kind == Kind::f8f6f4_e3m2           ? 4
                        : kind == Kind::f8f6f4_e2m1           ? 5
                                                              : 0;
    const word sums = four ? 0 : 1 + integer, of_b = four | integer;
    return sums << 4 | format << 7 | of_b << 10 | word(n / 8) << 17 | 128u / 16 << 24;
}

// The same with scales. Of kind::mxf8f6f4 they are E8M0, 1 at bit 23, that of rows the byte of a word
// which bits 29 and 30 say, that of columns its first; formats are as above, and D has none.
UNSPOOL_DEVICE word scaled_product_of(Kind kind, int n, int byte_a) {
    const word what = product_of(kind, n);
    return kind == Kind::mxf4nvf4 ? what : (what & ~(3u << 4)) | 1u << 23 | word(byte_a) << 29;
}

#if defined(__CUDACC__) && __CUDA_ARCH__ >= 1000 && __CUDA_ARCH__ < 1200

// By one whole warp: a power of two of columns, at least 32; the address appears in shared memory.
UNSPOOL_DEVICE void tmem_allocate(word* shared, int columns) {
    asm volatile("tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%0], %1;"
                 ::"r"(shared_address(shared)), "r"(columns) : "memory");
    asm volatile("tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;");
}
UNSPOOL_DEVICE void tmem_release(word address, int columns) {
    asm volatile("tcgen05.dealloc.cta_group::1.sync.aligned.b32 %0, %1;"
                 ::"r"(address), "r"(columns));
}

// A warp stores 16 lanes x 8 columns, an A fragment: r[0] lane g column t, r[1] lane g + 8,
// r[2] and r[3] four columns on.
UNSPOOL_DEVICE void tmem_store(word address, const word (&r)[4]) {
    asm volatile("tcgen05.st.sync.aligned.16x128b.x2.b32 [%0], {%1, %2, %3, %4};"
                 ::"r"(address), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
}
// A warp stores the same four columns of each of its 32 lanes, a thread one lane.
UNSPOOL_DEVICE void tmem_store_lanes(word address, const word (&r)[4]) {
    asm volatile("tcgen05.st.sync.aligned.32x32b.x4.b32 [%0], {%1, %2, %3, %4};"
                 ::"r"(address), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
}
UNSPOOL_DEVICE void tmem_store_wait() {
    asm volatile("tcgen05.wait::st.sync.aligned;" ::: "memory");
}

// A warp loads 16 lanes x 16 columns, two D fragments: r[0], r[1] lane g columns 2 t, 2 t + 1; r[2],
// r[3] lane g + 8; the others eight columns on. The registers may be used after tmem_load_wait.
UNSPOOL_DEVICE void tmem_load_fragments(word address, float (&r)[8]) {
    asm volatile("tcgen05.ld.sync.aligned.16x256b.x2.b32 {%0, %1, %2, %3, %4, %5, %6, %7}, [%8];"
                 : "=f"(r[0]), "=f"(r[1]), "=f"(r[2]), "=f"(r[3]), "=f"(r[4]), "=f"(r[5]),
                   "=f"(r[6]), "=f"(r[7])
                 : "r"(address) : "memory");
}
UNSPOOL_DEVICE void tmem_load_fragments(word address, int (&r)[8]) {
    asm volatile("tcgen05.ld.sync.aligned.16x256b.x2.b32 {%0, %1, %2, %3, %4, %5, %6, %7}, [%8];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]), "=r"(r[4]), "=r"(r[5]),
                   "=r"(r[6]), "=r"(r[7])
                 : "r"(address) : "memory");
}
UNSPOOL_DEVICE void tmem_load_wait() { asm volatile("tcgen05.wait::ld.sync.aligned;" ::: "memory"); }
// No instruction: the registers are read behind the wait and not before.
UNSPOOL_DEVICE void tmem_loaded(float (&r)[8]) {
    asm volatile("" : "+f"(r[0]), "+f"(r[1]), "+f"(r[2]), "+f"(r[3]), "+f"(r[4]), "+f"(r[5]),
                      "+f"(r[6]), "+f"(r[7]));
}
UNSPOOL_DEVICE void tmem_loaded(int (&r)[8]) {
    asm volatile("" : "+r"(r[0]), "+r"(r[1]), "+r"(r[2]), "+r"(r[3]), "+r"(r[4]), "+r"(r[5]),
                      "+r"(r[6]), "+r"(r[7]));
}

UNSPOOL_DEVICE void tmem_fence_before() {
    asm volatile("tcgen05.fence::before_thread_sync;" ::: "memory");
}
UNSPOOL_DEVICE void tmem_fence_after() {
    asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory");
}

#define UNSPOOL_TMEM_MMA(spelling)                                                                 \
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %4, 0; "                                          \
                 "tcgen05.mma.cta_group::1." spelling " [%0], [%1], %2, %3, p; }"                  \
                 ::"r"(d), "r"(a), "l"(b), "r"(what), "r"(add) : "memory")

// By one thread: 128 rows in tensor memory times n columns in shared memory, one slice.
template <Kind kind>
UNSPOOL_DEVICE void tmem_mma(
    word d, word a, unsigned long long b, int n, bool accumulate) {
    static_assert(kind != Kind::mxf4nvf4, "FP4 has scales");
    static_assert(kind != Kind::s8 || __CUDA_ARCH__ == 1000, "tcgen05 has no kind::i8 here");
    const word what = product_of(kind, n), add = accumulate;
    if constexpr (kind == Kind::f16)
        UNSPOOL_TMEM_MMA("kind::f16");
    else if constexpr (kind == Kind::s8)
        UNSPOOL_TMEM_MMA("kind::i8");
    else
        UNSPOOL_TMEM_MMA("kind::f8f6f4");
}
#undef UNSPOOL_TMEM_MMA

// The same where a word of four scales belongs to every row and column. FP4, 64 packed E2M1: all four
// E4M3, one per 16. 8-bit operands: one E8M0, of rows the byte that is named, of columns the first.
#define UNSPOOL_TMEM_MMA(spelling)                                                                 \
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %4, 0; "                                          \
                 "tcgen05.mma.cta_group::1." spelling " [%0], [%1], %2, %3, [%5], [%6], p; }"      \
                 ::"r"(d), "r"(a), "l"(b), "r"(what), "r"(add), "r"(scale_a), "r"(scale_b)         \
                 : "memory")
template <Kind kind>
UNSPOOL_DEVICE void tmem_mma_scaled(word d, word a, unsigned long long b, word scale_a,
                                    word scale_b, int byte_a, int n, bool accumulate) {
    static_assert(kind != Kind::f16 && kind != Kind::s8, "no block scales here");
    const word what = scaled_product_of(kind, n, byte_a), add = accumulate;
    if constexpr (kind == Kind::mxf4nvf4)
        UNSPOOL_TMEM_MMA("kind::mxf4nvf4.block_scale.scale_vec::4X");
    else
        UNSPOOL_TMEM_MMA("kind::mxf8f6f4.block_scale.scale_vec::1X");
}
#undef UNSPOOL_TMEM_MMA

// By one thread, before the products that it issues next: 32 times 16 bytes of shared memory, eight
// after eight, to the same four columns of every warp's 32 lanes.
UNSPOOL_DEVICE void tmem_copy(word address, unsigned long long from) {
    asm volatile("tcgen05.cp.cta_group::1.32x128b.warpx4 [%0], %1;"
                 ::"r"(address), "l"(from) : "memory");
}

// The barrier is arrived at when all products and copies that this thread has issued are done.
UNSPOOL_DEVICE void tmem_commit(Barrier* barrier) {
    asm volatile(
        "tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%0];"
        ::"r"(shared_address(barrier)) : "memory");
}

#endif

}  // namespace unspool
