/* harness/spec/eval.h: what the evaluators share: reading views, counting elements, running over positions.
 * Internal to harness/spec. An evaluator gives each element's exact value and bound to eval_element and nothing else.
 */
#ifndef HARNESS_SPEC_EVAL_H
#define HARNESS_SPEC_EVAL_H

#include "spec/bound.h"
#include "spec/ratio_histogram.h"
#include "spec/spec_model.h"

/* What one thread found in one call. */
struct eval_tally {
    struct par_ratio_histogram hist;
    uint64_t n_systematic;
    int looks_left; /* second looks that may still be taken: elements after that count as accused */
    uint64_t n_over, n_nonfinite_got, n_nonfinite_expected, n_mismatch;
    double ratio_max;
    struct par_worst worst;
    struct par_worst mismatch;   /* the first one, if n_mismatch */
    double tie_slack, tie_bound; /* of par_op_row */
    uint8_t *accused_pos;        /* of par_eval */
    /* When `capture` is set, elements are not judged: what is known of them goes here, [position -
     * capture_pos0][width].
     */
    double *capture, *capture_got, *capture_bound; /* the last two may be NULL */
    int capture_pos0;
    int64_t capture_width;
};

struct eval {
    const struct par_spec_model *m;
    const struct par_eval *e;
    struct fwd_pool *pool;
    int n_threads;
    struct eval_tally *tally; /* [n_threads] */
    int *pos;                 /* [n_pos] indices into out's positions that are judged */
    int n_pos;
};

/* The row of values at a view's absolute position; NULL when the view does not hold it. */
const uint8_t *par_view_row(const struct fwd_view *v, int pos);
/* Bytes of a float dtype's value; 0 for another. */
size_t par_float_bytes(enum fwd_dtype t);
/* n values from packed floats of type t to F64; F16 by our own conversion. */
void par_load_f64(enum fwd_dtype t, const uint8_t *src, double *dst, int64_t n);
static inline double par_load_one(enum fwd_dtype t, const uint8_t *row, int64_t i) {
    if (t == FWD_F32) {
        float x;
        __builtin_memcpy(&x, row + 4 * i, 4);
        return (double)x;
    }
    double x;
    par_load_f64(t, row + (int64_t)par_float_bytes(t) * i, &x, 1);
    return x;
}

/* Judges one element: `expected` exactly, `got` as stored with type `store`. */
void par_eval_element(struct eval_tally *t, enum fwd_dtype store, int pos, int64_t row, double expected, double got,
                      double bound);
/* Whether the element is outside its bound and both sides are finite. */
static inline bool par_eval_is_outside(const struct eval_tally *t, double expected, double got, double bound) {
    double off = expected < got ? got - expected : expected - got;
    return off > bound && off < __builtin_huge_val() && !t->capture;
}
/* Takes one of the second looks that are left; false: there is none. */
static inline bool par_eval_take_look(struct eval_tally *t) {
    return t->looks_left > 0 && t->looks_left-- > 0;
}
static inline bool par_eval_wants_look(struct eval_tally *t, double expected, double got, double bound) {
    return par_eval_is_outside(t, expected, got, bound) && par_eval_take_look(t);
}
/* As par_eval_element, of an element that a second look has found to be systematic: judged against that. */
void par_eval_systematic(struct eval_tally *t, enum fwd_dtype store, int pos, int64_t row, double expected, double got,
                         double bound);

/* The evaluator of ev->e->op over the positions in ev->pos; false from par_eval_has: there is none. */
bool par_eval_has(enum fwd_op op);
bool par_eval_is_matmul(enum fwd_op op);
enum fwd_status par_eval_run(struct eval *ev, struct fwd_error *err);

/* Evaluators. Each has checked its shapes before it starts threads; FWD_ESHAPE / FWD_EINPUT otherwise. */
enum fwd_status par_eval_embed(struct eval *ev, struct fwd_error *err);
enum fwd_status par_eval_q8(struct eval *ev, struct fwd_error *err);
enum fwd_status par_eval_matmul(struct eval *ev, struct fwd_error *err);
enum fwd_status par_eval_norm(struct eval *ev, struct fwd_error *err);
enum fwd_status par_eval_rope(struct eval *ev, struct fwd_error *err);
enum fwd_status par_eval_store(struct eval *ev, struct fwd_error *err);
enum fwd_status par_eval_attention(struct eval *ev, struct fwd_error *err);
enum fwd_status par_eval_swiglu(struct eval *ev, struct fwd_error *err);
enum fwd_status par_eval_sum(struct eval *ev, struct fwd_error *err);

/* Input i as float rows of n values that cover every judged position, else an error naming it. */
enum fwd_status par_eval_need_float(const struct eval *ev, const struct fwd_view *v, int64_t n, struct fwd_error *err);

#endif
