/* engine/model/config.h: hyper-parameters from a file's keys; private to engine/model. */
#ifndef ENGINE_MODEL_CONFIG_H
#define ENGINE_MODEL_CONFIG_H

#include "model/arch_table.h"

/* Reads and checks everything but n_vocab, tied_head and rope_factors, which come from tensors. */
enum fwd_status fwd_config_read(struct fwd_config *c, const struct arch_row **arch, const struct fwd_gguf *file,
                                struct fwd_error *err);
/* What any computation relies on; called again after a hook may have changed *c. */
enum fwd_status fwd_config_check(const struct fwd_config *c, struct fwd_error *err);

#endif
