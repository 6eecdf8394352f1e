/* Matrix products on tensor cores: activations and weights in BF16 or E4M3, made here from the floats by the declared
 * rules (or taken from the tap that shows the activations), sums by spec_tensor.h. The bound is the worst case. */
#include "spec/eval_tensor.h"

#include "spec/spec_decode.h"
#include "spec/spec_tensor.h"

#include <float.h>
#include <math.h>

struct tensor_task {
    struct eval *ev;
    const struct spec_weight *w;
    const float *bias; /* [n_rows] or NULL */
    struct spec_tensor steps;
    double *x, *x_scale; /* [n_pos][n_cols], [n_pos] */
    uint8_t *scratch;
    size_t scratch_bytes; /* of one thread */
};

/* One thread's rows of the weight: [n_cols][SPEC_DOT_ROWS], and a row as it is decoded and as it is converted. */
struct tensor_rows {
    double *w, *one;
    float *row;
    double scale[SPEC_DOT_ROWS];
};

static void judge_one(const struct tensor_task *t, struct eval_tally *tally, int p, int64_t row, double scale,
                      const struct spec_tensor_sum *s) {
    const struct par_eval *e = t->ev->e;
    int pos = e->pos0 + t->ev->pos[p];
    double bias = t->bias ? (double)t->bias[row] : 0, scales = scale * t->x_scale[p], product = s->sum * scales;
    double got = par_load_one(e->out->dtype, par_view_row(e->out, pos), row);
    double u = 0x1p-24, n_steps = (double)((t->w->n_cols + t->steps.step - 1) / t->steps.step);
    double bound =
        s->off * fabs(scales) + e->numerics->final_roundings * u * (fabs(product) + fabs(bias)) * (1 + 0x1p-10);
    bound += (n_steps * (fabs(scales) + 1) + e->numerics->final_roundings + 1) * 0x1p-149;
    if (!(s->sum_abs < (double)FLT_MAX) || !(s->sum_abs * fabs(scales) + fabs(bias) < (double)FLT_MAX))
        bound = HUGE_VAL;
    par_eval_element(tally, e->out->dtype, pos, row, product + bias, got, bound);
}

/* Lays the rows out at address base (0: only measures); returns the bytes used. */
static size_t place_rows(const struct tensor_task *t, struct tensor_rows *r, uintptr_t base) {
    size_t k = (size_t)t->w->n_cols, w = k * SPEC_DOT_ROWS * sizeof(double), one = k * sizeof(double);
    r->w = (void *)base;
    r->one = (void *)(base + w);
    r->row = (void *)(base + w + one);
    return (w + one + k * sizeof(float) + 63) & ~(size_t)63;
}

static void decode_rows(const struct tensor_task *t, struct tensor_rows *g, int64_t row, int n_rows) {
    int64_t k = t->w->n_cols;
    for (int r = 0; r < SPEC_DOT_ROWS; r++) {
        if (r < n_rows) {
            par_decode_row(t->w->type, t->w->data + (row + r) * t->w->row_bytes, g->row, k);
            par_tensor_convert(t->ev->e->numerics->operand, g->row, k, g->one, &g->scale[r]);
        }
        for (int64_t i = 0; i < k; i++)
            g->w[i * SPEC_DOT_ROWS + r] = r < n_rows ? g->one[i] : 0;
    }
}

static void tensor_rows(void *ctx, int thread, int n_threads) {
    struct tensor_task *t = ctx;
    struct tensor_rows g;
    (void)place_rows(t, &g, (uintptr_t)t->scratch + (size_t)thread * t->scratch_bytes);
    int64_t begin, end, k = t->w->n_cols;
    fwd_range_split(t->w->n_rows, SPEC_DOT_ROWS, thread, n_threads, &begin, &end);
    for (int64_t row = begin; row < end; row += SPEC_DOT_ROWS) {
        int n_rows = end - row < SPEC_DOT_ROWS ? (int)(end - row) : SPEC_DOT_ROWS;
        decode_rows(t, &g, row, n_rows);
        for (int p = 0; p < t->ev->n_pos; p += SPEC_DOT_POSITIONS) {
            struct spec_tensor_sum s[SPEC_DOT_POSITIONS][SPEC_DOT_ROWS];
            const double *x[SPEC_DOT_POSITIONS];
            for (int i = 0; i < SPEC_DOT_POSITIONS; i++)
                x[i] = t->x + (p + i < t->ev->n_pos ? p + i : p) * k;
            par_tensor_rows(&t->steps, t->ev->e->caps, g.w, x, k, s);
            for (int i = 0; i < SPEC_DOT_POSITIONS && p + i < t->ev->n_pos; i++)
                for (int r = 0; r < n_rows; r++)
                    judge_one(t, &t->ev->tally[thread], p + i, row + r, g.scale[r], &s[i][r]);
        }
    }
}

/* The input as it was multiplied. */
static void load_input(const struct tensor_task *t) {
    const struct par_eval *e = t->ev->e;
    const struct fwd_view *in = e->in[0];
    int64_t k = t->w->n_cols;
    float *plain = (float *)(void *)t->scratch;
    for (int p = 0; p < t->ev->n_pos; p++) {
        const uint8_t *row = par_view_row(in, e->pos0 + t->ev->pos[p]);
        double *x = t->x + p * k;
        if (par_tensor_format(in->dtype)) {
            par_tensor_read(in->dtype, row, k, x, &t->x_scale[p]);
            continue;
        }
        par_load_f64(in->dtype, row, x, k);
        for (int64_t i = 0; i < k; i++)
            plain[i] = (float)x[i];
        par_tensor_convert(e->numerics->act, plain, k, x, &t->x_scale[p]);
    }
}

static enum fwd_status check(const struct tensor_task *t, struct fwd_error *err) {
    const struct par_eval *e = t->ev->e;
    const struct fwd_view *in = e->in[0];
    const char *op = fwd_op_name(e->op);
    enum fwd_dtype act = e->numerics->act;
    enum fwd_act_rule rule = act == FWD_BF16 ? FWD_ACT_NEAREST : FWD_ACT_AMAX448;
    FWD_FAIL_IF(!par_tensor_format(act) || e->numerics->operand != act || e->numerics->act_rule != rule,
                FWD_EUNSUPPORTED, err, "%s: %s activations by rule %d with %s weights have no evaluator", op,
                fwd_dtype_name(act), (int)e->numerics->act_rule, fwd_dtype_name(e->numerics->operand));
    FWD_FAIL_IF(!in, FWD_EINPUT, err, "%s: its input is missing", op);
    if (!par_tensor_format(in->dtype))
        return par_eval_need_float(t->ev, in, t->w->n_cols, err);
    FWD_FAIL_IF(in->dtype != act || in->ne[0] != t->w->n_cols, FWD_ESHAPE, err,
                "%s: %lld activations in %s, expected %lld in %s", op, (long long)in->ne[0], fwd_dtype_name(in->dtype),
                (long long)t->w->n_cols, fwd_dtype_name(act));
    for (int p = 0; p < t->ev->n_pos; p++)
        FWD_FAIL_IF(!par_view_row(in, e->pos0 + t->ev->pos[p]), FWD_EINPUT, err, "%s: no %s for position %d", op,
                    fwd_op_name(in->op), e->pos0 + t->ev->pos[p]);
    return FWD_OK;
}

enum fwd_status par_eval_tensor(struct eval *ev, const struct spec_weight *w, const float *bias,
                                struct fwd_error *err) {
    struct tensor_task t = {.ev = ev, .w = w, .bias = bias};
    struct tensor_rows measure;
    FWD_TRY(check(&t, err));
    FWD_FAIL_IF(!par_tensor_make(ev->e->numerics, w->n_cols, &t.steps), FWD_EINPUT, err,
                "%s: steps of %d products with %d bits, promoted every %d, make no sum", fwd_op_name(ev->e->op),
                ev->e->numerics->chain_block, ev->e->numerics->cut_bits, ev->e->numerics->promote);
    t.scratch_bytes = place_rows(&t, &measure, 0);
    t.scratch = fwd_alloc((size_t)ev->n_threads, t.scratch_bytes);
    t.x = fwd_alloc((size_t)ev->n_pos, (size_t)w->n_cols * sizeof *t.x);
    t.x_scale = fwd_alloc((size_t)ev->n_pos, sizeof *t.x_scale);
    enum fwd_status st = FWD_OK;
    if (!t.scratch || !t.x || !t.x_scale) {
        st = fwd_fail(err, FWD_ENOMEM, __FILE__, __LINE__, "judge: no memory for %d rows of %lld values", ev->n_pos,
                      (long long)w->n_cols);
    } else {
        load_input(&t);
        fwd_pool_run(ev->pool, tensor_rows, &t);
    }
    fwd_free(t.scratch);
    fwd_free(t.x);
    fwd_free(t.x_scale);
    return st;
}

/* ---- _q8 ops in these formats: the row again, by the rule; bound 0 ------------------------------------------------
 */
enum fwd_status par_eval_tensor_q8(struct eval *ev, struct fwd_error *err) {
    const struct par_eval *e = ev->e;
    const struct fwd_view *in = e->in[0], *out = e->out;
    int64_t n = out->ne[0];
    enum fwd_act_rule rule = out->dtype == FWD_BF16 ? FWD_ACT_NEAREST : FWD_ACT_AMAX448;
    FWD_FAIL_IF(e->numerics->act_rule != rule || e->numerics->store != out->dtype, FWD_EUNSUPPORTED, err,
                "%s: %s by rule %d has no evaluator", fwd_op_name(e->op), fwd_dtype_name(out->dtype),
                (int)e->numerics->act_rule);
    FWD_TRY(par_eval_need_float(ev, in, n, err));
    double *want = fwd_alloc((size_t)n, 2 * sizeof *want + sizeof(float)), *got = want + n, scale, got_scale;
    FWD_FAIL_IF(!want, FWD_ENOMEM, err, "judge: no memory for a row of %lld values", (long long)n);
    float *x = (float *)(void *)(got + n);
    enum fwd_status st = FWD_OK;
    for (int i = 0; i < ev->n_pos && st == FWD_OK; i++) {
        int pos = e->pos0 + ev->pos[i];
        const uint8_t *row = par_view_row(out, pos);
        if (!row) {
            st = fwd_fail(err, FWD_EINPUT, __FILE__, __LINE__, "%s: no row for position %d", fwd_op_name(e->op), pos);
            break;
        }
        par_load_f64(in->dtype, par_view_row(in, pos), want, n);
        for (int64_t k = 0; k < n; k++)
            x[k] = (float)want[k];
        par_tensor_convert(out->dtype, x, n, want, &scale);
        par_tensor_read(out->dtype, row, n, got, &got_scale);
        for (int64_t k = 0; k < n; k++)
            par_eval_element(&ev->tally[0], FWD_F32, pos, k, want[k], got[k], 0);
        if (out->dtype == FWD_E4M3)
            par_eval_element(&ev->tally[0], FWD_F32, pos, n, scale, got_scale, 0);
    }
    fwd_free(want);
    return st;
}
