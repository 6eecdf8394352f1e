/* Copies of accused calls: packed, within a budget, with the taps that hold the same bits. */
#include "spec/evidence.h"

#include "spec/eval.h"

#include <string.h>

enum { MOST_OUT_BYTES = 16 << 20 }; /* of one call's output: a head's logits are kept at fewer positions */

static bool is_cache(enum fwd_op op) {
    return op == FWD_OP_K_CACHE || op == FWD_OP_V_CACHE;
}

static void free_call(struct par_evidence_call *c) {
    for (int i = 0; i < 4; i++)
        fwd_free(c->in[i].data);
    fwd_free(c->out.data);
    fwd_free(c->judge_pos);
}

void par_evidence_free(struct par_evidence_set *set) {
    for (int i = 0; i < set->n; i++) {
        for (int k = 0; k < set->items[i].n_calls; k++)
            free_call(&set->items[i].calls[k]);
        fwd_free(set->items[i].calls);
        fwd_free(set->items[i].positions);
    }
    fwd_free(set->items);
    *set = (struct par_evidence_set){0};
}

void par_evidence_drop_clean(struct par_evidence_set *set) {
    int n = 0;
    for (int i = 0; i < set->n; i++) {
        if (set->items[i].accused)
            set->items[n++] = set->items[i];
        else
            fwd_free(set->items[i].positions);
    }
    set->n = n;
    if (n == 0) { /* nothing that anybody would think of freeing */
        fwd_free(set->items);
        set->items = NULL;
    }
}

static struct par_evidence *find_item(const struct par_evidence_set *set, enum fwd_op op, int layer) {
    for (int i = 0; i < set->n; i++)
        if (set->items[i].op == op && set->items[i].layer == layer)
            return &set->items[i];
    return NULL;
}

const struct par_evidence *par_evidence_find(const struct par_evidence_set *set, enum fwd_op op, int layer) {
    const struct par_evidence *item = find_item(set, op, layer);
    return item && item->accused ? item : NULL;
}

void par_evidence_eval(const struct par_evidence *item, int i, struct par_eval *e) {
    const struct par_evidence_call *c = &item->calls[i];
    *e = (struct par_eval){.op = item->op,
                           .layer = item->layer,
                           .pos0 = c->out.pos0,
                           .n_pos = c->out.n_pos,
                           .judge_pos = c->judge_pos,
                           .n_in = c->n_in,
                           .out = &c->out,
                           .numerics = &item->numerics};
    for (int k = 0; k < c->n_in; k++)
        e->in[k] = c->in[k].data ? &c->in[k] : NULL;
}

/* ---- copies ---- */

/* Bytes of a packed copy of positions first .. first + n - 1 (of a cache: of all its rows). */
static size_t packed_bytes(const struct fwd_view *v, int n) {
    size_t row = v->dtype == FWD_I32 ? 4 : fwd_dtype_row_bytes(v->dtype, v->ne[0]);
    return is_cache(v->op) ? row * (size_t)(v->ne[1] * v->ne[2]) : row * (size_t)n;
}

static enum fwd_status copy_view(struct fwd_view *to, const struct fwd_view *from, int first, int n, size_t *used,
                                 struct fwd_error *err) {
    size_t bytes = packed_bytes(from, n);
    *to = *from;
    to->data = fwd_alloc(bytes, 1);
    FWD_FAIL_IF(!to->data, FWD_ENOMEM, err, "evidence: no memory for %zu bytes of %s", bytes, fwd_op_name(from->op));
    *used += bytes;
    uint8_t *dst = to->data;
    if (from->dtype == FWD_I32) {
        memcpy(dst, (const uint8_t *)from->data + 4 * (size_t)(first - from->pos0), bytes);
        to->pos0 = first;
        to->n_pos = n;
        return FWD_OK;
    }
    size_t row = fwd_dtype_row_bytes(from->dtype, from->ne[0]);
    to->nb[1] = (int64_t)row;
    if (is_cache(from->op)) {
        to->nb[2] = (int64_t)row * from->ne[1];
        for (int64_t r = 0; r < from->ne[2]; r++)
            for (int64_t h = 0; h < from->ne[1]; h++)
                memcpy(dst + (size_t)(r * from->ne[1] + h) * row,
                       (const uint8_t *)from->data + r * from->nb[2] + h * from->nb[1], row);
        return FWD_OK;
    }
    for (int i = 0; i < n; i++)
        memcpy(dst + (size_t)i * row, par_view_row(from, first + i), row);
    to->pos0 = first;
    to->n_pos = n;
    to->ne[1] = n;
    return FWD_OK;
}

/* ---- equal bits ---- */

static bool constant_row(const uint8_t *row, size_t value_bytes, size_t n_bytes) {
    return n_bytes <= value_bytes || !memcmp(row, row + value_bytes, n_bytes - value_bytes);
}

void par_evidence_twins(const struct fwd_view *out, const uint8_t *marks, const struct par_kept_view *kept, int n_kept,
                        struct par_twin twins[PAR_MAX_TWINS], int *n) {
    if (is_cache(out->op) || out->dtype == FWD_I32)
        return;
    size_t row_bytes = fwd_dtype_row_bytes(out->dtype, out->ne[0]), value = par_float_bytes(out->dtype);
    for (int own = out->pos0; own < out->pos0 + out->n_pos && *n < PAR_MAX_TWINS; own++) {
        const uint8_t *row = par_view_row(out, own);
        if ((marks && !marks[own]) || constant_row(row, value ? value : 1, row_bytes))
            continue;
        for (int k = 0; k < n_kept; k++) {
            const struct fwd_view *v = kept[k].view;
            if (is_cache(v->op) || v->dtype != out->dtype || v->ne[0] != out->ne[0])
                continue;
            for (int pos = v->pos0; pos < v->pos0 + v->n_pos && *n < PAR_MAX_TWINS; pos++)
                if (!memcmp(row, par_view_row(v, pos), row_bytes))
                    twins[(*n)++] = (struct par_twin){v->op, v->layer, pos, own};
        }
    }
}

void par_evidence_add_twins(struct par_evidence_set *set, enum fwd_op op, int layer, const uint8_t *accused_pos,
                            const struct par_twin *twins, int n) {
    struct par_evidence *item = find_item(set, op, layer);
    if (!item || item->n_calls == 0)
        return;
    struct par_evidence_call *c = &item->calls[item->n_calls - 1];
    for (int i = 0; i < n && c->n_twins < PAR_MAX_TWINS; i++) {
        int own = twins[i].own_pos;
        if (own >= c->out.pos0 && own < c->out.pos0 + c->out.n_pos && accused_pos[own])
            c->twins[c->n_twins++] = twins[i];
    }
}

/* ---- adding ---- */

static enum fwd_status make_item(struct par_evidence_set *set, const struct par_eval *e, struct par_evidence **out,
                                 struct fwd_error *err) {
    if ((*out = find_item(set, e->op, e->layer)) != NULL)
        return FWD_OK;
    size_t n = (size_t)set->n;
    struct par_evidence *items = fwd_realloc(set->items, n * sizeof *items, (n + 1) * sizeof *items, 1);
    FWD_FAIL_IF(!items, FWD_ENOMEM, err, "evidence: no memory for %zu ops", n + 1);
    set->items = items;
    *out = &items[set->n++];
    **out = (struct par_evidence){.op = e->op, .layer = e->layer};
    memcpy(&(*out)->numerics, e->numerics, sizeof *e->numerics);
    return FWD_OK;
}

static enum fwd_status mark_item(struct par_evidence *item, const struct par_eval *e, const uint8_t *accused_pos,
                                 struct fwd_error *err) {
    int n = e->pos0 + e->n_pos;
    if (n > item->n_positions) {
        uint8_t *p = fwd_realloc(item->positions, (size_t)item->n_positions, (size_t)n, 1);
        FWD_FAIL_IF(!p, FWD_ENOMEM, err, "evidence: no memory for %d positions", n);
        memset(p + item->n_positions, 0, (size_t)(n - item->n_positions));
        item->positions = p;
        item->n_positions = n;
    }
    for (int pos = is_cache(e->op) ? 0 : e->pos0; pos < n; pos++) {
        bool judged = is_cache(e->op) || !e->judge_pos || e->judge_pos[pos - e->pos0];
        uint8_t mark = accused_pos[pos] ? 2 : judged;
        item->positions[pos] = mark > item->positions[pos] ? mark : item->positions[pos];
    }
    return FWD_OK;
}

enum fwd_status par_evidence_mark(struct par_evidence_set *set, const struct par_eval *e, const uint8_t *accused_pos,
                                  struct fwd_error *err) {
    struct par_evidence *item;
    FWD_TRY(make_item(set, e, &item, err));
    return mark_item(item, e, accused_pos, err);
}

/* The positions of the output that are kept: all, or as many as MOST_OUT_BYTES holds from the first accused one. */
static void choose_window(const struct par_eval *e, const uint8_t *accused_pos, int *first, int *n) {
    size_t row = packed_bytes(e->out, 1);
    *first = e->pos0;
    *n = e->n_pos;
    if (is_cache(e->op) || row * (size_t)e->n_pos <= MOST_OUT_BYTES)
        return;
    while (*first < e->pos0 + e->n_pos - 1 && !accused_pos[*first])
        (*first)++;
    int fit = (int)(MOST_OUT_BYTES / row);
    fit = fit < 1 ? 1 : fit;
    *n = e->pos0 + e->n_pos - *first;
    *n = *n < fit ? *n : fit;
}

enum fwd_status par_evidence_add(struct par_evidence_set *set, const struct par_eval *e, const uint8_t *accused_pos,
                                 const struct par_kept_view *kept, int n_kept, size_t budget, struct fwd_error *err) {
    struct par_evidence *item;
    FWD_TRY(make_item(set, e, &item, err));
    FWD_TRY(mark_item(item, e, accused_pos, err));
    item->accused = true;
    int first, n;
    choose_window(e, accused_pos, &first, &n);
    size_t need = packed_bytes(e->out, n);
    for (int i = 0; i < e->n_in; i++)
        need += e->in[i] ? packed_bytes(e->in[i], e->in[i]->n_pos) : 0;
    if (item->n_calls == PAR_EVIDENCE_CALLS)
        return FWD_OK;
    if (set->bytes + need > budget) {
        set->n_dropped += item->n_calls == 0;
        return FWD_OK;
    }
    size_t k = (size_t)item->n_calls;
    struct par_evidence_call *calls = fwd_realloc(item->calls, k * sizeof *calls, (k + 1) * sizeof *calls, 1);
    FWD_FAIL_IF(!calls, FWD_ENOMEM, err, "evidence: no memory for %zu calls", k + 1);
    item->calls = calls;
    struct par_evidence_call *c = &calls[item->n_calls++];
    memset(c, 0, sizeof *c);
    c->n_in = e->n_in;
    c->judge_pos = fwd_alloc((size_t)n, 1);
    FWD_FAIL_IF(!c->judge_pos, FWD_ENOMEM, err, "evidence: no memory for %d marks", n);
    for (int i = 0; i < n; i++)
        c->judge_pos[i] = is_cache(e->op) || !e->judge_pos || e->judge_pos[first + i - e->pos0];
    FWD_TRY(copy_view(&c->out, e->out, first, n, &set->bytes, err));
    for (int i = 0; i < e->n_in; i++)
        if (e->in[i])
            FWD_TRY(copy_view(&c->in[i], e->in[i], e->in[i]->pos0, e->in[i]->n_pos, &set->bytes, err));
    par_evidence_twins(&c->out, accused_pos, kept, n_kept, c->twins, &c->n_twins);
    return FWD_OK;
}
