/* harness/spec/spec_dot.h: the judge's two hot loops, written so that a compiler vectorises them, compiled for more
 * than one instruction set. Integer results are exact whatever the order; each F64 sum runs over the blocks in their
 * order, or over 8 fixed lanes. So every instruction set gives the same bits. */
#ifndef HARNESS_SPEC_SPEC_DOT_H
#define HARNESS_SPEC_SPEC_DOT_H

#include <stdint.h>

/* Weight rows that are unpacked together, and positions that share one pass over them. */
enum { SPEC_DOT_ROWS = 4, SPEC_DOT_POSITIONS = 2 };

/* A group of unpacked weight rows and the activations of n_pos positions (a multiple of SPEC_DOT_POSITIONS; what fills
 * it up has scale 0), all of them in the order in which the blocks are walked. */
struct spec_tile {
    int64_t n_blocks;
    int n_pos;
    const int16_t *code;     /* [n_blocks][SPEC_DOT_ROWS][block]: scale * q, at most 4096 in magnitude */
    const int16_t *min;      /* [n_blocks][SPEC_DOT_ROWS][block / 16] */
    const double *d, *dmin;  /* [n_blocks][SPEC_DOT_ROWS] */
    const int16_t *act;      /* [n_blocks][n_pos][block]: at most 127 in magnitude */
    const int16_t *sum16;    /* [n_blocks][n_pos][block / 16]: of each 16 of act */
    const double *scale;     /* [n_blocks][n_pos] */
    const double *min_scale; /* the same of the minima's dots */
    double *sum, *sum_abs;   /* out: [n_pos][SPEC_DOT_ROWS] */
    double *path;            /* out: the same of the magnitudes of all partial sums, a block's minimum after its dot */
};
/* sum = sum over blocks of d * scale * (code . act) - dmin * min_scale * (min . sum16), sum_abs the same with the
 * magnitude of each of the two terms. The dots are exact integers. */
typedef void spec_tile_fn(const struct spec_tile *t);
/* Rows w[r] of n values, ld apart: sum[r] = sum w[r][k] x[k], sum_abs[r] = sum |w[r][k] x[k]|, in F64, r below
 * SPEC_DOT_ROWS; n: any. */
typedef void spec_f64_dots_fn(const double *w, int64_t ld, const double *x, int64_t n, double *sum, double *sum_abs);

/* Rows w[k * SPEC_DOT_ROWS + r] and SPEC_DOT_POSITIONS positions x[p], in one chain each in the order of k, every
 * `segment` values joined to the sum so far and begun again: sum and sum_abs as above and squares, the sum of the
 * squares of what every addition gives; [position][row]. */
typedef void spec_f64_ordered_fn(const double *w, const double *const x[SPEC_DOT_POSITIONS], int64_t n, int64_t segment,
                                 double *sum, double *sum_abs, double *squares);

struct spec_dots {
    spec_tile_fn *block256, *block256_min, *block32, *block32_min; /* by values in a block; _min: dmin is read */
    spec_f64_dots_fn *f64;
    spec_f64_ordered_fn *f64_ordered;
};
/* The fastest set that this machine has among caps, which are as in struct par_eval. */
struct spec_dots par_spec_dots(unsigned caps);

#endif
