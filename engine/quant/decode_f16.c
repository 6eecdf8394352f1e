/* engine/quant/decode_f16.c: F16: one IEEE binary16 of 2 bytes a block. */
#include "quant/block_bytes.h"
#include "quant/quant.h"

void fwd_decode_f16(const void *src, float *restrict dst, int64_t n) {
    const uint8_t *restrict b = src;
    for (int64_t i = 0; i < n; i++)
        dst[i] = load_f16(b + 2 * i);
}
