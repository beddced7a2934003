// Tables indexed by one byte that holds ring and plain bits. Compiled by strip_product.cpp for
// lanes that look up many bytes at once.
//
// Per register of weights:
//
//   cut      windows of the ring: VPMULTISHIFTQB, whose rotation is the ring's; or a shift. A ring
//            of stride 2 or 3 is as many qwords; where a register's windows begin inside one,
//            VPSHRDQ brings them down, so that the same starts serve all registers
//   merge    plain bits above them: VPTERNLOG
//   levels   VPERMB or VPERMI2B: bytes of level + `zero`, since VPDPBUSD takes one unsigned side

constexpr bool kAnyStride = true;

// A table of at most 128 levels (256 where the bits are the level), indexed by a window of a ring
// and plain bits above it; either may be absent.
template <int Ring, int Plain, int Lanes, int Stride = 1>
struct Table {
  static_assert(Stride <= kMaxStride, "two rows' windows of a half do not fit a qword");
  static constexpr bool kTabulated = false;
  static constexpr int kLanes = Lanes;
  static constexpr int kUnits = 2;  // four steps each: half a row of a tile
  static constexpr int kRing = Ring ? Stride : 0, kQwords = kRing + Plain;
  static constexpr int kBits = Ring + Plain;
  static constexpr Range kRange = kBits == 8 ? kWide : kNarrow;
  static constexpr Pieces kPieces = Pieces(Plain);

  Windows windows[kUnits][Stride == 1 ? kRegisters : 1];
  LookUp<kBits> tables[Lanes];
  Bytes masks[kMaxPieces], zero;

  UNSPOOL_INLINE explicit Table(const Plan& plan) {
    UNSPOOL_UNROLL
    for (int unit = 0; unit < kUnits; ++unit)
      UNSPOOL_UNROLL
      for (int j = 0; j < (Stride == 1 ? kRegisters : 1); ++j)
        windows[unit][j].set(plan.starts[unit][j]);
    UNSPOOL_UNROLL
    for (int lane = 0; lane < Lanes; ++lane) tables[lane].set(plan.table[lane]);
    zero = broadcast_byte(plan.zero);
    UNSPOOL_UNROLL
    for (int p = 0; p < kPieces.count; ++p)
      masks[p] = broadcast_byte(
          uint8_t(((1 << kPieces.width[p]) - 1) << (Ring + kPieces.low[p])));
  }

  // Merges piece P of output O over what the index has so far.
  template <int O, int P>
  UNSPOOL_INLINE void merge(const Bytes* v, Bytes& index) const {
    if constexpr (P < kPieces.count) {
      constexpr int kBit = kPieces.width[P], kFields = 8 / kBit;
      constexpr int kAt = kRing + kPieces.low[P] + O / kFields;
      constexpr int kShift = kBit * (O % kFields) - (Ring + kPieces.low[P]);
      const Bytes moved = shift_words<kShift>(v[kAt]);
      index = Ring || P ? select(masks[P], moved, index) : moved;
      merge<O, P + 1>(v, index);
    }
  }

  // Register J's rows begin at bit 16 * Stride * J of the ring.
  template <int Unit, int J>
  UNSPOOL_INLINE Bytes cut(const Bytes* v) const {
    constexpr int kFirst = 16 * Stride * J, kAt = kFirst / 64;
    if constexpr (Stride == 1)
      return windows[Unit][J].cut(v[0]);
    else if constexpr (kFirst % 64 == 0)
      return windows[Unit][0].cut(v[kAt]);
    else
      return windows[Unit][0].cut(funnel_qwords<kFirst % 64>(v[kAt], v[(kAt + 1) % Stride]));
  }

  template <int Unit, int J>
  UNSPOOL_INLINE Bytes index(const Bytes* v) const {
    Bytes found = v[0];
    if constexpr (Ring != 0) found = cut<Unit, J>(v);
    merge<kRegisters * Unit + J, 0>(v, found);
    return found;
  }

  UNSPOOL_INLINE Bytes levels(const Bytes& index, int lane) const {
    if constexpr (kBits == 8)
      return exclusive_or(index, zero);  // the bits are the level
    else
      return tables[lane].at(index);
  }
};
