/* harness/report/json.c: the tree behind the strict scanner, and getters that say what they missed and where.
 * The line of a node is found by its preorder number, which is the same in the tree and in the text. */
#include "report/json.h"

#include "report/json_scan.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct par_json {
    cJSON *root;
    char *text;
    size_t n;
    char *file;
};

/* Preorder number of `node`, added up in *count; true: found. */
static bool number_of(const cJSON *at, const cJSON *node, size_t *count) {
    if (at == node)
        return true;
    ++*count;
    for (const cJSON *child = at->child; child; child = child->next) {
        if (number_of(child, node, count))
            return true;
    }
    return false;
}

int par_json_line(const struct par_json *doc, const struct cJSON *node) {
    struct par_json_scan s = {.find = 0};
    if (!node || !number_of(doc->root, node, &s.find))
        return 1;
    par_json_scan(doc->text, doc->n, &s);
    return s.find_line;
}

enum fwd_status par_json_fail(const struct par_json *doc, const struct cJSON *node, struct fwd_error *err,
                              const char *fmt, ...) {
    char what[400];
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    FWD_FAIL(FWD_ECORRUPT, err, "%s:%d: %s", doc->file, par_json_line(doc, node), what);
}

static int compare_names(const void *a, const void *b) {
    return strcmp((*(const cJSON *const *)a)->string, (*(const cJSON *const *)b)->string);
}

/* Refuses two members of one name, anywhere below `node`. Sorted: a header of 10,000 tensors stays cheap. */
static enum fwd_status check_names(const struct par_json *doc, const cJSON *node, struct fwd_error *err) {
    size_t n = 0;
    for (const cJSON *child = node->child; child; child = child->next, n++)
        FWD_TRY(check_names(doc, child, err));
    if (!cJSON_IsObject(node) || n < 2)
        return FWD_OK;
    const cJSON **members = fwd_alloc(n, sizeof(const cJSON *));
    FWD_FAIL_IF(!members, FWD_ENOMEM, err, "%s: no memory for %zu names", doc->file, n);
    n = 0;
    for (const cJSON *child = node->child; child; child = child->next)
        members[n++] = child;
    qsort(members, n, sizeof(const cJSON *), compare_names);
    enum fwd_status rc = FWD_OK;
    for (size_t i = 1; i < n && rc == FWD_OK; i++) {
        if (!strcmp(members[i - 1]->string, members[i]->string))
            rc = par_json_fail(doc, members[i], err, "the key \"%.100s\" appears twice in one object",
                               members[i]->string);
    }
    fwd_free(members);
    return rc;
}

enum fwd_status par_json_parse(struct par_json **out, const char *text, size_t n, const char *file,
                               struct fwd_error *err) {
    struct par_json_scan s = {.find = SIZE_MAX};
    *out = NULL;
    par_json_scan(text, n, &s);
    FWD_FAIL_IF(s.fault, FWD_ECORRUPT, err, "%s:%d: %s", file, s.line, s.fault);
    struct par_json *doc = fwd_calloc(1, sizeof *doc);
    FWD_FAIL_IF(!doc, FWD_ENOMEM, err, "%s: no memory", file);
    doc->n = n;
    doc->text = fwd_strndup(text, n);
    doc->file = fwd_strdup(file);
    doc->root = doc->text && doc->file ? cJSON_ParseWithLength(doc->text, n) : NULL;
    enum fwd_status rc;
    if (!doc->root) /* the scanner accepted the text: only memory can be short */
        rc = fwd_fail(err, FWD_ENOMEM, __FILE__, __LINE__, "%s: no memory for the tree of %zu bytes", file, n);
    else
        rc = check_names(doc, doc->root, err);
    if (rc != FWD_OK) {
        par_json_free(doc);
        return rc;
    }
    *out = doc;
    return FWD_OK;
}

enum fwd_status par_json_read(struct par_json **out, const char *path, size_t max_bytes, struct fwd_error *err) {
    *out = NULL;
    FILE *f = fopen(path, "rb");
    FWD_FAIL_IF(!f, errno == ENOENT ? FWD_ENOTFOUND : FWD_EIO, err, "%s: %s", path, strerror(errno));
    size_t room = 1 << 16, n = 0;
    char *text = fwd_alloc(room, 1);
    enum fwd_status rc = FWD_OK;
    while (text) {
        n += fread(text + n, 1, room - n, f);
        if (n < room || n > max_bytes)
            break;
        char *grown = fwd_realloc(text, n, 2, room);
        if (!grown) {
            fwd_free(text);
            text = NULL;
            break;
        }
        text = grown;
        room *= 2;
    }
    if (!text)
        rc = fwd_fail(err, FWD_ENOMEM, __FILE__, __LINE__, "%s: no memory", path);
    else if (ferror(f))
        rc = fwd_fail(err, FWD_EIO, __FILE__, __LINE__, "%s: read failed", path);
    else if (n > max_bytes)
        rc = fwd_fail(err, FWD_ERANGE, __FILE__, __LINE__, "%s: longer than %zu bytes", path, max_bytes);
    (void)fclose(f);
    if (rc == FWD_OK)
        rc = par_json_parse(out, text, n, path, err);
    fwd_free(text);
    return rc;
}

void par_json_free(struct par_json *doc) {
    if (!doc)
        return;
    cJSON_Delete(doc->root);
    fwd_free(doc->text);
    fwd_free(doc->file);
    fwd_free(doc);
}

const struct cJSON *par_json_root(const struct par_json *doc) {
    return doc->root;
}

const char *par_json_file(const struct par_json *doc) {
    return doc->file;
}

const struct cJSON *par_json_first(const struct cJSON *node) {
    return node ? node->child : NULL;
}

const struct cJSON *par_json_next(const struct cJSON *node) {
    return node ? node->next : NULL;
}

const char *par_json_name(const struct cJSON *node) {
    return node->string;
}

bool par_json_is_object(const struct cJSON *node) {
    return cJSON_IsObject(node);
}

bool par_json_is_array(const struct cJSON *node) {
    return cJSON_IsArray(node);
}

const char *par_json_text(const struct cJSON *node) {
    return cJSON_IsString(node) ? node->valuestring : NULL;
}

bool par_json_number(const struct cJSON *node, double *out) {
    if (!cJSON_IsNumber(node))
        return false;
    *out = node->valuedouble;
    return true;
}

bool par_json_int(const struct cJSON *node, int64_t *out) {
    double value;
    if (!par_json_number(node, &value) || !(fabs(value) <= 0x1p53) || value != floor(value))
        return false;
    *out = (int64_t)value;
    return true;
}

bool par_json_truth(const struct cJSON *node, bool *out) {
    if (!cJSON_IsBool(node))
        return false;
    *out = cJSON_IsTrue(node);
    return true;
}

/* What a node is, for messages. */
static const char *kind_of(const cJSON *node) {
    return cJSON_IsObject(node)   ? "an object"
           : cJSON_IsArray(node)  ? "an array"
           : cJSON_IsString(node) ? "a string"
           : cJSON_IsNumber(node) ? "a number"
           : cJSON_IsBool(node)   ? "a truth value"
                                  : "null";
}

enum fwd_status par_json_keys_only(const struct par_json *doc, const struct cJSON *object, const char *const *allowed,
                                   struct fwd_error *err) {
    if (!cJSON_IsObject(object))
        return par_json_fail(doc, object, err, "an object was expected, not %s", kind_of(object));
    for (const cJSON *member = object->child; member; member = member->next) {
        const char *const *name = allowed;
        while (*name && strcmp(*name, member->string) != 0)
            name++;
        if (!*name)
            return par_json_fail(doc, member, err, "unknown key \"%.100s\"", member->string);
    }
    return FWD_OK;
}

const struct cJSON *par_json_get(const struct cJSON *object, const char *key) {
    return cJSON_GetObjectItemCaseSensitive(object, key);
}

/* The member `key`, which must be there. */
static enum fwd_status require(const struct par_json *doc, const cJSON *object, const char *key, const cJSON **out,
                               struct fwd_error *err) {
    *out = par_json_get(object, key);
    return *out ? FWD_OK : par_json_fail(doc, object, err, "the key \"%s\" is missing", key);
}

static enum fwd_status wrong_kind(const struct par_json *doc, const cJSON *node, const char *expected,
                                  struct fwd_error *err) {
    return par_json_fail(doc, node, err, "\"%s\" is %s, expected %s", node->string, kind_of(node), expected);
}

enum fwd_status par_json_get_text(const struct par_json *doc, const struct cJSON *object, const char *key,
                                  const char **out, struct fwd_error *err) {
    const cJSON *node;
    FWD_TRY(require(doc, object, key, &node, err));
    *out = par_json_text(node);
    return *out ? FWD_OK : wrong_kind(doc, node, "a string", err);
}

enum fwd_status par_json_get_array(const struct par_json *doc, const struct cJSON *object, const char *key,
                                   const struct cJSON **out, struct fwd_error *err) {
    FWD_TRY(require(doc, object, key, out, err));
    return cJSON_IsArray(*out) ? FWD_OK : wrong_kind(doc, *out, "an array", err);
}

enum fwd_status par_json_get_object(const struct par_json *doc, const struct cJSON *object, const char *key,
                                    const struct cJSON **out, struct fwd_error *err) {
    FWD_TRY(require(doc, object, key, out, err));
    return cJSON_IsObject(*out) ? FWD_OK : wrong_kind(doc, *out, "an object", err);
}

enum fwd_status par_json_get_int(const struct par_json *doc, const struct cJSON *object, const char *key, int64_t low,
                                 int64_t high, int64_t *out, struct fwd_error *err) {
    const cJSON *node;
    FWD_TRY(require(doc, object, key, &node, err));
    if (!par_json_int(node, out))
        return wrong_kind(doc, node, "a whole number", err);
    if (*out < low || *out > high)
        return par_json_fail(doc, node, err, "\"%s\" is %lld, expected %lld to %lld", key, (long long)*out,
                             (long long)low, (long long)high);
    return FWD_OK;
}

enum fwd_status par_json_get_bool(const struct par_json *doc, const struct cJSON *object, const char *key, bool *out,
                                  struct fwd_error *err) {
    const cJSON *node;
    FWD_TRY(require(doc, object, key, &node, err));
    return par_json_truth(node, out) ? FWD_OK : wrong_kind(doc, node, "true or false", err);
}

enum fwd_status par_json_get_u64(const struct par_json *doc, const struct cJSON *object, const char *key, uint64_t *out,
                                 struct fwd_error *err) {
    const char *text;
    FWD_TRY(par_json_get_text(doc, object, key, &text, err));
    int base = text[0] == '0' && text[1] == 'x' ? 16 : 10;
    const char *digits = base == 16 ? text + 2 : text;
    char *end = NULL;
    errno = 0;
    unsigned long long value = strtoull(digits, &end, base);
    bool first_ok = (*digits >= '0' && *digits <= '9') || (base == 16 && strchr("abcdefABCDEF", *digits) && *digits);
    if (!first_ok || (base == 16 && digits[1] == 'x') || *end || errno)
        return par_json_fail(doc, par_json_get(object, key), err,
                             "\"%s\" is \"%.60s\", expected digits of a 64-bit number", key, text);
    *out = value;
    return FWD_OK;
}

enum fwd_status par_json_get_f64_hex(const struct par_json *doc, const struct cJSON *object, const char *key,
                                     double *out, struct fwd_error *err) {
    const cJSON *node;
    FWD_TRY(require(doc, object, key, &node, err));
    if (par_json_number(node, out))
        return FWD_OK;
    const char *text = par_json_text(node);
    if (!text)
        return wrong_kind(doc, node, "a number or a string like \"0x1.8p+1\"", err);
    const char *digits = text + (*text == '-');
    bool named = !strcmp(digits, "inf") || !strcmp(digits, "nan");
    char *end = NULL;
    *out = strtod(text, &end);
    if ((!named && (digits[0] != '0' || digits[1] != 'x')) || *end || end == text)
        return par_json_fail(doc, node, err, "\"%s\" is \"%.60s\", expected the form \"0x1.8p+1\"", key, text);
    return FWD_OK;
}
