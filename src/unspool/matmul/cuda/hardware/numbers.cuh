// Between FP32 and narrower numbers, nearest even.
#ifdef __CUDACC__

namespace unspool {

UNSPOOL_DEVICE word f16_of(float value) {
    unsigned short d;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(d) : "f"(value));
    return d;
}
UNSPOOL_DEVICE float value_of_f16(word bits) {
    float d;
    asm("cvt.f32.f16 %0, %1;" : "=f"(d) : "h"((unsigned short)bits));
    return d;
}
UNSPOOL_DEVICE word bf16_of(float value) {
    unsigned short d;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(d) : "f"(value));
    return d;
}

// An integer in two's complement, its low eight bits for INT8: of values up to 127.5 in magnitude
UNSPOOL_DEVICE word s8_of(float value) {
    int d;
    asm("cvt.rni.s32.f32 %0, %1;" : "=r"(d) : "f"(value));
    return word(d) & 0xFF;
}

#if __CUDA_ARCH__ >= 890
// saturating at 448
UNSPOOL_DEVICE word e4m3_of(float value) {
    unsigned short d;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(d) : "f"(0.0f), "f"(value));
    return d;
}
UNSPOOL_DEVICE float value_of_e4m3(word bits) {
    word halves;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"((unsigned short)bits));
    return value_of_f16(halves & 0xFFFF);
}
#else  // no FP8 here: named in branches that are never taken
UNSPOOL_DEVICE word e4m3_of(float) { return 0; }
UNSPOOL_DEVICE float value_of_e4m3(word) { return 0.0f; }
#endif

#if __CUDA_ARCH__ >= 1000
// Four packed E2M1, x the lowest; saturating at 6
UNSPOOL_DEVICE word e2m1_of(float x, float y, float z, float w) {
    word d;
    asm("{\n.reg .b8 low, high;\n"
        "cvt.rn.satfinite.e2m1x2.f32 low, %2, %1;\n"
        "cvt.rn.satfinite.e2m1x2.f32 high, %4, %3;\n"
        "mov.b32 %0, {low, high, low, high};\n}"
        : "=r"(d) : "f"(x), "f"(y), "f"(z), "f"(w));
    return d & 0xFFFF;
}
#else  // no FP4 here
UNSPOOL_DEVICE word e2m1_of(float, float, float, float) { return 0; }
#endif

}  // namespace unspool

#endif
