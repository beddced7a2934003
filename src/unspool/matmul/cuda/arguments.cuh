// What a kernel is given, and the constants that were generated for it.
//
// The generated part (source.py) comes before this file, in namespace unspool::made:
//
//   threads        128: a warpgroup                     token_blocks, terms   columns of the product
//   steps          of a stage                           slices                of a step
//   step_words     stored words of a thread's step      ring_words, rings     of a thread's step
//   code_bytes, unit_bytes, table_bytes, level_steps, block_scaled, scale_rows, scale_words and
//   token_scale_bytes                                   as recipe.py has them
//   scale_steps    that share what is fetched or done once per block
//   whole          whether sums are whole numbers
//   kind           of product                           slots                 stages in flight
//   term_step      what a term is worth of the one before it, inverted
#ifndef UNSPOOL_ARGUMENTS
#define UNSPOOL_ARGUMENTS

namespace unspool {

using namespace made;

struct Arguments {
    const char* weights;        // [experts][row blocks][stages][unit_bytes]
    const char* activations;    // [tiles][stages][activation_bytes]
    const float* row_scales;    // [experts][row blocks * 256]
    const float* token_scales;  // [tiles * tokens]
    const word* levels;         // [experts][row blocks][level_count][32 rings]
    const int* experts;         // [tiles]: whose weights; negative: an empty tile. Null: expert 0
    const int* targets;         // [tiles * tokens]: row of the output; negative: none. Null: in order
    char* output;               // [m][n]
    char* partials;             // Sum [tiles][2 * blocks][columns][256]
    int* arrivals;              // [tiles][row blocks], zero before and after
    int m, n, row_blocks, stages;
};

constexpr int tokens = 8 * token_blocks;        // of a tile
constexpr int column_blocks = terms * token_blocks;
constexpr int columns = 8 * column_blocks;      // of the product, [term][token]
constexpr int operand_stage_bytes = steps * slices * 32 * columns;
// FP4: behind the operands words of four E4M3, one per 16 of a slice (`token_scale_at`)
constexpr int activation_bytes = operand_stage_bytes + token_scale_bytes;
constexpr int stage_bytes = unit_bytes + activation_bytes;
constexpr int products = 4;                     // of 16 rows (per warp) that take a ring's 8 rows
constexpr word four_ones = block_scaled ? 0x38383838 : 0x7F7F7F7F;  // E4M3, E8M0: change nothing

// Where the word of a token and slice stands behind the operands: a row of 16 bytes has the words of
// as many slices as fit, of tokens `scale_rows` apart side by side.
UNSPOOL_DEVICE int token_scale_at(int slice, int token) {
    const int i = slice * scale_words + token / scale_rows;
    return i / 4 * 16 * scale_rows + token % scale_rows * 16 + i % 4 * 4;
}

// INT8 products are summed in whole numbers, all others in FP32. Where blocks of scales meet their
// sums, those of a row are FP32, too.
template <bool>
struct Number {
    using Type = float;
};
template <>
struct Number<true> {
    using Type = int;
};
using Part = Number<whole>::Type;
using Sum = Number<whole && scale_mode != in_sums>::Type;

// The sums of a thread: rows 2 j and 2 j + 1 of its ring, columns 8 b + 2 t and the next, at
// [j][4 b + 2 (row % 2) + column % 2]. All three main loops leave them so. Parts: what the matrix
// unit adds to, the same or a block's.
using Sums = Sum[products][4 * column_blocks];
using Parts = Part[products][4 * column_blocks];

// Where a thread stands in its warpgroup.
struct Place {
    int thread, warp, lane, g, t, ring;  // ring: which of the row block's 32 down
};

UNSPOOL_DEVICE Place place_of(int thread) {
    const int lane = thread % 32, warp = thread / 32;
    return {thread, warp, lane, lane / 4, lane % 4, 8 * warp + lane / 4};
}

#ifdef __CUDACC__
UNSPOOL_DEVICE float as_float(word bits) { return __uint_as_float(bits); }
UNSPOOL_DEVICE word as_word(float value) { return __float_as_uint(value); }
UNSPOOL_DEVICE float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
#else
UNSPOOL_DEVICE float as_float(word bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
UNSPOOL_DEVICE word as_word(float value) {
    word bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
UNSPOOL_DEVICE float multiply_add(float a, float b, float c) { return std::fmaf(a, b, c); }
#endif

UNSPOOL_DEVICE word as_word(int value) { return word(value); }

// x += a * scale, y += b * scale: FFMA2 where there is one, the same roundings
UNSPOOL_DEVICE void multiply_add_both(float& x, float& y, float a, float b, float scale) {
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 1000
    asm("{ .reg .b64 sums, parts, scales; mov.b64 sums, {%0, %1}; mov.b64 parts, {%2, %3}; "
        "mov.b64 scales, {%4, %4}; fma.rn.f32x2 sums, parts, scales, sums; "
        "mov.b64 {%0, %1}, sums; }"
        : "+f"(x), "+f"(y) : "f"(a), "f"(b), "f"(scale));
#else
    x = multiply_add(a, scale, x), y = multiply_add(b, scale, y);
#endif
}

// A sum from its bits.
UNSPOOL_DEVICE void from_word(word bits, float& sum) { sum = as_float(bits); }
UNSPOOL_DEVICE void from_word(word bits, int& sum) { sum = int(bits); }

template <class T>
UNSPOOL_DEVICE Quad quad_of(T x, T y, T z, T w) {
    return {as_word(x), as_word(y), as_word(z), as_word(w)};
}

template <class T>
UNSPOOL_DEVICE void clear(T (&sums)[products][4 * column_blocks], T start = 0) {
#pragma unroll
    for (int j = 0; j < products; ++j)
#pragma unroll
        for (int i = 0; i < 4 * column_blocks; ++i) sums[j][i] = start;
}

// What products add to: a part where sums are `in_parts`, or are of another type.
UNSPOOL_DEVICE Parts& added_to(bool in_parts, Parts& sums, Parts& part) {
    return in_parts ? part : sums;
}
template <class T>
UNSPOOL_DEVICE Parts& added_to(bool, T&, Parts& part) {
    return part;
}

}  // namespace unspool

#endif
