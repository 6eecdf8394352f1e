/* One matrix row's residual against everything that one wrong part of the row could do to it. */
#include "localise/blocks.h"

#include "spec/spec_decode.h"
#include "spec/spec_quant.h"
#include "spec/spec_tensor.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { GROUP = 16 }; /* the smallest run of values with one scale */

/* ---- activations --------------------------------------------------------------------------------------------------
 */
void par_acts_free(struct par_acts *a) {
    fwd_free(a->pos);
    fwd_free(a->code);
    fwd_free(a->scale);
    fwd_free(a->value);
    *a = (struct par_acts){0};
}

static const uint8_t *view_row(const struct fwd_view *v, int pos) {
    if (pos < v->pos0 || pos >= v->pos0 + v->n_pos)
        return NULL;
    int64_t stride = v->nb[1] ? v->nb[1] : (int64_t)fwd_dtype_row_bytes(v->dtype, v->ne[0]);
    return (const uint8_t *)v->data + (pos - v->pos0) * stride;
}

static float load_float(enum fwd_dtype t, const uint8_t *row, int64_t i) {
    float x = 0;
    double wide, scale;
    uint16_t half;
    if (t == FWD_BF16) {
        par_tensor_read(t, row + 2 * i, 1, &wide, &scale);
        x = (float)wide;
    } else if (t == FWD_E4M3) {
        uint8_t one[5] = {row[0], row[1], row[2], row[3], row[4 + i]};
        par_tensor_read(t, one, 1, &wide, &scale);
        x = (float)(wide * scale);
    } else if (t == FWD_F32) {
        memcpy(&x, row + 4 * i, sizeof x);
    } else if (t == FWD_F64) {
        memcpy(&wide, row + 8 * i, sizeof wide);
        x = (float)wide;
    } else {
        memcpy(&half, row + 2 * i, sizeof half);
        x = par_f16_to_f32(half);
    }
    return x;
}

static void read_codes(const struct fwd_view *in, const uint8_t *row, int64_t block_index, struct spec_q8 *q,
                       int block) {
    bool sums_agree;
    if (par_q8_block_values(in->dtype)) {
        par_q8_read(in->dtype, row + (size_t)block_index * par_q8_block_bytes(in->dtype), q, &sums_agree);
        return;
    }
    float x[256];
    for (int i = 0; i < block; i++)
        x[i] = load_float(in->dtype, row, block_index * block + i);
    par_q8_quantise(x, block, q);
}

/* What is not finite is read as 0: the residual there is not finite either, and takes the position out of every fit. */
static void read_position(const struct fwd_view *in, const uint8_t *row, int i, struct par_acts *out) {
    if (out->block == 1) {
        for (int64_t k = 0; k < out->k; k++) {
            float x = load_float(in->dtype, row, k);
            out->value[i * out->k + k] = isfinite(x) ? x : 0;
        }
        return;
    }
    struct spec_q8 q;
    for (int64_t b = 0; b < out->k / out->block; b++) {
        read_codes(in, row, b, &q, out->block);
        memcpy(out->code + i * out->k + b * out->block, q.q, (size_t)out->block);
        out->scale[i * (out->k / out->block) + b] = isfinite(q.d) ? q.d : 0;
    }
}

/* Room for n more positions. */
static bool grow_acts(struct par_acts *a, int n) {
    size_t have = (size_t)a->n_pos, want = have + (size_t)n, k = (size_t)a->k;
    size_t n_scales = a->block > 1 ? k / (size_t)a->block : 0, n_codes = a->block > 1 ? k : 0, n_values = k - n_codes;
    int *pos = fwd_realloc(a->pos, have * sizeof *a->pos, want, sizeof *a->pos);
    a->pos = pos ? pos : a->pos;
    int8_t *code = fwd_realloc(a->code, have * n_codes, want * n_codes, 1);
    a->code = code ? code : a->code;
    float *scale = fwd_realloc(a->scale, have * n_scales * sizeof *scale, want * n_scales, sizeof *scale);
    a->scale = scale ? scale : a->scale;
    float *value = fwd_realloc(a->value, have * n_values * sizeof *value, want * n_values, sizeof *value);
    a->value = value ? value : a->value;
    return pos && code && scale && value;
}

enum fwd_status par_acts_add(const struct par_eval *e, int64_t k, const int *pos, int n_pos, struct par_acts *out,
                             struct fwd_error *err) {
    const struct fwd_view *in = e->in[0];
    FWD_FAIL_IF(!in || in->ne[0] != k, FWD_EINPUT, err, "localise: %s has no input of %lld values", fwd_op_name(e->op),
                (long long)k);
    int block = par_q8_block_values(par_q8_block_values(in->dtype) ? in->dtype : e->numerics->act);
    block = block ? block : 1;
    FWD_FAIL_IF(k % block || (out->n_pos && (out->block != block || out->k != k)), FWD_ESHAPE, err,
                "localise: %s reads %lld values in blocks of %d", fwd_op_name(e->op), (long long)k, block);
    out->block = block;
    out->k = k;
    FWD_FAIL_IF(!grow_acts(out, n_pos), FWD_ENOMEM, err, "localise: no memory for %d rows of %lld values", n_pos,
                (long long)k);
    for (int i = 0; i < n_pos; i++) {
        const uint8_t *row = view_row(in, pos[i]);
        FWD_FAIL_IF(!row, FWD_EINPUT, err, "localise: %s has no input for position %d", fwd_op_name(e->op), pos[i]);
        out->pos[out->n_pos] = pos[i];
        read_position(in, row, out->n_pos++, out);
    }
    return FWD_OK;
}

/* ---- the parts of a row -------------------------------------------------------------------------------------------
 */
/* The row unpacked, and its integer dots with each position's activations. */
struct parts {
    const struct par_row_case *c;
    int64_t n_blocks, n_groups;
    int block, sub;       /* values in a block, and in a sub-block with a scale of its own (0: none) */
    bool quantised;       /* weights have integer codes */
    float *weight;        /* [k] codes, or the float weights */
    double *d, *dmin;     /* [n_blocks] */
    int16_t *scale, *min; /* [n_groups] */
    double *dot, *sum;    /* [n_pos][n_groups] of code * activation code, and of activation codes */
    double *block_dot,
        *block_min;               /* [n_pos][n_blocks] sums of scale * dot and of min * sum: exact integers for codes */
    double *residual, *precision; /* [n_pos]: got - expected; 1 / its noise squared */
    double square;                /* sum of precision * residual^2 */
};

static void free_parts(struct parts *p) {
    fwd_free(p->weight);
    fwd_free(p->d);
    fwd_free(p->scale);
    fwd_free(p->dot);
    fwd_free(p->block_dot);
    fwd_free(p->residual);
}

int par_fit_block_values(const struct spec_weight *w) {
    int values = par_decode_block_values(w->type);
    if (values > 1)
        return w->n_cols % values ? 0 : values;
    return values == 0 ? 0 : w->n_cols % 256 == 0 ? 256 : w->n_cols % 32 == 0 ? 32 : 0;
}

/* Values that share a scale (and min) smaller than the block's; 0: none do. */
static int sub_block_values(uint32_t type) {
    switch (type) {
    case FWD_TYPE_Q4_K:
    case FWD_TYPE_Q5_K:
        return 32;
    case FWD_TYPE_Q2_K:
    case FWD_TYPE_Q3_K:
    case FWD_TYPE_Q6_K:
        return 16;
    default:
        return 0;
    }
}

struct range {
    int low, high;
};
static struct range code_range(uint32_t type) {
    switch (type) {
    case FWD_TYPE_Q2_K:
        return (struct range){0, 3};
    case FWD_TYPE_Q3_K:
        return (struct range){-4, 3};
    case FWD_TYPE_Q4_0:
        return (struct range){-8, 7};
    case FWD_TYPE_Q4_1:
    case FWD_TYPE_Q4_K:
        return (struct range){0, 15};
    case FWD_TYPE_Q5_0:
        return (struct range){-16, 15};
    case FWD_TYPE_Q5_1:
    case FWD_TYPE_Q5_K:
        return (struct range){0, 31};
    case FWD_TYPE_Q6_K:
        return (struct range){-32, 31};
    default:
        return (struct range){-128, 127};
    }
}
static struct range scale_range(uint32_t type) {
    return type == FWD_TYPE_Q2_K   ? (struct range){0, 15}
           : type == FWD_TYPE_Q3_K ? (struct range){-32, 31}
           : type == FWD_TYPE_Q6_K ? (struct range){-128, 127}
                                   : (struct range){0, 63};
}

static double act_scale(const struct parts *p, int pos, int64_t block) {
    const struct par_acts *a = p->c->acts;
    return a->block > 1 ? (double)a->scale[pos * (a->k / a->block) + block * p->block / a->block] : 1.0;
}

static void unpack_row(struct parts *p) {
    const struct spec_weight *w = p->c->weight;
    const uint8_t *row = w->data + p->c->row * w->row_bytes;
    int per_block = p->block / GROUP;
    if (!p->quantised) {
        par_decode_row(w->type, row, p->weight, w->n_cols);
        for (int64_t b = 0; b < p->n_blocks; b++) {
            p->d[b] = 1;
            p->dmin[b] = 0;
        }
        for (int64_t g = 0; g < p->n_groups; g++) {
            p->scale[g] = 1;
            p->min[g] = 0;
        }
        return;
    }
    struct spec_block s;
    for (int64_t b = 0; b < p->n_blocks; b++) {
        par_decode_block(w->type, row, b, &s);
        p->d[b] = (double)s.d;
        p->dmin[b] = par_decode_has_min(w->type) ? (double)s.dmin : 0;
        for (int i = 0; i < p->block; i++)
            p->weight[b * p->block + i] = (float)s.q[i];
        for (int g = 0; g < per_block; g++) {
            p->scale[b * per_block + g] = s.scale[g];
            p->min[b * per_block + g] = p->dmin[b] != 0 ? s.min[g] : 0;
        }
    }
}

static void add_dots(struct parts *p) {
    const struct par_acts *a = p->c->acts;
    for (int pos = 0; pos < a->n_pos; pos++)
        for (int64_t g = 0; g < p->n_groups; g++) {
            double dot = 0, sum = 0;
            const float *w = p->weight + g * GROUP;
            for (int i = 0; i < GROUP; i++) {
                int64_t at = pos * a->k + g * GROUP + i;
                double x = a->block > 1 ? a->code[at] : (double)a->value[at];
                dot += (double)w[i] * x;
                sum += x;
            }
            p->dot[pos * p->n_groups + g] = dot;
            p->sum[pos * p->n_groups + g] = sum;
            int64_t block = pos * p->n_blocks + g * GROUP / p->block;
            p->block_dot[block] += p->scale[g] * dot;
            p->block_min[block] += p->min[g] * sum;
        }
}

/* Half an ulp of a stored value: what rounding to the tap's type does to a residual even with no noise at all. */
static double half_ulp(double x) {
    return fabs(x) * 0x1p-24;
}

static void weigh_residual(struct parts *p) {
    const struct par_row_case *c = p->c;
    p->square = 0;
    for (int i = 0; i < c->acts->n_pos; i++) {
        double sigma = c->noise * c->bound[i] + half_ulp(c->got[i]);
        p->residual[i] = c->got[i] - c->expected[i];
        p->precision[i] = sigma > 0 ? 1 / (sigma * sigma) : 0;
        if (!isfinite(p->residual[i])) /* says nothing about the others */
            p->residual[i] = p->precision[i] = 0;
        p->square += p->precision[i] * p->residual[i] * p->residual[i];
    }
}

static enum fwd_status make_parts(const struct par_row_case *c, struct parts *p, struct fwd_error *err) {
    const struct spec_weight *w = c->weight;
    *p = (struct parts){.c = c, .block = par_fit_block_values(w), .sub = sub_block_values(w->type)};
    FWD_FAIL_IF(!p->block || c->acts->k != w->n_cols, FWD_EUNSUPPORTED, err,
                "%s: rows of %lld %s weights have no blocks to name", w->name, (long long)w->n_cols,
                fwd_type_name(w->type));
    p->quantised = par_decode_block_values(w->type) > 1;
    p->n_blocks = w->n_cols / p->block;
    p->n_groups = w->n_cols / GROUP;
    size_t n_pos = (size_t)c->acts->n_pos, groups = (size_t)p->n_groups, blocks = (size_t)p->n_blocks;
    p->weight = fwd_alloc((size_t)w->n_cols, sizeof *p->weight);
    p->d = fwd_alloc(2 * blocks, sizeof *p->d);
    p->scale = fwd_alloc(2 * groups, sizeof *p->scale);
    p->dot = fwd_alloc(2 * n_pos * groups, sizeof *p->dot);
    p->block_dot = fwd_calloc(2 * n_pos * blocks, sizeof *p->block_dot);
    p->residual = fwd_alloc(2 * n_pos, sizeof *p->residual);
    if (!p->weight || !p->d || !p->scale || !p->dot || !p->block_dot || !p->residual) {
        free_parts(p);
        FWD_FAIL(FWD_ENOMEM, err, "localise: no memory for a row of %s", w->name);
    }
    p->dmin = p->d + blocks;
    p->min = p->scale + groups;
    p->sum = p->dot + n_pos * groups;
    p->block_min = p->block_dot + n_pos * blocks;
    p->precision = p->residual + n_pos;
    unpack_row(p);
    add_dots(p);
    weigh_residual(p);
    return FWD_OK;
}

static double block_value(const struct parts *p, int pos, int64_t b) {
    int64_t at = pos * p->n_blocks + b;
    return act_scale(p, pos, b) * (p->d[b] * p->block_dot[at] - p->dmin[b] * p->block_min[at]);
}

/* Block `from` of another row (or of this one) where block b should be. */
static double moved_value(const struct parts *p, const struct parts *other, int pos, int64_t b, int64_t from) {
    const struct par_acts *a = p->c->acts;
    double sum = 0;
    if (from == b)
        return block_value(other, pos, b);
    for (int i = 0; i < p->block; i++) {
        int64_t k = b * p->block + i, at = from * p->block + i;
        double x = a->block > 1 ? a->code[pos * a->k + k] : (double)a->value[pos * a->k + k];
        sum += x * (other->d[from] * other->scale[at / GROUP] * (double)other->weight[at] -
                    other->dmin[from] * other->min[at / GROUP]);
    }
    return act_scale(p, pos, b) * sum;
}

/* ---- the declared chain, computed again ----------------------------------------------------------------------------
 */
static bool is_sequential(const struct parts *p) {
    const struct fwd_numerics *nm = p->c->numerics;
    bool two = p->quantised && par_decode_has_min(p->c->weight->type);
    return p->quantised && p->c->acts->block == p->block && !nm->dequantised && nm->accumulator == FWD_ACC_F32 &&
           nm->fma && nm->store == FWD_F32 && nm->chain_block == p->block && nm->chain_per_block == (two ? 2 : 1) &&
           nm->chain_extra == 0;
}

/* What changes in the chain under a hypothesis: integers added to one block's dot and min sum, or a run of blocks that
 * is taken `times` times. */
struct change {
    int64_t block, last;
    double dot, min;
    int times;
};

static float run_chain(const struct parts *p, int pos, const struct change *ch) {
    float acc = 0;
    bool two = par_decode_has_min(p->c->weight->type);
    for (int64_t b = 0; b < p->n_blocks; b++) {
        bool changed = ch && b >= ch->block && b <= ch->last;
        float scale = (float)act_scale(p, pos, b);
        float dot = (float)(p->block_dot[pos * p->n_blocks + b] + (changed ? ch->dot : 0));
        float min = two ? (float)(p->block_min[pos * p->n_blocks + b] + (changed ? ch->min : 0)) : 0;
        for (int t = 0; t < (changed ? ch->times : 1); t++) {
            acc = fmaf((float)p->d[b] * scale, dot, acc);
            if (two)
                acc = fmaf(-((float)p->dmin[b] * scale), min, acc);
        }
    }
    return p->c->bias ? acc + *p->c->bias : acc;
}

bool par_row_repeats(const struct par_row_case *c) {
    struct parts p;
    if (make_parts(c, &p, NULL) != FWD_OK)
        return false;
    bool same = is_sequential(&p);
    for (int i = 0; same && i < c->acts->n_pos; i++)
        same = (double)run_chain(&p, i, NULL) == c->got[i];
    free_parts(&p);
    return same;
}

/* ---- hypotheses ----------------------------------------------------------------------------------------------------
 */
/* The chi-square that the true hypothesis stays below: its mean and five of its standard deviations, and some. */
static double accept_below(int n_pos) {
    return n_pos + 5 * sqrt(2.0 * n_pos) + 12;
}

/* One family's accepted hypotheses. */
struct search {
    const struct parts *p;
    struct par_row_fit best;
    double best_chi2;
    bool have, several; /* several: in more than one block, equally good */
    double near;        /* hypotheses whose effect at the first position is about the residual's size, see count_near */
    int n_bits;         /* chains computed */
};
enum { MAX_CHAINS = 20000 };
enum {
    LOOSE = 25
}; /* times the limit, where equal bits decide: a row may be noisier than its neighbours by a factor 5 */

/* Density of effects near the residual, for the number that would fit by accident at one position. */
static void count_near(struct search *s, double effect) {
    double r = s->p->residual[0];
    s->near += fabs(effect - r) <= 0.25 * fabs(r);
}

static bool same_bits(struct search *s, const struct change *per_pos) {
    const struct par_row_case *c = s->p->c;
    s->n_bits++;
    for (int i = 0; i < c->acts->n_pos; i++)
        if (s->p->precision[i] > 0 && (double)run_chain(s->p, i, &per_pos[i]) != c->got[i])
            return false;
    return true;
}

/* The integer changes a hypothesis makes at each position. */
static void find_changes(const struct parts *p, const struct par_row_fit *f, struct change *out) {
    const struct par_acts *a = p->c->acts;
    int per_block = p->block / GROUP;
    for (int i = 0; i < a->n_pos; i++) {
        out[i] = (struct change){.block = f->block_first, .last = f->block_last, .times = 1};
        if (f->kind == PAR_FIT_DROPPED || f->kind == PAR_FIT_DOUBLED)
            out[i].times = f->kind == PAR_FIT_DROPPED ? 0 : 2;
        else if (f->kind == PAR_FIT_WEIGHT)
            out[i].dot = f->delta * p->scale[f->k_first / GROUP] * (double)a->code[i * a->k + f->k_first];
        else
            for (int64_t g = f->k_first / GROUP; g <= f->k_last / GROUP && g / per_block == f->block_first; g++) {
                out[i].dot += f->kind == PAR_FIT_SCALE ? f->delta * p->dot[i * p->n_groups + g] : 0;
                out[i].min += f->kind == PAR_FIT_MIN ? f->delta * p->sum[i * p->n_groups + g] : 0;
            }
    }
}

static bool is_better(const struct search *s, const struct par_row_fit *f, double chi2) {
    if (!s->have || f->same_bits != s->best.same_bits)
        return !s->have || f->same_bits;
    return chi2 < s->best_chi2;
}

/* Takes a hypothesis with chi-square below the limit into account. changes: room for n_pos, NULL: no bits to compare.
 */
static void consider(struct search *s, struct par_row_fit *f, double chi2, struct change *changes) {
    const struct parts *p = s->p;
    int n_pos = p->c->acts->n_pos;
    if (!(chi2 <= (changes ? LOOSE : 1) * accept_below(n_pos)) || (changes && s->n_bits == MAX_CHAINS))
        return;
    if (changes) {
        find_changes(p, f, changes);
        f->same_bits = same_bits(s, changes);
        /* The declared order was proven on other rows: one position leaves no room for "nearly". */
        if (!f->same_bits && (n_pos == 1 || chi2 > accept_below(n_pos)))
            return;
    }
    enum { DISTINCT = 12 }; /* of chi-square, between a hypothesis and the next best in another block */
    f->share = p->square > 0 ? 1 - chi2 / p->square : 0;
    bool other_block = s->have && (f->block_first != s->best.block_first || f->block_last != s->best.block_last);
    bool rival = other_block && f->same_bits == s->best.same_bits && fabs(chi2 - s->best_chi2) < DISTINCT;
    bool better = is_better(s, f, chi2);
    if (better && other_block && !rival)
        s->several = false;
    s->several = s->several || rival;
    if (better) {
        s->best = *f;
        s->best_chi2 = chi2;
        s->have = true;
    }
}

/* chi-square of residual - c * v for an effect v[pos]; least squares c into *c. */
static double fit_effect(const struct parts *p, const double *v, double *c) {
    double num = 0, den = 0;
    for (int i = 0; i < p->c->acts->n_pos; i++) {
        num += p->precision[i] * p->residual[i] * v[i];
        den += p->precision[i] * v[i] * v[i];
    }
    *c = den > 0 ? num / den : 0;
    return den > 0 ? p->square - 2 * *c * num + *c * *c * den : HUGE_VAL;
}
/* chi-square of residual - c * v, or any value beyond `limit` once it is that large. */
static double misfit(const struct parts *p, const double *v, double c) {
    double chi2 = 0, limit = LOOSE * accept_below(p->c->acts->n_pos);
    for (int i = 0; i < p->c->acts->n_pos && chi2 <= limit; i++)
        chi2 += p->precision[i] * (p->residual[i] - c * v[i]) * (p->residual[i] - c * v[i]);
    return chi2;
}

static void try_runs(struct search *s, double *v, struct change *changes) {
    const struct parts *p = s->p;
    int n_pos = p->c->acts->n_pos;
    for (int64_t first = 0; first < p->n_blocks; first++) {
        memset(v, 0, (size_t)n_pos * sizeof *v);
        for (int64_t last = first; last < p->n_blocks; last++) {
            for (int i = 0; i < n_pos; i++)
                v[i] += block_value(p, i, last);
            for (int c = -1; c <= 1; c += 2) {
                struct par_row_fit f = {.kind = c < 0 ? PAR_FIT_DROPPED : PAR_FIT_DOUBLED,
                                        .block_first = first,
                                        .block_last = last,
                                        .k_first = -1,
                                        .k_last = -1};
                count_near(s, c * v[0]);
                consider(s, &f, misfit(p, v, c), changes);
            }
        }
    }
}

/* A block read from elsewhere: v[pos] of block b of this row becomes that of block b + by of other's. */
static void try_moved_from(struct search *s, const struct parts *other, int rows, int blocks, double *v) {
    const struct parts *p = s->p;
    for (int64_t b = 0; b < p->n_blocks; b++) {
        int64_t from = b + blocks;
        if (from < 0 || from >= p->n_blocks)
            continue;
        for (int i = 0; i < p->c->acts->n_pos; i++) {
            /* The other block's weights meet this block's activations. */
            v[i] = moved_value(p, other, i, b, from) - block_value(p, i, b);
        }
        struct par_row_fit f = {.kind = PAR_FIT_MOVED,
                                .block_first = b,
                                .block_last = b,
                                .k_first = -1,
                                .k_last = -1,
                                .delta = rows,
                                .factor = blocks};
        count_near(s, v[0]);
        consider(s, &f, misfit(p, v, 1), NULL);
    }
}

static enum fwd_status try_moved(struct search *s, double *v, struct fwd_error *err) {
    const struct par_row_case *c = s->p->c;
    for (int by = -1; by <= 1; by += 2) {
        struct par_row_case neighbour = *c;
        struct parts other;
        neighbour.row += by;
        try_moved_from(s, s->p, 0, by, v);
        if (neighbour.row < 0 || neighbour.row >= c->weight->n_rows)
            continue;
        FWD_TRY(make_parts(&neighbour, &other, err));
        try_moved_from(s, &other, by, 0, v);
        free_parts(&other);
    }
    return FWD_OK;
}

/* Single weights. With codes, `most` is the largest |code difference| looked for; `least` the smallest. */
static void try_weights(struct search *s, int least, int most, double *num, double *den, struct change *changes) {
    const struct parts *p = s->p;
    const struct par_acts *a = p->c->acts;
    struct range range = code_range(p->c->weight->type);
    memset(num, 0, (size_t)a->k * sizeof *num);
    memset(den, 0, (size_t)a->k * sizeof *den);
    for (int i = 0; i < a->n_pos; i++)
        for (int64_t b = 0; b < p->n_blocks; b++) {
            double scale = act_scale(p, i, b), n1 = p->precision[i] * p->residual[i] * scale,
                   d1 = p->precision[i] * scale * scale;
            for (int64_t k = b * p->block; k < (b + 1) * p->block; k++) {
                double x = a->block > 1 ? a->code[i * a->k + k] : (double)a->value[i * a->k + k];
                num[k] += n1 * x;
                den[k] += d1 * x * x;
            }
        }
    for (int64_t k = 0; k < a->k; k++) {
        int64_t b = k / p->block;
        double step = p->d[b] * p->scale[k / GROUP], n = step * num[k], d = step * step * den[k];
        if (!(d > 0))
            continue;
        double c = n / d, whole = nearbyint(c);
        int code = (int)p->weight[k];
        if (p->quantised) {
            if (a->n_pos == 1) /* both signs of every size that is allowed: how crowded the line is */
                for (int by = least; by <= most; by++) {
                    double x = a->block > 1 ? a->code[k] : (double)a->value[k], e = by * step * act_scale(p, 0, b) * x;
                    count_near(s, e);
                    count_near(s, -e);
                }
            c = whole;
            if (!(fabs(c) >= least && fabs(c) <= most && code + c >= range.low && code + c <= range.high))
                continue;
        }
        struct par_row_fit f = {.kind = PAR_FIT_WEIGHT,
                                .block_first = b,
                                .block_last = b,
                                .k_first = k,
                                .k_last = k,
                                .delta = p->quantised ? (int)c : 0,
                                .factor = c};
        consider(s, &f, p->square - 2 * c * n + c * c * d, changes);
    }
}

/* A sub-block's scale or min off by an integer. */
static void try_subs(struct search *s, enum par_fit_kind kind, double *v, struct change *changes) {
    const struct parts *p = s->p;
    struct range range = scale_range(p->c->weight->type);
    int n_pos = p->c->acts->n_pos;
    for (int64_t k = 0; p->sub && k < p->c->acts->k; k += p->sub) {
        int64_t b = k / p->block;
        for (int i = 0; i < n_pos; i++) {
            v[i] = 0;
            for (int64_t g = k / GROUP; g < (k + p->sub) / GROUP; g++)
                v[i] += kind == PAR_FIT_SCALE ? p->d[b] * p->dot[i * p->n_groups + g]
                                              : -p->dmin[b] * p->sum[i * p->n_groups + g];
            v[i] *= act_scale(p, i, b);
        }
        double c;
        int now = kind == PAR_FIT_SCALE ? p->scale[k / GROUP] : p->min[k / GROUP];
        (void)fit_effect(p, v, &c);
        c = nearbyint(c);
        for (int by = range.low - now; n_pos == 1 && by <= range.high - now; by++)
            count_near(s, by * v[0]);
        if (!(c != 0 && now + c >= range.low && now + c <= range.high))
            continue;
        struct par_row_fit f = {.kind = kind,
                                .block_first = b,
                                .block_last = b,
                                .k_first = k,
                                .k_last = k + p->sub - 1,
                                .delta = (int)c,
                                .factor = c};
        consider(s, &f, misfit(p, v, c), changes);
    }
}

/* A block's d or dmin times any factor: a real number, so it takes a few positions to say anything. */
static void try_block_scales(struct search *s, enum par_fit_kind kind, double *v) {
    const struct parts *p = s->p;
    for (int64_t b = 0; b < p->n_blocks; b++) {
        for (int i = 0; i < p->c->acts->n_pos; i++)
            v[i] = act_scale(p, i, b) * (kind == PAR_FIT_BLOCK_SCALE ? p->d[b] * p->block_dot[i * p->n_blocks + b]
                                                                     : -p->dmin[b] * p->block_min[i * p->n_blocks + b]);
        double c;
        double chi2 = fit_effect(p, v, &c);
        struct par_row_fit f = {
            .kind = kind, .block_first = b, .block_last = b, .k_first = -1, .k_last = -1, .factor = 1 + c};
        consider(s, &f, chi2, NULL);
    }
}

enum { MOST_PARTS = 32 };

/* Solves a * x = b in place for a positive definite a[n][n] (lower half used); false where it is not. */
static bool solve(double *a, double *b, int n) {
    for (int i = 0; i < n; i++)
        for (int j = 0; j <= i; j++) {
            double s = a[i * n + j];
            for (int k = 0; k < j; k++)
                s -= a[i * n + k] * a[j * n + k];
            if (i == j && !(s > 0))
                return false;
            a[i * n + j] = i == j ? sqrt(s) : s / a[j * n + j];
        }
    for (int i = 0; i < n; i++) {
        for (int k = 0; k < i; k++)
            b[i] -= a[i * n + k] * b[k];
        b[i] /= a[i * n + i];
    }
    for (int i = n - 1; i >= 0; i--) {
        for (int k = i + 1; k < n; k++)
            b[i] -= a[k * n + i] * b[k];
        b[i] /= a[i * n + i];
    }
    return true;
}

/* What each scale, and then each min, of a block contributes at one position, for a change by one. */
static void part_effects(const struct parts *p, int pos, int64_t b, int n_subs, bool mins, double *v) {
    int sub = p->block / n_subs;
    for (int j = 0; j < n_subs; j++) {
        double dot = 0, sum = 0;
        int64_t first = (b * p->block + j * sub) / GROUP;
        for (int64_t g = first; g < first + sub / GROUP; g++) {
            dot += p->dot[pos * p->n_groups + g];
            sum += p->sum[pos * p->n_groups + g];
        }
        v[j] = act_scale(p, pos, b) * dot;
        if (mins)
            v[n_subs + j] = -act_scale(p, pos, b) * sum;
    }
}

/* The best that any change of a block's scales and mins can do: chi-square, HUGE_VAL where it is not defined. */
static double fit_parts(const struct parts *p, int64_t b, int n_subs, bool mins) {
    double a[MOST_PARTS * MOST_PARTS] = {0}, rhs[MOST_PARTS] = {0}, x[MOST_PARTS], v[MOST_PARTS], chi2 = 0;
    int n = mins ? 2 * n_subs : n_subs;
    for (int i = 0; i < p->c->acts->n_pos; i++) {
        part_effects(p, i, b, n_subs, mins, v);
        for (int r = 0; r < n; r++) {
            rhs[r] += p->precision[i] * p->residual[i] * v[r];
            for (int c = 0; c <= r; c++)
                a[r * n + c] += p->precision[i] * v[r] * v[c];
        }
    }
    memcpy(x, rhs, sizeof x);
    if (!solve(a, x, n))
        return HUGE_VAL;
    for (int i = 0; i < p->c->acts->n_pos; i++) {
        double left = p->residual[i];
        part_effects(p, i, b, n_subs, mins, v);
        for (int r = 0; r < n; r++)
            left -= x[r] * v[r];
        chi2 += p->precision[i] * left * left;
    }
    return chi2;
}

/* Several of one block's scales and mins: as many unknowns, so it takes clearly more positions. */
static void try_parts(struct search *s) {
    const struct parts *p = s->p;
    bool mins = par_decode_has_min(p->c->weight->type);
    int n_subs = p->sub ? p->block / p->sub : 1, n = mins ? 2 * n_subs : n_subs;
    for (int64_t b = 0; n <= MOST_PARTS && p->c->acts->n_pos >= n + 8 && b < p->n_blocks; b++) {
        struct par_row_fit f = {.kind = PAR_FIT_BLOCK, .block_first = b, .block_last = b, .k_first = -1, .k_last = -1};
        consider(s, &f, fit_parts(p, b, n_subs, mins), NULL);
    }
}

/* The whole row: a constant added, or the sum of products times a factor. */
static void try_row(struct search *s, enum par_fit_kind kind, double *v) {
    const struct parts *p = s->p;
    double c, bias = p->c->bias ? (double)*p->c->bias : 0;
    for (int i = 0; i < p->c->acts->n_pos; i++)
        v[i] = kind == PAR_FIT_BIAS ? 1 : p->c->expected[i] - bias;
    double chi2 = fit_effect(p, v, &c);
    struct par_row_fit f = {.kind = kind,
                            .block_first = -1,
                            .block_last = -1,
                            .k_first = -1,
                            .k_last = -1,
                            .factor = kind == PAR_FIT_BIAS ? c : 1 + c};
    consider(s, &f, chi2, NULL);
}

/* How many parts of the families tried so far would have fitted a residual of this size at the one position. */
static double chance_of(const struct search *s, bool in_bits) {
    const struct parts *p = s->p;
    if (p->c->acts->n_pos > 1 || p->precision[0] == 0)
        return 0;
    double width = in_bits ? 2 * half_ulp(p->c->got[0]) : 2 * sqrt(accept_below(1) / p->precision[0]);
    return s->near * width / (0.5 * fabs(p->residual[0]));
}

/* The families from the most definite to the least; the first that fits is the answer. */
static enum fwd_status search_families(struct search *s, double *v, double *num, double *den, struct change *changes,
                                       struct fwd_error *err) {
    const struct parts *p = s->p;
    int n_pos = p->c->acts->n_pos,
        most = p->quantised ? code_range(p->c->weight->type).high - code_range(p->c->weight->type).low : 0;
    bool reals = n_pos >= 4; /* positions that a real-valued effect must agree on */
    try_runs(s, v, changes);
    if (!s->have)
        FWD_TRY(try_moved(s, v, err));
    if (!s->have && p->quantised)
        try_weights(s, 1, 1, num, den, changes);
    if (!s->have && p->quantised)
        try_weights(s, 2, most, num, den, changes);
    if (!s->have)
        try_subs(s, PAR_FIT_SCALE, v, changes);
    if (!s->have)
        try_subs(s, PAR_FIT_MIN, v, changes);
    if (!s->have && reals)
        try_row(s, PAR_FIT_BIAS, v);
    if (!s->have && reals)
        try_block_scales(s, PAR_FIT_BLOCK_SCALE, v);
    if (!s->have && reals)
        try_block_scales(s, PAR_FIT_BLOCK_MIN, v);
    if (!s->have && reals)
        try_row(s, PAR_FIT_ROW, v);
    if (!s->have && reals && !p->quantised)
        try_weights(s, 0, 0, num, den, NULL);
    if (!s->have && p->quantised)
        try_parts(s);
    return FWD_OK;
}

static bool is_outside(const struct par_row_case *c) {
    for (int i = 0; i < c->acts->n_pos; i++)
        if (fabs(c->got[i] - c->expected[i]) > c->bound[i])
            return true;
    return false;
}

enum fwd_status par_row_explain(const struct par_row_case *c, struct par_row_fit *out, struct fwd_error *err) {
    const double most_chance = 0.4; /* above this one position cannot tell */
    struct parts p;
    *out = (struct par_row_fit){.kind = PAR_FIT_NONE};
    FWD_TRY(make_parts(c, &p, err));
    size_t k = (size_t)c->acts->k, n_pos = (size_t)c->acts->n_pos;
    double *work = fwd_alloc(2 * k + n_pos, sizeof *work);
    struct change *changes = fwd_alloc(n_pos, sizeof *changes);
    struct search s = {.p = &p};
    enum fwd_status rc = FWD_OK;
    bool in_bits = c->in_order && is_sequential(&p);
    if (work && changes && is_outside(c))
        rc = search_families(&s, work + 2 * k, work, work + k, in_bits ? changes : NULL, err);
    s.best.chance = s.have ? chance_of(&s, s.best.same_bits) : 0;
    if (s.have && !s.several && s.best.chance < most_chance)
        *out = s.best;
    bool memory = work && changes;
    fwd_free(work);
    fwd_free(changes);
    free_parts(&p);
    FWD_FAIL_IF(!memory, FWD_ENOMEM, err, "localise: no memory for a row of %s", c->weight->name);
    return rc;
}

/* ---- errors inside a block -----------------------------------------------------------------------------------------
 */
/* Adds to gram[n_pos][n_pos] (lower half) the covariance of a block's contributions when each of its codes is off by an
 * independent amount of variance 1. x: room for n_pos. */
static void add_covariance(const struct parts *p, int64_t b, double *gram, double *x) {
    const struct par_acts *a = p->c->acts;
    int n = a->n_pos;
    for (int64_t k = b * p->block; k < (b + 1) * p->block; k++) {
        double step = p->d[b] * p->scale[k / GROUP];
        for (int i = 0; i < n; i++)
            x[i] = step * act_scale(p, i, b) * (a->block > 1 ? a->code[i * a->k + k] : (double)a->value[i * a->k + k]);
        for (int i = 0; i < n; i++)
            for (int j = 0; j <= i; j++)
                gram[i * n + j] += x[i] * x[j];
    }
}

/* log-likelihood of the residual under covariance `size` * gram + noise; work: [n_pos][n_pos + 1]. */
static double likelihood(const struct parts *p, const double *gram, double size, double *work) {
    int n = p->c->acts->n_pos;
    double *a = work, *b = work + (size_t)n * (size_t)n, log_det = 0, square = 0;
    for (int i = 0; i < n; i++) {
        for (int j = 0; j <= i; j++)
            a[i * n + j] = size * gram[i * n + j];
        a[i * n + i] += p->precision[i] > 0 ? 1 / p->precision[i] : 1e30;
        b[i] = p->residual[i];
    }
    if (!solve(a, b, n))
        return -HUGE_VAL;
    for (int i = 0; i < n; i++) {
        log_det += 2 * log(a[i * n + i]);
        square += p->residual[i] * b[i];
    }
    return -0.5 * (square + log_det);
}

/* The best over a few sizes of the error. */
static double best_likelihood(const struct parts *p, const double *gram, double *work) {
    int n = p->c->acts->n_pos;
    double trace = 0, square = 0, best = -HUGE_VAL;
    for (int i = 0; i < n; i++) {
        trace += gram[i * n + i];
        square += p->residual[i] * p->residual[i];
    }
    for (double times = 0.25; trace > 0 && times <= 4; times *= 2)
        best = fmax(best, likelihood(p, gram, times * square / trace, work));
    return best;
}

enum fwd_status par_row_span(const struct par_row_case *c, double *like, struct fwd_error *err) {
    struct parts p;
    FWD_FAIL_IF(c->acts->n_pos < PAR_SPAN_POSITIONS, FWD_EUNSUPPORTED, err, "localise: %d positions, needs %d",
                c->acts->n_pos, PAR_SPAN_POSITIONS);
    FWD_TRY(make_parts(c, &p, err));
    size_t n = (size_t)c->acts->n_pos, square = n * n;
    double *gram = fwd_alloc(3 * square + 2 * n, sizeof *gram);
    if (!gram) {
        free_parts(&p);
        FWD_FAIL(FWD_ENOMEM, err, "localise: no memory for %zu positions squared", n);
    }
    double *sum = gram + square, *work = sum + square, *x = work + square + n;
    memset(sum, 0, square * sizeof *sum);
    for (int64_t b = 0; b < p.n_blocks; b++) {
        memset(gram, 0, square * sizeof *gram);
        add_covariance(&p, b, gram, x);
        for (size_t i = 0; i < square; i++)
            sum[i] += gram[i];
        like[b] = best_likelihood(&p, gram, work);
    }
    like[p.n_blocks] = best_likelihood(&p, sum, work);
    memset(gram, 0, square * sizeof *gram); /* noise in proportion to the bound, of no connection with the input */
    for (size_t i = 0; i < n; i++)
        gram[i * n + i] = c->bound[i] * c->bound[i];
    like[p.n_blocks + 1] = best_likelihood(&p, gram, work);
    fwd_free(gram);
    free_parts(&p);
    return FWD_OK;
}

/* ---- in words ------------------------------------------------------------------------------------------------------
 */
/* "its min times 1.5"; a factor of nothing but rounding is said as what it is. */
static void describe_factor(const char *what, double factor, char *text, size_t size) {
    if (fabs(factor) < 1e-6)
        (void)snprintf(text, size, "%s left out", what);
    else
        (void)snprintf(text, size, "%s times %.7g", what, factor);
}

void par_fit_describe(const struct par_row_fit *f, char *text, size_t size) {
    long long k0 = f->k_first, k1 = f->k_last;
    switch (f->kind) {
    case PAR_FIT_NONE:
        (void)snprintf(text, size, "no one part of the row explains it");
        break;
    case PAR_FIT_DROPPED:
        (void)snprintf(text, size, "left out");
        break;
    case PAR_FIT_DOUBLED:
        (void)snprintf(text, size, "added twice");
        break;
    case PAR_FIT_MOVED:
        if (f->delta)
            (void)snprintf(text, size, "read from the %s row", f->delta > 0 ? "next" : "previous");
        else
            (void)snprintf(text, size, "read from the %s block", f->factor > 0 ? "next" : "previous");
        break;
    case PAR_FIT_WEIGHT:
        if (f->delta)
            (void)snprintf(text, size, "one weight, k = %lld, off by %+d", k0, f->delta);
        else
            (void)snprintf(text, size, "one weight, k = %lld, off by %+.3g", k0, f->factor);
        break;
    case PAR_FIT_SCALE:
        (void)snprintf(text, size, "the scale of k = %lld-%lld off by %+d", k0, k1, f->delta);
        break;
    case PAR_FIT_MIN:
        (void)snprintf(text, size, "the min of k = %lld-%lld off by %+d", k0, k1, f->delta);
        break;
    case PAR_FIT_BLOCK_SCALE:
        describe_factor("its scale", f->factor, text, size);
        break;
    case PAR_FIT_BLOCK_MIN:
        describe_factor("its min", f->factor, text, size);
        break;
    case PAR_FIT_BLOCK:
        (void)snprintf(text, size, "several of its scales and mins are wrong");
        break;
    case PAR_FIT_CODES:
        (void)snprintf(text, size, "many of its weights are read wrongly");
        break;
    case PAR_FIT_BIAS:
        (void)snprintf(text, size, "%+.6g is added", f->factor);
        break;
    case PAR_FIT_ROW:
        (void)snprintf(text, size, "times %.7g", f->factor);
        break;
    }
}
