/* matmul_f and matmul_d: every variant gives the definition's bits, whatever the shape, the number of positions and of
 * threads; and the definition lies within the bound that it declares of a plain double loop. */
#include "core/cpu.h"
#include "core/memory.h"
#include "ops/matmul_f/matmul_f.h"
#include "ops/variant_table.h"
#include "quant/quant.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* Rows and columns around the panel (32 x 256), the chain (64) and the vector; positions around the tiles and past the
 * 512 of one pass. */
static const struct shape {
    uint32_t type;
    int n_rows, n_cols, n_pos;
} shapes[] = {
    {FWD_TYPE_F32, 1, 1, 1},       {FWD_TYPE_F32, 31, 63, 5},     {FWD_TYPE_F32, 33, 65, 6},
    {FWD_TYPE_F32, 40, 321, 29},   {FWD_TYPE_F16, 65, 100, 14},   {FWD_TYPE_BF16, 32, 256, 15},
    {FWD_TYPE_Q4_0, 50, 96, 3},    {FWD_TYPE_Q4_1, 37, 576, 31},  {FWD_TYPE_Q5_0, 64, 288, 2},
    {FWD_TYPE_Q5_1, 9, 896, 4},    {FWD_TYPE_Q8_0, 130, 160, 33}, {FWD_TYPE_Q2_K, 34, 512, 7},
    {FWD_TYPE_Q3_K, 35, 256, 8},   {FWD_TYPE_Q4_K, 70, 1536, 13}, {FWD_TYPE_Q5_K, 36, 768, 9},
    {FWD_TYPE_Q6_K, 97, 1024, 16}, {FWD_TYPE_Q4_K, 3, 256, 519},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes, PAD = 3 };

struct product {
    struct fwd_weight w;
    uint8_t *data;
    float *x, *bias;
    double *x_wide;
    int64_t ld_x, ld_y;
    int n_pos;
};

static uint32_t next_random(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

static float random_unit(uint32_t *state) {
    return (float)next_random(state) * 0x1p-23f - 1;
}

/* Random bytes, with the exponents of every F16 and F32 field kept small so that all weights are finite. */
static void fill_weights(struct product *p, uint32_t *state) {
    size_t n = (size_t)(p->w.n_rows * p->w.row_bytes);
    if (p->w.type == FWD_TYPE_F32) {
        for (size_t i = 0; i < n / 4; i++) {
            float v = random_unit(state);
            memcpy(p->data + 4 * i, &v, 4);
        }
        return;
    }
    /* 0x3b keeps an F16's exponent below 15 in its high byte, and a BF16's below 0x77. */
    for (size_t i = 0; i < n; i++)
        p->data[i] = (uint8_t)(next_random(state) & 0xbbu);
}

static void make_product(struct product *p, const struct shape *s, uint32_t seed) {
    const struct fwd_type_info *type = fwd_type_info(s->type);
    uint32_t state = seed;
    p->w = (struct fwd_weight){.name = "w", .type = s->type, .n_rows = s->n_rows, .n_cols = s->n_cols};
    p->w.row_bytes = s->n_cols / (int)type->block_values * (int)type->block_bytes;
    p->data = fwd_alloc((size_t)p->w.n_rows, (size_t)p->w.row_bytes);
    p->w.data = p->data;
    p->ld_x = s->n_cols + PAD;
    p->ld_y = s->n_rows + PAD;
    p->n_pos = s->n_pos;
    size_t n_x = (size_t)(s->n_pos * p->ld_x);
    p->x = fwd_alloc(n_x, sizeof *p->x);
    p->x_wide = fwd_alloc(n_x, sizeof *p->x_wide);
    p->bias = fwd_alloc((size_t)s->n_rows, sizeof *p->bias);
    fill_weights(p, &state);
    for (size_t i = 0; i < n_x; i++) {
        p->x[i] = random_unit(&state) * (i % 251 == 7 ? 3000 : 1); /* some massive ones among small ones */
        p->x_wide[i] = (double)p->x[i];
    }
    for (int i = 0; i < s->n_rows; i++)
        p->bias[i] = random_unit(&state);
}

static void free_product(struct product *p) {
    fwd_free(p->data);
    fwd_free(p->x);
    fwd_free(p->x_wide);
    fwd_free(p->bias);
}

static bool is_double(const struct fwd_variant *v) {
    return !strcmp(v->op, "matmul_d");
}

static size_t y_bytes(const struct product *p, const struct fwd_variant *v) {
    return (size_t)(p->n_pos * p->ld_y) * (is_double(v) ? sizeof(double) : sizeof(float));
}

/* Positions pos0 .. pos0 + n - 1 of the product, into the same rows of y; everything else in y stays. */
static void multiply(const struct product *p, const struct fwd_variant *v, int pos0, int n, bool bias,
                     struct fwd_pool *pool, void *y) {
    int n_threads = fwd_pool_size(pool);
    const float *b = bias ? p->bias : NULL;
    void *scratch = fwd_alloc(is_double(v) ? fwd_matmul_d_scratch(p->w.n_cols, n, n_threads)
                                           : fwd_matmul_f_scratch(p->w.n_cols, n, n_threads),
                              1);
    ck_assert_ptr_nonnull(scratch);
    if (is_double(v)) {
        struct fwd_matmul_d_args a = {
            &p->w, p->x_wide + pos0 * p->ld_x, p->ld_x, n, b, (double *)y + pos0 * p->ld_y, p->ld_y, scratch, pool};
        ((matmul_d_fn *)v->fn)(&a);
    } else {
        struct fwd_matmul_f_args a = {
            &p->w, p->x + pos0 * p->ld_x, p->ld_x, n, b, (float *)y + pos0 * p->ld_y, p->ld_y, scratch, pool};
        ((matmul_f_fn *)v->fn)(&a);
    }
    fwd_free(scratch);
}

/* Every variant of `op` that this machine has, against `expected`, with 1, 2 and 3 threads; and position by position.
 */
static void check_variants(const struct product *p, const char *op, bool bias, const void *expected, size_t n_bytes) {
    uint8_t *y = fwd_alloc(n_bytes, 1);
    const struct fwd_variant *v;
    int n_checked = 0;
    for (int i = 0; (v = fwd_variant_row(i)); i++) {
        if (strcmp(v->op, op) != 0 || (v->needs & ~fwd_cpu_detect()))
            continue;
        for (int n_threads = 1; n_threads <= 3; n_threads++) {
            struct fwd_pool *pool;
            ck_assert_int_eq(fwd_pool_create(&pool, n_threads, NULL), FWD_OK);
            memset(y, 0x5a, n_bytes);
            multiply(p, v, 0, p->n_pos, bias, pool, y);
            fwd_pool_free(pool);
            ck_assert_msg(!memcmp(y, expected, n_bytes), "%s %s, %d threads: bits differ from ref", op, v->variant,
                          n_threads);
        }
        memset(y, 0x5a, n_bytes);
        for (int pos = 0; pos < p->n_pos; pos += 1 + pos % 3)
            multiply(p, v, pos, pos + 1 + pos % 3 <= p->n_pos ? 1 + pos % 3 : p->n_pos - pos, bias, NULL, y);
        ck_assert_msg(!memcmp(y, expected, n_bytes), "%s %s: bits differ when positions come in small groups", op,
                      v->variant);
        n_checked++;
    }
    ck_assert_int_ge(n_checked, 1);
    fwd_free(y);
}

/* |got - sum| <= n u / (1 - n u) * sum|t| + c u |sum|, n and c as declared. The plain loop itself errs by K u64. */
static void check_bound(const struct product *p, const struct fwd_variant *v, bool bias, const void *y) {
    struct fwd_numerics d;
    (is_double(v) ? fwd_matmul_d_numerics : fwd_matmul_f_numerics)(bias, &d);
    double u = d.accumulator == FWD_ACC_F64 ? 0x1p-53 : 0x1p-24, k_u64 = (double)p->w.n_cols * 0x1p-53;
    int64_t blocks = (p->w.n_cols + d.chain_block - 1) / d.chain_block;
    double n = (double)(blocks * d.chain_per_block + d.chain_extra), g = n * u / (1 - n * u) + k_u64;
    float *row = fwd_alloc((size_t)p->w.n_cols, sizeof *row);
    for (int64_t r = 0; r < p->w.n_rows; r++) {
        fwd_decode_for(p->w.type)(p->w.data + r * p->w.row_bytes, row, p->w.n_cols);
        for (int pos = 0; pos < p->n_pos; pos++) {
            double sum = 0, size = 0;
            for (int64_t k = 0; k < p->w.n_cols; k++) {
                double t = (double)row[k] * p->x_wide[pos * p->ld_x + k];
                sum += t;
                size += fabs(t);
            }
            sum += bias ? (double)p->bias[r] : 0;
            int64_t at = pos * p->ld_y + r;
            double got = is_double(v) ? ((const double *)y)[at] : (double)((const float *)y)[at];
            double bound = g * size + d.final_roundings * u * fabs(sum) + 1e-300;
            ck_assert_msg(fabs(got - sum) <= bound, "%s %s row %lld position %d: got %.9g, expected %.9g +- %.3g",
                          v->op, v->variant, (long long)r, pos, got, sum, bound);
        }
    }
    fwd_free(row);
}

static void check_op(const char *op, const struct shape *s, uint32_t seed) {
    const struct fwd_variant *ref = fwd_variant_find(op, "ref");
    ck_assert_ptr_nonnull(ref);
    struct product p;
    make_product(&p, s, seed);
    size_t n_bytes = y_bytes(&p, ref);
    uint8_t *expected = fwd_alloc(n_bytes, 1);
    for (int bias = 0; bias <= 1; bias++) {
        memset(expected, 0x5a, n_bytes);
        multiply(&p, ref, 0, p.n_pos, bias, NULL, expected);
        check_bound(&p, ref, bias, expected);
        check_variants(&p, op, bias, expected, n_bytes);
    }
    fwd_free(expected);
    free_product(&p);
}

START_TEST(test_f32) {
    check_op("matmul_f", &shapes[_i], (uint32_t)_i);
}
END_TEST

START_TEST(test_f64) {
    check_op("matmul_d", &shapes[_i], (uint32_t)_i + 50);
}
END_TEST

/* Whether a 1 beside +-2^25 survives tells in which order terms were added: the order of the header, spelt out here,
 * inside one chain of 64 and across two. */
START_TEST(test_order) {
    float weights[128] = {0}, x[128], y = 0;
    static const struct {
        int big, one, minus;
    } cases[] = {{0, 1, 2}, {0, 2, 1}, {2, 1, 70}, {0, 70, 71}, {70, 0, 71}, {0, 1, 70}, {63, 64, 127}, {0, 63, 62}};
    const struct fwd_variant *v;
    for (int i = 0; i < 128; i++)
        x[i] = 1;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        memset(weights, 0, sizeof weights);
        weights[cases[c].big] = 0x1p25f;
        weights[cases[c].one] = 1;
        weights[cases[c].minus] = -0x1p25f;
        /* As the header says it, by hand. */
        float expected = 0;
        for (int k0 = 0; k0 < 128; k0 += 64) {
            float chain = 0;
            for (int k = k0; k < k0 + 64; k++)
                chain = fmaf(weights[k], x[k], chain);
            expected += chain;
        }
        for (int i = 0; (v = fwd_variant_row(i)); i++) {
            if (strcmp(v->op, "matmul_f") != 0 || (v->needs & ~fwd_cpu_detect()))
                continue;
            struct product p = {.x = x, .ld_x = 128, .ld_y = 1, .n_pos = 1};
            p.w = (struct fwd_weight){.name = "w",
                                      .type = FWD_TYPE_F32,
                                      .n_rows = 1,
                                      .n_cols = 128,
                                      .row_bytes = 512,
                                      .data = (uint8_t *)weights};
            multiply(&p, v, 0, 1, false, NULL, &y);
            ck_assert_msg(!memcmp(&y, &expected, 4), "%s, case %zu: got %g, expected %g", v->variant, c, (double)y,
                          (double)expected);
        }
    }
}
END_TEST

int main(void) {
    Suite *s = suite_create("matmul_f");
    TCase *t = tcase_create("variants");
    tcase_set_timeout(t, 240);
    tcase_add_loop_test(t, test_f32, 0, N_SHAPES);
    tcase_add_loop_test(t, test_f64, 0, N_SHAPES);
    tcase_add_test(t, test_order);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_set_fork_status(r, CK_FORK);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r), ran = srunner_ntests_run(r);
    srunner_free(r);
    return ran == 0 ? 3 : failed != 0;
}
