// The AVX-512 strip kernel on emulated instructions, in the place of strip_product.cpp and
// features.cpp: every path is this one.

#include "matmul/cpu/strip_product.hpp"

#include <new>

#include "avx512_by_simde.hpp"
#include "matmul/cpu/integer.hpp"

#define UNSPOOL_INLINE inline
#define UNSPOOL_UNROLL
namespace unspool {
namespace {
namespace emulated {
#include "avx512_kernel.hpp"  // what strip_product.cpp includes for AVX-512, cut out by the test
}  // namespace emulated
}  // namespace

StripKernel strip_kernel(Path, int32_t shape, int32_t scale_kind) {
  return emulated::strip_kernel(shape, scale_kind);
}

uint64_t cpu_features() { return ~uint64_t(0); }

}  // namespace unspool
