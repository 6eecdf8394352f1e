/* engine/ops/matmul_q/matmul_q.h: y[m][n] = sum_k W[n][k] * a[m][k] + bias[n] with block-quantised W and int8 a.
 *
 * Canonical arithmetic, the same bits in every variant, for any M, any chunking and any number of threads:
 *   types with superblocks of 256 (Q2_K Q3_K Q4_K Q5_K Q6_K) x struct fwd_q8_k, per superblock b in order:
 *     I = exact int32 sum of scale_j * (sub-block dot), M = exact int32 sum of min_j * (sub-block activation sum)
 *     acc = fma(d_w * d_a, (float)I, acc);  then, for types with a min:  acc = fma(-(dmin_w * d_a), (float)M, acc)
 *   types with blocks of 32 (Q4_0 Q4_1 Q5_0 Q5_1 Q8_0) x struct fwd_q8_32, per block in order:
 *     acc = fma(d_w * d_a, (float)I, acc), I = exact dot of (n - offset) and q
 *     with an m:  acc = fma(m_w * d_a, (float)sum, acc)
 * acc starts at 0; the bias is added last, one rounding. d_w, m_w are binary16 widened to F32; products round once.
 * Non-finite weights and activations propagate as these formulas say, and a result that is NaN is stored as 0x7fc00000,
 * since the processor's choice of a payload depends on operand order.
 *
 * Which activation format goes with a weight: fwd_matmul_q_act. F32, F16, BF16 weights are not for this op (matmul_f).
 */
#ifndef ENGINE_OPS_MATMUL_Q_H
#define ENGINE_OPS_MATMUL_Q_H

#include "core/status.h"
#include "core/threads.h"
#include "core/types.h"
#include "model/model.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct fwd_packed; /* a weight in the layout that the chosen variant reads */

/* FWD_Q8_K or FWD_Q8_32 for a weight type this op serves, FWD_F32 for one that it does not. */
enum fwd_dtype fwd_matmul_q_act(uint32_t weight_type);

/* A row of variants.def: what the variant has for a weight type (matmul_q_kernel.h), NULL when it does not serve it. */
typedef const struct fwd_matmul_q_kernel *matmul_q_fn(uint32_t weight_type);

/* Repacks w and drops the source's pages, so that file + packed copy of one weight only are ever resident together.
 * The ref variant reads the file's own bytes, which then must outlive *out. file may be NULL (nothing is dropped).
 * variant: "ref", "avx2", "avx512", must be allowed by caps; NULL: the fastest that serves the type. */
enum fwd_status fwd_packed_create(struct fwd_packed **out, const struct fwd_gguf *file, const struct fwd_weight *w,
                                  unsigned caps, const char *variant, struct fwd_pool *pool, struct fwd_error *err);
void fwd_packed_free(struct fwd_packed *p);
const char *fwd_packed_variant(const struct fwd_packed *p);
const char *fwd_packed_layout(const struct fwd_packed *p);
/* fwd_hash64 of the weight unpacked again to file layout (all rows, row after row). */
uint64_t fwd_packed_checksum(const struct fwd_packed *p);

/* y: [n_pos][ld_y] F32; act: [n_pos] rows in fwd_matmul_q_act's format, act_stride bytes apart; bias [n_rows] or NULL.
 * Rows of W are split over the pool's threads. scratch: see fwd_matmul_q_scratch; owned by the caller. */
struct fwd_matmul_q_args {
    const struct fwd_packed *w;
    const void *act;
    int64_t act_stride;
    int n_pos;
    const float *bias;
    float *y;
    int64_t ld_y;
    void *scratch; /* 64-byte aligned */
    struct fwd_pool *pool;
};
/* Scratch bytes that any product with up to max_cols columns and n_batch positions needs with n_threads. */
size_t fwd_matmul_q_scratch(int64_t max_cols, int n_batch, int n_threads);
void fwd_matmul_q(const struct fwd_matmul_q_args *args);

/* What the op promises for a weight type; the same for every variant. chain_extra is 0. */
void fwd_matmul_q_numerics(uint32_t weight_type, bool has_bias, struct fwd_numerics *out);

#endif
