/* Matrix products for signatures: rows of a weight read in other ways, activations changed in other ways, and their
 * exact sum with its bound. The blocks come from the spec's decoders; what a bug does to them is done here. */
#include "localise/sig.h"

#include "localise/sig_quantise.h"
#include "spec/bound.h"
#include "spec/eval.h"
#include "spec/spec_decode.h"
#include "spec/spec_quant.h"
#include "spec/spec_tensor.h"

#include <math.h>
#include <string.h>

/* ---- blocks ------------------------------------------------------------------------------------------------------
 */
/* How the codes of a type lie in its bytes. */
struct layout {
    uint32_t type;
    int offset;   /* subtracted from the unsigned code */
    int low_mask; /* bits that lie together in a byte with those of another value */
    int high_bits;
    int partner; /* the two values of a byte are e and e ^ partner */
    int sub;     /* values that share a scale */
};
static const struct layout layouts[] = {
    {FWD_TYPE_Q4_0, 8, 15, 0, 16, 32},   {FWD_TYPE_Q4_1, 0, 15, 0, 16, 32}, {FWD_TYPE_Q5_0, 16, 15, 16, 16, 32},
    {FWD_TYPE_Q5_1, 0, 15, 16, 16, 32},  {FWD_TYPE_Q8_0, 0, 255, 0, 0, 32}, {FWD_TYPE_Q2_K, 0, 3, 0, 32, 16},
    {FWD_TYPE_Q3_K, 4, 3, 4, 32, 16},    {FWD_TYPE_Q4_K, 0, 15, 0, 32, 32}, {FWD_TYPE_Q5_K, 0, 15, 16, 32, 32},
    {FWD_TYPE_Q6_K, 32, 15, 48, 64, 16},
};

static const struct layout *find_layout(uint32_t type) {
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++)
        if (layouts[i].type == type)
            return &layouts[i];
    return NULL;
}

/* The element whose value lands at e when halves are written as neighbours. */
static int zip_source(int e, int partner) {
    int base = e / (2 * partner) * 2 * partner, at = e - base;
    return base + at / 2 + (at & 1) * partner;
}

static int unzip_source(int e, int partner) {
    int base = e / (2 * partner) * 2 * partner, at = e - base;
    return base + (at % partner) * 2 + at / partner;
}

static void move_codes(const struct layout *l, enum sig_block_kind kind, int n, struct spec_block *s) {
    int8_t old[256];
    memcpy(old, s->q, (size_t)n);
    bool low_only = kind == SIG_NIBBLE_SWAP_LOW || kind == SIG_NIBBLE_ZIP_LOW;
    if (!l->partner)
        return;
    for (int e = 0; e < n; e++) {
        int from = kind == SIG_NIBBLE_SWAP || kind == SIG_NIBBLE_SWAP_LOW ? e ^ l->partner
                   : kind == SIG_NIBBLE_UNZIP                             ? unzip_source(e, l->partner)
                                                                          : zip_source(e, l->partner);
        int moved = old[from] + l->offset, own = old[e] + l->offset;
        int code = low_only ? (moved & l->low_mask) | (own & ~l->low_mask) : moved;
        s->q[e] = (int8_t)(code - l->offset);
    }
}

/* Where the high bits of element e come from in the mistaken reading a. */
static int high_source(uint32_t type, int n, int e, int64_t a) {
    if (a >= 0)
        return (e ^ (int)a) % n;
    if (a == -1)
        return (e + 1) % n;
    if (a == -2)
        return (e + n - 1) % n;
    if (a == -3)
        return n - 1 - e;
    if (n == 32) /* -4: bits 2j and 2j + 1 for the values of byte j */
        return e < 16 ? 2 * e : 2 * (e - 16) + 1;
    /* -4: planes (bits of a byte of high bits) counted another way round. */
    int l = e % 32, plane = e / 32;
    return (type == FWD_TYPE_Q6_K ? (plane & 4) | (3 - (plane & 3)) : (plane & 3) * 2 + (plane >> 2)) * 32 + l;
}

static void move_high(const struct layout *l, uint32_t type, int n, int64_t a, struct spec_block *s) {
    int8_t old[256];
    memcpy(old, s->q, (size_t)n);
    for (int e = 0; e < n; e++) {
        int from = old[high_source(type, n, e, a)] + l->offset, own = old[e] + l->offset;
        s->q[e] = (int8_t)(((own & l->low_mask) | (from & l->high_bits)) - l->offset);
    }
}

static void drop_high(const struct layout *l, int n, bool ones, struct spec_block *s) {
    for (int e = 0; e < n; e++) {
        int low = (s->q[e] + l->offset) & l->low_mask;
        s->q[e] = (int8_t)((ones ? low | l->high_bits : low) - l->offset);
    }
}

/* Sub-block whose scale is taken for sub-block j of n in mistake a. */
static int sub_source(int j, int n, int64_t a) {
    switch (a) {
    case 0:
        return (j + 1) % n;
    case 1:
        return (j + n - 1) % n;
    case 2:
        return j ^ 1;
    case 3:
        return 0;
    case 4:
        return (j + n / 2) % n;
    case 5:
        return n - 1 - j;
    case 6:
        return j + 1 < n ? j + 1 : j;
    default:
        return j ? j - 1 : 0;
    }
}

static void move_subs(const struct layout *l, int n, const struct sig_product *p, int16_t *of) {
    int16_t old[16];
    int groups = l->sub / 16, subs = n / l->sub;
    memcpy(old, of, sizeof old);
    bool one = p->kind == SIG_SCALE_ONE || p->kind == SIG_MIN_ONE;
    for (int g = 0; g < n / 16; g++) {
        int j = g / groups, from = one ? (j == p->a ? (int)p->b : j) : sub_source(j, subs, p->a);
        of[g] = old[from * groups + g % groups];
    }
}

/* Upper two bits of the scales and minima that have them elsewhere: the last four of eight, or all sixteen. */
static void drop_scale_high(uint32_t type, struct spec_block *s) {
    for (int g = 0; g < 16; g++) {
        if (type == FWD_TYPE_Q3_K)
            s->scale[g] = (int16_t)(((s->scale[g] + 32) & 15) - 32);
        if ((type == FWD_TYPE_Q4_K || type == FWD_TYPE_Q5_K) && g >= 8) {
            s->scale[g] &= 15;
            s->min[g] &= 15;
        }
    }
}

static void cut_columns(const struct sig_product *p, int64_t first, int n, struct spec_block *s) {
    for (int e = 0; e < n; e++)
        if (first + e >= p->a)
            s->q[e] = 0;
    for (int g = 0; g < n / 16 && p->kind == SIG_K_CUT; g++)
        if (first + 16 * g >= p->a)
            s->min[g] = 0;
}

static void change_block(const struct sig_product *p, const uint8_t *row, int64_t n_blocks, int64_t b, int n,
                         struct spec_block *s) {
    const struct layout *l = find_layout(p->type);
    if (!l || (p->only_block >= 0 && p->only_block != b))
        return;
    struct spec_block other;
    int64_t beside = b + p->a < 0 || b + p->a >= n_blocks ? b : b + p->a;
    switch (p->kind) {
    case SIG_NIBBLE_SWAP:
    case SIG_NIBBLE_SWAP_LOW:
    case SIG_NIBBLE_ZIP:
    case SIG_NIBBLE_ZIP_LOW:
    case SIG_NIBBLE_UNZIP:
        move_codes(l, p->kind, n, s);
        break;
    case SIG_SCALE_FROM:
    case SIG_SCALE_ONE:
        move_subs(l, n, p, s->scale);
        break;
    case SIG_MIN_FROM:
    case SIG_MIN_ONE:
        move_subs(l, n, p, s->min);
        break;
    case SIG_SCALE_BLOCK:
        par_decode_block(p->type, row, beside, &other);
        s->d = other.d;
        s->dmin = p->b ? other.dmin : s->dmin;
        break;
    case SIG_MIN_BLOCK:
        par_decode_block(p->type, row, beside, &other);
        s->dmin = other.dmin;
        break;
    case SIG_MIN_DROP:
    case SIG_MIN_ADD: {
        int by = p->kind == SIG_MIN_ADD ? 2 * l->offset : l->offset;
        s->dmin = p->kind == SIG_MIN_ADD ? -s->dmin : 0;
        for (int e = 0; e < n; e++)
            s->q[e] = (int8_t)(s->q[e] + by);
        break;
    }
    case SIG_HIGH_DROP:
        drop_high(l, n, p->a != 0, s);
        break;
    case SIG_HIGH_FROM:
        move_high(l, p->type, n, p->a, s);
        break;
    case SIG_SCALE_HIGH_DROP:
        drop_scale_high(p->type, s);
        break;
    case SIG_K_CUT:
    case SIG_K_CUT_CODES:
        cut_columns(p, b * n, n, s);
        break;
    case SIG_BLOCK_ZERO:
        s->d = s->dmin = 0;
        break;
    case SIG_BLOCK_SPEC:
    default:
        break;
    }
}

/* ---- rows --------------------------------------------------------------------------------------------------------
 */
struct sig_product par_sig_product(const struct spec_weight *w) {
    return (struct sig_product){.w = w, .type = w->type, .row_bytes = w->row_bytes, .only_block = -1, .bias_times = 1};
}

static int64_t source_row(const struct sig_product *p, int64_t row) {
    int64_t n = p->head_rows;
    switch (p->map) {
    case SIG_ROW_SHIFT:
        return row + p->map_a;
    case SIG_ROW_XOR:
        return row ^ p->map_a;
    case SIG_ROW_TIMES:
        return row * p->map_a;
    case SIG_ROW_OVER:
        return row / p->map_a;
    case SIG_ROW_HEAD:
        return p->map_a * n + row % n;
    case SIG_ROW_HEADS:
        return (row / n + p->map_a + p->n_heads) % p->n_heads * n + row % n;
    case SIG_ROW_SAME:
    case SIG_TRANSPOSED:
    default:
        return row;
    }
}

/* Element k of row r is element k * n_rows + r of the whole: every value lies in another block. */
static void read_transposed(const struct sig_product *p, int64_t row, struct sig_row *out) {
    int n = par_decode_block_values(p->type);
    float values[256];
    for (int64_t k = 0; k < out->k; k++) {
        int64_t at = k * p->w->n_rows + row, from = at / out->k, column = at % out->k;
        const uint8_t *bytes = p->w->data + from * p->row_bytes + column / n * par_decode_row_bytes(p->type, n);
        par_decode_row(p->type, bytes, values, n);
        out->w[k] = values[column % n];
    }
}

double par_sig_f16(double x) {
    return (double)par_f16_to_f32(par_f32_to_f16((float)x));
}

double par_sig_bf16(double x) {
    float f = (float)x;
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    if ((u & 0x7f800000u) == 0x7f800000u)
        return x;
    u = (u + 0x7fffu + (u >> 16 & 1u)) >> 16 << 16;
    memcpy(&f, &u, sizeof f);
    return (double)f;
}

/* A sub-block's scale or minimum as a kernel with that many bits has it. */
static double narrowed(enum sig_narrow narrow, double x) {
    return narrow == SIG_NARROW_F16 ? par_sig_f16(x) : narrow == SIG_NARROW_BF16 ? par_sig_bf16(x) : x;
}

static void decode_floats(const struct spec_block *s, enum sig_narrow narrow, int n, bool has_min, float *w) {
    for (int e = 0; e < n; e++) {
        float scale = (float)narrowed(narrow, (double)(s->d * (float)s->scale[e / 16]));
        float product = scale * (float)s->q[e];
        float min = (float)narrowed(narrow, (double)(s->dmin * (float)s->min[e / 16]));
        w[e] = has_min ? product - min : product;
    }
}

/* What kernels make of a scale that is infinite or no number: bytes of another type give such ones. */
static void make_finite(int how, struct spec_block *s) {
    bool bad = !isfinite(s->d) || !isfinite(s->dmin);
    if (how == 0 || !bad)
        return;
    if (how == 2)
        s->d = s->dmin = 0;
    s->d = isfinite(s->d) ? s->d : 0;
    s->dmin = isfinite(s->dmin) ? s->dmin : 0;
}

static void read_plain(const struct sig_product *p, const uint8_t *bytes, struct sig_row *out) {
    par_decode_row(p->type, bytes, out->w, out->k);
    bool cut = p->kind == SIG_K_CUT || p->kind == SIG_K_CUT_CODES;
    for (int64_t k = cut ? p->a : out->k; k < out->k; k++)
        out->w[k] = 0;
}

bool par_sig_read_row(const struct sig_product *p, int64_t row, bool floats, struct sig_row *out) {
    int n = par_decode_block_values(p->type);
    int64_t from = source_row(p, row), start = p->first + from * p->row_bytes;
    int64_t need = par_decode_row_bytes(p->type, out->k);
    out->block = n;
    out->has_min = par_decode_has_min(p->type);
    if (from < 0 || start < 0 || need == 0 || start + need > p->w->n_rows * p->w->row_bytes)
        return false;
    const uint8_t *bytes = p->w->data + start;
    if (p->map == SIG_TRANSPOSED) {
        read_transposed(p, row, out);
        return true;
    }
    if (n == 1) {
        read_plain(p, bytes, out);
        return true;
    }
    struct spec_block s;
    for (int64_t b = 0; b < out->k / n; b++) {
        par_decode_block(p->type, bytes, b, &s);
        change_block(p, bytes, out->k / n, b, n, &s);
        make_finite(p->finite, &s);
        if (p->narrow == SIG_NARROW_D_BF16) {
            s.d = (float)par_sig_bf16((double)s.d);
            s.dmin = (float)par_sig_bf16((double)s.dmin);
        }
        if (floats) {
            decode_floats(&s, p->narrow, n, out->has_min, out->w + b * n);
            continue;
        }
        memcpy(out->q + b * n, s.q, (size_t)n);
        for (int g = 0; g < n / 16; g++) {
            out->d16[b * n / 16 + g] = narrowed(p->narrow, (double)s.d * s.scale[g]);
            out->scale16[b * n / 16 + g] = s.scale[g];
            out->m16[b * n / 16 + g] = out->has_min ? narrowed(p->narrow, (double)s.dmin * s.min[g]) : 0;
        }
    }
    return true;
}

struct sig_row *par_sig_row_alloc(const struct sig_case *c, int64_t k) {
    size_t n = (size_t)k, head = 64;
    uint8_t *p =
        par_sig_alloc(c, 1, head + n * sizeof(float) + (n / 16 + 1) * (2 * sizeof(double) + sizeof(int16_t)) + n);
    if (!p)
        return NULL;
    struct sig_row *r = (struct sig_row *)(void *)p;
    _Static_assert(sizeof *r <= 64, "the header must fit before the arrays");
    *r = (struct sig_row){.k = k, .d16 = (double *)(void *)(p + head)};
    r->m16 = r->d16 + n / 16 + 1;
    r->w = (float *)(void *)(r->m16 + n / 16 + 1);
    r->scale16 = (int16_t *)(void *)(r->w + n);
    r->q = (int8_t *)(r->scale16 + n / 16 + 1);
    return r;
}

bool par_sig_integer(const struct sig_case *c, const struct sig_product *p) {
    return c->acts && c->acts[0].q && !c->item->numerics.dequantised && par_decode_block_values(p->type) > 1 &&
           p->map != SIG_TRANSPOSED;
}

/* ---- activations -------------------------------------------------------------------------------------------------
 */
static bool act_alloc(const struct sig_case *c, int64_t k, bool codes, struct sig_act *a) {
    size_t n = (size_t)k, groups = n / 16;
    *a = (struct sig_act){0};
    a->x = par_sig_alloc(c, 1, n * sizeof(double) + (codes ? 2 * groups * sizeof(double) + n : 0));
    if (!a->x)
        return false;
    if (codes) {
        a->d16 = a->x + n;
        a->sum16 = a->d16 + groups;
        a->q = (int8_t *)(a->sum16 + groups);
    }
    return true;
}

/* d * q, rounded to F32 where the path computes in that. */
static void act_floats(const struct sig_case *c, int64_t k, struct sig_act *a) {
    bool narrow = c->item->numerics.store == FWD_F32 && c->item->numerics.dequantised;
    for (int64_t i = 0; i < k; i++) {
        double exact = a->d16[i / 16] * a->q[i];
        a->x[i] = narrow ? (double)(float)exact : exact;
    }
}

static void put_block(struct sig_act *a, int64_t at, int n, const struct spec_q8 *s) {
    memcpy(a->q + at, s->q, (size_t)n);
    for (int g = 0; g < n / 16; g++) {
        a->d16[at / 16 + g] = (double)s->d;
        a->sum16[at / 16 + g] = s->sum16[g];
    }
}

static enum fwd_dtype act_type(const struct sig_case *c, const struct fwd_view *in) {
    return par_q8_block_values(in->dtype) ? in->dtype : c->item->numerics.act;
}

/* A row as tensor cores read it, scale included. wide: [k], may be x itself; false: no memory. */
static bool convert_row(enum fwd_dtype to, const double *x, int64_t k, double *wide) {
    float *narrow = fwd_alloc((size_t)k, sizeof *narrow);
    double scale = 1;
    for (int64_t i = 0; narrow && i < k; i++)
        narrow[i] = (float)x[i];
    if (narrow)
        par_tensor_convert(to, narrow, k, wide, &scale);
    for (int64_t i = 0; narrow && i < k; i++)
        wide[i] *= scale;
    fwd_free(narrow);
    return narrow != NULL;
}

/* Activations of a slot as the spec has them, or quantised by another rule. */
static bool load_act(const struct sig_case *c, int slot, enum sig_quant_rule rule, struct sig_act *a) {
    const struct par_eval *e = &c->calls[c->slots[slot].call].e;
    const struct fwd_view *in = e->in[0];
    enum fwd_dtype type = act_type(c, in);
    int n = par_q8_block_values(type), pos = c->slots[slot].pos;
    if (!par_view_row(in, pos) || !act_alloc(c, c->k, n != 0, a))
        return false;
    bool blocks = par_q8_block_values(in->dtype) != 0, agree;
    if (par_tensor_format(in->dtype)) {
        double scale;
        par_tensor_read(in->dtype, par_view_row(in, pos), c->k, a->x, &scale);
        for (int64_t k = 0; k < c->k; k++)
            a->x[k] *= scale;
    } else if (!blocks) {
        par_load_f64(in->dtype, par_view_row(in, pos), a->x, c->k);
        if (par_tensor_format(type))
            return convert_row(type, a->x, c->k, a->x);
    }
    if (!n)
        return true;
    struct spec_q8 s;
    float x[256], row_max = 0;
    for (int64_t k = 0; k < c->k && !blocks; k++)
        row_max = fmaxf(row_max, fabsf((float)a->x[k]));
    for (int64_t at = 0; at < c->k; at += n) {
        if (blocks) {
            par_q8_read(type, par_view_row(in, pos) + at / n * (int64_t)par_q8_block_bytes(type), &s, &agree);
        } else {
            for (int i = 0; i < n; i++)
                x[i] = (float)a->x[at + i];
            par_sig_quantise(rule, x, n, row_max, &s);
        }
        put_block(a, at, n, &s);
    }
    act_floats(c, c->k, a);
    return true;
}

enum fwd_status par_sig_load_acts(struct sig_case *c, struct fwd_error *err) {
    c->acts = fwd_calloc((size_t)c->n_slots + 1, sizeof *c->acts);
    FWD_FAIL_IF(!c->acts, FWD_ENOMEM, err, "explain: no memory for %d positions", c->n_slots);
    for (int i = 0; i < c->n_slots; i++)
        FWD_FAIL_IF(!load_act(c, i, SIG_QUANT_SPEC, &c->acts[i]), FWD_ENOMEM, err,
                    "explain: no memory for the activations of position %d", c->slots[i].pos);
    return FWD_OK;
}

void par_sig_free_acts(struct sig_case *c) {
    for (int i = 0; c->acts && i < c->n_slots; i++)
        fwd_free(c->acts[i].x);
    fwd_free(c->acts);
    c->acts = NULL;
}

static void copy_act(const struct sig_case *c, const struct sig_act *from, struct sig_act *to) {
    memcpy(to->x, from->x, (size_t)c->k * sizeof *to->x);
    if (!from->q)
        return;
    memcpy(to->q, from->q, (size_t)c->k);
    memcpy(to->d16, from->d16, (size_t)c->k / 16 * sizeof *to->d16);
    memcpy(to->sum16, from->sum16, (size_t)c->k / 16 * sizeof *to->sum16);
}

static void sum_codes(const struct sig_case *c, struct sig_act *a) {
    for (int64_t g = 0; g < c->k / 16; g++) {
        a->sum16[g] = 0;
        for (int i = 0; i < 16; i++)
            a->sum16[g] += a->q[16 * g + i];
    }
}

/* The scales that another choice of block, row or position gives. */
static void change_scales(const struct sig_case *c, const struct sig_product *p, int slot, const struct sig_act *from,
                          struct sig_act *to) {
    const struct sig_call *call = &c->calls[c->slots[slot].call];
    int n = par_q8_block_values(act_type(c, call->e.in[0]));
    int64_t blocks = c->k / n, best = p->act_a;
    if (p->act == SIG_ACT_SCALE_ROW && best < 0)
        for (int64_t b = best = 0; b < blocks; b++)
            best = from->d16[b * n / 16] > from->d16[best * n / 16] ? b : best;
    struct sig_act other = {0};
    if (p->act == SIG_ACT_SCALE_BATCH) {
        const struct fwd_view *out = call->e.out, *in = call->e.in[0];
        int pos = p->act_a ? out->pos0 + out->n_pos - 1 : out->pos0;
        const uint8_t *row = par_view_row(in, pos);
        struct spec_q8 s;
        bool agree;
        if (!row || !par_q8_block_values(in->dtype) || !act_alloc(c, c->k, true, &other))
            return;
        for (int64_t at = 0; at < c->k; at += n) {
            par_q8_read(in->dtype, row + at / n * (int64_t)par_q8_block_bytes(in->dtype), &s, &agree);
            put_block(&other, at, n, &s);
        }
    }
    for (int64_t g = 0; g < c->k / 16; g++) {
        int64_t b = g * 16 / n, beside = b + p->act_a;
        beside = beside < 0 || beside >= blocks ? b : beside;
        to->d16[g] = p->act == SIG_ACT_SCALE_BLOCK ? from->d16[beside * n / 16]
                     : p->act == SIG_ACT_SCALE_ROW ? from->d16[best * n / 16]
                                                   : other.d16[g];
    }
    fwd_free(other.x);
}

static void change_places(const struct sig_case *c, const struct sig_product *p, const struct sig_act *from,
                          struct sig_act *to) {
    const struct layout *l = find_layout(p->type);
    int64_t d = c->config->head_dim, heads = c->config->n_head;
    for (int64_t k = 0; k < c->k; k++) {
        int64_t source = p->act == SIG_ACT_HEADS ? (k / d + p->act_a + heads) % heads * d + k % d
                         : l && l->partner       ? unzip_source((int)(k % 256), l->partner) + k / 256 * 256
                                                 : k;
        to->x[k] = from->x[source];
        if (from->q) {
            to->q[k] = from->q[source];
            if (p->act == SIG_ACT_HEADS && k % 16 == 0)
                to->d16[k / 16] = from->d16[source / 16];
        }
    }
}

/* The activations of a slot under p; owned by the caller (x is to be freed) unless they are the case's. */
static bool make_act(const struct sig_case *c, const struct sig_product *p, int slot, struct sig_act *to) {
    const struct sig_act *from = &c->acts[slot];
    if (p->act == SIG_ACT_REQUANT)
        return load_act(c, slot, (enum sig_quant_rule)p->act_a, to);
    if (!act_alloc(c, c->k, from->q != NULL, to))
        return false;
    copy_act(c, from, to);
    bool scales = p->act == SIG_ACT_SCALE_BLOCK || p->act == SIG_ACT_SCALE_ROW || p->act == SIG_ACT_SCALE_BATCH;
    if (scales && from->q)
        change_scales(c, p, slot, from, to);
    if (!scales)
        change_places(c, p, from, to);
    if (!from->q)
        return true;
    sum_codes(c, to);
    act_floats(c, c->k, to);
    return true;
}

/* ---- sums --------------------------------------------------------------------------------------------------------
 */
struct dot {
    double sum, sum_abs, each_abs; /* of block terms, and of single products */
};

static struct dot dot_integer(const struct sig_row *r, const struct sig_act *a, int block) {
    struct dot t = {0};
    for (int64_t g = 0; g < r->k / 16; g += block / 16) {
        double code = 0, min = 0;
        for (int64_t j = g; j < g + block / 16; j++) {
            const int8_t *q = r->q + 16 * j, *x = a->q + 16 * j;
            int32_t dot = 0, each = 0;
            for (int i = 0; i < 16; i++) {
                int32_t product = q[i] * x[i];
                dot += product;
                each += product < 0 ? -product : product;
            }
            code += r->d16[j] * a->d16[j] * dot;
            min += r->m16[j] * a->d16[j] * a->sum16[j];
            t.each_abs += fabs(r->d16[j] * a->d16[j]) * each;
        }
        t.sum += code - min;
        t.sum_abs += fabs(code) + fabs(min);
        t.each_abs += fabs(min);
    }
    return t;
}

static struct dot dot_floats(const struct sig_row *r, const struct sig_act *a) {
    struct dot t = {0};
    for (int64_t k = 0; k < r->k; k++) {
        double term = (double)r->w[k] * a->x[k];
        t.sum += term;
        t.sum_abs += fabs(term);
    }
    t.each_abs = t.sum_abs;
    return t;
}

void par_sig_dot(const struct sig_case *c, const struct sig_row *row, bool integer, const struct sig_act *act,
                 struct sig_sum *sum) {
    const struct fwd_numerics *nm = &c->item->numerics;
    int block = row->block;
    if (integer) {
        int own = nm->act == FWD_Q8_K ? 256 : 32;
        block = block < own ? block : own;
    }
    struct dot t = integer ? dot_integer(row, act, block) : dot_floats(row, act);
    int64_t terms = integer ? 2 * row->k / block : row->k;
    struct par_bound b = par_bound_make(nm, c->calls[0].e.bound, row->k, terms);
    sum->exact = t.sum;
    if (!isfinite(t.sum)) {
        sum->bound = sum->loose = 0;
        return;
    }
    sum->bound = par_bound_at(&b, t.sum_abs, t.sum) + par_gamma(3 * (double)terms, 0x1p-53) * t.sum_abs;
    if (!(sum->bound < HUGE_VAL)) { /* may overflow on its way: holds nothing */
        sum->bound = sum->loose = -1;
        return;
    }
    /* One product after the other in F32, of weights and activations that were rounded to it first. */
    double loose = (par_gamma((double)row->k, 0x1p-24) + 6 * 0x1p-24) * t.each_abs + b.tiny;
    sum->loose = loose > sum->bound ? loose : sum->bound;
}

double par_sig_with_bias(const struct sig_case *c, const struct sig_sum *s, double bias) {
    if (s->bound < 0)
        return s->bound;
    return s->bound + (2 + c->item->numerics.final_roundings) * par_unit_of_accumulator(c->item->numerics.accumulator) *
                          (fabs(s->exact) + fabs(bias));
}

/* Everything that one chunk of elements needs. */
struct work {
    struct sig_row *row;
    struct sig_act *acts; /* [n_slots], x NULL: not made yet */
    float *bias;
    bool integer, ready; /* ready: row holds row `at` */
    int64_t at;
    double *wide; /* [k], where the weights are converted too */
};

/* The row as a product on tensor cores has it. */
static void convert_weights(const struct sig_case *c, const struct work *w) {
    double scale;
    if (!w->wide || !w->ready)
        return;
    par_tensor_convert(c->item->numerics.operand, w->row->w, c->k, w->wide, &scale);
    for (int64_t i = 0; i < c->k; i++)
        w->row->w[i] = (float)(w->wide[i] * scale);
}

static bool prepare(const struct sig_case *c, const struct sig_product *p, struct work *w) {
    *w = (struct work){.integer = par_sig_integer(c, p), .at = -1};
    w->row = par_sig_row_alloc(c, c->k);
    if (p->act != SIG_ACT_SPEC)
        w->acts = par_sig_alloc(c, (size_t)c->n_slots, sizeof *w->acts);
    if (w->acts)
        memset(w->acts, 0, (size_t)c->n_slots * sizeof *w->acts);
    if (p->bias && p->bias->data) {
        w->bias = par_sig_alloc(c, (size_t)p->bias->n_cols, sizeof *w->bias);
        if (w->bias)
            par_decode_row(p->bias->type, p->bias->data, w->bias, p->bias->n_cols);
    }
    bool tensor = c->item->numerics.accumulator == FWD_ACC_TENSOR;
    if (tensor)
        w->wide = par_sig_alloc(c, (size_t)c->k, sizeof *w->wide);
    return w->row && (p->act == SIG_ACT_SPEC || w->acts) && (w->wide || !tensor);
}

static void release(const struct sig_case *c, struct work *w) {
    for (int i = 0; w->acts && i < c->n_slots; i++)
        fwd_free(w->acts[i].x);
    fwd_free(w->acts);
    fwd_free(w->bias);
    fwd_free(w->wide);
    fwd_free(w->row);
}

void par_sig_product_value(const struct sig_case *c, const struct sig_variant *v, const struct sig_element *e,
                           int64_t n, double *alt, double *bound, double *loose) {
    const struct sig_product *p = &v->product;
    struct work w;
    bool ok = prepare(c, p, &w);
    for (int64_t i = 0; i < n; i++) {
        alt[i] = NAN;
        bound[i] = loose[i] = -1;
        if (ok && e[i].row != w.at) {
            w.ready = par_sig_read_row(p, e[i].row, !w.integer, w.row);
            w.at = e[i].row;
            convert_weights(c, &w);
        }
        const struct sig_act *act = &c->acts[e[i].slot];
        if (ok && w.acts) {
            act = &w.acts[e[i].slot];
            ok = act->x || make_act(c, p, e[i].slot, &w.acts[e[i].slot]);
        }
        if (!ok || !w.ready)
            continue;
        struct sig_sum s;
        par_sig_dot(c, w.row, w.integer, act, &s);
        double bias = w.bias ? p->bias_times * (double)w.bias[e[i].row] : 0;
        alt[i] = s.exact + bias;
        bound[i] = w.bias ? par_sig_with_bias(c, &s, bias) : s.bound;
        loose[i] = s.loose + (bound[i] - s.bound);
        /* What is left of a sum that something was taken out of has the roundings of the whole. */
        if (bound[i] >= 0 && isfinite(alt[i])) {
            bound[i] = fmax(bound[i], e[i].bound);
            loose[i] = fmax(loose[i], bound[i]);
        }
    }
    release(c, &w);
}
