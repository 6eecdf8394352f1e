/* The CUDA ops between the products: each against the CPU op of the same name, bit for bit, on awkward shapes and
 * values. */
#include "core/half.h"
#include "cuda/kernels.h"
#include "ops/act_quant/act_quant.h"
#include "ops/add/add.h"
#include "ops/rmsnorm/rmsnorm.h"
#include "ops/rope/rope.h"
#include "ops/swiglu/swiglu.h"
#include "ops/variant_table.h"
#include "test/cuda_test.h"
#include "test/float_data.h"

#include <stddef.h>

static const int widths[] = {32, 96, 256, 576, 896, 1536, 3584};
static const int batches[] = {1, 2, 3, 5, 8, 9, 17, 33, 78};
enum { N_WIDTHS = sizeof widths / sizeof *widths, N_BATCHES = sizeof batches / sizeof *batches };
enum { ROOM = 64 << 20 };

/* What the device made of n floats is `want`. */
static void expect_floats(const char *what, const float *want, const float *device, int64_t n) {
    float *got = new_floats(n);
    cuda_test_get(got, device, (size_t)n * sizeof *got);
    for (int64_t i = 0; i < n; i++)
        ck_assert_msg(same_floats(want + i, got + i, 1), "%s: element %lld of %lld: %a, the CPU's %a", what,
                      (long long)i, (long long)n, (double)got[i], (double)want[i]);
    fwd_free(got);
}

static void *put_floats(const float *x, int64_t n) {
    return cuda_test_put(x, (size_t)n * sizeof *x);
}

/* ---- rmsnorm -------------------------------------------------------------------------------------------------------
 */

START_TEST(test_rmsnorm) {
    rmsnorm_fn *ref = (rmsnorm_fn *)fwd_variant_find("rmsnorm", "ref")->fn;
    const int sizes[] = {1, 80, 255, 257, 4099};
    const int n = _i < N_WIDTHS ? widths[_i] : sizes[_i - N_WIDTHS], n_pos = batches[_i % N_BATCHES];
    float *x = new_floats(n * n_pos), *w = new_floats(n), *want = new_floats(n * n_pos);
    for (int kind = 0; kind < N_KINDS; kind++) {
        fill(x, n * n_pos, (enum kind)kind, 3u + (unsigned)n);
        fill(w, n, OUTLIERS, 5u + (unsigned)n);
        for (int p = 0; p < n_pos; p++)
            ref(x + p * n, w, want + p * n, n, 1e-6f);
        cuda_test_start(ROOM);
        float *dx = put_floats(x, n * n_pos), *dw = put_floats(w, n), *dy = cuda_test_room((size_t)(n * n_pos) * 4);
        cuda_rmsnorm(NULL, dx, dw, dy, n, n_pos, 1e-6f);
        expect_floats("rmsnorm", want, dy, n * n_pos);
        cuda_rmsnorm(NULL, dx, dw, dx, n, n_pos, 1e-6f);
        expect_floats("rmsnorm in place", want, dx, n * n_pos);
        cuda_test_end();
    }
    fwd_free(x);
    fwd_free(w);
    fwd_free(want);
}
END_TEST

/* ---- quantised activations -----------------------------------------------------------------------------------------
 */

/* Activations in planes on the host: what the tap's blocks say. */
struct planes {
    int8_t *q;
    float *d;
    int16_t *sum;
    size_t n_q, n_d, n_sum;
};

static struct planes planes_from_tap(enum fwd_dtype format, const uint8_t *tap, int n, int n_pos) {
    const int n_sb = (n + 255) / 256, d_per = format == FWD_Q8_K ? 1 : 8;
    struct planes p = {.n_q = (size_t)(n_pos * n_sb) * 256,
                       .n_d = (size_t)(n_pos * n_sb * d_per),
                       .n_sum = (size_t)(n_pos * n_sb) * 16};
    p.q = fwd_alloc(p.n_q, 1);
    p.d = fwd_alloc(p.n_d, sizeof *p.d);
    p.sum = fwd_alloc(p.n_sum, sizeof *p.sum);
    ck_assert(p.q && p.d && p.sum);
    memset(p.q, 0, p.n_q);
    memset(p.d, 0, p.n_d * sizeof *p.d);
    for (int row = 0; row < n_pos; row++) {
        if (format == FWD_Q8_K) {
            const struct fwd_q8_k *b = (const struct fwd_q8_k *)(const void *)tap + row * (n / 256);
            for (int i = 0; i < n / 256; i++) {
                memcpy(p.q + (row * n_sb + i) * 256, b[i].q, 256);
                p.d[row * n_sb + i] = b[i].d;
            }
        } else {
            const struct fwd_q8_32 *b = (const struct fwd_q8_32 *)(const void *)tap + row * (n / 32);
            for (int i = 0; i < n / 32; i++) {
                memcpy(p.q + row * n_sb * 256 + i * 32, b[i].q, 32);
                p.d[row * n_sb * 8 + i] = b[i].d;
            }
        }
    }
    for (size_t i = 0; i < p.n_sum; i++) {
        int sum = 0;
        for (int j = 0; j < 16; j++)
            sum += p.q[16 * i + (size_t)j];
        p.sum[i] = (int16_t)sum;
    }
    return p;
}

static void expect_planes(const struct planes *want, const struct cuda_act *got, const char *what) {
    int8_t *q = fwd_alloc(want->n_q, 1);
    float *d = fwd_alloc(want->n_d, sizeof *d);
    int16_t *sum = fwd_alloc(want->n_sum, sizeof *sum);
    ck_assert(q && d && sum);
    cuda_test_get(q, got->q, want->n_q);
    cuda_test_get(d, got->d, want->n_d * sizeof *d);
    cuda_test_get(sum, got->sum, want->n_sum * sizeof *sum);
    ck_assert_msg(memcmp(q, want->q, want->n_q) == 0, "%s: q", what);
    ck_assert_msg(memcmp(d, want->d, want->n_d * sizeof *d) == 0, "%s: d", what);
    ck_assert_msg(memcmp(sum, want->sum, want->n_sum * sizeof *sum) == 0, "%s: sums", what);
    fwd_free(q);
    fwd_free(d);
    fwd_free(sum);
}

static void free_planes(struct planes *p) {
    fwd_free(p->q);
    fwd_free(p->d);
    fwd_free(p->sum);
}

static struct cuda_act room_for_act(enum fwd_dtype format, int n, const struct planes *like) {
    return (struct cuda_act){.format = format,
                             .n_sb = (n + 255) / 256,
                             .q = cuda_test_room(like->n_q),
                             .d = cuda_test_room(like->n_d * sizeof(float)),
                             .sum = cuda_test_room(like->n_sum * sizeof(int16_t))};
}

/* Blocks that the rule has a word on: all zero, just under and at 2^-100, NaN, infinity, halves, the largest float. */
static void plant_blocks(float *x, int64_t n) {
    const float last[] = {0x1.fffffep-101f, 0x1p-100f, NAN, INFINITY, 0x1.fffffep+127f, -INFINITY};
    for (int64_t b = 0; b * 32 < n; b++) {
        if (b % 9 > 6)
            continue;
        for (int i = 0; i < 32 && b % 9 < 6; i++)
            x[b * 32 + i] = 0.0f;
        if (b % 9 == 6) {
            for (int i = 0; i < 32; i++)
                x[b * 32 + i] = (float)(i % 16) + 0.5f;
            x[b * 32 + 1] = -127.0f;
        } else if (b % 9 > 0)
            x[b * 32 + b * 7 % 32] = last[b / 9 % 2 ? 5 : b % 9 - 1];
    }
}

static void check_quantise(enum fwd_dtype format, int n, int n_pos, const float *x) {
    const size_t tap_bytes = fwd_dtype_row_bytes(format, n) * (size_t)n_pos;
    uint8_t *tap = fwd_alloc(tap_bytes, 1), *got = fwd_alloc(tap_bytes, 1);
    ck_assert(tap && got);
    for (int p = 0; p < n_pos; p++) {
        uint8_t *row = tap + fwd_dtype_row_bytes(format, n) * (size_t)p;
        if (format == FWD_Q8_K)
            ((act_quant_k_fn *)fwd_variant_find("act_quant_k", "ref")->fn)(x + p * n, (void *)row, n);
        else
            ((act_quant_32_fn *)fwd_variant_find("act_quant_32", "ref")->fn)(x + p * n, (void *)row, n);
    }
    struct planes want = planes_from_tap(format, tap, n, n_pos);
    cuda_test_start(ROOM);
    float *dx = put_floats(x, n * n_pos);
    uint8_t *device_tap = cuda_test_room(tap_bytes);
    struct cuda_act plain = room_for_act(format, n, &want), act = room_for_act(format, n, &want);
    cuda_quantise(NULL, dx, n, n_pos, &plain, NULL);
    expect_planes(&want, &plain, "without a tap");
    cuda_quantise(NULL, dx, n, n_pos, &act, device_tap);
    expect_planes(&want, &act, "with a tap");
    cuda_test_get(got, device_tap, tap_bytes);
    ck_assert_msg(memcmp(got, tap, tap_bytes) == 0, "the tap of %d times %d", n_pos, n);
    cuda_ok(cudaMemset(act.q, 0x11, want.n_q));
    cuda_ok(cudaMemset(act.d, 0x11, want.n_d * sizeof(float)));
    cuda_ok(cudaMemset(act.sum, 0x11, want.n_sum * sizeof(int16_t)));
    cuda_act_from_tap(NULL, device_tap, n, n_pos, &act);
    expect_planes(&want, &act, "from the tap");
    cuda_test_end();
    free_planes(&want);
    fwd_free(tap);
    fwd_free(got);
}

START_TEST(test_quantise) {
    const int n = widths[_i % N_WIDTHS], n_pos = batches[_i];
    float *x = new_floats(n * n_pos);
    for (int kind = 0; kind < N_KINDS; kind++)
        for (int planted = 0; planted < 2; planted++) {
            fill(x, n * n_pos, (enum kind)kind, 11u + (unsigned)n);
            if (planted)
                plant_blocks(x, n * n_pos);
            check_quantise(FWD_Q8_32, n, n_pos, x);
            if (n % 256 == 0)
                check_quantise(FWD_Q8_K, n, n_pos, x);
        }
    fwd_free(x);
}
END_TEST

/* An override may say a sum that its values do not have: the products then use what it said, as on the CPU. */
START_TEST(test_false_sums) {
    enum { N = 256 };
    struct fwd_q8_k k = {.d = 0.5f};
    struct fwd_q8_32 s[N / 32];
    for (int i = 0; i < N; i++)
        k.q[i] = (int8_t)(i % 255 - 127);
    for (int i = 0; i < 16; i++)
        k.sum16[i] = (int16_t)(1000 - i);
    for (int b = 0; b < N / 32; b++) {
        s[b] = (struct fwd_q8_32){.d = 0.25f, .sum = 777 + b};
        memcpy(s[b].q, k.q + 32 * b, 32);
    }
    struct planes want = planes_from_tap(FWD_Q8_K, (const uint8_t *)&k, N, 1);
    memcpy(want.sum, k.sum16, sizeof k.sum16);
    cuda_test_start(ROOM);
    struct cuda_act act = room_for_act(FWD_Q8_K, N, &want);
    cuda_act_from_tap(NULL, cuda_test_put(&k, sizeof k), N, 1, &act);
    expect_planes(&want, &act, "Q8_K");
    free_planes(&want);
    want = planes_from_tap(FWD_Q8_32, (const uint8_t *)s, N, 1);
    act = room_for_act(FWD_Q8_32, N, &want);
    cuda_act_from_tap(NULL, cuda_test_put(s, sizeof s), N, 1, &act);
    int16_t sum[16];
    cuda_test_get(sum, act.sum, sizeof sum);
    for (int b = 0; b < N / 32; b++)
        ck_assert_int_eq(sum[2 * b] + sum[2 * b + 1], 777 + b);
    cuda_test_end();
    free_planes(&want);
}
END_TEST

/* ---- rope, cache rows ----------------------------------------------------------------------------------------------
 */

START_TEST(test_rope) {
    static const struct {
        int n_heads, head_dim, n_rope, pos0, n_pos;
    } shapes[] = {{28, 128, 128, 0, 78}, {2, 64, 64, 4000, 1}, {3, 80, 32, 7, 5},
                  {9, 64, 64, 0, 3},     {1, 2, 2, 1, 2},      {4, 256, 128, 30, 33}};
    const int k = _i / 2, neox = _i % 2;
    const int row = shapes[k].n_heads * shapes[k].head_dim, n_pos = shapes[k].n_pos, n_rope = shapes[k].n_rope;
    rope_fn *ref = (rope_fn *)fwd_variant_find("rope", "ref")->fn;
    struct fwd_config config = {.n_rope = n_rope, .rope_theta = 1e6};
    const int n_turns = (shapes[k].pos0 + n_pos) * n_rope;
    float *turn = new_floats(n_turns), *x = new_floats(row * n_pos), *want = new_floats(row * n_pos);
    fwd_rope_table(&config, 0, shapes[k].pos0 + n_pos, turn);
    for (int kind = 0; kind < N_KINDS; kind++) {
        fill(x, row * n_pos, (enum kind)kind, 17);
        for (int p = 0; p < n_pos; p++)
            ref(x + p * row, want + p * row, turn + (shapes[k].pos0 + p) * n_rope, shapes[k].n_heads,
                shapes[k].head_dim, n_rope, neox ? FWD_ROPE_NEOX : FWD_ROPE_NORM);
        cuda_test_start(ROOM);
        float *dx = put_floats(x, row * n_pos), *dt = put_floats(turn, n_turns);
        float *dy = cuda_test_room((size_t)(row * n_pos) * 4);
        cuda_rope(NULL, dx, dy, dt, shapes[k].pos0, n_pos, shapes[k].n_heads, shapes[k].head_dim, n_rope, neox);
        expect_floats("rope", want, dy, row * n_pos);
        cuda_rope(NULL, dx, dx, dt, shapes[k].pos0, n_pos, shapes[k].n_heads, shapes[k].head_dim, n_rope, neox);
        expect_floats("rope in place", want, dx, row * n_pos);
        cuda_test_end();
    }
    fwd_free(turn);
    fwd_free(x);
    fwd_free(want);
}
END_TEST

START_TEST(test_kv_store) {
    enum { HEADS = 3, DIM = 20, N_CTX = 19, POS0 = 4, N_POS = 9, GAP = 6 };
    const enum fwd_dtype type = _i ? FWD_F16 : FWD_F32;
    const size_t value = _i ? 2 : 4, row = DIM * value + GAP * value, head = row * N_CTX, all = head * HEADS;
    float x[N_POS * HEADS * DIM];
    const float special[] = {65504.0f, 65519.99f, 65520.0f,          -70000.0f, 0x1p-14f,  0x1p-24f, 0x1p-25f,
                             0x3p-26f, -0.0f,     0x1.002000001p+0f, INFINITY,  -INFINITY, 0x1p-149f};
    fill(x, N_POS * HEADS * DIM, MIXED_SCALES, 5);
    memcpy(x + 100, special, sizeof special);
    x[200] = fwd_bits_f32(0x7fc12345u);
    x[201] = fwd_bits_f32(0xff800001u);
    uint8_t *want = fwd_alloc(all, 1), *got = fwd_alloc(all, 1);
    ck_assert(want && got);
    cuda_test_start(ROOM);
    struct cuda_kv kv = {type, cuda_test_room(all), (int64_t)head, (int64_t)row, HEADS, DIM};
    memset(want, 0xcb, all);
    for (int p = 0; p < N_POS; p++)
        for (int i = 0; i < HEADS * DIM; i++) {
            const float v = x[p * HEADS * DIM + i];
            const uint16_t h = fwd_f32_to_f16(v);
            memcpy(want + (size_t)(i / DIM) * head + (size_t)(POS0 + p) * row + (size_t)(i % DIM) * value,
                   _i ? (const void *)&h : (const void *)&v, value);
        }
    cuda_kv_store(NULL, put_floats(x, N_POS * HEADS * DIM), &kv, POS0, N_POS);
    cuda_test_get(got, kv.data, all);
    for (size_t i = 0; i < all; i++)
        ck_assert_msg(got[i] == want[i], "byte %zu: %02x, expected %02x", i, got[i], want[i]);
    cuda_test_end();
    fwd_free(want);
    fwd_free(got);
}
END_TEST

/* ---- element by element --------------------------------------------------------------------------------------------
 */

static void check_elements(const float *a, const float *b, int64_t n) {
    float *want = new_floats(n);
    cuda_test_start(ROOM);
    float *da = put_floats(a, n), *db = put_floats(b, n), *dy = cuda_test_room((size_t)n * 4);
    ((swiglu_fn *)fwd_variant_find("swiglu", "ref")->fn)(a, b, want, n);
    cuda_swiglu(NULL, da, db, dy, n);
    expect_floats("swiglu", want, dy, n);
    ((add_fn *)fwd_variant_find("add", "ref")->fn)(a, b, want, n);
    cuda_add(NULL, da, db, dy, n);
    expect_floats("add", want, dy, n);
    cuda_add(NULL, da, db, db, n);
    expect_floats("add in place", want, db, n);
    if (n > 5) { /* arrays that start anywhere */
        cuda_ok(cudaMemset(dy, 0xcb, (size_t)n * 4));
        ((add_fn *)fwd_variant_find("add", "ref")->fn)(a + 1, a + 2, want, n - 2);
        cuda_add(NULL, da + 1, da + 2, dy + 1, n - 2);
        expect_floats("add, odd starts", want, dy + 1, n - 2);
        ((swiglu_fn *)fwd_variant_find("swiglu", "ref")->fn)(a + 1, a + 3, want, n - 3);
        cuda_swiglu(NULL, da + 1, da + 3, dy + 2, n - 3);
        expect_floats("swiglu, odd starts", want, dy + 2, n - 3);
    }
    cuda_test_end();
    fwd_free(want);
}

START_TEST(test_elements) {
    enum { N = 300 };
    const int sizes[] = {1, 31, 33, 257, 18944, 1100003};
    for (int s = 0; s < (int)(sizeof sizes / sizeof *sizes); s++) {
        float *a = new_floats(sizes[s]), *b = new_floats(sizes[s]);
        fill(a, sizes[s], (enum kind)(s % N_KINDS), 1);
        fill(b, sizes[s], (enum kind)((s + 1) % N_KINDS), 2);
        check_elements(a, b, sizes[s]);
        fwd_free(a);
        fwd_free(b);
    }
    float g[N], u[N];
    for (int i = 0; i < N; i++) { /* through the exponential's whole range, both signs */
        g[i] = (float)(i - N / 2) * 0.83f;
        u[i] = 1.0f + (float)i;
    }
    check_elements(g, u, N);
    const float special[] = {0.0f,       -0.0f, INFINITY, -INFINITY, NAN,    0x1p-149f,
                             -0x1p-149f, 3e38f, -3e38f,   -87.33f,   -87.34f};
    check_elements(special, u, sizeof special / sizeof *special);
}
END_TEST

/* All exponents: each float whose bits are a multiple of 4099. */
START_TEST(test_exponential) {
    enum { N = 1 << 20 };
    float *g = new_floats(N), *u = new_floats(N);
    for (int i = 0; i < N; i++) {
        g[i] = fwd_bits_f32((uint32_t)i * 4099u);
        u[i] = 1.0f;
    }
    check_elements(g, u, N);
    fwd_free(g);
    fwd_free(u);
}
END_TEST

START_TEST(test_scribble) {
    for (size_t n = 1; n < 20; n++) {
        uint8_t got[20];
        const uint32_t nan = 0x7fbadbadu;
        cuda_test_start(ROOM);
        uint8_t *data = cuda_test_room(n);
        cuda_scribble(NULL, data, n);
        cuda_test_get(got, data, n);
        for (size_t i = 0; i < n; i++)
            ck_assert_uint_eq(got[i], ((const uint8_t *)&nan)[i % 4]);
        cuda_test_end();
    }
}
END_TEST

int main(void) {
    Suite *s = suite_create("cuda_ops");
    TCase *t = tcase_create("ops");
    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, test_rmsnorm, 0, N_WIDTHS + 5);
    tcase_add_loop_test(t, test_quantise, 0, N_BATCHES);
    tcase_add_test(t, test_false_sums);
    tcase_add_loop_test(t, test_rope, 0, 12);
    tcase_add_loop_test(t, test_kv_store, 0, 2);
    tcase_add_test(t, test_elements);
    tcase_add_test(t, test_exponential);
    tcase_add_test(t, test_scribble);
    suite_add_tcase(s, t);
    return cuda_test_main("test_cuda_ops", s);
}
