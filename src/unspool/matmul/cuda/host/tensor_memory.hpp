// Tensor memory: 128 lanes x 512 columns. Stores land at tmem_store_wait, loads give their values
// at tmem_load_wait, products are done when nobody else can go on.
#pragma once

#include "wgmma.hpp"

namespace unspool::host {

constexpr int memory_lanes = 128, memory_columns_total = 512;

struct TensorStore {
    int cell;
    word value;
};

struct TensorLoad {
    float* to;
    float values[8];
};

struct TensorState {
    std::vector<word> words;
    Shadowed shadow;
    int first = 0, columns = 0;  // allocated
    int agent = -1, queue = -1;
    std::uint32_t agent_clock = 0;
    std::vector<std::vector<TensorStore>> stores;  // by thread, until waited for
    std::vector<std::vector<TensorLoad>> loads;
    std::vector<char> unfenced, entered;           // by thread

    void reset(int threads) {
        words.assign(memory_lanes * memory_columns_total, 0xFFFFFFFF);
        shadow.reset("tensor memory", words.size());
        first = columns = 0, agent = queue = -1, agent_clock = 0;
        stores.assign(threads, {});
        loads.assign(threads, {});
        unfenced.assign(threads, 0);
        entered.assign(threads, 0);
    }
};

inline TensorState& tensor() {
    static TensorState the;
    return the;
}

// A barrier orders tensor memory only between the two fences.
void tensor_leaves() {
    if (tensor().unfenced[engine()->current->index])
        engine()->fail("a barrier after tensor memory was used, without tmem_fence_before");
}
void tensor_enters() { tensor().entered[engine()->current->index] = 1; }

inline void tensor_used() {
    const int thread = engine()->current->index;
    if (tensor().entered[thread])
        engine()->fail("tensor memory is used after a barrier, without tmem_fence_after");
    tensor().unfenced[thread] = 1;
}

inline int cell_of(int lane, int column) {
    const TensorState& it = tensor();
    if (lane < 0 || lane >= memory_lanes || column < it.first || column >= it.first + it.columns)
        engine()->fail("tensor memory is accessed outside of what was allocated: lane " +
                       std::to_string(lane) + ", column " + std::to_string(column));
    return lane * memory_columns_total + column;
}

// Lanes of a warp: its own 32, in halves.
inline int first_lane(word address) {
    const int lane = int(address >> 16), warp = engine()->current->index / warp_lanes % 4;
    if (lane != 32 * warp && lane != 32 * warp + 16)
        engine()->fail("a warp reaches for lanes of another: " + std::to_string(lane));
    return lane;
}

inline void meet_warp(const char* what, void* mine, const std::function<void(Meeting&)>& act) {
    engine()->meet(engine()->warp_place(), what, warp_lanes, mine, act);
}

inline Actor leader_of(const Meeting& meeting) {
    const int thread = meeting.arrived[0].first;
    const Clock& seen = engine()->fibers[thread].clock;
    return {thread, seen[thread], &seen};
}

// What the instruction descriptor says has to be what the product is.
inline void check_product(word bits, int a_format, int n) {
    if (field_of(bits, product_m) != memory_lanes || field_of(bits, product_n) != n ||
        field_of(bits, product_a_format) != a_format || field_of(bits, product_b_format) ||
        field_of(bits, product_d_format) != float32_format || field_of(bits, product_sparse) ||
        field_of(bits, product_negate) || field_of(bits, product_transpose))
        engine()->fail("an instruction descriptor of another product");
}

struct TensorProduct {
    Kind kind;
    word d, a;
    unsigned long long b;
    int n;
    bool accumulate;
};

inline void tensor_product(const TensorProduct& it, const Clock& seen) {
    TensorState& state = tensor();
    const Actor unit{state.agent, ++state.agent_clock, &seen};
    const auto b = columns_at(described_for_tcgen05(it.b), it.n, unit);
    for (int lane = 0; lane < memory_lanes; ++lane) {
        word row[slice_words];
        for (int w = 0; w < slice_words; ++w) {
            const int cell = cell_of(lane, int(it.a & 0xFFFF) + w);
            state.shadow.read(cell, unit);
            row[w] = state.words[cell];
        }
        for (int c = 0; c < it.n; ++c) {
            const int cell = cell_of(lane, int(it.d & 0xFFFF) + c);
            word sum = 0;
            if (it.accumulate) {
                state.shadow.read(cell, unit);
                sum = state.words[cell];
            }
            sum = slice_product(it.kind, sum, [&](int w) { return row[w]; },
                                [&](int w) { return b[c * slice_words + w]; });
            state.shadow.write(cell, unit);
            state.words[cell] = sum;
        }
    }
}

inline std::deque<Deed>& tensor_queue() {
    TensorState& state = tensor();
    if (state.queue < 0) {
        state.queue = int(engine()->queues.size());
        state.agent = engine()->new_agent();
        engine()->queues.emplace_back();
    }
    return engine()->queues[state.queue];
}

}  // namespace unspool::host

namespace unspool {

void tmem_allocate(word* slot, int columns) {
    host::meet_warp("tmem_allocate", nullptr, [&](host::Meeting&) {
        host::TensorState& it = host::tensor();
        if (columns < 32 || columns > 512 || columns & (columns - 1))
            host::engine()->fail("no allocation of " + std::to_string(columns) + " columns");
        if (it.columns) host::engine()->fail("tensor memory is allocated twice");
        it.columns = columns, it.first = 512 - columns;  // not 0: an address is an address
        store_shared<word>(slot, word(it.first));
    });
    host::tensor().unfenced[thread_index()] = 1;
}

void tmem_release(word address, int columns) {
    host::tensor_used();
    host::meet_warp("tmem_release", nullptr, [&](host::Meeting&) {
        host::TensorState& it = host::tensor();
        if (int(address) != it.first || columns != it.columns)
            host::engine()->fail("tensor memory is released that was not allocated so");
        it.columns = 0;
    });
}

void tmem_store(word address, const word (&r)[4]) {
    host::tensor_used();
    const int lane = host::first_lane(address), column = int(address & 0xFFFF);
    const word* mine = r;
    host::meet_warp("tmem_store", const_cast<word**>(&mine), [&](host::Meeting& meeting) {
        const host::Actor actor = host::leader_of(meeting);
        for (const auto& [thread, given] : meeting.arrived)
            for (int i = 0; i < 4; ++i) {
                const auto spot = host::store_spot(thread % host::warp_lanes, i);
                const int cell = host::cell_of(lane + spot.row, column + spot.column);
                host::tensor().shadow.check_write(cell, actor);
                ++host::tensor().shadow.words[cell].pending;
                host::tensor().stores[thread].push_back({cell, (*static_cast<word**>(given))[i]});
            }
    });
}

void tmem_store_wait() {
    host::meet_warp("tmem_store_wait", nullptr, [](host::Meeting& meeting) {
        const host::Actor actor = host::leader_of(meeting);
        for (const auto& [thread, _] : meeting.arrived) {
            for (const auto& store : host::tensor().stores[thread]) {
                --host::tensor().shadow.words[store.cell].pending;
                host::tensor().shadow.set(store.cell, actor);
                host::tensor().words[store.cell] = store.value;
            }
            host::tensor().stores[thread].clear();
        }
    });
}

void tmem_load_fragments(word address, float (&r)[8]) {
    host::tensor_used();
    const int lane = host::first_lane(address), column = int(address & 0xFFFF);
    for (float& value : r) value = NAN;
    float* mine = r;
    host::meet_warp("tmem_load_fragments", &mine, [&](host::Meeting& meeting) {
        const host::Actor actor = host::leader_of(meeting);
        for (const auto& [thread, given] : meeting.arrived) {
            host::TensorLoad load{*static_cast<float**>(given), {}};
            for (int i = 0; i < 8; ++i) {
                const auto spot = host::load_spot(thread % host::warp_lanes, i % 4);
                const int cell = host::cell_of(lane + spot.row, column + i / 4 * 8 + spot.column);
                host::tensor().shadow.read(cell, actor);
                std::memcpy(&load.values[i], &host::tensor().words[cell], 4);
            }
            host::tensor().loads[thread].push_back(load);
        }
    });
}

void tmem_load_wait() {
    for (const auto& load : host::tensor().loads[thread_index()])
        for (int i = 0; i < 8; ++i) load.to[i] = load.values[i];
    host::tensor().loads[thread_index()].clear();
}

void tmem_fence_before() { host::tensor().unfenced[thread_index()] = 0; }
void tmem_fence_after() { host::tensor().entered[thread_index()] = 0; }

void host::tensor_mma(
    Kind kind, word what, word d, word a, unsigned long long b, int n, bool accumulate) {
    host::Engine& all = *host::engine();
    if (host::tensor().entered[thread_index()])
        all.fail("tcgen05.mma after a barrier, without tmem_fence_after");
    if (n % 16 || n < 16 || n > 256) all.fail("tcgen05.mma of " + std::to_string(n) + " columns");
    host::check_product(what, host::a_formats[int(kind)], n);
    auto& queue = host::tensor_queue();
    queue.push_back([it = host::TensorProduct{kind, d, a, b, n, accumulate}, seen = all.clock()] {
        host::tensor_product(it, seen);
    });
}

void tmem_commit(Barrier* barrier) {
    host::BarrierState* it = &used_by_hardware(barrier);
    host::tensor_queue().push_back([it, seen = host::engine()->clock()] {
        host::Clock done = seen;
        const host::TensorState& state = host::tensor();
        if (int(done.size()) <= state.agent) done.resize(state.agent + 1, 0);
        done[state.agent] = state.agent_clock;
        host::arrive(*it, done);
    });
}

}  // namespace unspool
