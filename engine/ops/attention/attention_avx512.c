/* engine/ops/attention/attention_avx512.c: scores of 4 keys x up to 4 heads at a time, so that one widened key serves
 * all heads and the lane sums of four keys share their shuffles; values in chunks of 64 dimensions x up to 4 heads. */
#include "ops/attention/attention.h"

#include "ops/expf/expf_avx512.h"

attention_fn attention_avx512;

#define ALWAYS static inline __attribute__((always_inline))
/* Trip counts are constants after inlining; unrolled, the accumulators live in registers. */
#define UNROLL _Pragma("GCC unroll 4")

ALWAYS __m512 load_16(const uint8_t *row, bool half, int d) {
    if (half)
        return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(row + 2 * d)));
    return _mm512_loadu_ps((const float *)(const void *)row + d);
}

/* The canonical tree over four sums of 16 lanes at once; the results in lanes 0, 4, 8, 12. */
ALWAYS __m512 add_lanes_4(__m512 a, __m512 b, __m512 c, __m512 d) {
    __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
    __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xEE));
    __m512 s = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xDD));
    s = _mm512_add_ps(s, _mm512_permute_ps(s, 0x4E));
    return _mm512_add_ps(s, _mm512_permute_ps(s, 0xB1));
}

ALWAYS float add_lanes(__m512 a) {
    return _mm512_cvtss_f32(add_lanes_4(a, a, a, a));
}

/* Scores of keys j .. j+3 (the last ones repeated where there are fewer) for all heads. */
ALWAYS void score_4(const struct fwd_attention_unit *u, const uint8_t *k, int n_left, int n_heads, bool half,
                    float *p) {
    const uint8_t *row[4];
    UNROLL
    for (int j = 0; j < 4; j++)
        row[j] = k + (j < n_left ? j : n_left - 1) * u->stride_k;
    __m512 acc[FWD_ATTENTION_HEADS][4];
    UNROLL
    for (int h = 0; h < n_heads; h++)
        UNROLL
    for (int j = 0; j < 4; j++)
        acc[h][j] = _mm512_setzero_ps();
    for (int d = 0; d < u->head_dim; d += 16) {
        __m512 key[4];
        UNROLL
        for (int j = 0; j < 4; j++)
            key[j] = load_16(row[j], half, d);
        UNROLL
        for (int h = 0; h < n_heads; h++) {
            __m512 q = _mm512_loadu_ps(u->q[h] + d);
            UNROLL
            for (int j = 0; j < 4; j++)
                acc[h][j] = _mm512_fmadd_ps(q, key[j], acc[h][j]);
        }
    }
    const __m512i pick = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    UNROLL
    for (int h = 0; h < n_heads; h++) {
        __m512 s = add_lanes_4(acc[h][0], acc[h][1], acc[h][2], acc[h][3]);
        s = _mm512_mul_ps(_mm512_permutexvar_ps(pick, s), _mm512_set1_ps(u->scale));
        _mm_storeu_ps(p + h * FWD_ATTENTION_SEGMENT, _mm512_castps512_ps128(s));
    }
}

/* Scores to probabilities in place. */
ALWAYS struct fwd_attention_state soften(float *p, int n) {
    __m512 top = _mm512_set1_ps(-INFINITY);
    for (int j = 0; j < n; j += 16) {
        __mmask16 m = lanes_16(n - j);
        top = _mm512_max_ps(_mm512_mask_loadu_ps(top, m, p + j), top); /* NaN in the first operand: the second */
    }
    struct fwd_attention_state s = {.max = _mm512_reduce_max_ps(top)};
    __m512 max = _mm512_set1_ps(s.max), sum = _mm512_setzero_ps();
    for (int j = 0; j < n; j += 16) {
        __mmask16 m = lanes_16(n - j);
        __m512 e = expf_16(_mm512_sub_ps(_mm512_maskz_loadu_ps(m, p + j), max));
        sum = _mm512_mask_add_ps(sum, m, sum, e);
        _mm512_mask_storeu_ps(p + j, m, e);
    }
    s.sum = add_lanes(sum);
    return s;
}

/* o[h][d .. d + 16 n_chunks) = sum_j p_j v_j. */
ALWAYS void weigh(const struct fwd_attention_unit *u, const uint8_t *v, int n, int n_heads, bool half, int d,
                  int n_chunks, const float *p, float *const *o) {
    __m512 acc[FWD_ATTENTION_HEADS][4];
    UNROLL
    for (int h = 0; h < n_heads; h++)
        UNROLL
    for (int c = 0; c < n_chunks; c++)
        acc[h][c] = _mm512_setzero_ps();
    for (int j = 0; j < n; j++, v += u->stride_v) {
        __m512 value[4];
        UNROLL
        for (int c = 0; c < n_chunks; c++)
            value[c] = load_16(v, half, d + 16 * c);
        UNROLL
        for (int h = 0; h < n_heads; h++) {
            __m512 w = _mm512_set1_ps(p[h * FWD_ATTENTION_SEGMENT + j]);
            UNROLL
            for (int c = 0; c < n_chunks; c++)
                acc[h][c] = _mm512_fmadd_ps(w, value[c], acc[h][c]);
        }
    }
    UNROLL
    for (int h = 0; h < n_heads; h++)
        UNROLL
    for (int c = 0; c < n_chunks; c++)
        _mm512_storeu_ps(o[h] + d + 16 * c, acc[h][c]);
}

ALWAYS void run_segment(const struct fwd_attention_unit *u, int key0, int n, int n_heads, bool half, float *const *o,
                        struct fwd_attention_state *state) {
    const uint8_t *k = (const uint8_t *)u->k + key0 * u->stride_k;
    const uint8_t *v = (const uint8_t *)u->v + key0 * u->stride_v;
    float *p = u->scratch;
    for (int j = 0; j < n; j += 4)
        score_4(u, k + j * u->stride_k, n - j, n_heads, half, p + j);
    UNROLL
    for (int h = 0; h < n_heads; h++)
        state[h] = soften(p + h * FWD_ATTENTION_SEGMENT, n);
    int d = 0;
    for (; d + 64 <= u->head_dim; d += 64)
        weigh(u, v, n, n_heads, half, d, 4, p, o);
    for (; d < u->head_dim; d += 16)
        weigh(u, v, n, n_heads, half, d, 1, p, o);
}

ALWAYS void run_unit(const struct fwd_attention_unit *u, int n_heads, bool half) {
    struct fwd_attention_state state[FWD_ATTENTION_HEADS], s[FWD_ATTENTION_HEADS];
    float *part[FWD_ATTENTION_HEADS];
    UNROLL
    for (int h = 0; h < n_heads; h++)
        part[h] = u->scratch + FWD_ATTENTION_HEADS * FWD_ATTENTION_SEGMENT + h * u->head_dim;
    for (int key0 = 0; key0 < u->n_keys; key0 += FWD_ATTENTION_SEGMENT) {
        int n = u->n_keys - key0 < FWD_ATTENTION_SEGMENT ? u->n_keys - key0 : FWD_ATTENTION_SEGMENT;
        run_segment(u, key0, n, n_heads, half, key0 ? part : u->o, key0 ? s : state);
        for (int h = 0; key0 && h < n_heads; h++) {
            float a, b;
            fwd_attention_join(&state[h], s[h].max, s[h].sum, &a, &b);
            for (int d = 0; d < u->head_dim; d += 16) {
                __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(part[h] + d), _mm512_set1_ps(b));
                __m512 joined = _mm512_fmadd_ps(_mm512_loadu_ps(u->o[h] + d), _mm512_set1_ps(a), scaled);
                _mm512_storeu_ps(u->o[h] + d, joined);
            }
        }
    }
    UNROLL
    for (int h = 0; h < n_heads; h++)
        for (int d = 0; d < u->head_dim; d += 16)
            _mm512_storeu_ps(u->o[h] + d, _mm512_div_ps(_mm512_loadu_ps(u->o[h] + d), _mm512_set1_ps(state[h].sum)));
}

/* n_heads and the type become constants, so that the accumulators stay in registers. */
ALWAYS void run_typed(const struct fwd_attention_unit *u, bool half) {
    switch (u->n_heads) {
    case 1:
        run_unit(u, 1, half);
        break;
    case 2:
        run_unit(u, 2, half);
        break;
    case 3:
        run_unit(u, 3, half);
        break;
    default:
        run_unit(u, 4, half);
        break;
    }
}

void attention_avx512(const struct fwd_attention_unit *u) {
    if (u->kv_type == FWD_F16)
        run_typed(u, true);
    else
        run_typed(u, false);
}
