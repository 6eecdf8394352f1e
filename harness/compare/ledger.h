/* harness/compare/ledger.h: the error ledger of an op: what the distance between the exact result and the candidate's
 * is made of. Element by element got - exact = weight + activation + rounding + unexplained exact: the unquantised
 * weights (the file's own where no source is given) times the float activations, exactly; weight: what the file's
 * quantisation of the weights changes; activation: what the declared quantisation of the activations changes on top;
 * rounding: the rest, as far as it lies inside the op's bound; unexplained: what lies outside. The four sum to the
 * whole for each element; their norms need not. */
#ifndef HARNESS_COMPARE_LEDGER_H
#define HARNESS_COMPARE_LEDGER_H

#include <stdbool.h>
#include <stdint.h>

struct par_ledger {
    uint64_t n, n_unexplained;
    bool has_source; /* the weight part was measured */
    /* Sums of squares over the elements. */
    double exact2, total2, weight2, activation2, rounding2, unexplained2;
    double gap_max; /* largest |total - sum of the parts| of an element, relative to its largest part */
};

/* One element. from_source: with the unquantised weights, or the same as from_file without a source; from_file: the
 * file's weights on float activations; spec: the declared arithmetic, exactly; got, bound: the candidate's value and
 * its bound around spec. Elements that are not finite are left out. */
void par_ledger_add(struct par_ledger *l, double from_source, double from_file, double spec, double got, double bound);
void par_ledger_merge(struct par_ledger *into, const struct par_ledger *from);
/* sqrt(part / exact2), 0 for nothing. */
double par_ledger_share(const struct par_ledger *l, double part2);

#endif
