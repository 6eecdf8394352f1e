#include "ops/swiglu/swiglu.h"

#include "ops/expf/expf_avx512.h"

swiglu_fn swiglu_avx512;

void swiglu_avx512(const float *gate, const float *up, float *y, int64_t n) {
    const __m512 one = _mm512_set1_ps(1.0f), sign = _mm512_set1_ps(-0.0f);
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 m = lanes_16(n - i);
        __m512 g = _mm512_maskz_loadu_ps(m, gate + i);
        __m512 e = expf_16(_mm512_or_ps(g, sign));
        __mmask16 negative = _mm512_cmp_ps_mask(g, _mm512_setzero_ps(), _CMP_LT_OQ);
        __m512 num = _mm512_mask_mul_ps(g, negative, g, e);
        __m512 v = _mm512_div_ps(num, _mm512_add_ps(one, e));
        _mm512_mask_storeu_ps(y + i, m, _mm512_mul_ps(v, _mm512_maskz_loadu_ps(m, up + i)));
    }
}
