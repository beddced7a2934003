// Levels of one row by tables of one or several steps. Compiled once per instruction set by the
// products that include it.

UNSPOOL_INLINE uint64_t load64(const uint8_t* at) {
  uint64_t word;
  __builtin_memcpy(&word, at, 8);
  return word;
}

// Eight bytes of a plane from byte `at` on; the plane is a ring of `bytes` >= 8 bytes.
UNSPOOL_INLINE uint64_t ring64(const uint8_t* plane, int32_t bytes, int32_t at) {
  const int32_t left = bytes - at;
  if (left >= 8) return load64(plane + at);
  return load64(plane + bytes - 8) >> 8 * (8 - left) | load64(plane) << 8 * left;
}

// How a state becomes levels: floats or int8 of all lanes, or operand bits to look values up by.
enum Levels { kFloats, kInt8, kByteOperands, kHalfOperands };

template <int V, Levels Kind>
UNSPOOL_INLINE void emit(const void* table, const float*, uint64_t index, int8_t* out) {
  static_assert(Kind == kInt8, "integer products have int8 tables");
  __builtin_memcpy(out, (const int8_t*)table + index * V, V);
}

template <int V, Levels Kind>
UNSPOOL_INLINE void emit(const void* table, const float* values, uint64_t index, float* out) {
  if (Kind == kFloats) {
    __builtin_memcpy(out, (const float*)table + index * V, V * sizeof(float));
    return;
  }
  if (Kind != kInt8) {
    for (int lane = 0; lane < V; ++lane)
      out[lane] = values[Kind == kByteOperands ? ((const uint8_t*)table)[index * V + lane]
                                               : ((const uint16_t*)table)[index * V + lane]];
    return;
  }
  const int8_t* levels = (const int8_t*)table + index * V;
#ifdef UNSPOOL_AVX2
  if (V == 4) {
    int32_t four;
    __builtin_memcpy(&four, levels, 4);
    _mm_storeu_ps((float*)out, _mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(four))));
    return;
  }
#endif
  for (int lane = 0; lane < V; ++lane) out[lane] = levels[lane];
}

// A part of a row of a tile: 8 or 16 columns, whose bits of a plane fit 64 and are cut from one
// word. Tiles of 32 columns have two.
static int32_t part_columns(const CodedMatrix& m) {
  return m.tile_columns < 16 ? m.tile_columns : 16;
}

//   word   b0 b1 b2 b3 b4 b5 b6 ...      state 0 = b0 .. b4, then the word moves on by the stride
//          [  window   ]
//             [  window   ]
template <int Planes, int V, int PerPart, Levels Kind, class Out>
static void quick_row(const CodedMatrix& m, int64_t row, int64_t tile, int64_t tiles,
                      const void* table, Out* out) {
  const int32_t steps = m.fast_steps, turn = int32_t(row % m.tile_rows) * m.steps_per_row();
  const int32_t size = m.words * 4, parts = m.tile_columns / (V * PerPart);
  const uint8_t* ring = m.tile(row / m.tile_rows, tile);
  int32_t bytes[2], at[2], on[2], stride[2], low[2] = {0, 0};
  uint64_t mask[2];
  for (int p = 0; p < Planes; ++p) {
    const int32_t window = m.window[p] + (steps - 1) * m.stride[p];
    bytes[p] = m.steps() * m.stride[p] / 8;
    at[p] = turn * m.stride[p] / 8;
    on[p] = PerPart * steps * m.stride[p] / 8;
    stride[p] = steps * m.stride[p];
    mask[p] = ((uint64_t)1 << window) - 1;
    if (p == 0) low[1] = window;
  }
  for (int64_t t = 0; t < tiles; ++t, ring += size)
    for (int32_t part = 0; part < parts; ++part) {
      uint64_t word[2];
      word[0] = ring64(ring, bytes[0], at[0] + part * on[0]);
      if (Planes == 2) word[1] = ring64(ring + bytes[0], bytes[1], at[1] + part * on[1]);
      UNSPOOL_UNROLL
      for (int i = 0; i < PerPart; ++i, out += V) {
        uint64_t index = word[0] & mask[0];
        if (Planes == 2) index |= (word[1] & mask[1]) << low[1];
        emit<V, Kind>(table, m.values, index, out);
        word[0] >>= stride[0];
        if (Planes == 2) word[1] >>= stride[1];
      }
    }
}

// `tiles` tiles of a row from tile `tile` on, by a table: levels as float or int8.
template <class Out>
struct QuickRow {
  typedef void (*Function)(const CodedMatrix&, int64_t row, int64_t tile, int64_t tiles,
                           const void* table, Out* out);
};

template <int V, int PerPart, Levels Kind, class Out>
static typename QuickRow<Out>::Function for_planes(const CodedMatrix& m) {
  return m.planes == 1 ? quick_row<1, V, PerPart, Kind, Out> : quick_row<2, V, PerPart, Kind, Out>;
}

template <int V, int PerPart>
static void for_levels(const CodedMatrix& m, QuickRow<float>::Function* found) {
  if (m.fast_kind == kFloatLevels)
    *found = for_planes<V, PerPart, kFloats, float>(m);
  else if (m.fast_kind == kInt8Levels)
    *found = for_planes<V, PerPart, kInt8, float>(m);
  else if (!m.parameter)
    *found = m.entry_bytes == 1 ? for_planes<V, PerPart, kByteOperands, float>(m)
                                : for_planes<V, PerPart, kHalfOperands, float>(m);
}

template <int V, int PerPart>
static void for_levels(const CodedMatrix& m, QuickRow<int8_t>::Function* found) {
  if (m.fast_kind == kInt8Levels) *found = for_planes<V, PerPart, kInt8, int8_t>(m);
}

// What a part reads of each plane is whole bytes and fits one word.
static bool fits_words(const CodedMatrix& m) {
  const int32_t steps = part_columns(m) / m.lanes;
  for (int32_t p = 0; p < m.planes; ++p) {
    const int32_t read = (steps - 1) * m.stride[p] + m.window[p];
    if (steps * m.stride[p] % 8 || read > 64 || m.steps() * m.stride[p] < 64) return false;
  }
  return m.planes <= 2;
}

// The compiled shape that fits, or null: then the plain way runs.
template <class Out>
static typename QuickRow<Out>::Function quick_row_of(const CodedMatrix& m) {
  typename QuickRow<Out>::Function found = nullptr;
  if (m.tile_columns % part_columns(m) || !fits_words(m)) return found;
  switch (part_columns(m) * 16 + m.lanes * m.fast_steps) {
    case 8 * 16 + 1: for_levels<1, 8>(m, &found); break;
    case 8 * 16 + 2: for_levels<2, 4>(m, &found); break;
    case 8 * 16 + 4: for_levels<4, 2>(m, &found); break;
    case 16 * 16 + 2: for_levels<2, 8>(m, &found); break;
    case 16 * 16 + 4: for_levels<4, 4>(m, &found); break;
  }
  return found;
}

// Levels of a row where a table is stored per tensor, row or tile: it is read where it starts.
static void parameter_row(const CodedMatrix& m, QuickRow<float>::Function quick, int64_t row,
                          int64_t tile, int64_t tiles, float* levels, float* out) {
  while (tiles > 0) {
    const int64_t column = tile * m.tile_columns;
    const int64_t end = (column / m.unit_columns + 1) * m.unit_columns / m.tile_columns;
    const int64_t here = end - tile < tiles ? end - tile : tiles;
    const int64_t first = parameter_at(m, row, column);
    for (int64_t i = 0; i < m.length; ++i)
      levels[i] = m.values[entry(m.parameter, m.parameter_bytes, first + i)];
    quick(m, row, tile, here, levels, out);
    tile += here;
    tiles -= here;
    out += here * m.tile_columns;
  }
}

static void plain_row(const CodedMatrix& m, int64_t row, int64_t tile, int64_t tiles,
                      uint16_t* operands, float* out) {
  row_operands(m, row, tile, tiles, operands);
  for (int64_t i = 0; i < tiles * m.tile_columns; ++i) out[i] = m.values[operands[i]] / m.unit;
}

// What decoding a row needs.
struct RowScratch {
  float* levels;       // [256]: the parameter table of one unit
  uint16_t* operands;  // [columns]
};

// Levels (value / unit) of `width` columns of a row from `column` on, whole tiles.
[[maybe_unused]] static void float_levels(const CodedMatrix& m, QuickRow<float>::Function quick,
                                          int64_t row, int64_t column, int64_t width,
                                          const RowScratch& scratch, float* out) {
  const int64_t tile = column / m.tile_columns, tiles = width / m.tile_columns;
  if (!quick)
    plain_row(m, row, tile, tiles, scratch.operands, out);
  else if (m.parameter)
    parameter_row(m, quick, row, tile, tiles, scratch.levels, out);
  else
    quick(m, row, tile, tiles, m.fast_kind == kNoFast ? m.entries : m.fast, out);
}
