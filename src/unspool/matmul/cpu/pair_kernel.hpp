// A strip of rows times bfloat16 activations. Compiled by pair_product.cpp for AVX512_BF16 and in
// plain C++, after lanes_*.hpp and quick_rows.hpp; `pairs.hpp` states the order of the additions.
//
// As in the integer kernel (strips.hpp), register j holds rows 8q + 2j and 8q + 2j + 1 of every
// tile q, one per dword: here two columns of a row. Rows are decoded one by one, by tables.

// Levels of a chunk: [columns / 2][4 registers][rows of a register, two columns each].
static void decode_pairs(const PairJob& job, int64_t strip, int64_t column, int64_t width,
                         const PairScratch& scratch) {
  const CodedMatrix& m = job.matrix;
  const QuickRow<float>::Function quick = quick_row_of<float>(m);
  const int64_t first = strip * kWidth, rows = m.n - first < kWidth ? m.n - first : kWidth;
  for (int64_t r = 0; r < rows; ++r) {
    const RowScratch decoding = {scratch.table, scratch.operands};
    float_levels(m, quick, first + r, column, width, decoding, scratch.row);
    uint8_t* to = scratch.levels + r % 8 / 2 * kWidth + 8 * (r / 8) + 4 * (r % 2);
    for (int64_t c = 0; c < width; c += 2, to += 4 * kWidth) {
      uint32_t two[2];
      __builtin_memcpy(two, scratch.row + c, 8);
      const uint32_t pair = (two[0] >> 16) | (two[1] & 0xffff0000);  // exact: the rest is 0
      __builtin_memcpy(to, &pair, 4);
    }
  }
}

UNSPOOL_INLINE Bytes two_activations(const uint16_t* at) {
  uint32_t two;
  __builtin_memcpy(&two, at, 4);
  return broadcast_dword(two);
}

// M rows of activations times decoded levels over one group; M * 4 sums stay in registers.
template <int M>
static void pair_dots(const uint8_t* levels, const uint16_t* x, int64_t width, const float* scales,
                      float* totals) {
  Floats sums[M][4];
  UNSPOOL_UNROLL
  for (int i = 0; i < M; ++i) {
    UNSPOOL_UNROLL
    for (int j = 0; j < 4; ++j) sums[i][j] = broadcast(0);
  }
  for (const uint16_t* const end = x + width; x < end; x += 2, levels += 4 * kWidth) {
    Bytes w[4];
    UNSPOOL_UNROLL
    for (int j = 0; j < 4; ++j) w[j] = load(levels + j * kWidth);
    UNSPOOL_UNROLL
    for (int i = 0; i < M; ++i) {
      const Bytes two = two_activations(x + i * kPairColumns);
      UNSPOOL_UNROLL
      for (int j = 0; j < 4; ++j) sums[i][j] = dot_pairs(sums[i][j], w[j], two);
    }
  }
  UNSPOOL_UNROLL
  for (int i = 0; i < M; ++i) {
    UNSPOOL_UNROLL
    for (int j = 0; j < 4; ++j) {
      float* const total = totals + i * kWidth + kLane * j;
      const Floats scaled = product(sums[i][j], load_floats(scales + kLane * j));
      store_floats(total, sum(load_floats(total), scaled));
    }
  }
}

typedef void (*PairDots)(const uint8_t*, const uint16_t*, int64_t, const float*, float*);

static PairDots pair_dots_of(int64_t rows) {
  switch (rows) {
    case 1: return pair_dots<1>;
    case 2: return pair_dots<2>;
    case 3: return pair_dots<3>;
    case 4: return pair_dots<4>;
    case 5: return pair_dots<5>;
    default: return pair_dots<6>;
  }
}

// The row of the strip that a lane holds, counted register by register.
static int64_t row_of(int64_t lane) {
  return lane % kLane / 2 * 8 + lane / kLane * 2 + lane % 2;
}

// The scales of a block for the rows of a strip, in the order of registers; 1 where one is per row.
static void block_scales(const CodedMatrix& m, int64_t strip, int64_t column, float* out) {
  for (int64_t i = 0; i < kWidth; ++i) {
    const int64_t row = strip * kWidth + row_of(i);
    out[i] = m.scale_per_row() ? 1 : row < m.n ? scale_at(m, row, column / m.block) * m.unit : 0;
  }
}

static void pair_strip(const PairJob& job, int64_t strip, const PairScratch& scratch) {
  const CodedMatrix& m = job.matrix;
  const int64_t blocks = (job.count + kAtOnce - 1) / kAtOnce;
  for (int64_t i = 0; i < job.count * kWidth; ++i) scratch.totals[i] = 0;
  for (int64_t column = 0; column < m.k; column += kPairColumns) {
    const int64_t width = kPairColumns < m.k - column ? kPairColumns : m.k - column;
    decode_pairs(job, strip, column, width, scratch);
    for (int64_t c = 0; c < width; c += job.group) {
      block_scales(m, strip, column + c, scratch.scales);
      const int64_t columns = job.group < width - c ? job.group : width - c;
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t first = b * job.count / blocks, rows = (b + 1) * job.count / blocks - first;
        pair_dots_of(rows)(scratch.levels + 2 * c * kWidth,
                           job.x + (column / kPairColumns * job.count + first) * kPairColumns + c,
                           columns, scratch.scales, scratch.totals + first * kWidth);
      }
    }
  }
  for (int64_t i = 0; i < job.count; ++i)
    for (int64_t lane = 0; lane < kWidth; ++lane) {
      const int64_t row = strip * kWidth + row_of(lane);
      if (row >= m.n) continue;
      const float scale = m.scale_per_row() ? scale_at(m, row, 0) * m.unit : 1;
      job.y[i * m.n + row] = scratch.totals[i * kWidth + lane] * scale;
    }
}
