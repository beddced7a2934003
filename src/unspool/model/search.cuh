// Walks through a dense trellis (encode/dense.py), 64 rings a block: a lane has two of them in a
// word, warps divide the nodes. Compiled, counted, simulated; not run on a GPU.
//
// The generated part (search_kernel.py), in namespace unspool::made:
//   nodes, parallel     of the trellis              tables, entries   where costs are looked up
//   lanes, count        levels of a step            warps, abreast    who has which nodes
//   most, never         of costs; where no walk begins
//
// What binds it is shared memory: an edge of 64 rings takes a word of 32 lanes for each table.

namespace unspool {

// Two rings of 16 bits each.
#ifdef __CUDACC__
UNSPOOL_DEVICE word lower_of(word a, word b) { return __vminu2(a, b); }
// VIADDMNMX from sm_90 on: min(a + b, c)
UNSPOOL_DEVICE word add_lower(word a, word b, word c) { return __viaddmin_u16x2(a, b, c); }
#else
UNSPOOL_DEVICE word lower_of(word a, word b) {
    const word low_a = a & 0xFFFF, low_b = b & 0xFFFF, high_a = a >> 16, high_b = b >> 16;
    return (low_a < low_b ? low_a : low_b) | (high_a < high_b ? high_a : high_b) << 16;
}
UNSPOOL_DEVICE word add_lower(word a, word b, word c) { return lower_of(a + b, c); }
#endif

struct WalkArguments {
    const word* costs;   // [steps][blocks][lanes * count][32]: what every level costs
    const word* places;  // [nodes / abreast][from-nodes * parallel][abreast][tables]: bytes; and
                         // one [abreast][tables] more, which is read ahead and not used
    const int* starts;   // [blocks * 64]: where walks begin; null: anywhere
    word* walks;         // [steps + 1][blocks][nodes][32]
    int steps, blocks;
};

UNSPOOL_DEVICE constexpr word twice(int number) { return word(number) * 0x10001u; }

constexpr int row_bytes = 128;  // 32 words
constexpr int table_bytes = made::tables * made::entries * row_bytes;
constexpr int walk_bytes = made::nodes * row_bytes;
constexpr int groups = made::nodes / (made::warps * made::abreast);

// What edges look up: the costs of a lane's levels, or the sums of two lanes' levels.
UNSPOOL_DEVICE void fill_cost_tables(char* tables, const word* costs, int warp, int lane) {
    for (int entry = warp; entry < made::tables * made::entries; entry += made::warps) {
        word cost;
        if (made::tables == made::lanes) {
            cost = load_global<word>(costs + 32 * entry + lane);
        } else {
            const int pair = entry / made::entries, inside = entry % made::entries;
            const word* first = costs + 32 * (2 * pair * made::count + inside / made::count);
            const word* second = costs + 32 * ((2 * pair + 1) * made::count + inside % made::count);
            cost = load_global<word>(first + lane) + load_global<word>(second + lane);
        }
        store_shared<word>(tables + row_bytes * entry + 4 * lane, cost);
    }
}

constexpr int place_words = made::abreast * made::tables;

UNSPOOL_DEVICE void load_places(const word* from, word (&place)[place_words]) {
#pragma unroll
    for (int i = 0; i < place_words; i += 4) {
        const Quad four = load_global<Quad>(from + i);
        place[i] = four.x, place[i + 1] = four.y, place[i + 2] = four.z, place[i + 3] = four.w;
    }
}

// The cheapest way into some neighbouring nodes. Where edges look up is read an edge ahead.
UNSPOOL_DEVICE void advance(const char* tables, const char* walks, const word* places, int lane,
                            word (&best)[made::abreast]) {
    word place[place_words];
    load_places(places, place);
#pragma unroll
    for (int j = 0; j < made::abreast; ++j) best[j] = ~0u;
#pragma unroll 2
    for (int from = 0; from < made::nodes; ++from) {
        const word walk = load_shared<word>(walks + row_bytes * from + 4 * lane);
#pragma unroll 2
        for (int copy = 0; copy < made::parallel; ++copy) {
            word next[place_words];
            load_places(places += place_words, next);
#pragma unroll
            for (int j = 0; j < made::abreast; ++j) {
                word cost = 0;
#pragma unroll
                for (int i = 0; i < made::tables; ++i)
                    cost += load_shared<word>(tables + place[j * made::tables + i]);
                best[j] = add_lower(walk, cost, best[j]);
            }
#pragma unroll
            for (int i = 0; i < place_words; ++i) place[i] = next[i];
        }
    }
}

UNSPOOL_DEVICE void begin_walks(const WalkArguments& a, char* walks, int warp, int lane) {
    word starts[2] = {};
    if (a.starts)
        for (int i = 0; i < 2; ++i)
            starts[i] = load_global<int>(a.starts + 64 * block_index() + 2 * lane + i);
    for (int node = warp; node < made::nodes; node += made::warps) {
        const word low = a.starts && int(starts[0]) != node ? made::never : 0;
        const word high = a.starts && int(starts[1]) != node ? made::never : 0;
        store_shared<word>(walks + row_bytes * node + 4 * lane, low | high << 16);
        const long long row = 1LL * block_index() * made::nodes + node;
        store_global<word>(a.walks + 32 * row + lane, low | high << 16);
    }
}

UNSPOOL_DEVICE void walk(const WalkArguments& a) {
    const int warp = thread_index() / 32, lane = lane_index();
    char* const tables = shared_memory();
    char* const walks = tables + table_bytes;
    char* const lowest = walks + walk_bytes;  // [warps][32]: the cheapest walk of a warp's nodes
    const int first = warp * groups;
    begin_walks(a, walks, warp, lane);
#pragma unroll 1
    for (int step = 0; step < a.steps; ++step) {
        const long long at = 1LL * step * a.blocks + block_index();
        fill_cost_tables(tables, a.costs + at * made::lanes * made::count * 32, warp, lane);
        sync_block();
        word best[groups][made::abreast], least = ~0u;
#pragma unroll
        for (int group = 0; group < groups; ++group) {
            const long long edges = 1LL * made::nodes * made::parallel;
            const word* places =
                a.places + (first + group) * edges * made::abreast * made::tables;
            // the lane's word of a row comes with the table's address
            advance(tables + 4 * lane, walks, places, lane, best[group]);
#pragma unroll
            for (int j = 0; j < made::abreast; ++j) {
                best[group][j] = lower_of(best[group][j], twice(made::most));
                least = lower_of(least, best[group][j]);
            }
        }
        store_shared<word>(lowest + row_bytes * warp + 4 * lane, least);
        sync_block();
        for (int other = 0; other < made::warps; ++other)
            least = lower_of(least, load_shared<word>(lowest + row_bytes * other + 4 * lane));
        const long long layer = 1LL * (step + 1) * a.blocks + block_index();
#pragma unroll
        for (int group = 0; group < groups; ++group)
#pragma unroll
            for (int j = 0; j < made::abreast; ++j) {
                const int node = (first + group) * made::abreast + j;
                const word after = best[group][j] - least;
                store_shared<word>(walks + row_bytes * node + 4 * lane, after);
                store_global<word>(a.walks + 32 * (layer * made::nodes + node) + lane, after);
            }
    }
}

}  // namespace unspool
