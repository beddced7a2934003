// The main loop for sm_90: decoded weights are the register operand of wgmma.
//
//   memory --bulk copy--> stage (codes, scales | activations) --LDS--> words --decode--> operand A
//                                                  \----- descriptor, operand B-- wgmma, FP32 or whole
//
// While the matrix unit multiplies one step, the warpgroup decodes the next into other registers
// where it has them.
#ifndef UNSPOOL_MAIN_LOOP
#define UNSPOOL_MAIN_LOOP

namespace unspool {

constexpr int consumers = threads;  // one warpgroup; one more warp brings the stages

// FP8 sums of wgmma keep some 14 bits (DeepGEMM's issues 37 and 50): from time to time, and at the
// end of every block of scales, what they hold is added in FP32.
constexpr bool in_parts = scale_mode == in_sums || promote_stages > 0;

// Sets of registers for operand A that take turns. Where two and the sums need too many registers
// they would spill (2 to 35 times): then the warpgroup waits, and another block decodes.
constexpr int sum_registers = 2 * columns * (in_parts ? 2 : 1), set_registers = 16 * slices;
constexpr int free_registers = kind == Kind::f16 ? 112 : 128;  // beside all else; F2FP needs more
constexpr int operand_sets = sum_registers + 2 * set_registers <= free_registers ? 2 : 1;
static_assert(steps % operand_sets == 0, "every stage begins with the first set");

// Half to half of a slice, column block to column block. Slices follow in steps of 16 bytes.
UNSPOOL_DEVICE unsigned long long tokens_at(const char* stage) {
    return descriptor(stage, 128 * column_blocks, 128);
}

UNSPOOL_DEVICE void multiply_step(
    const Weights& weights, unsigned long long tokens_of, bool adds, Parts& sums) {
    wgmma_fence();
#pragma unroll
    for (int q = 0; q < slices; ++q)
#pragma unroll
        for (int j = 0; j < products; ++j)
            wgmma<kind, columns>(sums[j], weights[q][j], tokens_of + 2 * columns * q,
                                 adds || q > 0);
    wgmma_commit();
}

UNSPOOL_DEVICE void add(Sums& sums, const Parts& part) {
#pragma unroll
    for (int j = 0; j < products; ++j)
#pragma unroll
        for (int i = 0; i < 4 * column_blocks; ++i) sums[j][i] += part[j][i];
}

// What a consumer keeps from step to step.
struct Consumer {
    Tables tables;
    Weights weights[operand_sets];
    Sums sums;
    Parts part;  // where sums are `in_parts`
};

UNSPOOL_DEVICE void use_stage(
    const char* stage, int stage_number, bool last, const Place& place, Consumer& mine,
    Barrier* previous) {
    const char* scales = stage + code_bytes;
    const unsigned long long tokens_of = tokens_at(stage + unit_bytes);
#pragma unroll unrolled_steps
    for (int step = 0; step < steps; ++step) {
        change_tables(mine.tables, stage, step, place);
        word words[step_words];
        const char* stored = stage + 4 * threads * step_words * step;
        if (operand_sets == 2) load_words(stored, place.thread, words);
        wgmma_wait<operand_sets - 1>();  // the step that had this set is done
        if (operand_sets == 1) load_words(stored, place.thread, words);  // before it, 2 to 4 spills
        if (step == operand_sets - 1 && previous) barrier_arrive(previous);
        Weights& weights = mine.weights[step % operand_sets];
        decode_step(words, mine.tables, weights);
        if (scale_mode == in_registers) scale_step(mine.tables, weights);
        const bool begins = scale_mode == in_sums && step % scale_steps == 0;  // a block's sums
        multiply_step(weights, tokens_of + 2 * columns * slices * step, !begins,
                      added_to(in_parts, mine.sums, mine.part));
        if (scale_mode == in_sums && (step + 1) % scale_steps == 0) {
            wgmma_wait<0>();
            add_scaled(mine.sums, mine.part, scales, step / scale_steps, place.ring);
        }
    }
    if (promote_stages > 0 && (last || (stage_number + 1) % promote_stages == 0)) {
        wgmma_wait<0>();
        add(mine.sums, mine.part);
        clear(mine.part);
    }
}

UNSPOOL_DEVICE void consume(
    const Pipeline& pipeline, const Share& share, const Arguments& a, int tile, int expert,
    const Place& place, char* flag) {
    Consumer mine;
    fill_tables(mine.tables, flag + 16, place.thread);
    sync_named(1, consumers);
    Barrier* previous = nullptr;  // of the stage before, which is read until its products are done
    Turn turn = {0, 0};
    for (int unit = share.first; unit < share.last;) {
        const Stretch stretch = stretch_at(unit, share, a.stages);
        clear(mine.sums);
        clear(mine.part);
        fill_levels(mine.tables, a, expert, stretch.row_block, place.ring);
#pragma unroll 1
        for (int stage = stretch.first; stage < stretch.last; ++stage, ++unit, advance(turn)) {
            barrier_wait(pipeline.full + turn.slot, turn.round);
            use_stage(pipeline.stages + turn.slot * stage_bytes, stage, stage + 1 == stretch.last,
                      place, mine, previous);
            previous = pipeline.empty + turn.slot;
        }
        wgmma_wait<0>();
        finish(mine.sums, a, tile, expert, stretch.row_block, place, flag);
    }
}

UNSPOOL_DEVICE void multiply(const Arguments& a) {
    const int thread = thread_index(), tile = block_index_y();
    const int expert = a.experts ? load_global<int>(a.experts + tile) : 0;
    if (expert < 0) return;
    const Share share = share_of(block_index(), block_count(), a.row_blocks * a.stages);
    const Pipeline pipeline = pipeline_in(shared_memory());
    if (thread == 0) open_pipeline(pipeline, consumers);
    sync_block();
    if (thread < consumers)
        consume(pipeline, share, a, tile, expert, place_of(thread),
                pipeline.stages + pipeline_bytes);
    else if (elect_one())
        bring(pipeline, share, a, tile, expert);
}

}  // namespace unspool

#endif
