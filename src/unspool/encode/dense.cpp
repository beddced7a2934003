// The best tail-biting walk through a dense trellis, many rings at a time. dense.py states the
// algorithm and holds the numpy twin, which gives the same states bit for bit.
//
// SIMD runs over rings: 32 of them in one vector of bytes. A step's costs are looked up: one table
// of 15 x 15 pairs of levels (7 KiB) or of 63 levels (2 KiB) per entry of `tables`, so that these
// and the walks (8 KiB) stay in the first cache while the edges' offsets stream from the second.

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

#include "encode/groups.hpp"

namespace {

using namespace unspool;
using std::size_t;

constexpr size_t kRings = 32;   // rings in a group
constexpr size_t kAbreast = 4;  // to-nodes advanced together
constexpr uint8_t kMost = 0xff;  // what a cost is at most
constexpr size_t kFollowed = 16;  // parallel edges from which on a pass notes whence walks come
constexpr int kNoMemory = 1;

struct Dense {
  const float* levels;      // [lanes, count]: the values of each lane
  const uint16_t* offsets;  // [nodes / 4, from-nodes, 4 to-nodes, parallel, tables]
  const uint32_t* state;    // [nodes, from-nodes * parallel]
  size_t nodes, parallel, lanes, count, tables;
  float units;  // costs are integers: squares times `units`, kMost at most
};

struct Job {
  Dense trellis;
  const float* targets;  // [rings, steps, lanes]
  uint32_t* states;      // [rings, steps]
  uint8_t* lost;         // [rings]: whether costs of the walk found were cut off
  size_t rings, steps, passes;
};

struct Best {
  int cost;
  size_t edge;
};

// What one worker needs; allocated once.
struct Scratch {
  Aligned<float> targets;   // [steps, lanes, kRings]
  Aligned<uint8_t> levels;  // [lanes, count, kRings]
  Aligned<uint8_t> tables;  // [tables, entries, kRings]
  Aligned<uint8_t> walks;   // [steps + 1, nodes, kRings]: cheapest walk to each node
  Aligned<uint8_t> whence;  // of the same shape where it is noted: the node before
  Aligned<uint8_t> taken;   // [steps + 1, kRings]: what was taken from all walks of a step
};

}  // namespace

#define UNSPOOL_KERNEL "encode/dense_step.hpp"
#include "each_isa.hpp"

namespace {

// Whether walks' nodes are noted on the way: else the trace-back looks at all edges into a node.
bool followed(const Dense& t) { return t.parallel >= kFollowed && t.nodes <= 256; }

// The walks before the first step: free, or each ring's from its node alone.
void begin(const Dense& t, bool free, const size_t* nodes, uint8_t* walks) {
  std::fill_n(walks, t.nodes * kRings, free ? uint8_t(0) : kMost);
  for (size_t ring = 0; !free && ring < kRings; ++ring) walks[nodes[ring] * kRings + ring] = 0;
}

// One pass from the boundary at `origin` around the ring. Traces back to the step `until` and
// leaves the nodes before it in `nodes`; writes the states on the way where they are to be kept.
void run_pass(const Job& job, bool free, size_t origin, size_t until, size_t first,
              Scratch& scratch, size_t* nodes, bool keep) {
  const Dense& t = job.trellis;
  const size_t layer = t.nodes * kRings;
  uint8_t *tables = scratch.tables.get(), *walks = scratch.walks.get();
  uint8_t *whence = scratch.whence.get(), *taken = scratch.taken.get();
  const auto tabulate = [&](size_t i) {
    const size_t at = (origin + i) % job.steps * t.lanes * kRings;
    UNSPOOL_BEST(cost_tables)(t, scratch.targets.get() + at, scratch.levels.get(), tables);
  };
  begin(t, free, nodes, walks);
  // The last layer matters only where the end is free: else the trace-back starts from its node.
  const size_t forward = free ? job.steps : job.steps - 1;
  for (size_t i = 0; i < forward; ++i) {
    tabulate(i);
    UNSPOOL_BEST(step)(t, tables, walks + i * layer, walks + (i + 1) * layer,
                       followed(t) ? whence + (i + 1) * layer : nullptr, taken + (i + 1) * kRings);
  }
  size_t start[kRings];
  std::copy_n(nodes, kRings, start);
  if (free) cheapest_nodes<kRings>(t.nodes, walks + job.steps * layer, nodes);
  for (size_t i = job.steps; i-- > until;) {
    tabulate(i);
    for (size_t ring = 0; ring < kRings && first + ring < job.rings; ++ring) {
      const size_t at = (i + 1) * layer + nodes[ring] * kRings + ring;
      const int known = i < forward ? walks[at] + taken[(i + 1) * kRings + ring] : -1;
      size_t from = 0, last = t.nodes;
      if (i == 0 && !free)
        from = start[ring], last = from + 1;
      else if (followed(t) && i < forward)
        from = whence[at], last = from + 1;
      const Best best = UNSPOOL_BEST(cheapest_edge)(t, tables, walks + i * layer, nodes[ring],
                                                    ring, from, last, known);
      if (keep) {
        job.states[(first + ring) * job.steps + (origin + i) % job.steps] =
            t.state[nodes[ring] * t.nodes * t.parallel + best.edge];
        job.lost[first + ring] |= best.cost == kMost;
      }
      nodes[ring] = best.edge / t.parallel;
    }
  }
}

void encode_group(const Job& job, size_t first, Scratch& scratch) {
  transpose_targets<kRings>(job.targets, job.rings, job.steps * job.trellis.lanes, first,
                            scratch.targets.get());
  size_t nodes[kRings] = {};
  go_round(job.steps, job.passes, [&](bool free, size_t origin, size_t until, bool last) {
    run_pass(job, free, origin, until, first, scratch, nodes, last);
  });
}

Scratch allocate(const Job& job) {
  const Dense& t = job.trellis;
  const size_t entries = t.tables == t.lanes ? t.count : t.count * t.count;
  return {Aligned<float>(job.steps * t.lanes * kRings),
          Aligned<uint8_t>(t.lanes * t.count * kRings),
          Aligned<uint8_t>(t.tables * entries * kRings),
          Aligned<uint8_t>((job.steps + 1) * t.nodes * kRings),
          Aligned<uint8_t>(followed(t) ? (job.steps + 1) * t.nodes * kRings : 0),
          Aligned<uint8_t>((job.steps + 1) * kRings)};
}

}  // namespace

// Shapes as in Dense and Job. 0: done, 1: no memory.
extern "C" __attribute__((visibility("default"))) int unspool_viterbi_dense(
    const float* levels, const uint16_t* offsets, const uint32_t* state, size_t nodes,
    size_t parallel, size_t lanes, size_t count, size_t tables, float units,
    const float* targets, size_t rings, size_t steps, size_t passes, size_t threads,
    uint32_t* states, uint8_t* lost) {
  const Job job{{levels, offsets, state, nodes, parallel, lanes, count, tables, units},
                targets, states, lost, rings, steps, passes};
  try {
    by_groups<kRings>(
        rings, threads, [&] { return allocate(job); },
        [&](size_t first, Scratch& mine) { encode_group(job, first, mine); });
  } catch (const std::bad_alloc&) {
    return kNoMemory;
  }
  return 0;
}
