/* harness/run/probe.c: see probe.h. Overrides go through a path table of our own, so that each planted op is run twice:
 * by the path's kernel and by the fault. How far the fault moved an element is known that way, whatever the judge says.
 */
#include "run/probe.h"

#include "spec/ratio_histogram.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_PLANTED = 16 };

struct planted {
    struct par_prober *prober;
    enum fwd_op op;
    int layer; /* -1: every layer, or an op outside layers */
    fwd_override_fn *fn;
    void *ud;
};

struct par_prober {
    struct par_prober_options o;
    struct fwd_session *session;
    struct fwd_path planting; /* the path's table with an override of ours, whose session is the prober */
    struct planted planted[MAX_PLANTED];
    int n_planted;
    enum fwd_op measured; /* the planted op whose move is wanted */
    double moved;
};

bool par_row_accused(const struct par_op_row *row) {
    return row->verdict == PAR_DIVERGED || row->verdict == PAR_NONFINITE;
}

/* ---- how far a planted op moved what it computes ---- */

struct copy {
    uint8_t *bytes;
    size_t n;
};

static bool is_cache(enum fwd_op op) {
    return op == FWD_OP_K_CACHE || op == FWD_OP_V_CACHE;
}

/* The bytes of a view's rows, one after the other; of a cache all its rows. */
static enum fwd_status copy_rows(const struct fwd_view *v, struct copy *c, struct fwd_error *err) {
    size_t row = fwd_dtype_row_bytes(v->dtype, v->ne[0]);
    int64_t n_inner = is_cache(v->op) ? v->ne[1] : 1, n_outer = is_cache(v->op) ? v->ne[2] : v->n_pos;
    int64_t stride = is_cache(v->op) ? v->nb[2] : v->nb[1] ? v->nb[1] : (int64_t)row;
    c->n = row * (size_t)(n_inner * n_outer);
    c->bytes = fwd_alloc(c->n, 1);
    FWD_FAIL_IF(!c->bytes, FWD_ENOMEM, err, "probe: no memory for %zu bytes of %s", c->n, fwd_op_name(v->op));
    for (int64_t i = 0; i < n_outer; i++)
        for (int64_t k = 0; k < n_inner; k++)
            memcpy(c->bytes + (size_t)(i * n_inner + k) * row, (const uint8_t *)v->data + i * stride + k * v->nb[1],
                   row);
    return FWD_OK;
}

static double float_at(enum fwd_dtype type, const uint8_t *bytes, size_t i) {
    return type == FWD_F64 ? ((const double *)(const void *)bytes)[i] : (double)((const float *)(const void *)bytes)[i];
}

/* The largest |faulty - clean| / bound. x: element by element as the faulty op left them. */
static double largest_move(const struct par_elements *x, const struct copy *clean, const struct copy *faulty,
                           enum fwd_dtype type) {
    double most = 0;
    for (size_t i = 0; i < (size_t)x->n_pos * (size_t)x->width; i++) {
        double a = float_at(type, clean->bytes, i), b = float_at(type, faulty->bytes, i);
        if (a == b || (isnan(a) && isnan(b)))
            continue;
        double ratio = fabs(b - a) / x->bound[i];
        most = fmax(most, ratio <= PAR_RATIO_CAP ? ratio : PAR_RATIO_CAP);
    }
    return most;
}

static double measure_move(const struct planted *p, const struct fwd_op_call *call, const struct copy *clean,
                           const struct copy *faulty) {
    struct fwd_numerics numerics = {.size = sizeof numerics};
    const struct fwd_view *out = call->out;
    if (!memcmp(clean->bytes, faulty->bytes, clean->n))
        return 0;
    if ((out->dtype != FWD_F32 && out->dtype != FWD_F64) || out->op == FWD_OP_INP_EMBD)
        return PAR_RATIO_CAP; /* their bound is 0 */
    if (!p->prober->o.path->numerics(p->prober->session, out->op, out->layer, &numerics))
        return -1;
    struct par_eval e = {.op = out->op,
                         .layer = out->layer,
                         .pos0 = out->pos0,
                         .n_pos = out->n_pos,
                         .n_in = call->n_in,
                         .in = {call->in[0], call->in[1], call->in[2], call->in[3]},
                         .out = out,
                         .numerics = &numerics};
    struct par_elements x;
    if (par_spec_elements(p->prober->o.spec, p->prober->o.pool, &e, &x, NULL) != FWD_OK)
        return -1;
    double moved = -1;
    if (x.n_pos == out->n_pos && x.width == out->ne[0])
        moved = largest_move(&x, clean, faulty, out->dtype);
    par_elements_free(&x);
    return moved;
}

/* The override of every planted op. A cache is left to the fault alone: a fault may need what was there before, which
 * a kernel run first would overwrite. */
static enum fwd_status run_planted(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    struct planted *p = ud;
    struct copy clean = {0}, faulty = {0};
    if (is_cache(call->op) || call->op != p->prober->measured)
        return p->fn(p->ud, call, err);
    enum fwd_status rc = call->builtin(call, err);
    if (rc == FWD_OK)
        rc = copy_rows(call->out, &clean, err);
    if (rc == FWD_OK)
        rc = p->fn(p->ud, call, err);
    if (rc == FWD_OK)
        rc = copy_rows(call->out, &faulty, err);
    if (rc == FWD_OK) {
        double moved = measure_move(p, call, &clean, &faulty);
        p->prober->moved = fmax(p->prober->moved, moved);
    }
    fwd_free(clean.bytes);
    fwd_free(faulty.bytes);
    return rc;
}

static enum fwd_status plant_measured(struct fwd_session *s, enum fwd_op op, int layer, fwd_override_fn *fn, void *ud,
                                      struct fwd_error *err) {
    struct par_prober *p = (struct par_prober *)(void *)s;
    FWD_FAIL_IF(p->n_planted == MAX_PLANTED, FWD_ERANGE, err, "probe: a fault with more than %d ops", MAX_PLANTED);
    struct planted *one = &p->planted[p->n_planted++];
    *one = (struct planted){p, op, layer, fn, ud};
    return p->o.path->override(p->session, op, layer, fn ? run_planted : NULL, one, err);
}

static enum fwd_status take_out(struct par_prober *p, struct fwd_error *err) {
    enum fwd_status rc = FWD_OK;
    for (int i = 0; i < p->n_planted; i++) {
        enum fwd_status one = p->o.path->override(p->session, p->planted[i].op, p->planted[i].layer, NULL, NULL, err);
        rc = one == FWD_OK ? rc : one;
    }
    p->n_planted = 0;
    return rc;
}

/* ---- the session ---- */

static void hook_config(void *ud, struct fwd_config *config) {
    par_fault_hook_config(ud, config);
}

static void hook_model(void *ud, struct fwd_model *model) {
    par_fault_hook_model(ud, model);
}

static bool hook_plan(void *ud, struct fwd_plan_fault *out) {
    return par_fault_hook_plan(ud, out);
}

enum fwd_status par_prober_open(struct par_prober **out, const struct par_prober_options *options,
                                struct fwd_error *err) {
    struct par_prober *p = fwd_calloc(1, sizeof *p);
    FWD_FAIL_IF(!p, FWD_ENOMEM, err, "probe: no memory");
    p->o = *options;
    p->planting = *options->path;
    p->planting.override = plant_measured;
    struct fwd_knobs knobs = options->knobs;
    knobs.size = sizeof knobs;
    if (options->hooks) {
        knobs.config_hook = hook_config;
        knobs.model_hook = hook_model;
        knobs.plan_hook = options->role == PAR_ROLE_CANDIDATE ? hook_plan : NULL;
        knobs.config_hook_ud = knobs.model_hook_ud = knobs.plan_hook_ud = options->hooks;
    }
    enum fwd_status rc = options->path->open(&p->session, options->file, &knobs, err);
    if (rc != FWD_OK) {
        fwd_free(p);
        return rc;
    }
    *out = p;
    return FWD_OK;
}

void par_prober_close(struct par_prober *p) {
    if (!p)
        return;
    p->o.path->close(p->session);
    fwd_free(p);
}

int par_prober_differences(struct par_prober *p, bool weights, char *text, size_t n) {
    char lines[2048] = "";
    struct fwd_bound_weight w;
    int found = par_spec_compare_config(p->o.spec, p->o.path->config(p->session), lines, sizeof lines);
    lines[strcspn(lines, "\n")] = 0;
    (void)snprintf(text, n, "%s", lines);
    for (int i = 0; weights && p->o.path->bound_weight(p->session, i, &w); i++) {
        const struct fwd_gguf_tensor *t = fwd_gguf_find(p->o.file, w.name);
        bool same = t && t->type == w.type && t->data && fwd_hash64(t->data, t->n_bytes) == w.checksum;
        if (!same && found++ == 0)
            (void)snprintf(text, n, "%s as bound is not the file's", w.name);
    }
    return found;
}

/* ---- a pass ---- */

struct pass {
    struct par_prober *p;
    const struct par_probe_args *args;
    struct par_probe *out;
    int known_below;         /* layers below this one cannot have been reached by the fault */
    int changed_layer;       /* the lowest with a tap that is not the clean pass's */
    bool known;              /* the tap at hand need not be judged */
    uint8_t *judged;         /* [n_layer + 1][FWD_OP_COUNT] 1: some of its taps were */
    struct par_judge *judge; /* NULL: hashes only */
    enum fwd_status rc;
    struct fwd_error *err;
};

static uint64_t *hash_at(const struct par_probe *p, enum fwd_op op, int layer, int pos) {
    bool known = (unsigned)op < FWD_OP_COUNT && layer >= -1 && layer < p->n_layer && pos >= 0 && pos < p->n_pos;
    return known ? &p->hashes[((size_t)(layer + 1) * FWD_OP_COUNT + (size_t)op) * (size_t)p->n_pos + (size_t)pos]
                 : NULL;
}

uint64_t par_probe_hash(const struct par_probe *p, enum fwd_op op, int layer, int pos) {
    const uint64_t *h = hash_at(p, op, layer, pos);
    return h ? *h : 0;
}

/* Several calls may end at one position (a cache, or a _q8 op in two formats): all of them count. */
static void add_hash(struct par_probe *p, const struct fwd_view *v, int pos, uint64_t hash) {
    uint64_t *h = hash_at(p, v->op, v->layer, pos);
    if (h)
        *h = *h * 0x9e3779b97f4a7c15u + (hash ? hash : 1);
}

static enum fwd_status hash_view(struct par_probe *p, const struct fwd_view *v, struct fwd_error *err) {
    size_t row = fwd_dtype_row_bytes(v->dtype, v->ne[0]);
    if (is_cache(v->op)) {
        struct copy c;
        FWD_TRY(copy_rows(v, &c, err));
        add_hash(p, v, v->pos0 + v->n_pos - 1, fwd_hash64(c.bytes, c.n));
        fwd_free(c.bytes);
        return FWD_OK;
    }
    size_t stride = v->nb[1] ? (size_t)v->nb[1] : row;
    for (int i = 0; i < v->n_pos; i++)
        add_hash(p, v, v->pos0 + i, fwd_hash64((const uint8_t *)v->data + (size_t)i * stride, row));
    return FWD_OK;
}

/* The result ops as a layer of their own, after all others. */
static int depth_of(const struct pass *w, enum fwd_op op, int layer) {
    return op >= FWD_OP_RESULT_NORM ? w->out->n_layer : layer;
}

/* Is the tap of a layer below the planted one, and has it the clean pass's bits as every tap had that its op can have
 * read? Those are of its own layer or of the one below; a tap that changed, in any call so far, changed nothing above
 * its layer. The planted layer itself is judged in every call, so that where the fault does not act is known too. */
static bool is_known(struct pass *w, const struct fwd_view *v) {
    const struct par_probe *clean = w->args->clean;
    bool cache = is_cache(v->op), same = true;
    if (!clean)
        return false;
    for (int pos = cache ? v->pos0 + v->n_pos - 1 : v->pos0; same && pos < v->pos0 + v->n_pos; pos++)
        same = par_probe_hash(w->out, v->op, v->layer, pos) == par_probe_hash(clean, v->op, v->layer, pos);
    int depth = depth_of(w, v->op, v->layer);
    if (!same && depth < w->changed_layer)
        w->changed_layer = depth;
    return depth < w->changed_layer && depth < w->known_below;
}

/* Too far above the planted op to be looked at. */
static bool is_beyond(const struct pass *w, const struct fwd_view *v) {
    return w->args->reach >= 0 && w->known_below >= 0 && depth_of(w, v->op, v->layer) > w->known_below + w->args->reach;
}

static bool known_view(void *ud, const struct fwd_view *v) {
    (void)v;
    return ((const struct pass *)ud)->known;
}

static int on_tap(void *ud, const struct fwd_view *v) {
    struct pass *w = ud;
    w->rc = hash_view(w->out, v, w->err);
    if (!w->judge)
        return w->rc != FWD_OK;
    w->known = is_known(w, v);
    w->judged[(size_t)(v->layer + 1) * FWD_OP_COUNT + (size_t)v->op] |= !w->known;
    w->known = w->known || is_beyond(w, v);
    (void)par_judge_tap(w->judge, v);
    if (w->rc == FWD_OK && w->args->keep)
        w->rc = par_store_put(w->args->keep, v, w->err);
    if (w->rc == FWD_OK && w->args->own)
        w->rc = par_tool_gates_tap(w->args->own, v, w->err);
    if (w->rc == FWD_OK && w->args->other)
        w->rc = par_tool_gates_tap(w->args->other, v, w->err);
    return w->rc != FWD_OK;
}

static bool declared(void *ud, enum fwd_op op, int layer, struct fwd_numerics *out) {
    const struct par_prober *p = ud;
    return p->o.path->numerics(p->session, op, layer, out);
}

/* The last position of the prompt and the decode steps. */
static enum fwd_status drive(struct pass *w, fwd_tap_fn *tap, uint64_t *hash) {
    const struct par_probe_args *a = w->args;
    struct par_prober *p = w->p;
    struct par_drive d = {
        .path = p->o.path, .session = p->session, .schedule = a->schedule, .chunk = a->chunk, .tap = tap, .tap_ud = w};
    int n_want = a->n_ids - a->n_prompt + 1;
    size_t n_vocab = (size_t)p->o.path->config(p->session)->n_vocab;
    uint8_t *want = fwd_calloc((size_t)a->n_ids, 1);
    float *logits = fwd_alloc((size_t)n_want * n_vocab, sizeof *logits);
    enum fwd_status rc = FWD_OK;
    if (!want || !logits)
        rc = fwd_fail(w->err, FWD_ENOMEM, __FILE__, __LINE__, "probe: no memory for %d rows of logits", n_want);
    for (int pos = a->n_prompt - 1; rc == FWD_OK && pos < a->n_ids; pos++)
        want[pos] = 1;
    if (rc == FWD_OK)
        rc = par_drive_run(&d, a->ids, a->n_prompt, a->n_ids, want, logits, w->err);
    if (rc == FWD_OK)
        *hash = fwd_hash64(logits, (size_t)n_want * n_vocab * sizeof *logits);
    fwd_free(want);
    fwd_free(logits);
    return rc;
}

static enum fwd_status judged_pass(struct pass *w) {
    struct par_prober *p = w->p;
    struct par_judge_options options = {.numerics = declared,
                                        .numerics_ud = p,
                                        .sample_every = 1,
                                        .pool = p->o.pool,
                                        .known = known_view,
                                        .known_ud = w,
                                        .evidence_bytes = w->args->evidence_bytes};
    FWD_TRY(par_judge_open(&w->judge, p->o.spec, &options, w->err));
    FWD_TRY(par_judge_seq_begin(w->judge, w->err));
    FWD_TRY(par_judge_tokens(w->judge, w->args->ids, w->args->n_ids, w->err));
    enum fwd_status rc = drive(w, on_tap, &w->out->logits_hash);
    return w->rc != FWD_OK ? w->rc : rc;
}

static enum fwd_status take_rows(struct pass *w) {
    const struct par_op_row *rows;
    int n_rows, n_positions;
    FWD_TRY(par_judge_rows(w->judge, &rows, &n_rows, w->err));
    w->out->rows = fwd_alloc((size_t)n_rows, sizeof *rows);
    FWD_FAIL_IF(!w->out->rows, FWD_ENOMEM, w->err, "probe: no memory for %d op rows", n_rows);
    memcpy(w->out->rows, rows, (size_t)n_rows * sizeof *rows);
    w->out->n_rows = n_rows;
    for (int i = 0; w->args->clean && i < n_rows; i++)
        if (!w->judged[(size_t)(rows[i].layer + 1) * FWD_OP_COUNT + (size_t)rows[i].op])
            w->out->rows[i] = w->args->clean->rows[i];
    par_judge_coverage(w->judge, &n_positions, &w->out->n_elements);
    par_judge_take_evidence(w->judge, &w->out->evidence);
    return FWD_OK;
}

/* A longer, other sequence: what a stale state would keep. */
static enum fwd_status run_another(struct pass *w) {
    const struct par_probe_args *a = w->args;
    uint64_t ignored;
    int n = a->n_ids + 1;
    int32_t *other = fwd_alloc((size_t)n, sizeof *other);
    FWD_FAIL_IF(!other, FWD_ENOMEM, w->err, "probe: no memory for %d ids", n);
    for (int i = 0; i < n; i++)
        other[i] = a->ids[(n - i) % a->n_ids];
    struct par_probe_args between = *a;
    between.ids = other;
    between.n_prompt = between.n_ids = n;
    between.schedule = PAR_SCHEDULE_PREFILL;
    between.chunk = 0;
    struct pass b = *w;
    b.args = &between;
    enum fwd_status rc = drive(&b, NULL, &ignored);
    fwd_free(other);
    return rc;
}

static enum fwd_status make_hashes(struct par_probe *p, struct fwd_error *err) {
    p->hashes = fwd_calloc((size_t)(p->n_layer + 1) * FWD_OP_COUNT * (size_t)p->n_pos, sizeof *p->hashes);
    FWD_FAIL_IF(!p->hashes, FWD_ENOMEM, err, "probe: no memory for hashes of %d positions", p->n_pos);
    return FWD_OK;
}

/* The logits differed between repeats: which tap does so first? Every attempt goes after another sequence, for what is
 * stale only then. */
static enum fwd_status find_unstable(struct pass *w) {
    enum { ATTEMPTS = 4 };
    for (int i = 0; i < ATTEMPTS && w->out->unstable_op == FWD_OP_COUNT; i++) {
        struct par_probe again = {.n_layer = w->out->n_layer, .n_pos = w->out->n_pos};
        struct pass b = {.p = w->p, .args = w->args, .out = &again, .err = w->err};
        FWD_TRY(run_another(w));
        FWD_TRY(make_hashes(&again, w->err));
        enum fwd_status rc = drive(&b, on_tap, &again.logits_hash);
        if (rc == FWD_OK)
            (void)par_probe_first_change(w->out, &again, &w->out->unstable_op, &w->out->unstable_layer);
        fwd_free(again.hashes);
        FWD_TRY(b.rc != FWD_OK ? b.rc : rc);
    }
    return FWD_OK;
}

/* As a run proves it: without taps, then a longer sequence, then again without taps. */
static enum fwd_status repeat(struct pass *w) {
    uint64_t first, second;
    FWD_TRY(drive(w, NULL, &first));
    FWD_TRY(run_another(w));
    FWD_TRY(drive(w, NULL, &second));
    w->out->repeated = true;
    w->out->same_bits = first == w->out->logits_hash && second == w->out->logits_hash;
    return w->out->same_bits ? FWD_OK : find_unstable(w);
}

static bool any_accused(const struct par_probe *p) {
    for (int i = 0; i < p->n_rows; i++)
        if (par_row_accused(&p->rows[i]))
            return true;
    return false;
}

enum fwd_status par_probe_run(struct par_prober *p, const struct par_probe_args *args, struct par_probe *out,
                              struct fwd_error *err) {
    struct pass w = {.p = p, .args = args, .out = out, .err = err};
    w.changed_layer = par_spec_config(p->o.spec)->n_layer + 1;
    memset(out, 0, sizeof *out);
    out->n_layer = par_spec_config(p->o.spec)->n_layer;
    out->n_pos = args->n_ids;
    out->unstable_op = FWD_OP_COUNT;
    FWD_TRY(make_hashes(out, err));
    const struct par_fault *f = args->fault;
    w.known_below = f && f->row->plant && f->row->ops ? depth_of(&w, f->op, f->layer) : -1;
    w.judged = fwd_calloc((size_t)(out->n_layer + 1) * FWD_OP_COUNT, sizeof *w.judged);
    p->moved = -1;
    p->measured = args->fault ? args->fault->op : FWD_OP_COUNT;
    p->n_planted = 0;
    enum fwd_status rc =
        w.judged ? FWD_OK
                 : fwd_fail(err, FWD_ENOMEM, __FILE__, __LINE__, "probe: no memory for %d layers", out->n_layer);
    if (rc == FWD_OK && args->fault && par_fault_in(args->fault, p->o.role))
        rc = par_fault_plant(args->fault, &p->planting, (struct fwd_session *)(void *)p, err);
    if (rc == FWD_OK && args->dirty_first)
        rc = run_another(&w);
    if (rc == FWD_OK)
        rc = judged_pass(&w);
    if (rc == FWD_OK)
        rc = take_rows(&w);
    if (rc == FWD_OK && args->repeat && !any_accused(out))
        rc = repeat(&w);
    out->moved = p->moved;
    par_judge_close(w.judge);
    fwd_free(w.judged);
    enum fwd_status removed = take_out(p, rc == FWD_OK ? err : NULL);
    rc = rc == FWD_OK ? removed : rc;
    if (rc != FWD_OK)
        par_probe_free(out);
    return rc;
}

void par_probe_free(struct par_probe *p) {
    fwd_free(p->rows);
    fwd_free(p->hashes);
    par_evidence_free(&p->evidence);
    memset(p, 0, sizeof *p);
}

bool par_probe_first_change(const struct par_probe *a, const struct par_probe *b, enum fwd_op *op, int *layer) {
    for (int i = 0; i < a->n_rows; i++)
        for (int pos = 0; pos < a->n_pos && pos < b->n_pos; pos++)
            if (par_probe_hash(a, a->rows[i].op, a->rows[i].layer, pos) !=
                par_probe_hash(b, a->rows[i].op, a->rows[i].layer, pos)) {
                *op = a->rows[i].op;
                *layer = a->rows[i].layer;
                return true;
            }
    *op = FWD_OP_COUNT;
    *layer = -1;
    return a->logits_hash != b->logits_hash;
}
