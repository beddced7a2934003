// What this processor can run; decode/target.py gives the bits their names, in this order.
#pragma once

#include <cstdint>

// Where the avx2 and avx512 kernels are compiled at all; the condition of each_isa.hpp.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(UNSPOOL_BASELINE)
#define UNSPOOL_X86_TARGETS 1
#endif

namespace unspool {

uint64_t cpu_features();

constexpr uint64_t kAvx2Needs = 0x3fd;  // all that x86-64-v3 has over v2, and YMM saved
constexpr uint64_t kAvx512Needs = 0x3ff | 0xf << 10;  // that, ZMM saved, F, BW, VL and VBMI

// Panels of rows decoded into the cache, or tables looked up in registers (matmul/choose.py).
enum Path : int32_t {
  kPanelPortable = 0,
  kPanelAvx2 = 1,
  kLookUpAvx2 = 2,
  kLookUpAvx512 = 3,
  kLookUpAvx512Twin = 4,
};

inline bool runs(int32_t path) {
#ifndef UNSPOOL_X86_TARGETS
  return path == kPanelPortable || path == kLookUpAvx512Twin;
#endif
  static const uint64_t has = cpu_features();  // CPUID traps in a virtual machine: tens of us
  if (path == kPanelAvx2 || path == kLookUpAvx2) return (has & kAvx2Needs) == kAvx2Needs;
  if (path == kLookUpAvx512) return (has & kAvx512Needs) == kAvx512Needs;
  return true;
}

}  // namespace unspool
