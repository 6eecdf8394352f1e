#include "spec/ratio_histogram.h"

#include <math.h>
#include <string.h>

/* The exponent and the four highest fraction bits of a positive double number its bin. */
static int bin_of(double ratio) {
    uint64_t bits;
    memcpy(&bits, &ratio, sizeof bits);
    int64_t i = (int64_t)(bits >> 48) - ((int64_t)(1023 + PAR_RATIO_LOW) << 4);
    return i < 0 ? 0 : i >= PAR_RATIO_BINS ? PAR_RATIO_BINS - 1 : (int)i;
}

static double upper_edge(int bin) {
    return ldexp(1.0 + (bin % 16 + 1) / 16.0, PAR_RATIO_LOW + bin / 16);
}

void par_ratio_add(struct par_ratio_histogram *h, double ratio) {
    h->n++;
    if (ratio == 0)
        h->n_zero++;
    else
        h->bin[bin_of(ratio)]++;
}

void par_floor_add(struct par_ratio_histogram *h, double floor) {
    h->n_floor++;
    if (floor == 0)
        h->n_floor_zero++;
    else
        h->floor_bin[bin_of(floor * (double)(1 << PAR_FLOOR_SHIFT))]++;
}

void par_ratio_merge(struct par_ratio_histogram *into, const struct par_ratio_histogram *from) {
    if (from->n == 0)
        return;
    if (into->n == 0) {
        uint64_t failed = into->n_failed_calls;
        *into = *from;
        into->n_failed_calls += failed;
        return;
    }
    into->n += from->n;
    into->n_failed_calls += from->n_failed_calls;
    into->n_zero += from->n_zero;
    for (int i = 0; i < PAR_RATIO_BINS; i++) {
        into->bin[i] += from->bin[i];
        into->floor_bin[i] += from->floor_bin[i];
    }
    into->n_floor += from->n_floor;
    into->n_floor_zero += from->n_floor_zero;
    into->n_bounded += from->n_bounded;
    into->n_signal += from->n_signal;
    into->n_blunt += from->n_blunt;
    into->n_zero_got += from->n_zero_got;
    into->n_zero_expected += from->n_zero_expected;
    into->got_min = fmin(into->got_min, from->got_min);
    into->got_max = fmax(into->got_max, from->got_max);
    into->expected_min = fmin(into->expected_min, from->expected_min);
    into->expected_max = fmax(into->expected_max, from->expected_max);
}

static double find_quantile(const uint64_t *bins, uint64_t n, uint64_t n_zero, double q) {
    if (n == 0)
        return 0;
    double want = q * (double)n;
    double seen = (double)n_zero;
    if (seen >= want)
        return 0;
    for (int i = 0; i < PAR_RATIO_BINS; i++) {
        seen += (double)bins[i];
        if (seen >= want)
            return i == PAR_RATIO_BINS - 1 ? PAR_RATIO_CAP : upper_edge(i);
    }
    return PAR_RATIO_CAP;
}

double par_ratio_quantile(const struct par_ratio_histogram *h, double q) {
    return find_quantile(h->bin, h->n, h->n_zero, q);
}

double par_floor_quantile(const struct par_ratio_histogram *h, double q) {
    return ldexp(find_quantile(h->floor_bin, h->n_floor, h->n_floor_zero, q), -PAR_FLOOR_SHIFT);
}
