/* harness/fault/fault_ops.c: the broken ops. Plain and slow; each has its own arithmetic, so that neither the spec nor
 * a signature can agree with it by sharing code. */
#include "fault/fault_ops.h"

#include "fault/fault.h"
#include "spec/spec_decode.h"

#include <math.h>
#include <string.h>

static float *out_row(const struct fwd_op_call *call, int i) {
    return (float *)(void *)((char *)call->out->data + call->out->nb[1] * i);
}

static const char *in_row(const struct fwd_view *v, int i) {
    return (const char *)v->data + (int64_t)fwd_dtype_row_bytes(v->dtype, v->ne[0]) * i;
}

static double half_value(const uint8_t *p) {
    unsigned h = (unsigned)p[0] | (unsigned)p[1] << 8;
    int exponent = (int)(h >> 10 & 31);
    double mantissa = (double)(h & 1023);
    double v = exponent == 31  ? (mantissa > 0 ? (double)NAN : (double)INFINITY)
               : exponent == 0 ? ldexp(mantissa, -24)
                               : ldexp(1024.0 + mantissa, exponent - 25);
    return h & 0x8000u ? -v : v;
}

/* Activation block b of a row as d, q and sums of 16, from either tap format. */
struct act_block {
    float d;
    const int8_t *q; /* 256 */
    int sum16[16];
};
static struct act_block q8_k_block(const char *row, int64_t b) {
    struct act_block a;
    const char *p = row + b * 292;
    memcpy(&a.d, p, 4);
    a.q = (const int8_t *)p + 4;
    for (int j = 0; j < 16; j++) {
        a.sum16[j] = 0;
        for (int k = 0; k < 16; k++)
            a.sum16[j] += a.q[16 * j + k];
    }
    return a;
}

/* The 6-bit min of sub-block j (0..7) of a Q4_K block's 12 scale bytes. */
static int min_code(const uint8_t *s, int j) {
    return j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | (s[j] >> 6) << 4;
}
static int scale_code(const uint8_t *s, int j) {
    return j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
}

enum fwd_status par_fault_min_dropped(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    (void)ud;
    FWD_TRY(call->builtin(call, err));
    FWD_FAIL_IF(call->in[0]->dtype != FWD_Q8_K, FWD_ETYPE, err, "fault q4k-min-dropped: activations are %s, not Q8_K",
                fwd_dtype_name(call->in[0]->dtype));
    const struct fwd_weight *w = call->weight;
    for (int i = 0; i < call->n_pos; i++) {
        const char *act = in_row(call->in[0], i);
        float *y = out_row(call, i);
        for (int64_t n = 0; n < w->n_rows; n++) {
            double mins = 0;
            for (int64_t b = 0; b < w->n_cols / 256; b++) {
                const uint8_t *block = w->data + n * w->row_bytes + b * 144;
                struct act_block a = q8_k_block(act, b);
                int sum = 0;
                for (int j = 0; j < 8; j++)
                    sum += min_code(block + 4, j) * (a.sum16[2 * j] + a.sum16[2 * j + 1]);
                mins += half_value(block + 2) * (double)a.d * sum;
            }
            y[n] = (float)((double)y[n] + mins);
        }
    }
    return FWD_OK;
}

struct q6k_as_q4k_work {
    const struct fwd_op_call *call;
};

/* Reads each row of Q6_K bytes with Q4_K's offsets and stride. A scale whose bits are no finite number is taken as 0:
 * the run then shows wrong numbers and not NaN, which is the harder case to see. */
static void q6k_as_q4k_rows(void *ctx, int thread, int n_threads) {
    const struct fwd_op_call *call = ((const struct q6k_as_q4k_work *)ctx)->call;
    const struct fwd_weight *w = call->weight;
    int64_t begin, end;
    fwd_range_split(w->n_rows, 1, thread, n_threads, &begin, &end);
    for (int i = 0; i < call->n_pos; i++) {
        const char *act = in_row(call->in[0], i);
        float *y = out_row(call, i);
        for (int64_t n = begin; n < end; n++) {
            double sum = 0;
            for (int64_t b = 0; b < w->n_cols / 256; b++) {
                const uint8_t *block = w->data + (n * (w->n_cols / 256) + b) * 144;
                struct act_block a = q8_k_block(act, b);
                double d = half_value(block), dmin = half_value(block + 2);
                int dot = 0, mins = 0;
                for (int j = 0; j < 8; j++) {
                    int part = 0;
                    for (int k = 0; k < 32; k++) {
                        int byte = block[16 + 32 * (j / 2) + k];
                        part += (j & 1 ? byte >> 4 : byte & 15) * a.q[32 * j + k];
                    }
                    dot += scale_code(block + 4, j) * part;
                    mins += min_code(block + 4, j) * (a.sum16[2 * j] + a.sum16[2 * j + 1]);
                }
                sum += (double)a.d * ((isfinite(d) ? d : 0) * dot - (isfinite(dmin) ? dmin : 0) * mins);
            }
            y[n] = (float)sum;
        }
    }
}

enum fwd_status par_fault_q6k_as_q4k(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    (void)ud;
    FWD_FAIL_IF(call->in[0]->dtype != FWD_Q8_K, FWD_ETYPE, err, "fault q6k-as-q4k: activations are %s, not Q8_K",
                fwd_dtype_name(call->in[0]->dtype));
    struct q6k_as_q4k_work work = {call};
    fwd_pool_run(call->pool, q6k_as_q4k_rows, &work);
    return FWD_OK;
}

/* y[i] = sum_k buffer[k * N + i] * x[k] with buffer = the [N, K] weights laid out row after row: the true weights read
 * in the wrong order. One pass over the rows: value f of the buffer belongs to k = f / N, i = f % N. */
enum { HEAD_ROWS = 256 };
struct transposed_work {
    const struct fwd_op_call *call;
    float *rows; /* [n][n_cols] decoded weight rows r .. r + n - 1 */
    int64_t r, n;
};
static void decode_head_rows(void *ctx, int thread, int n_threads) {
    const struct transposed_work *t = ctx;
    const struct fwd_weight *w = t->call->weight;
    for (int64_t i = thread; i < t->n; i += n_threads)
        par_decode_row(w->type, w->data + (t->r + i) * w->row_bytes, t->rows + i * w->n_cols, w->n_cols);
}
static void add_transposed_rows(void *ctx, int thread, int n_threads) {
    const struct transposed_work *t = ctx;
    const struct fwd_op_call *call = t->call;
    int64_t n_rows = call->weight->n_rows, n_cols = call->weight->n_cols;
    for (int i = thread; i < call->n_pos; i += n_threads) {
        const float *x = (const float *)(const void *)in_row(call->in[0], i);
        float *y = out_row(call, i);
        for (int64_t at = 0; at < t->n * n_cols;) {
            int64_t flat = t->r * n_cols + at, k = flat / n_rows, row = flat % n_rows;
            int64_t run = n_rows - row < t->n * n_cols - at ? n_rows - row : t->n * n_cols - at;
            for (int64_t j = 0; j < run; j++)
                y[row + j] += t->rows[at + j] * x[k];
            at += run;
        }
    }
}

enum fwd_status par_fault_head_transposed(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    (void)ud;
    FWD_FAIL_IF(call->in[0]->dtype != FWD_F32, FWD_ETYPE, err, "fault f32-head-transposed: the head reads %s, not F32",
                fwd_dtype_name(call->in[0]->dtype));
    const struct fwd_weight *w = call->weight;
    struct transposed_work work = {.call = call, .rows = fwd_alloc((size_t)(HEAD_ROWS * w->n_cols), sizeof(float))};
    FWD_FAIL_IF(!work.rows, FWD_ENOMEM, err, "fault f32-head-transposed: no memory for %d rows", HEAD_ROWS);
    for (int i = 0; i < call->n_pos; i++)
        memset(out_row(call, i), 0, (size_t)w->n_rows * sizeof(float));
    for (work.r = 0; work.r < w->n_rows; work.r += HEAD_ROWS) {
        work.n = w->n_rows - work.r < HEAD_ROWS ? w->n_rows - work.r : HEAD_ROWS;
        fwd_pool_run(call->pool, decode_head_rows, &work);
        fwd_pool_run(call->pool, add_transposed_rows, &work);
    }
    fwd_free(work.rows);
    return FWD_OK;
}

/* Rotates one row of heads; position and pairing are the caller's. */
static void rotate(const struct fwd_config *c, const float *x, float *y, int64_t n_values, double position, bool neox) {
    for (int64_t head = 0; head < n_values / c->head_dim; head++) {
        const float *in = x + head * c->head_dim;
        float *out = y + head * c->head_dim;
        memcpy(out, in, (size_t)c->head_dim * sizeof *out);
        for (int j = 0; j < c->n_rope / 2; j++) {
            double frequency = pow(c->rope_theta, -2.0 * j / c->n_rope);
            if (c->rope_factors)
                frequency /= (double)c->rope_factors[j];
            double cosine = cos(position * frequency), sine = sin(position * frequency);
            int a = neox ? j : 2 * j, b = neox ? j + c->n_rope / 2 : 2 * j + 1;
            out[a] = (float)((double)in[a] * cosine - (double)in[b] * sine);
            out[b] = (float)((double)in[a] * sine + (double)in[b] * cosine);
        }
    }
}

enum fwd_status par_fault_rope_pairing(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    (void)ud;
    (void)err;
    for (int i = 0; i < call->n_pos; i++)
        rotate(call->config, (const float *)(const void *)in_row(call->in[0], i), out_row(call, i), call->in[0]->ne[0],
               call->pos0 + i, call->config->rope_pairing == FWD_ROPE_NORM);
    return FWD_OK;
}

enum fwd_status par_fault_rope_position(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    const struct par_fault *f = ud;
    FWD_TRY(call->builtin(call, err));
    for (int i = 0; i < call->n_pos; i++)
        if (call->pos0 + i >= f->n_prompt)
            rotate(call->config, (const float *)(const void *)in_row(call->in[0], i), out_row(call, i),
                   call->in[0]->ne[0], call->pos0 + i + 1, call->config->rope_pairing == FWD_ROPE_NEOX);
    return FWD_OK;
}

enum fwd_status par_fault_kv_stale(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    const struct par_fault *f = ud;
    FWD_TRY(call->builtin(call, err));
    int64_t row = f->n_prompt / 2;
    if (row < 1 || call->pos0 < f->n_prompt)
        return FWD_OK;
    /* A later call finds the row of the position before it, as if its write had been lost. */
    const struct fwd_view *cache = call->out;
    for (int64_t head = 0; head < cache->ne[1]; head++) {
        char *base = (char *)cache->data + head * cache->nb[1];
        memcpy(base + row * cache->nb[2], base + (row - 1) * cache->nb[2],
               fwd_dtype_row_bytes(cache->dtype, cache->ne[0]));
    }
    return FWD_OK;
}

void par_fault_gqa_modulo(void *ud, struct fwd_config *config) {
    (void)ud;
    for (int h = 0; h < config->n_head; h++)
        config->kv_head_of[h] = h % config->n_kv_head;
}

void par_fault_eps(void *ud, struct fwd_config *config) {
    (void)ud;
    config->norm_eps = config->norm_eps < 5e-6f ? 1e-5f : 1e-6f;
}
