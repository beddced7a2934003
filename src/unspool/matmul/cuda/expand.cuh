// Weights decoded once, for products with so many tokens that a library's GEMM is faster: a row-major
// matrix of operands whose columns stand in the order of geometry.py, as the activations' do.
//
// Scales of blocks are multiplied in (`scales_weights`): decoded binary16 times the scale is exact in
// FP32, and rounded once, nearest even, to the type of the matrix.
#ifndef UNSPOOL_EXPAND
#define UNSPOOL_EXPAND

namespace unspool {

struct ExpandArguments {
    const char* weights;  // [row blocks][stages][unit_bytes]
    const word* levels;   // as in Arguments
    char* output;         // [row blocks * 256][stages * steps * slices * 32 bytes]
    int row_blocks, stages;
};

// Where the four scales stand that hold a slice's, for quads of mma.sync and for tensor memory
// (arrange.py: _to_quads, _to_tensor_memory).
UNSPOOL_DEVICE int quad_scales_at(int slice, int row, const Place& place) {
    const int pair = stored_four ? slice % 2 : slice / 4 % 2;
    const int thread = place.thread / 4 * 4 + pair * 2 + row % 2;
    return 16 * (threads * (slice / (stored_four ? 2 : 8)) + thread) + row / 2 * 4;
}

UNSPOOL_DEVICE int lane_scales_at(int slice, int row, const Place& place) {
    const int tile = row / 4, lane = 16 * (row / 2 % 2) + 8 * (row % 2) + place.g;
    return 16 * (32 * (2 * slice + tile) + lane) + 4 * place.warp;
}

// The scale of a row of a thread's ring of a step, as it is stored for the fused product.
UNSPOOL_DEVICE float scale_of(const char* scales, int step, int ring, int row, const Place& place) {
    if (scale_mode == in_unit) {
        const int i = ring * stored_ring_words;  // its first word, as the matrix unit reads it
        const int slice = step * (rings * stored_ring_words / 2) + i / 2;
        const int at = stored_lanes ? lane_scales_at(stored_four ? slice : slice / 4, row, place)
                                    : quad_scales_at(slice, row, place);
        const int byte = stored_four ? i % 2 * 2 + place.t / 2 : slice % 4;
        const word bits = load_shared<unsigned char>(scales + at + byte);
        if (stored_four) return value_of_e4m3(bits);
        return as_float(bits ? bits << 23 : 1 << 22);  // E8M0; the lowest is subnormal
    }
    const char* of_rows = scales + 16 * (threads * (step / scale_steps) + place.thread);
    if (scale_mode == in_sums) of_rows = scales + 512 * (step / scale_steps) + 16 * place.ring;
    return value_of_f16(load_shared<unsigned short>(of_rows + 2 * row));
}

UNSPOOL_DEVICE word scaled_pair(word halves, float scale) {
    const float low = value_of_f16(halves & 0xFFFF) * scale;
    const float high = value_of_f16(halves >> 16) * scale;
    return output_bfloat ? bf16_of(low) | bf16_of(high) << 16 : f16_of(low) | f16_of(high) << 16;
}

UNSPOOL_DEVICE void scale_weights(const char* scales, int step, const Place& place, Weights& weights) {
#pragma unroll
    for (int ring = 0; ring < rings; ++ring)
#pragma unroll
        for (int row = 0; row < 8; ++row) {
            const float scale = scale_of(scales, step, ring, row, place) * scale_factor;
#pragma unroll
            for (int i = ring * ring_words; i < (ring + 1) * ring_words; ++i) {
                word& two = weight_of(weights, row, i);
                two = scaled_pair(two, scale);
            }
        }
}

// A unit per block, from global to shared memory and from there as a main loop reads it.
UNSPOOL_DEVICE void expand(const ExpandArguments& e) {
    const Place place = place_of(thread_index());
    const int row_block = block_index() / e.stages, stage = block_index() % e.stages;
    char* shared = shared_memory();
    const char* unit = e.weights + 1LL * block_index() * unit_bytes;
    for (int at = 16 * place.thread; at < unit_bytes; at += 16 * threads)
        copy_async(shared + at, unit + at);
    copy_commit();
    Tables tables;
    fill_tables(tables, shared + unit_bytes, place.thread);
    copy_wait<0>();
    sync_block();
    Arguments a = {};
    a.levels = e.levels, a.row_blocks = e.row_blocks;
    fill_levels(tables, a, 0, row_block, place.ring);
    const long long row_bytes = 32LL * slices * steps * e.stages;
    char* rows = e.output + (256LL * row_block + 8 * place.ring) * row_bytes;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
        change_tables(tables, shared, step, place);
        word words[step_words];
        Weights weights;
        load_words(shared + 4 * threads * step_words * step, place.thread, words);
        decode_step(words, tables, weights);
        if (scales_weights) scale_weights(shared + code_bytes, step, place, weights);
        char* at = rows + 32LL * slices * (stage * steps + step) + 4 * place.t;
#pragma unroll
        for (int row = 0; row < 8; ++row)
#pragma unroll
            for (int i = 0; i < 2 * slices; ++i)
                store_global<word>(at + row * row_bytes + 16 * i, weight_of(weights, row, i));
    }
}

}  // namespace unspool

#endif
