/* From evidence to a file: choose the element, cut as little as reproduces it, shrink that, write it, have it checked.
 */
#include "localise/case_cut.h"
#include "localise/replay.h"
#include "localise/shrink.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { DEFAULT_PROBES = 160 };
#define DEFAULT_SECONDS 10.0

/* ---- the element ------------------------------------------------------------------------------------------------ */
/* The worst element of a call. Second looks are the judge's business: only positions that it accused count. */
static enum fwd_status worst_element(const struct par_case_context *x, const struct par_evidence *item, int call,
                                     struct par_case_element *out, bool *found, struct fwd_error *err) {
    struct par_eval e;
    struct par_elements all;
    double worst = 1;
    par_evidence_eval(item, call, &e);
    e.bound = x->bound;
    FWD_TRY(par_spec_elements(x->spec, x->pool, &e, &all, err));
    for (int p = 0; p < all.n_pos; p++) {
        int pos = all.pos0 + p;
        if (pos >= item->n_positions || item->positions[pos] != 2)
            continue;
        for (int64_t row = 0; row < all.width; row++) {
            int64_t at = p * all.width + row;
            struct par_case_element el = {pos, row, all.expected[at], all.got[at], all.bound[at]};
            if (isnan(el.bound) || !(par_case_ratio(&el) > worst)) /* NaN: not judged */
                continue;
            worst = par_case_ratio(&el);
            *out = el;
            *found = true;
        }
    }
    par_elements_free(&all);
    return FWD_OK;
}

/* ---- the cut ---------------------------------------------------------------------------------------------------- */
/* From the smallest on. */
static const struct par_cut cuts[] = {
    {.at_zero = true, .one_pos = true, .one_row = true},
    {.one_pos = true, .one_row = true},
    {.one_row = true},
    {.at_zero = true, .one_pos = true},
    {.one_pos = true},
    {.at_zero = false}, /* all that the op read */
    {.at_zero = true, .one_pos = true, .one_row = true, .layer = true},
    {.at_zero = true, .one_pos = true, .one_row = true, .below = true},
    {.one_row = true, .below = true},
    {.one_pos = true, .layer = true},
    {.layer = true},
    {.one_pos = true, .below = true},
    {.below = true},
};
enum { N_CUTS = sizeof cuts / sizeof *cuts };

/* One cut and its replay. FWD_OK: both worked; else *why says what did not, and there is no case. */
static enum fwd_status try_cut(struct par_case *c, const struct par_case_context *x, const struct par_evidence *item,
                               int call, const struct par_case_element *e, const struct par_cut *cut,
                               struct par_replay *r, struct fwd_error *why) {
    const struct par_replay_options options = {.path = x->path, .pool = x->pool};
    FWD_TRY(par_case_cut(c, x, item, call, e, cut, why));
    enum fwd_status rc = par_case_replay(c, &options, r, why);
    if (rc != FWD_OK)
        par_case_free(c);
    return rc;
}

/* The first cut that fails for the reason that the run saw, or N_CUTS, and then info->note says what was seen. */
static enum fwd_status find_cut(struct par_case *c, const struct par_case_context *x, const struct par_evidence *item,
                                int call, const struct par_case_element *e, int *at, struct par_case_info *info,
                                struct fwd_error *err) {
    for (*at = 0; *at < N_CUTS; ++*at) {
        struct par_replay r;
        struct fwd_error why;
        if (!par_cut_fits(&cuts[*at], item->op))
            continue;
        enum fwd_status rc = try_cut(c, x, item, call, e, &cuts[*at], &r, &why);
        FWD_FAIL_IF(rc == FWD_ENOMEM, rc, err, "%s", why.message);
        info->n_probes++;
        if (rc == FWD_OK && r.same_reason)
            return FWD_OK;
        (void)snprintf(info->note, sizeof info->note, "alone it does not fail as it did in the run: %.140s",
                       rc != FWD_OK ? why.message
                       : r.note[0]  ? r.note
                       : r.n_over   ? "its error is another one"
                                    : "it holds");
        if (rc == FWD_OK)
            par_case_free(c);
    }
    return FWD_OK;
}

/* A cut that still fails, by another amount than the run saw, among the first `below`. After one that fails as the run
 * did it is the first step of shrinking, and by far the cheapest. */
static enum fwd_status find_smaller(struct par_case *c, const struct par_case_context *x,
                                    const struct par_evidence *item, int call, const struct par_case_element *e,
                                    int below, bool *found, struct par_case_info *info, struct fwd_error *err) {
    *found = false;
    for (int i = 0; i < below && !*found; i++) {
        struct par_case smaller;
        struct par_replay r;
        struct fwd_error why;
        if (!par_cut_fits(&cuts[i], item->op))
            continue;
        enum fwd_status rc = try_cut(&smaller, x, item, call, e, &cuts[i], &r, &why);
        FWD_FAIL_IF(rc == FWD_ENOMEM, rc, err, "%s", why.message);
        info->n_probes++;
        *found = rc == FWD_OK && r.n_over > 0 &&
                 par_case_still_fails(&smaller.elements[0], &r.elements[0], par_case_ratio(e), false);
        if (*found) {
            smaller.elements[0] = r.elements[0];
            par_case_free(c);
            *c = smaller;
        } else if (rc == FWD_OK) {
            par_case_free(&smaller);
        }
    }
    return FWD_OK;
}

/* ---- the file --------------------------------------------------------------------------------------------------- */
static enum fwd_status verify_here(const struct par_case_context *x, const char *path, struct fwd_error *err) {
    struct par_case c;
    struct par_replay r;
    const struct par_replay_options options = {.path = x->path, .pool = x->pool};
    FWD_TRY(par_case_read(&c, path, err));
    enum fwd_status rc = par_case_replay(&c, &options, &r, err);
    par_case_free(&c);
    FWD_TRY(rc);
    FWD_FAIL_IF(!r.same_reason, FWD_ESTATE, err, "%s: read back, it does not fail for the recorded reason", path);
    return FWD_OK;
}

/* Under another name until it was checked. */
static enum fwd_status write_checked(const struct par_case *c, const struct par_case_context *x, const char *path,
                                     struct par_case_info *info, struct fwd_error *err) {
    char unchecked[4096];
    struct fwd_error why;
    int n = snprintf(unchecked, sizeof unchecked, "%s.unverified", path);
    FWD_FAIL_IF(n < 0 || (size_t)n >= sizeof unchecked, FWD_EINPUT, err, "%s: the name is too long", path);
    FWD_TRY(par_case_write(c, unchecked, &info->n_bytes, err));
    enum fwd_status rc = x->verify ? x->verify(x->verify_ud, unchecked, &why) : verify_here(x, unchecked, &why);
    if (rc != FWD_OK) {
        (void)unlink(unchecked);
        (void)snprintf(info->note, sizeof info->note, "%.190s", why.message);
        return FWD_OK;
    }
    if (rename(unchecked, path) != 0) {
        int e = errno;
        (void)unlink(unchecked);
        FWD_FAIL(FWD_EIO, err, "%s: cannot be given its name: %s", path, strerror(e));
    }
    info->written = true;
    info->verified = x->verify != NULL;
    return FWD_OK;
}

static bool any_set(const uint8_t *p, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (p[i])
            return true;
    return false;
}

static void describe(const struct par_case *c, struct par_case_info *info) {
    struct par_case_model m;
    info->element = c->elements[0];
    for (int i = 0; i < c->n_weights; i++)
        info->n_rows += strcmp(c->weights[i].name, "rope_freqs.weight") ? c->weights[i].n : 0;
    for (int i = 0; i < c->n_in; i++)
        info->n_positions = info->n_positions > c->in[i].n ? info->n_positions : c->in[i].n;
    if (c->n_in == 0 || par_case_model_open(&m, c, NULL) != FWD_OK)
        return;
    const struct par_case_input *in = &c->in[0];
    int64_t block = par_case_block_columns(c, &m);
    size_t row = fwd_dtype_row_bytes(in->dtype, in->n_values), part = row * (size_t)block / (size_t)in->n_values;
    for (size_t b = 0; b < row / part; b++) {
        bool any = false;
        for (int r = 0; r < in->n; r++)
            any = any || any_set(in->bytes + (size_t)r * row + b * part, part);
        info->n_blocks += any;
    }
    par_case_model_close(&m);
}

/* A case that fails without what was planted shows something else as well. */
static enum fwd_status check_cure(const struct par_case *c, const struct par_case_context *x,
                                  struct par_case_info *info, struct fwd_error *err) {
    const struct par_replay_options options = {.path = x->path, .no_fault = true, .pool = x->pool};
    struct par_replay r;
    if (!c->faults[0])
        return FWD_OK;
    FWD_TRY(par_case_replay(c, &options, &r, err));
    if (r.verdict != PAR_HELD)
        (void)snprintf(info->note, sizeof info->note, "it is %s without the planted fault too",
                       par_verdict_name(r.verdict));
    return FWD_OK;
}

static enum fwd_status finish(struct par_case *c, const struct par_case_context *x, const char *path,
                              struct par_case_info *info, struct fwd_error *err) {
    const struct par_shrink_options options = {.path = x->path,
                                               .pool = x->pool,
                                               .max_probes = x->max_probes ? x->max_probes : DEFAULT_PROBES,
                                               .max_seconds = x->max_seconds > 0 ? x->max_seconds : DEFAULT_SECONDS};
    int n = 0;
    FWD_TRY(par_case_shrink(c, &options, &n, err));
    info->n_probes += n;
    (void)snprintf(info->note, sizeof info->note, "%s", c->note);
    describe(c, info);
    FWD_TRY(check_cure(c, x, info, err));
    FWD_TRY(write_checked(c, x, path, info, err));
    if (info->written && par_case_is_matmul(c->op) && info->n_bytes > PAR_CASE_MATMUL_BYTES)
        (void)snprintf(info->note, sizeof info->note, "%llu bytes, more than the %d that a matmul should need",
                       (unsigned long long)info->n_bytes, PAR_CASE_MATMUL_BYTES);
    return FWD_OK;
}

enum fwd_status par_case_make(const struct par_case_context *context, const struct par_evidence *item,
                              const char *out_path, struct par_case_info *info, struct fwd_error *err) {
    *info = (struct par_case_info){0};
    if (item->n_calls == 0)
        (void)snprintf(info->note, sizeof info->note, "what it read was not kept: no room");
    enum { MOST_CALLS = 2 };
    for (int call = 0; call < item->n_calls && call < MOST_CALLS; call++) {
        struct par_case_element e;
        struct par_case c = {0};
        bool found = false, smaller;
        int at;
        FWD_TRY(worst_element(context, item, call, &e, &found, err));
        if (!found) {
            (void)snprintf(info->note, sizeof info->note, "no element of the call is outside its bound");
            continue;
        }
        FWD_TRY(find_cut(&c, context, item, call, &e, &at, info, err));
        enum fwd_status rc = find_smaller(&c, context, item, call, &e, at, &smaller, info, err);
        if (rc == FWD_OK && at == N_CUTS && !smaller)
            continue;
        if (at == N_CUTS) /* it depends on more than the op's inputs and weights: a stale buffer, another op */
            (void)snprintf(c.note, sizeof c.note, "alone the op fails by another amount than in the run");
        if (rc == FWD_OK)
            rc = finish(&c, context, out_path, info, err);
        par_case_free(&c);
        return rc;
    }
    return FWD_OK;
}
