/* engine/quant/decode_q6_k.c: Q6_K: 256 values in 210 bytes, 16 groups of 16.
 *
 *   0..127    byte 64h + 32(t % 2) + l (h = 0..1, l = 0..31): low nibble = bits 0-3 of value 128h + 32t + l for t < 2,
 *             high nibble for t = 2, 3
 *   128..191  byte 32h + l: bits 2t and 2t+1 = bits 4-5 of value 128h + 32t + l
 *   192..207  scale of group g, signed
 *   208       d f16
 *
 *   value = (d * scale) * (q - 32), of group value / 16 */
#include "quant/block_bytes.h"
#include "quant/quant.h"

enum { BLOCK = 256, BYTES = 210 };

void fwd_decode_q6_k(const void *src, float *restrict dst, int64_t n) {
    const uint8_t *restrict b = src;
    for (int64_t i = 0; i < n; i += BLOCK, b += BYTES) {
        float d = load_f16(b + 208);
        for (int g = 0; g < 16; g++, dst += 16) {
            int h = g / 8, t = g % 8 / 2, l0 = 16 * (g % 2);
            const uint8_t *low = b + 64 * h + 32 * (t % 2) + l0, *high = b + 128 + 32 * h + l0;
            int low_shift = t / 2 * 4, high_shift = 2 * t;
            float scale = d * (float)(int8_t)b[192 + g];
            for (int l = 0; l < 16; l++)
                dst[l] = scale * (float)(((low[l] >> low_shift & 15) | (high[l] >> high_shift & 3) << 4) - 32);
        }
    }
}
