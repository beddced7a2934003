// mma.sync, ldmatrix and wgmma. A slice's products are summed in double and rounded once to FP32
// when they are added: hardware keeps fewer bits (FP8 of sm_90 some 14), which no twin can settle.
// INT8 is summed in whole numbers, as hardware does.
#pragma once

#include "copies.hpp"
#include "fragments.hpp"
#include "numbers.hpp"

namespace unspool::host {

constexpr int slice_words = 8;

inline const ByteValues& a_values(Kind kind) {
    static const ByteValues e5m2 = byte_values(5, 2, 0, true, false);
    constexpr auto shift = [](Kind of) { return container_shifts[int(of)]; };
    static const ByteValues e2m1 = byte_values(2, 1, shift(Kind::f8f6f4_e2m1), false, false);
    static const ByteValues e2m3 = byte_values(2, 3, shift(Kind::f8f6f4_e2m3), false, false);
    static const ByteValues e3m2 = byte_values(3, 2, shift(Kind::f8f6f4_e3m2), false, false);
    switch (kind) {
        case Kind::e5m2: return e5m2;
        case Kind::f8f6f4_e2m1: return e2m1;
        case Kind::f8f6f4_e2m3: return e2m3;
        case Kind::f8f6f4_e3m2: return e3m2;
        default: return e4m3_values();
    }
}

// The sum of products of two words, one of A and one of B.
inline double word_product(Kind kind, word a, word b) {
    if (kind == Kind::f16)
        return half_value(a) * half_value(b) + half_value(a >> 16) * half_value(b >> 16);
    if (kind == Kind::s8) {
        int sum = 0;
        for (int byte = 0; byte < 32; byte += 8)
            sum += int(std::int8_t(a >> byte)) * int(std::int8_t(b >> byte));
        return sum;
    }
    const ByteValues &left = a_values(kind), &right = e4m3_values();
    double sum = 0;
    for (int byte = 0; byte < 32; byte += 8)
        sum += left[a >> byte & 0xFF] * right[b >> byte & 0xFF];
    return sum;
}

// The bits of a sum that a slice is added to; whole numbers wrap.
template <class A, class B>
word slice_product(Kind kind, word sum, const A& a, const B& b) {
    double total = 0;
    for (int i = 0; i < slice_words; ++i) total += word_product(kind, a(i), b(i));
    if (kind == Kind::s8) return sum + word(int(total));
    float before;
    std::memcpy(&before, &sum, 4);
    const float after = float(before + total);
    std::memcpy(&sum, &after, 4);
    return sum;
}

constexpr int slice_scales = 4;  // of a row or column, one per 16 operands

inline double scale_value(Kind kind, word bits) {
    if (kind != Kind::mxf4nvf4) {  // E8M0
        if (bits == 0xFF) engine()->fail("a scale that is NaN");
        return std::ldexp(1.0, int(bits) - 127);
    }
    if (bits & 0x80) engine()->fail("a scale with a sign: they are E4M3 without one");
    return e4m3_values()[bits];
}

// The sum of products of two words: packed E2M1, or of 8-bit operands.
inline double scaled_word_product(Kind kind, word a, word b) {
    if (kind != Kind::mxf4nvf4) return word_product(kind, a, b);
    double sum = 0;
    for (int bit = 0; bit < 32; bit += 4)
        sum += e2m1_values()[a >> bit & 15] * e2m1_values()[b >> bit & 15];
    return sum;
}

// The same of a slice of which either side has its scales.
inline float scaled_slice_product(Kind kind, float sum, const word* a, const word* b,
                                  const double* of_a, const double* of_b) {
    double total = 0;
    for (int w = 0; w < slice_words; ++w) {
        const int block = w * slice_scales / slice_words;
        total += scaled_word_product(kind, a[w], b[w]) * of_a[block] * of_b[block];
    }
    return float(sum + total);
}

struct WarpProduct {
    Kind kind;
    char* d;
    const word* a;
    word b[2];
};

inline void warp_product(Meeting& meeting) {
    word a[16][slice_words], b[8][slice_words];
    for (int lane = 0; lane < warp_lanes; ++lane) {
        const auto& mine = *static_cast<WarpProduct*>(meeting.arrived[lane].second);
        for (int i = 0; i < 4; ++i) a[a_spot(lane, i).row][a_spot(lane, i).column] = mine.a[i];
        for (int i = 0; i < 2; ++i) b[b_spot(lane, i).row][b_spot(lane, i).column] = mine.b[i];
    }
    for (int lane = 0; lane < warp_lanes; ++lane) {
        const auto& mine = *static_cast<WarpProduct*>(meeting.arrived[lane].second);
        for (int i = 0; i < 4; ++i) {
            const Spot spot = d_spot(lane, i);
            word sum;
            std::memcpy(&sum, mine.d + 4 * i, 4);
            sum = slice_product(mine.kind, sum, [&](int w) { return a[spot.row][w]; },
                                [&](int w) { return b[spot.column][w]; });
            std::memcpy(mine.d + 4 * i, &sum, 4);
        }
    }
}

struct ScaledProduct {
    Kind kind;
    float* d;
    const word* a;
    word b[2];
    word scale_a, scale_b;
    int pair_a, thread_b, byte;
};

inline void scaled_product(Meeting& meeting) {
    word a[16][slice_words], b[8][slice_words];
    double of_a[16][slice_scales], of_b[8][slice_scales];
    const auto of = [&](int lane) -> ScaledProduct& {
        return *static_cast<ScaledProduct*>(meeting.arrived[lane].second);
    };
    const ScaledProduct& first = of(0);
    const bool four = first.kind == Kind::mxf4nvf4;
    for (int lane = 0; lane < warp_lanes; ++lane) {
        const ScaledProduct& mine = of(lane);
        if (mine.pair_a != first.pair_a || mine.thread_b != first.thread_b ||
            mine.byte != first.byte)
            engine()->fail("lanes of a warp select different scales");
        for (int i = 0; i < 4; ++i) a[a_spot(lane, i).row][a_spot(lane, i).column] = mine.a[i];
        for (int i = 0; i < 2; ++i) b[b_spot(lane, i).row][b_spot(lane, i).column] = mine.b[i];
        for (int i = 0; i < slice_scales; ++i) {
            const Spot from_a = scale_a_spot(lane, i), from_b = scale_b_spot(lane, i);
            const int byte = four ? i : mine.byte;  // of columns the first: all are one
            if (scale_a_spot_selector(lane) == mine.pair_a)
                of_a[from_a.row][from_a.column] =
                    scale_value(mine.kind, mine.scale_a >> 8 * byte & 0xFF);
            if (scale_b_spot_selector(lane) == mine.thread_b)
                of_b[from_b.row][from_b.column] =
                    scale_value(mine.kind, mine.scale_b >> 8 * (four ? i : 0) & 0xFF);
        }
    }
    for (int lane = 0; lane < warp_lanes; ++lane)
        for (int i = 0; i < 4; ++i) {
            const Spot spot = d_spot(lane, i);
            of(lane).d[i] =
                scaled_slice_product(first.kind, of(lane).d[i], a[spot.row], b[spot.column],
                                     of_a[spot.row], of_b[spot.column]);
        }
}

struct MatrixLoad {
    const void* row;
    word* r;
};

inline void load_rows(const void* row, word* r, int count) {
    MatrixLoad mine{row, r};
    if (count == 2 && lane_index() >= 16) mine.row = nullptr;  // not looked at
    Engine& all = *engine();
    const char* what = count == 4 ? "load_matrices x4" : "load_matrices x2";
    if (mine.row) read_shared(shared().offset(row, 16, 16), 16, me());
    all.meet(all.warp_place(), what, warp_lanes, &mine, [&](Meeting& meeting) {
        for (int lane = 0; lane < warp_lanes; ++lane)
            for (int i = 0; i < count; ++i) {
                const Spot spot = matrix_spot(lane, i);
                auto& to = *static_cast<MatrixLoad*>(meeting.arrived[lane].second);
                auto& from =
                    *static_cast<MatrixLoad*>(meeting.arrived[spot.row].second);
                std::memcpy(to.r + i, static_cast<const char*>(from.row) + 4 * spot.column, 4);
            }
    });
}

}  // namespace unspool::host

namespace unspool {

void load_matrices(word (&r)[4], const void* row) { host::load_rows(row, r, 4); }
void load_matrices(word (&r)[2], const void* row) { host::load_rows(row, r, 2); }

void host::warp_mma(Kind kind, void* d, const word* a, word b0, word b1) {
    host::WarpProduct mine{kind, static_cast<char*>(d), a, {b0, b1}};
    host::Engine& all = *host::engine();
    all.meet(all.warp_place(), "mma", host::warp_lanes, &mine, host::warp_product);
}

void host::warp_mma_scaled(Kind kind, float* d, const word* a, word b0, word b1, word scale_a,
                           word scale_b, int pair, int thread, int byte) {
    host::ScaledProduct mine{kind, d, a, {b0, b1}, scale_a, scale_b, pair, thread, byte};
    host::Engine& all = *host::engine();
    all.meet(all.warp_place(), "mma_scaled", host::warp_lanes, &mine, host::scaled_product);
}

}  // namespace unspool
