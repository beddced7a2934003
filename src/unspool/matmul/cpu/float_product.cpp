// y = x W^T in float32: cuts the rows of W into panels, shares them out.

#include "matmul/cpu/float_product.hpp"

#include <algorithm>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "matmul/cpu/features.hpp"
#include "pool.hpp"

#if defined(__GNUC__) && !defined(__clang__)
#define UNSPOOL_UNROLL _Pragma("GCC unroll 16")
#else
#define UNSPOOL_UNROLL
#endif

#define UNSPOOL_INLINE inline __attribute__((always_inline))

// As each_isa.hpp does, with a choice for the caller, and AVX2 intrinsics in the second copy (whose
// target GCC 12 does not tell the preprocessor).
namespace {
using namespace unspool;
namespace baseline {
#include "simd.hpp"
#include "matmul/cpu/quick_rows.hpp"
#include "matmul/cpu/float_panel.hpp"
}  // namespace baseline
}  // namespace

#ifdef UNSPOOL_X86_TARGETS
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#define UNSPOOL_AVX2
namespace {
namespace v3 {
#include "simd.hpp"
#include "matmul/cpu/quick_rows.hpp"
#include "matmul/cpu/float_panel.hpp"
}  // namespace v3
}  // namespace
#pragma GCC pop_options
#endif

namespace {

constexpr int64_t kPanelRows = 32;  // 64 KiB of weights, read from the L2 once per 3 rows of x

int64_t up(int64_t size, int64_t unit) { return (size + unit - 1) / unit * unit; }

// Threads that pay for their start (about 20 us each): decoding takes 0.2 ns a weight and each row
// of x 0.02 ns.
int64_t useful_threads(const Multiply& job, int64_t threads) {
  const double ns = double(job.matrix.n) * double(job.matrix.k) * (0.2 + 0.02 * double(job.count));
  return std::max<int64_t>(1, std::min<int64_t>(threads, int64_t(ns / 50e3)));
}

// x chunk by chunk, [chunks, count, chunk_stride], zeros beyond the columns: a chunk of many rows
// is one stream, not pieces a row apart (28 to 49 GFLOP/s at 256 rows of 4096, one Zen 3 core).
std::vector<float> by_chunks(const Multiply& job, const float* x) {
  const int64_t k = job.matrix.k;
  std::vector<float> out(std::size_t(job.chunks() * job.count * job.chunk_stride));
  for (int64_t c = 0; c < job.chunks(); ++c)
    for (int64_t i = 0; i < job.count; ++i)
      std::copy(x + i * k + c * job.chunk, x + i * k + std::min(k, (c + 1) * job.chunk),
                out.begin() + (c * job.count + i) * job.chunk_stride);
  return out;
}

void run_panel(Path path, const Multiply& job, int64_t row, int64_t rows,
               const PanelScratch& scratch) {
#ifdef UNSPOOL_X86_TARGETS
  if (path == kAvx2 || path == kAvx512) return v3::panel(job, row, rows, scratch);
#endif
  (void)path;
  baseline::panel(job, row, rows, scratch);
}

struct OwnedScratch {
  std::vector<float> weights, scales, levels;
  std::vector<uint16_t> operands;
  OwnedScratch(const Multiply& job, int64_t rows)
      : weights(std::size_t(rows * job.chunk_stride)),
        scales(std::size_t(rows)),
        levels(256),
        operands(std::size_t(job.chunk)) {}
  PanelScratch view() { return {weights.data(), scales.data(), levels.data(), operands.data()}; }
};

void run(Path path, const Multiply& job, int64_t threads) {
  const int64_t tall = job.matrix.tile_rows;
  const int64_t rows =
      job.count <= 2 ? tall : tall * std::max<int64_t>(1, kPanelRows / tall);
  const int64_t panels = (job.matrix.n + rows - 1) / rows;
  threads = useful_threads(job, threads);
  std::vector<OwnedScratch> scratch(std::size_t(threads), OwnedScratch(job, rows));
  share(std::size_t(panels), std::size_t(threads), [&](std::size_t worker, std::size_t panel) {
    const int64_t row = int64_t(panel) * rows;
    run_panel(path, job, row, std::min(rows, job.matrix.n - row), scratch[worker].view());
  });
}

}  // namespace

void unspool::float_product(const CodedMatrix& m, Path path, const float* x, int64_t count,
                            int64_t threads, float* y) {
  const int64_t columns = m.tile_columns;
  Multiply job{m, x, count, m.k, 0, y, 0, 0};
  job.chunk = std::max(columns, kChunk / columns * columns);
  job.chunk_stride = up(job.chunk, kPartials);
  job.chunk_distance = job.chunk;
  std::vector<float> copy;
  if (count > 2 || job.chunk % kPartials || m.k % kPartials) {
    copy = by_chunks(job, x);
    job.x = copy.data();
    job.x_stride = job.chunk_stride;
    job.chunk_distance = count * job.chunk_stride;
  }
  run(path, job, threads);
}
