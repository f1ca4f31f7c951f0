/* SPDX-License-Identifier: MIT */
/*
 * mutex.c - shmalloc_mutex: a robust mutex in a user's block.
 *
 * The generation tells whether the pthread mutex inside was initialised since the heap was last attached
 * from rest; if not, its words mean nothing (a reboot or a copy may have frozen them while held) and it is
 * made anew. The owner names the thread slot, so that whoever gets the mutex after a death, be it in a later
 * generation, is told, and first resolves what the dead thread was doing to a ref word under it.
 */
#include <errno.h>

#include "handle/lock.h"
#include "platform/os.h"
#include "life/process.h"
#include "life/recover.h"

_Static_assert(sizeof(shmalloc_mutex) == sizeof(struct smf_user_mutex), "one layout");

static struct smi_thread *thread_of(shmalloc_heap *heap, int *rc)
{
    struct smi_thread *t = smi_current;
    if (SMI_LIKELY(t->true_epoch == SMI_LOAD(&heap->epoch))) {
        *rc = 0;
        return t;
    }
    return smi_thread_enter(heap, rc);
}

static uint64_t name_of(const struct smi_thread *t)
{
    return t->slot->serial << 16 | (t->slot_index + 1);
}

/* What both calls need: the mutex inside the heap, and the caller's context; NULL and *rc otherwise. */
static struct smf_user_mutex *find(shmalloc_heap *heap, shmalloc_mutex *mutex, struct smi_thread **t, int *rc)
{
    uint64_t ref;
    *t = thread_of(heap, rc);
    if (!*t)
        return NULL;
    if (smi_ref_of(heap, mutex, &ref) && ref % 8 == 0 && smi_in_heap(heap, ref, sizeof(*mutex)))
        return (struct smf_user_mutex *)mutex;
    *rc = smi_error(-EINVAL, "%s: the mutex at %p is not an 8-aligned block of the heap", heap->path,
                    (void *)mutex);
    return NULL;
}

/* Make the inside anew if it is of another generation. */
static int renew(shmalloc_heap *heap, struct smf_user_mutex *m)
{
    int rc = smi_lock_acquire(heap, SMF_LOCK_RECOVER);
    if (rc < 0)
        return rc;
    if (m->generation != heap->generation) { /* the owner stays named: who locks next is told of its death */
        rc = smi_os_mutex_init(m->mutex);
        if (rc == 0)
            __atomic_store_n(&m->generation, heap->generation, __ATOMIC_RELEASE);
        else
            smi_refused(rc, "%s: cannot make a robust mutex", heap->path);
    }
    smi_lock_release(heap, SMF_LOCK_RECOVER);
    return rc;
}

static int lock_found(shmalloc_heap *heap, shmalloc_mutex *mutex, uint64_t timeout_ns)
{
    int rc;
    struct smi_thread *t;
    struct smf_user_mutex *m = find(heap, mutex, &t, &rc);
    if (!m)
        return rc;
    if (__atomic_load_n(&m->generation, __ATOMIC_ACQUIRE) != heap->generation &&
        (rc = renew(heap, m)) < 0)
        return rc;
    rc = smi_lock_raw(m->mutex, timeout_ns);
    if (rc == -EDEADLK && timeout_ns == 0)
        rc = -EBUSY;
    if (rc < 0)
        return smi_refused(rc, "%s: mutex at %#llx", heap->path, (unsigned long long)shmalloc_ref_of(heap, mutex));
    /* Unlocking clears the owner first, so one that is still named died, in this generation or before. */
    uint64_t dead = SMI_LOAD(&m->owner);
    if (dead != 0) { /* kill here: the next one finds the same owner and resolves it */
        rc = 1;
        int resolved = smi_recover_owner(heap, (uint32_t)(dead & 0xffff) - 1, dead >> 16);
        if (resolved < 0) {
            smi_unlock_raw(m->mutex);
            return resolved;
        }
    }
    SMI_STORE(&m->owner, name_of(t));
    return rc;
}

/* A cancelled thread must not end between the mutex and its owner's name, nor in a repair. */
static int lock(shmalloc_heap *heap, shmalloc_mutex *mutex, uint64_t timeout_ns)
{
    int state = smi_os_cancel_off();
    int rc = lock_found(heap, mutex, timeout_ns);
    smi_os_cancel_restore(state);
    return rc;
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
    /* 0 and the largest value mean something else to lock() */
    return lock(heap, mutex, timeout_ns == 0 ? 1 : timeout_ns == UINT64_MAX ? timeout_ns - 1 : timeout_ns);
}

int shmalloc_mutex_unlock(shmalloc_heap *heap, shmalloc_mutex *mutex)
{
    int rc;
    struct smi_thread *t;
    struct smf_user_mutex *m = find(heap, mutex, &t, &rc);
    if (!m)
        return rc;
    if (SMI_LOAD(&m->owner) != name_of(t))
        return smi_error(SHMALLOC_ENOTOWNER, "%s: the calling thread does not hold the mutex at %p; whoever locked must unlock",
                         heap->path, (void *)mutex);
    SMI_STORE(&m->owner, 0);
    return smi_unlock_raw(m->mutex);
}
