// Narrow floats: their values, and the nearest of them.
#pragma once

#include "memory.hpp"

namespace unspool::host {

// Values of a byte as operand A or B has it.
using ByteValues = std::vector<double>;

inline ByteValues byte_values(int exponents, int mantissas, int shift, bool ieee, bool nan_on_top) {
    ByteValues values(256);
    const int bits = 1 + exponents + mantissas;
    for (int byte = 0; byte < 256; ++byte) {
        const word field = word(byte >> shift) & ((1u << bits) - 1);
        const word top = (1u << (bits - 1)) - 1;
        values[byte] = small_float(field, exponents, mantissas, ieee);
        if (nan_on_top && (field & top) == top) values[byte] = NAN;
    }
    return values;
}

inline const ByteValues& e4m3_values() {
    static const ByteValues values = byte_values(4, 3, 0, false, true);
    return values;
}

// Four bits, whatever stands above them.
inline const ByteValues& e2m1_values() {
    static const ByteValues values = byte_values(2, 1, 0, false, false);
    return values;
}

// The nearest of the patterns from 0 to the top one, ties to the even; beyond the top it is that.
inline word nearest_magnitude(const ByteValues& values, word top, float value) {
    const double magnitude = std::fmin(std::fabs(double(value)), values[top]);
    word best = 0;
    for (word bits = 1; bits <= top; ++bits) {
        const double gained = std::fabs(values[bits] - magnitude);
        const double had = std::fabs(values[best] - magnitude);
        if (gained < had || (gained == had && bits % 2 == 0)) best = bits;
    }
    return best;
}

inline word nearest_e4m3(float value) {
    if (std::isnan(value)) return 0x7F;
    return nearest_magnitude(e4m3_values(), 0x7E, value) | (std::signbit(value) ? 0x80 : 0);
}

// NaN becomes the largest.
inline word nearest_e2m1(float value) {
    if (std::isnan(value)) return 7;
    return nearest_magnitude(e2m1_values(), 7, value) | (std::signbit(value) ? 8 : 0);
}

}  // namespace unspool::host

namespace unspool {

word f16_of(float value) { return half_bits(value); }
float value_of_f16(word bits) { return float(half_value(bits)); }
word e4m3_of(float value) { return host::nearest_e4m3(value); }
word e2m1_of(float x, float y, float z, float w) {
    return host::nearest_e2m1(x) | host::nearest_e2m1(y) << 4 | host::nearest_e2m1(z) << 8 |
           host::nearest_e2m1(w) << 12;
}
float value_of_e4m3(word bits) { return float(host::e4m3_values()[bits & 0xFF]); }

word s8_of(float value) { return word(int(std::nearbyint(value))) & 0xFF; }

word bf16_of(float value) {
    word bits;
    std::memcpy(&bits, &value, 4);
    if (std::isnan(value)) return 0x7FFF;
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

}  // namespace unspool
