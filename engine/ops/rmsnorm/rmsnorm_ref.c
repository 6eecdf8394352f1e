#include "ops/rmsnorm/rmsnorm.h"

rmsnorm_fn rmsnorm_ref;

void rmsnorm_ref(const float *x, const float *w, float *y, int64_t n, float eps) {
    double lane[8] = {0};
    for (int64_t i = 0; i < n; i++)
        lane[i % 8] += (double)x[i] * (double)x[i];
    float s = rmsnorm_scale(lane, n, eps);
    for (int64_t i = 0; i < n; i++)
        y[i] = x[i] * s * w[i];
}
