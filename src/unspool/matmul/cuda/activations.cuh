// Activations as operand B: rotated, scaled per token, rounded, in the order of geometry.py. For a
// library (`flat`) rows of a matrix, their columns in the same order.
//
//   row of k --signs, Hadamard--> registers --largest of the row--> scale --round--> operand bytes
//
// One block of `rotate_warps` per token. A warp has `segments` runs of 128 columns that follow each other,
// a lane four columns of each: bits 0-1 of a column are in the lane, 2-6 across lanes, the rest
// across the warp's segments. So the transform never leaves the warp.
#ifndef UNSPOOL_ACTIVATIONS
#define UNSPOOL_ACTIVATIONS

namespace unspool {

struct ActivationArguments {
    const char* input;       // [rows][k]
    const word* signs;       // a bit per column, set: minus
    const int* sources;      // [tiles * tokens]: row of the input; negative: none. Null: in order
    const unsigned short* positions;  // [span_columns]: operand's place in a span
    char* output;            // [tiles][stages][activation_bytes]; flat: [rows][stages][stage_columns]
    float* token_scales;     // [tiles * tokens]
    int rows, k, stages;
};

constexpr int operands_per_half = 16 * 8 / operand_bits;

using Values = float[segments][4];

UNSPOOL_DEVICE float input_at(const char* row, int column, int k) {
    if (column >= k) return 0.0f;
    if (input_bits == 32) return load_global<float>(row + 4LL * column);
    const word bits = load_global<unsigned short>(row + 2LL * column);
    return input_bfloat ? as_float(bits << 16) : value_of_f16(bits);
}

UNSPOOL_DEVICE void load_row(const ActivationArguments& a, int source, int first, Values& values) {
    const char* row = a.input + 1LL * source * a.k * (input_bits / 8);
#pragma unroll
    for (int s = 0; s < segments; ++s) {
        const int column = first + 128 * s;
#pragma unroll
        for (int i = 0; i < 4; ++i) values[s][i] = input_at(row, column + i, a.k);
    }
}

UNSPOOL_DEVICE void butterfly(float& low, float& high) {
    const float sum = low + high, difference = low - high;
    low = sum, high = difference;
}

// H (signs x) / sqrt(size), bit by bit of the column, the lowest first: as encode.rotate has it.
UNSPOOL_DEVICE void rotate(const ActivationArguments& a, int first, int lane, Values& values) {
    if (rotation == 0) return;
#pragma unroll
    for (int s = 0; s < segments; ++s) {
        const int column = first + 128 * s;
        const word flips = column < a.k ? load_global<word>(a.signs + column / 32) >> column % 32 : 0;
#pragma unroll
        for (int i = 0; i < 4; ++i)
            values[s][i] = as_float(as_word(values[s][i]) ^ (flips >> i & 1) << 31);
#pragma unroll
        for (int bit = 1; bit < 4 && bit < rotation; bit *= 2)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if (!(i & bit)) butterfly(values[s][i], values[s][i | bit]);
#pragma unroll
        for (int bit = 4; bit < 128 && bit < rotation; bit *= 2)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float other = shuffle_xor(values[s][i], bit / 4);
                values[s][i] = lane & bit / 4 ? other - values[s][i] : values[s][i] + other;
            }
    }
#pragma unroll
    for (int bit = 1; 128 * bit < rotation; bit *= 2)
#pragma unroll
        for (int s = 0; s < segments; ++s)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if (!(s & bit)) butterfly(values[s][i], values[s | bit][i]);
#pragma unroll
    for (int s = 0; s < segments; ++s)
#pragma unroll
        for (int i = 0; i < 4; ++i) values[s][i] *= rotation_factor;
}

// Bits of the row's largest magnitude: ordered as the magnitudes are, infinities and NaNs on top.
UNSPOOL_DEVICE word largest_of(const Values& values, int thread) {
    word largest = 0;
#pragma unroll
    for (int s = 0; s < segments; ++s)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const word bits = as_word(values[s][i]) & 0x7FFFFFFF;
            largest = bits > largest ? bits : largest;
        }
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
        const word other = shuffle_xor(largest, mask);
        largest = other > largest ? other : largest;
    }
    char* shared = shared_memory();
    if (thread % 32 == 0) store_shared<word>(shared + thread / 32 * 4, largest);
    sync_block();
#pragma unroll
    for (int warp = 0; warp < rotate_warps; ++warp) {
        const word other = load_shared<word>(shared + 4 * warp);
        largest = other > largest ? other : largest;
    }
    return largest;
}

struct Scaling {
    float inverse, scale;  // operand = value * inverse; value = operand * scale
};

// FP8 and INT8: the largest becomes the operand's, 448 or 127; FP4: times the scale's, 6 * 448.
// binary16: a power of two puts it into [2**14, 2**15). A row that is not finite gets NaN for a
// scale, and zeros: its results are NaN, and no other's. bfloat16: as they are.
UNSPOOL_DEVICE Scaling scaling_of(word largest) {
    if (largest >= 0x7F800000) return {0.0f, as_float(0x7FC00000)};
    if (as_float(largest) < smallest_row) return {0.0f, 0.0f};  // or there is no FP32 inverse
    if (operand_bfloat) return {1.0f, 1.0f};
    if (operand_bits != 16) return {largest_operand / as_float(largest), as_float(largest) / largest_operand};
    int shift = 141 - int(largest >> 23);
    shift = shift > 126 ? 126 : shift;
    return {as_float(word(127 + shift) << 23), as_float(word(127 - shift) << 23)};
}

// Where an operand goes, by its place in a stage: in operand B, or in a row.
UNSPOOL_DEVICE char* operand_at(char* tile, int stage, int place, int token, int term) {
    constexpr int bytes = operand_bits / 8;
    if (flat) return tile + (1LL * stage * stage_columns + place) * bytes;
    const int piece = place / operands_per_half;  // of 16 bytes: (step slice, half)
    const int block = term * token_blocks + token / 8;
    return tile + 1LL * stage * activation_bytes + (piece * column_blocks + block) * 128 +
           token % 8 * 16 + place % operands_per_half * bytes;
}

UNSPOOL_DEVICE void store_operand(char* at, word bits) {
    if (operand_bits == 8)
        store_global<unsigned char>(at, (unsigned char)bits);
    else
        store_global<unsigned short>(at, (unsigned short)bits);
}

// The place of a column of a stage (or of a run of 128), in the order of geometry.py.
UNSPOOL_DEVICE int place_in(const ActivationArguments& a, int column) {
    return column / span_columns * span_columns +
           load_global<unsigned short>(a.positions + column % span_columns);
}

// What is one operand: INT8, bfloat16, binary16.
UNSPOOL_DEVICE word single_of(float value) {
    if (whole) return s8_of(value);
    return operand_bfloat ? bf16_of(value) : f16_of(value);
}

UNSPOOL_DEVICE void store_value(
    const ActivationArguments& a, char* tile, int token, int column, float value) {
    const int stage = column / stage_columns;
    if (stage >= a.stages) return;
    const int place = place_in(a, column % stage_columns);
#pragma unroll
    for (int term = 0; term < terms; ++term) {
        char* at = operand_at(tile, stage, place, token, term);
        if (operand_bits == 16 || whole) {
            store_operand(at, single_of(value));
            continue;
        }
        const word bits = e4m3_of(value);
        store_operand(at, bits);
        value = (value - value_of_e4m3(bits)) * term_step;  // exact: the next term is of the rest
    }
}

// FP4 (NVFP4): of 16 operands side by side a sixth of the largest becomes an E4M3, their scale; every
// one over that an E2M1. A run is half a stage; its 128 values pass through shared memory, for the
// 16 are not in one lane: they stand in the order of operand B.
UNSPOOL_DEVICE void store_run(const ActivationArguments& a, char* tile, int token, int run, int lane,
                              char* scratch, const float (&values)[4]) {
    constexpr int runs = stage_columns / 128;
    const int stage = run / runs;
    if (stage >= a.stages) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        store_shared<float>(scratch + 4 * place_in(a, 4 * lane + i), values[i]);
    }
    sync_warp();
    const Quad four = load_shared<Quad>(scratch + 16 * lane);
    sync_warp();  // the next run may be stored
    word largest = 0;
    const word bits[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const word magnitude = bits[i] & 0x7FFFFFFF;
        largest = magnitude > largest ? magnitude : largest;
    }
#pragma unroll
    for (int mask = 1; mask < 4; mask *= 2) {
        const word other = shuffle_xor(largest, mask);
        largest = other > largest ? other : largest;
    }
    const word scale = e4m3_of(as_float(largest) * (1 / 6.0f));
    const float inverse = scale ? 1 / value_of_e4m3(scale) : 0.0f;
    float scaled[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) scaled[i] = as_float(bits[i]) * inverse;
    const int place = run % runs * 128 + 4 * lane, slice = place / 64, block = token / 8;
    char* to = tile + 1LL * stage * activation_bytes;
    char* at = to + (place / operands_per_half * column_blocks + block) * 128 + token % 8 * 16;
    store_global<unsigned short>(
        at + place % operands_per_half / 2,
        (unsigned short)e2m1_of(scaled[0], scaled[1], scaled[2], scaled[3]));
    char* scales = to + operand_stage_bytes + token_scale_at(slice, token);
    if (lane % 4 == 0) store_global<unsigned char>(scales + place % 64 / 16, (unsigned char)scale);
}

UNSPOOL_DEVICE void prepare(const ActivationArguments& a) {
    const int thread = thread_index(), lane = thread % 32, slot = block_index();
    const int source = a.sources ? load_global<int>(a.sources + slot) : slot;
    const int first = thread / 32 * segments * 128 + 4 * lane;
    Values values = {};
    if (source >= 0 && source < a.rows) load_row(a, source, first, values);
    rotate(a, first, lane, values);
    const Scaling scaling = scaling_of(largest_of(values, thread));
    if (thread == 0) store_global<float>(a.token_scales + slot, scaling.scale);
    char* tile = a.output + (flat ? 1LL * slot * a.stages * stage_columns * (operand_bits / 8)
                                  : 1LL * (slot / tokens) * a.stages * activation_bytes);
#pragma unroll
    for (int s = 0; s < segments; ++s) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const bool finite = scaling.inverse != 0.0f;
            values[s][i] = finite ? values[s][i] * scaling.inverse : 0.0f;
            if (!block_scaled)
                store_value(a, tile, slot % tokens, first + 128 * s + i, values[s][i]);
        }
        if (block_scaled)
            store_run(a, tile, slot % tokens, first / 128 + s, lane,
                      shared_memory() + 4 * rotate_warps + 512 * (thread / 32), values[s]);
    }
}

}  // namespace unspool

#endif
