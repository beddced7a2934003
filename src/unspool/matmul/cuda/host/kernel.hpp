// What kernels see of the twins: wrappers declared, templates thin. The rest is compiled once.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace unspool {

struct alignas(8) Pair {
    word x, y;
};
struct alignas(16) Quad {
    word x, y, z, w;
};
struct alignas(8) Barrier {
    unsigned long long state;
};

// What stands in operand A; operand B is binary16 for f16, packed E2M1 for mxf4nvf4, INT8 for s8,
// E4M3 for all others.
enum class Kind { f16, e4m3, e5m2, f8f6f4_e2m1, f8f6f4_e2m3, f8f6f4_e3m2, mxf4nvf4, s8 };

int thread_index();
int lane_index();
int block_index();
int block_index_y();
int block_count();
char* shared_memory();
word shared_address(const void* at);

namespace host {

void check_shared_read(const void* at, int bytes, int alignment);
void check_shared_write(const void* at, int bytes, int alignment);
void check_global_read(const void* at, int bytes, int alignment, bool fresh);
void check_global_write(const void* at, int bytes, int alignment);
void wait_for_copies(int pending);
// d: sums of four bytes each, FP32 or for s8 whole numbers
void warp_mma(Kind kind, void* d, const word* a, word b0, word b1);
void warp_mma_scaled(Kind kind, float* d, const word* a, word b0, word b1, word scale_a,
                     word scale_b, int pair, int thread, int byte);
void group_mma(Kind kind, int n, void* d, const word* a, unsigned long long b, bool adds);
void wait_for_groups(int pending);
// Where scales stand in tensor memory, of either operand, if there are any.
struct ScalesAt {
    bool given;
    word a, b;
};
void tensor_mma(Kind kind, word what, word d, word a, unsigned long long b, int n, bool accumulate,
                const ScalesAt& scales);

}  // namespace host

template <class T>
T load_shared(const void* at) {
    host::check_shared_read(at, sizeof(T), alignof(T));
    T value;
    std::memcpy(&value, at, sizeof(T));
    return value;
}
template <class T>
void store_shared(void* at, T value) {
    host::check_shared_write(at, sizeof(T), alignof(T));
    std::memcpy(at, &value, sizeof(T));
}
template <class T>
T load_global(const void* at) {
    host::check_global_read(at, sizeof(T), alignof(T), false);
    T value;
    std::memcpy(&value, at, sizeof(T));
    return value;
}
template <class T>
T load_global_fresh(const void* at) {
    host::check_global_read(at, sizeof(T), alignof(T), true);
    T value;
    std::memcpy(&value, at, sizeof(T));
    return value;
}
template <class T>
void store_global(void* at, T value) {
    host::check_global_write(at, sizeof(T), alignof(T));
    std::memcpy(at, &value, sizeof(T));
}
int atomic_add(int* at, int amount);
void fence_global();

void sync_block();
void sync_named(int id, int threads);
void sync_warp();
word shuffle_xor(word value, int mask);
float shuffle_xor(float value, int mask);
bool elect_one();

void copy_async(void* shared, const void* global);
void copy_commit();
template <int pending>
void copy_wait() {
    host::wait_for_copies(pending);
}
void barrier_init(Barrier* barrier, int arrivals);
void barrier_init_fence();
void barrier_arrive(Barrier* barrier);
void barrier_expect(Barrier* barrier, int bytes);
void barrier_wait(Barrier* barrier, int parity);
void copy_bulk(void* shared, const void* global, int bytes, Barrier* barrier);
void copy_bulk_once(void* shared, const void* global, int bytes, Barrier* barrier);

word f16_of(float value);
float value_of_f16(word bits);
word bf16_of(float value);
word s8_of(float value);
word e4m3_of(float value);
float value_of_e4m3(word bits);
word e2m1_of(float x, float y, float z, float w);

void load_matrices(word (&r)[4], const void* row);
void load_matrices(word (&r)[2], const void* row);
template <Kind kind>
void mma(float (&d)[4], const float (&c)[4], const word (&a)[4], word b0, word b1) {
    static_assert(kind != Kind::s8, "sums of INT8 are whole");
    std::memmove(d, c, sizeof d);
    host::warp_mma(kind, d, a, b0, b1);
}
template <Kind kind>
void mma(int (&d)[4], const int (&c)[4], const word (&a)[4], word b0, word b1) {
    static_assert(kind == Kind::s8, "whole sums are of INT8");
    std::memmove(d, c, sizeof d);
    host::warp_mma(kind, d, a, b0, b1);
}
template <Kind kind>
void mma_scaled(float (&d)[4], const word (&a)[4], word b0, word b1, word scale_a, word scale_b,
                int pair_a, int thread_b) {
    static_assert(kind == Kind::mxf4nvf4, "no block scales here");
    host::warp_mma_scaled(kind, d, a, b0, b1, scale_a, scale_b, pair_a, thread_b, 0);
}
template <Kind kind>
void mma_mx(float (&d)[4], const float (&c)[4], const word (&a)[4], word b0, word b1, word scale_a,
            int pair_a, int byte_a) {
    static_assert(kind != Kind::mxf4nvf4 && kind != Kind::s8 && kind != Kind::f16, "no E8M0 here");
    std::memmove(d, c, sizeof d);
    host::warp_mma_scaled(kind, d, a, b0, b1, scale_a, 0x7F7F7F7F, pair_a, 0, byte_a);
}

void wgmma_fence();
void wgmma_commit();
template <Kind kind, int n>
void wgmma(float (&d)[n / 2], const word (&a)[4], unsigned long long b, bool adds) {
    static_assert(kind != Kind::s8, "sums of INT8 are whole");
    host::group_mma(kind, n, d, a, b, adds);
}
template <Kind kind, int n>
void wgmma(int (&d)[n / 2], const word (&a)[4], unsigned long long b, bool adds) {
    static_assert(kind == Kind::s8, "whole sums are of INT8");
    host::group_mma(kind, n, d, a, b, adds);
}
template <int pending>
void wgmma_wait() {
    host::wait_for_groups(pending);
}

void tmem_allocate(word* slot, int columns);
void tmem_release(word address, int columns);
void tmem_store(word address, const word (&r)[4]);
void tmem_store_lanes(word address, const word (&r)[4]);
void tmem_store_wait();
namespace host {
void load_fragments(word address, void* r);
}
template <class T>
void tmem_load_fragments(word address, T (&r)[8]) {
    static_assert(sizeof(T) == 4, "a lane has 32 bits a column");
    host::load_fragments(address, r);
}
void tmem_load_wait();
template <class T>
void tmem_loaded(T (&)[8]) {}
void tmem_fence_before();
void tmem_fence_after();
UNSPOOL_DEVICE word product_of(Kind kind, int n);  // hardware/tensor_memory.cuh
UNSPOOL_DEVICE word scaled_product_of(Kind kind, int n, int byte_a);
template <Kind kind>
void tmem_mma(word d, word a, unsigned long long b, int n, bool accumulate) {
    static_assert(kind != Kind::mxf4nvf4, "FP4 has scales");
    host::tensor_mma(kind, product_of(kind, n), d, a, b, n, accumulate, {});
}
template <Kind kind>
void tmem_mma_scaled(word d, word a, unsigned long long b, word scale_a, word scale_b, int byte_a,
                     int n, bool accumulate) {
    static_assert(kind != Kind::f16 && kind != Kind::s8, "no block scales here");
    host::tensor_mma(kind, scaled_product_of(kind, n, byte_a), d, a, b, n, accumulate,
                     {true, scale_a, scale_b});
}
void tmem_copy(word address, unsigned long long from);
void tmem_commit(Barrier* barrier);

}  // namespace unspool

#define UNSPOOL_KERNEL(name, type, argument)                       \
    static void name##_body(const type argument);                  \
    extern "C" void name(const void* given) {                      \
        name##_body(*static_cast<const type*>(given));             \
    }                                                              \
    static void name##_body(const type argument)
