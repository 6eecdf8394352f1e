/* harness/report/json_scan.c: the strict scanner. Recursion is bounded by PAR_JSON_DEPTH. */
#include "report/json_scan.h"

#include <stdbool.h>
#include <string.h>

struct cursor {
    const unsigned char *p, *end;
    struct par_json_scan *s;
    int depth;
};

static bool fail(struct cursor *c, const char *fault) {
    if (!c->s->fault)
        c->s->fault = fault;
    return false;
}

static void skip_space(struct cursor *c) {
    for (; c->p < c->end && (*c->p == ' ' || *c->p == '\t' || *c->p == '\n' || *c->p == '\r'); c->p++)
        c->s->line += *c->p == '\n';
}

static bool is_digit(const struct cursor *c) {
    return c->p < c->end && *c->p >= '0' && *c->p <= '9';
}

static bool scan_digits(struct cursor *c) {
    if (!is_digit(c))
        return fail(c, "a digit was expected in a number");
    while (is_digit(c))
        c->p++;
    return true;
}

static bool scan_number_parts(struct cursor *c) {
    if (*c->p == '-')
        c->p++;
    if (c->p < c->end && *c->p == '0') {
        c->p++;
        if (is_digit(c))
            return fail(c, "a number starts with a needless 0");
    } else if (!scan_digits(c)) {
        return false;
    }
    if (c->p < c->end && *c->p == '.') {
        c->p++;
        if (!scan_digits(c))
            return false;
    }
    if (c->p < c->end && (*c->p == 'e' || *c->p == 'E')) {
        c->p++;
        if (c->p < c->end && (*c->p == '+' || *c->p == '-'))
            c->p++;
        return scan_digits(c);
    }
    return true;
}

/* cJSON reads numbers through a buffer of 64 characters. */
static bool scan_number(struct cursor *c) {
    const unsigned char *start = c->p;
    return scan_number_parts(c) && (c->p - start <= 60 || fail(c, "a number of more than 60 characters"));
}

/* Four hexadecimal digits at p; -1 when they are not. */
static int hex4(const struct cursor *c) {
    int value = 0;
    if (c->end - c->p < 4)
        return -1;
    for (int i = 0; i < 4; i++) {
        unsigned char h = c->p[i];
        int digit = h >= '0' && h <= '9'   ? h - '0'
                    : h >= 'a' && h <= 'f' ? h - 'a' + 10
                    : h >= 'A' && h <= 'F' ? h - 'A' + 10
                                           : -1;
        if (digit < 0)
            return -1;
        value = value * 16 + digit;
    }
    return value;
}

/* p is behind the backslash. */
static bool scan_escape(struct cursor *c) {
    if (c->p == c->end)
        return fail(c, "the text ends inside a string");
    if (*c->p != 'u') {
        if (!strchr("\"\\/bfnrt", *c->p) || !*c->p)
            return fail(c, "an unknown escape in a string");
        c->p++;
        return true;
    }
    c->p++;
    int unit = hex4(c);
    if (unit < 0)
        return fail(c, "\\u needs four hexadecimal digits");
    if (unit == 0)
        return fail(c, "\\u0000 in a string");
    c->p += 4;
    if (unit < 0xd800 || unit > 0xdfff)
        return true;
    if (unit > 0xdbff || c->end - c->p < 6 || c->p[0] != '\\' || c->p[1] != 'u')
        return fail(c, "half of a surrogate pair in a string");
    c->p += 2;
    int low = hex4(c);
    if (low < 0xdc00 || low > 0xdfff)
        return fail(c, "half of a surrogate pair in a string");
    c->p += 4;
    return true;
}

/* One UTF-8 sequence above 0x7f: shortest form, no surrogates, at most U+10FFFF. */
static bool scan_utf8(struct cursor *c) {
    unsigned char lead = *c->p;
    int n = lead >= 0xc2 && lead <= 0xdf ? 1 : lead >= 0xe0 && lead <= 0xef ? 2 : lead >= 0xf0 && lead <= 0xf4 ? 3 : 0;
    if (n == 0 || c->end - c->p <= n)
        return fail(c, "a string is not valid UTF-8");
    unsigned char low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    unsigned char high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    for (int i = 1; i <= n; i++, low = 0x80, high = 0xbf) {
        if (c->p[i] < low || c->p[i] > high)
            return fail(c, "a string is not valid UTF-8");
    }
    c->p += n + 1;
    return true;
}

/* p is at the opening quote. */
static bool scan_string(struct cursor *c) {
    c->p++;
    while (c->p < c->end) {
        unsigned char ch = *c->p;
        if (ch == '"') {
            c->p++;
            return true;
        }
        if (ch < 0x20)
            return fail(c, "a control character in a string");
        if (ch == '\\') {
            c->p++;
            if (!scan_escape(c))
                return false;
        } else if (ch >= 0x80) {
            if (!scan_utf8(c))
                return false;
        } else {
            c->p++;
        }
    }
    return fail(c, "the text ends inside a string");
}

static bool scan_word(struct cursor *c, const char *word) {
    size_t n = strlen(word);
    if ((size_t)(c->end - c->p) < n || memcmp(c->p, word, n) != 0)
        return fail(c, "a value was expected");
    c->p += n;
    return true;
}

static bool scan_value(struct cursor *c);

/* p is at the opening bracket; objects and arrays differ in the names only. */
static bool scan_list(struct cursor *c, bool object) {
    unsigned char close = object ? '}' : ']';
    if (++c->depth > PAR_JSON_DEPTH)
        return fail(c, "nested more than 64 deep");
    c->p++;
    skip_space(c);
    if (c->p < c->end && *c->p == close) {
        c->p++;
        c->depth--;
        return true;
    }
    for (;;) {
        skip_space(c);
        if (object) {
            if (c->p == c->end || *c->p != '"')
                return fail(c, "a name in quotes was expected");
            if (!scan_string(c))
                return false;
            skip_space(c);
            if (c->p == c->end || *c->p != ':')
                return fail(c, "':' was expected after a name");
            c->p++;
            skip_space(c);
        }
        if (!scan_value(c))
            return false;
        skip_space(c);
        if (c->p == c->end || (*c->p != ',' && *c->p != close))
            return fail(c, object ? "',' or '}' was expected" : "',' or ']' was expected");
        if (*c->p++ == close) {
            c->depth--;
            return true;
        }
    }
}

static bool scan_value(struct cursor *c) {
    if (c->s->n_values++ == c->s->find)
        c->s->find_line = c->s->line;
    if (c->p == c->end)
        return fail(c, "the text ends where a value was expected");
    switch (*c->p) {
    case '{':
        return scan_list(c, true);
    case '[':
        return scan_list(c, false);
    case '"':
        return scan_string(c);
    case 't':
        return scan_word(c, "true");
    case 'f':
        return scan_word(c, "false");
    case 'n':
        return scan_word(c, "null");
    default:
        if (*c->p == '-' || is_digit(c))
            return scan_number(c);
        return fail(c, "a value was expected");
    }
}

void par_json_scan(const char *text, size_t n, struct par_json_scan *s) {
    struct cursor c = {.p = (const unsigned char *)text, .end = (const unsigned char *)text + n, .s = s};
    s->n_values = 0;
    s->find_line = 0;
    s->line = 1;
    s->fault = NULL;
    skip_space(&c);
    if (!scan_value(&c))
        return;
    skip_space(&c);
    if (c.p != c.end)
        (void)fail(&c, "something follows the end of the document");
}
