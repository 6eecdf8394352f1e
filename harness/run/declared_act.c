#include "run/declared_act.h"

#include "spec/spec_quant.h"

#include <math.h>

static enum fwd_op reader_of(enum fwd_op tap) {
    switch (tap) {
    case FWD_OP_ATTN_NORM:
        return FWD_OP_QCUR;
    case FWD_OP_KQV_OUT:
        return FWD_OP_ATTN_OUT;
    case FWD_OP_FFN_NORM:
        return FWD_OP_FFN_GATE;
    case FWD_OP_FFN_SWIGLU:
        return FWD_OP_FFN_OUT;
    case FWD_OP_RESULT_NORM:
        return FWD_OP_RESULT_OUTPUT;
    default:
        return FWD_OP_COUNT;
    }
}

bool par_declared_act_of(const struct par_declared_act *a, enum fwd_op tap, int layer, struct fwd_numerics *out) {
    enum fwd_op reader = reader_of(tap);
    *out = (struct fwd_numerics){.size = sizeof *out};
    return reader != FWD_OP_COUNT && a->path->numerics(a->session, reader, layer, out);
}

struct rows {
    const struct fwd_view *view;
    struct fwd_numerics numerics;
    uint64_t seed;
};

static void round_q8(const struct rows *w, float *x) {
    int n = par_q8_block_values(w->numerics.act);
    for (int64_t at = 0; at + n <= w->view->ne[0]; at += n) {
        struct spec_q8 block;
        (void)par_q8_quantise_as(w->numerics.act_rule, x + at, n, &block);
        for (int k = 0; k < n; k++)
            x[at + k] = block.d * (float)block.q[k];
    }
}

/* x to a number with so many bits behind the leading one, none below 2^least. */
static double to_bits(double x, int n_bits, int least) {
    int e;
    (void)frexp(x, &e);
    int unit = e - 1 - n_bits > least ? e - 1 - n_bits : least;
    return ldexp(nearbyint(ldexp(x, -unit)), unit);
}

static void round_bf16(const struct rows *w, float *x) {
    for (int64_t k = 0; k < w->view->ne[0]; k++)
        if (isfinite(x[k]))
            x[k] = (float)to_bits((double)x[k], 7, -133);
}

static void round_e4m3(const struct rows *w, float *x) {
    float most = 0;
    for (int64_t k = 0; k < w->view->ne[0]; k++)
        most = fmaxf(most, fabsf(x[k]));
    float d = most / 448.0f, id = 448.0f / most;
    for (int64_t k = 0; k < w->view->ne[0]; k++) {
        double code = most < 0x1p-100f ? 0 : fmin(fabs(to_bits((double)(x[k] * id), 3, -9)), 448);
        x[k] = copysignf(d * (float)code, x[k]);
    }
}

static uint64_t mix(uint64_t x) {
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* Rounding to b bits behind the leading one moves m * 2^e, 1 <= m < 2, by up to 2^(e-b-1), which is 2^(-b-1) / m of it;
 * the mean of 1 / m^2 is 1/2. */
static void move_weights(const struct rows *w, int i, float *x) {
    enum { BF16_BITS = 7, E4M3_BITS = 3 };
    double most = ldexp(sqrt(0.5), w->numerics.operand == FWD_BF16 ? -BF16_BITS - 1 : -E4M3_BITS - 1);
    uint64_t seed = w->seed ^ mix((uint64_t)w->view->op << 32 | (uint64_t)(w->view->layer + 1)) ^
                    mix((uint64_t)(w->view->pos0 + i));
    for (int64_t k = 0; k < w->view->ne[0]; k++) {
        double coin = ldexp((double)(mix(seed + (uint64_t)k) >> 11), -52) - 1; /* -1 .. 1 */
        x[k] = (float)((double)x[k] * (1 + most * coin));
    }
}

static void round_rows(void *ctx, int thread, int n_threads) {
    const struct rows *w = ctx;
    for (int i = thread; i < w->view->n_pos; i += n_threads) {
        float *x = (float *)(void *)((char *)w->view->data + w->view->nb[1] * i);
        if (w->numerics.act == FWD_BF16)
            round_bf16(w, x);
        else if (w->numerics.act == FWD_E4M3)
            round_e4m3(w, x);
        else
            round_q8(w, x);
        if (w->numerics.operand == FWD_BF16 || w->numerics.operand == FWD_E4M3)
            move_weights(w, i, x);
    }
}

static bool is_known(const struct fwd_numerics *n) {
    return (n->act == FWD_BF16 && n->act_rule == FWD_ACT_NEAREST) ||
           (n->act == FWD_E4M3 && n->act_rule == FWD_ACT_AMAX448) ||
           (par_q8_block_values(n->act) && par_q8_knows(n->act_rule));
}

enum fwd_status par_declared_act_round(const struct par_declared_act *a, const struct fwd_view *view, uint64_t seed,
                                       struct fwd_error *err) {
    struct rows w = {.view = view, .seed = seed};
    if (view->dtype != FWD_F32 || !par_declared_act_of(a, view->op, view->layer, &w.numerics) ||
        w.numerics.act == FWD_F32 || w.numerics.act == FWD_F64)
        return FWD_OK;
    FWD_FAIL_IF(!is_known(&w.numerics), FWD_ETYPE, err, "spread: no rounding of inputs to %s by rule %d is known",
                fwd_dtype_name(w.numerics.act), (int)w.numerics.act_rule);
    fwd_pool_run(a->pool, round_rows, &w);
    return FWD_OK;
}
