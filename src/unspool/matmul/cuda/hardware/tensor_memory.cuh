// Tensor memory and tcgen05 (sm_100): 128 lanes (rows) x 512 columns of 32 bits; address: lane << 16 | column.
namespace unspool {

// As wgmma's descriptor, with the version of this family in bits 46-48.
UNSPOOL_DEVICE unsigned long long tmem_descriptor(const void* shared, int leading, int stride) {
    const unsigned long long start = (shared_address(shared) & 0x3FFFF) >> 4;
    return start | (unsigned long long)(leading >> 4) << 16 |
           (unsigned long long)(stride >> 4) << 32 | 1ULL << 46;
}

// The instruction descriptor: D is FP32 (bit 4), formats of A and B at 7 and 10, N / 8 at 17,
// M / 16 at 24. E4M3 0, E5M2 1, E2M3 3, E3M2 4, E2M1 5; of kind::f16 binary16 is 0.
UNSPOOL_DEVICE constexpr word product_of(Kind kind, int n) {
    const word format = kind == Kind::e5m2          ? 1
                        : kind == Kind::f8f6f4_e2m3 ? 3
                        : kind == Kind::f8f6f4_e3m2 ? 4
                        : kind == Kind::f8f6f4_e2m1 ? 5
                                                    : 0;
    return 1u << 4 | format << 7 | word(n / 8) << 17 | 128u / 16 << 24;
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
UNSPOOL_DEVICE void tmem_load_wait() { asm volatile("tcgen05.wait::ld.sync.aligned;" ::: "memory"); }
// No instruction: the registers are read behind the wait and not before.
UNSPOOL_DEVICE void tmem_loaded(float (&r)[8]) {
    asm volatile("" : "+f"(r[0]), "+f"(r[1]), "+f"(r[2]), "+f"(r[3]), "+f"(r[4]), "+f"(r[5]),
                      "+f"(r[6]), "+f"(r[7]));
}

UNSPOOL_DEVICE void tmem_fence_before() {
    asm volatile("tcgen05.fence::before_thread_sync;" ::: "memory");
}
UNSPOOL_DEVICE void tmem_fence_after() {
    asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory");
}

// By one thread: 128 rows in tensor memory times n columns in shared memory, one slice.
template <Kind kind>
UNSPOOL_DEVICE void tmem_mma(
    word d, word a, unsigned long long b, int n, bool accumulate) {
    const word what = product_of(kind, n), add = accumulate;
    if constexpr (kind == Kind::f16)
        asm volatile("{ .reg .pred p; setp.ne.u32 p, %4, 0; "
                     "tcgen05.mma.cta_group::1.kind::f16 [%0], [%1], %2, %3, p; }"
                     ::"r"(d), "r"(a), "l"(b), "r"(what), "r"(add) : "memory");
    else
        asm volatile("{ .reg .pred p; setp.ne.u32 p, %4, 0; "
                     "tcgen05.mma.cta_group::1.kind::f8f6f4 [%0], [%1], %2, %3, p; }"
                     ::"r"(d), "r"(a), "l"(b), "r"(what), "r"(add) : "memory");
}

// The barrier is arrived at when all products that this thread has issued are done.
UNSPOOL_DEVICE void tmem_commit(Barrier* barrier) {
    asm volatile(
        "tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%0];"
        ::"r"(shared_address(barrier)) : "memory");
}

#endif

}  // namespace unspool
