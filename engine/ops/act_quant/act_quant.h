/* engine/ops/act_quant/act_quant.h: activations to int8 blocks, the rule FWD_ACT_AMAX127 of engine.h, bit for bit the
 * same in every variant.
 *
 * Per block of B values (B = 256: struct fwd_q8_k, B = 32: struct fwd_q8_32): amax = max |x|; if amax < 2^-100 the
 * block is all zero (d = 0); if any x is NaN or infinite d = NaN and q = 0; else d = amax / 127.0f and id = 127.0f /
 * amax (IEEE F32 divisions), q = rint(x * id), half to even, cut to [-127, 127]. Integer sums are exact. */
#ifndef ENGINE_OPS_ACT_QUANT_H
#define ENGINE_OPS_ACT_QUANT_H

#include <stddef.h>
#include <stdint.h>

struct fwd_q8_k {
    float d;
    int8_t q[256];
    int16_t sum16[16];
};
struct fwd_q8_32 {
    float d;
    int32_t sum;
    int8_t q[32];
};
_Static_assert(sizeof(struct fwd_q8_k) == 292 && sizeof(struct fwd_q8_32) == 40, "tap formats have no padding");

/* n: a multiple of the block. One row. */
typedef void act_quant_k_fn(const float *x, struct fwd_q8_k *out, int64_t n);
typedef void act_quant_32_fn(const float *x, struct fwd_q8_32 *out, int64_t n);

#endif
