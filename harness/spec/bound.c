#include "spec/bound.h"

#include <float.h>
#include <math.h>

double par_unit_of_accumulator(enum fwd_accumulator a) {
    return a == FWD_ACC_F32 || a == FWD_ACC_TENSOR ? 0x1p-24 : a == FWD_ACC_F64 ? 0x1p-53 : 0.0;
}

double par_unit_of_store(enum fwd_dtype t) {
    return t == FWD_F32 ? 0x1p-24 : t == FWD_F64 ? 0x1p-53 : t == FWD_F16 ? 0x1p-11 : 0.0;
}

double par_chain_steps(const struct fwd_numerics *nm, int64_t k) {
    if (nm->accumulator == FWD_ACC_EXACT)
        return 0;
    /* A declaration without a chain means one addition after the other. */
    if (nm->chain_block <= 0)
        return (double)k;
    int64_t blocks = (k + nm->chain_block - 1) / nm->chain_block;
    return (double)(blocks * nm->chain_per_block + nm->chain_extra);
}

/* L of section 2. */
static double chance_factor(void) {
    return sqrt(2 * log(2 * PAR_BOUND_ELEMENTS / PAR_BOUND_DELTA));
}

double par_gamma(double n, double u) {
    if (!(n > 0) || !(u > 0))
        return 0;
    return expm1(chance_factor() * sqrt(n) * u + n * u * u / (1 - u));
}

double par_sum_steps(const struct fwd_numerics *nm, int64_t k) {
    double n = par_chain_steps(nm, k);
    return n > 0 ? n + nm->term_roundings + (nm->fma ? 0 : 1) : 0;
}

double par_growth(enum par_bound_mode mode, double n, double u) {
    double worst = n * u < 0.5 ? n * u / (1 - n * u) : HUGE_VAL;
    if (!(n > 0) || mode == PAR_BOUND_WORST)
        return n > 0 ? worst : 0;
    return fmin(par_gamma(n, u), worst);
}

bool par_growth_is_sure(enum par_bound_mode mode, double n, double u) {
    return mode == PAR_BOUND_WORST || !(par_gamma(n, u) < n * u / (1 - n * u));
}

double par_bound_delta(enum par_bound_mode mode) {
    return mode == PAR_BOUND_WORST ? 0 : PAR_BOUND_DELTA;
}

struct par_bound par_bound_make(const struct fwd_numerics *nm, enum par_bound_mode mode, int64_t k, int64_t n_terms) {
    struct par_bound b;
    double store = par_unit_of_store(nm->store);
    b.u = par_unit_of_accumulator(nm->accumulator);
    b.n = par_sum_steps(nm, k);
    double own = par_growth(mode, (double)n_terms, 0x1p-53);
    b.g = par_growth(mode, b.n, b.u) + own;
    /* The declared roundings happen in the accumulator's type or in the stored one, whichever is coarser, and the store
     * is one of them; only a half-float store is another, coarser one. */
    double coarse = b.u > store ? b.u : store;
    bool half_store = store > 0x1p-24;
    if (half_store)
        coarse = b.u > 0x1p-24 ? b.u : 0x1p-24;
    bool store_left_out = store > b.u && (half_store || nm->final_roundings < 1);
    b.final = nm->final_roundings * coarse + (store_left_out ? store : 0) + 0x1p-52;
    b.sure = par_growth_is_sure(mode, b.n, b.u);
    /* What the errors of earlier steps add to later ones is of second order: 1 / (1 - n u). */
    double later = b.n * b.u < 0.5 ? 1 / (1 - b.n * b.u) : HUGE_VAL;
    double l = chance_factor(), n_additions = 2.0 * (double)n_terms; /* with those that join segments: at most */
    b.path = (b.u + 0x1p-53) * later;
    b.sure_root = mode == PAR_BOUND_WORST || n_additions <= l * l;
    b.root = (b.sure_root ? sqrt(n_additions) : l) * b.path;
    b.term = (nm->term_roundings + (nm->fma ? 0 : 1)) * b.u * later + 3 * 0x1p-53;
    b.limit = nm->accumulator == FWD_ACC_F32 ? (double)FLT_MAX : HUGE_VAL;
    double smallest = nm->ftz ? (double)FLT_MIN : 0x1p-149;
    b.tiny = nm->store == FWD_F64 ? 0x1p-1000 : (b.n + nm->final_roundings + 1) * smallest;
    if (nm->store == FWD_F16)
        b.tiny += 0x1p-25;
    return b;
}
