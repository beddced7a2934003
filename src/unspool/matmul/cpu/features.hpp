// What this processor can run; decode/target.py gives the bits their names, in this order.
#pragma once

#include <cstdint>

// Where the kernels of a family are compiled at all; the first is the condition of each_isa.hpp.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(UNSPOOL_BASELINE)
#define UNSPOOL_X86_TARGETS 1
#endif
#if defined(__aarch64__) && defined(__GNUC__) && !defined(__clang__) && !defined(UNSPOOL_BASELINE)
#define UNSPOOL_NEON_TARGET 1
#endif

namespace unspool {

uint64_t cpu_features();

constexpr uint64_t kAvx2Needs = 0x3fd;  // all that x86-64-v3 has over v2, and YMM saved
constexpr uint64_t kAvx512Needs = 0x3ff | 0x7f << 10;  // that, ZMM saved, and all of AVX-512 below
constexpr uint64_t kNeonNeeds = 1 << 17;
constexpr uint64_t kBfloat16Needs = 1 << 18;  // beside those of AVX-512

// The families, as matmul/choose.py numbers them.
enum Path : int32_t { kPortable = 0, kAvx2 = 1, kAvx512 = 2, kNeon = 3 };

// What cpu_features found the first time: CPUID traps in a virtual machine, for tens of us.
inline uint64_t known_features() {
  static const uint64_t has = cpu_features();
  return has;
}

inline bool runs_bfloat16() { return (known_features() & kBfloat16Needs) != 0; }

inline bool runs(int32_t path) {
  const uint64_t has = known_features();
  switch (path) {
    case kPortable: return true;
#ifdef UNSPOOL_X86_TARGETS
    case kAvx2: return (has & kAvx2Needs) == kAvx2Needs;
    case kAvx512: return (has & kAvx512Needs) == kAvx512Needs;
#endif
#ifdef UNSPOOL_NEON_TARGET
    case kNeon: return (has & kNeonNeeds) == kNeonNeeds;
#endif
    default: return false;
  }
}

}  // namespace unspool
