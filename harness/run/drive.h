/* harness/run/drive.h: drives one path over one sequence of ids by a schedule. `parity run`, `parity trace` and
 * `parity generate` all come through here, so that what is judged and what is printed is the same computation.
 *
 * A sequence is a prompt followed by decode steps, the ids of which are known (teacher forcing) or chosen by the caller
 * between calls. The schedule says how it is cut into run() calls:
 *   nocache  the prompt in one call; every decode step runs the whole sequence again from position 0
 *   step     one token a call, prompt and decode alike
 *   prefill  the prompt in chunks of `chunk` tokens (0: one call), decode steps of one token
 *   sweep    the prompt in chunks of 1, 2, .. 9 tokens and the ragged rest in one call, decode steps of one token
 * A path without a cache (fwd_path_info.uses_cache is false) runs the whole sequence in one call whatever the schedule:
 * causality makes the rows the same. The session must have been opened with n_batch and n_ctx large enough for the
 * largest call. */
#ifndef HARNESS_RUN_DRIVE_H
#define HARNESS_RUN_DRIVE_H

#include "engine.h"

#include <stdbool.h>
#include <stdint.h>

enum par_schedule { PAR_SCHEDULE_NOCACHE = 0, PAR_SCHEDULE_STEP = 1, PAR_SCHEDULE_PREFILL = 2, PAR_SCHEDULE_SWEEP = 3 };
/* "nocache", "step", "prefill", "sweep". */
const char *par_schedule_name(enum par_schedule schedule);
/* False for an unknown name. */
bool par_schedule_by_name(const char *name, enum par_schedule *out);

struct par_drive {
    const struct fwd_path *path;
    struct fwd_session *session;
    int seq;
    enum par_schedule schedule;
    int chunk;       /* of schedule prefill; 0: the prompt in one call */
    fwd_tap_fn *tap; /* or NULL */
    void *tap_ud;
    double *logits_f64; /* or NULL: [number wanted][n_vocab] as well, from a path that has them */
};

/* The largest n_tokens that any run() call will have: what the session's n_batch must be. */
int par_drive_max_batch(const struct fwd_path *path, enum par_schedule schedule, int chunk, int n_prompt, int n_ids);

/* The whole sequence: seq_begin, the prompt ids[0 .. n_prompt-1] by the schedule, then ids[n_prompt .. n_ids-1] as
 * decode steps. want: [n_ids] 0/1, NULL: only the last. logits: [number wanted][n_vocab], in order.
 * 1 <= n_prompt <= n_ids. Under nocache a decode step whose logits are not wanted is not run. */
enum fwd_status par_drive_run(const struct par_drive *d, const int32_t *ids, int n_prompt, int n_ids,
                              const uint8_t *want, float *logits, struct fwd_error *err);

/* The same in two parts, for a caller that chooses the next id itself. par_drive_prompt begins the sequence and gives
 * the last id's logits [n_vocab]; par_drive_next gives those of ids[n_ids-1] when ids[0 .. n_ids-2] were run before. */
enum fwd_status par_drive_prompt(const struct par_drive *d, const int32_t *ids, int n_prompt, float *logits,
                                 struct fwd_error *err);
enum fwd_status par_drive_next(const struct par_drive *d, const int32_t *ids, int n_ids, float *logits,
                               struct fwd_error *err);

/* The path's probe, with a message that names it: "path q4k-cuda is unavailable: no CUDA-capable device is detected".
 */
enum fwd_status par_drive_probe(const struct fwd_path *path, struct fwd_error *err);

/* Takes out of knobs what means nothing to the path (flags, hooks of a launch plan, a session to share), so that one
 * set of knobs can go from a candidate to another path. */
void par_drive_fit_knobs(const struct fwd_path *path, struct fwd_knobs *knobs);

/* The lowest index among the largest values: greedy choice. NaN never wins; -1 if all are NaN. */
int32_t par_argmax(const float *logits, int64_t n);

#endif
