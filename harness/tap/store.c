/* harness/tap/store.c: see store.h. Rows lie in the file in the order of arrival; an index says where. */
#define _XOPEN_SOURCE 700
#include "tap/store.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct slot {
    int64_t offset; /* in values */
    int64_t width;  /* 0: nothing kept */
};

struct par_store {
    FILE *file;
    int n_layer, n_pos;
    int64_t end;        /* values written */
    struct slot *slots; /* [n_layer + 1][FWD_OP_COUNT][n_pos]; layer -1 is the last */
};

enum fwd_status par_store_create(struct par_store **out, int n_layer, int n_pos, struct fwd_error *err) {
    struct par_store *s = fwd_calloc(1, sizeof *s);
    FWD_FAIL_IF(!s, FWD_ENOMEM, err, "tap store: no memory");
    s->n_layer = n_layer;
    s->n_pos = n_pos;
    s->slots = fwd_calloc((size_t)(n_layer + 1) * FWD_OP_COUNT * (size_t)n_pos, sizeof *s->slots);
    s->file = s->slots ? tmpfile() : NULL;
    if (!s->file) {
        int e = s->slots ? errno : ENOMEM;
        par_store_free(s);
        FWD_FAIL(e == ENOMEM ? FWD_ENOMEM : FWD_EIO, err, "tap store: no temporary file: %s", strerror(e));
    }
    *out = s;
    return FWD_OK;
}

void par_store_free(struct par_store *s) {
    if (!s)
        return;
    if (s->file)
        (void)fclose(s->file);
    fwd_free(s->slots);
    fwd_free(s);
}

static struct slot *slot_of(const struct par_store *s, enum fwd_op op, int layer, int pos) {
    if (layer < -1 || layer >= s->n_layer || pos < 0 || pos >= s->n_pos || (unsigned)op >= FWD_OP_COUNT)
        return NULL;
    size_t l = layer < 0 ? (size_t)s->n_layer : (size_t)layer;
    return &s->slots[(l * FWD_OP_COUNT + (size_t)op) * (size_t)s->n_pos + (size_t)pos];
}

static enum fwd_status write_row(struct par_store *s, const float *row, int64_t width, struct fwd_error *err) {
    const char *p = (const char *)row;
    size_t left = (size_t)width * sizeof *row;
    off_t at = (off_t)(s->end * (int64_t)sizeof *row);
    while (left) {
        ssize_t w = pwrite(fileno(s->file), p, left, at);
        if (w < 0 && errno == EINTR)
            continue;
        FWD_FAIL_IF(w <= 0, FWD_EIO, err, "tap store: write of %zu bytes at %lld failed: %s", left, (long long)at,
                    w < 0 ? strerror(errno) : "nothing was written");
        p += w;
        at += w;
        left -= (size_t)w;
    }
    s->end += width;
    return FWD_OK;
}

enum fwd_status par_store_put(struct par_store *s, const struct fwd_view *view, struct fwd_error *err) {
    if ((view->dtype != FWD_F32 && view->dtype != FWD_F64) || view->op == FWD_OP_K_CACHE || view->op == FWD_OP_V_CACHE)
        return FWD_OK;
    int64_t width = view->ne[0];
    float *narrow = view->dtype == FWD_F64 ? fwd_alloc((size_t)width, sizeof *narrow) : NULL;
    FWD_FAIL_IF(view->dtype == FWD_F64 && !narrow, FWD_ENOMEM, err, "tap store: no memory for a row of %lld values",
                (long long)width);
    enum fwd_status rc = FWD_OK;
    for (int i = 0; rc == FWD_OK && i < view->n_pos; i++) {
        struct slot *slot = slot_of(s, view->op, view->layer, view->pos0 + i);
        if (!slot)
            continue;
        const char *row = (const char *)view->data + view->nb[1] * i;
        const float *values = (const float *)(const void *)row;
        if (narrow) {
            const double *wide = (const double *)(const void *)row;
            for (int64_t k = 0; k < width; k++)
                narrow[k] = (float)wide[k];
            values = narrow;
        }
        slot->offset = s->end;
        slot->width = width;
        rc = write_row(s, values, width, err);
    }
    fwd_free(narrow);
    return rc;
}

int64_t par_store_width(const struct par_store *s, enum fwd_op op, int layer, int pos) {
    const struct slot *slot = slot_of(s, op, layer, pos);
    return slot ? slot->width : 0;
}

enum fwd_status par_store_get(const struct par_store *s, enum fwd_op op, int layer, int pos, float *dst,
                              struct fwd_error *err) {
    const struct slot *slot = slot_of(s, op, layer, pos);
    FWD_FAIL_IF(!slot || !slot->width, FWD_EMISSING, err, "tap store: %s-%d at position %d was not kept",
                fwd_op_name(op), layer, pos);
    char *p = (char *)dst;
    size_t left = (size_t)slot->width * sizeof *dst;
    off_t at = (off_t)(slot->offset * (int64_t)sizeof *dst);
    while (left) {
        ssize_t r = pread(fileno(s->file), p, left, at);
        if (r < 0 && errno == EINTR)
            continue;
        FWD_FAIL_IF(r <= 0, FWD_EIO, err, "tap store: read of %zu bytes at %lld failed: %s", left, (long long)at,
                    r < 0 ? strerror(errno) : "end of file");
        p += r;
        at += r;
        left -= (size_t)r;
    }
    return FWD_OK;
}
