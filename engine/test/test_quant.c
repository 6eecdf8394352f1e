/* Block decoders against the gguf package's values, bit by bit (fixtures/gen_quant_golden.py made the files).
 *
 * NaN: formats that only move bits (F32, F16, BF16) keep sign and payload. Where a NaN comes out of arithmetic its sign
 * and payload are the processor's choice (x86 makes a negative one of inf * 0, aarch64 a positive one), so there a NaN
 * is compared as a NaN. */
#include "core/half.h"
#include "core/memory.h"
#include "format/gguf.h"
#include "quant/quant.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct golden {
    const char *type;
    int min_blocks;
    bool exact_nan;
} goldens[] = {
    {"F32", 1024, true},  {"F16", 65536, true}, {"BF16", 65536, true}, {"Q4_0", 150, false}, {"Q4_1", 150, false},
    {"Q5_0", 150, false}, {"Q5_1", 150, false}, {"Q8_0", 150, false},  {"Q2_K", 180, false}, {"Q3_K", 180, false},
    {"Q4_K", 200, false}, {"Q5_K", 200, false}, {"Q6_K", 180, false},
};
enum { N_GOLDENS = sizeof goldens / sizeof *goldens };

static unsigned char *read_golden(const char *type, size_t *n_bytes) {
    char path[96];
    (void)snprintf(path, sizeof path, "fixtures/golden/quant_%s.bin", type);
    for (char *p = path; *p; p++)
        if (*p >= 'A' && *p <= 'Z')
            *p = (char)(*p - 'A' + 'a');
    FILE *f = fopen(path, "rb");
    ck_assert_msg(f != NULL, "%s: cannot open (run from the repository root)", path);
    ck_assert_int_eq(fseek(f, 0, SEEK_END), 0);
    long size = ftell(f);
    ck_assert_int_gt(size, 4);
    rewind(f);
    unsigned char *data = fwd_alloc((size_t)size, 1);
    ck_assert_ptr_nonnull(data);
    ck_assert_uint_eq(fread(data, 1, (size_t)size, f), (size_t)size);
    (void)fclose(f);
    *n_bytes = (size_t)size;
    return data;
}

static void check_values(const struct golden *g, const float *got, const unsigned char *expected, size_t n,
                         uint32_t block_values) {
    for (size_t i = 0; i < n; i++) {
        uint32_t want, have = fwd_f32_bits(got[i]);
        memcpy(&want, expected + 4 * i, 4);
        bool both_nan = (want & 0x7fffffffu) > 0x7f800000u && (have & 0x7fffffffu) > 0x7f800000u;
        if (want != have && (g->exact_nan || !both_nan))
            ck_abort_msg("%s block %zu value %zu: got %08x, expected %08x", g->type, i / block_values, i % block_values,
                         have, want);
    }
}

START_TEST(test_golden) {
    const struct golden *g = &goldens[_i];
    const struct fwd_type_info *type = fwd_type_by_name(g->type);
    ck_assert_ptr_nonnull(type);
    ck_assert_msg(type->decodable, "%s", g->type);
    fwd_decode_fn *decode = fwd_decode_for(type->id);
    ck_assert_ptr_nonnull(decode);
    size_t n_bytes;
    uint32_t n_blocks;
    unsigned char *data = read_golden(g->type, &n_bytes);
    memcpy(&n_blocks, data, 4);
    ck_assert_int_ge((int)n_blocks, g->min_blocks);
    size_t n = (size_t)n_blocks * type->block_values, in_bytes = (size_t)n_blocks * type->block_bytes;
    ck_assert_uint_eq(n_bytes, 4 + in_bytes + 4 * n);
    float *out = fwd_alloc(n + 16, sizeof *out);
    ck_assert_ptr_nonnull(out);
    memset(out, 0x5a, (n + 16) * sizeof *out);
    decode(data + 4, out, (int64_t)n);
    check_values(g, out, data + 4 + in_bytes, n, type->block_values);
    for (size_t i = n; i < n + 16; i++)
        ck_assert_msg(fwd_f32_bits(out[i]) == 0x5a5a5a5au, "%s writes past its %zu values", g->type, n);
    fwd_free(out);
    fwd_free(data);
}
END_TEST

/* One block at every alignment gives the same bits, and nothing behind it is read (the end of a heap block: ASan). */
START_TEST(test_alignment) {
    const struct golden *g = &goldens[_i];
    const struct fwd_type_info *type = fwd_type_by_name(g->type);
    fwd_decode_fn *decode = fwd_decode_for(type->id);
    size_t n_bytes;
    unsigned char *data = read_golden(g->type, &n_bytes);
    uint32_t n_blocks;
    memcpy(&n_blocks, data, 4);
    for (size_t shift = 0; shift < 8; shift++) {
        float out[256];
        size_t block = 4 + shift;
        unsigned char *copy = malloc(shift + type->block_bytes);
        ck_assert_ptr_nonnull(copy);
        memcpy(copy + shift, data + 4 + block * type->block_bytes, type->block_bytes);
        decode(copy + shift, out, type->block_values);
        check_values(g, out, data + 4 + (size_t)n_blocks * type->block_bytes + 4 * block * type->block_values,
                     type->block_values, type->block_values);
        free(copy);
    }
    fwd_free(data);
}
END_TEST

/* The table of decoders and the table of types say the same. */
START_TEST(test_tables_agree) {
    int n_decodable = 0;
    for (uint32_t id = 0; id < 200; id++) {
        const struct fwd_type_info *type = fwd_type_info(id);
        ck_assert_msg((type && type->decodable) == (fwd_decode_for(id) != NULL), "type id %u", id);
        n_decodable += type && type->decodable;
        ck_assert_msg(!type || fwd_type_by_name(type->name) == type, "type id %u", id);
    }
    ck_assert_int_eq(n_decodable, N_GOLDENS);
    ck_assert_ptr_eq(fwd_type_by_name("q4_k"), fwd_type_info(FWD_TYPE_Q4_K));
    ck_assert_ptr_null(fwd_type_by_name("Q4"));
    ck_assert_str_eq(fwd_type_name(77), "type 77");
    ck_assert_ptr_null(fwd_decode_for(UINT32_MAX));
}
END_TEST

int main(void) {
    Suite *s = suite_create("quant");
    TCase *t = tcase_create("quant");
    tcase_set_timeout(t, 60);
    tcase_add_loop_test(t, test_golden, 0, N_GOLDENS);
    tcase_add_loop_test(t, test_alignment, 0, N_GOLDENS);
    tcase_add_test(t, test_tables_agree);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_set_fork_status(r, CK_FORK);
    srunner_run_all(r, CK_NORMAL);
    int n_run = srunner_ntests_run(r), n_failed = srunner_ntests_failed(r);
    srunner_free(r);
    if (n_run == 0)
        return 3;
    return n_failed ? 1 : 0;
}
