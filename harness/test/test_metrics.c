/* Distances on arrays small enough to work out by hand. */
#include "compare/metrics.h"
#include "engine.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>

#define CLOSE(got, want, tol)                                                                                          \
    ck_assert_msg(fabs((got) - (want)) <= (tol), "%s: got %.17g, expected %.17g", #got, (got), (want))

static struct par_metrics measure(const float *ref, const float *got, int64_t n) {
    struct par_metrics m;
    struct par_metrics_acc *acc = par_metrics_begin();
    ck_assert_ptr_nonnull(acc);
    par_metrics_add(acc, ref, got, n, 0);
    par_metrics_end(acc, &m);
    par_metrics_free(acc);
    return m;
}

START_TEST(distances) {
    /* d = 0, 0.5, -1, 0: sum d^2 = 1.25; sum ref^2 = 1 + 4 + 9 + 16 = 30; ref.got = 1 + 5 + 6 + 16 = 28;
     * sum got^2 = 1 + 6.25 + 4 + 16 = 27.25 */
    const float ref[] = {1, 2, 3, 4}, got[] = {1, 2.5f, 2, 4};
    struct par_metrics m = measure(ref, got, 4);
    ck_assert_uint_eq(m.n, 4);
    CLOSE(m.max_abs, 1.0, 0);
    ck_assert_int_eq(m.max_at, 2);
    CLOSE(m.max_ref, 3.0, 0);
    CLOSE(m.max_got, 2.0, 0);
    CLOSE(m.nmse, 1.25 / 30, 1e-16);
    CLOSE(m.rel_l2, sqrt(1.25 / 30), 1e-16);
    CLOSE(m.cosine, 28 / sqrt(30 * 27.25), 1e-15);
    CLOSE(m.p50, 0.0, 0); /* two of four are equal */
    CLOSE(m.p99, 1.0, 0); /* the largest; never above the maximum */
}
END_TEST

START_TEST(split_and_index) {
    const float ref[] = {0, 0, 0, 0, 0, 0}, got[] = {0, 1, 0, 0, -3, 3};
    struct par_metrics m;
    struct par_metrics_acc *acc = par_metrics_begin();
    par_metrics_add(acc, ref + 3, got + 3, 3, 103);
    par_metrics_add(acc, ref, got, 3, 100);
    par_metrics_end(acc, &m);
    par_metrics_free(acc);
    ck_assert_int_eq(m.max_at, 104); /* |-3| and |3| tie: the lower index */
    ck_assert_msg(isnan(m.nmse) && isnan(m.rel_l2) && isnan(m.cosine), "a zero reference has no relative distance");
    m = measure(ref, ref, 6);
    CLOSE(m.nmse, 0.0, 0);
    CLOSE(m.cosine, 1.0, 0);
}
END_TEST

START_TEST(quantiles) {
    /* |d| = 1 .. 1000 times 2^-10: p50 = 500/1024, p99 = 990/1024, p99.9 = 999/1024, to 1/64 octave upwards */
    enum { N = 1000 };
    float ref[N], got[N];
    for (int i = 0; i < N; i++) {
        ref[i] = 1;
        got[i] = 1 + (float)(i + 1) / 1024;
    }
    struct par_metrics m = measure(ref, got, N);
    ck_assert_msg(m.p50 >= 500 / 1024.0 && m.p50 <= 500 / 1024.0 * 1.017, "p50 %g", m.p50);
    ck_assert_msg(m.p99 >= 990 / 1024.0 && m.p99 <= 990 / 1024.0 * 1.017, "p99 %g", m.p99);
    ck_assert_msg(m.p999 >= 999 / 1024.0 && m.p999 <= 1000 / 1024.0, "p999 %g", m.p999);
}
END_TEST

START_TEST(nonfinite) {
    const float ref[] = {NAN, INFINITY, -INFINITY, 1, NAN, 2};
    const float got[] = {NAN, INFINITY, INFINITY, NAN, 1, 2};
    struct par_metrics m = measure(ref, got, 6);
    ck_assert_uint_eq(m.n_nan_ref, 2);
    ck_assert_uint_eq(m.n_nan_got, 2);
    ck_assert_uint_eq(m.n_inf_ref, 2);
    ck_assert_uint_eq(m.n_inf_got, 2);
    ck_assert_uint_eq(m.n_nonfinite_mismatch, 3); /* -inf/inf, 1/NaN, NaN/1 */
    ck_assert_int_eq(m.max_at, 5);
    CLOSE(m.nmse, 0.0, 0);
    m = measure(ref, ref, 3);
    ck_assert_int_eq(m.max_at, -1);
    ck_assert_msg(isnan(m.nmse), "nothing finite was compared");
}
END_TEST

START_TEST(logits) {
    /* softmax(ln 1, ln 2, ln 1) = 1/4, 1/2, 1/4; softmax(ln 2, ln 1, ln 1) = 1/2, 1/4, 1/4;
     * KL = 1/4 ln(1/2) + 1/2 ln 2 + 0 = 1/4 ln 2 */
    const float l2 = 0.69314718f, ref[] = {0, l2, 0}, got[] = {l2, 0, 0};
    struct par_logit_metrics m;
    par_logits_compare(ref, got, 3, 1, &m);
    ck_assert_int_eq(m.top_ref, 1);
    ck_assert_int_eq(m.top_got, 0);
    CLOSE(m.margin_ref, (double)l2, 0);
    CLOSE(m.gap_in_ref, (double)l2, 0);
    CLOSE(m.kl, 0.25 * log(2.0), 1e-7);
    ck_assert_int_eq(m.topk_overlap, 0);
    par_logits_compare(ref, got, 3, 2, &m);
    ck_assert_int_eq(m.topk_overlap, 2); /* {1, 0} and {0, 1}: of ids 0 and 2 at the same logit the lower one */
}
END_TEST

START_TEST(logits_shift_and_nan) {
    const float ref[] = {1, 3, 2, 3}, shifted[] = {101, 103, 102, 103};
    struct par_logit_metrics m;
    par_logits_compare(ref, shifted, 4, 4, &m);
    ck_assert_int_eq(m.top_ref, 1); /* the lower id of the tie */
    ck_assert_int_eq(m.top_got, 1);
    CLOSE(m.margin_ref, 0.0, 0);
    CLOSE(m.kl, 0.0, 1e-12); /* softmax does not see a shift */
    ck_assert_int_eq(m.topk_overlap, 4);
    const float bad[] = {NAN, 3, INFINITY, NAN}, none[] = {NAN, NAN, NAN, NAN};
    par_logits_compare(ref, bad, 4, 4, &m);
    ck_assert_int_eq(m.top_got, 2);
    ck_assert_msg(isnan(m.kl), "kl %g", m.kl);
    ck_assert_uint_eq(m.diff.n_nonfinite_mismatch, 3);
    par_logits_compare(ref, none, 4, 4, &m);
    ck_assert_int_eq(m.top_got, -1);
}
END_TEST

/* What is added in parts and taken together is what is added at once: counts, maximum and quantiles equal, sums to
 * rounding. */
START_TEST(parts_are_the_whole) {
    enum { N = 4000, PARTS = 7 };
    static float ref[N], got[N];
    for (int i = 0; i < N; i++) {
        ref[i] = (float)(i % 97) - 48;
        got[i] = ref[i] + (float)(i * 37 % 64) * 0x1p-9f;
    }
    got[1234] = (float)NAN;
    ref[77] = got[77] = (float)INFINITY;
    got[2000] = ref[2000] + 3; /* the largest difference, twice: the first counts */
    got[3000] = ref[3000] + 3;
    struct par_metrics_acc *whole = par_metrics_begin(), *sum = par_metrics_begin(), *part = par_metrics_begin();
    struct par_metrics a, b;
    par_metrics_add(whole, ref, got, N, 0);
    for (int k = PARTS - 1; k >= 0; k--) {
        int begin = N * k / PARTS, end = N * (k + 1) / PARTS;
        par_metrics_add(part, ref + begin, got + begin, end - begin, begin);
        par_metrics_take(sum, part);
    }
    par_metrics_end(whole, &a);
    par_metrics_end(sum, &b);
    ck_assert(a.n == b.n && a.n_nan_got == b.n_nan_got && a.n_inf_ref == b.n_inf_ref &&
              a.n_nonfinite_mismatch == b.n_nonfinite_mismatch);
    ck_assert_int_eq(a.max_at, 2000);
    ck_assert_int_eq(b.max_at, 2000);
    ck_assert_double_eq(a.max_abs, b.max_abs);
    ck_assert_double_eq(a.p50, b.p50);
    ck_assert_double_eq(a.p999, b.p999);
    ck_assert_double_eq_tol(a.rel_l2, b.rel_l2, 1e-12 * a.rel_l2);
    ck_assert_double_eq_tol(a.cosine, b.cosine, 1e-12);
    par_metrics_free(whole);
    par_metrics_free(sum);
    par_metrics_free(part);
}
END_TEST

int main(void) {
    Suite *s = suite_create("metrics");
    TCase *t = tcase_create("metrics");
    tcase_set_timeout(t, 30);
    tcase_add_test(t, distances);
    tcase_add_test(t, parts_are_the_whole);
    tcase_add_test(t, split_and_index);
    tcase_add_test(t, quantiles);
    tcase_add_test(t, nonfinite);
    tcase_add_test(t, logits);
    tcase_add_test(t, logits_shift_and_nan);
    suite_add_tcase(s, t);
    SRunner *runner = srunner_create(s);
    srunner_set_fork_status(runner, CK_FORK);
    srunner_run_all(runner, CK_ENV);
    int n_run = srunner_ntests_run(runner), n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_run == 0 ? 3 : n_failed != 0;
}
