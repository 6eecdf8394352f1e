/* harness/report/inspect_notes.c: what stands out in a model file. A note is a fact about the file, never a verdict. */
#include "report/inspect.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static void add_note(struct par_inspect_notes *notes, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void add_note(struct par_inspect_notes *notes, const char *fmt, ...) {
    va_list args;
    if (notes->n == PAR_INSPECT_MAX_NOTES)
        return;
    va_start(args, fmt);
    (void)vsnprintf(notes->text[notes->n++], PAR_INSPECT_NOTE_BYTES, fmt, args);
    va_end(args);
}

static int compare_types(const void *a, const void *b) {
    const struct par_inspect_type_count *x = a, *y = b;
    if (x->n_bytes != y->n_bytes)
        return x->n_bytes > y->n_bytes ? -1 : 1;
    return (x->type > y->type) - (x->type < y->type);
}

void par_inspect_count_types(struct par_inspect_facts *f) {
    const int max = (int)(sizeof f->types / sizeof *f->types);
    for (uint64_t i = 0; i < fwd_gguf_n_tensors(f->file); i++) {
        const struct fwd_gguf_tensor *t = fwd_gguf_tensor(f->file, i);
        int row = 0;
        while (row < f->n_types && f->types[row].type != t->type && row < max - 1)
            row++;
        if (row == f->n_types)
            f->types[f->n_types++].type = t->type;
        uint64_t n_values = t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3];
        f->types[row].n_tensors++;
        f->types[row].n_bytes += t->n_bytes;
        f->types[row].n_values += n_values;
        f->n_params += n_values;
    }
    qsort(f->types, (size_t)f->n_types, sizeof *f->types, compare_types);
}

/* ---- tensors ----------------------------------------------------------------------------------------------------- */

static void note_types(struct par_inspect_facts *f) {
    for (int i = 0; i < f->n_types; i++) {
        const struct fwd_type_info *type = fwd_type_info(f->types[i].type);
        if (!type || !type->decodable)
            add_note(&f->notes, "%llu tensors are %s, which this program cannot decode",
                     (unsigned long long)f->types[i].n_tensors, fwd_type_name(f->types[i].type));
    }
}

/* Row lengths of matrices that do not fill superblocks: their activations are quantised in blocks of 32. */
static void note_row_lengths(struct par_inspect_facts *f) {
    uint64_t seen[16];
    int n_seen = 0;
    for (uint64_t i = 0; i < fwd_gguf_n_tensors(f->file); i++) {
        uint64_t k = fwd_gguf_tensor(f->file, i)->ne[0], n_same = 0;
        bool matrix = fwd_gguf_tensor(f->file, i)->ne[1] > 1, known = false;
        for (int s = 0; s < n_seen; s++)
            known |= seen[s] == k;
        if (!matrix || known || k % 256 == 0 || n_seen == 16)
            continue;
        seen[n_seen++] = k;
        for (uint64_t j = i; j < fwd_gguf_n_tensors(f->file); j++) {
            const struct fwd_gguf_tensor *t = fwd_gguf_tensor(f->file, j);
            n_same += t->ne[0] == k && t->ne[1] > 1;
        }
        add_note(&f->notes, "%llu matrices have rows of %llu values, not a multiple of 256", (unsigned long long)n_same,
                 (unsigned long long)k);
    }
}

/* Bytes of each file that belong to nothing, beyond the padding between tensors. */
static void note_slack(struct par_inspect_facts *f) {
    for (int split = 0; split < fwd_gguf_n_splits(f->file); split++) {
        uint64_t n_bytes, end = 0;
        (void)fwd_gguf_split_data(f->file, split, &n_bytes);
        for (uint64_t i = 0; i < fwd_gguf_n_tensors(f->file); i++) {
            const struct fwd_gguf_tensor *t = fwd_gguf_tensor(f->file, i);
            if (t->split == split && t->file_offset + t->n_bytes > end)
                end = t->file_offset + t->n_bytes;
        }
        if (end && n_bytes - end >= fwd_gguf_alignment(f->file))
            add_note(&f->notes, "%llu bytes follow the last tensor of %s", (unsigned long long)(n_bytes - end),
                     fwd_gguf_split_path(f->file, split));
    }
}

/* ---- keys -------------------------------------------------------------------------------------------------------- */

/* Keys behind the architecture's name that are read, or are known to change nothing here. */
static const char *const read_keys[] = {"block_count",
                                        "context_length",
                                        "embedding_length",
                                        "feed_forward_length",
                                        "attention.head_count",
                                        "attention.head_count_kv",
                                        "attention.key_length",
                                        "attention.value_length",
                                        "attention.layer_norm_rms_epsilon",
                                        "attention.scale",
                                        "rope.dimension_count",
                                        "rope.freq_base",
                                        "vocab_size"};

static void note_unread_keys(struct par_inspect_facts *f, const char *arch, size_t arch_len) {
    for (uint64_t i = 0; i < fwd_gguf_n_kv(f->file); i++) {
        const char *key = fwd_gguf_kv(f->file, i)->key;
        bool known = strncmp(key, arch, arch_len) != 0 || key[arch_len] != '.';
        for (size_t k = 0; !known && k < sizeof read_keys / sizeof *read_keys; k++)
            known = !strcmp(key + arch_len + 1, read_keys[k]);
        if (!known)
            add_note(&f->notes, "key %.120s is one this program does not know to be harmless", key);
    }
}

static void note_vocabulary(struct par_inspect_facts *f) {
    const struct fwd_gguf_kv *tokens = fwd_gguf_find_kv(f->file, "tokenizer.ggml.tokens");
    const struct fwd_gguf_tensor *embedding = fwd_gguf_find(f->file, "token_embd.weight");
    uint64_t eos, eot;
    if (!tokens)
        add_note(&f->notes, "no tokenizer.ggml.tokens: prompts must be given as ids");
    else if (embedding && tokens->n_items != embedding->ne[1])
        add_note(&f->notes, "%llu tokens, but token_embd.weight has %llu rows", (unsigned long long)tokens->n_items,
                 (unsigned long long)embedding->ne[1]);
    if (tokens && !fwd_gguf_get_u64(f->file, "tokenizer.ggml.eos_token_id", &eos))
        add_note(&f->notes, "no tokenizer.ggml.eos_token_id");
    if (tokens && !fwd_gguf_get_u64(f->file, "tokenizer.ggml.eot_token_id", &eot))
        add_note(&f->notes, "no tokenizer.ggml.eot_token_id: the end of a turn is known from the token texts only");
    if (tokens && !fwd_gguf_find_kv(f->file, "tokenizer.chat_template"))
        add_note(&f->notes, "no tokenizer.chat_template");
}

void par_inspect_find_notes(struct par_inspect_facts *f) {
    const char *arch;
    size_t arch_len;
    if (!f->model)
        add_note(&f->notes, "the engine refuses this file: %s", f->refusal.message);
    if (!f->tokenizer && fwd_gguf_find_kv(f->file, "tokenizer.ggml.model"))
        add_note(&f->notes, "its tokenizer is refused: %s", f->tokenizer_refusal.message);
    if (fwd_gguf_version(f->file) != 3)
        add_note(&f->notes, "GGUF version %u, where 3 is usual", fwd_gguf_version(f->file));
    if (fwd_gguf_alignment(f->file) != 32)
        add_note(&f->notes, "tensor data aligned to %u bytes, where 32 is usual", fwd_gguf_alignment(f->file));
    if (fwd_gguf_n_splits(f->file) > 1)
        add_note(&f->notes, "split into %d files", fwd_gguf_n_splits(f->file));
    if (fwd_gguf_find(f->file, "token_embd.weight") && !fwd_gguf_find(f->file, "output.weight"))
        add_note(&f->notes, "tied head: token_embd.weight (%s) is also the output matrix",
                 fwd_type_name(fwd_gguf_find(f->file, "token_embd.weight")->type));
    if (fwd_gguf_find(f->file, "rope_freqs.weight"))
        add_note(&f->notes, "rope_freqs.weight divides the rotation's frequencies (long-context scaling)");
    note_types(f);
    note_row_lengths(f);
    note_slack(f);
    if (fwd_gguf_get_str(f->file, "general.architecture", &arch, &arch_len))
        note_unread_keys(f, arch, arch_len);
    note_vocabulary(f);
}
