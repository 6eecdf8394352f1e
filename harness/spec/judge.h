/* harness/spec/judge.h: the local judgement. Each op's value is computed again, by the harness's own code, from the
 * candidate's own captured inputs, and the candidate's output is held against it with an element-wise bound.
 *
 * par_judge_eval is the judge hook (architecture.md, decision 3): everything else here is bookkeeping around it. Shares
 * with the engine the byte parser and nothing else: own hyper-parameters, own binding, own decoders, own quantisers. */
#ifndef HARNESS_SPEC_JUDGE_H
#define HARNESS_SPEC_JUDGE_H

#include "compare/verdict.h"
#include "engine.h"

/* ---- the harness's own reading of a model file --------------------------------------------------------------- */
struct par_spec_config {
    char arch[32];
    int n_layer, n_embd, n_ff, n_head, n_kv_head, head_dim, n_rope;
    int64_t n_vocab;
    bool rope_neox;
    double rope_theta;
    double norm_eps;
    bool tied_head, qkv_bias;
};
struct par_spec_model; /* own binding by tensor name */
enum fwd_status par_spec_open(struct par_spec_model **out, const struct fwd_gguf *file, struct fwd_error *err);
void par_spec_close(struct par_spec_model *m);
const struct par_spec_config *par_spec_config(const struct par_spec_model *m);
/* Differences between this reading and an engine's, one line each, into buf; returns their number. */
int par_spec_compare_config(const struct par_spec_model *m, const struct fwd_config *engine, char *buf, size_t n);

/* ---- the hook ------------------------------------------------------------------------------------------------- */
/* The bound is numerics.md section 2 (spec/bound.h): all of PAR_BOUND_ELEMENTS correct elements stay inside theirs with
 * probability 1 - PAR_BOUND_DELTA. A run may judge up to that many. */
#define PAR_BOUND_DELTA 1e-6
#define PAR_BOUND_ELEMENTS 4294967296.0
/* LIKELY: as said. WORST: no correct element ever leaves its bound, which grows with the length of a sum instead of its
 * root; section 2.1's rules have nothing to excuse there, nor where a LIKELY bound is no larger than that. */
enum par_bound_mode { PAR_BOUND_LIKELY = 0, PAR_BOUND_WORST = 1 };

/* Which of the processor's levels (mask of enum fwd_cpu) the judge may use. 0 means all that the machine has, so plain
 * C needs a bit of its own. The values are the same, bit for bit. */
#define PAR_CAPS_PLAIN (1u << 31)

struct par_eval {
    enum fwd_op op;
    int layer;
    int pos0, n_pos;          /* of the views */
    const uint8_t *judge_pos; /* [n_pos] which positions to judge; NULL: all */
    int n_in;
    /* As the table in engine's enum fwd_op; they may cover more positions than out. Three differences: a matmul with a
     * quantised act may get the float tap (then the judge quantises it by the declared rule); K_cache and
     * V_cache take the rows that were computed (Kcur_rope, Vcur) for any positions at or below out's, and kqv_out's
     * keys and values may be such rows instead of a cache. */
    const struct fwd_view *in[4];
    const struct fwd_view *out; /* the candidate's */
    const struct fwd_numerics *numerics;
    unsigned caps;        /* 0, a mask of enum fwd_cpu, or PAR_CAPS_PLAIN */
    uint8_t *accused_pos; /* NULL, or by absolute position, [pos0 + n_pos]: set to 1 where an element is outside */
    enum par_bound_mode bound;
};
struct par_worst {
    int pos;     /* absolute position */
    int64_t row; /* index inside that position's row */
    double expected, got, bound;
};
/* One op of one layer, over everything judged so far. */
struct par_op_row {
    enum fwd_op op;
    int layer;
    enum par_verdict verdict;
    uint64_t n_judged; /* elements */
    uint64_t n_over;   /* residue ratio above 1 */
    /* Of n_judged, those that only the second look keeps below 1: rounding that is the same whenever the declared order
     * is followed (section 2.1, rule 2). Judged against the sum as added in that order. */
    uint64_t n_systematic;
    uint64_t n_nonfinite_got, n_nonfinite_expected, n_nonfinite_mismatch;
    double ratio_max, ratio_p50, ratio_p99, ratio_p999;
    double floor_p50; /* detection floor: half of all elements would have shown a relative change of this (bound over
                       * |expected|, median; known to 1/16 octave); 0 where every change shows, or nothing was judged */
    /* Of a matmul whose quantised input was not shown, only the floats before it: the sum of all finite bounds, and
     * what of it is for values so close to a tie that they may have been rounded to the other side (numerics.md,
     * section 1).
     */
    double tie_bound, tie_slack;
    bool review; /* ratio_p999 is so small that the declaration may be too generous to show a fault; no verdict */
    struct par_worst worst; /* at ratio_max, the first by position and row among equals; else the first mismatch */
    bool absent;            /* the path declares no such op: nothing to measure, and nothing missing */
    char note[160];         /* "", or why it is UNMEASURED or MISTRUSTED */
};
/* Judges one call and adds it to *row and *hist (both zeroed by the caller the first time; hist is plain data, see
 * spec/ratio_histogram.h). ratio_max is cut at 1e9, which is also what a wrong element under a bound of 0 (inp_embd,
 * _q8, _cache) counts. A _q8 element's expected and got are the code, or at row K + block the block's scale. What
 * cannot be judged (an input missing or in a format without an evaluator) leaves the counts alone and says why in
 * row->note. */
struct par_ratio_histogram;
enum fwd_status par_judge_eval(const struct par_spec_model *m, struct fwd_pool *pool, const struct par_eval *e,
                               struct par_op_row *row, struct par_ratio_histogram *hist, struct fwd_error *err);

/* The exact values of an op from the inputs in e, expected[n_pos][row values]; e->out tells the shape, its values do
 * not matter. FWD_EUNSUPPORTED for _q8 and _cache, whose output is bytes. An alternative spec (another weight, stride,
 * epsilon, ...) is a changed copy of the model: see spec_model.h. */
enum fwd_status par_spec_value(const struct par_spec_model *m, struct fwd_pool *pool, const struct par_eval *e,
                               double *expected, struct fwd_error *err);

/* An op element by element: [n_pos][width] each, NaN in `expected` where nothing was judged. A position of a _q8 op has
 * its K codes and then a scale a block; the positions of a cache are all its rows. */
struct par_elements {
    int pos0, n_pos;
    int64_t width;
    double *expected, *got, *bound;
};
enum fwd_status par_spec_elements(const struct par_spec_model *m, struct fwd_pool *pool, const struct par_eval *e,
                                  struct par_elements *out, struct fwd_error *err);
void par_elements_free(struct par_elements *x);

/* ---- a streaming judge: give it every tap of a path, in order -------------------------------------------------- */
struct par_judge;
typedef bool par_numerics_fn(void *ud, enum fwd_op op, int layer, struct fwd_numerics *out);
struct par_judge_options {
    par_numerics_fn *numerics; /* what the path declares */
    void *numerics_ud;
    int sample_every; /* judge positions p with p % sample_every == sample_at, 1: all */
    int sample_at;
    bool judge_also;
    int also[2]; /* with judge_also: two positions that are judged whatever the step */
    struct fwd_pool *pool;
    unsigned caps; /* as in struct par_eval */
    /* NULL, or: this view and all that its op read have the bits of a pass that was judged before. It is kept as an
     * input and not judged again. */
    bool (*known)(void *ud, const struct fwd_view *view);
    void *known_ud;
    size_t evidence_bytes; /* most bytes of copies of accused ops (spec/evidence.h); 0: none are made */
    enum par_bound_mode bound;
};
enum fwd_status par_judge_open(struct par_judge **out, const struct par_spec_model *m,
                               const struct par_judge_options *options, struct fwd_error *err);
void par_judge_close(struct par_judge *j);
/* A new sequence (all positions start over); tokens are what the path was given, for inp_embd. They may grow by calling
 * par_judge_tokens again with the longer list. */
enum fwd_status par_judge_tokens(struct par_judge *j, const int32_t *tokens, int n_tokens, struct fwd_error *err);
enum fwd_status par_judge_seq_begin(struct par_judge *j, struct fwd_error *err);
/* A fwd_tap_fn; ud is the judge. Copies what later ops need, judges what is complete; matmuls of few positions wait for
 * more, at the latest until par_judge_seq_begin or par_judge_rows. A failure is kept and returned by par_judge_rows. */
int par_judge_tap(void *ud, const struct fwd_view *view);
/* What par_judge_tap would say of this call, from the taps that were shown so far; nothing is kept of it. *row is the
 * caller's, zeroed. judge_pos as in struct par_eval. An op without declared numerics leaves it UNMEASURED. */
enum fwd_status par_judge_try(struct par_judge *j, const struct fwd_view *view, const uint8_t *judge_pos,
                              struct par_op_row *row, struct fwd_error *err);
/* rows: one per (op, layer) of the model in forward order, [*n_rows], owned by the judge; an op whose tap or input
 * never came is UNMEASURED with a note. */
enum fwd_status par_judge_rows(struct par_judge *j, const struct par_op_row **rows, int *n_rows, struct fwd_error *err);
/* The evidence of all accused ops so far becomes the caller's (par_evidence_free). */
struct par_evidence_set;
void par_judge_take_evidence(struct par_judge *j, struct par_evidence_set *out);
/* Was row i (of par_judge_rows) judged at that position? Caches are judged at every row that a call reads. */
bool par_judge_covers(const struct par_judge *j, int i, int pos);
/* Positions judged (distinct) and elements in all, as of the last par_judge_rows. */
void par_judge_coverage(const struct par_judge *j, int *n_positions, uint64_t *n_elements);

#endif
