#include "tap/import.h"

#include "report/json.h"
#include "tap/capture.h"
#include "tap/import_source.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_FACTS_BYTES = 1 << 24 };

struct fact {
    char *key, *value;
    bool asserted;
};
struct par_import {
    struct import_source source;
    struct par_import_tensor *tensors; /* one an item */
    struct fact *facts;
    size_t n_facts, room;
    bool is_own;
};

/* ---- what readers share ----------------------------------------------------------------------------------------- */

struct import_item *par_import_add(struct import_source *s, const char *name) {
    if (s->n_items == s->room) {
        size_t room = s->room ? 2 * s->room : 64;
        struct import_item *more =
            room <= PAR_IMPORT_TENSORS ? fwd_realloc(s->items, s->room * sizeof *more, room, sizeof *more) : NULL;
        if (!more)
            return NULL;
        s->items = more;
        s->room = room;
    }
    struct import_item *item = &s->items[s->n_items];
    *item = (struct import_item){.name = fwd_strdup(name)};
    if (!item->name)
        return NULL;
    s->n_items++;
    return item;
}

void par_import_source_free(struct import_source *s) {
    if (s->close)
        s->close(s->state);
    for (size_t i = 0; i < s->n_items; i++)
        fwd_free(s->items[i].name);
    fwd_free(s->items);
    *s = (struct import_source){0};
}

enum fwd_status par_import_map(struct import_map *out, const char *path, struct fwd_error *err) {
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe is refused, not waited for */
    FWD_FAIL_IF(fd < 0, errno == ENOENT ? FWD_ENOTFOUND : FWD_EIO, err, "%s: cannot be opened: %s", path,
                strerror(errno));
    bool usable = fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > 0;
    void *map = usable ? mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0) : NULL;
    int e = errno;
    (void)close(fd);
    FWD_FAIL_IF(!usable, FWD_ECORRUPT, err, "%s: no regular file, or an empty one", path);
    FWD_FAIL_IF(map == MAP_FAILED, FWD_EIO, err, "%s: cannot be mapped: %s", path, strerror(e));
    *out = (struct import_map){map, (size_t)st.st_size};
    return FWD_OK;
}

void par_import_unmap(struct import_map *m) {
    if (m->data)
        (void)munmap((void *)(uintptr_t)m->data, m->n_bytes);
    *m = (struct import_map){0};
}

/* ---- safetensors, ours or not ----------------------------------------------------------------------------------- */

static enum fwd_status read_capture(void *state, const struct import_item *item, void *out, struct fwd_error *err) {
    const struct par_capture *c = state;
    size_t n;
    return par_capture_read(c, par_capture_tensors(c, &n) + item->at, out, err);
}

static void close_capture(void *state) {
    par_capture_close(state);
}

static enum fwd_status add_fact(struct par_import *im, const char *key, const char *value, bool asserted,
                                struct fwd_error *err) {
    if (im->n_facts == im->room) {
        size_t room = im->room ? 2 * im->room : 32;
        struct fact *more = fwd_realloc(im->facts, im->room * sizeof *more, room, sizeof *more);
        FWD_FAIL_IF(!more, FWD_ENOMEM, err, "no memory for %zu facts", room);
        im->facts = more;
        im->room = room;
    }
    struct fact f = {fwd_strdup(key), fwd_strdup(value), asserted};
    if (!f.key || !f.value) {
        fwd_free(f.key);
        fwd_free(f.value);
        FWD_FAIL(FWD_ENOMEM, err, "no memory for the fact %.60s", key);
    }
    im->facts[im->n_facts++] = f;
    return FWD_OK;
}

static enum fwd_status open_capture(struct par_import *im, const char *path, struct fwd_error *err) {
    struct par_capture *c;
    const char *key, *value;
    size_t n;
    FWD_TRY(par_capture_open(&c, path, err));
    im->source = (struct import_source){.state = c, .read = read_capture, .close = close_capture};
    const char *schema = par_capture_fact(c, PAR_FACT_SCHEMA);
    im->is_own = schema && !strcmp(schema, PAR_CAPTURE_SCHEMA) && par_capture_fact(c, PAR_FACT_NUMERICS);
    im->source.kind = im->is_own ? "parity capture" : "safetensors";
    for (size_t i = 0; par_capture_fact_at(c, i, &key, &value); i++)
        FWD_TRY(add_fact(im, key, value, false, err));
    const struct par_capture_tensor *t = par_capture_tensors(c, &n);
    for (size_t i = 0; i < n; i++) {
        struct import_item *item = par_import_add(&im->source, t[i].name);
        FWD_FAIL_IF(!item, FWD_ENOMEM, err, "%s: no memory for %zu tensors (at most %d are read)", path, n,
                    PAR_IMPORT_TENSORS);
        (void)snprintf(item->dtype, sizeof item->dtype, "%s", t[i].dtype);
        item->n_dims = t[i].n_dims;
        memcpy(item->shape, t[i].shape, sizeof item->shape);
        item->n_bytes = t[i].n_bytes;
        item->at = i;
    }
    return FWD_OK;
}

/* ---- meaning ---------------------------------------------------------------------------------------------------- */

/* "op=attn_norm_q8 dtype=Q8_K ne0=..": the format of quantised rows, which safetensors calls U8. */
static bool quantised_type(const struct par_import *im, const struct par_tap_name *is, enum fwd_dtype *out) {
    static const enum fwd_dtype types[] = {FWD_Q8_K, FWD_Q8_32, FWD_E4M3};
    char key[64], want[32];
    (void)snprintf(key, sizeof key, "tap:%s-%d", fwd_op_name(is->op), is->layer);
    const char *said = par_import_fact(im, key, NULL);
    (void)snprintf(key, sizeof key, "tap:%s", fwd_op_name(is->op));
    said = said ? said : par_import_fact(im, key, NULL);
    for (size_t i = 0; said && i < sizeof types / sizeof *types; i++) {
        (void)snprintf(want, sizeof want, " dtype=%s ", fwd_dtype_name(types[i]));
        if (strstr(said, want)) {
            *out = types[i];
            return true;
        }
    }
    return false;
}

static bool find_type(const struct par_import *im, const struct import_item *item, struct par_import_tensor *t) {
    static const struct {
        const char *name;
        enum fwd_dtype type;
    } types[] = {{"F32", FWD_F32}, {"F64", FWD_F64}, {"F16", FWD_F16}};
    t->n_bytes = (size_t)item->n_bytes;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (!strcmp(item->dtype, types[i].name)) {
            t->dtype = types[i].type;
            return true;
        }
    if (!strcmp(item->dtype, "BF16")) {
        t->dtype = FWD_F32;
        t->n_bytes *= 2;
        return true;
    }
    return !strcmp(item->dtype, "U8") && quantised_type(im, &t->is, &t->dtype);
}

static enum fwd_status give_meaning(struct par_import *im, const struct par_tap_map *map, struct fwd_error *err) {
    im->tensors = fwd_calloc(im->source.n_items, sizeof *im->tensors);
    FWD_FAIL_IF(!im->tensors, FWD_ENOMEM, err, "no memory for %zu tensors", im->source.n_items);
    for (size_t i = 0; i < im->source.n_items; i++) {
        const struct import_item *item = &im->source.items[i];
        struct par_import_tensor *t = &im->tensors[i];
        t->name = item->name;
        t->n_dims = item->n_dims;
        memcpy(t->shape, item->shape, sizeof t->shape);
        t->known = par_tap_name_find(item->name, map, &t->is) && find_type(im, item, t);
    }
    return FWD_OK;
}

/* ---- facts ------------------------------------------------------------------------------------------------------ */

const char *par_import_fact(const struct par_import *im, const char *key, bool *asserted) {
    for (size_t i = 0; i < im->n_facts; i++)
        if (!strcmp(im->facts[i].key, key)) {
            if (asserted)
                *asserted = im->facts[i].asserted;
            return im->facts[i].value;
        }
    return NULL;
}

bool par_import_fact_at(const struct par_import *im, size_t i, const char **key, const char **value, bool *asserted) {
    if (i >= im->n_facts)
        return false;
    *key = im->facts[i].key;
    *value = im->facts[i].value;
    *asserted = im->facts[i].asserted;
    return true;
}

enum fwd_status par_import_assert(struct par_import *im, const char *key, const char *value, struct fwd_error *err) {
    bool asserted;
    const char *said = par_import_fact(im, key, &asserted);
    if (said && !strcmp(said, value))
        return FWD_OK;
    FWD_FAIL_IF(said, FWD_ECORRUPT, err, "%.60s is \"%.80s\", but %s \"%.80s\"", key, value,
                asserted ? "was asserted as" : "the capture records", said);
    return add_fact(im, key, value, true, err);
}

/* CAPTURE.facts.json, if it is there. */
static enum fwd_status read_side_file(struct par_import *im, const char *path, struct fwd_error *err) {
    char file[4096];
    struct stat st;
    struct par_json *doc;
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/')
        n--;
    int length = snprintf(file, sizeof file, "%.*s.facts.json", (int)n, path);
    if (length < 0 || (size_t)length >= sizeof file || stat(file, &st) != 0)
        return FWD_OK;
    FWD_TRY(par_json_read(&doc, file, MAX_FACTS_BYTES, err));
    const struct cJSON *root = par_json_root(doc);
    enum fwd_status rc =
        par_json_is_object(root) ? FWD_OK : par_json_fail(doc, root, err, "expected an object of strings");
    for (const struct cJSON *i = rc == FWD_OK ? par_json_first(root) : NULL; rc == FWD_OK && i; i = par_json_next(i)) {
        const char *value = par_json_text(i);
        rc = value ? par_import_assert(im, par_json_name(i), value, err)
                   : par_json_fail(doc, i, err, "\"%.60s\" is no string", par_json_name(i));
    }
    par_json_free(doc);
    return rc;
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

/* A folder of .npy files or of stages; which, the first that has any says. */
static enum fwd_status open_folder(struct par_import *im, const char *path, struct fwd_error *err) {
    FWD_TRY(par_npy_folder_open(&im->source, path, err));
    if (im->source.n_items)
        return FWD_OK;
    par_import_source_free(&im->source);
    FWD_TRY(par_aprt_folder_open(&im->source, path, err));
    FWD_FAIL_IF(im->source.n_items == 0, FWD_EMISSING, err, "%s: a folder with neither .npy files nor APRT stages",
                path);
    return FWD_OK;
}

static enum fwd_status open_source(struct par_import *im, const char *path, struct fwd_error *err) {
    struct stat st;
    char magic[4] = "";
    FWD_FAIL_IF(stat(path, &st) != 0, errno == ENOENT ? FWD_ENOTFOUND : FWD_EIO, err, "%s: cannot be opened: %s", path,
                strerror(errno));
    if (S_ISDIR(st.st_mode))
        return open_folder(im, path, err);
    FILE *in = S_ISREG(st.st_mode) ? fopen(path, "rb") : NULL;
    bool is_zip = in && fread(magic, 1, sizeof magic, in) == sizeof magic && !memcmp(magic, "PK\3\4", 4);
    if (in)
        (void)fclose(in);
    return is_zip ? par_npz_open(&im->source, path, err) : open_capture(im, path, err);
}

enum fwd_status par_import_open(struct par_import **out, const char *path, const struct par_tap_map *map,
                                struct fwd_error *err) {
    struct par_import *im = fwd_calloc(1, sizeof *im);
    FWD_FAIL_IF(!im, FWD_ENOMEM, err, "%s: no memory", path);
    enum fwd_status rc = open_source(im, path, err);
    if (rc == FWD_OK)
        rc = read_side_file(im, path, err);
    if (rc == FWD_OK)
        rc = give_meaning(im, map, err);
    if (rc != FWD_OK) {
        par_import_close(im);
        return rc;
    }
    *out = im;
    return FWD_OK;
}

void par_import_close(struct par_import *im) {
    if (!im)
        return;
    par_import_source_free(&im->source);
    for (size_t i = 0; i < im->n_facts; i++) {
        fwd_free(im->facts[i].key);
        fwd_free(im->facts[i].value);
    }
    fwd_free(im->facts);
    fwd_free(im->tensors);
    fwd_free(im);
}

const char *par_import_kind(const struct par_import *im) {
    return im->source.kind;
}

bool par_import_is_own(const struct par_import *im) {
    return im->is_own;
}

const struct par_import_tensor *par_import_tensors(const struct par_import *im, size_t *n) {
    *n = im->source.n_items;
    return im->tensors;
}

enum fwd_status par_import_read(const struct par_import *im, const struct par_import_tensor *t, void *out,
                                struct fwd_error *err) {
    const struct import_item *item = &im->source.items[t - im->tensors];
    uint8_t *bytes = out;
    FWD_TRY(im->source.read(im->source.state, item, bytes + (t->n_bytes - (size_t)item->n_bytes), err));
    if (strcmp(item->dtype, "BF16") != 0)
        return FWD_OK;
    /* Half the bytes lie at the end; value i is widened into bytes that were read before. */
    for (size_t i = 0; i < t->n_bytes / 4; i++) {
        const uint8_t *half = bytes + t->n_bytes / 2 + 2 * i;
        uint32_t bits = (uint32_t)half[0] << 16 | (uint32_t)half[1] << 24;
        memcpy(bytes + 4 * i, &bits, sizeof bits);
    }
    return FWD_OK;
}
