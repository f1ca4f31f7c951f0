/* SPDX-License-Identifier: MIT */
/*
 * private.c - heaps without a file, in memory of this process; see private.h.
 *
 * A private heap is a forked child's own copy, and its first call settles it. The copy shows each
 * of the parent's other threads as of one instant: until fork is done, each of their stores reaches
 * the pages that the child gets, or waits. So they look as if they had been killed there, which is
 * what undo logs and link records are made for: nobody needs to take locks around a fork, and a
 * child that only calls exec pays nothing.
 */
#include "life/private.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "handle/lock.h"
#include "handle/mapping.h"
#include "handle/storage.h"
#include "life/adopt.h"
#include "life/attach.h"
#include "life/context.h"
#include "life/create.h"
#include "life/fork.h"
#include "life/open.h"
#include "life/registry.h"
#include "pages/pages.h"
#include "platform/direct_mutex.h"
#include "platform/os.h"
#include "slots/stacks.h"
#include "tx/txlog.h"

#define PRIVATE_SIZE (8ull << 20) /* of a private heap, at first: addresses, not memory */

static const char private_name[] = "private heap"; /* in messages */

static void recursive_mutex(pthread_mutex_t *mutex)
{
#ifdef PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP
    *mutex = (pthread_mutex_t)PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
#else
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(mutex, &attr);
    pthread_mutexattr_destroy(&attr);
#endif
}

void smi_private_start(shmalloc_heap *heap, uint64_t epoch)
{
    SMI_ASSERT(smi_registry_is_held());
    recursive_mutex(&heap->shared_lock);
    heap->process_index = 0;
    heap->processes[0].pid = smi_os_process_id();
    heap->processes[0].state = 1;
    heap->generation = heap->state->generation;
    __atomic_store_n(&heap->epoch, epoch, __ATOMIC_RELEASE);
}

/* ---- a forked child's copy ---- */

/* What the parent's other threads were doing under locks is undone, and nobody has a lock. */
static int repair_copy(shmalloc_heap *heap)
{
    static const struct smf_lock free_lock;
    int rc = smi_lock_repair(heap, smi_lock_of_pages(heap));
    for (uint32_t i = smi_lock_of_pages(heap) + 1; i-- > 0;)
        if (memcmp(heap->locks[i].mutex, free_lock.mutex, sizeof(free_lock.mutex)) != 0) {
            memset(heap->locks[i].mutex, 0, sizeof(free_lock.mutex));
            if (rc == 0)
                rc = smi_lock_repair(heap, i);
        }
    return rc;
}

/* The slots of all threads but `mine` come to rest; their contexts are nobody's. */
static int release_others(shmalloc_heap *heap, struct smi_thread *mine)
{
    uint64_t all = UINT64_MAX;
    int rc = smi_lock_acquire(heap, SMF_LOCK_RECOVER);
    if (rc < 0)
        return rc;
    for (uint32_t i = 0; rc == 0 && i < SMF_THREADS; i++) {
        struct smf_thread *slot = smi_thread_slot(heap, i);
        if (slot && slot->owner != 0 && (!mine || slot != mine->slot))
            rc = smi_adopt_slot(heap, slot, i, &all);
    }
    smi_lock_release(heap, SMF_LOCK_RECOVER);
    for (struct smi_thread *t = heap->contexts, *next; t; t = next) {
        next = t->next_in_heap;
        if (t != mine)
            smi_context_disown(heap, t); /* which may still be in the list of the thread that
                                            forked */
    }
    if (heap->shared)
        smi_context_to_pool(heap->shared);
    heap->shared = NULL;
    return rc;
}

/* Was the thread that forked, whose context is `mine`, the only one in the heap? Then others left
 * nothing to bring to rest, and the child is spared the look at all locks and thread slots, most of
 * which it never touches. */
static int forked_alone(const shmalloc_heap *heap, const struct smi_thread *mine)
{
    return SMI_LOAD(&heap->arriving) == 0 && !heap->half_settled && !heap->shared &&
           heap->context_count == (mine ? 1 : 0);
}

/* A forked child's copy of a private heap; the registry lock is held. A user's mutex is free in the
 * child, and who locks it first is told if it was held: the new generation sees to that.
 *
 *   the thread that forked              is found by            what is done
 *   was alone in the heap               forked_alone()         nothing
 *   was one of several                  otherwise              the others' changes are undone,
 *     their slots released
 *   did so while a copy was settled     half_settled           the same; what else it had, nobody
 *     took
 *   forked in a handler, under a lock   any_held               nothing: its call goes on and must
 *     not be undone
 */
int smi_private_settle(shmalloc_heap *heap)
{
    SMI_ASSERT(smi_registry_is_held());
    struct smi_thread *mine = smi_fork_context(heap);
    int rc = 0;
    if (!smi_lock_any_held() && !forked_alone(heap, mine)) {
        SMI_STORE(&heap->half_settled, 1);
        rc = repair_copy(heap);
        if (rc == 0)
            rc = release_others(heap, mine);
    }
    if (rc == 0 && mine && !smi_lock_any_held()) /* its transaction is its parent's */
        rc = smi_log_settle(heap, mine->slot, mine->slot_index);
    if (rc < 0)
        return rc;
    uint64_t epoch = smi_attach_epoch();
    if (mine) { /* before anybody sees that the heap has it */
        mine->held_count = 0; /* users' mutexes are free here */
        memset(mine->slot->held, 0, sizeof(mine->slot->held));
        mine->true_epoch = epoch;
    }
    smi_private_start(heap, epoch);
    heap->generation = ++heap->state->generation;
    heap->runtime->generation = heap->generation;
    SMI_STORE(&heap->half_settled, 0);
    return 0;
}

/* ---- creation ---- */

static int take_options(const shmalloc_options *given, shmalloc_options *o)
{
    int rc = smi_create_options(given, private_name, o);
    if (rc < 0)
        return rc;
    const unsigned fit = SHMALLOC_CREATE | SHMALLOC_HARDENED | SHMALLOC_HUGE_PAGES;
    if (o->flags & ~fit)
        return smi_error(-EINVAL, "%s: flags %#x are for heaps in files", private_name,
                         o->flags & ~fit);
    return o->base ? smi_error(-EINVAL, "%s: a fixed base is for heaps in files", private_name) : 0;
}

/* The fixed areas in fresh memory; zeros are free mutexes, and nobody is there to be told of a
 * death. */
static int format_private(shmalloc_heap *heap, const struct smf_header *header, uint64_t size)
{
    int rc = smi_storage_set_length(heap, size);
    if (rc < 0)
        return smi_refused(rc, "%s: cannot make a heap of %llu bytes", private_name,
                           (unsigned long long)size);
    memcpy(heap->base, header, sizeof(*header));
    smi_open_set_areas(heap, header);
    heap->state->max_size = heap->reserved;
    heap->state->epoch = 1;
    heap->state->decay_ns = SMI_DEFAULT_DECAY_NS;
    heap->state->mark = SMF_IN_USE;
    heap->state->generation = heap->runtime->generation = 1;
    return smi_pages_format(heap, size);
}

/* Map as much as there is, up to the maximum size, and lay the heap out. */
static int build_private(shmalloc_heap *heap, const shmalloc_options *o)
{
    struct smf_header header = {.magic = SMF_MAGIC};
    int rc = smi_create_header(&header, o);
    if (rc < 0)
        return smi_refused(rc, "%s: cannot make a robust mutex", private_name);
    header.checksum = smi_hash(&header, offsetof(struct smf_header, checksum));
    uint64_t least = smi_create_granules(header.areas.end + 8 * SMF_PAGE);
    uint64_t size = smi_create_granules(o->initial_size ? o->initial_size : PRIVATE_SIZE);
    uint64_t most = smi_create_granules(o->max_size ? o->max_size : SMI_DEFAULT_MAX_SIZE);
    if (most < least)
        return smi_error(-EINVAL,
                         "%s: maximum size %llu is below the %llu bytes that an empty heap has",
                         private_name, (unsigned long long)most, (unsigned long long)least);
    rc = smi_mapping_make(heap, most, least, NULL);
    if (rc < 0)
        return rc;
    most = most < heap->reserved ? most : heap->reserved;
    size = size < least ? least : size < most ? size : most;
    rc = format_private(heap, &header, size);
    if (rc == 0) {
        heap->state->max_size = most;
        if (o->flags & SHMALLOC_HUGE_PAGES)
            smi_os_want_huge(heap->base, heap->reserved);
    }
    return rc;
}

int shmalloc_open_private(const shmalloc_options *options, shmalloc_heap **out)
{
    shmalloc_options o;
    int rc = out ? take_options(options, &o)
                 : smi_error(-EINVAL, "%s: no place for the handle", private_name);
    shmalloc_heap *heap = rc == 0 ? smi_handle_new(private_name) : NULL;
    if (rc < 0 || !heap)
        return rc < 0 ? rc : -ENOMEM;
    heap->is_private = 1;
    heap->path = private_name;
    rc = build_private(heap, &o);
    if (rc < 0) {
        smi_handle_drop(heap);
        return rc;
    }
    smi_registry_lock();
    smi_private_start(heap, smi_attach_epoch());
    smi_registry_add(heap);
    smi_registry_unlock();
    *out = heap;
    return 0;
}
