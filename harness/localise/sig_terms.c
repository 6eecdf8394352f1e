/* Sums that lack a term, have one too many, or are made in too narrow a type. */
#include "localise/sig.h"

#include "spec/bound.h"
#include "spec/eval.h"
#include "spec/spec_decode.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static void begin(const struct sig_case *c, struct sig_variant *v) {
    v->product = par_sig_product(par_spec_weight(c->m, c->item->op, c->item->layer));
    v->product.bias = par_spec_bias(c->m, c->item->op, c->item->layer);
}

static bool has_bias(const struct sig_variant *v) {
    return v->product.bias && v->product.bias->data;
}

static enum sig_more say(struct sig_variant *v, const char *text) {
    (void)snprintf(v->text, sizeof v->text, "%s", text);
    return SIG_TRY;
}

/* ---- biases ------------------------------------------------------------------------------------------------------
 */
static enum sig_more bias_missing(const struct sig_case *c, int i, struct sig_variant *v) {
    begin(c, v);
    if (i || !has_bias(v))
        return SIG_END;
    v->product.bias_times = 0;
    return say(v, "the bias is not in it: never added, or the tap is taken before it is");
}

static enum sig_more bias_twice(const struct sig_case *c, int i, struct sig_variant *v) {
    static const double times[] = {2, -1, 3};
    static const char *const texts[] = {"the bias is added twice", "the bias is subtracted",
                                        "the bias is added three times"};
    begin(c, v);
    if (i > 2 || !has_bias(v))
        return SIG_END;
    v->product.bias_times = times[i];
    return say(v, texts[i]);
}

static enum sig_more bias_other_layer(const struct sig_case *c, int i, struct sig_variant *v) {
    static const enum fwd_op ops[] = {FWD_OP_QCUR, FWD_OP_KCUR, FWD_OP_VCUR};
    int n_layer = c->config->n_layer, layer = c->item->layer + (i % 2 ? -(i / 2 + 1) : i / 2 + 1);
    begin(c, v);
    if (!has_bias(v) || i >= 2 * n_layer + 3)
        return SIG_END;
    enum fwd_op op = c->item->op;
    if (i >= 2 * n_layer) {
        op = ops[i - 2 * n_layer];
        layer = c->item->layer;
    }
    const struct spec_weight *bias = par_spec_bias(c->m, op, layer);
    if (layer < 0 || layer >= n_layer || !bias || !bias->data || bias->n_cols != v->product.bias->n_cols ||
        bias->data == v->product.bias->data)
        return SIG_SKIP;
    v->product.bias = bias;
    (void)snprintf(v->text, sizeof v->text, "the bias is that of %s of layer %d", fwd_op_name(op), layer);
    return SIG_TRY;
}

/* ---- columns -----------------------------------------------------------------------------------------------------
 */
static const int64_t tails[] = {256, 128, 64, 32, 16, 8, 4, 2,  1,  512, 48,  96,
                                192, 24,  12, 3,  5,  6, 7, 15, 31, 768, 1024};
enum { N_TAILS = sizeof tails / sizeof *tails };

static enum sig_more k_tail(const struct sig_case *c, int i, struct sig_variant *v) {
    static const int64_t steps[] = {512, 1024, 2048, 4096};
    begin(c, v);
    int64_t k = v->product.w->n_cols, skipped;
    if (i >= 2 * (N_TAILS + 4))
        return SIG_END;
    skipped = i / 2 < N_TAILS ? tails[i / 2] : k % steps[i / 2 - N_TAILS];
    v->product.kind = i % 2 ? SIG_K_CUT_CODES : SIG_K_CUT;
    v->product.a = k - skipped;
    (void)snprintf(v->text, sizeof v->text, "the last %lld of %lld columns are left out%s", (long long)skipped,
                   (long long)k, i % 2 ? " (but not of the minima)" : "");
    return skipped <= 0 || skipped >= k || (i % 2 && !par_decode_has_min(v->product.type)) ? SIG_SKIP : SIG_TRY;
}

/* A block of columns that is not the last: that one is a tail. */
static enum sig_more k_block(const struct sig_case *c, int i, struct sig_variant *v) {
    begin(c, v);
    int n = par_decode_block_values(v->product.type);
    int64_t blocks = n > 1 ? v->product.w->n_cols / n : 0;
    v->product.kind = SIG_BLOCK_ZERO;
    v->product.only_block = i;
    (void)snprintf(v->text, sizeof v->text, "K-block %d is left out", i);
    return i + 1 >= blocks ? SIG_END : SIG_TRY;
}

/* ---- rows --------------------------------------------------------------------------------------------------------
 * The last rows of every accused position hold 0 (or the bias alone). */
static void rows_tail(const struct sig_case *c, struct sig_fit *fit) {
    int64_t width = par_sig_width(c), first = width;
    fit->n_tested = c->n_list;
    fit->n_variants = 2;
    struct sig_variant v;
    memset(&v, 0, sizeof v);
    float *bias = NULL;
    if (SIG_OP(c->item->op) & SIG_MATMULS) {
        begin(c, &v);
        if (has_bias(&v) && (bias = par_sig_alloc(c, (size_t)width, sizeof *bias)) != NULL)
            par_decode_row(v.product.bias->type, v.product.bias->data, bias, width);
    }
    int64_t zeros = 0, biases = 0;
    for (int64_t i = 0; i < c->n_list; i++) {
        const struct sig_element *e = &c->list[i];
        first = e->row < first ? e->row : first;
        zeros += e->got == 0;
        biases += bias && e->got == (double)bias[e->row];
        fit->digits += e->got == 0 || (bias && e->got == (double)bias[e->row]) ? par_sig_digits(c, e, 0) : 0;
    }
    bool with_bias = biases > zeros;
    int64_t fits = with_bias ? biases : zeros;
    /* A tail: nothing from `first` on holds anything else. */
    for (int s = 0; s < c->n_slots; s++)
        for (int64_t r = first; r < width; r++) {
            double got = par_sig_got(c, c->slots[s].call, c->slots[s].pos, r);
            if (got != (with_bias ? (double)bias[r] : 0) && !isnan(got))
                fits = 0;
        }
    /* Zeros in every row of a position are no tail. */
    fit->share = first > 0 ? (double)fits / (double)c->n_list : 0;
    (void)snprintf(fit->text, sizeof fit->text, "rows %lld to %lld hold %s: never computed", (long long)first,
                   (long long)width - 1, with_bias ? "the bias alone" : "0");
    fwd_free(bias);
}

/* ---- narrow types ------------------------------------------------------------------------------------------------
 */
enum narrow { F16_RESULT, F16_BEFORE_BIAS, BF16_RESULT, F16_PARTS, F16_OPERANDS, BF16_OPERANDS, F16_BLOCKS, F16_KINDS };

/* Nearest even of x with the last `bits` bits of an F32 significand cut. */
static double cut_bits(double x, int bits) {
    float f = (float)x;
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    if ((u & 0x7f800000u) == 0x7f800000u)
        return x;
    uint32_t half = (1u << (bits - 1)) - 1 + (u >> bits & 1u);
    u = (u + half) >> bits << bits;
    memcpy(&f, &u, sizeof f);
    return (double)f;
}

/* A stored number that is one of the narrow type's, as near the spec's value as sums in that type stay. The chance that
 * an F32 is one is 2^-13 (F16), 2^-16 (BF16), 2^-8 (few bits): that is what the bound is made to say. */
static void narrow_result(const struct sig_variant *v, const struct sig_element *e, double bias, double *alt,
                          double *bound) {
    double x = v->kind == F16_BEFORE_BIAS ? (double)(float)(e->got - bias) : e->got, dev = fabs(e->got - e->expected);
    double unit = v->kind == BF16_RESULT ? 0x1p-8 : 0x1p-11, chance = v->kind == F16_PARTS ? 0x1p-8 : 0x1p-13;
    double near = v->kind == BF16_RESULT ? cut_bits(x, 16) : v->kind == F16_PARTS ? cut_bits(x, 9) : par_sig_f16(x);
    double reach = fmax(32 * unit / 0x1p-24 * e->bound, 4 * unit * fabs(e->expected)) + 0x1p-24;
    double slack = v->kind == F16_BEFORE_BIAS ? 2 * 0x1p-24 * (fabs(e->got) + fabs(bias)) : 0;
    if (!(fabs(near - x) <= slack) || !(dev <= reach))
        return;
    *alt = e->got;
    *bound = dev * chance;
}

static bool operands(const struct sig_case *c, const struct sig_variant *v, const struct sig_row *row,
                     const struct sig_act *act, double *alt, double *bound) {
    double sum = 0, each = 0;
    for (int64_t k = 0; k < c->k; k++) {
        double w = (double)row->w[k], x = act->x[k];
        w = v->kind == BF16_OPERANDS ? cut_bits(w, 16) : par_sig_f16(w);
        x = v->kind == BF16_OPERANDS ? cut_bits(x, 16) : par_sig_f16(x);
        sum += w * x;
        each += fabs(w * x);
    }
    *alt = sum;
    *bound = (par_gamma((double)c->k, 0x1p-24) + 4 * 0x1p-24) * each;
    return true;
}

/* Each block's products as F16, added wider. */
static void f16_blocks(const struct sig_case *c, const struct sig_row *row, const struct sig_act *act, double *alt,
                       double *bound) {
    int n = row->block / 16;
    double sum = 0, sum_abs = 0;
    for (int64_t g = 0; g < c->k / 16; g += n) {
        double code = 0, min = 0;
        for (int64_t j = g; j < g + n; j++) {
            int32_t dot = 0;
            for (int i = 0; i < 16; i++)
                dot += row->q[16 * j + i] * act->q[16 * j + i];
            code += row->d16[j] * act->d16[j] * dot;
            min += row->m16[j] * act->d16[j] * act->sum16[j];
        }
        sum += par_sig_f16(code) - par_sig_f16(min);
        sum_abs += fabs(code) + fabs(min);
    }
    *alt = sum;
    *bound = par_gamma((double)(c->k / 16), 0x1p-24) * sum_abs;
}

static void f16_value(const struct sig_case *c, const struct sig_variant *v, const struct sig_element *e, int64_t n,
                      double *alt, double *bound, double *loose) {
    bool matmul = (SIG_OP(c->item->op) & SIG_MATMULS) != 0, summed = v->kind >= F16_OPERANDS, ok = true;
    struct sig_row *row = matmul ? par_sig_row_alloc(c, c->k) : NULL;
    int64_t at = -1;
    float *bias = NULL;
    if (matmul && has_bias(v) && (bias = par_sig_alloc(c, (size_t)par_sig_width(c), sizeof *bias)) != NULL)
        par_decode_row(v->product.bias->type, v->product.bias->data, bias, par_sig_width(c));
    for (int64_t i = 0; i < n; i++) {
        double b = bias ? (double)bias[e[i].row] : 0;
        alt[i] = NAN;
        bound[i] = loose[i] = -1;
        if (!summed) {
            narrow_result(v, &e[i], b, &alt[i], &bound[i]);
            loose[i] = bound[i];
            continue;
        }
        if (!row)
            continue;
        if (e[i].row != at)
            ok = par_sig_read_row(&v->product, e[i].row, v->kind != F16_BLOCKS, row);
        at = e[i].row;
        if (!ok)
            continue;
        if (v->kind == F16_BLOCKS)
            f16_blocks(c, row, &c->acts[e[i].slot], &alt[i], &bound[i]);
        else
            operands(c, v, row, &c->acts[e[i].slot], &alt[i], &bound[i]);
        alt[i] += b;
        bound[i] += 2 * 0x1p-24 * fabs(alt[i]) + e[i].bound;
        loose[i] = bound[i];
    }
    fwd_free(bias);
    fwd_free(row);
}

/* Whether all that is wrong is BF16 numbers, which are F16 numbers too where they are small enough. */
static bool all_bf16(const struct sig_case *c) {
    for (int64_t i = 0; i < c->n_list; i++)
        if (cut_bits(c->list[i].got, 16) != c->list[i].got)
            return false;
    return true;
}

/* A sum may come to 0 in a narrow type; many zeros are no numbers of any type. */
static bool many_zeros(const struct sig_case *c) {
    int64_t n = 0;
    for (int64_t i = 0; i < c->n_list; i++)
        n += c->list[i].got == 0;
    return 64 * n > c->n_list;
}

/* Whether all that is wrong is the right value rounded to F16, and no more. */
static bool only_rounded(const struct sig_case *c) {
    for (int64_t i = 0; i < c->n_list; i++) {
        const struct sig_element *e = &c->list[i];
        double half_step = fmax(0x1p-11 * fabs(e->got), 0x1p-25);
        if (fabs(e->got - e->expected) > half_step + e->bound)
            return false;
    }
    return true;
}

static enum sig_more store_f16(const struct sig_case *c, int i, struct sig_variant *v) {
    v->kind = F16_RESULT;
    if (i || c->calls[0].e.out->dtype == FWD_F16 || !only_rounded(c) || all_bf16(c) || many_zeros(c))
        return SIG_END;
    return say(v, "every wrong value is the right one rounded to F16: stored in F16");
}

static enum sig_more bf16(const struct sig_case *c, int i, struct sig_variant *v) {
    v->kind = BF16_RESULT;
    return i || many_zeros(c) ? SIG_END
                              : say(v, "every wrong value is a BF16 number about the right one: stored in BF16");
}

static enum sig_more f16(const struct sig_case *c, int i, struct sig_variant *v) {
    static const char *const texts[F16_KINDS] = {
        "every wrong value is an F16 number about the right one: added up or stored in F16",
        "without its bias every wrong value is an F16 number: added up in F16",
        "",
        "every wrong value has the few bits that parts added up in F16 have",
        "weights and activations are rounded to F16 before they are multiplied",
        "weights and activations are rounded to BF16 before they are multiplied",
        "the sum of each block is rounded to F16"};
    bool matmul = (SIG_OP(c->item->op) & SIG_MATMULS) != 0;
    if (matmul)
        begin(c, v);
    v->kind = i;
    if (i >= F16_KINDS)
        return SIG_END;
    bool skip = i == BF16_RESULT || (i < F16_OPERANDS && (all_bf16(c) || many_zeros(c))) ||
                (i == F16_BEFORE_BIAS && !(matmul && has_bias(v))) || (i >= F16_OPERANDS && !matmul) ||
                (i == F16_BLOCKS && !(matmul && par_sig_integer(c, &v->product)));
    (void)say(v, texts[i]);
    return skip || c->calls[0].e.out->dtype == FWD_F16 ? SIG_SKIP : SIG_TRY;
}

/* ---- overflow ----------------------------------------------------------------------------------------------------
 */
enum overflow {
    CLAMP_RESULT,
    INFINITE_RESULT,
    CLAMP_ACT,
    INFINITE_ACT,
    INFINITE_SUM16,
    RUNNING_CLAMP,
    RUNNING_INFINITE,
    OVERFLOW_KINDS
};
static const double f16_most = 65504;

static double clamp_f16(double x) {
    return x > f16_most ? f16_most : x < -f16_most ? -f16_most : x;
}

static double overflow_f16(double x) {
    return fabs(x) >= 65520 ? copysign(HUGE_VAL, x) : x;
}

/* A product under the mistake; false: nothing overflows. */
static bool overflow_sum(const struct sig_case *c, enum overflow kind, const struct sig_row *row,
                         const struct sig_act *act, double *sum, double *each) {
    bool any = false;
    *sum = *each = 0;
    int64_t step = row->block > 1 ? row->block : 16;
    for (int64_t k = 0; k < c->k; k++) {
        double x = act->x[k], w = (double)row->w[k];
        if (kind == CLAMP_ACT || kind == INFINITE_ACT) {
            any = any || fabs(x) > f16_most;
            x = kind == CLAMP_ACT ? clamp_f16(x) : overflow_f16(x);
        }
        if (kind == INFINITE_SUM16 && k % step == 0) {
            double total = 0;
            for (int64_t j = k; j < k + step && j < c->k; j++)
                total += act->x[j];
            any = any || fabs(total) > f16_most;
            *sum += overflow_f16(total) - total;
        }
        *sum += w * x;
        *each += fabs(w * x);
        if ((kind == RUNNING_CLAMP || kind == RUNNING_INFINITE) && (k + 1) % step == 0) {
            any = any || fabs(*sum) > f16_most;
            *sum = kind == RUNNING_CLAMP ? clamp_f16(*sum) : overflow_f16(*sum);
        }
    }
    return any;
}

static void saturate_f16_value(const struct sig_case *c, const struct sig_variant *v, const struct sig_element *e,
                               int64_t n, double *alt, double *bound, double *loose) {
    bool summed = v->kind > INFINITE_RESULT, ok = false;
    struct sig_row *row = summed ? par_sig_row_alloc(c, c->k) : NULL;
    int64_t at = -1;
    for (int64_t i = 0; i < n; i++) {
        alt[i] = NAN;
        bound[i] = loose[i] = -1;
        if (!summed && fabs(e[i].expected) > f16_most) {
            alt[i] = v->kind == CLAMP_RESULT ? clamp_f16(e[i].expected) : overflow_f16(e[i].expected);
            bound[i] = loose[i] = 0;
        }
        if (!row)
            continue;
        if (e[i].row != at)
            ok = par_sig_read_row(&v->product, e[i].row, true, row);
        at = e[i].row;
        double sum, each, bias = 0;
        if (!ok || !overflow_sum(c, (enum overflow)v->kind, row, &c->acts[e[i].slot], &sum, &each))
            continue;
        if (has_bias(v)) {
            float b;
            memcpy(&b, v->product.bias->data + 4 * e[i].row, sizeof b);
            bias = (double)b;
        }
        alt[i] = sum + bias;
        bound[i] = loose[i] = isfinite(sum) ? e[i].bound + (par_gamma((double)c->k, 0x1p-24) + 0x1p-22) * each : 0;
    }
    fwd_free(row);
}

static enum sig_more saturate_f16(const struct sig_case *c, int i, struct sig_variant *v) {
    static const char *const texts[OVERFLOW_KINDS] = {
        "values beyond 65504 are stored as 65504: cut to the range of F16",
        "values beyond 65504 are infinite: stored in F16",
        "activations beyond 65504 are cut to the range of F16",
        "activations beyond 65504 are infinite in F16",
        "the sum of a block of activations is beyond 65504: infinite in F16",
        "the running sum is cut to the range of F16",
        "the running sum overflows F16"};
    bool matmul = (SIG_OP(c->item->op) & SIG_MATMULS) != 0;
    if (i >= OVERFLOW_KINDS)
        return SIG_END;
    v->kind = i;
    if (matmul)
        begin(c, v);
    (void)say(v, texts[i]);
    return i > INFINITE_RESULT && !matmul ? SIG_SKIP : SIG_TRY;
}

/* ---- saturation of 16-bit integers -------------------------------------------------------------------------------
 * a: values added before the sum is cut; b: what is added to the codes to make them unsigned; c: 0 cut after each pair,
 * 1 cut at the end, 2 wrapped at the end, 3 the scaled pair is cut. */
static int32_t cut16(int32_t x) {
    return x > 32767 ? 32767 : x < -32768 ? -32768 : x;
}

static double cut_group(const struct sig_variant *v, const int8_t *q, const int8_t *x, int n, double scale,
                        int int_scale) {
    int32_t total = 0;
    for (int at = 0; at < n; at += (int)v->a) {
        int32_t acc = 0;
        for (int i = at; i < at + v->a && i < n; i += 2) {
            int32_t pair = (q[i] + (int32_t)v->b) * x[i] + (q[i + 1] + (int32_t)v->b) * x[i + 1];
            acc = v->c == 0 ? cut16(acc + cut16(pair)) : acc + pair;
        }
        acc = v->c == 1 ? cut16(acc) : v->c == 2 ? (int32_t)(int16_t)(uint32_t)acc : acc;
        total += v->c == 3 ? cut16(acc * int_scale) : acc;
    }
    int32_t sum = 0;
    for (int i = 0; i < n; i++)
        sum += x[i];
    double offset = (double)v->b * sum;
    return v->c == 3 && int_scale ? scale / int_scale * (total - offset * int_scale) : scale * (total - offset);
}

static void int16_value(const struct sig_case *c, const struct sig_variant *v, const struct sig_element *e, int64_t n,
                        double *alt, double *bound, double *loose) {
    struct sig_row *row = par_sig_row_alloc(c, c->k);
    int64_t at = -1;
    bool ok = false;
    for (int64_t i = 0; i < n; i++) {
        alt[i] = NAN;
        bound[i] = loose[i] = -1;
        if (row && e[i].row != at)
            ok = par_sig_read_row(&v->product, e[i].row, false, row);
        at = e[i].row;
        if (!row || !ok)
            continue;
        const struct sig_act *act = &c->acts[e[i].slot];
        double sum = 0, bias = 0;
        /* Groups as long as their scale holds, or as the mistake's own. */
        int group = v->a > 16 && row->block == 32 ? 32 : 16;
        for (int64_t g = 0; g < c->k / 16; g += group / 16) {
            double d = row->d16[g] * act->d16[g];
            bool joined = group == 32 && g + 1 < c->k / 16;
            sum += cut_group(v, row->q + 16 * g, act->q + 16 * g, joined ? 32 : 16, d, row->scale16[g]);
            sum -= row->m16[g] * act->d16[g] * act->sum16[g];
            if (joined)
                sum -= row->m16[g + 1] * act->d16[g + 1] * act->sum16[g + 1];
        }
        if (has_bias(v)) {
            float b;
            memcpy(&b, v->product.bias->data + 4 * e[i].row, sizeof b);
            bias = (double)b;
        }
        alt[i] = sum + bias;
        bound[i] = loose[i] = 2 * e[i].bound;
    }
    fwd_free(row);
}

static enum sig_more saturate_int16(const struct sig_case *c, int i, struct sig_variant *v) {
    static const int64_t units[] = {2, 4, 8, 16, 32};
    static const int64_t offsets[] = {0, 8, 16, 32, 128};
    static const char *const modes[] = {"each pair of products is cut to 16 bits", "is cut to 16 bits",
                                        "is taken modulo 2^16", "times its scale is cut to 16 bits"};
    begin(c, v);
    if (i >= 100 || !par_sig_integer(c, &v->product))
        return SIG_END;
    v->a = units[i % 5];
    v->b = offsets[i / 5 % 5];
    v->c = i / 25;
    (void)snprintf(v->text, sizeof v->text, "the sum of %lld products of activations and codes + %lld %s",
                   (long long)v->a, (long long)v->b, modes[v->c]);
    return SIG_TRY;
}

/* ---- the table ---------------------------------------------------------------------------------------------------
 */
enum { FLOATS = SIG_MATMULS | SIG_NORMS | SIG_ROPES | SIG_SUMS | SIG_ATTENTION | SIG_SWIGLU };

const struct signature par_sig_terms[] = {
    {"bias-missing", SIG_QKV, 0, bias_missing, par_sig_product_value, NULL},
    {"bias-twice", SIG_QKV, 0, bias_twice, par_sig_product_value, NULL},
    {"bias-other-layer", SIG_QKV, 0, bias_other_layer, par_sig_product_value, NULL},
    {"k-tail-skipped", SIG_MATMULS, 0, k_tail, par_sig_product_value, NULL},
    {"k-block-skipped", SIG_MATMULS, 0, k_block, par_sig_product_value, NULL},
    {"rows-tail-skipped", FLOATS | SIG_EMBED, 0, NULL, NULL, rows_tail},
    {"store-bf16", FLOATS, 0, bf16, f16_value, NULL},
    {"accumulate-f16", FLOATS, 0, f16, f16_value, NULL},
    {"saturate-f16", FLOATS, 0, store_f16, f16_value, NULL},
    {"saturate-f16", FLOATS, 0, saturate_f16, saturate_f16_value, NULL},
    {"saturate-int16", SIG_MATMULS, 0, saturate_int16, int16_value, NULL},
    {NULL, 0, 0, NULL, NULL, NULL},
};
