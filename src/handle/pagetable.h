/* SPDX-License-Identifier: MIT */
/*
 * pagetable.h - what this process knows of the pages of a heap, for the fast paths.
 *
 * One word a page, in memory of this process, filled as blocks are freed. It is no truth: it says
 * which stack the slots of a slab's page go to and where in its slab the page lies, together with
 * the value of smf_state.reshaped for which that was so. The heap's value has grown since if the
 * page is something else by now.
 *
 * A learner reads `reshaped` first and the page's word after; who changes words lets `reshaped`
 * grow after. So an entry that carries the new value has seen the new word. Who gets a block of a
 * page that was something else has seen that `reshaped` grew, as whoever gave it to him had.
 */
#ifndef SMI_PAGETABLE_H
#define SMI_PAGETABLE_H

#include "handle/handle.h"

/* An entry: smf_state.reshaped | the page's place behind the first slot of its slab, pages <<
 * SMF_PAGE_SHIFT
 *                              | the place of its stack in a context, as in smi_top_by_8. */
static inline int smi_is_current(uint64_t known, uint64_t reshaped)
{
    return (known ^ reshaped) < SMF_RESHAPED;
}

static inline uint64_t smi_known_top(uint64_t known)
{
    return known & (uint64_t)SMF_WORD_KIND << SMI_TOP_SHIFT;
}

/* Bytes from a slab's first slot to an address in the page. */
static inline uint32_t smi_known_offset(uint64_t known, uintptr_t address)
{
    return (uint32_t)(known & (uint64_t)SMF_WORD_INDEX >> SMF_WORD_INDEX_SHIFT << SMF_PAGE_SHIFT) |
           (uint32_t)(address & (SMF_PAGE - 1));
}
_Static_assert((uint64_t)SMF_WORD_KIND << SMI_TOP_SHIFT < SMF_PAGE, "the two parts do not touch");
_Static_assert((uint64_t)SMF_WORD_INDEX >> SMF_WORD_INDEX_SHIFT << SMF_PAGE_SHIFT < SMF_RESHAPED,
               "nor the third");

/* A table for a heap that is mapped; without memory for one there is none, and frees take the long
 * way. */
void smi_pagetable_make(shmalloc_heap *heap);
void smi_pagetable_drop(shmalloc_heap *heap);

/* Refs below this have entries that can be read. */
uint64_t smi_pagetable_covered(const shmalloc_heap *heap);

/* See what the page at `ref` is: 1 if it is one of a slab, and the table has it now. */
int smi_pagetable_learn(shmalloc_heap *heap, uint64_t ref);

/* The words of a slab's pages have changed, and the page lock is held still. */
void smi_pagetable_reshape(shmalloc_heap *heap);

#endif
