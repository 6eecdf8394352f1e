/* harness/spec/spec_quant.h: the harness's own activation quantisers, the rules of core/types.h that make int8. */
#ifndef HARNESS_SPEC_SPEC_QUANT_H
#define HARNESS_SPEC_SPEC_QUANT_H

#include "engine.h"

/* One block of B = 256 (FWD_Q8_K) or 32 (FWD_Q8_32) values. */
struct spec_q8 {
    float d;
    int8_t q[256];
    int32_t sum16[16]; /* of each 16 values */
    /* The rules with a binary16 scale: what a block's minimum is multiplied by instead of d times the sum of the codes.
     */
    bool has_sum;
    float sum;
};

/* Values in a block of a quantised activation format; 0: not one. */
int par_q8_block_values(enum fwd_dtype dtype);
size_t par_q8_block_bytes(enum fwd_dtype dtype);
/* x: n = 256 or 32 values; rule FWD_ACT_AMAX127. */
void par_q8_quantise(const float *x, int n, struct spec_q8 *out);
/* The same by any rule that is known; false for another. One block of 256 or of 32, whichever the rule is used for. */
bool par_q8_quantise_as(enum fwd_act_rule rule, const float *x, int n, struct spec_q8 *out);
bool par_q8_knows(enum fwd_act_rule rule);
/* Reads the tap's bytes (layouts in core/types.h) with the sums as stored (a Q8_32 sum goes into the first half, less
 * the second half's own); *sums_agree: whether they are those of its codes. */
void par_q8_read(enum fwd_dtype dtype, const uint8_t *block, struct spec_q8 *out, bool *sums_agree);

#endif
