/* engine/paths/ref_ops.c: the ops of the reference paths, one row (position) at a time in double; the matmul is
 * engine/ops/matmul_f's. Rows are split over the pool; no result depends on the split. */
#include "paths/ref_ops.h"

#include "core/half.h"
#include "ops/matmul_f/matmul_f.h"
#include "paths/ref_session.h"
#include "quant/quant.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

/* ---- rows of views ----------------------------------------------------------------------------------------------- */
static void *row_of(const struct fwd_view *v, int i) {
    return (uint8_t *)v->data + i * v->nb[1];
}

static void widen(enum fwd_dtype real, const void *src, int64_t n, double *dst) {
    if (real == FWD_F64)
        memcpy(dst, src, (size_t)n * sizeof *dst);
    else
        for (int64_t i = 0; i < n; i++)
            dst[i] = ((const float *)src)[i];
}

static void narrow(enum fwd_dtype real, const double *src, int64_t n, void *dst) {
    if (real == FWD_F64)
        memcpy(dst, src, (size_t)n * sizeof *src);
    else
        for (int64_t i = 0; i < n; i++)
            ((float *)dst)[i] = (float)src[i];
}

/* ---- ops that work on each row alone ----------------------------------------------------------------------------- */
typedef void row_fn(const struct fwd_op_call *call, int i, double *scratch);

struct rows_task {
    const struct fwd_op_call *call;
    row_fn *fn;
};

static void run_rows(void *ctx, int thread, int n_threads) {
    const struct rows_task *t = ctx;
    const struct fwd_session *s = t->call->path_state;
    int64_t begin, end;
    fwd_range_split(t->call->n_pos, 1, thread, n_threads, &begin, &end);
    for (int64_t i = begin; i < end; i++)
        t->fn(t->call, (int)i, s->row_scratch + thread * s->row_scratch_len);
}

static enum fwd_status each_row(const struct fwd_op_call *call, row_fn *fn) {
    struct rows_task task = {call, fn};
    fwd_pool_run(call->pool, run_rows, &task);
    return FWD_OK;
}

/* A row of a weight in double; scratch holds 2 * n doubles: the result, then room for F32. */
static const double *decode_row(const struct fwd_weight *w, int64_t row, double *scratch) {
    float *f32 = (float *)(scratch + w->n_cols);
    fwd_decode_for(w->type)(w->data + row * w->row_bytes, f32, w->n_cols);
    widen(FWD_F32, f32, w->n_cols, scratch);
    return scratch;
}

static void embed_row(const struct fwd_op_call *call, int i, double *scratch) {
    int32_t id = ((const int32_t *)call->in[0]->data)[i];
    narrow(call->out->dtype, decode_row(call->weight, id, scratch), call->weight->n_cols, row_of(call->out, i));
}

enum fwd_status ref_op_embed(const struct fwd_op_call *call, struct fwd_error *err) {
    (void)err;
    return each_row(call, embed_row);
}

static void norm_row(const struct fwd_op_call *call, int i, double *scratch) {
    int64_t n = call->out->ne[0];
    double *x = scratch, sum = 0;
    const double *w = decode_row(call->weight, 0, scratch + n);
    widen(call->in[0]->dtype, row_of(call->in[0], i), n, x);
    for (int64_t k = 0; k < n; k++)
        sum += x[k] * x[k];
    double scale = 1 / sqrt(sum / (double)n + (double)call->config->norm_eps);
    for (int64_t k = 0; k < n; k++)
        x[k] = x[k] * scale * w[k];
    narrow(call->out->dtype, x, n, row_of(call->out, i));
}

enum fwd_status ref_op_norm(const struct fwd_op_call *call, struct fwd_error *err) {
    (void)err;
    return each_row(call, norm_row);
}

static void rope_row(const struct fwd_op_call *call, int i, double *x) {
    const struct fwd_session *s = call->path_state;
    const struct fwd_config *c = call->config;
    int64_t n = call->out->ne[0];
    bool neox = c->rope_pairing == FWD_ROPE_NEOX;
    widen(call->in[0]->dtype, row_of(call->in[0], i), n, x);
    for (int p = 0; p < c->n_rope / 2; p++) {
        double angle = (double)(call->pos0 + i) * s->freq[p], cosine = cos(angle), sine = sin(angle);
        for (int64_t head = 0; head < n; head += c->head_dim) {
            double *a = x + head + (neox ? p : 2 * p);
            double *b = neox ? a + c->n_rope / 2 : a + 1;
            double a0 = *a, b0 = *b;
            *a = a0 * cosine - b0 * sine;
            *b = a0 * sine + b0 * cosine;
        }
    }
    narrow(call->out->dtype, x, n, row_of(call->out, i));
}

enum fwd_status ref_op_rope(const struct fwd_op_call *call, struct fwd_error *err) {
    (void)err;
    const struct fwd_session *s = call->path_state;
    const struct fwd_config *c = call->config;
    for (int p = 0; p < c->n_rope / 2; p++) {
        double factor = c->rope_factors ? (double)c->rope_factors[p] : 1;
        s->freq[p] = pow(c->rope_theta, -2.0 * p / c->n_rope) / factor;
    }
    return each_row(call, rope_row);
}

static void cache_row(const struct fwd_op_call *call, int i, double *x) {
    const struct fwd_session *s = call->path_state;
    int64_t n = call->in[0]->ne[0];
    widen(call->in[0]->dtype, row_of(call->in[0], i), n, x);
    if (s->kv_f16)
        for (int64_t k = 0; k < n; k++)
            x[k] = (double)fwd_f16_to_f32(fwd_f32_to_f16((float)x[k]));
    narrow(call->out->dtype, x, n, (uint8_t *)call->out->data + (call->pos0 + i) * call->out->nb[2]);
}

enum fwd_status ref_op_cache(const struct fwd_op_call *call, struct fwd_error *err) {
    (void)err;
    return each_row(call, cache_row);
}

static void swiglu_row(const struct fwd_op_call *call, int i, double *scratch) {
    int64_t n = call->out->ne[0];
    double *gate = scratch, *up = scratch + n;
    widen(call->in[0]->dtype, row_of(call->in[0], i), n, gate);
    widen(call->in[1]->dtype, row_of(call->in[1], i), n, up);
    for (int64_t k = 0; k < n; k++)
        gate[k] = gate[k] / (1 + exp(-gate[k])) * up[k];
    narrow(call->out->dtype, gate, n, row_of(call->out, i));
}

enum fwd_status ref_op_swiglu(const struct fwd_op_call *call, struct fwd_error *err) {
    (void)err;
    return each_row(call, swiglu_row);
}

static void add_row(const struct fwd_op_call *call, int i, double *scratch) {
    int64_t n = call->out->ne[0];
    double *a = scratch, *b = scratch + n;
    widen(call->in[0]->dtype, row_of(call->in[0], i), n, a);
    widen(call->in[1]->dtype, row_of(call->in[1], i), n, b);
    for (int64_t k = 0; k < n; k++)
        a[k] += b[k];
    narrow(call->out->dtype, a, n, row_of(call->out, i));
}

enum fwd_status ref_op_add(const struct fwd_op_call *call, struct fwd_error *err) {
    (void)err;
    return each_row(call, add_row);
}

static void quantise_row(const struct fwd_op_call *call, int i, double *scratch) {
    (void)scratch;
    ref_act_quantise(call->out->dtype, call->in[0]->dtype, row_of(call->in[0], i), call->in[0]->ne[0],
                     row_of(call->out, i));
}

enum fwd_status ref_op_quantise(const struct fwd_op_call *call, struct fwd_error *err) {
    (void)err;
    return each_row(call, quantise_row);
}

/* ---- matmul ------------------------------------------------------------------------------------------------------ */
/* The input as the emulated path reads it, in s->unpacked: from the q8 tap, or straight from the float one where the
 * tap is in another format than this weight's. */
static void unpack_row(const struct fwd_op_call *call, int i, double *scratch) {
    const struct fwd_session *s = call->path_state;
    const struct fwd_view *in = call->in[0];
    enum fwd_dtype format = in->dtype;
    const void *blocks = row_of(in, i);
    if (format == s->real) {
        format = ref_act_format(s, call->op, call->weight);
        ref_act_quantise(format, s->real, blocks, in->ne[0], scratch);
        blocks = scratch;
    }
    ref_act_dequantise(format, s->real, blocks, in->ne[0],
                       (uint8_t *)s->unpacked + (size_t)(i * in->ne[0]) * ref_real_bytes(s));
}

enum fwd_status ref_op_matmul(const struct fwd_op_call *call, struct fwd_error *err) {
    (void)err;
    const struct fwd_session *s = call->path_state;
    const struct fwd_weight *w = call->weight;
    const struct fwd_view *in = call->in[0];
    int64_t real_bytes = (int64_t)ref_real_bytes(s), ld_x = in->nb[1] / real_bytes,
            ld_y = call->out->nb[1] / real_bytes;
    const void *x = in->data;
    if (in->dtype != s->real || ref_act_format(s, call->op, w) != FWD_F32) {
        FWD_TRY(each_row(call, unpack_row));
        x = s->unpacked;
        ld_x = in->ne[0];
    }
    if (s->real == FWD_F32) {
        struct fwd_matmul_f_args a = {
            w, x, ld_x, call->n_pos, call->bias, call->out->data, ld_y, s->matmul_scratch, call->pool};
        ((matmul_f_fn *)s->matmul->fn)(&a);
    } else {
        struct fwd_matmul_d_args a = {
            w, x, ld_x, call->n_pos, call->bias, call->out->data, ld_y, s->matmul_scratch, call->pool};
        ((matmul_d_fn *)s->matmul->fn)(&a);
    }
    return FWD_OK;
}

/* ---- attention --------------------------------------------------------------------------------------------------- */
enum { QUERY_BLOCK = 16, LANES = 8 };

struct attention_task {
    const struct fwd_op_call *call;
    atomic_int next; /* (head, block of queries) not yet taken */
};

/* Eight chains, so that neither latency nor a wide head makes it slow; then the lanes in order. */
static double dot(const double *a, const double *b, int n) {
    double lane[LANES] = {0}, sum = 0;
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++)
            lane[l] += a[i + l] * b[i + l];
    for (; i < n; i++)
        lane[0] += a[i] * b[i];
    for (int l = 0; l < LANES; l++)
        sum += lane[l];
    return sum;
}

/* out[i] = sum_j p[j] * v[j][i] over n_keys rows, ld apart */
static void mix_values(const double *p, const double *v, int64_t ld, int n_keys, int n, double *out) {
    int i = 0;
    for (; i + LANES <= n; i += LANES) {
        double sum[LANES] = {0};
        for (int j = 0; j < n_keys; j++)
            for (int l = 0; l < LANES; l++)
                sum[l] += p[j] * v[j * ld + i + l];
        memcpy(out + i, sum, sizeof sum);
    }
    for (; i < n; i++) {
        out[i] = 0;
        for (int j = 0; j < n_keys; j++)
            out[i] += p[j] * v[j * ld + i];
    }
}

static void attend(const struct fwd_op_call *call, int head, int i, double *scratch) {
    const struct fwd_session *s = call->path_state;
    const struct fwd_config *c = call->config;
    int d = c->head_dim, n_keys = call->pos0 + i + 1;
    int64_t ld = (int64_t)c->n_kv_head * d, kv = (int64_t)c->kv_head_of[head] * d;
    size_t at = (size_t)(head * d) * ref_real_bytes(s);
    double *q = scratch, *out = scratch + d, *p = scratch + 2 * d, max = -INFINITY, sum = 0;
    widen(call->in[0]->dtype, (const uint8_t *)row_of(call->in[0], i) + at, d, q);
    for (int j = 0; j < n_keys; j++) {
        p[j] = dot(q, s->k_rows + j * ld + kv, d) / sqrt((double)d);
        max = p[j] > max ? p[j] : max;
    }
    for (int j = 0; j < n_keys; j++) {
        p[j] = exp(p[j] - max);
        sum += p[j];
    }
    mix_values(p, s->v_rows + kv, ld, n_keys, d, out);
    for (int k = 0; k < d; k++)
        out[k] /= sum;
    narrow(call->out->dtype, out, d, (uint8_t *)row_of(call->out, i) + at);
}

static void widen_cache(const struct fwd_view *cache, int64_t begin, int64_t end, double *rows) {
    int64_t n = cache->ne[0], heads = cache->ne[1];
    for (int64_t r = begin; r < end; r++)
        for (int64_t h = 0; h < heads; h++)
            widen(cache->dtype, (const uint8_t *)cache->data + r * cache->nb[2] + h * cache->nb[1], n,
                  rows + (r * heads + h) * n);
}

static void run_attention(void *ctx, int thread, int n_threads) {
    struct attention_task *t = ctx;
    const struct fwd_op_call *call = t->call;
    const struct fwd_session *s = call->path_state;
    int64_t begin, end;
    fwd_range_split(call->in[1]->ne[2], 1, thread, n_threads, &begin, &end);
    widen_cache(call->in[1], begin, end, s->k_rows);
    widen_cache(call->in[2], begin, end, s->v_rows);
    fwd_pool_barrier(call->pool);
    int n_blocks = (call->n_pos + QUERY_BLOCK - 1) / QUERY_BLOCK;
    for (int unit; (unit = atomic_fetch_add(&t->next, 1)) < n_blocks * call->config->n_head;) {
        int head = unit / n_blocks, i0 = unit % n_blocks * QUERY_BLOCK;
        for (int i = i0; i < i0 + QUERY_BLOCK && i < call->n_pos; i++)
            attend(call, head, i, s->row_scratch + thread * s->row_scratch_len);
    }
}

enum fwd_status ref_op_attention(const struct fwd_op_call *call, struct fwd_error *err) {
    (void)err;
    struct attention_task task = {.call = call};
    atomic_init(&task.next, 0);
    fwd_pool_run(call->pool, run_attention, &task);
    return FWD_OK;
}
