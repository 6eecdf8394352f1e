/* engine/ops/rmsnorm/rmsnorm.h: y[i] = (x[i] * s) * w[i], s = (float)(1 / sqrt(sum(x^2) / n + eps)).
 *
 * The squares are exact in F64 and are added in F64: lane l of 256 adds i = l, l + 256, ... in order, then the lanes as
 * a tree of halves ((l, l+128), (l, l+64), ... (l, l+1)): what a block of 256 threads does as fast as vector registers
 * do. 1/sqrt is an F64 square root and division, rounded to F32 once. Both products are F32. The same bits in every
 * variant. */
#ifndef ENGINE_OPS_RMSNORM_H
#define ENGINE_OPS_RMSNORM_H

#include <math.h>
#include <stdint.h>

enum { RMSNORM_LANES = 256 };

/* One row of n values; y may be x. */
typedef void rmsnorm_fn(const float *x, const float *w, float *y, int64_t n, float eps);

/* What follows the sum of the squares, shared by all variants. */
static inline float rmsnorm_scale(double sum, int64_t n, float eps) {
    return (float)(1.0 / sqrt(sum / (double)n + (double)eps));
}

#endif
