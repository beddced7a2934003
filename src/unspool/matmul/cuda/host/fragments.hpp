// Descriptors taken apart. Which thread's register holds what, and which bits of a descriptor mean
// what, is printed from layouts.py in front of this file: data, with a source, tested by another.
#pragma once

#include "memory.hpp"

namespace unspool::host {

constexpr int field_of(unsigned long long bits, Field field) {
    return int(bits >> field.first & ((1ULL << field.bits) - 1)) << field.dropped;
}

// Where operand B stands, in bytes.
struct Described {
    int start, leading, stride;
};

// Core matrices of eight columns x 16 bytes: word i of column c of a slice.
inline int operand_offset(const Described& it, int c, int i) {
    return it.start + i / 4 * it.leading + c / 8 * it.stride + c % 8 * 16 + i % 4 * 4;
}

inline Described described_for_wgmma(unsigned long long bits) {
    if (field_of(bits, wgmma_swizzle) || field_of(bits, wgmma_base))
        engine()->fail("a descriptor of swizzled memory; the twins have none");
    return {field_of(bits, wgmma_start), field_of(bits, wgmma_leading),
            field_of(bits, wgmma_stride)};
}

inline Described described_for_tcgen05(unsigned long long bits) {
    if (field_of(bits, tensor_version) != 1)
        engine()->fail("a descriptor without the version of tcgen05");
    if (field_of(bits, tensor_swizzle) || field_of(bits, tensor_base) ||
        field_of(bits, tensor_leading_mode))
        engine()->fail("a descriptor of swizzled memory; the twins have none");
    return {field_of(bits, tensor_start), field_of(bits, tensor_leading),
            field_of(bits, tensor_stride)};
}

}  // namespace unspool::host
