/* harness/localise/sig_quantise.h: activations quantised by other rules than the declared one, as known engines do it
 * or as bugs have done it. Written for the signatures alone. */
#ifndef HARNESS_LOCALISE_SIG_QUANTISE_H
#define HARNESS_LOCALISE_SIG_QUANTISE_H

#include "spec/spec_quant.h"

enum sig_quant_rule {
    SIG_QUANT_SPEC = 0,
    SIG_QUANT_TIE_AWAY,     /* halves away from zero */
    SIG_QUANT_TIE_UP,       /* halves towards plus infinity: floor(x + 0.5) */
    SIG_QUANT_TIE_ZERO,     /* halves towards zero */
    SIG_QUANT_DIVIDE,       /* x / d, half to even */
    SIG_QUANT_TRUNCATE,     /* towards zero */
    SIG_QUANT_CUT_QUOTIENT, /* x / d towards zero */
    SIG_QUANT_CUT_INVERSE,  /* x * (1 / d) towards zero */
    SIG_QUANT_CUT_WIDE,     /* x / d in double, towards zero */
    SIG_QUANT_FLOOR,
    SIG_QUANT_SCALE_128,  /* amax / 128 */
    SIG_QUANT_ROW,        /* one scale for the whole row */
    SIG_QUANT_MAX_SIGNED, /* the scale from the largest value, not magnitude */
    SIG_QUANT_RULES
};
/* x: n = 256 or 32 values of a row whose largest magnitude is row_max. */
void par_sig_quantise(enum sig_quant_rule rule, const float *x, int n, float row_max, struct spec_q8 *out);
/* What rule does, in words. */
const char *par_sig_quant_text(enum sig_quant_rule rule);

#endif
