#include "ops/rmsnorm/rmsnorm.h"

#include <immintrin.h>

rmsnorm_fn rmsnorm_avx2;

enum { GROUP = 32 }; /* lanes that are in registers at a time */

/* Lanes lane0 .. lane0 + GROUP - 1; returns how far their whole steps went: the first i that was left out. */
static int64_t add_group(const float *x, int64_t n, int lane0, double *lane) {
    __m256d sum[GROUP / 4];
    for (int v = 0; v < GROUP / 4; v++)
        sum[v] = _mm256_setzero_pd();
    int64_t i = lane0;
    for (; i + GROUP <= n; i += RMSNORM_LANES)
        for (int v = 0; v < GROUP / 4; v++) {
            __m256d a = _mm256_cvtps_pd(_mm_loadu_ps(x + i + 4 * v));
            /* fused or not is the same: squares of floats are exact in F64 */
            sum[v] = _mm256_fmadd_pd(a, a, sum[v]);
        }
    for (int v = 0; v < GROUP / 4; v++)
        _mm256_storeu_pd(lane + lane0 + 4 * v, sum[v]);
    return i;
}

static double add_lanes(double lane[RMSNORM_LANES]) {
    for (int half = RMSNORM_LANES / 2; half >= 4; half /= 2)
        for (int l = 0; l < half; l += 4)
            _mm256_storeu_pd(lane + l, _mm256_add_pd(_mm256_loadu_pd(lane + l), _mm256_loadu_pd(lane + l + half)));
    return (lane[0] + lane[2]) + (lane[1] + lane[3]);
}

void rmsnorm_avx2(const float *x, const float *w, float *y, int64_t n, float eps) {
    double lane[RMSNORM_LANES];
    for (int l = 0; l < RMSNORM_LANES; l += GROUP) {
        int64_t rest = add_group(x, n, l, lane);
        for (int64_t i = rest; i < n && i < rest + GROUP; i++)
            lane[i % RMSNORM_LANES] += (double)x[i] * (double)x[i];
    }
    float s = rmsnorm_scale(add_lanes(lane), n, eps);
    __m256 s8 = _mm256_set1_ps(s);
    int64_t whole = n - n % 8;
    for (int64_t i = 0; i < whole; i += 8)
        _mm256_storeu_ps(y + i, _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(x + i), s8), _mm256_loadu_ps(w + i)));
    for (int64_t i = whole; i < n; i++)
        y[i] = x[i] * s * w[i];
}
