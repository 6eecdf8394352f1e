/* engine/engine.h: the one engine header a harness, or an engine outside this repository, includes.
 *
 * It holds the versioned path table: a *path* is one complete way to turn token ids into logits. Everything that
 * crosses the table is plain data with a size field, so that a shared object built elsewhere can be a path too.
 * Beside it come the infrastructure (status, memory, threads, files) and the byte parser; no arithmetic is shared. */
#ifndef ENGINE_ENGINE_H
#define ENGINE_ENGINE_H

#include "core/cpu.h"
#include "core/digest.h"
#include "core/file_out.h"
#include "core/hash.h"
#include "core/memory.h"
#include "core/status.h"
#include "core/threads.h"
#include "core/types.h"
#include "format/gguf.h"
#include "model/model.h"
#include "model/tokenizer.h"
#include "ops/variant_info.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FWD_PATH_ABI 1u

/* One op's value at positions pos0 .. pos0 + n_pos - 1 of one sequence. ne[0] values a row, ne[1] rows (n_pos, except
 * K_cache and V_cache: ne = {head_dim, n_kv_head, n_rows} with row r holding position r). nb[i]: bytes from one index
 * of dimension i to the next (nb[0]: of one value; for Q8 types nb[0] = 0 and a row is fwd_dtype_row_bytes long). Valid
 * until the callback returns; called on the run thread with the workers parked. */
struct fwd_view {
    uint32_t size; /* sizeof(struct fwd_view) */
    enum fwd_op op;
    int layer; /* -1 outside layers */
    int seq;
    int pos0, n_pos;
    enum fwd_dtype dtype;
    int64_t ne[4];
    int64_t nb[4];
    void *data;
    int device;   /* 0: host memory */
    void *stream; /* device stream, or NULL */
};

/* Return 0 to go on; anything else ends the run with FWD_ESTOPPED. Writing through view->data is allowed where the path
 * declares the tap FWD_TAP_WRITE: what follows then uses the written values. */
typedef int fwd_tap_fn(void *ud, const struct fwd_view *view);

/* Instead of a tap: the digest of what it would show, made where the value lies. view->data is NULL; caches have no
 * digest (their new rows are Kcur_rope's and Vcur's). Return as from a tap. */
typedef int fwd_digest_fn(void *ud, const struct fwd_view *view, const struct fwd_digest *digest);

enum fwd_tap_kind { FWD_TAP_ABSENT = 0, FWD_TAP_READ = 1, FWD_TAP_WRITE = 2 };

/* ---- overrides ---------------------------------------------------------------------------------------------------
 * Instead of an op's kernel the path calls the override. It fills out->data from the inputs, or calls builtin() (then
 * it may change the result). Interventions and planted faults are both overrides. */
struct fwd_op_call {
    uint32_t size;
    enum fwd_op op;
    int layer;
    int seq;
    int pos0, n_pos;
    int n_in;
    const struct fwd_view *in[4];
    struct fwd_view *out;
    const struct fwd_weight *weight; /* the matrix, norm vector or embedding; NULL if none */
    const float *bias;               /* [n_rows] or NULL */
    const struct fwd_config *config;
    struct fwd_pool *pool;
    enum fwd_status (*builtin)(const struct fwd_op_call *call, struct fwd_error *err);
    void *path_state; /* for builtin */
};
typedef enum fwd_status fwd_override_fn(void *ud, const struct fwd_op_call *call, struct fwd_error *err);

/* ---- the path table ---------------------------------------------------------------------------------------------- */
enum fwd_head { FWD_HEAD_QUANT = 0, FWD_HEAD_F32 = 1 };

/* One launch of a path's plan (the recorded step of one token), broken on purpose: the launch that computes `op` of
 * `layer` (-1 outside layers), whatever else it computes. */
enum fwd_plan_fault_kind {
    FWD_PLAN_SKIP = 1,       /* the node is missing: what it writes stays as it was */
    FWD_PLAN_SHORT_GRID = 2, /* one block fewer */
    FWD_PLAN_EARLY = 3       /* started before what it reads is written */
};
struct fwd_plan_fault {
    enum fwd_plan_fault_kind kind;
    enum fwd_op op;
    int layer;
};
/* Called once when a session with a plan opens (fwd_path_info.has_plan); true: *out is planted. A path that has no
 * launch of that op says so with FWD_EINPUT. */
typedef bool fwd_plan_hook(void *ud, struct fwd_plan_fault *out);

struct fwd_knobs {
    uint32_t size;
    int n_threads;          /* 0: one per core */
    int n_ctx;              /* positions a sequence may have */
    int n_seq;              /* sequence slots */
    int n_batch;            /* most tokens in one run call */
    enum fwd_dtype kv_type; /* FWD_F16 or FWD_F32 */
    enum fwd_head head;
    const char *act;   /* reference paths: NULL or "none", or "as:PATH": quantise and dequantise as that path does */
    const char *caps;  /* CPU levels: NULL = all that the machine has */
    const char *force; /* "op=variant[,op=variant...]" or NULL */
    fwd_config_hook *config_hook;
    void *config_hook_ud;
    fwd_model_hook *model_hook; /* after config_hook, when every weight is bound and none is repacked; or NULL */
    void *model_hook_ud;
    bool fp8_fast;            /* E4M3 products summed in the tensor cores' fast, narrow accumulator */
    bool no_overlap;          /* launches in plain stream order: none starts before the one before it has ended */
    bool scribble;            /* NaN over scratch and padding before each run, and where a path can, between ops */
    fwd_plan_hook *plan_hook; /* or NULL; paths without a plan never call it */
    void *plan_hook_ud;
    /* An open session whose weights, as bound, this one reads too instead of binding its own; it must be closed after
     * this one. Its path is one with the same fwd_path_info.shares, its file and hooks are the same. NULL: none. */
    const struct fwd_session *share;
};
/* A path refuses with FWD_EINPUT the last three flags where they mean nothing to it (struct fwd_path_info says where
 * they do). */

/* A variant that a session resolved, for reports: which kernel serves what. Several rows of one op are told apart by
 * the calls and shapes that they serve. */
struct fwd_variant_choice {
    const char *op;         /* "matmul_q", "attention", ... */
    const char *detail;     /* "Q4_K", ... or "" */
    const char *variant;    /* "ref", "avx2", "avx512", a kernel's name */
    const char *why;        /* "fastest of caps avx2+avx512", "forced" */
    int m_first, m_last;    /* calls of so many positions; m_last 0: no upper end, both 0: any */
    int64_t n_rows, n_cols; /* of the weight; 0: any */
};

/* A weight as the session really reads it (after repacking). */
struct fwd_bound_weight {
    const char *name;
    int layer;
    uint32_t type;
    int64_t n_rows, n_cols;
    const char *layout; /* "file", "rows16", ... */
    uint64_t checksum;  /* fwd_hash64 of the bytes, unpacked again to file layout from what the kernels read */
};

struct fwd_path_info {
    uint32_t size;
    const char *name;
    const char *summary;                  /* one line */
    bool uses_cache;                      /* false: every run call must start at position 0 */
    bool quantised;                       /* activations are quantised before matmuls */
    enum fwd_tap_kind taps[FWD_OP_COUNT]; /* with default knobs */
    bool on_device;          /* computes on an accelerator: CPU levels and thread counts do not reach its kernels */
    bool has_plan;           /* a step of one token is a launch plan: knobs.plan_hook means something */
    bool overlaps;           /* knobs.no_overlap means something */
    bool fp8;                /* knobs.fp8_fast means something */
    bool scribbles;          /* knobs.scribble means something */
    bool argmax;             /* fwd_run_args.argmax is served */
    bool digests;            /* fwd_run_args.digest is served */
    bool chunks_change_bits; /* another cut of the prompt into calls may round otherwise, as declared */
    const char *shares;      /* sessions of paths with the same text here can share weights (knobs.share), or NULL */
    /* Paths with the same text here promise the same bits with the same knobs, whatever the device: the name of the
     * first of them. NULL: only its own. */
    const char *same_bits_as;
};

/* Where a path computes when that is not the CPU. */
struct fwd_device_info {
    uint32_t size;
    char name[96];   /* "NVIDIA H200" */
    char driver[64]; /* versions of driver and runtime */
    int64_t memory_bytes;
    double read_gb_s; /* measured: the fastest that its memory can be read; 0: not asked for */
};

struct fwd_session;

/* logits: which of the n_tokens positions are wanted, and where they go. A path that serves argmax may be asked for it
 * alone (logits and logits_f64 NULL): 4 bytes a position leave the device. One that does not refuses with
 * FWD_EUNSUPPORTED. */
struct fwd_run_args {
    uint32_t size;
    int seq;
    const int32_t *tokens;
    int n_tokens;
    int pos0;                   /* of tokens[0]; the rows before it were run already in this sequence */
    const uint8_t *want_logits; /* [n_tokens] 0/1; NULL: only the last */
    float *logits;              /* [number wanted][n_vocab], in order; NULL with no wanted position */
    double *logits_f64;         /* the same in double from paths that have them, or NULL */
    fwd_tap_fn *tap;            /* or NULL */
    void *tap_ud;
    fwd_digest_fn *digest; /* or NULL; with a tap it is an error. Served where fwd_path_info.digests says so */
    void *digest_ud;
    int32_t *argmax; /* [number wanted] the lowest index among the largest logits, NaN never wins, -1: all NaN; or NULL
                      */
};

struct fwd_path {
    uint32_t abi;  /* FWD_PATH_ABI */
    uint32_t size; /* sizeof(struct fwd_path) */
    const char *name;
    /* FWD_OK, or FWD_EUNAVAILABLE with the reason. */
    enum fwd_status (*probe)(struct fwd_error *err);
    void (*describe)(struct fwd_path_info *out);
    /* `file` must outlive the session. */
    enum fwd_status (*open)(struct fwd_session **out, const struct fwd_gguf *file, const struct fwd_knobs *knobs,
                            struct fwd_error *err);
    /* Forgets sequence slot seq: its next run starts at position 0. */
    enum fwd_status (*seq_begin)(struct fwd_session *s, int seq, struct fwd_error *err);
    enum fwd_status (*run)(struct fwd_session *s, const struct fwd_run_args *args, struct fwd_error *err);
    /* fn == NULL removes. layer -1: every layer (or an op outside layers). */
    enum fwd_status (*override)(struct fwd_session *s, enum fwd_op op, int layer, fwd_override_fn *fn, void *ud,
                                struct fwd_error *err);
    const struct fwd_config *(*config)(const struct fwd_session *s);
    /* Numerics of one op as this session computes it; false: the op is absent. */
    bool (*numerics)(const struct fwd_session *s, enum fwd_op op, int layer, struct fwd_numerics *out);
    /* Row i of the variants in use; false past the end. */
    bool (*variant)(const struct fwd_session *s, int i, struct fwd_variant_choice *out);
    /* Weight i as bound; false past the end. Reads the whole weight. */
    bool (*bound_weight)(const struct fwd_session *s, int i, struct fwd_bound_weight *out);
    void (*close)(struct fwd_session *s);
    /* NULL: the CPU. measure: the read ceiling too, which takes a moment. FWD_EUNAVAILABLE as probe says it. */
    enum fwd_status (*device)(struct fwd_device_info *out, bool measure, struct fwd_error *err);
};

/* The paths built in, in the order of paths.def. */
const struct fwd_path *const *fwd_paths(int *n_paths);
const struct fwd_path *fwd_path_find(const char *name); /* NULL: none */

#endif
