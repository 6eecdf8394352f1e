#include "spec/spec_tensor.h"

#include "spec/spec_decode.h"

#include <math.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* ---- formats ---- */
/* x >= 0, finite, to a multiple of 2^(e - bits), e its own power of two but at least `lowest`; halves to even. */
static inline double round_bits(double x, int bits, int lowest) {
    uint64_t u;
    memcpy(&u, &x, sizeof u);
    if ((int)(u >> 52) - 1023 >= lowest) { /* cut the mantissa, a carry raises the exponent */
        int cut = 52 - bits;
        u += ((uint64_t)1 << (cut - 1)) - 1 + (u >> cut & 1);
        u &= ~(((uint64_t)1 << cut) - 1);
        memcpy(&x, &u, sizeof x);
        return x;
    }
    double scaled = ldexp(x, bits - lowest), low = floor(scaled), rest = scaled - low;
    if (rest > 0.5 || (rest == 0.5 && fmod(low, 2) != 0))
        low += 1;
    return ldexp(low, lowest - bits);
}

static double to_bf16(double x) {
    if (!isfinite(x))
        return x;
    double y = round_bits(fabs(x), 7, -126);
    return copysign(y >= 0x1p128 ? HUGE_VAL : y, x);
}

static double to_e4m3(double x) {
    return copysign(fmin(round_bits(fabs(x), 3, -6), 448), x);
}

static double e4m3_value(uint8_t code) {
    int e = code >> 3 & 15, m = code & 7;
    double y = (code & 0x7f) == 0x7f ? (double)NAN : ldexp(e ? 8 + m : m, (e ? e : 1) - 10);
    return code & 0x80 ? -y : y;
}

bool par_tensor_format(enum fwd_dtype t) {
    return t == FWD_BF16 || t == FWD_E4M3;
}

void par_tensor_convert(enum fwd_dtype to, const float *x, int64_t n, double *value, double *scale) {
    float amax = 0;
    bool finite = true;
    *scale = 1;
    for (int64_t i = 0; i < n && to != FWD_E4M3; i++)
        value[i] = to == FWD_BF16 ? to_bf16((double)x[i]) : (double)par_f16_to_f32(par_f32_to_f16(x[i]));
    if (to != FWD_E4M3)
        return;
    for (int64_t i = 0; i < n; i++) {
        finite = finite && isfinite(x[i]);
        amax = fabsf(x[i]) > amax ? fabsf(x[i]) : amax;
    }
    bool zero = !finite || amax < 0x1p-100f;
    float d = amax / 448.0f, id = zero ? 0 : 448.0f / amax;
    *scale = !finite ? (double)NAN : zero ? 0 : (double)d;
    for (int64_t i = 0; i < n; i++) {
        float scaled = zero ? 0 : x[i] * id; /* one F32 rounding, then one to E4M3 */
        value[i] = to_e4m3((double)scaled);
    }
}

void par_tensor_read(enum fwd_dtype from, const uint8_t *row, int64_t n, double *value, double *scale) {
    *scale = 1;
    if (from == FWD_E4M3) {
        float d;
        memcpy(&d, row, sizeof d);
        *scale = (double)d;
        for (int64_t i = 0; i < n; i++)
            value[i] = e4m3_value(row[4 + i]);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)row[2 * i] << 16 | (uint32_t)row[2 * i + 1] << 24;
        float x;
        memcpy(&x, &bits, sizeof x);
        value[i] = (double)x;
    }
}

static uint8_t e4m3_code(double value) {
    double y = fabs(value);
    int e;
    (void)frexp(y, &e);
    unsigned code = isnan(y) ? 0x7f : y < 0x1p-6 ? (unsigned)ldexp(y, 9) : (unsigned)(ldexp(y, 4 - e) + 8 * (e + 5));
    return (uint8_t)(code | (signbit(value) ? 0x80 : 0));
}

void par_tensor_write(enum fwd_dtype to, const double *value, int64_t n, double scale, uint8_t *row) {
    float d = (float)scale;
    if (to == FWD_E4M3)
        memcpy(row, &d, sizeof d);
    for (int64_t i = 0; i < n; i++) {
        if (to == FWD_E4M3) {
            row[4 + i] = e4m3_code(value[i]);
            continue;
        }
        float x = (float)value[i];
        uint32_t bits;
        memcpy(&bits, &x, sizeof bits);
        bits = isnan(x) ? 0x7fff0000u : bits;
        row[2 * i] = (uint8_t)(bits >> 16);
        row[2 * i + 1] = (uint8_t)(bits >> 24);
    }
}

/* ---- sums ---- */
bool par_tensor_make(const struct fwd_numerics *nm, int64_t n, struct spec_tensor *out) {
    if (nm->chain_block < 1 || nm->chain_per_block != 1 || nm->cut_bits < 1 || nm->promote % nm->chain_block)
        return false;
    *out = (struct spec_tensor){.step = nm->chain_block, .promote = nm->promote ? nm->promote : n};
    out->joins = nm->chain_extra;
    out->cut = (nm->chain_block + 1) * ldexp(1, -nm->cut_bits) + 0x1p-23;
    return true;
}

/* What a chain has lost, from the sum over its steps of their largest magnitudes. part_peak: the largest sum so far
 * within what is promoted, total_peak: and of the F32 totals. Second order: 1 + 2^-10. */
INLINE double add_losses(const struct spec_tensor *t, int64_t n, double path, double part_peak, double total_path,
                         double total_peak, double sum_abs) {
    int64_t n_steps = (n + t->step - 1) / t->step;
    if (t->promote >= n)
        total_path = total_peak = 0; /* nothing is */
    if (t->joins) {
        /* Parts are whole numbers of what is promoted. */
        path += t->promote >= n ? (double)n_steps * part_peak : 0;
        total_path += (double)(n / t->promote) * total_peak + 2 * t->joins * fmax(total_peak, part_peak);
    }
    return (t->cut * path + 0x1p-24 * total_path) * (1 + 0x1p-10) + (double)n * 0x1p-53 * sum_abs;
}

struct spec_tensor_sum par_tensor_dot(const struct spec_tensor *t, const double *a, const double *b, int64_t n) {
    double part = 0, total = 0, path = 0, part_peak = 0, total_path = 0, total_peak = 0, sum_abs = 0;
    for (int64_t from = 0; from < n; from += t->step) {
        int64_t to = n - from < t->step ? n : from + t->step;
        double most = fabs(part);
        for (int64_t k = from; k < to; k++) {
            double p = a[k] * b[k], size = fabs(p);
            part += p;
            sum_abs += size;
            most = size > most ? size : most;
        }
        path += fmax(most, fabs(part));
        part_peak = fmax(part_peak, fabs(part));
        if (to % t->promote == 0 || to == n) {
            total += part;
            part = 0;
            total_path += fabs(total);
            total_peak = fmax(total_peak, fabs(total));
        }
    }
    return (struct spec_tensor_sum){total, sum_abs, add_losses(t, n, path, part_peak, total_path, total_peak, sum_abs)};
}

/* A row a lane. */
typedef double lanes __attribute__((vector_size(32)));
typedef int64_t lane_bits __attribute__((vector_size(32)));
_Static_assert(SPEC_DOT_ROWS == sizeof(lanes) / sizeof(double), "a row of w a lane");

/* Macros: as functions they would pass vectors that plain targets have no registers for. */
#define MAGNITUDES(x) ((lanes)((lane_bits)(x)&INT64_MAX))
#define LARGER(a, b) ((lanes)(((lane_bits)(a) & ((a) > (b))) | ((lane_bits)(b) & ~((a) > (b)))))

/* par_tensor_dot for SPEC_DOT_ROWS rows and SPEC_DOT_POSITIONS positions, the same operations in the same order. */
INLINE void sum_rows(const struct spec_tensor *t, const double *restrict w, const double *const *x, int64_t n,
                     struct spec_tensor_sum (*out)[SPEC_DOT_ROWS]) {
    enum { P = SPEC_DOT_POSITIONS };
    lanes part[P] = {{0}}, total[P] = {{0}}, path[P] = {{0}}, part_peak[P] = {{0}}, total_path[P] = {{0}},
          total_peak[P] = {{0}}, sum_abs[P] = {{0}}, most[P];
    for (int64_t from = 0; from < n; from += t->step) {
        int64_t to = n - from < t->step ? n : from + t->step;
        for (int i = 0; i < P; i++)
            most[i] = MAGNITUDES(part[i]);
        for (int64_t k = from; k < to; k++) {
            lanes row;
            memcpy(&row, w + k * SPEC_DOT_ROWS, sizeof row);
            for (int i = 0; i < P; i++) {
                lanes p = row * x[i][k], size = MAGNITUDES(p);
                part[i] += p;
                sum_abs[i] += size;
                most[i] = LARGER(size, most[i]);
            }
        }
        bool ends = to % t->promote == 0 || to == n;
        for (int i = 0; i < P; i++) {
            path[i] += LARGER(most[i], MAGNITUDES(part[i]));
            part_peak[i] = LARGER(part_peak[i], MAGNITUDES(part[i]));
            if (!ends)
                continue;
            total[i] += part[i];
            part[i] = (lanes){0};
            total_path[i] += MAGNITUDES(total[i]);
            total_peak[i] = LARGER(total_peak[i], MAGNITUDES(total[i]));
        }
    }
    for (int i = 0; i < P; i++)
        for (int r = 0; r < SPEC_DOT_ROWS; r++)
            out[i][r] = (struct spec_tensor_sum){
                total[i][r], sum_abs[i][r],
                add_losses(t, n, path[i][r], part_peak[i][r], total_path[i][r], total_peak[i][r], sum_abs[i][r])};
}

static void rows_plain(const struct spec_tensor *t, const double *w, const double *const *x, int64_t n,
                       struct spec_tensor_sum (*out)[SPEC_DOT_ROWS]) {
    sum_rows(t, w, x, n, out);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static void rows_avx2(const struct spec_tensor *t, const double *w,
                                                      const double *const *x, int64_t n,
                                                      struct spec_tensor_sum (*out)[SPEC_DOT_ROWS]) {
    sum_rows(t, w, x, n, out);
}
#endif

void par_tensor_rows(const struct spec_tensor *t, unsigned caps, const double *w,
                     const double *const x[SPEC_DOT_POSITIONS], int64_t n,
                     struct spec_tensor_sum out[SPEC_DOT_POSITIONS][SPEC_DOT_ROWS]) {
#if defined(__x86_64__)
    if (fwd_cpu_detect() & (caps ? caps : ~0u) & (FWD_CPU_AVX2 | FWD_CPU_AVX512)) {
        rows_avx2(t, w, x, n, out);
        return;
    }
#else
    (void)caps;
#endif
    rows_plain(t, w, x, n, out);
}
