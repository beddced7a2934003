// A coded matrix as the kernels see it: the stored arrays in place, and the tables of its code.
// kernel.py fills this struct; both sides list the fields in the same order.
#pragma once

#include <cstdint>

constexpr int kMaxPlanes = 4;

struct Coded {
  // Stored (padded) size in weights, and the words [rows / tile_rows, columns / tile_columns, words].
  int64_t rows, columns;
  const uint32_t* codes;

  // The code: a ring of `steps` steps of `lanes` weights covers a tile, row after row.
  int32_t tile_rows, tile_columns, lanes, steps, words, planes;
  int32_t window[kMaxPlanes], stride[kMaxPlanes];

  // State -> operand bit pattern: `entries` [units, states * lanes], of 1 or 2 bytes each. One unit
  // unless the table is a stored parameter: then one per unit_rows x unit_columns weights.
  const void* entries;
  int64_t entries_per_unit, unit_rows, unit_columns, units_across;
  int32_t entry_bytes;

  // The bits of a block's scale, of 0 (no scales), 1 or 2 bytes; `block` columns share one.
  int32_t scale_bytes;
  const void* scales;
  int64_t block;

  // Bit pattern -> value, of the operand and of the scale's format.
  const float* values;
  const float* scale_values;
  float tensor_scale;

  // State -> values directly [states * lanes], where that is small; else null.
  const float* state_values;
};
