/* engine/quant/decode_q4_1.c: Q4_1: 32 values in 20 bytes.
 *
 *   0      d f16
 *   2      m f16
 *   4..19  byte j: low nibble = value j, high nibble = value j + 16
 *
 *   value = d * q + m */
#include "quant/block_bytes.h"
#include "quant/quant.h"

enum { BLOCK = 32, BYTES = 20 };

void fwd_decode_q4_1(const void *src, float *restrict dst, int64_t n) {
    const uint8_t *restrict b = src;
    for (int64_t i = 0; i < n; i += BLOCK, b += BYTES, dst += BLOCK) {
        float d = load_f16(b), m = load_f16(b + 2);
        for (int j = 0; j < 16; j++)
            dst[j] = d * (float)(b[4 + j] & 15) + m;
        for (int j = 0; j < 16; j++)
            dst[16 + j] = d * (float)(b[4 + j] >> 4) + m;
    }
}
