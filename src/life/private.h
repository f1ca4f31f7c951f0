/* SPDX-License-Identifier: MIT */
/* private.h - heaps without a file, in memory of this process. */
#ifndef SMI_PRIVATE_H
#define SMI_PRIVATE_H

#include "handle/handle.h"

/* What claiming an entry is to files: a private heap has this process only, from `epoch` on. The
 * registry lock is held. */
void smi_private_start(shmalloc_heap *heap, uint64_t epoch);

/* A forked child's copy is brought to rest; the registry lock is held. */
int smi_private_settle(shmalloc_heap *heap);

#endif
