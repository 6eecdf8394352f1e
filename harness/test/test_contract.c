/* Contracts: what the strict reader refuses and on which line; every falsification id of the shipped contracts turned
 * red by each figure that it names; conditions over three truth values; the JSON schema against the reader. */
#include "contract/contract_eval.h"
#include "contract/hypothesis.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- the reader ---- */

static const char base[] =
    "{\"metadata\": {\"version\": \"1.2.3\", \"description\": \"d\",\n"
    "  \"references\": [\"r\"], \"kind\": \"kernel\", \"depends_on\": [\"p\"]},\n"
    "\"equations\": {\"e\": {\"formula\": \"x\"}},\n"
    "\"proof_obligations\": [\n"
    "  {\"type\": \"bound\", \"property\": \"p1\", \"formal\": \"f1\"},\n"
    "  {\"type\": \"frame\", \"property\": \"p2\"}],\n"
    "\"falsification_tests\": [\n"
    "  {\"id\": \"FALSIFY-T-001\", \"rule\": \"r\", \"prediction\": \"p\", \"test\": \"t\",\n"
    "   \"if_fails\": \"i\", \"check\": {\"figure\": \"repeats\", \"is\": \">\", \"value\": 1},\n"
    "   \"measure\": {\"decode\": 5}},\n"
    "  {\"id\": \"FALSIFY-T-002\", \"rule\": \"r\", \"prediction\": \"p\", \"test\": \"t\",\n"
    "   \"if_fails\": \"i\"}],\n"
    "\"kani_harnesses\": [{\"id\": \"B1\", \"obligation\": \"o\", \"bound\": 3},\n"
    "  {\"id\": \"B2\", \"obligation\": \"o\"}],\n"
    "\"verification_summary\": {\"total_obligations\": 2}}\n";

static const struct {
    const char *find, *replace;
    int line;
    const char *message;
} refusals[] = {
    {"\"equations\"", "\"equation\"", 3, "unknown key \"equation\""},
    {"\"rule\": \"r\", ", "\"rule\": \"r\", \"shell\": \"rm\", ", 8, "unknown key \"shell\""},
    {"\"kind\": \"kernel\", ", "\"kind\": \"kernel\", \"name\": \"n\", ", 2, "unknown key \"name\""},
    {"{\"decode\": 5}", "{\"decodes\": 5}", 10, "unknown key \"decodes\""},
    {"\"bound\": 3", "\"bounds\": 3", 13, "unknown key \"bounds\""},
    {"FALSIFY-T-002", "FALSIFY-T-001", 11, "\"FALSIFY-T-001\" was seen before, on line 8"},
    {"\"B2\"", "\"B1\"", 14, "\"B1\" was seen before, on line 13"},
    {"\"p2\"", "\"p1\"", 6, "\"p1\" was seen before, on line 5"},
    {"FALSIFY-T-002", "T-002", 11, "expected FALSIFY-<AREA>-NNN"},
    {"FALSIFY-T-002", "FALSIFY-T-02", 11, "expected FALSIFY-<AREA>-NNN"},
    {"\"prediction\": \"p\", ", "", 8, "\"prediction\" is missing"},
    {"\"prediction\": \"p\"", "\"prediction\": \"\"", 8, "\"prediction\" is empty"},
    {"\"prediction\": \"p\"", "\"prediction\": 1", 8, "\"prediction\" is no text"},
    {"\"if_fails\": \"i\",", "", 8, "\"if_fails\" is missing"},
    {"[\"r\"]", "[]", 2, "\"references\" is empty"},
    {"[\"r\"]", "[\"\"]", 2, "\"references\" is empty"},
    {"\n  \"references\": [\"r\"], ", "\n", 1, "\"references\" is missing"},
    {"1.2.3", "1.2", 1, "\"version\" is not what it should be"},
    {"1.2.3", "1.02.3", 1, "\"version\" is not what it should be"},
    {"1.2.3", "1.2.3-rc", 1, "\"version\" is not what it should be"},
    {"\"kernel\"", "\"kernels\"", 2, "\"kind\" is \"kernels\", expected one of kernel registry"},
    {"\"bound\", ", "\"bounded\", ", 5, "\"type\" is \"bounded\", expected one of invariant"},
    {"\"frame\"", "\"subcontract\"", 6, "parent_contract \"\", expected one of"},
    {"\"frame\"", "\"frame\", \"parent_contract\": \"q\"", 6, "parent_contract \"q\", expected one of"},
    {"\"frame\"", "\"frame\", \"applies_to\": \"not_applicable\"", 6, "without \"na_reason\""},
    {"{\"formula\": \"x\"}", "{}", 3, "\"formula\" is missing"},
    {"{\"e\": {\"formula\": \"x\"}}", "{}", 1, "0 equations"},
    {"{\"total_obligations\": 2}", "{\"total_obligations\": 3}", 15, "\"total_obligations\" is 3, the file has 2"},
    {"\"value\": 1}", "\"value\": 1, \"or\": 2}", 9, "unknown key \"or\""},
    {"\"repeats\"", "\"repaets\"", 9, "no figure \"repaets\", the nearest is repeats"},
    {"\"repeats\"", "\"cand.accused.norms\"", 9, "no figure \"cand.accused.norms\""},
    {"\"is\": \">\"", "\"is\": \"~\"", 9, "\"is\" is \"~\""},
    {"\"check\": {\"figure\": \"repeats\", \"is\": \">\", \"value\": 1},\n", "\n", 8, "\"measure\" without \"check\""},
    {"{\"decode\": 5}", "{\"decode\": -1}", 10, "\"decode\" is not what it should be"},
    {"{\"decode\": 5}", "{\"model_sha256\": \"ab\"}", 10, "64 lower-case hexadecimal digits"},
    {"{\"decode\": 5}", "{\"prompt\": \"x\"}", 10, "\"prompt\" without \"ids\""},
    {"{\"decode\": 5}", "{\"ids\": [1]}", 10, "\"ids\" without \"model_sha256\""},
    {"{\"decode\": 5}", "{\"ids\": [1, -2]}", 10, "item 1 of \"ids\" is no token id"},
    {"{\"decode\": 5}", "{\"ids\": []}", 10, "\"ids\" is no list or empty"},
    {"{\"decode\": 5}", "{\"chat\": true}", 10, "\"chat\" without \"prompt\""},
    {"{\"decode\": 5}", "{\"expect_text\": [\"a\"]}", 10, "\"expect_text\" without \"ids\""},
    {"{\"decode\": 5}", "{\"arms\": [\"all\"]}", 10, "\"arms\" is \"all\", expected one of schedule_nocache"},
    {"{\"decode\": 5}", "{\"head\": \"f16\"}", 10, "\"head\" is \"f16\", expected one of quant f32"},
    {",\n  {\"id\": \"FALSIFY-T-002\", \"rule\": \"r\", \"prediction\": \"p\", \"test\": \"t\",\n   \"if_fails\": "
     "\"i\"}",
     "", 7, "1 falsification tests for 2 proof obligations"},
};
enum { N_REFUSALS = sizeof refusals / sizeof *refusals };

static enum fwd_status parse(struct par_contract *c, const char *text, struct fwd_error *err) {
    return par_contract_parse(c, text, strlen(text), "dir/t.json", err);
}

START_TEST(refuses) {
    const char *find = refusals[_i].find, *at = strstr(base, find);
    char text[4096], place[32];
    struct par_contract c;
    struct fwd_error err = {0};
    ck_assert_ptr_nonnull(at);
    (void)snprintf(text, sizeof text, "%.*s%s%s", (int)(at - base), base, refusals[_i].replace, at + strlen(find));
    (void)snprintf(place, sizeof place, "dir/t.json:%d: ", refusals[_i].line);
    ck_assert_msg(parse(&c, text, &err) == FWD_ECORRUPT, "taken: %s", refusals[_i].replace);
    ck_assert_msg(!strncmp(err.message, place, strlen(place)) && strstr(err.message, refusals[_i].message),
                  "got \"%s\", expected \"%s%s\"", err.message, place, refusals[_i].message);
    ck_assert_ptr_null(c.doc);
}
END_TEST

START_TEST(takes) {
    struct par_contract c;
    struct fwd_error err = {0};
    ck_assert_msg(parse(&c, base, &err) == FWD_OK, "%s", err.message);
    ck_assert_str_eq(c.name, "t");
    ck_assert_int_eq(c.version_major, 1);
    ck_assert_int_eq(c.n_tests, 2);
    ck_assert_int_eq(c.n_obligations, 2);
    ck_assert_int_eq(c.n_harnesses, 2);
    ck_assert_int_eq(c.tests[0].measure.decode, 5);
    ck_assert_int_eq(c.tests[1].measure.decode, -1);
    ck_assert_ptr_null(c.tests[1].check);
    par_contract_free(&c);
}
END_TEST

START_TEST(an_id_of_two_files) {
    char dir[] = "/tmp/test_contract_XXXXXX", a[64], b[64];
    struct par_contract_set set;
    struct fwd_error err = {0};
    ck_assert_ptr_nonnull(mkdtemp(dir));
    (void)snprintf(a, sizeof a, "%s/a.json", dir);
    (void)snprintf(b, sizeof b, "%s/b.json", dir);
    ck_assert_int_eq(fwd_file_write(a, base, strlen(base), &err), FWD_OK);
    ck_assert_int_eq(fwd_file_write(b, base, strlen(base), &err), FWD_OK);
    const char *both[] = {a, b}, *none[] = {"/tmp/test_contract_none/*.json"};
    ck_assert_int_eq(par_contracts_load(&set, both, 2, &err), FWD_ECORRUPT);
    ck_assert_msg(strstr(err.message, "b.json:11: ") != NULL || strstr(err.message, "b.json:8: ") != NULL, "%s",
                  err.message);
    ck_assert_msg(strstr(err.message, "a.json:8") != NULL, "%s", err.message);
    ck_assert_int_eq(par_contracts_load(&set, none, 1, &err), FWD_ENOTFOUND);
    (void)unlink(a);
    (void)unlink(b);
    (void)rmdir(dir);
}
END_TEST

/* ---- the shipped files ---- */

static struct par_contract_set load_shipped(void) {
    static const char *const all[] = {"contracts/*.json"};
    struct par_contract_set set;
    struct fwd_error err = {0};
    ck_assert_msg(par_contracts_load(&set, all, 1, &err) == FWD_OK, "%s", err.message);
    return set;
}

static const struct par_contract *contract_named(const struct par_contract_set *set, const char *name) {
    for (int i = 0; i < set->n; i++)
        if (!strcmp(set->contracts[i].name, name))
            return &set->contracts[i];
    ck_abort_msg("no contract %s", name);
}

START_TEST(shipped_parts) {
    struct par_contract_set set = load_shipped();
    const struct par_contract *c = contract_named(&set, "apr-cli-model-1-ship-via-cpu-v1");
    ck_assert_int_eq(c->n_equations, 3);
    ck_assert_int_eq(c->n_obligations, 5);
    ck_assert_int_eq(c->n_falsifications, 6);
    ck_assert_int_eq(c->n_harnesses, 2);
    for (int i = 0; i < 6; i++) {
        char id[64];
        (void)snprintf(id, sizeof id, "FALSIFY-MODEL-1-SHIP-CPU-%03d", i + 1);
        ck_assert_str_eq(c->tests[i].id, id);
    }
    par_contracts_free(&set);
}
END_TEST

static bool file_has(const char *path, const char *text) {
    static char bytes[1 << 20];
    FILE *f = fopen(path, "rb");
    if (!f)
        return false;
    bytes[fread(bytes, 1, sizeof bytes - 1, f)] = 0;
    (void)fclose(f);
    return strstr(bytes, text) != NULL;
}

/* Every bounded harness names a Check test that is there: "FILE: TEST". */
START_TEST(shipped_harnesses_exist) {
    struct par_contract_set set = load_shipped();
    int n = 0;
    for (int i = 0; i < set.n; i++) {
        const struct cJSON *list = par_json_get(par_json_root(set.contracts[i].doc), "kani_harnesses");
        for (const struct cJSON *h = par_json_first(list); h; h = par_json_next(h), n++) {
            const char *where = par_json_text(par_json_get(h, "harness"));
            char file[128], start[128];
            ck_assert_ptr_nonnull(where);
            const char *colon = strstr(where, ": ");
            ck_assert_ptr_nonnull(colon);
            (void)snprintf(file, sizeof file, "%.*s", (int)(colon - where), where);
            (void)snprintf(start, sizeof start, "START_TEST(%s)", colon + 2);
            ck_assert_msg(file_has(file, start), "%s has no %s", file, start);
        }
    }
    ck_assert_int_ge(n, 3);
    par_contracts_free(&set);
}
END_TEST

/* ---- turning each id red ---- */

#define MODEL "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"
static const int32_t question[] = {151644, 872, 198, 3838, 374, 220, 17, 10, 17, 30, 151645, 198, 151644, 77091, 198};
static const int32_t chosen[] = {17, 10, 17, 16819, 220};

static const struct {
    const char *id, *figure;
    double good, bad;
} figures_of[] = {
    {"FALSIFY-MODEL-1-SHIP-CPU-001", "greedy.tokens", 6, 5},
    {"FALSIFY-MODEL-1-SHIP-CPU-001", "greedy.equal_or_certified", 6, 5},
    {"FALSIFY-MODEL-1-SHIP-CPU-001", "first_token.held", 1, 0},
    {"FALSIFY-MODEL-1-SHIP-CPU-001", "text.matches", 1, 0},
    {"FALSIFY-MODEL-1-SHIP-CPU-002", "cand.judged_elements", 9, 0},
    {"FALSIFY-MODEL-1-SHIP-CPU-002", "cand.unmeasured_ops", 0, 1},
    {"FALSIFY-MODEL-1-SHIP-CPU-002", "cand.nonfinite", 0, 1},
    {"FALSIFY-MODEL-1-SHIP-CPU-002", "cand.accused", 0, 1},
    {"FALSIFY-MODEL-1-SHIP-CPU-003", "contract.equations", 3, 2},
    {"FALSIFY-MODEL-1-SHIP-CPU-003", "contract.obligations", 5, 4},
    {"FALSIFY-MODEL-1-SHIP-CPU-003", "contract.falsification_tests", 6, 5},
    {"FALSIFY-MODEL-1-SHIP-CPU-003", "contract.bounded_harnesses", 2, 1},
    {"FALSIFY-MODEL-1-SHIP-CPU-003", "contract.unchecked_tests", 0, 1},
    {"FALSIFY-MODEL-1-SHIP-CPU-004", "variants.recorded", 10, 0},
    {"FALSIFY-MODEL-1-SHIP-CPU-004", "weights.audited", 75, 0},
    {"FALSIFY-MODEL-1-SHIP-CPU-004", "weights.differ", 0, 1},
    {"FALSIFY-MODEL-1-SHIP-CPU-004", "repeats", 2, 0},
    {"FALSIFY-MODEL-1-SHIP-CPU-004", "neutral", 1, 0},
    {"FALSIFY-MODEL-1-SHIP-CPU-004", "deterministic", 1, 0},
    {"FALSIFY-MODEL-1-SHIP-CPU-005", "contract.version_major", 1, 2},
    {"FALSIFY-MODEL-1-SHIP-CPU-005", "taps.views", 9, 0},
    {"FALSIFY-MODEL-1-SHIP-CPU-005", "cand.on_device", 0, 1},
    {"FALSIFY-MODEL-1-SHIP-CPU-005", "taps.on_device", 0, 1},
    {"FALSIFY-MODEL-1-SHIP-CPU-006", "report.cites_contract", 5, 4},
    {"FALSIFY-MODEL-1-SHIP-CPU-006", "report.identity", 1, 0},
    {"cpu_path_answers", "greedy.tokens", 6, 5},
    {"cpu_path_answers", "greedy.equal_or_certified", 6, 5},
    {"cpu_path_answers", "text.matches", 1, 0},
    {"gpu_path_known_issue", "first_token.held", 1, 0},
    {"gpu_fix_obligation", "cand.judged.head", 9, 0},
    {"gpu_fix_obligation", "cand.accused", 0, 1},
    {"gpu_fix_obligation", "cand.unmeasured_ops", 0, 1},
    {"gpu_fix_obligation", "cand.on_device", 1, 0},
    {"FALSIFY-SHIP-007-GPU-001", "cand.on_device", 1, 0},
    {"FALSIFY-SHIP-007-GPU-001", "cand.judged.head", 9, 0},
    {"FALSIFY-SHIP-007-GPU-001", "cand.accused", 0, 1},
    {"FALSIFY-SHIP-007-GPU-001", "cand.unmeasured_ops", 0, 1},
    {"FALSIFY-SHIP-007-GPU-001", "cand.nonfinite", 0, 1},
    {"FALSIFY-SHIP-007-GPU-002", "cand.on_device", 1, 0},
    {"FALSIFY-SHIP-007-GPU-002", "first_token.elements", 9, 0},
    {"FALSIFY-SHIP-007-GPU-002", "first_token.held", 1, 0},
    {"FALSIFY-SHIP-007-GPU-003", "cand.on_device", 1, 0},
    {"FALSIFY-SHIP-007-GPU-003", "cand.judged.head", 9, 0},
    {"FALSIFY-SHIP-007-GPU-003", "cand.accused", 0, 1},
    {"FALSIFY-SHIP-007-GPU-003", "cand.unmeasured_ops", 0, 1},
    {"FALSIFY-SHIP-007-GPU-003", "first_token.held", 1, 0},
    {"FALSIFY-SHIP-007-GPU-004", "cand.on_device", 1, 0},
    {"FALSIFY-SHIP-007-GPU-004", "arm.path_q4k-cuda.same_bits", 1, 0},
    {"FALSIFY-SHIP-007-GPU-004", "arm.path_q4k-cpu.same_bits", 1, 0},
    {"FALSIFY-SHIP-007-GPU-004", "arm.schedule_step.same_bits", 1, 0},
    {"FALSIFY-SHIP-007-GPU-004", "arm.schedule_sweep.same_bits", 1, 0},
    {"FALSIFY-SHIP-007-GPU-004", "routes.other_bits", 0, 1},
    {"FALSIFY-SHIP-007-GPU-005", "cand.on_device", 1, 0},
    {"FALSIFY-SHIP-007-GPU-005", "neutral", 1, 0},
    {"FALSIFY-SHIP-007-GPU-005", "deterministic", 1, 0},
    {"FALSIFY-SHIP-007-GPU-005", "repeats", 2, 0},
    {"FALSIFY-SHIP-007-GPU-005", "weights.audited", 75, 0},
    {"FALSIFY-SHIP-007-GPU-005", "weights.differ", 0, 1},
    {"FALSIFY-SHIP-007-GPU-005", "variants.recorded", 10, 0},
    {"FALSIFY-RUN-TRACE-001", "first_token.elements", 9, 0},
    {"FALSIFY-RUN-TRACE-001", "logits.nonfinite", 0, 1},
    {"FALSIFY-RUN-TRACE-001", "first_token.held", 1, 0},
    {"FALSIFY-RUN-TRACE-002", "ref.judged_elements", 9, 0},
    {"FALSIFY-RUN-TRACE-002", "cand.judged_elements", 9, 0},
    {"FALSIFY-RUN-TRACE-002", "ref.unmeasured_ops", 0, 1},
    {"FALSIFY-RUN-TRACE-002", "cand.unmeasured_ops", 0, 1},
    {"FALSIFY-RUN-TRACE-002", "ref.accused", 0, 1},
    {"FALSIFY-RUN-TRACE-002", "cand.accused", 0, 1},
    {"FALSIFY-RUN-TRACE-003", "arm.schedule_nocache.same_bits", 1, 0},
    {"FALSIFY-RUN-TRACE-004", "ref.judged.rope", 9, 0},
    {"FALSIFY-RUN-TRACE-004", "cand.judged.rope", 9, 0},
    {"FALSIFY-RUN-TRACE-004", "ref.accused.rope", 0, 1},
    {"FALSIFY-RUN-TRACE-004", "cand.accused.rope", 0, 1},
    {"FALSIFY-RUN-TRACE-005", "variants.recorded", 10, 0},
    {"FALSIFY-RUN-TRACE-005", "config.differs", 0, 1},
    {"FALSIFY-RUN-TRACE-005", "weights.audited", 75, 0},
    {"FALSIFY-RUN-TRACE-005", "weights.differ", 0, 1},
    {"FALSIFY-RUN-TRACE-005", "neutral", 1, 0},
    {"FALSIFY-OP-BOUNDS-001", "cand.judged_elements", 9, 0},
    {"FALSIFY-OP-BOUNDS-001", "ref.judged_elements", 9, 0},
    {"FALSIFY-OP-BOUNDS-001", "residue_max", 0.5, 1.5},
    {"FALSIFY-OP-BOUNDS-001", "cand.accused", 0, 1},
    {"FALSIFY-OP-BOUNDS-001", "ref.accused", 0, 1},
    {"FALSIFY-OP-BOUNDS-002", "cand.judged.embed", 9, 0},
    {"FALSIFY-OP-BOUNDS-002", "ref.judged.embed", 9, 0},
    {"FALSIFY-OP-BOUNDS-002", "cand.residue_max.embed", 0, 1},
    {"FALSIFY-OP-BOUNDS-002", "ref.residue_max.embed", 0, 1},
    {"FALSIFY-OP-BOUNDS-003", "positions.prompt", 64, 63},
    {"FALSIFY-OP-BOUNDS-003", "positions.decode", 1, 0},
    {"FALSIFY-OP-BOUNDS-003", "coverage", 1, 0},
    {"FALSIFY-OP-BOUNDS-004", "neutral", 1, 0},
    {"FALSIFY-OP-BOUNDS-004", "logits.behind_tap", 0, 1},
    {"FALSIFY-OP-BOUNDS-004", "variants.recorded", 9, 0},
    {"FALSIFY-OP-BOUNDS-004", "weights.differ", 0, 1},
    {"FALSIFY-OP-BOUNDS-005", "cand.unmeasured_ops", 0, 1},
    {"FALSIFY-OP-BOUNDS-005", "ref.unmeasured_ops", 0, 1},
    {"FALSIFY-OP-BOUNDS-005", "cand.mistrusted_ops", 0, 1},
    {"FALSIFY-OP-BOUNDS-005", "ref.mistrusted_ops", 0, 1},
    {"FALSIFY-KV-001", "cand.judged.kv", 9, 0},
    {"FALSIFY-KV-001", "cand.accused.kv", 0, 1},
    {"FALSIFY-KV-001", "cand.residue_max.kv", 0, 1},
    {"FALSIFY-KV-002", "arm.schedule_sweep.same_bits", 1, 0},
    {"FALSIFY-KV-003", "arm.schedule_nocache.same_bits", 1, 0},
    {"FALSIFY-KV-004", "arm.slot_reuse.same_bits", 1, 0},
    {"FALSIFY-ACT-QUANT-001", "cand.judged.act_quant", 9, 0},
    {"FALSIFY-ACT-QUANT-001", "cand.residue_max.act_quant", 0, 1},
    {"FALSIFY-ACT-QUANT-001", "cand.accused.act_quant", 0, 1},
    {"FALSIFY-ACT-QUANT-002", "ledger.elements", 9, 0},
    {"FALSIFY-ACT-QUANT-002", "unexplained", 0, 1},
    {"FALSIFY-ACT-QUANT-002", "ledger.gap_max", 1e-13, 1e-11},
    {"FALSIFY-ACT-QUANT-003", "ledger.activation", 9, 0},
    {"FALSIFY-ACT-QUANT-003", "ledger.rounding", 1e-06, 0.0001},
    {"FALSIFY-ROPE-001", "cand.judged.rope", 9, 0},
    {"FALSIFY-ROPE-001", "ref.judged.rope", 9, 0},
    {"FALSIFY-ROPE-001", "cand.accused.rope", 0, 1},
    {"FALSIFY-ROPE-001", "ref.accused.rope", 0, 1},
    {"FALSIFY-ROPE-001", "cand.residue_max.rope", 0.5, 1.5},
    {"FALSIFY-ROPE-002", "positions.prompt", 64, 63},
    {"FALSIFY-ROPE-002", "positions.decode", 1, 0},
    {"FALSIFY-ROPE-002", "coverage", 1, 0},
    {"FALSIFY-ROPE-003", "config.differs", 0, 1},
    {"FALSIFY-DETERMINISM-001", "neutral", 1, 0},
    {"FALSIFY-DETERMINISM-002", "repeats", 5, 4},
    {"FALSIFY-DETERMINISM-002", "deterministic", 1, 0},
    {"FALSIFY-DETERMINISM-003", "fresh_process", 1, 0},
    {"FALSIFY-DETERMINISM-004", "arm.threads.same_bits", 1, 0},
};
enum { N_FIGURES = sizeof figures_of / sizeof *figures_of };

/* A finished run as the tests want it, and a place for rows. */
struct scene {
    struct par_contract_set set;
    const struct par_contract *contract;
    int test;
    int32_t ids[32];
    struct par_report report;
    struct par_figures *figures;
    struct par_contract_run run;
    struct par_report out;
};

static void find_test(struct scene *s, const char *id) {
    for (int k = 0; k < s->set.n; k++)
        for (int i = 0; i < s->set.contracts[k].n_tests; i++)
            if (!strcmp(s->set.contracts[k].tests[i].id, id)) {
                s->contract = &s->set.contracts[k];
                s->test = i;
                return;
            }
    ck_abort_msg("no shipped contract has %s", id);
}

static void put_rows(struct scene *s, int n) {
    struct par_report_contract *rows = par_text_alloc(s->out.text, (size_t)n * sizeof *rows);
    for (int i = 0; i < n; i++)
        rows[i] = (struct par_report_contract){s->contract->name, "x", "r", PAR_HELD, ""};
    s->out.contracts = rows;
    s->out.n_contracts = n;
}

static void open_scene(struct scene *s, const char *id) {
    enum { N_PROMPT = sizeof question / sizeof *question, N_CHOSEN = sizeof chosen / sizeof *chosen };
    memset(s, 0, sizeof *s);
    s->set = load_shipped();
    find_test(s, id);
    memcpy(s->ids, question, sizeof question);
    memcpy(s->ids + N_PROMPT, chosen, sizeof chosen);
    s->report = (struct par_report){.model_sha256 = MODEL,
                                    .ref_path = "f64",
                                    .cand_path = "q4k-cpu",
                                    .command = "parity run",
                                    .ids = s->ids,
                                    .n_ids = N_PROMPT + N_CHOSEN,
                                    .n_prompt = N_PROMPT};
    s->figures = par_figures_create();
    s->out.text = par_text_create();
    ck_assert_ptr_nonnull(s->figures);
    ck_assert_ptr_nonnull(s->out.text);
    par_contract_run_fill(&s->run, &s->report, s->figures, "prefill", "quant", "f16");
    /* A test about another path is asked of a run of that path. */
    const struct par_measure *m = &s->contract->tests[s->test].measure;
    s->run.is.path = s->report.cand_path = m->path ? m->path : "q4k-cpu";
    s->run.is.ref = s->report.ref_path = m->ref ? m->ref : "f64";
    s->run.is.head = m->head ? m->head : "quant";
    s->run.text = "2+2 equals ";
    put_rows(s, 5);
}

static void close_scene(struct scene *s) {
    par_figures_free(s->figures);
    par_text_free(s->out.text);
    par_contracts_free(&s->set);
}

/* Sets a figure of the run; those that evaluation makes itself are changed where it reads them. */
static void set_figure(struct scene *s, const char *name, double value) {
    struct par_contract *c = (struct par_contract *)(uintptr_t)s->contract;
    if (!strcmp(name, "contract.equations"))
        c->n_equations = (int)value;
    else if (!strcmp(name, "contract.obligations"))
        c->n_obligations = (int)value;
    else if (!strcmp(name, "contract.falsification_tests"))
        c->n_falsifications = (int)value;
    else if (!strcmp(name, "contract.bounded_harnesses"))
        c->n_harnesses = (int)value;
    else if (!strcmp(name, "contract.version_major"))
        c->version_major = (int)value;
    else if (!strcmp(name, "contract.unchecked_tests"))
        c->tests[0].check = value > 0 ? NULL : c->tests[0].check;
    else if (!strcmp(name, "report.cites_contract"))
        put_rows(s, (int)value);
    else if (!strcmp(name, "report.identity"))
        s->report.command = value > 0 ? "parity run" : "";
    else if (!strcmp(name, "text.matches"))
        s->run.text = value > 0 ? "2+2 equals " : "To determine the value of";
    else
        par_figures_set(s->figures, name, value);
}

static const struct par_report_contract *evaluate(struct scene *s) {
    struct fwd_error err = {0};
    ck_assert_msg(par_contract_eval(s->contract, s->test, &s->run, "", &s->out, &err) == FWD_OK, "%s", err.message);
    return &s->out.contracts[s->out.n_contracts - 1];
}

static void set_good(struct scene *s, const char *id, const char *but) {
    for (int i = 0; i < N_FIGURES; i++)
        if (!strcmp(figures_of[i].id, id) && (!but || strcmp(figures_of[i].figure, but) != 0))
            set_figure(s, figures_of[i].figure, figures_of[i].good);
}

/* Figure _i of its id: HELD with all good, DIVERGED with this one bad, UNMEASURED without it. */
START_TEST(each_figure_decides) {
    const char *id = figures_of[_i].id, *name = figures_of[_i].figure;
    struct scene s;
    open_scene(&s, id);
    set_good(&s, id, NULL);
    const struct par_report_contract *row = evaluate(&s);
    ck_assert_msg(row->verdict == PAR_HELD, "%s: %s: %s", id, par_verdict_name(row->verdict), row->detail);
    ck_assert_msg(strstr(row->detail, name) != NULL, "%s: \"%s\" does not name %s", id, row->detail, name);
    put_rows(&s, 5);
    set_figure(&s, name, figures_of[_i].bad);
    row = evaluate(&s);
    ck_assert_msg(row->verdict == PAR_DIVERGED, "%s with %s = %g: %s", id, name, figures_of[_i].bad,
                  par_verdict_name(row->verdict));
    close_scene(&s);
    if (strncmp(name, "contract.", 9) == 0 || strncmp(name, "report.", 7) == 0)
        return; /* these are always there */
    open_scene(&s, id);
    set_good(&s, id, name);
    if (!strcmp(name, "text.matches"))
        s.run.text = NULL;
    row = evaluate(&s);
    ck_assert_msg(row->verdict == PAR_UNMEASURED && strstr(row->detail, "not measured"), "%s without %s: %s, %s", id,
                  name, par_verdict_name(row->verdict), row->detail);
    close_scene(&s);
}
END_TEST

static bool is_listed(const char *id) {
    for (int j = 0; j < N_FIGURES; j++)
        if (!strcmp(figures_of[j].id, id))
            return true;
    return false;
}

/* No shipped test is outside the table above; and of a run on the CPU, those about a path on a GPU stay UNMEASURED even
 * where every figure is good. */
START_TEST(every_id_is_turned_red) {
    struct par_contract_set set = load_shipped();
    int n_waiting = 0;
    for (int k = 0; k < set.n; k++)
        for (int i = 0; i < set.contracts[k].n_tests; i++) {
            const struct par_contract_test *t = &set.contracts[k].tests[i];
            ck_assert_msg(is_listed(t->id), "%s is not in the table", t->id);
            if (!t->measure.path || !strstr(t->measure.path, "cuda"))
                continue;
            struct scene s;
            open_scene(&s, t->id);
            set_good(&s, t->id, NULL);
            s.run.is.path = "q4k-cpu";
            const struct par_report_contract *row = evaluate(&s);
            ck_assert_int_eq(row->verdict, PAR_UNMEASURED);
            ck_assert_ptr_nonnull(strstr(row->detail, "path q4k-cpu, expected q4k-cuda-graph"));
            close_scene(&s);
            n_waiting++;
        }
    ck_assert_int_eq(n_waiting, 7);
    par_contracts_free(&set);
}
END_TEST

START_TEST(another_run_is_unmeasured) {
    static const char *const reasons[] = {"another model", "another prompt", "another prompt", "6 decode steps",
                                          "reference f32", "path q4k-cuda",  "head f32"};
    static const char id[] = "FALSIFY-MODEL-1-SHIP-CPU-001";
    struct scene s;
    open_scene(&s, id);
    set_good(&s, id, NULL);
    switch (_i) {
    case 0:
        s.run.is.model_sha256 = "2363853d60c4059f9291a346f93d8acbca176ed4a2aee1affac1694ddf30b63f";
        break;
    case 1:
        s.run.is.ids[3]++;
        break;
    case 2:
        s.run.is.n_ids--;
        break;
    case 3:
        s.run.is.decode = 6;
        break;
    case 4:
        s.run.is.ref = "f32";
        break;
    case 5:
        s.run.is.path = "q4k-cuda";
        break;
    default:
        s.run.is.head = "f32";
    }
    const struct par_report_contract *row = evaluate(&s);
    ck_assert_int_eq(row->verdict, PAR_UNMEASURED);
    ck_assert_msg(strstr(row->detail, reasons[_i]) != NULL, "\"%s\"", row->detail);
    close_scene(&s);
}
END_TEST

START_TEST(a_mistrusted_run_holds_nothing) {
    static const char id[] = "FALSIFY-RUN-TRACE-002";
    struct scene s;
    open_scene(&s, id);
    set_good(&s, id, NULL);
    s.report.verdict = PAR_MISTRUSTED;
    ck_assert_int_eq(evaluate(&s)->verdict, PAR_MISTRUSTED);
    close_scene(&s);
}
END_TEST

START_TEST(gate) {
    static const struct {
        enum par_verdict run, rows[3], contracts, gated;
    } cases[] = {
        {PAR_HELD, {PAR_HELD, PAR_HELD, PAR_HELD}, PAR_HELD, PAR_HELD},
        {PAR_HELD, {PAR_HELD, PAR_UNMEASURED, PAR_UNMEASURED}, PAR_HELD, PAR_HELD},
        {PAR_HELD, {PAR_UNMEASURED, PAR_UNMEASURED, PAR_UNMEASURED}, PAR_UNMEASURED, PAR_UNMEASURED},
        {PAR_HELD, {PAR_HELD, PAR_DIVERGED, PAR_UNMEASURED}, PAR_DIVERGED, PAR_DIVERGED},
        {PAR_HELD, {PAR_UNMEASURED, PAR_DIVERGED, PAR_UNMEASURED}, PAR_DIVERGED, PAR_DIVERGED},
        {PAR_NONFINITE, {PAR_HELD, PAR_DIVERGED, PAR_UNMEASURED}, PAR_DIVERGED, PAR_NONFINITE},
        {PAR_MISTRUSTED, {PAR_MISTRUSTED, PAR_DIVERGED, PAR_HELD}, PAR_MISTRUSTED, PAR_MISTRUSTED},
        {PAR_DIVERGED, {PAR_HELD, PAR_HELD, PAR_HELD}, PAR_HELD, PAR_DIVERGED},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct par_report_contract rows[3];
        for (int k = 0; k < 3; k++)
            rows[k] = (struct par_report_contract){"c", "FALSIFY-X-001", "r", cases[i].rows[k], "d"};
        struct par_report r = {
            .verdict = cases[i].run, .answer = "noise", .contracts = rows, .n_contracts = 3, .text = par_text_create()};
        ck_assert_int_eq(par_contracts_verdict(&r), cases[i].contracts);
        par_contracts_gate(&r);
        ck_assert_msg(r.verdict == cases[i].gated, "case %zu: %s", i, par_verdict_name(r.verdict));
        ck_assert_int_eq(strcmp(r.answer, "noise") != 0, cases[i].gated != cases[i].run);
        par_text_free(r.text);
    }
    struct par_report none = {.verdict = PAR_HELD, .text = par_text_create()};
    par_contracts_gate(&none);
    ck_assert_int_eq(none.verdict, PAR_UNMEASURED);
    par_text_free(none.text);
}
END_TEST

/* The greedy text is that of the candidate's best tokens from the last prompt position on, up to the end of text. */
START_TEST(greedy_text) {
    static const char said[] = "2+2 equals";
    struct fwd_gguf *file;
    struct fwd_tokenizer *tokenizer;
    struct fwd_tokenizer_info info;
    struct fwd_error err = {0};
    int32_t *ids;
    size_t n;
    char *text;
    ck_assert_msg(fwd_gguf_open(&file, "fixtures/fuzz/tokenizer/vocab_gpt2.gguf", &err) == FWD_OK, "%s", err.message);
    ck_assert_msg(fwd_tokenizer_open(&tokenizer, file, &err) == FWD_OK, "%s", err.message);
    ck_assert_int_eq(fwd_tokenizer_encode(tokenizer, said, strlen(said), 0, &ids, &n, &err), FWD_OK);
    fwd_tokenizer_info(tokenizer, &info);
    ck_assert_int_ge(info.eos, 0);
    struct par_report_logits rows[64] = {{.pos = 3, .m.top_got = ids[0]}}; /* inside the prompt: not part of it */
    for (size_t i = 0; i < n; i++)
        rows[i + 1] = (struct par_report_logits){.pos = 4 + (int)i, .m.top_got = ids[i]};
    rows[n + 1] = (struct par_report_logits){.pos = 4 + (int)n, .m.top_got = info.eos};
    rows[n + 2] = (struct par_report_logits){.pos = 5 + (int)n, .m.top_got = ids[0]};
    struct par_report report = {.logits = rows, .n_logits = (int)n + 3, .n_prompt = 5};
    ck_assert_int_eq(par_contract_text(&report, tokenizer, &text, &err), FWD_OK);
    ck_assert_str_eq(text, said);
    fwd_free(text);
    fwd_free(ids);
    fwd_tokenizer_close(tokenizer);
    fwd_gguf_close(file);
}
END_TEST

/* ---- conditions ---- */

static enum par_truth truth_of(const char *format, const int *truths) {
    char text[512], why[512] = "";
    struct par_json *doc;
    struct fwd_error err = {0};
    struct par_figures *f = par_figures_create();
    static const char *const names[] = {"kl", "repeats", "neutral"};
    for (int i = 0; i < 3; i++)
        if (truths[i] != PAR_UNKNOWN)
            par_figures_set(f, names[i], truths[i] == PAR_TRUE);
    (void)snprintf(text, sizeof text, format, "{\"figure\":\"kl\",\"is\":\"=\",\"value\":1}",
                   "{\"figure\":\"repeats\",\"is\":\">\",\"value\":0}",
                   "{\"figure\":\"neutral\",\"is\":\">=\",\"value\":1}");
    ck_assert_msg(par_json_parse(&doc, text, strlen(text), "c", &err) == FWD_OK, "%s", err.message);
    ck_assert_msg(par_condition_check(doc, par_json_root(doc), &err) == FWD_OK, "%s", err.message);
    enum par_truth t = par_condition_eval(par_json_root(doc), f, why, sizeof why);
    par_json_free(doc);
    par_figures_free(f);
    return t;
}

/* Kleene: with false < unknown < true, `all` is the least, `any` the greatest, `not` turns the order round. */
START_TEST(kleene_tables) {
    static const int rank_of[] = {[PAR_FALSE] = 0, [PAR_UNKNOWN] = 1, [PAR_TRUE] = 2};
    static const enum par_truth of_rank[] = {PAR_FALSE, PAR_UNKNOWN, PAR_TRUE};
    for (int code = 0; code < 27; code++) {
        int t[3] = {code % 3, code / 3 % 3, code / 9}, least = 2, most = 0;
        for (int i = 0; i < 3; i++) {
            least = rank_of[t[i]] < least ? rank_of[t[i]] : least;
            most = rank_of[t[i]] > most ? rank_of[t[i]] : most;
        }
        ck_assert_msg(truth_of("{\"all\":[%s,%s,%s]}", t) == of_rank[least], "all, case %d", code);
        ck_assert_msg(truth_of("{\"any\":[%s,%s,%s]}", t) == of_rank[most], "any, case %d", code);
        ck_assert_msg(truth_of("{\"not\":{\"all\":[%s,%s,%s]}}", t) == of_rank[2 - least], "not, case %d", code);
        ck_assert_msg(truth_of("{\"any\":[{\"not\":{\"any\":[%s,%s]}},%s]}", t) ==
                          of_rank[rank_of[t[2]] > 2 - (rank_of[t[0]] > rank_of[t[1]] ? rank_of[t[0]] : rank_of[t[1]])
                                      ? rank_of[t[2]]
                                      : 2 - (rank_of[t[0]] > rank_of[t[1]] ? rank_of[t[0]] : rank_of[t[1]])],
                      "mixed, case %d", code);
    }
}
END_TEST

START_TEST(relations) {
    static const struct {
        const char *is;
        bool less, equal, more;
    } rows[] = {{"<", true, false, false}, {"<=", true, true, false}, {"=", false, true, false},
                {"!=", true, false, true}, {">=", false, true, true}, {">", false, false, true}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (int k = 0; k < 4; k++) {
            char text[128], why[128] = "";
            struct par_json *doc;
            struct par_figures *f = par_figures_create();
            par_figures_set(f, "x", k == 3 ? (double)NAN : 1.5 + k);
            (void)snprintf(text, sizeof text, "{\"figure\":\"x\",\"is\":\"%s\",\"value\":2.5}", rows[i].is);
            ck_assert_int_eq(par_json_parse(&doc, text, strlen(text), "c", NULL), FWD_OK);
            enum par_truth want = k == 0   ? (enum par_truth)rows[i].less
                                  : k == 1 ? (enum par_truth)rows[i].equal
                                  : k == 2 ? (enum par_truth)rows[i].more
                                           : PAR_UNKNOWN;
            ck_assert_msg(par_condition_eval(par_json_root(doc), f, why, sizeof why) == want, "%s, %d", rows[i].is, k);
            par_json_free(doc);
            par_figures_free(f);
        }
}
END_TEST

START_TEST(hypotheses_load) {
    struct par_report report = {.text = par_text_create()};
    struct par_figures *f = par_figures_create();
    struct fwd_error err = {0};
    ck_assert_msg(par_hypotheses_eval("contracts/hypotheses", "parity run", f, &report, &err) == FWD_OK, "%s",
                  err.message);
    ck_assert_int_eq(report.n_hypotheses, 6);
    for (int i = 0; i < 6; i++) {
        char id[4];
        (void)snprintf(id, sizeof id, "H%d", i);
        ck_assert_str_eq(report.hypotheses[i].id, id);
        ck_assert_str_eq(report.hypotheses[i].verdict, "UNTESTED"); /* nothing was measured */
    }
    par_figures_free(f);
    par_text_free(report.text);
}
END_TEST

/* ---- the schema ---- */

static const struct {
    const char *object;
} objects[] = {{"contract"},
               {"metadata"},
               {"equation"},
               {"proof_obligation"},
               {"falsification_test"},
               {"kani_harness"},
               {"qa_gate"},
               {"verification_summary"},
               {"measure"}};

/* The schema's keys and required keys of each object are the reader's. */
START_TEST(schema_has_the_keys_of_the_reader) {
    struct par_json *doc;
    struct fwd_error err = {0};
    ck_assert_msg(par_json_read(&doc, "contracts/schema/contract.schema.json", 1 << 20, &err) == FWD_OK, "%s",
                  err.message);
    const struct cJSON *root = par_json_root(doc), *at = root;
    if (_i > 0)
        at = par_json_get(par_json_get(root, "$defs"), objects[_i].object);
    ck_assert_ptr_nonnull(at);
    const struct cJSON *properties = par_json_get(at, "properties"), *required = par_json_get(at, "required");
    bool open_to_more = true, is_required;
    const char *name;
    int n = 0, n_required = 0;
    ck_assert(par_json_truth(par_json_get(at, "additionalProperties"), &open_to_more) && !open_to_more);
    while (par_contract_key(objects[_i].object, n, &name, &is_required)) {
        bool listed = false;
        ck_assert_msg(par_json_get(properties, name) != NULL, "%s: the schema has no %s", objects[_i].object, name);
        for (const struct cJSON *r = required ? par_json_first(required) : NULL; r; r = par_json_next(r))
            listed = listed || !strcmp(par_json_text(r), name);
        ck_assert_msg(listed == is_required, "%s: required %s", objects[_i].object, name);
        n++;
        n_required += listed;
    }
    for (const struct cJSON *p = par_json_first(properties); p; p = par_json_next(p))
        n--;
    for (const struct cJSON *r = required ? par_json_first(required) : NULL; r; r = par_json_next(r))
        n_required--;
    ck_assert_msg(n == 0 && n_required == 0, "%s: the schema has keys that the reader refuses", objects[_i].object);
    par_json_free(doc);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("contract");
    TCase *tc = tcase_create("contract");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, refuses, 0, N_REFUSALS);
    tcase_add_test(tc, takes);
    tcase_add_test(tc, an_id_of_two_files);
    tcase_add_test(tc, shipped_parts);
    tcase_add_test(tc, shipped_harnesses_exist);
    tcase_add_loop_test(tc, each_figure_decides, 0, N_FIGURES);
    tcase_add_test(tc, every_id_is_turned_red);
    tcase_add_loop_test(tc, another_run_is_unmeasured, 0, 7);
    tcase_add_test(tc, a_mistrusted_run_holds_nothing);
    tcase_add_test(tc, gate);
    tcase_add_test(tc, greedy_text);
    tcase_add_test(tc, kleene_tables);
    tcase_add_test(tc, relations);
    tcase_add_test(tc, hypotheses_load);
    tcase_add_loop_test(tc, schema_has_the_keys_of_the_reader, 0, (int)(sizeof objects / sizeof *objects));
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_FORK);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner), run = srunner_ntests_run(runner);
    srunner_free(runner);
    return run == 0 ? 3 : failed != 0;
}
