/* test_cuda_step.c: the fused step of one token against the ops of the CPU called one by one: every tap, the cache's
 * new rows and the logits, bit for bit, for models made here. `test_cuda_step bench 7b|1.5b [context [once]]` times
 * graph replays of the true shapes with random weights instead. */
#include "core/half.h"
#include "cuda/kernels.h"
#include "format/gguf.h"
#include "ops/act_quant/act_quant.h"
#include "ops/add/add.h"
#include "ops/attention/attention.h"
#include "ops/matmul_q/matmul_q.h"
#include "ops/matmul_q/matmul_q_kernel.h"
#include "ops/rmsnorm/rmsnorm.h"
#include "ops/rope/rope.h"
#include "ops/swiglu/swiglu.h"
#include "test/cuda_test.h"

#include <math.h>

matmul_q_fn matmul_q_ref;
act_quant_k_fn act_quant_k_ref;
act_quant_32_fn act_quant_32_ref;
rmsnorm_fn rmsnorm_ref;
rope_fn rope_ref;
attention_fn attention_ref;
swiglu_fn swiglu_ref;
add_fn add_ref;

/* ---- made models ---- */

enum { MOST_LAYERS = 2, N_MATS = 7 };
enum { WQ, WK, WV, WO, GATE, UP, DOWN };

struct shape {
    const char *name;
    int n_embd, n_ff, n_head, n_kv_head, head_dim, n_rope, n_ctx, n_vocab;
    bool neox, bias;
    enum fwd_dtype kv_type;
    uint32_t types[MOST_LAYERS][N_MATS]; /* wq wk wv wo gate up down */
    uint32_t output;
    int positions[8]; /* 0-terminated after the first */
};

#define K4 FWD_TYPE_Q4_K
#define K6 FWD_TYPE_Q6_K
static const struct shape shapes[] = {
    {"Q4_K and Q6_K, 7 heads to a KV head, bias",
     1792,
     2560,
     14,
     2,
     128,
     128,
     700,
     1003,
     true,
     true,
     FWD_F16,
     {{K4, K4, K6, K4, K4, K4, K6}, {K4, K4, K4, K4, K4, K4, K4}},
     K6,
     {0, 1, 62, 63, 64, 256, 511, 640}},
    {"Q4_1 and Q8_0, 576 wide",
     576,
     1536,
     9,
     3,
     64,
     64,
     600,
     515,
     false,
     false,
     FWD_F32,
     {{FWD_TYPE_Q4_1, FWD_TYPE_Q4_1, FWD_TYPE_Q4_1, FWD_TYPE_Q4_1, FWD_TYPE_Q4_1, FWD_TYPE_Q4_1, FWD_TYPE_Q4_1},
      {FWD_TYPE_Q4_1, FWD_TYPE_Q4_1, FWD_TYPE_Q8_0, FWD_TYPE_Q4_1, FWD_TYPE_Q4_1, FWD_TYPE_Q4_1, FWD_TYPE_Q8_0}},
     FWD_TYPE_Q8_0,
     {0, 63, 256, 513}},
    {"every type, formats mixed in one launch",
     768,
     1280,
     12,
     2,
     64,
     48,
     300,
     300,
     true,
     true,
     FWD_F16,
     {{FWD_TYPE_Q5_K, FWD_TYPE_Q2_K, FWD_TYPE_Q8_0, FWD_TYPE_Q3_K, FWD_TYPE_Q5_0, K6, FWD_TYPE_Q4_0},
      {FWD_TYPE_Q5_1, FWD_TYPE_Q4_1, FWD_TYPE_Q3_K, FWD_TYPE_Q5_0, FWD_TYPE_Q2_K, FWD_TYPE_Q5_K, FWD_TYPE_Q2_K}},
     FWD_TYPE_Q3_K,
     {0, 5, 257}},
    {"896 wide, rows of 74 superblocks",
     896,
     18944,
     7,
     1,
     128,
     128,
     300,
     77,
     true,
     false,
     FWD_F32,
     {{FWD_TYPE_Q5_0, FWD_TYPE_Q5_0, FWD_TYPE_Q8_0, FWD_TYPE_Q5_0, FWD_TYPE_Q5_0, FWD_TYPE_Q5_0, K6},
      {FWD_TYPE_Q4_0, FWD_TYPE_Q4_0, FWD_TYPE_Q4_0, FWD_TYPE_Q4_0, FWD_TYPE_Q4_0, FWD_TYPE_Q4_0, K4}},
     FWD_TYPE_Q8_0,
     {0, 299}},
    {"4097 keys",
     1024,
     512,
     8,
     2,
     128,
     128,
     4352,
     40,
     true,
     true,
     FWD_F16,
     {{K4, K4, K6, K4, K4, K4, K6}, {K6, K6, K6, K6, K6, K6, K4}},
     K4,
     {4096, 1023}},
    {"one query head to a KV head",
     512,
     512,
     8,
     8,
     64,
     64,
     1100,
     40,
     false,
     false,
     FWD_F16,
     {{K4, K4, K6, K4, K4, K4, K6}, {K6, K6, K6, K6, K6, K6, K4}},
     K4,
     {100, 1030}},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static uint64_t rng = 1;

static uint32_t next_random(void) {
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng >> 33);
}

static float next_float(float scale) {
    return ((float)next_random() / 1073741824.0f - 1.0f) * scale;
}

static float *random_floats(int64_t n, float offset, float scale) {
    float *x = malloc((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++)
        x[i] = offset + next_float(scale);
    return x;
}

struct matrix {
    uint32_t type;
    int n_rows, n_cols;
    int64_t row_bytes;
    uint8_t *file;
    float *bias;
    struct cuda_linear dev;
};

/* Where a block keeps its binary16 scales. */
static void scale_offsets(uint32_t type, int *d, int *m) {
    *d = type == FWD_TYPE_Q2_K ? 80 : type == FWD_TYPE_Q3_K ? 108 : type == FWD_TYPE_Q6_K ? 208 : 0;
    *m = type == FWD_TYPE_Q2_K                                                                   ? 82
         : type == K4 || type == FWD_TYPE_Q5_K || type == FWD_TYPE_Q4_1 || type == FWD_TYPE_Q5_1 ? 2
                                                                                                 : -1;
}

static int block_bytes(uint32_t type) {
    return type == FWD_TYPE_Q3_K ? 110 /* its scales are widened in a tile */
                                 : (int)(fwd_tile_bytes(type) / 8 / (type >= FWD_TYPE_Q2_K ? 1 : 8));
}

static void put_half(uint8_t *to, float x) {
    uint16_t h = fwd_f32_to_f16(x);
    memcpy(to, &h, 2);
}

static struct matrix make_matrix(uint32_t type, int n_rows, int n_cols, bool bias) {
    int block = type >= FWD_TYPE_Q2_K ? 256 : 32, bytes = block_bytes(type), d, m;
    struct matrix w = {type, n_rows, n_cols, (int64_t)(n_cols / block) * bytes, NULL, NULL, {0}};
    w.file = malloc((size_t)(w.row_bytes * n_rows));
    scale_offsets(type, &d, &m);
    float size = 1.0f / sqrtf((float)n_cols) /
                 (type == FWD_TYPE_Q6_K   ? 1000.0f
                  : type >= FWD_TYPE_Q2_K ? 200.0f
                                          : 8.0f);
    for (int64_t i = 0; i < w.row_bytes * n_rows; i++)
        w.file[i] = (uint8_t)next_random();
    for (int64_t b = 0; b < w.row_bytes * n_rows; b += bytes) {
        put_half(w.file + b + d, next_float(4.0f * size));
        if (m >= 0)
            put_half(w.file + b + m, next_float(size));
    }
    if (bias)
        w.bias = random_floats(n_rows, 0.0f, 0.5f);
    size_t n_tiles = fwd_tiles_bytes(type, n_rows, n_cols);
    uint8_t *tiles = malloc(n_tiles);
    fwd_tiles_pack(type, w.file, w.row_bytes, n_rows, n_cols, 0, (n_rows + 7) / 8, tiles);
    w.dev = (struct cuda_linear){CUDA_FORM_TILES,
                                 type,
                                 fwd_matmul_q_act(type),
                                 n_rows,
                                 n_cols,
                                 (n_cols + 255) / 256,
                                 cuda_test_put(tiles, n_tiles),
                                 NULL,
                                 bias ? cuda_test_put(w.bias, (size_t)n_rows * 4) : NULL};
    free(tiles);
    return w;
}

/* Taps of one layer, one behind the other in the order of the ops: what differs first is at fault. */
#define TAPS                                                                                                           \
    X(attn_norm, 4 * embd)                                                                                             \
    X(attn_norm_q8_k, 2 * embd)                                                                                        \
    X(attn_norm_q8_32, 2 * embd)                                                                                       \
    X(q, 4 * heads)                                                                                                    \
    X(k, 4 * kv)                                                                                                       \
    X(v, 4 * kv)                                                                                                       \
    X(q_rope, 4 * heads)                                                                                               \
    X(k_rope, 4 * kv)                                                                                                  \
    X(heads, 4 * heads)                                                                                                \
    X(heads_q8, 2 * heads)                                                                                             \
    X(attn_out, 4 * embd)                                                                                              \
    X(ffn_inp, 4 * embd)                                                                                               \
    X(ffn_norm, 4 * embd)                                                                                              \
    X(ffn_norm_q8_k, 2 * embd)                                                                                         \
    X(ffn_norm_q8_32, 2 * embd)                                                                                        \
    X(gate, 4 * ff)                                                                                                    \
    X(up, 4 * ff)                                                                                                      \
    X(swiglu, 4 * ff)                                                                                                  \
    X(swiglu_q8, 2 * ff)                                                                                               \
    X(ffn_out, 4 * embd)                                                                                               \
    X(l_out, 4 * embd)                                                                                                 \
    X(result_norm, 4 * embd)                                                                                           \
    X(result_q8, 2 * embd)

/* Lays them out from base on; returns their bytes. *name: the tap that has byte `at`. */
static size_t lay_taps(const struct shape *s, uint8_t *base, struct cuda_step_taps *t, size_t at, const char **name) {
    size_t used = 0, embd = (size_t)s->n_embd, ff = (size_t)s->n_ff, heads = (size_t)(s->n_head * s->head_dim);
    size_t kv = (size_t)(s->n_kv_head * s->head_dim);
#define X(field, bytes)                                                                                                \
    t->field = (void *)(base + used);                                                                                  \
    *name = at >= used ? #field : *name;                                                                               \
    used += ((bytes) + 255) / 256 * 256;
    TAPS
#undef X
        return used;
}

struct model {
    const struct shape *shape;
    float *attn_norm[MOST_LAYERS], *ffn_norm[MOST_LAYERS], *output_norm;
    struct matrix w[MOST_LAYERS][N_MATS], output;
    float *turn;
    uint8_t *kv; /* host: [slot 2][layer][K, V][head][n_ctx][dim] */
    size_t kv_bytes, kv_part, kv_head, kv_row;
    struct cuda_step_layer layers[MOST_LAYERS];
    struct cuda_step_taps device_taps[MOST_LAYERS + 1], cpu_taps[MOST_LAYERS + 1];
    size_t taps_bytes;
    uint8_t *device_block, *cpu_block;
    float *x, *logits;
    struct cuda_step step;
    struct cuda_step_state *state;
};

static void make_layer(struct model *m, int l) {
    const struct shape *s = m->shape;
    const uint32_t *t = s->types[l];
    int o = s->n_head * s->head_dim, kv = s->n_kv_head * s->head_dim;
    m->attn_norm[l] = random_floats(s->n_embd, 1.0f, 0.5f);
    m->ffn_norm[l] = random_floats(s->n_embd, 1.0f, 0.5f);
    m->w[l][WQ] = make_matrix(t[WQ], o, s->n_embd, s->bias);
    m->w[l][WK] = make_matrix(t[WK], kv, s->n_embd, s->bias);
    m->w[l][WV] = make_matrix(t[WV], kv, s->n_embd, s->bias);
    m->w[l][WO] = make_matrix(t[WO], s->n_embd, o, false);
    m->w[l][GATE] = make_matrix(t[GATE], s->n_ff, s->n_embd, false);
    m->w[l][UP] = make_matrix(t[UP], s->n_ff, s->n_embd, false);
    m->w[l][DOWN] = make_matrix(t[DOWN], s->n_embd, s->n_ff, false);
    m->layers[l] = (struct cuda_step_layer){cuda_test_put(m->attn_norm[l], (size_t)s->n_embd * 4),
                                            cuda_test_put(m->ffn_norm[l], (size_t)s->n_embd * 4),
                                            m->w[l][WQ].dev,
                                            m->w[l][WK].dev,
                                            m->w[l][WV].dev,
                                            m->w[l][WO].dev,
                                            m->w[l][GATE].dev,
                                            m->w[l][UP].dev,
                                            m->w[l][DOWN].dev,
                                            (int64_t)(2 * m->kv_part) * l};
}

static cudaStream_t stream;

static struct model *make_model(const struct shape *s) {
    struct model *m = calloc(1, sizeof *m);
    rng = (uint64_t)s->n_embd * 77 + (uint64_t)s->n_ff;
    if (!stream)
        cuda_ok(cudaStreamCreate(&stream));
    cuda_test_start((size_t)128 << 20);
    m->shape = s;
    m->kv_row = (size_t)s->head_dim * (s->kv_type == FWD_F16 ? 2 : 4);
    m->kv_head = m->kv_row * (size_t)s->n_ctx;
    m->kv_part = m->kv_head * (size_t)s->n_kv_head;
    m->kv_bytes = m->kv_part * 2 * MOST_LAYERS * 2;
    m->kv = malloc(m->kv_bytes);
    for (int l = 0; l < MOST_LAYERS; l++)
        make_layer(m, l);
    m->output_norm = random_floats(s->n_embd, 1.0f, 0.5f);
    m->output = make_matrix(s->output, s->n_vocab, s->n_embd, false);
    struct fwd_config config = {.n_rope = s->n_rope, .rope_theta = 10000.0};
    m->turn = malloc((size_t)(s->n_ctx * s->n_rope) * sizeof *m->turn);
    fwd_rope_table(&config, 0, s->n_ctx, m->turn);
    const char *name;
    uint8_t none;
    m->taps_bytes = lay_taps(s, &none, m->device_taps, 0, &name);
    m->device_block = cuda_test_room(m->taps_bytes * (MOST_LAYERS + 1));
    m->cpu_block = calloc(MOST_LAYERS + 1, m->taps_bytes);
    for (size_t l = 0; l <= MOST_LAYERS; l++) {
        lay_taps(s, m->device_block + l * m->taps_bytes, &m->device_taps[l], 0, &name);
        lay_taps(s, m->cpu_block + l * m->taps_bytes, &m->cpu_taps[l], 0, &name);
    }
    int32_t kv_head_of[32];
    for (int h = 0; h < s->n_head; h++)
        kv_head_of[h] = h / (s->n_head / s->n_kv_head);
    m->x = malloc((size_t)s->n_embd * sizeof *m->x);
    m->logits = malloc((size_t)s->n_vocab * sizeof *m->logits);
    m->state = cuda_test_room(sizeof *m->state);
    m->step = (struct cuda_step){.n_layer = MOST_LAYERS,
                                 .n_embd = s->n_embd,
                                 .n_ff = s->n_ff,
                                 .n_head = s->n_head,
                                 .n_kv_head = s->n_kv_head,
                                 .head_dim = s->head_dim,
                                 .n_rope = s->n_rope,
                                 .n_ctx = s->n_ctx,
                                 .n_vocab = s->n_vocab,
                                 .neox = s->neox,
                                 .eps = 1e-5f,
                                 .scale = 1.0f / sqrtf((float)s->head_dim),
                                 .kv_head_of = cuda_test_put(kv_head_of, sizeof kv_head_of),
                                 .turn = cuda_test_put(m->turn, (size_t)(s->n_ctx * s->n_rope) * sizeof *m->turn),
                                 .output_norm = cuda_test_put(m->output_norm, (size_t)s->n_embd * 4),
                                 .output = m->output.dev,
                                 .layers = m->layers,
                                 .kv_type = s->kv_type,
                                 .kv = cuda_test_room(m->kv_bytes),
                                 .kv_slot = (int64_t)m->kv_bytes / 2,
                                 .kv_part = (int64_t)m->kv_part,
                                 .kv_head = (int64_t)m->kv_head,
                                 .kv_row = (int64_t)m->kv_row,
                                 .state = m->state,
                                 .taps = cuda_test_put(m->device_taps, sizeof m->device_taps),
                                 .x = cuda_test_room((size_t)s->n_embd * 4),
                                 .logits = cuda_test_room((size_t)s->n_vocab * 4),
                                 .overlap = true};
    m->step.scratch = cuda_test_room(cuda_step_scratch(&m->step));
    cuda_ok(cudaMemset(m->step.scratch, 0, cuda_step_scratch(&m->step)));
    return m;
}

static void free_matrix(struct matrix *w) {
    free(w->file);
    free(w->bias);
}

static void free_model(struct model *m) {
    for (int l = 0; l < MOST_LAYERS; l++) {
        free(m->attn_norm[l]);
        free(m->ffn_norm[l]);
        for (int i = 0; i < N_MATS; i++)
            free_matrix(&m->w[l][i]);
    }
    free_matrix(&m->output);
    free(m->output_norm);
    free(m->turn);
    free(m->kv);
    free(m->cpu_block);
    free(m->x);
    free(m->logits);
    free(m);
}

/* ---- the CPU's step, op by op ---- */

static void cpu_quantise(const float *x, int n, uint32_t type, uint8_t *k, uint8_t *b32) {
    if (type >= FWD_TYPE_Q2_K)
        act_quant_k_ref(x, (struct fwd_q8_k *)(void *)k, n);
    else
        act_quant_32_ref(x, (struct fwd_q8_32 *)(void *)b32, n);
}

static void cpu_product(const struct matrix *w, const uint8_t *k, const uint8_t *b32, float *y) {
    struct fwd_matmul_q_job job = {.packed = w->file,
                                   .n_rows = w->n_rows,
                                   .n_blocks = w->n_cols / (w->type >= FWD_TYPE_Q2_K ? 256 : 32),
                                   .strip_end = w->n_rows,
                                   .act = w->type >= FWD_TYPE_Q2_K ? k : b32,
                                   .n_pos = 1,
                                   .bias = w->bias,
                                   .y = y,
                                   .ld_y = w->n_rows};
    job.block_end = job.n_blocks;
    matmul_q_ref(w->type)->run(&job);
}

static uint8_t *cache_row(const struct model *m, int slot, int l, int part, int head, int pos) {
    return m->kv + (size_t)slot * m->kv_bytes / 2 + (size_t)(2 * l + part) * m->kv_part + (size_t)head * m->kv_head +
           (size_t)pos * m->kv_row;
}

static void cpu_store(const struct model *m, int slot, int l, int part, int pos, const float *x) {
    const struct shape *s = m->shape;
    for (int h = 0; h < s->n_kv_head; h++) {
        uint8_t *row = cache_row(m, slot, l, part, h, pos);
        for (int d = 0; d < s->head_dim; d++)
            if (s->kv_type == FWD_F16)
                put_half(row + 2 * d, x[h * s->head_dim + d]);
            else
                memcpy(row + 4 * d, &x[h * s->head_dim + d], 4);
    }
}

static void cpu_attend(const struct model *m, int slot, int l, int pos, const float *q, float *heads) {
    const struct shape *s = m->shape;
    float *scratch = malloc(fwd_attention_scratch(s->head_dim) * sizeof *scratch);
    for (int h = 0; h < s->n_head; h++) {
        int kv = h / (s->n_head / s->n_kv_head);
        struct fwd_attention_unit u = {.n_heads = 1,
                                       .q = {q + h * s->head_dim},
                                       .o = {heads + h * s->head_dim},
                                       .k = cache_row(m, slot, l, 0, kv, 0),
                                       .v = cache_row(m, slot, l, 1, kv, 0),
                                       .stride_k = (int64_t)m->kv_row,
                                       .stride_v = (int64_t)m->kv_row,
                                       .kv_type = s->kv_type,
                                       .n_keys = pos + 1,
                                       .head_dim = s->head_dim,
                                       .scale = m->step.scale,
                                       .scratch = scratch};
        attention_ref(&u);
    }
    free(scratch);
}

static void cpu_layer(struct model *m, int slot, int l, int pos, const float *x) {
    const struct shape *s = m->shape;
    struct cuda_step_taps *t = &m->cpu_taps[l];
    struct matrix *w = m->w[l];
    const float *turn = m->turn + (int64_t)pos * s->n_rope;
    enum fwd_rope_pairing pairing = s->neox ? FWD_ROPE_NEOX : FWD_ROPE_NORM;
    int o = s->n_head * s->head_dim;
    rmsnorm_ref(x, m->attn_norm[l], t->attn_norm, s->n_embd, m->step.eps);
    for (int i = WQ; i <= WV; i++)
        cpu_quantise(t->attn_norm, s->n_embd, w[i].type, t->attn_norm_q8_k, t->attn_norm_q8_32);
    cpu_product(&w[WQ], t->attn_norm_q8_k, t->attn_norm_q8_32, t->q);
    cpu_product(&w[WK], t->attn_norm_q8_k, t->attn_norm_q8_32, t->k);
    cpu_product(&w[WV], t->attn_norm_q8_k, t->attn_norm_q8_32, t->v);
    rope_ref(t->q, t->q_rope, turn, s->n_head, s->head_dim, s->n_rope, pairing);
    rope_ref(t->k, t->k_rope, turn, s->n_kv_head, s->head_dim, s->n_rope, pairing);
    cpu_store(m, slot, l, 0, pos, t->k_rope);
    cpu_store(m, slot, l, 1, pos, t->v);
    cpu_attend(m, slot, l, pos, t->q_rope, t->heads);
    cpu_quantise(t->heads, o, w[WO].type, t->heads_q8, t->heads_q8);
    cpu_product(&w[WO], t->heads_q8, t->heads_q8, t->attn_out);
    add_ref(t->attn_out, x, t->ffn_inp, s->n_embd);
    rmsnorm_ref(t->ffn_inp, m->ffn_norm[l], t->ffn_norm, s->n_embd, m->step.eps);
    for (int i = GATE; i <= UP; i++)
        cpu_quantise(t->ffn_norm, s->n_embd, w[i].type, t->ffn_norm_q8_k, t->ffn_norm_q8_32);
    cpu_product(&w[GATE], t->ffn_norm_q8_k, t->ffn_norm_q8_32, t->gate);
    cpu_product(&w[UP], t->ffn_norm_q8_k, t->ffn_norm_q8_32, t->up);
    swiglu_ref(t->gate, t->up, t->swiglu, s->n_ff);
    cpu_quantise(t->swiglu, s->n_ff, w[DOWN].type, t->swiglu_q8, t->swiglu_q8);
    cpu_product(&w[DOWN], t->swiglu_q8, t->swiglu_q8, t->ffn_out);
    add_ref(t->ffn_out, t->ffn_inp, t->l_out, s->n_embd);
}

static void cpu_step(struct model *m, int slot, int pos) {
    const struct shape *s = m->shape;
    struct cuda_step_taps *head = &m->cpu_taps[MOST_LAYERS];
    memset(m->cpu_block, 0xcb, m->taps_bytes * (MOST_LAYERS + 1));
    for (int l = 0; l < MOST_LAYERS; l++)
        cpu_layer(m, slot, l, pos, l ? m->cpu_taps[l - 1].l_out : m->x);
    rmsnorm_ref(m->cpu_taps[MOST_LAYERS - 1].l_out, m->output_norm, head->result_norm, s->n_embd, m->step.eps);
    cpu_quantise(head->result_norm, s->n_embd, s->output, head->result_q8, head->result_q8);
    cpu_product(&m->output, head->result_q8, head->result_q8, m->logits);
}

/* ---- the device's ---- */

/* Input, cache and state as they were before the step; taps and logits scribbled over. */
static void reset_device(struct model *m, const uint8_t *kv, int slot, int pos, bool taps) {
    struct cuda_step_state state = {pos, slot, taps, 0};
    cuda_ok(cudaMemcpy(m->state, &state, sizeof state, cudaMemcpyHostToDevice));
    cuda_ok(cudaMemcpy(m->step.x, m->x, (size_t)m->shape->n_embd * 4, cudaMemcpyHostToDevice));
    cuda_ok(cudaMemcpy(m->step.kv, kv, m->kv_bytes, cudaMemcpyHostToDevice));
    cuda_ok(cudaMemset(m->device_block, 0xcb, m->taps_bytes * (MOST_LAYERS + 1)));
    cuda_ok(cudaMemset(m->step.logits, 0xcb, (size_t)m->shape->n_vocab * 4));
    cuda_ok(cudaDeviceSynchronize());
}

static void finish_device(void) {
    cuda_ok(cudaGetLastError());
    cuda_ok(cudaStreamSynchronize(stream));
}

static int64_t first_difference(const void *a, const void *b, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (((const uint8_t *)a)[i] != ((const uint8_t *)b)[i])
            return (int64_t)i;
    return -1;
}

static void check_logits(struct model *m, const char *how, int pos) {
    size_t n = (size_t)m->shape->n_vocab * 4;
    float *got = malloc(n);
    cuda_test_get(got, m->step.logits, n);
    int64_t i = first_difference(got, m->logits, n);
    ck_assert_msg(i < 0, "%s, position %d, %s: logits differ from float %ld on: %g, expected %g", m->shape->name, pos,
                  how, (long)i / 4, (double)got[i / 4], (double)m->logits[i / 4]);
    free(got);
}

/* The first tap, in the order of the ops, that differs. */
static void check_taps(const struct model *m, int pos) {
    size_t n = m->taps_bytes * (MOST_LAYERS + 1);
    uint8_t *got = malloc(n);
    cuda_test_get(got, m->device_block, n);
    int64_t i = first_difference(got, m->cpu_block, n);
    if (i >= 0) {
        const char *name;
        struct cuda_step_taps taps;
        int layer = (int)((size_t)i / m->taps_bytes);
        size_t at = (size_t)i % m->taps_bytes;
        lay_taps(m->shape, got, &taps, at, &name);
        float a, b;
        memcpy(&a, got + i / 4 * 4, 4);
        memcpy(&b, m->cpu_block + i / 4 * 4, 4);
        ck_abort_msg("%s, position %d: %s of layer %d differs, byte %zu of the layer's taps: as floats %g, expected %g",
                     m->shape->name, pos, name, layer, at, (double)a, (double)b);
    }
    free(got);
}

static void check_cache(const struct model *m, int pos) {
    uint8_t *got = malloc(m->kv_bytes);
    cuda_test_get(got, m->step.kv, m->kv_bytes);
    int64_t i = first_difference(got, m->kv, m->kv_bytes);
    ck_assert_msg(i < 0, "%s, position %d: the cache differs at byte %ld", m->shape->name, pos, (long)i);
    free(got);
}

static cudaGraphExec_t capture(const struct cuda_step *step) {
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cuda_ok(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    cuda_step_enqueue(step, stream);
    cuda_ok(cudaStreamEndCapture(stream, &graph));
    cuda_ok(cudaGraphInstantiate(&exec, graph, 0));
    cuda_ok(cudaGraphDestroy(graph));
    return exec;
}

static void check_shape(const struct shape *s) {
    const char *why;
    struct model *m = make_model(s);
    ck_assert_msg(cuda_step_serves(&m->step, &why), "%s: not served: %s", s->name, why);
    cudaGraphExec_t graph = capture(&m->step);
    uint8_t *kv = malloc(m->kv_bytes);
    for (int i = 0; i < 8 && (i == 0 || s->positions[i] > 0); i++) {
        int pos = s->positions[i], slot = i & 1;
        for (int j = 0; j < s->n_embd; j++)
            m->x[j] = next_float(1.0f);
        for (size_t j = 0; j < m->kv_bytes / m->kv_row * (size_t)s->head_dim; j++)
            if (s->kv_type == FWD_F16)
                put_half(m->kv + 2 * j, next_float(1.0f));
            else
                ((float *)(void *)m->kv)[j] = next_float(1.0f);
        memcpy(kv, m->kv, m->kv_bytes);
        cpu_step(m, slot, pos);
        reset_device(m, kv, slot, pos, true);
        cuda_step_enqueue(&m->step, stream);
        finish_device();
        check_taps(m, pos);
        check_cache(m, pos);
        check_logits(m, "eager, taps", pos);
        struct cuda_step plain = m->step;
        plain.overlap = false;
        reset_device(m, kv, slot, pos, false);
        cuda_step_enqueue(&plain, stream);
        finish_device();
        check_logits(m, "no overlap, no taps", pos);
        for (int replay = 0; replay < 3; replay++) {
            reset_device(m, kv, slot, pos, replay == 1);
            cuda_ok(cudaGraphLaunch(graph, stream));
            finish_device();
            check_logits(m, "replay", pos);
            check_cache(m, pos);
            if (replay == 1)
                check_taps(m, pos);
        }
    }
    cuda_ok(cudaGraphExecDestroy(graph));
    cuda_test_end();
    free(kv);
    free_model(m);
}

START_TEST(same_bits_as_the_ops) {
    check_shape(&shapes[_i]);
}
END_TEST

/* A planted plan fault must show in the logits, and leave nothing behind. */
START_TEST(plan_faults_show) {
    static const enum fwd_op ops[] = {FWD_OP_VCUR,       FWD_OP_KQV_OUT, FWD_OP_FFN_INP,
                                      FWD_OP_FFN_SWIGLU, FWD_OP_L_OUT,   FWD_OP_RESULT_OUTPUT};
    struct model *m = make_model(&shapes[0]);
    uint8_t *kv = calloc(1, m->kv_bytes);
    memset(m->kv, 0, m->kv_bytes);
    for (int kind = CUDA_PLAN_SKIP; kind <= CUDA_PLAN_EARLY; kind++)
        for (int i = 0; i < 6; i++) {
            for (int j = 0; j < m->shape->n_embd; j++)
                m->x[j] = next_float(1.0f);
            cpu_step(m, 0, 0);
            struct cuda_step broken = m->step;
            broken.fault = (enum cuda_plan_fault)kind;
            broken.fault_op = ops[i];
            broken.fault_layer = ops[i] == FWD_OP_RESULT_OUTPUT ? -1 : 1;
            reset_device(m, kv, 0, 0, false);
            cuda_step_enqueue(&broken, stream);
            finish_device();
            float *got = malloc((size_t)m->shape->n_vocab * 4);
            cuda_test_get(got, m->step.logits, (size_t)m->shape->n_vocab * 4);
            ck_assert_msg(memcmp(got, m->logits, (size_t)m->shape->n_vocab * 4) != 0,
                          "fault %d of the launch of %s does not show", kind, fwd_op_name(ops[i]));
            free(got);
            reset_device(m, kv, 0, 0, false);
            cuda_step_enqueue(&m->step, stream);
            finish_device();
            check_logits(m, "after a fault", 0);
        }
    free(kv);
    free_model(m);
}
END_TEST

/* Without a head the residual stream is left in x; each layer is told of. */
static void count_layer(void *ud, int layer, struct CUstream_st *s) {
    (void)s;
    *(unsigned *)ud |= 1u << layer;
}

START_TEST(no_head_leaves_x) {
    struct model *m = make_model(&shapes[0]);
    uint8_t *kv = calloc(1, m->kv_bytes);
    memset(m->kv, 0, m->kv_bytes);
    memcpy(m->x, m->output_norm, (size_t)m->shape->n_embd * 4);
    cpu_step(m, 1, 0);
    struct cuda_step headless = m->step;
    unsigned told = 0;
    headless.output.form = CUDA_FORM_NONE;
    headless.after_layer = count_layer;
    headless.after_layer_ud = &told;
    reset_device(m, kv, 1, 0, false);
    cuda_step_enqueue(&headless, stream);
    finish_device();
    size_t n = (size_t)m->shape->n_embd * 4;
    float *got = malloc(n);
    cuda_test_get(got, m->step.x, n);
    ck_assert(memcmp(got, m->cpu_taps[MOST_LAYERS - 1].l_out, n) == 0);
    ck_assert_uint_eq(told, 3);
    free(got);
    free(kv);
    free_model(m);
}
END_TEST

START_TEST(says_what_it_does_not_serve) {
    struct model *m = make_model(&shapes[1]);
    const char *why;
    struct cuda_step s = m->step;
    ck_assert(cuda_step_serves(&s, &why));
    s.head_dim = 96;
    ck_assert(!cuda_step_serves(&s, &why) && strstr(why, "head_dim"));
    s = m->step;
    s.n_kv_head = 2;
    ck_assert(!cuda_step_serves(&s, &why) && strstr(why, "query heads"));
    s = m->step;
    s.output.form = CUDA_FORM_F32;
    ck_assert(!cuda_step_serves(&s, &why) && strstr(why, "tiles"));
    free_model(m);
}
END_TEST

/* ---- the benchmark ---- */

struct bench {
    const char *name;
    int n_layer, n_embd, n_ff, n_head, n_kv_head, n_vocab;
};
static const struct bench benches[] = {{"7b", 28, 3584, 18944, 28, 4, 152064}, {"1.5b", 28, 1536, 8960, 12, 2, 151936}};

/* The recipe of Q4_K_M: attn_v and ffn_down are Q6_K in the first and the last eighth and in every third layer. */
static bool gets_more_bits(int l, int n) {
    return l < n / 8 || l >= 7 * n / 8 || (l - n / 8) % 3 == 2;
}

static double bench_bytes;

/* Random bytes whose binary16 scales are small: their top bits cleared wherever they may lie. */
static struct cuda_linear bench_matrix(uint32_t type, int n_rows, int n_cols, bool bias) {
    size_t n = fwd_tiles_bytes(type, n_rows, n_cols), tile = fwd_tile_bytes(type);
    static uint8_t *host;
    static size_t host_size;
    if (host_size < n) {
        free(host);
        host = malloc(n);
        host_size = n;
        for (size_t i = 0; i < n / 4; i++)
            ((uint32_t *)(void *)host)[i] = next_random() * 2;
    }
    for (size_t t = 0; t + tile <= n; t += tile)
        for (int r = 0; r < 8; r++) {
            uint8_t *d = host + t + (type == K4 ? 1024 + 16 * r : 1664 + 2 * r);
            put_half(d, 1e-4f);
            if (type == K4)
                put_half(d + 2, 1e-4f);
        }
    struct cuda_linear w = {.form = CUDA_FORM_TILES,
                            .type = type,
                            .act = FWD_Q8_K,
                            .n_rows = n_rows,
                            .n_cols = n_cols,
                            .n_sb = n_cols / 256};
    void *p;
    cuda_ok(cudaMalloc(&p, n));
    cuda_ok(cudaMemcpy(p, host, n, cudaMemcpyHostToDevice));
    w.data = p;
    if (bias) {
        cuda_ok(cudaMalloc(&p, (size_t)n_rows * 4));
        cuda_ok(cudaMemset(p, 0, (size_t)n_rows * 4));
        w.bias = p;
    }
    bench_bytes += (double)n;
    return w;
}

static void *device_zeros(size_t n) {
    void *p;
    cuda_ok(cudaMalloc(&p, n));
    cuda_ok(cudaMemset(p, 0, n));
    return p;
}

static float *device_ones(size_t n) {
    float *host = malloc(4 * n), *p;
    for (size_t i = 0; i < n; i++)
        host[i] = 1.0f;
    cuda_ok(cudaMalloc((void **)&p, 4 * n));
    cuda_ok(cudaMemcpy(p, host, 4 * n, cudaMemcpyHostToDevice));
    free(host);
    return p;
}

static float time_graph(const struct cuda_step *step, int n) {
    float ms;
    cudaGraphExec_t graph = capture(step);
    cudaEvent_t from, to;
    cuda_ok(cudaEventCreate(&from));
    cuda_ok(cudaEventCreate(&to));
    cuda_ok(cudaGraphLaunch(graph, stream));
    cuda_ok(cudaEventRecord(from, stream));
    for (int i = 0; i < n; i++)
        cuda_ok(cudaGraphLaunch(graph, stream));
    cuda_ok(cudaEventRecord(to, stream));
    cuda_ok(cudaEventSynchronize(to));
    cuda_ok(cudaEventElapsedTime(&ms, from, to));
    cuda_ok(cudaGraphExecDestroy(graph));
    return ms / (float)n * 1000.0f;
}

static const char *bench_name = "7b";
static int bench_context = 128;
static bool bench_once; /* for a profiler: one step, launched eagerly, without overlap */

START_TEST(bench) {
    const char *name = bench_name;
    int context = bench_context;
    const struct bench *b = strcmp(name, "1.5b") ? &benches[0] : &benches[1];
    int kv = b->n_kv_head * 128, n_ctx = 4352;
    struct cuda_step_layer *layers = calloc((size_t)b->n_layer, sizeof *layers);
    int64_t part = (int64_t)n_ctx * 256 * b->n_kv_head;
    cuda_ok(cudaStreamCreate(&stream));
    for (int l = 0; l < b->n_layer; l++) {
        uint32_t more = gets_more_bits(l, b->n_layer) ? K6 : K4;
        layers[l] = (struct cuda_step_layer){device_ones((size_t)b->n_embd),
                                             device_ones((size_t)b->n_embd),
                                             bench_matrix(K4, b->n_head * 128, b->n_embd, true),
                                             bench_matrix(K4, kv, b->n_embd, true),
                                             bench_matrix(more, kv, b->n_embd, true),
                                             bench_matrix(K4, b->n_embd, b->n_head * 128, false),
                                             bench_matrix(K4, b->n_ff, b->n_embd, false),
                                             bench_matrix(K4, b->n_ff, b->n_embd, false),
                                             bench_matrix(more, b->n_embd, b->n_ff, false),
                                             2 * part * l};
    }
    struct cuda_step_state state = {context - 1, 0, 0, 0};
    struct cuda_step step = {.n_layer = b->n_layer,
                             .n_embd = b->n_embd,
                             .n_ff = b->n_ff,
                             .n_head = b->n_head,
                             .n_kv_head = b->n_kv_head,
                             .head_dim = 128,
                             .n_rope = 128,
                             .n_ctx = n_ctx,
                             .n_vocab = b->n_vocab,
                             .neox = true,
                             .eps = 1e-6f,
                             .scale = 0.088f,
                             .turn = device_zeros((size_t)n_ctx * 128 * 4),
                             .output_norm = device_ones((size_t)b->n_embd),
                             .output = bench_matrix(K6, b->n_vocab, b->n_embd, false),
                             .layers = layers,
                             .kv_type = FWD_F16,
                             .kv = device_zeros((size_t)(2 * part * b->n_layer)),
                             .kv_slot = 2 * part * b->n_layer,
                             .kv_part = part,
                             .kv_head = n_ctx * 256,
                             .kv_row = 256,
                             .state = device_zeros(sizeof state),
                             .x = device_ones((size_t)b->n_embd),
                             .logits = device_zeros((size_t)b->n_vocab * 4),
                             .overlap = true};
    int32_t kv_head_of[32];
    for (int h = 0; h < b->n_head; h++)
        kv_head_of[h] = h / (b->n_head / b->n_kv_head);
    void *p = device_zeros(sizeof kv_head_of);
    cuda_ok(cudaMemcpy(p, kv_head_of, sizeof kv_head_of, cudaMemcpyHostToDevice));
    step.kv_head_of = p;
    step.scratch = device_zeros(cuda_step_scratch(&step));
    cuda_ok(cudaMemcpy((void *)(uintptr_t)step.state, &state, sizeof state, cudaMemcpyHostToDevice));
    const char *why;
    ck_assert_msg(cuda_step_serves(&step, &why), "not served: %s", why);
    if (bench_once) {
        step.overlap = false;
        cuda_step_enqueue(&step, stream);
        cuda_ok(cudaStreamSynchronize(stream));
        return;
    }
    float us = time_graph(&step, 50);
    struct cuda_step serial = step, headless = step;
    serial.overlap = false;
    headless.output.form = CUDA_FORM_NONE;
    float serial_us = time_graph(&serial, 50), headless_us = time_graph(&headless, 50);
    printf("%s context %d: %.1f us a token, %.0f tok/s, %.2f TB/s; no overlap %.1f us; head %.1f us, a layer %.2f us\n",
           b->name, context, (double)us, 1e6 / (double)us, bench_bytes / (double)us * 1e-6, (double)serial_us,
           (double)(us - headless_us), (double)headless_us / b->n_layer);
    static const enum fwd_op ends[] = {FWD_OP_VCUR, FWD_OP_KQV_OUT, FWD_OP_FFN_INP, FWD_OP_FFN_SWIGLU, FWD_OP_L_OUT};
    for (int i = 0; i < 5; i++) { /* what a step gains when every layer lacks one kind of launch */
        struct cuda_step less = headless;
        less.fault = CUDA_PLAN_SKIP;
        less.fault_op = ends[i];
        less.fault_layer = -1;
        printf("  without %-12s %6.2f us less a layer\n", fwd_op_name(ends[i]),
               (double)(headless_us - time_graph(&less, 30)) / b->n_layer);
    }
    free(layers);
}
END_TEST

int main(int argc, char **argv) {
    Suite *suite = suite_create("cuda_step");
    TCase *tcase = tcase_create("step");
    tcase_set_timeout(tcase, 300);
    suite_add_tcase(suite, tcase);
    if (argc > 2 && !strcmp(argv[1], "bench")) {
        bench_name = argv[2];
        bench_context = argc > 3 ? (int)strtol(argv[3], NULL, 10) : 128;
        bench_once = argc > 4;
        tcase_add_test(tcase, bench);
        return cuda_test_main("test_cuda_step", suite);
    }
    tcase_add_loop_test(tcase, same_bits_as_the_ops, 0, N_SHAPES);
    tcase_add_test(tcase, plan_faults_show);
    tcase_add_test(tcase, no_head_leaves_x);
    tcase_add_test(tcase, says_what_it_does_not_serve);
    return cuda_test_main("test_cuda_step", suite);
}
