#define _GNU_SOURCE
#include "core/memory.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

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

void *fwd_alloc_huge(size_t n_bytes) {
    const size_t huge = (size_t)2 << 20;
    void *p = NULL;
    if (n_bytes < huge)
        return fwd_alloc(n_bytes, 1);
    if (n_bytes > SIZE_MAX - huge || posix_memalign(&p, huge, n_bytes) != 0)
        return NULL;
    (void)madvise(p, n_bytes & ~(huge - 1), MADV_HUGEPAGE); /* only a hint: plain pages are as correct */
    return p;
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
