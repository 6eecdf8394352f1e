/* harness/cli/options.c: see options.h. */
#include "cli/options.h"

#include "fixture/registry.h"
#include "report/embedded.h"
#include "run/run.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_PROMPT_BYTES = 64 << 20, LOSS_TOKENS = 48 };

static enum fwd_status parse_int(const char *name, const char *text, int min, int max, int *out,
                                 struct fwd_error *err) {
    char *end;
    errno = 0;
    long v = strtol(text, &end, 10);
    FWD_FAIL_IF(errno || end == text || *end || v < min || v > max, FWD_EINPUT, err,
                "--%s: got \"%s\", expected a whole number from %d to %d", name, text, min, max);
    *out = (int)v;
    return FWD_OK;
}

enum fwd_status par_parse_judge(const char *option, const char *text, int *every, struct fwd_error *err) {
    static const char sample[] = "sample:";
    enum { LARGEST = 1 << 20 };
    char *end = NULL;
    long n = 0;
    *every = 0;
    if (!text)
        return FWD_OK;
    if (!strcmp(text, "all"))
        n = PAR_JUDGE_ALL;
    else if (!strcmp(text, "last"))
        n = PAR_JUDGE_LAST;
    else if (!strncmp(text, sample, sizeof sample - 1) && text[sizeof sample - 1] >= '0' &&
             text[sizeof sample - 1] <= '9')
        n = strtol(text + sizeof sample - 1, &end, 10);
    FWD_FAIL_IF(n < 1 || (end && (*end || n > LARGEST)), FWD_EINPUT, err,
                "--%s: got \"%s\", expected all, last or sample:N with N from 1 to %d", option, text, LARGEST);
    *every = (int)n;
    return FWD_OK;
}

static const struct par_opt *find_option(const struct par_opt *opts, int n_opts, const char *word,
                                         const char **inline_value) {
    *inline_value = NULL;
    for (int i = 0; i < n_opts; i++) {
        size_t n = strlen(opts[i].name);
        if (word[1] == '-' && !strncmp(word + 2, opts[i].name, n) && (word[2 + n] == 0 || word[2 + n] == '=')) {
            if (word[2 + n] == '=')
                *inline_value = word + 3 + n;
            return &opts[i];
        }
        if (word[1] != '-' && opts[i].letter && word[1] == opts[i].letter && word[2] == 0)
            return &opts[i];
    }
    return NULL;
}

static enum fwd_status take_option(const struct par_opt *opt, const char *word, const char *value,
                                   struct fwd_error *err) {
    if (opt->kind == PAR_OPT_FLAG) {
        FWD_FAIL_IF(value != NULL, FWD_EINPUT, err, "%s: takes no value", word);
        *(bool *)opt->out = true;
        return FWD_OK;
    }
    FWD_FAIL_IF(!value, FWD_EINPUT, err, "%s: needs a value: %s", word, opt->value);
    if (opt->kind == PAR_OPT_INT)
        return parse_int(opt->name, value, opt->min, opt->max, opt->out, err);
    *(const char **)opt->out = value;
    return FWD_OK;
}

enum fwd_status par_options_parse(const struct par_opt *opts, int n_opts, int argc, char **argv,
                                  const char **positional, int max_positional, int *n_positional, bool *help,
                                  struct fwd_error *err) {
    bool only_words = false;
    *n_positional = 0;
    *help = false;
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        if (!only_words && !strcmp(word, "--")) {
            only_words = true;
            continue;
        }
        if (only_words || word[0] != '-' || word[1] == 0) {
            FWD_FAIL_IF(*n_positional == max_positional, FWD_EINPUT, err, "\"%s\": one word too many (--help tells)",
                        word);
            positional[(*n_positional)++] = word;
            continue;
        }
        if (!strcmp(word, "--help") || !strcmp(word, "-h")) {
            *help = true;
            return FWD_OK;
        }
        const char *value;
        const struct par_opt *opt = find_option(opts, n_opts, word, &value);
        FWD_FAIL_IF(!opt, FWD_EINPUT, err, "%s: no such option (--help lists them)", word);
        if (opt->kind != PAR_OPT_FLAG && !value && i + 1 < argc)
            value = argv[++i];
        FWD_TRY(take_option(opt, word, value, err));
    }
    return FWD_OK;
}

void par_options_help(FILE *out, const char *usage, const char *what, const struct par_opt *opts, int n_opts) {
    (void)fprintf(out, "usage: parity %s\n\n%s\n\n", usage, what);
    for (int i = 0; i < n_opts; i++) {
        char left[64];
        char letter[8] = "    ";
        if (opts[i].letter)
            (void)snprintf(letter, sizeof letter, "-%c, ", opts[i].letter);
        (void)snprintf(left, sizeof left, "%s--%s %s", letter, opts[i].name, opts[i].value ? opts[i].value : "");
        (void)fprintf(out, "  %-30s %s\n", left, opts[i].help);
    }
}

void par_common_opts(struct par_common *c, struct par_opt *rows) {
    const struct par_opt table[PAR_COMMON_OPTS] = {
        {"prompt", 'p', PAR_OPT_STRING, &c->prompt, 0, 0, "TEXT", "the prompt (default: a built-in one)"},
        {"prompt-file", 'f', PAR_OPT_STRING, &c->prompt_file, 0, 0, "FILE", "the prompt is the text of FILE"},
        {"tokens", 't', PAR_OPT_STRING, &c->tokens, 0, 0, "IDS", "the prompt as token ids: 1,2,3"},
        {"chat", 0, PAR_OPT_FLAG, &c->chat, 0, 0, NULL, "wrap the prompt in the model's ChatML form"},
        {"decode", 'n', PAR_OPT_INT, &c->n_decode, 0, 100000, "N", "teacher-forced decode steps after the prompt"},
        {"threads", 0, PAR_OPT_INT, &c->threads, 0, 4096, "N", "threads (default 0: one per core)"},
        {"kv", 0, PAR_OPT_STRING, &c->kv, 0, 0, "f16|f32", "type of the KV cache (default f16)"},
        {"head", 0, PAR_OPT_STRING, &c->head, 0, 0, "quant|f32", "how the output head multiplies (default quant)"},
        {"caps", 0, PAR_OPT_STRING, &c->caps, 0, 0, "LEVEL", "CPU level: ref, avx2, avx512 (default: the machine's)"},
        {"force", 0, PAR_OPT_STRING, &c->force, 0, 0, "OP=VARIANT,..", "force a kernel variant of an op"},
        {"act", 0, PAR_OPT_STRING, &c->act, 0, 0, "as:PATH", "reference: quantise activations as PATH does"},
        {"schedule", 0, PAR_OPT_STRING, &c->schedule, 0, 0, "S", "prefill (default), step, sweep or nocache"},
        {"chunk", 0, PAR_OPT_INT, &c->chunk, 0, 1 << 20, "N", "prompt tokens per call in prefill (default 0: all)"},
        {"scribble", 0, PAR_OPT_FLAG, &c->scribble, 0, 0, NULL, "NaN over a path's scratch memory before each call"},
        {"no-overlap", 0, PAR_OPT_FLAG, &c->no_overlap, 0, 0, NULL, "launches on a device in plain order"},
        {"fp8-fast", 0, PAR_OPT_FLAG, &c->fp8_fast, 0, 0, NULL, "E4M3 products in the fast, narrow accumulator"},
        {"ctx", 0, PAR_OPT_INT, &c->n_ctx, 0, 1 << 24, "N", "positions a sequence may have (default: as needed)"},
    };
    memcpy(rows, table, sizeof table);
}

enum fwd_status par_common_knobs(const struct par_common *c, int n_ids, struct fwd_knobs *knobs,
                                 enum par_schedule *schedule, struct fwd_error *err) {
    memset(knobs, 0, sizeof *knobs);
    knobs->size = sizeof *knobs;
    knobs->n_threads = c->threads;
    FWD_FAIL_IF(c->n_ctx && c->n_ctx < n_ids, FWD_ERANGE, err,
                "--ctx: got %d, expected at least the %d ids of the sequence", c->n_ctx, n_ids);
    knobs->n_ctx = c->n_ctx ? c->n_ctx : n_ids;
    knobs->n_seq = 1;
    knobs->n_batch = n_ids;
    knobs->caps = c->caps;
    knobs->force = c->force;
    knobs->act = c->act;
    knobs->scribble = c->scribble;
    knobs->no_overlap = c->no_overlap;
    knobs->fp8_fast = c->fp8_fast;
    knobs->kv_type = FWD_F16;
    if (c->kv) {
        bool f32 = !strcmp(c->kv, "f32");
        FWD_FAIL_IF(!f32 && strcmp(c->kv, "f16") != 0, FWD_EINPUT, err, "--kv: got \"%s\", expected f16 or f32", c->kv);
        knobs->kv_type = f32 ? FWD_F32 : FWD_F16;
    }
    if (c->head) {
        bool f32 = !strcmp(c->head, "f32");
        FWD_FAIL_IF(!f32 && strcmp(c->head, "quant") != 0, FWD_EINPUT, err, "--head: got \"%s\", expected quant or f32",
                    c->head);
        knobs->head = f32 ? FWD_HEAD_F32 : FWD_HEAD_QUANT;
    }
    *schedule = PAR_SCHEDULE_PREFILL;
    FWD_FAIL_IF(c->schedule && !par_schedule_by_name(c->schedule, schedule), FWD_EINPUT, err,
                "--schedule: got \"%s\", expected prefill, step, sweep or nocache", c->schedule);
    return FWD_OK;
}

static enum fwd_status read_file(const char *path, char **text, size_t *len, struct fwd_error *err) {
    FILE *f = fopen(path, "rb");
    FWD_FAIL_IF(!f, FWD_EIO, err, "prompt file %s: %s", path, strerror(errno));
    size_t cap = 1 << 16, n = 0;
    char *buf = fwd_alloc(cap, 1);
    while (buf) {
        n += fread(buf + n, 1, cap - n, f);
        if (n < cap)
            break;
        if (cap >= MAX_PROMPT_BYTES) {
            (void)fclose(f);
            fwd_free(buf);
            FWD_FAIL(FWD_ERANGE, err, "prompt file %s: over %d bytes", path, MAX_PROMPT_BYTES);
        }
        char *bigger = fwd_realloc(buf, cap, cap * 2, 1);
        if (!bigger)
            fwd_free(buf);
        buf = bigger;
        cap *= 2;
    }
    bool bad = ferror(f) != 0;
    (void)fclose(f);
    FWD_FAIL_IF(!buf, FWD_ENOMEM, err, "prompt file %s: no memory", path);
    if (bad) {
        fwd_free(buf);
        FWD_FAIL(FWD_EIO, err, "prompt file %s: read failed", path);
    }
    *text = buf;
    *len = n;
    return FWD_OK;
}

enum fwd_status par_parse_ids(const char *option, const char *text, int32_t **out, int *n_out, struct fwd_error *err) {
    size_t cap = strlen(text) / 2 + 1;
    int32_t *ids = fwd_alloc(cap, sizeof *ids);
    FWD_FAIL_IF(!ids, FWD_ENOMEM, err, "%s: no memory", option);
    int n = 0;
    for (const char *p = text; *p;) {
        char *end;
        errno = 0;
        long v = strtol(p, &end, 10);
        if (errno || end == p || v < 0 || v > INT32_MAX || (*end && *end != ',' && *end != ' ')) {
            fwd_free(ids);
            FWD_FAIL(FWD_EINPUT, err, "%s: at \"%.20s\", expected ids like 1,2,3", option, p);
        }
        ids[n++] = (int32_t)v;
        for (p = end; *p == ',' || *p == ' ';)
            p++;
    }
    *out = ids;
    *n_out = n;
    return FWD_OK;
}

static enum fwd_status make_text(struct par_input *in, const struct par_common *c, struct fwd_error *err) {
    char *raw = NULL;
    size_t len = 0;
    if (c->prompt_file) {
        FWD_TRY(read_file(c->prompt_file, &raw, &len, err));
    } else {
        const char *text = c->prompt ? c->prompt : par_embedded("fixtures/prompts/default.txt", &len);
        if (c->prompt)
            len = strlen(c->prompt);
        raw = fwd_strndup(text ? text : "", text ? len : 0);
        FWD_FAIL_IF(!raw, FWD_ENOMEM, err, "prompt: no memory");
    }
    if (!c->chat) {
        in->text = raw;
        in->text_len = len;
        return FWD_OK;
    }
    char *user = fwd_strndup(raw, len);
    fwd_free(raw);
    FWD_FAIL_IF(!user, FWD_ENOMEM, err, "prompt: no memory");
    enum fwd_status rc = fwd_tokenizer_chatml(in->tokenizer, NULL, user, &in->text, &in->text_len, err);
    fwd_free(user);
    return rc;
}

static enum fwd_status make_ids(struct par_input *in, const struct par_common *c, struct fwd_error *err) {
    int given = (c->prompt != NULL) + (c->prompt_file != NULL) + (c->tokens != NULL);
    FWD_FAIL_IF(given > 1, FWD_EINPUT, err, "prompt: give one of --prompt, --prompt-file and --tokens, got %d", given);
    if (c->tokens) {
        FWD_FAIL_IF(c->chat, FWD_EINPUT, err, "--chat needs text, not --tokens");
        FWD_TRY(par_parse_ids("--tokens", c->tokens, &in->ids, &in->n_ids, err));
        if (fwd_tokenizer_open(&in->tokenizer, in->file, NULL) != FWD_OK)
            in->tokenizer = NULL;
    } else {
        FWD_TRY(fwd_tokenizer_open(&in->tokenizer, in->file, err));
        FWD_TRY(make_text(in, c, err));
        size_t n;
        FWD_TRY(fwd_tokenizer_encode(in->tokenizer, in->text, in->text_len, FWD_TOK_ADD_BOS | FWD_TOK_PARSE_SPECIAL,
                                     &in->ids, &n, err));
        FWD_FAIL_IF(n > INT_MAX / 2, FWD_ERANGE, err, "prompt: %zu tokens", n);
        in->n_ids = (int)n;
    }
    FWD_FAIL_IF(in->n_ids == 0, FWD_EINPUT, err, "prompt: got 0 tokens, expected at least 1");
    return FWD_OK;
}

enum fwd_status par_resolve_model(const char *model, char *path, size_t n, struct fwd_error *err) {
    struct par_registry *registry;
    char cache[4096];
    FWD_TRY(par_registry_open(&registry, err));
    enum fwd_status rc = par_model_cache(getenv("XDG_CACHE_HOME"), getenv("HOME"), cache, sizeof cache, NULL);
    rc = par_model_resolve(registry, model, rc == FWD_OK ? cache : "", path, n, err);
    par_registry_close(registry);
    return rc;
}

/* Positions beyond those the model was trained on are run only when --ctx asks for them. */
static enum fwd_status check_context(const struct par_input *in, int n_decode, struct fwd_error *err) {
    char key[128];
    const char *arch;
    size_t len;
    uint64_t n_ctx;
    int64_t n = (int64_t)in->n_ids + (n_decode > 0 ? n_decode : 0);
    if (!fwd_gguf_get_str(in->file, "general.architecture", &arch, &len) || len > 64)
        return FWD_OK;
    (void)snprintf(key, sizeof key, "%.*s.context_length", (int)len, arch);
    FWD_FAIL_IF(
        fwd_gguf_get_u64(in->file, key, &n_ctx) && (uint64_t)n > n_ctx, FWD_ERANGE, err,
        "prompt: got %d ids and %d to follow, expected at most the %llu positions of %s (--ctx %lld goes beyond)",
        in->n_ids, n_decode > 0 ? n_decode : 0, (unsigned long long)n_ctx, key, (long long)n);
    return FWD_OK;
}

enum fwd_status par_input_open(struct par_input *in, const struct par_common *c, struct fwd_error *err) {
    memset(in, 0, sizeof *in);
    FWD_FAIL_IF(!c->model, FWD_EINPUT, err, "MODEL is missing: a file, or a name that `parity fixture list` shows");
    enum fwd_status rc = par_resolve_model(c->model, in->path, sizeof in->path, err);
    if (rc == FWD_OK)
        rc = fwd_gguf_open(&in->file, in->path, err);
    if (rc == FWD_OK)
        rc = make_ids(in, c, err);
    if (rc == FWD_OK && !c->n_ctx)
        rc = check_context(in, c->n_decode, err);
    if (rc != FWD_OK)
        par_input_close(in);
    return rc;
}

void par_input_close(struct par_input *in) {
    fwd_tokenizer_close(in->tokenizer);
    fwd_gguf_close(in->file);
    fwd_free(in->text);
    fwd_free(in->ids);
    memset(in, 0, sizeof *in);
}

enum fwd_status par_find_path(const char *name, const struct fwd_path **out, struct fwd_error *err) {
    char known[256] = "";
    int n;
    const struct fwd_path *const *all = fwd_paths(&n);
    *out = fwd_path_find(name);
    for (int i = 0; i < n; i++) {
        size_t used = strlen(known);
        (void)snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", all[i]->name);
    }
    FWD_FAIL_IF(!*out, FWD_EINPUT, err, "path \"%s\": there are %s", name, known);
    return FWD_OK;
}

enum fwd_status par_next_name(const char **list, char name[64], struct fwd_error *err) {
    size_t len = strcspn(*list, ",");
    FWD_FAIL_IF(len == 0 || len > 63, FWD_EINPUT, err, "--paths: got \"%.80s\", expected names with commas between",
                *list);
    memcpy(name, *list, len);
    name[len] = 0;
    *list += len + ((*list)[len] == ',');
    return FWD_OK;
}

enum fwd_status par_loss_ids(const struct par_input *in, int32_t **ids, int *n, struct fwd_error *err) {
    size_t len, count;
    const char *text = par_embedded("fixtures/prompts/loss.txt", &len);
    *ids = NULL;
    *n = 0;
    if (!text || !in->tokenizer)
        return FWD_OK;
    FWD_TRY(fwd_tokenizer_encode(in->tokenizer, text, len, FWD_TOK_ADD_BOS, ids, &count, err));
    *n = count < LOSS_TOKENS ? (int)count : LOSS_TOKENS;
    return FWD_OK;
}

enum fwd_status par_check_report_dir(const char *dir, struct fwd_error *err) {
    char path[PATH_MAX];
    struct fwd_error why;
    struct fwd_file_out *f;
    struct stat st;
    if (!dir)
        return FWD_OK;
    size_t n = strlen(dir);
    FWD_FAIL_IF(n == 0, FWD_EINPUT, err, "--report: got an empty name, expected a folder");
    FWD_FAIL_IF(n + 32 > sizeof path, FWD_EINPUT, err, "--report: a name of %zu bytes, expected at most %zu", n,
                sizeof path - 32);
    (void)snprintf(path, sizeof path, "%s/verdict.json", dir);
    FWD_FAIL_IF(unlink(path) != 0 && errno != ENOENT && errno != ENOTDIR, FWD_EIO, err,
                "report folder %s: the old verdict.json cannot be removed: %s", dir, strerror(errno));
    (void)snprintf(path, sizeof path, "%s", dir);
    while (stat(path, &st) != 0 && errno == ENOENT) {
        char *slash = strrchr(path, '/');
        if (slash == path)
            (void)snprintf(path, sizeof path, "/.");
        else if (slash)
            *slash = 0;
        else
            (void)snprintf(path, sizeof path, ".");
    }
    bool usable = stat(path, &st) == 0;
    FWD_FAIL_IF(!usable, FWD_EIO, err, "report folder %s cannot be written: %s", dir, strerror(errno));
    FWD_FAIL_IF(!S_ISDIR(st.st_mode), FWD_EIO, err,
                "report folder %s cannot be written: %s is a file, expected a folder", dir, path);
    n = strlen(path);
    (void)snprintf(path + n, sizeof path - n, "/.parity-probe");
    FWD_FAIL_IF(fwd_file_out_begin(&f, path, &why) != FWD_OK, FWD_EIO, err, "report folder %s cannot be written: %s",
                dir, why.message);
    fwd_file_out_abort(f);
    return FWD_OK;
}

bool par_data_path(const char *name, char *path, size_t n) {
    static const char *const from_program[] = {"../share/parity", "../../.."}; /* installed; in build/MODE/bin */
    char program[PATH_MAX];
    (void)snprintf(path, n, "%s", name);
    if (access(path, R_OK) == 0)
        return true;
    ssize_t len = readlink("/proc/self/exe", program, sizeof program - 1);
    if (len <= 0)
        return false;
    program[len] = 0;
    char *slash = strrchr(program, '/');
    for (size_t i = 0; slash && i < sizeof from_program / sizeof *from_program; i++) {
        *slash = 0;
        int need = snprintf(path, n, "%s/%s/%s", program, from_program[i], name);
        if (need > 0 && (size_t)need < n && access(path, R_OK) == 0)
            return true;
    }
    return false;
}

int par_complain(const struct fwd_error *err) {
    (void)fprintf(stderr, "parity: %s\n", err->message);
    return err->code == FWD_EINPUT ? 2 : 4;
}

void par_progress(const char *what, int64_t done, int64_t total) {
    if (!isatty(STDERR_FILENO))
        return;
    if (done < 0) {
        (void)fprintf(stderr, "\r\033[K");
    } else {
        int filled = total > 0 ? (int)(done * 24 / total) : 0;
        (void)fprintf(stderr, "\r\033[K%-36s [%-24.*s] %lld/%lld", what, filled, "########################",
                      (long long)done, (long long)total);
    }
    (void)fflush(stderr);
}
