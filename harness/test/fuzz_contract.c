/* Fuzz target: any bytes as a contract. Invariant: taken or refused with a message that starts with "f:LINE: "; what is
 * taken can be evaluated: every test has its row, and one without a check is UNMEASURED. */
#include "contract/contract_eval.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static void evaluate(struct par_contract *c) {
    static const int32_t ids[] = {1, 2, 3};
    struct par_report report = {
        .model_sha256 = "", .ref_path = "f32", .cand_path = "q4k-cpu", .ids = ids, .n_ids = 3, .n_prompt = 2};
    struct par_figures *figures = par_figures_create();
    struct par_contract_set set = {c, 1};
    struct par_contract_run run;
    report.text = par_text_create();
    if (!figures || !report.text)
        abort();
    par_contract_run_fill(&run, &report, figures, "prefill", "quant", "f16");
    if (par_contracts_eval(&set, &run, &report, NULL) != FWD_OK || report.n_contracts != c->n_tests)
        abort();
    for (int i = 0; i < report.n_contracts; i++)
        if (!c->tests[i].check && report.contracts[i].verdict != PAR_UNMEASURED)
            abort();
    par_contracts_gate(&report);
    par_text_free(report.text);
    par_figures_free(figures);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    struct par_contract c;
    struct fwd_error err = {0};
    if (par_contract_parse(&c, (const char *)data, n_bytes, "f", &err) != FWD_OK) {
        if (c.doc || c.tests || strncmp(err.message, "f:", 2) != 0)
            abort();
        return 0;
    }
    evaluate(&c);
    par_contract_free(&c);
    return 0;
}
