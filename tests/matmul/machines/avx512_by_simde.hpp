// AVX-512 intrinsics on any machine: SIMDe's emulations under their usual names, a source of what
// they mean that is not ours. SIMDe 0.7.4 lacks four that the kernels use; those are below, after
// the operation that Intel's Intrinsics Guide documents.
#pragma once

#define SIMDE_NO_NATIVE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>

#include <cstdint>
#include <cstring>

#ifndef _mm512_shrdi_epi64
// VPSHRDQ: dst[i] := ((b[i] << 64)[127:0] | a[i]) >> imm8[5:0]
inline simde__m512i shift_right_double(simde__m512i a, simde__m512i b, int count) {
  uint64_t low[8], high[8];
  std::memcpy(low, &a, sizeof low);
  std::memcpy(high, &b, sizeof high);
  for (int i = 0; i < 8; ++i)
    low[i] = uint64_t(((unsigned __int128)high[i] << 64 | low[i]) >> (count & 63));
  std::memcpy(&a, low, sizeof low);
  return a;
}
#define _mm512_shrdi_epi64(a, b, count) shift_right_double(a, b, count)
#endif

#ifndef _mm512_cvtph_ps
// VCVTPH2PS: dst[i] := Convert_FP16_To_FP32(a[i]); four at a time by SIMDe's VCVTPH2PS of 128 bits.
inline simde__m512 half_to_single(simde__m256i a) {
  simde__m512 single;
  for (int i = 0; i < 4; ++i) {
    simde__m128i four = simde_mm_setzero_si128();
    std::memcpy(&four, reinterpret_cast<const char*>(&a) + 8 * i, 8);
    const simde__m128 wide = simde_mm_cvtph_ps(four);
    std::memcpy(reinterpret_cast<char*>(&single) + 16 * i, &wide, 16);
  }
  return single;
}
#define _mm512_cvtph_ps(a) half_to_single(a)
#endif

#ifndef _mm512_cvtepu8_epi32
// VPMOVZXBD: dst[i] := ZeroExtend32(a[i])
inline simde__m512i bytes_to_dwords(simde__m128i a) {
  uint8_t bytes[16];
  uint32_t dwords[16];
  std::memcpy(bytes, &a, sizeof bytes);
  for (int i = 0; i < 16; ++i) dwords[i] = bytes[i];
  simde__m512i wide;
  std::memcpy(&wide, dwords, sizeof dwords);
  return wide;
}
#define _mm512_cvtepu8_epi32(a) bytes_to_dwords(a)
#endif

#ifndef _mm512_cvtepi32_ps
// VCVTDQ2PS: dst[i] := Convert_Int32_To_FP32(a[i]), rounded to nearest, ties to even.
inline simde__m512 dwords_to_singles(simde__m512i a) {
  int32_t dwords[16];
  float singles[16];
  std::memcpy(dwords, &a, sizeof dwords);
  for (int i = 0; i < 16; ++i) singles[i] = float(dwords[i]);
  simde__m512 wide;
  std::memcpy(&wide, singles, sizeof singles);
  return wide;
}
#define _mm512_cvtepi32_ps(a) dwords_to_singles(a)
#endif
