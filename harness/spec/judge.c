/* The streaming judge: keeps a copy of each tap until the ops that read it have been judged, and the K and V rows of
 * the whole sequence, which a cache must still hold at every later call. One sequence at a time. */
#include "spec/judge.h"

#include "spec/evidence.h"
#include "spec/judge_batch.h"
#include "spec/ratio_histogram.h"
#include "spec/spec_decode.h"

#include <stdio.h>
#include <string.h>

enum { LAYER_OPS = FWD_OP_L_OUT - FWD_OP_ATTN_NORM + 1, RESULT_OPS = FWD_OP_COUNT - FWD_OP_RESULT_NORM };
/* A path may hand on one _q8 op in more than one format: which it is, chooses the place. */
enum form { FORM_FLOAT, FORM_Q8_K, FORM_Q8_32, FORM_COUNT };

struct kept {
    struct fwd_view view; /* packed copy; view.data == bytes */
    uint8_t *bytes;
    size_t n_bytes; /* allocated */
    bool valid;
};

/* Rows first .. first + n - 1 of one layer's Kcur_rope or Vcur in this sequence. */
struct history {
    uint8_t *bytes;
    size_t n_bytes;
    enum fwd_dtype dtype;
    int first, n;
    int64_t n_values; /* in a row */
};

struct par_judge {
    const struct par_spec_model *model;
    struct par_judge_options options;
    int n_rows;
    struct par_op_row *rows;
    struct par_ratio_histogram *hists; /* one a row */
    struct judge_batch *batches;       /* one a row: calls that wait for more positions */
    int batch_positions;
    struct kept kept[FWD_OP_COUNT][FORM_COUNT];
    struct history *keys, *values; /* one a layer */
    int32_t *tokens;
    int n_tokens;
    uint8_t *sample; /* [n_sample] of the current call */
    size_t n_sample;
    uint8_t *covered; /* [n_positions][n_rows]: was the row judged there */
    size_t n_covered; /* bytes */
    uint8_t *accused; /* [n_accused] positions of the current call in which an element is outside */
    size_t n_accused;
    uint8_t *rounded[2]; /* keys, values as a cache holds them */
    size_t n_rounded[2]; /* bytes */
    struct par_evidence_set evidence;
    struct fwd_error failure; /* the first; code FWD_OK: none */
};

static int row_index(const struct par_judge *j, enum fwd_op op, int layer) {
    int n_layer = par_spec_config(j->model)->n_layer;
    if (op == FWD_OP_INP_EMBD)
        return 0;
    if (op >= FWD_OP_RESULT_NORM)
        return 1 + n_layer * LAYER_OPS + (int)(op - FWD_OP_RESULT_NORM);
    return 1 + layer * LAYER_OPS + (int)(op - FWD_OP_ATTN_NORM);
}

static void name_rows(struct par_judge *j) {
    for (enum fwd_op op = 0; op < FWD_OP_COUNT; op++) {
        bool in_layer = fwd_op_in_layer(op);
        int n = in_layer ? par_spec_config(j->model)->n_layer : 1;
        for (int layer = 0; layer < n; layer++) {
            struct par_op_row *row = &j->rows[row_index(j, op, layer)];
            row->op = op;
            row->layer = in_layer ? layer : -1;
            row->verdict = PAR_UNMEASURED;
        }
    }
}

enum fwd_status par_judge_open(struct par_judge **out, const struct par_spec_model *m,
                               const struct par_judge_options *options, struct fwd_error *err) {
    FWD_FAIL_IF(!options->numerics || options->sample_every < 1, FWD_EINPUT, err,
                "judge: needs declared numerics and a sample step of at least 1, got %d", options->sample_every);
    struct par_judge *j = fwd_calloc(1, sizeof *j);
    FWD_FAIL_IF(!j, FWD_ENOMEM, err, "judge: no memory");
    size_t n_layer = (size_t)par_spec_config(m)->n_layer;
    j->model = m;
    j->options = *options;
    j->n_rows = 1 + (int)n_layer * LAYER_OPS + RESULT_OPS;
    j->rows = fwd_calloc((size_t)j->n_rows, sizeof *j->rows);
    j->hists = fwd_calloc((size_t)j->n_rows, sizeof *j->hists);
    j->batches = fwd_calloc((size_t)j->n_rows, sizeof *j->batches);
    j->batch_positions = par_batch_positions(m);
    j->keys = fwd_calloc(n_layer, sizeof *j->keys);
    j->values = fwd_calloc(n_layer, sizeof *j->values);
    if (!j->rows || !j->hists || !j->batches || !j->keys || !j->values) {
        par_judge_close(j);
        FWD_FAIL(FWD_ENOMEM, err, "judge: no memory for %d rows", j->n_rows);
    }
    name_rows(j);
    *out = j;
    return FWD_OK;
}

void par_judge_close(struct par_judge *j) {
    if (!j)
        return;
    for (int op = 0; op < FWD_OP_COUNT; op++)
        for (int form = 0; form < FORM_COUNT; form++)
            fwd_free(j->kept[op][form].bytes);
    for (int i = 0; j->batches && i < j->n_rows; i++)
        par_batch_clear(&j->batches[i]);
    for (int il = 0; il < par_spec_config(j->model)->n_layer; il++) {
        if (j->keys)
            fwd_free(j->keys[il].bytes);
        if (j->values)
            fwd_free(j->values[il].bytes);
    }
    fwd_free(j->keys);
    fwd_free(j->values);
    fwd_free(j->rows);
    fwd_free(j->hists);
    fwd_free(j->batches);
    fwd_free(j->tokens);
    fwd_free(j->sample);
    fwd_free(j->covered);
    fwd_free(j->accused);
    fwd_free(j->rounded[0]);
    fwd_free(j->rounded[1]);
    par_evidence_free(&j->evidence);
    fwd_free(j);
}

/* ---- counting
 * -------------------------------------------------------------------------------------------------------- */
/* Makes *p at least n bytes long, new bytes zero. */
static enum fwd_status grow(uint8_t **p, size_t *have, size_t n, struct fwd_error *err) {
    if (*p && *have >= n)
        return FWD_OK;
    size_t want = n + n / 2 + 64;
    uint8_t *q = fwd_realloc(*p, *have, want, 1);
    FWD_FAIL_IF(!q, FWD_ENOMEM, err, "judge: no memory for %zu bytes", want);
    memset(q + *have, 0, want - *have);
    *p = q;
    *have = want;
    return FWD_OK;
}

/* The taps that are there now; returns how many. */
static int list_kept(const struct par_judge *j, struct par_kept_view kept[FWD_OP_COUNT * FORM_COUNT]) {
    int n = 0;
    for (int op = 0; op < FWD_OP_COUNT; op++)
        for (int form = 0; form < FORM_COUNT; form++)
            if (j->kept[op][form].valid)
                kept[n++].view = &j->kept[op][form].view;
    return n;
}

/* Copies what an accused call read and wrote, unless the op has enough of it. Calls that waited were compared with the
 * taps of their own time. */
static enum fwd_status keep_evidence(struct par_judge *j, const struct par_eval *e, bool accused,
                                     struct fwd_error *err) {
    struct par_kept_view kept[FWD_OP_COUNT * FORM_COUNT];
    if (!accused)
        return par_evidence_mark(&j->evidence, e, j->accused, err);
    const struct judge_batch *b = &j->batches[row_index(j, e->op, e->layer)];
    bool waited = b->bytes && e->out == &b->out;
    int n_kept = waited ? 0 : list_kept(j, kept);
    FWD_TRY(par_evidence_add(&j->evidence, e, j->accused, kept, n_kept, j->options.evidence_bytes, err));
    if (waited)
        par_evidence_add_twins(&j->evidence, e->op, e->layer, j->accused, b->twins, b->n_twins);
    return FWD_OK;
}

static bool is_cache(enum fwd_op op) {
    return op == FWD_OP_K_CACHE || op == FWD_OP_V_CACHE;
}

/* A cache is judged at every row that the call reads, whatever the sample. */
static enum fwd_status mark_covered(struct par_judge *j, int at, const struct par_eval *e, struct fwd_error *err) {
    size_t n_rows = (size_t)j->n_rows;
    FWD_TRY(grow(&j->covered, &j->n_covered, (size_t)(e->pos0 + e->n_pos) * n_rows, err));
    for (int pos = is_cache(e->op) ? 0 : e->pos0; pos < e->pos0 + e->n_pos; pos++)
        if (is_cache(e->op) || e->judge_pos[pos - e->pos0])
            j->covered[(size_t)pos * n_rows + (size_t)at] = 1;
    return FWD_OK;
}

/* Judges one call, or several as one, and marks its positions. */
static enum fwd_status judge_call(struct par_judge *j, const struct par_eval *call, struct fwd_error *err) {
    struct par_eval with_marks = *call, *e = &with_marks;
    e->caps = j->options.caps;
    int at = row_index(j, e->op, e->layer);
    uint64_t before = j->rows[at].n_judged, bad = j->rows[at].n_over + j->rows[at].n_nonfinite_mismatch;
    if (j->options.evidence_bytes) {
        size_t n = (size_t)(e->pos0 + e->n_pos), rows = is_cache(e->op) ? (size_t)e->out->ne[2] : 0;
        n = n > rows ? n : rows;
        FWD_TRY(grow(&j->accused, &j->n_accused, n, err));
        memset(j->accused, 0, n);
        e->accused_pos = j->accused;
    }
    FWD_TRY(par_judge_eval(j->model, j->options.pool, e, &j->rows[at], &j->hists[at], err));
    if (j->options.evidence_bytes)
        FWD_TRY(keep_evidence(j, e, j->rows[at].n_over + j->rows[at].n_nonfinite_mismatch > bad, err));
    return j->rows[at].n_judged == before ? FWD_OK : mark_covered(j, at, e, err);
}

static enum fwd_status judge_waiting(struct par_judge *j, int at, struct fwd_error *err) {
    struct judge_batch *b = &j->batches[at];
    if (!b->bytes)
        return FWD_OK;
    struct par_eval e = {.op = b->out.op,
                         .layer = j->rows[at].layer,
                         .pos0 = b->out.pos0,
                         .n_pos = b->out.n_pos,
                         .judge_pos = b->judge_pos,
                         .n_in = 1,
                         .in = {&b->in},
                         .out = &b->out,
                         .numerics = &b->numerics,
                         .bound = j->options.bound};
    enum fwd_status st = judge_call(j, &e, err);
    par_batch_clear(b);
    return st;
}

static enum fwd_status judge_all_waiting(struct par_judge *j, struct fwd_error *err) {
    for (int i = 0; i < j->n_rows; i++)
        FWD_TRY(judge_waiting(j, i, err));
    return FWD_OK;
}

/* Judges the call now, or when more of its kind have come. */
static enum fwd_status judge_or_wait(struct par_judge *j, const struct par_eval *e, struct fwd_error *err) {
    int at = row_index(j, e->op, e->layer);
    struct judge_batch *b = &j->batches[at];
    bool wait = par_batch_can_wait(e, j->batch_positions);
    if (!wait || !par_batch_fits(b, e, j->batch_positions))
        FWD_TRY(judge_waiting(j, at, err));
    if (!wait)
        return judge_call(j, e, err);
    FWD_TRY(par_batch_add(b, e, j->batch_positions, err));
    if (j->options.evidence_bytes) {
        struct par_kept_view kept[FWD_OP_COUNT * FORM_COUNT];
        par_evidence_twins(e->out, NULL, kept, list_kept(j, kept), b->twins, &b->n_twins);
    }
    return b->out.n_pos == j->batch_positions ? judge_waiting(j, at, err) : FWD_OK;
}

/* ---- sequences
 * ------------------------------------------------------------------------------------------------------- */
static void drop_kept(struct par_judge *j) {
    for (int op = 0; op < FWD_OP_COUNT; op++)
        for (int form = 0; form < FORM_COUNT; form++)
            j->kept[op][form].valid = false;
}

enum fwd_status par_judge_seq_begin(struct par_judge *j, struct fwd_error *err) {
    if (j->failure.code == FWD_OK)
        FWD_TRY(judge_all_waiting(j, err));
    drop_kept(j);
    for (int il = 0; il < par_spec_config(j->model)->n_layer; il++)
        j->keys[il].n = j->values[il].n = 0;
    j->n_tokens = 0;
    return FWD_OK;
}

enum fwd_status par_judge_tokens(struct par_judge *j, const int32_t *tokens, int n_tokens, struct fwd_error *err) {
    int32_t *copy = fwd_alloc((size_t)n_tokens, sizeof *copy);
    FWD_FAIL_IF(!copy, FWD_ENOMEM, err, "judge: no memory for %d tokens", n_tokens);
    memcpy(copy, tokens, (size_t)n_tokens * sizeof *copy);
    fwd_free(j->tokens);
    j->tokens = copy;
    j->n_tokens = n_tokens;
    return FWD_OK;
}

/* ---- copies
 * ---------------------------------------------------------------------------------------------------------- */
static enum form form_of(enum fwd_dtype t) {
    return t == FWD_Q8_K ? FORM_Q8_K : t == FWD_Q8_32 ? FORM_Q8_32 : FORM_FLOAT;
}

static int64_t stride_of(const struct fwd_view *v) {
    return v->nb[1] ? v->nb[1] : (int64_t)fwd_dtype_row_bytes(v->dtype, v->ne[0]);
}

/* Copies rows of row_bytes, stride apart, one after the other. */
static void pack_rows(uint8_t *dst, const uint8_t *src, int64_t n_rows, int64_t stride, size_t row_bytes) {
    for (int64_t r = 0; r < n_rows; r++)
        memcpy(dst + (size_t)r * row_bytes, src + r * stride, row_bytes);
}

static enum fwd_status keep_view(struct par_judge *j, const struct fwd_view *v, struct fwd_error *err) {
    struct kept *k = &j->kept[v->op][form_of(v->dtype)];
    bool cache = is_cache(v->op);
    size_t row_bytes = fwd_dtype_row_bytes(v->dtype, v->ne[0]);
    k->valid = false;
    k->view = *v;
    if (cache) {
        size_t all = row_bytes * (size_t)(v->ne[1] * v->ne[2]);
        FWD_TRY(grow(&k->bytes, &k->n_bytes, all, err));
        for (int64_t r = 0; r < v->ne[2]; r++)
            pack_rows(k->bytes + (size_t)(r * v->ne[1]) * row_bytes, (const uint8_t *)v->data + r * v->nb[2], v->ne[1],
                      v->nb[1], row_bytes);
        k->view.nb[2] = (int64_t)row_bytes * v->ne[1];
    } else {
        FWD_TRY(grow(&k->bytes, &k->n_bytes, row_bytes * (size_t)v->n_pos, err));
        pack_rows(k->bytes, v->data, v->n_pos, stride_of(v), row_bytes);
    }
    k->view.nb[1] = (int64_t)row_bytes;
    k->view.data = k->bytes;
    k->valid = true;
    return FWD_OK;
}

/* Adds rows to a layer's history; rows after them belong to an older timeline and are forgotten. */
static enum fwd_status add_history(struct history *h, const struct fwd_view *v, struct fwd_error *err) {
    if (h->n == 0 || v->pos0 < h->first || v->pos0 > h->first + h->n || h->dtype != v->dtype ||
        h->n_values != v->ne[0]) {
        h->first = v->pos0;
        h->dtype = v->dtype;
        h->n_values = v->ne[0];
    }
    size_t row_bytes = fwd_dtype_row_bytes(v->dtype, v->ne[0]);
    h->n = v->pos0 + v->n_pos - h->first;
    FWD_TRY(grow(&h->bytes, &h->n_bytes, row_bytes * (size_t)h->n, err));
    pack_rows(h->bytes + row_bytes * (size_t)(v->pos0 - h->first), v->data, v->n_pos, stride_of(v), row_bytes);
    return FWD_OK;
}

/* ---- inputs
 * ---------------------------------------------------------------------------------------------------------- */
static const struct fwd_view *find_kept(const struct par_judge *j, enum fwd_op op, enum form form, int layer) {
    const struct kept *k = &j->kept[op][form];
    return k->valid && (!fwd_op_in_layer(op) || k->view.layer == layer) ? &k->view : NULL;
}

static const struct fwd_view *find_residual(const struct par_judge *j, int layer) {
    return layer == 0 ? find_kept(j, FWD_OP_INP_EMBD, FORM_FLOAT, -1)
                      : find_kept(j, FWD_OP_L_OUT, FORM_FLOAT, layer - 1);
}

/* What a matmul read: its quantised input in the declared format, else the float tap before it, which the evaluator
 * then quantises by the declared rule. */
static const struct fwd_view *find_act(const struct par_judge *j, enum fwd_op q8, enum fwd_op plain, int layer,
                                       const struct fwd_numerics *nm) {
    const struct fwd_view *v = find_kept(j, q8, form_of(nm->act), layer);
    return v ? v : find_kept(j, plain, FORM_FLOAT, layer);
}

static const struct fwd_view *history_view(const struct history *h, struct fwd_view *v) {
    if (h->n == 0)
        return NULL;
    int64_t bytes = (int64_t)fwd_dtype_row_bytes(h->dtype, 1);
    *v = (struct fwd_view){.size = sizeof *v, .op = FWD_OP_COUNT, .pos0 = h->first, .n_pos = h->n, .dtype = h->dtype};
    v->ne[0] = h->n_values;
    v->ne[1] = h->n;
    v->ne[2] = v->ne[3] = 1;
    v->nb[0] = bytes;
    v->nb[1] = bytes * h->n_values;
    v->data = h->bytes;
    return v;
}

/* Room for views that are not kept taps. */
struct made_views {
    struct fwd_view a, b;
};

/* The rows as a cache of binary16 gives them back, where that is declared and no cache was shown. */
static enum fwd_status round_rows(struct par_judge *j, int which, enum fwd_op cache, int layer, struct fwd_view *v,
                                  struct fwd_error *err) {
    struct fwd_numerics nm = {.size = sizeof nm};
    bool half =
        j->options.numerics(j->options.numerics_ud, cache, layer, &nm) && (nm.act == FWD_F16 || nm.store == FWD_F16);
    if (!half || v->dtype != FWD_F32)
        return FWD_OK;
    size_t n = (size_t)(v->ne[0] * v->ne[1]);
    FWD_TRY(grow(&j->rounded[which], &j->n_rounded[which], n * sizeof(float), err));
    for (size_t i = 0; i < n; i++) {
        float x;
        memcpy(&x, (const uint8_t *)v->data + i * sizeof x, sizeof x);
        x = par_f16_to_f32(par_f32_to_f16(x));
        memcpy(j->rounded[which] + i * sizeof x, &x, sizeof x);
    }
    v->data = j->rounded[which];
    return FWD_OK;
}

static enum fwd_status find_attention(struct par_judge *j, int layer, struct par_eval *e, struct made_views *made,
                                      struct fwd_error *err) {
    e->in[0] = find_kept(j, FWD_OP_QCUR_ROPE, FORM_FLOAT, layer);
    e->in[1] = find_kept(j, FWD_OP_K_CACHE, FORM_FLOAT, layer);
    e->in[2] = find_kept(j, FWD_OP_V_CACHE, FORM_FLOAT, layer);
    e->n_in = 3;
    /* A path without a cache reads the rows themselves. */
    if (!e->in[1] && (e->in[1] = history_view(&j->keys[layer], &made->a)))
        FWD_TRY(round_rows(j, 0, FWD_OP_K_CACHE, layer, &made->a, err));
    if (!e->in[2] && (e->in[2] = history_view(&j->values[layer], &made->b)))
        FWD_TRY(round_rows(j, 1, FWD_OP_V_CACHE, layer, &made->b, err));
    return FWD_OK;
}

static enum fwd_status find_inputs(struct par_judge *j, struct par_eval *e, struct made_views *made,
                                   struct fwd_error *err) {
    const struct fwd_numerics *nm = e->numerics;
    int layer = e->layer;
    e->n_in = 1;
    switch (e->op) {
    case FWD_OP_INP_EMBD:
        made->a = (struct fwd_view){.size = sizeof made->a, .dtype = FWD_I32, .n_pos = j->n_tokens, .data = j->tokens};
        e->in[0] = &made->a;
        return FWD_OK;
    case FWD_OP_ATTN_NORM:
        e->in[0] = find_residual(j, layer);
        return FWD_OK;
    case FWD_OP_QCUR:
    case FWD_OP_KCUR:
    case FWD_OP_VCUR:
        e->in[0] = find_act(j, FWD_OP_ATTN_NORM_Q8, FWD_OP_ATTN_NORM, layer, nm);
        return FWD_OK;
    case FWD_OP_K_CACHE:
        e->in[0] = history_view(&j->keys[layer], &made->a);
        return FWD_OK;
    case FWD_OP_V_CACHE:
        e->in[0] = history_view(&j->values[layer], &made->a);
        return FWD_OK;
    case FWD_OP_KQV_OUT:
        return find_attention(j, layer, e, made, err);
    case FWD_OP_ATTN_OUT:
        e->in[0] = find_act(j, FWD_OP_KQV_OUT_Q8, FWD_OP_KQV_OUT, layer, nm);
        return FWD_OK;
    case FWD_OP_FFN_INP:
        e->in[0] = find_kept(j, FWD_OP_ATTN_OUT, FORM_FLOAT, layer);
        e->in[1] = find_residual(j, layer);
        e->n_in = 2;
        return FWD_OK;
    case FWD_OP_FFN_NORM:
        e->in[0] = find_kept(j, FWD_OP_FFN_INP, FORM_FLOAT, layer);
        return FWD_OK;
    case FWD_OP_FFN_GATE:
    case FWD_OP_FFN_UP:
        e->in[0] = find_act(j, FWD_OP_FFN_NORM_Q8, FWD_OP_FFN_NORM, layer, nm);
        return FWD_OK;
    case FWD_OP_FFN_SWIGLU:
        e->in[0] = find_kept(j, FWD_OP_FFN_GATE, FORM_FLOAT, layer);
        e->in[1] = find_kept(j, FWD_OP_FFN_UP, FORM_FLOAT, layer);
        e->n_in = 2;
        return FWD_OK;
    case FWD_OP_FFN_OUT:
        e->in[0] = find_act(j, FWD_OP_FFN_SWIGLU_Q8, FWD_OP_FFN_SWIGLU, layer, nm);
        return FWD_OK;
    case FWD_OP_L_OUT:
        e->in[0] = find_kept(j, FWD_OP_FFN_OUT, FORM_FLOAT, layer);
        e->in[1] = find_kept(j, FWD_OP_FFN_INP, FORM_FLOAT, layer);
        e->n_in = 2;
        return FWD_OK;
    case FWD_OP_RESULT_NORM:
        e->in[0] = find_kept(j, FWD_OP_L_OUT, FORM_FLOAT, par_spec_config(j->model)->n_layer - 1);
        return FWD_OK;
    case FWD_OP_RESULT_OUTPUT:
        e->in[0] = find_act(j, FWD_OP_RESULT_NORM_Q8, FWD_OP_RESULT_NORM, -1, nm);
        return FWD_OK;
    case FWD_OP_QCUR_ROPE:
    case FWD_OP_KCUR_ROPE:
    case FWD_OP_ATTN_NORM_Q8:
    case FWD_OP_KQV_OUT_Q8:
    case FWD_OP_FFN_NORM_Q8:
    case FWD_OP_FFN_SWIGLU_Q8:
    case FWD_OP_RESULT_NORM_Q8:
    default: {
        /* One value in, one out: a _q8 op follows its float op in the enumeration; the rotations follow by three. */
        bool rope = e->op == FWD_OP_QCUR_ROPE || e->op == FWD_OP_KCUR_ROPE;
        enum fwd_op from = e->op == FWD_OP_QCUR_ROPE ? FWD_OP_QCUR : rope ? FWD_OP_KCUR : e->op - 1;
        e->in[0] = find_kept(j, from, FORM_FLOAT, layer);
        return FWD_OK;
    }
    }
}

/* ---- a tap
 * ----------------------------------------------------------------------------------------------------------- */
static enum fwd_status pick_positions(struct par_judge *j, const struct fwd_view *v, bool *any, struct fwd_error *err) {
    FWD_TRY(grow(&j->sample, &j->n_sample, (size_t)v->n_pos, err));
    *any = false;
    for (int i = 0; i < v->n_pos; i++) {
        int pos = v->pos0 + i;
        j->sample[i] = pos % j->options.sample_every == j->options.sample_at ||
                       (j->options.judge_also && (pos == j->options.also[0] || pos == j->options.also[1]));
        *any = *any || j->sample[i];
    }
    return FWD_OK;
}

static enum fwd_status judge_view(struct par_judge *j, const struct fwd_view *v, struct fwd_error *err) {
    int at = row_index(j, v->op, v->layer);
    struct fwd_numerics nm = {.size = sizeof nm};
    if (!j->options.numerics(j->options.numerics_ud, v->op, v->layer, &nm)) {
        j->hists[at].n_failed_calls++;
        (void)snprintf(j->rows[at].note, sizeof j->rows[at].note, "the path taps this op and declares no numerics");
        return FWD_OK;
    }
    if (j->options.known && j->options.known(j->options.known_ud, v))
        return FWD_OK;
    bool any;
    FWD_TRY(pick_positions(j, v, &any, err));
    if (!any && !is_cache(v->op))
        return FWD_OK;
    struct made_views made;
    struct par_eval e = {.op = v->op,
                         .layer = v->layer,
                         .pos0 = v->pos0,
                         .n_pos = v->n_pos,
                         .judge_pos = j->sample,
                         .out = v,
                         .numerics = &nm,
                         .bound = j->options.bound};
    FWD_TRY(find_inputs(j, &e, &made, err));
    return judge_or_wait(j, &e, err);
}

static enum fwd_status take_view(struct par_judge *j, const struct fwd_view *v, struct fwd_error *err) {
    int n_layer = par_spec_config(j->model)->n_layer;
    FWD_FAIL_IF(v->op < 0 || v->op >= FWD_OP_COUNT, FWD_ERANGE, err, "judge: a tap with op %d", (int)v->op);
    FWD_FAIL_IF(fwd_op_in_layer(v->op) && (v->layer < 0 || v->layer >= n_layer), FWD_ERANGE, err,
                "judge: a tap %s of layer %d, the file has %d layers", fwd_op_name(v->op), v->layer, n_layer);
    FWD_FAIL_IF(v->n_pos < 1 || v->pos0 < 0 || v->ne[0] < 1 || !v->data, FWD_EINPUT, err,
                "judge: a tap %s with %d positions from %d", fwd_op_name(v->op), v->n_pos, v->pos0);
    /* A new run: nothing of the one before may pass for its input. */
    if (v->op == FWD_OP_INP_EMBD)
        drop_kept(j);
    FWD_TRY(judge_view(j, v, err));
    if (v->device)
        return FWD_OK;
    if (v->op == FWD_OP_KCUR_ROPE)
        FWD_TRY(add_history(&j->keys[v->layer], v, err));
    if (v->op == FWD_OP_VCUR)
        FWD_TRY(add_history(&j->values[v->layer], v, err));
    return keep_view(j, v, err);
}

int par_judge_tap(void *ud, const struct fwd_view *view) {
    struct par_judge *j = ud;
    if (j->failure.code == FWD_OK)
        (void)take_view(j, view, &j->failure);
    return 0; /* the path goes on: a judge that fails must not change what is judged */
}

enum fwd_status par_judge_try(struct par_judge *j, const struct fwd_view *view, const uint8_t *judge_pos,
                              struct par_op_row *row, struct fwd_error *err) {
    struct par_ratio_histogram hist = {0};
    struct fwd_numerics nm = {.size = sizeof nm};
    struct made_views made;
    row->op = view->op;
    row->layer = view->layer;
    row->verdict = PAR_UNMEASURED;
    if (!j->options.numerics(j->options.numerics_ud, view->op, view->layer, &nm))
        return FWD_OK;
    struct par_eval e = {.op = view->op,
                         .layer = view->layer,
                         .pos0 = view->pos0,
                         .n_pos = view->n_pos,
                         .judge_pos = judge_pos,
                         .out = view,
                         .numerics = &nm,
                         .caps = j->options.caps,
                         .bound = j->options.bound};
    FWD_TRY(find_inputs(j, &e, &made, err));
    return par_judge_eval(j->model, j->options.pool, &e, row, &hist, err);
}

/* ---- results
 * --------------------------------------------------------------------------------------------------------- */
enum fwd_status par_judge_rows(struct par_judge *j, const struct par_op_row **rows, int *n_rows,
                               struct fwd_error *err) {
    if (j->failure.code == FWD_OK)
        (void)judge_all_waiting(j, &j->failure);
    if (j->failure.code != FWD_OK) {
        if (err)
            *err = j->failure;
        return j->failure.code;
    }
    for (int i = 0; i < j->n_rows; i++) {
        struct par_op_row *row = &j->rows[i];
        struct fwd_numerics nm = {.size = sizeof nm};
        if (row->n_judged || row->n_nonfinite_got || row->n_nonfinite_mismatch || j->hists[i].n_failed_calls)
            continue;
        row->verdict = PAR_UNMEASURED;
        bool declared = j->options.numerics(j->options.numerics_ud, row->op, row->layer, &nm);
        row->absent = !declared;
        (void)snprintf(row->note, sizeof row->note, "%s",
                       declared ? "its tap never came at a sampled position" : "absent from this path");
    }
    *rows = j->rows;
    *n_rows = j->n_rows;
    return FWD_OK;
}

void par_judge_take_evidence(struct par_judge *j, struct par_evidence_set *out) {
    par_evidence_drop_clean(&j->evidence);
    *out = j->evidence;
    j->evidence = (struct par_evidence_set){0};
}

bool par_judge_covers(const struct par_judge *j, int i, int pos) {
    size_t at = (size_t)pos * (size_t)j->n_rows + (size_t)i;
    return at < j->n_covered && j->covered[at];
}

void par_judge_coverage(const struct par_judge *j, int *n_positions, uint64_t *n_elements) {
    *n_positions = 0;
    *n_elements = 0;
    for (int pos = 0; (size_t)(pos + 1) * (size_t)j->n_rows <= j->n_covered; pos++) {
        bool any = false;
        for (int i = 0; i < j->n_rows && !any; i++)
            any = !is_cache(j->rows[i].op) && par_judge_covers(j, i, pos);
        *n_positions += any;
    }
    for (int i = 0; i < j->n_rows; i++)
        *n_elements += j->rows[i].n_judged;
}
