/* harness/run/selftest_weight.h: one 4-bit weight off by one, as often as asked for, each at a random matrix, layer,
 * row and k of a real model. A pass of the path gives the activations and outputs; for each trial the row's output is
 * what the path's declared arithmetic makes of the changed weight, the judge looks at it, and the localiser names the
 * block. Beside it: what three tolerances in common use would have said of the same trials. */
#ifndef HARNESS_RUN_SELFTEST_WEIGHT_H
#define HARNESS_RUN_SELFTEST_WEIGHT_H

#include "engine.h"

struct par_weight_trials {
    int tried;
    int in_path_order; /* trials in which the declared chain, computed again here, gave the row's own bits unchanged */
    /* All positions of the prompt; and one, drawn for each trial. changed: the row's output has other bits. */
    int changed_all, changed_one;
    int found_all, found_one;               /* the judge accuses that row, and no other */
    int block_named_all, block_named_one;   /* and the localiser names the K-block, rightly */
    int weight_named_all, weight_named_one; /* and the weight itself */
    int misnamed_all, misnamed_one;         /* a block is named, and it is another */
    int other_rows_accused;
    /* Over all positions of the op's whole output, against the same op unchanged: trials that NMSE > 5e-4, cosine <
     * 0.99 and allclose with rtol = atol = 1e-3 would have seen. Their users hold an op against one on float
     * activations instead: alarms counts the trials in which they fail there with nothing changed, on that one row. */
    int nmse_sees, cosine_sees, allclose_sees;
    int nmse_alarms, cosine_alarms, allclose_alarms;
    int n_positions;
    int n_matrices; /* that have 4-bit weights */
    double seconds;
};

struct par_weight_trials_options {
    const struct fwd_gguf *file;
    const struct fwd_path *path; /* with quantised activations */
    const int32_t *ids;          /* the prompt */
    int n_ids;
    int n_trials;
    uint64_t seed;
    int n_threads;
    void (*progress)(void *ud, const char *what, int64_t done, int64_t total); /* or NULL */
    void *progress_ud;
};
/* FWD_EUNSUPPORTED for a model without 4-bit matrices. */
enum fwd_status par_selftest_one_weight(const struct par_weight_trials_options *options, struct par_weight_trials *out,
                                        struct fwd_error *err);

#endif
