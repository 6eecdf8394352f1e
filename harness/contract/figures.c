/* harness/contract/figures.c: see figures.h. */
#include "contract/figures.h"

#include "contract/vocabulary.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_NAME = 96, MAX_DEPTH = 16 };

struct figure {
    char name[MAX_NAME];
    double value;
};

struct par_figures {
    struct figure *rows;
    int n, cap;
    bool failed;
};

struct par_figures *par_figures_create(void) {
    return fwd_calloc(1, sizeof(struct par_figures));
}

void par_figures_free(struct par_figures *f) {
    if (f)
        fwd_free(f->rows);
    fwd_free(f);
}

static struct figure *find(const struct par_figures *f, const char *name) {
    for (int i = 0; i < f->n; i++)
        if (!strcmp(f->rows[i].name, name))
            return &f->rows[i];
    return NULL;
}

void par_figures_set(struct par_figures *f, const char *name, double value) {
    struct figure *row = find(f, name);
    if (!row) {
        if (f->n == f->cap) {
            int cap = f->cap ? 2 * f->cap : 64;
            struct figure *rows = fwd_realloc(f->rows, (size_t)f->n * sizeof *rows, (size_t)cap, sizeof *rows);
            if (!rows) {
                f->failed = true;
                return;
            }
            f->rows = rows;
            f->cap = cap;
        }
        row = &f->rows[f->n++];
        (void)snprintf(row->name, sizeof row->name, "%s", name);
    }
    row->value = value;
}

bool par_figures_ok(const struct par_figures *f) {
    return !f->failed;
}

bool par_figures_get(const struct par_figures *f, const char *name, double *value) {
    const struct figure *row = find(f, name);
    if (row)
        *value = row->value;
    return row != NULL;
}

bool par_figures_at(const struct par_figures *f, int i, const char **name, double *value) {
    if (i < 0 || i >= f->n)
        return false;
    *name = f->rows[i].name;
    *value = f->rows[i].value;
    return true;
}

/* ---- conditions ---- */

static const char *const relations[] = {"<", "<=", "=", "!=", ">=", ">"};

static int relation_of(const char *text) {
    for (int i = 0; i < (int)(sizeof relations / sizeof *relations); i++)
        if (!strcmp(relations[i], text))
            return i;
    return -1;
}

static enum fwd_status check(const struct par_json *doc, const struct cJSON *node, int depth, struct fwd_error *err) {
    static const char *const leaf_keys[] = {"figure", "is", "value", NULL};
    static const char *const groups[] = {"all", "any"};
    if (depth > MAX_DEPTH)
        return par_json_fail(doc, node, err, "condition: more than %d levels deep", MAX_DEPTH);
    for (int i = 0; i < 2; i++) {
        const struct cJSON *list = par_json_get(node, groups[i]);
        if (!list)
            continue;
        const char *const only[] = {groups[i], NULL};
        FWD_TRY(par_json_keys_only(doc, node, only, err));
        FWD_TRY(par_json_get_array(doc, node, groups[i], &list, err));
        if (!par_json_first(list))
            return par_json_fail(doc, node, err, "condition: \"%s\" is empty, expected at least one condition",
                                 groups[i]);
        for (const struct cJSON *item = par_json_first(list); item; item = par_json_next(item))
            FWD_TRY(check(doc, item, depth + 1, err));
        return FWD_OK;
    }
    if (par_json_is_object(node) && par_json_get(node, "not")) {
        static const char *const only[] = {"not", NULL};
        FWD_TRY(par_json_keys_only(doc, node, only, err));
        return check(doc, par_json_get(node, "not"), depth + 1, err);
    }
    const char *text;
    double value;
    FWD_TRY(par_json_keys_only(doc, node, leaf_keys, err));
    FWD_TRY(par_json_get_text(doc, node, "figure", &text, err));
    if (strlen(text) >= MAX_NAME || !*text)
        return par_json_fail(doc, node, err, "condition: figure name of %zu characters, expected 1 to %d", strlen(text),
                             MAX_NAME - 1);
    if (!par_vocabulary_has(text))
        return par_json_fail(doc, node, err, "condition: no figure \"%s\", the nearest is %s (parity contract figures)",
                             text, par_vocabulary_nearest(text));
    FWD_TRY(par_json_get_text(doc, node, "is", &text, err));
    if (relation_of(text) < 0)
        return par_json_fail(doc, node, err, "condition: \"is\" is \"%s\", expected < <= = != >= or >", text);
    return par_json_get_f64_hex(doc, node, "value", &value, err);
}

enum fwd_status par_condition_check(const struct par_json *doc, const struct cJSON *node, struct fwd_error *err) {
    return check(doc, node, 0, err);
}

static void note(char *why, size_t n, const char *text) {
    size_t used = strlen(why);
    if (used + 1 < n)
        (void)snprintf(why + used, n - used, "%s%s", used ? "; " : "", text);
}

static enum par_truth compare(const struct cJSON *node, const struct par_figures *f, char *why, size_t n) {
    const char *name = par_json_text(par_json_get(node, "figure"));
    const char *is = par_json_text(par_json_get(node, "is"));
    double want = 0, got = 0;
    char line[256];
    (void)par_json_number(par_json_get(node, "value"), &want);
    if (!par_figures_get(f, name, &got) || isnan(got)) {
        (void)snprintf(line, sizeof line, "%s not measured", name);
        note(why, n, line);
        return PAR_UNKNOWN;
    }
    (void)snprintf(line, sizeof line, "%s = %.6g (%s %.6g)", name, got, is, want);
    note(why, n, line);
    switch (relation_of(is)) {
    case 0:
        return got < want ? PAR_TRUE : PAR_FALSE;
    case 1:
        return got <= want ? PAR_TRUE : PAR_FALSE;
    case 2:
        return !(got < want) && !(got > want) ? PAR_TRUE : PAR_FALSE;
    case 3:
        return got < want || got > want ? PAR_TRUE : PAR_FALSE;
    case 4:
        return got >= want ? PAR_TRUE : PAR_FALSE;
    case 5:
        return got > want ? PAR_TRUE : PAR_FALSE;
    default:
        return PAR_UNKNOWN;
    }
}

enum par_truth par_condition_eval(const struct cJSON *node, const struct par_figures *f, char *why, size_t n) {
    const struct cJSON *all = par_json_get(node, "all"), *any = par_json_get(node, "any");
    const struct cJSON *negated = par_json_get(node, "not");
    if (negated) {
        enum par_truth t = par_condition_eval(negated, f, why, n);
        return t == PAR_UNKNOWN ? t : t == PAR_TRUE ? PAR_FALSE : PAR_TRUE;
    }
    if (!all && !any)
        return compare(node, f, why, n);
    enum par_truth result = all ? PAR_TRUE : PAR_FALSE;
    enum par_truth decisive = all ? PAR_FALSE : PAR_TRUE;
    for (const struct cJSON *item = par_json_first(all ? all : any); item; item = par_json_next(item)) {
        enum par_truth t = par_condition_eval(item, f, why, n);
        if (t == decisive)
            result = decisive;
        else if (t == PAR_UNKNOWN && result != decisive)
            result = PAR_UNKNOWN;
    }
    return result;
}
