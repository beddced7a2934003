// A coded matrix as Python hands it over (matmul/native_matrix.py declares the same fields), and
// how its rings are cut into windows. Sizes are the padded ones; arrays are C-contiguous and read
// in place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace unspool {

constexpr int kMaxPlanes = 32;

enum ScaleKind : int32_t { kNoScale = 0, kE4M3Scale = 1, kE8M0Scale = 2, kHalfScale = 3 };
enum FastKind : int32_t { kNoFast = 0, kFloatLevels = 1, kInt8Levels = 2 };

struct CodedMatrix {
  int64_t n, k;
  const uint32_t* codes;  // [n / tile_rows, k / tile_columns, words]
  int32_t tile_rows, tile_columns, lanes, words;
  int32_t planes;
  int32_t window[kMaxPlanes], stride[kMaxPlanes];

  // The program, tabulated: operand bits [states, lanes] in entry_bytes each. With a parameter
  // the entries are indices into the unit's table, whose entries are the operand bits.
  const void* entries;
  int32_t entry_bytes, parameter_bytes;
  const float* values;    // [patterns]: the value of every operand bit pattern
  const void* parameter;  // [units down, units_across, length], or null
  int64_t length, unit_rows, unit_columns, units_across;

  // Levels (value / unit, unit a power of two) of `steps` successive steps at once, or none:
  // float or int8 [2 ** bits of all windows of a wide step, steps * lanes]. With a parameter,
  // `fast` is null: kFloatLevels means that a unit's table has one entry per state, kNoFast
  // anything else. Without levels, fast_steps and unit are 1.
  const void* fast;
  int32_t fast_kind, fast_steps;
  float unit;

  int32_t scale_kind;
  const void* scale;  // bit patterns [n, blocks]
  int64_t block, blocks;  // columns of a block (k: one scale per row), blocks of a row
  const float* scale_values;  // [256], for one-byte scales
  float tensor_scale;

  // The power of two of which all values are int8 multiples, 0 where there is none; the largest
  // of their magnitudes.
  float integer_unit;
  int32_t largest_level;

  // The program, where its lanes are the upper four nibbles of (bytes of the window, spread) *
  // multiplier + addend; a nibble of the selector names a byte of the window.
  int32_t multiplies;
  uint32_t selector, multiplier, addend;

  int64_t across() const { return k / tile_columns; }
  int32_t steps() const { return tile_rows * tile_columns / lanes; }
  int32_t steps_per_row() const { return tile_columns / lanes; }
  bool scale_per_row() const { return scale_kind == kNoScale || block == k; }
  const uint8_t* tile(int64_t down, int64_t at) const {
    return reinterpret_cast<const uint8_t*>(codes + (down * across() + at) * words);
  }
};

// Finite binary16 to float32, without help from the hardware; exact.
inline float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, rest = half & 0x7fff;
  if (rest < 0x400) {  // zero or subnormal: a count of 2^-24
    const float magnitude = float(rest) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  const uint32_t bits = sign | ((rest + ((127 - 15) << 10)) << 13);
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// The scale of a row's block times the tensor scale: one float32 rounding, as in the reference.
inline float scale_at(const CodedMatrix& m, int64_t row, int64_t block) {
  const int64_t at = row * m.blocks + block;
  switch (m.scale_kind) {
    case kE4M3Scale:
    case kE8M0Scale:
      return m.scale_values[static_cast<const uint8_t*>(m.scale)[at]] * m.tensor_scale;
    case kHalfScale:
      return half_to_float(static_cast<const uint16_t*>(m.scale)[at]) * m.tensor_scale;
    default:
      return m.tensor_scale;
  }
}

// `window` bits from bit `start` of a ring of `bits` bits: the definition, a bit at a time.
inline uint32_t ring_window(const uint8_t* ring, int32_t bits, int32_t start, int32_t window) {
  uint32_t found = 0;
  for (int32_t i = 0; i < window; ++i) {
    const int32_t at = (start + i) % bits;
    found |= uint32_t(ring[at >> 3] >> (at & 7) & 1) << i;
  }
  return found;
}

// The windows of all planes side by side, plane 0 in the low bits.
inline uint32_t state_at(const CodedMatrix& m, const uint8_t* tile, int32_t step) {
  uint32_t state = 0;
  int32_t low = 0;
  for (int32_t p = 0; p < m.planes; ++p) {
    const int32_t bits = m.steps() * m.stride[p];
    state |= ring_window(tile, bits, step * m.stride[p], m.window[p]) << low;
    low += m.window[p];
    tile += bits / 8;
  }
  return state;
}

inline uint32_t entry(const void* table, int32_t bytes, int64_t at) {
  return bytes == 1 ? static_cast<const uint8_t*>(table)[at]
                    : static_cast<const uint16_t*>(table)[at];
}

// Where the parameter table of a weight starts.
inline int64_t parameter_at(const CodedMatrix& m, int64_t row, int64_t column) {
  return ((row / m.unit_rows) * m.units_across + column / m.unit_columns) * m.length;
}

// Operand bits of the lanes of one step, whose first weight is (row, column).
inline void step_operands(const CodedMatrix& m, uint32_t state, int64_t row, int64_t column,
                          uint16_t* out) {
  for (int32_t lane = 0; lane < m.lanes; ++lane) {
    uint32_t bits = entry(m.entries, m.entry_bytes, int64_t(state) * m.lanes + lane);
    if (m.parameter)
      bits = entry(m.parameter, m.parameter_bytes, parameter_at(m, row, column) + bits);
    out[lane] = uint16_t(bits);
  }
}

// Operand bits of `tiles` tiles of one row, out [tiles * tile_columns]: the plain way.
inline void row_operands(const CodedMatrix& m, int64_t row, int64_t tile, int64_t tiles,
                         uint16_t* out) {
  const int32_t first = int32_t(row % m.tile_rows) * m.steps_per_row();
  for (int64_t at = tile; at < tile + tiles; ++at) {
    const uint8_t* words = m.tile(row / m.tile_rows, at);
    for (int32_t i = 0; i < m.steps_per_row(); ++i, out += m.lanes)
      step_operands(m, state_at(m, words, first + i), row, at * m.tile_columns + i * m.lanes, out);
  }
}

}  // namespace unspool
