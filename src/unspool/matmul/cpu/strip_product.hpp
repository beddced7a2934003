#pragma once

#include "matmul/cpu/features.hpp"
#include "matmul/cpu/strips.hpp"

namespace unspool {

// The kernel of a path for a shape and the kind of its block scales; `product` is null where none
// was compiled.
StripKernel strip_kernel(Path path, int32_t shape, int32_t scale_kind);

}  // namespace unspool
