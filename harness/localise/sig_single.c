/* Small changes of a matrix: one code, or one scale. What was changed is fitted at one position and must then explain
 * all the others. */
#include "localise/sig.h"

#include "spec/eval.h"
#include "spec/spec_decode.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static double dev_of(const struct sig_element *e) {
    return e->got - e->expected;
}

/* The element that says most. */
static int64_t strongest(const struct sig_element *e, int64_t n) {
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        if (fabs(dev_of(&e[i])) / (e[i].bound + 1e-300) > fabs(dev_of(&e[best])) / (e[best].bound + 1e-300))
            best = i;
    return best;
}

/* ---- one weight --------------------------------------------------------------------------------------------------
 */
struct column {
    int64_t k;
    double by, digits;
    int64_t fits;
    bool whole_step;
};

/* Whether column k, changed by one amount, explains the elements (all of one row). */
static void try_column(const struct sig_case *c, const struct sig_element *e, int64_t n, int64_t at, double step,
                       struct column *col) {
    double x0 = c->acts[e[at].slot].x[col->k];
    col->fits = 0;
    col->digits = 0;
    if (x0 == 0)
        return;
    col->by = dev_of(&e[at]) / x0;
    double off = e[at].bound / fabs(x0); /* of by */
    for (int64_t i = 0; i < n; i++) {
        double x = c->acts[e[i].slot].x[col->k], left = fabs(dev_of(&e[i]) - col->by * x);
        if (left > e[i].bound + off * fabs(x))
            return;
        col->fits++;
        if (i != at)
            col->digits += par_sig_digits(c, &e[i], e[i].bound + off * fabs(x));
    }
    /* A code that is wrong is wrong by whole steps. */
    double steps = step > 0 ? col->by / step : 0, away = fabs(steps - round(steps)), room = step > 0 ? off / step : 1;
    col->whole_step = step > 0 && fabs(round(steps)) >= 1 && fabs(round(steps)) <= 255 && away <= room + 1e-6;
    if (col->whole_step && room < 0.25)
        col->digits += fmin(3, -log10(2 * (room + 1e-6)));
}

static void one_weight(const struct sig_case *c, struct sig_fit *fit) {
    const struct sig_element *e = c->list;
    for (int64_t i = 1; i < c->n_list; i++)
        if (e[i].row != e[0].row)
            return;
    struct sig_product p = par_sig_product(par_spec_weight(c->m, c->item->op, c->item->layer));
    bool blocks = par_decode_block_values(p.type) > 1;
    struct sig_row *row = par_sig_row_alloc(c, c->k);
    if (!row || !par_sig_read_row(&p, e[0].row, !blocks, row)) {
        fwd_free(row);
        return;
    }
    struct column best = {.k = -1}, col;
    int64_t at = strongest(e, c->n_list);
    int n_fits = 0;
    for (int64_t k = 0; k < c->k; k++) {
        col = (struct column){.k = k};
        try_column(c, e, c->n_list, at, blocks ? fabs(row->d16[k / 16]) : 0, &col);
        if (col.fits != c->n_list || (blocks && !col.whole_step))
            continue;
        n_fits++;
        if (best.k < 0 || col.digits > best.digits)
            best = col;
    }
    fit->n_tested = c->n_list;
    fit->n_variants = (int)c->k;
    if (best.k >= 0 && n_fits == 1) {
        fit->share = 1;
        fit->digits = best.digits;
        (void)snprintf(fit->text, sizeof fit->text, "weight %lld of row %lld is off by %.6g%s", (long long)best.k,
                       (long long)e[0].row, best.by, best.whole_step ? ": whole steps of its scale" : "");
        if (best.whole_step)
            (void)snprintf(fit->text, sizeof fit->text, "code %lld of row %lld is off by %+d", (long long)best.k,
                           (long long)e[0].row,
                           (int)lround(best.by / fabs(row->d16[best.k / 16])) * (row->d16[best.k / 16] < 0 ? -1 : 1));
    }
    fwd_free(row);
}

/* ---- one scale ---------------------------------------------------------------------------------------------------
 * Part of a row whose contribution is `by` times its own more. */
enum part { PART_CODES, PART_BOTH, PART_MINIMA };
struct piece {
    int64_t first, n; /* groups of 16 */
    enum part part;
};
enum { MOST_ROWS = 64 };

static double piece_value(const struct sig_row *r, const struct sig_act *a, const struct piece *p) {
    double code = 0, min = 0;
    for (int64_t g = p->first; g < p->first + p->n; g++) {
        double dot = 0, sum = 0;
        for (int64_t k = 16 * g; k < 16 * g + 16; k++) {
            dot += r->q[k] * a->x[k];
            sum += a->x[k];
        }
        code += r->d16[g] * dot;
        min += r->m16[g] * sum;
    }
    return p->part == PART_CODES ? code : p->part == PART_MINIMA ? -min : code - min;
}

/* Whether the piece explains the n elements of one row; adds their digits, the first not counted. */
static bool piece_fits(const struct sig_case *c, const struct sig_row *r, const struct piece *p,
                       const struct sig_element *e, int64_t n, double *digits, double *by) {
    int64_t at = strongest(e, n);
    double t0 = piece_value(r, &c->acts[e[at].slot], p);
    if (t0 == 0)
        return false;
    *by = dev_of(&e[at]) / t0;
    double off = e[at].bound / fabs(t0);
    for (int64_t i = 0; i < n; i++) {
        double t = i == at ? t0 : piece_value(r, &c->acts[e[i].slot], p), room = e[i].bound + off * fabs(t);
        if (fabs(dev_of(&e[i]) - *by * t) > room)
            return false;
        *digits += i == at ? 0 : par_sig_digits(c, &e[i], room);
    }
    return true;
}

/* Piece i of a row of blocks of n values: each block's codes, both, minima; then each group of 16. */
static bool piece_at(const struct sig_case *c, const struct sig_row *r, int64_t i, struct piece *p) {
    int64_t blocks = c->k / r->block, groups = c->k / 16;
    if (i < 3 * blocks) {
        *p = (struct piece){i / 3 * (r->block / 16), r->block / 16, (enum part)(i % 3)};
        return true;
    }
    i -= 3 * blocks;
    if (r->block != 256 || i >= 4 * groups)
        return false;
    bool pair = i % 4 >= 2; /* sub-blocks of 32 */
    *p = (struct piece){i / 4, pair ? 2 : 1, i % 2 ? PART_MINIMA : PART_CODES};
    return !(pair && p->first + 2 > groups);
}

static int64_t row_end(const struct sig_case *c, int64_t at) {
    int64_t end = at;
    while (end < c->n_list && c->list[end].row == c->list[at].row)
        end++;
    return end;
}

/* All rows that are looked at with the one piece that explains the first of them. */
static void check_rows(const struct sig_case *c, const struct sig_product *p, struct sig_row *row,
                       const struct piece *piece, struct sig_fit *fit) {
    double digits = 0, by, first_by = 0;
    int64_t fits = 0, tested = 0;
    for (int64_t at = 0, end, rows = 0; at < c->n_list && rows < MOST_ROWS; at = end, rows++) {
        end = row_end(c, at);
        tested += end - at;
        /* One factor for all: rows that each have their own have no scale in common that changed. */
        if (par_sig_read_row(p, c->list[at].row, false, row) &&
            piece_fits(c, row, piece, &c->list[at], end - at, &digits, &by) && fabs(by + 1) > 1e-3 &&
            (first_by == 0 || fabs(by - first_by) <= 1e-2 * fabs(first_by))) {
            fits += end - at;
            first_by = first_by != 0 ? first_by : by;
        }
    }
    double share = (double)fits / (double)tested;
    if (share < fit->share || (share == fit->share && digits <= fit->digits))
        return;
    static const char *const names[] = {"scale", "scale and minimum", "minimum"};
    *fit = (struct sig_fit){.share = share, .digits = digits, .n_tested = tested, .n_variants = fit->n_variants};
    (void)snprintf(fit->text, sizeof fit->text, "the %s of %s %lld of row %lld is %.6g times the file's",
                   names[piece->part], piece->n == row->block / 16 ? "K-block" : "the values from column",
                   (long long)(piece->n == row->block / 16 ? piece->first / piece->n : 16 * piece->first),
                   (long long)c->list[0].row, 1 + first_by);
}

static void one_scale(const struct sig_case *c, struct sig_fit *fit) {
    struct sig_product p = par_sig_product(par_spec_weight(c->m, c->item->op, c->item->layer));
    struct sig_row *row = par_sig_row_alloc(c, c->k);
    int64_t end = row_end(c, 0);
    struct piece piece;
    if (!row || par_decode_block_values(p.type) < 2 || end < 2 || !par_sig_read_row(&p, c->list[0].row, false, row)) {
        fwd_free(row);
        return;
    }
    int64_t n = 3 * c->k / row->block + 4 * c->k / 16;
    fit->n_variants = (int)n;
    for (int64_t i = 0; i < n; i++) {
        double digits = 0, by;
        if (!piece_at(c, row, i, &piece) || !par_sig_read_row(&p, c->list[0].row, false, row) ||
            !piece_fits(c, row, &piece, c->list, end, &digits, &by))
            continue;
        check_rows(c, &p, row, &piece, fit);
    }
    fwd_free(row);
}

/* ---- all values times one factor ---------------------------------------------------------------------------------
 */
static void factor_value(const struct sig_case *c, const struct sig_variant *v, const struct sig_element *e, int64_t n,
                         double *alt, double *bound, double *loose) {
    const struct spec_weight *bias = v->kind ? par_spec_bias(c->m, c->item->op, c->item->layer) : NULL;
    for (int64_t i = 0; i < n; i++) {
        float b = 0;
        if (bias)
            memcpy(&b, bias->data + 4 * e[i].row, sizeof b);
        double x = e[i].expected - (double)b;
        alt[i] = v->f * x + (double)b;
        /* f is known as well as the element it was taken from. */
        double off = c->calls[0].e.out->dtype == FWD_F64 ? 0x1p-50 : 0x1p-22;
        bound[i] = (fabs(v->f) + 1) * e[i].bound + (v->known + off) * fabs(v->f * x);
        loose[i] = bound[i];
    }
}

static enum sig_more factor(const struct sig_case *c, int i, struct sig_variant *v) {
    const struct sig_element *e = &c->list[strongest(c->list, c->n_list)];
    const struct spec_weight *bias = par_spec_bias(c->m, c->item->op, c->item->layer);
    float b = 0;
    v->kind = i;
    if (i > 1 || (i && (!bias || !bias->data)))
        return SIG_END;
    if (i)
        memcpy(&b, bias->data + 4 * e->row, sizeof b);
    double x = e->expected - (double)b;
    if (x == 0 || !isfinite(e->got))
        return SIG_SKIP;
    v->f = (e->got - (double)b) / x;
    v->known = e->bound / fabs(x);
    (void)snprintf(v->text, sizeof v->text, "every wrong value is %.7g times the right one%s", v->f,
                   i ? ", its bias apart" : "");
    return fabs(v->f) < 1e-3 ? SIG_SKIP : SIG_TRY; /* nothing is left: that is no scale */
}

const struct signature par_sig_single[] = {
    {"scale-changed", SIG_ALL & ~(SIG_CACHES | SIG_Q8S), SIG_IS_FREE, factor, factor_value, NULL},
    {"one-weight", SIG_MATMULS, 0, NULL, NULL, one_weight},
    {"scale-changed", SIG_MATMULS, 0, NULL, NULL, one_scale},
    {NULL, 0, 0, NULL, NULL, NULL},
};
