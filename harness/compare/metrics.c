/* Distances between two float arrays, for information: no verdict comes from here. */
#include "compare/metrics.h"

#include "engine.h"

#include <math.h>
#include <string.h>

enum {
    LOW = -150, /* octaves of |d| in the histogram: from below the smallest F32 denormal ... */
    HIGH = 130, /* ... to above the largest difference of two F32 */
    PER_OCTAVE = 64,
    N_BINS = (HIGH - LOW) * PER_OCTAVE,
    MAX_TOP = 64
};

struct par_metrics_acc {
    struct par_metrics m; /* counts and maximum; the rest is filled at the end */
    uint64_t n_finite, n_equal;
    double sum_d2, sum_ref2, sum_got2, sum_product;
    uint64_t bin[N_BINS];
};

struct par_metrics_acc *par_metrics_begin(void) {
    struct par_metrics_acc *acc = fwd_calloc(1, sizeof *acc);
    if (acc)
        acc->m.max_at = -1;
    return acc;
}

void par_metrics_free(struct par_metrics_acc *acc) {
    fwd_free(acc);
}

/* The exponent and six fraction bits of a positive double number its bin. */
static int bin_of(double d) {
    uint64_t bits;
    memcpy(&bits, &d, sizeof bits);
    int64_t i = (int64_t)(bits >> 46) - (int64_t)(1023 + LOW) * PER_OCTAVE;
    return i < 0 ? 0 : i >= N_BINS ? N_BINS - 1 : (int)i;
}

/* True when one of the two is not finite, and so counted. */
static bool add_nonfinite(struct par_metrics *m, double ref, double got) {
    if (isfinite(ref) && isfinite(got))
        return false;
    m->n_nan_ref += isnan(ref) != 0;
    m->n_nan_got += isnan(got) != 0;
    m->n_inf_ref += isinf(ref) != 0;
    m->n_inf_got += isinf(got) != 0;
    bool same = (isnan(ref) && isnan(got)) || (isinf(ref) && isinf(got) && signbit(ref) == signbit(got));
    m->n_nonfinite_mismatch += !same;
    return true;
}

static void add_pair(struct par_metrics_acc *acc, double r, double g, int64_t at) {
    struct par_metrics *m = &acc->m;
    m->n++;
    if (add_nonfinite(m, r, g))
        return;
    double d = fabs(g - r);
    acc->n_finite++;
    acc->sum_d2 += d * d;
    acc->sum_ref2 += r * r;
    acc->sum_got2 += g * g;
    acc->sum_product += r * g;
    if (d == 0)
        acc->n_equal++;
    else
        acc->bin[bin_of(d)]++;
    if (m->max_at < 0 || d > m->max_abs || (d == m->max_abs && at < m->max_at)) {
        m->max_abs = d;
        m->max_at = at;
        m->max_ref = r;
        m->max_got = g;
    }
}

void par_metrics_add(struct par_metrics_acc *acc, const float *ref, const float *got, int64_t n, int64_t base) {
    for (int64_t i = 0; i < n; i++)
        add_pair(acc, (double)ref[i], (double)got[i], base + i);
}

void par_metrics_add_f64(struct par_metrics_acc *acc, const double *ref, const double *got, int64_t n, int64_t base) {
    for (int64_t i = 0; i < n; i++)
        add_pair(acc, ref[i], got[i], base + i);
}

void par_metrics_take(struct par_metrics_acc *acc, struct par_metrics_acc *from) {
    struct par_metrics *m = &acc->m;
    const struct par_metrics *f = &from->m;
    m->n += f->n;
    m->n_nan_ref += f->n_nan_ref;
    m->n_nan_got += f->n_nan_got;
    m->n_inf_ref += f->n_inf_ref;
    m->n_inf_got += f->n_inf_got;
    m->n_nonfinite_mismatch += f->n_nonfinite_mismatch;
    acc->n_finite += from->n_finite;
    acc->n_equal += from->n_equal;
    acc->sum_d2 += from->sum_d2;
    acc->sum_ref2 += from->sum_ref2;
    acc->sum_got2 += from->sum_got2;
    acc->sum_product += from->sum_product;
    for (int i = 0; i < N_BINS; i++)
        acc->bin[i] += from->bin[i];
    if (f->max_at >= 0 &&
        (m->max_at < 0 || f->max_abs > m->max_abs || (f->max_abs == m->max_abs && f->max_at < m->max_at))) {
        m->max_abs = f->max_abs;
        m->max_at = f->max_at;
        m->max_ref = f->max_ref;
        m->max_got = f->max_got;
    }
    memset(from, 0, sizeof *from);
    from->m.max_at = -1;
}

/* Upper edge of the bin below or at which a share q lies. */
static double quantile(const struct par_metrics_acc *acc, double q) {
    double want = q * (double)acc->n_finite, seen = (double)acc->n_equal;
    if (acc->n_finite == 0)
        return nan("");
    if (seen >= want)
        return 0;
    for (int i = 0; i < N_BINS; i++) {
        seen += (double)acc->bin[i];
        if (seen >= want) {
            double edge = ldexp(1.0 + (i % PER_OCTAVE + 1) / (double)PER_OCTAVE, LOW + i / PER_OCTAVE);
            return fmin(edge, acc->m.max_abs);
        }
    }
    return acc->m.max_abs;
}

void par_metrics_end(const struct par_metrics_acc *acc, struct par_metrics *out) {
    *out = acc->m;
    if (acc->n_finite == 0) {
        out->rel_l2 = out->nmse = out->cosine = nan("");
    } else {
        out->nmse = acc->sum_ref2 > 0 ? acc->sum_d2 / acc->sum_ref2 : acc->sum_d2 > 0 ? nan("") : 0;
        out->rel_l2 = sqrt(out->nmse);
        double norms = sqrt(acc->sum_ref2) * sqrt(acc->sum_got2);
        bool both_zero = acc->sum_ref2 == 0 && acc->sum_got2 == 0;
        out->cosine = norms > 0 ? acc->sum_product / norms : both_zero ? 1 : nan("");
    }
    out->p50 = quantile(acc, 0.5);
    out->p99 = quantile(acc, 0.99);
    out->p999 = quantile(acc, 0.999);
}

/* ---- logits --------------------------------------------------------------------------------------------------------
 */
/* The k largest, best first, the lower id first on a tie; NaN is never among them. Returns how many there are. */
static int find_top(const float *x, int64_t n, int k, int32_t *top) {
    int have = 0;
    for (int64_t i = 0; i < n; i++) {
        if (isnan(x[i]) || (have == k && !(x[i] > x[top[k - 1]])))
            continue;
        int at = have < k ? have++ : k - 1;
        while (at > 0 && x[i] > x[top[at - 1]]) {
            top[at] = top[at - 1];
            at--;
        }
        top[at] = (int32_t)i;
    }
    return have;
}

/* ln of sum exp(x), NaN when x holds NaN or +infinity, or nothing above -infinity. */
static double log_sum_exp(const float *x, int64_t n) {
    double top = -HUGE_VAL, sum = 0;
    for (int64_t i = 0; i < n; i++) {
        if (isnan(x[i]))
            return nan("");
        top = fmax(top, (double)x[i]);
    }
    if (!isfinite(top))
        return nan("");
    for (int64_t i = 0; i < n; i++)
        sum += exp((double)x[i] - top);
    return top + log(sum);
}

static double kl_divergence(const float *ref, const float *got, int64_t n) {
    double z_ref = log_sum_exp(ref, n), z_got = log_sum_exp(got, n), kl = 0;
    if (isnan(z_ref) || isnan(z_got))
        return nan("");
    for (int64_t i = 0; i < n; i++) {
        double p = exp((double)ref[i] - z_ref);
        if (p > 0)
            kl += p * (((double)ref[i] - z_ref) - ((double)got[i] - z_got));
    }
    return fmax(kl, 0); /* below 0 only by rounding */
}

void par_logits_compare(const float *ref, const float *got, int64_t n_vocab, int k, struct par_logit_metrics *out) {
    int32_t top_ref[MAX_TOP], top_got[MAX_TOP];
    int want = k < 2 ? 2 : k > MAX_TOP ? MAX_TOP : k;
    int n_ref = find_top(ref, n_vocab, want, top_ref), n_got = find_top(got, n_vocab, want, top_got);
    memset(out, 0, sizeof *out);
    out->k = k < 1 ? 1 : k > MAX_TOP ? MAX_TOP : k;
    out->top_ref = n_ref ? top_ref[0] : -1;
    out->top_got = n_got ? top_got[0] : -1;
    out->margin_ref = n_ref > 1 ? (double)ref[top_ref[0]] - (double)ref[top_ref[1]] : nan("");
    out->margin_got = n_got > 1 ? (double)got[top_got[0]] - (double)got[top_got[1]] : nan("");
    out->gap_in_ref = n_ref && n_got ? (double)ref[top_ref[0]] - (double)ref[top_got[0]] : nan("");
    for (int i = 0; i < n_ref && i < out->k; i++)
        for (int j = 0; j < n_got && j < out->k; j++)
            out->topk_overlap += top_ref[i] == top_got[j];
    out->kl = kl_divergence(ref, got, n_vocab);
    struct par_metrics_acc *acc = par_metrics_begin();
    if (!acc) {
        out->diff.max_at = -1;
        out->diff.rel_l2 = out->diff.nmse = out->diff.cosine = nan("");
        return;
    }
    par_metrics_add(acc, ref, got, n_vocab, 0);
    par_metrics_end(acc, &out->diff);
    par_metrics_free(acc);
}
