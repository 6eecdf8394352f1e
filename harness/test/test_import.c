/* Captures as other programs write them: the made model's taps as .npz, .npy files and APRT stages are held like their
 * original, and what is damaged in them is refused with the reason. */
#include "tap/import_source.h"
#include "test/made_capture.h"

#include <sys/stat.h>

static struct copy copy;
static char other[96];

static void set_up_copy(void) {
    set_up();
    copy_capture(&copy, own_path);
    (void)snprintf(other, sizeof other, "%s/other", dir);
}

static void tear_down_copy(void) {
    free_copy(&copy);
    tear_down();
}

static void expect_held(const char *path, const char *kind) {
    struct par_judgement j;
    struct fwd_error err;
    ok(judge(&(struct asked){.capture = path, .keys = {"token_ids"}, .values = {ids_text}}, &j, &err), &err);
    ck_assert_msg(j.verdict == PAR_HELD, "%s: %s", par_verdict_name(j.verdict), j.why);
    ck_assert_str_eq(j.kind, kind);
    ck_assert_int_eq(j.n_unmeasured, 0);
    ck_assert_uint_eq(j.n_unknown, 0);
    ck_assert_ptr_nonnull(j.cap);
    par_judgement_free(&j);
}

static void expect_refused(const char *path, const char *words) {
    struct par_judgement j;
    struct fwd_error err = {0};
    ck_assert_int_ne(judge(&(struct asked){.capture = path, .keys = {"token_ids"}, .values = {ids_text}}, &j, &err),
                     FWD_OK);
    ck_assert_msg(strstr(err.message, words) != NULL, "%s", err.message);
    par_judgement_free(&j);
}

static void put(FILE *out, const void *data, size_t n) {
    ck_assert_uint_eq(fwrite(data, 1, n, out), n);
}

static FILE *create(const char *path) {
    FILE *out = fopen(path, "wb");
    ck_assert_ptr_nonnull(out);
    return out;
}

/* ---- .npy, .npz ---------------------------------------------------------------------------------------------------
 */

/* A whole .npy file; returns its length. */
static size_t make_npy(const struct copied *t, uint8_t **out) {
    char header[128];
    int length = snprintf(header, sizeof header, "{'descr': '<f4', 'fortran_order': False, 'shape': (%lld, %lld), }\n",
                          (long long)t->n_rows, (long long)t->width);
    size_t n = 10 + (size_t)length, n_values = (size_t)(t->n_rows * t->width);
    *out = malloc(n + 4 * n_values);
    ck_assert_ptr_nonnull(*out);
    memcpy(*out, "\x93NUMPY\1\0", 8);
    (*out)[8] = (uint8_t)length;
    (*out)[9] = 0;
    memcpy(*out + 10, header, (size_t)length);
    memcpy(*out + n, t->x, 4 * n_values);
    return n + 4 * n_values;
}

static void put_number(uint8_t *p, size_t x, int n) {
    for (int i = 0; i < n; i++)
        p[i] = (uint8_t)(x >> 8 * i);
}

static void write_npz(const char *path) {
    FILE *out = create(path);
    static uint8_t directory[MOST_COPIED * 160];
    size_t at = 0, n_directory = 0;
    for (int i = 0; i < copy.n; i++) {
        uint8_t local[30] = "PK\3\4", *entry = directory + n_directory, *data;
        char name[128];
        size_t n = make_npy(&copy.t[i], &data), length = (size_t)snprintf(name, sizeof name, "%s.npy", copy.t[i].name);
        put_number(local + 18, n, 4);
        put_number(local + 22, n, 4);
        put_number(local + 26, length, 2);
        memcpy(entry, "PK\1\2", 4);
        put_number(entry + 20, n, 4);
        put_number(entry + 24, n, 4);
        put_number(entry + 28, length, 2);
        put_number(entry + 42, at, 4);
        memcpy(entry + 46, name, length);
        n_directory += 46 + length;
        put(out, local, sizeof local);
        put(out, name, length);
        put(out, data, n);
        free(data);
        at += sizeof local + length + n;
    }
    uint8_t end[22] = "PK\5\6";
    put_number(end + 8, (size_t)copy.n, 2);
    put_number(end + 10, (size_t)copy.n, 2);
    put_number(end + 12, n_directory, 4);
    put_number(end + 16, at, 4);
    put(out, directory, n_directory);
    put(out, end, sizeof end);
    ck_assert_int_eq(fclose(out), 0);
}

START_TEST(npz_is_held) {
    write_npz(other);
    expect_held(other, ".npz");
}
END_TEST

START_TEST(npy_folder_is_held) {
    ck_assert_int_eq(mkdir(other, 0777), 0);
    for (int i = 0; i < copy.n; i++) {
        char path[256];
        uint8_t *data;
        size_t n = make_npy(&copy.t[i], &data);
        (void)snprintf(path, sizeof path, "%s/%s.npy", other, copy.t[i].name);
        FILE *out = create(path);
        put(out, data, n);
        ck_assert_int_eq(fclose(out), 0);
        free(data);
    }
    expect_held(other, "folder of .npy");
}
END_TEST

/* Byte `at` of the archive becomes `byte`; or, with at < 0, the last -at bytes are cut off. */
static const struct damage {
    long at;
    uint8_t byte;
    const char *words;
} damages[] = {{-7, 0, "without its end"}, {26, 255, "no .npy file"}};

START_TEST(damaged_npz) {
    const struct damage *d = &damages[_i];
    write_npz(other);
    struct stat st;
    ck_assert_int_eq(stat(other, &st), 0);
    if (d->at < 0) {
        ck_assert_int_eq(truncate(other, st.st_size + d->at), 0);
    } else {
        FILE *f = fopen(other, "r+b");
        ck_assert_ptr_nonnull(f);
        ck_assert_int_eq(fseek(f, d->at, SEEK_SET), 0);
        put(f, &d->byte, 1);
        ck_assert_int_eq(fclose(f), 0);
    }
    expect_refused(other, d->words);
}
END_TEST

static const struct header_row {
    const char *header, *words; /* words NULL: accepted */
} headers[] = {
    {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }", NULL},
    {"{'descr': '>f4', 'fortran_order': False, 'shape': (2, 3), }", "big-endian"},
    {"{'descr': '<i4', 'fortran_order': False, 'shape': (2, 3), }", "expected '<f4'"},
    {"{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }", "fortran_order"},
    {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 4), }", "32 bytes of values"},
    {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3", "without an end"},
    {"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3), }", "shape \"-1"},
    {"{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296), }", "overflows"},
    {"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999999,), }", "beyond 2^64"},
    {"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 1, 2, 3), }", "more than 4"},
    {"{'descr': '<f4', 'fortran_order': False}", "without a shape"},
    {"", "expected '<f4'"},
};

START_TEST(npy_headers) {
    const struct header_row *h = &headers[_i];
    uint8_t file[256] = "\x93NUMPY\1";
    size_t length = strlen(h->header), at;
    struct import_item item = {0};
    struct fwd_error err = {0};
    put_number(file + 8, length, 2);
    memcpy(file + 10, h->header, length);
    enum fwd_status rc = par_npy_header(file, 10 + length + 24, "x.npy", &item, &at, &err);
    ck_assert_int_eq(rc == FWD_OK, h->words == NULL);
    if (h->words) {
        ck_assert_msg(strstr(err.message, h->words) != NULL, "%s", err.message);
        return;
    }
    ck_assert_uint_eq(at, 10 + length);
    ck_assert_int_eq(item.n_dims, 2);
    ck_assert_int_eq(item.shape[1], 3);
    ck_assert_str_eq(item.dtype, "F32");
}
END_TEST

/* ---- APRT ---------------------------------------------------------------------------------------------------------
 */

static void write_stage(const char *folder, int layer, const char *stage, const float *x, size_t n) {
    char path[256];
    uint8_t header[12] = "APRT";
    if (layer >= 0) {
        (void)snprintf(path, sizeof path, "%s/layer-%d", folder, layer);
        (void)mkdir(path, 0777);
        (void)snprintf(path, sizeof path, "%s/layer-%d/%s.bin", folder, layer, stage);
    } else {
        (void)snprintf(path, sizeof path, "%s/%s.bin", folder, stage);
    }
    put_number(header + 4, layer < 0 ? 0xFFFFFFFFu : (size_t)layer, 4);
    put_number(header + 8, n, 4);
    FILE *out = create(path);
    put(out, header, sizeof header);
    put(out, x, 4 * n);
    ck_assert_int_eq(fclose(out), 0);
}

static const char *const stages[][2] = {
    {"attn_norm", "attn_norm"},  {"Qcur_rope", "q_post_rope"},  {"Kcur_rope", "k_post_rope"},
    {"kqv_out", "attention"},    {"attn_out", "attn_out"},      {"ffn_inp", "post_attn_residual"},
    {"ffn_norm", "ffn_norm"},    {"ffn_gate", "ffn_gate"},      {"ffn_up", "ffn_up"},
    {"ffn_swiglu", "ffn_swigl"}, {"ffn_out", "ffn_out"},        {"l_out", "post_ffn_residual"},
    {"inp_embd", "embedding"},   {"result_norm", "final_norm"}, {"result_output", "lm_head"}};

/* Q, K and V of a layer side by side. */
static void write_qkv(const char *folder, int layer) {
    char name[32];
    const struct copied *part[3];
    int64_t width = 0, column = 0;
    for (int i = 0; i < 3; i++) {
        (void)snprintf(name, sizeof name, "%ccur-%d", "QKV"[i], layer);
        part[i] = find_copied(&copy, name);
        width += part[i]->width;
    }
    float *rows = malloc((size_t)(part[0]->n_rows * width) * sizeof *rows);
    ck_assert_ptr_nonnull(rows);
    for (int i = 0; i < 3; i++) {
        for (int64_t p = 0; p < part[i]->n_rows; p++)
            memcpy(rows + p * width + column, part[i]->x + p * part[i]->width, (size_t)part[i]->width * sizeof *rows);
        column += part[i]->width;
    }
    write_stage(folder, layer, "qkv_bias", rows, (size_t)(part[0]->n_rows * width));
    free(rows);
}

static void write_stages(const char *folder) {
    ck_assert_int_eq(mkdir(folder, 0777), 0);
    for (int i = 0; i < copy.n; i++) {
        char tap[96];
        const struct copied *t = &copy.t[i];
        (void)snprintf(tap, sizeof tap, "%s", t->name);
        char *dash = strrchr(tap, '-');
        int layer = dash ? (int)strtol(dash + 1, NULL, 10) : -1;
        if (dash)
            *dash = 0;
        for (size_t k = 0; k < sizeof stages / sizeof *stages; k++)
            if (!strcmp(tap, stages[k][0]))
                write_stage(folder, layer, stages[k][1], t->x, (size_t)(t->n_rows * t->width));
        if (!strcmp(tap, "Qcur"))
            write_qkv(folder, layer);
    }
}

START_TEST(aprt_is_held) {
    write_stages(other);
    expect_held(other, "APRT stages");
}
END_TEST

START_TEST(damaged_aprt) {
    char path[128];
    write_stages(other);
    (void)snprintf(path, sizeof path, "%s/layer-1/ffn_up.bin", other);
    FILE *f = fopen(path, "r+b");
    ck_assert_ptr_nonnull(f);
    if (_i == 0)
        ck_assert_int_eq(fseek(f, 4, SEEK_SET), 0); /* another layer */
    else if (_i == 1)
        ck_assert_int_eq(fseek(f, 8, SEEK_SET), 0); /* another count */
    uint8_t byte = _i == 2 ? 'X' : 7;
    put(f, &byte, 1);
    ck_assert_int_eq(fclose(f), 0);
    expect_refused(other, _i == 0 ? "header says layer 7" : _i == 1 ? "values by its header" : "no APRT stage");
}
END_TEST

START_TEST(empty_folder) {
    ck_assert_int_eq(mkdir(other, 0777), 0);
    expect_refused(other, "neither .npy files nor APRT stages");
}
END_TEST

int main(void) {
    Suite *s = suite_create("import");
    TCase *tc = tcase_create("all");
    tcase_add_checked_fixture(tc, set_up_copy, tear_down_copy);
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, npz_is_held);
    tcase_add_test(tc, npy_folder_is_held);
    tcase_add_loop_test(tc, damaged_npz, 0, sizeof damages / sizeof *damages);
    tcase_add_loop_test(tc, npy_headers, 0, sizeof headers / sizeof *headers);
    tcase_add_test(tc, aprt_is_held);
    tcase_add_loop_test(tc, damaged_aprt, 0, 3);
    tcase_add_test(tc, empty_folder);
    suite_add_tcase(s, tc);
    SRunner *r = srunner_create(s);
    srunner_set_fork_status(r, CK_FORK);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r), run = srunner_ntests_run(r);
    srunner_free(r);
    return run == 0 ? 3 : failed != 0;
}
