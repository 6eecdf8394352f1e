#include "spec/look_matmul.h"

#include "spec/bound.h"
#include "spec/second_look.h"
#include "spec/spec_decode.h"

#include <math.h>

/* Terms of a product of blocks: scale product (rounded, as a term is declared to be) times the integer sum, and after
 * it the same of the minima. Returns their number. */
static int64_t fill_blocks(const struct par_matmul_look *l, double *a, double *b) {
    bool has_min = par_decode_has_min(l->w->type), f32 = l->numerics->accumulator == FWD_ACC_F32;
    const double *min_scale = l->min_scale ? l->min_scale : l->scale;
    int64_t n = 0;
    struct spec_block s;
    for (int64_t i = 0; i < l->w->n_cols / l->block; i++) {
        par_decode_block(l->w->type, l->w->data + l->row * l->w->row_bytes, i, &s);
        int32_t dot = 0, min_dot = 0;
        for (int k = 0; k < l->block; k++)
            dot += s.scale[k / 16] * s.q[k] * l->code[i * l->step * l->block + k];
        for (int g = 0; g < l->block / 16; g++)
            min_dot += s.min[g] * l->sum16[i * l->step * (l->block / 16) + g];
        double scales[2] = {(double)s.d * l->scale[i * l->step], -(double)s.dmin * min_scale[i * l->step]};
        int32_t sums[2] = {dot, min_dot};
        for (int t = 0; t < (has_min ? 2 : 1); t++, n++) {
            a[n] = f32 ? (double)(float)scales[t] : scales[t];
            b[n] = f32 ? (double)(float)sums[t] : (double)sums[t];
        }
    }
    return n;
}

static int64_t fill_floats(const struct par_matmul_look *l, double *a, double *b) {
    int64_t n = l->w->n_cols;
    float *decoded = fwd_alloc((size_t)n, sizeof *decoded);
    if (!decoded)
        return -1;
    par_decode_row(l->w->type, l->w->data + l->row * l->w->row_bytes, decoded, n);
    for (int64_t k = 0; k < n; k++) {
        a[k] = (double)decoded[k];
        b[k] = l->x[k];
    }
    fwd_free(decoded);
    return n;
}

bool par_look_matmul(const struct par_matmul_look *l, double exact, double got, double *expected, double *bound) {
    const struct fwd_numerics *nm = l->numerics;
    double *a = fwd_alloc(2 * (size_t)l->w->n_cols, sizeof *a);
    if (!a)
        return false;
    double *b = a + l->w->n_cols;
    int64_t n = l->block == 1 ? fill_floats(l, a, b) : fill_blocks(l, a, b);
    struct par_order orders[PAR_MOST_ORDERS], declared = {nm->lanes, nm->segment};
    bool is_declared = false, f32 = nm->accumulator == FWD_ACC_F32;
    double again[PAR_MOST_ORDERS];
    int n_orders = n < 0 ? 0 : par_orders(declared, par_chain_steps(nm, l->w->n_cols), n, orders, &is_declared);
    for (int i = 0; i < n_orders; i++) {
        again[i] = par_add_again(a, b, n, nm->accumulator, nm->fma, orders[i]);
        if (l->bias)
            again[i] = f32 ? (double)((float)again[i] + *l->bias) : again[i] + (double)*l->bias;
    }
    fwd_free(a);
    return par_second_look(again, n_orders, is_declared, nm->store, 0, exact, got, expected, bound);
}
