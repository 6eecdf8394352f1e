#include "model/tokenizer_bpe.h"

#include "core/memory.h"

static enum fwd_status grow(void **p, size_t *capacity, size_t need, size_t size, struct fwd_error *err) {
    if (need <= *capacity)
        return FWD_OK;
    size_t wanted = need + need / 2 + 64;
    void *bigger = fwd_realloc(*p, *capacity * size, wanted, size);
    FWD_FAIL_IF(!bigger, FWD_ENOMEM, err, "no memory for %zu items of tokenizer scratch", wanted);
    *p = bigger;
    *capacity = wanted;
    return FWD_OK;
}

enum fwd_status tok_ids_push(struct tok_ids *ids, int32_t id, struct fwd_error *err) {
    void *p = ids->id;
    FWD_TRY(grow(&p, &ids->capacity, ids->n + 1, sizeof *ids->id, err));
    ids->id = p;
    ids->id[ids->n++] = id;
    return FWD_OK;
}

void tok_bpe_free(struct tok_bpe *b) {
    fwd_free(b->symbols);
    fwd_free(b->heap);
}

static bool comes_before(const struct tok_candidate *a, const struct tok_candidate *b) {
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

/* A word of n symbols has at most n - 1 pairs, and a merge takes one away and adds at most two: 3n entries suffice. */
static void heap_push(struct tok_bpe *b, struct tok_candidate c) {
    size_t i = b->n_heap++;
    while (i > 0 && comes_before(&c, &b->heap[(i - 1) / 2])) {
        b->heap[i] = b->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    b->heap[i] = c;
}

static struct tok_candidate heap_pop(struct tok_bpe *b) {
    struct tok_candidate top = b->heap[0], last = b->heap[--b->n_heap];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= b->n_heap)
            break;
        if (child + 1 < b->n_heap && comes_before(&b->heap[child + 1], &b->heap[child]))
            child++;
        if (!comes_before(&b->heap[child], &last))
            break;
        b->heap[i] = b->heap[child];
        i = child;
    }
    b->heap[i] = last;
    return top;
}

static void consider(struct tok_bpe *b, const struct tok_vocab *v, int32_t at) {
    const struct tok_symbol *left = &b->symbols[at];
    if (left->id < 0 || left->next < 0 || b->symbols[left->next].id < 0)
        return;
    const struct tok_merge *m = tok_vocab_pair(v, left->id, b->symbols[left->next].id);
    if (m)
        heap_push(b, (struct tok_candidate){m->rank, at, m->left, m->right, m->out});
}

static void merge_all(struct tok_bpe *b, const struct tok_vocab *v) {
    while (b->n_heap) {
        struct tok_candidate c = heap_pop(b);
        struct tok_symbol *left = &b->symbols[c.at];
        /* A candidate is stale when either side has changed since; sides only ever grow, so equal ids mean unchanged.
         */
        if (left->id != c.left || left->next < 0 || b->symbols[left->next].id != c.right)
            continue;
        struct tok_symbol *right = &b->symbols[left->next];
        left->id = c.out;
        left->next = right->next;
        if (right->next >= 0)
            b->symbols[right->next].prev = c.at;
        right->id = -1;
        if (left->prev >= 0)
            consider(b, v, left->prev);
        consider(b, v, c.at);
    }
}

enum fwd_status tok_bpe_word(struct tok_bpe *b, const struct tok_vocab *v, const char *word, size_t len,
                             struct tok_ids *ids, struct fwd_error *err) {
    if (len == 0)
        return FWD_OK;
    void *symbols = b->symbols, *heap = b->heap;
    enum fwd_status status = grow(&symbols, &b->symbol_capacity, len, sizeof *b->symbols, err);
    b->symbols = symbols;
    if (status == FWD_OK)
        status = grow(&heap, &b->heap_capacity, 3 * len, sizeof *b->heap, err);
    b->heap = heap;
    FWD_TRY(status);
    b->n_heap = 0;
    for (size_t i = 0; i < len; i++)
        b->symbols[i] = (struct tok_symbol){.id = v->byte_id[(unsigned char)word[i]],
                                            .prev = (int32_t)i - 1,
                                            .next = i + 1 < len ? (int32_t)i + 1 : -1};
    for (size_t i = 0; i + 1 < len; i++)
        consider(b, v, (int32_t)i);
    merge_all(b, v);
    /* Symbol 0 is never merged into a left one, so the chain starts there. */
    for (int32_t i = 0; i >= 0; i = b->symbols[i].next)
        if (b->symbols[i].id >= 0)
            FWD_TRY(tok_ids_push(ids, b->symbols[i].id, err));
    return FWD_OK;
}
