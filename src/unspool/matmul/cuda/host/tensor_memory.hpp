// Tensor memory: 128 lanes x 512 columns. Stores land at tmem_store_wait, loads give their values
// at tmem_load_wait, products and copies are done when nobody else can go on. A product follows the
// copies that its thread has issued before it; a copy follows no product: that takes a barrier.
#pragma once

#include "wgmma.hpp"

#include <array>

namespace unspool::host {

constexpr int memory_lanes = 128, memory_columns_total = 512;

struct TensorStore {
    int cell;
    word value;
};

struct TensorLoad {
    void* to;
    word values[8];
};

struct TensorState {
    std::vector<word> words;
    Shadowed shadow;
    int first = 0, columns = 0;  // allocated
    int agent = -1, copier = -1, queue = -1;
    std::uint32_t agent_clock = 0, copies = 0;
    std::vector<std::vector<TensorStore>> stores;  // by thread, until waited for
    std::vector<std::vector<TensorLoad>> loads;
    std::vector<char> unfenced, entered;           // by thread

    void reset(int threads) {
        words.assign(memory_lanes * memory_columns_total, 0xFFFFFFFF);
        shadow.reset("tensor memory", words.size());
        first = columns = 0, agent = copier = queue = -1, agent_clock = copies = 0;
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

// By a warp, four words a thread, which stand where `spot_of` says.
inline void store_words(const char* what, word address, const word* r, Spot (*spot_of)(int, int)) {
    tensor_used();
    const int lane = first_lane(address), column = int(address & 0xFFFF);
    meet_warp(what, const_cast<word*>(r), [&](Meeting& meeting) {
        const Actor actor = leader_of(meeting);
        for (const auto& [thread, given] : meeting.arrived)
            for (int i = 0; i < 4; ++i) {
                const Spot spot = spot_of(thread % warp_lanes, i);
                const int cell = cell_of(lane + spot.row, column + spot.column);
                tensor().shadow.check_write(cell, actor);
                ++tensor().shadow.words[cell].pending;
                tensor().stores[thread].push_back({cell, static_cast<word*>(given)[i]});
            }
    });
}

// What the instruction descriptor says has to be what the product is.
inline void check_scaled(word bits, Kind kind, int n) {
    const int k = int(kind);
    if (field_of(bits, scaled_m) != memory_lanes || field_of(bits, scaled_n) != n ||
        field_of(bits, scaled_a_format) != a_formats[k] ||
        field_of(bits, scaled_b_format) != b_formats[k] || field_of(bits, scaled_sparse) ||
        field_of(bits, scaled_negate) || field_of(bits, scaled_transpose) ||
        field_of(bits, scaled_scale_format) != scale_formats[k] ||
        (scale_formats[k] == 0 && field_of(bits, scaled_a_scale)) ||
        field_of(bits, scaled_b_scale) || field_of(bits, scaled_k))
        engine()->fail("an instruction descriptor of another product");
}

inline void check_product(word bits, Kind kind, int n) {
    const int k = int(kind);
    if (field_of(bits, product_m) != memory_lanes || field_of(bits, product_n) != n ||
        field_of(bits, product_a_format) != a_formats[k] ||
        field_of(bits, product_b_format) != b_formats[k] ||
        field_of(bits, product_d_format) != d_formats[k] || field_of(bits, product_sparse) ||
        field_of(bits, product_saturate) || field_of(bits, product_negate) ||
        field_of(bits, product_transpose))
        engine()->fail("an instruction descriptor of another product");
}

struct TensorProduct {
    Kind kind;
    word what, d, a;
    unsigned long long b;
    int n;
    bool accumulate;
    ScalesAt scales;
};

using SliceScales = std::array<double, slice_scales>;

// Of one row of operand A or column of B: all four of a word, or of E8M0 that byte of it alone. The
// copies of every warp's lanes have to be alike.
inline SliceScales scales_of(Kind kind, word address, int row, int byte, const Actor& unit) {
    SliceScales found;
    for (int i = 0; i < slice_scales * memory_lanes / warp_lanes; ++i) {
        const Spot spot = memory_scale_spot(row, i);
        const int cell = cell_of(int(address >> 16) + spot.row,
                                 int(address & 0xFFFF) + spot.column / 4);
        tensor().shadow.read(cell, unit);
        const int which = scale_formats[int(kind)] ? byte : spot.column % 4;
        const double scale = scale_value(kind, tensor().words[cell] >> 8 * which & 0xFF);
        if (i < slice_scales)
            found[i] = scale;
        else if (scale != found[i % slice_scales])
            engine()->fail("scales are not the same in every warp's lanes of tensor memory");
    }
    return found;
}

inline word scaled_slice_bits(Kind kind, word sum, const word* a, const word* b,
                              const SliceScales& of_a, const SliceScales& of_b) {
    float value;
    std::memcpy(&value, &sum, 4);
    value = scaled_slice_product(kind, value, a, b, of_a.data(), of_b.data());
    std::memcpy(&sum, &value, 4);
    return sum;
}

inline void tensor_product(const TensorProduct& it, const Clock& seen) {
    TensorState& state = tensor();
    const Actor unit{state.agent, ++state.agent_clock, &seen};
    const auto b = columns_at(described_for_tcgen05(it.b), it.n, unit);
    const bool scaled = it.scales.given;
    const int byte_a = scaled ? field_of(it.what, scaled_a_scale) : 0;
    std::vector<SliceScales> of_b;
    for (int c = 0; c < it.n && scaled; ++c)
        of_b.push_back(scales_of(it.kind, it.scales.b, c, 0, unit));
    for (int lane = 0; lane < memory_lanes; ++lane) {
        word row[slice_words];
        for (int w = 0; w < slice_words; ++w) {
            const int cell = cell_of(lane, int(it.a & 0xFFFF) + w);
            state.shadow.read(cell, unit);
            row[w] = state.words[cell];
        }
        const SliceScales of_a =
            scaled ? scales_of(it.kind, it.scales.a, lane, byte_a, unit) : SliceScales{};
        for (int c = 0; c < it.n; ++c) {
            const int cell = cell_of(lane, int(it.d & 0xFFFF) + c);
            word sum = 0;
            if (it.accumulate) {
                state.shadow.read(cell, unit);
                sum = state.words[cell];
            }
            sum = scaled ? scaled_slice_bits(it.kind, sum, row, &b[c * slice_words], of_a, of_b[c])
                         : slice_product(it.kind, sum, [&](int w) { return row[w]; },
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
        state.agent = engine()->new_agent(), state.copier = engine()->new_agent();
        engine()->queues.emplace_back();
    }
    return engine()->queues[state.queue];
}

struct TensorCopy {
    word address;
    Described from;  // of operand B: rows are its columns, of which it takes the first 16 bytes
};

constexpr int copied_rows = 32;

template <class Act>
void each_copied(const TensorCopy& it, const Act& act) {
    constexpr int words = 4, copies = memory_lanes / warp_lanes;
    for (int row = 0; row < copied_rows; ++row)
        for (int i = 0; i < words * copies; ++i) {
            const Spot spot = copy_spot(row, i);
            act(cell_of(int(it.address >> 16) + spot.row,
                        int(it.address & 0xFFFF) + spot.column),
                operand_offset(it.from, row, i % words));
        }
}

inline void tensor_copy(const TensorCopy& it, const Actor& copier) {
    each_copied(it, [&](int cell, int offset) {
        --tensor().shadow.words[cell].pending;
        tensor().shadow.write(cell, copier);
        tensor().words[cell] = word_for_unit(offset, copier);
    });
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
    host::store_words("tmem_store", address, r, host::store_spot);
}

void tmem_store_lanes(word address, const word (&r)[4]) {
    if (host::first_lane(address) % host::warp_lanes)
        host::engine()->fail("a store of 32 lanes begins among a warp's lanes");
    host::store_words("tmem_store_lanes", address, r, host::row_spot);
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

// Until the load is waited for, registers hold NaN (2143289344 of whole numbers).
void host::load_fragments(word address, void* r) {
    host::tensor_used();
    const int lane = host::first_lane(address), column = int(address & 0xFFFF);
    for (int i = 0; i < 8; ++i) {
        const float meanwhile = NAN;
        std::memcpy(static_cast<char*>(r) + 4 * i, &meanwhile, 4);
    }
    host::meet_warp("tmem_load_fragments", r, [&](host::Meeting& meeting) {
        const host::Actor actor = host::leader_of(meeting);
        for (const auto& [thread, given] : meeting.arrived) {
            host::TensorLoad load{given, {}};
            for (int i = 0; i < 8; ++i) {
                const auto spot = host::load_spot(thread % host::warp_lanes, i % 4);
                const int cell = host::cell_of(lane + spot.row, column + i / 4 * 8 + spot.column);
                host::tensor().shadow.read(cell, actor);
                load.values[i] = host::tensor().words[cell];
            }
            host::tensor().loads[thread].push_back(load);
        }
    });
}

void tmem_load_wait() {
    for (const auto& load : host::tensor().loads[thread_index()])
        std::memcpy(load.to, load.values, sizeof load.values);
    host::tensor().loads[thread_index()].clear();
}

void tmem_fence_before() { host::tensor().unfenced[thread_index()] = 0; }
void tmem_fence_after() { host::tensor().entered[thread_index()] = 0; }

void host::tensor_mma(Kind kind, word what, word d, word a, unsigned long long b, int n,
                      bool accumulate, const ScalesAt& scales) {
    host::Engine& all = *host::engine();
    if (host::tensor().entered[thread_index()])
        all.fail("tcgen05.mma after a barrier, without tmem_fence_after");
    if (n % 16 || n < 16 || n > 256) all.fail("tcgen05.mma of " + std::to_string(n) + " columns");
    scales.given ? host::check_scaled(what, kind, n) : host::check_product(what, kind, n);
    for (const word at : {scales.a, scales.b})
        if (at % scale_alignment)
            all.fail("scales begin at column " + std::to_string(at & 0xFFFF) + ", an odd one");
    auto& queue = host::tensor_queue();
    queue.push_back([it = host::TensorProduct{kind, what, d, a, b, n, accumulate, scales},
                     seen = all.clock()] { host::tensor_product(it, seen); });
}

void tmem_copy(word address, unsigned long long from) {
    host::Engine& all = *host::engine();
    host::TensorState& state = host::tensor();
    if (state.entered[thread_index()])
        all.fail("tcgen05.cp after a barrier, without tmem_fence_after");
    auto& queue = host::tensor_queue();
    const host::TensorCopy it{address, host::described_for_tcgen05(from)};
    host::each_copied(it, [&](int cell, int) { ++state.shadow.words[cell].pending; });
    const host::Clock seen = all.clock();
    const std::uint32_t number = ++state.copies;
    host::Clock& mine = all.clock();  // products of this thread come after it
    if (int(mine.size()) <= state.copier) mine.resize(state.copier + 1, 0);
    mine[state.copier] = number;
    queue.push_back([it, seen, number] {
        host::tensor_copy(it, {host::tensor().copier, number, &seen});
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
