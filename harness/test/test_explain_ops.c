/* Signatures of the ops that are no matrix product, each diagnosed as itself. */
#include "test/made_evidence.h"

/* ---- rotations ---------------------------------------------------------------------------------------------------
 */
/* Turns the pair (a, b) of a head in place of the right value. */
static void turn(int pos, int head, int a, int b, double angle) {
    const float *x = in_row(0, pos) + head * HEAD;
    float *y = out_row(pos) + head * HEAD;
    y[a] = (float)((double)x[a] * cos(angle) - (double)x[b] * sin(angle));
    y[b] = (float)((double)x[a] * sin(angle) + (double)x[b] * cos(angle));
}

static void rotate(int from_pos, int only_head, double theta, int shift, double times, bool pairs) {
    for (int pos = from_pos; pos < N_POS; pos++)
        for (int head = 0; head < call.out.ne[0] / HEAD; head++)
            for (int i = 0; i < HEAD / 2 && (only_head < 0 || head == only_head); i++)
                turn(pos, head, pairs ? 2 * i : i, pairs ? 2 * i + 1 : i + HEAD / 2,
                     times * (pos + shift) * pow(theta, -2.0 * i / HEAD));
}

START_TEST(rope) {
    make_model(FWD_TYPE_Q4_K);
    struct {
        const char *name;
        int from, head;
        double theta;
        int shift;
        double times;
        bool pairs;
    } list[] = {{"rope-pairing", 0, -1, 1e6, 0, 1, true},   {"rope-base", 0, -1, 1e4, 0, 1, false},
                {"rope-position", 0, -1, 1e6, 1, 1, false}, {"rope-position", 5, -1, 1e6, -5, 1, false},
                {"rope-sign", 0, 3, 1e6, 0, -1, false},     {"rope-twice", 2, -1, 1e6, 0, 2, false},
                {"rope-missing", 3, 1, 1e6, 0, 0, false},   {"rope-base", 0, 2, 5e5, 0, 1, false}};
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        float_call(i % 2 ? FWD_OP_KCUR_ROPE : FWD_OP_QCUR_ROPE, 1, 1, i % 2 ? KV_DIM : N_EMBD, i % 2 ? KV_DIM : N_EMBD);
        rotate(list[i].from, list[i].head, list[i].theta, list[i].shift, list[i].times, list[i].pairs);
        expect(list[i].name);
    }
}
END_TEST

START_TEST(rope_bias) {
    make_model(FWD_TYPE_Q4_K);
    const float *bias = (const float *)(const void *)layers[1].q_bias.data;
    for (int before = 0; before < 2; before++) {
        float_call(FWD_OP_QCUR_ROPE, 1, 1, N_EMBD, N_EMBD);
        for (int pos = 0; pos < N_POS; pos++)
            for (int i = 0; i < N_EMBD; i++)
                in_row(0, pos)[i] += before ? bias[i] : -bias[i];
        rotate(0, -1, 1e6, 0, 1, false);
        for (int pos = 0; pos < N_POS; pos++)
            for (int i = 0; i < N_EMBD; i++) {
                in_row(0, pos)[i] -= before ? bias[i] : -bias[i];
                out_row(pos)[i] += before ? 0 : bias[i];
            }
        expect(before ? "tap-pre-bias" : "bias-after-rope");
    }
}
END_TEST

START_TEST(rope_factors) {
    make_model(FWD_TYPE_Q4_K);
    float *f = floats(HEAD / 2, 1);
    for (int i = 0; i < HEAD / 2; i++)
        f[i] = 1 + 8 * fabsf(f[i]);
    model.rope_factors =
        (struct spec_weight){"rope_freqs", FWD_TYPE_F32, 1, HEAD / 2, 2 * HEAD, (const uint8_t *)f, NULL};
    float_call(FWD_OP_QCUR_ROPE, 1, 1, N_EMBD, N_EMBD);
    rotate(0, -1, 1e6, 0, 1, false);
    expect("rope-scaling-ignored");
}
END_TEST

/* ---- norms -------------------------------------------------------------------------------------------------------
 */
static const float *weight_values(enum fwd_op op, int layer) {
    return (const float *)(const void *)par_spec_weight(&model, op, layer)->data;
}

static void norm(int from, double eps, const float *w, bool mean, int n_summed) {
    for (int pos = from; pos < N_POS; pos++) {
        double sum = 0, m = 0;
        for (int i = 0; i < N_EMBD && mean; i++)
            m += (double)in_row(0, pos)[i] / N_EMBD;
        for (int i = 0; i < n_summed; i++)
            sum += ((double)in_row(0, pos)[i] - m) * ((double)in_row(0, pos)[i] - m);
        double scale = 1 / sqrt(sum / N_EMBD + eps);
        for (int i = 0; i < N_EMBD; i++)
            out_row(pos)[i] = (float)(((double)in_row(0, pos)[i] - m) * scale * (w ? (double)w[i] : 1));
    }
}

START_TEST(norms) {
    make_model(FWD_TYPE_Q4_K);
    const float *own = weight_values(FWD_OP_FFN_NORM, 1);
    for (int i = 0; i < 7; i++) {
        static const char *const names[] = {
            "eps-other",      "norm-weight-missing",     "norm-weight-other-layer", "norm-mean-subtracted",
            "k-tail-skipped", "norm-weight-other-layer", "norm-weight-plus-one"};
        float_call(FWD_OP_FFN_NORM, 1, 1, N_EMBD, N_EMBD);
        float plus[N_EMBD];
        for (int k = 0; k < N_EMBD; k++)
            plus[k] = own[k] + 1;
        const float *w = i == 1   ? NULL
                         : i == 2 ? weight_values(FWD_OP_FFN_NORM, 2)
                         : i == 5 ? weight_values(FWD_OP_ATTN_NORM, 1)
                         : i == 6 ? plus
                                  : own;
        norm(i % 3, i == 0 ? 1e-5 : 1e-6, w, i == 3, i == 4 ? N_EMBD - 16 : N_EMBD);
        expect(names[i]);
    }
}
END_TEST

/* ---- one step an element -----------------------------------------------------------------------------------------
 */
START_TEST(swiglu) {
    make_model(FWD_TYPE_Q4_K);
    static const char *const names[] = {"gate-up-swapped", "gelu-for-silu", "gelu-for-silu", "silu-missing",
                                        "up-missing"};
    for (int i = 0; i < 5; i++) {
        float_call(FWD_OP_FFN_SWIGLU, 1, 2, N_FF, N_FF);
        for (int pos = i % 2 ? 4 : 0; pos < N_POS; pos++)
            for (int k = 0; k < N_FF; k++) {
                double g = (double)in_row(0, pos)[k], u = (double)in_row(1, pos)[k];
                double y = i == 0   ? u / (1 + exp(-u)) * g
                           : i == 1 ? g * 0.5 * erfc(-g / sqrt(2)) * u
                           : i == 2 ? g * 0.5 * (1 + tanh(sqrt(2 / acos(-1)) * (g + 0.044715 * g * g * g))) * u
                           : i == 3 ? g * u
                                    : g / (1 + exp(-g));
                out_row(pos)[k] = (float)y;
            }
        expect(names[i]);
    }
}
END_TEST

START_TEST(sums) {
    make_model(FWD_TYPE_Q4_K);
    static const char *const names[] = {"residual-missing", "residual-missing", "residual-twice", "residual-twice",
                                        "residual-sign"};
    static const float times[][2] = {{1, 0}, {0, 1}, {1, 2}, {2, 1}, {1, -1}};
    for (int i = 0; i < 5; i++) {
        float_call(i % 2 ? FWD_OP_FFN_INP : FWD_OP_L_OUT, 1, 2, N_EMBD, N_EMBD);
        for (int pos = i % 3; pos < N_POS; pos++)
            for (int k = i == 2 ? 100 : 0; k < N_EMBD; k++)
                out_row(pos)[k] = times[i][0] * in_row(0, pos)[k] + times[i][1] * in_row(1, pos)[k];
        expect(names[i]);
    }
}
END_TEST

/* ---- attention ---------------------------------------------------------------------------------------------------
 */
static void *halves_of(const float *x, int64_t n) {
    uint16_t *h = made_alloc((size_t)n, sizeof *h);
    for (int64_t i = 0; i < n; i++)
        h[i] = par_f32_to_f16(x[i]);
    return h;
}

static struct fwd_view cache_view(enum fwd_op op, const float *x) {
    struct fwd_view v = view_of(op, FWD_F16, HEAD, N_POS, halves_of(x, (int64_t)KV_DIM * N_POS));
    v.ne[1] = N_KV;
    v.ne[2] = N_POS;
    v.nb[1] = 2 * HEAD;
    v.nb[2] = 2 * KV_DIM;
    return v;
}

static void attention_call(double size) {
    begin_item(FWD_OP_KQV_OUT, 1, FWD_F32);
    call.n_in = 3;
    call.in[0] = view_of(FWD_OP_QCUR_ROPE, FWD_F32, N_EMBD, N_POS, floats(N_EMBD * N_POS, size));
    call.in[1] = cache_view(FWD_OP_K_CACHE, floats(KV_DIM * N_POS, size));
    call.in[2] = cache_view(FWD_OP_V_CACHE, floats(KV_DIM * N_POS, 1));
    call.out = view_of(FWD_OP_KQV_OUT, FWD_F32, N_EMBD, N_POS, floats(N_EMBD * N_POS, 1));
    fill_right();
}

static double cached(int in, int64_t row, int head, int i) {
    return half((const uint8_t *)call.in[in].data + row * call.in[in].nb[2] + head * call.in[in].nb[1] + 2 * i);
}

/* How this file's attention goes wrong. */
struct attention_bug {
    const char *name;
    int from, head;  /* positions from, one head or -1 */
    int first, more; /* keys from first; `more` of them after the position */
    int last;        /* only so many keys; 0: all */
    int map;         /* 1: h mod n_kv */
    double scale;    /* 0: the right one */
    int k_shift, v_shift;
    int stale; /* this row of V reads as the one before */
    bool no_max, int8;
};

static void attend(const struct attention_bug *b) {
    for (int pos = b->from; pos < N_POS; pos++)
        for (int h = 0; h < N_HEAD; h++) {
            if (b->head >= 0 && h != b->head)
                continue;
            int kv = b->map ? h % N_KV : h / (N_HEAD / N_KV), end = pos + 1 + b->more;
            end = end > N_POS ? N_POS : end;
            int first = b->last && end - b->last > b->first ? end - b->last : b->first;
            double p[N_POS] = {0}, sum = 0, top = -HUGE_VAL, out[HEAD] = {0};
            for (int j = first; j < end; j++) {
                int row = j + b->k_shift < 0 ? -1 : j + b->k_shift;
                for (int i = 0; i < HEAD && row >= 0; i++)
                    p[j] += (double)in_row(0, pos)[h * HEAD + i] * cached(1, row, kv, i);
                p[j] *= b->scale > 0 ? b->scale : 1 / sqrt(HEAD);
                top = fmax(top, p[j]);
            }
            for (int j = first; j < end; j++)
                sum += p[j] = b->no_max ? (double)expf((float)p[j]) : exp(p[j] - top);
            for (int j = first; j < end; j++) {
                int row = j + b->v_shift - (b->stale && j == b->stale);
                for (int i = 0; i < HEAD && row >= 0; i++)
                    out[i] += p[j] / sum * cached(2, row, kv, i);
            }
            for (int i = 0; i < HEAD; i++)
                out_row(pos)[h * HEAD + i] = first < end ? (float)out[i] : 0;
        }
}

START_TEST(attention) {
    make_model(FWD_TYPE_Q4_K);
    static const struct attention_bug list[] = {
        {.name = "mask-sees-next", .head = -1, .more = 1},
        {.name = "mask-sees-next", .head = 3, .more = N_POS},
        {.name = "mask-misses-self", .head = -1, .more = -1},
        {.name = "mask-window", .head = -1, .last = 3},
        {.name = "mask-window", .head = 2, .first = 1, .from = 2},
        {.name = "gqa-map", .head = -1, .map = 1},
        {.name = "softmax-scale-missing", .head = -1, .scale = 1},
        {.name = "softmax-scale-squared", .head = -1, .from = 3, .scale = 1.0 / HEAD},
        {.name = "softmax-scale-other", .head = -1, .scale = 0.04419417382415922},
        {.name = "kv-row-shifted", .head = -1, .k_shift = -1},
        {.name = "kv-row-shifted", .head = 1, .k_shift = -1, .v_shift = -1},
        {.name = "kv-row-stale", .head = -1, .stale = 4},
    };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        attention_call(1);
        attend(&list[i]);
        expect(list[i].name);
    }
    struct attention_bug loud = {.name = "softmax-no-max", .head = -1, .no_max = true};
    attention_call(12);
    attend(&loud);
    expect("softmax-no-max");
    attention_call(1); /* values cut to BF16 */
    for (int i = 0; i < KV_DIM * N_POS; i++) {
        float x = par_f16_to_f32(((uint16_t *)call.in[2].data)[i]);
        uint32_t u;
        memcpy(&u, &x, 4);
        u &= 0xffff0000u;
        memcpy(&x, &u, 4);
        ((uint16_t *)call.in[2].data)[i] = par_f32_to_f16(x);
    }
    struct fwd_view cut = call.in[2];
    struct attention_bug plain = {.head = -1};
    attention_call(1);
    struct fwd_view kept = call.in[2];
    for (int i = 0; i < KV_DIM * N_POS; i++) {
        float x = par_f16_to_f32(((uint16_t *)kept.data)[i]);
        uint32_t u;
        memcpy(&u, &x, 4);
        u &= 0xffff0000u;
        memcpy(&x, &u, 4);
        ((uint16_t *)cut.data)[i] = par_f32_to_f16(x);
    }
    call.in[2] = cut;
    attend(&plain);
    call.in[2] = kept;
    expect("kv-truncated");
}
END_TEST

/* ---- the cache ---------------------------------------------------------------------------------------------------
 */
static void cache_call(void) {
    begin_item(FWD_OP_V_CACHE, 1, FWD_F16);
    item.numerics.store = FWD_F16;
    item.numerics.accumulator = FWD_ACC_EXACT;
    call.n_in = 1;
    float *x = floats(KV_DIM * N_POS, 2);
    call.in[0] = view_of(FWD_OP_COUNT, FWD_F32, KV_DIM, N_POS, x);
    call.out = cache_view(FWD_OP_V_CACHE, x);
}

static uint16_t *cache_row(int pos) {
    return (uint16_t *)call.out.data + (int64_t)pos * KV_DIM;
}

START_TEST(cache) {
    make_model(FWD_TYPE_Q4_K);
    cache_call();
    for (int pos = N_POS - 1; pos > 2; pos--)
        memcpy(cache_row(pos), cache_row(pos - 1), 2 * KV_DIM);
    expect("kv-row-shifted");
    cache_call();
    memcpy(cache_row(4), cache_row(1), 2 * KV_DIM);
    expect("kv-row-stale");
    cache_call();
    memset(cache_row(4), 0, 2 * KV_DIM);
    expect("kv-row-stale");
    cache_call();
    for (int i = 0; i < KV_DIM * N_POS; i++) { /* cut towards 0 */
        float x = ((float *)call.in[0].data)[i], y = par_f16_to_f32(cache_row(0)[i]);
        cache_row(0)[i] = (uint16_t)(cache_row(0)[i] - (fabsf(y) > fabsf(x)));
    }
    expect("kv-truncated");
    cache_call();
    for (int i = 0; i < KV_DIM * N_POS; i++)
        cache_row(0)[i] = par_f32_to_f16(((float *)call.in[0].data)[i] +
                                         ((const float *)(const void *)layers[1].v_bias.data)[i % KV_DIM]);
    expect("tap-pre-bias");
    cache_call();
    for (int pos = 0; pos < N_POS; pos++)
        for (int i = 0; i < HEAD; i++) {
            uint16_t x = cache_row(pos)[i];
            cache_row(pos)[i] = cache_row(pos)[2 * HEAD + i];
            cache_row(pos)[2 * HEAD + i] = x;
        }
    expect("head-permuted");
}
END_TEST

/* ---- quantised activations ---------------------------------------------------------------------------------------
 */
enum q8_bug { Q8_TIE, Q8_CUT, Q8_NEXT, Q8_ROW, Q8_BATCH, Q8_HALF_SCALE, Q8_NEAR_SCALE };

/* Blocks of 32 made with the bug; values are multiples of 1/8 so that halves occur. */
static void q8_call(enum q8_bug bug, int from) {
    begin_item(FWD_OP_FFN_NORM_Q8, 1, FWD_F32);
    item.numerics.act_rule = FWD_ACT_AMAX127;
    item.numerics.store = FWD_Q8_32;
    item.numerics.accumulator = FWD_ACC_EXACT;
    float *x = floats(N_EMBD * N_POS, 1);
    for (int i = 0; i < N_EMBD * N_POS; i++) {
        x[i] = bug == Q8_TIE ? (float)((int)(next() % 509) - 254) / 2 : x[i] * (float)(1 + next() % 5);
        x[i] = bug == Q8_TIE && i % 32 == 3 ? 127 : x[i]; /* then id is 1, and x its own scaled value */
    }
    call.n_in = 1;
    call.in[0] = view_of(FWD_OP_COUNT, FWD_F32, N_EMBD, N_POS, x);
    call.out = view_of(FWD_OP_FFN_NORM_Q8, FWD_Q8_32, N_EMBD, N_POS, quantise(x, N_EMBD, N_POS, FWD_Q8_32));
    float all = 0;
    for (int i = 0; i < N_EMBD * N_POS; i++)
        all = fmaxf(all, fabsf(x[i]));
    for (int pos = from; pos < N_POS; pos++) {
        uint8_t *row = (uint8_t *)call.out.data + pos * call.out.nb[1];
        float most = 0;
        for (int i = 0; i < N_EMBD; i++)
            most = fmaxf(most, fabsf(in_row(0, pos)[i]));
        for (int b = 0; b < N_EMBD / 32; b++) {
            uint8_t *p = row + 40 * b;
            float amax = 0, d;
            for (int i = 0; i < 32; i++)
                amax = fmaxf(amax, fabsf(in_row(0, pos)[32 * b + i]));
            amax = bug == Q8_ROW ? most : bug == Q8_BATCH ? all : amax;
            d = amax / 127;
            int32_t sum = 0;
            for (int i = 0; i < 32; i++) {
                float s = in_row(0, pos)[32 * b + i] * (127 / amax);
                int q = bug == Q8_CUT ? (int)s : bug == Q8_TIE ? (int)roundf(s) : (int)rintf(s);
                p[8 + i] = (uint8_t)(int8_t)q;
                sum += q;
            }
            d = bug == Q8_HALF_SCALE ? half_of((double)d) : d;
            d = bug == Q8_NEAR_SCALE ? nextafterf(d, 1) : d;
            memcpy(p, &d, 4);
            memcpy(p + 4, &sum, 4);
        }
        for (int b = 0; bug == Q8_NEXT && b + 1 < N_EMBD / 32; b++)
            memcpy(row + 40 * b, row + 40 * b + 40, 4);
    }
}

START_TEST(quantised) {
    make_model(FWD_TYPE_Q4_0);
    static const char *const names[] = {"act-quant-tie",     "act-quant-truncated", "act-scale-other-block",
                                        "act-scale-per-row", "act-scale-per-batch", "act-scale-f16"};
    for (int i = 0; i < 6; i++) {
        q8_call((enum q8_bug)i, i % 3);
        expect(names[i]);
    }
    q8_call(Q8_NEAR_SCALE, 0); /* one ulp: no rule of rounding codes does that */
    expect("unexplained");
    /* The same seen through a product whose quantised input is not shown. */
    matmul_call(FWD_OP_FFN_UP, 1, true);
    item.numerics.act = FWD_Q8_32;
    item.numerics.act_rule = FWD_ACT_AMAX127;
    fill_right();
    struct fwd_view kept = call.in[0];
    uint8_t *bytes = quantise(kept.data, N_EMBD, N_POS, FWD_Q8_32);
    for (int b = 0; b < N_EMBD / 32 * N_POS; b++) {
        const float *x = (const float *)kept.data + 32 * (int64_t)b;
        float amax = 0;
        for (int i = 0; i < 32; i++)
            amax = fmaxf(amax, fabsf(x[i]));
        for (int i = 0; i < 32; i++)
            bytes[40 * b + 8 + i] = (uint8_t)(int8_t)(x[i] * (127 / amax));
    }
    call.in[0] = view_of(FWD_OP_COUNT, FWD_Q8_32, N_EMBD, N_POS, bytes);
    struct wrong w = like_spec();
    w.row_end = 20;
    multiply(&w);
    call.in[0] = kept;
    expect("act-quant-truncated");
    matmul_call(FWD_OP_FFN_UP, 1, false); /* scales of the block beside */
    kept = call.in[0];
    bytes = made_alloc((size_t)kept.nb[1], N_POS);
    memcpy(bytes, kept.data, (size_t)kept.nb[1] * N_POS);
    for (int pos = 0; pos < N_POS; pos++)
        for (int b = 0; b + 1 < N_EMBD / 32; b++)
            memcpy(bytes + pos * kept.nb[1] + 40 * b, (uint8_t *)kept.data + pos * kept.nb[1] + 40 * b + 40, 4);
    call.in[0].data = bytes;
    multiply(&w);
    call.in[0] = kept;
    expect("act-scale-other-block");
}
END_TEST

int main(void) {
    Suite *s = suite_create("explain ops");
    TCase *t = tcase_create("signatures");
    tcase_set_timeout(t, 120);
    tcase_add_checked_fixture(t, NULL, free_made);
    tcase_add_test(t, rope);
    tcase_add_test(t, rope_bias);
    tcase_add_test(t, rope_factors);
    tcase_add_test(t, norms);
    tcase_add_test(t, swiglu);
    tcase_add_test(t, sums);
    tcase_add_test(t, attention);
    tcase_add_test(t, cache);
    tcase_add_test(t, quantised);
    suite_add_tcase(s, t);
    SRunner *runner = srunner_create(s);
    srunner_set_fork_status(runner, CK_FORK);
    srunner_run_all(runner, CK_ENV);
    int n_run = srunner_ntests_run(runner), n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_run == 0 ? 3 : n_failed != 0;
}
