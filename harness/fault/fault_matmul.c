/* harness/fault/fault_matmul.c: matrix products with wrong weights. The op's builtin makes the true product; then every
 * row that is wrong is given (broken row - true row) . x in F64, so that a fault in one row costs one row, whatever the
 * format of the activations and of the weight. */
#include "fault/fault.h"
#include "fault/fault_math.h"
#include "fault/fault_ops.h"

#include <math.h>
#include <string.h>

enum { TILE = 16, LANES = 8 };

struct product {
    const struct par_fault *f;
    const struct fwd_op_call *call;
    const struct fwd_gguf_tensor *other; /* whose rows are taken instead, or NULL */
    uint32_t other_type;
    double *x;       /* [K][n_padded], positions in lanes; those on which the fault does not act are 0 */
    double *scratch; /* [n_threads][2 * K] */
    double *sums;    /* [n_pos][n_rows], of a transposed product */
    int n_padded, n_threads;
    int64_t first, end; /* rows */
};

/* ---- one row ---- */

static const uint8_t *row_bytes_at(const struct fwd_weight *w, int64_t n) {
    return w->data + n * w->row_bytes;
}

/* broken - true of the blocks that a block kind changes. */
static void break_blocks(const struct product *p, int64_t n, double *delta) {
    const struct fwd_weight *w = p->call->weight;
    const uint8_t *row = row_bytes_at(w, n);
    int values = fault_block_values(w->type);
    int64_t n_blocks = (w->n_cols + values - 1) / values, only = p->f->block;
    if (only < 0 && p->f->row->kind == FAULT_BLOCK_NEXT_ROW) /* one block, which is no part of the fault's place */
        only = (int64_t)(fault_hash(p->f, 11) % (uint64_t)n_blocks);
    for (int64_t at = 0; at < n_blocks; at++) {
        struct fault_block good, bad;
        if (only >= 0 && at != only)
            continue;
        fault_open_block(w->type, row + at * fault_block_bytes(w->type), w->n_cols - at * values, &good);
        bad = good;
        fault_break_block(p->f, w->type, row, w->n_cols, at, row_bytes_at(w, (n + 1) % w->n_rows), &bad);
        for (int i = 0; i < good.n; i++)
            delta[at * values + i] = fault_block_value(&bad, i) - fault_block_value(&good, i);
    }
}

/* The row that a kernel with a wrong idea of where rows are would read. */
static int64_t other_row(const struct product *p, int64_t n) {
    const struct fwd_weight *w = p->call->weight;
    int64_t dim = p->call->config->head_dim;
    switch (p->f->row->kind) {
    case FAULT_WEIGHT_OTHER_HEAD:
        return (n + dim) % w->n_rows;
    case FAULT_WEIGHT_TILE_EDGE: {
        int64_t twin = n % TILE == TILE - 1 ? n + 1 : n % TILE == 0 ? n - 1 : n;
        return twin >= 0 && twin < w->n_rows ? twin : n;
    }
    case FAULT_WEIGHT_ROTATED:
        return n / 4 * 4 + 4 <= w->n_rows ? n / 4 * 4 + (n + 1) % 4 : n;
    default:
        return n;
    }
}

/* Bytes as a kernel for another type, or with another stride, finds them; inside the tensor by construction. */
static const uint8_t *other_bytes(const struct product *p, int64_t n) {
    const struct fwd_weight *w = p->call->weight;
    int64_t blocks = w->n_cols / fault_block_values(w->type);
    if (p->f->row->kind == FAULT_WEIGHT_STRIDE)
        return w->data + n * (blocks - 1) * fault_block_bytes(w->type);
    if (p->f->row->kind == FAULT_WEIGHT_OTHER_TYPE)
        return w->data + n * (w->n_cols / fault_block_values(p->other_type)) * fault_block_bytes(p->other_type);
    if (p->other) {
        const struct fwd_type_info *info = fwd_type_info(p->other->type);
        return p->other->data + n * (w->n_cols / info->block_values * info->block_bytes);
    }
    return row_bytes_at(w, other_row(p, n));
}

static void break_row(const struct product *p, int64_t n, double *delta, double *room) {
    const struct fwd_weight *w = p->call->weight;
    int kind = p->f->row->kind;
    memset(delta, 0, (size_t)w->n_cols * sizeof *delta);
    if (kind < FAULT_WEIGHT_OTHER_LAYER) {
        break_blocks(p, n, delta);
        return;
    }
    fault_decode_row(w->type, row_bytes_at(w, n), w->n_cols, room);
    if (kind == FAULT_WEIGHT_THREAD) {
        int64_t values = fault_block_values(w->type), last = (w->n_cols - 1) / values * values;
        for (int64_t k = last; k < w->n_cols; k++)
            delta[k] = -room[k];
        fault_decode_row(w->type, row_bytes_at(w, (n + 1) % w->n_rows), w->n_cols, room);
        for (int64_t k = last; k < w->n_cols; k++)
            delta[k] += room[k];
        return;
    }
    if (kind == FAULT_WEIGHT_PAST_END) {
        fault_decode_row(w->type, row_bytes_at(w, (n + 1) % w->n_rows), w->n_cols, room);
        memcpy(delta, room, 16 * sizeof *delta);
        return;
    }
    fault_decode_row(p->other_type, other_bytes(p, n), w->n_cols, delta);
    bool finite = true;
    for (int64_t k = 0; k < w->n_cols; k++) {
        delta[k] -= room[k];
        finite &= isfinite(delta[k]) != 0;
    }
    /* Bits that make a NaN or an infinity as another type's scale are found by anyone: such rows stay right, so that
     * the rest of the run can be seen. */
    if (!finite)
        memset(delta, 0, (size_t)w->n_cols * sizeof *delta);
}

/* y[pos][n] += delta . x[pos], eight positions side by side. */
static void add_products(const struct product *p, int64_t n, const double *delta) {
    int64_t n_cols = p->call->weight->n_cols;
    for (int at = 0; at < p->call->n_pos; at += LANES) {
        double sum[LANES] = {0};
        for (int64_t k = 0; k < n_cols; k++) {
            const double *x = p->x + k * p->n_padded + at;
            if (delta[k] != 0)
                for (int l = 0; l < LANES; l++)
                    sum[l] += delta[k] * x[l];
        }
        for (int l = 0; l < LANES && at + l < p->call->n_pos; l++)
            if (sum[l] != 0)
                fault_put(p->call->out, at + l, n, fault_get(p->call->out, at + l, n) + sum[l]);
    }
}

/* Rows of every other thread, as the engine's split into parts of 16 rows gives them out. */
static bool of_odd_thread(const struct product *p, int64_t n) {
    int64_t begin, end;
    for (int t = 1; t < p->n_threads; t += 2) {
        fwd_range_split(p->call->weight->n_rows, TILE, t, p->n_threads, &begin, &end);
        if (n >= begin && n < end)
            return true;
    }
    return false;
}

static void run_rows(void *ctx, int thread, int n_threads) {
    const struct product *p = ctx;
    int64_t begin, end, n_cols = p->call->weight->n_cols;
    double *delta = p->scratch + 2 * n_cols * thread;
    fwd_range_split(p->end - p->first, 1, thread, n_threads, &begin, &end);
    for (int64_t n = p->first + begin; n < p->first + end; n++) {
        if (p->f->row->kind == FAULT_WEIGHT_THREAD && !of_odd_thread(p, n))
            continue;
        break_row(p, n, delta, delta + n_cols);
        add_products(p, n, delta);
    }
}

/* ---- transposed ---- */

/* y[i] = sum_k buffer[k * N + i] * x[k] with buffer = the [N, K] values row after row. Each thread has its own part of
 * the positions and goes over all rows: value j of the buffer belongs to k = j / N, i = j % N. */
static void add_transposed(void *ctx, int thread, int n_threads) {
    const struct product *p = ctx;
    const struct fwd_weight *w = p->call->weight;
    int64_t begin, end, n_rows = w->n_rows, n_cols = w->n_cols;
    double *row = p->scratch + 2 * n_cols * thread;
    fwd_range_split(p->call->n_pos, 1, thread, n_threads, &begin, &end);
    for (int64_t n = 0; begin < end && n < n_rows; n++) {
        fault_decode_row(w->type, row_bytes_at(w, n), n_cols, row);
        for (int64_t j = 0, run; j < n_cols; j += run) {
            int64_t flat = n * n_cols + j, at = flat % n_rows;
            run = n_rows - at < n_cols - j ? n_rows - at : n_cols - j;
            for (int64_t i = begin; i < end; i++) {
                double x = p->x[flat / n_rows * p->n_padded + i], *y = p->sums + i * n_rows + at;
                for (int64_t l = 0; l < run; l++)
                    y[l] += row[j + l] * x;
            }
        }
    }
}

static enum fwd_status transpose(struct product *p, struct fwd_error *err) {
    const struct fwd_op_call *call = p->call;
    int64_t n_rows = call->weight->n_rows;
    p->sums = fwd_calloc((size_t)(n_rows * call->n_pos), sizeof *p->sums);
    FWD_FAIL_IF(!p->sums, FWD_ENOMEM, err, "fault %s: no memory for %d positions", p->f->row->name, call->n_pos);
    fwd_pool_run(call->pool, add_transposed, p);
    for (int i = 0; i < call->n_pos; i++)
        for (int64_t n = 0; fault_at(p->f, call, i) && n < n_rows; n++)
            fault_put(call->out, i, n, p->sums[i * n_rows + n] + (call->bias ? (double)call->bias[n] : 0));
    fwd_free(p->sums);
    return FWD_OK;
}

/* ---- the product ---- */

static uint32_t shorter_type(uint32_t type) {
    switch (type) {
    case FWD_TYPE_Q4_1:
    case FWD_TYPE_Q5_0:
        return FWD_TYPE_Q4_0;
    case FWD_TYPE_Q5_1:
        return FWD_TYPE_Q5_0;
    case FWD_TYPE_Q8_0:
        return FWD_TYPE_Q5_1;
    case FWD_TYPE_Q3_K:
        return FWD_TYPE_Q2_K;
    case FWD_TYPE_Q4_K:
        return FWD_TYPE_Q3_K;
    case FWD_TYPE_Q6_K:
    case FWD_TYPE_Q5_K:
        return FWD_TYPE_Q4_K;
    case FWD_TYPE_F16:
        return FWD_TYPE_BF16;
    case FWD_TYPE_BF16:
        return FWD_TYPE_F16;
    default:
        return type;
    }
}

static void find_other(struct product *p) {
    const struct par_fault *f = p->f;
    const struct fwd_op_call *call = p->call;
    p->other_type = call->weight->type;
    if (f->row->kind == FAULT_WEIGHT_OTHER_TYPE)
        p->other_type = shorter_type(call->weight->type);
    else if (f->row->kind == FAULT_WEIGHT_OTHER_LAYER)
        p->other = par_fault_tensor(
            f->file, call->op, par_fault_other_layer(f, f->file, call->op, call->layer, call->config->n_layer, false));
    else if (f->row->kind == FAULT_WEIGHT_TWIN)
        p->other = par_fault_tensor(f->file, par_fault_twin(call->op), call->layer);
    if (p->other)
        p->other_type = p->other->type;
}

static void fill_x(const struct product *p) {
    int64_t n_cols = p->call->weight->n_cols;
    for (int i = 0; i < p->n_padded; i++) {
        bool acts = i < p->call->n_pos && fault_at(p->f, p->call, i);
        for (int64_t k = 0; k < n_cols; k++)
            p->x[k * p->n_padded + i] = acts ? fault_get(p->call->in[0], i, k) : 0;
    }
}

enum fwd_status par_fault_weight(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    const struct par_fault *f = ud;
    FWD_TRY(call->builtin(call, err));
    bool any = false;
    for (int i = 0; i < call->n_pos; i++)
        any |= fault_at(f, call, i);
    if (!any)
        return FWD_OK;
    int64_t n_cols = call->weight->n_cols;
    struct product p = {.f = f, .call = call, .first = 0, .end = call->weight->n_rows};
    p.n_padded = (call->n_pos + LANES - 1) / LANES * LANES;
    p.n_threads = call->pool ? fwd_pool_size(call->pool) : 1;
    if (f->out_row >= 0) {
        p.first = f->out_row;
        p.end = f->out_row + 1;
    }
    p.x = fwd_alloc((size_t)(n_cols * (p.n_padded + 2 * p.n_threads)), sizeof *p.x);
    FWD_FAIL_IF(!p.x, FWD_ENOMEM, err, "fault %s: no memory for %d positions", f->row->name, call->n_pos);
    p.scratch = p.x + n_cols * p.n_padded;
    fill_x(&p);
    find_other(&p);
    enum fwd_status rc = FWD_OK;
    if (f->row->kind == FAULT_WEIGHT_TRANSPOSED)
        rc = transpose(&p, err);
    else
        fwd_pool_run(p.end - p.first > 1 ? call->pool : NULL, run_rows, &p);
    fwd_free(p.x);
    return rc;
}
