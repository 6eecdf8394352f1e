/* The experiment with one wrong weight, on the built-in model: everything that changes an output is found and named
 * from all positions, nearly everything from one, and nothing is named wrongly. */
#include "fixture/make.h"
#include "run/selftest_weight.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char dir[32], model[64];
static struct fwd_gguf *gguf;
enum { N_IDS = 48, N_TRIALS = 120 };

static void setup(void) {
    struct fwd_error err = {.message = ""};
    (void)snprintf(dir, sizeof dir, "/tmp/parity-trials-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    (void)snprintf(model, sizeof model, "%s/m.gguf", dir);
    struct par_make_args args = {.shape = par_shape_at(0), .seed = 1, .path = model};
    ck_assert_msg(par_model_make(&args, &err) == FWD_OK, "%s", err.message);
    ck_assert_msg(fwd_gguf_open(&gguf, model, &err) == FWD_OK, "%s", err.message);
}

static void teardown(void) {
    fwd_gguf_close(gguf);
    (void)unlink(model);
    ck_assert_int_eq(rmdir(dir), 0);
}

static struct par_weight_trials run_trials(int n_ids, uint64_t seed) {
    struct fwd_error err = {.message = ""};
    struct par_weight_trials r;
    int32_t ids[N_IDS];
    for (int i = 0; i < N_IDS; i++)
        ids[i] = (i * 37 + 11) % 256;
    struct par_weight_trials_options o = {.file = gguf,
                                          .path = fwd_path_find("q4k-cpu"),
                                          .ids = ids,
                                          .n_ids = n_ids,
                                          .n_trials = N_TRIALS,
                                          .seed = seed,
                                          .n_threads = 1};
    ck_assert_msg(par_selftest_one_weight(&o, &r, &err) == FWD_OK, "%s", err.message);
    return r;
}

START_TEST(trials) {
    struct par_weight_trials r = run_trials(N_IDS, 5);
    ck_assert_int_eq(r.tried, N_TRIALS);
    ck_assert_int_eq(r.in_path_order, N_TRIALS); /* the declared chain is the kernel's, bit for bit */
    ck_assert_int_gt(r.n_matrices, 20);
    ck_assert_int_ge(r.changed_all, N_TRIALS - 2);
    ck_assert_int_eq(r.found_all, r.changed_all);
    ck_assert_int_eq(r.block_named_all, r.changed_all);
    ck_assert_int_eq(r.other_rows_accused, 0);
    ck_assert_int_eq(r.misnamed_all, 0);
    ck_assert_int_ge(r.changed_one, N_TRIALS * 9 / 10);
    ck_assert_msg(r.block_named_one * 100 >= r.changed_one * 93, "%d of %d", r.block_named_one, r.changed_one);
    ck_assert_int_le(r.misnamed_one, 1);
    ck_assert_int_eq(r.nmse_sees, 0); /* far too small for it */
    ck_assert_int_eq(r.cosine_sees, 0);
    ck_assert_int_ge(r.allclose_alarms, N_TRIALS * 9 / 10); /* sees much, and what is honest too */
}
END_TEST

/* With a prompt of one token the two ways of looking are the same. */
START_TEST(one_token) {
    struct par_weight_trials r = run_trials(1, 6);
    ck_assert(r.changed_all == r.changed_one && r.found_all == r.found_one);
    ck_assert_int_eq(r.block_named_all, r.block_named_one);
    ck_assert(r.found_one > N_TRIALS / 2 && r.found_one < N_TRIALS); /* some activations are zero */
}
END_TEST

START_TEST(refused) {
    struct fwd_error err = {.message = ""};
    struct par_weight_trials r;
    struct par_weight_trials_options o = {.file = gguf, .path = fwd_path_find("q4k-cpu"), .n_trials = 1};
    ck_assert_int_eq(par_selftest_one_weight(&o, &r, &err), FWD_EINPUT);
    ck_assert_msg(strstr(err.message, "0 tokens") != NULL, "%s", err.message);
    int32_t id = 1;
    o.ids = &id;
    o.n_ids = 1;
    o.path = fwd_path_find("f32"); /* its activations are not quantised */
    ck_assert_int_eq(par_selftest_one_weight(&o, &r, &err), FWD_ESTATE);
}
END_TEST

int main(void) {
    Suite *s = suite_create("weight trials");
    TCase *t = tcase_create("trials");
    tcase_set_timeout(t, 120);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, trials);
    tcase_add_test(t, one_token);
    tcase_add_test(t, refused);
    suite_add_tcase(s, t);
    SRunner *runner = srunner_create(s);
    srunner_set_fork_status(runner, CK_FORK);
    srunner_run_all(runner, CK_ENV);
    int n_run = srunner_ntests_run(runner), n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_run == 0 ? 3 : n_failed != 0;
}
