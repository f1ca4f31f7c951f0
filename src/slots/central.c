/* SPDX-License-Identifier: MIT */
/*
 * central.c - the central heap.
 *
 * Truth: one bit per slot. Derived, kept in the same logged operations: a slab's free_slots, hint
 * and membership in the set of slabs with free slots; the class's slab_count and free_slots. Slots
 * are taken from the slab with the lowest address, so that higher ones drain and go back.
 *
 * Invariants (check.c):
 *   C1  free_slots of a slab equals its bits; no bit at or beyond its last slot
 *   C2  a slab is in its class's set exactly when it has free slots
 *   C3  slab_count and free_slots of a class are the sums over its slabs
 *   C4  a slot is free here, in one stack, or used; never two of them
 *
 * Locking: one class lock for each class and arena; the page lock, and for side arrays the class
 * locks of the library's own arena, are taken inside.
 *
 * Crash: a batch commits slab by slab, each time together with the stack's count. A slab on its way
 * between the page heap and here is named by `pending`: set in the page heap's operation on the way
 * in, in ours on the way out. Repair gives such a slab back. The longest operation logs 8 words of
 * bitmap, 4 of a set and 5 counts; the log has room for 30.
 */
#include "slots/central.h"

#include <string.h>

#include "handle/lock.h"
#include "pages/pages.h"
#include "pages/pageset.h"
#include "slots/slab.h"
#include "handle/undo.h"

#define WORDS_PER_STEP 8 /* of a bitmap, taken from in one operation */

static struct smf_central *central_of(shmalloc_heap *heap, uint32_t arena, uint32_t k)
{
    return &heap->central[arena * SMF_CLASSES + k];
}

static struct smi_op begin_class(shmalloc_heap *heap, struct smf_central *central)
{
    return smi_op_begin(heap, &central->log_count, central->log, SMF_CLASS_LOG);
}

static int abandon_class(struct smi_op *op, int rc)
{
    smi_undo_apply(op->heap, op->count, op->log, op->capacity);
    return rc;
}

/* The third word of a slab's descriptor. */
static void set_fill(struct smi_op *op, struct smf_page *slab, uint32_t free_slots, uint32_t hint,
                     int in_set)
{
    uint64_t value = (uint64_t)free_slots | (uint64_t)hint << 16 | (uint64_t)in_set << 48;
    smi_set(op, (uint64_t *)(void *)&slab->free_slots, value);
}

static uint32_t words_of(uint32_t k)
{
    return (smi_classes[k].slots + 63u) / 64;
}

/* ---- slabs in and out ---- */

static void fill_bits(shmalloc_heap *heap, uint32_t page, uint32_t k)
{
    uint32_t slots = smi_classes[k].slots;
    uint32_t room = smi_classes[k].bitmap_pages ? words_of(k) : smi_class_span_pages(k) * 4;
    for (uint32_t w = 0; w < room; w++) {
        uint32_t before = w * 64;
        uint64_t bits = before >= slots        ? 0
                        : slots - before >= 64 ? UINT64_MAX
                                               : (1ull << (slots - before)) - 1;
        *smi_slab_bits(heap, page, k, w) = bits;
    }
}

/* Give the slab named by `pending` back, and its side array before. */
static int give_pending(shmalloc_heap *heap, struct smf_central *central)
{
    uint64_t page = SMI_LOAD(&central->pending);
    struct smf_page *slab = page <= UINT32_MAX ? smi_page(heap, page) : NULL;
    uint64_t side = slab ? SMI_LOAD(&slab->side) : 0;
    struct smi_slot slot;
    if (!slab || slab->kind != SMF_PAGE_SLAB ||
        central != central_of(heap, slab->arena, slab->size_class) ||
        /* a side array is the library's, whose locks come after ours */
        (side && (smi_slot_find(heap, side, &slot) < 0 || slot.arena != heap->arena_count ||
                  slab->arena == heap->arena_count)))
        return smi_heap_poison(heap, "slab on its way to or from page %llu is none",
                               (unsigned long long)page);
    int rc = side ? smi_central_give(heap, side, &slab->side, NULL) : 0;
    if (rc == 0)
        rc = smi_pages_give(heap, (uint32_t)page, SMF_PAGE_SLAB, &central->pending, NULL);
    return rc;
}

/* A new slab joins the class. */
static int make_slab(shmalloc_heap *heap, uint32_t arena, uint32_t k)
{
    SMI_ASSERT(smi_lock_is_ours(heap, smi_lock_of_class(arena, k)));
    struct smf_central *central = central_of(heap, arena, k);
    int own = arena == heap->arena_count, side = heap->hardened && !own, zero;
    struct smi_take request = {
        .count = smi_class_span_pages(k),
        .alignment = 1,
        .kind = SMF_PAGE_SLAB,
        .size_class = (uint8_t)k,
        .arena = (uint8_t)arena,
        .word_flags = (uint16_t)((own ? SMF_WORD_INTERNAL : 0) | (side ? SMF_WORD_SIDE : 0)),
        .holder = &central->pending,
    };
    uint32_t page;
    int rc = smi_pages_take(heap, &request, &page, &zero);
    if (rc < 0)
        return rc;
    struct smf_page *slab = smi_known_page(heap, page);
    if (side && (rc = smi_central_take_own(heap, smi_side_bytes(heap, k), &slab->side)) < 0) {
        give_pending(heap, central);
        return rc;
    }
    fill_bits(heap, page, k); /* kill here: pending still names it; repair gives it back */
    struct smi_op op = begin_class(heap, central);
    set_fill(&op, slab, smi_classes[k].slots, 0, 1);
    rc = smi_pageset_insert(&op, &central->set, SMI_BY_ADDRESS, page);
    if (rc < 0)
        return abandon_class(&op, rc);
    smi_set(&op, &central->slab_count, central->slab_count + 1);
    smi_set(&op, &central->free_slots, central->free_slots + smi_classes[k].slots);
    smi_set(&op, &central->pending, 0);
    smi_op_commit(&op);
    central->slabs_made++;
    return 0;
}

/* A slab without used slots leaves the class. */
static int retire(shmalloc_heap *heap, struct smf_central *central, uint32_t k, uint32_t page)
{
    SMI_ASSERT(smi_lock_is_ours(heap, SMF_LOCK_CLASS_FIRST + (uint32_t)(central - heap->central)));
    struct smf_page *slab = smi_known_page(heap, page);
    struct smi_op op = begin_class(heap, central);
    int rc = smi_pageset_remove(&op, &central->set, SMI_BY_ADDRESS, page);
    if (rc < 0)
        return abandon_class(&op, rc);
    set_fill(&op, slab, 0, 0, 0);
    smi_set(&op, &central->slab_count, central->slab_count - 1);
    smi_set(&op, &central->free_slots, central->free_slots - smi_classes[k].slots);
    smi_set(&op, &central->pending, page);
    smi_op_commit(&op);
    central->slabs_retired++;
    return give_pending(heap, central);
}

/* An empty slab goes back at once unless it holds the class's only free slots: then keeping it
 * saves making it again for the next request. */
static int retire_if_spare(shmalloc_heap *heap, struct smf_central *central, uint32_t k,
                           uint32_t page)
{
    uint32_t slots = smi_classes[k].slots;
    if (smi_known_page(heap, page)->free_slots < slots || central->free_slots < 2ull * slots ||
        smi_heap_is_outgrown(heap)) /* the page heap would not take it from us */
        return 0;
    return retire(heap, central, k, page);
}

int smi_central_repair(shmalloc_heap *heap, uint32_t index)
{
    uint32_t arena = (index - SMF_LOCK_CLASS_FIRST) / SMF_CLASSES,
             k = (index - SMF_LOCK_CLASS_FIRST) % SMF_CLASSES;
    struct smf_central *central = central_of(heap, arena, k);
    /* The page lock first: its owner may be the same victim, half way in or out with our slab. And
     * the lock of side arrays: in the middle of giving one back, the slab does not name it any
     * more, and will when that is undone. */
    uint32_t pages = smi_lock_of_pages(heap);
    int rc = smi_lock_pass(heap, pages, pages);
    if (rc == 0 && arena < heap->arena_count) {
        uint32_t side = smi_lock_of_class(heap->arena_count, smi_class_of(smi_side_bytes(heap, k)));
        rc = smi_lock_pass(heap, side, side);
    }
    if (rc == 0)
        rc = smi_undo_apply(heap, &central->log_count, central->log, SMF_CLASS_LOG);
    if (rc == 0 && central->pending != 0)
        rc = give_pending(heap, central);
    return rc;
}

/* ---- slots out ---- */

static int impossible_count(shmalloc_heap *heap, uint32_t k, uint64_t count, uint64_t limit)
{
    return smi_heap_poison(heap, "stack of class %u holds %llu slots of at most %llu", k,
                           (unsigned long long)count, (unsigned long long)limit);
}

/* Take up to `want` slots' bits out of a slab, logged; their refs go to `refs`. Returns the number,
 * or a negative code. */
static int take_bits(struct smi_op *op, uint32_t page, uint32_t k, uint32_t want, uint64_t *refs)
{
    shmalloc_heap *heap = op->heap;
    const struct smf_page *slab = smi_known_page(heap, page);
    uint32_t got = 0, touched = 0, w = slab->hint, words = words_of(k);
    for (; w < words && got < want && touched < WORDS_PER_STEP; w++) {
        uint64_t *word = smi_slab_bits(heap, page, k, w), bits = *word;
        for (; bits != 0 && got < want; bits &= bits - 1) {
            uint32_t index = w * 64 + (uint32_t)__builtin_ctzll(bits);
            if (index >= smi_classes[k].slots)
                return smi_heap_poison(heap, "slab at page %u has a bit for slot %u of %u", page,
                                       index, smi_classes[k].slots);
            refs[got++] = smi_slot_ref(page, k, index);
        }
        if (bits != *word) {
            smi_set(op, word, bits);
            touched++;
        }
        if (bits != 0)
            break;
    }
    if (got == 0 || got > slab->free_slots)
        return smi_heap_poison(heap, "slab at page %u says %u free slots, its bits say otherwise",
                               page, slab->free_slots);
    return (int)got;
}

/* The slab's and the class's counts after `got` slots left; out of the set with a slab that is
 * full. */
static int count_out(struct smi_op *op, struct smf_central *central, uint32_t page, uint32_t got,
                     uint32_t hint)
{
    struct smf_page *slab = smi_known_page(op->heap, page);
    uint32_t left = slab->free_slots - got;
    set_fill(op, slab, left, hint, left > 0);
    smi_set(op, &central->free_slots, central->free_slots - got);
    return left > 0 ? 0 : smi_pageset_remove(op, &central->set, SMI_BY_ADDRESS, page);
}

/* One operation: slots of the slab at `page` to the stack. Returns the number, or a negative
 * code. */
static int refill_from(shmalloc_heap *heap, struct smf_central *central, uint32_t page, uint32_t k,
                       struct smi_array stack, uint32_t want)
{
    uint64_t refs[WORDS_PER_STEP * 64], *array = stack.array, count = SMI_LOAD(&array[0]);
    struct smi_op op = begin_class(heap, central);
    if (count >= stack.limit)
        return impossible_count(heap, k, count, stack.limit);
    if (want > stack.limit - count)
        want = (uint32_t)(stack.limit - count);
    if (want > WORDS_PER_STEP * 64)
        want = WORDS_PER_STEP * 64;
    int got = take_bits(&op, page, k, want, refs);
    if (got < 0)
        return abandon_class(&op, got);
    uint32_t last = (uint32_t)((refs[got - 1] - smi_slot_ref(page, k, 0)) / smi_classes[k].size);
    int rc = count_out(&op, central, page, (uint32_t)got, last / 64);
    if (rc < 0)
        return abandon_class(&op, rc);
    for (int i = 0; i < got; i++) /* the lowest address on top */
        SMI_STORE(&array[count + 1 + (uint64_t)i], refs[got - 1 - i]);
    smi_set(&op, &array[0], count + (uint64_t)got);
    smi_op_commit(&op);
    return got;
}

/* The page of a slab with free slots; made if there is none and `make`; 0 none; or a negative
 * code. */
static int64_t some_slab(shmalloc_heap *heap, uint32_t arena, uint32_t k, int make)
{
    struct smf_central *central = central_of(heap, arena, k);
    if (central->set == 0) {
        int rc = make ? make_slab(heap, arena, k) : 0;
        if (rc < 0 || !make)
            return rc;
    }
    uint32_t page = smi_pageset_first(heap, &central->set, SMI_BY_ADDRESS, 0);
    const struct smf_page *slab = smi_page(heap, page);
    if (!slab || !smi_in_heap(heap, (uint64_t)page << SMF_PAGE_SHIFT, SMF_PAGE) ||
        slab->kind != SMF_PAGE_SLAB || slab->size_class != k || slab->arena != arena ||
        !smi_page(heap, page + smi_class_span_pages(k) - 1ull))
        return smi_heap_poison(heap,
                               "set of slabs of class %u, arena %u leads to page %u, which is none",
                               k, arena, page);
    return page;
}

int smi_central_refill(shmalloc_heap *heap, uint32_t arena, uint32_t k, struct smi_array stack,
                       uint32_t want)
{
    uint32_t lock = smi_lock_of_class(arena, k), got = 0;
    int rc = smi_lock_acquire(heap, lock);
    if (rc < 0)
        return rc;
    struct smf_central *central = central_of(heap, arena, k);
    while (got < want) {
        int64_t page = some_slab(heap, arena, k, got == 0);
        if (page <= 0) {
            rc = (int)page;
            break;
        }
        rc = refill_from(heap, central, (uint32_t)page, k, stack, want - got);
        if (rc < 0)
            break;
        got += (uint32_t)rc;
    }
    central->refills++;
    central->refilled_slots += got;
    smi_lock_release(heap, lock);
    return got > 0 ? 0 : rc;
}

int smi_central_take_own(shmalloc_heap *heap, size_t size, uint64_t *holder)
{
    uint32_t arena = heap->arena_count, k = smi_class_of(size), lock = smi_lock_of_class(arena, k);
    int rc = smi_lock_acquire(heap, lock);
    if (rc < 0)
        return rc;
    struct smf_central *central = central_of(heap, arena, k);
    int64_t page = *holder == 0 ? some_slab(heap, arena, k, 1) : 0;
    if (page > 0) {
        uint64_t ref = 0;
        struct smi_op op = begin_class(heap, central);
        rc = take_bits(&op, (uint32_t)page, k, 1, &ref);
        if (rc == 1) {
            uint32_t index =
                (uint32_t)((ref - smi_slot_ref((uint32_t)page, k, 0)) / smi_classes[k].size);
            memset(smi_at(heap, ref), 0, smi_classes[k].size);
            rc = count_out(&op, central, (uint32_t)page, 1, index / 64);
        }
        if (rc < 0) {
            abandon_class(&op, rc);
        } else {
            smi_set(&op, holder, ref);
            smi_op_commit(&op);
        }
    } else {
        rc = (int)page;
    }
    smi_lock_release(heap, lock);
    return rc;
}

/* ---- slots in ---- */

/* Set the slot's bit, logged. */
static int set_bit(struct smi_op *op, struct smf_central *central, const struct smi_slot *slot)
{
    SMI_ASSERT(
        smi_lock_is_ours(op->heap, SMF_LOCK_CLASS_FIRST + (uint32_t)(central - op->heap->central)));
    uint64_t *word = smi_slab_bits(op->heap, slot->page, slot->k, slot->index / 64);
    uint64_t bit = 1ull << (slot->index % 64);
    if (*word & bit) {
        central->double_frees++;
        return smi_error(SHMALLOC_EDOUBLEFREE,
                         "%s: block at %#llx was free already when a stack of free slots was "
                         "emptied; a heap made with "
                         "SHMALLOC_HARDENED tells who freed it twice",
                         op->heap->path,
                         (unsigned long long)smi_slot_ref(slot->page, slot->k, slot->index));
    }
    smi_set_again(op, word, *word | bit);
    return 0;
}

/* The slab's and the class's counts after `got` slots came, of which the lowest has its bit in word
 * `lowest`; into the set with a slab that was full. */
static int count_in(struct smi_op *op, struct smf_central *central, const struct smi_slot *slot,
                    uint32_t got, uint32_t lowest)
{
    const struct smf_page *slab = slot->slab;
    int joins = !slab->in_set;
    uint32_t hint = joins || lowest < slab->hint ? lowest : slab->hint;
    set_fill(op, slot->slab, slab->free_slots + got, hint, 1);
    smi_set(op, &central->free_slots, central->free_slots + got);
    return joins ? smi_pageset_insert(op, &central->set, SMI_BY_ADDRESS, slot->page) : 0;
}

/* Does the ref name another slot of the slab that `slot` lies in? Then `slot` becomes it. */
static int follow(struct smi_slot *slot, uint64_t ref)
{
    uint64_t offset = ref - smi_slot_ref(slot->page, slot->k, 0);
    uint32_t size = smi_classes[slot->k].size, index = (uint32_t)(offset / size);
    if (offset >= (uint64_t)smi_classes[slot->k].slots * size || offset % size != 0)
        return 0;
    slot->index = index;
    return 1;
}

/* One operation: the slots on top of a stack's array, down to `keep`, that are of the slab of the
 * topmost come here, as far as their bits lie in WORDS_PER_STEP words. */
static int flush_slab(shmalloc_heap *heap, struct smf_central *central, struct smi_slot *slot,
                      struct smi_array stack, uint64_t count, uint32_t keep)
{
    uint64_t *array = stack.array;
    uint32_t got = 0, lowest = UINT32_MAX;
    struct smi_op op = begin_class(heap, central);
    int rc;
    do {
        rc = set_bit(&op, central, slot);
        if (rc < 0)
            break;
        smi_slot_forget(heap, slot); /* whose thread may have died before it did that */
        lowest = slot->index / 64 < lowest ? slot->index / 64 : lowest;
        got++;
    } while (count - got > keep && op.used < WORDS_PER_STEP && follow(slot, array[count - got]));
    if (got == 0) {
        SMI_STORE(&array[0], count - 1);
        return rc;
    }
    int counted = count_in(&op, central, slot, got, lowest);
    if (counted < 0)
        return abandon_class(&op, counted);
    smi_set(&op, &array[0], count - got - (rc < 0 ? 1 : 0));
    smi_op_commit(&op);
    int retired = retire_if_spare(heap, central, slot->k, slot->page);
    return retired < 0 ? retired : rc;
}

/* The top slot of a stack's array, which has *count. One that is no slot of class k was freed
 * twice, and its slab went back between: it is dropped, and SHMALLOC_EDOUBLEFREE returned. */
static int top_of_array(shmalloc_heap *heap, uint32_t k, struct smi_array stack, uint64_t *count,
                        struct smi_slot *slot)
{
    uint64_t n = *count = SMI_LOAD(&stack.array[0]);
    if (n == 0 || n > stack.limit)
        return impossible_count(heap, k, n, stack.limit);
    uint64_t ref = SMI_LOAD(&stack.array[n]);
    if (smi_slot_find(heap, ref, slot) == 0 && slot->k == k)
        return 0;
    __atomic_fetch_add(&central_of(heap, 0, k)->double_frees, 1, __ATOMIC_RELAXED);
    SMI_STORE(&stack.array[0], n - 1);
    return smi_error(SHMALLOC_EDOUBLEFREE,
                     "%s: block at %#llx was free already when a stack of free slots was emptied, "
                     "and its slab was gone; a heap made "
                     "with SHMALLOC_HARDENED tells who freed it twice",
                     heap->path, (unsigned long long)ref);
}

/* The run of slots on top of a stack's array that are of one class and arena comes here, one of
 * them at least. */
static int flush_run(shmalloc_heap *heap, uint32_t k, struct smi_array stack, uint32_t keep)
{
    struct smi_slot slot;
    uint64_t count;
    int rc = top_of_array(heap, k, stack, &count, &slot), result = 0;
    if (rc < 0)
        return rc;
    uint32_t arena = slot.arena, lock = smi_lock_of_class(arena, k);
    rc = smi_lock_acquire(heap, lock);
    if (rc < 0)
        return rc;
    struct smf_central *central = central_of(heap, arena, k);
    uint64_t before = count;
    do {
        rc = flush_slab(heap, central, &slot, stack, count, keep);
        if (rc == SHMALLOC_EDOUBLEFREE) {
            result = rc;
            rc = 0;
        }
    } while (rc == 0 && SMI_LOAD(&stack.array[0]) > keep &&
             (rc = top_of_array(heap, k, stack, &count, &slot)) == 0 && slot.arena == arena);
    central->flushes++;
    central->flushed_slots += before - SMI_LOAD(&stack.array[0]);
    smi_lock_release(heap, lock);
    return rc < 0 ? rc : result;
}

int smi_central_flush(shmalloc_heap *heap, uint32_t k, struct smi_array stack, uint32_t keep)
{
    int result = 0;
    while (SMI_LOAD(&stack.array[0]) > keep) {
        int rc = flush_run(heap, k, stack, keep);
        if (rc < 0 && rc != SHMALLOC_EDOUBLEFREE)
            return rc;
        if (rc < 0)
            result = rc;
    }
    return result;
}

int smi_central_give(shmalloc_heap *heap, uint64_t ref, uint64_t *holder, uint64_t *other)
{
    struct smi_slot slot;
    if (smi_slot_find(heap, ref, &slot) < 0)
        return smi_heap_poison(heap, "%#llx is to be freed and is no slot",
                               (unsigned long long)ref);
    uint32_t lock = smi_lock_of_class(slot.arena, slot.k);
    int rc = smi_lock_acquire(heap, lock);
    if (rc < 0)
        return rc;
    struct smf_central *central = central_of(heap, slot.arena, slot.k);
    if (holder && *holder != ref) { /* repair of the lock just undid the taking */
        smi_lock_release(heap, lock);
        return 0;
    }
    smi_slot_forget(heap, &slot);
    struct smi_op op = begin_class(heap, central);
    rc = set_bit(&op, central, &slot);
    if (rc == 0)
        rc = count_in(&op, central, &slot, 1, slot.index / 64);
    if (rc < 0) {
        abandon_class(&op, rc);
    } else {
        if (holder)
            smi_set(&op, holder, 0);
        if (other)
            smi_set(&op, other, 0);
        smi_op_commit(&op);
        rc = retire_if_spare(heap, central, slot.k, slot.page);
    }
    smi_lock_release(heap, lock);
    return rc;
}

/* ---- what is put aside ---- */

static uint32_t lock_of_asides(const shmalloc_heap *heap)
{
    return smi_lock_of_class(heap->arena_count, smi_class_of(SMF_STRUCTURE_BYTES));
}

static struct smf_central *central_of_asides(shmalloc_heap *heap)
{
    return central_of(heap, heap->arena_count, smi_class_of(SMF_STRUCTURE_BYTES));
}

int smi_central_put_aside(shmalloc_heap *heap, uint64_t *head, uint64_t ref, uint64_t *next,
                          uint64_t *holder, uint64_t then)
{
    int rc = smi_lock_acquire(heap, lock_of_asides(heap));
    if (rc < 0)
        return rc;
    struct smi_op op = begin_class(heap, central_of_asides(heap));
    smi_set(&op, next, SMI_LOAD(head));
    smi_set(&op, head, ref);
    smi_set(&op, holder, then);
    smi_op_commit(&op);
    smi_lock_release(heap, lock_of_asides(heap));
    return 0;
}

int smi_central_take_aside(shmalloc_heap *heap, uint64_t *head, uint64_t offset, uint64_t *holder)
{
    int rc = smi_lock_acquire(heap, lock_of_asides(heap));
    if (rc < 0)
        return rc;
    uint64_t ref = SMI_LOAD(head);
    rc = ref != 0 && ref % 8 == 0 && smi_in_heap(heap, ref, SMF_STRUCTURE_BYTES);
    if (rc) {
        struct smi_op op = begin_class(heap, central_of_asides(heap));
        smi_set(&op, head, SMI_LOAD((uint64_t *)smi_at(heap, ref + offset)));
        smi_set(&op, holder, ref);
        smi_op_commit(&op);
    }
    smi_lock_release(heap, lock_of_asides(heap));
    return rc;
}

/* ---- trimming ---- */

struct empties {
    uint32_t page[64], count, slots;
};

static int collect_empty(shmalloc_heap *heap, uint32_t page, void *arg)
{
    struct empties *empties = arg;
    if (smi_known_page(heap, page)->free_slots == empties->slots)
        empties->page[empties->count++] = page;
    return empties->count == 64;
}

static int trim_class(shmalloc_heap *heap, uint32_t arena, uint32_t k)
{
    struct smf_central *central = central_of(heap, arena, k);
    struct empties empties = {.slots = smi_classes[k].slots};
    if (SMI_LOAD(&central->free_slots) < empties.slots)
        return 0;
    int rc = smi_lock_acquire(heap, smi_lock_of_class(arena, k));
    if (rc < 0)
        return rc;
    do {
        empties.count = 0;
        smi_pageset_each(heap, central->set, collect_empty, &empties);
        for (uint32_t i = 0; rc == 0 && i < empties.count; i++)
            rc = retire(heap, central, k, empties.page[i]);
    } while (rc == 0 && empties.count == 64);
    smi_lock_release(heap, smi_lock_of_class(arena, k));
    return rc;
}

int smi_central_trim(shmalloc_heap *heap)
{
    int rc = 0;
    for (uint32_t arena = 0; rc == 0 && arena <= heap->arena_count; arena++)
        for (uint32_t k = 0; rc == 0 && k < SMF_CLASSES; k++)
            rc = trim_class(heap, arena, k);
    return rc;
}
