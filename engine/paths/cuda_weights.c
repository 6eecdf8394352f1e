/* engine/paths/cuda_weights.c: a model's numbers onto the device, once, in one block that was sized before it was asked
 * for; and back again, to show what the kernels really read. */
#include "paths/cuda_session.h"

#include "ops/matmul_q/matmul_q.h"
#include "quant/quant.h"

#include <cuda_runtime_api.h>
#include <math.h>
#include <string.h>

enum { STAGING_BYTES = 32 << 20 };

void cuda_layer_matrices(struct cuda_layer *l, struct cuda_matrix *out[CUDA_LAYER_MATRICES]) {
    struct cuda_matrix *all[CUDA_LAYER_MATRICES] = {&l->wq, &l->wk, &l->wv, &l->wo, &l->gate, &l->up, &l->down};
    memcpy(out, all, sizeof all);
}

const char *cuda_form_name(enum cuda_form form) {
    static const char *const names[] = {"none", "tiles8x256", "f32", "bf16", "e4m3"};
    return names[form];
}

/* ---- what goes where ----------------------------------------------------------------------------------------------
 */

static size_t matrix_bytes(const struct cuda_linear *m) {
    size_t n = (size_t)m->n_rows * (size_t)m->n_cols;
    switch (m->form) {
    case CUDA_FORM_TILES:
        return fwd_tiles_bytes(m->type, m->n_rows, m->n_cols);
    case CUDA_FORM_F32:
        return n * 4;
    case CUDA_FORM_BF16:
        return n * 2;
    case CUDA_FORM_E4M3:
        return n;
    case CUDA_FORM_NONE:
        break;
    }
    return 0;
}

static enum fwd_status describe(const struct fwd_session *s, struct cuda_matrix *m, const struct fwd_weight *w,
                                const struct fwd_weight *bias, bool is_head, struct fwd_error *err) {
    FWD_FAIL_IF(!fwd_decode_for(w->type), FWD_ETYPE, err, "%s: type %s cannot be computed with", w->name,
                fwd_type_name(w->type));
    enum cuda_form form = s->kind->form;
    if (is_head && s->head == FWD_HEAD_F32)
        form = CUDA_FORM_F32;
    if (form == CUDA_FORM_TILES && fwd_matmul_q_act(w->type) == FWD_F32)
        form = CUDA_FORM_F32;
    if (form == CUDA_FORM_E4M3 && (w->n_rows % 16 != 0 || w->n_cols % 16 != 0))
        form = CUDA_FORM_BF16; /* the library asks for whole 16s */
    if (form == CUDA_FORM_BF16 && w->n_cols % 16 != 0)
        form = CUDA_FORM_F32;
    *m = (struct cuda_matrix){.file = w, .bias_file = bias && bias->data ? bias : NULL};
    m->dev = (struct cuda_linear){.form = form,
                                  .type = w->type,
                                  .act = form == CUDA_FORM_TILES  ? fwd_matmul_q_act(w->type)
                                         : form == CUDA_FORM_BF16 ? FWD_BF16
                                         : form == CUDA_FORM_E4M3 ? FWD_E4M3
                                                                  : FWD_F32,
                                  .n_rows = w->n_rows,
                                  .n_cols = w->n_cols,
                                  .n_sb = (int)((w->n_cols + FWD_TILE_COLS - 1) / FWD_TILE_COLS)};
    return FWD_OK;
}

/* Products of one input read one conversion of it: where one of them cannot be E4M3 none is. */
static void agree(struct cuda_matrix *const *m, int n) {
    bool mixed = false;
    for (int i = 0; i < n; i++)
        mixed |= m[i]->dev.form == CUDA_FORM_BF16;
    for (int i = 0; i < n; i++)
        if (mixed && m[i]->dev.form == CUDA_FORM_E4M3) {
            m[i]->dev.form = CUDA_FORM_BF16;
            m[i]->dev.act = FWD_BF16;
        }
}

static enum fwd_status describe_all(struct fwd_session *s, struct fwd_error *err) {
    const struct fwd_model *m = s->model;
    s->layers = fwd_calloc((size_t)m->config.n_layer, sizeof *s->layers);
    FWD_FAIL_IF(!s->layers, FWD_ENOMEM, err, "%s: no memory for %d layers", s->kind->name, m->config.n_layer);
    for (int i = 0; i < m->config.n_layer; i++) {
        const struct fwd_layer *w = &m->layers[i];
        struct cuda_layer *l = &s->layers[i];
        l->file = w;
        FWD_TRY(describe(s, &l->wq, &w->wq, &w->bq, false, err));
        FWD_TRY(describe(s, &l->wk, &w->wk, &w->bk, false, err));
        FWD_TRY(describe(s, &l->wv, &w->wv, &w->bv, false, err));
        FWD_TRY(describe(s, &l->wo, &w->wo, NULL, false, err));
        FWD_TRY(describe(s, &l->gate, &w->gate, NULL, false, err));
        FWD_TRY(describe(s, &l->up, &w->up, NULL, false, err));
        FWD_TRY(describe(s, &l->down, &w->down, NULL, false, err));
        struct cuda_matrix *const qkv[] = {&l->wq, &l->wk, &l->wv}, *const ffn[] = {&l->gate, &l->up};
        agree(qkv, 3);
        agree(ffn, 2);
    }
    FWD_FAIL_IF(!fwd_decode_for(m->tok_embd.type), FWD_ETYPE, err, "%s: type %s cannot be decoded", m->tok_embd.name,
                fwd_type_name(m->tok_embd.type));
    return describe(s, &s->output, &m->output, NULL, true, err);
}

static void lay_out_matrix(struct cuda_layout *l, struct cuda_matrix *m) {
    m->dev.data = cuda_take(l, matrix_bytes(&m->dev), 1);
    m->dev.scale = m->dev.form == CUDA_FORM_E4M3 ? cuda_take(l, (size_t)m->dev.n_rows, sizeof(float)) : NULL;
    m->dev.bias = m->bias_file ? cuda_take(l, (size_t)m->dev.n_rows, sizeof(float)) : NULL;
}

/* Nothing that another session lends is laid out again. */
static void lay_out(struct fwd_session *s, struct cuda_layout *l) {
    const struct fwd_config *c = &s->model->config;
    if (!s->shared_output)
        lay_out_matrix(l, &s->output);
    if (s->share)
        return;
    for (int i = 0; i < c->n_layer; i++) {
        struct cuda_matrix *m[CUDA_LAYER_MATRICES];
        s->layers[i].attn_norm = cuda_take(l, (size_t)c->n_embd, sizeof(float));
        s->layers[i].ffn_norm = cuda_take(l, (size_t)c->n_embd, sizeof(float));
        cuda_layer_matrices(&s->layers[i], m);
        for (int j = 0; j < CUDA_LAYER_MATRICES; j++)
            lay_out_matrix(l, m[j]);
    }
    s->output_norm = cuda_take(l, (size_t)c->n_embd, sizeof(float));
    const struct fwd_weight *e = &s->model->tok_embd;
    s->embedding = cuda_take(l, (size_t)e->n_rows, (size_t)e->row_bytes);
    s->kv_head_of = cuda_take(l, (size_t)c->n_head, sizeof(int32_t));
}

/* ---- there --------------------------------------------------------------------------------------------------------
 */

/* Two halves: while the card fetches one, the cores fill the other. */
struct staging {
    struct fwd_session *s;
    uint8_t *host[2];
    void *device[2]; /* for rows that the card decodes */
    cudaEvent_t fetched[2];
    int turn;
};

static enum fwd_status staging_begin(struct staging *g, struct fwd_session *s, struct fwd_error *err) {
    *g = (struct staging){.s = s};
    for (int i = 0; i < 2; i++) {
        void *p;
        FWD_TRY(cuda_alloc_host(&p, STAGING_BYTES, "weights' staging", err));
        g->host[i] = p;
        FWD_TRY(cuda_alloc(&g->device[i], STAGING_BYTES, "weights' staging", err));
        FWD_TRY(cuda_status(cudaEventCreateWithFlags(&g->fetched[i], cudaEventDisableTiming), "an event", err));
    }
    return FWD_OK;
}

static void staging_end(struct staging *g) {
    (void)cudaStreamSynchronize(g->s->device.compute);
    for (int i = 0; i < 2; i++) {
        cuda_free_host(g->host[i]);
        cuda_free(g->device[i]);
        if (g->fetched[i])
            (void)cudaEventDestroy(g->fetched[i]);
    }
}

struct fill_job {
    const struct fwd_weight *w;
    uint8_t *dst;
    int64_t begin, n; /* strips, or bytes of the file */
    bool tiles;
};

static void fill_part(void *ctx, int thread, int n_threads) {
    const struct fill_job *j = ctx;
    int64_t b, e;
    fwd_range_split(j->n, j->tiles ? 1 : 4096, thread, n_threads, &b, &e);
    if (b >= e)
        return;
    if (j->tiles) {
        int64_t strip_bytes = (j->w->n_cols + FWD_TILE_COLS - 1) / FWD_TILE_COLS * (int64_t)fwd_tile_bytes(j->w->type);
        fwd_tiles_pack(j->w->type, j->w->data, j->w->row_bytes, j->w->n_rows, j->w->n_cols, j->begin + b, e - b,
                       j->dst + b * strip_bytes);
    } else {
        memcpy(j->dst + b, j->w->data + j->begin + b, (size_t)(e - b));
    }
}

/* Fills the next half with part of a weight; *at is where it lies. n_bytes of it go to `to` on the device. */
static enum fwd_status send(struct staging *g, struct fill_job job, size_t n_bytes, void *to, struct fwd_error *err) {
    int t = g->turn;
    FWD_TRY(cuda_status(cudaEventSynchronize(g->fetched[t]), "weights' staging", err));
    job.dst = g->host[t];
    fwd_pool_run(g->s->pool, fill_part, &job);
    cudaStream_t stream = g->s->device.compute;
    FWD_TRY(cuda_status(cudaMemcpyAsync(to, g->host[t], n_bytes, cudaMemcpyHostToDevice, stream), job.w->name, err));
    return cuda_status(cudaEventRecord(g->fetched[t], stream), job.w->name, err);
}

static enum fwd_status load_tiles(struct staging *g, const struct cuda_matrix *m, struct fwd_error *err) {
    int64_t strip_bytes = m->dev.n_sb * (int64_t)fwd_tile_bytes(m->dev.type);
    int64_t n_strips = (m->dev.n_rows + FWD_TILE_ROWS - 1) / FWD_TILE_ROWS, step = STAGING_BYTES / strip_bytes;
    FWD_FAIL_IF(step < 1, FWD_ESHAPE, err, "%s: rows of %lld values, expected at most %lld", m->file->name,
                (long long)m->dev.n_cols, (long long)STAGING_BYTES / strip_bytes * FWD_TILE_COLS);
    for (int64_t at = 0; at < n_strips; at += step, g->turn ^= 1) {
        int64_t n = n_strips - at < step ? n_strips - at : step;
        struct fill_job job = {.w = m->file, .begin = at, .n = n, .tiles = true};
        uint8_t *to = (uint8_t *)(uintptr_t)m->dev.data + at * strip_bytes;
        FWD_TRY(send(g, job, (size_t)(n * strip_bytes), to, err));
    }
    return FWD_OK;
}

/* Rows as in the file go over; the card makes floats of them. */
static enum fwd_status load_rows(struct staging *g, const struct cuda_matrix *m, struct fwd_error *err) {
    int64_t row = m->file->row_bytes, step = STAGING_BYTES / row;
    size_t value = matrix_bytes(&m->dev) / ((size_t)m->dev.n_rows * (size_t)m->dev.n_cols);
    FWD_FAIL_IF(step < 1, FWD_ESHAPE, err, "%s: rows of %lld bytes, expected at most %d", m->file->name, (long long)row,
                STAGING_BYTES);
    for (int64_t at = 0; at < m->dev.n_rows; at += step, g->turn ^= 1) {
        int64_t n = m->dev.n_rows - at < step ? m->dev.n_rows - at : step;
        struct fill_job job = {.w = m->file, .begin = at * row, .n = n * row};
        FWD_TRY(send(g, job, (size_t)(n * row), g->device[g->turn], err));
        uint8_t *to = (uint8_t *)(uintptr_t)m->dev.data + (size_t)at * (size_t)m->dev.n_cols * value;
        float *scale = m->dev.scale ? (float *)(uintptr_t)m->dev.scale + at : NULL;
        cuda_dequantise(g->s->device.compute, m->dev.type, g->device[g->turn], row, n, m->dev.n_cols, m->dev.form, to,
                        scale);
        FWD_TRY(cuda_launched(m->file->name, err));
        /* the device half is read by that kernel */
        FWD_TRY(cuda_status(cudaEventRecord(g->fetched[g->turn], g->s->device.compute), m->file->name, err));
    }
    return FWD_OK;
}

static enum fwd_status load_bytes(const struct fwd_weight *w, const void *to, struct fwd_error *err) {
    size_t n_bytes = (size_t)w->n_rows * (size_t)w->row_bytes;
    return cuda_status(cudaMemcpy((void *)(uintptr_t)to, w->data, n_bytes, cudaMemcpyHostToDevice), w->name, err);
}

static enum fwd_status load_matrix(struct staging *g, const struct cuda_matrix *m, struct fwd_error *err) {
    FWD_TRY(m->dev.form == CUDA_FORM_TILES ? load_tiles(g, m, err) : load_rows(g, m, err));
    if (m->bias_file)
        FWD_TRY(load_bytes(m->bias_file, m->dev.bias, err));
    if (m->file->tensor && g->s->file)
        fwd_gguf_drop_pages(g->s->file, m->file->tensor);
    return FWD_OK;
}

static enum fwd_status load_all(struct staging *g, struct fwd_session *s, struct fwd_error *err) {
    const struct fwd_model *model = s->model;
    if (!s->shared_output)
        FWD_TRY(load_matrix(g, &s->output, err));
    if (s->share)
        return FWD_OK;
    for (int i = 0; i < model->config.n_layer; i++) {
        struct cuda_layer *l = &s->layers[i];
        struct cuda_matrix *m[CUDA_LAYER_MATRICES];
        FWD_TRY(load_bytes(&l->file->attn_norm, l->attn_norm, err));
        FWD_TRY(load_bytes(&l->file->ffn_norm, l->ffn_norm, err));
        cuda_layer_matrices(l, m);
        for (int j = 0; j < CUDA_LAYER_MATRICES; j++)
            FWD_TRY(load_matrix(g, m[j], err));
    }
    FWD_TRY(load_bytes(&model->output_norm, s->output_norm, err));
    FWD_TRY(load_bytes(&model->tok_embd, s->embedding, err));
    size_t heads = (size_t)model->config.n_head * sizeof(int32_t);
    _Static_assert(sizeof(int) == sizeof(int32_t), "the head map goes over as it is");
    return cuda_status(cudaMemcpy(s->kv_head_of, model->config.kv_head_of, heads, cudaMemcpyHostToDevice),
                       "the head map", err);
}

/* The device's numbers of a session that stays open; the views of the file are this one's own. The head is lent too
 * where both want it in the same form. */
static enum fwd_status borrow(struct fwd_session *s, struct fwd_error *err) {
    const struct fwd_session *from = s->share;
    FWD_FAIL_IF(from->kind->form != s->kind->form || from->file != s->file ||
                    from->model->config.n_layer != s->model->config.n_layer,
                FWD_EINPUT, err, "%s: cannot share the weights of a session of %s on %s", s->kind->name,
                from->kind->name, from->file == s->file ? "the same file" : "another file");
    for (int i = 0; i < s->model->config.n_layer; i++) {
        struct cuda_matrix *to[CUDA_LAYER_MATRICES], *theirs[CUDA_LAYER_MATRICES];
        cuda_layer_matrices(&s->layers[i], to);
        cuda_layer_matrices(&from->layers[i], theirs);
        for (int j = 0; j < CUDA_LAYER_MATRICES; j++)
            to[j]->dev = theirs[j]->dev;
        s->layers[i].attn_norm = from->layers[i].attn_norm;
        s->layers[i].ffn_norm = from->layers[i].ffn_norm;
    }
    s->shared_output = from->output.dev.form == s->output.dev.form;
    if (s->shared_output)
        s->output.dev = from->output.dev;
    s->output_norm = from->output_norm;
    s->embedding = from->embedding;
    s->kv_head_of = from->kv_head_of;
    return FWD_OK;
}

enum fwd_status cuda_weights_load(struct fwd_session *s, struct fwd_error *err) {
    FWD_TRY(describe_all(s, err));
    if (s->share)
        FWD_TRY(borrow(s, err));
    if (s->shared_output)
        return FWD_OK;
    struct cuda_layout l = {0};
    lay_out(s, &l);
    s->weight_bytes = l.used;
    FWD_TRY(cuda_alloc(&s->weights, l.used, "weights", err));
    l = (struct cuda_layout){.base = s->weights};
    lay_out(s, &l);
    struct staging g;
    enum fwd_status rc = staging_begin(&g, s, err);
    if (rc == FWD_OK)
        rc = load_all(&g, s, err);
    if (rc == FWD_OK)
        rc = cuda_wait(s->device.compute, "weights", err);
    staging_end(&g);
    return rc;
}

/* ---- and back -----------------------------------------------------------------------------------------------------
 */

enum fwd_status cuda_bytes_checksum(const void *device, size_t n_bytes, uint64_t *out, struct fwd_error *err) {
    uint8_t *copy = fwd_alloc(n_bytes, 1);
    FWD_FAIL_IF(!copy, FWD_ENOMEM, err, "weights' audit: no memory for %zu bytes", n_bytes);
    enum fwd_status rc = cuda_status(cudaMemcpy(copy, device, n_bytes, cudaMemcpyDeviceToHost), "weights' audit", err);
    if (rc == FWD_OK)
        *out = fwd_hash64(copy, n_bytes);
    fwd_free(copy);
    return rc;
}

static enum fwd_status hash_tiles(const struct cuda_matrix *m, struct fwd_hash *hash, struct fwd_error *err) {
    int64_t strip_bytes = m->dev.n_sb * (int64_t)fwd_tile_bytes(m->dev.type);
    int64_t step = STAGING_BYTES / strip_bytes * FWD_TILE_ROWS;
    uint8_t *tiles = fwd_alloc(STAGING_BYTES, 1), *row = fwd_alloc((size_t)m->file->row_bytes, 1);
    enum fwd_status rc = tiles && row ? FWD_OK : FWD_ENOMEM;
    for (int64_t at = 0; rc == FWD_OK && at < m->dev.n_rows; at += step) {
        int64_t n = m->dev.n_rows - at < step ? m->dev.n_rows - at : step;
        const uint8_t *from = (const uint8_t *)m->dev.data + at / FWD_TILE_ROWS * strip_bytes;
        size_t n_bytes = (size_t)((n + FWD_TILE_ROWS - 1) / FWD_TILE_ROWS * strip_bytes);
        rc = cuda_status(cudaMemcpy(tiles, from, n_bytes, cudaMemcpyDeviceToHost), m->file->name, err);
        for (int64_t r = 0; rc == FWD_OK && r < n; r++) {
            fwd_tiles_unpack_row(m->dev.type, tiles, r, m->dev.n_cols, row);
            fwd_hash_add(hash, row, (size_t)m->file->row_bytes);
        }
    }
    if (!tiles || !row)
        rc = fwd_fail(err, FWD_ENOMEM, __FILE__, __LINE__, "%s: no memory for its audit", m->file->name);
    fwd_free(tiles);
    fwd_free(row);
    return rc;
}

/* ---- floats ---- */

static uint16_t as_bf16(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return 0x7fff;
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

/* Nearest even, saturating: 4 exponent bits with bias 7, 3 fraction bits, no infinity. */
static uint8_t as_e4m3(float x) {
    uint8_t sign = signbit(x) ? 0x80 : 0;
    float a = fabsf(x);
    if (isnan(a))
        return 0x7f;
    if (a >= 448.0f)
        return sign | 0x7e;
    if (a < 0x1p-6f)
        return (uint8_t)(sign | (uint8_t)nearbyintf(a * 512.0f));
    int e;
    (void)frexpf(a, &e); /* a in [2^(e-1), 2^e) */
    int code = (int)nearbyintf(ldexpf(a, 4 - e)) - 8 + ((e + 6) << 3);
    return (uint8_t)(sign | code);
}

/* A row of the file in a form, as cuda_dequantise makes it. */
static void convert_row(enum cuda_form form, const float *x, int64_t n, void *out) {
    float amax = 0;
    bool finite = true;
    for (int64_t i = 0; i < n; i++) {
        finite &= isfinite(x[i]) != 0;
        amax = fabsf(x[i]) > amax ? fabsf(x[i]) : amax;
    }
    float id = finite && amax >= 0x1p-100f ? 448.0f / amax : 0.0f;
    for (int64_t i = 0; i < n; i++) {
        if (form == CUDA_FORM_BF16)
            ((uint16_t *)out)[i] = as_bf16(x[i]);
        else if (form == CUDA_FORM_E4M3)
            ((uint8_t *)out)[i] = id > 0 ? as_e4m3(x[i] * id) : 0;
        else
            ((float *)out)[i] = x[i];
    }
}

/* A float form cannot be turned back into blocks. Where a row on the device is, bit for bit, the file's row decoded and
 * converted, what is bound is the file's row; where it is not, it counts as its own bytes, and the checksum is no
 * file's. */
static enum fwd_status hash_floats(const struct cuda_matrix *m, struct fwd_hash *hash, struct fwd_error *err) {
    size_t n_cols = (size_t)m->dev.n_cols;
    size_t row_bytes = matrix_bytes(&m->dev) / (size_t)m->dev.n_rows;
    int64_t step = STAGING_BYTES / (int64_t)row_bytes > 0 ? STAGING_BYTES / (int64_t)row_bytes : 1;
    float *decoded = fwd_alloc(n_cols, sizeof *decoded);
    uint8_t *want = fwd_alloc(row_bytes, 1), *got = fwd_alloc(row_bytes, (size_t)step);
    enum fwd_status rc = decoded && want && got ? FWD_OK : FWD_ENOMEM;
    for (int64_t at = 0; rc == FWD_OK && at < m->dev.n_rows; at += step) {
        int64_t n = m->dev.n_rows - at < step ? m->dev.n_rows - at : step;
        const uint8_t *from = (const uint8_t *)m->dev.data + (size_t)at * row_bytes;
        rc = cuda_status(cudaMemcpy(got, from, row_bytes * (size_t)n, cudaMemcpyDeviceToHost), m->file->name, err);
        for (int64_t r = 0; rc == FWD_OK && r < n; r++) {
            const uint8_t *file = m->file->data + (at + r) * m->file->row_bytes, *row = got + (size_t)r * row_bytes;
            fwd_decode_for(m->dev.type)(file, decoded, m->dev.n_cols);
            convert_row(m->dev.form, decoded, m->dev.n_cols, want);
            bool same = memcmp(want, row, row_bytes) == 0;
            fwd_hash_add(hash, same ? file : row, same ? (size_t)m->file->row_bytes : row_bytes);
        }
    }
    if (!decoded || !want || !got)
        rc = fwd_fail(err, FWD_ENOMEM, __FILE__, __LINE__, "%s: no memory for its audit", m->file->name);
    fwd_free(decoded);
    fwd_free(want);
    fwd_free(got);
    return rc;
}

enum fwd_status cuda_matrix_checksum(const struct fwd_session *s, const struct cuda_matrix *m, uint64_t *out,
                                     struct fwd_error *err) {
    (void)s;
    struct fwd_hash hash;
    fwd_hash_begin(&hash);
    FWD_TRY(m->dev.form == CUDA_FORM_TILES ? hash_tiles(m, &hash, err) : hash_floats(m, &hash, err));
    *out = fwd_hash_end(&hash);
    return FWD_OK;
}
