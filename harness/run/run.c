/* harness/run/run.c: the order of one differential run. What each step does is in the run_*.c beside it. */
#include "run/run.h"

#include "contract/hypothesis.h"
#include "localise/impact.h"
#include "run/run_ledger.h"
#include "run/run_state.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* Of a long sequence logits are kept in runs of neighbours: a path makes those of a run with one pass over its head. */
enum { MAX_LOGIT_POSITIONS = 128, LOGIT_RUN = 16 };

bool par_row_suspect(const struct par_op_row *row) {
    return par_row_accused(row) || (row->verdict == PAR_MISTRUSTED && row->n_over > 0);
}

double par_seconds(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void par_run_progress(const struct par_run *r, const char *what, int64_t done, int64_t total) {
    if (r->o->progress)
        r->o->progress(r->o->progress_ud, what, done, total);
}

static const char *const class_names[PAR_CLASS_COUNT] = {"embed", "norm", "act_quant", "matmul", "head",
                                                         "rope",  "kv",   "attention", "swiglu", "residual"};

const char *par_class_name(enum par_op_class c) {
    return class_names[c];
}

enum par_op_class par_class_of(enum fwd_op op) {
    switch (op) {
    case FWD_OP_INP_EMBD:
        return PAR_CLASS_EMBED;
    case FWD_OP_ATTN_NORM:
    case FWD_OP_FFN_NORM:
    case FWD_OP_RESULT_NORM:
        return PAR_CLASS_NORM;
    case FWD_OP_ATTN_NORM_Q8:
    case FWD_OP_KQV_OUT_Q8:
    case FWD_OP_FFN_NORM_Q8:
    case FWD_OP_FFN_SWIGLU_Q8:
    case FWD_OP_RESULT_NORM_Q8:
        return PAR_CLASS_ACT_QUANT;
    case FWD_OP_QCUR_ROPE:
    case FWD_OP_KCUR_ROPE:
        return PAR_CLASS_ROPE;
    case FWD_OP_K_CACHE:
    case FWD_OP_V_CACHE:
        return PAR_CLASS_KV;
    case FWD_OP_KQV_OUT:
        return PAR_CLASS_ATTENTION;
    case FWD_OP_FFN_SWIGLU:
        return PAR_CLASS_SWIGLU;
    case FWD_OP_FFN_INP:
    case FWD_OP_L_OUT:
        return PAR_CLASS_RESIDUAL;
    case FWD_OP_RESULT_OUTPUT:
        return PAR_CLASS_HEAD;
    default:
        return PAR_CLASS_MATMUL;
    }
}

double par_centred_distance(const float *ref, const float *got, int64_t n) {
    double mean_ref = 0, mean_got = 0, d2 = 0, r2 = 0;
    for (int64_t i = 0; i < n; i++) {
        mean_ref += (double)ref[i];
        mean_got += (double)got[i];
    }
    mean_ref /= (double)n;
    mean_got /= (double)n;
    for (int64_t i = 0; i < n; i++) {
        double a = (double)ref[i] - mean_ref, b = (double)got[i] - mean_got;
        d2 += (a - b) * (a - b);
        r2 += a * a;
    }
    return sqrt(d2 / r2);
}

/* ---- opening ---- */

struct fwd_knobs par_run_knobs(struct par_run *r) {
    struct fwd_knobs knobs = r->o->knobs;
    knobs.size = sizeof knobs;
    knobs.n_ctx = knobs.n_ctx > r->n_ids + 1 ? knobs.n_ctx : r->n_ids + 1;
    knobs.n_batch = r->n_ids;
    knobs.n_seq = 2;
    r->planted = (struct par_fault_set){r->o->faults, r->o->n_faults};
    par_fault_set_hook(&r->planted, &knobs);
    return knobs;
}

enum fwd_status par_run_plant_faults(struct par_run *r, enum par_fault_role role, const struct fwd_path *path,
                                     struct fwd_session *session, struct fwd_error *err) {
    r->planted = (struct par_fault_set){r->o->faults, r->o->n_faults};
    return par_fault_set_plant(&r->planted, role, path, session, err);
}

enum fwd_status par_run_plant_shared(const struct par_run *r, const struct fwd_path *path, struct fwd_session *session,
                                     struct fwd_error *err) {
    for (int i = 0; i < r->o->n_faults; i++)
        if (r->o->faults[i].row->shared)
            FWD_TRY(par_fault_plant(&r->o->faults[i], path, session, err));
    return FWD_OK;
}

enum fwd_status par_run_open_candidate(struct par_run *r, const struct fwd_knobs *knobs, struct fwd_session **session,
                                       struct fwd_error *err) {
    const struct fwd_path *path = r->o->cand;
    FWD_TRY(path->open(session, r->o->file, knobs, err));
    enum fwd_status rc = par_run_plant_faults(r, PAR_ROLE_CANDIDATE, path, *session, err);
    if (rc != FWD_OK) {
        path->close(*session);
        *session = NULL;
    }
    return rc;
}

/* The candidate's own greedy continuation: these ids are what decode steps are forced to, on both sides. It runs in the
 * second slot and first of all: what it computed there no other sequence can have touched. */
static enum fwd_status choose_decode_ids(struct par_run *r, struct fwd_session *session, struct fwd_error *err) {
    const struct par_run_options *o = r->o;
    struct par_drive drive = {
        .path = o->cand, .session = session, .seq = 1, .schedule = o->schedule, .chunk = o->chunk};
    FWD_TRY(par_drive_prompt(&drive, r->ids, r->n_prompt, r->logits_work, err));
    for (int i = 0;; i++) {
        int32_t best = par_argmax(r->logits_work, r->n_vocab);
        r->greedy_hash[i] = fwd_hash64(r->logits_work, (size_t)r->n_vocab * sizeof(float));
        r->greedy[i] = best < 0 ? 0 : best;
        if (i == o->n_decode)
            return FWD_OK;
        par_run_progress(r, "candidate: greedy steps", i, o->n_decode);
        r->ids[r->n_prompt + i] = r->greedy[i];
        FWD_TRY(par_drive_next(&drive, r->ids, r->n_prompt + i + 1, r->logits_work, err));
    }
}

static enum fwd_status allocate(struct par_run *r, struct fwd_error *err) {
    const struct par_run_options *o = r->o;
    int step = (r->n_ids + MAX_LOGIT_POSITIONS - 1) / MAX_LOGIT_POSITIONS;
    r->want = fwd_calloc((size_t)r->n_ids, 1);
    r->want_pos = fwd_calloc((size_t)r->n_ids, sizeof *r->want_pos);
    FWD_FAIL_IF(!r->want || !r->want_pos, FWD_ENOMEM, err, "run: no memory for %d positions", r->n_ids);
    for (int p = 0; p < r->n_ids; p++)
        if (p / LOGIT_RUN % step == 0 || p >= r->n_prompt - 1) {
            r->want[p] = 1;
            r->want_pos[r->n_want++] = p;
        }
    size_t rows = (size_t)r->n_want, vocab = (size_t)r->n_vocab;
    size_t work_rows = rows > (size_t)o->n_loss_ids ? rows : (size_t)o->n_loss_ids;
    r->logits_ref = fwd_alloc(rows * vocab, sizeof(float));
    r->logits_cand = fwd_alloc(rows * vocab, sizeof(float));
    r->logits_work = fwd_alloc(work_rows * vocab, sizeof(float));
    r->spread_flip = fwd_calloc(rows, sizeof(double));
    r->spread_distance = fwd_calloc(rows * 5, sizeof(double));
    r->greedy = fwd_calloc((size_t)o->n_decode + 1, sizeof *r->greedy);
    r->greedy_hash = fwd_calloc((size_t)o->n_decode + 1, sizeof *r->greedy_hash);
    FWD_FAIL_IF(!r->logits_ref || !r->logits_cand || !r->logits_work || !r->spread_flip || !r->spread_distance ||
                    !r->greedy || !r->greedy_hash,
                FWD_ENOMEM, err, "run: no memory for the logits of %d positions (%.0f MB)", r->n_want,
                12e-6 * (double)(rows * vocab));
    r->price = r->spread_distance + rows;
    r->floor = r->price + rows;
    r->f64_ref = r->floor + rows;
    r->f64_cand = r->f64_ref + rows;
    for (size_t i = 0; i < rows; i++)
        r->f64_ref[i] = r->f64_cand[i] = NAN;
    return FWD_OK;
}

static enum fwd_status set_up(struct par_run *r, struct fwd_error *err) {
    const struct par_run_options *o = r->o;
    FWD_FAIL_IF(o->n_prompt < 1, FWD_EINPUT, err, "run: a prompt of %d tokens, expected at least 1", o->n_prompt);
    FWD_TRY(par_drive_probe(o->ref, err));
    FWD_TRY(par_drive_probe(o->cand, err));
    FWD_TRY(par_spec_open(&r->spec, o->file, err));
    if (o->source) {
        FWD_TRY(par_spec_open(&r->source, o->source, err));
        FWD_TRY(par_run_ledger_check_source(r->spec, r->source, err));
    }
    const struct par_spec_config *config = par_spec_config(r->spec);
    r->n_vocab = config->n_vocab;
    for (int i = 0; i < o->n_prompt; i++)
        FWD_FAIL_IF(o->ids[i] < 0 || o->ids[i] >= r->n_vocab, FWD_ERANGE, err,
                    "token %d of the prompt: id %d, the vocabulary has %lld", i, o->ids[i], (long long)r->n_vocab);
    FWD_TRY(fwd_pool_create(&r->pool, o->knobs.n_threads, err));
    r->n_prompt = o->n_prompt;
    r->n_ids = o->n_prompt + o->n_decode;
    r->ids = fwd_calloc((size_t)r->n_ids, sizeof *r->ids);
    r->text = par_text_create();
    FWD_FAIL_IF(!r->ids || !r->text, FWD_ENOMEM, err, "run: no memory for %d ids", r->n_ids);
    r->report->text = r->text;
    memcpy(r->ids, o->ids, (size_t)o->n_prompt * sizeof *r->ids);
    FWD_TRY(allocate(r, err));
    FWD_TRY(par_sha256_start(&r->sha, o->file, err));
    struct fwd_knobs knobs = par_run_knobs(r);
    FWD_TRY(par_fault_set_place(&r->planted, r->n_prompt, o->cand, o->file, config, &knobs, err));
    return par_store_create(&r->store, config->n_layer, r->n_ids, err);
}

static void tear_down(struct par_run *r) {
    if (r->sha)
        (void)par_sha256_finish(r->sha, NULL, NULL);
    par_store_free(r->store);
    par_spec_close(r->spec);
    par_spec_close(r->source);
    par_evidence_free(&r->evidence_ref);
    par_evidence_free(&r->evidence_cand);
    fwd_pool_free(r->pool);
    fwd_free(r->ids);
    fwd_free(r->want);
    fwd_free(r->want_pos);
    fwd_free(r->logits_ref);
    fwd_free(r->logits_cand);
    fwd_free(r->logits_work);
    fwd_free(r->spread_flip);
    fwd_free(r->spread_distance);
    fwd_free(r->greedy);
    fwd_free(r->greedy_hash);
}

/* ---- the order ---- */

static enum fwd_status measure(struct par_run *r, struct fwd_session **session, struct fwd_error *err) {
    struct fwd_knobs knobs = par_run_knobs(r);
    double t[8];
    t[0] = par_seconds();
    par_run_progress(r, "candidate: opening", 0, 1);
    FWD_TRY(par_run_open_candidate(r, &knobs, session, err));
    par_run_record_candidate(r, *session);
    FWD_TRY(choose_decode_ids(r, *session, err));
    t[1] = par_seconds();
    FWD_TRY(par_run_reference(r, err));
    t[2] = par_seconds();
    FWD_TRY(par_run_dirty_slots(r, *session, err)); /* what a stale row of another sequence does, the judge sees */
    FWD_TRY(par_run_candidate(r, *session, err));
    t[3] = par_seconds();
    FWD_TRY(par_run_spread(r, *session, err));
    FWD_TRY(par_run_adjudicate(r, err));
    t[4] = par_seconds();
    FWD_TRY(par_run_findings(r, err));
    par_run_figures(r); /* decides whether anything is wrong, which the next steps ask */
    FWD_TRY(par_run_arms_in_session(r, *session, err));
    t[5] = par_seconds();
    if (r->n_accused_cand) /* with nothing accused there is nothing to heal */
        FWD_TRY(par_run_impact(r, *session, err));
    t[6] = par_seconds();
    struct fwd_path_info info = {.size = sizeof info};
    r->o->cand->describe(&info);
    if (!info.shares) { /* two sets of packed weights at once would not fit the memory bound */
        r->o->cand->close(*session);
        *session = NULL;
    }
    FWD_TRY(par_run_arms_reopened(r, *session, err));
    if (*session)
        r->o->cand->close(*session);
    *session = NULL;
    FWD_TRY(par_run_cases(r, err));
    t[7] = par_seconds();
    for (int i = 0; i < 7; i++)
        r->seconds[i] = t[i + 1] - t[i];
    return FWD_OK;
}

enum fwd_status par_run(const struct par_run_options *options, struct par_report *report, struct par_figures *figures,
                        struct fwd_error *err) {
    struct par_run r = {.o = options, .report = report, .figures = figures};
    struct fwd_session *session = NULL;
    double start = par_seconds();
    enum fwd_status rc = set_up(&r, err);
    if (rc == FWD_OK)
        rc = measure(&r, &session, err);
    if (session)
        options->cand->close(session);
    if (rc == FWD_OK)
        par_run_figures(&r);
    if (rc == FWD_OK && options->hypotheses_dir)
        rc = par_hypotheses_eval(options->hypotheses_dir, options->command, figures, report, err);
    r.seconds[7] = par_seconds() - start;
    if (rc == FWD_OK)
        rc = par_run_fill_report(&r, err);
    par_run_progress(&r, "", -1, 0);
    tear_down(&r);
    return rc;
}
