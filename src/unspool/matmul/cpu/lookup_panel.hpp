// Eight rows of the product of one activation. Compiled by lookup.cpp against avx2_lanes.hpp and
// avx512_lanes.hpp, the latter also as a twin. The order of additions is that of multiply.hpp.
// The next kernel, int8 activations, replaces `accumulate`: levels are int8 until there.

// The plane's eight windows of tile row `row` in each of eight tiles: 64 bytes along k.
template <int Stride>
UNSPOOL_INLINE Bytes windows(const Bytes* plane, int row, const Control& control) {
  const int first = 8 * Stride * row, qword = first / 64, bit = first % 64;
  if (64 % (8 * Stride) == 0 || bit + 8 * Stride <= 64) return multishift(control, plane[qword]);
  const Bytes joined = either(shift_qwords_right(plane[qword], unsigned(bit)),
                              shift_qwords_left(plane[qword + 1], unsigned(64 - bit)));
  return multishift(control, joined);
}

// What a group of eight tiles is multiplied with; scales are those of one row per 16 columns.
struct Group {
  const float* x;
  const float* scales;  // [rows][group columns / 16], used where a row has more than one
  float unit;
};

template <int Q, bool Blocks>
UNSPOOL_INLINE void accumulate(const Group& group, const float* scales, int at, const Bytes& levels,
                               Floats& sum) {
  Floats weights = widen<Q>(levels);
  if (Blocks)
    weights = product(product(weights, broadcast(group.unit)), broadcast(scales[at]));
  sum = fma(weights, load_floats(group.x + 16 * at), sum);
}

template <int Parts, bool Blocks>
UNSPOOL_INLINE void scalar_codes(const LookUp& plan, const Bytes& index, const Group& group,
                                 const float* scales, Floats& sum) {
  const Bytes levels = look_up<Parts>(plan, 0, index);
  accumulate<0, Blocks>(group, scales, 0, levels, sum);
  accumulate<1, Blocks>(group, scales, 1, levels, sum);
  accumulate<2, Blocks>(group, scales, 2, levels, sum);
  accumulate<3, Blocks>(group, scales, 3, levels, sum);
}

// Two weights a step: after interleaving, each 16 bytes are the 16 columns of one tile's row.
template <int Parts, bool Blocks>
UNSPOOL_INLINE void pair_codes(const LookUp& plan, const Bytes& index, const Group& group,
                               const float* scales, Floats& sum) {
  const Bytes even = look_up<Parts>(plan, 0, index);
  const Bytes odd = look_up<Parts>(plan, 1, index);
  const Bytes low = interleave_low(even, odd), high = interleave_high(even, odd);
  accumulate<0, Blocks>(group, scales, 0, low, sum);
  accumulate<0, Blocks>(group, scales, 1, high, sum);
  accumulate<1, Blocks>(group, scales, 2, low, sum);
  accumulate<1, Blocks>(group, scales, 3, high, sum);
  accumulate<2, Blocks>(group, scales, 4, low, sum);
  accumulate<2, Blocks>(group, scales, 5, high, sum);
  accumulate<3, Blocks>(group, scales, 6, low, sum);
  accumulate<3, Blocks>(group, scales, 7, high, sum);
}

template <int Stride0, int Stride1, int Lanes, int Parts, bool Blocks>
static void add_group(const LookUp& plan, const uint8_t* tiles, const Group& group,
                              Floats* sums) {
  Bytes planes[Stride0 + Stride1];
  deinterleave<Stride0 + Stride1>(plan, tiles, planes);
  const Bytes low = broadcast_byte(plan.low);
  UNSPOOL_UNROLL_ROWS
  for (int row = 0; row < kTileRows; ++row) {
    Bytes index = windows<Stride0>(planes, row, plan.control[0][row]);
    if constexpr (Stride1 > 0)
      index = select(low, index, windows<Stride1>(planes + Stride0, row, plan.control[1][row]));
    const float* scales = group.scales + row * 4 * Lanes;
    if constexpr (Lanes == 1)
      scalar_codes<Parts, Blocks>(plan, index, group, scales, sums[row]);
    else
      pair_codes<Parts, Blocks>(plan, index, group, scales, sums[row]);
  }
}

typedef void (*AddGroup)(const LookUp&, const uint8_t*, const Group&, Floats*);

template <int Stride0, int Stride1, int Lanes, int Parts>
static AddGroup group_with(bool blocks) {
  return blocks ? add_group<Stride0, Stride1, Lanes, Parts, true>
                : add_group<Stride0, Stride1, Lanes, Parts, false>;
}

// Parts: registers of 16 entries that the table takes, where the look-up is made of several.
template <int Stride0, int Stride1, int Lanes>
static AddGroup group_of(const LookUp& plan, bool blocks) {
  if (!kSplitTables || plan.index_bits > 6) return group_with<Stride0, Stride1, Lanes, 8>(blocks);
  if (plan.index_bits > 4) return group_with<Stride0, Stride1, Lanes, kSplitTables ? 4 : 8>(blocks);
  return group_with<Stride0, Stride1, Lanes, kSplitTables ? 1 : 8>(blocks);
}

// Scales of every 16 columns of a group; beyond the matrix any, since x is zero there.
static void group_scales(const CodedMatrix& m, int64_t row, int64_t column, int64_t width,
                         float* out) {
  for (int64_t i = 0; i < width / 16; ++i) {
    const int64_t at = column + 16 * i, block = at < m.k ? at / m.block : 0;
    for (int64_t r = 0; r < kTileRows; ++r) out[r * (width / 16) + i] = scale_at(m, row + r, block);
  }
}

static float added_in_halves(float* sums) {
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  return sums[0];
}

// The tiles of a chunk, eight at a time; the last may be fewer: zeros in x silence the rest.
template <int Stride0, int Stride1, int Lanes>
static void add_chunk(const LookUp& plan, const Multiply& job, int64_t row, int64_t chunk,
                      float* totals) {
  constexpr int64_t kColumns = 8 * Lanes * kTilesAcross;
  constexpr int64_t kTileBytes = 8 * (Stride0 + Stride1);
  const CodedMatrix& m = job.matrix;
  const int64_t begin = chunk * job.chunk;
  const int64_t end = begin + job.chunk < m.k ? begin + job.chunk : m.k;
  alignas(64) uint8_t last_tiles[kTileBytes * kTilesAcross];
  alignas(64) float last_x[kColumns], scales[kTileRows * kColumns / 16];
  const AddGroup add = group_of<Stride0, Stride1, Lanes>(plan, !m.scale_per_row());
  Floats sums[kTileRows];
  for (Floats& sum : sums) sum = broadcast(0);
  for (int64_t column = begin; column < end; column += kColumns) {
    const uint8_t* tiles = m.tile(row / kTileRows, column / m.tile_columns);
    Group group = {job.x + chunk * job.chunk_distance + column - begin, scales, m.unit};
    if (end - column < kColumns) {
      const int64_t left = end - column;
      __builtin_memset(last_tiles, 0, sizeof last_tiles);
      __builtin_memset(last_x, 0, sizeof last_x);
      __builtin_memcpy(last_tiles, tiles, std::size_t(left / m.tile_columns * kTileBytes));
      __builtin_memcpy(last_x, group.x, std::size_t(left) * sizeof(float));
      tiles = last_tiles;
      group.x = last_x;
    }
    if (!m.scale_per_row()) group_scales(m, row, column, kColumns, scales);
    add(plan, tiles, group, sums);
  }
  for (int r = 0; r < kTileRows; ++r) {
    alignas(64) float partial[16];
    store_floats(partial, sums[r]);
    const float sum = added_in_halves(partial);
    totals[r] = chunk == 0 ? sum : totals[r] + sum;
  }
}

template <int Stride0, int Stride1, int Lanes>
static void multiply_rows(const LookUp& plan, const Multiply& job, int64_t row, int64_t rows) {
  const CodedMatrix& m = job.matrix;
  float totals[kTileRows];
  for (int64_t chunk = 0; chunk < job.chunks(); ++chunk)
    add_chunk<Stride0, Stride1, Lanes>(plan, job, row, chunk, totals);
  for (int64_t r = 0; r < rows; ++r)
    job.y[row + r] = m.scale_per_row() ? totals[r] * (scale_at(m, row + r, 0) * m.unit) : totals[r];
}

typedef void (*MultiplyRows)(const LookUp&, const Multiply&, int64_t, int64_t);

// The shapes of planes that were compiled: strides of the two planes, one or two lanes.
template <int Lanes>
static MultiplyRows shape_of_planes(int stride0, int stride1) {
  switch (stride0 * 8 + stride1) {
    case 1 * 8 + 0: return multiply_rows<1, 0, Lanes>;
    case 1 * 8 + 1: return multiply_rows<1, 1, Lanes>;
    case 1 * 8 + 2: return multiply_rows<1, 2, Lanes>;
    case 1 * 8 + 3: return multiply_rows<1, 3, Lanes>;
    case 1 * 8 + 4: return multiply_rows<1, 4, Lanes>;
    case 2 * 8 + 0: return multiply_rows<2, 0, Lanes>;
    case 3 * 8 + 0: return multiply_rows<3, 0, Lanes>;
    case 4 * 8 + 0: return multiply_rows<4, 0, Lanes>;
    default: return nullptr;
  }
}
