/* engine/quant/decode_q2_k.c: Q2_K: 256 values in 84 bytes, 16 groups of 16.
 *
 *   0..15   group g: bits 0-3 scale, bits 4-7 min
 *   16..79  byte 32h + l (h = 0..1, l = 0..31): bits 2t and 2t+1 = value 128h + 32t + l (t = 0..3)
 *   80      d f16
 *   82      dmin f16
 *
 *   value = (d * scale) * q - (dmin * min), of group value / 16 */
#include "quant/block_bytes.h"
#include "quant/quant.h"

enum { BLOCK = 256, BYTES = 84 };

void fwd_decode_q2_k(const void *src, float *restrict dst, int64_t n) {
    const uint8_t *restrict b = src;
    for (int64_t i = 0; i < n; i += BLOCK, b += BYTES) {
        float d = load_f16(b + 80), dmin = load_f16(b + 82);
        for (int g = 0; g < 16; g++, dst += 16) {
            const uint8_t *q = b + 16 + 32 * (g / 8) + 16 * (g % 2);
            int shift = g % 8 / 2 * 2;
            float scale = d * (float)(b[g] & 15), min = dmin * (float)(b[g] >> 4);
            for (int l = 0; l < 16; l++)
                dst[l] = scale * (float)(q[l] >> shift & 3) - min;
        }
    }
}
