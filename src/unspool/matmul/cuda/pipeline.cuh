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
    const Pipeline& pipeline, const Share& share, const char* weights, const char* activations,
    int stages) {
    for (int unit = share.first; unit < share.last; ++unit) {
        const int turn = unit - share.first, slot = turn % slots;
        char* to = pipeline.stages + slot * stage_bytes;
        barrier_wait(pipeline.empty + slot, turn / slots % 2 ^ 1);  // the first turn does not wait
        barrier_expect(pipeline.full + slot, stage_bytes);
        copy_bulk_once(to, weights + 1LL * unit * unit_bytes, unit_bytes, pipeline.full + slot);
        copy_bulk(to + unit_bytes, activations + 1LL * (unit % stages) * activation_bytes,
                  activation_bytes, pipeline.full + slot);
    }
}

}  // namespace unspool

#endif
