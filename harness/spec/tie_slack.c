#include "spec/tie_slack.h"

#include <float.h>
#include <math.h>

int par_near_ties(const float *x, int n, int *at) {
    float amax = 0;
    int n_near = 0;
    for (int i = 0; i < n; i++) {
        if (!isfinite(x[i]))
            return 0;
        amax = fabsf(x[i]) > amax ? fabsf(x[i]) : amax;
    }
    if (amax < 0x1p-100f)
        return 0;
    float id = 127.0f / amax;
    for (int i = 0; i < n; i++) {
        float scaled = fabsf(x[i] * id);
        double tie = floor((double)scaled) + 0.5, ulp = (double)nextafterf(scaled, FLT_MAX) - (double)scaled;
        if (fabs((double)scaled - tie) <= PAR_TIE_ULP * ulp)
            at[n_near++] = i;
    }
    return n_near;
}

enum fwd_status par_ties_begin(struct par_ties *t, int n_pos, struct fwd_error *err) {
    t->first = fwd_calloc((size_t)n_pos + 1, sizeof *t->first);
    FWD_FAIL_IF(!t->first, FWD_ENOMEM, err, "judge: no memory for the ties of %d positions", n_pos);
    return FWD_OK;
}

void par_ties_position(struct par_ties *t, int p) {
    if (t->first)
        t->first[p] = t->n;
}

enum fwd_status par_ties_add(struct par_ties *t, const float *x, int n, int64_t k0, double d, struct fwd_error *err) {
    int at[256], n_near = par_near_ties(x, n, at);
    if (t->n + n_near > t->room) {
        int64_t room = 2 * t->room + 256;
        struct par_tie *more = fwd_realloc(t->tie, (size_t)t->room * sizeof *more, (size_t)room, sizeof *more);
        FWD_FAIL_IF(!more, FWD_ENOMEM, err, "judge: no memory for %lld ties", (long long)room);
        t->tie = more;
        t->room = room;
    }
    for (int i = 0; i < n_near; i++)
        t->tie[t->n++] = (struct par_tie){k0 + at[i], fabs(d)};
    return FWD_OK;
}

void par_ties_free(struct par_ties *t) {
    fwd_free(t->tie);
    fwd_free(t->first);
    *t = (struct par_ties){0};
}
