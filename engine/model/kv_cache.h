/* engine/model/kv_cache.h: K and V rows of several sequences, for every layer.
 *
 * One allocation: [slot][layer][K, V][kv head][position][head_dim], F16 or F32, so that the rows that one head reads
 * lie one behind the other. The cache holds bytes only; how many rows of a slot are valid (`n_past`) is what keeps an
 * old, longer sequence out of sight: nothing reads a row at or beyond it before it is stored again. */
#ifndef ENGINE_MODEL_KV_CACHE_H
#define ENGINE_MODEL_KV_CACHE_H

#include "core/status.h"
#include "core/types.h"
#include "model/model.h"

#include <stddef.h>
#include <stdint.h>

struct fwd_kv_cache;
enum fwd_kv_part { FWD_KV_K = 0, FWD_KV_V = 1 };

/* type: FWD_F16 or FWD_F32 (FWD_EINPUT otherwise). Pages are touched only when rows are stored. */
enum fwd_status fwd_kv_cache_create(struct fwd_kv_cache **out, const struct fwd_config *config, int n_seq, int n_ctx,
                                    enum fwd_dtype type, struct fwd_error *err);
void fwd_kv_cache_free(struct fwd_kv_cache *cache);
enum fwd_dtype fwd_kv_cache_type(const struct fwd_kv_cache *cache);

/* Rows of a slot that are valid, 0 after create. */
int fwd_kv_cache_n_past(const struct fwd_kv_cache *cache, int seq);
void fwd_kv_cache_set_n_past(struct fwd_kv_cache *cache, int seq, int n_past);

/* Where head 0 of position 0 lies, and the bytes from one position and from one head to the next. */
uint8_t *fwd_kv_cache_rows(const struct fwd_kv_cache *cache, int seq, int layer, enum fwd_kv_part part);
int64_t fwd_kv_cache_row_stride(const struct fwd_kv_cache *cache);
int64_t fwd_kv_cache_head_stride(const struct fwd_kv_cache *cache);

/* Stores one position: src has n_kv_head * head_dim values, rounded to the cache's type half to even. */
void fwd_kv_cache_store(const struct fwd_kv_cache *cache, int seq, int layer, enum fwd_kv_part part, int pos,
                        const float *src);

#endif
