// Between FP32 and narrower floats, nearest even.
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

}  // namespace unspool

#endif
