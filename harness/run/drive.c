#include "run/drive.h"

#include <string.h>

static const char *const schedule_names[] = {"nocache", "step", "prefill", "sweep"};
enum { N_SCHEDULES = sizeof schedule_names / sizeof *schedule_names, SWEEP_MOST = 9 };

const char *par_schedule_name(enum par_schedule schedule) {
    return (unsigned)schedule < N_SCHEDULES ? schedule_names[schedule] : "unknown";
}

bool par_schedule_by_name(const char *name, enum par_schedule *out) {
    for (int i = 0; i < N_SCHEDULES; i++) {
        if (!strcmp(name, schedule_names[i])) {
            *out = (enum par_schedule)i;
            return true;
        }
    }
    return false;
}

static bool uses_cache(const struct fwd_path *path) {
    struct fwd_path_info info = {.size = sizeof info};
    path->describe(&info);
    return info.uses_cache;
}

/* Tokens in call number `call` of the prompt, were it endless. */
static int prompt_chunk(const struct par_drive *d, int n_prompt, int call) {
    if (d->schedule == PAR_SCHEDULE_STEP)
        return 1;
    if (d->schedule == PAR_SCHEDULE_PREFILL && d->chunk > 0)
        return d->chunk;
    if (d->schedule == PAR_SCHEDULE_SWEEP && call < SWEEP_MOST)
        return call + 1;
    return n_prompt;
}

int par_drive_max_batch(const struct fwd_path *path, enum par_schedule schedule, int chunk, int n_prompt, int n_ids) {
    struct par_drive d = {.path = path, .schedule = schedule, .chunk = chunk};
    if (schedule == PAR_SCHEDULE_NOCACHE || !uses_cache(path))
        return n_ids;
    int c = prompt_chunk(&d, n_prompt, SWEEP_MOST);
    return c < n_prompt ? c : n_prompt;
}

/* Where the wanted logits of the calls so far end. */
struct cursor {
    const struct par_drive *drive;
    int64_t n_vocab;
    float *logits;
    double *logits_f64;
};

/* One run() of ids[pos0 .. pos0+n-1]; moves the cursor past the logits it wrote. */
static enum fwd_status run_part(struct cursor *c, const int32_t *ids, int pos0, int n, const uint8_t *want,
                                struct fwd_error *err) {
    int n_wanted = 0;
    for (int i = 0; i < n; i++)
        n_wanted += want[i] != 0;
    const struct par_drive *d = c->drive;
    struct fwd_run_args args = {.size = sizeof args,
                                .seq = d->seq,
                                .tokens = ids + pos0,
                                .n_tokens = n,
                                .pos0 = pos0,
                                .want_logits = want,
                                .logits = n_wanted ? c->logits : NULL,
                                .logits_f64 = n_wanted ? c->logits_f64 : NULL,
                                .tap = d->tap,
                                .tap_ud = d->tap_ud};
    FWD_TRY(d->path->run(d->session, &args, err));
    if (n_wanted)
        c->logits += n_wanted * c->n_vocab;
    if (n_wanted && c->logits_f64)
        c->logits_f64 += n_wanted * c->n_vocab;
    return FWD_OK;
}

static enum fwd_status run_prompt(struct cursor *c, const int32_t *ids, int n_prompt, const uint8_t *want,
                                  struct fwd_error *err) {
    for (int pos = 0, call = 0; pos < n_prompt; call++) {
        int chunk = prompt_chunk(c->drive, n_prompt, call);
        int n = n_prompt - pos < chunk ? n_prompt - pos : chunk;
        FWD_TRY(run_part(c, ids, pos, n, want + pos, err));
        pos += n;
    }
    return FWD_OK;
}

/* ids[0 .. n_ids-1] again from an empty sequence, only the last one's logits wanted. want: n_ids bytes of scratch. */
static enum fwd_status run_again(struct cursor *c, const int32_t *ids, int n_ids, uint8_t *want,
                                 struct fwd_error *err) {
    memset(want, 0, (size_t)n_ids);
    want[n_ids - 1] = 1;
    FWD_TRY(c->drive->path->seq_begin(c->drive->session, c->drive->seq, err));
    return run_part(c, ids, 0, n_ids, want, err);
}

static struct cursor begin_cursor(const struct par_drive *d, float *logits) {
    return (struct cursor){
        .drive = d, .n_vocab = d->path->config(d->session)->n_vocab, .logits = logits, .logits_f64 = d->logits_f64};
}

static enum fwd_status run_sequence(struct cursor *c, const int32_t *ids, int n_prompt, int n_ids, const uint8_t *want,
                                    uint8_t *scratch, struct fwd_error *err) {
    const struct par_drive *d = c->drive;
    FWD_TRY(d->path->seq_begin(d->session, d->seq, err));
    if (!uses_cache(d->path))
        return run_part(c, ids, 0, n_ids, want, err);
    FWD_TRY(run_prompt(c, ids, n_prompt, want, err));
    for (int pos = n_prompt; pos < n_ids; pos++) {
        if (d->schedule != PAR_SCHEDULE_NOCACHE)
            FWD_TRY(run_part(c, ids, pos, 1, want + pos, err));
        else if (want[pos])
            FWD_TRY(run_again(c, ids, pos + 1, scratch, err));
    }
    return FWD_OK;
}

enum fwd_status par_drive_run(const struct par_drive *d, const int32_t *ids, int n_prompt, int n_ids,
                              const uint8_t *want, float *logits, struct fwd_error *err) {
    FWD_FAIL_IF(n_prompt < 1 || n_ids < n_prompt, FWD_EINPUT, err,
                "drive: got a prompt of %d ids in a sequence of %d, expected 1 <= prompt <= sequence", n_prompt, n_ids);
    uint8_t *scratch = fwd_calloc((size_t)n_ids, 2);
    FWD_FAIL_IF(!scratch, FWD_ENOMEM, err, "drive: no memory for %d marks", n_ids * 2);
    if (!want)
        scratch[2 * n_ids - 1] = 1;
    struct cursor c = begin_cursor(d, logits);
    enum fwd_status status = run_sequence(&c, ids, n_prompt, n_ids, want ? want : scratch + n_ids, scratch, err);
    fwd_free(scratch);
    return status;
}

enum fwd_status par_drive_prompt(const struct par_drive *d, const int32_t *ids, int n_prompt, float *logits,
                                 struct fwd_error *err) {
    return par_drive_run(d, ids, n_prompt, n_prompt, NULL, logits, err);
}

enum fwd_status par_drive_next(const struct par_drive *d, const int32_t *ids, int n_ids, float *logits,
                               struct fwd_error *err) {
    FWD_FAIL_IF(n_ids < 1, FWD_EINPUT, err, "drive: got a sequence of %d ids, expected at least 1", n_ids);
    struct cursor c = begin_cursor(d, logits);
    if (uses_cache(d->path) && d->schedule != PAR_SCHEDULE_NOCACHE) {
        const uint8_t wanted = 1;
        return run_part(&c, ids, n_ids - 1, 1, &wanted, err);
    }
    uint8_t *want = fwd_alloc((size_t)n_ids, 1);
    FWD_FAIL_IF(!want, FWD_ENOMEM, err, "drive: no memory for %d marks", n_ids);
    enum fwd_status status = run_again(&c, ids, n_ids, want, err);
    fwd_free(want);
    return status;
}

enum fwd_status par_drive_probe(const struct fwd_path *path, struct fwd_error *err) {
    struct fwd_error why = {.message = ""};
    enum fwd_status rc = path->probe(&why);
    FWD_FAIL_IF(rc != FWD_OK, rc, err, "path %s is unavailable: %.200s", path->name, why.message);
    return FWD_OK;
}

void par_drive_fit_knobs(const struct fwd_path *path, struct fwd_knobs *knobs) {
    struct fwd_path_info info = {.size = sizeof info};
    path->describe(&info);
    knobs->fp8_fast = knobs->fp8_fast && info.fp8;
    knobs->no_overlap = knobs->no_overlap && info.overlaps;
    knobs->scribble = knobs->scribble && info.scribbles;
    knobs->plan_hook = info.has_plan ? knobs->plan_hook : NULL;
    knobs->share = NULL;
}

int32_t par_argmax(const float *logits, int64_t n) {
    int64_t best = -1;
    for (int64_t i = 0; i < n; i++)
        if (logits[i] == logits[i] && (best < 0 || logits[i] > logits[best]))
            best = i;
    return (int32_t)best;
}
