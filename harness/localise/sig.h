/* harness/localise/sig.h: what the signatures share. A signature is a named kind of bug; an implementation of it gives,
 * for some ops, the values that the bug would have produced, one parameter set ("variant") after the other.
 * Internal to harness/localise. Nothing here comes from harness/fault. */
#ifndef HARNESS_LOCALISE_SIG_H
#define HARNESS_LOCALISE_SIG_H

#include "localise/explain.h"
#include "spec/spec_model.h"

/* An accused element: outside its bound under the spec. */
struct sig_element {
    int slot; /* index of (call, position) in sig_case.slots */
    int64_t row;
    double got, expected, bound;
};
/* A position of a call with accused elements. */
struct sig_slot {
    int call, pos;
};
struct sig_call {
    struct par_eval e;
    struct par_elements x; /* every judged element under the spec */
};

/* A row of activations as the products see it. q NULL: floats in x; else K codes, and the scale and the sum of each 16
 * values. */
struct sig_act {
    int8_t *q;
    double *d16, *sum16;
    double *x;
    bool owned;
};

struct sig_case {
    const struct par_explain_context *context;
    const struct par_evidence *item;
    const struct par_spec_model *m;
    const struct par_spec_config *config;
    struct fwd_pool *pool;
    struct sig_call *calls;
    int n_calls; /* that were evaluated */
    struct sig_slot *slots;
    int n_slots;
    struct sig_element *list; /* accused; sorted by (row, slot) for a matmul, else by (slot, row) */
    int64_t n_list;           /* all of them, or an even choice */
    uint64_t n_accused;
    uint64_t n_clean;
    double clean_ratio_max; /* of the elements inside their bounds */
    /* Matrix products only. */
    struct sig_act *acts; /* [n_slots] */
    int64_t k;            /* values in a row of activations */
    int *no_memory;       /* set where an allocation failed */
};

/* ---- reading a matrix another way --------------------------------------------------------------------------------
 * What is done to a block after the spec's decoder; parameters in a, b. */
enum sig_block_kind {
    SIG_BLOCK_SPEC = 0,
    SIG_NIBBLE_SWAP,     /* the two values of a byte change places */
    SIG_NIBBLE_SWAP_LOW, /* only their low bits do, where a type has high bits elsewhere */
    SIG_NIBBLE_ZIP,      /* neighbours where the format has halves */
    SIG_NIBBLE_ZIP_LOW,
    SIG_NIBBLE_UNZIP,
    SIG_SCALE_FROM,  /* every sub-block has the scale of sub-block map(a) */
    SIG_SCALE_ONE,   /* sub-block a has that of sub-block b */
    SIG_SCALE_BLOCK, /* d, and with b its dmin, of the block a further on */
    SIG_MIN_FROM,
    SIG_MIN_ONE,
    SIG_MIN_BLOCK,
    SIG_MIN_DROP,
    SIG_MIN_ADD,
    SIG_HIGH_DROP,       /* read as 0, or with a as ones */
    SIG_HIGH_FROM,       /* of element e ^ a; a < 0: see high_source */
    SIG_SCALE_HIGH_DROP, /* the upper two bits of 6-bit scales and minima */
    SIG_K_CUT,           /* columns from a on count as 0 */
    SIG_BLOCK_ZERO,      /* the whole block counts as 0 */
    SIG_K_CUT_CODES      /* the same, but their share of the minima stays */
};
/* Which row is read for row r. */
enum sig_row_map {
    SIG_ROW_SAME = 0,
    SIG_ROW_SHIFT, /* r + a */
    SIG_ROW_XOR,   /* r ^ a */
    SIG_ROW_TIMES, /* r * a */
    SIG_ROW_OVER,  /* r / a */
    SIG_ROW_HEAD,  /* the same row of head a */
    SIG_ROW_HEADS, /* of the head a further on, cyclically */
    SIG_TRANSPOSED /* element k of row r is element k * n_rows + r of the whole */
};
/* How the activations are changed. */
enum sig_act_kind {
    SIG_ACT_SPEC = 0,
    SIG_ACT_SCALE_BLOCK, /* codes of a block, scale of the block a further on */
    SIG_ACT_SCALE_ROW,   /* all with the scale of block a; -1: the largest */
    SIG_ACT_SCALE_BATCH, /* the scales of the first (a = 0) or last (1) position of the call */
    SIG_ACT_HEADS,       /* values of the head a further on */
    SIG_ACT_REQUANT,     /* quantised again from the float tap by rule a (enum sig_quant_rule) */
    SIG_ACT_ZIP          /* neighbours where the weight's format has halves */
};
/* Scales and minima with fewer bits. */
enum sig_narrow {
    SIG_NARROW_NOT = 0,
    SIG_NARROW_F16,    /* of each sub-block, d times its integer, to F16 */
    SIG_NARROW_BF16,   /* to BF16 */
    SIG_NARROW_D_BF16, /* d and dmin to BF16 */
    SIG_NARROW_KINDS
};
struct sig_product {
    const struct spec_weight *w;
    uint32_t type;
    int64_t row_bytes, first; /* bytes a row, and before row 0 */
    enum sig_block_kind kind;
    int finite; /* a scale that is no number counts as 0: 1: by itself, 2: with all of its block */
    enum sig_narrow narrow;
    int64_t a, b, only_block; /* of kind; only_block -1: all blocks */
    enum sig_row_map map;
    int64_t map_a, head_rows, n_heads;
    const struct spec_weight *bias; /* NULL: none */
    double bias_times;
    enum sig_act_kind act;
    int64_t act_a;
};
/* A row of K weights. */
struct sig_row {
    int64_t k;
    int block; /* values in a block */
    bool has_min;
    int8_t *q;         /* codes */
    double *d16, *m16; /* scale, and minimum (to be subtracted), of each 16 */
    int16_t *scale16;  /* the integer part of d16 */
    float *w;          /* decoded in the reference order */
};

/* One set of parameters. What the fields mean is the implementation's own. */
struct sig_variant {
    int kind;
    int64_t a, b, c;
    double f, known; /* known: how well f is, relative */
    struct sig_product product;
    char text[160]; /* what the op did, in words */
};
enum sig_more { SIG_END, SIG_SKIP, SIG_TRY };
/* Variant i, 0 and up. SIG_SKIP: there is none with this number here. */
typedef enum sig_more sig_variant_fn(const struct sig_case *c, int i, struct sig_variant *v);
/* Values of n elements (in the order of the list) under the variant. bound: as far as rounding may take them, -1 where
 * the variant says nothing. loose: as far as it may in any order of summation (an element is explained by that only if
 * it is under 1/16 of its error); set to bound where there is no such thing. Runs on several threads. */
typedef void sig_value_fn(const struct sig_case *c, const struct sig_variant *v, const struct sig_element *e, int64_t n,
                          double *alt, double *bound, double *loose);

/* How well something explains the accused elements. */
struct sig_fit {
    double share, ratio_max;
    double digits; /* decimal digits of agreement that chance would not give, over all explained elements */
    int64_t n_tested;
    bool whole; /* the variant differs from the spec nowhere else in the accused positions */
    int n_variants;
    char text[200];
};
/* For what is no list of variants. */
typedef void sig_solve_fn(const struct sig_case *c, struct sig_fit *fit);

enum {
    SIG_COSTLY = 1,       /* a value is expensive: fewer elements are checked */
    SIG_PER_SLOT = 2,     /* each position may have a variant of its own */
    SIG_PER_HEAD = 4,     /* each head of each position may */
    SIG_WHOLE_HEADS = 16, /* accused heads must be explained whole: their clean elements too */
    SIG_IS_FREE = 8       /* a fitted real number: its first element does not count as evidence */
};
#define SIG_OP(op) (1u << (op))
#define SIG_MATMULS                                                                                                    \
    (SIG_OP(FWD_OP_QCUR) | SIG_OP(FWD_OP_KCUR) | SIG_OP(FWD_OP_VCUR) | SIG_OP(FWD_OP_ATTN_OUT) |                       \
     SIG_OP(FWD_OP_FFN_GATE) | SIG_OP(FWD_OP_FFN_UP) | SIG_OP(FWD_OP_FFN_OUT) | SIG_OP(FWD_OP_RESULT_OUTPUT))
#define SIG_QKV (SIG_OP(FWD_OP_QCUR) | SIG_OP(FWD_OP_KCUR) | SIG_OP(FWD_OP_VCUR))
#define SIG_NORMS (SIG_OP(FWD_OP_ATTN_NORM) | SIG_OP(FWD_OP_FFN_NORM) | SIG_OP(FWD_OP_RESULT_NORM))
#define SIG_ROPES (SIG_OP(FWD_OP_QCUR_ROPE) | SIG_OP(FWD_OP_KCUR_ROPE))
#define SIG_CACHES (SIG_OP(FWD_OP_K_CACHE) | SIG_OP(FWD_OP_V_CACHE))
#define SIG_Q8S                                                                                                        \
    (SIG_OP(FWD_OP_ATTN_NORM_Q8) | SIG_OP(FWD_OP_KQV_OUT_Q8) | SIG_OP(FWD_OP_FFN_NORM_Q8) |                            \
     SIG_OP(FWD_OP_FFN_SWIGLU_Q8) | SIG_OP(FWD_OP_RESULT_NORM_Q8))
#define SIG_SUMS (SIG_OP(FWD_OP_FFN_INP) | SIG_OP(FWD_OP_L_OUT))
#define SIG_ATTENTION SIG_OP(FWD_OP_KQV_OUT)
#define SIG_SWIGLU SIG_OP(FWD_OP_FFN_SWIGLU)
#define SIG_EMBED SIG_OP(FWD_OP_INP_EMBD)
#define SIG_ALL ((1u << FWD_OP_COUNT) - 1)

/* An implementation of a signature for some ops. */
struct signature {
    const char *name; /* of a row of par_signature_info */
    uint32_t ops;
    unsigned flags;
    sig_variant_fn *variant;
    sig_value_fn *value;
    sig_solve_fn *solve; /* instead of the two before */
};
/* The implementations of each file, ended by a row without a name. */
extern const struct signature par_sig_weight[], par_sig_terms[], par_sig_rope[], par_sig_norm[], par_sig_attention[],
    par_sig_cache[], par_sig_simple[], par_sig_quant[], par_sig_rows[], par_sig_single[];

/* ---- helpers ----------------------------------------------------------------------------------------------------- */
/* Values of a row of the op's output (a _q8 row: codes, then scales). */
int64_t par_sig_width(const struct sig_case *c);
/* Whether alt explains got; dev is |got - expected|. */
bool par_sig_fits(const struct sig_element *e, double alt, double bound, double loose);
/* Residue ratio of an explained element. */
double par_sig_ratio(const struct sig_element *e, double alt, double bound, double loose);
/* The evidence that an explained element is. */
double par_sig_digits(const struct sig_case *c, const struct sig_element *e, double bound);
/* Adds one explained element to a fit. */
void par_sig_add(const struct sig_case *c, struct sig_fit *fit, const struct sig_element *e, double alt, double bound,
                 double loose);
/* The spec's value of row `row` at position pos of call `call`; NaN where it was not judged. */
double par_sig_expected(const struct sig_case *c, int call, int pos, int64_t row);
double par_sig_got(const struct sig_case *c, int call, int pos, int64_t row);
double par_sig_bound(const struct sig_case *c, int call, int pos, int64_t row);
/* A copy of the list sorted by (slot, row), to be freed; NULL: no memory, which is noted. */
struct sig_element *par_sig_sorted(const struct sig_case *c);
/* fwd_alloc that notes a failure in the case. */
void *par_sig_alloc(const struct sig_case *c, size_t n, size_t size);
/* Input row `in` of a slot as doubles into dst (n values); false: it is not there. */
bool par_sig_input(const struct sig_case *c, int slot, int in, double *dst, int64_t n);
static inline int par_sig_pos(const struct sig_case *c, const struct sig_element *e) {
    return c->slots[e->slot].pos;
}

/* x rounded to the nearest even BF16, or to F16. */
double par_sig_bf16(double x);
double par_sig_f16(double x);

/* ---- matrix products (sig_matmul.c) -------------------------------------------------------------------------------
 */
void par_sig_free_acts(struct sig_case *c);
enum fwd_status par_sig_load_acts(struct sig_case *c, struct fwd_error *err);

/* Row `row` of the weight read that way; false: it would lie outside the tensor. floats: fills w, else the codes. */
bool par_sig_read_row(const struct sig_product *p, int64_t row, bool floats, struct sig_row *out);
/* NULL: no memory. One allocation, freed by fwd_free. */
struct sig_row *par_sig_row_alloc(const struct sig_case *c, int64_t k);
/* The spec's reading of a matrix. */
struct sig_product par_sig_product(const struct spec_weight *w);
/* Whether products with this matrix are made of integer blocks. */
bool par_sig_integer(const struct sig_case *c, const struct sig_product *p);
/* A sum of products: exact, its bounds without a bias. */
struct sig_sum {
    double exact, bound, loose;
};
void par_sig_dot(const struct sig_case *c, const struct sig_row *row, bool integer, const struct sig_act *act,
                 struct sig_sum *sum);
/* sig_value_fn of every variant that is a struct sig_product. */
void par_sig_product_value(const struct sig_case *c, const struct sig_variant *v, const struct sig_element *e,
                           int64_t n, double *alt, double *bound, double *loose);
/* The bound of a finished sum that a bias is added to. */
double par_sig_with_bias(const struct sig_case *c, const struct sig_sum *s, double bias);

#endif
