/* harness/run/limits.c: see limits.h. Plain C; the compiler makes one copy for each level of the instruction set. */
#include "run/limits.h"

#include "run/run_state.h"

#include <string.h>

#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#define ISA_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define ISA_CLONES
#endif

enum { READ_BYTES = 512 << 20, N_ACCUMULATORS = 7 * 16, FMA_ROUNDS = 4000000, REPEATS = 3 };

struct read_work {
    const uint64_t *words;
    uint64_t sums[4096][8]; /* a cache line a thread */
};

ISA_CLONES static uint64_t sum_words(const uint64_t *words, int64_t n) {
    uint64_t lanes[32] = {0}, sum = 0;
    for (int64_t i = 0; i + 32 <= n; i += 32)
        for (int j = 0; j < 32; j++)
            lanes[j] += words[i + j];
    for (int j = 0; j < 32; j++)
        sum += lanes[j];
    return sum;
}

static void read_part(void *ctx, int thread, int n_threads) {
    struct read_work *w = ctx;
    int64_t begin, end;
    fwd_range_split(READ_BYTES / 8, 4096, thread, n_threads, &begin, &end);
    w->sums[thread][0] += sum_words(w->words + begin, end - begin);
}

struct fma_work {
    float out[4096][16];
};

/* Seven vectors of sixteen: as many as AVX2 keeps in registers, and enough chains for the latency at every level.
 * Contraction is on for this one function: what it measures is the fused multiply-add. */
typedef float lanes16 __attribute__((vector_size(64)));

ISA_CLONES __attribute__((optimize("fp-contract=fast", "no-math-errno"))) static float multiply_add(float x,
                                                                                                    int rounds) {
    lanes16 a = {x}, b = a + 1, c = a + 2, d = a + 3, e = a + 4, f = a + 5, g = a + 6, m = a - a + 0.999f;
    for (int r = 0; r < rounds; r++) {
        a = a * m + m;
        b = b * m + m;
        c = c * m + m;
        d = d * m + m;
        e = e * m + m;
        f = f * m + m;
        g = g * m + m;
    }
    a += b + c + d + e + f + g;
    float sum = 0;
    for (int lane = 0; lane < 16; lane++)
        sum += a[lane];
    return sum;
}

static void fma_part(void *ctx, int thread, int n_threads) {
    struct fma_work *w = ctx;
    (void)n_threads;
    w->out[thread][0] += multiply_add(1e-3f * (float)(thread + 1), FMA_ROUNDS);
}

enum fwd_status par_limits_measure(struct fwd_pool *pool, struct par_limits *out, struct fwd_error *err) {
    uint64_t *words = fwd_alloc(READ_BYTES, 1);
    struct read_work *reading = fwd_calloc(1, sizeof *reading);
    struct fma_work *adding = fwd_calloc(1, sizeof *adding);
    enum fwd_status rc = FWD_OK;
    if (!words || !reading || !adding) {
        rc = fwd_fail(err, FWD_ENOMEM, __FILE__, __LINE__, "bench: no memory for %d MB", READ_BYTES >> 20);
    } else {
        memset(words, 1, READ_BYTES);
        reading->words = words;
        memset(out, 0, sizeof *out);
        for (int i = 0; i < REPEATS; i++) {
            double start = par_seconds();
            fwd_pool_run(pool, read_part, reading);
            double middle = par_seconds();
            fwd_pool_run(pool, fma_part, adding);
            double end = par_seconds();
            double gb_s = 1e-9 * READ_BYTES / (middle - start);
            double gflop_s = 2e-9 * N_ACCUMULATORS * (double)FMA_ROUNDS * fwd_pool_size(pool) / (end - middle);
            out->read_gb_s = gb_s > out->read_gb_s ? gb_s : out->read_gb_s;
            out->fma_gflop_s = gflop_s > out->fma_gflop_s ? gflop_s : out->fma_gflop_s;
        }
        /* The sums are used, so that the loops cannot be left out. */
        if (reading->sums[0][0] == 1 && adding->out[0][0] > 0)
            out->read_gb_s = 0;
    }
    fwd_free(words);
    fwd_free(reading);
    fwd_free(adding);
    return rc;
}
