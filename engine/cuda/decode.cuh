/* engine/cuda/decode.cuh: value i of a block of each decodable type, as engine/quant computes it: every product and sum
 * a rounding of its own, in that order. The layouts are drawn at the heads of engine/quant/decode_*.c. Blocks start on
 * even addresses, those of F32 on multiples of 4. */
#ifndef ENGINE_CUDA_DECODE_CUH
#define ENGINE_CUDA_DECODE_CUH

#include "cuda/half.cuh"

extern "C" {
#include "format/gguf.h"
}

static __device__ inline float decode_f16(const uint8_t *b) {
    return cuda_f16_to_f32(*(const uint16_t *)b);
}

/* The nibble of value i in a block of 32 whose 16 bytes of nibbles start at q. */
static __device__ inline int decode_nibble(const uint8_t *q, int i) {
    return i < 16 ? q[i] & 15 : q[i - 16] >> 4;
}

/* Bit 4 of value i in a block of 32 with a u32 of high bits at b, in its place. */
static __device__ inline int decode_high(const uint8_t *b, int i) {
    return (b[i / 8] >> i % 8 & 1) << 4;
}

/* Q4_K, Q5_K: 6-bit scale and minimum of group g of the 12 bytes at b. */
static __device__ inline float2 decode_scale_min(const uint8_t *b, int g) {
    if (g < 4)
        return make_float2((float)(b[g] & 63), (float)(b[g + 4] & 63));
    return make_float2((float)((b[g + 4] & 15) | (b[g - 4] >> 6) << 4), (float)(b[g + 4] >> 4 | (b[g] >> 6) << 4));
}

/* d * scale * q - dmin * min of group i / 32 of a block that begins as Q4_K's and Q5_K's do. */
static __device__ inline float decode_with_min(const uint8_t *b, int i, int q) {
    const float2 sm = decode_scale_min(b + 4, i / 32);
    const float scale = decode_f16(b) * sm.x, min = decode_f16(b + 2) * sm.y;
    return scale * (float)q - min;
}

static __device__ inline float decode_q2_k(const uint8_t *b, int i) {
    const int g = i / 16, q = b[16 + 32 * (g / 8) + i % 32] >> g % 8 / 2 * 2 & 3;
    const float scale = decode_f16(b + 80) * (float)(b[g] & 15), min = decode_f16(b + 82) * (float)(b[g] >> 4);
    return scale * (float)q - min;
}

static __device__ inline float decode_q3_k(const uint8_t *b, int i) {
    const int g = i / 16, low = b[32 + 32 * (g / 8) + i % 32] >> g % 8 / 2 * 2 & 3, high = b[i % 32] >> g / 2 & 1;
    const int low4 = b[96 + g % 8] >> g / 8 * 4 & 15, high2 = b[104 + g % 4] >> g / 4 * 2 & 3;
    const float scale = decode_f16(b + 108) * (float)((low4 | high2 << 4) - 32);
    return scale * (float)(low + high * 4 - 4);
}

static __device__ inline float decode_q6_k(const uint8_t *b, int i) {
    const int h = i / 128, t = i % 128 / 32, l = i % 32;
    const int low = b[64 * h + 32 * (t % 2) + l] >> t / 2 * 4 & 15, high = b[128 + 32 * h + l] >> 2 * t & 3;
    const float scale = decode_f16(b + 208) * (float)(int8_t)b[192 + i / 16];
    return scale * (float)((low | high << 4) - 32);
}

/* Value i of the block at b. A type that is not listed is one that the host must not ask for: NaN. */
static __device__ inline float decode_value(uint32_t type, const uint8_t *b, int i) {
    switch (type) {
    case FWD_TYPE_F32:
        return *(const float *)b;
    case FWD_TYPE_F16:
        return decode_f16(b);
    case FWD_TYPE_BF16:
        return cuda_bf16_to_f32(*(const uint16_t *)b);
    case FWD_TYPE_Q4_0:
        return decode_f16(b) * (float)(decode_nibble(b + 2, i) - 8);
    case FWD_TYPE_Q4_1:
        return decode_f16(b) * (float)decode_nibble(b + 4, i) + decode_f16(b + 2);
    case FWD_TYPE_Q5_0:
        return decode_f16(b) * (float)((decode_nibble(b + 6, i) | decode_high(b + 2, i)) - 16);
    case FWD_TYPE_Q5_1:
        return decode_f16(b) * (float)(decode_nibble(b + 8, i) | decode_high(b + 4, i)) + decode_f16(b + 2);
    case FWD_TYPE_Q8_0:
        return (float)(int8_t)b[2 + i] * decode_f16(b);
    case FWD_TYPE_Q2_K:
        return decode_q2_k(b, i);
    case FWD_TYPE_Q3_K:
        return decode_q3_k(b, i);
    case FWD_TYPE_Q4_K:
        return decode_with_min(b, i, b[16 + 32 * (i / 64) + i % 32] >> i / 32 % 2 * 4 & 15);
    case FWD_TYPE_Q5_K:
        return decode_with_min(
            b, i, (b[48 + 32 * (i / 64) + i % 32] >> i / 32 % 2 * 4 & 15) | (b[16 + i % 32] >> i / 32 & 1) << 4);
    case FWD_TYPE_Q6_K:
        return decode_q6_k(b, i);
    default:
        return __uint_as_float(0x7fc00000u);
    }
}

/* The same for value i of a row. shift: log2 of the values in a block. */
static __device__ inline float decode_in_row(uint32_t type, int shift, int block_bytes, const uint8_t *row, int64_t i) {
    return decode_value(type, row + (i >> shift) * block_bytes, (int)(i & ((1 << shift) - 1)));
}

#endif
