// The product of bfloat16 activations and weights whose levels bfloat16 holds exactly.
//
// Columns are cut into groups: the greatest common divisor of 256 and the columns of a weight
// scale. For a row of the weight and a row of activations, over the groups in ascending order:
//
//   sum    = 0, then pair after pair as VDPBF16PS adds them (lanes_avx512.hpp)
//   total  = total + sum * scale       the scale of the block; 1 where there is one per row
//
// and at the end total * scale where that is one per row. What a row gives does not depend on the
// rows beside it.
#pragma once

#include <cstdint>

#include "matmul/cpu/coded_matrix.hpp"
#include "matmul/cpu/features.hpp"

namespace unspool {

constexpr int64_t kPairColumns = 256;  // 32 KiB of decoded levels of a strip: the L1 holds it

// Whether tiles and blocks of a matrix fit groups (that its levels are exact is the caller's to
// know); whether a path has this product: AVX-512 with BF16, and in plain C++ for comparison.
bool has_pairs(const CodedMatrix& m);
bool runs_pairs(Path path);

// y [count, n padded] = x [count, k padded] times the decoded weight; x is rounded to bfloat16.
// Throws std::bad_alloc.
void pair_product(const CodedMatrix& m, Path path, const float* x, int64_t count, int64_t threads,
                  float* y);

// One product as its kernel sees it.
struct PairJob {
  const CodedMatrix& matrix;
  const uint16_t* x;  // [chunks, count, 256]
  int64_t count, group;
  float* y;           // [count, n padded]
};

// What one worker needs.
struct PairScratch {
  uint8_t* levels;  // [256 / 2, 4 registers, bytes of a register]
  float* totals;    // [count, rows of a strip]: register by register
  float *scales, *row, *table;  // [rows of a strip], [256], [256]
  uint16_t* operands;           // [256]
};

}  // namespace unspool
