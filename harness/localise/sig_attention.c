#include "localise/sig.h"
const struct signature par_sig_attention[] = {{0}};
