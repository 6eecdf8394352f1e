/* cuda_matmul_f against matmul_f of the CPU, bit for bit: around the chain of 64, the tiles and the strips. */
#include "core/cpu.h"
#include "core/threads.h"
#include "cuda/kernels.h"
#include "format/gguf.h"
#include "ops/matmul_f/matmul_f.h"
#include "ops/variant_table.h"
#include "test/cuda_test.h"
#include "test/float_data.h"

static const int positions[] = {1, 2, 3, 5, 8, 9, 17, 33, 127};
static const int rows[] = {1, 7, 513};
static const int columns[] = {1, 63, 64, 65, 257, 3584};
enum { N_POSITIONS = 9, N_ROWS = 3, N_COLUMNS = 6, ROOM = 256 << 20 };

struct shape {
    int m, n, k;
    int pad; /* floats between rows of x and y */
    bool has_bias;
};

static void check_product(struct shape s, enum kind kind, matmul_f_fn *cpu, struct fwd_pool *pool) {
    const int ld_x = s.k + s.pad, ld_y = s.n + s.pad;
    float *w = new_floats((int64_t)s.n * s.k), *x = new_floats((int64_t)s.m * ld_x), *bias = new_floats(s.n);
    float *want = new_floats((int64_t)s.m * ld_y), *got = new_floats((int64_t)s.m * ld_y);
    fill(w, (int64_t)s.n * s.k, NORMAL, 1u + (unsigned)s.k);
    fill(x, (int64_t)s.m * ld_x, kind, 2u + (unsigned)s.m);
    fill(bias, s.n, OUTLIERS, 3u + (unsigned)s.n);
    memset(want, 0xcb, (size_t)(s.m * ld_y) * sizeof *want);
    const struct fwd_weight weight = {.name = "w",
                                      .type = FWD_TYPE_F32,
                                      .n_rows = s.n,
                                      .n_cols = s.k,
                                      .row_bytes = (int64_t)s.k * 4,
                                      .data = (const uint8_t *)w};
    struct fwd_matmul_f_args args = {&weight, x, ld_x, s.m, s.has_bias ? bias : NULL, want, ld_y, NULL, pool};
    args.scratch = fwd_alloc_huge(fwd_matmul_f_scratch(s.k, s.m, fwd_pool_size(pool)));
    ck_assert_ptr_nonnull(args.scratch);
    cpu(&args);

    cuda_test_start(ROOM);
    struct cuda_linear linear = {.form = CUDA_FORM_F32,
                                 .type = FWD_TYPE_F32,
                                 .act = FWD_F32,
                                 .n_rows = s.n,
                                 .n_cols = s.k,
                                 .data = cuda_test_put(w, (size_t)s.n * (size_t)s.k * 4),
                                 .bias = s.has_bias ? cuda_test_put(bias, (size_t)s.n * 4) : NULL};
    const float *dx = cuda_test_put(x, (size_t)(s.m * ld_x) * 4);
    float *dy = cuda_test_room((size_t)(s.m * ld_y) * 4);
    cuda_matmul_f(NULL, &linear, dx, ld_x, s.m, dy, ld_y);
    cuda_test_get(got, dy, (size_t)(s.m * ld_y) * 4);
    for (int i = 0; i < s.m * ld_y; i++)
        ck_assert_msg(same_floats(got + i, want + i, 1), "%d x %d x %d, kind %d, at [%d][%d]: %a, expected %a", s.m,
                      s.n, s.k, (int)kind, i / ld_y, i % ld_y, (double)got[i], (double)want[i]);
    cuda_test_end();
    fwd_free(w);
    fwd_free(x);
    fwd_free(bias);
    fwd_free(want);
    fwd_free(got);
    fwd_free(args.scratch);
}

static matmul_f_fn *best_cpu(void) {
    struct fwd_error err = {.message = ""};
    const struct fwd_variant *row;
    ck_assert_msg(fwd_variant_pick(&row, "matmul_f", fwd_cpu_detect(), NULL, &err) == FWD_OK, "%s", err.message);
    return (matmul_f_fn *)row->fn;
}

START_TEST(test_product) {
    struct fwd_pool *pool;
    ck_assert(fwd_pool_create(&pool, 2, NULL) == FWD_OK);
    for (int n = 0; n < N_ROWS; n++)
        for (int k = 0; k < N_COLUMNS; k++) {
            const struct shape s = {positions[_i], rows[n], columns[k], (n + k) % 3 * 2, (n + k) % 2};
            check_product(s, (enum kind)((_i + n + k) % N_KINDS), best_cpu(), pool);
        }
    fwd_pool_free(pool);
}
END_TEST

/* Enough tiles for the large ones, ragged at every edge. */
START_TEST(test_large_tiles) {
    struct fwd_pool *pool;
    ck_assert(fwd_pool_create(&pool, 2, NULL) == FWD_OK);
    check_product((struct shape){1100, 1300, 260, 4, true}, NORMAL, best_cpu(), pool);
    check_product((struct shape){1025, 1281, 65, 0, false}, DENORMAL, best_cpu(), pool);
    fwd_pool_free(pool);
}
END_TEST

START_TEST(test_denormals) {
    struct fwd_pool *pool;
    ck_assert(fwd_pool_create(&pool, 1, NULL) == FWD_OK);
    for (int m = 1; m < 20; m += 9)
        for (int k = 1; k < 200; k += 66)
            check_product((struct shape){m, 9, k, 0, false}, DENORMAL, best_cpu(), pool);
    fwd_pool_free(pool);
}
END_TEST

int main(void) {
    Suite *s = suite_create("cuda_matmul_f");
    TCase *t = tcase_create("products");
    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, test_product, 0, N_POSITIONS);
    tcase_add_test(t, test_large_tiles);
    tcase_add_test(t, test_denormals);
    suite_add_tcase(s, t);
    return cuda_test_main("test_cuda_matmul_f", s);
}
