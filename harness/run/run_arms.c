/* harness/run/run_arms.c: the arms table. One knob of the candidate is flipped at a time, on the real ids. Where
 * canonical arithmetic promises the same bits, the hash of the logits says whether it kept the promise; where the base
 * run is diverged, each arm is judged again, to see whether the flip heals it. */
#include "run/run_state.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct arm {
    const char *id, *hypothesis, *what, *option;
    bool same_bits; /* promised */
    bool route;     /* the same op by other code: variant, threads, form of the head */
};

static struct par_report_arm *add_arm(struct par_run *r, const struct arm *arm) {
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

static void record(struct par_run *r, const struct arm *arm, const struct par_pass *pass, bool judged) {
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
    if (judged)
        set_figure(r, arm->id, "heals", pass->n_accused == 0);
    if (judged && arm->route) {
        double run = 0, heal = 0;
        (void)par_figures_get(r->figures, "routes.run", &run);
        (void)par_figures_get(r->figures, "routes.heal", &heal);
        par_figures_set(r->figures, "routes.run", run + 1);
        par_figures_set(r->figures, "routes.heal", heal + (pass->n_accused == 0));
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

/* One flipped knob of an open session: judged when an op of the base run is accused, else only hashed. */
static enum fwd_status run_arm(struct par_run *r, struct fwd_session *session, const struct arm *arm,
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

enum fwd_status par_run_arms_in_session(struct par_run *r, struct fwd_session *session, struct fwd_error *err) {
    static const struct arm sweep = {"schedule_sweep",   "H2", "prompt in chunks of 1, 2, .. 9 and a ragged tail",
                                     "--schedule sweep", true, false};
    static const struct arm step = {"schedule_step",   "H2", "prompt one token at a time",
                                    "--schedule step", true, false};
    static const struct arm whole = {
        "schedule_prefill", "H2", "prompt in one call", "--schedule prefill --chunk 0", true, false};
    static const struct arm nocache = {"schedule_nocache",   "H2", "every step runs the whole sequence again",
                                       "--schedule nocache", true, false};
    static const struct arm slots = {"slot_reuse", "H2", "after longer sequences in both slots", "", true, false};
    struct fwd_path_info info;
    r->o->cand->describe(&info);
    if (!info.uses_cache)
        return FWD_OK;
    FWD_TRY(par_run_dirty_slots(r, session, err));
    FWD_TRY(run_arm(r, session, &slots, r->o->schedule, r->o->chunk, err));
    FWD_TRY(run_arm(r, session, &sweep, PAR_SCHEDULE_SWEEP, 0, err));
    if (r->o->schedule != PAR_SCHEDULE_PREFILL || r->o->chunk)
        FWD_TRY(run_arm(r, session, &whole, PAR_SCHEDULE_PREFILL, 0, err));
    if (r->o->depth == PAR_FULL && r->o->schedule != PAR_SCHEDULE_STEP)
        FWD_TRY(run_arm(r, session, &step, PAR_SCHEDULE_STEP, 0, err));
    if ((r->o->depth == PAR_FULL || r->diverged || r->o->with_nocache) && r->o->schedule != PAR_SCHEDULE_NOCACHE)
        FWD_TRY(run_arm(r, session, &nocache, PAR_SCHEDULE_NOCACHE, 0, err));
    return FWD_OK;
}

static enum fwd_status reopened(struct par_run *r, const struct arm *arm, const struct fwd_knobs *knobs,
                                struct fwd_error *err) {
    struct fwd_session *session;
    FWD_TRY(par_run_open_candidate(r, knobs, &session, err));
    enum fwd_status rc = run_arm(r, session, arm, r->o->schedule, r->o->chunk, err);
    r->o->cand->close(session);
    return rc;
}

/* A fault may need the knob that an arm flips (the transposed head exists only where the head is F32): then the flipped
 * route is free of it, which is what the arm is to show. */
static enum fwd_status reopened_head(struct par_run *r, const struct arm *arm, const struct fwd_knobs *knobs,
                                     struct fwd_error *err) {
    struct par_run without = *r;
    struct par_run_options options = *r->o;
    struct par_fault kept[8];
    int n = 0;
    for (int i = 0; i < options.n_faults && n < 8; i++)
        if (options.faults[i].op != FWD_OP_RESULT_OUTPUT || knobs->head == r->o->knobs.head)
            kept[n++] = options.faults[i];
    options.faults = kept;
    options.n_faults = n;
    without.o = &options;
    enum fwd_status rc = reopened(&without, arm, knobs, err);
    r->report = without.report;
    return rc;
}

enum fwd_status par_run_arms_reopened(struct par_run *r, struct fwd_error *err) {
    static const struct arm variant = {"variant", "H4", "the plainer kernels of this CPU", "--caps avx2", true, true};
    static const struct arm variant_ref = {"variant_ref", "H4", "the reference kernels", "--caps ref", true, true};
    static const struct arm threads = {"threads", "H4", "one thread", "--threads 1", true, true};
    struct arm head = {"head", "H4", "the other form of the output head", "--head f32", false, true};
    struct arm kv = {"kv", "H2", "the other type of KV cache", "--kv f32", false, false};
    struct fwd_knobs base = par_run_knobs(r), knobs;
    if (r->o->depth == PAR_QUICK && !r->diverged)
        return FWD_OK;
    if ((fwd_cpu_detect() & FWD_CPU_AVX512) && !base.caps && !base.force) {
        knobs = base;
        knobs.caps = "avx2";
        FWD_TRY(reopened(r, &variant, &knobs, err));
    } else if (!base.force && (!base.caps || strcmp(base.caps, "ref") != 0) && r->o->depth == PAR_FULL) {
        knobs = base;
        knobs.caps = "ref";
        FWD_TRY(reopened(r, &variant_ref, &knobs, err));
    }
    if (fwd_pool_size(r->pool) > 1) {
        knobs = base;
        knobs.n_threads = 1;
        FWD_TRY(reopened(r, &threads, &knobs, err));
    }
    knobs = base;
    knobs.head = base.head == FWD_HEAD_F32 ? FWD_HEAD_QUANT : FWD_HEAD_F32;
    head.option = knobs.head == FWD_HEAD_F32 ? "--head f32" : "--head quant";
    FWD_TRY(reopened_head(r, &head, &knobs, err));
    knobs = base;
    knobs.kv_type = base.kv_type == FWD_F32 ? FWD_F16 : FWD_F32;
    kv.option = knobs.kv_type == FWD_F32 ? "--kv f32" : "--kv f16";
    return reopened(r, &kv, &knobs, err);
}
