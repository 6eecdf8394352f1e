/* harness/spec/second_look.h: numerics.md section 2.1, rule 2. An element outside its bound is looked at again before
 * it is accused: its sum is added again, in the arithmetic and the order that the path declares. Rounding that is the
 * same every time the sum is made that way (equal terms round the same way at each step) is systematic, not a fault.
 *
 * Where the order is not declared, one after the other and 4, 8, 16 and 32 lanes are tried, and up to twice the largest
 * error among them is systematic. An order with a longer chain than the declared one contradicts the declaration and
 * excuses nothing. All of this runs for elements outside their bounds only. */
#ifndef HARNESS_SPEC_SECOND_LOOK_H
#define HARNESS_SPEC_SECOND_LOOK_H

#include "engine.h"

/* As fwd_numerics.lanes and .segment. */
struct par_order {
    int lanes, segment;
};
enum { PAR_MOST_ORDERS = 5 };
/* The orders in which a sum of n terms may have been made; returns how many. declared.lanes == 0: not declared;
 * chain_steps: the longest chain that is. *is_declared: one order, and it is the declared one. */
int par_orders(struct par_order declared, double chain_steps, int64_t n, struct par_order orders[PAR_MOST_ORDERS],
               bool *is_declared);
/* Additions in the longest chain of n terms added in this order. */
double par_order_steps(struct par_order order, int64_t n);

/* sum of a[i] * b[i] (b NULL: of a[i]) as added in F32 or F64, `fma` or each product rounded first. Inputs are values
 * of that type. order.lanes: 1 to 256. */
double par_add_again(const double *a, const double *b, int64_t n, enum fwd_accumulator type, bool fma,
                     struct par_order order);

/* Whether `got` may be systematic rounding of `exact`, given results made again in n orders (of which the only one is
 * the declared one, or none is). slack: what may come on top that was not made again. If so, *expected and *bound are
 * what it is to be judged against instead. 4 ulp of `store` are allowed about the declared order's result, and at least
 * half of the error must be the order's doing: a few ulp of anything else are no matter of order. */
bool par_second_look(const double *again, int n, bool is_declared, enum fwd_dtype store, double slack, double exact,
                     double got, double *expected, double *bound);

#endif
