#include "localise/sig.h"
const struct signature par_sig_rows[] = {{0}};
