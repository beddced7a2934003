// Int8 levels of part of a row, for codes that no kernel decodes in registers.
#pragma once

#include <cstdint>

#include "matmul/cpu/coded_matrix.hpp"

namespace unspool {

constexpr int32_t kMaxLanes = 64;  // of a step

// Levels (value / integer_unit) of `width` columns from `column` on, both whole tiles.
typedef void (*RowLevels)(const CodedMatrix&, int64_t row, int64_t column, int64_t width,
                          int8_t* out);

// The quickest way that fits a matrix whose integer_unit is not 0.
RowLevels row_levels_of(const CodedMatrix& m);

}  // namespace unspool
