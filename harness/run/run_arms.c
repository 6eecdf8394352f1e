/* harness/run/run_arms.c: the arms table. One knob of the candidate is flipped at a time, on the real ids. Where
 * canonical arithmetic promises the same bits, the hash of the logits says whether it kept the promise; where the base
 * run is diverged, each arm is judged again, to see whether the flip heals it. */
#include "run/run_state.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static struct par_report_arm *add_arm(struct par_run *r, const struct par_run_arm *arm) {
    int n = r->report->n_arms;
    struct par_report_arm *rows = par_text_alloc(r->text, (size_t)(n + 1) * sizeof *rows);
    if (!rows)
        return NULL;
    if (n)
        memcpy(rows, r->report->arms, (size_t)n * sizeof *rows);
    r->report->arms = rows;
    r->report->n_arms = n + 1;
    rows[n].id = arm->id;
    rows[n].what = arm->what;
    rows[n].hypothesis = arm->hypothesis;
    rows[n].expect_same_bits = arm->same_bits;
    rows[n].command = par_text_printf(r->text, "%s %s", r->o->command, arm->option);
    rows[n].distance_to_ref = NAN;
    rows[n].distance_base = par_centred_distance(r->logits_ref + (int64_t)(r->n_want - 1) * r->n_vocab,
                                                 r->logits_cand + (int64_t)(r->n_want - 1) * r->n_vocab, r->n_vocab);
    return &rows[n];
}

static void set_figure(struct par_run *r, const char *id, const char *figure, double value) {
    char name[96];
    (void)snprintf(name, sizeof name, "arm.%s.%s", id, figure);
    par_figures_set(r->figures, name, value);
}

static void count(struct par_run *r, const char *figure, double n) {
    par_figures_set(r->figures, figure, par_run_figure(r, figure, 0) + n);
}

void par_run_arm_untested(struct par_run *r, const struct par_run_arm *arm, const char *why) {
    struct par_report_arm *row = add_arm(r, arm);
    if (!row)
        return;
    row->result = par_text_printf(r->text, "UNTESTED: %s", why);
    count(r, "routes.untested", arm->route);
}

static void record(struct par_run *r, const struct par_run_arm *arm, const struct par_pass *pass, bool judged) {
    struct par_report_arm *row = add_arm(r, arm);
    if (!row)
        return;
    row->ran = true;
    row->logits_hash = pass->logits_hash;
    row->same_bits = pass->same_bits;
    row->distance_to_ref = pass->distance_last;
    if (judged) /* taken where this pass ended */
        row->distance_base = pass->distance_last_base;
    set_figure(r, arm->id, "same_bits", row->same_bits);
    set_figure(r, arm->id, "kept", row->same_bits || !arm->same_bits);
    if (arm->same_bits && !strcmp(arm->hypothesis, "H4")) {
        count(r, "routes.tested", 1);
        count(r, "routes.other_bits", !row->same_bits);
    }
    if (judged)
        set_figure(r, arm->id, "heals", pass->n_accused == 0);
    if (judged && arm->route) {
        count(r, "routes.run", 1);
        count(r, "routes.heal", pass->n_accused == 0);
    }
    row->result =
        par_text_printf(r->text, "%s%s",
                        row->same_bits   ? "same bits"
                        : arm->same_bits ? "OTHER BITS, the same were promised"
                                         : "other bits",
                        !judged                ? ""
                        : pass->n_accused == 0 ? "; no op is accused any more: it heals"
                                               : par_text_printf(r->text, "; %d ops accused", pass->n_accused));
}

enum fwd_status par_run_arm(struct par_run *r, struct fwd_session *session, const struct par_run_arm *arm,
                            enum par_schedule schedule, int chunk, struct fwd_error *err) {
    struct par_pass pass = {0};
    bool judged = r->n_accused_cand > 0;
    if (judged) {
        FWD_TRY(par_run_rejudge(r, session, schedule, chunk, &pass, err));
    } else {
        par_run_progress(r, arm->what, 0, 1);
        FWD_TRY(par_run_logits(r, session, schedule, chunk, r->logits_work, &pass.logits_hash, err));
        int64_t last = (int64_t)(r->n_want - 1) * r->n_vocab;
        pass.same_bits = pass.logits_hash == r->base_hash;
        pass.distance_last = par_centred_distance(r->logits_ref + last, r->logits_work + last, r->n_vocab);
    }
    record(r, arm, &pass, judged);
    return FWD_OK;
}

/* Where a path declares that the cut into calls changes its rounding, no bits are promised. */
static enum fwd_status run_schedule(struct par_run *r, struct fwd_session *session, struct par_run_arm arm,
                                    bool promised, enum par_schedule schedule, struct fwd_error *err) {
    arm.same_bits = arm.same_bits && promised;
    return par_run_arm(r, session, &arm, schedule, 0, err);
}

enum fwd_status par_run_arms_in_session(struct par_run *r, struct fwd_session *session, struct fwd_error *err) {
    static const struct par_run_arm sweep = {
        "schedule_sweep", "H2", "prompt in chunks of 1, 2, .. 9 and a ragged tail", "--schedule sweep", true, false};
    static const struct par_run_arm step = {"schedule_step",   "H2", "prompt one token at a time",
                                            "--schedule step", true, false};
    static const struct par_run_arm whole = {
        "schedule_prefill", "H2", "prompt in one call", "--schedule prefill --chunk 0", true, false};
    static const struct par_run_arm nocache = {"schedule_nocache",   "H2", "every step runs the whole sequence again",
                                               "--schedule nocache", true, false};
    static const struct par_run_arm slots = {"slot_reuse", "H2", "after longer sequences in both slots",
                                             "",           true, false};
    struct fwd_path_info info = {.size = sizeof info};
    r->o->cand->describe(&info);
    if (!info.uses_cache)
        return FWD_OK;
    bool promised = !info.chunks_change_bits, all = r->o->depth == PAR_FULL;
    FWD_TRY(par_run_dirty_slots(r, session, err));
    FWD_TRY(par_run_arm(r, session, &slots, r->o->schedule, r->o->chunk, err));
    FWD_TRY(run_schedule(r, session, sweep, promised, PAR_SCHEDULE_SWEEP, err));
    if (r->o->schedule != PAR_SCHEDULE_PREFILL || r->o->chunk)
        FWD_TRY(run_schedule(r, session, whole, promised, PAR_SCHEDULE_PREFILL, err));
    /* On a device one token and many go through different kernels: the arm is due there at any depth. */
    if ((all || (info.on_device && r->o->depth != PAR_QUICK)) && r->o->schedule != PAR_SCHEDULE_STEP)
        FWD_TRY(run_schedule(r, session, step, promised, PAR_SCHEDULE_STEP, err));
    if ((all || r->diverged || r->o->with_nocache) && r->o->schedule != PAR_SCHEDULE_NOCACHE)
        FWD_TRY(run_schedule(r, session, nocache, promised, PAR_SCHEDULE_NOCACHE, err));
    return FWD_OK;
}
