// wgmma: products of a warpgroup are done when they are waited for, with what then stands in the
// registers of operand A and in shared memory.
#pragma once

#include "products.hpp"

namespace unspool::host {

struct GroupProduct {
    Kind kind;
    int n;
    float* d;
    const word* a;
    unsigned long long b;
};

struct GroupQueue {
    std::deque<std::vector<GroupProduct>> closed;
    std::vector<GroupProduct> open;
    bool fenced = false;
};

inline std::vector<GroupQueue>& group_queues() {
    static std::vector<GroupQueue> the;
    return the;
}

// Operand B of a slice: what the matrix unit reads of shared memory.
inline std::vector<word> columns_at(const Described& it, int n, const Actor& actor) {
    std::vector<word> b(n * slice_words);
    for (int c = 0; c < n; ++c)
        for (int i = 0; i < slice_words; ++i) {
            const char* at = shared().base + operand_offset(it, c, i);
            read_shared(shared().offset(at, 4, 4), 4, actor);
            std::memcpy(&b[c * slice_words + i], at, 4);
        }
    return b;
}

// Product number `which` of the first group in line, for all 128 threads.
inline void group_product(const Meeting& meeting, std::size_t which) {
    std::vector<const GroupProduct*> all;
    for (const auto& [thread, _] : meeting.arrived) {
        const auto& line = group_queues()[thread].closed.front();
        if (which >= line.size()) engine()->fail("threads of a warpgroup issued unlike products");
        all.push_back(&line[which]);
    }
    const GroupProduct& first = *all[0];
    for (const GroupProduct* it : all)
        if (it->b != first.b || it->n != first.n || it->kind != first.kind)
            engine()->fail("threads of a warpgroup issued unlike products");
    const int leader = meeting.arrived[0].first;
    const Clock& seen = engine()->fibers[leader].clock;
    const auto b = columns_at(described_for_wgmma(first.b), first.n, Actor{leader, seen[leader], &seen});
    word a[64][slice_words];
    for (int thread = 0; thread < group_threads; ++thread)
        for (int i = 0; i < 4; ++i) {
            const Spot spot = group_a_spot(thread, i);
            a[spot.row][spot.column] = all[thread]->a[i];
        }
    for (int thread = 0; thread < group_threads; ++thread)
        for (int i = 0; i < first.n / 2; ++i) {
            const Spot spot = group_d_spot(thread, i);
            const word* row = a[spot.row];
            float& d = all[thread]->d[i];
            d = slice_product(first.kind, d, [&](int w) { return row[w]; },
                              [&](int w) { return b[spot.column * slice_words + w]; });
        }
}

}  // namespace unspool::host

namespace unspool {

inline void wgmma_fence() { host::group_queues()[thread_index()].fenced = true; }

template <Kind kind, int n>
void wgmma(float (&d)[n / 2], const word (&a)[4], unsigned long long b) {
    host::GroupQueue& mine = host::group_queues()[thread_index()];
    if (!mine.fenced) host::engine()->fail("wgmma without wgmma_fence since the last commit");
    mine.open.push_back({kind, n, d, a, b});
}

inline void wgmma_commit() {
    host::GroupQueue& mine = host::group_queues()[thread_index()];
    mine.closed.push_back(std::move(mine.open));
    mine.open.clear();
    mine.fenced = false;
}

template <int pending>
void wgmma_wait() {
    host::Engine& all = *host::engine();
    all.meet(all.group_place(), "wgmma_wait", host::group_threads, nullptr,
             [](host::Meeting& meeting) {
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
