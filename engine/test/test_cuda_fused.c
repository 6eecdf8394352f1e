/* test_cuda_fused.c: the launches of cuda/fused.h against the ops of kernels.h and kernels_tc.h one by one, byte for
 * byte on the device, with what lies between the ops stored and not. With --time: what a launch costs. */
#include "cuda/fused.h"

#include "core/memory.h"
#include "test/cuda_test.h"
#include "test/float_data.h"

static const int widths[] = {32, 96, 256, 576, 896, 1536, 3584, 4224, 8960, 16384, 18944, 28672};
static const int batches[] = {1, 2, 3, 17, 78};
enum { N_WIDTHS = sizeof widths / sizeof *widths, N_BATCHES = sizeof batches / sizeof *batches, NORM_WIDTHS = 10 };

static void *put_floats(const float *x, int64_t n) {
    return cuda_test_put(x, (size_t)n * sizeof *x);
}

static void expect_same(const char *what, int n, int n_pos, const void *want, const void *got, size_t n_bytes) {
    if (n_bytes == 0)
        return;
    uint8_t *a = fwd_alloc(n_bytes, 1), *b = fwd_alloc(n_bytes, 1);
    ck_assert(a && b);
    cuda_test_get(a, want, n_bytes);
    cuda_test_get(b, got, n_bytes);
    size_t i = 0;
    if (memcmp(a, b, n_bytes) != 0)
        while (a[i] == b[i])
            i++;
    ck_assert_msg(a[i] == b[i], "%s of %d times %d: byte %zu of %zu is 0x%02x, expected 0x%02x", what, n_pos, n, i,
                  n_bytes, b[i], a[i]);
    fwd_free(a);
    fwd_free(b);
}

/* Values that a row format has a word on: a NaN, an infinity, a row of zeros, one next to nothing. */
static void plant(float *x, int n, int n_pos) {
    for (int p = 0; p < n_pos; p++) {
        float *row = x + (int64_t)p * n;
        if (p % 9 == 5)
            row[n / 3] = NAN;
        if (p % 9 == 7)
            row[n - 1] = -INFINITY;
        for (int i = 0; i < n && p % 9 == 3; i++)
            row[i] = 0.0f;
        for (int i = 0; i < n && p % 9 == 8; i++)
            row[i] *= 0x1p-104f;
    }
}

/* ---- every form of a row ------------------------------------------------------------------------------------------
 */

/* The forms as planes and taps in device memory, in one place each so that they compare as bytes. */
struct rows {
    struct cuda_act k, b32;
    struct cuda_tc_act tc;
    uint8_t *tap_k, *tap_b32, *tap_tc;
    size_t q, d_k, d_b32, sum, tc_bytes, tap_k_bytes, tap_b32_bytes, tap_tc_bytes; /* sizes */
};

static struct cuda_act act_room(enum fwd_dtype format, int n_sb, size_t q, size_t d, size_t sum) {
    return (struct cuda_act){
        .format = format, .n_sb = n_sb, .q = cuda_test_room(q), .d = cuda_test_room(d), .sum = cuda_test_room(sum)};
}

static struct rows rows_room(int n, int n_pos, enum cuda_form form) {
    const bool bf16 = form == CUDA_FORM_BF16;
    const size_t rows = (size_t)n_pos, n_sb = (size_t)(n + 255) / 256, ld = (size_t)n + 16;
    struct rows r = {.q = rows * n_sb * 256,
                     .d_k = rows * n_sb * 4,
                     .d_b32 = rows * n_sb * 32,
                     .sum = rows * n_sb * 32,
                     .tc_bytes = rows * ld * (bf16 ? 2 : 1),
                     .tap_k_bytes = n % 256 ? 0 : rows * fwd_dtype_row_bytes(FWD_Q8_K, n),
                     .tap_b32_bytes = rows * fwd_dtype_row_bytes(FWD_Q8_32, n),
                     .tap_tc_bytes = rows * fwd_dtype_row_bytes(bf16 ? FWD_BF16 : FWD_E4M3, n)};
    r.k = act_room(FWD_Q8_K, (int)n_sb, r.q, r.d_k, r.sum);
    r.b32 = act_room(FWD_Q8_32, (int)n_sb, r.q, r.d_b32, r.sum);
    r.tc = (struct cuda_tc_act){form, (int64_t)ld, cuda_test_room(r.tc_bytes), cuda_test_room(rows * 4)};
    r.tap_k = cuda_test_room(r.tap_k_bytes);
    r.tap_b32 = cuda_test_room(r.tap_b32_bytes);
    r.tap_tc = cuda_test_room(r.tap_tc_bytes);
    return r;
}

/* Which of the forms a case asks for; the others keep what they held. */
struct wanted {
    bool k, b32, tc, taps, floats;
};

static struct cuda_quantised ask(const struct rows *r, struct wanted w) {
    return (struct cuda_quantised){.k = w.k ? &r->k : NULL,
                                   .b32 = w.b32 ? &r->b32 : NULL,
                                   .tc = w.tc ? &r->tc : NULL,
                                   .tap_k = w.k && w.taps ? r->tap_k : NULL,
                                   .tap_b32 = w.b32 && w.taps ? r->tap_b32 : NULL,
                                   .tap_tc = w.tc && w.taps ? r->tap_tc : NULL};
}

static void quantise_one_by_one(const struct rows *r, struct wanted w, const float *x, int n, int n_pos) {
    if (w.k)
        cuda_quantise(NULL, x, n, n_pos, &r->k, w.taps ? r->tap_k : NULL);
    if (w.b32)
        cuda_quantise(NULL, x, n, n_pos, &r->b32, w.taps ? r->tap_b32 : NULL);
    if (w.tc)
        cuda_tc_convert(NULL, x, n, n_pos, &r->tc, w.taps ? r->tap_tc : NULL);
}

static void expect_rows(const struct rows *want, const struct rows *got, int n, int n_pos) {
    expect_same("Q8_K q", n, n_pos, want->k.q, got->k.q, want->q);
    expect_same("Q8_K d", n, n_pos, want->k.d, got->k.d, want->d_k);
    expect_same("Q8_K sums", n, n_pos, want->k.sum, got->k.sum, want->sum);
    expect_same("Q8_32 q", n, n_pos, want->b32.q, got->b32.q, want->q);
    expect_same("Q8_32 d", n, n_pos, want->b32.d, got->b32.d, want->d_b32);
    expect_same("Q8_32 sums", n, n_pos, want->b32.sum, got->b32.sum, want->sum);
    expect_same("converted", n, n_pos, want->tc.data, got->tc.data, want->tc_bytes);
    expect_same("scales", n, n_pos, want->tc.scale, got->tc.scale, (size_t)n_pos * 4);
    expect_same("tap of Q8_K", n, n_pos, want->tap_k, got->tap_k, want->tap_k_bytes);
    expect_same("tap of Q8_32", n, n_pos, want->tap_b32, got->tap_b32, want->tap_b32_bytes);
    expect_same("tap of the converted", n, n_pos, want->tap_tc, got->tap_tc, want->tap_tc_bytes);
}

static size_t room_for(int n, int n_pos) {
    return (size_t)n_pos * (size_t)(n + 512) * 64 + (1 << 20);
}

/* What a session asks for, and everything at once. */
static const struct wanted cases[] = {{.k = true},
                                      {.b32 = true, .taps = true, .floats = true},
                                      {.k = true, .b32 = true, .taps = true},
                                      {.tc = true},
                                      {.tc = true, .taps = true, .floats = true},
                                      {.floats = true},
                                      {.k = true, .b32 = true, .tc = true, .taps = true, .floats = true}};
enum { N_CASES = sizeof cases / sizeof *cases };

/* Case c on a width; Q8_K only where it fits. */
static struct wanted wanted_at(int c, int n) {
    struct wanted w = cases[c];
    w.k = w.k && n % 256 == 0;
    w.floats = w.floats || (!w.k && !w.b32 && !w.tc);
    return w;
}

/* ---- addition and norm --------------------------------------------------------------------------------------------
 */

/* place: where the sum goes: 0 nowhere (no b), 1 beside, 2 onto a, 3 onto b. */
static void check_add_norm(int n, int n_pos, struct wanted w, enum cuda_form form, int place, const float *x) {
    const int64_t all = (int64_t)n * n_pos;
    cuda_test_start(room_for(n, n_pos));
    float *a = put_floats(x, all), *b = put_floats(x + all, all), *weight = put_floats(x + 2 * all, n);
    float *sum = cuda_test_room((size_t)all * 4), *norm = cuda_test_room((size_t)all * 4);
    float *beside = cuda_test_room((size_t)all * 4), *norm_got = cuda_test_room((size_t)all * 4);
    struct rows want = rows_room(n, n_pos, form), got = rows_room(n, n_pos, form);
    if (place)
        cuda_add(NULL, a, b, sum, all);
    cuda_rmsnorm(NULL, place ? sum : a, weight, norm, n, n_pos, 1e-6f);
    quantise_one_by_one(&want, w, norm, n, n_pos);
    float *sum_got = place == 0 ? NULL : place == 1 ? beside : place == 2 ? a : b;
    struct cuda_add_norm args = {.a = a,
                                 .b = place ? b : NULL,
                                 .sum = sum_got,
                                 .w = weight,
                                 .eps = 1e-6f,
                                 .n = n,
                                 .n_pos = n_pos,
                                 .norm = w.floats ? norm_got : NULL,
                                 .out = ask(&got, w)};
    cuda_add_norm(NULL, &args);
    if (place)
        expect_same("sum", n, n_pos, sum, sum_got, (size_t)all * 4);
    if (w.floats)
        expect_same("norm", n, n_pos, norm, norm_got, (size_t)all * 4);
    expect_rows(&want, &got, n, n_pos);
    cuda_test_end();
}

START_TEST(test_add_norm) {
    const int n = widths[_i / N_BATCHES], n_pos = batches[_i % N_BATCHES];
    const int64_t all = (int64_t)n * n_pos;
    float *x = new_floats(2 * all + n);
    fill(x, 2 * all + n, (enum kind)(_i % N_KINDS), 3u + (unsigned)_i);
    plant(x, n, n_pos);
    for (int c = 0; c < N_CASES; c++) {
        check_add_norm(n, n_pos, wanted_at(c, n), c % 2 ? CUDA_FORM_BF16 : CUDA_FORM_E4M3, (c + _i) % 4, x);
        check_add_norm(n, n_pos, wanted_at(c, n), c % 2 ? CUDA_FORM_E4M3 : CUDA_FORM_BF16, (c + _i + 1) % 4, x);
    }
    fwd_free(x);
}
END_TEST

/* ---- SwiGLU -------------------------------------------------------------------------------------------------------
 */

static void check_swiglu(int n, int n_pos, struct wanted w, enum cuda_form form, const float *x) {
    const int64_t all = (int64_t)n * n_pos;
    cuda_test_start(room_for(n, n_pos));
    float *gate = put_floats(x, all), *up = put_floats(x + all, all);
    float *y = cuda_test_room((size_t)all * 4), *y_got = cuda_test_room((size_t)all * 4);
    struct rows want = rows_room(n, n_pos, form), got = rows_room(n, n_pos, form);
    cuda_swiglu(NULL, gate, up, y, all);
    quantise_one_by_one(&want, w, y, n, n_pos);
    struct cuda_swiglu_quantise args = {
        .gate = gate, .up = up, .y = w.floats ? y_got : NULL, .n = n, .n_pos = n_pos, .out = ask(&got, w)};
    cuda_swiglu_quantise(NULL, &args);
    if (w.floats)
        expect_same("swiglu", n, n_pos, y, y_got, (size_t)all * 4);
    expect_rows(&want, &got, n, n_pos);
    cuda_test_end();
}

START_TEST(test_swiglu) {
    const int n = widths[_i / N_BATCHES], n_pos = batches[_i % N_BATCHES];
    const int64_t all = (int64_t)n * n_pos;
    float *x = new_floats(2 * all);
    fill(x, 2 * all, (enum kind)(_i % N_KINDS), 5u + (unsigned)_i);
    plant(x, n, n_pos);
    for (int c = 0; c < N_CASES; c++)
        check_swiglu(n, n_pos, wanted_at(c, n), (c + _i) % 2 ? CUDA_FORM_BF16 : CUDA_FORM_E4M3, x);
    fwd_free(x);
}
END_TEST

/* ---- rope and the cache -------------------------------------------------------------------------------------------
 */

/* gap: bytes between a cache's rows. */
struct turning {
    int n_head, n_kv_head, head_dim, n_rope, pos0, n_pos, gap;
};

static void check_rope(const struct turning *t, bool neox, enum fwd_dtype type, bool k_rot_wanted, const float *x) {
    const int n_q = t->n_head * t->head_dim * t->n_pos, n_kv = t->n_kv_head * t->head_dim * t->n_pos;
    const int n_turn = (t->pos0 + t->n_pos) * t->n_rope;
    const size_t row = (size_t)t->head_dim * (type == FWD_F16 ? 2 : 4) + (size_t)t->gap;
    const size_t head = row * (size_t)(t->pos0 + t->n_pos + 1), all = head * (size_t)t->n_kv_head;
    cuda_test_start((size_t)(4 * n_q + 8 * n_kv + n_turn) * 4 + 4 * all);
    float *q = put_floats(x, n_q), *k = put_floats(x + n_q, n_kv), *v = put_floats(x + n_q + n_kv, n_kv);
    float *turn = put_floats(x + n_q + 2 * n_kv, n_turn);
    float *q_want = cuda_test_room((size_t)n_q * 4), *q_got = cuda_test_room((size_t)n_q * 4);
    float *k_want = cuda_test_room((size_t)n_kv * 4), *k_got = cuda_test_room((size_t)n_kv * 4);
    struct cuda_kv cache[4]; /* k and v as they should be, as they are */
    for (int i = 0; i < 4; i++)
        cache[i] = (struct cuda_kv){type, cuda_test_room(all), (int64_t)head, (int64_t)row, t->n_kv_head, t->head_dim};
    cuda_rope(NULL, q, q_want, turn, t->pos0, t->n_pos, t->n_head, t->head_dim, t->n_rope, neox);
    cuda_rope(NULL, k, k_want, turn, t->pos0, t->n_pos, t->n_kv_head, t->head_dim, t->n_rope, neox);
    cuda_kv_store(NULL, k_want, &cache[0], t->pos0, t->n_pos);
    cuda_kv_store(NULL, v, &cache[1], t->pos0, t->n_pos);
    struct cuda_rope_store args = {.q = q,
                                   .k = k,
                                   .v = v,
                                   .q_rot = q_got,
                                   .k_rot = k_rot_wanted ? k_got : NULL,
                                   .turn = turn,
                                   .pos0 = t->pos0,
                                   .n_pos = t->n_pos,
                                   .n_head = t->n_head,
                                   .n_rope = t->n_rope,
                                   .neox = neox,
                                   .cache_k = cache[2],
                                   .cache_v = cache[3]};
    cuda_rope_store(NULL, &args);
    expect_same("q", t->head_dim, t->n_pos, q_want, q_got, (size_t)n_q * 4);
    if (k_rot_wanted)
        expect_same("k", t->head_dim, t->n_pos, k_want, k_got, (size_t)n_kv * 4);
    expect_same("K cache", t->head_dim, t->n_pos, cache[0].data, cache[2].data, all);
    expect_same("V cache", t->head_dim, t->n_pos, cache[1].data, cache[3].data, all);
    cuda_test_end();
}

static const struct turning turnings[] = {
    {28, 4, 128, 128, 0, 78, 0}, {9, 3, 64, 64, 7, 3, 0}, {12, 2, 128, 64, 31, 17, 0}, {2, 1, 64, 64, 500, 1, 0},
    {4, 2, 80, 20, 3, 5, 0},     {3, 1, 20, 16, 1, 2, 6}, {1, 1, 2, 2, 1, 2, 0},       {2, 2, 30, 8, 0, 9, 0}};
enum { N_TURNINGS = sizeof turnings / sizeof *turnings };

START_TEST(test_rope_store) {
    const struct turning *t = &turnings[_i];
    const int64_t n = (int64_t)t->n_head * t->head_dim * t->n_pos + 2 * t->n_kv_head * t->head_dim * t->n_pos +
                      (t->pos0 + t->n_pos) * t->n_rope;
    float *x = new_floats(n);
    for (int kind = 0; kind < N_KINDS; kind++)
        for (int way = 0; way < 8; way++) {
            fill(x, n, (enum kind)kind, 17u + (unsigned)way);
            x[n / 5] = INFINITY;
            x[n / 2] = 65520.0f;
            x[n / 7] = 0x3p-26f;
            check_rope(t, way & 1, way & 2 ? FWD_F16 : FWD_F32, way & 4, x);
        }
    fwd_free(x);
}
END_TEST

/* ---- --time: at a model's shape (n_embd 3584, n_ff 18944, 28 and 4 heads of 128) -----------------------------------
 */

static void time_launches(int n_pos) {
    enum { N_EMBD = 3584, N_FF = 18944, N_HEAD = 28, N_KV = 4, DIM = 128, TIMES = 20 };
    const size_t m = (size_t)n_pos;
    float ms[10];
    cuda_test_start(m * (6 * N_EMBD + 8 * N_FF + 6 * N_KV * DIM + DIM) * 4 + (64 << 20));
    float *a = cuda_test_room(m * N_EMBD * 4), *b = cuda_test_room(m * N_EMBD * 4), *w = cuda_test_room(N_EMBD * 4);
    float *x = cuda_test_room(m * N_EMBD * 4), *norm = cuda_test_room(m * N_EMBD * 4);
    float *gate = cuda_test_room(m * N_FF * 4), *up = cuda_test_room(m * N_FF * 4), *y = cuda_test_room(m * N_FF * 4);
    float *k = cuda_test_room(m * N_KV * DIM * 4), *k_rot = cuda_test_room(m * N_KV * DIM * 4);
    float *turn = cuda_test_room(m * DIM * 4);
    struct rows r = rows_room(N_FF, n_pos, CUDA_FORM_E4M3);
    struct cuda_act act = r.k;
    act.n_sb = N_EMBD / 256;
    struct cuda_kv kv = {FWD_F16, cuda_test_room(m * N_KV * DIM * 2), (int64_t)m * DIM * 2, DIM * 2, N_KV, DIM};
    struct cuda_add_norm add = {.a = a, .b = b, .sum = b, .w = w, .eps = 1e-6f, .n = N_EMBD, .n_pos = n_pos};
    struct cuda_swiglu_quantise glu = {.gate = gate, .up = up, .n = N_FF, .n_pos = n_pos};
    struct cuda_rope_store turns = {.q = a,
                                    .k = k,
                                    .v = k,
                                    .q_rot = x,
                                    .turn = turn,
                                    .n_pos = n_pos,
                                    .n_head = N_HEAD,
                                    .n_rope = DIM,
                                    .neox = true,
                                    .cache_k = kv,
                                    .cache_v = kv};
    cuda_test_time(ms[0], TIMES, {
        cuda_add(NULL, a, b, b, (int64_t)m * N_EMBD);
        cuda_rmsnorm(NULL, b, w, norm, N_EMBD, n_pos, 1e-6f);
        cuda_quantise(NULL, norm, N_EMBD, n_pos, &act, NULL);
    });
    add.out = (struct cuda_quantised){.k = &act};
    cuda_test_time(ms[1], TIMES, cuda_add_norm(NULL, &add));
    add.out = (struct cuda_quantised){.tc = &r.tc};
    cuda_test_time(ms[2], TIMES, cuda_add_norm(NULL, &add));
    cuda_test_time(ms[3], TIMES, {
        cuda_swiglu(NULL, gate, up, y, (int64_t)m * N_FF);
        cuda_quantise(NULL, y, N_FF, n_pos, &r.k, NULL);
    });
    glu.out = (struct cuda_quantised){.k = &r.k};
    cuda_test_time(ms[4], TIMES, cuda_swiglu_quantise(NULL, &glu));
    cuda_test_time(ms[5], TIMES, {
        cuda_swiglu(NULL, gate, up, y, (int64_t)m * N_FF);
        cuda_tc_convert(NULL, y, N_FF, n_pos, &r.tc, NULL);
    });
    glu.out = (struct cuda_quantised){.tc = &r.tc};
    cuda_test_time(ms[6], TIMES, cuda_swiglu_quantise(NULL, &glu));
    cuda_test_time(ms[7], TIMES, {
        cuda_rope(NULL, a, x, turn, 0, n_pos, N_HEAD, DIM, DIM, true);
        cuda_rope(NULL, k, k_rot, turn, 0, n_pos, N_KV, DIM, DIM, true);
        cuda_kv_store(NULL, k_rot, &kv, 0, n_pos);
        cuda_kv_store(NULL, k, &kv, 0, n_pos);
    });
    cuda_test_time(ms[8], TIMES, cuda_rope_store(NULL, &turns));
    printf("%d positions, us a group: add, norm, Q8_K %.2f, fused %.2f (E4M3 %.2f); swiglu, Q8_K %.2f, fused %.2f; "
           "swiglu, E4M3 %.2f, fused %.2f; rope, cache %.2f, fused %.2f\n",
           n_pos, 1e3 * (double)ms[0], 1e3 * (double)ms[1], 1e3 * (double)ms[2], 1e3 * (double)ms[3],
           1e3 * (double)ms[4], 1e3 * (double)ms[5], 1e3 * (double)ms[6], 1e3 * (double)ms[7], 1e3 * (double)ms[8]);
}

START_TEST(test_time) {
    time_launches(78);
    time_launches(512);
    time_launches(4096);
}
END_TEST

int main(int argc, char **argv) {
    Suite *suite = suite_create("cuda_fused");
    TCase *tc = tcase_create("one by one");
    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(tc, test_add_norm, 0, NORM_WIDTHS * N_BATCHES);
    tcase_add_loop_test(tc, test_swiglu, 0, N_WIDTHS * N_BATCHES);
    tcase_add_loop_test(tc, test_rope_store, 0, N_TURNINGS);
    suite_add_tcase(suite, tc);
    if (argc == 2 && !strcmp(argv[1], "--time")) {
        TCase *time = tcase_create("time");
        tcase_set_timeout(time, 60);
        tcase_add_test(time, test_time);
        suite_add_tcase(suite, time);
    }
    return cuda_test_main("test_cuda_fused", suite);
}
