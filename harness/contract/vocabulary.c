/* harness/contract/vocabulary.c: see vocabulary.h. */
#include "contract/vocabulary.h"

#include "compare/edit_distance.h"

#include <string.h>

static const struct row {
    const char *name, *meaning;
} rows[] = {
    /* the run in one number each */
    {"residue_max", "largest |got - expected| / bound of any judged element of either side; at most 1 for correct ops"},
    {"unexplained", "relative L2 of what the error ledger leaves unexplained, over all matrix products sampled"},
    {"explained_spread", "largest relative L2 that correct runs may be from the reference, over the positions"},
    {"top1_equal_or_certified", "share of positions whose best token is the reference's or a certified near-tie"},
    {"coverage", "share of positions at which the candidate's ops were judged"},
    {"neutral", "1: logits without taps have the bits of the judged pass"},
    {"deterministic", "1: all repeats have the same bits, also after another, longer sequence"},
    {"fresh_process", "1: a process of its own gives the same logits"},
    {"repeats", "runs without taps"},
    {"kl", "largest KL divergence of a position, nats, reference to candidate"},
    /* ops */
    {"<side>.accused", "ops outside their bound, given their own inputs"},
    {"<side>.nonfinite", "ops with NaN or infinity where the spec has a number, or the reverse"},
    {"<side>.unmeasured_ops", "ops whose tap or input never came"},
    {"<side>.mistrusted_ops", "ops whose measurement is no good"},
    {"<side>.judged_elements", "elements judged"},
    {"<side>.systematic", "elements over their bound that the declared order of additions gives too"},
    {"<side>.residue_max", "largest residue ratio"},
    {"<side>.accused.<class>", "accused ops of one kind"},
    {"<side>.judged.<class>", "elements judged of one kind of op"},
    {"<side>.residue_max.<class>", "largest residue ratio of one kind of op"},
    {"accused.<class>", "accused ops of one kind, both sides"},
    {"unexplained.<class>", "of them those without a diagnosis"},
    {"explained.<H>", "accused ops whose diagnosis is a bug of that hypothesis"},
    {"signature.<signature>", "accused ops with that diagnosis"},
    /* logits */
    {"first_token.elements", "logits compared at the last prompt position"},
    {"first_token.max_abs", "their largest difference"},
    {"first_token.distance", "relative L2 of their centred difference"},
    {"first_token.spread_distance", "what that may be at most"},
    {"first_token.equal", "1: the same best token"},
    {"first_token.held", "1: explained by the spread"},
    {"greedy.tokens", "greedy tokens: the last prompt position and every decode step"},
    {"greedy.equal", "of them those equal to the reference's"},
    {"greedy.certified", "of them certified near-ties"},
    {"greedy.equal_or_certified", "the sum of both"},
    {"logits.positions", "positions compared"},
    {"logits.flips", "positions whose best tokens differ"},
    {"logits.flips_uncertified", "of them those beyond the spread"},
    {"logits.beyond_spread", "positions whose flip or distance is beyond the spread"},
    {"logits.nonfinite", "positions with NaN or infinity on one side"},
    {"logits.distance_of_spread", "largest distance, as a share of what it may be"},
    {"logits.gap_of_spread", "largest gap of a flip in the reference, as a share of what it may be"},
    {"logits.behind_tap", "positions whose logits are not those of the last tap"},
    {"f64.positions", "positions at which both sides were held against f64"},
    {"f64.ref_distance_max", "largest distance of the reference's logits to f64's"},
    {"f64.cand_distance_max", "largest distance of the candidate's logits to f64's"},
    {"f64.ref_beyond_spread", "positions at which the reference is farther from f64 than correct runs are"},
    {"f64.cand_beyond_spread", "the same of the candidate"},
    {"spread.runs", "runs of the ensemble that makes the spread"},
    {"spread.flip_factor", "what the largest lift of a position is multiplied by"},
    {"spread.distance_factor", "what the largest distance of a position is multiplied by"},
    {"ref.loss", "the reference's loss on the committed text, nats a token"},
    {"ref.loss_uniform", "what guessing has"},
    /* the ledger */
    {"ledger.elements", "elements in the error ledger"},
    {"ledger.weights", "price of the weights' quantisation, relative L2; only with --source"},
    {"ledger.activation", "price of the activations' quantisation, relative L2"},
    {"ledger.rounding", "rounding inside the bounds, relative L2"},
    {"ledger.gap_max", "largest relative gap between an element's error and the sum of its parts"},
    /* the measurement */
    {"positions.prompt", "tokens of the prompt"},
    {"positions.decode", "teacher-forced decode steps"},
    {"taps.views", "tap views of all judged passes"},
    {"taps.on_device", "of them those in device memory"},
    {"cand.on_device", "1: the candidate computes on a device, which answered; 0: on the CPU"},
    {"config.differs", "hyper-parameters that engine and harness read differently"},
    {"weights.audited", "weights compared with the file as bound"},
    {"weights.differ", "of them those that differ"},
    {"variants.recorded", "kernel variants on record"},
    {"arm.<id>.same_bits", "1: the flipped knob gave the same logits"},
    {"arm.<id>.kept", "1: the flipped knob gave the same logits, or promised no such thing"},
    {"arm.<id>.heals", "1: with the flipped knob no op is accused"},
    {"routes.tested", "routes that promise the same logits (variant, threads, launches, another path) and ran"},
    {"routes.other_bits", "of them those that gave others"},
    {"routes.untested", "other routes that could not run here"},
    {"routes.run", "other routes (the head's other form too) judged while an op is accused"},
    {"routes.heal", "of them those in which nothing is accused"},
    {"intervention.<id>.heals",
     "1: with the guilty ops of that kind replaced by the spec's it is accused no more, nor more others"},
    {"impact.ops", "guilty ops whose output was replaced by the spec's, one at a time"},
    {"impact.together", "share of the logits' divergence that goes away with all of them replaced"},
    {"impact.largest", "share that goes away with the most harmful one replaced"},
    {"hypothesis.<H>.supported", "1: that hypothesis came out SUPPORTED"},
    /* of the contract that asks */
    {"contract.version_major", "major version of the contract"},
    {"contract.equations", "its equations"},
    {"contract.obligations", "its proof obligations"},
    {"contract.falsification_tests", "its falsification tests"},
    {"contract.bounded_harnesses", "its bounded harnesses"},
    {"contract.unchecked_tests", "falsification tests without a check"},
    {"report.cites_contract", "rows of the contract in the report"},
    {"report.identity", "1: the report has the model's hash, the ids and a command that repeats it"},
    {"text.matches", "1: an expected text occurs in the candidate's greedy text"},
};
enum { N_ROWS = sizeof rows / sizeof *rows };

bool par_vocabulary_row(int i, const char **name, const char **meaning) {
    if (i < 0 || i >= N_ROWS)
        return false;
    *name = rows[i].name;
    *meaning = rows[i].meaning;
    return true;
}

static const char lower[] = "abcdefghijklmnopqrstuvwxyz0123456789_-";

/* Length of what the placeholder at p may stand for at the start of text; 0: nothing. */
static size_t take_placeholder(const char *p, const char *text) {
    static const char *const classes[] = {"embed", "norm", "act_quant", "matmul", "head",
                                          "rope",  "kv",   "attention", "swiglu", "residual"};
    size_t len = strspn(text, lower);
    if (!strncmp(p, "<side>", 6))
        return !strncmp(text, "ref.", 4) ? 3 : !strncmp(text, "cand.", 5) ? 4 : 0;
    if (!strncmp(p, "<class>", 7)) {
        for (size_t i = 0; i < sizeof classes / sizeof *classes; i++)
            if (len == strlen(classes[i]) && !strncmp(text, classes[i], len))
                return len;
        return 0;
    }
    if (!strncmp(p, "<H>", 3))
        return strcspn(text, ".");
    return len;
}

static bool matches(const char *pattern, const char *text) {
    while (*pattern) {
        if (*pattern != '<') {
            if (*pattern++ != *text++)
                return false;
            continue;
        }
        size_t len = take_placeholder(pattern, text);
        if (len == 0)
            return false;
        text += len;
        pattern = strchr(pattern, '>') + 1;
    }
    return *text == 0;
}

bool par_vocabulary_has(const char *figure) {
    for (int i = 0; i < N_ROWS; i++)
        if (matches(rows[i].name, figure))
            return true;
    return false;
}

const char *par_vocabulary_nearest(const char *figure) {
    int best = 0;
    for (int i = 1; i < N_ROWS; i++)
        if (par_edit_distance(figure, rows[i].name) < par_edit_distance(figure, rows[best].name))
            best = i;
    return rows[best].name;
}
