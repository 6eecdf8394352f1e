/* test_cuda_tc.c: what computes on tensor cores in BF16 and E4M3: conversions bit for bit against plain C, products and
 * attention against sums in double within what cuda_tc_numerics declares, on awkward shapes; and a probe of every
 * instruction used, which fails where the declaration does not cover what it shows. With --time [part]: a layer's
 * calls, at the shapes of real models. */
#include "cuda/kernels_tc.h"

#include "core/half.h"
#include "core/memory.h"
#include "test/cuda_tc_time.h"
#include "test/cuda_test.h"

#include <math.h>

static struct cuda_lt *lt;
static int major; /* of the card's compute capability */
static double worst_ratio;

static uint64_t rng_state = 1;

static uint32_t next_random(void) {
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng_state >> 33);
}

/* Roughly normal, variance 1. */
static float next_normal(void) {
    float sum = 0;
    for (int i = 0; i < 12; i++)
        sum += (float)(next_random() >> 7) * 0x1p-24f;
    return sum - 6.0f;
}

/* ---- the formats in plain C -------------------------------------------------------------------------------------- */
static uint16_t to_bf16(float x) {
    uint32_t bits = fwd_f32_bits(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return 0x7fff;
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static double e4m3_to_double(uint8_t code) {
    int e = code >> 3 & 15, m = code & 7;
    double magnitude = (code & 0x7f) == 0x7f ? (double)NAN : e ? ldexp(8 + m, e - 10) : ldexp(m, -9);
    return code & 0x80 ? -magnitude : magnitude;
}

/* By search: the nearest of all values, the even code of two equally near ones. */
static uint8_t to_e4m3(float x) {
    static double value[0x7f];
    double target = fabs((double)x), best_off = HUGE_VAL;
    uint8_t best = 0;
    for (uint8_t code = 0; value[0x7e] == 0 && code < 0x7f; code++)
        value[code] = e4m3_to_double(code);
    for (uint8_t code = 0; code < 0x7f; code++) {
        double off = fabs(value[code] - target);
        if (off < best_off || (off == best_off && code % 2 == 0)) {
            best = code;
            best_off = off;
        }
    }
    return (uint8_t)(best | (signbit(x) ? 0x80 : 0));
}

/* A row of n by the rule of cuda/e4m3.cuh. */
static float e4m3_row(const float *x, int n, uint8_t *code) {
    float amax = 0;
    bool finite = true;
    for (int i = 0; i < n; i++) {
        finite = finite && isfinite(x[i]);
        amax = fmaxf(amax, fabsf(x[i]));
    }
    for (int i = 0; i < n; i++)
        code[i] = 0;
    if (!finite)
        return fwd_bits_f32(0x7fc00000u);
    if (amax < 0x1p-100f)
        return 0;
    float id = 448.0f / amax;
    for (int i = 0; i < n; i++)
        code[i] = to_e4m3(x[i] * id);
    return amax / 448.0f;
}

/* ---- conversions ------------------------------------------------------------------------------------------------- */
static void fill_row(int kind, float *x, int n) {
    for (int i = 0; i < n; i++) {
        float v = next_normal();
        switch (kind) {
        case 1: /* ties of BF16 */
            v = fwd_bits_f32((fwd_f32_bits(v) & 0xffff0000u) | 0x8000u);
            break;
        case 2: /* ties of E4M3: amax 448 */
            v = i == n / 2 ? -448.0f
                           : (float)(17 + 2 * (int)(next_random() % 8)) * ldexpf(1, (int)(next_random() % 17) - 13);
            break;
        case 3:
            v = next_random() % 100 ? v : v * 1e6f;
            break;
        case 4:
            v = 0;
            break;
        case 5:
            v *= 0x1p-104f;
            break;
        case 6:
            v = next_random() % 300 ? v : NAN;
            break;
        case 7:
            v = next_random() % 300 ? v : -INFINITY;
            break;
        case 8:
            v *= 0x1p125f;
            break;
        default:
            break;
        }
        x[i] = v;
    }
}

static void check_convert(int n, int n_pos, int64_t ld) {
    size_t values = (size_t)n * (size_t)n_pos;
    float *x = fwd_alloc(values, 4);
    uint8_t *got = fwd_alloc((size_t)ld * (size_t)n_pos, 2), *code = fwd_alloc((size_t)n, 1);
    uint8_t *tap = fwd_alloc(fwd_dtype_row_bytes(FWD_BF16, n) + 8, (size_t)n_pos);
    float *scale = fwd_alloc((size_t)n_pos, 4);
    for (int m = 0; m < n_pos; m++)
        fill_row(m % 9, x + (size_t)m * (size_t)n, n);
    for (int form = CUDA_FORM_BF16; form <= CUDA_FORM_E4M3; form++) {
        bool bf16 = form == CUDA_FORM_BF16;
        size_t size = bf16 ? 2 : 1, row = fwd_dtype_row_bytes(bf16 ? FWD_BF16 : FWD_E4M3, n);
        cuda_test_start(values * 4 + (size_t)ld * (size_t)n_pos * 4 + row * (size_t)n_pos + (size_t)n_pos * 8 + 8192);
        struct cuda_tc_act out = {(enum cuda_form)form, ld, cuda_test_room((size_t)ld * (size_t)n_pos * size),
                                  cuda_test_room((size_t)n_pos * 4)};
        struct cuda_tc_act back = {(enum cuda_form)form, ld, cuda_test_room((size_t)ld * (size_t)n_pos * size),
                                   cuda_test_room((size_t)n_pos * 4)};
        float *x_device = cuda_test_put(x, values * 4);
        uint8_t *tap_device = cuda_test_room(row * (size_t)n_pos);
        cuda_tc_convert(NULL, x_device, n, n_pos, &out, tap_device);
        cuda_test_get(tap, tap_device, row * (size_t)n_pos);
        for (int again = 0; again < 2; again++) {
            const struct cuda_tc_act *a = again ? &back : &out;
            if (again)
                cuda_tc_from_tap(NULL, tap_device, n, n_pos, &back);
            cuda_test_get(got, a->data, (size_t)ld * (size_t)n_pos * size);
            cuda_test_get(scale, a->scale, (size_t)n_pos * 4);
            for (int m = 0; m < n_pos; m++) {
                const float *src = x + (size_t)m * (size_t)n;
                const uint8_t *line = got + (size_t)ld * (size_t)m * size, *side = tap + row * (size_t)m;
                float want = bf16 ? 0 : e4m3_row(src, n, code);
                if (!bf16) {
                    ck_assert_msg(!memcmp(&scale[m], &want, 4) && !memcmp(side, &want, 4),
                                  "scale of row %d of %d: %a, tap %a, expected %a", m, n, (double)scale[m],
                                  (double)*(const float *)side, (double)want);
                    side += 4;
                }
                for (int i = 0; i < n; i++) {
                    unsigned expected = bf16 ? to_bf16(src[i]) : code[i];
                    unsigned is = bf16 ? ((const uint16_t *)(const void *)line)[i] : line[i];
                    unsigned on_side = bf16 ? ((const uint16_t *)(const void *)side)[i] : side[i];
                    ck_assert_msg(is == expected && on_side == expected,
                                  "form %d, value %d of row %d of %d: %a is 0x%x, in the tap 0x%x, expected 0x%x", form,
                                  i, m, n, (double)src[i], is, on_side, expected);
                }
                for (size_t i = (size_t)n * size; i < (size_t)ld * size; i++)
                    ck_assert_msg(line[i] == 0xcb, "byte %zu behind row %d of %d was written", i, m, n);
            }
        }
        cuda_test_end();
    }
    fwd_free(x);
    fwd_free(got);
    fwd_free(code);
    fwd_free(tap);
    fwd_free(scale);
}

START_TEST(test_convert) {
    static const int sizes[] = {32, 64, 576, 896, 1536, 3584, 4096, 4112, 8960, 10256, 18944};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        check_convert(sizes[i], i < 6 ? 27 : 9, sizes[i] + (i % 2 ? 16 : 0));
}
END_TEST

/* ---- how far a tensor core's sum may be off ---------------------------------------------------------------------- */
/* What the declared steps leave of a sum of n products: each cuts its addends at 2^-cut_bits of the largest one's power
 * of two, and what they give to F32; partial sums of a split are no larger than the difference of two. */
struct step_sum {
    double exact, magnitude;
    double bound; /* of the sum alone: not of the final roundings */
};

static struct step_sum add_steps(const struct fwd_numerics *nm, const double *a, const double *b, int n) {
    struct step_sum s = {0};
    double path = 0, peak = 0, part = 0, joins = 0;
    for (int k = 0; k < n; k += nm->chain_block) {
        double top = fabs(part);
        for (int i = k; i < k + nm->chain_block && i < n; i++) {
            double t = a[i] * b[i];
            part += t;
            s.exact += t;
            s.magnitude += fabs(t);
            top = fmax(top, fabs(t));
        }
        path += fmax(fabs(part), top);
        peak = fmax(peak, fabs(part));
        if (nm->promote && (k + nm->chain_block) % nm->promote == 0) {
            joins += fabs(s.exact);
            part = 0;
        }
    }
    double steps = (double)((n + nm->chain_block - 1) / nm->chain_block);
    double cut = (nm->chain_block + 1) * ldexp(1, -nm->cut_bits) + 0x1p-23;
    if (!nm->promote)
        path += steps * peak;
    s.bound = cut * path + (joins + (nm->chain_extra + 1) * s.magnitude) * 0x1p-24 + 0x1p-140;
    return s;
}

/* ---- products ---------------------------------------------------------------------------------------------------- */
enum data_kind { MIXED, POSITIVE, MASSIVE, N_DATA };

struct product {
    enum cuda_form form;
    int n, k;
    bool bias, fast;
    enum data_kind kind;
};

/* Bits of n_rows x k values; as values: exact[]. Scales for E4M3. */
static void make_matrix(enum cuda_form form, enum data_kind kind, bool activations, int n_rows, int k, uint8_t *bits,
                        double *value, float *scale) {
    for (int r = 0; r < n_rows; r++) {
        scale[r] = form == CUDA_FORM_E4M3
                       ? ldexpf(1.0f + (float)(next_random() % 1000) * 0.001f, (int)(next_random() % 9) - 4)
                       : 1.0f;
        for (int i = 0; i < k; i++) {
            float x = next_normal();
            if (kind == POSITIVE)
                x = fabsf(x);
            if (kind == MASSIVE && activations && i == 0)
                x = form == CUDA_FORM_E4M3 ? 448.0f : 3000.0f;
            size_t at = (size_t)r * (size_t)k + (size_t)i;
            if (form == CUDA_FORM_E4M3) {
                bits[at] = to_e4m3(x * (kind == MASSIVE ? 1.0f : 100.0f));
                value[at] = e4m3_to_double(bits[at]);
            } else {
                uint16_t h = to_bf16(x);
                memcpy(bits + 2 * at, &h, 2);
                value[at] = (double)fwd_bf16_to_f32(h);
            }
        }
    }
}

static void check_products(const struct product *p, const int *n_pos, int n_shapes, int most) {
    struct fwd_numerics nm;
    cuda_tc_numerics_matmul(major, p->form, p->fast, p->bias, &nm);
    size_t size = p->form == CUDA_FORM_BF16 ? 2 : 1, k = (size_t)p->k, n = (size_t)p->n, m_most = (size_t)most;
    uint8_t *w_bits = fwd_alloc(n * k, size), *x_bits = fwd_alloc(m_most * k, size);
    double *w = fwd_alloc(n * k, 8), *x = fwd_alloc(m_most * k, 8);
    float *w_scale = fwd_alloc(n, 4), *x_scale = fwd_alloc(m_most, 4), *bias = fwd_alloc(n, 4);
    size_t ld_y = n + 12;
    float *y = fwd_alloc(m_most * ld_y, 4);
    make_matrix(p->form, p->kind, false, p->n, p->k, w_bits, w, w_scale);
    make_matrix(p->form, p->kind, true, most, p->k, x_bits, x, x_scale);
    for (size_t i = 0; i < n; i++)
        bias[i] = 10 * next_normal();
    for (int s = 0; s < n_shapes; s++) {
        size_t m = (size_t)n_pos[s];
        struct fwd_error err = {.message = ""};
        cuda_test_start((n + m) * (k * size + 4) + n * 4 + m * ld_y * 4 + 8192);
        struct cuda_linear linear = {.form = p->form, .n_rows = p->n, .n_cols = p->k};
        linear.data = cuda_test_put(w_bits, n * k * size);
        linear.scale = cuda_test_put(w_scale, n * 4);
        linear.bias = p->bias ? cuda_test_put(bias, n * 4) : NULL;
        struct cuda_tc_act act = {p->form, p->k, cuda_test_put(x_bits, m * k * size), cuda_test_put(x_scale, m * 4)};
        float *y_device = cuda_test_room(m * ld_y * 4);
        enum fwd_status st = cuda_lt_matmul(lt, NULL, &linear, &act, n_pos[s], y_device, (int64_t)ld_y, p->fast, &err);
        ck_assert_msg(st == FWD_OK, "%s", err.message);
        cuda_test_get(y, y_device, m * ld_y * 4);
        for (size_t i = 0; i < m; i++) {
            for (size_t r = 0; r < n; r++) {
                struct step_sum sum = add_steps(&nm, w + r * k, x + i * k, p->k);
                double scales = (double)w_scale[r] * (double)x_scale[i], b = p->bias ? (double)bias[r] : 0;
                double expected = sum.exact * scales + b;
                double bound = sum.bound * scales + nm.final_roundings * 0x1p-24 * (sum.magnitude * scales + fabs(b));
                double off = fabs((double)y[i * ld_y + r] - expected);
                worst_ratio = fmax(worst_ratio, off / bound);
                ck_assert_msg(off <= bound,
                              "form %d, %d x %d, data %d, %zu positions, y[%zu][%zu]: %.9g, expected %.9g, bound %g",
                              p->form, p->n, p->k, p->kind, m, i, r, (double)y[i * ld_y + r], expected, bound);
            }
            for (size_t r = n; r < ld_y; r++)
                ck_assert_msg(fwd_f32_bits(y[i * ld_y + r]) == 0xcbcbcbcbu, "value %zu behind row %zu was written", r,
                              i);
        }
        cuda_test_end();
    }
    fwd_free(w_bits);
    fwd_free(x_bits);
    fwd_free(w);
    fwd_free(x);
    fwd_free(w_scale);
    fwd_free(x_scale);
    fwd_free(bias);
    fwd_free(y);
}

static void check_form(enum cuda_form form, bool fast) {
    static const int all[] = {1, 2, 3, 5, 8, 9, 16, 17, 33, 78, 127, 519}, few[] = {1, 17, 78};
    static const int shapes[][2] = {{16, 32}, {48, 96}, {64, 576}, {80, 896}, {32, 1536}, {16, 3584}};
    worst_ratio = 0;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct product p = {form, shapes[i][0], shapes[i][1], i % 2, fast, i % 2 ? POSITIVE : MIXED};
        check_products(&p, all, i < 2 ? 12 : 11, i < 2 ? 519 : 127);
    }
    if (form == CUDA_FORM_BF16) {
        struct product p = {form, 8, 64, true, fast, MIXED};
        check_products(&p, all, 12, 519);
    }
    for (int kind = 0; kind < N_DATA; kind++) {
        struct product p = {form, 64, 8960, kind == 0, fast, (enum data_kind)kind};
        check_products(&p, few, 3, 78);
        printf("  form %d%s, data %d: %.3f of the bound at most, k split in %d at most\n", form, fast ? " fast" : "",
               kind, worst_ratio, cuda_lt_split(lt));
    }
}

START_TEST(test_product_bf16) {
    check_form(CUDA_FORM_BF16, false);
}
END_TEST

START_TEST(test_product_e4m3) {
    check_form(CUDA_FORM_E4M3, false);
}
END_TEST

START_TEST(test_product_e4m3_fast) {
    check_form(CUDA_FORM_E4M3, true);
}
END_TEST

START_TEST(test_product_refusals) {
    struct fwd_error err = {.message = ""};
    struct cuda_linear w = {.form = CUDA_FORM_E4M3, .n_rows = 24, .n_cols = 64};
    struct cuda_tc_act x = {.form = CUDA_FORM_E4M3, .ld = 64};
    ck_assert_int_eq(cuda_lt_matmul(lt, NULL, &w, &x, 3, NULL, 24, false, &err), FWD_EUNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(err.message, "24 x 64"));
    x.form = CUDA_FORM_BF16;
    ck_assert_int_eq(cuda_lt_matmul(lt, NULL, &w, &x, 3, NULL, 24, false, &err), FWD_EINPUT);
    w.form = CUDA_FORM_BF16;
    ck_assert_int_eq(cuda_lt_matmul(lt, NULL, &w, &x, 3, NULL, 23, false, &err), FWD_ESHAPE);
}
END_TEST

/* ---- attention --------------------------------------------------------------------------------------------------- */
struct heads {
    int n_head, n_kv, dim, pos0, n_pos;
    float k_bias; /* of one value in eight: Qwen2's layer 0 */
};

static void check_position(const struct heads *h, const struct fwd_numerics *nm, const float *q, const uint16_t *k,
                           const uint16_t *v, int stride, int pos, int head, const float *got) {
    static double s[8192], e[8192];
    static double out[256], loss[256], total_abs[256];
    size_t kv = (size_t)(head / (h->n_head / h->n_kv));
    double top = -HUGE_VAL, e_top = 0, scale = (double)(1.0f / sqrtf((float)h->dim));
    double q16[256], row[256];
    for (int d = 0; d < h->dim; d++)
        q16[d] = (double)fwd_f16_to_f32(fwd_f32_to_f16(q[d]));
    for (int j = 0; j <= pos; j++) {
        for (int d = 0; d < h->dim; d++)
            row[d] = (double)fwd_f16_to_f32(k[(kv * (size_t)stride + (size_t)j) * (size_t)h->dim + (size_t)d]);
        struct step_sum sum = add_steps(nm, q16, row, h->dim);
        e[j] = sum.bound * scale;
        s[j] = sum.exact * scale;
        if (s[j] > top) {
            top = s[j];
            e_top = e[j];
        }
    }
    double weights = 0, e_weights = 0;
    memset(out, 0, sizeof out);
    memset(loss, 0, sizeof loss);
    memset(total_abs, 0, sizeof total_abs);
    for (int j = 0; j <= pos; j++) {
        double w = exp(s[j] - top);
        /* the score's own error, the maximum's, (s - m) c and its 2^x */
        double rel = expm1(e[j] + e_top + (top - s[j]) * 4 * 0x1p-24) + (double)nm->exp_ulp * 0x1p-23;
        weights += w;
        e_weights += w * rel;
        for (int d = 0; d < h->dim; d++) {
            double value = (double)fwd_f16_to_f32(v[(kv * (size_t)stride + (size_t)j) * (size_t)h->dim + (size_t)d]);
            out[d] += w * value;
            total_abs[d] += w * fabs(value);
            loss[d] += (w * (rel + 0x1p-11) + 0x1p-25) * fabs(value);
        }
    }
    for (int d = 0; d < h->dim; d++) {
        double expected = out[d] / weights;
        double steps = (pos + 1) / 16 + 1 + (pos + 1) / 64 + 1;
        double bound =
            loss[d] / weights + e_weights / weights * fabs(expected) +
            (steps * (0x1p-23 + 17 * ldexp(1, -nm->cut_bits)) + (pos / 4 + 8) * 0x1p-24) * total_abs[d] / weights;
        double off = fabs((double)got[d] - expected);
        worst_ratio = fmax(worst_ratio, off / bound);
        ck_assert_msg(off <= bound,
                      "%d heads of %d, from %d on, position %d, head %d, value %d: %.9g, expected %.9g, bound %g",
                      h->n_head, h->dim, h->pos0, pos, head, d, (double)got[d], expected, bound);
    }
}

static void check_attention(const struct heads *h) {
    struct fwd_numerics nm;
    cuda_tc_numerics_attention(major, &nm);
    int n_ctx = h->pos0 + h->n_pos, stride = n_ctx + 5;
    size_t n_q = (size_t)h->n_pos * (size_t)h->n_head * (size_t)h->dim;
    size_t n_kv = (size_t)h->n_kv * (size_t)stride * (size_t)h->dim;
    float *q = fwd_alloc(n_q, 4), *o = fwd_alloc(n_q, 4), *again = fwd_alloc(n_q, 4);
    uint16_t *k = fwd_alloc(n_kv, 2), *v = fwd_alloc(n_kv, 2);
    int32_t *map = fwd_alloc((size_t)h->n_head, 4);
    for (size_t i = 0; i < n_q; i++)
        q[i] = next_normal() + (h->k_bias != 0 && i % 8 == 3 ? h->k_bias : 0);
    for (size_t i = 0; i < n_kv; i++) {
        bool past = (int)(i / (size_t)h->dim % (size_t)stride) >= n_ctx; /* never written: a NaN */
        k[i] = past ? 0x7e00 : fwd_f32_to_f16(next_normal() + (h->k_bias != 0 && i % 8 == 3 ? h->k_bias : 0));
        v[i] = past ? 0x7e00 : fwd_f32_to_f16(next_normal());
    }
    for (int i = 0; i < h->n_head; i++)
        map[i] = i / (h->n_head / h->n_kv);
    cuda_test_start(n_q * 8 + n_kv * 4 + 65536);
    struct cuda_attention a = {.n_head = h->n_head, .pos0 = h->pos0, .n_pos = h->n_pos};
    a.scale = 1.0f / sqrtf((float)h->dim);
    a.q = cuda_test_put(q, n_q * 4);
    a.o = cuda_test_room(n_q * 4);
    a.kv_head_of = cuda_test_put(map, (size_t)h->n_head * 4);
    a.k = (struct cuda_kv){FWD_F16, cuda_test_put(k, n_kv * 2), (int64_t)stride * h->dim * 2, h->dim * 2, h->n_kv,
                           h->dim};
    a.v = (struct cuda_kv){FWD_F16, cuda_test_put(v, n_kv * 2), (int64_t)stride * h->dim * 2, h->dim * 2, h->n_kv,
                           h->dim};
    ck_assert(cuda_tc_attention_serves(&a));
    cuda_tc_attention(NULL, &a);
    cuda_test_get(o, a.o, n_q * 4);
    int step = h->n_pos > 40 ? 37 : 1;
    for (int m = 0; m < h->n_pos; m += m + step < h->n_pos || m == h->n_pos - 1 ? step : h->n_pos - 1 - m)
        for (int head = 0; head<h->n_head; head += n_ctx> 1000 ? 5 : 1) {
            size_t at = ((size_t)m * (size_t)h->n_head + (size_t)head) * (size_t)h->dim;
            check_position(h, &nm, q + at, k, v, stride, h->pos0 + m, head, o + at);
        }
    /* The same bits in chunks. */
    int cut = h->n_pos * 2 / 3;
    if (cut > 0) {
        size_t row = (size_t)h->n_head * (size_t)h->dim;
        const float *all_q = a.q;
        float *all_o = a.o;
        cuda_ok(cudaMemset(all_o, 0xcb, n_q * 4));
        for (int part = 0; part < 2; part++) {
            a.pos0 = h->pos0 + (part ? cut : 0);
            a.n_pos = part ? h->n_pos - cut : cut;
            a.q = all_q + (part ? (size_t)cut * row : 0);
            a.o = all_o + (part ? (size_t)cut * row : 0);
            cuda_tc_attention(NULL, &a);
        }
        cuda_test_get(again, all_o, n_q * 4);
        ck_assert_msg(!memcmp(o, again, n_q * 4), "%d heads of %d, %d positions from %d: in two chunks other bits",
                      h->n_head, h->dim, h->n_pos, h->pos0);
    }
    cuda_test_end();
    fwd_free(q);
    fwd_free(o);
    fwd_free(again);
    fwd_free(k);
    fwd_free(v);
    fwd_free(map);
}

START_TEST(test_attention) {
    static const struct heads cases[] = {
        {7, 1, 128, 0, 1, 0},     {7, 1, 128, 0, 63, 0},  {6, 1, 64, 0, 64, 0},    {12, 2, 128, 0, 65, 0},
        {14, 2, 64, 0, 129, 0},   {9, 3, 64, 0, 519, 0},  {7, 1, 128, 0, 519, 0},  {28, 4, 128, 4094, 3, 0},
        {12, 2, 64, 4000, 97, 0}, {7, 1, 128, 62, 78, 0}, {7, 1, 128, 0, 130, 30}, {7, 1, 128, 1000, 33, 90},
        {6, 2, 128, 63, 1, 0},    {6, 2, 64, 4096, 1, 0},
    };
    worst_ratio = 0;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_attention(&cases[i]);
    printf("  attention: %.3f of the bound at most\n", worst_ratio);
}
END_TEST

/* ---- probes ------------------------------------------------------------------------------------------------------ */
enum probed { PROBE_F16, PROBE_BF16, PROBE_GROUP };

/* One instruction with the given products in row 0 and column 0: c + sum a[i] b[i]. */
static float run_mma(enum probed probed, const float a[16], const float b[16], float c) {
    uint16_t pairs[32];
    for (int i = 0; i < 16; i++) {
        pairs[i] = probed == PROBE_BF16 ? to_bf16(a[i]) : fwd_f32_to_f16(a[i]);
        pairs[16 + i] = probed == PROBE_BF16 ? to_bf16(b[i]) : fwd_f32_to_f16(b[i]);
    }
    cuda_test_start(4096);
    uint16_t *in = cuda_test_put(pairs, sizeof pairs);
    float *sum = cuda_test_put(&c, sizeof c), got;
    if (probed == PROBE_GROUP)
        ck_assert(cuda_tc_probe_group(NULL, in, sum));
    else
        cuda_tc_probe(NULL, probed == PROBE_BF16, in, sum);
    cuda_test_get(&got, sum, sizeof got);
    return got;
}

static void probe_mma(enum probed probed, const char *name, const struct fwd_numerics *declared) {
    float a[16], b[16];
    /* 2^(g - 23) products of 2^-g beside a sum of 1: they show as one ulp if bit g is kept. */
    int kept = 22;
    for (int g = 23; g <= 27; g++) {
        for (int i = 0; i < 16; i++) {
            a[i] = i < 1 << (g - 23) ? 0x1p-13f : 0;
            b[i] = ldexpf(1, 13 - g);
        }
        if (run_mma(probed, a, b, 1.0f) == 1.0f + 0x1p-23f && kept == g - 1)
            kept = g;
    }
    /* 1.5 half ulps: up by the nearest, down toward zero. */
    memset(a, 0, sizeof a);
    memset(b, 0, sizeof b);
    a[0] = 0x1.8p-12f;
    b[0] = 0x1p-12f;
    float up = run_mma(probed, a, b, 1.0f);
    a[0] = -a[0];
    float down = run_mma(probed, a, b, -1.0f);
    bool to_zero = up == 1.0f && down == -1.0f;
    /* 2^24 and -2^24 among the first products, 2^-4 further on: it survives if it is added in a later step. */
    int step = 16;
    for (int at = 15; at >= 2; at--) {
        memset(a, 0, sizeof a);
        a[0] = b[0] = b[1] = 0x1p12f;
        a[1] = -0x1p12f;
        a[at] = b[at] = 0x1p-2f;
        if (run_mma(probed, a, b, 0) == 0x1p-4f)
            step = at;
    }
    printf("  %s: %d products a step, cut at 2^-%d of the largest, result %s\n", name, step, kept,
           to_zero ? "toward zero" : "to the nearest");
    ck_assert_msg(step >= declared->chain_block, "%s: steps of %d products, declared %d", name, step,
                  declared->chain_block);
    ck_assert_msg(kept >= declared->cut_bits, "%s: bits kept to 2^-%d, declared %d", name, kept, declared->cut_bits);
}

START_TEST(test_probe_mma) {
    struct fwd_numerics declared;
    cuda_tc_numerics_attention(major, &declared);
    probe_mma(PROBE_F16, "m16n8k16 F16", &declared);
    if (major == 9)
        probe_mma(PROBE_GROUP, "wgmma m64n64k16 F16", &declared);
    cuda_tc_numerics_matmul(major, CUDA_FORM_BF16, false, false, &declared);
    probe_mma(PROBE_BF16, "m16n8k16 BF16", &declared);
}
END_TEST

/* x . w with two terms: 1 at 0 and 2^-g at k; the products of both forms as the library computes them. */
static float run_pair(bool fast, int n_cols, int k, int g) {
    enum { N = 64, M = 64, MOST = 512 };
    static uint8_t w[N * MOST], x[M * MOST];
    static float ones[N], y[M * N];
    memset(w, 0, sizeof w);
    memset(x, 0, sizeof x);
    for (int r = 0; r < N; r++) {
        ones[r] = 1;
        w[r * n_cols] = x[r * n_cols] = to_e4m3(1.0f);
        w[r * n_cols + k] = to_e4m3(ldexpf(1, -(g / 2)));
        x[r * n_cols + k] = to_e4m3(ldexpf(1, -(g - g / 2)));
    }
    cuda_test_start(sizeof w + sizeof x + sizeof ones * 2 + sizeof y);
    struct cuda_linear linear = {.form = CUDA_FORM_E4M3, .n_rows = N, .n_cols = n_cols};
    linear.data = cuda_test_put(w, sizeof w);
    linear.scale = cuda_test_put(ones, sizeof ones);
    struct cuda_tc_act act = {CUDA_FORM_E4M3, n_cols, cuda_test_put(x, sizeof x), cuda_test_put(ones, sizeof ones)};
    float *to = cuda_test_room(sizeof y);
    struct fwd_error err = {.message = ""};
    ck_assert_msg(cuda_lt_matmul(lt, NULL, &linear, &act, M, to, N, fast, &err) == FWD_OK, "%s", err.message);
    cuda_test_get(y, to, sizeof y);
    return y[5 * N + 7];
}

START_TEST(test_probe_e4m3) {
    static const int at[] = {1, 15, 16, 31, 32, 63, 64, 127, 128, 255, 300};
    for (int fast = 0; fast < 2; fast++) {
        struct fwd_numerics declared;
        cuda_tc_numerics_matmul(major, CUDA_FORM_E4M3, fast, false, &declared);
        printf("  E4M3%s, 1 at 0 and 2^-g at k: smallest seen beside it", fast ? " fast" : "");
        for (size_t i = 0; i < sizeof at / sizeof *at; i++) {
            int kept = 0;
            for (int g = 8; g <= 18; g++)
                if (run_pair(fast, 512, at[i], g) == 1.0f + ldexpf(1, -g))
                    kept = g;
            printf(" k %d: 2^-%d;", at[i], kept);
            ck_assert_msg(kept >= declared.cut_bits, "E4M3: bits kept to 2^-%d beside value %d, declared %d", kept,
                          at[i], declared.cut_bits);
        }
        printf("\n");
    }
}
END_TEST

int main(int argc, char **argv) {
    if (cuda_test_skips("test_cuda_tc"))
        return 0;
    struct fwd_error err = {.message = ""};
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess)
        return 1;
    if (cuda_lt_create(&lt, &err) != FWD_OK) {
        printf("SKIPPED: test_cuda_tc: %s\n", err.message);
        return 0;
    }
    if (argc > 1 && !strcmp(argv[1], "--time"))
        return time_layers(lt, argc > 2 ? argv[2] : NULL);
    Suite *suite = suite_create("cuda_tc");
    TCase *tcase = tcase_create("products"), *attention = tcase_create("attention");
    tcase_set_timeout(tcase, 120);
    tcase_set_timeout(attention, 120);
    tcase_add_test(tcase, test_convert);
    tcase_add_test(tcase, test_probe_mma);
    tcase_add_test(tcase, test_probe_e4m3);
    tcase_add_test(tcase, test_product_refusals);
    tcase_add_test(tcase, test_product_bf16);
    tcase_add_test(tcase, test_product_e4m3);
    tcase_add_test(tcase, test_product_e4m3_fast);
    tcase_add_test(attention, test_attention);
    suite_add_tcase(suite, tcase);
    suite_add_tcase(suite, attention);
    int rc = cuda_test_main("test_cuda_tc", suite);
    cuda_lt_free(lt);
    return rc;
}
