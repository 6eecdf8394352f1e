/* harness/localise/case_parts.h: what the parts of a case share. Internal to harness/localise. */
#ifndef HARNESS_LOCALISE_CASE_PARTS_H
#define HARNESS_LOCALISE_CASE_PARTS_H

#include "localise/case.h"

/* One input of an op, as taps: the float tap and, of a matmul, the quantised one that may follow it. */
struct par_case_tap {
    enum fwd_op op;    /* FWD_OP_COUNT: no such input */
    enum fwd_op op_q8; /* FWD_OP_COUNT: it has no quantised form */
    int layer;         /* PAR_CASE_LAST_LAYER: l_out before the head */
};
enum { PAR_CASE_LAST_LAYER = -2 };
/* The taps that op of `layer` reads; returns their number, 0 for inp_embd (it reads token ids). */
int par_case_taps(enum fwd_op op, int layer, struct par_case_tap out[PAR_CASE_INPUTS]);
bool par_case_is_matmul(enum fwd_op op);
bool par_case_is_cache(enum fwd_op op);
/* Values in a row of that tap; of a cache all its heads together. */
int64_t par_case_width(const struct par_spec_config *c, enum fwd_op op);
bool par_case_same_numerics(const struct fwd_numerics *a, const struct fwd_numerics *b);

#endif
