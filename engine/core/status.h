/* engine/core/status.h: the one error vocabulary of engine and harness.
 *
 * A fallible function returns enum fwd_status and takes a struct fwd_error * last (it may be NULL).
 * The message names the object, the actual and the expected value. Nothing here prints or exits. */
#ifndef ENGINE_CORE_STATUS_H
#define ENGINE_CORE_STATUS_H

enum fwd_status {
    FWD_OK = 0,
    /* 10s: what the caller asked for */
    FWD_EINPUT = 10,    /* an argument or option that makes no sense */
    FWD_ENOTFOUND = 11, /* a file, name or id that does not exist */
    FWD_ERANGE = 12,    /* a value outside its range (token id, position, context) */
    /* 20s: what a file said */
    FWD_ECORRUPT = 20,   /* bytes that contradict the format */
    FWD_ETRUNCATED = 21, /* bytes that end too early */
    FWD_ESHAPE = 22,     /* a dimension that is not the expected one */
    FWD_EMISSING = 23,   /* a tensor, key or member that must be there */
    /* 30s: understood, and not supported */
    FWD_EUNSUPPORTED = 30,
    FWD_EVERSION = 31,
    FWD_ETYPE = 32,
    FWD_EUNAVAILABLE = 33, /* this machine or build cannot run it */
    /* 40s: the system */
    FWD_EIO = 40,
    /* 60s: the order of calls */
    FWD_ESTATE = 60,
    FWD_ESTOPPED = 61, /* a callback asked to stop */
    /* 70s: memory */
    FWD_ENOMEM = 70,
    /* 80s: device */
    FWD_EDEVICE = 80
};

struct fwd_error {
    enum fwd_status code;
    int line;
    const char *file;
    char message[512];
};

/* A short lower-case name of the code ("corrupt", "missing", ...); never NULL. */
const char *fwd_status_name(enum fwd_status code);

/* Fills err (unless NULL) and returns code, so that `return fwd_fail(...)` is one line. */
enum fwd_status fwd_fail(struct fwd_error *err, enum fwd_status code, const char *file, int line, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));

#define FWD_FAIL(code, err, ...) return fwd_fail((err), (code), __FILE__, __LINE__, __VA_ARGS__)

#define FWD_FAIL_IF(cond, code, err, ...)                                                                              \
    do {                                                                                                               \
        if (cond)                                                                                                      \
            FWD_FAIL((code), (err), __VA_ARGS__);                                                                      \
    } while (0)

#define FWD_TRY(expr)                                                                                                  \
    do {                                                                                                               \
        enum fwd_status fwd_try_ = (expr);                                                                             \
        if (fwd_try_ != FWD_OK)                                                                                        \
            return fwd_try_;                                                                                           \
    } while (0)

#endif
