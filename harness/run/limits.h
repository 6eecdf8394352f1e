/* harness/run/limits.h: what this machine can do at most, measured: the ceilings that `parity bench` holds paths
 * against. */
#ifndef HARNESS_RUN_LIMITS_H
#define HARNESS_RUN_LIMITS_H

#include "engine.h"

struct par_limits {
    double read_gb_s;   /* streaming read of a buffer far larger than the caches, all threads */
    double fma_gflop_s; /* F32 multiply-adds in registers, two operations each, all threads */
};
/* Takes about a second and 512 MB for a moment. */
enum fwd_status par_limits_measure(struct fwd_pool *pool, struct par_limits *out, struct fwd_error *err);

#endif
