/* harness/localise/impact.h: what each guilty op costs. Its output is replaced by the spec's value from the op's own
 * inputs, the candidate runs on with the same ids, and it is measured how much of the logits' divergence goes away:
 * their distance to the reference beyond the explained spread, summed over a sample of positions. Alone, by kind of op,
 * and with all guilty ops replaced together. */
#ifndef HARNESS_LOCALISE_IMPACT_H
#define HARNESS_LOCALISE_IMPACT_H

#include "run/run_state.h"

/* Needs the candidate's judged pass and the spread. Fills r->report->impact, an arm and `intervention.<id>.heals` for
 * each kind of op that is accused, and impact.ops, impact.together, impact.largest. At most 8 ops are tried alone (3
 * with --quick), the worst ones. Leaves the session as it was, planted faults included. */
enum fwd_status par_run_impact(struct par_run *r, struct fwd_session *session, struct fwd_error *err);

#endif
