/* Interventions on the guilty ops: an override writes the spec's value instead of running the op. K and V rows cannot
 * be put there by value, a cache being what other calls left in it: they are written again from what this run computed.
 */
#include "localise/impact.h"

#include "spec/spec_decode.h"
#include "spec/spec_quant.h"
#include "spec/spec_tensor.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_ALONE = 8, MOST_ALONE_QUICK = 3 };

struct patch {
    struct par_run *r;
    const struct fwd_path *path;
    struct fwd_session *session;
    float *rows; /* [n_layer][2][n_ids][kv width], for caches */
};

/* ---- overrides -----------------------------------------------------------------------------------------------------
 */
static enum fwd_status as_eval(const struct patch *p, const struct fwd_op_call *call, struct fwd_numerics *numerics,
                               struct par_eval *e, struct fwd_error *err) {
    *e = (struct par_eval){
        .op = call->op, .layer = call->layer, .pos0 = call->pos0, .n_pos = call->n_pos, .n_in = call->n_in};
    for (int i = 0; i < call->n_in; i++)
        e->in[i] = call->in[i];
    e->out = call->out;
    e->numerics = numerics;
    numerics->size = sizeof *numerics;
    FWD_FAIL_IF(!p->path->numerics(p->session, call->op, call->layer, numerics), FWD_ESTATE, err,
                "%s: the path declares no numerics for it", fwd_op_name(call->op));
    return FWD_OK;
}

static void store_row(const struct fwd_view *out, int i, const double *values, int64_t n) {
    uint8_t *row = (uint8_t *)out->data + out->nb[1] * i;
    for (int64_t k = 0; k < n; k++) {
        float x = (float)values[k];
        if (out->dtype == FWD_F64)
            memcpy(row + 8 * k, &values[k], sizeof values[k]);
        else
            memcpy(row + 4 * k, &x, sizeof x);
    }
}

static enum fwd_status put_values(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    struct patch *p = ud;
    struct par_eval e;
    struct fwd_numerics numerics;
    int64_t width = call->out->ne[0];
    FWD_TRY(as_eval(p, call, &numerics, &e, err));
    FWD_FAIL_IF(call->out->dtype != FWD_F32 && call->out->dtype != FWD_F64, FWD_EUNSUPPORTED, err,
                "%s: its output is %s, expected F32 or F64", fwd_op_name(call->op), fwd_dtype_name(call->out->dtype));
    double *values = fwd_alloc((size_t)call->n_pos * (size_t)width, sizeof *values);
    FWD_FAIL_IF(!values, FWD_ENOMEM, err, "impact: no memory for %d rows of %lld", call->n_pos, (long long)width);
    enum fwd_status rc = par_spec_value(p->r->spec, p->r->pool, &e, values, err);
    for (int i = 0; rc == FWD_OK && i < call->n_pos; i++)
        store_row(call->out, i, values + i * width, width);
    fwd_free(values);
    return rc;
}

/* A block of a _q8 op from its codes and scale, sums included. */
static void store_block(enum fwd_dtype dtype, const double *codes, double scale, uint8_t *out) {
    int n = par_q8_block_values(dtype), total = 0;
    float d = (float)scale;
    int16_t sum16[16] = {0};
    uint8_t *q = out + (dtype == FWD_Q8_K ? 4 : 8);
    memcpy(out, &d, sizeof d);
    for (int i = 0; i < n; i++) {
        q[i] = (uint8_t)(int8_t)codes[i];
        sum16[i / 16] = (int16_t)(sum16[i / 16] + (int)codes[i]);
        total += (int)codes[i];
    }
    if (dtype == FWD_Q8_K)
        memcpy(out + 260, sum16, sizeof sum16);
    else
        memcpy(out + 4, &total, sizeof total);
}

static enum fwd_status put_blocks(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    struct patch *p = ud;
    struct par_eval e;
    struct fwd_numerics numerics;
    struct par_elements x;
    FWD_TRY(as_eval(p, call, &numerics, &e, err));
    enum fwd_dtype dtype = call->out->dtype;
    bool tensor = par_tensor_format(dtype);
    FWD_FAIL_IF(!par_q8_block_values(dtype) && !tensor, FWD_EUNSUPPORTED, err,
                "%s: its output is %s, expected blocks of codes", fwd_op_name(call->op), fwd_dtype_name(dtype));
    FWD_TRY(par_spec_elements(p->r->spec, p->r->pool, &e, &x, err));
    int block = par_q8_block_values(dtype);
    int64_t k = call->out->ne[0];
    size_t row_bytes = fwd_dtype_row_bytes(dtype, k);
    for (int i = 0; i < x.n_pos; i++) {
        const double *row = x.expected + i * x.width;
        uint8_t *out = (uint8_t *)call->out->data + (size_t)i * row_bytes;
        if (tensor)
            par_tensor_write(dtype, row, k, x.width > k ? row[k] : 1, out);
        for (int64_t b = 0; !tensor && b < k / block; b++)
            store_block(dtype, row + b * block, row[k + b], out + (size_t)b * par_q8_block_bytes(dtype));
    }
    par_elements_free(&x);
    return FWD_OK;
}

static enum fwd_status rewrite_cache(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    struct patch *p = ud;
    const struct par_run *r = p->r;
    const struct fwd_view *cache = call->out;
    int64_t width = cache->ne[0] * cache->ne[1];
    FWD_TRY(call->builtin(call, err));
    float *kept = p->rows + ((int64_t)call->layer * 2 + (call->op == FWD_OP_V_CACHE)) * r->n_ids * width;
    for (int i = 0; i < call->n_pos; i++)
        memcpy(kept + (call->pos0 + i) * width, (const char *)call->in[0]->data + call->in[0]->nb[1] * i,
               (size_t)width * sizeof *kept);
    for (int pos = 0; pos < call->pos0 + call->n_pos; pos++)
        for (int64_t head = 0; head < cache->ne[1]; head++)
            for (int64_t d = 0; d < cache->ne[0]; d++) {
                char *at = (char *)cache->data + pos * cache->nb[2] + head * cache->nb[1] + d * cache->nb[0];
                float x = kept[pos * width + head * cache->ne[0] + d];
                uint16_t half = par_f32_to_f16(x);
                memcpy(at, cache->dtype == FWD_F16 ? (const void *)&half : (const void *)&x,
                       cache->dtype == FWD_F16 ? sizeof half : sizeof x);
            }
    return FWD_OK;
}

static bool is_cache(enum fwd_op op) {
    return op == FWD_OP_K_CACHE || op == FWD_OP_V_CACHE;
}

static enum fwd_status make_rows(struct patch *p, struct fwd_error *err) {
    const struct par_spec_config *c = par_spec_config(p->r->spec);
    size_t width = (size_t)c->n_kv_head * (size_t)c->head_dim;
    if (!p->rows)
        p->rows = fwd_calloc((size_t)c->n_layer * 2 * (size_t)p->r->n_ids * width, sizeof *p->rows);
    FWD_FAIL_IF(!p->rows, FWD_ENOMEM, err, "impact: no memory for the KV rows of %d positions", p->r->n_ids);
    return FWD_OK;
}

/* ---- patched runs --------------------------------------------------------------------------------------------------
 */
/* Guilty ops, by how far they are off. */
struct guilty {
    const struct par_op_row **rows;
    int n;
};
typedef bool chosen_fn(const struct par_op_row *row, const void *what);

static enum fwd_status set_one(struct patch *p, const struct par_op_row *row, bool on, struct fwd_error *err) {
    fwd_override_fn *fn = put_values;
    if (is_cache(row->op)) {
        FWD_TRY(make_rows(p, err));
        fn = rewrite_cache;
    } else if (par_class_of(row->op) == PAR_CLASS_ACT_QUANT) {
        fn = put_blocks;
    }
    return p->path->override(p->session, row->op, row->layer, on ? fn : NULL, on ? p : NULL, err);
}

/* Puts the spec in for the chosen ops, runs, takes it out again and plants the run's faults anew. */
static enum fwd_status run_patched(struct patch *p, const struct guilty *g, chosen_fn *chosen, const void *what,
                                   bool judged, struct par_pass *pass, int *n_ops, struct fwd_error *err) {
    enum fwd_status rc = FWD_OK, back = FWD_OK;
    const struct par_run_options *o = p->r->o;
    *n_ops = 0;
    for (int i = 0; rc == FWD_OK && i < g->n; i++)
        if (chosen(g->rows[i], what)) {
            rc = set_one(p, g->rows[i], true, err);
            (*n_ops)++;
        }
    if (rc == FWD_OK)
        rc = judged ? par_run_rejudge(p->r, p->session, o->schedule, o->chunk, pass, err)
                    : par_run_relook(p->r, p->session, o->schedule, o->chunk, pass, err);
    for (int i = 0; i < g->n; i++)
        if (chosen(g->rows[i], what) && back == FWD_OK)
            back = set_one(p, g->rows[i], false, rc == FWD_OK ? err : NULL);
    if (back == FWD_OK)
        back = par_run_plant_faults(p->r, PAR_ROLE_CANDIDATE, p->path, p->session, rc == FWD_OK ? err : NULL);
    return rc != FWD_OK ? rc : back;
}

static bool is_row(const struct par_op_row *row, const void *what) {
    return row == what;
}
static bool is_of_class(const struct par_op_row *row, const void *what) {
    return par_class_of(row->op) == *(const enum par_op_class *)what;
}
static bool is_any(const struct par_op_row *row, const void *what) {
    (void)row;
    (void)what;
    return true;
}

/* Share of the divergence that went away; NaN where there was none. */
static double removed(const struct par_pass *pass) {
    return pass->excess_base > 0 ? 1 - pass->excess / pass->excess_base : (double)NAN;
}

/* ---- the report ----------------------------------------------------------------------------------------------------
 */
static void add_row(struct par_run *r, const struct par_report_impact *row) {
    int n = r->report->n_impact;
    struct par_report_impact *rows = par_text_alloc(r->text, (size_t)(n + 1) * sizeof *rows);
    if (!rows)
        return;
    if (n)
        memcpy(rows, r->report->impact, (size_t)n * sizeof *rows);
    rows[n] = *row;
    r->report->impact = rows;
    r->report->n_impact = n + 1;
}

static void add_pass(struct par_run *r, const char *what, const struct par_op_row *op, int n_ops, bool judged,
                     const struct par_pass *pass) {
    struct par_report_impact row = {.what = what,
                                    .op = op ? op->op : FWD_OP_COUNT,
                                    .layer = op ? op->layer : -1,
                                    .n_ops = n_ops,
                                    .judged = judged,
                                    .n_accused = pass->n_accused,
                                    .same_bits = pass->same_bits,
                                    .n_positions = pass->n_logits,
                                    .before = pass->excess_base,
                                    .after = pass->excess,
                                    .removes = removed(pass)};
    add_row(r, &row);
}

struct class_text {
    const char *id, *hypothesis, *what;
};
static const struct class_text class_texts[PAR_CLASS_COUNT] = {
    [PAR_CLASS_EMBED] = {"embed", "H5", "the guilty embedding"},
    [PAR_CLASS_NORM] = {"norm", "H5", "every guilty norm"},
    [PAR_CLASS_ACT_QUANT] = {"act_quant", "H5", "every guilty quantisation of activations"},
    [PAR_CLASS_MATMUL] = {"matmul", "H1", "every guilty fused matmul"},
    [PAR_CLASS_HEAD] = {"head", "H4", "the guilty output head"},
    [PAR_CLASS_ROPE] = {"rope", "H3", "every guilty rotation"},
    [PAR_CLASS_KV] = {"kv", "H2", "every guilty KV row, written again before it is read"},
    [PAR_CLASS_ATTENTION] = {"attention", "H5", "every guilty attention"},
    [PAR_CLASS_SWIGLU] = {"swiglu", "H5", "every guilty SwiGLU"},
    [PAR_CLASS_RESIDUAL] = {"residual", "H5", "every guilty residual sum"},
};

/* Nothing of that kind is accused any more, and no more of any other kind than before: what was replaced held the error
 * of its kind, and the errors of other kinds are their own. */
static bool heals_kind(const struct guilty *g, enum par_op_class c, const struct par_pass *pass) {
    int before[PAR_CLASS_COUNT] = {0};
    for (int i = 0; i < g->n; i++)
        before[par_class_of(g->rows[i]->op)]++;
    for (int i = 0; i < PAR_CLASS_COUNT; i++)
        if (pass->n_accused_of[i] > (i == (int)c ? 0 : before[i]))
            return false;
    return true;
}

/* The figure and the arm that the hypotheses read. */
static void record_class(struct par_run *r, const struct guilty *g, enum par_op_class c, const struct par_pass *pass) {
    char name[96];
    const struct class_text *text = &class_texts[c];
    bool heals = heals_kind(g, c, pass);
    (void)snprintf(name, sizeof name, "intervention.%s.heals", text->id);
    par_figures_set(r->figures, name, heals);
    int n = r->report->n_arms;
    struct par_report_arm *rows = par_text_alloc(r->text, (size_t)(n + 1) * sizeof *rows);
    if (!rows)
        return;
    if (n)
        memcpy(rows, r->report->arms, (size_t)n * sizeof *rows);
    const char *left = pass->n_accused == 0
                           ? ""
                           : par_text_printf(r->text, "; still accused: %d of its kind, %d others",
                                             pass->n_accused_of[c], pass->n_accused - pass->n_accused_of[c]);
    rows[n] = (struct par_report_arm){
        .id = par_text_printf(r->text, "spec_%s", text->id),
        .what = par_text_printf(r->text, "%s replaced by the spec's", text->what),
        .hypothesis = text->hypothesis,
        .ran = true,
        .same_bits = pass->same_bits,
        .logits_hash = pass->logits_hash,
        .distance_to_ref = pass->distance_last,
        .distance_base = pass->distance_last_base,
        .result = par_text_printf(r->text, "%s%s", heals ? "it heals" : "it does not heal", left),
        .command = r->o->command};
    r->report->arms = rows;
    r->report->n_arms = n + 1;
}

/* ---- the order -----------------------------------------------------------------------------------------------------
 */
static const char *name_op(const struct par_run *r, const struct par_op_row *row) {
    return row->layer < 0 ? fwd_op_name(row->op)
                          : par_text_printf(r->text, "%s of layer %d", fwd_op_name(row->op), row->layer);
}

/* All guilty ops together, and each kind of them if there is more than one kind. */
static enum fwd_status run_groups(struct patch *p, const struct guilty *g, struct fwd_error *err) {
    struct par_run *r = p->r;
    struct par_pass pass;
    int n_ops, n_classes = 0;
    bool has[PAR_CLASS_COUNT] = {false};
    for (int i = 0; i < g->n; i++) {
        bool *seen = &has[par_class_of(g->rows[i]->op)];
        n_classes += !*seen;
        *seen = true;
    }
    par_run_progress(r, "impact of all guilty ops", 0, 1);
    FWD_TRY(run_patched(p, g, is_any, NULL, true, &pass, &n_ops, err));
    if (g->n == 1)
        add_pass(r, name_op(r, g->rows[0]), g->rows[0], 1, true, &pass);
    else
        add_pass(r, par_text_printf(r->text, "all %d guilty ops together", g->n), NULL, g->n, true, &pass);
    if (pass.excess_base > 0)
        par_figures_set(r->figures, "impact.together", removed(&pass));
    for (int c = 0; c < PAR_CLASS_COUNT; c++) {
        enum par_op_class class = (enum par_op_class)c;
        if (!has[c])
            continue;
        if (n_classes > 1) {
            par_run_progress(r, "impact of a kind of op", c, PAR_CLASS_COUNT);
            FWD_TRY(run_patched(p, g, is_of_class, &class, true, &pass, &n_ops, err));
            add_pass(r, par_text_printf(r->text, "%s (%d)", class_texts[c].what, n_ops), NULL, n_ops, true, &pass);
        }
        record_class(r, g, class, &pass);
    }
    return FWD_OK;
}

static enum fwd_status run_alone(struct patch *p, const struct guilty *g, struct fwd_error *err) {
    struct par_run *r = p->r;
    int most = r->o->depth == PAR_QUICK ? MOST_ALONE_QUICK : MOST_ALONE, n = g->n < most ? g->n : most;
    double largest = (double)NAN;
    for (int i = 0; i < n; i++) {
        struct par_pass pass;
        int n_ops;
        if (g->n == 1) { /* has been run */
            largest = r->report->impact ? r->report->impact[0].removes : largest;
            break;
        }
        par_run_progress(r, "impact of one op", i, n);
        FWD_TRY(run_patched(p, g, is_row, g->rows[i], false, &pass, &n_ops, err));
        add_pass(r, name_op(r, g->rows[i]), g->rows[i], 1, false, &pass);
        largest = removed(&pass) <= largest ? largest : removed(&pass);
    }
    par_figures_set(r->figures, "impact.ops", n);
    if (!isnan(largest))
        par_figures_set(r->figures, "impact.largest", largest);
    return FWD_OK;
}

static double badness(const struct par_op_row *row) {
    return row->verdict == PAR_NONFINITE ? HUGE_VAL : row->ratio_max;
}

static int by_badness(const void *a, const void *b) {
    const struct par_op_row *x = *(const struct par_op_row *const *)a, *y = *(const struct par_op_row *const *)b;
    double bx = badness(x), by = badness(y);
    if (bx != by)
        return bx < by ? 1 : -1;
    return x < y ? -1 : x > y; /* forward order */
}

enum fwd_status par_run_impact(struct par_run *r, struct fwd_session *session, struct fwd_error *err) {
    struct patch p = {.r = r, .path = r->o->cand, .session = session};
    struct guilty g = {0};
    g.rows = (const struct par_op_row **)fwd_alloc((size_t)r->n_ops, sizeof *g.rows);
    FWD_FAIL_IF(!g.rows, FWD_ENOMEM, err, "impact: no memory for %d ops", r->n_ops);
    for (int i = 0; i < r->n_ops; i++)
        if (r->ops[i].cand.verdict == PAR_DIVERGED || r->ops[i].cand.verdict == PAR_NONFINITE)
            g.rows[g.n++] = &r->ops[i].cand;
    enum fwd_status rc = FWD_OK;
    if (g.n) {
        qsort((void *)g.rows, (size_t)g.n, sizeof *g.rows, by_badness);
        rc = run_groups(&p, &g, err);
        if (rc == FWD_OK)
            rc = run_alone(&p, &g, err);
    }
    fwd_free(p.rows);
    fwd_free((void *)g.rows);
    return rc;
}
