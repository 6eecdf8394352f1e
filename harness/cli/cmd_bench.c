/* harness/cli/cmd_bench.c: parity bench MODEL: how fast a path is, against what the machine or the device can do at
 * most. */
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
    bool json, taps;
};

/* What else a decode step hands out while it is timed. */
enum watched { WATCHED_NOT, WATCHED_TAPS, WATCHED_DIGESTS, N_WATCHED };

struct bench_result {
    double open_s;
    double prefill_s[MAX_RUNS], decode_s[N_WATCHED][MAX_RUNS];
    bool watched[N_WATCHED]; /* it was measured */
    double n_views;          /* taps or digests of the last watched run */
};

/* One path, open. */
struct bench {
    const struct bench_options *o;
    const struct fwd_path *path;
    struct fwd_path_info info;
    struct fwd_device_info device; /* name "": the CPU */
    struct fwd_session *session;
    int32_t *ids;
    float *logits;
    double n_views;
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

static int take_view(void *ud, const struct fwd_view *view) {
    struct bench *b = ud;
    b->n_views += view->data != NULL;
    return 0;
}

static int take_digest(void *ud, const struct fwd_view *view, const struct fwd_digest *digest) {
    struct bench *b = ud;
    b->n_views += view->op < FWD_OP_COUNT && digest != NULL;
    return 0;
}

/* Decode steps after the prompt. A path that serves it is asked for the best token's id alone, as a loop that generates
 * text needs no more; others hand out the logits. */
static enum fwd_status decode(struct bench *b, enum watched watched, struct fwd_error *err) {
    const struct bench_options *o = b->o;
    if (!o->prefill)
        FWD_TRY(b->path->seq_begin(b->session, 0, err));
    for (int i = 0; i < o->decode; i++) {
        int32_t best = 0;
        struct fwd_run_args args = {.size = sizeof args,
                                    .tokens = b->ids + o->prefill + i,
                                    .n_tokens = 1,
                                    .pos0 = o->prefill + i,
                                    .logits = b->info.argmax ? NULL : b->logits,
                                    .argmax = b->info.argmax ? &best : NULL,
                                    .tap = watched == WATCHED_TAPS ? take_view : NULL,
                                    .tap_ud = b,
                                    .digest = watched == WATCHED_DIGESTS ? take_digest : NULL,
                                    .digest_ud = b};
        FWD_TRY(b->path->run(b->session, &args, err));
        FWD_FAIL_IF(b->info.argmax && (best < 0 || best >= b->path->config(b->session)->n_vocab), FWD_ESTATE, err,
                    "bench: %s chose token %d at position %d", b->path->name, best, o->prefill + i);
    }
    return FWD_OK;
}

/* The first run warms up and is not counted. Logits of the prompt's last token only, as llama-bench has it. */
static enum fwd_status measure(struct bench *b, struct bench_result *out, struct fwd_error *err) {
    const struct bench_options *o = b->o;
    struct par_drive drive = {
        .path = b->path, .session = b->session, .schedule = PAR_SCHEDULE_PREFILL, .chunk = o->common.chunk};
    for (int watched = 0; watched < N_WATCHED; watched++) {
        bool is_asked = watched == WATCHED_NOT ||
                        (o->taps && o->decode && b->info.uses_cache && (watched == WATCHED_TAPS || b->info.digests));
        for (int run = -1; is_asked && run < o->runs; run++) {
            par_progress("bench", (o->runs + 1) * watched + run + 1, (o->runs + 1) * N_WATCHED);
            double start = par_seconds();
            if (o->prefill)
                FWD_TRY(par_drive_prompt(&drive, b->ids, o->prefill, b->logits, err));
            double middle = par_seconds();
            b->n_views = 0;
            if (b->info.uses_cache && o->decode)
                FWD_TRY(decode(b, (enum watched)watched, err));
            double end = par_seconds();
            if (run < 0)
                continue;
            if (watched == WATCHED_NOT)
                out->prefill_s[run] = middle - start;
            out->decode_s[watched][run] = end - middle;
        }
        out->watched[watched] = is_asked;
        out->n_views = is_asked && watched ? b->n_views : out->n_views;
    }
    par_progress("", -1, 0);
    return FWD_OK;
}

static void print_samples(const char *name, const double *values, int n) {
    (void)printf("\"%s\": [", name);
    for (int i = 0; i < n; i++)
        (void)printf("%s%.6f", i ? ", " : "", values[i]);
    (void)printf("]");
}

/* Tokens a second of the steps while watched so; 0: not measured. */
static double decode_rate(const struct bench *b, const struct bench_result *r, enum watched watched) {
    return r->watched[watched] && b->info.uses_cache && b->o->decode
               ? b->o->decode / median(r->decode_s[watched], b->o->runs)
               : 0;
}

static void print_json(const struct bench *b, const struct bench_result *r, double read_gb_s, double fma_gflop_s,
                       double prefill, double gflop, double gb) {
    static const char *const names[N_WATCHED] = {"decode_s", "decode_taps_s", "decode_digests_s"};
    const struct bench_options *o = b->o;
    double decode = decode_rate(b, r, WATCHED_NOT);
    (void)printf(
        "{\"schema\": \"parity-bench-v1\", \"path\": \"%s\", \"device\": \"%s\", \"prefill_tokens\": %d, "
        "\"prefill_tok_s\": %.3f, \"decode_tokens\": %d, \"decode_tok_s\": %.3f, \"decode_hands_out\": \"%s\", "
        "\"open_s\": %.3f, \"read_gb_s\": %.2f, \"fma_gflop_s\": %.1f, \"prefill_gflop_s\": %.1f, "
        "\"decode_gb_s\": %.2f, \"decode_taps_tok_s\": %.3f, \"decode_digests_tok_s\": %.3f, ",
        b->path->name, *b->device.name ? b->device.name : "CPU", o->prefill, prefill, o->decode, decode,
        b->info.argmax ? "best token" : "logits", r->open_s, read_gb_s, fma_gflop_s, prefill * gflop, decode * gb,
        decode_rate(b, r, WATCHED_TAPS), decode_rate(b, r, WATCHED_DIGESTS));
    print_samples("prefill_s", r->prefill_s, o->runs);
    for (int w = 0; w < N_WATCHED; w++) {
        if (!r->watched[w])
            continue;
        (void)printf(", ");
        print_samples(names[w], r->decode_s[w], o->runs);
    }
    (void)printf("}\n");
}

static void print(const struct bench *b, const struct bench_result *r, const struct par_limits *limits,
                  double model_gflop, double model_gb) {
    const struct bench_options *o = b->o;
    bool on_device = *b->device.name != 0;
    double read_gb_s = on_device ? b->device.read_gb_s : limits->read_gb_s;
    double prefill = o->prefill ? o->prefill / median(r->prefill_s, o->runs) : 0;
    double decode = decode_rate(b, r, WATCHED_NOT);
    if (o->json) {
        print_json(b, r, read_gb_s, on_device ? 0 : limits->fma_gflop_s, prefill, model_gflop, model_gb);
        return;
    }
    if (on_device)
        (void)printf("device     %s, read %.0f GB/s, %s\n", b->device.name, read_gb_s, b->device.driver);
    (void)printf("%-14s open %.2f s", b->path->name, r->open_s);
    if (o->prefill)
        (void)printf("; prefill of %d: %.1f tok/s (%.0f GFLOP/s", o->prefill, prefill, prefill * model_gflop);
    if (o->prefill && !on_device)
        (void)printf(", %.0f %% of the FMA ceiling", 100 * prefill * model_gflop / limits->fma_gflop_s);
    if (o->prefill)
        (void)printf(")");
    if (decode > 0)
        (void)printf("; decode: %.1f tok/s (%.1f GB/s, %.0f %% of the read ceiling; hands out the %s)", decode,
                     decode * model_gb, 100 * decode * model_gb / read_gb_s, b->info.argmax ? "best token" : "logits");
    (void)printf("\n");
    static const char *const what[N_WATCHED] = {"", "all taps captured", "digests of all taps"};
    for (int w = 1; w < N_WATCHED; w++)
        if (r->watched[w])
            (void)printf("%-14s decode with %s: %.1f tok/s, %.1f %% slower\n", "", what[w],
                         decode_rate(b, r, (enum watched)w), 100 * (1 - decode_rate(b, r, (enum watched)w) / decode));
        else if (o->taps)
            (void)printf("%-14s decode with %s: not offered by this path\n", "", what[w]);
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

static enum fwd_status open_bench(struct bench *b, const struct par_input *in, struct bench_result *result,
                                  struct fwd_error *err) {
    const struct bench_options *o = b->o;
    int n_ids = o->prefill + o->decode + 1;
    struct fwd_knobs knobs;
    enum par_schedule schedule;
    FWD_TRY(par_drive_probe(b->path, err));
    b->path->describe(&b->info);
    if (b->path->device)
        FWD_TRY(b->path->device(&b->device, true, err));
    FWD_TRY(par_common_knobs(&o->common, n_ids, &knobs, &schedule, err));
    int chunk = o->common.chunk;
    knobs.n_batch = chunk && chunk < o->prefill ? chunk : o->prefill > 1 ? o->prefill : 1;
    double start = par_seconds();
    FWD_TRY(b->path->open(&b->session, in->file, &knobs, err));
    result->open_s = par_seconds() - start;
    b->ids = fwd_alloc((size_t)n_ids, sizeof *b->ids);
    b->logits = fwd_alloc((size_t)b->path->config(b->session)->n_vocab, sizeof *b->logits);
    FWD_FAIL_IF(!b->ids || !b->logits, FWD_ENOMEM, err, "bench: no memory");
    for (int i = 0; i < n_ids; i++)
        b->ids[i] = in->ids[i % in->n_ids];
    return FWD_OK;
}

static enum fwd_status bench_path(const struct bench_options *o, const struct par_input *in,
                                  const struct fwd_path *path, const struct par_limits *limits, struct fwd_error *err) {
    struct bench b = {.o = o, .path = path, .info = {.size = sizeof b.info}, .device = {.size = sizeof b.device}};
    struct bench_result result = {0};
    double gflop, gb;
    enum fwd_status rc = open_bench(&b, in, &result, err);
    if (rc == FWD_OK)
        rc = measure(&b, &result, err);
    if (rc == FWD_OK) {
        model_cost(in->file, &gflop, &gb);
        print(&b, &result, limits, gflop, gb);
    }
    if (b.session)
        path->close(b.session);
    fwd_free(b.ids);
    fwd_free(b.logits);
    return rc;
}

/* Of the host: for the paths on its CPU. */
static enum fwd_status measure_host(const struct bench_options *o, struct par_limits *limits, struct fwd_error *err) {
    struct fwd_pool *pool;
    FWD_TRY(fwd_pool_create(&pool, o->common.threads, err));
    enum fwd_status rc = par_limits_measure(pool, limits, err);
    if (rc == FWD_OK && !o->json)
        (void)printf("machine    read %.1f GB/s, FMA %.0f GFLOP/s, %d threads\n", limits->read_gb_s,
                     limits->fma_gflop_s, fwd_pool_size(pool));
    fwd_pool_free(pool);
    return rc;
}

static enum fwd_status bench(const struct bench_options *o, struct fwd_error *err) {
    struct par_input in;
    struct par_limits limits = {0};
    const struct fwd_path *path;
    char name[64];
    bool is_host_measured = false;
    for (const char *rest = o->paths; *rest;) {
        FWD_TRY(par_next_name(&rest, name, err));
        FWD_TRY(par_find_path(name, &path, err));
    }
    FWD_TRY(par_input_open(&in, &o->common, err));
    enum fwd_status rc = FWD_OK;
    for (const char *rest = o->paths; rc == FWD_OK && *rest;) {
        (void)par_next_name(&rest, name, err);
        (void)par_find_path(name, &path, err);
        if (!path->device && !is_host_measured)
            rc = measure_host(o, &limits, err);
        is_host_measured = is_host_measured || !path->device;
        if (rc == FWD_OK)
            rc = bench_path(o, &in, path, &limits, err);
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
        {"taps", 0, PAR_OPT_FLAG, &o.taps, 0, 0, NULL, "decode again with all taps captured, and with their digests"},
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
                         "Tokens per second of each path beside the measured read and FMA ceilings of where it runs.",
                         rows, N_OWN + PAR_COMMON_OPTS);
        return 0;
    }
    if (rc == FWD_OK)
        rc = bench(&o, &err);
    return rc == FWD_OK ? 0 : par_complain(&err);
}
