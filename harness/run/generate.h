/* harness/run/generate.h: greedy text from one path, driven by the very loop that a judged run uses (run/drive.h). */
#ifndef HARNESS_RUN_GENERATE_H
#define HARNESS_RUN_GENERATE_H

#include "run/drive.h"

enum par_generate_end {
    PAR_GENERATE_COUNT = 0, /* n_max ids were made */
    PAR_GENERATE_STOP,      /* the last id made ends a text */
    PAR_GENERATE_NONFINITE  /* the logits held no number to choose */
};

/* Called for every id made, in order: its place (from 0), and fwd_hash64 of the logits [n_vocab] that chose it. */
typedef void par_generate_fn(void *ud, int step, int32_t id, uint64_t logits_hash);

/* ids: room for n_prompt + n_max, the prompt filled in; the ids made go behind it (*n_made of them). The lowest id
 * among the largest logits is chosen. tokenizer: says which ids end a text; NULL: none does. fn may be NULL. */
enum fwd_status par_generate(const struct par_drive *d, int32_t *ids, int n_prompt, int n_max,
                             const struct fwd_tokenizer *tokenizer, par_generate_fn *fn, void *ud, int *n_made,
                             enum par_generate_end *end, struct fwd_error *err);

#endif
