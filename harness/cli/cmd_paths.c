/* harness/cli/cmd_paths.c: parity paths: what can run on this machine, and the kernel variants to choose from. */
#include "cli/cmd.h"
#include "cli/options.h"

#include <string.h>

static void print_paths(void) {
    int n;
    const struct fwd_path *const *all = fwd_paths(&n);
    for (int i = 0; i < n; i++) {
        struct fwd_path_info info = {.size = sizeof info};
        struct fwd_error err = {0};
        bool ok = all[i]->probe(&err) == FWD_OK;
        all[i]->describe(&info);
        int n_taps = 0;
        for (int op = 0; op < FWD_OP_COUNT; op++)
            n_taps += info.taps[op] != FWD_TAP_ABSENT;
        (void)printf("%-10s %s\n", all[i]->name, info.summary);
        (void)printf("%-10s %s; %d taps; %s; %s\n", "", ok ? "runs here" : err.message, n_taps,
                     info.uses_cache ? "KV cache" : "no KV cache",
                     info.quantised ? "activations quantised" : "activations in floating point");
    }
}

static void print_variants(void) {
    unsigned have = fwd_cpu_detect();
    struct fwd_variant_info v;
    char caps[32];
    (void)printf("\nkernel variants, fastest first (this CPU: %s; choose with --caps or --force OP=VARIANT)\n",
                 fwd_cpu_text(have, caps, sizeof caps));
    for (int i = 0; fwd_variant_info(i, &v); i++)
        (void)printf("  %-14s %-8s needs %-12s %s\n", v.op, v.variant, fwd_cpu_text(v.needs, caps, sizeof caps),
                     v.needs & ~have ? "not on this CPU" : "runs here");
}

int cmd_paths(int argc, char **argv) {
    struct fwd_error err;
    int n_words;
    bool help;
    enum fwd_status rc = par_options_parse(NULL, 0, argc, argv, NULL, 0, &n_words, &help, &err);
    if (rc != FWD_OK)
        return par_complain(&err);
    if (help) {
        par_options_help(stdout, "paths",
                         "Lists the forward paths and the kernel variants, and what of them runs here.", NULL, 0);
        return 0;
    }
    print_paths();
    print_variants();
    return 0;
}
