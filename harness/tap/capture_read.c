/* Reading a capture: everything in the file is checked before it is used, and nothing is allocated on its word alone.
 */
#include "tap/capture.h"
#include "tap/safetensors.h"
#include "tap/seekable.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define ZSTD_FRAME_MAGIC 0xFD2FB528u

struct par_capture {
    char *name;
    const uint8_t *data;
    size_t n_bytes;
    void *map;                /* NULL: bytes of the caller */
    struct par_frame *frames; /* NULL: a plain safetensors file */
    size_t n_frames;
    size_t data_at; /* plain: where the tensors begin */
    struct par_st_header header;
    struct par_capture_tensor *tensors;
    const struct par_capture_tensor **by_name;
};

/* ---- names ----------------------------------------------------------------------------------------------------- */

/* Digits only, no sign, no leading zeros; returns what follows, or NULL. */
static const char *read_number(const char *s, int *out) {
    int64_t x = 0;
    const char *p = s;
    for (; *p >= '0' && *p <= '9' && x < INT32_MAX; p++)
        x = x * 10 + (*p - '0');
    if (p == s || x > INT32_MAX || (*s == '0' && p - s > 1))
        return NULL;
    *out = (int)x;
    return p;
}

/* tap-layer@p0:p1 */
static bool parse_name(struct par_capture_tensor *t) {
    char tap[64];
    const char *at = strchr(t->name, '@');
    if (!at || (size_t)(at - t->name) >= sizeof tap)
        return false;
    memcpy(tap, t->name, (size_t)(at - t->name));
    tap[at - t->name] = 0;
    const char *p = read_number(at + 1, &t->pos0);
    p = p && *p == ':' ? read_number(p + 1, &t->pos1) : NULL;
    if (!p || *p || t->pos1 <= t->pos0)
        return false;
    t->layer = -1;
    t->op = fwd_op_by_name(tap);
    if (t->op != FWD_OP_COUNT)
        return !fwd_op_in_layer(t->op);
    char *dash = strrchr(tap, '-');
    if (!dash)
        return false;
    *dash = 0;
    t->op = fwd_op_by_name(tap);
    p = read_number(dash + 1, &t->layer);
    return t->op != FWD_OP_COUNT && fwd_op_in_layer(t->op) && p && !*p;
}

/* ---- opening --------------------------------------------------------------------------------------------------- */

static enum fwd_status parse_header(struct par_capture *c, const uint8_t *head, size_t n, uint64_t data_bytes,
                                    struct fwd_error *err) {
    uint64_t length = 0;
    FWD_FAIL_IF(n < 8, FWD_ETRUNCATED, err, "%s: a header of %zu bytes, expected at least 8", c->name, n);
    for (int i = 0; i < 8; i++)
        length |= (uint64_t)head[i] << 8 * i;
    FWD_FAIL_IF(length > PAR_ST_MAX_HEADER || length > n - 8, FWD_ECORRUPT, err,
                "%s: a safetensors header of %llu bytes, but %zu are there (at most %d are read)", c->name,
                (unsigned long long)length, n - 8, PAR_ST_MAX_HEADER);
    if (c->frames)
        FWD_FAIL_IF(length != n - 8, FWD_ECORRUPT, err, "%s: a header of %llu bytes in a frame of %zu", c->name,
                    (unsigned long long)length, n);
    else
        data_bytes = n - 8 - length;
    c->data_at = (size_t)length + 8;
    return par_st_parse(&c->header, (const char *)head + 8, (size_t)length, data_bytes, c->name, err);
}

static enum fwd_status open_frames(struct par_capture *c, struct fwd_error *err) {
    FWD_TRY(par_seekable_parse(&c->frames, &c->n_frames, c->data, c->n_bytes, c->name, err));
    uint64_t data_bytes = 0;
    for (size_t i = 1; i < c->n_frames; i++)
        data_bytes += c->frames[i].n_plain;
    size_t n = c->frames[0].n_plain;
    FWD_FAIL_IF(n > PAR_ST_MAX_HEADER + 8, FWD_ECORRUPT, err, "%s: a header of %zu bytes, at most %d are read", c->name,
                n, PAR_ST_MAX_HEADER);
    uint8_t *head = fwd_alloc(n, 1);
    FWD_FAIL_IF(!head, FWD_ENOMEM, err, "%s: no memory for a header of %zu bytes", c->name, n);
    enum fwd_status rc = par_seekable_read(&c->frames[0], c->data, c->n_bytes, head, c->name, err);
    if (rc == FWD_OK)
        rc = parse_header(c, head, n, data_bytes, err);
    fwd_free(head);
    FWD_TRY(rc);
    FWD_FAIL_IF(c->header.n_tensors != c->n_frames - 1, FWD_ECORRUPT, err, "%s: %zu tensors in %zu frames", c->name,
                c->header.n_tensors, c->n_frames - 1);
    for (size_t i = 0; i < c->header.n_tensors; i++) {
        const struct par_st_tensor *t = &c->header.tensors[i];
        FWD_FAIL_IF(t->end - t->begin != c->frames[i + 1].n_plain, FWD_ECORRUPT, err,
                    "%s: tensor %s has %llu bytes, its frame %u", c->name, t->name,
                    (unsigned long long)(t->end - t->begin), (unsigned)c->frames[i + 1].n_plain);
    }
    return FWD_OK;
}

/* A plain safetensors file need not be one of ours to be read as a capture. */
static enum fwd_status check_schema(const struct par_capture *c, const char *expected, struct fwd_error *err) {
    const char *schema = par_capture_fact(c, PAR_FACT_SCHEMA);
    if (!c->frames && !strcmp(expected, PAR_CAPTURE_SCHEMA))
        return FWD_OK;
    FWD_FAIL_IF(!schema || strcmp(schema, expected) != 0, FWD_EVERSION, err, "%s: schema %.60s, expected %s", c->name,
                schema ? schema : "is missing", expected);
    return FWD_OK;
}

static int compare_names(const void *a, const void *b) {
    const struct par_capture_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static enum fwd_status index_tensors(struct par_capture *c, struct fwd_error *err) {
    size_t n = c->header.n_tensors;
    c->tensors = fwd_calloc(n, sizeof *c->tensors);
    c->by_name = fwd_calloc(n, sizeof *c->by_name);
    FWD_FAIL_IF(!c->tensors || !c->by_name, FWD_ENOMEM, err, "%s: no memory for %zu tensors", c->name, n);
    for (size_t i = 0; i < n; i++) {
        const struct par_st_tensor *s = &c->header.tensors[i];
        struct par_capture_tensor *t = &c->tensors[i];
        FWD_FAIL_IF(s->n_dims > 4, FWD_EUNSUPPORTED, err, "%s: tensor %s has %d dimensions, at most 4 are read",
                    c->name, s->name, s->n_dims);
        t->name = s->name;
        t->dtype = s->dtype;
        t->n_dims = s->n_dims;
        t->n_bytes = s->end - s->begin;
        t->n_values = (int64_t)(t->n_bytes / par_st_dtype_bytes(s->dtype));
        memcpy(t->shape, s->shape, sizeof t->shape);
        t->is_tap = parse_name(t);
        c->by_name[i] = t;
    }
    qsort(c->by_name, n, sizeof *c->by_name, compare_names);
    return FWD_OK;
}

static enum fwd_status open_all(struct par_capture *c, const char *schema, struct fwd_error *err) {
    uint32_t magic = 0;
    for (size_t i = 0; i < 4 && i < c->n_bytes; i++)
        magic |= (uint32_t)c->data[i] << 8 * i;
    if (magic == ZSTD_FRAME_MAGIC)
        FWD_TRY(open_frames(c, err));
    else
        FWD_TRY(parse_header(c, c->data, c->n_bytes, 0, err));
    FWD_TRY(check_schema(c, schema, err));
    return index_tensors(c, err);
}

enum fwd_status par_container_open_bytes(struct par_capture **out, const uint8_t *data, size_t n_bytes,
                                         const char *name, const char *schema, struct fwd_error *err) {
    struct par_capture *c = fwd_calloc(1, sizeof *c);
    FWD_FAIL_IF(!c, FWD_ENOMEM, err, "%s: no memory for a capture", name);
    c->name = fwd_strdup(name);
    c->data = data;
    c->n_bytes = n_bytes;
    enum fwd_status rc =
        c->name ? open_all(c, schema, err) : fwd_fail(err, FWD_ENOMEM, __FILE__, __LINE__, "%s: no memory", name);
    if (rc != FWD_OK) {
        par_capture_close(c);
        return rc;
    }
    *out = c;
    return FWD_OK;
}

enum fwd_status par_capture_open_bytes(struct par_capture **out, const uint8_t *data, size_t n_bytes, const char *name,
                                       struct fwd_error *err) {
    return par_container_open_bytes(out, data, n_bytes, name, PAR_CAPTURE_SCHEMA, err);
}

enum fwd_status par_capture_open(struct par_capture **out, const char *path, struct fwd_error *err) {
    return par_container_open(out, path, PAR_CAPTURE_SCHEMA, err);
}

enum fwd_status par_container_open(struct par_capture **out, const char *path, const char *schema,
                                   struct fwd_error *err) {
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe is refused, not waited for */
    FWD_FAIL_IF(fd < 0, errno == ENOENT ? FWD_ENOTFOUND : FWD_EIO, err, "%s: cannot be opened: %s", path,
                strerror(errno));
    bool usable = fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > 0;
    void *map = usable ? mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0) : NULL;
    int e = errno;
    (void)close(fd);
    FWD_FAIL_IF(!usable, FWD_ECORRUPT, err, "%s: no regular file, or an empty one; expected %s", path, schema);
    FWD_FAIL_IF(map == MAP_FAILED, FWD_EIO, err, "%s: cannot be mapped: %s", path, strerror(e));
    enum fwd_status rc = par_container_open_bytes(out, map, (size_t)st.st_size, path, schema, err);
    if (rc != FWD_OK)
        (void)munmap(map, (size_t)st.st_size);
    else
        (*out)->map = map;
    return rc;
}

void par_capture_close(struct par_capture *c) {
    if (!c)
        return;
    if (c->map)
        (void)munmap(c->map, c->n_bytes);
    par_st_fini(&c->header);
    fwd_free(c->tensors);
    fwd_free(c->by_name);
    fwd_free(c->frames);
    fwd_free(c->name);
    fwd_free(c);
}

/* ---- looking --------------------------------------------------------------------------------------------------- */

const char *par_capture_name(const struct par_capture *c) {
    return c->name;
}

const char *par_capture_fact(const struct par_capture *c, const char *key) {
    for (size_t i = 0; i < c->header.n_facts; i++)
        if (!strcmp(c->header.facts[i].key, key))
            return c->header.facts[i].value;
    return NULL;
}

bool par_capture_fact_at(const struct par_capture *c, size_t i, const char **key, const char **value) {
    if (i >= c->header.n_facts)
        return false;
    *key = c->header.facts[i].key;
    *value = c->header.facts[i].value;
    return true;
}

const struct par_capture_tensor *par_capture_tensors(const struct par_capture *c, size_t *n) {
    *n = c->header.n_tensors;
    return c->tensors;
}

const struct par_capture_tensor *par_capture_find(const struct par_capture *c, const char *name) {
    struct par_capture_tensor key = {.name = name};
    const struct par_capture_tensor *p = &key;
    const struct par_capture_tensor *const *hit =
        bsearch(&p, c->by_name, c->header.n_tensors, sizeof *c->by_name, compare_names);
    return hit ? *hit : NULL;
}

enum fwd_status par_capture_read(const struct par_capture *c, const struct par_capture_tensor *t, void *out,
                                 struct fwd_error *err) {
    size_t i = (size_t)(t - c->tensors);
    if (c->frames)
        return par_seekable_read(&c->frames[i + 1], c->data, c->n_bytes, out, c->name, err);
    if (t->n_bytes) /* bounds were checked with the header */
        memcpy(out, c->data + c->data_at + c->header.tensors[i].begin, t->n_bytes);
    return FWD_OK;
}
