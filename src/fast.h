/* SPDX-License-Identifier: MIT */
/*
 * fast.h - the fast paths: a pop from, or a push to, the calling thread's stack of the class.
 *
 * They take no lock and make no atomic read-modify-write; the store of the count commits. Whatever is unusual
 * (another heap than last time, a forked child, an empty or full stack, a tagged slab, a hardened heap, a
 * pointer that is no block) fails one of their comparisons and goes the long way, which finds out. In line, because
 * every call of api.c and preload.c begins with them.
 */
#ifndef SMI_FAST_H
#define SMI_FAST_H

#include "slab.h"

/* The heap's size; the context knows the heap. */
static inline uint64_t smi_size_now(const struct smi_thread *t)
{
    return SMI_LOAD(&((const struct smf_state *)(const void *)(t->base + SMF_STATE_OFFSET))->size);
}

/* The stack with a slot for `size` bytes on top; NULL when that takes the long way. */
static inline uint64_t *smi_stack_for(const shmalloc_heap *heap, const struct smi_thread *t, size_t size)
{
    if (SMI_UNLIKELY(t->epoch != SMI_LOAD(&heap->epoch) || size > SMI_MAX_SMALL))
        return NULL;
    const struct smi_bin *bin = &t->bin[smi_class_of(size)];
    uint64_t *array = bin->array, count = array[0];
    if (SMI_UNLIKELY(count - 1 >= bin->limit)) /* 0, or a count that cannot be */
        return NULL;
    return SMI_LIKELY(array[count] < t->reserved) ? array : NULL;
}

/* The stack that the block at `ref` goes to, with room; NULL when that takes the long way. */
static inline uint64_t *smi_stack_of(const shmalloc_heap *heap, const struct smi_thread *t, uint64_t ref)
{
    if (SMI_UNLIKELY(t->epoch != SMI_LOAD(&heap->epoch) || ref >= smi_size_now(t)))
        return NULL;
    uintptr_t words = SMI_LOAD(&t->words[ref >> SMF_GRANULE_SHIFT]);
    if (SMI_UNLIKELY(words == 0))
        return NULL;
    uint16_t word = SMI_LOAD((uint16_t *)words + (ref >> SMF_PAGE_SHIFT));
    uint32_t k = (uint32_t)(word & (SMF_WORD_KIND | SMF_WORD_SIDE | SMF_WORD_INTERNAL)) - 1;
    if (SMI_UNLIKELY(k >= SMF_CLASSES))
        return NULL;
    const struct smi_bin *bin = &t->bin[k];
    if (SMI_UNLIKELY(!smi_begins_slot(bin->shape, smi_offset_in_slab(ref, word))))
        return NULL;
    uint64_t *array = bin->array, count = array[0];
    if (SMI_UNLIKELY(count >= bin->limit || array[count] == ref)) /* array[0] is no ref */
        return NULL;
    return array;
}

/* Can a link record name the word at this offset in the thread's mapping? */
static inline int smi_can_link(const struct smi_thread *t, uint64_t at)
{
    return at % 8 == 0 && at < smi_size_now(t);
}

/* The store of the count commits either. */
static inline uint64_t smi_pop(uint64_t *array)
{
    uint64_t count = array[0], ref = array[count];
    SMI_STORE(&array[0], count - 1);
    return ref;
}

static inline void smi_push(uint64_t *array, uint64_t ref)
{
    uint64_t count = array[0];
    SMI_STORE(&array[count + 1], ref);
    SMI_STORE(&array[0], count + 1);
}

#endif
