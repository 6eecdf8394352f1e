/* RMSNorm gone wrong: another epsilon, another weight, another kind of norm, part of the row left out. */
#include "localise/sig.h"

#include "spec/bound.h"
#include "spec/spec_decode.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum kind {
    NORM_EPS,         /* f inside the root */
    NORM_EPS_OUTSIDE, /* f added to the root */
    NORM_EPS_SUM,     /* added to the sum before it is divided */
    NORM_NO_WEIGHT,
    NORM_PLUS_ONE, /* weight + 1 */
    NORM_WEIGHT,   /* of p */
    NORM_MEAN,     /* a = 0: LayerNorm; 1: mean taken off, scale of the spec */
    NORM_TAIL,     /* sum over the first a values; b: divided by a, else by n */
    NORM_NO_SCALE, /* x * w */
    NORM_COUNT     /* divided by a instead of n */
};

struct work {
    double *x;
    float *weight;
    int64_t n;
    int slot;
    bool ok;
    double mean, sum, scale;
};

static void measure(const struct sig_case *c, const struct sig_variant *v, struct work *w) {
    double n = (double)w->n, eps = c->config->norm_eps;
    int64_t until = v->kind == NORM_TAIL ? v->a : w->n;
    w->sum = w->mean = 0;
    for (int64_t k = 0; k < w->n; k++)
        w->mean += w->x[k] / n;
    for (int64_t k = 0; k < until; k++) {
        double x = w->x[k] - (v->kind == NORM_MEAN && v->a == 0 ? w->mean : 0);
        w->sum += x * x;
    }
    double by = (v->kind == NORM_TAIL && v->b) || v->kind == NORM_COUNT ? (double)v->a : n;
    w->scale = v->kind == NORM_EPS           ? 1 / sqrt(w->sum / by + v->f)
               : v->kind == NORM_EPS_OUTSIDE ? 1 / (sqrt(w->sum / by) + v->f)
               : v->kind == NORM_EPS_SUM     ? 1 / sqrt((w->sum + v->f) / by)
               : v->kind == NORM_NO_SCALE    ? 1
                                             : 1 / sqrt(w->sum / by + eps);
}

static bool load_weight(const struct sig_case *c, const struct sig_variant *v, struct work *w) {
    const struct spec_weight *own = par_spec_weight(c->m, c->item->op, c->item->layer);
    const struct spec_weight *from = v->kind == NORM_WEIGHT ? v->product.w : own;
    w->n = own->n_cols;
    w->x = par_sig_alloc(c, (size_t)w->n, sizeof(double) + sizeof(float));
    if (!w->x)
        return false;
    w->weight = (float *)(void *)(w->x + w->n);
    par_decode_row(from->type, from->data, w->weight, w->n);
    for (int64_t k = 0; k < w->n; k++)
        w->weight[k] = v->kind == NORM_NO_WEIGHT ? 1 : v->kind == NORM_PLUS_ONE ? w->weight[k] + 1 : w->weight[k];
    return true;
}

static void norm_value(const struct sig_case *c, const struct sig_variant *v, const struct sig_element *e, int64_t n,
                       double *alt, double *bound, double *loose) {
    struct work w = {.slot = -1};
    bool ready = load_weight(c, v, &w);
    const struct fwd_numerics *nm = &c->item->numerics;
    struct par_bound b = par_bound_make(nm, c->calls[0].e.bound, w.n, w.n);
    double u = par_unit_of_accumulator(nm->accumulator), store = par_unit_of_store(nm->store);
    double relative = b.g / 2 + b.final + 2 * ((double)nm->sqrt_ulp + (double)nm->div_ulp + 1) * fmax(u, store);
    for (int64_t i = 0; i < n; i++) {
        alt[i] = NAN;
        bound[i] = loose[i] = -1;
        if (ready && e[i].slot != w.slot) {
            w.ok = par_sig_input(c, e[i].slot, 0, w.x, w.n);
            w.slot = e[i].slot;
            measure(c, v, &w);
        }
        if (!ready || !w.ok)
            continue;
        double x = w.x[e[i].row] - (v->kind == NORM_MEAN ? w.mean : 0);
        alt[i] = x * w.scale * (double)w.weight[e[i].row];
        /* The spec's own error of this row, which knows of swallowed terms. */
        double own = e[i].expected != 0 ? e[i].bound / fabs(e[i].expected) : 0;
        bound[i] = fmax(relative, own) * fabs(alt[i]) + b.tiny * (1 + fabs((double)w.weight[e[i].row]));
        if (v->kind == NORM_MEAN) /* the mean rounds like any sum */
            bound[i] += (b.g + 4 * u) * (fabs(w.mean) + fabs(x)) * w.scale * fabs((double)w.weight[e[i].row]);
        loose[i] = bound[i] + (par_gamma((double)w.n, 0x1p-24) + 8 * 0x1p-24) * fabs(alt[i]);
    }
    fwd_free(w.x);
}

/* ---- variants ----------------------------------------------------------------------------------------------------
 */
static const double epsilons[] = {1e-5, 1e-6, 1e-12, 1e-8, 1e-7, 1e-4, 1e-3, 0, 1e-9, 1e-10, 0.01, 0.1, 1};
enum { N_EPS = sizeof epsilons / sizeof *epsilons };

static enum sig_more eps_other(const struct sig_case *c, int i, struct sig_variant *v) {
    double own = c->config->norm_eps;
    if (i < N_EPS + 4) {
        static const double times[] = {10, 0.1, 2, 100};
        v->kind = NORM_EPS;
        v->f = i < N_EPS ? epsilons[i] : own * times[i - N_EPS];
        (void)snprintf(v->text, sizeof v->text, "epsilon %g instead of %g", v->f, own);
        return fabs(v->f - own) <= 1e-3 * own ? SIG_SKIP : SIG_TRY;
    }
    i -= N_EPS + 4;
    if (i > 1)
        return SIG_END;
    v->kind = i ? NORM_EPS_SUM : NORM_EPS_OUTSIDE;
    v->f = own;
    (void)snprintf(v->text, sizeof v->text, "epsilon is added %s",
                   i ? "to the sum of squares before it is divided" : "to the root instead of inside it");
    return SIG_TRY;
}

static enum sig_more no_weight(const struct sig_case *c, int i, struct sig_variant *v) {
    (void)c;
    v->kind = NORM_NO_WEIGHT;
    (void)snprintf(v->text, sizeof v->text, "the norm is not multiplied by its weight");
    return i ? SIG_END : SIG_TRY;
}

static enum sig_more plus_one(const struct sig_case *c, int i, struct sig_variant *v) {
    (void)c;
    v->kind = NORM_PLUS_ONE;
    (void)snprintf(v->text, sizeof v->text, "multiplied by 1 + weight");
    return i ? SIG_END : SIG_TRY;
}

/* The nearest layers first, the other norm of each, and the last one of the model. */
static enum sig_more other_weight(const struct sig_case *c, int i, struct sig_variant *v) {
    static const enum fwd_op ops[] = {FWD_OP_ATTN_NORM, FWD_OP_FFN_NORM};
    int n_layer = c->config->n_layer, own = c->item->layer < 0 ? n_layer - 1 : c->item->layer;
    if (i > 4 * n_layer)
        return SIG_END;
    v->kind = NORM_WEIGHT;
    enum fwd_op op = i == 4 * n_layer ? FWD_OP_RESULT_NORM : ops[i % 2];
    int away = i / 2, layer = i == 4 * n_layer ? -1 : own + (away % 2 ? (away + 1) / 2 : -(away / 2));
    if ((op == c->item->op && layer == c->item->layer) || (layer < 0 && op != FWD_OP_RESULT_NORM) || layer >= n_layer)
        return SIG_SKIP;
    v->product.w = par_spec_weight(c->m, op, layer);
    if (layer < 0)
        (void)snprintf(v->text, sizeof v->text, "multiplied by the weight of result_norm");
    else
        (void)snprintf(v->text, sizeof v->text, "multiplied by the weight of %s of layer %d", fwd_op_name(op), layer);
    return SIG_TRY;
}

static enum sig_more mean(const struct sig_case *c, int i, struct sig_variant *v) {
    (void)c;
    v->kind = NORM_MEAN;
    v->a = i;
    (void)snprintf(v->text, sizeof v->text, "the mean is taken off the row first%s",
                   i ? ", and the scale is still that of the row with it" : ": a layer norm");
    return i > 1 ? SIG_END : SIG_TRY;
}

static const int64_t tails[] = {1, 2, 3, 4, 5, 6, 7, 8, 15, 16, 24, 31, 32, 48, 64, 128, 192, 256, 512};
enum { N_TAILS = sizeof tails / sizeof *tails };

static enum sig_more tail(const struct sig_case *c, int i, struct sig_variant *v) {
    int64_t n = c->config->n_embd;
    if (i >= 2 * N_TAILS)
        return SIG_END;
    v->kind = NORM_TAIL;
    v->a = n - tails[i / 2];
    v->b = i % 2;
    (void)snprintf(v->text, sizeof v->text, "the last %lld of %lld values are left out of the sum of squares",
                   (long long)tails[i / 2], (long long)n);
    return v->a <= 0 ? SIG_SKIP : SIG_TRY;
}

static enum sig_more scale(const struct sig_case *c, int i, struct sig_variant *v) {
    int64_t n = c->config->n_embd;
    static const char *const texts[] = {"the row is not divided by its root mean square",
                                        "the sum of squares is not divided by its length",
                                        "the sum of squares is divided by length - 1"};
    if (i > 2)
        return SIG_END;
    v->kind = i ? NORM_COUNT : NORM_NO_SCALE;
    v->a = i == 1 ? 1 : n - 1;
    (void)snprintf(v->text, sizeof v->text, "%s", texts[i]);
    return SIG_TRY;
}

const struct signature par_sig_norm[] = {
    {"eps-other", SIG_NORMS, 0, eps_other, norm_value, NULL},
    {"norm-weight-missing", SIG_NORMS, 0, no_weight, norm_value, NULL},
    {"norm-weight-plus-one", SIG_NORMS, 0, plus_one, norm_value, NULL},
    {"norm-weight-other-layer", SIG_NORMS, 0, other_weight, norm_value, NULL},
    {"norm-mean-subtracted", SIG_NORMS, 0, mean, norm_value, NULL},
    {"k-tail-skipped", SIG_NORMS, 0, tail, norm_value, NULL},
    {"norm-not-divided", SIG_NORMS, 0, scale, norm_value, NULL},
    {NULL, 0, 0, NULL, NULL, NULL},
};
