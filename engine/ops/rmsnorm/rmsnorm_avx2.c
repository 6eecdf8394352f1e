#include "ops/rmsnorm/rmsnorm.h"

#include <immintrin.h>

rmsnorm_fn rmsnorm_avx2;

void rmsnorm_avx2(const float *x, const float *w, float *y, int64_t n, float eps) {
    __m256d lo = _mm256_setzero_pd(), hi = _mm256_setzero_pd();
    int64_t whole = n - n % 8;
    for (int64_t i = 0; i < whole; i += 8) {
        __m256d a = _mm256_cvtps_pd(_mm_loadu_ps(x + i));
        __m256d b = _mm256_cvtps_pd(_mm_loadu_ps(x + i + 4));
        /* fused or not is the same: squares of floats are exact in F64 */
        lo = _mm256_fmadd_pd(a, a, lo);
        hi = _mm256_fmadd_pd(b, b, hi);
    }
    double lane[8];
    _mm256_storeu_pd(lane, lo);
    _mm256_storeu_pd(lane + 4, hi);
    for (int64_t i = whole; i < n; i++)
        lane[i % 8] += (double)x[i] * (double)x[i];
    float s = rmsnorm_scale(lane, n, eps);
    __m256 s8 = _mm256_set1_ps(s);
    for (int64_t i = 0; i < whole; i += 8)
        _mm256_storeu_ps(y + i, _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(x + i), s8), _mm256_loadu_ps(w + i)));
    for (int64_t i = whole; i < n; i++)
        y[i] = x[i] * s * w[i];
}
