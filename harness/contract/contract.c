/* harness/contract/contract.c: reading contracts. Evaluating them is contract_eval.c. */
#include "contract/contract.h"

#include <ctype.h>
#include <glob.h>
#include <stdio.h>
#include <string.h>

enum { MAX_FILE_BYTES = 1 << 20, MAX_CONTRACTS = 256 };

/* ---- the fields of each object, as tables ---- */

enum kind { TEXT, TEXTS, NUMBER, COUNT, TRUTH, CHOICE, IDS, SHA256, VERSION, LIST, OBJECT };

struct field {
    const char *name;
    enum kind kind;
    bool required;
    const char *const *choices; /* of CHOICE, and of the items of TEXTS */
};

static const char *const contract_kinds[] = {"kernel",
                                             "registry",
                                             "model-family",
                                             "model-family-variant",
                                             "tokenizer",
                                             "training-loop",
                                             "pattern",
                                             "pretraining-corpus",
                                             "training-precondition-gate",
                                             "corpus-assembly",
                                             "beat-benchmark",
                                             "schema",
                                             "kaizen",
                                             "competitive-parity",
                                             NULL};
static const char *const levels[] = {"basic", "standard", "strict", "proven", NULL};
static const char *const statuses[] = {"DRAFT", "PROPOSED", "ACTIVE", "FUNCTIONAL", "ACTIVE_FUNCTIONAL", NULL};
static const char *const obligation_types[] = {"invariant",     "equivalence",    "bound",
                                               "monotonicity",  "idempotency",    "linearity",
                                               "symmetry",      "associativity",  "conservation",
                                               "ordering",      "completeness",   "soundness",
                                               "involution",    "determinism",    "roundtrip",
                                               "state_machine", "classification", "independence",
                                               "termination",   "precondition",   "postcondition",
                                               "frame",         "loop_invariant", "loop_variant",
                                               "old_state",     "subcontract",    NULL};
static const char *const targets[] = {"all", "scalar", "simd", "converter", "other", "not_applicable", NULL};
static const char *const strategies[] = {"exhaustive", "stub_float", "compositional", "bounded_int", NULL};
static const char *const schedules[] = {"nocache", "step", "prefill", "sweep", NULL};
static const char *const heads[] = {"quant", "f32", NULL};
static const char *const kv_types[] = {"f16", "f32", NULL};
static const char *const arms[] = {"schedule_nocache", NULL};

static const struct field contract_fields[] = {{"metadata", OBJECT, true, NULL},
                                               {"equations", OBJECT, true, NULL},
                                               {"proof_obligations", LIST, false, NULL},
                                               {"falsification_tests", LIST, true, NULL},
                                               {"kani_harnesses", LIST, false, NULL},
                                               {"qa_gate", OBJECT, false, NULL},
                                               {"verification_summary", OBJECT, false, NULL},
                                               {NULL, TEXT, false, NULL}};
static const struct field metadata_fields[] = {{"version", VERSION, true, NULL},
                                               {"description", TEXT, true, NULL},
                                               {"references", TEXTS, true, NULL},
                                               {"created", TEXT, false, NULL},
                                               {"author", TEXT, false, NULL},
                                               {"depends_on", TEXTS, false, NULL},
                                               {"registry", TRUTH, false, NULL},
                                               {"kind", CHOICE, false, contract_kinds},
                                               {"enforcement_level", CHOICE, false, levels},
                                               {"locked_level", TEXT, false, NULL},
                                               {"status", CHOICE, false, statuses},
                                               {"changelog", TEXTS, false, NULL},
                                               {"last_modified", TEXT, false, NULL},
                                               {NULL, TEXT, false, NULL}};
static const struct field equation_fields[] = {{"formula", TEXT, true, NULL},
                                               {"domain", TEXT, false, NULL},
                                               {"codomain", TEXT, false, NULL},
                                               {"invariants", TEXTS, false, NULL},
                                               {"preconditions", TEXTS, false, NULL},
                                               {"postconditions", TEXTS, false, NULL},
                                               {"float_tolerance", NUMBER, false, NULL},
                                               {"check", OBJECT, false, NULL},
                                               {"measure", OBJECT, false, NULL},
                                               {NULL, TEXT, false, NULL}};
static const struct field obligation_fields[] = {{"type", CHOICE, true, obligation_types},
                                                 {"property", TEXT, true, NULL},
                                                 {"formal", TEXT, false, NULL},
                                                 {"tolerance", NUMBER, false, NULL},
                                                 {"applies_to", CHOICE, false, targets},
                                                 {"na_reason", TEXT, false, NULL},
                                                 {"na_owner", TEXT, false, NULL},
                                                 {"requires", TEXT, false, NULL},
                                                 {"applies_to_phase", TEXT, false, NULL},
                                                 {"parent_contract", TEXT, false, NULL},
                                                 {NULL, TEXT, false, NULL}};
static const struct field test_fields[] = {{"id", TEXT, true, NULL},         {"rule", TEXT, true, NULL},
                                           {"prediction", TEXT, true, NULL}, {"test", TEXT, true, NULL},
                                           {"if_fails", TEXT, true, NULL},   {"check", OBJECT, false, NULL},
                                           {"measure", OBJECT, false, NULL}, {NULL, TEXT, false, NULL}};
static const struct field harness_fields[] = {{"id", TEXT, true, NULL},
                                              {"obligation", TEXT, true, NULL},
                                              {"property", TEXT, false, NULL},
                                              {"bound", COUNT, false, NULL},
                                              {"strategy", CHOICE, false, strategies},
                                              {"solver", TEXT, false, NULL},
                                              {"harness", TEXT, false, NULL},
                                              {NULL, TEXT, false, NULL}};
static const struct field gate_fields[] = {
    {"id", TEXT, true, NULL},      {"name", TEXT, true, NULL},          {"description", TEXT, false, NULL},
    {"checks", TEXTS, true, NULL}, {"pass_criteria", TEXT, true, NULL}, {"falsification", TEXT, false, NULL},
    {NULL, TEXT, false, NULL}};
static const struct field summary_fields[] = {{"total_obligations", COUNT, true, NULL},
                                              {"l2_property_tested", COUNT, false, NULL},
                                              {"l3_kani_proved", COUNT, false, NULL},
                                              {"l4_lean_proved", COUNT, false, NULL},
                                              {"l4_sorry_count", COUNT, false, NULL},
                                              {"l4_not_applicable", COUNT, false, NULL},
                                              {NULL, TEXT, false, NULL}};
static const struct field measure_fields[] = {{"model_sha256", SHA256, false, NULL},
                                              {"prompt", TEXT, false, NULL},
                                              {"chat", TRUTH, false, NULL},
                                              {"ids", IDS, false, NULL},
                                              {"decode", COUNT, false, NULL},
                                              {"path", TEXT, false, NULL},
                                              {"ref", TEXT, false, NULL},
                                              {"schedule", CHOICE, false, schedules},
                                              {"head", CHOICE, false, heads},
                                              {"kv", CHOICE, false, kv_types},
                                              {"arms", TEXTS, false, arms},
                                              {"expect_text", TEXTS, false, NULL},
                                              {NULL, TEXT, false, NULL}};

static const struct {
    const char *object;
    const struct field *fields;
} objects[] = {{"contract", contract_fields},
               {"metadata", metadata_fields},
               {"equation", equation_fields},
               {"proof_obligation", obligation_fields},
               {"falsification_test", test_fields},
               {"kani_harness", harness_fields},
               {"qa_gate", gate_fields},
               {"verification_summary", summary_fields},
               {"measure", measure_fields}};

bool par_contract_key(const char *object, int i, const char **name, bool *required) {
    for (size_t k = 0; k < sizeof objects / sizeof *objects; k++) {
        if (strcmp(objects[k].object, object) != 0)
            continue;
        for (int j = 0; objects[k].fields[j].name && j <= i; j++)
            if (j == i) {
                *name = objects[k].fields[j].name;
                *required = objects[k].fields[j].required;
                return true;
            }
    }
    return false;
}

/* ---- one value ---- */

static enum fwd_status check_choice(const struct par_json *doc, const struct cJSON *node, const char *what,
                                    const struct field *f, struct fwd_error *err) {
    const char *text = par_json_text(node);
    char known[256] = "";
    if (!text || !*text)
        return par_json_fail(doc, node, err, "%s: \"%s\" is %s, expected text", what, f->name,
                             text ? "empty" : "no text");
    if (!f->choices)
        return FWD_OK;
    for (int i = 0; f->choices[i]; i++) {
        size_t used = strlen(known);
        if (!strcmp(f->choices[i], text))
            return FWD_OK;
        (void)snprintf(known + used, sizeof known - used, "%s%s", i ? " " : "", f->choices[i]);
    }
    return par_json_fail(doc, node, err, "%s: \"%s\" is \"%s\", expected one of %s", what, f->name, text, known);
}

static enum fwd_status check_texts(const struct par_json *doc, const struct cJSON *node, const char *what,
                                   const struct field *f, struct fwd_error *err) {
    if (!par_json_is_array(node))
        return par_json_fail(doc, node, err, "%s: \"%s\" is no list, expected a list of texts", what, f->name);
    if (f->required && !par_json_first(node))
        return par_json_fail(doc, node, err, "%s: \"%s\" is empty, expected at least one", what, f->name);
    for (const struct cJSON *item = par_json_first(node); item; item = par_json_next(item))
        FWD_TRY(check_choice(doc, item, what, f, err));
    return FWD_OK;
}

/* MAJOR.MINOR.PATCH without leading zeros; the major number, or -1. */
static int parse_version(const char *text) {
    int major = -1, part = 0;
    for (const char *p = text; part < 3; part++, p++) {
        size_t n = strspn(p, "0123456789");
        int value = 0;
        if (n == 0 || n > 6 || (n > 1 && *p == '0'))
            return -1;
        for (size_t i = 0; i < n; i++)
            value = value * 10 + (p[i] - '0');
        major = part == 0 ? value : major;
        p += n;
        if (*p != (part < 2 ? '.' : 0))
            return -1;
        if (*p == 0)
            break;
    }
    return major;
}

static enum fwd_status check_ids(const struct par_json *doc, const struct cJSON *node, const char *what,
                                 const char *name, struct fwd_error *err) {
    int n = 0;
    int64_t id;
    if (!par_json_is_array(node) || !par_json_first(node))
        return par_json_fail(doc, node, err, "%s: \"%s\" is no list or empty, expected token ids", what, name);
    for (const struct cJSON *item = par_json_first(node); item; item = par_json_next(item), n++) {
        if (!par_json_int(item, &id) || id < 0 || id > INT32_MAX)
            return par_json_fail(doc, item, err, "%s: item %d of \"%s\" is no token id", what, n, name);
        if (n == PAR_MEASURE_MAX_IDS)
            return par_json_fail(doc, item, err, "%s: \"%s\" has more than %d ids", what, name, PAR_MEASURE_MAX_IDS);
    }
    return FWD_OK;
}

static enum fwd_status check_value(const struct par_json *doc, const struct cJSON *node, const char *what,
                                   const struct field *f, struct fwd_error *err) {
    const char *expected = NULL, *text = par_json_text(node);
    double number;
    int64_t whole;
    bool truth;
    switch (f->kind) {
    case TEXT:
    case CHOICE:
        return check_choice(doc, node, what, f, err);
    case TEXTS:
        return check_texts(doc, node, what, f, err);
    case IDS:
        return check_ids(doc, node, what, f->name, err);
    case SHA256:
        if (!text || strlen(text) != 64 || text[strspn(text, "0123456789abcdef")])
            expected = "64 lower-case hexadecimal digits";
        break;
    case VERSION:
        if (!text || parse_version(text) < 0)
            expected = "a version like 1.0.0";
        break;
    case NUMBER:
        if (!par_json_number(node, &number))
            expected = "a number";
        break;
    case COUNT:
        if (!par_json_int(node, &whole) || whole < 0 || whole > INT32_MAX)
            expected = "a whole number from 0";
        break;
    case TRUTH:
        if (!par_json_truth(node, &truth))
            expected = "true or false";
        break;
    case LIST:
        if (!par_json_is_array(node))
            expected = "a list";
        break;
    case OBJECT:
        if (!par_json_is_object(node))
            expected = "an object";
        break;
    }
    return expected ? par_json_fail(doc, node, err, "%s: \"%s\" is not what it should be, expected %s", what, f->name,
                                    expected)
                    : FWD_OK;
}

/* An object against its table: no unknown key, nothing required missing, every value of its kind. */
static enum fwd_status check_object(const struct par_json *doc, const struct cJSON *node, const char *what,
                                    const struct field *fields, struct fwd_error *err) {
    const char *keys[32];
    int n = 0;
    for (; fields[n].name; n++)
        keys[n] = fields[n].name;
    keys[n] = NULL;
    FWD_TRY(par_json_keys_only(doc, node, keys, err));
    for (int i = 0; i < n; i++) {
        const struct cJSON *value = par_json_get(node, keys[i]);
        if (!value && fields[i].required)
            return par_json_fail(doc, node, err, "%s: \"%s\" is missing", what, keys[i]);
        if (value)
            FWD_TRY(check_value(doc, value, what, &fields[i], err));
    }
    return FWD_OK;
}

static const char *text_of(const struct cJSON *object, const char *key) {
    return par_json_text(par_json_get(object, key));
}

static int count_items(const struct cJSON *list) {
    int n = 0;
    for (const struct cJSON *item = list ? par_json_first(list) : NULL; item; item = par_json_next(item))
        n++;
    return n;
}

/* ---- measures ---- */

static int fill_texts(const struct cJSON *list, const char **out, int max) {
    int n = 0;
    for (const struct cJSON *item = list ? par_json_first(list) : NULL; item && n < max; item = par_json_next(item))
        out[n++] = par_json_text(item);
    return n;
}

static enum fwd_status read_measure(const struct par_json *doc, const struct cJSON *node, struct par_measure *m,
                                    struct fwd_error *err) {
    *m = (struct par_measure){.decode = -1};
    if (!node)
        return FWD_OK;
    FWD_TRY(check_object(doc, node, "measure", measure_fields, err));
    int64_t number;
    m->model_sha256 = text_of(node, "model_sha256");
    m->prompt = text_of(node, "prompt");
    m->path = text_of(node, "path");
    m->ref = text_of(node, "ref");
    m->schedule = text_of(node, "schedule");
    m->head = text_of(node, "head");
    m->kv = text_of(node, "kv");
    if (par_json_get(node, "chat"))
        (void)par_json_truth(par_json_get(node, "chat"), &m->chat);
    if (par_json_get(node, "decode") && par_json_int(par_json_get(node, "decode"), &number))
        m->decode = (int)number;
    if (par_json_get(node, "ids"))
        for (const struct cJSON *item = par_json_first(par_json_get(node, "ids")); item; item = par_json_next(item))
            if (par_json_int(item, &number))
                m->ids[m->n_ids++] = (int32_t)number;
    m->nocache_arm = par_json_get(node, "arms") && par_json_first(par_json_get(node, "arms"));
    if (count_items(par_json_get(node, "expect_text")) > PAR_MEASURE_MAX_TEXTS)
        return par_json_fail(doc, node, err, "measure: \"expect_text\" has more than %d texts", PAR_MEASURE_MAX_TEXTS);
    m->n_expect = fill_texts(par_json_get(node, "expect_text"), m->expect_text, PAR_MEASURE_MAX_TEXTS);
    if (m->prompt && !m->n_ids)
        return par_json_fail(doc, node, err, "measure: \"prompt\" without \"ids\": expected the ids it must encode to");
    if (m->n_ids && !m->model_sha256)
        return par_json_fail(doc, node, err,
                             "measure: \"ids\" without \"model_sha256\": ids mean something for one vocabulary only");
    if (par_json_get(node, "chat") && !m->prompt)
        return par_json_fail(doc, node, err, "measure: \"chat\" without \"prompt\"");
    if (m->n_expect && !m->n_ids)
        return par_json_fail(doc, node, err, "measure: \"expect_text\" without \"ids\": expected a pinned prompt");
    return FWD_OK;
}

static bool same_text(const char *want, const char *have, const char *what, char *why, size_t n) {
    if (!want || (have && !strcmp(want, have)))
        return true;
    (void)snprintf(why, n, "this run has %s %s, expected %s", what, have ? have : "unknown", want);
    return false;
}

bool par_measure_fits(const struct par_measure *want, const struct par_measure *have, char *why, size_t n) {
    if (want->model_sha256 && (!have->model_sha256 || strcmp(want->model_sha256, have->model_sha256) != 0)) {
        (void)snprintf(why, n, "this run has another model: sha256 %.12s..., expected %.12s...",
                       have->model_sha256 ? have->model_sha256 : "unknown", want->model_sha256);
        return false;
    }
    if (want->n_ids &&
        (want->n_ids != have->n_ids || memcmp(want->ids, have->ids, (size_t)want->n_ids * sizeof *want->ids) != 0)) {
        (void)snprintf(why, n, "this run has another prompt: %d ids, expected %d pinned ones%s%s%s", have->n_ids,
                       want->n_ids, want->prompt ? " of \"" : "", want->prompt ? want->prompt : "",
                       !want->prompt ? ""
                       : want->chat  ? "\" in the chat form"
                                     : "\" as it is");
        return false;
    }
    if (want->decode >= 0 && want->decode != have->decode) {
        (void)snprintf(why, n, "this run has %d decode steps, expected %d", have->decode, want->decode);
        return false;
    }
    return same_text(want->path, have->path, "path", why, n) && same_text(want->ref, have->ref, "reference", why, n) &&
           same_text(want->schedule, have->schedule, "schedule", why, n) &&
           same_text(want->head, have->head, "head", why, n) && same_text(want->kv, have->kv, "KV cache", why, n);
}

/* ---- one contract ---- */

static enum fwd_status read_check(const struct par_json *doc, const struct cJSON *node, struct par_contract_test *t,
                                  struct fwd_error *err) {
    t->check = par_json_get(node, "check");
    if (t->check)
        FWD_TRY(par_condition_check(doc, t->check, err));
    else if (par_json_get(node, "measure"))
        return par_json_fail(doc, node, err, "\"measure\" without \"check\"");
    return read_measure(doc, par_json_get(node, "measure"), &t->measure, err);
}

/* FALSIFY-<AREA>-NNN */
static bool is_falsify_id(const char *id) {
    size_t n = strlen(id);
    return n >= 13 && n < 90 && !strncmp(id, "FALSIFY-", 8) &&
           !id[strspn(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")] && id[n - 4] == '-' &&
           isdigit((unsigned char)id[n - 3]) && isdigit((unsigned char)id[n - 2]) && isdigit((unsigned char)id[n - 1]);
}

static enum fwd_status refuse_twice(const struct par_json *doc, const struct cJSON *list, const struct cJSON *until,
                                    const char *key, const char *what, struct fwd_error *err) {
    const char *text = text_of(until, key);
    for (const struct cJSON *item = par_json_first(list); text && item != until; item = par_json_next(item))
        if (text_of(item, key) && !strcmp(text_of(item, key), text))
            return par_json_fail(doc, until, err, "%s: \"%s\" \"%s\" was seen before, on line %d", what, key, text,
                                 par_json_line(doc, item));
    return FWD_OK;
}

static enum fwd_status read_tests(struct par_contract *c, const struct cJSON *list, struct fwd_error *err) {
    for (const struct cJSON *item = par_json_first(list); item; item = par_json_next(item)) {
        struct par_contract_test *t = &c->tests[c->n_tests++];
        FWD_TRY(check_object(c->doc, item, "falsification test", test_fields, err));
        t->id = text_of(item, "id");
        t->rule = text_of(item, "rule");
        t->prediction = text_of(item, "prediction");
        t->if_fails = text_of(item, "if_fails");
        if (!is_falsify_id(t->id))
            return par_json_fail(c->doc, item, err, "falsification test: id \"%s\", expected FALSIFY-<AREA>-NNN",
                                 t->id);
        FWD_TRY(refuse_twice(c->doc, list, item, "id", "falsification test", err));
        FWD_TRY(read_check(c->doc, item, t, err));
    }
    return FWD_OK;
}

static enum fwd_status read_equations(struct par_contract *c, const struct cJSON *equations, struct fwd_error *err) {
    for (const struct cJSON *item = par_json_first(equations); item; item = par_json_next(item)) {
        struct par_contract_test t = {.id = par_json_name(item), .is_equation = true};
        FWD_TRY(check_object(c->doc, item, "equation", equation_fields, err));
        t.rule = t.prediction = t.if_fails = text_of(item, "formula");
        FWD_TRY(read_check(c->doc, item, &t, err));
        if (t.check)
            c->tests[c->n_tests++] = t;
    }
    return FWD_OK;
}

static enum fwd_status check_obligations(const struct par_contract *c, const struct cJSON *list,
                                         const struct cJSON *metadata, struct fwd_error *err) {
    const struct par_json *doc = c->doc;
    for (const struct cJSON *item = list ? par_json_first(list) : NULL; item; item = par_json_next(item)) {
        FWD_TRY(check_object(doc, item, "proof obligation", obligation_fields, err));
        FWD_TRY(refuse_twice(doc, list, item, "formal", "proof obligation", err));
        FWD_TRY(refuse_twice(doc, list, item, "property", "proof obligation", err));
        const char *target = text_of(item, "applies_to"), *parent = text_of(item, "parent_contract");
        if (target && !strcmp(target, "not_applicable") && !(text_of(item, "na_reason") && text_of(item, "na_owner")))
            return par_json_fail(doc, item, err,
                                 "proof obligation: not_applicable without \"na_reason\" and \"na_owner\"");
        bool found = !parent && strcmp(text_of(item, "type"), "subcontract") != 0;
        const struct cJSON *stems = par_json_get(metadata, "depends_on");
        for (const struct cJSON *stem = stems ? par_json_first(stems) : NULL; parent && stem;
             stem = par_json_next(stem))
            found = found || !strcmp(par_json_text(stem), parent);
        if (!found)
            return par_json_fail(doc, item, err,
                                 "proof obligation: parent_contract \"%s\", expected one of metadata's \"depends_on\"",
                                 parent ? parent : "");
    }
    return FWD_OK;
}

static enum fwd_status check_harnesses(const struct par_json *doc, const struct cJSON *list, struct fwd_error *err) {
    for (const struct cJSON *item = list ? par_json_first(list) : NULL; item; item = par_json_next(item)) {
        FWD_TRY(check_object(doc, item, "bounded harness", harness_fields, err));
        FWD_TRY(refuse_twice(doc, list, item, "id", "bounded harness", err));
    }
    return FWD_OK;
}

static enum fwd_status check_counts(const struct par_contract *c, const struct cJSON *root, struct fwd_error *err) {
    const struct cJSON *summary = par_json_get(root, "verification_summary");
    int64_t total;
    if (!strcmp(c->kind, "kernel")) {
        if (!c->n_equations || !c->n_obligations || !c->n_falsifications || !c->n_harnesses)
            return par_json_fail(c->doc, root, err,
                                 "kind kernel with %d equations, %d proof obligations, %d falsification tests, %d "
                                 "bounded harnesses, expected at least one of each",
                                 c->n_equations, c->n_obligations, c->n_falsifications, c->n_harnesses);
        if (c->n_falsifications < c->n_obligations)
            return par_json_fail(c->doc, par_json_get(root, "falsification_tests"), err,
                                 "%d falsification tests for %d proof obligations, expected at least as many",
                                 c->n_falsifications, c->n_obligations);
    }
    if (!c->n_falsifications)
        return par_json_fail(c->doc, par_json_get(root, "falsification_tests"), err,
                             "\"falsification_tests\" is empty, expected at least one");
    if (!summary)
        return FWD_OK;
    FWD_TRY(check_object(c->doc, summary, "verification summary", summary_fields, err));
    if (par_json_int(par_json_get(summary, "total_obligations"), &total) && total != c->n_obligations)
        return par_json_fail(c->doc, summary, err, "\"total_obligations\" is %lld, the file has %d", (long long)total,
                             c->n_obligations);
    return FWD_OK;
}

static enum fwd_status read_document(struct par_contract *c, struct fwd_error *err) {
    const struct cJSON *root = par_json_root(c->doc);
    FWD_TRY(check_object(c->doc, root, "contract", contract_fields, err));
    const struct cJSON *metadata = par_json_get(root, "metadata"), *equations = par_json_get(root, "equations");
    const struct cJSON *obligations = par_json_get(root, "proof_obligations");
    const struct cJSON *tests = par_json_get(root, "falsification_tests");
    const struct cJSON *harnesses = par_json_get(root, "kani_harnesses"), *gate = par_json_get(root, "qa_gate");
    FWD_TRY(check_object(c->doc, metadata, "metadata", metadata_fields, err));
    c->version = text_of(metadata, "version");
    c->version_major = parse_version(c->version);
    c->kind = text_of(metadata, "kind") ? text_of(metadata, "kind") : "kernel";
    c->status = text_of(metadata, "status") ? text_of(metadata, "status") : "";
    c->n_equations = count_items(equations);
    c->n_obligations = count_items(obligations);
    c->n_falsifications = count_items(tests);
    c->n_harnesses = count_items(harnesses);
    size_t n = (size_t)(c->n_falsifications + c->n_equations);
    c->tests = fwd_calloc(n ? n : 1, sizeof *c->tests);
    FWD_FAIL_IF(!c->tests, FWD_ENOMEM, err, "%s: no memory for %zu tests", par_json_file(c->doc), n);
    FWD_TRY(read_tests(c, tests, err));
    FWD_TRY(read_equations(c, equations, err));
    FWD_TRY(check_obligations(c, obligations, metadata, err));
    FWD_TRY(check_harnesses(c->doc, harnesses, err));
    if (gate)
        FWD_TRY(check_object(c->doc, gate, "qa gate", gate_fields, err));
    return check_counts(c, root, err);
}

static void name_after_file(struct par_contract *c, const char *file) {
    const char *slash = strrchr(file, '/'), *name = slash ? slash + 1 : file;
    size_t n = strlen(name);
    if (n > 5 && !strcmp(name + n - 5, ".json"))
        n -= 5;
    (void)snprintf(c->name, sizeof c->name, "%.*s", (int)(n < sizeof c->name ? n : sizeof c->name - 1), name);
}

static enum fwd_status take_document(struct par_contract *c, struct fwd_error *err) {
    name_after_file(c, par_json_file(c->doc));
    enum fwd_status rc = read_document(c, err);
    if (rc != FWD_OK)
        par_contract_free(c);
    return rc;
}

enum fwd_status par_contract_read(struct par_contract *out, const char *path, struct fwd_error *err) {
    memset(out, 0, sizeof *out);
    FWD_TRY(par_json_read(&out->doc, path, MAX_FILE_BYTES, err));
    return take_document(out, err);
}

enum fwd_status par_contract_parse(struct par_contract *out, const char *text, size_t n, const char *file,
                                   struct fwd_error *err) {
    memset(out, 0, sizeof *out);
    FWD_TRY(par_json_parse(&out->doc, text, n, file, err));
    return take_document(out, err);
}

void par_contract_free(struct par_contract *c) {
    par_json_free(c->doc);
    fwd_free(c->tests);
    memset(c, 0, sizeof *c);
}

/* ---- a set ---- */

/* Where an id of contract c stands in its file: the line of the test. */
static int line_of(const struct par_contract *c, int test, const struct cJSON **node) {
    const struct cJSON *item = par_json_first(par_json_get(par_json_root(c->doc), "falsification_tests"));
    for (int i = 0; i < test; i++)
        item = par_json_next(item);
    *node = item;
    return par_json_line(c->doc, item);
}

static enum fwd_status refuse_shared_ids(const struct par_contract_set *set, struct fwd_error *err) {
    const struct par_contract *last = &set->contracts[set->n - 1];
    const struct cJSON *node, *other;
    for (int k = 0; k + 1 < set->n; k++) {
        const struct par_contract *c = &set->contracts[k];
        if (!strcmp(c->name, last->name))
            return par_json_fail(last->doc, par_json_root(last->doc), err, "contract %s was read before, from %s",
                                 last->name, par_json_file(c->doc));
        for (int i = 0; i < c->n_falsifications; i++)
            for (int j = 0; j < last->n_falsifications; j++)
                if (!strcmp(c->tests[i].id, last->tests[j].id)) {
                    (void)line_of(last, j, &node);
                    return par_json_fail(last->doc, node, err,
                                         "falsification test: id \"%s\" was seen before, at %s:%d", last->tests[j].id,
                                         par_json_file(c->doc), line_of(c, i, &other));
                }
    }
    return FWD_OK;
}

static enum fwd_status add_file(struct par_contract_set *set, const char *path, struct fwd_error *err) {
    FWD_FAIL_IF(set->n == MAX_CONTRACTS, FWD_ERANGE, err, "contracts: more than %d files", MAX_CONTRACTS);
    struct par_contract *bigger =
        fwd_realloc(set->contracts, (size_t)set->n * sizeof *bigger, (size_t)set->n + 1, sizeof *bigger);
    FWD_FAIL_IF(!bigger, FWD_ENOMEM, err, "contracts: no memory for %d files", set->n + 1);
    set->contracts = bigger;
    FWD_TRY(par_contract_read(&set->contracts[set->n], path, err));
    set->n++;
    return refuse_shared_ids(set, err);
}

static enum fwd_status add_pattern(struct par_contract_set *set, const char *pattern, struct fwd_error *err) {
    glob_t found;
    int rc = glob(pattern, 0, NULL, &found);
    FWD_FAIL_IF(rc == GLOB_NOMATCH, FWD_ENOTFOUND, err, "contracts: no file %s", pattern);
    FWD_FAIL_IF(rc != 0, FWD_EIO, err, "contracts: %s: cannot be searched", pattern);
    enum fwd_status status = FWD_OK;
    for (size_t i = 0; status == FWD_OK && i < found.gl_pathc; i++)
        status = add_file(set, found.gl_pathv[i], err);
    globfree(&found);
    return status;
}

enum fwd_status par_contracts_load(struct par_contract_set *set, const char *const *patterns, int n_patterns,
                                   struct fwd_error *err) {
    memset(set, 0, sizeof *set);
    enum fwd_status rc = FWD_OK;
    for (int i = 0; rc == FWD_OK && i < n_patterns; i++)
        rc = add_pattern(set, patterns[i], err);
    if (rc != FWD_OK)
        par_contracts_free(set);
    return rc;
}

bool par_contracts_want_nocache(const struct par_contract_set *set) {
    for (int k = 0; k < set->n; k++)
        for (int i = 0; i < set->contracts[k].n_tests; i++)
            if (set->contracts[k].tests[i].measure.nocache_arm)
                return true;
    return false;
}

void par_contracts_free(struct par_contract_set *set) {
    for (int i = 0; i < set->n; i++)
        par_contract_free(&set->contracts[i]);
    fwd_free(set->contracts);
    memset(set, 0, sizeof *set);
}
