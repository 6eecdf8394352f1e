/* Where the wrong elements of one op lie. The evidence is judged again element by element; what is accused is described
 * as rows, heads and positions, and the rows of a matrix product are taken apart (localise/blocks.h). */
#include "localise/pattern.h"

#include "localise/blocks.h"
#include "localise/index_set.h"
#include "spec/eval.h"
#include "spec/spec_decode.h"
#include "spec/spec_quant.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    MOST_ELEMENTS = 2 << 20, /* judged again in one call: a head is looked at in fewer positions */
    MOST_POSITIONS = 128,    /* that a row is taken apart at */
    MOST_ROWS = 8,           /* that are taken apart */
    CLEAN_ROWS = 6           /* that prove the declared order */
};

static bool is_cache(enum fwd_op op) {
    return op == FWD_OP_K_CACHE || op == FWD_OP_V_CACHE;
}

/* Everything counted over the calls of an item. */
struct survey {
    const struct par_spec_model *m;
    struct fwd_pool *pool;
    const struct par_evidence *item;
    uint8_t **judge_pos; /* [n_calls] the positions that are looked at */
    uint8_t *pos_marks;  /* [n_pos] 0, 1 judged, 2 accused */
    uint8_t *row_marks;  /* [width] */
    int n_pos;
    int64_t width;
    uint64_t n_judged, n_accused, n_clean;
    double clean_square; /* of (residual / bound) of clean elements */
    double worst_ratio;
    int worst_pos, worst_call;
    int64_t worst_row;
    bool bias_is_wrong;
};

static void free_survey(struct survey *s) {
    for (int i = 0; s->judge_pos && i < s->item->n_calls; i++)
        fwd_free(s->judge_pos[i]);
    fwd_free((void *)s->judge_pos);
    fwd_free(s->pos_marks);
    fwd_free(s->row_marks);
}

/* ---- counting ------------------------------------------------------------------------------------------------------
 */
static void count_one(struct survey *s, int call, const struct par_elements *x, int p, int64_t row) {
    int64_t at = p * x->width + row;
    double expected = x->expected[at], got = x->got[at], bound = x->bound[at];
    int pos = x->pos0 + p;
    if (isnan(expected))
        return;
    double off = fabs(got - expected);
    bool same = got == expected || (isinf(expected) && isinf(got) && signbit(expected) == signbit(got));
    bool accused = !same && !(off <= bound);
    s->n_judged++;
    s->pos_marks[pos] = s->pos_marks[pos] == 2 || accused ? 2 : 1;
    s->row_marks[row] = s->row_marks[row] == 2 || accused ? 2 : 1;
    if (!accused) {
        s->n_clean += bound > 0 && isfinite(off);
        s->clean_square += bound > 0 && isfinite(off) ? off / bound * (off / bound) : 0;
        return;
    }
    double ratio = !isfinite(off) ? HUGE_VAL : bound > 0 ? off / bound : PAR_RATIO_CAP;
    s->n_accused++;
    if (s->n_accused == 1 || ratio > s->worst_ratio) {
        s->worst_ratio = ratio;
        s->worst_pos = pos;
        s->worst_row = row;
        s->worst_call = call;
    }
}

static enum fwd_status widen_positions(struct survey *s, int n_pos, struct fwd_error *err) {
    if (n_pos <= s->n_pos)
        return FWD_OK;
    uint8_t *p = fwd_realloc(s->pos_marks, (size_t)s->n_pos, (size_t)n_pos, 1);
    FWD_FAIL_IF(!p, FWD_ENOMEM, err, "localise: no memory for %d positions", n_pos);
    memset(p + s->n_pos, 0, (size_t)(n_pos - s->n_pos));
    s->pos_marks = p;
    s->n_pos = n_pos;
    return FWD_OK;
}

/* Room for the marks of x. */
static enum fwd_status widen(struct survey *s, const struct par_elements *x, struct fwd_error *err) {
    int n_pos = x->pos0 + x->n_pos;
    if (!s->row_marks) {
        s->width = x->width;
        s->row_marks = fwd_calloc((size_t)x->width, 1);
    }
    FWD_TRY(widen_positions(s, n_pos, err));
    FWD_FAIL_IF(!s->row_marks, FWD_ENOMEM, err, "localise: no memory for %lld rows", (long long)x->width);
    FWD_FAIL_IF(s->width != x->width, FWD_ESHAPE, err, "localise: calls of %s have %lld and %lld values a row",
                fwd_op_name(s->item->op), (long long)s->width, (long long)x->width);
    return FWD_OK;
}

/* The judged positions of a call, accused ones first if they are too many. */
static enum fwd_status choose_positions(struct survey *s, int call, const struct par_eval *e, struct fwd_error *err) {
    uint8_t *chosen = fwd_calloc((size_t)e->n_pos, 1);
    s->judge_pos[call] = chosen;
    FWD_FAIL_IF(!chosen, FWD_ENOMEM, err, "localise: no memory for %d positions", e->n_pos);
    int64_t left = is_cache(e->op) ? e->n_pos : 1 + MOST_ELEMENTS / e->out->ne[0];
    for (int accused = 1; accused >= 0; accused--)
        for (int i = 0; i < e->n_pos && left > 0; i++) {
            int pos = e->pos0 + i;
            bool is = pos < s->item->n_positions && s->item->positions[pos] == 2;
            if (chosen[i] || is != (accused == 1) || (e->judge_pos && !e->judge_pos[i]))
                continue;
            chosen[i] = 1;
            left--;
        }
    return FWD_OK;
}

static enum fwd_status survey_call(struct survey *s, int call, struct fwd_error *err) {
    struct par_eval e;
    struct par_elements x;
    par_evidence_eval(s->item, call, &e);
    FWD_TRY(choose_positions(s, call, &e, err));
    e.judge_pos = s->judge_pos[call];
    FWD_TRY(par_spec_elements(s->m, s->pool, &e, &x, err));
    enum fwd_status rc = widen(s, &x, err);
    for (int p = 0; rc == FWD_OK && p < x.n_pos; p++)
        for (int64_t row = 0; row < x.width; row++)
            count_one(s, call, &x, p, row);
    par_elements_free(&x);
    return rc;
}

static enum fwd_status survey_all(struct survey *s, struct fwd_error *err) {
    s->judge_pos = (uint8_t **)fwd_calloc((size_t)s->item->n_calls, sizeof *s->judge_pos);
    FWD_FAIL_IF(!s->judge_pos, FWD_ENOMEM, err, "localise: no memory for %d calls", s->item->n_calls);
    for (int i = 0; i < s->item->n_calls; i++)
        FWD_TRY(survey_call(s, i, err));
    /* Positions that were right in calls of which nothing was kept. */
    FWD_TRY(widen_positions(s, s->item->n_positions, err));
    for (int pos = 0; pos < s->item->n_positions; pos++)
        if (s->item->positions[pos] == 1 && s->pos_marks[pos] == 0)
            s->pos_marks[pos] = 1;
    return FWD_OK;
}

/* ---- heads ---------------------------------------------------------------------------------------------------------
 */
/* Heads in a row of the op's output; 0: it has none. */
static int head_count(const struct par_spec_config *c, enum fwd_op op) {
    switch (op) {
    case FWD_OP_QCUR:
    case FWD_OP_QCUR_ROPE:
    case FWD_OP_KQV_OUT:
        return c->n_head;
    case FWD_OP_KCUR:
    case FWD_OP_VCUR:
    case FWD_OP_KCUR_ROPE:
    case FWD_OP_K_CACHE:
    case FWD_OP_V_CACHE:
        return c->n_kv_head;
    default:
        return 0;
    }
}

struct head_marks {
    uint8_t *head, *dim; /* [n_heads], [dims] */
    int n_heads;
    int64_t dims;
};

static bool mark_heads(const struct survey *s, struct head_marks *h) {
    h->n_heads = head_count(par_spec_config(s->m), s->item->op);
    if (h->n_heads == 0 || s->width % h->n_heads)
        return false;
    h->dims = s->width / h->n_heads;
    h->head = fwd_calloc((size_t)h->n_heads + (size_t)h->dims, 1);
    if (!h->head)
        return false;
    h->dim = h->head + h->n_heads;
    for (int64_t i = 0; i < s->width; i++) {
        uint8_t *head = &h->head[i / h->dims], *dim = &h->dim[i % h->dims], mark = s->row_marks[i];
        *head = mark > *head ? mark : *head;
        *dim = mark > *dim ? mark : *dim;
    }
    return true;
}

/* "head 3", "dims 0-63 of every head": where heads say more than columns do. */
static bool describe_heads(const struct survey *s, struct par_pattern *out, char *text, size_t size) {
    struct head_marks h = {0};
    if (!mark_heads(s, &h))
        return false;
    struct par_index_set heads, dims;
    char head_text[64], dim_text[64];
    par_index_set_describe(h.head, h.n_heads, "head", false, &heads, head_text, sizeof head_text);
    par_index_set_describe(h.dim, h.dims, "dim", false, &dims, dim_text, sizeof dim_text);
    fwd_free(h.head);
    out->head = heads.n == 1 ? (int)heads.first : -1;
    bool fills = 2 * out->n_rows_accused >= heads.n * dims.n && out->n_rows_accused > 4;
    if (!fills || (heads.all && 10 * dims.n >= 9 * h.dims))
        return false;
    if (10 * dims.n >= 9 * h.dims)
        (void)snprintf(text, size, "%s", head_text);
    else
        (void)snprintf(text, size, "%s of %s", dim_text, head_text);
    return true;
}

/* ---- in words ------------------------------------------------------------------------------------------------------
 */
static const char *noun_of(enum fwd_op op) {
    return par_eval_is_matmul(op) ? "row" : "column";
}

/* The blocks of a _q8 op, from marks over its codes and scales. */
static enum fwd_status describe_q8(const struct survey *s, struct par_pattern *out, char *text, size_t size,
                                   struct fwd_error *err) {
    int block = par_q8_block_values(s->item->calls[0].out.dtype);
    int64_t k = s->item->calls[0].out.ne[0], n_blocks = k / block;
    uint8_t *marks = fwd_calloc((size_t)n_blocks, 1);
    FWD_FAIL_IF(!marks, FWD_ENOMEM, err, "localise: no memory for %lld blocks", (long long)n_blocks);
    bool codes = false, scales = false;
    for (int64_t i = 0; i < s->width; i++) {
        int64_t b = i < k ? i / block : i - k;
        marks[b] = s->row_marks[i] > marks[b] ? s->row_marks[i] : marks[b];
        codes = codes || (i < k && s->row_marks[i] == 2);
        scales = scales || (i >= k && s->row_marks[i] == 2);
    }
    struct par_index_set set;
    char blocks[96];
    par_index_set_describe(marks, n_blocks, "block", false, &set, blocks, sizeof blocks);
    (void)snprintf(text, size, "%s%s", codes && scales ? "" : codes ? "codes of " : "scales of ", blocks);
    out->block_values = block;
    for (int64_t b = 0; b < n_blocks && set.n <= PAR_PATTERN_BLOCKS; b++)
        if (marks[b] == 2)
            out->block[out->n_blocks++] = b;
    out->n_rows_accused = set.n;
    fwd_free(marks);
    if (set.all)
        (void)snprintf(text, size, "%s",
                       codes && scales ? "every block"
                       : codes         ? "codes of every block"
                                       : "scales of every block");
    return FWD_OK;
}

struct words {
    char rows[160], positions[96];
    struct par_index_set row_set, pos_set;
};

static void join_words(const struct survey *s, const struct words *w, const char *all_rows, char *text, size_t size) {
    bool all_pos = w->pos_set.all && w->pos_set.n > 1;
    if (s->n_accused == 0)
        (void)snprintf(text, size, "nothing is accused");
    else if (s->n_accused == 1)
        (void)snprintf(text, size, "one element: %s of %s", w->rows, w->positions);
    else if (w->row_set.all && all_pos && s->n_accused == s->n_judged)
        (void)snprintf(text, size, "all elements");
    else if (w->row_set.all && all_pos)
        (void)snprintf(text, size, "everywhere (%llu of %llu elements)", (unsigned long long)s->n_accused,
                       (unsigned long long)s->n_judged);
    else if (w->row_set.all && w->row_set.n > 1 && w->pos_set.n > 1 && all_rows)
        (void)snprintf(text, size, "%s", w->positions);
    else if (all_pos)
        (void)snprintf(text, size, "%s of every position", w->rows);
    else
        (void)snprintf(text, size, "%s of %s", w->rows, w->positions);
}

static enum fwd_status describe_where(const struct survey *s, struct par_pattern *out, char *text, size_t size,
                                      struct fwd_error *err) {
    struct words w;
    enum fwd_op op = s->item->op;
    par_index_set_describe(s->row_marks, s->width, noun_of(op), false, &w.row_set, w.rows, sizeof w.rows);
    par_index_set_describe(s->pos_marks, s->n_pos, is_cache(op) ? "cache row" : "position", true, &w.pos_set,
                           w.positions, sizeof w.positions);
    out->n_judged = s->n_judged;
    out->n_accused = s->n_accused;
    out->pos_first = (int)w.pos_set.first;
    out->pos_last = (int)w.pos_set.last;
    out->n_pos_accused = (int)w.pos_set.n;
    out->n_pos_judged = (int)w.pos_set.n_judged;
    out->row_first = w.row_set.first;
    out->row_last = w.row_set.last;
    out->n_rows_accused = w.row_set.n;
    bool blocks = par_q8_block_values(s->item->calls[0].out.dtype) != 0;
    if (blocks)
        FWD_TRY(describe_q8(s, out, w.rows, sizeof w.rows, err));
    else if (describe_heads(s, out, w.rows, sizeof w.rows))
        w.row_set.all = false;
    join_words(s, &w, blocks ? NULL : "", text, size);
    return FWD_OK;
}

/* ---- the rows of a matrix ------------------------------------------------------------------------------------------
 */
/* What the analysis of rows needs at the positions it looks at, over all calls. */
struct rows {
    struct survey *s;
    const struct spec_weight *weight, *bias;
    struct par_acts acts;
    double *expected, *got, *bound; /* [acts.n_pos] of one row */
    double noise;
    bool in_order;
    uint8_t **take; /* [n_calls] the positions that rows are taken apart at */
};

static void free_take(struct rows *r) {
    for (int i = 0; r->take && i < r->s->item->n_calls; i++)
        fwd_free(r->take[i]);
    fwd_free((void *)r->take);
}

/* Accused positions first; clean ones if wanted and if there is room. */
static enum fwd_status take_positions(struct rows *r, bool accused_only, struct fwd_error *err) {
    int left = MOST_POSITIONS;
    for (int accused = 1; accused >= (accused_only ? 1 : 0); accused--)
        for (int call = 0; call < r->s->item->n_calls; call++) {
            struct par_eval e;
            par_evidence_eval(r->s->item, call, &e);
            if (!r->take[call])
                r->take[call] = fwd_calloc((size_t)e.n_pos, 1);
            FWD_FAIL_IF(!r->take[call], FWD_ENOMEM, err, "localise: no memory for %d positions", e.n_pos);
            for (int i = 0; i < e.n_pos; i++) {
                bool is = r->s->pos_marks[e.pos0 + i] == 2;
                if (accused)
                    r->take[call][i] = 0;
                if (left == 0 || !r->s->judge_pos[call][i] || is != (accused == 1))
                    continue;
                r->take[call][i] = 1;
                left--;
            }
        }
    return FWD_OK;
}

static enum fwd_status read_acts(struct rows *r, struct fwd_error *err) {
    r->acts.n_pos = 0;
    for (int call = 0; call < r->s->item->n_calls; call++) {
        struct par_eval e;
        int pos[MOST_POSITIONS], n = 0;
        par_evidence_eval(r->s->item, call, &e);
        for (int i = 0; i < e.n_pos; i++)
            if (r->take[call][i])
                pos[n++] = e.pos0 + i;
        FWD_TRY(par_acts_add(&e, r->weight->n_cols, pos, n, &r->acts, err));
    }
    return FWD_OK;
}

/* One row of the matrix as a matrix of its own: its elements at the positions in r->acts. */
static enum fwd_status row_elements(struct rows *r, const struct par_spec_altered *one, int64_t row,
                                    struct fwd_error *err) {
    int at = 0;
    for (int call = 0; call < r->s->item->n_calls; call++) {
        struct par_eval e;
        struct par_elements x;
        par_evidence_eval(r->s->item, call, &e);
        struct fwd_view out = *e.out;
        out.ne[0] = 1;
        out.data = (uint8_t *)out.data + row * (int64_t)fwd_dtype_row_bytes(out.dtype, 1);
        e.out = &out;
        e.judge_pos = r->take[call];
        FWD_TRY(par_spec_elements(&one->model, NULL, &e, &x, err));
        for (int i = 0; i < x.n_pos; i++) {
            if (!r->take[call][i])
                continue;
            r->expected[at] = x.expected[i];
            r->got[at] = x.got[i];
            r->bound[at++] = x.bound[i];
        }
        par_elements_free(&x);
    }
    return FWD_OK;
}

static enum fwd_status load_row(struct rows *r, int64_t row, float *bias, struct par_row_case *out,
                                struct fwd_error *err) {
    struct par_spec_altered one;
    FWD_TRY(par_spec_alter(&one, r->s->m, r->s->item->layer, err));
    struct spec_weight *w = par_spec_altered_weight(&one, r->s->item->op);
    w->data += row * w->row_bytes;
    w->n_rows = 1;
    w->tensor = NULL;
    struct spec_weight *b = r->bias ? par_spec_altered_bias(&one, r->s->item->op) : NULL;
    if (b) {
        int64_t value_bytes = par_decode_row_bytes(b->type, 1);
        b->data += row * value_bytes;
        b->n_cols = 1;
        b->row_bytes = value_bytes;
        par_decode_row(b->type, b->data, bias, 1);
    }
    enum fwd_status rc = row_elements(r, &one, row, err);
    par_spec_alter_free(&one);
    *out = (struct par_row_case){.weight = r->weight,
                                 .row = row,
                                 .bias = b ? bias : NULL,
                                 .numerics = &r->s->item->numerics,
                                 .acts = &r->acts,
                                 .expected = r->expected,
                                 .got = r->got,
                                 .bound = r->bound,
                                 .noise = r->noise,
                                 .in_order = r->in_order};
    return rc;
}

/* Rows without an accusation, the nearest to the worst one: does the declared chain give their bits? */
static enum fwd_status prove_order(struct rows *r, struct fwd_error *err) {
    const struct survey *s = r->s;
    int n = 0;
    bool same = true;
    for (int64_t step = 1; same && n < CLEAN_ROWS && step < s->width; step++)
        for (int64_t side = -1; same && side <= 1; side += 2) {
            int64_t row = s->worst_row + side * step;
            if (row < 0 || row >= s->width || s->row_marks[row] != 1)
                continue;
            float bias;
            struct par_row_case c;
            FWD_TRY(load_row(r, row, &bias, &c, err));
            same = par_row_repeats(&c);
            n++;
        }
    r->in_order = same && n >= CLEAN_ROWS / 2;
    return FWD_OK;
}

/* The worst row and others spread over those accused. */
static int choose_rows(const struct survey *s, int64_t *rows) {
    int64_t n_accused = 0, seen = 0;
    int n = 1;
    rows[0] = s->worst_row;
    for (int64_t i = 0; i < s->width; i++)
        n_accused += s->row_marks[i] == 2 && i != s->worst_row;
    int64_t take = n_accused < MOST_ROWS - 1 ? n_accused : MOST_ROWS - 1;
    for (int64_t i = 0; i < s->width && n <= take; i++)
        if (s->row_marks[i] == 2 && i != s->worst_row && seen++ == (n - 1) * n_accused / take)
            rows[n++] = i;
    return n;
}

static bool same_part(const struct par_row_fit *a, const struct par_row_fit *b) {
    return a->kind == b->kind && a->block_first == b->block_first && a->block_last == b->block_last &&
           (a->kind != PAR_FIT_MOVED || (a->delta == b->delta && a->factor == b->factor));
}

/* What three rows in four say, or nothing. */
static const struct par_row_fit *agreed(const struct par_row_fit *fits, int n) {
    for (int i = 0; i < n; i++) {
        int same = 0;
        for (int k = 0; k < n; k++)
            same += same_part(&fits[i], &fits[k]);
        if (fits[i].kind != PAR_FIT_NONE && 4 * same >= 3 * n)
            return &fits[i];
    }
    return NULL;
}

/* "the bias off by 0.25": of no block. */
static void name_row_error(const struct par_row_fit *fits, int n, const struct par_row_fit *fit, const char *where,
                           struct par_pattern *out) {
    char what[96];
    par_fit_describe(fit, what, sizeof what);
    out->block_share = fit->share;
    if (n == 1 || fabs(fits[0].factor - fits[1].factor) <= 1e-3 * fabs(fits[0].factor))
        (void)snprintf(out->text, sizeof out->text, "%s: %s", where, what);
    else
        (void)snprintf(out->text, sizeof out->text, "%s: %s", where,
                       fit->kind == PAR_FIT_BIAS ? "a constant of its own is added" : "times a factor of its own");
}

static void name_blocks(const struct par_row_fit *fits, int n, const struct par_row_fit *fit, int64_t n_blocks,
                        const char *where, struct par_pattern *out) {
    char what[96], blocks[48];
    bool same_k = true;
    for (int i = 0; i < n; i++)
        same_k = same_k && (!same_part(&fits[i], fit) || fits[i].k_first == fit->k_first);
    same_k = same_k || fit->kind == PAR_FIT_CODES;
    out->k_first = same_k ? fit->k_first : -1;
    out->k_last = same_k ? fit->k_last : -1;
    out->block_share = fit->share;
    for (int64_t b = fit->block_first; b <= fit->block_last && out->n_blocks < PAR_PATTERN_BLOCKS; b++)
        out->block[out->n_blocks++] = b;
    if (n_blocks > 1 && fit->block_last - fit->block_first == n_blocks - 1)
        (void)snprintf(blocks, sizeof blocks, "all K-blocks");
    else if (fit->block_first == fit->block_last)
        (void)snprintf(blocks, sizeof blocks, "K-block %lld", (long long)fit->block_first);
    else
        (void)snprintf(blocks, sizeof blocks, "K-blocks %lld-%lld", (long long)fit->block_first,
                       (long long)fit->block_last);
    par_fit_describe(fit, what, sizeof what);
    if (same_k || fit->k_first < 0)
        (void)snprintf(out->text, sizeof out->text, "%s of %s: %s", blocks, where, what);
    else
        (void)snprintf(out->text, sizeof out->text, "%s of %s", blocks, where);
}

/* No one number explains the rows: does the shape of their residuals over positions point into one block? Named only
 * when that is far likelier than any other block, than the row as a whole, and than noise. */
static enum fwd_status find_span(struct rows *r, const int64_t *rows, int n, struct par_row_fit *fit,
                                 struct fwd_error *err) {
    const double far = 40; /* of log-likelihood: odds of 10^17 */
    int64_t n_blocks = r->weight->n_cols / par_fit_block_values(r->weight), best = 0;
    if (n_blocks < 2 || r->acts.n_pos < PAR_SPAN_POSITIONS)
        return FWD_OK;
    double *sum = fwd_calloc(2 * (size_t)(n_blocks + 2), sizeof *sum);
    FWD_FAIL_IF(!sum, FWD_ENOMEM, err, "localise: no memory for %lld blocks", (long long)n_blocks);
    double *like = sum + n_blocks + 2;
    enum fwd_status rc = FWD_OK;
    for (int i = 0; rc == FWD_OK && i < n; i++) {
        float bias;
        struct par_row_case c;
        rc = load_row(r, rows[i], &bias, &c, err);
        if (rc == FWD_OK)
            rc = par_row_span(&c, like, err);
        for (int64_t b = 0; rc == FWD_OK && b < n_blocks + 2; b++)
            sum[b] += like[b];
    }
    for (int64_t b = 1; b < n_blocks + 2; b++)
        best = sum[b] > sum[best] ? b : best;
    bool clear = best < n_blocks;
    for (int64_t b = 0; b < n_blocks + 2; b++)
        clear = clear && (b == best || sum[best] - sum[b] > far);
    fwd_free(sum);
    if (rc == FWD_OK && clear)
        *fit = (struct par_row_fit){
            .kind = PAR_FIT_CODES, .block_first = best, .block_last = best, .k_first = -1, .k_last = -1};
    return rc;
}

static enum fwd_status explain_rows(struct rows *r, const char *where, struct par_pattern *out, bool *found,
                                    struct fwd_error *err) {
    int64_t rows[MOST_ROWS];
    struct par_row_fit fits[MOST_ROWS];
    int n = choose_rows(r->s, rows);
    for (int i = 0; i < n; i++) {
        float bias;
        struct par_row_case c;
        FWD_TRY(load_row(r, rows[i], &bias, &c, err));
        FWD_TRY(par_row_explain(&c, &fits[i], err));
    }
    const struct par_row_fit *fit = agreed(fits, n);
    struct par_row_fit span = {.kind = PAR_FIT_NONE};
    if (!fit) {
        FWD_TRY(find_span(r, rows, n, &span, err));
        fit = span.kind == PAR_FIT_NONE ? NULL : &span;
    }
    *found = fit != NULL;
    if (!fit)
        return FWD_OK;
    bool all = r->s->n_accused == r->s->n_judged || !strncmp(where, "everywhere", 10);
    if (fit->kind == PAR_FIT_BIAS || fit->kind == PAR_FIT_ROW)
        name_row_error(fits, n, fit, all ? "every row" : where, out);
    else
        name_blocks(fits, n, fit, r->weight->n_cols / out->block_values, all ? "every row" : where, out);
    r->s->bias_is_wrong = fit->kind == PAR_FIT_BIAS && r->bias;
    return FWD_OK;
}

/* Root mean square of clean residuals as a share of their bounds; few clean elements hardly move it from a guess. */
static double typical_noise(const struct survey *s) {
    const double guess = 0.1, weight = 8;
    return sqrt((s->clean_square + weight * guess * guess) / ((double)s->n_clean + weight));
}

static enum fwd_status find_blocks(struct survey *s, const char *where, struct par_pattern *out,
                                   struct fwd_error *err) {
    struct rows r = {.s = s,
                     .weight = par_spec_weight(s->m, s->item->op, s->item->layer),
                     .bias = par_spec_bias(s->m, s->item->op, s->item->layer),
                     .noise = typical_noise(s)};
    out->block_values = par_fit_block_values(r.weight);
    if (out->block_values == 0)
        return FWD_OK;
    r.expected = fwd_alloc(MOST_POSITIONS, 3 * sizeof *r.expected);
    FWD_FAIL_IF(!r.expected, FWD_ENOMEM, err, "localise: no memory for a row's elements");
    r.got = r.expected + MOST_POSITIONS;
    r.bound = r.got + MOST_POSITIONS;
    r.take = (uint8_t **)fwd_calloc((size_t)s->item->n_calls, sizeof *r.take);
    enum fwd_status rc = r.take ? FWD_OK : fwd_fail(err, FWD_ENOMEM, __FILE__, __LINE__, "localise: no memory");
    /* A fault that acts at some positions only is contradicted by the others: then these are left out. */
    bool part = out->n_pos_accused < out->n_pos_judged, found = false;
    for (int i = 0; rc == FWD_OK && !found && i < (part ? 2 : 1); i++) {
        rc = take_positions(&r, i == 1, err);
        if (rc == FWD_OK)
            rc = read_acts(&r, err);
        if (rc == FWD_OK)
            rc = prove_order(&r, err);
        if (rc == FWD_OK)
            rc = explain_rows(&r, where, out, &found, err);
    }
    free_take(&r);
    par_acts_free(&r.acts);
    fwd_free(r.expected);
    return rc;
}

/* ---- bytes of the model file ---------------------------------------------------------------------------------------
 */
/* The row of a table that a token id picks; -1: not known. */
static int64_t embedding_row(const struct survey *s) {
    const struct fwd_view *in = &s->item->calls[s->worst_call].in[0];
    int32_t id;
    if (!in->data || in->dtype != FWD_I32 || s->worst_pos < in->pos0 || s->worst_pos >= in->pos0 + in->n_pos)
        return -1;
    memcpy(&id, (const uint8_t *)in->data + 4 * (s->worst_pos - in->pos0), sizeof id);
    return id;
}

static void find_bytes(const struct survey *s, struct par_pattern *out) {
    const struct spec_weight *w = s->bias_is_wrong ? par_spec_bias(s->m, s->item->op, s->item->layer)
                                                   : par_spec_weight(s->m, s->item->op, s->item->layer);
    if (!w || !w->data || !w->tensor)
        return;
    int block = par_decode_block_values(w->type);
    int64_t row = 0, first = 0, n_values = w->n_cols;
    bool matrix = par_eval_is_matmul(s->item->op) && !s->bias_is_wrong;
    if (matrix) {
        row = s->worst_row;
    } else if (s->item->op == FWD_OP_INP_EMBD) {
        row = embedding_row(s);
    } else { /* a norm's or bias's value of one column */
        first = s->worst_row;
        n_values = 1;
    }
    if (matrix && out->n_blocks) {
        first = out->block[0] * out->block_values;
        n_values = (out->block[out->n_blocks - 1] + 1) * out->block_values - first;
    }
    if (block == 0 || row < 0 || row >= w->n_rows || first % block)
        return;
    (void)snprintf(out->tensor, sizeof out->tensor, "%s", w->name);
    uint64_t at = w->tensor->file_offset + (uint64_t)(row * w->row_bytes);
    out->byte_first = at + (first ? (uint64_t)par_decode_row_bytes(w->type, first) : 0);
    out->byte_last = out->byte_first + (uint64_t)par_decode_row_bytes(w->type, n_values) - 1;
}

/* ------------------------------------------------------------------------------------------------------------------ */
enum fwd_status par_pattern_find(const struct par_spec_model *m, struct fwd_pool *pool, const struct par_evidence *item,
                                 struct par_pattern *out, struct fwd_error *err) {
    *out = (struct par_pattern){
        .pos_first = -1, .pos_last = -1, .row_first = -1, .row_last = -1, .head = -1, .k_first = -1, .k_last = -1};
    if (item->n_calls == 0) {
        (void)snprintf(out->text, sizeof out->text, "not known: its inputs were not kept");
        return FWD_OK;
    }
    struct survey s = {.m = m, .pool = pool, .item = item};
    char where[320] = "";
    enum fwd_status rc = survey_all(&s, err);
    if (rc == FWD_OK)
        rc = describe_where(&s, out, where, sizeof where, err);
    if (rc == FWD_OK) {
        (void)snprintf(out->text, sizeof out->text, "%.300s", where);
        if (par_eval_is_matmul(item->op) && s.n_accused)
            rc = find_blocks(&s, where, out, err);
    }
    if (rc == FWD_OK && s.n_accused)
        find_bytes(&s, out);
    free_survey(&s);
    return rc;
}
