/* SPDX-License-Identifier: MIT */
/* recover.h - from what the dead left to a heap at work. */
#ifndef SMI_RECOVER_H
#define SMI_RECOVER_H

#include "heap.h"

/* The attach lock: one process at a time attaches or leaves. SHMALLOC_EBUSY after ten seconds. */
int smi_attach_lock(shmalloc_heap *heap);
void smi_attach_unlock(shmalloc_heap *heap);

/* Is another process attached? 0, 1 or a negated errno. */
int smi_others_alive(shmalloc_heap *heap);

/* Nobody is attached and the attach lock is held: take the heap into use in a new generation. All locks are
 * made anew; what was in flight under them is undone. SHMALLOC_EUNCLEAN unless `accept_unclean`. */
int smi_recover_first(shmalloc_heap *heap, int accept_unclean);

/* Others are attached: may this process join them? SHMALLOC_EFOREIGN. */
int smi_recover_join(shmalloc_heap *heap);

/* Look for processes that died and bring back what they held. Cheap when nobody did. */
int smi_recover_adopt(shmalloc_heap *heap);

/* The owner of a user mutex died: resolve its link record before anybody touches what the mutex guards.
 * `index` and `serial` name its thread slot as of then. */
int smi_recover_owner(shmalloc_heap *heap, uint32_t index, uint64_t serial);

#endif
