/* engine/paths/path_f32.c: the reference: dequantised weights, F32 activations, no KV cache. The work is in ref_*.c. */
#include "paths/ref_session.h"

static void describe(struct fwd_path_info *out) {
    ref_describe(out);
    out->name = "f32";
    out->summary = "the reference: dequantised weights, F32 activations, no KV cache";
}

static enum fwd_status open_session(struct fwd_session **out, const struct fwd_gguf *file,
                                    const struct fwd_knobs *knobs, struct fwd_error *err) {
    return ref_open(out, FWD_F32, file, knobs, err);
}

extern const struct fwd_path fwd_path_f32;
const struct fwd_path fwd_path_f32 = {.abi = FWD_PATH_ABI,
                                      .size = sizeof(struct fwd_path),
                                      .name = "f32",
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
