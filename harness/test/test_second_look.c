/* Rounding that is not random (numerics.md, section 2.1): correct sums that leave the plain bound, made here one
 * addition after the other, are not accused; errors of the same size that no order of additions makes are. Then what
 * comes with it: the worst-case bound, the detection floor, the call for a review. */
#include "spec/bound.h"
#include "spec/ratio_histogram.h"
#include "spec/second_look.h"
#include "spec/spec_decode.h"
#include "spec/spec_model.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define U 0x1p-24

static struct par_spec_model model;
static struct spec_layer layer;
static struct fwd_numerics numerics;
static enum par_bound_mode mode;
static struct par_op_row row;
static struct par_ratio_histogram hist;

static void forget(void) {
    row = (struct par_op_row){0};
    memset(&hist, 0, sizeof hist);
}

/* F32 sums in one chain, not fused, in the order of the terms. */
static void reset(void) {
    layer = (struct spec_layer){0};
    model = (struct par_spec_model){.config = {.arch = "llama", .n_layer = 1, .norm_eps = 1e-6}, .layers = &layer};
    numerics = (struct fwd_numerics){.size = sizeof numerics, .act = FWD_F32, .store = FWD_F32};
    numerics.chain_block = numerics.chain_per_block = 1;
    numerics.lanes = 1;
    mode = PAR_BOUND_LIKELY;
    forget();
}

static struct spec_weight weight_of(uint32_t type, const void *data, int64_t n_rows, int64_t n_cols) {
    return (struct spec_weight){"w", type, n_rows, n_cols, par_decode_row_bytes(type, n_cols), data, NULL};
}

static struct fwd_view view_of(enum fwd_op op, enum fwd_dtype type, const void *data, int64_t n, int pos0, int n_pos) {
    struct fwd_view v = {.size = sizeof v, .op = op, .pos0 = pos0, .n_pos = n_pos, .dtype = type};
    v.ne[0] = n;
    v.ne[1] = n_pos;
    v.ne[2] = v.ne[3] = 1;
    v.nb[0] = type == FWD_F32 ? 4 : 0;
    v.nb[1] = (int64_t)fwd_dtype_row_bytes(type, n);
    v.data = (void *)(uintptr_t)data;
    return v;
}

static void judge(const struct fwd_view *out, const struct fwd_view *a, const struct fwd_view *b,
                  const struct fwd_view *c) {
    struct fwd_error err = {.message = ""};
    struct par_eval e = {.op = out->op, .pos0 = out->pos0, .n_pos = out->n_pos, .n_in = 3, .in = {a, b, c}};
    e.out = out;
    e.numerics = &numerics;
    e.bound = mode;
    forget();
    ck_assert_msg(par_judge_eval(&model, NULL, &e, &row, &hist, &err) == FWD_OK, "%s", err.message);
}

#define expect(verdict_, n_over_, n_systematic_)                                                                       \
    ck_assert_msg(row.verdict == (verdict_) && row.n_over == (n_over_) && row.n_systematic == (n_systematic_),         \
                  "%s, %llu over, %llu systematic, ratio %g, expected %.9g, got %.9g; %s",                             \
                  par_verdict_name(row.verdict), (unsigned long long)row.n_over, (unsigned long long)row.n_systematic, \
                  row.ratio_max, row.worst.expected, row.worst.got, row.note)

/* A term of which 0.49 ulp are lost whenever it is added to a sum between n/2 and n. */
static float losing_term(int n) {
    return (float)(1 + 0.49 * ldexp(n, -24));
}

/* ---- RMSNorm with F32 squares
 * ------------------------------------------------------------------------------------------- */
enum { WIDTH = 8192 };
static float x[WIDTH], w[WIDTH], y[WIDTH];

/* The scale of x as F32 adds its squares in `lanes` lanes. */
static float scale_in_f32(int lanes) {
    float lane[32] = {0};
    for (int k = 0; k < WIDTH; k++)
        lane[k % lanes] += x[k] * x[k];
    for (int half = lanes / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++)
            lane[l] += lane[l + half];
    return 1.0f / sqrtf(lane[0] / WIDTH + 1e-6f);
}

static double exact_scale(void) {
    double sum = 0;
    for (int k = 0; k < WIDTH; k++)
        sum += (double)x[k] * (double)x[k];
    return 1 / sqrt(sum / WIDTH + 1e-6);
}

/* Judges the row scaled by `scale`; returns the error of that over the plain bound of section 2, without its rules. */
static double judge_norm(double scale) {
    for (int k = 0; k < WIDTH; k++) {
        w[k] = 1;
        y[k] = (float)((double)x[k] * scale);
    }
    model.config.n_embd = WIDTH;
    layer.attn_norm = weight_of(FWD_TYPE_F32, w, 1, WIDTH);
    numerics.final_roundings = 4;
    numerics.sqrt_ulp = numerics.div_ulp = 0.5f;
    struct fwd_view in = view_of(FWD_OP_INP_EMBD, FWD_F32, x, WIDTH, 0, 1);
    struct fwd_view out = view_of(FWD_OP_ATTN_NORM, FWD_F32, y, WIDTH, 0, 1);
    judge(&out, &in, NULL, NULL);
    double plain = par_gamma(WIDTH, U) / 2 + (numerics.final_roundings + 2) * U;
    return fabs(scale / exact_scale() - 1) / plain;
}

START_TEST(massive_activation) {
    reset();
    for (int k = 0; k < WIDTH; k++)
        x[k] = k ? 0.7f : 4000.0f; /* 0.49 against 1.6e7, whose ulp is 1: every addition is lost */
    double right = (double)scale_in_f32(1), ratio = judge_norm(right), off = right / exact_scale() - 1;
    ck_assert_msg(ratio > 1.5, "without rule 1 nothing would be accused: %g", ratio);
    expect(PAR_HELD, 0, 0);
    ck_assert_msg(row.ratio_max < 0.9, "ratio %g", row.ratio_max);
    /* On top of what is swallowed a fault of twice that size shows. */
    (void)judge_norm(exact_scale() * (1 + 3 * off));
    expect(PAR_DIVERGED, WIDTH, 0);
    (void)judge_norm(exact_scale() * (1 - 3 * off));
    expect(PAR_DIVERGED, WIDTH, 0);
    /* Where nothing is swallowed the same error is a fault as it stands. */
    for (int k = 0; k < WIDTH; k++)
        x[k] = (float)(k * 7919 % 1000 - 500) / 500.0f;
    (void)judge_norm((double)scale_in_f32(1));
    expect(PAR_HELD, 0, 0);
    uint64_t n_zero = 0;
    for (int k = 0; k < WIDTH; k++)
        n_zero += x[k] == 0;
    (void)judge_norm(exact_scale() * (1 + off));
    expect(PAR_DIVERGED, WIDTH - n_zero, 0);
}
END_TEST

START_TEST(constant_input) {
    reset();
    float c = sqrtf(losing_term(WIDTH));
    for (int k = 0; k < WIDTH; k++)
        x[k] = c;
    double right = (double)scale_in_f32(1), off = right / exact_scale() - 1, ratio = judge_norm(right);
    ck_assert_msg(ratio > 1.2, "without the second look nothing would be accused: %g", ratio);
    expect(PAR_MISTRUSTED, 0, WIDTH);
    ck_assert_msg(strstr(row.note, "systematic rounding in 8192 of 8192") != NULL, "%s", row.note);
    ck_assert_msg(row.ratio_max <= 1, "ratio %g", row.ratio_max);
    /* The same error the other way no addition makes. */
    (void)judge_norm(exact_scale() * (1 - off));
    expect(PAR_DIVERGED, WIDTH, 0);
    /* Half as much again is not within 4 ulp of the sum made again. */
    (void)judge_norm(exact_scale() * (1 + 1.5 * off));
    expect(PAR_DIVERGED, WIDTH, 0);
    /* In 16 lanes nothing is systematic: who declares them and adds one by one is accused. */
    numerics.lanes = 16;
    numerics.chain_block = 16;
    numerics.chain_extra = 4;
    (void)judge_norm((double)scale_in_f32(16));
    expect(PAR_HELD, 0, 0);
    (void)judge_norm(right);
    expect(PAR_DIVERGED, WIDTH, 0);
    /* A chain of one contradicts its own order. */
    numerics.lanes = 1;
    numerics.chain_block = 1 << 30;
    numerics.chain_extra = 0;
    (void)judge_norm(right);
    expect(PAR_DIVERGED, WIDTH, 0);
    /* Squares in F64 round to nothing of the kind: rule 3. */
    numerics.accumulator = FWD_ACC_F64;
    numerics.chain_block = 1;
    (void)judge_norm(exact_scale());
    expect(PAR_HELD, 0, 0);
    (void)judge_norm(right);
    expect(PAR_DIVERGED, WIDTH, 0);
    /* Not even a few ulp beyond the roundings after the sum: no order of additions made them. */
    (void)judge_norm(exact_scale() * (1 + 7 * U));
    ck_assert_msg(row.verdict == PAR_DIVERGED && row.n_systematic == 0, "%s, %llu systematic",
                  par_verdict_name(row.verdict), (unsigned long long)row.n_systematic);
}
END_TEST

START_TEST(order_not_declared) {
    reset();
    float c = sqrtf(losing_term(WIDTH));
    for (int k = 0; k < WIDTH; k++)
        x[k] = c;
    double right = (double)scale_in_f32(1), off = right / exact_scale() - 1;
    numerics.lanes = 0;
    (void)judge_norm(right);
    expect(PAR_MISTRUSTED, 0, WIDTH);
    /* Up to twice the largest error of an order counts, in either direction; more does not. */
    (void)judge_norm(exact_scale() * (1 - 1.9 * off));
    expect(PAR_MISTRUSTED, 0, WIDTH);
    (void)judge_norm(exact_scale() * (1 + 2.2 * off));
    expect(PAR_DIVERGED, WIDTH, 0);
    /* With a chain of WIDTH / 8 + 3 the sequential order is out of the question, and with it its error. */
    numerics.chain_block = 8;
    numerics.chain_extra = 3;
    (void)judge_norm(right);
    expect(PAR_DIVERGED, WIDTH, 0);
}
END_TEST

/* ---- matrix products
 * -------------------------------------------------------------------------------------------------- */
/* y = sum of n equal terms w * x as F32 adds them one by one. */
static float add_products(float a, float b, int n, bool fma) {
    float sum = 0;
    for (int k = 0; k < n; k++)
        sum = fma ? fmaf(a, b, sum) : sum + a * b;
    return sum;
}

START_TEST(product_of_floats) {
    enum { K = 8192, N = 3 };
    static float weight[N * K], in_row[K];
    float out_row[N], bias[N] = {0.5f, -100, 3};
    float c = losing_term(K);
    for (int with_bias = 0; with_bias < 2; with_bias++) {
        reset();
        numerics.fma = with_bias;
        numerics.final_roundings = with_bias;
        for (int k = 0; k < K; k++) {
            in_row[k] = 1;
            weight[k] = weight[K + k] = c;
            weight[2 * K + k] = (float)(k * 7919 % 1000 - 500) / 500.0f;
        }
        layer.up = weight_of(FWD_TYPE_F32, weight, N, K);
        layer.q = layer.up;
        layer.q_bias = weight_of(FWD_TYPE_F32, bias, 1, N);
        enum fwd_op op = with_bias ? FWD_OP_QCUR : FWD_OP_FFN_UP;
        struct fwd_view in = view_of(FWD_OP_FFN_NORM, FWD_F32, in_row, K, 0, 1);
        struct fwd_view out = view_of(op, FWD_F32, out_row, N, 0, 1);
        double exact = (double)c * K, made = (double)add_products(c, 1, K, numerics.fma), third = 0;
        for (int k = 0; k < K; k++)
            third += (double)weight[2 * K + k];
        double b[N] = {0};
        for (int r = 0; r < N && with_bias; r++)
            b[r] = (double)bias[r];
        ck_assert_msg(fabs(made - exact) > 1.2 * par_gamma(K, U) * exact, "the sum is not systematic: %g of %g",
                      fabs(made - exact), par_gamma(K, U) * exact);
        out_row[0] = (float)(made + b[0]);
        out_row[1] = (float)(exact + b[1]);
        out_row[2] = (float)(third + b[2]);
        judge(&out, &in, NULL, NULL);
        expect(PAR_MISTRUSTED, 0, 1);
        out_row[0] = (float)(2 * exact - made + b[0]); /* as far off, the other way */
        judge(&out, &in, NULL, NULL);
        expect(PAR_DIVERGED, 1, 0);
        out_row[0] = (float)(made + b[0]);
        out_row[1] = (float)(2 * exact - made + b[1]); /* one of each: it is the fault that counts */
        judge(&out, &in, NULL, NULL);
        expect(PAR_DIVERGED, 1, 1);
        ck_assert_int_eq((int)row.worst.row, 1);
    }
}
END_TEST

START_TEST(product_of_blocks) {
    /* Q4_1 with d = 1, m = 1: the integer sum and the minimum's of a block are one term each, both of them d_a. */
    enum { BLOCKS = 4096, K = 32 * BLOCKS, WEIGHT = 20, ACT = 40 };
    uint8_t *weight = calloc(BLOCKS, WEIGHT), *act = calloc(BLOCKS, ACT);
    ck_assert(weight && act);
    float d = losing_term(2 * BLOCKS), out_value = 0;
    int32_t sum = 1;
    for (int b = 0; b < BLOCKS; b++) {
        uint8_t *wb = weight + b * WEIGHT, *ab = act + b * ACT;
        wb[1] = wb[3] = 0x3c; /* 1.0 twice */
        wb[4] = 1;
        memcpy(ab, &d, 4);
        memcpy(ab + 4, &sum, 4);
        ab[8] = 1;
    }
    reset();
    numerics.act = FWD_Q8_32;
    numerics.act_rule = FWD_ACT_AMAX127;
    numerics.chain_block = 32;
    numerics.chain_per_block = 2;
    numerics.fma = true;
    layer.up = weight_of(FWD_TYPE_Q4_1, weight, 1, K);
    struct fwd_view in = view_of(FWD_OP_FFN_NORM_Q8, FWD_Q8_32, act, K, 0, 1);
    struct fwd_view out = view_of(FWD_OP_FFN_UP, FWD_F32, &out_value, 1, 0, 1);
    double exact = (double)d * 2 * BLOCKS, made = (double)add_products(d, 1, 2 * BLOCKS, true);
    ck_assert_msg(fabs(made - exact) > 1.2 * par_gamma(2 * BLOCKS, U) * exact, "the sum is not systematic");
    out_value = (float)made;
    judge(&out, &in, NULL, NULL);
    expect(PAR_MISTRUSTED, 0, 1);
    out_value = (float)(2 * exact - made);
    judge(&out, &in, NULL, NULL);
    expect(PAR_DIVERGED, 1, 0);
    free(weight);
    free(act);
}
END_TEST

START_TEST(partial_sums) {
    /* Q8_0 blocks of 1, -1, 1, -1, ... times d: every other partial sum is d, the rest 0, so that 1000 additions are
     * off by 500 u d at most, where g(n) allows for 271 u of 1000 d. */
    enum { BLOCKS = 1000, K = 32 * BLOCKS, WEIGHT = 34, ACT = 40 };
    uint8_t *weight = calloc(BLOCKS, WEIGHT), *act = calloc(BLOCKS, ACT);
    ck_assert(weight && act);
    float d = 1.25f, out_value = 0;
    for (int b = 0; b < BLOCKS; b++) {
        int32_t sum = b % 2 ? -1 : 1;
        weight[b * WEIGHT + 1] = 0x3c;
        weight[b * WEIGHT + 2] = 1;
        memcpy(act + b * ACT, &d, 4);
        memcpy(act + b * ACT + 4, &sum, 4);
        act[b * ACT + 8] = (uint8_t)(int8_t)sum;
    }
    reset();
    numerics.act = FWD_Q8_32;
    numerics.act_rule = FWD_ACT_AMAX127;
    numerics.chain_block = 32;
    numerics.fma = true;
    layer.up = weight_of(FWD_TYPE_Q8_0, weight, 1, K);
    struct fwd_view in = view_of(FWD_OP_FFN_NORM_Q8, FWD_Q8_32, act, K, 0, 1);
    struct fwd_view out = view_of(FWD_OP_FFN_UP, FWD_F32, &out_value, 1, 0, 1);
    judge(&out, &in, NULL, NULL);
    expect(PAR_HELD, 0, 0);
    ck_assert_msg(fabs(row.worst.bound / (500 * 1.25 * U) - 1) < 1e-3, "500 partial sums of 1.25: %g u",
                  row.worst.bound / U);
    numerics.term_roundings = 1; /* each of the 1000 terms */
    judge(&out, &in, NULL, NULL);
    ck_assert_msg(fabs(row.worst.bound / (1500 * 1.25 * U) - 1) < 1e-3, "and their own roundings: %g u",
                  row.worst.bound / U);
    numerics.term_roundings = 0;
    numerics.lanes = 0; /* an order that is not known */
    judge(&out, &in, NULL, NULL);
    ck_assert_msg(fabs(row.worst.bound / (par_gamma(BLOCKS, U) * BLOCKS * 1.25) - 1) < 1e-3, "g(n): %g u",
                  row.worst.bound / U);
    free(weight);
    free(act);
}
END_TEST

START_TEST(partial_sums_of_floats) {
    /* Terms 1, -1, 1, -1, ...: of 1000 partial sums every other one is 1. By chance sqrt(500) L u, in the worst case
     * sqrt(2000 * 500) u: 1000 additions and at most as many that join segments. */
    enum { K = 1000, N = 5, POS = 3 };
    static float weight[N * K], in_rows[POS * K], out_rows[POS * N];
    double l = par_gamma(100, U) / (10 * U);
    for (int i = 0; i < N * K; i++)
        weight[i] = i % 2 ? -1.25f : 1.25f;
    for (int i = 0; i < POS * K; i++)
        in_rows[i] = 1;
    reset();
    numerics.fma = true;
    layer.up = weight_of(FWD_TYPE_F32, weight, N, K);
    struct fwd_view in = view_of(FWD_OP_FFN_NORM, FWD_F32, in_rows, K, 0, POS);
    struct fwd_view out = view_of(FWD_OP_FFN_UP, FWD_F32, out_rows, N, 0, POS);
    judge(&out, &in, NULL, NULL);
    expect(PAR_HELD, 0, 0);
    ck_assert_uint_eq(row.n_judged, N * POS);
    ck_assert_msg(fabs(row.worst.bound / (l * sqrt(500) * 1.25 * U) - 1) < 1e-3, "%g u", row.worst.bound / U);
    mode = PAR_BOUND_WORST;
    judge(&out, &in, NULL, NULL);
    ck_assert_msg(fabs(row.worst.bound / (sqrt(2000.0 * 500) * 1.25 * U) - 1) < 1e-3, "%g u", row.worst.bound / U);
    /* In segments of 5 each adds up to 1 or -1 in turn: 3 of 5 partial sums and every other total are 1. */
    mode = PAR_BOUND_LIKELY;
    numerics.segment = numerics.chain_block = 5;
    numerics.chain_extra = 5;
    judge(&out, &in, NULL, NULL);
    ck_assert_msg(fabs(row.worst.bound / (l * sqrt(600 + 99) * 1.25 * U) - 1) < 2e-3, "%g u", row.worst.bound / U);
    /* A chain that is shorter than its order makes it: the order is not believed. */
    numerics.chain_extra = 0;
    numerics.chain_block = 500;
    judge(&out, &in, NULL, NULL);
    ck_assert_msg(fabs(row.worst.bound / (2 * U * 1250) - 1) < 1e-3, "two steps: %g u", row.worst.bound / U);
}
END_TEST

START_TEST(one_in_many) {
    /* One systematic element among more than 10^5: counted, and the op is HELD. */
    enum { K = 8192, N = 420, POS = 240, AT = 17, WHEN = 60 };
    float *weight = calloc((size_t)N * K, sizeof *weight), *in_rows = calloc((size_t)POS * K, sizeof *in_rows);
    float *out_rows = calloc((size_t)POS * N, sizeof *out_rows);
    ck_assert(weight && in_rows && out_rows);
    reset();
    float c = losing_term(K);
    for (int k = 0; k < K; k++) {
        weight[AT * K + k] = c;
        in_rows[WHEN * K + k] = 1;
    }
    for (int r = 0; r < N; r++) /* one column more, so that the other results are something */
        weight[r * K] += (float)r;
    for (int p = 0; p < POS; p++)
        in_rows[p * K] += (float)(p != WHEN);
    for (int p = 0; p < POS; p++)
        for (int r = 0; r < N; r++)
            out_rows[p * N + r] = weight[r * K];
    float sum = 0;
    for (int k = 0; k < K; k++)
        sum += weight[AT * K + k];
    out_rows[WHEN * N + AT] = sum;
    layer.up = weight_of(FWD_TYPE_F32, weight, N, K);
    struct fwd_view in = view_of(FWD_OP_FFN_NORM, FWD_F32, in_rows, K, 0, POS);
    struct fwd_view out = view_of(FWD_OP_FFN_UP, FWD_F32, out_rows, N, 0, POS);
    judge(&out, &in, NULL, NULL);
    expect(PAR_HELD, 0, 1);
    ck_assert_uint_gt(row.n_judged, 100000);
    free(weight);
    free(in_rows);
    free(out_rows);
}
END_TEST

/* ---- attention
 * -------------------------------------------------------------------------------------------------------- */
START_TEST(equal_keys) {
    /* Keys of 0: all weights are 1, their sum is exact, and equal values are added one by one. */
    enum { KEYS = 16384, DIM = 4 };
    float *k = calloc((size_t)KEYS * DIM, sizeof *k), *v = calloc((size_t)KEYS * DIM, sizeof *v);
    ck_assert(k && v);
    float q[DIM] = {1, 1, 1, 1}, o[DIM], c = losing_term(KEYS);
    for (int i = 0; i < KEYS * DIM; i++)
        v[i] = c;
    float made = add_products(1, c, KEYS, true) / KEYS, off = made - c;
    reset();
    model.config.n_head = model.config.n_kv_head = 1;
    model.config.head_dim = DIM;
    numerics.fma = true;
    numerics.exp_ulp = 1;
    numerics.div_ulp = 0.5f;
    numerics.key_lanes = 1;
    struct fwd_view qv = view_of(FWD_OP_QCUR_ROPE, FWD_F32, q, DIM, KEYS - 1, 1);
    struct fwd_view kv = view_of(FWD_OP_COUNT, FWD_F32, k, DIM, 0, KEYS), vv = kv;
    vv.data = v;
    struct fwd_view out = view_of(FWD_OP_KQV_OUT, FWD_F32, o, DIM, KEYS - 1, 1);
    ck_assert_msg(fabs((double)off) > 1.05 * 2 * par_gamma(KEYS, U), "the sum is not systematic: %g", (double)off);
    for (int lanes = 1; lanes >= 0; lanes--) { /* declared, and not */
        numerics.key_lanes = lanes;
        for (int i = 0; i < DIM; i++)
            o[i] = made;
        judge(&out, &qv, &kv, &vv);
        expect(PAR_MISTRUSTED, 0, DIM);
        o[2] = lanes ? c - off : c - 2.2f * off;
        judge(&out, &qv, &kv, &vv);
        expect(PAR_DIVERGED, 1, DIM - 1);
    }
    /* In segments of 256 no sum is long enough. */
    numerics.key_lanes = 16;
    numerics.key_segment = 256;
    for (int i = 0; i < DIM; i++)
        o[i] = c;
    judge(&out, &qv, &kv, &vv);
    expect(PAR_HELD, 0, 0);
    /* g(256 + 63 + 1) of the values and g(16 + 4 + 63 + 1) of the weights: 8.57 (17.9 + 9.2) u. */
    ck_assert_msg(row.worst.bound > 225 * U && row.worst.bound < 240 * U, "bound %g u", row.worst.bound / U);
    o[1] = made;
    judge(&out, &qv, &kv, &vv);
    expect(PAR_DIVERGED, 1, 0);
    /* 16 lanes are those of the weights: a value is added to the one before it. */
    numerics.key_segment = 0;
    for (int i = 0; i < DIM; i++)
        o[i] = made;
    judge(&out, &qv, &kv, &vv);
    expect(PAR_MISTRUSTED, 0, DIM);
    free(k);
    free(v);
}
END_TEST

/* ---- sums added again
 * ------------------------------------------------------------------------------------------------- */
START_TEST(orders) {
    /* 1 + 2^-24 + 2^-24: in order both small terms are lost; in two lanes they meet first. */
    const double a[] = {1, 0x1p-24, 0, 0x1p-24}, half[] = {1, 0, 0x1p-24, 0x1p-24};
    struct par_order one = {1, 0}, two = {2, 0}, pairs = {1, 2};
    ck_assert_msg(par_add_again(a, NULL, 4, FWD_ACC_F32, false, one) == 1, "in order");
    ck_assert_msg(par_add_again(a, NULL, 4, FWD_ACC_F32, false, two) == 1 + 0x1p-23, "two lanes");
    ck_assert_msg(par_add_again(a, NULL, 4, FWD_ACC_F32, false, pairs) == 1, "segments of two");
    ck_assert_msg(par_add_again(half, NULL, 4, FWD_ACC_F32, false, pairs) == 1 + 0x1p-23, "the second one whole");
    ck_assert_msg(par_add_again(a, NULL, 4, FWD_ACC_F64, false, one) == 1 + 0x1p-23, "F64 loses nothing here");
    /* (1 + 2^-12)^2 = 1 + 2^-11 + 2^-24: the last bit is there only if the product is not rounded first. */
    const double b[] = {1 + 0x1p-12, -1}, c[] = {1 + 0x1p-12, 1 + 0x1p-11};
    ck_assert_msg(par_add_again(b, c, 2, FWD_ACC_F32, true, one) == 0, "fused, the first sum rounds it away");
    const double d[] = {-1, 1 + 0x1p-12}, e[] = {1 + 0x1p-11, 1 + 0x1p-12};
    ck_assert_msg(par_add_again(d, e, 2, FWD_ACC_F32, true, one) == 0x1p-24, "fused");
    ck_assert_msg(par_add_again(d, e, 2, FWD_ACC_F32, false, one) == 0, "rounded first");
    struct par_order lanes16 = {16, 0}, attention = {16, 256};
    ck_assert_msg(par_order_steps(one, 1000) == 1000, "one chain");
    ck_assert_msg(par_order_steps(lanes16, 1000) == 63 + 4, "16 lanes and a tree of 4");
    ck_assert_msg(par_order_steps(attention, 1000) == 16 + 4 + 3, "the longest segment and three joins");
    ck_assert_msg(par_order_steps(attention, 100) == 7 + 4, "one segment");
}
END_TEST

/* ---- the worst case
 * --------------------------------------------------------------------------------------------------- */
START_TEST(worst_case) {
    /* Ten additions cannot be off by more than 10 u, however unlikely; a thousand can, but not likely. */
    ck_assert_msg(fabs(par_growth(PAR_BOUND_LIKELY, 10, U) / (10 * U) - 1) < 1e-5, "short");
    ck_assert_msg(par_growth(PAR_BOUND_LIKELY, 1000, U) == par_gamma(1000, U), "long");
    ck_assert_msg(fabs(par_growth(PAR_BOUND_WORST, 1000, U) / (1000 * U / (1 - 1000 * U)) - 1) < 1e-15, "worst");
    ck_assert_msg(par_growth(PAR_BOUND_WORST, 0, U) == 0 && par_growth(PAR_BOUND_LIKELY, 10, 0) == 0,
                  "nothing inexact");
    ck_assert_msg(par_bound_delta(PAR_BOUND_LIKELY) == PAR_BOUND_DELTA && par_bound_delta(PAR_BOUND_WORST) == 0,
                  "delta");
    reset();
    mode = PAR_BOUND_WORST;
    float c = sqrtf(losing_term(WIDTH));
    for (int k = 0; k < WIDTH; k++)
        x[k] = c;
    (void)judge_norm((double)scale_in_f32(1));
    expect(PAR_HELD, 0, 0);
    double worst = row.worst.bound;
    mode = PAR_BOUND_LIKELY;
    (void)judge_norm(exact_scale());
    expect(PAR_HELD, 0, 0);
    /* n / (L sqrt(n)) = sqrt(8193) / 8.57 = 10.56, each halved and the few roundings after it added. */
    ck_assert_msg(worst / row.worst.bound > 10 && worst / row.worst.bound < 10.6, "%g", worst / row.worst.bound);
}
END_TEST

/* ---- how loose a bound is
 * --------------------------------------------------------------------------------------------- */
START_TEST(detection_floor) {
    enum { N = 20000 };
    static float a[N], b[N], s[N];
    reset();
    model.config.n_embd = N;
    for (int k = 0; k < N; k++) {
        a[k] = (float)(k * 7919 % 20011 + 1) / 1000.0f;
        b[k] = (float)(k * 104729 % 20021 + 1) / 3000.0f;
        s[k] = a[k] + b[k];
    }
    struct fwd_view va = view_of(FWD_OP_ATTN_OUT, FWD_F32, a, N, 0, 1),
                    vb = view_of(FWD_OP_INP_EMBD, FWD_F32, b, N, 0, 1);
    struct fwd_view out = view_of(FWD_OP_FFN_INP, FWD_F32, s, N, 0, 1);
    judge(&out, &va, &vb, NULL);
    expect(PAR_HELD, 0, 0);
    /* The bound of a sum is an ulp, 2u of it at most: so a relative change of 2^-23 shows in half of the elements. */
    ck_assert_msg(row.floor_p50 >= 0x1p-23 && row.floor_p50 <= 0x1p-23 * 1.07, "floor %g", row.floor_p50);
    ck_assert_msg(!row.review, "p99.9 %g needs no review", row.ratio_p999);
    numerics.store = FWD_F16; /* 2^13 times as wide */
    judge(&out, &va, &vb, NULL);
    ck_assert_msg(row.floor_p50 >= 0x1p-10 && row.floor_p50 <= 0x1p-10 * 1.07, "floor %g", row.floor_p50);
    expect(PAR_HELD, 0, 0);
    ck_assert_msg(row.review, "p99.9 %g calls for a review", row.ratio_p999);
    out.ne[0] = va.ne[0] = vb.ne[0] = 500; /* of a few elements no p99.9 says anything */
    model.config.n_embd = 500;
    judge(&out, &va, &vb, NULL);
    ck_assert_msg(!row.review && row.n_judged == 500, "500 elements");
}
END_TEST

START_TEST(floors_merge) {
    static struct par_ratio_histogram h, other;
    ck_assert_msg(par_floor_quantile(&h, 0.5) == 0, "empty");
    for (int i = 0; i < 100; i++) {
        par_ratio_add(i % 2 ? &h : &other, 0);
        par_floor_add(i % 2 ? &h : &other, i < 50 ? 0 : ldexp(1, -i));
    }
    par_ratio_merge(&h, &other);
    ck_assert_uint_eq(h.n_floor, 100);
    ck_assert_msg(par_floor_quantile(&h, 0.5) == 0, "half of them have no bound");
    double q = par_floor_quantile(&h, 0.9); /* 50 zeros, then 2^-99 .. 2^-60 as below 2^-60, then 2^-59 */
    ck_assert_msg(q >= 0x1p-60 && q <= 0x1p-59 * 1.07, "p90 %g", q);
}
END_TEST

int main(void) {
    Suite *s = suite_create("second_look");
    TCase *t = tcase_create("second_look");
    tcase_set_timeout(t, 60);
    tcase_add_test(t, massive_activation);
    tcase_add_test(t, constant_input);
    tcase_add_test(t, order_not_declared);
    tcase_add_test(t, product_of_floats);
    tcase_add_test(t, product_of_blocks);
    tcase_add_test(t, partial_sums);
    tcase_add_test(t, partial_sums_of_floats);
    tcase_add_test(t, one_in_many);
    tcase_add_test(t, equal_keys);
    tcase_add_test(t, orders);
    tcase_add_test(t, worst_case);
    tcase_add_test(t, detection_floor);
    tcase_add_test(t, floors_merge);
    suite_add_tcase(s, t);
    SRunner *runner = srunner_create(s);
    srunner_set_fork_status(runner, CK_FORK);
    srunner_run_all(runner, CK_ENV);
    int n_run = srunner_ntests_run(runner), n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_run == 0 ? 3 : n_failed != 0;
}
