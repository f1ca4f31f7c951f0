/* SPDX-License-Identifier: MIT */
/*
 * lock.h - robust process-shared mutexes: the heap's own, and the raw form below shmalloc_mutex.
 *
 * Ranks are the indices of enum smf_lock_index, ascending: commit, tx, roots, RECOVER, class locks
 * (by arena, then class, the library's own arena last), pages. A thread only ever waits for a lock
 * above all that it holds; user mutexes come before all of them. Debug builds assert it.
 */
#ifndef SMI_LOCK_H
#define SMI_LOCK_H

#include "handle/handle.h"
#include "platform/direct_mutex.h"

static inline uint32_t smi_lock_of_class(uint32_t arena, uint32_t k)
{
    return SMF_LOCK_CLASS_FIRST + arena * SMF_CLASSES + k;
}

static inline uint32_t smi_lock_of_pages(const shmalloc_heap *heap)
{
    return heap->lock_count - 1;
}

/* Wait for a lock. If its owner died, what the owner left is repaired before this returns. Returns
 * 0, or SHMALLOC_ECORRUPT when the repair found damage (then the heap is poisoned and the lock not
 * held). */
int smi_lock_acquire(shmalloc_heap *heap, uint32_t index);
/* The same without waiting: -EBUSY when somebody has it. */
int smi_lock_try(shmalloc_heap *heap, uint32_t index);
void smi_lock_release(shmalloc_heap *heap, uint32_t index);

/* All of them, in their order, from that of roots on: then nothing moves but the stacks of threads
 * and what they keep. A thread that has them takes no other. Not for heaps with more of them than
 * SMI_LOCKS_AT_ONCE: of a thread that dies the kernel marks no more than 2,048 mutexes. */
#define SMI_LOCKS_AT_ONCE 2000u
int smi_lock_acquire_all(shmalloc_heap *heap);
void smi_lock_release_all(shmalloc_heap *heap);

/* Repair what the owner of lock `index` may have left, with the lock held or nobody else attached.
 * The owner may have died holding higher locks, too, under which words of this one were half
 * changed: those are passed first. */
int smi_lock_repair(shmalloc_heap *heap, uint32_t index);

/* Does the calling thread hold a lock of a heap? */
int smi_lock_any_held(void);
/* The same where a signal handler may have interrupted it while it took or gave up one. */
int smi_lock_may_be_held(void);
/* Does it hold this one, or has it the heap alone, before the process is attached? For
 * assertions. */
int smi_lock_is_ours(const shmalloc_heap *heap, uint32_t index);
/* Take and release the locks from `first` to `last`: what their dead owners left half done under
 * them is undone. */
int smi_lock_pass(shmalloc_heap *heap, uint32_t first, uint32_t last);

/* A child has no lock of a file's heap, whatever its parent held. */
void smi_lock_forget(void);

/* The 40 bytes below shmalloc_mutex. smi_raw_try: 0, or the errno of pthread_mutex_trylock; with
 * EOWNERDEAD the mutex is held, and smi_raw_inherit() makes it as good as any. In line, for the
 * fast path. */
static inline int smi_raw_try(uint64_t mutex[SMF_MUTEX_WORDS])
{
    return pthread_mutex_trylock((pthread_mutex_t *)(void *)mutex);
}

static inline int smi_raw_unlock(uint64_t mutex[SMF_MUTEX_WORDS])
{
    return -pthread_mutex_unlock((pthread_mutex_t *)(void *)mutex);
}

/* Do these bytes say that the thread with this id holds them as a mutex? A robust one has its
 * owner's id, beside the kernel's two flags, in its first 32-bit word (glibc) or in its second
 * (musl). */
static inline int smi_raw_is_of(const uint64_t mutex[SMF_MUTEX_WORDS], uint32_t tid)
{
    const uint64_t id = UINT64_C(0x3fffffff), both = SMI_LOAD(&mutex[0]);
    return (both & id) == tid || (both >> 32 & id) == tid;
}

int smi_raw_inherit(uint64_t mutex[SMF_MUTEX_WORDS]);
/* Wait for it, at most that long (~0: for ever), after smi_raw_try() answered EBUSY: its answers,
 * or ETIMEDOUT. */
int smi_raw_wait(uint64_t mutex[SMF_MUTEX_WORDS], uint64_t timeout_ns);

#endif
