/* RoPE: pair i of each head turned by pos * theta^(-2i/d) (over the frequency factor where the model has them). */
#include "spec/eval.h"

#include <math.h>
#include <string.h>

struct rope_task {
    struct eval *ev;
    int64_t n;
    double *scratch;   /* [n_threads][n] */
    double *frequency; /* [n_rope / 2] */
    double *error;     /* [n_rope / 2]: of angle / pos */
};

static void fill_frequencies(struct rope_task *t) {
    const struct par_spec_config *c = par_spec_config(t->ev->m);
    const struct spec_weight *factors = &t->ev->m->rope_factors;
    const struct fwd_numerics *nm = t->ev->e->numerics;
    double ua = par_unit_of_accumulator(nm->angle);
    if (ua < 0x1p-53)
        ua = 0x1p-53;
    bool exact_step = (double)(float)(2.0 / c->n_rope) == 2.0 / c->n_rope;
    for (int i = 0; i < c->n_rope / 2; i++) {
        double exponent = 2.0 * i / c->n_rope, f = pow(c->rope_theta, -exponent), factor = 1;
        if (factors->data) {
            float stored;
            memcpy(&stored, factors->data + 4 * (size_t)i, sizeof stored);
            factor = (double)stored;
        }
        t->frequency[i] = f / factor;
        /* pos * freq rounds, pow is within its ulps, and an exponent that has no exact form is off by u of itself. */
        bool exact = (double)(float)exponent == exponent;
        double relative = (1 + 2 * (double)nm->pow_ulp) * ua + (exact ? 0 : log(c->rope_theta) * exponent * ua);
        /* i products, of a factor that is as far off as its one pow and that one's exponent are. */
        if (nm->repeated_angle)
            relative = i * (1 + 2 * (double)nm->pow_ulp + (exact_step ? 0 : log(c->rope_theta) * 2 / c->n_rope)) * ua;
        if (factors->data)
            relative += ua;
        /* The spec's own pow and product. */
        relative += (3 + log(c->rope_theta) * exponent) * 0x1p-53;
        t->error[i] = fabs(t->frequency[i]) * relative;
    }
}

static void rope_row(struct rope_task *t, struct eval_tally *tally, int pos, double *x) {
    const struct par_eval *e = t->ev->e;
    const struct par_spec_config *c = par_spec_config(t->ev->m);
    const struct fwd_numerics *nm = e->numerics;
    const uint8_t *got = par_view_row(e->out, pos);
    enum fwd_dtype type = e->out->dtype;
    double u = par_unit_of_accumulator(nm->accumulator), store = par_unit_of_store(nm->store);
    /* Section 2: (3 + 2 sincos ulp) u of the terms. */
    double relative = (3 + 2 * (double)nm->sincos_ulp) * u + (store > u ? store : 0) + 0x1p-51;
    double tiny = type == FWD_F64 ? 0x1p-1000 : 4 * 0x1p-149;
    int half = c->n_rope / 2;
    par_load_f64(e->in[0]->dtype, par_view_row(e->in[0], pos), x, t->n);
    for (int64_t head = 0; head < t->n; head += c->head_dim) {
        for (int i = 0; i < half; i++) {
            int64_t a = head + (c->rope_neox ? i : 2 * i), b = head + (c->rope_neox ? i + half : 2 * i + 1);
            double angle = pos * t->frequency[i], cosine = cos(angle), sine = sin(angle);
            double off = pos * t->error[i] * hypot(x[a], x[b]);
            double xc = x[a] * cosine, ys = x[b] * sine, xs = x[a] * sine, yc = x[b] * cosine;
            par_eval_element(tally, type, pos, a, xc - ys, par_load_one(type, got, a),
                             off + relative * (fabs(xc) + fabs(ys)) + tiny);
            par_eval_element(tally, type, pos, b, xs + yc, par_load_one(type, got, b),
                             off + relative * (fabs(xs) + fabs(yc)) + tiny);
        }
        for (int64_t k = head + c->n_rope; k < head + c->head_dim; k++)
            par_eval_element(tally, type, pos, k, x[k], par_load_one(type, got, k), 0);
    }
}

static void rope_rows(void *ctx, int thread, int n_threads) {
    struct rope_task *t = ctx;
    for (int i = thread; i < t->ev->n_pos; i += n_threads)
        rope_row(t, &t->ev->tally[thread], t->ev->e->pos0 + t->ev->pos[i], t->scratch + thread * t->n);
}

enum fwd_status par_eval_rope(struct eval *ev, struct fwd_error *err) {
    const struct par_eval *e = ev->e;
    const struct par_spec_config *c = par_spec_config(ev->m);
    int heads = e->op == FWD_OP_QCUR_ROPE ? c->n_head : c->n_kv_head;
    struct rope_task t = {.ev = ev, .n = (int64_t)heads * c->head_dim};
    FWD_TRY(par_eval_need_float(ev, e->out, t.n, err));
    FWD_TRY(par_eval_need_float(ev, e->in[0], t.n, err));
    size_t half = (size_t)c->n_rope / 2;
    t.scratch = fwd_alloc((size_t)ev->n_threads, (size_t)t.n * sizeof(double));
    t.frequency = fwd_alloc(2 * half, sizeof(double));
    enum fwd_status st = FWD_OK;
    if (!t.scratch || !t.frequency) {
        st = fwd_fail(err, FWD_ENOMEM, __FILE__, __LINE__, "judge: no memory for rows of %lld values", (long long)t.n);
    } else {
        t.error = t.frequency + half;
        fill_frequencies(&t);
        fwd_pool_run(ev->pool, rope_rows, &t);
    }
    fwd_free(t.scratch);
    fwd_free(t.frequency);
    return st;
}
