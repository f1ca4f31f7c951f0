/* SPDX-License-Identifier: MIT */
/*
 * mutex.c - shmalloc_mutex: a robust mutex in a user's block.
 *
 * The generation tells whether the pthread mutex inside was initialised since the heap was last attached
 * from rest; if not, its words mean nothing (a reboot or a copy may have frozen them while held) and it is
 * made anew. The owner names the thread slot, so that whoever gets the mutex after a death, be it in a later
 * generation, is told, and first resolves what the dead thread was doing to a ref word under it.
 */
#include "names/mutex.h"

#include <errno.h>

#include "handle/lock.h"
#include "platform/os.h"
#include "slots/cache.h"

_Static_assert(sizeof(shmalloc_mutex) == sizeof(struct smf_user_mutex), "one layout");

static uint64_t name_of(const struct smi_thread *t)
{
    return t->slot->serial << 16 | (t->slot_index + 1);
}

/* The mutex inside the heap; NULL and *rc otherwise. */
static struct smf_user_mutex *find(shmalloc_heap *heap, shmalloc_mutex *mutex, int *rc)
{
    uint64_t ref;
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

/* The owner, as it was named, died: its link record is resolved before anybody touches what the mutex guards. */
static int resolve(shmalloc_heap *heap, uint64_t owner)
{
    uint32_t index = (uint32_t)(owner & 0xffff) - 1;
    struct smf_thread *slot = smi_thread_slot(heap, index);
    if (!slot)
        return 0;
    int rc = smi_lock_acquire(heap, SMF_LOCK_RECOVER);
    if (rc < 0)
        return rc;
    if (slot->owner != 0 && slot->serial == owner >> 16) { /* else adopted already, and resolved with that */
        rc = smi_lock_pass(heap, SMF_LOCK_CLASS_FIRST, heap->lock_count - 1);
        if (rc == 0)
            rc = smi_cache_resolve_link(heap, slot, index);
    }
    smi_lock_release(heap, SMF_LOCK_RECOVER);
    SMI_STORE(&heap->adopt_wanted, 1);
    return rc;
}

int smi_mutex_lock(struct smi_thread *t, shmalloc_mutex *mutex, uint64_t timeout_ns)
{
    int rc;
    shmalloc_heap *heap = t->heap;
    struct smf_user_mutex *m = find(heap, mutex, &rc);
    if (!m)
        return rc;
    if (__atomic_load_n(&m->generation, __ATOMIC_ACQUIRE) != heap->generation &&
        (rc = renew(heap, m)) < 0)
        return rc;
    rc = smi_lock_raw(m->mutex, timeout_ns);
    if (rc == -EDEADLK && timeout_ns == 0)
        rc = -EBUSY;
    if (rc < 0)
        return smi_refused(rc, "%s: mutex at %#llx", heap->path, (unsigned long long)((uint8_t *)m - heap->base));
    /* Unlocking clears the owner first, so one that is still named died, in this generation or before. */
    uint64_t dead = SMI_LOAD(&m->owner);
    if (dead != 0) { /* kill here: the next one finds the same owner and resolves it */
        rc = 1;
        int resolved = resolve(heap, dead);
        if (resolved < 0) {
            smi_unlock_raw(m->mutex);
            return resolved;
        }
    }
    SMI_STORE(&m->owner, name_of(t));
    return rc;
}

int smi_mutex_unlock(struct smi_thread *t, shmalloc_mutex *mutex)
{
    int rc;
    shmalloc_heap *heap = t->heap;
    struct smf_user_mutex *m = find(heap, mutex, &rc);
    if (!m)
        return rc;
    if (SMI_LOAD(&m->owner) != name_of(t))
        return smi_error(SHMALLOC_ENOTOWNER, "%s: the calling thread does not hold the mutex at %p; whoever locked must unlock",
                         heap->path, (void *)mutex);
    SMI_STORE(&m->owner, 0);
    return smi_unlock_raw(m->mutex);
}
