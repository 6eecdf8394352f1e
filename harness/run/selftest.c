/* harness/run/selftest.c: plants each fault at each of its places, probes, and says what was seen of it. See
 * selftest.h. */
#include "run/selftest.h"

#include "localise/explain.h"
#include "localise/pattern.h"
#include "run/selftest_place.h"
#include "spec/ratio_histogram.h"

#include <fnmatch.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* A probe: chunks of 9 have a vector tail, the last chunk of the prompt few positions, then decode steps. Long ones
 * reach what starts at position 64. */
enum { SHORT_PROMPT = 24, LONG_PROMPT = 72, DECODE = 3, CHUNK = 9, N_LENGTHS = 2, N_ROLES = 2 };
enum { WEIGHT_POSITIONS = 78, MOST_IDS = 78 };
#define EVIDENCE_BYTES ((size_t)64 << 20)

/* Clean passes of both roles over one sequence: what faulty ones are held beside. */
struct base {
    int n_prompt, n_ids;
    struct par_probe clean[N_ROLES];
    struct par_store *taps[N_ROLES];
    struct par_tool_gates *own[N_ROLES], *other[N_ROLES], *other_clean[N_ROLES];
};

struct work {
    const struct par_selftest_options *o;
    struct par_selftest *s;
    struct par_spec_model *spec;
    struct fwd_pool *pool;
    int32_t *ids;                       /* [MOST_IDS] */
    struct par_prober *prober[N_ROLES]; /* of the current form of the head */
    struct base base;
    int n_done;
    struct fwd_error *err;
};

static void progress(const struct work *w, const char *what, int64_t done, int64_t total) {
    if (w->o->progress)
        w->o->progress(w->o->progress_ud, what, done, total);
}

/* ---- the list of places ---- */

static enum fwd_head head_of(const struct par_fault_row *row) {
    return row->needs & PAR_NEED_HEAD_F32 ? FWD_HEAD_F32 : FWD_HEAD_QUANT;
}

static bool is_long(const struct par_fault_row *row) {
    return row->needs & PAR_NEED_LONG || row->when == PAR_WHEN_LONG;
}

static bool is_wanted(const struct par_selftest_options *o, const struct par_fault_row *row) {
    return !o->faults || fnmatch(o->faults, row->name, 0) == 0;
}

static struct fwd_knobs knobs_for(const struct work *w, enum par_fault_role role, enum fwd_head head) {
    struct fwd_knobs knobs = w->o->knobs;
    knobs.size = sizeof knobs;
    knobs.n_ctx = LONG_PROMPT + DECODE + 2;
    knobs.n_batch = LONG_PROMPT + DECODE + 1;
    knobs.n_seq = 1;
    knobs.head = head;
    if (role == PAR_ROLE_REFERENCE) {
        knobs.force = NULL;
        knobs.act = NULL;
        knobs.head = FWD_HEAD_QUANT;
        par_drive_fit_knobs(w->o->ref, &knobs);
        knobs.scribble = false;
    }
    return knobs;
}

static bool same_place(const struct par_fault *a, const struct par_fault *b) {
    return a->op == b->op && a->layer == b->layer && a->head == b->head && a->pos == b->pos &&
           a->out_row == b->out_row && a->block == b->block;
}

/* Said before: it cannot be planted, or it is one of those in shared code whose place does not hang on the seed. */
static bool is_repeated(const struct work *w, const struct par_selftest_record *r) {
    for (int i = 0; i < w->s->n_records; i++) {
        const struct par_selftest_record *before = &w->s->records[i];
        if (before->row != r->row)
            continue;
        if (r->state == PAR_SELFTEST_NOT_HERE || (r->row->shared && same_place(&before->fault, &r->fault)))
            return true;
    }
    return false;
}

static enum fwd_status add_place(struct work *w, const struct par_fault_row *row, uint64_t seed, bool in_reference) {
    struct par_selftest_record *r = &w->s->records[w->s->n_records];
    struct fwd_knobs knobs = knobs_for(w, PAR_ROLE_CANDIDATE, head_of(row));
    struct fwd_error why = {0};
    char text[96];
    (void)snprintf(text, sizeof text, "%s%s+seed=%llu", in_reference ? "ref:" : "", row->name,
                   (unsigned long long)seed);
    *r = (struct par_selftest_record){.row = row, .by = "", .side = "", .moved = -1, .sub_op = -1, .diagnosis = -1};
    r->state = PAR_SELFTEST_NO_EFFECT;
    FWD_TRY(par_fault_parse(text, &r->fault, w->err));
    r->fault.n_prompt = is_long(row) ? LONG_PROMPT : SHORT_PROMPT;
    r->fault.path = w->o->cand;
    enum fwd_status rc = par_fault_place(&r->fault, w->o->file, par_spec_config(w->spec), &knobs, &why);
    if (rc != FWD_OK) {
        const char *colon = strstr(why.message, ": ");
        r->state = PAR_SELFTEST_NOT_HERE;
        (void)snprintf(r->why, sizeof r->why, "%.230s", colon ? colon + 2 : why.message);
    }
    (void)par_fault_describe(&r->fault, r->place, sizeof r->place);
    if (!is_repeated(w, r))
        w->s->n_records++;
    return FWD_OK;
}

static enum fwd_status list_places(struct work *w) {
    int n_rows = 0;
    while (par_fault_row(n_rows))
        n_rows++;
    size_t most = (size_t)n_rows * (size_t)(w->o->n_seeds + 1);
    w->s->records = fwd_calloc(most, sizeof *w->s->records);
    FWD_FAIL_IF(!w->s->records, FWD_ENOMEM, w->err, "selftest: no memory for %zu places", most);
    for (int i = 0; i < n_rows; i++) {
        const struct par_fault_row *row = par_fault_row(i);
        if (!is_wanted(w->o, row))
            continue;
        for (int seed = 1; seed <= w->o->n_seeds; seed++)
            FWD_TRY(add_place(w, row, (uint64_t)seed, false));
        if (!w->o->quick && !row->shared && !(row->needs & PAR_NEED_CANDIDATE))
            FWD_TRY(add_place(w, row, (uint64_t)w->o->n_seeds + 1, true));
    }
    return FWD_OK;
}

/* ---- clean passes ---- */

static struct par_probe_args args_of(const struct work *w) {
    return (struct par_probe_args){.ids = w->ids,
                                   .n_prompt = w->base.n_prompt,
                                   .n_ids = w->base.n_ids,
                                   .schedule = PAR_SCHEDULE_PREFILL,
                                   .chunk = CHUNK,
                                   .reach = w->o->reach,
                                   .evidence_bytes = EVIDENCE_BYTES};
}

static const struct fwd_path *path_of(const struct work *w, int role) {
    return role == PAR_ROLE_CANDIDATE ? w->o->cand : w->o->ref;
}

static enum fwd_status open_prober(struct work *w, int role, enum fwd_head head, struct par_fault *hooks,
                                   struct par_prober **out) {
    struct par_prober_options options = {.file = w->o->file,
                                         .spec = w->spec,
                                         .pool = w->pool,
                                         .path = path_of(w, role),
                                         .role = (enum par_fault_role)role,
                                         .knobs = knobs_for(w, (enum par_fault_role)role, head),
                                         .hooks = hooks};
    return par_prober_open(out, &options, w->err);
}

static void close_base(struct base *b) {
    for (int role = 0; role < N_ROLES; role++) {
        par_probe_free(&b->clean[role]);
        par_tool_gates_close(b->own[role]);
        par_tool_gates_close(b->other[role]);
        par_tool_gates_close(b->other_clean[role]);
        par_store_free(b->taps[role]);
    }
    memset(b, 0, sizeof *b);
}

/* A clean pass of the role. beside: once the other role's taps are there, what it looks like beside them. */
static enum fwd_status clean_pass(struct work *w, int role, bool keep, bool beside) {
    struct base *b = &w->base;
    struct par_probe_args args = args_of(w);
    args.keep = keep ? b->taps[role] : NULL;
    args.other = beside ? b->other_clean[role] : NULL;
    args.repeat = keep;
    par_probe_free(&b->clean[role]);
    FWD_TRY(par_probe_run(w->prober[role], &args, &b->clean[role], w->err));
    FWD_FAIL_IF(keep && !b->clean[role].same_bits && b->clean[role].repeated, FWD_ESTATE, w->err,
                "selftest: the clean %s does not repeat its bits", path_of(w, role)->name);
    for (int i = 0; i < b->clean[role].n_rows; i++) {
        const struct par_op_row *row = &b->clean[role].rows[i];
        FWD_FAIL_IF(par_row_accused(row), FWD_ESTATE, w->err,
                    "selftest: the clean %s is accused at %s of layer %d (%.3g bounds): faults cannot be told from it",
                    path_of(w, role)->name, fwd_op_name(row->op), row->layer, row->ratio_max);
    }
    return FWD_OK;
}

static void count_gate_alarms(struct work *w) {
    struct par_selftest_clean *c = &w->s->clean;
    for (int g = 0; g < PAR_GATE_COUNT; g++)
        c->gate_alarms[g] = par_tool_gates_failed(w->base.other_clean[0], NULL, (enum par_tool_gate)g);
    c->n_tensors = par_tool_gates_tensors(w->base.other_clean[0]);
}

static enum fwd_status open_base(struct work *w, int n_prompt) {
    struct base *b = &w->base;
    int n_layer = par_spec_config(w->spec)->n_layer;
    b->n_prompt = n_prompt;
    b->n_ids = n_prompt + DECODE;
    for (int role = 0; role < N_ROLES; role++)
        FWD_TRY(par_store_create(&b->taps[role], n_layer, b->n_ids, w->err));
    for (int role = 0; role < N_ROLES; role++) {
        FWD_TRY(par_tool_gates_open(&b->own[role], b->taps[role], n_layer, w->err));
        FWD_TRY(par_tool_gates_open(&b->other[role], b->taps[1 - role], n_layer, w->err));
        FWD_TRY(par_tool_gates_open(&b->other_clean[role], b->taps[1 - role], n_layer, w->err));
    }
    FWD_TRY(clean_pass(w, PAR_ROLE_REFERENCE, true, false));
    FWD_TRY(clean_pass(w, PAR_ROLE_CANDIDATE, true, true));
    if (!w->o->quick) /* nothing is planted in the reference alone */
        FWD_TRY(clean_pass(w, PAR_ROLE_REFERENCE, false, true));
    count_gate_alarms(w);
    return FWD_OK;
}

/* ---- one fault ---- */

/* What was seen of it on one side. */
struct side {
    bool ran;
    struct par_probe probe;
    int n_accused, n_differences;
    char difference[160];
    const struct par_op_row *first; /* accused, in forward order; NULL: none */
    bool changed;
    enum fwd_op change_op; /* FWD_OP_COUNT: logits or repeats only */
    int change_layer;
};

static const struct par_op_row *find_row(const struct par_probe *p, enum fwd_op op, int layer) {
    for (int i = 0; i < p->n_rows; i++)
        if (p->rows[i].op == op && p->rows[i].layer == layer)
            return &p->rows[i];
    return NULL;
}

/* Accused, or mistrusted for what it puts out (mostly zero, constant), which its clean run was not. */
static bool is_seen(const struct par_op_row *row, const struct par_probe *clean) {
    const struct par_op_row *was = find_row(clean, row->op, row->layer);
    return par_row_accused(row) ||
           (row->verdict == PAR_MISTRUSTED && row->n_over && was && was->verdict != PAR_MISTRUSTED);
}

static enum fwd_status probe_side(struct work *w, struct par_selftest_record *r, int role, struct par_store *keep,
                                  struct par_tool_gates *other, struct side *out) {
    struct par_prober *own = NULL, *p = w->prober[role];
    struct par_probe_args args = args_of(w);
    if (r->row->hook || r->row->model_hook || r->row->plan) {
        FWD_TRY(open_prober(w, role, head_of(r->row), &r->fault, &own));
        p = own;
        /* bytes as bound take long to read, and a hook of the configuration changes none */
        bool weights = r->row->model_hook && role == PAR_ROLE_CANDIDATE;
        out->n_differences = par_prober_differences(p, weights, out->difference, sizeof out->difference);
    }
    par_fault_forget(&r->fault);
    args.fault = &r->fault;
    args.repeat = true;
    args.dirty_first = r->row->change == PAR_CHANGE_STATE; /* only then can it act in the judged pass */

    args.clean = &w->base.clean[role];
    args.keep = keep;
    args.own = w->base.own[role];
    args.other = other;
    par_tool_gates_reset(args.own);
    par_tool_gates_reset(args.other);
    enum fwd_status rc = par_probe_run(p, &args, &out->probe, w->err);
    par_prober_close(own);
    if (rc != FWD_OK)
        return rc;
    out->ran = true;
    for (int i = 0; i < out->probe.n_rows; i++) {
        const struct par_op_row *row = &out->probe.rows[i];
        r->ratio_max = row->ratio_max > r->ratio_max ? row->ratio_max : r->ratio_max;
        if (!is_seen(row, &w->base.clean[role]))
            continue;
        out->first = out->first ? out->first : row;
        out->n_accused++;
    }
    out->changed = par_probe_first_change(&out->probe, &w->base.clean[role], &out->change_op, &out->change_layer);
    if (out->probe.repeated && !out->probe.same_bits)
        out->changed = true;
    r->moved = fmax(r->moved, out->probe.moved);
    for (int g = 0; g < PAR_GATE_COUNT; g++) {
        r->beside_clean[g] += par_tool_gates_failed(args.own, NULL, (enum par_tool_gate)g);
        if (role == PAR_ROLE_CANDIDATE || r->fault.in_reference)
            r->beside_other[g] = par_tool_gates_failed(other, w->base.other_clean[role], (enum par_tool_gate)g);
    }
    return FWD_OK;
}

/* The op that is guilty in truth: where it was planted; of a hook the first whose bits changed, and every other that
 * reads the same thing. */
static void judge_name(struct par_selftest_record *r, const struct side *s) {
    if (r->row->ops) { /* it has a place; a binding of two weights goes wrong at the first of them */
        enum fwd_op op = r->row->plant ? r->fault.op : s->change_op;
        r->op_right = r->op == op;
        r->layer_right = r->op_right && r->layer == r->fault.layer;
        return;
    }
    bool same_kind = s->change_op != FWD_OP_COUNT && par_class_of(r->op) == par_class_of(s->change_op);
    r->op_right = r->op == r->row->op || same_kind;
    r->layer_right = r->op_right;
}

static enum fwd_status diagnose(struct work *w, struct par_selftest_record *r, const struct side *s,
                                const struct par_evidence *item) {
    struct par_explain_context context = {.model = w->spec,
                                          .pool = w->pool,
                                          .tokens = w->ids,
                                          .n_tokens = w->base.n_ids,
                                          .n_prompt = w->base.n_prompt,
                                          .evidence = &s->probe.evidence};
    struct par_diagnosis d;
    FWD_TRY(par_explain(&context, item, &d, w->err));
    const char *name = d.signature ? d.signature->name : NULL;
    (void)snprintf(r->diagnosed, sizeof r->diagnosed, "%s", name ? name : "unexplained");
    (void)snprintf(r->diagnosis_text, sizeof r->diagnosis_text, "%s", name ? d.text : "");
    r->diagnosis = r->row->signature && name ? !strcmp(name, r->row->signature) : !r->row->signature == !name;
    return FWD_OK;
}

/* Where inside the op, and why: asked of the evidence of the op that is named. */
static enum fwd_status localise(struct work *w, struct par_selftest_record *r, const struct side *s) {
    const struct par_evidence *item = par_evidence_find(&s->probe.evidence, r->op, r->layer);
    struct par_pattern pattern;
    if (!item)
        return FWD_OK;
    FWD_TRY(par_pattern_find(w->spec, w->pool, item, &pattern, w->err));
    (void)snprintf(r->pattern_text, sizeof r->pattern_text, "%s", pattern.text);
    if (r->op_right && r->layer_right)
        r->sub_op = par_selftest_place_found(&r->fault, w->spec, &pattern);
    return diagnose(w, r, s, item);
}

static bool is_unstable(const struct side *s) {
    return s->ran && s->probe.repeated && !s->probe.same_bits;
}

/* The op that the side's evidence names: accused, or the first with other bits when repeated. */
static bool find_name(const struct side *s, enum fwd_op *op, int *layer) {
    if (s->first) {
        *op = s->first->op;
        *layer = s->first->layer;
        return true;
    }
    if (!is_unstable(s) || s->probe.unstable_op == FWD_OP_COUNT)
        return false;
    *op = s->probe.unstable_op;
    *layer = s->probe.unstable_layer;
    return true;
}

static const char *way_of(const struct side *s, bool differs, bool unstable) {
    if (s && s->first)
        return s->first->verdict == PAR_NONFINITE    ? "nonfinite"
               : s->first->verdict == PAR_MISTRUSTED ? "mistrusted"
                                                     : "op";
    return differs ? "config" : unstable ? "repeat" : "";
}

/* How far a fault moved an element where running both kernels did not tell. */
static double move_otherwise(const struct par_selftest_record *r, const struct side *s) {
    if (r->row->plant)
        return PAR_RATIO_CAP; /* a cache: its bound is 0 */
    const struct par_op_row *row = s->ran ? find_row(&s->probe, s->change_op, s->change_layer) : NULL;
    return row ? row->ratio_max : -1;
}

static enum fwd_status conclude(struct work *w, struct par_selftest_record *r, struct side sides[N_ROLES]) {
    const struct side *cand = &sides[PAR_ROLE_CANDIDATE], *ref = &sides[PAR_ROLE_REFERENCE];
    enum fwd_op op_cand, op_ref;
    int layer_cand, layer_ref;
    bool differs = cand->n_differences + ref->n_differences > 0, unstable = is_unstable(cand) || is_unstable(ref);
    bool by_cand = find_name(cand, &op_cand, &layer_cand), by_ref = find_name(ref, &op_ref, &layer_ref);
    const struct side *shown = by_cand ? cand : by_ref ? ref : NULL;
    r->n_accused = cand->n_accused + ref->n_accused;
    r->state = cand->changed || ref->changed || differs ? PAR_SELFTEST_CHANGED : PAR_SELFTEST_NO_EFFECT;
    r->detected = shown || unstable || differs;
    r->by = way_of(shown, differs, unstable);
    if (r->moved < 0 && r->state == PAR_SELFTEST_CHANGED)
        r->moved = move_otherwise(r, cand->changed ? cand : ref);
    if (shown) {
        r->named = true;
        r->op = by_cand ? op_cand : op_ref;
        r->layer = by_cand ? layer_cand : layer_ref;
        judge_name(r, shown);
        r->side = by_cand && by_ref ? "both" : by_cand ? "candidate" : "reference";
        r->side_right = !strcmp(r->side, par_fault_side(&r->fault));
        return localise(w, r, shown);
    }
    if (differs) {
        r->op_right = r->layer_right = true; /* the changed value or weight itself is named */
        (void)snprintf(r->why, sizeof r->why, "%s", cand->n_differences ? cand->difference : ref->difference);
    }
    return FWD_OK;
}

static enum fwd_status probe_fault(struct work *w, struct par_selftest_record *r) {
    struct side sides[N_ROLES] = {{0}, {0}};
    struct par_store *faulty = NULL;
    struct par_tool_gates *beside = NULL;
    double start = par_seconds();
    enum fwd_status rc = FWD_OK;
    bool in_ref = par_fault_in(&r->fault, PAR_ROLE_REFERENCE), in_cand = par_fault_in(&r->fault, PAR_ROLE_CANDIDATE);
    if (in_ref && in_cand)
        rc = par_store_create(&faulty, par_spec_config(w->spec)->n_layer, w->base.n_ids, w->err);
    if (rc == FWD_OK && in_ref)
        rc =
            probe_side(w, r, PAR_ROLE_REFERENCE, faulty, w->base.other[PAR_ROLE_REFERENCE], &sides[PAR_ROLE_REFERENCE]);
    if (rc == FWD_OK && faulty)
        rc = par_tool_gates_open(&beside, faulty, par_spec_config(w->spec)->n_layer, w->err);
    if (rc == FWD_OK && in_cand)
        rc = probe_side(w, r, PAR_ROLE_CANDIDATE, NULL, beside ? beside : w->base.other[PAR_ROLE_CANDIDATE],
                        &sides[PAR_ROLE_CANDIDATE]);
    if (rc == FWD_OK)
        rc = conclude(w, r, sides);
    for (int role = 0; role < N_ROLES; role++)
        par_probe_free(&sides[role].probe);
    par_tool_gates_close(beside);
    par_store_free(faulty);
    par_fault_free(&r->fault);
    r->seconds = par_seconds() - start;
    return rc;
}

/* ---- all faults ---- */

static bool belongs(const struct par_selftest_record *r, enum fwd_head head, int n_prompt) {
    return r->state != PAR_SELFTEST_NOT_HERE && head_of(r->row) == head && r->fault.n_prompt == n_prompt;
}

static bool any_belongs(const struct par_selftest *s, enum fwd_head head, int n_prompt) {
    for (int i = 0; i < s->n_records; i++)
        if (belongs(&s->records[i], head, n_prompt))
            return true;
    return false;
}

/* A fault that cannot run at all here (its own kernel refuses the model) is said, and the rest goes on. */
static enum fwd_status probe_length(struct work *w, enum fwd_head head, int n_prompt) {
    enum fwd_status rc = open_base(w, n_prompt);
    for (int i = 0; rc == FWD_OK && i < w->s->n_records; i++) {
        struct par_selftest_record *r = &w->s->records[i];
        if (!belongs(r, head, n_prompt))
            continue;
        progress(w, r->place, w->n_done++, w->s->n_records);
        rc = probe_fault(w, r);
        if (rc != FWD_OK && rc != FWD_ENOMEM && rc != FWD_EIO) {
            r->state = PAR_SELFTEST_NOT_HERE;
            (void)snprintf(r->why, sizeof r->why, "%.230s", w->err->message);
            rc = FWD_OK;
        }
    }
    close_base(&w->base);
    return rc;
}

static enum fwd_status probe_all(struct work *w) {
    static const enum fwd_head heads[] = {FWD_HEAD_QUANT, FWD_HEAD_F32};
    static const int lengths[N_LENGTHS] = {SHORT_PROMPT, LONG_PROMPT};
    enum fwd_status rc = FWD_OK;
    for (size_t h = 0; rc == FWD_OK && h < sizeof heads / sizeof *heads; h++) {
        if (!any_belongs(w->s, heads[h], lengths[0]) && !any_belongs(w->s, heads[h], lengths[1]))
            continue;
        for (int role = 0; rc == FWD_OK && role < N_ROLES; role++)
            rc = open_prober(w, role, heads[h], NULL, &w->prober[role]);
        for (int i = 0; rc == FWD_OK && i < N_LENGTHS; i++)
            if (any_belongs(w->s, heads[h], lengths[i]))
                rc = probe_length(w, heads[h], lengths[i]);
        for (int role = 0; role < N_ROLES; role++) {
            par_prober_close(w->prober[role]);
            w->prober[role] = NULL;
        }
    }
    return rc;
}

static enum fwd_status set_up(struct work *w) {
    const struct par_selftest_options *o = w->o;
    int n = MOST_IDS;
    FWD_FAIL_IF(o->n_ids < 1, FWD_EINPUT, w->err, "selftest: a prompt of %d tokens, expected at least 1", o->n_ids);
    FWD_FAIL_IF(o->n_seeds < 1, FWD_EINPUT, w->err, "selftest: %d places a fault, expected at least 1", o->n_seeds);
    FWD_TRY(par_drive_probe(o->ref, w->err));
    FWD_TRY(par_drive_probe(o->cand, w->err));
    FWD_TRY(par_spec_open(&w->spec, o->file, w->err));
    FWD_TRY(fwd_pool_create(&w->pool, o->knobs.n_threads, w->err));
    w->ids = fwd_alloc((size_t)n, sizeof *w->ids);
    FWD_FAIL_IF(!w->ids, FWD_ENOMEM, w->err, "selftest: no memory for %d ids", n);
    for (int i = 0; i < n; i++)
        w->ids[i] = o->ids[i % o->n_ids];
    return FWD_OK;
}

static enum fwd_status try_weights(struct work *w) {
    struct par_weight_trials_options options = {.file = w->o->file,
                                                .path = w->o->cand,
                                                .ids = w->ids,
                                                .n_ids = WEIGHT_POSITIONS,
                                                .n_trials = w->o->n_weights,
                                                .seed = 1,
                                                .n_threads = w->o->knobs.n_threads,
                                                .progress = w->o->progress,
                                                .progress_ud = w->o->progress_ud};
    enum fwd_status rc = par_selftest_one_weight(&options, &w->s->weights, w->err);
    return rc == FWD_EUNSUPPORTED ? FWD_OK : rc; /* no 4-bit matrix here: said as not measured */
}

enum fwd_status par_selftest_run(const struct par_selftest_options *options, struct par_selftest *out,
                                 struct fwd_error *err) {
    struct work w = {.o = options, .s = out, .err = err};
    double start = par_seconds();
    out->clean_asked = options->clean_elements;
    enum fwd_status rc = set_up(&w);
    if (rc == FWD_OK && options->n_prompts > 0)
        rc = par_selftest_clean_runs(options, w.spec, w.pool, &out->clean, err);
    out->seconds_clean = par_seconds() - start;
    if (rc == FWD_OK)
        rc = list_places(&w);
    if (rc == FWD_OK)
        rc = probe_all(&w);
    out->seconds_faults = par_seconds() - start - out->seconds_clean;
    if (rc == FWD_OK && options->n_weights > 0)
        rc = try_weights(&w);
    if (rc == FWD_OK)
        par_selftest_figures(out);
    progress(&w, "", -1, 0);
    par_spec_close(w.spec);
    fwd_pool_free(w.pool);
    fwd_free(w.ids);
    return rc;
}

void par_selftest_free(struct par_selftest *s) {
    for (int i = 0; i < s->n_records; i++)
        par_fault_free(&s->records[i].fault);
    fwd_free(s->records);
    memset(s, 0, sizeof *s);
}
