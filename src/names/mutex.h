/* SPDX-License-Identifier: MIT */
/*
 * mutex.h - shmalloc_mutex: a robust mutex in a user's block.
 *
 * What is usual is in line: the mutex is free, and nobody died with it. A thread notes the mutexes
 * that it holds, and the one it waits for, in its slot, for people who look; nothing is decided by
 * that.
 */
#ifndef SMI_MUTEX_H
#define SMI_MUTEX_H

#include <errno.h>

#include "handle/lock.h"
#include "platform/os.h"
#include "slots/context.h"

/* As shmalloc_mutex_lock(), for the thread itself (`flag` 0) or for its transaction (SMF_OWNER_TX);
 * timeout_ns 0: do not wait, ~0: for ever. The thread must not be cancelled between the mutex and
 * its owner's name, nor in a repair. */
int smi_mutex_lock(struct smi_thread *t, shmalloc_mutex *mutex, uint64_t timeout_ns, uint64_t flag);

/* As shmalloc_mutex_consistent(). */
int smi_mutex_consistent(struct smi_thread *t, shmalloc_mutex *mutex);

/* As shmalloc_mutex_unlock(). */
int smi_mutex_unlock(struct smi_thread *t, shmalloc_mutex *mutex);

/* 0: the calling thread holds the mutex; else SHMALLOC_ENOTOWNER or -EINVAL, with a message. */
int smi_mutex_mine(struct smi_thread *t, shmalloc_mutex *mutex);

/* What the fast path cannot do once it has the mutex: `rc` is what smi_raw_try() answered, 0 or
 * EOWNERDEAD. 0, SHMALLOC_OWNER_DIED, or why not, and the mutex is not held. Not to be
 * cancelled. */
int smi_mutex_inherit(struct smi_thread *t, struct smf_user_mutex *m, int rc, uint64_t flag);

/* The mutex, if it is an aligned one inside the heap; else NULL. */
static inline struct smf_user_mutex *smi_mutex_of(const shmalloc_heap *heap, shmalloc_mutex *mutex)
{
    uint64_t ref = (uint64_t)((uintptr_t)mutex - (uintptr_t)heap->base);
    return SMI_LIKELY(ref % 8 == 0 && smi_in_heap(heap, ref, sizeof(*mutex)))
               ? (struct smf_user_mutex *)mutex
               : NULL;
}

static inline void smi_mutex_note(struct smi_thread *t, const struct smf_user_mutex *m)
{
    uint64_t at = t->held_count++;
    if (SMI_LIKELY(at < SMF_HELD)) {
        SMI_STORE(&t->slot->held_since[at], smi_os_tick());
        SMI_STORE(&t->slot->held[at], (uint64_t)((const uint8_t *)m - t->base));
    }
}

/* Not the one that was noted last. */
void smi_mutex_forget_other(struct smi_thread *t, const struct smf_user_mutex *m);

static inline void smi_mutex_forget(struct smi_thread *t, const struct smf_user_mutex *m)
{
    uint64_t last = t->held_count - 1;
    if (SMI_LIKELY(last < SMF_HELD &&
                   SMI_LOAD(&t->slot->held[last]) == (uint64_t)((const uint8_t *)m - t->base))) {
        SMI_STORE(&t->slot->held[last], 0);
        t->held_count = last;
    } else {
        smi_mutex_forget_other(t, m);
    }
}

static inline int smi_mutex_is_current(const shmalloc_heap *heap, const struct smf_user_mutex *m)
{
    return SMI_LIKELY(__atomic_load_n(&m->generation, __ATOMIC_ACQUIRE) == heap->generation);
}

/* Lock a mutex that is free and that nobody left by dying, which takes no cancellation point. 0;
 * else nothing happened, or EOWNERDEAD, or ECANCELED when it is held and smi_mutex_inherit() has to
 * go on. */
static inline int smi_mutex_lock_at_once(struct smi_thread *t, struct smf_user_mutex *m,
                                         uint64_t flag)
{
    int rc = smi_raw_try(m->mutex);
    if (SMI_UNLIKELY(rc != 0))
        return rc;
    if (SMI_UNLIKELY(SMI_LOAD(&m->owner) != 0))
        return ECANCELED;
    SMI_STORE(&m->owner, t->name | flag);
    smi_mutex_note(t, m);
    return 0;
}

/* ---- for transactions ---- */

/* Does the thread's transaction hold it? */
static inline int smi_mutex_is_in_tx(const struct smi_thread *t, const struct smf_user_mutex *m)
{
    return (SMI_LOAD(&m->owner) & ~SMF_LEFT) == (t->name | SMF_OWNER_TX) &&
           smi_mutex_is_current(t->heap, m);
}

/* Does the thread hold these bytes of the heap as a mutex, outside its transaction? */
static inline int smi_mutex_is_beside_tx(const struct smi_thread *t, const struct smf_user_mutex *m)
{
    return (SMI_LOAD(&m->owner) & ~SMF_LEFT) == t->name && smi_mutex_is_current(t->heap, m) &&
           smi_raw_is_of(m->mutex, (uint32_t)t->slot->tid);
}

/* Unlock one that the thread's transaction holds. */
void smi_mutex_unlock_tx(struct smi_thread *t, struct smf_user_mutex *m);

#endif
