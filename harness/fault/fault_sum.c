/* harness/fault/fault_sum.c: matrix products with the right weights, summed wrongly, and wrong biases. The builtin's
 * result is corrected by the difference that the wrong sum makes, or replaced where every step is another one. */
#include "fault/fault.h"
#include "fault/fault_math.h"
#include "fault/fault_ops.h"

#include <math.h>
#include <string.h>

struct sum {
    const struct par_fault *f;
    const struct fwd_op_call *call;
    const double *x; /* [n_pos][K] */
};

/* ---- sums ---- */

/* Codes of the activations from k on, and their block's scale. */
static const int8_t *act_codes(const struct fwd_view *in, int64_t i, int64_t k, double *scale) {
    int values = in->dtype == FWD_Q8_K ? 256 : 32;
    const char *block = fault_row(in, i) + k / values * (in->dtype == FWD_Q8_K ? 292 : 40);
    float d;
    memcpy(&d, block, sizeof d);
    *scale = (double)d;
    return (const int8_t *)block + (in->dtype == FWD_Q8_K ? 4 : 8) + k % values;
}

static double cut(double x, double most) {
    return x > most ? most : x < -most - (most == 32767) ? -most - (most == 32767) : x;
}

/* What pair sums of biased codes lose at 16 bits. */
static double lost_in_pairs(const struct fault_block *b, const int8_t *q) {
    double lost = 0;
    for (int i = 0; i + 1 < b->n; i += 2) {
        int pair = (b->code[i] - b->offset + 128) * q[i] + (b->code[i + 1] - b->offset + 128) * q[i + 1];
        lost += b->scale[i / b->group] * (cut(pair, 32767) - pair);
    }
    return lost;
}

static double lost_in_dot(const struct fault_block *b, const int8_t *q) {
    double dot = 0;
    for (int i = 0; i < b->n; i++)
        dot += b->scale[i / b->group] * (b->code[i] - b->offset) * q[i];
    return cut(dot, 65504) - dot;
}

/* What the min terms lose when the activations' sums pass through binary16. */
static double lost_in_sums(const struct fault_block *b, const double *x) {
    double lost = 0;
    for (int g = 0; g < b->n_groups; g++) {
        double total = 0;
        for (int i = 0; i < b->group; i++)
            total += x[g * b->group + i];
        lost -= b->dmin * b->min[g] * (fault_as_half(total) - total);
    }
    return lost;
}

static double block_dot(const struct fault_block *b, const double *x) {
    double sum = 0;
    for (int i = 0; i < b->n; i++)
        sum += fault_block_value(b, i) * x[i];
    return sum;
}

/* The change that one block makes at position i to the row's sum so far. */
static double add_block(const struct sum *s, const struct fault_block *b, int i, int64_t k, double so_far) {
    const double *x = s->x + i * s->call->weight->n_cols + k;
    double scale;
    switch (s->f->row->kind) {
    case FAULT_SUM_F16:
        return fault_as_half(so_far + fault_as_half(block_dot(b, x)));
    case FAULT_SUM_ACT_F16:
        return so_far + lost_in_sums(b, x);
    case FAULT_SUM_INT16: {
        const int8_t *q = act_codes(s->call->in[0], i, k, &scale);
        return so_far + b->d * scale * lost_in_pairs(b, q);
    }
    default: {
        const int8_t *q = act_codes(s->call->in[0], i, k, &scale);
        return so_far + b->d * scale * lost_in_dot(b, q);
    }
    }
}

static void sum_row(const struct sum *s, int64_t n, double *sums) {
    const struct fwd_op_call *call = s->call;
    const struct fwd_weight *w = call->weight;
    int values = fault_block_values(w->type);
    struct fault_block b;
    memset(sums, 0, (size_t)call->n_pos * sizeof *sums);
    for (int64_t k = 0; k < w->n_cols; k += values) {
        fault_open_block(w->type, w->data + n * w->row_bytes + k / values * fault_block_bytes(w->type), w->n_cols - k,
                         &b);
        for (int i = 0; i < call->n_pos; i++)
            sums[i] = add_block(s, &b, i, k, sums[i]);
    }
    for (int i = 0; i < call->n_pos; i++) {
        double bias = call->bias ? (double)call->bias[n] : 0;
        double base = s->f->row->kind == FAULT_SUM_F16 ? bias : fault_get(call->out, i, n);
        if (fault_at(s->f, call, i))
            fault_put(call->out, i, n, base + sums[i]);
    }
}

struct sum_job {
    const struct sum *sum;
    double *room; /* [n_threads][n_pos] */
};

static void sum_rows(void *ctx, int thread, int n_threads) {
    const struct sum_job *job = ctx;
    const struct fwd_op_call *call = job->sum->call;
    int64_t begin, end;
    fwd_range_split(call->weight->n_rows, 1, thread, n_threads, &begin, &end);
    for (int64_t n = begin; n < end; n++)
        sum_row(job->sum, n, job->room + (int64_t)thread * call->n_pos);
}

static enum fwd_status sum_all(const struct par_fault *f, const struct fwd_op_call *call, struct fwd_error *err) {
    int64_t n_cols = call->weight->n_cols;
    int n_threads = call->pool ? fwd_pool_size(call->pool) : 1;
    bool codes = call->in[0]->dtype == FWD_Q8_K || call->in[0]->dtype == FWD_Q8_32;
    FWD_FAIL_IF(!codes && (f->row->kind == FAULT_SUM_INT16 || f->row->kind == FAULT_SUM_CLIPPED), FWD_ETYPE, err,
                "fault %s: the activations of %s are %s, not quantised", f->row->name, fwd_op_name(call->op),
                fwd_dtype_name(call->in[0]->dtype));
    double *x = fwd_alloc((size_t)(call->n_pos * (n_cols + n_threads)), sizeof *x);
    FWD_FAIL_IF(!x, FWD_ENOMEM, err, "fault %s: no memory for %d positions", f->row->name, call->n_pos);
    for (int i = 0; i < call->n_pos; i++)
        fault_get_row(call->in[0], i, x + i * n_cols);
    struct sum sum = {f, call, x};
    struct sum_job job = {&sum, x + call->n_pos * n_cols};
    fwd_pool_run(call->pool, sum_rows, &job);
    fwd_free(x);
    return FWD_OK;
}

/* ---- scaled products ---- */

/* What scales a row of largest magnitude `amax` into E4M3, whose largest value is 448. */
static double e4m3_scale(double amax) {
    return amax / 448;
}

static double largest_magnitude(const double *x, int64_t n) {
    double most = 0;
    for (int64_t k = 0; k < n; k++)
        most = fmax(most, fabs(x[k]));
    return most;
}

/* y = D * (activation's scale) * (weight row's scale), D cut to what binary16 holds and rounded to it. */
static enum fwd_status descale_all(const struct par_fault *f, const struct fwd_op_call *call, struct fwd_error *err) {
    const struct fwd_weight *w = call->weight;
    double *row = fwd_alloc((size_t)(w->n_cols + call->n_pos), sizeof *row);
    FWD_FAIL_IF(!row, FWD_ENOMEM, err, "fault %s: no memory for %d positions", f->row->name, call->n_pos);
    double *scale = row + w->n_cols;
    for (int i = 0; i < call->n_pos; i++) {
        fault_get_row(call->in[0], i, row);
        scale[i] = e4m3_scale(largest_magnitude(row, w->n_cols));
    }
    for (int64_t n = 0; n < w->n_rows; n++) {
        fault_decode_row(w->type, w->data + n * w->row_bytes, w->n_cols, row);
        double row_scale = e4m3_scale(largest_magnitude(row, w->n_cols)), bias = call->bias ? (double)call->bias[n] : 0;
        for (int i = 0; i < call->n_pos; i++) {
            double unit = scale[i] * row_scale;
            if (unit > 0 && fault_at(f, call, i))
                fault_put(call->out, i, n,
                          fault_as_half(cut((fault_get(call->out, i, n) - bias) / unit, 65504)) * unit + bias);
        }
    }
    fwd_free(row);
    return FWD_OK;
}

/* ---- biases ---- */

static double float_at(const uint8_t *data, int64_t n) {
    float v;
    memcpy(&v, data + 4 * n, sizeof v);
    return (double)v;
}

/* What is added to the right result of row n at position i. */
static double bias_change(const struct par_fault *f, const struct fwd_op_call *call,
                          const struct fwd_gguf_tensor *other, int i, int64_t n) {
    double bias = (double)call->bias[n], scale = 1;
    switch (f->row->kind) {
    case FAULT_SUM_BIAS_NONE:
        return -bias;
    case FAULT_SUM_BIAS_TWICE:
        return bias;
    case FAULT_SUM_BIAS_OTHER_LAYER:
        return float_at(other->data, n) - bias;
    case FAULT_SUM_BIAS_SCALED:
        if (call->in[0]->dtype == FWD_Q8_K || call->in[0]->dtype == FWD_Q8_32)
            (void)act_codes(call->in[0], i, 0, &scale);
        return bias * scale - bias;
    default: /* FAULT_SUM_BIAS_ELEMENT: an eighth bit of a mantissa */
        return n == f->out_row ? (bias != 0 ? ldexp(bias, -7) : 0x1p-10) : 0;
    }
}

static enum fwd_status change_bias(const struct par_fault *f, const struct fwd_op_call *call, struct fwd_error *err) {
    const struct fwd_gguf_tensor *other = NULL;
    FWD_FAIL_IF(!call->bias, FWD_EMISSING, err, "fault %s: %s has no bias", f->row->name, fwd_op_name(call->op));
    if (f->row->kind == FAULT_SUM_BIAS_OTHER_LAYER) {
        int layer = par_fault_other_layer(f, f->file, call->op, call->layer, call->config->n_layer, true);
        other = par_fault_bias(f->file, call->op, layer);
        FWD_FAIL_IF(!other || other->type != FWD_TYPE_F32, FWD_ETYPE, err, "fault %s: no other F32 bias", f->row->name);
    }
    for (int i = 0; i < call->n_pos; i++)
        for (int64_t n = 0; fault_at(f, call, i) && n < call->weight->n_rows; n++)
            fault_put(call->out, i, n, fault_get(call->out, i, n) + bias_change(f, call, other, i, n));
    return FWD_OK;
}

enum fwd_status par_fault_sum(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    const struct par_fault *f = ud;
    FWD_TRY(call->builtin(call, err));
    if (f->row->kind == FAULT_SUM_DESCALED)
        return descale_all(f, call, err);
    return f->row->kind < FAULT_SUM_BIAS_NONE ? sum_all(f, call, err) : change_bias(f, call, err);
}
