// wgmma: products of a warpgroup are done when they are waited for, with what then stands in the
// registers of operand A and in shared memory.
#pragma once

#include "products.hpp"

namespace unspool::host {

struct GroupProduct {
    Kind kind;
    int n;
    void* d;
    const word* a;
    unsigned long long b;
    bool adds;  // to what stands in d
};

struct GroupQueue {
    struct Sums {
        std::vector<word> values;  // their bits
        int products = 0;
    };
    std::deque<std::vector<GroupProduct>> closed;
    std::vector<GroupProduct> open;
    bool fenced = false;
    // Sums that products under way add to: their registers hold NaN (2143289344 of whole numbers)
    // until all of those are done.
    std::map<void*, Sums> sums;

    void hold(void* d, int count) {
        Sums& it = sums[d];
        if (it.products++ > 0) return;
        const std::vector<float> meanwhile(count, NAN);
        it.values.resize(count);
        std::memcpy(it.values.data(), d, 4 * count);
        std::memcpy(d, meanwhile.data(), 4 * count);
    }
    void give_back(void* d) {
        Sums& it = sums[d];
        if (--it.products > 0) return;
        std::memcpy(d, it.values.data(), 4 * it.values.size());
        sums.erase(d);
    }
};

inline std::vector<GroupQueue>& group_queues() {
    static std::vector<GroupQueue> the;
    return the;
}

// What the matrix unit reads of shared memory.
inline word word_for_unit(int from, const Actor& actor) {
    const char* at = shared().base + from;
    const std::size_t offset = shared().offset(at, 4, 4);
    read_shared(offset, 4, actor);
    if (shared().shadow.words[offset / 4].writer < engine()->threads)
        engine()->fail(shared().shadow.at(offset / 4) +
                       " is read by the matrix unit but was not copied by the hardware");
    word value;
    std::memcpy(&value, at, 4);
    return value;
}

// Operand B of a slice.
inline std::vector<word> columns_at(const Described& it, int n, const Actor& actor) {
    std::vector<word> b(n * slice_words);
    for (int c = 0; c < n; ++c)
        for (int i = 0; i < slice_words; ++i)
            b[c * slice_words + i] = word_for_unit(operand_offset(it, c, i), actor);
    return b;
}

// Product number `which` of the first group in line, for all 128 threads.
inline void group_product(const Meeting& meeting, std::size_t which) {
    std::vector<const GroupProduct*> all;
    const std::size_t count = group_queues()[meeting.arrived[0].first].closed.front().size();
    for (const auto& [thread, _] : meeting.arrived) {
        const auto& closed = group_queues()[thread].closed;
        if (closed.empty() || closed.front().size() != count)
            engine()->fail("threads of a warpgroup issued unlike products");
        all.push_back(&closed.front()[which]);
    }
    const GroupProduct& first = *all[0];
    for (const GroupProduct* it : all)
        if (it->b != first.b || it->n != first.n || it->kind != first.kind ||
            it->adds != first.adds)
            engine()->fail("threads of a warpgroup issued unlike products");
    const int leader = meeting.arrived[0].first;
    const Clock& seen = engine()->fibers[leader].clock;
    const Actor unit{leader, seen[leader], &seen};
    const auto b = columns_at(described_for_wgmma(first.b), first.n, unit);
    word a[64][slice_words];
    for (int thread = 0; thread < group_threads; ++thread)
        for (int i = 0; i < 4; ++i) {
            const Spot spot = group_a_spot(thread, i);
            a[spot.row][spot.column] = all[thread]->a[i];
        }
    for (int thread = 0; thread < group_threads; ++thread) {
        GroupQueue& mine = group_queues()[meeting.arrived[thread].first];
        std::vector<word>& sums = mine.sums[all[thread]->d].values;
        for (int i = 0; i < first.n / 2; ++i) {
            const Spot spot = group_d_spot(thread, i);
            const word* row = a[spot.row];
            sums[i] = slice_product(first.kind, first.adds ? sums[i] : 0,
                                    [&](int w) { return row[w]; },
                                    [&](int w) { return b[spot.column * slice_words + w]; });
        }
        mine.give_back(all[thread]->d);
    }
}

}  // namespace unspool::host

namespace unspool {

void wgmma_fence() { host::group_queues()[thread_index()].fenced = true; }

void host::group_mma(Kind kind, int n, void* d, const word* a, unsigned long long b, bool adds) {
    host::GroupQueue& mine = host::group_queues()[thread_index()];
    if (!mine.fenced) host::engine()->fail("wgmma without wgmma_fence since the last commit");
    mine.hold(d, n / 2);
    mine.open.push_back({kind, n, d, a, b, adds});
}

void wgmma_commit() {
    host::GroupQueue& mine = host::group_queues()[thread_index()];
    mine.closed.push_back(std::move(mine.open));
    mine.open.clear();
    mine.fenced = false;
}

void host::wait_for_groups(int pending) {
    host::Engine& all = *host::engine();
    all.meet(all.group_place(), "wgmma_wait", host::group_threads, nullptr,
             [&](host::Meeting& meeting) {
                 auto& first = host::group_queues()[meeting.arrived[0].first].closed;
                 while (int(first.size()) > pending) {
                     for (std::size_t i = 0; i < first.front().size(); ++i)
                         host::group_product(meeting, i);
                     for (const auto& [thread, _] : meeting.arrived)
                         host::group_queues()[thread].closed.pop_front();
                 }
             });
}

}  // namespace unspool
