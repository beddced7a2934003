// The main loop for sm_100: decoded weights go to tensor memory, where tcgen05.mma reads operand A.
//
//   memory --bulk copy--> stage --LDS--> words --decode--> registers --tcgen05.st--> tensor memory
//                           \------ descriptor, operand B -- tcgen05.mma, FP32 or whole numbers there
//
//   warps 0-3   decode a step into one of two buffers of operand A; read the sums at the end
//   warp 4      brings stages            warp 5   issues the products, as one thread
//
// Where the matrix unit scales, the same thread copies the scales of a stage from shared to tensor
// memory before its first product: E4M3 of packed E2M1 and of FP4 activations, one per 16, or E8M0 of
// 8-bit weights, one per slice.
//
// A product has 128 rows, twice the 64 of a warpgroup's four 16-row products: rows of product j of
// warp w stand in lanes 32 w + 16 (j % 2) of tile j / 2.
#ifndef UNSPOOL_MAIN_LOOP
#define UNSPOOL_MAIN_LOOP

namespace unspool {

constexpr int decoders = threads;
constexpr int tiles = 2;                                 // of 128 rows
constexpr int operand_columns = tiles * slices * 8;      // of tensor memory, per buffer
constexpr int sum_columns = tiles * columns;

// Scales that the matrix unit applies: of a stage of weights words of four for 128 rows in four
// columns, tile by tile of every slice, or of every four slices where each has one scale; then those of
// tokens. A side without scales of its own has ones. Two stages take turns: the first weights of a stage
// are ready when all products of the stage before the last are done, for their buffer was free.
constexpr int word_slices = block_scaled ? 1 : 4;
constexpr int weight_scale_columns =
    scale_mode == in_unit ? 4 * tiles * ((steps * slices + word_slices - 1) / word_slices) : 0;
constexpr int scale_columns = weight_scale_columns + token_scale_bytes / (4 * 32);
constexpr int scales_from = sum_columns + 2 * operand_columns;
constexpr int ones_from = scales_from + 2 * scale_columns;
constexpr int one_columns = block_scaled != (scale_mode == in_unit) ? 4 : 0;
static_assert(columns <= 128, "ones are for 128 rows of either operand");
constexpr int used_columns = ones_from + one_columns;
constexpr int memory_columns = used_columns <= 64 ? 64 : used_columns <= 128 ? 128
                             : used_columns <= 256 ? 256 : 512;
static_assert(used_columns <= 512, "tensor memory has 512 columns");
static_assert(columns % 16 == 0, "products of 128 rows have columns in sixteens");
static_assert(steps % 2 == 0, "the two buffers of operand A take turns");

// Barriers beside the pipeline's.
struct Handshake {
    Barrier *ready, *free;            // [2]: operand A has been stored; has been multiplied
    Barrier *sums_ready, *sums_free;  // the sums are complete; have been read
};

constexpr int handshake_bytes = 6 * 8;

UNSPOOL_DEVICE Handshake handshake_in(char* shared) {
    Barrier* at = reinterpret_cast<Barrier*>(shared);
    return {at, at + 2, at + 4, at + 5};
}

UNSPOOL_DEVICE void open_handshake(const Handshake& hands) {
    for (int i = 0; i < 2; ++i) {
        barrier_init(hands.ready + i, decoders);
        barrier_init(hands.free + i, 1);
    }
    barrier_init(hands.sums_ready, 1);
    barrier_init(hands.sums_free, decoders);
    barrier_init_fence();
}

UNSPOOL_DEVICE word lanes_of(word address, int warp, int half) {
    return address + (word(32 * warp + 16 * half) << 16);
}

// Steps after which the sums are read: a block of scales, or all columns of the share.
UNSPOOL_DEVICE bool ends_part(int step, bool last) {
    if (scale_mode == in_sums) return (step + 1) % scale_steps == 0;
    return last && step + 1 == steps;
}

// By one thread, for the products that it issues next.
UNSPOOL_DEVICE void copy_scales(const char* stage, word scales) {
    for (int i = 0; i < scale_columns; i += 4) {
        const bool of_weights = i < weight_scale_columns;
        const char* from = of_weights ? stage + code_bytes + 128 * i
                                      : stage + unit_bytes + operand_stage_bytes +
                                            128 * (i - weight_scale_columns);
        tmem_copy(scales + i, tmem_descriptor(from, 0, 128));
    }
}

// Ones for scales of weights or tokens; `store_weights` waits for them.
UNSPOOL_DEVICE void store_ones(word memory, int warp) {
    const word ones[4] = {four_ones, four_ones, four_ones, four_ones};
    if (one_columns) tmem_store_lanes(lanes_of(memory + ones_from, warp, 0), ones);
}

UNSPOOL_DEVICE void store_weights(const Weights& weights, word buffer, int warp) {
#pragma unroll
    for (int q = 0; q < slices; ++q)
#pragma unroll
        for (int j = 0; j < products; ++j)
            tmem_store(lanes_of(buffer + (j / 2 * slices + q) * 8, warp, j % 2), weights[q][j]);
    tmem_store_wait();
    tmem_fence_before();
}

template <class T>
UNSPOOL_DEVICE void load_sums(T (&part)[products][4 * column_blocks], word sums, int warp) {
    T eights[products][column_blocks / 2][8];
    tmem_fence_after();
#pragma unroll
    for (int j = 0; j < products; ++j)
#pragma unroll
        for (int b = 0; b < column_blocks / 2; ++b)
            tmem_load_fragments(lanes_of(sums + j / 2 * columns + 16 * b, warp, j % 2),
                                eights[j][b]);
    tmem_load_wait();
#pragma unroll
    for (int j = 0; j < products; ++j)
#pragma unroll
        for (int b = 0; b < column_blocks / 2; ++b) {
            tmem_loaded(eights[j][b]);
#pragma unroll
            for (int i = 0; i < 8; ++i) part[j][8 * b + i] = eights[j][b][i];
        }
    tmem_fence_before();
}

// What a decoding thread keeps.
struct Decoder {
    Tables tables;
    Sums sums;
    Turn turn;   // of the stages
    int round;   // of the two buffers of operand A
    int parts;   // parity of the sums read so far
};

template <class T>
UNSPOOL_DEVICE void read_sums(
    const Handshake& hands, T& sums, word memory, int warp, Decoder& mine) {
    barrier_wait(hands.sums_ready, mine.parts);
    mine.parts ^= 1;
    load_sums(sums, memory, warp);
    barrier_arrive(hands.sums_free);
}

// One step: words to operand A in tensor memory; at the end of a part, its sums to registers.
UNSPOOL_DEVICE void decode_one(
    const Handshake& hands, const char* stage, int step, const Place& place, word memory,
    Decoder& mine) {
    const char* scales = stage + code_bytes;
    change_tables(mine.tables, stage, step, place);
    word words[step_words];
    Weights weights;
    load_words(stage + 4 * threads * step_words * step, place.thread, words);
    decode_step(words, mine.tables, weights);
    if (scale_mode == in_registers) scale_step(mine.tables, weights);
    const int buffer = step % 2;
    barrier_wait(hands.free + buffer, mine.round ^ 1);
    tmem_fence_after();
    store_weights(weights, memory + sum_columns + buffer * operand_columns, place.warp);
    barrier_arrive(hands.ready + buffer);
    if (buffer) mine.round ^= 1;
    if (scale_mode != in_sums || (step + 1) % scale_steps) return;
    Parts part;
    read_sums(hands, part, memory, place.warp, mine);
    add_scaled(mine.sums, part, scales, step / scale_steps, place.ring);
}

// Warps 0-3.
UNSPOOL_DEVICE void decode_all(
    const Pipeline& pipeline, const Handshake& hands, const Share& share, const Arguments& a,
    int tile, int expert, const Place& place, word memory, char* flag) {
    Decoder mine;
    mine.turn = {0, 0}, mine.round = mine.parts = 0;
    store_ones(memory, place.warp);
    fill_tables(mine.tables, flag + 16, place.thread);
    sync_named(1, decoders);
    for (int unit = share.first; unit < share.last;) {
        const Stretch stretch = stretch_at(unit, share, a.stages);
        clear(mine.sums);
        fill_levels(mine.tables, a, expert, stretch.row_block, place.ring);
#pragma unroll 1
        for (int stage = stretch.first; stage < stretch.last; ++stage, ++unit) {
            const int slot = mine.turn.slot;
            barrier_wait(pipeline.full + slot, mine.turn.round);
#pragma unroll unrolled_steps
            for (int step = 0; step < steps; ++step)
                decode_one(hands, pipeline.stages + slot * stage_bytes, step, place, memory, mine);
            barrier_arrive(pipeline.empty + slot);
            advance(mine.turn);
        }
        if (scale_mode != in_sums) read_sums(hands, mine.sums, memory, place.warp, mine);
        finish(mine.sums, a, tile, expert, stretch.row_block, place, flag);
    }
}

template <Kind of>
UNSPOOL_DEVICE void multiply_slice(word sums, word operand, unsigned long long tokens_of,
                                   word scales_a, word scales_b, int byte, bool adds) {
    if constexpr (block_scaled || scale_mode == in_unit)
        tmem_mma_scaled<of>(sums, operand, tokens_of, scales_a, scales_b, byte, columns, adds);
    else
        tmem_mma<of>(sums, operand, tokens_of, columns, adds);
}

UNSPOOL_DEVICE void multiply_step(
    const char* tokens_of, word memory, word scales, int step, bool begins) {
    const word operand = memory + sum_columns + step % 2 * operand_columns;
    for (int q = 0; q < slices; ++q)
        for (int tile = 0; tile < tiles; ++tile) {
            const int slice = step * slices + q;
            const word ones = memory + ones_from;
            const word of_rows = scale_mode == in_unit
                                     ? scales + 4 * (slice / word_slices * tiles + tile) : ones;
            const word of_tokens =
                block_scaled ? scales + weight_scale_columns + slice * scale_words : ones;
            multiply_slice<kind>(memory + tile * columns, operand + (tile * slices + q) * 8,
                                 tmem_descriptor(tokens_of + 32 * columns * slice,
                                                 128 * column_blocks, 128),
                                 of_rows, of_tokens, slice % word_slices, !begins || q > 0);
        }
}

// One thread of warp 5.
UNSPOOL_DEVICE void issue_all(
    const Pipeline& pipeline, const Handshake& hands, const Share& share, const Arguments& a,
    word memory) {
    Turn turn = {0, 0};
    int round = 0, parts = 0, stage = share.first % a.stages;
    int odd = 0;         // of a stage, whose scales take turns
    bool begins = true;  // a part: its first products do not add
    for (int unit = share.first; unit < share.last; ++unit, advance(turn)) {
        const bool last = stage + 1 == a.stages || unit + 1 == share.last;
        stage = stage + 1 == a.stages ? 0 : stage + 1;
        const word scales = memory + scales_from + odd * scale_columns;
        const char* brought = pipeline.stages + turn.slot * stage_bytes;
        barrier_wait(pipeline.full + turn.slot, turn.round);
        for (int step = 0; step < steps; ++step) {
            const int buffer = step % 2;
            barrier_wait(hands.ready + buffer, round);
            if (begins) barrier_wait(hands.sums_free, parts ^ 1);
            tmem_fence_after();
            if (scale_columns && step == 0) copy_scales(brought, scales);
            multiply_step(brought + unit_bytes, memory, scales, step, begins);
            tmem_commit(hands.free + buffer);
            round ^= buffer;
            begins = ends_part(step, last);
            if (begins) tmem_commit(hands.sums_ready), parts ^= 1;
        }
        tmem_commit(pipeline.empty + turn.slot);
        odd ^= 1;
    }
}

UNSPOOL_DEVICE void multiply(const Arguments& a) {
    const int thread = thread_index(), warp = thread / 32, tile = block_index_y();
    const int expert = a.experts ? load_global<int>(a.experts + tile) : 0;
    if (expert < 0) return;
    const Share share = share_of(block_index(), block_count(), a.row_blocks * a.stages);
    const Pipeline pipeline = pipeline_in(shared_memory());
    char* behind = pipeline.stages + pipeline_bytes;
    const Handshake hands = handshake_in(behind);
    word* where = reinterpret_cast<word*>(behind + handshake_bytes);
    char* flag = behind + handshake_bytes + 16;
    if (thread == 0) open_pipeline(pipeline, decoders + 1), open_handshake(hands);
    if (warp == 5) tmem_allocate(where, memory_columns);
    tmem_fence_before();
    sync_block();
    tmem_fence_after();
    const word memory = load_shared<word>(where);
    if (warp < 4) {
        decode_all(pipeline, hands, share, a, tile, expert, place_of(thread), memory, flag);
        tmem_fence_before();
    } else if (warp == 4 && elect_one()) {
        bring(pipeline, share, a, tile, expert);
    } else if (warp == 5 && elect_one()) {
        issue_all(pipeline, hands, share, a, memory);
    }
    sync_block();
    tmem_fence_after();
    if (warp == 5) tmem_release(memory, memory_columns);
}

}  // namespace unspool

#endif
