/* Activations to int8 blocks by the declared rule, one value at a time; and the reader of a tap's blocks. */
#include "spec/spec_quant.h"

#include "spec/spec_decode.h"

#include <math.h>
#include <string.h>

int par_q8_block_values(enum fwd_dtype dtype) {
    return dtype == FWD_Q8_K ? 256 : dtype == FWD_Q8_32 ? 32 : 0;
}

size_t par_q8_block_bytes(enum fwd_dtype dtype) {
    return dtype == FWD_Q8_K ? 4 + 256 + 2 * 16 : dtype == FWD_Q8_32 ? 4 + 4 + 32 : 0;
}

/* Half to even by hand: the judge must not depend on the rounding mode, nor on the function a kernel uses. */
static int round_half_even(double v) {
    int low = (int)v; /* towards zero, in every rounding mode */
    low -= v < low;
    double rest = v - low;
    if (rest > 0.5 || (rest == 0.5 && (low & 1)))
        return low + 1;
    return low;
}

static void add_sums(struct spec_q8 *out, int n) {
    for (int g = 0; g < n / 16; g++) {
        out->sum16[g] = 0;
        for (int i = 0; i < 16; i++)
            out->sum16[g] += out->q[16 * g + i];
    }
}

static int round_half_away(double v) {
    int whole = (int)floor(fabs(v) + 0.5);
    return v < 0 ? -whole : whole;
}

bool par_q8_knows(enum fwd_act_rule rule) {
    return rule == FWD_ACT_AMAX127 || rule == FWD_ACT_AMAX127_AWAY ||
           (rule >= FWD_ACT_SIGNED127 && rule <= FWD_ACT_INVERSE127);
}

void par_q8_quantise(const float *x, int n, struct spec_q8 *out) {
    (void)par_q8_quantise_as(FWD_ACT_AMAX127, x, n, out);
}

/* ---- our own rules ------------------------------------------------------------------------------------------------
 */
static void quantise_amax127(bool away, const float *x, int n, struct spec_q8 *out) {
    float amax = 0;
    bool finite = true;
    for (int i = 0; i < n; i++) {
        finite = finite && isfinite(x[i]);
        if (fabsf(x[i]) > amax)
            amax = fabsf(x[i]);
    }
    if (!finite) {
        out->d = NAN;
        return;
    }
    if (amax < 0x1p-100f)
        return;
    float id = 127.0f / amax;
    out->d = amax / 127.0f;
    for (int i = 0; i < n; i++) {
        float scaled = x[i] * id; /* one F32 rounding, then an exact rounding to integer */
        int v = away ? round_half_away((double)scaled) : round_half_even((double)scaled);
        out->q[i] = (int8_t)(v > 127 ? 127 : v < -127 ? -127 : v);
    }
    add_sums(out, n);
}

/* ---- other engines' rules -----------------------------------------------------------------------------------------
 */
/* The value of largest magnitude, the first of several; NaNs are passed over. */
static float find_largest(const float *x, int n) {
    float largest = 0;
    for (int i = 0; i < n; i++)
        if (fabsf(x[i]) > fabsf(largest))
            largest = x[i];
    return largest;
}

/* A scaled value to its code. What is no number, or was scaled to none, has the code 0. */
static int8_t make_code(float scaled, bool away) {
    if (!isfinite(scaled))
        return 0;
    double cut = fmax(-128, fmin(127, (double)scaled));
    return (int8_t)(away ? round_half_away(cut) : round_half_even(cut));
}

static void quantise_foreign(enum fwd_act_rule rule, const float *x, int n, struct spec_q8 *out) {
    float largest = find_largest(x, n), amax = fabsf(largest), step = amax / 127.0f, id;
    bool away = rule != FWD_ACT_SIGNED127 && rule != FWD_ACT_HALF127, divided = rule == FWD_ACT_HALF127_DIVIDED;
    bool half = rule == FWD_ACT_HALF127 || rule == FWD_ACT_HALF127_AWAY || divided;
    out->has_sum = half;
    if (!(amax > 0))
        return;
    id = rule == FWD_ACT_SIGNED127      ? -127.0f / largest
         : rule == FWD_ACT_HALF127_AWAY ? (step > 0 ? 1.0f / step : 0)
                                        : 127.0f / amax;
    float raw = 0;
    int sum = 0;
    for (int i = 0; i < n; i++) {
        out->q[i] = make_code(divided ? x[i] / step : x[i] * id, away);
        sum += out->q[i];
        raw += x[i];
    }
    out->d = half ? par_f16_to_f32(par_f32_to_f16(step)) : 1.0f / id;
    if (half)
        out->sum = par_f16_to_f32(par_f32_to_f16(divided ? raw : step * (float)sum));
    add_sums(out, n);
}

bool par_q8_quantise_as(enum fwd_act_rule rule, const float *x, int n, struct spec_q8 *out) {
    if (!par_q8_knows(rule))
        return false;
    memset(out, 0, sizeof *out);
    if (rule >= FWD_ACT_SIGNED127)
        quantise_foreign(rule, x, n, out);
    else
        quantise_amax127(rule == FWD_ACT_AMAX127_AWAY, x, n, out);
    return true;
}

void par_q8_read(enum fwd_dtype dtype, const uint8_t *block, struct spec_q8 *out, bool *sums_agree) {
    memcpy(&out->d, block, 4);
    out->has_sum = false;
    out->sum = 0;
    *sums_agree = true;
    if (dtype == FWD_Q8_K) {
        memcpy(out->q, block + 4, 256);
        add_sums(out, 256);
        for (int g = 0; g < 16; g++) {
            int16_t stored;
            memcpy(&stored, block + 260 + 2 * g, 2);
            *sums_agree = *sums_agree && stored == out->sum16[g];
            out->sum16[g] = stored;
        }
    } else {
        int32_t stored;
        memcpy(&stored, block + 4, 4);
        memcpy(out->q, block + 8, 32);
        add_sums(out, 32);
        *sums_agree = stored == out->sum16[0] + out->sum16[1];
        out->sum16[0] = stored - out->sum16[1];
    }
}
