#include "compare/verdict.h"

const char *par_verdict_name(enum par_verdict v) {
    static const char *const names[] = {"HELD", "UNMEASURED", "DIVERGED", "NONFINITE", "MISTRUSTED", "REFUSED"};
    return names[v];
}

int par_verdict_exit(enum par_verdict v) {
    static const int codes[] = {0, 3, 1, 5, 3, 4};
    return codes[v];
}

enum par_verdict par_verdict_max(enum par_verdict a, enum par_verdict b) {
    return a > b ? a : b;
}
