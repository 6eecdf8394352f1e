/* engine/model/arch_table.h: the model architectures the engine knows, as data; private to engine/model. */
#ifndef ENGINE_MODEL_ARCH_TABLE_H
#define ENGINE_MODEL_ARCH_TABLE_H

#include "model/model.h"

enum arch_bias { ARCH_BIAS_OPTIONAL, ARCH_BIAS_REQUIRED };

struct arch_row {
    const char *name; /* general.architecture, and the prefix of its keys */
    enum fwd_rope_pairing rope_pairing;
    enum arch_bias qkv_bias;
};

/* Row i; NULL past the end. */
const struct arch_row *fwd_arch_row(int i);

#endif
