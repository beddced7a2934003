// Blockwise orthonormal Walsh-Hadamard transforms of the rows of a matrix. rotate.py states the
// definition and holds the numpy twin, which gives the same bits.

#include <cstddef>
#include <cstdint>

#include "encode/rotate.hpp"
#include "pool.hpp"

namespace {
using std::size_t;
}

#define UNSPOOL_KERNEL "encode/rotate_rows.hpp"
#include "each_isa.hpp"

void unspool::rotate_row(const float* in, size_t k, size_t size, float scale, const float* before,
                         const float* after, float* out) {
  UNSPOOL_BEST(rotate_row)(in, k, size, scale, before, after, out);
}

// in and out [rows, k]; before and after [k] are +-1.
extern "C" __attribute__((visibility("default"))) int unspool_hadamard(
    const float* in, size_t rows, size_t k, size_t size, float scale, const float* before,
    const float* after, size_t threads, float* out) {
  unspool::share(rows, threads, [&](size_t, size_t row) {
    unspool::rotate_row(in + row * k, k, size, scale, before, after, out + row * k);
  });
  return 0;
}
