/* engine/quant/decode_q4_0.c: Q4_0: 32 values in 18 bytes.
 *
 *   0      d f16
 *   2..17  byte j: low nibble = value j, high nibble = value j + 16
 *
 *   value = d * (q - 8) */
#include "quant/block_bytes.h"
#include "quant/quant.h"

enum { BLOCK = 32, BYTES = 18 };

void fwd_decode_q4_0(const void *src, float *restrict dst, int64_t n) {
    const uint8_t *restrict b = src;
    for (int64_t i = 0; i < n; i += BLOCK, b += BYTES, dst += BLOCK) {
        float d = load_f16(b);
        for (int j = 0; j < 16; j++)
            dst[j] = d * (float)((b[2 + j] & 15) - 8);
        for (int j = 0; j < 16; j++)
            dst[16 + j] = d * (float)((b[2 + j] >> 4) - 8);
    }
}
