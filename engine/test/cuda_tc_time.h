/* cuda_tc_time.h: how long a layer's calls take on tensor cores, at the shapes of real models: what test_cuda_tc --time
 * prints. Several layers' weights in turn, so that they come from memory. */
#ifndef ENGINE_TEST_CUDA_TC_TIME_H
#define ENGINE_TEST_CUDA_TC_TIME_H

#include "cuda/kernels_tc.h"

#include "test/cuda_test.h"

enum { TIME_LAYERS = 4, TIME_MOST = 4096 };

struct time_shape {
    const char *name;
    int n_layer, embd, ff, n_head, n_kv, dim;
    int64_t vocab;
};

struct time_layer {
    struct cuda_linear qkv, o, gate_up, down;
};

struct time_bench {
    struct cuda_lt *lt;
    const struct time_shape *s;
    enum cuda_form form;
    bool fast;
    struct time_layer layer[TIME_LAYERS];
    struct cuda_tc_act act_embd, act_heads, act_ff;
    float *x, *qkv, *heads, *gate_up, *out, *q;
    struct cuda_attention attention;
    const float *norm;
    uint8_t *kv;
};

static int time_failures;

static void *time_room(size_t n_bytes) {
    void *p = NULL;
    if (cudaMalloc(&p, n_bytes) != cudaSuccess || cudaMemset(p, 0x31, n_bytes) != cudaSuccess)
        time_failures++;
    return p;
}

/* Bytes that are ordinary numbers in BF16 and E4M3, of either sign. */
static void *time_numbers(size_t n_bytes) {
    static uint16_t pattern[1 << 20];
    for (size_t i = 0; i < 1 << 20; i++) {
        uint32_t r = (uint32_t)(i * 2654435761u);
        pattern[i] = (uint16_t)((r >> 8 & 0x80b7u) | 0x3c00u | (r & 0x0380u));
    }
    uint8_t *p = time_room(n_bytes);
    for (size_t at = 0; at < n_bytes; at += sizeof pattern) {
        size_t n = n_bytes - at < sizeof pattern ? n_bytes - at : sizeof pattern;
        time_failures += cudaMemcpy(p + at, pattern, n, cudaMemcpyHostToDevice) != cudaSuccess;
    }
    return p;
}

static struct cuda_linear time_linear(enum cuda_form form, int64_t n_rows, int64_t n_cols, bool bias) {
    struct cuda_linear w = {.form = form, .n_rows = n_rows, .n_cols = n_cols};
    w.data = time_numbers((size_t)(n_rows * n_cols) * (form == CUDA_FORM_BF16 ? 2 : 1));
    w.scale = time_room((size_t)n_rows * 4);
    w.bias = bias ? time_room((size_t)n_rows * 4) : NULL;
    return w;
}

static struct cuda_tc_act time_act(enum cuda_form form, int64_t n) {
    struct cuda_tc_act a = {form, n, time_numbers((size_t)(n * TIME_MOST) * 2), time_room((size_t)TIME_MOST * 4)};
    return a;
}

static void time_open(struct time_bench *b) {
    const struct time_shape *s = b->s;
    int64_t heads = (int64_t)s->n_head * s->dim, kv = (int64_t)s->n_kv * s->dim;
    for (int i = 0; i < TIME_LAYERS; i++) {
        struct time_layer *l = &b->layer[i];
        l->qkv = time_linear(b->form, heads + 2 * kv, s->embd, true);
        l->o = time_linear(b->form, s->embd, heads, false);
        l->gate_up = time_linear(b->form, (int64_t)2 * s->ff, s->embd, false);
        l->down = time_linear(b->form, s->embd, s->ff, false);
    }
    b->act_embd = time_act(b->form, s->embd);
    b->act_heads = time_act(b->form, heads);
    b->act_ff = time_act(b->form, s->ff);
    size_t m = TIME_MOST;
    b->x = time_room(m * (size_t)s->embd * 4);
    b->out = time_room(m * (size_t)s->embd * 4);
    b->qkv = time_room(m * (size_t)(heads + 2 * kv) * 4);
    b->q = time_room(m * (size_t)heads * 4);
    b->heads = time_room(m * (size_t)heads * 4);
    b->gate_up = time_room(m * (size_t)s->ff * 2 * 4);
    b->kv = time_numbers(m * (size_t)kv * 2 * 2);
    b->norm = time_room((size_t)s->embd * 4);
    int32_t map[128];
    for (int i = 0; i < s->n_head; i++)
        map[i] = i / (s->n_head / s->n_kv);
    int32_t *map_device = time_room(sizeof map);
    time_failures += cudaMemcpy(map_device, map, sizeof map, cudaMemcpyHostToDevice) != cudaSuccess;
    struct cuda_kv rows = {FWD_F16, b->kv, (int64_t)TIME_MOST * s->dim * 2, s->dim * 2, s->n_kv, s->dim};
    b->attention = (struct cuda_attention){.q = b->q, .o = b->heads, .k = rows, .v = rows, .kv_head_of = map_device};
    b->attention.v.data = b->kv + m * (size_t)kv * 2;
    b->attention.n_head = s->n_head;
    b->attention.scale = 0.0883883f;
}

static void time_product(struct time_bench *b, const struct cuda_linear *w, const struct cuda_tc_act *x, int m,
                         float *y) {
    struct fwd_error err = {.message = ""};
    if (cuda_lt_matmul(b->lt, NULL, w, x, m, y, w->n_rows, b->fast, &err) != FWD_OK) {
        if (time_failures++ == 0)
            printf("%s\n", err.message);
    }
}

/* Milliseconds of one of n rounds of call(b, layer, m). */
static float time_call(struct time_bench *b, int m, int rounds, void (*call)(struct time_bench *, int layer, int m)) {
    cudaEvent_t from, to;
    float ms = 0;
    if (cudaEventCreate(&from) != cudaSuccess || cudaEventCreate(&to) != cudaSuccess)
        return 0;
    for (int i = 0; i < 2; i++)
        call(b, i % TIME_LAYERS, m);
    (void)cudaEventRecord(from, NULL);
    for (int i = 0; i < rounds; i++)
        call(b, i % TIME_LAYERS, m);
    (void)cudaEventRecord(to, NULL);
    if (cudaEventSynchronize(to) != cudaSuccess || cudaEventElapsedTime(&ms, from, to) != cudaSuccess) {
        printf("%s\n", cudaGetErrorString(cudaGetLastError()));
        time_failures++;
    }
    (void)cudaEventDestroy(from);
    (void)cudaEventDestroy(to);
    return ms / (float)rounds;
}

static void time_qkv(struct time_bench *b, int layer, int m) {
    time_product(b, &b->layer[layer].qkv, &b->act_embd, m, b->qkv);
}
static void time_o(struct time_bench *b, int layer, int m) {
    time_product(b, &b->layer[layer].o, &b->act_heads, m, b->out);
}
static void time_gate_up(struct time_bench *b, int layer, int m) {
    time_product(b, &b->layer[layer].gate_up, &b->act_embd, m, b->gate_up);
}
static void time_down(struct time_bench *b, int layer, int m) {
    time_product(b, &b->layer[layer].down, &b->act_ff, m, b->out);
}
static void time_attention(struct time_bench *b, int layer, int m) {
    (void)layer;
    b->attention.n_pos = m;
    cuda_tc_attention(NULL, &b->attention);
}
static void time_convert_heads(struct time_bench *b, int layer, int m) {
    (void)layer;
    cuda_tc_convert(NULL, b->heads, b->s->n_head * b->s->dim, m, &b->act_heads, NULL);
}
static void time_convert_ff(struct time_bench *b, int layer, int m) {
    (void)layer;
    cuda_tc_convert(NULL, b->gate_up, b->s->ff, m, &b->act_ff, NULL);
}

static void time_one(struct time_bench *b, int m, const char *only) {
    static const struct {
        const char *name;
        void (*call)(struct time_bench *, int, int);
    } parts[] = {{"qkv", time_qkv},  {"attention", time_attention}, {"convert heads", time_convert_heads},
                 {"o", time_o},      {"gate+up", time_gate_up},     {"convert ff", time_convert_ff},
                 {"down", time_down}};
    const struct time_shape *s = b->s;
    int64_t heads = (int64_t)s->n_head * s->dim, kv = (int64_t)s->n_kv * s->dim;
    double flop[] = {2.0 * (double)m * (double)(heads + 2 * kv) * s->embd,
                     2.0 * m * (double)m * (double)heads,
                     0,
                     2.0 * (double)m * (double)heads * s->embd,
                     4.0 * (double)m * s->ff * s->embd,
                     0,
                     2.0 * (double)m * s->ff * s->embd};
    float total = 0;
    printf("%s %s%s, %d positions:", s->name, b->form == CUDA_FORM_BF16 ? "BF16" : "E4M3", b->fast ? " fast" : "", m);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (only && strcmp(only, parts[i].name) != 0)
            continue;
        float ms = time_call(b, m, m > 1000 ? 8 : 40, parts[i].call);
        printf(" %s %.1f us", parts[i].name, (double)ms * 1e3);
        if (flop[i] > 0)
            printf(" (%.0f T)", flop[i] / (double)ms * 1e-9);
        total += ms;
    }
    printf("; %d layers %.2f ms, %.0f tok/s\n", s->n_layer, (double)total * s->n_layer,
           m / (double)total / s->n_layer * 1e3);
}

/* Everything, or one part (in one form), a line for each shape, form and number of positions; returns what main
 * returns.
 */
static int time_layers(struct cuda_lt *lt, const char *only) {
    static const struct time_shape shapes[] = {{"7B", 28, 3584, 18944, 28, 4, 128, 152064},
                                               {"1.5B", 28, 1536, 8960, 12, 2, 128, 151936}};
    static const int positions[] = {1, 78, 512, 4096};
    static struct time_bench bench;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        for (int form = CUDA_FORM_BF16; form <= (only ? CUDA_FORM_BF16 : CUDA_FORM_E4M3); form++) {
            bench = (struct time_bench){.lt = lt, .s = &shapes[i], .form = (enum cuda_form)form};
            time_open(&bench);
            for (int fast = 0; fast <= (form == CUDA_FORM_E4M3); fast++) {
                bench.fast = fast;
                time_failures = 0;
                for (size_t p = 0; p < sizeof positions / sizeof *positions; p++)
                    time_one(&bench, positions[p], only);
            }
        }
    }
    return time_failures != 0;
}

#endif
