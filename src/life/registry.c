/* SPDX-License-Identifier: MIT */
/* registry.c - the list of this process's heaps and its lock; see registry.h. */
#include "life/registry.h"

#include <pthread.h>

#include "platform/direct_mutex.h"
#include "platform/os.h"

shmalloc_heap *smi_heaps;
static pthread_mutex_t registry = PTHREAD_MUTEX_INITIALIZER;
/* A signal handler that forks takes it while the call that it interrupted may hold it: so a thread
 * takes it once only. */
static _Thread_local unsigned registry_depth;

void smi_registry_lock(void)
{
    if (registry_depth++ == 0)
        pthread_mutex_lock(&registry);
}

void smi_registry_unlock(void)
{
    if (registry_depth == 1)
        smi_os_unlock_counted(&registry, &registry_depth);
    else
        registry_depth--;
}

int smi_registry_trylock(void)
{
    if (registry_depth > 0 || pthread_mutex_trylock(&registry) != 0)
        return 0;
    registry_depth = 1;
    return 1;
}

int smi_registry_is_held(void)
{
    return registry_depth > 0;
}

void smi_registry_renew(void)
{
    registry = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
}

void smi_registry_forget(unsigned holds)
{
    registry_depth -= holds;
}

void smi_registry_add(shmalloc_heap *heap)
{
    SMI_ASSERT(smi_registry_is_held());
    heap->next = smi_heaps;
    smi_heaps = heap;
}

void smi_registry_remove(shmalloc_heap *heap)
{
    SMI_ASSERT(smi_registry_is_held());
    shmalloc_heap **at = &smi_heaps;
    while (*at && *at != heap)
        at = &(*at)->next;
    if (*at)
        *at = heap->next;
}

int smi_registry_has_epoch(uint64_t epoch)
{
    int found = 0;
    smi_registry_lock();
    for (const shmalloc_heap *heap = smi_heaps; heap && !found; heap = heap->next)
        found = SMI_LOAD(&heap->epoch) == epoch;
    smi_registry_unlock();
    return found;
}
