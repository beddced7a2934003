// Weights decoded once, for products with so many tokens that a library's GEMM is faster: a row-major
// matrix of operands whose columns stand in the order of geometry.py, as the activations' do.
#ifndef UNSPOOL_EXPAND
#define UNSPOOL_EXPAND

namespace unspool {

struct ExpandArguments {
    const char* weights;  // [row blocks][stages][unit_bytes]
    const word* levels;   // as in Arguments
    char* output;         // [row blocks * 256][stages * steps * slices * 32 bytes]
    int row_blocks, stages, across;
};

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
    a.levels = e.levels, a.row_blocks = e.row_blocks, a.across = e.across;
    if (level_steps == 0) fill_levels(tables, a, 0, row_block, 0, place.ring);
    const long long row_bytes = 32LL * slices * steps * e.stages;
    char* rows = e.output + (256LL * row_block + 8 * place.ring) * row_bytes;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
        if (level_steps > 0 && step % level_steps == 0)
            fill_levels(tables, a, 0, row_block, (stage * steps + step) / level_steps, place.ring);
        word words[step_words];
        Weights weights;
        load_words(shared + 4 * threads * step_words * step, place.thread, words);
        decode_step(words, tables, weights);
        if (scale_mode == in_registers) scale_step(shared + code_bytes, step, place, weights);
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
