/* The judge hook: picks an op's evaluator, counts what it says about each element, and sums that up as a row. */
#include "spec/eval.h"
#include "spec/spec_decode.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- views
 * ----------------------------------------------------------------------------------------------------------- */
const uint8_t *par_view_row(const struct fwd_view *v, int pos) {
    if (pos < v->pos0 || pos >= v->pos0 + v->n_pos)
        return NULL;
    int64_t stride = v->nb[1] ? v->nb[1] : (int64_t)fwd_dtype_row_bytes(v->dtype, v->ne[0]);
    return (const uint8_t *)v->data + (pos - v->pos0) * stride;
}

size_t par_float_bytes(enum fwd_dtype t) {
    return t == FWD_F32 ? 4 : t == FWD_F64 ? 8 : t == FWD_F16 ? 2 : 0;
}

void par_load_f64(enum fwd_dtype t, const uint8_t *src, double *dst, int64_t n) {
    if (t == FWD_F64) {
        memcpy(dst, src, (size_t)n * sizeof *dst);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        if (t == FWD_F32) {
            float x;
            memcpy(&x, src + 4 * i, sizeof x);
            dst[i] = (double)x;
        } else {
            uint16_t h;
            memcpy(&h, src + 2 * i, sizeof h);
            dst[i] = (double)par_f16_to_f32(h);
        }
    }
}

enum fwd_status par_eval_need_float(const struct eval *ev, const struct fwd_view *v, int64_t n, struct fwd_error *err) {
    const char *op = fwd_op_name(ev->e->op);
    FWD_FAIL_IF(!v, FWD_EINPUT, err, "%s: an input is missing", op);
    FWD_FAIL_IF(v->device, FWD_EUNSUPPORTED, err, "%s: %s lies in device memory", op, fwd_op_name(v->op));
    FWD_FAIL_IF(!par_float_bytes(v->dtype), FWD_EUNSUPPORTED, err, "%s: %s has type %s, expected floats", op,
                fwd_op_name(v->op), fwd_dtype_name(v->dtype));
    FWD_FAIL_IF(v->ne[0] != n || v->nb[0] != (int64_t)par_float_bytes(v->dtype), FWD_ESHAPE, err,
                "%s: rows of %s have %lld values %lld bytes apart, expected %lld packed ones", op, fwd_op_name(v->op),
                (long long)v->ne[0], (long long)v->nb[0], (long long)n);
    for (int i = 0; i < ev->n_pos; i++)
        FWD_FAIL_IF(!par_view_row(v, ev->e->pos0 + ev->pos[i]), FWD_EINPUT, err, "%s: no row of %s for position %d", op,
                    fwd_op_name(v->op), ev->e->pos0 + ev->pos[i]);
    return FWD_OK;
}

/* ---- elements
 * -------------------------------------------------------------------------------------------------------- */
/* From here on a value of the type is infinite. */
static double overflow_limit(enum fwd_dtype t) {
    return t == FWD_F32 ? 0x1.ffffffp127 : t == FWD_F16 ? 65520.0 : HUGE_VAL;
}

static void count_element(struct par_ratio_histogram *h, double expected, double got, double bound) {
    if (h->n == 0) {
        h->got_min = h->got_max = got;
        h->expected_min = h->expected_max = expected;
    }
    h->got_min = got < h->got_min ? got : h->got_min;
    h->got_max = got > h->got_max ? got : h->got_max;
    h->expected_min = expected < h->expected_min ? expected : h->expected_min;
    h->expected_max = expected > h->expected_max ? expected : h->expected_max;
    h->n_zero_got += got == 0;
    h->n_zero_expected += expected == 0;
    h->n_signal += expected != 0;
    h->n_blunt += expected != 0 && fabs(expected) < bound;
    h->n_bounded += bound != 0;
    if (expected != 0)
        par_floor_add(h, bound / fabs(expected));
}

/* Of equally bad elements the first by position and row is named, in whatever order they were judged. */
static bool is_before(const struct par_worst *a, const struct par_worst *b) {
    return a->pos < b->pos || (a->pos == b->pos && a->row < b->row);
}

/* Threads share the marks, and all of them write the same value. */
static void accuse_position(const struct eval_tally *t, int pos) {
    if (t->accused_pos)
        __atomic_store_n(&t->accused_pos[pos], 1, __ATOMIC_RELAXED);
}

/* True when one side is not finite: counted here, and not compared as numbers. */
static bool count_nonfinite(struct eval_tally *t, enum fwd_dtype store, int pos, int64_t row, double expected,
                            double got, double bound) {
    double limit = overflow_limit(store);
    /* Where a bound has overflowed the sum itself may have, whatever it would have come to. */
    if (isfinite(expected) && bound == HUGE_VAL) {
        count_element(&t->hist, expected, expected, bound);
        par_ratio_add(&t->hist, 0);
        return true;
    }
    bool spec_ok = fabs(expected) < limit, got_ok = isfinite(got);
    if (spec_ok && got_ok)
        return false;
    /* Within its bound of the overflow limit a result may lie on either side of it. */
    bool same_sign = signbit(expected) == signbit(got);
    /* Where a bound has overflowed the sum itself may have, whatever it would have come to. */
    if (spec_ok && isinf(got) && same_sign && fabs(expected) + bound >= limit)
        return true;
    if (!spec_ok && got_ok && isfinite(expected) && fabs(expected) - bound < limit)
        return false;
    t->n_nonfinite_expected += !spec_ok;
    t->n_nonfinite_got += !got_ok;
    bool same = !spec_ok && !got_ok && isnan(expected) == isnan(got) && (isnan(expected) || same_sign);
    if (!same) {
        struct par_worst w = {pos, row, expected, got, bound};
        if (t->n_mismatch == 0 || is_before(&w, &t->mismatch))
            t->mismatch = w;
        t->n_mismatch++;
        accuse_position(t, pos);
    }
    return true;
}

void par_eval_element(struct eval_tally *t, enum fwd_dtype store, int pos, int64_t row, double expected, double got,
                      double bound) {
    if (t->capture) {
        int64_t at = (pos - t->capture_pos0) * t->capture_width + row;
        t->capture[at] = expected;
        if (t->capture_got)
            t->capture_got[at] = got;
        if (t->capture_bound)
            t->capture_bound[at] = bound;
        return;
    }
    if (!(bound >= 0))
        bound = HUGE_VAL; /* a bound that overflowed holds nothing: the element counts as blunt */
    double off = fabs(got - expected);
    if (!(off < HUGE_VAL) && count_nonfinite(t, store, pos, row, expected, got, bound))
        return;
    if (store != FWD_F64 && !(fabs(expected) < overflow_limit(store)) &&
        count_nonfinite(t, store, pos, row, expected, got, bound))
        return;
    double ratio = off == 0 ? 0 : bound == 0 ? PAR_RATIO_CAP : off / bound;
    if (ratio > PAR_RATIO_CAP)
        ratio = PAR_RATIO_CAP;
    count_element(&t->hist, expected, got, bound);
    if (t->hist.n == 0 || ratio >= t->ratio_max) {
        struct par_worst w = {pos, row, expected, got, bound};
        if (t->hist.n == 0 || ratio > t->ratio_max || is_before(&w, &t->worst))
            t->worst = w;
        t->ratio_max = ratio;
    }
    if (ratio > 1) {
        t->n_over++;
        accuse_position(t, pos);
    }
    par_ratio_add(&t->hist, ratio);
}

void par_eval_systematic(struct eval_tally *t, enum fwd_dtype store, int pos, int64_t row, double expected, double got,
                         double bound) {
    t->n_systematic++;
    par_eval_element(t, store, pos, row, expected, got, bound);
}

/* ---- rows
 * ------------------------------------------------------------------------------------------------------------ */
static void merge_tally(struct par_op_row *row, struct par_ratio_histogram *hist, const struct eval_tally *t) {
    bool worse = t->hist.n && (row->n_judged == 0 || t->ratio_max > row->ratio_max ||
                               (t->ratio_max == row->ratio_max && is_before(&t->worst, &row->worst)));
    if (t->n_mismatch && (row->n_nonfinite_mismatch == 0 || is_before(&t->mismatch, &row->worst)))
        row->worst = t->mismatch;
    else if (worse && row->n_nonfinite_mismatch == 0)
        row->worst = t->worst;
    if (t->hist.n && (row->n_judged == 0 || t->ratio_max > row->ratio_max))
        row->ratio_max = t->ratio_max;
    row->n_judged += t->hist.n;
    row->n_over += t->n_over;
    row->n_systematic += t->n_systematic;
    row->tie_slack += t->tie_slack;
    row->tie_bound += t->tie_bound;
    row->n_nonfinite_got += t->n_nonfinite_got;
    row->n_nonfinite_expected += t->n_nonfinite_expected;
    row->n_nonfinite_mismatch += t->n_mismatch;
    par_ratio_merge(hist, &t->hist);
}

/* Section 2.1, rule 2: an op of which more than this share is systematic rounding is MISTRUSTED. */
#define MOST_SYSTEMATIC 1e-5
/* Section 2.1: a p99.9 below this calls for a review of the declaration, if there are enough elements for one. */
#define REVIEW_BELOW 0.005
enum { REVIEW_FROM = 10000 };

/* Why the measurement itself is no good, into note; false: it is. */
static bool find_mistrust(const struct par_ratio_histogram *h, const struct par_op_row *row, char *note, size_t n) {
    enum { FEW = 16 }; /* elements below which "most" and "constant" say nothing */
    /* Beside a fault it is the fault that counts. */
    if (row->verdict == PAR_HELD && (double)row->n_systematic > MOST_SYSTEMATIC * (double)h->n) {
        (void)snprintf(note, n, "systematic rounding in %llu of %llu elements, at most 1 in 100000 is expected",
                       (unsigned long long)row->n_systematic, (unsigned long long)h->n);
        return true;
    }
    if (h->n < FEW)
        return false;
    if (h->n_signal >= FEW && 2 * h->n_blunt > h->n_signal) {
        (void)snprintf(note, n, "the bound is larger than the value itself for %llu of %llu elements",
                       (unsigned long long)h->n_blunt, (unsigned long long)h->n_signal);
        return true;
    }
    /* The spec's values of an input that is constant differ in their last bits. */
    double spread = h->expected_max - h->expected_min, largest = fmax(fabs(h->expected_min), fabs(h->expected_max));
    if (h->got_min == h->got_max && spread > 0x1p-20 * largest) {
        (void)snprintf(note, n, "the output is %g everywhere, expected %g to %g", h->got_min, h->expected_min,
                       h->expected_max);
        return true;
    }
    if (2 * h->n_zero_got > h->n && 4 * h->n_zero_expected < h->n) {
        (void)snprintf(note, n, "the output is 0 in %llu of %llu elements, expected in %llu",
                       (unsigned long long)h->n_zero_got, (unsigned long long)h->n,
                       (unsigned long long)h->n_zero_expected);
        return true;
    }
    return false;
}

/* is_f64: of an op in F64 the judge knows no better value than F64 gives. */
static void finish_row(struct par_op_row *row, const struct par_ratio_histogram *hist, bool is_f64) {
    /* A quantile is known to 1/16 octave and never above the maximum. */
    row->ratio_p50 = fmin(par_ratio_quantile(hist, 0.5), row->ratio_max);
    row->ratio_p99 = fmin(par_ratio_quantile(hist, 0.99), row->ratio_max);
    row->ratio_p999 = fmin(par_ratio_quantile(hist, 0.999), row->ratio_max);
    row->floor_p50 = par_floor_quantile(hist, 0.5);
    row->review = !is_f64 && hist->n_bounded >= REVIEW_FROM && row->ratio_p999 < REVIEW_BELOW;
    row->verdict = row->n_judged == 0 || hist->n_failed_calls ? PAR_UNMEASURED : PAR_HELD;
    if (row->n_over)
        row->verdict = PAR_DIVERGED;
    if (row->n_nonfinite_mismatch)
        row->verdict = PAR_NONFINITE;
    if (find_mistrust(hist, row, row->note, sizeof row->note))
        row->verdict = PAR_MISTRUSTED;
    else if (hist->n_failed_calls == 0)
        row->note[0] = 0;
    if (row->n_judged == 0 && !row->note[0])
        (void)snprintf(row->note, sizeof row->note, "%s",
                       row->n_nonfinite_got ? "no finite element" : "no position was sampled");
}

/* ---- dispatch
 * -------------------------------------------------------------------------------------------------------- */
typedef enum fwd_status evaluator_fn(struct eval *ev, struct fwd_error *err);

static evaluator_fn *find_evaluator(enum fwd_op op) {
    static evaluator_fn *const table[FWD_OP_COUNT] = {
        [FWD_OP_INP_EMBD] = par_eval_embed,       [FWD_OP_ATTN_NORM] = par_eval_norm,
        [FWD_OP_ATTN_NORM_Q8] = par_eval_q8,      [FWD_OP_QCUR] = par_eval_matmul,
        [FWD_OP_KCUR] = par_eval_matmul,          [FWD_OP_VCUR] = par_eval_matmul,
        [FWD_OP_QCUR_ROPE] = par_eval_rope,       [FWD_OP_KCUR_ROPE] = par_eval_rope,
        [FWD_OP_K_CACHE] = par_eval_store,        [FWD_OP_V_CACHE] = par_eval_store,
        [FWD_OP_KQV_OUT] = par_eval_attention,    [FWD_OP_KQV_OUT_Q8] = par_eval_q8,
        [FWD_OP_ATTN_OUT] = par_eval_matmul,      [FWD_OP_FFN_INP] = par_eval_sum,
        [FWD_OP_FFN_NORM] = par_eval_norm,        [FWD_OP_FFN_NORM_Q8] = par_eval_q8,
        [FWD_OP_FFN_GATE] = par_eval_matmul,      [FWD_OP_FFN_UP] = par_eval_matmul,
        [FWD_OP_FFN_SWIGLU] = par_eval_swiglu,    [FWD_OP_FFN_SWIGLU_Q8] = par_eval_q8,
        [FWD_OP_FFN_OUT] = par_eval_matmul,       [FWD_OP_L_OUT] = par_eval_sum,
        [FWD_OP_RESULT_NORM] = par_eval_norm,     [FWD_OP_RESULT_NORM_Q8] = par_eval_q8,
        [FWD_OP_RESULT_OUTPUT] = par_eval_matmul,
    };
    return op >= 0 && op < FWD_OP_COUNT ? table[op] : NULL;
}

bool par_eval_is_matmul(enum fwd_op op) {
    return find_evaluator(op) == par_eval_matmul;
}

bool par_eval_has(enum fwd_op op) {
    return find_evaluator(op) != NULL;
}

enum fwd_status par_eval_run(struct eval *ev, struct fwd_error *err) {
    return find_evaluator(ev->e->op)(ev, err);
}

static enum fwd_status run_eval(struct eval *ev, struct par_op_row *row, struct par_ratio_histogram *hist,
                                struct fwd_error *err) {
    const struct par_eval *e = ev->e;
    struct fwd_error why = {.message = ""};
    bool whole = e->op == FWD_OP_K_CACHE || e->op == FWD_OP_V_CACHE; /* judged at every row, whatever the sample */
    /* A thousand a thread settle whether it is rounding; behind them lies a fault, and each look costs a sum. */
    enum { LOOKS = 1000 };
    for (int i = 0; i < ev->n_threads; i++)
        ev->tally[i].looks_left = row->n_over < LOOKS ? LOOKS : 0;
    for (int i = 0; i < e->n_pos; i++)
        if (whole || !e->judge_pos || e->judge_pos[i])
            ev->pos[ev->n_pos++] = i;
    if (ev->n_pos > 0) {
        enum fwd_status st = e->out->device ? fwd_fail(&why, FWD_EUNSUPPORTED, __FILE__, __LINE__,
                                                       "%s lies in device memory", fwd_op_name(e->op))
                                            : find_evaluator(e->op)(ev, &why);
        if (st == FWD_ENOMEM) {
            if (err)
                *err = why;
            return st;
        }
        if (st != FWD_OK) {
            hist->n_failed_calls++;
            (void)snprintf(row->note, sizeof row->note, "%.150s", why.message);
        }
    }
    for (int i = 0; i < ev->n_threads; i++)
        merge_tally(row, hist, &ev->tally[i]);
    finish_row(row, hist, e->numerics->store == FWD_F64);
    return FWD_OK;
}

enum fwd_status par_judge_eval(const struct par_spec_model *m, struct fwd_pool *pool, const struct par_eval *e,
                               struct par_op_row *row, struct par_ratio_histogram *hist, struct fwd_error *err) {
    FWD_FAIL_IF(!find_evaluator(e->op) || !e->out || !e->numerics, FWD_EINPUT, err,
                "judge: op %d has no evaluator, output or numerics", (int)e->op);
    bool in_layer = fwd_op_in_layer(e->op);
    FWD_FAIL_IF(in_layer && (e->layer < 0 || e->layer >= par_spec_config(m)->n_layer), FWD_ERANGE, err,
                "judge: %s of layer %d, expected 0 to %d", fwd_op_name(e->op), e->layer,
                par_spec_config(m)->n_layer - 1);
    struct eval ev = {.m = m, .e = e, .pool = pool, .n_threads = fwd_pool_size(pool)};
    row->op = e->op;
    row->layer = in_layer ? e->layer : -1;
    ev.tally = fwd_calloc((size_t)ev.n_threads, sizeof *ev.tally);
    ev.pos = fwd_alloc((size_t)e->n_pos, sizeof *ev.pos);
    for (int i = 0; ev.tally && i < ev.n_threads; i++)
        ev.tally[i].accused_pos = e->accused_pos;
    enum fwd_status st = ev.tally && ev.pos ? run_eval(&ev, row, hist, err)
                                            : fwd_fail(err, FWD_ENOMEM, __FILE__, __LINE__,
                                                       "judge: no memory for %d positions", e->n_pos);
    fwd_free(ev.tally);
    fwd_free(ev.pos);
    return st;
}
