/* harness/cli/cmd_bench.c: parity bench MODEL: how fast a path is, against what the machine can do at most. */
#include "cli/cmd.h"
#include "cli/options.h"
#include "run/limits.h"
#include "run/run_state.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_RUNS = 100 };

struct bench_options {
    struct par_common common;
    const char *paths;
    int prefill, decode, runs;
    bool json;
};

struct bench_result {
    double open_s;
    double prefill_s[MAX_RUNS], decode_s[MAX_RUNS];
};

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(const double *values, int n) {
    double sorted[MAX_RUNS];
    memcpy(sorted, values, (size_t)n * sizeof *sorted);
    qsort(sorted, (size_t)n, sizeof *sorted, by_value);
    return n % 2 ? sorted[n / 2] : 0.5 * (sorted[n / 2 - 1] + sorted[n / 2]);
}

/* The first run warms up and is not counted. Logits of the last token only, as llama-bench has it. */
static enum fwd_status measure(const struct bench_options *o, const struct fwd_path *path, struct fwd_session *session,
                               const int32_t *ids, float *logits, struct bench_result *out, struct fwd_error *err) {
    struct par_drive drive = {.path = path, .session = session, .schedule = PAR_SCHEDULE_PREFILL};
    struct fwd_path_info info = {.size = sizeof info};
    path->describe(&info);
    for (int run = -1; run < o->runs; run++) {
        par_progress("bench", run + 1, o->runs + 1);
        double start = par_seconds();
        if (o->prefill)
            FWD_TRY(par_drive_prompt(&drive, ids, o->prefill, logits, err));
        double middle = par_seconds();
        int n_decode = info.uses_cache ? o->decode : 0;
        if (!o->prefill && n_decode)
            FWD_TRY(path->seq_begin(session, 0, err));
        for (int i = 0; i < n_decode; i++)
            FWD_TRY(par_drive_next(&drive, ids, o->prefill + i + 1, logits, err));
        double end = par_seconds();
        if (run >= 0) {
            out->prefill_s[run] = middle - start;
            out->decode_s[run] = end - middle;
        }
    }
    par_progress("", -1, 0);
    return FWD_OK;
}

static void print(const struct bench_options *o, const struct fwd_path *path, const struct bench_result *r,
                  const struct par_limits *limits, double model_gflop, double model_gb) {
    struct fwd_path_info info = {.size = sizeof info};
    path->describe(&info);
    double prefill = o->prefill ? o->prefill / median(r->prefill_s, o->runs) : 0;
    double decode = info.uses_cache && o->decode ? o->decode / median(r->decode_s, o->runs) : 0;
    double gflop_s = prefill * model_gflop, gb_s = decode * model_gb;
    if (o->json) {
        (void)printf(
            "{\"schema\": \"parity-bench-v1\", \"path\": \"%s\", \"prefill_tokens\": %d, \"prefill_tok_s\": %.3f, "
            "\"decode_tokens\": %d, \"decode_tok_s\": %.3f, \"open_s\": %.3f, \"read_gb_s\": %.2f, "
            "\"fma_gflop_s\": %.1f, \"prefill_gflop_s\": %.1f, \"decode_gb_s\": %.2f, \"prefill_s\": [",
            path->name, o->prefill, prefill, o->decode, decode, r->open_s, limits->read_gb_s, limits->fma_gflop_s,
            gflop_s, gb_s);
        for (int i = 0; i < o->runs; i++)
            (void)printf("%s%.6f", i ? ", " : "", r->prefill_s[i]);
        (void)printf("], \"decode_s\": [");
        for (int i = 0; i < o->runs; i++)
            (void)printf("%s%.6f", i ? ", " : "", r->decode_s[i]);
        (void)printf("]}\n");
        return;
    }
    (void)printf("%-10s open %.2f s", path->name, r->open_s);
    if (o->prefill)
        (void)printf("; prefill of %d: %.1f tok/s (%.0f GFLOP/s, %.0f %% of the FMA ceiling)", o->prefill, prefill,
                     gflop_s, 100 * gflop_s / limits->fma_gflop_s);
    if (decode > 0)
        (void)printf("; decode: %.1f tok/s (%.1f GB/s, %.0f %% of the read ceiling)", decode, gb_s,
                     100 * gb_s / limits->read_gb_s);
    (void)printf("\n");
}

/* What one token costs: multiply-adds of all matrices, and the bytes of them that a decode step reads. */
static void model_cost(const struct fwd_gguf *file, double *gflop, double *gb) {
    double values = 0, bytes = 0;
    bool tied = fwd_gguf_find(file, "output.weight") == NULL;
    for (uint64_t i = 0; i < fwd_gguf_n_tensors(file); i++) {
        const struct fwd_gguf_tensor *t = fwd_gguf_tensor(file, i);
        bool embedding = !strcmp(t->name, "token_embd.weight");
        if (t->n_dims != 2 || (embedding && !tied))
            continue;
        values += (double)t->ne[0] * (double)t->ne[1];
        bytes += (double)t->n_bytes;
    }
    *gflop = 2e-9 * values;
    *gb = 1e-9 * bytes;
}

static enum fwd_status bench_path(const struct bench_options *o, const struct par_input *in,
                                  const struct fwd_path *path, const struct par_limits *limits, struct fwd_error *err) {
    int n_ids = o->prefill + o->decode + 1;
    struct fwd_knobs knobs;
    enum par_schedule schedule;
    struct bench_result result = {0};
    struct fwd_session *session;
    double gflop, gb;
    FWD_TRY(par_drive_probe(path, err));
    FWD_TRY(par_common_knobs(&o->common, n_ids, &knobs, &schedule, err));
    knobs.n_batch = o->prefill > 1 ? o->prefill : 1;
    double start = par_seconds();
    FWD_TRY(path->open(&session, in->file, &knobs, err));
    result.open_s = par_seconds() - start;
    int64_t n_vocab = path->config(session)->n_vocab;
    int32_t *ids = fwd_alloc((size_t)n_ids, sizeof *ids);
    float *logits = fwd_alloc((size_t)n_vocab, sizeof *logits);
    enum fwd_status rc = ids && logits ? FWD_OK : fwd_fail(err, FWD_ENOMEM, __FILE__, __LINE__, "bench: no memory");
    for (int i = 0; rc == FWD_OK && i < n_ids; i++)
        ids[i] = in->ids[i % in->n_ids];
    if (rc == FWD_OK)
        rc = measure(o, path, session, ids, logits, &result, err);
    path->close(session);
    fwd_free(ids);
    fwd_free(logits);
    if (rc != FWD_OK)
        return rc;
    model_cost(in->file, &gflop, &gb);
    print(o, path, &result, limits, gflop, gb);
    return FWD_OK;
}

static enum fwd_status bench(const struct bench_options *o, struct fwd_error *err) {
    struct par_input in;
    struct fwd_pool *pool;
    struct par_limits limits;
    char name[64];
    FWD_TRY(par_input_open(&in, &o->common, err));
    enum fwd_status rc = fwd_pool_create(&pool, o->common.threads, err);
    if (rc == FWD_OK) {
        rc = par_limits_measure(pool, &limits, err);
        if (rc == FWD_OK && !o->json)
            (void)printf("machine    read %.1f GB/s, FMA %.0f GFLOP/s, %d threads\n", limits.read_gb_s,
                         limits.fma_gflop_s, fwd_pool_size(pool));
        fwd_pool_free(pool);
    }
    for (const char *p = o->paths; rc == FWD_OK && *p; p += *p == ',') {
        size_t len = strcspn(p, ",");
        (void)snprintf(name, sizeof name, "%.*s", (int)len, p);
        const struct fwd_path *path = fwd_path_find(name);
        rc = path ? bench_path(o, &in, path, &limits, err)
                  : fwd_fail(err, FWD_EINPUT, __FILE__, __LINE__, "path \"%s\": `parity paths` lists what there is",
                             name);
        p += len;
    }
    par_input_close(&in);
    return rc;
}

int cmd_bench(int argc, char **argv) {
    struct bench_options o = {.paths = "q4k-cpu", .prefill = 512, .decode = 64, .runs = 5};
    const struct par_opt own[] = {
        {"paths", 0, PAR_OPT_STRING, &o.paths, 0, 0, "P,Q", "paths (default q4k-cpu)"},
        {"prefill", 0, PAR_OPT_INT, &o.prefill, 0, 1 << 20, "N", "prompt tokens in one call (default 512, 0: none)"},
        {"steps", 0, PAR_OPT_INT, &o.decode, 0, 1 << 20, "N", "decode steps after it (default 64)"},
        {"runs", 0, PAR_OPT_INT, &o.runs, 1, MAX_RUNS, "N", "counted runs; medians are printed (default 5)"},
        {"json", 0, PAR_OPT_FLAG, &o.json, 0, 0, NULL, "one JSON object a path, with every sample"},
    };
    enum { N_OWN = sizeof own / sizeof *own };
    struct par_opt rows[N_OWN + PAR_COMMON_OPTS];
    struct fwd_error err;
    int n_words;
    bool help;
    memcpy(rows, own, sizeof own);
    par_common_opts(&o.common, rows + N_OWN);
    enum fwd_status rc =
        par_options_parse(rows, N_OWN + PAR_COMMON_OPTS, argc, argv, &o.common.model, 1, &n_words, &help, &err);
    if (rc == FWD_OK && help) {
        par_options_help(stdout, "bench MODEL [options]",
                         "Tokens per second of each path beside this machine's measured read and FMA ceilings.", rows,
                         N_OWN + PAR_COMMON_OPTS);
        return 0;
    }
    if (rc == FWD_OK)
        rc = bench(&o, &err);
    return rc == FWD_OK ? 0 : par_complain(&err);
}
