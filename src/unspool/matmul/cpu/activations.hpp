// Rows of activations as kernels read them: widened, padded, rotated, quantized.
#pragma once

#include <vector>

#include "matmul/cpu/integer.hpp"

namespace unspool {

enum NumberType : int32_t { kFloat32 = 0, kBfloat16 = 1 };

// A rotation along one side of a matrix, as Python hands it over; size 0: none.
struct Turn {
  int64_t size;
  float scale;
  const float* before;  // +-1 [padded columns]
  const float* after;
};

// x [m, stride] of a type, of which `columns` count; the stored matrix has k >= columns.
struct Rows {
  const void* x;
  int32_t type;
  int64_t m, stride, columns;
};

// Rows as float32 [m, k], padded with zeros and rotated.
void turn_rows(const Rows& rows, const Turn& turn, int64_t k, int64_t threads, float* out);

// What a matrix asks of its activations.
struct ActivationLayout {
  Turn turn;
  int64_t k, group;  // integer.hpp
  int64_t lanes;     // 2: in the order of a code of two lanes
  int32_t zero;      // of the plan

  bool operator==(const ActivationLayout& other) const {
    return turn.size == other.turn.size && turn.before == other.turn.before && k == other.k &&
           group == other.group && lanes == other.lanes && zero == other.zero;
  }
};

// Quantized rows and the memory they stand in, kept from call to call.
class Quantized {
 public:
  Activations fill(const Rows& rows, const ActivationLayout& layout, int64_t threads);

 private:
  std::vector<int8_t> q_;
  std::vector<int32_t> starts_;
  std::vector<float> scales_, turned_;
};

// Rounds float32 numbers to those of bfloat16, in place.
void round_to_bfloat16(int64_t count, float* x);

// float32 to a number type.
void narrow(const float* x, int64_t count, int32_t type, void* out);

}  // namespace unspool
