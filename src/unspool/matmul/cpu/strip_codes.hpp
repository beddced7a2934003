// The other codes that the strip kernel multiplies, beside the tables of table_*.hpp. Compiled by
// strip_product.cpp once for every lanes_*.hpp, whose vectors they hold.

// Two bytes of a ring at a time, spread over a dword, multiplied: its upper four nibbles are the
// weights.
struct Multiplied {
  static constexpr bool kTabulated = false;
  static constexpr int kLanes = 1;
  static constexpr int kUnits = 4;  // one step each: four weights
  static constexpr int kQwords = 4;
  static constexpr Range kRange = kNarrow;

  Bytes spread[3], multiplier, addend;
  LookUp<4> table;

  UNSPOOL_INLINE explicit Multiplied(const Plan& plan) {
    UNSPOOL_UNROLL
    for (int i = 0; i < 3; ++i) spread[i] = load(plan.spread[i]);
    multiplier = broadcast_dword(plan.multiplier);
    addend = broadcast_dword(plan.addend);
    table.set(plan.table[0]);
  }

  // Register j holds qword j, rows 2j and 2j + 1 of every tile; the last window of a row reads on.
  template <int Unit, int J>
  UNSPOOL_INLINE Bytes index(const Bytes* v) const {
    Bytes bytes = v[J];
    if (Unit == 3) bytes = funnel_qwords<24>(v[J], v[(J + 1) % kRegisters]);
    return upper_nibbles(multiply_add(shuffle(bytes, spread[Unit % 3]), multiplier, addend));
  }

  UNSPOOL_INLINE Bytes levels(const Bytes& index, int) const { return table.at(index); }
};

// A code that has no look-up here: row_levels.hpp decodes it row by row.
struct Tabulated {
  static constexpr bool kTabulated = true;
  UNSPOOL_INLINE explicit Tabulated(const Plan&) {}
};
