/* engine/cuda/step.cu: the plan of the fused decode step: which launches there are, what each is told, and their order.
 *
 * Five launches a layer, one for the head:
 *   qkv      norm, quantise, the three products with their biases
 *   attend   rotation, key and value into the cache, attention
 *   o        quantise, product, residual sum
 *   gate_up  norm, quantise, both products, SwiGLU
 *   down     quantise, product, residual sum
 *   head     norm, quantise, product
 * A launch may start where the blocks of the one before it are gone, and fetches its first weights meanwhile; it waits
 * for its predecessor before it touches anything that a launch of the step writes. */
#include "cuda/step_kernels.h"
#include "format/gguf.h"

#include <cuda_runtime.h>
#include <stddef.h>

enum { PER_LAYER = 5, MOST_GROUP = 8, SEGMENT = 256, MOST_SPLITS = 16 };
enum kind { KIND_QKV, KIND_ATTEND, KIND_O, KIND_GATE_UP, KIND_DOWN, KIND_HEAD };

/* The first and the last op of each kind of launch. */
static const struct {
    const char *name;
    enum fwd_op first, last;
} kinds[] = {
    {"step_gemv/qkv", FWD_OP_ATTN_NORM, FWD_OP_VCUR},
    {"step_attention", FWD_OP_QCUR_ROPE, FWD_OP_KQV_OUT},
    {"step_gemv/o", FWD_OP_KQV_OUT_Q8, FWD_OP_FFN_INP},
    {"step_gemv/gate_up", FWD_OP_FFN_NORM, FWD_OP_FFN_SWIGLU},
    {"step_gemv/down", FWD_OP_FFN_SWIGLU_Q8, FWD_OP_L_OUT},
    {"step_gemv/head", FWD_OP_RESULT_NORM, FWD_OP_RESULT_OUTPUT},
};

/* ---- scratch ---- */

struct room {
    size_t q, k, v, heads, attn_sum, layer_sum, swiglu, partial, arrived, size;
};

static size_t take(size_t *next, size_t n_floats) {
    size_t at = *next;
    *next += (n_floats * sizeof(float) + 255) / 256 * 256;
    return at;
}

static int max_segments(const struct cuda_step *s) {
    return (s->n_ctx + SEGMENT - 1) / SEGMENT;
}

static struct room rooms_of(const struct cuda_step *s) {
    struct room r = {};
    size_t next = 0, dim = (size_t)s->head_dim, n_head = (size_t)s->n_head;
    r.q = take(&next, n_head * dim);
    r.k = take(&next, (size_t)s->n_kv_head * dim);
    r.v = take(&next, (size_t)s->n_kv_head * dim);
    r.heads = take(&next, n_head * dim);
    r.attn_sum = take(&next, (size_t)s->n_embd);
    r.layer_sum = take(&next, (size_t)s->n_embd);
    r.swiglu = take(&next, (size_t)s->n_ff);
    r.partial = take(&next, n_head * (size_t)max_segments(s) * (dim + 2));
    r.arrived = take(&next, n_head);
    r.size = next;
    return r;
}

size_t cuda_step_scratch(const struct cuda_step *s) {
    return rooms_of(s).size;
}

static float *room_at(const struct cuda_step *s, size_t at) {
    return (float *)((uint8_t *)s->scratch + at);
}

/* ---- the device ---- */

struct limits {
    int n_sm;
    unsigned block_bytes, sm_bytes; /* shared memory */
};

static struct limits limits_of_device(void) {
    int device = 0, n_sm = 1, block_bytes = 0, sm_bytes = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&n_sm, cudaDevAttrMultiProcessorCount, device);
    cudaDeviceGetAttribute(&block_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    cudaDeviceGetAttribute(&sm_bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
    return (struct limits){n_sm, (unsigned)block_bytes, (unsigned)sm_bytes};
}

/* ---- what a launch is told ---- */

#define TAP(field) ((int)offsetof(struct cuda_step_taps, field))

static void add_matrix(struct step_gemv *p, const struct cuda_linear *w, float *y, int tap) {
    struct step_mat *m = &p->mat[p->n_mat++];
    int n_units = (int)((w->n_rows + 7) / 8);
    bool paired = p->epilogue == STEP_SWIGLU;
    *m = (struct step_mat){
        (const uint8_t *)w->data, w->bias, y, (int)w->type, (int)fwd_tile_bytes(w->type), (int)w->n_rows,
        paired ? 0 : p->n_units,  tap};
    p->n_units = paired ? n_units : p->n_units + n_units;
}

static void read_from(struct step_gemv *p, const float *x, const float *norm, int n) {
    p->x = x;
    p->norm = norm;
    p->n = n;
    p->n_sb = (n + FWD_TILE_COLS - 1) / FWD_TILE_COLS;
}

static void no_taps(struct step_gemv *p) {
    p->tap_norm = p->tap_q8_k = p->tap_q8_32 = p->tap_out = -1;
}

/* One of the launches with matrices; false: its shared memory does not fit. */
static bool fill_gemv(const struct cuda_step *s, enum kind kind, int layer, const struct limits *limits,
                      struct step_gemv *p) {
    struct room r = rooms_of(s);
    const struct cuda_step_layer *l = &s->layers[layer < s->n_layer ? layer : 0];
    /* The residual stream is in x before the first layer and after the last. */
    const float *x = layer == 0 || layer == s->n_layer ? s->x : room_at(s, r.layer_sum);
    *p = (struct step_gemv){};
    no_taps(p);
    p->eps = s->eps;
    p->state = s->state;
    p->taps = s->taps ? s->taps + layer : NULL;
    switch (kind) {
    case KIND_QKV:
        read_from(p, x, l->attn_norm, s->n_embd);
        p->tap_norm = TAP(attn_norm), p->tap_q8_k = TAP(attn_norm_q8_k), p->tap_q8_32 = TAP(attn_norm_q8_32);
        add_matrix(p, &l->wq, room_at(s, r.q), TAP(q));
        add_matrix(p, &l->wk, room_at(s, r.k), TAP(k));
        add_matrix(p, &l->wv, room_at(s, r.v), TAP(v));
        break;
    case KIND_O:
        p->epilogue = STEP_RESIDUAL;
        read_from(p, room_at(s, r.heads), NULL, s->n_head * s->head_dim);
        p->tap_q8_k = p->tap_q8_32 = TAP(heads_q8), p->tap_out = TAP(ffn_inp);
        p->residual = x;
        p->out = room_at(s, r.attn_sum);
        add_matrix(p, &l->wo, NULL, TAP(attn_out));
        break;
    case KIND_GATE_UP:
        p->epilogue = STEP_SWIGLU;
        read_from(p, room_at(s, r.attn_sum), l->ffn_norm, s->n_embd);
        p->tap_norm = TAP(ffn_norm), p->tap_q8_k = TAP(ffn_norm_q8_k), p->tap_q8_32 = TAP(ffn_norm_q8_32);
        p->tap_out = TAP(swiglu);
        p->out = room_at(s, r.swiglu);
        add_matrix(p, &l->gate, NULL, TAP(gate));
        add_matrix(p, &l->up, NULL, TAP(up));
        break;
    case KIND_DOWN:
        p->epilogue = STEP_RESIDUAL;
        read_from(p, room_at(s, r.swiglu), NULL, s->n_ff);
        p->tap_q8_k = p->tap_q8_32 = TAP(swiglu_q8), p->tap_out = TAP(l_out);
        p->residual = room_at(s, r.attn_sum);
        p->out = layer == s->n_layer - 1 ? s->x : room_at(s, r.layer_sum);
        add_matrix(p, &l->down, NULL, TAP(ffn_out));
        break;
    default:
        read_from(p, x, s->output_norm, s->n_embd);
        p->tap_norm = TAP(result_norm), p->tap_q8_k = p->tap_q8_32 = TAP(result_q8);
        add_matrix(p, &s->output, s->logits, -1);
    }
    p->n_blocks = p->n_units < limits->n_sm ? p->n_units : limits->n_sm;
    /* Half of a multiprocessor's shared memory, where that leaves room for a ring: a longer one gained nothing. */
    unsigned half = limits->sm_bytes / 2 - 1024;
    return step_gemv_plan(p, half < limits->block_bytes ? half : limits->block_bytes) ||
           step_gemv_plan(p, limits->block_bytes);
}

static void fill_attention(const struct cuda_step *s, int layer, struct step_attention *p) {
    struct room r = rooms_of(s);
    *p = (struct step_attention){};
    p->n_head = s->n_head;
    p->n_kv_head = s->n_kv_head;
    p->group = s->n_head / s->n_kv_head;
    p->n_rope = s->n_rope;
    p->max_segments = max_segments(s);
    p->n_split = p->max_segments < MOST_SPLITS ? p->max_segments : MOST_SPLITS;
    p->neox = s->neox;
    p->scale = s->scale;
    p->q = room_at(s, r.q);
    p->k = room_at(s, r.k);
    p->v = room_at(s, r.v);
    p->turn = s->turn;
    p->kv = s->kv + s->layers[layer].kv_layer;
    p->kv_slot = s->kv_slot;
    p->kv_part = s->kv_part;
    p->kv_head = s->kv_head;
    p->kv_row = s->kv_row;
    p->heads = room_at(s, r.heads);
    p->partial = room_at(s, r.partial);
    p->arrived = (unsigned *)room_at(s, r.arrived);
    p->state = s->state;
    p->taps = s->taps ? s->taps + layer : NULL;
}

/* ---- whether it serves ---- */

static bool has_head(const struct cuda_step *s) {
    return s->output.form != CUDA_FORM_NONE;
}

static bool linear_serves(const struct cuda_linear *w) {
    return w->form == CUDA_FORM_TILES && fwd_tile_bytes(w->type) != 0;
}

static const char *shape_problem(const struct cuda_step *s) {
    if (s->head_dim != 64 && s->head_dim != 128)
        return "head_dim is neither 64 nor 128";
    if (s->n_kv_head < 1 || s->n_head % s->n_kv_head || s->n_head / s->n_kv_head > MOST_GROUP)
        return "more than 8 query heads to a KV head";
    if (s->n_rope > s->head_dim || s->n_rope % 2)
        return "n_rope is odd or larger than head_dim";
    if (s->kv_type != FWD_F16 && s->kv_type != FWD_F32)
        return "the KV type is neither F16 nor F32";
    if (s->kv_row % 16 || s->kv_head % 16 || s->kv_part % 16 || s->kv_slot % 16)
        return "KV rows are not aligned to 16 bytes";
    if (s->n_embd % 32 || s->n_ff % 32)
        return "n_embd or n_ff is no multiple of 32";
    return NULL;
}

bool cuda_step_serves(const struct cuda_step *s, const char **why_not) {
    *why_not = shape_problem(s);
    if (*why_not)
        return false;
    bool tiles = !has_head(s) || linear_serves(&s->output), fits = true;
    struct limits limits = limits_of_device();
    struct step_gemv p;
    for (int i = 0; i < s->n_layer && tiles; i++) {
        const struct cuda_step_layer *l = &s->layers[i];
        tiles = linear_serves(&l->wq) && linear_serves(&l->wk) && linear_serves(&l->wv) && linear_serves(&l->wo) &&
                linear_serves(&l->gate) && linear_serves(&l->up) && linear_serves(&l->down);
        for (int k = KIND_QKV; k < KIND_HEAD && tiles && fits; k++)
            fits = k == KIND_ATTEND || fill_gemv(s, (enum kind)k, i, &limits, &p);
    }
    if (!tiles)
        *why_not = "a weight is not in tiles";
    else if (!fits || (has_head(s) && !fill_gemv(s, KIND_HEAD, s->n_layer, &limits, &p)))
        *why_not = "rows are too long for a block's shared memory";
    return !*why_not;
}

/* ---- launches, in order ---- */

struct launch_at {
    enum kind kind;
    int layer; /* n_layer for the head */
};

static int count_launches(const struct cuda_step *s) {
    return PER_LAYER * s->n_layer + has_head(s);
}

static struct launch_at launch_number(const struct cuda_step *s, int i) {
    if (i == PER_LAYER * s->n_layer)
        return (struct launch_at){KIND_HEAD, s->n_layer};
    return (struct launch_at){(enum kind)(i % PER_LAYER), i / PER_LAYER};
}

static void launch_one(const struct cuda_step *s, struct launch_at at, const struct limits *limits,
                       struct step_config config, int fewer_blocks) {
    if (at.kind == KIND_ATTEND) {
        struct step_attention p;
        fill_attention(s, at.layer, &p);
        int few = 2 * p.n_head, many = p.n_kv_head * p.n_split;
        p.n_blocks = few > many ? few : many;
        config.n_blocks = p.n_blocks - fewer_blocks;
        step_attention_launch(&config, &p, s->head_dim, s->kv_type);
        return;
    }
    struct step_gemv p;
    if (!fill_gemv(s, at.kind, at.layer, limits, &p))
        return;
    config.n_blocks = p.n_blocks - fewer_blocks;
    if (config.n_blocks > 0)
        step_gemv_launch(&config, &p);
}

static bool is_broken(const struct cuda_step *s, struct launch_at at) {
    bool layer = at.kind == KIND_HEAD || s->fault_layer < 0 || s->fault_layer == at.layer; /* below 0: every layer */
    return s->fault != CUDA_PLAN_OK && layer && s->fault_op >= kinds[at.kind].first &&
           s->fault_op <= kinds[at.kind].last;
}

void cuda_step_enqueue(const struct cuda_step *s, struct CUstream_st *stream) {
    struct limits limits = limits_of_device();
    int n = count_launches(s);
    for (int i = 0; i < n; i++) {
        struct launch_at at = launch_number(s, i);
        struct step_config config = {stream, 0, s->overlap && i > 0};
        bool next_is_early = i + 1 < n && s->fault == CUDA_PLAN_EARLY && is_broken(s, launch_number(s, i + 1));
        if (next_is_early)
            launch_one(s, launch_number(s, i + 1), &limits, config, 0);
        if (!is_broken(s, at) || s->fault != CUDA_PLAN_SKIP)
            launch_one(s, at, &limits, config, is_broken(s, at) && s->fault == CUDA_PLAN_SHORT_GRID);
        i += next_is_early;
        at = launch_number(s, i);
        if (s->after_layer && (at.kind == KIND_DOWN || at.kind == KIND_HEAD))
            s->after_layer(s->after_layer_ud, at.layer, stream);
    }
}

bool cuda_step_launch(const struct cuda_step *s, int i, const char **kernel, enum fwd_op *op, int *layer) {
    if (i < 0 || i >= count_launches(s))
        return false;
    struct launch_at at = launch_number(s, i);
    *kernel = kinds[at.kind].name;
    *op = kinds[at.kind].last;
    *layer = at.kind == KIND_HEAD ? -1 : at.layer;
    return true;
}
