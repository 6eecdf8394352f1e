/* harness/fault/fault_set.h: the faults of one run as a set: hooks for what all paths share, overrides for the rest. */
#ifndef HARNESS_FAULT_FAULT_SET_H
#define HARNESS_FAULT_FAULT_SET_H

#include "fault/fault.h"

enum { PAR_MOST_FAULTS = 8 };
struct par_fault_set {
    struct par_fault *faults; /* borrowed */
    int n;
};
/* "NAME@..,NAME..": at most PAR_MOST_FAULTS into faults. NULL or "": none. */
enum fwd_status par_fault_set_parse(const char *text, struct par_fault *faults, int *n, struct fwd_error *err);
/* Places every one of them (par_fault_place). path: the candidate. */
enum fwd_status par_fault_set_place(const struct par_fault_set *set, int n_prompt, const struct fwd_path *path,
                                    const struct fwd_gguf *file, const struct par_spec_config *config,
                                    const struct fwd_knobs *knobs, struct fwd_error *err);
/* Puts the hooks of the shared ones and of the launch plan's into knobs; the set must outlive the sessions opened with
 * them. */
void par_fault_set_hook(struct par_fault_set *set, struct fwd_knobs *knobs);
/* Plants in an open session what belongs in one of that role. */
enum fwd_status par_fault_set_plant(const struct par_fault_set *set, enum par_fault_role role,
                                    const struct fwd_path *path, struct fwd_session *session, struct fwd_error *err);

#endif
