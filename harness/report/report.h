/* harness/report/report.h: everything one `parity run` measured, as plain data, and its renderings.
 * The run fills it, the writers only read it: no writer computes a verdict. Strings are owned by the arena `text`. */
#ifndef HARNESS_REPORT_REPORT_H
#define HARNESS_REPORT_REPORT_H

#include "compare/ledger.h"
#include "compare/metrics.h"
#include "compare/verdict.h"
#include "engine.h"
#include "spec/judge.h"

#include <stdio.h>

#define PAR_REPORT_SCHEMA "parity-report-v1"

/* Where an accused op is wrong, and why. Strings NULL: not looked into. */
struct par_report_finding {
    const char *where;                           /* "K-block 5 of row 17" */
    const char *bytes;                           /* of the model file that were read there, or NULL */
    const char *why;                             /* the diagnosis in words, or what is known where there is none */
    const char *signature, *hypothesis, *museum; /* of the diagnosis; NULL: unexplained */
    double share;                                /* of the accused elements that it explains */
    int n_tried;                                 /* diagnoses tried */
    uint64_t n_accused;
    int head, pos_first, pos_last;      /* head -1: more than one, or none */
    int64_t row_first, row_last, block; /* block -1: not one */
};
struct par_report_op { /* one op of one layer, both sides */
    enum fwd_op op;
    int layer;
    struct par_op_row ref, cand;
    struct par_report_finding ref_finding, cand_finding;
    bool has_free_run;
    struct par_metrics free_run; /* candidate against reference, over all positions kept */
    struct par_ledger ledger;    /* of the candidate's matrix products, at a sample of positions; n == 0: none */
};
struct par_report_logits { /* one position */
    int pos;
    bool decode;          /* teacher-forced decode step, not prompt */
    uint64_t logits_hash; /* fwd_hash64 of the candidate's row, as `parity generate` says it of the same position */
    struct par_logit_metrics m;
    double spread;   /* explained spread: the ensemble's quantile of max(e_j - e_1) (scaled), or NaN: not measured */
    double distance; /* relative L2 of the centred difference */
    double spread_distance;   /* the same of the ensemble, its quantile */
    double price;             /* mean distance of the ensemble's runs to the reference */
    double floor;             /* largest distance between two runs of the ensemble: as far apart as correct runs are */
    double f64_ref, f64_cand; /* distance of either side to path f64; NaN: not measured */
    enum par_verdict verdict;
    const char *what; /* "equal", "certified near-tie", "flip beyond the spread", "distance beyond the spread" */
};
struct par_report_arm {     /* one knob or op flipped */
    const char *id;         /* "kv=f32", "schedule=step", ... */
    const char *what;       /* one line */
    const char *hypothesis; /* "H2" */
    bool ran;
    bool expect_same_bits;
    bool same_bits; /* logits hash equal to the base run's */
    uint64_t logits_hash;
    double distance_to_ref; /* relative L2 at the logits, last position judged; base run's beside it */
    double distance_base;
    const char *result;  /* one line */
    const char *command; /* reproduces it */
};
struct par_report_impact { /* guilty ops replaced by the spec's, the candidate run on with the same ids */
    const char *what;      /* "ffn_out of layer 3", "all 3 guilty ops together" */
    enum fwd_op op;        /* FWD_OP_COUNT, -1: several */
    int layer;
    int n_ops;
    bool judged;   /* the patched run was judged as well */
    int n_accused; /* then: ops still accused in it */
    bool same_bits;
    int n_positions;      /* whose logits were looked at */
    double before, after; /* of their distances to the reference, what is beyond the spread, summed */
    double removes;       /* 1 - after / before; NaN where nothing is beyond the spread */
};
struct par_report_hypothesis {
    const char *id, *title;
    const char *verdict; /* "SUPPORTED" | "FALSIFIED" | "UNTESTED" */
    const char *evidence;
    const char *command;
};
struct par_report_contract { /* one falsification test */
    const char *contract, *id, *rule;
    enum par_verdict verdict;
    const char *detail;
};
struct par_report_pair {
    const char *name, *value;
};
struct par_report_proof { /* of the measurement itself: neutral taps, determinism, declared numerics, ... */
    const char *name, *value;
    enum par_verdict verdict; /* UNMEASURED when it was not made, MISTRUSTED when it failed */
};
struct par_report_figure { /* what contracts and hypotheses speak of, see contract/figures.h */
    const char *name;
    double value;
};
struct par_report_coverage {
    const char *path, *schedule, *what;
    int64_t n_done, n_total;
};

struct par_report_case { /* a reproducer: path NULL when none was written, `note` says why */
    enum fwd_op op;
    int layer;
    bool reference;
    const char *path, *command, *note;
    uint64_t n_bytes;
    int n_rows, n_blocks, n_positions; /* weight rows, blocks and input rows kept */
    bool verified;                     /* a fresh process failed for the same reason */
};
/* How much of one kind of op was judged, at each class of positions: (op of a layer, position) pairs. */
enum par_position_class { PAR_POSITION_FIRST, PAR_POSITION_PROMPT, PAR_POSITION_DECODE, PAR_POSITION_CLASSES };
struct par_report_cells {
    const char *path, *schedule, *ops; /* ops: "matmul", "rope", ... */
    int64_t n_done[PAR_POSITION_CLASSES], n_total[PAR_POSITION_CLASSES];
};

struct par_report {
    enum par_verdict verdict;
    /* the first page */
    const char *answer;  /* "noise", "bug", "not known" with a reason */
    const char *side;    /* "neither", "candidate", "reference", "both" */
    const char *guilty;  /* "Qcur of layer 3 (and 2 more)", or "none" */
    const char *worst;   /* element, expected, got, bound, bytes */
    const char *tokens;  /* do tokens change */
    const char *command; /* reproduces this report */
    const char *scope;   /* what the verdict covers */

    const char *model_path, *model_sha256, *ref_path, *cand_path, *prompt;
    const int32_t *ids;
    int n_ids, n_prompt; /* n_ids - n_prompt teacher-forced decode steps */
    const struct par_report_op *ops;
    int n_ops;
    const struct par_report_logits *logits;
    int n_logits;
    const struct par_report_arm *arms;
    int n_arms;
    const struct par_report_case *cases;
    int n_cases;
    const struct par_report_impact *impact; /* together first, then by kind, then alone */
    int n_impact;
    const struct par_report_hypothesis *hypotheses;
    int n_hypotheses;
    const struct par_report_contract *contracts;
    int n_contracts;
    const struct par_report_coverage *coverage;
    int n_coverage;
    const struct par_report_cells *cells; /* the coverage matrix */
    int n_cells;
    const struct par_report_pair *config; /* "n_layer": "engine 28, harness 28" ... */
    int n_config;
    const struct par_report_pair *variants; /* "matmul_q Q4_K": "avx512 (fastest of ...)" */
    int n_variants;
    const struct par_report_pair *weights; /* as bound: "blk.0.attn_q.weight": "Q4_K 1536 x 1536, rows16, 0f3a..." */
    int n_weights;
    const struct par_report_proof *proofs; /* "neutral": "logits 0x.. with taps, 0x.. without: same" ... */
    int n_proofs;
    const struct par_report_pair *receipt; /* build, host, cpu, threads, seconds per part, peak RSS, date */
    int n_receipt;
    const struct par_report_figure *figures;
    int n_figures;
    struct par_text *text;
};

/* What every writer prints and what the program's exit code comes from: r->verdict, except that HELD without a single
 * judged element on the candidate's side is UNMEASURED. */
enum par_verdict par_report_shown(const struct par_report *r);

/* An arena for the report's strings and arrays; everything is freed at once. */
struct par_text;
struct par_text *par_text_create(void);
void par_text_free(struct par_text *t);
void *par_text_alloc(struct par_text *t, size_t n_bytes); /* zeroed; NULL: no memory */
/* printf into the arena; "" when memory is out. */
const char *par_text_printf(struct par_text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

enum par_report_detail { PAR_DETAIL_BRIEF, PAR_DETAIL_NORMAL, PAR_DETAIL_FULL };
/* The text of `parity run`: the first page (BRIEF stops here), logits, error against depth, ops, arms, hypotheses,
 * contracts, coverage, configuration, proofs, receipt. NORMAL shows the guilty ops and one line per kind of op, FULL
 * every op and position. At most 110 columns, except commands, which stay on one line. */
void par_report_text(const struct par_report *r, enum par_report_detail detail, FILE *out);
/* Allocated (fwd_free), NUL-terminated; NULL when memory is out. */
char *par_report_json(const struct par_report *r);
char *par_report_verdict_json(const struct par_report *r); /* the small one: verdict, exit, guilty, coverage, hashes */
char *par_report_junit(const struct par_report *r);
char *par_report_junit_contracts(const struct par_report *r); /* the contracts alone, of any number of runs */
char *par_report_markdown(const struct par_report *r);
/* The folder and its parents, where they are missing. */
enum fwd_status par_report_make_folder(const char *dir, struct fwd_error *err);
/* Writes report.txt, report.json, verdict.json, junit.xml, report.md into dir (made if missing), each whole or not. */
enum fwd_status par_report_write(const struct par_report *r, const char *dir, struct fwd_error *err);

#endif
