// The best tail-biting walk through a small shift-register trellis, in 16 bits. binned.py states
// the algorithm and holds the numpy twin, which gives the same states bit for bit.
//
// SIMD runs over nodes: all walks of a ring are one register, and what its edges cost is one load
// from a table by the target's bin. Some rings walk together: a step waits for the one before.

#include <cstddef>
#include <cstdint>
#include <new>

#include "encode/groups.hpp"

namespace {

using namespace unspool;
using std::size_t;

constexpr size_t kRings = 4;  // that walk together
constexpr uint16_t kMost = 0xffff;  // what a walk costs at most
constexpr int kNoMemory = 1;

struct Binned {
  const uint16_t* costs;   // [bins, 2, nodes], 64-aligned: cheapest edge from even, odd from-node
  const uint16_t* states;  // [bins, 2, nodes]: and its state
  size_t nodes, bins;
  float scale, middle;  // a target's bin is the whole part of target * scale + middle
};

struct Job {
  Binned trellis;
  const float* targets;  // [rings, steps]
  uint32_t* states;      // [rings, steps]
  uint8_t* lost;         // [rings]: whether a target has no bin or a walk costs too much
  size_t rings, steps, passes;
};

// What one worker needs; allocated once.
struct Scratch {
  Aligned<uint16_t> bins;  // [kRings, steps]
  Aligned<uint16_t> even;  // [steps, kRings, nodes]: all ones where the even from-node was better
};

}  // namespace

#define UNSPOOL_KERNEL "encode/binned_step.hpp"
#include "each_isa.hpp"

namespace {

void encode_group(const Job& job, size_t first, Scratch& scratch) {
  UNSPOOL_BEST(find_bins)(job, first, scratch);
  size_t nodes[kRings] = {};
  go_round(job.steps, job.passes, [&](bool free, size_t origin, size_t until, bool last) {
    UNSPOOL_BEST(run_pass)(job, free, origin, until, first, scratch, nodes, last);
  });
}

Scratch allocate(const Job& job) {
  return {Aligned<uint16_t>(job.steps * kRings),
          Aligned<uint16_t>(job.steps * kRings * job.trellis.nodes)};
}

}  // namespace

// Shapes as in Binned and Job; 8 or 16 nodes. 0: done, 1: no memory.
extern "C" __attribute__((visibility("default"))) int unspool_viterbi_binned(
    const uint16_t* costs, const uint16_t* edges, size_t nodes, size_t bins, float scale,
    float middle, const float* targets, size_t rings, size_t steps, size_t passes, size_t threads,
    uint32_t* states, uint8_t* lost) {
  const Job job{{costs, edges, nodes, bins, scale, middle},
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
