/* engine/quant/decode_q5_0.c: Q5_0: 32 values in 22 bytes.
 *
 *   0      d f16
 *   2..5   bit j of this u32 = bit 4 of value j
 *   6..21  byte j: low nibble = bits 0-3 of value j, high nibble = those of value j + 16
 *
 *   value = d * (q - 16) */
#include "quant/block_bytes.h"
#include "quant/quant.h"

enum { BLOCK = 32, BYTES = 22 };

void fwd_decode_q5_0(const void *src, float *restrict dst, int64_t n) {
    const uint8_t *restrict b = src;
    for (int64_t i = 0; i < n; i += BLOCK, b += BYTES, dst += BLOCK) {
        float d = load_f16(b);
        uint32_t high = load_u32(b + 2);
        for (int j = 0; j < 16; j++)
            dst[j] = d * (float)((int)((b[6 + j] & 15u) | (high >> j & 1u) << 4) - 16);
        for (int j = 0; j < 16; j++)
            dst[16 + j] = d * (float)((int)((uint32_t)b[6 + j] >> 4 | (high >> (16 + j) & 1u) << 4) - 16);
    }
}
