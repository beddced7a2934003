// The best walk around a ring whose targets depend on the walk: every survivor carries what its own
// errors ask of the columns that are left of the row. survivors.py states the algorithm and holds
// the numpy twin, which gives the same states bit for bit.

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "encode/groups.hpp"

namespace {

using namespace unspool;
using std::size_t;

constexpr size_t kVectors = 2;
constexpr size_t kRings = 8 * kVectors;  // rings in a group
constexpr size_t kMostLanes = 8;
constexpr size_t kBlock = 32, kAbreast = 2;  // from-nodes and to-nodes at a time, see choose_dense
constexpr size_t kDenseLanes = 4;
constexpr float kNever = std::numeric_limits<float>::infinity();
constexpr int kNoMemory = 1;
constexpr int kNoWalk = 2;

// Edges as in viterbi.cpp. `places` are the steps of a row; `width` its columns, whole vectors.
struct Search {
  const float* squares;    // [places, nodes, edges]: v P v
  const float* slopes;     // [nodes, lanes, edges]: -2 v
  const float* values;     // [states, lanes]
  const uint32_t* source;  // [nodes, sources]
  const uint32_t* state;   // [nodes, edges]
  const float* metric;     // [places, lanes, lanes]: P
  const float* feedback;   // [places, lanes, width]: what a missed lane asks of later columns
  size_t nodes, sources, parallel, lanes, log_parallel, places, width;
  const float* dense;      // slopes, then squares of all places, as `dense_order` has them, or null
  // Floats between the targets of two rings; no power of two, or all would meet in one cache set.
  size_t apart() const { return nodes * width + 16; }
};

struct Job {
  Search search;
  const float* targets;  // [rings, rows, width]
  uint32_t* states;      // [rings, steps]
  size_t rings, rows, passes;
  size_t steps() const { return rows * search.places; }
};

// What one worker needs; allocated once.
struct Scratch {
  std::unique_ptr<float[]> owned;
  std::unique_ptr<uint16_t[]> chosen;  // [steps, nodes, kRings]: edges
  std::unique_ptr<uint32_t[]> before;  // [kRings, nodes]: from-nodes of the chosen edges
  int* edges;                          // [nodes, kRings]: the same of one step
  float* alphas;                       // [nodes, kRings]: cheapest walk to each node
  float* base;                         // [nodes, kRings]: the same and u P u
  float* y;                            // [nodes, lanes, kRings]: P u
  float* worth;                        // [kRings, nodes, lanes]: values of the chosen edges
  float* open;                         // [kRings, nodes, width]: targets of the row
  float* next;                         // the same, after the step
  bool no_walk = false;
};

}  // namespace

#define UNSPOOL_KERNEL "encode/survivors_step.hpp"
#include "each_isa.hpp"

namespace {

bool is_dense(const Search& s) {
  return s.sources == s.nodes && s.nodes % kBlock == 0 && s.lanes == kDenseLanes;
}

// slopes [nodes / kBlock, to-nodes, kBlock * parallel, lanes], then squares [places, nodes /
// kBlock, to-nodes, kBlock * parallel]: read from end to end in every step, 1.3 MB at 2 bits.
std::vector<float> dense_order(const Search& s) {
  const size_t edges = s.nodes * s.parallel, block = kBlock * s.parallel;
  std::vector<float> out;
  out.reserve(s.nodes * edges * (s.lanes + s.places));
  for (size_t first = 0; first < edges; first += block)
    for (size_t to = 0; to < s.nodes; ++to)
      for (size_t i = first; i < first + block; ++i)
        for (size_t lane = 0; lane < s.lanes; ++lane)
          out.push_back(s.slopes[(to * s.lanes + lane) * edges + i]);
  for (size_t place = 0; place < s.places; ++place)
    for (size_t first = 0; first < edges; first += block)
      for (size_t to = 0; to < s.nodes; ++to) {
        const float* from = s.squares + (place * s.nodes + to) * edges + first;
        out.insert(out.end(), from, from + block);
      }
  return out;
}

// A new row starts with the same targets for all nodes.
void open_row(const Job& job, size_t row, size_t first, Scratch& w) {
  const Search& s = job.search;
  for (size_t ring = 0; ring < kRings; ++ring) {
    const bool exists = first + ring < job.rings;
    const float* from = job.targets + ((first + ring) * job.rows + row) * s.width;
    for (size_t node = 0; node < s.nodes; ++node) {
      float* to = w.open + ring * s.apart() + node * s.width;
      for (size_t column = 0; column < s.width; ++column) to[column] = exists ? from[column] : 0;
    }
  }
}

void start(const Search& s, bool free, const size_t* nodes, float* alphas) {
  std::fill_n(alphas, s.nodes * kRings, free ? 0.0f : kNever);
  for (size_t ring = 0; !free && ring < kRings; ++ring) alphas[nodes[ring] * kRings + ring] = 0;
}

// Where the walks end; a free end is the cheapest node.
void finish(const Search& s, bool free, size_t* nodes, Scratch& w) {
  if (free) cheapest_nodes<kRings>(s.nodes, w.alphas, nodes);
  for (size_t ring = 0; ring < kRings; ++ring)
    w.no_walk |= w.alphas[nodes[ring] * kRings + ring] == kNever;
}

// One pass from the row `origin` around the ring; leaves the nodes before its step `until`.
void run_pass(const Job& job, bool free, size_t origin, size_t until, size_t first, Scratch& w,
              size_t* nodes, bool keep) {
  const Search& s = job.search;
  const size_t edges = s.sources * s.parallel, steps = job.steps();
  start(s, free, nodes, w.alphas);
  for (size_t i = 0; i < steps; ++i) {
    const size_t place = i % s.places;
    if (place == 0) open_row(job, (origin + i / s.places) % job.rows, first, w);
    UNSPOOL_BEST(step)(s, place, w, w.chosen.get() + i * s.nodes * kRings);
  }
  finish(s, free, nodes, w);
  for (size_t i = steps; i-- > until;) {
    const size_t at = (origin * s.places + i) % steps;
    for (size_t ring = 0; ring < kRings; ++ring) {
      const size_t to = nodes[ring];
      const size_t edge = w.chosen[(i * s.nodes + to) * kRings + ring];
      if (keep && first + ring < job.rings)
        job.states[(first + ring) * steps + at] = s.state[to * edges + edge];
      nodes[ring] = s.source[to * s.sources + (edge >> s.log_parallel)];
    }
  }
}

void encode_group(const Job& job, size_t first, Scratch& w) {
  const size_t places = job.search.places;
  size_t nodes[kRings] = {};
  const size_t passes = job.search.nodes == 1 ? 1 : job.passes;
  go_round(job.rows, passes, [&](bool free, size_t origin, size_t until, bool last) {
    run_pass(job, free, origin, until * places, first, w, nodes, last);
  });
}

Scratch allocate(const Job& job) {
  const Search& s = job.search;
  const size_t cells = s.nodes * kRings;
  Scratch w;
  static_assert(sizeof(int) == sizeof(float), "one allocation for both");
  w.owned.reset(new float[cells * (3 + 2 * s.lanes) + 2 * kRings * s.apart()]);
  w.before.reset(new uint32_t[cells]);
  w.chosen.reset(new uint16_t[job.steps() * cells]);
  w.alphas = w.owned.get();
  w.base = w.alphas + cells;
  w.y = w.base + cells;
  w.worth = w.y + cells * s.lanes;
  w.open = w.worth + cells * s.lanes;
  w.next = w.open + kRings * s.apart();
  w.edges = reinterpret_cast<int*>(w.next + kRings * s.apart());
  return w;
}

}  // namespace

// Shapes as in Search and Job. 0: done, 1: no memory, 2: a ring has no walk of finite values.
extern "C" __attribute__((visibility("default"))) int unspool_survivors(
    const float* squares, const float* slopes, const float* values, const uint32_t* source,
    const uint32_t* state, const float* metric, const float* feedback, size_t nodes, size_t sources,
    size_t parallel, size_t lanes, size_t places, size_t width, const float* targets, size_t rings,
    size_t rows, size_t passes, size_t threads, uint32_t* states) {
  size_t log_parallel = 0;
  while ((size_t{1} << log_parallel) < parallel) ++log_parallel;
  Job job{{squares, slopes, values, source, state, metric, feedback, nodes, sources, parallel,
           lanes, log_parallel, places, width, nullptr},
          targets, states, rings, rows, passes};
  try {
    std::vector<float> ordered;
    if (is_dense(job.search)) {
      ordered = dense_order(job.search);
      job.search.dense = ordered.data();
    }
    const auto scratch = by_groups<kRings>(
        rings, threads, [&] { return allocate(job); },
        [&](size_t first, Scratch& mine) { encode_group(job, first, mine); });
    for (const Scratch& w : scratch)
      if (w.no_walk) return kNoWalk;
  } catch (const std::bad_alloc&) {
    return kNoMemory;
  }
  return 0;
}
