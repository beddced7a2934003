// The look-up kernel, compiled for AVX2, for AVX-512, and for a twin of the latter in plain C++.
//
// State of the AVX-512 copy: compiled, and its source run through the twin by the tests; it has not
// been run on a processor with AVX-512 yet. The AVX2 copy has been run.

#include "matmul/cpu/lookup.hpp"

#include "matmul/cpu/features.hpp"

// The twin is for tests: neither inlined nor unrolled, which would be megabytes of machine code.
#define UNSPOOL_INLINE inline
#define UNSPOOL_UNROLL
#define UNSPOOL_UNROLL_ROWS
namespace unspool {
namespace {
namespace twin {
#include "matmul/cpu/avx512_lanes.hpp"
#include "matmul/cpu/lookup_panel.hpp"
}  // namespace twin
}  // namespace
}  // namespace unspool

#ifdef UNSPOOL_X86_TARGETS
#include <immintrin.h>
#undef UNSPOOL_INLINE
#undef UNSPOOL_UNROLL
#define UNSPOOL_INLINE inline __attribute__((always_inline))
#define UNSPOOL_UNROLL _Pragma("GCC unroll 16")

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace unspool {
namespace {
namespace avx2 {
#include "matmul/cpu/avx2_lanes.hpp"
#include "matmul/cpu/lookup_panel.hpp"
}  // namespace avx2
}  // namespace
}  // namespace unspool
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3,avx512f,avx512bw,avx512vl,avx512vbmi")
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in GCC 12's own headers (PR 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
#define UNSPOOL_NATIVE_LANES
#undef UNSPOOL_UNROLL_ROWS
#define UNSPOOL_UNROLL_ROWS UNSPOOL_UNROLL
namespace unspool {
namespace {
namespace avx512 {
#include "matmul/cpu/avx512_lanes.hpp"
#include "matmul/cpu/lookup_panel.hpp"
}  // namespace avx512
}  // namespace
}  // namespace unspool
#undef UNSPOOL_NATIVE_LANES
#pragma GCC diagnostic pop
#pragma GCC pop_options
#endif

namespace unspool {
namespace {

int second_stride(const CodedMatrix& m) { return m.planes == 2 ? m.stride[1] : 0; }

void plan_table(const CodedMatrix& m, LookUp& plan) {
  for (int32_t lane = 0; lane < m.lanes; ++lane)
    for (int32_t i = 0; i < kTableEntries; ++i) {
      const int64_t state = i & ((1 << plan.index_bits) - 1);
      const uint32_t operand = entry(m.entries, m.entry_bytes, state * m.lanes + lane);
      plan.table[lane][i] = int8_t(m.values[operand] / m.unit);
    }
}

void plan_deinterleave(int qwords, LookUp& plan) {
  for (int j = 0; j < qwords; ++j)
    for (int t = 0; t < kTilesAcross; ++t) {
      const int at = t * qwords + j, pair = at / 16;
      plan.from[j][pair][t] = uint64_t(at % 16);
      plan.tiles[j][pair] = uint8_t(plan.tiles[j][pair] | 1 << t);
    }
}

// A window that starts at bit `start` of each qword becomes byte `window` of it.
void plan_window(int window, int start, Control& control) {
  control.starts |= uint64_t(start) << 8 * window;
  const int odd = window % 2, byte = start / 8;
  for (int qword = 0; qword < 4; ++qword) {
    const int lane = 4 * qword + window / 2, first = qword % 2 * 8;
    control.bytes[odd][2 * lane] = uint8_t(first + byte);
    control.bytes[odd][2 * lane + 1] = uint8_t(first + (byte + 1) % 8);
    control.factors[odd][lane] = uint16_t(1 << (8 - start % 8));
  }
}

// Where the windows of a row start, less `low` bits: so they arrive above plane 0's.
void plan_control(int stride, int low, Control* control) {
  for (int row = 0; row < kTileRows; ++row) {
    const int bit = 8 * stride * row % 64, first = bit + 8 * stride <= 64 ? bit : 0;
    for (int i = 0; i < 8; ++i) plan_window(i, (first + i * stride - low) & 63, control[row]);
  }
}

template <class Kernel>
void run(Kernel* kernel, const LookUp& plan, const Multiply& job, int64_t row, int64_t rows) {
  Multiply one = job;
  for (int64_t i = 0; i < job.count; ++i, one.x += job.x_stride, one.y += job.y_stride)
    kernel(plan, one, row, rows);
}

}  // namespace

LookUp look_up_plan(const CodedMatrix& m) {
  LookUp plan = {};
  plan.stride[0] = m.stride[0];
  plan.stride[1] = second_stride(m);
  plan.lanes = m.lanes;
  plan.index_bits = m.window[0] + (m.planes == 2 ? m.window[1] : 0);
  plan.low = uint8_t((1 << m.window[0]) - 1);
  plan_table(m, plan);
  plan_deinterleave(plan.stride[0] + plan.stride[1], plan);
  plan_control(plan.stride[0], 0, plan.control[0]);
  if (m.planes == 2) plan_control(plan.stride[1], m.window[0], plan.control[1]);
  return plan;
}

bool looks_up(const CodedMatrix& m) {
  const bool planes = m.planes == 1 || (m.planes == 2 && m.window[1] == m.stride[1]);
  const bool ring = m.window[0] == m.stride[0] || m.stride[0] == 1;
  const int bits = m.window[0] + (m.planes == 2 ? m.window[1] : 0);
  const bool tile = m.tile_rows == kTileRows && m.tile_columns == 8 * m.lanes && m.lanes <= 2;
  const bool blocks = m.scale_per_row() || m.block % 16 == 0;
  const bool table = bits <= 7 && m.entries && m.fast_kind != kNoFast && !m.parameter;
  return planes && ring && tile && blocks && table &&
         twin::shape_of_planes<1>(m.stride[0], second_stride(m));
}

#define UNSPOOL_RUN(target)                                                              \
  run(plan.lanes == 1 ? target::shape_of_planes<1>(plan.stride[0], plan.stride[1])       \
                      : target::shape_of_planes<2>(plan.stride[0], plan.stride[1]),      \
      plan, job, row, rows)

void look_up_panel(int32_t path, const LookUp& plan, const Multiply& job, int64_t row,
                   int64_t rows) {
#ifdef UNSPOOL_X86_TARGETS
  if (path == kLookUpAvx2) return UNSPOOL_RUN(avx2);
  if (path == kLookUpAvx512) return UNSPOOL_RUN(avx512);
#endif
  (void)path;
  UNSPOOL_RUN(twin);
}

#undef UNSPOOL_RUN

}  // namespace unspool
