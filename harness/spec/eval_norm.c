/* RMSNorm: x * w / sqrt(mean(x^2) + eps), eps from the harness's own reading of the file. */
#include "spec/eval.h"

#include "spec/second_look.h"
#include "spec/spec_decode.h"

#include <math.h>

struct norm_task {
    struct eval *ev;
    int64_t n;
    double *scratch; /* [n_threads][n] */
    float *weight;   /* [n] */
    struct par_bound bound;
    double smallest; /* number of the type that the scale has */
};

/* Relative error of the sum of squares a: the chain (all terms have one sign) and what is swallowed (section 2.1). */
static double sum_error(const struct norm_task *t, const double *x, double a) {
    double swallowed = 0, u = t->bound.u;
    if (!(a < t->bound.limit))
        return HUGE_VAL;
    for (int64_t k = 0; k < t->n && !t->bound.sure; k++)
        swallowed += par_swallowed(u, a, x[k] * x[k]);
    double most = t->bound.n * u * a;
    if (swallowed > most)
        swallowed = most;
    return t->bound.g + (a > 0 ? swallowed / a : 0);
}

static double scale_of(const struct norm_task *t, double sum) {
    return 1 / sqrt(sum / (double)t->n + par_spec_config(t->ev->m)->norm_eps);
}

/* The second look at a row: its scale from the squares added again. All its elements share it. */
struct row_look {
    bool taken, is_declared;
    int n;
    double scale[PAR_MOST_ORDERS];
};

static void look_at_row(const struct norm_task *t, const double *x, struct row_look *look) {
    const struct fwd_numerics *nm = t->ev->e->numerics;
    struct par_order orders[PAR_MOST_ORDERS], declared = {nm->lanes, nm->segment};
    look->n = par_orders(declared, par_chain_steps(nm, t->n), t->n, orders, &look->is_declared);
    for (int i = 0; i < look->n; i++)
        look->scale[i] = scale_of(t, par_add_again(x, x, t->n, nm->accumulator, nm->fma, orders[i]));
    look->taken = true;
}

static bool is_systematic(const struct norm_task *t, struct row_look *look, const double *x, int64_t k, double exact,
                          double got, double *expected, double *bound) {
    double again[PAR_MOST_ORDERS];
    if (!look->taken)
        look_at_row(t, x, look);
    for (int i = 0; i < look->n; i++)
        again[i] = x[k] * look->scale[i] * (double)t->weight[k];
    return par_second_look(again, look->n, look->is_declared, t->ev->e->out->dtype, t->bound.final * fabs(exact), exact,
                           got, expected, bound);
}

static void norm_row(struct norm_task *t, struct eval_tally *tally, int pos, double *x) {
    const struct par_eval *e = t->ev->e;
    const struct fwd_numerics *nm = e->numerics;
    struct row_look look = {0};
    par_load_f64(e->in[0]->dtype, par_view_row(e->in[0], pos), x, t->n);
    double a = 0;
    for (int64_t k = 0; k < t->n; k++)
        a += x[k] * x[k];
    double scale = scale_of(t, a);
    double u = par_unit_of_accumulator(nm->accumulator), store = par_unit_of_store(nm->store);
    double coarse = u > store ? u : store;
    /* An ulp of sqrt or of the division is up to 2u. */
    double relative =
        sum_error(t, x, a) / 2 + t->bound.final + 2 * ((double)nm->sqrt_ulp + (double)nm->div_ulp) * coarse;
    const uint8_t *got_row = par_view_row(e->out, pos);
    for (int64_t k = 0; k < t->n; k++) {
        double w = (double)t->weight[k], y = x[k] * scale * w, got = par_load_one(e->out->dtype, got_row, k);
        /* The scale of a very large row underflows before the product with it is taken. */
        double bound = relative * fabs(y) + (1 + fabs(w)) * t->bound.tiny + fabs(x[k] * w) * t->smallest, again;
        if (!t->bound.sure && par_eval_is_outside(tally, y, got, bound) && (look.taken || par_eval_take_look(tally)) &&
            is_systematic(t, &look, x, k, y, got, &again, &bound))
            par_eval_systematic(tally, e->out->dtype, pos, k, again, got, bound);
        else
            par_eval_element(tally, e->out->dtype, pos, k, y, got, bound);
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
    t.bound = par_bound_make(e->numerics, e->bound, t.n, t.n);
    t.smallest = e->numerics->store == FWD_F64 ? 0x1p-1074 : 0x1p-149;
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
