// The best tail-biting walk through a trellis, many rings at a time. viterbi.py states the
// algorithm and holds the numpy twin, which gives the same states bit for bit.
//
// SIMD runs over rings: 16 rings walk the trellis together, table entries are broadcast. A table
// entry is then read once for 16 rings, so even tables far beyond the cache stream more slowly than
// the arithmetic runs (4 lanes: 20 bytes for 40 vector operations).

#include <cmath>
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
constexpr float kNever = std::numeric_limits<float>::infinity();
constexpr int kNoEdge = 0x7fffffff;
constexpr int kNoMemory = 1;
constexpr int kNoWalk = 2;

// In-edges are grouped by to-node, then by from-node, then the parallel edges between the two:
// edge = source * parallel + copy, sources * parallel edges in all; powers of two, 2 edges or more.
struct Trellis {
  const float* table;      // [nodes, lanes + 1, edges]: sum of v*v, then -2v of each lane
  const uint32_t* source;  // [nodes, sources]: from-nodes
  const uint32_t* state;   // [nodes, edges]
  size_t nodes, sources, parallel, lanes, log_parallel;
  size_t edges() const { return sources * parallel; }
};

struct Job {
  Trellis trellis;
  const float* targets;  // [rings, steps, lanes]
  uint32_t* states;      // [rings, steps]
  size_t rings, steps, passes;
};

// What one worker needs; allocated once.
struct Scratch {
  std::unique_ptr<float[]> owned;
  float* targets;  // [steps, lanes, kRings]
  float* alphas;   // [steps + 1, nodes, kRings]: cheapest walk to each node
  float* costs;    // [edges]
  bool no_walk = false;
};

struct Best {
  float cost;
  size_t edge;
};

}  // namespace

#define UNSPOOL_KERNEL "encode/viterbi_step.hpp"
#include "each_isa.hpp"

namespace {

void start(const Trellis& t, bool free, const size_t* nodes, float* alphas) {
  std::fill_n(alphas, t.nodes * kRings, free ? 0.0f : kNever);
  if (free) return;
  for (size_t ring = 0; ring < kRings; ++ring) alphas[nodes[ring] * kRings + ring] = 0;
}

// One pass from the boundary at `origin` around the ring. Traces back to the step `until` and
// leaves the nodes before it in `nodes`; writes the states on the way where they are to be kept.
void run_pass(const Job& job, bool free, size_t origin, size_t until, size_t first,
              Scratch& scratch, size_t* nodes, bool keep) {
  const Trellis& t = job.trellis;
  const size_t layer = t.nodes * kRings;
  const auto at = [&](size_t i) {
    return scratch.targets + (origin + i) % job.steps * t.lanes * kRings;
  };
  float* alphas = scratch.alphas;
  start(t, free, nodes, alphas);
  // The last layer matters only where the end is free: else the trace-back starts from its node.
  const size_t forward = free ? job.steps : job.steps - 1;
  for (size_t i = 0; i < forward; ++i)
    UNSPOOL_BEST(step)(t, at(i), alphas + i * layer, alphas + (i + 1) * layer);
  if (free) cheapest_nodes<kRings>(t.nodes, alphas + job.steps * layer, nodes);
  uint32_t states[kRings];
  for (size_t i = job.steps; i-- > until;) {
    UNSPOOL_BEST(step_back)(t, at(i), alphas + i * layer, scratch, nodes, states);
    for (size_t ring = 0; keep && ring < kRings && first + ring < job.rings; ++ring)
      job.states[(first + ring) * job.steps + (origin + i) % job.steps] = states[ring];
  }
}

void encode_group(const Job& job, size_t first, Scratch& scratch) {
  transpose_targets<kRings>(job.targets, job.rings, job.steps * job.trellis.lanes, first,
                            scratch.targets);
  size_t nodes[kRings] = {};
  // Without memory there is one node, and the free pass is already exact.
  const size_t passes = job.trellis.nodes == 1 ? 1 : job.passes;
  go_round(job.steps, passes, [&](bool free, size_t origin, size_t until, bool last) {
    run_pass(job, free, origin, until, first, scratch, nodes, last);
  });
}

Scratch allocate(const Job& job) {
  const Trellis& t = job.trellis;
  const size_t targets = job.steps * t.lanes * kRings;
  const size_t alphas = (job.steps + 1) * t.nodes * kRings;
  Scratch scratch;
  scratch.owned.reset(new float[targets + alphas + t.edges()]);
  scratch.targets = scratch.owned.get();
  scratch.alphas = scratch.targets + targets;
  scratch.costs = scratch.alphas + alphas;
  return scratch;
}

}  // namespace

// Shapes as in Trellis and Job. 0: done, 1: no memory, 2: a ring has no walk of finite values.
extern "C" __attribute__((visibility("default"))) int unspool_viterbi(
    const float* table, const uint32_t* source, const uint32_t* state, size_t nodes, size_t sources,
    size_t parallel, size_t lanes, const float* targets, size_t rings, size_t steps, size_t passes,
    size_t threads, uint32_t* states) {
  size_t log_parallel = 0;
  while ((size_t{1} << log_parallel) < parallel) ++log_parallel;
  const Job job{{table, source, state, nodes, sources, parallel, lanes, log_parallel},
                targets, states, rings, steps, passes};
  try {
    const auto scratch = by_groups<kRings>(
        rings, threads, [&] { return allocate(job); },
        [&](size_t first, Scratch& mine) { encode_group(job, first, mine); });
    for (const Scratch& s : scratch)
      if (s.no_walk) return kNoWalk;
  } catch (const std::bad_alloc&) {
    return kNoMemory;
  }
  return 0;
}
