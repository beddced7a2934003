// From the stored words of a step, in shared memory, to operand A in registers.
#ifndef UNSPOOL_WEIGHTS
#define UNSPOOL_WEIGHTS

namespace unspool {

// Operand A of a step: for slice q and product j the four words of its fragment, which are
//
//   words 2 q and 2 q + 1 of rows 2 j (first and third) and 2 j + 1 (second and fourth) of a ring
using Weights = word[slices][products][4];

UNSPOOL_DEVICE word& weight_of(Weights& weights, int row, int i) {
    return weights[i / 2][row / 2][2 * (i % 2) + row % 2];
}

// What a decoder looks up: entries in shared memory, levels and held constants in registers.
struct Tables {
    const word* entries;
    word levels[code_0::level_count + code_0::held_count + 1];
    word scales[8];  // of a block's rows, twice each, where weights are multiplied with them
};

// Which word of a step is stored at place i (Geometry.words).
UNSPOOL_DEVICE constexpr int word_of(int i) {
    constexpr int order[] = {UNSPOOL_WORDS};
    return order[i];
}

// Vectors of sixteen bytes, then eight and four where words are left (geometry.py).
UNSPOOL_DEVICE void load_words(const char* step, int thread, word (&words)[step_words]) {
    constexpr int quads = step_words / 4, rest = 4 * quads;
#pragma unroll
    for (int i = 0; i < quads; ++i) {
        const Quad four = load_shared<Quad>(step + 16 * (threads * i + thread));
        words[word_of(4 * i)] = four.x, words[word_of(4 * i + 1)] = four.y;
        words[word_of(4 * i + 2)] = four.z, words[word_of(4 * i + 3)] = four.w;
    }
    const char* behind = step + 16 * threads * quads;
    if constexpr (step_words % 4 >= 2) {
        const Pair two = load_shared<Pair>(behind + 8 * thread);
        words[word_of(rest)] = two.x, words[word_of(rest + 1)] = two.y;
    }
    if constexpr (step_words % 2)
        words[word_of(step_words - 1)] =
            load_shared<word>(behind + 8 * threads * (step_words % 4 / 2) + 4 * thread);
}

// Entries of the decoder's table to shared memory, constants to registers; once per block.
UNSPOOL_DEVICE void fill_tables(Tables& tables, char* shared, int thread) {
    using namespace code_0;
    tables.entries = reinterpret_cast<const word*>(shared);
#if UNSPOOL_ENTRIES
    for (int i = thread; i < entry_count; i += threads) store_shared<word>(shared + 4 * i, entries[i]);
#endif
#if UNSPOOL_HELD
#pragma unroll
    for (int i = 0; i < held_count; ++i) {
        // volatile: of known constants the compiler makes moves, 0.2 instructions per weight
        const volatile word& constant = held[i];
        tables.levels[level_count + i] = constant;
    }
#endif
    (void)shared, (void)thread;
}

// The levels of a parameter for this thread's ring, where they are the same all along its rows.
UNSPOOL_DEVICE void fill_levels(
    Tables& tables, const Arguments& a, int expert, int row_block, int ring) {
    constexpr int count = code_0::level_count;
    if (count == 0 || level_steps > 0 || scale_mode == in_table) return;
    const long long table = 1LL * expert * a.row_blocks + row_block;
#pragma unroll
    for (int i = 0; i < count; ++i)
        tables.levels[i] = load_global<word>(a.levels + (table * count + i) * 32 + ring);
}

// Those of a tile come with the stage, behind the scales.
UNSPOOL_DEVICE void load_levels(Tables& tables, const char* stage, int table, int ring) {
    constexpr int count = code_0::level_count;
    const char* mine = stage + unit_bytes - table_bytes + 4 * count * (32 * table + ring);
    if constexpr (count % 2 == 0) {
#pragma unroll
        for (int i = 0; i < count; i += 2) {
            const Pair two = load_shared<Pair>(mine + 4 * i);
            tables.levels[i] = two.x, tables.levels[i + 1] = two.y;
        }
    } else {
#pragma unroll
        for (int i = 0; i < count; ++i) tables.levels[i] = load_shared<word>(mine + 4 * i);
    }
}

// A block of the thread's own: its eight powers of two move the tables of eight rows. A level is
// added to the exponents of all entries but the zero (decode/lower_scaled.py).
UNSPOOL_DEVICE void move_tables(Tables& tables, const char* scales, int block, int thread) {
    const Pair eight = load_shared<Pair>(scales + 8 * (threads * block + thread));
#pragma unroll
    for (int row = 0; row < 8; ++row) {
        const word level = permute_bytes(row < 4 ? eight.x : eight.y, 0, 0x4440 + row % 4);
        tables.levels[2 * row] = level * 0x01010100 + word(table_low);
        tables.levels[2 * row + 1] = level * 0x01010101 + word(table_high);
    }
}

// A block of the thread's own: its scales, of two rows in each of four words, to two halves each.
UNSPOOL_DEVICE void load_scales(Tables& tables, const char* scales, int block, int thread) {
    const Quad halves = load_shared<Quad>(scales + 16 * (threads * block + thread));
    const word pairs[4] = {halves.x, halves.y, halves.z, halves.w};
#pragma unroll
    for (int row = 0; row < 8; ++row)
        tables.scales[row] = permute_bytes(pairs[row / 2], 0, row % 2 ? 0x3232 : 0x1010);
}

// What changes along a row, before a step.
UNSPOOL_DEVICE void change_tables(
    Tables& tables, const char* stage, int step, const Place& place) {
    const char* scales = stage + code_bytes;
    if constexpr (level_steps > 0)
        if (step % level_steps == 0)
            load_levels(tables, stage, step / level_steps, place.ring);
    if constexpr (scale_mode == in_table)
        if (step % scale_steps == 0)
            move_tables(tables, scales, step / scale_steps, place.thread);
    if constexpr (scale_mode == in_registers)
        if (step % scale_steps == 0)
            load_scales(tables, scales, step / scale_steps, place.thread);
}

UNSPOOL_DEVICE void decode_step(
    const word (&words)[step_words], const Tables& tables, Weights& weights) {
#pragma unroll
    for (int ring = 0; ring < rings; ++ring) {
        word registers[8 * ring_words];
        code_0::decode(words + ring * code_0::word_count, registers, tables.entries, tables.levels);
#pragma unroll
        for (int row = 0; row < 8; ++row)
#pragma unroll
            for (int i = 0; i < ring_words; ++i)
                weight_of(weights, row, ring * ring_words + i) = registers[row * ring_words + i];
    }
}

// Eight binary16 scales of a thread's rows, two to a word.
UNSPOOL_DEVICE Quad row_halves(const char* scales, int block, int ring) {
    return load_shared<Quad>(scales + 512 * block + 16 * ring);
}

// Blocks that end inside a step: decoded binary16 times their scale, rounded once.
UNSPOOL_DEVICE void scale_step(const Tables& tables, Weights& weights) {
    constexpr int minus_zero = 0x80008000;
#pragma unroll
    for (int row = 0; row < 8; ++row)
#pragma unroll
        for (int i = 0; i < 2 * slices; ++i) {
            word& two = weight_of(weights, row, i);
            two = half2_fma(two, tables.scales[row], minus_zero);
        }
}

// Blocks of whole steps: the sums of a block times its scale are added to the sums of the row.
// Whole ones may start at the bits of 1.5 * 2**23: with a sum they are the FP32 of both together.
template <int start = 0>
UNSPOOL_DEVICE void add_scaled(
    Sums& sums, const Parts& part, const char* scales, int block, int ring) {
    const Quad halves = row_halves(scales, block, ring);
    const word pairs[4] = {halves.x, halves.y, halves.z, halves.w};
#pragma unroll
    for (int j = 0; j < products; ++j) {
        const float even = value_of_f16(pairs[j] & 0xFFFF), odd = value_of_f16(pairs[j] >> 16);
#pragma unroll
        for (int i = 0; i < 4 * column_blocks; i += 2) {
            float two[2], sum[2];
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const Part of = part[j][i + e];
                two[e] = start ? as_float(word(of)) - as_float(start) : float(of);
                sum[e] = float(sums[j][i + e]);
            }
            multiply_add_both(sum[0], sum[1], two[0], two[1], i & 2 ? odd : even);
            sums[j][i] = sum[0], sums[j][i + 1] = sum[1];
        }
    }
}

}  // namespace unspool

#endif
