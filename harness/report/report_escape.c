#include "report/report_escape.h"

#include "engine.h"

#include <stdbool.h>
#include <string.h>

int par_utf8_next(const char *s, uint32_t *code) {
    const unsigned char *p = (const unsigned char *)s;
    int n = p[0] < 0x80                   ? 1
            : p[0] >= 0xc2 && p[0] < 0xe0 ? 2
            : (p[0] & 0xf0) == 0xe0       ? 3
            : p[0] >= 0xf0 && p[0] < 0xf5 ? 4
                                          : 0;
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    if (n == 1) {
        *code = p[0];
        return 1;
    }
    uint32_t c = n ? p[0] & (0x7fu >> n) : 0;
    for (int i = 1; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80) /* a NUL ends here too */
            n = 0;
        else
            c = c << 6 | (p[i] & 0x3fu);
    }
    if (!n || c < least[n] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) {
        *code = UINT32_MAX;
        return 1;
    }
    *code = c;
    return n;
}

static bool is_control(uint32_t c) {
    return c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0x2028 || c == 0x2029 || c == UINT32_MAX;
}

/* The visible form of the n bytes at s into buf; returns its columns. */
static int show(const char *s, int n, uint32_t c, char buf[32]) {
    if (!is_control(c)) {
        memcpy(buf, s, (size_t)n);
        buf[n] = 0;
        return 1;
    }
    if (c == '\n' || c == '\t' || c == '\r') {
        (void)snprintf(buf, 32, "\\%c", c == '\n' ? 'n' : c == '\t' ? 't' : 'r');
        return 2;
    }
    for (int i = 0; i < n; i++)
        (void)snprintf(buf + 4 * i, 32 - 4 * (size_t)i, "\\x%02x", (unsigned)(unsigned char)s[i]);
    return 4 * n;
}

int par_plain_width(const char *s) {
    int width = 0;
    uint32_t c;
    char buf[32];
    for (int n; s && *s; s += n) {
        n = par_utf8_next(s, &c);
        width += show(s, n, c, buf);
    }
    return width;
}

void par_put_plain(FILE *out, const char *s) {
    uint32_t c;
    char buf[32];
    for (int n; s && *s; s += n) {
        n = par_utf8_next(s, &c);
        (void)show(s, n, c, buf);
        (void)fputs(buf, out);
    }
}

/* Columns of the word at s (up to the next space or the end). */
static int measure_word(const char *s) {
    int width = 0;
    uint32_t c;
    char buf[32];
    for (int n; *s && *s != ' '; s += n) {
        n = par_utf8_next(s, &c);
        width += show(s, n, c, buf);
    }
    return width;
}

void par_put_wrapped(FILE *out, int indent, int width, const char *s) {
    int column = indent;
    uint32_t c;
    char buf[32];
    for (int n; s && *s; s += n) {
        n = par_utf8_next(s, &c);
        int w = show(s, n, c, buf);
        bool at_space = c == ' ';
        if (at_space && column > indent && column + 1 + measure_word(s + 1) > width &&
            measure_word(s + 1) <= width - indent) {
            (void)fprintf(out, "\n%*s", indent, "");
            column = indent;
            continue;
        }
        if (column + w > width && column > indent) { /* a word longer than the line */
            (void)fprintf(out, "\n%*s", indent, "");
            column = indent;
        }
        (void)fputs(buf, out);
        column += w;
    }
    (void)fputc('\n', out);
}

void par_put_xml(FILE *out, const char *s) {
    uint32_t c;
    char buf[32];
    for (int n; s && *s; s += n) {
        n = par_utf8_next(s, &c);
        bool allowed = !is_control(c) && c != 0xfffe && c != 0xffff;
        if (c == '&')
            (void)fputs("&amp;", out);
        else if (c == '<')
            (void)fputs("&lt;", out);
        else if (c == '>')
            (void)fputs("&gt;", out);
        else if (c == '"')
            (void)fputs("&quot;", out);
        else if (c == '\'')
            (void)fputs("&apos;", out);
        else if (c == '\n' || c == '\t')
            (void)fprintf(out, "&#%u;", (unsigned)c);
        else if (allowed)
            (void)fwrite(s, 1, (size_t)n, out);
        else {
            (void)show(s, n, UINT32_MAX, buf);
            (void)fputs(buf, out);
        }
    }
}

void par_put_markdown(FILE *out, const char *s) {
    uint32_t c;
    char buf[32];
    for (int n; s && *s; s += n) {
        n = par_utf8_next(s, &c);
        if (c == '<')
            (void)fputs("&lt;", out);
        else if (c == '&')
            (void)fputs("&amp;", out);
        else {
            if (c < 0x80 && strchr("\\`*_[]|>#~", (int)c))
                (void)fputc('\\', out);
            (void)show(s, n, c, buf);
            (void)fputs(buf, out);
        }
    }
}

char *par_utf8_clean(const char *s) {
    size_t n_bytes = s ? strlen(s) : 0;
    char *clean = fwd_alloc(n_bytes + 1, 4); /* \xNN is the longest form of one byte */
    if (!clean)
        return NULL;
    size_t at = 0;
    uint32_t c;
    for (int n; s && *s; s += n) {
        n = par_utf8_next(s, &c);
        if (c == UINT32_MAX) {
            at += (size_t)snprintf(clean + at, 5, "\\x%02x", (unsigned)(unsigned char)*s);
        } else {
            memcpy(clean + at, s, (size_t)n);
            at += (size_t)n;
        }
    }
    clean[at] = 0;
    return clean;
}
