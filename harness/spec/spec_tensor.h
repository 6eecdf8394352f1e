/* harness/spec/spec_tensor.h: sums as tensor cores make them (FWD_ACC_TENSOR of core/types.h), and how far such a sum
 * may be off. Internal to harness/spec.
 *
 * A step adds its products and the sum so far: each of these step + 1 addends is cut by less than 2^-cut_bits of the
 * largest one's power of two, which is no more than that addend, and their sum by less than an ulp, 2^-23 of it. So a
 * step loses at most ((step + 1) 2^-cut_bits + 2^-23) max(|sum so far|, |sum after|, |largest product|), all of them
 * exact values to first order. Added over the steps that is the worst case, with nothing left to chance. Where K may
 * have been split (chain_extra), a part's sum so far is the difference of two of the whole's, so at most its largest
 * more. */
#ifndef HARNESS_SPEC_SPEC_TENSOR_H
#define HARNESS_SPEC_SPEC_TENSOR_H

#include "spec/spec_dot.h"

#include "engine.h"

struct spec_tensor {
    int64_t step, promote; /* promote: n where nothing is */
    int joins;             /* additions in F32 that join the parts of a split; 0: there is none */
    double cut;            /* lost by a step, times the largest magnitude in it */
};
/* Of a declaration with that accumulator and sums of n products; false: it makes no sense. */
bool par_tensor_make(const struct fwd_numerics *nm, int64_t n, struct spec_tensor *out);

/* Exact to F64; off: by how much the declared sum may differ from that. */
struct spec_tensor_sum {
    double sum, sum_abs, off;
};
struct spec_tensor_sum par_tensor_dot(const struct spec_tensor *t, const double *a, const double *b, int64_t n);
/* SPEC_DOT_ROWS rows w[k * SPEC_DOT_ROWS + r] at SPEC_DOT_POSITIONS positions. caps as in struct par_eval. */
void par_tensor_rows(const struct spec_tensor *t, unsigned caps, const double *w,
                     const double *const x[SPEC_DOT_POSITIONS], int64_t n,
                     struct spec_tensor_sum out[SPEC_DOT_POSITIONS][SPEC_DOT_ROWS]);

/* What a tensor core reads: a row of floats in BF16, or in E4M3 codes worth value[i] * *scale each (core/types.h,
 * FWD_ACT_NEAREST and FWD_ACT_AMAX448). F16: nearest, the scale 1. */
bool par_tensor_format(enum fwd_dtype t);
void par_tensor_convert(enum fwd_dtype to, const float *x, int64_t n, double *value, double *scale);
/* The same from a tap's row. */
void par_tensor_read(enum fwd_dtype from, const uint8_t *row, int64_t n, double *value, double *scale);
/* And to it; the values are of the format. */
void par_tensor_write(enum fwd_dtype to, const double *value, int64_t n, double scale, uint8_t *row);

#endif
