#include "spec/spec_dot.h"

#include "engine.h"

#include <math.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* out[p][r] = a[r] . b[p] over n values: with n a constant the compiler keeps all the sums in registers. */
INLINE void int_dots(const int16_t *restrict a, const int16_t *restrict b, int n,
                     int32_t out[restrict SPEC_DOT_POSITIONS][SPEC_DOT_ROWS]) {
    int32_t sum[SPEC_DOT_POSITIONS][SPEC_DOT_ROWS] = {{0}};
    for (int i = 0; i < n; i++)
        for (int p = 0; p < SPEC_DOT_POSITIONS; p++)
            for (int r = 0; r < SPEC_DOT_ROWS; r++)
                sum[p][r] += (int32_t)a[r * n + i] * (int32_t)b[p * n + i];
    for (int p = 0; p < SPEC_DOT_POSITIONS; p++)
        for (int r = 0; r < SPEC_DOT_ROWS; r++)
            out[p][r] = sum[p][r];
}

/* One block of all rows at two positions, onto sum and sum_abs of these positions. */
INLINE void add_block(const struct spec_tile *t, int64_t b, int p, int block, bool has_min) {
    int32_t dot[SPEC_DOT_POSITIONS][SPEC_DOT_ROWS], min_dot[SPEC_DOT_POSITIONS][SPEC_DOT_ROWS];
    int64_t at = b * t->n_pos + p;
    int groups = block / 16;
    int_dots(t->code + b * SPEC_DOT_ROWS * block, t->act + at * block, block, dot);
    if (has_min)
        int_dots(t->min + b * SPEC_DOT_ROWS * groups, t->sum16 + at * groups, groups, min_dot);
    const double *restrict d = t->d + b * SPEC_DOT_ROWS, *restrict dmin = t->dmin + b * SPEC_DOT_ROWS;
    for (int i = 0; i < SPEC_DOT_POSITIONS; i++) {
        double scale = t->scale[at + i], min_scale = t->min_scale[at + i];
        double *restrict sum = t->sum + (p + i) * SPEC_DOT_ROWS;
        double *restrict sum_abs = t->sum_abs + (p + i) * SPEC_DOT_ROWS;
        double *restrict path = t->path + (p + i) * SPEC_DOT_ROWS;
        for (int r = 0; r < SPEC_DOT_ROWS; r++) {
            double term = d[r] * scale * dot[i][r], min_term = has_min ? dmin[r] * min_scale * min_dot[i][r] : 0.0;
            path[r] += has_min ? fabs(sum[r] + term) : 0;
            sum[r] += term - min_term;
            path[r] += fabs(sum[r]);
            sum_abs[r] += fabs(term) + fabs(min_term);
        }
    }
}

INLINE void sum_tile(const struct spec_tile *t, int block, bool has_min) {
    for (int i = 0; i < t->n_pos * SPEC_DOT_ROWS; i++)
        t->sum[i] = t->sum_abs[i] = t->path[i] = 0;
    for (int64_t b = 0; b < t->n_blocks; b++)
        for (int p = 0; p < t->n_pos; p += SPEC_DOT_POSITIONS)
            add_block(t, b, p, block, has_min);
}

/* Four lanes that the compiler maps to whatever the target has. */
typedef double lanes __attribute__((vector_size(32)));
typedef int64_t lane_bits __attribute__((vector_size(32)));

/* Two rows at once, eight lanes each: fewer would wait for their own additions. */
INLINE void f64_pair(const double *restrict w, int64_t ld, const double *restrict x, int64_t n, double *restrict sum,
                     double *restrict sum_abs) {
    lanes s[2][2] = {{{0}}}, a[2][2] = {{{0}}};
    int64_t k = 0;
    for (; k + 8 <= n; k += 8)
        for (int r = 0; r < 2; r++)
            for (int h = 0; h < 2; h++) {
                lanes wv, xv;
                memcpy(&wv, w + r * ld + k + 4 * h, sizeof wv);
                memcpy(&xv, x + k + 4 * h, sizeof xv);
                wv *= xv;
                s[r][h] += wv;
                a[r][h] += (lanes)((lane_bits)wv & INT64_MAX);
            }
    for (; k < n; k++)
        for (int r = 0; r < 2; r++) {
            double t = w[r * ld + k] * x[k];
            s[r][0][0] += t;
            a[r][0][0] += fabs(t);
        }
    for (int r = 0; r < 2; r++) {
        const lanes *u = s[r], *v = a[r];
        sum[r] = ((u[0][0] + u[0][1]) + (u[0][2] + u[0][3])) + ((u[1][0] + u[1][1]) + (u[1][2] + u[1][3]));
        sum_abs[r] = ((v[0][0] + v[0][1]) + (v[0][2] + v[0][3])) + ((v[1][0] + v[1][1]) + (v[1][2] + v[1][3]));
    }
}

INLINE void f64_dots(const double *w, int64_t ld, const double *x, int64_t n, double *sum, double *sum_abs) {
    for (int r = 0; r < SPEC_DOT_ROWS; r += 2)
        f64_pair(w + r * ld, ld, x, n, sum + r, sum_abs + r);
}

_Static_assert(SPEC_DOT_ROWS == sizeof(lanes) / sizeof(double), "a row of w a lane");

INLINE void f64_ordered(const double *restrict w, const double *const x[SPEC_DOT_POSITIONS], int64_t n, int64_t segment,
                        double *restrict sum, double *restrict sum_abs, double *restrict squares) {
    lanes total[SPEC_DOT_POSITIONS] = {{0}}, a[SPEC_DOT_POSITIONS] = {{0}}, q[SPEC_DOT_POSITIONS] = {{0}};
    for (int64_t from = 0; from < n; from += segment) {
        int64_t to = n - from < segment ? n : from + segment;
        lanes s[SPEC_DOT_POSITIONS] = {{0}};
        for (int64_t k = from; k < to; k++) {
            lanes wv;
            memcpy(&wv, w + k * SPEC_DOT_ROWS, sizeof wv);
            for (int p = 0; p < SPEC_DOT_POSITIONS; p++) {
                lanes t = wv * x[p][k];
                s[p] += t;
                a[p] += (lanes)((lane_bits)t & INT64_MAX);
                q[p] += s[p] * s[p];
            }
        }
        for (int p = 0; p < SPEC_DOT_POSITIONS; p++) {
            total[p] += s[p];
            if (from > 0)
                q[p] += total[p] * total[p];
        }
    }
    memcpy(sum, total, sizeof total);
    memcpy(sum_abs, a, sizeof a);
    memcpy(squares, q, sizeof q);
}

/* One instantiation of the loops for a target. */
#define DOTS(suffix, attribute)                                                                                        \
    attribute static void block256_##suffix(const struct spec_tile *t) {                                               \
        sum_tile(t, 256, false);                                                                                       \
    }                                                                                                                  \
    attribute static void block256_min_##suffix(const struct spec_tile *t) {                                           \
        sum_tile(t, 256, true);                                                                                        \
    }                                                                                                                  \
    attribute static void block32_##suffix(const struct spec_tile *t) {                                                \
        sum_tile(t, 32, false);                                                                                        \
    }                                                                                                                  \
    attribute static void block32_min_##suffix(const struct spec_tile *t) {                                            \
        sum_tile(t, 32, true);                                                                                         \
    }                                                                                                                  \
    attribute static void f64_##suffix(const double *w, int64_t ld, const double *x, int64_t n, double *sum,           \
                                       double *sum_abs) {                                                              \
        f64_dots(w, ld, x, n, sum, sum_abs);                                                                           \
    }                                                                                                                  \
    attribute static void f64_ordered_##suffix(const double *w, const double *const x[SPEC_DOT_POSITIONS], int64_t n,  \
                                               int64_t segment, double *sum, double *sum_abs, double *squares) {       \
        f64_ordered(w, x, n, segment, sum, sum_abs, squares);                                                          \
    }                                                                                                                  \
    static const struct spec_dots dots_##suffix = {block256_##suffix,    block256_min_##suffix, block32_##suffix,      \
                                                   block32_min_##suffix, f64_##suffix,          f64_ordered_##suffix};

DOTS(plain, )
#if defined(__x86_64__)
DOTS(avx2, __attribute__((target("avx2"))))
DOTS(avx512, __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,prefer-vector-width=512"))))
#endif

struct spec_dots par_spec_dots(unsigned caps) {
#if defined(__x86_64__)
    unsigned have = fwd_cpu_detect() & (caps ? caps : ~0u);
    if (have & FWD_CPU_AVX512)
        return dots_avx512;
    if (have & FWD_CPU_AVX2)
        return dots_avx2;
#else
    (void)caps;
#endif
    return dots_plain;
}
