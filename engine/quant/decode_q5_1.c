/* engine/quant/decode_q5_1.c: Q5_1: 32 values in 24 bytes.
 *
 *   0      d f16
 *   2      m f16
 *   4..7   bit j of this u32 = bit 4 of value j
 *   8..23  byte j: low nibble = bits 0-3 of value j, high nibble = those of value j + 16
 *
 *   value = d * q + m */
#include "quant/block_bytes.h"
#include "quant/quant.h"

enum { BLOCK = 32, BYTES = 24 };

void fwd_decode_q5_1(const void *src, float *restrict dst, int64_t n) {
    const uint8_t *restrict b = src;
    for (int64_t i = 0; i < n; i += BLOCK, b += BYTES, dst += BLOCK) {
        float d = load_f16(b), m = load_f16(b + 2);
        uint32_t high = load_u32(b + 4);
        for (int j = 0; j < 16; j++)
            dst[j] = d * (float)(int)((b[8 + j] & 15u) | (high >> j & 1u) << 4) + m;
        for (int j = 0; j < 16; j++)
            dst[16 + j] = d * (float)(int)((uint32_t)b[8 + j] >> 4 | (high >> (16 + j) & 1u) << 4) + m;
    }
}
