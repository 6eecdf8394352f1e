/* harness/compare/verdict.h: what may be said of a measurement, weakest first, and the exit code of each. */
#ifndef HARNESS_COMPARE_VERDICT_H
#define HARNESS_COMPARE_VERDICT_H

enum par_verdict {
    PAR_HELD = 0,   /* measured, and inside its bound */
    PAR_UNMEASURED, /* nothing, or not enough, was compared */
    PAR_DIVERGED,   /* outside its bound */
    PAR_NONFINITE,  /* NaN or infinity where the other side has none (or another sign) */
    PAR_MISTRUSTED, /* the measurement itself is not good */
    PAR_REFUSED     /* must not be compared, or cannot be read */
};

/* "HELD", ... */
const char *par_verdict_name(enum par_verdict v);
/* 0 held, 1 diverged, 3 unmeasured or mistrusted, 4 refused, 5 non-finite (2 is usage). */
int par_verdict_exit(enum par_verdict v);
/* The stronger of the two. */
enum par_verdict par_verdict_max(enum par_verdict a, enum par_verdict b);

#endif
