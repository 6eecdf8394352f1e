/* harness/run/run_spread.c: the explained spread at the logits. An ensemble of runs of the reference with the
 * candidate's activation format (quantise, dequantise), each nudged by seeded perturbations of one ulp, says how far
 * two *correct* runs of the declared numerics may be from the reference. It is made without looking at the candidate.
 */
#include "run/run_state.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define ULP 0x1p-23

struct nudge {
    const struct par_run *r;
    uint64_t seed;
    int run, n_runs;
};

/* A counter-based coin: the same for the same seed, layer, position and index. */
static uint64_t mix(uint64_t x) {
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

struct nudge_rows {
    const struct nudge *n;
    const struct fwd_view *view;
};

static void nudge_rows(void *ctx, int thread, int n_threads) {
    const struct nudge_rows *w = ctx;
    const struct fwd_view *view = w->view;
    uint64_t seed = w->n->seed ^ mix((uint64_t)view->op << 32 | (uint64_t)(view->layer + 1));
    for (int i = thread; i < view->n_pos; i += n_threads) {
        float *row = (float *)(void *)((char *)view->data + view->nb[1] * i);
        double square = 0;
        for (int64_t k = 0; k < view->ne[0]; k++)
            square += (double)row[k] * (double)row[k];
        float scale = (float)(ULP * sqrt(square / (double)view->ne[0]));
        uint64_t coins = 0;
        for (int64_t k = 0; k < view->ne[0]; k++) {
            if (k % 32 == 0)
                coins = mix(seed ^ mix((uint64_t)(view->pos0 + i) << 32 | (uint64_t)k));
            float step = fmaxf(scale, (float)ULP * fabsf(row[k]));
            row[k] += (float)((int)(coins & 3) % 3 - 1) * step;
            coins >>= 2;
        }
    }
}

/* Moves every value of every float tap by one ulp of its row's own scale, up, down or not at all: what rounding in
 * another order may do to an op's result, small values in a row of large ones included. */
static int nudge_tap(void *ud, const struct fwd_view *view) {
    const struct nudge *n = ud;
    if (view->op == FWD_OP_ATTN_NORM)
        par_run_progress(n->r, "ensemble for the explained spread",
                         (int64_t)n->run * par_spec_config(n->r->spec)->n_layer + view->layer,
                         (int64_t)n->n_runs * par_spec_config(n->r->spec)->n_layer);
    if (view->dtype != FWD_F32 || view->op == FWD_OP_K_CACHE || view->op == FWD_OP_V_CACHE ||
        view->op == FWD_OP_RESULT_OUTPUT)
        return 0;
    struct nudge_rows rows = {n, view};
    fwd_pool_run(n->r->pool, nudge_rows, &rows);
    return 0;
}

int par_spread_runs(enum par_depth depth) {
    return depth == PAR_QUICK ? 4 : 8;
}

/* max_j (e_j - e_1) of one position, e = got - ref, 1 = the reference's best token. */
static double largest_lift(const float *ref, const float *got, int64_t n) {
    int32_t top = par_argmax(ref, n);
    if (top < 0)
        return NAN;
    double base = (double)got[top] - (double)ref[top], best = 0;
    for (int64_t j = 0; j < n; j++) {
        double lift = (double)got[j] - (double)ref[j] - base;
        best = lift > best ? lift : best;
    }
    return best;
}

/* first: the logits of run 0, filled by it: the floor is how far the other runs, as correct as it, are from there. */
static enum fwd_status one_run(struct par_run *r, struct fwd_session *session, int run, int n_runs, double *lifts,
                               double *distances, float *first, struct fwd_error *err) {
    struct nudge nudge = {r, mix(0x70617269747931u + (uint64_t)run), run, n_runs};
    struct par_drive drive = {.path = fwd_path_find("f32"),
                              .session = session,
                              .schedule = PAR_SCHEDULE_NOCACHE,
                              .tap = nudge_tap,
                              .tap_ud = &nudge};
    FWD_TRY(par_drive_run(&drive, r->ids, r->n_prompt, r->n_ids, r->want, r->logits_work, err));
    for (int i = 0; i < r->n_want; i++) {
        int64_t at = (int64_t)i * r->n_vocab;
        const float *ref = r->logits_ref + at, *got = r->logits_work + at;
        lifts[run * r->n_want + i] = largest_lift(ref, got, r->n_vocab);
        distances[run * r->n_want + i] = par_centred_distance(ref, got, r->n_vocab);
        r->price[i] += distances[run * r->n_want + i] / n_runs;
        if (run > 0)
            r->floor[i] = fmax(r->floor[i], par_centred_distance(first + at, got, r->n_vocab));
    }
    if (run == 0)
        memcpy(first, r->logits_work, (size_t)r->n_want * (size_t)r->n_vocab * sizeof *first);
    return FWD_OK;
}

/* A position's spread is the largest value of its own n runs, times a factor that all positions share: the largest
 * ratio, anywhere in the ensemble, of one run's value to the largest of the other runs at that position. So a position
 * on which few runs happen to agree is not judged by its luck, and the factor is as large as the model's own tails are
 * heavy. */
static double combine(const double *values, int n_runs, int n, double *spread) {
    double factor = 1;
    for (int i = 0; i < n; i++) {
        spread[i] = 0;
        for (int run = 0; run < n_runs; run++) {
            double others = 0, own = values[run * n + i];
            for (int k = 0; k < n_runs; k++)
                others = k != run ? fmax(others, values[k * n + i]) : others;
            spread[i] = fmax(spread[i], own);
            if (others > 0)
                factor = fmax(factor, own / others);
        }
    }
    factor *= PAR_SPREAD_SAFETY;
    for (int i = 0; i < n; i++)
        spread[i] *= factor;
    return factor;
}

enum fwd_status par_run_spread(struct par_run *r, struct fwd_error *err) {
    const struct fwd_path *path = fwd_path_find("f32");
    struct fwd_path_info info;
    char act[64];
    struct fwd_knobs knobs = par_run_knobs(r);
    struct fwd_session *session = NULL;
    r->o->cand->describe(&info);
    if (!path)
        return FWD_OK;
    (void)snprintf(act, sizeof act, "as:%s", r->o->cand->name);
    knobs.n_ctx = r->n_ids;
    knobs.n_seq = 1;
    knobs.force = NULL;
    par_drive_fit_knobs(path, &knobs);
    knobs.act = info.quantised ? act : NULL;
    int n_runs = par_spread_runs(r->o->depth);
    double *values = fwd_calloc((size_t)n_runs * (size_t)r->n_want * 2, sizeof *values);
    FWD_FAIL_IF(!values, FWD_ENOMEM, err, "run: no memory for the spread of %d positions", r->n_want);
    double *lifts = values, *distances = values + (size_t)n_runs * (size_t)r->n_want;
    float *first = fwd_alloc((size_t)r->n_want * (size_t)r->n_vocab, sizeof *first);
    enum fwd_status rc = first
                             ? path->open(&session, r->o->file, &knobs, err)
                             : fwd_fail(err, FWD_ENOMEM, __FILE__, __LINE__, "run: no memory for the logits of a run");
    if (rc == FWD_OK)
        rc = par_run_plant_shared(r, path, session, err);
    for (int run = 0; rc == FWD_OK && run < n_runs; run++)
        rc = one_run(r, session, run, n_runs, lifts, distances, first, err);
    if (rc == FWD_OK) {
        r->n_spread = n_runs;
        par_figures_set(r->figures, "spread.runs", n_runs);
        par_figures_set(r->figures, "spread.flip_factor", combine(lifts, n_runs, r->n_want, r->spread_flip));
        par_figures_set(r->figures, "spread.distance_factor",
                        combine(distances, n_runs, r->n_want, r->spread_distance));
    }
    if (session)
        path->close(session);
    fwd_free(first);
    fwd_free(values);
    return rc;
}
