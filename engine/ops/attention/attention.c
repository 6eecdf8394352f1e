/* engine/ops/attention/attention.c: what the variants share: how heads and positions are cut into units, and how a
 * segment joins the ones before it. No choice made here changes a result. */
#include "ops/attention/attention.h"

#include "ops/expf/expf.h"

#include <string.h>

/* Positions that one unit of work covers: enough to keep a segment of keys in L2 while it is read again. */
enum { BLOCK = 8 };

bool fwd_attention_serves(const char *variant, int head_dim) {
    return head_dim % 16 == 0 || !strcmp(variant, "ref");
}

size_t fwd_attention_scratch(int head_dim) {
    return (size_t)FWD_ATTENTION_HEADS * (FWD_ATTENTION_SEGMENT + ((size_t)head_dim + 15) / 16 * 16);
}

int fwd_attention_groups(const struct fwd_config *config, struct fwd_attention_group *groups) {
    int n_groups = 0;
    for (int kv = 0; kv < config->n_kv_head; kv++) {
        int n_left = 0;
        for (int h = 0; h < config->n_head; h++)
            n_left += config->kv_head_of[h] == kv;
        int n_parts = (n_left + FWD_ATTENTION_HEADS - 1) / FWD_ATTENTION_HEADS;
        for (int h = 0; n_parts > 0; n_parts--) {
            struct fwd_attention_group *g = &groups[n_groups++];
            *g = (struct fwd_attention_group){.kv_head = kv};
            int n_heads = (n_left + n_parts - 1) / n_parts;
            n_left -= n_heads;
            for (; g->n_heads < n_heads; h++)
                if (config->kv_head_of[h] == kv)
                    g->heads[g->n_heads++] = h;
        }
    }
    return n_groups;
}

void fwd_attention_join(struct fwd_attention_state *state, float max, float sum, float *a, float *b) {
    float top = max > state->max ? max : state->max;
    *a = fwd_expf(state->max - top);
    *b = fwd_expf(max - top);
    state->sum = fmaf(state->sum, *a, sum * *b);
    state->max = top;
}

struct job {
    const struct fwd_attention_args *args;
    attention_fn *kernel;
};

static void run_position(const struct job *job, const struct fwd_attention_group *g, int i, float *scratch) {
    const struct fwd_attention_args *a = job->args;
    int head_dim = a->config->head_dim;
    int64_t row = (int64_t)i * a->config->n_head * head_dim;
    struct fwd_attention_unit unit = {.n_heads = g->n_heads,
                                      .k = a->k + g->kv_head * a->stride_head_k,
                                      .v = a->v + g->kv_head * a->stride_head_v,
                                      .stride_k = a->stride_row_k,
                                      .stride_v = a->stride_row_v,
                                      .kv_type = a->kv_type,
                                      .n_keys = a->pos0 + i + 1,
                                      .head_dim = head_dim,
                                      .scale = 1.0f / sqrtf((float)head_dim),
                                      .scratch = scratch};
    for (int h = 0; h < g->n_heads; h++) {
        unit.q[h] = a->q + row + (int64_t)g->heads[h] * head_dim;
        unit.o[h] = a->o + row + (int64_t)g->heads[h] * head_dim;
    }
    job->kernel(&unit);
}

static void run_units(void *ctx, int thread, int n_threads) {
    const struct job *job = ctx;
    const struct fwd_attention_args *a = job->args;
    float *scratch = a->scratch + (size_t)thread * fwd_attention_scratch(a->config->head_dim);
    int n_blocks = (a->n_pos + BLOCK - 1) / BLOCK;
    for (int u = 0; u < n_blocks * a->n_groups; u++) {
        /* forth and back over the threads: later blocks have more keys */
        int turn = u % (2 * n_threads);
        if (turn != thread && turn != 2 * n_threads - 1 - thread)
            continue;
        int begin = u / a->n_groups * BLOCK;
        int end = begin + BLOCK < a->n_pos ? begin + BLOCK : a->n_pos;
        for (int i = begin; i < end; i++)
            run_position(job, &a->groups[u % a->n_groups], i, scratch);
    }
}

void fwd_attention(const struct fwd_attention_args *args, attention_fn *kernel) {
    struct job job = {.args = args, .kernel = kernel};
    fwd_pool_run(args->pool, run_units, &job);
}
