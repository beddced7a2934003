// What the strip kernel asks of AVX-512 (F, BW, VL, DQ, VBMI, VBMI2, VNNI), one function each.
// No include guard: strip_product.cpp compiles it beside the lanes of other machines.

typedef __m512i Bytes;  // 64 bytes, 16 dwords or 8 qwords
typedef __m512 Floats;  // one per dword

constexpr int kWidth = int(sizeof(Bytes));  // bytes of a register, and rows of a strip
constexpr int kLane = kWidth / 4;           // rows of a register
constexpr int kFew = 4;     // rows of activations multiplied as the levels are decoded
constexpr int kAtOnce = 6;  // rows that share decoded levels: 24 registers of sums, 4 of levels
constexpr bool kDotFour = false;

UNSPOOL_INLINE Bytes load(const void* at) { return _mm512_loadu_si512(at); }
UNSPOOL_INLINE void store(void* to, Bytes a) { _mm512_storeu_si512(to, a); }
UNSPOOL_INLINE Bytes broadcast_byte(uint8_t b) { return _mm512_set1_epi8((char)b); }
UNSPOOL_INLINE Bytes broadcast_dword(uint32_t d) { return _mm512_set1_epi32((int)d); }
// Four activations that follow one another, in every dword.
UNSPOOL_INLINE Bytes four_activations(const int8_t* at) {
  uint32_t four;
  __builtin_memcpy(&four, at, 4);
  return broadcast_dword(four);
}
// VPTERNLOGD: bits of a where mask is set, else of b, which it overwrites: no copy of the mask.
UNSPOOL_INLINE Bytes select(Bytes mask, Bytes a, Bytes b) {
  return _mm512_ternarylogic_epi64(b, a, mask, 0xd8);
}
UNSPOOL_INLINE Bytes exclusive_or(Bytes a, Bytes b) { return _mm512_xor_si512(a, b); }
// VPSRLW, VPSLLW: bits cross from byte to byte; callers mask or ignore them.
template <int Count>
UNSPOOL_INLINE Bytes shift_words(Bytes a) {
  if (Count > 0) return _mm512_srli_epi16(a, Count);
  if (Count < 0) return _mm512_slli_epi16(a, -Count);
  return a;
}
// VPSHRDQ: the low qword of (high:low) >> Count.
template <int Count>
UNSPOOL_INLINE Bytes funnel_qwords(Bytes low, Bytes high) {
  return _mm512_shrdi_epi64(low, high, Count);
}
// VPSHUFB: byte i is byte places[i] of its own half qword pair; places stay inside a qword here.
UNSPOOL_INLINE Bytes shuffle(Bytes a, Bytes places) { return _mm512_shuffle_epi8(a, places); }
UNSPOOL_INLINE Bytes multiply_add(Bytes a, Bytes by, Bytes add) {  // VPMULLD, VPADDD
  return _mm512_add_epi32(_mm512_mullo_epi32(a, by), add);
}

// VPMULTISHIFTQB: byte i of each qword is 8 bits from bit starts[i] on, around the qword.
struct Windows {
  Bytes starts;
  UNSPOOL_INLINE void set(uint64_t each) { starts = _mm512_set1_epi64((long long)each); }
  UNSPOOL_INLINE Bytes cut(Bytes a) const { return _mm512_multishift_epi64_epi8(starts, a); }
};

// The four nibbles of each dword's upper half, lowest first, in the low bits of its bytes.
UNSPOOL_INLINE Bytes upper_nibbles(Bytes a) {
  return _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x3c3834301c181410), a);
}

// VPERMB takes 6 bits of an index and VPERMI2B 7; the rest of the byte does not matter.
template <int Bits>
struct LookUp {
  Bytes low, high;
  UNSPOOL_INLINE void set(const uint8_t* table) {
    low = load(table);
    high = load(table + 64);
  }
  UNSPOOL_INLINE Bytes at(Bytes index) const {
    if (Bits == 7) return _mm512_permutex2var_epi8(low, index, high);
    return _mm512_permutexvar_epi8(index, low);
  }
};

// VPDPBUSD: sum + the four products of unsigned weights and signed activations of each dword.
template <Range Levels>
UNSPOOL_INLINE Bytes dot(Bytes sum, Bytes weights, Bytes activations) {
  return _mm512_dpbusd_epi32(sum, weights, activations);
}

#ifdef UNSPOOL_BFLOAT16
// VDPBF16PS: sum + the second, then + the first product of each pair; denormals count as zero.
UNSPOOL_INLINE Floats dot_pairs(Floats sum, Bytes weights, Bytes activations) {
  return _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)activations);
}
#endif

UNSPOOL_INLINE Floats to_floats(Bytes sums) { return _mm512_cvtepi32_ps(sums); }
UNSPOOL_INLINE Floats load_floats(const float* at) { return _mm512_loadu_ps(at); }
UNSPOOL_INLINE void store_floats(float* to, Floats a) { _mm512_storeu_ps(to, a); }
UNSPOOL_INLINE Floats broadcast(float value) { return _mm512_set1_ps(value); }
UNSPOOL_INLINE Floats product(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
UNSPOOL_INLINE Floats sum(Floats a, Floats b) { return _mm512_add_ps(a, b); }
// Binary16 numbers.
UNSPOOL_INLINE Floats halves(const void* at) {
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)at));
}
// E4M3 numbers / 256: their exponent and mantissa are those of a binary16, a bit further down.
UNSPOOL_INLINE Floats e4m3_256ths(const void* at) {
  const __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)at));
  const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(0x80)), 8);
  const __m256i rest = _mm256_slli_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(0x7f)), 7);
  return _mm512_cvtph_ps(_mm256_or_si256(sign, rest));
}
// E8M0 numbers: the exponent of a float; 0 stands for 2^-127, a subnormal.
UNSPOOL_INLINE Floats e8m0(const void* at) {
  const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)at));
  return _mm512_castsi512_ps(
      _mm512_max_epu32(_mm512_slli_epi32(wide, 23), _mm512_set1_epi32(0x00400000)));
}
UNSPOOL_INLINE void prefetch(const void* at) { _mm_prefetch((const char*)at, _MM_HINT_T0); }
