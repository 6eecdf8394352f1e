/* harness/spec/look_matmul.h: the second look (second_look.h) at one element of a matrix product. Internal to
 * harness/spec. It decodes its row of the weight again, so that it depends on no layout of the evaluator. */
#ifndef HARNESS_SPEC_LOOK_MATMUL_H
#define HARNESS_SPEC_LOOK_MATMUL_H

#include "spec/spec_model.h"

struct par_matmul_look {
    const struct spec_weight *w;
    int64_t row;
    const float *bias; /* of the row, or NULL */
    const struct fwd_numerics *numerics;
    /* The activations of the position: floats [n_cols] (block 1), else codes, sums of 16 and scales of its blocks,
     * every step-th block from the first one. */
    int block;
    int64_t step;
    const double *x;
    const int16_t *code, *sum16;
    const double *scale, *min_scale; /* of the blocks' minima; NULL: scale */
};
/* As par_second_look. false also where there is no memory for it. */
bool par_look_matmul(const struct par_matmul_look *look, double exact, double got, double *expected, double *bound);

#endif
