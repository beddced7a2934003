// One trellis step whose targets depend on the walk so far, for a group of rings. Compiled once per
// instruction set by each_isa.hpp, inside survivors.cpp, which declares Search and Scratch.

typedef int unaligned_m8 __attribute__((vector_size(32), aligned(4), may_alias));

// What every node asks of the step: y = P u for its targets u, and u P u on top of its walk.
static void prepare(const Search& s, const float* metric, size_t place, Scratch& w) {
  for (size_t node = 0; node < s.nodes; ++node) {
    const float* open = w.open + node * s.width + place * s.lanes;
    float u[kMostLanes][kRings];
    for (size_t lane = 0; lane < s.lanes; ++lane)
      for (size_t ring = 0; ring < kRings; ++ring) u[lane][ring] = open[ring * s.apart() + lane];
    float* base = w.base + node * kRings;
    float* y = w.y + node * s.lanes * kRings;
    for (size_t v = 0; v < kRings; v += 8) {
      f8 power = UNSPOOL_ALL(0.0f);
      for (size_t lane = 0; lane < s.lanes; ++lane) {
        f8 sum = UNSPOOL_ALL(0.0f);
        for (size_t other = 0; other < s.lanes; ++other)
          sum += UNSPOOL_ALL(metric[lane * s.lanes + other]) * UNSPOOL_VIEW(f8, u[other] + v);
        store(y + lane * kRings + v, sum);
        power += UNSPOOL_VIEW(f8, u[lane] + v) * sum;
      }
      store(base + v, UNSPOOL_VIEW(f8, w.alphas + node * kRings + v) + power);
    }
  }
}

// The cheapest edge into a node: its cost to `after`, its number to `chosen`.
template <size_t Lanes>
UNSPOOL_INLINE void choose(const Search& s, const float* squares, size_t to, const Scratch& w,
                           float* after, uint16_t* chosen) {
  const size_t lanes = Lanes ? Lanes : s.lanes, edges = s.sources * s.parallel;
  const float* slopes = s.slopes + to * lanes * edges;
  squares += to * edges;
  f8 best[kVectors];
  m8 where[kVectors];
  for (size_t v = 0; v < kVectors; ++v) best[v] = UNSPOOL_ALL(kNever), where[v] = m8{};
  for (size_t i = 0; i < s.sources; ++i) {
    const size_t from = s.source[to * s.sources + i];
    const float* y = w.y + from * lanes * kRings;
    const float* base = w.base + from * kRings;
    for (size_t copy = 0; copy < s.parallel; ++copy) {
      const size_t edge = i * s.parallel + copy;
      for (size_t v = 0; v < kVectors; ++v) {
        f8 cost = UNSPOOL_ALL(squares[edge]);
        for (size_t lane = 0; lane < lanes; ++lane) {
          const float slope = slopes[lane * edges + edge];
          cost += UNSPOOL_ALL(slope) * UNSPOOL_VIEW(f8, y + lane * kRings + 8 * v);
        }
        cost = UNSPOOL_VIEW(f8, base + 8 * v) + cost;
        where[v] = cost < best[v] ? int(edge) - m8{} : where[v];
        best[v] = cost < best[v] ? cost : best[v];
      }
    }
  }
  for (size_t v = 0; v < kVectors; ++v) {
    store(after + to * kRings + 8 * v, best[v]);
    for (size_t ring = 0; ring < 8; ++ring) chosen[8 * v + ring] = uint16_t(where[v][ring]);
  }
}

// The same for all nodes at once where every node follows every other: the from-nodes in blocks
// whose y (8 KiB) stays in the first cache, two to-nodes abreast so that it is read once for both.
template <size_t Lanes>
UNSPOOL_INLINE void choose_dense(const Search& s, size_t place, const Scratch& w) {
  const size_t edges = kBlock * s.parallel, all = s.nodes * s.nodes * s.parallel;
  const float *squares = s.dense + all * (Lanes + place), *slopes = s.dense;
  const float *y = w.y, *base = w.base;
  float* alphas = w.alphas;
  int* edge_of = w.edges;
  for (size_t i = 0; i < s.nodes * kRings; ++i) alphas[i] = kNever, edge_of[i] = 0;
  for (size_t block = 0; block < s.nodes; block += kBlock)
    for (size_t to = 0; to < s.nodes; to += kAbreast) {
      f8 best[kAbreast][kVectors];
      m8 where[kAbreast][kVectors];
      for (size_t t = 0; t < kAbreast; ++t)
        for (size_t v = 0; v < kVectors; ++v) {
          best[t][v] = UNSPOOL_VIEW(f8, alphas + (to + t) * kRings + 8 * v);
          where[t][v] = *(const unaligned_m8*)(edge_of + (to + t) * kRings + 8 * v);
        }
      for (size_t i = 0; i < edges; ++i) {
        const size_t edge = block * s.parallel + i, from = edge >> s.log_parallel;
        const float* asked = y + from * Lanes * kRings;
        for (size_t t = 0; t < kAbreast; ++t)
          for (size_t v = 0; v < kVectors; ++v) {
            f8 cost = UNSPOOL_ALL(squares[t * edges + i]);
            for (size_t lane = 0; lane < Lanes; ++lane)
              cost += UNSPOOL_ALL(slopes[(t * edges + i) * Lanes + lane]) *
                      UNSPOOL_VIEW(f8, asked + lane * kRings + 8 * v);
            cost = UNSPOOL_VIEW(f8, base + from * kRings + 8 * v) + cost;
            where[t][v] = cost < best[t][v] ? int(edge) - m8{} : where[t][v];
            best[t][v] = cost < best[t][v] ? cost : best[t][v];
          }
      }
      squares += kAbreast * edges, slopes += kAbreast * edges * Lanes;
      for (size_t t = 0; t < kAbreast; ++t)
        for (size_t v = 0; v < kVectors; ++v) {
          store(alphas + (to + t) * kRings + 8 * v, best[t][v]);
          *(unaligned_m8*)(edge_of + (to + t) * kRings + 8 * v) = where[t][v];
        }
    }
}

// Whence the chosen edges come and what they are worth, node by node: a node's edges lie together.
template <size_t Lanes>
UNSPOOL_INLINE void note(const Search& s, const uint16_t* chosen, const Scratch& w) {
  const size_t lanes = Lanes ? Lanes : s.lanes, edges = s.sources * s.parallel;
  for (size_t to = 0; to < s.nodes; ++to)
    for (size_t ring = 0; ring < kRings; ++ring) {
      const size_t edge = chosen[to * kRings + ring], at = ring * s.nodes + to;
      const float* value = s.values + size_t(s.state[to * edges + edge]) * lanes;
      w.before[at] = s.source[to * s.sources + (edge >> s.log_parallel)];
      for (size_t lane = 0; lane < lanes; ++lane) w.worth[at * lanes + lane] = value[lane];
    }
}

// The targets that are left of the row, after what the chosen edges could not reach. Ring by ring:
// the targets of a ring's nodes (16 KiB for 256) stay in the first cache.
template <size_t Lanes>
UNSPOOL_INLINE void feed_back(const Search& s, size_t place, const uint16_t* chosen,
                              const Scratch& w) {
  note<Lanes>(s, chosen, w);
  const size_t lanes = Lanes ? Lanes : s.lanes, first = (place + 1) * lanes / 8 * 8;
  const float* feedback = s.feedback + place * lanes * s.width;
  for (size_t ring = 0; ring < kRings; ++ring)
    for (size_t to = 0; to < s.nodes; ++to) {
      const size_t at = ring * s.nodes + to;
      const float* old = w.open + ring * s.apart() + w.before[at] * s.width;
      float* next = w.next + ring * s.apart() + to * s.width;
      for (size_t column = first; column < s.width; column += 8) {
        f8 sum = UNSPOOL_VIEW(f8, old + column);
        for (size_t lane = 0; lane < lanes; ++lane) {
          const float missed = old[place * lanes + lane] - w.worth[at * lanes + lane];
          sum += UNSPOOL_ALL(missed) * UNSPOOL_VIEW(f8, feedback + lane * s.width + column);
        }
        store(next + column, sum);
      }
    }
}

static void step(const Search s, size_t place, Scratch& w, uint16_t* chosen) {
  const size_t edges = s.sources * s.parallel;
  const float* squares = s.squares + place * s.nodes * edges;
  prepare(s, s.metric + place * s.lanes * s.lanes, place, w);
  const bool ends = place + 1 == s.places;
  if (s.dense) choose_dense<kDenseLanes>(s, place, w);
  for (size_t to = 0; to < s.nodes; ++to) {
    uint16_t* mine = chosen + to * kRings;
    if (s.dense)
      for (size_t ring = 0; ring < kRings; ++ring)
        mine[ring] = uint16_t(w.edges[to * kRings + ring]);
    else if (s.lanes == 1)
      choose<1>(s, squares, to, w, w.alphas, mine);
    else
      choose<0>(s, squares, to, w, w.alphas, mine);
  }
  if (ends) return;
  if (s.lanes == 1)
    feed_back<1>(s, place, chosen, w);
  else if (s.lanes == 4)
    feed_back<4>(s, place, chosen, w);
  else
    feed_back<0>(s, place, chosen, w);
  float* swap = w.open;
  w.open = w.next, w.next = swap;
}
