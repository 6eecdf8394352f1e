/* harness/fault/fault.h: bugs planted on purpose, each one a real bug somebody shipped (design: museum.md).
 * A fault is an override of one op of one path, or a change of the configuration that all paths share. */
#ifndef HARNESS_FAULT_FAULT_H
#define HARNESS_FAULT_FAULT_H

#include "engine.h"
#include "spec/judge.h"

struct par_fault;

struct par_fault_row {
    const char *name;       /* "q4k-min-dropped" */
    const char *hypothesis; /* that must come out SUPPORTED */
    const char *summary;    /* one line with the museum's reference */
    bool shared;            /* planted in what all paths share, not in one path */
    enum fwd_op op;         /* where it goes unless told otherwise; FWD_OP_COUNT: not an op (shared) */
    uint32_t weight_type;   /* the op's weight must be of this type; UINT32_MAX: any */
    fwd_override_fn *plant; /* NULL for shared faults; ud is the struct par_fault */
    fwd_config_hook *hook;  /* NULL for others */
};
/* Row i of the catalogue; NULL past the end. */
const struct par_fault_row *par_fault_row(int i);

/* One fault, placed. */
struct par_fault {
    const struct par_fault_row *row;
    enum fwd_op op;
    int layer;    /* -1: the first layer where it can act (or an op outside layers) */
    int n_prompt; /* for faults that act after the prompt */
};

/* "NAME[@op[:layer]]". */
enum fwd_status par_fault_parse(const char *text, struct par_fault *out, struct fwd_error *err);
/* Chooses the layer, and refuses a place where the fault cannot act (weight type, head form, geometry). */
enum fwd_status par_fault_place(struct par_fault *f, const struct fwd_gguf *file, const struct par_spec_config *config,
                                const struct fwd_knobs *knobs, struct fwd_error *err);
/* Installs the override; shared faults need none (they are a config hook at open). */
enum fwd_status par_fault_plant(struct par_fault *f, const struct fwd_path *path, struct fwd_session *session,
                                struct fwd_error *err);

#endif
