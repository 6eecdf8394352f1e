/* engine/core/threads.h: a small pool. The caller's thread is thread 0; workers spin briefly, then sleep.
 * Written with C11 atomics only, so that ThreadSanitizer sees every hand-over. One run at a time per pool. */
#ifndef ENGINE_CORE_THREADS_H
#define ENGINE_CORE_THREADS_H

#include "core/status.h"

#include <stdint.h>

struct fwd_pool;

typedef void fwd_task_fn(void *ctx, int thread, int n_threads);

/* n_threads <= 0: one per core this process may use. On success *out must be freed. */
enum fwd_status fwd_pool_create(struct fwd_pool **out, int n_threads, struct fwd_error *err);
void fwd_pool_free(struct fwd_pool *pool);
int fwd_pool_size(const struct fwd_pool *pool);
/* Calls fn(ctx, t, n) once on each of the n threads and returns when all are done. pool == NULL: fn(ctx, 0, 1). */
void fwd_pool_run(struct fwd_pool *pool, fwd_task_fn *fn, void *ctx);
/* Inside a task: all threads of the pool meet. Every thread must call it the same number of times. */
void fwd_pool_barrier(struct fwd_pool *pool);

/* The part of [0, total) that `thread` of `n_threads` works on, cut at multiples of `grain`. */
static inline void fwd_range_split(int64_t total, int64_t grain, int thread, int n_threads, int64_t *begin,
                                   int64_t *end) {
    int64_t units = (total + grain - 1) / grain;
    int64_t b = units * thread / n_threads * grain;
    int64_t e = units * (thread + 1) / n_threads * grain;
    *begin = b < total ? b : total;
    *end = e < total ? e : total;
}

#endif
