/* engine/core/half.h: binary16 and bfloat16 to and from binary32, by integer arithmetic, the same bits everywhere.
 * NaN payloads are kept (shifted), as numpy keeps them; narrowing rounds half to even. */
#ifndef ENGINE_CORE_HALF_H
#define ENGINE_CORE_HALF_H

#include <stdint.h>
#include <string.h>

static inline float fwd_bits_f32(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline uint32_t fwd_f32_bits(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static inline float fwd_f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exponent = (h >> 10) & 0x1fu;
    uint32_t mantissa = h & 0x3ffu;
    if (exponent == 0x1f) /* infinity, NaN */
        return fwd_bits_f32(sign | 0x7f800000u | mantissa << 13);
    if (exponent)
        return fwd_bits_f32(sign | (exponent + 112) << 23 | mantissa << 13);
    /* zero and denormals: mantissa * 2^-24 is exact in binary32 */
    float magnitude = (float)mantissa * 0x1p-24f;
    return fwd_bits_f32(sign | fwd_f32_bits(magnitude));
}

static inline uint16_t fwd_f32_to_f16(float f) {
    uint32_t bits = fwd_f32_bits(f);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) { /* NaN: the payload's top bits, never turned into infinity */
        uint32_t payload = magnitude >> 13 & 0x3ffu;
        return (uint16_t)(sign | 0x7c00u | (payload ? payload : 1u));
    }
    if (magnitude >= 0x47800000u) /* 65536 and above */
        return (uint16_t)(sign | 0x7c00u);
    if (magnitude < 0x38800000u) { /* below 2^-14: a multiple of 2^-24, by the adder's own rounding (half to even) */
        float shifted = fwd_bits_f32(magnitude) + 0.5f;
        return (uint16_t)(sign | (fwd_f32_bits(shifted) & 0x7ffu));
    }
    uint32_t odd = magnitude >> 13 & 1u;
    return (uint16_t)(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
}

static inline float fwd_bf16_to_f32(uint16_t h) {
    return fwd_bits_f32((uint32_t)h << 16);
}

#endif
