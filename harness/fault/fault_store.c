/* harness/fault/fault_store.c: the right value, spoilt on its way to memory: stored in a narrower type, not stored, or
 * stored in another place. For any op whose output is rows of floats. */
#include "fault/fault.h"
#include "fault/fault_math.h"
#include "fault/fault_ops.h"

#include <math.h>
#include <string.h>

static double store_f16(double x) {
    double h = fault_as_half(x);
    return isinf(h) && !isinf(x) ? copysign(65504, x) : h;
}

static int64_t largest(const struct fwd_view *v, int64_t i) {
    int64_t best = 0;
    for (int64_t k = 1; k < v->ne[0]; k++)
        if (fabs(fault_get(v, i, k)) > fabs(fault_get(v, i, best)))
            best = k;
    return best;
}

static void swap_values(const struct fwd_view *v, int64_t i, int64_t j, int64_t k, int64_t l) {
    double a = fault_get(v, i, k), b = fault_get(v, j, l);
    fault_put(v, i, k, b);
    fault_put(v, j, l, a);
}

static void shift_values(const struct fwd_view *v, int64_t i) {
    double last = fault_get(v, i, v->ne[0] - 1);
    for (int64_t k = v->ne[0] - 1; k > 0; k--)
        fault_put(v, i, k, fault_get(v, i, k - 1));
    fault_put(v, i, 0, last);
}

static void reverse_heads(const struct fwd_view *v, int64_t i, int dim) {
    int64_t n = v->ne[0] / dim;
    for (int64_t h = 0; h < n / 2; h++)
        for (int64_t d = 0; d < dim; d++)
            swap_values(v, i, i, h * dim + d, (n - 1 - h) * dim + d);
}

static void spoil_row(const struct par_fault *f, const struct fwd_op_call *call, int i) {
    const struct fwd_view *v = call->out;
    switch ((enum fault_store_kind)f->row->kind) {
    case FAULT_STORE_BF16:
        for (int64_t k = 0; k < v->ne[0]; k++)
            fault_put(v, i, k, fault_as_bf16(fault_get(v, i, k)));
        break;
    case FAULT_STORE_F16:
        for (int64_t k = 0; k < v->ne[0]; k++)
            fault_put(v, i, k, store_f16(fault_get(v, i, k)));
        break;
    case FAULT_STORE_NAN:
        fault_put(v, i, f->out_row, (double)NAN);
        break;
    case FAULT_STORE_INF: {
        int64_t k = largest(v, i);
        fault_put(v, i, k, copysign((double)INFINITY, fault_get(v, i, k)));
        break;
    }
    case FAULT_STORE_EXCHANGED: /* pairs counted in absolute positions, so that calls do not matter where both are in
                                   one */
        if ((call->pos0 + i) % 2 == 0 && i + 1 < call->n_pos)
            for (int64_t k = 0; k < v->ne[0]; k++)
                swap_values(v, i, i + 1, k, k);
        break;
    case FAULT_STORE_TAIL:
        for (int64_t k = v->ne[0] > 16 ? v->ne[0] - 16 : 0; k < v->ne[0]; k++)
            fault_put(v, i, k, 0);
        break;
    case FAULT_STORE_FIRST:
        for (int64_t k = 0; i > 0 && k < v->ne[0]; k++)
            fault_put(v, i, k, 0);
        break;
    case FAULT_STORE_SHIFTED:
        shift_values(v, i);
        break;
    case FAULT_STORE_HEADS:
        reverse_heads(v, i, call->config->head_dim);
        break;
    case FAULT_STORE_NUDGED: {
        double amount = 0.04 * fabs(fault_get(v, i, largest(v, i)));
        fault_put(v, i, f->out_row, fault_get(v, i, f->out_row) + amount);
        break;
    }
    case FAULT_STORE_PREVIOUS:
        break;
    }
}

/* Position pos shows what it had in the sequence before this one: kept are that value and this one, each with a count
 * that says whether it is there. A sequence begins with position 0. */
static enum fwd_status keep_previous(struct par_fault *f, const struct fwd_op_call *call, struct fwd_error *err) {
    int64_t n = call->out->ne[0];
    double *kept = fault_keep(f, (size_t)(2 * n + 2) * sizeof *kept);
    FWD_FAIL_IF(!kept, FWD_ENOMEM, err, "fault %s: no memory for a row of %lld", f->row->name, (long long)n);
    double *before = kept + 2, *now = before + n;
    if (call->pos0 == 0) { /* what the last sequence computed becomes the sequence before */
        memcpy(before, now, (size_t)n * sizeof *now);
        kept[0] = kept[1];
        kept[1] = 0;
    }
    for (int i = 0; i < call->n_pos; i++) {
        if (call->pos0 + i != f->pos)
            continue;
        fault_get_row(call->out, i, now);
        kept[1] = 1;
        for (int64_t k = 0; kept[0] != 0 && k < n; k++)
            fault_put(call->out, i, k, before[k]);
    }
    return FWD_OK;
}

/* ---- a result that was not written ---- */

/* The bytes of another op's result, as they lay in the buffer that both would share. */
struct remembered {
    int n_pos;
    enum fwd_dtype dtype;
    size_t row_bytes;
    char bytes[];
};

enum fwd_status par_fault_remember(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    struct par_fault *f = ud;
    size_t row_bytes = fwd_dtype_row_bytes(call->out->dtype, call->out->ne[0]);
    FWD_TRY(call->builtin(call, err));
    struct remembered *m = fault_keep(f, sizeof *m + row_bytes * (size_t)call->n_pos);
    FWD_FAIL_IF(!m, FWD_ENOMEM, err, "fault %s: no memory for %d positions", f->row->name, call->n_pos);
    m->n_pos = call->n_pos;
    m->dtype = call->out->dtype;
    m->row_bytes = row_bytes;
    for (int i = 0; i < call->n_pos; i++)
        memcpy(m->bytes + row_bytes * (size_t)i, fault_row(call->out, i), row_bytes);
    return FWD_OK;
}

enum fwd_status par_fault_stale(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    const struct par_fault *f = ud;
    const struct remembered *m = f->memory->data;
    FWD_TRY(call->builtin(call, err));
    if (!m || m->n_pos != call->n_pos || m->dtype != call->out->dtype ||
        m->row_bytes != fwd_dtype_row_bytes(m->dtype, call->out->ne[0]))
        return FWD_OK;
    for (int i = 0; i < call->n_pos; i++)
        memcpy(fault_row(call->out, i), m->bytes + m->row_bytes * (size_t)i, m->row_bytes);
    return FWD_OK;
}

enum fwd_op par_fault_source(enum fwd_op op, int *layer) {
    switch (op) {
    case FWD_OP_KQV_OUT_Q8:
        return FWD_OP_ATTN_NORM_Q8;
    case FWD_OP_FFN_NORM_Q8:
        return FWD_OP_KQV_OUT_Q8;
    default:
        *layer -= 1;
        return op;
    }
}

/* ---- one op ---- */

enum fwd_status par_fault_store(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    struct par_fault *f = ud;
    FWD_TRY(call->builtin(call, err));
    if (f->row->kind == FAULT_STORE_PREVIOUS)
        return keep_previous(f, call, err);
    for (int i = 0; i < call->n_pos; i++)
        if (fault_at(f, call, i))
            spoil_row(f, call, i);
    return FWD_OK;
}
