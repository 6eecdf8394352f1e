#include "core/hash.h"

#include <string.h>

/* Four independent multiply-xorshift lanes over 8-byte words, so that the multiplier's latency is hidden; the
 * finaliser mixes the lanes and the length. Constants: the odd 64-bit golden ratio and three of its odd multiples. */
static const uint64_t lane_key[4] = {0x9e3779b97f4a7c15u, 0xdaa66d2c7ddf743fu, 0x16fa60e17c746c69u,
                                     0x534e54967b096493u};

static uint64_t mix(uint64_t lane, uint64_t word, uint64_t key) {
    lane = (lane ^ word) * key;
    return lane ^ lane >> 29;
}

static uint64_t load_word(const unsigned char *p) {
    uint64_t word = 0;
    for (int i = 7; i >= 0; i--)
        word = word << 8 | p[i];
    return word;
}

static void add_block(struct fwd_hash *h, const unsigned char *p) {
    for (int i = 0; i < 4; i++)
        h->lane[i] = mix(h->lane[i], load_word(p + 8 * i), lane_key[i]);
}

void fwd_hash_begin(struct fwd_hash *h) {
    memset(h, 0, sizeof *h);
    memcpy(h->lane, lane_key, sizeof h->lane);
}

void fwd_hash_add(struct fwd_hash *h, const void *data, size_t n_bytes) {
    const unsigned char *p = data;
    size_t held = h->n_bytes % 32;
    h->n_bytes += n_bytes;
    if (held) {
        size_t take = 32 - held < n_bytes ? 32 - held : n_bytes;
        memcpy(h->tail + held, p, take);
        p += take;
        n_bytes -= take;
        if (held + take < 32)
            return;
        add_block(h, h->tail);
    }
    for (; n_bytes >= 32; p += 32, n_bytes -= 32)
        add_block(h, p);
    if (n_bytes)
        memcpy(h->tail, p, n_bytes);
}

uint64_t fwd_hash_end(const struct fwd_hash *h) {
    struct fwd_hash last = *h;
    size_t held = (size_t)(h->n_bytes % 32);
    uint64_t out = h->n_bytes;
    if (held) {
        memset(last.tail + held, 0, 32 - held);
        add_block(&last, last.tail);
    }
    for (int i = 0; i < 4; i++)
        out = mix(out, last.lane[i], lane_key[(i + 1) % 4]);
    out ^= out >> 32;
    return out * lane_key[0] ^ out >> 31;
}

uint64_t fwd_hash64(const void *data, size_t n_bytes) {
    struct fwd_hash h;
    fwd_hash_begin(&h);
    fwd_hash_add(&h, data, n_bytes);
    return fwd_hash_end(&h);
}
