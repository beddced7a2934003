// What the searches share that take many rings at a time: rings side by side, workers, free ends.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>
#include <vector>

#include "pool.hpp"

namespace unspool {

// Memory whose vectors never cross a cache line: half of them did, at a third of the speed.
template <class Number>
struct Aligned {
  struct Free {
    void operator()(Number* at) const { operator delete[](at, std::align_val_t(64)); }
  };
  std::unique_ptr<Number[], Free> owned;
  explicit Aligned(std::size_t count)
      : owned(static_cast<Number*>(operator new[](count * sizeof(Number), std::align_val_t(64)))) {}
  Number* get() const { return owned.get(); }
};

// targets [rings, row] of the group from `first` on -> out [row, kRings]. Rings beyond the last are
// zeros; their walks are thrown away.
template <std::size_t kRings>
void transpose_targets(const float* targets, std::size_t rings, std::size_t row, std::size_t first,
                       float* out) {
  const std::size_t here = std::min(kRings, rings - first);
  for (std::size_t i = 0; i < row; ++i) {
    for (std::size_t ring = 0; ring < here; ++ring)
      out[i * kRings + ring] = targets[(first + ring) * row + i];
    for (std::size_t ring = here; ring < kRings; ++ring) out[i * kRings + ring] = 0;
  }
}

// The cheapest of walks [count, kRings] for every ring, the first of equals.
template <std::size_t kRings, class Cost>
void cheapest_nodes(std::size_t count, const Cost* walks, std::size_t* nodes) {
  for (std::size_t ring = 0; ring < kRings; ++ring) {
    nodes[ring] = 0;
    for (std::size_t node = 1; node < count; ++node)
      if (walks[node * kRings + ring] < walks[nodes[ring] * kRings + ring]) nodes[ring] = node;
  }
}

// The passes around rings of so many steps, as passes.py has them: one_pass(free, origin, until,
// last) starts at the step `origin`, anywhere where it is free, and traces back to `until`.
template <class Pass>
void go_round(std::size_t steps, std::size_t passes, const Pass& one_pass) {
  const std::size_t half = steps / 2;
  for (std::size_t pass = 0; pass < passes; ++pass) {
    const bool last = pass + 1 == passes;
    const std::size_t origin = pass % 2 ? 0 : half, other = pass % 2 ? half : steps - half;
    one_pass(pass == 0, origin, last ? 0 : other, last);
  }
}

// encode(first ring, scratch) for every group of rings, shared among threads; what they used.
template <std::size_t kRings, class Allocate, class Encode>
auto by_groups(std::size_t rings, std::size_t threads, const Allocate& allocate,
               const Encode& encode) {
  const std::size_t groups = (rings + kRings - 1) / kRings;
  std::vector<decltype(allocate())> scratch;
  for (std::size_t i = 0; i < std::max<std::size_t>(1, std::min(threads, groups)); ++i)
    scratch.push_back(allocate());
  share(groups, scratch.size(), [&](std::size_t worker, std::size_t group) {
    encode(group * kRings, scratch[worker]);
  });
  return scratch;
}

}  // namespace unspool
