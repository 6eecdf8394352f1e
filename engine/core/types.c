#include "core/types.h"

#include <string.h>

static const char *const op_names[FWD_OP_COUNT] = {
    [FWD_OP_INP_EMBD] = "inp_embd",
    [FWD_OP_ATTN_NORM] = "attn_norm",
    [FWD_OP_ATTN_NORM_Q8] = "attn_norm_q8",
    [FWD_OP_QCUR] = "Qcur",
    [FWD_OP_KCUR] = "Kcur",
    [FWD_OP_VCUR] = "Vcur",
    [FWD_OP_QCUR_ROPE] = "Qcur_rope",
    [FWD_OP_KCUR_ROPE] = "Kcur_rope",
    [FWD_OP_K_CACHE] = "K_cache",
    [FWD_OP_V_CACHE] = "V_cache",
    [FWD_OP_KQV_OUT] = "kqv_out",
    [FWD_OP_KQV_OUT_Q8] = "kqv_out_q8",
    [FWD_OP_ATTN_OUT] = "attn_out",
    [FWD_OP_FFN_INP] = "ffn_inp",
    [FWD_OP_FFN_NORM] = "ffn_norm",
    [FWD_OP_FFN_NORM_Q8] = "ffn_norm_q8",
    [FWD_OP_FFN_GATE] = "ffn_gate",
    [FWD_OP_FFN_UP] = "ffn_up",
    [FWD_OP_FFN_SWIGLU] = "ffn_swiglu",
    [FWD_OP_FFN_SWIGLU_Q8] = "ffn_swiglu_q8",
    [FWD_OP_FFN_OUT] = "ffn_out",
    [FWD_OP_L_OUT] = "l_out",
    [FWD_OP_RESULT_NORM] = "result_norm",
    [FWD_OP_RESULT_NORM_Q8] = "result_norm_q8",
    [FWD_OP_RESULT_OUTPUT] = "result_output",
};

const char *fwd_op_name(enum fwd_op op) {
    return (unsigned)op < FWD_OP_COUNT ? op_names[op] : "unknown";
}

enum fwd_op fwd_op_by_name(const char *name) {
    for (int op = 0; op < FWD_OP_COUNT; op++)
        if (!strcmp(op_names[op], name))
            return (enum fwd_op)op;
    return FWD_OP_COUNT;
}

bool fwd_op_in_layer(enum fwd_op op) {
    return op > FWD_OP_INP_EMBD && op < FWD_OP_RESULT_NORM;
}

size_t fwd_dtype_row_bytes(enum fwd_dtype dtype, int64_t n_values) {
    size_t n = (size_t)n_values;
    switch (dtype) {
    case FWD_F32:
    case FWD_I32:
        return n * 4;
    case FWD_F64:
        return n * 8;
    case FWD_F16:
        return n * 2;
    case FWD_Q8_K:
        return n / 256 * 292;
    case FWD_Q8_32:
        return n / 32 * 40;
    case FWD_BF16:
        return n * 2;
    case FWD_E4M3:
        return n + 4;
    }
    return 0;
}

const char *fwd_dtype_name(enum fwd_dtype dtype) {
    static const char *const names[] = {"F32", "F64", "F16", "I32", "Q8_K", "Q8_32", "BF16", "E4M3"};
    return (unsigned)dtype < sizeof names / sizeof *names ? names[dtype] : "unknown";
}
