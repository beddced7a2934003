// What this processor has and this operating system saves: CPUID and XCR0, not a kernel's listing;
// on Arm, whose identification registers are the kernel's, what the kernel passes on.

#include <cstdint>

#include "matmul/cpu/features.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace unspool {

#if defined(__x86_64__)
namespace {

struct Registers {
  uint32_t a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(uint32_t leaf, uint32_t part = 0) {
  Registers r;
  __get_cpuid_count(leaf, part, &r.a, &r.b, &r.c, &r.d);
  return r;
}

bool bit(uint32_t word, int place) { return (word >> place & 1) != 0; }

// The register states that the operating system saves; only where CPUID promises XGETBV.
uint64_t saved_states() {
  if (!(cpuid(1).c & bit_OSXSAVE)) return 0;
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t(high) << 32 | low;
}

}  // namespace

uint64_t cpu_features() {
  const Registers one = cpuid(1), seven = cpuid(7), extended = cpuid(0x80000001);
  const Registers seven_one = cpuid(7, 1);
  const uint64_t saved = saved_states();
  const bool found[] = {
      (saved & 0x06) == 0x06,  // XMM and YMM
      (saved & 0xe6) == 0xe6,  // also the mask registers and both parts of ZMM
      bit(one.c, 28),  // AVX
      bit(seven.b, 5),  // AVX2
      bit(one.c, 12),  // FMA
      bit(one.c, 29),  // F16C
      bit(seven.b, 3),  // BMI1
      bit(seven.b, 8),  // BMI2
      bit(extended.c, 5),  // LZCNT
      bit(one.c, 22),  // MOVBE
      bit(seven.b, 16),  // AVX512F
      bit(seven.b, 30),  // AVX512BW
      bit(seven.b, 31),  // AVX512VL
      bit(seven.b, 17),  // AVX512DQ
      bit(seven.c, 1),  // AVX512VBMI
      bit(seven.c, 6),  // AVX512VBMI2
      bit(seven.c, 11),  // AVX512VNNI
      false,  // ASIMDDP, of another architecture
      seven.a >= 1 && bit(seven_one.a, 5),  // AVX512_BF16
  };
  uint64_t bits = 0;
  for (unsigned i = 0; i < sizeof found; ++i) bits |= uint64_t(found[i]) << i;
  return bits;
}
#elif defined(__aarch64__) && defined(__linux__)
uint64_t cpu_features() { return getauxval(AT_HWCAP) & HWCAP_ASIMDDP ? kNeonNeeds : 0; }
#else
uint64_t cpu_features() { return 0; }
#endif

}  // namespace unspool

extern "C" __attribute__((visibility("default"))) uint64_t unspool_cpu_features() {
  return unspool::cpu_features();
}

// What functions take and return; raised with every change, as native.py says it.
extern "C" __attribute__((visibility("default"))) int unspool_abi() { return 4; }

// Which targets this library was compiled with: bit 0 avx2, bit 1 avx512, bit 2 neon.
extern "C" __attribute__((visibility("default"))) uint64_t unspool_compiled_targets() {
#if defined(UNSPOOL_X86_TARGETS)
  return 3;
#elif defined(UNSPOOL_NEON_TARGET)
  return 4;
#else
  return 0;
#endif
}
