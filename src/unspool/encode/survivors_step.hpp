// One trellis step whose targets depend on the walk so far, for a group of rings. Compiled once per
// instruction set by each_isa.hpp, inside survivors.cpp, which declares Search and Scratch.

// What every node asks of the step: y = P u for its targets u, and u P u on top of its walk.
static void prepare(const Search& s, const float* metric, size_t place, Scratch& w) {
  for (size_t node = 0; node < s.nodes; ++node) {
    const float* open = w.open + node * kRings * s.width + place * s.lanes;
    float u[kMostLanes][kRings];
    for (size_t lane = 0; lane < s.lanes; ++lane)
      for (size_t ring = 0; ring < kRings; ++ring) u[lane][ring] = open[ring * s.width + lane];
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

// The targets that are left of the row, after what the chosen edges could not reach.
static void feed_back(const Search& s, const float* feedback, size_t place, size_t to,
                      const uint16_t* chosen, const Scratch& w, float* open) {
  const size_t edges = s.sources * s.parallel;
  const size_t first = (place + 1) * s.lanes / 8 * 8;
  for (size_t ring = 0; ring < kRings; ++ring) {
    const size_t edge = chosen[ring];
    const size_t from = s.source[to * s.sources + (edge >> s.log_parallel)];
    const float* old = w.open + (from * kRings + ring) * s.width;
    const float* value = s.values + size_t(s.state[to * edges + edge]) * s.lanes;
    float* next = open + (to * kRings + ring) * s.width;
    for (size_t column = first; column < s.width; column += 8) {
      f8 sum = UNSPOOL_VIEW(f8, old + column);
      for (size_t lane = 0; lane < s.lanes; ++lane) {
        const float missed = old[place * s.lanes + lane] - value[lane];
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
  for (size_t to = 0; to < s.nodes; ++to) {
    uint16_t* mine = chosen + to * kRings;
    if (s.lanes == 1)
      choose<1>(s, squares, to, w, w.alphas, mine);
    else if (s.lanes == 4)
      choose<4>(s, squares, to, w, w.alphas, mine);
    else
      choose<0>(s, squares, to, w, w.alphas, mine);
    if (!ends) feed_back(s, s.feedback + place * s.lanes * s.width, place, to, mine, w, w.next);
  }
  float* swap = w.open;
  if (!ends) w.open = w.next, w.next = swap;
}
