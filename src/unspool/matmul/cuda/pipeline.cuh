// Stages in flight for sm_90 and sm_100: one warp brings them by bulk copies, others use them up.
//
//   full[slot]    completes when all bytes of a stage have arrived
//   empty[slot]   completes when all who read it are done
#ifndef UNSPOOL_PIPELINE
#define UNSPOOL_PIPELINE

namespace unspool {

struct Pipeline {
    char* stages;
    Barrier *full, *empty;
};

constexpr int pipeline_bytes = slots * (stage_bytes + 2 * 8);

UNSPOOL_DEVICE Pipeline pipeline_in(char* shared) {
    Barrier* barriers = reinterpret_cast<Barrier*>(shared + slots * stage_bytes);
    return {shared, barriers, barriers + slots};
}

// By one thread; a block-wide barrier follows.
UNSPOOL_DEVICE void open_pipeline(const Pipeline& pipeline, int readers) {
    for (int slot = 0; slot < slots; ++slot) {
        barrier_init(pipeline.full + slot, 1);
        barrier_init(pipeline.empty + slot, readers);
    }
    barrier_init_fence();
}

// The whole work of the one thread that brings the units of a share.
UNSPOOL_DEVICE void bring(
    const Pipeline& pipeline, const Share& share, const Arguments& a, int tile, int expert) {
    const long long first = 1LL * expert * a.row_blocks * a.stages + share.first;
    const char* weights = a.weights + first * unit_bytes;
    const char* tokens_of = a.activations + 1LL * tile * a.stages * activation_bytes;
    int stage = share.first % a.stages;
    Turn turn = {0, 0};
    for (int unit = share.first; unit < share.last; ++unit, advance(turn)) {
        char* to = pipeline.stages + turn.slot * stage_bytes;
        Barrier* full = pipeline.full + turn.slot;
        barrier_wait(pipeline.empty + turn.slot, turn.round ^ 1);  // the first round does not wait
        barrier_expect(full, stage_bytes);
        copy_bulk_once(to, weights, unit_bytes, full);
        copy_bulk(to + unit_bytes, tokens_of + 1LL * stage * activation_bytes, activation_bytes,
                  full);
        weights += unit_bytes;
        if (++stage == a.stages) stage = 0;
    }
}

}  // namespace unspool

#endif
