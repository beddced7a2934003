// What the twins believe of fragments: which thread's register holds which word. PTX ISA 9.0:
// "Matrix fragments for mma.m16n8k32" (and k16 of .f16, in words the same), "Register fragments for
// wgmma.mma_async.m64nNk32", "tcgen05 .16x128b and .16x256b". Compared in tests with a second source.
#pragma once

namespace unspool::host {

struct Spot {
    int row, column;
};

constexpr int lane_row(int lane) { return lane / 4; }

// Register i of operand A: row of 16, word of 8 (a slice has 32 bytes).
constexpr Spot a_spot(int lane, int i) { return {lane / 4 + 8 * (i % 2), lane % 4 + 4 * (i / 2)}; }

// Register i of operand B: column of 8, word of 8.
constexpr Spot b_spot(int lane, int i) { return {lane / 4, lane % 4 + 4 * i}; }

// Register i of the sums: row of 16, column of 8; wgmma goes on with the next eight columns.
constexpr Spot d_spot(int lane, int i) {
    return {lane / 4 + 8 * (i / 2 % 2), 2 * (lane % 4) + i % 2 + 8 * (i / 4)};
}

// tcgen05.st.16x128b.x2: lane of 16, column (word) of 8. tcgen05.ld.16x256b.x1: the same as d_spot.
constexpr Spot store_spot(int lane, int i) {
    return {lane / 4 + 8 * (i % 2), lane % 4 + 4 * (i / 2)};
}

// LDSM: register i of a lane is word lane % 4 of the row that lane 8 i + lane / 4 addresses.
constexpr int matrix_source(int lane, int i) { return 8 * i + lane / 4; }

}  // namespace unspool::host
