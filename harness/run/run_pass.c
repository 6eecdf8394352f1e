/* harness/run/run_pass.c: single passes of a run: the reference (stored and sampled by its judge), the candidate (every
 * op judged and held beside the reference), and the repeats that prove the measurement. */
#include "run/run_ledger.h"
#include "run/run_state.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Copies of what accused ops read and wrote: at most so much a side. */
#define EVIDENCE_BYTES ((size_t)96 << 20)

/* Parts that the comparison of a call with many positions is cut into. */
enum { FREE_RUN_PARTS = 16 };

struct numerics_of {
    const struct fwd_path *path;
    const struct fwd_session *session;
};

struct tap_work {
    struct par_run *r;
    struct par_judge *judge;          /* or NULL */
    struct numerics_of numerics;      /* for as long as the judge lives */
    struct par_metrics_acc **metrics; /* [n_ops], or NULL */
    bool keep;                        /* into the store */
    size_t evidence_bytes;
    struct par_run_ledger *ledger;                 /* or NULL */
    uint64_t *last_tap;                            /* [n_ids] hash of each row of the last tap, or NULL */
    struct par_metrics_acc *parts[FREE_RUN_PARTS]; /* with metrics */
    const char *what;
    const uint8_t *want; /* positions whose logits are wanted */
    bool whole;          /* the whole sequence goes in as one prompt */
    int n_ids;           /* of the sequence, maybe less than the run's */
    enum fwd_status rc;
    struct fwd_error *err;
};

static int op_index(const struct par_run *r, enum fwd_op op, int layer) {
    for (int i = 0; i < r->n_ops; i++)
        if (r->ops[i].op == op && r->ops[i].layer == layer)
            return i;
    return -1;
}

/* A call's rows beside the reference's, in parts that do not depend on the number of threads, so that sums do not. */
struct beside {
    struct tap_work *w;
    const struct fwd_view *view;
    struct par_metrics_acc *into; /* of the op, for a call of one part */
    int n_parts;
    enum fwd_status rc[FREE_RUN_PARTS];
};

static enum fwd_status compare_rows(const struct beside *b, int part, struct fwd_error *err) {
    struct par_run *r = b->w->r;
    const struct fwd_view *v = b->view;
    struct par_metrics_acc *acc = b->n_parts == 1 ? b->into : b->w->parts[part];
    int64_t begin, end;
    float *row = fwd_alloc((size_t)v->ne[0], sizeof *row);
    FWD_FAIL_IF(!row, FWD_ENOMEM, err, "run: no memory for a row of %lld values", (long long)v->ne[0]);
    fwd_range_split(v->n_pos, 1, part, b->n_parts, &begin, &end);
    enum fwd_status rc = FWD_OK;
    for (int64_t i = begin; rc == FWD_OK && i < end; i++) {
        int pos = v->pos0 + (int)i;
        if (par_store_width(r->store, v->op, v->layer, pos) != v->ne[0])
            continue;
        rc = par_store_get(r->store, v->op, v->layer, pos, row, err);
        const float *got = (const float *)(const void *)((const char *)v->data + v->nb[1] * i);
        if (rc == FWD_OK)
            par_metrics_add(acc, row, got, v->ne[0], (int64_t)pos * v->ne[0]);
    }
    fwd_free(row);
    return rc;
}

static void compare_parts(void *ctx, int thread, int n_threads) {
    struct beside *b = ctx;
    for (int part = thread; part < b->n_parts; part += n_threads)
        b->rc[part] = compare_rows(b, part, part == 0 ? b->w->err : NULL);
}

static enum fwd_status compare_free_run(struct tap_work *w, const struct fwd_view *v) {
    struct par_run *r = w->r;
    int index = op_index(r, v->op, v->layer);
    if (index < 0 || v->dtype != FWD_F32 || v->op == FWD_OP_K_CACHE || v->op == FWD_OP_V_CACHE)
        return FWD_OK;
    struct beside b = {.w = w, .view = v, .into = w->metrics[index], .n_parts = 1};
    if (v->n_pos >= FREE_RUN_PARTS)
        b.n_parts = FREE_RUN_PARTS;
    fwd_pool_run(b.n_parts > 1 ? r->pool : NULL, compare_parts, &b);
    for (int part = 0; part < b.n_parts; part++) {
        FWD_FAIL_IF(b.rc[part] != FWD_OK && part > 0, b.rc[part], w->err,
                    "run: a row of %s of layer %d cannot be read back", fwd_op_name(v->op), v->layer);
        FWD_TRY(b.rc[part]);
        if (b.n_parts > 1)
            par_metrics_take(b.into, w->parts[part]);
    }
    return FWD_OK;
}

static int on_tap(void *ud, const struct fwd_view *view) {
    struct tap_work *w = ud;
    struct par_run *r = w->r;
    r->n_views++;
    r->n_views_on_device += view->device != 0;
    if (view->op == FWD_OP_ATTN_NORM)
        par_run_progress(r, w->what, (int64_t)view->pos0 * par_spec_config(r->spec)->n_layer + view->layer,
                         (int64_t)r->n_ids * par_spec_config(r->spec)->n_layer);
    if (w->judge && par_judge_tap(w->judge, view) != 0)
        return 1;
    if (w->last_tap && view->op == FWD_OP_RESULT_OUTPUT && view->dtype == FWD_F32 && !view->device)
        for (int i = 0; i < view->n_pos; i++)
            w->last_tap[view->pos0 + i] =
                fwd_hash64((const char *)view->data + view->nb[1] * i, (size_t)view->ne[0] * sizeof(float));
    if (w->keep && view->op != FWD_OP_RESULT_OUTPUT)
        w->rc = par_store_put(r->store, view, w->err);
    if (w->rc == FWD_OK && w->metrics)
        w->rc = compare_free_run(w, view);
    if (w->rc == FWD_OK && w->ledger)
        w->rc = par_run_ledger_tap(w->ledger, view, w->err);
    return w->rc != FWD_OK;
}

static bool declared(void *ud, enum fwd_op op, int layer, struct fwd_numerics *out) {
    const struct numerics_of *n = ud;
    return n->path->numerics(n->session, op, layer, out);
}

/* One judged pass of an open session. */
static enum fwd_status judged_pass(struct tap_work *w, const struct par_drive *drive, int sample_every, int sample_at,
                                   float *logits, struct fwd_error *err) {
    struct par_run *r = w->r;
    w->numerics = (struct numerics_of){drive->path, drive->session};
    struct par_judge_options options = {.numerics = declared,
                                        .numerics_ud = &w->numerics,
                                        .sample_every = sample_every,
                                        .sample_at = sample_at,
                                        /* Position 0 and the last decode step are classes of their own. */
                                        .judge_also = w->evidence_bytes && sample_every != PAR_JUDGE_LAST,
                                        .also = {0, r->n_ids - 1},
                                        .pool = r->pool,
                                        .caps = r->o->judge_caps,
                                        .evidence_bytes = w->evidence_bytes,
                                        .bound = r->o->bound};
    FWD_TRY(par_judge_open(&w->judge, r->spec, &options, err));
    FWD_TRY(par_judge_seq_begin(w->judge, err));
    FWD_TRY(par_judge_tokens(w->judge, r->ids, w->n_ids, err));
    struct par_drive tapped = *drive;
    tapped.tap = on_tap;
    tapped.tap_ud = w;
    w->rc = FWD_OK;
    w->err = err;
    enum fwd_status rc =
        par_drive_run(&tapped, r->ids, w->whole ? w->n_ids : r->n_prompt, w->n_ids, w->want, logits, err);
    if (w->rc != FWD_OK)
        return w->rc; /* err is the tap's own */
    if (rc == FWD_ESTOPPED) {
        const struct par_op_row *rows;
        int n_rows;
        FWD_TRY(par_judge_rows(w->judge, &rows, &n_rows, err));
    }
    return rc;
}

static enum fwd_status make_op_rows(struct par_run *r, const struct par_op_row *rows, int n_rows,
                                    struct fwd_error *err) {
    r->ops = par_text_alloc(r->text, (size_t)n_rows * sizeof *r->ops);
    FWD_FAIL_IF(!r->ops, FWD_ENOMEM, err, "run: no memory for %d op rows", n_rows);
    r->n_ops = n_rows;
    for (int i = 0; i < n_rows; i++) {
        r->ops[i].op = rows[i].op;
        r->ops[i].layer = rows[i].layer;
    }
    return FWD_OK;
}

/* As --judge says it: a sample goes through the prompt's last position. */
static const char *sample_text(const struct par_run *r, int every) {
    return every == PAR_JUDGE_ALL    ? "all"
           : every == PAR_JUDGE_LAST ? "last"
                                     : par_text_printf(r->text, "sample:%d and both ends", every);
}

static void coverage_row(struct par_run *r, const char *path, const char *schedule, int every,
                         struct par_judge *judge) {
    int n_positions;
    uint64_t n_elements;
    par_judge_coverage(judge, &n_positions, &n_elements);
    struct par_report_coverage *rows = par_text_alloc(r->text, (size_t)(r->report->n_coverage + 1) * sizeof *rows);
    if (!rows)
        return;
    if (r->report->n_coverage)
        memcpy(rows, r->report->coverage, (size_t)r->report->n_coverage * sizeof *rows);
    rows[r->report->n_coverage++] =
        (struct par_report_coverage){path, schedule,
                                     par_text_printf(r->text, "positions judged, %s: %llu elements of all ops",
                                                     sample_text(r, every), (unsigned long long)n_elements),
                                     n_positions, r->n_ids};
    r->report->coverage = rows;
}

/* The coverage matrix of one pass: what the path declares, against what was judged. */
static void coverage_cells(struct par_run *r, const char *path, const char *schedule, struct par_judge *judge,
                           const struct par_op_row *rows, int n_rows) {
    struct par_report *p = r->report;
    struct par_report_cells *cells = par_text_alloc(r->text, (size_t)(p->n_cells + PAR_CLASS_COUNT) * sizeof *cells);
    if (!cells)
        return;
    if (p->n_cells)
        memcpy(cells, p->cells, (size_t)p->n_cells * sizeof *cells);
    for (int c = 0; c < PAR_CLASS_COUNT; c++)
        cells[p->n_cells + c] =
            (struct par_report_cells){path, schedule, par_class_name((enum par_op_class)c), {0}, {0}};
    for (int i = 0; i < n_rows; i++) {
        struct par_report_cells *cell = &cells[p->n_cells + (int)par_class_of(rows[i].op)];
        for (int pos = 0; pos < r->n_ids && !rows[i].absent; pos++) {
            int at = pos == 0 ? PAR_POSITION_FIRST : pos < r->n_prompt ? PAR_POSITION_PROMPT : PAR_POSITION_DECODE;
            if (rows[i].op == FWD_OP_RESULT_OUTPUT && !r->want[pos])
                continue; /* no path computes logits that nobody asked for */
            cell->n_total[at]++;
            cell->n_done[at] += par_judge_covers(judge, i, pos);
        }
    }
    p->cells = cells;
    p->n_cells += PAR_CLASS_COUNT;
}

/* Mean negative log-likelihood of ids[1..] under logits of each position before. */
static double mean_loss(const float *logits, const int32_t *ids, int n, int64_t n_vocab) {
    double sum = 0;
    for (int i = 0; i + 1 < n; i++) {
        const float *row = logits + (int64_t)i * n_vocab;
        double top = (double)row[0], total = 0;
        for (int64_t j = 1; j < n_vocab; j++)
            top = (double)row[j] > top ? (double)row[j] : top;
        for (int64_t j = 0; j < n_vocab; j++)
            total += exp((double)row[j] - top);
        sum += top + log(total) - (double)row[ids[i + 1]];
    }
    return sum / (n - 1);
}

static enum fwd_status measure_loss(struct par_run *r, struct fwd_session *session, struct fwd_error *err) {
    const struct par_run_options *o = r->o;
    if (o->n_loss_ids < 2)
        return FWD_OK;
    par_run_progress(r, "reference: loss on the committed text", 0, 1);
    FWD_TRY(o->ref->seq_begin(session, 0, err));
    uint8_t *all = fwd_alloc((size_t)o->n_loss_ids, 1);
    FWD_FAIL_IF(!all, FWD_ENOMEM, err, "run: no memory for %d loss positions", o->n_loss_ids);
    memset(all, 1, (size_t)o->n_loss_ids);
    struct fwd_run_args args = {.size = sizeof args,
                                .tokens = o->loss_ids,
                                .n_tokens = o->n_loss_ids,
                                .want_logits = all,
                                .logits = r->logits_work};
    enum fwd_status rc = o->ref->run(session, &args, err);
    fwd_free(all);
    if (rc != FWD_OK)
        return rc;
    par_figures_set(r->figures, "ref.loss", mean_loss(r->logits_work, o->loss_ids, o->n_loss_ids, r->n_vocab));
    par_figures_set(r->figures, "ref.loss_uniform", log((double)r->n_vocab));
    return FWD_OK;
}

struct fwd_knobs par_run_reference_knobs(struct par_run *r) {
    struct fwd_knobs knobs = par_run_knobs(r);
    int longest = r->n_ids > r->o->n_loss_ids ? r->n_ids : r->o->n_loss_ids;
    knobs.n_batch = longest;
    knobs.n_ctx = longest;
    knobs.n_seq = 1;
    knobs.force = NULL;
    knobs.act = NULL;
    knobs.head = FWD_HEAD_QUANT;
    struct fwd_path_info info = {.size = sizeof info};
    r->o->ref->describe(&info);
    if (!info.quantised) /* a float reference with a cache keeps its rows as they are */
        knobs.kv_type = FWD_F32;
    par_drive_fit_knobs(r->o->ref, &knobs);
    knobs.plan_hook = NULL; /* a launch plan goes wrong in the candidate alone */
    knobs.scribble = false;
    return knobs;
}

static enum fwd_status reference_pass(struct par_run *r, struct fwd_session *session, struct tap_work *w,
                                      struct fwd_error *err) {
    const struct par_run_options *o = r->o;
    int every = o->judge_ref_every ? o->judge_ref_every : o->depth == PAR_FULL ? PAR_JUDGE_ALL : PAR_JUDGE_REF;
    /* One call: with or without a cache, causality makes its rows those of any schedule. */
    struct par_drive drive = {.path = o->ref, .session = session, .schedule = PAR_SCHEDULE_PREFILL};
    w->whole = true;
    w->keep = true;
    w->evidence_bytes = EVIDENCE_BYTES;
    w->what = "reference";
    /* The last position of the prompt is always among the judged ones. */
    FWD_TRY(judged_pass(w, &drive, every, (r->n_prompt - 1) % every, r->logits_ref, err));
    const struct par_op_row *rows;
    int n_rows;
    FWD_TRY(par_judge_rows(w->judge, &rows, &n_rows, err));
    FWD_TRY(make_op_rows(r, rows, n_rows, err));
    for (int i = 0; i < n_rows; i++) {
        r->ops[i].ref = rows[i];
        r->n_accused_ref += par_row_accused(&rows[i]);
    }
    par_judge_take_evidence(w->judge, &r->evidence_ref);
    coverage_row(r, o->ref->name, "one call", every, w->judge);
    coverage_cells(r, o->ref->name, "one call", w->judge, rows, n_rows);
    return measure_loss(r, session, err);
}

enum fwd_status par_run_reference(struct par_run *r, struct fwd_error *err) {
    struct fwd_knobs knobs = par_run_reference_knobs(r);
    struct fwd_session *session;
    struct tap_work w = {.r = r, .want = r->want, .n_ids = r->n_ids};
    FWD_TRY(r->o->ref->open(&session, r->o->file, &knobs, err));
    enum fwd_status rc = par_run_plant_faults(r, PAR_ROLE_REFERENCE, r->o->ref, session, err);
    if (rc == FWD_OK)
        rc = reference_pass(r, session, &w, err);
    par_judge_close(w.judge);
    r->o->ref->close(session);
    return rc;
}

enum fwd_status par_run_logits(struct par_run *r, struct fwd_session *session, enum par_schedule schedule, int chunk,
                               float *logits, uint64_t *hash, struct fwd_error *err) {
    struct par_drive drive = {.path = r->o->cand, .session = session, .schedule = schedule, .chunk = chunk};
    FWD_TRY(par_drive_run(&drive, r->ids, r->n_prompt, r->n_ids, r->want, logits, err));
    *hash = fwd_hash64(logits, (size_t)r->n_want * (size_t)r->n_vocab * sizeof *logits);
    return FWD_OK;
}

/* The worst accused row: the largest ratio, a non-finite one first. */
static void find_worst(struct par_run *r) {
    double best = -1;
    for (int i = 0; i < r->n_ops; i++) {
        const struct par_op_row *row = &r->ops[i].cand;
        if (!par_row_accused(row))
            continue;
        double ratio = row->verdict == PAR_NONFINITE ? HUGE_VAL : row->ratio_max;
        if (ratio > best) {
            best = ratio;
            r->worst = row->worst;
            r->worst_op = row->op;
            r->worst_layer = row->layer;
        }
    }
}

/* The middle and the end of the prompt, and the last decode step. */
static enum fwd_status open_ledger(struct par_run *r, struct tap_work *w, struct fwd_session *session,
                                   struct fwd_error *err) {
    const int pos[PAR_LEDGER_POSITIONS] = {(r->n_prompt - 1) / 2, r->n_prompt - 1, r->n_ids - 1};
    if (r->o->depth == PAR_QUICK && !r->source)
        return FWD_OK;
    w->numerics = (struct numerics_of){r->o->cand, session};
    return par_run_ledger_open(&w->ledger, r->spec, r->source, r->pool, declared, &w->numerics, pos,
                               PAR_LEDGER_POSITIONS, err);
}

/* Are the logits handed out those of the last tap? What happens to them behind it no judge of ops can see. */
static void compare_last_tap(struct par_run *r, const uint64_t *last_tap) {
    int n = 0, n_differ = 0;
    for (int i = 0; i < r->n_want; i++) {
        uint64_t tapped = last_tap[r->want_pos[i]];
        n += tapped != 0;
        n_differ += tapped &&
                    tapped != fwd_hash64(r->logits_cand + (int64_t)i * r->n_vocab, (size_t)r->n_vocab * sizeof(float));
    }
    par_figures_set(r->figures, "logits.behind_tap", n_differ);
    par_run_add_proof(r, "the logits are the last tap's",
                      n == 0          ? PAR_UNMEASURED
                      : n_differ == 0 ? PAR_HELD
                                      : PAR_DIVERGED,
                      par_text_printf(r->text, "%d of %d rows have the bits of result_output", n - n_differ, n));
}

static enum fwd_status candidate_pass(struct par_run *r, struct fwd_session *session, struct tap_work *w,
                                      struct fwd_error *err) {
    const struct par_run_options *o = r->o;
    struct par_drive drive = {.path = o->cand, .session = session, .schedule = o->schedule, .chunk = o->chunk};
    for (int i = 0; i < r->n_ops; i++)
        FWD_FAIL_IF(!(w->metrics[i] = par_metrics_begin()), FWD_ENOMEM, err, "run: no memory for metrics");
    for (int i = 0; i < FREE_RUN_PARTS; i++)
        FWD_FAIL_IF(!(w->parts[i] = par_metrics_begin()), FWD_ENOMEM, err, "run: no memory for metrics");
    w->what = "candidate, every op judged";
    w->evidence_bytes = EVIDENCE_BYTES;
    FWD_TRY(open_ledger(r, w, session, err));
    int every = o->judge_every ? o->judge_every : PAR_JUDGE_ALL;
    FWD_TRY(judged_pass(w, &drive, every, (r->n_prompt - 1) % every, r->logits_cand, err));
    compare_last_tap(r, w->last_tap);
    r->base_hash = fwd_hash64(r->logits_cand, (size_t)r->n_want * (size_t)r->n_vocab * sizeof(float));
    const struct par_op_row *rows;
    int n_rows;
    FWD_TRY(par_judge_rows(w->judge, &rows, &n_rows, err));
    for (int i = 0; i < n_rows; i++) {
        int at = op_index(r, rows[i].op, rows[i].layer);
        if (at < 0)
            continue;
        r->ops[at].cand = rows[i];
        r->n_accused_cand += par_row_accused(&rows[i]);
        par_metrics_end(w->metrics[at], &r->ops[at].free_run);
        r->ops[at].has_free_run = r->ops[at].free_run.n > 0;
        const struct par_ledger *ledger = w->ledger ? par_run_ledger_row(w->ledger, rows[i].op, rows[i].layer) : NULL;
        if (ledger)
            r->ops[at].ledger = *ledger;
    }
    par_judge_take_evidence(w->judge, &r->evidence_cand);
    coverage_row(r, o->cand->name, par_schedule_name(o->schedule), every, w->judge);
    coverage_cells(r, o->cand->name, par_schedule_name(o->schedule), w->judge, rows, n_rows);
    int n_judged;
    uint64_t n_elements;
    par_judge_coverage(w->judge, &n_judged, &n_elements);
    par_figures_set(r->figures, "coverage", (double)n_judged / r->n_ids);
    find_worst(r);
    return FWD_OK;
}

enum fwd_status par_run_candidate(struct par_run *r, struct fwd_session *session, struct fwd_error *err) {
    struct tap_work w = {.r = r, .want = r->want, .n_ids = r->n_ids};
    w.metrics = fwd_calloc((size_t)r->n_ops, sizeof(struct par_metrics_acc *));
    w.last_tap = fwd_calloc((size_t)r->n_ids, sizeof *w.last_tap);
    enum fwd_status rc = FWD_OK;
    if (!w.metrics || !w.last_tap)
        rc = fwd_fail(err, FWD_ENOMEM, __FILE__, __LINE__, "run: no memory for metrics of %d ops", r->n_ops);
    else
        rc = candidate_pass(r, session, &w, err);
    for (int i = 0; w.metrics && i < r->n_ops; i++)
        par_metrics_free(w.metrics[i]);
    fwd_free(w.last_tap);
    fwd_free((void *)w.metrics);
    par_run_ledger_close(w.ledger);
    for (int i = 0; i < FREE_RUN_PARTS; i++)
        par_metrics_free(w.parts[i]);
    par_judge_close(w.judge);
    return rc == FWD_OK ? par_run_prove(r, session, err) : rc;
}

/* Where a later pass looks: a sample of positions through the worst element, and the ends of prompt and sequence. */
enum { SAMPLE_EVERY = 12 };
static bool is_sampled(const struct par_run *r, int pos, int n_ids) {
    int at = r->worst.pos;
    while (at > 0 && !r->want[at]) /* of a long prompt not every position's logits are kept */
        at--;
    return r->want[pos] && (pos % SAMPLE_EVERY == at % SAMPLE_EVERY || pos == r->n_prompt - 1 || pos == n_ids - 1);
}

/* What of a distance to the reference correct runs do not explain. */
static double excess_of(double distance, double spread) {
    double over = distance - (isfinite(spread) ? spread : 0);
    return !isfinite(distance) ? 10 : over > 0 ? over : 0;
}

/* The sampled rows of logits_work against the reference's and the base run's rows of the same positions. */
static void compare_sample(struct par_run *r, const uint8_t *want, int n_ids, struct par_pass *out) {
    size_t row_bytes = (size_t)r->n_vocab * sizeof(float);
    const float *work = r->logits_work;
    out->same_bits = true;
    for (int i = 0; i < r->n_want && r->want_pos[i] < n_ids; i++) {
        if (!want[r->want_pos[i]])
            continue;
        const float *ref = r->logits_ref + (int64_t)i * r->n_vocab, *base = r->logits_cand + (int64_t)i * r->n_vocab;
        double d = par_centred_distance(ref, work, r->n_vocab), d_base = par_centred_distance(ref, base, r->n_vocab);
        double relative = d / r->spread_distance[i];
        out->distance_last = d;
        out->distance_last_base = d_base;
        out->excess += excess_of(d, r->spread_distance[i]);
        out->excess_base += excess_of(d_base, r->spread_distance[i]);
        out->distance = !(relative <= out->distance) ? relative : out->distance;
        out->same_bits = out->same_bits && !memcmp(work, base, row_bytes);
        work += r->n_vocab;
        out->n_logits++;
    }
    out->logits_hash = fwd_hash64(r->logits_work, (size_t)out->n_logits * row_bytes);
}

static enum fwd_status look_again(struct par_run *r, struct fwd_session *session, enum par_schedule schedule, int chunk,
                                  bool judged, struct par_pass *out, struct fwd_error *err) {
    /* A worst element in the prompt shows without the decode steps; a cache row may be spoilt by a later call. */
    bool in_prompt = r->worst.pos < r->n_prompt && par_class_of(r->worst_op) != PAR_CLASS_KV;
    int n_ids = in_prompt ? r->n_prompt : r->n_ids;
    struct tap_work w = {.r = r, .what = "candidate, one thing changed", .n_ids = n_ids};
    struct par_drive drive = {.path = r->o->cand, .session = session, .schedule = schedule, .chunk = chunk};
    uint8_t *want = fwd_calloc((size_t)r->n_ids, 1);
    FWD_FAIL_IF(!want, FWD_ENOMEM, err, "run: no memory for %d marks", r->n_ids);
    memset(out, 0, sizeof *out);
    for (int pos = 0; pos < n_ids; pos++)
        want[pos] = is_sampled(r, pos, n_ids);
    w.want = want;
    enum fwd_status rc = judged
                             ? judged_pass(&w, &drive, SAMPLE_EVERY, r->worst.pos % SAMPLE_EVERY, r->logits_work, err)
                             : par_drive_run(&drive, r->ids, r->n_prompt, n_ids, want, r->logits_work, err);
    const struct par_op_row *rows;
    int n_rows = 0;
    if (rc == FWD_OK && judged)
        rc = par_judge_rows(w.judge, &rows, &n_rows, err);
    for (int i = 0; rc == FWD_OK && i < n_rows; i++)
        if (par_row_accused(&rows[i])) {
            out->n_accused++;
            out->n_accused_of[par_class_of(rows[i].op)]++;
        }
    par_judge_close(w.judge);
    if (rc == FWD_OK)
        compare_sample(r, want, n_ids, out);
    fwd_free(want);
    return rc;
}

enum fwd_status par_run_rejudge(struct par_run *r, struct fwd_session *session, enum par_schedule schedule, int chunk,
                                struct par_pass *out, struct fwd_error *err) {
    return look_again(r, session, schedule, chunk, true, out, err);
}

enum fwd_status par_run_relook(struct par_run *r, struct fwd_session *session, enum par_schedule schedule, int chunk,
                               struct par_pass *out, struct fwd_error *err) {
    return look_again(r, session, schedule, chunk, false, out, err);
}
