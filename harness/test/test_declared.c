/* What each path declares of its arithmetic, proven: rows made to round as badly as possible are written through the
 * taps, the path goes on from them, and every op has to stay inside the bound that follows from its declaration.
 * Declarations that promise too much, or too little, have to fail the same test. */
#include "spec/judge.h"
#include "spec/look_matmul.h"
#include "spec/spec_decode.h"
#include "spec/spec_quant.h"

#include "test/adversary.h"

enum { MOST_TOKENS = 300, MOST_WIDTH = 4096 };

/* ---- models
 * ---------------------------------------------------------------------------------------------------------- */
/* All block types, rows of 1 to 11 blocks, lengths that no vector divides, 1 to 8 query heads a key head. */
static const made_types all_types[3] = {
    {FWD_TYPE_Q4_K, FWD_TYPE_Q5_K, FWD_TYPE_Q6_K, FWD_TYPE_Q4_K, FWD_TYPE_Q5_K, FWD_TYPE_Q4_K, FWD_TYPE_Q6_K},
    {FWD_TYPE_Q4_0, FWD_TYPE_Q4_1, FWD_TYPE_Q5_0, FWD_TYPE_Q5_1, FWD_TYPE_Q8_0, FWD_TYPE_Q4_1, FWD_TYPE_Q5_0},
    {FWD_TYPE_Q2_K, FWD_TYPE_Q3_K, FWD_TYPE_Q8_0, FWD_TYPE_F16, FWD_TYPE_BF16, FWD_TYPE_F32, FWD_TYPE_Q5_K}};
static const made_types small_blocks[2] = {
    {FWD_TYPE_Q5_1, FWD_TYPE_Q8_0, FWD_TYPE_Q4_0, FWD_TYPE_Q5_0, FWD_TYPE_Q4_1, FWD_TYPE_Q5_1, FWD_TYPE_Q8_0},
    {FWD_TYPE_F32, FWD_TYPE_BF16, FWD_TYPE_F16, FWD_TYPE_Q4_0, FWD_TYPE_Q5_0, FWD_TYPE_Q8_0, FWD_TYPE_F16}};
static const made_types long_rows[2] = {
    {FWD_TYPE_Q3_K, FWD_TYPE_Q2_K, FWD_TYPE_Q4_K, FWD_TYPE_Q6_K, FWD_TYPE_Q4_K, FWD_TYPE_Q6_K, FWD_TYPE_Q4_K},
    {FWD_TYPE_Q8_0, FWD_TYPE_Q4_0, FWD_TYPE_F16, FWD_TYPE_Q4_1, FWD_TYPE_Q5_0, FWD_TYPE_Q5_1, FWD_TYPE_F32}};

static const struct made_shape shapes[] = {
    {"qwen2", 3, 256, 512, 4, 2, 300, 320, true, FWD_TYPE_Q4_K, FWD_TYPE_Q6_K, all_types},
    {"llama", 2, 288, 352, 6, 2, 301, 64, false, FWD_TYPE_Q8_0, MADE_TIED, small_blocks},
    {"qwen2", 2, 320, 96, 8, 1, 37, 64, true, FWD_TYPE_F16, FWD_TYPE_Q4_0, small_blocks},
    {"llama", 2, 256, 2816, 4, 4, 70, 64, false, FWD_TYPE_Q6_K, FWD_TYPE_Q5_K, long_rows},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

/* ---- a pass: one sequence with rows written through its taps
 * ----------------------------------------------------------- */
struct subject {
    const char *path, *caps, *act;
};
/* What is wrong with a declaration: change makes it so (NULL: nothing). If half_store, it is the path that is changed
 * instead: its ffn_up is rounded to binary16, which it does not declare. */
struct lie {
    const char *name;
    void (*change)(enum fwd_op op, struct fwd_numerics *n);
    bool half_store;
    const char *path;
    bool (*guilty)(int op_class); /* of the classes of ops, those that it concerns */
};

struct pass {
    const struct made *m;
    const struct made_shape *shape;
    struct subject subject;
    enum fwd_dtype kv;
    int n_tokens, n_steps; /* in one call, then one by one */
    bool inputs_of_sums;   /* which half of the taps is written */
    uint64_t seed;
    const struct lie *lie; /* or NULL */
    bool plain;            /* only families without underflow, overflow and equal values */
};

struct run {
    const struct pass *pass;
    const struct fwd_path *path;
    struct fwd_session *session;
    struct par_judge *judge;
    struct fwd_path_info info;
    fwd_tap_fn *tap; /* on_tap unless changed */
    void *tap_ud;
};

/* An op whose output is overwritten is not judged, the ops that read it are. Either half of the taps is written, so
 * that each op is judged with adversarial inputs in one of the two. */
static bool is_written(const struct pass *p, enum fwd_op op) {
    switch (op) {
    case FWD_OP_ATTN_NORM:
    case FWD_OP_FFN_NORM:
    case FWD_OP_RESULT_NORM:
    case FWD_OP_QCUR_ROPE:
    case FWD_OP_KCUR_ROPE:
    case FWD_OP_VCUR:
    case FWD_OP_KQV_OUT:
    case FWD_OP_FFN_SWIGLU:
        return !p->inputs_of_sums;
    case FWD_OP_INP_EMBD:
    case FWD_OP_QCUR:
    case FWD_OP_KCUR:
    case FWD_OP_ATTN_OUT:
    case FWD_OP_FFN_INP:
    case FWD_OP_FFN_GATE:
    case FWD_OP_FFN_UP:
    case FWD_OP_FFN_OUT:
    case FWD_OP_L_OUT:
        return p->inputs_of_sums;
    default:
        return false;
    }
}

static bool get_numerics(void *ud, enum fwd_op op, int layer, struct fwd_numerics *out) {
    const struct run *r = ud;
    if (!r->path->numerics(r->session, op, layer, out))
        return false;
    if (r->pass->lie && r->pass->lie->change)
        r->pass->lie->change(op, out);
    return true;
}

/* One family a view in two passes of three (so that keys and values may be equal at all positions), else one a row. */
static void write_view(const struct pass *p, const struct fwd_view *v) {
    double x[MOST_WIDTH];
    int n = (int)v->ne[0];
    ck_assert_int_le(n, MOST_WIDTH);
    for (int i = 0; i < v->n_pos; i++) {
        struct made_noise s = {p->seed * 1000003 + (uint64_t)v->op * 64 + (uint64_t)(v->layer + 1)};
        bool alike = made_noise(&s) % 3 != 0, same = alike && made_noise(&s) % 4 == 0;
        int pos = v->pos0 + i;
        if (!alike)
            s.seed += (uint64_t)pos * 7919;
        (void)made_noise(&s);
        enum adversary a = made_noise(&s) % (alike ? ADV_GENTLE : ADV_COUNT);
        if (p->plain)
            a %= ADV_PLAIN;
        bool kept = v->op == FWD_OP_KCUR || v->op == FWD_OP_KCUR_ROPE || v->op == FWD_OP_VCUR;
        if (kept && a >= ADV_GENTLE && p->kv == FWD_F16)
            a = ADV_NOISE; /* beyond binary16 there are only infinities to see */
        adv_row(a, s.seed + (same ? 0 : (uint64_t)pos * 104729), v->dtype == FWD_F64, x, n);
        uint8_t *row = (uint8_t *)v->data + i * v->nb[1];
        for (int k = 0; k < n; k++)
            if (v->dtype == FWD_F64)
                ((double *)(void *)row)[k] = x[k];
            else
                ((float *)(void *)row)[k] = (float)x[k];
    }
}

static void store_as_half(const struct fwd_view *v) {
    float *x = v->data;
    for (int64_t k = 0; k < v->ne[0] * v->n_pos; k++)
        x[k] = par_f16_to_f32(par_f32_to_f16(x[k]));
}

static int on_tap(void *ud, const struct fwd_view *v) {
    struct run *r = ud;
    if (r->pass->lie && r->pass->lie->half_store && v->op == FWD_OP_FFN_UP)
        store_as_half(v);
    if (is_written(r->pass, v->op)) {
        ck_assert_int_eq(r->info.taps[v->op], FWD_TAP_WRITE);
        write_view(r->pass, v); /* first: the judge has to see what the path goes on with */
    }
    return par_judge_tap(r->judge, v);
}

static void run_tokens(struct run *r, const int32_t *tokens, int pos0, int n) {
    static float logits[MOST_TOKENS * 301];
    static double logits_f64[MOST_TOKENS * 301];
    static uint8_t want[MOST_TOKENS];
    struct fwd_error err = {.message = ""};
    memset(want, 1, sizeof want);
    struct fwd_run_args a = {.size = sizeof a, .tokens = tokens + pos0, .n_tokens = n, .pos0 = pos0};
    a.want_logits = want;
    a.logits = logits;
    a.logits_f64 = logits_f64;
    a.tap = r->tap ? r->tap : on_tap;
    a.tap_ud = r->tap ? r->tap_ud : r;
    ck_assert_msg(r->path->run(r->session, &a, &err) == FWD_OK, "%s", err.message);
}

static void open_run(struct run *r, const struct pass *p) {
    struct fwd_error err = {.message = ""};
    struct fwd_knobs k = {.size = sizeof k, .n_threads = 1, .n_ctx = (int)p->shape->n_ctx, .n_seq = 1};
    k.n_batch = MOST_TOKENS;
    k.kv_type = p->kv;
    k.act = p->subject.act;
    k.caps = p->subject.caps;
    *r = (struct run){.pass = p, .path = fwd_path_find(p->subject.path), .info.size = sizeof r->info};
    r->path->describe(&r->info);
    ck_assert_msg(r->path->open(&r->session, p->m->file, &k, &err) == FWD_OK, "%s", err.message);
    struct par_judge_options o = {.numerics = get_numerics, .numerics_ud = r, .sample_every = 1};
    ck_assert_msg(par_judge_open(&r->judge, p->m->spec, &o, &err) == FWD_OK, "%s", err.message);
}

static void close_run(struct run *r) {
    par_judge_close(r->judge);
    r->path->close(r->session);
}

static void drive(struct run *r) {
    static int32_t tokens[MOST_TOKENS];
    struct fwd_error err = {.message = ""};
    const struct pass *p = r->pass;
    int n = p->n_tokens + p->n_steps;
    for (int i = 0; i < n; i++)
        tokens[i] = (int32_t)(((uint64_t)i * 37 + p->seed) % p->shape->n_vocab);
    ck_assert_int_eq(r->path->seq_begin(r->session, 0, &err), FWD_OK);
    ck_assert_int_eq(par_judge_seq_begin(r->judge, &err), FWD_OK);
    ck_assert_int_eq(par_judge_tokens(r->judge, tokens, n, &err), FWD_OK);
    run_tokens(r, tokens, 0, p->n_tokens);
    for (int i = 0; i < p->n_steps; i++)
        run_tokens(r, tokens, p->n_tokens + i, 1);
}

/* ---- classes of ops: what shares a declaration, but for its lengths
 * ----------------------------------------------------- */
enum op_class {
    CLASS_NORM,
    CLASS_ROPE,
    CLASS_ATTENTION,
    CLASS_SWIGLU,
    CLASS_SUM,
    CLASS_EXACT,
    CLASS_FLOAT,
    CLASS_TYPE
};
enum { MOST_ROWS = 1024, MOST_TYPES = 32, N_CLASSES = CLASS_TYPE + MOST_TYPES };

static uint32_t weight_type(const struct made_shape *s, enum fwd_op op, int layer) {
    if (op == FWD_OP_RESULT_OUTPUT)
        return s->out_type == MADE_TIED ? s->embd_type : s->out_type;
    static const enum fwd_op order[7] = {FWD_OP_QCUR,     FWD_OP_KCUR,   FWD_OP_VCUR,   FWD_OP_ATTN_OUT,
                                         FWD_OP_FFN_GATE, FWD_OP_FFN_UP, FWD_OP_FFN_OUT};
    for (int i = 0; i < 7; i++)
        if (order[i] == op)
            return s->types[layer][i];
    return UINT32_MAX;
}

/* A product of quantised blocks is a class by the weight's type, any other product is one of floats. */
static int class_of(const struct pass *p, enum fwd_op op, int layer) {
    uint32_t type = weight_type(p->shape, op, layer);
    if (type != UINT32_MAX) {
        bool blocks = !strcmp(p->subject.path, "q4k-cpu") && fwd_type_info(type)->block_values > 1;
        return blocks ? (int)(CLASS_TYPE + type) : CLASS_FLOAT;
    }
    switch (op) {
    case FWD_OP_ATTN_NORM:
    case FWD_OP_FFN_NORM:
    case FWD_OP_RESULT_NORM:
        return CLASS_NORM;
    case FWD_OP_QCUR_ROPE:
    case FWD_OP_KCUR_ROPE:
        return CLASS_ROPE;
    case FWD_OP_KQV_OUT:
        return CLASS_ATTENTION;
    case FWD_OP_FFN_SWIGLU:
        return CLASS_SWIGLU;
    case FWD_OP_FFN_INP:
    case FWD_OP_L_OUT:
        return CLASS_SUM;
    default:
        return CLASS_EXACT;
    }
}

static const char *class_name(int c) {
    static const char *const names[] = {"norm", "rope", "attention", "swiglu", "sum", "exact", "product of floats"};
    return c >= CLASS_TYPE ? fwd_type_name((uint32_t)(c - CLASS_TYPE)) : names[c];
}

/* ---- many passes
 * -------------------------------------------------------------------------------------------------------- */
struct found {
    uint64_t n_judged, n_trusted; /* elements; those that have a bound, of ops that are HELD */
    uint64_t n_over[N_CLASSES], n_mismatch[N_CLASSES], n_systematic[N_CLASSES];
    double ratio_max;
    double p999[N_CLASSES][MOST_ROWS]; /* of the ops of each class with enough elements */
    int n_p999[N_CLASSES];
    char first[256]; /* the first accused element */
};

static void add_row(struct found *f, const struct pass *p, const struct par_op_row *row) {
    enum { ENOUGH = 1000 };
    int c = class_of(p, row->op, row->layer);
    bool accused = row->n_over || row->n_nonfinite_mismatch;
    f->n_judged += row->n_judged;
    f->n_trusted += row->verdict == PAR_HELD && c != CLASS_EXACT ? row->n_judged : 0;
    f->n_over[c] += row->n_over;
    f->n_mismatch[c] += row->n_nonfinite_mismatch;
    f->n_systematic[c] += row->n_systematic;
    f->ratio_max = fmax(f->ratio_max, row->ratio_max);
    if (row->n_judged >= ENOUGH && row->verdict == PAR_HELD && f->n_p999[c] < MOST_ROWS)
        f->p999[c][f->n_p999[c]++] = row->ratio_p999;
    if (accused && !f->first[0])
        (void)snprintf(f->first, sizeof f->first,
                       "%s of layer %d (%s), seed %llu: %s, position %d row %lld: expected %.9g, got %.9g, bound %.3g",
                       fwd_op_name(row->op), row->layer, class_name(c), (unsigned long long)p->seed,
                       par_verdict_name(row->verdict), row->worst.pos, (long long)row->worst.row, row->worst.expected,
                       row->worst.got, row->worst.bound);
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The middle one of the p99.9 of a class's ops; 0: none. */
static double middle_p999(struct found *f, int c) {
    int n = f->n_p999[c];
    qsort(f->p999[c], (size_t)n, sizeof f->p999[c][0], compare_doubles);
    return n ? f->p999[c][n / 2] : 0;
}

static void add_pass(struct found *f, const struct pass *p) {
    struct run r;
    struct fwd_error err = {.message = ""};
    const struct par_op_row *rows;
    int n;
    open_run(&r, p);
    drive(&r);
    ck_assert_msg(par_judge_rows(r.judge, &rows, &n, &err) == FWD_OK, "%s", err.message);
    for (int i = 0; i < n; i++)
        if (!rows[i].absent && !is_written(p, rows[i].op)) {
            bool all_nan = rows[i].verdict == PAR_UNMEASURED && rows[i].n_nonfinite_got;
            ck_assert_msg(rows[i].verdict != PAR_UNMEASURED || all_nan, "%s of layer %d: %s", fwd_op_name(rows[i].op),
                          rows[i].layer, rows[i].note);
            add_row(f, p, &rows[i]);
        }
    close_run(&r);
}

/* Both halves of the taps, both cache types in turn, every shape; the first one past a segment of attention's keys
 * every eighth time. */
static void add_seeds(struct found *f, const struct subject *subject, const struct lie *lie, bool plain, int seed0,
                      int n_seeds) {
    bool cached = !strcmp(subject->path, "q4k-cpu");
    for (int sh = 0; sh < N_SHAPES; sh++) {
        struct made m;
        made_open(&m, &shapes[sh]);
        for (int seed = seed0; seed < seed0 + n_seeds; seed++)
            for (int half = 0; half < 2; half++) {
                bool far = sh == 0 && seed % 8 == 0;
                struct pass p = {.m = &m, .shape = &shapes[sh], .subject = *subject, .lie = lie, .plain = plain};
                p.kv = seed % 2 ? FWD_F16 : FWD_F32;
                p.n_tokens = far ? 290 : 17;
                p.n_steps = cached ? 3 : 0;
                p.seed = (uint64_t)seed;
                p.inputs_of_sums = half;
                add_pass(f, &p);
            }
        made_free(&m);
    }
}

/* ---- every declaration holds
 * -------------------------------------------------------------------------------------------- */
static const struct subject subjects[] = {
    {"q4k-cpu", "ref", NULL}, {"q4k-cpu", "avx2", NULL},   {"q4k-cpu", "avx512", NULL}, {"f32", "ref", NULL},
    {"f32", "avx2", NULL},    {"f32", "avx512", NULL},     {"f64", "ref", NULL},        {"f64", "avx2", NULL},
    {"f64", "avx512", NULL},  {"f32", "ref", "as:q4k-cpu"}};
enum { N_SUBJECTS = sizeof subjects / sizeof *subjects };
static bool check_long;

static void print_found(const struct subject *s, struct found *f) {
    printf("%s %s %s: %llu elements, largest ratio %.3f; p99.9", s->path, s->caps, s->act ? s->act : "",
           (unsigned long long)f->n_judged, f->ratio_max);
    for (int c = 0; c < N_CLASSES; c++)
        if (c != CLASS_EXACT && f->n_p999[c])
            printf(" %s %.3f", class_name(c), middle_p999(f, c));
    printf("\n");
}

START_TEST(holds) {
    const struct subject *s = &subjects[_i];
    struct fwd_error err = {.message = ""};
    unsigned caps;
    static struct found f;
    if (fwd_cpu_parse(s->caps, fwd_cpu_detect(), &caps, &err) != FWD_OK) {
        printf("SKIPPED: %s on %s: %s\n", s->path, s->caps, err.message);
        return;
    }
    memset(&f, 0, sizeof f);
    const uint64_t enough = check_long ? 100000000 : 1000000;
    for (int seed = 0; f.n_judged < enough; seed += 8) {
        add_seeds(&f, s, NULL, false, seed, check_long ? 8 : 1);
        for (int c = 0; c < N_CLASSES; c++) {
            ck_assert_msg(f.n_over[c] == 0 && f.n_mismatch[c] == 0, "%s: %llu over, %llu not finite alike: %s",
                          class_name(c), (unsigned long long)f.n_over[c], (unsigned long long)f.n_mismatch[c], f.first);
            ck_assert_msg(f.n_systematic[c] == 0, "%s: %llu systematic", class_name(c),
                          (unsigned long long)f.n_systematic[c]);
        }
        ck_assert_msg(f.ratio_max <= 1, "ratio %g", f.ratio_max);
    }
    /* Quantised bytes and cache rows, compared bit by bit, are not most of it; nor is what no bound holds. */
    ck_assert_uint_ge(f.n_trusted, enough / 3);
    print_found(s, &f);
}
END_TEST

/* ---- the declared order is the path's
 * ---------------------------------------------------------------------------------- */
/* The last input of each product, as it came. */
struct order_check {
    struct run *run;
    struct fwd_view input[FWD_OP_COUNT][2]; /* floats, blocks */
    uint64_t n_same, n_other, n_skipped;
};

static void keep_input(struct order_check *c, const struct fwd_view *v) {
    c->input[v->op][v->dtype == FWD_Q8_K || v->dtype == FWD_Q8_32] = *v;
}

static enum fwd_op input_of(enum fwd_op op) {
    switch (op) {
    case FWD_OP_ATTN_OUT:
        return FWD_OP_KQV_OUT;
    case FWD_OP_FFN_GATE:
    case FWD_OP_FFN_UP:
        return FWD_OP_FFN_NORM;
    case FWD_OP_FFN_OUT:
        return FWD_OP_FFN_SWIGLU;
    case FWD_OP_RESULT_OUTPUT:
        return FWD_OP_RESULT_NORM;
    default:
        return FWD_OP_ATTN_NORM;
    }
}

/* The activations of position i for the second look. */
struct activations {
    double x[MOST_WIDTH], scale[MOST_WIDTH / 32];
    int16_t code[MOST_WIDTH], sum16[MOST_WIDTH / 16];
};

static void load_activations(const struct fwd_view *in, int i, struct activations *a) {
    const uint8_t *row = (const uint8_t *)in->data + i * in->nb[1];
    int block = par_q8_block_values(in->dtype), n = (int)in->ne[0];
    for (int k = 0; k < n && !block; k++)
        a->x[k] = in->dtype == FWD_F64 ? ((const double *)(const void *)row)[k]
                                       : (double)((const float *)(const void *)row)[k];
    for (int b = 0; block && b < n / block; b++) {
        struct spec_q8 q;
        bool sums_agree;
        par_q8_read(in->dtype, row + (size_t)b * par_q8_block_bytes(in->dtype), &q, &sums_agree);
        a->scale[b] = (double)q.d;
        for (int k = 0; k < block; k++)
            a->code[b * block + k] = q.q[k];
        for (int k = 0; k < block / 16; k++)
            a->sum16[(b * block) / 16 + k] = (int16_t)q.sum16[k];
    }
}

/* A few rows of a product at every position: added again as declared, they have to be the same bits. */
static void check_order(struct order_check *c, const struct fwd_view *out) {
    static struct activations a;
    struct fwd_numerics nm = {.size = sizeof nm};
    ck_assert(get_numerics(c->run, out->op, out->layer, &nm));
    bool blocks = nm.act == FWD_Q8_K || nm.act == FWD_Q8_32;
    const struct fwd_view *in = &c->input[blocks ? input_of(out->op) + 1 : input_of(out->op)][blocks];
    const struct spec_weight *w = par_spec_weight(c->run->pass->m->spec, out->op, out->layer);
    const struct spec_weight *bias = par_spec_bias(c->run->pass->m->spec, out->op, out->layer);
    if (in->dtype != nm.act || nm.dequantised) { /* a second format beside the tap's: only one of them is here */
        c->n_skipped++;
        return;
    }
    for (int i = 0; i < out->n_pos; i++) {
        load_activations(in, i, &a);
        for (int64_t r = 0; r < w->n_rows; r += 1 + w->n_rows / 7) {
            struct par_matmul_look look = {.w = w, .row = r, .numerics = &nm, .step = 1};
            look.block = blocks ? par_q8_block_values(nm.act) : 1;
            look.bias = bias ? (const float *)(const void *)bias->data + r : NULL;
            look.x = a.x;
            look.code = a.code;
            look.sum16 = a.sum16;
            look.scale = a.scale;
            const uint8_t *row = (const uint8_t *)out->data + i * out->nb[1];
            double got = out->dtype == FWD_F64 ? ((const double *)(const void *)row)[r]
                                               : (double)((const float *)(const void *)row)[r];
            double again, about; /* against twice the value, so that all of it counts as the order's doing */
            if (!isfinite(got) || got == 0)
                c->n_skipped++;
            else if (par_look_matmul(&look, 2 * got, got, &again, &about) && again == got)
                c->n_same++;
            else
                c->n_other++;
        }
    }
}

static int on_tap_of_order(void *ud, const struct fwd_view *v) {
    struct order_check *c = ud;
    if (weight_type(c->run->pass->shape, v->op, v->layer) != UINT32_MAX)
        check_order(c, v);
    if (is_written(c->run->pass, v->op))
        write_view(c->run->pass, v);
    keep_input(c, v);
    return 0;
}

static void lanes_of_two(enum fwd_op op, struct fwd_numerics *n) {
    (void)op;
    n->lanes = 2;
    n->chain_extra += 64;
}

/* Second looks rest on it, and bounds by partial sums. */
START_TEST(order) {
    static const char *const paths[] = {"q4k-cpu", "f32", "f64"};
    const struct lie other = {"two lanes", lanes_of_two, false, NULL, NULL};
    static struct order_check c[2];
    memset(c, 0, sizeof c);
    for (int wrong = 0; wrong < 2; wrong++)
        for (int sh = 0; sh < N_SHAPES; sh++) {
            struct made m;
            struct run r;
            made_open(&m, &shapes[sh]);
            struct pass p = {.m = &m, .shape = &shapes[sh], .subject = {paths[_i], NULL, NULL}, .n_tokens = 9};
            p.kv = FWD_F32;
            p.lie = wrong ? &other : NULL;
            p.plain = true;
            p.seed = 5;
            open_run(&r, &p);
            c[wrong].run = &r;
            r.tap = on_tap_of_order;
            r.tap_ud = &c[wrong];
            drive(&r);
            close_run(&r);
            made_free(&m);
        }
    printf("%s: %llu elements added again, %llu skipped; in two lanes %llu of them are others\n", paths[_i],
           (unsigned long long)c[0].n_same, (unsigned long long)c[0].n_skipped, (unsigned long long)c[1].n_other);
    ck_assert_uint_eq(c[0].n_other, 0);
    ck_assert_uint_ge(c[0].n_same, 3000);
    ck_assert_uint_ge(c[1].n_other, 1000);
}
END_TEST

/* ---- a declaration that promises too much fails
 * -------------------------------------------------------------------------- */
static bool is_product(int c) {
    return c >= CLASS_FLOAT;
}
static bool is_float_product(int c) {
    return c == CLASS_FLOAT;
}
static bool is_exact(int c) {
    return c == CLASS_EXACT;
}
static bool is_norm(int c) {
    return c == CLASS_NORM;
}
static bool is_rope(int c) {
    return c == CLASS_ROPE;
}
static bool is_attention(int c) {
    return c == CLASS_ATTENTION;
}
static bool is_swiglu(int c) {
    return c == CLASS_SWIGLU;
}
static bool is_sum(int c) {
    return c == CLASS_SUM;
}

static bool multiplies(enum fwd_op op) {
    return op == FWD_OP_QCUR || op == FWD_OP_KCUR || op == FWD_OP_VCUR || op == FWD_OP_ATTN_OUT ||
           op == FWD_OP_FFN_GATE || op == FWD_OP_FFN_UP || op == FWD_OP_FFN_OUT || op == FWD_OP_RESULT_OUTPUT;
}
static void chain_of_one(enum fwd_op op, struct fwd_numerics *n) {
    if (multiplies(op)) {
        n->chain_block = 1 << 30;
        n->chain_per_block = 1;
        n->chain_extra = 0;
        n->term_roundings = 0;
    }
}
static void adds_in_double(enum fwd_op op, struct fwd_numerics *n) {
    if (multiplies(op))
        n->accumulator = FWD_ACC_F64;
}
static void adds_exactly(enum fwd_op op, struct fwd_numerics *n) {
    if (multiplies(op))
        n->accumulator = FWD_ACC_EXACT;
}
static void other_tie_rule(enum fwd_op op, struct fwd_numerics *n) {
    (void)op;
    if (n->act_rule == FWD_ACT_AMAX127 && n->accumulator == FWD_ACC_EXACT)
        n->act_rule = FWD_ACT_AMAX127_AWAY;
}
/* The reference's cache rows are F32 in half of the passes. */
static void cache_of_halves(enum fwd_op op, struct fwd_numerics *n) {
    if (op == FWD_OP_K_CACHE || op == FWD_OP_V_CACHE)
        n->act = n->act == FWD_F16 ? FWD_F32 : FWD_F16;
}
static void norm_rounded_once(enum fwd_op op, struct fwd_numerics *n) {
    if (op == FWD_OP_ATTN_NORM || op == FWD_OP_FFN_NORM || op == FWD_OP_RESULT_NORM) {
        n->final_roundings = 1;
        n->sqrt_ulp = n->div_ulp = 0;
    }
}
static void rope_in_double(enum fwd_op op, struct fwd_numerics *n) {
    if (op == FWD_OP_QCUR_ROPE || op == FWD_OP_KCUR_ROPE)
        n->accumulator = FWD_ACC_F64;
}
static void swiglu_in_double(enum fwd_op op, struct fwd_numerics *n) {
    if (op == FWD_OP_FFN_SWIGLU)
        n->accumulator = FWD_ACC_F64;
}
static void attention_in_double(enum fwd_op op, struct fwd_numerics *n) {
    if (op == FWD_OP_KQV_OUT)
        n->accumulator = FWD_ACC_F64;
}
static void sum_in_double(enum fwd_op op, struct fwd_numerics *n) {
    if (op == FWD_OP_FFN_INP || op == FWD_OP_L_OUT)
        n->store = FWD_F64;
}

static const struct lie lies[] = {
    {"products in a chain of one", chain_of_one, false, "q4k-cpu", is_product},
    {"products added in double", adds_in_double, false, "q4k-cpu", is_product},
    {"products added exactly", adds_exactly, false, "q4k-cpu", is_product},
    {"products added in double by the reference", adds_in_double, false, "f32", is_float_product},
    {"products in a chain of one in the reference", chain_of_one, false, "f32", is_float_product},
    {"a store as F16 that is not declared", NULL, true, "q4k-cpu", is_product},
    {"another tie rule", other_tie_rule, false, "q4k-cpu", is_exact},
    {"a cache of the other type", cache_of_halves, false, "f32", is_exact},
    {"a norm rounded once", norm_rounded_once, false, "q4k-cpu", is_norm},
    {"rotations in double", rope_in_double, false, "q4k-cpu", is_rope},
    {"attention in double", attention_in_double, false, "q4k-cpu", is_attention},
    {"swiglu in double", swiglu_in_double, false, "q4k-cpu", is_swiglu},
    {"sums in double", sum_in_double, false, "q4k-cpu", is_sum},
};
enum { N_LIES = sizeof lies / sizeof *lies };

START_TEST(too_much) {
    const struct lie *lie = &lies[_i];
    const struct subject s = {lie->path, NULL, NULL};
    static struct found f;
    memset(&f, 0, sizeof f);
    add_seeds(&f, &s, lie, false, 1, 2);
    uint64_t n_guilty = 0;
    for (int c = 0; c < N_CLASSES; c++) {
        if (lie->guilty(c))
            n_guilty += f.n_over[c];
        else
            ck_assert_msg(f.n_over[c] == 0, "%s: %s is accused, %llu times: %s", lie->name, class_name(c),
                          (unsigned long long)f.n_over[c], f.first);
    }
    printf("%s: %llu of %llu\n", lie->name, (unsigned long long)n_guilty, (unsigned long long)f.n_judged);
    ck_assert_msg(n_guilty > 0, "%s: nothing shows it", lie->name);
}
END_TEST

/* ---- and so does one that promises too little
 * ---------------------------------------------------------------------------- */
/* Bounds at least ten times as wide, of every op. */
static void ten_times(enum fwd_op op, struct fwd_numerics *n) {
    n->chain_per_block *= 200;
    n->chain_extra = 200 * n->chain_extra;
    n->term_roundings *= 10;
    n->final_roundings = 10 * n->final_roundings + 10;
    n->sqrt_ulp *= 10;
    n->div_ulp *= 10;
    if (n->exp_ulp > 0)
        n->exp_ulp = 10 * n->exp_ulp + 20;
    if (n->sincos_ulp > 0)
        n->sincos_ulp = 10 * n->sincos_ulp + 15;
    n->lanes = n->key_lanes = 0; /* of a declared order the chain is known, whatever else is said of it */
    if (n->store == FWD_F32 && (op == FWD_OP_QCUR_ROPE || op == FWD_OP_KCUR_ROPE || op == FWD_OP_FFN_SWIGLU))
        n->accumulator = FWD_ACC_F32;
    if (op == FWD_OP_FFN_INP || op == FWD_OP_L_OUT)
        n->store = FWD_F16;
}
static const struct lie generous = {"ten times", ten_times, false, NULL, NULL};

/* Half of the p99.9 that the middle one of the ops of a class has with these seeds and declarations as they are: what
 * the last bits of another C library may change is far less, a bound ten times as wide is far more. */
static const struct floor_row {
    const char *path, *class_name;
    double p999;
} floors[] = {
    {"q4k-cpu", "norm", 0.2},
    {"q4k-cpu", "rope", 0.24},
    {"q4k-cpu", "attention", 0.098},
    {"q4k-cpu", "swiglu", 0.23},
    {"q4k-cpu", "sum", 0.25},
    {"q4k-cpu", "product of floats", 0.086},
    {"q4k-cpu", "Q4_0", 0.2},
    {"q4k-cpu", "Q4_1", 0.15},
    {"q4k-cpu", "Q5_0", 0.2},
    {"q4k-cpu", "Q5_1", 0.14},
    {"q4k-cpu", "Q8_0", 0.21},
    {"q4k-cpu", "Q2_K", 0.24},
    {"q4k-cpu", "Q3_K", 0.28},
    {"q4k-cpu", "Q4_K", 0.27},
    {"q4k-cpu", "Q5_K", 0.25},
    {"q4k-cpu", "Q6_K", 0.27},
    {"f32", "norm", 0.16},
    {"f32", "rope", 0.48},
    {"f32", "attention", 0.48},
    {"f32", "swiglu", 0.48},
    {"f32", "sum", 0.25},
    {"f32", "product of floats", 0.082},
    {"f64", "attention", 0.049},
    {"f64", "product of floats", 0.027},
};
enum { N_FLOORS = sizeof floors / sizeof *floors };

START_TEST(too_little) {
    static const char *const paths[] = {"q4k-cpu", "f32", "f64"};
    static struct found clean, wide;
    const struct subject s = {paths[_i], NULL, NULL};
    memset(&clean, 0, sizeof clean);
    memset(&wide, 0, sizeof wide);
    add_seeds(&clean, &s, NULL, true, 0, 2);
    add_seeds(&wide, &s, &generous, true, 0, 2);
    int n_checked = 0;

    for (int i = 0; i < N_FLOORS; i++)
        for (int c = 0; c < N_CLASSES; c++) {
            if (strcmp(floors[i].path, s.path) || strcmp(floors[i].class_name, class_name(c)))
                continue;
            ck_assert_msg(middle_p999(&clean, c) >= floors[i].p999, "%s, %s: p99.9 %g, expected at least %g", s.path,
                          class_name(c), middle_p999(&clean, c), floors[i].p999);
            ck_assert_msg(middle_p999(&wide, c) < floors[i].p999,
                          "%s, %s: a bound ten times as wide gives %g, which passes", s.path, class_name(c),
                          middle_p999(&wide, c));
            n_checked++;
        }
    ck_assert_int_eq(n_checked, _i == 0 ? 16 : _i == 1 ? 6 : 2);
}
END_TEST

int main(void) {
    const char *asked = getenv("CHECK_LONG");
    check_long = asked && asked[0] == '1';
    Suite *s = suite_create("declared");
    const struct {
        const char *name;
        const TTest *test;
        int n;
    } cases[] = {{"holds", holds, N_SUBJECTS},
                 {"order", order, 3},
                 {"too_much", too_much, N_LIES},
                 {"too_little", too_little, 3}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        TCase *t = tcase_create(cases[i].name);
        tcase_set_timeout(t, check_long ? 1800 : 120);
        tcase_add_loop_test(t, cases[i].test, 0, cases[i].n);
        suite_add_tcase(s, t);
    }
    SRunner *runner = srunner_create(s);
    srunner_set_fork_status(runner, CK_FORK);
    srunner_run_all(runner, CK_ENV);
    int n_run = srunner_ntests_run(runner), n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_run == 0 ? 3 : n_failed != 0;
}
