/* engine/format/gguf.c: GGUF files mapped, split files joined, names looked up. What the bytes mean is gguf_dir.c. */
#define _DEFAULT_SOURCE /* madvise: posix_madvise does nothing for POSIX_MADV_DONTNEED in glibc */
#include "format/gguf.h"

#include "core/memory.h"
#include "format/gguf_dir.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* "-00001-of-00003.gguf" */
enum { SPLIT_SUFFIX_BYTES = 20 };

struct part {
    char *path;
    const uint8_t *data;
    uint64_t n_bytes;
    bool mapped; /* by us: unmapped at the end */
};

struct fwd_gguf {
    char *path;
    uint32_t version, alignment;
    int n_parts;
    struct part *parts;
    struct fwd_gguf_dir dir; /* keys of the first part, tensors of all */
    const struct fwd_gguf_kv **kv_by_name;
    const struct fwd_gguf_tensor **tensor_by_name;
};

/* ---- names ------------------------------------------------------------------------------------------------------- */

static int compare_kv(const void *a, const void *b) {
    return strcmp((*(const struct fwd_gguf_kv *const *)a)->key, (*(const struct fwd_gguf_kv *const *)b)->key);
}

static int compare_tensor(const void *a, const void *b) {
    return strcmp((*(const struct fwd_gguf_tensor *const *)a)->name, (*(const struct fwd_gguf_tensor *const *)b)->name);
}

/* Sorted views of keys and tensors; a name that occurs twice is refused here. */
static enum fwd_status index_names(struct fwd_gguf *g, struct fwd_error *err) {
    uint64_t n_kv = g->dir.n_kv, n_tensors = g->dir.n_tensors;
    g->kv_by_name = fwd_alloc(n_kv, sizeof *g->kv_by_name);
    g->tensor_by_name = fwd_alloc(n_tensors, sizeof *g->tensor_by_name);
    FWD_FAIL_IF(!g->kv_by_name || !g->tensor_by_name, FWD_ENOMEM, err, "no memory to index %llu keys and tensors",
                (unsigned long long)(n_kv + n_tensors));
    for (uint64_t i = 0; i < n_kv; i++)
        g->kv_by_name[i] = &g->dir.kvs[i];
    for (uint64_t i = 0; i < n_tensors; i++)
        g->tensor_by_name[i] = &g->dir.tensors[i];
    qsort(g->kv_by_name, n_kv, sizeof *g->kv_by_name, compare_kv);
    qsort(g->tensor_by_name, n_tensors, sizeof *g->tensor_by_name, compare_tensor);
    for (uint64_t i = 1; i < n_kv; i++)
        FWD_FAIL_IF(!compare_kv(&g->kv_by_name[i - 1], &g->kv_by_name[i]), FWD_ECORRUPT, err,
                    "key \"%.80s\" occurs twice", g->kv_by_name[i]->key);
    for (uint64_t i = 1; i < n_tensors; i++)
        FWD_FAIL_IF(!compare_tensor(&g->tensor_by_name[i - 1], &g->tensor_by_name[i]), FWD_ECORRUPT, err,
                    "tensor \"%.80s\" occurs twice", g->tensor_by_name[i]->name);
    return FWD_OK;
}

const struct fwd_gguf_tensor *fwd_gguf_find(const struct fwd_gguf *g, const char *name) {
    struct fwd_gguf_tensor wanted = {.name = name};
    const struct fwd_gguf_tensor *key = &wanted, **hit;
    hit = bsearch(&key, g->tensor_by_name, g->dir.n_tensors, sizeof *hit, compare_tensor);
    return hit ? *hit : NULL;
}

const struct fwd_gguf_kv *fwd_gguf_find_kv(const struct fwd_gguf *g, const char *name) {
    struct fwd_gguf_kv wanted = {.key = name};
    const struct fwd_gguf_kv *key = &wanted, **hit;
    hit = bsearch(&key, g->kv_by_name, g->dir.n_kv, sizeof *hit, compare_kv);
    return hit ? *hit : NULL;
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

static enum fwd_status map_file(struct part *part, struct fwd_error *err) {
    struct stat st;
    int fd = open(part->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe is refused, not waited for */
    FWD_FAIL_IF(fd < 0, errno == ENOENT || errno == ENOTDIR ? FWD_ENOTFOUND : FWD_EIO, err, "%s: %s", part->path,
                strerror(errno));
    if (fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_size == 0) {
        bool empty = S_ISREG(st.st_mode);
        (void)close(fd);
        FWD_FAIL_IF(empty, FWD_ETRUNCATED, err, "%s: 0 bytes, expected a GGUF file", part->path);
        FWD_FAIL(FWD_EIO, err, "%s: not a regular file", part->path);
    }
    void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    int why = errno;
    (void)close(fd); /* the mapping keeps the file */
    FWD_FAIL_IF(p == MAP_FAILED, FWD_EIO, err, "%s: cannot map %lld bytes: %s", part->path, (long long)st.st_size,
                strerror(why));
    part->data = p;
    part->n_bytes = (uint64_t)st.st_size;
    part->mapped = true;
    return FWD_OK;
}

/* Of "NAME-00002-of-00003.gguf": no = 2, count = 3, and the length of NAME. */
static bool split_name(const char *path, int *no, int *count, size_t *stem) {
    size_t len = strlen(path);
    unsigned a, b;
    int used = 0;
    if (len < SPLIT_SUFFIX_BYTES)
        return false;
    const char *suffix = path + len - SPLIT_SUFFIX_BYTES;
    static const char pattern[] = "-ddddd-of-ddddd.gguf";
    for (int i = 0; i < SPLIT_SUFFIX_BYTES; i++)
        if (pattern[i] == 'd' ? suffix[i] < '0' || suffix[i] > '9' : suffix[i] != pattern[i])
            return false;
    if (sscanf(suffix, "-%5u-of-%5u.gguf%n", &a, &b, &used) != 2 || used != SPLIT_SUFFIX_BYTES || a < 1 || a > b)
        return false;
    *no = (int)a;
    *count = (int)b;
    *stem = len - SPLIT_SUFFIX_BYTES;
    return true;
}

static bool dir_u64(const struct fwd_gguf_dir *dir, const char *key, uint64_t *out) {
    int64_t v;
    for (uint64_t i = 0; i < dir->n_kv; i++)
        if (!strcmp(dir->kvs[i].key, key) && dir->kvs[i].type != FWD_KV_ARRAY &&
            fwd_gguf_item_i64(&dir->kvs[i], 0, &v) && v >= 0) {
            *out = (uint64_t)v;
            return true;
        }
    return false;
}

/* The split.* keys of part i (from 0) of n agree with its name. A whole file may lack them. */
static enum fwd_status check_split_keys(const struct fwd_gguf_dir *dir, int i, int n, struct fwd_error *err) {
    uint64_t no = 0, count = 1;
    bool has_no = dir_u64(dir, "split.no", &no), has_count = dir_u64(dir, "split.count", &count);
    if (n == 1 && count == 0)
        count = 1; /* a file joined again may say 0 */
    FWD_FAIL_IF(n > 1 && !(has_no && has_count), FWD_EMISSING, err,
                "named as part %d of %d, but without the keys split.no and split.count", i + 1, n);
    FWD_FAIL_IF(count != (uint64_t)n, FWD_ECORRUPT, err,
                "split.count is %llu, expected %d; a split file must be named NAME-0000X-of-0000N.gguf",
                (unsigned long long)count, n);
    FWD_FAIL_IF(no != (uint64_t)i, FWD_ECORRUPT, err, "split.no is %llu, expected %d", (unsigned long long)no, i);
    return FWD_OK;
}

/* Moves the tensors of part i into g->dir, which holds those of the parts before it. */
static enum fwd_status join_part(struct fwd_gguf *g, struct fwd_gguf_dir *dir, int i, struct fwd_error *err) {
    if (i == 0) {
        g->dir = *dir;
        *dir = (struct fwd_gguf_dir){0};
        return FWD_OK;
    }
    uint64_t n = g->dir.n_tensors + dir->n_tensors;
    struct fwd_gguf_tensor *all = fwd_realloc(g->dir.tensors, g->dir.n_tensors * sizeof *all, n, sizeof *all);
    FWD_FAIL_IF(!all, FWD_ENOMEM, err, "no memory for %llu tensors", (unsigned long long)n);
    for (uint64_t t = 0; t < dir->n_tensors; t++) {
        all[g->dir.n_tensors + t] = dir->tensors[t];
        all[g->dir.n_tensors + t].split = i;
    }
    g->dir.tensors = all;
    g->dir.n_tensors = g->dir.cap_tensors = n;
    dir->n_tensors = 0; /* the names moved */
    return FWD_OK;
}

static enum fwd_status open_part(struct fwd_gguf *g, int i, struct fwd_error *err) {
    struct fwd_error inner = {0};
    struct fwd_gguf_dir dir = {0};
    struct part *part = &g->parts[i];
    enum fwd_status status = map_file(part, &inner);
    if (status == FWD_ENOTFOUND && g->n_parts > 1)
        FWD_FAIL(FWD_ENOTFOUND, err, "part %d of %d is missing: %s", i + 1, g->n_parts, part->path);
    if (status != FWD_OK)
        FWD_FAIL(status, err, "%s", inner.message);
    status = fwd_gguf_dir_parse(&dir, part->data, part->n_bytes, &inner);
    if (status == FWD_OK)
        status = check_split_keys(&dir, i, g->n_parts, &inner);
    if (status == FWD_OK)
        status = join_part(g, &dir, i, &inner);
    fwd_gguf_dir_fini(&dir);
    FWD_FAIL_IF(status != FWD_OK, status, err, "%s: %s", part->path, inner.message);
    return FWD_OK;
}

static enum fwd_status open_parts(struct fwd_gguf *g, const char *path, struct fwd_error *err) {
    int no, count = 1;
    size_t stem = 0;
    uint64_t n_tensors;
    bool split = split_name(path, &no, &count, &stem);
    g->path = fwd_strdup(path);
    g->parts = fwd_calloc((size_t)count, sizeof *g->parts);
    FWD_FAIL_IF(!g->path || !g->parts, FWD_ENOMEM, err, "no memory to open %d files", count);
    g->n_parts = count;
    for (int i = 0; i < count; i++) {
        char *name = fwd_strdup(path);
        FWD_FAIL_IF(!name, FWD_ENOMEM, err, "no memory for a file name");
        if (split) {
            char suffix[32];
            (void)snprintf(suffix, sizeof suffix, "-%05d-of-%05d.gguf", i + 1, count);
            memcpy(name + stem, suffix, SPLIT_SUFFIX_BYTES);
        }
        g->parts[i].path = name;
        FWD_TRY(open_part(g, i, err));
    }
    if (count > 1 && dir_u64(&g->dir, "split.tensors.count", &n_tensors))
        FWD_FAIL_IF(n_tensors != g->dir.n_tensors, FWD_EMISSING, err,
                    "%s: %llu tensors in %d parts, expected %llu (split.tensors.count)", path,
                    (unsigned long long)g->dir.n_tensors, count, (unsigned long long)n_tensors);
    return FWD_OK;
}

static enum fwd_status finish_open(struct fwd_gguf **out, struct fwd_gguf *g, enum fwd_status status,
                                   struct fwd_error *err) {
    struct fwd_error inner = {0};
    if (status == FWD_OK && (status = index_names(g, &inner)) != FWD_OK)
        (void)fwd_fail(err, status, __FILE__, __LINE__, "%s: %s", g->path, inner.message);
    if (status == FWD_OK) {
        g->version = g->dir.version;
        g->alignment = g->dir.alignment;
        *out = g;
    } else {
        fwd_gguf_close(g);
    }
    return status;
}

enum fwd_status fwd_gguf_open(struct fwd_gguf **out, const char *path, struct fwd_error *err) {
    struct fwd_gguf *g = fwd_calloc(1, sizeof *g);
    *out = NULL;
    FWD_FAIL_IF(!g, FWD_ENOMEM, err, "no memory to open %s", path);
    return finish_open(out, g, open_parts(g, path, err), err);
}

enum fwd_status fwd_gguf_parse(struct fwd_gguf **out, const void *data, size_t n_bytes, struct fwd_error *err) {
    struct fwd_gguf *g = fwd_calloc(1, sizeof *g);
    *out = NULL;
    FWD_FAIL_IF(!g, FWD_ENOMEM, err, "no memory to parse %zu bytes", n_bytes);
    enum fwd_status status = FWD_ENOMEM;
    g->path = fwd_strdup("(memory)");
    g->parts = fwd_calloc(1, sizeof *g->parts);
    if (g->path && g->parts) {
        g->n_parts = 1;
        g->parts[0].data = data;
        g->parts[0].n_bytes = n_bytes;
        status = (g->parts[0].path = fwd_strdup("(memory)")) ? FWD_OK : FWD_ENOMEM;
    }
    if (status == FWD_OK)
        status = fwd_gguf_dir_parse(&g->dir, data, n_bytes, err);
    else
        (void)fwd_fail(err, status, __FILE__, __LINE__, "no memory to parse %zu bytes", n_bytes);
    return finish_open(out, g, status, err);
}

void fwd_gguf_close(struct fwd_gguf *g) {
    if (!g)
        return;
    for (int i = 0; i < g->n_parts; i++) {
        if (g->parts[i].mapped)
            (void)munmap((void *)g->parts[i].data, (size_t)g->parts[i].n_bytes);
        fwd_free(g->parts[i].path);
    }
    fwd_gguf_dir_fini(&g->dir);
    fwd_free(g->parts);
    fwd_free(g->kv_by_name);
    fwd_free(g->tensor_by_name);
    fwd_free(g->path);
    fwd_free(g);
}

/* ---- facts ------------------------------------------------------------------------------------------------------- */

const char *fwd_gguf_path(const struct fwd_gguf *g) {
    return g->path;
}

uint32_t fwd_gguf_version(const struct fwd_gguf *g) {
    return g->version;
}

uint64_t fwd_gguf_file_bytes(const struct fwd_gguf *g) {
    uint64_t n = 0;
    for (int i = 0; i < g->n_parts; i++)
        n += g->parts[i].n_bytes;
    return n;
}

int fwd_gguf_n_splits(const struct fwd_gguf *g) {
    return g->n_parts;
}

const char *fwd_gguf_split_path(const struct fwd_gguf *g, int split) {
    return g->parts[split].path;
}

const uint8_t *fwd_gguf_split_data(const struct fwd_gguf *g, int split, uint64_t *n_bytes) {
    *n_bytes = g->parts[split].n_bytes;
    return g->parts[split].data;
}

uint32_t fwd_gguf_alignment(const struct fwd_gguf *g) {
    return g->alignment;
}

uint64_t fwd_gguf_n_tensors(const struct fwd_gguf *g) {
    return g->dir.n_tensors;
}

const struct fwd_gguf_tensor *fwd_gguf_tensor(const struct fwd_gguf *g, uint64_t i) {
    return i < g->dir.n_tensors ? &g->dir.tensors[i] : NULL;
}

uint64_t fwd_gguf_n_kv(const struct fwd_gguf *g) {
    return g->dir.n_kv;
}

const struct fwd_gguf_kv *fwd_gguf_kv(const struct fwd_gguf *g, uint64_t i) {
    return i < g->dir.n_kv ? &g->dir.kvs[i] : NULL;
}

void fwd_gguf_drop_pages(const struct fwd_gguf *g, const struct fwd_gguf_tensor *t) {
    const struct part *part = &g->parts[t->split];
    long page = sysconf(_SC_PAGESIZE);
    if (!part->mapped || !t->data || page <= 0)
        return;
    /* only pages that are wholly the tensor's: its neighbours may be in use */
    uint64_t mask = (uint64_t)page - 1;
    uint64_t begin = (t->file_offset + mask) & ~mask, end = (t->file_offset + t->n_bytes) & ~mask;
    if (begin < end)
        (void)madvise((void *)(part->data + begin), (size_t)(end - begin), MADV_DONTNEED);
}

/* ---- values ------------------------------------------------------------------------------------------------------ */

static uint64_t load_le(const uint8_t *p, unsigned n_bytes) {
    uint64_t v = 0;
    for (unsigned i = 0; i < n_bytes; i++)
        v |= (uint64_t)p[i] << 8 * i;
    return v;
}

bool fwd_gguf_item_i64(const struct fwd_gguf_kv *kv, uint64_t i, int64_t *out) {
    unsigned n_bytes = fwd_gguf_kind_bytes(kv->item_type);
    if (i >= kv->n_items || !n_bytes || kv->item_type == FWD_KV_F32 || kv->item_type == FWD_KV_F64)
        return false;
    uint64_t v = load_le(kv->data + i * n_bytes, n_bytes);
    switch (kv->item_type) {
    case FWD_KV_I8:
        *out = (int8_t)v;
        return true;
    case FWD_KV_I16:
        *out = (int16_t)v;
        return true;
    case FWD_KV_I32:
        *out = (int32_t)v;
        return true;
    case FWD_KV_U64:
        if (v > INT64_MAX)
            return false;
        *out = (int64_t)v;
        return true;
    default:
        *out = (int64_t)v;
        return true;
    }
}

bool fwd_gguf_item_f64(const struct fwd_gguf_kv *kv, uint64_t i, double *out) {
    if (i >= kv->n_items)
        return false;
    if (kv->item_type == FWD_KV_F32) {
        uint32_t bits = (uint32_t)load_le(kv->data + i * 4, 4);
        float f;
        memcpy(&f, &bits, sizeof f);
        *out = (double)f;
        return true;
    }
    if (kv->item_type == FWD_KV_F64) {
        uint64_t bits = load_le(kv->data + i * 8, 8);
        memcpy(out, &bits, sizeof *out);
        return true;
    }
    return false;
}

bool fwd_gguf_get_u64(const struct fwd_gguf *g, const char *key, uint64_t *out) {
    const struct fwd_gguf_kv *kv = fwd_gguf_find_kv(g, key);
    int64_t v;
    if (!kv || kv->type == FWD_KV_ARRAY || kv->type == FWD_KV_BOOL)
        return false;
    if (kv->type == FWD_KV_U64) {
        *out = load_le(kv->data, 8);
        return true;
    }
    if (!fwd_gguf_item_i64(kv, 0, &v) || v < 0)
        return false;
    *out = (uint64_t)v;
    return true;
}

bool fwd_gguf_get_f64(const struct fwd_gguf *g, const char *key, double *out) {
    const struct fwd_gguf_kv *kv = fwd_gguf_find_kv(g, key);
    return kv && kv->type != FWD_KV_ARRAY && fwd_gguf_item_f64(kv, 0, out);
}

bool fwd_gguf_get_bool(const struct fwd_gguf *g, const char *key, bool *out) {
    const struct fwd_gguf_kv *kv = fwd_gguf_find_kv(g, key);
    if (!kv || kv->type != FWD_KV_BOOL)
        return false;
    *out = kv->data[0] != 0;
    return true;
}

bool fwd_gguf_get_str(const struct fwd_gguf *g, const char *key, const char **s, size_t *len) {
    const struct fwd_gguf_kv *kv = fwd_gguf_find_kv(g, key);
    if (!kv || kv->type != FWD_KV_STRING)
        return false;
    uint64_t cursor = 0;
    return fwd_gguf_next_str(kv, &cursor, s, len);
}

bool fwd_gguf_next_str(const struct fwd_gguf_kv *array, uint64_t *cursor, const char **s, size_t *len) {
    if (array->item_type != FWD_KV_STRING || *cursor >= array->n_bytes)
        return false;
    /* the lengths were checked when the file was parsed */
    *len = (size_t)load_le(array->data + *cursor, 8);
    *s = (const char *)array->data + *cursor + 8;
    *cursor += 8 + (uint64_t)*len;
    return true;
}
