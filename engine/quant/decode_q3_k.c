/* engine/quant/decode_q3_k.c: Q3_K: 256 values in 110 bytes, 16 groups of 16.
 *
 *   0..31    byte l: bit 4h + t clear = value 128h + 32t + l has 4 subtracted
 *   32..95   byte 32h + l (h = 0..1, l = 0..31): bits 2t and 2t+1 = low bits of value 128h + 32t + l (t = 0..3)
 *   96..107  scales of 6 bits: bits 0-3 of scales j and j + 8 are the nibbles of byte 96 + j (j = 0..7);
 *            bits 4-5 of scale j are bits 2(j / 4) and up of byte 104 + j % 4
 *   108      d f16
 *
 *   value = (d * (scale - 32)) * q, of group value / 16 */
#include "quant/block_bytes.h"
#include "quant/quant.h"

enum { BLOCK = 256, BYTES = 110 };

void fwd_decode_q3_k(const void *src, float *restrict dst, int64_t n) {
    const uint8_t *restrict b = src;
    for (int64_t i = 0; i < n; i += BLOCK, b += BYTES) {
        const uint8_t *packed = b + 96;
        float d = load_f16(b + 108);
        for (int g = 0; g < 16; g++, dst += 16) {
            const uint8_t *q = b + 32 + 32 * (g / 8) + 16 * (g % 2), *high = b + 16 * (g % 2);
            int shift = g % 8 / 2 * 2, bit = g / 2;
            int low4 = packed[g % 8] >> (g / 8 * 4) & 15, high2 = packed[8 + g % 4] >> (g / 4 * 2) & 3;
            float scale = d * (float)((low4 | high2 << 4) - 32);
            for (int l = 0; l < 16; l++)
                dst[l] = scale * (float)((q[l] >> shift & 3) + (high[l] >> bit & 1) * 4 - 4);
        }
    }
}
