// The layout that the integer kernels read, made once when a matrix is prepared.
//
// A strip is as many rows as a register has bytes: 64 (AVX-512), 32 (AVX2) or 16 (NEON). The tiles
// above one another in it, 8, 4 or 2, give one register per qword of a tile.
//
//   qword lane q of a register   tile q, rows 8q .. 8q + 7 of the strip
//   register j (0 .. 3)          rows 8q + 2j and 8q + 2j + 1 of every tile, one per dword
//   byte b of a dword            weight b of four that follow one another along k
//
// So a dword of activations, broadcast, meets all rows of a strip in four dot products, no sum is
// ever taken across lanes, and a register's scales are one vector. Bits of a coded plane stay where
// they are: a window never leaves its qword, whose ends meet as the ring's do. Bits of plain planes
// move so that a shift of the whole register brings them into place; `canonical` moves them back.
#pragma once

#include <cstddef>
#include <cstdint>

#include "matmul/cpu/arena.hpp"
#include "matmul/cpu/coded_matrix.hpp"
#include "matmul/cpu/features.hpp"
#include "matmul/cpu/row_levels.hpp"

namespace unspool {

constexpr int kRegisters = 4;  // of a strip
constexpr int kMaxPieces = 3;

// Tiles of 8 rows in a strip: the qwords of a register.
constexpr int tiles_down(Path path) { return path == kAvx2 ? 4 : path == kNeon ? 2 : 8; }

// Plain bits of a step are stored in pieces of 4, 2 and 1 bits, so that no piece straddles bytes.
struct Pieces {
  int count = 0;
  int width[kMaxPieces] = {}, low[kMaxPieces] = {};  // low: place among the plain bits
  constexpr explicit Pieces(int bits) {
    for (int size = 8, at = 0; size; size /= 2)
      if (bits & size) {
        width[count] = size;
        low[count++] = at;
        at += size;
      }
  }
};

// The codes that the kernels were compiled for are numbered by their shapes: a window of a ring and
// plain bits, a table of levels; four nibbles of a product; or anything by its table.
constexpr int32_t kNoShape = -1, kMultiplyShape = 0, kTabulatedShape = 1;
constexpr int kMaxStride = 3;  // of a ring: 15 steps and a window of 7 bits are 52 bits of a qword
constexpr int32_t table_shape(int ring, int plain, int lanes, int stride = 1) {
  return (ring ? stride : 0) << 12 | ring << 8 | plain << 4 | lanes;
}
constexpr int64_t ring_qwords(int32_t shape) { return shape >> 12; }

// How large levels are, and what a level of 0 is as a byte. VPMADDUBSW, AVX2's product of bytes,
// sums pairs in int16: 2 * 128 * 127 fits it, 2 * 255 * 127 does not, 8 * 32 * 127 does again.
enum Range { kSmall, kNarrow, kWide };
constexpr uint8_t kZeros[] = {16, 64, 128};
constexpr Range range_of(int largest_level) {
  return largest_level <= kZeros[kSmall]    ? kSmall
         : largest_level <= kZeros[kNarrow] ? kNarrow
                                            : kWide;
}

// What the kernel makes its registers of.
struct alignas(64) Plan {
  uint8_t table[2][128];           // levels + zero of each lane, repeated over unused index bits
  uint8_t spread[3][64];           // bytes of a qword to the windows of step 0, 1 or 2, spread
  uint64_t starts[2][kRegisters];  // where the windows of (half of a row of a tile, register) start;
                                   // with strides of 2 and 3 counted from its first
  uint32_t multiplier, addend;
  Range range;
  uint8_t zero;                    // what a level of 0 is as a byte; 0 where both sides are signed
};

struct StripJob;
struct StripScratch;
// Computes the totals of one strip into scratch.totals.
typedef void (*StripProduct)(const StripJob&, int64_t strip, const StripScratch&);

// A compiled kernel: rows of its strips, and how its code is made of a plan, once per matrix.
struct StripKernel {
  int64_t rows = 0;
  std::size_t code_bytes = 0;
  void (*make_code)(const Plan&, void* out) = nullptr;
  StripProduct product = nullptr;
};

// A matrix in strips; immutable once made.
struct Strips {
  int32_t shape;
  Plan plan;
  StripKernel kernel;
  Block code;    // what kernel.make_code made
  Block codes;   // [strips, tiles across, qwords of a tile, tiles down] uint64; none for tabulated
  Block scales;  // [strips, blocks, rows of a strip], bytes or halves; absent without blocks
  const CodedMatrix* source;   // read by tabulated shapes alone
  RowLevels row_levels;        // how they read it
  int64_t strips, across, qwords, down;  // qwords of one tile; tiles down a strip
  int64_t rows, k;                       // padded
  int64_t tile_columns, lanes;           // lanes: levels of one index, as activations are ordered
  int64_t group;                         // columns that share all scales (integer.hpp)
  int64_t block, blocks;                 // columns of a weight scale, blocks of a row
  int32_t scale_kind;                    // of block scales; kNoScale: none, or one per row

  const uint8_t* strip(int64_t at) const {
    return codes.bytes() + at * across * qwords * down * 8;
  }
};

// The columns that share a weight scale and an activation scale.
int64_t group_columns(const CodedMatrix& m);

// A matrix in strips for a path, repacked by `threads`; `shape` is kNoShape where its values are no
// int8 multiples of one number, or its blocks and tiles do not fit groups. `m` must outlive a
// tabulated shape.
Strips make_strips(const CodedMatrix& m, Path path, int64_t threads);

// Moves the codes back into the words they came from, [n / 8, k / columns, words].
void canonical(const Strips& s, int64_t threads, uint8_t* out);

// Row of the strip that lane `lane` of register `register_` holds.
constexpr int strip_row(int register_, int lane) {
  return 8 * (lane / 2) + 2 * register_ + lane % 2;
}

}  // namespace unspool
