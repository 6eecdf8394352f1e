/* harness/spec/eval_tensor.h: evaluators of what computes on tensor cores. Internal to harness/spec. */
#ifndef HARNESS_SPEC_EVAL_TENSOR_H
#define HARNESS_SPEC_EVAL_TENSOR_H

#include "spec/eval.h"

/* A matmul op whose declared accumulator is FWD_ACC_TENSOR; out has been checked. bias: [n_rows] or NULL. */
enum fwd_status par_eval_tensor(struct eval *ev, const struct spec_weight *w, const float *bias, struct fwd_error *err);
/* A _q8 op whose output is BF16 or E4M3: value k of a row, and in E4M3 at K the scale. */
enum fwd_status par_eval_tensor_q8(struct eval *ev, struct fwd_error *err);

#endif
