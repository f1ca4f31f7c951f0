/* SPDX-License-Identifier: MIT */
/*
 * retire.c - the bags of a thread; see retire.h.
 *
 * A thread has two: one takes, and is closed with a stamp when it is full. When the other one is
 * full too, sections that are older than the stamp are ousted, and the first is emptied into the
 * thread's stacks and takes again. So a thread has at most two bags of blocks that wait, whatever
 * readers do.
 *
 * Invariants (check.c):
 *   B1  `limbo` is 0 or a span of the library for that purpose; all words of a bag from the first 0
 *       on are 0
 *   B2  what is in a bag is a block, in no other bag or stack
 *
 * Crash: to retire is a short link record, in which the bag is the open stack (layout.h). To empty
 * is one for each block, in which the bag's last word is the user's. The limbo is named by `spare`
 * until it is `limbo`, zeroed, and again on its way back.
 */
#include "tx/retire.h"

#include <errno.h>
#include <string.h>

#include "handle/readers.h"
#include "pages/pages.h"
#include "slots/block.h"
#include "slots/stacks.h"

uint32_t smi_bag_limit = SMF_BAG;

/* ---- bags ---- */

/* The word in front of a bag's first ref: where its top is when it is empty. */
static uint64_t *bottom_of(struct smf_bag *bag)
{
    return (uint64_t *)(void *)bag + offsetof(struct smf_bag, refs) / sizeof(uint64_t) - 1;
}

static struct smf_bag *bag_of(const struct smi_thread *t, const uint64_t *word)
{
    return (void *)(t->base + (smi_link_ref_of(t, word) & ~(SMF_PAGE - 1)));
}

/* From here on that bag, which is empty, takes. */
static void open_bag(struct smi_thread *t, struct smf_bag *bag)
{
    uint32_t limit = smi_bag_limit < SMF_BAG ? smi_bag_limit : SMF_BAG;
    SMI_STORE(&bag->stamp, 0);
    t->bag_bytes = 0;
    t->bag = (struct smi_top){.word = bottom_of(bag),
                              .end = (uint32_t)(uintptr_t)(bottom_of(bag) + limit)};
}

static int make_limbo(struct smi_thread *t)
{
    shmalloc_heap *heap = t->heap;
    struct smf_thread *slot = t->slot;
    if (!(SMI_LOAD(&heap->state->features) & SMF_STATE_RETIRES))
        __atomic_fetch_or(&heap->state->features, SMF_STATE_RETIRES, __ATOMIC_SEQ_CST);
    struct smi_take request = {.count = SMF_LIMBO_PAGES,
                               .alignment = 1,
                               .kind = SMF_PAGE_META,
                               .tag = SMF_PURPOSE_LIMBO,
                               .holder = &slot->spare[0]};
    uint32_t page;
    int zero, rc = smi_stacks_resolve_spares(heap, slot);
    if (rc == 0)
        rc = smi_pages_take(heap, &request, &page, &zero);
    if (rc < 0)
        return rc;
    struct smf_bag *bags = smi_at(heap, (uint64_t)page << SMF_PAGE_SHIFT);
    if (!zero)
        memset(bags, 0, SMF_LIMBO_PAGES * SMF_PAGE);
    SMI_STORE(&slot->limbo, (uint64_t)page << SMF_PAGE_SHIFT); /* kill: both name it, and `limbo` is
                                                                  believed */
    SMI_STORE(&slot->spare[0], 0);
    open_bag(t, bags);
    return 0;
}

/* The stack that the block goes to, with room, after this process has had a look at its page if it
 * had not; else NULL. */
static struct smi_top *stack_for(struct smi_thread *t, uint64_t ref)
{
    if (!smi_serves(t, t->heap))
        return NULL;
    struct smi_top *top = smi_top_of(t, ref);
    if (top || !smi_pagetable_learn(t->heap, ref))
        return top;
    t->covered = smi_pagetable_covered(t->heap);
    return smi_top_of(t, ref);
}

/* Free what is in a bag, of which no word counts for a reader any more. The number of blocks. What
 * is no block, or is free already, is the program's doing; nothing is left to free. */
static int empty(struct smi_thread *t, struct smf_bag *bag)
{
    int freed = 0;
    for (uint64_t i = smi_bag_count(bag); i-- > 0;) {
        uint64_t *word = &bag->refs[i], ref = SMI_LOAD(word);
        struct smi_top *top = stack_for(t, ref);
        if (SMI_LIKELY(top != NULL)) {
            smi_link_push(t, word, ref, top);
        } else {
            int rc = smi_block_free_retired(t, ref, word);
            if (rc < 0 && rc != SHMALLOC_EDOUBLEFREE && rc != SHMALLOC_EBADREF)
                return rc;
            if (SMI_LOAD(word) != 0)
                SMI_STORE(word, 0);
        }
        freed++;
    }
    return freed;
}

/* The stamp of a bag that was closed; one that cannot be is replaced by a later one, which is as
 * good. */
static uint64_t stamp_of(shmalloc_heap *heap, const struct smf_bag *bag)
{
    uint64_t stamp = SMI_LOAD(&bag->stamp), epoch = SMI_LOAD(&heap->state->epoch);
    return stamp != 0 && stamp <= epoch ? stamp : smi_readers_advance(heap);
}

static int switch_bags(struct smi_thread *t)
{
    shmalloc_heap *heap = t->heap;
    struct smf_bag *bag = bag_of(t, t->bag.word), *bags = smi_stacks_limbo(heap, t->slot);
    if (!bags || (bag != bags && bag != bags + 1))
        return smi_heap_poison(heap, "the limbo of the thread slot at %#llx is damaged",
                               (unsigned long long)((uint8_t *)t->slot - heap->base));
    struct smf_bag *other = bag == bags ? bags + 1 : bags;
    if (SMI_LOAD(&other->refs[0]) != 0) {
        uint64_t stamp = stamp_of(heap, other);
        if (stamp == 0)
            return SHMALLOC_ECORRUPT;
        if (!smi_readers_oust(heap, stamp))
            return smi_error(-ENOTSUP,
                             "%s: this process has no membarrier, which readers in others rely on, "
                             "so it cannot free "
                             "what it has retired; allow it the system call membarrier(2)",
                             heap->path);
        int rc = empty(t, other);
        if (rc < 0)
            return rc;
    }
    uint64_t stamp = smi_readers_advance(heap);
    if (stamp == 0)
        return SHMALLOC_ECORRUPT;
    SMI_STORE(&bag->stamp, stamp); /* who begins from here on cannot have seen what is in it */
    open_bag(t, other);
    return 0;
}

int smi_retire_make_room(struct smi_thread *t)
{
    if (SMI_UNLIKELY(!t->bag.word))
        return make_limbo(t);
    return (uint32_t)(uintptr_t)t->bag.word == t->bag.end || t->bag_bytes >= SMI_BAG_BYTES
               ? switch_bags(t)
               : 0;
}

int smi_retire_flush(struct smi_thread *t)
{
    struct smf_bag *bags = t->bag.word ? smi_stacks_limbo(t->heap, t->slot) : NULL;
    if (!bags || (SMI_LOAD(&bags[0].refs[0]) == 0 && SMI_LOAD(&bags[1].refs[0]) == 0))
        return 0;
    uint64_t stamp = smi_readers_advance(t->heap);
    if (stamp == 0)
        return SHMALLOC_ECORRUPT;
    if (!smi_readers_oust(t->heap, stamp))
        return 0;
    int first = empty(t, &bags[0]), second = first < 0 ? first : empty(t, &bags[1]);
    if (second >= 0)
        open_bag(t, &bags[0]);
    return second < 0 ? second : first + second;
}

/* ---- retiring ---- */

/* The bytes of a block that may be retired; SHMALLOC_EBADREF, _EDOUBLEFREE. */
static int64_t look_at(struct smi_thread *t, uint64_t ref)
{
    int rc = smi_block_may_free(t, ref);
    if (rc == 0 && t->bag.ref == ref)
        rc = smi_heap_double_free(t->heap, ref);
    return rc < 0 ? rc : (int64_t)smi_block_size(t->heap, ref);
}

/* The block that was just put into the bag is nobody's any more. After that and not before, as in
 * finish_give(): a kill in between leaves it in the bag. */
static int finish(struct smi_thread *t, uint64_t ref, uint64_t size)
{
    if (!smi_block_unuse(t->heap, ref)) { /* another thread freed it at the same time */
        smi_pop_word(&t->bag);
        return smi_heap_double_free(t->heap, ref);
    }
    t->bag_bytes += size;
    int rc = size > SMI_RETIRED_AT_ONCE ? smi_retire_flush(t) : 0;
    return rc < 0 ? rc : 0;
}

int smi_retire(struct smi_thread *t, uint64_t ref, uint64_t *holder)
{
    int64_t size = look_at(t, ref);
    int rc = size < 0 ? (int)size : smi_retire_make_room(t);
    if (rc < 0)
        return rc;
    if (holder)
        smi_link_push(t, holder, ref, &t->bag);
    else
        smi_push_word(&t->bag, ref);
    return finish(t, ref, (uint64_t)size);
}

/* ---- what the dead leave ---- */

static int release_bag(shmalloc_heap *heap, struct smf_bag *bag, uint64_t *most)
{
    for (uint64_t i = smi_bag_count(bag); i-- > 0;) {
        uint64_t *word = &bag->refs[i], ref = SMI_LOAD(word);
        int rc =
            smi_block_size(heap, ref) != 0 ? smi_block_give(heap, ref, word) : SHMALLOC_EDOUBLEFREE;
        if (rc < 0 && rc != SHMALLOC_EDOUBLEFREE)
            return rc;
        if (SMI_LOAD(word) != 0)
            SMI_STORE(word, 0);
        *most -= *most > 0;
    }
    return 0;
}

int smi_retire_release(shmalloc_heap *heap, struct smf_thread *slot, uint64_t *most)
{
    if (heap->is_older)
        return 0;
    SMI_STORE(&slot->section_epoch, 0);
    if (slot->limbo == 0)
        return 0;
    struct smf_bag *bags = smi_stacks_limbo(heap, slot);
    if (!bags)
        return smi_heap_poison(heap, "the limbo of the thread slot at %#llx is damaged",
                               (unsigned long long)((uint8_t *)slot - heap->base));
    uint64_t stamp = smi_readers_advance(heap);
    if (stamp == 0)
        return SHMALLOC_ECORRUPT;
    if ((SMI_LOAD(&bags[0].refs[0]) != 0 || SMI_LOAD(&bags[1].refs[0]) != 0) &&
        !smi_readers_oust(heap, stamp))
        return 1; /* somebody else has to */
    int rc = smi_stacks_resolve_spares(heap, slot);
    for (uint32_t i = 0; rc == 0 && i < SMF_LIMBO_PAGES; i++)
        rc = release_bag(heap, &bags[i], most);
    if (rc < 0)
        return rc;
    SMI_STORE(&slot->spare[0], slot->limbo);
    SMI_STORE(&slot->limbo, 0);
    return smi_stacks_resolve_spares(heap, slot);
}

/* ---- publishing ---- */

int smi_fresh_make_slowly(struct smi_thread *t, size_t size, struct smi_fresh *out)
{
    int rc = smi_retire_make_room(t);
    if (rc == 0)
        rc = smi_block_prepare(t, size, &out->k, &out->ref);
    if (SMI_UNLIKELY(smi_pages_lack_room(rc)) && smi_retire_flush(t) > 0)
        rc = smi_block_prepare(t, size, &out->k, &out->ref);
    return rc;
}

void smi_fresh_drop(struct smi_thread *t, const struct smi_fresh *fresh)
{
    if (fresh->k >= SMF_CLASSES)
        smi_block_give(t->heap, fresh->ref, &t->slot->scratch);
    else
        smi_block_unuse(t->heap, fresh->ref);
}

int smi_fresh_publish_slowly(struct smi_thread *t, const struct smi_fresh *fresh, uint64_t *holder,
                             uint64_t bits, uint64_t old)
{
    int64_t size = old != 0 ? look_at(t, old) : 0;
    if (size < 0)
        return (int)size;
    struct smi_top *top = fresh->k < SMF_CLASSES ? smi_top(t, fresh->k) : NULL;
    if (top && top->ref == fresh->ref)
        smi_link_publish(t, holder, bits, top, old, &t->bag);
    else
        smi_link_take_to_bag(
            t, holder, bits,
            (struct smi_side){fresh->ref, top ? smi_stack_of(t, fresh->k)->array : NULL}, old,
            &t->bag);
    return old != 0 ? finish(t, old, (uint64_t)size) : 0;
}
