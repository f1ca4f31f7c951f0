/* SPDX-License-Identifier: MIT */
/*
 * repair_pages.c - what each page of a heap under repair is for.
 *
 * A span is said by its first descriptor and by its pages' words; a free one also by its last
 * descriptor. One whose witnesses agree stands. Between those that stand, gaps are filled by what
 * is left of the evidence:
 *
 *   - words that make a whole slab of two pages or more outvote its descriptor, and a descriptor
 *     outvotes words that make none; one word against one descriptor is decided by the classes'
 *     slab counts, or not at all;
 *   - a large block whose length cannot be, or that would swallow spans that stand, ends where the
 *     next begins;
 *   - a free span needs a descriptor and pages without kind, or a last page that says so;
 *   - pages that nothing speaks for belong to the large block before them, or become one of their
 *     own: allocated.
 *
 * A slab of which too little is left to be seen would become part of one block, and its slots could
 * not be given back or found any more. The slab counts of the classes tell: while one lacks a slab,
 * no guess about pages is good enough.
 */
#include "repair_plan.h"

#include <stdlib.h>
#include <string.h>

#include "format/sizeclass.h"

#define FACTS (SMF_WORD_ZERO | SMF_WORD_RESERVED)
#define UNKNOWN_ARENA 0xff

/* A piece whose witnesses contradict each other, and the other thing it may be: of kind NONE when
 * nobody knows. */
struct doubt {
    size_t piece;
    struct smi_piece rival;
};

struct tiling {
    struct smi_repair *r;
    struct doubt *doubts;
    size_t doubt_count;
    uint64_t next; /* the next span that stands, at or behind the page looked at; `end` when there
                      is none */
    uint64_t end;
};

/* ---- evidence ---- */

static uint16_t word_of(struct smi_repair *r, uint64_t page)
{
    return smi_view_word(&r->view, page) & (uint16_t)~FACTS;
}

/* The class that a word names as its slab's, if the page is number `i` of it; SMF_CLASSES when
 * none. */
static uint32_t class_in(uint16_t word, uint32_t i)
{
    uint32_t k = (word & SMF_WORD_KIND) - 1u;
    return k < SMF_CLASSES && (word & SMF_WORD_INDEX) >> SMF_WORD_INDEX_SHIFT == i ? k
                                                                                   : SMF_CLASSES;
}

/* Words from `page` on that say what a slab of class k has to say. */
static uint32_t words_for(struct smi_repair *r, uint64_t page, uint32_t k, uint64_t end)
{
    uint32_t n = smi_class_span_pages(k), agree = 0;
    for (uint32_t i = 0; i < n && page + i < end; i++)
        agree += class_in(word_of(r, page + i), i) == k;
    return agree;
}

static int is_own_word(uint16_t word)
{
    return (word & SMF_WORD_INTERNAL) != 0;
}

static int has_tail(struct smi_repair *r, uint64_t page, uint64_t count)
{
    const struct smf_page *tail = smi_view_page(&r->view, page + count - 1);
    return count > 1 && tail && tail->kind == SMF_PAGE_FREE_TAIL && tail->page_count == count;
}

static int slab_stands(struct smi_repair *r, uint64_t page, const struct smf_page *d, uint64_t end)
{
    if (!smi_view_is_slab(&r->view, d) || words_for(r, page, d->size_class, end) != d->page_count)
        return 0;
    for (uint32_t i = 0; i < d->page_count; i++)
        if (is_own_word(word_of(r, page + i)) != (d->arena == r->view.header.arena_count))
            return 0;
    return 1;
}

uint32_t smi_repair_stands(struct smi_repair *r, uint64_t page, uint64_t end)
{
    const struct smf_page *d = smi_view_page(&r->view, page);
    if (!d || d->page_count == 0 || d->page_count > end - page)
        return 0;
    uint16_t word = word_of(r, page);
    int stands = d->kind == SMF_PAGE_FREE
                     ? word == 0 && (d->page_count == 1 || has_tail(r, page, d->page_count))
                 : d->kind == SMF_PAGE_LARGE ? word == SMF_WORD_LARGE
                 : d->kind == SMF_PAGE_META  ? word == SMF_WORD_META
                                             : slab_stands(r, page, d, end);
    return stands ? d->page_count : 0;
}

/* Does anything say that a span begins at `page`? */
static int may_begin(struct smi_repair *r, uint64_t page, uint64_t end)
{
    const struct smf_page *d = smi_view_page(&r->view, page);
    uint16_t word = word_of(r, page);
    int kind = d ? d->kind : SMF_PAGE_NONE;
    int claims = kind == SMF_PAGE_FREE || kind == SMF_PAGE_SLAB || kind == SMF_PAGE_LARGE ||
                 kind == SMF_PAGE_META;
    return class_in(word, 0) < SMF_CLASSES || word == SMF_WORD_LARGE || word == SMF_WORD_META ||
           (claims && d->page_count > 0 && d->page_count <= end - page);
}

/* Pages that the thread table, or a stack of it, gives a span of the library at `page`; 0 when
 * nothing names it. */
static uint32_t named_length(struct smi_repair *r, uint64_t page)
{
    for (uint32_t i = 0; i < SMF_THREADS; i++) {
        uint64_t ref;
        const struct smf_thread *thread = smi_view_thread(&r->view, i, &ref);
        if (ref == smi_repair_ref(page))
            return SMF_THREAD_PAGES;
        for (uint32_t k = 0; thread && k < SMF_CLASSES; k++)
            if ((thread->stacks[k] & SMF_STACK_PAGES) &&
                thread->stacks[k] >> SMF_PAGE_SHIFT == page &&
                smi_view_stack_is_possible(&r->view, ref, thread->stacks[k], k))
                return thread->stacks[k] & SMF_STACK_PAGES;
    }
    return 0;
}

/* ---- pieces ---- */

static void add_piece(struct tiling *t, struct smi_piece piece)
{
    struct smi_pieces *list = &t->r->pieces;
    const struct smf_page *d = smi_view_page(&t->r->view, piece.page);
    if (list->count == list->room) {
        size_t room = 2 * list->room + 1024;
        struct smi_piece *more = realloc(list->at, room * sizeof(*more));
        if (!more) {
            t->r->failed = 1;
            return;
        }
        list->at = more;
        list->room = room;
    }
    piece.was_free =
        d && d->kind == SMF_PAGE_FREE && smi_repair_stands(t->r, piece.page, t->end) != 0;
    list->at[list->count++] = piece;
}

static struct smi_piece slab_piece(uint64_t page, uint32_t k, uint32_t arena)
{
    return (struct smi_piece){.page = (uint32_t)page,
                              .count = smi_class_span_pages(k),
                              .kind = SMF_PAGE_SLAB,
                              .size_class = (uint8_t)k,
                              .arena = (uint8_t)arena};
}

static struct smi_piece plain_piece(uint64_t page, uint64_t count, uint8_t kind)
{
    return (struct smi_piece){.page = (uint32_t)page, .count = (uint32_t)count, .kind = kind};
}

static void doubt_last(struct tiling *t, struct smi_piece rival)
{
    struct doubt *more = realloc(t->doubts, (t->doubt_count + 1) * sizeof(*more));
    if (!more || t->r->failed) {
        t->r->failed = 1;
        return;
    }
    t->doubts = more;
    t->doubts[t->doubt_count++] = (struct doubt){t->r->pieces.count - 1, rival};
}

/* ---- filling gaps ---- */

static void say_filled(struct tiling *t, const struct smi_piece *piece, const char *what)
{
    smi_repair_say(t->r, "P1", smi_repair_ref(piece->page), "%u pages from page %u are %s",
                   piece->count, piece->page, what);
}

/* The arena of a slab of class k whose words are believed: the descriptor's, if it says so of such
 * a slab. */
static uint32_t arena_for(struct smi_repair *r, const struct smf_page *d, uint32_t k, int own)
{
    uint32_t arenas = r->view.header.arena_count;
    return own                                                                   ? arenas
           : d->kind == SMF_PAGE_SLAB && d->size_class == k && d->arena < arenas ? d->arena
                                                                                 : UNKNOWN_ARENA;
}

/* The class of which most words from `page` on make a slab; SMF_CLASSES when there is none. */
static uint32_t class_of_words(struct smi_repair *r, uint64_t page, uint64_t end, uint32_t *agree)
{
    for (uint32_t i = 0; i < 32 && page + i < end; i++) {
        uint32_t k = class_in(word_of(r, page + i), i);
        if (k == SMF_CLASSES || smi_class_span_pages(k) > end - page)
            continue;
        *agree = words_for(r, page, k, end);
        if (2 * *agree > smi_class_span_pages(k))
            return k;
    }
    return SMF_CLASSES;
}

static uint32_t own_words(struct smi_repair *r, uint64_t page, uint32_t count)
{
    uint32_t own = 0;
    for (uint32_t i = 0; i < count; i++)
        own += is_own_word(word_of(r, page + i)) != 0;
    return own;
}

/* The class of a slab at `page` that has only its descriptor's kind and length and its first word's
 * class left. */
static uint32_t class_of_rest(struct smi_repair *r, uint64_t page, const struct smf_page *d,
                              uint64_t end)
{
    uint32_t k = (word_of(r, page) & SMF_WORD_KIND) - 1u;
    return d->kind == SMF_PAGE_SLAB && k < SMF_CLASSES &&
                   d->page_count == smi_class_span_pages(k) && d->page_count <= end - page
               ? k
               : SMF_CLASSES;
}

/* A slab at `page`, if anything speaks for one. */
static uint32_t fill_slab(struct tiling *t, uint64_t page, uint64_t end)
{
    struct smi_repair *r = t->r;
    const struct smf_page *d = smi_view_page(&r->view, page);
    uint32_t agree = 0, kw = class_of_words(r, page, end, &agree), kd = SMF_CLASSES,
             arenas = r->view.header.arena_count;
    uint16_t word = word_of(r, page);
    if (d->kind == SMF_PAGE_SLAB && d->size_class < SMF_CLASSES &&
        d->page_count == smi_class_span_pages(d->size_class) && d->page_count <= end - page)
        kd = d->size_class;
    if (kw == SMF_CLASSES && kd == SMF_CLASSES) {
        uint32_t k = class_of_rest(r, page, d, end);
        if (k == SMF_CLASSES)
            return 0;
        add_piece(t, slab_piece(page, k,
                                is_own_word(word)   ? arenas
                                : d->arena < arenas ? d->arena
                                                    : UNKNOWN_ARENA));
        doubt_last(t, plain_piece(page, 0, SMF_PAGE_NONE));
    /* the descriptor, unless one word objects */
    } else if (kw == SMF_CLASSES || (kd < SMF_CLASSES && kd != kw && agree == 1)) {
        add_piece(t, slab_piece(page, kd, d->arena <= arenas ? d->arena : UNKNOWN_ARENA));
        if (kw < SMF_CLASSES)
            doubt_last(t, slab_piece(page, kw, arena_for(r, d, kw, is_own_word(word))));
        else if (d->page_count == 1 && (word == SMF_WORD_LARGE || word == SMF_WORD_META))
            doubt_last(t, plain_piece(page, 1, SMF_PAGE_LARGE));
    } else {
        uint32_t count = smi_class_span_pages(kw), own = own_words(r, page, count);
        int is_own = 2 * own > count,
            contradicted = d->arena <= arenas && (d->arena == arenas) != is_own;
        if (kd == kw && contradicted && count == 1) {
            add_piece(t, slab_piece(page, kd, d->arena));
            doubt_last(t, slab_piece(page, kw, arena_for(r, d, kw, is_own)));
        } else {
            add_piece(t, slab_piece(page, kw, arena_for(r, d, kw, is_own)));
            if (kd == SMF_CLASSES && count == 1 &&
                (d->kind == SMF_PAGE_LARGE || d->kind == SMF_PAGE_META) && d->page_count > 0 &&
                d->page_count <= end - page)
                doubt_last(t, plain_piece(page, d->page_count, SMF_PAGE_LARGE));
        }
    }
    return r->failed ? (uint32_t)(end - page) : r->pieces.at[r->pieces.count - 1].count;
}

/* Pages from `page` to the next that may begin a span. */
static uint64_t to_next(struct smi_repair *r, uint64_t page, uint64_t end)
{
    uint64_t at = page + 1;
    while (at < end && !may_begin(r, at, end))
        at++;
    return at - page;
}

/* A length that a descriptor says, or may say: believed if something may begin behind it. */
static uint64_t length_at(struct smi_repair *r, uint64_t page, uint64_t said, uint64_t end)
{
    if (said > 0 && said <= end - page && (page + said == end || may_begin(r, page + said, end)))
        return said;
    return to_next(r, page, end);
}

static int is_free_gap(struct smi_repair *r, uint64_t page, uint64_t end)
{
    const struct smf_page *d = smi_view_page(&r->view, page);
    uint64_t count = to_next(r, page, end);
    const struct smf_page *tail = smi_view_page(&r->view, page + count - 1);
    uint16_t word = word_of(r, page);
    if (word == SMF_WORD_LARGE || word == SMF_WORD_META)
        return d->kind == SMF_PAGE_FREE && d->page_count <= end - page &&
               has_tail(r, page, d->page_count);
    return d->kind == SMF_PAGE_FREE ||
           (count > 1 && tail && tail->kind == SMF_PAGE_FREE_TAIL && tail->page_count >= count);
}

/* The first span of a gap. Returns its length. */
static uint64_t fill(struct tiling *t, uint64_t page, uint64_t end)
{
    struct smi_repair *r = t->r;
    const struct smf_page *d = smi_view_page(&r->view, page);
    uint16_t word = word_of(r, page);
    uint64_t count = length_at(r, page, d->page_count, end);
    struct smi_piece *last = r->pieces.count ? &r->pieces.at[r->pieces.count - 1] : NULL;
    int is_free = is_free_gap(r, page, end);
    if (!is_free || !has_tail(r, page, d->page_count)) {
        uint32_t slab = fill_slab(t, page, end);
        if (slab > 0) {
            if (!r->failed) {
                say_filled(t, &r->pieces.at[r->pieces.count - 1], "a slab");
                r->pieces.at[r->pieces.count - 1].guessed = 1;
            }
            return slab;
        }
    }
    struct smi_piece piece = plain_piece(page, count, SMF_PAGE_FREE);
    uint32_t named = word == SMF_WORD_META || d->kind == SMF_PAGE_META ? named_length(r, page) : 0;
    if (is_free) {
        piece.guessed = !has_tail(r, page, count);
        say_filled(t, &piece, "free");
    } else if (named > 0 && named <= end - page) {
        piece.count = named;
        piece.kind = SMF_PAGE_META;
        say_filled(t, &piece, "a span of the library");
    } else if (word == SMF_WORD_LARGE || d->kind == SMF_PAGE_LARGE || word == SMF_WORD_META ||
               d->kind == SMF_PAGE_META) {
        piece.kind = SMF_PAGE_LARGE;
        say_filled(t, &piece, "a large block");
    } else if (last && last->kind == SMF_PAGE_LARGE && last->page + last->count == page) {
        last->count += (uint32_t)count;
        last->guessed = 1;
        say_filled(t, &piece,
                   "the end of the large block before them: nothing else speaks for them");
        return count;
    } else {
        piece.kind = SMF_PAGE_LARGE;
        piece.guessed = 1;
        say_filled(t, &piece, "kept as a large block: nothing says that they are free");
    }
    add_piece(t, piece);
    return piece.count;
}

static void find_next(struct tiling *t, uint64_t page)
{
    for (t->next = page; t->next < t->end && !smi_repair_stands(t->r, t->next, t->end); t->next++)
        ;
}

/* A span that stands. One that would swallow another ends before it. */
static uint64_t take_standing(struct tiling *t, uint64_t page)
{
    struct smi_repair *r = t->r;
    const struct smf_page *d = smi_view_page(&r->view, page);
    uint64_t count = d->page_count;
    uint8_t is_cut = 0;
    find_next(t, page + 1);
    uint32_t named =
        d->kind == SMF_PAGE_META && t->next != page + count ? named_length(r, page) : 0;
    if (named > count && page + named <= t->end) /* its length is what is wrong */
        count = named;
    if (t->next < page + count) {
        count = t->next - page;
        is_cut = 1;
        smi_repair_say(r, "P1", smi_repair_ref(page),
                       "the span at page %llu ends after %llu pages, where the next begins",
                       (unsigned long long)page, (unsigned long long)count);
    }
    struct smi_piece piece = plain_piece(page, count, d->kind);
    piece.size_class = d->kind == SMF_PAGE_SLAB ? d->size_class : 0;
    piece.arena = d->kind == SMF_PAGE_SLAB ? d->arena : 0;
    piece.guessed = is_cut;
    add_piece(t, piece);
    return count;
}

static void tile_chunk(struct tiling *t, const struct smf_chunk *chunk)
{
    uint64_t page = smi_chunk_data_page(chunk, &t->r->view.header.areas);
    t->end = (uint64_t)chunk->first_page + chunk->page_count;
    find_next(t, page);
    while (page < t->end && !t->r->failed)
        page += page == t->next ? take_standing(t, page) : fill(t, page, t->next);
}

/* ---- doubts ---- */

/* How many slabs more a class says to have than were found without doubt. */
static int64_t lacks(struct tiling *t, const uint32_t *tally, const struct smi_piece *piece)
{
    struct smi_repair *r = t->r;
    uint32_t index = piece->arena * SMF_CLASSES + piece->size_class;
    if (piece->kind != SMF_PAGE_SLAB || piece->arena > r->view.header.arena_count)
        return 0;
    uint64_t said =
        smi_repair_word(r, smi_repair_central(r, index, offsetof(struct smf_central, slab_count)));
    return (int64_t)(said < UINT32_MAX ? said : UINT32_MAX) - tally[index];
}

/* A user's slab of unknown arena: whose class lacks one, or else the first's; each is as good. */
static void find_arena(struct tiling *t, const uint32_t *tally, struct smi_piece *piece)
{
    if (piece->kind != SMF_PAGE_SLAB || piece->arena != UNKNOWN_ARENA)
        return;
    for (piece->arena = 0; piece->arena < t->r->view.header.arena_count; piece->arena++)
        if (lacks(t, tally, piece) > 0)
            return;
    piece->arena = 0;
}

static void decide(struct tiling *t, uint32_t *tally, struct doubt *doubt)
{
    struct smi_piece *piece = &t->r->pieces.at[doubt->piece], *rival = &doubt->rival;
    find_arena(t, tally, piece);
    find_arena(t, tally, rival);
    int one = lacks(t, tally, piece) > 0, other = lacks(t, tally, rival) > 0;
    if (rival->kind == SMF_PAGE_LARGE && !one)
        other = 1;
    if (one == other || (rival->kind != SMF_PAGE_NONE && rival->count != piece->count))
        smi_repair_refuse(t->r, "P4", smi_repair_ref(piece->page),
                          "the words and the descriptor of the span at page %u contradict each "
                          "other, and nothing "
                          "else says which are right",
                          piece->page);
    else if (other)
        *piece = *rival;
    piece->guessed = 1;
    if (piece->kind == SMF_PAGE_SLAB)
        tally[piece->arena * SMF_CLASSES + piece->size_class]++;
}

/* Slabs of class k that the arenas of users, or the library's own, say to have more than there
 * are. */
static int64_t lacks_in_all(struct tiling *t, const uint32_t *tally, uint32_t k, int own)
{
    uint32_t arenas = t->r->view.header.arena_count;
    int64_t sum = 0;
    for (uint32_t arena = own ? arenas : 0; arena < arenas + (own != 0); arena++) {
        struct smi_piece piece = slab_piece(0, k, arena);
        sum += lacks(t, tally, &piece);
    }
    return sum;
}

/* A guess is that pages are no slab, or one of a class that has more of them than it says. */
static void look_for_lost_slabs(struct tiling *t, const uint32_t *tally)
{
    struct smi_repair *r = t->r;
    uint32_t arenas = r->view.header.arena_count, k = 0;
    while (k < 2 * SMF_CLASSES && lacks_in_all(t, tally, k / 2, k % 2) <= 0)
        k++;
    for (size_t i = 0; k < 2 * SMF_CLASSES && i < r->pieces.count; i++) {
        const struct smi_piece *piece = &r->pieces.at[i];
        if (piece->guessed &&
            (piece->kind != SMF_PAGE_SLAB ||
             lacks_in_all(t, tally, piece->size_class, piece->arena == arenas) < 0))
            smi_repair_refuse(r, "P4", smi_repair_ref(piece->page),
                              "class %u lacks a slab, and the %u pages from page %u, of which too "
                              "little is left to say "
                              "what they are, may be that",
                              k / 2, piece->count, piece->page);
    }
}

static void decide_doubts(struct tiling *t)
{
    struct smi_repair *r = t->r;
    uint32_t *tally = calloc(smi_repair_centrals(r) + SMF_CLASSES, sizeof(*tally));
    size_t next = 0;
    r->failed |= !tally;
    for (size_t i = 0; tally && i < r->pieces.count; i++) {
        const struct smi_piece *piece = &r->pieces.at[i];
        if (next < t->doubt_count && t->doubts[next].piece == i)
            next++;
        else if (piece->kind == SMF_PAGE_SLAB && piece->arena <= r->view.header.arena_count)
            tally[piece->arena * SMF_CLASSES + piece->size_class]++;
    }
    for (size_t i = 0; tally && i < t->doubt_count; i++)
        decide(t, tally, &t->doubts[i]);
    for (size_t i = 0; tally && i < r->pieces.count; i++)
        if (r->pieces.at[i].kind == SMF_PAGE_SLAB && r->pieces.at[i].arena == UNKNOWN_ARENA) {
            find_arena(t, tally, &r->pieces.at[i]);
            tally[r->pieces.at[i].arena * SMF_CLASSES + r->pieces.at[i].size_class]++;
        }
    if (tally)
        look_for_lost_slabs(t, tally);
    free(tally);
}

/* ---- the whole ---- */

struct smi_piece *smi_repair_piece(struct smi_repair *r, uint64_t page)
{
    size_t low = 0, high = r->pieces.count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        struct smi_piece *piece = &r->pieces.at[middle];
        if (page < piece->page)
            high = middle;
        else if (page - piece->page >= piece->count)
            low = middle + 1;
        else
            return piece;
    }
    return NULL;
}

void smi_mend_spans(struct smi_repair *r)
{
    struct tiling t = {.r = r};
    for (uint32_t i = 0; i < r->view.chunk_count && !r->failed; i++)
        tile_chunk(&t, &r->view.chunks[i]);
    if (!r->failed)
        decide_doubts(&t);
    free(t.doubts);
}

/* ---- words and descriptors ---- */

static uint64_t word_ref(struct smi_repair *r, const struct smf_chunk *chunk, uint64_t page)
{
    return smi_chunk_words_offset(chunk, &r->view.header.areas) +
           (page - chunk->first_page) * sizeof(uint16_t);
}

/* Kind bits of page `i` of a piece. SIDE is smi_mend_own's. */
static uint16_t kind_word(const struct smi_repair *r, const struct smi_piece *piece, uint32_t i)
{
    if (piece->kind == SMF_PAGE_SLAB)
        return (uint16_t)((1u + piece->size_class) | i << SMF_WORD_INDEX_SHIFT |
                          (piece->arena == r->view.header.arena_count ? SMF_WORD_INTERNAL : 0));
    if (i > 0 || piece->kind == SMF_PAGE_FREE)
        return 0;
    return piece->kind == SMF_PAGE_LARGE ? SMF_WORD_LARGE : SMF_WORD_META;
}

/* Facts of a page: those of one in use follow from that; one that becomes free is not known to be
 * zero; what the file lost is a hole. */
static uint16_t facts(const struct smi_repair *r, const struct smi_piece *piece, uint64_t page,
                      uint16_t word)
{
    if (smi_repair_ref(page + 1) > r->file_size)
        return SMF_WORD_ZERO;
    if (piece->kind != SMF_PAGE_FREE)
        return SMF_WORD_RESERVED;
    return word & (uint16_t)(piece->was_free ? FACTS : SMF_WORD_RESERVED);
}

static void note_unstored(struct smi_repair *r, uint64_t ref)
{
    struct smi_repair_word *last =
        r->unstored.count ? &r->unstored.at[r->unstored.count - 1] : NULL;
    if (last && last->ref + last->value == ref)
        last->value += SMF_PAGE;
    else
        smi_repair_note(r, &r->unstored, ref, SMF_PAGE);
}

static void mend_words(struct smi_repair *r, const struct smf_chunk *chunk,
                       const struct smi_piece *piece)
{
    uint32_t kinds = 0, stores = 0;
    for (uint32_t i = 0; i < piece->count; i++) {
        uint64_t page = (uint64_t)piece->page + i;
        uint16_t word = smi_view_word(&r->view, page);
        uint16_t keep = piece->kind == SMF_PAGE_SLAB ? SMF_WORD_SIDE & word : 0;
        uint16_t right = (uint16_t)(kind_word(r, piece, i) | keep | facts(r, piece, page, word));
        kinds += ((word ^ right) & (uint16_t)~FACTS) != 0;
        stores += ((word ^ right) & FACTS) != 0;
        if (piece->kind != SMF_PAGE_FREE && !(word & SMF_WORD_RESERVED))
            note_unstored(r, smi_repair_ref(page));
        if (word != right)
            smi_repair_put_part(r, SMI_TRUTHS, word_ref(r, chunk, page), sizeof(right), right);
    }
    if (kinds)
        smi_repair_say(r, "P4", smi_repair_ref(piece->page),
                       "%u page words of the span of %u pages at page %u say its kind", kinds,
                       piece->count, piece->page);
    if (stores && piece->kind != SMF_PAGE_FREE)
        smi_repair_say(
            r, "P5", smi_repair_ref(piece->page),
            "%u pages in use of the span at page %u are said to have storage and not to be zeros",
            stores, piece->page);
}

static uint64_t span_word(uint64_t count, uint64_t kind, uint64_t size_class, uint64_t arena)
{
    return count | kind << 32 | size_class << 40 | arena << 48;
}

static void mend_descriptors(struct smi_repair *r, const struct smi_piece *piece)
{
    const size_t second = offsetof(struct smf_page, page_count);
    uint32_t inside = 0;
    uint64_t at = smi_view_descriptor_ref(&r->view, piece->page);
    uint64_t right = span_word(piece->count, piece->kind, piece->size_class, piece->arena);
    if (smi_repair_word(r, at + second) != right) {
        smi_repair_say(r, "P1", smi_repair_ref(piece->page),
                       "the descriptor of page %u says what its span is", piece->page);
        smi_repair_put(r, SMI_TRUTHS, at + second, right);
    }
    for (uint32_t i = 1; i < piece->count; i++) {
        const struct smf_page *d = smi_view_page(&r->view, (uint64_t)piece->page + i);
        int tail = piece->kind == SMF_PAGE_FREE && i == piece->count - 1;
        if (!d || (tail ? d->kind == SMF_PAGE_FREE_TAIL && d->page_count == piece->count
                        : d->kind == SMF_PAGE_NONE))
            continue;
        inside++;
        smi_repair_put(r, SMI_DERIVED,
                       smi_view_descriptor_ref(&r->view, (uint64_t)piece->page + i) + second,
                       tail ? span_word(piece->count, SMF_PAGE_FREE_TAIL, 0, 0) : 0);
    }
    if (inside)
        smi_repair_say(r, "P1", smi_repair_ref(piece->page),
                       "%u descriptors inside the span of %u pages at page %u are set right",
                       inside, piece->count, piece->page);
}

static void mend_metadata_pages(struct smi_repair *r, const struct smf_chunk *chunk)
{
    uint64_t data = smi_chunk_data_page(chunk, &r->view.header.areas);
    for (uint64_t page = chunk->first_page; page < data; page++) {
        const struct smf_page *d = smi_view_descriptor(&r->view, page);
        int has_word = smi_view_word(&r->view, page) != 0, has_kind = d && d->kind != SMF_PAGE_NONE;
        if (has_word)
            smi_repair_put_part(r, SMI_DERIVED, word_ref(r, chunk, page), sizeof(uint16_t), 0);
        if (has_kind)
            smi_repair_put(
                r, SMI_DERIVED,
                smi_view_descriptor_ref(&r->view, page) + offsetof(struct smf_page, page_count), 0);
        if (has_word || has_kind)
            smi_repair_say(r, has_word ? "P4" : "P1", smi_repair_ref(page),
                           "page %llu, which holds metadata, is no span", (unsigned long long)page);
    }
}

/* Free spans that touch become one. */
static void merge(struct smi_repair *r)
{
    size_t kept = 0;
    uint32_t chunk = 0;
    for (size_t i = 0; i < r->pieces.count; i++) {
        struct smi_piece *piece = &r->pieces.at[i], *last = kept ? &r->pieces.at[kept - 1] : NULL;
        uint32_t was = chunk;
        while (chunk + 1 < r->view.chunk_count &&
               piece->page >= r->view.chunks[chunk + 1].first_page)
            chunk++;
        if (last && was == chunk && last->kind == SMF_PAGE_FREE && piece->kind == SMF_PAGE_FREE) {
            smi_repair_say(r, "P2", smi_repair_ref(piece->page),
                           "the free spans at pages %u and %u become one", last->page, piece->page);
            last->count += piece->count;
            last->was_free &= piece->was_free;
        } else {
            r->pieces.at[kept++] = *piece;
        }
    }
    r->pieces.count = kept;
}

/* Of a file that was cut, only free pages may be missing. */
static void look_for_lost(struct smi_repair *r, const struct smi_piece *piece)
{
    uint64_t end = smi_repair_ref((uint64_t)piece->page + piece->count);
    if (end > r->file_size && piece->kind != SMF_PAGE_FREE)
        smi_repair_refuse(r, "H1", smi_repair_ref(piece->page),
                          "the file was cut at %llu bytes, and %u pages from page %u, which are in "
                          "use, reach beyond; "
                          "what they held is lost: restore the file from a copy",
                          (unsigned long long)r->file_size, piece->count, piece->page);
}

void smi_mend_pages(struct smi_repair *r)
{
    uint32_t chunk = 0;
    merge(r);
    for (uint32_t i = 0; i < r->view.chunk_count; i++)
        mend_metadata_pages(r, &r->view.chunks[i]);
    for (size_t i = 0; i < r->pieces.count && !r->failed; i++) {
        const struct smi_piece *piece = &r->pieces.at[i];
        while (chunk + 1 < r->view.chunk_count &&
               piece->page >= r->view.chunks[chunk + 1].first_page)
            chunk++;
        look_for_lost(r, piece);
        mend_descriptors(r, piece);
        mend_words(r, &r->view.chunks[chunk], piece);
    }
}
