// The strip kernel, compiled for every family of machines that this library may run on.

#include "matmul/cpu/strip_product.hpp"

#include <new>

#include "matmul/cpu/features.hpp"
#include "matmul/cpu/integer.hpp"

#define UNSPOOL_INLINE inline
#define UNSPOOL_UNROLL
namespace unspool {
namespace {
namespace portable {
#include "matmul/cpu/lanes_portable.hpp"
#include "matmul/cpu/table_merged.hpp"
#include "matmul/cpu/strip_codes.hpp"
#include "matmul/cpu/strip_kernel.hpp"
}  // namespace portable
}  // namespace
}  // namespace unspool
#undef UNSPOOL_INLINE
#undef UNSPOOL_UNROLL
#define UNSPOOL_INLINE inline __attribute__((always_inline))
#define UNSPOOL_UNROLL _Pragma("GCC unroll 16")

#ifdef UNSPOOL_X86_TARGETS
#include <immintrin.h>
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace unspool {
namespace {
namespace avx2 {
#include "matmul/cpu/lanes_avx2.hpp"
#include "matmul/cpu/table_split.hpp"
#include "matmul/cpu/strip_codes.hpp"
#include "matmul/cpu/strip_kernel.hpp"
}  // namespace avx2
}  // namespace
}  // namespace unspool
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target( \
    "arch=x86-64-v3,avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vbmi2,avx512vnni")
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in GCC 12's own headers (PR 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
namespace unspool {
namespace {
namespace avx512 {
#include "matmul/cpu/lanes_avx512.hpp"
#include "matmul/cpu/table_merged.hpp"
#include "matmul/cpu/strip_codes.hpp"
#include "matmul/cpu/strip_kernel.hpp"
}  // namespace avx512
}  // namespace
}  // namespace unspool
#pragma GCC diagnostic pop
#pragma GCC pop_options
#endif

#ifdef UNSPOOL_NEON_TARGET
#include <arm_neon.h>
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
namespace unspool {
namespace {
namespace neon {
#include "matmul/cpu/lanes_neon.hpp"
#include "matmul/cpu/table_merged.hpp"
#include "matmul/cpu/strip_codes.hpp"
#include "matmul/cpu/strip_kernel.hpp"
}  // namespace neon
}  // namespace
}  // namespace unspool
#pragma GCC pop_options
#endif

namespace unspool {

StripKernel strip_kernel(Path path, int32_t shape, int32_t scale_kind) {
  switch (path) {
#ifdef UNSPOOL_X86_TARGETS
    case kAvx2: return avx2::strip_kernel(shape, scale_kind);
    case kAvx512: return avx512::strip_kernel(shape, scale_kind);
#endif
#ifdef UNSPOOL_NEON_TARGET
    case kNeon: return neon::strip_kernel(shape, scale_kind);
#endif
    default: return portable::strip_kernel(shape, scale_kind);
  }
}

}  // namespace unspool
