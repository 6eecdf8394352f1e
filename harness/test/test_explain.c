/* Every signature on evidence made here: inputs from a seed, the right values from the spec, the wrong ones by this
 * file's own arithmetic. Each must be diagnosed as itself and as nothing else; noise must stay unexplained; right
 * values must not be explained at all. */
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

static uint64_t state = 1;

static uint64_t next(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state * 0x2545f4914f6cdd1dULL >> 16;
}

static double real(void) { /* about -1 to 1, seldom near 0 */
    return ((double)(next() % 20001) - 10000) / 10000;
}

static float *floats(int64_t n, double scale) {
    float *x = fwd_alloc((size_t)n, sizeof *x);
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
static void scale_offsets(uint32_t type, int *d, int *m) {
    *d = type == FWD_TYPE_Q6_K ? 208 : type == FWD_TYPE_Q2_K ? 80 : type == FWD_TYPE_Q3_K ? 108 : 0;
    bool two = type == FWD_TYPE_Q4_1 || type == FWD_TYPE_Q5_1 || type == FWD_TYPE_Q4_K || type == FWD_TYPE_Q5_K ||
               type == FWD_TYPE_Q2_K;
    *m = two ? *d + 2 : -1;
}

static void put_half(uint8_t *p, double x) {
    uint16_t h = par_f32_to_f16((float)x);
    memcpy(p, &h, 2);
}

static struct spec_weight matrix(const char *name, uint32_t type, int64_t n_rows, int64_t n_cols) {
    int64_t row = par_decode_row_bytes(type, n_cols), bytes = row * n_rows;
    uint8_t *data = fwd_alloc((size_t)bytes, 1);
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

static void make_model(uint32_t type) {
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

static struct fwd_view view_of(enum fwd_op op, enum fwd_dtype type, int64_t n, int n_pos, void *data) {
    struct fwd_view v = {.size = sizeof v, .op = op, .dtype = type, .n_pos = n_pos, .data = data};
    v.ne[0] = n;
    v.ne[1] = n_pos;
    v.ne[2] = v.ne[3] = 1;
    v.nb[0] = type == FWD_F32 ? 4 : type == FWD_F16 ? 2 : 0;
    v.nb[1] = (int64_t)fwd_dtype_row_bytes(type, n);
    return v;
}

/* n_pos rows quantised by the declared rule, in the tap's layout. */
static uint8_t *quantise(const float *x, int64_t n, int n_pos, enum fwd_dtype type) {
    size_t row = fwd_dtype_row_bytes(type, n), block = par_q8_block_bytes(type);
    int values = par_q8_block_values(type);
    uint8_t *out = fwd_alloc(row, (size_t)n_pos), *p = out;
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

static struct fwd_numerics numerics_of(enum fwd_dtype act) {
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

static void begin_item(enum fwd_op op, int layer, enum fwd_dtype act) {
    call = (struct par_evidence_call){0};
    item = (struct par_evidence){
        .op = op, .layer = layer, .numerics = numerics_of(act), .calls = &call, .n_calls = 1, .n_positions = N_POS};
    call.judge_pos = fwd_alloc(N_POS, 1);
    memset(call.judge_pos, 1, N_POS);
}

static float *out_row(int pos) {
    return (float *)call.out.data + pos * call.out.ne[0];
}

/* Writes the spec's values into the output. */
static void fill_right(void) {
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
static void float_call(enum fwd_op op, int layer, int n_in, int64_t n, int64_t n_out) {
    begin_item(op, layer, FWD_F32);
    call.n_in = n_in;
    for (int i = 0; i < n_in; i++)
        call.in[i] = view_of(FWD_OP_COUNT, FWD_F32, n, N_POS, floats(n * N_POS, 3));
    call.out = view_of(op, FWD_F32, n_out, N_POS, floats(n_out * N_POS, 1));
    fill_right();
}

static float *in_row(int in, int pos) {
    return (float *)call.in[in].data + pos * call.in[in].ne[0];
}

static struct par_diagnosis explain(void) {
    struct par_explain_context context = {.model = &model, .tokens = tokens, .n_tokens = N_POS, .n_prompt = N_PROMPT};
    struct par_diagnosis d;
    struct fwd_error err;
    ck_assert_msg(par_explain(&context, &item, &d, &err) == FWD_OK, "%s", err.message);
    return d;
}

static const char *name_of(const struct par_diagnosis *d) {
    return d->signature ? d->signature->name : "unexplained";
}

static void expect(const char *name) {
    struct par_diagnosis d = explain();
    if (getenv("EXPLAIN_VERBOSE"))
        printf("%-24s %-14s %s: %s (share %g, ratio %g, %llu accused)\n", name, fwd_op_name(item.op), name_of(&d),
               d.text, d.share, d.ratio_max, (unsigned long long)d.n_accused);
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

static double half(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, 2);
    int e = h >> 10 & 31, m = h & 1023;
    double x = e == 31 ? (m ? (double)NAN : HUGE_VAL) : e ? ldexp(1024 + m, e - 25) : ldexp(m, -24);
    return h & 0x8000 ? -x : x;
}

static int six_bits(const uint8_t *s, int j, bool min, bool cut) {
    if (j < 4)
        return s[j + 4 * min] & 63;
    int low = min ? s[j + 4] >> 4 : s[j + 4] & 15, high = s[j - 4 + 4 * min] >> 6;
    return cut ? low : low | high << 4;
}

/* Value e of 256 of a Q4_K (bits 4) or Q5_K block. */
static double value_k(const uint8_t *p, int e, enum bug bug, bool five) {
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

static double value_6(const uint8_t *p, int e, enum bug bug) {
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
static double value_32(const uint8_t *p, int e, enum bug bug, bool five) {
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

static double value(const uint8_t *row, uint32_t type, int64_t k, enum bug bug) {
    int n = par_decode_block_values(type);
    const uint8_t *p = row + k / n * par_decode_row_bytes(type, n);
    return type == FWD_TYPE_Q6_K   ? value_6(p, (int)(k % n), bug)
           : type == FWD_TYPE_Q4_K ? value_k(p, (int)(k % n), bug, false)
           : type == FWD_TYPE_Q5_K ? value_k(p, (int)(k % n), bug, true)
                                   : value_32(p, (int)(k % n), bug, type == FWD_TYPE_Q5_0);
}

/* Value k of the activations of a position as the product reads them. */
static double act(int pos, int64_t k) {
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

static enum fwd_dtype act_for(uint32_t type) {
    return par_decode_block_values(type) == 256 ? FWD_Q8_K : FWD_Q8_32;
}

static void matmul_call(enum fwd_op op, int layer, bool as_float) {
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

static void multiply(const struct wrong *b) {
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

static struct wrong like_spec(void) {
    return (struct wrong){.only_block = -1, .bias = par_spec_bias(&model, item.op, item.layer), .bias_times = 1};
}

START_TEST(decoding) {
    static const struct {
        const char *name;
        uint32_t type;
        enum bug bug;
    } list[] = {{"nibble-order", FWD_TYPE_Q4_K, SWAP_NIBBLES},
                {"nibble-order", FWD_TYPE_Q4_K, ZIP_NIBBLES},
                {"nibble-order", FWD_TYPE_Q6_K, SWAP_NIBBLES},
                {"nibble-order", FWD_TYPE_Q4_0, SWAP_NIBBLES},
                {"nibble-order", FWD_TYPE_Q5_0, ZIP_NIBBLES},
                {"scale-other-subblock", FWD_TYPE_Q4_K, NEXT_SCALE},
                {"scale-other-subblock", FWD_TYPE_Q6_K, NEXT_SCALE},
                {"scale-other-subblock", FWD_TYPE_Q4_K, FIRST_SCALE},
                {"min-other-subblock", FWD_TYPE_Q4_K, NEXT_MIN},
                {"min-dropped", FWD_TYPE_Q4_K, NO_MIN},
                {"min-dropped", FWD_TYPE_Q6_K, NO_MIN},
                {"min-dropped", FWD_TYPE_Q4_0, NO_MIN},
                {"min-added", FWD_TYPE_Q5_K, PLUS_MIN},
                {"high-bits-misplaced", FWD_TYPE_Q5_K, HIGH_ELSEWHERE},
                {"high-bits-misplaced", FWD_TYPE_Q6_K, HIGH_ELSEWHERE},
                {"high-bits-misplaced", FWD_TYPE_Q5_0, HIGH_ELSEWHERE},
                {"high-bits-dropped", FWD_TYPE_Q5_K, NO_HIGH},
                {"high-bits-dropped", FWD_TYPE_Q6_K, NO_HIGH},
                {"high-bits-dropped", FWD_TYPE_Q5_0, NO_HIGH},
                {"high-bits-dropped", FWD_TYPE_Q4_K, SIX_BIT_CUT}};
    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        for (int where = 0; where < 3; where++) { /* everywhere; some rows of late positions; one block of a few rows */
            make_model(list[i].type);
            matmul_call(where == 1 ? FWD_OP_FFN_OUT : FWD_OP_KCUR, 1, where == 1);
            struct wrong b = like_spec();
            b.bug = list[i].bug;
            b.from = where == 1 ? 4 : 0;
            b.row = where ? 30 : 0;
            b.row_end = where == 1 ? 60 : where == 2 ? 33 : 0;
            b.only_block = where == 2 ? 1 : -1;
            multiply(&b);
            expect(list[i].name);
        }
}
END_TEST

START_TEST(weights) {
    make_model(FWD_TYPE_Q4_K);
    struct wrong b;
    matmul_call(FWD_OP_VCUR, 1, false);
    b = like_spec();
    b.w = &layers[2].v;
    multiply(&b);
    expect("weight-other-layer");
    matmul_call(FWD_OP_VCUR, 1, false);
    b = like_spec();
    b.w = &layers[0].v;
    b.bias = &layers[0].v_bias;
    multiply(&b);
    expect("weight-other-layer");
    matmul_call(FWD_OP_VCUR, 1, false);
    b = like_spec();
    b.w = &layers[1].k;
    multiply(&b);
    expect("weight-other-matrix");
    matmul_call(FWD_OP_FFN_GATE, 1, true);
    b = like_spec();
    b.w = &layers[1].up;
    multiply(&b);
    expect("gate-up-swapped");
    matmul_call(FWD_OP_QCUR, 1, false);
    b = like_spec();
    b.row = 2 * HEAD;
    b.row_end = 3 * HEAD;
    b.shift = HEAD;
    multiply(&b);
    expect("weight-other-head");
    matmul_call(FWD_OP_ATTN_OUT, 1, false);
    b = like_spec();
    b.shift = 1;
    multiply(&b);
    expect("weight-stride");
    matmul_call(FWD_OP_FFN_UP, 1, false);
    b = like_spec();
    b.stride = layers[1].up.row_bytes - 144;
    multiply(&b);
    expect("weight-stride");
}
END_TEST

/* The flat matrix read with rows and columns exchanged, and bytes taken for another type's. */
START_TEST(layouts) {
    make_model(FWD_TYPE_Q4_K);
    for (int wide = 0; wide < 2; wide++) {
        matmul_call(wide ? FWD_OP_FFN_UP : FWD_OP_ATTN_OUT, 1, wide != 0);
        const struct spec_weight *w = par_spec_weight(&model, item.op, 1);
        for (int pos = 0; pos < N_POS; pos++)
            for (int64_t r = 0; r < w->n_rows; r++) {
                double sum = 0;
                for (int64_t k = 0; k < w->n_cols; k++) {
                    int64_t at = k * w->n_rows + r;
                    sum += act(pos, k) * value(w->data + at / w->n_cols * w->row_bytes, w->type, at % w->n_cols, NONE);
                }
                out_row(pos)[r] = (float)sum;
            }
        expect("weight-transposed");
    }
    make_model(FWD_TYPE_Q6_K);
    matmul_call(FWD_OP_FFN_UP, 1, false);
    struct spec_weight taken = layers[1].up;
    taken.type = FWD_TYPE_Q4_K;
    struct wrong b = like_spec();
    b.w = &taken;
    multiply(&b);
    expect("weight-other-type");
}
END_TEST

/* ---- rotations ---------------------------------------------------------------------------------------------------
 */
/* Turns the pair (a, b) of a head in place of the right value. */
static void turn(int pos, int head, int a, int b, double angle) {
    const float *x = in_row(0, pos) + head * HEAD;
    float *y = out_row(pos) + head * HEAD;
    y[a] = (float)((double)x[a] * cos(angle) - (double)x[b] * sin(angle));
    y[b] = (float)((double)x[a] * sin(angle) + (double)x[b] * cos(angle));
}

static void rotate(int from_pos, int only_head, double theta, int shift, double times, bool pairs) {
    for (int pos = from_pos; pos < N_POS; pos++)
        for (int head = 0; head < call.out.ne[0] / HEAD; head++)
            for (int i = 0; i < HEAD / 2 && (only_head < 0 || head == only_head); i++)
                turn(pos, head, pairs ? 2 * i : i, pairs ? 2 * i + 1 : i + HEAD / 2,
                     times * (pos + shift) * pow(theta, -2.0 * i / HEAD));
}

START_TEST(rope) {
    make_model(FWD_TYPE_Q4_K);
    struct {
        const char *name;
        int from, head;
        double theta;
        int shift;
        double times;
        bool pairs;
    } list[] = {{"rope-pairing", 0, -1, 1e6, 0, 1, true},   {"rope-base", 0, -1, 1e4, 0, 1, false},
                {"rope-position", 0, -1, 1e6, 1, 1, false}, {"rope-position", 5, -1, 1e6, -5, 1, false},
                {"rope-sign", 0, 3, 1e6, 0, -1, false},     {"rope-twice", 2, -1, 1e6, 0, 2, false},
                {"rope-missing", 3, 1, 1e6, 0, 0, false},   {"rope-base", 0, 2, 5e5, 0, 1, false}};
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        float_call(i % 2 ? FWD_OP_KCUR_ROPE : FWD_OP_QCUR_ROPE, 1, 1, i % 2 ? KV_DIM : N_EMBD, i % 2 ? KV_DIM : N_EMBD);
        rotate(list[i].from, list[i].head, list[i].theta, list[i].shift, list[i].times, list[i].pairs);
        expect(list[i].name);
    }
}
END_TEST

START_TEST(rope_bias) {
    make_model(FWD_TYPE_Q4_K);
    const float *bias = (const float *)(const void *)layers[1].q_bias.data;
    for (int before = 0; before < 2; before++) {
        float_call(FWD_OP_QCUR_ROPE, 1, 1, N_EMBD, N_EMBD);
        for (int pos = 0; pos < N_POS; pos++)
            for (int i = 0; i < N_EMBD; i++)
                in_row(0, pos)[i] += before ? bias[i] : -bias[i];
        rotate(0, -1, 1e6, 0, 1, false);
        for (int pos = 0; pos < N_POS; pos++)
            for (int i = 0; i < N_EMBD; i++) {
                in_row(0, pos)[i] -= before ? bias[i] : -bias[i];
                out_row(pos)[i] += before ? 0 : bias[i];
            }
        expect(before ? "tap-pre-bias" : "bias-after-rope");
    }
}
END_TEST

START_TEST(rope_factors) {
    make_model(FWD_TYPE_Q4_K);
    float *f = floats(HEAD / 2, 1);
    for (int i = 0; i < HEAD / 2; i++)
        f[i] = 1 + 8 * fabsf(f[i]);
    model.rope_factors =
        (struct spec_weight){"rope_freqs", FWD_TYPE_F32, 1, HEAD / 2, 2 * HEAD, (const uint8_t *)f, NULL};
    float_call(FWD_OP_QCUR_ROPE, 1, 1, N_EMBD, N_EMBD);
    rotate(0, -1, 1e6, 0, 1, false);
    expect("rope-scaling-ignored");
}
END_TEST

/* ---- norms -------------------------------------------------------------------------------------------------------
 */
static const float *weight_values(enum fwd_op op, int layer) {
    return (const float *)(const void *)par_spec_weight(&model, op, layer)->data;
}

static void norm(int from, double eps, const float *w, bool mean, int n_summed) {
    for (int pos = from; pos < N_POS; pos++) {
        double sum = 0, m = 0;
        for (int i = 0; i < N_EMBD && mean; i++)
            m += (double)in_row(0, pos)[i] / N_EMBD;
        for (int i = 0; i < n_summed; i++)
            sum += ((double)in_row(0, pos)[i] - m) * ((double)in_row(0, pos)[i] - m);
        double scale = 1 / sqrt(sum / N_EMBD + eps);
        for (int i = 0; i < N_EMBD; i++)
            out_row(pos)[i] = (float)(((double)in_row(0, pos)[i] - m) * scale * (w ? (double)w[i] : 1));
    }
}

START_TEST(norms) {
    make_model(FWD_TYPE_Q4_K);
    const float *own = weight_values(FWD_OP_FFN_NORM, 1);
    for (int i = 0; i < 7; i++) {
        static const char *const names[] = {
            "eps-other",      "norm-weight-missing",     "norm-weight-other-layer", "norm-mean-subtracted",
            "k-tail-skipped", "norm-weight-other-layer", "norm-weight-plus-one"};
        float_call(FWD_OP_FFN_NORM, 1, 1, N_EMBD, N_EMBD);
        float plus[N_EMBD];
        for (int k = 0; k < N_EMBD; k++)
            plus[k] = own[k] + 1;
        const float *w = i == 1   ? NULL
                         : i == 2 ? weight_values(FWD_OP_FFN_NORM, 2)
                         : i == 5 ? weight_values(FWD_OP_ATTN_NORM, 1)
                         : i == 6 ? plus
                                  : own;
        norm(i % 3, i == 0 ? 1e-5 : 1e-6, w, i == 3, i == 4 ? N_EMBD - 16 : N_EMBD);
        expect(names[i]);
    }
}
END_TEST

/* ---- one step an element -----------------------------------------------------------------------------------------
 */
START_TEST(swiglu) {
    make_model(FWD_TYPE_Q4_K);
    static const char *const names[] = {"gate-up-swapped", "gelu-for-silu", "gelu-for-silu", "silu-missing",
                                        "up-missing"};
    for (int i = 0; i < 5; i++) {
        float_call(FWD_OP_FFN_SWIGLU, 1, 2, N_FF, N_FF);
        for (int pos = i % 2 ? 4 : 0; pos < N_POS; pos++)
            for (int k = 0; k < N_FF; k++) {
                double g = (double)in_row(0, pos)[k], u = (double)in_row(1, pos)[k];
                double y = i == 0   ? u / (1 + exp(-u)) * g
                           : i == 1 ? g * 0.5 * erfc(-g / sqrt(2)) * u
                           : i == 2 ? g * 0.5 * (1 + tanh(sqrt(2 / acos(-1)) * (g + 0.044715 * g * g * g))) * u
                           : i == 3 ? g * u
                                    : g / (1 + exp(-g));
                out_row(pos)[k] = (float)y;
            }
        expect(names[i]);
    }
}
END_TEST

START_TEST(sums) {
    make_model(FWD_TYPE_Q4_K);
    static const char *const names[] = {"residual-missing", "residual-missing", "residual-twice", "residual-twice",
                                        "residual-sign"};
    static const float times[][2] = {{1, 0}, {0, 1}, {1, 2}, {2, 1}, {1, -1}};
    for (int i = 0; i < 5; i++) {
        float_call(i % 2 ? FWD_OP_FFN_INP : FWD_OP_L_OUT, 1, 2, N_EMBD, N_EMBD);
        for (int pos = i % 3; pos < N_POS; pos++)
            for (int k = i == 2 ? 100 : 0; k < N_EMBD; k++)
                out_row(pos)[k] = times[i][0] * in_row(0, pos)[k] + times[i][1] * in_row(1, pos)[k];
        expect(names[i]);
    }
}
END_TEST

/* ---- neither -----------------------------------------------------------------------------------------------------
 */
START_TEST(noise_is_unexplained) {
    make_model(FWD_TYPE_Q4_K);
    for (int i = 0; i < 6; i++) {
        static const enum fwd_op ops[] = {FWD_OP_QCUR_ROPE, FWD_OP_FFN_NORM, FWD_OP_L_OUT};
        float_call(ops[i % 3], 1, i % 3 == 2 ? 2 : 1, N_EMBD, N_EMBD);
        for (int pos = 2; pos < 5; pos++)
            for (int k = 7; k < (i < 3 ? 8 : N_EMBD); k++)
                out_row(pos)[k] += (float)(0.01 * real() + 0.02);
        expect("unexplained");
    }
}
END_TEST

START_TEST(right_is_not_explained) {
    make_model(FWD_TYPE_Q4_K);
    float_call(FWD_OP_FFN_NORM, 1, 1, N_EMBD, N_EMBD);
    struct par_diagnosis d = explain();
    ck_assert_uint_eq(d.n_accused, 0);
    ck_assert_msg(!d.signature, "right values are diagnosed as %s", name_of(&d));
}
END_TEST

START_TEST(names_are_unique) {
    const struct par_signature_info *a, *b;
    int n = 0;
    for (; (a = par_signature_info(n)) != NULL; n++)
        for (int j = 0; j < n && (b = par_signature_info(j)) != NULL; j++)
            ck_assert_str_ne(a->name, b->name);
    ck_assert_int_ge(n, 30);
    ck_assert_ptr_null(par_signature_info(n));
    ck_assert_ptr_null(par_signature_info(-1));
}
END_TEST

int main(void) {
    Suite *s = suite_create("explain");
    TCase *t = tcase_create("signatures");
    tcase_set_timeout(t, 120);
    tcase_add_test(t, decoding);
    tcase_add_test(t, weights);
    tcase_add_test(t, layouts);
    tcase_add_test(t, rope);
    tcase_add_test(t, rope_bias);
    tcase_add_test(t, rope_factors);
    tcase_add_test(t, norms);
    tcase_add_test(t, swiglu);
    tcase_add_test(t, sums);
    tcase_add_test(t, noise_is_unexplained);
    tcase_add_test(t, right_is_not_explained);
    tcase_add_test(t, names_are_unique);
    suite_add_tcase(s, t);
    SRunner *runner = srunner_create(s);
    srunner_set_fork_status(runner, CK_FORK);
    srunner_run_all(runner, CK_ENV);
    int n_run = srunner_ntests_run(runner), n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_run == 0 ? 3 : n_failed != 0;
}
