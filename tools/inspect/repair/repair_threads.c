/* SPDX-License-Identifier: MIT */
/*
 * repair_threads.c - thread slots and their stacks in a heap under repair.
 *
 * Nobody is attached, so every owner is dead, and the next process that attaches adopts what it
 * left: here it only has to be possible. What a stack can no longer tell, because its count, its
 * array or a ref in it is damaged, stays allocated. A slot that a stack and the central heap both
 * have stays in the stack.
 */
#include "repair_plan.h"

#include <stdlib.h>
#include <string.h>

#include "format/entry.h"
#include "format/sizeclass.h"

/* By piece: the thread slot that has this span of the library, + 1, and IS_LOG when it is a chunk
 * of its log; SPARE_ONLY when a `spare` alone names it. */
#define SPARE_ONLY UINT32_MAX
#define IS_LOG (1u << 30)
struct naming {
    struct smi_repair *r;
    uint32_t *by;
};

static uint64_t table_ref(const struct smi_repair *r, uint32_t i)
{
    return r->view.header.areas.threads + 8ull * i;
}

/* The piece of the library that begins at `ref`, with `pages` pages (0: any); NULL when there is
 * none. */
static struct smi_piece *span_at(struct smi_repair *r, uint64_t ref, uint32_t pages)
{
    struct smi_piece *piece =
        ref % SMF_PAGE == 0 ? smi_repair_piece(r, ref >> SMF_PAGE_SHIFT) : NULL;
    return piece && piece->kind == SMF_PAGE_META && smi_repair_ref(piece->page) == ref &&
                   (pages == 0 || piece->count == pages)
               ? piece
               : NULL;
}

static uint32_t *namer(struct naming *n, const struct smi_piece *piece)
{
    return &n->by[piece - n->r->pieces.at];
}

/* ---- the table ---- */

static void mend_entry(struct naming *n, uint32_t i)
{
    uint64_t ref = smi_repair_word(n->r, table_ref(n->r, i));
    const struct smi_piece *piece = span_at(n->r, ref, SMF_THREAD_PAGES);
    if (ref == 0)
        return;
    if (piece && *namer(n, piece) == 0) {
        *namer(n, piece) = i + 1;
        return;
    }
    smi_repair_say(n->r, "T4", table_ref(n->r, i),
                   "entry %u of the thread table names %#llx, %s: it is cleared", i,
                   (unsigned long long)ref,
                   piece ? "as another entry does" : "where no thread slot is");
    smi_repair_put(n->r, SMI_TRUTHS, table_ref(n->r, i), 0);
}

/* Is this span a thread slot? Most of its stacks then name their own inside arrays. */
static int looks_like_slot(struct smi_repair *r, const struct smi_piece *piece)
{
    uint64_t ref = smi_repair_ref(piece->page);
    const struct smf_thread *thread = smi_view_at(&r->view, ref, sizeof(*thread));
    uint32_t own = 0;
    for (uint32_t k = 0; thread && k < SMF_CLASSES; k++)
        own += thread->stacks[k] == smi_view_inside_array(&r->view, ref, k);
    return piece->count == SMF_THREAD_PAGES && 2 * own > SMF_CLASSES;
}

/* Thread slots that the table lost. */
static void find_lost_slots(struct naming *n)
{
    struct smi_repair *r = n->r;
    uint32_t i = 0;
    for (size_t p = 0; p < r->pieces.count; p++) {
        const struct smi_piece *piece = &r->pieces.at[p];
        if (piece->kind != SMF_PAGE_META || n->by[p] || !looks_like_slot(r, piece))
            continue;
        while (i < SMF_THREADS && smi_repair_word(r, table_ref(r, i)) != 0)
            i++;
        if (i == SMF_THREADS)
            return;
        smi_repair_say(r, "T4", table_ref(r, i),
                       "entry %u of the thread table names the thread slot at page %u again", i,
                       piece->page);
        smi_repair_put(r, SMI_TRUTHS, table_ref(r, i), smi_repair_ref(piece->page));
        smi_mend_link(r, i);
        n->by[p] = i + 1;
    }
}

/* ---- one slot ---- */

static int is_at_rest(struct smi_repair *r, uint64_t ref, const struct smf_thread *thread)
{
    for (uint32_t k = 0; k < SMF_CLASSES; k++) {
        struct smi_view_stack stack;
        if (smi_view_read_stack(&r->view, ref, thread, k, &stack) || stack.count || stack.pages)
            return 0;
    }
    if (!smi_format_is_older(&r->view.header) && (thread->limbo || thread->section_epoch))
        return 0;
    return !thread->link.op && !thread->scratch && !thread->building && !thread->spare[0] &&
           !thread->spare[1] && !smi_view_keeps_any(&r->view, thread) &&
           (smi_format_is_older(&r->view.header) ||
            (!thread->tx_log && (thread->tx_state & SMF_TX_PHASE) == SMF_TX_IDLE));
}

/* Whoever gives a thread slot up clears `tid` before `owner`: without both it is at rest, and what
 * it seems to hold is not its own any more. */
static void mend_owner(struct smi_repair *r, uint32_t i, uint64_t ref,
                       const struct smf_thread *thread)
{
    if (thread->owner > SMF_PROCESSES ||
        (thread->owner == 0 && thread->tid != 0 && !is_at_rest(r, ref, thread))) {
        smi_repair_say(
            r, thread->owner ? "T4" : "T5", ref,
            "thread slot %u, whose owner is lost, goes to a dead process: what it holds comes back",
            i);
        smi_repair_put(r, SMI_TRUTHS, ref + offsetof(struct smf_thread, owner), 1);
    }
    if (thread->owner == 0) {
        if (is_at_rest(r, ref, thread))
            return;
        smi_repair_say(r, "T5", ref, "thread slot %u, which nobody has, is empty", i);
        static const size_t words[] = {
            offsetof(struct smf_thread, scratch), offsetof(struct smf_thread, building),
            offsetof(struct smf_thread, spare), offsetof(struct smf_thread, spare) + 8};
        for (unsigned w = 0; w < sizeof(words) / sizeof(words[0]); w++)
            smi_repair_put(r, SMI_TRUTHS, ref + words[w], 0);
        for (unsigned w = 0; w < SMF_SPANS; w++)
            smi_repair_put(r, SMI_TRUTHS, ref + offsetof(struct smf_thread, spans) + 8ull * w, 0);
        smi_repair_put(r, SMI_TRUTHS, ref + offsetof(struct smf_thread, limbo), 0);
        smi_repair_put(r, SMI_TRUTHS, ref + offsetof(struct smf_thread, section_epoch), 0);
        return;
    }
    /* what a process leaves is looked for while its entry is in use */
    uint64_t entry =
        r->view.header.areas.processes + (thread->owner - 1) * sizeof(struct smf_process);
    if ((uint32_t)smi_repair_word(r, entry) == 0)
        smi_repair_put_part(r, SMI_TRUTHS, entry, 4, 1);
}

/* The stack uses its inside array; empty, unless that is where its refs have been all the time. */
static void reset_stack(struct smi_repair *r, uint32_t k, uint64_t ref,
                        const struct smf_thread *thread, int keep)
{
    uint64_t array = smi_view_inside_array(&r->view, ref, k);
    if (!keep)
        smi_repair_put(r, SMI_TRUTHS, array, 0);
    if (thread->stacks[k] != array)
        smi_repair_put(r, SMI_TRUTHS, ref + offsetof(struct smf_thread, stacks) + 8ull * k, array);
}

/* All that follows is about closed stacks; the next owner opens it. */
static void close_stack(struct smi_repair *r, uint32_t i, uint32_t k, uint64_t ref,
                        const struct smf_thread *thread)
{
    struct smi_view_stack stack;
    if (smi_view_read_stack(&r->view, ref, thread, k, &stack))
        return;
    if (stack.has_gap)
        smi_repair_say(r, "T1", stack.array + 8ull * (stack.count + 1),
                       "the stack of class %u of thread slot %u ends at its first 0, behind %u "
                       "refs: what lies behind that "
                       "stays allocated",
                       k, i, stack.count);
    smi_repair_put(r, SMI_TRUTHS, stack.array, stack.count);
}

static void mend_stack(struct naming *n, uint32_t i, uint32_t k, uint64_t ref,
                       const struct smf_thread *thread)
{
    struct smi_repair *r = n->r;
    uint64_t stack = thread->stacks[k], array = stack & ~(uint64_t)SMF_STACK_PAGES;
    uint64_t at = ref + offsetof(struct smf_thread, stacks) + 8ull * k;
    uint32_t pages = stack & SMF_STACK_PAGES;
    if (thread->owner == 0) {
        if (stack != 0 && (pages || array != smi_view_inside_array(&r->view, ref, k) ||
                           smi_repair_word(r, array) != 0))
            reset_stack(r, k, ref, thread, 0);
        return;
    }
    if (pages == 0) {
        uint32_t begin =
            smi_format_is_older(&r->view.header) ? SMF_THREAD_ARRAYS_2 : SMF_THREAD_ARRAYS;
        int inside = array >= ref + begin && array < ref + SMF_THREAD_PAGES * SMF_PAGE;
        if (array != smi_view_inside_array(&r->view, ref, k)) {
            smi_repair_say(r, "T1", at,
                           "the stack of class %u of thread slot %u uses its inside array%s", k, i,
                           inside ? "" : ", empty: what it held stays allocated");
            reset_stack(r, k, ref, thread, inside);
        }
    } else {
        const struct smi_piece *piece = smi_view_stack_is_possible(&r->view, ref, stack, k)
                                            ? span_at(r, array - smi_span_offset(k), pages)
                                            : NULL;
        if (piece && *namer(n, piece) == 0) {
            *namer(n, piece) = i + 1;
        } else {
            smi_repair_say(r, piece ? "T3" : "T1", at,
                           "the stack of class %u of thread slot %u begins anew: its array %s; "
                           "what it held stays allocated",
                           k, i, piece ? "is another's" : "is none");
            reset_stack(r, k, ref, thread, 0);
        }
    }
    array = thread->stacks[k] & ~(uint64_t)SMF_STACK_PAGES;
    if (smi_repair_word(r, array) == SMF_OPEN)
        close_stack(r, i, k, ref, thread);
    if (smi_repair_word(r, array) >= smi_stack_words(thread->stacks[k], k)) {
        smi_repair_say(r, "T1", at,
                       "the stack of class %u of thread slot %u, whose count of %llu is not "
                       "possible, is empty: "
                       "what it held stays allocated",
                       k, i, (unsigned long long)smi_repair_word(r, array));
        smi_repair_put(r, SMI_TRUTHS, array, 0);
    }
}

/* What it retired waits for whoever adopts it. */
static void mend_limbo(struct naming *n, uint32_t i, uint64_t ref, const struct smf_thread *thread)
{
    const struct smi_piece *piece = span_at(n->r, thread->limbo, SMF_LIMBO_PAGES);
    if (thread->limbo == 0)
        return;
    if (piece && *namer(n, piece) == 0) {
        *namer(n, piece) = i + 1;
        return;
    }
    smi_repair_say(n->r, "B1", ref + offsetof(struct smf_thread, limbo),
                   "thread slot %u has no limbo: %#llx is %s; what it had retired stays allocated",
                   i, (unsigned long long)thread->limbo, piece ? "another's" : "none");
    smi_repair_put(n->r, SMI_TRUTHS, ref + offsetof(struct smf_thread, limbo), 0);
}

/* All sections are over, because nobody is attached. */
static void mend_section(struct smi_repair *r, uint32_t i, uint64_t ref,
                         const struct smf_thread *thread)
{
    const uint64_t epoch = smi_repair_word(r, SMF_STATE_OFFSET + offsetof(struct smf_state, epoch));
    if (thread->section_epoch <= epoch && thread->ousted < epoch)
        return;
    smi_repair_say(r, "B3", ref + offsetof(struct smf_thread, section_epoch),
                   "thread slot %u is in no read section", i);
    smi_repair_put(r, SMI_TRUTHS, ref + offsetof(struct smf_thread, section_epoch), 0);
    smi_repair_put(r, SMI_TRUTHS, ref + offsetof(struct smf_thread, ousted), 0);
}

static void mend_epoch(struct smi_repair *r)
{
    const uint64_t at = SMF_STATE_OFFSET + offsetof(struct smf_state, epoch);
    if (smi_repair_word(r, at) - 1 < SMF_EPOCH_MOST)
        return;
    smi_repair_say(r, "B3", at, "the epoch of read sections is 1 again");
    smi_repair_put(r, SMI_TRUTHS, at, 1);
}

/* Spares that nothing names are given back at adoption: they must be spans of the library, and this
 * slot's. */
static void mend_spares(struct naming *n, uint32_t i, uint64_t ref, const struct smf_thread *thread)
{
    for (uint32_t s = 0; s < 2; s++) {
        uint64_t at = ref + offsetof(struct smf_thread, spare) + 8ull * s;
        const struct smi_piece *piece = span_at(n->r, thread->spare[s], 0);
        if (thread->spare[s] == 0)
            continue;
        if (piece && *namer(n, piece) == 0) {
            *namer(n, piece) = SPARE_ONLY;
        } else if (!piece || *namer(n, piece) != i + 1 || thread->spare[s] == ref) {
            smi_repair_say(
                n->r, "T3", at,
                "a spare of thread slot %u names %#llx, which is not its own: it is cleared", i,
                (unsigned long long)thread->spare[s]);
            smi_repair_put(n->r, SMI_TRUTHS, at, 0);
        }
    }
}

/* ---- logs of transactions ---- */

struct log_walk {
    struct smi_repair *r;
    int is_wrong;
};

static void look_at_logged(const struct smi_logged *logged, uint64_t at, void *arg)
{
    struct log_walk *l = arg;
    const struct smf_state *state = &l->r->view.state;
    uint64_t len = logged->type == SMF_ENTRY_ADD ? logged->len : 8,
             begin = l->r->view.header.areas.end;
    (void)at;
    if (logged->ref == 0 && logged->type != SMF_ENTRY_ADD)
        return;
    l->is_wrong |= logged->ref < begin || logged->ref >= state->size ||
                   len > state->size - logged->ref ||
                   (logged->type == SMF_ENTRY_STORE && logged->ref % 8 != 0);
}

/* A span that the word at `at` names as a chunk of the log of thread slot `i`: 1 when it is one. */
static int mend_chunk(struct naming *n, uint32_t i, uint64_t ref)
{
    const struct smi_piece *piece = span_at(n->r, ref, 0);
    if (!piece || *namer(n, piece) != 0)
        return 0;
    *namer(n, piece) = (i + 1) | IS_LOG;
    uint64_t at =
        smi_view_descriptor_ref(&n->r->view, piece->page) + offsetof(struct smf_page, tag);
    if (smi_view_page(&n->r->view, piece->page)->tag != SMF_PURPOSE_LOG) {
        smi_repair_say(n->r, "T3", ref, "the span of the library at page %u says what it is for",
                       piece->page);
        smi_repair_put_part(n->r, SMI_TRUTHS, at, sizeof(uint16_t), SMF_PURPOSE_LOG);
    }
    return 1;
}

/* Why the transaction can be neither rolled back nor finished; NULL when it can, or there is
 * none. */
static const char *fault_of_entries(struct smi_repair *r, const struct smf_thread *thread)
{
    struct log_walk l = {r, 0};
    uint64_t at, phase = thread->tx_state & SMF_TX_PHASE;
    const struct smf_log *log = smi_view_log(&r->view, thread);
    const char *wrong = smi_view_each_logged(&r->view, thread, look_at_logged, &l, &at);
    if (phase > SMF_TX_COMMITTED)
        return "is in no phase";
    if (r->was_clean && phase != SMF_TX_IDLE)
        return "is open in a heap that was closed in order";
    if (phase == SMF_TX_IDLE && log && log->used != 0)
        return "is over and has entries";
    return wrong ? wrong : l.is_wrong ? "has an entry for what is not in the heap" : NULL;
}

/* What cannot be rolled back stays as it is, and blocks that it took or was to free stay
 * allocated. */
static void discard(struct smi_repair *r, uint32_t i, uint64_t ref, const struct smf_thread *thread,
                    const char *why)
{
    smi_repair_say(
        r, "X2", ref + offsetof(struct smf_thread, tx_state),
        "the transaction of thread slot %u is forgotten, because it %s: what it changed stays", i,
        why);
    if (smi_view_log(&r->view, thread))
        smi_repair_put(r, SMI_TRUTHS, thread->tx_log + offsetof(struct smf_log, used), 0);
    smi_repair_put(r, SMI_TRUTHS, ref + offsetof(struct smf_thread, tx_state),
                   thread->tx_state & ~SMF_TX_PHASE);
}

static void mend_log(struct naming *n, uint32_t i, uint64_t ref, const struct smf_thread *thread)
{
    struct smi_repair *r = n->r;
    uint64_t at = ref + offsetof(struct smf_thread, tx_log);
    const char *why = NULL;
    if (thread->tx_log != 0 && (!thread->owner || !mend_chunk(n, i, thread->tx_log))) {
        smi_repair_say(r, thread->owner ? "X1" : "X3", at,
                       "thread slot %u has no log of transactions any more: it %s", i,
                       thread->owner ? "names none" : "has no owner");
        smi_repair_put(r, SMI_TRUTHS, at, 0);
    }
    const struct smf_log *log = smi_view_log(&r->view, thread);
    for (uint32_t c = 1; log && c < SMF_LOG_CHUNKS; c++) {
        uint64_t chunk_at = thread->tx_log + offsetof(struct smf_log, chunk) + 8ull * c;
        if (log->chunk[c] == 0 || mend_chunk(n, i, log->chunk[c]))
            continue;
        smi_repair_say(r, "X1", chunk_at,
                       "chunk %u of the log of thread slot %u is none: it is cleared", c, i);
        smi_repair_put(r, SMI_TRUTHS, chunk_at, 0);
    }
    why = thread->tx_log == 0 && (thread->tx_state & SMF_TX_PHASE) != SMF_TX_IDLE
              ? "has no log"
              : fault_of_entries(r, thread);
    if (why)
        discard(r, i, ref, thread, why);
}

/* ---- spans of the library ---- */

/* What a span of the library is for follows from what names it. */
static void mend_purposes(struct naming *n)
{
    struct smi_repair *r = n->r;
    for (size_t p = 0; p < r->pieces.count; p++) {
        const struct smi_piece *piece = &r->pieces.at[p];
        const struct smf_page *d = smi_view_page(&r->view, piece->page);
        if (piece->kind != SMF_PAGE_META || n->by[p] == 0 || n->by[p] == SPARE_ONLY ||
            (n->by[p] & IS_LOG) || !d)
            continue;
        uint64_t slot, ref = smi_repair_ref(piece->page);
        const struct smf_thread *thread = smi_view_thread(&r->view, n->by[p] - 1, &slot);
        uint16_t purpose = slot == ref                      ? SMF_PURPOSE_SLOT
                           : thread && thread->limbo == ref ? SMF_PURPOSE_LIMBO
                                                            : SMF_PURPOSE_ARRAY;
        if (d->tag == purpose)
            continue;
        smi_repair_say(r, "T3", smi_repair_ref(piece->page),
                       "the span of the library at page %u says what it is for", piece->page);
        smi_repair_put_part(r, SMI_TRUTHS,
                            smi_view_descriptor_ref(&r->view, piece->page) +
                                offsetof(struct smf_page, tag),
                            sizeof(d->tag), purpose);
    }
}

static void free_unnamed(struct naming *n)
{
    struct smi_repair *r = n->r;
    for (size_t p = 0; p < r->pieces.count; p++) {
        struct smi_piece *piece = &r->pieces.at[p];
        if (piece->kind != SMF_PAGE_META || n->by[p])
            continue;
        smi_repair_say(r, "T3", smi_repair_ref(piece->page),
                       "the span of the library at page %u, which nothing names, becomes free",
                       piece->page);
        piece->kind = SMF_PAGE_FREE;
    }
}

void smi_mend_thread_table(struct smi_repair *r)
{
    struct naming n = {r, calloc(r->pieces.count + 1, sizeof(uint32_t))};
    uint64_t ref;
    r->failed |= !n.by;
    if (r->failed) {
        free(n.by);
        return;
    }
    for (uint32_t i = 0; i < SMF_THREADS; i++)
        mend_entry(&n, i);
    find_lost_slots(&n);
    if (!smi_format_is_older(&r->view.header))
        mend_epoch(r);
    for (uint32_t i = 0; i < SMF_THREADS; i++) {
        const struct smf_thread *thread = smi_view_thread(&r->view, i, &ref);
        if (!thread)
            continue;
        mend_owner(r, i, ref, thread);
        for (uint32_t k = 0; k < SMF_CLASSES; k++)
            mend_stack(&n, i, k, ref, thread);
        if (!smi_format_is_older(&r->view.header)) {
            mend_section(r, i, ref, thread);
            mend_limbo(&n, i, ref, thread);
        }
    }
    for (uint32_t i = 0; i < SMF_THREADS; i++) {
        const struct smf_thread *thread = smi_view_thread(&r->view, i, &ref);
        if (thread && !smi_format_is_older(&r->view.header))
            mend_log(&n, i, ref, thread);
        if (thread)
            mend_spares(&n, i, ref, thread);
    }
    if (!smi_format_is_older(&r->view.header)) /* which does not say what they are for */
        mend_purposes(&n);
    free_unnamed(&n);
    free(n.by);
}

/* ---- cached slots ---- */

/* Take entry `e` out of a stack; the order of the others, of which the last is the next to go,
 * stays. */
static void drop(struct smi_repair *r, const struct smi_view_stack *stack, uint32_t e)
{
    uint64_t count = smi_repair_word(r, stack->array);
    for (uint64_t at = e + 1ull; at < count; at++) /* kill here: one is there twice, of which one
                                                      goes */
        smi_repair_put(r, SMI_TRUTHS, stack->array + 8 * at,
                       smi_repair_word(r, stack->array + 8 * (at + 1)));
    smi_repair_put(r, SMI_TRUTHS, stack->array, count - 1);
}

static int is_slot_of(struct smi_repair *r, uint64_t ref, uint32_t k)
{
    uint32_t slab, index;
    if (smi_view_slot(&r->view, ref, &slab, &index) < 0)
        return 0;
    const struct smf_page *d = smi_view_page(&r->view, slab);
    return d->size_class == k && d->arena < r->view.header.arena_count;
}

static void drop_impossible(struct smi_repair *r, uint32_t i, uint64_t ref,
                            const struct smf_thread *thread)
{
    for (uint32_t k = 0; k < SMF_CLASSES; k++) {
        struct smi_view_stack stack;
        uint32_t dropped = 0;
        uint64_t first = 0;
        if (smi_view_read_stack(&r->view, ref, thread, k, &stack))
            continue;
        for (uint32_t e = stack.count; e-- > 0;) {
            if (is_slot_of(r, stack.slots[e], k))
                continue;
            first = stack.slots[e];
            dropped++;
            drop(r, &stack, e);
        }
        if (dropped)
            smi_repair_say(
                r, "T2", first,
                "the stack of class %u of thread slot %u drops %u refs that are no slots of it", k,
                i, dropped);
    }
}

/* Take word `e` of `count` out of the bag at `bag`. */
static void drop_retired(struct smi_repair *r, uint64_t bag, uint64_t e, uint64_t count)
{
    const uint64_t refs = bag + offsetof(struct smf_bag, refs);
    for (; e + 1 < count; e++) /* kill here: one is there twice, of which one goes */
        smi_repair_put(r, SMI_TRUTHS, refs + 8 * e, smi_repair_word(r, refs + 8 * (e + 1)));
    smi_repair_put(r, SMI_TRUTHS, refs + 8 * e, 0);
}

static int may_be_retired(struct smi_repair *r, uint64_t ref)
{
    uint32_t slab, index;
    const struct smi_piece *piece = smi_repair_piece(r, ref >> SMF_PAGE_SHIFT);
    if (smi_view_slot(&r->view, ref, &slab, &index) == 0)
        return smi_view_page(&r->view, slab)->arena < r->view.header.arena_count;
    return piece && piece->kind == SMF_PAGE_LARGE && smi_repair_ref(piece->page) == ref;
}

/* A bag ends at its first 0; what is no block leaves it. */
static void mend_bags(struct smi_repair *r, uint32_t i, const struct smf_thread *thread)
{
    const struct smf_bag *bags = smi_view_limbo(&r->view, thread);
    uint64_t epoch = smi_repair_word(r, SMF_STATE_OFFSET + offsetof(struct smf_state, epoch));
    for (uint32_t b = 0; bags && b < SMF_LIMBO_PAGES; b++) {
        uint64_t bag = thread->limbo + b * SMF_PAGE, count = smi_bag_count(&bags[b]), dropped = 0;
        const uint64_t *words = bags[b].refs;
        for (uint64_t e = count; e < SMF_BAG; e++) {
            if (words[e] == 0)
                continue;
            smi_repair_put(r, SMI_TRUTHS, bag + offsetof(struct smf_bag, refs) + 8 * e, 0);
            dropped++;
        }
        for (uint64_t e = count; e-- > 0;) {
            if (may_be_retired(r, words[e]))
                continue;
            drop_retired(r, bag, e, count--);
            dropped++;
        }
        if (dropped)
            smi_repair_say(r, "B2", bag,
                           "bag %u of thread slot %u drops %llu words that are no retired blocks",
                           b, i, (unsigned long long)dropped);
        if (bags[b].stamp > epoch)
            smi_repair_put(r, SMI_TRUTHS, bag + offsetof(struct smf_bag, stamp), epoch);
    }
}

void smi_repair_drop_cached(struct smi_repair *r, const struct smi_cached *c)
{
    uint64_t ref;
    struct smi_view_stack stack;
    const struct smf_thread *thread = smi_view_thread(&r->view, c->thread, &ref);
    const struct smf_bag *bags = c->is_retired && thread ? smi_view_limbo(&r->view, thread) : NULL;
    for (uint64_t b = 0, count; bags && b < SMF_LIMBO_PAGES; b++) {
        count = smi_bag_count(&bags[b]);
        for (uint64_t e = count; e-- > 0;)
            if (bags[b].refs[e] == c->ref) {
                drop_retired(r, thread->limbo + b * SMF_PAGE, e, count);
                return;
            }
    }
    if (c->is_retired)
        return;
    if (!thread || smi_view_read_stack(&r->view, ref, thread, c->size_class, &stack))
        return;
    for (uint32_t e = stack.count; e-- > 0;)
        if (stack.slots[e] == c->ref) {
            drop(r, &stack, e);
            return;
        }
}

static void mend_cached(struct smi_repair *r, const struct smi_cached *c, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint32_t slab, index;
        if (i > 0 && c[i].ref == c[i - 1].ref) {
            smi_repair_say(r, "C4", c[i].ref, "slot %#llx, which is on stacks twice, stays on one",
                           (unsigned long long)c[i].ref);
            smi_repair_drop_cached(r, &c[i]);
        } else if (smi_view_slot(&r->view, c[i].ref, &slab, &index) == 0 &&
                   smi_repair_bit(r, slab, index)) {
            smi_repair_say(r, "C4", c[i].ref,
                           "slot %#llx, which is on a stack, is not free in the central heap",
                           (unsigned long long)c[i].ref);
            smi_repair_put_bit(r, SMI_TRUTHS, slab, index, 0);
        }
    }
}

/* A block under construction that is none is forgotten. */
static void mend_built(struct smi_repair *r, uint32_t i, uint64_t at)
{
    uint32_t slab, index;
    uint64_t ref = smi_repair_word(r, at);
    const struct smi_piece *piece = smi_repair_piece(r, ref >> SMF_PAGE_SHIFT);
    int is_block =
        smi_view_slot(&r->view, ref, &slab, &index) == 0
            ? !smi_repair_bit(r, slab, index)
            : piece && piece->kind == SMF_PAGE_LARGE && smi_repair_ref(piece->page) == ref;
    if (ref == 0 || is_block)
        return;
    smi_repair_say(r, "T6", at, "thread slot %u builds nothing: %#llx is no allocated block", i,
                   (unsigned long long)ref);
    smi_repair_put(r, SMI_TRUTHS, at, 0);
}

/* What a thread slot keeps is given back when it is adopted: so the mark must name it. */
static void mend_marks(struct smi_repair *r)
{
    for (size_t p = 0; p < r->pieces.count; p++) {
        const struct smi_piece *piece = &r->pieces.at[p];
        uint64_t ref = smi_repair_ref(piece->page),
                 side = smi_view_descriptor_ref(&r->view, piece->page) +
                        offsetof(struct smf_page, side);
        if (piece->kind != SMF_PAGE_LARGE || smi_repair_word(r, side) == 0 ||
            smi_view_is_kept(&r->view, ref, piece->count, smi_repair_word(r, side)))
            continue;
        smi_repair_say(r, "K1", ref,
                       "the large block at page %u, which no thread slot keeps, stays allocated",
                       piece->page);
        smi_repair_put(r, SMI_TRUTHS, side, 0);
    }
}

void smi_mend_stacks(struct smi_repair *r)
{
    struct smi_cached *cached = NULL;
    size_t count = 0;
    for (uint32_t i = 0; i < SMF_THREADS; i++) {
        uint64_t ref;
        const struct smf_thread *thread = smi_view_thread(&r->view, i, &ref);
        if (!thread || !thread->owner)
            continue;
        drop_impossible(r, i, ref, thread);
        mend_bags(r, i, thread);
        mend_built(r, i, ref + offsetof(struct smf_thread, scratch));
        mend_built(r, i, ref + offsetof(struct smf_thread, building));
    }
    r->failed |= smi_view_cached(&r->view, &cached, &count) < 0;
    if (!r->failed)
        mend_cached(r, cached, count);
    free(cached);
    mend_marks(r);
}
