/* harness/run/run_spread.c: the explained spread at the logits. An ensemble of runs of a float path with the
 * candidate's activation format (quantise, dequantise), each nudged by seeded perturbations of one ulp, says how far
 * two *correct* runs of the declared numerics may be from the reference. It is made without looking at the candidate,
 * beyond its declaration. For a candidate on a device it is made on that device, where a float path serves there. */
#include "run/declared_act.h"
#include "run/run_state.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define ULP 0x1p-23

struct ensemble;
struct nudge {
    const struct ensemble *e;
    const struct par_run *r;
    uint64_t seed;
    int run;
    enum fwd_status rc;
    struct fwd_error *err;
};

/* The path that makes the ensemble, and what all its runs share. */
struct ensemble {
    struct par_run *r;
    const struct fwd_path *path;
    struct fwd_session *session;
    struct par_declared_act act;
    bool rounds;      /* inputs of products are rounded here, the path has no knob for it */
    bool by_override; /* the path's taps cannot be written */
    struct nudge nudge;
    int n_runs;
    double *lifts, *distances; /* [n_runs][n_want] */
    float *first; /* logits of run 0: the floor is how far the other runs, as correct as it, are from there */
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

/* Moves every value of a float view by one ulp of its row's own scale, up, down or not at all: what rounding in another
 * order may do to an op's result, small values in a row of large ones included. Then the rounding that was declared. */
static enum fwd_status nudge_view(const struct nudge *n, const struct fwd_view *view, struct fwd_error *err) {
    if (view->op == FWD_OP_ATTN_NORM)
        par_run_progress(n->r, "ensemble for the explained spread",
                         (int64_t)n->run * par_spec_config(n->r->spec)->n_layer + view->layer,
                         (int64_t)n->e->n_runs * par_spec_config(n->r->spec)->n_layer);
    if (view->dtype != FWD_F32 || view->op == FWD_OP_K_CACHE || view->op == FWD_OP_V_CACHE ||
        view->op == FWD_OP_RESULT_OUTPUT)
        return FWD_OK;
    struct nudge_rows rows = {n, view};
    fwd_pool_run(n->r->pool, nudge_rows, &rows);
    return n->e->rounds ? par_declared_act_round(&n->e->act, view, n->seed, err) : FWD_OK;
}

static int nudge_tap(void *ud, const struct fwd_view *view) {
    struct nudge *n = ud;
    n->rc = nudge_view(n, view, n->err);
    return n->rc != FWD_OK;
}

/* Where a path does not let taps be written, the ops themselves are overridden: those on the stream and before the
 * products, so that every product reads nudged values. */
static const enum fwd_op overridden[] = {FWD_OP_INP_EMBD, FWD_OP_ATTN_NORM,  FWD_OP_KQV_OUT, FWD_OP_FFN_INP,
                                         FWD_OP_FFN_NORM, FWD_OP_FFN_SWIGLU, FWD_OP_L_OUT,   FWD_OP_RESULT_NORM};

static enum fwd_status nudge_op(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    struct nudge *n = ud;
    FWD_TRY(call->builtin(call, err));
    return nudge_view(n, call->out, err);
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

/* The logits of one run, position by position. */
struct looked {
    const struct ensemble *e;
    int run;
};

static void look_at_rows(void *ctx, int thread, int n_threads) {
    const struct looked *l = ctx;
    const struct ensemble *e = l->e;
    struct par_run *r = e->r;
    for (int i = thread; i < r->n_want; i += n_threads) {
        int64_t at = (int64_t)i * r->n_vocab, slot = (int64_t)l->run * r->n_want + i;
        const float *ref = r->logits_ref + at, *got = r->logits_work + at;
        e->lifts[slot] = largest_lift(ref, got, r->n_vocab);
        e->distances[slot] = par_centred_distance(ref, got, r->n_vocab);
        r->price[i] += e->distances[slot] / e->n_runs;
        if (l->run > 0)
            r->floor[i] = fmax(r->floor[i], par_centred_distance(e->first + at, got, r->n_vocab));
    }
}

static enum fwd_status one_run(struct ensemble *e, int run, struct fwd_error *err) {
    struct par_run *r = e->r;
    struct nudge *nudge = &e->nudge;
    *nudge = (struct nudge){e, r, mix(0x70617269747931u + (uint64_t)run), run, FWD_OK, err};
    struct par_drive drive = {.path = e->path,
                              .session = e->session,
                              .schedule = PAR_SCHEDULE_PREFILL,
                              .tap = e->by_override ? NULL : nudge_tap,
                              .tap_ud = nudge};
    /* The whole sequence in one call: causality makes its rows those of any schedule. */
    enum fwd_status rc = par_drive_run(&drive, r->ids, r->n_ids, r->n_ids, r->want, r->logits_work, err);
    FWD_TRY(nudge->rc != FWD_OK ? nudge->rc : rc);
    struct looked looked = {e, run};
    fwd_pool_run(r->pool, look_at_rows, &looked);
    if (run == 0)
        memcpy(e->first, r->logits_work, (size_t)r->n_want * (size_t)r->n_vocab * sizeof *e->first);
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

static bool is_float_path(const struct fwd_path *path, bool on_device) {
    struct fwd_path_info info = {.size = sizeof info};
    struct fwd_error why;
    path->describe(&info);
    return info.on_device == on_device && !info.quantised && !info.chunks_change_bits && path->probe(&why) == FWD_OK;
}

/* Where a candidate on a device has a float path beside it, that; else f32. */
static const struct fwd_path *choose_path(bool on_device) {
    const struct fwd_path *f32_cuda = fwd_path_find("f32-cuda");
    if (on_device && f32_cuda && is_float_path(f32_cuda, true))
        return f32_cuda;
    return fwd_path_find("f32");
}

static enum fwd_status open_ensemble(struct ensemble *e, const struct fwd_session *cand, struct fwd_error *err) {
    struct par_run *r = e->r;
    struct fwd_path_info info = {.size = sizeof info}, own = {.size = sizeof own};
    struct fwd_knobs knobs = par_run_knobs(r);
    char act[64];
    r->o->cand->describe(&info);
    e->path->describe(&own);
    knobs.n_ctx = r->n_ids;
    knobs.n_seq = 1;
    knobs.force = NULL;
    knobs.act = NULL;
    par_drive_fit_knobs(e->path, &knobs);
    e->act = (struct par_declared_act){r->o->cand, cand, r->pool};
    /* The reference has the formats of the CPU's quantised path as a knob; all others are rounded to here. */
    e->rounds = own.on_device || !info.quantised || !info.same_bits_as || strcmp(info.same_bits_as, "q4k-cpu") != 0;
    (void)snprintf(act, sizeof act, "as:%s", info.same_bits_as ? info.same_bits_as : "");
    if (!e->rounds)
        knobs.act = act;
    FWD_TRY(e->path->open(&e->session, r->o->file, &knobs, err));
    e->by_override = own.taps[FWD_OP_ATTN_NORM] != FWD_TAP_WRITE;
    for (size_t i = 0; e->by_override && i < sizeof overridden / sizeof *overridden; i++)
        FWD_TRY(e->path->override(e->session, overridden[i], -1, nudge_op, &e->nudge, err));
    return par_run_plant_shared(r, e->path, e->session, err);
}

static enum fwd_status run_ensemble(struct ensemble *e, struct fwd_error *err) {
    struct par_run *r = e->r;
    for (int run = 0; run < e->n_runs; run++)
        FWD_TRY(one_run(e, run, err));
    r->n_spread = e->n_runs;
    par_figures_set(r->figures, "spread.runs", e->n_runs);
    par_figures_set(r->figures, "spread.flip_factor", combine(e->lifts, e->n_runs, r->n_want, r->spread_flip));
    par_figures_set(r->figures, "spread.distance_factor",
                    combine(e->distances, e->n_runs, r->n_want, r->spread_distance));
    par_run_add_proof(r, "the spread is another path's", PAR_HELD,
                      par_text_printf(r->text, "%d runs of %s with the inputs of products as %s declares them",
                                      e->n_runs, e->path->name, r->o->cand->name));
    return FWD_OK;
}

enum fwd_status par_run_spread(struct par_run *r, const struct fwd_session *cand, struct fwd_error *err) {
    struct fwd_path_info info = {.size = sizeof info};
    r->o->cand->describe(&info);
    struct ensemble e = {.r = r, .path = choose_path(info.on_device), .n_runs = par_spread_runs(r->o->depth)};
    if (!e.path)
        return FWD_OK;
    size_t n = (size_t)e.n_runs * (size_t)r->n_want;
    double *values = fwd_calloc(n * 2, sizeof *values);
    FWD_FAIL_IF(!values, FWD_ENOMEM, err, "run: no memory for the spread of %d positions", r->n_want);
    e.lifts = values;
    e.distances = values + n;
    e.first = fwd_alloc((size_t)r->n_want * (size_t)r->n_vocab, sizeof *e.first);
    enum fwd_status rc = e.first
                             ? open_ensemble(&e, cand, err)
                             : fwd_fail(err, FWD_ENOMEM, __FILE__, __LINE__, "run: no memory for the logits of a run");
    if (rc == FWD_OK)
        rc = run_ensemble(&e, err);
    if (rc == FWD_ETYPE) { /* a rounding that nothing here knows how to make: no spread, and the report says so */
        par_run_add_proof(r, "the spread is another path's", PAR_UNMEASURED,
                          par_text_printf(r->text, "not measured: %s", err ? err->message : ""));
        rc = FWD_OK;
    }
    if (e.session)
        e.path->close(e.session);
    fwd_free(e.first);
    fwd_free(values);
    return rc;
}
