/* RMSNorm: x * w / sqrt(mean(x^2) + eps), eps from the harness's own reading of the file. */
#include "spec/eval.h"

#include "spec/spec_decode.h"

#include <math.h>

struct norm_task {
    struct eval *ev;
    int64_t n;
    double *scratch; /* [n_threads][n] */
    float *weight;   /* [n] */
    struct par_bound bound;
};

/* Relative error of the sum of squares a = sum: the chain (all terms have one sign), the squares' own rounding, and
 * what is swallowed (section 2.1). */
static double sum_error(const struct norm_task *t, const double *x, double a, bool fma) {
    double swallowed = 0, u = t->bound.u;
    for (int64_t k = 0; k < t->n; k++)
        swallowed += par_swallowed(u, a, x[k] * x[k]);
    double most = t->bound.n * u * a;
    if (swallowed > most)
        swallowed = most;
    return t->bound.g + (fma ? 0 : u) + (a > 0 ? swallowed / a : 0);
}

static void norm_row(struct norm_task *t, struct eval_tally *tally, int pos, double *x) {
    const struct par_eval *e = t->ev->e;
    const struct fwd_numerics *nm = e->numerics;
    par_load_f64(e->in[0]->dtype, par_view_row(e->in[0], pos), x, t->n);
    double a = 0;
    for (int64_t k = 0; k < t->n; k++)
        a += x[k] * x[k];
    double scale = 1 / sqrt(a / (double)t->n + par_spec_config(t->ev->m)->norm_eps);
    double u = par_unit_of_accumulator(nm->accumulator), store = par_unit_of_store(nm->store);
    double coarse = u > store ? u : store;
    /* An ulp of sqrt or of the division is up to 2u. */
    double relative =
        sum_error(t, x, a, nm->fma) / 2 + t->bound.final + 2 * ((double)nm->sqrt_ulp + (double)nm->div_ulp) * coarse;
    const uint8_t *got = par_view_row(e->out, pos);
    for (int64_t k = 0; k < t->n; k++) {
        double y = x[k] * scale * (double)t->weight[k];
        par_eval_element(tally, e->out->dtype, pos, k, y, par_load_one(e->out->dtype, got, k),
                         relative * fabs(y) + (1 + fabs((double)t->weight[k])) * t->bound.tiny);
    }
}

static void norm_rows(void *ctx, int thread, int n_threads) {
    struct norm_task *t = ctx;
    for (int i = thread; i < t->ev->n_pos; i += n_threads)
        norm_row(t, &t->ev->tally[thread], t->ev->e->pos0 + t->ev->pos[i], t->scratch + thread * t->n);
}

enum fwd_status par_eval_norm(struct eval *ev, struct fwd_error *err) {
    const struct par_eval *e = ev->e;
    const struct spec_weight *w = par_spec_weight(ev->m, e->op, e->layer);
    struct norm_task t = {.ev = ev, .n = w->n_cols};
    FWD_TRY(par_eval_need_float(ev, e->out, t.n, err));
    FWD_TRY(par_eval_need_float(ev, e->in[0], t.n, err));
    t.bound = par_bound_make(e->numerics, t.n, t.n);
    t.scratch = fwd_alloc((size_t)ev->n_threads, (size_t)t.n * sizeof(double));
    t.weight = fwd_alloc((size_t)t.n, sizeof(float));
    enum fwd_status st = FWD_OK;
    if (!t.scratch || !t.weight) {
        st = fwd_fail(err, FWD_ENOMEM, __FILE__, __LINE__, "judge: no memory for rows of %lld values", (long long)t.n);
    } else {
        par_decode_row(w->type, w->data, t.weight, t.n);
        fwd_pool_run(ev->pool, norm_rows, &t);
    }
    fwd_free(t.scratch);
    fwd_free(t.weight);
    return st;
}
