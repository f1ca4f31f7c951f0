/* SPDX-License-Identifier: MIT */
/*
 * pages.c - the page heap.
 *
 * Truths: a page's word (what begins here; does it have storage; does it read as zeros) and the
 * descriptor of each span's first page. Free spans are found through 256 ordered sets: one for each
 * length up to 255 pages, by address, and one for all longer ones, by length and then address. So a
 * request gets the best fit, of equal ones the lowest, and the tail of the file drains.
 *
 * Invariants (check.c):
 *   P1  spans tile each chunk's data pages
 *   P2  no two free spans of a chunk touch
 *   P3  every free span, and nothing else, is in the set of its length
 *   P4  only first pages, and all pages of slabs, have a kind in their word
 *   P5  pages of spans that are not free have storage (RESERVED)
 *
 * RESERVED and ZERO are facts about storage, not part of any operation: they are stored outside the
 * log, in the order that is true at every instant. Storage first, then RESERVED. RESERVED cleared,
 * then the hole, then ZERO. ZERO cleared before the page is handed out.
 *
 * Locking: all of it is [P].  Crash: one logged operation for each call; the log's bound is 126
 *                             words,
 * the longest operation (taking an aligned slab out of the middle of a span) stores about 35.
 */
#include "pages/pages.h"

#include <errno.h>
#include <string.h>

#include "format/outcome.h"
#include "handle/lock.h"
#include "platform/os.h"
#include "pages/pageset.h"
#include "handle/pagetable.h"
#include "handle/readers.h"
#include "handle/storage.h"
#include "handle/undo.h"

#define BIG_SET SMF_EXACT_SETS
#define DECAY_MIN_PAGES (65536 / SMF_PAGE)         /* shorter holes cost more than they give */
#define DECAY_MOST_PAGES ((16ull << 20) / SMF_PAGE) /* in one look */
#define GROWTH_CAP (1ull << 30) /* a step of growth; file length, not storage */

static struct smi_op begin_spans(shmalloc_heap *heap)
{
    struct smf_page_heap *ph = heap->page_heap;
    return smi_op_begin(heap, &ph->log_count, ph->log, SMF_PAGE_LOG);
}

/* ---- claims ---- */

/* Nobody but us may change the large block at `page` until unclaim(): 1; 0 when its mark is not
 * `mark`. */
static int claim(shmalloc_heap *heap, uint64_t page, uint64_t mark)
{
    struct smf_state *state = heap->state;
    SMI_STORE(&state->claimed_mark, mark);
    SMI_STORE(&state->claimed, page);
    uint64_t was = mark; /* the mark is no word of a log: others change it without the lock until it
                            is claimed */
    if (__atomic_compare_exchange_n(&smi_known_page(heap, page)->side, &was, SMF_MARK_CLAIMED, 0,
                                    __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
        return 1;
    SMI_STORE(&state->claimed, 0);
    return 0;
}

/* What was claimed and still is a large block has its mark again. */
static void unclaim(shmalloc_heap *heap)
{
    SMI_ASSERT(smi_lock_is_ours(heap, smi_lock_of_pages(heap)));
    struct smf_state *state = heap->state;
    uint64_t page = SMI_LOAD(&state->claimed);
    if (page == 0)
        return;
    struct smf_page *d = smi_page(heap, page);
    if (d && d->kind == SMF_PAGE_LARGE && SMI_LOAD(&d->side) == SMF_MARK_CLAIMED)
        __atomic_store_n(&d->side, SMI_LOAD(&state->claimed_mark), __ATOMIC_RELEASE);
    SMI_STORE(&state->claimed, 0);
}

static int undo(shmalloc_heap *heap)
{
    struct smf_page_heap *ph = heap->page_heap;
    int rc = smi_undo_apply(heap, &ph->log_count, ph->log, SMF_PAGE_LOG);
    unclaim(heap);
    smi_pagetable_reshape(heap); /* who died may have changed words and not come to that */
    return rc;
}

int smi_pages_repair(shmalloc_heap *heap, uint32_t index)
{
    (void)index;
    return undo(heap);
}

/* Give up half way: what was stored is undone. */
static int abandon_spans(struct smi_op *op, int rc)
{
    undo(op->heap);
    return rc;
}

static int damaged_spans(shmalloc_heap *heap, uint64_t page)
{
    return smi_heap_poison(heap, "descriptors around page %llu contradict each other",
                           (unsigned long long)page);
}

/* The page lock, to change spans: which may need any descriptor of the heap. */
static int lock_all(shmalloc_heap *heap)
{
    int rc = smi_lock_acquire(heap, smi_lock_of_pages(heap));
    if (rc == 0 && smi_heap_is_outgrown(heap)) {
        smi_lock_release(heap, smi_lock_of_pages(heap));
        rc = smi_heap_outgrown(heap);
    }
    return rc;
}

/* ---- words and descriptors ---- */

static uint16_t word_of(shmalloc_heap *heap, uint64_t page)
{
    uint16_t *word = smi_word(heap, page);
    return word ? SMI_LOAD(word) : 0;
}

/* Store facts (RESERVED, ZERO) of a run of pages. */
static void set_storage_facts(shmalloc_heap *heap, uint64_t page, uint64_t count, uint16_t clear,
                              uint16_t set)
{
    uint16_t *word = smi_word(heap, page); /* the pages of a span lie in one chunk */
    for (uint64_t i = 0; word && i < count; i++)
        SMI_STORE(&word[i], (uint16_t)((word[i] & ~clear) | set));
}

/* Store the kinds of a run of pages, logged: `step` is added for each further page. */
static void set_kinds(struct smi_op *op, uint64_t page, uint64_t count, uint16_t kind,
                      uint16_t step)
{
    const uint16_t facts = SMF_WORD_ZERO | SMF_WORD_RESERVED;
    uint16_t *words = smi_known_word(op->heap, page);
    for (uint64_t i = 0; i < count;) {
        uint16_t four[4];
        uint16_t *first = words + i - ((page + i) & 3);
        memcpy(four, first, sizeof(four));
        do {
            unsigned lane = (page + i) & 3;
            four[lane] = (uint16_t)((four[lane] & facts) | (kind ? kind + step * i : 0));
            i++;
        } while (i < count && ((page + i) & 3) != 0);
        uint64_t value;
        memcpy(&value, four, sizeof(value));
        smi_set(op, (uint64_t *)(void *)first, value);
    }
}

/* The second word of a descriptor: span length, kind, class, arena. */
static void set_span(struct smi_op *op, uint64_t page, uint64_t count, uint8_t kind,
                     uint8_t size_class, uint8_t arena)
{
    struct smf_page *d = smi_known_page(op->heap, page);
    uint64_t value = (uint64_t)(uint32_t)count | (uint64_t)kind << 32 | (uint64_t)size_class << 40 |
                     (uint64_t)arena << 48;
    smi_set(op, (uint64_t *)(void *)&d->page_count, value);
}

static int set_of(uint64_t count)
{
    return count <= SMF_EXACT_SETS ? (int)count - 1 : BIG_SET;
}

static enum smi_order order_of(int index)
{
    return index == BIG_SET ? SMI_BY_LENGTH : SMI_BY_ADDRESS;
}

static void update_set_bit(struct smi_op *op, int index)
{
    struct smf_page_heap *ph = op->heap->page_heap;
    uint64_t bit = 1ull << (index % 64), *word = &ph->set_bits[index / 64];
    uint64_t value = ph->set[index] ? *word | bit : *word & ~bit;
    if (value != *word)
        smi_set(op, word, value);
}

/* Make [page, page + count) a free span of the sets. */
static int insert_free(struct smi_op *op, uint64_t page, uint64_t count)
{
    int index = set_of(count);
    if (!smi_page(op->heap, page) || !smi_page(op->heap, page + count - 1))
        return damaged_spans(op->heap, page);
    set_span(op, page, count, SMF_PAGE_FREE, 0, 0);
    if (count > 1)
        set_span(op, page + count - 1, count, SMF_PAGE_FREE_TAIL, 0, 0);
    smi_set(op, &smi_known_page(op->heap, page)->side, smi_os_tick());
    int rc =
        smi_pageset_insert(op, &op->heap->page_heap->set[index], order_of(index), (uint32_t)page);
    update_set_bit(op, index);
    return rc;
}

/* Take a free span out of the sets; its ends become inside pages. */
static int remove_free(struct smi_op *op, uint64_t page, uint64_t count)
{
    int index = set_of(count);
    int rc =
        smi_pageset_remove(op, &op->heap->page_heap->set[index], order_of(index), (uint32_t)page);
    update_set_bit(op, index);
    set_span(op, page, 0, SMF_PAGE_NONE, 0, 0);
    if (count > 1)
        set_span(op, page + count - 1, 0, SMF_PAGE_NONE, 0, 0);
    return rc;
}

/* Do `count` pages from `page` lie in one chunk? Its pages share what leads to their words. */
static int in_one_chunk(shmalloc_heap *heap, uint64_t page, uint64_t count)
{
    return count > 0 && page > 0 && smi_has_page(heap, page) &&
           smi_has_page(heap, page + count - 1) &&
           heap->words[page >> SMI_GRANULE_PAGES_SHIFT] ==
               heap->words[(page + count - 1) >> SMI_GRANULE_PAGES_SHIFT];
}

/* The free span that begins at `page`, as its descriptors say: length, or 0. */
static uint64_t free_span_at(shmalloc_heap *heap, uint64_t page)
{
    const struct smf_page *d = smi_page(heap, page);
    uint32_t count = d ? SMI_LOAD(&d->page_count) : 0;
    if (!d || d->kind != SMF_PAGE_FREE || !in_one_chunk(heap, page, count))
        return 0;
    const struct smf_page *tail = smi_known_page(heap, page + count - 1);
    if (tail != d && (tail->kind != SMF_PAGE_FREE_TAIL || tail->page_count != count))
        return 0;
    return count;
}

/* The span of this kind that begins at `page`, as its descriptor says: length, or 0 when it cannot
 * be one. */
static uint64_t span_at(shmalloc_heap *heap, uint64_t page, uint8_t kind)
{
    const struct smf_page *d = smi_page(heap, page);
    uint32_t count = d ? SMI_LOAD(&d->page_count) : 0, k = d ? SMI_LOAD(&d->size_class) : 0;
    if (!d || d->kind != kind || !in_one_chunk(heap, page, count))
        return 0;
    return kind != SMF_PAGE_SLAB || (k < SMF_CLASSES && count == smi_class_span_pages(k)) ? count
                                                                                          : 0;
}

/* The free span that ends just before `page`: its first page, or 0. */
static uint64_t free_span_before(shmalloc_heap *heap, uint64_t page)
{
    const struct smf_page *d = smi_page(heap, page - 1);
    uint32_t count = d ? SMI_LOAD(&d->page_count) : 0;
    if (count == 0 || count >= page)
        return 0;
    if (d->kind == SMF_PAGE_FREE && count == 1)
        return page - 1;
    return d->kind == SMF_PAGE_FREE_TAIL && free_span_at(heap, page - count) == count ? page - count
                                                                                      : 0;
}

/* ---- storage ---- */

static int all_have(shmalloc_heap *heap, uint64_t page, uint64_t count, uint16_t fact)
{
    const uint16_t *word = smi_known_word(heap, page);
    for (uint64_t i = 0; i < count; i++)
        if (!(word[i] & fact))
            return 0;
    return 1;
}

/* How many of `length` pages at `page`, of one chunk, are alike: have storage, or have none. */
static uint64_t run_of(shmalloc_heap *heap, uint64_t page, uint64_t length, uint16_t reserved)
{
    const uint64_t ones = 0x0001000100010001ull;
    const uint16_t *word = smi_word(heap, page);
    uint64_t run = 0, four;
    while (word && run < length && (word[run] & SMF_WORD_RESERVED) == reserved) {
        run++;
        while (run + 4 <= length &&
               (memcpy(&four, &word[run], 8), (four & SMF_WORD_RESERVED * ones) == reserved * ones))
            run += 4;
    }
    return run;
}

/* Storage that a run at `page` has, up to `length` pages. */
static uint64_t stored_run(shmalloc_heap *heap, uint64_t page, uint64_t length)
{
    return run_of(heap, page, length, SMF_WORD_RESERVED);
}

/* Holes before the next page with storage. */
static uint64_t hole_run(shmalloc_heap *heap, uint64_t page, uint64_t length)
{
    return run_of(heap, page, length, 0);
}

/* Put storage behind a run of pages that have none. On a full file system ext4 leaves a part of it,
 * which goes back at once. */
static int reserve_run(shmalloc_heap *heap, uint64_t page, uint64_t count)
{
    int rc = smi_storage_reserve(heap, page << SMF_PAGE_SHIFT, count << SMF_PAGE_SHIFT);
    if (rc == 0)
        set_storage_facts(heap, page, count, 0, SMF_WORD_RESERVED);
    else if (rc == -ENOSPC)
        smi_storage_punch(heap, page << SMF_PAGE_SHIFT, count << SMF_PAGE_SHIFT);
    return rc;
}

/* Pages that have storage are left out: tmpfs, giving up half way, takes back also what was
 * reserved before and not written yet. */
static int reserve_exactly(shmalloc_heap *heap, uint64_t page, uint64_t count)
{
    int rc = 0;
    for (uint64_t i = 0, run; rc == 0 && i < count; i += run) {
        run = stored_run(heap, page + i, count - i);
        if (run > 0)
            continue;
        run = hole_run(heap, page + i, count - i);
        rc = run > 0 ? reserve_run(heap, page + i, run) : damaged_spans(heap, page + i);
    }
    return rc;
}

/* See that `count` pages from `page` have storage, and while at it some of the `behind` free pages
 * that follow, so that small requests do not each pay for a system call. */
static int reserve_pages(shmalloc_heap *heap, uint64_t page, uint64_t count, uint64_t behind)
{
    if (all_have(heap, page, count, SMF_WORD_RESERVED))
        return 0;
    uint64_t batch = smi_size(heap) >> (SMF_PAGE_SHIFT + 6); /* 1/64 of the heap */
    batch = batch < 8 ? 8 : batch > 256 ? 256 : batch;
    if (count < batch && !heap->is_private) {
        uint64_t more = batch - count < behind ? batch - count : behind;
        if (reserve_exactly(heap, page, count + more) == 0)
            return 0;
    }
    return reserve_exactly(heap, page, count);
}

/* ---- growth ---- */

/* Do `count` chunks follow each other and end where a heap of `size` bytes does? Its file must not
 * be shorter: what lies behind its end must not be touched, not even to read a poisoned heap. */
static int check_chunks(shmalloc_heap *heap, uint64_t count, uint64_t size)
{
    uint64_t at = 0;
    for (uint64_t i = 0; i < count && i < SMF_CHUNKS; i++) {
        const struct smf_chunk chunk = heap->directory[i];
        if (!smi_chunk_follows(&chunk, at, size >> SMF_PAGE_SHIFT, &heap->areas))
            return smi_heap_poison(
                heap,
                "chunk %llu has %u pages from page %u, expected to begin at page %llu and to "
                "end at page %llu at most",
                (unsigned long long)i, chunk.page_count, chunk.first_page, (unsigned long long)at,
                (unsigned long long)(size >> SMF_PAGE_SHIFT));
        at += chunk.page_count;
    }
    if (at << SMF_PAGE_SHIFT != size)
        return smi_heap_poison(heap, "chunks end at byte %llu, the heap at byte %llu",
                               (unsigned long long)(at << SMF_PAGE_SHIFT),
                               (unsigned long long)size);
    return 0;
}

static unsigned long long bytes_of(uint64_t count)
{
    return count <= UINT64_MAX >> SMF_PAGE_SHIFT ? count << SMF_PAGE_SHIFT : UINT64_MAX;
}

static int full(shmalloc_heap *heap, uint64_t count)
{
    return smi_error(SHMALLOC_EFULL,
                     "%s: pages of %llu bytes wanted; the heap has %llu of at most %llu bytes and "
                     "its largest free "
                     "run has %llu; free something or raise the maximum size",
                     heap->path, bytes_of(count), (unsigned long long)smi_size(heap),
                     (unsigned long long)heap->state->max_size,
                     (unsigned long long)smi_pages_largest(heap));
}

/* Why a growth for `count` pages is out of the question. */
static int no_room(shmalloc_heap *heap, uint64_t count)
{
    if (heap->state->max_size <= heap->reserved)
        return full(heap, count);
    return smi_error(SHMALLOC_EADDRESS,
                     "%s: pages of %llu bytes wanted; this process has addresses for %llu bytes of "
                     "the heap, which may "
                     "grow to %llu; close and open it again, with a higher limit on address space "
                     "if there is one",
                     heap->path, bytes_of(count), (unsigned long long)heap->reserved,
                     (unsigned long long)heap->state->max_size);
}

/* The system refuses a growth from `old` to `size` bytes. */
static int cannot_grow(shmalloc_heap *heap, int rc, uint64_t count, uint64_t old, uint64_t size)
{
    if (rc == -EPERM && (smi_storage_guards(heap) & SMI_SEAL_GROW))
        return smi_error(
            SHMALLOC_EFULL,
            "%s: pages of %llu bytes wanted; the file has %llu bytes, is sealed against growing "
            "(F_SEAL_GROW) "
            "and its largest free run has %llu; free something, or use a memfd without that seal",
            heap->path, bytes_of(count), (unsigned long long)old,
            (unsigned long long)smi_pages_largest(heap));
    return smi_refused_change(
        rc, heap->fd, heap->path,
        "%s: cannot grow from %llu to %llu bytes, with a largest free run of %llu", heap->path,
        (unsigned long long)old, (unsigned long long)size,
        (unsigned long long)smi_pages_largest(heap));
}

/* Length of a chunk, in pages, that has `count` data pages or is a usual step, halved `halved`
 * times; 0 if it must be longer than `limit` pages. */
static uint64_t chunk_length(shmalloc_heap *heap, uint64_t count, uint64_t limit, unsigned halved)
{
    const uint64_t granule = SMF_GRANULE >> SMF_PAGE_SHIFT;
    /* where length costs nothing, fewer chunks */
    uint64_t step = heap->state->size / (heap->is_private ? 1 : 8);
    step = smi_round_up(((step > GROWTH_CAP ? GROWTH_CAP : step) >> halved) + 1, SMF_GRANULE) >>
           SMF_PAGE_SHIFT;
    if (step > limit)
        step = limit;
    /* n pages carry n * 66 bytes of metadata; one more page for rounding */
    uint64_t per_page = smi_chunk_metadata_bytes(1);
    uint64_t needed = smi_round_up(count + count * per_page / (SMF_PAGE - per_page) + 2, granule);
    uint64_t length = needed > step ? needed : step;
    return length <= limit ? length : 0;
}

/* What lies in the file beyond the heap's end becomes zeros: it is cut off or, in a sealed file,
 * whose length is all it will ever have, or cannot be less, a hole. */
static int forget_rest(shmalloc_heap *heap, uint64_t old, uint64_t *length)
{
    if (smi_storage_guards(heap) & (SMI_SEAL_GROW | SMI_SEAL_SHRINK))
        return smi_storage_punch(heap, old, *length - old);
    *length = old;
    return smi_storage_set_length(heap, old);
}

/* Bring the heap from `old` to `size` bytes with storage for the new chunk's metadata; zeros beyond
 * what was. */
static int lengthen(shmalloc_heap *heap, uint64_t old, uint64_t size, const struct smf_chunk *chunk)
{
    uint64_t length;
    int rc = smi_storage_length(heap, &length);
    if (rc == 0 && length > old) /* a grower died before it was done */
        rc = forget_rest(heap, old, &length);
    if (rc == 0 && length < size)
        rc = smi_storage_set_length(heap, size);
    if (rc == 0) {
        rc = smi_storage_reserve(heap, smi_chunk_words_offset(chunk, &heap->areas),
                                 smi_round_up(smi_chunk_metadata_bytes(chunk->page_count), 4096));
        if (rc < 0)
            smi_storage_set_length(heap, old);
    }
    return rc;
}

/* Words and descriptors of a new chunk, whose metadata is mapped and zero: one free span of
 * zeros. */
static void format_chunk(shmalloc_heap *heap, const struct smf_chunk *chunk)
{
    uint64_t offset = smi_chunk_words_offset(chunk, &heap->areas);
    uint16_t *words = smi_at(heap, offset);
    struct smf_page *pages = smi_at(heap, offset + chunk->page_count * sizeof(uint16_t));
    uint32_t data = smi_chunk_data_page(chunk, &heap->areas) - chunk->first_page;
    for (uint32_t i = data; i < chunk->page_count; i++)
        words[i] = SMF_WORD_ZERO;
    uint32_t count = chunk->page_count - data;
    pages[data].kind = SMF_PAGE_FREE;
    pages[data].page_count = count;
    if (count > 1) {
        pages[chunk->page_count - 1].kind = SMF_PAGE_FREE_TAIL;
        pages[chunk->page_count - 1].page_count = count;
    }
}

static uint64_t end_of(const struct smf_chunk *chunk)
{
    return ((uint64_t)chunk->first_page + chunk->page_count) << SMF_PAGE_SHIFT;
}

/* Might less be granted? A full disk, a quota, a limit on file size or on data. */
static int is_short(int rc)
{
    return rc == -ENOSPC || rc == -EDQUOT || rc == -EFBIG || rc == -ENOMEM;
}

int smi_pages_lack_room(int rc)
{
    return rc == SHMALLOC_EFULL || rc == SHMALLOC_EADDRESS || is_short(rc);
}

/* `rc` says why a new chunk cannot be had: as much of it as can be, down to what `count` pages
 * need. */
static int lengthen_less(shmalloc_heap *heap, uint64_t count, int rc, struct smf_chunk *chunk)
{
    uint64_t old = (uint64_t)chunk->first_page << SMF_PAGE_SHIFT;
    for (unsigned halved = 1; is_short(rc) && halved < 32; halved++) {
        uint32_t length = (uint32_t)chunk_length(heap, count, chunk->page_count, halved);
        if (length == chunk->page_count)
            continue;
        chunk->page_count = length;
        rc = lengthen(heap, old, end_of(chunk), chunk);
    }
    return rc;
}

/* Add the next chunk: the one that was here before the file was cut, or a new one for `count`
 * pages. */
static int grow_once(shmalloc_heap *heap, uint64_t count)
{
    struct smf_state *state = heap->state;
    uint64_t limit = state->max_size < heap->reserved ? state->max_size : heap->reserved;
    uint64_t index = SMI_LOAD(&state->chunk_count), old = SMI_LOAD(&state->size);
    if (index >= SMF_CHUNKS || old >= limit)
        return no_room(heap, count);
    /* A wrong size would cut off what others use. */
    int rc = check_chunks(heap, index, old);
    if (rc < 0)
        return rc;
    struct smf_chunk *entry = &heap->directory[index];
    struct smf_chunk chunk = *entry;
    if (chunk.page_count == 0) {
        chunk.first_page = (uint32_t)(old >> SMF_PAGE_SHIFT);
        chunk.page_count = (uint32_t)chunk_length(heap, count, (limit - old) >> SMF_PAGE_SHIFT, 0);
    }
    uint64_t size = end_of(&chunk);
    if (chunk.page_count == 0 || size > limit)
        return no_room(heap, count);
    if ((uint64_t)chunk.first_page << SMF_PAGE_SHIFT != old || size % SMF_GRANULE != 0)
        return smi_heap_poison(heap, "chunk %llu begins at page %u, the heap ends at page %llu",
                               (unsigned long long)index, chunk.first_page,
                               (unsigned long long)(old >> SMF_PAGE_SHIFT));
    rc = lengthen(heap, old, size, &chunk);
    if (is_short(rc) && entry->page_count == 0)
        rc = lengthen_less(heap, count, rc, &chunk);
    size = end_of(&chunk);
    if (rc < 0)
        return cannot_grow(heap, rc, count, old, size);
    SMI_STORE((uint64_t *)(void *)entry, (uint64_t)chunk.page_count << 32 | chunk.first_page);
    format_chunk(heap, &chunk); /* beyond the heap's end still: a kill leaves a longer file */
    uint32_t data = smi_chunk_data_page(&chunk, &heap->areas);
    uint64_t data_count = chunk.first_page + chunk.page_count - data;
    struct smi_op op = begin_spans(heap);
    smi_set(&op, &state->size, size);
    smi_set(&op, &state->chunk_count, index + 1);
    rc = insert_free(&op, data, data_count);
    if (rc < 0)
        return abandon_spans(&op, rc);
    smi_set(&op, &heap->page_heap->free_pages, heap->page_heap->free_pages + data_count);
    smi_op_commit(&op);
    heap->page_heap->grows++;
    return 0;
}

/* ---- finding ---- */

/* The best free span of at least `count` pages: first page, 0 when there is none. */
static uint64_t find_free(shmalloc_heap *heap, uint64_t count)
{
    struct smf_page_heap *ph = heap->page_heap;
    for (unsigned index = count <= SMF_EXACT_SETS ? (unsigned)count - 1 : BIG_SET; index < BIG_SET;
         index++) {
        uint64_t bits = ph->set_bits[index / 64] >> (index % 64);
        if (bits == 0) {
            index |= 63;
            continue;
        }
        index += (unsigned)__builtin_ctzll(bits);
        if (index < BIG_SET) {
            uint32_t page = smi_pageset_first(heap, &ph->set[index], SMI_BY_ADDRESS, 0);
            if (page == 0)
                smi_heap_poison(heap,
                                "set of free spans of %u pages is said to have some and has none",
                                index + 1);
            return page;
        }
    }
    return smi_pageset_first(heap, &ph->set[BIG_SET], SMI_BY_LENGTH, (uint32_t)count);
}

struct stored_search {
    uint64_t count, alignment, page, span, spans, looked;
};

/* A run inside a free span that has storage already. */
static int look_for_stored(shmalloc_heap *heap, uint32_t page, void *arg)
{
    struct stored_search *search = arg;
    uint64_t length = free_span_at(heap, page), run = 0;
    if ((search->looked += length) > smi_size(heap) >> SMF_PAGE_SHIFT)
        return 1;
    for (uint64_t i = 0; i < length; i++) {
        int fits = run > 0 || (page + i) % search->alignment == 0;
        run = fits && (word_of(heap, page + i) & SMF_WORD_RESERVED) ? run + 1 : 0;
        if (run == search->count) {
            search->span = page;
            search->page = page + i + 1 - run;
            return 1;
        }
    }
    return ++search->spans > 4096;
}

/* The disk is full: is there a run with storage anywhere? */
static int find_stored(shmalloc_heap *heap, struct stored_search *search)
{
    for (int index = 0; index <= BIG_SET; index++)
        if (index + 1 >= (int)search->count || index == BIG_SET)
            if (smi_pageset_each(heap, heap->page_heap->set[index], look_for_stored, search))
                break;
    return search->page != 0;
}

/* ---- taking ---- */

/* Where in which free span. */
struct place {
    uint64_t span, span_count, page;
};

static int find_place(shmalloc_heap *heap, const struct smi_take *request, struct place *place)
{
    uint64_t slack = request->alignment - 1;
    uint64_t span = find_free(heap, request->count + slack);
    while (span == 0) { /* chunks that were here before come back one by one and may be too short */
        int rc = SMI_LOAD(&heap->state->poison) ? SHMALLOC_ECORRUPT
                                                : grow_once(heap, request->count + slack);
        if (rc < 0)
            return rc;
        span = find_free(heap, request->count + slack);
    }
    place->span = span;
    place->span_count = free_span_at(heap, span);
    place->page = smi_round_up(span, request->alignment);
    if (span == 0 || place->page + request->count > span + place->span_count ||
        !in_one_chunk(heap, place->page, request->count))
        return damaged_spans(heap, span);
    return 0;
}

/* See that the place has storage; on a full disk, find one that has. */
static int store_place(shmalloc_heap *heap, const struct smi_take *request, struct place *place)
{
    uint64_t behind = place->span + place->span_count - place->page - request->count;
    int rc = reserve_pages(heap, place->page, request->count, behind);
    if (rc == 0)
        return 0;
    struct stored_search search = {.count = request->count, .alignment = request->alignment};
    if (!find_stored(heap, &search))
        return smi_refused_change(
            rc, heap->fd, heap->path,
            "%s: no storage for %llu bytes of the largest free run, %llu bytes", heap->path,
            (unsigned long long)(request->count << SMF_PAGE_SHIFT),
            (unsigned long long)smi_pages_largest(heap));
    *place = (struct place){search.span, free_span_at(heap, search.span), search.page};
    return in_one_chunk(heap, place->page, request->count) ? 0 : damaged_spans(heap, place->page);
}

static int find_stored_place(shmalloc_heap *heap, const struct smi_take *request,
                             struct place *place)
{
    int rc = find_place(heap, request, place);
    return rc == 0 ? store_place(heap, request, place) : rc;
}

static uint16_t first_word(const struct smi_take *request)
{
    if (request->kind == SMF_PAGE_SLAB)
        return (uint16_t)(1 + request->size_class) | request->word_flags;
    return request->kind == SMF_PAGE_LARGE ? SMF_WORD_LARGE : SMF_WORD_META;
}

/* Cut [place->page, + count) out of its free span: one logged operation. */
static int cut(shmalloc_heap *heap, const struct smi_take *request, const struct place *place)
{
    struct smf_page_heap *ph = heap->page_heap;
    uint64_t front = place->page - place->span;
    uint64_t after = place->page + request->count;
    uint64_t back = place->span + place->span_count - after;
    struct smi_op op = begin_spans(heap);
    int rc = remove_free(&op, place->span, place->span_count);
    if (rc == 0 && front > 0)
        rc = insert_free(&op, place->span, front);
    if (rc == 0 && back > 0)
        rc = insert_free(&op, after, back);
    if (rc < 0)
        return abandon_spans(&op, rc);
    struct smf_page *d = smi_known_page(heap, place->page);
    set_span(&op, place->page, request->count, request->kind, request->size_class, request->arena);
    smi_set(&op, (uint64_t *)(void *)&d->free_slots, (uint64_t)request->tag << 32);
    smi_set(&op, &d->side, 0);
    int slab = request->kind == SMF_PAGE_SLAB;
    set_kinds(&op, place->page, slab ? request->count : 1, first_word(request),
              slab ? 1u << SMF_WORD_INDEX_SHIFT : 0);
    smi_set(&op, &ph->free_pages, ph->free_pages - request->count);
    if (request->holder)
        smi_set(&op, request->holder, slab ? place->page : place->page << SMF_PAGE_SHIFT);
    smi_op_commit(&op);
    ph->takes++;
    return 0;
}

static uint64_t reclaim_kept(shmalloc_heap *heap);

int smi_pages_take(shmalloc_heap *heap, const struct smi_take *request, uint32_t *page, int *zero)
{
    struct place place = {0, 0, 0};
    int rc = lock_all(heap);
    if (rc < 0)
        return rc;
    if (request->count + request->alignment > heap->state->max_size >> SMF_PAGE_SHIFT)
        rc = full(heap, request->count);
    else if (smi_pages_lack_room(rc = find_stored_place(heap, request, &place)))
        rc = reclaim_kept(heap) > 0 ? find_stored_place(heap, request, &place) : rc;
    if (rc == 0) {
        *zero = all_have(heap, place.page, request->count, SMF_WORD_ZERO);
        set_storage_facts(heap, place.page, request->count, SMF_WORD_ZERO, 0);
        /* The library's own records are found by their name from the instant it is stored. */
        if (request->kind == SMF_PAGE_META)
            memset(smi_at(heap, place.page << SMF_PAGE_SHIFT), 0, sizeof(struct smf_thread));
        rc = cut(heap, request, &place);
        *page = (uint32_t)place.page;
    }
    smi_lock_release(heap, smi_lock_of_pages(heap));
    return rc;
}

/* ---- giving back ---- */

static int decay(shmalloc_heap *heap, uint64_t most);

/* Make [page, page + count), which belongs to no span, free and merge it with its neighbours. */
static int merge_free(struct smi_op *op, uint64_t page, uint64_t count)
{
    shmalloc_heap *heap = op->heap;
    uint64_t before = free_span_before(heap, page);
    uint64_t behind = free_span_at(heap, page + count);
    int rc = 0;
    if (before) {
        rc = remove_free(op, before, page - before);
        count += page - before;
        page = before;
    }
    if (rc == 0 && behind) {
        rc = remove_free(op, page + count, behind);
        count += behind;
    }
    return rc == 0 ? insert_free(op, page, count) : rc;
}

static int no_block(const shmalloc_heap *heap, uint64_t page)
{
    return smi_error(SHMALLOC_EDOUBLEFREE,
                     "%s: no block at %#llx: freed already, or never allocated", heap->path,
                     (unsigned long long)page << SMF_PAGE_SHIFT);
}

/* Give a span back, a large block only if its mark is `mark`. */
static int give_span(shmalloc_heap *heap, uint64_t page, uint8_t kind, uint64_t mark,
                     uint64_t *holder, uint64_t *other)
{
    SMI_ASSERT(smi_lock_is_ours(heap, smi_lock_of_pages(heap)));
    struct smf_page_heap *ph = heap->page_heap;
    uint64_t count = span_at(heap, page, kind);
    if (count == 0 || (kind == SMF_PAGE_LARGE && !claim(heap, page, mark)))
        return no_block(heap, page);
    struct smi_op op = begin_spans(heap);
    set_kinds(&op, page, kind == SMF_PAGE_SLAB ? count : 1, 0, 0);
    set_span(&op, page, 0, SMF_PAGE_NONE, 0, 0);
    if (holder)
        smi_set(&op, holder, 0);
    if (other)
        smi_set(&op, other, 0);
    smi_set(&op, &ph->free_pages, ph->free_pages + count);
    int rc = merge_free(&op, page, count);
    if (rc < 0)
        return abandon_spans(&op, rc);
    smi_op_commit(&op);
    unclaim(heap);
    if (kind == SMF_PAGE_SLAB)
        smi_pagetable_reshape(heap);
    ph->gives++;
    if (heap->state->decay_ns == 0)
        decay(heap, DECAY_MOST_PAGES); /* a failure to give storage back is no failure to free */
    return 0;
}

int smi_pages_give(shmalloc_heap *heap, uint32_t page, uint8_t kind, uint64_t *holder,
                   uint64_t *other)
{
    int rc = lock_all(heap);
    if (rc < 0)
        return rc;
    rc = give_span(heap, page, kind, 0, holder, other);
    smi_lock_release(heap, smi_lock_of_pages(heap));
    return rc;
}

/* ---- blocks that threads keep ---- */

/* The mark of the large block of an entry of `spans`, when it says that this entry keeps it; else
 * 0. */
static uint64_t mark_of_kept(shmalloc_heap *heap, uint32_t slot_index, uint32_t i, uint64_t entry)
{
    uint64_t count = entry & (SMF_PAGE - 1), page = entry >> SMF_PAGE_SHIFT;
    const struct smf_page *d = smi_page(heap, page);
    uint64_t mark = d ? __atomic_load_n(&d->side, __ATOMIC_ACQUIRE) : 0;
    return count > 0 && span_at(heap, page, SMF_PAGE_LARGE) == count &&
                   (mark & ~SMF_MARK_HELD) == smi_mark_kept(slot_index, i)
               ? mark
               : 0;
}

int smi_pages_give_kept(shmalloc_heap *heap, struct smf_thread *slot, uint32_t slot_index,
                        uint32_t i)
{
    int rc = SMI_LOAD(&slot->spans[i]) != 0 ? lock_all(heap) : 1;
    if (rc != 0)
        return rc < 0 ? rc : 0;
    uint64_t entry = SMI_LOAD(&slot->spans[i]), mark = mark_of_kept(heap, slot_index, i, entry);
    if (mark == 0 || (rc = give_span(heap, entry >> SMF_PAGE_SHIFT, SMF_PAGE_LARGE, mark,
                                     &slot->spans[i], NULL)) == SHMALLOC_EDOUBLEFREE) {
        SMI_STORE(&slot->spans[i], 0);
        rc = 0;
    }
    smi_lock_release(heap, smi_lock_of_pages(heap));
    return rc;
}

/* The blocks that all threads keep go back, but for those that are held. Entries are their owners'
 * to clear. Returns how many went. */
static uint64_t reclaim_kept(shmalloc_heap *heap)
{
    SMI_ASSERT(smi_lock_is_ours(heap, smi_lock_of_pages(heap)));
    uint64_t sum = 0;
    for (uint32_t index = 0; index < SMF_THREADS; index++) {
        struct smf_thread *slot = smi_thread_slot(heap, index);
        for (uint32_t i = 0; slot && i < SMF_SPANS; i++) {
            uint64_t entry = SMI_LOAD(&slot->spans[i]),
                     mark = entry ? mark_of_kept(heap, index, i, entry) : 0;
            if (mark != 0 && !(mark & SMF_MARK_HELD) &&
                give_span(heap, entry >> SMF_PAGE_SHIFT, SMF_PAGE_LARGE, mark, NULL, NULL) == 0)
                sum++;
        }
    }
    return sum;
}

/* The block behind a run that is to grow, if a thread keeps it. */
static int reclaim_neighbour(shmalloc_heap *heap, uint64_t page)
{
    const struct smf_page *d = smi_page(heap, page);
    uint64_t mark = d && SMI_LOAD(&d->kind) == SMF_PAGE_LARGE ? SMI_LOAD(&d->side) : 0;
    return (mark & SMF_MARK_KEPT) && !(mark & SMF_MARK_HELD) &&
           give_span(heap, page, SMF_PAGE_LARGE, mark, NULL, NULL) == 0;
}

static int shrink_block(shmalloc_heap *heap, uint32_t page, uint64_t old, uint64_t count)
{
    struct smf_page_heap *ph = heap->page_heap;
    struct smi_op op = begin_spans(heap);
    set_span(&op, page, count, SMF_PAGE_LARGE, 0, 0);
    smi_set(&op, &ph->free_pages, ph->free_pages + old - count);
    int rc = merge_free(&op, page + count, old - count);
    if (rc < 0)
        return abandon_spans(&op, rc);
    smi_op_commit(&op);
    return 0;
}

/* See that `more` free pages with storage follow at `end`. */
static int make_room_behind(shmalloc_heap *heap, uint64_t end, uint64_t more)
{
    uint64_t behind = free_span_at(heap, end);
    while (behind < more && reclaim_neighbour(heap, end + behind))
        behind = free_span_at(heap, end);
    return behind < more ? SHMALLOC_EFULL : reserve_pages(heap, end, more, behind - more);
}

static int extend_block(shmalloc_heap *heap, uint32_t page, uint64_t old, uint64_t count)
{
    struct smf_page_heap *ph = heap->page_heap;
    uint64_t end = page + old, more = count - old, behind = free_span_at(heap, end);
    set_storage_facts(heap, end, more, SMF_WORD_ZERO, 0);
    struct smi_op op = begin_spans(heap);
    int rc = remove_free(&op, end, behind);
    if (rc == 0 && behind > more)
        rc = insert_free(&op, end + more, behind - more);
    if (rc < 0)
        return abandon_spans(&op, rc);
    set_span(&op, page, count, SMF_PAGE_LARGE, 0, 0);
    smi_set(&op, &ph->free_pages, ph->free_pages - more);
    smi_op_commit(&op);
    return 0;
}

int smi_pages_resize(shmalloc_heap *heap, uint32_t page, uint64_t count)
{
    int rc = lock_all(heap);
    if (rc < 0)
        return rc;
    uint64_t old = span_at(heap, page, SMF_PAGE_LARGE);
    if (old == 0)
        rc = smi_error(SHMALLOC_EBADREF, "%s: no large block at %#llx", heap->path,
                       (unsigned long long)page << SMF_PAGE_SHIFT);
    else if (count > old && (rc = make_room_behind(heap, page + old, count - old)) < 0)
        ;
    else if (count != old && !claim(heap, page, 0))
        rc = no_block(heap, page);
    else if (count != old)
        rc = count < old ? shrink_block(heap, page, old, count)
                         : extend_block(heap, page, old, count);
    unclaim(heap);
    smi_lock_release(heap, smi_lock_of_pages(heap));
    return rc;
}

int smi_pages_flag_slab(shmalloc_heap *heap, uint32_t page, uint16_t flag)
{
    int rc = lock_all(heap);
    if (rc < 0)
        return rc;
    uint64_t count = span_at(heap, page, SMF_PAGE_SLAB);
    if (count > 0) {
        struct smi_op op = begin_spans(heap);
        uint16_t kind = word_of(heap, page) & (uint16_t)~(SMF_WORD_ZERO | SMF_WORD_RESERVED);
        set_kinds(&op, page, count, kind | flag, 1u << SMF_WORD_INDEX_SHIFT);
        smi_op_commit(&op);
        smi_pagetable_reshape(heap);
    }
    smi_lock_release(heap, smi_lock_of_pages(heap));
    return 0;
}

/* ---- trimming ---- */

/* Guards under which no hole can be made, and those under which the file must keep its length: what
 * is cut off from one that cannot grow is lost. */
#define NO_HOLES (SMI_IMMUTABLE | SMI_APPEND_ONLY | SMI_SEAL_WRITE | SMI_SEAL_FUTURE_WRITE)
#define NO_CUTS (SMI_IMMUTABLE | SMI_APPEND_ONLY | SMI_SEAL_GROW | SMI_SEAL_SHRINK)

/* What goes back: runs of at least `min_pages` with storage, in spans freed at `before` or earlier,
 * until `budget` pages have gone. */
struct trim {
    uint64_t min_pages, before, budget, pages;
    uint64_t lowest; /* storage below this page stays: requests are served from low addresses */
    uint64_t looked; /* pages; more than the heap has means that a set runs in a circle */
    int young; /* a span was passed over because it is not old enough */
    int forbidden; /* the file is guarded: it keeps its storage */
    int rc;
};

static int punch_run(shmalloc_heap *heap, struct trim *trim, uint64_t page, uint64_t count)
{
    set_storage_facts(heap, page, count, SMF_WORD_RESERVED, 0);
    int rc = smi_storage_punch(heap, page << SMF_PAGE_SHIFT, count << SMF_PAGE_SHIFT);
    if (rc == -EPERM && (smi_storage_guards(heap) & NO_HOLES)) {
        set_storage_facts(heap, page, count, 0, SMF_WORD_RESERVED); /* there still is all of it */
        trim->forbidden = 1;
        return 0;
    }
    if (rc < 0)
        return rc;
    set_storage_facts(heap, page, count, 0, SMF_WORD_ZERO);
    trim->pages += count;
    return 0;
}

static int punch_span(shmalloc_heap *heap, uint32_t page, void *arg)
{
    struct trim *trim = arg;
    uint64_t length = free_span_at(heap, page), run;
    if ((trim->looked += length) > smi_size(heap) >> SMF_PAGE_SHIFT)
        return 1;
    uint64_t freed_at = SMI_LOAD(&smi_known_page(heap, page)->side);
    if (freed_at > trim->before && freed_at <= smi_os_tick()) { /* later than now: of another boot,
                                                                   so old */
        trim->young = 1;
        return 0;
    }
    uint64_t below = page < trim->lowest ? trim->lowest - page : 0;
    for (uint64_t i = below; i < length && trim->rc == 0 && !trim->forbidden; i += run) {
        i += hole_run(heap, page + i, length - i);
        run = stored_run(heap, page + i, length - i);
        if (run == 0)
            break;
        uint64_t left = trim->budget - trim->pages, count = run < left ? run : left;
        if (left < trim->min_pages)
            return 1;
        if (run >= trim->min_pages)
            trim->rc = punch_run(heap, trim, page + i + run - count, count);
    }
    return trim->rc < 0 || trim->forbidden;
}

static int punch_spans(shmalloc_heap *heap, struct trim *trim)
{
    /* Spans shorter than `min_pages` lie in the sets before; no need to look at them. */
    for (int index = trim->min_pages > SMF_EXACT_SETS ? BIG_SET : (int)trim->min_pages - 1;
         index <= BIG_SET; index++)
        if (smi_pageset_each(heap, heap->page_heap->set[index], punch_span, trim))
            break;
    heap->page_heap->punched_pages += trim->pages;
    return trim->rc;
}

/* Pages of a run that have storage. */
static uint64_t count_stored(shmalloc_heap *heap, uint64_t page, uint64_t length)
{
    const uint16_t *word = smi_word(heap, page);
    uint64_t sum = 0;
    for (uint64_t i = 0; word && i < length; i++) /* plain loads, which a compiler does several of
                                                     at once */
        sum += (word[i] & SMF_WORD_RESERVED) != 0;
    return sum;
}

/* Stored pages of free spans, by the part of the heap they lie in. */
#define PARTS 64u
struct tally {
    uint64_t stored[PARTS], looked;
    unsigned shift; /* page >> shift is the part */
};

static int add_stored(shmalloc_heap *heap, uint32_t page, void *arg)
{
    struct tally *tally = arg;
    uint64_t length = free_span_at(heap, page);
    if ((tally->looked += length) > smi_size(heap) >> SMF_PAGE_SHIFT)
        return 1;
    /* part by part */
    for (uint64_t at = page, next; at < page + length && at >> tally->shift < PARTS; at = next) {
        next = ((at >> tally->shift) + 1) << tally->shift;
        next = next < page + length ? next : page + length;
        tally->stored[at >> tally->shift] += count_stored(heap, at, next - at);
    }
    return 0;
}

/* Free pages with storage; at most `retain` of them lie below the page `*lowest`. */
static uint64_t stored_pages(shmalloc_heap *heap, uint64_t retain, uint64_t *lowest)
{
    struct tally tally = {.shift = 0};
    uint64_t sum = 0;
    while (smi_size(heap) >> SMF_PAGE_SHIFT >> tally.shift >= PARTS)
        tally.shift++;
    for (int index = 0; index <= BIG_SET; index++)
        if (smi_pageset_each(heap, heap->page_heap->set[index], add_stored, &tally))
            break;
    *lowest = 0;
    for (uint64_t i = 0; i < PARTS; i++) {
        sum += tally.stored[i];
        if (sum <= retain)
            *lowest = (i + 1) << tally.shift;
    }
    return sum;
}

/* Is the link record of a thread armed that names a word from `ref` on? Its thread died, and who
 * adopts it wants to read that word, although the block that it lay in may have been freed. */
static int is_linked(shmalloc_heap *heap, uint64_t ref)
{
    for (uint32_t i = 0; i < SMF_THREADS; i++) {
        const struct smf_thread *slot = smi_thread_slot(heap, i);
        if (slot && SMI_LOAD(&slot->link.op) != SMF_LINK_NONE && smi_link_dest(&slot->link) >= ref)
            return 1;
    }
    return 0;
}

/* Cut the last chunk off the file if all of it is free and old enough. Returns 1 when it did. */
static int cut_tail(shmalloc_heap *heap, struct trim *trim)
{
    struct smf_state *state = heap->state;
    uint64_t index = state->chunk_count - 1;
    if (index == 0 || index >= SMF_CHUNKS)
        return 0;
    const struct smf_chunk chunk = heap->directory[index];
    uint64_t data = smi_chunk_data_page(&chunk, &heap->areas);
    uint64_t end = (uint64_t)chunk.first_page + chunk.page_count, count = end - data;
    const struct smf_page *first = smi_page(heap, data);
    if (end << SMF_PAGE_SHIFT != SMI_LOAD(&state->size) || data >= end || !first)
        return damaged_spans(heap, chunk.first_page);
    uint64_t freed_at = SMI_LOAD(&first->side); /* or the mark of a large block, which others change
                                                   meanwhile */
    if (free_span_at(heap, data) != count || (freed_at > trim->before && freed_at <= smi_os_tick()))
        return 0;
    uint64_t stored = count_stored(heap, data, count);
    if (stored > trim->budget - trim->pages || (smi_storage_guards(heap) & NO_CUTS) ||
        is_linked(heap, (uint64_t)chunk.first_page << SMF_PAGE_SHIFT))
        return 0;
    struct smi_op op = begin_spans(heap);
    int rc = remove_free(&op, data, count);
    if (rc < 0)
        return abandon_spans(&op, rc);
    smi_set(&op, &heap->page_heap->free_pages, heap->page_heap->free_pages - count);
    smi_set(&op, &state->chunk_count, index);
    smi_set(&op, &state->size, (uint64_t)chunk.first_page << SMF_PAGE_SHIFT);
    smi_op_commit(&op);
    trim->pages += stored;
    SMI_STORE(&heap->backed, (uint64_t)chunk.first_page << SMF_PAGE_SHIFT);
    /* kill here: a longer file, cut at the next growth */
    rc = smi_storage_set_length(heap, (uint64_t)chunk.first_page << SMF_PAGE_SHIFT);
    return rc < 0 ? rc : 1;
}

int64_t smi_pages_trim(shmalloc_heap *heap, uint64_t min_pages)
{
    struct trim trim = {.min_pages = min_pages, .before = UINT64_MAX, .budget = UINT64_MAX};
    int rc = lock_all(heap);
    if (rc < 0)
        return rc;
    reclaim_kept(heap);
    int may_cut = smi_readers_are_gone(heap);
    rc = smi_heap_descriptor(heap);
    while (rc == 0 && may_cut && (rc = cut_tail(heap, &trim)) == 1)
        rc = 0;
    if (rc == 0 && may_cut)
        rc = punch_spans(heap, &trim);
    smi_lock_release(heap, smi_lock_of_pages(heap));
    if (rc < 0)
        return smi_refused_change(rc, heap->fd, heap->path, "%s: cannot give storage back",
                                  heap->path);
    return (int64_t)(trim.pages << SMF_PAGE_SHIFT);
}

/*
 * Give back what is stale.
 *
 * It reads the words of all free pages of the spans it looks at, 2 bytes for 8 KiB, rather than
 * keeping their number: RESERVED changes outside the log, hundreds of pages at a time, so a number
 * that every kill leaves true would have to be logged with more words than a log has.
 */
static int decay(shmalloc_heap *heap, uint64_t most)
{
    SMI_ASSERT(smi_lock_is_ours(heap, smi_lock_of_pages(heap)));
    uint64_t now = smi_os_tick(), decay_ns = heap->state->decay_ns, gives = heap->page_heap->gives;
    if (decay_ns == SMF_NEVER || heap->decayed == gives)
        return 0; /* nothing was freed since all of it was looked at */
    if (!smi_readers_are_gone(heap))
        return 0; /* another time */
    uint64_t lowest = 0, retain = heap->state->retain >> SMF_PAGE_SHIFT;
    uint64_t stored = retain > 0 ? stored_pages(heap, retain, &lowest) : UINT64_MAX;
    struct trim trim = {.min_pages = DECAY_MIN_PAGES,
                        .before = now > decay_ns ? now - decay_ns : 0,
                        .budget = stored > retain ? stored - retain : 0,
                        .lowest = lowest};
    if (trim.budget > most)
        trim.budget = most;
    int rc = smi_heap_descriptor(heap);
    if (rc == 0)
        rc = punch_spans(heap, &trim);
    int bounded = trim.budget == most && trim.budget - trim.pages < trim.min_pages;
    while (rc == 0 && !bounded && (rc = cut_tail(heap, &trim)) == 1)
        rc = 0;
    if (rc == 0 && !bounded && !trim.young)
        heap->decayed = gives;
    return rc;
}

int smi_pages_decay(shmalloc_heap *heap)
{
    int rc = smi_lock_try(heap, smi_lock_of_pages(heap));
    if (rc < 0)
        return rc == -EBUSY ? 0 : rc;
    rc = smi_heap_is_outgrown(heap) ? 0 : decay(heap, DECAY_MOST_PAGES);
    smi_lock_release(heap, smi_lock_of_pages(heap));
    return rc;
}

int smi_pages_decay_last(shmalloc_heap *heap)
{
    if (heap->page_heap->gives == heap->gives_before)
        return 0; /* so that opening and closing a large heap costs what a small one does */
    int rc = lock_all(heap);
    if (rc < 0)
        return rc;
    rc = decay(heap, UINT64_MAX);
    smi_lock_release(heap, smi_lock_of_pages(heap));
    return rc;
}

static int longer(shmalloc_heap *heap, uint32_t page, void *arg)
{
    uint64_t *best = arg, length = free_span_at(heap, page);
    if (length > *best)
        *best = length;
    return 0;
}

uint64_t smi_pages_largest(shmalloc_heap *heap)
{
    uint64_t best = 0;
    smi_pageset_each(heap, heap->page_heap->set[BIG_SET], longer, &best);
    for (int index = BIG_SET - 1; index >= 0 && best == 0; index--)
        if (heap->page_heap->set[index])
            best = (uint64_t)index + 1;
    return best << SMF_PAGE_SHIFT;
}

int smi_pages_check_chunks(shmalloc_heap *heap)
{
    return check_chunks(heap, heap->state->chunk_count, heap->state->size);
}

int smi_pages_format(shmalloc_heap *heap, uint64_t size)
{
    struct smf_chunk chunk = {0, (uint32_t)(size >> SMF_PAGE_SHIFT)};
    heap->directory[0] = chunk;
    heap->state->chunk_count = 1;
    heap->state->size = size;
    int rc = smi_storage_reserve(
        heap, 0, smi_round_up(heap->areas.end + smi_chunk_metadata_bytes(chunk.page_count), 4096));
    if (rc < 0)
        return rc;
    format_chunk(heap, &chunk);
    uint32_t data = smi_chunk_data_page(&chunk, &heap->areas);
    struct smi_op op = begin_spans(heap);
    rc = insert_free(&op, data, chunk.page_count - data);
    heap->page_heap->free_pages = chunk.page_count - data;
    smi_op_commit(&op);
    return rc;
}
