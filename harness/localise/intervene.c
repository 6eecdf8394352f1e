/* harness/localise/intervene.c: interventions. The value of one or more ops is replaced by the spec's while the
 * candidate runs on; if nothing is accused any more, what was replaced held every guilty op. Matmuls are halved over
 * layers and then over ops, down to the one. */
#include "run/run_state.h"
#include "spec/spec_decode.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct patch {
    struct par_run *r;
    const struct fwd_path *path;
    struct fwd_session *session;
};

/* An override that writes the spec's value instead of running the op. */
static enum fwd_status put_spec_value(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    struct patch *p = ud;
    struct par_eval e = {
        .op = call->op, .layer = call->layer, .pos0 = call->pos0, .n_pos = call->n_pos, .n_in = call->n_in};
    struct fwd_numerics numerics;
    for (int i = 0; i < call->n_in; i++)
        e.in[i] = call->in[i];
    e.out = call->out;
    FWD_FAIL_IF(!p->path->numerics(p->session, call->op, call->layer, &numerics), FWD_ESTATE, err,
                "%s: the path declares no numerics for it", fwd_op_name(call->op));
    e.numerics = &numerics;
    int64_t width = call->out->ne[0];
    double *values = fwd_alloc((size_t)call->n_pos * (size_t)width, sizeof *values);
    FWD_FAIL_IF(!values, FWD_ENOMEM, err, "intervention: no memory for %d rows of %lld", call->n_pos, (long long)width);
    enum fwd_status rc = par_spec_value(p->r->spec, p->r->pool, &e, values, err);
    for (int i = 0; rc == FWD_OK && i < call->n_pos; i++) {
        float *row = (float *)(void *)((char *)call->out->data + call->out->nb[1] * i);
        for (int64_t k = 0; k < width; k++)
            row[k] = (float)values[(int64_t)i * width + k];
    }
    fwd_free(values);
    return rc;
}

/* K and V rows cannot be put there by value: they are written again from what this run computed, all of them. */
struct kept_rows {
    struct patch *patch;
    float *rows; /* [n_layer][2][n_ids][kv width] */
    int64_t width;
};
static enum fwd_status rewrite_cache(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    struct kept_rows *k = ud;
    const struct par_run *r = k->patch->r;
    FWD_TRY(call->builtin(call, err));
    float *kept = k->rows + ((int64_t)call->layer * 2 + (call->op == FWD_OP_V_CACHE)) * r->n_ids * k->width;
    for (int i = 0; i < call->n_pos; i++)
        memcpy(kept + (call->pos0 + i) * k->width, (const char *)call->in[0]->data + call->in[0]->nb[1] * i,
               (size_t)k->width * sizeof *kept);
    const struct fwd_view *cache = call->out;
    for (int pos = 0; pos < call->pos0 + call->n_pos; pos++)
        for (int64_t head = 0; head < cache->ne[1]; head++)
            for (int64_t d = 0; d < cache->ne[0]; d++) {
                char *at = (char *)cache->data + pos * cache->nb[2] + head * cache->nb[1] + d * cache->nb[0];
                float x = kept[pos * k->width + head * cache->ne[0] + d];
                uint16_t half = par_f32_to_f16(x);
                memcpy(at, cache->dtype == FWD_F16 ? (const void *)&half : (const void *)&x,
                       cache->dtype == FWD_F16 ? sizeof half : sizeof x);
            }
    return FWD_OK;
}

static const enum fwd_op matmuls[] = {FWD_OP_QCUR,     FWD_OP_KCUR,   FWD_OP_VCUR,   FWD_OP_ATTN_OUT,
                                      FWD_OP_FFN_GATE, FWD_OP_FFN_UP, FWD_OP_FFN_OUT};
enum { N_MATMULS = sizeof matmuls / sizeof *matmuls };

/* Puts the spec in for the given ops of layers [first, end), or takes it out again (planted faults come back). */
static enum fwd_status set_patch(struct patch *p, const enum fwd_op *ops, int n_ops, int first, int end, bool on,
                                 struct fwd_error *err) {
    for (int i = 0; i < n_ops; i++)
        for (int layer = fwd_op_in_layer(ops[i]) ? first : -1; layer < (fwd_op_in_layer(ops[i]) ? end : 0); layer++)
            FWD_TRY(p->path->override(p->session, ops[i], layer, on ? put_spec_value : NULL, on ? p : NULL, err));
    return on ? FWD_OK : par_run_plant_faults(p->r, PAR_ROLE_CANDIDATE, p->path, p->session, err);
}

static enum fwd_status heals(struct patch *p, const enum fwd_op *ops, int n_ops, int first, int end, bool *out,
                             struct fwd_error *err) {
    struct par_pass pass;
    FWD_TRY(set_patch(p, ops, n_ops, first, end, true, err));
    enum fwd_status rc = par_run_rejudge(p->r, p->session, p->r->o->schedule, p->r->o->chunk, &pass, err);
    enum fwd_status back = set_patch(p, ops, n_ops, first, end, false, rc == FWD_OK ? err : NULL);
    *out = rc == FWD_OK && pass.n_accused == 0;
    return rc != FWD_OK ? rc : back;
}

/* The first accused matmul: where halving looks first. */
static int suspect(const struct par_run *r, enum fwd_op *op) {
    for (int i = 0; i < r->n_ops; i++) {
        const struct par_op_row *row = &r->ops[i].cand;
        if (par_class_of(row->op) == PAR_CLASS_MATMUL &&
            (row->verdict == PAR_DIVERGED || row->verdict == PAR_NONFINITE)) {
            *op = row->op;
            return row->layer;
        }
    }
    return -1;
}

/* Halves the layers, the half with the suspect first, as long as one half alone heals; then tries the ops. */
static enum fwd_status bisect_matmuls(struct patch *p, char *found, size_t n, struct fwd_error *err) {
    int first = 0, end = par_spec_config(p->r->spec)->n_layer, n_probes = 0;
    enum fwd_op op = FWD_OP_COUNT;
    int layer = suspect(p->r, &op);
    bool ok = true;
    while (ok && end - first > 1) {
        int middle = (first + end) / 2;
        int from = layer < middle ? first : middle, to = layer < middle ? middle : end;
        FWD_TRY(heals(p, matmuls, N_MATMULS, from, to, &ok, err));
        n_probes++;
        if (ok) {
            first = from;
            end = to;
        }
    }
    if (end - first > 1) {
        (void)snprintf(found, n, "layers %d to %d hold guilty matmuls in both halves (%d probes)", first, end - 1,
                       n_probes);
        return FWD_OK;
    }
    FWD_TRY(heals(p, &op, 1, first, end, &ok, err));
    n_probes++;
    if (ok)
        (void)snprintf(found, n, "%s of layer %d alone (%d probes)", fwd_op_name(op), first, n_probes);
    else
        (void)snprintf(found, n, "%s and another matmul of layer %d (%d probes)", fwd_op_name(op), first, n_probes);
    return FWD_OK;
}

static void record(struct par_run *r, const char *id, const char *hypothesis, const char *what, bool healed,
                   const char *detail) {
    char name[96];
    (void)snprintf(name, sizeof name, "intervention.%s.heals", id);
    par_figures_set(r->figures, name, healed);
    int n = r->report->n_arms;
    struct par_report_arm *rows = par_text_alloc(r->text, (size_t)(n + 1) * sizeof *rows);
    if (!rows)
        return;
    if (n)
        memcpy(rows, r->report->arms, (size_t)n * sizeof *rows);
    rows[n] =
        (struct par_report_arm){.id = par_text_printf(r->text, "spec_%s", id),
                                .what = what,
                                .hypothesis = hypothesis,
                                .ran = true,
                                .distance_to_ref = NAN,
                                .distance_base = NAN,
                                .result = par_text_printf(r->text, "%s%s%s", healed ? "it heals" : "it does not heal",
                                                          *detail ? ": " : "", detail),
                                .command = par_text_printf(r->text, "%s --full", r->o->command)};
    r->report->arms = rows;
    r->report->n_arms = n + 1;
}

static enum fwd_status intervene_matmuls(struct patch *p, struct fwd_error *err) {
    bool healed;
    char found[160] = "";
    FWD_TRY(heals(p, matmuls, N_MATMULS, 0, par_spec_config(p->r->spec)->n_layer, &healed, err));
    if (healed)
        FWD_TRY(bisect_matmuls(p, found, sizeof found, err));
    record(p->r, "matmul", "H1", "every fused matmul replaced by the spec's", healed, found);
    return FWD_OK;
}

static enum fwd_status intervene_class(struct patch *p, const char *id, const char *hypothesis, const char *what,
                                       const enum fwd_op *ops, int n_ops, struct fwd_error *err) {
    bool healed;
    FWD_TRY(heals(p, ops, n_ops, 0, par_spec_config(p->r->spec)->n_layer, &healed, err));
    record(p->r, id, hypothesis, what, healed, "");
    return FWD_OK;
}

static enum fwd_status intervene_cache(struct patch *p, struct fwd_error *err) {
    static const enum fwd_op caches[] = {FWD_OP_K_CACHE, FWD_OP_V_CACHE};
    const struct par_spec_config *c = par_spec_config(p->r->spec);
    struct kept_rows kept = {p, NULL, (int64_t)c->n_kv_head * c->head_dim};
    kept.rows = fwd_calloc((size_t)c->n_layer * 2 * (size_t)p->r->n_ids * (size_t)kept.width, sizeof *kept.rows);
    FWD_FAIL_IF(!kept.rows, FWD_ENOMEM, err, "intervention: no memory for the KV rows of %d positions", p->r->n_ids);
    struct par_pass pass;
    enum fwd_status rc = FWD_OK;
    for (int i = 0; rc == FWD_OK && i < 2; i++)
        for (int layer = 0; rc == FWD_OK && layer < c->n_layer; layer++)
            rc = p->path->override(p->session, caches[i], layer, rewrite_cache, &kept, err);
    if (rc == FWD_OK)
        rc = par_run_rejudge(p->r, p->session, p->r->o->schedule, p->r->o->chunk, &pass, err);
    enum fwd_status back = set_patch(p, caches, 2, 0, c->n_layer, false, rc == FWD_OK ? err : NULL);
    fwd_free(kept.rows);
    if (rc == FWD_OK && back == FWD_OK)
        record(p->r, "kv", "H2", "every KV row written again before it is read", pass.n_accused == 0, "");
    return rc != FWD_OK ? rc : back;
}

static bool class_accused(const struct par_run *r, enum par_op_class c) {
    char name[96];
    double n = 0;
    (void)snprintf(name, sizeof name, "cand.accused.%s", par_class_name(c));
    return par_figures_get(r->figures, name, &n) && n > 0;
}

/* Only kinds of ops that are accused: replacing others cannot lift an accusation that an op earns on its own inputs. */
enum fwd_status par_run_interventions(struct par_run *r, struct fwd_session *session, struct fwd_error *err) {
    static const enum fwd_op ropes[] = {FWD_OP_QCUR_ROPE, FWD_OP_KCUR_ROPE}, attention[] = {FWD_OP_KQV_OUT},
                             head[] = {FWD_OP_RESULT_OUTPUT},
                             norms[] = {FWD_OP_ATTN_NORM, FWD_OP_FFN_NORM, FWD_OP_RESULT_NORM};
    struct patch p = {r, r->o->cand, session};
    if (class_accused(r, PAR_CLASS_MATMUL))
        FWD_TRY(intervene_matmuls(&p, err));
    if (class_accused(r, PAR_CLASS_ROPE))
        FWD_TRY(intervene_class(&p, "rope", "H3", "every rotation replaced by the spec's", ropes, 2, err));
    if (class_accused(r, PAR_CLASS_KV))
        FWD_TRY(intervene_cache(&p, err));
    if (class_accused(r, PAR_CLASS_HEAD))
        FWD_TRY(intervene_class(&p, "head", "H4", "the output head replaced by the spec's", head, 1, err));
    if (class_accused(r, PAR_CLASS_ATTENTION))
        FWD_TRY(intervene_class(&p, "attention", "H5", "every attention replaced by the spec's", attention, 1, err));
    if (class_accused(r, PAR_CLASS_NORM))
        FWD_TRY(intervene_class(&p, "norm", "H5", "every norm replaced by the spec's", norms, 3, err));
    return FWD_OK;
}
