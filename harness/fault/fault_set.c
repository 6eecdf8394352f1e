#include "fault/fault_set.h"

#include <string.h>

enum fwd_status par_fault_set_parse(const char *text, struct par_fault *faults, int *n, struct fwd_error *err) {
    char one[256];
    *n = 0;
    while (text && *text) {
        size_t len = strcspn(text, ",");
        FWD_FAIL_IF(*n == PAR_MOST_FAULTS, FWD_EINPUT, err, "--fault: at most %d at a time", PAR_MOST_FAULTS);
        FWD_FAIL_IF(len >= sizeof one, FWD_EINPUT, err, "--fault: \"%.20s...\" is too long", text);
        memcpy(one, text, len);
        one[len] = 0;
        FWD_TRY(par_fault_parse(one, &faults[*n], err));
        (*n)++;
        text += len + (text[len] == ',');
    }
    return FWD_OK;
}

enum fwd_status par_fault_set_place(const struct par_fault_set *set, int n_prompt, const struct fwd_path *path,
                                    const struct fwd_gguf *file, const struct par_spec_config *config,
                                    const struct fwd_knobs *knobs, struct fwd_error *err) {
    for (int i = 0; i < set->n; i++) {
        set->faults[i].n_prompt = n_prompt;
        set->faults[i].path = path;
        FWD_TRY(par_fault_place(&set->faults[i], file, config, knobs, err));
    }
    return FWD_OK;
}

static void hook_config(void *ud, struct fwd_config *config) {
    const struct par_fault_set *set = ud;
    for (int i = 0; i < set->n; i++)
        par_fault_hook_config(&set->faults[i], config);
}

static void hook_model(void *ud, struct fwd_model *model) {
    const struct par_fault_set *set = ud;
    for (int i = 0; i < set->n; i++)
        par_fault_hook_model(&set->faults[i], model);
}

/* One plan has one fault: the first of them. */
static bool hook_plan(void *ud, struct fwd_plan_fault *out) {
    const struct par_fault_set *set = ud;
    for (int i = 0; i < set->n; i++)
        if (par_fault_hook_plan(&set->faults[i], out))
            return true;
    return false;
}

void par_fault_set_hook(struct par_fault_set *set, struct fwd_knobs *knobs) {
    knobs->config_hook = hook_config;
    knobs->config_hook_ud = set;
    knobs->model_hook = hook_model;
    knobs->model_hook_ud = set;
    knobs->plan_hook = hook_plan;
    knobs->plan_hook_ud = set;
}

enum fwd_status par_fault_set_plant(const struct par_fault_set *set, enum par_fault_role role,
                                    const struct fwd_path *path, struct fwd_session *session, struct fwd_error *err) {
    for (int i = 0; i < set->n; i++)
        if (par_fault_in(&set->faults[i], role))
            FWD_TRY(par_fault_plant(&set->faults[i], path, session, err));
    return FWD_OK;
}
