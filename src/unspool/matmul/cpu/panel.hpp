// Decodes a panel of rows chunk by chunk into the cache and multiplies it with all rows of x.
// Compiled once per instruction set by matmul.cpp.

#ifdef UNSPOOL_AVX2
#define UNSPOOL_FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
// Loaded once: GCC 12 else folds the load into every FMA that uses it, 14 loads for 12 FMAs.
#define UNSPOOL_IN_REGISTER(v) __asm__("" : "+x"(v))
#else
#define UNSPOOL_FMA(a, b, c) ((a) * (b) + (c))
#define UNSPOOL_IN_REGISTER(v) (void)(v)
#endif

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
    _mm_storeu_ps(out, _mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(four))));
    return;
  }
#endif
  for (int lane = 0; lane < V; ++lane) out[lane] = levels[lane];
}

// The bits that one row of a tile reads of a plane fit 64: 8 or 16 columns are cut from one word.
//
//   word   b0 b1 b2 b3 b4 b5 b6 ...      state 0 = b0 .. b4, then the word moves on by the stride
//          [  window   ]
//             [  window   ]
template <int Planes, int V, int PerRow, Levels Kind>
static void quick_row(const CodedMatrix& m, int64_t row, int64_t tile, int64_t tiles,
                      const void* table, float* out) {
  const int32_t steps = m.fast_steps, turn = int32_t(row % m.tile_rows) * m.steps_per_row();
  const int32_t size = m.words * 4;
  const uint8_t* ring = m.tile(row / m.tile_rows, tile);
  int32_t bytes[2], at[2], stride[2], low[2] = {0, 0};
  uint64_t mask[2];
  for (int p = 0; p < Planes; ++p) {
    const int32_t window = m.window[p] + (steps - 1) * m.stride[p];
    bytes[p] = m.steps() * m.stride[p] / 8;
    at[p] = turn * m.stride[p] / 8;
    stride[p] = steps * m.stride[p];
    mask[p] = ((uint64_t)1 << window) - 1;
    if (p == 0) low[1] = window;
  }
  for (int64_t t = 0; t < tiles; ++t, ring += size) {
    uint64_t word[2];
    word[0] = ring64(ring, bytes[0], at[0]);
    if (Planes == 2) word[1] = ring64(ring + bytes[0], bytes[1], at[1]);
    UNSPOOL_UNROLL
    for (int i = 0; i < PerRow; ++i, out += V) {
      uint64_t index = word[0] & mask[0];
      if (Planes == 2) index |= (word[1] & mask[1]) << low[1];
      emit<V, Kind>(table, m.values, index, out);
      word[0] >>= stride[0];
      if (Planes == 2) word[1] >>= stride[1];
    }
  }
}

typedef void (*QuickRow)(const CodedMatrix&, int64_t, int64_t, int64_t, const void*, float*);

template <int V, int PerRow, Levels Kind>
static QuickRow for_planes(const CodedMatrix& m) {
  return m.planes == 1 ? quick_row<1, V, PerRow, Kind> : quick_row<2, V, PerRow, Kind>;
}

template <int V, int PerRow>
static QuickRow for_levels(const CodedMatrix& m) {
  if (m.fast_kind == kFloatLevels) return for_planes<V, PerRow, kFloats>(m);
  if (m.fast_kind == kInt8Levels) return V == 4 ? for_planes<V, PerRow, kInt8>(m) : nullptr;
  if (m.parameter) return nullptr;
  return m.entry_bytes == 1 ? for_planes<V, PerRow, kByteOperands>(m)
                            : for_planes<V, PerRow, kHalfOperands>(m);
}

// What a row of a tile reads of each plane is whole bytes and fits one word.
static bool fits_words(const CodedMatrix& m) {
  for (int32_t p = 0; p < m.planes; ++p) {
    const int32_t read = (m.steps_per_row() - 1) * m.stride[p] + m.window[p];
    const int32_t per_row = m.steps_per_row() * m.stride[p], ring = m.steps() * m.stride[p];
    if (per_row % 8 || read > 64 || ring < 64) return false;
  }
  return m.planes <= 2;
}

// The compiled shape that fits, or null: then the plain way runs.
static QuickRow quick_row_of(const CodedMatrix& m) {
  if (!fits_words(m)) return nullptr;
  switch (m.tile_columns * 16 + m.lanes * m.fast_steps) {
    case 8 * 16 + 1: return for_levels<1, 8>(m);
    case 8 * 16 + 2: return for_levels<2, 4>(m);
    case 8 * 16 + 4: return for_levels<4, 2>(m);
    case 16 * 16 + 2: return for_levels<2, 8>(m);
    case 16 * 16 + 4: return for_levels<4, 4>(m);
    default: return nullptr;
  }
}

// Levels of a row where a table is stored per tensor, row or tile: it is read where it starts.
static void parameter_row(const CodedMatrix& m, QuickRow quick, int64_t row, int64_t tile,
                          int64_t tiles, float* levels, float* out) {
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

// Scales of a row's blocks from `column` on, where there is more than one per row.
static void scale_blocks(const CodedMatrix& m, int64_t row, int64_t column, int64_t width,
                         float* out) {
  for (int64_t i = 0; i < width;) {
    const int64_t block = (column + i) / m.block;
    const int64_t left = (block + 1) * m.block - column, end = left < width ? left : width;
    const float scale = scale_at(m, row, block), unit = m.unit;
    for (; i < end; ++i) out[i] = out[i] * unit * scale;
  }
}

// One row of a chunk: levels, or weights up to the row's scale; zeros up to a multiple of 16.
static void decode_row(const Multiply& job, QuickRow quick, int64_t row, int64_t column,
                       int64_t width, const PanelScratch& scratch, float* out) {
  const CodedMatrix& m = job.matrix;
  const int64_t tile = column / m.tile_columns, tiles = width / m.tile_columns;
  if (!quick)
    plain_row(m, row, tile, tiles, scratch.operands, out);
  else if (m.parameter)
    parameter_row(m, quick, row, tile, tiles, scratch.levels, out);
  else
    quick(m, row, tile, tiles, m.fast_kind == kNoFast ? m.entries : m.fast, out);
  if (!m.scale_per_row()) scale_blocks(m, row, column, width, out);
  for (int64_t i = width; i % kPartials; ++i) out[i] = 0;
}

UNSPOOL_INLINE float added_in_halves(const f8& low, const f8& high) {
  const f8 eight = low + high;
  const f4 four = {eight[0] + eight[4], eight[1] + eight[5], eight[2] + eight[6],
                   eight[3] + eight[7]};
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// M rows of x times N rows of weights over one chunk; M * N * 2 <= 12 vectors of partial sums.
template <int M, int N>
static void dots(const float* x, int64_t x_stride, const float* w, int64_t w_stride, int64_t width,
                 float* y, int64_t y_stride, bool first) {
  f8 sums[M][N][2];
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j) sums[i][j][0] = sums[i][j][1] = UNSPOOL_ALL(0);
  for (int64_t k = 0; k < width; k += kPartials) {
    UNSPOOL_UNROLL
    for (int half = 0; half < 2; ++half) {
      f8 row[N];
      for (int j = 0; j < N; ++j) row[j] = UNSPOOL_VIEW(f8, w + j * w_stride + k + 8 * half);
      for (int i = 0; i < M; ++i) {
        f8 in = UNSPOOL_VIEW(f8, x + i * x_stride + k + 8 * half);
        if (N > 1) UNSPOOL_IN_REGISTER(in);
        for (int j = 0; j < N; ++j) sums[i][j][half] = UNSPOOL_FMA(row[j], in, sums[i][j][half]);
      }
    }
  }
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j) {
      const float sum = added_in_halves(sums[i][j][0], sums[i][j][1]);
      y[i * y_stride + j] = first ? sum : y[i * y_stride + j] + sum;
    }
}

template <int M>
static void dots_of_rows(const Multiply& job, int64_t i, int64_t rows, const float* w,
                         int64_t width, int64_t chunk, int64_t row) {
  constexpr int kN = M == 1 ? 4 : 2;  // 8 chains hide the latency of FMA (4 cycles, 2 per cycle)
  const float* x = job.x + i * job.x_stride + chunk * job.chunk_distance;
  float* y = job.y + i * job.y_stride + row;
  const int64_t stride = job.chunk_stride;
  int64_t j = 0;
  for (; j + kN <= rows; j += kN)
    dots<M, kN>(x, job.x_stride, w + j * stride, stride, width, y + j, job.y_stride, chunk == 0);
  for (; j < rows; ++j)
    dots<M, 1>(x, job.x_stride, w + j * stride, stride, width, y + j, job.y_stride, chunk == 0);
}

static void multiply_chunk(const Multiply& job, int64_t row, int64_t rows, const float* w,
                           int64_t width, int64_t chunk) {
  int64_t i = 0;
  for (; i + 3 <= job.count; i += 3) dots_of_rows<3>(job, i, rows, w, width, chunk, row);
  if (job.count - i == 2) dots_of_rows<2>(job, i, rows, w, width, chunk, row);
  if (job.count - i == 1) dots_of_rows<1>(job, i, rows, w, width, chunk, row);
}

// Rows [row, row + rows) of the product.
static void panel(const Multiply& job, int64_t row, int64_t rows, const PanelScratch& scratch) {
  const CodedMatrix& m = job.matrix;
  const QuickRow quick = quick_row_of(m);
  for (int64_t chunk = 0; chunk < job.chunks(); ++chunk) {
    const int64_t column = chunk * job.chunk;
    const int64_t width = job.chunk < m.k - column ? job.chunk : m.k - column;
    for (int64_t r = 0; r < rows; ++r)
      decode_row(job, quick, row + r, column, width, scratch,
                 scratch.weights + r * job.chunk_stride);
    multiply_chunk(job, row, rows, scratch.weights, (width + kPartials - 1) / kPartials * kPartials,
                   chunk);
  }
  if (!m.scale_per_row()) return;
  for (int64_t r = 0; r < rows; ++r) scratch.scales[r] = scale_at(m, row + r, 0) * m.unit;
  for (int64_t i = 0; i < job.count; ++i)
    for (int64_t r = 0; r < rows; ++r) job.y[i * job.y_stride + row + r] *= scratch.scales[r];
}

#undef UNSPOOL_FMA
#undef UNSPOOL_IN_REGISTER
