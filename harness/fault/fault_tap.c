/* harness/fault/fault_tap.c: a tap that is not what the op computed: the measurement is wrong and the model is right.
 * The tap is changed, and the op that reads it first gets the true values back. */
#include "fault/fault.h"
#include "fault/fault_math.h"
#include "fault/fault_ops.h"

#include <string.h>

enum fwd_op par_fault_tap_reader(enum fwd_op op) {
    switch (op) {
    case FWD_OP_QCUR:
        return FWD_OP_QCUR_ROPE;
    case FWD_OP_KCUR:
        return FWD_OP_KCUR_ROPE;
    case FWD_OP_VCUR:
        return FWD_OP_V_CACHE;
    case FWD_OP_QCUR_ROPE:
        return FWD_OP_KQV_OUT;
    case FWD_OP_KCUR_ROPE:
        return FWD_OP_K_CACHE;
    default:
        return FWD_OP_COUNT;
    }
}

static void show(const struct par_fault *f, const struct fwd_op_call *call, int i, const double *last) {
    const struct fwd_view *v = call->out;
    int dim = call->config->head_dim;
    for (int64_t k = 0; k < v->ne[0]; k++) {
        if (f->row->kind == FAULT_TAP_PRE_BIAS)
            fault_put(v, i, k, fault_get(v, i, k) - (double)call->bias[k]);
        else if (f->row->kind == FAULT_TAP_LAST)
            fault_put(v, i, k, last[k]);
    }
    for (int64_t h = 0; f->row->kind == FAULT_TAP_HEADS && h < v->ne[0] / dim / 2; h++)
        for (int64_t d = 0; d < dim; d++) {
            int64_t a = h * dim + d, b = v->ne[0] - (h + 1) * dim + d;
            double kept = fault_get(v, i, a);
            fault_put(v, i, a, fault_get(v, i, b));
            fault_put(v, i, b, kept);
        }
}

enum fwd_status par_fault_tap(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    struct par_fault *f = ud;
    const struct fwd_view *v = call->out;
    FWD_TRY(call->builtin(call, err));
    FWD_FAIL_IF(f->row->kind == FAULT_TAP_PRE_BIAS && !call->bias, FWD_EMISSING, err, "fault %s: %s has no bias",
                f->row->name, fwd_op_name(call->op));
    size_t n_bytes = (size_t)(v->nb[1] * call->n_pos);
    char *kept = fault_keep(f, n_bytes);
    double *last = fwd_alloc((size_t)v->ne[0], sizeof *last);
    if (!kept || !last) {
        fwd_free(last);
        FWD_FAIL(FWD_ENOMEM, err, "fault %s: no memory for %zu bytes", f->row->name, n_bytes);
    }
    memcpy(kept, v->data, n_bytes);
    fault_get_row(v, call->n_pos - 1, last);
    for (int i = 0; i < call->n_pos; i++)
        show(f, call, i, last);
    fwd_free(last);
    return FWD_OK;
}

enum fwd_status par_fault_restore(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    const struct par_fault *f = ud;
    const struct fwd_view *in = call->in[0];
    size_t n_bytes = (size_t)(in->nb[1] * call->n_pos);
    FWD_FAIL_IF(in->op != f->op || f->memory->n_bytes < n_bytes, FWD_ESTATE, err,
                "fault %s: %s is read before it was shown", f->row->name, fwd_op_name(f->op));
    memcpy(in->data, f->memory->data, n_bytes);
    return call->builtin(call, err);
}
