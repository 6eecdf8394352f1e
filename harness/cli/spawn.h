/* harness/cli/spawn.h: this program again, in a process of its own: nothing that this one did can be in it. */
#ifndef HARNESS_CLI_SPAWN_H
#define HARNESS_CLI_SPAWN_H

#include "engine.h"

struct par_spawned {
    int exit_code;
    char *out; /* what it wrote on stdout, NUL-terminated (fwd_free) */
    size_t n_out;
};
/* Runs this program with the words args[0 .. up to NULL] after its name, stdin and stderr closed to it, and waits.
 * After max_seconds it is killed: FWD_EIO, as for one that a signal ended or that says more than 16 MiB. */
enum fwd_status par_spawn_self(const char *const *args, double max_seconds, struct par_spawned *out,
                               struct fwd_error *err);

/* A par_case_verify_fn (localise/case.h): `parity replay PATH` in a fresh process must be red for the recorded reason.
 * ud: NULL. */
enum fwd_status par_verify_case(void *ud, const char *path, struct fwd_error *err);

#endif
