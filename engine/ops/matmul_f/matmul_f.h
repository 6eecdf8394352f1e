/* engine/ops/matmul_f/matmul_f.h: y[m][n] = sum_k W[n][k] * x[m][k] + bias[n] in F32 from any decodable weight,
 * dequantised a panel at a time (never the whole matrix).
 *
 * Canonical arithmetic, the same bits in every variant, for any M and any number of threads: K in blocks of 256; inside
 * a block 16 lanes, lane l adds k = l, l + 16, ... in order with FMA, starting from 0; the 16 lanes are added as a
 * fixed tree ((l, l+8), (l, l+4), (l, l+2), (l, l+1)); blocks are added in order; bias last. A tail block is filled
 * with zeros. */
#ifndef ENGINE_OPS_MATMUL_F_H
#define ENGINE_OPS_MATMUL_F_H

#include "core/status.h"
#include "core/threads.h"
#include "model/model.h"

#include <stddef.h>
#include <stdint.h>

struct fwd_matmul_f_args {
    const struct fwd_weight *w;
    const float *x; /* [n_pos][ld_x] */
    int64_t ld_x;
    int n_pos;
    const float *bias;
    float *y; /* [n_pos][ld_y] */
    int64_t ld_y;
    void *scratch; /* fwd_matmul_f_scratch bytes, 64-byte aligned */
    struct fwd_pool *pool;
};
/* One row of variants.def. */
typedef void matmul_f_fn(const struct fwd_matmul_f_args *args);
size_t fwd_matmul_f_scratch(int64_t max_cols, int n_batch, int n_threads);

#endif
