/* engine/ops/expf/expf.h: exp(x) for x <= 0, the one exponential of the production path. A fixed sequence of F32
 * operations, so that the scalar form here and the vector forms (expf_avx2.h, expf_avx512.h) give the same bits.
 *
 * x = n ln2 + r with n = rint(x log2e) by adding 1.5*2^23, r in two fused steps (ln2 split in two), exp(r) =
 * 1 + r + r^2 P(r) with P of degree 4 (minimax on |r| <= 0.3473, 0.05 u), times 2^n. Results below 2^-126 are 0; NaN
 * stays NaN. Error at most FWD_EXPF_ULP ulp: 0.882 is the largest over all floats of the domain (test_ops_float.c walks
 * a grid of them).
 */
#ifndef ENGINE_OPS_EXPF_H
#define ENGINE_OPS_EXPF_H

#include "core/half.h"

#include <math.h>

#define FWD_EXPF_ULP 0.9f

#define FWD_EXPF_MIN -0x1.5d589ep+6f /* the smallest x whose exp is normal */
#define FWD_EXPF_LOG2E 0x1.715476p+0f
#define FWD_EXPF_MAGIC 0x1.8p+23f
#define FWD_EXPF_LN2_HI 0x1.62e4p-1f
#define FWD_EXPF_LN2_LO 0x1.7f7d1cp-20f
#define FWD_EXPF_C2 0x1.fffffcp-2f
#define FWD_EXPF_C3 0x1.55549p-3f
#define FWD_EXPF_C4 0x1.5558f8p-5f
#define FWD_EXPF_C5 0x1.123b0ep-7f
#define FWD_EXPF_C6 0x1.6a2242p-10f

static inline float fwd_expf(float x) {
    if (x < FWD_EXPF_MIN)
        return 0.0f;
    float t = fmaf(x, FWD_EXPF_LOG2E, FWD_EXPF_MAGIC);
    float n = t - FWD_EXPF_MAGIC;
    float r = fmaf(n, -FWD_EXPF_LN2_HI, x);
    r = fmaf(n, -FWD_EXPF_LN2_LO, r);
    float p = fmaf(FWD_EXPF_C6, r, FWD_EXPF_C5);
    p = fmaf(p, r, FWD_EXPF_C4);
    p = fmaf(p, r, FWD_EXPF_C3);
    p = fmaf(p, r, FWD_EXPF_C2);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    /* The low bits of t hold n in two's complement; shifted into the exponent they scale by 2^n. */
    return p * fwd_bits_f32((fwd_f32_bits(t) + 127u) << 23);
}

#endif
