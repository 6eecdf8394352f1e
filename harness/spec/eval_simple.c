/* Evaluators of the ops that are one step an element: embedding, quantised activations, KV store, SwiGLU, sums. */
#include "spec/eval_tensor.h"
#include "spec/spec_decode.h"
#include "spec/spec_quant.h"
#include "spec/spec_tensor.h"

#include <math.h>
#include <string.h>

struct task {
    struct eval *ev;
    int64_t n;       /* values in a row */
    double *scratch; /* [n_threads][n_scratch] */
    int64_t n_scratch;
};

/* Allocates scratch and runs fn over the threads. */
static enum fwd_status run_task(struct eval *ev, fwd_task_fn *fn, int64_t n, int64_t n_scratch, struct fwd_error *err) {
    struct task t = {ev, n, NULL, n_scratch};
    t.scratch = fwd_alloc((size_t)ev->n_threads, (size_t)n_scratch * sizeof(double));
    FWD_FAIL_IF(!t.scratch, FWD_ENOMEM, err, "judge: no memory for rows of %lld values", (long long)n);
    fwd_pool_run(ev->pool, fn, &t);
    fwd_free(t.scratch);
    return FWD_OK;
}

/* ---- inp_embd: the row of the table, decoded; bound 0
 * ---------------------------------------------------------------- */
static void embed_task(void *ctx, int thread, int n_threads) {
    struct task *t = ctx;
    const struct par_eval *e = t->ev->e;
    const struct spec_weight *w = par_spec_weight(t->ev->m, e->op, e->layer);
    float *row = (float *)(t->scratch + thread * t->n_scratch);
    for (int i = thread; i < t->ev->n_pos; i += n_threads) {
        int pos = e->pos0 + t->ev->pos[i];
        int32_t token;
        memcpy(&token, (const uint8_t *)e->in[0]->data + 4 * (pos - e->in[0]->pos0), sizeof token);
        par_decode_row(w->type, w->data + token * w->row_bytes, row, t->n);
        const uint8_t *got = par_view_row(e->out, pos);
        for (int64_t k = 0; k < t->n; k++)
            par_eval_element(&t->ev->tally[thread], e->out->dtype, pos, k, (double)row[k],
                             par_load_one(e->out->dtype, got, k), 0);
    }
}

enum fwd_status par_eval_embed(struct eval *ev, struct fwd_error *err) {
    const struct par_eval *e = ev->e;
    const struct spec_weight *w = par_spec_weight(ev->m, e->op, e->layer);
    FWD_TRY(par_eval_need_float(ev, e->out, w->n_cols, err));
    FWD_FAIL_IF(!e->in[0] || e->in[0]->dtype != FWD_I32, FWD_EINPUT, err, "inp_embd: token ids missing");
    for (int i = 0; i < ev->n_pos; i++) {
        int at = e->pos0 + ev->pos[i] - e->in[0]->pos0;
        FWD_FAIL_IF(at < 0 || at >= e->in[0]->n_pos, FWD_EINPUT, err, "inp_embd: no token id for position %d",
                    e->pos0 + ev->pos[i]);
        int32_t token;
        memcpy(&token, (const uint8_t *)e->in[0]->data + 4 * at, sizeof token);
        FWD_FAIL_IF(token < 0 || token >= w->n_rows, FWD_ERANGE, err, "token id %d: expected 0 to %lld", token,
                    (long long)w->n_rows - 1);
    }
    return run_task(ev, embed_task, w->n_cols, w->n_cols, err);
}

/* ---- _q8: the bytes again, by our own quantiser; bound 0
 * ------------------------------------------------------------- */
static void q8_block(struct eval_tally *t, const struct par_eval *e, int pos, int64_t n, int64_t base, int block,
                     const float *x, const uint8_t *bytes) {
    struct spec_q8 want, got;
    bool sums_agree;
    (void)par_q8_quantise_as(e->numerics->act_rule, x, block, &want);
    par_q8_read(e->out->dtype, bytes, &got, &sums_agree);
    for (int k = 0; k < block; k++)
        par_eval_element(t, FWD_F32, pos, base + k, want.q[k], got.q[k], 0);
    /* A NaN scale is a class, not bits. */
    par_eval_element(t, FWD_F32, pos, n + base / block, (double)want.d, (double)got.d, 0);
    if (!sums_agree)
        par_eval_element(t, FWD_F32, pos, n + base / block, 0, 1, 0);
}

static void q8_task(void *ctx, int thread, int n_threads) {
    struct task *t = ctx;
    const struct par_eval *e = t->ev->e;
    double *wide = t->scratch + thread * t->n_scratch;
    float *x = (float *)(wide + t->n);
    int block = par_q8_block_values(e->out->dtype);
    size_t block_bytes = par_q8_block_bytes(e->out->dtype);
    for (int i = thread; i < t->ev->n_pos; i += n_threads) {
        int pos = e->pos0 + t->ev->pos[i];
        par_load_f64(e->in[0]->dtype, par_view_row(e->in[0], pos), wide, t->n);
        for (int64_t k = 0; k < t->n; k++)
            x[k] = (float)wide[k];
        const uint8_t *bytes = par_view_row(e->out, pos);
        for (int64_t b = 0; b < t->n / block; b++)
            q8_block(&t->ev->tally[thread], e, pos, t->n, b * block, block, x + b * block,
                     bytes + (size_t)b * block_bytes);
    }
}

enum fwd_status par_eval_q8(struct eval *ev, struct fwd_error *err) {
    const struct par_eval *e = ev->e;
    if (par_tensor_format(e->out->dtype))
        return par_eval_tensor_q8(ev, err);
    int block = par_q8_block_values(e->out->dtype);
    int64_t n = e->out->ne[0];
    FWD_FAIL_IF(!block || n % block != 0, FWD_EINPUT, err, "%s: type %s with %lld values, expected blocks of int8",
                fwd_op_name(e->op), fwd_dtype_name(e->out->dtype), (long long)n);
    FWD_FAIL_IF(!par_q8_knows(e->numerics->act_rule), FWD_EUNSUPPORTED, err, "%s: quantisation rule %d is unknown",
                fwd_op_name(e->op), e->numerics->act_rule);
    FWD_TRY(par_eval_need_float(ev, e->in[0], n, err));
    for (int i = 0; i < ev->n_pos; i++)
        FWD_FAIL_IF(!par_view_row(e->out, e->pos0 + ev->pos[i]), FWD_EINPUT, err, "%s: no row for position %d",
                    fwd_op_name(e->op), e->pos0 + ev->pos[i]);
    return run_task(ev, q8_task, n, 2 * n, err);
}

/* ---- K_cache, V_cache: every row that the view and the history both have, rounded to the cache's type
 * ---------------- */
/* half: the path declares that the values are binary16, in whatever type they lie. An F64 row is first rounded to F32.
 */
static double store_value(enum fwd_dtype to, bool half, double x) {
    if (to == FWD_F16 || half)
        return (double)par_f16_to_f32(par_f32_to_f16((float)x));
    return to == FWD_F32 ? (double)(float)x : x;
}

static void store_task(void *ctx, int thread, int n_threads) {
    struct task *t = ctx;
    const struct par_eval *e = t->ev->e;
    const struct fwd_view *in = e->in[0], *out = e->out;
    double *x = t->scratch + thread * t->n_scratch;
    int64_t head_dim = out->ne[0];
    for (int pos = in->pos0 + thread; pos < in->pos0 + in->n_pos && pos < out->ne[2]; pos += n_threads) {
        par_load_f64(in->dtype, par_view_row(in, pos), x, t->n);
        for (int64_t k = 0; k < t->n; k++) {
            const uint8_t *head = (const uint8_t *)out->data + pos * out->nb[2] + k / head_dim * out->nb[1];
            par_eval_element(&t->ev->tally[thread], out->dtype, pos, k,
                             store_value(out->dtype, e->numerics->act == FWD_F16, x[k]),
                             par_load_one(out->dtype, head, k % head_dim), 0);
        }
    }
}

enum fwd_status par_eval_store(struct eval *ev, struct fwd_error *err) {
    const struct par_eval *e = ev->e;
    const struct par_spec_config *c = par_spec_config(ev->m);
    FWD_FAIL_IF(!par_float_bytes(e->out->dtype) || e->out->ne[0] != c->head_dim || e->out->ne[1] != c->n_kv_head,
                FWD_ESHAPE, err, "%s: %s rows of %lld x %lld, expected floats, %d x %d", fwd_op_name(e->op),
                fwd_dtype_name(e->out->dtype), (long long)e->out->ne[1], (long long)e->out->ne[0], c->n_kv_head,
                c->head_dim);
    int64_t n = (int64_t)c->n_kv_head * c->head_dim;
    FWD_FAIL_IF(!e->in[0] || !par_float_bytes(e->in[0]->dtype) || e->in[0]->ne[0] != n, FWD_EINPUT, err,
                "%s: the rows that were computed are missing", fwd_op_name(e->op));
    return run_task(ev, store_task, n, n, err);
}

/* ---- ffn_swiglu: silu(gate) * up
 * --------------------------------------------------------------------------------------- */
static void swiglu_task(void *ctx, int thread, int n_threads) {
    struct task *t = ctx;
    const struct par_eval *e = t->ev->e;
    const struct fwd_numerics *nm = e->numerics;
    double *gate = t->scratch + thread * t->n_scratch, *up = gate + t->n;
    double u = par_unit_of_accumulator(nm->accumulator), store = par_unit_of_store(nm->store);
    /* (exp ulp + 4) u of section 2; an ulp of a result is up to 2u of it. The last part is the spec's own libm. */
    double relative = (2.0 * (double)nm->exp_ulp + 4) * u + (store > u ? store : 0) + 0x1p-50;
    /* Where exp(-|gate|) is no normal number it may be 0; a denormal quotient rounds before it is multiplied by up. */
    bool wide = nm->store == FWD_F64;
    double flushed = wide ? 0x1p-1000 : 0x1p-126, flushed_from = wide ? -690 : -87;
    double smallest = nm->ftz ? flushed : wide ? 0x1p-1074 : 0x1p-149;
    for (int i = thread; i < t->ev->n_pos; i += n_threads) {
        int pos = e->pos0 + t->ev->pos[i];
        par_load_f64(e->in[0]->dtype, par_view_row(e->in[0], pos), gate, t->n);
        par_load_f64(e->in[1]->dtype, par_view_row(e->in[1], pos), up, t->n);
        const uint8_t *got = par_view_row(e->out, pos);
        for (int64_t k = 0; k < t->n; k++) {
            double y = gate[k] / (1 + exp(-gate[k])) * up[k];
            double bound = relative * fabs(y) + (fabs(up[k]) + 2) * smallest;
            if (gate[k] < flushed_from)
                bound += fabs(gate[k] * up[k]) * flushed;
            par_eval_element(&t->ev->tally[thread], e->out->dtype, pos, k, y, par_load_one(e->out->dtype, got, k),
                             bound);
        }
    }
}

enum fwd_status par_eval_swiglu(struct eval *ev, struct fwd_error *err) {
    const struct par_eval *e = ev->e;
    int64_t n = par_spec_config(ev->m)->n_ff;
    FWD_TRY(par_eval_need_float(ev, e->out, n, err));
    FWD_TRY(par_eval_need_float(ev, e->in[0], n, err));
    FWD_TRY(par_eval_need_float(ev, e->in[1], n, err));
    return run_task(ev, swiglu_task, n, 2 * n, err);
}

/* ---- ffn_inp, l_out: one addition; bound 1 ulp
 * --------------------------------------------------------------------------- */
static void sum_task(void *ctx, int thread, int n_threads) {
    struct task *t = ctx;
    const struct par_eval *e = t->ev->e;
    double *a = t->scratch + thread * t->n_scratch, *b = a + t->n;
    double store = par_unit_of_store(e->numerics->store);
    double smallest = e->numerics->store == FWD_F64 ? 0x1p-1000 : 0x1p-149;
    for (int i = thread; i < t->ev->n_pos; i += n_threads) {
        int pos = e->pos0 + t->ev->pos[i];
        par_load_f64(e->in[0]->dtype, par_view_row(e->in[0], pos), a, t->n);
        par_load_f64(e->in[1]->dtype, par_view_row(e->in[1], pos), b, t->n);
        const uint8_t *got = par_view_row(e->out, pos);
        for (int64_t k = 0; k < t->n; k++) {
            double y = a[k] + b[k]; /* of F32 terms: exact unless they lie 2^29 apart, and then far inside the bound */
            par_eval_element(&t->ev->tally[thread], e->out->dtype, pos, k, y, par_load_one(e->out->dtype, got, k),
                             2 * store * fabs(y) + smallest);
        }
    }
}

enum fwd_status par_eval_sum(struct eval *ev, struct fwd_error *err) {
    const struct par_eval *e = ev->e;
    int64_t n = par_spec_config(ev->m)->n_embd;
    FWD_TRY(par_eval_need_float(ev, e->out, n, err));
    FWD_TRY(par_eval_need_float(ev, e->in[0], n, err));
    FWD_TRY(par_eval_need_float(ev, e->in[1], n, err));
    return run_task(ev, sum_task, n, 2 * n, err);
}
