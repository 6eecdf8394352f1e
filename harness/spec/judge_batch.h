/* harness/spec/judge_batch.h: the calls of one matmul, kept together until enough positions are there. A decode step
 * brings one position, and judging it decodes the whole matrix; so its rows are copied and judged with those of the
 * steps that follow. Each element's verdict is the same either way. Internal to harness/spec. */
#ifndef HARNESS_SPEC_JUDGE_BATCH_H
#define HARNESS_SPEC_JUDGE_BATCH_H

#include "spec/evidence.h"

/* Plain data: zero it, clear it at the end. */
struct judge_batch {
    uint8_t *bytes;          /* all the copies in one piece; NULL: empty */
    struct fwd_view in, out; /* from the first position to the last; rows of positions that never came are unset */
    uint8_t *judge_pos;      /* [positions] which are judged: none of the unset ones */
    struct fwd_numerics numerics;
    struct par_twin
        twins[PAR_MAX_TWINS]; /* found when the calls came: the taps they were compared with are gone later */
    int n_twins;
};

/* Positions that a batch may span so that those of all matmuls of m together stay below a fixed size (for F32 taps). */
int par_batch_positions(const struct par_spec_model *m);
/* Whether this call can wait: a matmul of fewer positions than that, with everything it needs there. */
bool par_batch_can_wait(const struct par_eval *e, int positions);
/* Whether it can join these; an empty batch takes any. */
bool par_batch_fits(const struct judge_batch *b, const struct par_eval *e, int positions);
/* Copies the judged positions' rows; only after par_batch_fits. */
enum fwd_status par_batch_add(struct judge_batch *b, const struct par_eval *e, int positions, struct fwd_error *err);
void par_batch_clear(struct judge_batch *b);

#endif
