/* harness/run/declared_act.h: a float run made to round the inputs of its matrix products as another path declares: the
 * taps before the products are written over with their quantised, dequantised values. With it a reference on any
 * device stands in for the candidate's declared arithmetic, and knows nothing of the candidate but its declaration. */
#ifndef HARNESS_RUN_DECLARED_ACT_H
#define HARNESS_RUN_DECLARED_ACT_H

#include "engine.h"

struct par_declared_act {
    const struct fwd_path *path; /* whose declaration it is, */
    const struct fwd_session *session;
    struct fwd_pool *pool;
};

/* Of the product that reads this tap (of several, the first): its numerics; false: no product reads it, or the path
 * has no such op. */
bool par_declared_act_of(const struct par_declared_act *a, enum fwd_op tap, int layer, struct fwd_numerics *out);
/* For a tap callback: rounds the view's F32 rows in place. FWD_ETYPE for a format that it does not know. Where the
 * product rounds its weights too (BF16, E4M3), the values move at random from the seed by as much as that rounding
 * moves weights: a sum of rounded weights times values has the same variance as one of weights times moved values. */
enum fwd_status par_declared_act_round(const struct par_declared_act *a, const struct fwd_view *view, uint64_t seed,
                                       struct fwd_error *err);

#endif
