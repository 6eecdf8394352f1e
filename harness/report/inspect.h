/* harness/report/inspect.h: the parts of `parity inspect`: what a model file holds, as text and as JSON. */
#ifndef HARNESS_REPORT_INSPECT_H
#define HARNESS_REPORT_INSPECT_H

#include "engine.h"

#include <stdio.h>

enum { PAR_INSPECT_MAX_NOTES = 64, PAR_INSPECT_NOTE_BYTES = 320 };

/* Whatever is unusual, one sentence each. */
struct par_inspect_notes {
    int n;
    char text[PAR_INSPECT_MAX_NOTES][PAR_INSPECT_NOTE_BYTES];
};

struct par_inspect_type_count {
    uint32_t type;
    uint64_t n_tensors, n_bytes, n_values;
};

struct par_inspect_facts {
    const struct fwd_gguf *file;
    const struct fwd_model *model;         /* NULL when the engine refuses the file ... */
    struct fwd_error refusal;              /* ... and why */
    const struct fwd_tokenizer *tokenizer; /* NULL likewise */
    struct fwd_error tokenizer_refusal;
    struct par_inspect_type_count types[64]; /* most bytes first; ids that ggml never assigned share the last row */
    int n_types;
    uint64_t n_params;
    struct par_inspect_notes notes;
};

/* Fills types, n_params and notes; file, model and tokenizer (with their refusals) are set. */
void par_inspect_count_types(struct par_inspect_facts *f);
void par_inspect_find_notes(struct par_inspect_facts *f);

void par_inspect_print_text(FILE *out, const struct par_inspect_facts *f, bool with_tensors, bool with_keys);
/* One object, "parity-inspect-v1"; FWD_ENOMEM when it cannot be built. */
enum fwd_status par_inspect_print_json(FILE *out, const struct par_inspect_facts *f, struct fwd_error *err);

#endif
