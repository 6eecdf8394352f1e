/* The texts of planted faults, from a case file to overrides and hooks of the replaying session. */
#include "localise/replay_faults.h"

#include <stdio.h>
#include <string.h>

static enum fwd_status place_one(struct replay_faults *out, const char *text, const struct par_case *c,
                                 bool shared_only, const struct par_case_model *m, const struct fwd_knobs *knobs,
                                 struct fwd_error *err) {
    struct par_fault *f = &out->faults[out->n];
    FWD_TRY(par_fault_parse(text, f, err));
    if (!par_fault_in(f, c->role) || (shared_only && !f->row->shared))
        return FWD_OK;
    FWD_FAIL_IF(out->n + 1 == REPLAY_FAULTS, FWD_ERANGE, err, "case: more than %d planted faults", REPLAY_FAULTS - 1);
    f->n_prompt = c->n_prompt;
    f->path = fwd_path_find(c->path);
    out->n++;
    return par_fault_place(f, m->file, par_spec_config(m->spec), knobs, err);
}

enum fwd_status replay_faults_place(struct replay_faults *out, const struct par_case *c, bool shared_only,
                                    const struct par_case_model *m, const struct fwd_knobs *knobs,
                                    struct fwd_error *err) {
    char all[sizeof c->faults], *rest = all;
    *out = (struct replay_faults){0};
    memcpy(all, c->faults, sizeof all);
    for (char *text; (text = strtok_r(rest, ",", &rest)) != NULL;)
        FWD_TRY(place_one(out, text, c, shared_only, m, knobs, err));
    return FWD_OK;
}

static void hook_config(void *ud, struct fwd_config *config) {
    struct replay_faults *f = ud;
    for (int i = 0; i < f->n; i++)
        par_fault_hook_config(&f->faults[i], config);
}

static void hook_model(void *ud, struct fwd_model *model) {
    struct replay_faults *f = ud;
    for (int i = 0; i < f->n; i++)
        par_fault_hook_model(&f->faults[i], model);
}

static bool hook_plan(void *ud, struct fwd_plan_fault *out) {
    struct replay_faults *f = ud;
    for (int i = 0; i < f->n; i++)
        if (par_fault_hook_plan(&f->faults[i], out))
            return true;
    return false;
}

void replay_faults_hook(struct replay_faults *f, struct fwd_knobs *knobs) {
    if (f->n == 0)
        return;
    knobs->config_hook = hook_config;
    knobs->model_hook = hook_model;
    knobs->plan_hook = hook_plan;
    knobs->config_hook_ud = knobs->model_hook_ud = knobs->plan_hook_ud = f;
}

enum fwd_status replay_faults_plant(struct replay_faults *f, const struct fwd_path *path, struct fwd_session *session,
                                    struct fwd_error *err) {
    for (int i = 0; i < f->n; i++)
        FWD_TRY(par_fault_plant(&f->faults[i], path, session, err));
    return FWD_OK;
}

void replay_faults_text(const struct replay_faults *f, char *buf, size_t n) {
    size_t used = 0;
    buf[0] = 0;
    for (int i = 0; i < f->n && used < n; i++) {
        char one[160];
        used += (size_t)snprintf(buf + used, n - used, "%s%s", i ? "," : "",
                                 par_fault_describe(&f->faults[i], one, sizeof one));
    }
}

void replay_faults_free(struct replay_faults *f) {
    for (int i = 0; i < f->n; i++)
        par_fault_free(&f->faults[i]);
    f->n = 0;
}
