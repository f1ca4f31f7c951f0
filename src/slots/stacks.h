/* SPDX-License-Identifier: MIT */
/*
 * stack.h - a thread slot: its stacks of free slots, its link record, what it holds half built.
 *
 * A thread slot belongs to one thread, which works on it without a lock: storing an array's count
 * commits. When the thread ends or its process dies, somebody else brings the slot to rest under
 * the RECOVER lock.
 */
#ifndef SMI_STACKS_H
#define SMI_STACKS_H

#include "slots/context.h"

/* The stack array of class k of a thread slot, which is closed if it is open, and the slots it can
 * hold. The slot's owner closes it by smi_stacks_close before. SHMALLOC_ECORRUPT (poisoned) when
 * what the file says cannot be. */
int smi_stacks_array(shmalloc_heap *heap, struct smf_thread *slot, uint32_t k, uint64_t **array,
                    uint32_t *capacity);

/* A thread slot that nobody owns gets its initial contents. `own_ref` is the slot's ref. `zero`:
 * all its bytes are, so that its arrays need not be touched. */
void smi_stacks_format(struct smf_thread *slot, uint64_t own_ref, int zero);

/* The stack of class k becomes what all others than the fast paths use, or what the fast paths use.
 * Who opens it may be kept from it by damage, which the next call finds. */
void smi_stacks_close(struct smi_thread *t, uint32_t k);
void smi_stacks_open(struct smi_thread *t, uint32_t k);

/* The stacks of a context, from its slot. They are closed. Counts are not looked at: every use
 * compares them with the stack's limit. */
int smi_stacks_load(struct smi_thread *t);

/* See that the stack of class k, which is closed, holds a slot at least. Commits nothing to the
 * caller. */
int smi_stacks_refill(struct smi_thread *t, uint32_t k);

/* See that the stack of class k, which is closed, has room for a slot: by a longer array while the
 * thread's share allows it, else by giving a batch back. SHMALLOC_EDOUBLEFREE: there is room, and a
 * double free came to light. */
int smi_stacks_make_room(struct smi_thread *t, uint32_t k);

/* Give all cached slots back, and the arrays that have grown; the context starts afresh.
 * SHMALLOC_EDOUBLEFREE: all the same, and a double free came to light. */
int smi_stacks_trim(struct smi_thread *t);

/* Finish or undo the link record of thread slot `index`, whose thread is dead. The class and page
 * locks that it may have died in have been passed; RECOVER is held. */
int smi_stacks_resolve_link(shmalloc_heap *heap, struct smf_thread *slot, uint32_t index);

/* The bags of a thread slot; NULL: it names none, or what cannot be one. */
struct smf_bag *smi_stacks_limbo(shmalloc_heap *heap, const struct smf_thread *slot);

/* The ref of its limbo, whatever it is; an older heap has an array there. */
static inline uint64_t smi_stacks_limbo_ref(const shmalloc_heap *heap,
                                            const struct smf_thread *slot)
{
    return heap->is_older ? 0 : SMI_LOAD(&slot->limbo);
}

/* Of the spans that `spare` names, those that no bin or limbo names go back. */
int smi_stacks_resolve_spares(shmalloc_heap *heap, struct smf_thread *slot);

/* Of a thread that is gone: resolve the link record and free what it was building. RECOVER held. */
int smi_stacks_resolve(shmalloc_heap *heap, struct smf_thread *slot, uint32_t index);

/* Bring the slot of a thread that is gone to rest: settle it, give its cached slots and long arrays
 * back, and last make it free. May be killed and run again. RECOVER held. At most `*most` slots go
 * back, which is counted down; 1: there are more of them, and the thread slot is not free yet. */
int smi_stacks_release(shmalloc_heap *heap, struct smf_thread *slot, uint32_t index,
                       uint64_t *most);

/* Count that threads were brought to rest, for those who may wait for one of them. */
void smi_stacks_tell_adopted(shmalloc_heap *heap);

/* A structure that a dead thread was making or freeing comes to an end, `most` counted down; 1: not
 * yet. Set by structures.c; before that, such slots wait. */
typedef int smi_release_fn(shmalloc_heap *heap, struct smf_thread *slot, uint32_t index,
                           uint64_t *most);
extern smi_release_fn *smi_release_structure;

/* A thread slot without an owner that cells of queues still name: they are to be looked for.
 * RECOVER held. */
void smi_stacks_count_claims(shmalloc_heap *heap, struct smf_thread *slot);

/* Free a block, small or large, without a stack, and store 0 to *holder in the same step. */
int smi_block_give(shmalloc_heap *heap, uint64_t ref, uint64_t *holder);

#endif
