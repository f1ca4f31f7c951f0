/* SPDX-License-Identifier: MIT */
/* lock.c - the only caller of pthread mutexes in the file; see lock.h. */
#include "handle/lock.h"

#include <errno.h>
#include <pthread.h>

#include "platform/os.h"
#include "handle/undo.h"

/* Indices of the heap locks this thread holds, ascending. */
static _Thread_local struct {
    uint32_t index[8];
    unsigned count;
    unsigned changing; /* 1: it takes or gives up one, and what is noted may be wrong by that one */
} held;

/* Said before the mutex is taken, and taken back when that is noted: an exit() in a signal handler
 * in between must not take the heap for one in which this thread holds nothing. */
static void change(unsigned changing)
{
    SMI_STORE(&held.changing, changing);
}

static void note_acquired(uint32_t index)
{
    SMI_ASSERT(held.count < 8);
    SMI_ASSERT(held.count == 0 || held.index[held.count - 1] < index);
    held.index[held.count++] = index;
}

static void note_released(uint32_t index)
{
    SMI_ASSERT(held.count > 0 && held.index[held.count - 1] == index);
    (void)index;
    held.count--;
}

int smi_lock_any_held(void)
{
    return held.count > 0;
}

int smi_lock_may_be_held(void)
{
    return held.count > 0 || SMI_LOAD(&held.changing);
}

int smi_lock_is_ours(const shmalloc_heap *heap, uint32_t index)
{
    for (unsigned i = 0; i < held.count; i++)
        if (held.index[i] == index)
            return 1;
    return SMI_LOAD(&heap->epoch) == 0;
}

void smi_lock_forget(void)
{
    held.count = held.changing = 0;
}

int smi_lock_repair(shmalloc_heap *heap, uint32_t index)
{
    for (const struct smi_repair_row *row = heap->repairs; row->repair; row++)
        if (index >= row->first && index <= row->last)
            return row->repair(heap, index);
    return 0; /* a lock that nothing takes yet */
}

int smi_lock_pass(shmalloc_heap *heap, uint32_t first, uint32_t last)
{
    for (uint32_t i = first; i <= last; i++) {
        int rc = smi_lock_acquire(heap, i);
        if (rc < 0)
            return rc;
        smi_lock_release(heap, i);
    }
    return 0;
}

static int take_over(shmalloc_heap *heap, uint32_t index)
{
    struct smf_lock *lock = &heap->locks[index];
    /* We hold the lock, but its owner may have stopped between any two stores. Repair first: a
     * mutex made consistent over half a change would pass the damage on without a trace. If we are
     * killed in the repair, the next owner repairs again. */
    int rc = smi_lock_repair(heap, index);
    lock->repairs++;
    SMI_STORE(&heap->adopt_wanted, 1);
    pthread_mutex_consistent((pthread_mutex_t *)lock->mutex);
    if (rc < 0)
        smi_lock_release(heap, index);
    return rc;
}

/* What pthread_mutex_lock or _trylock answered, other than EBUSY. */
static int answer(shmalloc_heap *heap, uint32_t index, int rc)
{
    if (rc != 0 && rc != EOWNERDEAD) {
        change(0);
        return smi_heap_poison(heap, "lock %u answers \"%s\"", index, shmalloc_strerror(-rc));
    }
    note_acquired(index);
    change(0);
    return rc == EOWNERDEAD ? take_over(heap, index) : 0;
}

int smi_lock_try(shmalloc_heap *heap, uint32_t index)
{
    change(1);
    int rc = pthread_mutex_trylock((pthread_mutex_t *)heap->locks[index].mutex);
    if (rc != EBUSY)
        return answer(heap, index, rc);
    change(0);
    return -EBUSY;
}

/*
 * Wait for a mutex, in slices. A waiter that is killed after the unlocker woke it, but before it
 * noticed, takes the only wake-up with it; when a third thread has taken the free mutex meanwhile,
 * its word no longer says that anybody waits, and neither that thread nor the kernel wakes the
 * others. (Seen after some hundred kills with six processes.) Whoever looks again by himself heals
 * it.
 */
#define SLICE_NS 10000000ull
#define SPIN_TRIES 20
#define SPIN_PAUSES 20 /* with as many tries some 10 us */

static int wait_until(pthread_mutex_t *mutex, uint64_t deadline)
{
    for (;;) {
        uint64_t now = smi_os_clock(), until = now + SLICE_NS;
        if (now >= deadline)
            return ETIMEDOUT;
        if (until > deadline)
            until = deadline;
        int rc = smi_os_mutex_lock_until(mutex, until);
        if (rc != ETIMEDOUT)
            return rc;
    }
}

/* An owner that runs is done within some microseconds, sooner than a waiter falls asleep and is
 * woken. */
static int spin(pthread_mutex_t *mutex)
{
    int rc = EBUSY;
    for (int tries = 0; rc == EBUSY && tries < SPIN_TRIES; tries++) {
        smi_os_relax(SPIN_PAUSES);
        rc = pthread_mutex_trylock(mutex);
    }
    return rc;
}

int smi_lock_acquire(shmalloc_heap *heap, uint32_t index)
{
    struct smf_lock *lock = &heap->locks[index];
    pthread_mutex_t *mutex = (pthread_mutex_t *)lock->mutex;
    change(1);
    int rc = pthread_mutex_trylock(mutex);
    if (rc == EBUSY) {
        __atomic_fetch_add(&lock->waits, 1, __ATOMIC_RELAXED);
        rc = spin(mutex);
    }
    if (rc == EBUSY)
        rc = wait_until(mutex, UINT64_MAX);
    return answer(heap, index, rc);
}

void smi_lock_release(shmalloc_heap *heap, uint32_t index)
{
    change(1);
    note_released(index);
    pthread_mutex_unlock((pthread_mutex_t *)heap->locks[index].mutex);
    change(0);
}

int smi_lock_acquire_all(shmalloc_heap *heap)
{
    uint32_t last = smi_lock_of_pages(heap);
    for (uint32_t i = SMF_LOCK_ROOTS; i <= last; i++) {
        int rc = smi_lock_acquire(heap, i);
        if (rc < 0) {
            while (i-- > SMF_LOCK_ROOTS)
                pthread_mutex_unlock((pthread_mutex_t *)heap->locks[i].mutex);
            held.count = 0;
            return rc;
        }
        held.index[0] = i; /* the highest stands for all */
        held.count = 1;
    }
    return 0;
}

void smi_lock_release_all(shmalloc_heap *heap)
{
    held.count = 0;
    for (uint32_t i = smi_lock_of_pages(heap) + 1; i-- > SMF_LOCK_ROOTS;)
        pthread_mutex_unlock((pthread_mutex_t *)heap->locks[i].mutex);
}

int smi_raw_inherit(uint64_t mutex[SMF_MUTEX_WORDS])
{
    return -pthread_mutex_consistent((pthread_mutex_t *)mutex);
}

int smi_raw_wait(uint64_t mutex[SMF_MUTEX_WORDS], uint64_t timeout_ns)
{
    uint64_t now = smi_os_clock();
    return wait_until((pthread_mutex_t *)mutex,
                      timeout_ns < UINT64_MAX - now ? now + timeout_ns : UINT64_MAX);
}
