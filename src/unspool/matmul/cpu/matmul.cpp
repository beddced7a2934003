// The C ABI of decode and matmul: a coded matrix times float32 activations, strip by strip.
// kernel.py is the caller and matmul/reference.py the definition.

#include <cstddef>
#include <cstdint>

#include "matmul/cpu/coded.hpp"
#include "threads.hpp"

#define UNSPOOL_KERNEL "matmul/cpu/tile.hpp"
#include "each_isa.hpp"

#define UNSPOOL_API extern "C" __attribute__((visibility("default")))

namespace {

// What the fixed-size buffers of the kernels hold.
bool fits(const Coded& c) {
  using baseline::kMaxRingBytes;
  bool ok = c.tile_rows == baseline::kMaxTileRows && c.steps <= baseline::kMaxSteps &&
            c.planes >= 1 && c.planes <= kMaxPlanes && c.tile_columns <= baseline::kPanel &&
            baseline::kPanel % c.tile_columns == 0 && c.tile_columns % 8 == 0 && c.block % 8 == 0 &&
            c.rows % c.tile_rows == 0 && c.columns % c.tile_columns == 0 &&
            c.columns % c.block == 0 &&
            (c.block % baseline::kPanel == 0 || baseline::kPanel % c.block == 0 ||
             c.block == c.columns);
  for (int plane = 0; plane < c.planes && ok; ++plane)
    ok = c.steps * c.stride[plane] <= 8 * kMaxRingBytes;
  return ok;
}

// `portable` is the same source without AVX2, for tests and for machines that lack it.
template <class Best, class Plain, class... Arguments>
void run(bool portable, const Best& best, const Plain& plain, Arguments... arguments) {
  if (portable)
    plain(arguments...);
  else
    best(arguments...);
}

}  // namespace

// x [m, columns], y [m, rows], both padded. Returns 1 where the matrix does not fit the kernel.
UNSPOOL_API int unspool_matmul(const Coded* coded, const float* x, int64_t m, int portable,
                               size_t threads, float* y) {
  if (!fits(*coded)) return 1;
  unspool::parallel_for(coded->rows / coded->tile_rows, threads, [&](size_t, size_t strip) {
    run(portable, UNSPOOL_BEST(multiply_strip), baseline::multiply_strip, *coded, int64_t(strip), x,
        m, y);
  });
  return 0;
}

// Rows [first, first + count) in whole strips: out float32 [count, columns].
UNSPOOL_API int unspool_decode(const Coded* coded, int64_t first, int64_t count, int portable,
                               size_t threads, float* out) {
  if (!fits(*coded)) return 1;
  unspool::parallel_for(count / coded->tile_rows, threads, [&](size_t, size_t strip) {
    run(portable, UNSPOOL_BEST(decode_strip), baseline::decode_strip, *coded,
        first / coded->tile_rows + int64_t(strip),
        out + strip * coded->tile_rows * coded->columns);
  });
  return 0;
}

// All operand bit patterns: out uint16 [rows, columns].
UNSPOOL_API int unspool_operands(const Coded* coded, int portable, size_t threads, uint16_t* out) {
  if (!fits(*coded)) return 1;
  unspool::parallel_for(coded->rows / coded->tile_rows, threads, [&](size_t, size_t strip) {
    run(portable, UNSPOOL_BEST(strip_operands), baseline::strip_operands, *coded, int64_t(strip),
        out + strip * coded->tile_rows * coded->columns);
  });
  return 0;
}

// Bit 0: AVX2 and FMA; bit 1: AVX-512 F, BW, VL and VBMI. CPUID and the operating system's state.
UNSPOOL_API int unspool_features() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const int avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi");
  return avx2 | avx512 << 1;
#else
  return 0;
#endif
}
