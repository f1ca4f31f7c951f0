/* SPDX-License-Identifier: MIT */
/*
 * pagetable.c - what this process knows of the pages of a heap; see pagetable.h.
 *
 * The table has an entry for each page that the mapping can hold: 1/1024 of the reserved addresses.
 * It cannot be touched until somebody learns something; then as much of it can as the heap is long,
 * and contexts are told with `covered`. So a limit on data (RLIMIT_DATA), memory that is locked as
 * it is mapped (mlockall) and huge pages see what is used, some 4 KiB for 4 MiB, and a heap that is
 * only read has no table.
 */
#include "handle/pagetable.h"

#include "handle/lock.h"
#include "platform/os.h"

static uint64_t table_bytes(const shmalloc_heap *heap)
{
    return (heap->reserved >> SMF_PAGE_SHIFT) * sizeof(*heap->known);
}

void smi_pagetable_make(shmalloc_heap *heap)
{
    heap->known = heap->read_only ? NULL : smi_os_reserve_private(table_bytes(heap), 1);
    heap->known_length = 0;
}

void smi_pagetable_drop(shmalloc_heap *heap)
{
    smi_os_unmap(heap->known, table_bytes(heap));
    heap->known = NULL;
}

/* Can the entry of a page be written? Several threads may see to it at once: they allow the same
 * again. */
static int can_write(shmalloc_heap *heap, uint64_t page)
{
    const uint64_t unit = 64u << 10;
    uint64_t old = __atomic_load_n(&heap->known_length, __ATOMIC_ACQUIRE),
             least = (page + 1) * sizeof(*heap->known);
    if (SMI_LIKELY(least <= old))
        return 1;
    uint64_t length = (smi_size(heap) >> SMF_PAGE_SHIFT) * sizeof(*heap->known);
    length = ((length < least ? least : length) + unit - 1) & ~(unit - 1);
    if (length > table_bytes(heap))
        length = table_bytes(heap);
    if (least > length || smi_os_allow((uint8_t *)heap->known + old, length - old) < 0)
        return 0;
    while (old < length && !__atomic_compare_exchange_n(&heap->known_length, &old, length, 0,
                                                        __ATOMIC_RELEASE, __ATOMIC_ACQUIRE))
        ;
    return 1;
}

/* smf_state.reshaped, which only grows; if it fell, entries could be taken for current that are
 * not. */
static int see_reshaped(shmalloc_heap *heap, uint64_t *reshaped)
{
    /* acquire: what is loaded after was stored later than what was seen before */
    uint64_t seen = __atomic_load_n(&heap->reshaped_seen, __ATOMIC_ACQUIRE);
    *reshaped = __atomic_load_n(&heap->state->reshaped, __ATOMIC_ACQUIRE) & ~(SMF_RESHAPED - 1);
    if (*reshaped < seen)
        return smi_heap_poison(heap, "the count of reshaped slabs fell from %#llx to %#llx",
                               (unsigned long long)seen, (unsigned long long)*reshaped);
    while (seen < *reshaped && !__atomic_compare_exchange_n(&heap->reshaped_seen, &seen, *reshaped,
                                                            0, __ATOMIC_RELEASE, __ATOMIC_RELAXED))
        ;
    return 0;
}

uint64_t smi_pagetable_covered(const shmalloc_heap *heap)
{
    return __atomic_load_n(&heap->known_length, __ATOMIC_ACQUIRE) / sizeof(*heap->known)
           << SMF_PAGE_SHIFT;
}

int smi_pagetable_learn(shmalloc_heap *heap, uint64_t ref)
{
    uint64_t page = ref >> SMF_PAGE_SHIFT, reshaped;
    if (!heap->known || !smi_has_page(heap, page) || see_reshaped(heap, &reshaped) < 0)
        return 0;
    uint32_t word = SMI_LOAD(smi_known_word(heap, page)), k = (word & SMF_WORD_KIND) - 1;
    if (k >= SMF_CLASSES || (word & (SMF_WORD_SIDE | SMF_WORD_INTERNAL)))
        return 0;
    uint64_t place = (word & SMF_WORD_INDEX) >> SMF_WORD_INDEX_SHIFT;
    if (place < smi_classes[k].bitmap_pages || !can_write(heap, page))
        return 0;
    SMI_STORE(&heap->known[page], reshaped |
                                      (place - smi_classes[k].bitmap_pages) << SMF_PAGE_SHIFT |
                                      (1ull + k) << SMI_TOP_SHIFT);
    return 1;
}

void smi_pagetable_reshape(shmalloc_heap *heap)
{
    SMI_ASSERT(smi_lock_is_ours(heap, smi_lock_of_pages(heap)));
    uint64_t reshaped;
    if (see_reshaped(heap, &reshaped) == 0)
        /* pairs with learners */
        __atomic_store_n(&heap->state->reshaped, reshaped + SMF_RESHAPED, __ATOMIC_RELEASE);
}
