/* harness/localise/shrink.h: delta debugging of a case: what can be left out while the op still fails under the same
 * arbiter. Every probe is a replay in this process. */
#ifndef HARNESS_LOCALISE_SHRINK_H
#define HARNESS_LOCALISE_SHRINK_H

#include "localise/replay.h"

/* Zeller and Hildebrandt's ddmin (IEEE TSE 28(2), 2002): units 0 .. n-1 of which keep[] marks those that are left; it
 * is narrowed to a set that still fails and from which no part that was tried can be taken. fails(ud, keep) of the full
 * set is taken to be true; it may answer false to everything when a budget is used up. FWD_ENOMEM only. */
typedef bool par_ddmin_fn(void *ud, const uint8_t *keep);
enum fwd_status par_ddmin(int n, uint8_t *keep, par_ddmin_fn *fails, void *ud, struct fwd_error *err);

/* Does the element still fail? Outside its bound by at least 0.9 of `ratio` or twice the bound, on the side on which it
 * was (side: on either), and with something left to compute: a value above its own bound where there was one. */
bool par_case_still_fails(const struct par_case_element *was, const struct par_case_element *now, double ratio,
                          bool side);

struct par_shrink_options {
    const struct fwd_path *path; /* NULL: the recorded one by its name */
    struct fwd_pool *pool;
    int max_probes;
    double max_seconds;
};
/* Takes from c what it can: weights, blocks of columns (in the inputs and the weights alike), input rows, weight rows.
 * A probe is accepted when the recorded element still fails on the same side; its new values are then the recorded
 * ones. *n_probes: replays made. */
enum fwd_status par_case_shrink(struct par_case *c, const struct par_shrink_options *options, int *n_probes,
                                struct fwd_error *err);
/* Columns that are zeroed together: a block of the op's number formats, or a head. */
int64_t par_case_block_columns(const struct par_case *c, const struct par_case_model *m);

#endif
