/* SPDX-License-Identifier: MIT */
/*
 * cache.c - thread slots: stacks of free slots in the file, owned by one thread each.
 *
 * A stack is an array whose word 0 is the count. It starts inside the thread slot and moves to a span of its
 * own when it proves too short; bins[k] names it, so storing bins[k] switches array and count at once.
 *
 * Invariants (check.c):
 *   T1  a count is at most its array's capacity
 *   T2  every cached ref is a slot of the class, free nowhere else
 *   T3  a span of kind META is a thread slot, an array some bin names, or in `spare`
 *
 * Crash: a push or pop commits with the count. Refill and flush commit inside the central heap's operation.
 * An exchange of arrays names each span in `spare` before it can be orphaned; who releases the slot gives
 * back those that no bin names.
 */
#include "cache.h"

#include <string.h>

#include "central.h"
#include "pages.h"
#include "slab.h"

#define SHARE (8ull << 20)     /* bytes of slots that a thread's arrays may be sized for beyond the first */
#define DEEPEST (1ull << 20)   /* bytes of slots in one stack */
#define FIRST_BYTES (128u << 10) /* a stack's first limit, within the inside array */
#define MAX_BATCH 256u
#define FIRST_BATCH 4u

/* The ref of the span that a bin's array lies in. */
static uint64_t span_of(uint64_t bin)
{
    return bin & ~(SMF_PAGE - 1);
}

static int damaged_cache(shmalloc_heap *heap, const struct smf_thread *slot, uint32_t k)
{
    return smi_heap_poison(heap, "cache of class %u in the thread slot at %#llx is damaged", k,
                           (unsigned long long)((const uint8_t *)slot - heap->base));
}

/* Where the array of class k is; NULL when what the bin says cannot be. Its count is not looked at. */
static uint64_t *find_array(const shmalloc_heap *heap, const struct smf_thread *slot, uint32_t k, uint32_t *capacity)
{
    uint64_t slot_ref = (uint64_t)((const uint8_t *)slot - heap->base), bin = slot->bins[k];
    uint64_t ref = bin & ~(uint64_t)SMF_BIN_PAGES;
    *capacity = smi_bin_words(bin, k) - 1;
    return smi_bin_is_possible(slot_ref, bin, k) && smi_in_heap(heap, ref, 8ull * (*capacity + 1)) ? smi_at(heap, ref)
                                                                                                : NULL;
}

int smi_cache_array(shmalloc_heap *heap, struct smf_thread *slot, uint32_t k, uint64_t **array,
                    uint32_t *capacity)
{
    *array = find_array(heap, slot, k, capacity);
    return *array && (*array)[0] <= *capacity ? 0 : damaged_cache(heap, slot, k);
}

void smi_cache_format(struct smf_thread *slot, uint64_t own_ref, int zero)
{
    memset(&slot->link, 0, sizeof(slot->link));
    slot->section = slot->tx_log = 0;
    slot->scratch = slot->building = slot->spare[0] = slot->spare[1] = 0;
    slot->refilled = slot->flushed = slot->large = 0;
    for (uint32_t k = 0; k < SMF_CLASSES; k++) {
        uint64_t offset = smi_inline_offset(k);
        if (!zero)
            *(uint64_t *)(void *)((uint8_t *)slot + offset) = 0;
        slot->bins[k] = own_ref + offset;
    }
}

static uint32_t deepest(uint32_t k)
{
    uint64_t slots = DEEPEST / smi_classes[k].size;
    uint64_t most = smi_bin_words(SMF_BIN_MOST_PAGES, k) - 1;
    return (uint32_t)(slots < most ? slots : most);
}

/* Stacks that hold nothing and take nothing: every call takes the long way, where the heap is found poisoned. */
static void load_nothing(struct smi_thread *t)
{
    for (uint32_t k = 0; k < SMF_CLASSES; k++)
        *smi_bin(t, k) = smi_no_bin;
}

int smi_cache_load(struct smi_thread *t)
{
    t->room = SHARE < t->heap->state->max_size / 32 ? SHARE : t->heap->state->max_size / 32;
    for (uint32_t k = 0; k < SMF_CLASSES; k++) {
        struct smi_bin *bin = smi_bin(t, k);
        uint32_t capacity, first = FIRST_BYTES / smi_classes[k].size;
        bin->array = find_array(t->heap, t->slot, k, &capacity);
        if (!bin->array) {
            load_nothing(t);
            return damaged_cache(t->heap, t->slot, k);
        }
        bin->capacity = capacity;
        bin->limit = first < 4 ? 4 : first < capacity ? first : capacity;
        bin->batch = FIRST_BATCH;
        bin->shape = smi_shape(&smi_classes[k]);
    }
    return 0;
}

/* ---- refill and room ---- */

static int impossible_count(struct smi_thread *t, uint32_t k)
{
    const struct smi_bin *bin = smi_bin(t, k);
    return smi_heap_poison(t->heap, "cache of class %u holds %llu slots of at most %llu", k,
                           (unsigned long long)bin->array[0], (unsigned long long)bin->limit);
}

/* The most slots that move at once: half of the stack. */
static uint32_t most_batch(const struct smi_bin *bin)
{
    return bin->limit / 2 < MAX_BATCH ? (uint32_t)bin->limit / 2 : MAX_BATCH;
}

int smi_cache_refill(struct smi_thread *t, uint32_t k)
{
    struct smi_bin *bin = smi_bin(t, k);
    uint64_t count = bin->array[0];
    if (count > bin->limit)
        return impossible_count(t, k);
    if (count > 0)
        return 0;
    uint32_t most = most_batch(bin), want = bin->batch < most ? (uint32_t)bin->batch : most;
    bin->batch = bin->batch < MAX_BATCH ? bin->batch * 2 : MAX_BATCH; /* who comes often gets more */
    int rc = smi_central_refill(t->heap, t->arena, k, (struct smi_stack){bin->array, bin->limit}, want ? want : 1);
    t->slot->refilled += bin->array[0];
    return rc;
}

/* Replace the array of class k by a span of `pages`. */
static int exchange_array(struct smi_thread *t, uint32_t k, uint32_t pages)
{
    shmalloc_heap *heap = t->heap;
    struct smf_thread *slot = t->slot;
    struct smi_bin *bin = smi_bin(t, k);
    uint64_t old = slot->bins[k], count = SMI_LOAD(&bin->array[0]);
    uint32_t capacity = smi_bin_words(pages, k) - 1;
    if (count > bin->limit || count > capacity)
        return impossible_count(t, k);
    struct smi_take request = {
        .count = pages, .alignment = 1, .kind = SMF_PAGE_META, .name = &slot->spare[0]};
    uint32_t page;
    int zero, rc = smi_pages_take(heap, &request, &page, &zero);
    if (rc < 0)
        return rc;
    uint64_t ref = ((uint64_t)page << SMF_PAGE_SHIFT) + smi_span_offset(k);
    uint64_t *array = smi_at(heap, ref);
    memcpy(array + 1, bin->array + 1, count * sizeof(uint64_t));
    array[0] = count;
    if (old & SMF_BIN_PAGES)
        SMI_STORE(&slot->spare[1], span_of(old));
    SMI_STORE(&slot->bins[k], ref | pages); /* kill around here: of each span in `spare`, only those that
                                               no bin names are given back */
    bin->array = array;
    bin->capacity = capacity;
    SMI_STORE(&slot->spare[0], 0);
    if (old & SMF_BIN_PAGES)
        rc = smi_pages_give(heap, (uint32_t)(old >> SMF_PAGE_SHIFT), SMF_PAGE_META, &slot->spare[1], NULL);
    return rc;
}

/* Let the stack of class k get deeper if the thread's share allows it: 1 when it did. */
static int deepen(struct smi_thread *t, uint32_t k)
{
    struct smi_bin *bin = smi_bin(t, k);
    uint32_t size = smi_classes[k].size, most = deepest(k), limit = (uint32_t)bin->limit * 2 + 1;
    if (limit > most)
        limit = most;
    if (limit <= bin->limit || (uint64_t)(limit - bin->limit) * size > t->room)
        return 0;
    if (limit > bin->capacity) {
        uint32_t pages = (uint32_t)(t->slot->bins[k] & SMF_BIN_PAGES);
        pages = pages == 0 ? 1 : pages < SMF_BIN_MOST_PAGES / 2 ? pages * 2 : SMF_BIN_MOST_PAGES;
        if (exchange_array(t, k, pages) < 0)
            return 0; /* no memory for a longer array: the short one goes on */
        if (limit > bin->capacity)
            limit = (uint32_t)bin->capacity;
    }
    if (limit > bin->limit)
        t->room -= (uint64_t)(limit - bin->limit) * size;
    bin->limit = limit;
    return 1;
}

int smi_cache_make_room(struct smi_thread *t, uint32_t k)
{
    struct smi_bin *bin = smi_bin(t, k);
    uint64_t count = bin->array[0];
    if (count > bin->limit)
        return impossible_count(t, k);
    if (count < bin->limit || deepen(t, k))
        return 0;
    uint32_t batch = most_batch(bin);
    int rc = smi_central_flush(t->heap, k, (struct smi_stack){bin->array, bin->limit},
                               (uint32_t)bin->limit - (batch ? batch : 1));
    t->slot->flushed += count - bin->array[0];
    return rc;
}

/* Give at most `*most` cached slots back; 1: there are more. */
static int drain(shmalloc_heap *heap, struct smf_thread *slot, uint64_t *most)
{
    int result = 0;
    for (uint32_t k = 0; k < SMF_CLASSES; k++) {
        uint64_t *array;
        uint32_t capacity;
        int rc = smi_cache_array(heap, slot, k, &array, &capacity);
        if (rc < 0)
            return rc;
        uint64_t count = array[0], keep = count > *most ? count - *most : 0;
        rc = smi_central_flush(heap, k, (struct smi_stack){array, capacity}, (uint32_t)keep);
        if (rc < 0 && rc != SHMALLOC_EDOUBLEFREE)
            return rc;
        if (rc < 0)
            result = rc;
        *most -= count - keep;
        if (keep > 0)
            return 1;
    }
    return result;
}

/* ---- what the dead leave ---- */

int smi_block_give(shmalloc_heap *heap, uint64_t ref, uint64_t *name)
{
    const uint16_t *word = smi_word(heap, ref >> SMF_PAGE_SHIFT);
    if (word && (SMI_LOAD(word) & SMF_WORD_KIND) == SMF_WORD_LARGE)
        return smi_pages_give(heap, (uint32_t)(ref >> SMF_PAGE_SHIFT), SMF_PAGE_LARGE, name, NULL);
    return smi_central_give(heap, ref, name, NULL);
}

/* A cache array named by a link record: its words, or NULL when there is none at that ref. */
static uint64_t *link_array(shmalloc_heap *heap, struct smf_thread *slot, uint64_t ref, uint64_t count)
{
    for (uint32_t k = 0; ref != 0 && k < SMF_CLASSES; k++) {
        uint64_t *array;
        uint32_t capacity;
        if ((slot->bins[k] & ~(uint64_t)SMF_BIN_PAGES) == ref &&
            smi_cache_array(heap, slot, k, &array, &capacity) == 0)
            return count <= capacity ? array : NULL;
    }
    return NULL;
}

/* Count the old block in, however far the dead thread came. Disarms. */
static int finish_old(shmalloc_heap *heap, struct smf_thread *slot, const struct smf_link *link)
{
    if (link->old != 0 && link->old_array == 0) { /* large: given back and disarmed in one operation */
        int rc = smi_pages_give(heap, (uint32_t)(link->old >> SMF_PAGE_SHIFT), SMF_PAGE_LARGE, &slot->link.op,
                                NULL);
        if (rc != SHMALLOC_EDOUBLEFREE) /* by the program: there is nothing left to give */
            return rc;
    } else if (link->old != 0) {
        uint64_t *array = link_array(heap, slot, link->old_array, link->old_count + 1);
        if (!array)
            return smi_heap_poison(heap, "link record names a cache at %#llx that is none",
                                   (unsigned long long)link->old_array);
        SMI_STORE(&array[link->old_count + 1], link->old);
        SMI_STORE(&array[0], link->old_count + 1);
    }
    SMI_STORE(&slot->link.op, SMF_LINK_NONE);
    return 0;
}

static int resolve_take(shmalloc_heap *heap, struct smf_thread *slot, const struct smf_link *link, uint64_t *dest)
{
    int done = SMI_LOAD(dest) == link->fresh;
    if (link->fresh_array != 0) {
        uint64_t *array = link_array(heap, slot, link->fresh_array, link->fresh_count);
        if (!array || link->fresh_count == 0)
            return smi_heap_poison(heap, "link record names a cache at %#llx that is none",
                                   (unsigned long long)link->fresh_array);
        SMI_STORE(&array[0], link->fresh_count - (done ? 1 : 0));
    } else if (done && slot->scratch == link->fresh) {
        SMI_STORE(&slot->scratch, 0);
    }
    if (done)
        return finish_old(heap, slot, link);
    SMI_STORE(&slot->link.op, SMF_LINK_NONE);
    return 0;
}

int smi_cache_resolve_link(shmalloc_heap *heap, struct smf_thread *slot)
{
    struct smf_link copy, *link = &copy; /* what is compared is what is used */
    memcpy(link, &slot->link, sizeof(copy));
    uint64_t op = link->op;
    if (op == SMF_LINK_NONE)
        return 0;
    if (op > SMF_LINK_GIVE || link->dest % 8 != 0 || !smi_in_heap(heap, link->dest, 8))
        return smi_heap_poison(heap, "link record at %#llx says operation %llu on the word %#llx",
                               (unsigned long long)((uint8_t *)&slot->link - heap->base), (unsigned long long)op,
                               (unsigned long long)link->dest);
    uint64_t *dest = smi_at(heap, link->dest);
    if (op == SMF_LINK_TAKE)
        return resolve_take(heap, slot, link, dest);
    if (SMI_LOAD(dest) == link->old)
        SMI_STORE(dest, 0);
    return finish_old(heap, slot, link);
}

static int named_by_a_bin(const struct smf_thread *slot, uint64_t ref)
{
    for (uint32_t k = 0; k < SMF_CLASSES; k++)
        if ((slot->bins[k] & SMF_BIN_PAGES) && span_of(slot->bins[k]) == ref)
            return 1;
    return 0;
}

static int resolve_spares(shmalloc_heap *heap, struct smf_thread *slot)
{
    int rc = 0;
    for (int i = 0; i < 2 && rc == 0; i++) {
        uint64_t ref = slot->spare[i];
        if (ref != 0 && named_by_a_bin(slot, ref))
            SMI_STORE(&slot->spare[i], 0);
        else if (ref != 0)
            rc = smi_pages_give(heap, (uint32_t)(ref >> SMF_PAGE_SHIFT), SMF_PAGE_META, &slot->spare[i],
                                NULL);
    }
    return rc;
}

/* All bins use their inside arrays again, which are empty. */
static int give_arrays(shmalloc_heap *heap, struct smf_thread *slot)
{
    uint64_t slot_ref = (uint64_t)((uint8_t *)slot - heap->base);
    for (uint32_t k = 0; k < SMF_CLASSES; k++) {
        if (!(slot->bins[k] & SMF_BIN_PAGES))
            continue;
        SMI_STORE(&slot->spare[0], span_of(slot->bins[k]));
        SMI_STORE((uint64_t *)(void *)((uint8_t *)slot + smi_inline_offset(k)), 0);
        SMI_STORE(&slot->bins[k], slot_ref + smi_inline_offset(k));
        int rc = resolve_spares(heap, slot);
        if (rc < 0)
            return rc;
    }
    return 0;
}

int smi_cache_trim(struct smi_thread *t)
{
    uint64_t all = UINT64_MAX;
    int result = drain(t->heap, t->slot, &all);
    if (result < 0 && result != SHMALLOC_EDOUBLEFREE)
        return result;
    int rc = give_arrays(t->heap, t->slot);
    int loaded = smi_cache_load(t);
    return rc < 0 ? rc : loaded < 0 ? loaded : result;
}

int smi_cache_settle(shmalloc_heap *heap, struct smf_thread *slot)
{
    int rc = smi_cache_resolve_link(heap, slot);
    if (rc == 0 && slot->scratch != 0)
        rc = smi_block_give(heap, slot->scratch, &slot->scratch);
    if (rc == 0 && slot->building != 0)
        rc = smi_block_give(heap, slot->building, &slot->building);
    return rc;
}

int smi_cache_release(shmalloc_heap *heap, struct smf_thread *slot, uint64_t *most)
{
    int rc = smi_cache_settle(heap, slot);
    if (rc == 0)
        rc = resolve_spares(heap, slot);
    if (rc == 0)
        rc = drain(heap, slot, most);
    if (rc == SHMALLOC_EDOUBLEFREE) /* counted; the program that did it is gone */
        rc = 0;
    if (rc == 0)
        rc = give_arrays(heap, slot);
    if (rc == 0) {
        SMI_STORE(&slot->section, 0);
        SMI_STORE(&slot->tid, 0);
        SMI_STORE(&slot->owner, 0);
    }
    return rc;
}
