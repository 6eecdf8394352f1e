/* A child process, its standard output through a pipe, and a limit on both its time and its words. */
#include "cli/spawn.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

enum { MOST_WORDS = 64, MOST_OUT = 16 << 20, GROW = 1 << 16 };

static double seconds(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static enum fwd_status start(const char *const *args, int to, pid_t *pid, struct fwd_error *err) {
    char *words[MOST_WORDS + 2] = {(char *)(uintptr_t) "parity"};
    posix_spawn_file_actions_t actions;
    int n = 0;
    for (; args[n]; n++) {
        FWD_FAIL_IF(n == MOST_WORDS, FWD_EINPUT, err, "a fresh process: more than %d words", MOST_WORDS);
        words[n + 1] = (char *)(uintptr_t)args[n];
    }
    int e = posix_spawn_file_actions_init(&actions);
    if (e == 0) {
        e = posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
        if (e == 0)
            e = posix_spawn_file_actions_adddup2(&actions, to, STDOUT_FILENO);
        if (e == 0)
            e = posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
        if (e == 0)
            e = posix_spawn(pid, "/proc/self/exe", &actions, NULL, words, environ);
        (void)posix_spawn_file_actions_destroy(&actions);
    }
    FWD_FAIL_IF(e != 0, FWD_EIO, err, "a fresh process cannot be started: %s", strerror(e));
    return FWD_OK;
}

/* Adds what the pipe has; *over: it has ended. */
static enum fwd_status read_some(int fd, struct par_spawned *out, size_t *room, bool *over, struct fwd_error *err) {
    if (*room - out->n_out < 2) {
        char *grown = fwd_realloc(out->out, out->n_out, *room + GROW, 1);
        FWD_FAIL_IF(!grown, FWD_ENOMEM, err, "no memory for the output of a fresh process");
        out->out = grown;
        *room += GROW;
    }
    ssize_t n = read(fd, out->out + out->n_out, *room - out->n_out - 1);
    *over = n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN);
    out->n_out += n > 0 ? (size_t)n : 0;
    FWD_FAIL_IF(out->n_out > MOST_OUT, FWD_EIO, err, "a fresh process said more than %d MiB", MOST_OUT >> 20);
    return FWD_OK;
}

static enum fwd_status collect(int fd, double end, struct par_spawned *out, struct fwd_error *err) {
    size_t room = 0;
    for (bool over = false; !over;) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        double left = end - seconds();
        FWD_FAIL_IF(left <= 0, FWD_EIO, err, "a fresh process did not end in time");
        if (poll(&p, 1, left < 1 ? (int)(left * 1000) + 1 : 1000) > 0)
            FWD_TRY(read_some(fd, out, &room, &over, err));
    }
    if (out->out)
        out->out[out->n_out] = 0;
    return FWD_OK;
}

enum fwd_status par_spawn_self(const char *const *args, double max_seconds, struct par_spawned *out,
                               struct fwd_error *err) {
    int ends[2], status = 0;
    pid_t pid;
    *out = (struct par_spawned){0};
    FWD_FAIL_IF(pipe(ends) != 0, FWD_EIO, err, "a fresh process: no pipe: %s", strerror(errno));
    (void)fcntl(ends[0], F_SETFD, FD_CLOEXEC);
    (void)fcntl(ends[1], F_SETFD, FD_CLOEXEC); /* its copy at 1 stays open */
    enum fwd_status rc = start(args, ends[1], &pid, err);
    (void)close(ends[1]);
    if (rc == FWD_OK) {
        rc = collect(ends[0], seconds() + max_seconds, out, err);
        if (rc != FWD_OK)
            (void)kill(pid, SIGKILL);
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
            ;
    }
    (void)close(ends[0]);
    if (rc == FWD_OK && !WIFEXITED(status))
        rc = fwd_fail(err, FWD_EIO, __FILE__, __LINE__, "a fresh process was ended by signal %d", WTERMSIG(status));
    out->exit_code = rc == FWD_OK ? WEXITSTATUS(status) : -1;
    if (rc != FWD_OK) {
        fwd_free(out->out);
        out->out = NULL;
    }
    return rc;
}

enum fwd_status par_verify_case(void *ud, const char *path, struct fwd_error *err) {
    enum { VERIFY_SECONDS = 120 };
    const char *const args[] = {"replay", path, "--json", NULL};
    struct par_spawned s;
    (void)ud;
    FWD_TRY(par_spawn_self(args, VERIFY_SECONDS, &s, err));
    cJSON *root = s.out ? cJSON_Parse(s.out) : NULL;
    bool same = root && cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(root, "same_reason"));
    cJSON_Delete(root);
    fwd_free(s.out);
    FWD_FAIL_IF(!same, FWD_ESTATE, err, "in a fresh process it does not fail for the recorded reason (exit %d)",
                s.exit_code);
    return FWD_OK;
}
