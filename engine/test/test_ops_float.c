/* The float ops of the production path: every variant against ref with memcmp, ref against its formula in double within
 * the bound that its declaration implies, on awkward shapes and values. */
#include "core/cpu.h"
#include "core/half.h"
#include "core/memory.h"
#include "model/kv_cache.h"
#include "ops/add/add.h"
#include "ops/attention/attention.h"
#include "ops/expf/expf.h"
#include "ops/rmsnorm/rmsnorm.h"
#include "ops/rope/rope.h"
#include "ops/swiglu/swiglu.h"
#include "ops/variant_table.h"
#include "test/float_data.h"

#include <check.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define U 0x1p-24 /* F32 unit roundoff */

/* The i-th variant of op that this machine runs and that is not ref; NULL past the end. */
static const struct fwd_variant *nth_variant(const char *op, int i) {
    unsigned caps = fwd_cpu_detect();
    const struct fwd_variant *row;
    for (int j = 0; (row = fwd_variant_row(j)) != NULL; j++)
        if (!strcmp(row->op, op) && strcmp(row->variant, "ref") != 0 && !(row->needs & ~caps) && i-- == 0)
            return row;
    return NULL;
}

/* ---- expf -------------------------------------------------------------------------------------------------------- */

START_TEST(test_expf) {
    uint32_t last = fwd_f32_bits(FWD_EXPF_MIN);
    double worst = 0.0;
    for (uint32_t bits = 0x80000000u; bits <= last; bits += 61) {
        float x = fwd_bits_f32(bits);
        double exact = exp((double)x);
        int exponent;
        (void)frexp(exact, &exponent);
        worst = fmax(worst, fabs((double)fwd_expf(x) - exact) / ldexp(1.0, exponent - 24));
    }
    ck_assert_msg(worst <= (double)FWD_EXPF_ULP && worst > 0.5, "worst error %.4f ulp, declared %.2f", worst,
                  (double)FWD_EXPF_ULP);
    ck_assert(fwd_expf(-0.0f) == 1.0f && fwd_expf(0.0f) == 1.0f);
    ck_assert(fwd_expf(FWD_EXPF_MIN) >= 0x1p-126f);
    ck_assert(fwd_expf(nextafterf(FWD_EXPF_MIN, -INFINITY)) == 0.0f);
    ck_assert(fwd_expf(-INFINITY) == 0.0f && fwd_expf(-12405.0f) == 0.0f && isnan(fwd_expf(NAN)));
}
END_TEST

/* ---- swiglu ------------------------------------------------------------------------------------------------------ */

static void check_swiglu(const float *g, const float *u, int64_t n) {
    float *expected = new_floats(n), *got = new_floats(n + 16);
    swiglu_fn *ref = (swiglu_fn *)fwd_variant_find("swiglu", "ref")->fn;
    ref(g, u, expected, n);
    for (int64_t i = 0; i < n; i++) {
        double exact = (double)g[i] / (1.0 + exp(-(double)g[i])) * (double)u[i];
        double bound = ((double)FWD_EXPF_ULP * 2.0 + 4.0) * U * fabs(exact) +
                       fabs((double)g[i] * (double)u[i]) * 0x1p-126 + (fabs((double)u[i]) + 1.0) * 0x1p-149;
        ck_assert_msg(!(fabs(exact) < 3.4e38) || fabs((double)expected[i] - exact) <= bound,
                      "silu(%a) * %a: got %a, exact %a", (double)g[i], (double)u[i], (double)expected[i], exact);
    }
    const struct fwd_variant *row;
    for (int v = 0; (row = nth_variant("swiglu", v)) != NULL; v++) {
        memset(got, 0x88, (size_t)(n + 16) * sizeof *got);
        ((swiglu_fn *)row->fn)(g, u, got, n);
        ck_assert_msg(same_floats(expected, got, n), "swiglu %s differs from ref, n = %lld", row->variant,
                      (long long)n);
        for (int i = 0; i < 16; i++)
            ck_assert_uint_eq(fwd_f32_bits(got[n + i]), 0x88888888u);
    }
    fwd_free(expected);
    fwd_free(got);
}

START_TEST(test_swiglu) {
    float g[300], u[300];
    for (int kind = 0; kind < N_KINDS; kind++)
        for (int n = 1; n <= 40; n++) {
            fill(g, n, (enum kind)kind, 1u + (unsigned)n);
            fill(u, n, NORMAL, 77u + (unsigned)n);
            check_swiglu(g, u, n);
        }
    for (int i = 0; i < 300; i++) { /* through the exponential's whole range, both signs */
        g[i] = (float)(i - 150) * 0.83f;
        u[i] = 1.0f + (float)i;
    }
    check_swiglu(g, u, 300);
    const float special[] = {0.0f,       -0.0f, INFINITY, -INFINITY, NAN,    0x1p-149f,
                             -0x1p-149f, 3e38f, -3e38f,   -87.33f,   -87.34f};
    check_swiglu(special, u, sizeof special / sizeof *special);
}
END_TEST

/* ---- rmsnorm ----------------------------------------------------------------------------------------------------- */

START_TEST(test_rmsnorm) {
    static const int sizes[] = {1, 2, 7, 9, 31, 64, 255, 256, 257, 295, 576, 1536, 3584, 4099};
    int n = sizes[_i];
    float *x = new_floats(n), *w = new_floats(n), *expected = new_floats(n), *got = new_floats(n + 16);
    rmsnorm_fn *ref = (rmsnorm_fn *)fwd_variant_find("rmsnorm", "ref")->fn;
    for (int kind = 0; kind < N_KINDS; kind++) {
        const float eps = 1e-6f;
        fill(x, n, (enum kind)kind, (unsigned)n);
        fill(w, n, OUTLIERS, 5u + (unsigned)n);
        ref(x, w, expected, n, eps);
        long double sum = 0.0L;
        for (int i = 0; i < n; i++)
            sum += (long double)x[i] * (long double)x[i];
        long double scale = 1.0L / sqrtl(sum / n + (long double)eps);
        for (int i = 0; i < n; i++) {
            double exact = (double)((long double)x[i] * scale * (long double)w[i]);
            double bound = 3.001 * U * fabs(exact) + 0x1p-149 * (1.0 + fabs((double)w[i]));
            ck_assert_msg(fabs((double)expected[i] - exact) <= bound, "n %d kind %d element %d: got %a, exact %a", n,
                          kind, i, (double)expected[i], exact);
        }
        const struct fwd_variant *row;
        for (int v = 0; (row = nth_variant("rmsnorm", v)) != NULL; v++) {
            memset(got, 0x88, (size_t)(n + 16) * sizeof *got);
            ((rmsnorm_fn *)row->fn)(x, w, got, n, eps);
            ck_assert_msg(same_floats(expected, got, n), "rmsnorm %s differs from ref: n %d kind %d", row->variant, n,
                          kind);
            for (int i = 0; i < 16; i++)
                ck_assert_uint_eq(fwd_f32_bits(got[n + i]), 0x88888888u);
        }
    }
    fwd_free(x);
    fwd_free(w);
    fwd_free(expected);
    fwd_free(got);
}
END_TEST

/* ---- rope -------------------------------------------------------------------------------------------------------- */

static void check_turn(const struct fwd_config *c, int pos, const float *turn) {
    for (int i = 0; i < c->n_rope / 2; i++) {
        long double f = powl((long double)c->rope_theta, -2.0L * i / c->n_rope);
        long double angle = (long double)pos * f / (c->rope_factors ? (long double)c->rope_factors[i] : 1.0L);
        long double exact[2] = {cosl(angle), sinl(angle)};
        for (int j = 0; j < 2; j++) {
            int exponent;
            (void)frexpl(exact[j], &exponent);
            double bound = 0.501 * ldexp(1.0, exponent - 24) + (double)angle * 0x1p-51;
            ck_assert_msg(fabs((double)(turn[2 * i + j] - exact[j])) <= bound, "position %d pair %d: got %a, exact %a",
                          pos, i, (double)turn[2 * i + j], (double)exact[j]);
        }
    }
}

START_TEST(test_rope_table) {
    float factors[64];
    for (int i = 0; i < 64; i++)
        factors[i] = i < 20 ? 1.0f : 8.0f;
    static const int positions[] = {0, 1, 2, 77, 511, 4095, 8191, 32767};
    struct fwd_config c = {.head_dim = 128, .n_rope = 128};
    float *table = new_floats(128);
    for (int t = 0; t < 4; t++) {
        c.rope_theta = t & 1 ? 1e6 : 1e4;
        c.rope_factors = t & 2 ? factors : NULL;
        for (size_t p = 0; p < sizeof positions / sizeof *positions; p++) {
            fwd_rope_table(&c, positions[p], 1, table);
            check_turn(&c, positions[p], table);
        }
    }
    float *run = new_floats(128 * 3); /* several positions at once are the same rows */
    fwd_rope_table(&c, 32765, 3, run);
    ck_assert(same_floats(run + 256, table, 128));
    fwd_free(table);
    fwd_free(run);
}
END_TEST

START_TEST(test_rope_rotation) {
    enum { HEADS = 3, DIM = 80, ROPE = 64 };
    float x[HEADS * DIM], y[HEADS * DIM], in_place[HEADS * DIM], turn[ROPE];
    struct fwd_config c = {.head_dim = DIM, .n_rope = ROPE, .rope_theta = 1e4};
    rope_fn *ref = (rope_fn *)fwd_variant_find("rope", "ref")->fn;
    fwd_rope_table(&c, 1234, 1, turn);
    enum fwd_rope_pairing pairing = _i ? FWD_ROPE_NEOX : FWD_ROPE_NORM;
    for (int kind = 0; kind < N_KINDS; kind++) {
        fill(x, HEADS * DIM, (enum kind)kind, 9);
        ref(x, y, turn, HEADS, DIM, ROPE, pairing);
        for (int h = 0; h < HEADS; h++) {
            for (int i = 0; i < ROPE / 2; i++) {
                int a = h * DIM + (_i ? i : 2 * i), b = h * DIM + (_i ? i + ROPE / 2 : 2 * i + 1);
                double cs = (double)turn[2 * i], sn = (double)turn[2 * i + 1], xa = (double)x[a], xb = (double)x[b];
                double bound = 2.0 * U * (fabs(xa * cs) + fabs(xb * sn)) + 0x1p-148;
                ck_assert(fabs((double)y[a] - (xa * cs - xb * sn)) <= bound);
                bound = 2.0 * U * (fabs(xa * sn) + fabs(xb * cs)) + 0x1p-148;
                ck_assert(fabs((double)y[b] - (xa * sn + xb * cs)) <= bound);
            }
            ck_assert(same_floats(x + h * DIM + ROPE, y + h * DIM + ROPE, DIM - ROPE));
        }
        memcpy(in_place, x, sizeof x);
        ref(in_place, in_place, turn, HEADS, DIM, ROPE, pairing);
        ck_assert(same_floats(in_place, y, HEADS * DIM));
    }
}
END_TEST

/* ---- attention --------------------------------------------------------------------------------------------------- */

struct shape {
    int n_heads, head_dim, n_keys;
    enum fwd_dtype type;
};
static const struct shape shapes[] = {
    {1, 64, 1, FWD_F16},    {1, 64, 2, FWD_F32},    {3, 64, 17, FWD_F16},  {4, 128, 255, FWD_F16},
    {3, 128, 256, FWD_F16}, {3, 128, 257, FWD_F16}, {4, 80, 513, FWD_F16}, {2, 96, 300, FWD_F32},
    {3, 128, 777, FWD_F16}, {1, 16, 259, FWD_F16},  {2, 112, 5, FWD_F16},  {4, 128, 1030, FWD_F32},
    {2, 100, 270, FWD_F16}, {1, 3, 9, FWD_F32},     {4, 256, 31, FWD_F16}, {1, 128, 512, FWD_F32},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

struct attention_case {
    struct fwd_attention_unit unit;
    float *q, *k, *v; /* k, v as attention reads them, widened */
    void *k_rows, *v_rows;
};

static void *new_rows(const float *x, int64_t n_rows, int64_t n, int64_t stride_values, enum fwd_dtype type) {
    size_t value = type == FWD_F16 ? 2 : 4;
    uint8_t *rows = fwd_alloc((size_t)(n_rows * stride_values), value);
    ck_assert_ptr_nonnull(rows);
    memset(rows, 0xff, (size_t)(n_rows * stride_values) * value); /* NaN between rows: must never be read */
    for (int64_t r = 0; r < n_rows; r++)
        for (int64_t i = 0; i < n; i++) {
            uint16_t h = fwd_f32_to_f16(x[r * n + i]);
            uint8_t *at = rows + (size_t)(r * stride_values + i) * value;
            memcpy(at, type == FWD_F16 ? (const void *)&h : (const void *)&x[r * n + i], value);
        }
    return rows;
}

static struct attention_case new_case(const struct shape *s, enum kind kind, float gain, unsigned seed) {
    int64_t n = s->head_dim, value = s->type == FWD_F16 ? 2 : 4, stride = n + 16;
    struct attention_case c = {
        .q = new_floats(n * s->n_heads), .k = new_floats(n * s->n_keys), .v = new_floats(n * s->n_keys)};
    fill(c.q, n * s->n_heads, kind, seed);
    fill(c.k, n * s->n_keys, kind, seed + 1);
    fill(c.v, n * s->n_keys, kind == MASSIVE_FIRST ? NORMAL : kind, seed + 2);
    for (int64_t i = 0; i < n * s->n_heads; i++)
        c.q[i] *= gain;
    for (int64_t i = 0; s->type == FWD_F16 && i < n * s->n_keys; i++) {
        c.k[i] = fwd_f16_to_f32(fwd_f32_to_f16(c.k[i]));
        c.v[i] = fwd_f16_to_f32(fwd_f32_to_f16(c.v[i]));
    }
    c.k_rows = new_rows(c.k, s->n_keys, n, stride, s->type);
    c.v_rows = new_rows(c.v, s->n_keys, n, stride, s->type);
    c.unit = (struct fwd_attention_unit){.n_heads = s->n_heads,
                                         .k = c.k_rows,
                                         .v = c.v_rows,
                                         .stride_k = stride * value,
                                         .stride_v = stride * value,
                                         .kv_type = s->type,
                                         .n_keys = s->n_keys,
                                         .head_dim = s->head_dim,
                                         .scale = 1.0f / sqrtf((float)s->head_dim),
                                         .scratch = new_floats((int64_t)fwd_attention_scratch(s->head_dim))};
    for (int h = 0; h < s->n_heads; h++)
        c.unit.q[h] = c.q + h * n;
    return c;
}

static void free_case(struct attention_case *c) {
    fwd_free(c->q);
    fwd_free(c->k);
    fwd_free(c->v);
    fwd_free(c->k_rows);
    fwd_free(c->v_rows);
    fwd_free(c->unit.scratch);
}

static void run_kernel(struct attention_case *c, attention_fn *kernel, float *out) {
    for (int h = 0; h < c->unit.n_heads; h++)
        c->unit.o[h] = out + h * c->unit.head_dim;
    kernel(&c->unit);
}

/* One head against the formula in double, numerics.md section 2 with worst-case chains. */
static void check_head(const struct attention_case *c, int h, const float *got) {
    const struct fwd_attention_unit *u = &c->unit;
    int n = u->head_dim;
    double *p = fwd_alloc((size_t)u->n_keys, sizeof *p), *e = fwd_alloc((size_t)u->n_keys, sizeof *e);
    ck_assert(p && e);
    double max = -INFINITY, sum = 0.0, pe = 0.0, worst_e = 0.0;
    for (int j = 0; j < u->n_keys; j++) {
        double dot = 0.0, size = 0.0;
        for (int d = 0; d < n; d++) {
            double t = (double)c->q[h * n + d] * (double)c->k[j * n + d];
            dot += t;
            size += fabs(t);
        }
        double chain = (n + 15) / 16 + 4; /* steps of a lane and the tree */
        p[j] = dot / sqrt(n);
        e[j] = (chain * size / sqrt(n) + 3.0 * fabs(p[j])) * U;
        max = fmax(max, p[j]);
        worst_e = fmin(fmax(worst_e, e[j]), 300.0); /* exp(600): any larger allows everything anyway */
    }
    for (int j = 0; j < u->n_keys; j++) {
        e[j] += fabs(p[j] - max) * 2.0 * U; /* the rounding of score - max */
        p[j] = exp(p[j] - max);
        sum += p[j];
    }
    for (int j = 0; j < u->n_keys; j++) {
        p[j] /= sum;
        pe += p[j] * (worst_e > 0.01 ? expm1(2.0 * worst_e) : e[j]);
    }
    double steps = 256 + 4.0 * ((u->n_keys + 255) / 256) + 2.0 * (double)FWD_EXPF_ULP * 3.0 + 4.0;
    for (int d = 0; d < n; d++) {
        double exact = 0.0, weight = 0.0, moved = 0.0;
        for (int j = 0; j < u->n_keys; j++) {
            double t = p[j] * (double)c->v[j * n + d];
            exact += t;
            weight += fabs(t);
            moved += fabs(t) * (worst_e > 0.01 ? expm1(2.0 * worst_e) : e[j]);
        }
        double bound = moved + pe * fabs(exact) + steps * U * weight + u->n_keys * 0x1p-140;
        ck_assert_msg(fabs((double)got[d] - exact) <= bound, "head %d dimension %d: got %a, exact %a, bound %a", h, d,
                      (double)got[d], exact, bound);
    }
    fwd_free(p);
    fwd_free(e);
}

static void check_attention(const struct shape *s, enum kind kind, float gain, bool has_formula) {
    struct attention_case c = new_case(s, kind, gain, 31u + (unsigned)s->n_keys);
    int64_t n = (int64_t)s->n_heads * s->head_dim;
    float *expected = new_floats(n), *got = new_floats(n + 16);
    run_kernel(&c, (attention_fn *)fwd_variant_find("attention", "ref")->fn, expected);
    for (int h = 0; has_formula && h < s->n_heads; h++)
        check_head(&c, h, expected + h * s->head_dim);
    const struct fwd_variant *row;
    for (int v = 0; (row = nth_variant("attention", v)) != NULL; v++) {
        if (!fwd_attention_serves(row->variant, s->head_dim))
            continue;
        memset(got, 0x88, (size_t)(n + 16) * sizeof *got);
        run_kernel(&c, (attention_fn *)row->fn, got);
        ck_assert_msg(same_floats(expected, got, n), "attention %s differs from ref: %d heads of %d, %d keys, kind %d",
                      row->variant, s->n_heads, s->head_dim, s->n_keys, (int)kind);
        for (int i = 0; i < 16; i++)
            ck_assert_uint_eq(fwd_f32_bits(got[n + i]), 0x88888888u);
    }
    free_case(&c);
    fwd_free(expected);
    fwd_free(got);
}

START_TEST(test_attention) {
    for (int kind = 0; kind < N_KINDS; kind++)
        check_attention(&shapes[_i], (enum kind)kind, 1.0f, true);
}
END_TEST

/* Scores of about +-12,000 (the K bias of Qwen2's first layer does that), and nearly equal ones on top of them. */
START_TEST(test_attention_huge) {
    check_attention(&shapes[_i], NORMAL, 4000.0f, true);
    check_attention(&shapes[_i], MASSIVE_FIRST, 1.0f, true);
}
END_TEST

/* A NaN or infinity in one key or value: all variants say the same, and keys that nobody may read stay unread. */
START_TEST(test_attention_nonfinite) {
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 6; i++) {
        const struct shape s = {3, 64, 270, FWD_F32};
        struct attention_case c = new_case(&s, NORMAL, 1.0f, 5);
        int64_t at = (int64_t)(i % 2 ? 268 : 100) * (s.head_dim + 16) + 7;
        ((float *)(i % 2 ? c.k_rows : c.v_rows))[at] = bad[i / 2];
        float expected[192], got[192];
        run_kernel(&c, (attention_fn *)fwd_variant_find("attention", "ref")->fn, expected);
        int n_nan = 0;
        for (int j = 0; j < 192; j++)
            n_nan += !isfinite(expected[j]);
        ck_assert_int_gt(n_nan + (bad[i / 2] == -INFINITY) * 192, 0);
        const struct fwd_variant *row;
        for (int v = 0; (row = nth_variant("attention", v)) != NULL; v++) {
            run_kernel(&c, (attention_fn *)row->fn, got);
            ck_assert_msg(same_floats(expected, got, 192), "attention %s, case %d", row->variant, i);
        }
        free_case(&c);
    }
}
END_TEST

/* Which head reads what, in how many calls, on how many threads: GQA 7:1 and a map that is no division. */
START_TEST(test_attention_driver) {
    enum { HEADS = 14, KV = 2, DIM = 64, POS = 23 };
    struct fwd_config *c = fwd_calloc(1, sizeof *c);
    ck_assert_ptr_nonnull(c);
    *c = (struct fwd_config){.n_head = HEADS, .n_kv_head = KV, .head_dim = DIM};
    for (int h = 0; h < HEADS; h++)
        c->kv_head_of[h] = _i ? h % KV : h / (HEADS / KV);
    struct fwd_attention_group groups[HEADS];
    int n_groups = fwd_attention_groups(c, groups), n_heads = 0;
    for (int g = 0; g < n_groups; g++)
        n_heads += groups[g].n_heads;
    ck_assert_int_eq(n_heads, HEADS);
    float *q = new_floats(POS * HEADS * DIM), *k = new_floats(POS * KV * DIM), *v = new_floats(POS * KV * DIM);
    float *expected = new_floats(POS * HEADS * DIM), *got = new_floats(POS * HEADS * DIM);
    float *scratch = new_floats(3 * (int64_t)fwd_attention_scratch(DIM));
    fill(q, POS * HEADS * DIM, NORMAL, 1);
    fill(k, POS * KV * DIM, NORMAL, 2);
    fill(v, POS * KV * DIM, OUTLIERS, 3);
    attention_fn *ref = (attention_fn *)fwd_variant_find("attention", "ref")->fn;
    for (int i = 0; i < POS; i++)
        for (int h = 0; h < HEADS; h++) { /* rows [position][kv head][dim] here */
            int64_t kv = (int64_t)c->kv_head_of[h] * DIM, at = ((int64_t)i * HEADS + h) * DIM;
            struct fwd_attention_unit u = {.n_heads = 1,
                                           .q = {q + at},
                                           .o = {expected + at},
                                           .k = k + kv,
                                           .v = v + kv,
                                           .stride_k = KV * DIM * 4,
                                           .stride_v = KV * DIM * 4,
                                           .kv_type = FWD_F32,
                                           .n_keys = i + 1,
                                           .head_dim = DIM,
                                           .scale = 0.125f,
                                           .scratch = scratch};
            ref(&u);
        }
    for (int threads = 1; threads <= 3; threads++) {
        struct fwd_pool *pool;
        ck_assert_int_eq(fwd_pool_create(&pool, threads, NULL), FWD_OK);
        for (int chunk = 1; chunk <= POS; chunk += 5) {
            memset(got, 0, sizeof *got * POS * HEADS * DIM);
            for (int pos0 = 0; pos0 < POS; pos0 += chunk) {
                struct fwd_attention_args args = {.config = c,
                                                  .groups = groups,
                                                  .n_groups = n_groups,
                                                  .q = q + pos0 * HEADS * DIM,
                                                  .o = got + pos0 * HEADS * DIM,
                                                  .k = (const uint8_t *)k,
                                                  .v = (const uint8_t *)v,
                                                  .stride_row_k = KV * DIM * 4,
                                                  .stride_head_k = DIM * 4,
                                                  .stride_row_v = KV * DIM * 4,
                                                  .stride_head_v = DIM * 4,
                                                  .kv_type = FWD_F32,
                                                  .pos0 = pos0,
                                                  .n_pos = POS - pos0 < chunk ? POS - pos0 : chunk,
                                                  .scratch = scratch,
                                                  .pool = pool};
                const struct fwd_variant *row = nth_variant("attention", 0);
                fwd_attention(&args, row ? (attention_fn *)row->fn : ref);
            }
            ck_assert_msg(same_floats(expected, got, POS * HEADS * DIM), "%d threads, chunks of %d", threads, chunk);
        }
        fwd_pool_free(pool);
    }
    fwd_free(c);
    fwd_free(q);
    fwd_free(k);
    fwd_free(v);
    fwd_free(expected);
    fwd_free(got);
    fwd_free(scratch);
}
END_TEST

/* ---- add, kv cache ----------------------------------------------------------------------------------------------- */

START_TEST(test_add) {
    float a[37], b[37], y[37];
    for (int kind = 0; kind < N_KINDS; kind++) {
        fill(a, 37, (enum kind)kind, 1);
        fill(b, 37, NORMAL, 2);
        ((add_fn *)fwd_variant_find("add", "ref")->fn)(a, b, y, 37);
        for (int i = 0; i < 37; i++)
            ck_assert(y[i] == (float)((double)a[i] + (double)b[i]));
    }
}
END_TEST

START_TEST(test_kv_cache) {
    struct fwd_config *c = fwd_calloc(1, sizeof *c);
    ck_assert_ptr_nonnull(c);
    *c = (struct fwd_config){.n_layer = 3, .n_kv_head = 2, .head_dim = 4};
    enum fwd_dtype type = _i ? FWD_F32 : FWD_F16;
    struct fwd_kv_cache *kv;
    ck_assert_int_eq(fwd_kv_cache_create(&kv, c, 2, 5, type, NULL), FWD_OK);
    for (int i = 0; i < 2 * 3 * 2 * 5; i++) { /* every row its own values, then read all back */
        float row[8];
        for (int d = 0; d < 8; d++)
            row[d] = (float)(i * 8 + d) * 0.3337f;
        fwd_kv_cache_store(kv, i % 2, i / 2 % 3, (enum fwd_kv_part)(i / 6 % 2), i / 12, row);
    }
    for (int i = 0; i < 2 * 3 * 2 * 5; i++)
        for (int d = 0; d < 8; d++) {
            const uint8_t *at = fwd_kv_cache_rows(kv, i % 2, i / 2 % 3, (enum fwd_kv_part)(i / 6 % 2)) +
                                i / 12 * fwd_kv_cache_row_stride(kv) + d / 4 * fwd_kv_cache_head_stride(kv) +
                                d % 4 * (_i ? 4 : 2);
            float value = (float)(i * 8 + d) * 0.3337f, f32;
            uint16_t f16;
            memcpy(&f16, at, 2);
            memcpy(&f32, at, _i ? 4 : 2);
            ck_assert(_i ? f32 == value : f16 == fwd_f32_to_f16(value));
        }
    fwd_kv_cache_free(kv);
    struct fwd_error err;
    ck_assert_int_eq(fwd_kv_cache_create(&kv, c, 1, 5, FWD_Q8_K, &err), FWD_EINPUT);
    ck_assert_int_eq(fwd_kv_cache_create(&kv, c, 0, 5, type, &err), FWD_ERANGE);
    c->n_kv_head = 1 << 20;
    c->head_dim = 1 << 20;
    ck_assert_int_eq(fwd_kv_cache_create(&kv, c, 1 << 20, 1 << 20, type, &err), FWD_ENOMEM);
    fwd_free(c);
}
END_TEST

int main(void) {
    Suite *s = suite_create("ops_float");
    TCase *t = tcase_create("ops_float");
    tcase_set_timeout(t, 120);
    tcase_add_test(t, test_expf);
    tcase_add_test(t, test_swiglu);
    tcase_add_loop_test(t, test_rmsnorm, 0, 14);
    tcase_add_test(t, test_rope_table);
    tcase_add_loop_test(t, test_rope_rotation, 0, 2);
    tcase_add_loop_test(t, test_attention, 0, N_SHAPES);
    tcase_add_loop_test(t, test_attention_huge, 0, N_SHAPES);
    tcase_add_test(t, test_attention_nonfinite);
    tcase_add_loop_test(t, test_attention_driver, 0, 2);
    tcase_add_test(t, test_add);
    tcase_add_loop_test(t, test_kv_cache, 0, 2);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_set_fork_status(r, CK_FORK);
    srunner_run_all(r, CK_NORMAL);
    int n_run = srunner_ntests_run(r), n_failed = srunner_ntests_failed(r);
    srunner_free(r);
    if (n_run == 0)
        return 3;
    return n_failed ? 1 : 0;
}
