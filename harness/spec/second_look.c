#include "spec/second_look.h"

#include <float.h>
#include <math.h>

enum { MOST_LANES = 256 };

double par_order_steps(struct par_order order, int64_t n) {
    int64_t segment = order.segment > 0 && order.segment < n ? order.segment : n;
    int64_t n_segments = segment > 0 ? (n + segment - 1) / segment : 0;
    double tree = ceil(log2((double)order.lanes));
    return (double)((segment + order.lanes - 1) / order.lanes) + tree + (double)(n_segments > 1 ? n_segments - 1 : 0);
}

int par_orders(struct par_order declared, double chain_steps, int64_t n, struct par_order orders[PAR_MOST_ORDERS],
               bool *is_declared) {
    static const int tried[PAR_MOST_ORDERS] = {1, 4, 8, 16, 32};
    *is_declared = declared.lanes > 0;
    int n_orders = 0;
    if (*is_declared) {
        orders[0] = declared;
        return declared.lanes <= MOST_LANES && par_order_steps(declared, n) <= chain_steps;
    }
    for (int i = 0; i < PAR_MOST_ORDERS; i++) {
        struct par_order order = {tried[i], 0};
        if (par_order_steps(order, n) <= chain_steps)
            orders[n_orders++] = order;
    }
    return n_orders;
}

static double add_f32(const double *a, const double *b, int64_t n, bool fma, struct par_order o) {
    float lane[MOST_LANES] = {0};
    for (int64_t i = 0; i < n; i++) {
        float *acc = &lane[i % o.lanes], x = (float)a[i];
        if (!b)
            *acc += x;
        else if (fma)
            *acc = fmaf(x, (float)b[i], *acc);
        else
            *acc += x * (float)b[i];
    }
    for (int left = o.lanes; left > 1; left = (left + 1) / 2)
        for (int l = 0; l + (left + 1) / 2 < left; l++)
            lane[l] += lane[l + (left + 1) / 2];
    return (double)lane[0];
}

static double add_f64(const double *a, const double *b, int64_t n, bool fused, struct par_order o) {
    double lane[MOST_LANES] = {0};
    for (int64_t i = 0; i < n; i++) {
        double *acc = &lane[i % o.lanes];
        if (!b)
            *acc += a[i];
        else if (fused)
            *acc = fma(a[i], b[i], *acc);
        else
            *acc += a[i] * b[i];
    }
    for (int left = o.lanes; left > 1; left = (left + 1) / 2)
        for (int l = 0; l + (left + 1) / 2 < left; l++)
            lane[l] += lane[l + (left + 1) / 2];
    return lane[0];
}

double par_add_again(const double *a, const double *b, int64_t n, enum fwd_accumulator type, bool fma,
                     struct par_order order) {
    bool f32 = type == FWD_ACC_F32;
    int64_t step = order.segment > 0 ? order.segment : n;
    double sum = 0;
    for (int64_t at = 0; at < n; at += step) {
        int64_t count = n - at < step ? n - at : step;
        const double *part_b = b ? b + at : NULL;
        double part = f32 ? add_f32(a + at, part_b, count, fma, order) : add_f64(a + at, part_b, count, fma, order);
        sum = f32 ? (double)((float)sum + (float)part) : sum + part;
    }
    return sum;
}

/* One unit in the last place of a value of the type. */
static double ulp_of(enum fwd_dtype t, double x) {
    int bits = t == FWD_F64 ? 53 : t == FWD_F16 ? 11 : 24, lowest = t == FWD_F64 ? -1074 : t == FWD_F16 ? -24 : -149;
    int exponent;
    (void)frexp(x, &exponent);
    return ldexp(1, exponent - bits > lowest ? exponent - bits : lowest);
}

bool par_second_look(const double *again, int n, bool is_declared, enum fwd_dtype store, double slack, double exact,
                     double got, double *expected, double *bound) {
    double off = fabs(got - exact), made = 0; /* by the order of the additions alone */
    for (int i = 0; i < n; i++)
        made = fmax(made, fabs(again[i] - exact));
    if (n == 0 || made < off / 2)
        return false;
    *expected = is_declared ? again[0] : exact;
    *bound = (is_declared ? 4 * ulp_of(store, again[0]) : 2 * made) + slack;
    return fabs(got - *expected) <= *bound;
}
