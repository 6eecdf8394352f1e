/* engine/ops/matmul_q/matmul_q.c: packing a weight for the chosen variant, and splitting a product over threads and
 * cache-sized parts. No arithmetic here. */
#include "ops/matmul_q/matmul_q.h"

#include "core/hash.h"
#include "core/memory.h"
#include "ops/matmul_q/matmul_q_kernel.h"
#include "ops/table.h"

#include <string.h>

struct fwd_packed {
    const struct fwd_matmul_q_kernel *kernel;
    const char *variant;
    uint32_t type;
    int64_t n_rows, n_cols, n_blocks; /* n_blocks: in a row */
    int64_t block_bytes;              /* of one row's block in the file */
    const uint8_t *data;
    uint8_t *owned; /* data, or NULL when data lies in the file */
};

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
    /* the scale product, a superblock's integer to F32 (a 32-block's fits in 24 bits), the bias */
    out->final_roundings = 1 + (kquant ? 1 : 0) + (has_bias ? 1 : 0);
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

enum fwd_status fwd_packed_create(struct fwd_packed **out, const struct fwd_gguf *file, const struct fwd_weight *w,
                                  unsigned caps, const char *variant, struct fwd_pool *pool, struct fwd_error *err) {
    const struct fwd_type_info *info = fwd_type_info(w->type);
    FWD_FAIL_IF(fwd_matmul_q_act(w->type) == FWD_F32, FWD_ETYPE, err,
                "%s: type %s, expected one of the block-quantised types", w->name, fwd_type_name(w->type));
    FWD_FAIL_IF(w->n_cols % info->block_values != 0, FWD_ESHAPE, err,
                "%s: rows of %lld values, expected a multiple of %u", w->name, (long long)w->n_cols,
                info->block_values);
    struct fwd_packed *p = fwd_calloc(1, sizeof *p);
    FWD_FAIL_IF(!p, FWD_ENOMEM, err, "%s: no memory to bind it", w->name);
    enum fwd_status st = choose_kernel(p, w, caps, variant, err);
    if (st != FWD_OK) {
        fwd_free(p);
        return st;
    }
    p->type = w->type;
    p->n_rows = w->n_rows;
    p->n_cols = w->n_cols;
    p->n_blocks = w->n_cols / info->block_values;
    p->block_bytes = info->block_bytes;
    p->data = w->data;
    (void)file;
    (void)pool;
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
    return fwd_hash64(p->data, (size_t)(p->n_rows * p->n_blocks * p->block_bytes));
}

size_t fwd_matmul_q_scratch(int64_t max_cols, int n_batch, int n_threads) {
    (void)max_cols;
    (void)n_batch;
    (void)n_threads;
    return 0;
}

static void run_part(void *ctx, int thread, int n_threads) {
    const struct fwd_matmul_q_args *args = ctx;
    const struct fwd_packed *w = args->w;
    struct fwd_matmul_q_job job = {.packed = w->data,
                                   .n_rows = w->n_rows,
                                   .n_blocks = w->n_blocks,
                                   .block_end = w->n_blocks,
                                   .act = args->act,
                                   .act_stride = args->act_stride,
                                   .n_pos = args->n_pos,
                                   .bias = args->bias,
                                   .y = args->y,
                                   .ld_y = args->ld_y};
    int64_t n_strips = (w->n_rows + w->kernel->rows - 1) / w->kernel->rows;
    fwd_range_split(n_strips, 1, thread, n_threads, &job.strip_begin, &job.strip_end);
    if (job.strip_begin < job.strip_end)
        w->kernel->run(&job);
}

void fwd_matmul_q(const struct fwd_matmul_q_args *args) {
    fwd_pool_run(args->pool, run_part, (void *)args);
}
