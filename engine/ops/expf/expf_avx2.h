/* engine/ops/expf/expf_avx2.h: fwd_expf on eight lanes, step for step. For *_avx2.c files only. */
#ifndef ENGINE_OPS_EXPF_AVX2_H
#define ENGINE_OPS_EXPF_AVX2_H

#include "ops/expf/expf.h"

#include <immintrin.h>

static inline __m256 expf_8(__m256 x) {
    const __m256 one = _mm256_set1_ps(1.0f);
    const __m256 magic = _mm256_set1_ps(FWD_EXPF_MAGIC);
    __m256 t = _mm256_fmadd_ps(x, _mm256_set1_ps(FWD_EXPF_LOG2E), magic);
    __m256 n = _mm256_sub_ps(t, magic);
    __m256 r = _mm256_fmadd_ps(n, _mm256_set1_ps(-FWD_EXPF_LN2_HI), x);
    r = _mm256_fmadd_ps(n, _mm256_set1_ps(-FWD_EXPF_LN2_LO), r);
    __m256 p = _mm256_fmadd_ps(_mm256_set1_ps(FWD_EXPF_C6), r, _mm256_set1_ps(FWD_EXPF_C5));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(FWD_EXPF_C4));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(FWD_EXPF_C3));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(FWD_EXPF_C2));
    p = _mm256_fmadd_ps(p, r, one);
    p = _mm256_fmadd_ps(p, r, one);
    __m256i scale = _mm256_slli_epi32(_mm256_add_epi32(_mm256_castps_si256(t), _mm256_set1_epi32(127)), 23);
    __m256 y = _mm256_mul_ps(p, _mm256_castsi256_ps(scale));
    return _mm256_andnot_ps(_mm256_cmp_ps(x, _mm256_set1_ps(FWD_EXPF_MIN), _CMP_LT_OQ), y);
}

#endif
