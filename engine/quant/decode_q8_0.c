/* engine/quant/decode_q8_0.c: Q8_0: 32 values in 34 bytes.
 *
 *   0      d f16
 *   2..33  byte j: value j, signed
 *
 *   value = q * d */
#include "quant/block_bytes.h"
#include "quant/quant.h"

enum { BLOCK = 32, BYTES = 34 };

void fwd_decode_q8_0(const void *src, float *restrict dst, int64_t n) {
    const uint8_t *restrict b = src;
    for (int64_t i = 0; i < n; i += BLOCK, b += BYTES, dst += BLOCK) {
        float d = load_f16(b);
        for (int j = 0; j < BLOCK; j++)
            dst[j] = (float)(int8_t)b[2 + j] * d;
    }
}
