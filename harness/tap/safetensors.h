/* harness/tap/safetensors.h: the header of a safetensors file: u64 length, then a JSON object of that many bytes:
 *   {"__metadata__": {"key": "value", ...}, "name": {"dtype": "F32", "shape": [78, 896], "data_offsets": [0, 279552]}}
 * followed by the tensors' bytes; offsets count from the end of the header, tensors touch, nothing is left over. */
#ifndef HARNESS_TAP_SAFETENSORS_H
#define HARNESS_TAP_SAFETENSORS_H

#include "engine.h"

enum { PAR_ST_DIMS = 8, PAR_ST_MAX_HEADER = 1 << 26 };

struct par_st_tensor {
    const char *name;
    char dtype[12];
    int n_dims;
    int64_t shape[PAR_ST_DIMS];
    uint64_t begin, end; /* bytes, from the end of the header */
};
struct par_st_fact {
    const char *key, *value;
};
struct par_st_header {
    struct par_st_tensor *tensors; /* in order of their bytes */
    size_t n_tensors;
    struct par_st_fact *facts; /* __metadata__ */
    size_t n_facts;
    struct par_json *json; /* owns the strings of a parsed header */
};

/* Bytes of one value; 0 for a dtype that is not known. */
size_t par_st_dtype_bytes(const char *dtype);
/* json: the object's n bytes. data_bytes: what follows the header. Everything is checked: types, shapes against
 * offsets, overlap, holes, double names. `file` is the name in messages. */
enum fwd_status par_st_parse(struct par_st_header *out, const char *json, size_t n, uint64_t data_bytes,
                             const char *file, struct fwd_error *err);
void par_st_fini(struct par_st_header *h); /* of a parsed header */
/* Length and object, padded with spaces so that the data begin at a multiple of 8. Allocated (fwd_free), *n_bytes of
 * them. Strings are UTF-8. */
enum fwd_status par_st_print(char **out, size_t *n_bytes, const struct par_st_header *h, struct fwd_error *err);

#endif
