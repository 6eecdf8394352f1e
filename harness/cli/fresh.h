/* harness/cli/fresh.h: the candidate again in a process of its own: `parity generate` on the same ids with the same
 * knobs and faults. */
#ifndef HARNESS_CLI_FRESH_H
#define HARNESS_CLI_FRESH_H

#include "cli/options.h"

struct par_fresh {
    const struct par_common *common;
    const struct par_input *in;
    const char *path, *fault; /* fault: NULL for none */
};
/* par_run_options.fresh_hashes; ud is a struct par_fresh. */
enum fwd_status par_fresh_hashes(void *ud, int n_steps, uint64_t *hashes, int *n, struct fwd_error *err);

#endif
