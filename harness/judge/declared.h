/* harness/judge/declared.h: by which numerics a capture is judged: a file's (contracts/numerics), or, for what
 * `parity trace` wrote, those of the path that it records. */
#ifndef HARNESS_JUDGE_DECLARED_H
#define HARNESS_JUDGE_DECLARED_H

#include "spec/judge.h"
#include "tap/import.h"

struct par_declared;
/* The path and the knobs that the capture records, opened on the same model; FWD_EVERSION when this build's declaration
 * is not the one that is recorded. */
enum fwd_status par_declared_own(struct par_declared **out, const struct fwd_gguf *file, const struct par_import *im,
                                 struct fwd_error *err);
/* What spec/numerics_file.h reads from path, for the weights of this model. */
enum fwd_status par_declared_file(struct par_declared **out, const struct fwd_gguf *file, const char *path,
                                  struct fwd_error *err);
void par_declared_free(struct par_declared *d); /* NULL is fine */
/* A par_numerics_fn; ud is the par_declared. */
bool par_declared_numerics(void *ud, enum fwd_op op, int layer, struct fwd_numerics *out);
const char *par_declared_name(const struct par_declared *d);

#endif
