/* harness/test/made_evidence.h: a small model and evidence of ops made from a seed, for the tests of the signatures:
 * right values from the spec, wrong ones by arithmetic of its own. Each test includes it once. */
#ifndef HARNESS_TEST_MADE_EVIDENCE_H
#define HARNESS_TEST_MADE_EVIDENCE_H

#include "localise/explain.h"
#include "spec/eval.h"
#include "spec/spec_decode.h"
#include "spec/spec_model.h"
#include "spec/spec_quant.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    N_LAYER = 3,
    N_EMBD = 512,
    N_FF = 768,
    N_HEAD = 8,
    N_KV = 4,
    HEAD = 64,
    KV_DIM = N_KV * HEAD,
    N_VOCAB = 96,
    N_POS = 7,
    N_PROMPT = 5
};

/* Everything made here, freed after each test. */
static void *made[1 << 14];
static int n_made;

static inline void *made_alloc(size_t n, size_t size) {
    ck_assert_int_lt(n_made, 1 << 14);
    void *p = fwd_alloc(n, size);
    ck_assert_ptr_nonnull(p);
    return made[n_made++] = p;
}

static inline void free_made(void) {
    while (n_made > 0)
        fwd_free(made[--n_made]);
}

static uint64_t state = 1;

static inline uint64_t next(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state * 0x2545f4914f6cdd1dULL >> 16;
}

static inline double real(void) { /* about -1 to 1, seldom near 0 */
    return ((double)(next() % 20001) - 10000) / 10000;
}

static inline float *floats(int64_t n, double scale) {
    float *x = made_alloc((size_t)n, sizeof *x);
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)(scale * real());
    return x;
}

/* ---- a model -----------------------------------------------------------------------------------------------------
 */
static struct par_spec_model model;
static struct spec_layer layers[N_LAYER];
static int32_t tokens[N_POS];

/* Offsets of the half-precision scale, and of the second one (-1: none), in a block. */
static inline void scale_offsets(uint32_t type, int *d, int *m) {
    *d = type == FWD_TYPE_Q6_K ? 208 : type == FWD_TYPE_Q2_K ? 80 : type == FWD_TYPE_Q3_K ? 108 : 0;
    bool two = type == FWD_TYPE_Q4_1 || type == FWD_TYPE_Q5_1 || type == FWD_TYPE_Q4_K || type == FWD_TYPE_Q5_K ||
               type == FWD_TYPE_Q2_K;
    *m = two ? *d + 2 : -1;
}

static inline void put_half(uint8_t *p, double x) {
    uint16_t h = par_f32_to_f16((float)x);
    memcpy(p, &h, 2);
}

static inline struct spec_weight matrix(const char *name, uint32_t type, int64_t n_rows, int64_t n_cols) {
    int64_t row = par_decode_row_bytes(type, n_cols), bytes = row * n_rows;
    uint8_t *data = made_alloc((size_t)bytes, 1);
    for (int64_t i = 0; i < bytes; i++)
        data[i] = (uint8_t)next();
    int n = par_decode_block_values(type), d, m;
    int64_t block = n > 1 ? par_decode_row_bytes(type, n) : 4;
    scale_offsets(type, &d, &m);
    for (int64_t at = 0; at < bytes; at += block) {
        if (n == 1) {
            float x = (float)real();
            memcpy(data + at, &x, 4);
            continue;
        }
        put_half(data + at + d, 0.002 + 0.008 * fabs(real()));
        if (m >= 0)
            put_half(data + at + m, 0.002 + 0.008 * fabs(real()));
    }
    return (struct spec_weight){name, type, n_rows, n_cols, row, data, NULL};
}

static inline void make_model(uint32_t type) {
    state = 88172645463325252ULL + type;
    model = (struct par_spec_model){.layers = layers};
    model.config = (struct par_spec_config){.arch = "made",
                                            .n_layer = N_LAYER,
                                            .n_embd = N_EMBD,
                                            .n_ff = N_FF,
                                            .n_head = N_HEAD,
                                            .n_kv_head = N_KV,
                                            .head_dim = HEAD,
                                            .n_rope = HEAD,
                                            .n_vocab = N_VOCAB,
                                            .rope_neox = true,
                                            .rope_theta = 1e6,
                                            .norm_eps = 1e-6,
                                            .qkv_bias = true};
    uint32_t f32 = FWD_TYPE_F32;
    model.embedding = matrix("token_embd", type, N_VOCAB, N_EMBD);
    model.output = matrix("output", type, N_VOCAB, N_EMBD);
    model.output_norm = matrix("output_norm", f32, 1, N_EMBD);
    for (int il = 0; il < N_LAYER; il++)
        layers[il] = (struct spec_layer){.attn_norm = matrix("attn_norm", f32, 1, N_EMBD),
                                         .q = matrix("q", type, N_EMBD, N_EMBD),
                                         .k = matrix("k", type, KV_DIM, N_EMBD),
                                         .v = matrix("v", type, KV_DIM, N_EMBD),
                                         .q_bias = matrix("q.bias", f32, 1, N_EMBD),
                                         .k_bias = matrix("k.bias", f32, 1, KV_DIM),
                                         .v_bias = matrix("v.bias", f32, 1, KV_DIM),
                                         .attn_out = matrix("attn_out", type, N_EMBD, N_EMBD),
                                         .ffn_norm = matrix("ffn_norm", f32, 1, N_EMBD),
                                         .gate = matrix("gate", type, N_FF, N_EMBD),
                                         .up = matrix("up", type, N_FF, N_EMBD),
                                         .down = matrix("down", type, N_EMBD, N_FF)};
    for (int i = 0; i < N_POS; i++)
        tokens[i] = (int32_t)(next() % N_VOCAB);
}

/* ---- evidence ----------------------------------------------------------------------------------------------------
 */
static struct par_evidence_call call;
static struct par_evidence item;

static inline struct fwd_view view_of(enum fwd_op op, enum fwd_dtype type, int64_t n, int n_pos, void *data) {
    struct fwd_view v = {.size = sizeof v, .op = op, .dtype = type, .n_pos = n_pos, .data = data};
    v.ne[0] = n;
    v.ne[1] = n_pos;
    v.ne[2] = v.ne[3] = 1;
    v.nb[0] = type == FWD_F32 ? 4 : type == FWD_F16 ? 2 : 0;
    v.nb[1] = (int64_t)fwd_dtype_row_bytes(type, n);
    return v;
}

/* n_pos rows quantised by the declared rule, in the tap's layout. */
static inline uint8_t *quantise(const float *x, int64_t n, int n_pos, enum fwd_dtype type) {
    size_t row = fwd_dtype_row_bytes(type, n), block = par_q8_block_bytes(type);
    int values = par_q8_block_values(type);
    uint8_t *out = made_alloc(row, (size_t)n_pos), *p = out;
    struct spec_q8 q;
    for (int64_t i = 0; i < n * n_pos; i += values, p += block) {
        par_q8_quantise(x + i, values, &q);
        memcpy(p, &q.d, 4);
        if (type == FWD_Q8_K) {
            memcpy(p + 4, q.q, 256);
            for (int g = 0; g < 16; g++) {
                int16_t s = (int16_t)q.sum16[g];
                memcpy(p + 260 + 2 * g, &s, 2);
            }
        } else {
            int32_t s = q.sum16[0] + q.sum16[1];
            memcpy(p + 4, &s, 4);
            memcpy(p + 8, q.q, 32);
        }
    }
    return out;
}

static inline struct fwd_numerics numerics_of(enum fwd_dtype act) {
    struct fwd_numerics n = {.size = sizeof n,
                             .act = act,
                             .accumulator = FWD_ACC_F32,
                             .chain_block = 16,
                             .chain_per_block = 1,
                             .chain_extra = 4,
                             .term_roundings = 2,
                             .final_roundings = 3,
                             .store = FWD_F32,
                             .exp_ulp = 2,
                             .div_ulp = 0.5f,
                             .sqrt_ulp = 0.5f,
                             .sincos_ulp = 1,
                             .angle = FWD_ACC_F64};
    if (act == FWD_Q8_K || act == FWD_Q8_32)
        n.act_rule = FWD_ACT_AMAX127;
    return n;
}

static inline void begin_item(enum fwd_op op, int layer, enum fwd_dtype act) {
    call = (struct par_evidence_call){0};
    item = (struct par_evidence){
        .op = op, .layer = layer, .numerics = numerics_of(act), .calls = &call, .n_calls = 1, .n_positions = N_POS};
    call.judge_pos = made_alloc(N_POS, 1);
    memset(call.judge_pos, 1, N_POS);
}

static inline float *out_row(int pos) {
    return (float *)call.out.data + pos * call.out.ne[0];
}

/* Writes the spec's values into the output. */
static inline void fill_right(void) {
    struct par_eval e;
    struct par_elements x;
    struct fwd_error err;
    par_evidence_eval(&item, 0, &e);
    ck_assert_msg(par_spec_elements(&model, NULL, &e, &x, &err) == FWD_OK, "%s", err.message);
    for (int64_t i = 0; i < x.n_pos * x.width; i++)
        ((float *)call.out.data)[i] = (float)x.expected[i];
    par_elements_free(&x);
}

/* A call of one float input (n values a row) or two. */
static inline void float_call(enum fwd_op op, int layer, int n_in, int64_t n, int64_t n_out) {
    begin_item(op, layer, FWD_F32);
    call.n_in = n_in;
    for (int i = 0; i < n_in; i++)
        call.in[i] = view_of(FWD_OP_COUNT, FWD_F32, n, N_POS, floats(n * N_POS, 3));
    call.out = view_of(op, FWD_F32, n_out, N_POS, floats(n_out * N_POS, 1));
    fill_right();
}

static inline float *in_row(int in, int pos) {
    return (float *)call.in[in].data + pos * call.in[in].ne[0];
}

static inline struct par_diagnosis explain(void) {
    struct par_explain_context context = {.model = &model, .tokens = tokens, .n_tokens = N_POS, .n_prompt = N_PROMPT};
    struct par_diagnosis d;
    struct fwd_error err;
    ck_assert_msg(par_explain(&context, &item, &d, &err) == FWD_OK, "%s", err.message);
    return d;
}

static const char *name_of(const struct par_diagnosis *d) {
    return d->signature ? d->signature->name : "unexplained";
}

static inline void expect(const char *name) {
    struct par_diagnosis d = explain();
    ck_assert_msg(d.n_accused > 0, "%s: nothing is accused", name);
    ck_assert_msg(!strcmp(name_of(&d), name), "%s of %s is diagnosed as %s: %s (share %g)", name, fwd_op_name(item.op),
                  name_of(&d), d.text, d.share);
    if (d.signature)
        ck_assert_msg(d.share == 1 && d.ratio_max <= 1, "%s: share %g, ratio %g", name, d.share, d.ratio_max);
}

/* ---- matrix products ---------------------------------------------------------------------------------------------
 * This file's own decoders of four formats, each with the mistakes of the museum. */
enum bug {
    NONE,
    SWAP_NIBBLES,
    ZIP_NIBBLES,
    NEXT_SCALE,
    NEXT_MIN,
    FIRST_SCALE,
    NO_MIN,
    PLUS_MIN,
    NO_HIGH,
    HIGH_ELSEWHERE,
    SIX_BIT_CUT
};

static inline double half(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, 2);
    int e = h >> 10 & 31, m = h & 1023;
    double x = e == 31 ? (m ? (double)NAN : HUGE_VAL) : e ? ldexp(1024 + m, e - 25) : ldexp(m, -24);
    return h & 0x8000 ? -x : x;
}

static inline int six_bits(const uint8_t *s, int j, bool min, bool cut) {
    if (j < 4)
        return s[j + 4 * min] & 63;
    int low = min ? s[j + 4] >> 4 : s[j + 4] & 15, high = s[j - 4 + 4 * min] >> 6;
    return cut ? low : low | high << 4;
}

/* Value e of 256 of a Q4_K (bits 4) or Q5_K block. */
static inline double value_k(const uint8_t *p, int e, enum bug bug, bool five) {
    int pair = e / 64, upper = e / 32 % 2, l = e % 32;
    const uint8_t *qs = p + (five ? 48 : 16), *qh = p + 16;
    int byte = bug == ZIP_NIBBLES ? 32 * pair + (e % 64) / 2 : 32 * pair + l;
    int use_high = bug == ZIP_NIBBLES ? e & 1 : bug == SWAP_NIBBLES ? !upper : upper;
    int q = use_high ? qs[byte] >> 4 : qs[byte] & 15;
    int plane = bug == HIGH_ELSEWHERE ? e / 32 ^ 1 : bug == SWAP_NIBBLES ? e / 32 ^ 1 : e / 32;
    if (five && bug != NO_HIGH)
        q |= (qh[l] >> plane & 1) << 4;
    int j = e / 32, js = bug == NEXT_SCALE ? (j + 1) % 8 : bug == FIRST_SCALE ? 0 : j;
    int jm = bug == NEXT_MIN ? (j + 1) % 8 : j;
    double scale = half(p) * six_bits(p + 4, js, false, bug == SIX_BIT_CUT);
    double min = half(p + 2) * six_bits(p + 4, jm, true, bug == SIX_BIT_CUT);
    return scale * q - (bug == NO_MIN ? 0 : bug == PLUS_MIN ? -min : min);
}

static inline double value_6(const uint8_t *p, int e, enum bug bug) {
    int h = e / 128, t = e / 32 % 4, l = e % 32, g = bug == NEXT_SCALE ? (e / 16 + 1) % 16 : e / 16;
    int low = p[64 * h + 32 * (t & 1) + l], th = bug == HIGH_ELSEWHERE ? t ^ 1 : t;
    bool upper = (t >= 2) != (bug == SWAP_NIBBLES);
    int q = (upper ? low >> 4 : low & 15);
    if (bug == SWAP_NIBBLES)
        th = t ^ 2;
    if (bug != NO_HIGH)
        q |= (p[128 + 32 * h + l] >> (2 * th) & 3) << 4;
    return half(p + 208) * (int8_t)p[192 + g] * (q - (bug == NO_MIN ? 0 : 32));
}

/* Q4_0 (18 bytes) and Q5_0 (22). */
static inline double value_32(const uint8_t *p, int e, enum bug bug, bool five) {
    int j = bug == ZIP_NIBBLES ? e / 2 : e % 16, shift = five ? 6 : 2;
    bool upper = bug == ZIP_NIBBLES ? e & 1 : (e >= 16) != (bug == SWAP_NIBBLES);
    int q = upper ? p[shift + j] >> 4 : p[shift + j] & 15;
    uint32_t high;
    memcpy(&high, p + 2, 4);
    int at = bug == HIGH_ELSEWHERE ? e ^ 16 : bug == SWAP_NIBBLES ? e ^ 16 : bug == ZIP_NIBBLES ? j + 16 * upper : e;
    if (five && bug != NO_HIGH)
        q |= (int)(high >> at & 1) << 4;
    return half(p) * (q - (bug == NO_MIN ? 0 : five ? 16 : 8));
}

static inline double value(const uint8_t *row, uint32_t type, int64_t k, enum bug bug) {
    int n = par_decode_block_values(type);
    const uint8_t *p = row + k / n * par_decode_row_bytes(type, n);
    return type == FWD_TYPE_Q6_K   ? value_6(p, (int)(k % n), bug)
           : type == FWD_TYPE_Q4_K ? value_k(p, (int)(k % n), bug, false)
           : type == FWD_TYPE_Q5_K ? value_k(p, (int)(k % n), bug, true)
                                   : value_32(p, (int)(k % n), bug, type == FWD_TYPE_Q5_0);
}

/* Value k of the activations of a position as the product reads them. */
static inline double act(int pos, int64_t k) {
    const struct fwd_view *v = &call.in[0];
    const uint8_t *row = (const uint8_t *)v->data + pos * v->nb[1];
    if (v->dtype == FWD_F32)
        return (double)((const float *)(const void *)row)[k];
    int n = par_q8_block_values(v->dtype);
    const uint8_t *p = row + k / n * (int64_t)par_q8_block_bytes(v->dtype);
    float d;
    memcpy(&d, p, 4);
    return (double)d * (int8_t)p[(v->dtype == FWD_Q8_K ? 4 : 8) + k % n];
}

static inline enum fwd_dtype act_for(uint32_t type) {
    return par_decode_block_values(type) == 256 ? FWD_Q8_K : FWD_Q8_32;
}

static inline void matmul_call(enum fwd_op op, int layer, bool as_float) {
    const struct spec_weight *w = par_spec_weight(&model, op, layer);
    enum fwd_dtype type = as_float ? FWD_F32 : act_for(w->type);
    begin_item(op, layer, type);
    float *x = floats(w->n_cols * N_POS, 3);
    call.n_in = 1;
    call.in[0] = view_of(FWD_OP_COUNT, type, w->n_cols, N_POS,
                         as_float ? (void *)x : (void *)quantise(x, w->n_cols, N_POS, type));
    call.out = view_of(op, FWD_F32, w->n_rows, N_POS, floats(w->n_rows * N_POS, 1));
    fill_right();
}

/* Rows [row, row_end) of positions from `from` on as a kernel with that bug has them. */
struct wrong {
    int from;
    int64_t row, row_end;
    const struct spec_weight *w;  /* NULL: the op's own */
    int64_t shift, first, stride; /* of rows; bytes before row 0; bytes a row (0: w's) */
    enum bug bug;
    int64_t only_block, k_end; /* k_end 0: all columns */
    const struct spec_weight *bias;
    double bias_times;
};

static inline void multiply(const struct wrong *b) {
    const struct spec_weight *own = par_spec_weight(&model, item.op, item.layer), *w = b->w ? b->w : own;
    int n = par_decode_block_values(w->type);
    int64_t k_end = b->k_end ? b->k_end : w->n_cols, stride = b->stride ? b->stride : w->row_bytes;
    for (int64_t r = b->row; r < (b->row_end ? b->row_end : own->n_rows); r++) {
        const uint8_t *row = w->data + b->first + (r + b->shift) * stride;
        if (row < w->data || row + w->row_bytes > w->data + w->n_rows * w->row_bytes)
            continue;
        for (int pos = b->from; pos < N_POS; pos++) {
            double sum = 0;
            for (int64_t k = 0; k < k_end; k++)
                sum +=
                    act(pos, k) * value(row, w->type, k, b->only_block >= 0 && k / n != b->only_block ? NONE : b->bug);
            float bias = 0;
            if (b->bias && b->bias->data)
                memcpy(&bias, b->bias->data + 4 * r, 4);
            out_row(pos)[r] = (float)(sum + b->bias_times * (double)bias);
        }
    }
}

static inline struct wrong like_spec(void) {
    return (struct wrong){.only_block = -1, .bias = par_spec_bias(&model, item.op, item.layer), .bias_times = 1};
}

static inline float half_of(double x) {
    return par_f16_to_f32(par_f32_to_f16((float)x));
}

#endif
