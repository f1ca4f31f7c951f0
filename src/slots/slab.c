/* SPDX-License-Identifier: MIT */
/* slab.c - from refs to slots and their side arrays; see slab.h. */
#include "slots/slab.h"

int smi_slot_find(const shmalloc_heap *heap, uint64_t ref, struct smi_slot *out)
{
    const uint16_t *word = smi_in_heap(heap, ref, 8) ? smi_word(heap, ref >> SMF_PAGE_SHIFT) : NULL;
    if (!word)
        return SHMALLOC_EBADREF;
    out->word = SMI_LOAD(word);
    out->k = (uint32_t)(out->word & SMF_WORD_KIND) - 1;
    if (out->k >= SMF_CLASSES)
        return SHMALLOC_EBADREF;
    const struct smi_class *class = &smi_classes[out->k];
    out->index = smi_slot_index(ref, out->word, class);
    if (out->index >= class->slots)
        return SHMALLOC_EBADREF;
    uint64_t first = (out->word & SMF_WORD_INDEX) >> SMF_WORD_INDEX_SHIFT;
    uint64_t page = (ref >> SMF_PAGE_SHIFT) - first;
    out->page = (uint32_t)page;
    out->slab = first < ref >> SMF_PAGE_SHIFT ? smi_page(heap, page) : NULL;
    if (!out->slab || !smi_page(heap, page + smi_class_span_pages(out->k) - 1))
        return SHMALLOC_EBADREF;
    out->arena = SMI_LOAD(&out->slab->arena);
    if (out->arena > heap->arena_count || SMI_LOAD(&out->slab->size_class) != out->k)
        return SHMALLOC_EBADREF;
    return 0;
}

/* The side array, when it lies inside the heap. */
static uint8_t *side_of(const shmalloc_heap *heap, const struct smi_slot *slot)
{
    uint64_t side = SMI_LOAD(&slot->slab->side);
    if (side == 0 || side % 8 != 0 || !smi_in_heap(heap, side, smi_side_bytes(heap, slot->k)))
        return NULL;
    return smi_at(heap, side);
}

uint16_t *smi_slot_tag(const shmalloc_heap *heap, const struct smi_slot *slot)
{
    uint8_t *side = side_of(heap, slot);
    return side ? (uint16_t *)(void *)side + slot->index : NULL;
}

uint64_t *smi_slot_user_bits(const shmalloc_heap *heap, const struct smi_slot *slot)
{
    uint8_t *side = heap->hardened ? side_of(heap, slot) : NULL;
    if (!side)
        return NULL;
    size_t tags = ((size_t)smi_classes[slot->k].slots * sizeof(uint16_t) + 7) & ~(size_t)7;
    return (uint64_t *)(void *)(side + tags) + slot->index / 64;
}

int smi_slot_forget(const shmalloc_heap *heap, const struct smi_slot *slot)
{
    if (!(slot->word & SMF_WORD_SIDE))
        return 1;
    uint16_t *tag = smi_slot_tag(heap, slot);
    if (tag && SMI_LOAD(tag) != 0)
        SMI_STORE(tag, 0);
    uint64_t *bits = smi_slot_user_bits(heap, slot), bit = 1ull << (slot->index % 64);
    return !bits || (__atomic_fetch_and(bits, ~bit, __ATOMIC_RELAXED) & bit) != 0;
}
