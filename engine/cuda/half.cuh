/* engine/cuda/half.cuh: core/half.h on the device: the same values; narrowing keeps a NaN's payload, as there. */
#ifndef ENGINE_CUDA_HALF_CUH
#define ENGINE_CUDA_HALF_CUH

#include <cstdint>

/* Exact. A NaN comes out as some NaN. */
static __device__ inline float cuda_f16_to_f32(uint16_t h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}

static __device__ inline uint16_t cuda_f32_to_f16(float f) {
    uint32_t bits = __float_as_uint(f), payload = bits >> 13 & 0x3ffu;
    uint16_t h;
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((bits >> 16 & 0x8000u) | 0x7c00u | (payload ? payload : 1u));
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}

static __device__ inline float cuda_bf16_to_f32(uint16_t h) {
    return __uint_as_float((uint32_t)h << 16);
}

/* To the nearest, halves to even; a NaN stays one. */
static __device__ inline uint16_t cuda_f32_to_bf16(float f) {
    uint32_t bits = __float_as_uint(f);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

#endif
