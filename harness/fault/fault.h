/* harness/fault/fault.h: bugs planted on purpose, nearly all of them real bugs somebody shipped (design: museum.md).
 *
 * A fault is an override of one op of one path, a launch of a path's plan that goes wrong, or a change of the
 * configuration, the binding or the ids that all paths share. Its broken arithmetic is its own: nothing here shares
 * code with the spec, with a signature or with a kernel, so that neither can agree with a fault by sharing its mistake.
 * What is right comes from the op's own builtin; a fault adds the difference between the broken and the true value,
 * worked out in F64 from the op's inputs and weight bytes.
 *
 * A fault as text: [ref:]NAME[@op[:layer]][+head=N][+row=N][+block=N][+pos=N][+seed=N]. Row and block are those of the
 * weight: output row and block of its type along K. What is not said, par_fault_place chooses. */
#ifndef HARNESS_FAULT_FAULT_H
#define HARNESS_FAULT_FAULT_H

#include "engine.h"
#include "spec/judge.h"

struct par_fault;

/* What kind of trace a fault leaves, and so what can see it. */
enum par_fault_change {
    PAR_CHANGE_VALUE,     /* the same wrong values in every run */
    PAR_CHANGE_NONFINITE, /* NaN or infinity where there is none */
    PAR_CHANGE_STATE,     /* wrong only after another sequence went before: a repeat A-B-A shows it */
    PAR_CHANGE_RACE,      /* other values at every repeat */
    PAR_CHANGE_TAP        /* the tap shows what the op did not compute; what follows is right */
};

/* What a model, a path or a schedule must have for the fault to act. */
enum par_fault_need {
    PAR_NEED_BIAS = 1 << 0,
    PAR_NEED_GQA = 1 << 1,         /* several KV heads, each read by several query heads */
    PAR_NEED_KV_HEADS = 1 << 2,    /* several KV heads */
    PAR_NEED_OTHER_LAYER = 1 << 3, /* another layer whose tensor has the same shape (and type, where shared) */
    PAR_NEED_HEAD_F32 = 1 << 4,    /* --head f32 */
    PAR_NEED_BLOCKS = 1 << 5,      /* at least two blocks along K */
    PAR_NEED_FACTORS = 1 << 6,     /* rope factors */
    PAR_NEED_UNTIED = 1 << 7,      /* a head of its own, of the embedding's type */
    PAR_NEED_CANDIDATE = 1 << 8,   /* a path with a cache or quantised activations: not for ref: */
    PAR_NEED_BELOW = 1 << 9,       /* layer 1 or higher */
    PAR_NEED_LONG = 1 << 10,       /* positions from 64 on */
    PAR_NEED_FEW = 1 << 11,        /* a schedule with calls of 2 to 8 positions (--chunk 5) */
    PAR_NEED_TWIN = 1 << 12,       /* K and V, gate and up, or the two norms, of one shape (and type, where shared) */
    PAR_NEED_THREADS = 1 << 13,    /* several threads */
    PAR_NEED_LUCK = 1 << 14,       /* acts only on values that data rarely has (ties): may change nothing */
    PAR_NEED_PLAN = 1 << 15        /* a path whose step is a launch plan */
};

/* Which parts of the place mean something to a fault. */
enum par_fault_pick { PAR_PICK_HEAD = 1, PAR_PICK_ROW = 2, PAR_PICK_BLOCK = 4, PAR_PICK_POS = 8 };

/* On which calls and positions a fault acts, besides its own pos. */
enum par_fault_when {
    PAR_WHEN_ALWAYS,
    PAR_WHEN_ONE,      /* calls of one position (decode) */
    PAR_WHEN_FEW,      /* calls of 2 to 8 positions */
    PAR_WHEN_TAIL,     /* of a call of several positions the last n % 4, or the last one where that is 0 */
    PAR_WHEN_LONG,     /* positions from 64 on */
    PAR_WHEN_LATER,    /* positions after the prompt */
    PAR_WHEN_SOMETIMES /* about every second call, which ones changes from run to run */
};

struct par_fault_row {
    const char *name;       /* "q4k-min-dropped" */
    const char *hypothesis; /* H1 .. H5, museum.md's class: what must come out SUPPORTED */
    const char *summary;    /* what is wrong, exactly, in one line */
    const char *museum;     /* the bug it re-enacts: "candle 3410, llama2.c PR 286" */
    const char *signature;  /* the diagnosis that explains it; NULL: none does, on purpose */
    enum par_fault_change change;
    uint32_t ops;          /* bit per enum fwd_op where it can be planted; 0: in no single op */
    enum fwd_op op;        /* the one taken when none is named; of a shared fault the first that goes wrong */
    uint32_t weight_types; /* bit per ggml type id that the op's weight must have; 0: any */
    uint32_t needs;        /* enum par_fault_need */
    uint32_t picks;        /* enum par_fault_pick */
    enum par_fault_when when;
    int kind;                      /* which of the faults that its function knows (fault_ops.h) */
    fwd_override_fn *plant;        /* ud is the struct par_fault; NULL where a hook does it */
    fwd_config_hook *hook;         /* shared: the configuration of every path */
    fwd_model_hook *model_hook;    /* shared: the binding of every path */
    bool shared;                   /* in what all paths use; a `plant` then goes into every path */
    enum fwd_plan_fault_kind plan; /* 0: none; else what happens to the launch, in the candidate alone */
};
/* Row i of the catalogue; NULL past the end. */
const struct par_fault_row *par_fault_row(int i);

enum par_fault_role { PAR_ROLE_CANDIDATE, PAR_ROLE_REFERENCE };

/* One fault, placed. Filled by parse and place; n_prompt by the caller before place (0: not known). */
struct par_fault {
    const struct par_fault_row *row;
    bool in_reference; /* "ref:": planted in the reference alone */
    enum fwd_op op;    /* FWD_OP_COUNT: not chosen yet */
    int layer;         /* -1: not chosen yet, or an op outside layers */
    int head, pos;     /* -1: every one, or not chosen yet */
    int64_t out_row, block;
    uint64_t seed;
    int n_prompt;
    const struct fwd_path *path;     /* the candidate, by the caller before place; NULL: one without a launch plan */
    const struct fwd_gguf *file;     /* for faults that read another tensor */
    struct par_fault_memory *memory; /* what it remembers between calls; made by place, shared by copies */
};

enum fwd_status par_fault_parse(const char *text, struct par_fault *out, struct fwd_error *err);
/* Chooses what the text left open from the seed (seed 0: the row's own op in the first layer where it can act), and
 * refuses with FWD_EINPUT a place where the fault cannot act in this model and with these knobs; FWD_ERANGE for a
 * layer, head, row or block that does not exist. */
enum fwd_status par_fault_place(struct par_fault *f, const struct fwd_gguf *file, const struct par_spec_config *config,
                                const struct fwd_knobs *knobs, struct fwd_error *err);
/* Is it planted in sessions of that role? Shared ones are in all. */
bool par_fault_in(const struct par_fault *f, enum par_fault_role role);
/* Installs the overrides in a session of a role for which par_fault_in holds. Nothing to do where a hook does it. */
enum fwd_status par_fault_plant(struct par_fault *f, const struct fwd_path *path, struct fwd_session *session,
                                struct fwd_error *err);
/* Calls the hook of a shared fault; nothing for others. For a caller's own config_hook and model_hook. */
void par_fault_hook_config(struct par_fault *f, struct fwd_config *config);
void par_fault_hook_model(struct par_fault *f, struct fwd_model *model);
/* For a caller's own plan_hook: true and *out where the fault is in the launch plan. */
bool par_fault_hook_plan(const struct par_fault *f, struct fwd_plan_fault *out);
/* The placed fault as text that par_fault_parse takes; returns buf. */
const char *par_fault_describe(const struct par_fault *f, char *buf, size_t n);
/* Which side is wrong, as reports spell it: "candidate", "reference", "both". */
const char *par_fault_side(const struct par_fault *f);
/* As if its op had never run: what it remembers between calls is gone. */
void par_fault_forget(struct par_fault *f);
/* Frees what par_fault_place made. Copies of a struct share it: call it for one of them. */
void par_fault_free(struct par_fault *f);

#endif
