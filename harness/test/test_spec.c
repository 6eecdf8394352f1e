/* The evaluators one by one, on inputs small enough to work the numbers out by hand, each with a wrong answer beside
 * the right one: an evaluator that cannot go red proves nothing. */
#include "spec/bound.h"
#include "spec/spec_quant.h"
#include "test/spec_case.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- decoders
 * -------------------------------------------------------------------------------------------------------- */
static const char *const golden_types[] = {"F32",  "F16",  "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1",
                                           "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"};
enum { N_TYPES = sizeof golden_types / sizeof *golden_types };

static uint8_t *read_file(const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    ck_assert_msg(f != NULL, "%s: cannot open (run from the repository root)", path);
    (void)fseek(f, 0, SEEK_END);
    *n = (size_t)ftell(f);
    rewind(f);
    uint8_t *data = fwd_alloc(*n, 1);
    ck_assert_ptr_nonnull(data);
    ck_assert_uint_eq(fread(data, 1, *n, f), *n);
    (void)fclose(f);
    return data;
}

START_TEST(decode_golden) {
    char path[64];
    const char *name = golden_types[_i];
    (void)snprintf(path, sizeof path, "fixtures/golden/quant_%s.bin", name);
    for (char *p = path; *p; p++)
        *p = *p >= 'A' && *p <= 'Z' ? (char)(*p + 32) : *p;
    uint32_t type = fwd_type_by_name(name)->id, n_blocks;
    size_t n_bytes, values = (size_t)par_decode_block_values(type);
    uint8_t *data = read_file(path, &n_bytes);
    memcpy(&n_blocks, data, 4);
    ck_assert_uint_gt(n_blocks, 100);
    size_t n = n_blocks * values, in_bytes = (size_t)par_decode_row_bytes(type, (int64_t)n);
    ck_assert_uint_eq(n_bytes, 4 + in_bytes + 4 * n);
    float *got = fwd_alloc(n, sizeof *got);
    par_decode_row(type, data + 4, got, (int64_t)n);
    for (size_t i = 0; i < n; i++) {
        uint32_t want, have;
        float w;
        memcpy(&want, data + 4 + in_bytes + 4 * i, 4);
        memcpy(&w, &want, 4);
        memcpy(&have, &got[i], 4);
        if (want != have && !(isnan(w) && isnan(got[i])))
            ck_abort_msg("%s block %zu value %zu: got %08x, expected %08x", name, i / values, i % values, have, want);
    }
    fwd_free(got);
    fwd_free(data);
}
END_TEST

START_TEST(decode_q4_k_by_hand) {
    /* d = 1, dmin = 0.5. Scale 0 = 5, min 0 = 3; scale 1 = 11, min 1 = 0; scale 4 = 7 | 2 << 4 = 39 (low nibble of byte
     * 8, top bits of byte 0), min 4 = 9 | 1 << 4 = 25 (high nibble of byte 8, top bits of byte 4). */
    uint8_t b[144] = {0x00, 0x3c, 0x00, 0x38};
    uint8_t *s = b + 4, *qs = b + 16;
    float y[256];
    s[0] = 5 | 2 << 6;
    s[1] = 11;
    s[4] = 3 | 1 << 6;
    s[8] = 7 | 9 << 4;
    qs[0] = 0x2a;  /* element 0 is 10, element 32 is 2 */
    qs[64] = 0xf1; /* third pair: element 128 is 1, element 160 is 15 */
    par_decode_row(FWD_TYPE_Q4_K, b, y, 256);
    ck_assert_msg(y[0] == 5 * 10 - 0.5f * 3, "element 0: %g", (double)y[0]);
    ck_assert_msg(y[1] == -1.5f, "element 1: %g", (double)y[1]);
    ck_assert_msg(y[32] == 11 * 2, "element 32: %g", (double)y[32]);
    ck_assert_msg(y[128] == 39 * 1 - 0.5f * 25, "element 128: %g", (double)y[128]);
    ck_assert_msg(y[160] == 0, "element 160: %g (scale and min 5 are 0)", (double)y[160]);
}
END_TEST

START_TEST(decode_q6_k_by_hand) {
    /* d = 2. Element 96 + 3 of the first half: high nibble of ql[32 + 3], bits 6-7 of qh[3], scale 6. */
    uint8_t b[210] = {0};
    float y[256];
    b[208] = 0x00;
    b[209] = 0x40;
    b[192 + 6] = (uint8_t)-3;
    b[35] = 0x90;      /* 9 */
    b[128 + 3] = 0xc0; /* 3 << 4 */
    par_decode_row(FWD_TYPE_Q6_K, b, y, 256);
    ck_assert_msg(y[99] == 2 * -3 * (9 + 48 - 32), "element 99: %g", (double)y[99]);
    ck_assert_msg(y[98] == 2 * -3 * -32, "element 98: %g", (double)y[98]);
    ck_assert_msg(y[0] == 0, "element 0: %g", (double)y[0]);
}
END_TEST

START_TEST(half_floats) {
    for (uint32_t h = 0; h < 65536; h++) {
        float x = par_f16_to_f32((uint16_t)h);
        if (isnan(x))
            ck_assert_msg((h & 0x7fff) > 0x7c00, "%04x", h);
        else
            ck_assert_msg(par_f32_to_f16(x) == h, "%04x: got %04x", h, par_f32_to_f16(x));
    }
    const struct {
        float x;
        unsigned h;
    } ties[] = {{1 + 0x1p-11f, 0x3c00},
                {1 + 0x3p-11f, 0x3c02},
                {1 + 0x1.002p-11f, 0x3c01},
                {65519.996f, 0x7bff},
                {65520, 0x7c00},
                {-65520, 0xfc00},
                {0x1p-25f, 0},
                {0x1.8p-25f, 1},
                {0x3p-25f, 2},
                {-0x1.000002p-25f, 0x8001},
                {0x1.ffcp-15f, 0x0400},
                {0x1p-24f, 1},
                {1e-30f, 0},
                {-0.0f, 0x8000}};
    for (size_t i = 0; i < sizeof ties / sizeof *ties; i++)
        ck_assert_msg(par_f32_to_f16(ties[i].x) == ties[i].h, "%a: got %04x, expected %04x", (double)ties[i].x,
                      par_f32_to_f16(ties[i].x), ties[i].h);
}
END_TEST

/* ---- quantiser
 * ------------------------------------------------------------------------------------------------------- */
START_TEST(quantiser) {
    struct spec_q8 q;
    float x[256] = {127, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, -126.5f};
    par_q8_quantise(x, 32, &q); /* amax 127: d = 1, id = 1, so the values themselves round half to even */
    const int want[] = {127, 0, 2, 2, 0, -2, -2, -126};
    ck_assert_msg(q.d == 1, "d %g", (double)q.d);
    for (int i = 0; i < 8; i++)
        ck_assert_msg(q.q[i] == want[i], "code %d: got %d, expected %d", i, q.q[i], want[i]);
    ck_assert_int_eq(q.sum16[0], 127 + 2 + 2 - 2 - 2 - 126);
    ck_assert_int_eq(q.sum16[1], 0);
    x[200] = NAN;
    par_q8_quantise(x, 256, &q);
    ck_assert_msg(isnan(q.d) && q.q[0] == 0 && q.sum16[0] == 0, "a NaN makes the block NaN and 0");
    x[200] = -INFINITY;
    par_q8_quantise(x, 256, &q);
    ck_assert_msg(isnan(q.d) && q.q[0] == 0, "an infinity too");
    for (int i = 0; i < 256; i++)
        x[i] = 0x1.fffffep-101f;
    par_q8_quantise(x, 256, &q);
    ck_assert_msg(q.d == 0 && q.q[0] == 0, "below 2^-100 all is 0");
    for (int i = 0; i < 256; i++)
        x[i] = -0x1p-100f;
    par_q8_quantise(x, 256, &q);
    ck_assert_msg(q.d == 0x1p-100f / 127.0f && q.q[255] == -127 && q.sum16[15] == -127 * 16, "at 2^-100 not");
}
END_TEST

/* ---- the bound
 * ------------------------------------------------------------------------------------------------------- */
START_TEST(bound_by_hand) {
    /* N = 2^32, delta = 1e-6: L = sqrt(2 ln(2^33 / 1e-6)) = sqrt(2 * (33 * 0.693147 + 13.815511)) = 8.56620 */
    double g = par_gamma(16, 0x1p-24), u = 0x1p-24;
    ck_assert_msg(fabs(g / (8.56620 * 4 * u) - 1) < 1e-4, "g(16) = %g", g);
    ck_assert_msg(par_gamma(0, u) == 0 && par_gamma(16, 0) == 0, "no inexact additions, no error");
    struct fwd_numerics nm = {.accumulator = FWD_ACC_F32, .chain_block = 256, .chain_per_block = 2, .chain_extra = 1};
    ck_assert_msg(par_chain_steps(&nm, 1000) == 9, "4 blocks of 2 and 1: %g", par_chain_steps(&nm, 1000));
    nm.chain_block = 0;
    ck_assert_msg(par_chain_steps(&nm, 1000) == 1000, "undeclared: one after the other");
    nm.accumulator = FWD_ACC_EXACT;
    ck_assert_msg(par_chain_steps(&nm, 1000) == 0, "exact");
    /* sum|t| = 1: a term of 0.5 u is swallowed whole, one of 4 u loses at most u, one of 16 u is not small */
    ck_assert_msg(par_swallowed(u, 1, -0.5 * u) == 0.5 * u && par_swallowed(u, 1, 4 * u) == u &&
                      par_swallowed(u, 1, 16 * u) == 0,
                  "section 2.1, rule 1");
}
END_TEST

START_TEST(histogram) {
    static struct par_ratio_histogram h, other;
    ck_assert_msg(par_ratio_quantile(&h, 0.5) == 0, "empty");
    for (int i = 1; i <= 1000; i++)
        par_ratio_add(i % 2 ? &h : &other, i / 1000.0);
    par_ratio_merge(&h, &other);
    ck_assert_uint_eq(h.n, 1000);
    double p50 = par_ratio_quantile(&h, 0.5), p99 = par_ratio_quantile(&h, 0.99);
    ck_assert_msg(p50 >= 0.5 && p50 <= 0.5 * 1.0626, "p50 %g", p50);
    ck_assert_msg(p99 >= 0.99 && p99 <= 0.99 * 1.0626, "p99 %g", p99);
    for (int i = 0; i < 2000; i++)
        par_ratio_add(&h, 0);
    ck_assert_msg(par_ratio_quantile(&h, 0.5) == 0, "most are 0");
    par_ratio_add(&other, PAR_RATIO_CAP);
    ck_assert_msg(par_ratio_quantile(&other, 1) >= PAR_RATIO_CAP / 1.07, "the cap has a bin");
}
END_TEST

/* ---- op by op
 * -------------------------------------------------------------------------------------------------------- */
START_TEST(norm_by_hand) {
    /* mean(x^2) = 9, eps = 7: x / sqrt(16) = 0.75 */
    reset();
    float x[] = {3, -3, 3, 3}, w[] = {1, 2, -1, 0.5f}, y[] = {0.75f, -1.5f, -0.75f, 0.375f};
    model.config.n_embd = 4;
    model.config.norm_eps = 7;
    layer.attn_norm = weight_of(FWD_TYPE_F32, w, 1, 4);
    struct fwd_view in = float_view(FWD_OP_INP_EMBD, x, 4, 5, 1), out = float_view(FWD_OP_ATTN_NORM, y, 4, 5, 1);
    judge(&out, &in, NULL, NULL);
    expect_held(4);
    /* g(4)/2 + 2u + u/2 of squares is about 11.6 u: 20 u is out, and so is the eps of another model */
    expect_caught(&out, y, 1, 20 * 0x1p-24 * 1.5, &in, NULL, NULL);
    reset();
    model.config.n_embd = 4;
    model.config.norm_eps = 7.001;
    layer.attn_norm = weight_of(FWD_TYPE_F32, w, 1, 4);
    judge(&out, &in, NULL, NULL);
    ck_assert_int_eq(row.verdict, PAR_DIVERGED);
    ck_assert_uint_eq(row.n_over, 4);
}
END_TEST

START_TEST(norm_swallowed_terms) {
    /* One massive value before many small ones: in a sequential F32 sum of squares every small square is lost. Rule 1
     * of section 2.1 allows for that; without it a correct engine would be accused. */
    reset();
    enum { N = 4096 };
    static float x[N], w[N], y[N];
    float sum = 0;
    for (int k = 0; k < N; k++) {
        x[k] = k ? 0.7f : 4096.0f; /* 0.49 against 2^24: each addition rounds to nothing */
        w[k] = 1;
        sum += x[k] * x[k];
    }
    ck_assert_msg(sum == 4096.0f * 4096.0f, "the small squares are swallowed: %.9g", (double)sum);
    float scale = 1.0f / sqrtf(sum / N + 1e-6f);
    for (int k = 0; k < N; k++)
        y[k] = x[k] * scale;
    model.config.n_embd = N;
    model.config.norm_eps = 1e-6;
    layer.attn_norm = weight_of(FWD_TYPE_F32, w, 1, N);
    numerics.final_roundings = 4;
    numerics.sqrt_ulp = numerics.div_ulp = 0.5f;
    struct fwd_view in = float_view(FWD_OP_INP_EMBD, x, N, 0, 1), out = float_view(FWD_OP_ATTN_NORM, y, N, 0, 1);
    judge(&out, &in, NULL, NULL);
    expect_held(N);
    ck_assert_msg(row.ratio_max > 0.2, "ratio %g: the loss of 2007 u/2 must show", row.ratio_max);
}
END_TEST

/* cos 1, sin 1, cos 0.01, sin 0.01 */
#define C1 0.54030230586813972
#define S1 0.84147098480789651
#define C2 0.99995000041666528
#define S2 0.0099998333341666645

static void rope_case(bool neox) {
    reset();
    model.config.n_head = 1;
    model.config.n_kv_head = 1;
    model.config.head_dim = model.config.n_rope = 4;
    model.config.rope_theta = 10000; /* frequencies 1 and 10000^(-2/4) = 0.01 */
    model.config.rope_neox = neox;
    numerics.sincos_ulp = 0.5f;
    numerics.angle = FWD_ACC_F64;
    numerics.accumulator = FWD_ACC_F32;
}

START_TEST(rope_by_hand) {
    float x[] = {1, 2, 3, 4, 1, 2, 3, 4}; /* positions 0 and 1 */
    float norm[] = {1, 2, 3, 4, 0, 0, 0, 0}, neox[] = {1, 2, 3, 4, 0, 0, 0, 0};
    norm[4] = (float)(1 * C1 - 2 * S1); /* pairs (0, 1) and (2, 3) */
    norm[5] = (float)(1 * S1 + 2 * C1);
    norm[6] = (float)(3 * C2 - 4 * S2);
    norm[7] = (float)(3 * S2 + 4 * C2);
    neox[4] = (float)(1 * C1 - 3 * S1); /* pairs (0, 2) and (1, 3) */
    neox[6] = (float)(1 * S1 + 3 * C1);
    neox[5] = (float)(2 * C2 - 4 * S2);
    neox[7] = (float)(2 * S2 + 4 * C2);
    for (int kind = 0; kind < 2; kind++) {
        float *right = kind ? neox : norm, *wrong = kind ? norm : neox;
        struct fwd_view in = float_view(FWD_OP_QCUR, x, 4, 0, 2);
        struct fwd_view out = float_view(FWD_OP_QCUR_ROPE, right, 4, 0, 2);
        rope_case(kind == 1);
        judge(&out, &in, NULL, NULL);
        expect_held(8);
        expect_caught(&out, right, 7, 12 * 0x1p-24 * 4, &in, NULL, NULL);
        rope_case(kind == 1);
        out.data = wrong;
        judge(&out, &in, NULL, NULL);
        ck_assert_msg(row.verdict == PAR_DIVERGED && row.n_over == 4 && row.worst.pos == 1, "the other pairing");
        rope_case(kind == 1);
        out = float_view(FWD_OP_QCUR_ROPE, right, 4, 1, 2);
        in = float_view(FWD_OP_QCUR, x, 4, 1, 2);
        judge(&out, &in, NULL, NULL);
        ck_assert_msg(row.verdict == PAR_DIVERGED, "a position off by one");
    }
}
END_TEST

START_TEST(rope_partial) {
    /* Two of four dimensions turn; the others pass bit for bit. */
    float x[] = {1, 2, 3, 4}, y[] = {(float)(1 * C1 - 2 * S1), (float)(1 * S1 + 2 * C1), 3, 4};
    rope_case(false);
    model.config.n_rope = 2;
    struct fwd_view in = float_view(FWD_OP_QCUR, x, 4, 1, 1), out = float_view(FWD_OP_QCUR_ROPE, y, 4, 1, 1);
    judge(&out, &in, NULL, NULL);
    expect_held(4);
    y[3] = nextafterf(4, 5);
    judge(&out, &in, NULL, NULL);
    ck_assert_msg(row.verdict == PAR_DIVERGED && row.worst.row == 3 && row.ratio_max == PAR_RATIO_CAP, "bound 0");
}
END_TEST

/* Two positions of n_head query heads over n_kv heads of 4 values. */
enum { HEADS = 14, KV = 2, HD = 4 };
static void attention_case(void) {
    reset();
    model.config.n_head = HEADS;
    model.config.n_kv_head = KV;
    model.config.head_dim = HD;
    numerics.exp_ulp = 1;
    numerics.div_ulp = 0.5f;
}

START_TEST(attention_by_hand) {
    /* q = (2, 0, 0, 0), scale 1/sqrt(4): score = k[0]. Keys 0 and ln 3 of KV head 0 give p = 1/4, 3/4 at position 1; KV
     * head 1 has scores ln 3 and 0: p = 3/4, 1/4. Position 0 sees key 0 alone. Heads 0-6 read KV head 0, 7-13 head 1.
     */
    const float l3 = 1.0986123f;
    static float q[2 * HEADS * HD], k[2 * KV * HD], v[2 * KV * HD], o[2 * HEADS * HD];
    for (int i = 0; i < 2 * HEADS; i++)
        q[i * HD] = 2;
    k[0] = 0, k[KV * HD] = l3;       /* head 0 at positions 0 and 1 */
    k[HD] = l3, k[KV * HD + HD] = 0; /* head 1 */
    v[0] = 4, v[KV * HD + 1] = 8;
    v[HD + 2] = 16, v[KV * HD + HD + 3] = -4;
    for (int h = 0; h < HEADS; h++) {
        float *first = o + h * HD, *second = o + (HEADS + h) * HD;
        if (h < 7) {
            first[0] = 4;
            second[0] = 1, second[1] = 6;
        } else {
            first[2] = 16;
            second[2] = 12, second[3] = -1;
        }
    }
    struct fwd_view qv = float_view(FWD_OP_QCUR_ROPE, q, HEADS * HD, 0, 2);
    struct fwd_view kv = float_view(FWD_OP_KCUR_ROPE, k, KV * HD, 0, 2);
    struct fwd_view vv = float_view(FWD_OP_VCUR, v, KV * HD, 0, 2);
    struct fwd_view out = float_view(FWD_OP_KQV_OUT, o, HEADS * HD, 0, 2);
    attention_case();
    judge(&out, &qv, &kv, &vv);
    expect_held(2 * HEADS * HD);
    /* The same rows as a cache: ne = {head_dim, n_kv_head, rows}. */
    struct fwd_view cache[2] = {kv, vv};
    for (int i = 0; i < 2; i++) {
        cache[i].op = i ? FWD_OP_V_CACHE : FWD_OP_K_CACHE;
        cache[i].ne[0] = HD;
        cache[i].ne[1] = KV;
        cache[i].ne[2] = 2;
        cache[i].nb[1] = 4 * HD;
        cache[i].nb[2] = 4 * KV * HD;
    }
    attention_case();
    judge(&out, &qv, &cache[0], &cache[1]);
    expect_held(2 * HEADS * HD);
    attention_case();
    expect_caught(&out, o, (HEADS + 3) * HD + 1, 6 * 400 * 0x1p-24, &qv, &kv, &vv);
    /* Modulo for division: head 1 reads KV head 1, head 7 the same as before. */
    attention_case();
    float keep[HD];
    memcpy(keep, o + (HEADS + 1) * HD, sizeof keep);
    memcpy(o + (HEADS + 1) * HD, o + (HEADS + 7) * HD, sizeof keep);
    judge(&out, &qv, &kv, &vv);
    memcpy(o + (HEADS + 1) * HD, keep, sizeof keep);
    ck_assert_msg(row.verdict == PAR_DIVERGED && row.worst.pos == 1 && row.worst.row / HD == 1, "another head's rows");
    /* A mask off by one: position 0 sees key 1 too. */
    attention_case();
    memcpy(o, o + HEADS * HD, HD * sizeof *o);
    judge(&out, &qv, &kv, &vv);
    ck_assert_msg(row.verdict == PAR_DIVERGED && row.worst.pos == 0 && row.worst.row < HD, "a key of the future");
}
END_TEST

START_TEST(swiglu_by_hand) {
    /* silu(ln 3) = ln 3 * 3/4; silu(-ln 3) = -ln 3 / 4; silu(-200) is far below the smallest F32 */
    reset();
    const double l3 = 1.0986122886681098;
    float gate[] = {0, (float)l3, -(float)l3, -200}, up[] = {7, 2, 4, 3};
    float y[] = {0, (float)(l3 * 1.5), (float)-l3, 0};
    model.config.n_ff = 4;
    numerics.exp_ulp = 1;
    struct fwd_view g = float_view(FWD_OP_FFN_GATE, gate, 4, 0, 1), u = float_view(FWD_OP_FFN_UP, up, 4, 0, 1);
    struct fwd_view out = float_view(FWD_OP_FFN_SWIGLU, y, 4, 0, 1);
    judge(&out, &g, &u, NULL);
    expect_held(4);
    expect_caught(&out, y, 1, 10 * 0x1p-24 * 1.65, &g, &u, NULL);
    reset();
    model.config.n_ff = 4;
    judge(&out, &u, &g, NULL);
    ck_assert_msg(row.verdict == PAR_DIVERGED, "gate and up swapped");
}
END_TEST

START_TEST(sum_by_hand) {
    reset();
    float a[] = {1, 0x1p30f, -3, 0.1f}, b[] = {2, 1, 3, 0.2f}, y[] = {3, 0x1p30f, 0, 0.1f + 0.2f};
    model.config.n_embd = 4;
    struct fwd_view va = float_view(FWD_OP_ATTN_OUT, a, 4, 0, 1), vb = float_view(FWD_OP_INP_EMBD, b, 4, 0, 1);
    struct fwd_view out = float_view(FWD_OP_FFN_INP, y, 4, 0, 1);
    judge(&out, &va, &vb, NULL);
    expect_held(4);
    expect_caught(&out, y, 3, 3 * 0x1p-25, &va, &vb, NULL);
}
END_TEST

START_TEST(embed_by_hand) {
    /* Q8_0 rows of 32: token 1 has d = 0.5 and codes 0 .. 31 */
    reset();
    uint8_t table[2 * 34] = {0};
    float y[2 * 32] = {0};
    table[34 + 1] = 0x38;
    for (int i = 0; i < 32; i++) {
        table[34 + 2 + i] = (uint8_t)i;
        y[i] = 0.5f * (float)i;
    }
    model.config.n_embd = 32;
    model.embedding = weight_of(FWD_TYPE_Q8_0, table, 2, 32);
    int32_t ids[] = {0, 0, 1, 0}; /* positions 0 .. 3 */
    struct fwd_view tokens = {.dtype = FWD_I32, .n_pos = 4, .data = ids};
    struct fwd_view out = float_view(FWD_OP_INP_EMBD, y, 32, 2, 2);
    judge(&out, &tokens, NULL, NULL);
    expect_held(64);
    y[5] = nextafterf(y[5], 3);
    judge(&out, &tokens, NULL, NULL);
    ck_assert_msg(row.verdict == PAR_DIVERGED && row.n_over == 1 && row.worst.pos == 2 && row.worst.row == 5,
                  "one ulp of one element");
    reset();
    model.embedding = weight_of(FWD_TYPE_Q8_0, table, 2, 32);
    ids[3] = 2;
    judge(&out, &tokens, NULL, NULL);
    ck_assert_msg(row.verdict == PAR_UNMEASURED && strstr(row.note, "token id 2"), "%s", row.note);
}
END_TEST

START_TEST(store_by_hand) {
    /* 1 + 2^-11 lies half way between two binary16: to the even one, 1 */
    reset();
    model.config.n_kv_head = 1;
    model.config.head_dim = 4;
    float rows[] = {1 + 0x1p-11f, 2, 3, 4, 5, 6, 7, 70000};
    uint16_t cache[] = {0x3c00, 0x4000, 0x4200, 0x4400, 0x4500, 0x4600, 0x4700, 0x7c00};
    struct fwd_view in = float_view(FWD_OP_KCUR_ROPE, rows, 4, 0, 2);
    struct fwd_view out = {.op = FWD_OP_K_CACHE, .pos0 = 1, .n_pos = 1, .dtype = FWD_F16, .data = cache};
    memcpy(out.ne, (int64_t[]){4, 1, 2, 1}, sizeof out.ne);
    memcpy(out.nb, (int64_t[]){2, 8, 8, 8}, sizeof out.nb);
    numerics.store = FWD_F16;
    judge(&out, &in, NULL, NULL);
    expect_held(7);
    ck_assert_msg(row.n_nonfinite_expected == 1 && row.n_nonfinite_got == 1 && row.n_nonfinite_mismatch == 0,
                  "70000 overflows on both sides");
    cache[0] = 0x3c01; /* the odd neighbour, at a position before this call's */
    judge(&out, &in, NULL, NULL);
    ck_assert_msg(row.verdict == PAR_DIVERGED && row.worst.pos == 0 && row.worst.row == 0, "a stale row");
    cache[7] = 0x7bff; /* 65504 where the spec has infinity */
    judge(&out, &in, NULL, NULL);
    ck_assert_int_eq(row.verdict, PAR_NONFINITE);
}
END_TEST

/* ---- quantised activations and products
 * ------------------------------------------------------------------------------ */
static uint64_t seed = 1;
static uint32_t noise(void) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33);
}
static float noise_float(void) {
    return (float)noise() * 0x1p-30f - 1;
}

/* Blocks of x in a tap's format, by our quantiser; the caller frees. */
static uint8_t *make_q8(enum fwd_dtype type, const float *x, int64_t n) {
    int block = par_q8_block_values(type);
    uint8_t *bytes = fwd_calloc((size_t)(n / block), par_q8_block_bytes(type)), *p = bytes;
    for (int64_t b = 0; b < n / block; b++, p += par_q8_block_bytes(type)) {
        struct spec_q8 q;
        par_q8_quantise(x + b * block, block, &q);
        memcpy(p, &q.d, 4);
        memcpy(p + (type == FWD_Q8_K ? 4 : 8), q.q, (size_t)block);
        int32_t all = q.sum16[0] + q.sum16[1];
        if (type == FWD_Q8_32)
            memcpy(p + 4, &all, 4);
        for (int g = 0; type == FWD_Q8_K && g < 16; g++) {
            int16_t s = (int16_t)q.sum16[g];
            memcpy(p + 260 + 2 * g, &s, 2);
        }
    }
    return bytes;
}

static struct fwd_view q8_view(enum fwd_op op, enum fwd_dtype type, void *data, int64_t n, int n_pos) {
    struct fwd_view v = {.size = sizeof v, .op = op, .n_pos = n_pos, .dtype = type, .data = data};
    v.ne[0] = n;
    v.ne[1] = n_pos;
    return v;
}

START_TEST(q8_bytes) {
    const enum fwd_dtype types[] = {FWD_Q8_K, FWD_Q8_32};
    float x[512];
    for (int i = 0; i < 512; i++)
        x[i] = noise_float();
    for (int t = 0; t < 2; t++) {
        reset();
        numerics.act_rule = FWD_ACT_AMAX127;
        uint8_t *bytes = make_q8(types[t], x, 512);
        struct fwd_view in = float_view(FWD_OP_ATTN_NORM, x, 512, 0, 1);
        struct fwd_view out = q8_view(FWD_OP_ATTN_NORM_Q8, types[t], bytes, 512, 1);
        int n_blocks = 512 / par_q8_block_values(types[t]);
        judge(&out, &in, NULL, NULL);
        expect_held((uint64_t)(512 + n_blocks));
        size_t code = t ? 8 + 5 : 4 + 5, sum = t ? 4 : 260;
        bytes[code]++;
        judge(&out, &in, NULL, NULL); /* the code itself, and the sum that no longer fits it */
        ck_assert_msg(row.verdict == PAR_DIVERGED && row.n_over == 2 && row.worst.row == 5, "code 5 one up");
        bytes[code]--;
        reset();
        numerics.act_rule = FWD_ACT_AMAX127;
        bytes[sum]++;
        judge(&out, &in, NULL, NULL);
        ck_assert_msg(row.verdict == PAR_DIVERGED && row.n_over == 1 && row.worst.row == 512, "a wrong sum");
        bytes[sum]--;
        reset();
        numerics.act_rule = FWD_ACT_AMAX127;
        bytes[0] ^= 1;
        judge(&out, &in, NULL, NULL);
        ck_assert_msg(row.verdict == PAR_DIVERGED && row.n_over == 1 && row.worst.row == 512, "one ulp of the scale");
        fwd_free(bytes);
    }
}
END_TEST

/* Value and bound of every element have the same bits whatever the judge may use of the processor. */
static void check_levels(const struct fwd_view *in, const struct fwd_view *out) {
    const unsigned caps[] = {0, FWD_CPU_AVX2, PAR_CAPS_PLAIN};
    enum { N_CAPS = sizeof caps / sizeof *caps };
    struct par_elements x[N_CAPS];
    struct fwd_error err = {.message = ""};
    for (int i = 0; i < N_CAPS; i++) {
        struct par_eval e = {.op = out->op, .n_pos = out->n_pos, .n_in = 1, .in = {in}, .out = out, .caps = caps[i]};
        e.numerics = &numerics;
        ck_assert_msg(par_spec_elements(&model, NULL, &e, &x[i], &err) == FWD_OK, "%s", err.message);
        size_t bytes = (size_t)(x[i].n_pos * x[i].width) * sizeof(double);
        ck_assert_msg(!memcmp(x[i].expected, x[0].expected, bytes) && !memcmp(x[i].bound, x[0].bound, bytes),
                      "caps %x: other bits than with all", caps[i]);
    }
    for (int i = 0; i < N_CAPS; i++)
        par_elements_free(&x[i]);
}

START_TEST(matmul_by_hand) {
    /* Q8_0 row: d = 0.5, codes 1, 2, 0 ...; activations d = 2, codes 3, 4: 0.5 * 2 * (1*3 + 2*4) = 11, bias 0.25 */
    reset();
    uint8_t w[34] = {0x00, 0x38, 1, 2}, act[40] = {0};
    float two = 2, bias[] = {0.25f}, y[] = {11.25f};
    memcpy(act, &two, 4);
    act[8] = 3;
    act[9] = 4;
    layer.q = weight_of(FWD_TYPE_Q8_0, w, 1, 32);
    layer.q_bias = weight_of(FWD_TYPE_F32, bias, 1, 1);
    struct fwd_view in = q8_view(FWD_OP_ATTN_NORM_Q8, FWD_Q8_32, act, 32, 1);
    struct fwd_view out = float_view(FWD_OP_QCUR, y, 1, 0, 1);
    judge(&out, &in, NULL, NULL);
    expect_held(1);
    ck_assert_msg(row.worst.expected == 11.25, "expected value %.17g", row.worst.expected);
    layer.q_bias.data = NULL;
    judge(&out, &in, NULL, NULL);
    ck_assert_msg(row.verdict == PAR_DIVERGED && row.worst.expected == 11, "a bias that the file does not have");
    /* In floats: (1, 2) . (3, 4) */
    reset();
    float wf[] = {1, 2}, xf[] = {3, 4}, yf[] = {11};
    layer.q = weight_of(FWD_TYPE_F32, wf, 1, 2);
    in = float_view(FWD_OP_ATTN_NORM, xf, 2, 0, 1);
    out = float_view(FWD_OP_QCUR, yf, 1, 0, 1);
    judge(&out, &in, NULL, NULL);
    expect_held(1);
    ck_assert_msg(row.worst.expected == 11, "expected value %.17g", row.worst.expected);
    check_levels(&in, &out);
}
END_TEST

/* Random blocks with finite halves at the given offsets. */
static const struct quant_case {
    uint32_t type;
    int bytes, half[2]; /* offsets of F16 fields, -1: none */
} quant_cases[] = {{FWD_TYPE_Q4_0, 18, {0, -1}},    {FWD_TYPE_Q4_1, 20, {0, 2}},  {FWD_TYPE_Q5_0, 22, {0, -1}},
                   {FWD_TYPE_Q5_1, 24, {0, 2}},     {FWD_TYPE_Q8_0, 34, {0, -1}}, {FWD_TYPE_Q2_K, 84, {80, 82}},
                   {FWD_TYPE_Q3_K, 110, {108, -1}}, {FWD_TYPE_Q4_K, 144, {0, 2}}, {FWD_TYPE_Q5_K, 176, {0, 2}},
                   {FWD_TYPE_Q6_K, 210, {208, -1}}};
enum { N_QUANT = sizeof quant_cases / sizeof *quant_cases, MM_K = 512, MM_N = 7, MM_POS = 3 };

static uint8_t *make_blocks(const struct quant_case *c, int64_t n_blocks) {
    uint8_t *w = fwd_alloc((size_t)n_blocks, (size_t)c->bytes);
    for (int64_t i = 0; i < n_blocks * c->bytes; i++)
        w[i] = (uint8_t)noise();
    for (int64_t b = 0; b < n_blocks; b++)
        for (int i = 0; i < 2 && c->half[i] >= 0; i++) {
            uint16_t h = (uint16_t)(0x2000 + noise() % 0x800) | (uint16_t)(noise() % 8 == 0 ? 0x8000 : 0);
            memcpy(w + b * c->bytes + c->half[i], &h, 2);
        }
    return w;
}

/* sum over k of (weight from its parts) * (activation from its parts), in F64, element by element. */
static double product_by_element(const struct quant_case *c, const uint8_t *w, enum fwd_dtype act, const uint8_t *a) {
    int block = par_decode_block_values(c->type);
    double sum = 0;
    for (int b = 0; b < MM_K / block; b++) {
        struct spec_block s;
        struct spec_q8 q;
        bool ok;
        par_decode_block(c->type, w, b, &s);
        par_q8_read(act, a + (size_t)b * par_q8_block_bytes(act), &q, &ok);
        for (int i = 0; i < block; i++)
            sum += ((double)s.d * s.scale[i / 16] * s.q[i] - (double)s.dmin * s.min[i / 16]) * ((double)q.d * q.q[i]);
    }
    return sum;
}

START_TEST(matmul_every_type) {
    const struct quant_case *c = &quant_cases[_i];
    int block = par_decode_block_values(c->type);
    enum fwd_dtype act = block == 256 ? FWD_Q8_K : FWD_Q8_32;
    static float x[MM_POS * MM_K], y[MM_POS * MM_N];
    reset();
    for (int i = 0; i < MM_POS * MM_K; i++)
        x[i] = noise_float();
    uint8_t *w = make_blocks(c, MM_N * MM_K / block), *a = make_q8(act, x, MM_POS * MM_K);
    size_t act_row = (size_t)(MM_K / block) * par_q8_block_bytes(act);
    layer.q = weight_of(c->type, w, MM_N, MM_K);
    ck_assert_int_eq(layer.q.row_bytes, MM_K / block * c->bytes);
    for (int p = 0; p < MM_POS; p++)
        for (int r = 0; r < MM_N; r++)
            y[p * MM_N + r] = (float)product_by_element(c, w + r * layer.q.row_bytes, act, a + (size_t)p * act_row);
    struct fwd_view in = q8_view(FWD_OP_ATTN_NORM_Q8, act, a, MM_K, MM_POS);
    struct fwd_view out = float_view(FWD_OP_QCUR, y, MM_N, 0, MM_POS);
    numerics.chain_block = block;
    numerics.chain_per_block = 2;
    judge(&out, &in, NULL, NULL);
    expect_held(MM_POS * MM_N);
    ck_assert_msg(row.ratio_max < 0.25, "the same numbers in another order: ratio %g", row.ratio_max);
    check_levels(&in, &out);
    double bound = row.worst.bound;
    int64_t at = row.worst.pos * MM_N + row.worst.row;
    expect_caught(&out, y, at, 4 * bound, &in, NULL, NULL);
    /* One weight code off by one: every position of that row, and no other, gives a wrong value. The byte holds codes
     * of elements that the activations do not cancel. */
    uint8_t *code = w + 2 * layer.q.row_bytes + (c->half[0] == 0 ? c->bytes - 1 : 0);
    if (c->type == FWD_TYPE_Q2_K || c->type == FWD_TYPE_Q3_K)
        code = w + 2 * layer.q.row_bytes + 40;
    *code ^= 1;
    reset();
    layer.q = weight_of(c->type, w, MM_N, MM_K);
    numerics.chain_block = block;
    numerics.chain_per_block = 2;
    judge(&out, &in, NULL, NULL);
    ck_assert_msg(row.verdict == PAR_DIVERGED && row.worst.row == 2 && row.n_over >= 1 && row.n_over <= MM_POS,
                  "one code off by one: %s, %llu over", par_verdict_name(row.verdict), (unsigned long long)row.n_over);
    fwd_free(w);
    fwd_free(a);
}
END_TEST

/* ---- what is not a number, and what is no measurement
 * ---------------------------------------------------------------- */
START_TEST(nonfinite) {
    reset();
    float a[] = {1, NAN, INFINITY, 1, 3e38f}, b[] = {1, 1, 1, 1, 3e38f}, y[] = {2, NAN, INFINITY, 2, INFINITY};
    model.config.n_embd = 5;
    struct fwd_view va = float_view(FWD_OP_ATTN_OUT, a, 5, 0, 1), vb = float_view(FWD_OP_INP_EMBD, b, 5, 0, 1);
    struct fwd_view out = float_view(FWD_OP_FFN_INP, y, 5, 0, 1);
    judge(&out, &va, &vb, NULL);
    expect_held(2); /* the sum that overflows is infinite on both sides */
    ck_assert_msg(row.n_nonfinite_got == 3 && row.n_nonfinite_expected == 3, "counted, not judged");
    const float wrong[] = {INFINITY, -INFINITY, NAN, 0};
    const int at[] = {0, 2, 3, 1};
    for (int i = 0; i < 4; i++) {
        reset();
        model.config.n_embd = 5;
        float keep = y[at[i]];
        y[at[i]] = wrong[i];
        judge(&out, &va, &vb, NULL);
        y[at[i]] = keep;
        ck_assert_msg(row.verdict == PAR_NONFINITE && row.n_nonfinite_mismatch == 1 && row.worst.row == at[i],
                      "%g at %d: %s", (double)wrong[i], at[i], par_verdict_name(row.verdict));
    }
}
END_TEST

START_TEST(value_alone) {
    /* The exact sums, whatever lies in the output; bytes have no such value. */
    reset();
    float a[] = {1, 2, 3, 4}, b[] = {10, 20, 30, 40}, y[4] = {0};
    double got[4];
    struct fwd_error err = {.message = ""};
    model.config.n_embd = 2;
    struct fwd_view va = float_view(FWD_OP_ATTN_OUT, a, 2, 3, 2), vb = float_view(FWD_OP_INP_EMBD, b, 2, 3, 2);
    struct fwd_view out = float_view(FWD_OP_FFN_INP, y, 2, 3, 2);
    struct par_eval e = {.op = FWD_OP_FFN_INP, .pos0 = 3, .n_pos = 2, .n_in = 2, .in = {&va, &vb}, .out = &out};
    e.numerics = &numerics;
    ck_assert_msg(par_spec_value(&model, NULL, &e, got, &err) == FWD_OK, "%s", err.message);
    for (int i = 0; i < 4; i++)
        ck_assert_msg(got[i] == 11 * (i + 1), "value %d: %g", i, got[i]);
    e.op = FWD_OP_K_CACHE;
    ck_assert_int_eq(par_spec_value(&model, NULL, &e, got, &err), FWD_EUNSUPPORTED);
    e.op = FWD_OP_ATTN_NORM_Q8;
    out.dtype = FWD_Q8_K;
    ck_assert_int_eq(par_spec_value(&model, NULL, &e, got, &err), FWD_EUNSUPPORTED);
}
END_TEST

START_TEST(mistrusted) {
    enum { N = 64 };
    static float a[N], b[N], y[N];
    struct fwd_view va = float_view(FWD_OP_ATTN_OUT, a, N, 0, 1), vb = float_view(FWD_OP_INP_EMBD, b, N, 0, 1);
    struct fwd_view out = float_view(FWD_OP_FFN_INP, y, N, 0, 1);
    reset();
    model.config.n_embd = N;
    for (int i = 0; i < N; i++)
        a[i] = (float)(i + 1);
    judge(&out, &va, &vb, NULL);
    ck_assert_msg(row.verdict == PAR_MISTRUSTED && strstr(row.note, "everywhere"), "all zero: %s", row.note);
    reset();
    model.config.n_embd = N;
    for (int i = 0; i < 16; i++)
        y[i] = a[i];
    judge(&out, &va, &vb, NULL);
    ck_assert_msg(row.verdict == PAR_MISTRUSTED && strstr(row.note, "of 64 elements"), "mostly zero: %s", row.note);
    /* A declared chain so long that nothing could be told apart. */
    reset();
    static float x[2] = {1, -1}, w[2 * N];
    for (int i = 0; i < N; i++) {
        w[2 * i] = 1;
        w[2 * i + 1] = 1 + (float)(i + 1) * 0x1p-20f;
        y[i] = -(float)(i + 1) * 0x1p-20f;
    }
    layer.q = weight_of(FWD_TYPE_F32, w, N, 2);
    struct fwd_view in = float_view(FWD_OP_ATTN_NORM, x, 2, 0, 1);
    out = float_view(FWD_OP_QCUR, y, N, 0, 1);
    judge(&out, &in, NULL, NULL);
    expect_held(N);
    reset();
    layer.q = weight_of(FWD_TYPE_F32, w, N, 2);
    numerics.chain_extra = 1000000000;
    judge(&out, &in, NULL, NULL);
    ck_assert_msg(row.verdict == PAR_MISTRUSTED && strstr(row.note, "larger than the value"), "blunt: %s", row.note);
}
END_TEST

START_TEST(unmeasured) {
    /* What cannot be judged is never HELD, also after something was. */
    reset();
    float a[] = {1, 2}, y[] = {2, 4};
    model.config.n_embd = 2;
    struct fwd_view va = float_view(FWD_OP_ATTN_OUT, a, 2, 0, 1), out = float_view(FWD_OP_FFN_INP, y, 2, 0, 1);
    judge(&out, &va, NULL, NULL);
    ck_assert_msg(row.verdict == PAR_UNMEASURED && row.n_judged == 0 && strstr(row.note, "missing"), "%s", row.note);
    judge(&out, &va, &va, NULL);
    ck_assert_msg(row.verdict == PAR_UNMEASURED && row.n_judged == 2, "one call of two");
    reset();
    model.config.n_embd = 2;
    out.device = 1;
    judge(&out, &va, &va, NULL);
    ck_assert_msg(row.verdict == PAR_UNMEASURED && strstr(row.note, "device"), "%s", row.note);
    reset();
    model.config.n_embd = 3;
    out.device = 0;
    judge(&out, &va, &va, NULL);
    ck_assert_msg(row.verdict == PAR_UNMEASURED && strstr(row.note, "expected 3"), "%s", row.note);
}
END_TEST

int main(void) {
    Suite *s = suite_create("spec");
    TCase *t = tcase_create("spec");
    tcase_set_timeout(t, 60);
    tcase_add_loop_test(t, decode_golden, 0, N_TYPES);
    tcase_add_test(t, decode_q4_k_by_hand);
    tcase_add_test(t, decode_q6_k_by_hand);
    tcase_add_test(t, half_floats);
    tcase_add_test(t, quantiser);
    tcase_add_test(t, bound_by_hand);
    tcase_add_test(t, histogram);
    tcase_add_test(t, norm_by_hand);
    tcase_add_test(t, norm_swallowed_terms);
    tcase_add_test(t, rope_by_hand);
    tcase_add_test(t, rope_partial);
    tcase_add_test(t, attention_by_hand);
    tcase_add_test(t, swiglu_by_hand);
    tcase_add_test(t, sum_by_hand);
    tcase_add_test(t, embed_by_hand);
    tcase_add_test(t, store_by_hand);
    tcase_add_test(t, q8_bytes);
    tcase_add_test(t, matmul_by_hand);
    tcase_add_loop_test(t, matmul_every_type, 0, N_QUANT);
    tcase_add_test(t, nonfinite);
    tcase_add_test(t, value_alone);
    tcase_add_test(t, mistrusted);
    tcase_add_test(t, unmeasured);
    suite_add_tcase(s, t);
    SRunner *runner = srunner_create(s);
    srunner_set_fork_status(runner, CK_FORK);
    srunner_run_all(runner, CK_ENV);
    int n_run = srunner_ntests_run(runner), n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_run == 0 ? 3 : n_failed != 0;
}
