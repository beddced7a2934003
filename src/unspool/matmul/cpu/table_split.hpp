// Tables looked up 16 bytes at a time. Compiled by strip_product.cpp for AVX2.
//
// Per register of weights (32 of t2-e2m1 take 17 instructions):
//
//   cut      a word holds each window and the bits after it (VPSHUFB); a multiplication with a
//            power of two brings it to the top of the word (VPMULLW), a shift or a mask leaves it
//   levels   one VPSHUFB for 16 entries; plain bits choose between halves (VPBLENDVB reads bit 7)
//
// A window starts s = 4 * (half of the row) + column bits into its word, at even columns low in a
// word of the result, at odd ones high:
//
//   even   word * 2^(16 - Ring - s) >> 16 - Ring       odd   word * 2^(8 - s) & mask << 8
constexpr bool kAnyStride = false;

template <int Ring, int Plain, int Lanes, int Stride = 1>
struct Table {
  static_assert(Stride == 1, "a window is cut from the byte where it starts and the next");
  static constexpr bool kTabulated = false;
  static constexpr int kLanes = Lanes;
  static constexpr int kUnits = 2;  // four steps each: half a row of a tile
  static constexpr int kQwords = (Ring ? 1 : 0) + Plain;
  static constexpr bool kPlainBytes = Ring + Plain == 8;
  static constexpr Range kRange = kPlainBytes ? kWide : kNarrow;
  static constexpr Pieces kPieces = Pieces(Plain);
  // Plain bits that fill the low index up to four bits; the others choose between parts.
  static constexpr int kMerged = Ring >= 4 ? 0 : Ring + Plain <= 4 ? Plain : 4 - Ring;
  static constexpr int kLow = Ring + kMerged, kTop = kPlainBytes ? 0 : Plain - kMerged;

  struct Index {
    Bytes low, top[kTop + 1];
  };

  Bytes places[kRegisters], even_power[kUnits], odd_power[kUnits], zero;
  LookUp<kLow> parts[Lanes][1 << kTop];

  UNSPOOL_INLINE explicit Table(const Plan& plan) {
    zero = broadcast_byte(plan.zero);
    for (int lane = 0; lane < Lanes; ++lane)
      for (int part = 0; part < 1 << kTop; ++part)
        parts[lane][part].set(plan.table[lane] + (part << kLow & 127));
    for (int j = 0; j < kRegisters; ++j) {
      uint8_t bytes[32];
      for (int i = 0; i < 32; ++i)
        bytes[i] = uint8_t(i / 8 * 8 % 16 +
                           ((plan.starts[0][j] >> 8 * (i % 8 & 6)) / 8 + i % 2) % 8);
      places[j] = load(bytes);
    }
    for (int unit = 0; unit < kUnits; ++unit) {
      uint16_t even[16], odd[16];
      for (int word = 0; word < 16; ++word) {
        const int s = 4 * unit + 2 * (word % 2);
        even[word] = uint16_t(1 << (16 - Ring - s));
        odd[word] = uint16_t(1 << (8 - (s + 1)));
      }
      even_power[unit] = load(even);
      odd_power[unit] = load(odd);
    }
  }

  template <int Unit, int J>
  UNSPOOL_INLINE Bytes cut(const Bytes& ring) const {
    const Bytes pairs = shuffle(ring, places[J]);
    const Bytes even = _mm256_mullo_epi16(pairs, even_power[Unit]);
    const Bytes odd = _mm256_mullo_epi16(pairs, odd_power[Unit]);
    const Bytes mask = _mm256_set1_epi16(((1 << Ring) - 1) << 8);
    return _mm256_or_si256(_mm256_srli_epi16(even, 16 - Ring), _mm256_and_si256(odd, mask));
  }

  // Plain bit `Bit` of output O, moved to bit `To` of its byte; other bits are anything.
  template <int O, int Bit, int To>
  static UNSPOOL_INLINE Bytes plain(const Bytes* v) {
    constexpr int kPiece = Bit < kPieces.low[1] || kPieces.count == 1   ? 0
                           : Bit < kPieces.low[2] || kPieces.count == 2 ? 1
                                                                        : 2;
    constexpr int kBits = kPieces.width[kPiece], kFirst = kPieces.low[kPiece];
    constexpr int kFields = 8 / kBits, kAt = (Ring ? 1 : 0) + kFirst + O / kFields;
    return shift_words<kBits * (O % kFields) + Bit - kFirst - To>(v[kAt]);
  }

  template <int O, int Bit>
  static UNSPOOL_INLINE void merge(const Bytes* v, Bytes& low) {
    if constexpr (Bit < kMerged) {
      constexpr int kPieceBits = Bit == 0 && Ring == 0 ? kPieces.width[0] : 1;
      const Bytes mask = broadcast_byte(uint8_t(((1 << kPieceBits) - 1) << (Ring + Bit)));
      const Bytes moved = _mm256_and_si256(plain<O, Bit, Ring + Bit>(v), mask);
      low = Ring || Bit ? _mm256_or_si256(low, moved) : moved;
      merge<O, Bit + kPieceBits>(v, low);
    }
  }

  template <int O, int I>
  static UNSPOOL_INLINE void choosers(const Bytes* v, Index& found) {
    if constexpr (I < kTop) {
      found.top[I] = plain<O, kMerged + I, 7>(v);
      choosers<O, I + 1>(v, found);
    }
  }

  template <int Unit, int J>
  UNSPOOL_INLINE Index index(const Bytes* v) const {
    constexpr int kOutput = kRegisters * Unit + J;
    Index found;
    if constexpr (kPlainBytes) {
      found.low = v[kOutput];  // the bits are the level
    } else {
      if constexpr (Ring != 0) found.low = cut<Unit, J>(v[0]);
      merge<kOutput, 0>(v, found.low);
      choosers<kOutput, 0>(v, found);
    }
    return found;
  }

  template <int Top>
  UNSPOOL_INLINE Bytes pick(const Index& index, const LookUp<kLow>* part) const {
    if constexpr (Top == 0) {
      return part->at_clean(index.low);
    } else {
      const Bytes zeros = pick<Top - 1>(index, part);
      const Bytes ones = pick<Top - 1>(index, part + (1 << (Top - 1)));
      return _mm256_blendv_epi8(zeros, ones, index.top[Top - 1]);
    }
  }

  UNSPOOL_INLINE Bytes levels(const Index& index, int lane) const {
    if constexpr (kPlainBytes)
      return exclusive_or(index.low, zero);
    else
      return pick<kTop>(index, parts[lane]);
  }
};
