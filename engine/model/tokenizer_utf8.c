#include "model/tokenizer_utf8.h"

#define REPLACEMENT 0xfffdu

/* Letters (general category L) and numbers (N) of Unicode 15.0, 15.1 and 16.0 that Unicode 14.0 had not assigned. */
enum { LETTER, NUMBER };
static const struct newcomer {
    uint32_t first, last;
    int class;
} newcomers[] = {
    {0x1c89, 0x1c8a, LETTER},   {0xa7cb, 0xa7cd, LETTER},   {0xa7da, 0xa7dc, LETTER},   {0x105c0, 0x105f3, LETTER},
    {0x10d40, 0x10d49, NUMBER}, {0x10d4a, 0x10d65, LETTER}, {0x10d6f, 0x10d85, LETTER}, {0x10ec2, 0x10ec4, LETTER},
    {0x1123f, 0x11240, LETTER}, {0x11380, 0x11389, LETTER}, {0x1138b, 0x1138b, LETTER}, {0x1138e, 0x1138e, LETTER},
    {0x11390, 0x113b5, LETTER}, {0x113b7, 0x113b7, LETTER}, {0x113d1, 0x113d1, LETTER}, {0x113d3, 0x113d3, LETTER},
    {0x116d0, 0x116e3, NUMBER}, {0x11bc0, 0x11be0, LETTER}, {0x11bf0, 0x11bf9, NUMBER}, {0x11f02, 0x11f02, LETTER},
    {0x11f04, 0x11f10, LETTER}, {0x11f12, 0x11f33, LETTER}, {0x11f50, 0x11f59, NUMBER}, {0x1342f, 0x1342f, LETTER},
    {0x13441, 0x13446, LETTER}, {0x13460, 0x143fa, LETTER}, {0x16100, 0x1611d, LETTER}, {0x16130, 0x16139, NUMBER},
    {0x16d40, 0x16d6c, LETTER}, {0x16d70, 0x16d79, NUMBER}, {0x18cff, 0x18cff, LETTER}, {0x1b132, 0x1b132, LETTER},
    {0x1b155, 0x1b155, LETTER}, {0x1ccf0, 0x1ccf9, NUMBER}, {0x1d2c0, 0x1d2d3, NUMBER}, {0x1df25, 0x1df2a, LETTER},
    {0x1e030, 0x1e06d, LETTER}, {0x1e4d0, 0x1e4eb, LETTER}, {0x1e4f0, 0x1e4f9, NUMBER}, {0x1e5d0, 0x1e5ed, LETTER},
    {0x1e5f0, 0x1e5f0, LETTER}, {0x1e5f1, 0x1e5fa, NUMBER}, {0x2b739, 0x2b739, LETTER}, {0x2ebf0, 0x2ee5d, LETTER},
    {0x31350, 0x323af, LETTER}};
#define N_NEWCOMERS (sizeof newcomers / sizeof *newcomers)
#define FIRST_NEWCOMER 0x1c89u

static const struct newcomer *find_newcomer(uint32_t c) {
    size_t lo = 0, hi = N_NEWCOMERS;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (newcomers[mid].last < c)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < N_NEWCOMERS && newcomers[lo].first <= c ? &newcomers[lo] : NULL;
}

static bool is_surrogate(uint32_t c) {
    return c >= 0xd800 && c <= 0xdfff;
}

uint32_t tok_utf8_stand_in(uint32_t c) {
    if (is_surrogate(c))
        return 0xe000; /* private use: neither letter, number nor space */
    const struct newcomer *found = c < FIRST_NEWCOMER ? NULL : find_newcomer(c);
    if (!found)
        return c;
    if (c < 0x10000)
        return found->class == LETTER ? 0x4e00 : 0x3007;
    return found->class == LETTER ? 0x20000 : 0x1d7ce;
}

/* Length of the sequence that lead announces; 0 for a byte that starts none. */
static size_t announced(unsigned lead) {
    return lead < 0x80 ? 1 : lead < 0xc0 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf8 ? 4 : 0;
}

size_t tok_utf8_read(const char *text, size_t len, uint32_t *out) {
    static const unsigned char lead_bits[5] = {0, 0x7f, 0x1f, 0x0f, 0x07};
    size_t n = announced((unsigned char)text[0]);
    *out = REPLACEMENT;
    if (n == 0 || n > len)
        return 1;
    uint32_t c = (unsigned char)text[0] & lead_bits[n];
    for (size_t i = 1; i < n; i++) {
        if (((unsigned char)text[i] & 0xc0) != 0x80)
            return 1;
        c = c << 6 | ((unsigned char)text[i] & 0x3f);
    }
    if (c > 0x10ffff)
        return 1;
    *out = c;
    return n;
}

static size_t shortest(uint32_t c) {
    return c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
}

size_t tok_utf8_write(char *out, uint32_t c) {
    static const unsigned char mark[5] = {0, 0, 0xc0, 0xe0, 0xf0};
    size_t n = shortest(c);
    for (size_t i = n - 1; i > 0; i--, c >>= 6)
        out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)(mark[n] | c);
    return n;
}

bool tok_utf8_is_plain(const char *text, size_t len) {
    for (size_t i = 0; i < len;) {
        if ((unsigned char)text[i] < 0x80) {
            i++;
            continue;
        }
        uint32_t c;
        size_t n = tok_utf8_read(text + i, len - i, &c);
        if (n == 1 || shortest(c) != n || tok_utf8_stand_in(c) != c)
            return false;
        i += n;
    }
    return true;
}
