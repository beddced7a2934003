// The instructions of lanes_avx512.hpp in plain C++, for machines that have none of the others, and
// their twin in the tests: the kernel above them is the same. No include guard: strip_product.cpp
// compiles it beside the lanes of other machines.

constexpr int kWidth = 64;         // bytes of a register, and rows of a strip
constexpr int kLane = kWidth / 4;  // rows of a register
struct Bytes {
  uint8_t b[kWidth];
};
struct Floats {
  float f[kLane];
};

constexpr int kFew = 1;     // rows of activations multiplied as the levels are decoded
constexpr int kAtOnce = 1;  // rows that share decoded levels: there are no registers to hold sums
constexpr bool kDotFour = false;

template <class Each>
UNSPOOL_INLINE Bytes each_byte(const Each& each) {
  Bytes r;
  for (int i = 0; i < kWidth; ++i) r.b[i] = uint8_t(each(i));
  return r;
}
template <class Word>
UNSPOOL_INLINE Word word(const Bytes& a, int i) {
  Word w;
  __builtin_memcpy(&w, a.b + i * int(sizeof w), sizeof w);
  return w;
}
template <class Word, class Each>
UNSPOOL_INLINE Bytes each_word(const Each& each) {
  Bytes r;
  for (int i = 0; i < int(kWidth / sizeof(Word)); ++i) {
    const Word w = Word(each(i));
    __builtin_memcpy(r.b + i * int(sizeof w), &w, sizeof w);
  }
  return r;
}
template <class Each>
UNSPOOL_INLINE Floats each_float(const Each& each) {
  Floats r;
  for (int i = 0; i < kLane; ++i) r.f[i] = each(i);
  return r;
}

UNSPOOL_INLINE Bytes load(const void* at) {
  Bytes r;
  __builtin_memcpy(r.b, at, kWidth);
  return r;
}
UNSPOOL_INLINE void store(void* to, const Bytes& a) { __builtin_memcpy(to, a.b, kWidth); }
UNSPOOL_INLINE Bytes broadcast_byte(uint8_t b) {
  return each_byte([&](int) { return b; });
}
UNSPOOL_INLINE Bytes broadcast_dword(uint32_t d) {
  return each_word<uint32_t>([&](int) { return d; });
}
// Four activations that follow one another, in every dword.
UNSPOOL_INLINE Bytes four_activations(const int8_t* at) {
  uint32_t four;
  __builtin_memcpy(&four, at, 4);
  return broadcast_dword(four);
}
UNSPOOL_INLINE Bytes select(const Bytes& mask, const Bytes& a, const Bytes& b) {
  return each_byte([&](int i) { return (a.b[i] & mask.b[i]) | (b.b[i] & ~mask.b[i]); });
}
UNSPOOL_INLINE Bytes exclusive_or(const Bytes& a, const Bytes& b) {
  return each_byte([&](int i) { return a.b[i] ^ b.b[i]; });
}
template <int Count>
UNSPOOL_INLINE Bytes shift_words(const Bytes& a) {
  return each_word<uint16_t>([&](int i) {
    const unsigned w = word<uint16_t>(a, i);
    return Count >= 0 ? w >> (Count >= 0 ? Count : 0) : w << (Count < 0 ? -Count : 0);
  });
}
template <int Count>
UNSPOOL_INLINE Bytes funnel_qwords(const Bytes& low, const Bytes& high) {
  return each_word<uint64_t>([&](int i) {
    return word<uint64_t>(low, i) >> Count | word<uint64_t>(high, i) << (64 - Count);
  });
}
UNSPOOL_INLINE Bytes shuffle(const Bytes& a, const Bytes& places) {
  return each_byte([&](int i) { return a.b[i / 16 * 16 + (places.b[i] & 15)]; });
}
UNSPOOL_INLINE Bytes multiply_add(const Bytes& a, const Bytes& by, const Bytes& add) {
  return each_word<uint32_t>([&](int i) {
    return word<uint32_t>(a, i) * word<uint32_t>(by, i) + word<uint32_t>(add, i);
  });
}

struct Windows {
  uint8_t starts[8];
  UNSPOOL_INLINE void set(uint64_t each) {
    for (int i = 0; i < 8; ++i) starts[i] = uint8_t(each >> 8 * i & 63);
  }
  UNSPOOL_INLINE Bytes cut(const Bytes& a) const {
    Bytes r;
    for (int q = 0; q < kWidth / 8; ++q) {
      const uint64_t ring = word<uint64_t>(a, q);
      for (int i = 0; i < 8; ++i)
        r.b[8 * q + i] = uint8_t(ring >> starts[i] | ring << (-starts[i] & 63));
    }
    return r;
  }
};

UNSPOOL_INLINE Bytes upper_nibbles(const Bytes& a) {
  return each_byte([&](int i) { return a.b[i / 4 * 4 + 2 + i % 4 / 2] >> 4 * (i % 2); });
}

template <int Bits>
struct LookUp {
  uint8_t table[128];
  UNSPOOL_INLINE void set(const uint8_t* from) { __builtin_memcpy(table, from, sizeof table); }
  UNSPOOL_INLINE Bytes at(const Bytes& index) const {
    return each_byte([&](int i) { return table[index.b[i] & ((1 << (Bits < 7 ? Bits : 7)) - 1)]; });
  }
};

template <Range Levels>
UNSPOOL_INLINE Bytes dot(const Bytes& sum, const Bytes& weights, const Bytes& activations) {
  return each_word<int32_t>([&](int i) {
    int32_t found = word<int32_t>(sum, i);
    for (int b = 4 * i; b < 4 * i + 4; ++b)
      found += int32_t(weights.b[b]) * int8_t(activations.b[b]);
    return found;
  });
}

UNSPOOL_INLINE float normal(float x) {
  return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0, x) : x;
}
UNSPOOL_INLINE Floats dot_pairs(const Floats& sum, const Bytes& weights, const Bytes& activations) {
  return each_float([&](int i) {
    float found = sum.f[i];
    for (int pair = 1; pair >= 0; --pair) {
      float a, b;
      const uint32_t w = uint32_t(word<uint16_t>(weights, 2 * i + pair)) << 16;
      const uint32_t x = uint32_t(word<uint16_t>(activations, 2 * i + pair)) << 16;
      __builtin_memcpy(&a, &w, 4);
      __builtin_memcpy(&b, &x, 4);
      found = normal(__builtin_fmaf(normal(a), normal(b), normal(found)));
    }
    return found;
  });
}

UNSPOOL_INLINE Floats to_floats(const Bytes& sums) {
  return each_float([&](int i) { return float(word<int32_t>(sums, i)); });
}
UNSPOOL_INLINE Floats load_floats(const float* at) {
  return each_float([&](int i) { return at[i]; });
}
UNSPOOL_INLINE void store_floats(float* to, const Floats& a) {
  __builtin_memcpy(to, a.f, sizeof a.f);
}
UNSPOOL_INLINE Floats broadcast(float value) {
  return each_float([&](int) { return value; });
}
UNSPOOL_INLINE Floats product(const Floats& a, const Floats& b) {
  return each_float([&](int i) { return a.f[i] * b.f[i]; });
}
UNSPOOL_INLINE Floats sum(const Floats& a, const Floats& b) {
  return each_float([&](int i) { return a.f[i] + b.f[i]; });
}
UNSPOOL_INLINE Floats halves(const void* at) {
  return each_float([&](int i) { return half_to_float(((const uint16_t*)at)[i]); });
}
UNSPOOL_INLINE Floats e4m3_256ths(const void* at) {
  return each_float([&](int i) {
    const uint32_t bits = ((const uint8_t*)at)[i];
    return half_to_float(uint16_t((bits & 0x80) << 8 | (bits & 0x7f) << 7));
  });
}
UNSPOOL_INLINE Floats e8m0(const void* at) {
  return each_float([&](int i) {
    const uint32_t exponent = ((const uint8_t*)at)[i], bits = exponent ? exponent << 23 : 1u << 22;
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
  });
}
UNSPOOL_INLINE void prefetch(const void*) {}
