/* SPDX-License-Identifier: MIT */
/*
 * readers.h - read sections: threads that follow refs without a lock to blocks that others may
 * retire.
 *
 * A section costs two plain stores to its thread's own slot. Whoever wants to free what sections
 * may still read makes all of them visible by a membarrier, and ousts those that began too early:
 * an ousted section goes on, but what it reads counts for nothing, and it is told so before it
 * follows another ref and at its end. So nobody ever waits for a reader, be it stopped.
 *
 *   reader      section_epoch := epoch; load a ref; is ousted < section_epoch? follow it; ...;
 *               section_epoch := 0
 *   reclaimer   unlink; stamp := ++epoch; ...; membarrier; of each slot with 0 < section_epoch <
 *               stamp: ousted := stamp - 1; membarrier; free
 *
 * Who reads an epoch from the stamp on sees what was unlinked before the stamp was made. Of who
 * read an older one, either the section is seen after the membarrier, or its loads come after that
 * and see what was unlinked.
 */
#ifndef SMI_READERS_H
#define SMI_READERS_H

#include "handle/handle.h"

/* Threads of this process are about to have sections: it can be reached by others' membarriers from
 * now on, or, which *fences tells, is known as one whose sections fence. SHMALLOC_ECORRUPT when the
 * epoch is none. */
int smi_readers_join(shmalloc_heap *heap, uint32_t *fences);

/* A section was ousted: 0, or SHMALLOC_ECORRUPT when that cannot be, so that all later ones would
 * be, too. */
int smi_readers_look(shmalloc_heap *heap, const struct smf_thread *slot);

/* An epoch that no section has yet. 0: what the file says is none, and the heap is poisoned. */
uint64_t smi_readers_advance(shmalloc_heap *heap);

/* Oust all sections that began before `stamp`. When this returns 1 nothing that was unlinked before
 * the stamp was made counts for any reader. 0: this process has no membarrier, and readers of
 * another one rely on it. */
int smi_readers_oust(shmalloc_heap *heap, uint64_t stamp);

/* Is no section open that began before now? The page lock is held: then no section ever looks at
 * what is free now. */
int smi_readers_are_gone(shmalloc_heap *heap);

#endif
