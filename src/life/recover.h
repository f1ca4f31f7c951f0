/* SPDX-License-Identifier: MIT */
/* recover.h - from what the dead left to a heap at work. */
#ifndef SMI_RECOVER_H
#define SMI_RECOVER_H

#include "handle/handle.h"
#include "platform/os.h"

/* What a heap's file says of itself, read at once. */
struct smi_identity {
    struct smf_header header;
    struct smf_state state;
    struct smf_runtime runtime;
    struct smi_file_info file; /* looked at afterwards */
};

/* The attach lock: one process at a time attaches or leaves. SHMALLOC_EBUSY after ten seconds. The descriptor was asked
 * for. */
int smi_attach_lock(shmalloc_heap *heap);
void smi_attach_unlock(shmalloc_heap *heap);

/* Is another process attached? 0, 1 or a negated errno. */
int smi_others_alive(shmalloc_heap *heap);

/* SHMALLOC_EUNCLEAN if the machine stopped, or the file was copied, while the heap was in use, and nobody has
 * checked it since; else 0. */
int smi_recover_unclean(shmalloc_heap *heap);

/* Before anything of the mapping is touched, under the attach lock: when this is not the file that the heap was closed
 * in, or has fewer bytes behind it, its storage is not believed (holes.h), unless the heap will be found unclean. */
int smi_recover_storage(shmalloc_heap *heap, const struct smi_identity *seen, int accept_unclean);
/* The same for a reader, who can give it none: -ENOSPC where reading what is missing would need more than there is. */
int smi_recover_readable(shmalloc_heap *heap, const struct smi_identity *seen, int accept_unclean);

/* Become a process of the heap; the attach lock is held. When nobody else is attached, the heap is taken into use
 * in a new generation: all locks are made anew, what was in flight under them is undone; SHMALLOC_EUNCLEAN unless
 * `accept_unclean`. Else this process joins the others: SHMALLOC_EFOREIGN when it cannot, SHMALLOC_EBUSY when it
 * wants to be `alone`. What the dead left is brought to rest. */
int smi_recover_attach(shmalloc_heap *heap, int accept_unclean, int alone);

/* What a dead owner of the lock RECOVER left. */
int smi_recover_repair(shmalloc_heap *heap, uint32_t index);

/* Look for processes that died and bring back what they held. Cheap when nobody did. Of slots in their caches, about
 * `most` go back; more of them wait for the next look, so that no single call pays for a process of a thousand
 * threads. */
#define SMI_ADOPT_ALL UINT64_MAX
#define SMI_ADOPT_SOME 65536ull /* some 2 ms */
int smi_recover_adopt(shmalloc_heap *heap, uint64_t most);

#endif
