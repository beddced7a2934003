// Canonical tiles to strips and back: qwords of tiles interleaved, plain bits moved into place.

#include "matmul/cpu/strips.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "matmul/cpu/integer.hpp"
#include "matmul/cpu/strip_product.hpp"
#include "pool.hpp"

namespace unspool {
namespace {

int8_t level_of(const CodedMatrix& m, int64_t state, int32_t lane) {
  const uint32_t operand = entry(m.entries, m.entry_bytes, state * m.lanes + lane);
  return int8_t(m.values[operand] / m.integer_unit);
}

struct Shape {
  int ring = 0, plain = 0, stride = 1;  // bits of the window, plain bits, of the ring
  int32_t number = kNoShape;
};

bool levels_are_the_bits(const CodedMatrix& m) {
  for (int64_t i = 0; i < 256; ++i)
    if (level_of(m, i, 0) != int8_t(i)) return false;
  return true;
}

Shape table_of(const CodedMatrix& m) {
  const bool coded = m.window[0] > m.stride[0];
  Shape shape;
  shape.ring = coded ? m.window[0] : 0;
  shape.plain = coded ? (m.planes > 1 ? m.window[1] : 0) : m.window[0];
  shape.stride = coded ? m.stride[0] : 1;
  const int bits = shape.ring + shape.plain;
  const bool planes = m.planes == (coded && shape.plain ? 2 : 1) &&
                      shape.stride <= kMaxStride &&
                      (m.planes < 2 || m.window[1] == m.stride[1]);
  const bool tile = m.tile_rows == 8 && m.tile_columns == 8 * m.lanes && m.lanes <= 2;
  if (planes && tile && (bits <= 7 || (bits == 8 && m.lanes == 1 && levels_are_the_bits(m))))
    shape.number = table_shape(shape.ring, shape.plain, m.lanes, shape.stride);
  return shape;
}

Shape register_shape(const CodedMatrix& m) {
  if (!m.multiplies) return table_of(m);
  Shape shape;
  const bool ring = m.planes == 1 && m.window[0] == 16 && m.stride[0] == 8;
  if (ring && m.lanes == 4 && m.tile_rows == 8 && m.tile_columns == 16)
    shape.number = kMultiplyShape;
  return shape;
}

// The shape to compile for: in registers where a kernel was made for it, else by the table. Kernels
// in registers take wide levels on AVX2 only where the bits are the level.
Shape shape_of(const CodedMatrix& m, Path path) {
  if (m.integer_unit == 0 || m.lanes > kMaxLanes || kChunkColumns % m.tile_columns || m.k % 4 ||
      group_columns(m) % 4)
    return {};
  const Shape shape = register_shape(m);
  const bool fits = group_columns(m) % m.tile_columns == 0 &&
                    (path != kAvx2 || range_of(m.largest_level) != kWide || shape.plain == 8);
  if (fits && strip_kernel(path, shape.number, kNoScale).product) return shape;
  return {0, 0, 1, kTabulatedShape};
}

void plan_table(const CodedMatrix& m, const Shape& shape, Plan& plan) {
  const int bits = std::min(7, shape.ring + shape.plain);
  for (int32_t lane = 0; lane < m.lanes; ++lane)
    for (int i = 0; i < 128; ++i)
      plan.table[lane][i] = uint8_t(plan.zero + level_of(m, i & ((1 << bits) - 1), lane));
  for (int half = 0; half < 2; ++half)
    for (int j = 0; j < kRegisters; ++j)
      for (int byte = 0; byte < 8; ++byte) {
        const int step = 8 * (byte / 4) + 4 * half + byte % 4;
        const int start = shape.stride == 1 ? 16 * j + step : shape.stride * step;
        plan.starts[half][j] |= uint64_t(start) << 8 * byte;
      }
}

void plan_multiply(const CodedMatrix& m, Plan& plan) {
  for (int i = 0; i < 128; ++i)  // `values` has one entry per operand: 16
    plan.table[0][i] = uint8_t(plan.zero + int8_t(m.values[i & 15] / m.integer_unit));
  for (int step = 0; step < 3; ++step)
    for (int byte = 0; byte < 64; ++byte) {
      const int qword = byte / 8 % 2, second = byte % 8 / 4;
      const int of_window = int(m.selector >> 4 * (byte % 4) & 1);
      plan.spread[step][byte] = uint8_t(8 * qword + 4 * second + step + of_window);
    }
  plan.multiplier = m.multiplier;
  plan.addend = m.addend;
}

// The pieces of every output's plain bits, in both layouts: calls move(row, half, bits of a step's
// field, place of the qword, shift in it) for each half of a row of a tile.
template <class Move>
void each_piece(int bits, const Move& move) {
  const Pieces pieces(bits);
  for (int row = 0; row < 8; ++row)
    for (int half = 0; half < 2; ++half)
      for (int p = 0; p < pieces.count; ++p) {
        const int width = pieces.width[p], fields = 8 / width;
        const int output = kRegisters * half + row / 2;
        const uint64_t mask = 0x01010101 * ((uint64_t(1) << width) - 1);
        move(row, 32 * half, pieces.low[p], mask, pieces.low[p] + output / fields,
             32 * (row % 2) + width * (output % fields));
      }
}

// A row's fields of `bits` bits, one per byte, and back.
uint64_t spread(uint64_t packed, int bits) {
  uint64_t found = 0;
  for (int c = 0; c < 8; ++c)
    found |= (packed >> c * bits & ((uint64_t(1) << bits) - 1)) << 8 * c;
  return found;
}
uint64_t packed(uint64_t spread, int bits) {
  uint64_t found = 0;
  for (int c = 0; c < 8; ++c) found |= (spread >> 8 * c & 0xff) << c * bits;
  return found;
}

void put_plain(int bits, int64_t down, const uint8_t* plane, uint64_t* out) {
  uint64_t rows[8];
  for (int row = 0; row < 8; ++row) {
    uint64_t word = 0;
    std::memcpy(&word, plane + row * bits, std::size_t(bits));
    rows[row] = spread(word, bits);
  }
  each_piece(bits, [&](int row, int half, int low, uint64_t mask, int qword, int shift) {
    out[qword * down] |= (rows[row] >> half >> low & mask) << shift;
  });
}

void take_plain(int bits, int64_t down, const uint64_t* from, uint8_t* plane) {
  uint64_t rows[8] = {};
  each_piece(bits, [&](int row, int half, int low, uint64_t mask, int qword, int shift) {
    rows[row] |= (from[qword * down] >> shift & mask) << low << half;
  });
  for (int row = 0; row < 8; ++row) {
    const uint64_t word = packed(rows[row], bits);
    std::memcpy(plane + row * bits, &word, std::size_t(bits));
  }
}

// Qwords of a tile that stay as they are: all of a multiply code's, the ring of a table code.
int64_t kept_qwords(const Strips& s) {
  return s.shape == kMultiplyShape ? s.qwords : ring_qwords(s.shape);
}
int plain_bits(const Strips& s) { return s.shape == kMultiplyShape ? 0 : s.shape >> 4 & 15; }

void put_tile(const Strips& s, const uint8_t* tile, uint64_t* out) {
  const int64_t kept = kept_qwords(s);
  for (int64_t i = 0; i < kept; ++i) std::memcpy(out + i * s.down, tile + 8 * i, 8);
  if (plain_bits(s)) put_plain(plain_bits(s), s.down, tile + 8 * kept, out + kept * s.down);
}

void take_tile(const Strips& s, const uint64_t* from, uint8_t* tile) {
  const int64_t kept = kept_qwords(s);
  for (int64_t i = 0; i < kept; ++i) std::memcpy(tile + 8 * i, from + i * s.down, 8);
  if (plain_bits(s)) take_plain(plain_bits(s), s.down, from + kept * s.down, tile + 8 * kept);
}

// Calls move(tile's index in the canonical order, its first qword in the strip) for every tile.
template <class Move>
void each_tile(const Strips& s, int64_t strip, const Move& move) {
  auto* const qwords = reinterpret_cast<uint64_t*>(const_cast<uint8_t*>(s.strip(strip)));
  const int64_t tiles = std::min(s.down, s.rows / 8 - strip * s.down);
  for (int64_t t = 0; t < tiles; ++t)
    for (int64_t at = 0; at < s.across; ++at)
      move((strip * s.down + t) * s.across + at, qwords + at * s.qwords * s.down + t);
}

void put_scales(const CodedMatrix& m, const Strips& s, int64_t strip) {
  const int64_t size = s.scale_kind == kHalfScale ? 2 : 1, lanes = s.kernel.rows / kRegisters;
  uint8_t* scales = s.scales.bytes() + strip * s.blocks * s.kernel.rows * size;
  for (int64_t block = 0; block < s.blocks; ++block)
    for (int i = 0; i < int(s.kernel.rows); ++i, scales += size) {
      const int64_t row = strip * s.kernel.rows + strip_row(i / int(lanes), i % int(lanes));
      if (row < m.n)
        std::memcpy(scales, static_cast<const uint8_t*>(m.scale) + (row * m.blocks + block) * size,
                    std::size_t(size));
    }
}

bool in_registers(int32_t shape) { return shape != kTabulatedShape; }

Plan plan_of(const CodedMatrix& m, const Shape& shape, Path path) {
  Plan plan = {};
  plan.range = range_of(m.largest_level);
  plan.zero = path == kNeon ? 0 : kZeros[plan.range];
  if (shape.number == kMultiplyShape)
    plan_multiply(m, plan);
  else if (in_registers(shape.number))
    plan_table(m, shape, plan);
  return plan;
}

// Sizes; then the memory that they ask for.
Strips laid_out(const CodedMatrix& m, const Shape& shape, Path path) {
  Strips s = {};
  s.shape = shape.number;
  if (s.shape == kNoShape) return s;
  s.plan = plan_of(m, shape, path);
  s.scale_kind = m.scale_per_row() ? kNoScale : m.scale_kind;
  s.kernel = strip_kernel(path, s.shape, s.scale_kind);
  s.group = group_columns(m);
  s.rows = m.n;
  s.k = m.k;
  s.strips = (m.n + s.kernel.rows - 1) / s.kernel.rows;
  s.across = m.across();
  s.qwords = m.words / 2;
  s.down = s.kernel.rows / 8;
  s.tile_columns = m.tile_columns;
  s.lanes = in_registers(s.shape) && s.shape != kMultiplyShape ? m.lanes : 1;
  s.block = m.block;
  s.blocks = m.blocks;
  s.code = Block(s.kernel.code_bytes);
  s.kernel.make_code(s.plan, s.code.bytes());
  if (in_registers(s.shape))
    s.codes = Block(std::size_t(s.strips * s.across * s.qwords * s.down * 8));
  if (s.scale_kind != kNoScale)
    s.scales = Block(std::size_t(s.strips * s.blocks * s.kernel.rows) *
                     (s.scale_kind == kHalfScale ? 2 : 1));
  return s;
}

}  // namespace

int64_t group_columns(const CodedMatrix& m) {
  return m.scale_per_row() ? kActivationBlock : std::gcd(m.block, kActivationBlock);
}

Strips make_strips(const CodedMatrix& m, Path path, int64_t threads) {
  Strips s = laid_out(m, shape_of(m, path), path);
  if (s.shape == kNoShape) return s;
  if (!in_registers(s.shape)) {
    s.source = &m;
    s.row_levels = row_levels_of(m);
  }
  const auto* const codes = reinterpret_cast<const uint8_t*>(m.codes);
  share(std::size_t(s.strips), std::size_t(threads), [&](std::size_t, std::size_t strip) {
    if (in_registers(s.shape))
      each_tile(s, int64_t(strip), [&](int64_t tile, uint64_t* at) {
        put_tile(s, codes + tile * s.qwords * 8, at);
      });
    if (s.scale_kind != kNoScale) put_scales(m, s, int64_t(strip));
  });
  return s;
}

void canonical(const Strips& s, int64_t threads, uint8_t* out) {
  share(std::size_t(s.strips), std::size_t(threads), [&](std::size_t, std::size_t strip) {
    each_tile(s, int64_t(strip), [&](int64_t tile, const uint64_t* at) {
      take_tile(s, at, out + tile * s.qwords * 8);
    });
  });
}

}  // namespace unspool
