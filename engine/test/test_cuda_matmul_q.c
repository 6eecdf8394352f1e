/* test_cuda_matmul_q.c: cuda_matmul_q against the CPU's fwd_matmul_q, bit for bit: every type, awkward shapes, extreme
 * and non-finite values, both kernels in every configuration. An argument Q4_K (and so on) takes that type alone;
 * with --time nothing is compared, and the speed of the shapes of a 7B model is printed. */
#include "core/cpu.h"
#include "core/half.h"
#include "core/memory.h"
#include "cuda/kernels.h"
#include "format/gguf.h"
#include "ops/act_quant/act_quant.h"
#include "ops/matmul_q/matmul_q.h"
#include "ops/variant_table.h"
#include "test/cuda_test.h"

#include <math.h>

struct type_row {
    uint32_t type;
    int values, bytes;
    int d_at, m_at; /* offsets of the binary16 fields in a block; -1: none */
};
static const struct type_row types[] = {
    {FWD_TYPE_Q4_0, 32, 18, 0, -1},     {FWD_TYPE_Q4_1, 32, 20, 0, 2},   {FWD_TYPE_Q5_0, 32, 22, 0, -1},
    {FWD_TYPE_Q5_1, 32, 24, 0, 2},      {FWD_TYPE_Q8_0, 32, 34, 0, -1},  {FWD_TYPE_Q2_K, 256, 84, 80, 82},
    {FWD_TYPE_Q3_K, 256, 110, 108, -1}, {FWD_TYPE_Q4_K, 256, 144, 0, 2}, {FWD_TYPE_Q5_K, 256, 176, 0, 2},
    {FWD_TYPE_Q6_K, 256, 210, 208, -1},
};
enum { N_TYPES = sizeof types / sizeof *types };

/* ---- random inputs ---- */

static uint64_t rng_state;

static uint32_t next_random(void) {
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng_state >> 33);
}

static float next_unit(void) {
    return (float)(next_random() >> 8) * 0x1p-23f;
}

enum mood { PLAIN, EXTREME, NONFINITE, N_MOODS };
static const char *const mood_names[] = {"plain", "extreme", "non-finite"};

static uint16_t random_half(enum mood mood) {
    static const uint16_t odd[] = {0, 0x8000, 1, 0x83ff, 0x7bff, 0xfbff, 0x0400};
    static const uint16_t bad[] = {0x7c00, 0xfc00, 0x7e01, 0xfd55};
    if (mood == NONFINITE && next_random() % 200 == 0)
        return bad[next_random() % 4];
    if (mood != PLAIN && next_random() % 3 == 0)
        return odd[next_random() % 7];
    return fwd_f32_to_f16((next_unit() - 0.5f) * 0.02f);
}

/* In the odd moods some blocks are all zero bits, or all one bits: every code at its limit. */
static void fill_weight(const struct type_row *t, uint8_t *data, int64_t n_blocks, enum mood mood) {
    for (int64_t b = 0; b < n_blocks; b++, data += t->bytes) {
        uint32_t kind = mood == PLAIN ? 0 : next_random() % 6;
        for (int i = 0; i < t->bytes; i++)
            data[i] = kind == 1 ? 0 : kind == 2 ? 0xff : (uint8_t)next_random();
        uint16_t d = random_half(mood), m = random_half(mood);
        memcpy(data + t->d_at, &d, 2);
        if (t->m_at >= 0)
            memcpy(data + t->m_at, &m, 2);
    }
}

/* One value of 3000 times the others' size in every row; in the odd moods blocks of zeros, of denormals, and of values
 * whose codes are all at their limit. */
static void fill_row(float *x, int64_t n, enum mood mood) {
    for (int64_t i = 0; i < n; i++)
        x[i] = next_unit() + next_unit() + next_unit() - 1.5f;
    x[next_random() % (uint32_t)n] *= 3000;
    for (int64_t b = 0; mood != PLAIN && b < n / 32; b++) {
        uint32_t kind = next_random() % 12;
        for (int64_t i = 32 * b; kind < 3 && i < 32 * (b + 1); i++)
            x[i] = kind == 0 ? 0.0f : kind == 1 ? x[i] * 0x1p-120f : x[i] < 0 ? -1.0f : 1.0f;
    }
    for (int64_t i = 0; mood == EXTREME && i < n / 4; i++)
        x[i] = x[i] < 0 ? -2.0f : 2.0f;
    if (mood == NONFINITE && next_random() % 8 == 0)
        x[next_random() % (uint32_t)n] = next_random() % 2 ? INFINITY : NAN;
}

/* ---- one product ---- */

enum { PAD = 19 }; /* floats behind every row of the result that nobody may write */

struct product {
    const struct type_row *t;
    int64_t n, k;
    int m;
    bool bias;
    uint8_t *weight, *act;
    int64_t row_bytes, act_stride;
    float *b, *want, *got; /* bias; results [m][n + PAD] */
};

static int64_t act_bytes(const struct type_row *t) {
    return t->values == 256 ? (int64_t)sizeof(struct fwd_q8_k) : (int64_t)sizeof(struct fwd_q8_32);
}

static void make_product(struct product *p, enum mood mood) {
    const struct type_row *t = p->t;
    size_t n_y = (size_t)(p->m * (p->n + PAD));
    p->row_bytes = p->k / t->values * t->bytes;
    p->act_stride = p->k / t->values * act_bytes(t);
    p->weight = fwd_alloc((size_t)p->n, (size_t)p->row_bytes);
    p->act = fwd_alloc((size_t)p->m, (size_t)p->act_stride);
    p->b = fwd_alloc((size_t)p->n, sizeof *p->b);
    p->want = fwd_alloc(n_y, sizeof *p->want);
    p->got = fwd_alloc(n_y, sizeof *p->got);
    float *x = fwd_alloc((size_t)p->k, sizeof *x);
    ck_assert(p->weight && p->act && p->b && p->want && p->got && x);
    fill_weight(t, p->weight, p->n * (p->k / t->values), mood);
    for (int64_t i = 0; i < p->n; i++)
        p->b[i] = next_unit() - 0.5f;
    for (int m = 0; m < p->m; m++) {
        void *row = p->act + m * p->act_stride;
        fill_row(x, p->k, mood);
        if (t->values == 256)
            ((act_quant_k_fn *)fwd_variant_find("act_quant_k", "ref")->fn)(x, row, p->k);
        else
            ((act_quant_32_fn *)fwd_variant_find("act_quant_32", "ref")->fn)(x, row, p->k);
    }
    memset(p->want, 0xcb, n_y * sizeof *p->want);
    fwd_free(x);
}

static void free_product(struct product *p) {
    fwd_free(p->weight);
    fwd_free(p->act);
    fwd_free(p->b);
    fwd_free(p->want);
    fwd_free(p->got);
}

/* variant NULL: the fastest that this machine has. */
static void multiply_on_cpu(struct product *p, const char *variant, struct fwd_pool *pool) {
    struct fwd_weight w = {
        .name = "w", .type = p->t->type, .n_rows = p->n, .n_cols = p->k, .row_bytes = p->row_bytes, .data = p->weight};
    struct fwd_packed *packed = NULL;
    struct fwd_error err = {0};
    enum fwd_status st = fwd_packed_create(&packed, NULL, &w, fwd_cpu_detect(), variant, pool, &err);
    ck_assert_msg(st == FWD_OK, "%s", err.message);
    void *scratch = fwd_alloc(1, fwd_matmul_q_scratch(p->k, p->m, fwd_pool_size(pool)));
    ck_assert_ptr_nonnull(scratch);
    fwd_matmul_q(&(struct fwd_matmul_q_args){.w = packed,
                                             .act = p->act,
                                             .act_stride = p->act_stride,
                                             .n_pos = p->m,
                                             .bias = p->bias ? p->b : NULL,
                                             .y = p->want,
                                             .ld_y = p->n + PAD,
                                             .scratch = scratch,
                                             .pool = pool});
    fwd_free(scratch);
    fwd_packed_free(packed);
}

/* The planes of struct cuda_act, made on the host. What lies beyond K: q 0, and a scale that would show. */
static void put_act(const struct product *p, struct cuda_act *out) {
    int n_sb = (int)((p->k + 255) / 256), per_sb = p->t->values == 256 ? 1 : 8;
    size_t rows = (size_t)p->m * (size_t)n_sb;
    int8_t *q = fwd_alloc(rows, 256);
    float *d = fwd_alloc(rows * (size_t)per_sb, sizeof *d);
    int16_t *sum = fwd_alloc(rows, 16 * sizeof *sum);
    ck_assert(q && d && sum);
    memset(q, 0, rows * 256);
    for (size_t i = 0; i < rows * (size_t)per_sb; i++)
        d[i] = NAN;
    for (int m = 0; m < p->m; m++)
        for (int64_t b = 0; b < p->k / p->t->values; b++) {
            const uint8_t *block = p->act + m * p->act_stride + b * act_bytes(p->t);
            memcpy(q + (int64_t)m * 256 * n_sb + b * p->t->values, block + (p->t->values == 256 ? 4 : 8),
                   (size_t)p->t->values);
            memcpy(d + (int64_t)m * per_sb * n_sb + b, block, sizeof *d);
        }
    for (size_t j = 0; j < rows * 16; j++) {
        int s = 0;
        for (size_t i = 16 * j; i < 16 * j + 16; i++)
            s += q[i];
        sum[j] = (int16_t)s;
    }
    *out = (struct cuda_act){.format = p->t->values == 256 ? FWD_Q8_K : FWD_Q8_32,
                             .n_sb = n_sb,
                             .q = cuda_test_put(q, rows * 256),
                             .d = cuda_test_put(d, rows * (size_t)per_sb * sizeof *d),
                             .sum = cuda_test_put(sum, rows * 16 * sizeof *sum)};
    fwd_free(q);
    fwd_free(d);
    fwd_free(sum);
}

static void multiply_on_device(struct product *p) {
    size_t n_tiles = fwd_tiles_bytes(p->t->type, p->n, p->k), n_y = (size_t)(p->m * (p->n + PAD)) * sizeof *p->got;
    struct cuda_act act;
    uint8_t *tiles = fwd_alloc(1, n_tiles);
    ck_assert_ptr_nonnull(tiles);
    fwd_tiles_pack(p->t->type, p->weight, p->row_bytes, p->n, p->k, 0, (p->n + 7) / 8, tiles);
    cuda_test_start(n_tiles + n_y + (size_t)p->n * 4 + (size_t)p->m * (size_t)(p->k + 255) * 2);
    put_act(p, &act);
    struct cuda_linear w = {.form = CUDA_FORM_TILES,
                            .type = p->t->type,
                            .act = act.format,
                            .n_rows = p->n,
                            .n_cols = p->k,
                            .n_sb = act.n_sb,
                            .data = cuda_test_put(tiles, n_tiles),
                            .bias = p->bias ? cuda_test_put(p->b, (size_t)p->n * sizeof *p->b) : NULL};
    float *y = cuda_test_room(n_y);
    cuda_matmul_q(NULL, &w, &act, p->m, y, p->n + PAD);
    cuda_test_get(p->got, y, n_y);
    cuda_test_end();
    fwd_free(tiles);
}

static void compare(const struct product *p, const char *how) {
    int64_t ld = p->n + PAD;
    for (int64_t e = 0; e < p->m * ld; e++)
        ck_assert_msg(fwd_f32_bits(p->got[e]) == fwd_f32_bits(p->want[e]),
                      "%s N %lld K %lld M %d bias %d %s: row %lld of position %lld: got %.9g, on the CPU %.9g",
                      fwd_type_name(p->t->type), (long long)p->n, (long long)p->k, p->m, p->bias, how,
                      (long long)(e % ld), (long long)(e / ld), (double)p->got[e], (double)p->want[e]);
}

/* What the comparisons saw: finite values, and NaN where the inputs were to make them. */
struct tally {
    int n_products;
    int64_t n_nan, n_finite;
};

static void check_product(struct product p, enum mood mood, const char *variant, struct fwd_pool *pool,
                          struct tally *tally) {
    rng_state = (uint64_t)(p.n * 1000003 + p.k * 1009 + p.m * 31) + p.t->type * 7 + (uint64_t)mood;
    make_product(&p, mood);
    multiply_on_cpu(&p, variant, pool);
    multiply_on_device(&p);
    compare(&p, mood_names[mood]);
    tally->n_products++;
    for (int m = 0; m < p.m; m++)
        for (int64_t n = 0; n < p.n; n++) {
            float y = p.got[m * (p.n + PAD) + n];
            tally->n_nan += isnan(y) != 0;
            tally->n_finite += isfinite(y) != 0;
        }
    free_product(&p);
}

static const int ms[] = {1, 2, 3, 4, 5, 8, 9, 16, 17, 31, 32, 33, 64, 127, 161, 519};
static const int64_t ns[] = {1, 7, 8, 9, 63, 130, 513};
static const int64_t ks[] = {256, 512, 3584, 768, 1024, 32, 64, 96, 288, 416, 896};
enum { N_M = sizeof ms / sizeof *ms, N_N = sizeof ns / sizeof *ns, N_K_256 = 5, N_K = sizeof ks / sizeof *ks };
/* Long chains, and enough rows and positions for the largest tiling. */
static const int64_t large[][3] = {
    {2113, 512, 519}, {2300, 800, 500}, {5003, 1536, 701}, {9, 9728, 1}, {40, 18944, 78}};
enum { N_LARGE = sizeof large / sizeof *large };

START_TEST(test_same_bits) {
    const struct type_row *t = &types[_i];
    int n_k = t->values == 256 ? N_K_256 : N_K, turn = 0;
    struct tally tally = {0};
    struct fwd_pool *pool;
    ck_assert_int_eq(fwd_pool_create(&pool, 0, NULL), FWD_OK);
    for (int m = 0; m < N_M; m++)
        for (int n = 0; n < N_N; n++, turn++)
            check_product((struct product){.t = t, .n = ns[n], .k = ks[turn % n_k], .m = ms[m], .bias = turn % 2 != 0},
                          (enum mood)(turn / 2 % N_MOODS), NULL, pool, &tally);
    for (int k = 0; k < n_k; k++)
        for (int m = 0; m < 4; m++)
            check_product((struct product){.t = t, .n = 33, .k = ks[k], .m = 1 + 13 * m, .bias = true},
                          (enum mood)(m % N_MOODS), "ref", pool, &tally);
    for (int s = 0; s < N_LARGE; s++)
        if (large[s][1] % t->values == 0)
            check_product((struct product){.t = t, .n = large[s][0], .k = large[s][1], .m = (int)large[s][2]},
                          s % 2 ? EXTREME : PLAIN, NULL, pool, &tally);
    fwd_pool_free(pool);
    printf("%s: %d products bit-equal to the CPU's, %lld finite results, %lld NaN\n", fwd_type_name(t->type),
           tally.n_products, (long long)tally.n_finite, (long long)tally.n_nan);
    ck_assert(tally.n_finite > 1000 && tally.n_nan > 100);
}
END_TEST

/* ---- speed ---- */

static uint8_t noise[8 << 20];

static void fill_with_noise(void *device, size_t n_bytes) {
    for (size_t i = 0; i < n_bytes; i += sizeof noise)
        cuda_ok(cudaMemcpy((uint8_t *)device + i, noise, n_bytes - i < sizeof noise ? n_bytes - i : sizeof noise,
                           cudaMemcpyHostToDevice));
}

/* Copies of the weight, taken in turn, so that none comes out of the L2 cache. */
static void time_shape(uint32_t type, int64_t n, int64_t k, int m) {
    size_t n_tiles = fwd_tiles_bytes(type, n, k);
    int n_copies = (int)(((size_t)200 << 20) / n_tiles) + 1, n_sb = (int)((k + 255) / 256), turn = 0;
    size_t n_act = (size_t)m * (size_t)n_sb;
    cuda_test_start(n_tiles * (size_t)n_copies + n_act * (256 + 32 + 32) + (size_t)m * (size_t)n * 4);
    uint8_t *tiles = cuda_test_room(n_tiles * (size_t)n_copies);
    struct cuda_act act = {.n_sb = n_sb,
                           .q = cuda_test_room(n_act * 256),
                           .d = cuda_test_room(n_act * 32),
                           .sum = cuda_test_room(n_act * 32)};
    fill_with_noise(tiles, n_tiles * (size_t)n_copies);
    fill_with_noise(act.q, n_act * 256);
    struct cuda_linear w = {.form = CUDA_FORM_TILES, .type = type, .n_rows = n, .n_cols = k, .n_sb = n_sb};
    float *y = cuda_test_room((size_t)m * (size_t)n * 4), ms_call;
    cuda_test_time(ms_call, m > 1000 ? 6 : 40,
                   (w.data = tiles + (size_t)(turn++ % n_copies) * n_tiles, cuda_matmul_q(NULL, &w, &act, m, y, n)));
    printf("%s N %5lld K %5lld M %4d: %8.1f us %7.1f TMAC/s %6.0f GB/s\n", fwd_type_name(type), (long long)n,
           (long long)k, m, (double)ms_call * 1e3, (double)n * (double)k * m / (double)ms_call * 1e-9,
           (double)n_tiles / (double)ms_call * 1e-6);
}

START_TEST(test_speed) {
    static const int64_t shapes[][2] = {{3584, 3584}, {512, 3584}, {18944, 3584}, {3584, 18944}};
    static const uint32_t timed[] = {FWD_TYPE_Q4_K, FWD_TYPE_Q6_K};
    static const int positions[] = {1, 8, 78, 512, 4096};
    for (size_t i = 0; i < sizeof noise; i++)
        noise[i] = (uint8_t)next_random();
    for (int t = 0; t < 2; t++)
        for (int s = 0; s < 4; s++)
            for (int m = 0; m < 5; m++)
                time_shape(timed[t], shapes[s][0], shapes[s][1], positions[m]);
}
END_TEST

int main(int argc, char **argv) {
    bool speed = argc > 1 && !strcmp(argv[1], "--time");
    Suite *s = suite_create("cuda_matmul_q");
    TCase *t = tcase_create("cuda_matmul_q");
    tcase_set_timeout(t, 300);
    if (speed)
        tcase_add_test(t, test_speed);
    for (int i = 0; i < N_TYPES && !speed; i++)
        if (argc < 2 || !strcmp(argv[1], fwd_type_name(types[i].type)))
            tcase_add_loop_test(t, test_same_bits, i, i + 1);
    suite_add_tcase(s, t);
    return cuda_test_main("test_cuda_matmul_q", s);
}
