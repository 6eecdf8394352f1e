/* cuda_attention against fwd_attention of the CPU, bit for bit: grouped heads, head sizes, segments around their edges,
 * one position and many, at the start and far into the context. */
#include "core/cpu.h"
#include "core/half.h"
#include "core/threads.h"
#include "cuda/kernels.h"
#include "ops/attention/attention.h"
#include "ops/variant_table.h"
#include "test/cuda_test.h"
#include "test/float_data.h"

enum { ROOM = 256 << 20, GAP = 16 };

struct heads {
    int n_head, n_kv_head, head_dim;
    int uneven; /* heads that read KV head 0 instead of their own */
};
struct span {
    int pos0, n_pos;
};

static const struct heads models[] = {{28, 4, 128, 0}, {12, 2, 128, 0}, {14, 2, 64, 0}, {9, 3, 64, 0}, {3, 3, 80, 0},
                                      {4, 1, 256, 0},  {2, 1, 20, 0},   {5, 2, 48, 2},  {2, 2, 3, 0}};
static const struct span spans[] = {{0, 1},   {62, 1},  {63, 1},   {64, 1},    {254, 1},  {255, 1}, {256, 1}, {4096, 1},
                                    {300, 2}, {250, 9}, {511, 17}, {3830, 33}, {100, 78}, {0, 78},  {5, 5}};
enum { N_MODELS = sizeof models / sizeof *models, N_SPANS = sizeof spans / sizeof *spans };

/* Queries, and K and V rows of all positions, each followed by a gap; rows that no position may read, and the gaps,
 * hold NaN. */
struct attention_case {
    struct fwd_config config;
    struct span span;
    enum fwd_dtype type;
    size_t value, row, head, all; /* bytes: of a value, of a row with its gap, of a head's rows, of K */
    uint8_t *k, *v;
    float *q, *want, *got;
    int64_t n_out;
};

static void fill_rows(const struct attention_case *c, uint8_t *to, enum kind kind, uint64_t seed) {
    const int dim = c->config.head_dim, n_rows = c->span.pos0 + c->span.n_pos;
    float *x = new_floats((int64_t)n_rows * dim);
    memset(to, 0xff, c->all);
    for (int h = 0; h < c->config.n_kv_head; h++) {
        fill(x, (int64_t)n_rows * dim, kind, seed + (unsigned)h);
        for (int64_t i = 0; i < (int64_t)n_rows * dim; i++) {
            const uint16_t half = fwd_f32_to_f16(x[i]);
            memcpy(to + (size_t)h * c->head + (size_t)(i / dim) * c->row + (size_t)(i % dim) * c->value,
                   c->type == FWD_F16 ? (const void *)&half : (const void *)&x[i], c->value);
        }
    }
    fwd_free(x);
}

static struct attention_case new_case(struct heads m, struct span span, enum fwd_dtype type, enum kind kind,
                                      float gain) {
    struct attention_case c = {
        .config = {.n_head = m.n_head, .n_kv_head = m.n_kv_head, .head_dim = m.head_dim}, .span = span, .type = type};
    for (int h = 0; h < m.n_head; h++)
        c.config.kv_head_of[h] = h >= m.n_head - m.uneven ? 0 : h * m.n_kv_head / m.n_head;
    c.value = type == FWD_F16 ? 2 : 4;
    c.row = ((size_t)m.head_dim + GAP) * c.value;
    c.head = c.row * (size_t)(span.pos0 + span.n_pos + 40);
    c.all = c.head * (size_t)m.n_kv_head;
    c.n_out = (int64_t)span.n_pos * m.n_head * m.head_dim;
    c.k = fwd_alloc(c.all, 1);
    c.v = fwd_alloc(c.all, 1);
    c.q = new_floats(c.n_out);
    c.want = new_floats(c.n_out);
    c.got = new_floats(c.n_out);
    ck_assert(c.k && c.v);
    fill_rows(&c, c.k, kind, 100);
    fill_rows(&c, c.v, kind == MASSIVE_FIRST ? NORMAL : kind, 200);
    fill(c.q, c.n_out, kind, 300);
    for (int64_t i = 0; i < c.n_out; i++)
        c.q[i] *= gain;
    return c;
}

static void free_case(struct attention_case *c) {
    fwd_free(c->k);
    fwd_free(c->v);
    fwd_free(c->q);
    fwd_free(c->want);
    fwd_free(c->got);
}

static void run_cpu(struct attention_case *c, struct fwd_pool *pool) {
    struct fwd_error err = {.message = ""};
    struct fwd_attention_group groups[FWD_MAX_HEADS];
    const struct fwd_variant *row;
    ck_assert_msg(fwd_variant_pick(&row, "attention", fwd_cpu_detect(), NULL, &err) == FWD_OK, "%s", err.message);
    if (!fwd_attention_serves(row->variant, c->config.head_dim))
        row = fwd_variant_find("attention", "ref");
    struct fwd_attention_args args = {
        .config = &c->config,
        .groups = groups,
        .n_groups = fwd_attention_groups(&c->config, groups),
        .q = c->q,
        .o = c->want,
        .k = c->k,
        .v = c->v,
        .stride_row_k = (int64_t)c->row,
        .stride_head_k = (int64_t)c->head,
        .stride_row_v = (int64_t)c->row,
        .stride_head_v = (int64_t)c->head,
        .kv_type = c->type,
        .pos0 = c->span.pos0,
        .n_pos = c->span.n_pos,
        .scratch = new_floats((int64_t)fwd_attention_scratch(c->config.head_dim) * fwd_pool_size(pool)),
        .pool = pool};
    fwd_attention(&args, (attention_fn *)row->fn);
    fwd_free(args.scratch);
}

static void run_device(struct attention_case *c) {
    const struct fwd_config *m = &c->config;
    const int n_ctx = c->span.pos0 + c->span.n_pos;
    cuda_test_start(ROOM);
    struct cuda_attention a = {
        .q = cuda_test_put(c->q, (size_t)c->n_out * 4),
        .o = cuda_test_room((size_t)c->n_out * 4),
        .k = {c->type, cuda_test_put(c->k, c->all), (int64_t)c->head, (int64_t)c->row, m->n_kv_head, m->head_dim},
        .v = {c->type, cuda_test_put(c->v, c->all), (int64_t)c->head, (int64_t)c->row, m->n_kv_head, m->head_dim},
        .kv_head_of = cuda_test_put(m->kv_head_of, sizeof *m->kv_head_of * (size_t)m->n_head),
        .n_head = m->n_head,
        .pos0 = c->span.pos0,
        .n_pos = c->span.n_pos,
        .scale = 1.0f / sqrtf((float)m->head_dim),
        .scratch = cuda_test_room(cuda_attention_scratch(m->n_head, m->head_dim, c->span.n_pos, n_ctx))};
    cuda_attention(NULL, &a);
    cuda_test_get(c->got, a.o, (size_t)c->n_out * 4);
    cuda_test_end();
}

static void expect_same(const struct attention_case *c, const char *what) {
    const int dim = c->config.head_dim, width = dim * c->config.n_head;
    for (int64_t i = 0; i < c->n_out; i++)
        ck_assert_msg(same_floats(c->got + i, c->want + i, 1),
                      "%s: %d heads of %d, position %d of %d + %d, head %d, dimension %d: %a, expected %a", what,
                      c->config.n_head, dim, (int)(i / width), c->span.pos0, c->span.n_pos, (int)(i % width / dim),
                      (int)(i % dim), (double)c->got[i], (double)c->want[i]);
}

static struct fwd_pool *pool;

START_TEST(test_attention) {
    const struct span span = spans[_i % N_SPANS];
    const struct heads m = models[_i / N_SPANS];
    const enum kind kind = (enum kind)(_i % N_KINDS);
    struct attention_case c = new_case(m, span, _i % 4 == 3 ? FWD_F32 : FWD_F16, kind, 1.0f);
    run_cpu(&c, pool);
    run_device(&c);
    expect_same(&c, "made");
    free_case(&c);
}
END_TEST

/* One position in every kind of data, so that no kind is bound to a shape. */
START_TEST(test_kinds) {
    for (int kind = 0; kind < N_KINDS; kind++)
        for (int type = 0; type < 2; type++) {
            struct attention_case c =
                new_case(models[0], (struct span){700, 3}, type ? FWD_F16 : FWD_F32, (enum kind)kind, 8.0f);
            run_cpu(&c, pool);
            run_device(&c);
            expect_same(&c, "kinds");
            free_case(&c);
        }
}
END_TEST

/* So many rows that a block walks the segments itself. */
START_TEST(test_prefill) {
    const struct span long_spans[] = {{0, 512}, {300, 360}};
    for (int i = 0; i < 2; i++) {
        struct attention_case c = new_case(models[i], long_spans[i], FWD_F16, i ? NORMAL : OUTLIERS, 1.0f);
        run_cpu(&c, pool);
        run_device(&c);
        expect_same(&c, "prefill");
        free_case(&c);
    }
}
END_TEST

/* Values that are not finite: where the CPU's result is finite, the device's has its bits (a later position's NaN must
 * not reach an earlier one); where it is not, neither is the device's. */
START_TEST(test_not_finite) {
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 6; i++) {
        const int at = i % 2 ? 270 : 290; /* position */
        struct attention_case c = new_case(models[1], (struct span){250, 45}, FWD_F32, NORMAL, 1.0f);
        memcpy((i < 3 ? c.k : c.v) + c.row * (size_t)at + 28, &bad[i % 3], 4);
        run_cpu(&c, pool);
        run_device(&c);
        int64_t n_finite = 0;
        for (int64_t j = 0; j < c.n_out; j++)
            n_finite += isfinite(c.want[j]) != 0;
        ck_assert_msg(n_finite > 0 && (n_finite < c.n_out || i < 3), "%lld of %lld finite", (long long)n_finite,
                      (long long)c.n_out);
        expect_same(&c, "not finite");
        free_case(&c);
    }
}
END_TEST

int main(void) {
    Suite *s = suite_create("cuda_attention");
    TCase *t = tcase_create("shapes"), *edges = tcase_create("edges");
    if (fwd_pool_create(&pool, 4, NULL) != FWD_OK)
        return 3;
    tcase_set_timeout(t, 120);
    tcase_set_timeout(edges, 120);
    tcase_add_loop_test(t, test_attention, 0, N_MODELS * N_SPANS);
    tcase_add_test(edges, test_kinds);
    tcase_add_test(t, test_prefill);
    tcase_add_test(edges, test_not_finite);
    suite_add_tcase(s, t);
    suite_add_tcase(s, edges);
    int code = cuda_test_main("test_cuda_attention", s);
    fwd_pool_free(pool);
    return code;
}
