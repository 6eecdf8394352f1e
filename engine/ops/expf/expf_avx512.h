/* engine/ops/expf/expf_avx512.h: fwd_expf on sixteen lanes, step for step. For *_avx512.c files only. */
#ifndef ENGINE_OPS_EXPF_AVX512_H
#define ENGINE_OPS_EXPF_AVX512_H

#include "ops/expf/expf.h"

#include <immintrin.h>
#include <stdint.h>

/* The first n lanes, n >= 1; all of them from 16 on. */
static inline __mmask16 lanes_16(int64_t n) {
    return (__mmask16)(n >= 16 ? 0xffffu : (1u << n) - 1u);
}

static inline __m512 expf_16(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512 magic = _mm512_set1_ps(FWD_EXPF_MAGIC);
    __m512 t = _mm512_fmadd_ps(x, _mm512_set1_ps(FWD_EXPF_LOG2E), magic);
    __m512 n = _mm512_sub_ps(t, magic);
    __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-FWD_EXPF_LN2_HI), x);
    r = _mm512_fmadd_ps(n, _mm512_set1_ps(-FWD_EXPF_LN2_LO), r);
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(FWD_EXPF_C6), r, _mm512_set1_ps(FWD_EXPF_C5));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(FWD_EXPF_C4));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(FWD_EXPF_C3));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(FWD_EXPF_C2));
    p = _mm512_fmadd_ps(p, r, one);
    p = _mm512_fmadd_ps(p, r, one);
    __m512i scale = _mm512_slli_epi32(_mm512_add_epi32(_mm512_castps_si512(t), _mm512_set1_epi32(127)), 23);
    __mmask16 keep = _mm512_cmp_ps_mask(x, _mm512_set1_ps(FWD_EXPF_MIN), _CMP_NLT_UQ);
    return _mm512_maskz_mul_ps(keep, p, _mm512_castsi512_ps(scale));
}

#endif
