/* harness/localise/pattern.h: where inside an accused op the wrong elements lie: positions, rows, heads, and, for a
 * matrix product, the K-blocks whose contribution is wrong, with the byte range in the model file. */
#ifndef HARNESS_LOCALISE_PATTERN_H
#define HARNESS_LOCALISE_PATTERN_H

#include "spec/evidence.h"

enum { PAR_PATTERN_BLOCKS = 8 };
struct par_pattern {
    char text[320]; /* "rows 512-767 of every position", "K-block 5 of row 17", "positions >= 64", "head 3" */
    uint64_t n_judged, n_accused;
    int pos_first, pos_last; /* of accused elements; -1: none */
    int n_pos_accused, n_pos_judged;
    int64_t row_first, row_last; /* of accused elements */
    int64_t n_rows_accused;
    int head; /* the only head concerned, -1: more than one, or the op has no heads */
    /* Matrix products, and _q8 ops (whose blocks are those of the activations). n_blocks == 0: the error is not
     * confined to blocks that could be named. */
    int n_blocks;
    int64_t block[PAR_PATTERN_BLOCKS]; /* index of a block of `block_values` along K */
    int block_values;
    int64_t k_first, k_last; /* a single weight when equal; -1 */
    double block_share;      /* of the error's square that these blocks account for */
    /* Bytes of the model file that the worst element's row (or, if known, its block) was read from. */
    char tensor[64];
    uint64_t byte_first, byte_last;
};
/* Judges the calls of the item again, element by element, and describes what is accused. An item whose inputs were not
 * kept says so in text. FWD_ENOMEM, or what the evaluator says of views that do not fit the model. */
enum fwd_status par_pattern_find(const struct par_spec_model *m, struct fwd_pool *pool, const struct par_evidence *item,
                                 struct par_pattern *out, struct fwd_error *err);

#endif
