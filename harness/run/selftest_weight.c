/* Trials of one wrong weight, made while the path's taps arrive: nothing of the pass is kept but one op's input. */
#include "run/selftest_weight.h"

#include "localise/pattern.h"
#include "run/run_state.h"
#include "spec/eval.h"
#include "spec/spec_decode.h"
#include "spec/spec_quant.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WINDOW = 32 }; /* rows judged around the changed one: they tell the localiser what clean looks like */

struct trial {
    enum fwd_op op;
    int layer, pos, delta;
    int64_t row, k;
};

struct trials {
    const struct par_weight_trials_options *o;
    struct par_weight_trials *out;
    struct par_spec_model *spec;
    struct fwd_session *session;
    struct trial *list;
    int n_done;
    struct fwd_view
        act[2];            /* packed copies of the last _q8 tap in either format: a matmul reads the last; data owned */
    struct fwd_view plain; /* the float tap before it, likewise */
    enum fwd_status rc;
    struct fwd_error *err;
};

/* ---- drawing trials ------------------------------------------------------------------------------------------------
 */
static uint64_t draw(uint64_t *state, uint64_t n) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15u); /* splitmix64 */
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (z ^ (z >> 31)) % n;
}

/* Codes of the type go from low to low + 15; false: not a 4-bit type. */
static bool is_four_bit(uint32_t type, int *low) {
    *low = type == FWD_TYPE_Q4_0 ? -8 : 0;
    return type == FWD_TYPE_Q4_0 || type == FWD_TYPE_Q4_1 || type == FWD_TYPE_Q4_K;
}

struct matrix {
    enum fwd_op op;
    int layer;
};

static int list_matrices(const struct par_spec_model *m, struct matrix *out) {
    int n = 0, low;
    for (enum fwd_op op = 0; op < FWD_OP_COUNT; op++)
        for (int layer = 0; par_eval_is_matmul(op) && layer < (fwd_op_in_layer(op) ? m->config.n_layer : 1); layer++) {
            struct matrix x = {op, fwd_op_in_layer(op) ? layer : -1};
            const struct spec_weight *w = par_spec_weight(m, op, x.layer);
            if (w && w->data && w->n_rows >= WINDOW && is_four_bit(w->type, &low))
                out[n++] = x;
        }
    return n;
}

static enum fwd_status draw_trials(struct trials *t, struct fwd_error *err) {
    const struct par_weight_trials_options *o = t->o;
    size_t most = (size_t)t->spec->config.n_layer * FWD_OP_COUNT + FWD_OP_COUNT;
    struct matrix *matrices = fwd_alloc(most, sizeof *matrices);
    t->list = fwd_calloc((size_t)o->n_trials, sizeof *t->list);
    int n = matrices ? list_matrices(t->spec, matrices) : 0;
    t->out->n_matrices = n;
    uint64_t state = o->seed;
    for (int i = 0; t->list && n && i < o->n_trials; i++) {
        struct matrix x = matrices[draw(&state, (uint64_t)n)];
        const struct spec_weight *w = par_spec_weight(t->spec, x.op, x.layer);
        t->list[i] = (struct trial){.op = x.op,
                                    .layer = x.layer,
                                    .pos = (int)draw(&state, (uint64_t)o->n_ids),
                                    .delta = draw(&state, 2) ? 1 : -1,
                                    .row = (int64_t)draw(&state, (uint64_t)w->n_rows),
                                    .k = (int64_t)draw(&state, (uint64_t)w->n_cols)};
    }
    bool memory = matrices && t->list;
    fwd_free(matrices);
    FWD_FAIL_IF(!memory, FWD_ENOMEM, err, "selftest: no memory for %d trials", o->n_trials);
    FWD_FAIL_IF(n == 0, FWD_EUNSUPPORTED, err, "selftest: %s has no matrix of 4-bit weights", fwd_gguf_path(o->file));
    return FWD_OK;
}

/* ---- the candidate with one weight changed -------------------------------------------------------------------------
 */
/* The sequential chain that matmul_q declares, with `delta` added to the code of weight k. */
static float chain(const struct spec_weight *w, const uint8_t *row, const struct fwd_view *act, int pos, int64_t k,
                   int delta) {
    int block = par_decode_block_values(w->type);
    const uint8_t *a = par_view_row(act, pos);
    float acc = 0;
    bool sums_agree;
    struct spec_block s;
    struct spec_q8 q;
    for (int64_t b = 0; b < w->n_cols / block; b++) {
        par_decode_block(w->type, row, b, &s);
        par_q8_read(act->dtype, a + (size_t)b * par_q8_block_bytes(act->dtype), &q, &sums_agree);
        if (k / block == b)
            s.q[k % block] = (int8_t)(s.q[k % block] + delta);
        int32_t dot = 0, min = 0;
        for (int i = 0; i < block; i++)
            dot += s.scale[i / 16] * s.q[i] * q.q[i];
        for (int g = 0; g < block / 16; g++)
            min += s.min[g] * q.sum16[g];
        acc = fmaf(s.d * q.d, (float)dot, acc);
        if (par_decode_has_min(w->type))
            acc = fmaf(-(s.dmin * q.d), (float)min, acc);
    }
    return acc;
}

/* What weight k adds to the sum for each unit of delta. */
static double effect(const struct spec_weight *w, const uint8_t *row, const struct fwd_view *act, int pos, int64_t k) {
    int block = par_decode_block_values(w->type);
    bool sums_agree;
    struct spec_block s;
    struct spec_q8 q;
    par_decode_block(w->type, row, k / block, &s);
    par_q8_read(act->dtype, par_view_row(act, pos) + (size_t)(k / block) * par_q8_block_bytes(act->dtype), &q,
                &sums_agree);
    return (double)s.d * s.scale[k % block / 16] * (double)q.d * q.q[k % block];
}

/* A window of rows around the trial's as a matrix of its own, and the evidence that a judge would have kept of it. */
struct window {
    struct par_spec_altered spec;
    int64_t first;
    float *values; /* [n_pos][WINDOW] the candidate's output */
    struct par_evidence item;
    struct par_evidence_call call;
};

static void free_window(struct window *w) {
    par_spec_alter_free(&w->spec);
    fwd_free(w->values);
    fwd_free(w->call.judge_pos);
    fwd_free(w->item.positions);
}

static enum fwd_status open_window(struct trials *t, const struct trial *tr, const struct fwd_view *out,
                                   const struct fwd_view *act, struct window *w, struct fwd_error *err) {
    size_t n_pos = (size_t)out->n_pos;
    *w = (struct window){.first = tr->row < out->ne[0] - WINDOW ? tr->row : out->ne[0] - WINDOW};
    FWD_TRY(par_spec_alter(&w->spec, t->spec, tr->layer, err));
    w->values = fwd_alloc(n_pos * WINDOW, sizeof *w->values);
    w->call.judge_pos = fwd_calloc(n_pos, 1);
    w->item.positions = fwd_calloc((size_t)out->pos0 + n_pos, 1);
    FWD_FAIL_IF(!w->values || !w->call.judge_pos || !w->item.positions, FWD_ENOMEM, err,
                "selftest: no memory for %zu positions", n_pos);
    struct spec_weight *m = par_spec_altered_weight(&w->spec, tr->op);
    m->data += w->first * m->row_bytes;
    m->n_rows = WINDOW;
    m->tensor = NULL;
    if (par_spec_bias(t->spec, tr->op, tr->layer)) {
        struct spec_weight *b = par_spec_altered_bias(&w->spec, tr->op);
        b->data += w->first * par_decode_row_bytes(b->type, 1);
        b->n_cols = WINDOW;
        b->row_bytes = par_decode_row_bytes(b->type, WINDOW);
    }
    for (int i = 0; i < out->n_pos; i++)
        memcpy(w->values + i * WINDOW, (const float *)(const void *)par_view_row(out, out->pos0 + i) + w->first,
               WINDOW * sizeof *w->values);
    w->call.n_in = 1;
    w->call.in[0] = *act;
    w->call.out = *out;
    w->call.out.ne[0] = WINDOW;
    w->call.out.nb[1] = WINDOW * (int64_t)sizeof *w->values;
    w->call.out.data = w->values;
    w->item.op = tr->op;
    w->item.layer = tr->layer;
    w->item.calls = &w->call;
    w->item.n_calls = 1;
    w->item.n_positions = out->pos0 + out->n_pos;
    w->item.numerics.size = sizeof w->item.numerics;
    FWD_FAIL_IF(!t->o->path->numerics(t->session, tr->op, tr->layer, &w->item.numerics), FWD_ESTATE, err,
                "selftest: %s declares no numerics", fwd_op_name(tr->op));
    return FWD_OK;
}

/* Sums over the op's whole output, and the changed row's part in other people's tolerances. */
struct tolerance {
    double square, changed_square, product; /* of the output; of the changes; of output times change */
    bool allclose_sees;
};

/* The unchanged row against the product of float activations: what each tolerance says of an honest op. */
static enum fwd_status hold_clean(struct trials *t, const struct trial *tr, const struct window *w,
                                  struct fwd_error *err) {
    const struct spec_weight *m = par_spec_weight(t->spec, tr->op, tr->layer);
    const struct spec_weight *bias = par_spec_bias(t->spec, tr->op, tr->layer);
    float *weight = fwd_alloc((size_t)m->n_cols, sizeof *weight), add = 0;
    FWD_FAIL_IF(!weight, FWD_ENOMEM, err, "selftest: no memory for a row of %s", m->name);
    par_decode_row(m->type, m->data + tr->row * m->row_bytes, weight, m->n_cols);
    if (bias)
        par_decode_row(bias->type, bias->data + tr->row * par_decode_row_bytes(bias->type, 1), &add, 1);
    double off2 = 0, ref2 = 0, got2 = 0, product = 0;
    bool far = false;
    for (int i = 0; i < w->call.out.n_pos; i++) {
        const float *x = (const float *)(const void *)par_view_row(&t->plain, w->call.out.pos0 + i);
        double ref = (double)add, got = (double)w->values[i * WINDOW + tr->row - w->first];
        for (int64_t k = 0; k < m->n_cols; k++)
            ref += (double)weight[k] * (double)x[k];
        off2 += (got - ref) * (got - ref);
        ref2 += ref * ref;
        got2 += got * got;
        product += got * ref;
        far = far || fabs(got - ref) > 1e-3 + 1e-3 * fabs(ref);
    }
    fwd_free(weight);
    t->out->nmse_alarms += off2 > 5e-4 * ref2;
    t->out->cosine_alarms += product / sqrt(ref2 * got2) < 0.99;
    t->out->allclose_alarms += far;
    return FWD_OK;
}

/* Puts the changed weight's outputs in. changed[i]: position i has other bits. */
static enum fwd_status change_row(struct trials *t, struct trial *tr, struct window *w, uint8_t *changed,
                                  struct tolerance *tol, struct fwd_error *err) {
    const struct spec_weight *m = par_spec_weight(t->spec, tr->op, tr->layer);
    const struct spec_weight *bias = par_spec_bias(t->spec, tr->op, tr->layer);
    const uint8_t *row = m->data + tr->row * m->row_bytes;
    const struct fwd_view *act = &w->call.in[0];
    int block = par_decode_block_values(m->type), low, n_pos = w->call.out.n_pos;
    FWD_FAIL_IF(par_q8_block_values(act->dtype) != block || act->ne[0] != m->n_cols, FWD_EUNSUPPORTED, err,
                "selftest: %s reads %s, its weights are %s", fwd_op_name(tr->op), fwd_dtype_name(act->dtype),
                fwd_type_name(m->type));
    float add = 0;
    if (bias)
        par_decode_row(bias->type, bias->data + tr->row * par_decode_row_bytes(bias->type, 1), &add, 1);
    struct spec_block s;
    par_decode_block(m->type, row, tr->k / block, &s);
    (void)is_four_bit(m->type, &low);
    int code = s.q[tr->k % block] + tr->delta;
    tr->delta = code < low || code > low + 15 ? -tr->delta : tr->delta;
    bool in_order = true;
    for (int i = 0; i < n_pos; i++) {
        float *got = &w->values[i * WINDOW + tr->row - w->first], now;
        int pos = w->call.out.pos0 + i;
        bool same = (bias ? chain(m, row, act, pos, tr->k, 0) + add : chain(m, row, act, pos, tr->k, 0)) == *got;
        in_order = in_order && same;
        if (same) {
            now = chain(m, row, act, pos, tr->k, tr->delta);
            now = bias ? now + add : now;
        } else {
            now = (float)((double)*got + tr->delta * effect(m, row, act, pos, tr->k));
        }
        double off = (double)now - (double)*got, ref = (double)*got;
        changed[i] = now != *got;
        tol->changed_square += off * off;
        tol->product += off * ref;
        tol->allclose_sees = tol->allclose_sees || fabs(off) > 1e-3 + 1e-3 * fabs(ref);
        *got = now;
    }
    t->out->in_path_order += in_order;
    return FWD_OK;
}

/* ---- judging a trial -----------------------------------------------------------------------------------------------
 */
struct finding {
    bool found, block, weight, misnamed, other_rows;
};

/* Judges the window at the marked positions and, if anything is accused, localises it. */
static enum fwd_status look(const struct trial *tr, struct window *w, struct finding *f, struct fwd_error *err) {
    struct par_eval e;
    struct par_op_row row = {.n_judged = 0};
    struct par_ratio_histogram hist = {.n = 0};
    struct par_pattern p;
    *f = (struct finding){.found = false};
    uint8_t *accused = fwd_calloc((size_t)w->item.n_positions, 1);
    FWD_FAIL_IF(!accused, FWD_ENOMEM, err, "selftest: no memory for %d positions", w->item.n_positions);
    par_evidence_eval(&w->item, 0, &e);
    e.accused_pos = accused;
    enum fwd_status rc = par_judge_eval(&w->spec.model, NULL, &e, &row, &hist, err);
    for (int i = 0; i < e.n_pos; i++)
        w->item.positions[e.pos0 + i] = accused[e.pos0 + i] ? 2 : w->call.judge_pos[i];
    fwd_free(accused);
    if (rc != FWD_OK || row.n_over + row.n_nonfinite_mismatch == 0)
        return rc;
    FWD_TRY(par_pattern_find(&w->spec.model, NULL, &w->item, &p, err));
    int64_t local = tr->row - w->first;
    f->other_rows = p.row_first != local || p.row_last != local;
    f->found = !f->other_rows;
    bool right = p.n_blocks == 1 && p.block[0] == tr->k / p.block_values;
    f->block = f->found && right;
    f->weight = f->block && p.k_first == tr->k && p.k_last == tr->k;
    f->misnamed = p.n_blocks > 0 && !right;
    return FWD_OK;
}

static enum fwd_status judge_trial(struct trials *t, const struct trial *tr, struct window *w, const uint8_t *changed,
                                   struct fwd_error *err) {
    struct par_weight_trials *out = t->out;
    struct finding f;
    int n_pos = w->call.out.n_pos, at = tr->pos - w->call.out.pos0;
    bool any = false;
    for (int i = 0; i < n_pos; i++)
        any = any || changed[i];
    out->tried++;
    out->changed_all += any;
    memset(w->call.judge_pos, 1, (size_t)n_pos);
    FWD_TRY(look(tr, w, &f, err));
    out->found_all += f.found;
    out->block_named_all += f.block;
    out->weight_named_all += f.weight;
    out->misnamed_all += f.misnamed;
    out->other_rows_accused += f.other_rows;
    memset(w->call.judge_pos, 0, (size_t)n_pos);
    w->call.judge_pos[at] = 1;
    out->changed_one += changed[at];
    FWD_TRY(look(tr, w, &f, err));
    out->found_one += f.found;
    out->block_named_one += f.block;
    out->weight_named_one += f.weight;
    out->misnamed_one += f.misnamed;
    return FWD_OK;
}

static void hold_tolerances(struct par_weight_trials *out, const struct tolerance *tol) {
    double changed = tol->square + 2 * tol->product + tol->changed_square;
    out->nmse_sees += tol->changed_square > 5e-4 * tol->square;
    out->cosine_sees += (tol->square + tol->product) / sqrt(tol->square * changed) < 0.99;
    out->allclose_sees += tol->allclose_sees;
}

static double square_of(const struct fwd_view *v) {
    double s = 0;
    for (int i = 0; i < v->n_pos; i++) {
        const float *x = (const float *)(const void *)par_view_row(v, v->pos0 + i);
        for (int64_t k = 0; k < v->ne[0]; k++)
            s += (double)x[k] * (double)x[k];
    }
    return s;
}

static enum fwd_status run_trial(struct trials *t, struct trial *tr, const struct fwd_view *out, double square,
                                 struct fwd_error *err) {
    struct window w;
    struct tolerance tol = {.square = square};
    const struct spec_weight *m = par_spec_weight(t->spec, tr->op, tr->layer);
    const struct fwd_view *act = &t->act[par_decode_block_values(m->type) == 256];
    FWD_FAIL_IF(!act->data || act->layer != tr->layer || act->n_pos != out->n_pos || !t->plain.data ||
                    t->plain.layer != tr->layer || t->plain.ne[0] != act->ne[0] || t->plain.n_pos != out->n_pos,
                FWD_ESTATE, err, "selftest: no input of %s for layer %d", fwd_op_name(tr->op), tr->layer);
    uint8_t *changed = fwd_calloc((size_t)out->n_pos, 1);
    FWD_FAIL_IF(!changed, FWD_ENOMEM, err, "selftest: no memory for %d positions", out->n_pos);
    enum fwd_status rc = open_window(t, tr, out, act, &w, err);
    if (rc == FWD_OK)
        rc = hold_clean(t, tr, &w, err);
    if (rc == FWD_OK)
        rc = change_row(t, tr, &w, changed, &tol, err);
    if (rc == FWD_OK)
        rc = judge_trial(t, tr, &w, changed, err);
    if (rc == FWD_OK)
        hold_tolerances(t->out, &tol);
    free_window(&w);
    fwd_free(changed);
    return rc;
}

/* ---- the pass ------------------------------------------------------------------------------------------------------
 */
static enum fwd_status keep_view(struct fwd_view *to, const struct fwd_view *v, struct fwd_error *err) {
    size_t row = fwd_dtype_row_bytes(v->dtype, v->ne[0]);
    fwd_free(to->data);
    *to = *v;
    to->data = fwd_alloc((size_t)v->n_pos, row);
    FWD_FAIL_IF(!to->data, FWD_ENOMEM, err, "selftest: no memory for %d rows of %s", v->n_pos, fwd_op_name(v->op));
    to->nb[1] = (int64_t)row;
    for (int i = 0; i < v->n_pos; i++)
        memcpy((uint8_t *)to->data + (size_t)i * row, par_view_row(v, v->pos0 + i), row);
    return FWD_OK;
}

static bool is_matmul_input(enum fwd_op op) {
    return op == FWD_OP_ATTN_NORM || op == FWD_OP_KQV_OUT || op == FWD_OP_FFN_NORM || op == FWD_OP_FFN_SWIGLU ||
           op == FWD_OP_RESULT_NORM;
}

static int on_tap(void *ud, const struct fwd_view *v) {
    struct trials *t = ud;
    if (par_q8_block_values(v->dtype))
        t->rc = keep_view(&t->act[v->dtype == FWD_Q8_K], v, t->err);
    if (is_matmul_input(v->op) && v->dtype == FWD_F32)
        t->rc = keep_view(&t->plain, v, t->err);
    if (!par_eval_is_matmul(v->op) || v->dtype != FWD_F32)
        return t->rc != FWD_OK;
    double square = 0;
    for (int i = 0; t->rc == FWD_OK && i < t->o->n_trials; i++) {
        struct trial *tr = &t->list[i];
        if (tr->op != v->op || tr->layer != v->layer || tr->pos < v->pos0 || tr->pos >= v->pos0 + v->n_pos)
            continue;
        if (square == 0)
            square = square_of(v);
        t->rc = run_trial(t, tr, v, square, t->err);
        if (t->o->progress)
            t->o->progress(t->o->progress_ud, "one wrong weight", ++t->n_done, t->o->n_trials);
    }
    return t->rc != FWD_OK;
}

static enum fwd_status run_path(struct trials *t, struct fwd_error *err) {
    const struct par_weight_trials_options *o = t->o;
    struct fwd_knobs knobs = {.size = sizeof knobs,
                              .n_threads = o->n_threads,
                              .n_ctx = o->n_ids + 1,
                              .n_seq = 1,
                              .n_batch = o->n_ids,
                              .kv_type = FWD_F16};
    float *logits = fwd_alloc((size_t)t->spec->config.n_vocab, sizeof *logits);
    FWD_FAIL_IF(!logits, FWD_ENOMEM, err, "selftest: no memory for logits");
    struct fwd_run_args args = {.size = sizeof args, .tokens = o->ids, .n_tokens = o->n_ids, .logits = logits};
    args.tap = on_tap;
    args.tap_ud = t;
    t->err = err;
    enum fwd_status rc = o->path->open(&t->session, o->file, &knobs, err);
    if (rc == FWD_OK) {
        rc = o->path->seq_begin(t->session, 0, err);
        if (rc == FWD_OK)
            rc = o->path->run(t->session, &args, err);
        rc = t->rc != FWD_OK ? t->rc : rc;
        o->path->close(t->session);
    }
    fwd_free(logits);
    return rc;
}

enum fwd_status par_selftest_one_weight(const struct par_weight_trials_options *options, struct par_weight_trials *out,
                                        struct fwd_error *err) {
    struct trials t = {.o = options, .out = out};
    double start = par_seconds();
    *out = (struct par_weight_trials){.n_positions = options->n_ids};
    FWD_FAIL_IF(options->n_ids < 1 || options->n_trials < 1, FWD_EINPUT, err,
                "selftest: %d trials over a prompt of %d tokens", options->n_trials, options->n_ids);
    FWD_TRY(par_spec_open(&t.spec, options->file, err));
    enum fwd_status rc = draw_trials(&t, err);
    if (rc == FWD_OK)
        rc = run_path(&t, err);
    fwd_free(t.act[0].data);
    fwd_free(t.act[1].data);
    fwd_free(t.plain.data);
    fwd_free(t.list);
    par_spec_close(t.spec);
    out->seconds = par_seconds() - start;
    return rc;
}
