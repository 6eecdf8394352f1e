#include "report/json_put.h"

#include "report/report_escape.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static bool put_item(cJSON *o, const char *key, cJSON *item) {
    if (item && cJSON_AddItemToObject(o, key, item))
        return true;
    cJSON_Delete(item);
    return false;
}

bool par_put_text(cJSON *o, const char *key, const char *s) {
    if (!s)
        return put_item(o, key, cJSON_CreateNull());
    char *clean = par_utf8_clean(s);
    bool ok = clean && put_item(o, key, cJSON_CreateString(clean));
    fwd_free(clean);
    return ok;
}

bool par_put_bool(cJSON *o, const char *key, bool b) {
    return put_item(o, key, cJSON_CreateBool(b));
}

bool par_put_int(cJSON *o, const char *key, int64_t x) {
    char buf[32];
    (void)snprintf(buf, sizeof buf, "%lld", (long long)x);
    return put_item(o, key, cJSON_CreateRaw(buf));
}

bool par_put_count(cJSON *o, const char *key, uint64_t x) {
    char buf[32];
    (void)snprintf(buf, sizeof buf, "%llu", (unsigned long long)x);
    return put_item(o, key, cJSON_CreateRaw(buf));
}

bool par_put_hash(cJSON *o, const char *key, uint64_t x) {
    char buf[32];
    (void)snprintf(buf, sizeof buf, "0x%016llx", (unsigned long long)x);
    return put_item(o, key, cJSON_CreateString(buf));
}

static const char *nonfinite_name(double x) {
    return isnan(x) ? "NaN" : x > 0 ? "Infinity" : "-Infinity";
}

bool par_put_real(cJSON *o, const char *key, double x) {
    char buf[40];
    if (!isfinite(x))
        return put_item(o, key, cJSON_CreateString(nonfinite_name(x)));
    (void)snprintf(buf, sizeof buf, "%.17g", x);
    return put_item(o, key, cJSON_CreateRaw(buf));
}

bool par_put_exact(cJSON *o, const char *key, double x) {
    char hex_key[64], buf[40];
    (void)snprintf(hex_key, sizeof hex_key, "%s_hex", key);
    (void)snprintf(buf, sizeof buf, "%a", x);
    return par_put_real(o, key, x) && put_item(o, hex_key, cJSON_CreateString(isfinite(x) ? buf : nonfinite_name(x)));
}

cJSON *par_put_array(cJSON *o, const char *key) {
    return cJSON_AddArrayToObject(o, key);
}

cJSON *par_put_object(cJSON *o, const char *key) {
    return cJSON_AddObjectToObject(o, key);
}

cJSON *par_push_object(cJSON *array) {
    cJSON *o = cJSON_CreateObject();
    if (o && array && cJSON_AddItemToArray(array, o))
        return o;
    cJSON_Delete(o);
    return NULL;
}

bool par_put_metrics(cJSON *o, const struct par_metrics *m) {
    return o && par_put_count(o, "n", m->n) && par_put_count(o, "n_nan_ref", m->n_nan_ref) &&
           par_put_count(o, "n_nan_got", m->n_nan_got) && par_put_count(o, "n_inf_ref", m->n_inf_ref) &&
           par_put_count(o, "n_inf_got", m->n_inf_got) &&
           par_put_count(o, "n_nonfinite_mismatch", m->n_nonfinite_mismatch) &&
           par_put_exact(o, "max_abs", m->max_abs) && par_put_int(o, "max_at", m->max_at) &&
           par_put_exact(o, "max_ref", m->max_ref) && par_put_exact(o, "max_got", m->max_got) &&
           par_put_real(o, "rel_l2", m->rel_l2) && par_put_real(o, "nmse", m->nmse) &&
           par_put_real(o, "cosine", m->cosine) && par_put_real(o, "p50", m->p50) && par_put_real(o, "p99", m->p99) &&
           par_put_real(o, "p999", m->p999);
}

char *par_put_finish(cJSON *root, bool ok) {
    char *copy = NULL;
    char *text = ok ? cJSON_Print(root) : NULL;
    if (text)
        copy = fwd_alloc(strlen(text) + 2, 1);
    if (copy) {
        size_t n = strlen(text);
        memcpy(copy, text, n);
        copy[n] = '\n';
        copy[n + 1] = 0;
    }
    cJSON_free(text);
    cJSON_Delete(root);
    return copy;
}
