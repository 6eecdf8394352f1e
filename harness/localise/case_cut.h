/* harness/localise/case_cut.h: one accused call of a run as a case, more or less of it. Internal to harness/localise.
 */
#ifndef HARNESS_LOCALISE_CASE_CUT_H
#define HARNESS_LOCALISE_CASE_CUT_H

#include "localise/case_parts.h"

/* How much of the run goes into the case. */
struct par_cut {
    bool at_zero; /* the accused position alone, as position 0 of a sequence of one */
    bool one_pos; /* inputs of the accused position only; the sequence stays as it was */
    bool one_row; /* of matrices only the accused row (none, if the op is no matmul); of a vocabulary 256 ids around it
                   */
    bool layer;   /* every weight of the layer, not only the op's own */
    bool below;   /* and of the layers around it */
};
/* Can that op be cut so? */
bool par_cut_fits(const struct par_cut *cut, enum fwd_op op);
/* The call's accused element `e` (as the run saw it) becomes the case's. */
enum fwd_status par_case_cut(struct par_case *out, const struct par_case_context *context,
                             const struct par_evidence *item, int call, const struct par_case_element *e,
                             const struct par_cut *cut, struct fwd_error *err);

#endif
