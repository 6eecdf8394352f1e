/* The other rules. The spec's own rule is the spec's own function. */
#include "localise/sig_quantise.h"

#include <math.h>
#include <string.h>

static double round_away(double v) {
    return v < 0 ? ceil(v - 0.5) : floor(v + 0.5);
}

static double round_towards(double v) {
    return v < 0 ? floor(v + 0.5) : ceil(v - 0.5);
}

static double round_even(double v) {
    double r = round_away(v);
    return fabs(v - trunc(v)) == 0.5 && fmod(r, 2) != 0 ? r - copysign(1, v) : r;
}

static double round_by(enum sig_quant_rule rule, double v) {
    switch (rule) {
    case SIG_QUANT_TIE_AWAY:
        return round_away(v);
    case SIG_QUANT_TIE_UP:
        return floor(v + 0.5);
    case SIG_QUANT_TIE_ZERO:
        return round_towards(v);
    case SIG_QUANT_TRUNCATE:
    case SIG_QUANT_CUT_QUOTIENT:
    case SIG_QUANT_CUT_INVERSE:
    case SIG_QUANT_CUT_WIDE:
        return trunc(v);
    case SIG_QUANT_FLOOR:
        return floor(v);
    default:
        return round_even(v);
    }
}

void par_sig_quantise(enum sig_quant_rule rule, const float *x, int n, float row_max, struct spec_q8 *out) {
    float amax = 0;
    if (rule == SIG_QUANT_SPEC) {
        par_q8_quantise(x, n, out);
        return;
    }
    memset(out, 0, sizeof *out);
    for (int i = 0; i < n; i++)
        amax = fmaxf(amax, rule == SIG_QUANT_MAX_SIGNED ? x[i] : fabsf(x[i]));
    if (rule == SIG_QUANT_ROW)
        amax = row_max;
    if (!(amax >= 0x1p-100f) || isinf(amax))
        return;
    float steps = rule == SIG_QUANT_SCALE_128 ? 128.0f : 127.0f, inverse = steps / amax;
    out->d = amax / steps;
    for (int i = 0; i < n; i++) {
        bool divided = rule == SIG_QUANT_DIVIDE || rule == SIG_QUANT_CUT_QUOTIENT;
        float by = rule == SIG_QUANT_CUT_INVERSE ? 1 / out->d : inverse, scaled = divided ? x[i] / out->d : x[i] * by;
        double wide = rule == SIG_QUANT_CUT_WIDE ? (double)x[i] / (double)out->d : (double)scaled;
        double v = round_by(rule, wide);
        out->q[i] = (int8_t)(v > 127 ? 127 : v < -128 ? -128 : v);
    }
    for (int i = 0; i < n; i++)
        out->sum16[i / 16] += out->q[i];
}

const char *par_sig_quant_text(enum sig_quant_rule rule) {
    static const char *const texts[SIG_QUANT_RULES] = {
        "rounded half to even",
        "halves are rounded away from zero",
        "halves are rounded up",
        "halves are rounded to zero",
        "divided by d instead of multiplied by its reciprocal",
        "codes are cut towards zero instead of rounded (x * id)",
        "codes are cut towards zero instead of rounded (x / d)",
        "codes are cut towards zero instead of rounded (x * (1 / d))",
        "codes are cut towards zero instead of rounded (x / d in double)",
        "codes are rounded down",
        "the scale is amax / 128",
        "one scale for the whole row",
        "the scale is that of the largest value, not magnitude",
    };
    return rule >= 0 && rule < SIG_QUANT_RULES ? texts[rule] : "";
}
