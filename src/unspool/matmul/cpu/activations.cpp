#include "matmul/cpu/activations.hpp"

#include <algorithm>
#include <cstring>

#include "encode/rotate.hpp"
#include "pool.hpp"

#define UNSPOOL_KERNEL "matmul/cpu/quantize_rows.hpp"
#include "each_isa.hpp"

namespace unspool {
namespace {

constexpr int64_t kRowsWorthThreads = 8;

// One row as float32 [k], padded and rotated.
void turn_row(const Rows& rows, const Turn& turn, int64_t row, int64_t k, float* out) {
  if (rows.type == kFloat32)
    std::memcpy(out, static_cast<const float*>(rows.x) + row * rows.stride,
                std::size_t(rows.columns) * sizeof(float));
  else
    UNSPOOL_BEST(widen_bfloat16)
    (static_cast<const uint16_t*>(rows.x) + row * rows.stride, rows.columns, out);
  std::fill(out + rows.columns, out + k, 0.0f);
  if (turn.size)
    rotate_row(out, std::size_t(k), std::size_t(turn.size), turn.scale, turn.before, turn.after,
               out);
}

void quantize_row(const float* x, const ActivationLayout& at, const Activations& out, int64_t row) {
  const auto quantize = UNSPOOL_BEST(quantize_block);
  const auto sum = UNSPOOL_BEST(sum_of);
  for (int64_t column = 0; column < at.k; column += kActivationBlock) {
    const int64_t width = std::min(kActivationBlock, at.k - column), m = out.m;
    int8_t* q = const_cast<int8_t*>(out.at(row, column));
    const_cast<float*>(out.scales)[column / kActivationBlock * m + row] =
        quantize(x + column, width, q);
    for (int64_t c = 0; c < width; c += at.group)
      const_cast<int32_t*>(out.starts)[(column + c) / at.group * m + row] =
          -at.zero * sum(q + c, std::min(at.group, width - c));
    if (at.lanes == 2) UNSPOOL_BEST(by_lanes)(q, width);
  }
}

}  // namespace

void turn_rows(const Rows& rows, const Turn& turn, int64_t k, int64_t threads, float* out) {
  const int64_t useful = rows.m < kRowsWorthThreads ? 1 : threads;
  share(std::size_t(rows.m), std::size_t(useful), [&](std::size_t, std::size_t row) {
    turn_row(rows, turn, int64_t(row), k, out + int64_t(row) * k);
  });
}

Activations Quantized::fill(const Rows& rows, const ActivationLayout& layout, int64_t threads) {
  const int64_t m = rows.m, k = layout.k, group = layout.group;
  const int64_t chunks = (k + kChunkColumns - 1) / kChunkColumns;
  const int64_t useful = m < kRowsWorthThreads ? 1 : std::min(threads, m);
  q_.resize(std::size_t(chunks * m * kChunkColumns));
  starts_.resize(std::size_t((k + group - 1) / group * m));
  scales_.resize(std::size_t((k + kActivationBlock - 1) / kActivationBlock * m));
  turned_.resize(std::size_t(useful * k));
  const Activations out{m, q_.data(), starts_.data(), scales_.data()};
  share(std::size_t(m), std::size_t(useful), [&](std::size_t worker, std::size_t row) {
    float* const turned = turned_.data() + int64_t(worker) * k;
    turn_row(rows, layout.turn, int64_t(row), k, turned);
    quantize_row(turned, layout, out, int64_t(row));
  });
  return out;
}

void round_to_bfloat16(int64_t count, float* x) {
  uint16_t some[256];
  for (int64_t at = 0; at < count; at += 256) {
    const int64_t here = std::min<int64_t>(256, count - at);
    UNSPOOL_BEST(narrow_bfloat16)(x + at, here, some);
    UNSPOOL_BEST(widen_bfloat16)(some, here, x + at);
  }
}

void narrow(const float* x, int64_t count, int32_t type, void* out) {
  if (type == kFloat32)
    std::memcpy(out, x, std::size_t(count) * sizeof(float));
  else
    UNSPOOL_BEST(narrow_bfloat16)(x, count, static_cast<uint16_t*>(out));
}

}  // namespace unspool
