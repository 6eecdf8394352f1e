#include "compare/ledger.h"

#include <math.h>

void par_ledger_add(struct par_ledger *l, double from_source, double from_file, double spec, double got, double bound) {
    double total = got - from_source, weight = from_file - from_source, activation = spec - from_file;
    double rest = got - spec, rounding = fabs(rest) <= bound ? rest : copysign(bound, rest);
    double unexplained = rest - rounding;
    if (!isfinite(total) || !isfinite(weight) || !isfinite(activation) || !isfinite(rest) || !isfinite(bound))
        return;
    double gap = fabs(total - (weight + activation + rounding + unexplained));
    double largest = fmax(fmax(fabs(total), fabs(weight)), fmax(fabs(activation), fabs(rest)));
    l->n++;
    l->n_unexplained += unexplained != 0;
    l->exact2 += from_source * from_source;
    l->total2 += total * total;
    l->weight2 += weight * weight;
    l->activation2 += activation * activation;
    l->rounding2 += rounding * rounding;
    l->unexplained2 += unexplained * unexplained;
    /* Against the values themselves: each part is a difference of them and carries their last bit. */
    largest = fmax(largest, fmax(fabs(spec), fabs(from_source)));
    if (largest > 0 && gap / largest > l->gap_max)
        l->gap_max = gap / largest;
}

void par_ledger_merge(struct par_ledger *into, const struct par_ledger *from) {
    into->n += from->n;
    into->n_unexplained += from->n_unexplained;
    into->has_source = into->has_source || from->has_source;
    into->exact2 += from->exact2;
    into->total2 += from->total2;
    into->weight2 += from->weight2;
    into->activation2 += from->activation2;
    into->rounding2 += from->rounding2;
    into->unexplained2 += from->unexplained2;
    into->gap_max = fmax(into->gap_max, from->gap_max);
}

double par_ledger_share(const struct par_ledger *l, double part2) {
    return l->exact2 > 0 ? sqrt(part2 / l->exact2) : 0;
}
