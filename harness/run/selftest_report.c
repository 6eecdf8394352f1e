/* harness/run/selftest_report.c: the self-test as a table and as JSON ("parity-selftest-v1"). */
#include "report/embedded.h"
#include "report/json_put.h"
#include "run/selftest.h"

#include <cjson/cJSON.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>

/* ---- receipt ---- */

static void say_machine(char *text, size_t n) {
    struct utsname host;
    char line[256] = "", cpu[128] = "unknown", caps[32];
    FILE *f = fopen("/proc/cpuinfo", "r");
    while (f && fgets(line, sizeof line, f)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !colon)
            continue;
        line[strcspn(line, "\n")] = 0;
        (void)snprintf(cpu, sizeof cpu, "%.120s", colon + 2);
        break;
    }
    if (f)
        (void)fclose(f);
    (void)snprintf(text, n, "%s, %s, %d cores, %s", cpu, fwd_cpu_text(fwd_cpu_detect(), caps, sizeof caps),
                   fwd_cpu_count(), uname(&host) == 0 ? host.machine : "unknown");
}

static void say_date(char *text, size_t n) {
    time_t now = time(NULL);
    struct tm utc;
    text[0] = 0;
    if (gmtime_r(&now, &utc))
        (void)strftime(text, n, "%Y-%m-%dT%H:%M:%SZ", &utc);
}

/* ---- table ---- */

/* Over the places of one row. */
struct line {
    const struct par_fault_row *row;
    int n, changed, above1, above2, detected, named, sub, sub_of, diagnosed, diagnosed_of, side, side_of;
    int gates[PAR_GATE_COUNT];
    double moved_min, moved_max;
    const char *why;
};

static void add_record(struct line *l, const struct par_selftest_record *r) {
    l->n += r->state != PAR_SELFTEST_NOT_HERE;
    if (r->state == PAR_SELFTEST_NOT_HERE && !l->why)
        l->why = r->why;
    if (r->state != PAR_SELFTEST_CHANGED)
        return;
    l->moved_min = l->changed == 0 || r->moved < l->moved_min ? r->moved : l->moved_min;
    l->moved_max = l->changed == 0 || r->moved > l->moved_max ? r->moved : l->moved_max;
    l->changed++;
    l->above1 += r->moved > 1;
    l->above2 += r->moved > 2;
    l->detected += r->detected;
    l->named += r->detected && r->op_right && r->layer_right;
    l->sub += r->sub_op == 1;
    l->sub_of += r->sub_op >= 0;
    l->diagnosed += r->diagnosis == 1;
    l->diagnosed_of += r->diagnosis >= 0;
    l->side += r->named && r->side_right;
    l->side_of += r->named;
    for (int g = 0; g < PAR_GATE_COUNT; g++)
        l->gates[g] += r->beside_clean[g] > 0;
}

static void put_share(FILE *out, int n, int of) {
    char text[24] = "-";
    if (of)
        (void)snprintf(text, sizeof text, "%d/%d", n, of);
    (void)fprintf(out, " %6s", text);
}

static void put_line(FILE *out, const struct line *l) {
    (void)fprintf(out, "%-26.26s %3d", l->row->name, l->n);
    if (l->n == 0) {
        (void)fprintf(out, "  not here: %.66s\n", l->why ? l->why : "");
        return;
    }
    (void)fprintf(out, " %4d", l->changed);
    if (l->changed == 0) {
        (void)fprintf(out, "  no effect here\n");
        return;
    }
    (void)fprintf(out, " %8.3g", l->moved_min);
    put_share(out, l->detected, l->changed);
    put_share(out, l->named, l->detected);
    put_share(out, l->sub, l->sub_of);
    put_share(out, l->diagnosed, l->diagnosed_of);
    put_share(out, l->side, l->side_of);
    for (int g = 0; g < PAR_GATE_COUNT; g++)
        (void)fprintf(out, " %5d", l->gates[g]);
    (void)fprintf(out, "\n");
}

static void put_faults(const struct par_selftest *s, FILE *out) {
    (void)fprintf(out, "\n%-26s %3s %4s %8s %6s %6s %6s %6s %6s %5s %5s %5s\n", "fault", "set", "bits", "bounds",
                  "found", "top-1", "sub-op", "diagn.", "side", "nmse", "cos", "close");
    for (int i = 0; i < s->n_records;) {
        struct line l = {.row = s->records[i].row};
        for (; i < s->n_records && s->records[i].row == l.row; i++)
            add_record(&l, &s->records[i]);
        put_line(out, &l);
    }
    (void)fprintf(
        out, "set: places planted; bits: of them those that change any bit of any tap; bounds: the least that one\n"
             "moved its largest element by; nmse, cos, close: places that these gates see beside a clean run\n");
}

static bool is_miss(const struct par_selftest_record *r) {
    return r->state == PAR_SELFTEST_CHANGED && (!r->detected || !r->op_right || !r->layer_right || r->sub_op == 0 ||
                                                r->diagnosis == 0 || (r->named && !r->side_right));
}

static void put_misses(const struct par_selftest *s, FILE *out) {
    bool any = false;
    for (int i = 0; i < s->n_records; i++) {
        const struct par_selftest_record *r = &s->records[i];
        if (!is_miss(r))
            continue;
        if (!any)
            (void)fprintf(out, "\nmissed, at least in part:\n");
        any = true;
        (void)fprintf(out, "  %s: moved %.3g bounds\n    ", r->place, r->moved);
        if (!r->detected)
            (void)fprintf(out, "not detected\n");
        else if (!r->named)
            (void)fprintf(out, "detected by %s, no op named\n", r->by);
        else
            (void)fprintf(out, "named %s of layer %d (%s), side %s, diagnosis %s\n    %s\n", fwd_op_name(r->op),
                          r->layer, r->op_right && r->layer_right ? "right" : "WRONG", r->side,
                          r->diagnosis == -1 ? "not asked" : r->diagnosed, r->pattern_text);
        if (r->diagnosis == 0)
            (void)fprintf(out, "    expected diagnosis %s\n", r->row->signature ? r->row->signature : "unexplained");
    }
}

static void put_clean(const struct par_selftest *s, FILE *out) {
    const struct par_selftest_clean *c = &s->clean;
    if (c->n_passes) {
        (void)fprintf(
            out,
            "\nclean: %d passes, %d prompts, %d variants of paths, kernels, threads and types; %llu elements\n"
            "judged, %d ops accused, %d mistrusted, %d other; %llu held by the second look. Largest ratios:\n ",
            c->n_passes, c->n_prompts, c->n_variants, (unsigned long long)c->n_elements, c->n_accused, c->n_mistrusted,
            c->n_other, (unsigned long long)c->n_systematic);
        for (int i = 0; i < PAR_CLASS_COUNT; i++)
            (void)fprintf(out, " %s %.3f%s", par_class_name((enum par_op_class)i), c->ratio_max[i],
                          i == 5 ? "\n " : "");
        (void)fprintf(out, "\n");
    }
    for (int i = 0; i < c->n_alarms; i++)
        (void)fprintf(out, "  FALSE ALARM: %s\n", c->alarms[i].where);
    if (c->n_tensors) {
        (void)fprintf(out,
                      "a clean candidate beside the reference, tap tensors of %d that gates refuse:", c->n_tensors);
        for (int g = 0; g < PAR_GATE_COUNT; g++)
            (void)fprintf(out, "%s\n  %d by %s", g ? "," : "", c->gate_alarms[g],
                          par_tool_gate_name((enum par_tool_gate)g));
        (void)fprintf(out, "\n");
    }
}

static void put_weights(const struct par_selftest *s, FILE *out) {
    const struct par_weight_trials *w = &s->weights;
    if (!w->tried)
        return;
    (void)fprintf(
        out,
        "\none weight off by one, %d times, in %d matrices of 4 bits: from one of %d positions %d change the\n"
        "row, %d found, %d with K-block, %d with the weight itself; from all positions %d, %d, %d, %d.\n"
        "%d other rows accused. NMSE, cosine, allclose see %d, %d, %d; with nothing changed, held against float\n"
        "activations, they refuse %d, %d, %d.\n",
        w->tried, w->n_matrices, w->n_positions, w->changed_one, w->found_one, w->block_named_one, w->weight_named_one,
        w->changed_all, w->found_all, w->block_named_all, w->weight_named_all, w->other_rows_accused, w->nmse_sees,
        w->cosine_sees, w->allclose_sees, w->nmse_alarms, w->cosine_alarms, w->allclose_alarms);
}

static void put_figure(const struct par_selftest_figure *f, uint64_t clean_asked, FILE *out) {
    char value[48] = "not measured", need[24] = "";
    if (f->measured && f->gated && f->at_least == 0)
        (void)snprintf(value, sizeof value, "%llu in %llu", (unsigned long long)f->n, (unsigned long long)f->of);
    else if (f->measured)
        (void)snprintf(value, sizeof value, "%.2f %% (%llu/%llu)", 100 * f->value, (unsigned long long)f->n,
                       (unsigned long long)f->of);
    if (f->gated && f->at_least > 0)
        (void)snprintf(need, sizeof need, "%.4g %%", 100 * f->at_least);
    else if (f->gated)
        (void)snprintf(need, sizeof need, "0 in %.0e", (double)clean_asked);
    (void)fprintf(out, "%-66.66s %22s %10s %s\n", f->text, value, need,
                  !f->gated || !f->measured ? ""
                  : f->reached              ? "ok"
                                            : "MISSED");
}

void par_selftest_text(const struct par_selftest *s, const struct par_selftest_receipt *receipt, FILE *out) {
    char machine[256], date[40];
    say_machine(machine, sizeof machine);
    say_date(date, sizeof date);
    (void)fprintf(out, "self-test   %s\nmachine     %s\ndate        %s, build %s, gcc %s\ncommand     %s\n",
                  receipt->model, machine, date, par_build_id(), __VERSION__, receipt->command);
    if (s->n_records)
        put_faults(s, out);
    put_misses(s, out);
    put_clean(s, out);
    put_weights(s, out);
    (void)fprintf(out, "\n%-66s %22s %10s\n", "figure", "measured", "asked");
    for (int i = 0; i < s->n_figures; i++)
        put_figure(&s->figures[i], s->clean_asked, out);
    (void)fprintf(out, "%.0f s for faults, %.0f s for clean runs\n", s->seconds_faults, s->seconds_clean);
}

/* ---- JSON ---- */

static bool put_gates(struct cJSON *o, const char *key, const int *n) {
    static const char *const keys[PAR_GATE_COUNT] = {"nmse", "cosine", "allclose"};
    struct cJSON *g = par_put_object(o, key);
    bool ok = g != NULL;
    for (int i = 0; i < PAR_GATE_COUNT; i++)
        ok = ok && par_put_int(g, keys[i], n[i]);
    return ok;
}

static bool put_answer(struct cJSON *o, const char *key, int answer) {
    return answer < 0 ? par_put_text(o, key, NULL) : par_put_bool(o, key, answer == 1);
}

static bool put_record(struct cJSON *o, const struct par_selftest_record *r) {
    static const char *const states[] = {"not here", "no effect", "changed"};
    bool ok = par_put_text(o, "fault", r->row->name) && par_put_text(o, "place", r->place) &&
              par_put_text(o, "signature", r->row->signature) && par_put_text(o, "museum", r->row->museum) &&
              par_put_bool(o, "shared", r->row->shared) && par_put_text(o, "state", states[r->state]);
    if (*r->why)
        ok = ok && par_put_text(o, "why", r->why);
    if (r->state != PAR_SELFTEST_CHANGED)
        return ok;
    return ok && par_put_real(o, "moved_bounds", r->moved) && par_put_real(o, "residue_max", r->ratio_max) &&
           par_put_bool(o, "detected", r->detected) && par_put_text(o, "by", r->by) &&
           par_put_int(o, "ops_accused", r->n_accused) &&
           par_put_text(o, "named_op", r->named ? fwd_op_name(r->op) : NULL) &&
           par_put_int(o, "named_layer", r->named ? r->layer : -1) && par_put_bool(o, "op_right", r->op_right) &&
           par_put_bool(o, "layer_right", r->layer_right) && put_answer(o, "sub_op_right", r->sub_op) &&
           par_put_text(o, "pattern", r->pattern_text) &&
           par_put_text(o, "diagnosis", *r->diagnosed ? r->diagnosed : NULL) &&
           par_put_text(o, "diagnosis_text", r->diagnosis_text) && put_answer(o, "diagnosis_right", r->diagnosis) &&
           par_put_text(o, "side", r->side) && par_put_bool(o, "side_right", r->side_right) &&
           put_gates(o, "tensors_refused_beside_clean", r->beside_clean) &&
           put_gates(o, "tensors_refused_beside_other_path", r->beside_other) && par_put_real(o, "seconds", r->seconds);
}

static bool put_clean_json(struct cJSON *o, const struct par_selftest_clean *c) {
    bool ok = par_put_int(o, "passes", c->n_passes) && par_put_int(o, "prompts", c->n_prompts) &&
              par_put_int(o, "variants", c->n_variants) && par_put_count(o, "elements", c->n_elements) &&
              par_put_count(o, "held_by_second_look", c->n_systematic) && par_put_int(o, "accused", c->n_accused) &&
              par_put_int(o, "mistrusted", c->n_mistrusted) && par_put_int(o, "other", c->n_other) &&
              put_gates(o, "tensors_refused_beside_reference", c->gate_alarms) &&
              par_put_int(o, "tensors", c->n_tensors);
    struct cJSON *classes = ok ? par_put_array(o, "classes") : NULL;
    ok = classes != NULL;
    for (int i = 0; ok && i < PAR_CLASS_COUNT; i++) {
        struct cJSON *one = par_push_object(classes);
        ok = one && par_put_text(one, "class", par_class_name((enum par_op_class)i)) &&
             par_put_count(one, "judged", c->judged[i]) && par_put_real(one, "residue_max", c->ratio_max[i]);
    }
    struct cJSON *alarms = ok ? par_put_array(o, "alarms") : NULL;
    ok = ok && alarms;
    for (int i = 0; ok && i < c->n_alarms; i++) {
        struct cJSON *one = par_push_object(alarms);
        ok = one && par_put_text(one, "where", c->alarms[i].where);
    }
    return ok;
}

static bool put_weights_json(struct cJSON *o, const struct par_weight_trials *w) {
    return par_put_int(o, "tried", w->tried) && par_put_int(o, "matrices", w->n_matrices) &&
           par_put_int(o, "positions", w->n_positions) && par_put_int(o, "changed_all", w->changed_all) &&
           par_put_int(o, "changed_one", w->changed_one) && par_put_int(o, "found_all", w->found_all) &&
           par_put_int(o, "found_one", w->found_one) && par_put_int(o, "block_named_all", w->block_named_all) &&
           par_put_int(o, "block_named_one", w->block_named_one) &&
           par_put_int(o, "weight_named_all", w->weight_named_all) &&
           par_put_int(o, "weight_named_one", w->weight_named_one) && par_put_int(o, "misnamed_all", w->misnamed_all) &&
           par_put_int(o, "misnamed_one", w->misnamed_one) &&
           par_put_int(o, "other_rows_accused", w->other_rows_accused) && par_put_int(o, "nmse_sees", w->nmse_sees) &&
           par_put_int(o, "cosine_sees", w->cosine_sees) && par_put_int(o, "allclose_sees", w->allclose_sees) &&
           par_put_int(o, "nmse_alarms", w->nmse_alarms) && par_put_int(o, "cosine_alarms", w->cosine_alarms) &&
           par_put_int(o, "allclose_alarms", w->allclose_alarms) && par_put_real(o, "seconds", w->seconds);
}

static bool put_figure_json(struct cJSON *o, const struct par_selftest_figure *f) {
    return par_put_text(o, "name", f->name) && par_put_text(o, "text", f->text) &&
           par_put_bool(o, "measured", f->measured) && par_put_real(o, "value", f->value) &&
           par_put_count(o, "n", f->n) && par_put_count(o, "of", f->of) && par_put_bool(o, "gated", f->gated) &&
           par_put_real(o, "at_least", f->at_least) && par_put_bool(o, "reached", f->reached);
}

char *par_selftest_json(const struct par_selftest *s, const struct par_selftest_receipt *receipt) {
    char machine[256], date[40];
    struct cJSON *root = cJSON_CreateObject();
    say_machine(machine, sizeof machine);
    say_date(date, sizeof date);
    bool ok = par_put_text(root, "schema", "parity-selftest-v1") && par_put_text(root, "date", date) &&
              par_put_text(root, "machine", machine) && par_put_text(root, "build", par_build_id()) &&
              par_put_text(root, "compiler", "gcc " __VERSION__) && par_put_text(root, "model", receipt->model) &&
              par_put_text(root, "model_sha256", receipt->sha256) && par_put_text(root, "command", receipt->command) &&
              par_put_real(root, "seconds_faults", s->seconds_faults) &&
              par_put_real(root, "seconds_clean", s->seconds_clean) && par_put_int(root, "exit", par_selftest_exit(s));
    struct cJSON *figures = ok ? par_put_array(root, "figures") : NULL;
    ok = ok && figures;
    for (int i = 0; ok && i < s->n_figures; i++) {
        struct cJSON *one = par_push_object(figures);
        ok = one && put_figure_json(one, &s->figures[i]);
    }
    struct cJSON *clean = ok ? par_put_object(root, "clean") : NULL;
    ok = ok && clean && put_clean_json(clean, &s->clean);
    struct cJSON *weights = ok && s->weights.tried ? par_put_object(root, "one_weight") : NULL;
    ok = ok && (!s->weights.tried || (weights && put_weights_json(weights, &s->weights)));
    struct cJSON *faults = ok ? par_put_array(root, "faults") : NULL;
    ok = ok && faults;
    for (int i = 0; ok && i < s->n_records; i++) {
        struct cJSON *one = par_push_object(faults);
        ok = one && put_record(one, &s->records[i]);
    }
    return par_put_finish(root, ok);
}
