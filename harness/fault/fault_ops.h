/* harness/fault/fault_ops.h: the broken ops of the catalogue in fault.c. As overrides, ud is the struct par_fault. */
#ifndef HARNESS_FAULT_FAULT_OPS_H
#define HARNESS_FAULT_FAULT_OPS_H

#include "engine.h"

fwd_override_fn par_fault_head_transposed, par_fault_min_dropped, par_fault_q6k_as_q4k, par_fault_rope_pairing,
    par_fault_rope_position, par_fault_kv_stale;
fwd_config_hook par_fault_gqa_modulo, par_fault_eps;

#endif
