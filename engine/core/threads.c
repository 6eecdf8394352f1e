#define _GNU_SOURCE
#include "core/threads.h"

#include "core/cpu.h"
#include "core/memory.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Spins before a waiter sleeps: some tens of microseconds, longer than the gap between two ops of a decode step and
 * short enough that an idle pool costs nothing. With more threads than cores spinning only steals time, so they sleep
 * at once. */
enum { SPINS = 2000 };

struct worker {
    pthread_t handle;
    struct fwd_pool *pool;
    int index;
};

struct fwd_pool {
    int n_threads;
    int spins;
    struct worker *workers; /* n_threads - 1 */
    fwd_task_fn *fn;
    void *ctx;
    _Atomic uint32_t epoch;   /* a new value starts a run; odd lowest bit is not special */
    _Atomic uint32_t running; /* workers still in the current run */
    _Atomic uint32_t barrier_count;
    _Atomic uint32_t barrier_epoch;
    _Atomic uint32_t sleepers;
    _Atomic int stop;
};

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void wait_change(struct fwd_pool *pool, _Atomic uint32_t *word, uint32_t old) {
    for (int i = 0; i < pool->spins; i++) {
        if (atomic_load_explicit(word, memory_order_acquire) != old)
            return;
        relax();
    }
    atomic_fetch_add(&pool->sleepers, 1);
    while (atomic_load(word) == old)
        (void)syscall(SYS_futex, (uint32_t *)word, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
    atomic_fetch_sub(&pool->sleepers, 1);
}

static void wake_all(struct fwd_pool *pool, _Atomic uint32_t *word) {
    if (atomic_load(&pool->sleepers))
        (void)syscall(SYS_futex, (uint32_t *)word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static void *work(void *arg) {
    struct worker *self = arg;
    struct fwd_pool *pool = self->pool;
    uint32_t seen = 0;
    for (;;) {
        wait_change(pool, &pool->epoch, seen);
        seen++;
        if (atomic_load(&pool->stop))
            return NULL;
        pool->fn(pool->ctx, self->index, pool->n_threads);
        if (atomic_fetch_sub(&pool->running, 1) == 1)
            wake_all(pool, &pool->running);
    }
}

static void stop_workers(struct fwd_pool *pool, int n_started) {
    atomic_store(&pool->stop, 1);
    atomic_fetch_add(&pool->epoch, 1);
    wake_all(pool, &pool->epoch);
    for (int i = 0; i < n_started; i++)
        (void)pthread_join(pool->workers[i].handle, NULL);
}

enum fwd_status fwd_pool_create(struct fwd_pool **out, int n_threads, struct fwd_error *err) {
    int n_cores = fwd_cpu_count();
    if (n_threads <= 0)
        n_threads = n_cores;
    FWD_FAIL_IF(n_threads > 4096, FWD_ERANGE, err, "threads: got %d, expected at most 4096", n_threads);
    struct fwd_pool *pool = fwd_calloc(1, sizeof *pool);
    struct worker *workers = fwd_calloc((size_t)n_threads, sizeof *workers);
    if (!pool || !workers) {
        fwd_free(pool);
        fwd_free(workers);
        FWD_FAIL(FWD_ENOMEM, err, "threads: no memory for a pool of %d", n_threads);
    }
    pool->n_threads = n_threads;
    pool->spins = n_threads > n_cores ? 0 : SPINS;
    pool->workers = workers;
    for (int i = 0; i < n_threads - 1; i++) {
        workers[i].pool = pool;
        workers[i].index = i + 1;
        int rc = pthread_create(&workers[i].handle, NULL, work, &workers[i]);
        if (rc != 0) {
            stop_workers(pool, i);
            fwd_free(workers);
            fwd_free(pool);
            FWD_FAIL(FWD_EUNAVAILABLE, err, "threads: thread %d of %d could not start: %s", i + 1, n_threads,
                     strerror(rc));
        }
    }
    *out = pool;
    return FWD_OK;
}

void fwd_pool_free(struct fwd_pool *pool) {
    if (!pool)
        return;
    stop_workers(pool, pool->n_threads - 1);
    fwd_free(pool->workers);
    fwd_free(pool);
}

int fwd_pool_size(const struct fwd_pool *pool) {
    return pool ? pool->n_threads : 1;
}

void fwd_pool_run(struct fwd_pool *pool, fwd_task_fn *fn, void *ctx) {
    if (!pool || pool->n_threads == 1) {
        fn(ctx, 0, 1);
        return;
    }
    pool->fn = fn;
    pool->ctx = ctx;
    atomic_store(&pool->running, (uint32_t)pool->n_threads - 1);
    atomic_fetch_add(&pool->epoch, 1);
    wake_all(pool, &pool->epoch);
    fn(ctx, 0, pool->n_threads);
    for (uint32_t left; (left = atomic_load(&pool->running)) != 0;)
        wait_change(pool, &pool->running, left);
}

void fwd_pool_barrier(struct fwd_pool *pool) {
    if (!pool || pool->n_threads == 1)
        return;
    uint32_t epoch = atomic_load(&pool->barrier_epoch);
    if (atomic_fetch_add(&pool->barrier_count, 1) + 1 == (uint32_t)pool->n_threads) {
        atomic_store(&pool->barrier_count, 0);
        atomic_fetch_add(&pool->barrier_epoch, 1);
        wake_all(pool, &pool->barrier_epoch);
    } else {
        wait_change(pool, &pool->barrier_epoch, epoch);
    }
}
