/* engine/ops/matmul_f/matmul_drive.c: see matmul_drive.h. Which thread takes which strip changes nothing in the result:
 * each output element is computed by one thread, in the canonical order. */
#include "ops/matmul_f/matmul_drive.h"

#include "ops/matmul_f/matmul_f.h"
#include "quant/quant.h"

#include <assert.h>
#include <stdatomic.h>
#include <string.h>

/* One thread's part of the scratch, in bytes; the packed positions, shared by all, come before the first. */
struct scratch_plan {
    size_t packed, rows, panel, sums, thread;
};

static size_t round_up(size_t n) {
    return (n + 63) / 64 * 64;
}

static struct scratch_plan plan_scratch(size_t real_bytes, int64_t n_cols, int n_pos) {
    size_t n = (size_t)(n_pos < MATMUL_CHUNK ? n_pos : MATMUL_CHUNK);
    struct scratch_plan p;
    p.packed = round_up(n * (size_t)n_cols * real_bytes);
    p.rows = round_up(MATMUL_STRIP * MATMUL_DEPTH * sizeof(float));
    p.panel = round_up(MATMUL_STRIP * MATMUL_DEPTH * real_bytes);
    p.sums = round_up(n * MATMUL_STRIP * real_bytes);
    p.thread = p.rows + p.panel + p.sums;
    return p;
}

static size_t scratch_bytes(size_t real_bytes, int64_t max_cols, int n_batch, int n_threads) {
    struct scratch_plan p = plan_scratch(real_bytes, max_cols, n_batch);
    return p.packed + p.thread * (size_t)n_threads;
}

size_t fwd_matmul_f_scratch(int64_t max_cols, int n_batch, int n_threads) {
    return scratch_bytes(sizeof(float), max_cols, n_batch, n_threads);
}

size_t fwd_matmul_d_scratch(int64_t max_cols, int n_batch, int n_threads) {
    return scratch_bytes(sizeof(double), max_cols, n_batch, n_threads);
}

static void declare_numerics(enum fwd_dtype real, enum fwd_accumulator accumulator, bool has_bias,
                             struct fwd_numerics *out) {
    *out = (struct fwd_numerics){.size = sizeof *out,
                                 .act = real,
                                 .act_rule = FWD_ACT_NONE,
                                 .accumulator = accumulator,
                                 .chain_block = MATMUL_CHAIN,
                                 .chain_per_block = 1,
                                 .chain_extra = MATMUL_CHAIN,
                                 .lanes = 1,
                                 .segment = MATMUL_CHAIN,
                                 .final_roundings = has_bias ? 1 : 0,
                                 .fma = true,
                                 .store = real};
}

void fwd_matmul_f_numerics(bool has_bias, struct fwd_numerics *out) {
    declare_numerics(FWD_F32, FWD_ACC_F32, has_bias, out);
}

void fwd_matmul_d_numerics(bool has_bias, struct fwd_numerics *out) {
    declare_numerics(FWD_F64, FWD_ACC_F64, has_bias, out);
}

/* One pass over W for up to MATMUL_CHUNK positions. */
struct chunk {
    const struct matmul_call *call;
    struct scratch_plan plan;
    int pos0, n_pos, n_tiles;
    atomic_int_fast64_t next_strip;
};

/* Positions are cut into tiles as even as can be: 78 are 6 x 13, not 5 x 14 + 8. */
static int tile_begin(const struct chunk *c, int tile) {
    return (int)((int64_t)c->n_pos * tile / c->n_tiles);
}

static void pack_tiles(struct chunk *c, int thread, int n_threads) {
    const struct matmul_call *call = c->call;
    const struct matmul_kernel *k = call->kernel;
    int64_t n_cols = call->w->n_cols, begin, end;
    fwd_range_split(c->n_tiles, 1, thread, n_threads, &begin, &end);
    for (int tile = (int)begin; tile < (int)end; tile++) {
        int p0 = tile_begin(c, tile), p1 = tile_begin(c, tile + 1);
        const uint8_t *x = (const uint8_t *)call->x + (size_t)((c->pos0 + p0) * call->ld_x) * k->real_bytes;
        k->pack_positions(x, call->ld_x, n_cols, p1 - p0,
                          (uint8_t *)call->scratch + (size_t)(p0 * n_cols) * k->real_bytes);
    }
}

/* Rows row0 .. row0 + 31, columns col0 .. col0 + n_k - 1; rows past the matrix are zero. */
static void decode_rows(const struct fwd_weight *w, fwd_decode_fn *decode, int64_t row0, int64_t col0, int64_t n_k,
                        float *rows) {
    const struct fwd_type_info *type = fwd_type_info(w->type);
    const uint8_t *src = w->data + row0 * w->row_bytes + col0 / type->block_values * type->block_bytes;
    for (int64_t r = 0; r < MATMUL_STRIP; r++) {
        if (row0 + r < w->n_rows)
            decode(src + r * w->row_bytes, rows + r * MATMUL_DEPTH, n_k);
        else
            memset(rows + r * MATMUL_DEPTH, 0, (size_t)n_k * sizeof(float));
    }
}

static void multiply_strip(struct chunk *c, int64_t row0, uint8_t *mine) {
    const struct matmul_call *call = c->call;
    const struct matmul_kernel *k = call->kernel;
    const struct fwd_weight *w = call->w;
    float *rows = (float *)(void *)mine;
    uint8_t *panel = mine + c->plan.rows, *sums = panel + c->plan.panel;
    fwd_decode_fn *decode = fwd_decode_for(w->type);
    memset(sums, 0, (size_t)c->n_pos * MATMUL_STRIP * k->real_bytes);
    for (int64_t col0 = 0; col0 < w->n_cols; col0 += MATMUL_DEPTH) {
        int64_t n_k = w->n_cols - col0 < MATMUL_DEPTH ? w->n_cols - col0 : MATMUL_DEPTH;
        decode_rows(w, decode, row0, col0, n_k, rows);
        k->pack_panel(rows, n_k, panel);
        for (int tile = 0; tile < c->n_tiles; tile++) {
            int p0 = tile_begin(c, tile), n = tile_begin(c, tile + 1) - p0;
            size_t packed = (size_t)(p0 * w->n_cols + col0 * n) * k->real_bytes;
            k->add_tile(panel, (uint8_t *)call->scratch + packed, n_k, n,
                        sums + (size_t)p0 * MATMUL_STRIP * k->real_bytes);
        }
    }
    int n_rows = w->n_rows - row0 < MATMUL_STRIP ? (int)(w->n_rows - row0) : MATMUL_STRIP;
    uint8_t *y = (uint8_t *)call->y + (size_t)(c->pos0 * call->ld_y + row0) * k->real_bytes;
    k->store_sums(sums, call->bias ? call->bias + row0 : NULL, c->n_pos, n_rows, y, call->ld_y);
}

static void multiply_chunk(void *ctx, int thread, int n_threads) {
    struct chunk *c = ctx;
    pack_tiles(c, thread, n_threads);
    fwd_pool_barrier(c->call->pool);
    uint8_t *mine = (uint8_t *)c->call->scratch + c->plan.packed + c->plan.thread * (size_t)thread;
    int64_t n_strips = (c->call->w->n_rows + MATMUL_STRIP - 1) / MATMUL_STRIP;
    for (int64_t s; (s = atomic_fetch_add(&c->next_strip, 1)) < n_strips;)
        multiply_strip(c, s * MATMUL_STRIP, mine);
}

void fwd_matmul_drive(const struct matmul_call *call) {
    assert(fwd_decode_for(call->w->type) && call->w->data);
    for (int pos0 = 0; pos0 < call->n_pos; pos0 += MATMUL_CHUNK) {
        struct chunk c = {.call = call, .pos0 = pos0};
        c.n_pos = call->n_pos - pos0 < MATMUL_CHUNK ? call->n_pos - pos0 : MATMUL_CHUNK;
        c.n_tiles = (c.n_pos + call->kernel->max_tile - 1) / call->kernel->max_tile;
        c.plan = plan_scratch(call->kernel->real_bytes, call->w->n_cols, call->n_pos);
        atomic_init(&c.next_strip, 0);
        fwd_pool_run(call->pool, multiply_chunk, &c);
    }
}
