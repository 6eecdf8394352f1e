/* harness/report/report_escape.h: text of unknown origin (prompts, file names, notes) put safely into each format.
 * Bytes that are not UTF-8 and control characters become visible (\xNN); a NULL string prints as nothing. */
#ifndef HARNESS_REPORT_REPORT_ESCAPE_H
#define HARNESS_REPORT_REPORT_ESCAPE_H

#include <stdint.h>
#include <stdio.h>

/* The code point at s and its length in bytes; an ill-formed byte gives length 1 and UINT32_MAX. s[0] must not be NUL.
 */
int par_utf8_next(const char *s, uint32_t *code);
/* Columns that par_put_plain(s) takes, every code point counted as one. */
int par_plain_width(const char *s);
/* One line of plain text. */
void par_put_plain(FILE *out, const char *s);
/* Plain text broken at spaces so that no line passes `width` columns; the first line starts at column `indent`
 * already, the next ones are indented to it. Ends with a newline. */
void par_put_wrapped(FILE *out, int indent, int width, const char *s);
/* XML text or attribute value. */
void par_put_xml(FILE *out, const char *s);
/* Inside a Markdown table cell or paragraph. */
void par_put_markdown(FILE *out, const char *s);
/* Valid UTF-8 with the same text, for JSON (control characters stay: JSON can say them). Allocated (fwd_free). */
char *par_utf8_clean(const char *s);

#endif
