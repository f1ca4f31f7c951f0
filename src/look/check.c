/* SPDX-License-Identifier: MIT */
/*
 * check.c - what must hold in a heap, and the walk that verifies it.
 *
 * The walk reads a settled view (view.h): armed logs and links have been resolved as the next owner
 * of each lock would, so what is left to disagree is damage, or motion. What must hold is listed,
 * by number, in smi_invariants below; the headers of the modules use the same numbers.
 *
 * Motion. On a heap in use each disagreement carries the parts of the heap it depends on (a class,
 * a thread's stacks, the page heap, the roots). Those parts are hashed before and after the walk: a
 * disagreement about a part that changed proves nothing. See smi_check in check.h for the rest.
 */
#include "look/check.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "platform/error.h"
#include "platform/os.h"
#include "format/sizeclass.h"

const struct smi_invariant smi_invariants[] = {
    {"H1", "the header is intact; size, maximum, chunk count and mark in the state are "
           "possible"},
    {"H2", "the heap is not poisoned"},
    {"H3",
     "a heap marked clean has no step in flight, no thread slot with an owner and no failed sync"},
    {"D1", "the directory's chunks follow each other without a gap and end where the heap "
           "ends; what entries behind them say would follow likewise"},
    {"L1", "a log has no more entries than fit"},
    {"L2", "a log names words inside the file"},
    {"L3", "an armed link record names possible words and arrays"},
    {"P1", "spans tile each chunk's data pages; pages inside a span have no kind"},
    {"P2", "no two free spans of a chunk touch"},
    {"P3", "every free span, and nothing else, is once in the set of its length"},
    {"P4", "only first pages, and all pages of slabs, have a kind in their word, and the "
           "right one"},
    {"P5", "pages of spans that are not free have storage and are not marked as zeros"},
    {"P6", "each set of free spans is in order"},
    {"P7", "set_bits tells which sets have members"},
    {"P8", "free_pages is the sum of all free spans"},
    {"C1", "a slab's free_slots equals its bits; no bit at or beyond its last slot"},
    {"C2", "a slab is in its class's set, once, and says so, exactly when it has free slots"},
    {"C3", "slab_count and free_slots of a class are the sums over its slabs"},
    {"C4", "a slot is free in the central heap, on one stack, or used; never two of them"},
    {"C5", "a slab's class, arena and length are possible and fit each other"},
    {"C6", "no bitmap word before a slab's hint has a bit"},
    {"C7", "`pending` names a slab"},
    {"C8", "each set of slabs is in order"},
    {"S1", "a side array is a block of the library's own, long enough; hardened heaps have "
           "all of them"},
    {"S2", "in hardened heaps the user's bit of a slot is set exactly while the user has the "
           "slot, but for the top of each stack and one more slot for each thread, which may be "
           "on their way"},
    {"T1", "a stack's array is where it can be; its count is at most its capacity; behind the "
           "first 0 of an open "
           "one all words are 0"},
    {"T2", "every cached ref is a slot of the class"},
    {"T3", "a META span is a thread slot, an array that one stack names, a limbo or a chunk of one "
           "log, as its tag "
           "says, or in `spare`"},
    {"T4", "the thread table names thread slots, each once; owners are processes in the table"},
    {"T5", "a thread slot without owner is at rest"},
    {"T6", "`scratch` and `building` name blocks that are allocated"},
    {"X1", "`tx_log` and what a log names as its chunks begin spans that are for logs"},
    {"X2",
     "entries fill a log's chunks up to `used`, are of known types and name what lies in the heap"},
    {"X3", "an idle transaction has no entries; a thread slot without owner has no log"},
    {"K1", "a large block's mark is 0 or names an entry of a thread slot that names the block"},
    {"R1", "each chain ends and is made of root records in used blocks of the library's own, "
           "long enough, each in the chain of its hash"},
    {"R2", "`count` is the number of roots"},
    {"R3", "no two roots have one name"},
    {"R4", "a root's hash is that of its name"},
    {"O1", "every used slot of the library's own arena is named once: by a root, a slab, or "
           "roots.scratch"},
    {"B1", "a thread's limbo is a span of its own, of two bags, whose stamps are not above the "
           "epoch; behind the first 0 "
           "of a bag all words are 0"},
    {"B2", "what is retired is a block that was in use, in one bag"},
    {"B3", "the epoch of read sections is possible; no section begins after it, and it is ousted "
           "in no thread slot"},
    {NULL, NULL},
};

#define MAX_LOOKS 16 /* at a live heap */
#define MAX_INTACT 4 /* of them, those that were not in vain */
#define MAX_KEPT 16384 /* disagreements of a live heap that are remembered between looks */

/* Parts of the heap that may move. The classes' parts follow from CLASS, then the threads'. */
enum part { NOTHING, PAGES, ROOTS, THREADS, EVERYTHING, CLASS };
#define THREAD (CLASS + (SMF_ARENAS_MAX + 1) * SMF_CLASSES)
#define PARTS (THREAD + SMF_THREADS)

/* Where a disagreement is, and which parts must have stood still for it to count. */
struct place {
    uint64_t ref;
    uint32_t parts[2];
};

/* A disagreement of a live heap, remembered. */
struct found {
    char invariant[4];
    uint64_t ref;
    uint32_t parts[2];
    uint32_t still; /* looks in which its parts stood still */
    int again;      /* the look under way shows it */
    char *text;
};

/* flags of a page, by what the spans say */
#define IS_FREE 1u  /* a free span begins here */
#define IS_SLAB 2u  /* a slab begins here */
#define IS_META 4u  /* a META span begins here */
#define PENDING 8u  /* a class's `pending` names it */
#define IN_SET 16u  /* a set led here */
#define NAMED 32u   /* META: a thread table entry, a stack or a limbo names it */
#define SPARED 64u  /* META: a `spare` names it */

/* A block of the library's own and who names it. */
struct named {
    uint64_t ref;
    uint64_t by;
};

struct list {
    struct named *at;
    size_t count, room;
};

/* What the slabs of a class add up to. */
struct tally {
    uint64_t slabs, free_slots;
};

struct walk {
    struct smi_view *view;
    struct smi_check_result *result;
    smi_report_fn *report;
    void *arg;
    int live, first_look, failed; /* failed: out of memory */
    uint64_t *before, *after;     /* hashes of the parts, live only */
    uint8_t *armed;               /* parts whose log was armed in this look, live only */
    uint8_t *piece;               /* what is being hashed, PIECE bytes, live only */
    uint64_t *slots;              /* the table of thread slots as it is now, live only */
    struct found *found;
    size_t found_count;

    uint64_t page_limit; /* pages of the sound chunks */
    uint8_t *flags;      /* by page */
    struct tally *tallies;
    struct smi_cached *cached;
    size_t cached_count;
    struct list own;       /* blocks of the library's own that somebody names */
    struct list own_slabs; /* `ref` is a page number */
    uint64_t free_pages;
    uint32_t owned_threads;
};

/* ---- reporting ------------------------------------------------------------------------------ */

static struct place at_heap(uint64_t ref)
{
    return (struct place){ref, {NOTHING, NOTHING}};
}

static struct place in_part(uint64_t ref, uint32_t part)
{
    return (struct place){ref, {part, NOTHING}};
}

static struct place in_parts(uint64_t ref, uint32_t one, uint32_t other)
{
    return (struct place){ref, {one, other}};
}

static uint64_t ref_of_page(uint64_t page)
{
    return page << SMF_PAGE_SHIFT;
}

static void tell_violation(struct walk *w, const char *invariant, uint64_t ref, const char *text)
{
    if (strcmp(invariant, SMI_DANGLING) == 0)
        w->result->dangling++;
    else
        w->result->violations++;
    w->report(invariant, ref, text, w->arg);
}

/* Remember a disagreement of a live heap: later looks only confirm what the first one saw. */
static void remember_disagreement(struct walk *w, const char *invariant, struct place place,
                                  const char *text)
{
    for (size_t i = 0; !w->first_look && i < w->found_count; i++) {
        struct found *f = &w->found[i];
        if (f->ref == place.ref && !f->again && strcmp(f->invariant, invariant) == 0) {
            f->again = 1;
            memcpy(f->parts, place.parts, sizeof(f->parts));
            return;
        }
    }
    if (!w->first_look || w->found_count == MAX_KEPT)
        return;
    if (w->found_count % 64 == 0) {
        struct found *more = realloc(w->found, (w->found_count + 64) * sizeof(*more));
        if (!more) {
            w->failed = 1;
            return;
        }
        w->found = more;
    }
    struct found *f = &w->found[w->found_count++];
    *f = (struct found){.ref = place.ref, .again = 1, .text = strdup(text)};
    memcpy(f->parts, place.parts, sizeof(f->parts));
    snprintf(f->invariant, sizeof(f->invariant), "%.3s", invariant);
    w->failed |= !f->text;
}

__attribute__((format(printf, 4, 5))) static void
violation(struct walk *w, const char *invariant, struct place place, const char *format, ...)
{
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    if (w->live)
        remember_disagreement(w, invariant, place, text);
    else
        tell_violation(w, invariant, place.ref, text);
}

/* What smi_view_settle could not resolve. */
static void unsettled(const char *invariant, uint64_t ref, const char *text, void *arg)
{
    violation(arg, invariant, in_part(ref, EVERYTHING), "%s", text);
}

smi_check_more_fn *smi_check_structures;

/* What the check of a structure found, which has looked whether its words stood still. */
static void of_structure(const char *invariant, uint64_t ref, const char *text, void *arg)
{
    violation(arg, invariant, at_heap(ref), "%s", text);
}

static void append_ref(struct walk *w, struct list *list, uint64_t ref, uint64_t by)
{
    if (list->count == list->room) {
        size_t room = 2 * list->room + 64;
        struct named *more = realloc(list->at, room * sizeof(*more));
        if (!more) {
            w->failed = 1;
            return;
        }
        list->at = more;
        list->room = room;
    }
    list->at[list->count++] = (struct named){ref, by};
}

static int by_list_ref(const void *a, const void *b)
{
    const struct named *x = a, *y = b;
    return x->ref < y->ref ? -1 : x->ref > y->ref;
}

/* ---- small readers -------------------------------------------------------------------------- */

/* Index of a slab's class and arena. */
static uint32_t central_index(const struct smf_page *slab)
{
    return (uint32_t)slab->arena * SMF_CLASSES + slab->size_class;
}

static uint32_t class_part(const struct smf_page *slab)
{
    return CLASS + central_index(slab);
}

static uint64_t central_ref(const struct walk *w, uint32_t index)
{
    return w->view->header.areas.central + (uint64_t)index * sizeof(struct smf_central);
}

static const struct smf_central *central_in_view(struct walk *w, uint32_t index)
{
    return smi_view_at(w->view, central_ref(w, index), sizeof(struct smf_central));
}

static uint32_t central_count(const struct walk *w)
{
    return (w->view->header.arena_count + 1) * SMF_CLASSES;
}

static unsigned flags_of(const struct walk *w, uint64_t page)
{
    return page < w->page_limit ? w->flags[page] : 0;
}

static uint32_t bitmap_words(unsigned k)
{
    return (smi_classes[k].slots + 63u) / 64;
}

/* ---- state and directory -------------------------------------------------------------------- */

static void check_state(struct walk *w)
{
    const struct smf_state *state = &w->view->state;
    const uint64_t at = SMF_STATE_OFFSET;
    if (state->poison)
        violation(w, "H2", at_heap(at + offsetof(struct smf_state, poison)),
                  "heap is poisoned: \"%s\" (%lld)",
                  shmalloc_strerror((int)(0 - state->poison)), (long long)(0 - state->poison));
    if (state->mark == SMF_CLEAN && w->view->in_flight)
        violation(w, "H3", in_part(at + offsetof(struct smf_state, mark), EVERYTHING),
                  "heap is marked clean and has %u steps in flight", w->view->in_flight);
    if (state->mark == SMF_CLEAN && state->sync_failed)
        violation(w, "H3", in_part(at + offsetof(struct smf_state, sync_failed), EVERYTHING),
                  "heap is marked clean, and a sync of it failed (%s)",
                  shmalloc_strerror((int)(0 - state->sync_failed)));
}

static void check_directory(struct walk *w)
{
    struct smi_view *view = w->view;
    uint64_t at = view->header.areas.directory, end = 0;
    const struct smf_chunk *entry = smi_view_at(view, at, SMF_CHUNKS * sizeof(*entry));
    if (view->chunk_count)
        end = (uint64_t)view->chunks[view->chunk_count - 1].first_page +
              view->chunks[view->chunk_count - 1].page_count;
    w->page_limit = end;
    if (view->chunk_count < view->state.chunk_count && entry) {
        entry += view->chunk_count;
        violation(
            w, "D1", in_part(at + view->chunk_count * sizeof(*entry), PAGES),
            "chunk %u has %u pages from page %u; it should begin at page %llu and end inside the "
            "file of %llu pages",
            view->chunk_count, entry->page_count, entry->first_page, (unsigned long long)end,
            (unsigned long long)(view->file_size >> SMF_PAGE_SHIFT));
    } else if (ref_of_page(end) != view->state.size) {
        violation(w, "D1", in_part(SMF_STATE_OFFSET, PAGES),
                  "the heap has %llu bytes, its chunks end at %llu",
                  (unsigned long long)view->state.size, (unsigned long long)ref_of_page(end));
    }
}

/* An entry behind the last chunk was never used, or is that of a chunk that was cut off and comes
 * back as it was. */
static void check_chunks_behind(struct walk *w)
{
    const struct smf_chunk *entry;
    uint64_t at = w->view->header.areas.directory, page = w->page_limit;
    for (uint64_t i = w->view->state.chunk_count; i < SMF_CHUNKS; i++) {
        entry = smi_view_at(w->view, at + i * sizeof(*entry), sizeof(*entry));
        if (!entry || (entry->first_page == 0 && entry->page_count == 0))
            continue;
        if (entry->first_page != page || entry->page_count == 0 ||
            entry->page_count % (SMF_GRANULE >> SMF_PAGE_SHIFT) != 0)
            violation(w, "D1", in_part(at + i * sizeof(*entry), PAGES),
                      "entry of chunk %llu, which the heap has not got, says %u pages from page "
                      "%u; it should begin "
                      "at page %llu",
                      (unsigned long long)i, entry->page_count, entry->first_page,
                      (unsigned long long)page);
        page += entry->page_count;
    }
}

/* ---- spans ---------------------------------------------------------------------------------- */

/* Words of the pages before a chunk's first data page, and their descriptors, which the page heap
 * looks at when it merges. */
static void check_metadata_pages(struct walk *w, const struct smf_chunk *chunk)
{
    uint64_t data = smi_chunk_data_page(chunk, &w->view->header.areas);
    for (uint64_t page = chunk->first_page; page < data; page++) {
        uint16_t word = smi_view_word(w->view, page);
        const struct smf_page *d = smi_view_descriptor(w->view, page);
        if (word)
            violation(w, "P4", in_part(ref_of_page(page), PAGES),
                      "page %llu holds metadata and has word %#x", (unsigned long long)page, word);
        if (d && d->kind != SMF_PAGE_NONE)
            violation(w, "P1", in_part(ref_of_page(page), PAGES),
                      "page %llu holds metadata and has a descriptor of kind %u",
                      (unsigned long long)page, d->kind);
    }
}

/* Descriptors inside a span have no kind; but the last of a free span repeats its length. */
static void check_inside(struct walk *w, const struct smi_span *span)
{
    int is_free = span->page->kind == SMF_PAGE_FREE;
    for (uint32_t i = 1; i < span->page_count; i++) {
        uint64_t page = (uint64_t)span->first_page + i;
        const struct smf_page *d = smi_view_page(w->view, page);
        int tail = is_free && i == span->page_count - 1;
        if (!d)
            continue;
        if (tail && (d->kind != SMF_PAGE_FREE_TAIL || d->page_count != span->page_count))
            violation(w, "P1", in_part(ref_of_page(page), PAGES),
                      "last page %llu of a free span of %u pages has kind %u and length %u",
                      (unsigned long long)page, span->page_count, d->kind, d->page_count);
        else if (!tail && d->kind != SMF_PAGE_NONE)
            violation(w, "P1", in_part(ref_of_page(page), PAGES),
                      "page %llu lies inside the span of %u pages from page %u and has kind %u",
                      (unsigned long long)page, span->page_count, span->first_page, d->kind);
    }
}

/* What the kind bits of page `i` of a span should be. SIDE is check_side's. */
static uint16_t expected_word(const struct walk *w, const struct smi_span *span, uint32_t i)
{
    const struct smf_page *d = span->page;
    if (d->kind == SMF_PAGE_SLAB)
        return (uint16_t)((1u + d->size_class) | i << SMF_WORD_INDEX_SHIFT |
                          (d->arena == w->view->header.arena_count ? SMF_WORD_INTERNAL : 0));
    if (i > 0 || d->kind == SMF_PAGE_FREE)
        return 0;
    return d->kind == SMF_PAGE_LARGE ? SMF_WORD_LARGE : SMF_WORD_META;
}

static void check_words(struct walk *w, const struct smi_span *span)
{
    const uint16_t facts = SMF_WORD_ZERO | SMF_WORD_RESERVED;
    int is_free = span->page->kind == SMF_PAGE_FREE, is_slab = span->page->kind == SMF_PAGE_SLAB;
    for (uint32_t i = 0; i < span->page_count; i++) {
        uint64_t page = (uint64_t)span->first_page + i;
        uint16_t word = smi_view_word(w->view, page), expected = expected_word(w, span, i);
        uint16_t kind = word & (uint16_t)~(facts | (is_slab ? SMF_WORD_SIDE : 0));
        if (kind != expected)
            violation(w, "P4", in_part(ref_of_page(page), PAGES),
                      "page %llu has word %#x, expected %#x in a span of kind %u",
                      (unsigned long long)page, word, expected, span->page->kind);
        if (!is_free && (word & facts) != SMF_WORD_RESERVED)
            violation(w, "P5", in_part(ref_of_page(page), PAGES),
                      "page %llu is in use and %s", (unsigned long long)page,
                      word & SMF_WORD_ZERO ? "marked as zeros" : "not marked as having storage");
    }
}

static uint64_t slab_free_slots(struct walk *w, const struct smi_span *span)
{
    unsigned k = span->page->size_class;
    uint32_t slots = smi_classes[k].slots, used_words = bitmap_words(k);
    uint32_t room = smi_classes[k].bitmap_pages ? used_words : span->page_count * 4;
    uint64_t count = 0, at = ref_of_page(span->first_page);
    struct place place = in_part(at, class_part(span->page));
    for (uint32_t i = 0; i < room; i++) {
        uint64_t bits = smi_view_slab_bits(w->view, span->first_page, k, i);
        uint64_t valid = i * 64 >= slots        ? 0
                         : slots - i * 64 >= 64 ? UINT64_MAX
                                                : (1ull << (slots - i * 64)) - 1;
        if (bits & ~valid)
            violation(w, "C1", place, "slab at page %u of %u slots has a bit for slot %u",
                      span->first_page, slots, i * 64 + (uint32_t)__builtin_ctzll(bits & ~valid));
        if (bits && i < span->page->hint)
            violation(w, "C6", place, "slab at page %u has free slots in word %u, its hint says %u",
                      span->first_page, i, span->page->hint);
        count += (uint64_t)__builtin_popcountll(bits & valid);
    }
    return count;
}

static void check_side(struct walk *w, const struct smi_span *span)
{
    const struct smf_page *slab = span->page;
    uint64_t at = ref_of_page(span->first_page);
    int is_own = slab->arena == w->view->header.arena_count;
    struct place place = in_parts(at, class_part(slab), PAGES);
    uint16_t word = smi_view_word(w->view, span->first_page);
    if ((word & SMF_WORD_SIDE) && !slab->side)
        violation(w, "S1", place, "slab at page %u is marked as having a side array and has none",
                  span->first_page);
    if (slab->side && is_own)
        violation(w, "S1", place, "slab at page %u of the library's own has a side array",
                  span->first_page);
    if (!slab->side && !is_own && (w->view->header.mode & SMF_HEAP_HARDENED))
        violation(w, "S1", place, "slab at page %u of a hardened heap has no side array",
                  span->first_page);
    if (slab->side)
        append_ref(w, &w->own, slab->side, at);
}

static void check_slab(struct walk *w, const struct smi_span *span)
{
    const struct smf_page *d = span->page;
    uint64_t at = ref_of_page(span->first_page);
    if (!smi_view_is_slab(w->view, d)) {
        violation(w, "C5", in_part(at, PAGES),
                  "slab at page %u has class %u, arena %u and %u pages", span->first_page,
                  d->size_class, d->arena, d->page_count);
        return;
    }
    if (flags_of(w, span->first_page) & PENDING) { /* on its way: nothing about it is settled */
        if (d->side)
            append_ref(w, &w->own, d->side, at);
        return;
    }
    w->flags[span->first_page] |= IS_SLAB;
    uint64_t free_slots = slab_free_slots(w, span);
    struct place place = in_part(at, class_part(d));
    if (free_slots != d->free_slots)
        violation(w, "C1", place, "slab at page %u says %u free slots, its bits say %llu",
                  span->first_page, d->free_slots, (unsigned long long)free_slots);
    if (d->in_set != (d->free_slots > 0))
        violation(w, "C2", place, "slab at page %u has %u free slots and in_set is %u",
                  span->first_page, d->free_slots, d->in_set);
    struct tally *tally = &w->tallies[central_index(d)];
    tally->slabs++;
    tally->free_slots += free_slots;
    w->result->slabs++;
    if (d->arena == w->view->header.arena_count)
        append_ref(w, &w->own_slabs, span->first_page, 0);
    else
        w->result->blocks += smi_classes[d->size_class].slots - free_slots;
    check_side(w, span);
}

static void check_free(struct walk *w, const struct smi_span *span, const struct smi_span *previous)
{
    w->flags[span->first_page] |= IS_FREE;
    w->free_pages += span->page_count;
    w->result->free_runs++;
    if (previous->first_page && previous->chunk == span->chunk &&
        previous->page->kind == SMF_PAGE_FREE)
        violation(w, "P2", in_part(ref_of_page(span->first_page), PAGES),
                  "free spans at pages %u and %u touch", previous->first_page, span->first_page);
}

static void check_mark(struct walk *w, const struct smi_span *span)
{
    uint64_t mark = span->page->side, slot_index = mark >> 8 & (SMF_THREADS - 1),
             ref = ref_of_page(span->first_page);
    if (mark != 0 && !smi_view_is_kept(w->view, ref, span->page_count, mark))
        violation(
            w, "K1", in_parts(ref, PAGES, THREAD + (uint32_t)slot_index),
            "large block at page %u has mark %#llx, which is that of no thread slot that keeps it",
            span->first_page, (unsigned long long)mark);
    if (mark == 0)
        w->result->blocks++;
}

static void check_span(struct walk *w, const struct smi_span *span, const struct smi_span *previous)
{
    const struct smf_page *d = span->page;
    struct place place = in_part(ref_of_page(span->first_page), PAGES);
    w->result->pages += span->page_count;
    if (d->kind == SMF_PAGE_NONE || d->kind == SMF_PAGE_FREE_TAIL || d->kind > SMF_PAGE_META) {
        /* one report for a run of such pages */
        if (!previous->first_page || previous->page->kind != d->kind)
            violation(w, "P1", place, "page %u belongs to no span: its descriptor has kind %u",
                      span->first_page, d->kind);
        return;
    }
    if (d->page_count != span->page_count)
        violation(w, "P1", place, "span at page %u has %u pages, which do not fit its chunk",
                  span->first_page, d->page_count);
    check_inside(w, span);
    check_words(w, span);
    if (d->kind == SMF_PAGE_FREE)
        check_free(w, span, previous);
    else if (d->kind == SMF_PAGE_SLAB)
        check_slab(w, span);
    else if (d->kind == SMF_PAGE_LARGE)
        check_mark(w, span);
    else
        w->flags[span->first_page] |= IS_META;
}

static void check_spans(struct walk *w)
{
    for (uint32_t i = 0; i < w->view->chunk_count; i++)
        check_metadata_pages(w, &w->view->chunks[i]);
    struct smi_span span = {0}, previous = {0};
    while (smi_view_next_span(w->view, &span)) {
        check_span(w, &span, &previous);
        previous = span;
    }
}

/* ---- ordered sets --------------------------------------------------------------------------- */

/* A set of spans and what its members must be. */
struct set {
    uint64_t at;   /* ref of the root word */
    uint32_t part; /* of the heap */
    const char *membership, *order; /* invariants */
    uint32_t index;  /* free spans: its length - 1; SMF_EXACT_SETS for the set by length */
    uint32_t central; /* slabs: index of the class and arena */
    int of_slabs;
};

struct node {
    uint64_t prefix; /* leading bits that the way down has fixed */
    uint32_t page;
    uint32_t depth; /* their number */
};

static uint64_t key_in_set(const struct set *set, uint32_t page, const struct smf_page *d)
{
    return !set->of_slabs && set->index == SMF_EXACT_SETS ? (uint64_t)d->page_count << 32 | page
                                                        : (uint64_t)page << 32;
}

static int is_member(const struct set *set, const struct smf_page *d)
{
    if (set->of_slabs)
        return central_index(d) == set->central;
    uint32_t index = d->page_count <= SMF_EXACT_SETS ? d->page_count - 1 : SMF_EXACT_SETS;
    return index == set->index;
}

/* One node: 1 when it may be descended from. */
static int check_node(struct walk *w, const struct set *set, const struct node *node)
{
    struct place place = in_part(ref_of_page(node->page), set->part);
    const struct smf_page *d = smi_view_page(w->view, node->page);
    unsigned flags = flags_of(w, node->page);
    if (!d || !(flags & (set->of_slabs ? IS_SLAB : IS_FREE)) || !is_member(set, d)) {
        int outside = ref_of_page(node->page) >= w->view->file_size;
        violation(w, set->membership,
                  in_part(outside ? set->at : ref_of_page(node->page), set->part),
                  "the set whose root is at %#llx leads to page %u, which is none of its members",
                  (unsigned long long)set->at, node->page);
        return 0;
    }
    if (flags & IN_SET) {
        violation(w, set->membership, place, "page %u is in a set twice", node->page);
        return 0;
    }
    w->flags[node->page] |= IN_SET;
    uint64_t key = key_in_set(set, node->page, d);
    if (node->depth > 0 && (key ^ node->prefix) >> (64 - node->depth) != 0)
        violation(
            w, set->order, place,
            "page %u at depth %u of the set whose root is at %#llx does not belong on that side",
            node->page, node->depth, (unsigned long long)set->at);
    return node->depth < 64;
}

static void check_set(struct walk *w, const struct set *set, uint64_t root)
{
    struct node stack[2 * 64 + 2];
    unsigned used = 0;
    if (root > UINT32_MAX)
        violation(w, set->membership, in_part(set->at, set->part), "root of a set is page %llu",
                  (unsigned long long)root);
    else if (root)
        stack[used++] = (struct node){0, (uint32_t)root, 0};
    while (used > 0) {
        struct node node = stack[--used];
        if (!check_node(w, set, &node))
            continue;
        const struct smf_page *d = smi_view_page(w->view, node.page);
        uint64_t right = node.prefix | 1ull << (63 - node.depth);
        if (d->right)
            stack[used++] = (struct node){right, d->right, node.depth + 1};
        if (d->left)
            stack[used++] = (struct node){node.prefix, d->left, node.depth + 1};
    }
}

/* Which spans no set led to. */
static void check_missing(struct walk *w)
{
    struct smi_span span = {0};
    while (smi_view_next_span(w->view, &span)) {
        unsigned flags = flags_of(w, span.first_page);
        uint64_t at = ref_of_page(span.first_page);
        if ((flags & IS_FREE) && !(flags & IN_SET))
            violation(w, "P3", in_part(at, PAGES), "free span of %u pages at page %u is in no set",
                      span.page_count, span.first_page);
        if ((flags & IS_SLAB) && span.page->free_slots > 0 && !(flags & IN_SET))
            violation(w, "C2", in_part(at, class_part(span.page)),
                      "slab at page %u has %u free slots and is in no set", span.first_page,
                      span.page->free_slots);
        if ((flags & IS_SLAB) && span.page->free_slots == 0 && (flags & IN_SET))
            violation(w, "C2", in_part(at, class_part(span.page)),
                      "slab at page %u has no free slot and is in a set", span.first_page);
    }
}

static void check_page_heap(struct walk *w)
{
    uint64_t at = w->view->header.areas.page_heap;
    const struct smf_page_heap *heap = smi_view_at(w->view, at, sizeof(*heap));
    if (!heap)
        return;
    for (uint32_t index = 0; index <= SMF_EXACT_SETS; index++) {
        struct set set = {.at = at + offsetof(struct smf_page_heap, set) + 8ull * index,
                          .part = PAGES, .membership = "P3", .order = "P6", .index = index};
        check_set(w, &set, heap->set[index]);
        int bit = (int)(heap->set_bits[index / 64] >> index % 64 & 1);
        /* the set of all longer spans is looked at without its bit */
        if (index < SMF_EXACT_SETS && bit != (heap->set[index] != 0))
            violation(
                w, "P7",
                in_part(at + offsetof(struct smf_page_heap, set_bits) + index / 64 * 8, PAGES),
                "bit of the set of spans of %u pages is %d, its root is page %llu", index + 1, bit,
                (unsigned long long)heap->set[index]);
    }
    if (heap->free_pages != w->free_pages)
        violation(w, "P8", in_part(at + offsetof(struct smf_page_heap, free_pages), PAGES),
                  "free_pages is %llu, the free spans have %llu",
                  (unsigned long long)heap->free_pages, (unsigned long long)w->free_pages);
}

/* ---- central heap --------------------------------------------------------------------------- */

/* Before the spans: slabs on their way are not looked into. */
static void note_pending(struct walk *w)
{
    for (uint32_t i = 0; i < central_count(w); i++) {
        const struct smf_central *central = central_in_view(w, i);
        if (!central || !central->pending)
            continue;
        w->view->in_flight++;
        const struct smf_page *d = smi_view_page(w->view, central->pending);
        if (smi_view_is_slab(w->view, d) && central_index(d) == i)
            w->flags[central->pending] |= PENDING;
        else
            violation(w, "C7",
                      in_parts(central_ref(w, i) + offsetof(struct smf_central, pending), CLASS + i,
                               PAGES),
                      "page %llu is pending in arena %u, class %u, and no slab of it begins there",
                      (unsigned long long)central->pending, i / SMF_CLASSES, i % SMF_CLASSES);
    }
}

static void check_central(struct walk *w, uint32_t i)
{
    const struct smf_central *central = central_in_view(w, i);
    uint64_t at = central_ref(w, i);
    const struct tally *tally = &w->tallies[i];
    if (!central)
        return;
    struct set set = {.at = at + offsetof(struct smf_central, set), .part = CLASS + i,
                      .membership = "C2", .order = "C8", .central = i, .of_slabs = 1};
    check_set(w, &set, central->set);
    if (central->slab_count != tally->slabs)
        violation(w, "C3", in_part(at + offsetof(struct smf_central, slab_count), CLASS + i),
                  "arena %u, class %u says %llu slabs and has %llu", i / SMF_CLASSES,
                  i % SMF_CLASSES, (unsigned long long)central->slab_count,
                  (unsigned long long)tally->slabs);
    if (central->free_slots != tally->free_slots)
        violation(w, "C3", in_part(at + offsetof(struct smf_central, free_slots), CLASS + i),
                  "arena %u, class %u says %llu free slots and has %llu", i / SMF_CLASSES,
                  i % SMF_CLASSES, (unsigned long long)central->free_slots,
                  (unsigned long long)tally->free_slots);
}

/* ---- thread slots --------------------------------------------------------------------------- */

/* A word that names a META span of `pages`, or of any length when that is 0, as its own, for a
 * purpose. */
static void name_span(struct walk *w, const char *invariant, struct place place, uint64_t ref,
                      uint32_t pages, enum smf_purpose purpose)
{
    const char *what = purpose == SMF_PURPOSE_SLOT    ? "the thread table"
                       : purpose == SMF_PURPOSE_LIMBO ? "a limbo"
                       : purpose == SMF_PURPOSE_LOG   ? "a log"
                                                      : "a stack";
    uint64_t page = ref >> SMF_PAGE_SHIFT;
    const struct smf_page *d = smi_view_page(w->view, page);
    place.parts[1] = PAGES;
    if (ref % SMF_PAGE != 0 || !(flags_of(w, page) & IS_META) || !d ||
        (pages != 0 && d->page_count != pages))
        violation(w, invariant, place,
                  "%s names %#llx, where no span of %u pages of the library begins", what,
                  (unsigned long long)ref, pages);
    else if (w->flags[page] & NAMED)
        violation(w, invariant, place,
                  "%s names the span at page %llu, which something else has, too", what,
                  (unsigned long long)page);
    else if (d->tag != purpose && !smi_format_is_older(&w->view->header))
        violation(w, "T3", place,
                  "%s names the span at page %llu, which says that it is for %u, expected %u", what,
                  (unsigned long long)page, d->tag, purpose);
    else
        w->flags[page] |= NAMED;
}

/* Its read section. */
static void check_section(struct walk *w, uint32_t i, uint64_t ref, const struct smf_thread *thread)
{
    uint64_t epoch = w->view->state.epoch;
    struct place place = in_part(ref + offsetof(struct smf_thread, section_epoch), THREAD + i);
    if (smi_format_is_older(&w->view->header))
        return;
    if (thread->section_epoch > epoch || thread->ousted >= epoch)
        violation(w, "B3", place,
                  "thread slot %u is in a read section of epoch %llu, ousted up to %llu, and the "
                  "epoch is %llu",
                  i, (unsigned long long)thread->section_epoch, (unsigned long long)thread->ousted,
                  (unsigned long long)epoch);
    if (!thread->owner && thread->section_epoch != 0)
        violation(w, "T5", place, "thread slot %u has no owner and is in a read section", i);
}

/* Its bags. */
static void check_limbo(struct walk *w, uint32_t i, uint64_t ref, const struct smf_thread *thread)
{
    struct place place = in_part(ref + offsetof(struct smf_thread, limbo), THREAD + i);
    if (smi_format_is_older(&w->view->header) || !thread->limbo)
        return;
    name_span(w, "B1", place, thread->limbo, SMF_LIMBO_PAGES, SMF_PURPOSE_LIMBO);
    const struct smf_bag *bags = smi_view_limbo(w->view, thread);
    for (uint32_t b = 0; bags && b < SMF_LIMBO_PAGES; b++) {
        const uint64_t *words = bags[b].refs, count = smi_bag_count(&bags[b]);
        for (uint64_t n = count; n < SMF_BAG; n++)
            if (words[n] != 0) {
                violation(w, "B1", place, "bag %u of thread slot %u has a word behind its first 0",
                          b, i);
                break;
            }
        if (bags[b].stamp > w->view->state.epoch)
            violation(w, "B1", place,
                      "bag %u of thread slot %u has the stamp %llu, and the epoch is %llu", b, i,
                      (unsigned long long)bags[b].stamp, (unsigned long long)w->view->state.epoch);
        if (count > 0 && !thread->owner)
            violation(w, "T5", place, "thread slot %u has no owner and retired blocks", i);
    }
}

static void check_stacks(struct walk *w, uint32_t i, uint64_t ref, const struct smf_thread *thread)
{
    for (unsigned k = 0; k < SMF_CLASSES; k++) {
        struct smi_view_stack stack;
        uint64_t at = ref + offsetof(struct smf_thread, stacks) + 8ull * k;
        struct place place = in_part(at, THREAD + i);
        const char *wrong = smi_view_read_stack(w->view, ref, thread, k, &stack);
        if (thread->owner && thread->stacks[k] == 0)
            wrong = "a stack of a slot in use names no array";
        if (!wrong && stack.has_gap)
            wrong = "an open stack has words behind its first 0";
        if (wrong)
            violation(w, "T1", place, "thread slot %u, class %u: %s", i, k, wrong);
        else if (stack.pages)
            name_span(w, "T3", place, stack.array - smi_span_offset(k), stack.pages,
                      SMF_PURPOSE_ARRAY);
        if (!thread->owner && (stack.count || stack.pages))
            violation(w, "T5", place, "thread slot %u has no owner and a stack of class %u", i, k);
    }
}

/* A block under construction, named by the word at `at`: allocated, but nobody's yet. */
static void check_built(struct walk *w, uint32_t i, uint64_t at, uint64_t ref)
{
    uint32_t slab, index;
    uint64_t page = ref >> SMF_PAGE_SHIFT;
    const struct smf_page *d = smi_view_page(w->view, page);
    if (ref == 0)
        return;
    if (smi_view_slot(w->view, ref, &slab, &index) == 0) {
        unsigned k = smi_view_page(w->view, slab)->size_class;
        if (!(smi_view_slab_bits(w->view, slab, k, index / 64) >> index % 64 & 1))
            return;
    } else if (d && d->kind == SMF_PAGE_LARGE && ref % SMF_PAGE == 0) {
        return;
    }
    violation(w, "T6", in_parts(at, THREAD + i, PAGES),
              "thread slot %u builds a block at %#llx, which is not allocated", i,
              (unsigned long long)ref);
}

static void check_spares(struct walk *w, uint32_t i, uint64_t ref, const struct smf_thread *thread)
{
    for (int n = 0; n < 2; n++) {
        uint64_t page = thread->spare[n] >> SMF_PAGE_SHIFT;
        if (!thread->spare[n])
            continue;
        if (thread->spare[n] % SMF_PAGE == 0 && (flags_of(w, page) & IS_META))
            w->flags[page] |= SPARED;
        else
            violation(w, "T3",
                      in_parts(ref + offsetof(struct smf_thread, spare) + 8ull * (unsigned)n,
                               THREAD + i, PAGES),
                      "spare of thread slot %u names %#llx, where no span of the library begins", i,
                      (unsigned long long)thread->spare[n]);
    }
}

/* The log of which thread slot is looked at. */
struct log_walk {
    struct walk *w;
    uint32_t thread;
};

static void check_logged(const struct smi_logged *logged, uint64_t at, void *arg)
{
    struct log_walk *l = arg;
    struct walk *w = l->w;
    uint64_t begin = w->view->header.areas.end, size = w->view->state.size, ref = logged->ref;
    uint64_t len = logged->type == SMF_ENTRY_ADD ? logged->len : 8;
    if (ref == 0 && logged->type != SMF_ENTRY_ADD) /* done, or not begun */
        return;
    if (ref < begin || ref >= size || len > size - ref ||
        (logged->type == SMF_ENTRY_STORE && ref % 8 != 0))
        violation(w, "X2", in_part(at, THREAD + l->thread),
                  "log of thread slot %u has an entry for %#llx, which is not in the heap",
                  l->thread, (unsigned long long)ref);
}

static void check_log(struct walk *w, uint32_t i, uint64_t ref, const struct smf_thread *thread)
{
    uint64_t phase = thread->tx_state & SMF_TX_PHASE, at;
    struct place place = in_part(ref + offsetof(struct smf_thread, tx_state), THREAD + i);
    if (smi_format_is_older(&w->view->header))
        return;
    if (!thread->owner && (thread->tx_log || phase != SMF_TX_IDLE))
        violation(w, "X3", place, "thread slot %u has no owner and a transaction or its log", i);
    if (phase > SMF_TX_COMMITTED || (phase != SMF_TX_IDLE && !thread->tx_log))
        violation(w, "X3", place,
                  "transaction of thread slot %u is in a phase that it cannot be in", i);
    if (!thread->tx_log)
        return;
    name_span(w, "X1", in_part(ref + offsetof(struct smf_thread, tx_log), THREAD + i),
              thread->tx_log, 0, SMF_PURPOSE_LOG);
    const struct smf_log *log = smi_view_log(w->view, thread);
    for (uint32_t c = 1; log && c < SMF_LOG_CHUNKS; c++)
        if (log->chunk[c])
            name_span(
                w, "X1",
                in_part(thread->tx_log + offsetof(struct smf_log, chunk) + 8ull * c, THREAD + i),
                log->chunk[c], 0, SMF_PURPOSE_LOG);
    if (log && log->used != 0 && phase == SMF_TX_IDLE)
        violation(w, "X3", place, "transaction of thread slot %u is idle and has entries", i);
    const char *wrong =
        smi_view_each_logged(w->view, thread, check_logged, &(struct log_walk){w, i}, &at);
    if (wrong)
        violation(w, "X2", in_part(at, THREAD + i), "log of thread slot %u: %s", i, wrong);
}

/* Is the entry of a process in use? Thread slots of one that is not would never be adopted. */
static int is_process(struct walk *w, uint64_t index)
{
    uint64_t at = w->view->header.areas.processes + index * sizeof(struct smf_process);
    const struct smf_process *process = smi_view_at(w->view, at, sizeof(*process));
    return !process || process->state != 0;
}

static void check_thread(struct walk *w, uint32_t i, uint64_t ref, const struct smf_thread *thread)
{
    struct place place = in_part(ref, THREAD + i);
    if (thread->owner > SMF_PROCESSES)
        violation(w, "T4", place, "thread slot %u belongs to process %llu of %u", i,
                  (unsigned long long)thread->owner - 1, SMF_PROCESSES);
    else if (thread->owner && !is_process(w, thread->owner - 1))
        violation(w, "T4", place, "thread slot %u belongs to process %llu, whose entry is free", i,
                  (unsigned long long)thread->owner - 1);
    if (thread->owner && w->view->state.mark == SMF_CLEAN)
        violation(w, "H3", in_parts(ref, THREAD + i, EVERYTHING),
                  "heap is marked clean and thread slot %u has an owner", i);
    if (!thread->owner &&
        (thread->link.op || thread->scratch || thread->building || thread->spare[0] ||
         thread->spare[1] || smi_view_keeps_any(w->view, thread)))
        violation(w, "T5", place, "thread slot %u has no owner and something in flight", i);
    w->owned_threads += thread->owner != 0;
    check_stacks(w, i, ref, thread);
    check_section(w, i, ref, thread);
    check_limbo(w, i, ref, thread);
    check_spares(w, i, ref, thread);
    check_log(w, i, ref, thread);
    check_built(w, i, ref + offsetof(struct smf_thread, scratch), thread->scratch);
    check_built(w, i, ref + offsetof(struct smf_thread, building), thread->building);
}

static void check_threads(struct walk *w)
{
    if (w->view->state.epoch - 1 >= SMF_EPOCH_MOST && !smi_format_is_older(&w->view->header))
        violation(w, "B3",
                  in_part(SMF_STATE_OFFSET + offsetof(struct smf_state, epoch), EVERYTHING),
                  "the epoch of read sections is %llu", (unsigned long long)w->view->state.epoch);
    for (uint32_t i = 0; i < SMF_THREADS; i++) {
        uint64_t at = w->view->header.areas.threads + 8ull * i, ref;
        const struct smf_thread *thread = smi_view_thread(w->view, i, &ref);
        if (!ref)
            continue;
        name_span(w, "T4", in_part(at, PAGES), ref, SMF_THREAD_PAGES, SMF_PURPOSE_SLOT);
        if (thread)
            check_thread(w, i, ref, thread);
    }
    for (uint64_t page = 0; page < w->page_limit; page++)
        if ((w->flags[page] & (IS_META | NAMED | SPARED)) == IS_META)
            violation(w, "T3", in_parts(ref_of_page(page), PAGES, THREADS),
                      "span of the library at page %llu is named by nothing",
                      (unsigned long long)page);
}

/* ---- cached slots --------------------------------------------------------------------------- */

static void check_retired(struct walk *w, const struct smi_cached *c)
{
    uint32_t slab, index;
    struct place place = in_part(c->ref, THREAD + c->thread);
    const struct smf_page *d = NULL;
    if (smi_view_slot(w->view, c->ref, &slab, &index) == 0 && (d = smi_view_page(w->view, slab))) {
        int is_free =
            (int)(smi_view_slab_bits(w->view, slab, d->size_class, index / 64) >> index % 64 & 1);
        place.parts[1] = class_part(d);
        if (d->arena < w->view->header.arena_count && !is_free) {
            w->result->blocks -= w->result->blocks > 0;
            return;
        }
    } else if (c->ref % SMF_PAGE == 0 && (d = smi_view_page(w->view, c->ref >> SMF_PAGE_SHIFT)) &&
               d->kind == SMF_PAGE_LARGE && d->side == 0) {
        w->result->blocks -= w->result->blocks > 0;
        return;
    }
    violation(w, "B2", place, "thread slot %u has retired %#llx, which is no block that is in use",
              c->thread, (unsigned long long)c->ref);
}

static void check_cached_slot(struct walk *w, const struct smi_cached *c)
{
    uint32_t slab, index;
    struct place place = in_part(c->ref, THREAD + c->thread);
    const struct smf_page *d = NULL;
    if (smi_view_slot(w->view, c->ref, &slab, &index) == 0)
        d = smi_view_page(w->view, slab);
    if (!d || d->size_class != c->size_class || d->arena == w->view->header.arena_count) {
        violation(w, "T2", place,
                  "thread slot %u has %#llx on a stack, which is no user's slot of class %u",
                  c->thread, (unsigned long long)c->ref, c->size_class);
        return;
    }
    if (smi_view_slab_bits(w->view, slab, d->size_class, index / 64) >> index % 64 & 1) {
        place.parts[1] = class_part(d);
        violation(w, "C4", place,
                  "slot %#llx is free in the central heap and on a stack of thread slot %u",
                  (unsigned long long)c->ref, c->thread);
    } else if (w->result->blocks > 0) {
        w->result->blocks--;
    }
}

static void check_cached(struct walk *w)
{
    const struct smi_cached *c = w->cached;
    w->result->cached_slots = w->cached_count;
    for (size_t i = 0; i < w->cached_count; i++) {
        w->result->cached_slots -= c[i].is_retired;
        if (i > 0 && c[i].ref == c[i - 1].ref)
            violation(w, "C4", in_parts(c[i].ref, THREAD + c[i].thread, THREAD + c[i - 1].thread),
                      "slot %#llx is on stacks of thread slots %u and %u",
                      (unsigned long long)c[i].ref, c[i - 1].thread, c[i].thread);
        else if (c[i].is_retired)
            check_retired(w, &c[i]);
        else
            check_cached_slot(w, &c[i]);
    }
}

/* ---- hardened heaps ------------------------------------------------------------------------- */

static void check_user_bits(struct walk *w, const struct smi_span *span, size_t *next)
{
    unsigned k = span->page->size_class;
    uint32_t slots = smi_classes[k].slots;
    uint64_t tags = (slots * sizeof(uint16_t) + 7) & ~7ull, free_bits = 0, user_bits = 0;
    const uint64_t *users = span->page->side % 8 ? NULL
                                                 : smi_view_at(w->view, span->page->side + tags,
                                                               bitmap_words(k) * sizeof(uint64_t));
    uint64_t start = ref_of_page((uint64_t)span->first_page + smi_classes[k].bitmap_pages);
    for (uint32_t i = 0; users && i < slots; i++) {
        if (i % 64 == 0) {
            free_bits = smi_view_slab_bits(w->view, span->first_page, k, i / 64);
            user_bits = users[i / 64];
        }
        uint64_t ref = start + (uint64_t)i * smi_classes[k].size;
        while (*next < w->cached_count && w->cached[*next].ref < ref)
            (*next)++;
        const struct smi_cached *cached =
            *next < w->cached_count && w->cached[*next].ref == ref ? &w->cached[*next] : NULL;
        int is_free = cached || (free_bits >> i % 64 & 1);
        int has_user = (int)(user_bits >> i % 64 & 1);
        if (is_free != has_user || (cached && cached->is_top))
            continue;
        if (!is_free && w->owned_threads > 0) /* its thread is giving it back */
            w->owned_threads--;
        else
            violation(w, "S2", in_part(ref, EVERYTHING), "slot %#llx is %s and its user bit is %d",
                      (unsigned long long)ref, is_free ? "free" : "used", has_user);
    }
}

static void check_hardened(struct walk *w)
{
    struct smi_span span = {0};
    size_t next = 0;
    if (!(w->view->header.mode & SMF_HEAP_HARDENED))
        return;
    while (smi_view_next_span(w->view, &span))
        if ((flags_of(w, span.first_page) & IS_SLAB) && span.page->side)
            check_user_bits(w, &span, &next);
}

/* ---- roots ---------------------------------------------------------------------------------- */

/* The class of the library's own slot at `ref` that is in use, or -1. */
static int library_slot(struct walk *w, uint64_t ref)
{
    uint32_t slab, index;
    if (smi_view_slot(w->view, ref, &slab, &index) < 0)
        return -1;
    const struct smf_page *d = smi_view_page(w->view, slab);
    if (d->arena != w->view->header.arena_count ||
        (smi_view_slab_bits(w->view, slab, d->size_class, index / 64) >> index % 64 & 1))
        return -1;
    return d->size_class;
}

static void check_root(struct walk *w, uint32_t bucket, uint64_t ref, const struct smf_root *root)
{
    struct place place = in_part(ref, ROOTS);
    int k = library_slot(w, ref);
    if (k >= 0 && smi_classes[k].size < sizeof(*root) + root->name_len + 1)
        violation(w, "R1", place, "root \"%s\" is longer than its block", (const char *)(root + 1));
    uint32_t hash = (uint32_t)smi_hash(root + 1, root->name_len);
    if (root->hash != hash)
        violation(w, "R4", place, "root \"%s\" has hash %08x, its name gives %08x",
                  (const char *)(root + 1), root->hash, hash);
    else if (hash % SMF_ROOT_BUCKETS != bucket)
        violation(w, "R1", place, "root \"%s\" is in bucket %u and belongs into %u",
                  (const char *)(root + 1), bucket, hash % SMF_ROOT_BUCKETS);
}

/* One chain; the refs go to `roots` and to the named blocks. */
static void check_bucket(struct walk *w, uint32_t bucket, uint64_t at, uint64_t ref,
                         struct list *roots)
{
    size_t start = roots->count;
    /* as in smi_view_each_root: a ring leads back to the mark */
    uint64_t mark = 0, steps = 0, limit = 1;
    while (ref) {
        const struct smf_root *root = smi_view_root(w->view, ref);
        if (!root) {
            violation(w, "R1", in_part(at, ROOTS), "bucket %u leads to %#llx, where no root is",
                      bucket, (unsigned long long)ref);
            return;
        }
        if (ref == mark) {
            violation(w, "R1", in_part(ref, ROOTS), "the chain of bucket %u runs in a ring",
                      bucket);
            roots->count = start; /* its members were seen more than once */
            return;
        }
        check_root(w, bucket, ref, root);
        append_ref(w, roots, ref, at);
        if (++steps == limit) {
            mark = ref;
            steps = 0;
            limit *= 2;
        }
        at = ref;
        ref = root->next;
    }
}

static const char *name_at(struct walk *w, uint64_t ref)
{
    const struct smf_root *root = smi_view_root(w->view, ref);
    return root ? (const char *)(root + 1) : "";
}

/* What the root at `at` names: while its record stands still, nobody binds it anew, and a block
 * that a program has is in no bitmap and no stack. */
static void check_target(struct walk *w, uint64_t at)
{
    const struct smf_root *root = smi_view_root(w->view, at);
    shmalloc_block block;
    if (!root || root->ref == 0 ||
        smi_view_find_block(w->view, w->cached, w->cached_count, root->ref, &block))
        return;
    violation(w, SMI_DANGLING, in_part(at, ROOTS),
              "root \"%s\" names %#llx, where no block begins that a program has; it was freed, or "
              "never was one",
              (const char *)(root + 1), (unsigned long long)root->ref);
}

static int by_name(const void *a, const void *b, void *arg)
{
    const struct named *x = a, *y = b;
    int order = strcmp(name_at(arg, x->ref), name_at(arg, y->ref));
    return order ? order : by_list_ref(a, b);
}

static void check_roots(struct walk *w)
{
    uint64_t at = w->view->header.areas.roots;
    const struct smf_roots *table = smi_view_at(w->view, at, sizeof(*table));
    struct list roots = {0};
    if (!table)
        return;
    for (uint32_t i = 0; i < SMF_ROOT_BUCKETS; i++)
        check_bucket(w, i, at + offsetof(struct smf_roots, bucket) + 8ull * i, table->bucket[i],
                     &roots);
    if (table->count != roots.count)
        violation(w, "R2", in_part(at + offsetof(struct smf_roots, count), ROOTS),
                  "count says %llu roots, the buckets have %zu", (unsigned long long)table->count,
                  roots.count);
    for (size_t i = 0; i < roots.count; i++)
        append_ref(w, &w->own, roots.at[i].ref, roots.at[i].by);
    if (table->scratch) {
        w->view->in_flight++;
        append_ref(w, &w->own, table->scratch, at + offsetof(struct smf_roots, scratch));
    }
    w->result->roots = roots.count;
    for (size_t i = 0; i < roots.count; i++)
        check_target(w, roots.at[i].ref);
    if (roots.count)
        qsort_r(roots.at, roots.count, sizeof(*roots.at), by_name, w);
    for (size_t i = 1; i < roots.count; i++)
        if (strcmp(name_at(w, roots.at[i - 1].ref), name_at(w, roots.at[i].ref)) == 0)
            violation(w, "R3", in_part(roots.at[i].ref, ROOTS), "two roots have the name \"%s\"",
                      name_at(w, roots.at[i].ref));
    free(roots.at);
}

/* ---- the library's own blocks --------------------------------------------------------------- */

static size_t side_bytes(const struct walk *w, unsigned k)
{
    size_t tags = (smi_classes[k].slots * sizeof(uint16_t) + 7) & ~(size_t)7;
    return tags +
           (w->view->header.mode & SMF_HEAP_HARDENED ? bitmap_words(k) * sizeof(uint64_t) : 0);
}

/* One block and who names it: a slab (`by` is its first page), or a root's predecessor. */
static void check_named(struct walk *w, const struct named *named)
{
    int k = library_slot(w, named->ref);
    const struct smf_page *slab = smi_view_page(w->view, named->by >> SMF_PAGE_SHIFT);
    int is_side = named->by % SMF_PAGE == 0 && slab && slab->kind == SMF_PAGE_SLAB &&
                  slab->side == named->ref;
    const char *invariant = is_side ? "S1" : "R1";
    struct place place = in_part(named->by, EVERYTHING);
    if (k < 0)
        violation(w, invariant, place, "%s at %#llx is no used block of the library's own",
                  is_side ? "side array" : "root record", (unsigned long long)named->ref);
    else if (is_side && smi_classes[k].size < side_bytes(w, slab->size_class))
        violation(w, invariant, place, "side array at %#llx has %u bytes, %zu are needed",
                  (unsigned long long)named->ref, smi_classes[k].size,
                  side_bytes(w, slab->size_class));
}

static void check_own_slab(struct walk *w, uint32_t page)
{
    unsigned k = smi_view_page(w->view, page)->size_class;
    uint64_t start = ref_of_page((uint64_t)page + smi_classes[k].bitmap_pages);
    for (uint32_t i = 0; i < smi_classes[k].slots; i++) {
        struct named key = {start + (uint64_t)i * smi_classes[k].size, 0};
        if (smi_view_slab_bits(w->view, page, k, i / 64) >> i % 64 & 1)
            continue;
        if (w->own.count == 0 ||
            !bsearch(&key, w->own.at, w->own.count, sizeof(key), by_list_ref))
            violation(w, "O1", in_part(key.ref, EVERYTHING),
                      "block of the library's own at %#llx is named by nothing",
                      (unsigned long long)key.ref);
    }
}

static void check_own(struct walk *w)
{
    if (w->own.count)
        qsort(w->own.at, w->own.count, sizeof(*w->own.at), by_list_ref);
    for (size_t i = 0; i < w->own.count; i++) {
        if (i > 0 && w->own.at[i].ref == w->own.at[i - 1].ref)
            violation(w, "O1", in_part(w->own.at[i].ref, EVERYTHING),
                      "block of the library's own at %#llx is named at %#llx and at %#llx",
                      (unsigned long long)w->own.at[i].ref, (unsigned long long)w->own.at[i - 1].by,
                      (unsigned long long)w->own.at[i].by);
        else
            check_named(w, &w->own.at[i]);
    }
    for (size_t i = 0; i < w->own_slabs.count; i++)
        check_own_slab(w, (uint32_t)w->own_slabs.at[i].ref);
}

/* ---- motion --------------------------------------------------------------------------------- */

#define PIECE (SMF_THREAD_PAGES * SMF_PAGE)

static uint64_t hash_now(struct walk *w, uint64_t ref, uint64_t len)
{
    uint64_t hash = 0;
    while (len > 0) {
        uint64_t part = len < PIECE ? len : PIECE;
        if (smi_view_read_now(w->view, ref, part, w->piece) < 0)
            return ~hash;
        hash = hash * 31 + smi_hash(w->piece, part);
        ref += part;
        len -= part;
    }
    return hash;
}

/* A thread slot with the used part of its arrays. */
static uint64_t hash_thread(struct walk *w, uint64_t ref)
{
    uint64_t hash = hash_now(w, ref, SMF_THREAD_PAGES * SMF_PAGE);
    uint64_t stacks[SMF_CLASSES], log;
    if (smi_view_read_now(w->view, ref + offsetof(struct smf_thread, stacks), sizeof(stacks),
                          stacks) < 0 ||
        smi_view_read_now(w->view, ref + offsetof(struct smf_thread, tx_log), sizeof(log), &log) <
            0)
        return hash;
    if (log != 0 && !smi_format_is_older(&w->view->header))
        hash = hash * 31 + hash_now(w, log, sizeof(struct smf_log));
    for (unsigned k = 0; k < SMF_CLASSES; k++) {
        uint64_t array = stacks[k] & ~(uint64_t)SMF_STACK_PAGES, count;
        if (!(stacks[k] & SMF_STACK_PAGES) ||
            smi_view_read_now(w->view, array, sizeof(count), &count) < 0)
            continue;
        uint64_t words = smi_stack_words(stacks[k], k); /* of an open one all, which is seldom
                                                           many */
        hash = hash * 31 + hash_now(w, array, 8 * (count < words ? count + 1 : words));
    }
    return hash;
}

/* Hashes of all parts as they are now. */
static void hash_parts(struct walk *w, uint64_t *hashes)
{
    const struct smf_areas *areas = &w->view->header.areas;
    hashes[PAGES] = hash_now(w, areas->page_heap, sizeof(struct smf_page_heap));
    hashes[ROOTS] = hash_now(w, areas->roots, sizeof(struct smf_roots));
    for (uint32_t i = 0; i < central_count(w); i++)
        hashes[CLASS + i] = hash_now(w, central_ref(w, i), sizeof(struct smf_central));
    if (smi_view_read_now(w->view, areas->threads, SMF_THREADS * sizeof(uint64_t), w->slots) < 0)
        return;
    for (uint32_t i = 0; i < SMF_THREADS; i++)
        hashes[THREAD + i] = w->slots[i] ? hash_thread(w, w->slots[i]) : 0;
}

/* Before settling: whose log will be undone? */
static void note_armed(struct walk *w)
{
    const struct smf_areas *areas = &w->view->header.areas;
    const uint64_t *pages = smi_view_at(w->view, areas->page_heap, sizeof(*pages));
    const uint64_t *roots = smi_view_at(w->view, areas->roots, sizeof(*roots));
    memset(w->armed, 0, PARTS);
    w->armed[PAGES] = pages && *pages;
    w->armed[ROOTS] = roots && *roots;
    for (uint32_t i = 0; i < central_count(w); i++) {
        const struct smf_central *central = central_in_view(w, i);
        w->armed[CLASS + i] = central && central->log_count;
    }
}

static int has_moved(const struct walk *w, uint32_t part)
{
    if (part == THREADS)
        return memcmp(w->before + THREAD, w->after + THREAD, SMF_THREADS * sizeof(uint64_t)) != 0;
    if (part == EVERYTHING)
        return memcmp(w->before, w->after, PARTS * sizeof(uint64_t)) != 0;
    return part != NOTHING && w->before[part] != w->after[part];
}

/* Was this look in vain? A log that was undone although its owner went on put old words among new
 * ones, anywhere. And a mapping is seen at the length that it had when the view was made. */
static int is_torn(const struct walk *w)
{
    for (uint32_t part = 0; part < THREAD; part++)
        if (w->armed[part] && has_moved(w, part))
            return 1;
    return w->view->mapping && w->view->state.size > w->view->file_size;
}

/* After a look at a live heap: what it did not show is dropped. The number of disagreements that
 * are still open, that is, neither dropped nor seen often enough. */
static size_t sift(struct walk *w, int torn)
{
    size_t kept = 0, open = 0;
    for (size_t i = 0; i < w->found_count; i++) {
        struct found f = w->found[i];
        if (!f.again) {
            w->result->left_out++;
            free(f.text);
            continue;
        }
        f.again = 0;
        if (!torn && !has_moved(w, f.parts[0]) && !has_moved(w, f.parts[1]))
            f.still++;
        open += f.still < 2;
        w->found[kept++] = f;
    }
    w->found_count = kept;
    return open;
}

/* ---- the walk ------------------------------------------------------------------------------- */

static void forget_walk(struct walk *w)
{
    free(w->flags);
    free(w->tallies);
    free(w->cached);
    free(w->own.at);
    free(w->own_slabs.at);
    w->flags = NULL;
    w->tallies = NULL;
    w->cached = NULL;
    w->own = w->own_slabs = (struct list){0};
    w->free_pages = 0;
    w->owned_threads = 0;
}

static int look_once(struct walk *w)
{
    struct smi_check_result *r = w->result;
    r->pages = r->slabs = r->blocks = r->free_runs = r->cached_slots = r->roots = 0;
    int rc = smi_view_settle(w->view, unsettled, w);
    if (rc < 0)
        return rc;
    check_directory(w);
    check_chunks_behind(w);
    w->flags = calloc(w->page_limit + 1, 1);
    w->tallies = calloc(central_count(w), sizeof(*w->tallies));
    rc = smi_view_cached(w->view, &w->cached, &w->cached_count);
    if (rc < 0 || !w->flags || !w->tallies)
        return -ENOMEM;
    note_pending(w);
    check_spans(w);
    check_page_heap(w);
    for (uint32_t i = 0; i < central_count(w); i++)
        check_central(w, i);
    check_missing(w);
    check_threads(w);
    check_cached(w);
    check_hardened(w);
    check_roots(w);
    check_own(w);
    check_state(w);
    rc = smi_check_structures ? smi_check_structures(w->view, of_structure, w) : 0;
    if (rc < 0)
        return rc;
    r->in_flight = w->view->in_flight;
    return w->failed ? -ENOMEM : -w->view->read_error;
}

/* The file's identity is not that of a heap (any more). */
static int refused_identity(struct walk *w, int code)
{
    if (code == SHMALLOC_ECORRUPT) {
        w->result->violations++;
        w->report("H1", 0, shmalloc_errmsg(), w->arg);
    }
    return code;
}

/* Look until everything found is dropped or seen twice while nothing about it moved. */
static int look_repeatedly(struct walk *w)
{
    struct smi_check_result *r = w->result;
    for (int intact = 0; r->walks < MAX_LOOKS && intact < MAX_INTACT;) {
        int rc = w->view->memory ? smi_view_reload(w->view) : 0;
        if (rc < 0)
            return refused_identity(w, rc);
        hash_parts(w, w->before);
        note_armed(w);
        w->first_look = r->walks == 0;
        rc = look_once(w);
        forget_walk(w);
        hash_parts(w, w->after);
        if (rc < 0)
            return rc;
        r->walks++;
        r->moving |= has_moved(w, EVERYTHING);
        int torn = is_torn(w);
        if (sift(w, torn) == 0)
            break;
        intact += !torn;
        smi_os_sleep(1000000ull << 2 * intact); /* 1, 4, 16 ms: let it come to rest */
    }
    for (size_t i = 0; i < w->found_count; i++) {
        if (w->found[i].still >= 2) {
            tell_violation(w, w->found[i].invariant, w->found[i].ref, w->found[i].text);
        } else {
            r->left_out++;
        }
    }
    return 0;
}

static int check_live(struct walk *w)
{
    w->before = calloc(PARTS, sizeof(uint64_t));
    w->after = calloc(PARTS, sizeof(uint64_t));
    w->armed = calloc(PARTS, 1);
    w->piece = malloc(PIECE);
    w->slots = calloc(SMF_THREADS, sizeof(uint64_t));
    int rc =
        w->before && w->after && w->armed && w->piece && w->slots ? look_repeatedly(w) : -ENOMEM;
    for (size_t i = 0; i < w->found_count; i++)
        free(w->found[i].text);
    free(w->found);
    free(w->before);
    free(w->after);
    free(w->armed);
    free(w->piece);
    free(w->slots);
    return rc;
}

static void report_nothing(const char *invariant, uint64_t ref, const char *text, void *arg)
{
    (void)invariant;
    (void)ref;
    (void)text;
    (void)arg;
}

void smi_note_finding(const char *invariant, uint64_t ref, const char *text, void *arg)
{
    struct smi_finding *finding = arg;
    if (strcmp(invariant, SMI_DANGLING) == 0)
        return;
    if (finding->count++ == 0)
        snprintf(finding->text, sizeof(finding->text), "%s at %#llx: %s", invariant,
                 (unsigned long long)ref, text);
}

int smi_check(struct smi_view *view, int live, smi_report_fn *report, void *arg,
              struct smi_check_result *result)
{
    struct walk w = {.view = view, .result = result, .report = report ? report : report_nothing,
                     .arg = arg, .live = live};
    memset(result, 0, sizeof(*result));
    int rc = smi_layout_validate(&view->header, &view->state, view->file_size, 1, view->path);
    if (rc < 0)
        return refused_identity(&w, rc);
    rc = live ? check_live(&w) : look_once(&w);
    if (!live)
        result->walks = 1;
    forget_walk(&w);
    if (rc > -4096 && rc < 0) /* an errno, which has no message yet */
        smi_error(rc, "%s: cannot check: %s", view->path, shmalloc_strerror(rc));
    return rc;
}

int smi_check_or_error(struct smi_view *view)
{
    struct smi_check_result result;
    struct smi_finding finding = {0};
    int rc = smi_check(view, 1, smi_note_finding, &finding, &result);
    return finding.count > 0 ? smi_error(SHMALLOC_ECORRUPT, "%s: %s", view->path, finding.text)
                             : rc;
}
