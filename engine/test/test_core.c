/* Core: half floats over every bit pattern, hashes, the pool's hand-overs and barriers, files that appear whole or not.
 */
#include "core/cpu.h"
#include "core/file_out.h"
#include "core/half.h"
#include "core/hash.h"
#include "core/memory.h"
#include "core/threads.h"
#include "core/types.h"

#include <check.h>
#include <fcntl.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The value of binary16 bits by the definition of the format. */
static double half_by_definition(unsigned h) {
    int exponent = (int)(h >> 10 & 31);
    double m = (double)(h & 1023);
    double v = exponent == 31 ? (m > 0 ? (double)NAN : (double)INFINITY)
               : exponent     ? ldexp(1 + m / 1024, exponent - 15)
                              : ldexp(m, -24);
    return h >> 15 ? -v : v;
}

START_TEST(every_half_widens_exactly_and_comes_back) {
    for (unsigned h = 0; h < 65536; h++) {
        float f = fwd_f16_to_f32((uint16_t)h);
        double want = half_by_definition(h);
        if (isnan(want))
            ck_assert_msg(isnan(f), "0x%04x", h);
        else
            ck_assert_msg((double)f == want && !signbit(f) == !signbit(want), "0x%04x: %a, expected %a", h, (double)f,
                          want);
        ck_assert_msg(fwd_f32_to_f16(f) == h, "0x%04x came back as 0x%04x", h, fwd_f32_to_f16(f));
    }
}
END_TEST

/* Between neighbouring halves a < b: below the middle goes to a, above to b, the middle itself to the even one. */
START_TEST(narrowing_rounds_half_to_even) {
    for (unsigned h = 0; h < 0x7bff; h++) {
        float a = fwd_f16_to_f32((uint16_t)h), b = fwd_f16_to_f32((uint16_t)(h + 1));
        float middle = (float)(((double)a + (double)b) / 2);
        ck_assert_uint_eq(fwd_f32_to_f16(middle), h & 1 ? h + 1 : h);
        ck_assert_uint_eq(fwd_f32_to_f16(nextafterf(middle, 0)), h);
        ck_assert_uint_eq(fwd_f32_to_f16(nextafterf(middle, INFINITY)), h + 1);
        ck_assert_uint_eq(fwd_f32_to_f16(-nextafterf(middle, INFINITY)), 0x8000u | (h + 1));
    }
    ck_assert_uint_eq(fwd_f32_to_f16(65519.99f), 0x7bff);
    ck_assert_uint_eq(fwd_f32_to_f16(65520.0f), 0x7c00);
    ck_assert_uint_eq(fwd_f32_to_f16(3e38f), 0x7c00);
    ck_assert_uint_eq(fwd_f32_to_f16(0x1p-26f), 0);
    ck_assert_uint_eq(fwd_f32_to_f16(-0.0f), 0x8000);
}
END_TEST

START_TEST(hash_does_not_depend_on_the_split_and_sees_every_bit) {
    unsigned char data[131];
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (unsigned char)(i * 7 + 3);
    for (size_t n = 0; n <= sizeof data; n++) {
        uint64_t whole = fwd_hash64(data, n);
        for (size_t cut = 0; cut <= n; cut += 5) {
            struct fwd_hash h;
            fwd_hash_begin(&h);
            fwd_hash_add(&h, data, cut);
            fwd_hash_add(&h, data + cut, n - cut);
            ck_assert_uint_eq(fwd_hash_end(&h), whole);
        }
        for (size_t bit = 0; bit < 8 * n; bit += 3) {
            data[bit / 8] ^= (unsigned char)(1u << bit % 8);
            ck_assert_msg(fwd_hash64(data, n) != whole, "bit %zu of %zu bytes", bit, n);
            data[bit / 8] ^= (unsigned char)(1u << bit % 8);
        }
        unsigned char zeros[132] = {0};
        if (n)
            ck_assert_msg(fwd_hash64(zeros, n) != fwd_hash64(zeros, n - 1), "%zu zero bytes", n);
    }
}
END_TEST

enum { ROUNDS = 300, PHASES = 5 };
struct shared_work {
    struct fwd_pool *pool;
    _Atomic int calls;
    int phase_of[64]; /* written by its thread, read by all after a barrier: a race here is what TSan looks for */
    _Atomic int bad;
};
static void meet(void *ctx, int thread, int n_threads) {
    struct shared_work *w = ctx;
    atomic_fetch_add(&w->calls, 1);
    for (int phase = 1; phase <= PHASES; phase++) {
        w->phase_of[thread] = phase;
        fwd_pool_barrier(w->pool);
        for (int t = 0; t < n_threads; t++)
            if (w->phase_of[t] != phase)
                atomic_store(&w->bad, 1);
        fwd_pool_barrier(w->pool);
    }
}

START_TEST(pool_runs_every_thread_once_and_barriers_hold) {
    static const int sizes[] = {1, 2, 3, 5};
    struct fwd_error err;
    struct shared_work w = {.calls = 0};
    ck_assert_int_eq(fwd_pool_create(&w.pool, sizes[_i], &err), FWD_OK);
    ck_assert_int_eq(fwd_pool_size(w.pool), sizes[_i]);
    for (int i = 0; i < ROUNDS; i++) {
        fwd_pool_run(w.pool, meet, &w);
        ck_assert_int_eq(atomic_load(&w.calls), (i + 1) * sizes[_i]);
    }
    ck_assert_int_eq(atomic_load(&w.bad), 0);
    fwd_pool_free(w.pool);
}
END_TEST

START_TEST(ranges_cover_everything_once) {
    for (int64_t total = 0; total < 70; total++)
        for (int n = 1; n < 9; n++)
            for (int64_t grain = 1; grain < 20; grain += 6) {
                int64_t at = 0;
                for (int t = 0; t < n; t++) {
                    int64_t begin, end;
                    fwd_range_split(total, grain, t, n, &begin, &end);
                    ck_assert_int_eq(begin, at);
                    ck_assert_int_ge(end, begin);
                    ck_assert(begin % grain == 0 || begin == total);
                    at = end;
                }
                ck_assert_int_eq(at, total);
            }
}
END_TEST

START_TEST(file_appears_whole_or_not_at_all) {
    char dir[] = "/tmp/parity-core-XXXXXX", path[128], text[16] = "";
    struct fwd_error err;
    struct fwd_file_out *f;
    struct stat st;
    ck_assert_ptr_nonnull(mkdtemp(dir));
    (void)snprintf(path, sizeof path, "%s/out", dir);
    ck_assert_int_eq(fwd_file_out_begin(&f, path, &err), FWD_OK);
    ck_assert_int_eq(fwd_file_out_write(f, "abc", 3, &err), FWD_OK);
    ck_assert_msg(stat(path, &st) != 0, "visible before the commit");
    fwd_file_out_abort(f);
    ck_assert_msg(rmdir(dir) == 0, "an aborted file left something behind");
    ck_assert_int_eq(mkdir(dir, 0700), 0);
    ck_assert_int_eq(fwd_file_write(path, "first", 5, &err), FWD_OK);
    ck_assert_int_eq(fwd_file_write(path, "second", 6, &err), FWD_OK);
    FILE *in = fopen(path, "rb");
    ck_assert_ptr_nonnull(in);
    ck_assert_uint_eq(fread(text, 1, sizeof text, in), 6);
    (void)fclose(in);
    ck_assert_str_eq(text, "second");
    (void)unlink(path);
    ck_assert_int_eq(fwd_file_write(dir, "x", 1, &err), FWD_EIO);
    ck_assert_msg(strstr(err.message, "is a folder") != NULL, "%s", err.message);
    ck_assert_int_eq(rmdir(dir), 0);
    ck_assert_int_eq(fwd_file_write(path, "x", 1, &err), FWD_EIO);
    ck_assert_msg(strstr(err.message, path) != NULL, "the message does not name the file: %s", err.message);
}
END_TEST

/* What is no plain file is written, never replaced: here a pipe, and a device that is always full. */
START_TEST(a_device_is_not_replaced) {
    char dir[] = "/tmp/parity-core-XXXXXX", path[128], text[16] = "";
    struct fwd_error err;
    struct stat st;
    ck_assert_ptr_nonnull(mkdtemp(dir));
    (void)snprintf(path, sizeof path, "%s/pipe", dir);
    ck_assert_int_eq(mkfifo(path, 0600), 0);
    int fd = open(path, O_RDWR);
    ck_assert_int_ge(fd, 0);
    ck_assert_msg(fwd_file_write(path, "abc", 3, &err) == FWD_OK, "%s", err.message);
    ck_assert_int_eq(read(fd, text, sizeof text), 3);
    (void)close(fd);
    ck_assert(stat(path, &st) == 0 && S_ISFIFO(st.st_mode));
    (void)unlink(path);
    if (stat("/dev/full", &st) == 0 && S_ISCHR(st.st_mode)) {
        (void)snprintf(path, sizeof path, "%s/full", dir);
        ck_assert_int_eq(symlink("/dev/full", path), 0);
        ck_assert_int_eq(fwd_file_write(path, "abc", 3, &err), FWD_EIO);
        ck_assert_msg(strstr(err.message, path) != NULL, "%s", err.message);
        ck_assert(lstat(path, &st) == 0 && S_ISLNK(st.st_mode));
        (void)unlink(path);
    }
    ck_assert_msg(rmdir(dir) == 0, "something was left behind");
}
END_TEST

START_TEST(allocation_refuses_products_that_overflow) {
    ck_assert_ptr_null(fwd_alloc(SIZE_MAX / 2, 3));
    ck_assert_ptr_null(fwd_calloc(SIZE_MAX, 1));
    char *p = fwd_calloc(0, 8);
    ck_assert_ptr_nonnull(p);
    ck_assert_uint_eq((uintptr_t)p % FWD_ALIGN, 0);
    fwd_free(p);
}
END_TEST

START_TEST(names_go_both_ways) {
    for (int op = 0; op < FWD_OP_COUNT; op++)
        ck_assert_int_eq(fwd_op_by_name(fwd_op_name((enum fwd_op)op)), op);
    ck_assert_int_eq(fwd_op_by_name("no such op"), FWD_OP_COUNT);
    ck_assert(fwd_op_in_layer(FWD_OP_L_OUT) && !fwd_op_in_layer(FWD_OP_INP_EMBD) &&
              !fwd_op_in_layer(FWD_OP_RESULT_OUTPUT));
    ck_assert_uint_eq(fwd_dtype_row_bytes(FWD_Q8_K, 512), 584);
    ck_assert_uint_eq(fwd_dtype_row_bytes(FWD_Q8_32, 64), 80);
}
END_TEST

START_TEST(caps_are_cut_to_the_machine) {
    unsigned mask = 99;
    struct fwd_error err;
    ck_assert_int_eq(fwd_cpu_parse("ref", FWD_CPU_AVX2, &mask, &err), FWD_OK);
    ck_assert_uint_eq(mask, FWD_CPU_NONE);
    ck_assert_int_eq(fwd_cpu_parse(NULL, FWD_CPU_AVX2, &mask, &err), FWD_OK);
    ck_assert_uint_eq(mask, FWD_CPU_AVX2);
    ck_assert_int_eq(fwd_cpu_parse("avx512", FWD_CPU_AVX2, &mask, &err), FWD_EUNAVAILABLE);
    ck_assert_int_eq(fwd_cpu_parse("sse", FWD_CPU_AVX2, &mask, &err), FWD_EINPUT);
    ck_assert_int_ge(fwd_cpu_count(), 1);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("core");
    TCase *tcase = tcase_create("core");
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, every_half_widens_exactly_and_comes_back);
    tcase_add_test(tcase, narrowing_rounds_half_to_even);
    tcase_add_test(tcase, hash_does_not_depend_on_the_split_and_sees_every_bit);
    tcase_add_loop_test(tcase, pool_runs_every_thread_once_and_barriers_hold, 0, 4);
    tcase_add_test(tcase, ranges_cover_everything_once);
    tcase_add_test(tcase, file_appears_whole_or_not_at_all);
    tcase_add_test(tcase, a_device_is_not_replaced);
    tcase_add_test(tcase, allocation_refuses_products_that_overflow);
    tcase_add_test(tcase, names_go_both_ways);
    tcase_add_test(tcase, caps_are_cut_to_the_machine);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int n_run = srunner_ntests_run(runner), n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_run == 0 ? 3 : n_failed != 0;
}
