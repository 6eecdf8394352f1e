/* engine/paths/fused_numerics.c: from the definitions in the ops' headers. */
#include "paths/fused_numerics.h"

#include "ops/attention/attention.h"
#include "ops/expf/expf.h"
#include "ops/matmul_f/matmul_f.h"
#include "ops/matmul_q/matmul_q.h"
#include "ops/rmsnorm/rmsnorm.h"

/* The format an op input is quantised to: Q8_K where any user wants it (a tap comes once per format), F32 if none. */
static enum fwd_dtype quantised_as(const void *session, fused_product_fn *product, enum fwd_op op, int layer) {
    static const enum fwd_op users[][4] = {
        {FWD_OP_ATTN_NORM_Q8, FWD_OP_QCUR, FWD_OP_KCUR, FWD_OP_VCUR},
        {FWD_OP_KQV_OUT_Q8, FWD_OP_ATTN_OUT, FWD_OP_ATTN_OUT, FWD_OP_ATTN_OUT},
        {FWD_OP_FFN_NORM_Q8, FWD_OP_FFN_GATE, FWD_OP_FFN_UP, FWD_OP_FFN_UP},
        {FWD_OP_FFN_SWIGLU_Q8, FWD_OP_FFN_OUT, FWD_OP_FFN_OUT, FWD_OP_FFN_OUT},
        {FWD_OP_RESULT_NORM_Q8, FWD_OP_RESULT_OUTPUT, FWD_OP_RESULT_OUTPUT, FWD_OP_RESULT_OUTPUT}};
    enum fwd_dtype found = FWD_F32;
    for (size_t i = 0; i < sizeof users / sizeof *users; i++) {
        for (int j = 1; users[i][0] == op && j < 4; j++) {
            enum fwd_dtype act = product(session, users[i][j], layer).act;
            if (act == FWD_Q8_K || found == FWD_F32)
                found = act;
        }
    }
    return found;
}

static void fill_product(struct fused_product p, struct fwd_numerics *n) {
    if (p.act == FWD_F32)
        fwd_matmul_f_numerics(p.has_bias, n);
    else
        fwd_matmul_q_numerics(p.type, p.has_bias, n);
}

bool fused_numerics(const void *session, fused_product_fn *product, enum fwd_dtype kv_type, enum fwd_op op, int layer,
                    struct fwd_numerics *out) {
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
        n.chain_block = RMSNORM_LANES;
        n.chain_per_block = 1;
        n.chain_extra = 8; /* the tree */
        n.lanes = RMSNORM_LANES;
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
        n.store = quantised_as(session, product, op, layer);
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
        n.store = kv_type;
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
        fill_product(product(session, op, layer), &n);
        break;
    }
    *out = n;
    return true;
}
