/* harness/fault/fault_act.c: activations quantised wrongly. The op is the q8 tap itself: blocks of 256 or 32 codes with
 * a scale and sums (engine's core/types.h). */
#include "fault/fault.h"
#include "fault/fault_math.h"
#include "fault/fault_ops.h"

#include <math.h>
#include <string.h>

struct format {
    int values, bytes, codes_at, sums_at;
};

static struct format format_of(const struct fwd_view *v) {
    return v->dtype == FWD_Q8_K ? (struct format){256, 292, 4, 260} : (struct format){32, 40, 8, 4};
}

static char *block_at(const struct fwd_view *v, int64_t i, int64_t b) {
    return fault_row(v, i) + b * format_of(v).bytes;
}

static float get_scale(const char *block) {
    float d;
    memcpy(&d, block, sizeof d);
    return d;
}

static void set_scale(char *block, float d) {
    memcpy(block, &d, sizeof d);
}

static void set_sums(const struct format *t, char *block) {
    const int8_t *q = (const int8_t *)block + t->codes_at;
    if (t->values == 32) {
        int32_t sum = 0;
        for (int k = 0; k < 32; k++)
            sum += q[k];
        memcpy(block + t->sums_at, &sum, sizeof sum);
        return;
    }
    for (int j = 0; j < 16; j++) {
        int sum = 0;
        for (int k = 0; k < 16; k++)
            sum += q[16 * j + k];
        int16_t stored = (int16_t)sum;
        memcpy(block + t->sums_at + 2 * j, &stored, sizeof stored);
    }
}

static double largest_of(const struct fwd_view *in, int64_t i, int64_t first, int64_t n, bool is_signed) {
    double most = 0;
    for (int64_t k = first; k < first + n; k++) {
        double x = fault_get(in, i, k);
        x = is_signed ? x : fabs(x);
        most = x > most ? x : most;
    }
    return most;
}

/* id: the F32 reciprocal of the scale, as the declared rule multiplies by it. */
static int to_code(int kind, double x, float id) {
    double v = (double)((float)x * id);
    v = kind == FAULT_ACT_TRUNCATED ? trunc(v) : kind == FAULT_ACT_TIE ? round(v) : nearbyint(v);
    return (int)(v > 127 ? 127 : v < -127 ? -127 : v);
}

/* Block b again with another scale or another rounding. */
static void quantise_again(const struct par_fault *f, const struct fwd_op_call *call, int i, int64_t b, double most) {
    struct format t = format_of(call->out);
    char *block = block_at(call->out, i, b);
    float steps = f->row->kind == FAULT_ACT_AMAX128 ? 128.0f : 127.0f, d = (float)most / steps;
    if (!isfinite(d) || most < 0x1p-100)
        return;
    set_scale(block, d);
    for (int k = 0; k < t.values; k++)
        ((int8_t *)block)[t.codes_at + k] =
            (int8_t)to_code(f->row->kind, fault_get(call->in[0], i, b * t.values + k), steps / (float)most);
    set_sums(&t, block);
}

static void spoil_code(const struct par_fault *f, const struct fwd_op_call *call, int i, int64_t b) {
    struct format t = format_of(call->out);
    char *block = block_at(call->out, i, b);
    int8_t *q = (int8_t *)block + t.codes_at + fault_hash(f, 8) % (uint64_t)t.values;
    *q = (int8_t)(*q + (*q > 0 ? -1 : 1));
    set_sums(&t, block);
}

/* Faults that move a finished block's fields along the row. */
static void move_fields(const struct par_fault *f, const struct fwd_op_call *call, int i, int64_t n_blocks) {
    struct format t = format_of(call->out);
    bool scales = f->row->kind == FAULT_ACT_OTHER_BLOCK;
    size_t at = scales ? 0 : (size_t)t.sums_at, size = scales ? sizeof(float) : t.values == 256 ? 32 : 4;
    char first[32];
    memcpy(first, block_at(call->out, i, 0) + at, size);
    for (int64_t b = 0; b + 1 < n_blocks; b++)
        memcpy(block_at(call->out, i, b) + at, block_at(call->out, i, b + 1) + at, size);
    memcpy(block_at(call->out, i, n_blocks - 1) + at, first, size);
}

static void spoil_row(const struct par_fault *f, const struct fwd_op_call *call, int i, double batch_most) {
    struct format t = format_of(call->out);
    int64_t n = call->in[0]->ne[0], n_blocks = n / t.values;
    double row_most = largest_of(call->in[0], i, 0, n, false);
    if (f->row->kind == FAULT_ACT_OTHER_BLOCK || f->row->kind == FAULT_ACT_SUMS) {
        move_fields(f, call, i, n_blocks);
        return;
    }
    for (int64_t b = 0; b < n_blocks; b++) {
        if (f->block >= 0 && b != f->block)
            continue;
        double own = largest_of(call->in[0], i, b * t.values, t.values, false);
        switch ((enum fault_act_kind)f->row->kind) {
        case FAULT_ACT_PER_ROW:
            quantise_again(f, call, i, b, row_most);
            break;
        case FAULT_ACT_PER_BATCH:
            quantise_again(f, call, i, b, batch_most);
            break;
        case FAULT_ACT_SIGNED: {
            double most = largest_of(call->in[0], i, b * t.values, t.values, true);
            quantise_again(f, call, i, b, most > 0 ? most : own);
            break;
        }
        case FAULT_ACT_F16:
            set_scale(block_at(call->out, i, b), (float)fault_as_half((double)get_scale(block_at(call->out, i, b))));
            break;
        case FAULT_ACT_CODE:
            spoil_code(f, call, i, b);
            break;
        default:
            quantise_again(f, call, i, b, own);
        }
    }
}

enum fwd_status par_fault_act(void *ud, const struct fwd_op_call *call, struct fwd_error *err) {
    const struct par_fault *f = ud;
    FWD_FAIL_IF(call->out->dtype != FWD_Q8_K && call->out->dtype != FWD_Q8_32, FWD_ETYPE, err,
                "fault %s: %s is %s, not quantised", f->row->name, fwd_op_name(call->op),
                fwd_dtype_name(call->out->dtype));
    FWD_TRY(call->builtin(call, err));
    double batch_most = 0;
    for (int i = 0; i < call->n_pos; i++)
        batch_most = fmax(batch_most, largest_of(call->in[0], i, 0, call->in[0]->ne[0], false));
    for (int i = 0; i < call->n_pos; i++)
        if (fault_at(f, call, i))
            spoil_row(f, call, i, batch_most);
    return FWD_OK;
}
