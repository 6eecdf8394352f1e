/* harness/run/selftest.h: how good the instrument is, measured: every fault of the catalogue planted at several places,
 * and clean runs over many prompts, schedules, threads and kernels. What came out is plain data; the figures that the
 * design asks for are computed from it and say whether they were reached. */
#ifndef HARNESS_RUN_SELFTEST_H
#define HARNESS_RUN_SELFTEST_H

#include "fault/fault.h"
#include "run/probe.h"
#include "run/run_state.h"
#include "run/selftest_weight.h"

struct par_selftest_options {
    const struct fwd_gguf *file;
    const struct fwd_path *ref, *cand;
    struct fwd_knobs knobs; /* n_threads, caps, force and kv_type count */
    const int32_t *ids;     /* that the probes run; used again from the start where a probe is longer */
    int n_ids;
    struct fwd_tokenizer *tokenizer; /* for the prompts of the clean runs; NULL: ids alone are run */
    const char *faults;              /* glob over fault names, or NULL: all; "": none */
    int n_seeds;                     /* places a fault */
    int n_prompts;                   /* of the clean runs; 0: none are made */
    int reach;                       /* layers above the planted one whose ops are judged; -1: all */
    int n_weights;                   /* trials of one 4-bit weight off by one */
    uint64_t clean_elements;         /* judged in clean runs, at least */
    bool quick;                      /* faults in the candidate alone, clean runs on this machine's own kernels alone */
    void (*progress)(void *ud, const char *what, int64_t done, int64_t total);
    void *progress_ud;
};

enum par_selftest_state {
    PAR_SELFTEST_NOT_HERE,  /* the model, the path or the schedule has nothing that the fault can break: `why` */
    PAR_SELFTEST_NO_EFFECT, /* planted, and no bit of any tap or logit changed */
    PAR_SELFTEST_CHANGED
};

/* A fault at one place. */
struct par_selftest_record {
    const struct par_fault_row *row;
    struct par_fault fault; /* placed */
    char place[160];        /* as par_fault_parse takes it */
    enum par_selftest_state state;
    char why[240];
    double moved; /* largest element moved, in bounds, by running both kernels on the same inputs. Of a fault without
                   * a planted op (a hook): the first op with other bits, by its own residue ratio. -1: not known */
    double ratio_max; /* largest residue ratio of all op rows */
    bool detected;
    const char *by; /* "op", "nonfinite", "repeat", "config": what gave it away; "" */
    int n_accused;  /* op rows, both sides */
    /* What the first page of a run would name: the first accused op in forward order, of the candidate if it has one.
     */
    bool named;
    enum fwd_op op;
    int layer;
    bool op_right, layer_right;
    int sub_op;    /* head, row, block and position of the place as found: 1 yes, 0 no, -1 the fault is everywhere */
    int diagnosis; /* 1 the row's signature, or unexplained where it has none; 0 another answer; -1 not asked */
    char diagnosed[64], diagnosis_text[240], pattern_text[320];
    const char *side; /* as par_fault_side, "" when nothing is named */
    bool side_right;
    /* Tap tensors refused by the gates of other tools, beside the clean run of the same path, and beside the other path
     * (those that a clean run refuses too are left out). */
    int beside_clean[PAR_GATE_COUNT], beside_other[PAR_GATE_COUNT];
    double seconds;
};

struct par_selftest_alarm {
    char where[160]; /* "ffn_out of layer 3, q4k-cpu, step, 3 threads, avx2, prompt unicode: 1.7 bounds" */
};
enum { PAR_SELFTEST_ALARMS = 32 };
struct par_selftest_clean {
    int n_passes, n_prompts, n_variants; /* n_variants: combinations of path, kernels, threads and types */
    uint64_t n_elements, n_systematic;
    int n_accused, n_mistrusted; /* op rows */
    int n_other;                 /* configurations that differ, repeats with other bits */
    double ratio_max[PAR_CLASS_COUNT];
    uint64_t judged[PAR_CLASS_COUNT];
    struct par_selftest_alarm alarms[PAR_SELFTEST_ALARMS]; /* the first of them */
    int n_alarms;
    /* Of the passes behind the probes: tensors of the clean candidate that the gates refuse beside the reference. */
    int gate_alarms[PAR_GATE_COUNT];
    int n_tensors;
};

struct par_selftest_figure {
    const char *name, *text;
    double value, at_least; /* a share, or a count where at_least is 0 (then at most 0) */
    uint64_t n, of;
    bool measured, gated, reached;
};
enum { PAR_SELFTEST_FIGURES = 24 };

struct par_selftest {
    struct par_selftest_record *records;
    int n_records;
    struct par_selftest_clean clean;
    struct par_weight_trials weights; /* tried == 0: not asked, or no 4-bit matrix */
    struct par_selftest_figure figures[PAR_SELFTEST_FIGURES];
    int n_figures;
    uint64_t clean_asked;
    double seconds_faults, seconds_clean;
};
/* Fills *out (zeroed by the caller, par_selftest_free). */
enum fwd_status par_selftest_run(const struct par_selftest_options *options, struct par_selftest *out,
                                 struct fwd_error *err);
void par_selftest_free(struct par_selftest *s);

/* selftest_clean.c */
enum fwd_status par_selftest_clean_runs(const struct par_selftest_options *options, const struct par_spec_model *spec,
                                        struct fwd_pool *pool, struct par_selftest_clean *out, struct fwd_error *err);
/* selftest_figures.c */
void par_selftest_figures(struct par_selftest *s);
/* 0: every gated figure that was measured is reached; 1: one is not; 3: nothing was measured. */
int par_selftest_exit(const struct par_selftest *s);
/* selftest_report.c */
struct par_selftest_receipt {
    const char *model, *sha256, *command;
};
void par_selftest_text(const struct par_selftest *s, const struct par_selftest_receipt *receipt, FILE *out);
/* Allocated (fwd_free); NULL: no memory. */
char *par_selftest_json(const struct par_selftest *s, const struct par_selftest_receipt *receipt);

#endif
