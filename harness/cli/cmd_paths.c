/* harness/cli/cmd_paths.c: parity paths: what can run on this machine, the kernel variants to choose from, and, of one
 * model, which kernel serves which op, type, call and shape on each path, and the weights as bound there. */
#include "cli/cmd.h"
#include "cli/options.h"
#include "run/drive.h"

#include <stdlib.h>
#include <string.h>

struct paths_options {
    struct par_common common;
    const char *explain, *paths;
};

static void print_paths(void) {
    int n;
    const struct fwd_path *const *all = fwd_paths(&n);
    for (int i = 0; i < n; i++) {
        struct fwd_path_info info = {.size = sizeof info};
        struct fwd_error err = {.message = ""};
        bool ok = all[i]->probe(&err) == FWD_OK;
        all[i]->describe(&info);
        int n_taps = 0;
        for (int op = 0; op < FWD_OP_COUNT; op++)
            n_taps += info.taps[op] != FWD_TAP_ABSENT;
        (void)printf("%-14s %s\n", all[i]->name, info.summary);
        if (!ok && !n_taps) { /* not even built: nothing is known of it but its name */
            (void)printf("%-14s unavailable: %s\n", "", err.message);
            continue;
        }
        (void)printf("%-14s %s%s; %d taps; %s; %s%s%s\n", "", ok ? "runs here" : "unavailable: ", ok ? "" : err.message,
                     n_taps, info.uses_cache ? "KV cache" : "no KV cache",
                     info.quantised ? "activations quantised" : "activations in floating point",
                     info.same_bits_as ? "; the bits of " : "", info.same_bits_as ? info.same_bits_as : "");
        struct fwd_device_info device = {.size = sizeof device};
        if (ok && all[i]->device && all[i]->device(&device, false, &err) == FWD_OK)
            (void)printf("%-14s on %s, %.0f MB, %s\n", "", device.name, 1e-6 * (double)device.memory_bytes,
                         device.driver);
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

/* ---- --explain ---- */

static void calls_text(const struct fwd_variant_choice *v, char *buf, size_t n) {
    if (!v->m_first && !v->m_last)
        (void)snprintf(buf, n, "any");
    else if (v->m_first == v->m_last)
        (void)snprintf(buf, n, "%d", v->m_first);
    else if (v->m_last)
        (void)snprintf(buf, n, "%d-%d", v->m_first, v->m_last);
    else
        (void)snprintf(buf, n, "%d-", v->m_first);
}

static void print_dispatch(const struct fwd_path *path, struct fwd_session *session) {
    struct fwd_variant_choice v = {0};
    (void)printf("  dispatch: M tokens a call, a weight of N rows and K columns\n");
    (void)printf("  %-14s %-8s %-8s %8s %8s  %-20s %s\n", "op", "type", "M", "N", "K", "kernel", "why");
    for (int i = 0; path->variant(session, i, &v); i++) {
        char calls[32], rows[24] = "any", cols[24] = "any";
        calls_text(&v, calls, sizeof calls);
        if (v.n_rows)
            (void)snprintf(rows, sizeof rows, "%lld", (long long)v.n_rows);
        if (v.n_cols)
            (void)snprintf(cols, sizeof cols, "%lld", (long long)v.n_cols);
        (void)printf("  %-14s %-8s %-8s %8s %8s  %-20s %s\n", v.op, *v.detail ? v.detail : "-", calls, rows, cols,
                     v.variant, v.why);
        v = (struct fwd_variant_choice){0};
    }
}

/* The weights as the kernels read them, unpacked again; returns how many have not the file's bytes or type. */
static int print_weights(const struct fwd_path *path, struct fwd_session *session, const struct fwd_gguf *file) {
    struct fwd_bound_weight w;
    int n_differ = 0, n = 0;
    (void)printf("  weights as bound\n  %-30s %-8s %8s %8s  %-10s %-16s %s\n", "name", "type", "N", "K", "layout",
                 "checksum", "file");
    for (; path->bound_weight(session, n, &w); n++) {
        const struct fwd_gguf_tensor *t = fwd_gguf_find(file, w.name);
        bool same = t && t->type == w.type && t->data && fwd_hash64(t->data, t->n_bytes) == w.checksum;
        n_differ += !same;
        (void)printf("  %-30s %-8s %8lld %8lld  %-10s %016llx %s\n", w.name, fwd_type_name(w.type), (long long)w.n_rows,
                     (long long)w.n_cols, w.layout, (unsigned long long)w.checksum,
                     same ? "the same" : "ANOTHER TYPE OR OTHER BYTES");
        if (t)
            fwd_gguf_drop_pages(file, t);
    }
    (void)printf("  %d weights, %d of them not the file's\n", n, n_differ);
    return n_differ;
}

enum explained { EXPLAINED, EXPLAINED_DIFFERS, NOT_EXPLAINED };

static enum fwd_status explain_path(const struct paths_options *o, const struct fwd_path *path,
                                    const struct fwd_gguf *file, enum explained *out, struct fwd_error *err) {
    enum { POSITIONS = 512 };
    struct fwd_knobs knobs;
    enum par_schedule schedule;
    struct fwd_session *session;
    FWD_TRY(par_drive_probe(path, err));
    FWD_TRY(par_common_knobs(&o->common, POSITIONS, &knobs, &schedule, err));
    par_drive_fit_knobs(path, &knobs);
    FWD_TRY(path->open(&session, file, &knobs, err));
    (void)printf("%s\n", path->name);
    print_dispatch(path, session);
    *out = print_weights(path, session, file) ? EXPLAINED_DIFFERS : EXPLAINED;
    path->close(session);
    return FWD_OK;
}

/* Without --paths every path, and one that cannot run here says why; one that was asked for must run. */
static int explain(const struct paths_options *o) {
    char file_path[4096], name[64];
    struct fwd_error err = {.message = ""};
    struct fwd_gguf *file;
    int n_all, code = 0, n_explained = 0;
    const struct fwd_path *const *all = fwd_paths(&n_all);
    const char *rest = o->paths ? o->paths : "";
    if (par_resolve_model(o->explain, file_path, sizeof file_path, &err) != FWD_OK ||
        fwd_gguf_open(&file, file_path, &err) != FWD_OK)
        return par_complain(&err);
    for (int i = 0; o->paths ? *rest != 0 : i < n_all; i++) {
        enum explained how = NOT_EXPLAINED;
        const struct fwd_path *path = o->paths ? NULL : all[i];
        enum fwd_status rc = o->paths ? par_next_name(&rest, name, &err) : FWD_OK;
        if (rc == FWD_OK && !path)
            rc = par_find_path(name, &path, &err);
        if (rc == FWD_OK)
            rc = explain_path(o, path, file, &how, &err);
        n_explained += rc == FWD_OK;
        if (how == EXPLAINED_DIFFERS)
            code = code ? code : 1;
        if (rc == FWD_EUNAVAILABLE && !o->paths)
            (void)printf("%s\n", err.message);
        else if (rc != FWD_OK)
            code = par_complain(&err);
        if (rc == FWD_EINPUT)
            break;
    }
    fwd_gguf_close(file);
    return code ? code : n_explained ? 0 : 3;
}

int cmd_paths(int argc, char **argv) {
    struct paths_options o = {0};
    const struct par_opt own[] = {
        {"explain", 0, PAR_OPT_STRING, &o.explain, 0, 0, "MODEL", "each path's dispatch table and weights as bound"},
        {"paths", 0, PAR_OPT_STRING, &o.paths, 0, 0, "P,Q", "with --explain: these paths (default: all that run)"},
    };
    enum { N_OWN = sizeof own / sizeof *own };
    struct par_opt rows[N_OWN + PAR_COMMON_OPTS];
    struct fwd_error err;
    int n_words;
    bool help;
    memcpy(rows, own, sizeof own);
    par_common_opts(&o.common, rows + N_OWN);
    enum fwd_status rc = par_options_parse(rows, N_OWN + PAR_COMMON_OPTS, argc, argv, NULL, 0, &n_words, &help, &err);
    if (rc == FWD_OK && !help && o.paths && !o.explain)
        rc = fwd_fail(&err, FWD_EINPUT, __FILE__, __LINE__, "--paths: needs --explain MODEL");
    if (rc != FWD_OK)
        return par_complain(&err);
    if (help) {
        par_options_help(
            stdout, "paths [--explain MODEL [options]]",
            "Lists the forward paths and the kernel variants, and what of them runs here. --explain opens\n"
            "MODEL and prints which kernel serves what, and every weight as its kernels read it. Exit 1:\n"
            "a weight as bound is not the file's, 3: no path could be explained.",
            rows, N_OWN + PAR_COMMON_OPTS);
        return 0;
    }
    if (o.explain)
        return explain(&o);
    print_paths();
    print_variants();
    return 0;
}
