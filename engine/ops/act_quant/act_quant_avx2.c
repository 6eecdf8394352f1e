/* engine/ops/act_quant/act_quant_avx2.c: the rule of act_quant.h with AVX2, the same bits as ref. */
#include "core/half.h"
#include "ops/act_quant/act_quant.h"

#include <immintrin.h>
#include <stdbool.h>
#include <string.h>

act_quant_k_fn act_quant_k_avx2;
act_quant_32_fn act_quant_32_avx2;

/* Largest |x| of n values as an integer: the bits of non-negative floats order as their values do, and those of an
 * infinity or a NaN lie above all finite ones, so that one maximum finds both. */
static inline uint32_t largest_bits(const float *x, int n) {
    __m256i max = _mm256_setzero_si256(), magnitude = _mm256_set1_epi32(0x7fffffff);
    for (int i = 0; i < n; i += 8) {
        __m256i bits = _mm256_castps_si256(_mm256_loadu_ps(x + i));
        max = _mm256_max_epu32(max, _mm256_and_si256(bits, magnitude));
    }
    __m128i m = _mm_max_epu32(_mm256_castsi256_si128(max), _mm256_extracti128_si256(max, 1));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(m);
}

/* False, with *d set, for a block that is all zero: too small, or not finite. */
static inline bool choose_scale(const float *x, int n, float *d, float *id) {
    uint32_t bits = largest_bits(x, n);
    float amax = fwd_bits_f32(bits);
    if (bits >= 0x7f800000u) {
        *d = fwd_bits_f32(0x7fc00000u);
        return false;
    }
    if (amax < 0x1p-100f) {
        *d = 0.0f;
        return false;
    }
    *d = amax / 127.0f;
    *id = 127.0f / amax;
    return true;
}

/* |x * id| rounds to 127 at most (amax * (127 / amax) is 127 within 2 ulp), so that no cut is needed before packing. */
static inline __m256i quantise_8(const float *x, __m256 id) {
    return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), id));
}

/* 32 codes in order. */
static inline __m256i quantise_32(const float *x, __m256 id) {
    __m256i low = _mm256_packs_epi32(quantise_8(x, id), quantise_8(x + 8, id));
    __m256i high = _mm256_packs_epi32(quantise_8(x + 16, id), quantise_8(x + 24, id));
    __m256i mixed = _mm256_packs_epi16(low, high);
    return _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/* Sums of the 16 codes of each half, in the two int32 at places 0 and 4. */
static inline __m256i sum_halves(__m256i codes) {
    __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes);
    __m256i sum = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    sum = _mm256_add_epi32(sum, _mm256_shuffle_epi32(sum, 0x4e));
    return _mm256_add_epi32(sum, _mm256_shuffle_epi32(sum, 0xb1));
}

void act_quant_k_avx2(const float *x, struct fwd_q8_k *out, int64_t n) {
    for (int64_t b = 0; b < n / 256; b++, x += 256, out++) {
        float id;
        if (!choose_scale(x, 256, &out->d, &id)) {
            memset(out->q, 0, sizeof out->q);
            memset(out->sum16, 0, sizeof out->sum16);
            continue;
        }
        for (int i = 0; i < 8; i++) {
            __m256i codes = quantise_32(x + 32 * i, _mm256_set1_ps(id)), sums = sum_halves(codes);
            _mm256_storeu_si256((__m256i *)(void *)(out->q + 32 * i), codes);
            out->sum16[2 * i] = (int16_t)_mm256_extract_epi32(sums, 0);
            out->sum16[2 * i + 1] = (int16_t)_mm256_extract_epi32(sums, 4);
        }
    }
}

void act_quant_32_avx2(const float *x, struct fwd_q8_32 *out, int64_t n) {
    for (int64_t b = 0; b < n / 32; b++, x += 32, out++) {
        float id;
        if (!choose_scale(x, 32, &out->d, &id)) {
            memset(out->q, 0, sizeof out->q);
            out->sum = 0;
            continue;
        }
        __m256i codes = quantise_32(x, _mm256_set1_ps(id)), sums = sum_halves(codes);
        _mm256_storeu_si256((__m256i *)(void *)out->q, codes);
        out->sum = _mm256_extract_epi32(sums, 0) + _mm256_extract_epi32(sums, 4);
    }
}
