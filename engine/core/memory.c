#include "core/memory.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

void *fwd_alloc(size_t n, size_t size) {
    size_t bytes;
    void *p = NULL;
    if (__builtin_mul_overflow(n, size, &bytes) || bytes > SIZE_MAX - FWD_ALIGN)
        return NULL;
    if (posix_memalign(&p, FWD_ALIGN, bytes ? bytes : FWD_ALIGN) != 0)
        return NULL;
    return p;
}

void *fwd_calloc(size_t n, size_t size) {
    void *p = fwd_alloc(n, size);
    if (p && n && size)
        memset(p, 0, n * size);
    return p;
}

void *fwd_realloc(void *p, size_t old_bytes, size_t n, size_t size) {
    void *q = fwd_alloc(n, size);
    if (!q)
        return NULL;
    if (p) {
        memcpy(q, p, old_bytes < n * size ? old_bytes : n * size);
        free(p);
    }
    return q;
}

char *fwd_strndup(const char *s, size_t len) {
    char *p = len == SIZE_MAX ? NULL : fwd_alloc(len + 1, 1);
    if (p) {
        memcpy(p, s, len);
        p[len] = 0;
    }
    return p;
}

char *fwd_strdup(const char *s) {
    return fwd_strndup(s, strlen(s));
}

void fwd_free(void *p) {
    free(p);
}
