/* harness/run/run_prove.c: proofs that the measurement is good. The judged pass had taps; here the same ids run
 * without: in the same session, again after another, longer sequence went through the slots (A-B-A), and in a fresh
 * process. All hashes must be the judged pass's own. */
#include "run/run_state.h"

#include <string.h>

enum fwd_status par_run_dirty_slots(struct par_run *r, struct fwd_session *session, struct fwd_error *err) {
    int n = r->n_ids + 1; /* one longer than what it must not be mixed up with; the context has room for it */
    struct fwd_path_info info;
    r->o->cand->describe(&info);
    if (!info.uses_cache)
        return FWD_OK;
    int32_t *other = fwd_alloc((size_t)n, sizeof *other);
    FWD_FAIL_IF(!other, FWD_ENOMEM, err, "run: no memory for %d ids", n);
    for (int i = 0; i < n; i++)
        other[i] = r->ids[(n - i) % r->n_ids];
    enum fwd_status rc = FWD_OK;
    for (int seq = 1; rc == FWD_OK && seq >= 0; seq--) {
        struct par_drive drive = {.path = r->o->cand, .session = session, .seq = seq, .schedule = PAR_SCHEDULE_PREFILL};
        rc = par_drive_run(&drive, other, n - 1, n, NULL, r->logits_work, err);
    }
    fwd_free(other);
    return rc;
}

/* Greedy steps whose logits in the new session, before any other sequence, had the bits of the judged pass. */
static int equal_first(const struct par_run *r) {
    int n = 0;
    for (int i = 0, at = 0; i <= r->n_ids - r->n_prompt; i++) {
        while (at < r->n_want && r->want_pos[at] < r->n_prompt - 1 + i)
            at++;
        n += r->greedy_hash[i] ==
             fwd_hash64(r->logits_cand + (int64_t)at * r->n_vocab, (size_t)r->n_vocab * sizeof(float));
    }
    return n;
}

struct repeats {
    int n, n_neutral, n_equal;
    uint64_t first;
};

static enum fwd_status repeat(struct par_run *r, struct fwd_session *session, int n, struct repeats *all,
                              struct fwd_error *err) {
    for (int i = 0; i < n; i++) {
        uint64_t hash;
        par_run_progress(r, "candidate, taps off", i, n);
        FWD_TRY(par_run_logits(r, session, r->o->schedule, r->o->chunk, r->logits_work, &hash, err));
        if (all->n++ == 0)
            all->first = hash;
        all->n_neutral += hash == r->base_hash;
        all->n_equal += hash == all->first;
    }
    return FWD_OK;
}

/* The decode steps are the candidate's own greedy ones, so that a process that knows only the prompt comes by the same
 * ids, or shows by its hashes that it does not. */
static enum fwd_status compare_fresh(struct par_run *r, int *n, int *n_equal, struct fwd_error *err) {
    int n_steps = r->n_ids - r->n_prompt + 1;
    uint64_t *hashes = fwd_calloc((size_t)n_steps, sizeof *hashes);
    FWD_FAIL_IF(!hashes, FWD_ENOMEM, err, "run: no memory for %d hashes", n_steps);
    enum fwd_status rc = r->o->fresh_hashes(r->o->fresh_ud, n_steps, hashes, n, err);
    *n_equal = 0;
    for (int i = 0, at = 0; rc == FWD_OK && i < *n; i++) {
        while (at < r->n_want && r->want_pos[at] < r->n_prompt - 1 + i)
            at++;
        *n_equal +=
            hashes[i] == fwd_hash64(r->logits_cand + (int64_t)at * r->n_vocab, (size_t)r->n_vocab * sizeof(float));
    }
    fwd_free(hashes);
    return rc;
}

static void prove_fresh(struct par_run *r) {
    struct fwd_error why = {0};
    int n = 0, n_equal = 0;
    if (!r->o->fresh_hashes)
        return;
    par_run_progress(r, "candidate, in a fresh process", 0, 1);
    bool ran = compare_fresh(r, &n, &n_equal, &why) == FWD_OK && n > 0;
    if (ran)
        par_figures_set(r->figures, "fresh_process", n_equal == n);
    par_run_add_proof(
        r, "a fresh process repeats it",
        !ran           ? PAR_UNMEASURED
        : n_equal == n ? PAR_HELD
                       : PAR_MISTRUSTED,
        ran ? par_text_printf(r->text, "logits of %d of %d greedy steps have the same bits there", n_equal, n)
            : par_text_printf(r->text, "not measured: %s", why.message[0] ? why.message : "it made no step"));
}

enum fwd_status par_run_prove(struct par_run *r, struct fwd_session *session, struct fwd_error *err) {
    int n = r->o->depth == PAR_QUICK ? 1 : r->o->depth == PAR_FULL ? 19 : 4;
    struct repeats all = {0};
    struct fwd_path_info info;
    r->o->cand->describe(&info);
    FWD_TRY(repeat(r, session, n, &all, err));
    int same_session = all.n, n_first = equal_first(r), n_steps = r->n_ids - r->n_prompt + 1;
    bool same = all.n_equal == all.n;
    if (info.uses_cache) {
        FWD_TRY(par_run_dirty_slots(r, session, err));
        FWD_TRY(repeat(r, session, 1, &all, err));
        same = all.n_equal == all.n && n_first == n_steps;
        par_run_add_proof(
            r, "a longer sequence leaves nothing", same ? PAR_HELD : PAR_MISTRUSTED,
            par_text_printf(r->text,
                            "%s after another, longer sequence in both slots (A-B-A); %d of %d steps as in the session "
                            "when it was new",
                            all.n_equal == all.n ? "the same bits" : "OTHER BITS", n_first, n_steps));
    }
    par_figures_set(r->figures, "deterministic", same);
    par_figures_set(r->figures, "neutral", all.n_neutral == all.n);
    par_figures_set(r->figures, "repeats", all.n);
    par_run_add_proof(
        r, "taps are neutral", all.n_neutral == all.n ? PAR_HELD : PAR_MISTRUSTED,
        par_text_printf(r->text, "logits of %d positions hash to %016llx with taps; %d of %d runs without taps equal",
                        r->n_want, (unsigned long long)r->base_hash, all.n_neutral, all.n));
    par_run_add_proof(r, "runs repeat", all.n_equal == all.n ? PAR_HELD : PAR_MISTRUSTED,
                      par_text_printf(r->text,
                                      "%d of %d runs without taps have the same bits (%d in a row, %d after "
                                      "another sequence)",
                                      all.n_equal, all.n, same_session, all.n - same_session));
    prove_fresh(r);
    return FWD_OK;
}
