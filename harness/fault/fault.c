/* harness/fault/fault.c: the catalogue. The broken ops themselves are in the other files of this folder. */
#include "fault/fault.h"

#include "fault/fault_ops.h"

#define OP(name) (1u << FWD_OP_##name)
#define TYPE(name) (1u << FWD_TYPE_##name)
#define MATMULS                                                                                                        \
    (OP(QCUR) | OP(KCUR) | OP(VCUR) | OP(ATTN_OUT) | OP(FFN_GATE) | OP(FFN_UP) | OP(FFN_OUT) | OP(RESULT_OUTPUT))
#define ROPES (OP(QCUR_ROPE) | OP(KCUR_ROPE))
#define CACHES (OP(K_CACHE) | OP(V_CACHE))

static const struct par_fault_row rows[] = {
    {.name = "f32-head-transposed",
     .hypothesis = "H4",
     .summary = "F32 head GEMV indexes an [N,K] buffer as [K,N] (the story)",
     .museum = "aprender PR 1651",
     .signature = "weight-transposed",
     .ops = OP(RESULT_OUTPUT),
     .op = FWD_OP_RESULT_OUTPUT,
     .needs = PAR_NEED_HEAD_F32,
     .plant = par_fault_head_transposed},
    {.name = "q4k-min-dropped",
     .hypothesis = "H1",
     .summary = "Q4_K dot without its min term",
     .museum = "ik_llama.cpp PR 540",
     .signature = "min-dropped",
     .ops = MATMULS,
     .op = FWD_OP_FFN_GATE,
     .weight_types = TYPE(Q4_K),
     .plant = par_fault_min_dropped},
    {.name = "q6k-as-q4k",
     .hypothesis = "H4",
     .summary = "Q6_K bytes decoded as Q4_K",
     .museum = "aprender PR 1524 to 1529",
     .signature = "weight-other-type",
     .ops = MATMULS,
     .op = FWD_OP_FFN_OUT,
     .weight_types = TYPE(Q6_K),
     .plant = par_fault_q6k_as_q4k},
    {.name = "rope-pairing",
     .hypothesis = "H3",
     .summary = "RoPE rotates the other pairs",
     .museum = "candle 3410, llama2.c PR 286",
     .signature = "rope-pairing",
     .ops = ROPES,
     .op = FWD_OP_QCUR_ROPE,
     .plant = par_fault_rope_pairing},
    {.name = "rope-position",
     .hypothesis = "H3",
     .summary = "positions after the prompt are one too high",
     .museum = "llama.cpp PR 7107",
     .signature = "rope-position",
     .ops = ROPES,
     .op = FWD_OP_QCUR_ROPE,
     .plant = par_fault_rope_position},
    {.name = "kv-row-stale",
     .hypothesis = "H2",
     .summary = "one K row of the prompt is stale when decode reads it",
     .museum = "aprender PR 2029",
     .signature = "kv-row-stale",
     .ops = CACHES,
     .op = FWD_OP_K_CACHE,
     .plant = par_fault_kv_stale},
    {.name = "gqa-modulo",
     .hypothesis = "H5",
     .summary = "query head h reads KV head h % n instead of h / (heads / n), in all paths",
     .museum = "llama.cpp PR 3364",
     .signature = "gqa-map",
     .op = FWD_OP_KQV_OUT,
     .needs = PAR_NEED_GQA,
     .hook = par_fault_gqa_modulo,
     .shared = true},
    {.name = "eps-other-model",
     .hypothesis = "H5",
     .summary = "the norm epsilon of another model, in all paths",
     .museum = "aprender PR 1606",
     .signature = "eps-other",
     .op = FWD_OP_ATTN_NORM,
     .hook = par_fault_eps,
     .shared = true},
};

const struct par_fault_row *par_fault_row(int i) {
    return i >= 0 && i < (int)(sizeof rows / sizeof *rows) ? &rows[i] : NULL;
}
