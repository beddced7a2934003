// cp.async by groups; mbarriers and bulk copies. Data arrives when it is waited for, not before.
#pragma once

#include "global.hpp"

namespace unspool::host {

struct Copy {
    std::size_t to;
    const void* from;
    int bytes;
};

// Copies of a thread that wait for their group to be awaited, the open group last.
struct Groups {
    std::deque<std::vector<Copy>> closed;
    std::vector<Copy> open;
};

struct BarrierState {
    int initialised_by = -1;
    bool fenced = false;  // the hardware's own engines may use it
    int arrivals = 0, left = 0, transactions = 0, phase = 0, agent = 0;
    std::uint32_t agent_clock = 0;
    Clock pending, completed;
    std::vector<int> waiting;
};

struct CopyState {
    std::vector<Groups> groups;              // by thread
    std::map<std::size_t, BarrierState> barriers;  // by offset in shared memory
    int bulk_queue = -1;

    void reset(int threads) {
        groups.assign(threads, Groups{});
        barriers.clear();
        bulk_queue = -1;
    }
};

inline CopyState& copies() {
    static CopyState the;
    return the;
}

inline void mark_pending(std::size_t offset, int bytes, const Actor& actor) {
    each_word(offset, bytes, [&](std::size_t word) {
        shared().shadow.check_write(word, actor);
        ++shared().shadow.words[word].pending;
    });
}

inline void land(std::size_t offset, const void* from, int bytes, const Actor& actor) {
    each_word(offset, bytes, [&](std::size_t word) {
        --shared().shadow.words[word].pending;
        shared().shadow.set(word, actor);
    });
    std::memcpy(shared().base + offset, from, bytes);
}

inline BarrierState& barrier_at(const void* at) {
    const std::size_t offset = shared().offset(at, 8, 8);
    const auto found = copies().barriers.find(offset);
    if (found == copies().barriers.end())
        engine()->fail("a barrier is used that was never initialised");
    return found->second;
}

inline std::string state_of_barrier(int offset) {
    const auto found = copies().barriers.find(offset);
    std::string text = " at " + std::to_string(offset);
    if (found == copies().barriers.end()) return text;
    const BarrierState& it = found->second;
    return text + " (missing: " + std::to_string(it.left) + " of " + std::to_string(it.arrivals) +
           " arrivals, " + std::to_string(it.transactions) + " bytes)";
}

// Ends the phase where nothing is missing.
inline void settle(BarrierState& barrier) {
    if (barrier.left > 0 || barrier.transactions != 0) return;
    if (barrier.left < 0) engine()->fail("more arrive at a barrier than it was initialised for");
    barrier.left = barrier.arrivals;
    barrier.phase ^= 1;
    join(barrier.completed, barrier.pending);
    for (int thread : barrier.waiting) engine()->wake(thread);
    barrier.waiting.clear();
}

inline void arrive(BarrierState& barrier, const Clock& seen) {
    if (barrier.left == 0) engine()->fail("more arrive at a barrier than it was initialised for");
    join(barrier.pending, seen);
    --barrier.left;
    settle(barrier);
}

}  // namespace unspool::host

namespace unspool {

void copy_async(void* shared, const void* global) {
    host::read_global(global, 16, 16, false);
    const std::size_t offset = host::shared().offset(shared, 16, 16);
    host::mark_pending(offset, 16, host::me());
    host::copies().groups[thread_index()].open.push_back({offset, global, 16});
}

void copy_commit() {
    host::Groups& mine = host::copies().groups[thread_index()];
    mine.closed.push_back(std::move(mine.open));
    mine.open.clear();
}

void host::wait_for_copies(int pending) {
    host::Groups& mine = host::copies().groups[thread_index()];
    while (int(mine.closed.size()) > pending) {
        for (const host::Copy& copy : mine.closed.front())
            host::land(copy.to, copy.from, copy.bytes, host::me());
        mine.closed.pop_front();
    }
}

void barrier_init(Barrier* barrier, int arrivals) {
    const std::size_t offset = host::shared().offset(barrier, 8, 8);
    host::BarrierState& it = host::copies().barriers[offset];
    it = host::BarrierState{};
    it.initialised_by = thread_index(), it.arrivals = it.left = arrivals;
    it.agent = host::engine()->new_agent();
    store_shared<Pair>(barrier, Pair{0, 0});
}
void barrier_init_fence() {
    for (auto& [offset, barrier] : host::copies().barriers)
        if (barrier.initialised_by == thread_index()) barrier.fenced = true;
}

// Whoever uses a barrier has to have seen its initialisation.
static host::BarrierState& used(Barrier* barrier) {
    load_shared<Pair>(barrier);
    return host::barrier_at(barrier);
}

// The same for what the hardware arrives at on its own.
static host::BarrierState& used_by_hardware(Barrier* barrier) {
    host::BarrierState& it = used(barrier);
    if (!it.fenced)
        host::engine()->fail("the hardware arrives at a barrier without barrier_init_fence");
    return it;
}

void barrier_arrive(Barrier* barrier) {
    host::tensor_leaves();
    host::arrive(used(barrier), host::engine()->clock());
    host::engine()->tick();
}

void barrier_expect(Barrier* barrier, int bytes) {
    host::BarrierState& it = used(barrier);
    it.transactions += bytes;
    host::arrive(it, host::engine()->clock());
    host::engine()->tick();
}

void barrier_wait(Barrier* barrier, int parity) {
    host::Engine& all = *host::engine();
    const int offset = int(shared_address(barrier));
    // the phase of that parity is over when the current one has the other
    while (used(barrier).phase == parity) {
        host::barrier_at(barrier).waiting.push_back(thread_index());
        all.block_on(host::barrier_phase, offset);
    }
    host::join(all.clock(), host::barrier_at(barrier).completed);
    host::tensor_enters();
}

void copy_bulk(void* shared, const void* global, int bytes, Barrier* barrier) {
    host::Engine& all = *host::engine();
    if (bytes <= 0 || bytes % 16) all.fail("a bulk copy of " + std::to_string(bytes) + " bytes");
    host::read_global(global, bytes, 16, false);
    const std::size_t offset = host::shared().offset(shared, bytes, 16);
    host::BarrierState* it = &used_by_hardware(barrier);
    host::mark_pending(offset, bytes, host::me());
    if (host::copies().bulk_queue < 0) {
        host::copies().bulk_queue = int(all.queues.size());
        all.queues.emplace_back();
    }
    const host::Clock seen = all.clock();
    all.queues[host::copies().bulk_queue].push_back([=] {
        const host::Actor engine_of_copies{it->agent, ++it->agent_clock, &seen};
        host::land(offset, global, bytes, engine_of_copies);
        host::Clock done = seen;
        if (int(done.size()) <= it->agent) done.resize(it->agent + 1, 0);
        done[it->agent] = it->agent_clock;
        host::join(it->pending, done);
        it->transactions -= bytes;
        host::settle(*it);
    });
}
void copy_bulk_once(void* shared, const void* global, int bytes, Barrier* barrier) {
    copy_bulk(shared, global, bytes, barrier);
}

}  // namespace unspool
