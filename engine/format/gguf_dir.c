/* engine/format/gguf_dir.c: bytes of one GGUF file -> directory. Pure: no I/O, and no read that was not checked first.
 *
 * Layout, all little-endian ("string" is u64 length and that many bytes, no NUL):
 *
 *   u32 magic "GGUF" | u32 version 2 or 3 | u64 n_tensors | u64 n_kv
 *   n_kv x      string key | u32 kind | value             (array: u32 item kind, u64 n, items)
 *   n_tensors x string name | u32 n_dims | u64 ne[n_dims] | u32 type | u64 offset
 *   padding to general.alignment (32 when the key is absent), then the data; offsets count from there
 *
 * A file is valid iff everything lies inside it, keys and names are non-empty and free of NULs, kinds are known, arrays
 * are not nested, booleans are 0 or 1, the alignment is a power of two from 8 on, dimensions are 1 to 4 and positive, a
 * row holds whole blocks, sizes do not overflow, offsets are aligned, and no two tensors share a byte. Counts are
 * never trusted for an allocation: tables grow with what was really read. */
#include "format/gguf_dir.h"

#include "core/memory.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_NAME_BYTES = 65535, SHOWN_BYTES = 72 };

struct cursor {
    const uint8_t *data;
    uint64_t pos, end;
};

unsigned fwd_gguf_kind_bytes(uint32_t kind) {
    static const uint8_t bytes[] = {
        [FWD_KV_U8] = 1,  [FWD_KV_I8] = 1,   [FWD_KV_U16] = 2, [FWD_KV_I16] = 2, [FWD_KV_U32] = 4, [FWD_KV_I32] = 4,
        [FWD_KV_F32] = 4, [FWD_KV_BOOL] = 1, [FWD_KV_U64] = 8, [FWD_KV_I64] = 8, [FWD_KV_F64] = 8};
    return kind < sizeof bytes ? bytes[kind] : 0;
}

/* A name as a message shows it: control bytes as '?', cut when long. */
static const char *show_name(char buf[SHOWN_BYTES], const uint8_t *name, uint64_t len) {
    uint64_t n = len < SHOWN_BYTES - 4 ? len : SHOWN_BYTES - 4;
    for (uint64_t i = 0; i < n; i++)
        buf[i] = name[i] < 0x20 || name[i] == 0x7f ? '?' : (char)name[i];
    memcpy(buf + n, n < len ? "..." : "", n < len ? 4 : 1);
    return buf;
}

/* The one bounds check in front of every read. what and index name the object in the message. */
static enum fwd_status need_bytes(const struct cursor *c, uint64_t n_bytes, const char *what, uint64_t index,
                                  struct fwd_error *err) {
    FWD_FAIL_IF(n_bytes > c->end - c->pos, FWD_ETRUNCATED, err,
                "%s %llu at byte %llu needs %llu bytes, the file has %llu left", what, (unsigned long long)index,
                (unsigned long long)c->pos, (unsigned long long)n_bytes, (unsigned long long)(c->end - c->pos));
    return FWD_OK;
}

static uint64_t take_le(struct cursor *c, int n_bytes) {
    uint64_t v = 0;
    for (int i = 0; i < n_bytes; i++)
        v |= (uint64_t)c->data[c->pos + (uint64_t)i] << 8 * i;
    c->pos += (uint64_t)n_bytes;
    return v;
}

static enum fwd_status read_u32(struct cursor *c, uint32_t *out, const char *what, uint64_t index,
                                struct fwd_error *err) {
    FWD_TRY(need_bytes(c, 4, what, index, err));
    *out = (uint32_t)take_le(c, 4);
    return FWD_OK;
}

static enum fwd_status read_u64(struct cursor *c, uint64_t *out, const char *what, uint64_t index,
                                struct fwd_error *err) {
    FWD_TRY(need_bytes(c, 8, what, index, err));
    *out = take_le(c, 8);
    return FWD_OK;
}

/* Leaves the cursor behind the string. */
static enum fwd_status read_string(struct cursor *c, const uint8_t **s, uint64_t *len, const char *what, uint64_t index,
                                   struct fwd_error *err) {
    FWD_TRY(read_u64(c, len, what, index, err));
    FWD_TRY(need_bytes(c, *len, what, index, err));
    *s = c->data + c->pos;
    c->pos += *len;
    return FWD_OK;
}

/* A key or a tensor's name, as a NUL-terminated copy. */
static enum fwd_status read_name(struct cursor *c, char **out, const char *what, uint64_t index,
                                 struct fwd_error *err) {
    const uint8_t *s;
    uint64_t len;
    FWD_TRY(read_string(c, &s, &len, what, index, err));
    FWD_FAIL_IF(len == 0 || len > MAX_NAME_BYTES, FWD_ECORRUPT, err, "%s %llu is %llu bytes long, expected 1 to %d",
                what, (unsigned long long)index, (unsigned long long)len, MAX_NAME_BYTES);
    if (memchr(s, 0, len)) {
        char shown[SHOWN_BYTES];
        FWD_FAIL(FWD_ECORRUPT, err, "%s %llu holds a NUL byte: \"%s\"", what, (unsigned long long)index,
                 show_name(shown, s, len));
    }
    *out = fwd_strndup((const char *)s, len);
    FWD_FAIL_IF(!*out, FWD_ENOMEM, err, "no memory for %s %llu", what, (unsigned long long)index);
    return FWD_OK;
}

/* The table with room for one more item (it doubles), or NULL: then the old one stays valid. */
static void *grow_table(void *table, uint64_t n, uint64_t *cap, size_t item_bytes, struct fwd_error *err) {
    if (n < *cap)
        return table;
    uint64_t bigger = *cap ? *cap * 2 : 32;
    void *p = fwd_realloc(table, n * item_bytes, bigger, item_bytes);
    if (p)
        *cap = bigger;
    else
        (void)fwd_fail(err, FWD_ENOMEM, __FILE__, __LINE__, "no memory for %llu directory entries",
                       (unsigned long long)bigger);
    return p;
}

/* kv->item_type, ->n_items are set; finds the items' end and checks each. */
static enum fwd_status read_items(struct cursor *c, struct fwd_gguf_kv *kv, uint64_t index, struct fwd_error *err) {
    char shown[SHOWN_BYTES];
    uint64_t start = c->pos;
    const char *key = show_name(shown, (const uint8_t *)kv->key, strlen(kv->key));
    if (kv->item_type == FWD_KV_STRING) {
        /* each string takes at least its length field */
        FWD_FAIL_IF(kv->n_items > (c->end - c->pos) / 8, FWD_ETRUNCATED, err,
                    "key \"%s\" claims %llu strings, the file has %llu bytes left", key,
                    (unsigned long long)kv->n_items, (unsigned long long)(c->end - c->pos));
        for (uint64_t i = 0; i < kv->n_items; i++) {
            const uint8_t *s;
            uint64_t len;
            if (read_string(c, &s, &len, "string", i, err) != FWD_OK)
                FWD_FAIL(FWD_ETRUNCATED, err, "key \"%s\": string %llu of %llu ends outside the file", key,
                         (unsigned long long)i, (unsigned long long)kv->n_items);
        }
    } else {
        unsigned item_bytes = fwd_gguf_kind_bytes(kv->item_type);
        FWD_FAIL_IF(kv->n_items > (c->end - c->pos) / item_bytes, FWD_ETRUNCATED, err,
                    "key \"%s\" claims %llu items of %u bytes, the file has %llu bytes left", key,
                    (unsigned long long)kv->n_items, item_bytes, (unsigned long long)(c->end - c->pos));
        c->pos += kv->n_items * item_bytes;
        if (kv->item_type == FWD_KV_BOOL)
            for (uint64_t i = start; i < c->pos; i++)
                FWD_FAIL_IF(c->data[i] > 1, FWD_ECORRUPT, err,
                            "key \"%s\" (number %llu): boolean is %d, expected 0 or 1", key, (unsigned long long)index,
                            c->data[i]);
    }
    kv->data = c->data + start;
    kv->n_bytes = c->pos - start;
    return FWD_OK;
}

static enum fwd_status read_kv(struct cursor *c, struct fwd_gguf_kv *kv, uint64_t index, struct fwd_error *err) {
    char shown[SHOWN_BYTES];
    uint32_t kind;
    const char *key = show_name(shown, (const uint8_t *)kv->key, strlen(kv->key));
    FWD_TRY(read_u32(c, &kind, "kind of key", index, err));
    FWD_FAIL_IF(kind > FWD_KV_F64, FWD_ECORRUPT, err, "key \"%s\" has kind %u, expected 0 to %d", key, kind,
                FWD_KV_F64);
    kv->type = kv->item_type = (enum fwd_kv_type)kind;
    kv->n_items = 1;
    if (kind == FWD_KV_ARRAY) {
        FWD_TRY(read_u32(c, &kind, "item kind of key", index, err));
        FWD_FAIL_IF(kind > FWD_KV_F64, FWD_ECORRUPT, err, "key \"%s\" is an array of kind %u, expected 0 to %d", key,
                    kind, FWD_KV_F64);
        FWD_FAIL_IF(kind == FWD_KV_ARRAY, FWD_EUNSUPPORTED, err, "key \"%s\" is an array of arrays", key);
        kv->item_type = (enum fwd_kv_type)kind;
        FWD_TRY(read_u64(c, &kv->n_items, "array length of key", index, err));
    }
    return read_items(c, kv, index, err);
}

static enum fwd_status read_kvs(struct fwd_gguf_dir *dir, struct cursor *c, uint64_t n_kv, struct fwd_error *err) {
    for (uint64_t i = 0; i < n_kv; i++) {
        char *key = NULL;
        struct fwd_gguf_kv *kvs = grow_table(dir->kvs, dir->n_kv, &dir->cap_kv, sizeof *kvs, err);
        if (!kvs)
            return FWD_ENOMEM;
        dir->kvs = kvs;
        FWD_TRY(read_name(c, &key, "key", i, err));
        struct fwd_gguf_kv *kv = &dir->kvs[dir->n_kv++];
        *kv = (struct fwd_gguf_kv){.key = key};
        FWD_TRY(read_kv(c, kv, i, err));
        if (!strcmp(key, "general.alignment")) {
            struct cursor value = {kv->data, 0, kv->n_bytes};
            FWD_FAIL_IF(kv->type != FWD_KV_U32, FWD_ECORRUPT, err, "general.alignment has kind %d, expected %d (u32)",
                        kv->type, FWD_KV_U32);
            dir->alignment = (uint32_t)take_le(&value, 4);
            FWD_FAIL_IF(dir->alignment < 8 || (dir->alignment & (dir->alignment - 1)), FWD_ECORRUPT, err,
                        "general.alignment is %u, expected a power of two from 8 on", dir->alignment);
        }
    }
    return FWD_OK;
}

/* Sizes of t from its type and dimensions; n_bytes stays 0 where the type's size is unknown. */
static enum fwd_status size_tensor(struct fwd_gguf_tensor *t, const char *shown, struct fwd_error *err) {
    const struct fwd_type_info *type = fwd_type_info(t->type);
    uint64_t n_values = 1, n_bits_guard;
    for (int d = 0; d < t->n_dims; d++) {
        FWD_FAIL_IF(t->ne[d] == 0 || t->ne[d] > INT64_MAX, FWD_ECORRUPT, err,
                    "tensor \"%s\": ne[%d] is %llu, expected 1 to 2^63-1", shown, d, (unsigned long long)t->ne[d]);
        FWD_FAIL_IF(__builtin_mul_overflow(n_values, t->ne[d], &n_values) ||
                        __builtin_mul_overflow(n_values, (uint64_t)16, &n_bits_guard),
                    FWD_ECORRUPT, err, "tensor \"%s\": %llu x %llu x %llu x %llu values overflow", shown,
                    (unsigned long long)t->ne[0], (unsigned long long)t->ne[1], (unsigned long long)t->ne[2],
                    (unsigned long long)t->ne[3]);
    }
    if (!type || !type->block_bytes)
        return FWD_OK;
    FWD_FAIL_IF(t->ne[0] % type->block_values, FWD_ECORRUPT, err,
                "tensor \"%s\": ne[0] is %llu, expected a multiple of %u (%s)", shown, (unsigned long long)t->ne[0],
                type->block_values, type->name);
    FWD_FAIL_IF(__builtin_mul_overflow(n_values / type->block_values, (uint64_t)type->block_bytes, &t->n_bytes),
                FWD_ECORRUPT, err, "tensor \"%s\": its size in bytes overflows", shown);
    return FWD_OK;
}

static enum fwd_status read_tensor(struct cursor *c, struct fwd_gguf_tensor *t, uint64_t index, struct fwd_error *err) {
    char shown[SHOWN_BYTES];
    uint32_t n_dims;
    show_name(shown, (const uint8_t *)t->name, strlen(t->name));
    FWD_TRY(read_u32(c, &n_dims, "dimension count of tensor", index, err));
    FWD_FAIL_IF(n_dims < 1 || n_dims > 4, FWD_ECORRUPT, err, "tensor \"%s\" has %u dimensions, expected 1 to 4", shown,
                n_dims);
    t->n_dims = (int)n_dims;
    for (int d = 0; d < 4; d++)
        t->ne[d] = 1;
    for (int d = 0; d < t->n_dims; d++)
        FWD_TRY(read_u64(c, &t->ne[d], "dimension of tensor", index, err));
    FWD_TRY(read_u32(c, &t->type, "type of tensor", index, err));
    FWD_TRY(read_u64(c, &t->file_offset, "offset of tensor", index, err));
    return size_tensor(t, shown, err);
}

static enum fwd_status read_tensors(struct fwd_gguf_dir *dir, struct cursor *c, uint64_t n_tensors,
                                    struct fwd_error *err) {
    for (uint64_t i = 0; i < n_tensors; i++) {
        char *name = NULL;
        struct fwd_gguf_tensor *tensors =
            grow_table(dir->tensors, dir->n_tensors, &dir->cap_tensors, sizeof *tensors, err);
        if (!tensors)
            return FWD_ENOMEM;
        dir->tensors = tensors;
        FWD_TRY(read_name(c, &name, "tensor name", i, err));
        struct fwd_gguf_tensor *t = &dir->tensors[dir->n_tensors++];
        *t = (struct fwd_gguf_tensor){.name = name};
        FWD_TRY(read_tensor(c, t, i, err));
    }
    return FWD_OK;
}

static int compare_offsets(const void *a, const void *b) {
    const struct fwd_gguf_tensor *x = *(const struct fwd_gguf_tensor *const *)a;
    const struct fwd_gguf_tensor *y = *(const struct fwd_gguf_tensor *const *)b;
    if (x->file_offset != y->file_offset)
        return x->file_offset < y->file_offset ? -1 : 1;
    return (x->n_bytes > y->n_bytes) - (x->n_bytes < y->n_bytes);
}

static enum fwd_status check_overlaps(const struct fwd_gguf_dir *dir, struct fwd_error *err) {
    if (dir->n_tensors < 2)
        return FWD_OK;
    const struct fwd_gguf_tensor **sorted = fwd_alloc(dir->n_tensors, sizeof *sorted);
    FWD_FAIL_IF(!sorted, FWD_ENOMEM, err, "no memory to sort %llu tensors", (unsigned long long)dir->n_tensors);
    for (uint64_t i = 0; i < dir->n_tensors; i++)
        sorted[i] = &dir->tensors[i];
    qsort(sorted, dir->n_tensors, sizeof *sorted, compare_offsets);
    enum fwd_status status = FWD_OK;
    for (uint64_t i = 1; i < dir->n_tensors && status == FWD_OK; i++) {
        const struct fwd_gguf_tensor *a = sorted[i - 1], *b = sorted[i];
        if (b->file_offset < a->file_offset + a->n_bytes)
            status = fwd_fail(err, FWD_ECORRUPT, __FILE__, __LINE__,
                              "tensor \"%.64s\" begins at byte %llu, inside tensor \"%.64s\" (bytes %llu to %llu)",
                              b->name, (unsigned long long)b->file_offset, a->name, (unsigned long long)a->file_offset,
                              (unsigned long long)(a->file_offset + a->n_bytes));
    }
    fwd_free(sorted);
    return status;
}

/* Turns offsets into file offsets and pointers, with everything inside the file. */
static enum fwd_status place_tensors(struct fwd_gguf_dir *dir, const struct cursor *c, struct fwd_error *err) {
    uint64_t padded = c->pos + (dir->alignment - c->pos % dir->alignment) % dir->alignment;
    dir->data_offset = padded < c->end || dir->n_tensors ? padded : c->end;
    FWD_FAIL_IF(dir->n_tensors && padded > c->end, FWD_ETRUNCATED, err,
                "the tensor data begins at byte %llu, the file has %llu", (unsigned long long)padded,
                (unsigned long long)c->end);
    for (uint64_t i = 0; i < dir->n_tensors; i++) {
        struct fwd_gguf_tensor *t = &dir->tensors[i];
        char shown[SHOWN_BYTES];
        uint64_t room = c->end - padded, offset = t->file_offset;
        show_name(shown, (const uint8_t *)t->name, strlen(t->name));
        FWD_FAIL_IF(offset % dir->alignment, FWD_ECORRUPT, err,
                    "tensor \"%s\" has offset %llu, expected a multiple of %u", shown, (unsigned long long)offset,
                    dir->alignment);
        FWD_FAIL_IF(offset > room || t->n_bytes > room - offset, FWD_ETRUNCATED, err,
                    "tensor \"%s\": %llu bytes at offset %llu do not fit into the %llu bytes of data", shown,
                    (unsigned long long)t->n_bytes, (unsigned long long)offset, (unsigned long long)room);
        t->file_offset = padded + offset;
        t->data = t->n_bytes ? c->data + t->file_offset : NULL;
    }
    return check_overlaps(dir, err);
}

static enum fwd_status read_header(struct cursor *c, uint32_t *version, struct fwd_error *err) {
    FWD_TRY(need_bytes(c, 8, "header", 0, err));
    FWD_FAIL_IF(memcmp(c->data, "GGUF", 4) != 0, FWD_ECORRUPT, err,
                "not a GGUF file: it begins with bytes %02x %02x %02x %02x, expected 47 47 55 46 (\"GGUF\")",
                c->data[0], c->data[1], c->data[2], c->data[3]);
    c->pos = 4;
    *version = (uint32_t)take_le(c, 4);
    FWD_FAIL_IF(*version && !(*version & 0xffffu), FWD_EVERSION, err,
                "big-endian GGUF (version field 0x%08x): only little-endian files are read", *version);
    FWD_FAIL_IF(*version != 2 && *version != 3, FWD_EVERSION, err, "GGUF version %u, expected 2 or 3", *version);
    return FWD_OK;
}

enum fwd_status fwd_gguf_dir_parse(struct fwd_gguf_dir *dir, const void *data, uint64_t n_bytes,
                                   struct fwd_error *err) {
    struct cursor c = {data, 0, n_bytes};
    uint64_t n_tensors = 0, n_kv = 0;
    *dir = (struct fwd_gguf_dir){.alignment = 32};
    enum fwd_status status = read_header(&c, &dir->version, err);
    if (status == FWD_OK)
        status = read_u64(&c, &n_tensors, "tensor count", 0, err);
    if (status == FWD_OK)
        status = read_u64(&c, &n_kv, "key count", 0, err);
    if (status == FWD_OK)
        status = read_kvs(dir, &c, n_kv, err);
    if (status == FWD_OK)
        status = read_tensors(dir, &c, n_tensors, err);
    if (status == FWD_OK)
        status = place_tensors(dir, &c, err);
    if (status != FWD_OK)
        fwd_gguf_dir_fini(dir);
    return status;
}

/* The names are the directory's own copies; they are const only to its readers. */
void fwd_gguf_dir_fini(struct fwd_gguf_dir *dir) {
    for (uint64_t i = 0; i < dir->n_kv; i++)
        fwd_free((void *)dir->kvs[i].key);
    for (uint64_t i = 0; i < dir->n_tensors; i++)
        fwd_free((void *)dir->tensors[i].name);
    fwd_free(dir->kvs);
    fwd_free(dir->tensors);
    *dir = (struct fwd_gguf_dir){0};
}
