/* engine/ops/attention/attention.h: causal attention of some query heads that read one KV head at one position.
 *
 * o = sum_j p_j v_j / sum_j p_j, p_j = exp(q.k_j * scale - max), over the keys 0 .. n_keys-1. Canonical arithmetic, the
 * same bits in every variant and for any batch, chunking or thread split:
 *   keys in segments of 256 from position 0. Within a segment:
 *     score_j = (q . k_j) * scale: 16 lanes, lane l fuses d = l, l + 16, ... in order from 0; lanes added as a tree
 * ((l, l+8), (l, l+4), (l, l+2), (l, l+1)) m_s = largest score (NaN ignored), p_j = exp(score_j - m_s) by ops/expf l_s
 * = sum of p_j: 16 lanes, lane j mod 16 in order of j, the same tree o_s[d] = fused sum of p_j * v_j[d] over j in
 * order, from 0 segments in order: the first one is taken over as it is; then m' = max(m, m_s), a = exp(m - m'), b =
 * exp(m_s - m'), l = fma(l, a, l_s * b), o[d] = fma(o[d], a, o_s[d] * b) result o[d] / l. K and V rows are F32, or F16
 * widened exactly. */
#ifndef ENGINE_OPS_ATTENTION_H
#define ENGINE_OPS_ATTENTION_H

#include "core/threads.h"
#include "core/types.h"
#include "model/model.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { FWD_ATTENTION_SEGMENT = 256, FWD_ATTENTION_HEADS = 4 };

struct fwd_attention_unit {
    int n_heads; /* 1 .. FWD_ATTENTION_HEADS, all reading the same keys */
    const float *q[FWD_ATTENTION_HEADS];
    float *o[FWD_ATTENTION_HEADS];
    const void *k, *v;          /* row 0 */
    int64_t stride_k, stride_v; /* bytes from one position's row to the next; a row is contiguous */
    enum fwd_dtype kv_type;     /* FWD_F16 or FWD_F32 */
    int n_keys;                 /* >= 1 */
    int head_dim;
    float scale;
    float *scratch; /* fwd_attention_scratch floats, 64-byte aligned */
};

/* One row of variants.def. The x86 rows need head_dim to be a multiple of 16 (fwd_attention_serves). */
typedef void attention_fn(const struct fwd_attention_unit *unit);
bool fwd_attention_serves(const char *variant, int head_dim);
/* Floats for one unit. */
size_t fwd_attention_scratch(int head_dim);

/* Heads grouped by the KV head they read, made once. */
struct fwd_attention_group {
    int kv_head, n_heads;
    int heads[FWD_ATTENTION_HEADS];
};
/* groups: room for n_head entries; returns how many were made. */
int fwd_attention_groups(const struct fwd_config *config, struct fwd_attention_group *groups);

/* All heads of n_pos consecutive positions of one sequence. */
struct fwd_attention_args {
    const struct fwd_config *config;
    const struct fwd_attention_group *groups;
    int n_groups;
    const float *q;                                                   /* [n_pos][n_head * head_dim] */
    float *o;                                                         /* the same shape */
    const uint8_t *k, *v;                                             /* head 0, row 0 */
    int64_t stride_row_k, stride_head_k, stride_row_v, stride_head_v; /* bytes */
    enum fwd_dtype kv_type;
    int pos0, n_pos;
    float *scratch; /* n_threads * fwd_attention_scratch floats */
    struct fwd_pool *pool;
};
void fwd_attention(const struct fwd_attention_args *args, attention_fn *kernel);

/* The running maximum and denominator of one head. A joined segment (max, sum) rescales what came before by *a and
 * itself by *b. */
struct fwd_attention_state {
    float max, sum;
};
void fwd_attention_join(struct fwd_attention_state *state, float max, float sum, float *a, float *b);

#endif
