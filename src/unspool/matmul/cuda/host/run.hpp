// The entry of a simulation: a grid, block after block in an order by seed.
#pragma once

#include "tensor_memory.hpp"

namespace unspool::host {

// What must not be left over when a block ends.
inline void check_end() {
    const int bulk = copies().bulk_queue;
    if (bulk >= 0 && !engine()->queues[bulk].empty())
        throw Fault("a block ends while bulk copies are under way, which nobody waited for");
    while (engine()->hardware_acts()) {  // products that nobody reads any more, and their commits
    }
    for (const Groups& mine : copies().groups)
        for (const auto& group : mine.closed)
            if (!group.empty())
                throw Fault("a block ends while copies to shared memory are under way");
    for (const Groups& mine : copies().groups)
        if (!mine.open.empty()) throw Fault("a block ends with copies that were never committed");
    for (const GroupQueue& mine : group_queues())
        if (!mine.open.empty() || !mine.closed.empty())
            throw Fault("a block ends while products of a warpgroup are under way");
    if (tensor().columns) throw Fault("a block ends without releasing its tensor memory");
}

struct Grid {
    int x, y, threads, shared_bytes;
};

inline void run_grid(const Grid& grid, unsigned seed, const std::function<void()>& kernel) {
    Engine& all = *engine();
    all.random.seed(seed);
    std::vector<int> order(std::size_t(grid.x) * grid.y);
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = int(i);
    std::shuffle(order.begin(), order.end(), all.random);
    all.blocks = grid.x;
    global().reset();
    for (int which : order) {
        all.block = which % grid.x, all.block_y = which / grid.x;
        shared().reset(grid.shared_bytes);
        copies().reset(grid.threads);
        tensor().reset(grid.threads);
        group_queues().assign(grid.threads, GroupQueue{});
        all.run_block(grid.threads, kernel);
        check_end();
    }
}

}  // namespace unspool::host

// Runs a kernel; 0, or 1 with the fault's text in `message` (of so many bytes).
extern "C" int unspool_simulate(
    void (*kernel)(const void*), const void* arguments, int x, int y, int threads, int shared_bytes,
    unsigned seed, const void* const* allocations, const long long* sizes,
    const char* const* names, int count, char* message, int message_bytes) {
    using namespace unspool::host;
    Engine all;
    engine() = &all;
    for (int i = 0; i < count; ++i) {
        const auto first = reinterpret_cast<std::uintptr_t>(allocations[i]);
        all.allocations.push_back({first, first + std::uintptr_t(sizes[i]), names[i]});
    }
    int failed = 0;
    try {
        run_grid({x, y, threads, shared_bytes}, seed, [&] { kernel(arguments); });
    } catch (const Fault& fault) {
        std::snprintf(message, message_bytes, "%s", fault.what());
        failed = 1;
    }
    engine() = nullptr;
    return failed;
}
