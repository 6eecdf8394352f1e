/* engine/model/arch_table.c: one row per architecture. Both are pre-norm decoders with RMS norms, rotary positions,
 * grouped heads and a SwiGLU feed-forward; what differs is in the row. llama's rows of wq and wk were reordered when
 * the file was made, so that its pairs are neighbours. */
#include "model/arch_table.h"

#include <stddef.h>

static const struct arch_row rows[] = {
    {"llama", FWD_ROPE_NORM, ARCH_BIAS_OPTIONAL},
    {"qwen2", FWD_ROPE_NEOX, ARCH_BIAS_REQUIRED},
};

const struct arch_row *fwd_arch_row(int i) {
    return i >= 0 && i < (int)(sizeof rows / sizeof *rows) ? &rows[i] : NULL;
}
