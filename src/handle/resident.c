/* SPDX-License-Identifier: MIT */
/*
 * resident.c - prefault and huge pages: options of an open that change what it costs, never what it
 * means.
 *
 * Only pages that have storage are brought in: touching a hole of a tmpfs file, even to read it,
 * gives it storage that the page heap does not know of. So the words are looked at under the page
 * lock, 2 MiB at a time, which nobody punches or cuts off meanwhile. A read-only handle cannot
 * lock; a hole that is made under its eyes may get storage until the next trim finds it. Words are
 * read through the descriptor, so that for such a handle, too, a tail that is cut off is an end of
 * file and no SIGBUS. Nothing in the file changes, so a kill leaves nothing.
 */
#include "handle/resident.h"

#include <string.h>

#include "handle/lock.h"
#include "platform/os.h"

#define PIECE (2ull << 20) /* a huge page, and what is looked at under one hold of the lock */

#define GRANULE_PAGES (SMF_GRANULE >> SMF_PAGE_SHIFT)

/* Steps through the pages of the heap in order. */
struct cursor {
    uint64_t next;  /* the chunk after the present one */
    uint64_t first; /* page of the chunk */
    uint64_t data;  /* its first page that can be handed out */
    uint64_t end;   /* the page behind it */
    uint64_t words; /* byte of the file where its words begin */
    uint64_t read;  /* 1 + the granule whose words are in `word`; 0 none */
    uint16_t word[GRANULE_PAGES];
};

/* Words of the granule that `page`, of the present chunk, lies in; what is not in the file any more
 * is 0. */
static void read_words(shmalloc_heap *heap, struct cursor *at, uint64_t page)
{
    uint64_t granule = page / GRANULE_PAGES;
    if (at->read == granule + 1)
        return;
    uint64_t from = at->words + (granule * GRANULE_PAGES - at->first) * sizeof(at->word[0]);
    if (smi_heap_descriptor(heap) < 0 ||
        smi_os_read(heap->fd, at->word, sizeof(at->word), from) < 0)
        memset(at->word, 0, sizeof(at->word));
    at->read = granule + 1;
}

/* Does the page have storage: the library's areas always (but for half a page behind each), others
 * by their word. */
static int is_stored(shmalloc_heap *heap, struct cursor *at, uint64_t page)
{
    while (page >= at->end) {
        if (at->next >= SMI_LOAD(&heap->state->chunk_count) || at->next >= SMF_CHUNKS)
            return 0;
        const struct smf_chunk *chunk = &heap->directory[at->next++];
        at->first = chunk->first_page;
        at->data = smi_chunk_data_page(chunk, &heap->areas);
        at->end = (uint64_t)chunk->first_page + chunk->page_count;
        at->words = smi_chunk_words_offset(chunk, &heap->areas);
    }
    if (page < at->data)
        return 1;
    read_words(heap, at, page);
    return (at->word[page % GRANULE_PAGES] & SMF_WORD_RESERVED) != 0;
}

/* [page, page + count) has storage. */
static void bring_in(shmalloc_heap *heap, unsigned flags, uint64_t page, uint64_t count)
{
    uint64_t from = page << SMF_PAGE_SHIFT, len = count << SMF_PAGE_SHIFT;
    if ((flags & SHMALLOC_HUGE_PAGES) && len == PIECE)
        smi_os_collapse(smi_at(heap, from), len);
    if ((flags & SHMALLOC_PREFAULT) && smi_os_populate(smi_at(heap, from), len, 0) == 0)
        heap->prefaulted += len;
}

static void bring_piece(shmalloc_heap *heap, unsigned flags, struct cursor *at, uint64_t page,
                        uint64_t end)
{
    for (uint64_t run; page < end; page += run ? run : 1) {
        for (run = 0; page + run < end && is_stored(heap, at, page + run); run++)
            ;
        if (run > 0)
            bring_in(heap, flags, page, run);
    }
}

void smi_resident_ask(shmalloc_heap *heap, unsigned flags)
{
    const uint64_t piece = PIECE >> SMF_PAGE_SHIFT;
    struct cursor at = {0};
    if (!(flags & (SHMALLOC_PREFAULT | SHMALLOC_HUGE_PAGES)))
        return;
    if (flags & SHMALLOC_HUGE_PAGES) {
        heap->huge_pages = 1;
        smi_os_want_huge(heap->base, heap->reserved);
    }
    heap->prefaulted = 0;
    for (uint64_t page = 0; page < smi_size(heap) >> SMF_PAGE_SHIFT; page += piece) {
        if (!heap->read_only && smi_lock_acquire(heap, smi_lock_of_pages(heap)) < 0)
            return;
        bring_piece(heap, flags, &at, page, page + piece);
        if (!heap->read_only)
            smi_lock_release(heap, smi_lock_of_pages(heap));
    }
}

uint64_t smi_resident_huge(const shmalloc_heap *heap)
{
    return heap->huge_pages ? smi_os_huge_bytes(heap->base, heap->reserved) : 0;
}
