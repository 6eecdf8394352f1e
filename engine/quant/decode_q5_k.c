/* engine/quant/decode_q5_k.c: Q5_K: 256 values in 176 bytes, 8 groups of 32.
 *
 *   0        d f16
 *   2        dmin f16
 *   4..15    scales and minima of 6 bits: unpack_scale_min
 *   16..47   byte l: bit g = bit 4 of value 32g + l (g = 0..7)
 *   48..175  byte 32p + l (p = 0..3, l = 0..31): low nibble = value 64p + l, high nibble = value 64p + 32 + l
 *
 *   value = (d * scale) * q - (dmin * min), of group value / 32 */
#include "quant/block_bytes.h"
#include "quant/quant.h"

enum { BLOCK = 256, BYTES = 176 };

void fwd_decode_q5_k(const void *src, float *restrict dst, int64_t n) {
    const uint8_t *restrict b = src;
    for (int64_t i = 0; i < n; i += BLOCK, b += BYTES) {
        float d = load_f16(b), dmin = load_f16(b + 2);
        const uint8_t *high = b + 16;
        uint8_t scale[8], min[8];
        unpack_scale_min(b + 4, scale, min);
        for (int g = 0; g < 8; g++, dst += 32) {
            const uint8_t *q = b + 48 + 32 * (g / 2);
            int shift = g % 2 * 4;
            float dg = d * (float)scale[g], mg = dmin * (float)min[g];
            for (int l = 0; l < 32; l++)
                dst[l] = dg * (float)((q[l] >> shift & 15) | (high[l] >> g & 1) << 4) - mg;
        }
    }
}
