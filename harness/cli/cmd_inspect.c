/* harness/cli/cmd_inspect.c: `parity inspect`: what is in a model file, and whether the engine would run it.
 *
 * A file that can be read is shown, also when the engine refuses the model in it (the refusal is the first note). */
#include "cli/cmd.h"

#include "cli/options.h"
#include "report/inspect.h"

#include <string.h>

enum { EXIT_SHOWN = 0, EXIT_USAGE = 2, EXIT_REFUSED = 4 };

static const char usage[] =
    "usage: parity inspect MODEL [--tensors] [--keys] [--json]\n"
    "\n"
    "Shows what a GGUF file holds: architecture, dimensions, types, tokenizer, and whatever is\n"
    "unusual. MODEL is a path or a registered name; any part of a split model opens all of it.\n"
    "\n"
    "  --tensors   every tensor: type, dimensions, bytes, place\n"
    "  --keys      every key (long arrays: their first items)\n"
    "  --json      one object with everything (schema parity-inspect-v1)\n"
    "\n"
    "Exit: 0 shown, 2 usage, 4 no such model, or not readable as GGUF.\n";

static int show_file(const struct fwd_gguf *file, bool with_tensors, bool with_keys, bool json, struct fwd_error *err) {
    struct fwd_model *model = NULL;
    struct fwd_tokenizer *tokenizer = NULL;
    struct par_inspect_facts *f = fwd_calloc(1, sizeof *f);
    enum fwd_status status = FWD_OK;
    if (!f)
        return (void)fwd_fail(err, FWD_ENOMEM, __FILE__, __LINE__, "no memory to inspect a file"), EXIT_REFUSED;
    f->file = file;
    (void)fwd_model_bind(&model, file, NULL, NULL, &f->refusal);
    (void)fwd_tokenizer_open(&tokenizer, file, &f->tokenizer_refusal);
    f->model = model;
    f->tokenizer = tokenizer;
    par_inspect_count_types(f);
    par_inspect_find_notes(f);
    if (json)
        status = par_inspect_print_json(stdout, f, err);
    else
        par_inspect_print_text(stdout, f, with_tensors, with_keys);
    fwd_model_free(model);
    fwd_tokenizer_close(tokenizer);
    fwd_free(f);
    return status == FWD_OK ? EXIT_SHOWN : EXIT_REFUSED;
}

int cmd_inspect(int argc, char **argv) {
    const char *path = NULL;
    bool with_tensors = false, with_keys = false, json = false;
    struct fwd_error err = {0};
    struct fwd_gguf *file;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            (void)fputs(usage, stdout);
            return EXIT_SHOWN;
        }
        if (!strcmp(argv[i], "--tensors")) {
            with_tensors = true;
        } else if (!strcmp(argv[i], "--keys")) {
            with_keys = true;
        } else if (!strcmp(argv[i], "--json")) {
            json = true;
        } else if (argv[i][0] == '-' || path) {
            (void)fprintf(stderr, "parity inspect: %s \"%s\"\n%s",
                          path && argv[i][0] != '-' ? "a second file" : "unknown option", argv[i], usage);
            return EXIT_USAGE;
        } else {
            path = argv[i];
        }
    }
    if (!path) {
        (void)fprintf(stderr, "parity inspect: no MODEL given\n%s", usage);
        return EXIT_USAGE;
    }
    char resolved[4096];
    if (par_resolve_model(path, resolved, sizeof resolved, &err) != FWD_OK ||
        fwd_gguf_open(&file, resolved, &err) != FWD_OK)
        return par_complain(&err);
    int code = show_file(file, with_tensors, with_keys, json, &err);
    fwd_gguf_close(file);
    if (code != EXIT_SHOWN)
        (void)par_complain(&err);
    return code;
}
