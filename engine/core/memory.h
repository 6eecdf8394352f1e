/* engine/core/memory.h: every allocation of engine and harness, 64-byte aligned and overflow-checked.
 * Tests make the n-th one fail with the linker's --wrap=posix_memalign. */
#ifndef ENGINE_CORE_MEMORY_H
#define ENGINE_CORE_MEMORY_H

#include <stddef.h>

#define FWD_ALIGN 64

/* n * size bytes, uninitialised; NULL when the product overflows or memory is out. n*size == 0 gives a valid pointer.
 */
void *fwd_alloc(size_t n, size_t size);
/* The same, zeroed. */
void *fwd_calloc(size_t n, size_t size);
/* Grows (or shrinks) to n * size bytes keeping min(old_bytes, n * size); on failure returns NULL and p stays valid. */
void *fwd_realloc(void *p, size_t old_bytes, size_t n, size_t size);
/* For long-lived memory of many megabytes: as fwd_alloc, but on 2 MiB boundaries and in huge pages where the system has
 * them, so that a stream through it does not stall on address translation. Freed by fwd_free. */
void *fwd_alloc_huge(size_t n_bytes);
char *fwd_strdup(const char *s);
/* len bytes of s and a final NUL. */
char *fwd_strndup(const char *s, size_t len);
void fwd_free(void *p);

#endif
