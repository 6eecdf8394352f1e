/* The spec's value of an op without a judgement: what an intervention puts in place of a path's own result, and what an
 * alternative reading of a weight's bytes would give. */
#include "spec/eval.h"
#include "spec/spec_decode.h"

static enum fwd_status reread_weight(const struct par_spec_model *m, const struct par_eval *e, uint32_t type,
                                     struct spec_weight *out, struct fwd_error *err) {
    const struct spec_weight *w = par_spec_weight(m, e->op, e->layer);
    FWD_FAIL_IF(!w || !w->data || w->n_rows < 2, FWD_EUNSUPPORTED, err, "%s: has no matrix to read as %s",
                fwd_op_name(e->op), fwd_type_name(type));
    int64_t row_bytes = par_decode_row_bytes(type, w->n_cols);
    FWD_FAIL_IF(row_bytes == 0 || row_bytes > w->row_bytes, FWD_EUNSUPPORTED, err,
                "%s: a row read as %s would need %lld bytes, it has %lld", fwd_op_name(e->op), fwd_type_name(type),
                (long long)row_bytes, (long long)w->row_bytes);
    *out = *w;
    out->type = type;
    out->row_bytes = row_bytes;
    return FWD_OK;
}

enum fwd_status par_spec_value(const struct par_spec_model *m, struct fwd_pool *pool, const struct par_eval *e,
                               uint32_t weight_type, double *expected, struct fwd_error *err) {
    struct spec_weight other;
    struct eval ev = {.m = m, .e = e, .pool = pool, .n_threads = fwd_pool_size(pool)};
    FWD_FAIL_IF(!par_eval_has(e->op) || !e->out || !e->numerics, FWD_EINPUT, err,
                "spec: op %d has no evaluator, output or numerics", (int)e->op);
    FWD_FAIL_IF(!par_float_bytes(e->out->dtype) || e->op == FWD_OP_K_CACHE || e->op == FWD_OP_V_CACHE, FWD_EUNSUPPORTED,
                err, "spec: %s has bytes, not one value for each element of a position", fwd_op_name(e->op));
    if (weight_type != UINT32_MAX) {
        FWD_TRY(reread_weight(m, e, weight_type, &other, err));
        ev.as_weight = &other;
    }
    ev.tally = fwd_calloc((size_t)ev.n_threads, sizeof *ev.tally);
    ev.pos = fwd_alloc((size_t)e->n_pos, sizeof *ev.pos);
    enum fwd_status rc = FWD_OK;
    if (!ev.tally || !ev.pos)
        rc = fwd_fail(err, FWD_ENOMEM, __FILE__, __LINE__, "spec: no memory for %d positions", e->n_pos);
    for (int i = 0; rc == FWD_OK && i < ev.n_threads; i++) {
        ev.tally[i].capture = expected;
        ev.tally[i].capture_pos0 = e->pos0;
        ev.tally[i].capture_width = e->out->ne[0];
    }
    for (int i = 0; rc == FWD_OK && i < e->n_pos; i++)
        ev.pos[ev.n_pos++] = i;
    if (rc == FWD_OK)
        rc = par_eval_run(&ev, err);
    fwd_free(ev.tally);
    fwd_free(ev.pos);
    return rc;
}
