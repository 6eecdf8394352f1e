/* engine/cuda/step_math.cuh: ops/expf and ops/swiglu for device code, step for step. */
#ifndef ENGINE_CUDA_STEP_MATH_CUH
#define ENGINE_CUDA_STEP_MATH_CUH

#include "ops/expf/expf.h"

static __device__ __forceinline__ float exp_step(float x) {
    if (x < FWD_EXPF_MIN)
        return 0.0f;
    float t = __fmaf_rn(x, FWD_EXPF_LOG2E, FWD_EXPF_MAGIC);
    float n = t - FWD_EXPF_MAGIC;
    float r = __fmaf_rn(n, -FWD_EXPF_LN2_HI, x);
    r = __fmaf_rn(n, -FWD_EXPF_LN2_LO, r);
    float p = __fmaf_rn(FWD_EXPF_C6, r, FWD_EXPF_C5);
    p = __fmaf_rn(p, r, FWD_EXPF_C4);
    p = __fmaf_rn(p, r, FWD_EXPF_C3);
    p = __fmaf_rn(p, r, FWD_EXPF_C2);
    p = __fmaf_rn(p, r, 1.0f);
    p = __fmaf_rn(p, r, 1.0f);
    return p * __int_as_float((__float_as_int(t) + 127) << 23);
}

static __device__ __forceinline__ float swiglu(float g, float up) {
    float e = exp_step(-fabsf(g));
    float num = g < 0.0f ? g * e : g;
    return num / (1.0f + e) * up;
}

#endif
