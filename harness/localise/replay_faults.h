/* harness/localise/replay_faults.h: the faults that were planted on purpose, planted again in a case's model. Internal
 * to harness/localise. */
#ifndef HARNESS_LOCALISE_REPLAY_FAULTS_H
#define HARNESS_LOCALISE_REPLAY_FAULTS_H

#include "localise/case.h"

enum { REPLAY_FAULTS = 8 };
struct replay_faults {
    struct par_fault faults[REPLAY_FAULTS];
    int n;
};
/* Those of the comma-separated text that belong in the case's path (shared_only: in every path), placed in its model.
 */
enum fwd_status replay_faults_place(struct replay_faults *out, const struct par_case *c, bool shared_only,
                                    const struct par_case_model *m, const struct fwd_knobs *knobs,
                                    struct fwd_error *err);
/* Sets the hooks of knobs; out must outlive the session. */
void replay_faults_hook(struct replay_faults *f, struct fwd_knobs *knobs);
enum fwd_status replay_faults_plant(struct replay_faults *f, const struct fwd_path *path, struct fwd_session *session,
                                    struct fwd_error *err);
/* The texts again, with commas. */
void replay_faults_text(const struct replay_faults *f, char *buf, size_t n);
void replay_faults_free(struct replay_faults *f);

#endif
