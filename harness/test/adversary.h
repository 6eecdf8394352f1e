/* harness/test/adversary.h: rows of values chosen to make rounding as bad as it gets, for tests that write them through
 * a path's taps. */
#ifndef HARNESS_TEST_ADVERSARY_H
#define HARNESS_TEST_ADVERSARY_H

#include "test/made_model.h"

#include <float.h>
#include <math.h>

enum adversary {
    ADV_NOISE,                /* the ordinary case */
    ADV_CANCEL,               /* pairs that cancel but for a few bits, at random places */
    ADV_ONE_SIGN,             /* sums only grow */
    ADV_PLAIN,                /* the families from here on go to some limit */
    ADV_OUTLIERS = ADV_PLAIN, /* one value in 64 a thousand times larger */
    ADV_MASSIVE,              /* one massive value first, then many small ones of one sign */
    ADV_CONSTANT,             /* equal terms round the same way */
    ADV_DENORMAL,             /* denormals and a few of the smallest normals */
    ADV_TIES,                 /* halves of the quantiser's step, in every block */
    ADV_ZERO_BLOCKS,          /* blocks of 32 and of 256 that are all zero */
    ADV_LARGE_CANCEL,         /* +1e8, 1, -1e8, 1, ... */
    ADV_SPARSE,               /* all zero but one value */
    ADV_LADDER,               /* every magnitude from 2^-30 to 2^30 */
    ADV_GENTLE,               /* the families from here on overflow somewhere */
    ADV_LARGEST = ADV_GENTLE, /* near the largest finite */
    ADV_COUNT
};

static inline double adv_uniform(struct made_noise *s) { /* -1 to 1, 2^-30 apart */
    return made_noise(s) * 0x1p-30 - 1;
}

static inline double adv_value(enum adversary a, struct made_noise *s, double constant, int i, int n) {
    double x = adv_uniform(s);
    switch (a) {
    case ADV_ONE_SIGN:
        return 0.5 + fabs(x);
    case ADV_OUTLIERS:
        return made_noise(s) % 64 == 0 ? 1000 * x : x;
    case ADV_MASSIVE:
        return i == 0 ? 3000 : 0.02 * (1 + 0.5 * x);
    case ADV_CONSTANT:
        return constant;
    case ADV_DENORMAL:
        return made_noise(s) % 16 == 0 ? 0x1p-125 * x : ldexp(x, -127 - (int)(made_noise(s) % 22));
    case ADV_TIES:
        return i % 32 == 0 ? 127 : (double)((int)(made_noise(s) % 253) - 126) + 0.5;
    case ADV_ZERO_BLOCKS:
        return i / 32 % 2 || (n > 256 && i < 256) ? 0 : x;
    case ADV_LARGE_CANCEL:
        return i % 2 ? x : i % 4 ? -1e8 : 1e8;
    case ADV_LADDER:
        return ldexp(x, i % 61 - 30);
    case ADV_LARGEST:
        return copysign((double)FLT_MAX * (1 - 0.25 * fabs(x)), x);
    case ADV_NOISE:
    case ADV_CANCEL:
    case ADV_SPARSE:
    case ADV_COUNT:
        break;
    }
    return x;
}

/* n values, F32 ones unless `wide`. The same seed gives the same row. */
static inline void adv_row(enum adversary a, uint64_t seed, bool wide, double *x, int n) {
    struct made_noise s = {seed * 0x9e3779b97f4a7c15u + 1};
    (void)made_noise(&s);
    double constant = adv_uniform(&s) + 1.1;
    for (int i = 0; i < n; i++) {
        x[i] = adv_value(a, &s, constant, i, n);
        if (wide && a != ADV_TIES && a != ADV_LARGEST)
            x[i] += x[i] * 0x1p-30 * adv_uniform(&s);
    }
    int keep = (int)(made_noise(&s) % (uint32_t)n);
    for (int i = 0; a == ADV_SPARSE && i < n; i++)
        x[i] = i == keep ? x[i] : 0;
    for (int i = 0; a == ADV_CANCEL && i + 1 < n; i++) { /* a partner at a random later place takes the negative */
        int j = i + 1 + (int)(made_noise(&s) % (uint32_t)(n - i - 1));
        if (made_noise(&s) % 2)
            x[j] = -x[i] * (1 + 0x1p-20 * (made_noise(&s) % 3));
    }
    for (int i = 0; !wide && i < n; i++)
        x[i] = (double)(float)x[i];
}

#endif
