/* engine/quant/decode_f32.c: F32: one value of 4 bytes a block. */
#include "quant/quant.h"

#include <string.h>

void fwd_decode_f32(const void *src, float *dst, int64_t n) {
    memcpy(dst, src, (size_t)n * sizeof *dst);
}
