/* SPDX-License-Identifier: MIT */
/*
 * stack.c - thread slots: stacks of free slots in the file, owned by one thread each.
 *
 * A stack is an array of words. It starts inside the thread slot and moves to a span of its own
 * when it proves too short; stacks[k] names it, so storing stacks[k] switches array and count at
 * once. The fast paths want it open, all others closed (layout.h): these close the stacks they are
 * about, and open them again at their end.
 *
 * Invariants (check.c):
 *   T1  a count is at most its array's capacity; behind the first 0 of an open stack all words are
 *       0
 *   T2  every cached ref is a slot of the class, free nowhere else
 *   T3  a span of kind META is a thread slot, an array some stack names, or in `spare`
 *
 * Crash: a push or pop on an open stack commits with its word, on a closed one with the count.
 * Closing is one store. Opening clears what lies above the count, from above, so that it is without
 * a gap meanwhile, and then is one store. Refill and flush commit inside the central heap's
 * operation. An exchange of arrays names each span in `spare` before it can be orphaned; who
 * releases the slot gives back those that no stack names.
 */
#include "slots/stacks.h"

#include <string.h>

#include "format/outcome.h"
#include "handle/lock.h"
#include "slots/central.h"
#include "slots/kept.h"
#include "pages/pages.h"
#include "slots/slab.h"

/* bytes of slots that a thread's arrays may be sized for beyond the first */
#define SHARE (8ull << 20)
#define DEEPEST (1ull << 20)   /* bytes of slots in one stack */
#define FIRST_BYTES (128u << 10) /* a stack's first limit, within the inside array */
#define MAX_BATCH 256u
#define FIRST_BATCH 4u

/* The ref of the span that a stack's array lies in. */
static uint64_t span_of(uint64_t stack)
{
    return stack & ~(SMF_PAGE - 1);
}

static int damaged_stack(shmalloc_heap *heap, const struct smf_thread *slot, uint32_t k)
{
    return smi_heap_poison(heap, "stack of class %u in the thread slot at %#llx is damaged", k,
                           (unsigned long long)((const uint8_t *)slot - heap->base));
}

static uint64_t inside_offset(const shmalloc_heap *heap, uint32_t k)
{
    return SMI_UNLIKELY(heap->is_older) ? smi_older_inline_offset(k) : smi_inline_offset(k);
}

/* Where the array of class k is; NULL when what the stack says cannot be. Its count is not looked
 * at. */
static uint64_t *find_array(const shmalloc_heap *heap, const struct smf_thread *slot, uint32_t k,
                            uint32_t *capacity)
{
    uint64_t inside = (uint64_t)((const uint8_t *)slot - heap->base) + inside_offset(heap, k),
             stack = slot->stacks[k];
    uint64_t ref = stack & ~(uint64_t)SMF_STACK_PAGES;
    *capacity = smi_stack_words(stack, k) - 1;
    return smi_stack_is_possible(inside, stack, k) && smi_in_heap(heap, ref, 8ull * (*capacity + 1))
               ? smi_at(heap, ref)
               : NULL;
}

/* ---- open and closed ---- */

void smi_stacks_close(struct smi_thread *t, uint32_t k)
{
    struct smi_stack *stack = smi_stack_of(t, k);
    struct smi_top *top = smi_top(t, k);
    if (!stack->array) /* the slot was found damaged */
        return;
    /* The owner's own count, not that of the words, which somebody may have scribbled on: who pops
     * a 0 finds out. */
    if (SMI_LOAD(&stack->array[0]) == SMF_OPEN && top->word)
        SMI_STORE(&stack->array[0], (uint64_t)(top->word - stack->array));
    top->word = stack->array;
    top->ref = 0;
    top->end = (uint32_t)(uintptr_t)stack->array;
}

/* Words above the count become 0. They have no gap, since they were a stack's, but for those of a
 * stack that this thread did not use before: there all are looked at. */
static void clear_above(struct smi_stack *stack, uint64_t count)
{
    uint64_t end = stack->is_clear ? count : stack->capacity;
    while (end < stack->capacity && SMI_LOAD(&stack->array[end + 1]) != 0)
        end++;
    for (; end > count; end--)
        if (SMI_LOAD(&stack->array[end]) != 0)
            SMI_STORE(&stack->array[end], 0);
    stack->is_clear = 1;
}

void smi_stacks_open(struct smi_thread *t, uint32_t k)
{
    struct smi_stack *stack = smi_stack_of(t, k);
    struct smi_top *top = smi_top(t, k);
    uint64_t count = stack->array ? SMI_LOAD(&stack->array[0]) : SMF_OPEN;
    if (count > stack->limit || t->heap->hardened)
        return; /* damaged: the long way finds out; or one that never takes the fast path */
    clear_above(stack, count);
    SMI_STORE(&stack->array[0], SMF_OPEN);
    top->word = stack->array + count;
    top->ref = SMI_LOAD(top->word);
    top->end = (uint32_t)(uintptr_t)(stack->array + stack->limit);
}

int smi_stacks_array(shmalloc_heap *heap, struct smf_thread *slot, uint32_t k, uint64_t **array,
                    uint32_t *capacity)
{
    *array = find_array(heap, slot, k, capacity);
    if (*array && SMI_LOAD(&(*array)[0]) == SMF_OPEN)
        SMI_STORE(&(*array)[0], smi_stack_count(*array, *capacity + 1));
    return *array && (*array)[0] <= *capacity ? 0 : damaged_stack(heap, slot, k);
}

void smi_stacks_format(struct smf_thread *slot, uint64_t own_ref, int zero)
{
    memset(&slot->link, 0, sizeof(slot->link));
    slot->section = slot->tx_log = 0;
    slot->section_epoch = slot->ousted = slot->limbo = 0;
    memset(slot->spans, 0, sizeof(slot->spans)); /* what lay in there was nobody's any more */
    slot->scratch = slot->building = slot->spare[0] = slot->spare[1] = 0;
    slot->structure = slot->nested = slot->using_structure = 0;
    slot->refilled = slot->flushed = slot->large = 0;
    for (unsigned i = 0; i < SMF_HELD; i++)
        SMI_STORE(&slot->held[i], 0);
    SMI_STORE(&slot->waits_for, 0);
    for (uint32_t k = 0; k < SMF_CLASSES; k++) {
        uint64_t offset = smi_inline_offset(k);
        if (!zero)
            *(uint64_t *)(void *)((uint8_t *)slot + offset) = 0;
        slot->stacks[k] = own_ref + offset;
    }
}

static uint32_t deepest(uint32_t k)
{
    uint64_t slots = DEEPEST / smi_classes[k].size;
    uint64_t most = smi_stack_words(SMF_STACK_MOST_PAGES, k) - 1;
    return (uint32_t)(slots < most ? slots : most);
}

/* Stacks that hold nothing and take nothing: every call takes the long way, where the heap is found
 * poisoned. */
static void load_nothing(struct smi_thread *t)
{
    memset(t->stacks, 0, sizeof(t->stacks));
    memset(t->top_of_kind, 0, sizeof(t->top_of_kind));
}

/* The fast paths' part of a closed stack. */
static void load_top(struct smi_thread *t, uint32_t k)
{
    *smi_top(t, k) =
        (struct smi_top){.word = smi_stack_of(t, k)->array,
                         .inverse = UINT64_MAX / smi_classes[k].size + 1,
                         .length = (uint32_t)smi_classes[k].slots * smi_classes[k].size,
                         .end = (uint32_t)(uintptr_t)smi_stack_of(t, k)->array};
}

static uint64_t share_of(const shmalloc_heap *heap)
{
    uint64_t most = SMI_LOAD(&heap->state->max_size) / 32;
    return SHARE < most ? SHARE : most;
}

int smi_stacks_load(struct smi_thread *t)
{
    t->room = share_of(t->heap);
    for (uint32_t k = 0; k < SMF_CLASSES; k++) {
        struct smi_stack *stack = smi_stack_of(t, k);
        uint32_t capacity, first = FIRST_BYTES / smi_classes[k].size;
        stack->array = find_array(t->heap, t->slot, k, &capacity);
        if (!stack->array) {
            load_nothing(t);
            return damaged_stack(t->heap, t->slot, k);
        }
        stack->capacity = capacity;
        stack->limit = first < 4 ? 4 : first < capacity ? first : capacity;
        stack->batch = FIRST_BATCH;
        stack->is_clear = 0;
        load_top(t, k);
    }
    return 0;
}

/* ---- refill and room ---- */

static int impossible_stack(struct smi_thread *t, uint32_t k)
{
    const struct smi_stack *stack = smi_stack_of(t, k);
    return smi_heap_poison(t->heap, "stack of class %u holds %llu slots of at most %llu", k,
                           (unsigned long long)stack->array[0], (unsigned long long)stack->limit);
}

/* The most slots that move at once: half of the stack. */
static uint32_t most_batch(const struct smi_stack *stack)
{
    return stack->limit / 2 < MAX_BATCH ? (uint32_t)stack->limit / 2 : MAX_BATCH;
}

int smi_stacks_refill(struct smi_thread *t, uint32_t k)
{
    struct smi_stack *stack = smi_stack_of(t, k);
    uint64_t count = stack->array[0];
    if (count > stack->limit)
        return impossible_stack(t, k);
    if (count > 0)
        return 0;
    uint32_t most = most_batch(stack), want = stack->batch < most ? stack->batch : most;
    /* who comes often gets more */
    stack->batch = stack->batch < MAX_BATCH ? stack->batch * 2 : MAX_BATCH;
    int rc = smi_central_refill(t->heap, t->arena, k,
                                (struct smi_array){stack->array, stack->limit}, want ? want : 1);
    t->slot->refilled += stack->array[0];
    return rc;
}

/* Replace the array of class k by a span of `pages`. */
static int exchange_array(struct smi_thread *t, uint32_t k, uint32_t pages)
{
    shmalloc_heap *heap = t->heap;
    struct smf_thread *slot = t->slot;
    struct smi_stack *stack = smi_stack_of(t, k);
    uint64_t old = slot->stacks[k], count = SMI_LOAD(&stack->array[0]);
    uint32_t capacity = smi_stack_words(pages, k) - 1;
    if (count > stack->limit || count > capacity)
        return impossible_stack(t, k);
    struct smi_take request = {.count = pages,
                               .alignment = 1,
                               .kind = SMF_PAGE_META,
                               .tag = SMF_PURPOSE_ARRAY,
                               .holder = &slot->spare[0]};
    uint32_t page;
    int zero, rc = smi_pages_take(heap, &request, &page, &zero);
    if (rc < 0)
        return rc;
    uint64_t ref = ((uint64_t)page << SMF_PAGE_SHIFT) + smi_span_offset(k);
    uint64_t *array = smi_at(heap, ref);
    memcpy(array + 1, stack->array + 1, count * sizeof(uint64_t));
    if (!zero)
        memset(array + 1 + count, 0, (capacity - count) * sizeof(uint64_t));
    array[0] = count;
    if (old & SMF_STACK_PAGES)
        SMI_STORE(&slot->spare[1], span_of(old));
    SMI_STORE(&slot->stacks[k], ref | pages); /* kill around here: of each span in `spare`, only
                                                 those that no stack names are given back */
    stack->array = array;
    stack->capacity = capacity;
    stack->is_clear = 1;
    SMI_STORE(&slot->spare[0], 0);
    if (old & SMF_STACK_PAGES)
        rc = smi_pages_give(heap, (uint32_t)(old >> SMF_PAGE_SHIFT), SMF_PAGE_META, &slot->spare[1],
                            NULL);
    return rc;
}

/* Let the stack of class k get deeper if the thread's share allows it: 1 when it did. */
static int deepen(struct smi_thread *t, uint32_t k)
{
    struct smi_stack *stack = smi_stack_of(t, k);
    uint32_t size = smi_classes[k].size, most = deepest(k), limit = (uint32_t)stack->limit * 2 + 1;
    if (limit > most)
        limit = most;
    if (limit <= stack->limit || (uint64_t)(limit - stack->limit) * size > t->room)
        return 0;
    if (limit > stack->capacity) {
        uint32_t pages = (uint32_t)(t->slot->stacks[k] & SMF_STACK_PAGES);
        pages = pages == 0                         ? 1
                : pages < SMF_STACK_MOST_PAGES / 2 ? pages * 2
                                                   : SMF_STACK_MOST_PAGES;
        if (exchange_array(t, k, pages) < 0)
            return 0; /* no memory for a longer array: the short one goes on */
        if (limit > stack->capacity)
            limit = (uint32_t)stack->capacity;
    }
    if (limit > stack->limit)
        t->room -= (uint64_t)(limit - stack->limit) * size;
    stack->limit = limit;
    return 1;
}

int smi_stacks_make_room(struct smi_thread *t, uint32_t k)
{
    struct smi_stack *stack = smi_stack_of(t, k);
    uint64_t count = stack->array[0];
    if (count > stack->limit)
        return impossible_stack(t, k);
    if (count < stack->limit || deepen(t, k))
        return 0;
    uint32_t batch = most_batch(stack);
    int rc = smi_central_flush(t->heap, k, (struct smi_array){stack->array, stack->limit},
                               (uint32_t)stack->limit - (batch ? batch : 1));
    t->slot->flushed += count - stack->array[0];
    return rc;
}

/* Give at most `*most` cached slots back; 1: there are more. */
static int drain(shmalloc_heap *heap, struct smf_thread *slot, uint64_t *most)
{
    int result = 0;
    for (uint32_t k = 0; k < SMF_CLASSES; k++) {
        uint64_t *array;
        uint32_t capacity;
        int rc = smi_stacks_array(heap, slot, k, &array, &capacity);
        if (rc < 0)
            return rc;
        uint64_t count = array[0], keep = count > *most ? count - *most : 0;
        rc = smi_central_flush(heap, k, (struct smi_array){array, capacity}, (uint32_t)keep);
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

int smi_block_give(shmalloc_heap *heap, uint64_t ref, uint64_t *holder)
{
    const uint16_t *word = smi_word(heap, ref >> SMF_PAGE_SHIFT);
    if (word && (SMI_LOAD(word) & SMF_WORD_KIND) == SMF_WORD_LARGE)
        return smi_pages_give(heap, (uint32_t)(ref >> SMF_PAGE_SHIFT), SMF_PAGE_LARGE, holder,
                              NULL);
    return smi_central_give(heap, ref, holder, NULL);
}

static const void *see_mapping(void *source, uint64_t ref, uint64_t len)
{
    const shmalloc_heap *heap = source;
    return smi_in_heap(heap, ref, len) ? smi_at(heap, ref) : NULL;
}

/* A large block that the step freed goes back, unless its owner keeps it already, and disarms the
 * record by that. */
static int give_large(shmalloc_heap *heap, struct smf_thread *slot, uint32_t index, uint64_t ref)
{
    if (ref != 0 && !smi_kept_has(heap, index, ref)) {
        int rc = smi_pages_give(heap, (uint32_t)(ref >> SMF_PAGE_SHIFT), SMF_PAGE_LARGE,
                                &slot->link.op, NULL);
        if (rc != SHMALLOC_EDOUBLEFREE) /* by the program: there is nothing left to give */
            return rc;
    }
    SMI_STORE(&slot->link.op, SMF_LINK_NONE);
    return 0;
}

struct smf_bag *smi_stacks_limbo(shmalloc_heap *heap, const struct smf_thread *slot)
{
    uint64_t ref = smi_stacks_limbo_ref(heap, slot);
    const struct smf_page *d =
        ref % SMF_PAGE == 0 && ref != 0 ? smi_page(heap, ref >> SMF_PAGE_SHIFT) : NULL;
    return d && SMI_LOAD(&d->kind) == SMF_PAGE_META &&
                   SMI_LOAD(&d->page_count) == SMF_LIMBO_PAGES &&
                   SMI_LOAD(&d->tag) == SMF_PURPOSE_LIMBO &&
                   smi_in_heap(heap, ref, SMF_LIMBO_PAGES * SMF_PAGE)
               ? smi_at(heap, ref)
               : NULL;
}

int smi_stacks_resolve_link(shmalloc_heap *heap, struct smf_thread *slot, uint32_t index)
{
    SMI_ASSERT(smi_lock_is_ours(heap, SMF_LOCK_RECOVER));
    struct smf_link link; /* what is compared is what is used */
    struct smi_outcome outcome;
    memcpy(&link, &slot->link, sizeof(link));
    if (link.op == SMF_LINK_NONE)
        return 0;
    uint64_t slot_ref = (uint64_t)((uint8_t *)slot - heap->base);
    const struct smi_sight sight = {see_mapping, heap, &heap->areas, smi_size(heap),
                                    heap->is_older};
    const char *fault = smi_outcome_of_link(&sight, slot_ref, slot, &link, &outcome);
    if (fault)
        return smi_heap_poison(
            heap,
            "the link record of the thread slot at %#llx says operation %llu on the word %#llx: %s",
            (unsigned long long)slot_ref, (unsigned long long)(link.op & SMF_LINK_OP),
            (unsigned long long)smi_link_dest(&link), fault);
    for (uint32_t i = 0; i < outcome.count; i++)
        SMI_STORE((uint64_t *)smi_at(heap, outcome.change[i].ref), outcome.change[i].value);
    return give_large(heap, slot, index, outcome.large);
}

static int is_named(const shmalloc_heap *heap, const struct smf_thread *slot, uint64_t ref)
{
    if (smi_stacks_limbo_ref(heap, slot) == ref)
        return 1;
    for (uint32_t k = 0; k < SMF_CLASSES; k++)
        if ((slot->stacks[k] & SMF_STACK_PAGES) && span_of(slot->stacks[k]) == ref)
            return 1;
    return 0;
}

int smi_stacks_resolve_spares(shmalloc_heap *heap, struct smf_thread *slot)
{
    int rc = 0;
    for (int i = 0; i < 2 && rc == 0; i++) {
        uint64_t ref = slot->spare[i];
        if (ref != 0 && is_named(heap, slot, ref))
            SMI_STORE(&slot->spare[i], 0);
        else if (ref != 0)
            rc = smi_pages_give(heap, (uint32_t)(ref >> SMF_PAGE_SHIFT), SMF_PAGE_META,
                                &slot->spare[i], NULL);
    }
    return rc;
}

/* All stacks use their inside arrays again, which are empty. */
static int give_arrays(shmalloc_heap *heap, struct smf_thread *slot)
{
    uint64_t slot_ref = (uint64_t)((uint8_t *)slot - heap->base);
    int before = smi_stacks_resolve_spares(heap, slot); /* of an exchange whose old span could not
                                                           be given back */
    if (before < 0)
        return before;
    for (uint32_t k = 0; k < SMF_CLASSES; k++) {
        uint64_t offset = inside_offset(heap, k);
        if (!(slot->stacks[k] & SMF_STACK_PAGES))
            continue;
        SMI_STORE(&slot->spare[0], span_of(slot->stacks[k]));
        SMI_STORE((uint64_t *)(void *)((uint8_t *)slot + offset), 0);
        SMI_STORE(&slot->stacks[k], slot_ref + offset);
        int rc = smi_stacks_resolve_spares(heap, slot);
        if (rc < 0)
            return rc;
    }
    return 0;
}

int smi_stacks_trim(struct smi_thread *t)
{
    uint64_t all = UINT64_MAX;
    for (uint32_t k = 0; k < SMF_CLASSES; k++)
        smi_stacks_close(t, k);
    int result = drain(t->heap, t->slot, &all);
    if (result < 0 && result != SHMALLOC_EDOUBLEFREE)
        return result;
    int rc = give_arrays(t->heap, t->slot);
    int loaded = smi_stacks_load(t);
    return rc < 0 ? rc : loaded < 0 ? loaded : result;
}

/* What *holder names goes back; nothing does if the program has freed it already. */
static int give_held(shmalloc_heap *heap, uint64_t *holder)
{
    int rc = *holder != 0 ? smi_block_give(heap, *holder, holder) : 0;
    if (rc != SHMALLOC_EDOUBLEFREE)
        return rc;
    SMI_STORE(holder, 0);
    return 0;
}

int smi_stacks_resolve(shmalloc_heap *heap, struct smf_thread *slot, uint32_t index)
{
    int rc = smi_stacks_resolve_link(heap, slot, index);
    if (rc == 0 && slot->scratch != 0 && smi_kept_has(heap, index, slot->scratch))
        SMI_STORE(&slot->scratch, 0); /* killed on the way from one to the other */
    if (rc == 0)
        rc = give_held(heap, &slot->scratch);
    if (rc == 0)
        rc = give_held(heap, &slot->building);
    return rc;
}

smi_release_fn *smi_release_structure;

/* What a structure was half made or half freed goes on to its end. */
static int release_structure(shmalloc_heap *heap, struct smf_thread *slot, uint32_t index,
                             uint64_t *most)
{
    if (slot->structure == 0 || heap->is_older) /* an older heap has an array there */
        return 0;
    return smi_release_structure ? smi_release_structure(heap, slot, index, most) : 1;
}

void smi_stacks_count_claims(shmalloc_heap *heap, struct smf_thread *slot)
{
    if (heap->is_older || SMI_LOAD(&slot->queue_claims) == 0)
        return;
    /* kill here: counted twice, which costs a look */
    __atomic_fetch_add(&heap->state->claims_gone, 1, __ATOMIC_SEQ_CST);
    SMI_STORE(&slot->queue_claims, 0);
}

int smi_stacks_release(shmalloc_heap *heap, struct smf_thread *slot, uint32_t index, uint64_t *most)
{
    SMI_ASSERT(smi_lock_is_ours(heap, SMF_LOCK_RECOVER));
    int rc = smi_stacks_resolve(heap, slot, index);
    if (rc == 0)
        rc = release_structure(heap, slot, index, most);
    if (rc == 0 && !heap->is_older) /* an older heap has an array there */
        rc = smi_kept_release(heap, slot, index);
    if (rc == 0)
        rc = smi_stacks_resolve_spares(heap, slot);
    if (rc == 0)
        rc = drain(heap, slot, most);
    if (rc == SHMALLOC_EDOUBLEFREE) /* counted; the program that did it is gone */
        rc = 0;
    if (rc == 0)
        rc = give_arrays(heap, slot);
    if (rc == 0) {
        SMI_STORE(&slot->section, 0);
        SMI_STORE(&slot->tid, 0);
        SMI_STORE(&slot->using_structure, 0);
        SMI_STORE(&slot->owner, 0);
        smi_stacks_tell_adopted(heap);
        smi_stacks_count_claims(heap, slot);
    }
    return rc;
}

void smi_stacks_tell_adopted(shmalloc_heap *heap)
{
    if (!heap->is_older) /* acq_rel: who sees the count finds what the thread left at rest */
        __atomic_fetch_add(&heap->state->adoptions, 1, __ATOMIC_ACQ_REL);
}
