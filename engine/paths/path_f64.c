/* engine/paths/path_f64.c: the adjudicator: the reference in double. The work is in ref_*.c. */
#include "paths/ref_session.h"

static void describe(struct fwd_path_info *out) {
    ref_describe(out);
    out->name = "f64";
    out->summary = "the adjudicator: the reference in double";
}

static enum fwd_status open_session(struct fwd_session **out, const struct fwd_gguf *file,
                                    const struct fwd_knobs *knobs, struct fwd_error *err) {
    return ref_open(out, FWD_F64, file, knobs, err);
}

extern const struct fwd_path fwd_path_f64;
const struct fwd_path fwd_path_f64 = {.abi = FWD_PATH_ABI,
                                      .size = sizeof(struct fwd_path),
                                      .name = "f64",
                                      .probe = ref_probe,
                                      .describe = describe,
                                      .open = open_session,
                                      .seq_begin = ref_seq_begin,
                                      .run = ref_run,
                                      .override = ref_override,
                                      .config = ref_config,
                                      .numerics = ref_numerics,
                                      .variant = ref_variant,
                                      .bound_weight = ref_bound_weight,
                                      .close = ref_close};
