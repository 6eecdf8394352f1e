/* The arms of a candidate on a device, with q4k-cpu in a device's clothes: which arms it has, what a launch gone wrong
 * looks like beside the paths that promise the same bits, and where the report says that it ran. */
#include "test/made_run.h"

static struct fwd_plan_fault planned;
static int n_without_overlap;

static void describe_device(struct fwd_path_info *out) {
    fwd_path_find("q4k-cpu")->describe(out);
    out->name = "q4k-clothes";
    out->on_device = out->has_plan = out->overlaps = true;
}

static enum fwd_status tell_device(struct fwd_device_info *out, bool measure, struct fwd_error *err) {
    (void)measure;
    (void)err;
    (void)snprintf(out->name, sizeof out->name, "a card of this test");
    (void)snprintf(out->driver, sizeof out->driver, "driver 0");
    return FWD_OK;
}

/* The launch of one token's op is missing: its buffer keeps what it had. */
static enum fwd_status break_launch(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    (void)ud;
    return call->n_pos == 1 ? FWD_OK : call->builtin(call, err);
}

static enum fwd_status open_device(struct fwd_session **out, const struct fwd_gguf *file, const struct fwd_knobs *knobs,
                                   struct fwd_error *err) {
    const struct fwd_path *base = fwd_path_find("q4k-cpu");
    struct fwd_knobs own = *knobs;
    n_without_overlap += knobs->no_overlap;
    own.no_overlap = false;
    FWD_TRY(base->open(out, file, &own, err));
    if (!knobs->plan_hook || !knobs->plan_hook(knobs->plan_hook_ud, &planned))
        return FWD_OK;
    return base->override(*out, planned.op, planned.layer, break_launch, NULL, err);
}

static const struct fwd_path *on_device(void) {
    static struct fwd_path path;
    path = *fwd_path_find("q4k-cpu");
    path.name = "q4k-clothes";
    path.describe = describe_device;
    path.open = open_device;
    path.device = tell_device;
    return &path;
}

static const struct par_report_arm *arm(const struct outcome *o, const char *id) {
    for (int i = 0; i < o->report.n_arms; i++)
        if (!strcmp(o->report.arms[i].id, id))
            return &o->report.arms[i];
    return NULL;
}

static const char *hypothesis(const struct outcome *o, const char *id) {
    for (int i = 0; i < o->report.n_hypotheses; i++)
        if (!strcmp(o->report.hypotheses[i].id, id))
            return o->report.hypotheses[i].verdict;
    return "missing";
}

START_TEST(a_device_has_its_own_arms) {
    static const char *const has[] = {
        "slot_reuse", "schedule_sweep", "schedule_step", "overlap", "path_q4k-cpu", "head", "kv"};
    static const char *const has_not[] = {"threads", "variant", "variant_ref", "fp8_fast", "unfused"};
    struct made_run m = {.depth = PAR_DEFAULT, .cand = on_device()};
    struct outcome o = run_made(&m);
    ck_assert_msg(o.report.verdict == PAR_HELD, "%s: %s", par_verdict_name(o.report.verdict), o.report.answer);
    for (size_t i = 0; i < sizeof has / sizeof *has; i++)
        ck_assert_msg(arm(&o, has[i]) && arm(&o, has[i])->ran, "arm %s did not run", has[i]);
    for (size_t i = 0; i < sizeof has_not / sizeof *has_not; i++)
        ck_assert_msg(!arm(&o, has_not[i]), "arm %s means nothing here", has_not[i]);
    ck_assert(arm(&o, "path_q4k-cpu")->expect_same_bits && arm(&o, "path_q4k-cpu")->same_bits);
    ck_assert_int_eq(n_without_overlap, 1);
    ck_assert_double_eq(figure(&o, "cand.on_device"), 1);
    ck_assert_str_eq(hypothesis(&o, "H4"), "FALSIFIED");
    bool said = false;
    for (int i = 0; i < o.report.n_receipt; i++)
        said |= !strcmp(o.report.receipt[i].name, "candidate ran on") &&
                strstr(o.report.receipt[i].value, "a card of this test");
    ck_assert(said);
    drop(&o);
}
END_TEST

/* What the device alone does wrong: accused there, named, and not in the path that promised its bits. */
START_TEST(a_missing_launch_is_named) {
    struct made_run m = {.depth = PAR_DEFAULT, .cand = on_device(), .fault = "plan-node-missing@ffn_inp:2"};
    struct outcome o = run_made(&m);
    ck_assert_int_eq(o.report.verdict, PAR_DIVERGED);
    ck_assert_msg(!strncmp(o.report.guilty, "ffn_inp of layer 2", 18), "guilty: %s", o.report.guilty);
    ck_assert_msg(strstr(o.report.side, "the candidate, q4k-clothes"), "side: %s", o.report.side);
    ck_assert(!arm(&o, "path_q4k-cpu")->same_bits);
    ck_assert_double_eq(figure(&o, "arm.path_q4k-cpu.heals"), 1);
    ck_assert_double_ge(figure(&o, "routes.other_bits"), 1);
    drop(&o);
}
END_TEST

/* A CPU's report never says that it ran on a device, and lists the paths that could not run. */
START_TEST(a_cpu_is_no_device) {
    struct outcome o = run_with(NULL, FWD_HEAD_QUANT, PAR_DEFAULT);
    ck_assert_double_eq(figure(&o, "cand.on_device"), 0);
    const struct par_report_arm *twin = arm(&o, "path_q4k-cuda");
    ck_assert_ptr_nonnull(twin);
    ck_assert_msg(twin->ran ? twin->same_bits : strncmp(twin->result, "UNTESTED: ", 10) == 0, "%s", twin->result);
    drop(&o);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("routes");
    TCase *tcase = tcase_create("made model");
    tcase_set_timeout(tcase, 120);
    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_add_test(tcase, a_device_has_its_own_arms);
    tcase_add_test(tcase, a_missing_launch_is_named);
    tcase_add_test(tcase, a_cpu_is_no_device);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_FORK);
    srunner_run_all(runner, CK_NORMAL);
    int n_run = srunner_ntests_run(runner), n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_run == 0 ? 3 : n_failed != 0;
}
