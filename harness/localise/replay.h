/* harness/localise/replay.h: a case run again, on the path and variant it was recorded on or on any other.
 *
 * "The same reason" means: the same op, one of the recorded elements outside its bound again, its error of the same
 * sign and within a tenth of the recorded one, both counted in bounds. */
#ifndef HARNESS_LOCALISE_REPLAY_H
#define HARNESS_LOCALISE_REPLAY_H

#include "localise/case.h"

struct par_replay_options {
    const struct fwd_path *path; /* NULL: the recorded one */
    const char *caps, *force;    /* NULL: the recorded ones */
    int n_threads;               /* 0: as recorded */
    bool no_fault;               /* leave out the faults that were planted on purpose */
    struct fwd_pool *pool;       /* for judging; may be NULL */
};
struct par_replay {
    enum par_verdict verdict; /* HELD, DIVERGED, NONFINITE or UNMEASURED */
    bool same_reason;
    uint64_t n_judged, n_over; /* elements of the recorded positions */
    double ratio_max;
    struct par_worst worst;                              /* at ratio_max */
    struct par_case_element elements[PAR_CASE_ELEMENTS]; /* the recorded ones, as they are now */
    int n_elements;
    char path[32], variant[96]; /* what ran: "matmul_q Q4_K avx512" */
    bool other_numerics;        /* the session declares other numerics than were recorded */
    char faults[512];           /* planted in this replay; "" */
    char note[200];             /* why it is UNMEASURED; else "" */
};
/* Inputs go in through their taps, or by overriding their ops where a path's taps can only be read; FWD_OK with
 * UNMEASURED where the path has neither. */
enum fwd_status par_case_replay(const struct par_case *c, const struct par_replay_options *options,
                                struct par_replay *out, struct fwd_error *err);
/* |got - expected| / bound, cut at 1e9, which is also the ratio of an element of which one side is not finite. */
double par_case_ratio(const struct par_case_element *e);

#endif
