/* Activations to int8 blocks by the rule FWD_ACT_AMAX127, one value at a time; and the reader of a tap's blocks. */
#include "spec/spec_quant.h"

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
    return rule == FWD_ACT_AMAX127 || rule == FWD_ACT_AMAX127_AWAY;
}

void par_q8_quantise(const float *x, int n, struct spec_q8 *out) {
    (void)par_q8_quantise_as(FWD_ACT_AMAX127, x, n, out);
}

bool par_q8_quantise_as(enum fwd_act_rule rule, const float *x, int n, struct spec_q8 *out) {
    if (!par_q8_knows(rule))
        return false;
    bool away = rule == FWD_ACT_AMAX127_AWAY;
    float amax = 0;
    bool finite = true;
    for (int i = 0; i < n; i++) {
        finite = finite && isfinite(x[i]);
        if (fabsf(x[i]) > amax)
            amax = fabsf(x[i]);
    }
    memset(out, 0, sizeof *out);
    if (!finite) {
        out->d = NAN;
        return true;
    }
    if (amax < 0x1p-100f)
        return true;
    float id = 127.0f / amax;
    out->d = amax / 127.0f;
    for (int i = 0; i < n; i++) {
        float scaled = x[i] * id; /* one F32 rounding, then an exact rounding to integer */
        int v = away ? round_half_away((double)scaled) : round_half_even((double)scaled);
        out->q[i] = (int8_t)(v > 127 ? 127 : v < -127 ? -127 : v);
    }
    add_sums(out, n);
    return true;
}

void par_q8_read(enum fwd_dtype dtype, const uint8_t *block, struct spec_q8 *out, bool *sums_agree) {
    memcpy(&out->d, block, 4);
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
