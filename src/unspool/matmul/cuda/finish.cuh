// From the sums of a row block to rows of the output, over as many blocks as shared its columns.
#ifndef UNSPOOL_FINISH
#define UNSPOOL_FINISH

namespace unspool {

// Eight sums of one column: a thread's rows, which stand side by side in partials and output.
UNSPOOL_DEVICE void column_of(const Sums& sums, int block, int e, Sum (&rows)[8]) {
#pragma unroll
    for (int row = 0; row < 8; ++row) rows[row] = sums[row / 2][4 * block + 2 * (row % 2) + e];
}

UNSPOOL_DEVICE char* partial_at(char* partial, int column, int ring) {
    return partial + 4 * (256 * column + 8 * ring);
}

UNSPOOL_DEVICE void store_partial(const Sums& sums, char* partial, const Place& place) {
#pragma unroll
    for (int block = 0; block < column_blocks; ++block)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            Sum rows[8];
            column_of(sums, block, e, rows);
            char* at = partial_at(partial, 8 * block + 2 * place.t + e, place.ring);
            store_global<Quad>(at, quad_of(rows[0], rows[1], rows[2], rows[3]));
            store_global<Quad>(at + 16, quad_of(rows[4], rows[5], rows[6], rows[7]));
        }
}

UNSPOOL_DEVICE void add_partial(Sums& sums, const char* partial, const Place& place) {
#pragma unroll
    for (int block = 0; block < column_blocks; ++block)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            const int column = 8 * block + 2 * place.t + e;
            const char* at = partial_at(const_cast<char*>(partial), column, place.ring);
            const Quad low = load_global_fresh<Quad>(at), high = load_global_fresh<Quad>(at + 16);
            const word rows[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
            for (int row = 0; row < 8; ++row) {
                Sum part;
                from_word(rows[row], part);
                sums[row / 2][4 * block + 2 * (row % 2) + e] += part;
            }
        }
}

// Two results as 16-bit floats of the output's type.
UNSPOOL_DEVICE word packed(float low, float high) {
    return output_bfloat ? bf16_of(low) | bf16_of(high) << 16 : f16_of(low) | f16_of(high) << 16;
}

// Rows of the output side by side; sixteen bytes at a time where all eight exist and are aligned.
UNSPOOL_DEVICE void store_rows(char* at, const float (&rows)[8], int count, bool aligned) {
    if (count >= 8 && aligned && output_bits == 32) {
        store_global<Quad>(at, quad_of(rows[0], rows[1], rows[2], rows[3]));
        store_global<Quad>(at + 16, quad_of(rows[4], rows[5], rows[6], rows[7]));
    } else if (count >= 8 && aligned) {
        store_global<Quad>(at, Quad{packed(rows[0], rows[1]), packed(rows[2], rows[3]),
                                    packed(rows[4], rows[5]), packed(rows[6], rows[7])});
    } else {
#pragma unroll
        for (int row = 0; row < 8; ++row) {
            if (row >= count) continue;
            if (output_bits == 32)
                store_global<float>(at + 4 * row, rows[row]);
            else
                store_global<unsigned short>(at + 2 * row, (unsigned short)packed(rows[row], 0.0f));
        }
    }
}

// Terms summed, whole numbers made FP32, scales applied, rounded once to the type of the output.
UNSPOOL_DEVICE void store_output(
    const Sums& sums, const Arguments& a, int tile, int expert, int row_block, const Place& place) {
    const int row = 256 * row_block + 8 * place.ring;
    if (row >= a.n) return;
    const float* scales = a.row_scales + 256LL * expert * a.row_blocks + row;
    const Quad low = load_global<Quad>(scales), high = load_global<Quad>(scales + 4);
    const word row_scales[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int block = 0; block < token_blocks; ++block)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            const int slot = tokens * tile + 8 * block + 2 * place.t + e;
            const int target = a.targets ? load_global<int>(a.targets + slot) : slot;
            if (target < 0 || target >= a.m) continue;
            const float scale = load_global<float>(a.token_scales + slot);
            float total[8];
            Sum part[8];
            column_of(sums, block, e, part);
#pragma unroll
            for (int i = 0; i < 8; ++i) total[i] = float(part[i]);
#pragma unroll
            for (int term = 1; term < terms; ++term) {
                column_of(sums, term * token_blocks + block, e, part);
                const float weight = term == 1 ? 1 / term_step : 1 / (term_step * term_step);
#pragma unroll
                for (int i = 0; i < 8; ++i)
                    total[i] = multiply_add(float(part[i]), weight, total[i]);
            }
#pragma unroll
            for (int i = 0; i < 8; ++i) total[i] = total[i] * as_float(row_scales[i]) * scale;
            char* at = a.output + (1LL * target * a.n + row) * (output_bits / 8);
            store_rows(at, total, a.n - row, a.n % 8 == 0);
        }
}

// Ends a row block: writes the output, or leaves a part and, as the last to arrive, sums all.
UNSPOOL_DEVICE void finish(
    Sums& sums, const Arguments& a, int tile, int expert, int row_block, const Place& place,
    char* flag) {
    const int units = a.row_blocks * a.stages, blocks = block_count();
    const int first = owner_of(row_block * a.stages, blocks, units);
    const int last = owner_of((row_block + 1) * a.stages - 1, blocks, units);
    if (first != last) {
        char* partials = a.partials + 8LL * blocks * tile * columns * 256;
        const auto partial = [&](int block) {
            const int part = partial_of(block, blocks, units, a.stages, row_block);
            return partials + 4LL * part * columns * 256;
        };
        store_partial(sums, partial(block_index()), place);
        fence_global();
        sync_named(1, threads);
        if (place.thread == 0) {
            const int before = atomic_add(a.arrivals + tile * a.row_blocks + row_block, 1);
            store_shared<word>(flag, before == last - first);
        }
        sync_named(1, threads);
        const bool arrived_last = load_shared<word>(flag);
        sync_named(1, threads);  // the flag may be written again
        if (!arrived_last) return;
        fence_global();
        if (place.thread == 0) store_global<int>(a.arrivals + tile * a.row_blocks + row_block, 0);
        clear(sums);
#pragma unroll 1  // or sums get these loads' order, in the main loop too: moves, 36 registers
        for (int block = first; block <= last; ++block) add_partial(sums, partial(block), place);
    }
    store_output(sums, a, tile, expert, row_block, place);
}

}  // namespace unspool

#endif
