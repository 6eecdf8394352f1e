/* harness/report/sha256.h: the identity of a model file, through libcrypto. */
#ifndef HARNESS_REPORT_SHA256_H
#define HARNESS_REPORT_SHA256_H

#include "engine.h"

/* Lower-case hexadecimal of the files' bytes one after the other (the splits of a model), read, not mapped. */
enum fwd_status par_sha256_model(const struct fwd_gguf *file, char out[65], struct fwd_error *err);

/* The same on a thread of its own, beside other work: 5 GB take seconds. file must outlive it. */
struct par_sha256_job;
enum fwd_status par_sha256_start(struct par_sha256_job **out, const struct fwd_gguf *file, struct fwd_error *err);
/* Waits for it, fills out (NULL: nobody asks any more) and frees the job. NULL: nothing to wait for, FWD_ESTATE. */
enum fwd_status par_sha256_finish(struct par_sha256_job *job, char out[65], struct fwd_error *err);

#endif
