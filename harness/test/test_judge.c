/* The streaming judge on whole forward passes of a small model that has every block type: each path is inside every
 * bound, and a value changed in one op is seen in that op and in no other. */
#include "spec/judge.h"

#include "test/made_model.h"

#include <check.h>
#include <math.h>
#include <stdio.h>

enum { EMBD = 256, FF = 512, HEADS = 4, KV = 2, VOCAB = 300, LAYERS = 3, N_TOKENS = 14, N_PROMPT = 10 };

/* ---- the model
 * ------------------------------------------------------------------------------------------------------- */
static const made_types layer_types[LAYERS] = {
    {FWD_TYPE_Q4_K, FWD_TYPE_Q4_K, FWD_TYPE_Q6_K, FWD_TYPE_Q4_K, FWD_TYPE_Q5_K, FWD_TYPE_Q4_K, FWD_TYPE_Q6_K},
    {FWD_TYPE_Q4_0, FWD_TYPE_Q4_1, FWD_TYPE_Q5_0, FWD_TYPE_Q5_1, FWD_TYPE_Q8_0, FWD_TYPE_Q4_1, FWD_TYPE_Q5_0},
    {FWD_TYPE_Q2_K, FWD_TYPE_Q3_K, FWD_TYPE_Q8_0, FWD_TYPE_F16, FWD_TYPE_BF16, FWD_TYPE_F32, FWD_TYPE_Q5_K}};

static void make_model(struct made *m, const char *arch, bool bias, bool tied) {
    struct made_shape shape = {arch, LAYERS, EMBD, FF, HEADS, KV, VOCAB, 128, bias, 0, FWD_TYPE_Q6_K, layer_types};
    shape.embd_type = tied ? FWD_TYPE_Q8_0 : FWD_TYPE_Q4_K;
    shape.out_type = tied ? MADE_TIED : FWD_TYPE_Q6_K;
    made_open(m, &shape);
}

/* ---- a run
 * ----------------------------------------------------------------------------------------------------------- */
/* One value written through a tap before the judge sees it. */
struct tamper {
    enum fwd_op op;
    int layer, pos; /* layer -2: none; pos -1, -2: NaN, 1e12 into one value of every position instead */
};

struct run {
    const struct made *m;
    const struct fwd_path *path;
    struct fwd_session *session;
    struct par_judge *judge;
    struct tamper tamper;
    bool done;      /* the tamper found its tap */
    bool impatient; /* asks for the rows after every call, so that no call waits for another */
};

static bool get_numerics(void *ud, enum fwd_op op, int il, struct fwd_numerics *out) {
    const struct run *r = ud;
    return r->path->numerics(r->session, op, il, out);
}

/* Adds about 1 % to the largest of the first 64 values of the row of tamper.pos. */
static void write_tap(struct run *r, const struct fwd_view *v) {
    bool cache = v->op == FWD_OP_K_CACHE || v->op == FWD_OP_V_CACHE;
    int at = cache ? r->tamper.pos : r->tamper.pos - v->pos0;
    /* In the order of rows the last position is the first to be wrong, in that of positions the first. */
    for (int i = 0; r->tamper.pos < 0 && v->dtype == FWD_F32 && i < v->n_pos; i++)
        ((float *)(void *)((uint8_t *)v->data + i * v->nb[1]))[20 - v->pos0 - i] = r->tamper.pos == -1 ? NAN : 1e12f;
    uint8_t *data = (uint8_t *)v->data + at * v->nb[cache ? 2 : 1];
    if (cache ? at >= v->ne[2] : at < 0 || at >= v->n_pos)
        return;
    r->done = true;
    if (v->dtype == FWD_F16) {
        data[0] ^= 1; /* one binary16 ulp */
        return;
    }
    if (v->dtype == FWD_Q8_K || v->dtype == FWD_Q8_32) {
        bool k = v->dtype == FWD_Q8_K; /* the first code, and with it the sum it is part of */
        int8_t *code = (int8_t *)data + (k ? 4 : 8);
        int by = *code > 0 ? -1 : 1;
        *code = (int8_t)(*code + by);
        if (k)
            *(int16_t *)(void *)(data + 260) = (int16_t)(*(int16_t *)(void *)(data + 260) + by);
        else
            *(int32_t *)(void *)(data + 4) += by;
        return;
    }
    int best = 0;
    for (int i = 0; i < 64; i++) {
        double x = v->dtype == FWD_F64 ? ((double *)(void *)data)[i] : (double)((float *)(void *)data)[i];
        double y = v->dtype == FWD_F64 ? ((double *)(void *)data)[best] : (double)((float *)(void *)data)[best];
        best = fabs(x) > fabs(y) ? i : best;
    }
    if (v->dtype == FWD_F64)
        ((double *)(void *)data)[best] *= 1.01;
    else
        ((float *)(void *)data)[best] *= 1.01f;
}

static int on_tap(void *ud, const struct fwd_view *v) {
    struct run *r = ud;
    if (v->op == r->tamper.op && v->layer == r->tamper.layer)
        write_tap(r, v);
    return par_judge_tap(r->judge, v);
}

static void run_tokens(struct run *r, const int32_t *tokens, int pos0, int n) {
    static float logits[N_TOKENS * VOCAB];
    static double logits_f64[N_TOKENS * VOCAB];
    uint8_t want[N_TOKENS];
    struct fwd_error err = {.message = ""};
    memset(want, 1, sizeof want);
    struct fwd_run_args a = {.size = sizeof a, .tokens = tokens + pos0, .n_tokens = n, .pos0 = pos0};
    a.want_logits = want;
    a.logits = logits;
    a.logits_f64 = logits_f64;
    a.tap = on_tap;
    a.tap_ud = r;
    ck_assert_msg(r->path->run(r->session, &a, &err) == FWD_OK, "%s", err.message);
    const struct par_op_row *rows;
    int n_rows;
    if (r->impatient)
        ck_assert_msg(par_judge_rows(r->judge, &rows, &n_rows, &err) == FWD_OK, "%s", err.message);
}

struct schedule {
    const char *path;
    int chunk;   /* of the prompt */
    int n_steps; /* single tokens after it */
    enum fwd_dtype kv;
    int every, at; /* sample */
    const char *act;
};

static void open_run(struct run *r, const struct made *m, const struct schedule *s, fwd_config_hook *hook) {
    struct fwd_error err = {.message = ""};
    struct fwd_knobs k = {.size = sizeof k, .n_threads = 1, .n_ctx = 64, .n_seq = 1, .n_batch = N_TOKENS};
    k.kv_type = s->kv;
    k.act = s->act;
    k.config_hook = hook;
    *r = (struct run){.m = m, .path = fwd_path_find(s->path), .tamper.layer = -2};
    ck_assert_msg(r->path != NULL, "no path %s", s->path);
    ck_assert_msg(r->path->open(&r->session, m->file, &k, &err) == FWD_OK, "%s", err.message);
    struct par_judge_options o = {.numerics = get_numerics, .numerics_ud = r, .sample_every = s->every};
    o.sample_at = s->at;
    o.pool = s->n_steps > 0 ? m->pool : NULL; /* threads take part where there is the most to do */
    ck_assert_msg(par_judge_open(&r->judge, m->spec, &o, &err) == FWD_OK, "%s", err.message);
}

static void go(struct run *r, const struct schedule *s) {
    struct fwd_error err = {.message = ""};
    int32_t tokens[N_TOKENS];
    for (int i = 0; i < N_TOKENS; i++)
        tokens[i] = (i * 37 + 11) % VOCAB;
    ck_assert_int_eq(r->path->seq_begin(r->session, 0, &err), FWD_OK);
    ck_assert_int_eq(par_judge_seq_begin(r->judge, &err), FWD_OK);
    ck_assert_int_eq(par_judge_tokens(r->judge, tokens, N_TOKENS, &err), FWD_OK);
    for (int at = 0; at < N_PROMPT; at += s->chunk)
        run_tokens(r, tokens, at, N_PROMPT - at < s->chunk ? N_PROMPT - at : s->chunk);
    for (int i = 0; i < s->n_steps; i++)
        run_tokens(r, tokens, N_PROMPT + i, 1);
}

static void close_run(struct run *r) {
    par_judge_close(r->judge);
    r->path->close(r->session);
}

static const struct par_op_row *get_rows(const struct run *r, int *n) {
    const struct par_op_row *rows;
    struct fwd_error err = {.message = ""};
    ck_assert_msg(par_judge_rows(r->judge, &rows, n, &err) == FWD_OK, "%s", err.message);
    return rows;
}

/* ---- tests
 * ----------------------------------------------------------------------------------------------------------- */
static const struct schedule schedules[] = {
    {"f32", N_PROMPT, 0, FWD_F16, 1, 0, NULL},
    {"f64", N_PROMPT, 0, FWD_F16, 1, 0, NULL},
    {"f32", N_PROMPT, 0, FWD_F16, 1, 0, "as:q4k-cpu"},
    {"q4k-cpu", N_PROMPT, 4, FWD_F16, 1, 0, NULL},
    {"q4k-cpu", 3, 2, FWD_F32, 1, 0, NULL},
    {"q4k-cpu", 1, 0, FWD_F16, 1, 0, NULL},
    {"q4k-cpu", 4, 4, FWD_F16, 4, 2, NULL},
};
enum { N_SCHEDULES = sizeof schedules / sizeof *schedules };

/* Every op that the path declares is judged and inside its bound; the others say that they are absent. */
static void check_held(const struct run *r) {
    int n, n_held = 0;
    const struct par_op_row *rows = get_rows(r, &n);
    ck_assert_int_eq(n, 1 + LAYERS * (FWD_OP_L_OUT - FWD_OP_ATTN_NORM + 1) + FWD_OP_COUNT - FWD_OP_RESULT_NORM);
    for (int i = 0; i < n; i++) {
        struct fwd_numerics nm = {.size = sizeof nm};
        const char *op = fwd_op_name(rows[i].op);
        if (!get_numerics((void *)(uintptr_t)r, rows[i].op, rows[i].layer, &nm)) {
            ck_assert_msg(rows[i].verdict == PAR_UNMEASURED && strstr(rows[i].note, "absent"), "%s-%d: %s", op,
                          rows[i].layer, rows[i].note);
            continue;
        }
        n_held++;
        ck_assert_msg(rows[i].verdict == PAR_HELD,
                      "%s-%d: %s, ratio %g, position %d row %lld: expected %.9g, got %.9g; %s", op, rows[i].layer,
                      par_verdict_name(rows[i].verdict), rows[i].ratio_max, rows[i].worst.pos,
                      (long long)rows[i].worst.row, rows[i].worst.expected, rows[i].worst.got, rows[i].note);
        ck_assert_msg(rows[i].n_judged > 0 && rows[i].ratio_max <= 1, "%s-%d", op, rows[i].layer);
    }
    ck_assert_int_ge(n_held, 3 + LAYERS * 17); /* all but the _q8 ops exist on every path */
}

START_TEST(held) {
    const struct schedule *s = &schedules[_i];
    for (int kind = 0; kind < 2; kind++) {
        struct made m;
        struct run r;
        make_model(&m, kind ? "llama" : "qwen2", !kind, kind);
        open_run(&r, &m, s, NULL);
        go(&r, s);
        check_held(&r);
        int n_positions, want = 0;
        uint64_t n_elements;
        par_judge_coverage(r.judge, &n_positions, &n_elements);
        for (int p = 0; p < N_PROMPT + s->n_steps; p++)
            want += p % s->every == s->at;
        ck_assert_int_eq(n_positions, want);
        ck_assert_uint_gt(n_elements, (uint64_t)want * LAYERS * EMBD * 10);
        close_run(&r);
        made_free(&m);
    }
}
END_TEST

/* A change written through one tap, at position 6: that op of that layer is accused, at that position, and nothing else
 * is: what follows is computed from the changed value, and judged from it. */
static void check_one_accused(const struct run *r, const struct tamper *t) {
    int n;
    const struct par_op_row *rows = get_rows(r, &n);
    for (int i = 0; i < n; i++) {
        bool guilty = rows[i].op == t->op && rows[i].layer == t->layer;
        const char *op = fwd_op_name(rows[i].op);
        ck_assert_msg((rows[i].verdict == PAR_DIVERGED) == guilty, "%s-%d changed: %s-%d is %s (%s), ratio %g",
                      fwd_op_name(t->op), t->layer, op, rows[i].layer, par_verdict_name(rows[i].verdict), rows[i].note,
                      rows[i].ratio_max);
        if (guilty)
            ck_assert_msg(rows[i].worst.pos == t->pos, "%s-%d: position %d", op, rows[i].layer, rows[i].worst.pos);
    }
}

static void tamper_all(const struct schedule *s) {
    struct made m;
    struct run r;
    int n_tried = 0;
    make_model(&m, "qwen2", true, false);
    for (enum fwd_op op = 0; op < FWD_OP_COUNT; op++) {
        struct fwd_path_info info = {.size = sizeof info};
        fwd_path_find(s->path)->describe(&info);
        if (info.taps[op] != FWD_TAP_WRITE)
            continue;
        open_run(&r, &m, s, NULL);
        r.tamper = (struct tamper){op, fwd_op_in_layer(op) ? 1 : -1, 6};
        go(&r, s);
        ck_assert_msg(r.done, "%s never came", fwd_op_name(op));
        check_one_accused(&r, &r.tamper);
        close_run(&r);
        n_tried++;
    }
    ck_assert_int_ge(n_tried, 18);
    made_free(&m);
}

START_TEST(local) {
    const struct schedule all[] = {{"q4k-cpu", N_PROMPT, 0, FWD_F16, 1, 0, NULL},
                                   {"f32", N_PROMPT, 0, FWD_F16, 1, 0, NULL},
                                   {"f64", N_PROMPT, 0, FWD_F16, 1, 0, NULL}};
    tamper_all(&all[_i]);
}
END_TEST

/* The same rows, whatever was judged together with what. */
static void check_same_rows(const struct run *a, const struct run *b, bool with_cache) {
    int n, n_b;
    const struct par_op_row *x = get_rows(a, &n), *y = get_rows(b, &n_b);
    ck_assert_int_eq(n, n_b);
    for (int i = 0; i < n; i++) {
        if (!with_cache && (x[i].op == FWD_OP_K_CACHE || x[i].op == FWD_OP_V_CACHE))
            continue; /* judged whole at every call, so their counts are the calls' */
        const char *op = fwd_op_name(x[i].op);
        ck_assert_msg(x[i].verdict == y[i].verdict && !strcmp(x[i].note, y[i].note), "%s-%d: %s %s, %s %s", op,
                      x[i].layer, par_verdict_name(x[i].verdict), x[i].note, par_verdict_name(y[i].verdict), y[i].note);
        ck_assert_msg(x[i].n_judged == y[i].n_judged && x[i].n_over == y[i].n_over &&
                          x[i].n_nonfinite_got == y[i].n_nonfinite_got &&
                          x[i].n_nonfinite_mismatch == y[i].n_nonfinite_mismatch,
                      "%s-%d: counts %llu and %llu", op, x[i].layer, (unsigned long long)x[i].n_judged,
                      (unsigned long long)y[i].n_judged);
        const double p[] = {x[i].ratio_max, x[i].ratio_p50,      x[i].ratio_p99,  x[i].ratio_p999,
                            x[i].worst.got, x[i].worst.expected, x[i].worst.bound};
        const double q[] = {y[i].ratio_max, y[i].ratio_p50,      y[i].ratio_p99,  y[i].ratio_p999,
                            y[i].worst.got, y[i].worst.expected, y[i].worst.bound};
        for (int k = 0; k < 7; k++)
            ck_assert_msg(p[k] == q[k] || (isnan(p[k]) && isnan(q[k])), "%s-%d: figure %d is %.17g and %.17g", op,
                          x[i].layer, k, p[k], q[k]);
        ck_assert_msg(x[i].worst.pos == y[i].worst.pos && x[i].worst.row == y[i].worst.row,
                      "%s-%d: worst at %d row %lld, and at %d row %lld", op, x[i].layer, x[i].worst.pos,
                      (long long)x[i].worst.row, y[i].worst.pos, (long long)y[i].worst.row);
    }
}

/* All are equally wrong: the first judged position is named. */
static void check_first_named(const struct run *r, const struct tamper *t, int first) {
    int n;
    const struct par_op_row *rows = get_rows(r, &n);
    for (int i = 0; i < n; i++)
        if (rows[i].op == t->op && rows[i].layer == t->layer)
            ck_assert_msg(rows[i].worst.pos == first && rows[i].worst.row == 20 - first, "position %d row %lld",
                          rows[i].worst.pos, (long long)rows[i].worst.row);
}

/* Calls of few positions wait for each other: no figure may show that. Nor does the schedule show in an op's row. */
START_TEST(waiting) {
    static const struct tamper tampers[] = {{FWD_OP_COUNT, -2, 0},          {FWD_OP_FFN_OUT, 1, 6},
                                            {FWD_OP_RESULT_OUTPUT, -1, 12}, {FWD_OP_FFN_GATE, 1, -1},
                                            {FWD_OP_QCUR, 0, -1},           {FWD_OP_FFN_UP, 2, -2}};
    struct made m;
    make_model(&m, "qwen2", true, false);
    for (int every = 1; every <= 4; every += 3) {
        const struct schedule all[] = {{"q4k-cpu", 1, 4, FWD_F16, every, 2 % every, NULL},
                                       {"q4k-cpu", 1, 4, FWD_F16, every, 2 % every, NULL},
                                       {"q4k-cpu", N_PROMPT, 4, FWD_F16, every, 2 % every, NULL}};
        struct run r[3];
        for (int i = 0; i < 3; i++) {
            open_run(&r[i], &m, &all[i], NULL);
            r[i].tamper = tampers[_i];
            r[i].impatient = i == 0;
            go(&r[i], &all[i]);
        }
        check_same_rows(&r[0], &r[1], true);
        check_same_rows(&r[0], &r[2], false);
        if (tampers[_i].pos < 0)
            check_first_named(&r[1], &tampers[_i], all[1].at);
        int n[3];
        uint64_t n_elements;
        for (int i = 0; i < 3; i++)
            par_judge_coverage(r[i].judge, &n[i], &n_elements);
        ck_assert_int_eq(n[0], n[1]);
        ck_assert_int_eq(n[0], n[2]);
        /* A new sequence ends the wait, and its rows come on top. */
        for (int i = 0; i < 2; i++)
            go(&r[i], &all[i]);
        check_same_rows(&r[0], &r[1], true);
        for (int i = 0; i < 3; i++)
            close_run(&r[i]);
    }
    made_free(&m);
}
END_TEST

static void plant_eps(void *ud, struct fwd_config *c) {
    (void)ud;
    c->norm_eps = 1e-5f;
}
static void plant_modulo(void *ud, struct fwd_config *c) {
    (void)ud;
    for (int h = 0; h < c->n_head; h++)
        c->kv_head_of[h] = h % c->n_kv_head;
}
static void plant_theta(void *ud, struct fwd_config *c) {
    (void)ud;
    c->rope_theta = 10000;
}
static void plant_pairing(void *ud, struct fwd_config *c) {
    (void)ud;
    c->rope_pairing = FWD_ROPE_NORM;
}

/* Faults in what all paths share: the judge's own reading of the file sees them, on every path. */
static const struct shared_fault {
    fwd_config_hook *hook;
    const char *line;
    enum fwd_op guilty[3];
    int n_guilty;
} shared_faults[] = {
    {plant_eps,
     "norm_eps: file says 9.99999997e-07, engine has 9.99999975e-06\n",
     {FWD_OP_ATTN_NORM, FWD_OP_FFN_NORM, FWD_OP_RESULT_NORM},
     3},
    {plant_modulo, "kv_head_of[1]: file says 0, engine has 1\n", {FWD_OP_KQV_OUT}, 1},
    {plant_theta, "rope_theta: file says 1000000, engine has 10000\n", {FWD_OP_QCUR_ROPE, FWD_OP_KCUR_ROPE}, 2},
    {plant_pairing,
     "rope_pairing: file says neox (i, i+d/2), engine has norm\n",
     {FWD_OP_QCUR_ROPE, FWD_OP_KCUR_ROPE},
     2},
};
enum { N_SHARED = sizeof shared_faults / sizeof *shared_faults };

START_TEST(shared_code) {
    const struct shared_fault *f = &shared_faults[_i];
    const char *const paths[] = {"f32", "f64", "q4k-cpu"};
    struct made m;
    char text[1024];
    make_model(&m, "qwen2", true, false);
    for (int p = 0; p < 3; p++) {
        const struct schedule s = {paths[p], N_PROMPT, 0, FWD_F16, 1, 0, NULL};
        struct run r;
        int n;
        open_run(&r, &m, &s, f->hook);
        go(&r, &s);
        ck_assert_int_eq(par_spec_compare_config(m.spec, r.path->config(r.session), text, sizeof text), 1);
        ck_assert_str_eq(text, f->line);
        const struct par_op_row *rows = get_rows(&r, &n);
        for (int i = 0; i < n; i++) {
            bool guilty = false;
            for (int g = 0; g < f->n_guilty; g++)
                guilty = guilty || rows[i].op == f->guilty[g];
            ck_assert_msg((rows[i].verdict == PAR_DIVERGED) == guilty, "%s: %s-%d is %s, ratio %g", paths[p],
                          fwd_op_name(rows[i].op), rows[i].layer, par_verdict_name(rows[i].verdict), rows[i].ratio_max);
        }
        close_run(&r);
    }
    made_free(&m);
}
END_TEST

START_TEST(compare_text) {
    struct made m;
    struct run r;
    char text[1024], small[20];
    const struct schedule s = {"f32", N_PROMPT, 0, FWD_F16, 1, 0, NULL};
    make_model(&m, "qwen2", true, false);
    open_run(&r, &m, &s, NULL);
    struct fwd_config c = *r.path->config(r.session);
    ck_assert_int_eq(par_spec_compare_config(m.spec, &c, text, sizeof text), 0);
    ck_assert_str_eq(text, "");
    c.n_layer = 2;
    c.n_vocab = 7;
    c.tied_head = true;
    ck_assert_int_eq(par_spec_compare_config(m.spec, &c, text, sizeof text), 3);
    ck_assert_str_eq(text, "n_layer: file says 3, engine has 2\nn_vocab: file says 300, engine has 7\n"
                           "tied_head: file says 0, engine has 1\n");
    ck_assert_int_eq(par_spec_compare_config(m.spec, &c, small, sizeof small), 3);
    ck_assert_str_eq(small, "n_layer: file says ");
    close_run(&r);
    made_free(&m);
}
END_TEST

START_TEST(silent_taps) {
    /* Nothing came: everything is UNMEASURED, nothing is HELD. */
    struct made m;
    struct run r;
    int n;
    const struct schedule s = {"q4k-cpu", N_PROMPT, 0, FWD_F16, 1, 0, NULL};
    make_model(&m, "qwen2", true, false);
    open_run(&r, &m, &s, NULL);
    const struct par_op_row *rows = get_rows(&r, &n);
    for (int i = 0; i < n; i++)
        ck_assert_msg(rows[i].verdict == PAR_UNMEASURED && rows[i].note[0], "%s", fwd_op_name(rows[i].op));
    close_run(&r);
    made_free(&m);
}
END_TEST

START_TEST(bad_taps) {
    /* A tap that makes no sense is kept as a failure and does not stop the path. */
    struct made m;
    struct run r;
    struct fwd_error err = {.message = ""};
    const struct par_op_row *rows;
    int n;
    const struct schedule s = {"f32", N_PROMPT, 0, FWD_F16, 1, 0, NULL};
    make_model(&m, "qwen2", true, false);
    open_run(&r, &m, &s, NULL);
    float x[EMBD] = {0};
    struct fwd_view v = {.op = FWD_OP_ATTN_NORM, .layer = LAYERS, .n_pos = 1, .ne = {EMBD, 1, 1, 1}, .data = x};
    ck_assert_int_eq(par_judge_tap(r.judge, &v), 0);
    ck_assert_int_eq(par_judge_rows(r.judge, &rows, &n, &err), FWD_ERANGE);
    ck_assert_msg(strstr(err.message, "layer 3") != NULL, "%s", err.message);
    close_run(&r);
    made_free(&m);
}
END_TEST

int main(void) {
    Suite *s = suite_create("judge");
    TCase *t = tcase_create("judge");
    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, held, 0, N_SCHEDULES);
    tcase_add_loop_test(t, local, 0, 3);
    tcase_add_loop_test(t, shared_code, 0, N_SHARED);
    tcase_add_loop_test(t, waiting, 0, 6);
    tcase_add_test(t, compare_text);
    tcase_add_test(t, silent_taps);
    tcase_add_test(t, bad_taps);
    suite_add_tcase(s, t);
    SRunner *runner = srunner_create(s);
    srunner_set_fork_status(runner, CK_FORK);
    srunner_run_all(runner, CK_ENV);
    int n_run = srunner_ntests_run(runner), n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_run == 0 ? 3 : n_failed != 0;
}
