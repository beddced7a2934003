// y = x W^T in bfloat16 pairs, compiled for AVX512_BF16 and in plain C++ (the twin of that in
// tests).

#include <algorithm>
#include <numeric>
#include <vector>

#include "matmul/cpu/activations.hpp"
#include "matmul/cpu/pairs.hpp"
#include "pool.hpp"

#define UNSPOOL_INLINE inline
#define UNSPOOL_UNROLL
namespace unspool {
namespace {
namespace portable {
#include "matmul/cpu/lanes_portable.hpp"
#include "matmul/cpu/quick_rows.hpp"
#include "matmul/cpu/pair_kernel.hpp"
}  // namespace portable
}  // namespace
}  // namespace unspool
#undef UNSPOOL_INLINE
#undef UNSPOOL_UNROLL

#ifdef UNSPOOL_X86_TARGETS
#include <immintrin.h>
#define UNSPOOL_INLINE inline __attribute__((always_inline))
#define UNSPOOL_UNROLL _Pragma("GCC unroll 16")
#define UNSPOOL_BFLOAT16
#pragma GCC push_options
#pragma GCC target( \
    "arch=x86-64-v3,avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vbmi2,avx512vnni," \
    "avx512bf16")
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in GCC 12's own headers (PR 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
namespace unspool {
namespace {
namespace avx512 {
#include "matmul/cpu/lanes_avx512.hpp"
#include "matmul/cpu/quick_rows.hpp"
#include "matmul/cpu/pair_kernel.hpp"
}  // namespace avx512
}  // namespace
}  // namespace unspool
#pragma GCC diagnostic pop
#pragma GCC pop_options
#endif

namespace unspool {
namespace {

constexpr int64_t kRows = 64;  // of a strip

void run_strip(Path path, const PairJob& job, int64_t strip, const PairScratch& scratch) {
#ifdef UNSPOOL_X86_TARGETS
  if (path == kAvx512) return avx512::pair_strip(job, strip, scratch);
#endif
  (void)path;
  portable::pair_strip(job, strip, scratch);
}

// x rounded to bfloat16, chunk by chunk: [chunks, count, 256].
std::vector<uint16_t> rounded(const CodedMatrix& m, const float* x, int64_t count) {
  const int64_t chunks = (m.k + kPairColumns - 1) / kPairColumns;
  std::vector<uint16_t> out(std::size_t(chunks * count * kPairColumns));
  for (int64_t c = 0; c < chunks; ++c)
    for (int64_t i = 0; i < count; ++i)
      narrow(x + i * m.k + c * kPairColumns, std::min(kPairColumns, m.k - c * kPairColumns),
             kBfloat16, out.data() + (c * count + i) * kPairColumns);
  return out;
}

struct OwnedPairScratch {
  std::vector<uint8_t> levels;
  std::vector<float> totals, scales, row, table;
  std::vector<uint16_t> operands;
  explicit OwnedPairScratch(int64_t count)
      : levels(std::size_t(kPairColumns * kRows * 2)),
        totals(std::size_t(count * kRows)),
        scales(std::size_t(kRows)),
        row(std::size_t(kPairColumns)),
        table(256),
        operands(std::size_t(kPairColumns)) {}
  PairScratch view() {
    return {levels.data(), totals.data(), scales.data(), row.data(), table.data(), operands.data()};
  }
};

int64_t pair_group(const CodedMatrix& m) {
  return m.scale_per_row() ? kPairColumns : std::gcd(m.block, kPairColumns);
}

}  // namespace

bool has_pairs(const CodedMatrix& m) {
  return kPairColumns % m.tile_columns == 0 && m.k % 2 == 0 && pair_group(m) % 2 == 0 &&
         (m.length <= 256);
}

bool runs_pairs(Path path) {
  return path == kPortable || (path == kAvx512 && runs(kAvx512) && runs_bfloat16());
}

void pair_product(const CodedMatrix& m, Path path, const float* x, int64_t count, int64_t threads,
                  float* y) {
  const std::vector<uint16_t> pairs = rounded(m, x, count);
  const PairJob job{m, pairs.data(), count, pair_group(m), y};
  const int64_t strips = (m.n + kRows - 1) / kRows, useful = std::min(threads, strips);
  std::vector<OwnedPairScratch> scratch(static_cast<std::size_t>(useful), OwnedPairScratch(count));
  share(std::size_t(strips), std::size_t(useful),
        [&](std::size_t worker, std::size_t strip) {
          run_strip(path, job, int64_t(strip), scratch[worker].view());
        });
}

}  // namespace unspool
