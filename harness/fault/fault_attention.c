/* harness/fault/fault_attention.c: attention with a wrong mask, scale, map, softmax or sum. One head of one position is
 * worked out anew in F64 from the op's own inputs; heads and positions on which a fault does not act keep the
 * builtin's.
 */
#include "fault/fault.h"
#include "fault/fault_math.h"
#include "fault/fault_ops.h"

#include <math.h>
#include <string.h>

struct attention {
    const struct par_fault *f;
    const struct fwd_op_call *call;
    double *room; /* [n_threads][n_keys + head_dim] */
    int64_t n_keys;
};

/* ---- which keys ---- */

static bool is_masked(const struct attention *a, int64_t pos, int64_t key) {
    const struct par_fault *f = a->f;
    int64_t window = f->n_prompt > 8 ? f->n_prompt / 2 : 4;
    switch (f->row->kind) {
    case FAULT_ATT_SEES_NEXT:
        return key > pos + 1;
    case FAULT_ATT_MISSES_SELF: /* position 0 has no other key */
        return key > pos || (key == pos && pos > 0);
    case FAULT_ATT_WINDOW:
        return key > pos || key <= pos - window;
    case FAULT_ATT_TILE:
        return key > pos || (pos >= 12 && key >= 8 && key < 12);
    case FAULT_ATT_MASKED:
        return key > pos || pos == 0;
    default:
        return key > pos;
    }
}

static int kv_head_of(const struct attention *a, int head) {
    const struct fwd_config *c = a->call->config;
    int own = c->kv_head_of[head];
    return a->f->row->kind == FAULT_ATT_GQA       ? head % c->n_kv_head
           : a->f->row->kind == FAULT_ATT_NEXT_KV ? (own + 1) % c->n_kv_head
                                                  : own;
}

static int value_head(const struct attention *a, int kv_head, int64_t key) {
    bool off = a->f->row->kind == FAULT_ATT_V_STRIDE && key % 2;
    return off ? (kv_head + 1) % a->call->config->n_kv_head : kv_head;
}

/* ---- scores ---- */

static double change_score(const struct attention *a, double dot) {
    double root = sqrt((double)a->call->config->head_dim);
    switch (a->f->row->kind) {
    case FAULT_ATT_NO_SCALE:
        return dot;
    case FAULT_ATT_SCALE_TWICE:
        return dot / root / root;
    case FAULT_ATT_KQ_F16:
        return fault_as_half(dot) / root;
    case FAULT_ATT_SOFTCAP:
        return 50 * tanh(dot / root / 50);
    default:
        return dot / root;
    }
}

static void fill_scores(const struct attention *a, int i, int head, double *scores) {
    const struct fwd_op_call *call = a->call;
    int dim = call->config->head_dim, kv = kv_head_of(a, head);
    for (int64_t j = 0; j < a->n_keys; j++) {
        double dot = 0;
        scores[j] = -(double)INFINITY;
        if (is_masked(a, call->pos0 + i, j))
            continue;
        for (int d = 0; d < dim; d++)
            dot += fault_get(call->in[0], i, head * dim + d) * fault_cache_get(call->in[1], j, kv, d);
        scores[j] = change_score(a, dot);
    }
}

static double largest(const double *scores, int64_t begin, int64_t end) {
    double most = -(double)INFINITY;
    for (int64_t j = begin; j < end; j++)
        most = scores[j] > most || isnan(scores[j]) ? scores[j] : most;
    return most;
}

/* Scores to weights before normalising; returns their sum. */
static double weigh(const struct attention *a, int64_t pos, double *scores) {
    double sum = 0;
    int64_t split = a->f->row->kind == FAULT_ATT_SPLIT && pos > 0 ? (pos + 1) / 2 : 0;
    double first = largest(scores, 0, split), rest = largest(scores, split, a->n_keys);
    for (int64_t j = 0; j < a->n_keys; j++) {
        if (a->f->row->kind == FAULT_ATT_NO_MAX) {
            scores[j] = (double)expf((float)scores[j]);
            sum = (double)(float)(sum + scores[j]);
            continue;
        }
        scores[j] = scores[j] == -(double)INFINITY ? 0 : exp(scores[j] - (j < split ? first : rest));
        sum += scores[j];
        if (a->f->row->kind == FAULT_ATT_P_BF16)
            scores[j] = fault_as_bf16(scores[j]);
    }
    if (a->f->row->kind == FAULT_ATT_SINK)
        sum += exp(-rest);
    return sum;
}

/* ---- one head of one position ---- */

static void attend(const struct attention *a, int i, int head, double *scores) {
    const struct fwd_op_call *call = a->call;
    int dim = call->config->head_dim, kv = kv_head_of(a, head);
    fill_scores(a, i, head, scores);
    double sum = weigh(a, call->pos0 + i, scores);
    if (a->f->row->kind == FAULT_ATT_NO_MAX && sum > 0 && isfinite(sum))
        return;
    for (int d = 0; d < dim; d++) {
        double out = 0;
        for (int64_t j = 0; j < a->n_keys; j++) {
            if (scores[j] == 0)
                continue;
            out += scores[j] * fault_cache_get(call->in[2], j, value_head(a, kv, j), d);
            if (a->f->row->kind == FAULT_ATT_SUM_F16)
                out = fault_as_half(out);
        }
        fault_put(call->out, i, head * dim + d, out / sum);
    }
}

static bool acts(const struct attention *a, int i, int head) {
    if (a->f->head >= 0 && a->f->head != head)
        return false;
    if (a->f->row->kind == FAULT_ATT_GQA && kv_head_of(a, head) == a->call->config->kv_head_of[head])
        return false;
    if (a->f->row->kind == FAULT_ATT_MASKED && a->call->pos0 + i != 0)
        return false;
    return fault_at(a->f, a->call, i);
}

static void run_heads(void *ctx, int thread, int n_threads) {
    const struct attention *a = ctx;
    int n_head = a->call->config->n_head;
    double *scores = a->room + thread * a->n_keys;
    for (int unit = thread; unit < a->call->n_pos * n_head; unit += n_threads)
        if (acts(a, unit / n_head, unit % n_head))
            attend(a, unit / n_head, unit % n_head, scores);
}

enum fwd_status par_fault_attention(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    FWD_TRY(call->builtin(call, err));
    struct attention a = {.f = ud, .call = call, .n_keys = call->in[1]->ne[2]};
    int n_threads = call->pool ? fwd_pool_size(call->pool) : 1;
    a.room = fwd_alloc((size_t)(n_threads * a.n_keys), sizeof *a.room);
    FWD_FAIL_IF(!a.room, FWD_ENOMEM, err, "fault %s: no memory for %lld keys", a.f->row->name, (long long)a.n_keys);
    fwd_pool_run(call->pool, run_heads, &a);
    fwd_free(a.room);
    return FWD_OK;
}
