/* SPDX-License-Identifier: MIT */
/*
 * kept.c - large blocks that a thread freed and keeps; see kept.h.
 *
 *   give   entry stored; mark 0 -> kept: it is free
 *   take   mark kept -> 0: it is the program's; entry cleared
 *
 * A kill in between leaves an entry without a mark that names it, which counts for nothing. With a
 * word in the heap the step in the middle makes the mark `held`, which keeps others away while a
 * link record or `scratch` names the block.
 *
 * Invariant (check.c):
 *   K1  a mark that says kept names an entry that names the block
 */
#include "slots/kept.h"

#include "slots/link.h"
#include "pages/pages.h"

#define ROOM (8ull << 20 >> SMF_PAGE_SHIFT) /* pages that a thread keeps at most */

/* Pages that a thread of the heap may keep: none where freed blocks must be seen or go back at
 * once. */
static uint64_t room_of(const shmalloc_heap *heap)
{
    uint64_t share = SMI_LOAD(&heap->state->max_size) / 32 >> SMF_PAGE_SHIFT;
    return heap->hardened || SMI_LOAD(&heap->state->decay_ns) == 0 ? 0
           : share < ROOM                                          ? share
                                                                   : ROOM;
}

/* The descriptor of the large block of `count` pages at `ref`, which is all in the heap; else NULL.
 * 0: of any length. */
static struct smf_page *block_at(const shmalloc_heap *heap, uint64_t ref, uint64_t count)
{
    struct smf_page *d = ref % SMF_PAGE == 0 ? smi_page(heap, ref >> SMF_PAGE_SHIFT) : NULL;
    uint64_t pages = d ? SMI_LOAD(&d->page_count) : 0;
    return pages > 0 && SMI_LOAD(&d->kind) == SMF_PAGE_LARGE && (count == 0 || pages == count) &&
                   smi_in_heap(heap, ref, pages << SMF_PAGE_SHIFT)
               ? d
               : NULL;
}

static int change_mark(struct smf_page *d, uint64_t from, uint64_t to)
{
    return __atomic_compare_exchange_n(&d->side, &from, to, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}

static void clear_entry(struct smi_thread *t, uint32_t i, uint64_t pages)
{
    SMI_STORE(&t->slot->spans[i], 0);
    t->span_pages -= pages < t->span_pages ? pages : t->span_pages;
}

/* ---- taking ---- */

static int take_entry(struct smi_thread *t, uint32_t i, uint64_t ref, uint64_t pages, int scratch)
{
    struct smf_page *d = block_at(t->heap, ref, pages);
    uint64_t kept = smi_mark_kept(t->slot_index, i);
    int done = d && change_mark(d, kept, scratch ? kept | SMF_MARK_HELD : 0);
    /* kill here: it is the program's, or held */
    if (done && scratch) {
        SMI_STORE(&t->slot->scratch, ref);
        __atomic_store_n(&d->side, 0, __ATOMIC_RELEASE); /* kill from here: `scratch` has it */
    }
    if (!done)     /* who claims the block may die and it be kept again: only the page lock tells
                      that an entry is stale */
        return 0;
    clear_entry(t, i, pages);
    t->slot->large++;
    return 1;
}

uint64_t smi_kept_take(struct smi_thread *t, uint64_t pages, int scratch)
{
    for (uint32_t i = 0; t->span_pages >= pages && i < SMF_SPANS; i++) {
        uint64_t entry = SMI_LOAD(&t->slot->spans[i]), count = entry & (SMF_PAGE - 1);
        /* not less, not far more */
        if (count - pages <= pages / 8 && take_entry(t, i, entry - count, count, scratch))
            return entry - count;
    }
    return 0;
}

/* ---- giving ---- */

static int give_entry(struct smi_thread *t, uint32_t i, uint64_t ref, struct smf_page *d,
                      uint64_t *holder)
{
    struct smf_link *link = &t->slot->link;
    uint64_t kept = smi_mark_kept(t->slot_index, i);
    if (!holder)
        return change_mark(d, 0, kept); /* kill from here: free */
    link->dest = smi_link_ref_of(t, holder);
    link->old = ref;
    link->old_array = 0;
    SMI_STORE(&link->op, SMF_LINK_GIVE); /* kill from here: finished */
    int done = change_mark(d, 0, kept | SMF_MARK_HELD);
    if (done)
        smi_link_store(holder, 0);
    SMI_STORE(&link->op, SMF_LINK_NONE);
    if (done)
        __atomic_store_n(&d->side, kept, __ATOMIC_RELEASE);
    return done;
}

/* An entry for a block of `pages`, by giving back those that are next in turn if need be and
 * allowed; SMF_SPANS: none. */
static uint32_t free_entry(struct smi_thread *t, uint64_t pages, int may_evict)
{
    uint64_t room = room_of(t->heap);
    uint32_t i = 0, most = may_evict && pages <= room ? SMF_SPANS : 0;
    while (i < SMF_SPANS && SMI_LOAD(&t->slot->spans[i]) != 0)
        i++;
    for (uint32_t tries = 0; tries < most && (i == SMF_SPANS || t->span_pages + pages > room);
         tries++) {
        uint32_t next = t->next_span++ % SMF_SPANS;
        uint64_t entry = SMI_LOAD(&t->slot->spans[next]);
        if (entry == 0)
            continue;
        if (smi_pages_give_kept(t->heap, t->slot, t->slot_index, next) < 0)
            return SMF_SPANS;
        clear_entry(t, next, entry & (SMF_PAGE - 1));
        i = next;
    }
    return t->span_pages + pages <= room ? i : SMF_SPANS;
}

int smi_kept_give(struct smi_thread *t, uint64_t ref, uint64_t *holder, int may_evict)
{
    struct smf_page *d = block_at(t->heap, ref, 0);
    uint64_t pages = d ? SMI_LOAD(&d->page_count) : 0;
    if (pages == 0 || pages > SMF_SPAN_MOST_PAGES || SMI_LOAD(&d->tag) != 0)
        return 0;
    uint64_t mark = SMI_LOAD(&d->side);
    if (mark == SMF_MARK_CLAIMED) /* by who resized it and died, perhaps: the page heap finds out */
        return 0;
    if (mark != 0)
        return smi_heap_double_free(t->heap, ref);
    uint32_t i = free_entry(t, pages, may_evict);
    if (i == SMF_SPANS)
        return 0;
    SMI_STORE(&t->slot->spans[i], ref | pages);
    t->span_pages += pages;
    if (give_entry(t, i, ref, d, holder))
        return 1;
    clear_entry(t, i, pages);
    return smi_heap_double_free(t->heap, ref);
}

/* ---- giving back ---- */

int smi_kept_decay(struct smi_thread *t, uint64_t now)
{
    int rc = 0;
    if (now - t->spans_at < SMI_LOAD(&t->heap->state->decay_ns))
        return 0;
    t->spans_at = now;
    for (uint32_t i = 0; rc == 0 && i < SMF_SPANS; i++) {
        uint64_t entry = SMI_LOAD(&t->slot->spans[i]);
        if (entry != 0 && entry == t->spans_seen[i]) {
            rc = smi_pages_give_kept(t->heap, t->slot, t->slot_index, i);
            if (rc == 0)
                clear_entry(t, i, entry & (SMF_PAGE - 1));
        }
        t->spans_seen[i] = SMI_LOAD(&t->slot->spans[i]);
    }
    return rc;
}

int smi_kept_release(shmalloc_heap *heap, struct smf_thread *slot, uint32_t slot_index)
{
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < SMF_SPANS; i++)
        rc = smi_pages_give_kept(heap, slot, slot_index, i);
    return rc;
}

int smi_kept_has(const shmalloc_heap *heap, uint32_t slot_index, uint64_t ref)
{
    const struct smf_page *d = block_at(heap, ref, 0);
    uint64_t mark = d ? SMI_LOAD(&d->side) & ~SMF_MARK_HELD : 0;
    return (mark & SMF_MARK_KEPT) && mark >> 8 == smi_mark_kept(slot_index, 0) >> 8;
}
