/* harness/spec/spec_dot.h: the judge's two hot loops, written so that a compiler vectorises them, compiled for more
 * than one instruction set. Integer results are exact whatever the order; the F64 sums have 8 fixed lanes. */
#ifndef HARNESS_SPEC_SPEC_DOT_H
#define HARNESS_SPEC_SPEC_DOT_H

#include <stdint.h>

enum { SPEC_DOT_ROWS = 4 };

/* One block of SPEC_DOT_ROWS weight rows against one activation block:
 * dot[r] = sum_i code[r * ld_code + i] * act[i] over block values, min_dot[r] = sum_g min[r * ld_min + g] * sum16[g]
 * over block / 16 groups. Exact: |code| <= 4096, |act| <= 127, at most 256 values. */
typedef void spec_int_dot_fn(const int16_t *code, int64_t ld_code, const int16_t *min, int64_t ld_min,
                             const int16_t *act, const int16_t *sum16, int32_t dot[SPEC_DOT_ROWS],
                             int32_t min_dot[SPEC_DOT_ROWS]);
/* *sum = sum w[k] x[k], *sum_abs = sum |w[k] x[k]|, in F64; n: any. */
typedef void spec_f64_dot_fn(const float *w, const double *x, int64_t n, double *sum, double *sum_abs);

struct spec_dots {
    spec_int_dot_fn *int256, *int32; /* blocks of 256 and of 32 values */
    spec_f64_dot_fn *f64;
};
/* The fastest set that this machine has. */
struct spec_dots par_spec_dots(void);

#endif
