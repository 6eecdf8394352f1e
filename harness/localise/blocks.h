/* harness/localise/blocks.h: which part of a matrix row is wrong. The residual of one output row, got - expected over
 * the positions of the evidence, is held against what each part could have contributed: a weight (its own activation
 * times its step), a sub-block's scale or min, a block's scale or min, a run of blocks left out or added twice, or one
 * block read wrongly in a way that has no single number.
 *
 * Where the path declares one sequential F32 chain over blocks, and rows that are not accused prove that it is
 * followed, a hypothesis must reproduce the candidate's bits. That is what makes a single position enough. */
#ifndef HARNESS_LOCALISE_BLOCKS_H
#define HARNESS_LOCALISE_BLOCKS_H

#include "spec/evidence.h"
#include "spec/spec_model.h"

enum par_fit_kind {
    PAR_FIT_NONE,
    PAR_FIT_DROPPED,     /* blocks block_first .. block_last are left out */
    PAR_FIT_DOUBLED,     /* ... or added twice */
    PAR_FIT_MOVED,       /* the block is read from `delta` rows on, or, delta 0, from `factor` blocks on */
    PAR_FIT_WEIGHT,      /* weight k_first is off by `delta` codes (for float weights: by `factor`) */
    PAR_FIT_SCALE,       /* the scale of the sub-block k_first .. k_last is off by `delta` */
    PAR_FIT_MIN,         /* its min is */
    PAR_FIT_BLOCK_SCALE, /* the block's d is multiplied by `factor` */
    PAR_FIT_BLOCK_MIN,   /* its dmin is */
    PAR_FIT_BLOCK,       /* several of the block's scales and mins are wrong */
    PAR_FIT_CODES,       /* its codes are read wrongly (par_row_span) */
    PAR_FIT_BIAS,        /* of no block: `factor` is added to the row at every position */
    PAR_FIT_ROW          /* of no block: the row's sum of products is multiplied by `factor` */
};
struct par_row_fit {
    enum par_fit_kind kind;
    int64_t block_first, block_last; /* of no block: -1 */
    int64_t k_first, k_last;         /* -1: the whole block(s) */
    int delta;
    double factor;
    double share;   /* of the residual's square that is explained */
    double chance;  /* parts that would fit by accident, expected; only one position makes this more than nothing */
    bool same_bits; /* it reproduces the candidate's bits at every position */
};

/* The activations of a matmul at some positions, as the op read them; zeroed by the caller the first time. */
struct par_acts {
    int n_pos;
    int64_t k;
    int block;    /* values in a block of it, 1: floats */
    int *pos;     /* [n_pos] absolute positions */
    int8_t *code; /* [n_pos][k], of blocks */
    float *scale; /* [n_pos][k / block], of blocks */
    float *value; /* [n_pos][k], of floats */
};
/* Adds input 0 of e at n_pos absolute positions. FWD_EINPUT when a position is missing, FWD_ESHAPE when its format is
 * not that of those before. On failure what was added stays owned by *out. */
enum fwd_status par_acts_add(const struct par_eval *e, int64_t k, const int *pos, int n_pos, struct par_acts *out,
                             struct fwd_error *err);
void par_acts_free(struct par_acts *a);

/* One output row. */
struct par_row_case {
    const struct spec_weight *weight;
    int64_t row;
    const float *bias; /* of this row, or NULL */
    const struct fwd_numerics *numerics;
    const struct par_acts *acts;
    const double *expected, *got, *bound; /* [acts->n_pos] */
    double noise;  /* size of a clean element's residual as a share of its bound: root mean square of such */
    bool in_order; /* par_row_repeats holds for clean rows */
};
/* Values in a K-block of this weight, as numbered here; 0: its rows are not analysed. */
int par_fit_block_values(const struct spec_weight *w);
/* Whether the declared chain, computed again, gives the row's own bits at every position. False too where the
 * declaration is not one sequential F32 chain of fused block products. */
bool par_row_repeats(const struct par_row_case *c);
/* kind == PAR_FIT_NONE: nothing fits, or more than one block does. */
enum fwd_status par_row_explain(const struct par_row_case *c, struct par_row_fit *out, struct fwd_error *err);

/* For errors that have no single number, codes read wrongly say: how well the row's residual fits a wrong block, a
 * wrong row as a whole (like[n_blocks]) or none of that (like[n_blocks + 1]), as log-likelihoods that may be added over
 * rows. Weights are wrong by independent amounts; the residual then varies over positions as the block's activations
 * do. Less than PAR_SPAN_POSITIONS positions say nothing: FWD_EUNSUPPORTED. */
enum { PAR_SPAN_POSITIONS = 16 };
enum fwd_status par_row_span(const struct par_row_case *c, double *like, struct fwd_error *err);

/* "one weight, k = 1302, off by +1" */
void par_fit_describe(const struct par_row_fit *fit, char *text, size_t size);

#endif
