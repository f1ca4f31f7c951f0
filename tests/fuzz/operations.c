/* SPDX-License-Identifier: MIT */
/*
 * operations.c - fuzz target: any bytes are a program for a heap, whose effect is compared with the
 * model's.
 *
 * Bit 0 of the first byte makes the heap a hardened one; the rest is the program, see model/ops.c.
 */
#include <string.h>

#include "../model/ops.h"
#include "fuzz.h"
#include "support.h"

enum { MOST = 4096 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fixture f;
    static uint8_t *program; /* children read on where their parent was */
    struct model_counts counts;
    if (size == 0 || size > MOST)
        return 0;
    if (!program)
        program = shared_memory(MOST);
    memcpy(program, data + 1, size - 1);
    fixture_begin(&f);
    struct model *m = model_begin(f.path, data[0] & 1 ? SHMALLOC_HARDENED : 0);
    model_run(m, program, size - 1);
    model_verify(m);
    model_end(m, &counts);
    fixture_end(&f);
    return 0;
}
