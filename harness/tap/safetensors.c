#include "tap/safetensors.h"

#include "report/json.h"
#include "report/report_escape.h"
#include "report/report_stream.h"

#include <stdlib.h>
#include <string.h>

static const struct dtype_row {
    const char *name;
    size_t n_bytes;
} dtypes[] = {{"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1}, {"I16", 2}, {"U16", 2}, {"F16", 2},
              {"BF16", 2}, {"I32", 4}, {"U32", 4}, {"F32", 4},     {"F64", 8},     {"I64", 8}, {"U64", 8}};

size_t par_st_dtype_bytes(const char *dtype) {
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
        if (!strcmp(dtypes[i].name, dtype))
            return dtypes[i].n_bytes;
    return 0;
}

/* ---- parsing --------------------------------------------------------------------------------------------------- */

static enum fwd_status parse_facts(struct par_st_header *h, const struct cJSON *object, struct fwd_error *err) {
    size_t n = 0;
    if (!par_json_is_object(object))
        return par_json_fail(h->json, object, err, "__metadata__ is no object");
    for (const struct cJSON *i = par_json_first(object); i; i = par_json_next(i))
        n++;
    h->facts = fwd_calloc(n, sizeof *h->facts);
    FWD_FAIL_IF(!h->facts, FWD_ENOMEM, err, "%s: no memory for %zu facts", par_json_file(h->json), n);
    for (const struct cJSON *i = par_json_first(object); i; i = par_json_next(i)) {
        const char *value = par_json_text(i);
        if (!value)
            return par_json_fail(h->json, i, err, "__metadata__.%s is no string", par_json_name(i));
        h->facts[h->n_facts++] = (struct par_st_fact){par_json_name(i), value};
    }
    return FWD_OK;
}

static enum fwd_status parse_tensor(const struct par_json *doc, const struct cJSON *object, struct par_st_tensor *t,
                                    uint64_t data_bytes, struct fwd_error *err) {
    static const char *const keys[] = {"dtype", "shape", "data_offsets", NULL};
    const struct cJSON *shape, *offsets;
    const char *dtype;
    int64_t bounds[2] = {-1, -1};
    int n_bounds = 0;
    t->name = par_json_name(object);
    FWD_TRY(par_json_keys_only(doc, object, keys, err));
    FWD_TRY(par_json_get_text(doc, object, "dtype", &dtype, err));
    FWD_TRY(par_json_get_array(doc, object, "shape", &shape, err));
    FWD_TRY(par_json_get_array(doc, object, "data_offsets", &offsets, err));
    uint64_t n_bytes = par_st_dtype_bytes(dtype);
    if (!n_bytes || strlen(dtype) >= sizeof t->dtype)
        return par_json_fail(doc, object, err, "tensor %s: dtype %.40s is not known", t->name, dtype);
    memcpy(t->dtype, dtype, strlen(dtype) + 1);
    for (const struct cJSON *i = par_json_first(shape); i; i = par_json_next(i)) {
        int64_t ne;
        if (t->n_dims == PAR_ST_DIMS || !par_json_int(i, &ne) || ne < 0 ||
            __builtin_mul_overflow(n_bytes, (uint64_t)ne, &n_bytes))
            return par_json_fail(doc, i, err,
                                 "tensor %s: shape is not at most %d non-negative integers of a possible "
                                 "product",
                                 t->name, PAR_ST_DIMS);
        t->shape[t->n_dims++] = ne;
    }
    for (const struct cJSON *i = par_json_first(offsets); i; i = par_json_next(i))
        if (n_bounds++ >= 2 || !par_json_int(i, &bounds[n_bounds - 1]))
            return par_json_fail(doc, i, err, "tensor %s: data_offsets are not two integers", t->name);
    if (bounds[0] < 0 || bounds[1] < bounds[0] || (uint64_t)bounds[1] > data_bytes)
        return par_json_fail(doc, object, err, "tensor %s: bytes %lld to %lld of %llu", t->name, (long long)bounds[0],
                             (long long)bounds[1], (unsigned long long)data_bytes);
    t->begin = (uint64_t)bounds[0];
    t->end = (uint64_t)bounds[1];
    if (t->end - t->begin != n_bytes)
        return par_json_fail(doc, object, err, "tensor %s: %llu bytes, its shape and type need %llu", t->name,
                             (unsigned long long)(t->end - t->begin), (unsigned long long)n_bytes);
    return FWD_OK;
}

static int compare_offsets(const void *a, const void *b) {
    const struct par_st_tensor *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    if (x->end != y->end)
        return x->end < y->end ? -1 : 1;
    return strcmp(x->name, y->name);
}

static enum fwd_status parse_all(struct par_st_header *h, uint64_t data_bytes, const char *file,
                                 struct fwd_error *err) {
    const struct cJSON *root = par_json_root(h->json);
    size_t n = 0;
    if (!par_json_is_object(root))
        return par_json_fail(h->json, root, err, "a safetensors header is an object");
    for (const struct cJSON *i = par_json_first(root); i; i = par_json_next(i))
        n++;
    h->tensors = fwd_calloc(n, sizeof *h->tensors);
    FWD_FAIL_IF(!h->tensors, FWD_ENOMEM, err, "%s: no memory for %zu tensors", file, n);
    for (const struct cJSON *i = par_json_first(root); i; i = par_json_next(i)) {
        if (!strcmp(par_json_name(i), "__metadata__"))
            FWD_TRY(parse_facts(h, i, err));
        else
            FWD_TRY(parse_tensor(h->json, i, &h->tensors[h->n_tensors++], data_bytes, err));
    }
    qsort(h->tensors, h->n_tensors, sizeof *h->tensors, compare_offsets);
    uint64_t at = 0;
    for (size_t i = 0; i < h->n_tensors; i++) {
        FWD_FAIL_IF(h->tensors[i].begin != at, FWD_ECORRUPT, err, "%s: tensor %s begins at byte %llu, expected %llu",
                    file, h->tensors[i].name, (unsigned long long)h->tensors[i].begin, (unsigned long long)at);
        at = h->tensors[i].end;
    }
    FWD_FAIL_IF(at != data_bytes, FWD_ECORRUPT, err, "%s: the tensors end at byte %llu of %llu", file,
                (unsigned long long)at, (unsigned long long)data_bytes);
    return FWD_OK;
}

enum fwd_status par_st_parse(struct par_st_header *out, const char *json, size_t n, uint64_t data_bytes,
                             const char *file, struct fwd_error *err) {
    struct par_st_header h = {0};
    FWD_TRY(par_json_parse(&h.json, json, n, file, err));
    enum fwd_status rc = parse_all(&h, data_bytes, file, err);
    if (rc != FWD_OK)
        par_st_fini(&h);
    else
        *out = h;
    return rc;
}

void par_st_fini(struct par_st_header *h) {
    fwd_free(h->tensors);
    fwd_free(h->facts);
    par_json_free(h->json);
    *h = (struct par_st_header){0};
}

/* ---- printing -------------------------------------------------------------------------------------------------- */

static void put_string(FILE *out, const char *s) {
    (void)fputc('"', out);
    for (const char *p = s; *p; p++) {
        if (*p == '"' || *p == '\\')
            (void)fprintf(out, "\\%c", *p);
        else if ((unsigned char)*p < 0x20)
            (void)fprintf(out, "\\u%04x", (unsigned)*p);
        else
            (void)fputc(*p, out);
    }
    (void)fputc('"', out);
}

static void put_header(FILE *out, const struct par_st_header *h) {
    const char *comma = "";
    (void)fputc('{', out);
    if (h->n_facts) {
        (void)fputs("\"__metadata__\":{", out);
        for (size_t i = 0; i < h->n_facts; i++) {
            (void)fputs(i ? "," : "", out);
            put_string(out, h->facts[i].key);
            (void)fputc(':', out);
            put_string(out, h->facts[i].value);
        }
        (void)fputc('}', out);
        comma = ",";
    }
    for (size_t i = 0; i < h->n_tensors; i++) {
        const struct par_st_tensor *t = &h->tensors[i];
        (void)fputs(comma, out);
        comma = ",";
        put_string(out, t->name);
        (void)fprintf(out, ":{\"dtype\":\"%s\",\"shape\":[", t->dtype);
        for (int d = 0; d < t->n_dims; d++)
            (void)fprintf(out, "%s%lld", d ? "," : "", (long long)t->shape[d]);
        (void)fprintf(out, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)t->begin, (unsigned long long)t->end);
    }
    (void)fputc('}', out);
}

enum fwd_status par_st_print(char **out, size_t *n_bytes, const struct par_st_header *h, struct fwd_error *err) {
    struct par_stream s;
    par_stream_begin(&s);
    if (s.out) {
        (void)fwrite("        ", 1, 8, s.out); /* the length goes here */
        put_header(s.out, h);
        (void)fflush(s.out);
        for (size_t n = s.n_bytes; n % 8; n++)
            (void)fputc(' ', s.out);
    }
    char *text = par_stream_end(&s);
    FWD_FAIL_IF(!text, FWD_ENOMEM, err, "no memory for the header of %zu tensors", h->n_tensors);
    uint64_t length = strlen(text) - 8;
    if (length > PAR_ST_MAX_HEADER) {
        fwd_free(text);
        FWD_FAIL(FWD_ERANGE, err, "a header of %llu bytes for %zu tensors, at most %d are possible",
                 (unsigned long long)length, h->n_tensors, PAR_ST_MAX_HEADER);
    }
    for (int i = 0; i < 8; i++)
        text[i] = (char)(length >> 8 * i & 0xff);
    *out = text;
    *n_bytes = (size_t)length + 8;
    return FWD_OK;
}
