/* SPDX-License-Identifier: MIT */
/*
 * kept.h - large blocks that a thread freed and keeps for its next requests.
 *
 * An entry of the thread slot's `spans` is where its owner looks; who has the block says its mark
 * (layout.h), which changes by compare-and-swap. So a thread takes and gives such blocks without a
 * lock, while others, under the page lock, may take them away when there is no room for what they
 * want.
 */
#ifndef SMI_KEPT_H
#define SMI_KEPT_H

#include "slots/context.h"

#define SMI_KEPT_MOST (SMF_SPAN_MOST_PAGES << SMF_PAGE_SHIFT) /* bytes of a block that is kept */

/* A kept block of `pages` pages, or up to an eighth more: its ref, or 0. `scratch`: the thread
 * slot's `scratch` names it from before it stops being kept. */
uint64_t smi_kept_take(struct smi_thread *t, uint64_t pages, int scratch);

/* Keep the large block at `ref`, which the program frees: 1; 0 when it is none of the kind, or
 * there is no room. `may_evict`: room may be made, which takes a lock, so that cancellation has to
 * be off. *holder, a word in the heap that names it, becomes 0 in the same crash-atomic step; NULL:
 * there is none. SHMALLOC_EDOUBLEFREE when it is kept already. */
int smi_kept_give(struct smi_thread *t, uint64_t ref, uint64_t *holder, int may_evict);

/* What was kept since the last look, a decay time ago or more, and nobody asked for goes back. */
int smi_kept_decay(struct smi_thread *t, uint64_t now);

/* All that a thread slot keeps goes back; its owner is the caller, or gone. */
int smi_kept_release(shmalloc_heap *heap, struct smf_thread *slot, uint32_t slot_index);

/* Does the thread slot keep the large block at `ref`? */
int smi_kept_has(const shmalloc_heap *heap, uint32_t slot_index, uint64_t ref);

#endif
