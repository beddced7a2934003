// The machine instructions that emitted decoders use, each with a twin in plain C++.
//
// Compiled by NVRTC or nvcc they are one instruction each; compiled by a C++ compiler they are its
// definition, bit for bit that of the numpy interpreter, so that the same emitted source runs in
// tests on machines without a GPU.
#ifndef UNSPOOL_INSTRUCTIONS
#define UNSPOOL_INSTRUCTIONS

#ifdef __CUDACC__
#define UNSPOOL_DEVICE __device__ __forceinline__
#define UNSPOOL_TABLE __device__ const
#else
#include <cmath>
#include <cstdint>
#include <cstring>
#define UNSPOOL_DEVICE static inline
#define UNSPOOL_TABLE static const
#endif

namespace unspool {

using word = unsigned int;

// LDS takes a byte offset; an index would be shifted first, one instruction more.
#ifdef UNSPOOL_SIMULATED
word entry_at(const word* table, word offset);  // checked, as all of a kernel's shared memory is
#else
UNSPOOL_DEVICE word entry_at(const word* table, word offset) {
    return *reinterpret_cast<const word*>(reinterpret_cast<const char*>(table) + offset);
}
#endif

#ifdef __CUDACC__

template <word truth>
UNSPOOL_DEVICE word lop3(word a, word b, word c) {
    word d;
    asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(d) : "r"(a), "r"(b), "r"(c), "n"(truth));
    return d;
}

// PRMT; the top bit of every selector nibble is clear (set, it would spread a sign). __byte_perm
// would clear it again: one LOP3 for every PRMT whose selector is computed.
UNSPOOL_DEVICE word permute_bytes(word low, word high, word selector) {
    word d;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(low), "r"(high), "r"(selector));
    return d;
}

// SHF: the low word of high:low >> amount
UNSPOOL_DEVICE word funnel_shift(word low, word high, word amount) {
    return __funnelshift_r(low, high, amount);
}

UNSPOOL_DEVICE word multiply_high(word a, word b) { return __umulhi(a, b); }

UNSPOOL_DEVICE word bit_reverse(word a) { return __brev(a); }

// IDP.4A: vabsdiff4 does the same in one instruction up to sm_100, in five on sm_120.
UNSPOOL_DEVICE word byte_sum(word a, word b) { return __dp4a(a, 0x01010101u, b); }

UNSPOOL_DEVICE word half2_add(word a, word b) {
    word d;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

UNSPOOL_DEVICE word half2_fma(word a, word b, word c) {
    word d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// times a power of two, minus zero added: sm_80 has no product of two bfloat16 alone
UNSPOOL_DEVICE word bfloat2_scale(word a, word power) {
    word d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(power), "r"(0x80008000u));
    return d;
}

#define UNSPOOL_CONVERT_16(name, type)                                                      \
    UNSPOOL_DEVICE word name(word a) {                                                      \
        word d;                                                                             \
        asm("{ .reg .b16 low, high; mov.b32 {low, high}, %1; cvt.rn.f16x2." type " %0, low; }" \
            : "=r"(d) : "r"(a));                                                            \
        return d;                                                                           \
    }

#if __CUDA_ARCH__ >= 890
UNSPOOL_CONVERT_16(half2_of_e4m3, "e4m3x2")
#endif
#if __CUDA_ARCH__ >= 1000
UNSPOOL_CONVERT_16(half2_of_e2m3, "e2m3x2")
UNSPOOL_CONVERT_16(half2_of_e3m2, "e3m2x2")
UNSPOOL_DEVICE word half2_of_e2m1(word a) {
    word d;
    asm("{ .reg .b8 x, y, z, t; mov.b32 {x, y, z, t}, %1; cvt.rn.f16x2.e2m1x2 %0, x; }"
        : "=r"(d) : "r"(a));
    return d;
}
#endif
#undef UNSPOOL_CONVERT_16

#else  // the twins

template <word truth>
UNSPOOL_DEVICE word lop3(word a, word b, word c) {
    word d = 0;
    for (int row = 0; row < 8; ++row)
        if (truth >> row & 1)
            d |= (row & 4 ? a : ~a) & (row & 2 ? b : ~b) & (row & 1 ? c : ~c);
    return d;
}

UNSPOOL_DEVICE word permute_bytes(word low, word high, word selector) {
    const std::uint64_t both = std::uint64_t(high) << 32 | low;
    word d = 0;
    for (int place = 0; place < 4; ++place) {
        const word pick = selector >> (4 * place) & 15;
        word byte = word(both >> (8 * (pick & 7))) & 0xFF;
        if (pick & 8) byte = byte & 0x80 ? 0xFF : 0;  // as the machine has it
        d |= byte << (8 * place);
    }
    return d;
}

UNSPOOL_DEVICE word funnel_shift(word low, word high, word amount) {
    return word((std::uint64_t(high) << 32 | low) >> (amount & 31));
}

UNSPOOL_DEVICE word multiply_high(word a, word b) { return word(std::uint64_t(a) * b >> 32); }

UNSPOOL_DEVICE word bit_reverse(word a) {
    word d = 0;
    for (int bit = 0; bit < 32; ++bit) d |= (a >> bit & 1) << (31 - bit);
    return d;
}

UNSPOOL_DEVICE word byte_sum(word a, word b) {
    return (a & 0xFF) + (a >> 8 & 0xFF) + (a >> 16 & 0xFF) + (a >> 24) + b;
}

// The value of a float with so many exponent and mantissa bits, no specials but IEEE's.
UNSPOOL_DEVICE double small_float(word bits, int exponents, int mantissas, bool ieee) {
    const int top = (1 << exponents) - 1, bias = (1 << (exponents - 1)) - 1;
    const int exponent = int(bits >> mantissas) & top;
    const int mantissa = int(bits) & ((1 << mantissas) - 1);
    const double sign = bits >> (exponents + mantissas) & 1 ? -1 : 1;
    if (ieee && exponent == top) return mantissa ? NAN : sign * INFINITY;
    const int normal = exponent != 0;
    return sign * std::ldexp(mantissa + (normal << mantissas), (normal ? exponent : 1) - bias - mantissas);
}

UNSPOOL_DEVICE double half_value(word bits) { return small_float(bits & 0xFFFF, 5, 10, true); }

// Nearest binary16, ties to even; NaN is 0x7FFF, as the machine has it.
UNSPOOL_DEVICE word half_bits(double value) {
    if (std::isnan(value)) return 0x7FFF;
    const word sign = std::signbit(value) ? 0x8000 : 0;
    const double magnitude = std::fabs(value);
    if (magnitude >= 65520) return sign | 0x7C00;
    int exponent = magnitude > 0 ? std::ilogb(magnitude) : -14;
    if (exponent < -14) exponent = -14;
    const word units = word(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
    return sign | (units + (word(exponent + 14) << 10));  // 1024 units carry into the exponent
}

// a + b in double rounded to odd: rounding that to binary16 rounds only once (Boldo, Melquiond).
UNSPOOL_DEVICE double odd_sum(double a, double b) {
    const double total = a + b, back = total - a;
    const double error = (a - (total - back)) + (b - back);
    std::int64_t bits;
    std::memcpy(&bits, &total, 8);
    if (!std::isfinite(total) || error == 0 || bits & 1) return total;
    bits += (error > 0) == (total > 0) ? 1 : -1;
    double odd;
    std::memcpy(&odd, &bits, 8);
    return odd;
}

UNSPOOL_DEVICE word half2_add(word a, word b) {
    return half_bits(half_value(a) + half_value(b)) |
           half_bits(half_value(a >> 16) + half_value(b >> 16)) << 16;
}

UNSPOOL_DEVICE word half2_fma(word a, word b, word c) {
    return half_bits(odd_sum(half_value(a) * half_value(b), half_value(c))) |
           half_bits(odd_sum(half_value(a >> 16) * half_value(b >> 16), half_value(c >> 16))) << 16;
}

UNSPOOL_DEVICE word scaled_bfloat(word a, word power) {  // exact: no bit of it is lost
    const word bits[2] = {a << 16, power << 16};
    float value[2], product;
    std::memcpy(value, bits, 8);
    product = value[0] * value[1];
    word d;
    std::memcpy(&d, &product, 4);
    return d >> 16;
}

UNSPOOL_DEVICE word bfloat2_scale(word a, word power) {
    return scaled_bfloat(a, power) | scaled_bfloat(a >> 16, power >> 16) << 16;
}

// E4M3 has a NaN where its exponent and mantissa are all ones; the others have no specials.
UNSPOOL_DEVICE word half_of(word bits, int exponents, int mantissas) {
    const word magnitude = (1u << (exponents + mantissas)) - 1;
    if (exponents == 4 && (bits & magnitude) == magnitude) return 0x7FFF;
    return half_bits(small_float(bits & (2 * magnitude + 1), exponents, mantissas, false));
}

UNSPOOL_DEVICE word half2_of_e4m3(word a) { return half_of(a, 4, 3) | half_of(a >> 8, 4, 3) << 16; }
UNSPOOL_DEVICE word half2_of_e2m3(word a) { return half_of(a, 2, 3) | half_of(a >> 8, 2, 3) << 16; }
UNSPOOL_DEVICE word half2_of_e3m2(word a) { return half_of(a, 3, 2) | half_of(a >> 8, 3, 2) << 16; }
UNSPOOL_DEVICE word half2_of_e2m1(word a) { return half_of(a, 2, 1) | half_of(a >> 4, 2, 1) << 16; }

#endif

}  // namespace unspool

#endif  // UNSPOOL_INSTRUCTIONS
