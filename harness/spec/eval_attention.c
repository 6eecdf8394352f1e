/* Causal attention over the candidate's own cache rows: softmax(q.k / sqrt(d)) . v, own map of query heads to KV heads.
 *
 * Bound: numerics.md section 2, per key. A weight p_j that is off by a relative d_j moves o by exactly
 * sum p_j d_j (v_j - o) / (1 + sum p_j d_j), and never past the values themselves. d_j comes from the score's error e_j
 * (exp(e_j) - 1) and from the exponential. On top come the two sums over the keys, each as long as its declared order
 * makes it.
 *
 * On tensor cores (FWD_ACC_TENSOR, in 16-bit `operand`s): q is rounded first, exactly as is declared; the scores' sums
 * are off by what spec_tensor.h says; a weight is rounded before it meets a value, by half an ulp of itself and at most
 * 2^-25 of the largest weight so far, 1, where it is no normal number of that format; the sum of weighted values loses
 * in each step at most the cut of what has been added in magnitude. All of it the worst case.
 *
 * In F32 with 16-bit `operand`s: q is rounded first, likewise; a weight by half an ulp of itself, or 2^-25, after it
 * has been divided by the sum of all. */
#include "spec/eval.h"
#include "spec/second_look.h"
#include "spec/spec_tensor.h"

#include <float.h>
#include <math.h>

struct attention_task {
    struct eval *ev;
    int64_t q_dim, kv_dim;
    int n_keys;      /* rows loaded: up to the last judged position */
    double *k, *v;   /* [n_keys][kv_dim] */
    double *scratch; /* [n_threads][n_scratch] */
    int64_t n_scratch;
    bool tensor;
    struct spec_tensor steps; /* of a score, if so */
};

/* One query head at one position. */
struct head_work {
    double *score, *p, *off;       /* [n_keys]: scaled score, probability, and how far that may be off */
    double *out, *out_abs, *moved; /* [head_dim]: sum p v, sum p |v|, how far the p's errors move it */
    double *a, *b;                 /* [n_keys]: the terms of a sum that is added again */
    double weights;                /* sum of exp(score - largest) */
    double *value_abs;             /* [head_dim]: sum |v|; tensor cores only */
    bool overflow;                 /* a score's sum may have overflowed on its way */
};

static int64_t count_segments(const struct fwd_numerics *nm, int n_keys) {
    return nm->key_segment > 0 ? (n_keys + nm->key_segment - 1) / nm->key_segment : 1;
}

/* Additions in the longest chain of the two sums over the keys: of the weights and of the weighted values. */
static void chain_lengths(const struct fwd_numerics *nm, int n_keys, double *weights, double *values) {
    if (nm->accumulator == FWD_ACC_EXACT) {
        *weights = *values = 0;
        return;
    }
    if (nm->key_lanes <= 0) { /* not declared: the worst order, one key after the other */
        *weights = *values = n_keys + (nm->chain_extra > 0 ? nm->chain_extra : 0);
        return;
    }
    struct par_order order = {nm->key_lanes, nm->key_segment}, one = {1, nm->key_segment};
    bool joined = nm->key_segment > 0 && n_keys > nm->key_segment;
    /* A segment is rescaled before it is joined: one rounding more. */
    *weights = par_order_steps(order, n_keys) + joined;
    *values = par_order_steps(one, n_keys) + joined + (nm->fma ? 0 : 1);
}

/* Fills score, p (normalised) and off for the keys of one KV head. */
static void score_keys(const struct attention_task *t, struct head_work *w, const double *q, const double *k,
                       int n_keys) {
    const struct par_eval *e = t->ev->e;
    const struct fwd_numerics *nm = e->numerics;
    int64_t d = par_spec_config(t->ev->m)->head_dim;
    double u = par_unit_of_accumulator(nm->accumulator), scale = 1 / sqrt((double)d), top = -HUGE_VAL;
    double own = 0x1p-53, any = u > own ? u : own; /* the spec's own rounding is there too */
    double g = par_growth(e->bound, par_sum_steps(nm, d), u) + par_growth(e->bound, (double)d, own);
    double limit = u == 0x1p-24 ? (double)FLT_MAX : HUGE_VAL;
    w->overflow = false;
    for (int j = 0; j < n_keys; j++, k += t->kv_dim) {
        double s = 0, a = 0;
        if (t->tensor) {
            struct spec_tensor_sum made = par_tensor_dot(&t->steps, q, k, d);
            s = made.sum;
            a = made.sum_abs;
            w->off[j] = made.off * scale;
        } else {
            for (int64_t i = 0; i < d; i++) {
                s += q[i] * k[i];
                a += fabs(q[i] * k[i]);
            }
            /* The chain, and the roundings of the scale and of the product with it. */
            w->off[j] = (g * a + 2 * (u + own) * fabs(s)) * scale;
        }
        w->score[j] = s * scale;
        w->overflow = w->overflow || !(a < limit);
        if (w->score[j] > top || isnan(w->score[j]))
            top = w->score[j];
    }
    /* Every segment after the first rescales all before it, and itself, by an exponential. */
    double exponentials = 2 * (double)nm->exp_ulp * any * (double)count_segments(nm, n_keys);
    double flushed = u == 0x1p-24 ? (double)FLT_MIN : 0; /* below, an exponential may be 0 */
    /* Tensor cores: the difference of unscaled scores, times a constant that was rounded twice on its way. */
    double n_roundings = t->tensor ? 5 : 1;
    double sum = 0;
    for (int j = 0; j < n_keys; j++) {
        /* The difference that exp is taken of rounds too. */
        double error = w->off[j] + n_roundings * (u + own) * fabs(w->score[j] - top);
        w->p[j] = exp(w->score[j] - top);
        double relative = expm1(error) + exponentials * exp(error);
        /* A weight too small for F64 may still be one for scores that are far off. */
        w->off[j] = w->p[j] > 0 ? w->p[j] * relative : exp(w->score[j] - top + error);
        if (w->p[j] < 4 * flushed)
            w->off[j] += 2 * flushed;
        sum += w->p[j];
    }
    for (int j = 0; j < n_keys; j++) {
        w->p[j] /= sum;
        w->off[j] /= sum;
    }
    w->weights = sum;
}

/* out, out_abs and moved from the weights. */
static void mix_values(const struct attention_task *t, const struct head_work *w, const double *v, int n_keys) {
    int64_t d = par_spec_config(t->ev->m)->head_dim;
    for (int64_t i = 0; i < d; i++)
        w->out[i] = w->out_abs[i] = w->moved[i] = w->a[i] = w->value_abs[i] = 0;
    for (int j = 0; j < n_keys; j++)
        for (int64_t i = 0; i < d; i++) {
            double term = w->p[j] * v[j * t->kv_dim + i];
            w->value_abs[i] += fabs(v[j * t->kv_dim + i]);
            w->out[i] += term;
            w->out_abs[i] += fabs(term);
        }
    double total = 0;
    double *farthest = w->a;
    for (int j = 0; j < n_keys; j++) {
        total += w->off[j];
        for (int64_t i = 0; i < d; i++) {
            double away = fabs(v[j * t->kv_dim + i] - w->out[i]);
            w->moved[i] += w->off[j] * away;
            farthest[i] = farthest[i] > away ? farthest[i] : away;
        }
    }
    for (int64_t i = 0; i < d; i++)
        w->moved[i] = total < 0.5 ? fmin(w->moved[i] / (1 - total), farthest[i]) : farthest[i];
}

/* ---- the second look ----------------------------------------------------------------------------------------------
 */
/* exp(score - top) in the accumulator's type, as accurate as that allows. */
static void exponentials(const struct head_work *w, int begin, int end, double top, bool f32) {
    for (int j = begin; j < end; j++) {
        double x = f32 ? (double)(float)(w->score[j] - top) : w->score[j] - top;
        w->a[j] = f32 ? (double)(float)exp(x) : exp(x);
    }
}

static double round_to(bool f32, double x) {
    return f32 ? (double)(float)x : x;
}

/* Element i of the head with both sums over the keys added again: segment by segment, joined as is declared. */
static double add_keys_again(const struct attention_task *t, const struct head_work *w, const double *v, int64_t i,
                             int n_keys, int lanes, int segment) {
    const struct fwd_numerics *nm = t->ev->e->numerics;
    bool f32 = nm->accumulator == FWD_ACC_F32, declared = nm->key_lanes > 0;
    struct par_order over_weights = {lanes, 0}, over_values = {declared ? 1 : lanes, 0};
    double top = -HUGE_VAL, weights = 0, values = 0;
    int step = segment > 0 ? segment : n_keys;
    for (int begin = 0; begin < n_keys; begin += step) {
        int end = begin + step < n_keys ? begin + step : n_keys;
        double here = -HUGE_VAL;
        for (int j = begin; j < end; j++)
            here = fmax(here, round_to(f32, w->score[j]));
        exponentials(w, begin, end, here, f32);
        for (int j = begin; j < end; j++)
            w->b[j] = v[j * t->kv_dim + i];
        double l = par_add_again(w->a + begin, NULL, end - begin, nm->accumulator, nm->fma, over_weights);
        double o = par_add_again(w->a + begin, w->b + begin, end - begin, nm->accumulator, nm->fma, over_values);
        double both = fmax(top, here);
        double before = begin ? round_to(f32, exp(top - both)) : 0,
               scaled = begin ? round_to(f32, exp(here - both)) : 1;
        weights = round_to(f32, weights * before + round_to(f32, l * scaled));
        values = round_to(f32, values * before + round_to(f32, o * scaled));
        top = both;
    }
    return round_to(f32, values / weights);
}

/* slack: of the bound, the part that the weights' own errors and the final roundings are. */
static bool is_systematic(const struct attention_task *t, const struct head_work *w, const double *v, int64_t i,
                          int n_keys, double slack, double exact, double got, double *expected, double *bound) {
    const struct fwd_numerics *nm = t->ev->e->numerics;
    double again[PAR_MOST_ORDERS], longest_weights, longest;
    struct par_order orders[PAR_MOST_ORDERS], declared = {nm->key_lanes, nm->key_segment};
    bool is_declared;
    chain_lengths(nm, n_keys, &longest_weights, &longest);
    int n = par_orders(declared, longest, n_keys, orders, &is_declared);
    for (int o = 0; o < n; o++)
        again[o] = add_keys_again(t, w, v, i, n_keys, orders[o].lanes, orders[o].segment);
    return par_second_look(again, n, is_declared, nm->store, slack, exact, got, expected, bound);
}

/* ---- a head -------------------------------------------------------------------------------------------------------
 */
/* Section 2.1, rule 1, for the weighted sum of element i. */
static double swallowed_values(const struct attention_task *t, const struct head_work *w, const double *v, int64_t i,
                               int n_keys, double u, double steps) {
    double swallowed = 0, a = w->out_abs[i];
    for (int j = 0; j < n_keys; j++)
        swallowed += par_swallowed(u, a, w->p[j] * v[j * t->kv_dim + i]);
    return fmin(swallowed, steps * u * a);
}

/* The same for the weights, relative: they add up to 1. */
static double swallowed_weights(const struct head_work *w, int n_keys, double u, double steps) {
    double swallowed = 0;
    for (int j = 0; j < n_keys; j++)
        swallowed += par_swallowed(u, 1, w->p[j]);
    return fmin(swallowed, steps * u);
}

/* How much the two sums over the keys may be off: of the weights, relative, and of the weighted values, times
 * sum p |v|. */
struct key_sums {
    double n_weights, n_values, weights, values;
    bool sure_weights, sure_values;
};

static struct key_sums bound_key_sums(const struct attention_task *t, const struct head_work *w, int n_keys, double u) {
    const struct par_eval *e = t->ev->e;
    const struct fwd_numerics *nm = e->numerics;
    struct key_sums s;
    double own_sums = par_growth(e->bound, n_keys, 0x1p-53);
    if (t->tensor) {
        double segments = (double)count_segments(nm, n_keys), lanes = nm->key_lanes > 0 ? nm->key_lanes : 1;
        double n = (nm->key_segment > 0 ? nm->key_segment : n_keys) / lanes + 2 * segments + lanes;
        double steps = ceil(n_keys / (double)nm->chain_block);
        s = (struct key_sums){.sure_weights = true, .sure_values = true};
        s.weights = par_growth(PAR_BOUND_WORST, n, u) + own_sums;
        s.values = (steps * t->steps.cut + segments * u) * (1 + 0x1p-10) + own_sums;
        return s;
    }
    chain_lengths(nm, n_keys, &s.n_weights, &s.n_values);
    s.sure_weights = par_growth_is_sure(e->bound, s.n_weights, u);
    s.sure_values = par_growth_is_sure(e->bound, s.n_values, u);
    s.weights = par_growth(e->bound, s.n_weights, u) + own_sums;
    if (!s.sure_weights)
        s.weights += swallowed_weights(w, n_keys, u, s.n_weights);
    s.values = par_growth(e->bound, s.n_values, u) + own_sums;
    return s;
}

static void judge_head(const struct attention_task *t, struct eval_tally *tally, struct head_work *w, int pos, int head,
                       const double *q) {
    const struct par_eval *e = t->ev->e;
    const struct fwd_numerics *nm = e->numerics;
    const struct par_spec_config *c = par_spec_config(t->ev->m);
    int64_t d = c->head_dim, at = head / (c->n_head / c->n_kv_head) * d;
    const double *v = t->v + at;
    int n_keys = pos + 1;
    double own = 0x1p-53, u = par_unit_of_accumulator(nm->accumulator), any = u > own ? u : own;
    score_keys(t, w, q + head * d, t->k + at, n_keys);
    mix_values(t, w, v, n_keys);
    struct key_sums sums = bound_key_sums(t, w, n_keys, u);
    struct par_bound made = par_bound_make(nm, e->bound, d, d);
    double final = made.final + 2 * (double)nm->div_ulp * any;
    double tiny = (e->out->dtype == FWD_F64 ? 0x1p-1000 : 0x1p-149) * n_keys;
    const uint8_t *got_row = par_view_row(e->out, pos);
    for (int64_t i = 0; i < d; i++) {
        double exact = w->out[i], got = par_load_one(e->out->dtype, got_row, head * d + i), again;
        double slack = w->moved[i] + final * fabs(exact) + tiny;
        if (t->tensor)
            slack += 0x1p-11 * w->out_abs[i] + 0x1p-25 / w->weights * w->value_abs[i];
        else if (nm->operand == FWD_F16)
            slack += 0x1p-11 * w->out_abs[i] + 0x1p-25 * w->value_abs[i];
        double bound = slack + sums.weights * fabs(exact) + sums.values * w->out_abs[i];
        if (w->overflow || !(w->out_abs[i] * w->weights < made.limit))
            bound = HUGE_VAL;
        if (!sums.sure_values && fabs(got - exact) > bound)
            bound += swallowed_values(t, w, v, i, n_keys, u, sums.n_values);
        if (!(sums.sure_weights && sums.sure_values) && par_eval_wants_look(tally, exact, got, bound) &&
            is_systematic(t, w, v, i, n_keys, slack, exact, got, &again, &bound))
            par_eval_systematic(tally, e->out->dtype, pos, head * d + i, again, got, bound);
        else
            par_eval_element(tally, e->out->dtype, pos, head * d + i, exact, got, bound);
    }
}

static void load_query(const struct attention_task *t, int pos, double *q) {
    const struct par_eval *e = t->ev->e;
    par_load_f64(e->in[0]->dtype, par_view_row(e->in[0], pos), q, t->q_dim);
    for (int64_t i = 0; i < t->q_dim && e->numerics->operand != FWD_F32; i++) {
        float x = (float)q[i];
        double scale;
        par_tensor_convert(e->numerics->operand, &x, 1, &q[i], &scale);
    }
}

static void attention_heads(void *ctx, int thread, int n_threads) {
    struct attention_task *t = ctx;
    const struct par_eval *e = t->ev->e;
    const struct par_spec_config *c = par_spec_config(t->ev->m);
    double *s = t->scratch + thread * t->n_scratch, *q = s;
    int64_t room = t->n_keys > c->head_dim ? t->n_keys : c->head_dim;
    struct head_work w = {.score = s + t->q_dim};
    w.p = w.score + t->n_keys;
    w.off = w.p + t->n_keys;
    w.out = w.off + t->n_keys;
    w.out_abs = w.out + c->head_dim;
    w.moved = w.out_abs + c->head_dim;
    w.value_abs = w.moved + c->head_dim;
    w.a = w.value_abs + c->head_dim;
    w.b = w.a + room;
    int64_t n_work = (int64_t)t->ev->n_pos * c->n_head, loaded = -1;
    for (int64_t i = thread; i < n_work; i += n_threads) {
        int pos = e->pos0 + t->ev->pos[i / c->n_head];
        if (pos != loaded)
            load_query(t, pos, q);
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
    t.tensor = e->numerics->accumulator == FWD_ACC_TENSOR;
    FWD_FAIL_IF(t.tensor && (e->numerics->operand != FWD_F16 || !par_tensor_make(e->numerics, c->head_dim, &t.steps)),
                FWD_EUNSUPPORTED, err, "kqv_out: steps of %d products with %d bits of %s have no evaluator",
                e->numerics->chain_block, e->numerics->cut_bits, fwd_dtype_name(e->numerics->operand));
    t.n_scratch = t.q_dim + 5 * (int64_t)t.n_keys + 6 * (int64_t)c->head_dim;
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
