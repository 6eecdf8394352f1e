/* harness/localise/case.h: a failure cut out of its model: one op, what it read, the weights that matter, what it
 * should have said and what it said. Small, self-contained, and run again by `parity replay`.
 *
 * A case carries a model of its own, reduced to the layer of the accused op (and its neighbours where the failure needs
 * them): a GGUF directory with the keys and shapes of the original, and those weight rows that matter; every other byte
 * of that model is zero. What the op does not touch is made small: few token ids, a narrow feed-forward block beside an
 * attention op. A replay opens the path on that model, drives the recorded positions by the recorded schedule, writes
 * the recorded rows over the op's input taps, and judges the op's output with the same judge, declaration and bounds as
 * a run (replay.h).
 *
 * File: the container of tap/capture.h with schema "parity-case-v1". Tensors: "gguf" (the directory), "rows:NAME" and
 * "bytes:NAME" of every weight kept, "inK:pos" and "inK:bytes" of every input, "ids" and "want" of the sequence,
 * "elements" (position, row), and "values" (expected, got, bound). Everything else is a fact (case_file.c). */
#ifndef HARNESS_LOCALISE_CASE_H
#define HARNESS_LOCALISE_CASE_H

#include "engine.h"
#include "fault/fault.h"
#include "run/drive.h"
#include "spec/evidence.h"
#include "spec/judge.h"

#define PAR_CASE_SCHEMA "parity-case-v1"
enum {
    PAR_CASE_INPUTS = 3,
    PAR_CASE_LAYERS = 4,              /* most layers of its model */
    PAR_CASE_ELEMENTS = 16,           /* most recorded elements */
    PAR_CASE_MATMUL_BYTES = 64 << 10, /* what a matmul's file must stay under */
    PAR_CASE_POSITIONS = 1 << 20      /* longest sequence */
};

/* Some rows of one tensor of the case's model, in file layout. */
struct par_case_weight {
    char name[64];
    int64_t row_bytes;
    int n;
    int64_t *rows;  /* [n] ascending */
    uint8_t *bytes; /* [n][row_bytes] */
};
/* Some rows of one input, in the order of engine's enum fwd_op; of kqv_out in 1 and 2 the keys and values as attention
 * read them, of a cache the rows that were stored. */
struct par_case_input {
    enum fwd_op op; /* the tap that gets them */
    enum fwd_dtype dtype;
    int64_t n_values; /* in a row; of keys and values: all heads */
    int n;
    int32_t *pos;   /* [n] ascending */
    uint8_t *bytes; /* [n][fwd_dtype_row_bytes(dtype, n_values)] */
};
struct par_case_element {
    int pos;
    int64_t row; /* as in struct par_worst */
    double expected, got, bound;
};

struct par_case {
    enum fwd_op op;
    int layer;        /* in the case's model, -1 outside layers */
    int model_layer;  /* in the model it was cut from */
    int pos_from;     /* what was position pos_from of the run is position 0 here */
    int64_t row_from; /* the same for rows of the head or ids of the embedding */
    char model_name[96];
    char path[32];
    enum par_schedule schedule;
    int chunk;
    enum fwd_dtype kv_type;
    enum fwd_head head;
    enum par_bound_mode bound;
    enum par_fault_role role; /* whose session it was */
    int n_threads;
    char act[64], caps[32], force[256]; /* "": none given */
    char faults[512];                   /* planted on purpose, as --fault takes them, layers as in the case's model */
    char note[200];
    struct fwd_numerics numerics; /* as the path declared them */

    uint8_t *gguf; /* [n_gguf] the model's directory */
    size_t n_gguf;
    uint64_t n_image; /* bytes of the whole model */
    struct par_case_weight *weights;
    int n_weights;
    struct par_case_input in[PAR_CASE_INPUTS];
    int n_in;
    int32_t *ids;  /* [n_ids] of the sequence, zero unless the op reads them */
    uint8_t *want; /* [n_ids] positions whose logits are wanted */
    int n_ids, n_prompt;
    int call_end; /* a cache: it was wrong after the call that ended before this position; else 0 */
    struct par_case_element elements[PAR_CASE_ELEMENTS]; /* the accused ones */
    int n_elements;
};

/* ---- the file -------------------------------------------------------------------------------------------------- */
enum fwd_status par_case_write(const struct par_case *c, const char *path, uint64_t *n_bytes, struct fwd_error *err);
/* Everything is checked before it is used: shapes against the directory, positions, names, the declaration. The error
 * says what is wrong. */
enum fwd_status par_case_read(struct par_case *out, const char *path, struct fwd_error *err);
enum fwd_status par_case_read_bytes(struct par_case *out, const uint8_t *data, size_t n_bytes, const char *name,
                                    struct fwd_error *err);
void par_case_free(struct par_case *c);
enum fwd_status par_case_copy(struct par_case *to, const struct par_case *from, struct fwd_error *err);

/* ---- its model ------------------------------------------------------------------------------------------------- */
/* The case's model in memory, and the harness's reading of it. */
struct par_case_model {
    uint8_t *image;
    size_t n_image;
    struct fwd_gguf *file;
    struct par_spec_model *spec;
};
enum fwd_status par_case_model_open(struct par_case_model *out, const struct par_case *c, struct fwd_error *err);
void par_case_model_close(struct par_case_model *m);

/* ---- making one ------------------------------------------------------------------------------------------------ */
/* Is the file at `path` red, and for the recorded reason, when a fresh process replays it? FWD_OK: yes; else err says
 * what it showed instead. */
typedef enum fwd_status par_case_verify_fn(void *ud, const char *path, struct fwd_error *err);

/* The run that accused the op. */
struct par_case_context {
    const struct fwd_gguf *file;
    const struct par_spec_model *spec; /* of file */
    struct fwd_pool *pool;
    const char *model_name;      /* as the user typed it */
    const struct fwd_path *path; /* whose op it is */
    enum par_fault_role role;    /* in which its session was opened: which faults were planted in it */
    enum par_bound_mode bound;
    const struct fwd_knobs *knobs;
    enum par_schedule schedule;
    int chunk;
    const int32_t *ids; /* [n_ids] */
    int n_prompt, n_ids;
    const uint8_t *want; /* [n_ids] positions whose logits were wanted; NULL: all */
    const struct par_fault *faults;
    int n_faults;
    par_case_verify_fn *verify; /* NULL: the file is only replayed here, and info->verified stays false */
    void *verify_ud;
    int max_probes;     /* of the shrinking; 0: a default */
    double max_seconds; /* the same */
};
struct par_case_info {
    bool written;
    bool verified; /* red for the same reason in a fresh process */
    uint64_t n_bytes;
    int n_rows;      /* weight rows kept */
    int n_blocks;    /* blocks of 32 or 256 columns that are not zero */
    int n_positions; /* input rows kept */
    int n_probes;    /* replays while shrinking */
    struct par_case_element element;
    char note[200]; /* why it was not written, or what is unusual about it; else "" */
};
/* Cuts the accused op out, shows that it fails alone, shrinks it under the run's own arbiter, writes out_path, and has
 * it verified before it gets that name. A failure that does not come back alone is no error: info->written is false and
 * info->note says why. */
enum fwd_status par_case_make(const struct par_case_context *context, const struct par_evidence *item,
                              const char *out_path, struct par_case_info *info, struct fwd_error *err);

#endif
