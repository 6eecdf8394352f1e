/* An op's values without a judgement: what an intervention puts in place of a path's own result, and every element with
 * its bound for those who look closer. */
#include "spec/eval.h"
#include "spec/spec_quant.h"

#include <math.h>

static bool is_cache(enum fwd_op op) {
    return op == FWD_OP_K_CACHE || op == FWD_OP_V_CACHE;
}

/* Runs the evaluator over the positions asked for with the tallies capturing into x. */
static enum fwd_status capture_op(const struct par_spec_model *m, struct fwd_pool *pool, const struct par_eval *e,
                                  const struct par_elements *x, struct fwd_error *err) {
    struct eval ev = {.m = m, .e = e, .pool = pool, .n_threads = fwd_pool_size(pool)};
    ev.tally = fwd_calloc((size_t)ev.n_threads, sizeof *ev.tally);
    ev.pos = fwd_alloc((size_t)e->n_pos, sizeof *ev.pos);
    enum fwd_status rc = FWD_OK;
    if (!ev.tally || !ev.pos)
        rc = fwd_fail(err, FWD_ENOMEM, __FILE__, __LINE__, "spec: no memory for %d positions", e->n_pos);
    for (int i = 0; rc == FWD_OK && i < ev.n_threads; i++) {
        ev.tally[i].capture = x->expected;
        ev.tally[i].capture_got = x->got;
        ev.tally[i].capture_bound = x->bound;
        ev.tally[i].capture_pos0 = x->pos0;
        ev.tally[i].capture_width = x->width;
    }
    for (int i = 0; rc == FWD_OK && i < e->n_pos; i++)
        if (!e->judge_pos || e->judge_pos[i])
            ev.pos[ev.n_pos++] = i;
    if (rc == FWD_OK && ev.n_pos > 0)
        rc = par_eval_run(&ev, err);
    fwd_free(ev.tally);
    fwd_free(ev.pos);
    return rc;
}

static enum fwd_status check(const struct par_eval *e, struct fwd_error *err) {
    FWD_FAIL_IF(!par_eval_has(e->op) || !e->out || !e->numerics, FWD_EINPUT, err,
                "spec: op %d has no evaluator, output or numerics", (int)e->op);
    return FWD_OK;
}

enum fwd_status par_spec_value(const struct par_spec_model *m, struct fwd_pool *pool, const struct par_eval *e,
                               double *expected, struct fwd_error *err) {
    FWD_TRY(check(e, err));
    FWD_FAIL_IF(!par_float_bytes(e->out->dtype) || is_cache(e->op), FWD_EUNSUPPORTED, err,
                "spec: %s has bytes, not one value for each element of a position", fwd_op_name(e->op));
    struct par_elements x = {.pos0 = e->pos0, .n_pos = e->n_pos, .width = e->out->ne[0], .expected = expected};
    return capture_op(m, pool, e, &x, err);
}

static void shape_of(const struct par_eval *e, struct par_elements *x) {
    int block = par_q8_block_values(e->out->dtype);
    *x = (struct par_elements){.pos0 = e->pos0, .n_pos = e->n_pos, .width = e->out->ne[0]};
    if (block)
        x->width += e->out->ne[0] / block;
    if (e->out->dtype == FWD_E4M3)
        x->width++; /* the row's scale */
    if (is_cache(e->op)) {
        x->pos0 = 0;
        x->n_pos = (int)e->out->ne[2];
        x->width = e->out->ne[0] * e->out->ne[1];
    }
}

enum fwd_status par_spec_elements(const struct par_spec_model *m, struct fwd_pool *pool, const struct par_eval *e,
                                  struct par_elements *out, struct fwd_error *err) {
    FWD_TRY(check(e, err));
    shape_of(e, out);
    size_t n = (size_t)out->n_pos * (size_t)out->width;
    out->expected = fwd_alloc(n, 3 * sizeof(double));
    FWD_FAIL_IF(!out->expected, FWD_ENOMEM, err, "spec: no memory for %zu elements of %s", n, fwd_op_name(e->op));
    out->got = out->expected + n;
    out->bound = out->got + n;
    for (size_t i = 0; i < n; i++) {
        out->expected[i] = out->got[i] = NAN;
        out->bound[i] = 0;
    }
    enum fwd_status rc = capture_op(m, pool, e, out, err);
    if (rc != FWD_OK)
        par_elements_free(out);
    return rc;
}

void par_elements_free(struct par_elements *x) {
    fwd_free(x->expected);
    *x = (struct par_elements){0};
}
