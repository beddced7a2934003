#include "matmul/cpu/row_levels.hpp"

#define UNSPOOL_INLINE inline __attribute__((always_inline))
#if defined(__GNUC__) && !defined(__clang__)
#define UNSPOOL_UNROLL _Pragma("GCC unroll 16")
#else
#define UNSPOOL_UNROLL
#endif

namespace unspool {
namespace {

#include "matmul/cpu/quick_rows.hpp"

void by_wide_table(const CodedMatrix& m, int64_t row, int64_t column, int64_t width, int8_t* out) {
  const auto quick = quick_row_of<int8_t>(m);
  quick(m, row, column / m.tile_columns, width / m.tile_columns, m.fast, out);
}

// The plain way: window by window, as the declaration says.
void by_states(const CodedMatrix& m, int64_t row, int64_t column, int64_t width, int8_t* out) {
  uint16_t operands[kMaxLanes];
  for (int64_t end = column + width; column < end; column += m.lanes, out += m.lanes) {
    const int64_t tile = column / m.tile_columns;
    const int32_t step = int32_t(row % m.tile_rows) * m.steps_per_row() +
                         int32_t(column % m.tile_columns) / m.lanes;
    const uint32_t state = state_at(m, m.tile(row / m.tile_rows, tile), step);
    step_operands(m, state, row, column, operands);
    for (int32_t lane = 0; lane < m.lanes; ++lane)
      out[lane] = int8_t(m.values[operands[lane]] / m.integer_unit);
  }
}

}  // namespace

RowLevels row_levels_of(const CodedMatrix& m) {
  return quick_row_of<int8_t>(m) ? by_wide_table : by_states;
}

}  // namespace unspool
