/* The GGUF reader on good files (made here, byte by byte), and on bad ones: cut at every byte, every bit of the
 * structure flipped, every length made huge. A bad file gives an error with a message, never a crash. */
#include "core/file_out.h"
#include "test/gguf_bytes.h"

#include <check.h>
#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>

static const uint64_t dims_32x2[] = {32, 2}, dims_5[] = {5}, dims_3d[] = {256, 2, 3}, dims_iq[] = {256};

/* Every kind of key, tensors of several types. */
static void fill_good(struct gguf_bytes *g) {
    static const uint8_t q8[68] = {1, 2, 3};
    static const float f5[5] = {1, -2, 3, -4, 5};
    add_str(g, "general.architecture", "test");
    begin_kv(g, "k.u8", FWD_KV_U8), put_le(&g->keys, 200, 1);
    begin_kv(g, "k.i8", FWD_KV_I8), put_le(&g->keys, 0xff, 1);
    add_u16(g, "k.u16", 65535);
    begin_kv(g, "k.i16", FWD_KV_I16), put_le(&g->keys, 0x8000, 2);
    add_u32(g, "k.u32", 0xfffffffe);
    begin_kv(g, "k.i32", FWD_KV_I32), put_le(&g->keys, (uint64_t)-7, 4);
    add_f32(g, "k.f32", 1.5f);
    begin_kv(g, "k.true", FWD_KV_BOOL), put_le(&g->keys, 1, 1);
    begin_kv(g, "k.u64", FWD_KV_U64), put_le(&g->keys, UINT64_MAX, 8);
    begin_kv(g, "k.i64", FWD_KV_I64), put_le(&g->keys, (uint64_t)INT64_MIN, 8);
    begin_kv(g, "k.f64", FWD_KV_F64), put_le(&g->keys, 0xbfd0000000000000u, 8); /* -0.25 */
    begin_array(g, "a.str", FWD_KV_STRING, 3);
    put_string(&g->keys, "one");
    put_string(&g->keys, "");
    put_string(&g->keys, "three");
    begin_array(g, "a.i16", FWD_KV_I16, 2);
    put_le(&g->keys, 0xffff, 2), put_le(&g->keys, 12, 2);
    begin_array(g, "a.bool", FWD_KV_BOOL, 2);
    put_le(&g->keys, 1, 1), put_le(&g->keys, 0, 1);
    begin_array(g, "a.none", FWD_KV_F32, 0);
    add_tensor(g, "t.q8", FWD_TYPE_Q8_0, 2, dims_32x2, q8);
    add_tensor(g, "t.f32", FWD_TYPE_F32, 1, dims_5, f5);
    add_tensor(g, "t.q4k", FWD_TYPE_Q4_K, 3, dims_3d, NULL);
    add_tensor(g, "t.iq", 16, 1, dims_iq, NULL);
    add_tensor(g, "t.removed", 31, 1, dims_iq, NULL);
    add_tensor(g, "t.future", 77, 1, dims_iq, NULL);
}

static void check_good(const struct fwd_gguf *g) {
    uint64_t u;
    double d;
    bool b;
    const char *s;
    size_t len;
    int64_t i;
    ck_assert_uint_eq(fwd_gguf_n_tensors(g), 6);
    ck_assert(fwd_gguf_get_u64(g, "k.u8", &u) && u == 200);
    ck_assert(!fwd_gguf_get_u64(g, "k.i8", &u));
    ck_assert(fwd_gguf_item_i64(fwd_gguf_find_kv(g, "k.i8"), 0, &i) && i == -1);
    ck_assert(fwd_gguf_get_u64(g, "k.u16", &u) && u == 65535);
    ck_assert(fwd_gguf_item_i64(fwd_gguf_find_kv(g, "k.i16"), 0, &i) && i == -32768);
    ck_assert(fwd_gguf_get_u64(g, "k.u32", &u) && u == 0xfffffffe);
    ck_assert(fwd_gguf_item_i64(fwd_gguf_find_kv(g, "k.i32"), 0, &i) && i == -7);
    ck_assert(fwd_gguf_get_f64(g, "k.f32", &d) && d == 1.5);
    ck_assert(fwd_gguf_get_f64(g, "k.f64", &d) && d == -0.25);
    ck_assert(!fwd_gguf_get_f64(g, "k.u8", &d));
    ck_assert(fwd_gguf_get_bool(g, "k.true", &b) && b);
    ck_assert(!fwd_gguf_get_u64(g, "k.true", &u));
    ck_assert(fwd_gguf_get_u64(g, "k.u64", &u) && u == UINT64_MAX);
    ck_assert(!fwd_gguf_item_i64(fwd_gguf_find_kv(g, "k.u64"), 0, &i));
    ck_assert(fwd_gguf_item_i64(fwd_gguf_find_kv(g, "k.i64"), 0, &i) && i == INT64_MIN);
    ck_assert(fwd_gguf_get_str(g, "general.architecture", &s, &len) && len == 4 && !memcmp(s, "test", 4));
    ck_assert(!fwd_gguf_get_str(g, "k.u8", &s, &len) && !fwd_gguf_get_str(g, "absent", &s, &len));
    const struct fwd_gguf_kv *a = fwd_gguf_find_kv(g, "a.str");
    uint64_t cursor = 0;
    ck_assert(fwd_gguf_next_str(a, &cursor, &s, &len) && len == 3);
    ck_assert(fwd_gguf_next_str(a, &cursor, &s, &len) && len == 0);
    ck_assert(fwd_gguf_next_str(a, &cursor, &s, &len) && len == 5 && !memcmp(s, "three", 5));
    ck_assert(!fwd_gguf_next_str(a, &cursor, &s, &len));
    a = fwd_gguf_find_kv(g, "a.i16");
    ck_assert(fwd_gguf_item_i64(a, 0, &i) && i == -1 && fwd_gguf_item_i64(a, 1, &i) && i == 12);
    ck_assert(!fwd_gguf_item_i64(a, 2, &i));
    ck_assert_uint_eq(fwd_gguf_find_kv(g, "a.none")->n_items, 0);
    const struct fwd_gguf_tensor *t = fwd_gguf_find(g, "t.f32");
    float f;
    ck_assert(t && t->type == FWD_TYPE_F32 && t->n_bytes == 20 && t->ne[0] == 5 && t->ne[1] == 1);
    memcpy(&f, t->data + 4, 4);
    ck_assert(f == -2.0f);
    t = fwd_gguf_find(g, "t.q4k");
    ck_assert(t && t->n_dims == 3 && t->ne[2] == 3 && t->n_bytes == 6 * 144);
    t = fwd_gguf_find(g, "t.iq");
    ck_assert(t && t->n_bytes == 66 && t->data);
    ck_assert(fwd_gguf_find(g, "t.removed")->data == NULL && fwd_gguf_find(g, "t.future")->data == NULL);
    ck_assert_ptr_null(fwd_gguf_find(g, "t.f3"));
    ck_assert_ptr_null(fwd_gguf_find_kv(g, "k"));
    for (uint64_t n = 0; n < 6; n++)
        ck_assert_ptr_eq(fwd_gguf_find(g, fwd_gguf_tensor(g, n)->name), fwd_gguf_tensor(g, n));
    ck_assert_ptr_null(fwd_gguf_tensor(g, 6));
}

START_TEST(test_good) {
    uint32_t version = _i / 2 ? 3 : 2, alignment = _i % 2 ? 64 : 0;
    struct gguf_bytes made = {.alignment = alignment};
    struct fwd_error err = {0};
    struct fwd_gguf *g;
    size_t n;
    fill_good(&made);
    uint8_t *data = finish_gguf(&made, version, &n, NULL);
    ck_assert_msg(fwd_gguf_parse(&g, data, n, &err) == FWD_OK, "%s", err.message);
    ck_assert_uint_eq(fwd_gguf_version(g), version);
    ck_assert_uint_eq(fwd_gguf_alignment(g), alignment ? alignment : 32);
    ck_assert_uint_eq(fwd_gguf_file_bytes(g), n);
    for (uint64_t i = 0; i < 4; i++)
        ck_assert_uint_eq(fwd_gguf_tensor(g, i)->file_offset % fwd_gguf_alignment(g), 0);
    check_good(g);
    fwd_gguf_close(g);
    free(data);
}
END_TEST

/* ---- one fault each ---------------------------------------------------------------------------------------------- */

struct fault {
    const char *name;
    enum fwd_status status;
    const char *says;
    void (*make)(struct gguf_bytes *g);
};

static void twice_key(struct gguf_bytes *g) {
    add_u32(g, "k", 1), add_u32(g, "k", 2);
}
static void empty_key(struct gguf_bytes *g) {
    add_u32(g, "", 1);
}
static void nul_key(struct gguf_bytes *g) {
    put_le(&g->keys, 3, 8), put_bytes(&g->keys, "a\0b", 3), put_le(&g->keys, FWD_KV_U8, 4), put_le(&g->keys, 1, 1);
    g->n_kv++;
}
static void long_key(struct gguf_bytes *g) {
    put_le(&g->keys, UINT64_MAX, 8);
    g->n_kv++;
}
static void odd_kind(struct gguf_bytes *g) {
    begin_kv(g, "k", 13);
}
static void odd_item_kind(struct gguf_bytes *g) {
    begin_array(g, "k", 99, 0);
}
static void nested_array(struct gguf_bytes *g) {
    begin_array(g, "k", FWD_KV_ARRAY, 1);
}
static void odd_bool(struct gguf_bytes *g) {
    begin_kv(g, "k", FWD_KV_BOOL), put_le(&g->keys, 2, 1);
}
static void huge_array(struct gguf_bytes *g) {
    begin_array(g, "k", FWD_KV_U64, UINT64_MAX / 8 + 1);
}
static void huge_strings(struct gguf_bytes *g) {
    begin_array(g, "k", FWD_KV_STRING, UINT64_MAX);
}
static void huge_string(struct gguf_bytes *g) {
    begin_kv(g, "k", FWD_KV_STRING), put_le(&g->keys, UINT64_MAX - 7, 8);
}
static void alignment_0(struct gguf_bytes *g) {
    add_u32(g, "general.alignment", 0);
}
static void alignment_48(struct gguf_bytes *g) {
    add_u32(g, "general.alignment", 48);
}
static void alignment_kind(struct gguf_bytes *g) {
    add_str(g, "general.alignment", "32");
}
static void twice_tensor(struct gguf_bytes *g) {
    add_tensor(g, "t", 0, 1, dims_5, NULL), add_tensor(g, "t", 0, 1, dims_5, NULL);
}
static void no_dims(struct gguf_bytes *g) {
    add_info(g, "t", 0, 0, NULL, 0);
}
static void five_dims(struct gguf_bytes *g) {
    static const uint64_t ne[5] = {1, 1, 1, 1, 1};
    add_tensor(g, "t", 0, 5, ne, NULL);
}
static void zero_dim(struct gguf_bytes *g) {
    static const uint64_t ne[2] = {32, 0};
    add_info(g, "t", 0, 2, ne, 0);
}
static void overflow_values(struct gguf_bytes *g) {
    static const uint64_t ne[4] = {1ull << 31, 1ull << 31, 4, 1};
    add_info(g, "t", 0, 4, ne, 0);
}
static void overflow_bytes(struct gguf_bytes *g) {
    static const uint64_t ne[2] = {1ull << 31, 1ull << 30};
    add_info(g, "t", FWD_TYPE_F32, 2, ne, 0);
}
static void part_block(struct gguf_bytes *g) {
    static const uint64_t ne[1] = {255};
    add_info(g, "t", FWD_TYPE_Q4_K, 1, ne, 0);
}
static void odd_offset(struct gguf_bytes *g) {
    add_info(g, "t", 0, 1, dims_5, 4);
}
static void outside(struct gguf_bytes *g) {
    add_tensor(g, "t", 0, 1, dims_5, NULL), add_info(g, "u", 0, 1, dims_5, 1ull << 40);
}
static void outside_by_one(struct gguf_bytes *g) {
    static const uint64_t ne[1] = {6};
    add_tensor(g, "t", 0, 1, dims_5, NULL), g->infos.n = 0, g->n_tensors = 0;
    add_info(g, "t", 0, 1, ne, 0);
}
static void last_one_too_long(struct gguf_bytes *g) {
    static const uint64_t ne[1] = {6};
    add_tensor(g, "t", 0, 1, dims_5, NULL), add_tensor(g, "u", 0, 1, dims_5, NULL);
    g->infos.n = 0, g->n_tensors = 0;
    add_info(g, "t", 0, 1, dims_5, 0), add_info(g, "u", 0, 1, ne, 32);
}
static void offset_wraps(struct gguf_bytes *g) {
    add_tensor(g, "t", 0, 1, dims_5, NULL), add_info(g, "u", 0, 1, dims_5, UINT64_MAX - 31);
}
static void overlap(struct gguf_bytes *g) {
    static const uint64_t ne[1] = {64};
    add_tensor(g, "t", 0, 1, ne, NULL), add_info(g, "u", 0, 1, dims_5, 224);
}
static void same_place(struct gguf_bytes *g) {
    add_tensor(g, "t", 0, 1, dims_5, NULL), add_info(g, "u", 0, 1, dims_5, 0);
}

static const struct fault faults[] = {
    {"duplicate key", FWD_ECORRUPT, "key \"k\" occurs twice", twice_key},
    {"empty key", FWD_ECORRUPT, "0 bytes long", empty_key},
    {"NUL in key", FWD_ECORRUPT, "NUL byte: \"a?b\"", nul_key},
    {"endless key", FWD_ETRUNCATED, "needs 18446744073709551615 bytes", long_key},
    {"unknown kind", FWD_ECORRUPT, "kind 13, expected 0 to 12", odd_kind},
    {"unknown item kind", FWD_ECORRUPT, "array of kind 99", odd_item_kind},
    {"nested array", FWD_EUNSUPPORTED, "array of arrays", nested_array},
    {"boolean 2", FWD_ECORRUPT, "boolean is 2", odd_bool},
    {"array overflow", FWD_ETRUNCATED, "claims 2305843009213693952 items of 8 bytes", huge_array},
    {"string count", FWD_ETRUNCATED, "claims 18446744073709551615 strings", huge_strings},
    {"string length", FWD_ETRUNCATED, "ends outside the file", huge_string},
    {"alignment 0", FWD_ECORRUPT, "general.alignment is 0", alignment_0},
    {"alignment 48", FWD_ECORRUPT, "general.alignment is 48", alignment_48},
    {"alignment kind", FWD_ECORRUPT, "general.alignment has kind 8", alignment_kind},
    {"duplicate tensor", FWD_ECORRUPT, "tensor \"t\" occurs twice", twice_tensor},
    {"no dimensions", FWD_ECORRUPT, "0 dimensions, expected 1 to 4", no_dims},
    {"five dimensions", FWD_ECORRUPT, "5 dimensions", five_dims},
    {"zero dimension", FWD_ECORRUPT, "ne[1] is 0", zero_dim},
    {"value overflow", FWD_ECORRUPT, "overflow", overflow_values},
    {"byte overflow", FWD_ECORRUPT, "overflow", overflow_bytes},
    {"part of a block", FWD_ECORRUPT, "ne[0] is 255, expected a multiple of 256 (Q4_K)", part_block},
    {"unaligned offset", FWD_ECORRUPT, "offset 4, expected a multiple of 32", odd_offset},
    {"outside the file", FWD_ETRUNCATED, "\"u\": 20 bytes at offset 1099511627776", outside},
    {"one value too long", FWD_ETRUNCATED, "24 bytes at offset 0 do not fit into the 20", outside_by_one},
    {"last one too long", FWD_ETRUNCATED, "24 bytes at offset 32 do not fit into the 52", last_one_too_long},
    {"offset wraps", FWD_ETRUNCATED, "do not fit", offset_wraps},
    {"overlap", FWD_ECORRUPT, "\"u\" begins at byte", overlap},
    {"same place", FWD_ECORRUPT, "inside tensor", same_place},
};

static void expect_refusal(const uint8_t *data, size_t n, enum fwd_status status, const char *says, const char *name) {
    struct fwd_error err = {0};
    struct fwd_gguf *g = (struct fwd_gguf *)&err;
    enum fwd_status got = fwd_gguf_parse(&g, data, n, &err);
    ck_assert_msg(got == status, "%s: status %d (%s), expected %d", name, got, err.message, status);
    ck_assert_msg(g == NULL, "%s", name);
    ck_assert_msg(strstr(err.message, says) != NULL, "%s: message \"%s\" lacks \"%s\"", name, err.message, says);
    ck_assert_msg(fwd_gguf_parse(&g, data, n, NULL) == status, "%s without an error", name);
}

START_TEST(test_fault) {
    const struct fault *f = &faults[_i];
    struct gguf_bytes made = {0};
    size_t n;
    f->make(&made);
    uint8_t *data = finish_gguf(&made, 3, &n, NULL);
    expect_refusal(data, n, f->status, f->says, f->name);
    free(data);
}
END_TEST

START_TEST(test_header) {
    static const struct {
        const char *bytes;
        size_t n;
        enum fwd_status status;
        const char *says;
    } headers[] = {
        {"", 0, FWD_ETRUNCATED, "header"},
        {"GGUF\3\0\0", 7, FWD_ETRUNCATED, "header"},
        {"GGML\3\0\0\0", 8, FWD_ECORRUPT, "not a GGUF file: it begins with bytes 47 47 4d 4c"},
        {"PK\3\4\0\0\0\0", 8, FWD_ECORRUPT, "not a GGUF file"},
        {"GGUF\0\0\0\3", 8, FWD_EVERSION, "big-endian"},
        {"GGUF\1\0\0\0", 8, FWD_EVERSION, "version 1, expected 2 or 3"},
        {"GGUF\4\0\0\0", 8, FWD_EVERSION, "version 4"},
        {"GGUF\0\0\0\0", 8, FWD_EVERSION, "version 0"},
        {"GGUF\3\0\0\0", 8, FWD_ETRUNCATED, "tensor count"},
    };
    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++)
        expect_refusal((const uint8_t *)headers[i].bytes, headers[i].n, headers[i].status, headers[i].says,
                       headers[i].says);
}
END_TEST

/* ---- cut and flipped --------------------------------------------------------------------------------------------- */

/* Touches what a successful parse promises. */
static uint64_t walk_all(const struct fwd_gguf *g) {
    uint64_t sum = 0;
    for (uint64_t i = 0; i < fwd_gguf_n_tensors(g); i++) {
        const struct fwd_gguf_tensor *t = fwd_gguf_tensor(g, i);
        sum += strlen(t->name);
        for (uint64_t b = 0; t->data && b < t->n_bytes; b++)
            sum += t->data[b];
    }
    for (uint64_t i = 0; i < fwd_gguf_n_kv(g); i++) {
        const struct fwd_gguf_kv *kv = fwd_gguf_kv(g, i);
        uint64_t cursor = 0;
        const char *s;
        size_t len;
        for (uint64_t b = 0; b < kv->n_bytes; b++)
            sum += kv->data[b];
        while (fwd_gguf_next_str(kv, &cursor, &s, &len))
            sum += len ? (uint8_t)s[len - 1] : 0;
    }
    return sum;
}

START_TEST(test_cut_everywhere) {
    struct gguf_bytes made = {0};
    size_t n, structure;
    fill_good(&made);
    uint8_t *data = finish_gguf(&made, 3, &n, &structure);
    ck_assert_uint_gt(n, structure);
    for (size_t len = 0; len < n; len++) {
        uint8_t *copy = malloc(len ? len : 1); /* exactly as long: ASan sees one byte too far */
        struct fwd_error err = {0};
        struct fwd_gguf *g;
        ck_assert_ptr_nonnull(copy);
        memcpy(copy, data, len);
        enum fwd_status status = fwd_gguf_parse(&g, copy, len, &err);
        /* the last tensor's type has no known size, so what follows the one before it may go */
        if (status == FWD_OK) {
            ck_assert_uint_ge(len, n - 128);
            (void)walk_all(g);
            fwd_gguf_close(g);
        } else {
            ck_assert_msg(status == FWD_ETRUNCATED && err.message[0], "cut at %zu: %d %s", len, status, err.message);
        }
        free(copy);
    }
    free(data);
}
END_TEST

START_TEST(test_flip_every_bit) {
    struct gguf_bytes made = {0};
    size_t n, structure;
    int n_refused = 0, n_parsed = 0;
    fill_good(&made);
    uint8_t *data = finish_gguf(&made, 3, &n, &structure);
    for (size_t bit = 0; bit < structure * 8; bit++) {
        struct fwd_error err = {0};
        struct fwd_gguf *g;
        data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        if (fwd_gguf_parse(&g, data, n, &err) == FWD_OK) {
            (void)walk_all(g);
            fwd_gguf_close(g);
            n_parsed++;
        } else {
            ck_assert_msg(err.message[0], "bit %zu: no message", bit);
            n_refused++;
        }
        data[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    /* letters of names and values of keys may change; lengths, kinds, types and dimensions may not */
    ck_assert_int_gt(n_refused, 1000);
    ck_assert_int_gt(n_parsed, 1000);
    free(data);
}
END_TEST

/* Every aligned or unaligned u64 of the structure replaced by a huge length. */
START_TEST(test_huge_lengths) {
    static const uint64_t huge[] = {UINT64_MAX, UINT64_MAX - 7, 1ull << 63, INT64_MAX,
                                    1ull << 61, 1ull << 40,     1u << 31};
    struct gguf_bytes made = {0};
    size_t n, structure;
    fill_good(&made);
    uint8_t *data = finish_gguf(&made, 3, &n, &structure);
    struct rlimit limit = {1u << 30, 1u << 30}; /* an allocation of what a length claims would fail */
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    ck_assert_int_eq(setrlimit(RLIMIT_AS, &limit), 0);
#endif
    (void)limit;
    for (size_t at = 0; at + 8 <= structure; at++)
        for (size_t h = 0; h < sizeof huge / sizeof *huge; h++) {
            uint8_t keep[8];
            struct fwd_error err = {0};
            struct fwd_gguf *g;
            memcpy(keep, data + at, 8);
            memcpy(data + at, &huge[h], 8);
            enum fwd_status status = fwd_gguf_parse(&g, data, n, &err);
            ck_assert_msg(status != FWD_ENOMEM, "byte %zu = %llx: %s", at, (unsigned long long)huge[h], err.message);
            if (status == FWD_OK) {
                (void)walk_all(g);
                fwd_gguf_close(g);
            }
            memcpy(data + at, keep, 8);
        }
    free(data);
}
END_TEST

/* ---- files and split sets ---------------------------------------------------------------------------------------- */

struct folder {
    char path[64];
};

static void make_folder(struct folder *f) {
    (void)snprintf(f->path, sizeof f->path, "/tmp/test_gguf.XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(f->path));
}

static void file_in(const struct folder *f, const char *name, char out[160]) {
    (void)snprintf(out, 160, "%s/%s", f->path, name);
}

static void remove_folder(const struct folder *f, const char *const *names) {
    char path[160];
    for (; *names; names++) {
        file_in(f, *names, path);
        (void)unlink(path);
    }
    ck_assert_int_eq(rmdir(f->path), 0);
}

static void write_part(const struct folder *f, const char *name, int no, int count, int total, const char *tensor) {
    struct gguf_bytes made = {0};
    char path[160];
    size_t n;
    float v[5] = {(float)no, 0, 0, 0, 0};
    if (no == 0)
        add_str(&made, "general.architecture", "test");
    add_u16(&made, "split.no", (uint32_t)no);
    add_u16(&made, "split.count", (uint32_t)count);
    begin_kv(&made, "split.tensors.count", FWD_KV_I32), put_le(&made.keys, (uint64_t)total, 4);
    add_tensor(&made, tensor, 0, 1, dims_5, v);
    uint8_t *data = finish_gguf(&made, 3, &n, NULL);
    file_in(f, name, path);
    ck_assert_int_eq(fwd_file_write(path, data, n, NULL), FWD_OK);
    free(data);
}

static const char *const part_names[] = {"m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf",
                                         "alone.gguf", NULL};

static void open_refused(const struct folder *f, const char *name, enum fwd_status status, const char *says) {
    struct fwd_error err = {0};
    struct fwd_gguf *g;
    char path[160];
    file_in(f, name, path);
    enum fwd_status got = fwd_gguf_open(&g, path, &err);
    ck_assert_msg(got == status && !g, "%s: status %d, message \"%s\"", name, got, err.message);
    ck_assert_msg(strstr(err.message, says) && strstr(err.message, f->path), "%s: \"%s\" lacks \"%s\"", name,
                  err.message, says);
}

START_TEST(test_split) {
    struct folder f;
    char path[160];
    make_folder(&f);
    for (int i = 0; i < 3; i++)
        write_part(&f, part_names[i], i, 3, 3, i == 0 ? "a" : i == 1 ? "b" : "c");
    for (int member = 0; member < 3; member++) { /* any of them opens all */
        struct fwd_error err = {0};
        struct fwd_gguf *g;
        file_in(&f, part_names[member], path);
        ck_assert_msg(fwd_gguf_open(&g, path, &err) == FWD_OK, "%s", err.message);
        ck_assert_int_eq(fwd_gguf_n_splits(g), 3);
        ck_assert_uint_eq(fwd_gguf_n_tensors(g), 3);
        ck_assert_str_eq(fwd_gguf_path(g), path);
        ck_assert_ptr_nonnull(fwd_gguf_find_kv(g, "general.architecture"));
        uint64_t total = 0;
        for (int i = 0; i < 3; i++) {
            const struct fwd_gguf_tensor *t = fwd_gguf_find(g, i == 0 ? "a" : i == 1 ? "b" : "c");
            uint64_t n;
            const uint8_t *whole = fwd_gguf_split_data(g, i, &n);
            float v;
            ck_assert_ptr_nonnull(t);
            ck_assert_int_eq(t->split, i);
            memcpy(&v, t->data, 4);
            ck_assert(v == (float)i);
            ck_assert_ptr_eq(whole + t->file_offset, t->data);
            ck_assert_ptr_nonnull(strstr(fwd_gguf_split_path(g, i), part_names[i]));
            fwd_gguf_drop_pages(g, t);
            total += n;
        }
        ck_assert_uint_eq(fwd_gguf_file_bytes(g), total);
        fwd_gguf_close(g);
    }
    write_part(&f, part_names[1], 2, 3, 3, "b");
    open_refused(&f, part_names[0], FWD_ECORRUPT, "split.no is 2, expected 1");
    write_part(&f, part_names[1], 1, 4, 3, "b");
    open_refused(&f, part_names[0], FWD_ECORRUPT, "split.count is 4, expected 3");
    write_part(&f, part_names[1], 1, 3, 3, "a");
    open_refused(&f, part_names[2], FWD_ECORRUPT, "tensor \"a\" occurs twice");
    write_part(&f, part_names[1], 1, 3, 3, "b");
    write_part(&f, part_names[0], 0, 3, 4, "a");
    open_refused(&f, part_names[2], FWD_EMISSING, "3 tensors in 3 parts, expected 4");
    write_part(&f, "alone.gguf", 1, 3, 3, "b");
    open_refused(&f, "alone.gguf", FWD_ECORRUPT, "must be named");
    file_in(&f, part_names[1], path);
    ck_assert_int_eq(unlink(path), 0);
    open_refused(&f, part_names[0], FWD_ENOTFOUND, "part 2 of 3 is missing");
    remove_folder(&f, part_names);
}
END_TEST

START_TEST(test_files) {
    static const char *const names[] = {"good.gguf", "empty.gguf", "text.gguf", "m-00001-of-00002.gguf", NULL};
    struct folder f;
    struct gguf_bytes made = {0};
    struct fwd_error err = {0};
    struct fwd_gguf *g;
    char path[160];
    size_t n;
    make_folder(&f);
    fill_good(&made);
    uint8_t *data = finish_gguf(&made, 3, &n, NULL);
    file_in(&f, "good.gguf", path);
    ck_assert_int_eq(fwd_file_write(path, data, n, NULL), FWD_OK);
    ck_assert_msg(fwd_gguf_open(&g, path, &err) == FWD_OK, "%s", err.message);
    check_good(g);
    for (uint64_t i = 0; i < fwd_gguf_n_tensors(g); i++)
        fwd_gguf_drop_pages(g, fwd_gguf_tensor(g, i));
    check_good(g);
    fwd_gguf_close(g);
    /* a whole file with a split's name, and no keys about it */
    file_in(&f, names[3], path);
    ck_assert_int_eq(fwd_file_write(path, data, n, NULL), FWD_OK);
    open_refused(&f, names[3], FWD_EMISSING, "without the keys split.no and split.count");
    file_in(&f, "empty.gguf", path);
    ck_assert_int_eq(fwd_file_write(path, "", 0, NULL), FWD_OK);
    open_refused(&f, "empty.gguf", FWD_ETRUNCATED, "0 bytes");
    file_in(&f, "text.gguf", path);
    ck_assert_int_eq(fwd_file_write(path, "version https://", 16, NULL), FWD_OK);
    open_refused(&f, "text.gguf", FWD_ECORRUPT, "not a GGUF file");
    open_refused(&f, "absent.gguf", FWD_ENOTFOUND, "No such file");
    open_refused(&f, ".", FWD_EIO, "not a regular file");
    free(data);
    remove_folder(&f, names);
}
END_TEST

int main(void) {
    Suite *s = suite_create("gguf");
    TCase *t = tcase_create("gguf");
    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, test_good, 0, 4);
    tcase_add_loop_test(t, test_fault, 0, sizeof faults / sizeof *faults);
    tcase_add_test(t, test_header);
    tcase_add_test(t, test_cut_everywhere);
    tcase_add_test(t, test_flip_every_bit);
    tcase_add_test(t, test_huge_lengths);
    tcase_add_test(t, test_split);
    tcase_add_test(t, test_files);
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
