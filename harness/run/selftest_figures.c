/* harness/run/selftest_figures.c: from records to the figures that the design asks for. */
#include "run/selftest.h"

#include <string.h>

struct count {
    uint64_t n, of;
};

static void add(struct count *c, bool yes) {
    c->n += yes;
    c->of++;
}

struct counts {
    struct count changed, above1, above2, named, diagnosed, unexplained, sub_op, side;
    struct count beside_clean[PAR_GATE_COUNT], beside_other[PAR_GATE_COUNT];
};

static void count_record(struct counts *t, const struct par_selftest_record *r) {
    if (r->state != PAR_SELFTEST_CHANGED)
        return;
    add(&t->changed, r->detected);
    if (r->moved > 1)
        add(&t->above1, r->detected);
    if (r->moved > 2)
        add(&t->above2, r->detected);
    for (int g = 0; g < PAR_GATE_COUNT; g++) {
        add(&t->beside_clean[g], r->beside_clean[g] > 0);
        add(&t->beside_other[g], r->beside_other[g] > 0);
    }
    if (!r->detected)
        return;
    add(&t->named, r->op_right && r->layer_right);
    if (r->named)
        add(&t->side, r->side_right);
    if (r->diagnosis >= 0)
        add(r->row->signature ? &t->diagnosed : &t->unexplained, r->diagnosis == 1);
    if (r->sub_op >= 0)
        add(&t->sub_op, r->sub_op == 1);
}

/* at_least 0: printed, not gated. */
static void put(struct par_selftest *s, const char *name, const char *text, struct count c, double at_least) {
    struct par_selftest_figure *f = &s->figures[s->n_figures++];
    *f = (struct par_selftest_figure){.name = name,
                                      .text = text,
                                      .n = c.n,
                                      .of = c.of,
                                      .value = c.of ? (double)c.n / (double)c.of : 0,
                                      .at_least = at_least,
                                      .measured = c.of > 0,
                                      .gated = at_least > 0};
    f->reached = f->measured && f->value >= at_least;
}

/* One 4-bit weight off by one. */
static void put_weights(struct par_selftest *s) {
    const struct par_weight_trials *w = &s->weights;
    struct count one = {(uint64_t)w->found_one, (uint64_t)w->tried};
    struct count one_block = {(uint64_t)w->block_named_one, (uint64_t)w->tried};
    struct count all = {(uint64_t)w->block_named_all, (uint64_t)w->changed_all};
    struct count all_found = {(uint64_t)w->found_all, (uint64_t)w->changed_all};
    put(s, "weight_found_one_position", "one weight: row found from one position", one, 0);
    put(s, "weight_one_position", "one weight: row found and K-block named, from one position", one_block, 0.93);
    put(s, "weight_found", "one weight: row found from 78 positions, of those that change any", all_found, 0);
    put(s, "weight", "one weight: and K-block named, of those that change any", all, 0.999);
}

static void put_clean(struct par_selftest *s) {
    const struct par_selftest_clean *c = &s->clean;
    struct par_selftest_figure *f = &s->figures[s->n_figures++];
    *f = (struct par_selftest_figure){.name = "false_alarms",
                                      .text = "clean ops accused, of op rows or repeats doubted",
                                      .n = (uint64_t)(c->n_accused + c->n_mistrusted + c->n_other),
                                      .of = c->n_elements,
                                      .measured = c->n_passes > 0,
                                      .gated = true};
    f->value = (double)f->n;
    f->reached = f->measured && f->n == 0 && c->n_elements >= s->clean_asked;
}

void par_selftest_figures(struct par_selftest *s) {
    static const char *const clean_names[PAR_GATE_COUNT] = {"nmse_beside_clean", "cosine_beside_clean",
                                                            "allclose_beside_clean"};
    static const char *const other_names[PAR_GATE_COUNT] = {"nmse_beside_reference", "cosine_beside_reference",
                                                            "allclose_beside_reference"};
    static const char *const clean_texts[PAR_GATE_COUNT] = {"the same by NMSE > 5e-4, beside its own clean run",
                                                            "the same by cosine < 0.99, beside its own clean run",
                                                            "the same by allclose 1e-3, beside its own clean run"};
    static const char *const other_texts[PAR_GATE_COUNT] = {"the same by NMSE > 5e-4, beside the other path",
                                                            "the same by cosine < 0.99, beside the other path",
                                                            "the same by allclose 1e-3, beside the other path"};
    struct counts t = {0};
    s->n_figures = 0;
    for (int i = 0; i < s->n_records; i++)
        count_record(&t, &s->records[i]);
    put(s, "detected_above_2", "detected, of faults that move an element by more than 2 bounds", t.above2, 1);
    put(s, "detected_above_1", "detected, of faults that move an element by more than 1 bound", t.above1, 0);
    put(s, "detected_of_changed", "detected, of faults that change any bit of any tap", t.changed, 0.97);
    put(s, "top1", "op and layer right at top 1, of the detected", t.named, 0.99);
    put(s, "sub_op", "head, row, block, position right, of the detected that have one", t.sub_op, 0);
    put(s, "diagnosis", "diagnosis right, of those with a signature", t.diagnosed, 0.97);
    put(s, "unexplained", "\"unexplained\", of those without", t.unexplained, 1);
    put(s, "side", "side right, of those with an op named", t.side, 0);
    put_weights(s);
    put_clean(s);
    for (int g = 0; g < PAR_GATE_COUNT; g++)
        put(s, clean_names[g], clean_texts[g], t.beside_clean[g], 0);
    for (int g = 0; g < PAR_GATE_COUNT; g++)
        put(s, other_names[g], other_texts[g], t.beside_other[g], 0);
}

int par_selftest_exit(const struct par_selftest *s) {
    bool any = false;
    for (int i = 0; i < s->n_figures; i++) {
        const struct par_selftest_figure *f = &s->figures[i];
        if (f->measured && f->gated && !f->reached)
            return 1;
        any |= f->measured;
    }
    return any ? 0 : 3;
}
