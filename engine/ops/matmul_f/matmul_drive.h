/* engine/ops/matmul_f/matmul_drive.h: the part of matmul_f and matmul_d that is the same for every variant: threads,
 * decoding, the order of panels. Private to engine/ops/matmul_*.
 *
 * A strip is 32 rows of W. A thread takes the next strip, decodes 256 columns of it, has the kernel transpose them into
 * a panel [k][32], and multiplies that panel with all positions, before it goes on to the next 256 columns. */
#ifndef ENGINE_OPS_MATMUL_DRIVE_H
#define ENGINE_OPS_MATMUL_DRIVE_H

#include "core/threads.h"
#include "model/model.h"

#include <stddef.h>
#include <stdint.h>

enum {
    MATMUL_STRIP = 32,  /* rows of W in a panel */
    MATMUL_DEPTH = 256, /* columns in a panel: the largest block, so that a panel starts at a block's start */
    MATMUL_CHAIN = 64,  /* columns in one chain of the canonical arithmetic; divides MATMUL_DEPTH */
    MATMUL_CHUNK = 512  /* positions per pass over W */
};

/* "real" is float or double, the kernel's own. */
struct matmul_kernel {
    size_t real_bytes;
    int max_tile; /* most positions that one tile call takes */
    /* x: rows of n_cols reals, ld apart -> packed [n_cols][n_pos] */
    void (*pack_positions)(const void *x, int64_t ld, int64_t n_cols, int n_pos, void *packed);
    /* rows [32][256] -> panel [n_k][32]; columns past n_k hold anything */
    void (*pack_panel)(const float *rows, int64_t n_k, void *panel);
    /* sums [n_pos][32] += panel x packed [n_k][n_pos], in the canonical order */
    void (*add_tile)(const void *panel, const void *packed, int64_t n_k, int n_pos, void *sums);
    /* sums [n_pos][32] + bias -> y, n_rows of the 32 */
    void (*store_sums)(const void *sums, const float *bias, int n_pos, int n_rows, void *y, int64_t ld);
};

struct matmul_call {
    const struct matmul_kernel *kernel;
    const struct fwd_weight *w;
    const void *x;
    int64_t ld_x;
    int n_pos;
    const float *bias;
    void *y;
    int64_t ld_y;
    void *scratch;
    struct fwd_pool *pool;
};

void fwd_matmul_drive(const struct matmul_call *call);

#endif
