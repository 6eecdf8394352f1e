/* Every fault of the catalogue, planted in a small model that has every block type: it acts where it says, on nothing
 * before that, the same way each time, and the judge finds it there; or it is refused with the reason. */
#include "fault/fault.h"
#include "fault/fault_math.h"
#include "spec/spec_decode.h"

#include "test/made_model.h"

#include <math.h>

enum { N_PROMPT = 14, N_LONG = 67, N_DECODE = 2, N_MAX = 96, MAX_ENTRIES = 8192 };

static const made_types types[] = {
    {FWD_TYPE_Q4_K, FWD_TYPE_Q4_K, FWD_TYPE_Q6_K, FWD_TYPE_Q4_K, FWD_TYPE_Q5_K, FWD_TYPE_Q4_K, FWD_TYPE_Q6_K},
    {FWD_TYPE_Q4_0, FWD_TYPE_Q4_1, FWD_TYPE_Q5_0, FWD_TYPE_Q5_1, FWD_TYPE_Q8_0, FWD_TYPE_Q4_1, FWD_TYPE_Q5_0},
    {FWD_TYPE_Q2_K, FWD_TYPE_Q3_K, FWD_TYPE_Q8_0, FWD_TYPE_F16, FWD_TYPE_BF16, FWD_TYPE_F32, FWD_TYPE_Q5_K},
    {FWD_TYPE_Q4_K, FWD_TYPE_Q4_K, FWD_TYPE_Q4_K, FWD_TYPE_Q4_K, FWD_TYPE_Q4_K, FWD_TYPE_Q4_K, FWD_TYPE_Q6_K}};
static const struct made_shape shape = {.arch = "qwen2",
                                        .n_layer = 4,
                                        .n_embd = 512,
                                        .n_ff = 512,
                                        .n_head = 8,
                                        .n_kv_head = 2,
                                        .n_vocab = 300,
                                        .n_ctx = 128,
                                        .bias = true,
                                        .embd_type = FWD_TYPE_Q4_K,
                                        .out_type = FWD_TYPE_Q6_K,
                                        .types = types};

/* ---- a run, as a list of what every tap had ---- */

struct entry {
    enum fwd_op op;
    int layer;
    uint64_t hash;
};

static struct made model; /* the same for all runs of a test */

static void set_up(void) {
    made_open_with(&model, &shape, true);
    fwd_pool_free(model.pool); /* one thread is quicker than two that wait for a core */
    model.pool = NULL;
}

static void tear_down(void) {
    made_free(&model);
}

struct run {
    const struct fwd_path *path;
    struct fwd_session *session;
    struct par_fault fault; /* row NULL: none */
    enum par_fault_role role;
    struct par_judge *judge;
    int n_prompt, chunk;
    struct entry entries[MAX_ENTRIES];
    int n_entries;
    bool recording;
};

static bool get_numerics(void *ud, enum fwd_op op, int il, struct fwd_numerics *out) {
    const struct run *r = ud;
    return r->path->numerics(r->session, op, il, out);
}

static uint64_t hash_view(const struct fwd_view *v) {
    bool cache = v->op == FWD_OP_K_CACHE || v->op == FWD_OP_V_CACHE;
    int64_t n_rows = cache ? v->ne[1] * v->ne[2] : v->n_pos;
    uint64_t hash = 0;
    for (int64_t i = 0; i < n_rows; i++) {
        const char *row =
            (const char *)v->data + (cache ? i / v->ne[1] * v->nb[2] + i % v->ne[1] * v->nb[1] : i * v->nb[1]);
        hash = hash * 31 + fwd_hash64(row, fwd_dtype_row_bytes(v->dtype, v->ne[0]));
    }
    return hash;
}

static int on_tap(void *ud, const struct fwd_view *v) {
    struct run *r = ud;
    if (!r->recording)
        return 0;
    ck_assert_int_lt(r->n_entries, MAX_ENTRIES);
    r->entries[r->n_entries++] = (struct entry){v->op, v->layer, hash_view(v)};
    return r->judge ? par_judge_tap(r->judge, v) : 0;
}

static void hook_config(void *ud, struct fwd_config *config) {
    par_fault_hook_config(ud, config);
}

static void hook_model(void *ud, struct fwd_model *bound) {
    par_fault_hook_model(ud, bound);
}

static bool hook_plan(void *ud, struct fwd_plan_fault *out) {
    return par_fault_hook_plan(ud, out);
}

/* ---- a path with a launch plan: q4k-cpu, whose "launches" are its ops ---- */

static enum fwd_status break_launch(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    const struct fwd_plan_fault *f = ud;
    if (f->kind == FWD_PLAN_SKIP)
        return FWD_OK;
    FWD_TRY(call->builtin(call, err));
    for (int i = 0; f->kind == FWD_PLAN_SHORT_GRID && i < call->n_pos; i++)
        memset((char *)call->out->data + call->out->nb[1] * (i + 1) - 64, 0, 64);
    return FWD_OK;
}

static void describe_planned(struct fwd_path_info *out) {
    fwd_path_find("q4k-cpu")->describe(out);
    out->has_plan = true;
}

static enum fwd_status open_planned(struct fwd_session **out, const struct fwd_gguf *file,
                                    const struct fwd_knobs *knobs, struct fwd_error *err) {
    static struct fwd_plan_fault fault;
    const struct fwd_path *base = fwd_path_find("q4k-cpu");
    FWD_TRY(base->open(out, file, knobs, err));
    if (!knobs->plan_hook || !knobs->plan_hook(knobs->plan_hook_ud, &fault))
        return FWD_OK;
    return base->override(*out, fault.op, fault.layer, break_launch, &fault, err);
}

static const struct fwd_path *path_named(const char *name, const struct par_fault_row *row) {
    static struct fwd_path planned;
    if (!row || !(row->needs & PAR_NEED_PLAN))
        return fwd_path_find(name);
    planned = *fwd_path_find(name);
    planned.describe = describe_planned;
    planned.open = open_planned;
    return &planned;
}

static struct fwd_knobs knobs_of(const struct par_fault_row *row) {
    return (struct fwd_knobs){.size = sizeof(struct fwd_knobs),
                              .n_threads = row && row->needs & PAR_NEED_THREADS ? 2 : 1,
                              .n_ctx = N_MAX,
                              .n_seq = 1,
                              .n_batch = N_MAX,
                              .kv_type = FWD_F16,
                              .head = row && row->needs & PAR_NEED_HEAD_F32 ? FWD_HEAD_F32 : FWD_HEAD_QUANT};
}

/* text NULL: no fault; `like` then says for which fault's schedule and knobs. FWD_OK, or why the fault was refused. */
static enum fwd_status open_run(struct run *r, const char *text, const struct par_fault_row *like,
                                struct fwd_error *err) {
    memset(r, 0, sizeof *r);
    r->role = text && !strncmp(text, "ref:", 4) ? PAR_ROLE_REFERENCE : PAR_ROLE_CANDIDATE;
    if (text)
        FWD_TRY(par_fault_parse(text, &r->fault, err));
    const struct par_fault_row *row = text ? r->fault.row : like;
    struct fwd_knobs knobs = knobs_of(row);
    r->n_prompt = r->fault.n_prompt = row->needs & PAR_NEED_LONG ? N_LONG : N_PROMPT;
    r->chunk = row->needs & PAR_NEED_FEW ? 5 : r->n_prompt;
    if (text) {
        r->fault.path = path_named("q4k-cpu", row);
        FWD_TRY(par_fault_place(&r->fault, model.file, par_spec_config(model.spec), &knobs, err));
    }
    return FWD_OK;
}

/* judged: with a judge on its taps. */
static void open_path(struct run *r, const struct par_fault_row *row, const char *path, bool judged) {
    struct fwd_error err = {.message = ""};
    struct fwd_knobs knobs = knobs_of(row);
    if (r->fault.row) {
        knobs.config_hook = hook_config;
        knobs.model_hook = hook_model;
        knobs.plan_hook = hook_plan;
        knobs.config_hook_ud = knobs.model_hook_ud = knobs.plan_hook_ud = &r->fault;
    }
    r->path = path_named(path, row);
    ck_assert_msg(r->path->open(&r->session, model.file, &knobs, &err) == FWD_OK, "%s", err.message);
    if (r->fault.row && par_fault_in(&r->fault, r->role))
        ck_assert_msg(par_fault_plant(&r->fault, r->path, r->session, &err) == FWD_OK, "%s", err.message);
    struct par_judge_options options = {
        .numerics = get_numerics, .numerics_ud = r, .sample_every = 1, .pool = model.pool};
    if (judged)
        ck_assert_int_eq(par_judge_open(&r->judge, model.spec, &options, &err), FWD_OK);
}

static void close_run(struct run *r) {
    if (r->judge)
        par_judge_close(r->judge);
    if (r->session)
        r->path->close(r->session);
    par_fault_free(&r->fault);
}

/* One sequence of n_ids tokens: the prompt in calls of r->chunk, then one by one; the reference in one call. */
static void run_sequence(struct run *r, int first_id, int n_ids, bool record) {
    struct fwd_error err = {.message = ""};
    int32_t ids[N_MAX];
    static float logits[N_MAX * 300];
    uint8_t want[N_MAX];
    struct fwd_path_info info = {.size = sizeof info};
    r->path->describe(&info);
    for (int i = 0; i < n_ids; i++)
        ids[i] = (first_id + 37 * i) % 300;
    memset(want, 1, sizeof want);
    r->recording = record;
    ck_assert_int_eq(r->path->seq_begin(r->session, 0, &err), FWD_OK);
    if (r->judge) {
        ck_assert_int_eq(par_judge_seq_begin(r->judge, &err), FWD_OK);
        ck_assert_int_eq(par_judge_tokens(r->judge, ids, n_ids, &err), FWD_OK);
    }
    for (int pos = 0, n; pos < n_ids; pos += n) {
        int left = n_ids - N_DECODE - pos;
        n = !info.uses_cache ? n_ids : left <= 0 ? 1 : left < r->chunk ? left : r->chunk;
        struct fwd_run_args args = {.size = sizeof args,
                                    .tokens = ids + pos,
                                    .n_tokens = n,
                                    .pos0 = pos,
                                    .want_logits = want,
                                    .logits = logits,
                                    .tap = on_tap,
                                    .tap_ud = r};
        ck_assert_msg(r->path->run(r->session, &args, &err) == FWD_OK, "%s", err.message);
    }
}

/* What the fault's kind needs to show: A, or A-B-A with the last one recorded. */
static void go(struct run *r, const struct par_fault_row *row) {
    int n_ids = r->n_prompt + N_DECODE;
    if (row->change == PAR_CHANGE_STATE) {
        run_sequence(r, 5, n_ids, false);
        run_sequence(r, 6, n_ids + 9, false);
    }
    run_sequence(r, 5, n_ids, true);
}

static int first_difference(const struct run *a, const struct run *b) {
    ck_assert_int_eq(a->n_entries, b->n_entries);
    for (int i = 0; i < a->n_entries; i++)
        if (a->entries[i].hash != b->entries[i].hash)
            return i;
    return -1;
}

/* ---- each fault ---- */

/* Nothing of this model can show these: values that no data here has. */
static bool is_lucky(const struct par_fault_row *row) {
    return row->needs & PAR_NEED_LUCK;
}

/* Real, and at some places smaller than the bound of a correct op. */
static bool may_hide(const struct par_fault_row *row) {
    static const char *const names[] = {"bias-element", "eps-other", "block-scale-ulp"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(row->name, names[i]))
            return true;
    return is_lucky(row);
}

static void check_accused(const struct run *r, const char *text) {
    struct fwd_error err = {.message = ""};
    const struct par_op_row *rows;
    int n;
    ck_assert_msg(par_judge_rows(r->judge, &rows, &n, &err) == FWD_OK, "%s: %s", text, err.message);
    for (int i = 0; i < n; i++) {
        bool bad = rows[i].verdict != PAR_HELD && !rows[i].absent;
        if (!bad && may_hide(r->fault.row))
            continue;
        if (!bad && !(rows[i].op == r->fault.op && rows[i].layer == r->fault.layer))
            continue;
        ck_assert_msg(bad, "%s: %s-%d holds, ratio %g", text, fwd_op_name(rows[i].op), rows[i].layer,
                      rows[i].ratio_max);
        ck_assert_msg(rows[i].op == r->fault.op && rows[i].layer == r->fault.layer,
                      "%s: %s-%d is %s (%s, ratio %g) before %s-%d", text, fwd_op_name(rows[i].op), rows[i].layer,
                      par_verdict_name(rows[i].verdict), rows[i].note, rows[i].ratio_max, fwd_op_name(r->fault.op),
                      r->fault.layer);
        return;
    }
    ck_assert_msg(may_hide(r->fault.row), "%s: %s-%d was not judged", text, fwd_op_name(r->fault.op), r->fault.layer);
}

static void check_text(const struct par_fault *f) {
    struct fwd_error err = {.message = ""};
    struct par_fault again;
    char text[160], twice[160];
    (void)par_fault_describe(f, text, sizeof text);
    ck_assert_msg(par_fault_parse(text, &again, &err) == FWD_OK, "%s: %s", text, err.message);
    (void)par_fault_describe(&again, twice, sizeof twice);
    ck_assert_str_eq(text, twice);
    ck_assert(again.row == f->row && again.in_reference == f->in_reference && again.seed == f->seed);
    if (f->row->ops)
        ck_assert(again.op == f->op && again.layer == f->layer);
    ck_assert(!(f->row->picks & PAR_PICK_ROW) || again.out_row == f->out_row);
    ck_assert(!(f->row->picks & PAR_PICK_BLOCK) || again.block == f->block);
    ck_assert(!(f->row->picks & PAR_PICK_HEAD) || again.head == f->head);
    ck_assert(!(f->row->picks & PAR_PICK_POS) || again.pos == f->pos);
}

static void try_fault(const struct par_fault_row *row, int seed, bool in_reference) {
    static struct run clean, faulty, again;
    struct fwd_error err = {.message = ""};
    char text[128];
    const char *path = in_reference ? "f32" : "q4k-cpu";
    (void)snprintf(text, sizeof text, "%s%s+seed=%d", in_reference ? "ref:" : "", row->name, seed);
    ck_assert_msg(open_run(&faulty, text, row, &err) == FWD_OK, "%s: refused: %s", text, err.message);
    (void)par_fault_describe(&faulty.fault, text, sizeof text);
    check_text(&faulty.fault);
    ck_assert_int_eq(open_run(&clean, NULL, row, &err), FWD_OK);
    ck_assert_int_eq(open_run(&again, text, row, &err), FWD_OK);
    struct run *all[] = {&clean, &faulty, &again};
    int n_runs = seed == 0 ? 3 : 2;
    for (int i = 0; i < n_runs; i++) {
        open_path(all[i], row, path, i == 1);
        go(all[i], row);
    }
    int at = first_difference(&clean, &faulty);
    ck_assert_msg(at >= 0 || is_lucky(row), "%s: changed nothing", text);
    ck_assert_msg(n_runs < 3 || first_difference(&faulty, &again) < 0, "%s: not the same twice", text);
    if (at >= 0) {
        ck_assert_msg(faulty.entries[at].op == faulty.fault.op && faulty.entries[at].layer == faulty.fault.layer,
                      "%s: acts first at %s-%d", text, fwd_op_name(faulty.entries[at].op), faulty.entries[at].layer);
        check_accused(&faulty, text);
    }
    for (int i = 0; i < 3; i++)
        close_run(all[i]);
}

START_TEST(acts_where_it_says) {
    const struct par_fault_row *row = par_fault_row(_i);
    try_fault(row, 0, false);
    try_fault(row, 1, false);
    if (!row->shared && !(row->needs & PAR_NEED_CANDIDATE))
        try_fault(row, 2, true);
}
END_TEST

/* On a path whose step is no launch plan a fault in the plan is refused, with the reason. */
START_TEST(plan_faults_need_a_plan) {
    const char *const names[] = {"plan-node-missing", "plan-grid-short", "plan-launch-early"};
    struct fwd_knobs knobs = knobs_of(NULL);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct fwd_error err = {.message = ""};
        struct par_fault f;
        ck_assert_int_eq(par_fault_parse(names[i], &f, &err), FWD_OK);
        f.path = fwd_path_find("q4k-cpu");
        ck_assert_int_eq(par_fault_place(&f, model.file, par_spec_config(model.spec), &knobs, &err), FWD_EINPUT);
        ck_assert_msg(strstr(err.message, "no launch plan"), "%s", err.message);
    }
}
END_TEST

START_TEST(a_race_differs_between_repeats) {
    static struct run first, second;
    struct fwd_error err = {.message = ""};
    struct run *r = &first;
    ck_assert_int_eq(open_run(r, "race", NULL, &err), FWD_OK);
    open_path(r, r->fault.row, "q4k-cpu", false);
    bool differs = false;
    go(r, r->fault.row);
    second = *r;
    for (int repeat = 0; repeat < 4; repeat++) {
        r->n_entries = 0;
        go(r, r->fault.row);
        differs |= first_difference(r, &second) >= 0;
    }
    ck_assert(differs);
    close_run(r);
}
END_TEST

/* ---- places ---- */

START_TEST(seeds_give_other_places) {
    static struct run r;
    struct fwd_error err = {.message = ""};
    char places[8][160];
    int n_other = 0;
    for (int seed = 0; seed < 8; seed++) {
        char text[64];
        (void)snprintf(text, sizeof text, "one-weight+seed=%d", seed);
        ck_assert_msg(open_run(&r, text, NULL, &err) == FWD_OK, "%s", err.message);
        r.fault.seed = 0; /* out of the text */
        (void)par_fault_describe(&r.fault, places[seed], sizeof places[seed]);
        for (int other = 0; other < seed; other++)
            n_other += strcmp(places[seed], places[other]) != 0;
        close_run(&r);
    }
    ck_assert_int_eq(n_other, 8 * 7 / 2);
}
END_TEST

START_TEST(a_place_that_is_told_is_kept) {
    static struct run r;
    struct fwd_error err = {.message = ""};
    ck_assert_msg(open_run(&r, "one-weight@ffn_out:2+row=17+block=1+seed=9", NULL, &err) == FWD_OK, "%s", err.message);
    ck_assert(r.fault.op == FWD_OP_FFN_OUT && r.fault.layer == 2 && r.fault.out_row == 17 && r.fault.block == 1);
    char text[160];
    ck_assert_str_eq(par_fault_describe(&r.fault, text, sizeof text), "one-weight@ffn_out:2+row=17+block=1+seed=9");
    ck_assert_str_eq(par_fault_side(&r.fault), "candidate");
    close_run(&r);
}
END_TEST

static const struct refusal {
    const char *text, *says;
} refusals[] = {{"no-such-fault", "the nearest is"},
                {"", "the nearest is"},
                {"rope-pairin", "the nearest is rope-pairing"},
                {"ref:gqa-modulo", "all paths share"},
                {"ref:act-code", "nothing that it could break"},
                {"gqa-modulo@kqv_out", "no single op"},
                {"one-weight@", "expected an op"},
                {"one-weight@nothing", "no op"},
                {"one-weight@Qcur:", "number from 0"},
                {"one-weight@Qcur:x", "number from 0"},
                {"one-weight@Qcur:-1", "number from 0"},
                {"one-weight@Qcur:9", "the model has 4"},
                {"one-weight@Qcur@Kcur", "one @place"},
                {"one-weight@attn_norm", "cannot be planted"},
                {"one-weight+row=99999", "row 99999"},
                {"one-weight+block=77", "block 77"},
                {"one-weight+row=-1", "number from 0"},
                {"one-weight+row=", "expected +head"},
                {"one-weight+colour=3", "expected +head"},
                {"one-weight+head=1", "means nothing"},
                {"rope-one-head+head=8@Qcur_rope", "head 8"},
                {"f32-head-transposed@Qcur", "cannot be planted"},
                {"q4k-min-dropped@Qcur:1", "no weight of a type"},
                {"high-bits-dropped@Qcur:0", "no weight of a type"},
                {"bound-twin@Kcur:0", "another type or shape"},
                {"stale-output@Qcur:0", "none below"},
                {"one-weight@result_output:1", "no layer"}};

START_TEST(bad_texts_are_refused) {
    static struct run r;
    struct fwd_error err = {.message = ""};
    const struct refusal *bad = &refusals[_i];
    enum fwd_status rc = open_run(&r, bad->text, NULL, &err);
    ck_assert_msg(rc == FWD_EINPUT || rc == FWD_ERANGE, "\"%s\" was accepted", bad->text);
    ck_assert_msg(strstr(err.message, bad->says) != NULL, "\"%s\": \"%s\" does not say \"%s\"", bad->text, err.message,
                  bad->says);
    close_run(&r);
}
END_TEST

/* ---- the catalogue ---- */

static const char *const agreed[] = {"weight-transposed",
                                     "weight-stride",
                                     "weight-other-layer",
                                     "weight-other-head",
                                     "weight-other-type",
                                     "nibble-order",
                                     "scale-other-subblock",
                                     "min-other-subblock",
                                     "min-dropped",
                                     "min-added",
                                     "high-bits-dropped",
                                     "high-bits-misplaced",
                                     "bias-missing",
                                     "bias-twice",
                                     "bias-other-layer",
                                     "rope-pairing",
                                     "rope-base",
                                     "rope-position",
                                     "rope-sign",
                                     "rope-missing",
                                     "rope-twice",
                                     "rope-scaling-ignored",
                                     "mask-sees-next",
                                     "mask-misses-self",
                                     "mask-window",
                                     "gqa-map",
                                     "softmax-no-max",
                                     "softmax-scale-missing",
                                     "softmax-scale-squared",
                                     "kv-row-stale",
                                     "kv-row-shifted",
                                     "kv-truncated",
                                     "eps-other",
                                     "norm-weight-missing",
                                     "norm-weight-other-layer",
                                     "gate-up-swapped",
                                     "norm-mean-subtracted",
                                     "gelu-for-silu",
                                     "silu-missing",
                                     "residual-missing",
                                     "residual-twice",
                                     "accumulate-f16",
                                     "saturate-f16",
                                     "saturate-int16",
                                     "act-scale-other-block",
                                     "act-scale-per-row",
                                     "act-scale-per-batch",
                                     "act-quant-tie",
                                     "act-quant-truncated",
                                     "k-tail-skipped",
                                     "rows-tail-skipped",
                                     "stale-output",
                                     "rows-exchanged",
                                     "tokens-shifted",
                                     "head-permuted",
                                     "tap-pre-bias",
                                     "tap-last-position",
                                     "one-weight",
                                     "scale-changed",
                                     "k-block-skipped",
                                     "store-bf16",
                                     "act-quant-range",
                                     "act-scale-f16",
                                     "softcap-added",
                                     "norm-weight-plus-one",
                                     "weight-other-matrix"};

START_TEST(the_catalogue_is_as_asked) {
    int n = 0, n_shared = 0, n_unexplained = 0;
    bool named[sizeof agreed / sizeof *agreed] = {false};
    for (const struct par_fault_row *row; (row = par_fault_row(n)) != NULL; n++) {
        ck_assert_msg(row->museum && strlen(row->museum) > 3 && strlen(row->summary) > 5, "%s: no reference",
                      row->name);
        ck_assert_msg(row->hypothesis[0] == 'H' && strlen(row->hypothesis) == 2, "%s: %s", row->name, row->hypothesis);
        ck_assert_msg(row->shared ? row->plant || row->hook || row->model_hook
                                  : (row->plant != NULL) != (row->plan != 0),
                      "%s", row->name);
        ck_assert_msg((row->plan != 0) == ((row->needs & PAR_NEED_PLAN) != 0), "%s: plan and need", row->name);
        ck_assert_msg(!row->ops || row->ops >> row->op & 1, "%s: cannot be at its own op", row->name);
        n_shared += row->shared;
        n_unexplained += row->signature == NULL;
        bool known = row->signature == NULL;
        for (size_t k = 0; row->signature && k < sizeof agreed / sizeof *agreed; k++)
            if (!strcmp(row->signature, agreed[k]))
                known = named[k] = true;
        ck_assert_msg(known, "%s: signature %s", row->name, row->signature);
        for (int other = 0; other < n; other++)
            ck_assert_str_ne(row->name, par_fault_row(other)->name);
    }
    for (size_t k = 0; k < sizeof agreed / sizeof *agreed; k++)
        ck_assert_msg(named[k], "no fault for the signature %s", agreed[k]);
    ck_assert_int_ge(n, 70);
    ck_assert_int_ge(n_shared, 10);
    ck_assert_int_ge(3 * n_unexplained, n);
}
END_TEST

/* ---- what faults are made of, against the spec's own reading ---- */

START_TEST(blocks_are_read_as_the_spec_reads_them) {
    static const uint32_t all[] = {FWD_TYPE_F32,  FWD_TYPE_F16,  FWD_TYPE_BF16, FWD_TYPE_Q4_0, FWD_TYPE_Q4_1,
                                   FWD_TYPE_Q5_0, FWD_TYPE_Q5_1, FWD_TYPE_Q8_0, FWD_TYPE_Q2_K, FWD_TYPE_Q3_K,
                                   FWD_TYPE_Q4_K, FWD_TYPE_Q5_K, FWD_TYPE_Q6_K};
    enum { N = 512 };
    struct made_noise noise = {11};
    uint8_t *w = made_weight(&noise, all[_i], N, false);
    double ours[N];
    float spec[N];
    fault_decode_row(all[_i], w, N, ours);
    par_decode_row(all[_i], w, spec, N);
    for (int k = 0; k < N; k++)
        ck_assert_msg(fabs(ours[k] - (double)spec[k]) <= 1e-6 * (0.1 + fabs(ours[k])), "%s value %d: %g, the spec %g",
                      fwd_type_name(all[_i]), k, ours[k], (double)spec[k]);
    free(w);
}
END_TEST

START_TEST(half_floats_round) {
    for (unsigned h = 0; h < 0x10000; h++) {
        double x = fault_half_value((uint16_t)h);
        if (!isnan(x))
            ck_assert_uint_eq(fault_to_half(x), h);
    }
    /* halfway between 1 and its successor 1 + 2^-10: to even; just above: up; the last that is not infinity */
    ck_assert_uint_eq(fault_to_half(1 + 0x1p-11), 0x3c00);
    ck_assert_uint_eq(fault_to_half(1 + 0x3p-11), 0x3c02);
    ck_assert_uint_eq(fault_to_half(1 + 0x1.01p-11), 0x3c01);
    ck_assert_uint_eq(fault_to_half(65519.9), 0x7bff);
    ck_assert_uint_eq(fault_to_half(-65520), 0xfc00);
    ck_assert_uint_eq(fault_to_half(0x1p-25), 0);
    ck_assert_uint_eq(fault_to_half(0x1.8p-25), 1);
    /* bfloat16 has 8 bits: 1 + 2^-8 is halfway, 1 + 3 * 2^-8 too */
    ck_assert_double_eq(fault_as_bf16(1 + 0x1p-8), 1);
    ck_assert_double_eq(fault_as_bf16(1 + 0x3p-8), 1 + 0x1p-6);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("fault");
    TCase *tcase = tcase_create("catalogue");
    int n = 0;
    while (par_fault_row(n))
        n++;
    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_add_test(tcase, the_catalogue_is_as_asked);
    tcase_add_loop_test(tcase, acts_where_it_says, 0, n);
    tcase_add_test(tcase, plan_faults_need_a_plan);
    tcase_add_test(tcase, a_race_differs_between_repeats);
    tcase_add_test(tcase, seeds_give_other_places);
    tcase_add_test(tcase, a_place_that_is_told_is_kept);
    tcase_add_loop_test(tcase, bad_texts_are_refused, 0, sizeof refusals / sizeof *refusals);
    tcase_add_loop_test(tcase, blocks_are_read_as_the_spec_reads_them, 0, 13);
    tcase_add_test(tcase, half_floats_round);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_FORK);
    srunner_run_all(runner, CK_NORMAL);
    int n_run = srunner_ntests_run(runner), n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_run == 0 ? 3 : n_failed != 0;
}
