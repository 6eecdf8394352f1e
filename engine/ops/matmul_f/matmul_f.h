/* engine/ops/matmul_f/matmul_f.h: y[m][n] = sum_k W[n][k] * x[m][k] + bias[n] in float from any decodable weight,
 * dequantised a panel at a time (never the whole matrix). matmul_f works in F32, matmul_d the same way in F64.
 *
 * Canonical arithmetic, per output element and therefore the same bits in every variant, for any M and any number of
 * threads: k in blocks of 64; inside a block one chain of fused multiply-adds in the order of k, starting from 0; the
 * blocks are added in order, starting from 0; the bias last. A last block shorter than 64 is a shorter chain. The
 * weights are the F32 values of engine/quant, exact in F64.
 *
 * Layout is free under this definition, and the fast variants use it: 32 rows of W are decoded and transposed so that
 * rows lie in vector lanes, and each is multiplied with up to 14 positions from registers. */
#ifndef ENGINE_OPS_MATMUL_F_H
#define ENGINE_OPS_MATMUL_F_H

#include "core/threads.h"
#include "core/types.h"
#include "model/model.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct fwd_matmul_f_args {
    const struct fwd_weight *w; /* [n_rows][n_cols], of a decodable type */
    const float *x;             /* [n_pos][ld_x] */
    int64_t ld_x;
    int n_pos;
    const float *bias; /* [n_rows] or NULL */
    float *y;          /* [n_pos][ld_y], no overlap with x */
    int64_t ld_y;
    void *scratch; /* fwd_matmul_f_scratch bytes, 64-byte aligned, owned by the caller */
    struct fwd_pool *pool;
};
/* One row of variants.def. */
typedef void matmul_f_fn(const struct fwd_matmul_f_args *args);

struct fwd_matmul_d_args {
    const struct fwd_weight *w;
    const double *x;
    int64_t ld_x;
    int n_pos;
    const float *bias;
    double *y;
    int64_t ld_y;
    void *scratch; /* fwd_matmul_d_scratch bytes */
    struct fwd_pool *pool;
};
typedef void matmul_d_fn(const struct fwd_matmul_d_args *args);

/* Scratch bytes for any product with up to max_cols columns and n_batch positions on n_threads threads. */
size_t fwd_matmul_f_scratch(int64_t max_cols, int n_batch, int n_threads);
size_t fwd_matmul_d_scratch(int64_t max_cols, int n_batch, int n_threads);

/* What every variant promises. */
void fwd_matmul_f_numerics(bool has_bias, struct fwd_numerics *out);
void fwd_matmul_d_numerics(bool has_bias, struct fwd_numerics *out);

#endif
