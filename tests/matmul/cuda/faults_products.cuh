// Products, right in mode 0 and wrong in one way in every other: D[64 or 128, 16] of binary16.
//
//   in    operand A [128 rows][8 words], then B as core matrices [half][2 blocks][8][16 bytes]
//   out   D [128][16] floats
using namespace unspool;

namespace unspool {

constexpr int b_from = 128 * 32, b_bytes = 512;

UNSPOOL_DEVICE void load_a(const Given& a, int first_row, word (&r)[4]) {
    const int g = lane_index() / 4, t = lane_index() % 4;
    for (int i = 0; i < 4; ++i)
        r[i] = word_at(a.in, (first_row + g + 8 * (i % 2)) * 8 + t + 4 * (i / 2));
}

UNSPOOL_DEVICE void store_d(const Given& a, int first_row, int first_column, const float* d) {
    const int g = lane_index() / 4, t = lane_index() % 4;
    for (int i = 0; i < 4; ++i) {
        const int row = first_row + g + 8 * (i / 2), column = first_column + 2 * t + i % 2;
        store_global<float>(a.out + 4 * (16 * row + column), d[i]);
    }
}

// By thread 0, and waited for by all of the block.
UNSPOOL_DEVICE void bring_b(const Given& a, char* shared, Barrier* full) {
    if (thread_index() == 0) barrier_init(full, 1), barrier_init_fence();
    sync_block();
    if (thread_index() != 0) return;
    barrier_expect(full, b_bytes);
    copy_bulk(shared, a.in + b_from, b_bytes, full);
}

}  // namespace unspool

UNSPOOL_KERNEL(by_warp, Given, a) {
    char* shared = shared_memory();
    const int thread = thread_index(), lane = lane_index(), first_row = 16 * (thread / 32);
    for (int i = thread; i < b_bytes / 4; i += 128)
        store_shared<word>(shared + 4 * i, word_at(a.in + b_from, i));
    sync_block();
    word r[4], b[4];
    load_a(a, first_row, r);
    if (a.mode == 1) std::swap(r[1], r[2]);
    const int matrix = lane / 8;  // halves of block 0, then of block 1
    const int from = a.mode == 2 ? lane : (matrix % 2 * 2 + matrix / 2) * 8 + lane % 8;
    load_matrices(b, shared + 16 * (a.mode == 3 ? lane ^ 1 : from));
    for (int block = 0; block < 2; ++block) {
        float d[4] = {};
        mma<Kind::f16>(d, d, r, b[2 * block], b[2 * block + 1]);
        store_d(a, first_row, 8 * block, d);
    }
}

UNSPOOL_KERNEL(by_group, Given, a) {
    char* shared = shared_memory();
    Barrier* full = reinterpret_cast<Barrier*>(shared + 1024);
    const int first_row = 16 * (thread_index() / 32);
    word r[4];
    float d[8] = {};
    load_a(a, first_row, r);
    bring_b(a, shared, full);
    if (a.mode != 1) barrier_wait(full, 0);
    if (a.mode == 11) {
        store_shared<word>(shared + 4 * thread_index(), 0);
        sync_block();
    }
    if (a.mode != 2) wgmma_fence();
    const int stride = a.mode == 3 ? 144 : 128, leading = a.mode == 4 ? 128 : 256;
    wgmma<Kind::f16, 16>(d, r, descriptor(shared, leading, stride), true);
    if (a.mode != 5) wgmma_commit();
    if (a.mode == 6) r[0] = 0;
    if (a.mode == 7) store_shared<word>(shared + 4 * thread_index(), 0);
    const float early = d[0];
    if (a.mode == 8 && thread_index() == 77) return;
    if (a.mode != 9) wgmma_wait<0>();
    if (a.mode == 10) d[0] = early;
    for (int block = 0; block < 2; ++block) store_d(a, first_row, 8 * block, d + 4 * block);
}

UNSPOOL_KERNEL(by_tensor_memory, Given, a) {
    char* shared = shared_memory();
    Barrier *full = reinterpret_cast<Barrier*>(shared + 1024), *done = full + 1;
    word* where = reinterpret_cast<word*>(shared + 1088);
    const int warp = thread_index() / 32;
    if (thread_index() == 0) barrier_init(done, 1);
    bring_b(a, shared, full);
    if (warp == 0) tmem_allocate(where, 32);
    if (a.mode != 1) tmem_fence_before();
    sync_block();
    if (a.mode != 2) tmem_fence_after();
    const word memory = load_shared<word>(where), operand = memory + 16;
    for (int half = 0; half < 2; ++half) {
        word r[4];
        load_a(a, 32 * warp + 16 * half, r);
        if (a.mode == 3 && warp == 3) continue;
        const int lanes = 32 * (a.mode == 4 ? warp ^ 1 : warp) + 16 * half;
        tmem_store(operand + (word(lanes) << 16) + (a.mode == 5 ? 12 : 0), r);
    }
    if (a.mode != 6) tmem_store_wait();
    tmem_fence_before();
    if (a.mode != 7) sync_block();
    if (thread_index() == 0) {
        barrier_wait(full, 0);
        if (a.mode != 8) tmem_fence_after();
        tmem_mma<Kind::f16>(memory, operand, a.mode == 9 ? descriptor(shared, 256, 128)
                                                          : tmem_descriptor(shared, 256, 128),
                            16, a.mode == 10);
        if (a.mode != 11) tmem_commit(done);
    }
    if (a.mode != 12) barrier_wait(done, 0);
    if (a.mode != 13) tmem_fence_after();
    for (int half = 0; half < 2; ++half) {
        float d[8];
        tmem_load_fragments(memory + (word(32 * warp + 16 * half) << 16), d);
        if (a.mode != 14) tmem_load_wait();
        for (int block = 0; block < 2; ++block)
            store_d(a, 32 * warp + 16 * half, 8 * block, d + 4 * block);
    }
    if (a.mode == 14) tmem_load_wait();
    tmem_fence_before();
    sync_block();
    tmem_fence_after();
    if (warp == 0 && a.mode != 15) tmem_release(memory, 32);
}

// Packed E2M1 with scales: A as above, B's core matrices, then words of four scales, of a row of A
// (32 lanes by 4) and of a column of B (of 32 lanes two words count).
UNSPOOL_KERNEL(by_scales, Given, a) {
    char* shared = shared_memory();
    Barrier *full = reinterpret_cast<Barrier*>(shared + 1536), *done = full + 1;
    word* where = reinterpret_cast<word*>(shared + 1568);
    const int warp = thread_index() / 32, lane = lane_index();
    if (thread_index() == 0)
        barrier_init(full, 1), barrier_init(done, 1), barrier_init_fence();
    if (warp == 0) tmem_allocate(where, 32);
    tmem_fence_before();
    sync_block();
    tmem_fence_after();
    const word memory = load_shared<word>(where), operand = memory + 16, scales = memory + 24;
    for (int half = 0; half < 2; ++half) {
        word r[4];
        load_a(a, 32 * warp + 16 * half, r);
        tmem_store(operand + (word(32 * warp + 16 * half) << 16), r);
    }
    const bool stored = a.mode >= 7;  // scales of A, by every warp to its own lanes
    word r[4];
    for (int i = 0; i < 4; ++i) r[i] = word_at(a.in + b_from + b_bytes, 4 * lane + i);
    if (a.mode == 8 && warp == 2) r[1] ^= 1;
    if (a.mode == 9 && warp == 2 && lane == 5) r[1] |= 0x80;
    const int lanes = 32 * warp + (a.mode == 10 ? 16 : 0);
    if (stored) tmem_store_lanes(scales + (word(lanes) << 16), r);
    tmem_store_wait();
    tmem_fence_before();
    sync_block();
    if (thread_index() == 0) {
        barrier_expect(full, 1536);
        copy_bulk(shared, a.in + b_from, 1536, full);
        if (a.mode != 1) barrier_wait(full, 0);
        if (a.mode != 2) tmem_fence_after();
        const unsigned long long of_a = tmem_descriptor(shared + 512, 0, 128);
        if (!stored && a.mode != 3) tmem_copy(scales, of_a);
        tmem_copy(scales + 4 + (a.mode == 4 ? 1 : 0), tmem_descriptor(shared + 1024, 0, 128));
        tmem_mma_scaled<Kind::mxf4nvf4>(memory, operand, tmem_descriptor(shared, 256, 128), scales,
                                        scales + 4 + (a.mode == 5 ? 1 : 0), 0, 16, false);
        if (a.mode == 6) tmem_copy(scales, of_a);
        tmem_commit(done);
    }
    barrier_wait(done, 0);
    tmem_fence_after();
    for (int half = 0; half < 2; ++half) {
        float d[8];
        tmem_load_fragments(memory + (word(32 * warp + 16 * half) << 16), d);
        tmem_load_wait();
        for (int block = 0; block < 2; ++block)
            store_d(a, 32 * warp + 16 * half, 8 * block, d + 4 * block);
    }
    tmem_fence_before();
    sync_block();
    tmem_fence_after();
    if (warp == 0) tmem_release(memory, 32);
}
