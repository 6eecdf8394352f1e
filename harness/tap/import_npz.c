/* .npy files, alone in a folder or stored in a .npz archive. A .npy file is "\x93NUMPY", u8 major, u8 minor, the length
 * of a header (u16, from version 2 on u32), the header as a Python dictionary of three keys, the values. */
#include "tap/import_source.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint32_t u16_at(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}

static uint32_t u32_at(const uint8_t *p) {
    return u16_at(p) | u16_at(p + 2) << 16;
}

/* ---- .npy -------------------------------------------------------------------------------------------------------- */

/* Where the value of 'key': begins in the header; NULL: no such key. */
static const char *find_key(const char *header, const char *key) {
    char quoted[32];
    (void)snprintf(quoted, sizeof quoted, "'%s':", key);
    const char *at = strstr(header, quoted);
    if (!at)
        return NULL;
    at += strlen(quoted);
    return at + strspn(at, " ");
}

static enum fwd_status read_descr(const char *at, const char *name, struct import_item *item, size_t *value_bytes,
                                  struct fwd_error *err) {
    static const struct {
        const char *descr, *dtype;
        size_t n_bytes;
    } types[] = {{"'<f4'", "F32", 4}, {"'<f2'", "F16", 2}, {"'<f8'", "F64", 8}};
    FWD_FAIL_IF(at && (!strncmp(at, "'>", 2)), FWD_EUNSUPPORTED, err, "%s: values are big-endian (%.5s), expected <f4",
                name, at);
    for (size_t i = 0; at && i < sizeof types / sizeof *types; i++)
        if (!strncmp(at, types[i].descr, 5)) {
            (void)snprintf(item->dtype, sizeof item->dtype, "%s", types[i].dtype);
            *value_bytes = types[i].n_bytes;
            return FWD_OK;
        }
    FWD_FAIL(FWD_ETYPE, err, "%s: type %.8s, expected '<f4', '<f2' or '<f8'", name, at ? at : "none");
}

static enum fwd_status read_shape(const char *at, const char *name, struct import_item *item, uint64_t *n_values,
                                  struct fwd_error *err) {
    FWD_FAIL_IF(!at || *at != '(', FWD_ECORRUPT, err, "%s: a header without a shape", name);
    *n_values = 1;
    for (at++; *at && *at != ')';) {
        uint64_t n = 0;
        FWD_FAIL_IF(*at < '0' || *at > '9', FWD_ECORRUPT, err, "%s: shape \"%.20s\"", name, at);
        for (; *at >= '0' && *at <= '9'; at++)
            FWD_FAIL_IF(__builtin_mul_overflow(n, 10u, &n) || __builtin_add_overflow(n, (uint64_t)(*at - '0'), &n),
                        FWD_ERANGE, err, "%s: a dimension beyond 2^64", name);
        FWD_FAIL_IF(item->n_dims == 4, FWD_EUNSUPPORTED, err, "%s: more than 4 dimensions", name);
        FWD_FAIL_IF(n > INT64_MAX || __builtin_mul_overflow(*n_values, n, n_values), FWD_ERANGE, err,
                    "%s: the shape overflows", name);
        item->shape[item->n_dims++] = (int64_t)n;
        at += strspn(at, ", ");
    }
    FWD_FAIL_IF(*at != ')', FWD_ECORRUPT, err, "%s: a shape without an end", name);
    if (item->n_dims == 0) {
        item->n_dims = 1;
        item->shape[0] = 1;
    }
    return FWD_OK;
}

enum fwd_status par_npy_header(const uint8_t *data, size_t n_bytes, const char *name, struct import_item *item,
                               size_t *data_at, struct fwd_error *err) {
    enum { MAX_HEADER = 4096 };
    char header[MAX_HEADER + 1];
    uint64_t n_values = 1;
    size_t value_bytes = 0;
    FWD_FAIL_IF(n_bytes < 12 || memcmp(data, "\x93NUMPY", 6) != 0, FWD_ECORRUPT, err, "%s: no .npy file", name);
    FWD_FAIL_IF(data[6] < 1 || data[6] > 3, FWD_EVERSION, err, "%s: .npy version %d, expected 1 to 3", name, data[6]);
    size_t begin = data[6] == 1 ? 10 : 12, length = data[6] == 1 ? u16_at(data + 8) : u32_at(data + 8);
    FWD_FAIL_IF(length > MAX_HEADER || length > n_bytes - begin, FWD_ECORRUPT, err,
                "%s: a header of %zu bytes, %zu are there (at most %d are read)", name, length, n_bytes - begin,
                MAX_HEADER);
    memcpy(header, data + begin, length);
    header[length] = 0;
    FWD_TRY(read_descr(find_key(header, "descr"), name, item, &value_bytes, err));
    const char *order = find_key(header, "fortran_order");
    FWD_FAIL_IF(!order || strncmp(order, "False", 5) != 0, FWD_EUNSUPPORTED, err,
                "%s: fortran_order is not False: save it with numpy.ascontiguousarray", name);
    FWD_TRY(read_shape(find_key(header, "shape"), name, item, &n_values, err));
    FWD_FAIL_IF(__builtin_mul_overflow(n_values, value_bytes, &item->n_bytes), FWD_ERANGE, err,
                "%s: the shape overflows", name);
    *data_at = begin + length;
    FWD_FAIL_IF(item->n_bytes != n_bytes - *data_at, FWD_ETRUNCATED, err,
                "%s: %llu bytes of values by its shape, %zu are there", name, (unsigned long long)item->n_bytes,
                n_bytes - *data_at);
    return FWD_OK;
}

/* ---- .npz: a zip archive whose members are stored ------------------------------------------------------------------
 */

struct npz {
    const uint8_t *data;
    struct import_map map; /* empty for bytes of the caller */
};

static enum fwd_status read_npz(void *state, const struct import_item *item, void *out, struct fwd_error *err) {
    const struct npz *z = state;
    (void)err;
    memcpy(out, z->data + item->at, (size_t)item->n_bytes);
    return FWD_OK;
}

static void close_npz(void *state) {
    struct npz *z = state;
    par_import_unmap(&z->map);
    fwd_free(z);
}

/* The end record: 22 bytes and a comment of at most 65535. */
static const uint8_t *find_end(const uint8_t *data, size_t n) {
    for (size_t back = 22; back <= n && back <= 22 + 65535; back++) {
        const uint8_t *p = data + n - back;
        if (!memcmp(p, "PK\5\6", 4) && u16_at(p + 20) == back - 22)
            return p;
    }
    return NULL;
}

/* One member of the directory at p (46 bytes checked, and its name). */
static enum fwd_status add_member(struct import_source *s, const uint8_t *data, size_t n_bytes, const uint8_t *p,
                                  const char *archive, struct fwd_error *err) {
    char name[PAR_IMPORT_NAME + 1];
    size_t length = u16_at(p + 28), size = u32_at(p + 24), at = u32_at(p + 42), begin, value_at;
    FWD_FAIL_IF(length == 0 || length > PAR_IMPORT_NAME, FWD_ECORRUPT, err, "%s: a member's name of %zu bytes", archive,
                length);
    memcpy(name, p + 46, length);
    name[length] = 0;
    FWD_FAIL_IF(strlen(name) != length, FWD_ECORRUPT, err, "%s: a member's name with a 0 in it", archive);
    FWD_FAIL_IF(u16_at(p + 10) != 0, FWD_EUNSUPPORTED, err,
                "%s: %s is compressed; save it with numpy.savez, not savez_compressed", archive, name);
    FWD_FAIL_IF(size == UINT32_MAX || at == UINT32_MAX, FWD_EUNSUPPORTED, err,
                "%s: %s is 4 GiB long or lies behind 4 GiB: split the archive, or save safetensors", archive, name);
    FWD_FAIL_IF(size != u32_at(p + 20) || at > n_bytes || n_bytes - at < 30 || memcmp(data + at, "PK\3\4", 4) != 0,
                FWD_ECORRUPT, err, "%s: %s is not where the directory says", archive, name);
    begin = at + 30 + u16_at(data + at + 26) + u16_at(data + at + 28);
    FWD_FAIL_IF(begin > n_bytes || size > n_bytes - begin, FWD_ETRUNCATED, err, "%s: %s ends behind the file", archive,
                name);
    if (length > 4 && !strcmp(name + length - 4, ".npy"))
        name[length - 4] = 0;
    struct import_item *item = par_import_add(s, name);
    FWD_FAIL_IF(!item, FWD_ENOMEM, err, "%s: no memory for %zu members", archive, s->n_items);
    FWD_TRY(par_npy_header(data + begin, size, item->name, item, &value_at, err));
    item->at = begin + value_at;
    return FWD_OK;
}

static enum fwd_status read_directory(struct import_source *s, const uint8_t *data, size_t n_bytes, const char *name,
                                      struct fwd_error *err) {
    const uint8_t *end = find_end(data, n_bytes);
    FWD_FAIL_IF(!end, FWD_ETRUNCATED, err, "%s: a zip archive without its end: half written?", name);
    size_t n = u16_at(end + 10), size = u32_at(end + 12), at = u32_at(end + 16), before = (size_t)(end - data);
    FWD_FAIL_IF(at > before || size > before - at, FWD_ECORRUPT, err, "%s: a directory of %zu bytes at %zu of %zu",
                name, size, at, n_bytes);
    for (size_t i = 0, done = 0; i < n; i++) {
        const uint8_t *p = data + at + done;
        FWD_FAIL_IF(size - done < 46 || memcmp(p, "PK\1\2", 4) != 0, FWD_ECORRUPT, err,
                    "%s: entry %zu of %zu is no directory entry", name, i, n);
        size_t entry = 46 + (size_t)u16_at(p + 28) + u16_at(p + 30) + u16_at(p + 32);
        FWD_FAIL_IF(entry > size - done, FWD_ECORRUPT, err, "%s: entry %zu of %zu ends behind the directory", name, i,
                    n);
        FWD_TRY(add_member(s, data, n_bytes, p, name, err));
        done += entry;
    }
    return FWD_OK;
}

enum fwd_status par_npz_open_bytes(struct import_source *out, const uint8_t *data, size_t n_bytes, const char *name,
                                   struct fwd_error *err) {
    struct npz *z = fwd_calloc(1, sizeof *z);
    FWD_FAIL_IF(!z, FWD_ENOMEM, err, "%s: no memory", name);
    z->data = data;
    *out = (struct import_source){.kind = ".npz", .state = z, .read = read_npz, .close = close_npz};
    enum fwd_status rc = read_directory(out, data, n_bytes, name, err);
    if (rc != FWD_OK)
        par_import_source_free(out);
    return rc;
}

enum fwd_status par_npz_open(struct import_source *out, const char *path, struct fwd_error *err) {
    struct import_map map;
    FWD_TRY(par_import_map(&map, path, err));
    enum fwd_status rc = par_npz_open_bytes(out, map.data, map.n_bytes, path, err);
    if (rc == FWD_OK)
        ((struct npz *)out->state)->map = map;
    else
        par_import_unmap(&map);
    return rc;
}

/* ---- a folder of .npy files ----------------------------------------------------------------------------------------
 */

static enum fwd_status read_npy_file(void *state, const struct import_item *item, void *out, struct fwd_error *err) {
    char path[4096];
    struct import_map map;
    int n = snprintf(path, sizeof path, "%s/%s.npy", (const char *)state, item->name);
    FWD_FAIL_IF(n < 0 || (size_t)n >= sizeof path, FWD_ERANGE, err, "%s: a name of %d bytes", item->name, n);
    FWD_TRY(par_import_map(&map, path, err));
    bool same = map.n_bytes == item->at + item->n_bytes; /* as when it was opened */
    if (same)
        memcpy(out, map.data + item->at, (size_t)item->n_bytes);
    par_import_unmap(&map);
    FWD_FAIL_IF(!same, FWD_EIO, err, "%s: changed while it was read", path);
    return FWD_OK;
}

static enum fwd_status add_npy_file(struct import_source *s, const char *file, struct fwd_error *err) {
    char name[PAR_IMPORT_NAME + 1], path[4096];
    struct import_map map;
    size_t length = strlen(file), at = 0;
    if (length <= 4 || strcmp(file + length - 4, ".npy") != 0)
        return FWD_OK;
    FWD_FAIL_IF(length - 4 > PAR_IMPORT_NAME, FWD_ECORRUPT, err, "%.60s..: a name of %zu bytes", file, length);
    (void)snprintf(name, sizeof name, "%.*s", (int)(length - 4), file);
    int n = snprintf(path, sizeof path, "%s/%s", (const char *)s->state, file);
    FWD_FAIL_IF(n < 0 || (size_t)n >= sizeof path, FWD_ERANGE, err, "%s: a name of %d bytes", file, n);
    struct import_item *item = par_import_add(s, name);
    FWD_FAIL_IF(!item, FWD_ENOMEM, err, "%s: no memory", file);
    FWD_TRY(par_import_map(&map, path, err));
    enum fwd_status rc = par_npy_header(map.data, map.n_bytes, path, item, &at, err);
    par_import_unmap(&map);
    item->at = at;
    return rc;
}

enum fwd_status par_npy_folder_open(struct import_source *out, const char *path, struct fwd_error *err) {
    DIR *folder = opendir(path);
    FWD_FAIL_IF(!folder, FWD_EIO, err, "%s: cannot be listed", path);
    *out = (struct import_source){
        .kind = "folder of .npy", .state = fwd_strdup(path), .read = read_npy_file, .close = fwd_free};
    enum fwd_status rc =
        out->state ? FWD_OK : fwd_fail(err, FWD_ENOMEM, __FILE__, __LINE__, "%s: no memory for its name", path);
    for (const struct dirent *e; rc == FWD_OK && (e = readdir(folder));)
        rc = add_npy_file(out, e->d_name, err);
    (void)closedir(folder);
    if (rc != FWD_OK)
        par_import_source_free(out);
    return rc;
}
