/* engine/paths/ref_numerics.c: what each op of a reference path promises about its arithmetic. */
#include "paths/ref_session.h"

#include "ops/matmul_f/matmul_f.h"

static void declare_matmul(const struct fwd_session *s, enum fwd_op op, int layer, struct fwd_numerics *out) {
    const struct fwd_weight *bias = ref_bias(s->model, op, layer);
    bool has_bias = bias && bias->data;
    if (s->real == FWD_F32)
        fwd_matmul_f_numerics(has_bias, out);
    else
        fwd_matmul_d_numerics(has_bias, out);
    enum fwd_dtype format = ref_act_format(s, op, ref_weight(s->model, op, layer));
    if (format != FWD_F32) {
        out->act = format;
        out->act_rule = FWD_ACT_AMAX127;
        out->dequantised = true;
    }
}

bool ref_numerics(const struct fwd_session *s, enum fwd_op op, int layer, struct fwd_numerics *out) {
    /* Rows are computed in double and rounded once. In F64 itself that last rounding is one of several: a product or
     * two and a division beside the sums. */
    struct fwd_numerics n = {.size = sizeof n,
                             .act = s->real,
                             .accumulator = FWD_ACC_F64,
                             .final_roundings = s->real == FWD_F32 ? 1 : 4,
                             .store = s->real};
    switch (op) {
    case FWD_OP_INP_EMBD:
        n.act = FWD_I32;
        n.accumulator = FWD_ACC_EXACT;
        n.final_roundings = 0;
        break;
    case FWD_OP_ATTN_NORM:
    case FWD_OP_FFN_NORM:
    case FWD_OP_RESULT_NORM:
        n.chain_block = n.chain_per_block = 1;
        n.lanes = 1;
        n.sqrt_ulp = n.div_ulp = 0.5f;
        break;
    case FWD_OP_QCUR:
    case FWD_OP_KCUR:
    case FWD_OP_VCUR:
    case FWD_OP_ATTN_OUT:
    case FWD_OP_FFN_GATE:
    case FWD_OP_FFN_UP:
    case FWD_OP_FFN_OUT:
    case FWD_OP_RESULT_OUTPUT:
        declare_matmul(s, op, layer, &n);
        break;
    case FWD_OP_QCUR_ROPE:
    case FWD_OP_KCUR_ROPE:
        n.angle = FWD_ACC_F64;
        n.sincos_ulp = n.pow_ulp = 1;
        break;
    case FWD_OP_K_CACHE:
    case FWD_OP_V_CACHE:
        n.accumulator = FWD_ACC_EXACT;
        n.final_roundings = 0;
        if (s->kv_f16)
            n.act = FWD_F16; /* values are binary16, stored wider */
        break;
    case FWD_OP_KQV_OUT:
        n.chain_block = n.chain_per_block = 1; /* of head_dim: 8 lanes, fewer where it is no multiple of 8 */
        n.key_lanes = 1;
        n.exp_ulp = 1;
        n.div_ulp = n.sqrt_ulp = 0.5f;
        break;
    case FWD_OP_FFN_SWIGLU:
        n.exp_ulp = 1;
        n.div_ulp = 0.5f;
        break;
    case FWD_OP_FFN_INP:
    case FWD_OP_L_OUT:
        n.final_roundings = 1;
        break;
    case FWD_OP_ATTN_NORM_Q8:
    case FWD_OP_KQV_OUT_Q8:
    case FWD_OP_FFN_NORM_Q8:
    case FWD_OP_FFN_SWIGLU_Q8:
    case FWD_OP_RESULT_NORM_Q8:
        n.store = ref_tap_format(s, op, layer);
        if (n.store == FWD_F32)
            return false;
        n.act_rule = FWD_ACT_AMAX127;
        n.accumulator = FWD_ACC_EXACT;
        n.final_roundings = 0;
        break;
    case FWD_OP_COUNT:
        return false;
    }
    *out = n;
    return true;
}
