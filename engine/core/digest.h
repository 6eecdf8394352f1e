/* engine/core/digest.h: a tap in 48 bytes: enough to see that two runs differ, where, and how badly, without moving the
 * tensor. The same numbers from every path and device: each part is exact or has a fixed order.
 *
 * Over the values of a view in the order row by row (a cache: row, then head), value i being the i-th 4-byte word of
 * the packed rows (F32: the value; other types: their bytes, 2-byte ones in pairs, a short last word filled with 0):
 *   hash     sum modulo 2^64 of mix(word_i + (i + 1) * 0x9e3779b97f4a7c15), mix being splitmix64's finaliser
 *   and of F32 only: n_nan, n_inf, max_abs (of the finite ones), sum_sq: squares of the finite ones in F64, in chunks
 * of 4096 values, inside a chunk 256 lanes (lane i mod 256 in order) as a tree of halves, chunks in order. */
#ifndef ENGINE_CORE_DIGEST_H
#define ENGINE_CORE_DIGEST_H

#include <stddef.h>
#include <stdint.h>

enum { FWD_DIGEST_CHUNK = 4096, FWD_DIGEST_LANES = 256 };

/* What one chunk gives; a tensor's digest is the sum of its chunks'. */
struct fwd_digest {
    uint64_t hash;
    double sum_sq;
    uint64_t n_words;
    uint32_t n_nan, n_inf;
    float max_abs;
    uint32_t unused;
};

/* words: n of them starting with number `first` of the tensor. is_f32: the four figures beside the hash too. n at most
 * FWD_DIGEST_CHUNK. */
void fwd_digest_chunk(const uint32_t *words, size_t n, uint64_t first, int is_f32, struct fwd_digest *out);
/* Adds a chunk to the ones before it; *sum starts as zeros. */
void fwd_digest_add(struct fwd_digest *sum, const struct fwd_digest *chunk);

static inline uint64_t fwd_digest_mix(uint64_t z) {
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

#endif
