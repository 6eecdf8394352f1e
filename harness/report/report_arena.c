/* The report's string arena: blocks chained together, freed at once. */
#include "report/report.h"

#include <stdarg.h>
#include <string.h>

enum { BLOCK_BYTES = 1 << 16, TEXT_ALIGN = 16 };

struct text_block {
    struct text_block *next;
    size_t n_bytes, n_used;
};
struct par_text {
    struct text_block *blocks;
};

/* Payload begins one alignment unit multiple after the block's head. */
static const size_t head_bytes = (sizeof(struct text_block) + TEXT_ALIGN - 1) / TEXT_ALIGN * TEXT_ALIGN;

struct par_text *par_text_create(void) {
    return fwd_calloc(1, sizeof(struct par_text));
}

void par_text_free(struct par_text *t) {
    if (!t)
        return;
    for (struct text_block *b = t->blocks, *next; b; b = next) {
        next = b->next;
        fwd_free(b);
    }
    fwd_free(t);
}

void *par_text_alloc(struct par_text *t, size_t n_bytes) {
    if (n_bytes > SIZE_MAX / 2)
        return NULL;
    n_bytes = (n_bytes + TEXT_ALIGN - 1) / TEXT_ALIGN * TEXT_ALIGN;
    struct text_block *b = t->blocks;
    if (!b || b->n_bytes - b->n_used < n_bytes) {
        size_t room = n_bytes > BLOCK_BYTES ? n_bytes : BLOCK_BYTES;
        b = fwd_alloc(1, head_bytes + room);
        if (!b)
            return NULL;
        b->n_bytes = room;
        b->n_used = 0;
        b->next = t->blocks;
        t->blocks = b;
    }
    void *p = (char *)b + head_bytes + b->n_used;
    b->n_used += n_bytes;
    memset(p, 0, n_bytes);
    return p;
}

const char *par_text_printf(struct par_text *t, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    char *p = n < 0 ? NULL : par_text_alloc(t, (size_t)n + 1);
    if (!p)
        return "";
    va_start(args, fmt);
    (void)vsnprintf(p, (size_t)n + 1, fmt, args);
    va_end(args);
    return p;
}
