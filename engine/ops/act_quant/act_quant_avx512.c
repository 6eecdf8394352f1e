/* engine/ops/act_quant/act_quant_avx512.c: the rule of act_quant.h with AVX-512, the same bits as ref. */
#include "core/half.h"
#include "ops/act_quant/act_quant.h"

#include <immintrin.h>
#include <stdbool.h>
#include <string.h>

act_quant_k_fn act_quant_k_avx512;
act_quant_32_fn act_quant_32_avx512;

/* As the bits of non-negative floats order as their values do, and those of an infinity or a NaN lie above all finite
 * ones, one integer maximum finds the largest |x| and whether all are finite. */
static inline bool choose_scale(const float *x, int n, float *d, float *id) {
    __m512i max = _mm512_setzero_si512(), magnitude = _mm512_set1_epi32(0x7fffffff);
    for (int i = 0; i < n; i += 16)
        max = _mm512_max_epu32(max, _mm512_and_si512(_mm512_loadu_si512(x + i), magnitude));
    uint32_t bits = _mm512_reduce_max_epu32(max);
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

/* 16 codes. |x * id| rounds to 127 at most (amax * (127 / amax) is 127 within 2 ulp): no cut is needed. */
static inline __m128i quantise_16(const float *x, __m512 id) {
    return _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), id)));
}

static inline int sum_16(__m128i codes) {
    __m128i sum = _mm_dpbusd_epi32(_mm_setzero_si128(), _mm_set1_epi8(1), codes);
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}

void act_quant_k_avx512(const float *x, struct fwd_q8_k *out, int64_t n) {
    for (int64_t b = 0; b < n / 256; b++, x += 256, out++) {
        float id;
        if (!choose_scale(x, 256, &out->d, &id)) {
            memset(out->q, 0, sizeof out->q);
            memset(out->sum16, 0, sizeof out->sum16);
            continue;
        }
        for (int i = 0; i < 16; i++) {
            __m128i codes = quantise_16(x + 16 * i, _mm512_set1_ps(id));
            _mm_storeu_si128((__m128i *)(void *)(out->q + 16 * i), codes);
            out->sum16[i] = (int16_t)sum_16(codes);
        }
    }
}

void act_quant_32_avx512(const float *x, struct fwd_q8_32 *out, int64_t n) {
    for (int64_t b = 0; b < n / 32; b++, x += 32, out++) {
        float id;
        if (!choose_scale(x, 32, &out->d, &id)) {
            memset(out->q, 0, sizeof out->q);
            out->sum = 0;
            continue;
        }
        __m128i low = quantise_16(x, _mm512_set1_ps(id)), high = quantise_16(x + 16, _mm512_set1_ps(id));
        _mm_storeu_si128((__m128i *)(void *)out->q, low);
        _mm_storeu_si128((__m128i *)(void *)(out->q + 16), high);
        out->sum = sum_16(low) + sum_16(high);
    }
}
