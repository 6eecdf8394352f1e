/* Shrinking by delta debugging, the coarse and few units first: whole weights, blocks of columns, input rows, then the
 * rows of weights. */
#include "localise/shrink.h"

#include "localise/case_parts.h"
#include "spec/spec_model.h"

#include <math.h>
#include <string.h>
#include <time.h>

/* ---- ddmin ------------------------------------------------------------------------------------------------------ */
struct ddmin {
    int n_all;
    uint8_t *keep, *probe; /* [n_all] */
    int *left, n_left;     /* the units that are left */
    par_ddmin_fn *fails;
    void *ud;
};

/* Units from .. end of those left, or all but them; true: still fails, and then they are what is left. */
static bool try_part(struct ddmin *d, int from, int end, bool complement) {
    memset(d->probe, 0, (size_t)d->n_all);
    for (int i = 0; i < d->n_left; i++)
        d->probe[d->left[i]] = (i >= from && i < end) != complement;
    if (!d->fails(d->ud, d->probe))
        return false;
    int n = 0;
    for (int i = 0; i < d->n_left; i++)
        if (d->probe[d->left[i]])
            d->left[n++] = d->left[i];
    d->n_left = n;
    return true;
}

/* One pass over parts of about n_left / n_parts units; true: something went. */
static bool try_parts(struct ddmin *d, int *n_parts) {
    int n = *n_parts, total = d->n_left;
    for (int p = 0; p < n; p++)
        if (n > 1 && try_part(d, (int)((int64_t)total * p / n), (int)((int64_t)total * (p + 1) / n), false)) {
            *n_parts = 2;
            return true;
        }
    for (int p = 0; n > 2 && p < n; p++)
        if (try_part(d, (int)((int64_t)total * p / n), (int)((int64_t)total * (p + 1) / n), true)) {
            *n_parts = n - 1;
            return true;
        }
    return false;
}

enum fwd_status par_ddmin(int n, uint8_t *keep, par_ddmin_fn *fails, void *ud, struct fwd_error *err) {
    struct ddmin d = {.n_all = n, .keep = keep, .fails = fails, .ud = ud};
    int n_parts = 2;
    d.left = fwd_alloc((size_t)n, sizeof *d.left);
    d.probe = fwd_alloc((size_t)n, 1);
    bool ok = d.left && d.probe;
    for (int i = 0; ok && i < n; i++)
        if (keep[i])
            d.left[d.n_left++] = i;
    if (ok && d.n_left > 0 && try_part(&d, 0, 0, false)) /* none of them is needed */
        d.n_left = 0;
    while (ok && d.n_left > 1) {
        if (try_parts(&d, &n_parts))
            n_parts = n_parts < d.n_left ? n_parts : d.n_left;
        else if (n_parts >= d.n_left)
            break;
        else
            n_parts = 2 * n_parts < d.n_left ? 2 * n_parts : d.n_left;
    }
    memset(keep, 0, (size_t)n);
    for (int i = 0; i < d.n_left; i++)
        keep[d.left[i]] = 1;
    fwd_free(d.left);
    fwd_free(d.probe);
    FWD_FAIL_IF(!ok, FWD_ENOMEM, err, "shrink: no memory for %d units", n);
    return FWD_OK;
}

/* ---- what is taken away ----------------------------------------------------------------------------------------- */
enum pass { PASS_WEIGHTS, PASS_COLUMNS, PASS_KEYS, PASS_INPUT_ROWS, PASS_WEIGHT_ROWS, PASS_COUNT };

struct shrink {
    struct par_case *c;
    const struct par_shrink_options *o;
    struct par_replay_options replay;
    double ratio; /* of the element as it was first recorded */
    int n_probes;
    double end; /* of the time */
    enum pass pass;
    int64_t block; /* columns in a unit */
    enum fwd_status rc;
    struct fwd_error *err;
};

static double seconds(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Keeps the rows of an array of n that keep marks from *unit on; returns their number. */
static int keep_rows(uint8_t *bytes, size_t row_bytes, void *numbers, size_t number_bytes, int n, const uint8_t *keep,
                     int *unit) {
    int left = 0;
    for (int i = 0; i < n; i++) {
        if (!keep[(*unit)++])
            continue;
        memmove(bytes + (size_t)left * row_bytes, bytes + (size_t)i * row_bytes, row_bytes);
        memmove((uint8_t *)numbers + (size_t)left * number_bytes, (uint8_t *)numbers + (size_t)i * number_bytes,
                number_bytes);
        left++;
    }
    return left;
}

/* The inputs that a pass over columns works on: keys and values of attention apart from its queries. */
static bool in_pass(const struct shrink *s, int input) {
    return (s->c->op == FWD_OP_KQV_OUT && input > 0) == (s->pass == PASS_KEYS);
}

static int64_t pass_columns(const struct shrink *s) {
    for (int i = 0; i < s->c->n_in; i++)
        if (in_pass(s, i))
            return s->c->in[i].n_values;
    return 0;
}

/* Zeroes the bytes of block b of n_columns columns in rows of n_values. */
static void zero_block(uint8_t *bytes, int n_rows, size_t row_bytes, int64_t n_values, int64_t block, int64_t b) {
    size_t from = (size_t)(b * block) * row_bytes / (size_t)n_values;
    size_t end = (size_t)((b + 1) * block) * row_bytes / (size_t)n_values;
    for (int r = 0; r < n_rows; r++)
        memset(bytes + (size_t)r * row_bytes + from, 0, end - from);
}

static void apply_columns(const struct shrink *s, struct par_case *c, const uint8_t *keep) {
    struct par_case_model m;
    int64_t n = pass_columns(s);
    bool open = par_case_model_open(&m, s->c, NULL) == FWD_OK;
    for (int64_t b = 0; b < n / s->block; b++) {
        if (keep[b])
            continue;
        for (int i = 0; i < c->n_in; i++)
            if (in_pass(s, i))
                zero_block(c->in[i].bytes, c->in[i].n, fwd_dtype_row_bytes(c->in[i].dtype, n), n, s->block, b);
        for (int i = 0; open && s->pass == PASS_COLUMNS && i < c->n_weights; i++) {
            const struct fwd_gguf_tensor *t = fwd_gguf_find(m.file, c->weights[i].name);
            if (t->n_dims == 2 && (int64_t)t->ne[0] == n)
                zero_block(c->weights[i].bytes, c->weights[i].n, (size_t)c->weights[i].row_bytes, n, s->block, b);
        }
    }
    if (open)
        par_case_model_close(&m);
}

static void drop_empty_weights(struct par_case *c) {
    int n = 0;
    for (int i = 0; i < c->n_weights; i++) {
        struct par_case_weight w = c->weights[i];
        if (w.n) {
            c->weights[n++] = w;
        } else {
            fwd_free(w.rows);
            fwd_free(w.bytes);
        }
    }
    c->n_weights = n;
}

static void apply(const struct shrink *s, struct par_case *c, const uint8_t *keep) {
    int unit = 0;
    for (int i = 0; s->pass == PASS_WEIGHTS && i < c->n_weights; i++)
        c->weights[i].n = keep[i] ? c->weights[i].n : 0;
    if (s->pass == PASS_WEIGHT_ROWS)
        for (int i = 0; i < c->n_weights; i++)
            c->weights[i].n = keep_rows(c->weights[i].bytes, (size_t)c->weights[i].row_bytes, c->weights[i].rows,
                                        sizeof(int64_t), c->weights[i].n, keep, &unit);
    if (s->pass == PASS_WEIGHTS || s->pass == PASS_WEIGHT_ROWS)
        drop_empty_weights(c);
    else if (s->pass == PASS_INPUT_ROWS)
        for (int i = 0; i < c->n_in; i++)
            c->in[i].n = keep_rows(c->in[i].bytes, fwd_dtype_row_bytes(c->in[i].dtype, c->in[i].n_values), c->in[i].pos,
                                   sizeof(int32_t), c->in[i].n, keep, &unit);
    else
        apply_columns(s, c, keep);
}

static int count_units(const struct shrink *s) {
    int n = 0;
    if (s->pass == PASS_WEIGHTS)
        n = s->c->n_weights;
    else if (s->pass == PASS_WEIGHT_ROWS)
        for (int i = 0; i < s->c->n_weights; i++)
            n += s->c->weights[i].n;
    else if (s->pass == PASS_INPUT_ROWS)
        for (int i = 0; i < s->c->n_in; i++)
            n += s->c->in[i].n;
    else
        n = (int)(pass_columns(s) % s->block ? 0 : pass_columns(s) / s->block);
    return n;
}

/* ---- a probe ---------------------------------------------------------------------------------------------------- */
bool par_case_still_fails(const struct par_case_element *was, const struct par_case_element *now, double ratio,
                          bool side) {
    double is = par_case_ratio(now), off = was->got - was->expected, off_now = now->got - now->expected;
    if (!(is > 1) || !(is >= fmin(0.9 * ratio, 2)))
        return false;
    if (fabs(was->expected) > was->bound && !(fabs(now->expected) > now->bound))
        return false; /* with nothing left to compute any value would do */
    if (!isfinite(off) || !isfinite(off_now))
        return isfinite(was->got) == isfinite(now->got) && isfinite(was->expected) == isfinite(now->expected);
    return !side || signbit(off) == signbit(off_now);
}

static bool still_fails(const struct shrink *s, const struct par_replay *r) {
    return r->n_over > 0 && par_case_still_fails(&s->c->elements[0], &r->elements[0], s->ratio, true);
}

static bool probe(void *ud, const uint8_t *keep) {
    struct shrink *s = ud;
    struct par_case c;
    struct par_replay r;
    if (s->rc != FWD_OK || s->n_probes >= s->o->max_probes || seconds() > s->end)
        return false;
    s->n_probes++;
    s->rc = par_case_copy(&c, s->c, s->err);
    if (s->rc != FWD_OK)
        return false;
    apply(s, &c, keep);
    struct fwd_error why;
    enum fwd_status rc = par_case_replay(&c, &s->replay, &r, &why);
    if (rc == FWD_ENOMEM)
        s->rc = fwd_fail(s->err, rc, __FILE__, __LINE__, "%s", why.message);
    bool fails = rc == FWD_OK && still_fails(s, &r);
    par_case_free(&c);
    return fails;
}

/* What is left after a pass becomes the case, with the values that it now has. */
static void accept(struct shrink *s, const uint8_t *keep) {
    struct par_replay r;
    struct par_case c;
    if (s->rc == FWD_OK)
        s->rc = par_case_copy(&c, s->c, s->err);
    if (s->rc != FWD_OK)
        return;
    apply(s, &c, keep);
    s->rc = par_case_replay(&c, &s->replay, &r, s->err);
    if (s->rc == FWD_OK && still_fails(s, &r)) {
        c.elements[0] = r.elements[0];
        par_case_free(s->c);
        *s->c = c;
    } else {
        par_case_free(&c);
    }
}

int64_t par_case_block_columns(const struct par_case *c, const struct par_case_model *m) {
    const struct spec_weight *w = par_case_is_matmul(c->op) ? par_spec_weight(m->spec, c->op, c->layer) : NULL;
    const struct par_spec_config *config = par_spec_config(m->spec);
    if (c->op == FWD_OP_QCUR_ROPE || c->op == FWD_OP_KCUR_ROPE || c->op == FWD_OP_KQV_OUT || par_case_is_cache(c->op))
        return config->head_dim;
    int64_t n = c->n_in ? c->in[0].n_values : 32;
    bool k_quant = w && fwd_type_info(w->type)->block_values == 256;
    for (int i = 0; i < c->n_in; i++)
        k_quant = k_quant || c->in[i].dtype == FWD_Q8_K;
    return (k_quant || strstr(fwd_op_name(c->op), "_q8")) && n % 256 == 0 ? 256 : n % 32 == 0 ? 32 : n;
}

static enum fwd_status shrink_pass(struct shrink *s, enum pass pass) {
    s->pass = pass;
    int n = count_units(s);
    if (n < 2)
        return FWD_OK;
    uint8_t *keep = fwd_alloc((size_t)n, 1);
    FWD_FAIL_IF(!keep, FWD_ENOMEM, s->err, "shrink: no memory for %d units", n);
    memset(keep, 1, (size_t)n);
    s->rc = par_ddmin(n, keep, probe, s, s->err);
    if (memchr(keep, 0, (size_t)n))
        accept(s, keep);
    fwd_free(keep);
    return s->rc;
}

enum fwd_status par_case_shrink(struct par_case *c, const struct par_shrink_options *options, int *n_probes,
                                struct fwd_error *err) {
    struct par_case_model m;
    struct fwd_error own;
    struct shrink s = {.c = c,
                       .o = options,
                       .replay = {.path = options->path, .pool = options->pool},
                       .ratio = par_case_ratio(&c->elements[0]),
                       .end = seconds() + options->max_seconds,
                       .err = err ? err : &own};
    FWD_TRY(par_case_model_open(&m, c, err));
    s.block = par_case_block_columns(c, &m);
    par_case_model_close(&m);
    enum fwd_status rc = FWD_OK;
    for (enum pass p = PASS_WEIGHTS; rc == FWD_OK && p < PASS_COUNT; p++)
        rc = shrink_pass(&s, p);
    *n_probes = s.n_probes;
    return rc;
}
