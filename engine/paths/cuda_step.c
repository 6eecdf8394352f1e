/* engine/paths/cuda_step.c: one token through the fused step, launched eagerly or replayed as a CUDA graph. The graph
 * is captured once per form of the call (taps or not, logits or not, head or not); position, slot and token id come
 * from device memory, so that it serves every position. Its intermediates lie in one slab per layer, copied to the host
 * beside the next layer. */
#include "paths/cuda_session.h"

#include "cuda/digest.h"

#include <cuda_runtime_api.h>
#include <math.h>
#include <stddef.h>
#include <string.h>

enum { WITH_TAPS = 1, WITH_LOGITS = 2, WITH_HEAD = 4, WITH_DIGESTS = 8, FORMS = 16 };

/* What a step hands back, page-locked. */
struct step_io {
    struct cuda_step_state state;
    int32_t argmax;
};

/* A tap within every slab, for its digest; jobs of slab i begin at i * (jobs of a slab) + first_job. */
struct span {
    size_t offset;
    size_t n_words;
    int first_job, n_jobs;
    bool is_f32;
};

struct cuda_stepper {
    struct cuda_step step; /* with the head */
    struct cuda_step_layer *layers;
    bool has_head; /* the step serves the head too */
    uint8_t *slab; /* device: [n_layer + 1][slab_bytes] */
    size_t slab_bytes;
    struct cuda_step_taps offsets; /* of a layer's taps in its slab, as pointers from NULL; absent ones NULL + 1 byte */
    struct cuda_step_taps *table;  /* device [n_layer + 1] */
    struct cuda_step_state *state; /* device */
    void *scratch;
    struct step_io *io;  /* host */
    uint8_t *slab_host;  /* made when first wanted */
    struct span *spans;  /* made when digests are first wanted: what of a slab each tap is, in any order */
    int n_spans, n_jobs; /* jobs: chunks of all spans of all slabs, then of the logits */
    int jobs_per_slab;
    void *digest_memory; /* device: jobs, then their chunks */
    struct fwd_digest *chunks_host;
    uint8_t *kv_host;
    size_t kv_host_bytes;
    float *logits_host;
    cudaEvent_t forked, joined;
    cudaGraphExec_t graphs[FORMS];
    size_t device_bytes;
};

/* ---- where the taps lie -------------------------------------------------------------------------------------------
 */

enum { ABSENT = 1 }; /* no tap starts on an odd byte */

static void *place(size_t *used, bool there, size_t n_bytes) {
    if (!there)
        return (void *)(uintptr_t)ABSENT;
    size_t at = *used + 256; /* NULL would mean the first one */
    *used += (n_bytes + 255) / 256 * 256;
    return (void *)(uintptr_t)at;
}

static void lay_out_taps(const struct fwd_session *s, struct cuda_stepper *t) {
    const struct fwd_config *c = &s->model->config;
    size_t embd = (size_t)c->n_embd, ff = (size_t)c->n_ff, heads = (size_t)(c->n_head * c->head_dim);
    size_t kv = (size_t)(c->n_kv_head * c->head_dim), f = sizeof(float), used = 0;
    bool k = false, b32 = false, f_k = false, f_32 = false;
    enum fwd_dtype o = FWD_F32, d = FWD_F32;
    for (int i = 0; i < c->n_layer; i++) { /* layers of one model may differ: room for all that occur */
        const struct cuda_layer *l = &s->layers[i];
        const struct cuda_linear *in[] = {&l->wq.dev, &l->wk.dev, &l->wv.dev}, *mid[] = {&l->gate.dev, &l->up.dev};
        for (int j = 0; j < 3; j++) {
            k |= in[j]->act == FWD_Q8_K;
            b32 |= in[j]->act == FWD_Q8_32;
        }
        for (int j = 0; j < 2; j++) {
            f_k |= mid[j]->act == FWD_Q8_K;
            f_32 |= mid[j]->act == FWD_Q8_32;
        }
        o = l->wo.dev.act == FWD_F32 ? o : FWD_Q8_32; /* the larger of the two formats */
        d = l->down.dev.act == FWD_F32 ? d : FWD_Q8_32;
    }
    struct cuda_step_taps *p = &t->offsets;
    p->attn_norm = place(&used, true, embd * f);
    p->attn_norm_q8_k = place(&used, k, fwd_dtype_row_bytes(FWD_Q8_K, c->n_embd));
    p->attn_norm_q8_32 = place(&used, b32, fwd_dtype_row_bytes(FWD_Q8_32, c->n_embd));
    p->q = place(&used, true, heads * f);
    p->k = place(&used, true, kv * f);
    p->v = place(&used, true, kv * f);
    p->q_rope = place(&used, true, heads * f);
    p->k_rope = place(&used, true, kv * f);
    p->heads = place(&used, true, heads * f);
    p->heads_q8 = place(&used, o != FWD_F32, fwd_dtype_row_bytes(FWD_Q8_32, (int64_t)heads));
    p->attn_out = place(&used, true, embd * f);
    p->ffn_inp = place(&used, true, embd * f);
    p->ffn_norm = place(&used, true, embd * f);
    p->ffn_norm_q8_k = place(&used, f_k, fwd_dtype_row_bytes(FWD_Q8_K, c->n_embd));
    p->ffn_norm_q8_32 = place(&used, f_32, fwd_dtype_row_bytes(FWD_Q8_32, c->n_embd));
    p->gate = place(&used, true, ff * f);
    p->up = place(&used, true, ff * f);
    p->swiglu = place(&used, true, ff * f);
    p->swiglu_q8 = place(&used, d != FWD_F32, fwd_dtype_row_bytes(FWD_Q8_32, c->n_ff));
    p->ffn_out = place(&used, true, embd * f);
    p->l_out = place(&used, true, embd * f);
    p->result_norm = place(&used, true, embd * f);
    p->result_q8 = place(&used, s->output.dev.act != FWD_F32, fwd_dtype_row_bytes(FWD_Q8_32, c->n_embd));
    t->slab_bytes = used;
}

/* A slab's address of an offset; NULL for a tap that is absent. */
static void *at(uint8_t *slab, const void *offset) {
    return (uintptr_t)offset == ABSENT ? NULL : slab + ((uintptr_t)offset - 256);
}

static struct cuda_step_taps taps_in(const struct cuda_stepper *t, uint8_t *slab) {
    const struct cuda_step_taps *o = &t->offsets;
    return (struct cuda_step_taps){.attn_norm = at(slab, o->attn_norm),
                                   .q = at(slab, o->q),
                                   .k = at(slab, o->k),
                                   .v = at(slab, o->v),
                                   .q_rope = at(slab, o->q_rope),
                                   .k_rope = at(slab, o->k_rope),
                                   .heads = at(slab, o->heads),
                                   .attn_out = at(slab, o->attn_out),
                                   .ffn_inp = at(slab, o->ffn_inp),
                                   .ffn_norm = at(slab, o->ffn_norm),
                                   .gate = at(slab, o->gate),
                                   .up = at(slab, o->up),
                                   .swiglu = at(slab, o->swiglu),
                                   .ffn_out = at(slab, o->ffn_out),
                                   .l_out = at(slab, o->l_out),
                                   .attn_norm_q8_k = at(slab, o->attn_norm_q8_k),
                                   .attn_norm_q8_32 = at(slab, o->attn_norm_q8_32),
                                   .heads_q8 = at(slab, o->heads_q8),
                                   .ffn_norm_q8_k = at(slab, o->ffn_norm_q8_k),
                                   .ffn_norm_q8_32 = at(slab, o->ffn_norm_q8_32),
                                   .swiglu_q8 = at(slab, o->swiglu_q8),
                                   .result_norm = at(slab, o->result_norm),
                                   .result_q8 = at(slab, o->result_q8)};
}

/* ---- open, close --------------------------------------------------------------------------------------------------
 */

static void fill_step(const struct fwd_session *s, struct cuda_stepper *t) {
    const struct fwd_config *c = &s->model->config;
    for (int i = 0; i < c->n_layer; i++) {
        const struct cuda_layer *l = &s->layers[i];
        t->layers[i] = (struct cuda_step_layer){.attn_norm = l->attn_norm,
                                                .ffn_norm = l->ffn_norm,
                                                .wq = l->wq.dev,
                                                .wk = l->wk.dev,
                                                .wv = l->wv.dev,
                                                .wo = l->wo.dev,
                                                .gate = l->gate.dev,
                                                .up = l->up.dev,
                                                .down = l->down.dev,
                                                .kv_layer = i * s->kv_layer};
    }
    t->step = (struct cuda_step){.n_layer = c->n_layer,
                                 .n_embd = c->n_embd,
                                 .n_ff = c->n_ff,
                                 .n_head = c->n_head,
                                 .n_kv_head = c->n_kv_head,
                                 .head_dim = c->head_dim,
                                 .n_rope = c->n_rope,
                                 .n_ctx = s->n_ctx,
                                 .n_vocab = (int)c->n_vocab,
                                 .neox = c->rope_pairing == FWD_ROPE_NEOX,
                                 .eps = c->norm_eps,
                                 .scale = 1.0f / sqrtf((float)c->head_dim),
                                 .kv_head_of = s->kv_head_of,
                                 .turn = s->rope_table,
                                 .output_norm = s->output_norm,
                                 .output = s->output.dev,
                                 .layers = t->layers,
                                 .kv_type = s->kv_type,
                                 .kv = s->kv,
                                 .kv_slot = s->kv_slot,
                                 .kv_part = s->kv_part,
                                 .kv_head = s->kv_head,
                                 .kv_row = s->kv_row,
                                 .state = t->state,
                                 .taps = t->table,
                                 .x = s->buf.x,
                                 .logits = s->buf.logits,
                                 .scratch = t->scratch,
                                 .overlap = !s->no_overlap};
    if (s->has_plan_fault) {
        t->step.fault = (enum cuda_plan_fault)s->plan_fault.kind;
        t->step.fault_op = s->plan_fault.op;
        t->step.fault_layer = s->plan_fault.layer;
    }
}

/* The step without its head: for a head in another form, or one that is overridden. */
static struct cuda_step without_head(const struct cuda_step *step) {
    struct cuda_step out = *step;
    out.output.form = CUDA_FORM_NONE;
    return out;
}

static enum fwd_status take_memory(struct fwd_session *s, struct cuda_stepper *t, struct fwd_error *err) {
    const struct fwd_config *c = &s->model->config;
    size_t slabs = (size_t)(c->n_layer + 1) * t->slab_bytes, scratch = cuda_step_scratch(&t->step);
    struct cuda_layout l = {0};
    void *base;
    for (int pass = 0; pass < 2; pass++) {
        t->scratch = cuda_take(&l, scratch, 1);
        t->slab = cuda_take(&l, slabs, 1);
        t->table = cuda_take(&l, (size_t)c->n_layer + 1, sizeof *t->table);
        t->state = cuda_take(&l, 1, sizeof *t->state);
        if (pass == 0) {
            FWD_TRY(cuda_alloc(&base, l.used, "the fused step", err));
            t->device_bytes = l.used;
            l = (struct cuda_layout){.base = base};
        }
    }
    FWD_TRY(cuda_status(cudaMemset(t->scratch, 0, scratch), "the fused step", err));
    struct cuda_step_taps *table = fwd_calloc((size_t)c->n_layer + 1, sizeof *table);
    FWD_FAIL_IF(!table, FWD_ENOMEM, err, "%s: no memory for %d layers", s->kind->name, c->n_layer);
    for (int i = 0; i <= c->n_layer; i++)
        table[i] = taps_in(t, t->slab + (size_t)i * t->slab_bytes);
    enum fwd_status rc =
        cuda_status(cudaMemcpy(t->table, table, (size_t)(c->n_layer + 1) * sizeof *table, cudaMemcpyHostToDevice),
                    "the fused step", err);
    fwd_free(table);
    return rc;
}

static enum fwd_status check_plan_fault(const struct fwd_session *s, const struct cuda_stepper *t,
                                        struct fwd_error *err) {
    if (!s->has_plan_fault)
        return FWD_OK;
    const char *kernel;
    enum fwd_op op;
    int layer;
    for (int i = 0; cuda_step_launch(&t->step, i, &kernel, &op, &layer); i++)
        if (op == s->plan_fault.op && (layer == s->plan_fault.layer || !fwd_op_in_layer(op)))
            return FWD_OK;
    FWD_FAIL(FWD_EINPUT, err, "%s: its plan has no launch that ends with %s of layer %d", s->kind->name,
             fwd_op_name(s->plan_fault.op), s->plan_fault.layer);
}

/* The fused attention reads a KV head for a run of neighbouring query heads. */
static bool serves(const struct fwd_session *s, const struct cuda_step *step, const char **why) {
    const struct fwd_config *c = &s->model->config;
    for (int h = 0; h < c->n_head; h++)
        if (c->n_head % c->n_kv_head != 0 || c->kv_head_of[h] != h / (c->n_head / c->n_kv_head)) {
            *why = "query heads that share a KV head are not neighbours";
            return false;
        }
    return cuda_step_serves(step, why);
}

enum fwd_status cuda_stepper_create(struct fwd_session *s, struct fwd_error *err) {
    const char *why;
    struct cuda_stepper *t = fwd_calloc(1, sizeof *t);
    FWD_FAIL_IF(!t, FWD_ENOMEM, err, "%s: no memory for a step", s->kind->name);
    s->stepper = t;
    t->layers = fwd_calloc((size_t)s->model->config.n_layer, sizeof *t->layers);
    FWD_FAIL_IF(!t->layers, FWD_ENOMEM, err, "%s: no memory for a step", s->kind->name);
    fill_step(s, t);
    t->has_head = serves(s, &t->step, &why);
    if (!t->has_head) {
        struct cuda_step headless = without_head(&t->step);
        if (!serves(s, &headless, &why)) {
            cuda_stepper_free(s);
            FWD_FAIL_IF(s->step_forced, FWD_EUNSUPPORTED, err, "force: step=fused does not serve this model: %s", why);
            FWD_FAIL_IF(s->has_plan_fault, FWD_EUNSUPPORTED, err, "%s: no plan for this model: %s", s->kind->name, why);
            s->why_no_step = why;
            return FWD_OK;
        }
    }
    lay_out_taps(s, t);
    FWD_TRY(take_memory(s, t, err));
    fill_step(s, t); /* now with addresses */
    if (!t->has_head)
        t->step = without_head(&t->step);
    FWD_TRY(check_plan_fault(s, t, err));
    void *io;
    FWD_TRY(cuda_alloc_host(&io, sizeof *t->io, "a step's state", err));
    t->io = io;
    FWD_TRY(cuda_status(cudaEventCreateWithFlags(&t->forked, cudaEventDisableTiming), "an event", err));
    return cuda_status(cudaEventCreateWithFlags(&t->joined, cudaEventDisableTiming), "an event", err);
}

void cuda_stepper_free(struct fwd_session *s) {
    struct cuda_stepper *t = s->stepper;
    if (!t)
        return;
    for (int i = 0; i < FORMS; i++)
        if (t->graphs[i])
            (void)cudaGraphExecDestroy(t->graphs[i]);
    if (t->forked)
        (void)cudaEventDestroy(t->forked);
    if (t->joined)
        (void)cudaEventDestroy(t->joined);
    cuda_free(t->scratch); /* the first of its block */
    cuda_free_host(t->io);
    cuda_free_host(t->slab_host);
    cuda_free_host(t->chunks_host);
    cuda_free(t->digest_memory);
    fwd_free(t->spans);
    cuda_free_host(t->kv_host);
    cuda_free_host(t->logits_host);
    fwd_free(t->layers);
    fwd_free(t);
    s->stepper = NULL;
}

bool cuda_stepper_launch(const struct fwd_session *s, int i, const char **kernel, enum fwd_op *op, int *layer) {
    return s->stepper && cuda_step_launch(&s->stepper->step, i, kernel, op, layer);
}

/* ---- digests ------------------------------------------------------------------------------------------------------
 */

static size_t jobs_bytes(const struct cuda_stepper *t) {
    return ((size_t)t->n_jobs * sizeof(struct cuda_digest_job) + 255) / 256 * 256;
}

static void add_span(struct cuda_stepper *t, const void *offset, enum fwd_dtype dtype, int64_t n) {
    if ((uintptr_t)offset == ABSENT)
        return;
    size_t n_words = fwd_dtype_row_bytes(dtype, n) / 4;
    struct span *s = &t->spans[t->n_spans++];
    *s = (struct span){.offset = (uintptr_t)offset - 256,
                       .n_words = n_words,
                       .first_job = t->n_jobs,
                       .n_jobs = (int)((n_words + FWD_DIGEST_CHUNK - 1) / FWD_DIGEST_CHUNK),
                       .is_f32 = dtype == FWD_F32};
    t->n_jobs += s->n_jobs;
}

/* One format where layers of a model ask for either: the digest then needs the layer's own. */
static enum fwd_dtype act_of(const struct cuda_matrix *m) {
    return m->dev.act;
}

/* Spans of a layer; a quantised tap whose format differs from layer to layer is taken as the first layer's, and the
 * other layers' digests of it are left out (digest_of). */
static void list_spans(const struct fwd_session *s, struct cuda_stepper *t) {
    const struct fwd_config *c = &s->model->config;
    const struct cuda_step_taps *o = &t->offsets;
    const struct cuda_layer *l = &s->layers[0];
    int64_t heads = (int64_t)c->n_head * c->head_dim, kv = (int64_t)c->n_kv_head * c->head_dim, e = c->n_embd;
    const void *rows[] = {o->attn_norm, o->attn_out, o->ffn_inp, o->ffn_norm, o->ffn_out, o->l_out, o->result_norm};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        add_span(t, rows[i], FWD_F32, e);
    add_span(t, o->q, FWD_F32, heads);
    add_span(t, o->q_rope, FWD_F32, heads);
    add_span(t, o->heads, FWD_F32, heads);
    add_span(t, o->k, FWD_F32, kv);
    add_span(t, o->k_rope, FWD_F32, kv);
    add_span(t, o->v, FWD_F32, kv);
    add_span(t, o->gate, FWD_F32, c->n_ff);
    add_span(t, o->up, FWD_F32, c->n_ff);
    add_span(t, o->swiglu, FWD_F32, c->n_ff);
    add_span(t, o->attn_norm_q8_k, FWD_Q8_K, e);
    add_span(t, o->attn_norm_q8_32, FWD_Q8_32, e);
    add_span(t, o->ffn_norm_q8_k, FWD_Q8_K, e);
    add_span(t, o->ffn_norm_q8_32, FWD_Q8_32, e);
    add_span(t, o->heads_q8, act_of(&l->wo), heads);
    add_span(t, o->swiglu_q8, act_of(&l->down), c->n_ff);
    add_span(t, o->result_q8, act_of(&s->output), e);
}

static void fill_jobs(struct cuda_digest_job *jobs, const void *data, size_t n_words, bool is_f32) {
    for (size_t first = 0; first < n_words; first += FWD_DIGEST_CHUNK) {
        size_t left = n_words - first;
        jobs[first / FWD_DIGEST_CHUNK] =
            (struct cuda_digest_job){.words = (const uint32_t *)data + first,
                                     .first = first,
                                     .n = (uint32_t)(left < FWD_DIGEST_CHUNK ? left : FWD_DIGEST_CHUNK),
                                     .is_f32 = is_f32};
    }
}

static enum fwd_status prepare_digests(struct fwd_session *s, struct fwd_error *err) {
    enum { MOST_SPANS = 32 };
    struct cuda_stepper *t = s->stepper;
    int n_slabs = s->model->config.n_layer + 1;
    void *p;
    if (t->spans)
        return FWD_OK;
    t->spans = fwd_calloc(MOST_SPANS, sizeof *t->spans);
    FWD_FAIL_IF(!t->spans, FWD_ENOMEM, err, "%s: no memory for digests", s->kind->name);
    list_spans(s, t);
    size_t n_vocab = (size_t)s->model->config.n_vocab;
    int per_slab = t->n_jobs, at_logits = per_slab * n_slabs;
    t->jobs_per_slab = per_slab;
    t->n_jobs = at_logits + (int)((n_vocab + FWD_DIGEST_CHUNK - 1) / FWD_DIGEST_CHUNK);
    struct cuda_digest_job *jobs = fwd_calloc((size_t)t->n_jobs, sizeof *jobs);
    FWD_FAIL_IF(!jobs, FWD_ENOMEM, err, "%s: no memory for digests", s->kind->name);
    for (int i = 0; i < n_slabs; i++)
        for (int j = 0; j < t->n_spans; j++) {
            const struct span *span = &t->spans[j];
            const uint8_t *at_span = t->slab + (size_t)i * t->slab_bytes + span->offset;
            fill_jobs(jobs + i * per_slab + span->first_job, at_span, span->n_words, span->is_f32);
        }
    fill_jobs(jobs + at_logits, s->buf.logits, n_vocab, true);
    enum fwd_status rc =
        cuda_alloc(&t->digest_memory, jobs_bytes(t) + (size_t)t->n_jobs * sizeof(struct fwd_digest), "digests", err);
    if (rc == FWD_OK)
        rc = cuda_status(cudaMemcpy(t->digest_memory, jobs, (size_t)t->n_jobs * sizeof *jobs, cudaMemcpyHostToDevice),
                         "digests", err);
    if (rc == FWD_OK)
        rc = cuda_alloc_host(&p, (size_t)t->n_jobs * sizeof(struct fwd_digest), "digests", err);
    if (rc == FWD_OK)
        t->chunks_host = p;
    fwd_free(jobs);
    return rc;
}

/* False: no digest was made of that place in that format. */
static bool digest_of(const struct cuda_stepper *t, int slab, size_t offset, size_t n_words, struct fwd_digest *out) {
    for (int j = 0; j < t->n_spans; j++) {
        const struct span *span = &t->spans[j];
        if (span->offset != offset || span->n_words != n_words)
            continue;
        *out = (struct fwd_digest){0};
        for (int k = 0; k < span->n_jobs; k++)
            fwd_digest_add(out, &t->chunks_host[slab * t->jobs_per_slab + span->first_job + k]);
        return true;
    }
    return false;
}

/* ---- launches -----------------------------------------------------------------------------------------------------
 */

/* Called after a layer's launches: its slab goes to the host beside what follows. */
static void fork_copy(void *ud, int layer, struct CUstream_st *stream) {
    struct fwd_session *s = ud;
    struct cuda_stepper *t = s->stepper;
    size_t offset = (size_t)layer * t->slab_bytes;
    (void)cudaEventRecord(t->forked, stream);
    (void)cudaStreamWaitEvent(s->device.copy, t->forked, 0);
    (void)cudaMemcpyAsync(t->slab_host + offset, t->slab + offset, t->slab_bytes, cudaMemcpyDeviceToHost,
                          s->device.copy);
}

static enum fwd_status enqueue(struct fwd_session *s, unsigned form, struct fwd_error *err) {
    struct cuda_stepper *t = s->stepper;
    struct CUstream_st *stream = s->device.compute;
    const struct fwd_config *c = &s->model->config;
    struct cuda_step step = form & WITH_HEAD ? t->step : without_head(&t->step);
    if (form & WITH_TAPS) {
        step.after_layer = fork_copy;
        step.after_layer_ud = s;
    }
    FWD_TRY(cuda_status(cudaMemcpyAsync(t->state, &t->io->state, sizeof t->io->state, cudaMemcpyHostToDevice, stream),
                        "a step", err));
    cuda_embed(stream, s->model->tok_embd.type, s->embedding, c->n_embd, &t->state->token, 1, s->buf.x);
    if (form &
        (WITH_TAPS | WITH_DIGESTS)) /* x is overwritten as the step goes on: its first value is the head slab's l_out */
        FWD_TRY(
            cuda_status(cudaMemcpyAsync(at(t->slab + (size_t)c->n_layer * t->slab_bytes, t->offsets.l_out), s->buf.x,
                                        (size_t)c->n_embd * sizeof(float), cudaMemcpyDeviceToDevice, stream),
                        "inp_embd", err));
    cuda_step_enqueue(&step, stream);
    if ((form & WITH_TAPS) && !(form & WITH_HEAD))
        fork_copy(s, c->n_layer, stream);
    if (form & WITH_HEAD) {
        cuda_argmax(stream, s->buf.logits, c->n_vocab, 1, s->buf.argmax_rows, &t->io->argmax);
    }
    if (form & WITH_LOGITS)
        FWD_TRY(cuda_status(cudaMemcpyAsync(t->logits_host, s->buf.logits, (size_t)c->n_vocab * sizeof(float),
                                            cudaMemcpyDeviceToHost, stream),
                            "logits", err));
    if (form & WITH_DIGESTS) {
        const struct cuda_digest_job *jobs = t->digest_memory;
        struct fwd_digest *chunks = (struct fwd_digest *)(void *)((uint8_t *)t->digest_memory + jobs_bytes(t));
        cuda_digest(stream, jobs, t->n_jobs, chunks);
        FWD_TRY(cuda_status(
            cudaMemcpyAsync(t->chunks_host, chunks, (size_t)t->n_jobs * sizeof *chunks, cudaMemcpyDeviceToHost, stream),
            "digests", err));
    }
    if (form & WITH_TAPS) {
        FWD_TRY(cuda_status(cudaEventRecord(t->joined, s->device.copy), "a step", err));
        FWD_TRY(cuda_status(cudaStreamWaitEvent(stream, t->joined, 0), "a step", err));
    }
    return cuda_launched("a step", err);
}

static enum fwd_status capture(struct fwd_session *s, unsigned form, struct fwd_error *err) {
    cudaStream_t stream = s->device.compute;
    cudaGraph_t graph = NULL;
    FWD_TRY(cuda_status(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "the graph", err));
    enum fwd_status rc = enqueue(s, form, err);
    cudaError_t e = cudaStreamEndCapture(stream, &graph);
    if (rc == FWD_OK)
        rc = cuda_status(e, "the graph", err);
    if (rc == FWD_OK)
        rc = cuda_status(cudaGraphInstantiate(&s->stepper->graphs[form], graph, 0), "the graph", err);
    if (graph)
        (void)cudaGraphDestroy(graph);
    return rc;
}

static enum fwd_status launch(struct fwd_session *s, unsigned form, struct fwd_error *err) {
    if (!s->kind->graph)
        return enqueue(s, form, err);
    if (!s->stepper->graphs[form])
        FWD_TRY(capture(s, form, err));
    return cuda_status(cudaGraphLaunch(s->stepper->graphs[form], s->device.compute), "the graph", err);
}

/* ---- taps ---------------------------------------------------------------------------------------------------------
 */

struct giver {
    struct fwd_session *s;
    const struct fwd_run_args *args;
    struct fwd_error *err;
    int layer;
};

static struct fwd_digest logits_digest(const struct fwd_session *s) {
    const struct cuda_stepper *t = s->stepper;
    struct fwd_digest sum = {0};
    for (int i = t->jobs_per_slab * (s->model->config.n_layer + 1); i < t->n_jobs; i++)
        fwd_digest_add(&sum, &t->chunks_host[i]);
    return sum;
}

/* data: where the tap would lie in the host's copy of the slabs (of which there is none). */
static enum fwd_status give_digest(const struct giver *g, enum fwd_op op, const void *data, enum fwd_dtype dtype,
                                   int64_t n) {
    const struct cuda_stepper *t = g->s->stepper;
    size_t offset = (size_t)((const uint8_t *)data - t->slab);
    struct fwd_digest digest;
    struct fwd_view v = cuda_view(g->s, g->args, op, g->layer, g->args->pos0, 1, NULL, dtype, n);
    if (op == FWD_OP_RESULT_OUTPUT)
        digest = logits_digest(g->s);
    else if (!digest_of(t, (int)(offset / t->slab_bytes), offset % t->slab_bytes, fwd_dtype_row_bytes(dtype, n) / 4,
                        &digest))
        return FWD_OK;
    v.device = 0;
    v.stream = NULL;
    FWD_FAIL_IF(g->args->digest(g->args->digest_ud, &v, &digest) != 0, FWD_ESTOPPED, g->err,
                "%s: the digest stopped the run at %s, layer %d", g->s->kind->name, fwd_op_name(op), g->layer);
    return FWD_OK;
}

static enum fwd_status give(const struct giver *g, enum fwd_op op, const void *data, enum fwd_dtype dtype, int64_t n) {
    if (!data)
        return FWD_OK;
    if (g->args->digest)
        return give_digest(g, op, data, dtype, n);
    struct fwd_view v = cuda_view(g->s, g->args, op, g->layer, g->args->pos0, 1, (void *)(uintptr_t)data, dtype, n);
    v.device = 0;
    v.stream = NULL;
    FWD_FAIL_IF(g->args->tap(g->args->tap_ud, &v) != 0, FWD_ESTOPPED, g->err,
                "%s: the tap stopped the run at %s, layer %d", g->s->kind->name, fwd_op_name(op), g->layer);
    return FWD_OK;
}

/* Rows 0 .. pos of one part of a layer, in the host copy of the whole slot. */
static enum fwd_status give_cache(const struct giver *g, enum fwd_op op) {
    const struct fwd_session *s = g->s;
    if (g->args->digest)
        return FWD_OK;
    int64_t n_rows = g->args->pos0 + 1, head = n_rows * s->kv_row, n_kv = s->model->config.n_kv_head;
    struct fwd_view v = cuda_cache_view(s, g->args, op, g->layer, (int)n_rows);
    v.data = s->stepper->kv_host + (2 * g->layer + (op == FWD_OP_V_CACHE)) * n_kv * head;
    v.nb[1] = head;
    v.nb[3] = head * n_kv;
    v.device = 0;
    v.stream = NULL;
    FWD_FAIL_IF(g->args->tap(g->args->tap_ud, &v) != 0, FWD_ESTOPPED, g->err,
                "%s: the tap stopped the run at %s, layer %d", s->kind->name, fwd_op_name(op), g->layer);
    return FWD_OK;
}

/* Digests are looked up by where a tap lies on the device; taps lie in the host's copy. */
static uint8_t *slabs(const struct giver *g) {
    return g->args->digest ? g->s->stepper->slab : g->s->stepper->slab_host;
}

static bool any_act(const struct cuda_matrix *const *m, int n, enum fwd_dtype act) {
    for (int i = 0; i < n; i++)
        if (m[i]->dev.act == act)
            return true;
    return false;
}

/* Each format that some user of an op's output asks for. */
static enum fwd_status give_quantised(const struct giver *g, enum fwd_op op, const struct cuda_matrix *const *users,
                                      int n_users, const void *q8_k, const void *q8_32, int64_t n) {
    if (any_act(users, n_users, FWD_Q8_K))
        FWD_TRY(give(g, op, q8_k, FWD_Q8_K, n));
    return any_act(users, n_users, FWD_Q8_32) ? give(g, op, q8_32, FWD_Q8_32, n) : FWD_OK;
}

static enum fwd_status give_layer(struct giver *g, int layer) {
    const struct cuda_stepper *t = g->s->stepper;
    const struct fwd_config *c = &g->s->model->config;
    const struct cuda_layer *l = &g->s->layers[layer];
    struct cuda_step_taps p = taps_in(t, slabs(g) + (size_t)layer * t->slab_bytes);
    int64_t heads = (int64_t)c->n_head * c->head_dim, kv = (int64_t)c->n_kv_head * c->head_dim, e = c->n_embd;
    const struct cuda_matrix *in[] = {&l->wq, &l->wk, &l->wv}, *o[] = {&l->wo}, *mid[] = {&l->gate, &l->up},
                             *down[] = {&l->down};
    g->layer = layer;
    FWD_TRY(give(g, FWD_OP_ATTN_NORM, p.attn_norm, FWD_F32, e));
    FWD_TRY(give_quantised(g, FWD_OP_ATTN_NORM_Q8, in, 3, p.attn_norm_q8_k, p.attn_norm_q8_32, e));
    FWD_TRY(give(g, FWD_OP_QCUR, p.q, FWD_F32, heads));
    FWD_TRY(give(g, FWD_OP_KCUR, p.k, FWD_F32, kv));
    FWD_TRY(give(g, FWD_OP_VCUR, p.v, FWD_F32, kv));
    FWD_TRY(give(g, FWD_OP_QCUR_ROPE, p.q_rope, FWD_F32, heads));
    FWD_TRY(give(g, FWD_OP_KCUR_ROPE, p.k_rope, FWD_F32, kv));
    FWD_TRY(give_cache(g, FWD_OP_K_CACHE));
    FWD_TRY(give_cache(g, FWD_OP_V_CACHE));
    FWD_TRY(give(g, FWD_OP_KQV_OUT, p.heads, FWD_F32, heads));
    FWD_TRY(give_quantised(g, FWD_OP_KQV_OUT_Q8, o, 1, p.heads_q8, p.heads_q8, heads));
    FWD_TRY(give(g, FWD_OP_ATTN_OUT, p.attn_out, FWD_F32, e));
    FWD_TRY(give(g, FWD_OP_FFN_INP, p.ffn_inp, FWD_F32, e));
    FWD_TRY(give(g, FWD_OP_FFN_NORM, p.ffn_norm, FWD_F32, e));
    FWD_TRY(give_quantised(g, FWD_OP_FFN_NORM_Q8, mid, 2, p.ffn_norm_q8_k, p.ffn_norm_q8_32, e));
    FWD_TRY(give(g, FWD_OP_FFN_GATE, p.gate, FWD_F32, c->n_ff));
    FWD_TRY(give(g, FWD_OP_FFN_UP, p.up, FWD_F32, c->n_ff));
    FWD_TRY(give(g, FWD_OP_FFN_SWIGLU, p.swiglu, FWD_F32, c->n_ff));
    FWD_TRY(give_quantised(g, FWD_OP_FFN_SWIGLU_Q8, down, 1, p.swiglu_q8, p.swiglu_q8, c->n_ff));
    FWD_TRY(give(g, FWD_OP_FFN_OUT, p.ffn_out, FWD_F32, e));
    return give(g, FWD_OP_L_OUT, p.l_out, FWD_F32, e);
}

static enum fwd_status give_all(struct fwd_session *s, const struct fwd_run_args *args, bool head,
                                struct fwd_error *err) {
    const struct cuda_stepper *t = s->stepper;
    const struct fwd_config *c = &s->model->config;
    struct giver g = {.s = s, .args = args, .err = err, .layer = -1};
    struct cuda_step_taps p = taps_in(t, slabs(&g) + (size_t)c->n_layer * t->slab_bytes);
    FWD_TRY(give(&g, FWD_OP_INP_EMBD, p.l_out, FWD_F32, c->n_embd));
    for (int i = 0; i < c->n_layer; i++)
        FWD_TRY(give_layer(&g, i));
    if (!head)
        return FWD_OK;
    const struct cuda_matrix *output[] = {&s->output};
    g.layer = -1;
    FWD_TRY(give(&g, FWD_OP_RESULT_NORM, p.result_norm, FWD_F32, c->n_embd));
    FWD_TRY(give_quantised(&g, FWD_OP_RESULT_NORM_Q8, output, 1, p.result_q8, p.result_q8, c->n_embd));
    return give(&g, FWD_OP_RESULT_OUTPUT, args->digest ? (const void *)t->slab : t->logits_host, FWD_F32, c->n_vocab);
}

/* Host room for what this call hands out. */
static enum fwd_status make_room(struct fwd_session *s, const struct fwd_run_args *args, unsigned form,
                                 struct fwd_error *err) {
    struct cuda_stepper *t = s->stepper;
    const struct fwd_config *c = &s->model->config;
    void *p;
    if (form & WITH_LOGITS && !t->logits_host) {
        FWD_TRY(cuda_alloc_host(&p, (size_t)c->n_vocab * sizeof(float), "logits", err));
        t->logits_host = p;
    }
    if (!(form & WITH_TAPS))
        return FWD_OK;
    if (!t->slab_host) {
        FWD_TRY(cuda_alloc_host(&p, (size_t)(c->n_layer + 1) * t->slab_bytes, "taps", err));
        t->slab_host = p;
    }
    size_t rows = (size_t)(2 * c->n_layer * c->n_kv_head) * (size_t)s->kv_row;
    size_t need = rows * (size_t)(args->pos0 + 1);
    if (t->kv_host_bytes < need) {
        size_t room = (size_t)(args->pos0 + 1 + 256);
        room = room < (size_t)s->n_ctx ? room : (size_t)s->n_ctx;
        cuda_free_host(t->kv_host);
        t->kv_host = NULL;
        t->kv_host_bytes = 0;
        FWD_TRY(cuda_alloc_host(&p, rows * room, "taps of the cache", err));
        t->kv_host = p;
        t->kv_host_bytes = rows * room;
    }
    return FWD_OK;
}

/* Every head of every layer lies one stride from the next: one copy fetches their rows 0 .. pos. */
static enum fwd_status fetch_cache(struct fwd_session *s, const struct fwd_run_args *args, struct fwd_error *err) {
    const struct fwd_config *c = &s->model->config;
    size_t width = (size_t)((args->pos0 + 1) * s->kv_row);
    return cuda_status(cudaMemcpy2DAsync(s->stepper->kv_host, width, s->kv + args->seq * s->kv_slot, (size_t)s->kv_head,
                                         width, (size_t)(2 * c->n_layer * c->n_kv_head), cudaMemcpyDeviceToHost,
                                         s->device.compute),
                       "taps of the cache", err);
}

enum fwd_status cuda_stepper_run(struct fwd_session *s, const struct fwd_run_args *args, bool head,
                                 struct fwd_error *err) {
    struct cuda_stepper *t = s->stepper;
    bool wanted = args->want_logits ? args->want_logits[0] != 0 : true;
    head = head && wanted;
    unsigned form = (args->tap ? WITH_TAPS : 0u) | (args->digest ? WITH_DIGESTS : 0u) | (head ? WITH_HEAD : 0u) |
                    (head && (args->logits || args->tap) ? WITH_LOGITS : 0u);
    FWD_TRY(make_room(s, args, form, err));
    if (args->digest)
        FWD_TRY(prepare_digests(s, err));
    t->io->state = (struct cuda_step_state){
        .pos = args->pos0, .slot = args->seq, .taps = args->tap || args->digest, .token = args->tokens[0]};
    FWD_TRY(launch(s, form, err));
    if (args->tap)
        FWD_TRY(fetch_cache(s, args, err));
    FWD_TRY(cuda_wait(s->device.compute, "a step", err));
    if (head && args->argmax)
        args->argmax[0] = t->io->argmax;
    if (head && args->logits)
        memcpy(args->logits, t->logits_host, (size_t)s->model->config.n_vocab * sizeof(float));
    return args->tap || args->digest ? give_all(s, args, head, err) : FWD_OK;
}

bool cuda_stepper_has_head(const struct fwd_session *s) {
    return s->stepper->has_head;
}
