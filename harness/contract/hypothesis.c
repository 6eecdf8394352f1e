/* harness/contract/hypothesis.c: see hypothesis.h. */
#include "contract/hypothesis.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_FILE_BYTES = 1 << 20, MAX_HYPOTHESES = 256 };

struct evaluation {
    const char *dir, *command;
    struct par_figures *figures;
    struct par_report *report;
};

static enum fwd_status append(struct par_report *report, const struct par_report_hypothesis *row,
                              struct fwd_error *err) {
    int n = report->n_hypotheses;
    struct par_report_hypothesis *rows = par_text_alloc(report->text, (size_t)(n + 1) * sizeof *rows);
    FWD_FAIL_IF(!rows, FWD_ENOMEM, err, "hypotheses: no memory");
    if (n)
        memcpy(rows, report->hypotheses, (size_t)n * sizeof *rows);
    rows[n] = *row;
    report->hypotheses = rows;
    report->n_hypotheses = n + 1;
    return FWD_OK;
}

static enum fwd_status eval_document(const struct evaluation *e, const struct par_json *doc, struct fwd_error *err) {
    static const char *const keys[] = {"id",           "title",           "predicts",        "supported_if",
                                       "falsified_if", "untested_unless", "command_options", NULL};
    static const char *const conditions[] = {"untested_unless", "supported_if", "falsified_if"};
    const struct cJSON *root = par_json_root(doc), *nodes[3];
    const char *id, *title, *predicts, *options;
    FWD_TRY(par_json_keys_only(doc, root, keys, err));
    FWD_TRY(par_json_get_text(doc, root, "id", &id, err));
    FWD_TRY(par_json_get_text(doc, root, "title", &title, err));
    FWD_TRY(par_json_get_text(doc, root, "predicts", &predicts, err));
    FWD_TRY(par_json_get_text(doc, root, "command_options", &options, err));
    if (!*predicts)
        return par_json_fail(doc, root, err, "hypothesis %s: \"predicts\" is empty, expected its prediction", id);
    for (int i = 0; i < 3; i++) {
        FWD_TRY(par_json_get_object(doc, root, conditions[i], &nodes[i], err));
        FWD_TRY(par_condition_check(doc, nodes[i], err));
    }
    for (int i = 0; i < e->report->n_hypotheses; i++)
        if (!strcmp(e->report->hypotheses[i].id, id))
            return par_json_fail(doc, root, err, "hypothesis %s: the id was seen before in this folder", id);
    char why[3][512] = {"", "", ""};
    enum par_truth truth[3];
    for (int i = 0; i < 3; i++)
        truth[i] = par_condition_eval(nodes[i], e->figures, why[i], sizeof why[i]);
    int decided = truth[0] != PAR_TRUE ? 0 : truth[1] == PAR_TRUE ? 1 : truth[2] == PAR_TRUE ? 2 : 0;
    static const char *const verdicts[] = {"UNTESTED", "SUPPORTED", "FALSIFIED"};
    struct par_text *text = e->report->text;
    struct par_report_hypothesis row = {.id = par_text_printf(text, "%s", id),
                                        .title = par_text_printf(text, "%s", title),
                                        .verdict = verdicts[decided],
                                        .evidence = par_text_printf(text, "%s",
                                                                    decided                ? why[decided]
                                                                    : truth[0] == PAR_TRUE ? why[1]
                                                                                           : why[0]),
                                        .command =
                                            par_text_printf(text, "%s%s%s", e->command, *options ? " " : "", options)};
    char figure[96];
    (void)snprintf(figure, sizeof figure, "hypothesis.%s.supported", id);
    par_figures_set(e->figures, figure, decided == 1);
    return append(e->report, &row, err);
}

static enum fwd_status eval_file(const struct evaluation *e, const char *name, struct fwd_error *err) {
    char path[4096];
    struct par_json *doc;
    int len = snprintf(path, sizeof path, "%s/%s", e->dir, name);
    FWD_FAIL_IF(len < 0 || len >= (int)sizeof path, FWD_EINPUT, err, "hypotheses: the path %s/%s is too long", e->dir,
                name);
    FWD_TRY(par_json_read(&doc, path, MAX_FILE_BYTES, err));
    enum fwd_status rc = eval_document(e, doc, err);
    par_json_free(doc);
    return rc;
}

static int is_json(const struct dirent *entry) {
    size_t n = strlen(entry->d_name);
    return n > 5 && entry->d_name[0] != '.' && !strcmp(entry->d_name + n - 5, ".json");
}

enum fwd_status par_hypotheses_eval(const char *dir, const char *command, struct par_figures *figures,
                                    struct par_report *report, struct fwd_error *err) {
    struct evaluation e = {dir, command, figures, report};
    struct dirent **names;
    int n = scandir(dir, &names, is_json, alphasort);
    FWD_FAIL_IF(n < 0, FWD_ENOTFOUND, err, "hypotheses folder %s: %s", dir, strerror(errno));
    enum fwd_status rc =
        n == 0 || n > MAX_HYPOTHESES
            ? fwd_fail(err, FWD_EMISSING, __FILE__, __LINE__, "hypotheses folder %s: %d files, expected 1 to %d *.json",
                       dir, n, MAX_HYPOTHESES)
            : FWD_OK;
    for (int i = 0; i < n; i++) {
        if (rc == FWD_OK)
            rc = eval_file(&e, names[i]->d_name, err);
        free(names[i]);
    }
    free((void *)names);
    return rc;
}
