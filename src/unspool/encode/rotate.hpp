#pragma once

#include <cstddef>

namespace unspool {

// out = (H (in * before)) * scale * after for every block of `size` of k numbers; in may be out.
void rotate_row(const float* in, std::size_t k, std::size_t size, float scale, const float* before,
                const float* after, float* out);

}  // namespace unspool
