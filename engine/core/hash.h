/* engine/core/hash.h: a fast 64-bit checksum for "are these the same bytes": logits, bound weights, captures.
 * Not cryptographic; a model file's identity is its SHA-256. Same value on every machine (little-endian words). */
#ifndef ENGINE_CORE_HASH_H
#define ENGINE_CORE_HASH_H

#include <stddef.h>
#include <stdint.h>

/* Streaming form: begin, any number of adds (the split does not change the result), end. */
struct fwd_hash {
    uint64_t lane[4];
    uint64_t n_bytes;
    unsigned char tail[32];
};

void fwd_hash_begin(struct fwd_hash *h);
void fwd_hash_add(struct fwd_hash *h, const void *data, size_t n_bytes);
uint64_t fwd_hash_end(const struct fwd_hash *h);
uint64_t fwd_hash64(const void *data, size_t n_bytes);

#endif
