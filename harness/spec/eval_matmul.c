/* Matrix products. Quantised activations: exact integer dots of the tap's own codes with the weight's codes, times the
 * exact product of the scales, in F64; the terms of the bound are the block products. Float activations: F64 products
 * of the decoded weight. Rows of the matrix are split over the threads, SPEC_DOT_ROWS at a time. */
#include "spec/eval_tensor.h"
#include "spec/look_matmul.h"
#include "spec/second_look.h"
#include "spec/spec_decode.h"
#include "spec/spec_dot.h"
#include "spec/spec_quant.h"
#include "spec/spec_tensor.h"
#include "spec/tie_slack.h"

#include <math.h>
#include <string.h>

struct matmul_task {
    struct eval *ev;
    const struct spec_weight *w;
    const float *bias; /* [n_rows] or NULL */
    struct par_bound bound;
    struct spec_dots dots;
    enum fwd_dtype act; /* as multiplied: F32, F64, or the blocks that the input has or was to be made into */
    int block;          /* values in a block; 1: products of floats */
    int64_t n_blocks;   /* in a row */
    bool has_min;
    bool in_order; /* the candidate adds the terms in the order in which the sums here do */
    /* Quantised activations of the judged positions, as struct spec_tile has them. */
    int n_tile; /* positions there: n_pos, filled up */
    int16_t *code, *sum16;
    double *scale, *min_scale;
    double *norm; /* split_blocks: the root of the sum of squares of a block's codes, [n_blocks][n_tile] */
    /* Float activations. */
    double *x; /* [n_pos][n_cols] */
    struct par_ties ties;
    uint8_t *scratch;
    size_t scratch_bytes; /* of one thread */
};

/* One thread's view of a group of weight rows: laid out as struct spec_tile has them. */
struct row_group {
    int16_t *code, *min;
    double *d, *dmin;
    double *sum, *sum_abs, *path;
    double *norm;    /* split_blocks: as of the codes, [n_blocks][SPEC_DOT_ROWS][2]: of the code, of the minima */
    double *decoded; /* float activations only: [SPEC_DOT_ROWS][n_cols], or in_order [n_cols][SPEC_DOT_ROWS] */
    float *row;      /* [n_cols]: one of them as it is decoded */
};

static size_t round_up(size_t n) {
    return (n + 63) & ~(size_t)63;
}

/* Lays a row group out at address base (0: only measures); returns the bytes used. */
static size_t place_group(const struct matmul_task *t, struct row_group *g, uintptr_t base) {
    size_t k = (size_t)t->w->n_cols, nb = (size_t)t->n_blocks, rows = SPEC_DOT_ROWS, at = 0;
    if (t->block == 1) {
        g->decoded = (void *)(base + at);
        at += round_up(rows * k * sizeof(double));
        g->row = (void *)(base + at);
        return at + round_up(k * sizeof(float));
    }
    g->code = (void *)(base + at);
    at += round_up(rows * k * sizeof(int16_t));
    g->min = (void *)(base + at);
    at += round_up(rows * k / 16 * sizeof(int16_t));
    g->d = (void *)(base + at);
    at += round_up(rows * nb * sizeof(double));
    g->dmin = (void *)(base + at);
    at += round_up(rows * nb * sizeof(double));
    g->sum = (void *)(base + at);
    at += round_up((size_t)t->n_tile * rows * sizeof(double));
    g->sum_abs = (void *)(base + at);
    at += round_up((size_t)t->n_tile * rows * sizeof(double));
    g->path = (void *)(base + at);
    at += round_up((size_t)t->n_tile * rows * sizeof(double));
    g->norm = (void *)(base + at);
    return at + (t->norm ? round_up(2 * rows * nb * sizeof(double)) : 0);
}

/* ---- quantised activations -----------------------------------------------------------------------------------------
 */
/* What a block's parts may come to in magnitude, over the norm of the codes that it meets (Cauchy and Schwarz): of its
 * dot and of its minima. Q6_K's parts are those of codes without their offset and, apart, of that. */
static void norm_of_block(const struct matmul_task *t, const struct spec_block *s, double norm[2]) {
    double squares = 0, scales = 0, minima = 0;
    int offset = t->w->type == FWD_TYPE_Q6_K ? 32 : 0;
    for (int j = 0; j < t->block / 16; j++) {
        for (int i = 0; i < 16; i++) {
            double c = s->scale[j] * (s->q[16 * j + i] + offset);
            squares += c * c;
        }
        scales += (double)s->scale[j] * s->scale[j];
        minima += (double)s->min[j] * s->min[j];
    }
    /* A sum of 16 codes is at most 4 of their norms. */
    norm[0] = fabs((double)s->d) * (sqrt(squares) + 4 * offset * sqrt(scales));
    norm[1] = t->has_min ? 4 * fabs((double)s->dmin) * sqrt(minima) : 0;
}

/* Codes times scales of one row; rows past the end of the matrix are zero. */
static void unpack_row(const struct matmul_task *t, const struct row_group *g, int r, int64_t row) {
    struct spec_block s;
    for (int64_t b = 0; b < t->n_blocks; b++) {
        int64_t at = b * SPEC_DOT_ROWS + r;
        int16_t *code = g->code + at * t->block, *min = g->min + at * (t->block / 16);
        if (row < t->w->n_rows)
            par_decode_block(t->w->type, t->w->data + row * t->w->row_bytes, b, &s);
        else
            memset(&s, 0, sizeof s);
        for (int j = 0; j < t->block / 16; j++) {
            min[j] = s.min[j];
            for (int i = 0; i < 16; i++)
                code[16 * j + i] = (int16_t)(s.scale[j] * s.q[16 * j + i]);
        }
        g->d[at] = (double)s.d;
        g->dmin[at] = (double)s.dmin;
        if (t->norm)
            norm_of_block(t, &s, g->norm + 2 * at);
    }
}

/* sum and sum_abs of the group's rows at every judged position. */
static void sum_group(const struct matmul_task *t, const struct row_group *g) {
    const struct spec_tile tile = {.n_blocks = t->n_blocks,
                                   .n_pos = t->n_tile,
                                   .code = g->code,
                                   .min = g->min,
                                   .d = g->d,
                                   .dmin = g->dmin,
                                   .act = t->code,
                                   .sum16 = t->sum16,
                                   .scale = t->scale,
                                   .min_scale = t->min_scale,
                                   .sum = g->sum,
                                   .sum_abs = g->sum_abs,
                                   .path = g->path};
    if (t->block == 256)
        (t->has_min ? t->dots.block256_min : t->dots.block256)(&tile);
    else
        (t->has_min ? t->dots.block32_min : t->dots.block32)(&tile);
}

/* The two terms of block b: row r of the group at judged position p. */
static void block_terms(const struct matmul_task *t, const struct row_group *g, int p, int r, int64_t b, double *term,
                        double *min_term) {
    int64_t w = b * SPEC_DOT_ROWS + r, x = b * t->n_tile + p;
    const int16_t *code = g->code + w * t->block, *act = t->code + x * t->block;
    const int16_t *min = g->min + w * (t->block / 16), *sum16 = t->sum16 + x * (t->block / 16);
    int32_t dot = 0, min_dot = 0;
    for (int i = 0; i < t->block; i++)
        dot += code[i] * act[i];
    for (int j = 0; j < t->block / 16; j++)
        min_dot += min[j] * sum16[j];
    *term = g->d[w] * t->scale[x] * dot;
    *min_term = t->has_min ? g->dmin[w] * t->min_scale[x] * min_dot : 0;
}

/* Value k of row r of a group of float rows. */
static double *decoded_at(const struct matmul_task *t, const struct row_group *g, int r, int64_t k) {
    return &g->decoded[t->in_order ? k * SPEC_DOT_ROWS + r : r * t->w->n_cols + k];
}

/* Section 2.1, rule 1, for one element: a second pass over its terms, so it is only taken where it could matter. */
static double swallowed_terms(const struct matmul_task *t, const struct row_group *g, int p, int r, double a) {
    int64_t k = t->w->n_cols;
    double d = 0, u = t->bound.u;
    if (t->block == 1) {
        for (int64_t i = 0; i < k; i++)
            d += par_swallowed(u, a, *decoded_at(t, g, r, i) * t->x[p * k + i]);
        return fmin(d, t->bound.n * u * a);
    }
    for (int64_t b = 0; b < t->n_blocks; b++) {
        double term, min_term;
        block_terms(t, g, p, r, b, &term, &min_term);
        d += par_swallowed(u, a, term) + par_swallowed(u, a, min_term);
    }
    return fmin(d, t->bound.n * u * a);
}

/* Where a block's sum is stored in binary16: what one unit in the last place of that adds, and the difference between
 * the scale as stored and as the sum was made with. */
static double sum_step(const struct matmul_task *t, const struct row_group *g, int p, int64_t at, int64_t block) {
    int64_t x = block * t->n_tile + p;
    int sum = 0;
    for (int j = 0; j < t->block / 16; j++)
        sum += t->sum16[x * (t->block / 16) + j];
    double stored = fabs(t->min_scale[x] * sum);
    return fabs(g->dmin[at] * g->min[at * (t->block / 16)]) * (0x1p-10 * (stored + fabs(t->scale[x])) + 0x1p-24);
}

/* What the elements near a tie may add: each its own weight times one step. */
static double tie_slack(const struct matmul_task *t, const struct row_group *g, int p, int r) {
    double slack = 0;
    for (int64_t i = t->ties.first[p]; i < t->ties.first[p + 1]; i++) {
        int64_t k = t->ties.tie[i].k;
        double weight;
        if (t->block == 1) {
            weight = *decoded_at(t, g, r, k);
        } else {
            int64_t at = k / t->block * SPEC_DOT_ROWS + r, in_block = k % t->block;
            weight = g->d[at] * g->code[at * t->block + in_block];
            if (t->has_min)
                weight -= g->dmin[at] * g->min[(at * t->block + in_block) / 16];
            if (t->has_min && t->min_scale[k / t->block * t->n_tile + p] != t->scale[k / t->block * t->n_tile + p])
                slack += sum_step(t, g, p, at, k / t->block);
        }
        slack += fabs(weight) * t->ties.tie[i].step;
    }
    return slack;
}

/* The sum of one row at one position. */
struct made_sum {
    double sum, sum_abs;
    double chain; /* as in par_bound_in_order, if the order is the candidate's */
};

static void judge_one(const struct matmul_task *t, struct eval_tally *tally, const struct row_group *g, int64_t row,
                      int p, int r, struct made_sum made) {
    const struct par_eval *e = t->ev->e;
    int pos = e->pos0 + t->ev->pos[p];
    double bias = t->bias ? (double)t->bias[row] : 0.0, sum_abs = made.sum_abs, exact = made.sum + bias;
    double got = par_load_one(e->out->dtype, par_view_row(e->out, pos), row);
    double bound = par_bound_at(&t->bound, sum_abs, exact);
    bool sure = t->bound.sure;
    if (t->in_order) {
        double in_order = par_bound_in_order(&t->bound, made.chain, sum_abs, exact);
        if (in_order < bound) {
            bound = in_order;
            sure = t->block > 1 || t->bound.sure_root;
        }
    }
    if (t->ties.first) {
        double slack = tie_slack(t, g, p, r);
        bound += slack;
        if (bound < HUGE_VAL) {
            tally->tie_slack += slack;
            tally->tie_bound += bound;
        }
    }
    double off = fabs(got - exact);
    if (!sure && off > bound && off <= bound + t->bound.n * t->bound.u * sum_abs)
        bound += swallowed_terms(t, g, p, r, sum_abs);
    if (!sure && par_eval_wants_look(tally, exact, got, bound)) {
        struct par_matmul_look look = {.w = t->w, .row = row, .numerics = e->numerics, .block = t->block};
        look.bias = t->bias ? &t->bias[row] : NULL;
        look.x = t->x ? t->x + p * t->w->n_cols : NULL;
        look.code = t->code ? t->code + (int64_t)p * t->block : NULL;
        look.sum16 = t->sum16 ? t->sum16 + (int64_t)p * t->block / 16 : NULL;
        look.scale = t->scale ? t->scale + p : NULL;
        look.min_scale = t->min_scale ? t->min_scale + p : NULL;
        look.step = t->n_tile;
        double again, about;
        if (par_look_matmul(&look, exact, got, &again, &about)) {
            par_eval_systematic(tally, e->out->dtype, pos, row, again, got, about);
            return;
        }
    }
    par_eval_element(tally, e->out->dtype, pos, row, exact, got, bound);
}

static struct made_sum block_sum(const struct matmul_task *t, const struct row_group *g, int p, int r) {
    int at = p * SPEC_DOT_ROWS + r;
    struct made_sum made = {g->sum[at], g->sum_abs[at], t->bound.path * g->path[at]};
    double parts = 0;
    for (int64_t b = 0; t->norm && b < t->n_blocks; b++) {
        const double *norm = g->norm + 2 * (b * SPEC_DOT_ROWS + r);
        int64_t x = b * t->n_tile + p;
        parts += (norm[0] * fabs(t->scale[x]) + norm[1] * fabs(t->min_scale[x])) * t->norm[x];
    }
    made.sum_abs = made.sum_abs > parts ? made.sum_abs : parts;
    return made;
}

static void quantised_rows(void *ctx, int thread, int n_threads) {
    struct matmul_task *t = ctx;
    struct row_group g = {0};
    (void)place_group(t, &g, (uintptr_t)t->scratch + (size_t)thread * t->scratch_bytes);
    int64_t begin, end;
    fwd_range_split(t->w->n_rows, SPEC_DOT_ROWS, thread, n_threads, &begin, &end);
    for (int64_t row = begin; row < end; row += SPEC_DOT_ROWS) {
        for (int r = 0; r < SPEC_DOT_ROWS; r++)
            unpack_row(t, &g, r, row + r);
        sum_group(t, &g);
        for (int p = 0; p < t->ev->n_pos; p++)
            for (int r = 0; r < SPEC_DOT_ROWS && row + r < end; r++)
                judge_one(t, &t->ev->tally[thread], &g, row + r, p, r, block_sum(t, &g, p, r));
    }
}

/* Block b of the input at a position: the tap's own bytes, or, where a path shows only the float tap before them, what
 * its declared rule makes of that. */
static enum fwd_status read_block(struct matmul_task *t, int pos, int64_t b, struct spec_q8 *q, struct fwd_error *err) {
    const struct fwd_view *in = t->ev->e->in[0];
    const uint8_t *row = par_view_row(in, pos);
    bool sums_agree; /* judged with the _q8 op itself */
    if (!t->ties.first) {
        par_q8_read(in->dtype, row + (size_t)b * par_q8_block_bytes(in->dtype), q, &sums_agree);
        return FWD_OK;
    }
    int block = par_q8_block_values(t->act);
    double wide[256];
    float x[256];
    par_load_f64(in->dtype, row + (size_t)(b * block) * par_float_bytes(in->dtype), wide, block);
    for (int i = 0; i < block; i++)
        x[i] = (float)wide[i];
    (void)par_q8_quantise_as(t->ev->e->numerics->act_rule, x, block, q);
    return par_ties_add(&t->ties, x, block, b * block, (double)q->d, err);
}

/* A sum that its codes cannot have is wrong in the _q8 op, and accused there; here it only must not overflow. */
static int16_t cut_sum(int32_t sum) {
    return (int16_t)(sum > INT16_MAX ? INT16_MAX : sum < -INT16_MAX ? -INT16_MAX : sum);
}

/* The sum as stored over that of the codes: what the judge's own sum of codes is multiplied by. */
static double scale_of_sum(const struct spec_q8 *q, int block) {
    int sum = 0;
    for (int g = 0; g < block / 16; g++)
        sum += q->sum16[g];
    return sum ? (double)q->sum / sum : 0;
}

static double norm_of_codes(const int8_t *q, int n) {
    int sum = 0;
    for (int i = 0; i < n; i++)
        sum += q[i] * q[i];
    return sqrt(sum);
}

static enum fwd_status load_quantised(struct matmul_task *t, struct fwd_error *err) {
    const struct par_eval *e = t->ev->e;
    int64_t k = t->w->n_cols;
    size_t n = (size_t)t->n_tile * (size_t)k;
    t->code = fwd_calloc(n, sizeof *t->code);
    t->sum16 = fwd_calloc(n / 16, sizeof *t->sum16);
    t->scale = fwd_calloc(n / (size_t)t->block, sizeof *t->scale);
    t->min_scale = fwd_calloc(n / (size_t)t->block, sizeof *t->min_scale);
    if (e->numerics->split_blocks)
        t->norm = fwd_calloc(n / (size_t)t->block, sizeof *t->norm);
    FWD_FAIL_IF(!t->code || !t->sum16 || !t->scale || !t->min_scale || (e->numerics->split_blocks && !t->norm),
                FWD_ENOMEM, err, "judge: no memory for %d rows of %lld codes", t->ev->n_pos, (long long)k);
    struct spec_q8 q;
    for (int p = 0; p < t->ev->n_pos; p++) {
        par_ties_position(&t->ties, p);
        for (int64_t b = 0; b < t->n_blocks; b++) {
            int64_t at = b * t->n_tile + p;
            FWD_TRY(read_block(t, e->pos0 + t->ev->pos[p], b, &q, err));
            for (int i = 0; i < t->block; i++)
                t->code[at * t->block + i] = q.q[i];
            for (int j = 0; j < t->block / 16; j++)
                t->sum16[at * (t->block / 16) + j] = cut_sum(q.sum16[j]);
            t->scale[at] = t->min_scale[at] = (double)q.d;
            if (q.has_sum)
                t->min_scale[at] = scale_of_sum(&q, t->block);
            if (t->norm)
                t->norm[at] = norm_of_codes(q.q, t->block);
        }
    }
    par_ties_position(&t->ties, t->ev->n_pos);
    return FWD_OK;
}

/* ---- float activations ---------------------------------------------------------------------------------------------
 */
/* The group's rows at positions p, p + 1, ...; past the last one anything. */
static void sum_floats(const struct matmul_task *t, const struct row_group *g, int p,
                       struct made_sum made[SPEC_DOT_POSITIONS][SPEC_DOT_ROWS]) {
    int64_t k = t->w->n_cols, segment = t->ev->e->numerics->segment;
    double sum[SPEC_DOT_POSITIONS][SPEC_DOT_ROWS], sum_abs[SPEC_DOT_POSITIONS][SPEC_DOT_ROWS];
    double squares[SPEC_DOT_POSITIONS][SPEC_DOT_ROWS] = {{0}};
    const double *x[SPEC_DOT_POSITIONS];
    for (int i = 0; i < SPEC_DOT_POSITIONS; i++)
        x[i] = t->x + (p + i < t->ev->n_pos ? p + i : p) * k;
    if (t->in_order)
        t->dots.f64_ordered(g->decoded, x, k, segment > 0 ? segment : k, sum[0], sum_abs[0], squares[0]);
    for (int i = 0; i < SPEC_DOT_POSITIONS && !t->in_order; i++)
        t->dots.f64(g->decoded, k, x[i], k, sum[i], sum_abs[i]);
    for (int i = 0; i < SPEC_DOT_POSITIONS; i++)
        for (int r = 0; r < SPEC_DOT_ROWS; r++)
            made[i][r] = (struct made_sum){sum[i][r], sum_abs[i][r], t->bound.root * sqrt(squares[i][r])};
}

static void float_rows(void *ctx, int thread, int n_threads) {
    struct matmul_task *t = ctx;
    struct row_group g = {0};
    (void)place_group(t, &g, (uintptr_t)t->scratch + (size_t)thread * t->scratch_bytes);
    int64_t begin, end, k = t->w->n_cols;
    fwd_range_split(t->w->n_rows, SPEC_DOT_ROWS, thread, n_threads, &begin, &end);
    for (int64_t row = begin; row < end; row += SPEC_DOT_ROWS) {
        int n_rows = end - row < SPEC_DOT_ROWS ? (int)(end - row) : SPEC_DOT_ROWS;
        memset(g.decoded, 0, (size_t)(SPEC_DOT_ROWS * k) * sizeof *g.decoded);
        for (int r = 0; r < n_rows; r++) {
            par_decode_row(t->w->type, t->w->data + (row + r) * t->w->row_bytes, g.row, k);
            for (int64_t i = 0; i < k; i++)
                *decoded_at(t, &g, r, i) = (double)g.row[i];
        }
        for (int p = 0; p < t->ev->n_pos; p += SPEC_DOT_POSITIONS) {
            struct made_sum made[SPEC_DOT_POSITIONS][SPEC_DOT_ROWS];
            sum_floats(t, &g, p, made);
            for (int i = 0; i < SPEC_DOT_POSITIONS && p + i < t->ev->n_pos; i++)
                for (int r = 0; r < n_rows; r++)
                    judge_one(t, &t->ev->tally[thread], &g, row + r, p + i, r, made[i][r]);
        }
    }
}

/* d * q of each block, rounded to F32 where the path computes in that. */
static enum fwd_status dequantise_row(struct matmul_task *t, int pos, double *x, struct fwd_error *err) {
    int block = par_q8_block_values(t->act);
    struct spec_q8 q;
    for (int64_t b = 0; b < t->w->n_cols / block; b++) {
        FWD_TRY(read_block(t, pos, b, &q, err));
        for (int i = 0; i < block; i++) {
            double exact = (double)q.d * q.q[i];
            x[b * block + i] = t->ev->e->numerics->store == FWD_F32 ? (double)(float)exact : exact;
        }
    }
    return FWD_OK;
}

/* The floats of a position as they are multiplied: as they came, or rounded to the narrower format that is declared. */
static void load_row(const struct matmul_task *t, int pos, double *x) {
    const struct par_eval *e = t->ev->e;
    par_load_f64(e->in[0]->dtype, par_view_row(e->in[0], pos), x, t->w->n_cols);
    for (int64_t k = 0; k < t->w->n_cols && (t->act == FWD_F16 || t->act == FWD_BF16); k++) {
        float one = (float)x[k];
        double scale;
        par_tensor_convert(t->act, &one, 1, &x[k], &scale);
    }
}

static enum fwd_status load_floats(struct matmul_task *t, struct fwd_error *err) {
    const struct par_eval *e = t->ev->e;
    int64_t k = t->w->n_cols;
    t->x = fwd_alloc((size_t)t->ev->n_pos, (size_t)k * sizeof *t->x);
    FWD_FAIL_IF(!t->x, FWD_ENOMEM, err, "judge: no memory for %d rows of %lld values", t->ev->n_pos, (long long)k);
    for (int p = 0; p < t->ev->n_pos; p++) {
        int pos = e->pos0 + t->ev->pos[p];
        par_ties_position(&t->ties, p);
        if (par_q8_block_values(t->act))
            FWD_TRY(dequantise_row(t, pos, t->x + p * k, err));
        else
            load_row(t, pos, t->x + p * k);
    }
    par_ties_position(&t->ties, t->ev->n_pos);
    return FWD_OK;
}

/* ---- either --------------------------------------------------------------------------------------------------------
 */
static enum fwd_status check_input(struct matmul_task *t, struct fwd_error *err) {
    const struct par_eval *e = t->ev->e;
    const struct fwd_view *in = e->in[0];
    const char *op = fwd_op_name(e->op);
    FWD_FAIL_IF(!in, FWD_EINPUT, err, "%s: its input is missing", op);
    bool blocks = par_q8_block_values(in->dtype) != 0;
    t->act = blocks ? in->dtype : e->numerics->act;
    int block = par_q8_block_values(t->act), weight_block = par_decode_block_values(t->w->type);
    if (!blocks)
        FWD_TRY(par_eval_need_float(t->ev, in, t->w->n_cols, err));
    if (!block)
        return FWD_OK;
    FWD_FAIL_IF(!blocks && !par_q8_knows(e->numerics->act_rule), FWD_EUNSUPPORTED, err,
                "%s: quantisation rule %d is unknown", op, e->numerics->act_rule);
    FWD_FAIL_IF(in->ne[0] != t->w->n_cols || t->w->n_cols % block != 0, FWD_ESHAPE, err,
                "%s: %lld activations in blocks of %d, expected %lld", op, (long long)in->ne[0], block,
                (long long)t->w->n_cols);
    for (int p = 0; p < t->ev->n_pos; p++)
        FWD_FAIL_IF(!par_view_row(in, e->pos0 + t->ev->pos[p]), FWD_EINPUT, err, "%s: no %s for position %d", op,
                    fwd_op_name(in->op), e->pos0 + t->ev->pos[p]);
    if (e->numerics->dequantised)
        return FWD_OK; /* products of floats after all */
    FWD_FAIL_IF(block != weight_block, FWD_EUNSUPPORTED, err, "%s: %s weights with %s activations have no evaluator",
                op, fwd_type_name(t->w->type), fwd_dtype_name(t->act));
    t->block = block;
    t->n_blocks = t->w->n_cols / block;
    t->has_min = par_decode_has_min(t->w->type);
    return FWD_OK;
}

/* Whether the sums here are made in the order that is declared, and the declared chain is as long as that makes it. */
static bool adds_in_order(const struct matmul_task *t) {
    const struct fwd_numerics *nm = t->ev->e->numerics;
    struct par_order order = {nm->lanes, nm->segment};
    if (nm->lanes != 1)
        return false;
    if (t->block > 1)
        return nm->segment == 0 && nm->chain_block == t->block && nm->chain_per_block == (t->has_min ? 2 : 1);
    return par_order_steps(order, t->w->n_cols) <= par_chain_steps(nm, t->w->n_cols);
}

static enum fwd_status run_matmul(struct matmul_task *t, struct fwd_error *err) {
    struct row_group g = {0};
    if (par_q8_block_values(t->act) && !par_q8_block_values(t->ev->e->in[0]->dtype))
        FWD_TRY(par_ties_begin(&t->ties, t->ev->n_pos, err));
    FWD_TRY(t->block == 1 ? load_floats(t, err) : load_quantised(t, err));
    t->scratch_bytes = place_group(t, &g, 0);
    t->scratch = fwd_alloc((size_t)t->ev->n_threads, t->scratch_bytes);
    FWD_FAIL_IF(!t->scratch, FWD_ENOMEM, err, "judge: no memory for the rows of %s", t->w->name);
    fwd_pool_run(t->ev->pool, t->block == 1 ? float_rows : quantised_rows, t);
    return FWD_OK;
}

static enum fwd_status eval_with_bias(struct matmul_task *t, struct fwd_error *err) {
    struct eval *ev = t->ev;
    if (ev->e->numerics->accumulator == FWD_ACC_TENSOR)
        return par_eval_tensor(ev, t->w, t->bias, err);
    FWD_TRY(check_input(t, err));
    t->in_order = adds_in_order(t);
    int64_t n_terms = t->block == 1 ? t->w->n_cols : 2 * t->n_blocks;
    t->bound = par_bound_make(ev->e->numerics, ev->e->bound, t->w->n_cols, n_terms);
    t->dots = par_spec_dots(ev->e->caps);
    t->n_tile = (ev->n_pos + SPEC_DOT_POSITIONS - 1) / SPEC_DOT_POSITIONS * SPEC_DOT_POSITIONS;
    return run_matmul(t, err);
}

enum fwd_status par_eval_matmul(struct eval *ev, struct fwd_error *err) {
    const struct par_eval *e = ev->e;
    struct matmul_task t = {.ev = ev, .w = par_spec_weight(ev->m, e->op, e->layer), .block = 1};
    const struct spec_weight *bias = par_spec_bias(ev->m, e->op, e->layer);
    FWD_TRY(par_eval_need_float(ev, e->out, t.w->n_rows, err));
    float *bias_row = NULL;
    if (bias) {
        bias_row = fwd_alloc((size_t)bias->n_cols, sizeof *bias_row);
        FWD_FAIL_IF(!bias_row, FWD_ENOMEM, err, "judge: no memory for %s", bias->name);
        par_decode_row(bias->type, bias->data, bias_row, bias->n_cols);
        t.bias = bias_row;
    }
    enum fwd_status st = eval_with_bias(&t, err);
    /* A matrix is read from end to end: let its pages go, or the whole file stays beside the candidate's copy of it. */
    if (t.w->tensor)
        fwd_gguf_drop_pages(ev->m->file, t.w->tensor);
    fwd_free(bias_row);
    fwd_free(t.code);
    fwd_free(t.sum16);
    fwd_free(t.scale);
    fwd_free(t.min_scale);
    fwd_free(t.norm);
    fwd_free(t.x);
    fwd_free(t.scratch);
    par_ties_free(&t.ties);
    return st;
}
