// Passes around the rings of a group. Compiled once per instruction set by each_isa.hpp, inside
// binned.cpp, which declares Binned, Job, Scratch, kRings and kMost.

typedef uint16_t w8 __attribute__((vector_size(16), may_alias));
typedef uint16_t w16 __attribute__((vector_size(32), may_alias));
typedef short s16 __attribute__((vector_size(32)));

// The walks of the even, of the odd from-nodes, twice: nodes n and n + half are entered from both.
UNSPOOL_INLINE void deal(const w8& walks, w8& even, w8& odd) {
  even = __builtin_shuffle(walks, w8{0, 2, 4, 6, 0, 2, 4, 6});
  odd = __builtin_shuffle(walks, w8{1, 3, 5, 7, 1, 3, 5, 7});
}

UNSPOOL_INLINE void deal(const w16& walks, w16& even, w16& odd) {
  even = __builtin_shuffle(walks, w16{0, 2, 4, 6, 8, 10, 12, 14, 0, 2, 4, 6, 8, 10, 12, 14});
  odd = __builtin_shuffle(walks, w16{1, 3, 5, 7, 9, 11, 13, 15, 1, 3, 5, 7, 9, 11, 13, 15});
}

// Sums beyond 65,535 stay there.
template <class Walks>
UNSPOOL_INLINE void add(Walks& walks, const uint16_t* costs) {
  const Walks sum = walks + *(const Walks*)costs;
  walks = sum | (Walks)(sum < walks);
}

#ifdef UNSPOOL_AVX2
UNSPOOL_INLINE void add(w16& walks, const uint16_t* costs) {
  walks = (w16)__builtin_ia32_paddusw256((s16)walks, *(const s16*)costs);
}
#endif

static void find_bins(const Job& job, size_t first, Scratch& scratch) {
  const Binned& t = job.trellis;
  for (size_t ring = 0; ring < kRings && first + ring < job.rings; ++ring) {
    const float* targets = job.targets + (first + ring) * job.steps;
    uint16_t* bins = scratch.bins.get() + ring * job.steps;
    bool outside = false;
    for (size_t i = 0; i < job.steps; ++i) {
      const float place = targets[i] * t.scale + t.middle;
      const bool inside = place >= 0 && place < float(t.bins);
      outside |= !inside;
      bins[i] = uint16_t(inside ? int(place) : 0);
    }
    job.lost[first + ring] = outside;
  }
  for (size_t ring = job.rings - first; ring < kRings; ++ring)  // walks that are thrown away
    for (size_t i = 0; i < job.steps; ++i) scratch.bins.get()[ring * job.steps + i] = 0;
}

template <size_t Nodes, class Walks>
UNSPOOL_INLINE void walk(const Job& job, size_t origin, Scratch& scratch, uint16_t* ends) {
  const Binned& t = job.trellis;
  const uint16_t* bins = scratch.bins.get();
  uint16_t* decided = scratch.even.get();
  Walks walks[kRings];
  for (size_t ring = 0; ring < kRings; ++ring) walks[ring] = *(const Walks*)(ends + ring * Nodes);
  for (size_t i = 0, at = origin; i < job.steps; ++i, at = at + 1 == job.steps ? 0 : at + 1)
    for (size_t ring = 0; ring < kRings; ++ring, decided += Nodes) {
      const uint16_t* costs = t.costs + bins[ring * job.steps + at] * 2 * Nodes;
      Walks even, odd;
      deal(walks[ring], even, odd);
      add(even, costs);
      add(odd, costs + Nodes);
      walks[ring] = odd < even ? odd : even;
      *(Walks*)decided = (Walks)(walks[ring] == even);
    }
  for (size_t ring = 0; ring < kRings; ++ring) *(Walks*)(ends + ring * Nodes) = walks[ring];
}

template <size_t Nodes>
UNSPOOL_INLINE size_t cheapest(const uint16_t* ends) {
  size_t node = 0;
  for (size_t other = 1; other < Nodes; ++other) node = ends[other] < ends[node] ? other : node;
  return node;
}

// From the nodes at the end back to the step `until`; leaves the nodes before it in `nodes`.
template <size_t Nodes>
UNSPOOL_INLINE void trace(const Job& job, size_t origin, size_t until, size_t first,
                          const Scratch& scratch, size_t* nodes, bool keep) {
  const uint16_t *even = scratch.even.get(), *bins = scratch.bins.get();
  size_t at = origin == 0 ? job.steps : origin;
  for (size_t i = job.steps; i-- > until; at = at == 0 ? job.steps : at) {
    --at;
    for (size_t ring = 0; ring < kRings; ++ring) {
      const size_t to = nodes[ring];
      const size_t odd = 1 - (even[(i * kRings + ring) * Nodes + to] & 1);
      nodes[ring] = (2 * to + odd) % Nodes;
      if (keep && first + ring < job.rings)
        job.states[(first + ring) * job.steps + at] =
            job.trellis.states[(bins[ring * job.steps + at] * 2 + odd) * Nodes + to];
    }
  }
}

template <size_t Nodes, class Walks>
UNSPOOL_INLINE void pass(const Job& job, bool free, size_t origin, size_t until, size_t first,
                         Scratch& scratch, size_t* nodes, bool last) {
  alignas(32) uint16_t ends[kRings * Nodes];  // costs of walks to every node
  for (uint16_t& end : ends) end = free ? 0 : kMost;
  for (size_t ring = 0; ring < kRings && !free; ++ring) ends[ring * Nodes + nodes[ring]] = 0;
  walk<Nodes, Walks>(job, origin, scratch, ends);
  for (size_t ring = 0; ring < kRings; ++ring) {
    const uint16_t* end = ends + ring * Nodes;
    if (free) nodes[ring] = cheapest<Nodes>(end);
    if (last && first + ring < job.rings) job.lost[first + ring] |= end[nodes[ring]] == kMost;
  }
  trace<Nodes>(job, origin, until, first, scratch, nodes, last);
}

// One pass from the boundary at `origin` around the ring; the last one writes the states.
static void run_pass(const Job& job, bool free, size_t origin, size_t until, size_t first,
                     Scratch& scratch, size_t* nodes, bool last) {
  if (job.trellis.nodes == 8)
    return pass<8, w8>(job, free, origin, until, first, scratch, nodes, last);
  pass<16, w16>(job, free, origin, until, first, scratch, nodes, last);
}
