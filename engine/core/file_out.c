#define _GNU_SOURCE
#include "core/file_out.h"

#include "core/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BUFFER_BYTES = 1 << 18 };

struct fwd_file_out {
    int fd;
    char *path;
    char *tmp_path;     /* "": path is a device or a pipe, and is written itself */
    uint64_t n_written; /* handed to write(2) or in the buffer */
    size_t n_held;
    unsigned char buffer[BUFFER_BYTES];
};

/* A rename over a device (/dev/null) would put a plain file in its place. */
static bool is_special(const char *path, bool *is_folder) {
    struct stat st;
    bool exists = stat(path, &st) == 0;
    *is_folder = exists && S_ISDIR(st.st_mode);
    return exists && !S_ISREG(st.st_mode);
}

enum fwd_status fwd_file_out_begin(struct fwd_file_out **out, const char *path, struct fwd_error *err) {
    bool is_folder, special = is_special(path, &is_folder);
    FWD_FAIL_IF(is_folder, FWD_EIO, err, "%s: cannot be written: is a folder, expected a file", path);
    struct fwd_file_out *f = fwd_alloc(1, sizeof *f);
    FWD_FAIL_IF(!f, FWD_ENOMEM, err, "%s: no memory for an output buffer", path);
    size_t n = strlen(path) + 32;
    f->n_written = 0;
    f->n_held = 0;
    f->fd = -1;
    f->path = fwd_strdup(path);
    f->tmp_path = fwd_alloc(n, 1);
    if (f->path && f->tmp_path) {
        f->tmp_path[0] = 0;
        if (!special)
            (void)snprintf(f->tmp_path, n, "%s.tmp.%ld", path, (long)getpid());
        f->fd = special ? open(path, O_WRONLY | O_CLOEXEC)
                        : open(f->tmp_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    }
    if (f->fd < 0) {
        int e = f->path && f->tmp_path ? errno : ENOMEM;
        fwd_free(f->path);
        fwd_free(f->tmp_path);
        fwd_free(f);
        FWD_FAIL(e == ENOMEM ? FWD_ENOMEM : FWD_EIO, err, "%s: cannot be written: %s", path, strerror(e));
    }
    *out = f;
    return FWD_OK;
}

static enum fwd_status write_all(struct fwd_file_out *f, const unsigned char *p, size_t n, struct fwd_error *err) {
    while (n) {
        ssize_t w = write(f->fd, p, n);
        if (w < 0 && errno == EINTR)
            continue;
        FWD_FAIL_IF(w <= 0, FWD_EIO, err, "%s: write of %zu bytes at offset %llu failed: %s", f->path, n,
                    (unsigned long long)(f->n_written - n), w < 0 ? strerror(errno) : "nothing was written");
        p += w;
        n -= (size_t)w;
    }
    return FWD_OK;
}

enum fwd_status fwd_file_out_write(struct fwd_file_out *f, const void *data, size_t n_bytes, struct fwd_error *err) {
    const unsigned char *p = data;
    if (n_bytes == 0)
        return FWD_OK;
    if (f->n_held + n_bytes > BUFFER_BYTES) {
        FWD_TRY(write_all(f, f->buffer, f->n_held, err));
        f->n_held = 0;
    }
    f->n_written += n_bytes;
    if (n_bytes > BUFFER_BYTES)
        return write_all(f, p, n_bytes, err);
    memcpy(f->buffer + f->n_held, p, n_bytes);
    f->n_held += n_bytes;
    return FWD_OK;
}

uint64_t fwd_file_out_size(const struct fwd_file_out *f) {
    return f->n_written;
}

static void remove_temporary(const struct fwd_file_out *f) {
    if (f->tmp_path[0])
        (void)unlink(f->tmp_path);
}

/* A rename is durable only once its folder is. */
static void sync_folder(const char *path) {
    char *copy = fwd_strdup(path);
    if (!copy)
        return;
    char *slash = strrchr(copy, '/');
    if (slash == copy)
        slash[1] = 0;
    else if (slash)
        *slash = 0;
    int fd = open(slash ? copy : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        (void)fsync(fd);
        (void)close(fd);
    }
    fwd_free(copy);
}

enum fwd_status fwd_file_out_commit(struct fwd_file_out *f, struct fwd_error *err) {
    enum fwd_status rc = write_all(f, f->buffer, f->n_held, err);
    f->n_held = 0;
    if (rc == FWD_OK && fsync(f->fd) != 0 && errno != EINVAL && errno != EROFS)
        rc = fwd_fail(err, FWD_EIO, __FILE__, __LINE__, "%s: fsync failed: %s", f->path, strerror(errno));
    if (close(f->fd) != 0 && rc == FWD_OK)
        rc = fwd_fail(err, FWD_EIO, __FILE__, __LINE__, "%s: close failed: %s", f->path, strerror(errno));
    f->fd = -1;
    if (rc == FWD_OK && f->tmp_path[0] && rename(f->tmp_path, f->path) != 0)
        rc = fwd_fail(err, FWD_EIO, __FILE__, __LINE__, "%s: rename from %s failed: %s", f->path, f->tmp_path,
                      strerror(errno));
    if (rc == FWD_OK)
        sync_folder(f->path);
    else
        remove_temporary(f);
    fwd_free(f->path);
    fwd_free(f->tmp_path);
    fwd_free(f);
    return rc;
}

void fwd_file_out_abort(struct fwd_file_out *f) {
    if (!f)
        return;
    (void)close(f->fd);
    remove_temporary(f);
    fwd_free(f->path);
    fwd_free(f->tmp_path);
    fwd_free(f);
}

enum fwd_status fwd_file_write(const char *path, const void *data, size_t n_bytes, struct fwd_error *err) {
    struct fwd_file_out *f;
    FWD_TRY(fwd_file_out_begin(&f, path, err));
    enum fwd_status rc = fwd_file_out_write(f, data, n_bytes, err);
    if (rc != FWD_OK) {
        fwd_file_out_abort(f);
        return rc;
    }
    return fwd_file_out_commit(f, err);
}
