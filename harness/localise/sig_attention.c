/* Attention gone wrong: which keys are seen, by which head, with which scale, and which rows of K and V are read. */
#include "localise/sig.h"

#include "spec/bound.h"
#include "spec/eval.h"
#include "spec/spec_decode.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum kind {
    MASK_NEXT,   /* keys up to position + a; a < 0: all there are */
    MASK_SELF,   /* keys before the position */
    MASK_WINDOW, /* the last a keys */
    MASK_FROM,   /* keys from a on */
    GQA,         /* map a of query heads to KV heads; b: 0 for K and V, 1 for K, 2 for V */
    SCALE,       /* scores times f */
    NO_MAX,
    ROWS_SHIFT, /* row j + a for key j; b as for GQA */
    ROW_STALE,  /* key a (from the end: -1 is the position itself) has row c (c < 0: zeros); b as for GQA */
    ROW_BEFORE, /* the same, with the row before it */
    NARROW,     /* rows rounded as a says; b as for GQA */
    HEAD_TAIL,  /* scores over the first a dimensions */
    SCORES_F16, /* scores beyond the range of F16: a = 0 infinite, 1 cut; before (c = 0) or after the scale */
    NO_SOFTMAX, /* a = 0: weights exp(s) not divided by their sum; 1: scores themselves */
    SOFTCAP,    /* scores f tanh(s / f) */
    VALUES_F16  /* weighted values added up in F16, then divided; a = 1: the sum of the weights is F16 too */
};
enum narrow { NARROW_F16, NARROW_BF16, NARROW_BF16_CUT, NARROW_F16_CUT, NARROW_INT8, NARROW_E4M3, NARROW_KINDS };

struct work {
    double *q, *k, *v; /* [q_dim], one row of K and V of a KV head */
    double *p, *off;   /* [n_keys] weights, and how far they may be off */
    double *out, *out_abs, *out_off;
    double total; /* of the weights before they are divided by it */
    int64_t head_dim;
    int room;
};

/* ---- rows --------------------------------------------------------------------------------------------------------
 */
static int n_rows_of(const struct fwd_view *v) {
    bool cache = v->op == FWD_OP_K_CACHE || v->op == FWD_OP_V_CACHE;
    return cache ? (int)v->ne[2] : v->pos0 == 0 ? v->n_pos : 0;
}

/* Row j of a KV head; false: there is none. */
static bool load_row(const struct sig_case *c, const struct fwd_view *v, int64_t j, int64_t head, double *dst) {
    int64_t d = c->config->head_dim;
    if (j < 0 || j >= n_rows_of(v) || head < 0 || head >= c->config->n_kv_head)
        return false;
    if (v->op == FWD_OP_K_CACHE || v->op == FWD_OP_V_CACHE)
        par_load_f64(v->dtype, (const uint8_t *)v->data + j * v->nb[2] + head * v->nb[1], dst, d);
    else
        par_load_f64(v->dtype, par_view_row(v, (int)j) + head * d * (int64_t)par_float_bytes(v->dtype), dst, d);
    return true;
}

static double cut_to(double x, int bits, bool nearest) {
    float f = (float)x;
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    if (nearest)
        u += (1u << (bits - 1)) - 1 + (u >> bits & 1u);
    u = u >> bits << bits;
    memcpy(&f, &u, sizeof f);
    return (double)f;
}

static void narrow_row(enum narrow to, double *x, int64_t d) {
    double most = 0;
    for (int64_t i = 0; i < d; i++)
        most = fmax(most, fabs(x[i]));
    for (int64_t i = 0; i < d; i++)
        x[i] = to == NARROW_F16        ? (double)par_f16_to_f32(par_f32_to_f16((float)x[i]))
               : to == NARROW_BF16     ? cut_to(x[i], 16, true)
               : to == NARROW_BF16_CUT ? cut_to(x[i], 16, false)
               : to == NARROW_F16_CUT  ? cut_to(x[i], 13, false)
               : to == NARROW_E4M3     ? cut_to(x[i], 20, true)
               : most > 0              ? nearbyint(x[i] * (127 / most)) * (most / 127)
                                       : 0;
}

static int64_t kv_head(const struct sig_case *c, const struct sig_variant *v, int64_t head, bool is_k) {
    int64_t n = c->config->n_kv_head, group = c->config->n_head / n, own = head / group;
    if (v->kind != GQA || (v->b == 1 && !is_k) || (v->b == 2 && is_k))
        return own;
    switch (v->a) {
    case 0:
        return head % n;
    case 1:
        return (own + 1) % n;
    case 2:
        return (own + n - 1) % n;
    case 3:
        return n - 1 - own;
    case 4:
        return head / n % n;
    case 5:
        return head < n ? head : n - 1;
    default:
        return v->a - 6;
    }
}

/* The row that the mistaken kernel takes for key j of `head` at `pos`; false: it takes none. */
static bool take_row(const struct sig_case *c, const struct sig_variant *v, const struct fwd_view *view, int pos,
                     int64_t j, int64_t head, bool is_k, double *dst) {
    int64_t d = c->config->head_dim, row = j, of = kv_head(c, v, head, is_k);
    bool here = v->b == 0 || (v->b == 1) == is_k;
    if (v->kind == ROWS_SHIFT && here)
        row = j + v->a;
    int64_t key = v->a < 0 ? pos + 1 + v->a : v->a;
    if ((v->kind == ROW_STALE || v->kind == ROW_BEFORE) && here && j == key) {
        if (v->kind == ROW_STALE && v->c < 0) {
            memset(dst, 0, (size_t)d * sizeof *dst);
            return true;
        }
        row = v->kind == ROW_BEFORE ? j - 1 : v->c;
    }
    if (!load_row(c, view, row, of, dst)) {
        memset(dst, 0, (size_t)d * sizeof *dst); /* beyond the cache there is nothing */
        return row < 0 || v->kind == ROWS_SHIFT;
    }
    if (v->kind == NARROW && here)
        narrow_row((enum narrow)v->a, dst, d);
    return true;
}

/* ---- a head ------------------------------------------------------------------------------------------------------
 */
static void key_range(const struct sig_case *c, const struct sig_variant *v, const struct fwd_view *k, int pos,
                      int64_t *first, int64_t *end) {
    int64_t have = n_rows_of(k);
    (void)c;
    *first = 0;
    *end = pos + 1;
    if (v->kind == MASK_NEXT)
        *end = v->a < 0 || pos + 1 + v->a > have ? have : pos + 1 + v->a;
    if (v->kind == MASK_SELF)
        *end = pos;
    if (v->kind == MASK_WINDOW && pos + 1 > v->a)
        *first = pos + 1 - v->a;
    if (v->kind == MASK_FROM)
        *first = v->a < *end ? v->a : *end;
}

static double score_f16(const struct sig_variant *v, double s) {
    if (fabs(s) < 65520)
        return s;
    return v->a ? copysign(65504, s) : copysign(HUGE_VAL, s);
}

static bool score_all(const struct sig_case *c, const struct sig_variant *v, struct work *w,
                      const struct fwd_view *view, int pos, int64_t head, int64_t first, int64_t end) {
    const struct fwd_numerics *nm = &c->item->numerics;
    int64_t d = c->config->head_dim, until = v->kind == HEAD_TAIL ? v->a : d;
    double u = fmax(par_unit_of_accumulator(nm->accumulator), 0x1p-53), scale = 1 / sqrt((double)d);
    double g = par_growth(c->calls[0].e.bound, par_sum_steps(nm, d), u) + par_gamma((double)d, 0x1p-53);
    scale = v->kind == SCALE ? v->f : scale;
    for (int64_t j = first; j < end; j++) {
        if (!take_row(c, v, view, pos, j, head, true, w->k))
            return false;
        double s = 0, a = 0;
        for (int64_t i = 0; i < until; i++) {
            s += w->q[head * d + i] * w->k[i];
            a += fabs(w->q[head * d + i] * w->k[i]);
        }
        if (v->kind == SCORES_F16 && v->c == 0)
            s = score_f16(v, s);
        w->p[j] = s * scale;
        if (v->kind == SCORES_F16 && v->c == 1)
            w->p[j] = score_f16(v, w->p[j]);
        if (v->kind == SOFTCAP)
            w->p[j] = v->f * tanh(w->p[j] / v->f);
        w->off[j] = (g * a + 2 * u * fabs(s)) * scale;
    }
    return true;
}

/* Scores to weights; false: they are no numbers. */
static bool soften(const struct sig_variant *v, const struct fwd_numerics *nm, struct work *w, int64_t first,
                   int64_t end) {
    double u = fmax(par_unit_of_accumulator(nm->accumulator), 0x1p-53), top = -HUGE_VAL, sum = 0;
    for (int64_t j = first; j < end; j++)
        top = w->p[j] > top ? w->p[j] : top;
    if (v->kind == NO_MAX) {
        /* In F32: infinite beyond 88.7, 0 below -103.9. */
        for (int64_t j = first; j < end; j++)
            sum += w->p[j] < -103.9 ? 0 : 1;
        if (top > 88.72 || sum == 0)
            return false;
    }
    if (!isfinite(top))
        return false;
    sum = 0;
    for (int64_t j = first; j < end; j++) {
        double s = w->p[j];
        w->off[j] = expm1(w->off[j] + u * fabs(s - top) + 2 * ((double)nm->exp_ulp + 1) * u);
        w->p[j] = v->kind == NO_SOFTMAX ? (v->a ? s : exp(s)) : exp(s - top);
        sum += w->p[j];
    }
    w->total = sum;
    for (int64_t j = first; j < end && v->kind != NO_SOFTMAX; j++)
        w->p[j] /= sum;
    return true;
}

/* The head's output under the mistake: values and bounds in w. */
static bool mix(const struct sig_case *c, const struct sig_variant *v, struct work *w, int call, int pos,
                int64_t head) {
    const struct par_eval *e = &c->calls[call].e;
    const struct fwd_numerics *nm = &c->item->numerics;
    int64_t d = c->config->head_dim, first, end;
    key_range(c, v, e->in[1], pos, &first, &end);
    for (int64_t i = 0; i < d; i++)
        w->out[i] = w->out_abs[i] = w->out_off[i] = 0;
    if (end > w->room || end > n_rows_of(e->in[1]))
        return false;
    if (end <= first) /* no key: 0 / 0 */
        return true;
    if (!score_all(c, v, w, e->in[1], pos, head, first, end))
        return false;
    if (!soften(v, nm, w, first, end)) {
        for (int64_t i = 0; i < d; i++)
            w->out[i] = NAN;
        return true;
    }
    double mean_off = 0, u = fmax(par_unit_of_accumulator(nm->accumulator), 0x1p-53);
    for (int64_t j = first; j < end; j++) {
        if (!take_row(c, v, e->in[2], pos, j, head, false, w->v))
            return false;
        mean_off += fabs(w->p[j]) * w->off[j];
        for (int64_t i = 0; i < d; i++) {
            double term = w->p[j] * w->v[i];
            w->out[i] += term;
            w->out_abs[i] += fabs(term);
            w->out_off[i] += w->off[j] * fabs(term);
        }
    }
    double sums = 2 * par_gamma((double)(end - first) + 2, u) + 2 * ((double)nm->div_ulp + 2) * u;
    for (int64_t i = 0; i < d; i++)
        w->out_off[i] += mean_off * fabs(w->out[i]) + sums * w->out_abs[i] + 0x1p-149 * (double)end +
                         (nm->final_roundings + 1) * fmax(u, par_unit_of_store(nm->store)) * fabs(w->out[i]);
    return true;
}

/* got times the weights' sum is an F16 number when the values were added up in F16. One in 2^9 numbers is as near to
 * one by chance, which is what the bound is made to say. */
static void f16_sum(const struct sig_variant *v, const struct work *w, const struct sig_element *e, double *alt,
                    double *bound) {
    double total = v->a ? (double)par_f16_to_f32(par_f32_to_f16((float)w->total)) : w->total, y = e->got * total;
    double dev = fabs(e->got - e->expected), near = (double)par_f16_to_f32(par_f32_to_f16((float)y));
    double most = 64 * 0x1p-11 * w->out_abs[e->row % w->head_dim];
    bool fits = fabs(near - y) <= 0x1p-21 * fabs(y) && dev <= most && e->got != 0;
    *alt = fits ? e->got : (double)NAN;
    *bound = fits ? dev * 0x1p-9 : -1;
}

static bool make_work(const struct sig_case *c, struct work *w) {
    int64_t d = c->config->head_dim, q_dim = (int64_t)c->config->n_head * d;
    w->room = 0;
    for (int i = 0; i < c->n_calls; i++)
        for (int in = 1; in < 3; in++) {
            const struct fwd_view *v = c->calls[i].e.in[in];
            w->room = v && n_rows_of(v) > w->room ? n_rows_of(v) : w->room;
        }
    w->q = par_sig_alloc(c, (size_t)(q_dim + 5 * d + 2 * w->room), sizeof(double));
    if (!w->q)
        return false;
    w->head_dim = d;
    w->k = w->q + q_dim;
    w->v = w->k + d;
    w->out = w->v + d;
    w->out_abs = w->out + d;
    w->out_off = w->out_abs + d;
    w->p = w->out_off + d;
    w->off = w->p + w->room;
    return true;
}

static void attention_value(const struct sig_case *c, const struct sig_variant *v, const struct sig_element *e,
                            int64_t n, double *alt, double *bound, double *loose) {
    struct work w = {0};
    int64_t d = c->config->head_dim, head = -1;
    int slot = -1;
    bool ready = make_work(c, &w), ok = false, loaded = false;
    for (int64_t i = 0; i < n; i++) {
        alt[i] = NAN;
        bound[i] = loose[i] = -1;
        const struct sig_slot *s = &c->slots[e[i].slot];
        const struct par_eval *eval = &c->calls[s->call].e;
        if (!ready || !eval->in[1] || !eval->in[2])
            continue;
        if (e[i].slot != slot)
            loaded = par_sig_input(c, e[i].slot, 0, w.q, (int64_t)c->config->n_head * d);
        if (loaded && (e[i].slot != slot || e[i].row / d != head))
            ok = mix(c, v, &w, s->call, s->pos, e[i].row / d);
        slot = e[i].slot;
        head = e[i].row / d;
        if (!loaded || !ok)
            continue;
        int64_t at = e[i].row % d;
        alt[i] = w.out[at];
        bound[i] = isnan(alt[i]) ? 0 : w.out_off[at];
        if (v->kind == VALUES_F16) {
            f16_sum(v, &w, &e[i], &alt[i], &bound[i]);
            loose[i] = bound[i];
            continue;
        }
        bool no_key = v->kind == MASK_SELF && s->pos == 0;
        if (no_key && !isfinite(e[i].got))
            alt[i] = NAN;
        loose[i] = bound[i] + (isnan(alt[i]) ? 0 : 0x1p-20 * w.out_abs[at]);
    }
    fwd_free(w.q);
}

/* ---- variants ----------------------------------------------------------------------------------------------------
 */
static enum sig_more set(struct sig_variant *v, enum kind kind, int64_t a, int64_t b, const char *text) {
    v->kind = (int)kind;
    v->a = a;
    v->b = b;
    (void)snprintf(v->text, sizeof v->text, "%s", text);
    return SIG_TRY;
}

static const char *which(int64_t b) {
    return b == 0 ? "K and V" : b == 1 ? "K" : "V";
}

static int most_keys(const struct sig_case *c) {
    int most = 0;
    for (int i = 0; i < c->n_slots; i++)
        most = c->slots[i].pos + 1 > most ? c->slots[i].pos + 1 : most;
    return most;
}

static enum sig_more sees_next(const struct sig_case *c, int i, struct sig_variant *v) {
    (void)c;
    if (i > 2)
        return SIG_END;
    return i == 0   ? set(v, MASK_NEXT, 1, 0, "a position also sees the next one: the mask is off by one")
           : i == 1 ? set(v, MASK_NEXT, -1, 0, "a position sees all that come after it in its call: no mask")
                    : set(v, MASK_NEXT, 2, 0, "a position also sees the next two");
}

static enum sig_more misses_self(const struct sig_case *c, int i, struct sig_variant *v) {
    if (i || most_keys(c) < 2) /* position 0 alone has no key at all, which is something else */
        return SIG_END;
    return set(v, MASK_SELF, 0, 0, "a position does not see itself: the mask is off by one");
}

static enum sig_more window(const struct sig_case *c, int i, struct sig_variant *v) {
    int most = most_keys(c), limit = most < 512 ? most : 512;
    if (i >= 2 * limit)
        return SIG_END;
    (void)set(v, i < limit ? MASK_WINDOW : MASK_FROM, i % limit + 1, 0, "");
    if (i < limit)
        (void)snprintf(v->text, sizeof v->text, "only the last %d keys are seen", i + 1);
    else
        (void)snprintf(v->text, sizeof v->text, "the first %d keys are not seen", i - limit + 1);
    return SIG_TRY;
}

static enum sig_more gqa(const struct sig_case *c, int i, struct sig_variant *v) {
    static const char *const texts[] = {"query head h has KV head h mod n_kv",
                                        "every query head has the next group's KV head",
                                        "every query head has the KV head of the group before",
                                        "the KV heads are counted from the end",
                                        "query head h has KV head (h / n_kv) mod n_kv",
                                        "query head h has KV head h as long as there is one"};
    int n = 6 + c->config->n_kv_head;
    if (i >= 3 * n)
        return SIG_END;
    (void)set(v, GQA, i % n, i / n, "");
    if (i % n < 6)
        (void)snprintf(v->text, sizeof v->text, "%s (%s)", texts[i % n], which(v->b));
    else
        (void)snprintf(v->text, sizeof v->text, "%s of KV head %d are read", which(v->b), i % n - 6);
    return SIG_TRY;
}

static enum sig_more scale_missing(const struct sig_case *c, int i, struct sig_variant *v) {
    (void)c;
    v->f = 1;
    return i ? SIG_END : set(v, SCALE, 0, 0, "scores are not scaled by 1 / sqrt(head_dim)");
}

static enum sig_more scale_squared(const struct sig_case *c, int i, struct sig_variant *v) {
    v->f = 1 / (double)c->config->head_dim;
    return i ? SIG_END : set(v, SCALE, 0, 0, "scores are scaled by 1 / head_dim: the scale is applied twice");
}

static enum sig_more scale_other(const struct sig_case *c, int i, struct sig_variant *v) {
    double d = c->config->head_dim, list[] = {1 / sqrt((double)c->config->n_embd),
                                              1 / sqrt((double)c->config->n_head),
                                              1 / sqrt((double)c->config->n_kv_head),
                                              sqrt(d),
                                              1 / sqrt(d / 2),
                                              1 / sqrt(2 * d),
                                              -1 / sqrt(d),
                                              1 / sqrt(d - 1),
                                              0};
    if (i >= 9)
        return SIG_END;
    v->f = list[i];
    (void)set(v, SCALE, 0, 0, "");
    (void)snprintf(v->text, sizeof v->text, "scores are scaled by %.6g instead of 1 / sqrt(head_dim) = %.6g", v->f,
                   1 / sqrt(d));
    return fabs(v->f * sqrt(d) - 1) < 1e-9 || fabs(v->f * d - 1) < 1e-9 ? SIG_SKIP : SIG_TRY;
}

static enum sig_more softcap(const struct sig_case *c, int i, struct sig_variant *v) {
    static const double caps[] = {50, 30, 20, 100};
    (void)c;
    if (i >= 4)
        return SIG_END;
    v->f = caps[i];
    (void)set(v, SOFTCAP, 0, 0, "");
    (void)snprintf(v->text, sizeof v->text, "scores are capped: %g tanh(s / %g)", v->f, v->f);
    return SIG_TRY;
}

static enum sig_more no_max(const struct sig_case *c, int i, struct sig_variant *v) {
    (void)c;
    return i ? SIG_END : set(v, NO_MAX, 0, 0, "the largest score is not taken off before exp, which overflows");
}

static enum sig_more no_sum(const struct sig_case *c, int i, struct sig_variant *v) {
    (void)c;
    return i > 1 ? SIG_END
                 : set(v, NO_SOFTMAX, i, 0,
                       i ? "values are weighted by scores, not by their softmax"
                         : "the weights are not divided by their sum");
}

static enum sig_more shifted(const struct sig_case *c, int i, struct sig_variant *v) {
    static const int shifts[] = {-1, 1, -2, 2, -3, 3, -4, 4};
    (void)c;
    if (i >= 24)
        return SIG_END;
    (void)set(v, ROWS_SHIFT, shifts[i / 3], i % 3, "");
    (void)snprintf(v->text, sizeof v->text, "row j %+d of %s is read for key j", shifts[i / 3], which(v->b));
    return SIG_TRY;
}

/* The position's own row first, then any other. */
static enum sig_more stale(const struct sig_case *c, int i, struct sig_variant *v) {
    int keys = most_keys(c), limit = keys < 128 ? keys : 128;
    if (i >= 6 * (limit + 2))
        return SIG_END;
    int key = i / 6 == 0 ? -1 : i / 6 == 1 ? -2 : i / 6 - 2;
    bool zero = i % 2 != 0;
    (void)set(v, zero ? ROW_STALE : ROW_BEFORE, key, i / 2 % 3, "");
    v->c = -1;
    const char *as = zero ? "as zeros" : "as the row before it still was";
    if (key < 0)
        (void)snprintf(v->text, sizeof v->text, "the %s row of %s is read %s", key == -1 ? "newest" : "newest but one",
                       which(v->b), as);
    else
        (void)snprintf(v->text, sizeof v->text, "row %d of %s is read %s", key, which(v->b), as);
    return SIG_TRY;
}

static enum sig_more truncated(const struct sig_case *c, int i, struct sig_variant *v) {
    static const char *const texts[NARROW_KINDS] = {
        "rounded to F16",  "rounded to BF16",         "cut to BF16",
        "cut to ten bits", "rounded to int8 by head", "rounded to three bits"};
    (void)c;
    if (i >= 3 * NARROW_KINDS)
        return SIG_END;
    (void)set(v, NARROW, i / 3, i % 3, "");
    (void)snprintf(v->text, sizeof v->text, "rows of %s are %s before they are used", which(v->b), texts[i / 3]);
    return SIG_TRY;
}

static enum sig_more head_tail(const struct sig_case *c, int i, struct sig_variant *v) {
    static const int tails[] = {1, 2, 4, 8, 16, 32, 64};
    if (i >= 7)
        return SIG_END;
    (void)set(v, HEAD_TAIL, c->config->head_dim - tails[i], 0, "");
    (void)snprintf(v->text, sizeof v->text, "the last %d dimensions of a head are left out of the scores", tails[i]);
    return v->a > 0 ? SIG_TRY : SIG_SKIP;
}

static enum sig_more scores_f16(const struct sig_case *c, int i, struct sig_variant *v) {
    static const char *const texts[] = {"scores beyond 65504 are infinite in F16, before they are scaled",
                                        "scores beyond 65504 are cut to the range of F16, before they are scaled",
                                        "scaled scores beyond 65504 are infinite in F16",
                                        "scaled scores beyond 65504 are cut to the range of F16"};
    (void)c;
    if (i >= 4)
        return SIG_END;
    v->c = i / 2;
    return set(v, SCORES_F16, i % 2, 0, texts[i]);
}

static enum sig_more values_f16(const struct sig_case *c, int i, struct sig_variant *v) {
    (void)c;
    return i > 1 ? SIG_END
                 : set(v, VALUES_F16, i, 0,
                       i ? "weighted values and weights are added up in F16"
                         : "weighted values are added up in F16, and divided by their sum after");
}

const struct signature par_sig_attention[] = {
    {"accumulate-f16", SIG_ATTENTION, 0, values_f16, attention_value, NULL},
    {"mask-sees-next", SIG_ATTENTION, 0, sees_next, attention_value, NULL},
    {"mask-misses-self", SIG_ATTENTION, 0, misses_self, attention_value, NULL},
    {"softmax-scale-missing", SIG_ATTENTION, 0, scale_missing, attention_value, NULL},
    {"softmax-scale-squared", SIG_ATTENTION, 0, scale_squared, attention_value, NULL},
    {"softmax-scale-other", SIG_ATTENTION, 0, scale_other, attention_value, NULL},
    {"softmax-not-normed", SIG_ATTENTION, 0, no_sum, attention_value, NULL},
    {"softmax-no-max", SIG_ATTENTION, 0, no_max, attention_value, NULL},
    {"softcap-added", SIG_ATTENTION, 0, softcap, attention_value, NULL},
    {"gqa-map", SIG_ATTENTION, 0, gqa, attention_value, NULL},
    {"mask-window", SIG_ATTENTION, 0, window, attention_value, NULL},
    {"kv-row-shifted", SIG_ATTENTION, 0, shifted, attention_value, NULL},
    {"kv-row-stale", SIG_ATTENTION, 0, stale, attention_value, NULL},
    {"kv-truncated", SIG_ATTENTION, 0, truncated, attention_value, NULL},
    {"k-tail-skipped", SIG_ATTENTION, 0, head_tail, attention_value, NULL},
    {"saturate-f16", SIG_ATTENTION, 0, scores_f16, attention_value, NULL},
    {NULL, 0, 0, NULL, NULL, NULL},
};
