/* harness/report/json.h: strict reading of JSON files, with the line of whatever is wrong.
 *
 * The text is checked against RFC 8259 by a scanner of our own (depth at most 64, valid UTF-8, no NUL even as \u0000,
 * no duplicate keys) before cJSON builds the tree, because cJSON alone accepts raw control characters, "01" and
 * trailing garbage. Callers see nodes only through the getters below; names are compared with case.
 * A document owns its nodes and strings. Errors are FWD_ECORRUPT, "FILE:LINE: what, expected what". */
#ifndef HARNESS_REPORT_JSON_H
#define HARNESS_REPORT_JSON_H

#include "engine.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cJSON;
struct par_json;

/* text: n bytes, not kept by reference. file: the name used in messages. *out is freed with par_json_free. */
enum fwd_status par_json_parse(struct par_json **out, const char *text, size_t n, const char *file,
                               struct fwd_error *err);
/* The same from a file; FWD_ENOTFOUND or FWD_EIO when it cannot be read, FWD_ERANGE above max_bytes. */
enum fwd_status par_json_read(struct par_json **out, const char *path, size_t max_bytes, struct fwd_error *err);
void par_json_free(struct par_json *doc);
const struct cJSON *par_json_root(const struct par_json *doc);
const char *par_json_file(const struct par_json *doc);
/* Line, from 1, on which the node's value starts. Rescans the text: for messages only. */
int par_json_line(const struct par_json *doc, const struct cJSON *node);
/* Fills err with "FILE:LINE: " and the message, code FWD_ECORRUPT. */
enum fwd_status par_json_fail(const struct par_json *doc, const struct cJSON *node, struct fwd_error *err,
                              const char *fmt, ...) __attribute__((format(printf, 4, 5)));

/* Members of an object or items of an array, in file order; NULL at the end or for a scalar. */
const struct cJSON *par_json_first(const struct cJSON *node);
const struct cJSON *par_json_next(const struct cJSON *node);
/* The member's name; NULL for an array item or the root. */
const char *par_json_name(const struct cJSON *node);
bool par_json_is_object(const struct cJSON *node);
bool par_json_is_array(const struct cJSON *node);
/* The node's own value; NULL or false when it is of another kind. Integers are exact: |value| <= 2^53. */
const char *par_json_text(const struct cJSON *node);
bool par_json_number(const struct cJSON *node, double *out);
bool par_json_int(const struct cJSON *node, int64_t *out);
bool par_json_truth(const struct cJSON *node, bool *out);

/* Refuses a node that is no object, and members outside the NULL-terminated list. */
enum fwd_status par_json_keys_only(const struct par_json *doc, const struct cJSON *object, const char *const *allowed,
                                   struct fwd_error *err);
/* NULL: no such member. */
const struct cJSON *par_json_get(const struct cJSON *object, const char *key);
/* Required members of the kind the name says. A string points into the document. */
enum fwd_status par_json_get_text(const struct par_json *doc, const struct cJSON *object, const char *key,
                                  const char **out, struct fwd_error *err);
enum fwd_status par_json_get_array(const struct par_json *doc, const struct cJSON *object, const char *key,
                                   const struct cJSON **out, struct fwd_error *err);
enum fwd_status par_json_get_object(const struct par_json *doc, const struct cJSON *object, const char *key,
                                    const struct cJSON **out, struct fwd_error *err);
/* low <= value <= high. */
enum fwd_status par_json_get_int(const struct par_json *doc, const struct cJSON *object, const char *key, int64_t low,
                                 int64_t high, int64_t *out, struct fwd_error *err);
enum fwd_status par_json_get_bool(const struct par_json *doc, const struct cJSON *object, const char *key, bool *out,
                                  struct fwd_error *err);
/* A u64 as a string of decimal digits or of 0x and hexadecimal ones (numbers lose bits above 2^53). */
enum fwd_status par_json_get_u64(const struct par_json *doc, const struct cJSON *object, const char *key, uint64_t *out,
                                 struct fwd_error *err);
/* An exact real: a string in C's %a form ("0x1.8p+1", "-inf", "nan"), or a plain number. */
enum fwd_status par_json_get_f64_hex(const struct par_json *doc, const struct cJSON *object, const char *key,
                                     double *out, struct fwd_error *err);

#endif
