// One step of a dense trellis for a group of rings, forwards and back. Compiled once per
// instruction set by each_isa.hpp, inside dense.cpp, which declares Dense, Best, kRings, kAbreast
// and kMost.

typedef uint8_t b32 __attribute__((vector_size(32), may_alias));
typedef uint8_t b8 __attribute__((vector_size(8), may_alias));
typedef char c32 __attribute__((vector_size(32)));

// The costs of 32 rings, where they lie in memory.
#define UNSPOOL_COSTS(at) (*(const b32*)(at))

UNSPOOL_INLINE void lower(b32& best, const b32& cost) { best = cost < best ? cost : best; }

// The same, and which of the costs it was: the first of equals.
UNSPOOL_INLINE void lower(b32& best, b32& which, const b32& cost, uint8_t number) {
  which = cost < best ? number - b32{} : which;
  lower(best, cost);
}

// Sums beyond 255 stay there.
UNSPOOL_INLINE void add(b32& sum, const b32& cost) {
#ifdef UNSPOOL_AVX2
  sum = (b32)__builtin_ia32_paddusb256((c32)sum, (c32)cost);
#else
  const b32 room = ~sum;
  sum += cost < room ? cost : room;
#endif
}

UNSPOOL_INLINE void keep_sum(uint8_t* at, const uint8_t* first, const uint8_t* second) {
  b32 sum = UNSPOOL_COSTS(first);
  add(sum, UNSPOOL_COSTS(second));
  *(b32*)at = sum;
}

// costs[lane, level, ring] of one step: how much further than the nearest level, in units, capped.
static void level_costs(const Dense& t, const float* targets, uint8_t* costs) {
  for (size_t lane = 0; lane < t.lanes; ++lane, costs += t.count * kRings) {
    const float* level = t.levels + lane * t.count;
    for (size_t ring = 0; ring < kRings; ring += 8) {
      const f8 x = UNSPOOL_VIEW(f8, targets + lane * kRings + ring);
      f8 least = (x - level[0]) * (x - level[0]);
      for (size_t i = 1; i < t.count; ++i) {
        const f8 missed = x - level[i], square = missed * missed;
        least = square < least ? square : least;
      }
      for (size_t i = 0; i < t.count; ++i) {
        const f8 missed = x - level[i], units = (missed * missed - least) * t.units;
        const f8 most = UNSPOOL_ALL(float(kMost));
        const m8 whole = __builtin_convertvector((units < most ? units : most) + 0.5f, m8);
        *(b8*)(costs + i * kRings + ring) = __builtin_convertvector(whole, b8);
      }
    }
  }
}

// What an edge's offsets point into: the costs of lanes, or the sums of two neighbouring lanes.
static void cost_tables(const Dense& t, const float* targets, uint8_t* levels, uint8_t* tables) {
  if (t.tables == t.lanes) return level_costs(t, targets, tables);
  level_costs(t, targets, levels);
  for (size_t pair = 0; pair < t.tables; ++pair) {
    const uint8_t* first = levels + 2 * pair * t.count * kRings;
    const uint8_t* second = first + t.count * kRings;
    for (size_t i = 0; i < t.count; ++i)
      for (size_t j = 0; j < t.count; ++j, tables += kRings)
        keep_sum(tables, first + i * kRings, second + j * kRings);
  }
}

template <size_t Tables>
UNSPOOL_INLINE void look_up(const Dense& t, const uint8_t* tables, const uint16_t* offset,
                            b32& cost) {
  cost = UNSPOOL_COSTS(tables + offset[0]);
  for (size_t i = 1; i < (Tables ? Tables : t.tables); ++i)
    add(cost, UNSPOOL_COSTS(tables + offset[i]));
}

// after[to] = min over from-nodes of before[from] + cheapest parallel edge, four to-nodes at a time
// so that a walk's cost is read once for four edges. Whence the cheapest comes goes to `whence`.
template <size_t Tables, size_t Parallel, bool Followed>
UNSPOOL_INLINE void advance(const Dense& t, const uint8_t* tables, const uint8_t* before,
                            uint8_t* after, uint8_t* whence) {
  const size_t parallel = Parallel ? Parallel : t.parallel, count = Tables ? Tables : t.tables;
  const uint16_t* offset = t.offsets;
  for (size_t to = 0; to < t.nodes; to += kAbreast) {
    b32 best[kAbreast], node[kAbreast] = {};
    for (size_t j = 0; j < kAbreast; ++j) best[j] = kMost - b32{};
    for (size_t from = 0; from < t.nodes; ++from) {
      const b32 walk = UNSPOOL_COSTS(before + from * kRings);
      for (size_t j = 0; j < kAbreast; ++j) {
        b32 cheapest, other;
        look_up<Tables>(t, tables, offset, cheapest);
        offset += count;
        for (size_t copy = 1; copy < parallel; ++copy, offset += count) {
          look_up<Tables>(t, tables, offset, other);
          lower(cheapest, other);
        }
        add(cheapest, walk);
        if (Followed)
          lower(best[j], node[j], cheapest, uint8_t(from));
        else
          lower(best[j], cheapest);
      }
    }
    for (size_t j = 0; j < kAbreast; ++j) {
      *(b32*)(after + (to + j) * kRings) = best[j];
      if (Followed) *(b32*)(whence + (to + j) * kRings) = node[j];
    }
  }
}

// Walk costs start again from zero; `taken` keeps what they lose.
UNSPOOL_INLINE void from_zero(const Dense& t, uint8_t* walks, uint8_t* taken) {
  b32 least = UNSPOOL_COSTS(walks);
  for (size_t node = 1; node < t.nodes; ++node) lower(least, UNSPOOL_COSTS(walks + node * kRings));
  for (size_t node = 0; node < t.nodes; ++node) *(b32*)(walks + node * kRings) -= least;
  *(b32*)taken = least;
}

static void step(const Dense t, const uint8_t* tables, const uint8_t* before, uint8_t* after,
                 uint8_t* whence, uint8_t* taken) {
  if (whence && t.tables == 4)
    advance<4, 0, true>(t, tables, before, after, whence);
  else if (whence)
    advance<0, 0, true>(t, tables, before, after, whence);
  else if (t.tables == 2 && t.parallel == 1)
    advance<2, 1, false>(t, tables, before, after, whence);
  else if (t.tables == 4 && t.parallel == 1)
    advance<4, 1, false>(t, tables, before, after, whence);
  else if (t.tables == 2)
    advance<2, 0, false>(t, tables, before, after, whence);
  else if (t.tables == 4)
    advance<4, 0, false>(t, tables, before, after, whence);
  else
    advance<0, 0, false>(t, tables, before, after, whence);
  from_zero(t, after, taken);
}

// The first of the cheapest edges into `to` for one ring, from the nodes [from, until). `known` is
// their cost where it is known: half of the edges are then never looked at.
static Best cheapest_edge(const Dense& t, const uint8_t* tables, const uint8_t* before, size_t to,
                          size_t ring, size_t from, size_t until, int known) {
  Best best = {2 * kMost, 0};
  for (; from < until; ++from) {
    const size_t place = (to / kAbreast * t.nodes + from) * kAbreast + to % kAbreast;
    const uint16_t* offset = t.offsets + place * t.parallel * t.tables;
    const int walk = before[from * kRings + ring];
    for (size_t copy = 0; copy < t.parallel; ++copy, offset += t.tables) {
      int cost = walk;
      for (size_t i = 0; i < t.tables; ++i) cost += tables[offset[i] + ring];
      cost = cost < kMost ? cost : kMost;
      if (cost < best.cost) best = {cost, from * t.parallel + copy};
      if (cost == known) return best;
    }
  }
  return best;
}
