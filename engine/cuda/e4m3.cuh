/* engine/cuda/e4m3.cuh: rows of floats to E4M3 (1 sign, 4 exponent, 3 mantissa bits; largest value 448; no infinity),
 * one scale a row: d = amax / 448 and id = 448 / amax (F32 divisions), code = x * id rounded to the nearest E4M3,
 * halves to even, at most 448 in magnitude. amax < 2^-100: d = 0, codes 0. A row with a NaN or an infinity: d = NaN,
 * codes 0. Weights and activations alike; harness/spec has the same rule in its own words. */
#ifndef ENGINE_CUDA_E4M3_CUH
#define ENGINE_CUDA_E4M3_CUH

#include <cstdint>

struct e4m3_scale {
    float d, id;
};

/* amax_bits: the largest of the row's bits without their sign: orders as the magnitudes do, NaN above infinity. */
static __device__ inline struct e4m3_scale e4m3_scale_of(uint32_t amax_bits) {
    struct e4m3_scale s = {0.0f, 0.0f};
    float amax = __uint_as_float(amax_bits);
    if (amax_bits >= 0x7f800000u)
        s.d = __uint_as_float(0x7fc00000u);
    else if (amax >= 0x1p-100f) {
        s.d = __fdiv_rn(amax, 448.0f);
        s.id = __fdiv_rn(448.0f, amax);
    }
    return s;
}

/* A finite x to the nearest E4M3, halves to even, cut at 448. */
static __device__ inline uint8_t e4m3_round(float x) {
#if __CUDA_ARCH__ >= 890
    uint16_t pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(x));
    return (uint8_t)pair;
#else
    uint32_t bits = __float_as_uint(x), sign = bits >> 24 & 0x80u, m = bits & 0x7fffffffu;
    if (m >= 0x43e00000u) /* 448 and above */
        return (uint8_t)(sign | 0x7eu);
    if (m < 0x3c800000u) { /* below 2^-6: a multiple of 2^-9, by the adder's own rounding */
        float sum = __fadd_rn(__uint_as_float(m), 0x1p14f);
        return (uint8_t)(sign | (__float_as_uint(sum) & 0xfu));
    }
    m += 0x7ffffu + (m >> 20 & 1u);
    return (uint8_t)(sign | ((m >> 20) - (120u << 3)));
#endif
}

/* The code of x in a row of scale s; a row without a scale has codes 0. */
static __device__ inline uint8_t e4m3_code(float x, struct e4m3_scale s) {
    return s.id == 0.0f ? 0 : e4m3_round(__fmul_rn(x, s.id));
}

static __device__ inline float e4m3_value(uint8_t code) {
    uint32_t e = code >> 3 & 15u, m = code & 7u;
    float magnitude = e ? __uint_as_float((e + 120u) << 23 | m << 20) : (float)m * 0x1p-9f;
    if ((code & 0x7fu) == 0x7fu)
        magnitude = __uint_as_float(0x7fc00000u);
    return code & 0x80u ? -magnitude : magnitude;
}

#endif
