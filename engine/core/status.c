#include "core/status.h"

#include <stdarg.h>
#include <stdio.h>

const char *fwd_status_name(enum fwd_status code) {
    switch (code) {
    case FWD_OK:
        return "ok";
    case FWD_EINPUT:
        return "input";
    case FWD_ENOTFOUND:
        return "not found";
    case FWD_ERANGE:
        return "out of range";
    case FWD_ECORRUPT:
        return "corrupt";
    case FWD_ETRUNCATED:
        return "truncated";
    case FWD_ESHAPE:
        return "shape";
    case FWD_EMISSING:
        return "missing";
    case FWD_EUNSUPPORTED:
        return "unsupported";
    case FWD_EVERSION:
        return "version";
    case FWD_ETYPE:
        return "type";
    case FWD_EUNAVAILABLE:
        return "unavailable";
    case FWD_EIO:
        return "io";
    case FWD_ESTATE:
        return "state";
    case FWD_ESTOPPED:
        return "stopped";
    case FWD_ENOMEM:
        return "memory";
    case FWD_EDEVICE:
        return "device";
    }
    return "unknown";
}

enum fwd_status fwd_fail(struct fwd_error *err, enum fwd_status code, const char *file, int line, const char *fmt,
                         ...) {
    if (err) {
        va_list args;
        err->code = code;
        err->file = file;
        err->line = line;
        va_start(args, fmt);
        (void)vsnprintf(err->message, sizeof err->message, fmt, args);
        va_end(args);
    }
    return code;
}
