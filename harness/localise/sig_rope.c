/* Rotations that went wrong: pairs, base, position, direction, and what was rotated. */
#include "localise/sig.h"

#include "spec/bound.h"
#include "spec/spec_decode.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum kind {
    TURN_NONE,
    TURN_PAIRS,    /* the other pairing */
    TURN_SHIFT,    /* as for position + a */
    TURN_FIXED,    /* as for position a */
    TURN_TIMES,    /* by a times the angle */
    TURN_BASE,     /* base f */
    TURN_EXPONENT, /* exponents f times as large */
    TURN_PLAIN,    /* without the frequency factors */
    BIAS_AFTER,    /* the bias is added after the rotation */
    BIAS_BEFORE    /* the rotation is of the value with its bias added */
};

/* A rotation: the angle of pair i at a position is at * frequency(i). */
struct turn {
    bool neox, factors, none;
    double theta, at;
    double exponent_times; /* 1: as the spec has it */
    int n_rope;
};

static struct turn spec_turn(const struct sig_case *c, int pos) {
    const struct par_spec_config *g = c->config;
    return (struct turn){.neox = g->rope_neox,
                         .factors = c->m->rope_factors.data != NULL,
                         .theta = g->rope_theta,
                         .at = pos,
                         .exponent_times = 1,
                         .n_rope = g->n_rope};
}

static double frequency(const struct sig_case *c, const struct turn *t, int i) {
    double f = pow(t->theta, -2.0 * i * t->exponent_times / t->n_rope);
    float factor = 1;
    if (t->factors && c->m->rope_factors.data)
        memcpy(&factor, c->m->rope_factors.data + 4 * (size_t)i, sizeof factor);
    return f / (double)factor;
}

/* Relative error of an angle: as the spec's evaluator has it. */
static double angle_error(const struct sig_case *c, const struct turn *t, int i) {
    double u = par_unit_of_accumulator(c->item->numerics.angle);
    u = u < 0x1p-53 ? 0x1p-53 : u;
    double exponent = 2.0 * i / t->n_rope;
    return (3 + 2 * (double)c->item->numerics.pow_ulp + log(t->theta) * exponent) * u;
}

/* Element k of a head x turned by t, and how far rounding may take it. */
static double turned(const struct sig_case *c, const struct turn *t, const double *x, int k, double *bound) {
    const struct fwd_numerics *nm = &c->item->numerics;
    double tiny = 4 * 0x1p-149;
    if (k >= t->n_rope || t->none) {
        *bound = 0;
        return x[k];
    }
    int half = t->n_rope / 2, i = t->neox ? k % half : k / 2;
    bool second = t->neox ? k >= half : k % 2 == 1;
    double a = t->neox ? x[i] : x[2 * i], b = t->neox ? x[i + half] : x[2 * i + 1];
    double angle = t->at * frequency(c, t, i), u = par_unit_of_accumulator(nm->accumulator);
    double store = par_unit_of_store(nm->store), cosine = cos(angle), sine = sin(angle);
    double p = second ? a * sine : a * cosine, q = second ? b * cosine : -b * sine;
    *bound = fabs(angle) * angle_error(c, t, i) * hypot(a, b) +
             ((3 + 2 * (double)nm->sincos_ulp) * u + (store > u ? store : 0) + 0x1p-51) * (fabs(p) + fabs(q)) + tiny;
    return p + q;
}

static void apply(const struct sig_variant *v, struct turn *t) {
    t->none = v->kind == TURN_NONE;
    t->neox ^= v->kind == TURN_PAIRS;
    t->theta = v->kind == TURN_BASE ? v->f : t->theta;
    t->exponent_times = v->kind == TURN_EXPONENT ? v->f : 1;
    t->factors = t->factors && v->kind != TURN_PLAIN;
    t->at = v->kind == TURN_SHIFT   ? t->at + (double)v->a
            : v->kind == TURN_FIXED ? (double)v->a
            : v->kind == TURN_TIMES ? t->at * (double)v->a
                                    : t->at;
}

static enum fwd_op matmul_of(enum fwd_op rope) {
    return rope == FWD_OP_QCUR_ROPE ? FWD_OP_QCUR : FWD_OP_KCUR;
}

/* The bias of the op before, for one head; false: it has none. */
static bool load_bias(const struct sig_case *c, int64_t at, double *dst) {
    const struct spec_weight *w = par_spec_bias(c->m, matmul_of(c->item->op), c->item->layer);
    if (!w || !w->data)
        return false;
    for (int i = 0; i < c->config->head_dim; i++) {
        float x;
        memcpy(&x, w->data + 4 * (size_t)(at + i), sizeof x);
        dst[i] = (double)x;
    }
    return true;
}

struct work {
    double *row, *bias, *x;
    int slot;
    bool ok;
};

static void one_value(const struct sig_case *c, const struct sig_variant *v, const struct work *w,
                      const struct sig_element *e, double *alt, double *bound) {
    int64_t d = c->config->head_dim, at = e->row / d * d;
    int k = (int)(e->row - at);
    struct turn t = spec_turn(c, par_sig_pos(c, e));
    bool biased = v->kind == BIAS_AFTER || v->kind == BIAS_BEFORE;
    if (biased && !load_bias(c, at, w->bias))
        return;
    apply(v, &t);
    for (int64_t i = 0; i < d; i++)
        w->x[i] = w->row[at + i] + (v->kind == BIAS_AFTER ? -w->bias[i] : v->kind == BIAS_BEFORE ? w->bias[i] : 0);
    *alt = turned(c, &t, w->x, k, bound);
    if (v->kind == BIAS_AFTER)
        *alt += w->bias[k];
    if (biased) /* the bias is taken off a rounded sum */
        *bound += 0x1p-22 * (fabs(w->row[at + k]) + fabs(w->bias[k]) + fabs(*alt));
    if (t.none)
        *bound = fabs(*alt) * par_unit_of_store(c->item->numerics.store);
}

static void rope_value(const struct sig_case *c, const struct sig_variant *v, const struct sig_element *e, int64_t n,
                       double *alt, double *bound, double *loose) {
    int64_t width = par_sig_width(c), d = c->config->head_dim;
    struct work w = {.slot = -1, .row = par_sig_alloc(c, (size_t)(width + 2 * d), sizeof(double))};
    w.bias = w.row + width;
    w.x = w.bias + d;
    for (int64_t i = 0; i < n; i++) {
        alt[i] = NAN;
        bound[i] = loose[i] = -1;
        if (w.row && e[i].slot != w.slot) {
            w.ok = par_sig_input(c, e[i].slot, 0, w.row, width);
            w.slot = e[i].slot;
        }
        if (!w.row || !w.ok)
            continue;
        one_value(c, v, &w, &e[i], &alt[i], &bound[i]);
        loose[i] = bound[i];
        /* A rotation that is not the declared one may have its angles in F32. */
        double angle = fabs((double)par_sig_pos(c, &e[i])) + 16;
        if (bound[i] > 0)
            loose[i] += angle * 0x1p-22 * fabs(e[i].got) + angle * 0x1p-22 * fabs(e[i].expected);
    }
    fwd_free(w.row);
}

/* ---- variants ----------------------------------------------------------------------------------------------------
 */
static enum sig_more say(struct sig_variant *v, const char *text) {
    (void)snprintf(v->text, sizeof v->text, "%s", text);
    return SIG_TRY;
}

static enum sig_more missing(const struct sig_case *c, int i, struct sig_variant *v) {
    (void)c;
    v->kind = TURN_NONE;
    return i ? SIG_END : say(v, "the rotation is not applied: the output is the input");
}

static enum sig_more pairing(const struct sig_case *c, int i, struct sig_variant *v) {
    v->kind = TURN_PAIRS;
    return i ? SIG_END
             : say(v, c->config->rope_neox ? "rotates neighbours (2i, 2i + 1) where the model pairs (i, i + d/2)"
                                           : "rotates (i, i + d/2) where the model pairs neighbours (2i, 2i + 1)");
}

static enum sig_more sign(const struct sig_case *c, int i, struct sig_variant *v) {
    (void)c;
    v->kind = TURN_TIMES;
    v->a = -1;
    return i ? SIG_END : say(v, "rotates the other way round");
}

static enum sig_more twice(const struct sig_case *c, int i, struct sig_variant *v) {
    (void)c;
    v->kind = TURN_TIMES;
    v->a = i + 2;
    (void)snprintf(v->text, sizeof v->text, "rotated %s", i ? "three times" : "twice");
    return i > 1 ? SIG_END : SIG_TRY;
}

static const double bases[] = {10000,  500000,  1000000, 100000,   50000, 20000, 1000,  100,    40000,
                               150000, 8000000, 5000000, 10000000, 1e8,   32000, 26000, 160000, 1e9};

static enum sig_more base(const struct sig_case *c, int i, struct sig_variant *v) {
    int n = sizeof bases / sizeof *bases;
    static const double times[] = {0.5, 2};
    static const char *const texts[] = {"frequencies theta^(-i/d) instead of theta^(-2i/d)",
                                        "frequencies theta^(-4i/d) instead of theta^(-2i/d)"};
    if (i < n) {
        v->kind = TURN_BASE;
        v->f = bases[i];
        (void)snprintf(v->text, sizeof v->text, "base %g instead of %g", bases[i], c->config->rope_theta);
        return bases[i] == c->config->rope_theta ? SIG_SKIP : SIG_TRY;
    }
    if (i < n + 2) {
        v->kind = TURN_EXPONENT;
        v->f = times[i - n];
        return say(v, texts[i - n]);
    }
    if (i < n + 6) {
        static const double factors[] = {0.5, 2, 4, 10};
        v->kind = TURN_BASE;
        v->f = c->config->rope_theta * factors[i - n - 2];
        (void)snprintf(v->text, sizeof v->text, "base %g instead of %g", v->f, c->config->rope_theta);
        return SIG_TRY;
    }
    return SIG_END;
}

/* Position + a for a in -8 .. 8 and the length of the prompt; then fixed positions. */
static enum sig_more position(const struct sig_case *c, int i, struct sig_variant *v) {
    int n_prompt = c->context->n_prompt, n_tokens = c->context->n_tokens;
    if (i < 16) {
        v->kind = TURN_SHIFT;
        v->a = i % 2 ? -(i / 2 + 1) : i / 2 + 1;
        (void)snprintf(v->text, sizeof v->text, "rotated as for position %+d", (int)v->a);
        return SIG_TRY;
    }
    int shifts[] = {n_prompt, -n_prompt, 1 - n_prompt, -1 - n_prompt, n_tokens, -n_tokens};
    if (i < 22) {
        v->kind = TURN_SHIFT;
        v->a = shifts[i - 16];
        (void)snprintf(v->text, sizeof v->text, "rotated as for position %+d (the prompt has %d tokens)", (int)v->a,
                       n_prompt);
        return v->a >= -8 && v->a <= 8 ? SIG_SKIP : SIG_TRY;
    }
    /* Every position as the first or the last of its call, or as 0. */
    if (i < 22 + 1 + 2 * c->n_calls) {
        int call = (i - 23) / 2;
        const struct fwd_view *out = c->calls[i == 22 ? 0 : call].e.out;
        v->kind = TURN_FIXED;
        v->a = i == 22 ? 0 : i % 2 ? out->pos0 : out->pos0 + out->n_pos - 1;
        (void)snprintf(v->text, sizeof v->text, "every position rotated as for position %d", (int)v->a);
        return i > 22 && v->a == 0 ? SIG_SKIP : SIG_TRY;
    }
    return SIG_END;
}

static enum sig_more scaling(const struct sig_case *c, int i, struct sig_variant *v) {
    v->kind = TURN_PLAIN;
    return i || !c->m->rope_factors.data ? SIG_END : say(v, "the model's frequency factors are not applied");
}

static enum sig_more bias_after(const struct sig_case *c, int i, struct sig_variant *v) {
    v->kind = BIAS_AFTER;
    return i || !c->config->qkv_bias ? SIG_END : say(v, "the bias is added after the rotation instead of before it");
}

static enum sig_more tap_pre_bias(const struct sig_case *c, int i, struct sig_variant *v) {
    v->kind = BIAS_BEFORE;
    return i || !c->config->qkv_bias
               ? SIG_END
               : say(v, "what was rotated is its input with the bias added: the tap before holds the value without it");
}

const struct signature par_sig_rope[] = {
    {"rope-missing", SIG_ROPES, SIG_WHOLE_HEADS, missing, rope_value, NULL},
    {"rope-pairing", SIG_ROPES, SIG_WHOLE_HEADS, pairing, rope_value, NULL},
    {"rope-sign", SIG_ROPES, SIG_WHOLE_HEADS, sign, rope_value, NULL},
    {"rope-twice", SIG_ROPES, SIG_WHOLE_HEADS, twice, rope_value, NULL},
    {"rope-position", SIG_ROPES, SIG_WHOLE_HEADS, position, rope_value, NULL},
    {"rope-scaling-ignored", SIG_ROPES, SIG_WHOLE_HEADS, scaling, rope_value, NULL},
    {"rope-base", SIG_ROPES, SIG_WHOLE_HEADS, base, rope_value, NULL},
    {"bias-after-rope", SIG_ROPES, SIG_WHOLE_HEADS, bias_after, rope_value, NULL},
    {"tap-pre-bias", SIG_ROPES, SIG_WHOLE_HEADS, tap_pre_bias, rope_value, NULL},
    {NULL, 0, 0, NULL, NULL, NULL},
};
