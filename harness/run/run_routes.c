/* harness/run/run_routes.c: the arms for which a session is opened anew: other kernels, threads, launches, forms of
 * head and cache, and the other paths that promise the candidate's bits. What means nothing to the candidate (threads
 * on a device, launches on a CPU) is no arm of it; what cannot run here is one, UNTESTED with the reason. */
#include "run/run_state.h"

#include <stdio.h>
#include <string.h>

/* What all arms of one run share. */
struct routes {
    struct par_run *r;
    struct fwd_knobs base;
    struct fwd_path_info info; /* of the candidate */
};

static enum fwd_status reopened(struct par_run *r, const struct par_run_arm *arm, const struct fwd_knobs *knobs,
                                struct fwd_error *err) {
    struct fwd_session *session;
    par_run_progress(r, arm->what, 0, 1);
    FWD_TRY(par_run_open_candidate(r, knobs, &session, err));
    enum fwd_status rc = par_run_arm(r, session, arm, r->o->schedule, r->o->chunk, err);
    r->o->cand->close(session);
    return rc;
}

/* The run again with those of its faults for which keep says so. */
struct without {
    struct par_run run;
    struct par_run_options options;
    struct par_fault faults[PAR_MOST_FAULTS];
};

static void leave_out(const struct par_run *r, struct without *out, bool (*keep)(const struct par_fault *f)) {
    int n = 0;
    out->run = *r;
    out->options = *r->o;
    for (int i = 0; i < r->o->n_faults && n < PAR_MOST_FAULTS; i++)
        if (keep(&r->o->faults[i]))
            out->faults[n++] = r->o->faults[i];
    out->options.faults = out->faults;
    out->options.n_faults = n;
    out->run.o = &out->options;
}

static bool not_in_head(const struct par_fault *f) {
    return f->op != FWD_OP_RESULT_OUTPUT;
}

/* A fault may need the knob that an arm flips (the transposed head exists only where the head is F32): then the flipped
 * route is free of it, which is what the arm is to show. */
static enum fwd_status flip_head(const struct routes *w, struct fwd_error *err) {
    struct par_run_arm arm = {"head", "H4", "the other form of the output head", "--head f32", false, true};
    struct fwd_knobs knobs = w->base;
    struct without other;
    knobs.head = knobs.head == FWD_HEAD_F32 ? FWD_HEAD_QUANT : FWD_HEAD_F32;
    arm.option = knobs.head == FWD_HEAD_F32 ? "--head f32" : "--head quant";
    leave_out(w->r, &other, not_in_head);
    return reopened(&other.run, &arm, &knobs, err);
}

static enum fwd_status flip_kv(const struct routes *w, struct fwd_error *err) {
    struct par_run_arm arm = {"kv", "H2", "the other type of KV cache", "--kv f32", false, false};
    struct fwd_knobs knobs = w->base;
    knobs.kv_type = knobs.kv_type == FWD_F32 ? FWD_F16 : FWD_F32;
    arm.option = knobs.kv_type == FWD_F32 ? "--kv f32" : "--kv f16";
    return reopened(w->r, &arm, &knobs, err);
}

/* ---- on a CPU ---- */

static enum fwd_status on_cpu(const struct routes *w, struct fwd_error *err) {
    static const struct par_run_arm variant = {"variant",     "H4", "the plainer kernels of this CPU",
                                               "--caps avx2", true, true};
    static const struct par_run_arm variant_ref = {"variant_ref", "H4", "the reference kernels",
                                                   "--caps ref",  true, true};
    static const struct par_run_arm threads = {"threads", "H4", "one thread", "--threads 1", true, true};
    struct fwd_knobs knobs = w->base;
    const struct fwd_knobs *base = &w->base;
    if ((fwd_cpu_detect() & FWD_CPU_AVX512) && !base->caps && !base->force) {
        knobs.caps = "avx2";
        FWD_TRY(reopened(w->r, &variant, &knobs, err));
    } else if (!base->force && (!base->caps || strcmp(base->caps, "ref") != 0) && w->r->o->depth == PAR_FULL) {
        knobs.caps = "ref";
        FWD_TRY(reopened(w->r, &variant_ref, &knobs, err));
    }
    if (fwd_pool_size(w->r->pool) == 1)
        return FWD_OK;
    knobs = *base;
    knobs.n_threads = 1;
    return reopened(w->r, &threads, &knobs, err);
}

/* ---- on a device ---- */

/* Does the report name a kernel that fuses a step? */
static bool steps_fused(const struct routes *w) {
    for (int i = 0; i < w->r->report->n_variants; i++)
        if (!strncmp(w->r->report->variants[i].name, "step", 4))
            return !strncmp(w->r->report->variants[i].value, "fused", 5);
    return false;
}

static enum fwd_status on_device(const struct routes *w, struct fwd_error *err) {
    struct par_run_arm overlap = {
        "overlap",      "H4", "launches in plain order, none before the one before it has ended",
        "--no-overlap", true, true};
    struct par_run_arm fp8 = {"fp8_fast",   "H4",  "E4M3 products summed in the fast, narrow accumulator",
                              "--fp8-fast", false, true};
    static const struct par_run_arm unfused = {"unfused",          "H4", "a step's ops one by one, not fused",
                                               "--force step=ops", true, true};
    struct fwd_knobs knobs = w->base;
    if (w->info.overlaps) {
        knobs.no_overlap = !w->base.no_overlap;
        overlap.what = knobs.no_overlap ? overlap.what : "launches that may overlap";
        overlap.option = knobs.no_overlap ? overlap.option : "";
        FWD_TRY(reopened(w->r, &overlap, &knobs, err));
    }
    if (!w->base.force && steps_fused(w)) {
        knobs = w->base;
        knobs.force = "step=ops";
        FWD_TRY(reopened(w->r, &unfused, &knobs, err));
    }
    if (w->info.fp8) {
        knobs = w->base;
        knobs.fp8_fast = !w->base.fp8_fast;
        fp8.what = knobs.fp8_fast ? fp8.what : "E4M3 products summed in F32";
        fp8.option = knobs.fp8_fast ? fp8.option : "";
        FWD_TRY(reopened(w->r, &fp8, &knobs, err));
    }
    return FWD_OK;
}

/* ---- other paths with the same bits ---- */

static bool is_shared(const struct par_fault *f) {
    return f->row->shared;
}

/* On the candidate's own device its faulty ops are faulty here too, and what a launch plan breaks is not: another route
 * through the same code. On another device nothing of the candidate is: no route of it, but the promise of its bits. */
static enum fwd_status run_twin(const struct routes *w, const struct fwd_path *path, const struct fwd_path_info *info,
                                const struct par_run_arm *arm, struct fwd_error *err) {
    struct fwd_knobs knobs = w->base;
    const struct fwd_session *share =
        info->shares && w->info.shares && !strcmp(info->shares, w->info.shares) ? w->base.share : NULL;
    struct without other;
    bool near = info->on_device == w->info.on_device;
    par_drive_fit_knobs(path, &knobs);
    knobs.share = share;
    knobs.scribble = false;
    if (!near) {
        knobs.caps = knobs.force = NULL;
        leave_out(w->r, &other, is_shared);
    } else {
        other.run = *w->r;
        other.options = *w->r->o;
        other.run.o = &other.options;
    }
    other.options.cand = path;
    if (!near) /* any schedule has these bits: the one that is over soonest */
        other.run.n_prompt = other.run.n_ids;
    return reopened(&other.run, arm, &knobs, err);
}

static enum fwd_status twins(const struct routes *w, struct fwd_error *err) {
    int n;
    const struct fwd_path *const *all = fwd_paths(&n);
    for (int i = 0; i < n && w->info.same_bits_as; i++) {
        struct fwd_path_info info = {.size = sizeof info};
        struct fwd_error why = {.message = ""};
        all[i]->describe(&info);
        if (!strcmp(all[i]->name, w->r->o->cand->name) || !info.same_bits_as ||
            strcmp(info.same_bits_as, w->info.same_bits_as) != 0)
            continue;
        bool near = info.on_device == w->info.on_device;
        const struct par_run_arm arm = {
            par_text_printf(w->r->text, "path_%s", all[i]->name),
            "H4",
            par_text_printf(w->r->text, "path %s, which promises the same bits", all[i]->name),
            par_text_printf(w->r->text, "--paths %s", all[i]->name),
            true,
            near};
        if (all[i]->probe(&why) != FWD_OK)
            par_run_arm_untested(w->r, &arm, why.message);
        else
            FWD_TRY(run_twin(w, all[i], &info, &arm, err));
    }
    return FWD_OK;
}

enum fwd_status par_run_arms_reopened(struct par_run *r, const struct fwd_session *base, struct fwd_error *err) {
    struct routes w = {.r = r, .base = par_run_knobs(r), .info = {.size = sizeof w.info}};
    if (r->o->depth == PAR_QUICK && !r->diverged)
        return FWD_OK;
    r->o->cand->describe(&w.info);
    w.base.share = base;
    FWD_TRY(w.info.on_device ? on_device(&w, err) : on_cpu(&w, err));
    FWD_TRY(twins(&w, err));
    FWD_TRY(flip_head(&w, err));
    return flip_kv(&w, err);
}
