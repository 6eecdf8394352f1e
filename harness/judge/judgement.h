/* harness/judge/judgement.h: a capture of anyone's engine held against the spec: every op that it shows is judged from
 * the inputs that it shows, by the numerics that are declared for that engine.
 *
 * A tap of a foreign capture is first asked whether it is what its name says: where its values fit another meaning
 * (tap/tap_names.h), and what reads them agrees, the tap is MISTRUSTED, the op is not accused, and what follows is
 * judged from the values put right. What a person asserts is believed and recorded, and caps the verdict. */
#ifndef HARNESS_JUDGE_JUDGEMENT_H
#define HARNESS_JUDGE_JUDGEMENT_H

#include "spec/judge.h"
#include "tap/import.h"

#include <stdio.h>

#define PAR_JUDGEMENT_SCHEMA "parity-judgement-v1"

struct par_judge_capture {
    const struct fwd_gguf *file;
    const char *model_path, *model_sha256;
    const char *capture_path;
    const struct par_import *capture;
    par_numerics_fn *numerics;
    void *numerics_ud;
    const char *numerics_name; /* for the record */
    bool numerics_recorded;    /* they are the ones under which the capture says it was made */
    int n_threads;
    unsigned caps; /* as in struct par_eval */
    enum par_bound_mode bound;
    const char *command;                                                       /* repeats it, or NULL */
    void (*progress)(void *ud, const char *what, int64_t done, int64_t total); /* or NULL; done < 0: over */
    void *progress_ud;
};

struct par_judged_op {
    struct par_op_row row;
    const char *where, *bytes, *why;             /* of an accused op; NULL */
    const char *signature, *hypothesis, *museum; /* of its diagnosis; NULL: none */
};
struct par_misnamed { /* a tap that is not what its name says */
    enum fwd_op op;
    int layer; /* where it was found */
    enum par_tap_form form;
    bool asserted; /* a person said so */
    const char *text;
};
struct par_judgement {
    enum par_verdict verdict;
    const char *why;   /* one line */
    const char *cap;   /* what the verdict leans on that nobody recorded; NULL: nothing */
    const char *scope; /* what it covers */
    const char *kind, *capture_path, *model_path, *model_sha256, *numerics, *command;
    struct par_judged_op *ops; /* forward order; absent ones left out */
    int n_ops;
    int n_judged, n_accused, n_unmeasured; /* of n_ops */
    int first, worst;                      /* indices of accused ops; -1 */
    struct par_misnamed *misnamed;
    int n_misnamed;
    size_t n_tensors, n_unknown; /* tensors; those whose name or type stands for nothing that is judged */
    const char *unknown;         /* the first of these names, or NULL */
    int n_ids, n_positions;
    uint64_t n_elements, n_systematic;
    double seconds;
    struct par_text *text; /* owns all of it */
};
/* *out zeroed by the caller, freed by par_judgement_free whatever the result. An error: nothing can be said (another
 * model, no ids, shapes that are not the model's). */
enum fwd_status par_judge_capture(const struct par_judge_capture *options, struct par_judgement *out,
                                  struct fwd_error *err);
void par_judgement_free(struct par_judgement *j);

/* judgement_text.c */
void par_judgement_text(const struct par_judgement *j, bool all, FILE *out);
char *par_judgement_json(const struct par_judgement *j); /* allocated (fwd_free); NULL: no memory */
/* judgement.txt, judgement.json and, last, verdict.json into dir (made if missing), each whole or not. */
enum fwd_status par_judgement_write(const struct par_judgement *j, const char *dir, struct fwd_error *err);

#endif
