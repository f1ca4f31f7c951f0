/* SPDX-License-Identifier: MIT */
/* adopt.h - the dead: what they held comes back. */
#ifndef SMI_ADOPT_H
#define SMI_ADOPT_H

#include "handle/handle.h"

/* Look for processes that died and bring back what they held. Cheap when nobody did. Of slots in
 * their stacks, about `most` go back; more of them wait for the next look, so that no single call
 * pays for a process of a thousand threads. */
#define SMI_ADOPT_ALL UINT64_MAX
#define SMI_ADOPT_SOME 65536ull /* some 2 ms */
int smi_adopt(shmalloc_heap *heap, uint64_t most);

/* For a thread that waits: have others died, for whom it may wait in vain? They are adopted, which
 * smf_state.adoptions tells. Looks seldom enough to be called in each slice of a wait. */
void smi_adopt_waiting(shmalloc_heap *heap);

/* Of a thread that is gone: what it left half done, a transaction included, is done or undone.
 * RECOVER held, class and page locks passed. */
int smi_adopt_settle(shmalloc_heap *heap, struct smf_thread *slot, uint32_t index);

/* The slot of a thread that is gone comes to rest, what it retired included, as
 * smi_stacks_release() says. */
int smi_adopt_slot(shmalloc_heap *heap, struct smf_thread *slot, uint32_t index, uint64_t *most);

/* What a dead owner of the lock RECOVER left. */
int smi_adopt_repair(shmalloc_heap *heap, uint32_t index);

#endif
