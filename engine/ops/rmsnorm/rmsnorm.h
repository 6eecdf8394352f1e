/* engine/ops/rmsnorm/rmsnorm.h: y[i] = (x[i] * s) * w[i], s = (float)(1 / sqrt(sum(x^2) / n + eps)).
 *
 * The squares are exact in F64 and are added in F64: lane l of 8 adds i = l, l + 8, ... in order, then the lanes as a
 * tree ((l, l+4), (l, l+2), (l, l+1)). 1/sqrt is an F64 square root and division, rounded to F32 once. Both products
 * are F32. The same bits in every variant. */
#ifndef ENGINE_OPS_RMSNORM_H
#define ENGINE_OPS_RMSNORM_H

#include <math.h>
#include <stdint.h>

/* One row of n values; y may be x. */
typedef void rmsnorm_fn(const float *x, const float *w, float *y, int64_t n, float eps);

/* What follows the eight lane sums, shared by all variants. */
static inline float rmsnorm_scale(const double lane[8], int64_t n, float eps) {
    double a = lane[0] + lane[4], b = lane[1] + lane[5], c = lane[2] + lane[6], d = lane[3] + lane[7];
    double sum = (a + c) + (b + d);
    return (float)(1.0 / sqrt(sum / (double)n + (double)eps));
}

#endif
