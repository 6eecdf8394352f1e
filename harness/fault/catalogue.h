/* harness/fault/catalogue.h: the parts of the catalogue, and the sets of ops and block types that their rows name.
 * Internal to harness/fault. */
#ifndef HARNESS_FAULT_CATALOGUE_H
#define HARNESS_FAULT_CATALOGUE_H

#include "fault/fault.h"
#include "fault/fault_ops.h"

#define OP(name) (1u << FWD_OP_##name)
#define TYPE(name) (1u << FWD_TYPE_##name)

#define LAYER_MATMULS (OP(QCUR) | OP(KCUR) | OP(VCUR) | OP(ATTN_OUT) | OP(FFN_GATE) | OP(FFN_UP) | OP(FFN_OUT))
#define MATMULS (LAYER_MATMULS | OP(RESULT_OUTPUT))
#define NORMS (OP(ATTN_NORM) | OP(FFN_NORM) | OP(RESULT_NORM))
#define ADDS (OP(FFN_INP) | OP(L_OUT))
#define ROPES (OP(QCUR_ROPE) | OP(KCUR_ROPE))
#define CACHES (OP(K_CACHE) | OP(V_CACHE))
#define Q8_TAPS (OP(ATTN_NORM_Q8) | OP(KQV_OUT_Q8) | OP(FFN_NORM_Q8) | OP(FFN_SWIGLU_Q8) | OP(RESULT_NORM_Q8))
/* Ops that a launch of a fused step ends with. */
#define PLANNED (OP(VCUR) | OP(KQV_OUT) | OP(FFN_INP) | OP(FFN_SWIGLU) | OP(L_OUT) | OP(RESULT_OUTPUT))
/* Ops whose tap one other op reads. */
#define TAPPED (OP(QCUR) | OP(KCUR) | OP(VCUR) | OP(QCUR_ROPE) | OP(KCUR_ROPE))

#define WITH_SUBBLOCKS (TYPE(Q2_K) | TYPE(Q3_K) | TYPE(Q4_K) | TYPE(Q5_K) | TYPE(Q6_K))
#define QUANTISED (WITH_SUBBLOCKS | TYPE(Q4_0) | TYPE(Q4_1) | TYPE(Q5_0) | TYPE(Q5_1) | TYPE(Q8_0))
#define WITH_MIN (TYPE(Q4_1) | TYPE(Q5_1) | TYPE(Q2_K) | TYPE(Q4_K) | TYPE(Q5_K))
#define WITH_NIBBLES (TYPE(Q4_0) | TYPE(Q4_1) | TYPE(Q5_0) | TYPE(Q5_1) | TYPE(Q4_K) | TYPE(Q5_K))
#define WITH_HIGH_BITS (TYPE(Q5_0) | TYPE(Q5_1) | TYPE(Q3_K) | TYPE(Q5_K) | TYPE(Q6_K))
#define WITH_OFFSET (TYPE(Q4_0) | TYPE(Q5_0) | TYPE(Q8_0) | TYPE(Q3_K) | TYPE(Q6_K))
/* Types for which fault_matmul.c knows one with blocks no longer than theirs. */
#define WITH_SMALLER_TYPE ((QUANTISED & ~(TYPE(Q4_0) | TYPE(Q2_K) | TYPE(Q6_K))) | TYPE(F16) | TYPE(BF16))

/* Ends with a row without a name. What each kind does is said in fault_ops.h. */
extern const struct par_fault_row fault_rows_matmul[], fault_rows_path[], fault_rows_attention[];

#endif
