/* engine/ops/matmul_q/matmul_q_kernel.h: what one variant offers for one weight type, and the job it is given. Private
 * to matmul_q.
 *
 * A packed weight is a sequence of strips of `rows` rows, a strip a sequence of blocks (256 or 32 values of each of its
 * rows) in order, a block block_bytes long; a last strip that lacks rows is filled up with zero rows. rows == 1 is the
 * file's own layout. */
#ifndef ENGINE_OPS_MATMUL_Q_KERNEL_H
#define ENGINE_OPS_MATMUL_Q_KERNEL_H

#include <stdbool.h>
#include <stdint.h>

/* Blocks [block_begin, block_end) of strips [strip_begin, strip_end), for all positions. */
struct fwd_matmul_q_job {
    const uint8_t *packed;
    int64_t n_rows, n_blocks;
    int64_t strip_begin, strip_end;
    int64_t block_begin, block_end;
    const uint8_t *act;
    int64_t act_stride; /* bytes */
    int n_pos;
    const float *bias; /* [n_rows] or NULL */
    float *y;          /* [n_pos][ld_y]; holds the unfinished chains between two jobs over consecutive blocks */
    int64_t ld_y;
};

struct fwd_matmul_q_kernel {
    const char *layout; /* "file", "rows8", "rows16" */
    int rows;
    void (*run)(const struct fwd_matmul_q_job *job);
};

#endif
