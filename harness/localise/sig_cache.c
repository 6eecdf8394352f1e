/* Cache rows that are not what was computed: another row, an old one, or too few bits. */
#include "localise/sig.h"

#include "spec/eval.h"
#include "spec/spec_decode.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum kind { CACHE_SHIFT, CACHE_ROW, CACHE_ZERO, CACHE_NARROW, CACHE_BIAS };
enum narrow { F16_CUT, F16_AWAY, BF16, BF16_CUT, F16_NEAREST, INT8_ROW, INT8_HEAD, E4M3, NARROW_KINDS };

static double cut(double x, int bits, int add) {
    float f = (float)x;
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    u += add == 2 ? 1u << (bits - 1) : add ? (1u << (bits - 1)) - 1 + (u >> bits & 1u) : 0;
    u = u >> bits << bits;
    memcpy(&f, &u, sizeof f);
    return (double)f;
}

static double as_stored(const struct sig_case *c, double x) {
    const struct fwd_view *out = c->calls[0].e.out;
    if (out->dtype == FWD_F16 || c->item->numerics.act == FWD_F16)
        return (double)par_f16_to_f32(par_f32_to_f16((float)x));
    return out->dtype == FWD_F32 ? (double)(float)x : x;
}

static double narrowed(const struct sig_case *c, enum narrow to, const double *x, int64_t k, int64_t n) {
    int64_t d = c->config->head_dim, first = to == INT8_HEAD ? k / d * d : 0, end = to == INT8_HEAD ? first + d : n;
    double most = 0;
    switch (to) {
    case F16_CUT:
        return cut(x[k], 13, 0);
    case F16_AWAY:
        return cut(x[k], 13, 2);
    case BF16:
        return as_stored(c, cut(x[k], 16, 1));
    case BF16_CUT:
        return as_stored(c, cut(x[k], 16, 0));
    case F16_NEAREST:
        return (double)par_f16_to_f32(par_f32_to_f16((float)x[k]));
    case E4M3:
        return as_stored(c, cut(x[k], 20, 1));
    case INT8_ROW:
    case INT8_HEAD:
    default:
        for (int64_t i = first; i < end; i++)
            most = fmax(most, fabs(x[i]));
        return most > 0 ? as_stored(c, nearbyint(x[k] * (127 / most)) * (most / 127)) : 0;
    }
}

/* The row that was computed for position pos; false: not in the history. */
static bool load(const struct sig_case *c, int call, int64_t pos, double *x, int64_t n) {
    const struct fwd_view *in = c->calls[call].e.in[0];
    const uint8_t *row = in && pos >= 0 && pos < 1 << 30 ? par_view_row(in, (int)pos) : NULL;
    if (row)
        par_load_f64(in->dtype, row, x, n);
    return row != NULL;
}

static bool has_bias(const struct sig_case *c, const struct spec_weight **bias) {
    enum fwd_op op = c->item->op == FWD_OP_V_CACHE ? FWD_OP_VCUR : FWD_OP_KCUR;
    *bias = par_spec_bias(c->m, op, c->item->layer);
    return *bias && (*bias)->data;
}

static double cache_one(const struct sig_case *c, const struct sig_variant *v, const double *x, int64_t k, int64_t n,
                        double *bound) {
    const struct spec_weight *bias;
    float b;
    *bound = 0;
    switch ((enum kind)v->kind) {
    case CACHE_ZERO:
        return 0;
    case CACHE_NARROW:
        /* The last bit of a scaled value depends on how the scale was made. */
        *bound = v->a == INT8_ROW || v->a == INT8_HEAD ? 0x1p-21 * fabs(x[k]) : 0;
        return narrowed(c, (enum narrow)v->a, x, k, n);
    case CACHE_BIAS:
        if (!has_bias(c, &bias))
            return (double)NAN;
        memcpy(&b, bias->data + 4 * k, sizeof b);
        *bound = (c->calls[0].e.out->dtype == FWD_F16 ? 0x1p-10 : 0x1p-22) * (fabs(x[k]) + fabs((double)b));
        return x[k] + (double)b;
    case CACHE_SHIFT:
    case CACHE_ROW:
    default:
        return as_stored(c, x[k]);
    }
}

static void cache_value(const struct sig_case *c, const struct sig_variant *v, const struct sig_element *e, int64_t n,
                        double *alt, double *bound, double *loose) {
    int64_t width = par_sig_width(c);
    double *x = par_sig_alloc(c, (size_t)width, sizeof *x);
    int slot = -1;
    bool ok = false;
    for (int64_t i = 0; i < n; i++) {
        const struct sig_slot *s = &c->slots[e[i].slot];
        alt[i] = NAN;
        bound[i] = loose[i] = -1;
        int64_t from = v->kind == CACHE_SHIFT ? s->pos + v->a : v->kind == CACHE_ROW ? v->a : s->pos;
        if (x && e[i].slot != slot)
            ok = load(c, s->call, from, x, width);
        slot = e[i].slot;
        if (!ok || (v->kind == CACHE_ROW && from >= s->pos)) /* what is old came before */
            continue;
        alt[i] = cache_one(c, v, x, e[i].row, width, &bound[i]);
        bound[i] = isnan(alt[i]) ? -1 : bound[i];
        loose[i] = bound[i];
    }
    fwd_free(x);
}

/* ---- variants ----------------------------------------------------------------------------------------------------
 */
static int n_rows_accused(const struct sig_case *c) {
    int n = 0;
    for (int i = 0; i < c->n_slots; i++) {
        bool seen = false;
        for (int j = 0; j < i && !seen; j++)
            seen = c->slots[j].pos == c->slots[i].pos;
        n += !seen;
    }
    return n;
}

/* One row in another's place is an old row; several, all as far away, are shifted. */
static enum sig_more shifted(const struct sig_case *c, int i, struct sig_variant *v) {
    static const int shifts[] = {-1, 1, -2, 2, -3, 3, -4, 4, -5, 5, -6, 6, -7, 7, -8, 8};
    int n_prompt = c->context->n_prompt;
    if (i >= 18)
        return SIG_END;
    v->kind = CACHE_SHIFT;
    v->a = i < 16 ? shifts[i] : i == 16 ? n_prompt : -n_prompt;
    (void)snprintf(v->text, sizeof v->text, "row p holds what was computed for position p %+d", (int)v->a);
    return n_rows_accused(c) < 2 ? SIG_SKIP : SIG_TRY;
}

static enum sig_more zeros(const struct sig_case *c, int i, struct sig_variant *v) {
    (void)c;
    v->kind = CACHE_ZERO;
    (void)snprintf(v->text, sizeof v->text, "the row was never written: it holds 0");
    return i ? SIG_END : SIG_TRY;
}

static enum sig_more other_row(const struct sig_case *c, int i, struct sig_variant *v) {
    const struct fwd_view *in = c->calls[c->n_calls - 1].e.in[0];
    if (!in || i >= in->n_pos || i >= 4096)
        return SIG_END;
    v->kind = CACHE_ROW;
    v->a = in->pos0 + i;
    (void)snprintf(v->text, sizeof v->text, "a row holds what was computed for position %lld", (long long)v->a);
    return SIG_TRY;
}

static enum sig_more truncated(const struct sig_case *c, int i, struct sig_variant *v) {
    static const char *const texts[NARROW_KINDS] = {"cut to F16 instead of rounded",
                                                    "halves are rounded away from zero",
                                                    "rounded to BF16 on the way",
                                                    "cut to BF16 on the way",
                                                    "rounded to F16",
                                                    "rounded to int8 with one scale a row on the way",
                                                    "rounded to int8 with one scale a head on the way",
                                                    "rounded to three bits on the way"};
    (void)c;
    if (i >= NARROW_KINDS)
        return SIG_END;
    v->kind = CACHE_NARROW;
    v->a = i;
    (void)snprintf(v->text, sizeof v->text, "stored values are %s", texts[i]);
    return SIG_TRY;
}

static enum sig_more pre_bias(const struct sig_case *c, int i, struct sig_variant *v) {
    v->kind = CACHE_BIAS;
    (void)snprintf(v->text, sizeof v->text,
                   "what was stored is its input with the bias added: the tap before holds the value without it");
    return i || c->item->op != FWD_OP_V_CACHE || !c->config->qkv_bias ? SIG_END : SIG_TRY;
}

const struct signature par_sig_cache[] = {
    {"tap-pre-bias", SIG_CACHES, 0, pre_bias, cache_value, NULL},
    {"kv-row-shifted", SIG_CACHES, 0, shifted, cache_value, NULL},
    {"kv-row-stale", SIG_CACHES, 0, zeros, cache_value, NULL},
    {"kv-row-stale", SIG_CACHES, SIG_PER_SLOT, other_row, cache_value, NULL},
    {"kv-truncated", SIG_CACHES, 0, truncated, cache_value, NULL},
    {NULL, 0, 0, NULL, NULL, NULL},
};
