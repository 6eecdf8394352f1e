/* harness/run/run.h: one differential run: reference and candidate over the same ids, every op judged, logits held
 * against the explained spread, arms flipped one at a time, interventions where something is guilty. */
#ifndef HARNESS_RUN_RUN_H
#define HARNESS_RUN_RUN_H

#include "contract/figures.h"
#include "fault/fault.h"
#include "localise/case.h"
#include "report/report.h"
#include "run/drive.h"

#include <limits.h>

/* Which positions of a side are judged: the prompt's last, every N-th before and after it, and both ends. By default a
 * candidate is judged at all; a reference at every 24th, with PAR_FULL at all. */
enum par_judge_every { PAR_JUDGE_ALL = 1, PAR_JUDGE_REF = 24, PAR_JUDGE_LAST = INT_MAX };

enum par_depth { PAR_QUICK, PAR_DEFAULT, PAR_FULL };

struct par_run_options {
    const struct fwd_gguf *file;
    const char *model_name; /* as the user typed it */
    const char *prompt;     /* text for the report, or NULL */
    const int32_t *ids;     /* the prompt */
    int n_prompt;
    int n_decode;            /* teacher-forced steps; their ids are the candidate's own greedy ones */
    const int32_t *loss_ids; /* of the committed text on which the reference's loss must be plausible, or NULL */
    int n_loss_ids;
    const struct fwd_path *ref, *cand;
    struct fwd_knobs knobs; /* of the candidate; the reference takes n_threads, caps and the hook from it */
    enum par_schedule schedule;
    int chunk;
    enum par_depth depth;
    bool with_nocache;             /* the arm schedule_nocache runs at any depth, not only where it is due */
    const struct fwd_gguf *source; /* the unquantised model, for the ledger's weight part; or NULL */
    enum par_bound_mode bound;
    unsigned judge_caps; /* as in struct par_eval */
    /* A process of its own: the candidate's greedy steps after the same prompt, taps off. Fills hashes[i] with
     * fwd_hash64 of the logits of step i, *n <= n_steps of them (it stops at an end of text). NULL: not asked for. */
    enum fwd_status (*fresh_hashes)(void *ud, int n_steps, uint64_t *hashes, int *n, struct fwd_error *err);
    void *fresh_ud;
    const char *cases_dir;            /* folder for reproducers of the accused ops; NULL: none are made */
    par_case_verify_fn *verify;       /* of a reproducer, in a fresh process; NULL: not verified */
    int judge_every, judge_ref_every; /* of the candidate, of the reference; 0: the default, see enum par_judge_every */
    struct par_fault *faults;
    int n_faults;
    const char *hypotheses_dir; /* NULL: hypotheses are not evaluated */
    const char *command;        /* that repeats this run: without the options an arm adds */
    void (*progress)(void *ud, const char *what, int64_t done, int64_t total); /* done < 0: over; may be NULL */
    void *progress_ud;
};

/* Fills *report (zeroed by the caller; report->text owns it all) and figures. An error means that nothing can be said.
 */
enum fwd_status par_run(const struct par_run_options *options, struct par_report *report, struct par_figures *figures,
                        struct fwd_error *err);

/* How many ensemble runs make the explained spread, by depth, and the factors that the spread is scaled by. */
int par_spread_runs(enum par_depth depth);
/* What the ensemble's own largest value is multiplied by, beside the factor that run_spread.c takes from the ensemble.
 */
#define PAR_SPREAD_SAFETY 1.5

#endif
