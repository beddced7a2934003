// Decodes a panel of rows chunk by chunk into the cache and multiplies it with all rows of x.
// Compiled once per instruction set by float_product.cpp.

#ifdef UNSPOOL_AVX2
#define UNSPOOL_FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
// Loaded once: GCC 12 else folds the load into every FMA that uses it, 14 loads for 12 FMAs.
#define UNSPOOL_IN_REGISTER(v) __asm__("" : "+x"(v))
#else
#define UNSPOOL_FMA(a, b, c) ((a) * (b) + (c))
#define UNSPOOL_IN_REGISTER(v) (void)(v)
#endif

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
static void decode_row(const Multiply& job, QuickRow<float>::Function quick, int64_t row,
                       int64_t column, int64_t width, const PanelScratch& scratch, float* out) {
  const CodedMatrix& m = job.matrix;
  float_levels(m, quick, row, column, width, {scratch.levels, scratch.operands}, out);
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
  float* y = job.y + i * job.matrix.n + row;
  const int64_t stride = job.chunk_stride;
  int64_t j = 0;
  for (; j + kN <= rows; j += kN)
    dots<M, kN>(x, job.x_stride, w + j * stride, stride, width, y + j, job.matrix.n, chunk == 0);
  for (; j < rows; ++j)
    dots<M, 1>(x, job.x_stride, w + j * stride, stride, width, y + j, job.matrix.n, chunk == 0);
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
  const QuickRow<float>::Function quick = quick_row_of<float>(m);
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
    for (int64_t r = 0; r < rows; ++r) job.y[i * job.matrix.n + row + r] *= scratch.scales[r];
}

#undef UNSPOOL_FMA
#undef UNSPOOL_IN_REGISTER
