// One layer's product: a matrix prepared once, multiplied many times.
#pragma once

#include <vector>

#include "matmul/cpu/activations.hpp"
#include "matmul/cpu/coded_matrix.hpp"
#include "matmul/cpu/features.hpp"
#include "matmul/cpu/strips.hpp"

namespace unspool {

// What becomes of the activations, and with it the kernel; the numbers of matmul/choose.py.
// bfloat16 is multiplied in pairs, or as the float32 numbers it is where there is no instruction
// for them.
enum Kind : int32_t { kExact = 0, kToInt8 = 1, kToBfloat16 = 2, kPairs = 3 };

struct Product {
  CodedMatrix matrix;  // its arrays, and those of the turns, belong to the caller
  Turn input, output;
  int64_t n, k;        // before padding
  Path path;
  Kind kind;
  Strips strips;                  // kNoShape: the product is float32, or of pairs
  std::vector<float> row_scales;  // [padded rows], of integer totals: 1 where scales are per block
  float block_factor;             // StripJob::scale_factor

  bool integer() const { return strips.shape != kNoShape; }
  ActivationLayout layout() const {
    return {input, matrix.k, strips.group, strips.lanes, strips.plan.zero};
  }
};

// Where one product's result goes: y [m, stride] of a number type; bias float32 [n] or null.
struct Result {
  void* y;
  int64_t stride;
  const float* bias;
};

}  // namespace unspool
