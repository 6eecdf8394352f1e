/* harness/tap/capture.h: the taps of one sequence in a file.
 *
 * A capture is a safetensors file cut into zstd frames in the seekable layout (seekable.h): frame 0 is the safetensors
 * header, frame i is the bytes of tensor i-1, the seek table comes last. `zstd -d` of it is a safetensors file that any
 * reader opens; ours seeks to one tensor. The reader takes a plain safetensors file too.
 *
 * A safetensors header comes first and holds every offset, while taps stream: so the writer appends each tensor's
 * compressed frame to an unnamed spool file beside the target, keeps only names, shapes and sizes in memory, and at the
 * commit writes header frame, copied frames and table to a temporary name that is fsynced and renamed. Memory stays at
 * about 200 bytes a tensor; disk is needed twice, once for the spool, until the commit ends.
 *
 * Tensors are named tap-layer@p0:p1 ("Qcur-3@0:78"; "result_norm@77:78" outside layers), in order of arrival. F32, F64,
 * F16 and I32 keep their type, quantised rows are U8 [rows, bytes of a row]. The first dimension is positions; K_cache
 * and V_cache hold all rows from position 0 on.
 *
 * Facts (safetensors' __metadata__, string to string): schema and writer come from here; "tap:NAME" says what a tap
 * holds ("op=Qcur dtype=F32 ne0=1536"), "tap:NAME-LAYER" where one layer differs; the caller puts the rest, by the
 * names below. */
#ifndef HARNESS_TAP_CAPTURE_H
#define HARNESS_TAP_CAPTURE_H

#include "engine.h"

#define PAR_CAPTURE_SCHEMA "parity-capture-v1"

/* Names of facts. The first three decide whether two captures may be compared. */
#define PAR_FACT_SCHEMA "schema"
#define PAR_FACT_MODEL "model_sha256"
#define PAR_FACT_IDS "token_ids"            /* "9707,11,..." */
#define PAR_FACT_N_PROMPT "n_prompt"        /* the other ids are teacher-forced decode steps */
#define PAR_FACT_POSITIONS "positions"      /* "0:94" */
#define PAR_FACT_MODEL_PATH "model_path"    /* file name only */
#define PAR_FACT_PATH "path"                /* "q4k-cpu" */
#define PAR_FACT_KNOBS "knobs"              /* "kv=F16 head=quant threads=2 ..." */
#define PAR_FACT_SCHEDULE "schedule"        /* "prefill" */
#define PAR_FACT_CHUNK "chunk"              /* "0": the prompt in one call */
#define PAR_FACT_VARIANTS "variants"        /* "matmul_q Q4_K avx512 (why); ..." */
#define PAR_FACT_FUSION "fusion_groups"     /* "none" */
#define PAR_FACT_NUMERICS "numerics_hash"   /* of every op's declared numerics */
#define PAR_FACT_FP "fp_environment"        /* rounding direction, flush to zero */
#define PAR_FACT_TOKENIZER "tokenizer_hash" /* of the vocabulary in order of ids, or "none" */
#define PAR_FACT_WEIGHTS "weights_hash"     /* of every weight as the kernels read it */
#define PAR_FACT_HOST "host"
#define PAR_FACT_BUILD "build"
#define PAR_FACT_LOGITS "logits_hash" /* with taps on */
#define PAR_FACT_AA "aa_hash"         /* the same run again, taps off */
#define PAR_FACT_ASSERTED "asserted"  /* facts that a person vouches for */

/* ---- writing ----------------------------------------------------------------------------------------------------- */
struct par_capture_options {
    const char *const *filters;  /* POSIX extended regular expressions on "tap-layer"; kept when one matches */
    int n_filters;               /* 0: every tap */
    int layer_first, layer_last; /* of taps inside layers, both included; layer_last < 0: all */
};
struct par_capture_writer;
enum fwd_status par_capture_create(struct par_capture_writer **out, const char *path,
                                   const struct par_capture_options *options, struct fwd_error *err);
/* Adds or replaces a fact, any time before the commit. Bytes that are not UTF-8 become "\xNN". */
enum fwd_status par_capture_put(struct par_capture_writer *w, const char *key, const char *value,
                                struct fwd_error *err);
enum fwd_status par_capture_put_ids(struct par_capture_writer *w, const int32_t *ids, int n_ids, struct fwd_error *err);
/* A fwd_tap_fn; ud is the writer. A failure is kept, ends the run (FWD_ESTOPPED) and is returned by the commit. */
int par_capture_tap(void *ud, const struct fwd_view *view);
/* FWD_OK, or the failure that a tap call kept. */
enum fwd_status par_capture_failure(const struct par_capture_writer *w, struct fwd_error *err);
size_t par_capture_n_written(const struct par_capture_writer *w); /* tensors so far */
/* Frees w whatever the result; on failure nothing is left behind. */
enum fwd_status par_capture_commit(struct par_capture_writer *w, struct fwd_error *err);
void par_capture_abort(struct par_capture_writer *w); /* NULL is fine */

/* ---- reading ----------------------------------------------------------------------------------------------------- */
struct par_capture_tensor {
    const char *name;
    const char *dtype; /* safetensors' name */
    int n_dims;
    int64_t shape[4];
    int64_t n_values; /* product of shape */
    uint64_t n_bytes;
    bool is_tap; /* the name reads as tap-layer@p0:p1, and then: */
    enum fwd_op op;
    int layer; /* -1 outside layers */
    int pos0, pos1;
};
struct par_capture;
/* Maps the file and checks everything but the tensors' own bytes. */
enum fwd_status par_capture_open(struct par_capture **out, const char *path, struct fwd_error *err);
/* The same from memory, which must outlive it. name: used in messages. */
enum fwd_status par_capture_open_bytes(struct par_capture **out, const uint8_t *data, size_t n_bytes, const char *name,
                                       struct fwd_error *err);
/* The same container with another schema than a capture's (localise/case.h); it must be what the file says. */
enum fwd_status par_container_open_bytes(struct par_capture **out, const uint8_t *data, size_t n_bytes,
                                         const char *name, const char *schema, struct fwd_error *err);
enum fwd_status par_container_open(struct par_capture **out, const char *path, const char *schema,
                                   struct fwd_error *err);
void par_capture_close(struct par_capture *c);
const char *par_capture_name(const struct par_capture *c);
const char *par_capture_fact(const struct par_capture *c, const char *key); /* NULL: not said */
/* Fact i; false past the end. */
bool par_capture_fact_at(const struct par_capture *c, size_t i, const char **key, const char **value);
/* In order of arrival. */
const struct par_capture_tensor *par_capture_tensors(const struct par_capture *c, size_t *n);
const struct par_capture_tensor *par_capture_find(const struct par_capture *c, const char *name); /* NULL: none */
/* t->n_bytes bytes into out, checksum verified (in a plain safetensors file there is none). */
enum fwd_status par_capture_read(const struct par_capture *c, const struct par_capture_tensor *t, void *out,
                                 struct fwd_error *err);

/* "Qcur-3@0:78"; returns the length without "@0:78". */
int par_capture_tensor_name(enum fwd_op op, int layer, int pos0, int pos1, char *buf, size_t n);
/* What the floating-point unit of this thread does, as text: "round=nearest ftz=0 daz=0". */
const char *par_fp_environment(char *buf, size_t n);

#endif
