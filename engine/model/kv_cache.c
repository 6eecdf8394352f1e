#include "model/kv_cache.h"

#include "core/half.h"
#include "core/memory.h"

#include <string.h>

struct fwd_kv_cache {
    int n_seq, n_layer, n_ctx, n_kv_head, head_dim;
    enum fwd_dtype type;
    int64_t row_bytes, head_bytes, part_bytes;
    int *n_past; /* [n_seq] */
    uint8_t *data;
};

static enum fwd_status allocate(struct fwd_kv_cache *c, struct fwd_error *err) {
    c->row_bytes = c->head_dim * (c->type == FWD_F16 ? 2 : 4);
    size_t parts = 0, bytes = 0;
    bool overflow = __builtin_mul_overflow(c->row_bytes, (int64_t)c->n_ctx, &c->head_bytes) ||
                    __builtin_mul_overflow(c->head_bytes, (int64_t)c->n_kv_head, &c->part_bytes) ||
                    __builtin_mul_overflow((size_t)c->n_seq * 2, (size_t)c->n_layer, &parts) ||
                    __builtin_mul_overflow(parts, (size_t)c->part_bytes, &bytes);
    c->n_past = overflow ? NULL : fwd_calloc((size_t)c->n_seq, sizeof *c->n_past);
    c->data = c->n_past ? fwd_alloc(bytes, 1) : NULL;
    FWD_FAIL_IF(!c->data, FWD_ENOMEM, err,
                "kv cache: no memory for %d sequences x %d layers x %d positions x %d heads x %d %s values, twice "
                "(%zu MiB)",
                c->n_seq, c->n_layer, c->n_ctx, c->n_kv_head, c->head_dim, fwd_dtype_name(c->type), bytes >> 20);
    return FWD_OK;
}

enum fwd_status fwd_kv_cache_create(struct fwd_kv_cache **out, const struct fwd_config *config, int n_seq, int n_ctx,
                                    enum fwd_dtype type, struct fwd_error *err) {
    FWD_FAIL_IF(type != FWD_F16 && type != FWD_F32, FWD_EINPUT, err, "kv cache: got type %s, expected F16 or F32",
                fwd_dtype_name(type));
    FWD_FAIL_IF(n_seq < 1 || n_ctx < 1, FWD_ERANGE, err,
                "kv cache: got %d sequences of %d positions, expected 1 or more", n_seq, n_ctx);
    struct fwd_kv_cache *c = fwd_calloc(1, sizeof *c);
    FWD_FAIL_IF(!c, FWD_ENOMEM, err, "kv cache: no memory for its head of %zu bytes", sizeof *c);
    c->n_seq = n_seq;
    c->n_layer = config->n_layer;
    c->n_ctx = n_ctx;
    c->n_kv_head = config->n_kv_head;
    c->head_dim = config->head_dim;
    c->type = type;
    enum fwd_status status = allocate(c, err);
    if (status != FWD_OK) {
        fwd_kv_cache_free(c);
        return status;
    }
    *out = c;
    return FWD_OK;
}

void fwd_kv_cache_free(struct fwd_kv_cache *cache) {
    if (!cache)
        return;
    fwd_free(cache->n_past);
    fwd_free(cache->data);
    fwd_free(cache);
}

enum fwd_dtype fwd_kv_cache_type(const struct fwd_kv_cache *cache) {
    return cache->type;
}

int fwd_kv_cache_n_past(const struct fwd_kv_cache *cache, int seq) {
    return cache->n_past[seq];
}

void fwd_kv_cache_set_n_past(struct fwd_kv_cache *cache, int seq, int n_past) {
    cache->n_past[seq] = n_past;
}

uint8_t *fwd_kv_cache_rows(const struct fwd_kv_cache *cache, int seq, int layer, enum fwd_kv_part part) {
    int64_t index = ((int64_t)seq * cache->n_layer + layer) * 2 + part;
    return cache->data + index * cache->part_bytes;
}

int64_t fwd_kv_cache_row_stride(const struct fwd_kv_cache *cache) {
    return cache->row_bytes;
}

int64_t fwd_kv_cache_head_stride(const struct fwd_kv_cache *cache) {
    return cache->head_bytes;
}

void fwd_kv_cache_store(const struct fwd_kv_cache *cache, int seq, int layer, enum fwd_kv_part part, int pos,
                        const float *src) {
    uint8_t *dst = fwd_kv_cache_rows(cache, seq, layer, part) + pos * cache->row_bytes;
    for (int h = 0; h < cache->n_kv_head; h++, src += cache->head_dim, dst += cache->head_bytes) {
        if (cache->type == FWD_F32) {
            memcpy(dst, src, (size_t)cache->row_bytes);
            continue;
        }
        uint16_t *half = (uint16_t *)(void *)dst;
        for (int d = 0; d < cache->head_dim; d++)
            half[d] = fwd_f32_to_f16(src[d]);
    }
}
