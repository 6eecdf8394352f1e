/* harness/compare/diff.h: two captures side by side.
 *
 * Comparable are captures of one model file, one list of token ids and taps of one meaning; otherwise PAR_REFUSED with
 * the reason. A fact that a capture does not say (one made by another engine) can be asserted by a person: that is
 * recorded and caps HELD and DIVERGED at UNMEASURED.
 *
 * Taps are aligned by (tap, layer, position), whatever calls the rows came in: a tensor whose name both sides have is
 * compared whole, the positions of the others row by row, each from the first tensor that has it. K_cache and V_cache
 * hold all rows up to their call's end, so those with the same end are compared. Tensors whose names are no taps are
 * compared by name. F64, F32, F16 and BF16 compare as values; quantised rows are equal when their bytes are, and their
 * distances are between the dequantised values.
 *
 * Two captures that differ are information: in a free run correct paths differ too. Only with `exact` does a differing
 * bit mean DIVERGED. NaN or infinity on one side alone is NONFINITE. What one side lacks is UNMEASURED. */
#ifndef HARNESS_COMPARE_DIFF_H
#define HARNESS_COMPARE_DIFF_H

#include "compare/metrics.h"
#include "compare/verdict.h"
#include "engine.h"
#include "tap/capture.h"

#include <stdio.h>

struct par_diff_options {
    const char *filter; /* POSIX extended regular expression on "tap-layer", or NULL */
    bool exact;
    bool same_model, same_tokens, same_taps; /* asserted where a capture does not say */
};

struct par_diff_row {                        /* one tap of one layer, all positions; or one other tensor */
    char label[64];                          /* "Qcur-3" */
    int64_t n_positions, n_only_a, n_only_b; /* compared, and on one side alone (rows; tensors without rows: 1) */
    uint64_t n_differ;                       /* values that are not the same bits */
    int first_pos;                           /* of the first that differs, -1: none; and its place in that row: */
    int64_t first_at;
    double first_a, first_b;
    int64_t width;        /* values of one position: m.max_at / width is a position, the remainder a row */
    struct par_metrics m; /* b against a */
};
struct par_diff {
    enum par_verdict verdict;
    char why[512];
    char asserted[96]; /* "model_sha256, token_ids", or "" */
    const struct par_capture *a, *b;
    struct par_diff_row *rows; /* in the order in which the taps first appear in a, then those that only b has */
    int n_rows, n_compared, n_same, n_only_a, n_only_b; /* rows: in part on one side alone counts in n_only_ too */
    uint64_t n_values, n_differ;
    int first; /* the first row that differs, -1: none */
};

/* A file that cannot be read is an error; captures that must not be compared are a result (PAR_REFUSED). The captures
 * must outlive *out. */
enum fwd_status par_diff_run(struct par_diff **out, const struct par_capture *a, const struct par_capture *b,
                             const struct par_diff_options *options, struct fwd_error *err);
void par_diff_free(struct par_diff *d);
/* all: also the rows that are equal. */
void par_diff_text(const struct par_diff *d, bool all, FILE *out);
/* Schema parity-diff-v1. Allocated (fwd_free), NULL when memory is out. */
char *par_diff_json(const struct par_diff *d);

#endif
