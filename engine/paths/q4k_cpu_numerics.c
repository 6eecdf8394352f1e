/* engine/paths/q4k_cpu_numerics.c: what path q4k-cpu promises about the arithmetic of each op. */
#include "paths/fused_numerics.h"
#include "paths/q4k_cpu.h"

static const struct q4k_linear *linear_of(const struct fwd_session *s, enum fwd_op op, int layer) {
    if (op == FWD_OP_RESULT_OUTPUT)
        return &s->output;
    const struct q4k_layer *l = &s->layers[layer];
    switch (op) {
    case FWD_OP_QCUR:
        return &l->wq;
    case FWD_OP_KCUR:
        return &l->wk;
    case FWD_OP_VCUR:
        return &l->wv;
    case FWD_OP_ATTN_OUT:
        return &l->wo;
    case FWD_OP_FFN_GATE:
        return &l->gate;
    case FWD_OP_FFN_UP:
        return &l->up;
    case FWD_OP_FFN_OUT:
        return &l->down;
    default:
        return NULL;
    }
}

static struct fused_product product_of(const void *session, enum fwd_op op, int layer) {
    const struct q4k_linear *linear = linear_of(session, op, layer);
    return (struct fused_product){linear->packed ? linear->act : FWD_F32, linear->weight->type, linear->bias != NULL};
}

bool q4k_numerics(const struct fwd_session *s, enum fwd_op op, int layer, struct fwd_numerics *out) {
    const struct fwd_config *c = &s->model->config;
    if ((unsigned)op >= FWD_OP_COUNT || (fwd_op_in_layer(op) ? layer < 0 || layer >= c->n_layer : layer != -1))
        return false;
    return fused_numerics(s, product_of, fwd_kv_cache_type(s->kv), op, layer, out);
}
