/* SPDX-License-Identifier: MIT */
/*
 * api.c - the public calls on blocks, roots and the heap as a whole: check the arguments, call
 * down.
 *
 * The common cases are served in line, as fast.h has it; what is unusual goes the long way from
 * here.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "slots/block.h"
#include "slots/stacks.h"
#include "slots/central.h"
#include "look/check.h"
#include "slots/fast.h"
#include "slots/kept.h"
#include "slots/link.h"
#include "platform/os.h"
#include "platform/sized.h"
#include "pages/pages.h"
#include "life/adopt.h"
#include "life/context.h"
#include "life/fork.h"
#include "life/registry.h"
#include "handle/resident.h"
#include "names/mutex.h"
#include "names/roots.h"
#include "names/wait.h"
#include "slots/slab.h"
#include "tx/retire.h"
#include "tx/section.h"
#include "tx/tx.h"

/* ---- the long way ---- */

/* Out of line, so that the fast paths need no stack frame. */
#define LONG_WAY __attribute__((noinline))

/* A cancelled thread must not end in the middle: run a call with cancellation off. */
struct entry {
    struct smi_thread *t;
    int cancel_state;
};

static int enter(shmalloc_heap *heap, struct entry *entry)
{
    int rc;
    entry->cancel_state = smi_os_cancel_off();
    entry->t = smi_thread_enter_any(heap, &rc);
    if (!entry->t)
        smi_os_cancel_restore(entry->cancel_state);
    return rc;
}

static void leave(const struct entry *entry)
{
    smi_thread_leave_any(entry->t);
    smi_os_cancel_restore(entry->cancel_state);
}

static int take_long(shmalloc_heap *heap, const struct smi_request *request, uint64_t *holder,
                     uint64_t *ref)
{
    struct entry entry;
    int rc = enter(heap, &entry);
    if (rc < 0)
        return rc;
    rc = smi_block_take(entry.t, request, holder, ref);
    /* what it retired may be room enough */
    if (SMI_UNLIKELY(smi_pages_lack_room(rc)) && smi_retire_flush(entry.t) > 0)
        rc = smi_block_take(entry.t, request, holder, ref);
    leave(&entry);
    return rc;
}

static int give_long(shmalloc_heap *heap, uint64_t ref, uint64_t *holder)
{
    struct entry entry;
    int rc = enter(heap, &entry);
    if (rc < 0)
        return rc;
    rc = smi_block_free(entry.t, ref, holder);
    leave(&entry);
    return rc;
}

/* Is the word at `out` the heap's? Then 1, and it must be aligned: else -EINVAL. */
static int destination(const shmalloc_heap *heap, const void *out)
{
    uint64_t ref;
    if (!out)
        return smi_error(-EINVAL, "%s: no place for the ref", heap->path);
    if (!smi_ref_of(heap, out, &ref))
        return 0;
    return ref % 8 == 0 ? 1
                        : smi_error(-EINVAL, "%s: the ref word at %#llx is not 8-aligned",
                                    heap->path, (unsigned long long)ref);
}

/* ---- refs ---- */

void *shmalloc_ptr(const shmalloc_heap *heap, shmalloc_ref ref)
{
    return ref != 0 && ref < smi_size(heap) ? smi_at(heap, ref) : NULL;
}

void *shmalloc_ptr_range(const shmalloc_heap *heap, shmalloc_ref ref, uint64_t len)
{
    uint64_t size = smi_size(heap);
    return ref != 0 && ref < size && len <= size - ref ? smi_at(heap, ref) : NULL;
}

shmalloc_ref shmalloc_ref_of(const shmalloc_heap *heap, const void *address)
{
    uint64_t ref;
    return address && smi_ref_of(heap, address, &ref) ? ref : 0;
}

shmalloc_heap *shmalloc_heap_of(const void *address)
{
    uint64_t ref;
    smi_registry_lock(); /* under which heaps are opened and closed */
    shmalloc_heap *heap = address ? smi_heaps : NULL;
    while (heap && !smi_ref_of(heap, address, &ref))
        heap = heap->next;
    smi_registry_unlock();
    return heap;
}

/* The fast path may have failed only because this process has not seen the page of `ref` as it is
 * now. If so, the stack that the block goes to. */
static struct smi_top *second_look(shmalloc_heap *heap, uint64_t ref)
{
    struct smi_thread *t = smi_current;
    if (!smi_serves(t, heap) || !smi_pagetable_learn(heap, ref))
        return NULL;
    t->covered = smi_pagetable_covered(heap);
    return smi_top_of(t, ref);
}

static int alloc(shmalloc_heap *heap, const struct smi_request *request, shmalloc_ref *out)
{
    uint64_t ref;
    int in_heap = destination(heap, out);
    if (in_heap < 0)
        return in_heap;
    int rc = take_long(heap, request, in_heap ? out : NULL, &ref);
    if (rc == 0 && !in_heap)
        *out = ref;
    return rc;
}

static LONG_WAY int alloc_long(shmalloc_heap *heap, size_t size, shmalloc_ref *out)
{
    return alloc(heap, &(struct smi_request){.size = size}, out);
}

int (shmalloc_ref_alloc)(shmalloc_heap *heap, size_t size, shmalloc_ref *out)
{
    struct smi_thread *t = smi_current;
    struct smi_top *top = smi_top_for(heap, t, size);
    uint64_t at = (uint64_t)((uintptr_t)out - (uintptr_t)t->base);
    if (SMI_UNLIKELY(!top || !out || (at < t->reserved && !smi_can_link(t, at))))
        return alloc_long(heap, size, out);
    if (at < t->reserved)
        smi_link_pop(t, out, top);
    else
        *out = smi_pop_word(top);
    return 0;
}

int (shmalloc_ref_alloc_zeroed)(shmalloc_heap *heap, size_t size, shmalloc_ref *out)
{
    return alloc(heap, &(struct smi_request){.size = size, .zero = 1}, out);
}

/* Release: who finds the ref, by whatever way, finds the contents too. */
static LONG_WAY int dup_long(shmalloc_heap *heap, const void *bytes, size_t len, shmalloc_ref *out)
{
    uint64_t ref;
    const void *contents = len > 0 ? bytes : NULL;
    int in_heap = !bytes && len > 0
                      ? smi_error(-EINVAL, "%s: no bytes to copy %zu of", heap->path, len)
                      : destination(heap, out);
    if (in_heap < 0)
        return in_heap;
    int rc = take_long(heap, &(struct smi_request){.size = len, .contents = contents},
                       in_heap ? out : NULL, &ref);
    if (rc == 0 && !in_heap)
        smi_link_store(out, ref);
    return rc;
}

int (shmalloc_ref_dup)(shmalloc_heap *heap, const void *bytes, size_t len, shmalloc_ref *out)
{
    struct smi_thread *t = smi_current;
    struct smi_top *top = smi_top_to_fill(heap, t, len);
    uint64_t at = (uint64_t)((uintptr_t)out - (uintptr_t)t->base);
    if (SMI_UNLIKELY(!top || !out || !bytes || (at < t->reserved && !smi_can_link(t, at))))
        return dup_long(heap, bytes, len, out);
    memcpy(t->base + top->ref, bytes, len); /* the slot still is the stack's */
    if (at < t->reserved)
        smi_link_pop(t, out, top);
    else
        smi_link_store(out, smi_pop_word(top));
    return 0;
}

static int bad_alignment(const shmalloc_heap *heap, size_t alignment)
{
    uint64_t most = heap->is_private ? SMI_PRIVATE_ALIGNMENT : SMI_MAX_ALIGNMENT;
    if (alignment == 0 || (alignment & (alignment - 1)) != 0 || alignment > most)
        return smi_error(-EINVAL, "%s: alignment %zu is not a power of two up to %llu", heap->path,
                         alignment, (unsigned long long)most);
    if ((uintptr_t)heap->base % alignment != 0 && alignment > SMI_MAX_ALIGNMENT)
        return smi_error(-ENOMEM,
                         "%s: alignment %zu: the heap lies at %p, because address space is limited",
                         heap->path, alignment, (void *)heap->base);
    return 0;
}

int(shmalloc_ref_alloc_aligned)(shmalloc_heap *heap, size_t alignment, size_t size,
                                shmalloc_ref *out)
{
    int rc = bad_alignment(heap, alignment);
    return rc < 0 ? rc
                  : alloc(heap, &(struct smi_request){.size = size, .alignment = alignment}, out);
}

int (shmalloc_ref_alloc_tagged)(shmalloc_heap *heap, size_t size, uint16_t tag, shmalloc_ref *out)
{
    if (tag >= SMF_TAG_RESERVED)
        return smi_error(-EINVAL,
                         "%s: tag expected 0 to %#x, found %#x: those from %#x on are the "
                         "library's own; use another",
                         heap->path, SMF_TAG_RESERVED - 1, tag, SMF_TAG_RESERVED);
    return alloc(heap, &(struct smi_request){.size = size, .zero = 1, .tag = tag}, out);
}

uint16_t shmalloc_tag(const shmalloc_heap *heap, shmalloc_ref ref)
{
    return smi_block_tag(heap, ref);
}

/* Can the word `ref`, at this offset from the context's mapping, be read, and linked when it is in
 * there? */
static inline int can_follow(const shmalloc_heap *heap, const struct smi_thread *t,
                             const shmalloc_ref *ref, uint64_t at)
{
    return ref && smi_serves(t, heap) && (at >= t->reserved || smi_can_link(t, at));
}

/* *ref goes to the stack `top`. */
static inline void give(struct smi_thread *t, shmalloc_ref *ref, uint64_t at, struct smi_top *top)
{
    if (at < t->reserved) {
        smi_link_push(t, ref, *ref, top);
    } else {
        smi_push_word(top, *ref);
        *ref = 0;
    }
}

static LONG_WAY int free_ref_long(shmalloc_heap *heap, shmalloc_ref *ref)
{
    struct smi_thread *t = smi_current;
    uint64_t at = (uint64_t)((uintptr_t)ref - (uintptr_t)t->base);
    struct smi_top *top = can_follow(heap, t, ref, at) ? second_look(heap, *ref) : NULL;
    if (top) {
        give(t, ref, at, top);
        return 0;
    }
    int in_heap = destination(heap, ref);
    if (in_heap < 0)
        return in_heap;
    if (*ref == 0)
        return 0;
    int rc = give_long(heap, *ref, in_heap ? ref : NULL);
    if (rc == 0 && !in_heap)
        *ref = 0;
    return rc;
}

int (shmalloc_ref_free)(shmalloc_heap *heap, shmalloc_ref *ref)
{
    struct smi_thread *t = smi_current;
    uint64_t at = (uint64_t)((uintptr_t)ref - (uintptr_t)t->base);
    if (SMI_UNLIKELY(!can_follow(heap, t, ref, at)))
        return free_ref_long(heap, ref);
    struct smi_top *top = smi_top_of(t, *ref);
    if (SMI_UNLIKELY(!top))
        return free_ref_long(heap, ref);
    give(t, ref, at, top);
    return 0;
}

/* Like shmalloc_ref_realloc(), of a word that can be followed; 0: not on the fast path. */
static inline int resize_fast(shmalloc_heap *heap, struct smi_thread *t, shmalloc_ref *ref,
                              uint64_t at, size_t size)
{
    uint64_t moved = smi_resize(heap, t, *ref, size, at < t->reserved ? ref : NULL);
    if (moved != 0 && at >= t->reserved)
        *ref = moved;
    return SMI_LIKELY(moved != 0);
}

static LONG_WAY int realloc_ref_long(shmalloc_heap *heap, shmalloc_ref *ref, size_t size)
{
    struct smi_thread *t = smi_current;
    uint64_t at = (uint64_t)((uintptr_t)ref - (uintptr_t)t->base);
    if (can_follow(heap, t, ref, at) && second_look(heap, *ref) &&
        resize_fast(heap, t, ref, at, size))
        return 0;
    struct entry entry;
    int in_heap = destination(heap, ref);
    if (in_heap < 0)
        return in_heap;
    if (*ref == 0)
        return shmalloc_ref_alloc(heap, size, ref);
    int rc = enter(heap, &entry);
    if (rc < 0)
        return rc;
    uint64_t moved = *ref;
    rc = smi_block_resize(entry.t, &moved, size ? size : 1, in_heap ? ref : NULL);
    leave(&entry);
    if (!in_heap && moved != *ref)
        *ref = moved;
    return rc;
}

int (shmalloc_ref_realloc)(shmalloc_heap *heap, shmalloc_ref *ref, size_t size)
{
    struct smi_thread *t = smi_current;
    uint64_t at = (uint64_t)((uintptr_t)ref - (uintptr_t)t->base);
    if (SMI_UNLIKELY(!can_follow(heap, t, ref, at)))
        return realloc_ref_long(heap, ref, size);
    return SMI_LIKELY(resize_fast(heap, t, ref, at, size)) ? 0 : realloc_ref_long(heap, ref, size);
}

/* ---- pointers ---- */

static void *no_memory(int rc)
{
    errno = rc == -EINVAL ? EINVAL : ENOMEM;
    return NULL;
}

static void *take_pointer(shmalloc_heap *heap, const struct smi_request *request)
{
    uint64_t ref;
    int rc = take_long(heap, request, NULL, &ref);
    return rc < 0 ? no_memory(rc) : smi_at(heap, ref);
}

/* that is served by a kept block: one goes the long way and looks around */
#define LOOK_EVERY_CALL 256

static LONG_WAY void *malloc_long(shmalloc_heap *heap, size_t size)
{
    struct smi_thread *t = smi_current;
    int may_be_kept = smi_serves(t, heap) && size > SMI_MAX_SMALL && size <= SMI_KEPT_MOST;
    if (may_be_kept && ++t->span_calls % LOOK_EVERY_CALL != 0) {
        uint64_t ref = smi_kept_take(t, (size + SMF_PAGE - 1) / SMF_PAGE, 0);
        if (ref != 0)
            return t->base + ref;
    }
    return take_pointer(heap, &(struct smi_request){.size = size});
}

static LONG_WAY int free_long(shmalloc_heap *heap, void *block)
{
    uint64_t ref;
    if (!block)
        return 0;
    if (!smi_ref_of(heap, block, &ref))
        return smi_error(SHMALLOC_EBADREF, "%s: %p is not in this heap", heap->path, block);
    struct smi_top *top = second_look(heap, ref);
    if (top) {
        smi_push_word(top, ref);
        return 0;
    }
    /* Without a lock, which a forked child must not take before its copy is settled. */
    int rc = smi_serves(smi_current, heap) ? smi_kept_give(smi_current, ref, NULL, 0) : 0;
    if (rc != 0)
        return rc < 0 ? rc : 0;
    return give_long(heap, ref, NULL);
}

void *shmalloc_malloc(shmalloc_heap *heap, size_t size)
{
    struct smi_thread *t = smi_current;
    struct smi_top *top = smi_top_for(heap, t, size);
    return SMI_LIKELY(top) ? t->base + smi_pop_word(top) : malloc_long(heap, size);
}

void *shmalloc_calloc(shmalloc_heap *heap, size_t count, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes))
        return no_memory(smi_error(-ENOMEM, "%s: %zu times %zu bytes do not fit in memory",
                                   heap->path, count, size));
    struct smi_thread *t = smi_current;
    struct smi_top *top = smi_top_to_fill(heap, t, bytes);
    if (SMI_LIKELY(top))
        return memset(t->base + smi_pop_word(top), 0, bytes);
    return take_pointer(heap, &(struct smi_request){.size = bytes, .zero = 1});
}

void *shmalloc_aligned_alloc(shmalloc_heap *heap, size_t alignment, size_t size)
{
    int rc = bad_alignment(heap, alignment);
    return rc < 0 ? no_memory(rc)
                  : take_pointer(heap, &(struct smi_request){.size = size, .alignment = alignment});
}

int shmalloc_free(shmalloc_heap *heap, void *block)
{
    /* NULL and foreign addresses give a ref beyond the heap's end; another heap's context is found
     * out */
    struct smi_thread *t = smi_current;
    uint64_t ref = (uint64_t)((uintptr_t)block - (uintptr_t)t->base);
    struct smi_top *top = smi_serves(t, heap) ? smi_top_of(t, ref) : NULL;
    if (SMI_UNLIKELY(!top))
        return free_long(heap, block);
    smi_push_word(top, ref);
    return 0;
}

static LONG_WAY void *realloc_long(shmalloc_heap *heap, void *block, size_t size)
{
    struct entry entry;
    uint64_t ref;
    if (!block)
        return shmalloc_malloc(heap, size);
    if (!smi_ref_of(heap, block, &ref))
        return no_memory(
            smi_error(SHMALLOC_EBADREF, "%s: %p is not in this heap", heap->path, block));
    struct smi_thread *t = smi_current;
    uint64_t moved = second_look(heap, ref) ? smi_resize(heap, t, ref, size, NULL) : 0;
    if (moved)
        return t->base + moved;
    int rc = enter(heap, &entry);
    if (rc < 0)
        return no_memory(rc);
    uint64_t before = ref;
    rc = smi_block_resize(entry.t, &ref, size ? size : 1, NULL);
    leave(&entry);
    return rc < 0 && ref == before ? no_memory(rc) : smi_at(heap, ref);
}

void *shmalloc_realloc(shmalloc_heap *heap, void *block, size_t size)
{
    struct smi_thread *t = smi_current;
    uint64_t ref = (uint64_t)((uintptr_t)block - (uintptr_t)t->base); /* as in shmalloc_free() */
    uint64_t moved = smi_serves(t, heap) ? smi_resize(heap, t, ref, size, NULL) : 0;
    return SMI_LIKELY(moved) ? t->base + moved : realloc_long(heap, block, size);
}

size_t shmalloc_usable_size(const shmalloc_heap *heap, const void *block)
{
    uint64_t ref;
    return block && smi_ref_of(heap, block, &ref) ? smi_block_size(heap, ref) : 0;
}

/* ---- read sections ---- */

/* The context with the open section of the heap, however many heaps the thread has; NULL: there is
 * none. */
static struct smi_thread *in_section(shmalloc_heap *heap, int *rc)
{
    struct entry entry;
    *rc = enter(heap, &entry);
    if (*rc < 0)
        return NULL;
    leave(&entry);
    if (entry.t->section_depth > 0)
        return entry.t;
    *rc = smi_error(
        -EINVAL,
        "%s: no read section is open in this thread; begin one before (a child has none of its "
        "parent's)",
        heap->path);
    return NULL;
}

static LONG_WAY int read_begin_long(shmalloc_heap *heap)
{
    struct entry entry;
    int rc = enter(heap, &entry);
    if (rc < 0)
        return rc;
    if (entry.t->section_depth == 0)
        rc = smi_readers_join(heap, &entry.t->section_fences);
    if (rc == 0)
        entry.t->section = &entry.t->slot->section_epoch;
    if (rc == 0 && !smi_section_begin(entry.t))
        rc = smi_heap_poison(heap, "the epoch of read sections changed to what it cannot be");
    smi_os_cancel_restore(entry.cancel_state);
    if (rc < 0) /* else a context that is shared stays locked until the section ends */
        smi_thread_leave_any(entry.t);
    return rc;
}

int shmalloc_read_begin(shmalloc_heap *heap)
{
    struct smi_thread *t = smi_current;
    return SMI_LIKELY(smi_serves(t, heap) && smi_section_begin(t)) ? 0 : read_begin_long(heap);
}

static LONG_WAY int read_valid_long(shmalloc_heap *heap)
{
    int rc;
    const struct smi_thread *t = in_section(heap, &rc);
    return t && smi_section_is_valid(t);
}

int shmalloc_read_valid(shmalloc_heap *heap)
{
    const struct smi_thread *t = smi_current;
    return SMI_LIKELY(smi_serves(t, heap) && t->section_depth > 0) ? smi_section_is_valid(t)
                                                                   : read_valid_long(heap);
}

static LONG_WAY int ousted(const struct smi_thread *t)
{
    int rc = smi_readers_look(t->heap, t->slot);
    return rc < 0 ? rc
                  : smi_error(SHMALLOC_EOUSTED,
                              "%s: the read section took long, and what it may have seen is "
                              "freed; do it again",
                              t->heap->path);
}

static LONG_WAY int read_end_long(shmalloc_heap *heap)
{
    int rc;
    struct smi_thread *t = in_section(heap, &rc);
    if (!t)
        return rc;
    rc = smi_section_end(t) ? 0 : ousted(t);
    smi_thread_leave_any(t);
    return rc;
}

int shmalloc_read_end(shmalloc_heap *heap)
{
    struct smi_thread *t = smi_current;
    if (SMI_UNLIKELY(!smi_serves(t, heap) || t->section_depth == 0))
        return read_end_long(heap);
    return SMI_LIKELY(smi_section_end(t)) ? 0 : ousted(t);
}

static LONG_WAY int retire_long(shmalloc_heap *heap, shmalloc_ref *ref)
{
    struct entry entry;
    int in_heap = destination(heap, ref);
    if (in_heap < 0)
        return in_heap;
    uint64_t retired = SMI_LOAD(ref);
    int rc = retired != 0 ? enter(heap, &entry) : smi_heap_writable(heap);
    if (rc < 0 || retired == 0)
        return rc;
    rc = smi_retire(entry.t, retired, in_heap ? ref : NULL);
    leave(&entry);
    if (rc == 0 && !in_heap)
        *ref = 0;
    return rc;
}

int (shmalloc_retire)(shmalloc_heap *heap, shmalloc_ref *ref)
{
    struct smi_thread *t = smi_current;
    uint64_t at = (uint64_t)((uintptr_t)ref - (uintptr_t)t->base);
    if (SMI_UNLIKELY(!can_follow(heap, t, ref, at)))
        return retire_long(heap, ref);
    uint64_t retired = SMI_LOAD(ref);
    const struct smi_top *top = smi_top_of_any(t, retired);
    if (SMI_UNLIKELY(!top || !smi_bag_takes(t, retired)))
        return retire_long(heap, ref);
    t->bag_bytes += smi_slot_bytes(t, top);
    if (at < t->reserved) {
        smi_link_push(t, ref, retired, &t->bag);
    } else {
        smi_push_word(&t->bag, retired);
        *ref = 0;
    }
    return 0;
}

/* ---- roots ---- */

int shmalloc_root_set(shmalloc_heap *heap, const char *name, uint64_t type, shmalloc_ref ref)
{
    struct entry entry;
    struct smi_name n;
    int rc = smi_name_of(heap, name, &n);
    if (rc < 0 || (rc = enter(heap, &entry)) < 0)
        return rc;
    rc = ref == 0 ? 0 : smi_block_verify(entry.t, ref);
    if (rc == 0)
        rc = smi_roots_bind(heap, &n, &type, &ref, 0, NULL);
    leave(&entry);
    return rc;
}

/* A root was found: has it the type? */
static int root_of_type(const shmalloc_heap *heap, const struct smi_name *name, uint64_t type,
                        uint64_t found_type, uint64_t ref, shmalloc_ref *out)
{
    if (type != 0 && type != found_type)
        return smi_error(SHMALLOC_ETYPE, "%s: root \"%s\" has type %#llx, %#llx was expected",
                         heap->path, name->text, (unsigned long long)found_type,
                         (unsigned long long)type);
    *out = ref;
    return 0;
}

/* Find a root and compare types. Readers without an entry of their own are let in too.
 * SHMALLOC_ENOROOT comes without a message: who asks may be about to make it. */
static int find_root(const shmalloc_heap *heap, const struct smi_name *name, uint64_t type,
                     shmalloc_ref *out)
{
    uint64_t found_type = 0, ref = 0;
    int rc = smi_roots_find(heap, name, &found_type, &ref);
    return rc < 0 ? rc : root_of_type(heap, name, type, found_type, ref, out);
}

int shmalloc_root_get(const shmalloc_heap *heap, const char *name, uint64_t type, shmalloc_ref *out)
{
    struct entry entry;
    struct smi_name n;
    int rc = out ? smi_name_of((shmalloc_heap *)heap, name, &n)
                 : smi_error(-EINVAL, "%s: no place for the ref", heap->path);
    if (rc < 0)
        return rc;
    if (heap->read_only || SMI_LOAD(&heap->state->poison)) {
        rc = find_root(heap, &n, type, out);
        if (rc == SHMALLOC_ENOROOT)
            smi_roots_missing(heap, &n);
    } else {
        rc = enter((shmalloc_heap *)heap, &entry);
        if (rc < 0)
            return rc;
        rc = find_root(heap, &n, type, out);
        if (rc == SHMALLOC_ENOROOT)
            smi_roots_missing(heap, &n);
        leave(&entry);
    }
    return rc;
}

int shmalloc_root_each(const shmalloc_heap *heap,
                       int (*visit)(const shmalloc_root *root, void *arg), void *arg)
{
    struct entry entry;
    if (heap->closed)
        return smi_heap_writable((shmalloc_heap *)heap);
    if (heap->read_only || SMI_LOAD(&heap->state->poison))
        return smi_roots_each(heap, visit, arg);
    int rc = enter((shmalloc_heap *)heap, &entry);
    if (rc < 0)
        return rc;
    rc = smi_roots_each(heap, visit, arg);
    leave(&entry);
    return rc;
}

int shmalloc_root_remove(shmalloc_heap *heap, const char *name)
{
    struct entry entry;
    struct smi_name n;
    int rc = smi_name_of(heap, name, &n);
    if (rc < 0 || (rc = enter(heap, &entry)) < 0)
        return rc;
    rc = smi_roots_remove(heap, &n, NULL);
    leave(&entry);
    return rc;
}

/* What is asked for of a root. */
struct wanted {
    const struct smi_name *name;
    uint64_t type;
    size_t size;
};

/* The root was found: is it what is wanted? */
static int take_found(struct smi_thread *t, const struct wanted *wanted, uint64_t ref,
                      shmalloc_ref *out)
{
    const shmalloc_heap *heap = t->heap;
    int rc = ref == 0 ? 0 : smi_block_verify(t, ref);
    if (rc < 0)
        return smi_error(
            rc,
            "%s: root \"%s\" names %#llx, which is no block any more; bind it anew, or remove it",
            heap->path, wanted->name->text, (unsigned long long)ref);
    size_t size = ref == 0 ? SIZE_MAX : smi_block_size(heap, ref);
    if (size < wanted->size)
        return smi_error(
            SHMALLOC_ESIZE,
            "%s: root \"%s\" has a block of %zu bytes, %zu were asked for; convert what is in it "
            "(shmalloc_ref_realloc, shmalloc_root_set), or run the program that made it",
            heap->path, wanted->name->text, size, wanted->size);
    *out = ref;
    return 0;
}

/* What `building` names becomes a root, unless somebody else's did meanwhile: then it is freed. */
static int publish(struct smi_thread *t, const struct wanted *wanted, shmalloc_ref *out)
{
    shmalloc_heap *heap = t->heap;
    uint64_t *building = &t->slot->building;
    uint64_t ref = *building, found_type = wanted->type;
    int rc = smi_roots_bind(heap, wanted->name, &found_type, &ref, 1, building);
    if (rc == 0) {
        *out = ref;
        return SHMALLOC_CREATED;
    }
    int given = smi_block_give(heap, *building, building);
    if (rc < 0 || given < 0)
        return rc < 0 ? rc : given;
    rc = root_of_type(heap, wanted->name, wanted->type, found_type, ref, &ref);
    return rc < 0 ? rc : take_found(t, wanted, ref, out);
}

static int create_root(struct smi_thread *t, const struct wanted *wanted,
                       int (*init)(shmalloc_heap *, void *, void *), void *arg, shmalloc_ref *out)
{
    shmalloc_heap *heap = t->heap;
    uint64_t *building = &t->slot->building, ref;
    if (*building != 0)
        return smi_error(
            -EDEADLK, "%s: root \"%s\" is wanted while another root's init runs; create it before",
            heap->path, wanted->name->text);
    int rc =
        smi_block_take(t, &(struct smi_request){.size = wanted->size, .zero = 1}, building, &ref);
    if (rc < 0)
        return rc;
    rc = init ? init(heap, smi_at(heap, ref), arg) : 0;
    if (rc == 0)
        return publish(t, wanted, out);
    if (smi_block_give(heap, ref, building) == SHMALLOC_EDOUBLEFREE) /* by init, which should not */
        SMI_STORE(building, 0);
    return rc;
}

int shmalloc_root_get_or_create(shmalloc_heap *heap, const char *name, uint64_t type, size_t size,
                                int (*init)(shmalloc_heap *heap, void *block, void *arg), void *arg,
                                shmalloc_ref *out)
{
    struct entry entry;
    struct smi_name n;
    int rc = out ? smi_name_of(heap, name, &n)
                 : smi_error(-EINVAL, "%s: no place for the ref", heap->path);
    if (rc < 0 || (rc = enter(heap, &entry)) < 0)
        return rc;
    struct wanted wanted = {&n, type, size};
    shmalloc_ref found = 0;
    rc = find_root(heap, &n, type, &found);
    if (rc == 0)
        rc = take_found(entry.t, &wanted, found, out);
    else if (rc == SHMALLOC_ENOROOT)
        rc = create_root(entry.t, &wanted, init, arg, out);
    leave(&entry);
    return rc;
}

/* ---- mutexes ---- */

/* The calling thread's own context, for an owner has a name of its own. */
/* Is it its context as the heap is open now? */
static inline int is_of(const struct smi_thread *t, const shmalloc_heap *heap)
{
    return SMI_LIKELY(t->true_epoch == SMI_LOAD(&heap->epoch));
}

static inline struct smi_thread *thread_of(shmalloc_heap *heap, int *rc)
{
    struct smi_thread *t = smi_current;
    if (is_of(t, heap)) {
        *rc = 0;
        return t;
    }
    return smi_thread_enter(heap, rc);
}

static LONG_WAY int lock_long(shmalloc_heap *heap, shmalloc_mutex *mutex, uint64_t timeout_ns)
{
    int rc, state = smi_os_cancel_off();
    struct smi_thread *t = thread_of(heap, &rc);
    if (t)
        rc = smi_mutex_lock(t, mutex, timeout_ns, 0);
    smi_os_cancel_restore(state);
    return rc;
}

static LONG_WAY int inherit_long(struct smi_thread *t, struct smf_user_mutex *m, int tried)
{
    int state = smi_os_cancel_off();
    int rc = smi_mutex_inherit(t, m, tried, 0);
    smi_os_cancel_restore(state);
    return rc;
}

static inline int lock(shmalloc_heap *heap, shmalloc_mutex *mutex, uint64_t timeout_ns)
{
    struct smi_thread *t = smi_current;
    struct smf_user_mutex *m = is_of(t, heap) ? smi_mutex_of(heap, mutex) : NULL;
    int rc = m && smi_mutex_is_current(heap, m) ? smi_mutex_lock_at_once(t, m, 0) : EBUSY;
    if (SMI_LIKELY(rc == 0))
        return 0;
    return rc == EOWNERDEAD || rc == ECANCELED ? inherit_long(t, m, rc)
                                               : lock_long(heap, mutex, timeout_ns);
}

int shmalloc_mutex_lock(shmalloc_heap *heap, shmalloc_mutex *mutex)
{
    return lock(heap, mutex, UINT64_MAX);
}

int shmalloc_mutex_trylock(shmalloc_heap *heap, shmalloc_mutex *mutex)
{
    return lock(heap, mutex, 0);
}

int shmalloc_mutex_timedlock(shmalloc_heap *heap, shmalloc_mutex *mutex, uint64_t timeout_ns)
{
    /* 0 and the largest value mean something else to smi_mutex_lock() */
    return lock(heap, mutex,
                timeout_ns == 0            ? 1
                : timeout_ns == UINT64_MAX ? timeout_ns - 1
                                           : timeout_ns);
}

int shmalloc_mutex_consistent(shmalloc_heap *heap, shmalloc_mutex *mutex)
{
    int rc;
    struct smi_thread *t = thread_of(heap, &rc);
    struct smf_user_mutex *m = t && smi_tx_of(t) ? smi_mutex_of(heap, mutex) : NULL;
    if (m && smi_mutex_is_in_tx(t, m)) /* what the transaction mended is mended by its commit */
        return smi_tx_store(smi_tx_of(t), &m->owner, t->name | SMF_OWNER_TX);
    return t ? smi_mutex_consistent(t, mutex) : rc;
}

int shmalloc_mutex_unlock(shmalloc_heap *heap, shmalloc_mutex *mutex)
{
    int rc;
    struct smi_thread *t = thread_of(heap, &rc);
    return SMI_LIKELY(t != NULL) ? smi_mutex_unlock(t, mutex) : rc;
}

/* ---- waiting ---- */

int shmalloc_wait(shmalloc_heap *heap, const uint32_t *word, uint32_t expected, uint64_t timeout_ns)
{
    int rc, state = smi_os_cancel_off();
    struct smi_thread *t = thread_of(heap, &rc);
    if (t)
        rc = smi_wait(t, word, expected, timeout_ns, smi_adopt_waiting);
    smi_os_cancel_restore(state);
    return rc;
}

int shmalloc_wake(shmalloc_heap *heap, const uint32_t *word, uint32_t count)
{
    int rc = smi_heap_writable(heap);
    return rc < 0 ? rc : smi_wake(heap, word, count);
}

#define DEATH_SLICE_NS 20000000ull

static int wait_death(const shmalloc_heap *heap, uint64_t id, uint64_t timeout_ns)
{
    uint64_t start = smi_os_clock(), waited = 0;
    int rc;
    while ((rc = shmalloc_is_alive(heap, id)) == 1 && waited < timeout_ns) {
        uint64_t left = timeout_ns - waited;
        smi_os_sleep(left < DEATH_SLICE_NS ? left : DEATH_SLICE_NS);
        waited = smi_os_clock() - start;
    }
    return rc == 1 ? smi_error(-ETIMEDOUT, "%s: the thread %#llx lives on", heap->path,
                               (unsigned long long)id)
                   : rc;
}

int shmalloc_wait_death(const shmalloc_heap *heap, uint64_t id, uint64_t timeout_ns)
{
    int state = smi_os_cancel_off();
    int rc = wait_death(heap, id, timeout_ns);
    smi_os_cancel_restore(state);
    return rc;
}

int shmalloc_cond_timedwait(shmalloc_heap *heap, shmalloc_cond *cond, shmalloc_mutex *mutex,
                            uint64_t timeout_ns)
{
    int rc, state = smi_os_cancel_off();
    struct smi_thread *t = thread_of(heap, &rc);
    if (t)
        rc = smi_cond_wait(t, cond, mutex, timeout_ns, smi_adopt_waiting);
    smi_os_cancel_restore(state);
    return rc;
}

int shmalloc_cond_wait(shmalloc_heap *heap, shmalloc_cond *cond, shmalloc_mutex *mutex)
{
    return shmalloc_cond_timedwait(heap, cond, mutex, SHMALLOC_FOREVER);
}

int shmalloc_cond_signal(shmalloc_heap *heap, shmalloc_cond *cond)
{
    int rc = smi_heap_writable(heap);
    return rc < 0 ? rc : smi_cond_signal(heap, cond);
}

int shmalloc_cond_broadcast(shmalloc_heap *heap, shmalloc_cond *cond)
{
    int rc = smi_heap_writable(heap);
    return rc < 0 ? rc : smi_cond_broadcast(heap, cond);
}

/* ---- the heap as a whole ---- */

int shmalloc_sync(shmalloc_heap *heap, shmalloc_ref ref, uint64_t len)
{
    int rc = heap->read_only ? smi_error(SHMALLOC_EREADONLY, "%s: was opened read-only", heap->path)
             : heap->is_private ? smi_error(-EINVAL, "%s: has no file to sync to", heap->path)
                                : 0;
    if (rc < 0)
        return rc;
    if (ref == 0 && len == 0)
        len = smi_size(heap);
    else if (!shmalloc_ptr_range(heap, ref, len))
        return smi_error(SHMALLOC_EBADREF, "%s: %llu bytes from %#llx are not inside the heap",
                         heap->path, (unsigned long long)len, (unsigned long long)ref);
    if (SMI_LOAD(&heap->state->sync_failed))
        return smi_error(
            -EIO,
            "%s: an earlier sync failed (%s); the kernel may have dropped the pages, so "
            "nothing is durable until the heap is copied to a new file",
            heap->path, shmalloc_strerror(-(int)SMI_LOAD(&heap->state->sync_failed)));
    uint64_t start = ref & ~(uint64_t)(heap->header->os_page_bytes - 1);
    rc = smi_os_sync_range(smi_at(heap, start), len + (ref - start));
    if (rc < 0) {
        SMI_STORE(&heap->state->sync_failed, (uint64_t)-rc);
        return smi_refused(rc, "%s: cannot sync", heap->path);
    }
    return 0;
}

int64_t shmalloc_trim(shmalloc_heap *heap)
{
    struct entry entry;
    int64_t rc = enter(heap, &entry);
    if (rc < 0)
        return rc;
    rc = smi_retire_flush(entry.t);
    if (rc >= 0)
        rc = smi_stacks_trim(entry.t);
    if (rc == 0 || rc == SHMALLOC_EDOUBLEFREE)
        rc = smi_central_trim(heap);
    if (rc == 0)
        rc = smi_pages_trim(heap, 65536 / SMF_PAGE);
    leave(&entry);
    return rc;
}

int shmalloc_set_give_back(shmalloc_heap *heap, uint64_t decay_ms, uint64_t retain)
{
    struct entry entry;
    const uint64_t most_ms = 100ull * 366 * 24 * 3600 * 1000;
    if (decay_ms != SHMALLOC_NEVER && decay_ms > most_ms)
        return smi_error(-EINVAL,
                         "%s: a decay of %llu ms is over 100 years; did you mean SHMALLOC_NEVER?",
                         heap->path, (unsigned long long)decay_ms);
    int rc = enter(heap, &entry);
    if (rc < 0)
        return rc;
    SMI_STORE(&heap->state->decay_ns, decay_ms == SHMALLOC_NEVER ? SMF_NEVER : decay_ms * 1000000);
    SMI_STORE(&heap->state->retain, retain);
    leave(&entry);
    return 0;
}

/* Walkers read copies through the descriptor: what another process cuts off the file meanwhile is
 * then missing, and no SIGBUS. */
static int see(const shmalloc_heap *heap, struct smi_view *view)
{
    int rc = heap->closed ? smi_heap_writable((shmalloc_heap *)heap)
                          : smi_heap_descriptor((shmalloc_heap *)heap);
    if (rc < 0)
        return rc;
    if (heap->is_private) {
        if ((rc = smi_fork_settle((shmalloc_heap *)heap)) < 0)
            return rc;
        smi_view_of_mapping(view, heap->base, smi_size(heap), heap->path);
        return 0;
    }
    rc = smi_view_of_descriptor(view, heap->fd, heap->path);
    if (rc < 0)
        smi_view_finish(view);
    return rc;
}

int shmalloc_get_stats(const shmalloc_heap *heap, shmalloc_stats *out)
{
    struct smi_view view;
    shmalloc_stats found;
    int both = out ? smi_sized(out, offsetof(shmalloc_stats, max_size), sizeof(found)) : -EINVAL;
    if (both < 0)
        return smi_error(-EINVAL,
                         "%s: stats.struct_size is expected to be up to %zu, or more with zeros "
                         "beyond that; begin with SHMALLOC_STATS_INIT, or use a newer library "
                         "than " SHMALLOC_VERSION,
                         heap->path, sizeof(found));
    int rc = see(heap, &view);
    if (rc < 0)
        return rc;
    rc = smi_view_stats(&view, &found);
    smi_view_finish(&view);
    if (rc < 0)
        return rc;
    found.prefaulted = heap->prefaulted;
    found.huge = smi_resident_huge(heap);
    found.struct_size = out->struct_size;
    memcpy(out, &found, (size_t)both);
    return 0;
}

struct visitor {
    const shmalloc_heap *heap;
    int (*visit)(const shmalloc_block *block, void *arg);
    void *arg;
};

/* The view undoes what is in flight. In a damaged heap that may bring back a size which the heap
 * has not, and blocks there, which shmalloc_ptr() would deny. */
static int visit_inside(const shmalloc_block *block, void *arg)
{
    const struct visitor *visitor = arg;
    return smi_in_heap(visitor->heap, block->ref, block->size) ? visitor->visit(block, visitor->arg)
                                                               : 0;
}

int shmalloc_each_block(const shmalloc_heap *heap,
                        int (*visit)(const shmalloc_block *block, void *arg), void *arg)
{
    struct smi_view view;
    struct visitor visitor = {heap, visit, arg};
    int rc = see(heap, &view);
    if (rc < 0)
        return rc;
    rc = smi_view_each_block(&view, visit_inside, &visitor);
    smi_view_finish(&view);
    return rc;
}

int shmalloc_check(const shmalloc_heap *heap)
{
    struct smi_view view;
    int rc = see(heap, &view);
    if (rc < 0)
        return rc;
    rc = smi_check_or_error(&view);
    smi_view_finish(&view);
    return rc;
}
