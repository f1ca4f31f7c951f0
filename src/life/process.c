/* SPDX-License-Identifier: MIT */
/*
 * process.c - this process's entry in the table, its threads' contexts, forked children.
 *
 * A context belongs to one thread, which frees it: at its exit, or when it comes by and finds the heap
 * closed. A closed heap only disowns contexts (heap = NULL), under the registry lock. In the pool are those that are
 * in no list, neither a thread's nor a heap's.
 *
 * A forked child has its parent's memory but none of its claims: the epoch, in a page that the kernel wipes
 * in children, is 0, so every context it inherited is stale, and its first call attaches anew.
 *
 * A private heap is the child's own copy, and its first call settles it. The copy shows each of the parent's other
 * threads as of one instant: until fork is done, each of their stores reaches the pages that the child gets, or
 * waits. So they look as if they had been killed there, which is what undo logs and link records are made for:
 * nobody needs to take locks around a fork, and a child that only calls exec pays nothing.
 */
#include "life/process.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "slots/cache.h"
#include "platform/direct_mutex.h"
#include "slots/kept.h"
#include "handle/lock.h"
#include "platform/os.h"
#include "pages/pages.h"
#include "handle/pagetable.h"
#include "life/recover.h"

#define LOOK_EVERY_NS 1000000000ull
#define MOST_CONTEXTS (SMF_THREADS - 1) /* of a private heap: one slot is for all others together */

/* All contexts of this thread. */
static _Thread_local struct smi_thread *contexts;

shmalloc_heap *smi_heaps;
static pthread_mutex_t registry = PTHREAD_MUTEX_INITIALIZER;
/* A signal handler that forks takes it while the call that it interrupted may hold it: so a thread takes it once only. */
static _Thread_local unsigned registry_depth;
static pthread_key_t exit_key;
static int has_exit_key; /* a program may have taken all keys: then slots come back with the process */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int is_set_up;
static uint64_t last_epoch;

/* Memory for contexts that nobody has: those that somebody had, and the rest of a mapping, never touched. Those of private
 * heaps are not wiped in forked children: there they are as good as here, and a call that a handler's fork interrupted goes
 * on with them. The registry lock is held. It is not malloc's, because malloc may be what the heap is for. */
static struct pool {
    struct smi_thread *used, *untouched;
    unsigned untouched_count;
} pools[2]; /* of heaps in files, of private ones */

static void to_pool(struct smi_thread *t)
{
    struct pool *pool = &pools[t->is_private];
    t->next_in_thread = pool->used;
    pool->used = t;
}

static struct smi_thread *from_pool(const shmalloc_heap *heap)
{
    struct pool *pool = &pools[heap->is_private];
    struct smi_thread *t = pool->used;
    if (t) {
        pool->used = t->next_in_thread;
        return t;
    }
    if (pool->untouched_count == 0) { /* in this order, for a child that a handler forks in between */
        const size_t hot = SMI_CONTEXTS_AT_ONCE * SMI_CONTEXT_PAGE; /* and as much for what is not wiped */
        SMI_STORE(&pool->untouched, smi_os_private(2 * hot, heap->is_private ? 0 : hot));
        SMI_STORE(&pool->untouched_count, pool->untouched ? SMI_CONTEXTS_AT_ONCE : 0);
    }
    return pool->untouched_count > 0
               ? (struct smi_thread *)(void *)((uint8_t *)pool->untouched + --pool->untouched_count * SMI_CONTEXT_PAGE)
               : NULL;
}

void smi_registry_lock(void)
{
    if (registry_depth++ == 0)
        pthread_mutex_lock(&registry);
}

void smi_registry_unlock(void)
{
    if (registry_depth == 1)
        smi_os_unlock_counted(&registry, &registry_depth);
    else
        registry_depth--;
}

int smi_registry_trylock(void)
{
    if (registry_depth > 0 || pthread_mutex_trylock(&registry) != 0)
        return 0;
    registry_depth = 1;
    return 1;
}

/* ---- the process's entry ---- */

static void fill_entry(struct smf_process *entry)
{
    entry->pid = smi_os_process_id();
    entry->attached_at = smi_os_now();
    entry->uid = smi_os_user_id();
    smi_os_describe_self(entry->name, &entry->start_time);
    entry->serial++;
    SMI_STORE(&entry->state, 1);
}

static void new_epoch(shmalloc_heap *heap)
{
    __atomic_store_n(&heap->epoch, __atomic_add_fetch(&last_epoch, 1, __ATOMIC_RELAXED), __ATOMIC_RELEASE);
}

/* Claim a free entry with `own`, a description of our own. -EAGAIN: there is none. */
static int claim_free(shmalloc_heap *heap, int own)
{
    int rc = -EAGAIN;
    for (uint32_t i = 0; rc == -EAGAIN && i < SMF_PROCESSES; i++) {
        if (SMI_LOAD(&heap->processes[i].state) != 0)
            continue;
        rc = smi_os_hold_byte(own, SMF_LOCK_BYTES + i, &heap->liveness);
        if (rc < 0)
            continue;
        fill_entry(&heap->processes[i]);
        heap->process_index = (int)i;
        heap->generation = heap->state->generation;
        new_epoch(heap);
    }
    return rc < 0 && rc != -EAGAIN ? smi_refused(rc, "%s: cannot hold a lock on the file", heap->path) : rc;
}

int smi_process_claim(shmalloc_heap *heap)
{
    int own = smi_heap_reopen(heap), rc = own < 0 ? own : claim_free(heap, own);
    if (rc == -EAGAIN && (rc = smi_recover_adopt(heap, SMI_ADOPT_ALL)) == 0) /* the entries of the dead */
        rc = claim_free(heap, own);
    smi_os_close(own);
    if (rc != -EAGAIN)
        return rc;
    return smi_error(SHMALLOC_EPROCESSES, "%s: %d processes have the heap open, which is the limit; close it in one",
                     heap->path, SMF_PROCESSES);
}

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

void smi_process_start_private(shmalloc_heap *heap)
{
    recursive_mutex(&heap->shared_lock);
    heap->process_index = 0;
    heap->processes[0].pid = smi_os_process_id();
    heap->processes[0].state = 1;
    heap->generation = heap->state->generation;
    new_epoch(heap);
}

/* Take a context out of its heap's list; the registry lock is held. It stops being the thread's before it stops being
 * counted: see forked_alone(). */
static void disown(shmalloc_heap *heap, struct smi_thread *t)
{
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

/* The thread slot of a context comes to rest. `cut_off`: its thread may have stopped in the middle of a call, where what
 * it knows of its stacks is no truth; so they are closed by their words, as those of the dead are, and not before the
 * link record is resolved. */
static int release_slot(shmalloc_heap *heap, struct smi_thread *t, int cut_off)
{
    int rc = smi_lock_acquire(heap, SMF_LOCK_RECOVER);
    if (rc < 0)
        return rc;
    uint64_t all = UINT64_MAX;
    for (uint32_t k = 0; !cut_off && k < SMF_CLASSES; k++)
        smi_cache_close(t, k);
    rc = smi_cache_release(heap, t->slot, t->slot_index, &all);
    smi_lock_release(heap, SMF_LOCK_RECOVER);
    return rc;
}

void smi_process_drop(shmalloc_heap *heap)
{
    __atomic_store_n(&heap->epoch, 0, __ATOMIC_RELEASE);
    while (heap->contexts)
        disown(heap, heap->contexts);
    if (heap->shared)
        to_pool(heap->shared);
    heap->shared = NULL;
    smi_os_unmap(heap->liveness, 4096);
    heap->liveness = NULL;
    heap->process_index = -1;
}

int smi_process_leave(shmalloc_heap *heap, int cut_off)
{
    int rc = 0;
    __atomic_store_n(&heap->epoch, 0, __ATOMIC_RELEASE);
    for (struct smi_thread *t = heap->contexts; t; t = t->next_in_heap)
        SMI_STORE(&t->serves, NULL);
    for (struct smi_thread *t = heap->contexts; t && heap->process_index >= 0 && rc == 0; t = t->next_in_heap)
        if (heap->state->poison == 0)
            rc = release_slot(heap, t, cut_off);
    if (heap->process_index >= 0 && rc == 0) /* else the next one adopts what is left */
        SMI_STORE(&heap->processes[heap->process_index].state, 0);
    smi_process_drop(heap);
    return rc;
}

/* What is in the page of a context that a fork wipes, but for the stacks. */
static void fill_hot_page(struct smi_thread *t)
{
    const shmalloc_heap *heap = t->heap;
    t->base = heap->base;
    t->reserved = heap->reserved;
    t->covered = smi_pagetable_covered(heap);
    t->known = (const uint64_t *)((uintptr_t)heap->known - ((uintptr_t)heap->base >> SMF_PAGE_SHIFT) * sizeof(uint64_t));
    memcpy(t->top_by_8, smi_top_by_8, sizeof(t->top_by_8));
}

/* From here on the fast paths may use the context, unless the heap was closed meanwhile. The registry lock is held, under
 * which a heap that is closed looks for contexts that serve it. */
static void serve(struct smi_thread *t)
{
    int is_open = __atomic_load_n(&t->heap->epoch, __ATOMIC_ACQUIRE) == t->true_epoch;
    SMI_STORE(&t->serves, is_open && !t->heap->hardened ? t->heap : SMI_SERVES_NONE);
}

/* ---- forked children ---- */

/* How many times the thread that forks has taken the registry lock for it, under which this changes: more than once
 * when a handler that interrupts fork() forks. Where there are no other threads it is not taken: each store after a fork
 * costs a copy of its page. */
static unsigned holds_for_fork;

static void before_fork(void)
{
    if (smi_os_only_thread())
        return;
    smi_registry_lock();
    holds_for_fork++;
}

static void after_fork_in_parent(void)
{
    if (holds_for_fork == 0)
        return;
    holds_for_fork--;
    smi_registry_unlock();
}

/* The process that forget_parent() ran in. */
static pid_t forgotten_by;
/* Did the thread that forked run it? Then its contexts; NULL: it has none, or ended. */
static int knows_forker;
static struct smi_thread **of_forker;

/* What this process inherited and may not use. The registry lock may be held by a thread that is not here. */
static void forget_parent(void)
{
    registry = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    forgotten_by = (pid_t)smi_os_process_id();
    knows_forker = smi_os_thread_id() == smi_os_process_id(); /* it is the first thread of the child */
    of_forker = knows_forker && contexts && has_exit_key ? &contexts : NULL;
    /* The memory of the parent's contexts is lost to the child: it may be in mid-change. Those of private heaps are
     * the child's, and may be used before the copy is settled, which is left to the first call that takes the long way:
     * most children only call exec. */
    if (smi_current != &smi_nobody && !(smi_current->heap && smi_current->is_private))
        smi_current = &smi_nobody;
    struct smi_thread **at = &contexts;
    while (*at)
        if ((*at)->heap && (*at)->heap->is_private)
            at = &(*at)->next_in_thread;
        else
            *at = (*at)->next_in_thread;
    int any_private = 0;
    for (shmalloc_heap *heap = smi_heaps; heap; heap = heap->next)
        any_private |= heap->is_private;
    if (!any_private) /* else what this thread holds may be a lock of its copy */
        smi_lock_forget();
}

static void after_fork_in_child(void)
{
    forget_parent();
    registry_depth -= holds_for_fork;
    holds_for_fork = 0;
}

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
            rc = smi_cache_release(heap, slot, i, &all);
    }
    smi_lock_release(heap, SMF_LOCK_RECOVER);
    for (struct smi_thread *t = heap->contexts, *next; t; t = next) {
        next = t->next_in_heap;
        if (t != mine)
            disown(heap, t); /* which may still be in the list of the thread that forked */
    }
    if (heap->shared)
        to_pool(heap->shared);
    heap->shared = NULL;
    return rc;
}

static struct smi_thread *context_in(struct smi_thread *list, const shmalloc_heap *heap)
{
    while (list && list->heap != heap)
        list = list->next_in_thread;
    return list;
}

/* The context of the thread that forked; NULL: it has none, or ended. A thread that was made in the child may be the
 * first to come, and that one goes on with its context meanwhile, as far as it needs no long way. */
static struct smi_thread *context_of_forker(const shmalloc_heap *heap)
{
    struct smi_thread *t = context_in(contexts, heap);
    if (!t && of_forker)
        t = context_in(*of_forker, heap);
    int is_told = t || knows_forker || heap->settling || heap->context_count != 1;
    return is_told || heap->contexts->true_epoch == UINT64_MAX ? t : heap->contexts; /* _Fork() by the only thread */
}

/* Was the thread that forked, whose context is `mine`, the only one in the heap? Then others left nothing to bring to
 * rest, and the child is spared the look at all locks and thread slots, most of which it never touches. */
static int forked_alone(const shmalloc_heap *heap, const struct smi_thread *mine)
{
    return SMI_LOAD(&heap->arriving) == 0 && !heap->settling && !heap->shared &&
           heap->context_count == (mine ? 1 : 0);
}

/* A forked child's copy of a private heap; the registry lock is held. A user's mutex is free in the child, and who
 * locks it first is told if it was held: the new generation sees to that.
 *
 *   the thread that forked              is found by            what is done
 *   was alone in the heap               forked_alone()         nothing
 *   was one of several                  otherwise              the others' changes are undone, their slots released
 *   did so while a copy was settled     settling               the same; what else it had, nobody took
 *   forked in a handler, under a lock   any_held               nothing: its call goes on and must not be undone
 */
static int settle_copy(shmalloc_heap *heap)
{
    struct smi_thread *mine = context_of_forker(heap);
    int rc = 0;
    if (!smi_lock_any_held() && !forked_alone(heap, mine)) {
        SMI_STORE(&heap->settling, 1);
        rc = repair_copy(heap);
        if (rc == 0)
            rc = release_others(heap, mine);
    }
    if (rc < 0)
        return rc;
    if (mine) /* before anybody sees that the heap has it */
        mine->true_epoch = last_epoch + 1;
    smi_process_start_private(heap);
    heap->generation = ++heap->state->generation;
    heap->runtime->generation = heap->generation;
    SMI_STORE(&heap->settling, 0);
    return 0;
}

/* Under the registry lock, so that no fork copies a description that holds the attach lock. */
static int claim_locked(shmalloc_heap *heap)
{
    smi_registry_lock();
    int rc = smi_attach_lock(heap); /* the descriptor is new */
    if (rc == 0) {
        rc = smi_recover_attach(heap, 0, 0);
        smi_attach_unlock(heap);
    }
    smi_registry_unlock();
    return rc;
}

static int claim_as_child(shmalloc_heap *heap)
{
    if (!smi_os_thread_known())
        return smi_error(-ENOTSUP,
                         "%s: this process was made by a raw clone(2), so the C library takes it for its "
                         "parent; make it with fork() or _Fork()",
                         heap->path);
    heap->contexts = NULL;
    heap->context_count = 0;
    heap->liveness = NULL;
    heap->process_index = -1;
    int fd = smi_heap_reopen(heap); /* the parent's description shares the parent's locks */
    int rc = fd < 0 ? fd : smi_heap_replace_descriptor(heap, fd);
    return rc < 0 ? rc : claim_locked(heap);
}

/* A forked child's heap: attach as a process of its own, or settle the copy. The first of its threads to come does
 * it. */
static int attach_child(shmalloc_heap *heap)
{
    while (__atomic_exchange_n(&heap->gate, 1, __ATOMIC_ACQUIRE) != 0)
        smi_os_sleep(100000);
    int rc = 0;
    if (__atomic_load_n(&heap->epoch, __ATOMIC_ACQUIRE) == 0) {
        if (forgotten_by != (pid_t)smi_os_process_id()) /* no atfork handler ran: _Fork(), or a raw clone */
            forget_parent();
        if (heap->is_private) {
            smi_registry_lock();
            rc = settle_copy(heap);
            smi_registry_unlock();
        } else {
            rc = claim_as_child(heap);
        }
    }
    __atomic_store_n(&heap->gate, 0, __ATOMIC_RELEASE);
    return rc;
}

int smi_process_settle(shmalloc_heap *heap)
{
    return __atomic_load_n(&heap->epoch, __ATOMIC_ACQUIRE) == 0 && SMI_LOAD(&heap->state->poison) == 0
               ? attach_child(heap)
               : 0;
}

/* ---- the thread's context ---- */

/* Take a context of this thread out of the thread's list; the registry lock is held. */
static void drop_context(struct smi_thread *t)
{
    struct smi_thread **at = &contexts;
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
    to_pool(t);
}

int smi_only_mine(const shmalloc_heap *heap)
{
    if (SMI_LOAD(&heap->arriving) != 0) /* one makes itself a context, under locks */
        return 0;
    for (const struct smi_thread *t = heap->contexts; t; t = t->next_in_heap) {
        const struct smi_thread *mine = contexts;
        while (mine && mine != t)
            mine = mine->next_in_thread;
        if (!mine)
            return 0;
    }
    return 1;
}

#define PATIENCE_MS 100

/* Is the calling thread the only one? One that was joined has given its contexts back, but the kernel may still count
 * it for a moment. */
static int is_alone(const shmalloc_heap *heap)
{
    for (int tries = 0; tries < PATIENCE_MS; tries++) {
        unsigned threads = smi_os_threads();
        if (threads <= 1)
            return threads == 1;
        if (smi_registry_trylock()) {
            int others_work = !smi_only_mine(heap);
            smi_registry_unlock();
            if (others_work)
                return 0;
        }
        smi_os_sleep(1000000);
    }
    return 0;
}

int smi_process_may_leave(const shmalloc_heap *heap)
{
    return __atomic_load_n(&heap->epoch, __ATOMIC_ACQUIRE) != 0 && heap->process_index >= 0 &&
           heap->processes[heap->process_index].pid == smi_os_process_id() && registry_depth == 0 &&
           !smi_lock_any_held() && is_alone(heap);
}

/* The thread's last destructors have run, or are about to: it makes no context of a private heap any more. */
static _Thread_local uint8_t is_leaving;
/* It is on the way to set_up() or in it, where the C library may call a malloc that is ours. */
static _Thread_local uint8_t is_setting_up;

static int uses_private_heap(void)
{
    const struct smi_thread *t = contexts;
    while (t && !(t->heap && t->heap->is_private))
        t = t->next_in_thread;
    return t != NULL;
}

/* `arg` says only that there was a context. */
static void at_thread_exit(void *arg)
{
    /* Destructors of other keys run after this one and free: so this does its work in the second round. */
    if (!is_leaving && uses_private_heap() && pthread_setspecific(exit_key, arg) == 0) {
        is_leaving = 1;
        return;
    }
    smi_registry_lock();
    while (contexts) {
        struct smi_thread *t = contexts;
        shmalloc_heap *heap = t->heap;
        if (heap && t->true_epoch != heap->epoch) { /* a child's copy that is not settled: which will disown it */
            t->true_epoch = UINT64_MAX;
            drop_context(t);
            continue;
        }
        if (heap) {
            if (heap->state->poison == 0)
                release_slot(heap, t, 0);
            disown(heap, t);
        }
        free_context(t);
    }
    if (of_forker == &contexts)
        of_forker = NULL;
    smi_registry_unlock();
}

static void set_up(void)
{
    has_exit_key = pthread_key_create(&exit_key, at_thread_exit) == 0;
    smi_os_at_fork(before_fork, after_fork_in_parent, after_fork_in_child);
    __atomic_store_n(&is_set_up, 1, __ATOMIC_RELEASE);
}

void smi_process_set_up(void)
{
    if (__atomic_load_n(&is_set_up, __ATOMIC_ACQUIRE) || is_setting_up)
        return;
    is_setting_up = 1;
    pthread_once(&once, set_up);
    is_setting_up = 0;
}

/* One of the first `count` thread slots, free or new; those that were made come first in the table. RECOVER held.
 * *untouched_slot: it is the first of a private heap, which nobody had a block of before, so that all its bytes are zero. */
static int claim_slot(shmalloc_heap *heap, uint32_t count, uint32_t *index, int *untouched_slot)
{
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
                               .name = &heap->threads[*index]};
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

static int own_slot(shmalloc_heap *heap, uint32_t count, struct smi_thread *t)
{
    int untouched_slot = 0, rc = smi_lock_acquire(heap, SMF_LOCK_RECOVER);
    if (rc < 0)
        return rc;
    if (!heap->is_private && __atomic_load_n(&heap->epoch, __ATOMIC_ACQUIRE) != t->true_epoch) /* left meanwhile */
        rc = smi_error(SHMALLOC_ECLOSED, "%s: was closed by another thread; open the heap again", heap->path);
    else
        rc = claim_slot(heap, count, &t->slot_index, &untouched_slot);
    t->slot = rc == 0 ? smi_thread_slot(heap, t->slot_index) : NULL;
    if (rc == 0 && !t->slot)
        rc = smi_heap_poison(heap, "entry %u of the thread table names no thread slot", t->slot_index);
    if (rc == 0) {
        struct smf_thread *slot = t->slot;
        if (!heap->is_private) /* nearly all pages of the slot are stored to now: one call instead of a fault for each */
            smi_os_populate(slot, SMF_THREAD_PAGES * SMF_PAGE, 1);
        slot->serial++;
        slot->tid = smi_os_thread_id();
        slot->start_time = start_time_of(heap, (pid_t)slot->tid);
        smi_cache_format(slot, (uint64_t)((uint8_t *)slot - heap->base), untouched_slot);
        SMI_STORE(&slot->owner, (uint64_t)heap->process_index + 1);
    }
    smi_lock_release(heap, SMF_LOCK_RECOVER);
    return rc;
}

/* Slots of threads of this process that ended without their destructors. `thorough`: also those whose id another
 * thread has by now, which takes a file to be read for each. */
static void reap_own(shmalloc_heap *heap, int thorough)
{
    smi_registry_lock();
    for (struct smi_thread *t = heap->contexts, *next; t; t = next) {
        next = t->next_in_heap;
        if (smi_os_thread_exists((pid_t)t->slot->tid, thorough ? t->slot->start_time : 0))
            continue;
        if (release_slot(heap, t, 1) == 0) {
            disown(heap, t);
            to_pool(t); /* the thread that would have done so is gone, and its list of contexts with it */
        }
    }
    smi_registry_unlock();
}

/* A context with one of the first `count` thread slots, in no list yet, of the attachment `epoch`: a child of a signal
 * handler that interrupts this goes on with it, and finds at its next call that the heap has another. */
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
    *rc = own_slot(heap, count, t);
    if (*rc == SHMALLOC_ETHREADS && !heap->is_private) {
        reap_own(heap, 1);
        smi_recover_adopt(heap, SMI_ADOPT_ALL);
        *rc = own_slot(heap, count, t);
    }
    if (*rc == 0)
        *rc = smi_cache_load(t);
    if (*rc < 0) {
        smi_registry_lock();
        to_pool(t);
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
    struct smi_thread *t = new_context(heap, heap->is_private ? MOST_CONTEXTS : SMF_THREADS, epoch, rc);
    if (t) {
        smi_registry_lock();
        t->next_in_thread = contexts;
        contexts = t;
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
    for (struct smi_thread *t = contexts, *next; t; t = next) {
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

/* Now and then: has a process or a thread died, has free memory been free for long? Each thread looks at what it keeps
 * itself. */
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
        smi_recover_adopt(heap, SMI_ADOPT_SOME);
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

/* Can the calling thread, which has no context, not have one either? Asked before trying, because failing is slow. */
static int cannot_have_one(const shmalloc_heap *heap)
{
    return heap->is_private && (is_leaving || SMI_LOAD(&heap->context_count) >= MOST_CONTEXTS);
}

static struct smi_thread *enter(shmalloc_heap *heap, int may_share, int *rc)
{
    smi_process_set_up();
    *rc = smi_heap_writable(heap);
    if (*rc == 0 && __atomic_load_n(&heap->epoch, __ATOMIC_ACQUIRE) == 0)
        *rc = attach_child(heap);
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
    return enter(heap, 0, rc);
}

struct smi_thread *smi_thread_enter_any(shmalloc_heap *heap, int *rc)
{
    return enter(heap, 1, rc);
}

void smi_thread_leave_any(struct smi_thread *t)
{
    if (SMI_UNLIKELY(t == t->heap->shared))
        pthread_mutex_unlock(&t->heap->shared_lock);
}
