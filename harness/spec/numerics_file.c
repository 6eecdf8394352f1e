/* A numerics file: entries read by a table of the fields of struct fwd_numerics, then held against each other. */
#include "spec/numerics_file.h"

#include "report/json.h"
#include "spec/spec_decode.h"
#include "spec/spec_quant.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

enum { SCHEMA = 1, MOST_FILE_BYTES = 1 << 20, MOST_LANES = 256, MOST_TYPES = 40 };

enum entry_kind { EMBED, NORM, ROPE, KV, ATTENTION, SWIGLU, ADD, N_SINGLE, MATMUL = N_SINGLE };
static const char *const kind_names[] = {"embed", "norm", "rope", "kv", "attention", "swiglu", "add", "matmul"};

struct entry {
    bool known, open; /* open: the order of additions is not */
    struct fwd_numerics numerics;
};

struct par_numerics {
    struct par_json *doc; /* owns the strings */
    const char *name, *about;
    struct entry single[N_SINGLE];
    struct {
        uint32_t type;
        struct entry entry;
    } product[MOST_TYPES];
    int n_products;
};

/* ---- the fields ------------------------------------------------------------------------------------------------- */
static const char *const dtypes[] = {"f32", "f64", "f16", "i32", "q8_k", "q8_32", "bf16", "e4m3", NULL};
static const char *const accumulators[] = {"f32", "f64", "exact", "tensor", NULL};
static const char *const rules[] = {"none",    "amax127",      "amax127-away",    "nearest",    "amax448", "signed127",
                                    "half127", "half127-away", "half127-divided", "inverse127", NULL};
_Static_assert(FWD_E4M3 == 7 && FWD_ACC_TENSOR == 3 && FWD_ACT_INVERSE127 == 9, "the names above are in their order");

enum field_kind { A_NAME, A_COUNT, A_TRUTH, SOME_ULPS, SOME_LANES };
struct field {
    const char *key;
    size_t at;
    enum field_kind kind;
    const char *const *names;
    unsigned kinds; /* entries that may have it: bits of entry_kind */
};
enum {
    IN_SUMS = 1u << NORM | 1u << ATTENTION | 1u << MATMUL,
    IN_PRODUCTS = 1u << MATMUL,
    IN_ATTENTION = 1u << ATTENTION,
    IN_ROPE = 1u << ROPE,
    IN_ALL = (1u << (MATMUL + 1)) - 1
};
#define AT(field) #field, offsetof(struct fwd_numerics, field)
static const struct field fields[] = {
    {AT(act), A_NAME, dtypes, IN_PRODUCTS},
    {AT(act_rule), A_NAME, rules, IN_PRODUCTS},
    {AT(accumulator), A_NAME, accumulators, IN_ALL},
    {AT(chain_block), A_COUNT, NULL, IN_SUMS},
    {AT(chain_per_block), A_COUNT, NULL, IN_SUMS},
    {AT(chain_extra), A_COUNT, NULL, IN_SUMS},
    {AT(term_roundings), A_COUNT, NULL, IN_SUMS},
    {AT(lanes), SOME_LANES, NULL, IN_SUMS},
    {AT(segment), A_COUNT, NULL, IN_SUMS},
    {AT(key_lanes), SOME_LANES, NULL, IN_ATTENTION},
    {AT(key_segment), A_COUNT, NULL, IN_ATTENTION},
    {AT(final_roundings), A_COUNT, NULL, IN_ALL},
    {AT(fma), A_TRUTH, NULL, IN_SUMS},
    {AT(ftz), A_TRUTH, NULL, IN_ALL},
    {AT(store), A_NAME, dtypes, IN_ALL},
    {AT(exp_ulp), SOME_ULPS, NULL, IN_ATTENTION | 1u << SWIGLU},
    {AT(div_ulp), SOME_ULPS, NULL, IN_ALL},
    {AT(sqrt_ulp), SOME_ULPS, NULL, 1u << NORM},
    {AT(sincos_ulp), SOME_ULPS, NULL, IN_ROPE},
    {AT(pow_ulp), SOME_ULPS, NULL, IN_ROPE},
    {AT(angle), A_NAME, accumulators, IN_ROPE},
    {AT(repeated_angle), A_TRUTH, NULL, IN_ROPE},
    {AT(dequantised), A_TRUTH, NULL, IN_PRODUCTS},
    {AT(split_blocks), A_TRUTH, NULL, IN_PRODUCTS},
    {AT(cut_bits), A_COUNT, NULL, IN_PRODUCTS | IN_ATTENTION},
    {AT(promote), A_COUNT, NULL, IN_PRODUCTS},
    {AT(operand), A_NAME, dtypes, IN_PRODUCTS | IN_ATTENTION},
};
enum { N_FIELDS = sizeof fields / sizeof *fields };
_Static_assert(sizeof(enum fwd_dtype) == sizeof(int) && sizeof(enum fwd_accumulator) == sizeof(int) &&
                   sizeof(enum fwd_act_rule) == sizeof(int),
               "names are stored through an int");

/* What an entry is being read for, so that messages can name it. */
struct reading {
    const struct par_json *doc;
    const struct cJSON *object;
    enum entry_kind kind;
    const char *what; /* "norm", or the weight type */
};

static enum fwd_status read_name(const struct reading *r, const struct field *f, const struct cJSON *value, int *out,
                                 struct fwd_error *err) {
    const char *text = par_json_text(value);
    for (int i = 0; text && f->names[i]; i++)
        if (!strcmp(text, f->names[i])) {
            *out = i;
            return FWD_OK;
        }
    char list[160] = "";
    for (int i = 0; f->names[i]; i++) {
        size_t used = strlen(list);
        (void)snprintf(list + used, sizeof list - used, "%s%s", i ? ", " : "", f->names[i]);
    }
    return par_json_fail(r->doc, value, err, "%s: %s is %.40s, expected one of %s", r->what, f->key,
                         text ? text : "no string", list);
}

static enum fwd_status read_field(const struct reading *r, const struct field *f, struct entry *e,
                                  struct fwd_error *err) {
    const struct cJSON *value = par_json_get(r->object, f->key);
    if (!value)
        return FWD_OK;
    if (!(f->kinds >> r->kind & 1))
        return par_json_fail(r->doc, value, err, "%s: %s means nothing there", r->what, f->key);
    uint8_t *at = (uint8_t *)&e->numerics + f->at;
    const char *text = par_json_text(value);
    if (f->kind == SOME_LANES && text && !strcmp(text, "unknown")) {
        e->open = true;
        return FWD_OK; /* 0 */
    }
    if (f->kind == A_NAME) {
        int name = 0;
        FWD_TRY(read_name(r, f, value, &name, err));
        memcpy(at, &name, sizeof name);
        return FWD_OK;
    }
    if (f->kind == A_TRUTH)
        return par_json_get_bool(r->doc, r->object, f->key, (bool *)at, err);
    if (f->kind == SOME_ULPS) {
        double ulps = 0;
        if (!par_json_number(value, &ulps) || !(ulps >= 0 && ulps <= 1e6))
            return par_json_fail(r->doc, value, err, "%s: %s is %g, expected a number from 0 to 1e6", r->what, f->key,
                                 ulps);
        float narrow = (float)ulps;
        memcpy(at, &narrow, sizeof narrow);
        return FWD_OK;
    }
    int64_t count = 0;
    bool lanes = f->kind == SOME_LANES;
    FWD_TRY(par_json_get_int(r->doc, r->object, f->key, lanes, lanes ? MOST_LANES : 1 << 20, &count, err));
    int narrow = (int)count;
    memcpy(at, &narrow, sizeof narrow);
    return FWD_OK;
}

/* ---- contradictions --------------------------------------------------------------------------------------------- */
#define REFUSE_IF(condition, ...)                                                                                      \
    do {                                                                                                               \
        if (condition)                                                                                                 \
            return par_json_fail(r->doc, r->object, err, __VA_ARGS__);                                                 \
    } while (0)

static enum fwd_status check_chain(const struct reading *r, const struct entry *e, struct fwd_error *err) {
    const struct fwd_numerics *n = &e->numerics;
    bool chain = n->chain_block || n->chain_per_block || n->chain_extra || n->term_roundings || n->lanes || e->open;
    REFUSE_IF(
        n->accumulator == FWD_ACC_EXACT && chain,
        "%s: an exact accumulator has chain_block %d, chain_extra %d, lanes %d, expected none: nothing is rounded",
        r->what, n->chain_block, n->chain_extra, n->lanes);
    REFUSE_IF((n->chain_block > 0) != (n->chain_per_block > 0),
              "%s: chain_block %d with chain_per_block %d, expected both or neither", r->what, n->chain_block,
              n->chain_per_block);
    REFUSE_IF(n->segment && !n->lanes, "%s: segment %d and no lanes, expected an order to cut into segments", r->what,
              n->segment);
    REFUSE_IF(n->key_segment && !n->key_lanes, "%s: key_segment %d and no key_lanes, expected an order to cut", r->what,
              n->key_segment);
    bool tensor = n->accumulator == FWD_ACC_TENSOR, sums = IN_SUMS >> r->kind & 1;
    REFUSE_IF(tensor && (n->cut_bits < 8 || n->cut_bits > 64 || n->chain_block < 1),
              "%s: a tensor accumulator with cut_bits %d and chain_block %d, expected 8 to 64 bits and products in a "
              "step",
              r->what, n->cut_bits, n->chain_block);
    REFUSE_IF(!tensor && (n->cut_bits || n->promote),
              "%s: cut_bits %d, promote %d with a %s accumulator, expected tensor", r->what, n->cut_bits, n->promote,
              accumulators[n->accumulator]);
    REFUSE_IF(sums && n->accumulator != FWD_ACC_EXACT && !tensor && !n->lanes && !e->open,
              "%s: no lanes, expected the order of additions or \"unknown\"", r->what);
    return FWD_OK;
}

static enum fwd_status check_act(const struct reading *r, const struct fwd_numerics *n, uint32_t type,
                                 struct fwd_error *err) {
    int block = par_q8_block_values(n->act), weights = par_decode_block_values(type);
    bool int8_rule = par_q8_knows(n->act_rule), tensor = n->accumulator == FWD_ACC_TENSOR;
    REFUSE_IF(int8_rule != (block > 0),
              "%s: act_rule %s with act %s, expected blocks of int8 (q8_k, q8_32) with a rule "
              "that makes them",
              r->what, rules[n->act_rule], dtypes[n->act]);
    REFUSE_IF((n->act_rule == FWD_ACT_SIGNED127 && block != 256) ||
                  (n->act_rule > FWD_ACT_SIGNED127 && int8_rule && block != 32),
              "%s: act_rule %s with blocks of %d, expected %d", r->what, rules[n->act_rule], block,
              n->act_rule == FWD_ACT_SIGNED127 ? 256 : 32);
    REFUSE_IF((n->act_rule == FWD_ACT_NEAREST) != (n->act == FWD_BF16 || n->act == FWD_F16),
              "%s: act_rule %s with act %s, expected nearest and bf16 or f16 together", r->what, rules[n->act_rule],
              dtypes[n->act]);
    REFUSE_IF(tensor && n->act != FWD_BF16 && n->act != FWD_E4M3,
              "%s: a tensor accumulator with act %s, expected bf16 "
              "or e4m3",
              r->what, dtypes[n->act]);
    REFUSE_IF((n->act_rule == FWD_ACT_AMAX448) != (n->act == FWD_E4M3),
              "%s: act_rule %s with act %s, expected amax448 "
              "and e4m3 together",
              r->what, rules[n->act_rule], dtypes[n->act]);
    REFUSE_IF(n->act == FWD_E4M3 && !tensor, "%s: act e4m3 with a %s accumulator, expected tensor", r->what,
              accumulators[n->accumulator]);
    REFUSE_IF(n->act == FWD_I32, "%s: act i32, expected a format of activations", r->what);
    REFUSE_IF(!block && (n->dequantised || n->split_blocks),
              "%s: dequantised or split_blocks with act %s, expected blocks of int8", r->what, dtypes[n->act]);
    REFUSE_IF(n->dequantised && n->split_blocks, "%s: dequantised and split_blocks, expected one of them", r->what);
    REFUSE_IF(block && !n->dequantised && block != weights,
              "%s: activations in blocks of %d and weights in blocks of %d, expected the same or dequantised", r->what,
              block, weights);
    REFUSE_IF(tensor && n->operand != n->act,
              "%s: a tensor accumulator with act %s and operand %s, expected one format", r->what, dtypes[n->act],
              dtypes[n->operand]);
    REFUSE_IF(!tensor && n->operand != FWD_F32, "%s: weights rounded to %s without a tensor accumulator, expected f32",
              r->what, dtypes[n->operand]);
    return FWD_OK;
}

static enum fwd_status check_entry(const struct reading *r, const struct entry *e, uint32_t type,
                                   struct fwd_error *err) {
    const struct fwd_numerics *n = &e->numerics;
    FWD_TRY(check_chain(r, e, err));
    if (r->kind == MATMUL)
        FWD_TRY(check_act(r, n, type, err));
    REFUSE_IF(n->store != FWD_F32 && n->store != FWD_F16 && n->store != FWD_F64,
              "%s: store %s, expected f16, f32 or f64", r->what, dtypes[n->store]);
    REFUSE_IF((r->kind == EMBED || r->kind == KV) != (n->accumulator == FWD_ACC_EXACT),
              "%s: accumulator %s, expected %s", r->what, accumulators[n->accumulator],
              r->kind == EMBED || r->kind == KV ? "exact" : "one that rounds");
    REFUSE_IF((r->kind == ROPE) && (n->angle > FWD_ACC_F64 || !par_json_get(r->object, "angle")),
              "%s: angle %s, expected f32 or f64", r->what,
              par_json_get(r->object, "angle") ? accumulators[n->angle] : "is missing");
    REFUSE_IF((r->kind == ATTENTION || r->kind == SWIGLU) && !(n->exp_ulp > 0),
              "%s: exp_ulp %g, expected the accuracy of its exponential", r->what, (double)n->exp_ulp);
    REFUSE_IF(r->kind == ATTENTION && !n->key_lanes && !par_json_get(r->object, "key_lanes"),
              "%s: no key_lanes, expected the order of additions over the keys or \"unknown\"", r->what);
    REFUSE_IF(r->kind == ATTENTION && n->operand != FWD_F32 && n->operand != FWD_F16,
              "%s: operand %s, expected f16 or f32", r->what, dtypes[n->operand]);
    return FWD_OK;
}

/* ---- files ------------------------------------------------------------------------------------------------------ */
static enum fwd_status read_entry(const struct reading *r, uint32_t type, struct entry *e, struct fwd_error *err) {
    const char *text = par_json_text(r->object), *keys[N_FIELDS + 2];
    *e = (struct entry){.numerics = {.size = sizeof e->numerics}};
    if (text && !strcmp(text, "unknown"))
        return FWD_OK;
    if (!par_json_is_object(r->object))
        return par_json_fail(r->doc, r->object, err, "%s: %.40s, expected an object or \"unknown\"", r->what,
                             text ? text : "no object");
    for (int i = 0; i < N_FIELDS; i++)
        keys[i] = fields[i].key;
    keys[N_FIELDS] = "why";
    keys[N_FIELDS + 1] = NULL;
    FWD_TRY(par_json_keys_only(r->doc, r->object, keys, err));
    for (int i = 0; i < N_FIELDS; i++)
        FWD_TRY(read_field(r, &fields[i], e, err));
    REFUSE_IF(!par_json_get(r->object, "accumulator"),
              "%s: accumulator is missing, expected one of f32, f64, exact, tensor", r->what);
    e->known = true;
    return check_entry(r, e, type, err);
}

static enum fwd_status read_products(struct par_numerics *n, const struct cJSON *object, struct fwd_error *err) {
    if (!par_json_is_object(object))
        return par_json_fail(n->doc, object, err, "matmul: no object, expected an entry for each weight type");
    for (const struct cJSON *item = par_json_first(object); item; item = par_json_next(item)) {
        struct reading r = {n->doc, item, MATMUL, par_json_name(item)};
        const struct fwd_type_info *type = fwd_type_by_name(r.what);
        if (!type || !type->decodable)
            return par_json_fail(n->doc, item, err, "matmul: weights of type %.40s, expected one that is decoded here",
                                 r.what);
        for (int i = 0; i < n->n_products; i++)
            if (n->product[i].type == type->id)
                return par_json_fail(n->doc, item, err, "matmul: %.40s a second time, expected each type once", r.what);
        n->product[n->n_products].type = type->id;
        FWD_TRY(read_entry(&r, type->id, &n->product[n->n_products].entry, err));
        n->n_products++;
    }
    return FWD_OK;
}

static enum fwd_status read_file(struct par_numerics *n, struct fwd_error *err) {
    static const char *const keys[] = {"schema", "name", "about", "source", "ops", NULL};
    static const char *const ops[] = {"embed", "norm", "rope", "kv", "attention", "swiglu", "add", "matmul", NULL};
    const struct cJSON *root = par_json_root(n->doc), *object;
    const char *source;
    int64_t schema;
    FWD_TRY(par_json_keys_only(n->doc, root, keys, err));
    FWD_TRY(par_json_get_int(n->doc, root, "schema", SCHEMA, SCHEMA, &schema, err));
    FWD_TRY(par_json_get_text(n->doc, root, "name", &n->name, err));
    FWD_TRY(par_json_get_text(n->doc, root, "about", &n->about, err));
    FWD_TRY(par_json_get_text(n->doc, root, "source", &source, err));
    FWD_TRY(par_json_get_object(n->doc, root, "ops", &object, err));
    FWD_TRY(par_json_keys_only(n->doc, object, ops, err));
    for (int kind = 0; kind <= MATMUL; kind++) {
        struct reading r = {n->doc, par_json_get(object, kind_names[kind]), (enum entry_kind)kind, kind_names[kind]};
        if (!r.object)
            return par_json_fail(n->doc, object, err, "ops: no %s, expected an entry or \"unknown\"", r.what);
        FWD_TRY(kind == MATMUL ? read_products(n, r.object, err) : read_entry(&r, 0, &n->single[kind], err));
    }
    return FWD_OK;
}

/* Takes doc. */
static enum fwd_status make(struct par_numerics **out, struct par_json *doc, struct fwd_error *err) {
    struct par_numerics *n = fwd_calloc(1, sizeof *n);
    if (!n) {
        par_json_free(doc);
        FWD_FAIL(FWD_ENOMEM, err, "numerics: no memory");
    }
    n->doc = doc;
    enum fwd_status rc = read_file(n, err);
    if (rc != FWD_OK) {
        par_numerics_free(n);
        return rc;
    }
    *out = n;
    return FWD_OK;
}

enum fwd_status par_numerics_parse(struct par_numerics **out, const char *text, size_t n, const char *file,
                                   struct fwd_error *err) {
    struct par_json *doc;
    FWD_TRY(par_json_parse(&doc, text, n, file, err));
    return make(out, doc, err);
}

enum fwd_status par_numerics_load(struct par_numerics **out, const char *path, struct fwd_error *err) {
    struct par_json *doc;
    FWD_TRY(par_json_read(&doc, path, MOST_FILE_BYTES, err));
    return make(out, doc, err);
}

void par_numerics_free(struct par_numerics *n) {
    if (n)
        par_json_free(n->doc);
    fwd_free(n);
}

const char *par_numerics_name(const struct par_numerics *n) {
    return n->name;
}

const char *par_numerics_about(const struct par_numerics *n) {
    return n->about;
}

/* ---- answers ---------------------------------------------------------------------------------------------------- */
static const struct entry *find_product(const struct par_numerics *n, uint32_t type) {
    for (int i = 0; i < n->n_products; i++)
        if (n->product[i].type == type)
            return &n->product[i].entry;
    return NULL;
}

static const struct entry *find_entry(const struct par_numerics *n, enum fwd_op op, uint32_t type, bool *is_product) {
    *is_product = false;
    switch (op) {
    case FWD_OP_INP_EMBD:
        return &n->single[EMBED];
    case FWD_OP_ATTN_NORM:
    case FWD_OP_FFN_NORM:
    case FWD_OP_RESULT_NORM:
        return &n->single[NORM];
    case FWD_OP_QCUR_ROPE:
    case FWD_OP_KCUR_ROPE:
        return &n->single[ROPE];
    case FWD_OP_K_CACHE:
    case FWD_OP_V_CACHE:
        return &n->single[KV];
    case FWD_OP_KQV_OUT:
        return &n->single[ATTENTION];
    case FWD_OP_FFN_SWIGLU:
        return &n->single[SWIGLU];
    case FWD_OP_FFN_INP:
    case FWD_OP_L_OUT:
        return &n->single[ADD];
    case FWD_OP_QCUR:
    case FWD_OP_KCUR:
    case FWD_OP_VCUR:
    case FWD_OP_ATTN_OUT:
    case FWD_OP_FFN_GATE:
    case FWD_OP_FFN_UP:
    case FWD_OP_FFN_OUT:
    case FWD_OP_RESULT_OUTPUT:
        *is_product = true;
        return find_product(n, type);
    default: /* quantised inputs */
        return NULL;
    }
}

bool par_numerics_of(const struct par_numerics *n, enum fwd_op op, uint32_t weight_type, int64_t n_cols, bool has_bias,
                     struct fwd_numerics *out) {
    bool is_product;
    const struct entry *e = find_entry(n, op, weight_type, &is_product);
    if (!e || !e->known)
        return false;
    int block = par_q8_block_values(e->numerics.act);
    if (is_product && block && n_cols % block)
        return false;
    *out = e->numerics;
    if (op == FWD_OP_INP_EMBD)
        out->act = FWD_I32;
    if (is_product && has_bias)
        out->final_roundings++;
    return true;
}

bool par_numerics_order_is_open(const struct par_numerics *n, enum fwd_op op, uint32_t weight_type) {
    bool is_product;
    const struct entry *e = find_entry(n, op, weight_type, &is_product);
    return e && e->known && e->open;
}
