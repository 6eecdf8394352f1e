#include "judge/calls.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool is_cache(enum fwd_op op) {
    return op == FWD_OP_K_CACHE || op == FWD_OP_V_CACHE;
}

int64_t par_op_width(const struct par_spec_config *c, enum fwd_op op) {
    switch (op) {
    case FWD_OP_QCUR:
    case FWD_OP_QCUR_ROPE:
    case FWD_OP_KQV_OUT:
    case FWD_OP_KQV_OUT_Q8:
        return (int64_t)c->n_head * c->head_dim;
    case FWD_OP_KCUR:
    case FWD_OP_VCUR:
    case FWD_OP_KCUR_ROPE:
    case FWD_OP_K_CACHE:
    case FWD_OP_V_CACHE:
        return (int64_t)c->n_kv_head * c->head_dim;
    case FWD_OP_FFN_GATE:
    case FWD_OP_FFN_UP:
    case FWD_OP_FFN_SWIGLU:
    case FWD_OP_FFN_SWIGLU_Q8:
        return c->n_ff;
    case FWD_OP_RESULT_OUTPUT:
        return c->n_vocab;
    default:
        return c->n_embd;
    }
}

static size_t value_bytes(enum fwd_dtype t) {
    return t == FWD_F32 ? 4 : t == FWD_F64 ? 8 : t == FWD_F16 ? 2 : 0;
}

static void shape_text(const struct par_import_tensor *t, char *out, size_t n) {
    size_t at = (size_t)snprintf(out, n, "[");
    for (int d = 0; d < t->n_dims && at < n; d++)
        at += (size_t)snprintf(out + at, n - at, "%s%lld", d ? ", " : "", (long long)t->shape[d]);
    if (at < n)
        (void)snprintf(out + at, n - at, "]");
}

/* Rows of a tensor whose rows have `width` values, and which way they lie; false: it has no such rows. */
static bool find_rows(const struct par_import_tensor *t, int64_t width, int64_t *n_rows, bool *transposed) {
    int64_t total = 1, tail = 1, head = 1;
    for (int d = 0; d < t->n_dims; d++)
        if (__builtin_mul_overflow(total, t->shape[d], &total))
            return false;
    if (total <= 0 || total % width != 0)
        return false;
    *n_rows = total / width;
    *transposed = false;
    int d = t->n_dims - 1;
    while (d >= 0 && tail < width)
        tail *= t->shape[d--];
    if (tail == width || t->n_dims == 1)
        return true;
    for (d = 0; d < t->n_dims && head < width;)
        head *= t->shape[d++];
    *transposed = head == width;
    return *transposed;
}

/* Where the rows stand in the sequence. */
static enum fwd_status find_positions(struct par_call *call, int64_t n_rows, const struct par_import *im, int n_ids,
                                      struct fwd_error *err) {
    const struct par_import_tensor *t = call->tensor;
    const char *said = par_import_fact(im, "positions", NULL);
    int first = 0, end = n_ids;
    if (said) {
        int used = 0;
        bool good = sscanf(said, "%9d:%9d%n", &first, &end, &used) == 2 && !said[used] && first >= 0 && end > first &&
                    end <= n_ids;
        FWD_FAIL_IF(!good, FWD_ERANGE, err, "positions are \"%.40s\", expected A:B with 0 <= A < B <= %d ids", said,
                    n_ids);
    }
    if (t->is.pos0 >= 0) {
        first = t->is.pos0;
        end = t->is.pos1;
    } else if (n_rows == 1 && end - first > 1) {
        call->guessed = true;
        first = end - 1;
    }
    FWD_FAIL_IF(end > n_ids, FWD_ERANGE, err, "%s: positions %d to %d, but there are %d ids", t->name, first, end - 1,
                n_ids);
    FWD_FAIL_IF(n_rows != end - first, FWD_ESHAPE, err, "%s: %lld rows for positions %d to %d", t->name,
                (long long)n_rows, first, end - 1);
    call->pos0 = first;
    call->n_pos = end - first;
    return FWD_OK;
}

static enum fwd_status find_cache(struct par_call *call, const struct par_spec_config *c, int n_ids,
                                  struct fwd_error *err) {
    const struct par_import_tensor *t = call->tensor;
    char shape[128];
    shape_text(t, shape, sizeof shape);
    FWD_FAIL_IF(t->is.pos0 < 0 || t->is.pos1 > n_ids || t->n_dims != 3 || t->shape[0] < t->is.pos1 ||
                    t->shape[0] > n_ids || t->shape[1] != c->n_kv_head || t->shape[2] != c->head_dim,
                FWD_ESHAPE, err, "%s: shape %s, expected NAME@p0:p1 of [rows 0 to p1 - 1, %d, %d]", t->name, shape,
                c->n_kv_head, c->head_dim);
    call->pos0 = t->is.pos0;
    call->n_pos = t->is.pos1 - t->is.pos0;
    return FWD_OK;
}

static enum fwd_status find_call(struct par_call *call, const struct par_import *im, const struct par_spec_config *c,
                                 int n_ids, struct fwd_error *err) {
    const struct par_import_tensor *t = call->tensor;
    char shape[128];
    int64_t n_rows;
    call->op = t->is.op;
    call->layer = t->is.layer;
    call->width = par_op_width(c, call->op);
    call->stride = call->width;
    FWD_FAIL_IF(call->layer >= c->n_layer, FWD_ERANGE, err, "%s: layer %d, but the model has %d", t->name, call->layer,
                c->n_layer);
    if (is_cache(call->op))
        return find_cache(call, c, n_ids, err);
    if (t->is.fused_qkv)
        call->stride += 2 * par_op_width(c, FWD_OP_KCUR);
    shape_text(t, shape, sizeof shape);
    size_t row_bytes = fwd_dtype_row_bytes(t->dtype, call->width);
    int64_t in_row = value_bytes(t->dtype) ? call->stride : (int64_t)row_bytes;
    FWD_FAIL_IF(in_row < 1 || !find_rows(t, in_row, &n_rows, &call->transposed), FWD_ESHAPE, err,
                "%s: shape %s, but a row of %s has %lld values in this model: another model?", t->name, shape,
                fwd_op_name(call->op), (long long)in_row);
    return find_positions(call, n_rows, im, n_ids, err);
}

static int compare_calls(const void *a, const void *b) {
    const struct par_call *x = a, *y = b;
    int64_t at_x = x->op == FWD_OP_INP_EMBD ? -1 : x->op >= FWD_OP_RESULT_NORM ? INT32_MAX : x->layer;
    int64_t at_y = y->op == FWD_OP_INP_EMBD ? -1 : y->op >= FWD_OP_RESULT_NORM ? INT32_MAX : y->layer;
    if (x->pos0 != y->pos0)
        return x->pos0 < y->pos0 ? -1 : 1;
    if (x->n_pos != y->n_pos)
        return x->n_pos < y->n_pos ? -1 : 1;
    if (at_x != at_y)
        return at_x < at_y ? -1 : 1;
    if (x->op != y->op)
        return x->op < y->op ? -1 : 1;
    return x->tensor < y->tensor ? -1 : x->tensor > y->tensor;
}

enum fwd_status par_calls_find(struct par_calls *out, const struct par_import *im, const struct par_spec_config *c,
                               int n_ids, struct fwd_error *err) {
    size_t n;
    const struct par_import_tensor *t = par_import_tensors(im, &n);
    *out = (struct par_calls){0};
    out->calls = fwd_calloc(3 * n, sizeof *out->calls);
    FWD_FAIL_IF(!out->calls, FWD_ENOMEM, err, "no memory for %zu taps", n);
    for (size_t i = 0; i < n; i++) {
        if (!t[i].known || t[i].is.op == FWD_OP_COUNT) {
            out->unknown = out->n_unknown++ ? out->unknown : t[i].name;
            continue;
        }
        struct par_call *call = &out->calls[out->n++];
        call->tensor = &t[i];
        FWD_TRY(find_call(call, im, c, n_ids, err));
        for (int part = 1; t[i].is.fused_qkv && part < 3; part++) {
            struct par_call *next = &out->calls[out->n++];
            *next = *call;
            next->op = part == 1 ? FWD_OP_KCUR : FWD_OP_VCUR;
            next->width = par_op_width(c, next->op);
            next->column = call->width + (part - 1) * next->width;
        }
    }
    if (!par_import_is_own(im))
        qsort(out->calls, (size_t)out->n, sizeof *out->calls, compare_calls);
    return FWD_OK;
}

void par_calls_free(struct par_calls *c) {
    fwd_free(c->calls);
    *c = (struct par_calls){0};
}

/* Rows out of a tensor in which they lie otherwise. */
static enum fwd_status pack(const struct par_call *call, uint8_t **bytes, struct fwd_error *err) {
    size_t one = value_bytes(call->tensor->dtype), n = (size_t)call->n_pos, width = (size_t)call->width;
    uint8_t *rows = fwd_alloc(n * width, one);
    FWD_FAIL_IF(!rows, FWD_ENOMEM, err, "%s: no memory for %zu rows", call->tensor->name, n);
    for (size_t p = 0; p < n; p++)
        for (size_t k = 0; k < width; k++) {
            size_t column = (size_t)call->column + k;
            size_t from = call->transposed ? column * n + p : p * (size_t)call->stride + column;
            memcpy(rows + (p * width + k) * one, *bytes + from * one, one);
        }
    fwd_free(*bytes);
    *bytes = rows;
    return FWD_OK;
}

enum fwd_status par_call_read(const struct par_call *call, const struct par_import *im, const struct par_spec_config *c,
                              struct fwd_view *view, uint8_t **bytes, struct fwd_error *err) {
    const struct par_import_tensor *t = call->tensor;
    *bytes = fwd_alloc(t->n_bytes, 1);
    FWD_FAIL_IF(!*bytes, FWD_ENOMEM, err, "%s: no memory for %zu bytes", t->name, t->n_bytes);
    enum fwd_status rc = par_import_read(im, t, *bytes, err);
    if (rc == FWD_OK && value_bytes(t->dtype) && (call->transposed || call->stride != call->width))
        rc = pack(call, bytes, err);
    if (rc != FWD_OK) {
        fwd_free(*bytes);
        *bytes = NULL;
        return rc;
    }
    *view = (struct fwd_view){.size = sizeof *view,
                              .op = call->op,
                              .layer = call->layer,
                              .pos0 = call->pos0,
                              .n_pos = call->n_pos,
                              .dtype = t->dtype,
                              .data = *bytes};
    int64_t one = (int64_t)value_bytes(t->dtype);
    view->ne[0] = is_cache(call->op) ? c->head_dim : call->width;
    view->ne[1] = is_cache(call->op) ? c->n_kv_head : call->n_pos;
    view->ne[2] = is_cache(call->op) ? t->shape[0] : 1;
    view->ne[3] = 1;
    view->nb[0] = one;
    view->nb[1] = (int64_t)fwd_dtype_row_bytes(t->dtype, view->ne[0]);
    view->nb[2] = view->nb[1] * view->ne[1];
    view->nb[3] = view->nb[2] * view->ne[2];
    return FWD_OK;
}
