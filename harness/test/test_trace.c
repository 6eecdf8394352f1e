/* Traces of the built-in model along real paths: schedules that must agree do, bit for bit, tap for tap; what the file
 * says is what ran; a path that taps disturb is found out. */
#include "compare/diff.h"
#include "fixture/make.h"
#include "run/trace.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char dir[32], model[64];
static struct fwd_gguf *gguf;
static const int32_t prompt[] = {5, 17, 300, 41, 2, 99, 7};
enum { N_PROMPT = 7, N_DECODE = 3, N_IDS = N_PROMPT + N_DECODE };

static void setup(void) {
    struct fwd_error err;
    (void)snprintf(dir, sizeof dir, "/tmp/parity-trace-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    (void)snprintf(model, sizeof model, "%s/m.gguf", dir);
    struct par_make_args args = {.shape = par_shape_at(0), .seed = 1, .path = model};
    ck_assert_msg(par_model_make(&args, &err) == FWD_OK, "%s", err.message);
    ck_assert_msg(fwd_gguf_open(&gguf, model, &err) == FWD_OK, "%s", err.message);
}

static void teardown(void) {
    static const char *const names[] = {"m.gguf", "a", "b"};
    fwd_gguf_close(gguf);
    for (int i = 0; i < 3; i++) {
        char path[64];
        (void)snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        (void)unlink(path);
    }
    ck_assert_int_eq(rmdir(dir), 0); /* nothing else was left */
}

static struct par_trace_options options(const char *path, enum par_schedule schedule, int chunk) {
    return (struct par_trace_options){
        .file = gguf,
        .path = fwd_path_find(path),
        .knobs = {.size = sizeof(struct fwd_knobs), .n_threads = 1, .n_seq = 1, .kv_type = FWD_F16},
        .schedule = schedule,
        .chunk = chunk,
        .ids = prompt,
        .n_prompt = N_PROMPT,
        .n_decode = N_DECODE,
        .model_path = model,
        .model_sha256 = "aa",
        .capture = {.layer_last = -1}};
}

static struct par_capture *trace(const struct par_trace_options *o, char name, struct par_trace_result *r) {
    char path[64];
    struct par_capture *c;
    struct fwd_error err;
    (void)snprintf(path, sizeof path, "%s/%c", dir, name);
    ck_assert_msg(par_trace(o, path, r, &err) == FWD_OK, "%s", err.message);
    ck_assert_msg(par_capture_open(&c, path, &err) == FWD_OK, "%s", err.message);
    return c;
}

static const struct schedule_row {
    enum par_schedule schedule;
    int chunk;
} schedules[] = {{PAR_SCHEDULE_PREFILL, 3}, {PAR_SCHEDULE_STEP, 0}, {PAR_SCHEDULE_NOCACHE, 0}};

/* Every schedule of the cached path gives the taps of prefill in one call, bit for bit. */
START_TEST(schedules_agree) {
    struct par_trace_result ra, rb;
    struct par_diff *d;
    struct fwd_error err;
    struct par_trace_options oa = options("q4k-cpu", PAR_SCHEDULE_PREFILL, 0);
    struct par_trace_options ob = options("q4k-cpu", schedules[_i].schedule, schedules[_i].chunk);
    struct par_capture *a = trace(&oa, 'a', &ra), *b = trace(&ob, 'b', &rb);
    ck_assert_int_eq(ra.verdict, PAR_HELD);
    ck_assert_uint_eq(ra.logits_hash, ra.aa_hash);
    ck_assert_uint_eq(ra.logits_hash, rb.logits_hash);
    ck_assert_int_eq(ra.next, rb.next);
    ck_assert_msg(par_diff_run(&d, a, b, &(struct par_diff_options){.exact = true}, &err) == FWD_OK, "%s", err.message);
    ck_assert_msg(d->verdict == PAR_HELD, "%s: %s", par_verdict_name(d->verdict), d->why);
    /* the 21 taps of one layer and the 4 outside, at least */
    ck_assert_int_eq(d->n_compared, d->n_rows);
    ck_assert_int_ge(d->n_rows, 4 + 21);
    par_diff_free(d);
    par_capture_close(a);
    par_capture_close(b);
}
END_TEST

START_TEST(reference_and_candidate) {
    struct par_trace_result ra, rb;
    struct par_diff *d;
    struct fwd_error err;
    static const int32_t forced[] = {3, 2, 1};
    struct par_trace_options oa = options("f32", PAR_SCHEDULE_PREFILL, 0);
    struct par_trace_options ob = options("q4k-cpu", PAR_SCHEDULE_PREFILL, 0);
    oa.forced = ob.forced = forced; /* the two may choose otherwise */
    struct par_capture *a = trace(&oa, 'a', &ra), *b = trace(&ob, 'b', &rb);
    ck_assert_msg(par_diff_run(&d, a, b, &(struct par_diff_options){.filter = "^(Qcur|l_out|result_output|inp_embd)"},
                               &err) == FWD_OK,
                  "%s", err.message);
    ck_assert_int_eq(d->verdict, PAR_UNMEASURED);
    ck_assert_ptr_nonnull(strstr(d->why, "nothing judged"));
    ck_assert_str_eq(d->rows[0].label, "inp_embd");
    ck_assert_uint_eq(d->rows[0].n_differ, 0); /* both decode the same row */
    ck_assert_str_eq(d->rows[d->first].label, "Qcur-0");
    ck_assert(d->rows[d->first].m.cosine > 0.99);
    par_diff_free(d);
    par_capture_close(a);
    par_capture_close(b);
}
END_TEST

START_TEST(says_what_ran) {
    struct par_trace_result r;
    struct fwd_error err;
    char want[64], ids[128] = "";
    struct par_trace_options o = options("q4k-cpu", PAR_SCHEDULE_STEP, 0);
    struct par_capture *c = trace(&o, 'a', &r);
    ck_assert_str_eq(par_capture_fact(c, PAR_FACT_SCHEMA), PAR_CAPTURE_SCHEMA);
    ck_assert_str_eq(par_capture_fact(c, PAR_FACT_PATH), "q4k-cpu");
    ck_assert_str_eq(par_capture_fact(c, PAR_FACT_SCHEDULE), "step");
    ck_assert_str_eq(par_capture_fact(c, PAR_FACT_MODEL), "aa");
    ck_assert_str_eq(par_capture_fact(c, PAR_FACT_MODEL_PATH), "m.gguf");
    ck_assert_str_eq(par_capture_fact(c, PAR_FACT_N_PROMPT), "7");
    ck_assert_str_eq(par_capture_fact(c, PAR_FACT_POSITIONS), "0:10");
    ck_assert_ptr_nonnull(strstr(par_capture_fact(c, PAR_FACT_VARIANTS), "matmul_q Q4_K "));
    ck_assert_ptr_nonnull(strstr(par_capture_fact(c, PAR_FACT_KNOBS), "kv=F16 head=quant"));
    (void)snprintf(want, sizeof want, "0x%016llx", (unsigned long long)r.logits_hash);
    ck_assert_str_eq(par_capture_fact(c, PAR_FACT_LOGITS), want);
    ck_assert_str_eq(par_capture_fact(c, PAR_FACT_AA), want);
    ck_assert_int_eq(strncmp(par_capture_fact(c, PAR_FACT_IDS), "5,17,300,41,2,99,7,", 19), 0);

    /* the logits in the file are those that were hashed, and their best tokens are the ids that follow */
    struct fwd_hash h;
    fwd_hash_begin(&h);
    size_t at = 0;
    for (int i = 0; i < N_PROMPT; i++)
        at += (size_t)snprintf(ids + at, sizeof ids - at, "%s%d", i ? "," : "", (int)prompt[i]);
    for (int p = N_PROMPT - 1; p < N_IDS; p++) {
        char name[64];
        (void)snprintf(name, sizeof name, "result_output@%d:%d", p, p + 1);
        const struct par_capture_tensor *t = par_capture_find(c, name);
        ck_assert_msg(t != NULL, "%s", name);
        float *logits = malloc(t->n_bytes);
        ck_assert_int_eq(par_capture_read(c, t, logits, &err), FWD_OK);
        fwd_hash_add(&h, logits, t->n_bytes);
        int32_t best = par_argmax(logits, t->n_values);
        if (p + 1 < N_IDS)
            at += (size_t)snprintf(ids + at, sizeof ids - at, ",%d", (int)best);
        else
            ck_assert_int_eq(best, r.next);
        free(logits);
    }
    ck_assert_uint_eq(fwd_hash_end(&h), r.logits_hash);
    ck_assert_str_eq(par_capture_fact(c, PAR_FACT_IDS), ids);
    par_capture_close(c);
}
END_TEST

START_TEST(filters) {
    static const char *const cur[] = {"^Qcur-"};
    struct par_trace_result r;
    size_t n;
    struct par_trace_options o = options("q4k-cpu", PAR_SCHEDULE_PREFILL, 0);
    o.capture = (struct par_capture_options){cur, 1, 0, 0};
    struct par_capture *c = trace(&o, 'a', &r);
    const struct par_capture_tensor *t = par_capture_tensors(c, &n);
    ck_assert_uint_eq(n, 1 + N_DECODE);
    for (size_t i = 0; i < n; i++)
        ck_assert(t[i].op == FWD_OP_QCUR && t[i].layer == 0);
    par_capture_close(c);
    o.capture.layer_first = o.capture.layer_last = 999;
    c = trace(&o, 'b', &r);
    ck_assert_int_eq(r.verdict, PAR_UNMEASURED);
    par_capture_close(c);
}
END_TEST

START_TEST(all_logits) {
    struct par_trace_result r;
    struct par_trace_options o = options("q4k-cpu", PAR_SCHEDULE_PREFILL, 0);
    o.all_logits = true;
    struct par_capture *c = trace(&o, 'a', &r);
    const struct par_capture_tensor *t = par_capture_find(c, "result_output@0:7");
    ck_assert_ptr_nonnull(t);
    ck_assert_int_eq(t->shape[0], N_PROMPT);
    par_capture_close(c);
}
END_TEST

/* A path whose logits depend on whether somebody looks. */
static enum fwd_status shy_run(struct fwd_session *s, const struct fwd_run_args *args, struct fwd_error *err) {
    enum fwd_status rc = fwd_path_find("q4k-cpu")->run(s, args, err);
    if (args->tap && args->logits && rc == FWD_OK)
        args->logits[0] += 1;
    return rc;
}

START_TEST(shy_path_is_mistrusted) {
    struct par_trace_result r;
    struct fwd_path shy = *fwd_path_find("q4k-cpu");
    shy.run = shy_run;
    struct par_trace_options o = options("q4k-cpu", PAR_SCHEDULE_PREFILL, 0);
    o.path = &shy;
    struct par_capture *c = trace(&o, 'a', &r);
    ck_assert_int_eq(r.verdict, PAR_MISTRUSTED);
    ck_assert_uint_ne(r.logits_hash, r.aa_hash);
    par_capture_close(c);
}
END_TEST

START_TEST(errors_leave_nothing) {
    struct par_trace_result r;
    struct fwd_error err;
    char path[64];
    (void)snprintf(path, sizeof path, "%s/a", dir);
    static const int32_t far_id[] = {1, 2000000000};
    struct par_trace_options o = options("q4k-cpu", PAR_SCHEDULE_PREFILL, 0);
    o.ids = far_id;
    o.n_prompt = 2;
    o.n_decode = 0;
    ck_assert_int_eq(par_trace(&o, path, &r, &err), FWD_ERANGE);
    ck_assert_msg(strstr(err.message, "2000000000") != NULL, "%s", err.message);
    ck_assert_int_ne(access(path, F_OK), 0);
    o = options("q4k-cpu", PAR_SCHEDULE_PREFILL, 0);
    ck_assert_int_eq(par_trace(&o, "/nonexistent/a", &r, &err), FWD_EIO);
    ck_assert_msg(strstr(err.message, "/nonexistent/a") != NULL, "%s", err.message);
}
END_TEST

int main(void) {
    Suite *s = suite_create("trace");
    TCase *t = tcase_create("paths");
    tcase_set_timeout(t, 120);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_loop_test(t, schedules_agree, 0, (int)(sizeof schedules / sizeof *schedules));
    tcase_add_test(t, reference_and_candidate);
    tcase_add_test(t, says_what_ran);
    tcase_add_test(t, filters);
    tcase_add_test(t, all_logits);
    tcase_add_test(t, shy_path_is_mistrusted);
    tcase_add_test(t, errors_leave_nothing);
    suite_add_tcase(s, t);
    SRunner *runner = srunner_create(s);
    srunner_set_fork_status(runner, CK_FORK);
    srunner_run_all(runner, CK_ENV);
    int n_run = srunner_ntests_run(runner), n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_run == 0 ? 3 : n_failed != 0;
}
