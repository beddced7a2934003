// Rows of activations, one by one, times a code whose table fits two AVX-512 registers.
//
// Eight tiles that follow one another along k are one vector per plane: qword t is tile t's ring.
// VPMULTISHIFTQB cuts the 64 windows of one tile row out of it (its rotation inside a qword is the
// ring's), VPTERNLOG merges the planes' windows into indices, VPERMI2B looks 64 levels up.
#pragma once

#include "matmul/cpu/multiply.hpp"

namespace unspool {

constexpr int kTileRows = 8;
constexpr int kTilesAcross = 8;     // tiles in a vector
constexpr int kMaxQwords = 8;       // of one tile
constexpr int kTableEntries = 128;  // of one VPERMI2B

// Where the eight windows of a tile row start in a qword, for VPMULTISHIFTQB, and what stands for
// it in AVX2: for even and odd windows, the two bytes each lies in, and the factor that shifts it
// to the upper one.
struct alignas(32) Control {
  uint8_t bytes[2][32];
  uint16_t factors[2][16];
  uint64_t starts;  // a byte each
};

// Everything about a code that the kernel reads from registers.
struct alignas(64) LookUp {
  int8_t table[2][kTableEntries];  // levels of each lane, repeated over unused index bits
  // Plane qword j of tile t is qword t * (qwords of a tile) + j of the tiles in memory: from each
  // pair of loaded vectors, which qword of the 16, and the tiles (mask) that come from this pair.
  uint64_t from[kMaxQwords][kMaxQwords / 2][kTilesAcross];
  uint8_t tiles[kMaxQwords][kMaxQwords / 2];
  Control control[2][kTileRows];  // per plane
  uint8_t low;                     // index bits that come from plane 0
  int32_t stride[2];
  int32_t lanes, index_bits;
};

LookUp look_up_plan(const CodedMatrix& m);

// True where the shape of the planes is one that the kernel was compiled for.
bool looks_up(const CodedMatrix& m);

// Rows [row, row + rows) of the product, rows <= 8. `path` is one of those that look up.
void look_up_panel(int32_t path, const LookUp& plan, const Multiply& job, int64_t row,
                   int64_t rows);

}  // namespace unspool
