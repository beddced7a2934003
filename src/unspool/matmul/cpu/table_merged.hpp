// Tables indexed by one byte that holds ring and plain bits. Compiled by strip_product.cpp for
// lanes that look up many bytes at once.
//
// Per register of weights:
//
//   cut      windows of the ring: VPMULTISHIFTQB, whose rotation is the ring's; or a shift
//   merge    plain bits above them: VPTERNLOG
//   levels   VPERMB or VPERMI2B: bytes of level + `zero`, since VPDPBUSD takes one unsigned side

// A table of at most 128 levels (256 where the bits are the level), indexed by a window of a ring
// of stride 1 and plain bits above it; either may be absent.
template <int Ring, int Plain, int Lanes>
struct Table {
  static constexpr bool kTabulated = false;
  static constexpr int kLanes = Lanes;
  static constexpr int kUnits = 2;  // four steps each: half a row of a tile
  static constexpr int kQwords = (Ring ? 1 : 0) + Plain;
  static constexpr int kBits = Ring + Plain;
  static constexpr Range kRange = kBits == 8 ? kWide : kNarrow;
  static constexpr Pieces kPieces = Pieces(Plain);

  Windows windows[kUnits][kRegisters];
  LookUp<kBits> tables[Lanes];
  Bytes masks[kMaxPieces], zero;

  UNSPOOL_INLINE explicit Table(const Plan& plan) {
    UNSPOOL_UNROLL
    for (int unit = 0; unit < kUnits; ++unit)
      UNSPOOL_UNROLL
      for (int j = 0; j < kRegisters; ++j) windows[unit][j].set(plan.starts[unit][j]);
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
      constexpr int kAt = (Ring ? 1 : 0) + kPieces.low[P] + O / kFields;
      constexpr int kShift = kBit * (O % kFields) - (Ring + kPieces.low[P]);
      const Bytes moved = shift_words<kShift>(v[kAt]);
      index = Ring || P ? select(masks[P], moved, index) : moved;
      merge<O, P + 1>(v, index);
    }
  }

  template <int Unit, int J>
  UNSPOOL_INLINE Bytes index(const Bytes* v) const {
    Bytes found = Ring ? windows[Unit][J].cut(v[0]) : v[0];
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
