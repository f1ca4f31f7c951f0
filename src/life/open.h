/* SPDX-License-Identifier: MIT */
/* open.h - heaps are created, opened and closed; the calls are public. */
#ifndef SMI_OPEN_H
#define SMI_OPEN_H

#include "handle/handle.h"

/* The areas of a heap that is mapped, and who repairs what dead owners of its locks left. */
void smi_open_set_areas(shmalloc_heap *heap, const struct smf_header *header);

/* At the end of the process: can the heap be left in order? Not by a forked child that has not
 * attached, nor by a child in its parent's memory (vfork), nor in the middle of a change that a
 * signal interrupted, nor while other threads run, which may be in the middle of one. */
int smi_heap_may_leave(const shmalloc_heap *heap);

/* The process ends, and smi_heap_may_leave(): leave the heap as closing does, but the mapping
 * stays, so that what lies there can be read to the last. A call that changes the heap would attach
 * anew. */
int smi_heap_leave(shmalloc_heap *heap);

#endif
