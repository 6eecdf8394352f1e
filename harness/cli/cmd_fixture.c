/* harness/cli/cmd_fixture.c: `parity fixture`: make a model from a seed, cut one down, list and find registered ones.
 */
#include "cli/cmd.h"
#include "cli/options.h"
#include "fixture/cut.h"
#include "fixture/make.h"
#include "fixture/registry.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] = "fixture make|cut|list|path ...";
static const char what[] =
    "make [--shape NAME] [--seed N] [--unquantised] -o FILE   write a model made from a seed\n"
    "cut MODEL --layers 0,1,27 [--vocab N] -o FILE   write a small model with some layers and tokens of MODEL\n"
    "list                                            what can be made, and the registered models\n"
    "path MODEL                                      the file that MODEL means: a path, or a fetched model's name";

struct fixture_options {
    const char *shape, *out, *layers;
    int seed, n_vocab, n_threads;
    bool unquantised;
};

static void show_progress(void *ud, uint64_t done, uint64_t total) {
    par_progress(ud, (int64_t)done, (int64_t)total);
}

static enum fwd_status run_make(const struct fixture_options *o, struct fwd_error *err) {
    char name[] = "make";
    const struct par_shape *shape = par_shape_find(o->shape);
    struct fwd_pool *pool = NULL;
    FWD_FAIL_IF(!shape, FWD_EINPUT, err, "--shape: \"%.100s\" is none of those that `parity fixture list` shows",
                o->shape);
    FWD_FAIL_IF(!o->out, FWD_EINPUT, err, "fixture make: -o FILE is missing");
    FWD_TRY(fwd_pool_create(&pool, o->n_threads, err));
    struct par_make_args args = {.shape = shape,
                                 .seed = (uint64_t)o->seed,
                                 .unquantised = o->unquantised,
                                 .path = o->out,
                                 .pool = pool,
                                 .progress = show_progress,
                                 .progress_ud = name};
    enum fwd_status rc = par_model_make(&args, err);
    fwd_pool_free(pool);
    par_progress(name, -1, 0);
    return rc;
}

static enum fwd_status run_cut(const struct fixture_options *o, const char *model, struct fwd_error *err) {
    char path[PATH_MAX];
    struct par_cut_args args = {.n_vocab = o->n_vocab, .path = o->out};
    struct par_cut_result result;
    struct fwd_gguf *file;
    FWD_FAIL_IF(!model, FWD_EINPUT, err, "fixture cut: MODEL is missing");
    FWD_FAIL_IF(!o->layers, FWD_EINPUT, err, "fixture cut: --layers is missing, like --layers 0,1,27");
    FWD_FAIL_IF(!o->out, FWD_EINPUT, err, "fixture cut: -o FILE is missing");
    FWD_TRY(par_cut_layers(&args, o->layers, err));
    FWD_TRY(par_resolve_model(model, path, sizeof path, err));
    FWD_TRY(fwd_gguf_open(&file, path, err));
    args.file = file;
    enum fwd_status rc = par_model_cut(&args, &result, err);
    fwd_gguf_close(file);
    if (rc == FWD_OK)
        (void)printf("%s: %d layers, %lld tokens, %lld merges, %llu bytes\n", o->out, args.n_layers,
                     (long long)result.n_tokens, (long long)result.n_merges, (unsigned long long)result.n_bytes);
    return rc;
}

static enum fwd_status run_list(struct fwd_error *err) {
    struct par_registry *r;
    FWD_TRY(par_registry_open(&r, err));
    (void)printf("made from a seed (parity fixture make --shape NAME -o FILE):\n");
    for (int i = 0; par_shape_at(i); i++)
        (void)printf("  %-20s %8.1f MB  %s\n", par_shape_at(i)->name, (double)par_shape_bytes(par_shape_at(i)) / 1e6,
                     par_shape_at(i)->summary);
    (void)printf("registered (make model NAME=NAME fetches):\n");
    for (int i = 0; i < par_registry_size(r); i++) {
        const struct par_model_entry *e = par_registry_at(r, i);
        (void)printf("  %-20s %8.1f MB  %s, %s: %s\n", e->name, (double)e->n_bytes / 1e6, e->architecture, e->licence,
                     e->content);
    }
    par_registry_close(r);
    return FWD_OK;
}

static enum fwd_status run_path(const char *model, struct fwd_error *err) {
    char path[PATH_MAX];
    FWD_FAIL_IF(!model, FWD_EINPUT, err, "fixture path: MODEL is missing");
    FWD_TRY(par_resolve_model(model, path, sizeof path, err));
    (void)printf("%s\n", path);
    return FWD_OK;
}

int cmd_fixture(int argc, char **argv) {
    struct fixture_options o = {.shape = "tiny", .seed = 1};
    const struct par_opt opts[] = {
        {"shape", 0, PAR_OPT_STRING, &o.shape, 0, 0, "NAME", "make: the shape (default tiny)"},
        {"seed", 0, PAR_OPT_INT, &o.seed, 0, INT_MAX, "N", "make: the seed (default 1)"},
        {"unquantised", 0, PAR_OPT_FLAG, &o.unquantised, 0, 0, NULL,
         "make: its matrices in F32: a file for run --source"},
        {"threads", 0, PAR_OPT_INT, &o.n_threads, 0, 4096, "N", "make: threads (default 0: one per core)"},
        {"layers", 0, PAR_OPT_STRING, &o.layers, 0, 0, "LIST", "cut: the layers to keep, ascending"},
        {"vocab", 0, PAR_OPT_INT, &o.n_vocab, 1, INT_MAX, "N", "cut: keep the first N tokens (default: all)"},
        {"out", 'o', PAR_OPT_STRING, &o.out, 0, 0, "FILE", "the file to write"},
    };
    enum { N_OPTS = sizeof opts / sizeof *opts };
    const char *words[2] = {NULL, NULL};
    int n_words;
    bool help;
    struct fwd_error err = {0};
    enum fwd_status rc = par_options_parse(opts, N_OPTS, argc, argv, words, 2, &n_words, &help, &err);
    if (rc == FWD_OK && help) {
        par_options_help(stdout, usage, what, opts, N_OPTS);
        return 0;
    }
    if (rc == FWD_OK && words[0] && !strcmp(words[0], "cut"))
        rc = run_cut(&o, words[1], &err);
    else if (rc == FWD_OK && words[0] && !strcmp(words[0], "path"))
        rc = run_path(words[1], &err);
    else if (rc == FWD_OK && words[0] && !words[1] && !strcmp(words[0], "make"))
        rc = run_make(&o, &err);
    else if (rc == FWD_OK && words[0] && !words[1] && !strcmp(words[0], "list"))
        rc = run_list(&err);
    else if (rc == FWD_OK)
        rc = fwd_fail(&err, FWD_EINPUT, __FILE__, __LINE__, "fixture: expected make, cut MODEL, list or path MODEL");
    return rc == FWD_OK ? 0 : par_complain(&err);
}
