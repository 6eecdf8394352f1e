#include "run/generate.h"

struct generator {
    const struct par_drive *drive;
    const struct fwd_tokenizer *tokenizer;
    par_generate_fn *fn;
    void *ud;
    int64_t n_vocab;
    float *logits;
};

/* Chooses the id behind ids[n_ids - 1]; false at the end of the text. */
static bool choose(const struct generator *g, int32_t *next, int step, enum par_generate_end *end) {
    *next = par_argmax(g->logits, g->n_vocab);
    if (*next < 0) {
        *end = PAR_GENERATE_NONFINITE;
        return false;
    }
    if (g->fn)
        g->fn(g->ud, step, *next, fwd_hash64(g->logits, (size_t)g->n_vocab * sizeof *g->logits));
    if (g->tokenizer && fwd_tokenizer_is_end(g->tokenizer, *next))
        *end = PAR_GENERATE_STOP;
    return true;
}

static enum fwd_status run_steps(const struct generator *g, int32_t *ids, int n_prompt, int n_max, int *n_made,
                                 enum par_generate_end *end, struct fwd_error *err) {
    FWD_TRY(par_drive_prompt(g->drive, ids, n_prompt, g->logits, err));
    while (*n_made < n_max && *end == PAR_GENERATE_COUNT) {
        if (*n_made > 0)
            FWD_TRY(par_drive_next(g->drive, ids, n_prompt + *n_made, g->logits, err));
        if (choose(g, &ids[n_prompt + *n_made], *n_made, end))
            ++*n_made;
    }
    return FWD_OK;
}

enum fwd_status par_generate(const struct par_drive *d, int32_t *ids, int n_prompt, int n_max,
                             const struct fwd_tokenizer *tokenizer, par_generate_fn *fn, void *ud, int *n_made,
                             enum par_generate_end *end, struct fwd_error *err) {
    struct generator g = {
        .drive = d, .tokenizer = tokenizer, .fn = fn, .ud = ud, .n_vocab = d->path->config(d->session)->n_vocab};
    *n_made = 0;
    *end = PAR_GENERATE_COUNT;
    g.logits = fwd_alloc((size_t)g.n_vocab, sizeof *g.logits);
    FWD_FAIL_IF(!g.logits, FWD_ENOMEM, err, "generate: no memory for %lld logits", (long long)g.n_vocab);
    enum fwd_status status = run_steps(&g, ids, n_prompt, n_max, n_made, end, err);
    fwd_free(g.logits);
    return status;
}
