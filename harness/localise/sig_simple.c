/* Ops of one step an element: SwiGLU, residual sums, the embedding. */
#include "localise/sig.h"

#include "spec/bound.h"
#include "spec/eval.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- ffn_swiglu --------------------------------------------------------------------------------------------------
 */
enum kind { GLU_SWAPPED, GLU_GELU, GLU_GELU_TANH, GLU_GELU_QUICK, GLU_LINEAR, GLU_RELU, GLU_SIGMOID, GLU_NO_UP };

static double activate(enum kind kind, double g, double u) {
    static const double root_half = 0.70710678118654752440, root_2_over_pi = 0.79788456080286535588;
    switch (kind) {
    case GLU_SWAPPED:
        return u / (1 + exp(-u)) * g;
    case GLU_GELU:
        return 0.5 * g * (1 + erf(g * root_half)) * u;
    case GLU_GELU_TANH:
        return 0.5 * g * (1 + tanh(root_2_over_pi * (g + 0.044715 * g * g * g))) * u;
    case GLU_GELU_QUICK:
        return g / (1 + exp(-1.702 * g)) * u;
    case GLU_LINEAR:
        return g * u;
    case GLU_RELU:
        return fmax(g, 0) * u;
    case GLU_SIGMOID:
        return u / (1 + exp(-g));
    case GLU_NO_UP:
    default:
        return g / (1 + exp(-g));
    }
}

static void glu_value(const struct sig_case *c, const struct sig_variant *v, const struct sig_element *e, int64_t n,
                      double *alt, double *bound, double *loose) {
    const struct fwd_numerics *nm = &c->item->numerics;
    int64_t width = par_sig_width(c);
    double *gate = par_sig_alloc(c, (size_t)width, 2 * sizeof(double)), *up = gate + width;
    double u = par_unit_of_accumulator(nm->accumulator), store = par_unit_of_store(nm->store);
    double relative = (2 * (double)nm->exp_ulp + 8) * fmax(u, store) + 0x1p-50;
    int slot = -1;
    bool ok = false;
    for (int64_t i = 0; i < n; i++) {
        alt[i] = NAN;
        bound[i] = loose[i] = -1;
        if (gate && e[i].slot != slot) {
            slot = e[i].slot;
            ok = par_sig_input(c, slot, 0, gate, width) && par_sig_input(c, slot, 1, up, width);
        }
        if (!ok)
            continue;
        double g = gate[e[i].row], x = up[e[i].row];
        alt[i] = activate((enum kind)v->kind, g, x);
        bound[i] = relative * fabs(alt[i]) + (fabs(g * x) + 1) * 0x1p-126;
        loose[i] = bound[i];
        /* 1 + erf and 1 + tanh cancel where g is far below 0. */
        if (v->kind == GLU_GELU || v->kind == GLU_GELU_TANH) {
            bound[i] += 4 * fmax(u, 0x1p-53) * fabs(g * x);
            loose[i] = bound[i] + 16 * 0x1p-24 * fabs(g * x);
        }
    }
    fwd_free(gate);
}

static enum sig_more glu_one(struct sig_variant *v, int i, enum kind kind, const char *text) {
    v->kind = (int)kind;
    (void)snprintf(v->text, sizeof v->text, "%s", text);
    return i ? SIG_END : SIG_TRY;
}

static enum sig_more swapped(const struct sig_case *c, int i, struct sig_variant *v) {
    (void)c;
    return glu_one(v, i, GLU_SWAPPED, "silu(up) * gate instead of silu(gate) * up");
}

static enum sig_more gelu(const struct sig_case *c, int i, struct sig_variant *v) {
    (void)c;
    static const char *const names[] = {"gelu (erf)", "gelu (tanh form)", "gelu (x * sigmoid(1.702 x))"};
    if (i > 2)
        return SIG_END;
    v->kind = GLU_GELU + i;
    (void)snprintf(v->text, sizeof v->text, "%s instead of silu", names[i]);
    return SIG_TRY;
}

static enum sig_more linear(const struct sig_case *c, int i, struct sig_variant *v) {
    (void)c;
    static const char *const names[] = {"gate * up without silu", "relu instead of silu", "sigmoid instead of silu"};
    if (i > 2)
        return SIG_END;
    v->kind = GLU_LINEAR + i;
    (void)snprintf(v->text, sizeof v->text, "%s", names[i]);
    return SIG_TRY;
}

static enum sig_more no_up(const struct sig_case *c, int i, struct sig_variant *v) {
    (void)c;
    return glu_one(v, i, GLU_NO_UP, "silu(gate) is not multiplied by up");
}

/* ---- sums --------------------------------------------------------------------------------------------------------
 * a * in0 + b * in1 */
static void sum_value(const struct sig_case *c, const struct sig_variant *v, const struct sig_element *e, int64_t n,
                      double *alt, double *bound, double *loose) {
    int64_t width = par_sig_width(c);
    double *x = par_sig_alloc(c, (size_t)width, 2 * sizeof(double)), *y = x + width;
    double store = par_unit_of_store(c->item->numerics.store);
    int slot = -1;
    bool ok = false;
    for (int64_t i = 0; i < n; i++) {
        alt[i] = NAN;
        bound[i] = loose[i] = -1;
        if (x && e[i].slot != slot) {
            slot = e[i].slot;
            ok = par_sig_input(c, slot, 0, x, width) && par_sig_input(c, slot, 1, y, width);
        }
        if (!ok)
            continue;
        double p = (double)v->a * x[e[i].row], q = (double)v->b * y[e[i].row];
        alt[i] = p + q;
        /* One addition more than the spec's, each of them rounded. */
        bool one_term = v->a == 0 || v->b == 0;
        bound[i] = one_term ? store * fabs(alt[i]) : 2 * store * (fabs(p) + fabs(q)) + 0x1p-149;
        loose[i] = bound[i];
    }
    fwd_free(x);
}

static enum sig_more sum_of(const struct sig_case *c, int a, int b, struct sig_variant *v, const char *what) {
    bool ffn = c->item->op == FWD_OP_L_OUT;
    const char *names[] = {ffn ? "ffn_out" : "attn_out", ffn ? "ffn_inp" : "the residual"};
    v->a = a;
    v->b = b;
    (void)snprintf(v->text, sizeof v->text, what, names[a == 0 || a == 2 ? 0 : 1]);
    return SIG_TRY;
}

static enum sig_more residual_missing(const struct sig_case *c, int i, struct sig_variant *v) {
    if (i == 0)
        return sum_of(c, 1, 0, v, "%s is not added");
    if (i == 1)
        return sum_of(c, 0, 1, v, "%s is not added");
    return SIG_END;
}

static enum sig_more residual_twice(const struct sig_case *c, int i, struct sig_variant *v) {
    if (i == 0)
        return sum_of(c, 1, 2, v, "%s is added twice");
    if (i == 1)
        return sum_of(c, 2, 1, v, "%s is added twice");
    return SIG_END;
}

static enum sig_more residual_sign(const struct sig_case *c, int i, struct sig_variant *v) {
    if (i == 0)
        return sum_of(c, 1, -1, v, "%s is subtracted");
    if (i == 1)
        return sum_of(c, -1, 1, v, "%s is subtracted from the other");
    return SIG_END;
}

const struct signature par_sig_simple[] = {
    {"gate-up-swapped", SIG_SWIGLU, 0, swapped, glu_value, NULL},
    {"gelu-for-silu", SIG_SWIGLU, 0, gelu, glu_value, NULL},
    {"silu-missing", SIG_SWIGLU, 0, linear, glu_value, NULL},
    {"up-missing", SIG_SWIGLU, 0, no_up, glu_value, NULL},
    {"residual-missing", SIG_SUMS, 0, residual_missing, sum_value, NULL},
    {"residual-twice", SIG_SUMS, 0, residual_twice, sum_value, NULL},
    {"residual-sign", SIG_SUMS, 0, residual_sign, sum_value, NULL},
    {NULL, 0, 0, NULL, NULL, NULL},
};
