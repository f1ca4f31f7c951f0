/* SPDX-License-Identifier: MIT */
/*
 * block.c - single blocks, with every option. The common case never comes here: api.c serves it
 * from the thread's stack in line.
 *
 * Small blocks: the slot on top of the stack, which is closed meanwhile, is prepared while it still
 * is the stack's (zeroed, tagged, marked), then counted out; with a destination the link record
 * makes the store and the count one step. Large blocks: one that the thread keeps, else the page
 * heap's operation stores the destination itself. A large block that must be filled before anybody
 * sees it (zeroed, or a copy) or that was kept is named by the thread's `scratch` meanwhile.
 */
#include "slots/block.h"

#include <errno.h>
#include <string.h>

#include "slots/stacks.h"
#include "slots/central.h"
#include "slots/kept.h"
#include "slots/link.h"
#include "pages/pages.h"
#include "slots/slab.h"

/* ---- taking ---- */

/* The slab gets a side array if it has none, and all its pages say so. */
static int add_side(shmalloc_heap *heap, const struct smi_slot *slot)
{
    int rc = smi_central_take_own(heap, smi_side_bytes(heap, slot->k), &slot->slab->side);
    if (rc == 0 && !(slot->word & SMF_WORD_SIDE))
        rc = smi_pages_flag_slab(heap, slot->page, SMF_WORD_SIDE);
    return rc;
}

/* What the block at `ref` must hold before somebody can know of it. `is_zero`: its bytes are. */
static void make_as_asked(const shmalloc_heap *heap, const struct smi_request *request,
                          uint64_t ref, int is_zero)
{
    if (request->contents)
        memcpy(smi_at(heap, ref), request->contents, request->size);
    else if (request->zero && !is_zero)
        memset(smi_at(heap, ref), 0, request->size);
}

static int prepare_slot(struct smi_thread *t, const struct smi_request *request, uint64_t ref,
                        const struct smi_slot *slot)
{
    shmalloc_heap *heap = t->heap;
    if (request->tag != 0) {
        int rc = slot->slab->side && (slot->word & SMF_WORD_SIDE) ? 0 : add_side(heap, slot);
        uint16_t *tag = rc == 0 ? smi_slot_tag(heap, slot) : NULL;
        if (!tag)
            return rc < 0 ? rc
                          : smi_heap_poison(heap, "slab at page %u has no side array", slot->page);
        SMI_STORE(tag, request->tag);
    }
    uint64_t *bits = smi_slot_user_bits(heap, slot);
    if (bits)
        __atomic_fetch_or(bits, 1ull << (slot->index % 64), __ATOMIC_RELAXED);
    make_as_asked(heap, request, ref, 0);
    return 0;
}

/* The slot on top of the stack of class k, made ready, but the stack's still. */
static int top_slot(struct smi_thread *t, const struct smi_request *request, uint32_t k,
                    struct smi_side *out)
{
    int rc = smi_stacks_refill(t, k);
    if (rc < 0)
        return rc;
    struct smi_slot slot;
    const struct smi_stack *stack = smi_stack_of(t, k);
    uint64_t *array = stack->array, count = SMI_LOAD(&array[0]);
    uint64_t ref = count <= stack->limit ? SMI_LOAD(&array[count]) : 0;
    if (smi_slot_find(t->heap, ref, &slot) < 0 || slot.k != k)
        return smi_heap_poison(t->heap, "stack of class %u holds %#llx, which is no slot of it", k,
                               (unsigned long long)ref);
    *out = (struct smi_side){ref, array};
    return prepare_slot(t, request, ref, &slot);
}

static uint64_t pages_for(size_t size)
{
    return size / SMF_PAGE + (size % SMF_PAGE != 0);
}

/* A large block; the word `holder`, if not NULL, names it from the instant it is taken. */
static int take_pages(struct smi_thread *t, const struct smi_request *request, uint64_t *holder,
                      uint64_t *ref)
{
    uint64_t alignment = request->alignment > SMF_PAGE ? request->alignment / SMF_PAGE : 1;
    struct smi_take take = {.count = pages_for(request->size ? request->size : 1),
                            .alignment = alignment,
                            .kind = SMF_PAGE_LARGE,
                            .tag = request->tag,
                            .holder = holder};
    uint32_t page;
    int zero, rc = smi_pages_take(t->heap, &take, &page, &zero);
    if (rc < 0)
        return rc;
    *ref = (uint64_t)page << SMF_PAGE_SHIFT;
    t->slot->large++;
    make_as_asked(t->heap, request, *ref, zero);
    return 0;
}

/* A large block that `scratch` names, or, if there is no `holder`, nothing: the thread's own if it
 * keeps a fitting one. */
static int take_large(struct smi_thread *t, const struct smi_request *request, int scratch,
                      uint64_t *ref)
{
    *ref = request->tag == 0 && request->alignment <= SMF_PAGE && request->size <= SMI_KEPT_MOST
               ? smi_kept_take(t, pages_for(request->size), scratch)
               : 0;
    if (*ref == 0)
        return take_pages(t, request, scratch ? &t->slot->scratch : NULL, ref);
    make_as_asked(t->heap, request, *ref, 0);
    return 0;
}

static uint32_t class_for(const struct smi_request *request)
{
    if (request->size > SMI_MAX_SMALL)
        return SMF_CLASSES;
    size_t size = request->size ? request->size : 1;
    return request->alignment > 8 ? smi_class_of_aligned(size, request->alignment)
                                  : smi_class_of(size);
}

static const struct smi_side none = {0, NULL};

static int take_small(struct smi_thread *t, const struct smi_request *request, uint32_t k,
                      uint64_t *holder, uint64_t *ref)
{
    struct smi_side fresh = none;
    smi_stacks_close(t, k);
    int rc = top_slot(t, request, k, &fresh);
    if (rc == 0 && holder)
        smi_link_take(t, holder, fresh, none);
    else if (rc == 0)
        SMI_STORE(&fresh.array[0], fresh.array[0] - 1);
    smi_stacks_open(t, k);
    *ref = fresh.ref;
    return rc;
}

int smi_block_take(struct smi_thread *t, const struct smi_request *request, uint64_t *holder,
                   uint64_t *ref)
{
    uint32_t k = class_for(request);
    if (k < SMF_CLASSES)
        return take_small(t, request, k, holder, ref);
    /* the page heap's operation stores it */
    if (holder && !request->zero && !request->contents && t->span_pages == 0)
        return take_pages(t, request, holder, ref);
    int rc = take_large(t, request, holder != NULL, ref);
    if (rc == 0 && holder)
        smi_link_take(t, holder, (struct smi_side){*ref, NULL}, none);
    return rc;
}

int smi_block_prepare(struct smi_thread *t, size_t size, uint32_t *k, uint64_t *ref)
{
    struct smi_request request = {.size = size};
    struct smi_side fresh = none;
    *k = class_for(&request);
    if (*k == SMF_CLASSES)
        return take_large(t, &request, 1, ref);
    smi_stacks_close(t, *k);
    int rc = top_slot(t, &request, *k, &fresh);
    smi_stacks_open(t, *k);
    *ref = fresh.ref;
    return rc;
}

/* ---- giving ---- */

static int not_a_block(const shmalloc_heap *heap, uint64_t ref)
{
    return smi_error(
        SHMALLOC_EBADREF,
        "%s: %#llx is not the first byte of a block of this heap; give what an allocation gave",
        heap->path, (unsigned long long)ref);
}

static int is_large(const shmalloc_heap *heap, uint64_t ref)
{
    const uint16_t *word = ref < smi_size(heap) ? smi_word(heap, ref >> SMF_PAGE_SHIFT) : NULL;
    return word && ref % SMF_PAGE == 0 && (SMI_LOAD(word) & SMF_WORD_KIND) == SMF_WORD_LARGE;
}

/* A slot that a user may have: not of the library's own arena. */
static int find_user_slot(const shmalloc_heap *heap, uint64_t ref, struct smi_slot *slot)
{
    return smi_slot_find(heap, ref, slot) < 0 || slot->arena >= heap->arena_count ||
                   (slot->word & SMF_WORD_INTERNAL)
               ? not_a_block(heap, ref)
               : 0;
}

/* A freed block that is known as such: a large one that somebody keeps, and any slot of a hardened
 * heap. */
static int is_free(const shmalloc_heap *heap, uint64_t ref)
{
    struct smi_slot slot;
    if (is_large(heap, ref)) {
        const struct smf_page *page = smi_page(heap, ref >> SMF_PAGE_SHIFT);
        return page && (SMI_LOAD(&page->side) & SMF_MARK_KEPT);
    }
    const uint64_t *bits = heap->hardened && find_user_slot(heap, ref, &slot) == 0
                               ? smi_slot_user_bits(heap, &slot)
                               : NULL;
    return bits && !(SMI_LOAD(bits) & 1ull << (slot.index % 64));
}

/* The stack of the slot's class gets room. *late: a double free of another block came to light.
 * `is_used`: is it the user's, or was it retired? */
static int prepare_give(struct smi_thread *t, uint64_t ref, const struct smi_slot *slot,
                        int is_used, int *late)
{
    shmalloc_heap *heap = t->heap;
    const struct smi_stack *stack = smi_stack_of(t, slot->k);
    uint64_t *array = stack->array, count = SMI_LOAD(&array[0]);
    if (count > 0 && count <= stack->limit && array[count] == ref)
        return smi_heap_double_free(heap, ref);
    const uint64_t *bits = smi_slot_user_bits(heap, slot);
    if (bits && (int)(SMI_LOAD(bits) >> (slot->index % 64) & 1) != is_used)
        return smi_heap_double_free(heap, ref);
    int rc = smi_stacks_make_room(t, slot->k);
    *late = rc == SHMALLOC_EDOUBLEFREE;
    return *late ? 0 : rc;
}

/* The slot that was just pushed loses its tag and its user: after the push, because a thread killed
 * between the two leaves it in its stack, where adoption does the same; before it, the block would
 * stay the user's, but marked free. A user that was gone means that another thread freed it at the
 * same time. */
static int finish_give(struct smi_thread *t, uint64_t ref, const struct smi_slot *slot, int is_used,
                       int late)
{
    uint64_t *array = smi_stack_of(t, slot->k)->array;
    if (!smi_slot_forget(t->heap, slot) && is_used) {
        SMI_STORE(&array[0], array[0] - 1);
        return smi_heap_double_free(t->heap, ref);
    }
    return late ? SHMALLOC_EDOUBLEFREE : 0;
}

static int free_large(struct smi_thread *t, uint64_t ref, uint64_t *holder)
{
    int rc = smi_kept_give(t, ref, holder, 1);
    return rc != 0 ? (rc < 0 ? rc : 0)
                   : smi_pages_give(t->heap, (uint32_t)(ref >> SMF_PAGE_SHIFT), SMF_PAGE_LARGE,
                                    holder, NULL);
}

/* The stack of the slot's class is closed. */
static int free_slot(struct smi_thread *t, uint64_t ref, const struct smi_slot *slot, int is_used,
                     uint64_t *holder)
{
    int late = 0, rc = prepare_give(t, ref, slot, is_used, &late);
    if (rc < 0)
        return rc;
    const struct smi_stack *stack = smi_stack_of(t, slot->k);
    uint64_t *array = stack->array;
    if (holder) {
        smi_link_give(t, holder, (struct smi_side){ref, array});
    } else {
        uint64_t count = SMI_LOAD(&array[0]);
        if (count >= stack->limit)
            return smi_heap_poison(t->heap, "stack of class %u grew by itself", slot->k);
        SMI_STORE(&array[count + 1], ref);
        SMI_STORE(&array[0], count + 1);
    }
    return finish_give(t, ref, slot, is_used, late);
}

static int free_block(struct smi_thread *t, uint64_t ref, int is_used, uint64_t *holder)
{
    struct smi_slot slot;
    if (is_large(t->heap, ref))
        return free_large(t, ref, holder);
    int rc = find_user_slot(t->heap, ref, &slot);
    if (rc < 0)
        return rc;
    smi_stacks_close(t, slot.k);
    rc = free_slot(t, ref, &slot, is_used, holder);
    smi_stacks_open(t, slot.k);
    return rc;
}

int smi_block_free(struct smi_thread *t, uint64_t ref, uint64_t *holder)
{
    return free_block(t, ref, 1, holder);
}

int smi_block_free_retired(struct smi_thread *t, uint64_t ref, uint64_t *holder)
{
    return free_block(t, ref, 0, holder);
}

int smi_block_may_free(const struct smi_thread *t, uint64_t ref)
{
    return is_free(t->heap, ref)                  ? smi_heap_double_free(t->heap, ref)
           : smi_block_size(t->heap, ref) == 0 ? not_a_block(t->heap, ref)
                                               : 0;
}

int smi_block_unuse(const shmalloc_heap *heap, uint64_t ref)
{
    struct smi_slot slot;
    uint64_t *bits = !is_large(heap, ref) && find_user_slot(heap, ref, &slot) == 0
                         ? smi_slot_user_bits(heap, &slot)
                         : NULL;
    uint64_t bit = bits ? 1ull << (slot.index % 64) : 0;
    return !bits || (__atomic_fetch_and(bits, ~bit, __ATOMIC_RELAXED) & bit) != 0;
}

/* ---- resizing ---- */

/* Move to a new block with a destination that follows: one crash-atomic step. The stacks concerned
 * are closed. The old block's slot, NULL when it is a large one; the new one's class, or
 * SMF_CLASSES. */
static int move_closed(struct smi_thread *t, uint64_t *ref, const struct smi_slot *slot, uint32_t k,
                       size_t old_size, size_t size, uint64_t *holder)
{
    struct smi_request request = {.size = size};
    struct smi_side fresh = none, old = {*ref, NULL};
    int late = 0, rc = k < SMF_CLASSES ? top_slot(t, &request, k, &fresh)
                                       : take_large(t, &request, 1, &fresh.ref);
    if (rc == 0 && slot) {
        rc = prepare_give(t, *ref, slot, 1, &late);
        old.array = smi_stack_of(t, slot->k)->array;
    }
    if (rc < 0) {
        if (t->slot->scratch)
            smi_block_give(t->heap, t->slot->scratch, &t->slot->scratch);
        return rc;
    }
    memcpy(smi_at(t->heap, fresh.ref), smi_at(t->heap, *ref), old_size < size ? old_size : size);
    smi_link_take(t, holder, fresh, old);
    *ref = fresh.ref;
    if (slot)
        return finish_give(t, old.ref, slot, 1, late);
    rc = smi_pages_give(t->heap, (uint32_t)(old.ref >> SMF_PAGE_SHIFT), SMF_PAGE_LARGE,
                        &t->slot->link.op, NULL);
    if (rc < 0)
        SMI_STORE(&t->slot->link.op, SMF_LINK_NONE); /* another thread freed it meanwhile */
    return rc;
}

static int move_linked(struct smi_thread *t, uint64_t *ref, size_t old_size, size_t size,
                       uint64_t *holder)
{
    struct smi_slot slot;
    int large = is_large(t->heap, *ref), rc = large ? 0 : find_user_slot(t->heap, *ref, &slot);
    if (rc < 0)
        return rc;
    uint32_t k = class_for(&(struct smi_request){.size = size}),
             old_k = large ? SMF_CLASSES : slot.k;
    if (k < SMF_CLASSES)
        smi_stacks_close(t, k);
    if (old_k < SMF_CLASSES)
        smi_stacks_close(t, old_k);
    rc = move_closed(t, ref, large ? NULL : &slot, k, old_size, size, holder);
    if (k < SMF_CLASSES)
        smi_stacks_open(t, k);
    if (old_k < SMF_CLASSES)
        smi_stacks_open(t, old_k);
    return rc;
}

static int move_free(struct smi_thread *t, uint64_t *ref, size_t old_size, size_t size)
{
    struct smi_request request = {.size = size};
    uint64_t fresh;
    int rc = smi_block_take(t, &request, NULL, &fresh);
    if (rc < 0)
        return rc;
    memcpy(smi_at(t->heap, fresh), smi_at(t->heap, *ref), old_size < size ? old_size : size);
    rc = smi_block_free(t, *ref, NULL);
    *ref = fresh;
    return rc;
}

int smi_block_resize(struct smi_thread *t, uint64_t *ref, size_t size, uint64_t *holder)
{
    size_t old_size = smi_block_size(t->heap, *ref);
    if (is_free(t->heap, *ref))
        return smi_heap_double_free(t->heap, *ref);
    if (old_size == 0)
        return not_a_block(t->heap, *ref);
    if (is_large(t->heap, *ref) && size > SMI_MAX_SMALL) {
        int rc = smi_pages_resize(t->heap, (uint32_t)(*ref >> SMF_PAGE_SHIFT), pages_for(size));
        if (rc == SHMALLOC_EADDRESS || !smi_pages_lack_room(rc)) /* without addresses no span can be
                                                                    given back either */
            return rc;
    } else if (smi_stays(old_size, size)) {
        return 0;
    }
    return holder ? move_linked(t, ref, old_size, size, holder) : move_free(t, ref, old_size, size);
}

/* ---- looking ---- */

size_t smi_block_size(const shmalloc_heap *heap, uint64_t ref)
{
    struct smi_slot slot;
    if (is_large(heap, ref)) {
        const struct smf_page *page = smi_page(heap, ref >> SMF_PAGE_SHIFT);
        uint64_t count =
            page && !(SMI_LOAD(&page->side) & SMF_MARK_KEPT) ? SMI_LOAD(&page->page_count) : 0;
        return smi_in_heap(heap, ref, count << SMF_PAGE_SHIFT) ? count << SMF_PAGE_SHIFT : 0;
    }
    return find_user_slot(heap, ref, &slot) < 0 ? 0 : smi_classes[slot.k].size;
}

/* The central heap has the slot, or the calling thread's stack. */
static int is_free_slot(struct smi_thread *t, uint64_t ref, const struct smi_slot *slot)
{
    const struct smi_stack *stack = smi_stack_of(t, slot->k);
    if (SMI_LOAD(smi_slab_bits(t->heap, slot->page, slot->k, slot->index / 64)) >>
            slot->index % 64 &
        1)
        return 1;
    uint64_t count =
        stack->array ? smi_stack_count(stack->array, (uint32_t)stack->capacity + 1) : 0;
    for (uint64_t i = 1; i <= count && i <= stack->capacity; i++)
        if (SMI_LOAD(&stack->array[i]) == ref)
            return 1;
    return 0;
}

int smi_block_verify(struct smi_thread *t, uint64_t ref)
{
    struct smi_slot slot;
    int freed = is_free(t->heap, ref);
    if (!freed && smi_block_size(t->heap, ref) == 0)
        return not_a_block(t->heap, ref);
    if (freed || (!is_large(t->heap, ref) && find_user_slot(t->heap, ref, &slot) == 0 &&
                  is_free_slot(t, ref, &slot)))
        return smi_error(SHMALLOC_EBADREF, "%s: block at %#llx was freed; give one that is in use",
                         t->heap->path, (unsigned long long)ref);
    return 0;
}

uint16_t smi_block_tag(const shmalloc_heap *heap, uint64_t ref)
{
    struct smi_slot slot;
    if (is_large(heap, ref)) {
        const struct smf_page *page = smi_page(heap, ref >> SMF_PAGE_SHIFT);
        return page ? SMI_LOAD(&page->tag) : 0;
    }
    const uint16_t *tag = find_user_slot(heap, ref, &slot) < 0 ? NULL : smi_slot_tag(heap, &slot);
    return tag ? SMI_LOAD(tag) : 0;
}
