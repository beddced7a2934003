// The nearest value by binary search on float32 thresholds. nearest.py derives the thresholds, so
// that "x >= threshold" is the whole decision, ties included, and holds the numpy twin.

#include <cstddef>
#include <cstdint>

#include "pool.hpp"

namespace {

constexpr std::size_t kTogether = 16;  // searches in flight; each alone waits for its loads
constexpr std::size_t kChunk = 1 << 14;

// Counts the thresholds <= x of each x. Each round halves what is left, the same for all.
template <std::size_t Together>
void search(const float* thresholds, std::size_t count, const uint32_t* states, const float* x,
            uint32_t* out) {
  std::size_t below[Together] = {};
  std::size_t left = count;
  while (left > 0) {
    const std::size_t half = (left + 1) / 2;
    for (std::size_t i = 0; i < Together; ++i)
      below[i] += thresholds[below[i] + half - 1] <= x[i] ? half : 0;
    left -= half;
  }
  for (std::size_t i = 0; i < Together; ++i) out[i] = states[below[i]];
}

}  // namespace

// thresholds [units, values - 1] ascending, states [units, values], targets and out [units, count].
extern "C" __attribute__((visibility("default"))) int unspool_nearest(
    const float* thresholds, const uint32_t* states, std::size_t units, std::size_t values,
    const float* targets, std::size_t count, std::size_t threads, uint32_t* out) {
  const std::size_t chunks = (count + kChunk - 1) / kChunk;
  unspool::share(units * chunks, threads, [&](std::size_t, std::size_t item) {
    const std::size_t unit = item / chunks, first = item % chunks * kChunk;
    const std::size_t last = std::min(first + kChunk, count);
    const float* t = thresholds + unit * (values - 1);
    const uint32_t* s = states + unit * values;
    const float* x = targets + unit * count;
    uint32_t* o = out + unit * count;
    std::size_t i = first;
    for (; i + kTogether <= last; i += kTogether)
      search<kTogether>(t, values - 1, s, x + i, o + i);
    for (; i < last; ++i) search<1>(t, values - 1, s, x + i, o + i);
  });
  return 0;
}
