/* Activations quantised wrongly: as the _q8 taps show it, and as a product shows it whose own quantised input was not
 * handed on. */
#include "localise/sig.h"

#include "localise/sig_quantise.h"
#include "spec/eval.h"
#include "spec/spec_decode.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- the bytes themselves ----------------------------------------------------------------------------------------
 */
enum kind { Q8_RULE, Q8_SCALE_BLOCK, Q8_SCALE_ROW, Q8_BATCH_SCALE, Q8_BATCH_ALL, Q8_SCALE_F16, Q8_TAIL };

/* Codes and scales of one position under the mistake. */
struct row {
    float *x;
    int8_t *q;
    float *d;
    int64_t n;
    int block;
};

static bool load_row(const struct sig_case *c, int call, int pos, float *x, int64_t n) {
    const struct fwd_view *in = c->calls[call].e.in[0];
    const uint8_t *bytes = in ? par_view_row(in, pos) : NULL;
    for (int64_t i = 0; bytes && i < n; i++)
        x[i] = (float)par_load_one(in->dtype, bytes, i);
    return bytes != NULL;
}

static float row_amax(const float *x, int64_t n) {
    float most = 0;
    for (int64_t i = 0; i < n; i++)
        most = fmaxf(most, fabsf(x[i]));
    return most;
}

/* The largest magnitude of all positions of a call. */
static float call_amax(const struct sig_case *c, int call, float *x, int64_t n) {
    const struct fwd_view *out = c->calls[call].e.out;
    float most = 0;
    for (int pos = out->pos0; pos < out->pos0 + out->n_pos; pos++)
        if (load_row(c, call, pos, x, n))
            most = fmaxf(most, row_amax(x, n));
    return most;
}

static void fill_row(const struct sig_case *c, const struct sig_variant *v, int slot, struct row *r) {
    const struct sig_slot *s = &c->slots[slot];
    const struct fwd_view *out = c->calls[s->call].e.out;
    struct spec_q8 q;
    int64_t blocks = r->n / r->block;
    enum sig_quant_rule rule = v->kind == Q8_RULE ? (enum sig_quant_rule)v->a : SIG_QUANT_SPEC;
    float most = row_amax(r->x, r->n);
    if (v->kind == Q8_BATCH_ALL) {
        rule = SIG_QUANT_ROW;
        most = call_amax(c, s->call, r->x, r->n);
        (void)load_row(c, s->call, s->pos, r->x, r->n);
    }
    for (int64_t b = 0; b < blocks; b++) {
        par_sig_quantise(rule, r->x + b * r->block, r->block, most, &q);
        memcpy(r->q + b * r->block, q.q, (size_t)r->block);
        r->d[b] = v->kind == Q8_SCALE_F16 ? par_f16_to_f32(par_f32_to_f16(q.d)) : q.d;
    }
    for (int64_t k = r->n - v->a; v->kind == Q8_TAIL && k < r->n; k++)
        r->q[k] = 0;
    if (v->kind == Q8_BATCH_SCALE) { /* scales of the first or last position of the call */
        int pos = v->a ? out->pos0 + out->n_pos - 1 : out->pos0;
        for (int64_t b = 0; load_row(c, s->call, pos, r->x, r->n) && b < blocks; b++) {
            par_q8_quantise(r->x + b * r->block, r->block, &q);
            r->d[b] = q.d;
        }
    }
    if (v->kind != Q8_SCALE_BLOCK && v->kind != Q8_SCALE_ROW)
        return;
    float first = r->d[0], largest = 0, ahead = r->d[0];
    for (int64_t b = 0; b < blocks; b++)
        largest = fmaxf(largest, r->d[b]);
    for (int64_t b = 0; b < blocks; b++) {
        float own = r->d[b];
        if (v->kind == Q8_SCALE_ROW)
            r->d[b] = v->a ? largest : first;
        else if (v->a > 0)
            r->d[b] = b + 1 < blocks ? r->d[b + 1] : v->b ? first : own;
        else if (v->a < 0)
            r->d[b] = b ? ahead : v->b ? r->d[blocks - 1] : own;
        ahead = own;
    }
}

static void q8_value(const struct sig_case *c, const struct sig_variant *v, const struct sig_element *e, int64_t n,
                     double *alt, double *bound, double *loose) {
    const struct fwd_view *out = c->calls[0].e.out;
    struct row r = {.n = out->ne[0], .block = par_q8_block_values(out->dtype)};
    size_t values = (size_t)r.n;
    r.x = par_sig_alloc(c, values, 2 * sizeof(float) + 1);
    r.d = r.x + values;
    r.q = (int8_t *)(r.d + values);
    int slot = -1;
    bool ok = false;
    for (int64_t i = 0; i < n; i++) {
        alt[i] = NAN;
        bound[i] = loose[i] = -1;
        if (r.x && r.block && e[i].slot != slot) {
            slot = e[i].slot;
            ok = load_row(c, c->slots[slot].call, c->slots[slot].pos, r.x, r.n);
            if (ok)
                fill_row(c, v, slot, &r);
        }
        if (!ok)
            continue;
        bool code = e[i].row < r.n;
        alt[i] = code ? (double)r.q[e[i].row] : (double)r.d[e[i].row - r.n];
        /* A rule that leaves this scale as it is does not explain it. */
        bound[i] = code || alt[i] == e[i].expected ? 0 : 0x1p-22 * fabs(alt[i]);
        loose[i] = bound[i];
    }
    fwd_free(r.x);
}

static enum sig_more set(struct sig_variant *v, enum kind kind, int64_t a, const char *text) {
    v->kind = (int)kind;
    v->a = a;
    (void)snprintf(v->text, sizeof v->text, "%s", text);
    return SIG_TRY;
}

static enum sig_more rules(struct sig_variant *v, int i, const enum sig_quant_rule *list, int n) {
    return i >= n ? SIG_END : set(v, Q8_RULE, list[i], par_sig_quant_text(list[i]));
}

static const enum sig_quant_rule ties[] = {SIG_QUANT_TIE_AWAY, SIG_QUANT_TIE_UP, SIG_QUANT_TIE_ZERO, SIG_QUANT_DIVIDE};
static const enum sig_quant_rule cuts[] = {SIG_QUANT_TRUNCATE, SIG_QUANT_CUT_QUOTIENT, SIG_QUANT_CUT_INVERSE,
                                           SIG_QUANT_CUT_WIDE, SIG_QUANT_FLOOR};
static const enum sig_quant_rule scales[] = {SIG_QUANT_SCALE_128, SIG_QUANT_MAX_SIGNED};

static enum sig_more tie(const struct sig_case *c, int i, struct sig_variant *v) {
    (void)c;
    return rules(v, i, ties, 4);
}

static enum sig_more truncated(const struct sig_case *c, int i, struct sig_variant *v) {
    (void)c;
    return rules(v, i, cuts, 5);
}

static enum sig_more other_range(const struct sig_case *c, int i, struct sig_variant *v) {
    (void)c;
    return rules(v, i, scales, 2);
}

static enum sig_more other_block(const struct sig_case *c, int i, struct sig_variant *v) {
    (void)c;
    v->b = i / 2;
    return i > 3 ? SIG_END
                 : set(v, Q8_SCALE_BLOCK, i % 2 ? -1 : 1,
                       i % 2 ? "each block has the scale of the one before" : "each block has the scale of the next");
}

static enum sig_more per_row(const struct sig_case *c, int i, struct sig_variant *v) {
    (void)c;
    if (i == 0)
        return set(v, Q8_RULE, SIG_QUANT_ROW, par_sig_quant_text(SIG_QUANT_ROW));
    return i > 2 ? SIG_END
                 : set(v, Q8_SCALE_ROW, i - 1,
                       i == 1 ? "every block has the scale of the first, its own codes"
                              : "every block has the row's largest scale, its own codes");
}

static enum sig_more per_batch(const struct sig_case *c, int i, struct sig_variant *v) {
    (void)c;
    if (i == 0)
        return set(v, Q8_BATCH_ALL, 0, "one scale for all positions of the call");
    return i > 2 ? SIG_END
                 : set(v, Q8_BATCH_SCALE, i - 1,
                       i == 1 ? "the scales are those of the first position of the call"
                              : "the scales are those of the last position of the call");
}

static enum sig_more scale_f16(const struct sig_case *c, int i, struct sig_variant *v) {
    (void)c;
    return i ? SIG_END : set(v, Q8_SCALE_F16, 0, "the scales are rounded to F16");
}

static enum sig_more tail(const struct sig_case *c, int i, struct sig_variant *v) {
    static const int64_t tails[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 3, 5, 7, 15, 31, 24, 48, 96, 192};
    if (i >= 18)
        return SIG_END;
    (void)set(v, Q8_TAIL, tails[i], "");
    (void)snprintf(v->text, sizeof v->text, "the last %lld codes are 0", (long long)tails[i]);
    return tails[i] >= c->calls[0].e.out->ne[0] ? SIG_SKIP : SIG_TRY;
}

/* ---- as products show it -----------------------------------------------------------------------------------------
 */
static bool begin(const struct sig_case *c, struct sig_variant *v) {
    v->product = par_sig_product(par_spec_weight(c->m, c->item->op, c->item->layer));
    v->product.bias = par_spec_bias(c->m, c->item->op, c->item->layer);
    return c->acts && c->acts[0].q;
}

/* Only where the float tap is what was captured can the codes be made again. */
static bool can_requantise(const struct sig_case *c) {
    const struct fwd_view *in = c->calls[0].e.in[0];
    return in && par_float_bytes(in->dtype) != 0;
}

static enum sig_more act(const struct sig_case *c, struct sig_variant *v, enum sig_act_kind kind, int64_t a,
                         const char *text) {
    if (!begin(c, v))
        return SIG_END;
    v->product.act = kind;
    v->product.act_a = a;
    (void)snprintf(v->text, sizeof v->text, "%s", text);
    return kind == SIG_ACT_REQUANT && !can_requantise(c) ? SIG_SKIP : SIG_TRY;
}

static enum sig_more product_block(const struct sig_case *c, int i, struct sig_variant *v) {
    if (i > 3)
        return SIG_END;
    return act(c, v, SIG_ACT_SCALE_BLOCK, i % 2 ? -(i / 2 + 1) : i / 2 + 1,
               i % 2 ? "a block of activations has the scale of one before it"
                     : "a block of activations has the scale of one after it");
}

static enum sig_more product_row(const struct sig_case *c, int i, struct sig_variant *v) {
    return i == 0   ? act(c, v, SIG_ACT_SCALE_ROW, 0, "all activations have the scale of the first block")
           : i == 1 ? act(c, v, SIG_ACT_SCALE_ROW, -1, "all activations have the row's largest scale")
           : i == 2 ? act(c, v, SIG_ACT_REQUANT, SIG_QUANT_ROW, par_sig_quant_text(SIG_QUANT_ROW))
                    : SIG_END;
}

static enum sig_more product_batch(const struct sig_case *c, int i, struct sig_variant *v) {
    return i > 1 ? SIG_END
                 : act(c, v, SIG_ACT_SCALE_BATCH, i,
                       i ? "activations have the scales of the last position of the call"
                         : "activations have the scales of the first position of the call");
}

static enum sig_more product_tie(const struct sig_case *c, int i, struct sig_variant *v) {
    return i >= 4 ? SIG_END : act(c, v, SIG_ACT_REQUANT, ties[i], par_sig_quant_text(ties[i]));
}

static enum sig_more product_cut(const struct sig_case *c, int i, struct sig_variant *v) {
    return i >= 5 ? SIG_END : act(c, v, SIG_ACT_REQUANT, cuts[i], par_sig_quant_text(cuts[i]));
}

static enum sig_more product_range(const struct sig_case *c, int i, struct sig_variant *v) {
    return i >= 2 ? SIG_END : act(c, v, SIG_ACT_REQUANT, scales[i], par_sig_quant_text(scales[i]));
}

const struct signature par_sig_quant[] = {
    {"act-quant-tie", SIG_Q8S, 0, tie, q8_value, NULL},
    {"act-quant-tie", SIG_MATMULS, 0, product_tie, par_sig_product_value, NULL},
    {"act-quant-truncated", SIG_Q8S, 0, truncated, q8_value, NULL},
    {"act-quant-truncated", SIG_MATMULS, 0, product_cut, par_sig_product_value, NULL},
    {"act-quant-range", SIG_Q8S, 0, other_range, q8_value, NULL},
    {"act-quant-range", SIG_MATMULS, 0, product_range, par_sig_product_value, NULL},
    {"act-scale-other-block", SIG_Q8S, 0, other_block, q8_value, NULL},
    {"act-scale-other-block", SIG_MATMULS, 0, product_block, par_sig_product_value, NULL},
    {"act-scale-per-row", SIG_Q8S, 0, per_row, q8_value, NULL},
    {"act-scale-per-row", SIG_MATMULS, 0, product_row, par_sig_product_value, NULL},
    {"act-scale-per-batch", SIG_Q8S, 0, per_batch, q8_value, NULL},
    {"act-scale-per-batch", SIG_MATMULS, 0, product_batch, par_sig_product_value, NULL},
    {"act-scale-f16", SIG_Q8S, 0, scale_f16, q8_value, NULL},
    {"k-tail-skipped", SIG_Q8S, 0, tail, q8_value, NULL},
    {NULL, 0, 0, NULL, NULL, NULL},
};
