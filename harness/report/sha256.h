/* harness/report/sha256.h: the identity of a model file, through libcrypto. */
#ifndef HARNESS_REPORT_SHA256_H
#define HARNESS_REPORT_SHA256_H

#include "engine.h"

/* Lower-case hexadecimal of the files' bytes one after the other (the splits of a model), read, not mapped. */
enum fwd_status par_sha256_model(const struct fwd_gguf *file, char out[65], struct fwd_error *err);

#endif
