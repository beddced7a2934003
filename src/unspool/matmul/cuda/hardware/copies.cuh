// Asynchronous copies to shared memory: cp.async by groups, bulk copies that complete on an mbarrier.
#ifdef __CUDACC__

namespace unspool {

// LDGSTS: sixteen bytes, past L1
UNSPOOL_DEVICE void copy_async(void* shared, const void* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                 ::"r"(shared_address(shared)), "l"(global) : "memory");
}
UNSPOOL_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int pending>
UNSPOOL_DEVICE void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

struct alignas(8) Barrier {
    unsigned long long state;
};

#if __CUDA_ARCH__ >= 900

UNSPOOL_DEVICE void barrier_init(Barrier* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;"
                 ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// so that the copy engine sees initialised barriers
UNSPOOL_DEVICE void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
UNSPOOL_DEVICE void barrier_arrive(Barrier* barrier) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0]; }"
                 ::"r"(shared_address(barrier)) : "memory");
}
UNSPOOL_DEVICE void barrier_expect(Barrier* barrier, int bytes) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1; }"
                 ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}
// until the phase of that parity is over
UNSPOOL_DEVICE void barrier_wait(Barrier* barrier, int parity) {
    word over;
    do {
        asm volatile(
            "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; "
            "selp.u32 %0, 1, 0, p; }"
            : "=r"(over) : "r"(shared_address(barrier)), "r"(parity) : "memory");
    } while (!over);
}

// UBLKCP: multiples of sixteen bytes
UNSPOOL_DEVICE void copy_bulk(void* shared, const void* global, int bytes, Barrier* barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
        ::"r"(shared_address(shared)), "l"(global), "r"(bytes), "r"(shared_address(barrier))
        : "memory");
}
// for what is read once: first to leave L2
UNSPOOL_DEVICE void copy_bulk_once(void* shared, const void* global, int bytes, Barrier* barrier) {
    unsigned long long policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
        "[%0], [%1], %2, [%3], %4;"
        ::"r"(shared_address(shared)), "l"(global), "r"(bytes), "r"(shared_address(barrier)),
        "l"(policy) : "memory");
}

// one lane of a converged warp
UNSPOOL_DEVICE bool elect_one() {
    word chosen;
    asm volatile("{ .reg .pred p; elect.sync _|p, 0xFFFFFFFF; selp.u32 %0, 1, 0, p; }"
                 : "=r"(chosen));
    return chosen;
}

#endif

}  // namespace unspool

#endif
