/* engine/quant/decode_q4_k.c: Q4_K: 256 values in 144 bytes, 8 groups of 32.
 *
 *   0        d f16
 *   2        dmin f16
 *   4..15    scales and minima of 6 bits: unpack_scale_min
 *   16..143  byte 32p + l (p = 0..3, l = 0..31): low nibble = value 64p + l, high nibble = value 64p + 32 + l
 *
 *   value = (d * scale) * q - (dmin * min), of group value / 32 */
#include "quant/block_bytes.h"
#include "quant/quant.h"

enum { BLOCK = 256, BYTES = 144 };

void fwd_decode_q4_k(const void *src, float *restrict dst, int64_t n) {
    const uint8_t *restrict b = src;
    for (int64_t i = 0; i < n; i += BLOCK, b += BYTES) {
        float d = load_f16(b), dmin = load_f16(b + 2);
        uint8_t scale[8], min[8];
        unpack_scale_min(b + 4, scale, min);
        for (int p = 0; p < 4; p++, dst += 64) {
            const uint8_t *q = b + 16 + 32 * p;
            float d0 = d * (float)scale[2 * p], m0 = dmin * (float)min[2 * p];
            float d1 = d * (float)scale[2 * p + 1], m1 = dmin * (float)min[2 * p + 1];
            for (int l = 0; l < 32; l++)
                dst[l] = d0 * (float)(q[l] & 15) - m0;
            for (int l = 0; l < 32; l++)
                dst[32 + l] = d1 * (float)(q[l] >> 4) - m1;
        }
    }
}
