// The product of int8 activations and int8 levels, as every kernel computes it to the bit.
//
// Activations are padded, rotated, and quantized per row and block of 128 columns
// (activations.hpp). Columns are cut into groups: the greatest common divisor of 128 and the
// columns of a scale. For a row of the weight and a row of activations, over the groups in
// ascending order:
//
//   sum    = exact integer sum of level * activation over the group
//   scale  = activation scale, or weight scale * activation scale where weight scales are per block
//   total  = total + float(sum) * scale         one rounding for each operation, no FMA
//
// and at the end total * weight scale where that is one per row. A weight scale is
// float32(stored scale * (tensor scale * unit)). matmul/integer.py says the same in numpy.
#pragma once

#include <cstdint>

#include "matmul/cpu/strips.hpp"

namespace unspool {

constexpr int64_t kActivationBlock = 128;  // columns that share an activation scale
constexpr int64_t kChunkColumns = 512;     // 32 KiB of decoded levels of a strip: the L1 holds it

// Quantized rows. Row i's columns of chunk c are `q + (c * m + i) * 512`.
struct Activations {
  int64_t m;
  const int8_t* q;        // [chunks, m, 512], in the order that the code emits weights
  const int32_t* starts;  // [groups, m]: -zero times the sum of the group
  const float* scales;    // [blocks of 128, m]; NaN where the block is not finite

  const int8_t* at(int64_t row, int64_t column) const {
    return q + (column / kChunkColumns * m + row) * kChunkColumns + column % kChunkColumns;
  }
};

// One product on strips.
struct StripJob {
  const Strips& strips;
  Activations x;
  float scale_factor;   // what a scale of a block is multiplied with: tensor scale times unit
  int64_t scale_bytes;  // of the rows of a strip and one block

  const uint8_t* scales_of(int64_t strip) const {
    return strips.scales.bytes() + strip * strips.blocks * scale_bytes;
  }
};

// What one worker needs, for strips of `rows` rows.
struct StripScratch {
  uint8_t* levels;  // [512 / 4, 4 registers, rows]
  float* scales;    // [groups of a chunk, rows]
  float* totals;    // [m, rows]: register by register
  int8_t* row;      // [512]
};

}  // namespace unspool
