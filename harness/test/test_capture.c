/* The capture container: what the writer makes is read back by us, by libzstd alone and (ci/check_capture.py) by the
 * safetensors package; what is damaged is refused. */
#include "tap/capture.h"
#include "tap/safetensors.h"
#include "tap/seekable.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

enum { N_EMBD = 256, N_POS = 3, N_ROWS = 5, HEAD_DIM = 4, N_KV = 2 };

static char dir[32];
static char file[64];

static void setup(void) {
    (void)snprintf(dir, sizeof dir, "/tmp/parity-capture-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    (void)snprintf(file, sizeof file, "%s/c.parity", dir);
}

/* Unchecked fixture in fork mode: the parent cleans; nothing but the capture may be left. */
static void teardown(void) {
    (void)unlink(file);
    (void)rmdir(dir);
}

static float q_rows[N_POS][N_EMBD + 7]; /* padded: nb[1] is not the row */
static float k_rows[N_ROWS][N_KV][HEAD_DIM];
static unsigned char q8_rows[N_POS][292];
static double norm_row[N_EMBD];

static void fill(void *p, size_t n, uint32_t seed) {
    unsigned char *b = p;
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        b[i] = (unsigned char)(seed >> 24);
    }
}

static struct fwd_view view_of(enum fwd_op op, int layer, int pos0, int n_pos, enum fwd_dtype dtype, int64_t ne0,
                               void *data) {
    struct fwd_view v = {.size = sizeof v, .op = op, .layer = layer, .pos0 = pos0, .n_pos = n_pos, .dtype = dtype};
    v.data = data;
    v.ne[0] = ne0;
    v.ne[1] = n_pos;
    v.ne[2] = v.ne[3] = 1;
    v.nb[0] = (int64_t)fwd_dtype_row_bytes(dtype, 1);
    v.nb[1] = (int64_t)fwd_dtype_row_bytes(dtype, ne0);
    v.nb[2] = v.nb[3] = v.nb[1] * n_pos;
    return v;
}

static void put_taps(struct par_capture_writer *w) {
    fill(q_rows, sizeof q_rows, 1);
    fill(k_rows, sizeof k_rows, 2);
    fill(q8_rows, sizeof q8_rows, 3);
    fill(norm_row, sizeof norm_row, 4);
    struct fwd_view q = view_of(FWD_OP_QCUR, 11, 2, N_POS, FWD_F32, N_EMBD, q_rows);
    q.nb[1] = sizeof q_rows[0];
    ck_assert_int_eq(par_capture_tap(w, &q), 0);
    struct fwd_view q8 = view_of(FWD_OP_ATTN_NORM_Q8, 11, 2, N_POS, FWD_Q8_K, N_EMBD, q8_rows);
    ck_assert_int_eq(par_capture_tap(w, &q8), 0);
    struct fwd_view k = view_of(FWD_OP_K_CACHE, 11, 2, N_POS, FWD_F32, HEAD_DIM, k_rows);
    k.ne[1] = N_KV;
    k.ne[2] = N_ROWS;
    k.nb[2] = k.nb[1] * N_KV;
    ck_assert_int_eq(par_capture_tap(w, &k), 0);
    struct fwd_view norm = view_of(FWD_OP_RESULT_NORM, -1, 4, 1, FWD_F64, N_EMBD, norm_row);
    ck_assert_int_eq(par_capture_tap(w, &norm), 0);
}

static void write_capture(const struct par_capture_options *options) {
    static const int32_t ids[] = {9707, 11, 0, 151643, 5};
    struct par_capture_writer *w;
    struct fwd_error err;
    ck_assert_msg(par_capture_create(&w, file, options, &err) == FWD_OK, "%s", err.message);
    put_taps(w);
    ck_assert_int_eq(par_capture_put(w, PAR_FACT_MODEL, "old", &err), FWD_OK);
    ck_assert_int_eq(par_capture_put(w, PAR_FACT_MODEL, "cc32", &err), FWD_OK);
    ck_assert_int_eq(par_capture_put(w, PAR_FACT_HOST, "\"a\\b\"\n\x01\xff caf\xc3\xa9", &err), FWD_OK);
    ck_assert_int_eq(par_capture_put_ids(w, ids, 5, &err), FWD_OK);
    ck_assert_msg(par_capture_commit(w, &err) == FWD_OK, "%s", err.message);
}

static unsigned char *read_file(size_t *n) {
    struct stat st;
    FILE *f = fopen(file, "rb");
    ck_assert_ptr_nonnull(f);
    ck_assert_int_eq(fstat(fileno(f), &st), 0);
    unsigned char *bytes = malloc((size_t)st.st_size);
    ck_assert_uint_eq(fread(bytes, 1, (size_t)st.st_size, f), (size_t)st.st_size);
    (void)fclose(f);
    *n = (size_t)st.st_size;
    return bytes;
}

static void read_named(const struct par_capture *c, const char *name, const char *dtype, void *out, size_t n) {
    struct fwd_error err;
    const struct par_capture_tensor *t = par_capture_find(c, name);
    ck_assert_msg(t != NULL, "no tensor %s", name);
    ck_assert_str_eq(t->dtype, dtype);
    ck_assert_uint_eq(t->n_bytes, n);
    ck_assert_msg(par_capture_read(c, t, out, &err) == FWD_OK, "%s", err.message);
}

static void check_contents(const struct par_capture *c) {
    float q[N_POS][N_EMBD], k[N_ROWS][N_KV][HEAD_DIM];
    unsigned char q8[N_POS][292];
    double norm[N_EMBD];
    size_t n;
    const struct par_capture_tensor *t = par_capture_tensors(c, &n);
    ck_assert_uint_eq(n, 4);
    ck_assert_str_eq(t[0].name, "Qcur-11@2:5");
    ck_assert(t[0].is_tap && t[0].op == FWD_OP_QCUR && t[0].layer == 11 && t[0].pos0 == 2 && t[0].pos1 == 5);
    ck_assert_str_eq(t[3].name, "result_norm@4:5");
    ck_assert(t[3].is_tap && t[3].op == FWD_OP_RESULT_NORM && t[3].layer == -1);
    read_named(c, "Qcur-11@2:5", "F32", q, sizeof q);
    for (int i = 0; i < N_POS; i++)
        ck_assert_mem_eq(q[i], q_rows[i], sizeof q[i]);
    read_named(c, "attn_norm_q8-11@2:5", "U8", q8, sizeof q8);
    ck_assert_mem_eq(q8, q8_rows, sizeof q8);
    read_named(c, "K_cache-11@2:5", "F32", k, sizeof k);
    ck_assert_mem_eq(k, k_rows, sizeof k);
    ck_assert_int_eq(par_capture_find(c, "K_cache-11@2:5")->n_dims, 3);
    read_named(c, "result_norm@4:5", "F64", norm, sizeof norm);
    ck_assert_mem_eq(norm, norm_row, sizeof norm);
    ck_assert_ptr_null(par_capture_find(c, "Qcur-11@2:4"));
    ck_assert_str_eq(par_capture_fact(c, PAR_FACT_MODEL), "cc32");
    ck_assert_str_eq(par_capture_fact(c, PAR_FACT_IDS), "9707,11,0,151643,5");
    ck_assert_str_eq(par_capture_fact(c, PAR_FACT_HOST), "\"a\\b\"\n\x01\\xff caf\xc3\xa9");
    ck_assert_str_eq(par_capture_fact(c, "tap:Qcur"), "op=Qcur dtype=F32 ne0=256");
    ck_assert_str_eq(par_capture_fact(c, "tap:K_cache"), "op=K_cache dtype=F32 ne0=4 ne1=2");
    ck_assert_ptr_null(par_capture_fact(c, PAR_FACT_AA));
}

START_TEST(round_trip) {
    struct par_capture *c;
    struct fwd_error err;
    write_capture(NULL);
    ck_assert_msg(par_capture_open(&c, file, &err) == FWD_OK, "%s", err.message);
    check_contents(c);
    par_capture_close(c);
    par_capture_close(NULL);
}
END_TEST

/* What tensor cores read: BF16 as floats, E4M3 as rows of bytes with their layout said. */
START_TEST(converted_rows) {
    static unsigned char bf16[N_POS][2 * N_EMBD], e4m3[N_POS][N_EMBD + 4], got[sizeof bf16];
    struct par_capture_writer *w;
    struct par_capture *c;
    struct fwd_error err;
    fill(bf16, sizeof bf16, 5);
    fill(e4m3, sizeof e4m3, 6);
    ck_assert_msg(par_capture_create(&w, file, NULL, &err) == FWD_OK, "%s", err.message);
    struct fwd_view a = view_of(FWD_OP_ATTN_NORM_Q8, 3, 2, N_POS, FWD_BF16, N_EMBD, bf16);
    struct fwd_view b = view_of(FWD_OP_FFN_NORM_Q8, 3, 2, N_POS, FWD_E4M3, N_EMBD, e4m3);
    ck_assert_int_eq(par_capture_tap(w, &a), 0);
    ck_assert_int_eq(par_capture_tap(w, &b), 0);
    ck_assert_msg(par_capture_commit(w, &err) == FWD_OK, "%s", err.message);
    ck_assert_msg(par_capture_open(&c, file, &err) == FWD_OK, "%s", err.message);
    read_named(c, "attn_norm_q8-3@2:5", "BF16", got, sizeof bf16);
    ck_assert_mem_eq(got, bf16, sizeof bf16);
    read_named(c, "ffn_norm_q8-3@2:5", "U8", got, sizeof e4m3);
    ck_assert_mem_eq(got, e4m3, sizeof e4m3);
    ck_assert_int_eq(par_capture_find(c, "ffn_norm_q8-3@2:5")->shape[1], N_EMBD + 4);
    ck_assert_str_eq(par_capture_fact(c, "tap:ffn_norm_q8"),
                     "op=ffn_norm_q8 dtype=E4M3 ne0=256 row=f32:d,f8_e4m3:code[ne0]");
    par_capture_close(c);
}
END_TEST

/* What `zstd -d` does: libzstd's streaming decompression over the whole file, skippable frame included. */
static unsigned char *decompress_all(size_t *n_plain) {
    size_t n, room = 1 << 20;
    unsigned char *bytes = read_file(&n), *plain = malloc(room);
    ZSTD_DCtx *zstd = ZSTD_createDCtx();
    ZSTD_inBuffer in = {bytes, n, 0};
    ZSTD_outBuffer out = {plain, room, 0};
    while (in.pos < in.size) {
        size_t rc = ZSTD_decompressStream(zstd, &out, &in);
        ck_assert_msg(!ZSTD_isError(rc), "%s", ZSTD_getErrorName(rc));
        ck_assert_uint_lt(out.pos, room);
    }
    (void)ZSTD_freeDCtx(zstd);
    free(bytes);
    *n_plain = out.pos;
    return plain;
}

START_TEST(is_safetensors) {
    size_t n;
    struct par_st_header h;
    struct fwd_error err;
    write_capture(NULL);
    unsigned char *plain = decompress_all(&n);
    uint64_t length = 0;
    for (int i = 0; i < 8; i++)
        length |= (uint64_t)plain[i] << 8 * i;
    ck_assert_uint_eq(length % 8, 0);
    ck_assert_uint_lt(length + 8, n);
    const char *json = (const char *)plain + 8;
    ck_assert_int_eq(json[0], '{');
    ck_assert_msg(par_st_parse(&h, json, (size_t)length, n - 8 - length, "x", &err) == FWD_OK, "%s", err.message);
    ck_assert_uint_eq(h.n_tensors, 4);
    ck_assert_mem_eq(plain + 8 + length + h.tensors[3].begin, norm_row, sizeof norm_row);
    par_st_fini(&h);
    /* the reader takes the decompressed file too */
    struct par_capture *c;
    ck_assert_msg(par_capture_open_bytes(&c, plain, n, "plain", &err) == FWD_OK, "%s", err.message);
    check_contents(c);
    par_capture_close(c);
    free(plain);
}
END_TEST

/* The table as the seekable format's text describes it, read by other code than ours. */
START_TEST(seek_table) {
    size_t n;
    write_capture(NULL);
    unsigned char *b = read_file(&n);
    uint32_t word[3], n_frames;
    ck_assert_mem_eq(b + n - 4, "\xb1\xea\x92\x8f", 4);
    ck_assert_int_eq(b[n - 5], 0x80);
    memcpy(&n_frames, b + n - 9, 4);
    ck_assert_uint_eq(n_frames, 5);
    const unsigned char *table = b + n - 9 - 5 * 12 - 8;
    ck_assert_mem_eq(table, "\x5e\x2a\x4d\x18", 4);
    size_t at = 0;
    for (int i = 0; i < 5; i++) {
        memcpy(word, table + 8 + 12 * i, 12);
        ck_assert_uint_eq(ZSTD_findFrameCompressedSize(b + at, n - at), word[0]);
        ck_assert_uint_eq(ZSTD_getFrameContentSize(b + at, n - at), word[1]);
        ck_assert_mem_eq(b + at + word[0] - 4, &word[2], 4);
        at += word[0];
    }
    ck_assert_ptr_eq(b + at, table);
    free(b);
}
END_TEST

/* Reads everything; *hash covers names and bytes. */
static bool reads_clean(const unsigned char *b, size_t n, uint64_t *hash) {
    struct fwd_hash h;
    fwd_hash_begin(&h);
    struct par_capture *c;
    struct fwd_error err;
    if (par_capture_open_bytes(&c, b, n, "damaged", &err) != FWD_OK) {
        ck_assert_msg(strstr(err.message, "damaged") != NULL, "%s", err.message);
        return false;
    }
    bool clean = true;
    size_t n_tensors;
    const struct par_capture_tensor *t = par_capture_tensors(c, &n_tensors);
    for (size_t i = 0; i < n_tensors && clean; i++) {
        void *out = malloc(t[i].n_bytes + 1);
        clean = par_capture_read(c, &t[i], out, &err) == FWD_OK;
        fwd_hash_add(&h, t[i].name, strlen(t[i].name) + 1);
        fwd_hash_add(&h, out, clean ? t[i].n_bytes : 0);
        free(out);
    }
    par_capture_close(c);
    *hash = fwd_hash_end(&h);
    return clean;
}

/* Any cut is seen, and so is any flipped bit: at the open, when the tensor it lies in is read, or (bits that zstd
 * leaves unused, another code of the same bytes) it changes nothing that is read. */
START_TEST(damage) {
    size_t n, n_seen = 0;
    uint64_t whole, hash;
    write_capture(NULL);
    unsigned char *b = read_file(&n);
    ck_assert(reads_clean(b, n, &whole));
    for (size_t i = 0; i < n; i++)
        for (unsigned bit = 1; bit < 256; bit <<= 1) {
            b[i] ^= (unsigned char)bit;
            bool clean = reads_clean(b, n, &hash);
            ck_assert_msg(!clean || hash == whole, "bit %x of byte %zu", bit, i);
            n_seen += !clean;
            b[i] ^= (unsigned char)bit;
        }
    ck_assert_uint_gt(n_seen, n * 8 - 40);
    for (size_t cut = 0; cut < n; cut += cut < 64 ? 1 : 7)
        ck_assert_msg(!reads_clean(b, cut, &hash), "cut at %zu", cut);
    free(b);
}
END_TEST

/* ---- headers that lie ------------------------------------------------------------------------------------------ */

static const struct header_row {
    const char *json;
    uint64_t data_bytes;
    const char *says; /* part of the message; NULL: valid */
} headers[] = {
    {"{}", 0, NULL},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, NULL},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}", 4, NULL},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[0,9],\"data_offsets\":[0,0]}}", 0, NULL},
    {"[]", 0, "object"},
    {"{\"a\":1}", 0, "object"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 9, "end at byte 8 of 9"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}", 8, "need 12"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}", 12, "begins at byte 4"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", 8, "bytes 8 to 0"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,16]}}", 8, "bytes 0 to 16"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8,9]}}", 8, "two integers"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0]}}", 8, "bytes 0 to -1"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", 8, "shape"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2.5],\"data_offsets\":[0,8]}}", 8, "shape"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,4611686018427387904],\"data_offsets\":[0,8]}}", 8,
     "shape"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[9007199254740992,9007199254740992],\"data_offsets\":[0,8]}}", 8, "shape"},
    {"{\"a\":{\"dtype\":\"Q4_K\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "Q4_K"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, "data_offsets"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8],\"x\":1}}", 8, "x"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,8]},"
     "\"a\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[8,16]}}",
     16, "twice"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,8]},"
     "\"b\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[4,12]}}",
     12, "begins at byte 4, expected 8"},
    {"{\"__metadata__\":{\"k\":1}}", 0, "no string"},
    {"{\"__metadata__\":[]}", 0, "no object"},
    {"{} x", 0, "x"},
};

START_TEST(header) {
    const struct header_row *row = &headers[_i];
    struct par_st_header h;
    struct fwd_error err = {0};
    enum fwd_status rc = par_st_parse(&h, row->json, strlen(row->json), row->data_bytes, "x", &err);
    ck_assert_msg((rc == FWD_OK) == (row->says == NULL), "%s: %s", row->json, err.message);
    if (rc == FWD_OK)
        par_st_fini(&h);
    else
        ck_assert_msg(strstr(err.message, row->says) != NULL, "%s: %s", row->json, err.message);
}
END_TEST

/* ---- writing --------------------------------------------------------------------------------------------------- */

static size_t count_kept(const struct par_capture_options *o) {
    struct par_capture *c;
    struct fwd_error err;
    size_t n;
    write_capture(o);
    ck_assert_msg(par_capture_open(&c, file, &err) == FWD_OK, "%s", err.message);
    (void)par_capture_tensors(c, &n);
    par_capture_close(c);
    return n;
}

START_TEST(filters) {
    static const char *const cur[] = {"^Qcur-", "^result"}, *const all[] = {"11|norm"}, *const bad[] = {"a("};
    struct par_capture_writer *w;
    struct fwd_error err;
    ck_assert_uint_eq(count_kept(&(struct par_capture_options){cur, 2, 0, -1}), 2);
    ck_assert_uint_eq(count_kept(&(struct par_capture_options){cur, 1, 0, -1}), 1);
    ck_assert_uint_eq(count_kept(&(struct par_capture_options){all, 1, 0, -1}), 4);
    ck_assert_uint_eq(count_kept(&(struct par_capture_options){NULL, 0, 0, 10}), 1); /* result_norm has no layer */
    ck_assert_uint_eq(count_kept(&(struct par_capture_options){NULL, 0, 11, 11}), 4);
    ck_assert_uint_eq(count_kept(&(struct par_capture_options){NULL, 0, 12, 20}), 1);
    ck_assert_int_eq(unlink(file), 0);
    ck_assert_int_eq(par_capture_create(&w, file, &(struct par_capture_options){bad, 1, 0, -1}, &err), FWD_EINPUT);
    ck_assert_msg(strstr(err.message, "a(") != NULL, "%s", err.message);
    ck_assert_int_ne(access(file, F_OK), 0);
}
END_TEST

START_TEST(twice_is_refused) {
    struct par_capture_writer *w;
    struct fwd_error err;
    ck_assert_int_eq(par_capture_create(&w, file, NULL, &err), FWD_OK);
    put_taps(w);
    put_taps(w);
    ck_assert_int_eq(par_capture_commit(w, &err), FWD_ESTATE);
    ck_assert_msg(strstr(err.message, "came twice") != NULL, "%s", err.message);
    ck_assert_int_ne(access(file, F_OK), 0);
}
END_TEST

START_TEST(tap_failure_is_kept) {
    struct par_capture_writer *w;
    struct fwd_error err;
    ck_assert_int_eq(par_capture_create(&w, file, NULL, &err), FWD_OK);
    struct fwd_view v = view_of(FWD_OP_QCUR, 0, 0, 1, FWD_F32, N_EMBD, q_rows);
    v.device = 1;
    ck_assert_int_ne(par_capture_tap(w, &v), 0);
    v.device = 0;
    ck_assert_int_ne(par_capture_tap(w, &v), 0); /* once failed, it stays so */
    ck_assert_int_eq(par_capture_failure(w, &err), FWD_EUNSUPPORTED);
    ck_assert_int_eq(par_capture_commit(w, &err), FWD_EUNSUPPORTED);
    ck_assert_int_ne(access(file, F_OK), 0);
}
END_TEST

START_TEST(unwritable) {
    struct par_capture_writer *w;
    struct fwd_error err;
    ck_assert_int_eq(par_capture_create(&w, "/nonexistent/x/c.parity", NULL, &err), FWD_EIO);
    ck_assert_msg(strstr(err.message, "/nonexistent/x/c.parity") != NULL, "%s", err.message);
    ck_assert_int_eq(par_capture_create(&w, file, NULL, &err), FWD_OK);
    put_taps(w);
    par_capture_abort(w);
    ck_assert_int_eq(rmdir(dir), 0); /* aborted: not a file left */
    ck_assert_int_eq(mkdir(dir, 0777), 0);
}
END_TEST

START_TEST(bad_files) {
    struct par_capture *c;
    struct fwd_error err;
    ck_assert_int_eq(par_capture_open(&c, "/nonexistent.parity", &err), FWD_ENOTFOUND);
    ck_assert_int_eq(par_capture_open(&c, dir, &err), FWD_ECORRUPT);
    static const unsigned char huge[] = "\xff\xff\xff\xff\xff\xff\xff\x7f{}";
    ck_assert_int_eq(par_capture_open_bytes(&c, huge, 10, "huge", &err), FWD_ECORRUPT);
    /* a table that claims 4 billion frames, or one frame of a gigabyte */
    static const unsigned char many[] = "\x28\xb5\x2f\xfd....\xff\xff\xff\xff\x80\xb1\xea\x92\x8f";
    ck_assert_int_eq(par_capture_open_bytes(&c, many, sizeof many - 1, "many", &err), FWD_ECORRUPT);
    static const unsigned char big[] = "\x28\xb5\x2f\xfd\x5e\x2a\x4d\x18\x15\0\0\0\x04\0\0\0\0\0\0\x40\0\0\0\0"
                                       "\x01\0\0\0\x80\xb1\xea\x92\x8f";
    ck_assert_int_eq(par_capture_open_bytes(&c, big, sizeof big - 1, "big", &err), FWD_ECORRUPT);
    ck_assert_msg(strstr(err.message, "1073741824 bytes from 4") != NULL, "%s", err.message);
}
END_TEST

static const struct name_row {
    const char *name;
    bool is_tap;
} names[] = {{"Qcur-3@0:78", true},
             {"result_norm@77:78", true},
             {"attn_norm_q8-0@1:2", true},
             {"Qcur@0:78", false},
             {"result_norm-1@0:1", false},
             {"Qcur-3", false},
             {"Qcur-3@5:5", false},
             {"Qcur-3@6:5", false},
             {"Qcur-x@0:1", false},
             {"Qcur-03@0:1", false},
             {"Qcur-3@0:1 ", false},
             {"Qcur-3@-1:1", false},
             {"Qcur-3@0:99999999999", false},
             {"other-3@0:1", false},
             {"@0:1", false}};

START_TEST(tensor_names) {
    char text[256];
    struct par_capture *c;
    struct fwd_error err;
    size_t n;
    (void)snprintf(text + 8, sizeof text - 8, "{\"%s\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}}!",
                   names[_i].name);
    uint64_t length = strlen(text + 8) - 1;
    memcpy(text, &length, 8);
    enum fwd_status rc = par_capture_open_bytes(&c, (unsigned char *)text, (size_t)length + 9, "x", &err);
    ck_assert_msg(rc == FWD_OK, "%s", err.message);
    const struct par_capture_tensor *t = par_capture_tensors(c, &n);
    ck_assert_uint_eq(n, 1);
    ck_assert_msg(t->is_tap == names[_i].is_tap, "%s", names[_i].name);
    if (t->is_tap) {
        char again[96];
        (void)par_capture_tensor_name(t->op, t->layer, t->pos0, t->pos1, again, sizeof again);
        ck_assert_str_eq(again, names[_i].name);
    }
    par_capture_close(c);
}
END_TEST

START_TEST(fp_environment) {
    char buf[64];
    ck_assert_str_eq(par_fp_environment(buf, sizeof buf), "round=nearest ftz=0 daz=0");
}
END_TEST

int main(void) {
    Suite *s = suite_create("capture");
    TCase *t = tcase_create("container");
    tcase_set_timeout(t, 60);
    tcase_add_unchecked_fixture(t, setup, teardown);
    tcase_add_test(t, round_trip);
    tcase_add_test(t, converted_rows);
    tcase_add_test(t, is_safetensors);
    tcase_add_test(t, seek_table);
    tcase_add_test(t, damage);
    tcase_add_loop_test(t, header, 0, (int)(sizeof headers / sizeof *headers));
    tcase_add_test(t, filters);
    tcase_add_test(t, twice_is_refused);
    tcase_add_test(t, tap_failure_is_kept);
    tcase_add_test(t, bad_files);
    tcase_add_loop_test(t, tensor_names, 0, (int)(sizeof names / sizeof *names));
    tcase_add_test(t, fp_environment);
    suite_add_tcase(s, t);
    TCase *fresh = tcase_create("empty folder");
    tcase_set_timeout(fresh, 60);
    tcase_add_checked_fixture(fresh, setup, teardown);
    tcase_add_test(fresh, unwritable);
    suite_add_tcase(s, fresh);
    SRunner *runner = srunner_create(s);
    srunner_set_fork_status(runner, CK_FORK);
    srunner_run_all(runner, CK_ENV);
    int n_run = srunner_ntests_run(runner), n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_run == 0 ? 3 : n_failed != 0;
}
