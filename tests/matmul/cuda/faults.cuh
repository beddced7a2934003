// Small kernels, right in mode 0 and wrong in one way in every other (test_faults.py says how).
namespace unspool {

struct Given {
    const char* in;  // 64 KiB of words
    char* out;       // a word or more per thread
    int mode;
};

UNSPOOL_DEVICE word word_at(const char* at, int i) { return load_global<word>(at + 4 * i); }
UNSPOOL_DEVICE void give(const Given& a, word value) {
    store_global<word>(a.out + 4 * thread_index(), value);
}

}  // namespace unspool

using namespace unspool;

// Words change places through shared memory, twice.
UNSPOOL_KERNEL(exchange, Given, a) {
    const int thread = thread_index(), other = thread ^ 37;
    char* shared = shared_memory();
    if (a.mode == 1) load_shared<word>(shared + 4 * thread);
    store_shared<word>(shared + 4 * thread, word_at(a.in, thread));
    if (a.mode == 2 && thread == 5) store_shared<word>(shared + 1024 + 512, 0);
    if (a.mode == 3 && thread == 5) load_shared<Pair>(shared + 4 * thread);
    if (a.mode == 4 && thread == 5) load_global<word>(a.in + 65536);
    if (a.mode == 5 && thread == 5) load_global<Quad>(a.in + 8);
    if (a.mode == 6 && thread == 5) store_global<Pair>(a.out + 500, Pair{1, 2});
    if (a.mode != 7) sync_block();
    const word value = load_shared<word>(shared + 4 * other);
    if (a.mode != 8) sync_block();
    store_shared<word>(shared + 4 * thread, value + 1);
    if (a.mode != 9) sync_named(1, 128);
    give(a, load_shared<word>(shared + 4 * other));
}

UNSPOOL_KERNEL(together, Given, a) {
    const int thread = thread_index(), lane = lane_index();
    const bool odd_one = thread == 35;
    if (a.mode == 1 && odd_one) sync_warp();
    word value = shuffle_xor(word(thread), a.mode == 2 && odd_one ? 2 : 1);
    if (!(a.mode == 3 && odd_one)) sync_block();
    if (a.mode == 4) sync_named(2, odd_one ? 64 : 128);
    if (a.mode == 5) sync_named(16, 128);
    if (a.mode == 6 && odd_one) return;
    sync_warp();
    give(a, elect_one() ? value : value + (lane == 0));
}

// Sixteen bytes a thread by cp.async, in two stages of two slots.
UNSPOOL_KERNEL(copied, Given, a) {
    const int thread = thread_index(), other = 127 - thread;
    char* shared = shared_memory();
    word sum = 0;
    for (int stage = 0; stage < 2; ++stage) {
        copy_async(shared + 2048 * stage + 16 * thread, a.in + 2048 * stage + 16 * thread);
        copy_commit();
    }
    for (int stage = 0; stage < 4; ++stage) {
        char* slot = shared + 2048 * (stage % 2);
        if (a.mode != 1) copy_wait<1>();
        if (a.mode != 2) sync_block();
        sum += load_shared<Quad>(slot + 16 * other).x;
        if (a.mode != 3) sync_block();
        if (stage < 2)
            copy_async(slot + 16 * thread, a.in + 2048 * (stage + 2) + 16 * thread);
        if (a.mode != 4 || stage != 1) copy_commit();
    }
    if (a.mode == 5) copy_async(shared + 16 * thread, a.in), copy_commit();
    if (a.mode == 6) copy_async(shared + 16 * thread + 8, a.in);
    if (a.mode == 7) copy_async(shared + 16 * thread, a.in);
    if (a.mode != 5) copy_wait<0>();
    give(a, sum);
}

// Bulk copies of 2048 bytes by the last thread, read by the other 128, two slots in turns.
UNSPOOL_KERNEL(brought, Given, a) {
    const int thread = thread_index();
    char* shared = shared_memory();
    Barrier *full = reinterpret_cast<Barrier*>(shared + 4096), *empty = full + 2;
    if (thread == 0 && a.mode != 1) {
        for (int slot = 0; slot < 2; ++slot)
            barrier_init(full + slot, 1), barrier_init(empty + slot, a.mode == 2 ? 127 : 128);
        if (a.mode != 3) barrier_init_fence();
    }
    if (a.mode != 4) sync_block();
    if (thread >= 128) {
        if (!elect_one()) return;
        for (int stage = 0; stage < 4; ++stage) {
            Barrier* to = full + stage % 2;
            if (a.mode != 5) barrier_wait(empty + stage % 2, stage / 2 % 2 ^ 1);
            barrier_expect(to, a.mode == 6 ? 1024 : a.mode == 7 ? 4096 : 2048);
            const int bytes = a.mode == 8 ? 2040 : 2048;
            copy_bulk(shared + 2048 * (stage % 2), a.in + 2048 * stage, bytes, to);
        }
        return;
    }
    word sum = 0;
    for (int stage = 0; stage < 4; ++stage) {
        const int slot = stage % 2, parity = stage / 2 % 2;
        if (a.mode != 9) barrier_wait(full + slot, a.mode == 10 ? parity ^ 1 : parity);
        if (a.mode == 11) barrier_arrive(empty + slot);
        sum += load_shared<Quad>(shared + 2048 * slot + 16 * (127 - thread)).y;
        if (a.mode == 12 && stage == 0) barrier_arrive(empty + 1);
        if (a.mode != 11 && a.mode != 13) barrier_arrive(empty + slot);
    }
    give(a, sum);
}

// Nothing but meetings: what a switch from thread to thread costs.
UNSPOOL_KERNEL(meetings, Given, a) {
    for (int i = 0; i < a.mode; ++i) sync_warp();
}

// Every block leaves a word per thread; the last to arrive adds them up.
UNSPOOL_KERNEL(counted, Given, a) {
    const int thread = thread_index(), blocks = block_count();
    char* parts = a.out + 1024;
    int* counter = reinterpret_cast<int*>(a.out + 512);
    const Quad mine = {word(block_index()), 0, 0, 0};
    store_global<Quad>(parts + 2048 * block_index() + 16 * thread, mine);
    if (a.mode != 1) fence_global();
    if (a.mode != 2) sync_block();
    if (thread == 0) store_shared<word>(shared_memory(), atomic_add(counter, 1) == blocks - 1);
    sync_block();
    if (!load_shared<word>(shared_memory())) return;
    if (a.mode != 3) fence_global();
    word sum = 0;
    for (int block = 0; block < blocks; ++block) {
        const char* part = parts + 2048 * block + 16 * (thread ^ 1);
        sum += a.mode == 4 ? load_global<Quad>(part).x : load_global_fresh<Quad>(part).x;
    }
    give(a, sum);
    if (a.mode == 5 && thread == 1) store_global<word>(a.out, 0);
}
