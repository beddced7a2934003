// Int8 activations of one block. Compiled once per instruction set by each_isa.hpp.

constexpr uint32_t kInfinity = 0x7f800000;
constexpr uint32_t kTiny = 0x03800000;  // 2^-120: smaller blocks count as zero, 127 / it overflows
constexpr float kRound = 12582912.0f;   // 1.5 * 2^23: adding it rounds to an integer, to even

// q [count] and their scale: largest magnitude / 127; zeros and NaN where a number is not finite.
static float quantize_block(const float* x, int64_t count, int8_t* q) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    __builtin_memcpy(&bits, x + i, 4);
    bits &= 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
  if (largest >= kInfinity || largest < kTiny) {
    for (int64_t i = 0; i < count; ++i) q[i] = 0;
    return largest >= kInfinity ? __builtin_nanf("") : 0.0f;
  }
  float top;
  __builtin_memcpy(&top, &largest, 4);
  const float inverse = 127.0f / top;
  for (int64_t i = 0; i < count; ++i) {
    const float rounded = x[i] * inverse + kRound;
    int32_t bits;
    __builtin_memcpy(&bits, &rounded, 4);
    q[i] = (int8_t)bits;  // the integer is in the low bits, in two's complement
  }
  return top / 127.0f;
}

static int32_t sum_of(const int8_t* q, int64_t count) {
  int32_t sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += q[i];
  return sum;
}

// Sixteen columns of a code of two lanes: a dword of even columns, one of odd ones, and again.
static void by_lanes(int8_t* q, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) {
    int8_t old[16];
    __builtin_memcpy(old, q + i, 16);
    for (int j = 0; j < 16; ++j) q[i + j] = old[j / 8 * 8 + j % 4 * 2 + j / 4 % 2];
  }
}

static void widen_bfloat16(const uint16_t* x, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = (uint32_t)x[i] << 16;
    __builtin_memcpy(out + i, &bits, 4);
  }
}

// Round to nearest even; a NaN stays one.
static void narrow_bfloat16(const float* x, int64_t count, uint16_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    __builtin_memcpy(&bits, x + i, 4);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    out[i] = (uint16_t)((bits & 0x7fffffff) > kInfinity ? (bits >> 16) | 0x40 : rounded);
  }
}
