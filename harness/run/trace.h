/* harness/run/trace.h: `parity trace`: one path over one sequence of ids, its taps in a capture file.
 *
 * The sequence is run twice: with the taps going to the file, and again without. The hashes of both runs' logits are
 * facts of the capture; where they differ, reading is not neutral or the path is not deterministic, and the capture is
 * MISTRUSTED (a later diff says so too). */
#ifndef HARNESS_RUN_TRACE_H
#define HARNESS_RUN_TRACE_H

#include "compare/verdict.h"
#include "engine.h"
#include "run/drive.h"
#include "tap/capture.h"

struct par_trace_options {
    const struct fwd_gguf *file;
    const struct fwd_path *path;
    struct fwd_knobs knobs; /* n_ctx and n_batch are raised to what the sequence needs */
    enum par_schedule schedule;
    int chunk;
    const int32_t *ids; /* the prompt */
    int n_prompt;
    const int32_t *forced; /* [n_decode] ids after the prompt; NULL: the path's own greedy choice */
    int n_decode;
    bool all_logits;          /* logits (result_norm, result_output) at every position, not only the last of the prompt
                               * and the decode steps */
    const char *model_path;   /* for the record; only its last part is kept */
    const char *model_sha256; /* 64 hexadecimal digits */
    const struct fwd_tokenizer *tokenizer; /* or NULL */
    struct par_capture_options capture;
    void (*progress)(void *ud, const char *what, int64_t done, int64_t total); /* or NULL; done < 0: over */
    void *progress_ud;
};
struct par_trace_result {
    enum par_verdict verdict; /* HELD: the capture is good; MISTRUSTED; UNMEASURED: no tensor passed the filter */
    size_t n_tensors;
    int n_ids;
    uint64_t logits_hash, aa_hash;
    int32_t next; /* greedy choice after the last id */
};

/* Writes `out_path`, whole or not at all. */
enum fwd_status par_trace(const struct par_trace_options *o, const char *out_path, struct par_trace_result *result,
                          struct fwd_error *err);
/* One hash over the declared numerics of every op of every layer of a session. */
uint64_t par_numerics_hash(const struct fwd_path *path, const struct fwd_session *s);

#endif
