/* harness/spec/ratio_histogram.h: the residue ratios of one op, as counts per 1/16 octave, and the counts from which it
 * is seen whether the measurement itself can be trusted. Plain data: zero it, add, merge. */
#ifndef HARNESS_SPEC_RATIO_HISTOGRAM_H
#define HARNESS_SPEC_RATIO_HISTOGRAM_H

#include <stdint.h>

enum {
    PAR_FLOOR_SHIFT = 20,
    PAR_RATIO_LOW = -40, /* octaves; below: the first bin */
    PAR_RATIO_HIGH = 31, /* above: the last bin */
    PAR_RATIO_BINS = (PAR_RATIO_HIGH - PAR_RATIO_LOW) * 16
};
/* What a ratio over a bound of 0, or over any larger one, is cut to: JSON has no infinity. */
#define PAR_RATIO_CAP 1e9

struct par_ratio_histogram {
    uint64_t n;              /* ratios in all */
    uint64_t n_zero;         /* exactly 0 */
    uint64_t n_failed_calls; /* calls that could not be judged: the row is not HELD then */
    uint64_t bin[PAR_RATIO_BINS];
    /* Detection floors: bound / |expected| of the elements that have both, PAR_FLOOR_SHIFT octaves further down. */
    uint64_t n_floor, n_floor_zero; /* in all; with a bound of 0 */
    uint64_t floor_bin[PAR_RATIO_BINS];
    uint64_t n_bounded;         /* elements whose bound is not 0 */
    uint64_t n_signal, n_blunt; /* elements whose spec value is not 0; those of them below their own bound */
    uint64_t n_zero_got, n_zero_expected;
    double got_min, got_max, expected_min, expected_max; /* over n elements */
};

void par_ratio_add(struct par_ratio_histogram *h, double ratio);
/* bound / |expected| of one element; expected is not 0. */
void par_floor_add(struct par_ratio_histogram *h, double floor);
void par_ratio_merge(struct par_ratio_histogram *into, const struct par_ratio_histogram *from);
/* The ratio that a share q of all are at or below: the upper edge of its bin (at most 1/16 octave too high). 0 when
 * empty. */
double par_ratio_quantile(const struct par_ratio_histogram *h, double q);
/* The same of the detection floors. */
double par_floor_quantile(const struct par_ratio_histogram *h, double q);

#endif
