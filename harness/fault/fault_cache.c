/* harness/fault/fault_cache.c: K and V rows as attention will read them. What a fault writes into the cache stays there
 * for later calls, as the real bugs' bytes did. */
#include "fault/fault.h"
#include "fault/fault_math.h"
#include "fault/fault_ops.h"

#include <math.h>
#include <string.h>

static int64_t row_width(const struct fwd_view *cache) {
    return cache->ne[0] * cache->ne[1];
}

static double get(const struct fwd_view *cache, int64_t r, int64_t at) {
    return fault_cache_get(cache, r, at / cache->ne[0], at % cache->ne[0]);
}

static void put(const struct fwd_view *cache, int64_t r, int64_t at, double x) {
    fault_cache_put(cache, r, at / cache->ne[0], at % cache->ne[0], x);
}

static void copy_row(const struct fwd_view *cache, int64_t from, int64_t to) {
    for (int64_t at = 0; at < row_width(cache); at++)
        put(cache, to, at, get(cache, from, at));
}

static void exchange_rows(const struct fwd_view *cache, int64_t a, int64_t b) {
    for (int64_t at = 0; at < row_width(cache); at++) {
        double kept = get(cache, a, at);
        put(cache, a, at, get(cache, b, at));
        put(cache, b, at, kept);
    }
}

/* Towards zero at binary16's last bit. */
static double truncated(double x) {
    double h = fault_as_half(x);
    if (fabs(h) <= fabs(x))
        return h;
    return fault_half_value((uint16_t)(fault_to_half(x) - 1));
}

static void change_values(const struct par_fault *f, const struct fwd_op_call *call, int i) {
    const struct fwd_view *cache = call->out;
    int64_t r = call->pos0 + i, n = row_width(cache);
    for (int64_t at = 0; at < n; at++) {
        double x = fault_get(call->in[0], i, at);
        if (f->row->kind == FAULT_CACHE_TRUNCATED)
            put(cache, r, at, truncated(x));
        else if (f->row->kind == FAULT_CACHE_BF16)
            put(cache, r, at, fault_as_bf16(x));
        else
            put(cache, r, at, x * 127 / 128);
    }
}

static void change_one(const struct par_fault *f, const struct fwd_view *cache) {
    int64_t at = f->head % cache->ne[1] * cache->ne[0] + (int64_t)(fault_hash(f, 9) % (uint64_t)cache->ne[0]);
    put(cache, f->pos, at, fault_half_value((uint16_t)(fault_to_half(get(cache, f->pos, at)) ^ 1)));
}

static void exchange_heads(const struct par_fault *f, const struct fwd_view *cache, int64_t r) {
    int64_t a = f->head % cache->ne[1], b = (a + 1) % cache->ne[1];
    for (int64_t d = 0; d < cache->ne[0]; d++) {
        double kept = fault_cache_get(cache, r, a, d);
        fault_cache_put(cache, r, a, d, fault_cache_get(cache, r, b, d));
        fault_cache_put(cache, r, b, d, kept);
    }
}

static void exchange_halves(const struct fwd_view *cache, int64_t r) {
    for (int64_t h = 0; h < cache->ne[1]; h++)
        for (int64_t d = 0; d < cache->ne[0] / 2; d++) {
            double kept = fault_cache_get(cache, r, h, d);
            fault_cache_put(cache, r, h, d, fault_cache_get(cache, r, h, d + cache->ne[0] / 2));
            fault_cache_put(cache, r, h, d + cache->ne[0] / 2, kept);
        }
}

static void spoil(const struct par_fault *f, const struct fwd_op_call *call) {
    const struct fwd_view *cache = call->out;
    bool after_prompt = call->pos0 >= f->n_prompt && call->pos0 > f->pos;
    switch ((enum fault_cache_kind)f->row->kind) {
    case FAULT_CACHE_STALE: /* a later call finds the row of the position before it, as if its write had been lost */
        if (after_prompt && f->pos >= 1)
            copy_row(cache, f->pos - 1, f->pos);
        break;
    case FAULT_CACHE_MOVED: /* once: in the call that follows the prompt */
        if (after_prompt && f->pos >= 1 && call->pos0 == (f->n_prompt ? f->n_prompt : f->pos + 1))
            exchange_rows(cache, f->pos - 1, f->pos);
        break;
    case FAULT_CACHE_SHIFTED:
        for (int64_t r = call->pos0 + call->n_pos - 1; r > call->pos0; r--)
            copy_row(cache, r - 1, r);
        break;
    case FAULT_CACHE_ULP:
        for (int i = 0; i < call->n_pos; i++)
            if (fault_at(f, call, i))
                change_one(f, cache);
        break;
    case FAULT_CACHE_HEADS:
        for (int i = 0; i < call->n_pos; i++)
            exchange_heads(f, cache, call->pos0 + i);
        break;
    case FAULT_CACHE_HALVES:
        for (int i = 0; i < call->n_pos; i++)
            exchange_halves(cache, call->pos0 + i);
        break;
    case FAULT_CACHE_TRUNCATED:
    case FAULT_CACHE_BF16:
    case FAULT_CACHE_SCALE:
        for (int i = 0; i < call->n_pos; i++)
            if (fault_at(f, call, i))
                change_values(f, call, i);
        break;
    case FAULT_CACHE_LAST_ZERO:
        for (int64_t at = 0; call->n_pos > 1 && at < row_width(cache); at++)
            put(cache, call->pos0 + call->n_pos - 1, at, 0);
        break;
    case FAULT_CACHE_PREVIOUS:
        break;
    }
}

/* Row pos shows what the sequence before had there. Kept are that row and this sequence's own, each with a mark that
 * says whether it is there. A sequence begins with position 0. */
static enum fwd_status keep_previous(struct par_fault *f, const struct fwd_op_call *call, struct fwd_error *err) {
    int64_t n = row_width(call->out);
    double *kept = fault_keep(f, (size_t)(2 * n + 2) * sizeof *kept);
    FWD_FAIL_IF(!kept, FWD_ENOMEM, err, "fault %s: no memory for a row of %lld", f->row->name, (long long)n);
    double *before = kept + 2, *now = before + n;
    if (call->pos0 == 0) {
        memcpy(before, now, (size_t)n * sizeof *now);
        kept[0] = kept[1];
        kept[1] = 0;
    }
    if (f->pos < call->pos0 || f->pos >= call->pos0 + call->n_pos)
        return FWD_OK;
    for (int64_t at = 0; at < n; at++) {
        now[at] = get(call->out, f->pos, at);
        if (kept[0] != 0)
            put(call->out, f->pos, at, before[at]);
    }
    kept[1] = 1;
    return FWD_OK;
}

enum fwd_status par_fault_cache(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    struct par_fault *f = ud;
    FWD_TRY(call->builtin(call, err));
    if (f->row->kind == FAULT_CACHE_PREVIOUS)
        return keep_previous(f, call, err);
    spoil(f, call);
    return FWD_OK;
}
