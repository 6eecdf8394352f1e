/* engine/paths/q4k_cpu_numerics.c: what path q4k-cpu promises about the arithmetic of each op, from the definitions in
 * the ops' headers. */
#include "paths/q4k_cpu.h"

#include "ops/expf/expf.h"

static void fill_linear(const struct q4k_linear *linear, struct fwd_numerics *n) {
    if (linear->packed)
        fwd_matmul_q_numerics(linear->weight->type, linear->bias != NULL, n);
    else
        fwd_matmul_f_numerics(linear->bias != NULL, n);
}

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

/* The format an op input is quantised to: Q8_K where any user wants it (a tap comes once per format), F32 if none. */
static enum fwd_dtype quantised_as(const struct fwd_session *s, enum fwd_op op, int layer) {
    static const enum fwd_op users[][4] = {
        {FWD_OP_ATTN_NORM_Q8, FWD_OP_QCUR, FWD_OP_KCUR, FWD_OP_VCUR},
        {FWD_OP_KQV_OUT_Q8, FWD_OP_ATTN_OUT, FWD_OP_ATTN_OUT, FWD_OP_ATTN_OUT},
        {FWD_OP_FFN_NORM_Q8, FWD_OP_FFN_GATE, FWD_OP_FFN_UP, FWD_OP_FFN_UP},
        {FWD_OP_FFN_SWIGLU_Q8, FWD_OP_FFN_OUT, FWD_OP_FFN_OUT, FWD_OP_FFN_OUT},
        {FWD_OP_RESULT_NORM_Q8, FWD_OP_RESULT_OUTPUT, FWD_OP_RESULT_OUTPUT, FWD_OP_RESULT_OUTPUT}};
    enum fwd_dtype found = FWD_F32;
    for (size_t i = 0; i < sizeof users / sizeof *users; i++) {
        for (int j = 1; users[i][0] == op && j < 4; j++) {
            enum fwd_dtype act = linear_of(s, users[i][j], layer)->act;
            if (act == FWD_Q8_K || found == FWD_F32)
                found = act;
        }
    }
    return found;
}

bool q4k_numerics(const struct fwd_session *s, enum fwd_op op, int layer, struct fwd_numerics *out) {
    const struct fwd_config *c = &s->model->config;
    if ((unsigned)op >= FWD_OP_COUNT || (fwd_op_in_layer(op) ? layer < 0 || layer >= c->n_layer : layer != -1))
        return false;
    struct fwd_numerics n = {.size = sizeof n, .act = FWD_F32, .accumulator = FWD_ACC_F32, .store = FWD_F32};
    switch (op) {
    case FWD_OP_INP_EMBD:
        n.act = FWD_I32;
        n.accumulator = FWD_ACC_EXACT;
        break;
    case FWD_OP_ATTN_NORM:
    case FWD_OP_FFN_NORM:
    case FWD_OP_RESULT_NORM:
        n.accumulator = FWD_ACC_F64;
        n.chain_block = 8;
        n.chain_per_block = 1;
        n.chain_extra = 3;
        n.lanes = 8;
        n.fma = true;          /* squares of F32 values are exact in F64 */
        n.final_roundings = 3; /* 1/sqrt to F32, two products */
        n.sqrt_ulp = 0.5f;
        n.div_ulp = 0.5f;
        break;
    case FWD_OP_ATTN_NORM_Q8:
    case FWD_OP_KQV_OUT_Q8:
    case FWD_OP_FFN_NORM_Q8:
    case FWD_OP_FFN_SWIGLU_Q8:
    case FWD_OP_RESULT_NORM_Q8:
        n.store = quantised_as(s, op, layer);
        if (n.store == FWD_F32)
            return false;
        n.act_rule = FWD_ACT_AMAX127;
        n.accumulator = FWD_ACC_EXACT;
        break;
    case FWD_OP_QCUR_ROPE:
    case FWD_OP_KCUR_ROPE:
        n.final_roundings = 3;
        n.sincos_ulp = 0.501f;
        n.angle = FWD_ACC_F64;
        break;
    case FWD_OP_K_CACHE:
    case FWD_OP_V_CACHE:
        n.accumulator = FWD_ACC_EXACT;
        n.store = fwd_kv_cache_type(s->kv);
        break;
    case FWD_OP_KQV_OUT:
        n.chain_block = 16; /* of head_dim: a score's chain */
        n.chain_per_block = 1;
        n.chain_extra = 4;
        n.lanes = 16;
        n.key_lanes = 16;
        n.key_segment = FWD_ATTENTION_SEGMENT;
        n.fma = true;
        n.exp_ulp = FWD_EXPF_ULP;
        n.div_ulp = 0.5f;
        break;
    case FWD_OP_FFN_SWIGLU:
        n.final_roundings = 4;
        n.exp_ulp = FWD_EXPF_ULP;
        n.div_ulp = 0.5f;
        break;
    case FWD_OP_FFN_INP:
    case FWD_OP_L_OUT:
        n.chain_extra = 1;
        n.final_roundings = 1;
        break;
    default:
        fill_linear(linear_of(s, op, layer), &n);
        break;
    }
    *out = n;
    return true;
}
