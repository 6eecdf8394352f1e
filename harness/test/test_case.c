/* Cases: a planted fault of each kind becomes a small file that is red when it is replayed, for the reason recorded,
 * green without the fault, red on every variant, and refused when it lies. ci/test_case.sh does the same through the
 * program, in fresh processes. */
#include "localise/case.h"
#include "localise/replay.h"
#include "localise/shrink.h"

#include "test/made_model.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <unistd.h>

enum { LAYERS = 3, VOCAB = 400, N_PROMPT = 10, N_IDS = 14 };

static const made_types layer_types[LAYERS] = {
    {FWD_TYPE_Q4_K, FWD_TYPE_Q4_K, FWD_TYPE_Q6_K, FWD_TYPE_Q4_K, FWD_TYPE_Q4_K, FWD_TYPE_Q4_K, FWD_TYPE_Q6_K},
    {FWD_TYPE_Q4_0, FWD_TYPE_Q4_1, FWD_TYPE_Q5_0, FWD_TYPE_Q5_1, FWD_TYPE_Q8_0, FWD_TYPE_Q4_1, FWD_TYPE_Q5_0},
    {FWD_TYPE_Q4_K, FWD_TYPE_Q3_K, FWD_TYPE_Q8_0, FWD_TYPE_F16, FWD_TYPE_BF16, FWD_TYPE_F32, FWD_TYPE_Q5_K}};

static struct made model;
static char case_path[96];

static void set_up(void) {
    const struct made_shape shape = {"qwen2", LAYERS, 256,           512,           4,          2, VOCAB,
                                     128,     true,   FWD_TYPE_Q4_K, FWD_TYPE_Q6_K, layer_types};
    made_open(&model, &shape);
    (void)snprintf(case_path, sizeof case_path, "/tmp/parity-test-%ld.case", (long)getpid());
}

static void tear_down(void) {
    (void)unlink(case_path);
    made_free(&model);
}

/* ---- a run that accuses ----------------------------------------------------------------------------------------- */
struct run {
    struct par_case_context context;
    struct fwd_knobs knobs;
    struct par_fault fault;
    struct fwd_session *session;
    struct par_evidence_set evidence;
    int32_t ids[N_IDS];
};

static bool declared(void *ud, enum fwd_op op, int layer, struct fwd_numerics *out) {
    const struct run *r = ud;
    return r->context.path->numerics(r->session, op, layer, out);
}

static void hook_config(void *ud, struct fwd_config *config) {
    par_fault_hook_config(ud, config);
}

static void hook_model(void *ud, struct fwd_model *m) {
    par_fault_hook_model(ud, m);
}

static void plant(struct run *r, const char *text) {
    struct fwd_error err = {.message = ""};
    ck_assert_msg(par_fault_parse(text, &r->fault, &err) == FWD_OK, "%s", err.message);
    r->fault.n_prompt = N_PROMPT;
    ck_assert_msg(par_fault_place(&r->fault, model.file, par_spec_config(model.spec), &r->knobs, &err) == FWD_OK, "%s",
                  err.message);
    r->knobs.config_hook = hook_config;
    r->knobs.model_hook = hook_model;
    r->knobs.config_hook_ud = r->knobs.model_hook_ud = &r->fault;
    r->context.faults = &r->fault;
    r->context.n_faults = 1;
}

/* Drives the path with the fault and collects what the judge accuses. */
static void accuse(struct run *r, const char *path, const char *fault, enum fwd_head head, enum par_schedule schedule) {
    struct fwd_error err = {.message = ""};
    static float logits[N_IDS * VOCAB];
    uint8_t want[N_IDS];
    const struct par_op_row *rows;
    struct par_judge *judge;
    int n_rows;
    memset(r, 0, sizeof *r);
    memset(want, 1, sizeof want);
    for (int i = 0; i < N_IDS; i++)
        r->ids[i] = (i * 71 + 300) % VOCAB;
    r->knobs = (struct fwd_knobs){.size = sizeof r->knobs,
                                  .n_threads = 1,
                                  .n_ctx = N_IDS + 1,
                                  .n_seq = 1,
                                  .n_batch = N_IDS,
                                  .kv_type = FWD_F16,
                                  .head = head};
    r->context = (struct par_case_context){.file = model.file,
                                           .spec = model.spec,
                                           .pool = model.pool,
                                           .model_name = "made",
                                           .path = fwd_path_find(path),
                                           .knobs = &r->knobs,
                                           .schedule = schedule,
                                           .ids = r->ids,
                                           .n_prompt = N_PROMPT,
                                           .n_ids = N_IDS};
    if (fault)
        plant(r, fault);
    const struct fwd_path *p = r->context.path;
    ck_assert_msg(p->open(&r->session, model.file, &r->knobs, &err) == FWD_OK, "%s", err.message);
    if (fault)
        ck_assert_msg(par_fault_plant(&r->fault, p, r->session, &err) == FWD_OK, "%s", err.message);
    const struct par_judge_options options = {
        .numerics = declared, .numerics_ud = r, .sample_every = 1, .pool = model.pool, .evidence_bytes = 64 << 20};
    ck_assert_int_eq(par_judge_open(&judge, model.spec, &options, &err), FWD_OK);
    ck_assert_int_eq(par_judge_seq_begin(judge, &err), FWD_OK);
    ck_assert_int_eq(par_judge_tokens(judge, r->ids, N_IDS, &err), FWD_OK);
    struct par_drive d = {
        .path = p, .session = r->session, .schedule = schedule, .tap = par_judge_tap, .tap_ud = judge};
    ck_assert_msg(par_drive_run(&d, r->ids, N_PROMPT, N_IDS, want, logits, &err) == FWD_OK, "%s", err.message);
    ck_assert_msg(par_judge_rows(judge, &rows, &n_rows, &err) == FWD_OK, "%s", err.message);
    par_judge_take_evidence(judge, &r->evidence);
    par_judge_close(judge);
    p->close(r->session);
}

static void end_run(struct run *r) {
    par_evidence_free(&r->evidence);
    if (r->context.n_faults)
        par_fault_free(&r->fault);
}

/* ---- the table -------------------------------------------------------------------------------------------------- */
static const struct row {
    const char *path, *fault;
    enum fwd_op op; /* accused */
    enum fwd_head head;
    enum par_schedule schedule;
} rows[] = {
    {"q4k-cpu", "q4k-min-dropped@ffn_gate:0", FWD_OP_FFN_GATE, FWD_HEAD_QUANT, PAR_SCHEDULE_PREFILL},
    {"q4k-cpu", "q4k-min-dropped@Qcur:2", FWD_OP_QCUR, FWD_HEAD_QUANT, PAR_SCHEDULE_STEP},
    {"q4k-cpu", "q6k-as-q4k@ffn_out:0", FWD_OP_FFN_OUT, FWD_HEAD_QUANT, PAR_SCHEDULE_PREFILL},
    {"q4k-cpu", "f32-head-transposed", FWD_OP_RESULT_OUTPUT, FWD_HEAD_F32, PAR_SCHEDULE_PREFILL},
    {"q4k-cpu", "rope-pairing@Qcur_rope:1", FWD_OP_QCUR_ROPE, FWD_HEAD_QUANT, PAR_SCHEDULE_PREFILL},
    {"q4k-cpu", "rope-position@Kcur_rope:1", FWD_OP_KCUR_ROPE, FWD_HEAD_QUANT, PAR_SCHEDULE_PREFILL},
    {"q4k-cpu", "kv-row-stale@K_cache:1", FWD_OP_K_CACHE, FWD_HEAD_QUANT, PAR_SCHEDULE_PREFILL},
    {"q4k-cpu", "gqa-modulo", FWD_OP_KQV_OUT, FWD_HEAD_QUANT, PAR_SCHEDULE_PREFILL},
    {"q4k-cpu", "eps-other-model", FWD_OP_ATTN_NORM, FWD_HEAD_QUANT, PAR_SCHEDULE_PREFILL},
    {"f32", "eps-other-model", FWD_OP_ATTN_NORM, FWD_HEAD_QUANT, PAR_SCHEDULE_PREFILL},
};
enum { N_ROWS = sizeof rows / sizeof *rows };

static const struct par_evidence *find_accused(const struct run *r, enum fwd_op op) {
    for (int i = 0; i < r->evidence.n; i++)
        if (r->evidence.items[i].op == op)
            return &r->evidence.items[i];
    return NULL;
}

static void make_case(const struct row *row, struct par_case_info *info, struct par_case *c) {
    struct fwd_error err = {.message = ""};
    struct run r;
    accuse(&r, row->path, row->fault, row->head, row->schedule);
    const struct par_evidence *item = find_accused(&r, row->op);
    ck_assert_msg(item != NULL, "%s: %s is not accused", row->fault, fwd_op_name(row->op));
    (void)unlink(case_path);
    ck_assert_msg(par_case_make(&r.context, item, case_path, info, &err) == FWD_OK, "%s", err.message);
    ck_assert_msg(info->written, "%s: %s", row->fault, info->note);
    ck_assert_msg(par_case_read(c, case_path, &err) == FWD_OK, "%s", err.message);
    end_run(&r);
}

static struct par_replay replay(const struct par_case *c, const struct par_replay_options *options) {
    struct fwd_error err = {.message = ""};
    struct par_replay out;
    ck_assert_msg(par_case_replay(c, options, &out, &err) == FWD_OK, "%s", err.message);
    return out;
}

static bool is_red(const struct par_replay *r) {
    return r->verdict == PAR_DIVERGED || r->verdict == PAR_NONFINITE;
}

START_TEST(fault_becomes_case) {
    const struct row *row = &rows[_i];
    struct par_case_info info;
    struct par_case c;
    make_case(row, &info, &c);
    (void)printf("%-28s %6llu bytes, %d rows, %d blocks, %d positions, %d probes, ratio %.3g\n", row->fault,
                 (unsigned long long)info.n_bytes, info.n_rows, info.n_blocks, info.n_positions, info.n_probes,
                 par_case_ratio(&info.element));
    ck_assert_int_eq(c.op, row->op);
    ck_assert(par_case_ratio(&c.elements[0]) > 1);
    ck_assert_uint_le(info.n_bytes, PAR_CASE_MATMUL_BYTES);
    struct par_replay red = replay(&c, &(struct par_replay_options){.n_threads = 1});
    ck_assert(is_red(&red) && red.same_reason && !red.other_numerics);
    ck_assert(memcmp(&red.elements[0], &c.elements[0], sizeof c.elements[0]) == 0);
    struct par_replay green = replay(&c, &(struct par_replay_options){.no_fault = true});
    ck_assert_msg(green.verdict == PAR_HELD, "%s: %llu of %llu outside without the fault", row->fault,
                  (unsigned long long)green.n_over, (unsigned long long)green.n_judged);
    par_case_free(&c);
}
END_TEST

int main(void) {
    Suite *s = suite_create("case");
    TCase *t = tcase_create("cases");
    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, set_up, tear_down);
    tcase_add_loop_test(t, fault_becomes_case, 0, N_ROWS);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r), ran = srunner_ntests_run(r);
    srunner_free(r);
    return failed ? 1 : ran ? 0 : 3;
}
