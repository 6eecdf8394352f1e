/* engine/format/type_table.c: every tensor type id that ggml ever assigned, with its block geometry.
 *
 * Geometry as in ggml's type traits. Q8_1 is 36 bytes there (two halves and 32 codes); the gguf Python package still
 * lists 40, its size before the sums became halves. Ids whose formats were removed from ggml have no geometry. */
#include "format/gguf.h"

#include <strings.h>

static const struct fwd_type_info types[] = {
    {0, "F32", 1, 4, true},
    {1, "F16", 1, 2, true},
    {2, "Q4_0", 32, 18, true},
    {3, "Q4_1", 32, 20, true},
    {4, "Q4_2 (removed)", 0, 0, false},
    {5, "Q4_3 (removed)", 0, 0, false},
    {6, "Q5_0", 32, 22, true},
    {7, "Q5_1", 32, 24, true},
    {8, "Q8_0", 32, 34, true},
    {9, "Q8_1", 32, 36, false},
    {10, "Q2_K", 256, 84, true},
    {11, "Q3_K", 256, 110, true},
    {12, "Q4_K", 256, 144, true},
    {13, "Q5_K", 256, 176, true},
    {14, "Q6_K", 256, 210, true},
    {15, "Q8_K", 256, 292, false},
    {16, "IQ2_XXS", 256, 66, false},
    {17, "IQ2_XS", 256, 74, false},
    {18, "IQ3_XXS", 256, 98, false},
    {19, "IQ1_S", 256, 50, false},
    {20, "IQ4_NL", 32, 18, false},
    {21, "IQ3_S", 256, 110, false},
    {22, "IQ2_S", 256, 82, false},
    {23, "IQ4_XS", 256, 136, false},
    {24, "I8", 1, 1, false},
    {25, "I16", 1, 2, false},
    {26, "I32", 1, 4, false},
    {27, "I64", 1, 8, false},
    {28, "F64", 1, 8, false},
    {29, "IQ1_M", 256, 56, false},
    {30, "BF16", 1, 2, true},
    {31, "Q4_0_4_4 (removed)", 0, 0, false},
    {32, "Q4_0_4_8 (removed)", 0, 0, false},
    {33, "Q4_0_8_8 (removed)", 0, 0, false},
    {34, "TQ1_0", 256, 54, false},
    {35, "TQ2_0", 256, 66, false},
    {36, "IQ4_NL_4_4 (removed)", 0, 0, false},
    {37, "IQ4_NL_4_8 (removed)", 0, 0, false},
    {38, "IQ4_NL_8_8 (removed)", 0, 0, false},
    {39, "MXFP4", 32, 17, false},
    {40, "NVFP4", 64, 36, false},
    {41, "Q1_0", 128, 18, false},
};
enum { N_TYPES = sizeof types / sizeof *types };
_Static_assert(N_TYPES == 42, "one row per id: the id is the index");

const struct fwd_type_info *fwd_type_info(uint32_t id) {
    return id < N_TYPES ? &types[id] : NULL;
}

/* Unassigned ids below 100 have a text of their own, so that a message can name them without a buffer. */
#define TEN(t)                                                                                                         \
    "type " #t "0", "type " #t "1", "type " #t "2", "type " #t "3", "type " #t "4", "type " #t "5", "type " #t "6",    \
        "type " #t "7", "type " #t "8", "type " #t "9"
static const char *const unassigned[] = {TEN(4), TEN(5), TEN(6), TEN(7), TEN(8), TEN(9)};

const char *fwd_type_name(uint32_t id) {
    if (id < N_TYPES)
        return types[id].name;
    if (id < 100)
        return unassigned[id - 40];
    return "type >= 100";
}

const struct fwd_type_info *fwd_type_by_name(const char *name) {
    for (int i = 0; i < N_TYPES; i++)
        if (!strcasecmp(types[i].name, name))
            return &types[i];
    return NULL;
}
