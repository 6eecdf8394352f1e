/* harness/run/tool_gates.h: the gates of other tools, for comparison only: per tap tensor (one op of one layer over all
 * positions) NMSE above 5e-4, cosine below 0.99, or any element outside allclose(rtol = atol = 1e-3). No verdict of
 * parity rests on them. */
#ifndef HARNESS_RUN_TOOL_GATES_H
#define HARNESS_RUN_TOOL_GATES_H

#include "tap/store.h"

enum par_tool_gate { PAR_GATE_NMSE, PAR_GATE_COSINE, PAR_GATE_ALLCLOSE, PAR_GATE_COUNT };
const char *par_tool_gate_name(enum par_tool_gate g);

struct par_tool_gates;
/* beside: the taps that a run is held against; it must outlive the gates. */
enum fwd_status par_tool_gates_open(struct par_tool_gates **out, const struct par_store *beside, int n_layer,
                                    struct fwd_error *err);
void par_tool_gates_close(struct par_tool_gates *g);
/* Forgets what was added, for another run beside the same taps. */
void par_tool_gates_reset(struct par_tool_gates *g);
/* F32 and F64 taps count, the rest is passed over. */
enum fwd_status par_tool_gates_tap(struct par_tool_gates *g, const struct fwd_view *view, struct fwd_error *err);
/* Tensors that the gate refuses; those that it refuses in `clean` too are left out. clean may be NULL. */
int par_tool_gates_failed(const struct par_tool_gates *g, const struct par_tool_gates *clean, enum par_tool_gate gate);
/* Tensors that were compared. */
int par_tool_gates_tensors(const struct par_tool_gates *g);

#endif
