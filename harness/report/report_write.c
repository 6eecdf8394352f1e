/* The report's files, each whole or not at all. verdict.json goes first (an old one must not speak for a run whose
 * report could not be written) and comes last: when it is there, so are the others. */
#include "report/report.h"
#include "report/report_stream.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum fwd_status par_report_make_folder(const char *dir, struct fwd_error *err) {
    struct stat st;
    char *path = fwd_strdup(dir);
    FWD_FAIL_IF(!path, FWD_ENOMEM, err, "report folder %s: no memory for its name", dir);
    for (char *p = path + 1; path[0]; p++) { /* every parent, then the folder */
        char c = *p;
        if (c != '/' && c != 0)
            continue;
        *p = 0;
        if (mkdir(path, 0777) != 0 && errno != EEXIST && (c == 0 || (errno != EROFS && errno != EACCES))) {
            int e = errno;
            enum fwd_status rc = fwd_fail(err, FWD_EIO, __FILE__, __LINE__, "report folder %s cannot be made: %s: %s",
                                          dir, path, strerror(e));
            fwd_free(path);
            return rc;
        }
        *p = c;
        if (c == 0)
            break;
    }
    fwd_free(path);
    FWD_FAIL_IF(!dir[0] || stat(dir, &st) != 0, FWD_EIO, err, "report folder '%s' cannot be made: %s", dir,
                dir[0] ? strerror(errno) : "its name is empty");
    FWD_FAIL_IF(!S_ISDIR(st.st_mode), FWD_EIO, err, "report folder %s: a file of that name exists", dir);
    return FWD_OK;
}

static enum fwd_status remove_old(const char *dir, const char *name, struct fwd_error *err) {
    size_t n = strlen(dir) + strlen(name) + 2;
    char *path = fwd_alloc(n, 1);
    FWD_FAIL_IF(!path, FWD_ENOMEM, err, "%s/%s: no memory for its name", dir, name);
    (void)snprintf(path, n, "%s/%s", dir, name);
    int e = unlink(path) == 0 ? 0 : errno;
    fwd_free(path);
    FWD_FAIL_IF(e && e != ENOENT, FWD_EIO, err, "%s/%s cannot be replaced: %s", dir, name, strerror(e));
    return FWD_OK;
}

static char *text_of(const struct par_report *r) {
    struct par_stream s;
    par_stream_begin(&s);
    if (s.out)
        par_report_text(r, PAR_DETAIL_FULL, s.out);
    return par_stream_end(&s);
}

static enum fwd_status write_one(const struct par_report *r, const char *dir, const char *name,
                                 char *(*render)(const struct par_report *r), struct fwd_error *err) {
    size_t n = strlen(dir) + strlen(name) + 2;
    char *path = fwd_alloc(n, 1);
    char *text = render(r);
    enum fwd_status rc = FWD_ENOMEM;
    if (path && text) {
        (void)snprintf(path, n, "%s/%s", dir, name);
        rc = fwd_file_write(path, text, strlen(text), err);
    } else {
        (void)fwd_fail(err, rc, __FILE__, __LINE__, "%s/%s: no memory for its text", dir, name);
    }
    fwd_free(text);
    fwd_free(path);
    return rc;
}

enum fwd_status par_report_write(const struct par_report *r, const char *dir, struct fwd_error *err) {
    FWD_TRY(par_report_make_folder(dir, err));
    FWD_TRY(remove_old(dir, "verdict.json", err));
    FWD_TRY(write_one(r, dir, "report.txt", text_of, err));
    FWD_TRY(write_one(r, dir, "report.json", par_report_json, err));
    FWD_TRY(write_one(r, dir, "junit.xml", par_report_junit, err));
    FWD_TRY(write_one(r, dir, "report.md", par_report_markdown, err));
    return write_one(r, dir, "verdict.json", par_report_verdict_json, err);
}
