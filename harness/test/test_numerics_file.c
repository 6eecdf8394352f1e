/* Numerics files: every committed one loads and answers; each refusal once; other engines' activation rules against
 * bytes that such an engine made and against sentences of the rule worked out by hand. */
#include "spec/numerics_file.h"
#include "spec/spec_decode.h"
#include "spec/spec_quant.h"
#include "test/spec_case.h"

#include <glob.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- files that are committed ----------------------------------------------------------------------------------- */
static struct par_numerics *load(const char *path) {
    struct par_numerics *n = NULL;
    struct fwd_error err = {.message = ""};
    ck_assert_msg(par_numerics_load(&n, path, &err) == FWD_OK, "%s: %s", path, err.message);
    return n;
}

START_TEST(committed_files) {
    glob_t found;
    ck_assert(glob("contracts/numerics/*.json", 0, NULL, &found) == 0);
    ck_assert_msg(found.gl_pathc >= 6, "%zu files", found.gl_pathc);
    for (size_t i = 0; i < found.gl_pathc; i++) {
        struct par_numerics *n = load(found.gl_pathv[i]);
        char path[256];
        (void)snprintf(path, sizeof path, "contracts/numerics/%s.json", par_numerics_name(n));
        ck_assert_msg(!strcmp(path, found.gl_pathv[i]), "%s calls itself %s", found.gl_pathv[i], par_numerics_name(n));
        ck_assert_msg(strlen(par_numerics_about(n)) > 20, "%s says nothing about itself", path);
        struct fwd_numerics nm;
        ck_assert_msg(par_numerics_of(n, FWD_OP_INP_EMBD, FWD_TYPE_Q4_K, 1536, false, &nm) && nm.act == FWD_I32 &&
                          nm.accumulator == FWD_ACC_EXACT && nm.size == sizeof nm,
                      "%s: the embedding", path);
        for (enum fwd_op op = 0; op < FWD_OP_COUNT; op++)
            for (uint32_t type = 0; type <= FWD_TYPE_BF16; type++)
                if (par_numerics_of(n, op, type, 1536, true, &nm))
                    ck_assert_msg(nm.accumulator == FWD_ACC_EXACT || par_numerics_order_is_open(n, op, type) ||
                                      nm.lanes > 0 || op == FWD_OP_QCUR_ROPE || op == FWD_OP_KCUR_ROPE ||
                                      op == FWD_OP_FFN_SWIGLU || op == FWD_OP_FFN_INP || op == FWD_OP_L_OUT,
                                  "%s: %s has neither an order nor an open one", path, fwd_op_name(op));
        par_numerics_free(n);
    }
    globfree(&found);
}
END_TEST

START_TEST(llama_cpp_avx2) {
    struct par_numerics *n = load("contracts/numerics/llama-cpp-cpu-avx2.json");
    struct fwd_numerics nm, bare;
    ck_assert(par_numerics_of(n, FWD_OP_FFN_OUT, FWD_TYPE_Q6_K, 8960, false, &bare));
    ck_assert(bare.act == FWD_Q8_K && bare.act_rule == FWD_ACT_SIGNED127 && bare.split_blocks &&
              bare.chain_block == 256);
    ck_assert(par_numerics_of(n, FWD_OP_QCUR, FWD_TYPE_Q6_K, 1536, true, &nm));
    ck_assert_msg(nm.final_roundings == bare.final_roundings + 1, "a bias is one rounding more");
    ck_assert(par_numerics_of(n, FWD_OP_KCUR, FWD_TYPE_Q4_1, 576, false, &nm));
    ck_assert(nm.act == FWD_Q8_32 && nm.act_rule == FWD_ACT_HALF127);
    ck_assert_msg(!par_numerics_of(n, FWD_OP_FFN_OUT, FWD_TYPE_Q6_K, 896, false, &nm), "a row of 3.5 blocks");
    ck_assert_msg(!par_numerics_of(n, FWD_OP_FFN_OUT, FWD_TYPE_Q8_1, 512, false, &nm), "a type without an entry");
    ck_assert_msg(!par_numerics_of(n, FWD_OP_ATTN_NORM_Q8, 0, 256, false, &nm), "its bytes are never shown");
    ck_assert(par_numerics_of(n, FWD_OP_KCUR_ROPE, 0, 0, false, &nm) && nm.repeated_angle && nm.angle == FWD_ACC_F32);
    ck_assert(par_numerics_of(n, FWD_OP_V_CACHE, 0, 0, false, &nm) && nm.store == FWD_F16);
    ck_assert(par_numerics_of(n, FWD_OP_KQV_OUT, 0, 0, false, &nm) && nm.operand == FWD_F16);
    ck_assert(par_numerics_order_is_open(n, FWD_OP_KQV_OUT, 0) && !par_numerics_order_is_open(n, FWD_OP_FFN_NORM, 0));
    par_numerics_free(n);
    n = load("contracts/numerics/llama-cpp-cpu-avx2-flash.json");
    ck_assert_msg(!par_numerics_of(n, FWD_OP_KQV_OUT, 0, 0, false, &nm), "unknown is not judged");
    ck_assert(!par_numerics_order_is_open(n, FWD_OP_KQV_OUT, 0));
    par_numerics_free(n);
}
END_TEST

/* ---- refusals --------------------------------------------------------------------------------------------------- */
/* A file that is good; a case replaces one of its entries, or all of it. */
static const struct {
    const char *key, *value;
} good[] = {{"embed", "{\"accumulator\":\"exact\"}"},
            {"norm", "{\"accumulator\":\"f32\",\"lanes\":4}"},
            {"rope", "{\"accumulator\":\"f32\",\"angle\":\"f32\"}"},
            {"kv", "{\"accumulator\":\"exact\",\"store\":\"f16\"}"},
            {"attention", "{\"accumulator\":\"f32\",\"lanes\":\"unknown\",\"key_lanes\":1,\"exp_ulp\":2}"},
            {"swiglu", "{\"accumulator\":\"f32\",\"exp_ulp\":2}"},
            {"add", "{\"accumulator\":\"f32\"}"},
            {"matmul", "{\"Q4_K\":{\"accumulator\":\"f32\",\"lanes\":1,\"act\":\"q8_k\",\"act_rule\":\"signed127\"}}"}};

static enum fwd_status parse(const char *key, const char *value, struct fwd_error *err) {
    char text[4096] = "{\"schema\":1,\"name\":\"n\",\"about\":\"a\",\"source\":\"s\",\"ops\":{\n";
    size_t n = strlen(text);
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        bool this = key && !strcmp(key, good[i].key);
        if (this && !value)
            continue;
        n += (size_t)snprintf(text + n, sizeof text - n, "%s\"%s\":%s\n", i ? "," : "", good[i].key,
                              this ? value : good[i].value);
    }
    n += (size_t)snprintf(text + n, sizeof text - n, "}}");
    struct par_numerics *made = NULL;
    enum fwd_status rc = par_numerics_parse(&made, text, n, "made.json", err);
    ck_assert_msg((rc == FWD_OK) == (made != NULL), "a file is made or it is not");
    par_numerics_free(made);
    return rc;
}

#define Q4K(fields) "{\"Q4_K\":{\"accumulator\":\"f32\",\"lanes\":1," fields "}}"
#define F32(fields) "{\"F32\":{\"lanes\":1," fields "}}"
static const struct {
    const char *key, *value, *message;
} refused[] = {
    {"norm", NULL, "no norm"},
    {"norm", "7", "expected an object"},
    {"norm", "\"perhaps\"", "perhaps, expected an object or \"unknown\""},
    {"norm", "{\"accumulator\":\"f32\",\"lanes\":4,\"ulps\":1}", "ulps"},
    {"norm", "{\"accumulator\":\"f16\",\"lanes\":4}", "accumulator is f16, expected one of f32, f64, exact, tensor"},
    {"norm", "{\"lanes\":4}", "accumulator is missing"},
    {"norm", "{\"accumulator\":1,\"lanes\":4}", "accumulator is no string"},
    {"norm", "{\"accumulator\":\"f32\",\"lanes\":0}", "lanes"},
    {"norm", "{\"accumulator\":\"f32\",\"lanes\":257}", "lanes"},
    {"norm", "{\"accumulator\":\"f32\"}", "no lanes, expected the order of additions"},
    {"norm", "{\"accumulator\":\"f32\",\"lanes\":4,\"sqrt_ulp\":-1}", "sqrt_ulp is -1"},
    {"norm", "{\"accumulator\":\"f32\",\"lanes\":4,\"exp_ulp\":1}", "exp_ulp means nothing there"},
    {"norm", "{\"accumulator\":\"f32\",\"lanes\":4,\"chain_block\":16}", "chain_block 16 with chain_per_block 0"},
    {"norm", "{\"accumulator\":\"f32\",\"lanes\":\"unknown\",\"segment\":16}", "segment 16 and no lanes"},
    {"norm", "{\"accumulator\":\"f32\",\"lanes\":4,\"store\":\"bf16\"}", "store bf16, expected f16, f32 or f64"},
    {"embed", "{\"accumulator\":\"f32\"}", "accumulator f32, expected exact"},
    {"kv", "{\"accumulator\":\"exact\",\"lanes\":1}", "lanes means nothing there"},
    {"add", "{\"accumulator\":\"exact\"}", "accumulator exact, expected one that rounds"},
    {"rope", "{\"accumulator\":\"f32\"}", "angle is missing"},
    {"rope", "{\"accumulator\":\"f32\",\"angle\":\"exact\"}", "angle exact"},
    {"swiglu", "{\"accumulator\":\"f32\"}", "exp_ulp 0"},
    {"attention", "{\"accumulator\":\"f32\",\"lanes\":1,\"exp_ulp\":2}", "no key_lanes"},
    {"attention", "{\"accumulator\":\"f32\",\"lanes\":1,\"exp_ulp\":2,\"key_lanes\":1,\"operand\":\"bf16\"}",
     "operand bf16, expected f16 or f32"},
    {"attention", "{\"accumulator\":\"f32\",\"lanes\":1,\"exp_ulp\":2,\"key_lanes\":\"unknown\",\"key_segment\":64}",
     "key_segment 64 and no key_lanes"},
    {"matmul", "\"unknown\"", "expected an entry for each weight type"},
    {"matmul", "{\"Q4_Z\":\"unknown\"}", "weights of type Q4_Z"},
    {"matmul", "{\"Q4_K\":\"unknown\",\"q4_k\":\"unknown\"}", "a second time"},
    {"matmul", Q4K("\"act\":\"q8_k\""), "act_rule none with act q8_k"},
    {"matmul", Q4K("\"act_rule\":\"signed127\""), "act_rule signed127 with act f32"},
    {"matmul", Q4K("\"act\":\"q8_k\",\"act_rule\":\"half127\""), "act_rule half127 with blocks of 256, expected 32"},
    {"matmul", Q4K("\"act\":\"q8_32\",\"act_rule\":\"signed127\""), "blocks of 32, expected 256"},
    {"matmul", Q4K("\"act\":\"q8_32\",\"act_rule\":\"half127\""), "blocks of 32 and weights in blocks of 256"},
    {"matmul", Q4K("\"act\":\"f16\""), "act_rule none with act f16, expected nearest"},
    {"matmul", Q4K("\"act\":\"i32\""), "act i32"},
    {"matmul", Q4K("\"act\":\"e4m3\""), "expected amax448"},
    {"matmul", Q4K("\"act\":\"e4m3\",\"act_rule\":\"amax448\""), "act e4m3 with a f32 accumulator"},
    {"matmul", Q4K("\"dequantised\":true"), "dequantised or split_blocks with act f32"},
    {"matmul", Q4K("\"act\":\"q8_k\",\"act_rule\":\"signed127\",\"dequantised\":true,\"split_blocks\":true"),
     "expected one of them"},
    {"matmul", Q4K("\"cut_bits\":25"), "cut_bits 25, promote 0 with a f32 accumulator"},
    {"matmul", Q4K("\"operand\":\"bf16\""), "weights rounded to bf16 without a tensor accumulator"},
    {"matmul", F32("\"accumulator\":\"exact\",\"chain_block\":16,\"chain_per_block\":1"), "an exact accumulator has"},
    {"matmul", F32("\"accumulator\":\"tensor\",\"act\":\"bf16\",\"act_rule\":\"nearest\",\"operand\":\"bf16\""),
     "a tensor accumulator with cut_bits 0"},
    {"matmul", F32("\"accumulator\":\"tensor\",\"cut_bits\":25,\"chain_block\":16,\"chain_per_block\":1"),
     "a tensor accumulator with act f32"},
    {"matmul",
     F32("\"accumulator\":\"tensor\",\"cut_bits\":25,\"chain_block\":16,\"chain_per_block\":1,\"act\":\"bf16\","
         "\"act_rule\":\"nearest\""),
     "act bf16 and operand f32"},
};

START_TEST(refusals) {
    struct fwd_error err = {.message = ""};
    ck_assert_msg(parse(NULL, NULL, &err) == FWD_OK, "the good file: %s", err.message);
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        err.message[0] = 0;
        ck_assert_msg(parse(refused[i].key, refused[i].value, &err) == FWD_ECORRUPT, "%s %s was taken", refused[i].key,
                      refused[i].value ? refused[i].value : "(absent)");
        ck_assert_msg(strstr(err.message, refused[i].message) && strstr(err.message, "made.json:"),
                      "case %zu says \"%s\", expected \"%s\"", i, err.message, refused[i].message);
    }
    static const char *const whole[] = {
        "{", "{\"schema\":1}", "{\"schema\":2,\"name\":\"n\",\"about\":\"a\",\"source\":\"s\",\"ops\":{}}",
        "{\"schema\":1,\"name\":\"n\",\"about\":\"a\",\"source\":\"s\",\"ops\":{\"gelu\":\"unknown\"}}"};
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++) {
        struct par_numerics *n = NULL;
        ck_assert_msg(par_numerics_parse(&n, whole[i], strlen(whole[i]), "made.json", &err) == FWD_ECORRUPT && !n,
                      "%s was taken", whole[i]);
    }
    struct par_numerics *n = NULL;
    ck_assert(par_numerics_load(&n, "contracts/numerics/no-such-file.json", &err) == FWD_ENOTFOUND && !n);
}
END_TEST

/* ---- activation rules ------------------------------------------------------------------------------------------- */
static void take(FILE *f, void *to, size_t n) {
    ck_assert_msg(fread(to, 1, n, f) == n, "the golden file is short");
}

/* What llama.cpp's own functions made of the same floats, bit for bit. */
START_TEST(beside_llama_cpp) {
    FILE *f = fopen("fixtures/golden/foreign_act.bin", "rb");
    ck_assert_msg(f != NULL, "no golden file");
    char magic[4];
    uint32_t n_records, head[2], n_rule[16] = {0};
    take(f, magic, 4);
    take(f, &n_records, 4);
    ck_assert(!memcmp(magic, "FACT", 4) && n_records > 100);
    for (uint32_t i = 0; i < n_records; i++) {
        float x[256], d, sum;
        int8_t codes[256];
        take(f, head, sizeof head);
        ck_assert(head[0] < 16 && (head[1] == 32 || head[1] == 256));
        int n = (int)head[1];
        take(f, x, sizeof *x * head[1]);
        take(f, &d, 4);
        take(f, &sum, 4);
        take(f, codes, head[1]);
        struct spec_q8 q;
        ck_assert(par_q8_quantise_as((enum fwd_act_rule)head[0], x, n, &q));
        n_rule[head[0]]++;
        ck_assert_msg(q.d == d, "record %u, rule %u: d %a, expected %a", i, head[0], (double)q.d, (double)d);
        ck_assert_msg(q.has_sum == (head[0] != FWD_ACT_SIGNED127), "record %u: has a sum", i);
        ck_assert_msg(isnan(sum) || q.sum == sum, "record %u, rule %u: sum %a, expected %a", i, head[0], (double)q.sum,
                      (double)sum);
        for (int k = 0; k < n && d != 0; k++) /* where the scale underflowed to 0 the codes mean nothing */
            ck_assert_msg(q.q[k] == codes[k], "record %u, rule %u, code %d of %a: %d, expected %d", i, head[0], k,
                          (double)x[k], q.q[k], codes[k]);
    }
    ck_assert(n_rule[FWD_ACT_SIGNED127] && n_rule[FWD_ACT_HALF127] && n_rule[FWD_ACT_HALF127_AWAY]);
    (void)fclose(f);
}
END_TEST

START_TEST(signed_maximum) {
    /* Of 2 and -2 the first counts: its code is -127, d has the other sign. */
    float x[256] = {0.5f, -2, 2, -1};
    struct spec_q8 q;
    ck_assert(par_q8_quantise_as(FWD_ACT_SIGNED127, x, 256, &q));
    ck_assert_msg(q.q[1] == -127 && q.q[2] == 127 && q.d > 0 && q.q[3] == -64, "%d %d %d %g: 63.5 goes to the even 64",
                  q.q[1], q.q[2], q.q[3], (double)q.d);
    ck_assert_msg(q.d == 1 / (-127.0f / -2.0f) && !q.has_sum && q.sum16[0] == 32 - 127 + 127 - 64,
                  "31.75 is 32; d %a, sum %d", (double)q.d, q.sum16[0]);
    x[1] = 2;
    x[2] = -2;
    ck_assert(par_q8_quantise_as(FWD_ACT_SIGNED127, x, 256, &q));
    ck_assert_msg(q.q[1] == -127 && q.q[2] == 127 && q.d < 0 && q.q[3] == 64, "the same, all signs turned");
    float none[256] = {0, -0.0f};
    ck_assert(par_q8_quantise_as(FWD_ACT_SIGNED127, none, 256, &q) && q.d == 0 && q.q[1] == 0);
    none[7] = 0x1p-149f; /* its reciprocal is infinite: the block is 0, and not NaN */
    ck_assert(par_q8_quantise_as(FWD_ACT_SIGNED127, none, 256, &q) && q.d == 0 && q.q[7] == 0);
    none[9] = NAN;
    none[7] = 1;
    ck_assert_msg(par_q8_quantise_as(FWD_ACT_SIGNED127, none, 256, &q) && q.q[9] == 0 && q.q[7] == -127 && q.d < 0,
                  "a NaN counts for nothing");
}
END_TEST

START_TEST(cuda_rules) {
    /* amax 127 * 1.0009765625 = 127.12402...: the step 1 + 2^-10 is a binary16, so x / step is 0.5 at half a step. */
    float step = 1 + 0x1p-10f, x[32] = {127 * step, 0.5f * step, -0.5f * step, 1.5f * step, -2.5f * step, 0.25f};
    struct spec_q8 q;
    ck_assert(par_q8_quantise_as(FWD_ACT_HALF127_DIVIDED, x, 32, &q));
    const int want[] = {127, 1, -1, 2, -3, 0};
    for (int i = 0; i < 6; i++)
        ck_assert_msg(q.q[i] == want[i], "code %d: %d, expected %d", i, q.q[i], want[i]);
    float raw = 126 * step + 0.25f; /* 127 + 0.5 - 0.5 + 1.5 - 2.5 steps, and what rounds to 0 is in it too */
    ck_assert_msg(q.has_sum && q.d == step && q.sum == par_f16_to_f32(par_f32_to_f16(raw)), "d %a, sum %a", (double)q.d,
                  (double)q.sum);
    ck_assert(par_q8_quantise_as(FWD_ACT_INVERSE127, x, 32, &q));
    ck_assert_msg(!q.has_sum && q.d == 1 / (127 / x[0]) && q.q[0] == 127 && q.q[3] >= 1, "d %a", (double)q.d);
    /* A step that no binary16 has: the codes are made with it, the scale is stored without its last bits. */
    x[0] = 127 * (1 + 0x1p-12f);
    ck_assert(par_q8_quantise_as(FWD_ACT_HALF127_DIVIDED, x, 32, &q) && q.d == 1);
    ck_assert(par_q8_quantise_as(FWD_ACT_INVERSE127, x, 32, &q) && q.d > 1);
    ck_assert(par_q8_quantise_as(FWD_ACT_HALF127, x, 32, &q) && q.d == 1 && q.has_sum);
}
END_TEST

/* ---- what the evaluators make of them ---------------------------------------------------------------------------- */
START_TEST(stored_sum) {
    /* Q4_1, d = 0.5, m = 0.25, codes 2 and 3. The step is 1 + 2^-12, stored as 1; codes 127 and 1, their sum times the
     * unrounded step is 128 + 2^-5, in binary16 128: (0.5 * (2 * 127 + 3)) + 0.25 * 128 = 160.5. With a step of
     * 1 + 2^-10 + 2^-12, stored as 1 + 2^-10, the sum 128 + 0.125 + 2^-5 is stored as 128.125: 128.5 (1 + 2^-10) +
     * 0.25 * 128.125, and not that of the step, 0.25 * 128 * (1 + 2^-10), 0.03125 - 0.03125 = the same; the codes' sum
     * of 5 sets them apart: 5 (1 + 2^-10 + 2^-12) is 5 + 2^-7 to 8 bits more, 5.0039 or 5.0078 away from 5 + 5 * 2^-10.
     */
    const uint8_t w[20] = {0x00, 0x38, 0x00, 0x34, 2, 3};
    float step = 1 + 0x1p-10f + 0x1p-12f, x[32] = {127 * step, -122 * step}, y[1];
    struct fwd_view in = float_view(FWD_OP_ATTN_NORM, x, 32, 0, 1), out = float_view(FWD_OP_QCUR, y, 1, 0, 1);
    struct spec_q8 q;
    ck_assert(par_q8_quantise_as(FWD_ACT_HALF127, x, 32, &q) && q.q[0] == 127 && q.q[1] == -122);
    float sum = par_f16_to_f32(par_f32_to_f16(5 * step));
    ck_assert_msg(q.sum == sum && q.d == 1 + 0x1p-10f && sum != 5 * q.d, "sum %a, d %a", (double)q.sum, (double)q.d);
    reset();
    layer.q = weight_of(FWD_TYPE_Q4_1, w, 1, 32);
    numerics.act = FWD_Q8_32;
    numerics.act_rule = FWD_ACT_HALF127;
    y[0] = 0.5f * q.d * (2 * 127 - 3 * 122) + 0.25f * sum;
    judge(&out, &in, NULL, NULL);
    expect_held(1);
    y[0] = 0.5f * q.d * (2 * 127 - 3 * 122) + 0.25f * 5 * q.d; /* made from the codes after all */
    judge(&out, &in, NULL, NULL);
    ck_assert_msg(row.verdict == PAR_DIVERGED, "%s, ratio %g", par_verdict_name(row.verdict), row.ratio_max);
}
END_TEST

START_TEST(split_blocks) {
    /* Weights of 1 and -1 in turn with activations of 127: the dot of a block is 0, its parts are not, and what is
     * rounded is those. 100 more for one value is a fault either way. */
    static uint8_t w[34] = {0x00, 0x3c};
    float x[32], y[1] = {0x1p-13f};
    for (int i = 0; i < 32; i++) {
        w[2 + i] = i % 2 ? 0xff : 1;
        x[i] = 127;
    }
    struct fwd_view in = float_view(FWD_OP_ATTN_NORM, x, 32, 0, 1), out = float_view(FWD_OP_QCUR, y, 1, 0, 1);
    for (int split = 0; split < 2; split++) {
        reset();
        layer.q = weight_of(FWD_TYPE_Q8_0, w, 1, 32);
        numerics.act = FWD_Q8_32;
        numerics.act_rule = FWD_ACT_HALF127;
        numerics.chain_block = 32;
        numerics.split_blocks = split;
        judge(&out, &in, NULL, NULL);
        ck_assert_msg(row.n_over == (split ? 0 : 1), "split %d: ratio %g", split, row.ratio_max);
        ck_assert_msg(!split || row.worst.bound < 0.001, "bound %g", row.worst.bound);
    }
}
END_TEST

START_TEST(rounded_input) {
    /* 1 + 2^-12 in binary16 is 1. */
    const float w[2] = {3, 0};
    float x[2] = {1 + 0x1p-12f, 0}, y[1] = {3};
    struct fwd_view in = float_view(FWD_OP_ATTN_NORM, x, 2, 0, 1), out = float_view(FWD_OP_QCUR, y, 1, 0, 1);
    for (int half = 0; half < 2; half++) {
        reset();
        layer.q = weight_of(FWD_TYPE_F32, w, 1, 2);
        numerics.act = half ? FWD_F16 : FWD_F32;
        numerics.act_rule = half ? FWD_ACT_NEAREST : FWD_ACT_NONE;
        judge(&out, &in, NULL, NULL);
        ck_assert_msg(row.n_over == (half ? 0 : 1), "half %d: expected %.9g", half, row.worst.expected);
    }
}
END_TEST

/* How far an element of a rotation by 100 positions may be off, pair i. */
static double rope_bound(int pair, bool repeated) {
    float x[8], y[8];
    for (int i = 0; i < 8; i++)
        x[i] = 1;
    reset();
    model.config.head_dim = model.config.n_rope = 8;
    model.config.n_head = 1;
    model.config.rope_theta = 16;
    numerics.angle = FWD_ACC_F32;
    numerics.sincos_ulp = numerics.pow_ulp = 1;
    numerics.repeated_angle = repeated;
    struct fwd_view in = float_view(FWD_OP_QCUR, x, 8, 100, 1), out = float_view(FWD_OP_QCUR_ROPE, y, 8, 100, 1);
    for (int i = 0; i < 4; i++) {
        double a = 100 * pow(16, -i / 4.0);
        y[2 * i] = (float)(cos(a) - sin(a));
        y[2 * i + 1] = (float)(cos(a) + sin(a));
    }
    judge(&out, &in, NULL, NULL);
    expect_held(8);
    y[2 * pair] += 1;
    judge(&out, &in, NULL, NULL);
    ck_assert_int_eq(row.worst.row, 2 * pair);
    return row.worst.bound;
}

START_TEST(repeated_angles) {
    /* Angles 100, 50, 25, 12.5. One pow: 3 u of each angle. Repeated: 0, 3, 6 and 9 u of it, from products and powers
     * of one factor; sqrt(2) is the length of a pair, the rest of the bound is the same. */
    const double u = 0x1p-24, root = sqrt(2);
    for (int i = 0; i < 4; i++) {
        double angle = 100 * pow(2, -i), more = rope_bound(i, true) - rope_bound(i, false);
        ck_assert_msg(fabs(more - (3.0 * i - 3) * u * angle * root) < 0.01 * u * angle, "pair %d: %g u more", i,
                      more / u / angle / root);
    }
}
END_TEST

START_TEST(rounded_queries) {
    /* One key: the output is its value whatever the score. Two: the score of the first is q k / sqrt(1), q = 8 + 2^-8
     * in binary16 is 8; k = 1 and 0, v = 1 and 0: out = 1 / (1 + e^-8), which q unrounded would move by e^-8 * 2^-8. */
    float q[2] = {0, 8 + 0x1p-8f}, k[2] = {1, 0}, v[2] = {0, 4096}, y[2] = {0, (float)(4096 / (1 + exp(8.0)))};
    struct fwd_view vq = float_view(FWD_OP_QCUR_ROPE, q, 1, 0, 2), vk = float_view(FWD_OP_KCUR_ROPE, k, 1, 0, 2),
                    vv = float_view(FWD_OP_VCUR, v, 1, 0, 2), out = float_view(FWD_OP_KQV_OUT, y, 1, 0, 2);
    reset();
    model.config.head_dim = model.config.n_head = model.config.n_kv_head = 1;
    numerics.exp_ulp = 2;
    numerics.operand = FWD_F16;
    judge(&out, &vq, &vk, &vv);
    expect_held(2);
    ck_assert_msg(fabs(row.worst.expected - (double)y[1]) < 1e-6, "expected %.9g", row.worst.expected);
    /* A weight of 3.4e-4 has an ulp of 2^-22 in binary16: half of that for 4096. */
    ck_assert_msg(row.worst.bound > 4096 * 0x1p-23 * 0.5 && row.worst.bound < 0.01, "bound %g", row.worst.bound);
    reset();
    model.config.head_dim = model.config.n_head = model.config.n_kv_head = 1;
    numerics.exp_ulp = 2;
    judge(&out, &vq, &vk, &vv);
    ck_assert_msg(row.n_over == 1, "as it is: ratio %g", row.ratio_max);
}
END_TEST

int main(void) {
    Suite *s = suite_create("numerics files");
    TCase *t = tcase_create("files");
    tcase_set_timeout(t, 60);
    tcase_add_test(t, committed_files);
    tcase_add_test(t, llama_cpp_avx2);
    tcase_add_test(t, refusals);
    suite_add_tcase(s, t);
    t = tcase_create("rules");
    tcase_set_timeout(t, 60);
    tcase_add_test(t, beside_llama_cpp);
    tcase_add_test(t, signed_maximum);
    tcase_add_test(t, cuda_rules);
    tcase_add_test(t, stored_sum);
    tcase_add_test(t, split_blocks);
    tcase_add_test(t, rounded_input);
    tcase_add_test(t, repeated_angles);
    tcase_add_test(t, rounded_queries);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_set_fork_status(r, CK_FORK);
    srunner_run_all(r, CK_ENV);
    int n_failed = srunner_ntests_failed(r), n_run = srunner_ntests_run(r);
    srunner_free(r);
    return n_run == 0 ? 3 : n_failed != 0;
}
