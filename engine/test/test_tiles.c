/* test_tiles.c: the packed layout of engine/cuda/tiles.h. Packing and unpacking gives the file's bytes back; and every
 * element, read one by one as the table of tiles.h says, is the value that engine/quant decodes from the file. */
#include "core/half.h"
#include "core/memory.h"
#include "cuda/tiles.h"
#include "format/gguf.h"
#include "quant/quant.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

/* The table again, by offsets of planes (-1: none) in a tile. */
struct row {
    uint32_t type;
    int nib, q8, hi2, hi1, sc, d, m; /* sc with d inside: d -1 */
    int bytes;
    int d_at, m_at; /* where the file's block has its halves */
};
static const struct row table[] = {
    {FWD_TYPE_Q4_K, 0, -1, -1, -1, 1024, -1, -1, 1152, 0, 2},
    {FWD_TYPE_Q5_K, 0, -1, -1, 1024, 1280, -1, -1, 1408, 0, 2},
    {FWD_TYPE_Q6_K, 0, -1, 1024, -1, 1536, 1664, -1, 1680, 208, -1},
    {FWD_TYPE_Q2_K, -1, -1, 0, -1, 512, 640, -1, 672, 80, 82},
    {FWD_TYPE_Q3_K, -1, -1, 0, 512, 768, 896, -1, 912, 108, -1},
    {FWD_TYPE_Q8_0, -1, 0, -1, -1, -1, 2048, -1, 2176, 0, -1},
    {FWD_TYPE_Q4_0, 0, -1, -1, -1, -1, 1024, -1, 1152, 0, -1},
    {FWD_TYPE_Q4_1, 0, -1, -1, -1, -1, 1024, 1152, 1280, 0, 2},
    {FWD_TYPE_Q5_0, 0, -1, -1, 1024, -1, 1280, -1, 1408, 0, -1},
    {FWD_TYPE_Q5_1, 0, -1, -1, 1024, -1, 1280, 1408, 1536, 0, 2},
};
enum { N_TYPES = sizeof table / sizeof *table };

static uint64_t rng_state = 1;

static uint32_t next_random(void) {
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng_state >> 33);
}

/* ---- one element of a tile ---- */

static int bit_at(const uint8_t *p, int bit) {
    return p[bit / 8] >> bit % 8 & 1;
}

static int bits_at(const uint8_t *p, int bit, int n) {
    int v = 0;
    for (int i = 0; i < n; i++)
        v |= bit_at(p, bit + i) << i;
    return v;
}

static int as_signed(uint8_t b) {
    return b < 128 ? b : b - 256;
}

static float half_at(const uint8_t *p) {
    return fwd_f16_to_f32((uint16_t)(p[0] | p[1] << 8));
}

/* The unsigned bits of element e: nibble or two low bits, and the bits above. */
static int bits_of(const struct row *t, const uint8_t *tile, int r, int e) {
    int p = e / 64, o = e % 64, i = o / 4, c = o % 4, n = 0;
    if (t->nib >= 0)
        n = bits_at(tile + t->nib + ((2 * p + o % 32 / 16) * 8 + r) * 16, 8 * (o % 16) + o / 32 * 4, 4);
    if (t->hi2 >= 0)
        n |= bits_at(tile + t->hi2 + (p * 8 + r) * 16 + 4 * (i % 4), 8 * c + 2 * (i / 4), 2) << (t->nib >= 0 ? 4 : 0);
    return n;
}

static int hi1_of(const struct row *t, const uint8_t *tile, int r, int e) {
    int p = e / 64, o = e % 64, i = o / 4, c = o % 4;
    return bit_at(tile + t->hi1 + (p * 8 + r) * 8 + 4 * (i % 2), 8 * c + i / 2);
}

/* d * sc * n - dmin * m, or d * n + m, each operation rounded, as the decoders do. */
static float k_value(float d, int sc, int n, float dmin, int m, bool has_min) {
    float scaled = d * (float)sc * (float)n;
    return has_min ? scaled - dmin * (float)m : scaled;
}

static float value_k(const struct row *t, const uint8_t *tile, int r, int e) {
    int p = e / 64, o = e % 64, n = bits_of(t, tile, r, e);
    const uint8_t *sc4 = tile + t->sc + (p * 8 + r) * 4 + o / 16;
    if (t->type == FWD_TYPE_Q4_K || t->type == FWD_TYPE_Q5_K) {
        const uint8_t *s = tile + t->sc + r * 16;
        if (t->hi1 >= 0)
            n |= hi1_of(t, tile, r, e) << 4;
        int sc = bits_at(s + 4, 24 * p + 6 * (o / 32), 6), m = bits_at(s + 4, 24 * p + 12 + 6 * (o / 32), 6);
        return k_value(half_at(s), sc, n, half_at(s + 2), m, true);
    }
    if (t->type == FWD_TYPE_Q2_K) {
        const uint8_t *d = tile + t->d + r * 4;
        return k_value(half_at(d), *sc4 & 15, n, half_at(d + 2), *sc4 >> 4, true);
    }
    n = t->type == FWD_TYPE_Q6_K ? n - 32 : n - (hi1_of(t, tile, r, e) ? 0 : 4);
    return k_value(half_at(tile + t->d + r * 2), as_signed(*sc4), n, 0, 0, false);
}

static float value_32(const struct row *t, const uint8_t *tile, int r, int e) {
    int p = e / 64, o = e % 64, half = (p * 8 + r) * 4 + 2 * (o / 32);
    float d = half_at(tile + t->d + half);
    if (t->q8 >= 0)
        return d * (float)as_signed(tile[t->q8 + ((4 * p + o / 16) * 8 + r) * 16 + o % 16]);
    int n = bits_of(t, tile, r, e);
    if (t->hi1 >= 0)
        n |= hi1_of(t, tile, r, e) << 4;
    if (t->m >= 0)
        return d * (float)n + half_at(tile + t->m + half);
    return d * (float)(n - (t->hi1 >= 0 ? 16 : 8));
}

static float value_of(const struct row *t, const uint8_t *tile, int r, int e) {
    return fwd_type_info(t->type)->block_values == 256 ? value_k(t, tile, r, e) : value_32(t, tile, r, e);
}

/* ---- a matrix ---- */

struct matrix {
    const struct row *t;
    int64_t n_rows, n_cols, n_sb, row_bytes;
    uint8_t *file, *tiles;
};

/* Any bits; the halves finite where values are compared. */
static void make_matrix(struct matrix *x, const struct row *t, int64_t n_rows, int64_t n_cols, bool finite) {
    const struct fwd_type_info *info = fwd_type_info(t->type);
    *x = (struct matrix){.t = t, .n_rows = n_rows, .n_cols = n_cols, .n_sb = (n_cols + 255) / 256};
    x->row_bytes = n_cols / info->block_values * info->block_bytes;
    x->file = fwd_alloc((size_t)n_rows, (size_t)x->row_bytes);
    x->tiles = fwd_alloc(1, fwd_tiles_bytes(t->type, n_rows, n_cols) + 64);
    ck_assert(x->file && x->tiles);
    for (int64_t i = 0; i < n_rows * x->row_bytes; i++)
        x->file[i] = (uint8_t)next_random();
    for (uint8_t *b = x->file; finite && b < x->file + n_rows * x->row_bytes; b += info->block_bytes) {
        b[t->d_at + 1] &= 0xbf;
        if (t->m_at >= 0)
            b[t->m_at + 1] &= 0xbf;
    }
    memset(x->tiles, 0x5a, fwd_tiles_bytes(t->type, n_rows, n_cols) + 64);
}

static void free_matrix(struct matrix *x) {
    fwd_free(x->file);
    fwd_free(x->tiles);
}

/* In pieces of `piece` strips, as threads do. */
static void pack(struct matrix *x, int64_t piece) {
    int64_t strips = (x->n_rows + 7) / 8;
    for (int64_t s = 0; s < strips; s += piece)
        fwd_tiles_pack(x->t->type, x->file, x->row_bytes, x->n_rows, x->n_cols, s,
                       s + piece < strips ? piece : strips - s,
                       x->tiles + (size_t)(s * x->n_sb) * fwd_tile_bytes(x->t->type));
    const uint8_t *end = x->tiles + fwd_tiles_bytes(x->t->type, x->n_rows, x->n_cols);
    for (int i = 0; i < 64; i++)
        ck_assert_uint_eq(end[i], 0x5a);
}

static const int64_t rows_tried[] = {1, 7, 8, 9, 21}, cols_tried[] = {256, 512, 1024, 32, 64, 96, 288, 736};

static bool fits(const struct row *t, int64_t n_cols) {
    return n_cols % fwd_type_info(t->type)->block_values == 0;
}

START_TEST(test_round_trip) {
    const struct row *t = &table[_i];
    ck_assert_uint_eq(fwd_tile_bytes(t->type), (size_t)t->bytes);
    for (size_t a = 0; a < sizeof rows_tried / sizeof *rows_tried; a++)
        for (size_t b = 0; b < sizeof cols_tried / sizeof *cols_tried; b++) {
            if (!fits(t, cols_tried[b]))
                continue;
            struct matrix x;
            make_matrix(&x, t, rows_tried[a], cols_tried[b], false);
            pack(&x, 1 + (int64_t)b % 3);
            uint8_t *row = fwd_alloc((size_t)x.row_bytes + 8, 1);
            ck_assert_ptr_nonnull(row);
            for (int64_t n = 0; n < x.n_rows; n++) {
                memset(row, 0xa5, (size_t)x.row_bytes + 8);
                fwd_tiles_unpack_row(t->type, x.tiles, n, x.n_cols, row);
                ck_assert_mem_eq(row, x.file + n * x.row_bytes, (size_t)x.row_bytes);
                for (int i = 0; i < 8; i++)
                    ck_assert_uint_eq(row[x.row_bytes + i], 0xa5);
            }
            fwd_free(row);
            free_matrix(&x);
        }
}
END_TEST

/* What is beyond the matrix is made of zero bytes: a row's, or the columns'. */
static void check_element(const struct matrix *x, int64_t n, int64_t k, const float *decoded) {
    const uint8_t *tile = x->tiles + (size_t)(n / 8 * x->n_sb + k / 256) * (size_t)x->t->bytes;
    float got = value_of(x->t, tile, (int)(n % 8), (int)(k % 256));
    if (n < x->n_rows && k < x->n_cols)
        ck_assert_msg(fwd_f32_bits(got) == fwd_f32_bits(decoded[k]), "%s row %lld column %lld: %g, decoded %g",
                      fwd_type_name(x->t->type), (long long)n, (long long)k, (double)got, (double)decoded[k]);
    else
        ck_assert_msg(got == 0, "%s row %lld column %lld: %g beyond the matrix", fwd_type_name(x->t->type),
                      (long long)n, (long long)k, (double)got);
}

START_TEST(test_elements) {
    const struct row *t = &table[_i];
    static const int64_t shapes[][2] = {{11, 768}, {16, 256}, {3, 96}, {9, 288}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        if (!fits(t, shapes[s][1]))
            continue;
        struct matrix x;
        make_matrix(&x, t, shapes[s][0], shapes[s][1], true);
        pack(&x, 100);
        float *decoded = fwd_alloc((size_t)x.n_cols, sizeof *decoded);
        ck_assert_ptr_nonnull(decoded);
        for (int64_t n = 0; n < (x.n_rows + 7) / 8 * 8; n++) {
            if (n < x.n_rows)
                fwd_decode_for(t->type)(x.file + n * x.row_bytes, decoded, x.n_cols);
            for (int64_t k = 0; k < x.n_sb * 256; k++)
                check_element(&x, n, k, decoded);
        }
        fwd_free(decoded);
        free_matrix(&x);
    }
}
END_TEST

START_TEST(test_other_types) {
    ck_assert_uint_eq(fwd_tile_bytes(FWD_TYPE_F32), 0);
    ck_assert_uint_eq(fwd_tile_bytes(UINT32_MAX), 0);
    ck_assert_uint_eq(fwd_tiles_bytes(FWD_TYPE_F16, 8, 256), 0);
    ck_assert_uint_eq(fwd_tiles_bytes(FWD_TYPE_Q4_K, 9, 512), 4 * 1152);
    ck_assert_uint_eq(fwd_tiles_bytes(FWD_TYPE_Q8_0, 1, 288), 2 * 2176);
}
END_TEST

int main(void) {
    Suite *s = suite_create("tiles");
    TCase *t = tcase_create("tiles");
    tcase_set_timeout(t, 60);
    tcase_add_loop_test(t, test_round_trip, 0, N_TYPES);
    tcase_add_loop_test(t, test_elements, 0, N_TYPES);
    tcase_add_test(t, test_other_types);
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
