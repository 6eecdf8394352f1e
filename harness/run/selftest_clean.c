/* harness/run/selftest_clean.c: false alarms. Clean runs over many prompts, each by another schedule, with another
 * number of threads, kernels and types; every op of every position is judged, and none may be accused. */
#include "run/selftest.h"

#include "report/embedded.h"

#include <stdio.h>
#include <string.h>

enum { MAX_PROMPTS = 64, MOST_TOKENS = 64, FEW_TOKENS = 10, MAX_ROUNDS = 1000, N_SCHEDULES = 4 };
static const char prompts_file[] = "fixtures/prompts/selftest.txt";

struct prompt {
    char name[40];
    int32_t *ids;
    int n;
};

/* One way to open a path. */
struct variant {
    bool reference;
    const char *caps; /* NULL: all of this machine */
    int n_threads;
    enum fwd_head head;
    enum fwd_dtype kv;
    bool few; /* slow: short prompts are enough */
    bool scribble, no_overlap;
};
static const struct variant variants[] = {
    {false, NULL, 2, FWD_HEAD_QUANT, FWD_F16, false, false, false},
    {true, NULL, 2, FWD_HEAD_QUANT, FWD_F16, false, false, false},
    {false, NULL, 1, FWD_HEAD_F32, FWD_F16, false, false, false},
    {false, "avx2", 3, FWD_HEAD_QUANT, FWD_F16, false, false, false},
    {false, NULL, 3, FWD_HEAD_QUANT, FWD_F32, false, false, false},
    {true, "avx2", 3, FWD_HEAD_QUANT, FWD_F16, false, false, false},
    {false, "avx2", 1, FWD_HEAD_F32, FWD_F32, false, false, false},
    {false, "ref", 2, FWD_HEAD_QUANT, FWD_F16, true, false, false},
    {true, "ref", 1, FWD_HEAD_QUANT, FWD_F16, true, false, false},
    {.n_threads = 2, .kv = FWD_F16, .scribble = true},
    {.n_threads = 2, .kv = FWD_F16, .no_overlap = true},
    {.n_threads = 2, .kv = FWD_F32, .head = FWD_HEAD_F32, .scribble = true, .no_overlap = true},
};
enum { N_VARIANTS = sizeof variants / sizeof *variants };

struct clean {
    const struct par_selftest_options *o;
    const struct par_spec_model *spec;
    struct fwd_pool *pool;
    struct par_selftest_clean *out;
    struct prompt prompts[MAX_PROMPTS];
    int n_prompts;
    bool prompt_seen[MAX_PROMPTS], variant_seen[N_VARIANTS];
    struct fwd_error *err;
};

/* ---- prompts ---- */

static enum fwd_status add_prompt(struct clean *c, const char *name, size_t name_len, const char *text, size_t n_text) {
    struct prompt *p = &c->prompts[c->n_prompts];
    size_t n;
    FWD_TRY(fwd_tokenizer_encode(c->o->tokenizer, text, n_text, FWD_TOK_ADD_BOS, &p->ids, &n, c->err));
    (void)snprintf(p->name, sizeof p->name, "%.*s", (int)name_len, name);
    int most = strncmp(name, "one token", 9) == 0 ? 1 : MOST_TOKENS;
    p->n = n < (size_t)most ? (int)n : most;
    c->n_prompts += p->n > 0;
    return FWD_OK;
}

/* The file: "=== NAME", then the prompt's lines. */
static enum fwd_status load_prompts(struct clean *c) {
    size_t len;
    const char *text = par_embedded(prompts_file, &len), *end = text + len;
    FWD_FAIL_IF(!text, FWD_EMISSING, c->err, "selftest: %s is not in this build", prompts_file);
    for (const char *at = strstr(text, "=== "); at && c->n_prompts < c->o->n_prompts && c->n_prompts < MAX_PROMPTS;) {
        const char *name = at + 4, *body = strchr(name, '\n');
        if (!body)
            break;
        const char *next = strstr(body, "\n=== ");
        const char *last = next ? next : end;
        body++;
        FWD_TRY(add_prompt(c, name, (size_t)(body - 1 - name), body, body < last ? (size_t)(last - body) : 0));
        at = next ? next + 1 : NULL;
    }
    return FWD_OK;
}

static enum fwd_status given_prompt(struct clean *c) {
    struct prompt *p = &c->prompts[0];
    p->n = c->o->n_ids < MOST_TOKENS ? c->o->n_ids : MOST_TOKENS;
    p->ids = fwd_alloc((size_t)p->n, sizeof *p->ids);
    FWD_FAIL_IF(!p->ids, FWD_ENOMEM, c->err, "selftest: no memory for %d ids", p->n);
    memcpy(p->ids, c->o->ids, (size_t)p->n * sizeof *p->ids);
    (void)snprintf(p->name, sizeof p->name, "as given");
    c->n_prompts = 1;
    return FWD_OK;
}

/* ---- passes ---- */

struct pass_name {
    const struct variant *variant;
    const char *path, *prompt;
    enum par_schedule schedule;
    int chunk;
};

static void raise_alarm(struct clean *c, const struct pass_name *n, const struct par_op_row *row, const char *what) {
    struct par_selftest_clean *out = c->out;
    char op[48] = "";
    if (row)
        (void)snprintf(op, sizeof op, "%s of layer %d, ", fwd_op_name(row->op), row->layer);
    if (out->n_alarms == PAR_SELFTEST_ALARMS)
        return;
    struct par_selftest_alarm *a = &out->alarms[out->n_alarms++];
    (void)snprintf(a->where, sizeof a->where, "%s%s, %s, %d threads, caps %s%s%s, prompt \"%s\": %s", op, n->path,
                   par_schedule_name(n->schedule), n->variant->n_threads, n->variant->caps ? n->variant->caps : "all",
                   n->variant->scribble ? ", scribbled" : "", n->variant->no_overlap ? ", no overlap" : "", n->prompt,
                   what);
}

static void count_rows(struct clean *c, const struct pass_name *name, const struct par_probe *p) {
    char what[96];
    for (int i = 0; i < p->n_rows; i++) {
        const struct par_op_row *row = &p->rows[i];
        enum par_op_class class = par_class_of(row->op);
        c->out->judged[class] += row->n_judged;
        c->out->n_systematic += row->n_systematic;
        if (row->ratio_max > c->out->ratio_max[class])
            c->out->ratio_max[class] = row->ratio_max;
        bool accused = par_row_accused(row), doubtful = row->verdict == PAR_MISTRUSTED;
        c->out->n_accused += accused;
        c->out->n_mistrusted += doubtful;
        (void)snprintf(what, sizeof what, "%.3g bounds", row->ratio_max);
        if (accused || doubtful)
            raise_alarm(c, name, row, accused ? what : row->note);
    }
}

static enum fwd_status one_pass(struct clean *c, struct par_prober *prober, const struct variant *v,
                                const struct prompt *prompt, int n_schedule) {
    static const struct {
        enum par_schedule schedule;
        int chunk;
    } schedules[N_SCHEDULES] = {
        {PAR_SCHEDULE_PREFILL, 0}, {PAR_SCHEDULE_PREFILL, 8}, {PAR_SCHEDULE_STEP, 0}, {PAR_SCHEDULE_SWEEP, 0}};
    int n_ids = v->few && prompt->n > FEW_TOKENS ? FEW_TOKENS : prompt->n;
    struct pass_name name = {v, v->reference ? c->o->ref->name : c->o->cand->name, prompt->name,
                             schedules[n_schedule % N_SCHEDULES].schedule, schedules[n_schedule % N_SCHEDULES].chunk};
    struct par_probe_args args = {.ids = prompt->ids,
                                  .n_prompt = n_ids > 4 ? n_ids - 2 : n_ids, /* the rest: decode steps */
                                  .n_ids = n_ids,
                                  .schedule = name.schedule,
                                  .chunk = name.chunk,
                                  .reach = -1,
                                  .repeat = true};
    struct par_probe p;
    FWD_TRY(par_probe_run(prober, &args, &p, c->err));
    count_rows(c, &name, &p);
    if (!p.same_bits && p.repeated) {
        c->out->n_other++;
        raise_alarm(c, &name, NULL, "other bits when repeated");
    }
    c->out->n_elements += p.n_elements;
    c->out->n_passes++;
    par_probe_free(&p);
    return FWD_OK;
}

static struct fwd_knobs knobs_of(const struct clean *c, const struct variant *v) {
    struct fwd_knobs knobs = {.size = sizeof knobs,
                              .n_threads = v->n_threads,
                              .n_ctx = MOST_TOKENS + 2,
                              .n_seq = 1,
                              .n_batch = MOST_TOKENS + 1,
                              .kv_type = v->kv,
                              .head = v->reference ? FWD_HEAD_QUANT : v->head,
                              .caps = v->caps ? v->caps : c->o->knobs.caps,
                              .force = v->reference ? NULL : c->o->knobs.force};
    bool cand = !v->reference;
    knobs.scribble = v->scribble || (cand && c->o->knobs.scribble);
    knobs.no_overlap = v->no_overlap || (cand && c->o->knobs.no_overlap);
    knobs.fp8_fast = cand && c->o->knobs.fp8_fast;
    return knobs;
}

/* A variant is left out where the machine lacks its kernels, the path knows no such thing (CPU levels on a device,
 * launches on a CPU), or the user asked for others. */
static bool is_here(const struct clean *c, const struct variant *v) {
    unsigned detected = fwd_cpu_detect(), mask;
    struct fwd_path_info info = {.size = sizeof info};
    (v->reference ? c->o->ref : c->o->cand)->describe(&info);
    if ((v->scribble && !info.scribbles) || (v->no_overlap && !info.overlaps))
        return false;
    if (!v->caps)
        return true;
    if (info.on_device)
        return false;
    if (c->o->knobs.caps || c->o->quick)
        return false;
    if (!strcmp(v->caps, "avx2") && !(detected & FWD_CPU_AVX512))
        return false; /* then it is what "all" means */
    return fwd_cpu_parse(v->caps, detected, &mask, NULL) == FWD_OK;
}

static bool is_enough(const struct clean *c, int round) {
    return round > 0 && c->out->n_elements >= c->o->clean_elements;
}

/* The prompts that this round gives to the variant, number `place` of the n_here that can run. */
static enum fwd_status run_variant(struct clean *c, int n_variant, int place, int n_here, int round) {
    const struct variant *v = &variants[n_variant];
    struct fwd_knobs knobs = knobs_of(c, v);
    struct par_prober_options options = {.file = c->o->file,
                                         .spec = c->spec,
                                         .pool = c->pool,
                                         .path = v->reference ? c->o->ref : c->o->cand,
                                         .role = v->reference ? PAR_ROLE_REFERENCE : PAR_ROLE_CANDIDATE,
                                         .knobs = knobs};
    struct par_prober *prober;
    char text[160];
    FWD_TRY(par_prober_open(&prober, &options, c->err));
    enum fwd_status rc = FWD_OK;
    if (round == 0) {
        int n = par_prober_differences(prober, true, text, sizeof text);
        c->out->n_other += n;
        if (n)
            raise_alarm(c, &(struct pass_name){v, options.path->name, "", PAR_SCHEDULE_PREFILL, 0}, NULL, text);
    }
    for (int i = 0; rc == FWD_OK && i < c->n_prompts && !is_enough(c, round); i++) {
        if ((i + round) % n_here != place) /* each prompt goes through one variant a round, another one each time */
            continue;
        if (c->o->progress)
            c->o->progress(c->o->progress_ud, "clean runs, elements judged", (int64_t)c->out->n_elements,
                           (int64_t)c->o->clean_elements);
        rc = one_pass(c, prober, v, &c->prompts[i], i / n_here + n_variant + round);
        c->prompt_seen[i] = c->variant_seen[n_variant] = true;
    }
    par_prober_close(prober);
    return rc;
}

enum fwd_status par_selftest_clean_runs(const struct par_selftest_options *options, const struct par_spec_model *spec,
                                        struct fwd_pool *pool, struct par_selftest_clean *out, struct fwd_error *err) {
    struct clean c = {.o = options, .spec = spec, .pool = pool, .out = out, .err = err};
    enum fwd_status rc = options->tokenizer ? load_prompts(&c) : given_prompt(&c);
    int here[N_VARIANTS], n_here = 0;
    for (int i = 0; i < N_VARIANTS; i++)
        if (is_here(&c, &variants[i]))
            here[n_here++] = i;
    for (int round = 0; rc == FWD_OK && round < MAX_ROUNDS && !is_enough(&c, round); round++)
        for (int i = 0; rc == FWD_OK && i < n_here && !is_enough(&c, round); i++)
            rc = run_variant(&c, here[i], i, n_here, round);
    for (int i = 0; i < c.n_prompts; i++) {
        out->n_prompts += c.prompt_seen[i];
        fwd_free(c.prompts[i].ids);
    }
    for (int i = 0; i < N_VARIANTS; i++)
        out->n_variants += c.variant_seen[i];
    return rc;
}
