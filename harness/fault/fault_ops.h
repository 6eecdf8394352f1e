/* harness/fault/fault_ops.h: the broken ops and hooks of the catalogue in fault.c, by the file that has them. As an
 * override or a hook, ud is the struct par_fault. Internal to harness/fault. */
#ifndef HARNESS_FAULT_FAULT_OPS_H
#define HARNESS_FAULT_FAULT_OPS_H

#include "engine.h"

struct par_fault;

/* fault_place.c: tensors of the model file by op; NULL: none. A tied head is the embedding. */
const struct fwd_gguf_tensor *par_fault_tensor(const struct fwd_gguf *file, enum fwd_op op, int layer);
const struct fwd_gguf_tensor *par_fault_bias(const struct fwd_gguf *file, enum fwd_op op, int layer);
/* The next layer whose weight (or bias) for the op has the same shape, and for a shared fault the same type; -1: none.
 */
int par_fault_other_layer(const struct par_fault *f, const struct fwd_gguf *file, enum fwd_op op, int layer,
                          int n_layer, bool bias);

fwd_override_fn par_fault_head_transposed, par_fault_min_dropped, par_fault_q6k_as_q4k, par_fault_rope_pairing,
    par_fault_rope_position, par_fault_kv_stale;
fwd_config_hook par_fault_gqa_modulo, par_fault_eps;

#endif
