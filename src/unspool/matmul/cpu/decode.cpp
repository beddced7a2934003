// Decoding without multiplying, step by step: the plain way that the quick ones are compared with.

#include "matmul/cpu/coded_matrix.hpp"

#include <new>
#include <vector>

#include "pool.hpp"

namespace {

using namespace unspool;

void row_weights(const CodedMatrix& m, int64_t row, const uint16_t* operands, float* out) {
  for (int64_t block = 0; block < m.blocks; ++block) {
    const float scale = scale_at(m, row, block);
    for (int64_t i = block * m.block; i < (block + 1) * m.block; ++i)
      out[i] = m.values[operands[i]] * scale;
  }
}

}  // namespace

// Operand bits of rows [first, last), out [rows, k]. 0: done.
extern "C" __attribute__((visibility("default"))) int unspool_decode_operands(
    const CodedMatrix* matrix, int64_t first, int64_t last, int64_t threads, uint16_t* out) {
  const CodedMatrix& m = *matrix;
  share(std::size_t(last - first), std::size_t(threads), [&](std::size_t, std::size_t i) {
    row_operands(m, first + int64_t(i), 0, m.across(), out + int64_t(i) * m.k);
  });
  return 0;
}

// value * (scale * tensor scale) of rows [first, last), out [rows, k]. 0: done, 1: no memory.
extern "C" __attribute__((visibility("default"))) int unspool_decode_rows(
    const CodedMatrix* matrix, int64_t first, int64_t last, int64_t threads, float* out) {
  const CodedMatrix& m = *matrix;
  try {
    std::vector<std::vector<uint16_t>> operands(std::size_t(threads),
                                                std::vector<uint16_t>(std::size_t(m.k)));
    share(std::size_t(last - first), std::size_t(threads),
                 [&](std::size_t worker, std::size_t i) {
                   uint16_t* bits = operands[worker].data();
                   row_operands(m, first + int64_t(i), 0, m.across(), bits);
                   row_weights(m, first + int64_t(i), bits, out + int64_t(i) * m.k);
                 });
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}
