/* harness/tap/import_source.h: what a format's reader gives to import.c. Internal to harness/tap. */
#ifndef HARNESS_TAP_IMPORT_SOURCE_H
#define HARNESS_TAP_IMPORT_SOURCE_H

#include "tap/import.h"

/* Most tensors and bytes of a name that any reader takes. */
enum { PAR_IMPORT_TENSORS = 1 << 20, PAR_IMPORT_NAME = 250 };

struct import_item {
    char *name;
    char dtype[8]; /* "F32", "F64", "F16", "BF16", "I32", "U8", ... */
    int n_dims;    /* at most 4 */
    int64_t shape[4];
    uint64_t n_bytes; /* checked: the shape's, and within the file */
    uint64_t at;      /* the reader's own */
};
struct import_source {
    const char *kind;
    struct import_item *items; /* fwd_free, names too */
    size_t n_items, room;
    void *state;
    enum fwd_status (*read)(void *state, const struct import_item *item, void *out, struct fwd_error *err);
    void (*close)(void *state);
};
/* A new item at the end, all but the name zero; the name is copied. NULL: no memory, or too many. */
struct import_item *par_import_add(struct import_source *s, const char *name);
void par_import_source_free(struct import_source *s);

/* A whole file in memory by mmap; FWD_ENOTFOUND, FWD_EIO, FWD_ECORRUPT (no regular file, or an empty one). */
struct import_map {
    const uint8_t *data;
    size_t n_bytes;
};
enum fwd_status par_import_map(struct import_map *out, const char *path, struct fwd_error *err);
void par_import_unmap(struct import_map *m);

/* The header of one .npy file; *item gets dtype, shape and size, *data_at where its values begin. name: for messages.
 */
enum fwd_status par_npy_header(const uint8_t *data, size_t n_bytes, const char *name, struct import_item *item,
                               size_t *data_at, struct fwd_error *err);
/* data must outlive the source. */
enum fwd_status par_npz_open_bytes(struct import_source *out, const uint8_t *data, size_t n_bytes, const char *name,
                                   struct fwd_error *err);
enum fwd_status par_npz_open(struct import_source *out, const char *path, struct fwd_error *err);
enum fwd_status par_npy_folder_open(struct import_source *out, const char *path, struct fwd_error *err);
/* The 12 bytes before a stage's values; *layer -1 for a stage outside layers. */
enum fwd_status par_aprt_header(const uint8_t *data, size_t n_bytes, const char *name, int *layer, uint32_t *n_values,
                                struct fwd_error *err);
enum fwd_status par_aprt_folder_open(struct import_source *out, const char *path, struct fwd_error *err);

#endif
