/* SPDX-License-Identifier: MIT */
/*
 * process.c - this process's entry in the table, its threads' contexts, forked children.
 *
 * A context belongs to one thread, which frees it: at its exit, or when it comes by and finds the heap
 * closed. A closed heap only disowns contexts (heap = NULL), under the registry lock.
 *
 * A forked child has its parent's memory but none of its claims: the epoch, in a page that the kernel wipes
 * in children, is 0, so every context it inherited is stale, and its first call attaches anew.
 */
#include "process.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cache.h"
#include "lock.h"
#include "os.h"
#include "pages.h"
#include "recover.h"

#define LOOK_EVERY_NS 1000000000ull

static struct smi_thread nobody = {.epoch = UINT64_MAX, .true_epoch = UINT64_MAX};
_Thread_local struct smi_thread *smi_current = &nobody;

static uint64_t no_slots[1];
struct smi_bin smi_no_bin = {.array = no_slots};

/* All contexts of this thread. */
static _Thread_local struct smi_thread *contexts;

shmalloc_heap *smi_heaps;
static pthread_mutex_t registry = PTHREAD_MUTEX_INITIALIZER;
static pthread_key_t exit_key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static uint64_t last_epoch;

void smi_registry_lock(void)
{
    pthread_mutex_lock(&registry);
}

void smi_registry_unlock(void)
{
    pthread_mutex_unlock(&registry);
}

int smi_registry_trylock(void)
{
    return pthread_mutex_trylock(&registry) == 0;
}

struct smf_thread *smi_thread_slot(const shmalloc_heap *heap, uint32_t index)
{
    uint64_t ref = index < SMF_THREADS ? SMI_LOAD(&heap->threads[index]) : 0;
    if (ref == 0 || ref % SMF_PAGE != 0 || !smi_in_heap(heap, ref, SMF_THREAD_PAGES * SMF_PAGE))
        return NULL;
    return smi_at(heap, ref);
}

/* ---- the process's entry ---- */

static void fill_entry(struct smf_process *entry)
{
    entry->pid = (uint32_t)getpid();
    entry->start_time = smi_os_start_time(getpid(), getpid());
    entry->attached_at = smi_os_now();
    entry->uid = (uint32_t)getuid();
    smi_os_process_name(entry->name);
    entry->serial++;
    SMI_STORE(&entry->state, 1);
}

int smi_process_claim(shmalloc_heap *heap)
{
    for (int pass = 0; pass < 2; pass++) {
        for (uint32_t i = 0; i < SMF_PROCESSES; i++) {
            if (SMI_LOAD(&heap->processes[i].state) != 0)
                continue;
            int rc = smi_os_hold_byte(heap->fd, SMF_LOCK_BYTES + i, &heap->liveness);
            if (rc == -EAGAIN)
                continue;
            if (rc < 0)
                return smi_refused(rc, "%s: cannot hold a lock on the file", heap->path);
            fill_entry(&heap->processes[i]);
            heap->process_index = (int)i;
            heap->generation = heap->state->generation;
            __atomic_store_n(&heap->epoch, __atomic_add_fetch(&last_epoch, 1, __ATOMIC_RELAXED),
                             __ATOMIC_RELEASE);
            return 0;
        }
        int rc = pass == 0 ? smi_recover_adopt(heap, SMI_ADOPT_ALL) : 0; /* the entries of the dead */
        if (rc < 0)
            return rc;
    }
    return smi_error(SHMALLOC_EPROCESSES, "%s: %d processes have the heap open, which is the limit; close it in one",
                     heap->path, SMF_PROCESSES);
}

/* Take a context out of its heap's list; the registry lock is held. */
static void disown(struct smi_thread *t)
{
    struct smi_thread **at = &t->heap->contexts;
    while (*at && *at != t)
        at = &(*at)->next_in_heap;
    if (*at)
        *at = t->next_in_heap;
    t->epoch = t->true_epoch = UINT64_MAX;
    t->heap = NULL;
}

static int release_slot(shmalloc_heap *heap, struct smf_thread *slot)
{
    int rc = smi_lock_acquire(heap, SMF_LOCK_RECOVER);
    if (rc < 0)
        return rc;
    uint64_t all = UINT64_MAX;
    rc = smi_cache_release(heap, slot, &all);
    smi_lock_release(heap, SMF_LOCK_RECOVER);
    return rc;
}

void smi_process_drop(shmalloc_heap *heap)
{
    __atomic_store_n(&heap->epoch, 0, __ATOMIC_RELEASE);
    while (heap->contexts)
        disown(heap->contexts);
    smi_os_unmap(heap->liveness, 4096);
    heap->liveness = NULL;
    heap->process_index = -1;
}

int smi_process_leave(shmalloc_heap *heap)
{
    int rc = 0;
    __atomic_store_n(&heap->epoch, 0, __ATOMIC_RELEASE);
    for (struct smi_thread *t = heap->contexts; t && heap->process_index >= 0 && rc == 0; t = t->next_in_heap)
        if (heap->state->poison == 0)
            rc = release_slot(heap, t->slot);
    if (heap->process_index >= 0 && rc == 0) /* else the next one adopts what is left */
        SMI_STORE(&heap->processes[heap->process_index].state, 0);
    smi_process_drop(heap);
    return rc;
}

/* ---- forked children ---- */

static void before_fork(void)
{
    smi_registry_lock();
}

static void after_fork_in_parent(void)
{
    smi_registry_unlock();
}

/* What this process inherited and may not use. The registry lock may be held by a thread that is not here. */
static void forget_parent(void)
{
    pthread_mutex_init(&registry, NULL);
    smi_lock_forget();
    smi_current = &nobody;
    contexts = NULL; /* the memory of the parent's contexts is lost to the child: it may be in mid-change */
}

static void after_fork_in_child(void)
{
    forget_parent();
}

/* Under the registry lock, so that no fork copies a description that holds the attach lock. */
static int claim_locked(shmalloc_heap *heap)
{
    smi_registry_lock();
    int rc = smi_attach_lock(heap);
    if (rc == 0) {
        rc = smi_recover_attach(heap, 0, 0);
        smi_attach_unlock(heap);
    }
    smi_registry_unlock();
    return rc;
}

/* A forked child's heap: attach as a process of its own. The first of its threads to come does it. */
static int attach_child(shmalloc_heap *heap)
{
    uint32_t *gate = (uint32_t *)(void *)heap->wiped; /* 0 in every new child */
    while (__atomic_exchange_n(gate, 1, __ATOMIC_ACQUIRE) != 0)
        smi_os_sleep(100000);
    int rc = 0;
    if (__atomic_load_n(&heap->epoch, __ATOMIC_ACQUIRE) == 0) {
        if (!smi_os_thread_known()) {
            rc = smi_error(-ENOTSUP,
                           "%s: this process was made by a raw clone(2), so the C library takes it for its "
                           "parent; make it with fork() or _Fork()",
                           heap->path);
        } else {
            if (smi_current != &nobody || contexts) /* no atfork handler ran: _Fork() */
                forget_parent();
            heap->contexts = NULL;
            heap->liveness = NULL;
            heap->process_index = -1;
            int fd = smi_os_reopen(heap->fd, 0); /* the parent's description shares the parent's locks */
            if (fd >= 0) {
                smi_os_close(heap->fd);
                heap->fd = fd;
            }
            rc = fd < 0 ? smi_refused(fd, "%s: cannot open the file once more by /proc/self/fd", heap->path)
                        : claim_locked(heap);
        }
    }
    __atomic_store_n(gate, 0, __ATOMIC_RELEASE);
    return rc;
}

/* ---- the thread's context ---- */

static void free_context(struct smi_thread *t)
{
    struct smi_thread **at = &contexts;
    while (*at && *at != t)
        at = &(*at)->next_in_thread;
    if (*at)
        *at = t->next_in_thread;
    if (smi_current == t)
        smi_current = &nobody;
    free(t);
}

int smi_only_mine(const shmalloc_heap *heap)
{
    for (const struct smi_thread *t = heap->contexts; t; t = t->next_in_heap) {
        const struct smi_thread *mine = contexts;
        while (mine && mine != t)
            mine = mine->next_in_thread;
        if (!mine)
            return 0;
    }
    return 1;
}

static void at_thread_exit(void *arg)
{
    (void)arg;
    smi_registry_lock();
    while (contexts) {
        struct smi_thread *t = contexts;
        shmalloc_heap *heap = t->heap;
        if (heap && t->true_epoch == heap->epoch) {
            if (heap->state->poison == 0)
                release_slot(heap, t->slot);
            disown(t);
        }
        free_context(t);
    }
    smi_registry_unlock();
}

static void set_up(void)
{
    pthread_key_create(&exit_key, at_thread_exit);
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

/* A thread slot for the calling thread: free, or new. RECOVER held. */
static int claim_slot(shmalloc_heap *heap, uint32_t *index)
{
    uint32_t unmade = SMF_THREADS;
    for (uint32_t i = 0; i < SMF_THREADS; i++) {
        struct smf_thread *slot = smi_thread_slot(heap, i);
        if (slot && slot->owner == 0) {
            *index = i;
            return 0;
        }
        if (heap->threads[i] == 0 && unmade == SMF_THREADS)
            unmade = i;
    }
    if (unmade == SMF_THREADS)
        return smi_error(SHMALLOC_ETHREADS,
                         "%s: %d threads use the heap, which is the limit; let some of them end",
                         heap->path, SMF_THREADS);
    struct smi_take request = {.count = SMF_THREAD_PAGES,
                               .alignment = 1,
                               .kind = SMF_PAGE_META,
                               .name = &heap->threads[unmade]};
    uint32_t page;
    int zero;
    *index = unmade;
    return smi_pages_take(heap, &request, &page, &zero);
}

static int own_slot(shmalloc_heap *heap, struct smi_thread *t)
{
    int rc = smi_lock_acquire(heap, SMF_LOCK_RECOVER);
    if (rc < 0)
        return rc;
    rc = claim_slot(heap, &t->slot_index);
    t->slot = rc == 0 ? smi_thread_slot(heap, t->slot_index) : NULL;
    if (rc == 0 && !t->slot)
        rc = smi_heap_poison(heap, "entry %u of the thread table names no thread slot", t->slot_index);
    if (rc == 0) {
        struct smf_thread *slot = t->slot;
        slot->serial++;
        slot->tid = smi_os_thread_id();
        slot->start_time = smi_os_start_time(getpid(), (pid_t)slot->tid);
        smi_cache_format(slot, (uint64_t)((uint8_t *)slot - heap->base));
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
        if (release_slot(heap, t->slot) == 0)
            disown(t); /* its memory went with the thread that would have freed it */
    }
    smi_registry_unlock();
}

static struct smi_thread *make_context(shmalloc_heap *heap, int *rc)
{
    struct smi_thread *t = aligned_alloc(_Alignof(struct smi_thread), sizeof(*t));
    if (!t) {
        *rc = smi_refused(-ENOMEM, "%s: no private memory for a thread", heap->path);
        return NULL;
    }
    memset(t, 0, sizeof(*t));
    t->heap = heap;
    *rc = own_slot(heap, t);
    if (*rc == SHMALLOC_ETHREADS) {
        reap_own(heap, 1);
        smi_recover_adopt(heap, SMI_ADOPT_ALL);
        *rc = own_slot(heap, t);
    }
    if (*rc == 0)
        *rc = smi_cache_load(t);
    if (*rc < 0) {
        free(t);
        return NULL;
    }
    t->base = heap->base;
    t->reserved = heap->reserved;
    t->words = heap->words;
    t->arena = t->slot_index % heap->arena_count;
    t->true_epoch = heap->epoch;
    t->epoch = heap->hardened ? UINT64_MAX : heap->epoch;
    t->next_in_thread = contexts;
    contexts = t;
    smi_registry_lock();
    t->next_in_heap = heap->contexts;
    heap->contexts = t;
    smi_registry_unlock();
    pthread_setspecific(exit_key, t);
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
        if (!t->heap) /* of a heap that was closed */
            free_context(t);
    }
    return NULL;
}

/* Now and then: has a process or a thread died, has free memory been free for long? */
static void look_around(shmalloc_heap *heap)
{
    uint64_t now = smi_os_tick(), last = SMI_LOAD(&heap->looked_at);
    int due = now - last > LOOK_EVERY_NS;
    if (due && !__atomic_compare_exchange_n(&heap->looked_at, &last, now, 0, __ATOMIC_RELAXED,
                                            __ATOMIC_RELAXED))
        return; /* another thread does it */
    if (due || SMI_LOAD(&heap->adopt_wanted))
        smi_recover_adopt(heap, SMI_ADOPT_SOME);
    if (due) {
        reap_own(heap, 0);
        smi_pages_decay(heap);
    }
}

struct smi_thread *smi_thread_enter(shmalloc_heap *heap, int *rc)
{
    pthread_once(&once, set_up);
    *rc = smi_heap_writable(heap);
    if (*rc == 0 && __atomic_load_n(&heap->epoch, __ATOMIC_ACQUIRE) == 0)
        *rc = attach_child(heap);
    if (*rc < 0)
        return NULL;
    struct smi_thread *t = find_context(heap, heap->epoch);
    if (!t)
        t = make_context(heap, rc);
    if (!t)
        return NULL;
    smi_current = t;
    smi_forget_last(t);
    look_around(heap);
    return t;
}
