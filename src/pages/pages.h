/* SPDX-License-Identifier: MIT */
/*
 * pages.h - the page heap: spans of pages, taken, given back, merged, grown and shrunk.
 *
 * Everything here runs under the page lock, which these functions take themselves, and each call is
 * one logged operation together with the caller's word: a span is never taken without the word that
 * names it, nor given back without that word being cleared.
 */
#ifndef SMI_PAGES_H
#define SMI_PAGES_H

#include "handle/handle.h"

struct smi_take {
    uint64_t count;       /* pages, 1.. */
    uint64_t alignment;   /* pages, a power of two */
    uint8_t kind;         /* SMF_PAGE_SLAB, _LARGE, _META */
    uint8_t size_class;   /* of a slab */
    uint8_t arena;        /* of a slab */
    uint16_t word_flags;  /* SMF_WORD_INTERNAL for slabs of the library */
    uint16_t tag;         /* of a large block; enum smf_purpose of a span of the library */
    uint64_t *holder;       /* word that receives the span's ref (slabs: its page number); may be
                               NULL */
};

/* Take a span with storage behind it; before it says that there is no room, blocks that threads
 * keep give way, but for those that their owners are just about to use. *page is its first page;
 * *zero tells whether it reads as zeros. Returns 0, SHMALLOC_EFULL, -ENOSPC and other errnos of the
 * file system, SHMALLOC_ECORRUPT. */
int smi_pages_take(shmalloc_heap *heap, const struct smi_take *request, uint32_t *page, int *zero);

/* Does that answer say that there is no room, which other places of the heap may have? */
int smi_pages_lack_room(int rc);

/* Give a span of `kind` back and store 0 to each of the two words that is not NULL. Returns 0,
 * SHMALLOC_EDOUBLEFREE when no such span begins at `page`, or the large block there is not the
 * program's, SHMALLOC_ECORRUPT. */
int smi_pages_give(shmalloc_heap *heap, uint32_t page, uint8_t kind, uint64_t *holder,
                   uint64_t *other);

/* Give back the large block that entry `i` of a thread slot's `spans` keeps, and clear the entry;
 * one that keeps none is cleared only. */
int smi_pages_give_kept(shmalloc_heap *heap, struct smf_thread *slot, uint32_t slot_index,
                        uint32_t i);

/* Make a large block `count` pages long where it is: the tail is given back, or taken from the free
 * span behind. A block behind it that a thread keeps gives way. Returns 0, SHMALLOC_EFULL when it
 * cannot grow there, SHMALLOC_EDOUBLEFREE when it is no block any more, or as smi_pages_take. */
int smi_pages_resize(shmalloc_heap *heap, uint32_t page, uint64_t count);

/* Set a flag in the words of a slab. */
int smi_pages_flag_slab(shmalloc_heap *heap, uint32_t page, uint16_t flag);

/* Blocks that threads keep become free, storage of free runs of at least `min_pages` goes back to
 * the file system, free chunks at the tail are cut off. Returns bytes, or a negative code. */
int64_t smi_pages_trim(shmalloc_heap *heap, uint64_t min_pages);

/* Storage that has been free for longer than the heap's decay time goes back, down to what it
 * retains; a bounded part of it at a time. Does nothing while somebody else holds the page lock. */
int smi_pages_decay(shmalloc_heap *heap);
/* The same when nobody will do it later: all that is due, however much, if anything was freed since
 * this process attached. */
int smi_pages_decay_last(shmalloc_heap *heap);

/* Bytes of the longest free span (with the page lock held, or as a guess without). */
uint64_t smi_pages_largest(shmalloc_heap *heap);

/* Do the chunks follow each other and end where the heap ends? Nobody else is attached. 0 or
 * SHMALLOC_ECORRUPT. */
int smi_pages_check_chunks(shmalloc_heap *heap);

/* What a dead owner of the page lock left. */
int smi_pages_repair(shmalloc_heap *heap, uint32_t index);

/* Lay out the directory and chunk 0 of a new heap whose fixed areas are mapped and zero. The file
 * has `size` bytes. */
int smi_pages_format(shmalloc_heap *heap, uint64_t size);

#endif
