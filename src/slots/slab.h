/* SPDX-License-Identifier: MIT */
/*
 * slab.h - the geometry of a slab: which slot has which address and which bit.
 *
 * A slab is a span of pages carved into equal slots. Its record is its first page's descriptor; its
 * bitmap lies in the descriptors of its pages, 256 bits each, or, for the classes of 8 and 16
 * bytes, in a page of its own before the slots. A bit is 1 while the central heap holds the slot.
 * Beside that a slab may have a side array with type tags and, in hardened heaps, a bit for each
 * slot that the user has.
 */
#ifndef SMI_SLAB_H
#define SMI_SLAB_H

#include "slots/context.h"

/* A slot, found from a ref. */
struct smi_slot {
    struct smf_page *slab;
    uint32_t page; /* of the slab */
    uint32_t index;
    uint32_t k; /* class */
    uint32_t arena;
    uint16_t word; /* of the page the slot begins in */
};

/* Bytes from the begin of a slab to `ref`, which lies in a page of it that has word `word`. */
static inline uint32_t smi_offset_in_slab(uint64_t ref, uint16_t word)
{
    return ((uint32_t)(word & SMF_WORD_INDEX) << (SMF_PAGE_SHIFT - SMF_WORD_INDEX_SHIFT)) +
           (uint32_t)(ref & (SMF_PAGE - 1));
}

/* Slot number for a ref whose page has word `word` of class k. Returns the slot
 * number, or a number not below the class's slots when no slot begins there. */
static inline uint32_t smi_slot_index(uint64_t ref, uint16_t word, const struct smi_class *class)
{
    uint64_t offset =
        smi_offset_in_slab(ref, word) - ((uint64_t) class->bitmap_pages << SMF_PAGE_SHIFT);
    if (offset >= 32 * SMF_PAGE) /* in the bitmap page: wrapped below 0 */
        return UINT32_MAX;
    uint32_t index = (uint32_t)(offset * class->reciprocal >> 32);
    return index * class->size == offset ? index : UINT32_MAX;
}

/* Does a slot begin `offset` bytes behind where the first one of a slab of this class does? One
 * multiplication tells the multiples n of a d, for n below 2^32: D. Lemire, O. Kaser, N. Kurz,
 * "Faster remainder by direct computation", Software: Practice and Experience 49(6), 2019, section
 * 3.2. */
static inline int smi_begins_slot(const struct smi_top *top, uint32_t offset)
{
    return offset < top->length && offset * top->inverse < top->inverse;
}

/* The slot at `ref`: 0, or SHMALLOC_EBADREF when no slot of a slab begins there. */
int smi_slot_find(const shmalloc_heap *heap, uint64_t ref, struct smi_slot *out);

static inline uint64_t smi_slot_ref(uint32_t page, uint32_t k, uint32_t index)
{
    return (((uint64_t)page + smi_classes[k].bitmap_pages) << SMF_PAGE_SHIFT) +
           (uint64_t)index * smi_classes[k].size;
}

/* The 64-bit word of the bitmap that holds bits 64 * w .. of a slab that was found. */
static inline uint64_t *smi_slab_bits(const shmalloc_heap *heap, uint32_t page, uint32_t k,
                                      uint32_t w)
{
    if (smi_classes[k].bitmap_pages)
        return (uint64_t *)smi_at(heap, (uint64_t)page << SMF_PAGE_SHIFT) + w;
    return &smi_known_page(heap, page)[w / 4].bits[w % 4];
}

/* Bytes of the side array of a slab of class k. */
static inline size_t smi_side_bytes(const shmalloc_heap *heap, uint32_t k)
{
    size_t slots = smi_classes[k].slots;
    size_t tags = (slots * sizeof(uint16_t) + 7) & ~(size_t)7;
    return tags + (heap->hardened ? (slots + 63) / 64 * sizeof(uint64_t) : 0);
}

/* The tag of a slot, NULL while its slab has no side array (or a damaged one). */
uint16_t *smi_slot_tag(const shmalloc_heap *heap, const struct smi_slot *slot);

/* The slot is nobody's any more: its tag and its user bit go. Returns 0 if the bit was gone
 * already: in hardened heaps that is a double free. */
int smi_slot_forget(const shmalloc_heap *heap, const struct smi_slot *slot);

/* The hardened mode's word with the slot's bit, NULL when there is none. */
uint64_t *smi_slot_user_bits(const shmalloc_heap *heap, const struct smi_slot *slot);

#endif
