/* harness/fault/fault_shared.c: faults in what every path of the engine reads: the configuration and the binding of
 * weights. No path can disagree with another about them; only the harness's own reading of the file can tell. */
#include "fault/fault.h"
#include "fault/fault_ops.h"

#include <string.h>

void par_fault_config(void *ud, struct fwd_config *c) {
    const struct par_fault *f = ud;
    switch ((enum fault_config_kind)f->row->kind) {
    case FAULT_CONFIG_GQA:
        for (int h = 0; h < c->n_head; h++)
            c->kv_head_of[h] = h % c->n_kv_head;
        break;
    case FAULT_CONFIG_KV_HEAD:
        c->kv_head_of[f->head] = (c->kv_head_of[f->head] + 1) % c->n_kv_head;
        break;
    case FAULT_CONFIG_EPS:
        c->norm_eps = c->norm_eps < 5e-6f ? 1e-5f : 1e-6f;
        break;
    case FAULT_CONFIG_ROPE_BASE:
        c->rope_theta = c->rope_theta > 10000 ? 10000 : 1000000;
        break;
    case FAULT_CONFIG_ROPE_PAIRING:
        c->rope_pairing = c->rope_pairing == FWD_ROPE_NEOX ? FWD_ROPE_NORM : FWD_ROPE_NEOX;
        break;
    case FAULT_CONFIG_ROPE_HALF: /* frequencies follow the number of rotated dimensions */
        c->n_rope = c->n_rope / 4 * 2;
        break;
    case FAULT_CONFIG_ROPE_UNSCALED:
        c->rope_factors = NULL;
        break;
    }
}

static struct fwd_weight *weight_at(struct fwd_model *m, enum fwd_op op, int layer) {
    struct fwd_layer *l = layer >= 0 ? &m->layers[layer] : NULL;
    switch (op) {
    case FWD_OP_ATTN_NORM:
        return &l->attn_norm;
    case FWD_OP_QCUR:
        return &l->wq;
    case FWD_OP_KCUR:
        return &l->wk;
    case FWD_OP_VCUR:
        return &l->wv;
    case FWD_OP_ATTN_OUT:
        return &l->wo;
    case FWD_OP_FFN_NORM:
        return &l->ffn_norm;
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

static struct fwd_weight *bias_at(struct fwd_model *m, enum fwd_op op, int layer) {
    struct fwd_layer *l = &m->layers[layer];
    return op == FWD_OP_QCUR ? &l->bq : op == FWD_OP_KCUR ? &l->bk : op == FWD_OP_VCUR ? &l->bv : NULL;
}

void par_fault_binding(void *ud, struct fwd_model *m) {
    const struct par_fault *f = ud;
    int n_layer = m->config.n_layer;
    struct fwd_weight *w = weight_at(m, f->op, f->layer), *bias = f->layer >= 0 ? bias_at(m, f->op, f->layer) : NULL;
    switch ((enum fault_binding_kind)f->row->kind) {
    case FAULT_BIND_OTHER_LAYER:
        *w = *weight_at(m, f->op, par_fault_other_layer(f, m->file, f->op, f->layer, n_layer, false));
        break;
    case FAULT_BIND_TWIN: {
        struct fwd_weight *twin = weight_at(m, par_fault_twin(f->op), f->layer), kept = *w;
        *w = *twin;
        *twin = kept;
        break;
    }
    case FAULT_BIND_NO_BIAS:
        memset(bias, 0, sizeof *bias);
        break;
    case FAULT_BIND_BIAS_OTHER_LAYER:
        *bias = *bias_at(m, f->op, par_fault_other_layer(f, m->file, f->op, f->layer, n_layer, true));
        break;
    case FAULT_BIND_TIED:
        m->output = m->tok_embd;
        break;
    }
}
