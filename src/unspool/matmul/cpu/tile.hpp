// Tiles of a coded matrix -> float values, and products with them, for every format: windows are
// cut with shifts and looked up in the tabulated program. Compiled once per instruction set by
// each_isa.hpp; avx512.hpp has the quicker way for table codes.
//
//   strip      8 rows (one row of tiles), decoded `kPanel` columns at a time
//   panel      [tile_rows][kPanel] floats, values without scales: 16 KiB, half of an L1 cache
//   segment    columns of a panel that share one scale

typedef uint32_t u8x32 __attribute__((vector_size(32)));

constexpr int kPanel = 512;
constexpr int kMaxTileRows = 8;
constexpr int kMaxSteps = 512;
constexpr int kMaxRingBytes = 1024;

// The bits of one plane of one ring, followed by its first bytes again so that windows may wrap.
struct Ring {
  uint8_t bytes[kMaxRingBytes + 8];
};

UNSPOOL_INLINE uint64_t eight_bytes(const uint8_t* at) {
  uint64_t word;
  __builtin_memcpy(&word, at, 8);
  return word;
}

UNSPOOL_INLINE void wrap(const uint32_t* words, int bits, Ring& ring) {
  const int size = bits / 8;
  __builtin_memcpy(ring.bytes, words, size);
  for (int i = 0; i < 8; ++i) ring.bytes[size + i] = ring.bytes[i % size];
}

// Adds a plane's windows to the states, eight steps at a time: they start on a whole byte.
UNSPOOL_INLINE void add_windows(const Ring& ring, int steps, int window, int stride, int low,
                                uint32_t* states) {
  const uint32_t mask = window == 32 ? ~0u : (1u << window) - 1;
  if (7 * stride + window <= 32 && steps % 8 == 0) {
    const uint32_t s = stride;
    const u8x32 shifts = {0, s, 2 * s, 3 * s, 4 * s, 5 * s, 6 * s, 7 * s};
    for (int i = 0; i < steps; i += 8) {
      const uint32_t word = uint32_t(eight_bytes(ring.bytes + i / 8 * stride));
      const u8x32 all = {word, word, word, word, word, word, word, word};
      *(u8x32*)(states + i) |= ((all >> shifts) & mask) << low;
    }
    return;
  }
  for (int i = 0; i < steps; ++i) {
    const int bit = i * stride;
    states[i] |= (uint32_t(eight_bytes(ring.bytes + bit / 8) >> (bit % 8)) & mask) << low;
  }
}

// The states of one tile; `words` are its planes one after the other.
UNSPOOL_INLINE void tile_states(const Coded& coded, const uint32_t* words, uint32_t* states) {
  Ring ring;
  __builtin_memset(states, 0, sizeof(uint32_t) * coded.steps);
  for (int plane = 0, low = 0; plane < coded.planes; ++plane) {
    const int bits = coded.steps * coded.stride[plane];
    wrap(words, bits, ring);
    add_windows(ring, coded.steps, coded.window[plane], coded.stride[plane], low, states);
    words += bits / 32;
    low += coded.window[plane];
  }
}

UNSPOOL_INLINE const uint32_t* tile_words(const Coded& coded, int64_t strip, int64_t across) {
  return coded.codes + (strip * (coded.columns / coded.tile_columns) + across) * coded.words;
}

// First entry of the table that a weight uses.
UNSPOOL_INLINE int64_t unit_start(const Coded& coded, int64_t row, int64_t column) {
  const int64_t unit = row / coded.unit_rows * coded.units_across + column / coded.unit_columns;
  return unit * coded.entries_per_unit;
}

// Calls put(row in tile, column in tile, operand bits) for every weight of a tile.
template <class Entry, class Put>
UNSPOOL_INLINE void each_operand(const Coded& coded, int64_t strip, int64_t across,
                                 const Put& put) {
  alignas(32) uint32_t states[kMaxSteps];
  tile_states(coded, tile_words(coded, strip, across), states);
  const int per_row = coded.tile_columns / coded.lanes;
  for (int row = 0, step = 0; row < coded.tile_rows; ++row) {
    const Entry* table = (const Entry*)coded.entries + unit_start(coded,
        strip * coded.tile_rows + row, across * coded.tile_columns);
    for (int i = 0; i < per_row; ++i, ++step) {
      const Entry* entry = table + int64_t(states[step]) * coded.lanes;
      for (int lane = 0; lane < coded.lanes; ++lane) put(row, i * coded.lanes + lane, entry[lane]);
    }
  }
}

template <int lanes>
UNSPOOL_INLINE void tile_direct(const Coded& coded, int64_t strip, int64_t across, float* panel) {
  alignas(32) uint32_t states[kMaxSteps];
  tile_states(coded, tile_words(coded, strip, across), states);
  const int per_row = coded.tile_columns / lanes;
  for (int row = 0, step = 0; row < coded.tile_rows; ++row) {
    for (int i = 0; i < per_row; ++i, ++step) {
      const float* value = coded.state_values + int64_t(states[step]) * lanes;
      for (int lane = 0; lane < lanes; ++lane) panel[row * kPanel + i * lanes + lane] = value[lane];
    }
  }
}

// One tile's values into the panel, whose rows are kPanel apart.
UNSPOOL_INLINE void tile_values(const Coded& coded, int64_t strip, int64_t across, float* panel) {
  const auto put = [&](int row, int column, int bits) UNSPOOL_INLINE_LAMBDA {
    panel[row * kPanel + column] = coded.values[bits];
  };
  if (coded.state_values && coded.lanes == 1)
    tile_direct<1>(coded, strip, across, panel);
  else if (coded.state_values && coded.lanes == 2)
    tile_direct<2>(coded, strip, across, panel);
  else if (coded.entry_bytes == 1)
    each_operand<uint8_t>(coded, strip, across, put);
  else
    each_operand<uint16_t>(coded, strip, across, put);
}

UNSPOOL_INLINE float scale_of(const Coded& coded, int64_t row, int64_t column) {
  if (!coded.scale_bytes) return coded.tensor_scale;
  const int64_t at = row * (coded.columns / coded.block) + column / coded.block;
  const int bits = coded.scale_bytes == 1 ? ((const uint8_t*)coded.scales)[at]
                                          : ((const uint16_t*)coded.scales)[at];
  return coded.scale_values[bits] * coded.tensor_scale;
}

// Columns [first, first + count) of a strip, in whole tiles.
UNSPOOL_INLINE void decode_panel(const Coded& coded, int64_t strip, int64_t first, int64_t count,
                                 float* panel) {
  for (int64_t column = 0; column < count; column += coded.tile_columns)
    tile_values(coded, strip, (first + column) / coded.tile_columns, panel + column);
}

// The sum of products of one row of a panel with one activation row, eight columns at a time, then
// the eight partial sums in order. Every product of the library with float32 activations is summed
// this way, whatever the batch, so a row's result does not depend on the rows beside it.
template <int rows, int batch>
UNSPOOL_INLINE void dot(const float* panel, const float* x, int64_t x_stride, int64_t count,
                        float (*sums)[batch]) {
  f8 sum[rows][batch] = {};
  for (int64_t i = 0; i < count; i += 8) {
    for (int b = 0; b < batch; ++b) {
      const f8 activation = UNSPOOL_VIEW(f8, x + b * x_stride + i);
      for (int r = 0; r < rows; ++r)
        sum[r][b] += UNSPOOL_VIEW(f8, panel + r * kPanel + i) * activation;
    }
  }
  for (int r = 0; r < rows; ++r)
    for (int b = 0; b < batch; ++b) {
      float total = 0;
      for (int i = 0; i < 8; ++i) total += sum[r][b][i];
      sums[r][b] = total;
    }
}

// y[b, row] += scale * (panel row . x row), for `batch` activation rows and all rows of the strip.
template <int batch>
UNSPOOL_INLINE void add_products(const Coded& coded, const float* panel, int64_t strip,
                                 int64_t first, int64_t count, const float* x, float* y) {
  constexpr int kRows = 4;
  const int64_t segment = coded.block < count ? coded.block : count;
  for (int row = 0; row < coded.tile_rows; row += kRows) {
    const int64_t at = strip * coded.tile_rows + row;
    for (int64_t column = 0; column < count; column += segment) {
      float sums[kRows][batch];
      dot<kRows, batch>(panel + row * kPanel + column, x + first + column, coded.columns, segment,
                        sums);
      for (int r = 0; r < kRows; ++r) {
        const float scale = scale_of(coded, at + r, first + column);
        for (int b = 0; b < batch; ++b) y[b * coded.rows + at + r] += sums[r][b] * scale;
      }
    }
  }
}

// All rows of one strip: x [m, columns], y [m, rows]. Each panel is decoded once for all of m.
static void multiply_strip(const Coded& coded, int64_t strip, const float* x, int64_t m,
                           float* y) {
  constexpr int kBatch = 3;  // 4 x 3 sums and 4 + 3 operands: 16 registers hold the inner loop
  alignas(32) float panel[kMaxTileRows * kPanel];
  for (int64_t b = 0; b < m; ++b)
    for (int row = 0; row < coded.tile_rows; ++row)
      y[b * coded.rows + strip * coded.tile_rows + row] = 0;
  for (int64_t first = 0; first < coded.columns; first += kPanel) {
    const int64_t left = coded.columns - first, count = left < kPanel ? left : kPanel;
    decode_panel(coded, strip, first, count, panel);
    int64_t b = 0;
    for (; b + kBatch <= m; b += kBatch)
      add_products<kBatch>(coded, panel, strip, first, count, x + b * coded.columns,
                           y + b * coded.rows);
    for (; b < m; ++b)
      add_products<1>(coded, panel, strip, first, count, x + b * coded.columns,
                      y + b * coded.rows);
  }
}

// Values times scales of one strip: out [tile_rows, columns].
static void decode_strip(const Coded& coded, int64_t strip, float* out) {
  alignas(32) float panel[kMaxTileRows * kPanel];
  for (int64_t first = 0; first < coded.columns; first += kPanel) {
    const int64_t left = coded.columns - first, count = left < kPanel ? left : kPanel;
    decode_panel(coded, strip, first, count, panel);
    for (int row = 0; row < coded.tile_rows; ++row)
      for (int64_t i = 0; i < count; ++i)
        out[row * coded.columns + first + i] =
            panel[row * kPanel + i] * scale_of(coded, strip * coded.tile_rows + row, first + i);
  }
}

// Operand bit patterns of one strip: out [tile_rows, columns].
static void strip_operands(const Coded& coded, int64_t strip, uint16_t* out) {
  for (int64_t across = 0; across < coded.columns / coded.tile_columns; ++across) {
    const auto put = [&](int row, int column, int bits) UNSPOOL_INLINE_LAMBDA {
      out[row * coded.columns + across * coded.tile_columns + column] = uint16_t(bits);
    };
    if (coded.entry_bytes == 1)
      each_operand<uint8_t>(coded, strip, across, put);
    else
      each_operand<uint16_t>(coded, strip, across, put);
  }
}
