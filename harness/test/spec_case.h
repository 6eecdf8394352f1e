/* harness/test/spec_case.h: a model of one layer made by hand, and one op of it judged: what the tests of the
 * evaluators share. A test file has one such model; reset() begins a case. */
#ifndef HARNESS_TEST_SPEC_CASE_H
#define HARNESS_TEST_SPEC_CASE_H

#include "spec/ratio_histogram.h"
#include "spec/spec_decode.h"
#include "spec/spec_model.h"

#include <check.h>
#include <string.h>

static struct spec_layer layer;
static struct par_spec_model model = {.config = {.arch = "llama", .n_layer = 1}, .layers = &layer};
static struct fwd_numerics numerics;
static struct par_op_row row;
static struct par_ratio_histogram hist;

static inline void reset(void) {
    layer = (struct spec_layer){0};
    model = (struct par_spec_model){.config = {.arch = "llama", .n_layer = 1}, .layers = &layer};
    numerics = (struct fwd_numerics){.size = sizeof numerics, .act = FWD_F32, .store = FWD_F32};
    numerics.accumulator = FWD_ACC_F32;
    numerics.final_roundings = 2;
    numerics.chain_block = numerics.chain_per_block = 1;
    row = (struct par_op_row){0};
    memset(&hist, 0, sizeof hist);
}

static inline struct spec_weight weight_of(uint32_t type, const void *data, int64_t n_rows, int64_t n_cols) {
    return (struct spec_weight){"w", type, n_rows, n_cols, par_decode_row_bytes(type, n_cols), data, NULL};
}

static inline struct fwd_view float_view(enum fwd_op op, const float *data, int64_t n, int pos0, int n_pos) {
    struct fwd_view v = {.size = sizeof v, .op = op, .pos0 = pos0, .n_pos = n_pos, .dtype = FWD_F32};
    v.ne[0] = n;
    v.ne[1] = n_pos;
    v.ne[2] = v.ne[3] = 1;
    v.nb[0] = 4;
    v.nb[1] = 4 * n;
    v.data = (void *)(uintptr_t)data;
    return v;
}

/* Judges `out` into row, on top of what is there. */
static inline void judge(const struct fwd_view *out, const struct fwd_view *a, const struct fwd_view *b,
                         const struct fwd_view *c) {
    struct fwd_error err = {.message = ""};
    struct par_eval e = {.op = out->op, .pos0 = out->pos0, .n_pos = out->n_pos, .n_in = 3, .in = {a, b, c}};
    e.out = out;
    e.numerics = &numerics;
    enum fwd_status st = par_judge_eval(&model, NULL, &e, &row, &hist, &err);
    ck_assert_msg(st == FWD_OK, "%s", err.message);
}

static inline void expect_held(uint64_t n_judged) {
    ck_assert_msg(row.verdict == PAR_HELD, "%s: ratio %g, expected %.9g, got %.9g, %s", par_verdict_name(row.verdict),
                  row.ratio_max, row.worst.expected, row.worst.got, row.note);
    ck_assert_uint_eq(row.n_judged, n_judged);
    ck_assert_uint_eq(row.n_over, 0);
}

/* Moves element `at` of the output by `bounds` bounds (measured by judging once) and wants it caught there. */
static inline void expect_caught(struct fwd_view *out, float *values, int64_t at, double by, const struct fwd_view *a,
                                 const struct fwd_view *b, const struct fwd_view *c) {
    float keep = values[at];
    row = (struct par_op_row){0};
    memset(&hist, 0, sizeof hist);
    values[at] = (float)((double)keep + by);
    judge(out, a, b, c);
    values[at] = keep;
    ck_assert_msg(row.verdict == PAR_DIVERGED, "%s: element %lld moved by %g", par_verdict_name(row.verdict),
                  (long long)at, by);
    ck_assert_uint_eq(row.n_over, 1);
    ck_assert_int_eq(row.worst.row, at % out->ne[0]);
    ck_assert_int_eq(row.worst.pos, out->pos0 + (int)(at / out->ne[0]));
    ck_assert_msg(row.ratio_max > 1 && row.ratio_max < 100, "ratio %g for a few bounds", row.ratio_max);
}

#endif
