/* engine/ops/matmul_q/matmul_q.c: packing a weight for the chosen variant, and splitting a product over threads and
 * cache-sized parts. No arithmetic here. */
#include "ops/matmul_q/matmul_q.h"

#include "core/hash.h"
#include "core/memory.h"
#include "ops/matmul_q/matmul_q_kernel.h"
#include "ops/matmul_q/matmul_q_layout.h"
#include "ops/variant_table.h"

#include <string.h>

struct fwd_packed {
    const struct fwd_matmul_q_kernel *kernel;
    const char *variant;
    int block_values;
    int64_t n_rows, n_blocks; /* n_blocks: in a row */
    int64_t n_strips;
    const struct fwd_layout *layout;
    const uint8_t *data;
    uint8_t *owned; /* data, or NULL when data lies in the file */
};

/* Bytes of a strip's block. */
static int64_t packed_block_bytes(const struct fwd_packed *p) {
    return (int64_t)p->layout->block_bytes * p->kernel->rows;
}

static bool is_kquant(uint32_t type) {
    return type == FWD_TYPE_Q2_K || type == FWD_TYPE_Q3_K || type == FWD_TYPE_Q4_K || type == FWD_TYPE_Q5_K ||
           type == FWD_TYPE_Q6_K;
}

static bool is_block32(uint32_t type) {
    return type == FWD_TYPE_Q4_0 || type == FWD_TYPE_Q4_1 || type == FWD_TYPE_Q5_0 || type == FWD_TYPE_Q5_1 ||
           type == FWD_TYPE_Q8_0;
}

enum fwd_dtype fwd_matmul_q_act(uint32_t weight_type) {
    return is_kquant(weight_type) ? FWD_Q8_K : is_block32(weight_type) ? FWD_Q8_32 : FWD_F32;
}

void fwd_matmul_q_numerics(uint32_t weight_type, bool has_bias, struct fwd_numerics *out) {
    bool kquant = is_kquant(weight_type);
    bool has_min = weight_type == FWD_TYPE_Q2_K || weight_type == FWD_TYPE_Q4_K || weight_type == FWD_TYPE_Q5_K ||
                   weight_type == FWD_TYPE_Q4_1 || weight_type == FWD_TYPE_Q5_1;
    memset(out, 0, sizeof *out);
    out->size = sizeof *out;
    out->act = fwd_matmul_q_act(weight_type);
    out->act_rule = FWD_ACT_AMAX127;
    out->accumulator = FWD_ACC_F32;
    out->chain_block = kquant ? 256 : 32;
    out->chain_per_block = has_min ? 2 : 1;
    /* the scale product, a superblock's integer to F32 (a 32-block's fits in 24 bits) */
    out->term_roundings = 1 + (kquant ? 1 : 0);
    out->lanes = 1;
    out->final_roundings = has_bias ? 1 : 0;
    out->fma = true;
    out->store = FWD_F32;
}

static enum fwd_status choose_kernel(struct fwd_packed *p, const struct fwd_weight *w, unsigned caps,
                                     const char *variant, struct fwd_error *err) {
    const struct fwd_variant *row;
    for (int i = 0; (row = fwd_variant_row(i)) != NULL; i++) {
        if (strcmp(row->op, "matmul_q") != 0 || (row->needs & ~caps) || (variant && strcmp(row->variant, variant) != 0))
            continue;
        p->kernel = ((matmul_q_fn *)row->fn)(w->type);
        p->variant = row->variant;
        if (p->kernel)
            return FWD_OK;
    }
    FWD_FAIL(FWD_EUNAVAILABLE, err, "%s: no matmul_q variant \"%s\" for %s within the allowed processor levels",
             w->name, variant ? variant : "any", fwd_type_name(w->type));
}

struct pack_task {
    struct fwd_packed *packed;
    const uint8_t *src;
    int64_t row_bytes;
};

/* Block after block, so that the strip's block stays in the nearest cache while its rows are filled in. */
static void pack_strips(void *ctx, int thread, int n_threads) {
    const struct pack_task *task = ctx;
    const struct fwd_packed *p = task->packed;
    int rows = p->kernel->rows;
    int64_t begin, end;
    fwd_range_split(p->n_strips, 1, thread, n_threads, &begin, &end);
    uint8_t *dst = p->owned + begin * p->n_blocks * packed_block_bytes(p);
    for (int64_t strip = begin; strip < end; strip++)
        for (int64_t b = 0; b < p->n_blocks; b++, dst += packed_block_bytes(p))
            for (int r = 0; r < rows; r++) {
                int64_t row = strip * rows + r;
                const uint8_t *src =
                    row < p->n_rows ? task->src + row * task->row_bytes + b * p->layout->block_bytes : NULL;
                fwd_layout_pack(p->layout, rows, r, src, dst);
            }
}

enum fwd_status fwd_packed_create(struct fwd_packed **out, const struct fwd_gguf *file, const struct fwd_weight *w,
                                  unsigned caps, const char *variant, struct fwd_pool *pool, struct fwd_error *err) {
    FWD_FAIL_IF(fwd_matmul_q_act(w->type) == FWD_F32, FWD_ETYPE, err,
                "%s: type %u, expected one of the block-quantised types", w->name, (unsigned)w->type);
    int block = is_kquant(w->type) ? 256 : 32;
    FWD_FAIL_IF(w->n_rows < 1 || w->n_cols < 1 || w->n_cols % block != 0, FWD_ESHAPE, err,
                "%s: %lld rows of %lld values, expected at least one of a multiple of %d", w->name,
                (long long)w->n_rows, (long long)w->n_cols, block);
    struct fwd_packed *p = fwd_calloc(1, sizeof *p);
    FWD_FAIL_IF(!p, FWD_ENOMEM, err, "%s: no memory to bind it", w->name);
    enum fwd_status st = choose_kernel(p, w, caps, variant, err);
    if (st != FWD_OK) {
        fwd_free(p);
        return st;
    }
    p->block_values = block;
    p->n_rows = w->n_rows;
    p->n_blocks = w->n_cols / block;
    p->n_strips = (w->n_rows + p->kernel->rows - 1) / p->kernel->rows;
    p->layout = fwd_layout_for(w->type);
    p->data = w->data;
    if (p->kernel->rows > 1) {
        int64_t n_bytes = p->n_strips * p->n_blocks * packed_block_bytes(p);
        p->owned = fwd_alloc_huge((size_t)n_bytes);
        if (!p->owned) {
            fwd_free(p);
            FWD_FAIL(FWD_ENOMEM, err, "%s: no memory for %lld bytes of packed weight", w->name, (long long)n_bytes);
        }
        fwd_pool_run(pool, pack_strips, &(struct pack_task){p, w->data, w->row_bytes});
        p->data = p->owned;
        if (file && w->tensor)
            fwd_gguf_drop_pages(file, w->tensor);
    }
    *out = p;
    return FWD_OK;
}

void fwd_packed_free(struct fwd_packed *p) {
    if (!p)
        return;
    fwd_free(p->owned);
    fwd_free(p);
}

const char *fwd_packed_variant(const struct fwd_packed *p) {
    return p->variant;
}

const char *fwd_packed_layout(const struct fwd_packed *p) {
    return p->kernel->layout;
}

uint64_t fwd_packed_checksum(const struct fwd_packed *p) {
    int rows = p->kernel->rows;
    int64_t file_block = p->layout->block_bytes;
    if (rows == 1)
        return fwd_hash64(p->data, (size_t)(p->n_rows * p->n_blocks * file_block));
    struct fwd_hash hash;
    fwd_hash_begin(&hash);
    for (int64_t row = 0; row < p->n_rows; row++) {
        const uint8_t *src = p->data + row / rows * p->n_blocks * packed_block_bytes(p);
        for (int64_t b = 0; b < p->n_blocks; b++, src += packed_block_bytes(p)) {
            uint8_t block[FWD_LAYOUT_MAX_BYTES];
            fwd_layout_unpack(p->layout, rows, (int)(row % rows), src, block);
            fwd_hash_add(&hash, block, (size_t)file_block);
        }
    }
    return fwd_hash_end(&hash);
}

size_t fwd_matmul_q_scratch(int64_t max_cols, int n_batch, int n_threads) {
    (void)max_cols;
    (void)n_batch;
    (void)n_threads;
    return 0;
}

/* Activations of all positions that a core's level-2 cache should hold while the weights stream past them. */
enum { ACT_CACHE_BYTES = 512 * 1024, MIN_PART_VALUES = 1024 };

/* Blocks of K to do at a time: the chains are parked in y between parts, which rounds nothing. */
static int64_t blocks_per_part(const struct fwd_matmul_q_args *args) {
    const struct fwd_packed *w = args->w;
    int64_t fit = ACT_CACHE_BYTES / ((int64_t)w->block_values * args->n_pos), least = MIN_PART_VALUES / w->block_values;
    if (fit < least)
        fit = least;
    int64_t n_parts = (w->n_blocks + fit - 1) / fit;
    return (w->n_blocks + n_parts - 1) / n_parts;
}

static void run_part(void *ctx, int thread, int n_threads) {
    const struct fwd_matmul_q_args *args = ctx;
    const struct fwd_packed *w = args->w;
    struct fwd_matmul_q_job job = {.packed = w->data,
                                   .n_rows = w->n_rows,
                                   .n_blocks = w->n_blocks,
                                   .act = args->act,
                                   .act_stride = args->act_stride,
                                   .n_pos = args->n_pos,
                                   .bias = args->bias,
                                   .y = args->y,
                                   .ld_y = args->ld_y};
    fwd_range_split(w->n_strips, 1, thread, n_threads, &job.strip_begin, &job.strip_end);
    if (job.strip_begin >= job.strip_end)
        return;
    int64_t step = blocks_per_part(args);
    for (int64_t b = 0; b < w->n_blocks; b += step) {
        job.block_begin = b;
        job.block_end = b + step < w->n_blocks ? b + step : w->n_blocks;
        w->kernel->run(&job);
    }
}

void fwd_matmul_q(const struct fwd_matmul_q_args *args) {
    fwd_pool_run(args->pool, run_part, (void *)args);
}
