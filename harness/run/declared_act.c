#include "run/declared_act.h"

#include "spec/spec_quant.h"

#include <string.h>

static enum fwd_op reader_of(enum fwd_op tap) {
    switch (tap) {
    case FWD_OP_ATTN_NORM:
        return FWD_OP_QCUR;
    case FWD_OP_KQV_OUT:
        return FWD_OP_ATTN_OUT;
    case FWD_OP_FFN_NORM:
        return FWD_OP_FFN_GATE;
    case FWD_OP_FFN_SWIGLU:
        return FWD_OP_FFN_OUT;
    case FWD_OP_RESULT_NORM:
        return FWD_OP_RESULT_OUTPUT;
    default:
        return FWD_OP_COUNT;
    }
}

bool par_declared_act_of(const struct par_declared_act *a, enum fwd_op tap, int layer, struct fwd_numerics *out) {
    enum fwd_op reader = reader_of(tap);
    *out = (struct fwd_numerics){.size = sizeof *out};
    return reader != FWD_OP_COUNT && a->path->numerics(a->session, reader, layer, out);
}

struct rows {
    const struct fwd_view *view;
    struct fwd_numerics numerics;
};

static void round_rows(void *ctx, int thread, int n_threads) {
    const struct rows *w = ctx;
    int n = par_q8_block_values(w->numerics.act);
    for (int i = thread; i < w->view->n_pos; i += n_threads) {
        float *x = (float *)(void *)((char *)w->view->data + w->view->nb[1] * i);
        for (int64_t at = 0; at + n <= w->view->ne[0]; at += n) {
            struct spec_q8 block;
            (void)par_q8_quantise_as(w->numerics.act_rule, x + at, n, &block);
            for (int k = 0; k < n; k++)
                x[at + k] = block.d * (float)block.q[k];
        }
    }
}

enum fwd_status par_declared_act_round(const struct par_declared_act *a, const struct fwd_view *view,
                                       struct fwd_error *err) {
    struct rows w = {.view = view};
    if (view->dtype != FWD_F32 || !par_declared_act_of(a, view->op, view->layer, &w.numerics) ||
        w.numerics.act == FWD_F32 || w.numerics.act == FWD_F64)
        return FWD_OK;
    FWD_FAIL_IF(!par_q8_block_values(w.numerics.act) || !par_q8_knows(w.numerics.act_rule), FWD_ETYPE, err,
                "spread: no rounding of inputs to %s by rule %d is known", fwd_dtype_name(w.numerics.act),
                (int)w.numerics.act_rule);
    fwd_pool_run(a->pool, round_rows, &w);
    return FWD_OK;
}
