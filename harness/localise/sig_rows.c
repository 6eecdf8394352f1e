/* Right values in the wrong place: of another position, another head, another op, another call. Works on what the spec
 * and the evidence already hold; computes nothing itself. */
#include "localise/sig.h"

#include "spec/eval.h"
#include "spec/spec_decode.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- other positions ---------------------------------------------------------------------------------------------
 * a, b: call and position whose row stands here. */
/* After the prompt a position that holds an earlier one's row holds an old result, unless that one has its row. */
static bool may_be_exchanged(const struct sig_case *c, const struct sig_slot *s, int64_t pos, int64_t row) {
    double off = fabs(par_sig_got(c, s->call, (int)pos, row) - par_sig_expected(c, s->call, s->pos, row));
    return s->pos < c->context->n_prompt || pos > s->pos || off <= par_sig_bound(c, s->call, s->pos, row);
}

static void row_value(const struct sig_case *c, const struct sig_variant *v, const struct sig_element *e, int64_t n,
                      double *alt, double *bound, double *loose) {
    for (int64_t i = 0; i < n; i++) {
        const struct sig_slot *s = &c->slots[e[i].slot];
        alt[i] = NAN;
        bound[i] = loose[i] = -1;
        if (s->call != v->a || s->pos == v->b || !may_be_exchanged(c, s, v->b, e[i].row))
            continue;
        alt[i] = par_sig_expected(c, (int)v->a, (int)v->b, e[i].row);
        bound[i] = loose[i] = isnan(alt[i]) ? -1 : par_sig_bound(c, (int)v->a, (int)v->b, e[i].row);
    }
}

/* Nearest positions first, in every call. */
static enum sig_more rows_exchanged(const struct sig_case *c, int i, struct sig_variant *v) {
    if (c->item->op == FWD_OP_INP_EMBD && c->n_slots < 2) /* one row may be that of any wrong token */
        return SIG_END;
    for (int k = 0; k < c->n_calls; k++) {
        const struct par_elements *x = &c->calls[k].x;
        if (i >= x->n_pos) {
            i -= x->n_pos;
            continue;
        }
        v->a = k;
        v->b = x->pos0 + i;
        (void)snprintf(v->text, sizeof v->text, "the row of position %lld stands elsewhere: positions exchanged",
                       (long long)v->b);
        return SIG_TRY;
    }
    return SIG_END;
}

/* Whether the slot's accused elements (n of them, sorted) are the spec's values of position pos of its own call. */
static bool holds_row(const struct sig_case *c, const struct sig_element *e, int64_t n, int pos) {
    int call = c->slots[e->slot].call;
    for (int64_t i = 0; i < n; i++) {
        double alt = par_sig_expected(c, call, pos, e[i].row), bound = par_sig_bound(c, call, pos, e[i].row);
        if (isnan(alt) || !par_sig_fits(&e[i], alt, bound, bound))
            return false;
    }
    return true;
}

static bool is_slot(const struct sig_case *c, int call, int pos) {
    for (int i = 0; i < c->n_slots; i++)
        if (c->slots[i].call == call && c->slots[i].pos == pos)
            return true;
    return false;
}

/* The next position, up or down, that is right itself and whose value the slot holds; -1: none. */
static int shared_source(const struct sig_case *c, const struct sig_element *e, int64_t n, int step) {
    const struct sig_slot *s = &c->slots[e->slot];
    const struct par_elements *x = &c->calls[s->call].x;
    for (int pos = s->pos + step; pos >= x->pos0 && pos < x->pos0 + x->n_pos; pos += step)
        if (!is_slot(c, s->call, pos) && holds_row(c, e, n, pos))
            return pos;
    return -1;
}

/* Several positions hold the value of one that comes after (or before) them and is right: what a tap shows that copies
 * one row. Where a product was judged over several calls at once, each of them has its own. */
static void tap_last(const struct sig_case *c, struct sig_fit *fit) {
    if (c->n_slots < 2)
        return;
    struct sig_element *e = par_sig_sorted(c);
    if (!e)
        return;
    for (int step = 1; step >= -1; step -= 2) {
        int64_t with = 0;
        int shared = 0, last = -1;
        struct sig_fit found = {.n_tested = c->n_list, .n_variants = 2};
        for (int64_t at = 0, end; at < c->n_list; at = end) {
            for (end = at; end < c->n_list && e[end].slot == e[at].slot; end++)
                ;
            int pos = shared_source(c, &e[at], end - at, step);
            shared += pos >= 0 && pos == last;
            last = pos;
            for (int64_t i = at; pos >= 0 && i < end; i++)
                found.digits += par_sig_digits(c, &e[i], par_sig_bound(c, c->slots[e[i].slot].call, pos, e[i].row));
            with += pos >= 0 ? end - at : 0;
        }
        found.share = shared ? (double)with / (double)c->n_list : 0;
        (void)snprintf(found.text, sizeof found.text, "positions hold the value of the %s one of their call",
                       step > 0 ? "last" : "first");
        if (found.share > fit->share)
            *fit = found;
    }
    fwd_free(e);
}

/* ---- other heads ------------------------------------------------------------------------------------------------- */
static void head_value(const struct sig_case *c, const struct sig_variant *v, const struct sig_element *e, int64_t n,
                       double *alt, double *bound, double *loose) {
    int64_t d = c->config->head_dim;
    for (int64_t i = 0; i < n; i++) {
        const struct sig_slot *s = &c->slots[e[i].slot];
        int64_t row = v->a * d + e[i].row % d;
        alt[i] = par_sig_expected(c, s->call, s->pos, row);
        bound[i] = loose[i] = isnan(alt[i]) || e[i].row / d == v->a ? -1 : par_sig_bound(c, s->call, s->pos, row);
    }
}

static enum sig_more head_permuted(const struct sig_case *c, int i, struct sig_variant *v) {
    v->a = i;
    (void)snprintf(v->text, sizeof v->text, "the values of head %d stand in another head's place", i);
    return i >= par_sig_width(c) / c->config->head_dim ? SIG_END : SIG_TRY;
}

/* ---- token ids ---------------------------------------------------------------------------------------------------
 * a: shift; b: what stands beyond the ends: 0 the end's own, 1 the other end's, 2 token 0. */
static bool token_at(const struct fwd_view *in, int64_t at, int64_t beyond, int32_t *token) {
    if (at < 0 || at >= in->n_pos) {
        if (beyond == 2) {
            *token = 0;
            return true;
        }
        at = beyond ? (at % in->n_pos + in->n_pos) % in->n_pos : at < 0 ? 0 : in->n_pos - 1;
    }
    memcpy(token, (const uint8_t *)in->data + 4 * at, sizeof *token);
    return true;
}

static void token_value(const struct sig_case *c, const struct sig_variant *v, const struct sig_element *e, int64_t n,
                        double *alt, double *bound, double *loose) {
    const struct spec_weight *w = par_spec_weight(c->m, c->item->op, c->item->layer);
    float *row = par_sig_alloc(c, (size_t)w->n_cols, sizeof *row);
    int slot = -1;
    bool ok = false;
    for (int64_t i = 0; i < n; i++) {
        alt[i] = NAN;
        bound[i] = loose[i] = -1;
        if (row && e[i].slot != slot) {
            const struct sig_slot *s = &c->slots[e[i].slot];
            const struct fwd_view *in = c->calls[s->call].e.in[0];
            int32_t token = 0;
            slot = e[i].slot;
            ok = in && token_at(in, s->pos - in->pos0 + v->a, v->b, &token) && token >= 0 && token < w->n_rows;
            if (ok)
                par_decode_row(w->type, w->data + token * w->row_bytes, row, w->n_cols);
        }
        if (!ok)
            continue;
        alt[i] = (double)row[e[i].row];
        bound[i] = loose[i] = 0;
    }
    fwd_free(row);
}

static enum sig_more tokens_shifted(const struct sig_case *c, int i, struct sig_variant *v) {
    static const int shifts[] = {1, -1, 2, -2, 3, -3, 4, -4};
    if (i >= 24 || c->n_slots < 2) /* one wrong token is likely to be a neighbour's by chance */
        return SIG_END;
    v->a = shifts[i % 8];
    v->b = i / 8;
    (void)snprintf(v->text, sizeof v->text, "each position has the token of position %+d", (int)v->a);
    return SIG_TRY;
}

/* ---- stale buffers -----------------------------------------------------------------------------------------------
 */
static const struct par_twin *find_twin(const struct par_evidence_call *call, int pos) {
    for (int i = 0; i < call->n_twins; i++)
        if (call->twins[i].own_pos == pos)
            return &call->twins[i];
    return NULL;
}

/* Positions after the last twin of a full list may have one that was not noted. */
static bool beyond_twins(const struct par_evidence_call *call, int pos) {
    return call->n_twins == PAR_MAX_TWINS && pos > call->twins[PAR_MAX_TWINS - 1].own_pos;
}

static bool from_twins(const struct sig_case *c, struct sig_fit *fit) {
    const struct par_twin *first = NULL;
    int64_t with = 0, tested = 0;
    double digits = 0;
    for (int64_t i = 0; i < c->n_list; i++) {
        const struct sig_slot *s = &c->slots[c->list[i].slot];
        const struct par_evidence_call *call = &c->item->calls[s->call];
        const struct par_twin *t = find_twin(call, s->pos);
        if (!t && beyond_twins(call, s->pos))
            continue;
        tested++;
        if (!t)
            continue;
        first = first ? first : t;
        with++;
        digits += par_sig_digits(c, &c->list[i], 0);
    }
    if (!first || tested == 0)
        return false;
    fit->share = (double)with / (double)tested;
    fit->digits = digits;
    fit->n_tested = tested;
    char layer[32] = "";
    if (first->layer >= 0)
        (void)snprintf(layer, sizeof layer, " of layer %d", first->layer);
    /* An op that reads another position's row gives that position's bits, as one does that is left out. */
    bool read = first->op == c->item->op && first->layer == c->item->layer && first->pos != first->own_pos;
    (void)snprintf(fit->text, sizeof fit->text, "holds the bits of %s%s, position %d: never written here%s",
                   fwd_op_name(first->op), layer, first->pos, read ? ", or computed from that position's input" : "");
    return fit->share == 1;
}

/* Whether the n elements of one slot are what the op gave at (call, pos), bit for bit, and should not be: the same
 * token twice gives the same output twice, right or wrong. */
static bool same_as(const struct sig_case *c, const struct sig_element *e, int64_t n, int call, int pos) {
    bool differs = false;
    for (int64_t i = 0; i < n; i++) {
        if (par_sig_got(c, call, pos, e[i].row) != e[i].got)
            return false;
        differs = differs || par_sig_expected(c, call, pos, e[i].row) != e[i].expected;
    }
    return differs;
}

static bool find_source(const struct sig_case *c, const struct sig_element *e, int64_t n, int *call, int *pos) {
    const struct sig_slot *own = &c->slots[e->slot];
    for (*call = own->call; *call >= 0; (*call)--) {
        const struct par_elements *x = &c->calls[*call].x;
        for (*pos = x->pos0 + x->n_pos - 1; *pos >= x->pos0; (*pos)--)
            if ((*call != own->call || *pos < own->pos) && same_as(c, e, n, *call, *pos))
                return true;
    }
    return false;
}

/* Every accused position repeats what the op gave before. */
static void from_before(const struct sig_case *c, struct sig_fit *fit) {
    struct sig_element *e = par_sig_sorted(c);
    if (!e)
        return;
    struct sig_fit found = {.n_tested = c->n_list, .n_variants = c->n_slots};
    int64_t with = 0;
    for (int64_t at = 0, end; at < c->n_list; at = end) {
        int call, pos, own = c->slots[e[at].slot].pos;
        bool varied = false;
        for (end = at; end < c->n_list && e[end].slot == e[at].slot; end++) {
            varied = varied || e[end].got != e[at].got;
        }
        if (!varied || !find_source(c, &e[at], end - at, &call, &pos))
            continue;
        for (int64_t i = at; i < end; i++)
            found.digits += par_sig_digits(c, &e[i], 0);
        if (with == 0)
            (void)snprintf(found.text, sizeof found.text,
                           "position %d holds again what this op gave at position %d: not computed anew", own, pos);
        with += end - at;
    }
    found.share = (double)with / (double)c->n_list;
    if (found.share > fit->share)
        *fit = found;
    fwd_free(e);
}

static void stale(const struct sig_case *c, struct sig_fit *fit) {
    if (c->item->op == FWD_OP_INP_EMBD && c->n_slots < 2)
        return;
    if (!from_twins(c, fit))
        from_before(c, fit);
}

/* ---- the table ---------------------------------------------------------------------------------------------------
 */
enum { ROWS = SIG_ALL & ~SIG_CACHES, HEADS = SIG_QKV | SIG_ROPES | SIG_ATTENTION | SIG_CACHES };

const struct signature par_sig_rows[] = {
    {"tokens-shifted", SIG_EMBED, 0, tokens_shifted, token_value, NULL},
    {"tap-last-position", ROWS, 0, NULL, NULL, tap_last},
    {"head-permuted", HEADS, SIG_PER_HEAD, head_permuted, head_value, NULL},
    {"rows-exchanged", ROWS, SIG_PER_SLOT, rows_exchanged, row_value, NULL},
    {"stale-output", ROWS, 0, NULL, NULL, stale},
    {NULL, 0, 0, NULL, NULL, NULL},
};
