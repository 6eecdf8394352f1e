#include "compare/diff.h"

#include <math.h>
#include <regex.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_POSITIONS = 1 << 24, Q8_K_BYTES = 292, Q8_K_VALUES = 256, Q8_32_BYTES = 40, Q8_32_VALUES = 32 };

/* ---- may they be compared? ------------------------------------------------------------------------------------- */

static void refuse(struct par_diff *d, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void refuse(struct par_diff *d, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(d->why, sizeof d->why, fmt, args);
    va_end(args);
    d->verdict = PAR_REFUSED;
}

static void note_asserted(struct par_diff *d, const char *what) {
    size_t n = strlen(d->asserted);
    if (!strstr(d->asserted, what))
        (void)snprintf(d->asserted + n, sizeof d->asserted - n, "%s%s", n ? ", " : "", what);
}

static void check_fact(struct par_diff *d, const char *key, bool asserted, const char *option) {
    const char *a = par_capture_fact(d->a, key), *b = par_capture_fact(d->b, key);
    if (a && b && strcmp(a, b) != 0)
        refuse(d, "%s differs: '%.100s' in %.60s, '%.100s' in %.60s", key, a, par_capture_name(d->a), b,
               par_capture_name(d->b));
    else if ((!a || !b) && asserted)
        note_asserted(d, key);
    else if (!a || !b)
        refuse(d, "%.200s does not say %s; %s vouches for it", par_capture_name(a ? d->b : d->a), key, option);
}

static void check_facts(struct par_diff *d, const struct par_diff_options *o) {
    const struct par_capture *const sides[] = {d->a, d->b};
    check_fact(d, PAR_FACT_MODEL, o->same_model, "--assert-same-model");
    if (d->verdict != PAR_REFUSED)
        check_fact(d, PAR_FACT_IDS, o->same_tokens, "--assert-same-tokens");
    for (int i = 0; i < 2; i++) {
        const char *asserted = par_capture_fact(sides[i], PAR_FACT_ASSERTED);
        if (asserted && *asserted)
            note_asserted(d, asserted);
    }
}

/* What a tap's fact says; an unknown dtype when there is none. */
struct meaning {
    bool said;
    char op[40], dtype[16];
    long long ne0, ne1;
};

static struct meaning read_meaning(const struct par_capture *c, const struct par_capture_tensor *t) {
    struct meaning m = {.ne1 = 1};
    char key[64];
    if (!t->is_tap)
        return m;
    (void)snprintf(key, sizeof key, "tap:%s-%d", fwd_op_name(t->op), t->layer);
    const char *fact = par_capture_fact(c, key);
    if (!fact) {
        (void)snprintf(key, sizeof key, "tap:%s", fwd_op_name(t->op));
        fact = par_capture_fact(c, key);
    }
    m.said = fact && sscanf(fact, "op=%39s dtype=%15s ne0=%lld ne1=%lld", m.op, m.dtype, &m.ne0, &m.ne1) >= 3;
    return m;
}

static void check_meaning(struct par_diff *d, const struct par_capture_tensor *a, const struct par_capture_tensor *b,
                          bool asserted) {
    struct meaning x = read_meaning(d->a, a), y = read_meaning(d->b, b);
    if (!a->is_tap) /* compared by name and shape */
        return;
    if (x.said && y.said) {
        if (strcmp(x.op, y.op) != 0 || x.ne0 != y.ne0 || x.ne1 != y.ne1)
            refuse(d, "tap %s means %s of %lld x %lld values in %.100s, %s of %lld x %lld in %.100s", a->name, x.op,
                   x.ne0, x.ne1, par_capture_name(d->a), y.op, y.ne0, y.ne1, par_capture_name(d->b));
    } else if (asserted) {
        note_asserted(d, "tap meanings");
    } else {
        refuse(d, "%.200s does not say what tap %s holds; --assert-same-taps vouches for it",
               par_capture_name(x.said ? d->b : d->a), a->name);
    }
}

/* ---- values of a tensor ---------------------------------------------------------------------------------------- */

struct side { /* one capture and the tensor of it in memory */
    const struct par_capture *c;
    const struct par_capture_tensor *held;
    uint8_t *bytes;
    double *values; /* of one row */
    enum fwd_dtype q8;
    bool is_q8;
    int64_t n_rows, row_bytes, width; /* of the tensor held */
};

static bool is_cache(const struct par_capture_tensor *t) {
    return t->is_tap && (t->op == FWD_OP_K_CACHE || t->op == FWD_OP_V_CACHE);
}

static void measure(struct side *s, const struct par_capture_tensor *t) {
    struct meaning m = read_meaning(s->c, t);
    bool u8 = !strcmp(t->dtype, "U8");
    s->n_rows = t->is_tap && t->n_dims > 0 ? t->shape[0] : 1;
    s->row_bytes = s->n_rows ? (int64_t)t->n_bytes / s->n_rows : 0;
    s->width = s->n_rows ? t->n_values / s->n_rows : 0;
    s->is_q8 = false;
    for (int type = FWD_Q8_K; type <= FWD_Q8_32; type++) {
        int64_t block = type == FWD_Q8_K ? Q8_K_BYTES : Q8_32_BYTES;
        if (!u8 || !m.said || strcmp(m.dtype, fwd_dtype_name((enum fwd_dtype)type)) != 0 || s->row_bytes % block)
            continue;
        s->is_q8 = true;
        s->q8 = (enum fwd_dtype)type;
        s->width = s->row_bytes / block * (type == FWD_Q8_K ? Q8_K_VALUES : Q8_32_VALUES);
    }
}

static enum fwd_status hold(struct side *s, const struct par_capture_tensor *t, struct fwd_error *err) {
    if (s->held == t)
        return FWD_OK;
    fwd_free(s->bytes);
    fwd_free(s->values);
    s->held = NULL;
    measure(s, t);
    s->bytes = fwd_alloc((size_t)t->n_bytes, 1);
    s->values = fwd_alloc((size_t)s->width, sizeof *s->values);
    FWD_FAIL_IF(!s->bytes || !s->values, FWD_ENOMEM, err, "%s: no memory for tensor %s", par_capture_name(s->c),
                t->name);
    FWD_TRY(par_capture_read(s->c, t, s->bytes, err));
    s->held = t;
    return FWD_OK;
}

static void decode_q8(const struct side *s, const uint8_t *row) {
    int64_t block = s->q8 == FWD_Q8_K ? Q8_K_VALUES : Q8_32_VALUES;
    int64_t n_bytes = s->q8 == FWD_Q8_K ? Q8_K_BYTES : Q8_32_BYTES;
    int64_t q_at = s->q8 == FWD_Q8_K ? 4 : 8;
    for (int64_t i = 0; i < s->width; i++) {
        const uint8_t *b = row + i / block * n_bytes;
        float scale;
        memcpy(&scale, b, sizeof scale);
        s->values[i] = (double)scale * (int8_t)b[q_at + i % block];
    }
}

/* binary16: sign, 5 bits of exponent (bias 15), 10 of fraction. */
static double decode_f16(uint16_t h) {
    int exponent = h >> 10 & 0x1f, fraction = h & 0x3ff;
    double x = exponent == 31 ? (fraction ? (double)NAN : (double)INFINITY)
               : exponent     ? ldexp(1024 + fraction, exponent - 25)
                              : ldexp(fraction, -24);
    return h >> 15 ? -x : x;
}

/* The upper half of a binary32. */
static double decode_bf16(uint16_t h) {
    uint32_t bits = (uint32_t)h << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return (double)x;
}

/* Row r of the tensor held, as doubles into s->values; false: a dtype that has no values here. */
static bool decode(const struct side *s, int64_t r) {
    const uint8_t *p = s->bytes + r * s->row_bytes;
    const char *dtype = s->held->dtype;
    if (s->is_q8) {
        decode_q8(s, p);
    } else if (!strcmp(dtype, "F64")) {
        memcpy(s->values, p, (size_t)s->row_bytes);
    } else if (!strcmp(dtype, "F32")) {
        for (int64_t i = 0; i < s->width; i++) {
            float x;
            memcpy(&x, p + 4 * i, sizeof x);
            s->values[i] = (double)x;
        }
    } else if (!strcmp(dtype, "F16") || !strcmp(dtype, "BF16")) {
        for (int64_t i = 0; i < s->width; i++) {
            uint16_t x;
            memcpy(&x, p + 2 * i, sizeof x);
            s->values[i] = dtype[0] == 'F' ? decode_f16(x) : decode_bf16(x);
        }
    } else if (!strcmp(dtype, "I32")) {
        for (int64_t i = 0; i < s->width; i++) {
            int32_t x;
            memcpy(&x, p + 4 * i, sizeof x);
            s->values[i] = x;
        }
    } else if (!strcmp(dtype, "U8")) {
        for (int64_t i = 0; i < s->width; i++)
            s->values[i] = p[i];
    } else {
        return false;
    }
    return true;
}

/* ---- comparing ------------------------------------------------------------------------------------------------- */

struct differ { /* one run of the comparison */
    struct par_diff *d;
    const struct par_diff_options *o;
    struct side a, b;
    struct par_metrics_acc *acc; /* of the row at work */
};

static void note_difference(struct differ *w, struct par_diff_row *row, int pos, int64_t i) {
    if (row->n_differ++ && row->first_pos <= pos)
        return;
    row->first_pos = pos;
    row->first_at = i;
    row->first_a = w->a.values[i];
    row->first_b = w->b.values[i];
}

/* Values of one position that are not the same: bits within one type, values between two. */
static void count_differences(struct differ *w, struct par_diff_row *row, const uint8_t *p, const uint8_t *q, int pos) {
    bool same_type = !strcmp(w->a.held->dtype, w->b.held->dtype) && w->a.row_bytes == w->b.row_bytes;
    bool same_layout = w->a.is_q8 == w->b.is_q8 && (!w->a.is_q8 || w->a.q8 == w->b.q8);
    bool by_bits = same_type && same_layout;
    if (by_bits && !memcmp(p, q, (size_t)w->a.row_bytes))
        return;
    uint64_t before = row->n_differ;
    size_t size = by_bits && !w->a.is_q8 ? (size_t)(w->a.row_bytes / w->a.width) : 0;
    for (int64_t i = 0; i < w->a.width; i++) {
        double x = w->a.values[i], y = w->b.values[i];
        bool same = size ? !memcmp(p + (size_t)i * size, q + (size_t)i * size, size) : x == y || (isnan(x) && isnan(y));
        if (!same)
            note_difference(w, row, pos, i);
    }
    if (by_bits && row->n_differ == before) /* same values from other bytes: a block's sums */
        note_difference(w, row, pos, 0);
}

/* n rows from row ra of ta and rb of tb, the first of which is position pos. */
static enum fwd_status compare_rows(struct differ *w, struct par_diff_row *row, const struct par_capture_tensor *ta,
                                    int64_t ra, const struct par_capture_tensor *tb, int64_t rb, int64_t n, int pos,
                                    struct fwd_error *err) {
    FWD_TRY(hold(&w->a, ta, err));
    FWD_TRY(hold(&w->b, tb, err));
    if (w->a.width != w->b.width || (row->width && row->width != w->a.width)) {
        refuse(w->d, "tensor %s has %lld values a row in %.100s and %lld (%s) in %.100s", ta->name,
               (long long)w->a.width, par_capture_name(w->d->a), (long long)w->b.width, tb->name,
               par_capture_name(w->d->b));
        return FWD_OK;
    }
    row->width = w->a.width;
    for (int64_t i = 0; i < n && row->width; i++) {
        bool ok = decode(&w->a, ra + i) && decode(&w->b, rb + i);
        FWD_FAIL_IF(!ok, FWD_ETYPE, err, "tensor %s: values of type %s and %s cannot be compared", ta->name, ta->dtype,
                    tb->dtype);
        count_differences(w, row, w->a.bytes + (ra + i) * w->a.row_bytes, w->b.bytes + (rb + i) * w->b.row_bytes,
                          pos + (int)i);
        par_metrics_add_f64(w->acc, w->a.values, w->b.values, row->width, (pos + i) * row->width);
        row->n_positions++;
    }
    return FWD_OK;
}

struct entry { /* a tensor that takes part */
    const struct par_capture_tensor *t;
    int side; /* 0: a */
};
struct group { /* all tensors of one tap and layer, a's before b's, each in order of arrival */
    const struct entry *a, *b;
    int n_a, n_b;
};

static bool rows_are_positions(struct par_diff *d, const struct par_capture *c, const struct par_capture_tensor *t) {
    int64_t want = is_cache(t) ? t->pos1 : t->pos1 - t->pos0;
    bool ok = t->n_dims >= 1 && t->shape[0] == want && t->pos1 <= MOST_POSITIONS && t->n_bytes > 0;
    if (!ok)
        refuse(d, "%.100s: tensor %s has %lld rows and %llu bytes, its name says %lld rows (of at most %d positions)",
               par_capture_name(c), t->name, t->n_dims ? (long long)t->shape[0] : 0, (unsigned long long)t->n_bytes,
               (long long)want, MOST_POSITIONS);
    return ok;
}

/* K_cache, V_cache: tensors with the same end hold the same rows. */
static enum fwd_status compare_caches(struct differ *w, const struct group *g, struct par_diff_row *row,
                                      struct fwd_error *err) {
    int end_a = 0, end_b = 0, end_both = 0;
    for (int i = 0; i < g->n_a; i++) {
        const struct par_capture_tensor *t = g->a[i].t;
        end_a = t->pos1 > end_a ? t->pos1 : end_a;
        for (int j = 0; j < g->n_b; j++) {
            if (g->b[j].t->pos1 != t->pos1)
                continue;
            FWD_TRY(compare_rows(w, row, t, 0, g->b[j].t, 0, t->pos1, 0, err));
            end_both = t->pos1 > end_both ? t->pos1 : end_both;
            break;
        }
    }
    for (int j = 0; j < g->n_b; j++)
        end_b = g->b[j].t->pos1 > end_b ? g->b[j].t->pos1 : end_b;
    row->n_only_a = end_a - end_both;
    row->n_only_b = end_b - end_both;
    return FWD_OK;
}

/* owner[p]: 1 + the first entry that has position p; 0: none. */
static void find_owners(const struct entry *e, int n, int32_t *owner) {
    for (int i = n - 1; i >= 0; i--)
        for (int p = e[i].t->pos0; p < e[i].t->pos1; p++)
            owner[p] = i + 1;
}

static enum fwd_status compare_positions(struct differ *w, const struct group *g, struct par_diff_row *row,
                                         struct fwd_error *err) {
    int end = 0;
    for (int i = 0; i < g->n_a; i++)
        end = g->a[i].t->pos1 > end ? g->a[i].t->pos1 : end;
    for (int j = 0; j < g->n_b; j++)
        end = g->b[j].t->pos1 > end ? g->b[j].t->pos1 : end;
    int32_t *owner_a = fwd_calloc((size_t)end, sizeof *owner_a), *owner_b = fwd_calloc((size_t)end, sizeof *owner_b);
    uint8_t *done = fwd_calloc((size_t)end, 1);
    enum fwd_status rc = FWD_OK;
    if (!owner_a || !owner_b || !done)
        rc = fwd_fail(err, FWD_ENOMEM, __FILE__, __LINE__, "no memory for %d positions", end);
    for (int i = 0; rc == FWD_OK && i < g->n_a; i++) { /* tensors that both sides have by name */
        const struct par_capture_tensor *ta = g->a[i].t, *tb = par_capture_find(w->d->b, ta->name);
        if (!tb)
            continue;
        rc = compare_rows(w, row, ta, 0, tb, 0, ta->pos1 - ta->pos0, ta->pos0, err);
        memset(done + ta->pos0, 1, (size_t)(ta->pos1 - ta->pos0));
    }
    if (rc == FWD_OK) {
        find_owners(g->a, g->n_a, owner_a);
        find_owners(g->b, g->n_b, owner_b);
    }
    for (int p = 0; rc == FWD_OK && p < end; p++) {
        if (done[p])
            continue;
        row->n_only_a += owner_a[p] && !owner_b[p];
        row->n_only_b += owner_b[p] && !owner_a[p];
        if (!owner_a[p] || !owner_b[p])
            continue;
        const struct par_capture_tensor *ta = g->a[owner_a[p] - 1].t, *tb = g->b[owner_b[p] - 1].t;
        rc = compare_rows(w, row, ta, p - ta->pos0, tb, p - tb->pos0, 1, p, err);
    }
    fwd_free(owner_a);
    fwd_free(owner_b);
    fwd_free(done);
    return rc;
}

static bool same_shape(const struct par_capture_tensor *a, const struct par_capture_tensor *b) {
    return a->n_dims == b->n_dims && !memcmp(a->shape, b->shape, sizeof a->shape);
}

static enum fwd_status compare_group(struct differ *w, const struct group *g, struct par_diff_row *row,
                                     struct fwd_error *err) {
    const struct par_capture_tensor *any = g->n_a ? g->a[0].t : g->b[0].t;
    *row = (struct par_diff_row){.first_pos = -1, .first_at = -1};
    size_t n_label = any->is_tap ? strcspn(any->name, "@") : strlen(any->name);
    (void)snprintf(row->label, sizeof row->label, "%.*s", (int)(n_label < 63 ? n_label : 63), any->name);
    for (int i = 0; any->is_tap && i < g->n_a + g->n_b; i++) {
        const struct entry *e = i < g->n_a ? &g->a[i] : &g->b[i - g->n_a];
        if (!rows_are_positions(w->d, e->side ? w->d->b : w->d->a, e->t))
            return FWD_OK;
    }
    if (g->n_a && g->n_b) {
        check_meaning(w->d, g->a[0].t, g->b[0].t, w->o->same_taps);
        if (!any->is_tap && !same_shape(g->a[0].t, g->b[0].t))
            refuse(w->d, "tensor %.100s has different shapes", any->name);
    }
    if (w->d->verdict == PAR_REFUSED)
        return FWD_OK;
    w->acc = par_metrics_begin();
    FWD_FAIL_IF(!w->acc, FWD_ENOMEM, err, "no memory for metrics");
    enum fwd_status rc = FWD_OK;
    if (is_cache(any))
        rc = compare_caches(w, g, row, err);
    else if (any->is_tap)
        rc = compare_positions(w, g, row, err);
    else if (g->n_a && g->n_b)
        rc = compare_rows(w, row, g->a[0].t, 0, g->b[0].t, 0, 1, 0, err);
    else
        *(g->n_a ? &row->n_only_a : &row->n_only_b) = 1;
    par_metrics_end(w->acc, &row->m);
    par_metrics_free(w->acc);
    return rc;
}

/* ---- grouping -------------------------------------------------------------------------------------------------- */

static int compare_keys(const struct par_capture_tensor *x, const struct par_capture_tensor *y) {
    if (x->is_tap != y->is_tap)
        return x->is_tap ? -1 : 1;
    if (!x->is_tap)
        return strcmp(x->name, y->name);
    return x->layer != y->layer ? x->layer - y->layer : (int)x->op - (int)y->op;
}

static int compare_entries(const void *p, const void *q) {
    const struct entry *x = p, *y = q;
    int key = compare_keys(x->t, y->t);
    if (key)
        return key;
    return x->side != y->side ? x->side - y->side : x->t < y->t ? -1 : x->t > y->t;
}

static int compare_groups(const void *p, const void *q) {
    const struct group *x = p, *y = q;
    if (!x->n_a != !y->n_a) /* those that a has come first */
        return x->n_a ? -1 : 1;
    const struct par_capture_tensor *s = x->n_a ? x->a->t : x->b->t, *t = y->n_a ? y->a->t : y->b->t;
    return s < t ? -1 : s > t;
}

static size_t add_entries(struct entry *e, const struct par_capture *c, int side, const regex_t *filter) {
    size_t n, kept = 0;
    const struct par_capture_tensor *t = par_capture_tensors(c, &n);
    for (size_t i = 0; i < n; i++) {
        char label[96];
        (void)snprintf(label, sizeof label, "%s", t[i].name);
        if (t[i].is_tap)
            label[strcspn(label, "@")] = 0;
        if (!filter || regexec(filter, label, 0, NULL, 0) == 0)
            e[kept++] = (struct entry){&t[i], side};
    }
    return kept;
}

static int make_groups(struct entry *e, size_t n, struct group *groups) {
    int n_groups = 0;
    qsort(e, n, sizeof *e, compare_entries);
    for (size_t i = 0; i < n; i++) {
        struct group *g = &groups[n_groups - 1];
        if (i == 0 || compare_keys(e[i - 1].t, e[i].t) != 0) {
            g = &groups[n_groups++];
            *g = (struct group){0};
        }
        if (e[i].side == 0 && g->n_a++ == 0)
            g->a = &e[i];
        if (e[i].side == 1 && g->n_b++ == 0)
            g->b = &e[i];
    }
    qsort(groups, (size_t)n_groups, sizeof *groups, compare_groups);
    return n_groups;
}

static void tally(struct par_diff *d, const struct par_diff_row *row) {
    d->n_rows++;
    d->n_compared += row->n_positions > 0;
    d->n_same += row->n_positions > 0 && row->n_differ == 0;
    d->n_only_a += row->n_only_a > 0;
    d->n_only_b += row->n_only_b > 0;
    d->n_values += row->m.n;
    d->n_differ += row->n_differ;
    if (row->n_differ && d->first < 0)
        d->first = d->n_rows - 1;
}

static enum fwd_status compare_all(struct par_diff *d, const struct par_diff_options *o, const regex_t *filter,
                                   struct fwd_error *err) {
    struct differ w = {.d = d, .o = o, .a.c = d->a, .b.c = d->b};
    size_t n_a, n_b, n = 0;
    int n_groups = 0;
    (void)par_capture_tensors(d->a, &n_a);
    (void)par_capture_tensors(d->b, &n_b);
    struct entry *e = fwd_alloc(n_a + n_b, sizeof *e);
    struct group *groups = fwd_alloc(n_a + n_b, sizeof *groups);
    enum fwd_status rc = FWD_OK;
    if (e && groups) {
        n = add_entries(e, d->a, 0, filter);
        n += add_entries(e + n, d->b, 1, filter);
        n_groups = make_groups(e, n, groups);
        d->rows = fwd_calloc((size_t)n_groups, sizeof *d->rows);
    }
    if (!d->rows)
        rc = fwd_fail(err, FWD_ENOMEM, __FILE__, __LINE__, "no memory for %zu tensors", n_a + n_b);
    for (int i = 0; i < n_groups && rc == FWD_OK; i++) {
        rc = compare_group(&w, &groups[i], &d->rows[i], err);
        if (d->verdict == PAR_REFUSED)
            break;
        tally(d, &d->rows[i]);
    }
    for (int i = 0; i < 2; i++) {
        fwd_free(i ? w.b.bytes : w.a.bytes);
        fwd_free(i ? w.b.values : w.a.values);
    }
    fwd_free(e);
    fwd_free(groups);
    return rc;
}

/* ---- verdict --------------------------------------------------------------------------------------------------- */

static bool is_mistrusted(struct par_diff *d, const struct par_capture *c) {
    const char *with = par_capture_fact(c, PAR_FACT_LOGITS), *again = par_capture_fact(c, PAR_FACT_AA);
    if (!with || !again || !strcmp(with, again))
        return false;
    d->verdict = PAR_MISTRUSTED;
    (void)snprintf(d->why, sizeof d->why, "%.100s: logits %.40s with taps, %.40s when run again without: not the same",
                   par_capture_name(c), with, again);
    return true;
}

static void judge(struct par_diff *d, bool exact) {
    uint64_t n_mask = 0;
    for (int i = 0; i < d->n_rows; i++)
        n_mask += d->rows[i].m.n_nonfinite_mismatch;
    const char *why = "the same bits in everything compared";
    d->verdict = PAR_HELD;
    if (d->n_values == 0) {
        d->verdict = PAR_UNMEASURED;
        why = "no value was compared";
    } else if (n_mask) {
        d->verdict = PAR_NONFINITE;
        why = "NaN or infinity where the other side has none";
    } else if (d->n_differ && exact) {
        d->verdict = PAR_DIVERGED;
        why = "bits differ, and --exact asked for the same";
    } else if (d->n_differ) {
        d->verdict = PAR_UNMEASURED;
        why = "differences shown, nothing judged: correct paths differ in a free run too (--exact judges bits)";
    } else if (d->n_only_a || d->n_only_b) {
        d->verdict = PAR_UNMEASURED;
        why = "the same bits where both have them, but some taps or positions are on one side only (a --tensor-filter "
              "can leave them out)";
    }
    (void)snprintf(d->why, sizeof d->why, "%s", why);
    if (d->asserted[0] && (d->verdict == PAR_HELD || d->verdict == PAR_DIVERGED)) {
        (void)snprintf(d->why, sizeof d->why, "%s; it would be %s if what was asserted (%s) is true", why,
                       par_verdict_name(d->verdict), d->asserted);
        d->verdict = PAR_UNMEASURED;
    }
}

enum fwd_status par_diff_run(struct par_diff **out, const struct par_capture *a, const struct par_capture *b,
                             const struct par_diff_options *options, struct fwd_error *err) {
    regex_t filter;
    int bad = options->filter ? regcomp(&filter, options->filter, REG_EXTENDED | REG_NOSUB) : 0;
    FWD_FAIL_IF(bad, FWD_EINPUT, err, "--tensor-filter '%s' is no regular expression", options->filter);
    struct par_diff *d = fwd_calloc(1, sizeof *d);
    enum fwd_status rc = d ? FWD_OK : fwd_fail(err, FWD_ENOMEM, __FILE__, __LINE__, "no memory for a comparison");
    if (rc == FWD_OK) {
        d->a = a;
        d->b = b;
        d->first = -1;
        check_facts(d, options);
        if (d->verdict != PAR_REFUSED)
            rc = compare_all(d, options, options->filter ? &filter : NULL, err);
        if (rc == FWD_OK && d->verdict != PAR_REFUSED && !is_mistrusted(d, a) && !is_mistrusted(d, b))
            judge(d, options->exact);
    }
    if (options->filter)
        regfree(&filter);
    if (rc != FWD_OK) {
        par_diff_free(d);
        return rc;
    }
    *out = d;
    return FWD_OK;
}

void par_diff_free(struct par_diff *d) {
    if (d)
        fwd_free(d->rows);
    fwd_free(d);
}
