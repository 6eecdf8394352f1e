/* engine/paths/cuda_override.c: what the host sees of a run on the device. Taps are copies made beside the computation;
 * an overridden op reads host copies of its inputs, and its output is sent back before the next op starts. */
#include "paths/cuda_session.h"

#include "cuda/digest.h"

#include <cuda_runtime_api.h>
#include <string.h>

enum { SLOTS = 4, OUT = 3 };

/* Page-locked copies (0-2: inputs or taps in turn, 3: an output), and device copies of what an override hands to a
 * builtin, which may be other values than the path's own. All grow when first needed. */
struct cuda_host {
    void *host[SLOTS], *device[SLOTS];
    size_t host_bytes[SLOTS], device_bytes[SLOTS];
    void *bias;
    size_t bias_bytes;
    cudaEvent_t made, copied[2];
    struct fwd_view pending; /* a tap, or the chunks of a digest, whose copy is under way */
    bool is_pending;
    void *chunks[2]; /* device: digests in the making */
    size_t chunks_bytes[2];
    int turn;
};

enum fwd_status cuda_host_create(struct fwd_session *s, struct fwd_error *err) {
    s->host = fwd_calloc(1, sizeof *s->host);
    FWD_FAIL_IF(!s->host, FWD_ENOMEM, err, "%s: no memory for its taps", s->kind->name);
    cudaEvent_t *events[] = {&s->host->made, &s->host->copied[0], &s->host->copied[1]};
    for (int i = 0; i < 3; i++)
        FWD_TRY(cuda_status(cudaEventCreateWithFlags(events[i], cudaEventDisableTiming), "an event", err));
    return FWD_OK;
}

void cuda_host_free(struct fwd_session *s) {
    struct cuda_host *h = s->host;
    if (!h)
        return;
    for (int i = 0; i < SLOTS; i++) {
        cuda_free_host(h->host[i]);
        cuda_free(h->device[i]);
    }
    cuda_free(h->bias);
    cuda_free(h->chunks[0]);
    cuda_free(h->chunks[1]);
    cudaEvent_t events[] = {h->made, h->copied[0], h->copied[1]};
    for (int i = 0; i < 3; i++)
        if (events[i])
            (void)cudaEventDestroy(events[i]);
    fwd_free(h);
    s->host = NULL;
}

static enum fwd_status grow_host(struct cuda_host *h, int slot, size_t n_bytes, struct fwd_error *err) {
    if (h->host_bytes[slot] >= n_bytes)
        return FWD_OK;
    cuda_free_host(h->host[slot]);
    h->host_bytes[slot] = 0;
    FWD_TRY(cuda_alloc_host(&h->host[slot], n_bytes, "taps", err));
    h->host_bytes[slot] = n_bytes;
    return FWD_OK;
}

static enum fwd_status grow_device(void **p, size_t *have, size_t n_bytes, struct fwd_error *err) {
    if (*have >= n_bytes)
        return FWD_OK;
    cuda_free(*p);
    *have = 0;
    FWD_TRY(cuda_alloc(p, n_bytes, "an override's inputs", err));
    *have = n_bytes;
    return FWD_OK;
}

/* ---- copies -------------------------------------------------------------------------------------------------------
 */

static bool is_cache(enum fwd_op op) {
    return op == FWD_OP_K_CACHE || op == FWD_OP_V_CACHE;
}

static size_t view_bytes(const struct fwd_view *v) {
    return is_cache(v->op) ? (size_t)(v->ne[2] * v->ne[1]) * fwd_dtype_row_bytes(v->dtype, v->ne[0])
                           : (size_t)(v->nb[1] * v->n_pos);
}

/* The same value in `data`, rows close together. */
static struct fwd_view packed_view(const struct fwd_view *v, void *data, int device) {
    struct fwd_view out = *v;
    out.data = data;
    out.device = device;
    if (is_cache(v->op)) {
        out.nb[2] = (int64_t)fwd_dtype_row_bytes(v->dtype, v->ne[0]);
        out.nb[1] = out.nb[2] * v->ne[2];
        out.nb[3] = out.nb[1] * v->ne[1];
    }
    if (!device)
        out.stream = NULL;
    return out;
}

static enum fwd_status copy_view(const struct fwd_view *from, const struct fwd_view *to, enum cudaMemcpyKind kind,
                                 cudaStream_t stream, struct fwd_error *err) {
    cudaError_t e;
    if (is_cache(from->op)) {
        size_t width = (size_t)(from->ne[2] * (int64_t)fwd_dtype_row_bytes(from->dtype, from->ne[0]));
        e = cudaMemcpy2DAsync(to->data, (size_t)to->nb[1], from->data, (size_t)from->nb[1], width, (size_t)from->ne[1],
                              kind, stream);
    } else {
        e = cudaMemcpyAsync(to->data, from->data, view_bytes(from), kind, stream);
    }
    return cuda_status(e, fwd_op_name(from->op), err);
}

enum fwd_status cuda_to_host(struct fwd_session *s, const struct fwd_view *device, int slot, struct fwd_view *host,
                             struct fwd_error *err) {
    FWD_TRY(grow_host(s->host, slot, view_bytes(device), err));
    *host = packed_view(device, s->host->host[slot], 0);
    FWD_TRY(copy_view(device, host, cudaMemcpyDeviceToHost, s->device.compute, err));
    return cuda_wait(s->device.compute, fwd_op_name(device->op), err);
}

enum fwd_status cuda_from_host(struct fwd_session *s, const struct fwd_view *host, const struct fwd_view *device,
                               struct fwd_error *err) {
    return copy_view(host, device, cudaMemcpyHostToDevice, s->device.compute, err);
}

/* ---- taps ---------------------------------------------------------------------------------------------------------
 */

static enum fwd_status call_tap(const struct fwd_session *s, const struct fwd_run_args *args,
                                const struct fwd_view *view, struct fwd_error *err) {
    if (args->tap(args->tap_ud, view) != 0)
        FWD_FAIL(FWD_ESTOPPED, err, "%s: the tap stopped the run at %s, layer %d", s->kind->name, fwd_op_name(view->op),
                 view->layer);
    return FWD_OK;
}

static size_t view_words(const struct fwd_view *v) {
    return (view_bytes(v) + 3) / 4;
}

static size_t n_chunks(const struct fwd_view *v) {
    return (view_words(v) + FWD_DIGEST_CHUNK - 1) / FWD_DIGEST_CHUNK;
}

static enum fwd_status call_digest(const struct fwd_session *s, const struct fwd_run_args *args,
                                   const struct fwd_view *view, struct fwd_error *err) {
    const struct fwd_digest *chunks = view->data;
    struct fwd_view bare = *view;
    struct fwd_digest sum = {0};
    for (size_t i = 0; i < n_chunks(view); i++)
        fwd_digest_add(&sum, &chunks[i]);
    bare.data = NULL;
    if (args->digest(args->digest_ud, &bare, &sum) != 0)
        FWD_FAIL(FWD_ESTOPPED, err, "%s: the digest stopped the run at %s, layer %d", s->kind->name,
                 fwd_op_name(view->op), view->layer);
    return FWD_OK;
}

enum fwd_status cuda_tap_flush(struct fwd_session *s, const struct fwd_run_args *args, struct fwd_error *err) {
    struct cuda_host *h = s->host;
    if (!h->is_pending)
        return FWD_OK;
    h->is_pending = false;
    FWD_TRY(cuda_status(cudaEventSynchronize(h->copied[h->turn]), fwd_op_name(h->pending.op), err));
    if (args->digest)
        return call_digest(s, args, &h->pending, err);
    return args->tap ? call_tap(s, args, &h->pending, err) : FWD_OK;
}

/* What was enqueued into `slot` on the copy stream is the next thing to hand out; the one before it is handed out now.
 */
static enum fwd_status next_pending(struct fwd_session *s, const struct fwd_run_args *args, int slot,
                                    const struct fwd_view *host, struct fwd_error *err) {
    struct cuda_host *h = s->host;
    FWD_TRY(cuda_status(cudaEventRecord(h->copied[slot], s->device.copy), "a tap", err));
    FWD_TRY(cuda_tap_flush(s, args, err));
    h->turn = slot;
    h->pending = *host;
    h->is_pending = true;
    return FWD_OK;
}

enum fwd_status cuda_digest_give(struct fwd_session *s, const struct fwd_run_args *args, const struct fwd_view *device,
                                 struct fwd_error *err) {
    struct cuda_host *h = s->host;
    int slot = h->turn ^ 1;
    size_t n_bytes = n_chunks(device) * sizeof(struct fwd_digest);
    FWD_TRY(grow_host(h, slot, n_bytes, err));
    FWD_TRY(grow_device(&h->chunks[slot], &h->chunks_bytes[slot], n_bytes, err));
    cuda_digest_tensor(s->device.compute, device->data, view_words(device), device->dtype == FWD_F32, h->chunks[slot]);
    FWD_TRY(cuda_launched("a digest", err));
    FWD_TRY(cuda_status(cudaEventRecord(h->made, s->device.compute), "a digest", err));
    FWD_TRY(cuda_status(cudaStreamWaitEvent(s->device.copy, h->made, 0), "a digest", err));
    FWD_TRY(
        cuda_status(cudaMemcpyAsync(h->host[slot], h->chunks[slot], n_bytes, cudaMemcpyDeviceToHost, s->device.copy),
                    "a digest", err));
    struct fwd_view host = *device;
    host.data = h->host[slot];
    host.device = 0;
    host.stream = NULL;
    return next_pending(s, args, slot, &host, err);
}

/* No op writes what the op before it wrote, so one copy may still be under way when the next op is launched, and is
 * waited for before the one after that. */
enum fwd_status cuda_tap_give(struct fwd_session *s, const struct fwd_run_args *args, const struct fwd_view *device,
                              struct fwd_error *err) {
    struct cuda_host *h = s->host;
    int slot = h->turn ^ 1;
    FWD_TRY(grow_host(h, slot, view_bytes(device), err));
    struct fwd_view host = packed_view(device, h->host[slot], 0);
    FWD_TRY(cuda_status(cudaEventRecord(h->made, s->device.compute), "a tap", err));
    FWD_TRY(cuda_status(cudaStreamWaitEvent(s->device.copy, h->made, 0), "a tap", err));
    FWD_TRY(copy_view(device, &host, cudaMemcpyDeviceToHost, s->device.copy, err));
    return next_pending(s, args, slot, &host, err);
}

/* ---- overrides ----------------------------------------------------------------------------------------------------
 */

/* What a builtin finds behind fwd_op_call.path_state. */
struct override_step {
    struct fwd_session *s;
    const struct cuda_parts *parts;
    const struct fwd_view *out; /* on the device */
};

static const float *own_bias(const struct cuda_parts *parts) {
    const struct fwd_weight *b = parts->matrix ? parts->matrix->bias_file : NULL;
    return b ? (const float *)(const void *)b->data : NULL;
}

static enum fwd_status send_bias(const struct override_step *step, const float *bias, const float **out,
                                 struct fwd_error *err) {
    struct cuda_host *h = step->s->host;
    *out = NULL;
    if (!bias)
        return FWD_OK;
    if (bias == own_bias(step->parts)) {
        *out = step->parts->matrix->dev.bias;
        return FWD_OK;
    }
    size_t n_bytes = (size_t)step->out->ne[0] * sizeof *bias;
    FWD_TRY(grow_device(&h->bias, &h->bias_bytes, n_bytes, err));
    *out = h->bias;
    return cuda_status(cudaMemcpy(h->bias, bias, n_bytes, cudaMemcpyHostToDevice), "an override's bias", err);
}

/* The op on the device, from the call's own host inputs to the call's host output. */
static enum fwd_status run_builtin(const struct fwd_op_call *call, struct fwd_error *err) {
    const struct override_step *step = call->path_state;
    struct fwd_session *s = step->s;
    struct cuda_host *h = s->host;
    struct fwd_view in[3];
    const struct fwd_view *inputs[3] = {NULL, NULL, NULL};
    FWD_FAIL_IF(call->pos0 < 0 || call->pos0 + call->n_pos > s->n_ctx, FWD_ERANGE, err,
                "%s-%d: positions %d to %d lie outside the %d of this session", fwd_op_name(call->op), call->layer,
                call->pos0, call->pos0 + call->n_pos - 1, s->n_ctx);
    for (int i = 0; i < call->n_in; i++) {
        FWD_TRY(grow_device(&h->device[i], &h->device_bytes[i], view_bytes(call->in[i]), err));
        in[i] = packed_view(call->in[i], h->device[i], 1);
        in[i].stream = s->device.compute;
        FWD_TRY(cuda_from_host(s, call->in[i], &in[i], err));
        inputs[i] = &in[i];
    }
    struct fwd_view out = *step->out;
    out.pos0 = call->pos0;
    const float *bias;
    FWD_TRY(send_bias(step, call->bias, &bias, err));
    if (is_cache(out.op)) /* rows that the override put there count too */
        FWD_TRY(cuda_from_host(s, call->out, &out, err));
    FWD_TRY(cuda_launch(s, step->parts, inputs, &out, bias, call->pos0, call->n_pos, false, err));
    FWD_TRY(copy_view(&out, call->out, cudaMemcpyDeviceToHost, s->device.compute, err));
    return cuda_wait(s->device.compute, fwd_op_name(call->op), err);
}

enum fwd_status cuda_call_override(struct fwd_session *s, const struct fwd_run_args *args,
                                   const struct cuda_parts *parts, const struct fwd_view *const *in,
                                   const struct fwd_view *out, struct fwd_error *err) {
    struct fwd_view host_in[3], host_out;
    struct override_step step = {.s = s, .parts = parts, .out = out};
    const struct cuda_override *o = cuda_override_at(s, out->op, out->layer);
    struct fwd_op_call call = {.size = sizeof call,
                               .op = out->op,
                               .layer = out->layer,
                               .seq = out->seq,
                               .pos0 = out->pos0,
                               .n_pos = out->n_pos,
                               .weight = parts->matrix ? parts->matrix->file : parts->weight,
                               .bias = own_bias(parts),
                               .config = &s->model->config,
                               .pool = s->pool,
                               .builtin = run_builtin,
                               .path_state = &step};
    for (int i = 0; i < 3 && in[i]; i++) {
        FWD_TRY(cuda_to_host(s, in[i], i, &host_in[i], err));
        call.in[i] = &host_in[i];
        call.n_in = i + 1;
    }
    FWD_TRY(cuda_to_host(s, out, OUT, &host_out, err)); /* what was there: an override may leave it */
    call.out = &host_out;
    FWD_TRY(o->fn(o->ud, &call, err));
    FWD_TRY(cuda_from_host(s, &host_out, out, err));
    if (cuda_is_quantised(out->dtype)) {
        cuda_read_tap(s, out, out->n_pos);
        FWD_TRY(cuda_launched(fwd_op_name(out->op), err));
    }
    FWD_TRY(cuda_wait(s->device.compute, fwd_op_name(out->op), err));
    return args->tap ? call_tap(s, args, &host_out, err) : FWD_OK;
}
