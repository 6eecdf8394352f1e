/* engine/quant/decode_bf16.c: BF16: one value of 2 bytes a block, the upper half of a binary32. */
#include "quant/block_bytes.h"
#include "quant/quant.h"

void fwd_decode_bf16(const void *src, float *restrict dst, int64_t n) {
    const uint8_t *restrict b = src;
    for (int64_t i = 0; i < n; i++)
        dst[i] = fwd_bf16_to_f32(load_u16(b + 2 * i));
}
