/* engine/test/gguf_bytes.h: GGUF files made in memory by tests, good ones and, field by field, bad ones. */
#ifndef ENGINE_TEST_GGUF_BYTES_H
#define ENGINE_TEST_GGUF_BYTES_H

#include "format/gguf.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct byte_list {
    uint8_t *data;
    size_t n, cap;
};

static inline void put_bytes(struct byte_list *b, const void *data, size_t n) {
    if (b->n + n > b->cap) {
        b->cap = (b->n + n) * 2 + 64;
        b->data = realloc(b->data, b->cap);
        if (!b->data)
            abort();
    }
    if (n)
        memcpy(b->data + b->n, data, n);
    b->n += n;
}

static inline void put_le(struct byte_list *b, uint64_t v, int n_bytes) {
    for (int i = 0; i < n_bytes; i++) {
        uint8_t byte = (uint8_t)(v >> 8 * i);
        put_bytes(b, &byte, 1);
    }
}

static inline void put_string(struct byte_list *b, const char *s) {
    put_le(b, strlen(s), 8);
    put_bytes(b, s, strlen(s));
}

struct gguf_bytes {
    struct byte_list keys, infos, data;
    uint64_t n_kv, n_tensors;
    uint32_t alignment; /* 0: 32, and no key is written */
};

static inline void begin_kv(struct gguf_bytes *g, const char *key, uint32_t kind) {
    put_string(&g->keys, key);
    put_le(&g->keys, kind, 4);
    g->n_kv++;
}

static inline void add_u32(struct gguf_bytes *g, const char *key, uint32_t v) {
    begin_kv(g, key, FWD_KV_U32);
    put_le(&g->keys, v, 4);
}

static inline void add_u16(struct gguf_bytes *g, const char *key, uint32_t v) {
    begin_kv(g, key, FWD_KV_U16);
    put_le(&g->keys, v, 2);
}

static inline void add_f32(struct gguf_bytes *g, const char *key, float v) {
    uint32_t bits;
    memcpy(&bits, &v, 4);
    begin_kv(g, key, FWD_KV_F32);
    put_le(&g->keys, bits, 4);
}

static inline void add_str(struct gguf_bytes *g, const char *key, const char *v) {
    begin_kv(g, key, FWD_KV_STRING);
    put_string(&g->keys, v);
}

static inline void begin_array(struct gguf_bytes *g, const char *key, uint32_t item_kind, uint64_t n) {
    begin_kv(g, key, FWD_KV_ARRAY);
    put_le(&g->keys, item_kind, 4);
    put_le(&g->keys, n, 8);
}

/* The directory entry alone; the offset is the caller's. */
static inline void add_info(struct gguf_bytes *g, const char *name, uint32_t type, uint32_t n_dims, const uint64_t *ne,
                            uint64_t offset) {
    put_string(&g->infos, name);
    put_le(&g->infos, n_dims, 4);
    for (uint32_t d = 0; d < n_dims; d++)
        put_le(&g->infos, ne[d], 8);
    put_le(&g->infos, type, 4);
    put_le(&g->infos, offset, 8);
    g->n_tensors++;
}

/* A tensor with its data, at the next aligned offset. data NULL: zeros. */
static inline void add_tensor(struct gguf_bytes *g, const char *name, uint32_t type, uint32_t n_dims,
                              const uint64_t *ne, const void *data) {
    const struct fwd_type_info *t = fwd_type_info(type);
    uint64_t align = g->alignment ? g->alignment : 32, n = 1;
    for (uint32_t d = 0; d < n_dims; d++)
        n *= ne[d];
    n = t && t->block_bytes ? n / t->block_values * t->block_bytes : 64;
    while (g->data.n % align)
        put_le(&g->data, 0, 1);
    add_info(g, name, type, n_dims, ne, g->data.n);
    for (uint64_t i = 0; !data && i < n; i++)
        put_le(&g->data, 0, 1);
    if (data)
        put_bytes(&g->data, data, n);
}

/* The whole file; *data_offset (may be NULL) is where its structure ends. Frees the parts. */
static inline uint8_t *finish_gguf(struct gguf_bytes *g, uint32_t version, size_t *n_bytes, size_t *data_offset) {
    struct byte_list out = {0};
    uint32_t align = g->alignment ? g->alignment : 32;
    if (g->alignment)
        add_u32(g, "general.alignment", g->alignment);
    put_bytes(&out, "GGUF", 4);
    put_le(&out, version, 4);
    put_le(&out, g->n_tensors, 8);
    put_le(&out, g->n_kv, 8);
    put_bytes(&out, g->keys.data, g->keys.n);
    put_bytes(&out, g->infos.data, g->infos.n);
    if (data_offset)
        *data_offset = out.n;
    while (out.n % align)
        put_le(&out, 0, 1);
    put_bytes(&out, g->data.data, g->data.n);
    free(g->keys.data);
    free(g->infos.data);
    free(g->data.data);
    *g = (struct gguf_bytes){0};
    *n_bytes = out.n;
    return out.data;
}

#endif
