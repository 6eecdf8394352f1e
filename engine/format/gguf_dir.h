/* engine/format/gguf_dir.h: the directory of one GGUF file's bytes; private to engine/format. */
#ifndef ENGINE_FORMAT_GGUF_DIR_H
#define ENGINE_FORMAT_GGUF_DIR_H

#include "format/gguf.h"

/* Owns the key and tensor names in it, and borrows the bytes. */
struct fwd_gguf_dir {
    uint32_t version;
    uint32_t alignment;
    uint64_t data_offset; /* of the tensor data in the file */
    struct fwd_gguf_kv *kvs;
    uint64_t n_kv, cap_kv;
    struct fwd_gguf_tensor *tensors; /* split == 0 */
    uint64_t n_tensors, cap_tensors;
};

/* Parses and checks one file. Duplicate names are left to the caller, who may join several directories. *dir is
 * overwritten; after a failure it holds nothing. */
enum fwd_status fwd_gguf_dir_parse(struct fwd_gguf_dir *dir, const void *data, uint64_t n_bytes, struct fwd_error *err);
void fwd_gguf_dir_fini(struct fwd_gguf_dir *dir);

/* Bytes of one item of a fixed-size kind; 0 for strings, arrays and unknown kinds. */
unsigned fwd_gguf_kind_bytes(uint32_t kind);

#endif
