/* harness/run/run_adjudicate.c: which side is nearer to the truth: the logits of both paths against path f64, which
 * computes the reference's arithmetic in double. Where both say the same within the spread there is nothing to decide,
 * and f64 runs only for a full report; where they do not, the side that f64 leaves alone is the wrong one. */
#include "run/run_state.h"

#include <math.h>
#include <string.h>

static enum fwd_status run_f64(struct par_run *r, const struct fwd_path *path, struct fwd_error *err) {
    struct fwd_knobs knobs = par_run_knobs(r);
    struct fwd_session *session;
    knobs.n_ctx = r->n_ids;
    knobs.n_seq = 1;
    knobs.force = NULL;
    knobs.act = NULL;
    knobs.head = FWD_HEAD_QUANT;
    par_drive_fit_knobs(path, &knobs);
    FWD_TRY(path->open(&session, r->o->file, &knobs, err));
    struct par_drive drive = {.path = path, .session = session, .schedule = PAR_SCHEDULE_NOCACHE};
    par_run_progress(r, "f64, to decide between the sides", 0, 1);
    enum fwd_status rc = par_run_plant_shared(r, path, session, err);
    if (rc == FWD_OK)
        rc = par_drive_run(&drive, r->ids, r->n_prompt, r->n_ids, r->want, r->logits_work, err);
    path->close(session);
    return rc;
}

static bool is_flip_beyond(const float *ref, const float *got, int64_t n, double spread) {
    int32_t top_ref = par_argmax(ref, n), top_got = par_argmax(got, n);
    if (top_ref < 0 || top_got < 0)
        return true;
    return top_ref != top_got && !((double)ref[top_ref] - (double)ref[top_got] <= spread);
}

/* Is anything accused, or any position's logits outside the spread? */
static bool is_open(const struct par_run *r) {
    if (r->n_accused_ref + r->n_accused_cand > 0 || r->n_spread == 0)
        return true;
    for (int i = 0; i < r->n_want; i++) {
        const float *ref = r->logits_ref + (int64_t)i * r->n_vocab, *got = r->logits_cand + (int64_t)i * r->n_vocab;
        if (!(par_centred_distance(ref, got, r->n_vocab) <= r->spread_distance[i]) ||
            is_flip_beyond(ref, got, r->n_vocab, r->spread_flip[i]))
            return true;
    }
    return false;
}

enum fwd_status par_run_adjudicate(struct par_run *r, struct fwd_error *err) {
    const struct fwd_path *path = fwd_path_find("f64");
    if (!path || r->o->depth == PAR_QUICK || (r->o->depth == PAR_DEFAULT && !is_open(r)))
        return FWD_OK;
    const float *truth = r->logits_work;
    if (path == r->o->ref)
        truth = r->logits_ref;
    else
        FWD_TRY(run_f64(r, path, err));
    double far_ref = 0, far_cand = 0, beyond_ref = 0, beyond_cand = 0;
    for (int i = 0; i < r->n_want; i++) {
        int64_t at = (int64_t)i * r->n_vocab;
        r->f64_ref[i] = par_centred_distance(truth + at, r->logits_ref + at, r->n_vocab);
        r->f64_cand[i] = par_centred_distance(truth + at, r->logits_cand + at, r->n_vocab);
        far_ref = fmax(far_ref, r->f64_ref[i]);
        far_cand = fmax(far_cand, r->f64_cand[i]);
        beyond_ref += !(r->f64_ref[i] <= r->spread_distance[i]);
        beyond_cand += !(r->f64_cand[i] <= r->spread_distance[i]);
    }
    par_figures_set(r->figures, "f64.positions", r->n_want);
    par_figures_set(r->figures, "f64.ref_distance_max", far_ref);
    par_figures_set(r->figures, "f64.cand_distance_max", far_cand);
    par_figures_set(r->figures, "f64.ref_beyond_spread", beyond_ref);
    par_figures_set(r->figures, "f64.cand_beyond_spread", beyond_cand);
    return FWD_OK;
}
