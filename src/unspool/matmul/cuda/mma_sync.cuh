// The main loop for sm_80, sm_89 and sm_120: warps multiply by mma.sync.
//
//   memory --cp.async--> stage (codes, scales | activations) --LDS--> words --decode--> operand A
//                                                       \----LDSM--> operand B-- mma.sync, FP32 or whole
//
// A warp has 64 rows (8 rings down, 4 products of 16 rows) and all columns of the tile.
#ifndef UNSPOOL_MAIN_LOOP
#define UNSPOOL_MAIN_LOOP

namespace unspool {

// Operand B of a step: the two words of every slice and column block, side by side as QMMA wants
// them (otherwise each is moved: 0.15 instructions per weight).
constexpr int matrices = 2 * column_blocks;  // of a slice, 8 columns x 16 bytes each
using Tokens = word[slices][column_blocks][2];

// LDSM takes the address of a row from every lane: lanes 0-7 and 8-15 give the halves of one
// column block, lanes 16-31 those of the next.
UNSPOOL_DEVICE void load_tokens(const char* step, int lane, Tokens& tokens_of) {
    const int half = lane / 8 % 2, block = lane / 16;
    const char* mine = step + (half * column_blocks + block) * 128 + lane % 8 * 16;
    const char* single = step + half * column_blocks * 128 + lane % 8 * 16;
#pragma unroll
    for (int q = 0; q < slices; ++q) {
        const int slice = 128 * matrices * q;
#pragma unroll
        for (int b = 0; b + 2 <= column_blocks; b += 2) {
            word four[4];
            load_matrices(four, mine + slice + 128 * b);
            tokens_of[q][b][0] = four[0], tokens_of[q][b][1] = four[1];
            tokens_of[q][b + 1][0] = four[2], tokens_of[q][b + 1][1] = four[3];
        }
        if (column_blocks % 2)
            load_matrices(tokens_of[q][column_blocks - 1],
                          single + slice + 128 * (column_blocks - 1));
    }
}

// Scales that the matrix unit applies: words of four bytes, which the threads of a quad hold for
// different slices. FP4 has four of each slice: a load serves four slices of a column, or two of a row
// and that below it. MX has one: a load serves eight slices of both rows.
constexpr int unit_slices = block_scaled ? 2 : 8;
constexpr int unit_sets = (steps * slices + unit_slices - 1) / unit_slices;
struct UnitScales {
    word weights[unit_sets][products], tokens[column_blocks];
};

UNSPOOL_DEVICE void load_unit_scales(
    const char* of_weights, const char* of_tokens, const Place& place, UnitScales& scales) {
#pragma unroll
    for (int b = 0; b < column_blocks; ++b)
        if (block_scaled) scales.tokens[b] = load_shared<word>(of_tokens + 128 * b + 4 * place.lane);
#pragma unroll
    for (int set = 0; set < unit_sets; ++set) {
        Quad four = {four_ones, four_ones, four_ones, four_ones};
        if (scale_mode == in_unit)
            four = load_shared<Quad>(of_weights + 16 * (threads * set + place.thread));
        scales.weights[set][0] = four.x;
        scales.weights[set][1] = four.y;
        scales.weights[set][2] = four.z;
        scales.weights[set][3] = four.w;
    }
}

template <Kind of>
UNSPOOL_DEVICE void multiply_slice(
    Part (&d)[4], const Part (&c)[4], const word (&a)[4], const word (&b)[2],
    const UnitScales& scales, int slice, int j, int block) {
    if constexpr (of == Kind::mxf4nvf4)
        mma_scaled<of>(d, a, b[0], b[1], scales.weights[slice / 2][j], scales.tokens[block],
                       slice % 2, slice % 4);
    else if constexpr (scale_mode == in_unit)
        mma_mx<of>(d, c, a, b[0], b[1], scales.weights[slice / 8][j], slice / 4 % 2, slice % 4);
    else
        mma<of>(d, c, a, b[0], b[1]);
}

// Whole sums of a block begin here: then a subtraction makes them FP32, where sm_80 converts at a
// quarter of the rate. Exact below 2**22, which sums of a stage are.
constexpr int part_start = whole ? 0x4B400000 : 0;
static_assert(!whole || steps * slices * 32 * 128 * 127 < 1 << 22, "too long for exact sums");

UNSPOOL_DEVICE void multiply_step(const Weights& weights, const Tokens& tokens_of,
                                  const UnitScales& scales, int step, bool begins, Parts& sums) {
#pragma unroll
    for (int q = 0; q < slices; ++q)
#pragma unroll
        for (int j = 0; j < products; ++j)
#pragma unroll
            for (int b = 0; b < column_blocks; ++b) {
                Part d[4], c[4];
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    d[i] = c[i] = begins && q == 0 ? Part(part_start) : sums[j][4 * b + i];
                multiply_slice<kind>(d, c, weights[q][j], tokens_of[q][b], scales,
                                     step * slices + q, j, b);
#pragma unroll
                for (int i = 0; i < 4; ++i) sums[j][4 * b + i] = d[i];
            }
}

// Sixteen bytes a thread and turn.
UNSPOOL_DEVICE void copy_to(char* shared, const char* global, int bytes, int thread) {
#pragma unroll
    for (int at = 0; at < bytes; at += 16 * threads)
        if (at + 16 * threads <= bytes || at + 16 * thread < bytes)
            copy_async(shared + at + 16 * thread, global + at + 16 * thread);
}

UNSPOOL_DEVICE void multiply_stage(
    const char* stage, const Place& place, Tables& tables, Sums& sums) {
    const char *scales = stage + code_bytes, *activations = stage + unit_bytes;
    Parts part;
    UnitScales unit_scales;
    if (block_scaled || scale_mode == in_unit)
        load_unit_scales(scales, activations + operand_stage_bytes, place, unit_scales);
#pragma unroll unrolled_steps
    for (int step = 0; step < steps; ++step) {
        change_tables(tables, stage, step, place);
        word words[step_words];
        Weights weights;
        Tokens tokens_of;
        load_words(stage + 4 * threads * step_words * step, place.thread, words);
        load_tokens(activations + 128 * matrices * slices * step, place.lane, tokens_of);
        decode_step(words, tables, weights);
        if (scale_mode == in_registers) scale_step(tables, weights);
        constexpr bool in_parts = scale_mode == in_sums;
        const bool begins = in_parts && step % scale_steps == 0;  // a block's sums
        multiply_step(weights, tokens_of, unit_scales, step, begins,
                      added_to(in_parts, sums, part));
        if (in_parts && (step + 1) % scale_steps == 0)
            add_scaled<part_start>(sums, part, scales, step / scale_steps, place.ring);
    }
}

// Brings the units of a share, one after another, into the slots.
struct Feed {
    char* stages;
    const char *weights, *activations;  // of the next unit
    int left, stage, slot;              // units left; stage and slot of the next
};

UNSPOOL_DEVICE void fetch(Feed& feed, const Arguments& a, int thread) {
    if (feed.left > 0) {
        char* to = feed.stages + feed.slot * stage_bytes;
        copy_to(to, feed.weights, unit_bytes, thread);
        copy_to(to + unit_bytes, feed.activations, activation_bytes, thread);
        feed.weights += unit_bytes, feed.activations += activation_bytes, --feed.left;
        if (++feed.stage == a.stages)
            feed.stage = 0, feed.activations -= 1LL * a.stages * activation_bytes;
        if (++feed.slot == slots) feed.slot = 0;
    }
    copy_commit();  // also where there is nothing: the groups are counted
}

UNSPOOL_DEVICE Feed feed_of(
    const Arguments& a, char* stages, const Share& share, int tile, int expert) {
    const long long units = 1LL * a.row_blocks * a.stages;
    const int stage = share.first % a.stages;
    return {stages, a.weights + (units * expert + share.first) * unit_bytes,
            a.activations + (1LL * tile * a.stages + stage) * activation_bytes,
            share.last - share.first, stage, 0};
}

UNSPOOL_DEVICE void multiply(const Arguments& a) {
    const Place place = place_of(thread_index());
    const int tile = block_index_y();
    const int expert = a.experts ? load_global<int>(a.experts + tile) : 0;
    if (expert < 0) return;
    const Share share = share_of(block_index(), block_count(), a.row_blocks * a.stages);
    char *stages = shared_memory(), *flag = stages + slots * stage_bytes;
    Feed feed = feed_of(a, stages, share, tile, expert);
    for (int ahead = 0; ahead < slots - 1; ++ahead) fetch(feed, a, place.thread);
    Tables tables;
    fill_tables(tables, flag + 16, place.thread);
    Turn turn = {0, 0};
    for (int unit = share.first; unit < share.last;) {
        const Stretch stretch = stretch_at(unit, share, a.stages);
        Sums sums;
        clear(sums);
        fill_levels(tables, a, expert, stretch.row_block, place.ring);
#pragma unroll 1
        for (int stage = stretch.first; stage < stretch.last; ++stage, ++unit, advance(turn)) {
            copy_wait<slots - 2>();
            sync_block();  // the stage is there for all, and all have read the one before it
            fetch(feed, a, place.thread);
            multiply_stage(stages + turn.slot * stage_bytes, place, tables, sums);
        }
        finish(sums, a, tile, expert, stretch.row_block, place, flag);
    }
    copy_wait<0>();
}

}  // namespace unspool

#endif
