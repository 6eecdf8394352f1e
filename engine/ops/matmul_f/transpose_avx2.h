/* engine/ops/matmul_f/transpose_avx2.h: 8 x 8 floats across the diagonal, for the panels of matmul_f and matmul_d. */
#ifndef ENGINE_OPS_MATMUL_TRANSPOSE_AVX2_H
#define ENGINE_OPS_MATMUL_TRANSPOSE_AVX2_H

#include <immintrin.h>
#include <stdint.h>

/* out[j] lane i = src[i * ld + j] */
static inline void transpose_8x8(const float *src, int64_t ld, __m256 out[8]) {
    __m256 a[8], b[8];
    /* Rows i and i + 4 side by side, so that only in-lane shuffles follow. */
    for (int i = 0; i < 4; i++) {
        __m128 lo0 = _mm_loadu_ps(src + i * ld), hi0 = _mm_loadu_ps(src + (i + 4) * ld);
        __m128 lo1 = _mm_loadu_ps(src + i * ld + 4), hi1 = _mm_loadu_ps(src + (i + 4) * ld + 4);
        a[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(lo0), hi0, 1);
        a[i + 4] = _mm256_insertf128_ps(_mm256_castps128_ps256(lo1), hi1, 1);
    }
    for (int h = 0; h < 8; h += 4) {
        b[h + 0] = _mm256_unpacklo_ps(a[h + 0], a[h + 1]);
        b[h + 1] = _mm256_unpackhi_ps(a[h + 0], a[h + 1]);
        b[h + 2] = _mm256_unpacklo_ps(a[h + 2], a[h + 3]);
        b[h + 3] = _mm256_unpackhi_ps(a[h + 2], a[h + 3]);
        out[h + 0] = _mm256_shuffle_ps(b[h + 0], b[h + 2], _MM_SHUFFLE(1, 0, 1, 0));
        out[h + 1] = _mm256_shuffle_ps(b[h + 0], b[h + 2], _MM_SHUFFLE(3, 2, 3, 2));
        out[h + 2] = _mm256_shuffle_ps(b[h + 1], b[h + 3], _MM_SHUFFLE(1, 0, 1, 0));
        out[h + 3] = _mm256_shuffle_ps(b[h + 1], b[h + 3], _MM_SHUFFLE(3, 2, 3, 2));
    }
}

#endif
