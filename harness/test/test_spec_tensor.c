/* The spec of tensor cores, held against a plain emulation of them: products exact, every addend of a step cut toward
 * zero at its bit below the largest one, the sum cut to F32. What computes like that has to stay inside the bound, on
 * data that makes it cut as much as it can; a term, a key, a scale or a rounding that is not the declared one has not.
 */
#include "spec/spec_tensor.h"

#include "test/spec_case.h"

#include <math.h>
#include <stdio.h>

enum { N = 9, P = 3, MOST_K = 9000 };

static uint64_t seed = 11;

static double noise(void) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(seed >> 11) * 0x1p-53;
}

static float normal(void) {
    double s = 0;
    for (int i = 0; i < 12; i++)
        s += noise();
    return (float)(s - 6);
}

/* ---- the hardware ---- */
static double cut(double x, int exponent) {
    return ldexp(trunc(ldexp(x, -exponent)), exponent);
}

static int exponent_of(double x) {
    int e;
    (void)frexp(x, &e);
    return e - 1;
}

struct core {
    int step, bits, promote;
    int skip; /* index of a product that is forgotten; -1: none */
};

/* The sum so far joins each step; with `promote` it goes into an F32 total now and then. */
static float emulate(const struct core *c, const double *a, const double *b, int n) {
    float total = 0, part = 0;
    for (int from = 0; from < n; from += c->step) {
        int end = n - from < c->step ? n : from + c->step, top = -2000;
        for (int k = from; k < end; k++)
            if (a[k] * b[k] != 0 && exponent_of(a[k] * b[k]) > top)
                top = exponent_of(a[k] * b[k]);
        if (part != 0 && exponent_of((double)part) > top)
            top = exponent_of((double)part);
        double sum = cut((double)part, top - c->bits);
        for (int k = from; k < end; k++)
            sum += k == c->skip ? 0 : cut(a[k] * b[k], top - c->bits);
        part = sum == 0 ? 0 : (float)cut(sum, exponent_of(sum) - 23);
        if (c->promote && end % c->promote == 0) {
            total += part;
            part = 0;
        }
    }
    return c->promote ? total + part : part;
}

/* ---- formats, by search ---- */
static double small_value(int code) { /* E4M3, positive */
    return code < 8 ? code * 0x1p-9 : ldexp(8 + code % 8, code / 8 - 10);
}

static double to_e4m3(double x) {
    int best = 0;
    for (int code = 1; code < 0x7f; code++) {
        double off = fabs(small_value(code) - fabs(x)), least = fabs(small_value(best) - fabs(x));
        if (off < least || (off == least && code % 2 == 0))
            best = code;
    }
    return copysign(small_value(best), x);
}

static double to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
    memcpy(&x, &bits, 4);
    return (double)x;
}

/* ---- products ---- */
enum data { MIXED, POSITIVE, MASSIVE, TINY_TAIL, N_DATA };

struct product {
    int k;
    bool e4m3, fast;
    enum data data;
    float w[N * MOST_K], x[P * MOST_K], bias[N], y[P * N];
    double wv[N * MOST_K], xv[P * MOST_K];
    float w_scale[N], x_scale[P];
};
static struct product p;

static void declare(void) {
    reset();
    layer.up = weight_of(FWD_TYPE_F32, p.w, N, p.k);
    numerics.accumulator = FWD_ACC_TENSOR;
    numerics.act = numerics.operand = p.e4m3 ? FWD_E4M3 : FWD_BF16;
    numerics.act_rule = p.e4m3 ? FWD_ACT_AMAX448 : FWD_ACT_NEAREST;
    numerics.chain_block = p.e4m3 ? 32 : 16;
    numerics.cut_bits = p.e4m3 ? 13 : 25;
    numerics.promote = p.e4m3 && !p.fast ? 128 : 0;
    numerics.chain_extra = 32;
    numerics.final_roundings = p.e4m3 ? 2 : 0;
}

static void convert(const float *x, int n_rows, double *value, float *scale) {
    for (int r = 0; r < n_rows; r++) {
        const float *row_of = x + r * p.k;
        float amax = 0;
        for (int i = 0; i < p.k; i++)
            amax = fmaxf(amax, fabsf(row_of[i]));
        scale[r] = p.e4m3 ? amax / 448.0f : 1.0f;
        for (int i = 0; i < p.k; i++)
            value[r * p.k + i] = p.e4m3 ? to_e4m3((double)(row_of[i] * (448.0f / amax))) : to_bf16(row_of[i]);
    }
}

static void make_product(int k, bool e4m3, bool fast, enum data data) {
    p.k = k;
    p.e4m3 = e4m3;
    p.fast = fast;
    p.data = data;
    for (int i = 0; i < N * k; i++)
        p.w[i] = data == MIXED ? normal() : fabsf(normal());
    for (int i = 0; i < P * k; i++)
        p.x[i] = data == MIXED ? normal() : data == TINY_TAIL ? 0x1p-14f * fabsf(normal()) : fabsf(normal());
    for (int m = 0; m < P && (data == MASSIVE || data == TINY_TAIL); m++)
        p.x[m * k] = data == MASSIVE ? 3000 : 1;
    convert(p.w, N, p.wv, p.w_scale);
    convert(p.x, P, p.xv, p.x_scale);
}

/* skip: a product of element (1, 2) that is forgotten. */
static void multiply(int skip) {
    struct core c = {p.e4m3 ? 32 : 16, p.e4m3 ? 13 : 25, p.e4m3 && !p.fast ? 128 : 0, -1};
    for (int m = 0; m < P; m++)
        for (int r = 0; r < N; r++) {
            c.skip = m == 1 && r == 2 ? skip : -1;
            float s = emulate(&c, p.wv + r * p.k, p.xv + m * p.k, p.k);
            p.y[m * N + r] = p.e4m3 ? s * p.x_scale[m] * p.w_scale[r] : s;
        }
}

static void judge_product(void) {
    struct fwd_view in = float_view(FWD_OP_FFN_NORM, p.x, p.k, 0, P), out = float_view(FWD_OP_FFN_UP, p.y, N, 0, P);
    declare();
    judge(&out, &in, NULL, NULL);
}

static const struct {
    int k;
    bool e4m3, fast;
} forms[] = {{32, false, false},   {576, false, false}, {896, false, false}, {1000, false, false},
             {8960, false, false}, {32, true, false},   {224, true, false},  {1536, true, false},
             {8960, true, false},  {128, true, true},   {1536, true, true}};
enum { N_FORMS = sizeof forms / sizeof *forms };

START_TEST(products_hold) {
    for (int data = 0; data < N_DATA; data++) {
        make_product(forms[_i].k, forms[_i].e4m3, forms[_i].fast, (enum data)data);
        multiply(-1);
        judge_product();
        if (row.verdict != PAR_MISTRUSTED || !p.fast) /* the fast accumulator of a long sum tells nothing of it */
            expect_held(N * P);
        ck_assert_uint_eq(row.n_over, 0);
        printf("  %s%s, K %d, data %d: ratio %.3f\n", p.e4m3 ? "E4M3" : "BF16", p.fast ? " fast" : "", p.k, data,
               row.ratio_max);
    }
}
END_TEST

START_TEST(products_without_a_term) {
    make_product(forms[_i].k, forms[_i].e4m3, forms[_i].fast, POSITIVE);
    if (p.fast && p.k > 128)
        return;
    int most = 1;
    for (int k = 1; k < p.k; k++)
        if (p.wv[2 * p.k + k] * p.xv[p.k + k] > p.wv[2 * p.k + most] * p.xv[p.k + most])
            most = k;
    /* In E4M3 a long sum hides one of its terms: a step of them is missing there. */
    int n_missing = p.e4m3 && p.k > 224 ? p.k / 16 : 1;
    double keep[MOST_K];
    memcpy(keep, p.wv + 2 * p.k, sizeof(double) * (size_t)p.k);
    for (int i = 0; i < n_missing; i++)
        p.wv[2 * p.k + (most + i) % p.k] = 0;
    multiply(-1);
    memcpy(p.wv + 2 * p.k, keep, sizeof(double) * (size_t)p.k);
    struct core whole = {p.e4m3 ? 32 : 16, p.e4m3 ? 13 : 25, p.e4m3 && !p.fast ? 128 : 0, -1};
    for (int m = 0; m < P; m++) {
        float s = emulate(&whole, p.wv + 2 * p.k, p.xv + m * p.k, p.k);
        if (m != 1)
            p.y[m * N + 2] = p.e4m3 ? s * p.x_scale[m] * p.w_scale[2] : s;
    }
    judge_product();
    ck_assert_msg(row.verdict == PAR_DIVERGED && row.n_over == 1, "K %d: %s, %d over, ratio %g", p.k,
                  par_verdict_name(row.verdict), (int)row.n_over, row.ratio_max);
    ck_assert_int_eq(row.worst.pos, 1);
    ck_assert_int_eq(row.worst.row, 2);
}
END_TEST

/* What is not declared is outside. */
START_TEST(other_arithmetic) {
    /* Weights that are not rounded. */
    make_product(896, false, false, POSITIVE);
    for (int i = 0; i < N * p.k; i++)
        p.wv[i] = (double)p.w[i];
    multiply(-1);
    judge_product();
    ck_assert_msg(row.verdict == PAR_DIVERGED, "unrounded weights: %g", row.ratio_max);
    /* One scale for all positions. */
    make_product(224, true, false, MIXED);
    for (int i = 0; i < p.k; i++)
        p.x[i] *= 20; /* position 0 has the largest values */
    convert(p.x, P, p.xv, p.x_scale);
    for (int m = 1; m < P; m++)
        for (int i = 0; i < p.k; i++)
            p.xv[m * p.k + i] = to_e4m3((double)(p.x[m * p.k + i] * (1.0f / p.x_scale[0])));
    p.x_scale[1] = p.x_scale[2] = p.x_scale[0];
    multiply(-1);
    judge_product();
    ck_assert_msg(row.verdict == PAR_DIVERGED && row.worst.pos > 0, "one scale: %g", row.ratio_max);
    /* The fast accumulator, undeclared. */
    make_product(8960, true, true, POSITIVE);
    multiply(-1);
    p.fast = false;
    judge_product();
    ck_assert_msg(row.verdict == PAR_DIVERGED, "fast accumulation: %g", row.ratio_max);
    /* A finished sum stored in 16 bits. */
    make_product(896, false, false, MIXED);
    multiply(-1);
    for (int i = 0; i < P * N; i++)
        p.y[i] = (float)to_bf16(p.y[i]);
    judge_product();
    ck_assert_msg(row.verdict == PAR_DIVERGED, "stored in BF16: %g", row.ratio_max);
    /* Declarations that are none. */
    declare();
    numerics.cut_bits = 0;
    struct fwd_view in = float_view(FWD_OP_FFN_NORM, p.x, p.k, 0, P), out = float_view(FWD_OP_FFN_UP, p.y, N, 0, P);
    judge(&out, &in, NULL, NULL);
    ck_assert_int_eq(row.verdict, PAR_UNMEASURED);
    declare();
    numerics.operand = FWD_F16;
    judge(&out, &in, NULL, NULL);
    ck_assert_int_eq(row.verdict, PAR_UNMEASURED);
}
END_TEST

/* ---- converted rows ---- */
static struct fwd_view byte_view(enum fwd_op op, enum fwd_dtype t, uint8_t *bytes, int n, int n_pos) {
    struct fwd_view v = float_view(op, NULL, n, 0, n_pos);
    v.dtype = t;
    v.nb[0] = t == FWD_BF16 ? 2 : 1;
    v.nb[1] = (int64_t)fwd_dtype_row_bytes(t, n);
    v.data = bytes;
    return v;
}

static uint8_t code_of(double value) {
    for (int code = 0; code < 0x7f; code++)
        if (small_value(code) == fabs(value))
            return (uint8_t)(code | (signbit(value) ? 0x80 : 0));
    return 0x7f;
}

static void fill_tap(uint8_t *tap) {
    for (int m = 0; m < P; m++) {
        uint8_t *to = tap + (size_t)m * fwd_dtype_row_bytes(p.e4m3 ? FWD_E4M3 : FWD_BF16, p.k);
        if (p.e4m3)
            memcpy(to, &p.x_scale[m], 4);
        for (int i = 0; i < p.k; i++) {
            float f = (float)p.xv[m * p.k + i];
            if (p.e4m3)
                to[4 + i] = code_of(p.xv[m * p.k + i]);
            else
                memcpy(to + 2 * i, (uint8_t *)&f + 2, 2);
        }
    }
}

START_TEST(converted_rows) {
    static uint8_t tap[P * (2 * MOST_K + 4)];
    make_product(576, _i == 1, false, MIXED);
    p.x[5] = 0;
    p.x[6] = -1e-30f;
    /* Halves, in a row whose scale is 1: 17 lies between 16 and 18, 19 between 18 and 20; and those of BF16. */
    const float halves[] = {448, 17, 19, -17, 0x1.8p-10f, 0x1.4p-8f, 1 + 0x1p-8f, 1 + 0x1.8p-7f, -1 - 0x1p-8f};
    memcpy(p.x + p.k + 20, halves, sizeof halves);
    convert(p.x, P, p.xv, p.x_scale);
    fill_tap(tap);
    struct fwd_view in = float_view(FWD_OP_FFN_NORM, p.x, p.k, 0, P);
    struct fwd_view q8 = byte_view(FWD_OP_FFN_NORM_Q8, _i ? FWD_E4M3 : FWD_BF16, tap, p.k, P);
    uint64_t n = (uint64_t)P * (uint64_t)(p.k + _i);
    for (int wrong = -1; wrong < 3; wrong++) {
        declare();
        numerics.accumulator = FWD_ACC_EXACT;
        numerics.store = q8.dtype;
        uint8_t *at = tap + (wrong < 0 ? 0 : (size_t)wrong * fwd_dtype_row_bytes(q8.dtype, p.k) + (wrong ? 4 + 7 : 0));
        *at ^= wrong >= 0;
        judge(&q8, &in, NULL, NULL);
        *at ^= wrong >= 0;
        if (wrong < 0)
            expect_held(n);
        else
            ck_assert_msg(row.verdict == PAR_DIVERGED && row.n_over == 1 && row.worst.pos == wrong, "byte of row %d",
                          wrong);
    }
    /* The product from the tap's own bytes, and from other ones. */
    multiply(-1);
    struct fwd_view out = float_view(FWD_OP_FFN_UP, p.y, N, 0, P);
    declare();
    judge(&out, &q8, NULL, NULL);
    expect_held(N * P);
    tap[fwd_dtype_row_bytes(q8.dtype, p.k) + 3] ^= 1;
    declare();
    judge(&out, &q8, NULL, NULL);
    ck_assert_msg(row.verdict == PAR_DIVERGED && row.worst.pos == 1, "other activations");
    /* A row with an infinity has no scale and no codes. */
    if (_i) {
        p.x[3] = INFINITY;
        const float none = NAN;
        memcpy(tap, &none, 4);
        memset(tap + 4, 0, (size_t)p.k);
        tap[fwd_dtype_row_bytes(q8.dtype, p.k) + 3] ^= 1;
        declare();
        numerics.accumulator = FWD_ACC_EXACT;
        numerics.store = q8.dtype;
        judge(&q8, &in, NULL, NULL);
        ck_assert_msg(row.verdict == PAR_HELD && row.n_nonfinite_got == 1, "%s", par_verdict_name(row.verdict));
    }
}
END_TEST

/* Every value of both formats to a tap's row and back. */
START_TEST(rows_and_back) {
    static uint8_t in[2 * 65536], out[2 * 65536];
    static double value[65536];
    double scale;
    const float d = 0.375f;
    for (int i = 0; i < 65536; i++) {
        in[2 * i] = (uint8_t)i;
        in[2 * i + 1] = (uint8_t)((i >> 8 & 0x7f) == 0x7f && i & 0x80 ? 0 : i >> 8); /* one NaN only has a place */
    }
    par_tensor_read(FWD_BF16, in, 65536, value, &scale);
    ck_assert(scale == 1 && value[0x3f80] == 1 && value[0xbf00] == -0.5);
    par_tensor_write(FWD_BF16, value, 65536, scale, out);
    ck_assert_mem_eq(in, out, sizeof in);
    memcpy(in, &d, 4);
    for (int i = 0; i < 256; i++)
        in[4 + i] = (uint8_t)i;
    par_tensor_read(FWD_E4M3, in, 256, value, &scale);
    ck_assert(scale == 0.375 && value[0x7e] == 448 && value[0x81] == -0x1p-9 && isnan(value[0x7f]));
    for (int i = 0; i < 0x7f; i++)
        ck_assert_msg(value[i] == small_value(i), "code %d is %g", i, value[i]);
    par_tensor_write(FWD_E4M3, value, 256, scale, out);
    out[4 + 0xff] = 0xff; /* a NaN's sign is no matter */
    ck_assert_mem_eq(in, out, 260);
}
END_TEST

/* ---- attention ---- */
enum { HD = 64, HEADS = 6, KV = 2, KEYS = 200, FIRST = 190 };

static double to_f16(double x) {
    return (double)par_f16_to_f32(par_f32_to_f16((float)x));
}

/* One head at one position: tiles of 64 keys, the weights against the largest score so far. skip: a key that is not
 * seen. */
static void attend(const float *q, const float *k, const float *v, int n_keys, int skip, float *o) {
    static double weights[KEYS], value[KEYS];
    const struct core c = {16, 25, 0, -1};
    float m = -INFINITY, sum = 0, scale = 0.125f, constant = scale * 1.44269504f;
    double qd[HD], kd[HD];
    float acc[HD] = {0}, score[KEYS];
    for (int d = 0; d < HD; d++)
        qd[d] = to_f16((double)q[d]);
    for (int begin = 0; begin < n_keys; begin += 64) {
        int end = n_keys - begin < 64 ? n_keys : begin + 64;
        float top = m;
        for (int j = begin; j < end; j++) {
            for (int d = 0; d < HD; d++)
                kd[d] = (double)k[j * KV * HD + d];
            score[j] = j == skip ? -INFINITY : emulate(&c, qd, kd, HD);
            top = fmaxf(top, score[j]);
        }
        float shrink = exp2f((m - top) * constant), part = 0;
        for (int j = begin; j < end; j++) {
            float w = exp2f((score[j] - top) * constant);
            part += w;
            weights[j - begin] = to_f16((double)w);
        }
        sum = sum * shrink + part;
        m = top;
        for (int d = 0; d < HD; d++) {
            /* The sum so far goes into the first step as an addend of its own. */
            static double a[KEYS + 1], b[KEYS + 1];
            a[0] = (double)(acc[d] * shrink);
            b[0] = 1;
            for (int j = begin; j < end; j++) {
                value[j - begin] = (double)v[j * KV * HD + d];
                a[1 + j - begin] = weights[j - begin];
                b[1 + j - begin] = value[j - begin];
            }
            acc[d] = emulate(&c, a, b, 1 + end - begin);
        }
    }
    for (int d = 0; d < HD; d++)
        o[d] = acc[d] * (1 / sum);
}

struct attention {
    float q[KEYS * HEADS * HD], k[KEYS * KV * HD], v[KEYS * KV * HD], o[KEYS * HEADS * HD];
};
static struct attention at;

static void run_attention(int skip) {
    for (int pos = FIRST; pos < KEYS; pos++)
        for (int h = 0; h < HEADS; h++) {
            int kv = h / (HEADS / KV) * HD;
            bool here = pos == FIRST + 3 && h == 4;
            attend(at.q + (pos * HEADS + h) * HD, at.k + kv, at.v + kv, pos + 1, here ? skip : -1,
                   at.o + (pos * HEADS + h) * HD);
        }
}

static void judge_attention(void) {
    reset();
    model.config.n_head = HEADS;
    model.config.n_kv_head = KV;
    model.config.head_dim = HD;
    numerics.accumulator = FWD_ACC_TENSOR;
    numerics.operand = FWD_F16;
    numerics.chain_block = 16;
    numerics.cut_bits = 25;
    numerics.key_lanes = 4;
    numerics.key_segment = 64;
    numerics.exp_ulp = 2;
    numerics.div_ulp = 0.5f;
    numerics.chain_extra = 0;
    struct fwd_view q = float_view(FWD_OP_QCUR_ROPE, at.q + FIRST * HEADS * HD, HEADS * HD, FIRST, KEYS - FIRST);
    struct fwd_view k = float_view(FWD_OP_KCUR_ROPE, at.k, KV * HD, 0, KEYS);
    struct fwd_view v = float_view(FWD_OP_VCUR, at.v, KV * HD, 0, KEYS);
    struct fwd_view out = float_view(FWD_OP_KQV_OUT, at.o + FIRST * HEADS * HD, HEADS * HD, FIRST, KEYS - FIRST);
    judge(&out, &q, &k, &v);
}

START_TEST(attention_on_tensor_cores) {
    /* With a bias of q and k, turned by position, as Qwen2's layer 0 has it: scores of thousands; and without. */
    for (int biased = 0; biased < 2; biased++) {
        for (int i = 0; i < KEYS * HEADS * HD; i++)
            at.q[i] = normal() + (biased && i % 8 == 1 ? 60.0f : 0);
        for (int i = 0; i < KEYS * KV * HD; i++) {
            double turned = biased && i % 8 == 1 ? 60 * cos(0.02 * (i / (KV * HD))) : 0;
            at.k[i] = (float)to_f16((double)normal() + turned);
            at.v[i] = (float)to_f16((double)normal());
        }
        run_attention(-1);
        judge_attention();
        printf("  attention, biased %d: ratio %.3f\n", biased, row.ratio_max);
        expect_held((KEYS - FIRST) * HEADS * HD);
        run_attention(77);
        judge_attention();
        ck_assert_msg(biased || (row.verdict == PAR_DIVERGED && row.worst.pos == FIRST + 3 && row.worst.row / HD == 4),
                      "without a key: %g", row.ratio_max);
    }
}
END_TEST

int main(void) {
    Suite *s = suite_create("spec_tensor");
    TCase *t = tcase_create("spec_tensor");
    tcase_set_timeout(t, 60);
    tcase_add_loop_test(t, products_hold, 0, N_FORMS);
    tcase_add_loop_test(t, products_without_a_term, 0, N_FORMS);
    tcase_add_test(t, other_arithmetic);
    tcase_add_loop_test(t, converted_rows, 0, 2);
    tcase_add_test(t, rows_and_back);
    tcase_add_test(t, attention_on_tensor_cores);
    suite_add_tcase(s, t);
    SRunner *runner = srunner_create(s);
    srunner_set_fork_status(runner, CK_FORK);
    srunner_run_all(runner, CK_ENV);
    int n_run = srunner_ntests_run(runner), n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_run == 0 ? 3 : n_failed != 0;
}
