// What avx512_lanes.hpp offers, from AVX2 instructions: 64 bytes are two registers. VPMULTISHIFTQB
// becomes byte shuffles and 16-bit multiplications, a large table several of 16 entries.

struct Bytes {
  __m256i v[2];
};
struct Floats {
  __m256 v[2];
};

UNSPOOL_INLINE Bytes broadcast_byte(uint8_t b) {
  const __m256i all = _mm256_set1_epi8((char)b);
  return {{all, all}};
}
UNSPOOL_INLINE Bytes either(const Bytes& a, const Bytes& b) {
  return {{_mm256_or_si256(a.v[0], b.v[0]), _mm256_or_si256(a.v[1], b.v[1])}};
}
UNSPOOL_INLINE Bytes select(const Bytes& mask, const Bytes& a, const Bytes& b) {
  Bytes r;
  for (int h = 0; h < 2; ++h)
    r.v[h] = _mm256_or_si256(_mm256_and_si256(mask.v[h], a.v[h]),
                             _mm256_andnot_si256(mask.v[h], b.v[h]));
  return r;
}
UNSPOOL_INLINE Bytes shift_qwords_right(const Bytes& a, unsigned count) {
  return {{_mm256_srli_epi64(a.v[0], (int)count), _mm256_srli_epi64(a.v[1], (int)count)}};
}
UNSPOOL_INLINE Bytes shift_qwords_left(const Bytes& a, unsigned count) {
  return {{_mm256_slli_epi64(a.v[0], (int)count), _mm256_slli_epi64(a.v[1], (int)count)}};
}

// Windows 0, 2, 4, 6 of each qword, then 1, 3, 5, 7: the two bytes a window lies in become a 16-bit
// lane, and a product with 2^(8 - start % 8) moves the window to its upper byte.
UNSPOOL_INLINE Bytes multishift(const Control& control, const Bytes& a) {
  const __m256i upper = _mm256_set1_epi16((short)0xff00);
  Bytes r;
  for (int h = 0; h < 2; ++h) {
    __m256i even = _mm256_shuffle_epi8(a.v[h], *(const __m256i*)control.bytes[0]);
    __m256i odd = _mm256_shuffle_epi8(a.v[h], *(const __m256i*)control.bytes[1]);
    even = _mm256_mullo_epi16(even, *(const __m256i*)control.factors[0]);
    odd = _mm256_mullo_epi16(odd, *(const __m256i*)control.factors[1]);
    r.v[h] = _mm256_or_si256(_mm256_srli_epi16(even, 8), _mm256_and_si256(odd, upper));
  }
  return r;
}

template <int Qwords>
UNSPOOL_INLINE void deinterleave(const LookUp&, const uint8_t* tiles, Bytes* planes) {
  const auto at = [&](int t, int j) {
    long long q;
    __builtin_memcpy(&q, tiles + 8 * (t * Qwords + j), 8);
    return q;
  };
  for (int j = 0; j < Qwords; ++j)
    for (int h = 0; h < 2; ++h)
      planes[j].v[h] =
          _mm256_setr_epi64x(at(4 * h, j), at(4 * h + 1, j), at(4 * h + 2, j), at(4 * h + 3, j));
}

UNSPOOL_INLINE __m256i sixteen(const LookUp& plan, int lane, int part, __m256i nibbles) {
  const __m128i table = _mm_load_si128((const __m128i*)(plan.table[lane] + 16 * part));
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), nibbles);
}

// Parts are chosen by index bits 4, 5 and 6, each moved to the sign bit of its byte.
UNSPOOL_INLINE __m256i sixty_four(const LookUp& plan, int lane, int part, __m256i index,
                                  __m256i nibbles) {
  const __m256i four = _mm256_slli_epi16(index, 3), five = _mm256_slli_epi16(index, 2);
  const __m256i low = _mm256_blendv_epi8(sixteen(plan, lane, part, nibbles),
                                         sixteen(plan, lane, part + 1, nibbles), four);
  const __m256i high = _mm256_blendv_epi8(sixteen(plan, lane, part + 2, nibbles),
                                          sixteen(plan, lane, part + 3, nibbles), four);
  return _mm256_blendv_epi8(low, high, five);
}

constexpr bool kSplitTables = true;

template <int Parts>
UNSPOOL_INLINE Bytes look_up(const LookUp& plan, int lane, const Bytes& index) {
  Bytes r;
  for (int h = 0; h < 2; ++h) {
    const __m256i nibbles = _mm256_and_si256(index.v[h], _mm256_set1_epi8(15));
    if (Parts == 1)
      r.v[h] = sixteen(plan, lane, 0, nibbles);
    else
      r.v[h] = sixty_four(plan, lane, 0, index.v[h], nibbles);
    if (Parts == 8)
      r.v[h] = _mm256_blendv_epi8(r.v[h], sixty_four(plan, lane, 4, index.v[h], nibbles),
                                  _mm256_slli_epi16(index.v[h], 1));
  }
  return r;
}

UNSPOOL_INLINE Bytes interleave_low(const Bytes& a, const Bytes& b) {
  return {{_mm256_unpacklo_epi8(a.v[0], b.v[0]), _mm256_unpacklo_epi8(a.v[1], b.v[1])}};
}
UNSPOOL_INLINE Bytes interleave_high(const Bytes& a, const Bytes& b) {
  return {{_mm256_unpackhi_epi8(a.v[0], b.v[0]), _mm256_unpackhi_epi8(a.v[1], b.v[1])}};
}
template <int Q>
UNSPOOL_INLINE Floats widen(const Bytes& a) {
  const __m128i part = _mm256_extracti128_si256(a.v[Q / 2], Q % 2);
  return {{_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(part)),
           _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(part, 8)))}};
}
UNSPOOL_INLINE Floats load_floats(const float* at) {
  return {{_mm256_loadu_ps(at), _mm256_loadu_ps(at + 8)}};
}
UNSPOOL_INLINE Floats broadcast(float value) {
  return {{_mm256_set1_ps(value), _mm256_set1_ps(value)}};
}
UNSPOOL_INLINE Floats product(const Floats& a, const Floats& b) {
  return {{_mm256_mul_ps(a.v[0], b.v[0]), _mm256_mul_ps(a.v[1], b.v[1])}};
}
UNSPOOL_INLINE Floats fma(const Floats& a, const Floats& b, const Floats& c) {
  return {{_mm256_fmadd_ps(a.v[0], b.v[0], c.v[0]), _mm256_fmadd_ps(a.v[1], b.v[1], c.v[1])}};
}
UNSPOOL_INLINE void store_floats(float* to, const Floats& a) {
  _mm256_storeu_ps(to, a.v[0]);
  _mm256_storeu_ps(to + 8, a.v[1]);
}
