/* aprender's stage folders: DIR/layer-N/STAGE.bin and DIR/STAGE.bin. A file is "APRT", u32 layer (0xFFFFFFFF: outside
 * layers), u32 number of values, then F32 values, all little-endian. Shape, positions and ids are not said: rows follow
 * from the model's widths, the rest is asserted. */
#include "tap/import_source.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>

enum { HEADER = 12 };

static uint32_t u32_at(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

enum fwd_status par_aprt_header(const uint8_t *data, size_t n_bytes, const char *name, int *layer, uint32_t *n_values,
                                struct fwd_error *err) {
    FWD_FAIL_IF(n_bytes < HEADER || memcmp(data, "APRT", 4) != 0, FWD_ECORRUPT, err, "%s: no APRT stage", name);
    uint32_t number = u32_at(data + 4);
    *n_values = u32_at(data + 8);
    FWD_FAIL_IF(number != UINT32_MAX && number > INT32_MAX, FWD_ECORRUPT, err, "%s: layer %u (other byte order?)", name,
                number);
    FWD_FAIL_IF(4 * (uint64_t)*n_values != n_bytes - HEADER, FWD_ETRUNCATED, err,
                "%s: %u values by its header, %zu bytes are there (half written, or other byte order?)", name,
                *n_values, n_bytes - HEADER);
    *layer = number == UINT32_MAX ? -1 : (int)number;
    return FWD_OK;
}

static enum fwd_status stage_path(const char *folder, const char *name, char *path, size_t n, struct fwd_error *err) {
    int length = snprintf(path, n, "%s/%s.bin", folder, name);
    FWD_FAIL_IF(length < 0 || (size_t)length >= n, FWD_ERANGE, err, "%s: a name of %d bytes", name, length);
    return FWD_OK;
}

static enum fwd_status read_stage(void *state, const struct import_item *item, void *out, struct fwd_error *err) {
    char path[4096];
    struct import_map map;
    FWD_TRY(stage_path(state, item->name, path, sizeof path, err));
    FWD_TRY(par_import_map(&map, path, err));
    bool same = map.n_bytes == HEADER + item->n_bytes; /* as when it was opened */
    if (same)
        memcpy(out, map.data + HEADER, (size_t)item->n_bytes);
    par_import_unmap(&map);
    FWD_FAIL_IF(!same, FWD_EIO, err, "%s: changed while it was read", path);
    return FWD_OK;
}

/* name: "layer-3/ffn_out" or "lm_head"; layer: by the folder, -1 outside. */
static enum fwd_status add_stage(struct import_source *s, const char *name, int layer, struct fwd_error *err) {
    char path[4096];
    struct import_map map;
    int said = -1;
    uint32_t n_values = 0;
    FWD_TRY(stage_path(s->state, name, path, sizeof path, err));
    FWD_TRY(par_import_map(&map, path, err));
    enum fwd_status rc = par_aprt_header(map.data, map.n_bytes, path, &said, &n_values, err);
    par_import_unmap(&map);
    FWD_TRY(rc);
    FWD_FAIL_IF(said != layer, FWD_ECORRUPT, err, "%s: its header says layer %d", path, said);
    struct import_item *item = par_import_add(s, name);
    FWD_FAIL_IF(!item, FWD_ENOMEM, err, "%s: no memory", path);
    (void)snprintf(item->dtype, sizeof item->dtype, "F32");
    item->n_dims = 1;
    item->shape[0] = n_values;
    item->n_bytes = 4 * (uint64_t)n_values;
    return FWD_OK;
}

/* The stages in DIR/folder ("": DIR itself). */
static enum fwd_status add_folder(struct import_source *s, const char *folder, int layer, struct fwd_error *err) {
    char path[4096], name[PAR_IMPORT_NAME + 1];
    int n = snprintf(path, sizeof path, "%s/%s", (const char *)s->state, folder);
    DIR *d = n > 0 && (size_t)n < sizeof path ? opendir(path) : NULL;
    FWD_FAIL_IF(!d, FWD_EIO, err, "%s/%s: cannot be listed", (const char *)s->state, folder);
    enum fwd_status rc = FWD_OK;
    for (const struct dirent *e; rc == FWD_OK && (e = readdir(d));) {
        size_t length = strlen(e->d_name);
        if (length <= 4 || strcmp(e->d_name + length - 4, ".bin") != 0)
            continue;
        n = snprintf(name, sizeof name, "%s%s%.*s", folder, *folder ? "/" : "", (int)(length - 4), e->d_name);
        rc = n > 0 && (size_t)n < sizeof name
                 ? add_stage(s, name, layer, err)
                 : fwd_fail(err, FWD_ERANGE, __FILE__, __LINE__, "%.60s: a name of %d bytes", e->d_name, n);
    }
    (void)closedir(d);
    return rc;
}

static enum fwd_status add_layers(struct import_source *s, struct fwd_error *err) {
    DIR *d = opendir(s->state);
    FWD_FAIL_IF(!d, FWD_EIO, err, "%s: cannot be listed", (const char *)s->state);
    enum fwd_status rc = FWD_OK;
    for (const struct dirent *e; rc == FWD_OK && (e = readdir(d));) {
        int layer, used = 0;
        if (sscanf(e->d_name, "layer-%6d%n", &layer, &used) == 1 && !e->d_name[used] && layer >= 0)
            rc = add_folder(s, e->d_name, layer, err);
    }
    (void)closedir(d);
    return rc;
}

enum fwd_status par_aprt_folder_open(struct import_source *out, const char *path, struct fwd_error *err) {
    *out =
        (struct import_source){.kind = "APRT stages", .state = fwd_strdup(path), .read = read_stage, .close = fwd_free};
    enum fwd_status rc =
        out->state ? FWD_OK : fwd_fail(err, FWD_ENOMEM, __FILE__, __LINE__, "%s: no memory for its name", path);
    if (rc == FWD_OK)
        rc = add_folder(out, "", -1, err);
    if (rc == FWD_OK)
        rc = add_layers(out, err);
    if (rc != FWD_OK)
        par_import_source_free(out);
    return rc;
}
