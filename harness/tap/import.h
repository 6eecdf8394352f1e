/* harness/tap/import.h: a capture of any origin, as tensors with a meaning and facts with an origin.
 *
 * Read are: our own container and plain safetensors (capture.h), .npz archives whose members are stored, folders of
 * .npy files, and aprender's folders of APRT stages. What a format does not say a person asserts: in a side file
 * CAPTURE.facts.json (an object of strings) or one by one. An asserted fact stays marked as one; one that contradicts
 * what the capture itself records is refused. Nothing in a file is believed before it is checked against the file's
 * size. */
#ifndef HARNESS_TAP_IMPORT_H
#define HARNESS_TAP_IMPORT_H

#include "tap/tap_names.h"

struct par_import_tensor {
    const char *name;     /* as the capture spells it */
    enum fwd_dtype dtype; /* of what par_import_read gives: BF16 comes as F32 */
    int n_dims;
    int64_t shape[4]; /* of quantised rows the second is bytes */
    size_t n_bytes;   /* that par_import_read gives */
    bool known;       /* `is` says what it is; else no table has the name, or its type is none that is judged */
    struct par_tap_name is;
};
struct par_import;

/* map: a person's own names, or NULL; it must outlive the import. */
enum fwd_status par_import_open(struct par_import **out, const char *path, const struct par_tap_map *map,
                                struct fwd_error *err);
void par_import_close(struct par_import *im);
const char *par_import_kind(const struct par_import *im); /* "parity capture", "safetensors", ".npz", ... */
/* Written by `parity trace`: names, positions and order of arrival are recorded, and need no proof. */
bool par_import_is_own(const struct par_import *im);
const struct par_import_tensor *par_import_tensors(const struct par_import *im, size_t *n);
/* t->n_bytes bytes into out. */
enum fwd_status par_import_read(const struct par_import *im, const struct par_import_tensor *t, void *out,
                                struct fwd_error *err);

/* NULL: not said. *asserted (may be NULL): by a person. */
const char *par_import_fact(const struct par_import *im, const char *key, bool *asserted);
/* Fact i; false past the end. */
bool par_import_fact_at(const struct par_import *im, size_t i, const char **key, const char **value, bool *asserted);
/* FWD_ECORRUPT where the capture, or an earlier assertion, says otherwise. */
enum fwd_status par_import_assert(struct par_import *im, const char *key, const char *value, struct fwd_error *err);

#endif
