/* engine/paths/ref_ops.h: the ops of the reference paths. Each fills call->out from call->in, the weight, the bias and
 * the configuration of the call and nothing else, so that an override may change any of them and call the builtin.
 * call->path_state is the struct fwd_session. What each op computes from which inputs: enum fwd_op. */
#ifndef ENGINE_PATHS_REF_OPS_H
#define ENGINE_PATHS_REF_OPS_H

#include "engine.h"

typedef enum fwd_status ref_op_fn(const struct fwd_op_call *call, struct fwd_error *err);

ref_op_fn ref_op_embed, ref_op_norm, ref_op_matmul, ref_op_rope, ref_op_cache, ref_op_attention, ref_op_swiglu,
    ref_op_add, ref_op_quantise;

/* ref_act.c. One row of n reals rounded to F32 and quantised by FWD_ACT_AMAX127 to blocks (FWD_Q8_K or FWD_Q8_32), and
 * back to n reals of type `real`. */
void ref_act_quantise(enum fwd_dtype format, enum fwd_dtype real, const void *x, int64_t n, void *blocks);
void ref_act_dequantise(enum fwd_dtype format, enum fwd_dtype real, const void *blocks, int64_t n, void *x);

#endif
