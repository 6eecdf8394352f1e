/* The evaluators where test_spec.c does not go: the second tie rule, activations that are quantised and back, partial
 * rotation with factors, binary16 outputs, values that are no numbers, several calls and threads. Every expected number
 * is worked out beside it. Most of these cases were found missing by a mutation that survived (ci/test_mutations.sh).
 */
#include "spec/bound.h"
#include "spec/second_look.h"
#include "spec/spec_quant.h"
#include "spec/tie_slack.h"
#include "test/spec_case.h"

#include <math.h>

START_TEST(ties_away_from_zero) {
    /* amax 127: the values themselves round, half away from zero and with their sign */
    float x[32] = {127, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, -126.5f, 0.49f, -0.49f};
    const int want[] = {127, 1, 2, 3, -1, -2, -3, -127, 0, 0};
    struct spec_q8 q;
    ck_assert(par_q8_quantise_as(FWD_ACT_AMAX127_AWAY, x, 32, &q));
    for (int i = 0; i < 10; i++)
        ck_assert_msg(q.q[i] == want[i], "code %d: got %d, expected %d", i, q.q[i], want[i]);
    ck_assert_msg(q.d == 1 && q.sum16[0] == 127 + 6 - 6 - 127, "d %g, sum %d", (double)q.d, q.sum16[0]);
    ck_assert_msg(!par_q8_quantise_as((enum fwd_act_rule)99, x, 32, &q), "a rule that nobody declared");
}
END_TEST

static struct fwd_view block_view(void *bytes, int64_t n) {
    struct fwd_view v = {.size = sizeof v, .op = FWD_OP_ATTN_NORM_Q8, .n_pos = 1, .dtype = FWD_Q8_32, .data = bytes};
    v.ne[0] = n;
    v.ne[1] = 1;
    return v;
}

START_TEST(quantised_and_back) {
    /* d = 1 + 2^-23, codes 3 and 5. In F32 d * 3 = 3 + 1.5 * 2^-22 is a tie and goes to the even 3 + 2^-21; d * 5 = 5 +
     * 1.25 * 2^-21 goes down to 5 + 2^-21. With weights 5 and -3: 15 + 5 * 2^-21 - 15 - 3 * 2^-21 = 2^-20; unrounded
     * the two products cancel. The path declares exact sums, so that nothing hides the difference. */
    reset();
    float d = 1 + 0x1p-23f, w[32] = {5, -3}, y[] = {0x1p-20f};
    uint8_t act[40] = {0};
    memcpy(act, &d, 4);
    act[8] = 3;
    act[9] = 5;
    layer.q = weight_of(FWD_TYPE_F32, w, 1, 32);
    numerics.act = FWD_Q8_32;
    numerics.dequantised = true;
    numerics.accumulator = FWD_ACC_EXACT;
    struct fwd_view in = block_view(act, 32), out = float_view(FWD_OP_QCUR, y, 1, 0, 1);
    judge(&out, &in, NULL, NULL);
    expect_held(1);
    ck_assert_msg(row.worst.expected == 0x1p-20, "expected value %a", row.worst.expected);
}
END_TEST

START_TEST(rope_part_with_factors) {
    /* 4 of 6 dimensions turn, theta 10000: frequencies 1 and 10000^(-2/4) = 0.01, over factors 2 and 4: 0.5 and
     * 0.0025. Position 2: angles 1 and 0.005; cos 0.005 = 1 - 1.25e-5 + 2.6e-11, sin 0.005 = 0.005 - 2.08333e-8. */
    const double c1 = 0.54030230586813972, s1 = 0.84147098480789651;
    const double c2 = 1 - 1.25e-5 + 625e-12 / 24, s2 = 0.005 - 125e-9 / 6 + 3125e-15 / 120;
    float x[] = {1, 2, 3, 4, 5, 6}, factors[] = {2, 4}, y[6] = {0, 0, 0, 0, 5, 6};
    reset();
    model.config.n_head = model.config.n_kv_head = 1;
    model.config.head_dim = 6;
    model.config.n_rope = 4;
    model.config.rope_theta = 10000;
    model.rope_factors = weight_of(FWD_TYPE_F32, factors, 1, 2);
    numerics.angle = FWD_ACC_F64;
    numerics.sincos_ulp = 0.5f;
    y[0] = (float)(1 * c1 - 2 * s1);
    y[1] = (float)(1 * s1 + 2 * c1);
    y[2] = (float)(3 * c2 - 4 * s2);
    y[3] = (float)(3 * s2 + 4 * c2);
    struct fwd_view in = float_view(FWD_OP_KCUR, x, 6, 2, 1), out = float_view(FWD_OP_KCUR_ROPE, y, 6, 2, 1);
    judge(&out, &in, NULL, NULL);
    expect_held(6);
    expect_caught(&out, y, 3, 8 * 0x1p-24 * 4, &in, NULL, NULL);
}
END_TEST

static void one_head(void) {
    reset();
    model.config.n_head = model.config.n_kv_head = 1;
    model.config.head_dim = 2;
}

START_TEST(attention_sums_round) {
    /* Three keys of equal score: weights 1. In F32 1 + 0.75 * 2^-23 rounds up to 1 + 2^-23, less 1 leaves 2^-23, a
     * third of that comes out. Exactly it is 0.25 * 2^-23: a difference of 2^-25 in a sum of magnitudes 2/3, which is
     * within the bound of the sum over the keys, and within no other part of it. */
    one_head();
    float q[2] = {0}, k[6] = {0}, v[6] = {1, 0, 0.75f * 0x1p-23f, 0, -1, 0}, o[2] = {0x1p-23f / 3, 0};
    struct fwd_view qv = float_view(FWD_OP_QCUR_ROPE, q, 2, 2, 1), out = float_view(FWD_OP_KQV_OUT, o, 2, 2, 1);
    struct fwd_view kv = float_view(FWD_OP_KCUR_ROPE, k, 2, 0, 3), vv = float_view(FWD_OP_VCUR, v, 2, 0, 3);
    judge(&out, &qv, &kv, &vv);
    expect_held(2);
    ck_assert_uint_eq(row.n_systematic, 0);
    /* Rows that begin after the first position are not all that the op read. */
    one_head();
    kv.pos0 = vv.pos0 = 1;
    judge(&out, &qv, &kv, &vv);
    ck_assert_msg(row.verdict == PAR_UNMEASURED && strstr(row.note, "0 rows of keys"), "%s", row.note);
}
END_TEST

static struct fwd_view half_view(enum fwd_op op, uint16_t *data, int64_t n) {
    struct fwd_view v = float_view(op, NULL, n, 0, 1);
    v.dtype = FWD_F16;
    v.nb[0] = 2;
    v.nb[1] = 2 * n;
    v.data = data;
    return v;
}

START_TEST(binary16_store) {
    /* 1 + 1.5 * 2^-11 lies between 1 (0x3c00, 1.5 units of 2^-11 away) and 1 + 2^-10 (0x3c01, half a unit away, right).
     */
    reset();
    float w[] = {1, 0x3p-12f}, x[] = {1, 1};
    uint16_t y[] = {0x3c01};
    layer.q = weight_of(FWD_TYPE_F32, w, 1, 2);
    numerics.store = FWD_F16;
    struct fwd_view in = float_view(FWD_OP_ATTN_NORM, x, 2, 0, 1), out = half_view(FWD_OP_QCUR, y, 1);
    judge(&out, &in, NULL, NULL);
    expect_held(1);
    y[0] = 0x3c00;
    judge(&out, &in, NULL, NULL);
    ck_assert_msg(row.verdict == PAR_DIVERGED && row.ratio_max > 1.4 && row.ratio_max < 1.5,
                  "the other neighbour, 1.5 half ulps off: ratio %g", row.ratio_max);
    /* 65600 is beyond the last binary16 and the half way point 65520: infinite on both sides is right. 65504 then is
     * not, nor is an infinity where 40000 belongs. */
    reset();
    float a[] = {65599, 40000}, b[] = {1, 0};
    uint16_t z[] = {0x7c00, 0x78e2}; /* 40000 = 1.220703125 * 2^15 */
    model.config.n_embd = 2;
    numerics.store = FWD_F16;
    struct fwd_view va = float_view(FWD_OP_ATTN_OUT, a, 2, 0, 1), vb = float_view(FWD_OP_INP_EMBD, b, 2, 0, 1);
    out = half_view(FWD_OP_FFN_INP, z, 2);
    judge(&out, &va, &vb, NULL);
    expect_held(1);
    ck_assert_msg(row.n_nonfinite_got == 1 && row.n_nonfinite_expected == 1, "one infinity on both sides");
    z[1] = 0x7c00;
    judge(&out, &va, &vb, NULL);
    ck_assert_msg(row.verdict == PAR_NONFINITE && row.n_nonfinite_mismatch == 1 && row.worst.row == 1, "40000 is not");
}
END_TEST

START_TEST(kinds_of_no_number) {
    /* NaN where infinity belongs, and the reverse: not finite on both sides, and still wrong. */
    float a[] = {NAN, INFINITY}, b[] = {1, 1}, y[] = {NAN, INFINITY};
    struct fwd_view va = float_view(FWD_OP_ATTN_OUT, a, 2, 0, 1), vb = float_view(FWD_OP_INP_EMBD, b, 2, 0, 1);
    struct fwd_view out = float_view(FWD_OP_FFN_INP, y, 2, 0, 1);
    for (int wrong = 0; wrong < 2; wrong++) {
        reset();
        model.config.n_embd = 2;
        y[0] = wrong ? NAN : INFINITY;
        y[1] = wrong ? NAN : INFINITY;
        judge(&out, &va, &vb, NULL);
        ck_assert_msg(row.verdict == PAR_NONFINITE && row.n_nonfinite_mismatch == 1 && row.worst.row == wrong,
                      "case %d: %s, row %lld", wrong, par_verdict_name(row.verdict), (long long)row.worst.row);
    }
}
END_TEST

START_TEST(calls_and_threads_add_up) {
    /* Of two positions the first is wrong: one of two threads sees it, and a later call that is right forgives nothing.
     */
    reset();
    float a[] = {1, 2}, b[] = {3, 4}, y[] = {5, 6};
    struct fwd_pool *pool;
    struct fwd_error err = {.message = ""};
    model.config.n_embd = 1;
    struct fwd_view va = float_view(FWD_OP_ATTN_OUT, a, 1, 0, 2), vb = float_view(FWD_OP_INP_EMBD, b, 1, 0, 2);
    struct fwd_view out = float_view(FWD_OP_FFN_INP, y, 1, 0, 2);
    struct par_eval e = {.op = FWD_OP_FFN_INP, .n_pos = 2, .n_in = 2, .in = {&va, &vb}, .out = &out};
    e.numerics = &numerics;
    ck_assert_int_eq(fwd_pool_create(&pool, 2, &err), FWD_OK);
    for (int call = 0; call < 2; call++) {
        y[0] = call ? 4 : 5;
        ck_assert_msg(par_judge_eval(&model, pool, &e, &row, &hist, &err) == FWD_OK, "%s", err.message);
        ck_assert_msg(row.verdict == PAR_DIVERGED && row.n_over == 1 && row.worst.pos == 0 && row.worst.got == 5,
                      "call %d: %s, %llu over", call, par_verdict_name(row.verdict), (unsigned long long)row.n_over);
        ck_assert_uint_eq(row.n_judged, (uint64_t)(2 * call + 2));
    }
    fwd_pool_free(pool);
}
END_TEST

START_TEST(caches_are_judged_whole) {
    /* Position 1 is not in the sample, and the stale row 0 of the cache that it left is seen all the same. */
    reset();
    model.config.n_kv_head = 1;
    model.config.head_dim = 2;
    float rows[] = {1, 2, 3, 4}, cache[] = {1, 2.5f, 3, 4};
    uint8_t none[] = {0};
    struct fwd_error err = {.message = ""};
    struct fwd_view in = float_view(FWD_OP_KCUR_ROPE, rows, 2, 0, 2);
    struct fwd_view out = {.op = FWD_OP_K_CACHE, .pos0 = 1, .n_pos = 1, .dtype = FWD_F32, .data = cache};
    memcpy(out.ne, (int64_t[]){2, 1, 2, 1}, sizeof out.ne);
    memcpy(out.nb, (int64_t[]){4, 8, 8, 8}, sizeof out.nb);
    struct par_eval e = {.op = FWD_OP_K_CACHE, .pos0 = 1, .n_pos = 1, .n_in = 1, .in = {&in}, .out = &out};
    e.judge_pos = none;
    e.numerics = &numerics;
    ck_assert_msg(par_judge_eval(&model, NULL, &e, &row, &hist, &err) == FWD_OK, "%s", err.message);
    ck_assert_msg(row.verdict == PAR_DIVERGED && row.n_judged == 4 && row.worst.pos == 0 && row.worst.row == 1,
                  "%s, %llu judged", par_verdict_name(row.verdict), (unsigned long long)row.n_judged);
}
END_TEST

START_TEST(growth_is_the_smaller_bound) {
    /* u = 2^-24. n = 4: the worst case 4 u is below L * 2 u = 17.1 u. n = 10000: L * 100 u = 856.6 u is below 10000 u,
     * unless the worst case was asked for. */
    const double u = 0x1p-24;
    ck_assert_double_eq_tol(par_growth(PAR_BOUND_LIKELY, 4, u) / u, 4, 1e-5);
    ck_assert_double_eq_tol(par_growth(PAR_BOUND_LIKELY, 10000, u) / u, 856.65, 0.1);
    ck_assert_double_eq_tol(par_growth(PAR_BOUND_WORST, 10000, u) / u, 10006, 1);
}
END_TEST

START_TEST(elements_of_the_sample) {
    /* Position 0 is not asked for and stays NaN; at position 1 1 + 2 = 3 is expected, 3.5 is there. */
    reset();
    float a[] = {9, 1}, b[] = {9, 2}, y[] = {9, 3.5f};
    uint8_t second[] = {0, 1};
    struct par_elements x;
    struct fwd_error err = {.message = ""};
    model.config.n_embd = 1;
    struct fwd_view va = float_view(FWD_OP_ATTN_OUT, a, 1, 0, 2), vb = float_view(FWD_OP_INP_EMBD, b, 1, 0, 2);
    struct fwd_view out = float_view(FWD_OP_FFN_INP, y, 1, 0, 2);
    struct par_eval e = {.op = FWD_OP_FFN_INP, .n_pos = 2, .n_in = 2, .in = {&va, &vb}, .out = &out};
    e.judge_pos = second;
    e.numerics = &numerics;
    ck_assert_msg(par_spec_elements(&model, NULL, &e, &x, &err) == FWD_OK, "%s", err.message);
    ck_assert_msg(isnan(x.expected[0]) && x.expected[1] == 3 && x.got[1] == 3.5, "%g %g %g", x.expected[0],
                  x.expected[1], x.got[1]);
    ck_assert_msg(x.bound[1] > 0 && x.bound[1] < 1e-6, "bound %g", x.bound[1]);
    par_elements_free(&x);
}
END_TEST

START_TEST(order_against_its_chain) {
    /* 100 terms one after the other are a chain of 100, in 8 lanes ceil(100 / 8) = 13 and 3 to join them. */
    struct par_order orders[PAR_MOST_ORDERS], one = {1, 0}, eight = {8, 0}, most = {256, 0}, beyond = {512, 0};
    bool declared;
    ck_assert_int_eq(par_orders(one, 16, 100, orders, &declared), 0);
    ck_assert_int_eq(par_orders(one, 100, 100, orders, &declared), 1);
    ck_assert_int_eq(par_orders(eight, 16, 100, orders, &declared), 1);
    ck_assert_int_eq(par_orders(eight, 15, 100, orders, &declared), 0);
    ck_assert(declared);
    ck_assert_int_eq(par_orders(most, 24, 4096, orders, &declared), 1);
    ck_assert_int_eq(par_orders(beyond, 24, 4096, orders, &declared), 0);
}
END_TEST

/* ---- ties of an engine that shows floats only
 * -------------------------------------------------------------------------------------------------------------- */
START_TEST(near_ties) {
    /* amax 127: values are their own scaled values. An ulp at 0.5 is 2^-24, at 100 2^-17: 4 of them are near, 5 not. */
    float x[32] = {127,
                   0.5f,
                   0.5f + 4 * 0x1p-24f,
                   0.5f + 5 * 0x1p-24f,
                   -100.5f,
                   -100.5f + 4 * 0x1p-17f,
                   100.5f - 5 * 0x1p-17f,
                   100,
                   1,
                   126.5f};
    const int want[] = {1, 2, 4, 5, 9};
    int at[32], n = par_near_ties(x, 32, at);
    ck_assert_int_eq(n, 5);
    for (int i = 0; i < n; i++)
        ck_assert_int_eq(at[i], want[i]);
    x[20] = INFINITY;
    ck_assert_int_eq(par_near_ties(x, 32, at), 0);
    float tiny[32] = {0x1p-101f};
    ck_assert_int_eq(par_near_ties(tiny, 32, at), 0);
}
END_TEST

/* Q4_1, d = 0.5, m = 0.25: codes 2 and 3 at elements 0 and 1, so weights 1.25 and 1.75; the others are 0.25. */
static void one_row(const uint8_t *w, bool dequantised) {
    reset();
    layer.q = weight_of(FWD_TYPE_Q4_1, w, 1, 32);
    numerics.act = FWD_Q8_32;
    numerics.act_rule = FWD_ACT_AMAX127;
    numerics.dequantised = dequantised;
}

START_TEST(ties_of_a_float_tap) {
    /* Activations 254, 5 and 4.99: d = 2, scaled 127, 2.5 and 2.495. By the declared rule 2.5 goes to the even 2: x =
     * 254, 4, 4 and y = 1.25 * 254 + 1.75 * 4 + 0.25 * 4 = 325.5. Rounded up it is 1.75 * 2 more, 329: one step of that
     * element. 4.99 is not near a tie. */
    const uint8_t w[20] = {0x00, 0x38, 0x00, 0x34, 2, 3};
    float x[32] = {254, 5, 4.99f}, y[1];
    uint8_t bytes[40] = {0};
    struct spec_q8 q;
    struct fwd_view in = float_view(FWD_OP_ATTN_NORM, x, 32, 0, 1), out = float_view(FWD_OP_QCUR, y, 1, 0, 1);
    for (int dequantised = 0; dequantised < 2; dequantised++) {
        y[0] = 325.5f;
        one_row(w, dequantised);
        judge(&out, &in, NULL, NULL);
        expect_held(1);
        ck_assert_msg(row.worst.expected == 325.5, "expected value %.9g", row.worst.expected);
        ck_assert_msg(row.tie_slack == 3.5 && row.tie_bound > 3.5 && row.tie_bound < 3.51, "slack %g of %g",
                      row.tie_slack, row.tie_bound);
        y[0] = 329;
        judge(&out, &in, NULL, NULL);
        ck_assert_msg(row.verdict == PAR_HELD && row.ratio_max > 0.99, "rounded to the other side: ratio %g",
                      row.ratio_max);
        y[0] = 329.5f; /* half a unit more is no step of anything */
        judge(&out, &in, NULL, NULL);
        ck_assert_msg(row.verdict == PAR_DIVERGED && row.n_over == 1, "%s", par_verdict_name(row.verdict));
    }
    /* Away from the tie nothing is forgiven. */
    x[1] = 5.01f;
    y[0] = 325.5f;
    one_row(w, false);
    judge(&out, &in, NULL, NULL);
    ck_assert_msg(row.verdict == PAR_DIVERGED && row.worst.expected == 329 && row.tie_slack == 0, "slack %g",
                  row.tie_slack);
    /* Nor is it where the bytes are shown. */
    x[1] = 5;
    par_q8_quantise(x, 32, &q);
    int32_t sum = q.sum16[0] + q.sum16[1];
    memcpy(bytes, &q.d, 4);
    memcpy(bytes + 4, &sum, 4);
    memcpy(bytes + 8, q.q, 32);
    in = block_view(bytes, 32);
    y[0] = 329;
    one_row(w, false);
    judge(&out, &in, NULL, NULL);
    ck_assert_msg(row.verdict == PAR_DIVERGED && row.worst.expected == 325.5 && row.tie_bound == 0, "bytes shown: %s",
                  par_verdict_name(row.verdict));
}
END_TEST

START_TEST(ties_by_position) {
    /* Three positions, the middle one without a tie; more ties than the list has room for at first. */
    enum { K = 1024, P = 3 };
    static float x[P * K], y[P];
    static uint8_t w[K / 32 * 34];
    for (int b = 0; b < K / 32; b++) {
        w[34 * b + 1] = 0x3c; /* Q8_0, d = 1, codes 1 in even blocks and 2 in odd ones: 1.5 a block */
        memset(w + 34 * b + 2, 1 + b % 2, 32);
    }
    for (int i = 0; i < P * K; i++)
        x[i] = i % 32 == 0 ? 127 : i / K == 1 ? 1 : 1.5f; /* 1.5 goes to 2 */
    for (int p = 0; p < P; p++)
        y[p] = K / 32 * 1.5f * (p == 1 ? 127 + 31 : 127 + 62);
    reset();
    layer.q = weight_of(FWD_TYPE_Q8_0, w, 1, K);
    numerics.act = FWD_Q8_32;
    numerics.act_rule = FWD_ACT_AMAX127;
    struct fwd_view in = float_view(FWD_OP_ATTN_NORM, x, K, 0, P), out = float_view(FWD_OP_QCUR, y, 1, 0, P);
    judge(&out, &in, NULL, NULL);
    expect_held(P);
    ck_assert_msg(row.tie_slack == 2 * 31 * 1.5 * (K / 32), "slack %g, expected one step of %d elements", row.tie_slack,
                  2 * 31 * (K / 32));
    y[1] += 1;
    judge(&out, &in, NULL, NULL);
    ck_assert_msg(row.verdict == PAR_DIVERGED && row.worst.pos == 1, "one step at the position without a tie");
}
END_TEST

int main(void) {
    Suite *s = suite_create("spec, edges");
    TCase *t = tcase_create("edges");
    tcase_set_timeout(t, 60);
    tcase_add_test(t, ties_away_from_zero);
    tcase_add_test(t, quantised_and_back);
    tcase_add_test(t, rope_part_with_factors);
    tcase_add_test(t, attention_sums_round);
    tcase_add_test(t, binary16_store);
    tcase_add_test(t, kinds_of_no_number);
    tcase_add_test(t, calls_and_threads_add_up);
    tcase_add_test(t, caches_are_judged_whole);
    tcase_add_test(t, growth_is_the_smaller_bound);
    tcase_add_test(t, elements_of_the_sample);
    tcase_add_test(t, order_against_its_chain);
    tcase_add_test(t, near_ties);
    tcase_add_test(t, ties_of_a_float_tap);
    tcase_add_test(t, ties_by_position);
    suite_add_tcase(s, t);
    SRunner *runner = srunner_create(s);
    srunner_set_fork_status(runner, CK_FORK);
    srunner_run_all(runner, CK_ENV);
    int n_run = srunner_ntests_run(runner), n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_run == 0 ? 3 : n_failed != 0;
}
