// A strip of rows times int8 activations. Compiled by strip_product.cpp once for every lanes_*.hpp,
// after strip_codes.hpp; `integer.hpp` states the order of the additions.
//
// Few rows of activations meet the levels as they are decoded, in registers: no decoded weight is
// ever stored. For many rows a chunk of the strip is decoded into the L1 and read again and again.
// Sums start at -zero times the sum of their activations, which takes the levels' `zero` back.

template <class Code>
constexpr int columns_of() {
  return 4 * Code::kUnits * Code::kLanes;
}

// The scales of a register's rows for one block, times `factor`; of four registers in a row.
template <int Kind>
UNSPOOL_INLINE Floats scales_at(const uint8_t* at, int j, Floats factor) {
  if (Kind == kE4M3Scale)
    return product(product(e4m3_256ths(at + kLane * j), broadcast(256)), factor);
  if (Kind == kE8M0Scale) return product(e8m0(at + kLane * j), factor);
  return product(halves(at + 2 * kLane * j), factor);
}

// All units of register J, then of the next: the sums of one register are in use at a time.
template <class Code, int M, int J, int Unit>
UNSPOOL_INLINE void steps(const Code& code, const Bytes* v, const int8_t* x, Bytes (&sums)[M][4]) {
  if constexpr (J < kRegisters) {
    const auto index = code.template index<Unit, J>(v);
    UNSPOOL_UNROLL
    for (int lane = 0; lane < Code::kLanes; ++lane) {
      const Bytes weights = code.levels(index, lane);
      UNSPOOL_UNROLL
      for (int i = 0; i < M; ++i)
        sums[i][J] = dot<Code::kRange>(
            sums[i][J], weights,
            four_activations(x + i * kChunkColumns + 4 * (Unit * Code::kLanes + lane)));
    }
    constexpr bool kLast = Unit + 1 == Code::kUnits;
    steps<Code, M, kLast ? J + 1 : J, kLast ? 0 : Unit + 1>(code, v, x, sums);
  }
}

// How far ahead of the tiles their bytes are asked for: tuned in bench/results/matmul.json's
// machine.
constexpr int kAhead = 4096;

// M rows of activations: levels are multiplied as they are decoded.
template <class Code, int M, int Kind>
static void few(const StripJob& job, int64_t strip, float* out) {
  const Strips& s = job.strips;
  const Code code = *reinterpret_cast<const Code*>(s.code.bytes());
  constexpr int kColumns = columns_of<Code>();
  const uint8_t* at = s.strip(strip);
  const uint8_t* scale = job.scales_of(strip);
  const Floats factor = broadcast(job.scale_factor);
  Floats totals[M][4];
  UNSPOOL_UNROLL
  for (int i = 0; i < M; ++i)
    UNSPOOL_UNROLL
    for (int j = 0; j < 4; ++j) totals[i][j] = broadcast(0);
  for (int64_t column = 0, segment = 0; column < s.k; column += s.group, ++segment) {
    const int64_t width = s.group < s.k - column ? s.group : s.k - column;
    Bytes sums[M][4];
    UNSPOOL_UNROLL
    for (int i = 0; i < M; ++i) {
      const Bytes start = broadcast_dword(uint32_t(job.x.starts[segment * job.x.m + i]));
      UNSPOOL_UNROLL
      for (int j = 0; j < 4; ++j) sums[i][j] = start;
    }
    const int8_t* x = job.x.at(0, column);
    for (const int8_t* const end = x + width; x < end; x += kColumns) {
      Bytes v[Code::kQwords];
      UNSPOOL_UNROLL
      for (int i = 0; i < Code::kQwords; ++i, at += kWidth) {
        v[i] = load(at);
        prefetch(at + kAhead);
      }
      steps<Code, M, 0, 0>(code, v, x, sums);
    }
    const float* x_scales = job.x.scales + column / kActivationBlock * job.x.m;
    UNSPOOL_UNROLL
    for (int j = 0; j < 4; ++j) {
      Floats scales = factor;
      if (Kind != kNoScale) scales = scales_at<Kind>(scale, j, factor);
      UNSPOOL_UNROLL
      for (int i = 0; i < M; ++i) {
        Floats both = broadcast(x_scales[i]);
        if (Kind != kNoScale) both = product(scales, both);
        totals[i][j] = sum(totals[i][j], product(to_floats(sums[i][j]), both));
      }
    }
    if (Kind != kNoScale && (column + width) % s.block == 0) scale += job.scale_bytes;
  }
  UNSPOOL_UNROLL
  for (int i = 0; i < M; ++i)
    UNSPOOL_UNROLL
    for (int j = 0; j < 4; ++j) store_floats(out + (i * 4 + j) * kLane, totals[i][j]);
}

template <class Code, int J, int Unit>
UNSPOOL_INLINE void decode_steps(const Code& code, const Bytes* v, uint8_t* out) {
  if constexpr (J < kRegisters) {
    const auto index = code.template index<Unit, J>(v);
    UNSPOOL_UNROLL
    for (int lane = 0; lane < Code::kLanes; ++lane)
      store(out + ((Unit * Code::kLanes + lane) * 4 + J) * kWidth, code.levels(index, lane));
    constexpr bool kLast = Unit + 1 == Code::kUnits;
    decode_steps<Code, kLast ? J + 1 : J, kLast ? 0 : Unit + 1>(code, v, out);
  }
}

// The levels of `width` columns from `at` on: [columns / 4][4 registers][bytes of a register].
template <class Code>
static void decode(const StripJob& job, const uint8_t* at, int64_t width, uint8_t* out) {
  const Code code = *reinterpret_cast<const Code*>(job.strips.code.bytes());
  constexpr int kColumns = columns_of<Code>();
  for (int64_t column = 0; column < width; column += kColumns) {
    Bytes v[Code::kQwords];
    UNSPOOL_UNROLL
    for (int i = 0; i < Code::kQwords; ++i, at += kWidth) {
      v[i] = load(at);
      prefetch(at + kAhead);
    }
    decode_steps<Code, 0, 0>(code, v, out);
    out += kWidth * kColumns;
  }
}

// Sums of M rows of activations times decoded levels, in registers.
template <Range Levels, int M>
UNSPOOL_INLINE void dots(const uint8_t* levels, const int8_t* x, const int8_t* end,
                         Bytes (&sums)[M][4]) {
  for (; x < end; x += 4, levels += 4 * kWidth) {
    Bytes w[4];
    UNSPOOL_UNROLL
    for (int j = 0; j < 4; ++j) w[j] = load(levels + j * kWidth);
    UNSPOOL_UNROLL
    for (int i = 0; i < M; ++i) {
      const Bytes four = four_activations(x + i * kChunkColumns);
      UNSPOOL_UNROLL
      for (int j = 0; j < 4; ++j) sums[i][j] = dot<Levels>(sums[i][j], w[j], four);
    }
  }
}

// The same in steps of 16 columns, for small levels.
template <int M>
UNSPOOL_INLINE void dots_by_fours(const uint8_t* levels, const int8_t* x, const int8_t* end,
                                  Bytes (&sums)[M][4]) {
  if constexpr (kDotFour)
    for (; x < end; x += 16, levels += 16 * kWidth) {
      UNSPOOL_UNROLL
      for (int j = 0; j < 4; ++j) {
        Bytes w[4];
        UNSPOOL_UNROLL
        for (int step = 0; step < 4; ++step) w[step] = load(levels + (4 * step + j) * kWidth);
        UNSPOOL_UNROLL
        for (int i = 0; i < M; ++i) sums[i][j] = dot_four(sums[i][j], w, x + i * kChunkColumns);
      }
    }
}

// M rows of activations times decoded levels over one group, added to their totals.
template <Range Levels, int M>
static void group_dots(const uint8_t* levels, const int8_t* x, int64_t width, const int32_t* starts,
                       const float* x_scales, const float* scales, float* totals) {
  Bytes sums[M][4];
  UNSPOOL_UNROLL
  for (int i = 0; i < M; ++i) {
    UNSPOOL_UNROLL
    for (int j = 0; j < 4; ++j) sums[i][j] = broadcast_dword(uint32_t(starts[i]));
  }
  if (kDotFour && Levels == kSmall && width % 16 == 0)
    dots_by_fours<M>(levels, x, x + width, sums);
  else
    dots<Levels, M>(levels, x, x + width, sums);
  UNSPOOL_UNROLL
  for (int i = 0; i < M; ++i) {
    UNSPOOL_UNROLL
    for (int j = 0; j < 4; ++j) {
      Floats both = broadcast(x_scales[i]);
      if (scales) both = product(load_floats(scales + kLane * j), both);
      float* const total = totals + i * kWidth + kLane * j;
      store_floats(total, sum(load_floats(total), product(to_floats(sums[i][j]), both)));
    }
  }
}

typedef void (*GroupDots)(const uint8_t*, const int8_t*, int64_t, const int32_t*, const float*,
                          const float*, float*);

template <int M>
static GroupDots dots_of_rows(Range levels, int64_t rows) {
  if constexpr (M > 1) {
    if (rows != M) return dots_of_rows<M - 1>(levels, rows);
  }
  switch (levels) {
    case kSmall: return group_dots<kSmall, M>;
    case kNarrow: return group_dots<kNarrow, M>;
    default: return group_dots<kWide, M>;
  }
}

// Float scales of the groups of a chunk, [groups, rows].
template <int Kind>
static void chunk_scales(const StripJob& job, int64_t strip, int64_t column, int64_t width,
                         float* out) {
  const Floats factor = broadcast(job.scale_factor);
  for (int64_t c = column; c < column + width; c += job.strips.group, out += kWidth) {
    const uint8_t* at = job.scales_of(strip) + c / job.strips.block * job.scale_bytes;
    for (int j = 0; j < 4; ++j) store_floats(out + kLane * j, scales_at<Kind>(at, j, factor));
  }
}

// The same for a code without a look-up: rows one by one, put in the order of registers. Bytes of
// rows beyond the matrix stay as they are: what is computed with them is dropped.
static void decode_rows(const StripJob& job, int64_t strip, int64_t column, int64_t width,
                        const StripScratch& scratch) {
  const Strips& s = job.strips;
  const int64_t first = strip * kWidth, rows = s.rows - first < kWidth ? s.rows - first : kWidth;
  for (int64_t r = 0; r < rows; ++r) {
    s.row_levels(*s.source, first + r, column, width, scratch.row);
    uint8_t* to = scratch.levels + r % 8 / 2 * kWidth + 8 * (r / 8) + 4 * (r % 2);
    for (int64_t c = 0; c < width; c += 4, to += 4 * kWidth)
      for (int b = 0; b < 4; ++b) to[b] = uint8_t(scratch.row[c + b] + s.plan.zero);
  }
}

// All rows of activations: a chunk is decoded once, then read by a few rows at a time.
template <class Code, int Kind>
static void many(const StripJob& job, int64_t strip, const StripScratch& scratch) {
  const Strips& s = job.strips;
  const int64_t m = job.x.m, blocks = (m + kAtOnce - 1) / kAtOnce;
  for (int64_t i = 0; i < m * kWidth; i += kLane) store_floats(scratch.totals + i, broadcast(0));
  for (int64_t column = 0; column < s.k; column += kChunkColumns) {
    const int64_t width = kChunkColumns < s.k - column ? kChunkColumns : s.k - column;
    if constexpr (Code::kTabulated)
      decode_rows(job, strip, column, width, scratch);
    else
      decode<Code>(job, s.strip(strip) + column / s.tile_columns * s.qwords * kWidth, width,
                   scratch.levels);
    if (Kind != kNoScale) chunk_scales<Kind>(job, strip, column, width, scratch.scales);
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = b * m / blocks, rows = (b + 1) * m / blocks - first;
      const GroupDots dots = dots_of_rows<kAtOnce>(s.plan.range, rows);
      for (int64_t c = 0; c < width; c += s.group) {
        const int64_t group = (column + c) / s.group;
        dots(scratch.levels + c * kWidth, job.x.at(first, column + c),
             s.group < width - c ? s.group : width - c, job.x.starts + group * m + first,
             job.x.scales + (column + c) / kActivationBlock * m + first,
             Kind == kNoScale ? nullptr : scratch.scales + c / s.group * kWidth,
             scratch.totals + first * kWidth);
      }
    }
  }
}

template <class Code, int M, int Kind>
static void for_rows(const StripJob& job, int64_t at, const StripScratch& scratch) {
  if constexpr (M == 0 || Code::kTabulated)
    many<Code, Kind>(job, at, scratch);
  else if (job.x.m == M)
    few<Code, M, Kind>(job, at, scratch.totals);
  else
    for_rows<Code, M - 1, Kind>(job, at, scratch);
}

template <class Code>
static StripKernel for_scales(int32_t kind) {
  constexpr StripProduct kProducts[] = {
      for_rows<Code, kFew, kNoScale>, for_rows<Code, kFew, kE4M3Scale>,
      for_rows<Code, kFew, kE8M0Scale>, for_rows<Code, kFew, kHalfScale>};
  return {kWidth, sizeof(Code), [](const Plan& plan, void* out) { new (out) Code(plan); },
          kProducts[kind]};
}

// A ring of a stride that not all lanes can cut.
template <int Ring, int Plain, int Lanes, int Stride>
static StripKernel for_stride(int32_t kind) {
  if constexpr (kAnyStride)
    return for_scales<Table<Ring, Plain, Lanes, Stride>>(kind);
  else
    return {};
}

// The copy compiled for a shape (strips.cpp numbers them), for scales in blocks of a kind.
static StripKernel strip_kernel(int32_t shape, int32_t kind) {
  switch (shape) {
    case table_shape(6, 0, 1): return for_scales<Table<6, 0, 1>>(kind);  // t1
    case table_shape(4, 2, 2): return for_scales<Table<4, 2, 2>>(kind);  // t1.5
    case table_shape(5, 1, 1): return for_scales<Table<5, 1, 1>>(kind);  // t2
    case table_shape(6, 1, 1): return for_scales<Table<6, 1, 1>>(kind);
    case table_shape(7, 0, 1, 2): return for_stride<7, 0, 1, 2>(kind);
    case table_shape(3, 4, 2): return for_scales<Table<3, 4, 2>>(kind);  // t2.5
    case table_shape(5, 2, 1): return for_scales<Table<5, 2, 1>>(kind);  // t3
    case table_shape(4, 3, 1): return for_scales<Table<4, 3, 1>>(kind);  // t4
    case table_shape(0, 2, 1): return for_scales<Table<0, 2, 1>>(kind);
    case table_shape(0, 3, 1): return for_scales<Table<0, 3, 1>>(kind);
    case table_shape(0, 4, 1): return for_scales<Table<0, 4, 1>>(kind);  // mxfp4, nvfp4, int4
    case table_shape(0, 6, 1): return for_scales<Table<0, 6, 1>>(kind);  // mxfp6-e2m3
    case table_shape(0, 8, 1): return for_scales<Table<0, 8, 1>>(kind);  // int8
    case kMultiplyShape: return for_scales<Multiplied>(kind);            // m2-e2m1
    case kTabulatedShape: return for_scales<Tabulated>(kind);
    default: return {};
  }
}
