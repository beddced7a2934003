// What the strip kernel asks of AVX2, F16C: 32 bytes, so a strip is 32 rows. No include guard:
// strip_product.cpp compiles it beside the lanes of other machines.
//
// AVX2 lacks three instructions that the layout was made for. Windows are cut by a multiplication
// with a power of two, tables looked up 16 bytes at a time (table_split.hpp), and the dot product
// of bytes sums pairs in int16, which levels of up to 64 do not overflow.

typedef __m256i Bytes;
typedef __m256 Floats;  // one per dword

constexpr int kWidth = int(sizeof(Bytes));  // bytes of a register, and rows of a strip
constexpr int kLane = kWidth / 4;           // rows of a register
constexpr int kFew = 2;     // rows of activations multiplied as the levels are decoded
constexpr int kAtOnce = 2;  // rows that share decoded levels: 8 of 16 registers hold sums
constexpr bool kDotFour = true;  // has dot_four

UNSPOOL_INLINE Bytes load(const void* at) { return _mm256_loadu_si256((const __m256i*)at); }
UNSPOOL_INLINE void store(void* to, Bytes a) { _mm256_storeu_si256((__m256i*)to, a); }
UNSPOOL_INLINE Bytes broadcast_byte(uint8_t b) { return _mm256_set1_epi8((char)b); }
UNSPOOL_INLINE Bytes broadcast_dword(uint32_t d) { return _mm256_set1_epi32((int)d); }
// Four activations that follow one another, in every dword.
UNSPOOL_INLINE Bytes four_activations(const int8_t* at) {
  uint32_t four;
  __builtin_memcpy(&four, at, 4);
  return broadcast_dword(four);
}
// Bits of a where mask is set, else of b.
UNSPOOL_INLINE Bytes select(Bytes mask, Bytes a, Bytes b) {
  return _mm256_or_si256(_mm256_and_si256(mask, a), _mm256_andnot_si256(mask, b));
}
UNSPOOL_INLINE Bytes exclusive_or(Bytes a, Bytes b) { return _mm256_xor_si256(a, b); }
template <int Count>
UNSPOOL_INLINE Bytes shift_words(Bytes a) {
  if (Count > 0) return _mm256_srli_epi16(a, Count);
  if (Count < 0) return _mm256_slli_epi16(a, -Count);
  return a;
}
template <int Count>
UNSPOOL_INLINE Bytes funnel_qwords(Bytes low, Bytes high) {
  return _mm256_or_si256(_mm256_srli_epi64(low, Count), _mm256_slli_epi64(high, 64 - Count));
}
UNSPOOL_INLINE Bytes shuffle(Bytes a, Bytes places) { return _mm256_shuffle_epi8(a, places); }
UNSPOOL_INLINE Bytes multiply_add(Bytes a, Bytes by, Bytes add) {
  return _mm256_add_epi32(_mm256_mullo_epi32(a, by), add);
}

// The four nibbles of each dword's upper half, lowest first, in the low bits of its bytes: each of
// the two bytes twice, the second time four bits further down.
UNSPOOL_INLINE Bytes upper_nibbles(Bytes a) {
  const Bytes twice = shuffle(
      a, _mm256_broadcastsi128_si256(_mm_set_epi64x(0x0f0f0e0e0b0b0a0a, 0x0707060603030202)));
  return _mm256_blendv_epi8(twice, _mm256_srli_epi16(twice, 4),
                            _mm256_set1_epi16((short)0xff00));
}

// VPSHUFB looks 16 bytes up and gives 0 where bit 7 of the index is set. Part p of the table holds
// the difference (xor) to part p - 1 and is read at index - 16 p: negative, hence 0, for smaller
// ones.
template <int Bits>
struct LookUp {
  static constexpr int kParts = Bits <= 4 || Bits > 7 ? 1 : 1 << (Bits - 4);
  Bytes parts[kParts];
  UNSPOOL_INLINE void set(const uint8_t* table) {
    __m128i before = _mm_setzero_si128();
    UNSPOOL_UNROLL
    for (int p = 0; p < kParts; ++p) {
      const __m128i here = _mm_loadu_si128((const __m128i*)(table + 16 * p));
      parts[p] = _mm256_broadcastsi128_si256(_mm_xor_si128(here, before));
      before = here;
    }
  }
  UNSPOOL_INLINE Bytes at(Bytes index) const {
    return at_clean(_mm256_and_si256(index, broadcast_byte(uint8_t(16 * kParts - 1))));
  }
  // For indices whose other bits are 0.
  UNSPOOL_INLINE Bytes at_clean(Bytes index) const {
    Bytes found = shuffle(parts[0], index);
    UNSPOOL_UNROLL
    for (int p = 1; p < kParts; ++p)
      found = exclusive_or(
          found, shuffle(parts[p], _mm256_sub_epi8(index, broadcast_byte(uint8_t(16 * p)))));
    return found;
  }
};

// Wide levels, whose pairs do not fit int16, are taken in halves.
template <Range Levels>
UNSPOOL_INLINE Bytes dot(Bytes sum, Bytes weights, Bytes activations) {
  const Bytes ones = _mm256_set1_epi16(1);
  if (Levels != kWide)
    return _mm256_add_epi32(
        sum, _mm256_madd_epi16(_mm256_maddubs_epi16(weights, activations), ones));
  const Bytes low = _mm256_and_si256(weights, broadcast_byte(1));
  const Bytes half = _mm256_and_si256(_mm256_srli_epi16(weights, 1), broadcast_byte(0x7f));
  const Bytes halves = _mm256_madd_epi16(_mm256_maddubs_epi16(half, activations), ones);
  const Bytes rest = _mm256_madd_epi16(_mm256_maddubs_epi16(low, activations), ones);
  return _mm256_add_epi32(_mm256_add_epi32(sum, rest), _mm256_add_epi32(halves, halves));
}

// Four dots of small levels at once: their pairs are summed in int16 and widened together.
UNSPOOL_INLINE Bytes dot_four(Bytes sum, const Bytes* weights, const int8_t* activations) {
  Bytes pairs = _mm256_maddubs_epi16(weights[0], four_activations(activations));
  UNSPOOL_UNROLL
  for (int i = 1; i < 4; ++i)
    pairs = _mm256_add_epi16(
        pairs, _mm256_maddubs_epi16(weights[i], four_activations(activations + 4 * i)));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

UNSPOOL_INLINE Floats to_floats(Bytes sums) { return _mm256_cvtepi32_ps(sums); }
UNSPOOL_INLINE Floats load_floats(const float* at) { return _mm256_loadu_ps(at); }
UNSPOOL_INLINE void store_floats(float* to, Floats a) { _mm256_storeu_ps(to, a); }
UNSPOOL_INLINE Floats broadcast(float value) { return _mm256_set1_ps(value); }
UNSPOOL_INLINE Floats product(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
UNSPOOL_INLINE Floats sum(Floats a, Floats b) { return _mm256_add_ps(a, b); }
// Binary16 numbers.
UNSPOOL_INLINE Floats halves(const void* at) {
  return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)at));
}
// E4M3 numbers / 256: their exponent and mantissa are those of a binary16, a bit further down.
UNSPOOL_INLINE Floats e4m3_256ths(const void* at) {
  const __m128i wide = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i*)at));
  const __m128i sign = _mm_slli_epi16(_mm_and_si128(wide, _mm_set1_epi16(0x80)), 8);
  const __m128i rest = _mm_slli_epi16(_mm_and_si128(wide, _mm_set1_epi16(0x7f)), 7);
  return _mm256_cvtph_ps(_mm_or_si128(sign, rest));
}
// E8M0 numbers: the exponent of a float; 0 stands for 2^-127, a subnormal.
UNSPOOL_INLINE Floats e8m0(const void* at) {
  const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)at));
  return _mm256_castsi256_ps(
      _mm256_max_epu32(_mm256_slli_epi32(wide, 23), _mm256_set1_epi32(0x00400000)));
}
UNSPOOL_INLINE void prefetch(const void* at) { _mm_prefetch((const char*)at, _MM_HINT_T0); }
