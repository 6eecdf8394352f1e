/* engine/cuda/step_kernels.h: the two kernels of the fused decode step and what each launch is told. Private to
 * step*.cu.
 *
 * step_gemv multiplies one activation vector by the matrices of one launch. What comes before the product (norm,
 * quantisation) every block computes for itself; what comes after it (bias, residual sum, SwiGLU) is done as each strip
 * of 8 rows is finished. step_attention turns the new query and key, stores key and value, and attends. */
#ifndef ENGINE_CUDA_STEP_KERNELS_H
#define ENGINE_CUDA_STEP_KERNELS_H

#include "cuda/kernels.h"

/* Warps of a block of step_gemv: those that multiply, one that fetches, one that runs the chains. */
enum { STEP_MULTIPLIERS = 16, STEP_FETCHER = 16, STEP_CHAINER = 17, STEP_WARPS = 18, STEP_MATS = 3 };

enum step_epilogue { STEP_STORE, STEP_RESIDUAL, STEP_SWIGLU };

struct step_mat {
    const uint8_t *tiles;
    const float *bias; /* or NULL */
    float *y;          /* STEP_STORE */
    int type, tile_bytes, n_rows;
    int unit0; /* the matrix's first unit; 0 in STEP_SWIGLU */
    int tap;   /* offset of a pointer in struct cuda_step_taps, -1: none */
};

/* A unit is a strip of 8 rows; in STEP_SWIGLU a strip of gate and the same strip of up. The launch's units are numbered
 * through its matrices; a block takes a contiguous run of them, in groups of at most group_units. A group's superblocks
 * are worked off in chunks of chunk_sb. A job is one chunk of one strip, which lies in one piece; a batch is the jobs
 * of one chunk of one group, the strips of gate before those of up. */
struct step_gemv {
    enum step_epilogue epilogue;
    int n_mat, n_units, n_blocks;
    struct step_mat mat[STEP_MATS];
    int n, n_sb; /* values of the activation vector; superblocks */
    int group_units, chunk_sb, n_chunks;
    int n_teams;             /* of chunk_sb warps each; a team takes every n_teams-th job */
    int n_slots, slot_bytes; /* of the ring of jobs; a multiple of n_teams */
    int job_pairs;           /* what a job leaves for the chains, in float2; there are two batches of it */
    bool has_k, has_32;      /* activation formats in use */
    const float *x;
    const float *norm; /* or NULL: x is quantised as it is */
    float eps;
    const float *residual; /* STEP_RESIDUAL: sum = product + residual */
    float *out;            /* the sum, or SwiGLU's result */
    int tap_norm, tap_q8_k, tap_q8_32, tap_out;
    const struct cuda_step_state *state;
    const struct cuda_step_taps *taps; /* this layer's, or NULL */
};

/* Bytes of shared memory of one block, and where its parts begin. */
struct step_layout {
    unsigned q_k, d_k, sum_k, q_32, d_32, sum_32, pairs, ring, size;
};

struct step_attention {
    int n_blocks, n_head, n_kv_head, group, n_rope, n_split, max_segments;
    bool neox;
    float scale;
    const float *q, *k, *v; /* of this token, before the rotation */
    const float *turn;
    uint8_t *kv; /* slot 0 of this layer, K, head 0, position 0 */
    int64_t kv_slot, kv_part, kv_head, kv_row;
    float *heads;
    float *partial;    /* [n_head][max_segments][head_dim + 2] */
    unsigned *arrived; /* [n_head], zero between launches */
    const struct cuda_step_state *state;
    const struct cuda_step_taps *taps;
};

/* What a launch needs beside its parameters. */
struct step_config {
    struct CUstream_st *stream;
    int n_blocks;
    bool overlap; /* may start while the launch before it runs */
};

void step_gemv_launch(const struct step_config *config, const struct step_gemv *p);
/* Fills in the ring and the slots of p for at most max_bytes of shared memory; false: it does not fit. */
bool step_gemv_plan(struct step_gemv *p, unsigned max_bytes);
struct step_layout step_gemv_layout(const struct step_gemv *p);

void step_attention_launch(const struct step_config *config, const struct step_attention *p, int head_dim,
                           enum fwd_dtype kv_type);

#endif
