// Shared memory with bounds and a shadow of who wrote and read it; barriers of a block.
#pragma once

#include "engine.hpp"

namespace unspool::host {

// One word of memory: what is known of its last write and of the reads since.
struct Shadow {
    bool written = false;
    int pending = 0;  // copies under way to it
    int writer = -1;
    std::uint32_t written_at = 0;
    std::vector<std::pair<int, std::uint32_t>> readers;
};

// Who acts, and what it has seen: a thread, or hardware on behalf of one.
struct Actor {
    int id;
    std::uint32_t at;
    const Clock* seen;
};

inline bool has_seen(const Actor& actor, int other, std::uint32_t at) {
    return other == actor.id || (other < int(actor.seen->size()) && (*actor.seen)[other] >= at);
}

inline Actor me() {
    Engine& all = *engine();
    return {all.current->index, all.now(), &all.clock()};
}

// of tensor_memory.hpp: what a barrier means for it
void tensor_leaves();
void tensor_enters();

struct Shadowed {
    std::string name;
    std::vector<Shadow> words;

    void reset(std::string what, std::size_t count) {
        name = std::move(what);
        words.assign(count, Shadow{});
    }

    std::string at(std::size_t word) const { return name + " word " + std::to_string(word); }

    void read(std::size_t word, const Actor& actor) {
        Shadow& it = words[word];
        if (it.pending) engine()->fail(at(word) + " is read while a copy to it is under way");
        if (!it.written) engine()->fail(at(word) + " is read but was never written");
        if (!has_seen(actor, it.writer, it.written_at))
            engine()->fail(at(word) + " is read without a barrier since thread or agent " +
                           std::to_string(it.writer) + " wrote it");
        for (auto& [reader, when] : it.readers)
            if (reader == actor.id) {
                when = actor.at;
                return;
            }
        it.readers.emplace_back(actor.id, actor.at);
    }

    // Nobody may still need what stood there.
    void check_write(std::size_t word, const Actor& actor) const {
        const Shadow& it = words[word];
        if (it.pending) engine()->fail(at(word) + " is written while a copy to it is under way");
        if (it.written && !has_seen(actor, it.writer, it.written_at))
            engine()->fail(at(word) + " is written without a barrier since thread or agent " +
                           std::to_string(it.writer) + " wrote it");
        for (const auto& [reader, when] : it.readers)
            if (!has_seen(actor, reader, when))
                engine()->fail(at(word) +
                               " is overwritten without a barrier since thread or agent " +
                               std::to_string(reader) + " read it");
    }

    void write(std::size_t word, const Actor& actor) {
        check_write(word, actor);
        set(word, actor);
    }

    void set(std::size_t word, const Actor& actor) {
        Shadow& it = words[word];
        it.written = true, it.writer = actor.id, it.written_at = actor.at;
        it.readers.clear();
    }
};

struct SharedMemory {
    std::vector<char> storage;
    char* base = nullptr;
    std::size_t bytes = 0;
    Shadowed shadow;

    void reset(std::size_t size) {
        bytes = size;
        storage.assign(size + 2048, char(0xFF));  // NaN in every float format
        base = storage.data() + (1024 - reinterpret_cast<std::uintptr_t>(storage.data()) % 1024);
        shadow.reset("shared memory", (size + 3) / 4);
    }

    // Offset of an access, checked.
    std::size_t offset(const void* at, std::size_t size, std::size_t alignment) const {
        const std::ptrdiff_t offset = static_cast<const char*>(at) - base;
        if (offset < 0 || offset + std::ptrdiff_t(size) > std::ptrdiff_t(bytes))
            engine()->fail("shared memory is accessed out of bounds: offset " +
                           std::to_string(offset) + ", " + std::to_string(size) + " of " +
                           std::to_string(bytes) + " bytes");
        if (offset % alignment)
            engine()->fail("shared memory is accessed unaligned: offset " + std::to_string(offset));
        return offset;
    }
};

inline SharedMemory& shared() {
    static SharedMemory the;
    return the;
}

template <class Act>
void each_word(std::size_t offset, std::size_t size, const Act& act) {
    for (std::size_t word = offset / 4; word < (offset + size + 3) / 4; ++word) act(word);
}

inline void read_shared(std::size_t offset, std::size_t size, const Actor& actor) {
    each_word(offset, size, [&](std::size_t word) { shared().shadow.read(word, actor); });
}

}  // namespace unspool::host

namespace unspool {

word entry_at(const word* table, word offset) {
    return load_shared<word>(reinterpret_cast<const char*>(table) + offset);
}

int thread_index() { return host::engine()->current->index; }
int lane_index() { return thread_index() % host::warp_lanes; }
int block_index() { return host::engine()->block; }
int block_index_y() { return host::engine()->block_y; }
int block_count() { return host::engine()->blocks; }
char* shared_memory() { return host::shared().base; }
word shared_address(const void* at) {
    return word(static_cast<const char*>(at) - host::shared().base);
}

void host::check_shared_read(const void* at, int bytes, int alignment) {
    read_shared(shared().offset(at, bytes, alignment), bytes, me());
}
void host::check_shared_write(const void* at, int bytes, int alignment) {
    const std::size_t offset = shared().offset(at, bytes, alignment);
    each_word(offset, bytes, [&](std::size_t word) { shared().shadow.write(word, me()); });
}
void sync_block() {
    host::Engine& all = *host::engine();
    host::tensor_leaves();
    all.meet(host::whole_block, "sync_block", all.threads, nullptr,
             [&](host::Meeting& meeting) { all.agree(meeting); });
    host::tensor_enters();
}

void sync_named(int id, int threads) {
    host::Engine& all = *host::engine();
    if (id < 1 || id > 15) all.fail("there is no named barrier " + std::to_string(id));
    if (threads <= 0 || threads % host::warp_lanes)
        all.fail("sync_named of " + std::to_string(threads) + " threads: no whole warps");
    all.meet(id, "sync_named", threads, nullptr,
             [&](host::Meeting& meeting) { all.agree(meeting); });
}

void sync_warp() {
    host::Engine& all = *host::engine();
    all.meet(all.warp_place(), "sync_warp", host::warp_lanes, nullptr,
             [&](host::Meeting& meeting) { all.agree(meeting); });
}

word shuffle_xor(word value, int mask) {
    struct Exchange {
        word value;
        int mask;
        word result;
    } mine{value, mask, 0};
    host::Engine& all = *host::engine();
    all.meet(all.warp_place(), "shuffle_xor", host::warp_lanes, &mine, [&](host::Meeting& meeting) {
        for (int lane = 0; lane < host::warp_lanes; ++lane) {
            auto* to = static_cast<Exchange*>(meeting.arrived[lane].second);
            auto* from = static_cast<Exchange*>(meeting.arrived[lane ^ to->mask].second);
            if (to->mask != from->mask) all.fail("shuffle_xor with different masks in a warp");
            to->result = from->value;
        }
    });
    return mine.result;
}

float shuffle_xor(float value, int mask) {
    word bits;
    std::memcpy(&bits, &value, 4);
    bits = shuffle_xor(bits, mask);
    std::memcpy(&value, &bits, 4);
    return value;
}

bool elect_one() {
    host::Engine& all = *host::engine();
    all.meet(all.warp_place(), "elect_one", host::warp_lanes, nullptr, [](host::Meeting&) {});
    return lane_index() == 0;
}

}  // namespace unspool
