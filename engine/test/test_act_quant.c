/* test_act_quant.c: every variant of act_quant_k and act_quant_32 against ref, byte for byte; ref against the rule of
 * act_quant.h in double, with ties, limits, tiny, huge and non-finite blocks. */
#include "core/cpu.h"
#include "core/half.h"
#include "ops/act_quant/act_quant.h"
#include "ops/variant_table.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { N = 1024, N_KINDS = 13 };

static uint64_t rng_state;

static uint32_t next_random(void) {
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng_state >> 33);
}

static float next_unit(void) {
    return (float)next_random() / 2147483648.0f - 0.5f;
}

/* Value i of a row of the given kind. */
static float value_of(int kind, int i) {
    float x = next_unit();
    switch (kind) {
    case 0:
        return x;
    case 1: /* ties: amax 127, so that codes are the values */
        return i % 32 == 5 ? 127.0f : (float)((int)(next_random() % 252) - 126) + 0.5f;
    case 2: /* the same at another scale */
        return i % 32 == 31 ? -127.0f * 0x1p-40f : ((float)((int)(next_random() % 252) - 126) + 0.5f) * 0x1p-40f;
    case 3: /* outliers */
        return next_random() % 100 ? x : x * 1e6f;
    case 4:
        return 0.0f;
    case 5: /* either side of the smallest amax that counts */
        return i / 256 % 2 ? 0x1p-100f : 0x1.fffffep-101f;
    case 6:
        return x * 0x1p-126f;
    case 7:
        return x * 0x1.fp127f * 2.0f;
    case 8:
        return next_random() % 300 ? x : NAN;
    case 9:
        return next_random() % 300 ? x : next_random() % 2 ? INFINITY : -INFINITY;
    case 10:
        return i % 2 ? -x : -0.0f;
    case 11:
        return i % 64 < 32 ? 3.4028235e38f : -3.4028235e38f;
    default: /* every magnitude there is */
        return fwd_bits_f32((next_random() & 0x80ffffffu) | (next_random() % 254) << 23);
    }
}

static void fill_row(int kind, float *x) {
    for (int i = 0; i < N; i++)
        x[i] = value_of(kind, i);
}

/* ---- ref against the rule ---- */

/* One block by the rule; x * id in double is exact, so that its rounding to F32 is the cast's. */
static float expected_block(const float *x, int n, int *q) {
    double amax = 0;
    bool finite = true;
    for (int i = 0; i < n; i++) {
        q[i] = 0;
        finite = finite && isfinite(x[i]);
        amax = fmax(amax, fabs((double)x[i]));
    }
    if (!finite)
        return NAN;
    if (amax < ldexp(1, -100))
        return 0;
    float id = (float)(127.0 / amax);
    for (int i = 0; i < n; i++) {
        double v = (double)(float)((double)x[i] * (double)id), low = floor(v);
        double r = v - low < 0.5 ? low : v - low > 0.5 ? low + 1 : fmod(low, 2) == 0 ? low : low + 1;
        q[i] = (int)fmax(-127, fmin(127, r));
    }
    return (float)(amax / 127.0);
}

static void check_block(int kind, const float *x, int n, float d, const int8_t *q) {
    int want[256];
    float want_d = expected_block(x, n, want);
    if (isnan(want_d))
        ck_assert_uint_eq(fwd_f32_bits(d), 0x7fc00000u);
    else
        ck_assert_msg(fwd_f32_bits(d) == fwd_f32_bits(want_d), "kind %d: d %.9g, expected %.9g", kind, (double)d,
                      (double)want_d);
    for (int i = 0; i < n; i++)
        ck_assert_msg(q[i] == want[i], "kind %d value %d = %.9g: code %d, expected %d", kind, i, (double)x[i], q[i],
                      want[i]);
}

static int sum_codes(const int8_t *q, int n) {
    int sum = 0;
    for (int i = 0; i < n; i++)
        sum += q[i];
    return sum;
}

START_TEST(test_ref_follows_the_rule) {
    float x[N];
    struct fwd_q8_k k[N / 256];
    struct fwd_q8_32 s[N / 32];
    rng_state = 11 + (uint64_t)_i;
    fill_row(_i, x);
    ((act_quant_k_fn *)fwd_variant_find("act_quant_k", "ref")->fn)(x, k, N);
    ((act_quant_32_fn *)fwd_variant_find("act_quant_32", "ref")->fn)(x, s, N);
    for (int b = 0; b < N / 256; b++) {
        check_block(_i, x + 256 * b, 256, k[b].d, k[b].q);
        for (int j = 0; j < 16; j++)
            ck_assert_int_eq(k[b].sum16[j], sum_codes(k[b].q + 16 * j, 16));
    }
    for (int b = 0; b < N / 32; b++) {
        check_block(_i, x + 32 * b, 32, s[b].d, s[b].q);
        ck_assert_int_eq(s[b].sum, sum_codes(s[b].q, 32));
    }
}
END_TEST

/* ---- variants against ref ---- */

/* n values in one variant, into bytes that are checked to be untouched behind the row. */
static void quantise(const struct fwd_variant *v, const float *x, int n, unsigned char *out, size_t n_bytes) {
    memset(out, 0x88, n_bytes + 64);
    if (!strcmp(v->op, "act_quant_k"))
        ((act_quant_k_fn *)v->fn)(x, (struct fwd_q8_k *)(void *)out, n);
    else
        ((act_quant_32_fn *)v->fn)(x, (struct fwd_q8_32 *)(void *)out, n);
    for (int i = 0; i < 64; i++)
        ck_assert_uint_eq(out[n_bytes + (size_t)i], 0x88);
}

START_TEST(test_variants_agree) {
    static _Alignas(64) unsigned char want[N * 2], got[N * 2];
    float x[N + 1];
    int n_compared = 0, n_skipped = 0;
    const struct fwd_variant *v;
    for (int i = 0; (v = fwd_variant_row(i)) != NULL; i++) {
        if (strncmp(v->op, "act_quant_", 10) != 0)
            continue;
        if (v->needs & ~fwd_cpu_detect()) {
            n_skipped++;
            continue;
        }
        bool is_k = !strcmp(v->op, "act_quant_k");
        for (int kind = 0; kind < N_KINDS; kind++)
            for (int n = 256; n <= N; n += 256) {
                size_t n_bytes =
                    is_k ? (size_t)n / 256 * sizeof(struct fwd_q8_k) : (size_t)n / 32 * sizeof(struct fwd_q8_32);
                rng_state = 1000 + 10 * (uint64_t)kind + (uint64_t)n;
                fill_row(kind, x + 1); /* not aligned */
                quantise(fwd_variant_find(v->op, "ref"), x + 1, n, want, n_bytes);
                quantise(v, x + 1, n, got, n_bytes);
                ck_assert_msg(!memcmp(want, got, n_bytes), "%s %s: kind %d, %d values differ from ref", v->op,
                              v->variant, kind, n);
                n_compared++;
            }
    }
    printf("act_quant: %d rows byte-equal to ref\n", n_compared);
    if (n_skipped)
        printf("SKIPPED: act_quant: %d variants whose instructions this machine lacks\n", n_skipped);
    ck_assert_int_gt(n_compared, 0);
}
END_TEST

int main(void) {
    Suite *s = suite_create("act_quant");
    TCase *tc = tcase_create("act_quant");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, test_ref_follows_the_rule, 0, N_KINDS);
    tcase_add_test(tc, test_variants_agree);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_set_fork_status(sr, CK_FORK);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr), ran = srunner_ntests_run(sr);
    srunner_free(sr);
    return ran == 0 ? 3 : failed ? 1 : 0;
}
