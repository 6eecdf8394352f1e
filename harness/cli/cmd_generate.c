/* harness/cli/cmd_generate.c: parity generate MODEL: greedy text from one path, streamed to stdout. */
#include "cli/cmd.h"
#include "cli/options.h"
#include "fault/fault_set.h"
#include "report/report_escape.h"
#include "run/generate.h"

#include <cjson/cJSON.h>
#include <limits.h>
#include <string.h>

enum { DEFAULT_COUNT = 64 };

struct generate_options {
    struct par_common common;
    const char *path, *fault;
    bool json;
};

/* One `parity generate`, from open to close. */
struct generation {
    const struct generate_options *options;
    struct par_input input;
    struct par_drive drive;
    int32_t *ids; /* prompt, then what was made */
    int n_made, n_max;
    uint64_t *hashes; /* [n_max] */
    enum par_generate_end end;
    struct par_fault faults[PAR_MOST_FAULTS];
    struct par_fault_set planted;
};

static int fill_options(struct generate_options *o, struct par_opt *rows) {
    const struct par_opt own[] = {
        {"path", 0, PAR_OPT_STRING, &o->path, 0, 0, "PATH", "the path that runs (default q4k-cpu)"},
        {"fault", 0, PAR_OPT_STRING, &o->fault, 0, 0, "NAME[@op[:layer]]",
         "plant a bug, as `run --fault` does; several with commas"},
        {"json", 0, PAR_OPT_FLAG, &o->json, 0, 0, NULL, "one JSON object on stdout: ids, text, a hash of each logits"},
    };
    enum { N_OWN = sizeof own / sizeof *own };
    memcpy(rows, own, sizeof own);
    par_common_opts(&o->common, rows + N_OWN);
    for (int i = 0; i < N_OWN + PAR_COMMON_OPTS; i++)
        if (rows[i].letter == 'n')
            rows[i].help = "ids to make, fewer when one ends the text (default 64)";
    return N_OWN + PAR_COMMON_OPTS;
}

static void take_id(void *ud, int step, int32_t id, uint64_t logits_hash) {
    struct generation *g = ud;
    g->hashes[step] = logits_hash;
    const char *bytes;
    size_t len;
    if (g->options->json || !g->input.tokenizer || fwd_tokenizer_is_end(g->input.tokenizer, id))
        return;
    if (fwd_tokenizer_piece(g->input.tokenizer, id, &bytes, &len)) {
        (void)fwrite(bytes, 1, len, stdout);
        (void)fflush(stdout);
    }
}

static enum fwd_status place_faults(struct generation *g, struct fwd_knobs *knobs, struct fwd_error *err) {
    struct par_spec_model *spec;
    FWD_TRY(par_fault_set_parse(g->options->fault, g->faults, &g->planted.n, err));
    g->planted.faults = g->faults;
    if (g->planted.n == 0)
        return FWD_OK;
    FWD_TRY(par_spec_open(&spec, g->input.file, err));
    enum fwd_status rc = par_fault_set_place(&g->planted, g->input.n_ids, g->drive.path, g->input.file,
                                             par_spec_config(spec), knobs, err);
    par_spec_close(spec);
    par_fault_set_hook(&g->planted, knobs);
    return rc;
}

static enum fwd_status open_path(struct generation *g, struct fwd_error *err) {
    const struct generate_options *o = g->options;
    const char *name = o->path ? o->path : "q4k-cpu";
    FWD_TRY(par_find_path(name, &g->drive.path, err));
    FWD_TRY(par_drive_probe(g->drive.path, err));
    int64_t n_ids = (int64_t)g->input.n_ids + g->n_max;
    FWD_FAIL_IF(n_ids > INT_MAX, FWD_ERANGE, err, "got %d prompt ids and %d to make, expected at most %d together",
                g->input.n_ids, g->n_max, INT_MAX);
    struct fwd_knobs knobs;
    FWD_TRY(par_common_knobs(&o->common, (int)n_ids, &knobs, &g->drive.schedule, err));
    g->drive.chunk = o->common.chunk;
    knobs.n_batch = par_drive_max_batch(g->drive.path, g->drive.schedule, g->drive.chunk, g->input.n_ids, (int)n_ids);
    g->ids = fwd_calloc((size_t)n_ids, sizeof *g->ids);
    g->hashes = fwd_calloc((size_t)g->n_max, sizeof *g->hashes);
    FWD_FAIL_IF(!g->ids || !g->hashes, FWD_ENOMEM, err, "no memory for %lld ids", (long long)n_ids);
    memcpy(g->ids, g->input.ids, (size_t)g->input.n_ids * sizeof *g->ids);
    FWD_TRY(place_faults(g, &knobs, err));
    FWD_TRY(g->drive.path->open(&g->drive.session, g->input.file, &knobs, err));
    return par_fault_set_plant(&g->planted, PAR_ROLE_CANDIDATE, g->drive.path, g->drive.session, err);
}

static cJSON *variants_json(const struct par_drive *d) {
    cJSON *object = cJSON_CreateObject();
    struct fwd_variant_choice choice;
    for (int i = 0; d->path->variant(d->session, i, &choice); i++) {
        char key[96];
        (void)snprintf(key, sizeof key, "%s%s%s", choice.op, *choice.detail ? " " : "", choice.detail);
        (void)cJSON_AddStringToObject(object, key, choice.variant);
    }
    return object;
}

static enum fwd_status text_json(const struct generation *g, cJSON *root, struct fwd_error *err) {
    if (!g->input.tokenizer) {
        (void)cJSON_AddNullToObject(root, "text");
        return FWD_OK;
    }
    char *text, *clean;
    size_t len;
    FWD_TRY(
        fwd_tokenizer_decode(g->input.tokenizer, g->ids + g->input.n_ids, (size_t)g->n_made, false, &text, &len, err));
    clean = par_utf8_clean(text);
    (void)cJSON_AddStringToObject(root, "text", clean ? clean : "");
    fwd_free(text);
    fwd_free(clean);
    return FWD_OK;
}

static enum fwd_status print_json(const struct generation *g, struct fwd_error *err) {
    static const char *const ends[] = {"count", "end-token", "non-finite"};
    cJSON *root = cJSON_CreateObject();
    (void)cJSON_AddStringToObject(root, "schema", "parity-generate-1");
    (void)cJSON_AddStringToObject(root, "model", g->input.path);
    (void)cJSON_AddStringToObject(root, "path", g->drive.path->name);
    (void)cJSON_AddStringToObject(root, "schedule", par_schedule_name(g->drive.schedule));
    (void)cJSON_AddNumberToObject(root, "chunk", g->drive.chunk);
    cJSON_AddItemToObject(root, "variants", variants_json(&g->drive));
    cJSON_AddItemToObject(root, "prompt_ids", cJSON_CreateIntArray(g->ids, g->input.n_ids));
    cJSON_AddItemToObject(root, "ids", cJSON_CreateIntArray(g->ids + g->input.n_ids, g->n_made));
    cJSON *hashes = cJSON_AddArrayToObject(root, "logits_hashes");
    for (int i = 0; i < g->n_made; i++) {
        char hex[24];
        (void)snprintf(hex, sizeof hex, "0x%016llx", (unsigned long long)g->hashes[i]);
        cJSON_AddItemToArray(hashes, cJSON_CreateString(hex));
    }
    (void)cJSON_AddStringToObject(root, "end", ends[g->end]);
    enum fwd_status status = text_json(g, root, err);
    char *out = status == FWD_OK ? cJSON_Print(root) : NULL;
    cJSON_Delete(root);
    FWD_TRY(status);
    FWD_FAIL_IF(!out, FWD_ENOMEM, err, "no memory for the JSON text");
    (void)puts(out);
    cJSON_free(out);
    return FWD_OK;
}

static enum fwd_status generate(struct generation *g, struct fwd_error *err) {
    FWD_TRY(par_input_open(&g->input, &g->options->common, err));
    FWD_TRY(open_path(g, err));
    FWD_TRY(par_generate(&g->drive, g->ids, g->input.n_ids, g->n_max, g->input.tokenizer, take_id, g, &g->n_made,
                         &g->end, err));
    if (g->options->json)
        return print_json(g, err);
    (void)putchar('\n');
    return FWD_OK;
}

int cmd_generate(int argc, char **argv) {
    struct generate_options o = {.common = {.n_decode = DEFAULT_COUNT}};
    struct par_opt rows[PAR_COMMON_OPTS + 8];
    int n_rows = fill_options(&o, rows), n_words;
    bool help;
    struct fwd_error err = {0};
    if (par_options_parse(rows, n_rows, argc, argv, &o.common.model, 1, &n_words, &help, &err) != FWD_OK)
        return par_complain(&err);
    if (help) {
        par_options_help(stdout, "generate MODEL [options]",
                         "Greedy text from one path, by the schedule given: what a judged run computes, printed.", rows,
                         n_rows);
        return 0;
    }
    struct generation g = {.options = &o, .n_max = o.common.n_decode};
    enum fwd_status status = generate(&g, &err);
    if (g.drive.session)
        g.drive.path->close(g.drive.session);
    for (int i = 0; i < g.planted.n; i++)
        par_fault_free(&g.faults[i]);
    fwd_free(g.ids);
    fwd_free(g.hashes);
    par_input_close(&g.input);
    if (status != FWD_OK)
        return par_complain(&err);
    if (g.end == PAR_GENERATE_NONFINITE)
        (void)fprintf(stderr, "parity: no logit of step %d is a number\n", g.n_made);
    return g.end == PAR_GENERATE_NONFINITE ? 5 : 0;
}
