/* engine/model/tokenizer_utf8.h: reading text of any bytes as code points, and making it fit for PCRE2. Private to
 * engine/model. */
#ifndef ENGINE_MODEL_TOKENIZER_UTF8_H
#define ENGINE_MODEL_TOKENIZER_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Reads one code point from text[0 .. len), len > 0, and returns the bytes used. A sequence of the right shape gives
 * its code point even if it is overlong or a surrogate; a byte that starts no such sequence, or one above U+10FFFF,
 * gives U+FFFD and counts as one byte. */
size_t tok_utf8_read(const char *text, size_t len, uint32_t *out);
/* Writes c, at most U+10FFFF, in its shortest form (surrogates too) and returns the bytes, 1 to 4. */
size_t tok_utf8_write(char *out, uint32_t c);
/* A code point of the same length that PCRE2 knows and that has the same class (letter, number, space, other): c
 * itself, except for surrogates, which PCRE2 does not take, and for letters and numbers that came with Unicode 15 to
 * 16, which the PCRE2 of a stable distribution does not know, so that ids do not depend on its version. */
uint32_t tok_utf8_stand_in(uint32_t c);
/* True when text is valid UTF-8 that stands for itself throughout. */
bool tok_utf8_is_plain(const char *text, size_t len);

#endif
