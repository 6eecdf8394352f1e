/* engine/format/gguf.h: a GGUF v2/v3 file as a directory of keys and tensors: bytes in, bounds-checked views out.
 *
 * This is the byte parser that engine and harness share, and the only thing they share about a model: it says where
 * bytes lie and what they are called, never what they mean. Everything it returns lives until fwd_gguf_close.
 * Source of the layout: the GGUF specification in ggml's docs/gguf.md. */
#ifndef ENGINE_FORMAT_GGUF_H
#define ENGINE_FORMAT_GGUF_H

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ggml's type ids; the ones named here are those this project decodes. */
enum fwd_type {
    FWD_TYPE_F32 = 0,
    FWD_TYPE_F16 = 1,
    FWD_TYPE_Q4_0 = 2,
    FWD_TYPE_Q4_1 = 3,
    FWD_TYPE_Q5_0 = 6,
    FWD_TYPE_Q5_1 = 7,
    FWD_TYPE_Q8_0 = 8,
    FWD_TYPE_Q8_1 = 9,
    FWD_TYPE_Q2_K = 10,
    FWD_TYPE_Q3_K = 11,
    FWD_TYPE_Q4_K = 12,
    FWD_TYPE_Q5_K = 13,
    FWD_TYPE_Q6_K = 14,
    FWD_TYPE_Q8_K = 15,
    FWD_TYPE_BF16 = 30
};

struct fwd_type_info {
    uint32_t id;
    const char *name;      /* "Q4_K" */
    uint32_t block_values; /* values in a block */
    uint32_t block_bytes;  /* bytes in a block; 0: a type id that is known by name only */
    bool decodable;        /* one of the 13 types this project decodes */
};
/* NULL for an id that ggml never assigned. */
const struct fwd_type_info *fwd_type_info(uint32_t id);
/* "Q4_K", or "type 77" (static storage) for an unassigned id. */
const char *fwd_type_name(uint32_t id);
/* The row of a name, ignoring case; NULL when there is none. */
const struct fwd_type_info *fwd_type_by_name(const char *name);

enum fwd_kv_type {
    FWD_KV_U8 = 0,
    FWD_KV_I8,
    FWD_KV_U16,
    FWD_KV_I16,
    FWD_KV_U32,
    FWD_KV_I32,
    FWD_KV_F32,
    FWD_KV_BOOL,
    FWD_KV_STRING,
    FWD_KV_ARRAY,
    FWD_KV_U64,
    FWD_KV_I64,
    FWD_KV_F64
};

struct fwd_gguf_kv {
    const char *key; /* NUL-terminated copy */
    enum fwd_kv_type type;
    enum fwd_kv_type item_type; /* of an array; else == type */
    uint64_t n_items;           /* of an array; else 1 */
    const uint8_t *data;        /* first item's bytes, unaligned, little-endian */
    uint64_t n_bytes;           /* all items */
};

struct fwd_gguf_tensor {
    const char *name; /* NUL-terminated copy */
    uint32_t type;    /* a ggml type id, maybe one we cannot decode */
    int n_dims;
    uint64_t ne[4];      /* ne[0] is the contiguous one (K, the row length); missing dimensions are 1 */
    const uint8_t *data; /* in the mapping, n_bytes long and wholly inside it; NULL for a type of unknown size */
    uint64_t n_bytes;
    uint64_t file_offset; /* of data, in its own file */
    int split;            /* which file of a split model, from 0 */
};

struct fwd_gguf;

/* Maps PATH read-only; PATH may be any one of NAME-00001-of-0000N.gguf, then all N are opened and joined. */
enum fwd_status fwd_gguf_open(struct fwd_gguf **out, const char *path, struct fwd_error *err);
/* Pure: parses n_bytes at data, which must outlive *out. No I/O. */
enum fwd_status fwd_gguf_parse(struct fwd_gguf **out, const void *data, size_t n_bytes, struct fwd_error *err);
void fwd_gguf_close(struct fwd_gguf *g);

const char *fwd_gguf_path(const struct fwd_gguf *g); /* as opened; "(memory)" after fwd_gguf_parse */
uint32_t fwd_gguf_version(const struct fwd_gguf *g);
uint64_t fwd_gguf_file_bytes(const struct fwd_gguf *g); /* of all splits together */
int fwd_gguf_n_splits(const struct fwd_gguf *g);
const char *fwd_gguf_split_path(const struct fwd_gguf *g, int split);
/* The whole mapped file of a split, for hashing. */
const uint8_t *fwd_gguf_split_data(const struct fwd_gguf *g, int split, uint64_t *n_bytes);
uint32_t fwd_gguf_alignment(const struct fwd_gguf *g);

uint64_t fwd_gguf_n_tensors(const struct fwd_gguf *g);
const struct fwd_gguf_tensor *fwd_gguf_tensor(const struct fwd_gguf *g, uint64_t i);
const struct fwd_gguf_tensor *fwd_gguf_find(const struct fwd_gguf *g, const char *name); /* NULL: none */
/* Tells the system that this tensor's pages are not needed soon (they stay valid and are read again on touch). */
void fwd_gguf_drop_pages(const struct fwd_gguf *g, const struct fwd_gguf_tensor *t);

uint64_t fwd_gguf_n_kv(const struct fwd_gguf *g);
const struct fwd_gguf_kv *fwd_gguf_kv(const struct fwd_gguf *g, uint64_t i);
const struct fwd_gguf_kv *fwd_gguf_find_kv(const struct fwd_gguf *g, const char *key);
/* Getters: false when the key is absent or of another kind (any integer kind widens; f32 and f64 both give double). */
bool fwd_gguf_get_u64(const struct fwd_gguf *g, const char *key, uint64_t *out);
bool fwd_gguf_get_f64(const struct fwd_gguf *g, const char *key, double *out);
bool fwd_gguf_get_bool(const struct fwd_gguf *g, const char *key, bool *out);
/* Not NUL-terminated. */
bool fwd_gguf_get_str(const struct fwd_gguf *g, const char *key, const char **s, size_t *len);
/* Strings of an array in one pass: call until it returns false. *cursor starts at 0. */
bool fwd_gguf_next_str(const struct fwd_gguf_kv *array, uint64_t *cursor, const char **s, size_t *len);
/* Item i of a non-string array (or the scalar itself with i == 0), widened. */
bool fwd_gguf_item_i64(const struct fwd_gguf_kv *kv, uint64_t i, int64_t *out);
bool fwd_gguf_item_f64(const struct fwd_gguf_kv *kv, uint64_t i, double *out);

#endif
