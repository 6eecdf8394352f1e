#include "ops/swiglu/swiglu.h"

#include "ops/expf/expf_avx2.h"

#include <string.h>

swiglu_fn swiglu_avx2;

static inline __m256 swiglu_8(__m256 g, __m256 u) {
    __m256 e = expf_8(_mm256_or_ps(g, _mm256_set1_ps(-0.0f)));
    __m256 negative = _mm256_cmp_ps(g, _mm256_setzero_ps(), _CMP_LT_OQ);
    __m256 num = _mm256_blendv_ps(g, _mm256_mul_ps(g, e), negative);
    return _mm256_mul_ps(_mm256_div_ps(num, _mm256_add_ps(_mm256_set1_ps(1.0f), e)), u);
}

void swiglu_avx2(const float *gate, const float *up, float *y, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i, swiglu_8(_mm256_loadu_ps(gate + i), _mm256_loadu_ps(up + i)));
    if (i < n) {
        float g[8] = {0}, u[8] = {0};
        size_t bytes = (size_t)(n - i) * sizeof *g;
        memcpy(g, gate + i, bytes);
        memcpy(u, up + i, bytes);
        _mm256_storeu_ps(g, swiglu_8(_mm256_loadu_ps(g), _mm256_loadu_ps(u)));
        memcpy(y + i, g, bytes);
    }
}
