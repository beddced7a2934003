// wgmma (sm_90): a warpgroup multiplies 64 rows, in registers, by columns in shared memory. The
// product itself is spelled for its number of columns by source.py.
namespace unspool {

// Rows of K, not swizzled: the 14 low bits of address, and of both distances, in 16 bytes.
// leading: from the first 16 bytes of a slice to the second; stride: to the next eight columns.
UNSPOOL_DEVICE unsigned long long descriptor(const void* shared, int leading, int stride) {
    const unsigned long long start = (shared_address(shared) & 0x3FFFF) >> 4;
    return start | (unsigned long long)(leading >> 4) << 16 |
           (unsigned long long)(stride >> 4) << 32;
}

#if defined(__CUDACC__) && __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1000

UNSPOOL_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
UNSPOOL_DEVICE void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int pending>
UNSPOOL_DEVICE void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

#endif

}  // namespace unspool
