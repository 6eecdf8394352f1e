/* Cases: a bug in each op becomes a small file that is red when it is replayed, for the reason recorded, red on every
 * variant, green without the bug, and refused when it lies. A bug is a planted fault, or a path of this test whose op
 * is broken as if its source were. ci/test_case.sh does the same through the program, in fresh processes. */
#include "localise/case.h"
#include "localise/replay.h"
#include "localise/shrink.h"
#include "tap/capture.h"
#include "tap/safetensors.h"
#include "test/made_model.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
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

/* False: this model has no place for it. */
static bool plant(struct run *r, const char *text) {
    struct fwd_error err = {.message = ""};
    ck_assert_msg(par_fault_parse(text, &r->fault, &err) == FWD_OK, "%s", err.message);
    r->fault.n_prompt = N_PROMPT;
    if (par_fault_place(&r->fault, model.file, par_spec_config(model.spec), &r->knobs, &err) != FWD_OK)
        return false;
    r->knobs.config_hook = hook_config;
    r->knobs.model_hook = hook_model;
    r->knobs.config_hook_ud = r->knobs.model_hook_ud = &r->fault;
    r->context.faults = &r->fault;
    r->context.n_faults = 1;
    return true;
}

/* ---- paths with a bug of their own ------------------------------------------------------------------------------ */
/* When the op of the broken paths is wrong. */
enum when { ALWAYS, IN_BATCHES, LATE, AS_NAN };
static struct {
    enum fwd_op op;
    int layer;
    enum when when;
} bug;

static void break_code(const struct fwd_view *v, uint8_t *row) {
    int8_t *code = (int8_t *)row + (v->dtype == FWD_Q8_K ? 4 : 8) + 3;
    int by = *code > 0 ? -1 : 1;
    *code = (int8_t)(*code + by);
    if (v->dtype == FWD_Q8_K)
        *(int16_t *)(void *)(row + 260) = (int16_t)(*(int16_t *)(void *)(row + 260) + by);
    else
        *(int32_t *)(void *)(row + 4) += by;
}

/* Value 5 of a row gets a twentieth of value 6 on top. */
static void break_row(const struct fwd_view *v, uint8_t *row) {
    if (v->dtype == FWD_Q8_K || v->dtype == FWD_Q8_32) {
        break_code(v, row);
    } else if (v->dtype == FWD_F16) {
        row[2 * 5] ^= 0x10;
    } else if (v->dtype == FWD_F64) {
        double *x = (double *)(void *)row;
        x[5] = bug.when == AS_NAN ? (double)NAN : x[5] + 0.05 * x[6];
    } else {
        float *x = (float *)(void *)row;
        x[5] = bug.when == AS_NAN ? NAN : x[5] + 0.05f * x[6];
    }
}

static enum fwd_status broken_op(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    (void)ud;
    const struct fwd_view *v = call->out;
    bool cache = v->op == FWD_OP_K_CACHE || v->op == FWD_OP_V_CACHE;
    FWD_TRY(call->builtin(call, err));
    for (int i = 0; i < call->n_pos; i++) {
        int pos = call->pos0 + i;
        if ((bug.when == IN_BATCHES && call->n_pos < 4) || (bug.when == LATE && pos < 7))
            continue;
        break_row(v, (uint8_t *)v->data + (cache ? pos * v->nb[2] : i * v->nb[1]));
    }
    return FWD_OK;
}

static enum fwd_status open_broken(const struct fwd_path *base, struct fwd_session **out, const struct fwd_gguf *file,
                                   const struct fwd_knobs *knobs, struct fwd_error *err) {
    FWD_TRY(base->open(out, file, knobs, err));
    int n_layer = base->config(*out)->n_layer; /* a case has its layer only: the code of that op is broken in all */
    int layer = fwd_op_in_layer(bug.op) ? bug.layer < n_layer ? bug.layer : 0 : -1;
    return base->override(*out, bug.op, layer, broken_op, NULL, err);
}
static enum fwd_status open_q4k(struct fwd_session **out, const struct fwd_gguf *file, const struct fwd_knobs *knobs,
                                struct fwd_error *err) {
    return open_broken(fwd_path_find("q4k-cpu"), out, file, knobs, err);
}
static enum fwd_status open_f32(struct fwd_session **out, const struct fwd_gguf *file, const struct fwd_knobs *knobs,
                                struct fwd_error *err) {
    return open_broken(fwd_path_find("f32"), out, file, knobs, err);
}
static enum fwd_status open_f64(struct fwd_session **out, const struct fwd_gguf *file, const struct fwd_knobs *knobs,
                                struct fwd_error *err) {
    return open_broken(fwd_path_find("f64"), out, file, knobs, err);
}

/* The named path, or for a bug the same with another way to open it. */
static const struct fwd_path *choose_path(const char *name, bool broken) {
    static struct fwd_path copies[3];
    static const char *const names[] = {"q4k-cpu", "f32", "f64"};
    for (int i = 0; broken && i < 3; i++)
        if (!strcmp(names[i], name)) {
            copies[i] = *fwd_path_find(name);
            copies[i].open = i == 0 ? open_q4k : i == 1 ? open_f32 : open_f64;
            return &copies[i];
        }
    return fwd_path_find(name);
}

/* Drives the path with the fault and collects what the judge accuses. False: the fault has no place in the model. */
static bool accuse(struct run *r, const char *path, const char *fault, enum fwd_head head, enum par_schedule schedule) {
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
    r->context =
        (struct par_case_context){.file = model.file,
                                  .spec = model.spec,
                                  .pool = model.pool,
                                  .model_name = "made",
                                  .path = choose_path(path, fault == NULL),
                                  .role = fault && !strncmp(fault, "ref:", 4) ? PAR_ROLE_REFERENCE : PAR_ROLE_CANDIDATE,
                                  .knobs = &r->knobs,
                                  .schedule = schedule,
                                  .ids = r->ids,
                                  .n_prompt = N_PROMPT,
                                  .n_ids = N_IDS};
    if (fault && !plant(r, fault))
        return false;
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
    return true;
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
    {"f32", "ref:rope-pairing@Kcur_rope:2", FWD_OP_KCUR_ROPE, FWD_HEAD_QUANT, PAR_SCHEDULE_NOCACHE},
};
enum { N_ROWS = sizeof rows / sizeof *rows };

/* The last layer in which the op is accused: what all layers share must be found there too. */
static const struct par_evidence *find_accused(const struct run *r, enum fwd_op op) {
    const struct par_evidence *last = NULL;
    for (int i = 0; i < r->evidence.n; i++)
        if (r->evidence.items[i].op == op)
            last = &r->evidence.items[i];
    return last;
}

static void make_case(const struct row *row, struct par_case_info *info, struct par_case *c) {
    struct fwd_error err = {.message = ""};
    struct run r;
    ck_assert(accuse(&r, row->path, row->fault, row->head, row->schedule));
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

/* Every fault of the catalogue that the judge sees in a run like this one. By default one in five of them. */
START_TEST(catalogue_becomes_cases) {
    bool all = getenv("CHECK_LONG") != NULL;
    int n_made = 0;
    for (int i = 0; par_fault_row(i); i++) {
        const char *name = par_fault_row(i)->name;
        struct fwd_error err = {.message = ""};
        struct par_case_info info;
        struct run r;
        struct par_case c;
        if ((!all && i % 5 != _i) || par_fault_row(i)->change == PAR_CHANGE_RACE ||
            !accuse(&r, "q4k-cpu", name, FWD_HEAD_QUANT, PAR_SCHEDULE_PREFILL))
            continue;
        if (r.evidence.n == 0) {
            end_run(&r);
            continue;
        }
        ck_assert_msg(par_case_make(&r.context, &r.evidence.items[0], case_path, &info, &err) == FWD_OK, "%s",
                      err.message);
        ck_assert_msg(info.written, "%s: %s", name, info.note);
        ck_assert_msg(info.n_bytes < PAR_CASE_MATMUL_BYTES, "%s: %llu bytes", name, (unsigned long long)info.n_bytes);
        ck_assert_msg(par_case_read(&c, case_path, &err) == FWD_OK, "%s", err.message);
        struct par_replay green = replay(&c, &(struct par_replay_options){.no_fault = true});
        ck_assert_msg(green.verdict == PAR_HELD, "%s: %s without it", name, par_verdict_name(green.verdict));
        n_made++;
        par_case_free(&c);
        end_run(&r);
    }
    ck_assert_int_gt(n_made, all ? 100 : 10);
}
END_TEST

/* ---- bugs in the code ------------------------------------------------------------------------------------------- */
static const struct bug_row {
    const char *path;
    enum when when;
    enum par_schedule schedule;
} bug_rows[] = {
    {"q4k-cpu", ALWAYS, PAR_SCHEDULE_PREFILL}, {"q4k-cpu", IN_BATCHES, PAR_SCHEDULE_PREFILL},
    {"q4k-cpu", LATE, PAR_SCHEDULE_STEP},      {"q4k-cpu", LATE, PAR_SCHEDULE_NOCACHE},
    {"q4k-cpu", AS_NAN, PAR_SCHEDULE_SWEEP},   {"f32", ALWAYS, PAR_SCHEDULE_PREFILL},
    {"f32", LATE, PAR_SCHEDULE_PREFILL},       {"f64", IN_BATCHES, PAR_SCHEDULE_PREFILL},
};
enum { N_BUGS = sizeof bug_rows / sizeof *bug_rows };

/* The op broken in one layer: a case, red for its reason, green on the path as it is. */
static void check_bug(const struct bug_row *row) {
    struct fwd_error err = {.message = ""};
    struct run r;
    struct par_case_info info;
    struct par_case c;
    struct fwd_path_info path_info = {.size = sizeof path_info};
    fwd_path_find(row->path)->describe(&path_info);
    if (path_info.taps[bug.op] == FWD_TAP_ABSENT)
        return;
    ck_assert(accuse(&r, row->path, NULL, FWD_HEAD_QUANT, row->schedule));
    const struct par_evidence *item = par_evidence_find(&r.evidence, bug.op, fwd_op_in_layer(bug.op) ? bug.layer : -1);
    bool is_int = strstr(fwd_op_name(bug.op), "_q8") || strstr(fwd_op_name(bug.op), "_cache");
    if (!item && is_int)
        return; /* that layer's weights are floats, or a flipped bit that is none of a NaN's */
    ck_assert_msg(item != NULL, "%s of layer %d is not accused", fwd_op_name(bug.op), bug.layer);
    (void)unlink(case_path);
    ck_assert_msg(par_case_make(&r.context, item, case_path, &info, &err) == FWD_OK, "%s", err.message);
    ck_assert_msg(info.written, "%s-%d, %s: %s", fwd_op_name(bug.op), bug.layer, row->path, info.note);
    ck_assert_msg(info.n_bytes < 8192, "%s-%d: %llu bytes", fwd_op_name(bug.op), bug.layer,
                  (unsigned long long)info.n_bytes);
    ck_assert_msg(par_case_read(&c, case_path, &err) == FWD_OK, "%s", err.message);
    struct par_replay red = replay(&c, &(struct par_replay_options){.path = r.context.path});
    ck_assert(is_red(&red) && red.same_reason);
    struct par_replay green = replay(&c, &(struct par_replay_options){0});
    ck_assert_msg(green.verdict == PAR_HELD, "%s-%d: %llu of %llu outside, as %s", fwd_op_name(bug.op), bug.layer,
                  (unsigned long long)green.n_over, (unsigned long long)green.n_judged,
                  par_verdict_name(green.verdict));
    par_case_free(&c);
    end_run(&r);
}

START_TEST(bug_becomes_case) {
    int n = 0;
    bug.when = bug_rows[_i].when;
    for (bug.op = 0; bug.op < FWD_OP_COUNT; bug.op++)
        for (bug.layer = 0; bug.layer < LAYERS; bug.layer++) {
            bool mine = fwd_op_in_layer(bug.op) ? _i == 0 || bug.layer == ((int)bug.op + _i) % LAYERS : bug.layer == 0;
            if (mine)
                check_bug(&bug_rows[_i]);
            n += mine;
        }
    ck_assert_int_eq(n, 4 + 21 * (_i == 0 ? LAYERS : 1));
}
END_TEST

/* ---- variants --------------------------------------------------------------------------------------------------- */
static void make_bug(const char *path, enum fwd_op op, struct run *r, struct par_case *c) {
    struct fwd_error err = {.message = ""};
    struct par_case_info info;
    bug.op = op;
    bug.layer = 0;
    bug.when = ALWAYS;
    ck_assert(accuse(r, path, NULL, FWD_HEAD_QUANT, PAR_SCHEDULE_PREFILL));
    const struct par_evidence *item = par_evidence_find(&r->evidence, op, fwd_op_in_layer(op) ? 0 : -1);
    ck_assert_ptr_nonnull(item);
    ck_assert_msg(par_case_make(&r->context, item, case_path, &info, &err) == FWD_OK, "%s", err.message);
    ck_assert_msg(info.written, "%s", info.note);
    ck_assert_msg(par_case_read(c, case_path, &err) == FWD_OK, "%s", err.message);
}

/* An error above the kernel is there whatever the kernel; a path without the bug holds with each. */
START_TEST(red_on_every_variant) {
    static const enum fwd_op ops[] = {FWD_OP_ATTN_NORM, FWD_OP_ATTN_NORM_Q8, FWD_OP_QCUR,         FWD_OP_VCUR,
                                      FWD_OP_QCUR_ROPE, FWD_OP_KQV_OUT,      FWD_OP_FFN_INP,      FWD_OP_FFN_SWIGLU,
                                      FWD_OP_FFN_OUT,   FWD_OP_RESULT_NORM,  FWD_OP_RESULT_OUTPUT};
    static const char *const levels[] = {"ref", "avx2", "avx512"};
    struct run r;
    struct par_case c;
    struct fwd_error err;
    unsigned mask;
    make_bug("q4k-cpu", ops[_i], &r, &c);
    for (int i = 0; i < 3; i++) {
        if (fwd_cpu_parse(levels[i], fwd_cpu_detect(), &mask, &err) != FWD_OK)
            continue;
        struct par_replay red = replay(&c, &(struct par_replay_options){.path = r.context.path, .caps = levels[i]});
        ck_assert_msg(is_red(&red) && red.same_reason, "%s is %s on %s", fwd_op_name(ops[_i]),
                      par_verdict_name(red.verdict), levels[i]);
        ck_assert(strstr(red.variant, "none") == NULL && (i > 0 || !red.variant[0] || strstr(red.variant, "ref")));
        struct par_replay green = replay(&c, &(struct par_replay_options){.caps = levels[i]});
        ck_assert_int_eq(green.verdict, PAR_HELD);
    }
    struct par_replay other = replay(&c, &(struct par_replay_options){.path = fwd_path_find("f32")});
    if (strstr(fwd_op_name(ops[_i]), "_q8"))
        ck_assert_int_eq(other.verdict, PAR_UNMEASURED); /* it has no such op */
    else
        ck_assert_int_eq(other.verdict, PAR_HELD);
    par_case_free(&c);
    end_run(&r);
}
END_TEST

/* The run's own choice of a kernel and of a bound are what a replay takes when it is told nothing. */
START_TEST(knobs_are_recorded) {
    struct fwd_error err = {.message = ""};
    struct run r;
    struct par_case c;
    struct par_case_info info;
    make_bug("f32", FWD_OP_FFN_OUT, &r, &c);
    par_case_free(&c);
    r.knobs.force = "matmul_f=ref";
    r.context.bound = PAR_BOUND_WORST;
    ck_assert_msg(par_case_make(&r.context, &r.evidence.items[0], case_path, &info, &err) == FWD_OK, "%s", err.message);
    ck_assert_msg(info.written, "%s", info.note);
    ck_assert_int_eq(par_case_read(&c, case_path, &err), FWD_OK);
    ck_assert_int_eq(c.bound, PAR_BOUND_WORST);
    struct par_replay red = replay(&c, &(struct par_replay_options){.path = r.context.path});
    ck_assert(red.same_reason && memcmp(&red.elements[0], &c.elements[0], sizeof c.elements[0]) == 0);
    ck_assert_str_eq(red.variant, "matmul_f ref");
    par_case_free(&c);
    end_run(&r);
}
END_TEST

/* A path whose taps can only be read gets its inputs by overrides; one without them cannot be re-run, and says so. */
static enum fwd_tap_kind described;
static void describe_taps(struct fwd_path_info *out) {
    fwd_path_find("q4k-cpu")->describe(out);
    for (int op = 0; op < FWD_OP_COUNT; op++)
        out->taps[op] = described;
}

START_TEST(read_only_taps) {
    static const enum fwd_op ops[] = {FWD_OP_QCUR, FWD_OP_KQV_OUT, FWD_OP_FFN_OUT, FWD_OP_RESULT_OUTPUT};
    struct run r;
    struct par_case c;
    make_bug("q4k-cpu", ops[_i], &r, &c);
    struct fwd_path read_only = *r.context.path;
    read_only.describe = describe_taps;
    described = FWD_TAP_READ;
    struct par_replay out = replay(&c, &(struct par_replay_options){.path = &read_only});
    ck_assert_msg(out.same_reason && memcmp(&out.elements[0], &c.elements[0], sizeof c.elements[0]) == 0, "%s, %s",
                  par_verdict_name(out.verdict), out.note);
    described = FWD_TAP_ABSENT;
    out = replay(&c, &(struct par_replay_options){.path = &read_only});
    ck_assert_int_eq(out.verdict, PAR_UNMEASURED);
    ck_assert_msg(strstr(out.note, "cannot be re-run") != NULL, "%s", out.note);
    struct par_case_info info;
    struct fwd_error err;
    r.context.path = &read_only;
    (void)unlink(case_path);
    ck_assert_int_eq(par_case_make(&r.context, &r.evidence.items[0], case_path, &info, &err), FWD_OK);
    ck_assert(!info.written && strstr(info.note, "cannot be re-run"));
    ck_assert_int_ne(access(case_path, F_OK), 0);
    par_case_free(&c);
    end_run(&r);
}
END_TEST

/* What counts as the recorded reason: side and amount, in bounds. */
START_TEST(the_same_reason) {
    struct run r;
    struct par_case c;
    make_bug("q4k-cpu", FWD_OP_FFN_UP, &r, &c);
    const struct par_replay_options options = {.path = r.context.path};
    const struct par_case_element was = c.elements[0];
    const struct par_case_element same = {was.pos, was.row, was.expected,
                                          was.expected + (was.got - was.expected) * 1.05, was.bound};
    static const struct {
        double factor; /* of the recorded error */
        bool same;
    } rows_of_factors[] = {{1, true}, {1.05, true}, {0.95, true}, {1.2, false}, {0.8, false}, {-1, false}};
    ck_assert(par_case_ratio(&same) > 1.02 * par_case_ratio(&was));
    for (size_t i = 0; i < sizeof rows_of_factors / sizeof *rows_of_factors; i++) {
        c.elements[0].got = was.expected + (was.got - was.expected) * rows_of_factors[i].factor;
        struct par_replay out = replay(&c, &options);
        ck_assert(is_red(&out));
        ck_assert_msg(out.same_reason == rows_of_factors[i].same, "factor %g", rows_of_factors[i].factor);
    }
    c.elements[0] = was;
    c.elements[0].row = (was.row + 7) % 512; /* the op fails, and not there */
    struct par_replay elsewhere = replay(&c, &options);
    ck_assert(is_red(&elsewhere) && !elsewhere.same_reason);
    par_case_free(&c);
    end_run(&r);
}
END_TEST

/* What may pass for the same failure while shrinking. */
START_TEST(still_fails) {
    const struct par_case_element was = {0, 0, 1, 1.5, 0.01}; /* ratio 50 */
    static const struct {
        struct par_case_element now;
        bool same_side, either_side;
    } table[] = {
        {{0, 0, 1, 1.5, 0.01}, true, true},     {{0, 0, 2, 2.03, 0.01}, true, true},
        {{0, 0, 2, 2.015, 0.01}, false, false}, /* less than twice the bound */
        {{0, 0, 2, 2, 0.01}, false, false},     {{0, 0, 1, 0.5, 0.01}, false, true},
        {{0, 0, 0, 0.5, 0.01}, false, false}, /* nothing left to compute */
        {{0, 0, 1, NAN, 0.01}, false, false},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        ck_assert_int_eq(par_case_still_fails(&was, &table[i].now, 50, true), table[i].same_side);
        ck_assert_int_eq(par_case_still_fails(&was, &table[i].now, 50, false), table[i].either_side);
    }
    const struct par_case_element slight = {0, 0, 1, 1.011, 0.01}; /* ratio 1.1: nine tenths of it, and above 1 */
    const struct par_case_element as_slight = {0, 0, 1, 1.0105, 0.01}, inside = {0, 0, 1, 1.0099, 0.01};
    ck_assert(par_case_still_fails(&slight, &as_slight, 1.1, true));
    ck_assert(!par_case_still_fails(&slight, &inside, 1.1, true));
}
END_TEST

/* Beside the planted fault there is a bug: the case says that it is red without the fault too. */
START_TEST(red_without_the_fault) {
    struct fwd_error err = {.message = ""};
    struct run r;
    struct par_case c;
    struct par_case_info info;
    make_bug("q4k-cpu", FWD_OP_FFN_GATE, &r, &c);
    ck_assert(plant(&r, "rope-pairing@Qcur_rope:0"));
    ck_assert_msg(par_case_make(&r.context, &r.evidence.items[0], case_path, &info, &err) == FWD_OK, "%s", err.message);
    ck_assert(info.written);
    ck_assert_msg(strstr(info.note, "without the planted fault too") != NULL, "%s", info.note);
    par_case_free(&c);
    end_run(&r);
}
END_TEST

static enum fwd_status refuse(void *ud, const char *path, struct fwd_error *err) {
    (void)ud;
    ck_assert_int_eq(access(path, F_OK), 0);
    FWD_FAIL(FWD_ESTATE, err, "not in a fresh process");
}

/* A case that does not fail in a fresh process never gets its name. */
START_TEST(unverified_is_not_written) {
    struct run r;
    struct par_case c;
    struct par_case_info info;
    struct fwd_error err;
    char unverified[128];
    make_bug("q4k-cpu", FWD_OP_FFN_GATE, &r, &c);
    r.context.verify = refuse;
    (void)unlink(case_path);
    ck_assert_int_eq(par_case_make(&r.context, &r.evidence.items[0], case_path, &info, &err), FWD_OK);
    ck_assert(!info.written && !info.verified);
    ck_assert_str_eq(info.note, "not in a fresh process");
    (void)snprintf(unverified, sizeof unverified, "%s.unverified", case_path);
    ck_assert_int_ne(access(case_path, F_OK), 0);
    ck_assert_int_ne(access(unverified, F_OK), 0);
    par_case_free(&c);
    end_run(&r);
}
END_TEST

/* ---- ddmin ------------------------------------------------------------------------------------------------------ */
struct puzzle {
    const int *needed;
    int n_needed, n_asked, most;
};

static bool has_needed(void *ud, const uint8_t *keep) {
    struct puzzle *p = ud;
    if (p->n_asked++ >= p->most)
        return false;
    for (int i = 0; i < p->n_needed; i++)
        if (!keep[p->needed[i]])
            return false;
    return true;
}

START_TEST(ddmin_finds_the_units) {
    static const int needed[] = {0, 31, 32, 99};
    uint8_t keep[100];
    for (int n = 0; n <= 4; n++) {
        struct puzzle p = {needed, n, 0, 1000};
        memset(keep, 1, sizeof keep);
        ck_assert_int_eq(par_ddmin(100, keep, has_needed, &p, NULL), FWD_OK);
        int left = 0;
        for (int i = 0; i < 100; i++)
            left += keep[i];
        ck_assert_int_eq(left, n);
        for (int i = 0; i < n; i++)
            ck_assert(keep[needed[i]]);
        ck_assert_int_lt(p.n_asked, 150);
    }
    /* Out of budget, what is left is still a set that failed. */
    struct puzzle p = {needed, 4, 0, 9};
    memset(keep, 1, sizeof keep);
    ck_assert_int_eq(par_ddmin(100, keep, has_needed, &p, NULL), FWD_OK);
    p.most = 1000;
    ck_assert(has_needed(&p, keep));
}
END_TEST

/* ---- files that lie --------------------------------------------------------------------------------------------- */
/* A case as plain safetensors, which the reader takes too, with one thing changed. */
struct lie {
    const char *drop;         /* tensor or fact left out */
    const char *fact, *value; /* another value of a fact */
    const char *tensor;       /* whose bytes from `at` on are `bytes` */
    size_t at, n;
    const char *bytes;
    const char *dtype;   /* of that tensor instead */
    const char *message; /* what the refusal says */
};

static uint8_t *tell(const char *path, const struct lie *lie, size_t *n_bytes) {
    struct fwd_error err = {.message = ""};
    struct par_capture *f;
    struct par_st_tensor tensors[64];
    struct par_st_fact facts[64];
    size_t n_tensors, n_facts = 0, n_kept = 0, n_head = 0;
    uint64_t n_data = 0;
    char *head;
    ck_assert_msg(par_container_open(&f, path, PAR_CASE_SCHEMA, &err) == FWD_OK, "%s", err.message);
    const struct par_capture_tensor *t = par_capture_tensors(f, &n_tensors);
    uint8_t *data = malloc(1 << 20);
    for (size_t i = 0; i < n_tensors; i++) {
        if (lie->drop && !strcmp(lie->drop, t[i].name))
            continue;
        bool mine = lie->tensor && !strcmp(lie->tensor, t[i].name);
        struct par_st_tensor *out = &tensors[n_kept++];
        *out = (struct par_st_tensor){.name = t[i].name, .n_dims = t[i].n_dims, .begin = n_data};
        (void)snprintf(out->dtype, sizeof out->dtype, "%s", mine && lie->dtype ? lie->dtype : t[i].dtype);
        memcpy(out->shape, t[i].shape, sizeof t[i].shape);
        ck_assert_int_eq(par_capture_read(f, &t[i], data + n_data, &err), FWD_OK);
        if (mine && lie->bytes)
            memcpy(data + n_data + lie->at, lie->bytes, lie->n);
        n_data += t[i].n_bytes;
        out->end = n_data;
    }
    for (size_t i = 0; par_capture_fact_at(f, i, &facts[n_facts].key, &facts[n_facts].value); i++) {
        if (lie->fact && !strcmp(lie->fact, facts[n_facts].key))
            facts[n_facts].value = lie->value;
        n_facts += !lie->drop || strcmp(lie->drop, facts[n_facts].key) != 0;
    }
    const struct par_st_header h = {tensors, n_kept, facts, n_facts, NULL};
    ck_assert_int_eq(par_st_print(&head, &n_head, &h, &err), FWD_OK);
    uint8_t *bytes = malloc(n_head + n_data);
    memcpy(bytes, head, n_head);
    memcpy(bytes + n_head, data, n_data);
    *n_bytes = n_head + n_data;
    fwd_free(head);
    free(data);
    par_capture_close(f);
    return bytes;
}

#define BYTES(at_, s) .at = (at_), .n = sizeof(s) - 1, .bytes = (s)
static const struct lie lies[] = {
    {.fact = "schema", .value = "parity-capture-v1", .message = "expected parity-case-v1"},
    {.drop = "schema", .message = "schema is missing"},
    {.fact = "op", .value = "Qwer", .message = "there is no op \"Qwer\""},
    {.fact = "op", .value = "Kcur_rope", .message = "input 0 of Kcur_rope is attn_norm_q8, expected Kcur"},
    {.drop = "op", .message = "fact \"op\" is missing"},
    {.fact = "layer", .value = "1", .message = "layer 1 of a model of 1"},
    {.fact = "layer", .value = "-1", .message = "expected a number from 0"},
    {.fact = "schedule", .value = "soon", .message = "there is no schedule \"soon\""},
    {.fact = "kv", .value = "F8", .message = "kv has type \"F8\""},
    {.fact = "head", .value = "none", .message = "head is \"none\""},
    {.fact = "threads", .value = "4097", .message = "expected a number from 0 to 4096"},
    {.fact = "bound", .value = "tight", .message = "bound is \"tight\""},
    {.fact = "role", .value = "judge", .message = "role is \"judge\""},
    {.fact = "model_bytes", .value = "100", .message = "a model of 100 bytes"},
    {.fact = "model_bytes", .value = "9223372036854775807", .message = "a model of 9223372036854775807 bytes"},
    {.fact = "n_prompt", .value = "2", .message = "a prompt of 2"},
    {.fact = "in0", .value = "op=attn_norm dtype=Q8_K ne0=256", .message = "rows of attn_norm have type Q8_K"},
    {.fact = "in0", .value = "op=attn_norm_q8 dtype=Q8_K ne0=512", .message = "in0:bytes"},
    {.fact = "in0", .value = "attn_norm_q8", .message = "expected op=NAME"},
    {.drop = "in0", .message = "fact \"in0\" is missing"},
    {.drop = "in0:bytes", .message = "tensor in0:bytes is missing"},
    {.drop = "in0:pos", .message = "tensor in0:pos is missing"},
    {.drop = "numerics", .message = "tensor numerics is missing"},
    {.drop = "gguf", .message = "tensor gguf is missing"},
    {.drop = "ids", .message = "tensor ids is missing"},
    {.drop = "want", .message = "tensor want is missing"},
    {.drop = "elements", .message = "tensor elements is missing"},
    {.drop = "values", .message = "tensor values is missing"},
    {.drop = "bytes:blk.0.attn_q.bias", .message = "bytes:blk.0.attn_q.bias is missing"},
    {.tensor = "in0:pos", BYTES(0, "\1"), .message = "input 0 has position 1"},
    {.tensor = "ids", BYTES(0, "\377\1"), .message = "id 511, the vocabulary has 32"},
    {.tensor = "elements", BYTES(0, "\2"), .message = "element 0 is at position 2"},
    {.tensor = "elements", BYTES(8, "\0\1"), .message = "element 0 is row 256"},
    {.tensor = "rows:blk.0.attn_q.bias", BYTES(0, "\1"), .message = "row 1 of blk.0.attn_q.bias"},
    {.tensor = "numerics", .dtype = "I64", .message = "tensor numerics has type I64"},
    {.tensor = "numerics", BYTES(0, "\0\0\0\0\0\0\340\77"), .message = "act = 0.5"},
    {.tensor = "gguf", BYTES(0, "GGML"), .message = "GGUF"},
};
enum { N_LIES = sizeof lies / sizeof *lies };

START_TEST(a_lie_is_refused) {
    struct fwd_error err = {.message = ""};
    struct run r;
    struct par_case c;
    size_t n;
    make_bug("q4k-cpu", FWD_OP_QCUR, &r, &c);
    par_case_free(&c);
    uint8_t *bytes = tell(case_path, &(struct lie){0}, &n);
    ck_assert_msg(par_case_read_bytes(&c, bytes, n, "file", &err) == FWD_OK, "%s", err.message); /* without one */
    par_case_free(&c);
    free(bytes);
    for (int i = 0; i < N_LIES; i++) {
        bytes = tell(case_path, &lies[i], &n);
        ck_assert_msg(par_case_read_bytes(&c, bytes, n, "file", &err) != FWD_OK, "lie %d is believed", i);
        ck_assert_msg(strstr(err.message, lies[i].message) != NULL, "lie %d: %s", i, err.message);
        free(bytes);
    }
    end_run(&r);
}
END_TEST

START_TEST(cut_short_is_refused) {
    struct fwd_error err;
    struct run r;
    struct par_case c;
    uint8_t bytes[1 << 16];
    make_bug("q4k-cpu", FWD_OP_FFN_SWIGLU, &r, &c);
    par_case_free(&c);
    FILE *f = fopen(case_path, "rb");
    size_t n = fread(bytes, 1, sizeof bytes, f);
    (void)fclose(f);
    ck_assert_int_eq(par_case_read_bytes(&c, bytes, n, "file", &err), FWD_OK);
    par_case_free(&c);
    for (size_t i = 0; i < n; i++)
        ck_assert_int_ne(par_case_read_bytes(&c, bytes, i, "file", &err), FWD_OK);
    end_run(&r);
}
END_TEST

int main(void) {
    Suite *s = suite_create("case");
    TCase *t = tcase_create("cases");
    tcase_set_timeout(t, getenv("CHECK_LONG") ? 1200 : 240);
    tcase_add_checked_fixture(t, set_up, tear_down);
    tcase_add_loop_test(t, fault_becomes_case, 0, N_ROWS);
    tcase_add_loop_test(t, catalogue_becomes_cases, 0, 1);
    tcase_add_loop_test(t, bug_becomes_case, 0, N_BUGS);
    tcase_add_loop_test(t, red_on_every_variant, 0, 11);
    tcase_add_test(t, knobs_are_recorded);
    tcase_add_test(t, the_same_reason);
    tcase_add_test(t, still_fails);
    tcase_add_test(t, red_without_the_fault);
    tcase_add_loop_test(t, read_only_taps, 0, 4);
    tcase_add_test(t, unverified_is_not_written);
    tcase_add_test(t, ddmin_finds_the_units);
    tcase_add_test(t, a_lie_is_refused);
    tcase_add_test(t, cut_short_is_refused);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r), ran = srunner_ntests_run(r);
    srunner_free(r);
    return failed ? 1 : ran ? 0 : 3;
}
