/* The CUDA paths: q4k-cuda and q4k-cuda-graph give the bits of q4k-cpu, tap by tap, for every chunking, slot and cache
 * type, with taps, overrides, scribbled memory and a longer sequence before; f32-cuda keeps its own bits and stays by
 * the reference. On two tiny models that hold every block type, on the built-in one where it was made, and on the real
 * ones where they are: $PARITY_MODELS, else $XDG_CACHE_HOME or ~/.cache. Without a device every test says so. */
#include "engine.h"
#include "test/cuda_test.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { N_CTX = 96, N_TOKENS = 70, PATH_BYTES = 512, MOST_TAPS = 40000 };

static const char *const files[] = {"fixtures/golden/forward-tiny-qwen2.gguf",
                                    "fixtures/golden/forward-tiny-llama.gguf", "tiny.gguf", "smollm2-135m.gguf",
                                    "qwen2.5-coder-1.5b-cut.gguf"};
enum { N_FILES = 5, N_GOLDEN = 2 };

/* False where the file is not there. */
static bool locate(int i, char out[PATH_BYTES]) {
    const char *models = getenv("PARITY_MODELS"), *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (i < N_GOLDEN)
        (void)snprintf(out, PATH_BYTES, "%s", files[i]);
    else if (models)
        (void)snprintf(out, PATH_BYTES, "%s/%s", models, files[i]);
    else if (cache)
        (void)snprintf(out, PATH_BYTES, "%s/parity/models/%s", cache, files[i]);
    else
        (void)snprintf(out, PATH_BYTES, "%s/.cache/parity/models/%s", home ? home : "", files[i]);
    return access(out, R_OK) == 0;
}

/* ---- sessions -----------------------------------------------------------------------------------------------------
 */

struct fixture {
    struct fwd_gguf *file;
    const struct fwd_path *path;
    struct fwd_session *s;
    int64_t n_vocab;
    struct fwd_error err;
};

static struct fwd_knobs default_knobs(void) {
    return (struct fwd_knobs){
        .size = sizeof(struct fwd_knobs), .n_ctx = N_CTX, .n_seq = 2, .n_batch = N_CTX, .kv_type = FWD_F16};
}

static void open_fixture(struct fixture *f, const char *file, const char *path, const struct fwd_knobs *knobs) {
    memset(f, 0, sizeof *f);
    ck_assert_msg(fwd_gguf_open(&f->file, file, &f->err) == FWD_OK, "%s", f->err.message);
    f->path = fwd_path_find(path);
    ck_assert_ptr_nonnull(f->path);
    ck_assert_msg(f->path->open(&f->s, f->file, knobs, &f->err) == FWD_OK, "%s: %s", file, f->err.message);
    f->n_vocab = f->path->config(f->s)->n_vocab;
}

static void close_fixture(struct fixture *f) {
    f->path->close(f->s);
    fwd_gguf_close(f->file);
}

static int32_t token(const struct fixture *f, int which, int i) {
    return (int32_t)((uint32_t)(i * 7919 + which * 104729 + 3) * 2654435761u % (uint64_t)f->n_vocab);
}

/* ---- what a run gave ----------------------------------------------------------------------------------------------
 */

/* A tap as a test compares it: where it belongs, and its values hashed row by row (strides are the path's own). */
struct seen_tap {
    enum fwd_op op;
    enum fwd_dtype dtype;
    int layer, pos0, n_pos;
    uint64_t hash;
};
struct seen {
    struct seen_tap *taps;
    int n;
    float *logits; /* [n_tokens][n_vocab] */
};

static int note_tap(void *ud, const struct fwd_view *v) {
    struct seen *seen = ud;
    struct fwd_hash h;
    fwd_hash_begin(&h);
    size_t row = fwd_dtype_row_bytes(v->dtype, v->ne[0]);
    bool cache = v->op == FWD_OP_K_CACHE || v->op == FWD_OP_V_CACHE;
    for (int64_t j = 0; j < (cache ? v->ne[2] : 1); j++)
        for (int64_t i = 0; i < v->ne[1]; i++)
            fwd_hash_add(&h, (const uint8_t *)v->data + i * v->nb[1] + j * v->nb[2], row);
    ck_assert_int_lt(seen->n, MOST_TAPS);
    ck_assert_int_eq(v->device, 0);
    seen->taps[seen->n++] = (struct seen_tap){v->op, v->dtype, v->layer, v->pos0, v->n_pos, fwd_hash_end(&h)};
    return 0;
}

static void run_range(struct fixture *f, int seq, int which, int begin, int end, int chunk, struct seen *out,
                      bool tapped) {
    int32_t ids[N_CTX];
    uint8_t want[N_CTX];
    memset(want, 1, sizeof want);
    for (int i = 0; i < end; i++)
        ids[i] = token(f, which, i);
    for (int pos = begin; pos < end; pos += chunk) {
        int n = end - pos < chunk ? end - pos : chunk;
        struct fwd_run_args args = {.size = sizeof args,
                                    .seq = seq,
                                    .tokens = ids + pos,
                                    .n_tokens = n,
                                    .pos0 = pos,
                                    .want_logits = want,
                                    .logits = out->logits + pos * f->n_vocab,
                                    .tap = tapped ? note_tap : NULL,
                                    .tap_ud = out};
        ck_assert_msg(f->path->run(f->s, &args, &f->err) == FWD_OK, "%s", f->err.message);
    }
}

static struct seen run_fresh(struct fixture *f, int which, int n, int chunk, bool tapped) {
    struct seen out = {.logits = fwd_calloc((size_t)n * (size_t)f->n_vocab, sizeof(float)),
                       .taps = tapped ? fwd_calloc(MOST_TAPS, sizeof(struct seen_tap)) : NULL};
    ck_assert_ptr_nonnull(out.logits);
    ck_assert_int_eq(f->path->seq_begin(f->s, 0, &f->err), FWD_OK);
    run_range(f, 0, which, 0, n, chunk, &out, tapped);
    return out;
}

static void free_seen(struct seen *s) {
    fwd_free(s->logits);
    fwd_free(s->taps);
}

static void same_logits(const struct fixture *f, const struct seen *a, const struct seen *b, int n, const char *what) {
    for (int i = 0; i < n; i++)
        for (int64_t k = 0; k < f->n_vocab; k++)
            ck_assert_msg(!memcmp(&a->logits[i * f->n_vocab + k], &b->logits[i * f->n_vocab + k], sizeof(float)),
                          "%s: position %d, logit %lld: %.9g and %.9g", what, i, (long long)k,
                          (double)a->logits[i * f->n_vocab + k], (double)b->logits[i * f->n_vocab + k]);
}

static void same_taps(const struct seen *a, const struct seen *b, const char *what) {
    ck_assert_int_gt(a->n, 0);
    ck_assert_msg(a->n == b->n, "%s: %d and %d taps", what, a->n, b->n);
    for (int i = 0; i < a->n; i++) {
        const struct seen_tap *x = &a->taps[i], *y = &b->taps[i];
        ck_assert_msg(x->op == y->op && x->layer == y->layer && x->dtype == y->dtype && x->pos0 == y->pos0 &&
                          x->n_pos == y->n_pos,
                      "%s: tap %d is %s-%d (%s, from %d) and %s-%d (%s, from %d)", what, i, fwd_op_name(x->op),
                      x->layer, fwd_dtype_name(x->dtype), x->pos0, fwd_op_name(y->op), y->layer,
                      fwd_dtype_name(y->dtype), y->pos0);
        ck_assert_msg(x->hash == y->hash, "%s: %s-%d (%s) from position %d differs", what, fwd_op_name(x->op), x->layer,
                      fwd_dtype_name(x->dtype), x->pos0);
    }
}

/* ---- tests --------------------------------------------------------------------------------------------------------
 */

static const char *const exact_paths[] = {"q4k-cuda", "q4k-cuda-graph"};

static void check_against_cpu(const char *file, enum fwd_dtype kv, const char *force) {
    static const int chunks[] = {N_TOKENS, 1, 5, 33};
    struct fwd_knobs knobs = default_knobs();
    knobs.kv_type = kv;
    struct fixture cpu, gpu;
    open_fixture(&cpu, file, "q4k-cpu", &knobs);
    knobs.force = force;
    for (int c = 0; c < 4; c++) {
        struct seen want = run_fresh(&cpu, 0, N_TOKENS, chunks[c], true);
        for (int p = 0; p < 2; p++) {
            char what[PATH_BYTES + 96];
            (void)snprintf(what, sizeof what, "%s, %s, %s, chunks of %d%s%s", file, exact_paths[p], fwd_dtype_name(kv),
                           chunks[c], force ? ", " : "", force ? force : "");
            open_fixture(&gpu, file, exact_paths[p], &knobs);
            struct seen tapped = run_fresh(&gpu, 0, N_TOKENS, chunks[c], true);
            same_taps(&want, &tapped, what);
            same_logits(&gpu, &want, &tapped, N_TOKENS, what);
            struct seen plain = run_fresh(&gpu, 0, N_TOKENS, chunks[c], false);
            same_logits(&gpu, &want, &plain, N_TOKENS, what);
            free_seen(&tapped);
            free_seen(&plain);
            close_fixture(&gpu);
        }
        free_seen(&want);
    }
    close_fixture(&cpu);
}

START_TEST(bits_of_the_cpu) {
    char file[PATH_BYTES];
    if (!locate(_i, file)) {
        (void)printf("SKIPPED: test_cuda_path bits_of_the_cpu: %s is not here\n", files[_i]);
        return;
    }
    check_against_cpu(file, FWD_F16, NULL);
    check_against_cpu(file, FWD_F32, NULL);
    check_against_cpu(file, FWD_F16, "step=ops");
    check_against_cpu(file, FWD_F16, "ops=fused");
    check_against_cpu(file, FWD_F32, "step=ops,ops=fused");
}
END_TEST

START_TEST(a_longer_sequence_between_changes_nothing) {
    char file[PATH_BYTES];
    if (!locate(_i, file))
        return; /* bits_of_the_cpu said so */
    struct fwd_knobs knobs = default_knobs();
    for (int p = 0; p < 2; p++) {
        for (int scribbled = 0; scribbled < 2; scribbled++) {
            struct fixture f;
            knobs.scribble = scribbled;
            knobs.no_overlap = scribbled;
            open_fixture(&f, file, exact_paths[p], &knobs);
            struct seen a = run_fresh(&f, 0, 40, 7, false), b = run_fresh(&f, 1, N_TOKENS, 1, false);
            struct seen again = run_fresh(&f, 0, 40, 1, false);
            same_logits(&f, &a, &again, 40, file);
            /* the other slot, in between */
            ck_assert_int_eq(f.path->seq_begin(f.s, 1, &f.err), FWD_OK);
            run_range(&f, 1, 0, 0, 20, 20, &again, false);
            run_range(&f, 1, 0, 20, 40, 1, &again, false);
            same_logits(&f, &a, &again, 40, file);
            free_seen(&a);
            free_seen(&b);
            free_seen(&again);
            close_fixture(&f);
        }
    }
}
END_TEST

static enum fwd_status builtin_only(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    ++*(int *)ud;
    for (int i = 0; i < call->n_in; i++)
        ck_assert_int_eq(call->in[i]->device, 0);
    return call->builtin(call, err);
}

START_TEST(an_override_that_calls_the_builtin_changes_nothing) {
    char file[PATH_BYTES];
    if (!locate(_i / 2, file))
        return;
    struct fwd_knobs knobs = default_knobs();
    struct fixture f;
    knobs.force = _i % 2 ? "ops=fused" : NULL;
    open_fixture(&f, file, "q4k-cuda-graph", &knobs);
    struct seen want = run_fresh(&f, 0, 12, 5, true);
    bool there[FWD_OP_COUNT] = {false};
    for (int i = 0; i < want.n; i++)
        there[want.taps[i].op] = true;
    for (int op = 0; op < FWD_OP_COUNT; op++) {
        int n_calls = 0;
        ck_assert_int_eq(f.path->override(f.s, (enum fwd_op)op, -1, builtin_only, &n_calls, &f.err), FWD_OK);
        struct seen got = run_fresh(&f, 0, 12, 5, true);
        same_taps(&want, &got, fwd_op_name((enum fwd_op)op));
        same_logits(&f, &want, &got, 12, fwd_op_name((enum fwd_op)op));
        ck_assert_msg((n_calls > 0) == there[op], "%s: %d calls", fwd_op_name((enum fwd_op)op), n_calls);
        ck_assert_int_eq(f.path->override(f.s, (enum fwd_op)op, -1, NULL, NULL, &f.err), FWD_OK);
        free_seen(&got);
    }
    free_seen(&want);
    close_fixture(&f);
}
END_TEST

static enum fwd_status add_one(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    if (call->builtin(call, err) != FWD_OK)
        return err->code;
    ((float *)call->out->data)[0] += *(const float *)ud;
    return FWD_OK;
}

START_TEST(an_override_reaches_what_follows) {
    static const enum fwd_op ops[] = {FWD_OP_FFN_SWIGLU, FWD_OP_RESULT_OUTPUT, FWD_OP_ATTN_NORM, FWD_OP_L_OUT};
    struct fwd_knobs knobs = default_knobs();
    for (int i = 0; i < 4; i++) {
        struct fixture cpu, gpu;
        float one = 1.0f;
        open_fixture(&cpu, files[0], "q4k-cpu", &knobs);
        open_fixture(&gpu, files[0], "q4k-cuda-graph", &knobs);
        struct seen clean = run_fresh(&gpu, 0, 9, 1, false);
        int layer = fwd_op_in_layer(ops[i]) ? 1 : -1;
        ck_assert_int_eq(cpu.path->override(cpu.s, ops[i], layer, add_one, &one, &cpu.err), FWD_OK);
        ck_assert_int_eq(gpu.path->override(gpu.s, ops[i], layer, add_one, &one, &gpu.err), FWD_OK);
        struct seen want = run_fresh(&cpu, 0, 9, 1, true), got = run_fresh(&gpu, 0, 9, 1, true);
        same_taps(&want, &got, fwd_op_name(ops[i]));
        same_logits(&gpu, &want, &got, 9, fwd_op_name(ops[i]));
        ck_assert(memcmp(clean.logits, got.logits, (size_t)(9 * gpu.n_vocab) * sizeof(float)) != 0);
        free_seen(&clean);
        free_seen(&want);
        free_seen(&got);
        close_fixture(&cpu);
        close_fixture(&gpu);
    }
}
END_TEST

START_TEST(argmax_is_the_logits) {
    struct fwd_knobs knobs = default_knobs();
    for (int p = 0; p < 2; p++) {
        struct fixture f;
        open_fixture(&f, files[1], exact_paths[p], &knobs);
        struct seen a = run_fresh(&f, 3, 30, 30, false);
        int32_t ids[30], best[30];
        uint8_t want[30];
        memset(want, 1, sizeof want);
        for (int i = 0; i < 30; i++)
            ids[i] = token(&f, 3, i);
        for (int chunk = 1; chunk <= 30; chunk += 29) {
            ck_assert_int_eq(f.path->seq_begin(f.s, 0, &f.err), FWD_OK);
            for (int pos = 0; pos < 30; pos += chunk) {
                struct fwd_run_args args = {.size = sizeof args,
                                            .tokens = ids + pos,
                                            .n_tokens = chunk,
                                            .pos0 = pos,
                                            .want_logits = want,
                                            .argmax = best + pos};
                ck_assert_msg(f.path->run(f.s, &args, &f.err) == FWD_OK, "%s", f.err.message);
            }
            for (int i = 0; i < 30; i++) {
                const float *row = a.logits + i * f.n_vocab;
                int32_t expected = 0;
                for (int32_t k = 1; k < f.n_vocab; k++)
                    expected = row[k] > row[expected] ? k : expected;
                ck_assert_int_eq(best[i], expected);
            }
        }
        free_seen(&a);
        close_fixture(&f);
    }
}
END_TEST

/* ---- digests ---- */

struct digests {
    struct fwd_digest all[MOST_TAPS];
    struct seen_tap taps[MOST_TAPS];
    int n;
};

static int digest_tap(void *ud, const struct fwd_view *v) {
    struct digests *d = ud;
    if (v->op == FWD_OP_K_CACHE || v->op == FWD_OP_V_CACHE)
        return 0;
    size_t n_words = (size_t)(v->nb[1] * v->n_pos) / 4;
    const uint32_t *words = v->data;
    struct fwd_digest chunk, sum = {0};
    for (size_t first = 0; first < n_words; first += FWD_DIGEST_CHUNK) {
        size_t left = n_words - first;
        fwd_digest_chunk(words + first, left < FWD_DIGEST_CHUNK ? left : FWD_DIGEST_CHUNK, first, v->dtype == FWD_F32,
                         &chunk);
        fwd_digest_add(&sum, &chunk);
    }
    d->taps[d->n] = (struct seen_tap){v->op, v->dtype, v->layer, v->pos0, v->n_pos, 0};
    d->all[d->n++] = sum;
    return 0;
}

static int note_digest(void *ud, const struct fwd_view *v, const struct fwd_digest *digest) {
    struct digests *d = ud;
    ck_assert_ptr_null(v->data);
    d->taps[d->n] = (struct seen_tap){v->op, v->dtype, v->layer, v->pos0, v->n_pos, 0};
    d->all[d->n++] = *digest;
    return 0;
}

START_TEST(digests_are_the_taps) {
    static struct digests taps, made;
    struct fwd_knobs knobs = default_knobs();
    for (int i = 0; i < N_FILES - 1; i++) {
        char file[PATH_BYTES];
        if (!locate(i, file))
            continue;
        for (int p = 0; p < 2; p++) {
            struct fixture f;
            int32_t ids[20];
            knobs.force = p ? "ops=fused" : NULL;
            open_fixture(&f, file, exact_paths[p], &knobs);
            float *logits = fwd_calloc((size_t)f.n_vocab, sizeof *logits);
            taps.n = made.n = 0;
            for (int k = 0; k < 20; k++)
                ids[k] = token(&f, 2, k);
            for (int way = 0; way < 2; way++) {
                ck_assert_int_eq(f.path->seq_begin(f.s, 0, &f.err), FWD_OK);
                for (int pos = 0; pos < 20; pos += pos < 17 ? 17 : 1) {
                    struct fwd_run_args args = {.size = sizeof args,
                                                .tokens = ids + pos,
                                                .n_tokens = pos < 17 ? 17 : 1,
                                                .pos0 = pos,
                                                .logits = logits,
                                                .tap = way ? NULL : digest_tap,
                                                .tap_ud = &taps,
                                                .digest = way ? note_digest : NULL,
                                                .digest_ud = &made};
                    ck_assert_msg(f.path->run(f.s, &args, &f.err) == FWD_OK, "%s", f.err.message);
                }
            }
            ck_assert_int_gt(taps.n, 0);
            ck_assert_msg(taps.n == made.n, "%s: %d taps and %d digests", file, taps.n, made.n);
            for (int k = 0; k < taps.n; k++)
                ck_assert_msg(taps.taps[k].op == made.taps[k].op && taps.taps[k].layer == made.taps[k].layer &&
                                  !memcmp(&taps.all[k], &made.all[k], sizeof taps.all[k]),
                              "%s, %s: digest %d, %s-%d", file, exact_paths[p], k, fwd_op_name(taps.taps[k].op),
                              taps.taps[k].layer);
            fwd_free(logits);
            close_fixture(&f);
        }
    }
}
END_TEST

/* Its products are matmul_f's, its other ops the canonical ones: by the reference to F32 rounding, and its own bits for
 * any chunking. */
START_TEST(f32_stays_by_the_reference) {
    struct fwd_knobs knobs = default_knobs();
    knobs.kv_type = FWD_F32;
    for (int i = 0; i < N_GOLDEN; i++) {
        struct fixture ref, gpu;
        open_fixture(&ref, files[i], "f32", &knobs);
        open_fixture(&gpu, files[i], "f32-cuda", &knobs);
        struct seen want = run_fresh(&ref, 0, 40, 40, false), whole = run_fresh(&gpu, 0, 40, 40, false);
        struct seen steps = run_fresh(&gpu, 0, 40, 1, true);
        same_logits(&gpu, &whole, &steps, 40, files[i]);
        double diff = 0, size = 0;
        for (int64_t k = 0; k < 40 * gpu.n_vocab; k++) {
            double d = (double)want.logits[k] - (double)whole.logits[k];
            diff += d * d;
            size += (double)want.logits[k] * (double)want.logits[k];
        }
        ck_assert_double_lt(sqrt(diff / size), 1e-5);
        free_seen(&want);
        free_seen(&whole);
        free_seen(&steps);
        close_fixture(&ref);
        close_fixture(&gpu);
    }
}
END_TEST

/* Small ops in one launch, with taps and without: the same bits as op by op on every path. */
START_TEST(fused_ops_are_the_ops) {
    static const char *const paths[] = {"f32-cuda", "q4k-cuda", "bf16-cuda", "fp8-cuda"};
    char file[PATH_BYTES];
    if (!locate(_i, file))
        return;
    for (int p = 0; p < 4; p++) {
        struct fixture f = {.path = fwd_path_find(paths[p])};
        struct seen seen[3] = {{0}};
        ck_assert_int_eq(fwd_gguf_open(&f.file, file, &f.err), FWD_OK);
        for (int way = 0; way < 3; way++) { /* op by op, fused with taps, fused without */
            struct fwd_knobs knobs = default_knobs();
            knobs.force = way ? "ops=fused" : NULL;
            enum fwd_status rc = f.path->open(&f.s, f.file, &knobs, &f.err);
            if (rc == FWD_EUNAVAILABLE || rc == FWD_EUNSUPPORTED) {
                (void)printf("SKIPPED: test_cuda_path fused_ops_are_the_ops: %s\n", f.err.message);
                break;
            }
            ck_assert_msg(rc == FWD_OK, "%s", f.err.message);
            f.n_vocab = f.path->config(f.s)->n_vocab;
            seen[way] = run_fresh(&f, 0, 40, 17, way < 2);
            f.path->close(f.s);
            f.s = NULL;
            if (way == 1)
                same_taps(&seen[0], &seen[1], paths[p]);
            if (way > 0)
                same_logits(&f, &seen[0], &seen[way], 40, paths[p]);
        }
        if (f.n_vocab > 0)
            for (int way = 0; way < 3; way++)
                free_seen(&seen[way]);
        fwd_gguf_close(f.file);
    }
}
END_TEST

START_TEST(weights_are_the_files) {
    static const char *const paths[] = {"q4k-cuda", "f32-cuda"};
    struct fwd_knobs knobs = default_knobs();
    for (int p = 0; p < 2; p++) {
        struct fixture f;
        struct fwd_bound_weight w;
        int n = 0;
        open_fixture(&f, files[0], paths[p], &knobs);
        for (; f.path->bound_weight(f.s, n, &w); n++) {
            const struct fwd_gguf_tensor *t = fwd_gguf_find(f.file, w.name);
            ck_assert_ptr_nonnull(t);
            ck_assert_msg(w.checksum == fwd_hash64(t->data, t->n_bytes), "%s: %s (%s)", paths[p], w.name, w.layout);
        }
        ck_assert_int_gt(n, 20);
        close_fixture(&f);
    }
}
END_TEST

START_TEST(nonsense_is_refused) {
    struct fixture f = {0};
    struct fwd_knobs good = default_knobs();
    const struct fwd_path *path = fwd_path_find("q4k-cuda");
    ck_assert_int_eq(fwd_gguf_open(&f.file, files[0], &f.err), FWD_OK);
    struct {
        struct fwd_knobs knobs;
        enum fwd_status status;
        const char *says;
    } cases[6];
    for (int i = 0; i < 6; i++)
        cases[i].knobs = good;
    cases[0].knobs.n_ctx = 0, cases[0].status = FWD_ERANGE, cases[0].says = "n_ctx 0";
    cases[1].knobs.force = "attention=avx2", cases[1].status = FWD_ENOTFOUND, cases[1].says = "attention=avx2";
    cases[2].knobs.fp8_fast = true, cases[2].status = FWD_EINPUT, cases[2].says = "fp8_fast";
    cases[3].knobs.act = "as:q4k-cpu", cases[3].status = FWD_EINPUT, cases[3].says = "as:q4k-cpu";
    cases[4].knobs.n_ctx = 1 << 30, cases[4].status = FWD_ENOMEM, cases[4].says = "MiB";
    cases[5].knobs.kv_type = FWD_Q8_K, cases[5].status = FWD_EINPUT, cases[5].says = "KV cache";
    for (int i = 0; i < 6; i++) {
        f.s = NULL;
        enum fwd_status rc = path->open(&f.s, f.file, &cases[i].knobs, &f.err);
        ck_assert_msg(rc == cases[i].status, "case %d: status %s: %s", i, fwd_status_name(rc), f.err.message);
        ck_assert_msg(strstr(f.err.message, cases[i].says) != NULL, "case %d: \"%s\" does not say \"%s\"", i,
                      f.err.message, cases[i].says);
    }
    fwd_gguf_close(f.file);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("cuda_path");
    TCase *bits = tcase_create("bits"), *rest = tcase_create("rest");
    tcase_set_timeout(bits, 300);
    tcase_set_timeout(rest, 300);
    tcase_add_loop_test(bits, bits_of_the_cpu, 0, N_FILES);
    tcase_add_loop_test(bits, a_longer_sequence_between_changes_nothing, 0, N_FILES);
    tcase_add_loop_test(rest, an_override_that_calls_the_builtin_changes_nothing, 0, 6);
    tcase_add_test(rest, an_override_reaches_what_follows);
    tcase_add_test(rest, argmax_is_the_logits);
    tcase_add_test(rest, digests_are_the_taps);
    tcase_add_test(rest, f32_stays_by_the_reference);
    tcase_add_loop_test(rest, fused_ops_are_the_ops, 0, N_FILES);
    tcase_add_test(rest, weights_are_the_files);
    tcase_add_test(rest, nonsense_is_refused);
    suite_add_tcase(suite, bits);
    suite_add_tcase(suite, rest);
    return cuda_test_main("test_cuda_path", suite);
}
