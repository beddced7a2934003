// One product y = x W^T of float32 activations, as its kernels see it.
//
// Every kernel adds in one order, so that a result depends neither on the number of rows of x, nor
// on the threads, nor (where both have FMA) on the instruction set: columns are cut into chunks of
// 512 (a whole number of tiles); in a chunk, 16 partial sums take the columns j mod 16 in ascending
// order, one FMA each, and are then added in halves (8 + 8, 4 + 4, 2 + 2, 1 + 1); chunks are added
// in ascending order. A scale per row multiplies the finished sum, a scale per block every weight.
#pragma once

#include "matmul/cpu/coded_matrix.hpp"
#include "matmul/cpu/features.hpp"

namespace unspool {

constexpr int64_t kChunk = 512;   // columns: 2 KiB of x, and 16 KiB of 8 decoded rows, in the L1
constexpr int64_t kPartials = 16;

struct Multiply {
  const CodedMatrix& matrix;
  // Row i's part of chunk c starts at i * x_stride + c * chunk_distance.
  const float* x;
  int64_t count, x_stride, chunk_distance;
  float* y;                     // [count, rows of the matrix]
  int64_t chunk, chunk_stride;  // columns of a chunk; the same rounded up to 16, zeros beyond

  int64_t chunks() const { return (matrix.k + chunk - 1) / chunk; }
};

// What one worker needs.
struct PanelScratch {
  float* weights;      // [rows of a panel, chunk_stride]
  float* scales;       // [rows of a panel]
  float* levels;       // [256]: the parameter table of one unit
  uint16_t* operands;  // [chunk]
};

// y [count, n padded] = x [count, k padded] times the decoded weight, by the panels of a path.
// Throws std::bad_alloc.
void float_product(const CodedMatrix& m, Path path, const float* x, int64_t count, int64_t threads,
                   float* y);

}  // namespace unspool
