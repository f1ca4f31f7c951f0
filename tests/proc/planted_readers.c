/* SPDX-License-Identifier: MIT */
/* planted_readers.c - the library's handle/readers.c, in which a mistake can be made; see
 * retires.c. */
#define smi_readers_oust oust_as_it_should
#include "../../src/handle/readers.c"
#undef smi_readers_oust

#include "planted_readers.h"

int smi_readers_oust(shmalloc_heap *heap, uint64_t stamp); /* the one in readers.h has the other
                                                              name here */

enum fault planted_fault;

int smi_readers_oust(shmalloc_heap *heap, uint64_t stamp)
{
    switch (planted_fault) {
    case FAULT_NO_GRACE:
        return 1;
    case FAULT_NO_OUSTING: /* sections are looked at, and not told */
        return fence_readers(heap);
    case FAULT_EARLY_STAMP: /* as if it had been taken before the last block was unlinked */
        return oust_as_it_should(heap, stamp - 1);
    default:
        return oust_as_it_should(heap, stamp);
    }
}
