/* Decoders on the device against engine/quant: bit for bit to F32, and what BF16 and E4M3 make of those values. */
#include "core/half.h"
#include "cuda/kernels.h"
#include "format/gguf.h"
#include "quant/quant.h"
#include "test/cuda_test.h"
#include "test/float_data.h"

static const uint32_t types[] = {FWD_TYPE_F32,  FWD_TYPE_F16,  FWD_TYPE_BF16, FWD_TYPE_Q4_0, FWD_TYPE_Q4_1,
                                 FWD_TYPE_Q5_0, FWD_TYPE_Q5_1, FWD_TYPE_Q8_0, FWD_TYPE_Q2_K, FWD_TYPE_Q3_K,
                                 FWD_TYPE_Q4_K, FWD_TYPE_Q5_K, FWD_TYPE_Q6_K};
enum { N_TYPES = sizeof types / sizeof *types, ROOM = 64 << 20 };

/* Random blocks in file layout and what engine/quant makes of them. */
struct table {
    uint32_t type;
    int64_t n_rows, n_cols, row_bytes;
    size_t n_bytes;
    uint8_t *data;
    float *value; /* [n_rows][n_cols] */
};

/* mask: and-ed onto every byte; 0xff: any block, with NaN and infinite scales among them; 0xbb: exponents below 15 in
 * every F16, so that all is finite. */
static struct table new_table(uint32_t type, int64_t n_rows, int64_t n_blocks, uint8_t mask) {
    const struct fwd_type_info *info = fwd_type_info(type);
    struct table t = {.type = type, .n_rows = n_rows, .n_cols = n_blocks * info->block_values};
    t.row_bytes = n_blocks * info->block_bytes;
    t.n_bytes = (size_t)(n_rows * t.row_bytes);
    t.data = fwd_alloc(t.n_bytes, 1);
    t.value = new_floats(n_rows * t.n_cols);
    ck_assert_ptr_nonnull(t.data);
    uint64_t state = 77 + type;
    for (size_t i = 0; i < t.n_bytes; i++)
        t.data[i] = (uint8_t)(next_random(&state) >> 8) & mask;
    for (int64_t r = 0; r < n_rows; r++)
        fwd_decode_for(type)(t.data + r * t.row_bytes, t.value + r * t.n_cols, t.n_cols);
    return t;
}

static void free_table(struct table *t) {
    fwd_free(t->data);
    fwd_free(t->value);
}

/* Blocks a row that make about n columns. */
static int64_t blocks_for(uint32_t type, int64_t n) {
    int64_t values = fwd_type_info(type)->block_values;
    return (n + values - 1) / values;
}

START_TEST(test_dequantise_f32) {
    const int64_t sizes[][2] = {{1, 1}, {3, 257}, {2, 18944}, {700, 96}, {33, 3584}};
    for (int s = 0; s < 5; s++)
        for (int any = 0; any < 2; any++) {
            struct table t = new_table(types[_i], sizes[s][0], blocks_for(types[_i], sizes[s][1]), any ? 0xff : 0xbb);
            const int64_t n = t.n_rows * t.n_cols;
            float *got = new_floats(n);
            cuda_test_start(ROOM);
            const void *src = cuda_test_put(t.data, t.n_bytes);
            float *dst = cuda_test_room((size_t)n * sizeof *dst);
            cuda_dequantise(NULL, t.type, src, t.row_bytes, t.n_rows, t.n_cols, CUDA_FORM_F32, dst, NULL);
            cuda_test_get(got, dst, (size_t)n * sizeof *got);
            for (int64_t i = 0; i < n; i++)
                ck_assert_msg(same_floats(got + i, t.value + i, 1), "%s, value %lld: %a, expected %a",
                              fwd_type_name(t.type), (long long)i, (double)got[i], (double)t.value[i]);
            cuda_test_end();
            fwd_free(got);
            free_table(&t);
        }
}
END_TEST

START_TEST(test_embed) {
    enum { ROWS = 50, N_IDS = 78 };
    struct table t = new_table(types[_i], ROWS, blocks_for(types[_i], 3584), 0xff);
    int32_t ids[N_IDS];
    for (int i = 0; i < N_IDS; i++)
        ids[i] = i == 3 ? ROWS - 1 : i * 7 % ROWS;
    const int batches[] = {1, 2, N_IDS};
    float *got = new_floats(N_IDS * t.n_cols);
    for (int b = 0; b < 3; b++) {
        cuda_test_start(ROOM);
        const void *table = cuda_test_put(t.data, t.n_bytes);
        const int32_t *device_ids = cuda_test_put(ids, sizeof ids);
        const size_t n_bytes = (size_t)(batches[b] * t.n_cols) * sizeof(float);
        float *y = cuda_test_room(n_bytes);
        cuda_embed(NULL, t.type, table, t.n_cols, device_ids, batches[b], y);
        cuda_test_get(got, y, n_bytes);
        for (int i = 0; i < batches[b]; i++)
            ck_assert_msg(same_floats(got + i * t.n_cols, t.value + ids[i] * t.n_cols, t.n_cols), "%s: row %d, id %d",
                          fwd_type_name(t.type), i, ids[i]);
        cuda_test_end();
    }
    fwd_free(got);
    free_table(&t);
}
END_TEST

/* Every upper half times the lower halves that decide a rounding. */
START_TEST(test_bf16) {
    const uint16_t low[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};
    enum { N_LOW = sizeof low / sizeof *low, N = 65536 * N_LOW };
    float *x = new_floats(N);
    uint16_t *got = fwd_alloc(N, sizeof *got);
    ck_assert_ptr_nonnull(got);
    for (uint32_t i = 0; i < N; i++)
        x[i] = fwd_bits_f32(i / N_LOW << 16 | low[i % N_LOW]);
    cuda_test_start(ROOM);
    const void *src = cuda_test_put(x, N * sizeof *x);
    uint16_t *dst = cuda_test_room(N * sizeof *dst);
    cuda_dequantise(NULL, FWD_TYPE_F32, src, N_LOW * 4, 65536, N_LOW, CUDA_FORM_BF16, dst, NULL);
    cuda_test_get(got, dst, N * sizeof *got);
    for (uint32_t i = 0; i < N; i++) {
        const uint16_t high = (uint16_t)(i / N_LOW), half = low[i % N_LOW];
        if (isnan(x[i])) {
            ck_assert_msg(isnan(fwd_bf16_to_f32(got[i])), "a NaN became %04x", got[i]);
            continue;
        }
        /* up in magnitude past the middle, and at the middle where that is even */
        const bool up = half > 0x8000 || (half == 0x8000 && (high & 1));
        ck_assert_msg(got[i] == (uint16_t)(high + up), "%04x%04x became %04x", high, half, got[i]);
    }
    cuda_test_end();
    fwd_free(x);
    fwd_free(got);
}
END_TEST

static double e4m3_value(int code) {
    const int e = code >> 3 & 15, m = code & 7;
    const double v = e ? ldexp(1.0 + m / 8.0, e - 7) : ldexp(m, -9);
    return code & 0x80 ? -v : v;
}

/* Nearest of all codes by trying them, of two the even one. */
static int e4m3_nearest(float x) {
    int best = signbit(x) ? 0x80 : 0;
    for (int magnitude = 1; magnitude < 0x7f; magnitude++) {
        const int code = magnitude | (signbit(x) ? 0x80 : 0);
        const double off = fabs(e4m3_value(code) - (double)x), least = fabs(e4m3_value(best) - (double)x);
        if (off < least || (off == least && magnitude % 2 == 0))
            best = code;
    }
    return best;
}

/* Rows of the type, and for F32 also rows that are zero, tiny, not finite, and full of ties. */
START_TEST(test_e4m3) {
    enum { ROWS = 6 };
    struct table t = new_table(types[_i], ROWS, blocks_for(types[_i], 600), 0xbb);
    if (t.type == FWD_TYPE_F32) {
        float *x = (float *)(void *)t.data;
        const int64_t n = t.n_cols;
        memset(x, 0, (size_t)n * sizeof *x);
        for (int64_t i = 0; i < n; i++) {
            x[n + i] = 0x1.8p-102f;
            x[2 * n + i] = i == 5 ? INFINITY : 1.0f;
            x[3 * n + i] = i == n - 1 ? NAN : -1.0f;
            x[4 * n + i] = i ? ldexpf((float)(i % 64) - 31.5f, (int)(i / 64) % 12 - 12) : -448.0f; /* scale 1: ties */
        }
        memcpy(t.value, t.data, t.n_bytes);
    }
    uint8_t *got = fwd_alloc((size_t)(ROWS * t.n_cols), 1);
    float scale[ROWS];
    ck_assert_ptr_nonnull(got);
    cuda_test_start(ROOM);
    const void *src = cuda_test_put(t.data, t.n_bytes);
    uint8_t *dst = cuda_test_room((size_t)(ROWS * t.n_cols));
    float *dst_scale = cuda_test_room(sizeof scale);
    cuda_dequantise(NULL, t.type, src, t.row_bytes, ROWS, t.n_cols, CUDA_FORM_E4M3, dst, dst_scale);
    cuda_test_get(got, dst, (size_t)(ROWS * t.n_cols));
    cuda_test_get(scale, dst_scale, sizeof scale);
    for (int r = 0; r < ROWS; r++) {
        const float *x = t.value + r * t.n_cols;
        float amax = 0;
        bool finite = true;
        for (int64_t i = 0; i < t.n_cols; i++) {
            finite &= isfinite(x[i]) != 0;
            amax = fmaxf(amax, fabsf(x[i]));
        }
        const bool has_scale = finite && amax >= 0x1p-100f;
        const float want = has_scale ? amax / 448.0f : finite ? 0.0f : NAN, id = 448.0f / amax;
        ck_assert_msg(same_floats(&want, &scale[r], 1), "%s, row %d: scale %a, expected %a", fwd_type_name(t.type), r,
                      (double)scale[r], (double)want);
        for (int64_t i = 0; i < t.n_cols; i++) {
            const int code = has_scale ? e4m3_nearest(x[i] * id) : 0;
            ck_assert_msg(got[r * t.n_cols + i] == code, "%s, row %d, %a times %a: code %02x, expected %02x",
                          fwd_type_name(t.type), r, (double)x[i], (double)id, got[r * t.n_cols + i], code);
        }
    }
    cuda_test_end();
    fwd_free(got);
    free_table(&t);
}
END_TEST

int main(void) {
    Suite *s = suite_create("cuda_decode");
    TCase *t = tcase_create("decode");
    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, test_dequantise_f32, 0, N_TYPES);
    tcase_add_loop_test(t, test_embed, 0, N_TYPES);
    tcase_add_test(t, test_bf16);
    tcase_add_loop_test(t, test_e4m3, 0, N_TYPES);
    suite_add_tcase(s, t);
    return cuda_test_main("test_cuda_decode", s);
}
