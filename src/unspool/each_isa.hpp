// Compiles the kernel that UNSPOOL_KERNEL names once for every machine this library may run on:
//
//   #define UNSPOOL_KERNEL "encode/viterbi_step.hpp"
//   #include "each_isa.hpp"
//   ... UNSPOOL_BEST(step)(arguments) ...
//
// and picks by CPUID, so that no old machine meets an instruction it lacks. All copies give the
// same bits: the library is compiled without contraction of a*b+c. (target_clones would be shorter,
// but GCC lowers vectors before it makes the clones: two to three times slower.) A kernel includes
// nothing and uses no templates of the standard library: their copies would be shared with code for
// older machines.

#define UNSPOOL_INLINE inline __attribute__((always_inline))
#define UNSPOOL_INLINE_LAMBDA __attribute__((always_inline))

#ifndef UNSPOOL_KERNEL
#error "define UNSPOOL_KERNEL first"
#endif

namespace {
namespace baseline {
#include "simd.hpp"
#include UNSPOOL_KERNEL
}  // namespace baseline
}  // namespace

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(UNSPOOL_BASELINE)
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#define UNSPOOL_AVX2  // for a kernel that needs an instruction by name; __AVX2__ does not change
namespace {
namespace v3 {
#include "simd.hpp"
#include UNSPOOL_KERNEL
}  // namespace v3
}  // namespace
#undef UNSPOOL_AVX2
#pragma GCC pop_options
#define UNSPOOL_BEST(function) \
  (__builtin_cpu_supports("x86-64-v3") ? v3::function : baseline::function)
#else
#define UNSPOOL_BEST(function) baseline::function
#endif
