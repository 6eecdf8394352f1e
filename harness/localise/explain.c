/* Explains an accused op: collects the elements outside their bounds, tries every signature that applies on a few of
 * them and, where those agree, on all. Diagnosis is all or nothing, and agreement that chance could give is none. */
#include "localise/sig.h"

#include "spec/eval.h"
#include "spec/spec_quant.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MOST_EVALUATED = 8 << 20, /* elements kept under the spec: 24 bytes each */
    MOST_LISTED = 1 << 18,    /* accused elements that a signature is checked on */
    MOST_COSTLY = 4096,
    MOST_HEAD_SLOTS = 96, /* positions of an attention */
    SAMPLE = 192
};
/* Digits of agreement beyond those that a choice among the variants gives for nothing. */
static const double least_digits = 4;

/* ---- elements ----------------------------------------------------------------------------------------------------
 */
static double overflow_limit(enum fwd_dtype t) {
    return t == FWD_F32 ? 0x1.ffffffp127 : t == FWD_F16 ? 65520.0 : HUGE_VAL;
}

static bool is_accused(enum fwd_dtype store, double expected, double got, double bound) {
    if (isnan(expected) && isnan(got))
        return false;
    if (isinf(expected) || isinf(got) || fabs(expected) >= overflow_limit(store)) {
        bool same = isinf(got) && signbit(got) == signbit(expected);
        return !(same && fabs(expected) + bound >= overflow_limit(store)) && expected != got;
    }
    return !(fabs(got - expected) <= bound);
}

static bool agrees(double got, double alt, double bound) {
    if (!(bound >= 0))
        return false;
    if (isnan(got))
        return !isfinite(alt);
    if (isinf(got))
        return !isfinite(alt) || (fabs(alt) + bound >= 0x1.ffffffp127 && signbit(alt) == signbit(got));
    return fabs(got - alt) <= bound;
}

bool par_sig_fits(const struct sig_element *e, double alt, double bound, double loose) {
    if (agrees(e->got, alt, bound))
        return true;
    return loose > bound && agrees(e->got, alt, loose) && 16 * loose <= fabs(e->got - e->expected);
}

double par_sig_ratio(const struct sig_element *e, double alt, double bound, double loose) {
    double off = fabs(e->got - alt), by = agrees(e->got, alt, bound) ? bound : loose;
    return !(off > 0) || !(off < HUGE_VAL) ? 0 : off / by;
}

/* One step of what the op stores, near got. */
static double quantum(const struct sig_case *c, const struct sig_element *e) {
    const struct fwd_view *out = c->calls[c->slots[e->slot].call].e.out;
    if (par_q8_block_values(out->dtype) && e->row < out->ne[0])
        return 0.5;
    return (out->dtype == FWD_F16 ? 0x1p-11 : 0x1p-24) * fabs(e->got) + 0x1p-149;
}

double par_sig_digits(const struct sig_case *c, const struct sig_element *e, double bound) {
    double dev = fabs(e->got - e->expected), step = quantum(c, e);
    if (!(dev < HUGE_VAL))
        return 1;
    double digits = log10(dev / (bound > step ? bound : step));
    return digits < 0 ? 0 : digits > 6 ? 6 : digits;
}

void par_sig_add(const struct sig_case *c, struct sig_fit *fit, const struct sig_element *e, double alt, double bound,
                 double loose) {
    double ratio = par_sig_ratio(e, alt, bound, loose);
    fit->ratio_max = ratio > fit->ratio_max ? ratio : fit->ratio_max;
    fit->digits += par_sig_digits(c, e, agrees(e->got, alt, bound) ? bound : loose);
}

/* ---- the case ----------------------------------------------------------------------------------------------------
 */
int64_t par_sig_width(const struct sig_case *c) {
    return c->calls[0].x.width;
}

static double element_of(const double *of, const struct par_elements *x, int pos, int64_t row) {
    bool there = pos >= x->pos0 && pos < x->pos0 + x->n_pos && row >= 0 && row < x->width;
    return there ? of[(pos - x->pos0) * x->width + row] : (double)NAN;
}

double par_sig_expected(const struct sig_case *c, int call, int pos, int64_t row) {
    return element_of(c->calls[call].x.expected, &c->calls[call].x, pos, row);
}

double par_sig_got(const struct sig_case *c, int call, int pos, int64_t row) {
    return element_of(c->calls[call].x.got, &c->calls[call].x, pos, row);
}

double par_sig_bound(const struct sig_case *c, int call, int pos, int64_t row) {
    return element_of(c->calls[call].x.bound, &c->calls[call].x, pos, row);
}

void *par_sig_alloc(const struct sig_case *c, size_t n, size_t size) {
    void *p = fwd_alloc(n, size);
    if (!p)
        __atomic_store_n(c->no_memory, 1, __ATOMIC_RELAXED);
    return p;
}

static int by_slot(const void *a, const void *b) {
    const struct sig_element *x = a, *y = b;
    if (x->slot != y->slot)
        return x->slot < y->slot ? -1 : 1;
    return x->row < y->row ? -1 : x->row > y->row;
}

struct sig_element *par_sig_sorted(const struct sig_case *c) {
    struct sig_element *e = par_sig_alloc(c, (size_t)c->n_list, sizeof *e);
    if (!e)
        return NULL;
    memcpy(e, c->list, (size_t)c->n_list * sizeof *e);
    qsort(e, (size_t)c->n_list, sizeof *e, by_slot);
    return e;
}

bool par_sig_input(const struct sig_case *c, int slot, int in, double *dst, int64_t n) {
    const struct fwd_view *v = c->calls[c->slots[slot].call].e.in[in];
    const uint8_t *row = v ? par_view_row(v, c->slots[slot].pos) : NULL;
    if (!row || !par_float_bytes(v->dtype) || v->ne[0] != n)
        return false;
    par_load_f64(v->dtype, row, dst, n);
    return true;
}

static void free_case(struct sig_case *c) {
    par_sig_free_acts(c);
    for (int i = 0; i < c->n_calls; i++)
        par_elements_free(&c->calls[i].x);
    fwd_free(c->calls);
    fwd_free(c->slots);
    fwd_free(c->list);
}

/* Every judged element of as many calls as fit. */
static enum fwd_status evaluate_calls(struct sig_case *c, struct fwd_error *err) {
    const struct par_evidence *item = c->item;
    int64_t n = 0;
    c->calls = fwd_calloc((size_t)item->n_calls + 1, sizeof *c->calls);
    FWD_FAIL_IF(!c->calls, FWD_ENOMEM, err, "explain: no memory for %d calls", item->n_calls);
    for (int i = 0; i < item->n_calls && n < MOST_EVALUATED; i++) {
        struct sig_call *call = &c->calls[i];
        par_evidence_eval(item, i, &call->e);
        FWD_TRY(par_spec_elements(c->m, c->pool, &call->e, &call->x, err));
        c->n_calls++;
        n += call->x.n_pos * call->x.width;
    }
    return FWD_OK;
}

static bool accused_at(const struct sig_case *c, int call, int64_t i) {
    const struct par_elements *x = &c->calls[call].x;
    return is_accused(c->calls[call].e.out->dtype, x->expected[i], x->got[i], x->bound[i]);
}

/* Slots, and how many accused elements they have; the largest ratio of the others. */
static enum fwd_status find_slots(struct sig_case *c, struct fwd_error *err) {
    int n = 0;
    for (int k = 0; k < c->n_calls; k++)
        n += c->calls[k].x.n_pos;
    c->slots = fwd_calloc((size_t)n + 1, sizeof *c->slots);
    FWD_FAIL_IF(!c->slots, FWD_ENOMEM, err, "explain: no memory for %d positions", n);
    for (int k = 0; k < c->n_calls; k++) {
        const struct par_elements *x = &c->calls[k].x;
        for (int p = 0; p < x->n_pos; p++) {
            uint64_t before = c->n_accused;
            for (int64_t i = p * x->width; i < (p + 1) * x->width; i++) {
                if (isnan(x->expected[i]) && x->bound[i] == 0 && isnan(x->got[i]))
                    continue; /* not judged */
                if (accused_at(c, k, i)) {
                    c->n_accused++;
                    continue;
                }
                double off = fabs(x->got[i] - x->expected[i]), ratio = off > 0 ? off / x->bound[i] : 0;
                c->clean_ratio_max = ratio > c->clean_ratio_max && ratio <= 1 ? ratio : c->clean_ratio_max;
                c->n_clean++;
            }
            if (c->n_accused > before)
                c->slots[c->n_slots++] = (struct sig_slot){k, x->pos0 + p};
        }
    }
    return FWD_OK;
}

static int by_row(const void *a, const void *b) {
    const struct sig_element *x = a, *y = b;
    if (x->row != y->row)
        return x->row < y->row ? -1 : 1;
    return x->slot < y->slot ? -1 : x->slot > y->slot;
}

static enum fwd_status list_elements(struct sig_case *c, struct fwd_error *err) {
    bool attention = c->item->op == FWD_OP_KQV_OUT;
    int slot_step = attention ? (c->n_slots + MOST_HEAD_SLOTS - 1) / MOST_HEAD_SLOTS : 1;
    uint64_t step = (c->n_accused + MOST_LISTED - 1) / MOST_LISTED, seen = 0;
    size_t room = (size_t)(c->n_accused / (step ? step : 1)) + 1;
    c->list = fwd_alloc(room, sizeof *c->list);
    FWD_FAIL_IF(!c->list, FWD_ENOMEM, err, "explain: no memory for %zu elements", room);
    for (int s = 0; s < c->n_slots; s += slot_step) {
        const struct par_elements *x = &c->calls[c->slots[s].call].x;
        int64_t base = (c->slots[s].pos - x->pos0) * x->width;
        for (int64_t r = 0; r < x->width; r++) {
            bool judged = !(isnan(x->expected[base + r]) && x->bound[base + r] == 0 && isnan(x->got[base + r]));
            if (!judged || !accused_at(c, c->slots[s].call, base + r) || seen++ % step != 0)
                continue;
            c->list[c->n_list++] =
                (struct sig_element){s, r, x->got[base + r], x->expected[base + r], x->bound[base + r]};
        }
    }
    if (SIG_OP(c->item->op) & SIG_MATMULS)
        qsort(c->list, (size_t)c->n_list, sizeof *c->list, by_row);
    return FWD_OK;
}

static enum fwd_status open_case(struct sig_case *c, struct fwd_error *err) {
    FWD_TRY(evaluate_calls(c, err));
    FWD_TRY(find_slots(c, err));
    FWD_TRY(list_elements(c, err));
    if (!(SIG_OP(c->item->op) & SIG_MATMULS) || c->n_list == 0)
        return FWD_OK;
    const struct spec_weight *w = par_spec_weight(c->m, c->item->op, c->item->layer);
    c->k = w->n_cols;
    return par_sig_load_acts(c, err);
}

/* ---- checking a variant ------------------------------------------------------------------------------------------
 */
struct check {
    const struct sig_case *c;
    const struct signature *s;
    const struct sig_variant *v;
    const struct sig_element *e;
    int64_t n;
    double *alt, *bound, *loose;
};

static void check_part(void *ctx, int thread, int n_threads) {
    struct check *k = ctx;
    int64_t begin, end;
    fwd_range_split(k->n, 1, thread, n_threads, &begin, &end);
    if (end > begin)
        k->s->value(k->c, k->v, k->e + begin, end - begin, k->alt + begin, k->bound + begin, k->loose + begin);
}

static void run_check(struct check *k, struct fwd_pool *pool) {
    if (k->n < 64)
        check_part(k, 0, 1);
    else
        fwd_pool_run(pool, check_part, k);
}

/* Adds what elements first .. first + n - 1 of k say; returns how many are explained. Elements that are hardly outside
 * their bound may be rounding that a second look excuses: one in a thousand of those may stay unexplained. */
static int64_t count_fits(const struct check *k, struct sig_fit *fit) {
    int64_t fits = 0, marginal = 0, free_left = 1;
    bool is_free = (k->s->flags & SIG_IS_FREE) != 0;
    for (int64_t i = 0; i < k->n; i++) {
        const struct sig_element *e = &k->e[i];
        if (par_sig_fits(e, k->alt[i], k->bound[i], k->loose[i])) {
            fits++;
            double digits = fit->digits;
            par_sig_add(k->c, fit, e, k->alt[i], k->bound[i], k->loose[i]);
            bool hardly = fabs(e->got - e->expected) <= 8 * k->bound[i]; /* almost any number does */
            if (is_free && (free_left-- > 0 || hardly))
                fit->digits = digits;
        } else if (fabs(e->got - e->expected) <= 2 * e->bound) {
            marginal++;
        }
    }
    return fits + (marginal <= k->n / 1000 ? marginal : 0);
}

/* Clean elements of the accused positions (with heads: of their accused heads), at most `most` of them. */
static int64_t list_clean(const struct sig_case *c, bool heads, struct sig_element *list, int64_t most) {
    int64_t width = par_sig_width(c), unit = heads ? c->config->head_dim : width, n = 0;
    for (int slot = 0; slot < c->n_slots; slot++) {
        const struct sig_call *call = &c->calls[c->slots[slot].call];
        int64_t base = (c->slots[slot].pos - call->x.pos0) * width;
        for (int64_t first = 0; first < width; first += unit) {
            bool any = false;
            for (int64_t r = first; !any && r < first + unit && r < width; r++)
                any = accused_at(c, c->slots[slot].call, base + r);
            for (int64_t r = first; any && r < first + unit && r < width && n < most; r++)
                if (!accused_at(c, c->slots[slot].call, base + r))
                    list[n++] = (struct sig_element){slot, r, call->x.got[base + r], call->x.expected[base + r],
                                                     call->x.bound[base + r]};
        }
    }
    return n;
}

/* Whether the variant gives the output's own value at every clean element of the accused positions, or heads, too. */
static bool fits_clean(struct sig_case *c, const struct signature *s, const struct sig_variant *v, bool heads) {
    int64_t most = 1 << 16;
    if (SIG_OP(c->item->op) & SIG_MATMULS)
        return false;
    struct sig_element *list = fwd_alloc((size_t)most, sizeof *list);
    double *out = fwd_alloc((size_t)most, 3 * sizeof *out);
    bool all = list && out;
    if (all) {
        int64_t n = list_clean(c, heads, list, most);
        struct check k = {c, s, v, list, n, out, out + most, out + 2 * most};
        run_check(&k, c->pool);
        for (int64_t i = 0; all && i < n; i++)
            all = agrees(list[i].got, out[i], heads ? out[most + i] + list[i].bound : out[most + i]);
    }
    fwd_free(list);
    fwd_free(out);
    return all;
}

struct search {
    struct sig_case *c;
    const struct signature *s;
    double *values; /* [3][n_list] */
    struct sig_element *sample, *costly;
    int64_t n_sample, n_costly;
    struct sig_fit best;
};

static struct check make_check(const struct search *q, const struct sig_variant *v, const struct sig_element *e,
                               int64_t n) {
    return (struct check){q->c, q->s, v, e, n, q->values, q->values + n, q->values + 2 * n};
}

/* Elements spread over an ordered list. */
static int64_t spread(const struct sig_element *from, int64_t n, int64_t most, struct sig_element *to) {
    int64_t take = n < most ? n : most;
    for (int64_t i = 0; i < take; i++)
        to[i] = from[take == n ? i : i * (n - 1) / (take - 1)];
    return take;
}

static void check_all(struct search *q, const struct sig_variant *v, struct sig_fit *fit) {
    bool costly = (q->s->flags & SIG_COSTLY) != 0;
    struct check k = costly ? make_check(q, v, q->costly, q->n_costly) : make_check(q, v, q->c->list, q->c->n_list);
    run_check(&k, q->c->pool);
    fit->n_tested = k.n;
    fit->share = (double)count_fits(&k, fit) / (double)k.n;
}

static bool enough(const struct sig_fit *fit) {
    double digits = fit->whole ? fit->digits + least_digits + 1 : fit->digits;
    return fit->share == 1 && digits >= least_digits + log10(fit->n_variants > 0 ? fit->n_variants : 1);
}

/* Looks at one, then eight, then all elements of the sample, and then at everything. */
static bool try_variant(struct search *q, const struct sig_variant *v, int n_variants, struct sig_fit *fit) {
    static const int steps[] = {1, 8, SAMPLE};
    int64_t done = 0, fits = 0;
    for (int i = 0; i < 3; i++) {
        int64_t until = steps[i] < q->n_sample ? steps[i] : q->n_sample;
        struct check k = make_check(q, v, q->sample + done, until - done);
        if (k.n == 0)
            continue;
        run_check(&k, q->c->pool);
        for (int64_t j = 0; j < k.n; j++)
            fits += par_sig_fits(&k.e[j], k.alt[j], k.bound[j], k.loose[j]);
        done = until;
        if (i < 2 && fits == 0 && i > 0)
            break;
        if (i == 0 && fits == 0 && n_variants > 64)
            return false;
    }
    fit->share = done ? (double)fits / (double)done : 0;
    if (fits == 0 || (fits < done && fit->share <= q->best.share))
        return false;
    *fit = (struct sig_fit){.n_variants = n_variants};
    check_all(q, v, fit);
    /* A number fitted to what is hardly outside its bound fits all that is inside: that is no evidence. */
    if (fit->share == 1 && !enough(fit) && !(q->s->flags & SIG_IS_FREE))
        fit->whole = fits_clean(q->c, q->s, v, false);
    if (enough(fit) && q->s->flags & SIG_WHOLE_HEADS && !fits_clean(q->c, q->s, v, true))
        return false;
    (void)snprintf(fit->text, sizeof fit->text, "%s", v->text);
    bool fitted_only = q->s->flags & SIG_IS_FREE && fit->share < 1; /* a number fitted to one element says nothing */
    if (fit->share > q->best.share && !fitted_only)
        q->best = *fit;
    return enough(fit);
}

static int count_variants(const struct sig_case *c, const struct signature *s) {
    struct sig_variant v;
    int n = 0;
    enum sig_more more;
    for (int i = 0;; i++) {
        memset(&v, 0, sizeof v);
        if ((more = s->variant(c, i, &v)) == SIG_END)
            return n;
        n += more == SIG_TRY;
    }
}

/* ---- a variant for each position, or head ------------------------------------------------------------------------
 */
static int64_t unit_of(const struct search *q, const struct sig_element *e) {
    int64_t d = q->c->config->head_dim;
    return q->s->flags & SIG_PER_HEAD ? e->slot * 4096 + e->row / d : e->slot;
}

/* The end of the run of elements with the same unit as element i of a list that is sorted by it. */
static int64_t unit_end(const struct search *q, const struct sig_element *e, int64_t n, int64_t i) {
    int64_t unit = unit_of(q, &e[i]);
    while (i < n && unit_of(q, &e[i]) == unit)
        i++;
    return i;
}

static void try_units(struct search *q) {
    struct sig_case *c = q->c;
    struct sig_element *e = q->costly;
    int64_t n = q->n_costly, left = n;
    uint8_t *done = fwd_calloc((size_t)n, 1);
    struct sig_variant v;
    enum sig_more more;
    if (!done) {
        *c->no_memory = 1;
        return;
    }
    qsort(e, (size_t)n, sizeof *e, by_slot);
    struct sig_fit fit = {.n_tested = n, .n_variants = count_variants(c, q->s)};
    int used = 0, units = 0;
    for (int i = 0; left > 0; i++) {
        memset(&v, 0, sizeof v);
        if ((more = q->s->variant(c, i, &v)) == SIG_END)
            break;
        if (more == SIG_SKIP)
            continue;
        struct check k = make_check(q, &v, e, n);
        run_check(&k, c->pool);
        bool any = false;
        for (int64_t at = 0, end; at < n; at = end) {
            end = unit_end(q, e, n, at);
            bool all = !done[at];
            for (int64_t j = at; all && j < end; j++)
                all = par_sig_fits(&e[j], k.alt[j], k.bound[j], k.loose[j]);
            for (int64_t j = at; all && j < end; j++) {
                par_sig_add(c, &fit, &e[j], k.alt[j], k.bound[j], k.loose[j]);
                done[j] = 1;
                left--;
            }
            units += all;
            any = any || all;
        }
        if (any && used++ == 0)
            (void)snprintf(fit.text, sizeof fit.text, "%s", v.text);
    }
    /* Each unit chose its variant. */
    fit.digits -= (units - 1) * log10(fit.n_variants > 0 ? fit.n_variants : 1);
    if (used > 1) {
        size_t at = strlen(fit.text);
        (void)snprintf(fit.text + at, sizeof fit.text - at, " (and %d more such readings)", used - 1);
    }
    fit.share = (double)(n - left) / (double)n;
    if (fit.share > q->best.share)
        q->best = fit;
    fwd_free(done);
}

/* ---- all signatures ----------------------------------------------------------------------------------------------
 */
static void try_signature(struct search *q) {
    const struct signature *s = q->s;
    struct sig_variant v;
    enum sig_more more;
    if (s->solve) {
        struct sig_fit fit = {0};
        s->solve(q->c, &fit);
        if (fit.share > q->best.share)
            q->best = fit;
        return;
    }
    if (s->flags & (SIG_PER_SLOT | SIG_PER_HEAD)) {
        try_units(q);
        return;
    }
    int n = count_variants(q->c, s);
    for (int i = 0;; i++) {
        struct sig_fit fit = {0};
        memset(&v, 0, sizeof v);
        if ((more = s->variant(q->c, i, &v)) == SIG_END)
            return;
        if (more == SIG_TRY && try_variant(q, &v, n, &fit))
            return;
    }
}

static const struct signature *const files[] = {par_sig_rows,  par_sig_terms,     par_sig_weight, par_sig_rope,
                                                par_sig_norm,  par_sig_attention, par_sig_cache,  par_sig_simple,
                                                par_sig_quant, par_sig_single};

static void describe(const struct sig_case *c, const struct par_signature_info *info, const struct sig_fit *fit,
                     struct par_diagnosis *out) {
    char scope[80] = "";
    if ((uint64_t)fit->n_tested < c->n_accused)
        (void)snprintf(scope, sizeof scope, " (checked on %lld of %llu elements)", (long long)fit->n_tested,
                       (unsigned long long)c->n_accused);
    if (enough(fit)) {
        out->signature = info;
        out->ratio_max = fmax(fit->ratio_max, c->clean_ratio_max);
        (void)snprintf(out->text, sizeof out->text, "%.150s%s", fit->text, scope);
    } else if (fit->share == 1) {
        (void)snprintf(out->text, sizeof out->text, "unexplained: too little evidence for \"%s\" (%.110s)", info->name,
                       fit->text);
    } else {
        (void)snprintf(out->text, sizeof out->text, "unexplained; nearest: %s explains %.4g %% (%.110s)", info->name,
                       100 * fit->share, fit->text);
    }
    out->share = fit->share;
}

static enum fwd_status try_all(struct search *q, struct par_diagnosis *out, struct fwd_error *err) {
    struct sig_case *c = q->c;
    const struct par_signature_info *best_info = NULL, *info;
    struct sig_fit best = {0};
    for (int i = 0; (info = par_signature_info(i)) != NULL; i++)
        for (size_t f = 0; f < sizeof files / sizeof *files; f++)
            for (const struct signature *s = files[f]; s->name; s++) {
                if (strcmp(s->name, info->name) != 0 || !(s->ops & SIG_OP(c->item->op)))
                    continue;
                q->s = s;
                q->best = (struct sig_fit){0};
                try_signature(q);
                out->n_tried++;
                FWD_FAIL_IF(*c->no_memory, FWD_ENOMEM, err, "explain: no memory for %s", info->name);
                if (q->best.share > best.share || (!best_info && q->best.share > 0)) {
                    best = q->best;
                    best_info = info;
                }
                if (enough(&q->best)) {
                    describe(c, info, &q->best, out);
                    return FWD_OK;
                }
            }
    if (best_info)
        describe(c, best_info, &best, out);
    return FWD_OK;
}

static enum fwd_status explain_case(struct sig_case *c, struct par_diagnosis *out, struct fwd_error *err) {
    struct search q = {.c = c};
    FWD_TRY(open_case(c, err));
    out->n_accused = c->n_accused;
    out->ratio_max = 0;
    if (c->n_list == 0) {
        (void)snprintf(out->text, sizeof out->text, "no element of the evidence is outside its bound");
        return FWD_OK;
    }
    for (int64_t i = 0; i < c->n_list; i++) {
        double off = fabs(c->list[i].got - c->list[i].expected);
        double ratio = off < HUGE_VAL ? fmin(off / c->list[i].bound, 1e9) : 1e9;
        out->ratio_max = fmax(out->ratio_max, ratio);
    }
    q.values = fwd_alloc((size_t)c->n_list, 3 * sizeof *q.values);
    q.sample = fwd_alloc(SAMPLE + MOST_COSTLY, sizeof *q.sample);
    enum fwd_status st = FWD_ENOMEM;
    if (q.values && q.sample) {
        q.costly = q.sample + SAMPLE;
        q.n_sample = spread(c->list, c->n_list, SAMPLE, q.sample);
        q.n_costly = spread(c->list, c->n_list, MOST_COSTLY, q.costly);
        st = try_all(&q, out, err);
    } else {
        st =
            fwd_fail(err, FWD_ENOMEM, __FILE__, __LINE__, "explain: no memory for %lld elements", (long long)c->n_list);
    }
    fwd_free(q.values);
    fwd_free(q.sample);
    return st;
}

static const struct par_signature_info *info_of(const char *name) {
    const struct par_signature_info *info;
    for (int i = 0; (info = par_signature_info(i)) != NULL; i++)
        if (!strcmp(info->name, name))
            return info;
    return NULL;
}

/* A product without its bias, whose reader has it all the same, is right: the tap was taken too early. */
static enum fwd_status ask_reader(const struct par_explain_context *context, const struct par_evidence *item,
                                  struct par_diagnosis *out, struct fwd_error *err) {
    static const enum fwd_op ops[][2] = {
        {FWD_OP_QCUR, FWD_OP_QCUR_ROPE}, {FWD_OP_KCUR, FWD_OP_KCUR_ROPE}, {FWD_OP_VCUR, FWD_OP_V_CACHE}};
    if (!context->evidence || !out->signature || strcmp(out->signature->name, "bias-missing") != 0)
        return FWD_OK;
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) {
        const struct par_evidence *reader = par_evidence_find(context->evidence, ops[i][1], item->layer);
        if (ops[i][0] != item->op || !reader)
            continue;
        struct par_explain_context alone = *context;
        struct par_diagnosis what;
        alone.evidence = NULL;
        FWD_TRY(par_explain(&alone, reader, &what, err));
        if (!what.signature || strcmp(what.signature->name, "tap-pre-bias") != 0)
            continue;
        out->signature = info_of("tap-pre-bias");
        (void)snprintf(out->text, sizeof out->text, "the tap is taken before the bias is added: %s has it",
                       fwd_op_name(reader->op));
    }
    return FWD_OK;
}

enum fwd_status par_explain(const struct par_explain_context *context, const struct par_evidence *item,
                            struct par_diagnosis *out, struct fwd_error *err) {
    int no_memory = 0;
    struct sig_case c = {.context = context,
                         .item = item,
                         .m = context->model,
                         .config = par_spec_config(context->model),
                         .pool = context->pool,
                         .no_memory = &no_memory};
    *out = (struct par_diagnosis){.text = "unexplained"};
    if (item->n_calls == 0) {
        (void)snprintf(out->text, sizeof out->text, "unexplained: nothing of it was kept");
        return FWD_OK;
    }
    struct fwd_error why = {0};
    enum fwd_status st = explain_case(&c, out, &why);
    free_case(&c);
    if (st == FWD_OK)
        st = ask_reader(context, item, out, &why);
    /* Evidence that the spec cannot evaluate is a fact about the op, not a failure. */
    if (st == FWD_EINPUT || st == FWD_ESHAPE || st == FWD_EUNSUPPORTED) {
        (void)snprintf(out->text, sizeof out->text, "unexplained: %.200s", why.message);
        return FWD_OK;
    }
    if (st != FWD_OK && err)
        *err = why;
    return st;
}
