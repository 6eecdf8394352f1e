#include "judge/align.h"

#include "spec/ratio_histogram.h"
#include "spec/spec_decode.h"
#include "spec/spec_model.h"

#include <math.h>
#include <string.h>

static bool has_heads(enum fwd_op op) {
    return op == FWD_OP_QCUR || op == FWD_OP_KCUR || op == FWD_OP_QCUR_ROPE || op == FWD_OP_KCUR_ROPE;
}

static bool has_form(const struct par_spec_model *m, const struct fwd_view *v, enum par_tap_form form) {
    const struct par_spec_config *c = par_spec_config(m);
    const struct spec_weight *bias = par_spec_bias(m, v->op, v->layer);
    switch (form) {
    case PAR_FORM_BEFORE_BIAS:
        return bias && bias->data && v->dtype == FWD_F32;
    case PAR_FORM_PAIRS_SPLIT:
    case PAR_FORM_PAIRS_JOINED:
        return has_heads(v->op) && c->n_rope == c->head_dim && v->nb[0] > 0;
    case PAR_FORM_TRANSPOSED:
        return v->n_pos > 1 && v->nb[0] > 0 && v->ne[2] == 1;
    default:
        return false;
    }
}

static void add_bias(const struct spec_weight *bias, struct fwd_view *v, float *row) {
    par_decode_row(bias->type, bias->data, row, bias->n_cols);
    for (int p = 0; p < v->n_pos; p++) {
        uint8_t *at = (uint8_t *)v->data + p * v->nb[1];
        for (int64_t k = 0; k < v->ne[0]; k++) {
            float x;
            memcpy(&x, at + 4 * k, sizeof x);
            x += row[k];
            memcpy(at + 4 * k, &x, sizeof x);
        }
    }
}

/* Value k of a head comes from: the halves of the pairs joined again, or split. */
static int64_t pair_from(bool split, int64_t k, int64_t d) {
    return split ? k % 2 * (d / 2) + k / 2 : k % (d / 2) * 2 + k / (d / 2);
}

static void turn_pairs(int64_t d, bool split, struct fwd_view *v, uint8_t *row) {
    size_t one = (size_t)v->nb[0];
    for (int p = 0; p < v->n_pos; p++) {
        uint8_t *at = (uint8_t *)v->data + p * v->nb[1];
        memcpy(row, at, one * (size_t)v->ne[0]);
        for (int64_t k = 0; k < v->ne[0]; k++)
            memcpy(at + (size_t)k * one, row + (size_t)(k / d * d + pair_from(split, k % d, d)) * one, one);
    }
}

static void turn_round(struct fwd_view *v, uint8_t *copy) {
    size_t one = (size_t)v->nb[0], n = (size_t)v->n_pos, width = (size_t)v->ne[0];
    memcpy(copy, v->data, one * n * width);
    for (size_t p = 0; p < n; p++)
        for (size_t k = 0; k < width; k++)
            memcpy((uint8_t *)v->data + (p * width + k) * one, copy + (k * n + p) * one, one);
}

enum fwd_status par_align_apply(const struct par_spec_model *m, enum par_tap_form form, struct fwd_view *view,
                                struct fwd_error *err) {
    if (form == PAR_FORM_NAMED)
        return FWD_OK;
    FWD_FAIL_IF(!has_form(m, view, form), FWD_EUNSUPPORTED, err, "%s cannot be %s in this model", fwd_op_name(view->op),
                par_tap_form_name(form));
    uint8_t *work = fwd_alloc((size_t)(view->ne[0] * view->n_pos), 8);
    FWD_FAIL_IF(!work, FWD_ENOMEM, err, "%s: no memory for its rows", fwd_op_name(view->op));
    if (form == PAR_FORM_BEFORE_BIAS)
        add_bias(par_spec_bias(m, view->op, view->layer), view, (float *)(void *)work);
    else if (form == PAR_FORM_TRANSPOSED)
        turn_round(view, work);
    else
        turn_pairs(par_spec_config(m)->head_dim, form == PAR_FORM_PAIRS_SPLIT, view, work);
    fwd_free(work);
    return FWD_OK;
}

/* ---- what reads the tap ------------------------------------------------------------------------------------------ */

static const struct par_call *find_reader(const struct par_align *a, const struct fwd_view *v) {
    enum fwd_op reader = v->op == FWD_OP_QCUR   ? FWD_OP_QCUR_ROPE
                         : v->op == FWD_OP_KCUR ? FWD_OP_KCUR_ROPE
                         : v->op == FWD_OP_VCUR ? FWD_OP_KQV_OUT
                                                : FWD_OP_COUNT;
    for (int i = 0; i < a->calls->n && reader != FWD_OP_COUNT; i++) {
        const struct par_call *c = &a->calls->calls[i];
        if (c->op == reader && c->layer == v->layer && c->pos0 <= v->pos0 && c->pos0 + c->n_pos > v->pos0)
            return c;
    }
    return NULL;
}

/* The rotation of these values is what the capture shows as rotated. */
static enum fwd_status rotation_fits(const struct par_align *a, const struct fwd_view *v,
                                     const struct fwd_view *rotated, bool *fits, struct fwd_error *err) {
    struct par_ratio_histogram hist = {0};
    struct par_op_row row = {0};
    struct fwd_numerics nm = {.size = sizeof nm};
    *fits = false;
    if (!a->numerics(a->numerics_ud, rotated->op, rotated->layer, &nm))
        return FWD_OK;
    struct fwd_view in = *v;
    struct par_eval e = {.op = rotated->op,
                         .layer = rotated->layer,
                         .pos0 = rotated->pos0,
                         .n_pos = rotated->n_pos,
                         .n_in = 1,
                         .in = {&in},
                         .out = rotated,
                         .numerics = &nm};
    uint8_t *marks = fwd_calloc((size_t)rotated->n_pos, 1);
    FWD_FAIL_IF(!marks, FWD_ENOMEM, err, "no memory for %d marks", rotated->n_pos);
    for (int p = 0; p < rotated->n_pos; p++)
        marks[p] = rotated->pos0 + p >= v->pos0 && rotated->pos0 + p < v->pos0 + v->n_pos;
    e.judge_pos = marks;
    enum fwd_status rc = par_judge_eval(a->model, a->pool, &e, &row, &hist, err);
    fwd_free(marks);
    *fits = row.n_judged > 0 && row.verdict == PAR_HELD;
    return rc;
}

/* Attention at position 0 has one key: what comes out of a head is its value, rounded at most to binary16. */
static bool first_value_fits(const struct par_spec_config *c, const struct fwd_view *v, const struct fwd_view *out) {
    if (v->pos0 != 0 || out->pos0 != 0 || v->dtype != FWD_F32 || out->dtype != FWD_F32)
        return false;
    const float *x = v->data, *y = out->data;
    int group = c->n_head / c->n_kv_head;
    for (int h = 0; h < c->n_head; h++)
        for (int k = 0; k < c->head_dim; k++) {
            double a = (double)x[h / group * c->head_dim + k], b = (double)y[h * c->head_dim + k];
            if (!(fabs(a - b) <= 0x1p-9 * fabs(a) + 0x1p-24))
                return false;
        }
    return true;
}

static enum fwd_status reader_fits(const struct par_align *a, const struct fwd_view *v, bool *fits,
                                   struct fwd_error *err) {
    const struct par_call *reader = find_reader(a, v);
    struct fwd_view shown;
    uint8_t *bytes;
    *fits = false;
    if (!reader)
        return FWD_OK;
    FWD_TRY(par_call_read(reader, a->import, par_spec_config(a->model), &shown, &bytes, err));
    enum fwd_status rc = FWD_OK;
    if (v->op == FWD_OP_VCUR)
        *fits = first_value_fits(par_spec_config(a->model), v, &shown);
    else
        rc = rotation_fits(a, v, &shown, fits, err);
    fwd_free(bytes);
    return rc;
}

/* ---- trying ------------------------------------------------------------------------------------------------------ */

static enum fwd_status try_view(const struct par_align *a, const struct fwd_view *v, struct par_op_row *row,
                                struct fwd_error *err) {
    uint8_t *marks = fwd_calloc((size_t)v->n_pos, 1);
    FWD_FAIL_IF(!marks, FWD_ENOMEM, err, "no memory for %d marks", v->n_pos);
    marks[v->n_pos - 1] = 1; /* position 0 hides much: no rotation there, massive activations */
    *row = (struct par_op_row){.op = v->op};
    enum fwd_status rc = par_judge_try(a->judge, v, marks, row, err);
    fwd_free(marks);
    return rc;
}

enum fwd_status par_align_find(const struct par_align *a, const struct fwd_view *view, enum par_tap_form *form,
                               bool *tried, struct fwd_error *err) {
    struct par_op_row row;
    bool any = false, reads_as_named = false;
    *form = PAR_FORM_NAMED;
    *tried = true;
    for (int f = 1; f < PAR_FORM_COUNT; f++)
        any = any || has_form(a->model, view, (enum par_tap_form)f);
    if (!any || view->nb[0] <= 0)
        return FWD_OK;
    FWD_TRY(try_view(a, view, &row, err));
    *tried = row.n_judged > 0;
    if (!*tried || row.verdict != PAR_DIVERGED)
        return FWD_OK;
    FWD_TRY(reader_fits(a, view, &reads_as_named, err));
    if (reads_as_named)
        return FWD_OK;
    size_t n_bytes = (size_t)view->n_pos * (size_t)view->nb[1];
    struct fwd_view other = *view;
    uint8_t *copy = fwd_alloc(n_bytes, 1);
    FWD_FAIL_IF(!copy, FWD_ENOMEM, err, "%s: no memory for its rows", fwd_op_name(view->op));
    other.data = copy;
    enum fwd_status rc = FWD_OK;
    for (int f = 1; rc == FWD_OK && f < PAR_FORM_COUNT && *form == PAR_FORM_NAMED; f++) {
        if (!has_form(a->model, view, (enum par_tap_form)f))
            continue;
        memcpy(copy, view->data, n_bytes);
        rc = par_align_apply(a->model, (enum par_tap_form)f, &other, err);
        if (rc == FWD_OK)
            rc = try_view(a, &other, &row, err);
        if (rc == FWD_OK && row.n_judged > 0 && row.verdict == PAR_HELD)
            *form = (enum par_tap_form)f;
    }
    fwd_free(copy);
    return rc;
}
