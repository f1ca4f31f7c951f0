/* SPDX-License-Identifier: MIT */
/* open.h - heaps are created, opened and closed; the calls are public. */
#ifndef SMI_OPEN_H
#define SMI_OPEN_H

#include "handle/handle.h"

/* The process ends, and smi_process_may_leave(): leave the heap as closing does, but the mapping stays, so that what lies
 * there can be read to the last. A call that changes the heap would attach anew. */
int smi_heap_leave(shmalloc_heap *heap);

#endif
