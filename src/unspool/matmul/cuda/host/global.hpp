// Global memory: bounds, alignment, and who may see what others wrote. Blocks run one after
// another, so a missing fence never shows in the results; it shows here:
//
//   stores, fence_global --barrier--> atomic_add ... atomic_add --barrier--> fence_global, loads
//   of a block's threads                of one           of another block's one    of its threads
#pragma once

#include "memory.hpp"

namespace unspool::host {

// The last write of a byte in this launch.
struct Wrote {
    int block = -1, thread = 0;
    std::uint32_t at = 0;
    bool counter = false;  // only atomics: they order themselves
};

// What is published at a counter: how far the threads of each block had written, and fenced.
using Published = std::map<int, Clock>;

struct GlobalMemory {
    // by the start of an array, for those that are written
    std::map<std::uintptr_t, std::vector<Wrote>> shadows;
    std::map<std::uintptr_t, Published> counters;

    void reset() { shadows.clear(), counters.clear(); }
};

inline GlobalMemory& global() {
    static GlobalMemory the;
    return the;
}

inline int block_number() { return engine()->block + engine()->blocks * engine()->block_y; }

inline const Allocation& allocation_of(const void* at, std::size_t size, std::size_t alignment) {
    const auto address = reinterpret_cast<std::uintptr_t>(at);
    for (const Allocation& it : engine()->allocations) {
        if (address < it.first || address >= it.end) continue;
        const std::string offset = std::to_string(address - it.first);
        if (address + size > it.end)
            engine()->fail("'" + it.name + "' is accessed across its end: offset " + offset);
        if ((address - it.first) % alignment)
            engine()->fail("'" + it.name + "' is accessed unaligned: offset " + offset + " for " +
                           std::to_string(size) + " bytes");
        return it;
    }
    engine()->fail("global memory is accessed out of bounds, " + std::to_string(size) + " bytes");
}

inline std::string named(const Allocation& it, const void* at, const Wrote& last) {
    const auto offset = reinterpret_cast<std::uintptr_t>(at) - it.first;
    return "'" + it.name + "' at offset " + std::to_string(offset) + ", which thread " +
           std::to_string(last.thread) + " of block " + std::to_string(last.block) + " wrote,";
}

// Whether the current thread may rely on a write having happened.
inline bool sees(const Wrote& last) {
    const Fiber& fiber = *engine()->current;
    if (last.block == block_number()) return has_seen(me(), last.thread, last.at);
    const auto found = fiber.acquired.find(last.block);
    return found != fiber.acquired.end() && last.thread < int(found->second.size()) &&
           found->second[last.thread] >= last.at;
}

inline void read_global(const void* at, std::size_t size, std::size_t alignment, bool fresh) {
    const Allocation& it = allocation_of(at, size, alignment);
    const auto found = global().shadows.find(it.first);
    if (found == global().shadows.end()) return;
    const std::size_t offset = reinterpret_cast<std::uintptr_t>(at) - it.first;
    for (std::size_t byte = offset; byte < offset + size; ++byte) {
        const Wrote& last = found->second[byte];
        if (last.block < 0 || last.counter) continue;
        if (!sees(last))
            engine()->fail(named(it, at, last) + " is read without a " +
                           (last.block == block_number() ? "barrier" : "fence and a counter") +
                           " between");
        if (last.block != block_number() && !fresh)
            engine()->fail(named(it, at, last) + " is read through this multiprocessor's cache");
    }
}

inline void write_global(const void* at, std::size_t size, std::size_t alignment, bool counter) {
    const Allocation& it = allocation_of(at, size, alignment);
    std::vector<Wrote>& shadow = global().shadows[it.first];
    if (shadow.empty()) shadow.resize(it.end - it.first);
    const std::size_t offset = reinterpret_cast<std::uintptr_t>(at) - it.first;
    for (std::size_t byte = offset; byte < offset + size; ++byte) {
        Wrote& last = shadow[byte];
        counter |= last.counter;
        if (last.block >= 0 && !counter && !sees(last))
            engine()->fail(named(it, at, last) + " is written again without anything between");
        last = {block_number(), engine()->current->index, engine()->now(), counter};
    }
}

}  // namespace unspool::host

namespace unspool {

void host::check_global_read(const void* at, int bytes, int alignment, bool fresh) {
    read_global(at, bytes, alignment, fresh);
}
void host::check_global_write(const void* at, int bytes, int alignment) {
    write_global(at, bytes, alignment, false);
}

void fence_global() {
    host::Fiber& mine = *host::engine()->current;
    host::join(mine.fenced, mine.clock);
    host::join(mine.acquired, mine.gained);
    host::engine()->tick();
}

int atomic_add(int* at, int amount) {
    host::write_global(at, sizeof(int), alignof(int), true);
    host::Fiber& mine = *host::engine()->current;
    host::Published& counter = host::global().counters[reinterpret_cast<std::uintptr_t>(at)];
    host::join(mine.gained, counter);
    host::join(counter[host::block_number()], mine.fenced);
    const int before = *at;
    *at += amount;
    return before;
}

}  // namespace unspool
