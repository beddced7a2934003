// Threads, shared and global memory, barriers of a block. The twins stand in ../host.
#ifdef __CUDACC__

// UNSPOOL_BLOCKS of them leave each other registers enough on a multiprocessor.
#define UNSPOOL_KERNEL(name, type, argument)                                         \
    extern "C" __global__ void __launch_bounds__(UNSPOOL_THREADS, UNSPOOL_BLOCKS)     \
    name(const type argument)

namespace unspool {

struct alignas(8) Pair {
    word x, y;
};
struct alignas(16) Quad {
    word x, y, z, w;
};

UNSPOOL_DEVICE int thread_index() { return threadIdx.x; }
UNSPOOL_DEVICE int lane_index() { return threadIdx.x % 32; }
UNSPOOL_DEVICE int block_index() { return blockIdx.x; }
UNSPOOL_DEVICE int block_index_y() { return blockIdx.y; }
UNSPOOL_DEVICE int block_count() { return gridDim.x; }

extern __shared__ __align__(1024) char dynamic_shared_memory[];
UNSPOOL_DEVICE char* shared_memory() { return dynamic_shared_memory; }

UNSPOOL_DEVICE word shared_address(const void* shared) {
    return word(__cvta_generic_to_shared(shared));
}

template <class T>
UNSPOOL_DEVICE T load_shared(const void* at) {
    return *static_cast<const T*>(at);
}
template <class T>
UNSPOOL_DEVICE void store_shared(void* at, T value) {
    *static_cast<T*>(at) = value;
}
template <class T>
UNSPOOL_DEVICE T load_global(const void* at) {
    return *static_cast<const T*>(at);
}
template <class T>
UNSPOOL_DEVICE void store_global(void* at, T value) {
    *static_cast<T*>(at) = value;
}

// What another block wrote: from L2, past this multiprocessor's own cache.
template <class T>
UNSPOOL_DEVICE T load_global_fresh(const void* at) {
    static_assert(sizeof(T) == 16, "written for sixteen bytes");
    T d;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d.x), "=r"(d.y), "=r"(d.z), "=r"(d.w) : "l"(at) : "memory");
    return d;
}

UNSPOOL_DEVICE int atomic_add(int* at, int amount) { return atomicAdd(at, amount); }
UNSPOOL_DEVICE void fence_global() { __threadfence(); }

UNSPOOL_DEVICE void sync_block() { __syncthreads(); }
UNSPOOL_DEVICE void sync_warp() { __syncwarp(); }
// BAR.SYNC of so many threads, whole warps
UNSPOOL_DEVICE void sync_named(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

UNSPOOL_DEVICE word shuffle_xor(word value, int mask) {
    return __shfl_xor_sync(0xFFFFFFFFu, value, mask);
}
UNSPOOL_DEVICE float shuffle_xor(float value, int mask) {
    return __shfl_xor_sync(0xFFFFFFFFu, value, mask);
}

}  // namespace unspool

#endif
