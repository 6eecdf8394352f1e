/* Where errors lie, in words and numbers. Weights are changed in a copy of a model's bytes, or outputs as the judge
 * sees them, at places that each test chooses; what the localiser says must name them. */
#include "localise/pattern.h"

#include "fixture/make.h"
#include "fixture/vocab.h"
#include "localise/index_set.h"
#include "spec/spec_model.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { N_TOKENS = 80, FF = 1536, EMBD = 256, LAYERS = 2, Q4_K_BYTES = 144, Q6_K_BYTES = 210 };

static uint64_t seed;
static uint32_t noise(void) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33);
}

/* ---- the model -----------------------------------------------------------------------------------------------------
 */
struct model {
    uint8_t *clean, *dirty; /* the file's bytes; what the path under test reads */
    size_t n_bytes;
    struct fwd_gguf *clean_file, *dirty_file;
    struct par_spec_model *spec;
};
static struct model model;

static void check_ok(enum fwd_status rc, const struct fwd_error *err) {
    ck_assert_msg(rc == FWD_OK, "%s", err->message);
}

static void make_model(void) {
    static const struct par_shape shape = {"pattern", "", EMBD, FF, LAYERS, 8, 2, PAR_VOCAB_LEAST, 512, false};
    struct fwd_error err = {.message = ""};
    char path[] = "/tmp/parity_pattern_XXXXXX";
    int fd = mkstemp(path);
    ck_assert_int_ge(fd, 0);
    struct par_make_args args = {.shape = &shape, .seed = 3, .path = path};
    check_ok(par_model_make(&args, &err), &err);
    FILE *f = fopen(path, "rb");
    ck_assert_ptr_nonnull(f);
    (void)fseek(f, 0, SEEK_END);
    model.n_bytes = (size_t)ftell(f);
    rewind(f);
    model.clean = fwd_alloc(model.n_bytes, 1);
    model.dirty = fwd_alloc(model.n_bytes, 1);
    ck_assert(model.clean && model.dirty);
    ck_assert(fread(model.clean, 1, model.n_bytes, f) == model.n_bytes);
    (void)fclose(f);
    (void)close(fd);
    (void)unlink(path);
    memcpy(model.dirty, model.clean, model.n_bytes);
    check_ok(fwd_gguf_parse(&model.clean_file, model.clean, model.n_bytes, &err), &err);
    check_ok(fwd_gguf_parse(&model.dirty_file, model.dirty, model.n_bytes, &err), &err);
    check_ok(par_spec_open(&model.spec, model.clean_file, &err), &err);
    seed = 11;
}

static void free_model(void) {
    par_spec_close(model.spec);
    fwd_gguf_close(model.clean_file);
    fwd_gguf_close(model.dirty_file);
    fwd_free(model.clean);
    fwd_free(model.dirty);
}

/* The bytes of block b of a row of the matrix of (op, layer) in the copy that the path reads. */
static uint8_t *dirty_block(enum fwd_op op, int layer, int64_t row, int64_t b) {
    const struct spec_weight *w = par_spec_weight(model.spec, op, layer);
    int64_t at = w->type == FWD_TYPE_Q4_K ? Q4_K_BYTES : Q6_K_BYTES;
    ck_assert(w->type == FWD_TYPE_Q4_K || w->type == FWD_TYPE_Q6_K);
    return model.dirty + (w->data - model.clean) + row * w->row_bytes + b * at;
}

static uint64_t offset_of(const uint8_t *dirty) {
    return (uint64_t)(dirty - model.dirty);
}

/* ---- a judged pass -------------------------------------------------------------------------------------------------
 */
typedef void tamper_fn(const struct fwd_view *v);
struct pass {
    const struct fwd_path *path;
    struct fwd_session *session;
    struct par_judge *judge;
    enum fwd_op op;
    int layer;
    tamper_fn *tamper;
};

static int on_tap(void *ud, const struct fwd_view *v) {
    struct pass *p = ud;
    if (p->tamper && v->op == p->op && v->layer == p->layer)
        p->tamper(v);
    return par_judge_tap(p->judge, v);
}

static bool get_numerics(void *ud, enum fwd_op op, int layer, struct fwd_numerics *out) {
    struct pass *p = ud;
    return p->path->numerics(p->session, op, layer, out);
}

/* Runs n tokens over the dirty model, the first n_first in a call of their own, judged against the clean one, and
 * describes the one accused op. */
static void localise_calls(const char *path, int n_first, int n, enum fwd_op op, int layer, tamper_fn *tamper,
                           struct par_pattern *out) {
    struct fwd_error err = {.message = ""};
    int32_t ids[N_TOKENS];
    static float logits[PAR_VOCAB_LEAST];
    for (int i = 0; i < N_TOKENS; i++)
        ids[i] = (i * 37 + 11) % 256;
    struct pass p = {.path = fwd_path_find(path), .op = op, .layer = layer, .tamper = tamper};
    struct fwd_knobs knobs = {.size = sizeof knobs, .n_threads = 1, .n_ctx = 128, .n_seq = 1, .n_batch = N_TOKENS};
    knobs.kv_type = FWD_F16;
    check_ok(p.path->open(&p.session, model.dirty_file, &knobs, &err), &err);
    struct par_judge_options o = {
        .numerics = get_numerics, .numerics_ud = &p, .sample_every = 1, .evidence_bytes = 64 << 20};
    check_ok(par_judge_open(&p.judge, model.spec, &o, &err), &err);
    check_ok(p.path->seq_begin(p.session, 0, &err), &err);
    check_ok(par_judge_seq_begin(p.judge, &err), &err);
    check_ok(par_judge_tokens(p.judge, ids, n, &err), &err);
    for (int pos0 = 0, end = n_first ? n_first : n; pos0 < n; pos0 = end, end = n) {
        struct fwd_run_args a = {.size = sizeof a,
                                 .tokens = ids + pos0,
                                 .n_tokens = end - pos0,
                                 .pos0 = pos0,
                                 .logits = logits,
                                 .tap = on_tap,
                                 .tap_ud = &p};
        check_ok(p.path->run(p.session, &a, &err), &err);
    }
    const struct par_op_row *rows;
    int n_rows;
    check_ok(par_judge_rows(p.judge, &rows, &n_rows, &err), &err);
    struct par_evidence_set set;
    par_judge_take_evidence(p.judge, &set);
    const struct par_evidence *item = par_evidence_find(&set, op, layer);
    *out = (struct par_pattern){.n_accused = 0};
    if (item)
        check_ok(par_pattern_find(model.spec, NULL, item, out, &err), &err);
    par_evidence_free(&set);
    par_judge_close(p.judge);
    p.path->close(p.session);
}

static void localise(const char *path, int n, enum fwd_op op, int layer, tamper_fn *tamper, struct par_pattern *out) {
    localise_calls(path, 0, n, op, layer, tamper, out);
}

/* ---- sets in words -------------------------------------------------------------------------------------------------
 */
/* Marks as digits: 0 not judged, 1 judged, 2 in the set. */
static const struct {
    const char *marks;
    bool open_end;
    const char *text;
} sets[] = {
    {"1111", false, "no row"},
    {"2222", false, "every row"},
    {"0202", false, "every row"}, /* of those judged */
    {"1211", false, "row 1"},
    {"11222111", false, "rows 2-4"},
    {"1111111222", false, "the last 3 rows"},
    {"1112222222", false, "rows 3-9"}, /* most of them: not "the last" */
    {"2221111111", false, "rows 0-2"},
    {"1111222222", true, "rows >= 4"},
    {"1011202022", true, "rows >= 4"}, /* not judged is no gap */
    {"2222111111", true, "rows <= 3"},
    {"1112111211121112", false, "every 4th row from 3"},
    {"1212121211111111", false, "every 2nd row from 1 to 7"},
    {"1121121121121121121121121111121121", false, "every 3rd row from 2 (10 of 11)"},
    {"1211111211112", false, "rows 1, 7 and 12"},
    {"1222122212221111111111", false, "rows 1-11 (9 of 11)"},
    {"122112111121121", false, "5 of 15 rows from 1 to 13"},
};

START_TEST(set_in_words) {
    uint8_t marks[64];
    char text[96];
    struct par_index_set s;
    int64_t n = (int64_t)strlen(sets[_i].marks);
    for (int64_t i = 0; i < n; i++)
        marks[i] = (uint8_t)(sets[_i].marks[i] - '0');
    par_index_set_describe(marks, n, "row", sets[_i].open_end, &s, text, sizeof text);
    ck_assert_str_eq(text, sets[_i].text);
}
END_TEST

/* ---- outputs tampered with -----------------------------------------------------------------------------------------
 */
static void spoil(const struct fwd_view *v, int pos, int64_t row) {
    float *x = (float *)(void *)((uint8_t *)v->data + (pos - v->pos0) * v->nb[1]) + row;
    *x = *x * 1.25f + 1;
}
static void spoil_some(const struct fwd_view *v, int pos_first, int pos_step, int64_t first, int64_t end,
                       int64_t step) {
    for (int pos = pos_first; pos < v->pos0 + v->n_pos; pos += pos_step)
        for (int64_t row = first; row < end; row += step)
            spoil(v, pos, row);
}
static void one_element(const struct fwd_view *v) {
    spoil(v, 5, 17);
}
static void everything(const struct fwd_view *v) {
    spoil_some(v, 0, 1, 0, v->ne[0], 1);
}
static void row_range(const struct fwd_view *v) {
    spoil_some(v, 0, 1, 64, 128, 1);
}
static void last_rows(const struct fwd_view *v) {
    spoil_some(v, 0, 1, v->ne[0] - 7, v->ne[0], 1);
}
static void row_steps(const struct fwd_view *v) {
    spoil_some(v, 0, 1, 3, v->ne[0], 16);
}
static void late_positions(const struct fwd_view *v) {
    spoil_some(v, 64, 1, 0, v->ne[0], 1);
}
static void position_steps(const struct fwd_view *v) {
    spoil_some(v, 3, 16, 0, v->ne[0], 1);
}
static void some_of_late(const struct fwd_view *v) {
    spoil_some(v, 70, 1, 8, 12, 1);
}
static void late_factor(const struct fwd_view *v) {
    for (int pos = 64; pos < v->pos0 + v->n_pos; pos++)
        for (int64_t row = 8; row < 12; row++)
            ((float *)(void *)((uint8_t *)v->data + (pos - v->pos0) * v->nb[1]))[row] *= 1.5f;
}
static void third_head(const struct fwd_view *v) {
    spoil_some(v, 0, 1, 96, 128, 1);
}
static void second_halves(const struct fwd_view *v) {
    for (int head = 0; head < 8; head++)
        spoil_some(v, 0, 1, 32 * head + 16, 32 * head + 32, 1);
}
static void cache_rows(const struct fwd_view *v) {
    for (int pos = 5; pos < 8; pos++)
        for (int d = 0; d < 32; d++) /* binary16, of head 1 */
            ((uint8_t *)v->data + pos * v->nb[2] + v->nb[1] + d * v->nb[0])[0] ^= 1;
}
/* Codes of block 2 at every position, and the sum they belong to. */
static void codes(const struct fwd_view *v) {
    for (int i = 0; i < v->n_pos; i++) {
        uint8_t *block = (uint8_t *)v->data + i * (int64_t)fwd_dtype_row_bytes(v->dtype, v->ne[0]) + 2 * 292;
        int16_t sum;
        int by = (int8_t)block[4] > 0 ? -1 : 1;
        block[4] = (uint8_t)((int8_t)block[4] + by);
        memcpy(&sum, block + 260, 2);
        sum = (int16_t)(sum + by);
        memcpy(block + 260, &sum, 2);
    }
}

static const struct {
    enum fwd_op op;
    int layer;
    tamper_fn *tamper;
    const char *text;
    int head;
} tampered[] = {
    {FWD_OP_FFN_OUT, 1, one_element, "one element: row 17 of position 5", -1},
    {FWD_OP_FFN_OUT, 1, everything, "all elements", -1},
    {FWD_OP_FFN_OUT, 1, row_range, "rows 64-127 of every position", -1},
    {FWD_OP_ATTN_OUT, 0, last_rows, "the last 7 rows of every position", -1},
    {FWD_OP_FFN_GATE, 0, row_steps, "every 16th row from 3 of every position", -1},
    {FWD_OP_FFN_UP, 1, late_positions, "positions >= 64", -1},
    {FWD_OP_FFN_UP, 1, late_factor, "rows 8-11 of positions >= 64: times 1.5", -1},
    {FWD_OP_FFN_SWIGLU, 1, position_steps, "every 16th position from 3", -1},
    {FWD_OP_L_OUT, 0, some_of_late, "columns 8-11 of positions >= 70", -1},
    {FWD_OP_ATTN_NORM, 1, one_element, "one element: column 17 of position 5", -1},
    {FWD_OP_QCUR_ROPE, 1, third_head, "head 3 of every position", 3},
    {FWD_OP_KQV_OUT, 0, second_halves, "the last 16 dims of every head of every position", -1},
    {FWD_OP_K_CACHE, 1, cache_rows, "head 1 of cache rows 5-7", 1},
    {FWD_OP_FFN_SWIGLU_Q8, 0, codes, "codes of block 2 of every position", -1},
};

START_TEST(outputs) {
    struct par_pattern p;
    localise("q4k-cpu", N_TOKENS, tampered[_i].op, tampered[_i].layer, tampered[_i].tamper, &p);
    ck_assert_str_eq(p.text, tampered[_i].text);
    ck_assert_int_eq(p.head, tampered[_i].head);
    if (par_spec_weight(model.spec, tampered[_i].op, tampered[_i].layer))
        ck_assert(p.n_blocks == 0 && p.byte_last > p.byte_first && p.tensor[0]);
}
END_TEST

/* Unrelated noise on rows of a matrix product, at many positions or one: no K-block is ever named. */
static int noisy_rows;
static void random_noise(const struct fwd_view *v) {
    for (int pos = v->pos0; pos < v->pos0 + v->n_pos; pos++)
        for (int64_t row = 0; row < noisy_rows; row++) {
            float *x = (float *)(void *)((uint8_t *)v->data + (pos - v->pos0) * v->nb[1]) + 7 + row * 5;
            *x += ((float)noise() * 0x1p-30f - 1) * 0.5f;
        }
}

START_TEST(noise_names_nothing) {
    static const int n_tokens[] = {1, 2, 3, 8, N_TOKENS};
    for (size_t i = 0; i < sizeof n_tokens / sizeof *n_tokens; i++)
        for (int rows = 1; rows <= 9; rows += 4) {
            struct par_pattern p;
            noisy_rows = rows;
            localise("q4k-cpu", n_tokens[i], FWD_OP_FFN_OUT, _i, random_noise, &p);
            ck_assert_uint_gt(p.n_accused, 0);
            ck_assert_msg(p.n_blocks == 0, "%d positions, %d rows: %s", n_tokens[i], rows, p.text);
        }
}
END_TEST

/* Noise of a size that a single weight could have, at one position: some weight fits by accident now and then, where
 * bits can be compared as where they cannot, and the localiser knows how often to expect that. */
static float noise_ulps;
static void small_noise(const struct fwd_view *v) {
    float *x = (float *)v->data + noisy_rows;
    *x += *x * 0x1p-24f * noise_ulps * (1 + (float)(noise() % 4000) / 200) * (noise() % 2 ? 1.0f : -1.0f);
}

START_TEST(small_noise_rarely_fits) {
    int n_accused = 0, n_named = 0;
    noise_ulps = _i ? 2000 : 200;
    for (noisy_rows = 0; noisy_rows < 200; noisy_rows++) {
        struct par_pattern p;
        localise(_i ? "f32" : "q4k-cpu", 1, FWD_OP_FFN_OUT, 1, small_noise, &p);
        n_accused += p.n_accused > 0;
        n_named += p.n_blocks > 0;
    }
    ck_assert_msg(n_accused >= 150 && 12 * n_named <= n_accused, "%d accused, %d named", n_accused, n_named);
}
END_TEST

/* ---- weights changed -----------------------------------------------------------------------------------------------
 */
/* Adds or takes one from the code of weight k (a nibble: Q4_K) and returns which. */
static int nudge_weight(enum fwd_op op, int layer, int64_t row, int64_t k) {
    int64_t i = k % 256;
    uint8_t *block = dirty_block(op, layer, row, k / 256), *byte = block + 16 + 32 * (i / 64) + i % 32;
    int shift = i % 64 < 32 ? 0 : 4, code = *byte >> shift & 15, by = code < 15 ? 1 : -1;
    *byte = (uint8_t)(*byte + by * (1 << shift));
    return by;
}

START_TEST(one_weight) {
    struct par_pattern p;
    char text[160];
    int64_t row = noise() % FF, k = noise() % EMBD;
    enum fwd_op op = _i % 2 ? FWD_OP_FFN_GATE : FWD_OP_FFN_UP;
    if (_i >= 4) {
        op = FWD_OP_ATTN_OUT;
        row = noise() % EMBD;
    }
    int by = nudge_weight(op, _i % LAYERS, row, k);
    localise(_i % 3 == 2 ? "f32" : "q4k-cpu", N_TOKENS, op, _i % LAYERS, NULL, &p);
    ck_assert_msg(p.n_blocks == 1 && p.block[0] == k / 256, "%s", p.text);
    ck_assert_int_eq(p.k_first, k);
    ck_assert_int_eq(p.k_last, k);
    ck_assert_int_eq(p.row_first, row);
    ck_assert(p.block_share > 0.9);
    (void)snprintf(text, sizeof text, "one weight, k = %d, off by %+d", (int)k, by);
    ck_assert_msg(strstr(p.text, text) && !strncmp(p.text, "K-block 0 of row ", 17), "%s", p.text);
    uint64_t first = offset_of(dirty_block(op, _i % LAYERS, row, k / 256));
    ck_assert_uint_eq(p.byte_first, first);
    ck_assert_uint_eq(p.byte_last, first + Q4_K_BYTES - 1);
    ck_assert(strstr(p.tensor, "blk.") == p.tensor);
}
END_TEST

/* A NaN at one position of the same row hides nothing of the others. */
static void nan_at_5(const struct fwd_view *v) {
    ((float *)(void *)((uint8_t *)v->data + 5 * v->nb[1]))[17] = NAN;
}
START_TEST(weight_beside_nan) {
    struct par_pattern p;
    int by = nudge_weight(FWD_OP_FFN_GATE, 0, 17, 99);
    char text[64];
    localise("q4k-cpu", N_TOKENS, FWD_OP_FFN_GATE, 0, nan_at_5, &p);
    (void)snprintf(text, sizeof text, "one weight, k = 99, off by %+d", by);
    ck_assert_msg(strstr(p.text, text) && p.k_first == 99, "%s", p.text);
}
END_TEST

/* The layer whose ffn_down, the matrix with six blocks in a row, has this type. */
static int layer_of(uint32_t type) {
    for (int layer = 0; layer < LAYERS; layer++)
        if (par_spec_weight(model.spec, FWD_OP_FFN_OUT, layer)->type == type)
            return layer;
    return -1;
}

enum block_edit { SCALE, MIN, D, DMIN, ZERO, SCALES, NIBBLES, NEXT_ROW, N_EDITS };
static const char *const edit_text[N_EDITS] = {"the scale of k = 1056-1087 off by +1",
                                               "the min of k = 1056-1087 off by -1",
                                               "its scale times 1.5",
                                               "its min times 1.5",
                                               "left out",
                                               "several of its scales and mins are wrong",
                                               "many of its weights are read wrongly",
                                               "read from the next row"};

/* A Q4_K block with a d of 2^-12, a dmin of 2^-9, and 20 as the scale and the min of sub-block 1. */
static void set_block(uint8_t *b) {
    static const uint8_t d_dmin[4] = {0x00, 0x0c, 0x00, 0x18};
    memcpy(b, d_dmin, sizeof d_dmin);
    b[4 + 1] = (uint8_t)((b[4 + 1] & 0xc0) | 20);
    b[4 + 5] = (uint8_t)((b[4 + 5] & 0xc0) | 20);
}

static void edit_block(enum block_edit edit, uint8_t *b) {
    if (edit == SCALE)
        b[4 + 1]++;
    if (edit == MIN)
        b[4 + 5]--;
    if (edit == D || edit == DMIN) /* the fraction's top bit: 1.5 times the power of two */
        b[edit == D ? 1 : 3] |= 2;
    if (edit == ZERO)
        memset(b, 0, 4);
    for (int i = 16; edit == NIBBLES && i < Q4_K_BYTES; i++)
        b[i] = (uint8_t)(b[i] << 4 | b[i] >> 4);
    if (edit == SCALES) { /* sub-blocks 0 to 3 have each other's scales and mins */
        uint8_t s[4] = {b[5], b[6], b[7], b[4]}, m[4] = {b[10], b[11], b[8], b[9]};
        memcpy(b + 4, s, 4);
        memcpy(b + 8, m, 4);
    }
}

/* Block 4 of rows 20 to 23. */
START_TEST(one_block) {
    int layer = layer_of(FWD_TYPE_Q4_K);
    struct par_pattern p;
    char text[160];
    ck_assert_int_ge(layer, 0);
    for (int64_t row = 20; row < 24; row++) {
        uint8_t *dirty = dirty_block(FWD_OP_FFN_OUT, layer, row, 4), *clean = model.clean + offset_of(dirty);
        if (_i < NIBBLES) /* whose own scales keep it comparable with the other blocks */
            set_block(clean);
        memcpy(dirty, clean, Q4_K_BYTES);
        edit_block((enum block_edit)_i, dirty);
        if (_i == NEXT_ROW)
            memcpy(dirty, clean + par_spec_weight(model.spec, FWD_OP_FFN_OUT, layer)->row_bytes, Q4_K_BYTES);
    }
    localise("q4k-cpu", N_TOKENS, FWD_OP_FFN_OUT, layer, NULL, &p);
    (void)snprintf(text, sizeof text, "K-block 4 of rows 20-23 of every position: %s", edit_text[_i]);
    ck_assert_str_eq(p.text, text);
    ck_assert(p.n_blocks == 1 && p.block[0] == 4 && p.block_values == 256);
    ck_assert_int_eq(p.k_first, _i < D ? 1056 : -1);
    ck_assert_int_eq(p.k_last, _i < D ? 1087 : -1);
    int64_t worst_row =
        (int64_t)(p.byte_first - offset_of(dirty_block(FWD_OP_FFN_OUT, layer, 0, 4))) / (6 * Q4_K_BYTES);
    ck_assert_uint_eq(p.byte_first, offset_of(dirty_block(FWD_OP_FFN_OUT, layer, worst_row, 4)));
    ck_assert_uint_eq(p.byte_last, p.byte_first + Q4_K_BYTES - 1);
}
END_TEST

/* A value of the bias: the constant, and where it stands in the file. */
START_TEST(one_bias) {
    const struct spec_weight *b = par_spec_bias(model.spec, FWD_OP_VCUR, 1);
    struct par_pattern p;
    float x;
    ck_assert_ptr_nonnull(b);
    uint8_t *dirty = model.dirty + (b->data - model.clean) + 4 * 21;
    memcpy(&x, dirty, sizeof x);
    x += 0.25f;
    memcpy(dirty, &x, sizeof x);
    localise("q4k-cpu", N_TOKENS, FWD_OP_VCUR, 1, NULL, &p);
    ck_assert_str_eq(p.text, "row 21 of every position: +0.25 is added");
    ck_assert(p.byte_first == offset_of(dirty) && p.byte_last == p.byte_first + 3 && p.n_blocks == 0);
    ck_assert_str_eq(p.tensor, "blk.1.attn_v.bias");
}
END_TEST

/* Weights in different blocks of different rows: no block is guilty of all. */
START_TEST(rows_disagree) {
    int layer = layer_of(FWD_TYPE_Q4_K);
    struct par_pattern p;
    for (int64_t row = 20; row < 24; row++)
        (void)nudge_weight(FWD_OP_FFN_OUT, layer, row, 256 * (row - 19) + 9);
    localise("q4k-cpu", N_TOKENS, FWD_OP_FFN_OUT, layer, NULL, &p);
    ck_assert_msg(p.n_blocks == 0 && p.n_rows_accused == 4 && strstr(p.text, "rows 20-23"), "%s", p.text);
}
END_TEST

/* The tail of every row left out: two of the six blocks. One position is enough. */
START_TEST(tail_of_k) {
    struct par_pattern p;
    int layer = layer_of(FWD_TYPE_Q4_K);
    for (int64_t row = 0; row < EMBD; row++)
        for (int64_t b = 4; b < 6; b++)
            memset(dirty_block(FWD_OP_FFN_OUT, layer, row, b), 0, 4);
    localise("q4k-cpu", _i ? N_TOKENS : 1, FWD_OP_FFN_OUT, layer, NULL, &p);
    ck_assert_msg(!strncmp(p.text, "K-blocks 4-5 of ", 16) && strstr(p.text, ": left out"), "%s", p.text);
    ck_assert(p.n_blocks == 2 && p.block[0] == 4 && p.block[1] == 5);
}
END_TEST

/* One weight seen at one position only: named in most of the cases in which it is seen, and never wrongly. */
START_TEST(one_position) {
    int layer = layer_of(FWD_TYPE_Q4_K), n_seen = 0, n_named = 0, n_wrong = 0;
    for (int i = 0; i < 60; i++) {
        struct par_pattern p;
        int64_t row = noise() % EMBD, k = noise() % FF;
        uint8_t *block = dirty_block(FWD_OP_FFN_OUT, layer, row, k / 256);
        (void)nudge_weight(FWD_OP_FFN_OUT, layer, row, k);
        localise("q4k-cpu", 1, FWD_OP_FFN_OUT, layer, NULL, &p);
        memcpy(block, model.clean + offset_of(block), Q4_K_BYTES);
        n_seen += p.n_accused > 0;
        n_named += p.n_blocks == 1 && p.block[0] == k / 256;
        n_wrong += p.n_blocks > 0 && (p.n_blocks > 1 || p.block[0] != k / 256);
    }
    ck_assert_msg(n_seen >= 45 && n_named * 10 >= n_seen * 9 && n_wrong <= 1, "%d seen, %d named, %d wrong", n_seen,
                  n_named, n_wrong);
}
END_TEST

static void later_call(const struct fwd_view *v) {
    for (int64_t i = 0; v->pos0 > 0 && i < v->ne[0] * v->n_pos; i++)
        ((float *)v->data)[i] += 1;
}

/* What was right in an earlier call is no part of "all elements". */
START_TEST(later_call_only) {
    struct par_pattern p;
    localise_calls("q4k-cpu", 7, 12, FWD_OP_FFN_NORM, 1, later_call, &p);
    ck_assert_int_eq(p.n_pos_judged, 12);
    ck_assert_int_eq(p.n_pos_accused, 5);
    ck_assert_msg(strstr(p.text, "positions >= 7") != NULL, "%s", p.text);
}
END_TEST

static Suite *make_suite(void) {
    Suite *s = suite_create("pattern");
    TCase *words = tcase_create("words");
    tcase_add_loop_test(words, set_in_words, 0, (int)(sizeof sets / sizeof *sets));
    suite_add_tcase(s, words);
    TCase *t = tcase_create("places");
    tcase_add_checked_fixture(t, make_model, free_model);
    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, outputs, 0, (int)(sizeof tampered / sizeof *tampered));
    tcase_add_loop_test(t, noise_names_nothing, 0, LAYERS);
    tcase_add_loop_test(t, small_noise_rarely_fits, 0, 2);
    tcase_add_loop_test(t, one_weight, 0, 6);
    tcase_add_loop_test(t, one_block, 0, N_EDITS);
    tcase_add_loop_test(t, tail_of_k, 0, 2);
    tcase_add_test(t, weight_beside_nan);
    tcase_add_test(t, one_bias);
    tcase_add_test(t, rows_disagree);
    tcase_add_test(t, one_position);
    tcase_add_test(t, later_call_only);
    suite_add_tcase(s, t);
    return s;
}

int main(void) {
    SRunner *runner = srunner_create(make_suite());
    srunner_set_fork_status(runner, CK_FORK);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner), ran = srunner_ntests_run(runner);
    srunner_free(runner);
    return ran == 0 ? 3 : failed != 0;
}
