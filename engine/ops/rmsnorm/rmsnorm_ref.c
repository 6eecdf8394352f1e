#include "ops/rmsnorm/rmsnorm.h"

rmsnorm_fn rmsnorm_ref;

void rmsnorm_ref(const float *x, const float *w, float *y, int64_t n, float eps) {
    double lane[RMSNORM_LANES] = {0};
    for (int64_t i = 0; i < n; i++)
        lane[i % RMSNORM_LANES] += (double)x[i] * (double)x[i];
    for (int half = RMSNORM_LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++)
            lane[l] += lane[l + half];
    float s = rmsnorm_scale(lane[0], n, eps);
    for (int64_t i = 0; i < n; i++)
        y[i] = x[i] * s * w[i];
}
