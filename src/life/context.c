/* SPDX-License-Identifier: MIT */
/*
 * context.c - what each thread of this process needs to use a heap; see context.h.
 *
 * A context belongs to one thread, which frees it: at its exit, or when it comes by and finds the
 * heap closed. A closed heap only disowns contexts (heap = NULL), under the registry lock. In the
 * pool are those that are in no list, neither a thread's nor a heap's.
 */
#include "life/context.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "handle/lock.h"
#include "handle/pagetable.h"
#include "life/adopt.h"
#include "life/fork.h"
#include "life/registry.h"
#include "pages/pages.h"
#include "platform/direct_mutex.h"
#include "platform/os.h"
#include "slots/stacks.h"
#include "slots/kept.h"
#include "tx/tx.h"

#define LOOK_EVERY_NS 1000000000ull
#define MOST_CONTEXTS (SMF_THREADS - 1) /* of a private heap: one slot is for all others together */

_Thread_local struct smi_thread *smi_contexts;

static pthread_key_t exit_key;
static int has_exit_key; /* a program may have taken all keys: then slots come back with the
                            process */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int is_set_up;

/* Memory for contexts that nobody has: those that somebody had, and the rest of a mapping, never
 * touched. Those of private heaps are not wiped in forked children: there they are as good as here,
 * and a call that a handler's fork interrupted goes on with them. The registry lock is held. It is
 * not malloc's, because malloc may be what the heap is for. */
static struct pool {
    struct smi_thread *used, *untouched;
    unsigned untouched_count;
} pools[2]; /* of heaps in files, of private ones */

void smi_context_to_pool(struct smi_thread *t)
{
    SMI_ASSERT(smi_registry_is_held());
    struct pool *pool = &pools[t->is_private];
    smi_tx_drop(t);
    t->next_in_thread = pool->used;
    pool->used = t;
}

static struct smi_thread *from_pool(const shmalloc_heap *heap)
{
    SMI_ASSERT(smi_registry_is_held());
    struct pool *pool = &pools[heap->is_private];
    struct smi_thread *t = pool->used;
    if (t) {
        pool->used = t->next_in_thread;
        return t;
    }
    if (pool->untouched_count == 0) { /* in this order, for a child that a handler forks in
                                         between */
        /* and as much for what is not wiped */
        const size_t hot = SMI_CONTEXTS_AT_ONCE * SMI_CONTEXT_PAGE;
        SMI_STORE(&pool->untouched, smi_os_private(2 * hot, heap->is_private ? 0 : hot));
        SMI_STORE(&pool->untouched_count, pool->untouched ? SMI_CONTEXTS_AT_ONCE : 0);
    }
    return pool->untouched_count > 0
               ? (struct smi_thread *)(void *)((uint8_t *)pool->untouched +
                                               --pool->untouched_count * SMI_CONTEXT_PAGE)
               : NULL;
}

/* It stops being the thread's before it stops being
 * counted: see forked_alone(). */
void smi_context_disown(shmalloc_heap *heap, struct smi_thread *t)
{
    SMI_ASSERT(smi_registry_is_held());
    struct smi_thread **at = &heap->contexts;
    t->true_epoch = UINT64_MAX;
    SMI_STORE(&t->serves, NULL);
    SMI_STORE(&t->heap, NULL);
    while (*at && *at != t)
        at = &(*at)->next_in_heap;
    if (*at) {
        *at = t->next_in_heap;
        heap->context_count--;
    }
}

int smi_context_release(shmalloc_heap *heap, struct smi_thread *t, int cut_off)
{
    int rc = smi_lock_acquire(heap, SMF_LOCK_RECOVER);
    if (rc < 0)
        return rc;
    uint64_t all = UINT64_MAX;
    for (uint32_t k = 0; !cut_off && k < SMF_CLASSES; k++)
        smi_stacks_close(t, k);
    rc = smi_adopt_slot(heap, t->slot, t->slot_index, &all);
    smi_lock_release(heap, SMF_LOCK_RECOVER);
    return rc;
}

/* What is in the page of a context that a fork wipes, but for the stacks. */
static void fill_hot_page(struct smi_thread *t)
{
    const shmalloc_heap *heap = t->heap;
    t->base = heap->base;
    t->reserved = heap->reserved;
    t->covered = smi_pagetable_covered(heap);
    t->known = (const uint64_t *)((uintptr_t)heap->known -
                                  ((uintptr_t)heap->base >> SMF_PAGE_SHIFT) * sizeof(uint64_t));
    memcpy(t->top_by_8, smi_top_by_8, sizeof(t->top_by_8));
}

/* From here on the fast paths may use the context, unless the heap was closed meanwhile. The
 * registry lock is held, under which a heap that is closed looks for contexts that serve it. */
static void serve(struct smi_thread *t)
{
    SMI_ASSERT(smi_registry_is_held());
    int is_open = __atomic_load_n(&t->heap->epoch, __ATOMIC_ACQUIRE) == t->true_epoch;
    SMI_STORE(&t->serves, is_open && !t->heap->hardened ? t->heap : SMI_SERVES_NONE);
}

/* Take a context of this thread out of the thread's list; the registry lock is held. */
static void drop_context(struct smi_thread *t)
{
    SMI_ASSERT(smi_registry_is_held());
    struct smi_thread **at = &smi_contexts;
    while (*at && *at != t)
        at = &(*at)->next_in_thread;
    if (*at)
        *at = t->next_in_thread;
    if (smi_current == t)
        smi_current = &smi_nobody;
}

/* The same, and nobody has it any more: no heap's list has it. */
static void free_context(struct smi_thread *t)
{
    drop_context(t);
    smi_context_to_pool(t);
}

/* Is the context one of the calling thread? */
static int is_mine(const struct smi_thread *t)
{
    const struct smi_thread *mine = smi_contexts;
    while (mine && mine != t)
        mine = mine->next_in_thread;
    return mine != NULL;
}

int smi_context_only_mine(const shmalloc_heap *heap)
{
    SMI_ASSERT(smi_registry_is_held());
    if (SMI_LOAD(&heap->arriving) != 0) /* one makes itself a context, under locks */
        return 0;
    for (const struct smi_thread *t = heap->contexts; t; t = t->next_in_heap)
        if (!is_mine(t))
            return 0;
    return 1;
}

int smi_context_end_transactions(shmalloc_heap *heap)
{
    uint64_t epoch = __atomic_load_n(&heap->epoch, __ATOMIC_ACQUIRE);
    struct smi_thread *own = NULL;
    for (struct smi_thread *t = epoch != 0 ? heap->contexts : NULL; t; t = t->next_in_heap) {
        if ((SMI_LOAD(&t->slot->tx_state) & SMF_TX_PHASE) == SMF_TX_IDLE)
            continue;
        if (is_mine(t))
            own = t;
        else if (smi_os_thread_exists((pid_t)t->slot->tid, 0))
            return smi_error(
                -EBUSY,
                "%s: thread %llu of this process has a transaction open; end that before closing",
                heap->path, (unsigned long long)t->slot->tid);
    }
    return own && smi_tx_of(own) ? smi_tx_end(own->tx) : 0;
}

/* The thread's last destructors have run, or are about to: it makes no context of a private heap
 * any more. */
static _Thread_local uint8_t is_leaving;
/* It is on the way to set_up() or in it, where the C library may call a malloc that is ours. */
static _Thread_local uint8_t is_setting_up;

static int uses_private_heap(void)
{
    const struct smi_thread *t = smi_contexts;
    while (t && !(t->heap && t->heap->is_private))
        t = t->next_in_thread;
    return t != NULL;
}

/* `arg` says only that there was a context. */
static void at_thread_exit(void *arg)
{
    /* Destructors of other keys run after this one and free: so this does its work in the second
     * round. */
    if (!is_leaving && uses_private_heap() && pthread_setspecific(exit_key, arg) == 0) {
        is_leaving = 1;
        return;
    }
    smi_registry_lock();
    while (smi_contexts) {
        struct smi_thread *t = smi_contexts;
        shmalloc_heap *heap = t->heap;
        if (heap && t->true_epoch != heap->epoch) { /* a child's copy that is not settled: which
                                                       will disown it */
            t->true_epoch = UINT64_MAX;
            drop_context(t);
            continue;
        }
        if (heap) {
            if (smi_tx_of(t))
                smi_tx_end(t->tx);
            if (heap->state->poison == 0)
                smi_context_release(heap, t, 0);
            smi_context_disown(heap, t);
        }
        free_context(t);
    }
    smi_fork_forget(&smi_contexts);
    smi_registry_unlock();
}

static void set_up(void)
{
    has_exit_key = pthread_key_create(&exit_key, at_thread_exit) == 0;
    smi_os_at_fork(smi_fork_before, smi_fork_after, smi_fork_after_in_child);
    __atomic_store_n(&is_set_up, 1, __ATOMIC_RELEASE);
}

void smi_context_set_up(void)
{
    if (__atomic_load_n(&is_set_up, __ATOMIC_ACQUIRE) || is_setting_up)
        return;
    is_setting_up = 1;
    pthread_once(&once, set_up);
    is_setting_up = 0;
}

int smi_context_has_end(void)
{
    return has_exit_key;
}

/* One of the first `count` thread slots, free or new; those that were made come first in the table.
 * RECOVER held. *untouched_slot: it is the first of a private heap, which nobody had a block of
 * before, so that all its bytes are zero. */
static int claim_slot(shmalloc_heap *heap, uint32_t count, uint32_t *index, int *untouched_slot)
{
    SMI_ASSERT(smi_lock_is_ours(heap, SMF_LOCK_RECOVER));
    *untouched_slot = 0;
    for (*index = 0; *index < count && heap->threads[*index] != 0; ++*index) {
        struct smf_thread *slot = smi_thread_slot(heap, *index);
        if (slot && slot->owner == 0)
            return 0;
    }
    if (*index == count)
        return smi_error(SHMALLOC_ETHREADS,
                         "%s: %d threads use the heap, which is the limit; let some of them end",
                         heap->path, SMF_THREADS);
    struct smi_take request = {.count = SMF_THREAD_PAGES,
                               .alignment = 1,
                               .kind = SMF_PAGE_META,
                               .tag = SMF_PURPOSE_SLOT,
                               .holder = &heap->threads[*index]};
    uint32_t page;
    int zero, rc = smi_pages_take(heap, &request, &page, &zero);
    *untouched_slot = rc == 0 && zero && heap->is_private && *index == 0;
    return rc;
}

/* When a thread of this process began: the first one did when the process did, which is known. */
static uint64_t start_time_of(const shmalloc_heap *heap, pid_t tid)
{
    return heap->is_private  ? 0
           : tid == (pid_t)smi_os_process_id() ? heap->processes[heap->process_index].start_time
                             : smi_os_start_time((pid_t)smi_os_process_id(), tid);
}

static int make_slot(shmalloc_heap *heap, uint32_t count, struct smi_thread *t)
{
    int untouched_slot = 0, rc = smi_lock_acquire(heap, SMF_LOCK_RECOVER);
    if (rc < 0)
        return rc;
    /* left meanwhile */
    if (!heap->is_private && __atomic_load_n(&heap->epoch, __ATOMIC_ACQUIRE) != t->true_epoch)
        rc = smi_error(SHMALLOC_ECLOSED, "%s: was closed by another thread; open the heap again",
                       heap->path);
    else
        rc = claim_slot(heap, count, &t->slot_index, &untouched_slot);
    t->slot = rc == 0 ? smi_thread_slot(heap, t->slot_index) : NULL;
    if (rc == 0 && !t->slot)
        rc = smi_heap_poison(heap, "entry %u of the thread table names no thread slot",
                             t->slot_index);
    if (rc == 0) {
        struct smf_thread *slot = t->slot;
        if (!heap->is_private) /* nearly all pages of the slot are stored to now: one call instead
                                  of a fault for each */
            smi_os_populate(slot, SMF_THREAD_PAGES * SMF_PAGE, 1);
        smi_stacks_count_claims(heap, slot);
        SMI_STORE(&slot->serial, slot->serial + 1); /* who cannot lock a mutex looks who has it */
        SMI_STORE(&slot->tid, smi_os_thread_id());
        slot->start_time = start_time_of(heap, (pid_t)slot->tid);
        smi_stacks_format(slot, (uint64_t)((uint8_t *)slot - heap->base), untouched_slot);
        SMI_STORE(&slot->owner, (uint64_t)heap->process_index + 1);
        t->name = slot->serial << SMF_OWNER_SERIAL_SHIFT | (t->slot_index + 1);
    }
    smi_lock_release(heap, SMF_LOCK_RECOVER);
    return rc;
}

/* Slots of threads of this process that ended without their destructors. `thorough`: also those
 * whose id another thread has by now, which takes a file to be read for each. */
static void reap_own(shmalloc_heap *heap, int thorough)
{
    smi_registry_lock();
    for (struct smi_thread *t = heap->contexts, *next; t; t = next) {
        next = t->next_in_heap;
        if (smi_os_thread_exists((pid_t)t->slot->tid, thorough ? t->slot->start_time : 0))
            continue;
        if (smi_context_release(heap, t, 1) == 0) {
            smi_context_disown(heap, t);
            smi_context_to_pool(t); /* the thread that would have done so is gone, and its list of
                                       contexts with it */
        }
    }
    smi_registry_unlock();
}

/* A context with one of the first `count` thread slots, in no list yet, of the attachment `epoch`:
 * a child of a signal handler that interrupts this goes on with it, and finds at its next call that
 * the heap has another. */
static struct smi_thread *new_context(shmalloc_heap *heap, uint32_t count, uint64_t epoch, int *rc)
{
    smi_registry_lock();
    struct smi_thread *t = from_pool(heap);
    smi_registry_unlock();
    if (!t) {
        *rc = smi_refused(-ENOMEM, "%s: no private memory for a thread", heap->path);
        return NULL;
    }
    memset(t, 0, SMI_CONTEXT_PAGE);
    memset(&t->slot, 0, sizeof(*t) - offsetof(struct smi_thread, slot));
    t->heap = heap;
    t->is_private = heap->is_private;
    t->true_epoch = epoch;
    *rc = make_slot(heap, count, t);
    if (*rc == SHMALLOC_ETHREADS && !heap->is_private) {
        reap_own(heap, 1);
        smi_adopt(heap, SMI_ADOPT_ALL);
        *rc = make_slot(heap, count, t);
    }
    if (*rc == 0)
        *rc = smi_stacks_load(t);
    if (*rc < 0) {
        smi_registry_lock();
        smi_context_to_pool(t);
        smi_registry_unlock();
        return NULL;
    }
    fill_hot_page(t);
    t->arena = t->slot_index % heap->arena_count;
    return t;
}

static struct smi_thread *make_context(shmalloc_heap *heap, uint64_t epoch, int *rc)
{
    __atomic_fetch_add(&heap->arriving, 1, __ATOMIC_SEQ_CST);
    struct smi_thread *t =
        new_context(heap, heap->is_private ? MOST_CONTEXTS : SMF_THREADS, epoch, rc);
    if (t) {
        smi_registry_lock();
        t->next_in_thread = smi_contexts;
        smi_contexts = t;
        t->next_in_heap = heap->contexts;
        heap->contexts = t;
        heap->context_count++;
        serve(t);
        smi_registry_unlock();
        if (has_exit_key)
            pthread_setspecific(exit_key, t);
    }
    __atomic_fetch_sub(&heap->arriving, 1, __ATOMIC_SEQ_CST);
    return t;
}

static struct smi_thread *find_context(shmalloc_heap *heap, uint64_t epoch)
{
    if (smi_current->true_epoch == epoch && smi_current->heap == heap)
        return smi_current;
    for (struct smi_thread *t = smi_contexts, *next; t; t = next) {
        next = t->next_in_thread;
        if (t->heap == heap && t->true_epoch == epoch)
            return t;
        if (!t->heap) { /* of a heap that was closed */
            smi_registry_lock();
            free_context(t);
            smi_registry_unlock();
        }
    }
    return NULL;
}

/* Now and then: has a process or a thread died, has free memory been free for long? Each thread
 * looks at what it keeps itself. */
static void look_around(struct smi_thread *t)
{
    shmalloc_heap *heap = t->heap;
    uint64_t now = smi_os_tick(), last = SMI_LOAD(&heap->looked_at);
    int due = now - last > LOOK_EVERY_NS;
    if (t->span_pages > 0)
        smi_kept_decay(t, now);
    if (due && !__atomic_compare_exchange_n(&heap->looked_at, &last, now, 0, __ATOMIC_RELAXED,
                                            __ATOMIC_RELAXED))
        return; /* another thread does it */
    if (!heap->is_private && (due || SMI_LOAD(&heap->adopt_wanted)))
        smi_adopt(heap, SMI_ADOPT_SOME);
    if (!heap->is_private && due)
        reap_own(heap, 0);
    if (due)
        smi_pages_decay(heap);
}

/* The context of all threads that have none, locked. */
static struct smi_thread *enter_shared(shmalloc_heap *heap, uint64_t epoch, int *rc)
{
    *rc = 0;
    pthread_mutex_lock(&heap->shared_lock);
    if (!heap->shared) {
        __atomic_fetch_add(&heap->arriving, 1, __ATOMIC_SEQ_CST);
        heap->shared = new_context(heap, SMF_THREADS, epoch, rc);
        __atomic_fetch_sub(&heap->arriving, 1, __ATOMIC_SEQ_CST);
    }
    if (!heap->shared)
        pthread_mutex_unlock(&heap->shared_lock);
    return heap->shared;
}

/* Can the calling thread, which has no context, not have one either? Asked before trying, because
 * failing is slow. */
static int cannot_have_one(const shmalloc_heap *heap)
{
    return heap->is_private && (is_leaving || SMI_LOAD(&heap->context_count) >= MOST_CONTEXTS);
}

static struct smi_thread *enter_as(shmalloc_heap *heap, int may_share, int *rc)
{
    smi_context_set_up();
    *rc = smi_heap_writable(heap);
    if (*rc == 0 && __atomic_load_n(&heap->epoch, __ATOMIC_ACQUIRE) == 0)
        *rc = smi_fork_attach(heap);
    if (*rc < 0)
        return NULL;
    uint64_t epoch = __atomic_load_n(&heap->epoch, __ATOMIC_ACQUIRE);
    struct smi_thread *t = find_context(heap, epoch);
    if (!t && may_share && cannot_have_one(heap))
        return enter_shared(heap, epoch, rc);
    if (!t)
        t = make_context(heap, epoch, rc);
    if (!t && may_share && *rc == SHMALLOC_ETHREADS && heap->is_private)
        return enter_shared(heap, epoch, rc);
    if (!t)
        return NULL;
    smi_current = t;
    look_around(t);
    return t;
}

struct smi_thread *smi_thread_enter(shmalloc_heap *heap, int *rc)
{
    return enter_as(heap, 0, rc);
}

struct smi_thread *smi_thread_enter_any(shmalloc_heap *heap, int *rc)
{
    return enter_as(heap, 1, rc);
}

void smi_thread_leave_any(struct smi_thread *t)
{
    if (SMI_UNLIKELY(t == t->heap->shared))
        pthread_mutex_unlock(&t->heap->shared_lock);
}
