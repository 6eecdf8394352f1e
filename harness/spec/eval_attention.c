/* Causal attention over the candidate's own cache rows: softmax(q.k / sqrt(d)) . v, own map of query heads to KV heads.
 * Bound: numerics.md section 2, per key: an error e_j of score j moves o by p_j e_j |v_j| + (sum p_j e_j) |o|. */
#include "spec/eval.h"

#include <math.h>

struct attention_task {
    struct eval *ev;
    int64_t q_dim, kv_dim;
    int n_keys;      /* rows loaded: up to the last judged position */
    double *k, *v;   /* [n_keys][kv_dim] */
    double *scratch; /* [n_threads][n_scratch] */
    int64_t n_scratch;
};

/* One query head at one position. */
struct head_work {
    double *p, *e;                   /* [n_keys]: probability and score error */
    double *out, *out_abs, *out_err; /* [head_dim]: sum p v, sum p |v|, sum p e |v| */
};

/* Fills p (normalised) and e for the keys of one KV head. */
static void score_keys(const struct attention_task *t, const struct head_work *w, const double *q, const double *k,
                       int n_keys) {
    const struct fwd_numerics *nm = t->ev->e->numerics;
    int64_t d = par_spec_config(t->ev->m)->head_dim;
    double u = par_unit_of_accumulator(nm->accumulator), scale = 1 / sqrt((double)d), top = -HUGE_VAL;
    double g = par_gamma(par_chain_steps(nm, d), u) + par_gamma((double)d, 0x1p-53);
    for (int j = 0; j < n_keys; j++, k += t->kv_dim) {
        double s = 0, a = 0;
        for (int64_t i = 0; i < d; i++) {
            s += q[i] * k[i];
            a += fabs(q[i] * k[i]);
        }
        w->p[j] = s * scale;
        /* The chain, and the roundings of the scale and of the product with it. */
        w->e[j] = (g * a + 2 * (u + 0x1p-53) * fabs(s)) * scale;
        if (w->p[j] > top || isnan(w->p[j]))
            top = w->p[j];
    }
    double sum = 0, worst = 0;
    for (int j = 0; j < n_keys; j++) {
        w->e[j] += (u + 0x1p-53) * fabs(w->p[j] - top); /* the difference that exp is taken of rounds too */
        w->p[j] = exp(w->p[j] - top);
        sum += w->p[j];
        worst = fmax(worst, w->e[j]);
    }
    for (int j = 0; j < n_keys; j++) {
        w->p[j] /= sum;
        if (worst > 0.01) /* beyond first order */
            w->e[j] = expm1(2 * worst);
    }
}

static void judge_head(const struct attention_task *t, struct eval_tally *tally, const struct head_work *w, int pos,
                       int head, const double *q) {
    const struct par_eval *e = t->ev->e;
    const struct fwd_numerics *nm = e->numerics;
    const struct par_spec_config *c = par_spec_config(t->ev->m);
    int64_t d = c->head_dim, at = head / (c->n_head / c->n_kv_head) * d;
    int n_keys = pos + 1;
    score_keys(t, w, q + head * d, t->k + at, n_keys);
    double mean_error = 0;
    for (int64_t i = 0; i < d; i++)
        w->out[i] = w->out_abs[i] = w->out_err[i] = 0;
    for (int j = 0; j < n_keys; j++) {
        const double *v = t->v + j * t->kv_dim + at;
        mean_error += w->p[j] * w->e[j];
        for (int64_t i = 0; i < d; i++) {
            double term = w->p[j] * v[i];
            w->out[i] += term;
            w->out_abs[i] += fabs(term);
            w->out_err[i] += w->e[j] * fabs(term);
        }
    }
    /* The sums over the keys: at least one addition a key, in the worst order; one denominator, one weighted sum. */
    double u = par_unit_of_accumulator(nm->accumulator), store = par_unit_of_store(nm->store);
    double sums = 2 * par_gamma(n_keys + (nm->chain_extra > 0 ? nm->chain_extra : 0), u) + par_gamma(n_keys, 0x1p-53) +
                  2 * ((double)nm->exp_ulp + (double)nm->div_ulp) * (u > 0x1p-53 ? u : 0x1p-53);
    double final = nm->final_roundings * (u > store ? u : store) + (store > u ? store : 0);
    double tiny = (e->out->dtype == FWD_F64 ? 0x1p-1000 : 0x1p-149) * n_keys;
    const uint8_t *got = par_view_row(e->out, pos);
    for (int64_t i = 0; i < d; i++)
        par_eval_element(
            tally, e->out->dtype, pos, head * d + i, w->out[i], par_load_one(e->out->dtype, got, head * d + i),
            w->out_err[i] + mean_error * fabs(w->out[i]) + sums * w->out_abs[i] + final * fabs(w->out[i]) + tiny);
}

static void attention_heads(void *ctx, int thread, int n_threads) {
    struct attention_task *t = ctx;
    const struct par_eval *e = t->ev->e;
    const struct par_spec_config *c = par_spec_config(t->ev->m);
    double *s = t->scratch + thread * t->n_scratch, *q = s;
    struct head_work w = {.p = s + t->q_dim};
    w.e = w.p + t->n_keys;
    w.out = w.e + t->n_keys;
    w.out_abs = w.out + c->head_dim;
    w.out_err = w.out_abs + c->head_dim;
    int64_t n_work = (int64_t)t->ev->n_pos * c->n_head, loaded = -1;
    for (int64_t i = thread; i < n_work; i += n_threads) {
        int pos = e->pos0 + t->ev->pos[i / c->n_head];
        if (pos != loaded)
            par_load_f64(e->in[0]->dtype, par_view_row(e->in[0], pos), q, t->q_dim);
        loaded = pos;
        judge_head(t, &t->ev->tally[thread], &w, pos, (int)(i % c->n_head), q);
    }
}

/* Keys or values 0 .. n_keys - 1 to F64, from a cache view or from the rows as computed. */
static enum fwd_status load_keys(const struct attention_task *t, const struct fwd_view *v, double *dst,
                                 struct fwd_error *err) {
    const struct par_spec_config *c = par_spec_config(t->ev->m);
    bool cache = v && (v->op == FWD_OP_K_CACHE || v->op == FWD_OP_V_CACHE);
    int64_t have = !v ? 0 : cache ? v->ne[2] : v->pos0 == 0 ? v->n_pos : 0;
    FWD_FAIL_IF(!v || !par_float_bytes(v->dtype) || have < t->n_keys, FWD_EINPUT, err,
                "kqv_out: %lld rows of keys or values, expected %d", (long long)have, t->n_keys);
    FWD_FAIL_IF(cache ? v->ne[0] != c->head_dim || v->ne[1] != c->n_kv_head : v->ne[0] != t->kv_dim, FWD_ESHAPE, err,
                "kqv_out: rows of %lld x %lld, expected %d x %d", (long long)v->ne[1], (long long)v->ne[0],
                c->n_kv_head, c->head_dim);
    for (int j = 0; j < t->n_keys; j++) {
        double *row = dst + j * t->kv_dim;
        if (!cache) {
            par_load_f64(v->dtype, par_view_row(v, j), row, t->kv_dim);
            continue;
        }
        for (int h = 0; h < c->n_kv_head; h++)
            par_load_f64(v->dtype, (const uint8_t *)v->data + j * v->nb[2] + h * v->nb[1], row + h * c->head_dim,
                         c->head_dim);
    }
    return FWD_OK;
}

enum fwd_status par_eval_attention(struct eval *ev, struct fwd_error *err) {
    const struct par_eval *e = ev->e;
    const struct par_spec_config *c = par_spec_config(ev->m);
    struct attention_task t = {.ev = ev, .q_dim = (int64_t)c->n_head * c->head_dim};
    t.kv_dim = (int64_t)c->n_kv_head * c->head_dim;
    t.n_keys = e->pos0 + ev->pos[ev->n_pos - 1] + 1;
    FWD_TRY(par_eval_need_float(ev, e->out, t.q_dim, err));
    FWD_TRY(par_eval_need_float(ev, e->in[0], t.q_dim, err));
    t.n_scratch = t.q_dim + 2 * (int64_t)t.n_keys + 3 * c->head_dim;
    t.scratch = fwd_alloc((size_t)ev->n_threads, (size_t)t.n_scratch * sizeof(double));
    t.k = fwd_alloc(2 * (size_t)t.n_keys, (size_t)t.kv_dim * sizeof(double));
    enum fwd_status st = FWD_OK;
    if (!t.scratch || !t.k) {
        st = fwd_fail(err, FWD_ENOMEM, __FILE__, __LINE__, "judge: no memory for %d keys", t.n_keys);
    } else {
        t.v = t.k + t.n_keys * t.kv_dim;
        st = load_keys(&t, e->in[1], t.k, err);
        if (st == FWD_OK)
            st = load_keys(&t, e->in[2], t.v, err);
        if (st == FWD_OK)
            fwd_pool_run(ev->pool, attention_heads, &t);
    }
    fwd_free(t.scratch);
    fwd_free(t.k);
    return st;
}
