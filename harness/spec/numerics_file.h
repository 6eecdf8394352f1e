/* harness/spec/numerics_file.h: what another engine promises about its arithmetic, as data:
 * contracts/numerics/NAME.json (schema: contracts/schema/numerics.schema.json).
 *
 * A file has an entry for each kind of op, and for products one for each weight type. An entry names the fields of
 * struct fwd_numerics; what it leaves out is 0, false or F32. An entry may be "unknown": the op is then not judged. An
 * order of additions that is not known says "lanes": "unknown", and the second look tries the usual ones.
 *
 * Reading is strict: unknown keys, values out of range and declarations that contradict themselves are refused with
 * file and line, the value, and what was expected. */
#ifndef HARNESS_SPEC_NUMERICS_FILE_H
#define HARNESS_SPEC_NUMERICS_FILE_H

#include "engine.h"

struct par_numerics;
/* Freed with par_numerics_free. As par_json_read, and FWD_ECORRUPT for what is refused. */
enum fwd_status par_numerics_load(struct par_numerics **out, const char *path, struct fwd_error *err);
/* The same from n bytes of text; file: the name used in messages. */
enum fwd_status par_numerics_parse(struct par_numerics **out, const char *text, size_t n, const char *file,
                                   struct fwd_error *err);
void par_numerics_free(struct par_numerics *n);
/* "llama-cpp-cpu-avx2", and one sentence about what was declared; owned by n. */
const char *par_numerics_name(const struct par_numerics *n);
const char *par_numerics_about(const struct par_numerics *n);

/* What is promised for an op. Products: the type and row length of the weight, and whether a bias is added in the same
 * op (one rounding more). false: the file does not know, or has no such op (a _q8 op: no file promises to show one), or
 * blocks of activations do not fit the row. */
bool par_numerics_of(const struct par_numerics *n, enum fwd_op op, uint32_t weight_type, int64_t n_cols, bool has_bias,
                     struct fwd_numerics *out);
/* Whether that leaves open in what order the op adds. Such an op is consistent with the file at best. */
bool par_numerics_order_is_open(const struct par_numerics *n, enum fwd_op op, uint32_t weight_type);

#endif
