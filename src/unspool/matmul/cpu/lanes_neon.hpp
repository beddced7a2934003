// What the strip kernel asks of NEON with dot products (Armv8.2 DotProd): 16 bytes, so a strip is
// 16 rows. No include guard: strip_product.cpp compiles it beside the lanes of other machines.

typedef uint8x16_t Bytes;
typedef float32x4_t Floats;  // one per dword

constexpr int kWidth = int(sizeof(Bytes));  // bytes of a register, and rows of a strip
constexpr int kLane = kWidth / 4;           // rows of a register
constexpr int kFew = 4;     // rows of activations multiplied as the levels are decoded
constexpr int kAtOnce = 6;  // rows that share decoded levels: 24 of 32 registers hold sums
constexpr bool kDotFour = false;

UNSPOOL_INLINE Bytes load(const void* at) { return vld1q_u8((const uint8_t*)at); }
UNSPOOL_INLINE void store(void* to, Bytes a) { vst1q_u8((uint8_t*)to, a); }
UNSPOOL_INLINE Bytes broadcast_byte(uint8_t b) { return vdupq_n_u8(b); }
UNSPOOL_INLINE Bytes broadcast_dword(uint32_t d) { return vreinterpretq_u8_u32(vdupq_n_u32(d)); }
// Four activations that follow one another, in every dword.
UNSPOOL_INLINE Bytes four_activations(const int8_t* at) {
  uint32_t four;
  __builtin_memcpy(&four, at, 4);
  return broadcast_dword(four);
}
// BSL: bits of a where mask is set, else of b.
UNSPOOL_INLINE Bytes select(Bytes mask, Bytes a, Bytes b) { return vbslq_u8(mask, a, b); }
UNSPOOL_INLINE Bytes exclusive_or(Bytes a, Bytes b) { return veorq_u8(a, b); }
template <int Count>
UNSPOOL_INLINE Bytes shift_words(Bytes a) {
  return vreinterpretq_u8_u16(vshlq_u16(vreinterpretq_u16_u8(a), vdupq_n_s16(-Count)));
}
template <int Count>
UNSPOOL_INLINE Bytes funnel_qwords(Bytes low, Bytes high) {
  return vreinterpretq_u8_u64(vsliq_n_u64(vshrq_n_u64(vreinterpretq_u64_u8(low), Count),
                                          vreinterpretq_u64_u8(high), 64 - Count));
}
UNSPOOL_INLINE Bytes shuffle(Bytes a, Bytes places) { return vqtbl1q_u8(a, places); }
UNSPOOL_INLINE Bytes multiply_add(Bytes a, Bytes by, Bytes add) {
  return vreinterpretq_u8_u32(vmlaq_u32(vreinterpretq_u32_u8(add), vreinterpretq_u32_u8(a),
                                        vreinterpretq_u32_u8(by)));
}

// Byte i of each qword is 8 bits from bit starts[i] on, around the qword: a word holds each window
// and the bits after it (TBL), USHL brings it into the low byte, or into the high one at odd
// places.
struct Windows {
  Bytes even_places, odd_places;
  int16x8_t even_shift, odd_shift;
  UNSPOOL_INLINE void set(uint64_t each) {
    uint8_t places[2][16];
    int16_t shifts[2][8];
    for (int i = 0; i < 16; ++i) {
      const int start = int(each >> 8 * (i % 8) & 63), qword = i / 8 * 8, word = i / 2;
      places[i % 2][2 * word] = uint8_t(qword + start / 8);
      places[i % 2][2 * word + 1] = uint8_t(qword + (start / 8 + 1) % 8);
      shifts[i % 2][word] = int16_t((i % 2 ? 8 : 0) - start % 8);
    }
    even_places = load(places[0]);
    odd_places = load(places[1]);
    even_shift = vld1q_s16(shifts[0]);
    odd_shift = vld1q_s16(shifts[1]);
  }
  UNSPOOL_INLINE Bytes cut(Bytes a) const {
    const uint16x8_t even = vshlq_u16(vreinterpretq_u16_u8(shuffle(a, even_places)), even_shift);
    const uint16x8_t odd = vshlq_u16(vreinterpretq_u16_u8(shuffle(a, odd_places)), odd_shift);
    return vreinterpretq_u8_u16(vbslq_u16(vdupq_n_u16(0xff00), odd, even));
  }
};

// The four nibbles of each dword's upper half, lowest first, in the low bits of its bytes.
UNSPOOL_INLINE Bytes upper_nibbles(Bytes a) {
  const Bytes spread = shuffle(a, vreinterpretq_u8_u64(vcombine_u64(
      vcreate_u64(0x0707060603030202), vcreate_u64(0x0f0f0e0e0b0b0a0a))));
  return vbslq_u8(vreinterpretq_u8_u16(vdupq_n_u16(0xff00)), vshrq_n_u8(spread, 4), spread);
}

// TBL of one, two or four registers; TBX reads on in the second four where the index goes beyond.
template <int Bits>
struct LookUp {
  uint8x16x4_t low, high;
  UNSPOOL_INLINE void set(const uint8_t* table) {
    UNSPOOL_UNROLL
    for (int p = 0; p < 4; ++p) {
      low.val[p] = load(table + 16 * p);
      high.val[p] = load(table + 64 + 16 * p);
    }
  }
  UNSPOOL_INLINE Bytes at(Bytes index) const {
    index = vandq_u8(index, broadcast_byte(uint8_t((1 << (Bits < 7 ? Bits : 7)) - 1)));
    if (Bits <= 4) return vqtbl1q_u8(low.val[0], index);
    if (Bits == 5) return vqtbl2q_u8(uint8x16x2_t{{low.val[0], low.val[1]}}, index);
    const Bytes found = vqtbl4q_u8(low, index);
    if (Bits == 6) return found;
    return vqtbx4q_u8(found, high, vsubq_u8(index, broadcast_byte(64)));
  }
};

// SDOT: both sides are signed, levels are stored as they are.
template <Range Levels>
UNSPOOL_INLINE Bytes dot(Bytes sum, Bytes weights, Bytes activations) {
  return vreinterpretq_u8_s32(vdotq_s32(vreinterpretq_s32_u8(sum), vreinterpretq_s8_u8(weights),
                                        vreinterpretq_s8_u8(activations)));
}

UNSPOOL_INLINE Floats to_floats(Bytes sums) { return vcvtq_f32_s32(vreinterpretq_s32_u8(sums)); }
UNSPOOL_INLINE Floats load_floats(const float* at) { return vld1q_f32(at); }
UNSPOOL_INLINE void store_floats(float* to, Floats a) { vst1q_f32(to, a); }
UNSPOOL_INLINE Floats broadcast(float value) { return vdupq_n_f32(value); }
UNSPOOL_INLINE Floats product(Floats a, Floats b) { return vmulq_f32(a, b); }
UNSPOOL_INLINE Floats sum(Floats a, Floats b) { return vaddq_f32(a, b); }
// Binary16 numbers.
UNSPOOL_INLINE Floats halves(const void* at) {
  uint16x4_t bits;
  __builtin_memcpy(&bits, at, 8);
  return vcvt_f32_f16(vreinterpret_f16_u16(bits));
}
// E4M3 numbers / 256: their exponent and mantissa are those of a binary16, a bit further down.
UNSPOOL_INLINE Floats e4m3_256ths(const void* at) {
  uint32_t four;
  __builtin_memcpy(&four, at, 4);
  const uint16x4_t wide = vget_low_u16(vmovl_u8(vcreate_u8(four)));
  const uint16x4_t sign = vshl_n_u16(vand_u16(wide, vdup_n_u16(0x80)), 8);
  const uint16x4_t rest = vshl_n_u16(vand_u16(wide, vdup_n_u16(0x7f)), 7);
  return vcvt_f32_f16(vreinterpret_f16_u16(vorr_u16(sign, rest)));
}
// E8M0 numbers: the exponent of a float; 0 stands for 2^-127, a subnormal.
UNSPOOL_INLINE Floats e8m0(const void* at) {
  uint32_t four;
  __builtin_memcpy(&four, at, 4);
  const uint32x4_t wide = vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four))));
  return vreinterpretq_f32_u32(vmaxq_u32(vshlq_n_u32(wide, 23), vdupq_n_u32(0x00400000)));
}
UNSPOOL_INLINE void prefetch(const void* at) { __builtin_prefetch(at); }
