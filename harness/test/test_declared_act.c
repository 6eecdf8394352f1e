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
    return par_declared_act_round(&r->act, view, &r->err) != FWD_OK;
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

int main(void) {
    Suite *suite = suite_create("declared act");
    TCase *tcase = tcase_create("made model");
    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_add_test(tcase, rounds_as_the_knob_does);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_FORK);
    srunner_run_all(runner, CK_NORMAL);
    int n_run = srunner_ntests_run(runner), n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_run == 0 ? 3 : n_failed != 0;
}
