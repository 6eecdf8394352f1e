/* engine/cuda/expf.cuh: ops/expf/expf.h on the device, step for step. */
#ifndef ENGINE_CUDA_EXPF_CUH
#define ENGINE_CUDA_EXPF_CUH

#include "ops/expf/expf.h"

/* exp(x) for x <= 0 */
static __device__ inline float cuda_expf(float x) {
    if (x < FWD_EXPF_MIN)
        return 0.0f;
    float t = __fmaf_rn(x, FWD_EXPF_LOG2E, FWD_EXPF_MAGIC);
    float n = __fsub_rn(t, FWD_EXPF_MAGIC);
    float r = __fmaf_rn(n, -FWD_EXPF_LN2_HI, x);
    r = __fmaf_rn(n, -FWD_EXPF_LN2_LO, r);
    float p = __fmaf_rn(FWD_EXPF_C6, r, FWD_EXPF_C5);
    p = __fmaf_rn(p, r, FWD_EXPF_C4);
    p = __fmaf_rn(p, r, FWD_EXPF_C3);
    p = __fmaf_rn(p, r, FWD_EXPF_C2);
    p = __fmaf_rn(p, r, 1.0f);
    p = __fmaf_rn(p, r, 1.0f);
    return __fmul_rn(p, __uint_as_float((__float_as_uint(t) + 127u) << 23));
}

/* The same bits by choices instead of a branch, for loops over values of which some are below the range. */
static __device__ inline float cuda_expf_flat(float x) {
    const bool is_zero = x < FWD_EXPF_MIN;
    x = is_zero ? FWD_EXPF_MIN : x;
    float t = __fmaf_rn(x, FWD_EXPF_LOG2E, FWD_EXPF_MAGIC);
    float n = __fsub_rn(t, FWD_EXPF_MAGIC);
    float r = __fmaf_rn(n, -FWD_EXPF_LN2_HI, x);
    r = __fmaf_rn(n, -FWD_EXPF_LN2_LO, r);
    float p = __fmaf_rn(FWD_EXPF_C6, r, FWD_EXPF_C5);
    p = __fmaf_rn(p, r, FWD_EXPF_C4);
    p = __fmaf_rn(p, r, FWD_EXPF_C3);
    p = __fmaf_rn(p, r, FWD_EXPF_C2);
    p = __fmaf_rn(p, r, 1.0f);
    p = __fmaf_rn(p, r, 1.0f);
    /* p is finite and positive where the result is 0 */
    return __fmul_rn(p, is_zero ? 0.0f : __uint_as_float((__float_as_uint(t) + 127u) << 23));
}

#endif
