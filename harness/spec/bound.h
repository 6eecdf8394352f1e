/* harness/spec/bound.h: how far rounding alone may take a result: numerics.md section 2 as one function.
 *
 * |computed - exact| <= g(n) * sum|t| + c * u * |exact| + n * 2^-149 with probability 1 - PAR_BOUND_DELTA over
 * PAR_BOUND_ELEMENTS elements, g(n) = exp(L sqrt(n) u + n u^2 / (1 - u)) - 1, L = sqrt(2 ln(2 N / delta)) (Higham and
 * Mary 2019). Nothing in it is tuned; all of it follows from the numerics that a path declares. */
#ifndef HARNESS_SPEC_BOUND_H
#define HARNESS_SPEC_BOUND_H

#include "spec/judge.h"

/* Unit roundoff of an accumulator (0: exact) and of a stored type (0: not a float). */
double par_unit_of_accumulator(enum fwd_accumulator a);
double par_unit_of_store(enum fwd_dtype t);
/* Inexact additions in the longest chain over k values, as declared. */
double par_chain_steps(const struct fwd_numerics *nm, int64_t k);
/* The same with the roundings of each term before it is added: the chain is that much longer. */
double par_sum_steps(const struct fwd_numerics *nm, int64_t k);
/* g(n) for unit roundoff u; 0 for n or u of 0. */
double par_gamma(double n, double u);

/* How far a sum of n steps may be off, times sum|t|. PAR_BOUND_LIKELY: g(n), or where that is smaller (short chains)
 * the worst case, n u / (1 - n u); PAR_BOUND_WORST: the worst case always. */
double par_growth(enum par_bound_mode mode, double n, double u);
/* Whether that is the worst case: no correct sum is outside it, and section 2.1's rules have nothing to excuse. */
bool par_growth_is_sure(enum par_bound_mode mode, double n, double u);
/* Probability that a correct run has any element outside its bound; 0 for PAR_BOUND_WORST. */
double par_bound_delta(enum par_bound_mode mode);

/* A declaration made ready for many elements. */
struct par_bound {
    double u;     /* of the accumulator */
    double n;     /* chain steps, the roundings of a term before it is added included */
    double g;     /* times sum|t|: the chain, and the spec's own F64 sum of k terms */
    double final; /* times |exact|: the final roundings, and the store */
    double tiny;  /* added: underflow in the chain and in the store */
    /* For a sum that the spec makes in the candidate's own order: an addition rounds by at most u of what it gives, so
     * the exact partial sums bound the chain better than n times sum|t| does. Times the sum of their magnitudes, where
     * nothing is left to chance; times the root of the sum of their squares, L of section 2 (or less, where the chain
     * is short) being in it; and times sum|t|: the terms' own roundings. The spec's F64 is in all of them. */
    double path, root, term;
    bool sure, sure_root; /* g, root leave nothing to chance */
    double limit;         /* a sum|t| from here on may overflow on its way, whatever it comes to: no bound */
};
/* k: length of the sum (n comes from it); n_terms: terms that the spec itself adds in F64. */
struct par_bound par_bound_make(const struct fwd_numerics *nm, enum par_bound_mode mode, int64_t k, int64_t n_terms);
static inline double par_bound_at(const struct par_bound *b, double sum_abs, double exact) {
    double magnitude = exact < 0 ? -exact : exact;
    if (!(sum_abs < b->limit))
        return __builtin_huge_val();
    return b->g * sum_abs + b->final * magnitude + b->tiny;
}
/* chain: b->path * (|s_1| + .. + |s_n|) or b->root * sqrt(s_1^2 + .. + s_n^2), s_k what the k-th addition gives in the
 * declared order, exactly. */
static inline double par_bound_in_order(const struct par_bound *b, double chain, double sum_abs, double exact) {
    double magnitude = exact < 0 ? -exact : exact;
    if (!(sum_abs < b->limit))
        return __builtin_huge_val();
    return chain + b->term * sum_abs + b->final * magnitude + b->tiny;
}
/* Rule 1 of section 2.1, terms swallowed whole by a large sum: what one term adds to the bound when sum|t| = a. The sum
 * over the terms is cut at n * u * a by the caller. */
static inline double par_swallowed(double u, double a, double term) {
    double t = term < 0 ? -term : term;
    if (!(t < 16 * u * a))
        return 0;
    return t < u * a ? t : u * a;
}

#endif
