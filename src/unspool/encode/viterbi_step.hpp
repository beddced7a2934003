// One trellis step for a group of rings, forwards and back. Compiled once per instruction set by
// each_isa.hpp, inside viterbi.cpp, which declares Trellis, Best, kRings, kVectors and kNever.

template <class Vector>
UNSPOOL_INLINE void lower(Vector& best, const Vector& cost) {
  best = cost < best ? cost : best;
}

// One step for all nodes: after[to] = min over from-nodes of before[from] + cheapest parallel edge.
// Template parameters are the trellis's own numbers where known, 0 where not.
template <size_t Lanes, size_t Sources, size_t Parallel>
UNSPOOL_INLINE void advance(const Trellis& t, const float* targets, const float* before,
                            float* after) {
  const size_t sources = Sources ? Sources : t.sources, parallel = Parallel ? Parallel : t.parallel;
  const size_t lanes = Lanes ? Lanes : t.lanes, edges = sources * parallel;
  f8 known[Lanes ? Lanes : 1][kVectors];
  for (size_t lane = 0; lane < Lanes; ++lane)
    for (size_t v = 0; v < kVectors; ++v)
      known[lane][v] = UNSPOOL_VIEW(f8, targets + lane * kRings + 8 * v);
  const float* table = t.table;
  const uint32_t* source = t.source;
  for (size_t to = 0; to < t.nodes; ++to, table += (lanes + 1) * edges, source += sources) {
    f8 best[kVectors];
    for (size_t v = 0; v < kVectors; ++v) best[v] = UNSPOOL_ALL(kNever);
    for (size_t i = 0; i < sources; ++i) {
      f8 cheapest[kVectors];
      for (size_t v = 0; v < kVectors; ++v) cheapest[v] = UNSPOOL_ALL(kNever);
      for (size_t copy = 0; copy < parallel; ++copy) {
        const float* entry = table + i * parallel + copy;
        f8 cost[kVectors];
        for (size_t v = 0; v < kVectors; ++v) cost[v] = UNSPOOL_ALL(entry[0]);
        for (size_t lane = 0; lane < lanes; ++lane) {
          const f8 twice = UNSPOOL_ALL(entry[(lane + 1) * edges]);
          for (size_t v = 0; v < kVectors; ++v)
            cost[v] += twice * (Lanes ? known[Lanes ? lane : 0][v]
                                      : UNSPOOL_VIEW(f8, targets + lane * kRings + 8 * v));
        }
        // Where the count is known the loop is unrolled and its first round has nothing to beat.
        for (size_t v = 0; v < kVectors; ++v)
          Parallel && copy == 0 ? void(cheapest[v] = cost[v]) : lower(cheapest[v], cost[v]);
      }
      const float* from = before + source[i] * kRings;
      for (size_t v = 0; v < kVectors; ++v) {
        const f8 cost = UNSPOOL_VIEW(f8, from + 8 * v) + cheapest[v];
        Sources && i == 0 ? void(best[v] = cost) : lower(best[v], cost);
      }
    }
    for (size_t v = 0; v < kVectors; ++v) store(after + to * kRings + 8 * v, best[v]);
  }
}

template <size_t Lanes>
UNSPOOL_INLINE void advance_lanes(const Trellis& t, const float* targets, const float* before,
                                  float* after) {
  if (t.sources == 2 && t.parallel == 1) return advance<Lanes, 2, 1>(t, targets, before, after);
  if (t.sources == 2 && t.parallel == 2) return advance<Lanes, 2, 2>(t, targets, before, after);
  if (t.sources == 2 && t.parallel == 4) return advance<Lanes, 2, 4>(t, targets, before, after);
  if (t.sources == 2 && t.parallel == 8) return advance<Lanes, 2, 8>(t, targets, before, after);
  if (t.parallel == 1) return advance<Lanes, 0, 1>(t, targets, before, after);
  advance<Lanes, 0, 0>(t, targets, before, after);
}

// The trellis comes by value: stores to the alphas cannot change it, so it stays in registers.
static void step(const Trellis t, const float* targets, const float* before, float* after) {
  if (t.lanes == 1) return advance_lanes<1>(t, targets, before, after);
  if (t.lanes == 2) return advance_lanes<2>(t, targets, before, after);
  if (t.lanes == 4) return advance_lanes<4>(t, targets, before, after);
  advance_lanes<0>(t, targets, before, after);
}

// The first of the lowest of four or eight costs, without branches: walks are unpredictable.
UNSPOOL_INLINE Best first_lowest(const f4& cost) {
  f4 least = cost;
  lower(least, __builtin_shuffle(least, m4{2, 3, 0, 1}));
  lower(least, __builtin_shuffle(least, m4{1, 0, 3, 2}));
  m4 edge = cost == least ? m4{0, 1, 2, 3} : kNoEdge - m4{};
  lower(edge, __builtin_shuffle(edge, m4{2, 3, 0, 1}));
  lower(edge, __builtin_shuffle(edge, m4{1, 0, 3, 2}));
  return {least[0], size_t(edge[0])};
}

UNSPOOL_INLINE Best first_lowest(const f8& cost, const m8& edges) {
  f8 least = cost;
  lower(least, __builtin_shuffle(least, m8{4, 5, 6, 7, 0, 1, 2, 3}));
  lower(least, __builtin_shuffle(least, m8{2, 3, 0, 1, 6, 7, 4, 5}));
  lower(least, __builtin_shuffle(least, m8{1, 0, 3, 2, 5, 4, 7, 6}));
  m8 edge = cost == least ? edges : kNoEdge - m8{};
  lower(edge, __builtin_shuffle(edge, m8{4, 5, 6, 7, 0, 1, 2, 3}));
  lower(edge, __builtin_shuffle(edge, m8{2, 3, 0, 1, 6, 7, 4, 5}));
  lower(edge, __builtin_shuffle(edge, m8{1, 0, 3, 2, 5, 4, 7, 6}));
  return {least[0], size_t(edge[0])};
}

UNSPOOL_INLINE Best first_lowest(const f8& cost) {
  return first_lowest(cost, m8{0, 1, 2, 3, 4, 5, 6, 7});
}

// The cheapest in-edge of one node for one ring: Edges of them (4 or 8), one vector.
template <size_t Lanes, size_t Edges, class Vector>
UNSPOOL_INLINE Best best_of_vector(const Trellis& t, size_t to, const float* x,
                                   const float* before) {
  const size_t lanes = Lanes ? Lanes : t.lanes;
  const float* table = t.table + to * (lanes + 1) * Edges;
  const uint32_t* source = t.source + to * t.sources;
  Vector cost = UNSPOOL_VIEW(Vector, table);
  for (size_t lane = 0; lane < lanes; ++lane)
    cost += UNSPOOL_VIEW(Vector, table + (lane + 1) * Edges) * x[lane * kRings];
  Vector from;
  for (size_t edge = 0; edge < Edges; ++edge)
    from[edge] = before[source[edge >> t.log_parallel] * kRings];
  return first_lowest(cost + from);
}

UNSPOOL_INLINE Best best_of_two(const Trellis& t, size_t to, const float* x, const float* before) {
  const float* table = t.table + to * (t.lanes + 1) * 2;
  const uint32_t* source = t.source + to * t.sources;
  float first = table[0], second = table[1];
  for (size_t lane = 0; lane < t.lanes; ++lane) {
    first += table[2 * lane + 2] * x[lane * kRings];
    second += table[2 * lane + 3] * x[lane * kRings];
  }
  first += before[source[0] * kRings];
  second += before[source[1 >> t.log_parallel] * kRings];
  return {second < first ? second : first, second < first};
}

// Sixteen in-edges or more. Wide: eight neighbouring edges come from the same node.
template <bool Wide>
UNSPOOL_INLINE Best best_of_many(const Trellis& t, size_t to, const float* x, const float* before,
                                 float* costs) {
  const size_t edges = t.edges();
  const float* table = t.table + to * (t.lanes + 1) * edges;
  const uint32_t* source = t.source + to * t.sources;
  for (size_t edge = 0; !Wide && edge < edges; ++edge)
    costs[edge] = before[source[edge >> t.log_parallel] * kRings];
  f8 lowest = UNSPOOL_ALL(kNever);
  m8 where = {}, here = {0, 1, 2, 3, 4, 5, 6, 7};
  for (size_t edge = 0; edge < edges; edge += 8, here += 8) {
    f8 cost = UNSPOOL_VIEW(f8, table + edge);
    for (size_t lane = 0; lane < t.lanes; ++lane)
      cost += UNSPOOL_VIEW(f8, table + (lane + 1) * edges + edge) * x[lane * kRings];
    if (Wide)
      cost += before[source[edge >> t.log_parallel] * kRings];
    else
      cost += UNSPOOL_VIEW(f8, costs + edge);
    where = cost < lowest ? here : where;
    lower(lowest, cost);
  }
  return first_lowest(lowest, where);
}

// One step back for every ring of a group: nodes[r] becomes the node before the step.
template <class Find>
UNSPOOL_INLINE void retreat(const Trellis& t, Scratch& scratch, size_t* nodes, uint32_t* states,
                            const Find& find) {
  bool no_walk = false;
  for (size_t ring = 0; ring < kRings; ++ring) {
    const size_t to = nodes[ring];
    const Best best = find(to, ring);
    no_walk |= best.cost == kNever;
    states[ring] = t.state[to * t.edges() + best.edge];
    nodes[ring] = t.source[to * t.sources + (best.edge >> t.log_parallel)];
  }
  scratch.no_walk |= no_walk;
}

template <size_t Lanes>
UNSPOOL_INLINE void retreat_lanes(const Trellis& t, const float* targets, const float* before,
                                  Scratch& scratch, size_t* nodes, uint32_t* states) {
  const auto back = [&](const auto& find) { retreat(t, scratch, nodes, states, find); };
  if (t.edges() == 2)
    return back([&](size_t to, size_t r) UNSPOOL_INLINE_LAMBDA {
      return best_of_two(t, to, targets + r, before + r);
    });
  if (t.edges() == 4)
    return back([&](size_t to, size_t r) UNSPOOL_INLINE_LAMBDA {
      return best_of_vector<Lanes, 4, f4>(t, to, targets + r, before + r);
    });
  if (t.edges() == 8)
    return back([&](size_t to, size_t r) UNSPOOL_INLINE_LAMBDA {
      return best_of_vector<Lanes, 8, f8>(t, to, targets + r, before + r);
    });
  if (t.parallel >= 8)
    return back([&](size_t to, size_t r) UNSPOOL_INLINE_LAMBDA {
      return best_of_many<true>(t, to, targets + r, before + r, scratch.costs);
    });
  back([&](size_t to, size_t r) UNSPOOL_INLINE_LAMBDA {
    return best_of_many<false>(t, to, targets + r, before + r, scratch.costs);
  });
}

static void step_back(const Trellis t, const float* targets, const float* before, Scratch& scratch,
                      size_t* nodes, uint32_t* states) {
  if (t.lanes == 1) return retreat_lanes<1>(t, targets, before, scratch, nodes, states);
  retreat_lanes<0>(t, targets, before, scratch, nodes, states);
}
