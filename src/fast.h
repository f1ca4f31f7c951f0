/* SPDX-License-Identifier: MIT */
/*
 * fast.h - the fast paths: a pop from, or a push to, the calling thread's stack of the class.
 *
 * They take no lock and make no atomic read-modify-write; the store of the count commits. Whatever is unusual
 * (another heap than last time, a forked child, an empty or full stack, a tagged slab, a hardened heap, a
 * pointer that is no block) fails one of their comparisons and goes the long way, which finds out. In line, because
 * every call on blocks begins with them.
 *
 * A ref leads through two loads to its page's word, from there to the stack, and only then to the count, which the
 * next allocation waits for. A program that frees what it just got would wait for that chain each time: so a thread
 * remembers its last block and the stack it came from. The block is a slot of that stack's class as long as its slab
 * is what it was; smf_state.reshaped tells that no slab of the heap ended, or got a side array, since the thread took
 * the long way last, when it forgets its last block.
 */
#ifndef SMI_FAST_H
#define SMI_FAST_H

#include <string.h>

#include "link.h"
#include "slab.h"

/* The heap's size; the context knows the heap. */
static inline uint64_t smi_size_now(const struct smi_thread *t)
{
    return SMI_LOAD(&smi_state_of(t)->size);
}

/* Is the context one of this heap, as it is open now? Otherwise nothing that the context leads to may be there. */
static inline int smi_serves(const struct smi_thread *t, const shmalloc_heap *heap)
{
    return SMI_LIKELY(t->epoch == SMI_LOAD(&heap->epoch));
}

/* The stack with a slot for `size` bytes on top; NULL when that takes the long way. The tables are smi_class_of()'s, which
 * does not ask whether there is a class. */
static inline struct smi_bin *smi_bin_for(const shmalloc_heap *heap, struct smi_thread *t, size_t size)
{
    if (!smi_serves(t, heap))
        return NULL;
    unsigned k;
    if (SMI_LIKELY(size <= SMI_MOST_BY_8))
        k = smi_class_by_8[(size + 7) / 8];
    else if (SMI_LIKELY(size <= SMI_MAX_SMALL))
        k = smi_class_by_128[(size + 127) / 128];
    else
        return NULL;
    struct smi_bin *bin = smi_bin(t, k);
    uint64_t *array = bin->array, count = array[0];
    if (SMI_UNLIKELY(count - 1 >= bin->limit)) /* 0, or a count that cannot be */
        return NULL;
    return SMI_LIKELY(array[count] < t->reserved) ? bin : NULL;
}

static inline uint64_t smi_top(const struct smi_bin *bin)
{
    return bin->array[bin->array[0]];
}

/* The same when the library itself writes to the slot: a damaged stack must not lead it beyond the file's end. */
static inline struct smi_bin *smi_bin_to_fill(const shmalloc_heap *heap, struct smi_thread *t, size_t size)
{
    struct smi_bin *bin = smi_bin_for(heap, t, size);
    return SMI_LIKELY(bin && smi_in_heap(heap, smi_top(bin), size)) ? bin : NULL;
}

/* Has the stack room for `ref`, which is not the one on top? */
static inline int smi_bin_takes(const struct smi_bin *bin, uint64_t ref)
{
    uint64_t count = bin->array[0];
    return SMI_LIKELY(count < bin->limit && bin->array[count] != ref); /* array[0] is no ref */
}

/* The stack that the block at `ref` goes to, with room; NULL when that takes the long way. The context serves
 * the heap. */
static inline struct smi_bin *smi_bin_of(struct smi_thread *t, uint64_t ref)
{
    if (ref == t->last_ref) {
        if (SMI_LIKELY(SMI_LOAD(&smi_state_of(t)->reshaped) == t->reshaped))
            return smi_bin_takes(t->last_bin, ref) ? t->last_bin : NULL;
        smi_forget_last(t);
    }
    if (SMI_UNLIKELY(ref >= t->reserved || ref >= smi_size_now(t)))
        return NULL;
    uintptr_t words = SMI_LOAD(&t->words[ref >> SMF_GRANULE_SHIFT]);
    if (SMI_UNLIKELY(words == 0))
        return NULL;
    uint64_t word = SMI_LOAD((uint16_t *)words + (ref >> SMF_PAGE_SHIFT));
    struct smi_bin *bin = &t->bin_of_kind[word & SMF_WORD_KIND];
    if (SMI_UNLIKELY(!smi_begins_slot(&bin->shape, smi_offset_in_plain_slab(ref, word))))
        return NULL;
    return smi_bin_takes(bin, ref) ? bin : NULL;
}

/* Can a link record name the word at this offset in the mapping of a context that serves the heap? */
static inline int smi_can_link(const struct smi_thread *t, uint64_t at)
{
    return at % 8 == 0 && at < smi_size_now(t);
}

/* The store of the count commits either. */
static inline uint64_t smi_pop(struct smi_thread *t, struct smi_bin *bin)
{
    uint64_t *array = bin->array, count = array[0], ref = array[count];
    SMI_STORE(&array[0], count - 1);
    t->last_ref = ref;
    t->last_bin = bin;
    return ref;
}

static inline void smi_push(struct smi_bin *bin, uint64_t ref)
{
    uint64_t *array = bin->array, count = array[0];
    SMI_STORE(&array[count + 1], ref);
    SMI_STORE(&array[0], count + 1);
}

/* ---- with a ref word in the heap ---- */

/* The same as a pop. */
static inline void smi_pop_linked(struct smi_thread *t, struct smi_bin *bin, uint64_t *dest)
{
    uint64_t ref = smi_top(bin);
    smi_link_take(t, dest, (struct smi_side){ref, bin->array}, (struct smi_side){0, NULL});
    t->last_ref = ref;
    t->last_bin = bin;
}

/* The block at *dest goes to the stack `old`, the slot on top of `fresh` takes its place. */
static inline void smi_exchange_linked(struct smi_thread *t, struct smi_bin *fresh, struct smi_bin *old, uint64_t *dest)
{
    uint64_t ref = smi_top(fresh);
    smi_link_take(t, dest, (struct smi_side){ref, fresh->array}, (struct smi_side){*dest, old->array});
    t->last_ref = ref;
    t->last_bin = fresh;
}

/* ---- resizing ---- */

static inline uint32_t smi_slot_bytes(const struct smi_thread *t, const struct smi_bin *bin)
{
    return smi_classes[bin - t->bin_of_kind - 1].size;
}

/* Where the block at `ref` lies when it has `size` bytes; 0 when that takes the long way. `dest`: the word in the heap
 * that names it and follows it; NULL: there is none. The context serves the heap. */
static inline uint64_t smi_resize(const shmalloc_heap *heap, struct smi_thread *t, uint64_t ref, size_t size, uint64_t *dest)
{
    struct smi_bin *old = smi_bin_of(t, ref);
    if (SMI_UNLIKELY(!old))
        return 0;
    uint32_t old_size = smi_slot_bytes(t, old);
    if (smi_stays(old_size, size))
        return ref;
    struct smi_bin *fresh = smi_bin_to_fill(heap, t, size);
    if (SMI_UNLIKELY(!fresh))
        return 0;
    memcpy(t->base + smi_top(fresh), t->base + ref, old_size < size ? old_size : size);
    if (dest) {
        smi_exchange_linked(t, fresh, old, dest);
    } else {
        smi_pop(t, fresh);
        smi_push(old, ref);
    }
    return t->last_ref;
}

#endif
