/* harness/spec/tie_slack.h: numerics.md section 1. An engine that cannot show its quantised bytes is judged from the
 * floats before them. Where a scaled value lies within PAR_TIE_ULP ulp of a tie, its arithmetic may have rounded it to
 * the other side: such elements add the effect of one step to the bound. Internal to harness/spec. */
#ifndef HARNESS_SPEC_TIE_SLACK_H
#define HARNESS_SPEC_TIE_SLACK_H

#include "engine.h"

enum { PAR_TIE_ULP = 4 };

/* Which of a block's n = 32 or 256 values lie that close to a tie, whichever way it is broken: their indices into at
 * [n], and how many. */
int par_near_ties(const float *x, int n, int *at);

/* Column k of the input may be `step` away from what the judge made of it. */
struct par_tie {
    int64_t k;
    double step;
};
/* The ties of the judged positions, in their order. Plain data: zero it, free it at the end. */
struct par_ties {
    struct par_tie *tie;
    int64_t n, room;
    int64_t *first; /* [positions + 1] into tie; NULL: the bytes were shown, there are none */
};
enum fwd_status par_ties_begin(struct par_ties *t, int n_pos, struct fwd_error *err);
/* Before the first block of judged position p, and once after the last with p = n_pos. */
void par_ties_position(struct par_ties *t, int p);
/* A block of floats that begins at column k0; d: its scale, one step of a code. */
enum fwd_status par_ties_add(struct par_ties *t, const float *x, int n, int64_t k0, double d, struct fwd_error *err);
void par_ties_free(struct par_ties *t);

#endif
