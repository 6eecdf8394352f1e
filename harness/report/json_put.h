/* harness/report/json_put.h: writing JSON: reals with 17 digits, so that reading them back gives the same bits;
 * not-finite reals as the strings "NaN", "Infinity", "-Infinity"; hashes as "0x..." strings; absent strings as null;
 * bytes that are not UTF-8 as \\xNN. Every par_put_* of a value returns false when memory is out (or o is NULL). */
#ifndef HARNESS_REPORT_JSON_PUT_H
#define HARNESS_REPORT_JSON_PUT_H

#include "compare/metrics.h"
#include "engine.h"

struct cJSON;

bool par_put_text(struct cJSON *o, const char *key, const char *s);
bool par_put_bool(struct cJSON *o, const char *key, bool b);
bool par_put_int(struct cJSON *o, const char *key, int64_t x);
bool par_put_count(struct cJSON *o, const char *key, uint64_t x);
bool par_put_hash(struct cJSON *o, const char *key, uint64_t x);
bool par_put_real(struct cJSON *o, const char *key, double x);
/* KEY, and KEY_hex in C's %a form. */
bool par_put_exact(struct cJSON *o, const char *key, double x);
bool par_put_metrics(struct cJSON *o, const struct par_metrics *m);
/* A new, empty member of o, or NULL. */
struct cJSON *par_put_array(struct cJSON *o, const char *key);
struct cJSON *par_put_object(struct cJSON *o, const char *key);
/* A new object at the end of the array, or NULL. */
struct cJSON *par_push_object(struct cJSON *array);
/* Prints and deletes root. Allocated (fwd_free), ends in a newline; NULL when !ok or memory is out. */
char *par_put_finish(struct cJSON *root, bool ok);

#endif
