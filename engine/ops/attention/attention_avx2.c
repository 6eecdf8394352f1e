/* engine/ops/attention/attention_avx2.c: a sum of 16 lanes is a pair of registers (lanes 0-7, 8-15). Scores four dots
 * at a time (two heads x two keys, or one head x four keys), values two heads x 32 dimensions. */
#include "ops/attention/attention.h"

#include "ops/expf/expf_avx2.h"

#include <string.h>

attention_fn attention_avx2;

#define ALWAYS static inline __attribute__((always_inline))
/* Trip counts are constants after inlining; unrolled, the accumulators live in registers. */
#define UNROLL _Pragma("GCC unroll 4")

ALWAYS __m256 load_8(const uint8_t *row, bool half, int d) {
    if (half)
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(row + 2 * d)));
    return _mm256_loadu_ps((const float *)(const void *)row + d);
}

/* The canonical tree over four sums of 16 lanes; lanes 0-7 in lo, 8-15 in hi. */
ALWAYS void add_lanes_4(const __m256 lo[4], const __m256 hi[4], float out[4]) {
    __m256 a = _mm256_add_ps(lo[0], hi[0]), b = _mm256_add_ps(lo[1], hi[1]);
    __m256 c = _mm256_add_ps(lo[2], hi[2]), d = _mm256_add_ps(lo[3], hi[3]);
    __m256 ab = _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
    __m256 cd = _mm256_add_ps(_mm256_permute2f128_ps(c, d, 0x20), _mm256_permute2f128_ps(c, d, 0x31));
    ab = _mm256_add_ps(ab, _mm256_permute_ps(ab, 0x4E));
    cd = _mm256_add_ps(cd, _mm256_permute_ps(cd, 0x4E));
    ab = _mm256_add_ps(ab, _mm256_permute_ps(ab, 0xB1));
    cd = _mm256_add_ps(cd, _mm256_permute_ps(cd, 0xB1));
    out[0] = _mm256_cvtss_f32(ab);
    out[1] = _mm_cvtss_f32(_mm256_extractf128_ps(ab, 1));
    out[2] = _mm256_cvtss_f32(cd);
    out[3] = _mm_cvtss_f32(_mm256_extractf128_ps(cd, 1));
}

/* n_heads x n_keys == 4 dots; row[i] of a missing key repeats the last one. */
ALWAYS void score_4(const float *const *q, const uint8_t *const *row, int head_dim, int n_heads, int n_keys, bool half,
                    float out[4]) {
    __m256 lo[4], hi[4];
    UNROLL
    for (int i = 0; i < 4; i++)
        lo[i] = hi[i] = _mm256_setzero_ps();
    for (int d = 0; d < head_dim; d += 16) {
        UNROLL
        for (int j = 0; j < n_keys; j++) {
            __m256 key_lo = load_8(row[j], half, d), key_hi = load_8(row[j], half, d + 8);
            UNROLL
            for (int h = 0; h < n_heads; h++) {
                int i = h * n_keys + j;
                lo[i] = _mm256_fmadd_ps(_mm256_loadu_ps(q[h] + d), key_lo, lo[i]);
                hi[i] = _mm256_fmadd_ps(_mm256_loadu_ps(q[h] + d + 8), key_hi, hi[i]);
            }
        }
    }
    add_lanes_4(lo, hi, out);
}

/* Scores of one or two heads for all n keys of a segment. */
ALWAYS void score(const struct fwd_attention_unit *u, const uint8_t *k, int n, int head, int n_heads, bool half,
                  float *p) {
    int n_keys = 4 / n_heads;
    for (int j = 0; j < n; j += n_keys) {
        const uint8_t *row[4];
        float out[4];
        for (int i = 0; i < n_keys; i++)
            row[i] = k + (j + i < n ? j + i : n - 1) * u->stride_k;
        score_4(u->q + head, row, u->head_dim, n_heads, n_keys, half, out);
        for (int h = 0; h < n_heads; h++)
            for (int i = 0; i < n_keys; i++)
                p[(head + h) * FWD_ATTENTION_SEGMENT + j + i] = out[h * n_keys + i] * u->scale;
    }
}

/* Scores to probabilities in place. p has room for whole groups of 16; those behind n become 0. */
ALWAYS struct fwd_attention_state soften(float *p, int n) {
    int whole = (n + 15) / 16 * 16;
    for (int j = n; j < whole; j++)
        p[j] = -INFINITY;
    __m256 top = _mm256_set1_ps(-INFINITY);
    for (int j = 0; j < whole; j += 8)
        top = _mm256_max_ps(_mm256_loadu_ps(p + j), top); /* NaN in the first operand: the second */
    float lane[8];
    _mm256_storeu_ps(lane, top);
    struct fwd_attention_state s = {.max = lane[0]};
    for (int l = 1; l < 8; l++)
        s.max = lane[l] > s.max ? lane[l] : s.max;
    __m256 max = _mm256_set1_ps(s.max), lo[4], hi[4];
    for (int i = 0; i < 4; i++)
        lo[i] = hi[i] = _mm256_setzero_ps();
    for (int j = 0; j < whole; j += 16) {
        __m256 a = expf_8(_mm256_sub_ps(_mm256_loadu_ps(p + j), max));
        __m256 b = expf_8(_mm256_sub_ps(_mm256_loadu_ps(p + j + 8), max));
        _mm256_storeu_ps(p + j, a);
        _mm256_storeu_ps(p + j + 8, b);
        if (j + 16 > n) { /* -inf - max is no 0 when max is infinite: the filling must not count */
            memset(p + n, 0, (size_t)(whole - n) * sizeof *p);
            a = _mm256_loadu_ps(p + j);
            b = _mm256_loadu_ps(p + j + 8);
        }
        lo[0] = _mm256_add_ps(lo[0], a);
        hi[0] = _mm256_add_ps(hi[0], b);
    }
    float sums[4];
    add_lanes_4(lo, hi, sums);
    s.sum = sums[0];
    return s;
}

/* o[h][d .. d + 8 n_chunks) = sum_j p_j v_j for one or two heads. */
ALWAYS void weigh(const struct fwd_attention_unit *u, const uint8_t *v, int n, int head, int n_heads, bool half, int d,
                  int n_chunks, const float *p, float *const *o) {
    __m256 acc[2][4];
    UNROLL
    for (int h = 0; h < n_heads; h++)
        UNROLL
    for (int c = 0; c < n_chunks; c++)
        acc[h][c] = _mm256_setzero_ps();
    for (int j = 0; j < n; j++, v += u->stride_v) {
        __m256 value[4];
        UNROLL
        for (int c = 0; c < n_chunks; c++)
            value[c] = load_8(v, half, d + 8 * c);
        UNROLL
        for (int h = 0; h < n_heads; h++) {
            __m256 w = _mm256_set1_ps(p[(head + h) * FWD_ATTENTION_SEGMENT + j]);
            UNROLL
            for (int c = 0; c < n_chunks; c++)
                acc[h][c] = _mm256_fmadd_ps(w, value[c], acc[h][c]);
        }
    }
    UNROLL
    for (int h = 0; h < n_heads; h++)
        UNROLL
    for (int c = 0; c < n_chunks; c++)
        _mm256_storeu_ps(o[head + h] + d + 8 * c, acc[h][c]);
}

ALWAYS void run_heads(const struct fwd_attention_unit *u, int key0, int n, int head, int n_heads, bool half,
                      float *const *o, struct fwd_attention_state *state) {
    const uint8_t *v = (const uint8_t *)u->v + key0 * u->stride_v;
    float *p = u->scratch;
    score(u, (const uint8_t *)u->k + key0 * u->stride_k, n, head, n_heads, half, p);
    for (int h = head; h < head + n_heads; h++)
        state[h] = soften(p + h * FWD_ATTENTION_SEGMENT, n);
    int d = 0;
    for (; d + 32 <= u->head_dim; d += 32)
        weigh(u, v, n, head, n_heads, half, d, 4, p, o);
    for (; d < u->head_dim; d += 16)
        weigh(u, v, n, head, n_heads, half, d, 2, p, o);
}

static void join(const struct fwd_attention_unit *u, int h, const float *part, struct fwd_attention_state *state,
                 struct fwd_attention_state s) {
    float a, b;
    fwd_attention_join(state, s.max, s.sum, &a, &b);
    for (int d = 0; d < u->head_dim; d += 8) {
        __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(part + d), _mm256_set1_ps(b));
        __m256 joined = _mm256_fmadd_ps(_mm256_loadu_ps(u->o[h] + d), _mm256_set1_ps(a), scaled);
        _mm256_storeu_ps(u->o[h] + d, joined);
    }
}

ALWAYS void run_unit(const struct fwd_attention_unit *u, bool half) {
    struct fwd_attention_state state[FWD_ATTENTION_HEADS], s[FWD_ATTENTION_HEADS];
    float *part[FWD_ATTENTION_HEADS];
    for (int h = 0; h < FWD_ATTENTION_HEADS; h++)
        part[h] = u->scratch + FWD_ATTENTION_HEADS * FWD_ATTENTION_SEGMENT + h * u->head_dim;
    for (int key0 = 0; key0 < u->n_keys; key0 += FWD_ATTENTION_SEGMENT) {
        int n = u->n_keys - key0 < FWD_ATTENTION_SEGMENT ? u->n_keys - key0 : FWD_ATTENTION_SEGMENT;
        int head = 0;
        for (; head + 2 <= u->n_heads; head += 2)
            run_heads(u, key0, n, head, 2, half, key0 ? part : u->o, key0 ? s : state);
        if (head < u->n_heads)
            run_heads(u, key0, n, head, 1, half, key0 ? part : u->o, key0 ? s : state);
        for (int h = 0; key0 && h < u->n_heads; h++)
            join(u, h, part[h], &state[h], s[h]);
    }
    for (int h = 0; h < u->n_heads; h++)
        for (int d = 0; d < u->head_dim; d += 8)
            _mm256_storeu_ps(u->o[h] + d, _mm256_div_ps(_mm256_loadu_ps(u->o[h] + d), _mm256_set1_ps(state[h].sum)));
}

void attention_avx2(const struct fwd_attention_unit *u) {
    if (u->kv_type == FWD_F16)
        run_unit(u, true);
    else
        run_unit(u, false);
}
