/* engine/core/file_out.h: a file that appears whole or not at all: temporary name, write, fsync, rename. */
#ifndef ENGINE_CORE_FILE_OUT_H
#define ENGINE_CORE_FILE_OUT_H

#include "core/status.h"

#include <stddef.h>
#include <stdint.h>

struct fwd_file_out;

/* Opens PATH.tmp.PID for writing; the error names PATH. A PATH that is a device or a pipe is opened itself: it gets the
 * bytes as they come. A folder is refused. */
enum fwd_status fwd_file_out_begin(struct fwd_file_out **out, const char *path, struct fwd_error *err);
enum fwd_status fwd_file_out_write(struct fwd_file_out *f, const void *data, size_t n_bytes, struct fwd_error *err);
/* Bytes written so far. */
uint64_t fwd_file_out_size(const struct fwd_file_out *f);
/* fsync, rename to PATH, fsync of the folder. Frees f whatever the result; on failure the temporary file is gone. */
enum fwd_status fwd_file_out_commit(struct fwd_file_out *f, struct fwd_error *err);
/* Removes the temporary file and frees f; NULL is fine. */
void fwd_file_out_abort(struct fwd_file_out *f);
/* begin + write + commit. */
enum fwd_status fwd_file_write(const char *path, const void *data, size_t n_bytes, struct fwd_error *err);

#endif
