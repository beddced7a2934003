// The AVX-512 instructions that the look-up kernel uses, one function each, named as the manual
// names them. No include guard: compiled once for the hardware (UNSPOOL_NATIVE_LANES) and once as a
// twin in plain C++ that does the same to arrays, so that the kernel runs on any machine.

#ifdef UNSPOOL_NATIVE_LANES

typedef __m512i Bytes;   // 64 bytes or 8 qwords
typedef __m512 Floats;   // 16 floats

UNSPOOL_INLINE Bytes load(const void* at) { return _mm512_loadu_si512(at); }
UNSPOOL_INLINE Bytes broadcast_byte(uint8_t b) { return _mm512_set1_epi8((char)b); }
UNSPOOL_INLINE Bytes either(Bytes a, Bytes b) { return _mm512_or_si512(a, b); }
// VPTERNLOGD: bits of a where mask is set, else of b.
UNSPOOL_INLINE Bytes select(Bytes mask, Bytes a, Bytes b) {
  return _mm512_ternarylogic_epi64(mask, a, b, 0xca);
}
// VPERMT2Q with zeroing: qword index[i] of b:a where keep's bit i is set, else 0.
UNSPOOL_INLINE Bytes permute2_qwords(uint8_t keep, Bytes a, Bytes index, Bytes b) {
  return _mm512_maskz_permutex2var_epi64(keep, a, index, b);
}
// VPMULTISHIFTQB: byte i of each qword is 8 bits from bit control[i] on, around the qword.
UNSPOOL_INLINE Bytes multishift(const Control& control, Bytes a) {
  return _mm512_multishift_epi64_epi8(_mm512_set1_epi64((long long)control.starts), a);
}
UNSPOOL_INLINE Bytes shift_qwords_right(Bytes a, unsigned count) {
  return _mm512_srli_epi64(a, count);
}
UNSPOOL_INLINE Bytes shift_qwords_left(Bytes a, unsigned count) {
  return _mm512_slli_epi64(a, count);
}
// VPERMI2B: byte (index & 127) of the 128 in high:low.
UNSPOOL_INLINE Bytes permute2_bytes(Bytes index, Bytes low, Bytes high) {
  return _mm512_permutex2var_epi8(low, index, high);
}
// VPUNPCKLBW and VPUNPCKHBW: alternating bytes of the lower or upper half of each 16.
UNSPOOL_INLINE Bytes interleave_low(Bytes a, Bytes b) { return _mm512_unpacklo_epi8(a, b); }
UNSPOOL_INLINE Bytes interleave_high(Bytes a, Bytes b) { return _mm512_unpackhi_epi8(a, b); }
// Bytes 16 q .. 16 q + 15 as signed integers in float.
template <int Q>
UNSPOOL_INLINE Floats widen(Bytes a) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm512_extracti32x4_epi32(a, Q)));
}
UNSPOOL_INLINE Floats load_floats(const float* at) { return _mm512_loadu_ps(at); }
UNSPOOL_INLINE Floats broadcast(float value) { return _mm512_set1_ps(value); }
UNSPOOL_INLINE Floats product(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
UNSPOOL_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
UNSPOOL_INLINE void store_floats(float* to, Floats a) { _mm512_storeu_ps(to, a); }

#else

struct Bytes {
  uint8_t b[64];
};
struct Floats {
  float f[16];
};

UNSPOOL_INLINE uint64_t qword(const Bytes& a, int i) {
  uint64_t q;
  __builtin_memcpy(&q, a.b + 8 * i, 8);
  return q;
}
UNSPOOL_INLINE void set_qword(Bytes& a, int i, uint64_t q) { __builtin_memcpy(a.b + 8 * i, &q, 8); }

UNSPOOL_INLINE Bytes load(const void* at) {
  Bytes r;
  __builtin_memcpy(r.b, at, 64);
  return r;
}
UNSPOOL_INLINE Bytes broadcast_byte(uint8_t b) {
  Bytes r;
  for (int i = 0; i < 64; ++i) r.b[i] = b;
  return r;
}
UNSPOOL_INLINE Bytes either(const Bytes& a, const Bytes& b) {
  Bytes r;
  for (int i = 0; i < 64; ++i) r.b[i] = uint8_t(a.b[i] | b.b[i]);
  return r;
}
UNSPOOL_INLINE Bytes select(const Bytes& mask, const Bytes& a, const Bytes& b) {
  Bytes r;
  for (int i = 0; i < 64; ++i) r.b[i] = uint8_t((a.b[i] & mask.b[i]) | (b.b[i] & ~mask.b[i]));
  return r;
}
UNSPOOL_INLINE Bytes permute2_qwords(uint8_t keep, const Bytes& a, const Bytes& index,
                                     const Bytes& b) {
  Bytes r;
  for (int i = 0; i < 8; ++i) {
    const uint64_t at = qword(index, i) & 15;
    set_qword(r, i, keep >> i & 1 ? qword(at < 8 ? a : b, int(at & 7)) : 0);
  }
  return r;
}
UNSPOOL_INLINE Bytes multishift(const Control& control, const Bytes& a) {
  Bytes r;
  for (int i = 0; i < 64; ++i) {
    const uint64_t ring = qword(a, i / 8);
    const unsigned start = (unsigned)(control.starts >> 8 * (i % 8)) & 63;
    r.b[i] = uint8_t(start ? ring >> start | ring << (64 - start) : ring);
  }
  return r;
}
UNSPOOL_INLINE Bytes shift_qwords_right(const Bytes& a, unsigned count) {
  Bytes r;
  for (int i = 0; i < 8; ++i) set_qword(r, i, qword(a, i) >> count);
  return r;
}
UNSPOOL_INLINE Bytes shift_qwords_left(const Bytes& a, unsigned count) {
  Bytes r;
  for (int i = 0; i < 8; ++i) set_qword(r, i, qword(a, i) << count);
  return r;
}
UNSPOOL_INLINE Bytes permute2_bytes(const Bytes& index, const Bytes& low, const Bytes& high) {
  Bytes r;
  for (int i = 0; i < 64; ++i) {
    const int at = index.b[i] & 127;
    r.b[i] = at < 64 ? low.b[at] : high.b[at - 64];
  }
  return r;
}
UNSPOOL_INLINE Bytes interleave_low(const Bytes& a, const Bytes& b) {
  Bytes r;
  for (int i = 0; i < 64; ++i) r.b[i] = (i & 1 ? b : a).b[i / 16 * 16 + i % 16 / 2];
  return r;
}
UNSPOOL_INLINE Bytes interleave_high(const Bytes& a, const Bytes& b) {
  Bytes r;
  for (int i = 0; i < 64; ++i) r.b[i] = (i & 1 ? b : a).b[i / 16 * 16 + 8 + i % 16 / 2];
  return r;
}
template <int Q>
UNSPOOL_INLINE Floats widen(const Bytes& a) {
  Floats r;
  for (int i = 0; i < 16; ++i) r.f[i] = float(int8_t(a.b[16 * Q + i]));
  return r;
}
UNSPOOL_INLINE Floats load_floats(const float* at) {
  Floats r;
  __builtin_memcpy(r.f, at, 64);
  return r;
}
UNSPOOL_INLINE Floats broadcast(float value) {
  Floats r;
  for (int i = 0; i < 16; ++i) r.f[i] = value;
  return r;
}
UNSPOOL_INLINE Floats product(const Floats& a, const Floats& b) {
  Floats r;
  for (int i = 0; i < 16; ++i) r.f[i] = a.f[i] * b.f[i];
  return r;
}
UNSPOOL_INLINE Floats fma(const Floats& a, const Floats& b, const Floats& c) {
  Floats r;
  for (int i = 0; i < 16; ++i) r.f[i] = __builtin_fmaf(a.f[i], b.f[i], c.f[i]);
  return r;
}
UNSPOOL_INLINE void store_floats(float* to, const Floats& a) { __builtin_memcpy(to, a.f, 64); }

#endif

// Eight tiles in memory to one vector per qword of a tile.
//
//   t0q0 t0q1 t1q0 t1q1 ...    ->    t0q0 t1q0 t2q0 ...    t0q1 t1q1 t2q1 ...
template <int Qwords>
UNSPOOL_INLINE void deinterleave(const LookUp& plan, const uint8_t* tiles, Bytes* planes) {
  Bytes loaded[Qwords + 1];
  for (int i = 0; i < Qwords; ++i) loaded[i] = load(tiles + 64 * i);
  loaded[Qwords] = broadcast_byte(0);
  UNSPOOL_UNROLL
  for (int j = 0; j < Qwords; ++j) {
    Bytes found = broadcast_byte(0);
    UNSPOOL_UNROLL
    for (int i = 0; i < Qwords; i += 2)
      found = either(found, permute2_qwords(plan.tiles[j][i / 2], loaded[i],
                                            load(plan.from[j][i / 2]), loaded[i + 1]));
    planes[j] = found;
  }
}

constexpr bool kSplitTables = false;

template <int>
UNSPOOL_INLINE Bytes look_up(const LookUp& plan, int lane, const Bytes& index) {
  return permute2_bytes(index, load(plan.table[lane]), load(plan.table[lane] + 64));
}
