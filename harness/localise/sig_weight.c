/* Weights read wrongly: which matrix, which row, which type, and how a block's bytes are taken apart. Serves the matrix
 * products and, where a row is read, the embedding. */
#include "localise/sig.h"

#include "spec/eval.h"
#include "spec/spec_decode.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const struct spec_weight *own_weight(const struct sig_case *c) {
    return par_spec_weight(c->m, c->item->op, c->item->layer);
}

/* The spec's product of this op, to be changed. */
static void begin(const struct sig_case *c, struct sig_variant *v) {
    v->product = par_sig_product(own_weight(c));
    v->product.bias = par_spec_bias(c->m, c->item->op, c->item->layer);
}

/* Values of the embedding's rows: each is one decoded value, and no sum. */
static void embed_value(const struct sig_case *c, const struct sig_variant *v, const struct sig_element *e, int64_t n,
                        double *alt, double *bound, double *loose) {
    struct sig_row *row = par_sig_row_alloc(c, own_weight(c)->n_cols);
    int slot = -1;
    bool ok = false;
    for (int64_t i = 0; i < n; i++) {
        alt[i] = NAN;
        bound[i] = loose[i] = -1;
        if (row && e[i].slot != slot) {
            const struct sig_slot *s = &c->slots[e[i].slot];
            const struct fwd_view *in = c->calls[s->call].e.in[0];
            slot = e[i].slot;
            ok = in && s->pos >= in->pos0 && s->pos < in->pos0 + in->n_pos;
            int32_t token = 0;
            if (ok)
                memcpy(&token, (const uint8_t *)in->data + 4 * (s->pos - in->pos0), sizeof token);
            ok = ok && par_sig_read_row(&v->product, token, true, row);
        }
        if (!ok)
            continue;
        alt[i] = (double)row->w[e[i].row];
        /* Its own roundings may differ: scale, product, difference. */
        bound[i] = 3 * 0x1p-24 * fabs(alt[i]) + (row->has_min ? 0x1p-23 * fabs(alt[i]) : 0);
        loose[i] = bound[i];
    }
    fwd_free(row);
}

/* ---- which matrix ------------------------------------------------------------------------------------------------
 */
static bool same_shape(const struct spec_weight *a, const struct spec_weight *b) {
    return a && b && a->data && b->data && a->n_rows == b->n_rows && a->n_cols == b->n_cols;
}

/* The layer number i away from the op's own: +1, -1, +2, -2, ... */
static int layer_beside(const struct sig_case *c, int i) {
    return c->item->layer + (i % 2 ? -(i / 2 + 1) : i / 2 + 1);
}

/* With the op's own bias, and then with that layer's. */
static enum sig_more other_layer(const struct sig_case *c, int i, struct sig_variant *v) {
    int n = 2 * c->config->n_layer, at = i % n, layer = layer_beside(c, at);
    bool bias_too = i >= n;
    begin(c, v);
    if (c->item->layer < 0 || i >= 2 * n)
        return SIG_END;
    const struct spec_weight *w = par_spec_weight(c->m, c->item->op, layer), *bias;
    bias = par_spec_bias(c->m, c->item->op, layer);
    if (layer < 0 || layer >= c->config->n_layer || !same_shape(w, own_weight(c)) ||
        (bias_too && (!bias || !bias->data)))
        return SIG_SKIP;
    const struct spec_weight *own_bias = v->product.bias;
    v->product = par_sig_product(w);
    v->product.bias = bias_too ? bias : own_bias;
    (void)snprintf(v->text, sizeof v->text, "the matrix%s of layer %d",
                   bias_too ? " and the bias are those" : " is that", layer);
    return SIG_TRY;
}

/* Bytes of another layer's matrix taken for this layer's type would be weight-other-type; another op's matrix of the
 * same shape in the same layer. */
static enum sig_more other_matrix(const struct sig_case *c, int i, struct sig_variant *v) {
    static const enum fwd_op ops[] = {FWD_OP_QCUR,     FWD_OP_KCUR,   FWD_OP_VCUR,   FWD_OP_ATTN_OUT,
                                      FWD_OP_FFN_GATE, FWD_OP_FFN_UP, FWD_OP_FFN_OUT};
    int n = sizeof ops / sizeof *ops;
    begin(c, v);
    if (c->item->layer < 0 || i >= 2 * n)
        return SIG_END;
    enum fwd_op op = ops[i % n];
    bool gate_up = (op == FWD_OP_FFN_UP && c->item->op == FWD_OP_FFN_GATE) ||
                   (op == FWD_OP_FFN_GATE && c->item->op == FWD_OP_FFN_UP);
    const struct spec_weight *w = par_spec_weight(c->m, op, c->item->layer), *bias, *own_bias = v->product.bias;
    bias = par_spec_bias(c->m, op, c->item->layer);
    bool bias_too = i >= n;
    if (op == c->item->op || gate_up || !same_shape(w, own_weight(c)) || (bias_too && !own_bias))
        return SIG_SKIP;
    v->product = par_sig_product(w);
    v->product.bias = bias_too ? bias : own_bias;
    (void)snprintf(v->text, sizeof v->text, "multiplied by the matrix%s of %s", bias_too ? " and bias" : "",
                   fwd_op_name(op));
    return SIG_TRY;
}

static enum sig_more gate_up(const struct sig_case *c, int i, struct sig_variant *v) {
    enum fwd_op other = c->item->op == FWD_OP_FFN_GATE ? FWD_OP_FFN_UP : FWD_OP_FFN_GATE;
    v->product = par_sig_product(par_spec_weight(c->m, other, c->item->layer));
    (void)snprintf(v->text, sizeof v->text, "multiplied by the matrix of %s", fwd_op_name(other));
    return i ? SIG_END : SIG_TRY;
}

/* Heads counted on, and every head as one and the same; for attn_out the columns of a head. */
static enum sig_more other_head(const struct sig_case *c, int i, struct sig_variant *v) {
    bool out = c->item->op == FWD_OP_ATTN_OUT;
    int n = c->item->op == FWD_OP_KCUR || c->item->op == FWD_OP_VCUR ? c->config->n_kv_head : c->config->n_head;
    begin(c, v);
    v->product.head_rows = c->config->head_dim;
    v->product.n_heads = n;
    if (out) {
        v->product.act = SIG_ACT_HEADS;
        v->product.act_a = i + 1;
        (void)snprintf(v->text, sizeof v->text, "columns of a head multiply the values %d heads further on", i + 1);
        return i + 1 >= n ? SIG_END : SIG_TRY;
    }
    bool one = i >= n - 1;
    v->product.map = one ? SIG_ROW_HEAD : SIG_ROW_HEADS;
    v->product.map_a = one ? i - (n - 1) : i + 1;
    if (one)
        (void)snprintf(v->text, sizeof v->text, "rows of head %lld are used", (long long)v->product.map_a);
    else
        (void)snprintf(v->text, sizeof v->text, "rows of the head %lld further on are used (of %d, cyclically)",
                       (long long)v->product.map_a, n);
    return i >= 2 * n - 1 || n < 2 ? SIG_END : SIG_TRY;
}

/* ---- which row ---------------------------------------------------------------------------------------------------
 */
static enum sig_more transposed(const struct sig_case *c, int i, struct sig_variant *v) {
    begin(c, v);
    v->product.map = SIG_TRANSPOSED;
    (void)snprintf(v->text, sizeof v->text, "the matrix is read as [%lld, %lld] instead of [%lld, %lld]: transposed",
                   (long long)v->product.w->n_cols, (long long)v->product.w->n_rows, (long long)v->product.w->n_rows,
                   (long long)v->product.w->n_cols);
    return i ? SIG_END : SIG_TRY;
}

static enum sig_more row_map(struct sig_variant *v, enum sig_row_map map, int64_t a, const char *text) {
    v->product.map = map;
    v->product.map_a = a;
    (void)snprintf(v->text, sizeof v->text, text, (long long)a);
    return SIG_TRY;
}

static enum sig_more stride(const struct sig_case *c, int i, struct sig_variant *v) {
    static const int64_t shifts[] = {1,  -1, 2,  -2, 3,   -3, 4,   -4, 5,   -5,  6,    -6,  7,
                                     -7, 8,  -8, 16, -16, 32, -32, 64, -64, 128, -128, 256, -256};
    static const int64_t bits[] = {1, 2, 3, 4, 7, 8, 15, 16};
    static const int64_t times[] = {2, 3, 4};
    static const int blocks[] = {1, -1, 2, -2, 3, 4};
    int n_shifts = sizeof shifts / sizeof *shifts;
    begin(c, v);
    int64_t block = par_decode_row_bytes(v->product.type, par_decode_block_values(v->product.type));
    if (c->item->op == FWD_OP_INP_EMBD && c->n_slots < 2) /* one row may be that of any wrong token */
        return SIG_END;
    if (i < 6) { /* rows that many blocks longer or shorter than they are */
        v->product.row_bytes += blocks[i] * block;
        (void)snprintf(v->text, sizeof v->text, "rows are taken %lld bytes apart instead of %lld",
                       (long long)v->product.row_bytes, (long long)v->product.w->row_bytes);
        return v->product.row_bytes > 0 ? SIG_TRY : SIG_SKIP;
    }
    if ((i -= 6) < 4) { /* the whole matrix begins elsewhere */
        v->product.first = blocks[i] * block;
        (void)snprintf(v->text, sizeof v->text, "rows begin %+d blocks too late", blocks[i]);
        return SIG_TRY;
    }
    if ((i -= 4) < n_shifts)
        return row_map(v, SIG_ROW_SHIFT, shifts[i], "row r + (%lld) is read for row r");
    if ((i -= n_shifts) < 8)
        return row_map(v, SIG_ROW_XOR, bits[i], "row r xor %lld is read for row r");
    if ((i -= 8) < 3)
        return row_map(v, SIG_ROW_TIMES, times[i], "row %lld r is read for row r");
    if ((i -= 3) < 3)
        return row_map(v, SIG_ROW_OVER, times[i], "row r / %lld is read for row r");
    if ((i -= 3) < 1) { /* rows padded to whole superblocks */
        int64_t padded = (v->product.w->n_cols + 255) / 256 * 256;
        v->product.row_bytes = par_decode_row_bytes(v->product.type, padded);
        (void)snprintf(v->text, sizeof v->text, "rows are taken %lld bytes apart: padded to %lld values",
                       (long long)v->product.row_bytes, (long long)padded);
        return padded == v->product.w->n_cols ? SIG_SKIP : SIG_TRY;
    }
    return SIG_END;
}

/* ---- which type --------------------------------------------------------------------------------------------------
 */
static const uint32_t types[] = {FWD_TYPE_Q4_K, FWD_TYPE_Q6_K, FWD_TYPE_Q5_K, FWD_TYPE_Q4_0, FWD_TYPE_Q4_1,
                                 FWD_TYPE_Q8_0, FWD_TYPE_Q5_0, FWD_TYPE_Q5_1, FWD_TYPE_Q2_K, FWD_TYPE_Q3_K,
                                 FWD_TYPE_F16,  FWD_TYPE_BF16, FWD_TYPE_F32};
enum { N_TYPES = sizeof types / sizeof *types };

/* Rows as far apart as the file has them, then as far as the other type would; and both again with blocks left out
 * whose scale, read as that type, is no number: kernels differ in what they make of those. */
static enum sig_more other_type(const struct sig_case *c, int i, struct sig_variant *v) {
    begin(c, v);
    if (i >= 6 * N_TYPES)
        return SIG_END;
    uint32_t type = types[i % N_TYPES];
    int64_t bytes = par_decode_row_bytes(type, v->product.w->n_cols);
    bool apart = i / N_TYPES % 2 != 0;
    if (type == v->product.type || bytes == 0 || (apart && bytes == v->product.row_bytes))
        return SIG_SKIP;
    v->product.type = type;
    v->product.row_bytes = apart ? bytes : v->product.row_bytes;
    v->product.finite = i / (2 * N_TYPES);
    (void)snprintf(v->text, sizeof v->text, "%s bytes are decoded as %s%s%s", fwd_type_name(v->product.w->type),
                   fwd_type_name(type), apart ? ", rows as far apart as that type's" : "",
                   v->product.finite ? " (blocks with a scale that is no number count as 0)" : "");
    return SIG_TRY;
}

/* ---- which bits --------------------------------------------------------------------------------------------------
 * Each kind of mistake in all blocks, then in one block of every row. */
struct mistake {
    enum sig_block_kind kind;
    int64_t a, b;
    const char *text;
};

static bool has_subs(uint32_t type) {
    return par_decode_block_values(type) == 256;
}

static enum sig_more mistakes(const struct sig_case *c, int i, struct sig_variant *v, const struct mistake *list,
                              int n) {
    begin(c, v);
    int values = par_decode_block_values(v->product.type);
    int64_t blocks = values > 1 ? v->product.w->n_cols / values : 0, at = i / n - 1;
    const struct mistake *m = &list[i % n];
    if (blocks == 0 || at >= blocks)
        return SIG_END;
    v->product.kind = m->kind;
    v->product.a = m->a;
    v->product.b = m->b;
    v->product.only_block = at;
    if (at < 0)
        (void)snprintf(v->text, sizeof v->text, "%s", m->text);
    else
        (void)snprintf(v->text, sizeof v->text, "%s, in K-block %lld", m->text, (long long)at);
    return SIG_TRY;
}

static enum sig_more nibbles(const struct sig_case *c, int i, struct sig_variant *v) {
    static const struct mistake list[] = {
        {SIG_NIBBLE_SWAP, 0, 0, "low and high values of a byte change places"},
        {SIG_NIBBLE_ZIP, 0, 0, "the values of a byte are taken for neighbours, the format has them half a block apart"},
        {SIG_NIBBLE_SWAP_LOW, 0, 0, "low and high nibbles of a byte change places, the high bits do not"},
        {SIG_NIBBLE_ZIP_LOW, 0, 0, "nibbles of a byte are taken for neighbours, the high bits are not"},
        {SIG_NIBBLE_UNZIP, 0, 0, "neighbours are taken to lie half a block apart"},
    };
    int n = sizeof list / sizeof *list;
    enum sig_more more = mistakes(c, i, v, list, n);
    /* The values of a byte as neighbours, each with the scale it was stored under: the activations change places. */
    if (more == SIG_END && par_decode_block_values(v->product.type) > 1 &&
        i == n * (int)(1 + v->product.w->n_cols / par_decode_block_values(v->product.type))) {
        begin(c, v);
        v->product.act = SIG_ACT_ZIP;
        (void)snprintf(v->text, sizeof v->text,
                       "the values of a byte are taken for neighbours, each with the scale it is stored under");
        return (SIG_OP(c->item->op) & SIG_MATMULS) && v->product.w->n_cols % 256 == 0 ? SIG_TRY : SIG_SKIP;
    }
    return more;
}

static const struct mistake scale_list[] = {
    {SIG_SCALE_FROM, 0, 0, "each sub-block has the scale of the next"},
    {SIG_SCALE_FROM, 1, 0, "each sub-block has the scale of the one before"},
    {SIG_SCALE_FROM, 2, 0, "sub-blocks 2j and 2j + 1 have each other's scale"},
    {SIG_SCALE_FROM, 3, 0, "every sub-block has the scale of the first"},
    {SIG_SCALE_FROM, 4, 0, "the scales of the two halves of a block change places"},
    {SIG_SCALE_FROM, 5, 0, "the scales of a block are counted from its end"},
    {SIG_SCALE_FROM, 6, 0, "each sub-block but the last has the scale of the next"},
    {SIG_SCALE_FROM, 7, 0, "each sub-block but the first has the scale of the one before"},
    {SIG_SCALE_BLOCK, 1, 0, "each block has the scale d of the next"},
    {SIG_SCALE_BLOCK, -1, 0, "each block has the scale d of the one before"},
    {SIG_SCALE_BLOCK, 1, 1, "each block has scale and minimum of the next"},
    {SIG_SCALE_BLOCK, -1, 1, "each block has scale and minimum of the one before"},
};
static const struct mistake min_list[] = {
    {SIG_MIN_FROM, 0, 0, "each sub-block has the minimum of the next"},
    {SIG_MIN_FROM, 1, 0, "each sub-block has the minimum of the one before"},
    {SIG_MIN_FROM, 2, 0, "sub-blocks 2j and 2j + 1 have each other's minimum"},
    {SIG_MIN_FROM, 3, 0, "every sub-block has the minimum of the first"},
    {SIG_MIN_FROM, 4, 0, "the minima of the two halves of a block change places"},
    {SIG_MIN_FROM, 5, 0, "the minima of a block are counted from its end"},
    {SIG_MIN_FROM, 6, 0, "each sub-block but the last has the minimum of the next"},
    {SIG_MIN_FROM, 7, 0, "each sub-block but the first has the minimum of the one before"},
    {SIG_MIN_BLOCK, 1, 0, "each block has the minimum of the next"},
    {SIG_MIN_BLOCK, -1, 0, "each block has the minimum of the one before"},
};

/* After the regular mistakes, one sub-block with the scale (or minimum) of one other, in all blocks and in one. */
static enum sig_more subs(const struct sig_case *c, int i, struct sig_variant *v, const struct mistake *list, int n,
                          enum sig_block_kind one, const char *what) {
    enum sig_more more = mistakes(c, i, v, list, n);
    uint32_t type = v->product.type;
    bool whole_blocks = v->product.kind == SIG_SCALE_BLOCK || v->product.kind == SIG_MIN_BLOCK;
    if (more == SIG_TRY)
        return has_subs(type) || whole_blocks ? SIG_TRY : SIG_SKIP;
    if (!has_subs(type))
        return SIG_END;
    int64_t blocks = v->product.w->n_cols / 256, at = i - n * (1 + blocks);
    int n_subs = type == FWD_TYPE_Q4_K || type == FWD_TYPE_Q5_K ? 8 : 16, pairs = n_subs * n_subs;
    if (at < 0 || at >= pairs * (1 + blocks))
        return SIG_END;
    begin(c, v);
    v->product.kind = one;
    v->product.a = at % pairs / n_subs;
    v->product.b = at % n_subs;
    v->product.only_block = at / pairs - 1;
    (void)snprintf(v->text, sizeof v->text, "sub-block %lld has the %s of sub-block %lld", (long long)v->product.a,
                   what, (long long)v->product.b);
    size_t end = strlen(v->text);
    if (v->product.only_block >= 0)
        (void)snprintf(v->text + end, sizeof v->text - end, ", in K-block %lld", (long long)v->product.only_block);
    return v->product.a == v->product.b ? SIG_SKIP : SIG_TRY;
}

static enum sig_more scale_other(const struct sig_case *c, int i, struct sig_variant *v) {
    return subs(c, i, v, scale_list, sizeof scale_list / sizeof *scale_list, SIG_SCALE_ONE, "scale");
}

static enum sig_more min_other(const struct sig_case *c, int i, struct sig_variant *v) {
    if (!par_decode_has_min(own_weight(c)->type))
        return SIG_END;
    return subs(c, i, v, min_list, sizeof min_list / sizeof *min_list, SIG_MIN_ONE, "minimum");
}

static enum sig_more min_dropped(const struct sig_case *c, int i, struct sig_variant *v) {
    static const struct mistake with_min = {SIG_MIN_DROP, 0, 0, "the minimum is not subtracted"},
                                offset = {SIG_MIN_DROP, 0, 0, "the codes' offset is not subtracted"};
    return mistakes(c, i, v, par_decode_has_min(own_weight(c)->type) ? &with_min : &offset, 1);
}

static enum sig_more min_added(const struct sig_case *c, int i, struct sig_variant *v) {
    static const struct mistake with_min = {SIG_MIN_ADD, 0, 0, "the minimum has the wrong sign"},
                                offset = {SIG_MIN_ADD, 0, 0, "the codes' offset is added instead of subtracted"};
    return mistakes(c, i, v, par_decode_has_min(own_weight(c)->type) ? &with_min : &offset, 1);
}

static bool has_high(uint32_t type) {
    return type == FWD_TYPE_Q5_0 || type == FWD_TYPE_Q5_1 || type == FWD_TYPE_Q5_K || type == FWD_TYPE_Q6_K ||
           type == FWD_TYPE_Q3_K;
}

static enum sig_more high_misplaced(const struct sig_case *c, int i, struct sig_variant *v) {
    static const struct mistake list[] = {
        {SIG_HIGH_FROM, 16, 0, "a value has the high bits of the one 16 away"},
        {SIG_HIGH_FROM, 32, 0, "a value has the high bits of the one 32 away"},
        {SIG_HIGH_FROM, 64, 0, "a value has the high bits of the one 64 away"},
        {SIG_HIGH_FROM, 96, 0, "the four groups of 32 have each other's high bits, counted backwards"},
        {SIG_HIGH_FROM, 128, 0, "the halves of a block have each other's high bits"},
        {SIG_HIGH_FROM, 1, 0, "neighbours have each other's high bits"},
        {SIG_HIGH_FROM, -1, 0, "a value has the high bits of the next"},
        {SIG_HIGH_FROM, -2, 0, "a value has the high bits of the one before"},
        {SIG_HIGH_FROM, -3, 0, "the high bits of a block are counted from its end"},
        {SIG_HIGH_FROM, -4, 0, "the planes of high bits are counted in another order"},
    };
    if (!has_high(own_weight(c)->type))
        return SIG_END;
    return mistakes(c, i, v, list, sizeof list / sizeof *list);
}

static enum sig_more high_dropped(const struct sig_case *c, int i, struct sig_variant *v) {
    static const struct mistake list[] = {
        {SIG_HIGH_DROP, 0, 0, "the high bits of the codes are read as 0"},
        {SIG_HIGH_DROP, 1, 0, "the high bits of the codes are read as ones"},
        {SIG_SCALE_HIGH_DROP, 0, 0, "the high bits of the six-bit scales are dropped"},
    };
    enum sig_more more = mistakes(c, i, v, list, 3);
    bool codes = v->product.kind == SIG_HIGH_DROP;
    uint32_t type = v->product.type;
    bool six_bit = type == FWD_TYPE_Q4_K || type == FWD_TYPE_Q5_K || type == FWD_TYPE_Q3_K;
    return more == SIG_TRY && !(codes ? has_high(type) : six_bit) ? SIG_SKIP : more;
}

static enum sig_more scale_narrow(const struct sig_case *c, int i, struct sig_variant *v) {
    static const char *const texts[SIG_NARROW_KINDS] = {"", "scales and minima of sub-blocks are rounded to F16",
                                                        "scales and minima of sub-blocks are rounded to BF16",
                                                        "the scales d and dmin of blocks are rounded to BF16"};
    begin(c, v);
    if (i + 1 >= SIG_NARROW_KINDS || par_decode_block_values(v->product.type) < 2)
        return SIG_END;
    v->product.narrow = (enum sig_narrow)(i + 1);
    (void)snprintf(v->text, sizeof v->text, "%s", texts[i + 1]);
    return SIG_TRY;
}

/* ---- the table ---------------------------------------------------------------------------------------------------
 */
#define BOTH(name, variant)                                                                                            \
    {name, SIG_MATMULS, 0, variant, par_sig_product_value, NULL}, {                                                    \
        name, SIG_EMBED, 0, variant, embed_value, NULL                                                                 \
    }

const struct signature par_sig_weight[] = {
    {"gate-up-swapped", SIG_OP(FWD_OP_FFN_GATE) | SIG_OP(FWD_OP_FFN_UP), 0, gate_up, par_sig_product_value, NULL},
    {"weight-other-layer", SIG_MATMULS, 0, other_layer, par_sig_product_value, NULL},
    {"weight-other-matrix", SIG_MATMULS, 0, other_matrix, par_sig_product_value, NULL},
    {"weight-other-head", SIG_QKV | SIG_OP(FWD_OP_ATTN_OUT), 0, other_head, par_sig_product_value, NULL},
    {"weight-transposed", SIG_MATMULS, SIG_COSTLY, transposed, par_sig_product_value, NULL},
    BOTH("weight-stride", stride),
    BOTH("weight-other-type", other_type),
    BOTH("nibble-order", nibbles),
    BOTH("scale-other-subblock", scale_other),
    BOTH("scale-narrow", scale_narrow),
    BOTH("min-other-subblock", min_other),
    BOTH("min-dropped", min_dropped),
    BOTH("min-added", min_added),
    BOTH("high-bits-misplaced", high_misplaced),
    BOTH("high-bits-dropped", high_dropped),
    {NULL, 0, 0, NULL, NULL, NULL},
};
