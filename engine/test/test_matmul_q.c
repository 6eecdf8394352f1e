/* test_matmul_q.c: every variant of matmul_q against `ref`, bit for bit, and `ref` against a plain F64 sum over an
 * independent reading of the block formats. */
#include "core/cpu.h"
#include "core/half.h"
#include "core/hash.h"
#include "core/memory.h"
#include "ops/act_quant/act_quant.h"
#include "ops/matmul_q/matmul_q.h"
#include "ops/variant_table.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- what the test knows about the formats (numerics.md, 3.1), one value at a time ---- */

struct type_row {
    uint32_t type;
    const char *name;
    int values, bytes;
    int d_at, m_at; /* offsets of the binary16 fields; -1: none */
};
static const struct type_row types[] = {
    {FWD_TYPE_Q4_0, "Q4_0", 32, 18, 0, -1},     {FWD_TYPE_Q4_1, "Q4_1", 32, 20, 0, 2},
    {FWD_TYPE_Q5_0, "Q5_0", 32, 22, 0, -1},     {FWD_TYPE_Q5_1, "Q5_1", 32, 24, 0, 2},
    {FWD_TYPE_Q8_0, "Q8_0", 32, 34, 0, -1},     {FWD_TYPE_Q2_K, "Q2_K", 256, 84, 80, 82},
    {FWD_TYPE_Q3_K, "Q3_K", 256, 110, 108, -1}, {FWD_TYPE_Q4_K, "Q4_K", 256, 144, 0, 2},
    {FWD_TYPE_Q5_K, "Q5_K", 256, 176, 0, 2},    {FWD_TYPE_Q6_K, "Q6_K", 256, 210, 208, -1},
};
enum { N_TYPES = sizeof types / sizeof *types };

static double half_at(const uint8_t *p) {
    return (double)fwd_f16_to_f32((uint16_t)(p[0] | p[1] << 8));
}

static int bit_at(const uint8_t *p, int bit) {
    return p[bit / 8] >> (bit % 8) & 1;
}

static int bits_at(const uint8_t *p, int bit, int n) {
    int v = 0;
    for (int i = 0; i < n; i++)
        v |= bit_at(p, bit + i) << i;
    return v;
}

static int signed_byte(uint8_t b) {
    return b < 128 ? b : b - 256;
}

/* Scale and min j of the 12 packed bytes of Q4_K and Q5_K. */
static void six_bit(const uint8_t *s, int j, int *scale, int *min) {
    if (j < 4) {
        *scale = bits_at(s, 8 * j, 6);
        *min = bits_at(s, 8 * (j + 4), 6);
    } else {
        *scale = bits_at(s, 8 * (j + 4), 4) + 16 * bits_at(s, 8 * (j - 4) + 6, 2);
        *min = bits_at(s, 8 * (j + 4) + 4, 4) + 16 * bits_at(s, 8 * j + 6, 2);
    }
}

/* Value e of a block of 32 as scaled + shift: the two terms that the op adds separately. */
static void value_of_32(const struct type_row *t, const uint8_t *b, int e, double *scaled, double *shift) {
    double d = half_at(b + t->d_at);
    int nibble_bit = 8 * (e % 16) + 4 * (e / 16);
    *shift = t->m_at < 0 ? 0 : half_at(b + t->m_at);
    switch (t->type) {
    case FWD_TYPE_Q4_0:
        *scaled = d * (bits_at(b + 2, nibble_bit, 4) - 8);
        break;
    case FWD_TYPE_Q4_1:
        *scaled = d * bits_at(b + 4, nibble_bit, 4);
        break;
    case FWD_TYPE_Q5_0:
        *scaled = d * (bits_at(b + 6, nibble_bit, 4) + 16 * bit_at(b + 2, e) - 16);
        break;
    case FWD_TYPE_Q5_1:
        *scaled = d * (bits_at(b + 8, nibble_bit, 4) + 16 * bit_at(b + 4, e));
        break;
    default: /* Q8_0 */
        *scaled = d * signed_byte(b[2 + e]);
        break;
    }
}

/* The same for a superblock: run = e / 32, l = e % 32. */
static void value_of_256(const struct type_row *t, const uint8_t *b, int e, double *scaled, double *shift) {
    double d = half_at(b + t->d_at), m = t->m_at < 0 ? 0 : half_at(b + t->m_at);
    int l = e % 32, run = e / 32, half = e / 128, two_bit = 8 * (32 * half + l) + 2 * (run % 4), scale, min = 0, q;
    switch (t->type) {
    case FWD_TYPE_Q2_K:
        scale = bits_at(b, 8 * (e / 16), 4);
        min = bits_at(b, 8 * (e / 16) + 4, 4);
        q = bits_at(b + 16, two_bit, 2);
        break;
    case FWD_TYPE_Q3_K: {
        int j = e / 16;
        scale =
            bits_at(b + 96, 8 * (j % 8) + 4 * (j / 8), 4) + 16 * bits_at(b + 104, 8 * (j % 4) + 2 * (j / 4), 2) - 32;
        q = bits_at(b + 32, two_bit, 2) + 4 * bit_at(b, 8 * l + run) - 4;
        break;
    }
    case FWD_TYPE_Q4_K:
        six_bit(b + 4, run, &scale, &min);
        q = bits_at(b + 16, 8 * (32 * (run / 2) + l) + 4 * (run % 2), 4);
        break;
    case FWD_TYPE_Q5_K:
        six_bit(b + 4, run, &scale, &min);
        q = bits_at(b + 48, 8 * (32 * (run / 2) + l) + 4 * (run % 2), 4) + 16 * bit_at(b + 16, 8 * l + run);
        break;
    default: /* Q6_K */
        scale = signed_byte(b[192 + e / 16]);
        q = bits_at(b, 8 * (64 * half + 32 * (run % 2) + l) + 4 * (run % 4 / 2), 4) +
            16 * bits_at(b + 128, two_bit, 2) - 32;
        break;
    }
    *scaled = d * scale * q;
    *shift = -m * min;
}

/* ---- random inputs ---- */

static uint64_t rng_state;

static uint32_t next_random(void) {
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng_state >> 33);
}

static double next_unit(void) {
    return (double)next_random() / 2147483648.0;
}

/* How unusual a case is. */
enum mood { PLAIN, EXTREME, NONFINITE, N_MOODS };
static const char *const mood_names[] = {"plain", "extreme", "non-finite"};

static uint16_t random_half(enum mood mood) {
    static const uint16_t odd[] = {0, 0x8000, 1, 0x83ff, 0x7bff, 0xfbff, 0x0400};
    static const uint16_t bad[] = {0x7c00, 0xfc00, 0x7e01, 0xfd55};
    if (mood == NONFINITE && next_random() % 16 == 0)
        return bad[next_random() % 4];
    if (mood != PLAIN && next_random() % 3 == 0)
        return odd[next_random() % 7];
    return fwd_f32_to_f16((float)((next_unit() - 0.5) * 0.02));
}

static void fill_weight(const struct type_row *t, uint8_t *data, int64_t n_blocks, enum mood mood) {
    for (int64_t b = 0; b < n_blocks; b++, data += t->bytes) {
        uint32_t kind = mood == PLAIN ? 0 : next_random() % 6;
        for (int i = 0; i < t->bytes; i++)
            data[i] = kind == 1 ? 0 : kind == 2 ? 0xff : (uint8_t)next_random();
        uint16_t d = random_half(mood), m = random_half(mood);
        memcpy(data + t->d_at, &d, 2);
        if (t->m_at >= 0)
            memcpy(data + t->m_at, &m, 2);
    }
}

static void fill_act(float *x, int64_t n, enum mood mood) {
    for (int64_t i = 0; i < n; i++) {
        x[i] = (float)(next_unit() + next_unit() + next_unit() - 1.5);
        if (mood != PLAIN && next_random() % 200 == 0)
            x[i] *= 3e4f; /* outlier */
        if (mood == NONFINITE && next_random() % 3000 == 0)
            x[i] = next_random() % 2 ? INFINITY : NAN;
    }
    for (int64_t b = 0; mood != PLAIN && b < n / 32; b++) {
        uint32_t kind = next_random() % 12;
        for (int64_t i = 32 * b; kind < 3 && i < 32 * (b + 1); i++)
            x[i] = kind == 0 ? 0.0f : kind == 1 ? x[i] * 0x1p-120f : x[i] < 0 ? -1.0f : 1.0f;
    }
    /* every code of a row at its limit: the largest integer sums there can be */
    for (int64_t i = 0; mood == EXTREME && i < n / 4; i++)
        x[i] = x[i] < 0 ? -2.0f : 2.0f;
}

/* ---- one product ---- */

struct product {
    const struct type_row *t;
    int64_t n, k;
    int m;
    uint8_t *weight;
    float *bias;
    uint8_t *act;
    int64_t act_stride;
};

static int64_t act_block_bytes(const struct type_row *t) {
    return t->values == 256 ? 292 : 40;
}

static void make_product(struct product *p, const struct type_row *t, int64_t n, int64_t k, int m, enum mood mood) {
    *p = (struct product){.t = t, .n = n, .k = k, .m = m, .act_stride = k / t->values * act_block_bytes(t)};
    int64_t n_blocks = n * (k / t->values);
    p->weight = fwd_alloc((size_t)n_blocks, (size_t)t->bytes);
    p->bias = fwd_alloc((size_t)n, sizeof *p->bias);
    float *x = fwd_alloc((size_t)(m * k), sizeof *x);
    p->act = fwd_alloc((size_t)m, (size_t)p->act_stride);
    ck_assert(p->weight && p->bias && x && p->act);
    fill_weight(t, p->weight, n_blocks, mood);
    fill_act(x, m * k, mood);
    for (int64_t i = 0; i < n; i++)
        p->bias[i] = (float)(next_unit() - 0.5);
    for (int i = 0; i < m; i++) {
        void *row = p->act + i * p->act_stride;
        if (t->values == 256)
            ((act_quant_k_fn *)fwd_variant_find("act_quant_k", "ref")->fn)(x + i * k, row, k);
        else
            ((act_quant_32_fn *)fwd_variant_find("act_quant_32", "ref")->fn)(x + i * k, row, k);
    }
    fwd_free(x);
}

static void free_product(struct product *p) {
    fwd_free(p->weight);
    fwd_free(p->bias);
    fwd_free(p->act);
}

static struct fwd_weight as_weight(const struct product *p) {
    return (struct fwd_weight){.name = p->t->name,
                               .type = p->t->type,
                               .n_rows = p->n,
                               .n_cols = p->k,
                               .row_bytes = p->k / p->t->values * p->t->bytes,
                               .data = p->weight};
}

static struct fwd_packed *pack(const struct product *p, const char *variant, struct fwd_pool *pool) {
    struct fwd_packed *w = NULL;
    struct fwd_weight weight = as_weight(p);
    struct fwd_error err = {0};
    enum fwd_status st = fwd_packed_create(&w, NULL, &weight, fwd_cpu_detect(), variant, pool, &err);
    ck_assert_msg(st == FWD_OK, "%s %s: %s", p->t->name, variant, err.message);
    ck_assert_str_eq(fwd_packed_variant(w), variant);
    return w;
}

/* Pattern-filled floats behind every row of the result, so that a store outside it shows. */
enum { PAD = 19 };

static float *multiply(const struct product *p, const struct fwd_packed *w, bool bias, int chunk,
                       struct fwd_pool *pool) {
    int64_t ld = p->n + PAD;
    float *y = fwd_alloc((size_t)(ld * p->m), sizeof *y);
    void *scratch = fwd_alloc(1, fwd_matmul_q_scratch(p->k, p->m, fwd_pool_size(pool)));
    ck_assert(y && scratch);
    memset(y, 0x88, (size_t)(ld * p->m) * sizeof *y);
    for (int m = 0; m < p->m; m += chunk)
        fwd_matmul_q(&(struct fwd_matmul_q_args){.w = w,
                                                 .act = p->act + m * p->act_stride,
                                                 .act_stride = p->act_stride,
                                                 .n_pos = p->m - m < chunk ? p->m - m : chunk,
                                                 .bias = bias ? p->bias : NULL,
                                                 .y = y + m * ld,
                                                 .ld_y = ld,
                                                 .scratch = scratch,
                                                 .pool = pool});
    fwd_free(scratch);
    for (int m = 0; m < p->m; m++)
        for (int i = 0; i < PAD; i++)
            ck_assert_uint_eq(fwd_f32_bits(y[m * ld + p->n + i]), 0x88888888u);
    return y;
}

/* ---- ref against F64 ---- */

/* The exact product of block b of row n with position m, its two terms added to *sum and their sizes to *size. */
static void add_block(const struct product *p, int64_t n, int m, int64_t b, double *sum, double *size) {
    const struct type_row *t = p->t;
    const uint8_t *weight = p->weight + (n * (p->k / t->values) + b) * t->bytes;
    const uint8_t *act = p->act + m * p->act_stride + b * act_block_bytes(t);
    double scaled_sum = 0, shift_sum = 0, scaled, shift;
    float d;
    memcpy(&d, act, sizeof d);
    for (int e = 0; e < t->values; e++) {
        double a = (double)d * signed_byte(act[(t->values == 256 ? 4 : 8) + e]);
        if (t->values == 256)
            value_of_256(t, weight, e, &scaled, &shift);
        else
            value_of_32(t, weight, e, &scaled, &shift);
        scaled_sum += scaled * a;
        shift_sum += shift * a;
    }
    *sum += scaled_sum + shift_sum;
    *size += fabs(scaled_sum) + fabs(shift_sum);
}

static void check_against_f64(const struct product *p, const float *y, bool bias) {
    struct fwd_numerics num;
    fwd_matmul_q_numerics(p->t->type, bias, &num);
    double n_steps = (double)(p->k / num.chain_block * num.chain_per_block + num.chain_extra + num.term_roundings +
                              num.final_roundings);
    for (int64_t n = 0; n < p->n; n++)
        for (int m = 0; m < p->m; m++) {
            double sum = bias ? (double)p->bias[n] : 0, size = fabs(sum);
            for (int64_t b = 0; b < p->k / p->t->values; b++)
                add_block(p, n, m, b, &sum, &size);
            double got = (double)y[m * (p->n + PAD) + n];
            double bound = n_steps * 0x1p-24 * size * 1.001 + n_steps * 0x1p-149;
            ck_assert_msg(fabs(got - sum) <= bound, "%s n %lld m %d: got %.9g, expected %.9g within %.3g", p->t->name,
                          (long long)n, m, got, sum, bound);
        }
}

START_TEST(test_ref_is_the_f64_sum) {
    const struct type_row *t = &types[_i];
    for (int mood = PLAIN; mood <= EXTREME; mood++) {
        struct product p;
        rng_state = 100 + (uint64_t)_i;
        make_product(&p, t, 5, t->values == 256 ? 768 : 96, 3, (enum mood)mood);
        struct fwd_packed *w = pack(&p, "ref", NULL);
        for (int bias = 0; bias < 2; bias++) {
            float *y = multiply(&p, w, bias != 0, p.m, NULL);
            check_against_f64(&p, y, bias != 0);
            fwd_free(y);
        }
        fwd_packed_free(w);
        free_product(&p);
    }
}
END_TEST

/* ---- variants against ref ---- */

struct shape {
    int64_t n, k;
    int m;
};
/* The one of 66 positions is large enough to be done in two parts of K. */
static const struct shape shapes[] = {{1, 256, 1},   {7, 512, 2},    {8, 1536, 3},  {9, 768, 5},   {16, 2304, 8},
                                      {17, 256, 9},  {33, 1024, 17}, {48, 512, 78}, {9, 8960, 66}, {31, 4096, 4},
                                      {64, 1536, 1}, {5, 8960, 1},   {15, 256, 7}};
static const struct shape shapes_32[] = {{19, 32, 11}, {3, 96, 2},  {16, 352, 8},
                                         {21, 576, 6}, {8, 928, 1}, {18, 1056, 9}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes, N_SHAPES_32 = sizeof shapes_32 / sizeof *shapes_32 };
enum { MAX_THREADS = 3 };

struct tally {
    int n_compared, n_skipped;
};

static void expect_same_bits(const struct product *p, const char *variant, const char *how, const float *y,
                             const float *want) {
    int64_t ld = p->n + PAD;
    if (!memcmp(y, want, (size_t)(p->m * ld) * sizeof *y))
        return;
    for (int64_t e = 0; e < p->m * ld; e++)
        ck_assert_msg(fwd_f32_bits(y[e]) == fwd_f32_bits(want[e]),
                      "%s %s: N %lld K %lld M %d, %s: row %lld of position %lld: got %.9g, ref %.9g", p->t->name,
                      variant, (long long)p->n, (long long)p->k, p->m, how, (long long)(e % ld), (long long)(e / ld),
                      (double)y[e], (double)want[e]);
}

/* One product in one variant, packed by 1..3 threads and multiplied in several chunkings. */
static void compare_variant(const struct product *p, const char *variant, float *const want[2],
                            struct fwd_pool *const *pools, const char *mood, struct tally *tally) {
    struct fwd_weight weight = as_weight(p);
    uint64_t file_sum = fwd_hash64(weight.data, (size_t)(p->n * weight.row_bytes));
    for (int j = 0; j < MAX_THREADS; j++) {
        struct fwd_packed *w = pack(p, variant, pools[j]);
        ck_assert_msg(fwd_packed_checksum(w) == file_sum, "%s %s: unpacked bytes differ from the file's", p->t->name,
                      variant);
        for (int c = 0; c < 3; c++) {
            int chunk = c == 0 ? p->m : c == 1 ? (p->m + 1) / 2 : 1, bias = (c + j) % 2;
            char how[96];
            (void)snprintf(how, sizeof how, "%s values, chunks of %d, %d threads, bias %d", mood, chunk, j + 1, bias);
            float *y = multiply(p, w, bias != 0, chunk, pools[j]);
            expect_same_bits(p, variant, how, y, want[bias]);
            tally->n_compared++;
            fwd_free(y);
        }
        fwd_packed_free(w);
    }
}

static void compare_variants(const struct product *p, struct fwd_pool *const *pools, const char *mood,
                             struct tally *tally) {
    struct fwd_packed *ref = pack(p, "ref", NULL);
    float *want[2] = {multiply(p, ref, false, p->m, NULL), multiply(p, ref, true, p->m, NULL)};
    const struct fwd_variant *v;
    for (int i = 0; (v = fwd_variant_row(i)) != NULL; i++) {
        if (strcmp(v->op, "matmul_q") != 0)
            continue;
        if (v->needs & ~fwd_cpu_detect())
            tally->n_skipped++;
        else
            compare_variant(p, v->variant, want, pools, mood, tally);
    }
    fwd_free(want[0]);
    fwd_free(want[1]);
    fwd_packed_free(ref);
}

START_TEST(test_variants_agree) {
    const struct type_row *t = &types[_i];
    struct tally tally = {0};
    struct fwd_pool *pools[MAX_THREADS];
    for (int i = 0; i < MAX_THREADS; i++)
        ck_assert_int_eq(fwd_pool_create(&pools[i], i + 1, NULL), FWD_OK);
    for (int s = 0; s < N_SHAPES + (t->values == 32 ? N_SHAPES_32 : 0); s++) {
        struct shape shape = s < N_SHAPES ? shapes[s] : shapes_32[s - N_SHAPES];
        for (int mood = 0; mood < N_MOODS; mood++) {
            struct product p;
            rng_state = 1000 * (uint64_t)_i + 10 * (uint64_t)s + (uint64_t)mood;
            make_product(&p, t, shape.n, shape.k, shape.m, (enum mood)mood);
            compare_variants(&p, pools, mood_names[mood], &tally);
            free_product(&p);
        }
    }
    for (int i = 0; i < MAX_THREADS; i++)
        fwd_pool_free(pools[i]);
    printf("%s: %d products bit-equal to ref\n", t->name, tally.n_compared);
    if (tally.n_skipped)
        printf("SKIPPED: %s: %d variants whose instructions this machine lacks\n", t->name, tally.n_skipped);
    ck_assert_int_gt(tally.n_compared, 0);
}
END_TEST

/* ---- the interface ---- */

START_TEST(test_refuses) {
    struct fwd_packed *w = NULL;
    struct fwd_error err;
    uint8_t bytes[288] = {0};
    struct fwd_weight weight = {
        .name = "w", .type = FWD_TYPE_F32, .n_rows = 1, .n_cols = 32, .row_bytes = 128, .data = bytes};
    ck_assert_int_eq(fwd_packed_create(&w, NULL, &weight, 0, NULL, NULL, &err), FWD_ETYPE);
    weight.type = FWD_TYPE_Q4_K;
    weight.n_cols = 300;
    ck_assert_int_eq(fwd_packed_create(&w, NULL, &weight, 0, NULL, NULL, &err), FWD_ESHAPE);
    weight.n_cols = 256;
    ck_assert_int_eq(fwd_packed_create(&w, NULL, &weight, 0, "avx512", NULL, &err), FWD_EUNAVAILABLE);
    ck_assert_int_eq(fwd_packed_create(&w, NULL, &weight, 0, "no-such", NULL, &err), FWD_EUNAVAILABLE);
    ck_assert_int_eq(fwd_packed_create(&w, NULL, &weight, 0, NULL, NULL, &err), FWD_OK);
    ck_assert_str_eq(fwd_packed_variant(w), "ref");
    ck_assert_str_eq(fwd_packed_layout(w), "file");
    fwd_packed_free(w);
    fwd_packed_free(NULL);
}
END_TEST

START_TEST(test_act_format) {
    for (int i = 0; i < N_TYPES; i++)
        ck_assert_int_eq(fwd_matmul_q_act(types[i].type), types[i].values == 256 ? FWD_Q8_K : FWD_Q8_32);
    ck_assert_int_eq(fwd_matmul_q_act(FWD_TYPE_F16), FWD_F32);
}
END_TEST

int main(void) {
    Suite *s = suite_create("matmul_q");
    TCase *tc = tcase_create("matmul_q");
    tcase_set_timeout(tc, 240);
    tcase_add_loop_test(tc, test_ref_is_the_f64_sum, 0, N_TYPES);
    tcase_add_loop_test(tc, test_variants_agree, 0, N_TYPES);
    tcase_add_test(tc, test_refuses);
    tcase_add_test(tc, test_act_format);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_set_fork_status(sr, CK_FORK);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr), ran = srunner_ntests_run(sr);
    srunner_free(sr);
    return ran == 0 ? 3 : failed ? 1 : 0;
}
