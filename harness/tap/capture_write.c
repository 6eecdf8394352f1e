/* The streaming side of a capture: see capture.h for the layout and why there is a spool file. */
#define _GNU_SOURCE
#include "report/report_escape.h"
#include "tap/capture.h"
#include "tap/safetensors.h"
#include "tap/seekable.h"

#include <errno.h>
#include <fcntl.h>
#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SPOOL_BUFFER = 1 << 17 };

struct par_capture_writer {
    struct fwd_file_out *file;
    int spool; /* unlinked: gone with the process */
    char *path;
    struct par_frame_writer *frame_writer;

    regex_t *filters;
    int n_filters;
    int layer_first, layer_last;

    struct par_st_tensor *tensors; /* own their names */
    struct par_frame *frames;
    size_t n_tensors, room;
    uint64_t n_data;
    struct par_st_fact *facts; /* own both strings */
    size_t n_facts, facts_room;

    enum fwd_status failure;
    struct fwd_error why;
};

int par_capture_tensor_name(enum fwd_op op, int layer, int pos0, int pos1, char *buf, size_t n) {
    char label[64];
    int length;
    if (fwd_op_in_layer(op))
        length = snprintf(label, sizeof label, "%s-%d", fwd_op_name(op), layer);
    else
        length = snprintf(label, sizeof label, "%s", fwd_op_name(op));
    (void)snprintf(buf, n, "%s@%d:%d", label, pos0, pos1);
    return length;
}

/* ---- opening --------------------------------------------------------------------------------------------------- */

static enum fwd_status write_spool(void *ud, const void *data, size_t n_bytes, struct fwd_error *err) {
    const struct par_capture_writer *w = ud;
    for (const char *p = data; n_bytes;) {
        ssize_t n = write(w->spool, p, n_bytes);
        if (n < 0 && errno == EINTR)
            continue;
        FWD_FAIL_IF(n <= 0, FWD_EIO, err, "%s: its spool file cannot be written: %s", w->path,
                    n < 0 ? strerror(errno) : "nothing was written");
        p += n;
        n_bytes -= (size_t)n;
    }
    return FWD_OK;
}

static enum fwd_status write_file(void *ud, const void *data, size_t n_bytes, struct fwd_error *err) {
    return fwd_file_out_write(ud, data, n_bytes, err);
}

static enum fwd_status open_spool(struct par_capture_writer *w, struct fwd_error *err) {
    size_t n = strlen(w->path) + 16;
    char *name = fwd_alloc(n, 1);
    FWD_FAIL_IF(!name, FWD_ENOMEM, err, "%s: no memory for its name", w->path);
    (void)snprintf(name, n, "%s.spool.XXXXXX", w->path);
    w->spool = mkostemp(name, O_CLOEXEC);
    int e = errno;
    if (w->spool >= 0)
        (void)unlink(name);
    fwd_free(name);
    FWD_FAIL_IF(w->spool < 0, FWD_EIO, err, "%s: its spool file cannot be made: %s", w->path, strerror(e));
    return FWD_OK;
}

static enum fwd_status compile_filters(struct par_capture_writer *w, const struct par_capture_options *o,
                                       struct fwd_error *err) {
    w->layer_first = o->layer_first;
    w->layer_last = o->layer_last;
    w->filters = fwd_calloc((size_t)o->n_filters, sizeof *w->filters);
    FWD_FAIL_IF(!w->filters, FWD_ENOMEM, err, "%s: no memory for its filters", w->path);
    for (int i = 0; i < o->n_filters; i++) {
        int rc = regcomp(&w->filters[i], o->filters[i], REG_EXTENDED | REG_NOSUB);
        char why[128] = "";
        if (rc)
            (void)regerror(rc, &w->filters[i], why, sizeof why);
        FWD_FAIL_IF(rc, FWD_EINPUT, err, "tensor filter '%s' is no regular expression: %s", o->filters[i], why);
        w->n_filters++;
    }
    return FWD_OK;
}

static void free_writer(struct par_capture_writer *w) {
    if (w->spool >= 0)
        (void)close(w->spool);
    for (int i = 0; i < w->n_filters; i++)
        regfree(&w->filters[i]);
    for (size_t i = 0; i < w->n_tensors; i++)
        fwd_free((char *)w->tensors[i].name);
    for (size_t i = 0; i < w->n_facts; i++) {
        fwd_free((char *)w->facts[i].key);
        fwd_free((char *)w->facts[i].value);
    }
    par_frame_writer_free(w->frame_writer);
    fwd_free(w->filters);
    fwd_free(w->tensors);
    fwd_free(w->frames);
    fwd_free(w->facts);
    fwd_free(w->path);
    fwd_free(w);
}

enum fwd_status par_capture_create(struct par_capture_writer **out, const char *path,
                                   const struct par_capture_options *options, struct fwd_error *err) {
    static const struct par_capture_options everything = {.layer_last = -1};
    struct par_capture_writer *w = fwd_calloc(1, sizeof *w);
    FWD_FAIL_IF(!w, FWD_ENOMEM, err, "%s: no memory for a capture", path);
    w->spool = -1;
    w->path = fwd_strdup(path);
    enum fwd_status rc = w->path ? FWD_OK : fwd_fail(err, FWD_ENOMEM, __FILE__, __LINE__, "%s: no memory", path);
    if (rc == FWD_OK)
        rc = compile_filters(w, options ? options : &everything, err);
    if (rc == FWD_OK)
        rc = par_frame_writer_create(&w->frame_writer, write_spool, w, err);
    if (rc == FWD_OK)
        rc = fwd_file_out_begin(&w->file, path, err);
    if (rc == FWD_OK)
        rc = open_spool(w, err);
    if (rc == FWD_OK)
        rc = par_capture_put(w, PAR_FACT_SCHEMA, PAR_CAPTURE_SCHEMA, err);
    if (rc != FWD_OK) {
        par_capture_abort(w);
        return rc;
    }
    *out = w;
    return FWD_OK;
}

void par_capture_abort(struct par_capture_writer *w) {
    if (!w)
        return;
    fwd_file_out_abort(w->file);
    free_writer(w);
}

/* ---- facts ----------------------------------------------------------------------------------------------------- */

enum fwd_status par_capture_put(struct par_capture_writer *w, const char *key, const char *value,
                                struct fwd_error *err) {
    size_t i = 0;
    while (i < w->n_facts && strcmp(w->facts[i].key, key) != 0)
        i++;
    if (i == w->facts_room) {
        size_t room = i * 2 + 32;
        struct par_st_fact *grown = fwd_realloc(w->facts, i * sizeof *grown, room, sizeof *grown);
        FWD_FAIL_IF(!grown, FWD_ENOMEM, err, "%s: no memory for its fact %s", w->path, key);
        w->facts = grown;
        w->facts_room = room;
    }
    char *clean = par_utf8_clean(value);
    char *name = i < w->n_facts ? NULL : fwd_strdup(key);
    if (!clean || (i == w->n_facts && !name)) {
        fwd_free(clean);
        fwd_free(name);
        FWD_FAIL(FWD_ENOMEM, err, "%s: no memory for its fact %s", w->path, key);
    }
    if (i < w->n_facts) {
        fwd_free((char *)w->facts[i].value);
        w->facts[i].value = clean;
    } else {
        w->facts[w->n_facts++] = (struct par_st_fact){name, clean};
    }
    return FWD_OK;
}

enum fwd_status par_capture_put_ids(struct par_capture_writer *w, const int32_t *ids, int n_ids,
                                    struct fwd_error *err) {
    size_t room = (size_t)n_ids * 12 + 1, at = 0;
    char *text = fwd_alloc(room, 1);
    FWD_FAIL_IF(!text, FWD_ENOMEM, err, "%s: no memory for %d ids", w->path, n_ids);
    text[0] = 0;
    for (int i = 0; i < n_ids; i++)
        at += (size_t)snprintf(text + at, room - at, "%s%d", i ? "," : "", (int)ids[i]);
    enum fwd_status rc = par_capture_put(w, PAR_FACT_IDS, text, err);
    fwd_free(text);
    return rc;
}

static const char *find_fact(const struct par_capture_writer *w, const char *key) {
    for (size_t i = 0; i < w->n_facts; i++)
        if (!strcmp(w->facts[i].key, key))
            return w->facts[i].value;
    return NULL;
}

/* What a tap holds, said once for all layers, and again for a layer where it is something else (activation formats
 * follow the weights). */
static enum fwd_status say_tap(struct par_capture_writer *w, const struct fwd_view *v, struct fwd_error *err) {
    char key[64], value[160];
    const char *layout = v->dtype == FWD_Q8_K    ? " block=f32:d,i8:q[256],i16:sum16[16]"
                         : v->dtype == FWD_Q8_32 ? " block=f32:d,i32:sum,i8:q[32]"
                         : v->dtype == FWD_E4M3  ? " row=f32:d,f8_e4m3:code[ne0]"
                                                 : "";
    int n = snprintf(value, sizeof value, "op=%s dtype=%s ne0=%lld", fwd_op_name(v->op), fwd_dtype_name(v->dtype),
                     (long long)v->ne[0]);
    bool cache = v->op == FWD_OP_K_CACHE || v->op == FWD_OP_V_CACHE;
    if (cache)
        n += snprintf(value + n, sizeof value - (size_t)n, " ne1=%lld", (long long)v->ne[1]);
    (void)snprintf(value + n, sizeof value - (size_t)n, "%s", layout);
    n = snprintf(key, sizeof key, "tap:%s", fwd_op_name(v->op));
    const char *said = find_fact(w, key);
    if (said && strcmp(said, value) != 0) {
        (void)snprintf(key + n, sizeof key - (size_t)n, "-%d", v->layer);
        said = find_fact(w, key);
    }
    FWD_FAIL_IF(said && strcmp(said, value) != 0, FWD_ESHAPE, err, "%s: tap %s of layer %d is '%s', but was '%s'",
                w->path, fwd_op_name(v->op), v->layer, value, said);
    return said ? FWD_OK : par_capture_put(w, key, value, err);
}

/* ---- tensors --------------------------------------------------------------------------------------------------- */

static bool wants(const struct par_capture_writer *w, const struct fwd_view *v) {
    char name[96];
    if (w->layer_last >= 0 && v->layer >= 0 && (v->layer < w->layer_first || v->layer > w->layer_last))
        return false;
    name[par_capture_tensor_name(v->op, v->layer, v->pos0, v->pos0 + v->n_pos, name, sizeof name)] = 0;
    bool match = w->n_filters == 0;
    for (int i = 0; i < w->n_filters && !match; i++)
        match = regexec(&w->filters[i], name, 0, NULL, 0) == 0;
    return match;
}

/* dtype, shape and row size of a view as a tensor. */
static enum fwd_status describe(const struct par_capture_writer *w, const struct fwd_view *v, struct par_st_tensor *t,
                                struct fwd_error *err) {
    const char *op = fwd_op_name(v->op);
    bool quantised = v->dtype == FWD_Q8_K || v->dtype == FWD_Q8_32 || v->dtype == FWD_E4M3;
    bool cache = v->op == FWD_OP_K_CACHE || v->op == FWD_OP_V_CACHE;
    int64_t n_outer = cache ? v->ne[2] : v->ne[1];
    FWD_FAIL_IF((unsigned)v->op >= FWD_OP_COUNT || (unsigned)v->dtype > FWD_E4M3, FWD_ETYPE, err,
                "%s: a tap of op %d and dtype %d is not known", w->path, (int)v->op, (int)v->dtype);
    FWD_FAIL_IF(v->device != 0, FWD_EUNSUPPORTED, err, "%s: tap %s lies on device %d, expected host memory", w->path,
                op, v->device);
    FWD_FAIL_IF(v->seq != 0, FWD_EUNSUPPORTED, err, "%s: tap %s is of sequence %d; a capture holds sequence 0", w->path,
                op, v->seq);
    FWD_FAIL_IF(v->ne[0] < 0 || v->ne[1] < 0 || n_outer < 0 || (cache && quantised), FWD_ESHAPE, err,
                "%s: tap %s has shape %lld x %lld x %lld", w->path, op, (long long)v->ne[0], (long long)v->ne[1],
                (long long)v->ne[2]);
    const char *dtype = quantised ? "U8" : fwd_dtype_name(v->dtype);
    memcpy(t->dtype, dtype, strlen(dtype) + 1);
    int64_t row = quantised ? (int64_t)fwd_dtype_row_bytes(v->dtype, v->ne[0]) : v->ne[0];
    t->n_dims = cache ? 3 : 2;
    t->shape[0] = n_outer;
    t->shape[1] = cache ? v->ne[1] : row;
    t->shape[2] = cache ? row : 0;
    return FWD_OK;
}

static enum fwd_status put_rows(struct par_capture_writer *w, const struct fwd_view *v, struct fwd_error *err) {
    bool cache = v->op == FWD_OP_K_CACHE || v->op == FWD_OP_V_CACHE;
    int64_t n_outer = cache ? v->ne[2] : 1;
    size_t row_bytes = fwd_dtype_row_bytes(v->dtype, v->ne[0]);
    size_t value_bytes = fwd_dtype_row_bytes(v->dtype, 1); /* 0 for quantised rows: they are whole */
    bool packed = value_bytes == 0 || (size_t)v->nb[0] == value_bytes;
    for (int64_t o = 0; o < n_outer; o++)
        for (int64_t r = 0; r < v->ne[1]; r++) {
            const char *row = (const char *)v->data + o * v->nb[2] + r * v->nb[1];
            if (packed)
                FWD_TRY(par_frame_add(w->frame_writer, row, row_bytes, err));
            for (int64_t i = 0; !packed && i < v->ne[0]; i++)
                FWD_TRY(par_frame_add(w->frame_writer, row + i * v->nb[0], value_bytes, err));
        }
    return FWD_OK;
}

static enum fwd_status reserve(struct par_capture_writer *w, struct fwd_error *err) {
    if (w->n_tensors < w->room)
        return FWD_OK;
    size_t n = w->n_tensors, room = n * 2 + 256;
    struct par_st_tensor *tensors = fwd_realloc(w->tensors, n * sizeof *tensors, room, sizeof *tensors);
    FWD_FAIL_IF(!tensors, FWD_ENOMEM, err, "%s: no memory for %zu tensors", w->path, room);
    w->tensors = tensors;
    struct par_frame *frames = fwd_realloc(w->frames, n * sizeof *frames, room, sizeof *frames);
    FWD_FAIL_IF(!frames, FWD_ENOMEM, err, "%s: no memory for %zu frames", w->path, room);
    w->frames = frames;
    w->room = room;
    return FWD_OK;
}

static enum fwd_status put_view(struct par_capture_writer *w, const struct fwd_view *v, struct fwd_error *err) {
    char name[96];
    struct par_st_tensor t = {0};
    FWD_TRY(describe(w, v, &t, err));
    FWD_TRY(say_tap(w, v, err));
    FWD_TRY(reserve(w, err));
    uint64_t n_bytes = par_st_dtype_bytes(t.dtype);
    for (int d = 0; d < t.n_dims; d++)
        FWD_FAIL_IF(__builtin_mul_overflow(n_bytes, (uint64_t)t.shape[d], &n_bytes), FWD_ERANGE, err,
                    "%s: the shape of tap %s overflows", w->path, fwd_op_name(v->op));
    t.begin = w->n_data;
    t.end = w->n_data + n_bytes;
    FWD_TRY(par_frame_begin(w->frame_writer, n_bytes, err));
    FWD_TRY(put_rows(w, v, err));
    FWD_TRY(par_frame_end(w->frame_writer, &w->frames[w->n_tensors], err));
    (void)par_capture_tensor_name(v->op, v->layer, v->pos0, v->pos0 + v->n_pos, name, sizeof name);
    t.name = fwd_strdup(name);
    FWD_FAIL_IF(!t.name, FWD_ENOMEM, err, "%s: no memory for a name", w->path);
    w->tensors[w->n_tensors++] = t;
    w->n_data = t.end;
    return FWD_OK;
}

int par_capture_tap(void *ud, const struct fwd_view *view) {
    struct par_capture_writer *w = ud;
    if (w->failure == FWD_OK && wants(w, view))
        w->failure = put_view(w, view, &w->why);
    return w->failure != FWD_OK;
}

enum fwd_status par_capture_failure(const struct par_capture_writer *w, struct fwd_error *err) {
    if (w->failure != FWD_OK && err)
        *err = w->why;
    return w->failure;
}

size_t par_capture_n_written(const struct par_capture_writer *w) {
    return w->n_tensors;
}

/* ---- commit ---------------------------------------------------------------------------------------------------- */

static int compare_names(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Two tensors of one name would be one key twice in the header. */
static enum fwd_status check_names(const struct par_capture_writer *w, struct fwd_error *err) {
    const char **names = fwd_alloc(w->n_tensors, sizeof *names);
    FWD_FAIL_IF(!names, FWD_ENOMEM, err, "%s: no memory for %zu names", w->path, w->n_tensors);
    for (size_t i = 0; i < w->n_tensors; i++)
        names[i] = w->tensors[i].name;
    qsort(names, w->n_tensors, sizeof *names, compare_names);
    enum fwd_status rc = FWD_OK;
    for (size_t i = 1; i < w->n_tensors && rc == FWD_OK; i++)
        if (!strcmp(names[i - 1], names[i]))
            rc = fwd_fail(err, FWD_ESTATE, __FILE__, __LINE__, "%s: tensor %s came twice; a capture holds one sequence",
                          w->path, names[i]);
    fwd_free(names);
    return rc;
}

static enum fwd_status copy_spool(struct par_capture_writer *w, struct fwd_error *err) {
    char *buffer = fwd_alloc(SPOOL_BUFFER, 1);
    FWD_FAIL_IF(!buffer, FWD_ENOMEM, err, "%s: no memory for a buffer", w->path);
    enum fwd_status rc = FWD_OK;
    uint64_t left = 0;
    for (size_t i = 0; i < w->n_tensors; i++)
        left += w->frames[i].n_compressed;
    if (lseek(w->spool, 0, SEEK_SET) != 0)
        rc = fwd_fail(err, FWD_EIO, __FILE__, __LINE__, "%s: its spool file: %s", w->path, strerror(errno));
    while (left && rc == FWD_OK) {
        ssize_t n = read(w->spool, buffer, left < SPOOL_BUFFER ? (size_t)left : SPOOL_BUFFER);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            rc = fwd_fail(err, FWD_EIO, __FILE__, __LINE__, "%s: its spool file lacks %llu bytes: %s", w->path,
                          (unsigned long long)left, n < 0 ? strerror(errno) : "end of file");
            break;
        }
        rc = fwd_file_out_write(w->file, buffer, (size_t)n, err);
        left -= (uint64_t)n;
    }
    fwd_free(buffer);
    return rc;
}

static enum fwd_status write_all(struct par_capture_writer *w, const char *header, size_t n_header,
                                 struct fwd_error *err) {
    struct par_frame_writer *head = NULL;
    size_t n = w->n_tensors + 1;
    struct par_frame *frames = fwd_alloc(n, sizeof *frames);
    FWD_FAIL_IF(!frames, FWD_ENOMEM, err, "%s: no memory for its seek table", w->path);
    if (w->n_tensors)
        memcpy(frames + 1, w->frames, w->n_tensors * sizeof *frames);
    enum fwd_status rc = par_frame_writer_create(&head, write_file, w->file, err);
    if (rc == FWD_OK)
        rc = par_frame_begin(head, n_header, err);
    if (rc == FWD_OK)
        rc = par_frame_add(head, header, n_header, err);
    if (rc == FWD_OK)
        rc = par_frame_end(head, &frames[0], err);
    if (rc == FWD_OK)
        rc = copy_spool(w, err);
    if (rc == FWD_OK)
        rc = par_seekable_table(frames, n, write_file, w->file, err);
    par_frame_writer_free(head);
    fwd_free(frames);
    return rc;
}

enum fwd_status par_capture_commit(struct par_capture_writer *w, struct fwd_error *err) {
    char *header = NULL;
    size_t n_header = 0;
    struct par_st_header h = {w->tensors, w->n_tensors, w->facts, w->n_facts, NULL};
    enum fwd_status rc = par_capture_failure(w, err);
    if (rc == FWD_OK)
        rc = check_names(w, err);
    if (rc == FWD_OK)
        rc = par_st_print(&header, &n_header, &h, err);
    if (rc == FWD_OK)
        rc = write_all(w, header, n_header, err);
    fwd_free(header);
    struct fwd_file_out *file = w->file;
    if (rc == FWD_OK)
        rc = fwd_file_out_commit(file, err);
    else
        fwd_file_out_abort(file);
    free_writer(w);
    return rc;
}
