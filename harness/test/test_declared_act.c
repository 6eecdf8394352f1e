/* Rounding by declaration: a float path whose taps are rounded as q4k-cpu declares has the bits of the reference's own
 * knob for it. */
#include "run/declared_act.h"
#include "run/drive.h"
#include "test/made_run.h"

struct rounding {
    struct par_declared_act act;
    int n_rounded;
    struct fwd_error err;
};

static int on_tap(void *ud, const struct fwd_view *view) {
    struct rounding *r = ud;
    struct fwd_numerics numerics;
    r->n_rounded += par_declared_act_of(&r->act, view->op, view->layer, &numerics) && numerics.act != FWD_F32;
    return par_declared_act_round(&r->act, view, 1, &r->err) != FWD_OK;
}

static struct fwd_session *open_path(const struct fwd_path *path, const char *act) {
    struct fwd_error err = {.message = ""};
    struct fwd_session *s;
    struct fwd_knobs knobs = {.size = sizeof knobs,
                              .n_threads = 2,
                              .n_ctx = N_PROMPT,
                              .n_seq = 1,
                              .n_batch = N_PROMPT,
                              .kv_type = FWD_F32,
                              .act = act};
    ck_assert_msg(path->open(&s, model, &knobs, &err) == FWD_OK, "%s", err.message);
    return s;
}

static float *logits_of(struct fwd_session *s, fwd_tap_fn *tap, void *ud) {
    const struct fwd_path *path = fwd_path_find("f32");
    struct fwd_error err = {.message = ""};
    uint8_t want[N_PROMPT];
    memset(want, 1, sizeof want);
    float *out = fwd_alloc((size_t)(N_PROMPT * path->config(s)->n_vocab), sizeof *out);
    struct par_drive d = {.path = path, .session = s, .schedule = PAR_SCHEDULE_PREFILL, .tap = tap, .tap_ud = ud};
    ck_assert_msg(par_drive_run(&d, prompt, N_PROMPT, N_PROMPT, want, out, &err) == FWD_OK, "%s", err.message);
    return out;
}

START_TEST(rounds_as_the_knob_does) {
    const struct fwd_path *cand = fwd_path_find("q4k-cpu"), *f32 = fwd_path_find("f32");
    struct fwd_session *declares = open_path(cand, NULL), *plain = open_path(f32, NULL);
    struct fwd_session *knob = open_path(f32, "as:q4k-cpu");
    struct rounding r = {.act = {.path = cand, .session = declares}};
    struct fwd_error err = {.message = ""};
    ck_assert_int_eq(fwd_pool_create(&r.act.pool, 2, &err), FWD_OK);
    float *rounded = logits_of(plain, on_tap, &r), *expected = logits_of(knob, NULL, NULL);
    float *unrounded = logits_of(plain, NULL, NULL);
    size_t n = (size_t)(N_PROMPT * f32->config(plain)->n_vocab) * sizeof *rounded;
    ck_assert_msg(!*r.err.message, "%s", r.err.message);
    ck_assert_int_ge(r.n_rounded, 4 * f32->config(plain)->n_layer);
    ck_assert_int_eq(memcmp(rounded, expected, n), 0);
    ck_assert_int_ne(memcmp(unrounded, expected, n), 0);
    fwd_free(rounded);
    fwd_free(expected);
    fwd_free(unrounded);
    fwd_pool_free(r.act.pool);
    cand->close(declares);
    f32->close(plain);
    f32->close(knob);
}
END_TEST

/* ---- formats of tensor cores, against their tables ---- */

static struct fwd_numerics declared_numerics;
static bool declare(const struct fwd_session *s, enum fwd_op op, int layer, struct fwd_numerics *out) {
    (void)s;
    (void)op;
    (void)layer;
    *out = declared_numerics;
    return true;
}

static void round_row(float *x, int n) {
    struct fwd_error err = {.message = ""};
    struct fwd_path path = {.numerics = declare};
    struct par_declared_act a = {.path = &path};
    struct fwd_view v = {
        .op = FWD_OP_ATTN_NORM, .n_pos = 1, .dtype = FWD_F32, .ne = {n, 1}, .nb = {4, 4 * n}, .data = x};
    ck_assert_int_eq(fwd_pool_create(&a.pool, 1, &err), FWD_OK);
    ck_assert_msg(par_declared_act_round(&a, &v, 7, &err) == FWD_OK, "%s", err.message);
    fwd_pool_free(a.pool);
}

START_TEST(bf16_is_the_upper_half_of_f32) {
    float x[256];
    uint32_t bits = 0x3f800000;
    declared_numerics = (struct fwd_numerics){.act = FWD_BF16, .act_rule = FWD_ACT_NEAREST};
    for (int i = 0; i < 256; i++) {
        bits += 0x00013579u; /* every fraction, odd and even ones, over several octaves */
        memcpy(&x[i], &bits, sizeof bits);
    }
    float before[256];
    memcpy(before, x, sizeof x);
    round_row(x, 256);
    for (int i = 0; i < 256; i++) {
        uint32_t from, to;
        memcpy(&from, &before[i], sizeof from);
        memcpy(&to, &x[i], sizeof to);
        uint32_t even = (from + 0x7fffu + (from >> 16 & 1)) & 0xffff0000u;
        ck_assert_msg(to == even, "%08x became %08x, expected %08x", from, to, even);
    }
}
END_TEST

/* With 448 in the row its scale is 1: every value that E4M3 has stays, and what lies between goes to the nearer one. */
START_TEST(e4m3_has_its_own_values) {
    float x[256], table[127];
    declared_numerics = (struct fwd_numerics){.act = FWD_E4M3, .act_rule = FWD_ACT_AMAX448};
    for (int code = 0; code < 127; code++)
        table[code] = code < 8 ? ldexpf((float)code, -9) : ldexpf(8 + (float)(code % 8), code / 8 - 10);
    ck_assert_double_eq((double)table[126], 448);
    memcpy(x, table, sizeof table);
    for (int i = 0; i < 126; i++)
        x[127 + i] = -(table[i] + 0.25f * (table[i + 1] - table[i]));
    round_row(x, 127 + 126);
    for (int i = 0; i < 127; i++)
        ck_assert_msg(x[i] == table[i], "%g became %g", (double)table[i], (double)x[i]);
    for (int i = 0; i < 126; i++)
        ck_assert_msg(x[127 + i] == -table[i], "a quarter above %g became %g", (double)table[i], (double)x[127 + i]);
}
END_TEST

/* Weights rounded to E4M3 move a sum by so much; the values moved in their stead must move it as much. */
START_TEST(moved_values_stand_in_for_rounded_weights) {
    enum { N = 4096 };
    static float w[N], x[N], rounded[N], moved[N];
    uint64_t state = 1;
    for (int k = 0; k < N; k++) {
        float pair[2];
        for (int j = 0; j < 2; j++) { /* the sum of four uniform ones: near enough to weights */
            pair[j] = 0;
            for (int i = 0; i < 4; i++) {
                state = state * 6364136223846793005u + 1442695040888963407u;
                pair[j] += (float)(int32_t)(state >> 32) * 0x1p-31f;
            }
        }
        w[k] = pair[0];
        x[k] = moved[k] = pair[1];
    }
    memcpy(rounded, w, sizeof w);
    declared_numerics = (struct fwd_numerics){.act = FWD_E4M3, .act_rule = FWD_ACT_AMAX448};
    round_row(rounded, N);
    declared_numerics = (struct fwd_numerics){.act = FWD_BF16, .act_rule = FWD_ACT_NEAREST, .operand = FWD_E4M3};
    round_row(moved, N);
    double by_weights = 0, by_values = 0;
    for (int k = 0; k < N; k++) {
        double dw = (double)(rounded[k] - w[k]) * (double)x[k], dx = (double)(moved[k] - x[k]) * (double)w[k];
        by_weights += dw * dw;
        by_values += dx * dx;
    }
    ck_assert_msg(by_values > 0.7 * by_weights && by_values < 1.4 * by_weights, "variance %g, by weights %g", by_values,
                  by_weights);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("declared act");
    TCase *tcase = tcase_create("made model");
    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_add_test(tcase, rounds_as_the_knob_does);
    tcase_add_test(tcase, bf16_is_the_upper_half_of_f32);
    tcase_add_test(tcase, e4m3_has_its_own_values);
    tcase_add_test(tcase, moved_values_stand_in_for_rounded_weights);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_FORK);
    srunner_run_all(runner, CK_NORMAL);
    int n_run = srunner_ntests_run(runner), n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_run == 0 ? 3 : n_failed != 0;
}
