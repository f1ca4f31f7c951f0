/* SPDX-License-Identifier: MIT */
/*
 * registry.h - the heaps of this process.
 *
 * The registry lock guards their list and every list of contexts. It comes before all heap locks.
 */
#ifndef SMI_REGISTRY_H
#define SMI_REGISTRY_H

#include "handle/handle.h"

void smi_registry_lock(void);
void smi_registry_unlock(void);
int smi_registry_trylock(void); /* 1: got it, and did not have it */
int smi_registry_is_held(void); /* by the calling thread */

/* The list itself; whoever changes it holds the registry lock. */
extern shmalloc_heap *smi_heaps;
void smi_registry_add(shmalloc_heap *heap);
void smi_registry_remove(shmalloc_heap *heap);

/* Has one of them that epoch now? */
int smi_registry_has_epoch(uint64_t epoch);

/* In a forked child: the lock is free, whoever of the parent had it. */
void smi_registry_renew(void);
/* And this thread does not have it `holds` times, as it was taken for the fork. */
void smi_registry_forget(unsigned holds);

#endif
