/* engine/paths/cuda_absent.c: the CUDA paths of a program that was built without the CUDA toolkit: known by name, not
 * available, and the reason is said. */
#include "engine.h"

extern const struct fwd_path fwd_path_f32_cuda, fwd_path_q4k_cuda, fwd_path_q4k_cuda_graph, fwd_path_bf16_cuda,
    fwd_path_fp8_cuda;

static enum fwd_status absent(struct fwd_error *err) {
    FWD_FAIL(FWD_EUNAVAILABLE, err, "not built: there was no CUDA compiler (nvcc) where this program was made");
}

static enum fwd_status open_absent(struct fwd_session **out, const struct fwd_gguf *file, const struct fwd_knobs *knobs,
                                   struct fwd_error *err) {
    (void)out;
    (void)file;
    (void)knobs;
    return absent(err);
}

static enum fwd_status device_absent(struct fwd_device_info *out, bool measure, struct fwd_error *err) {
    (void)out;
    (void)measure;
    return absent(err);
}

#define ABSENT_PATH(id, path_name, text, bits)                                                                         \
    static void describe_##id(struct fwd_path_info *out) {                                                             \
        *out = (struct fwd_path_info){                                                                                 \
            .size = sizeof *out, .name = path_name, .summary = text, .on_device = true, .same_bits_as = bits};         \
    }                                                                                                                  \
    const struct fwd_path fwd_path_##id = {.abi = FWD_PATH_ABI,                                                        \
                                           .size = sizeof(struct fwd_path),                                            \
                                           .name = path_name,                                                          \
                                           .probe = absent,                                                            \
                                           .describe = describe_##id,                                                  \
                                           .open = open_absent,                                                        \
                                           .device = device_absent};

ABSENT_PATH(f32_cuda, "f32-cuda", "GPU: dequantised weights, F32 products", NULL)
ABSENT_PATH(q4k_cuda, "q4k-cuda", "GPU: quantised weights and activations", "q4k-cpu")
ABSENT_PATH(q4k_cuda_graph, "q4k-cuda-graph", "GPU: quantised weights and activations, a CUDA graph a token", "q4k-cpu")
ABSENT_PATH(bf16_cuda, "bf16-cuda", "GPU: BF16 on tensor cores", NULL)
ABSENT_PATH(fp8_cuda, "fp8-cuda", "GPU: E4M3 on tensor cores", NULL)
