/* SPDX-License-Identifier: MIT */
/*
 * fast.h - the fast paths: a pop from, or a push to, the calling thread's stack of the class.
 *
 * They take no lock and make no atomic read-modify-write; one store to a word of an open stack
 * commits. Whatever is unusual (another heap than last time, a forked child, an empty or full
 * stack, a tagged slab, a hardened heap, a pointer that is no block) fails one of their comparisons
 * and goes the long way, which finds out. In line, because every call on blocks begins with them.
 *
 * What bounds them is not the number of instructions but chains of loads that end in the address of
 * a store, since later loads wait for that. So nothing here is looked up that can be remembered:
 * the ref on top of each stack, in the thread's context, and what a page is, in a table of this
 * process (pagetable.h) that is indexed by address. An entry holds as long as smf_state.reshaped
 * says so, which grows whenever a slab of the heap ended or got a side array.
 */
#ifndef SMI_FAST_H
#define SMI_FAST_H

#include <string.h>

#include "slots/link.h"
#include "handle/pagetable.h"
#include "slots/slab.h"

/* The heap's size; the context knows the heap. */
static inline uint64_t smi_size_now(const struct smi_thread *t)
{
    return SMI_LOAD(&smi_state_of(t)->size);
}

/* Is the context one of this heap, as it is open now? Otherwise nothing that the context leads to
 * may be there. */
static inline int smi_serves(const struct smi_thread *t, const shmalloc_heap *heap)
{
    return SMI_LIKELY(SMI_LOAD(&t->serves) == heap);
}

static inline struct smi_top *smi_top_at(struct smi_thread *t, uint64_t at)
{
    return (struct smi_top *)(void *)((uint8_t *)t->top_of_kind + at);
}

/* The stack with a slot for `size` bytes on top; NULL when that takes the long way. The tables are
 * smi_class_of()'s, which does not ask whether there is a class. */
static inline struct smi_top *smi_top_for(const shmalloc_heap *heap, struct smi_thread *t,
                                          size_t size)
{
    if (!smi_serves(t, heap))
        return NULL;
    uint64_t at;
    if (SMI_LIKELY(size <= SMI_MOST_BY_8))
        at = t->top_by_8[(size + 7) / 8];
    else if (SMI_LIKELY(size <= SMI_MAX_SMALL))
        at = smi_top_by_128[(size + 127) / 128];
    else
        return NULL;
    struct smi_top *top = smi_top_at(t, at);
    /* neither 0 nor SMF_OPEN, of an empty stack */
    return SMI_LIKELY(top->ref - 1 < t->reserved - 1) ? top : NULL;
}

/* The same when the library itself writes to the slot: a damaged stack must not lead it beyond the
 * file's end. */
static inline struct smi_top *smi_top_to_fill(const shmalloc_heap *heap, struct smi_thread *t,
                                              size_t size)
{
    struct smi_top *top = smi_top_for(heap, t, size);
    return SMI_LIKELY(top && smi_in_heap(heap, top->ref, size)) ? top : NULL;
}

/* Has the stack room for `ref`, which is not the one on top? */
static inline int smi_top_takes(const struct smi_top *top, uint64_t ref)
{
    return SMI_LIKELY((uint32_t)(uintptr_t)top->word != top->end && top->ref != ref);
}

/* The stack of the class of the slot at `ref`; NULL when that takes the long way. Any value of
 * `ref` may come: its address is computed as an integer, since a pointer must not leave its object.
 * The context serves the heap. */
static inline struct smi_top *smi_top_of_any(struct smi_thread *t, uint64_t ref)
{
    uintptr_t address = (uintptr_t)t->base + ref;
    if (SMI_UNLIKELY(ref >= t->covered))
        return NULL;
    uint64_t known = SMI_LOAD(&t->known[address >> SMF_PAGE_SHIFT]);
    if (SMI_UNLIKELY(!smi_is_current(known, SMI_LOAD(&smi_state_of(t)->reshaped))))
        return NULL;
    struct smi_top *top = smi_top_at(t, smi_known_top(known));
    return SMI_LIKELY(smi_begins_slot(top, smi_known_offset(known, address))) ? top : NULL;
}

/* The stack that the block at `ref` goes to, with room; NULL when that takes the long way. */
static inline struct smi_top *smi_top_of(struct smi_thread *t, uint64_t ref)
{
    struct smi_top *top = smi_top_of_any(t, ref);
    return SMI_LIKELY(top != NULL) && smi_top_takes(top, ref) ? top : NULL;
}

/* Can a link record name the word at this offset in the mapping of a context that serves the
 * heap? */
static inline int smi_can_link(const struct smi_thread *t, uint64_t at)
{
    return at % 8 == 0 && at < smi_size_now(t);
}

/* ---- resizing ---- */

static inline uint32_t smi_slot_bytes(const struct smi_thread *t, const struct smi_top *top)
{
    return smi_classes[top - t->top_of_kind - 1].size;
}

/* Where the block at `ref` lies when it has `size` bytes; 0 when that takes the long way. `holder`:
 * the word in the heap that names it and follows it; NULL: there is none. The context serves the
 * heap. */
static inline uint64_t smi_resize(const shmalloc_heap *heap, struct smi_thread *t, uint64_t ref,
                                  size_t size, uint64_t *holder)
{
    struct smi_top *old = smi_top_of(t, ref);
    if (SMI_UNLIKELY(!old))
        return 0;
    uint32_t old_size = smi_slot_bytes(t, old);
    if (smi_stays(old_size, size))
        return ref;
    struct smi_top *fresh = smi_top_to_fill(heap, t, size);
    if (SMI_UNLIKELY(!fresh))
        return 0;
    memcpy(t->base + fresh->ref, t->base + ref, old_size < size ? old_size : size);
    if (holder)
        return smi_link_exchange(t, holder, ref, fresh, old);
    uint64_t moved = smi_pop_word(fresh);
    smi_push_word(old, ref);
    return moved;
}

#endif
