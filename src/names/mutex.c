/* SPDX-License-Identifier: MIT */
/*
 * mutex.c - shmalloc_mutex: a robust mutex in a user's block.
 *
 * The generation tells whether the pthread mutex inside was initialised since the heap was last
 * attached from rest; if not, its words mean nothing (a reboot or a copy may have frozen them while
 * held) and it is made anew. The owner names the thread slot, so that whoever gets the mutex after
 * a death, be it in a later generation, is told, and first resolves what the dead thread was doing
 * to a ref word under it.
 *
 * The owner's word tells all, and each change of it is one store:
 *
 *   0                 free                        a thread's name           held
 *   SMF_LEFT          free, left inconsistent     the name and SMF_LEFT     held by who was told so
 *
 * With SMF_OWNER_TX, too, it is the thread's transaction that holds it. What that was changing when
 * it died is what it was before, or after, when the next owner gets the mutex: so nothing is left
 * inconsistent by it.
 *
 * The pthread mutex is taken before the word says so and given up after, so whoever has it and
 * finds a name finds that of a dead thread.
 */
#include "names/mutex.h"

#include <errno.h>
#include <stdio.h>

#include "slots/stacks.h"

_Static_assert(sizeof(shmalloc_mutex) == sizeof(struct smf_user_mutex), "one layout");

/* The mutex inside the heap; NULL and *rc otherwise. */
static struct smf_user_mutex *find_mutex(const shmalloc_heap *heap, shmalloc_mutex *mutex, int *rc)
{
    struct smf_user_mutex *m = smi_mutex_of(heap, mutex);
    if (!m)
        *rc = smi_error(-EINVAL, "%s: the mutex at %p is not an 8-aligned block of the heap",
                        heap->path, (void *)mutex);
    return m;
}

/* ---- who holds it, for people ---- */

/* Since when, in ns of smi_os_tick; 0: not noted. */
static uint64_t held_since(const struct smf_thread *slot, uint64_t ref)
{
    for (unsigned i = 0; i < SMF_HELD; i++)
        if (SMI_LOAD(&slot->held[i]) == ref)
            return SMI_LOAD(&slot->held_since[i]);
    return 0;
}

/* "process 12 (name), thread 34, for 5.6 s". All of it may change meanwhile. */
static void name_holder(const shmalloc_heap *heap, const struct smf_user_mutex *m, char *text,
                        size_t size)
{
    uint64_t owner = SMI_LOAD(&m->owner), ref = (uint64_t)((const uint8_t *)m - heap->base);
    const struct smf_thread *slot = smi_thread_slot(heap, (uint32_t)(owner & SMF_OWNER_SLOT) - 1);
    uint64_t process = slot ? SMI_LOAD(&slot->owner) - 1 : SMF_PROCESSES;
    if (!slot || process >= SMF_PROCESSES ||
        SMI_LOAD(&slot->serial) != owner >> SMF_OWNER_SERIAL_SHIFT) {
        snprintf(text, size, "a thread that is about to lock or unlock it");
        return;
    }
    const struct smf_process *entry = &heap->processes[process];
    char name[sizeof(entry->name) + 1] = "";
    for (size_t i = 0; i < sizeof(entry->name) && entry->name[i] != 0; i++)
        name[i] = entry->name[i] >= ' ' && entry->name[i] <= '~' ? entry->name[i] : '?';
    int len = snprintf(text, size, "process %u (%s), thread %u", SMI_LOAD(&entry->pid), name,
                       (uint32_t)SMI_LOAD(&slot->tid));
    uint64_t since = held_since(slot, ref), now = smi_os_tick();
    if (since != 0 && since <= now && len >= 0 && (size_t)len < size)
        snprintf(text + len, size - (size_t)len, ", for %.3f s", (double)(now - since) / 1e9);
}

/* -EBUSY, -ETIMEDOUT and -EDEADLK are told with who holds the mutex. */
static int refused_mutex(const shmalloc_heap *heap, const struct smf_user_mutex *m, int rc)
{
    char holder[128];
    uint64_t ref = (uint64_t)((const uint8_t *)m - heap->base);
    if (rc != -EBUSY && rc != -ETIMEDOUT && rc != -EDEADLK)
        return smi_refused(rc, "%s: mutex at %#llx", heap->path, (unsigned long long)ref);
    name_holder(heap, m, holder, sizeof(holder));
    return smi_error(
        rc, "%s: the mutex at %#llx is held by %s%s", heap->path, (unsigned long long)ref, holder,
        rc == -EDEADLK ? ": the calling thread itself, which has to unlock it first" : "");
}

void smi_mutex_forget_other(struct smi_thread *t, const struct smf_user_mutex *m)
{
    uint64_t ref = (uint64_t)((const uint8_t *)m - t->base);
    struct smf_thread *slot = t->slot;
    if (t->held_count == 0)
        return;
    uint64_t last = --t->held_count;
    for (unsigned i = 0; i < SMF_HELD; i++) {
        if (SMI_LOAD(&slot->held[i]) != ref)
            continue;
        SMI_STORE(&slot->held[i], 0);
        if (last < SMF_HELD && last != i) { /* the last one takes its place */
            SMI_STORE(&slot->held_since[i], SMI_LOAD(&slot->held_since[last]));
            SMI_STORE(&slot->held[i], SMI_LOAD(&slot->held[last]));
            SMI_STORE(&slot->held[last], 0);
        }
        return;
    }
}

/* ---- to lock ---- */

/* Make the inside anew if it is of another generation. */
static int renew(shmalloc_heap *heap, struct smf_user_mutex *m)
{
    int rc = smi_lock_acquire(heap, SMF_LOCK_RECOVER);
    if (rc < 0)
        return rc;
    if (m->generation != heap->generation) { /* the owner stays named: who locks next is told of its
                                                death */
        rc = smi_os_mutex_init(m->mutex);
        if (rc == 0)
            __atomic_store_n(&m->generation, heap->generation, __ATOMIC_RELEASE);
        else
            smi_refused(rc, "%s: cannot make a robust mutex", heap->path);
    }
    smi_lock_release(heap, SMF_LOCK_RECOVER);
    return rc;
}

/* The owner, as it was named, died: its link record and its transaction are settled before anybody
 * touches what the mutex guards. */
static int settle_owner(struct smi_thread *t, uint64_t owner)
{
    shmalloc_heap *heap = t->heap;
    uint32_t index = (uint32_t)(owner & SMF_OWNER_SLOT) - 1;
    struct smf_thread *slot = smi_thread_slot(heap, index);
    if (!slot || slot == t->slot) /* in a forked child's copy the forker lives on in its slot */
        return 0;
    int rc = smi_lock_acquire(heap, SMF_LOCK_RECOVER);
    if (rc < 0)
        return rc;
    /* else adopted already, and settled with that */
    if (slot->owner != 0 && slot->serial == owner >> SMF_OWNER_SERIAL_SHIFT) {
        rc = smi_lock_pass(heap, SMF_LOCK_CLASS_FIRST, heap->lock_count - 1);
        if (rc == 0)
            rc = heap->settle_slot(heap, slot, index);
    }
    smi_lock_release(heap, SMF_LOCK_RECOVER);
    SMI_STORE(&heap->adopt_wanted, 1);
    return rc;
}

int smi_mutex_inherit(struct smi_thread *t, struct smf_user_mutex *m, int rc, uint64_t flag)
{
    shmalloc_heap *heap = t->heap;
    if (rc == EOWNERDEAD) {
        SMI_STORE(&heap->adopt_wanted, 1);
        if (smi_raw_inherit(m->mutex) < 0)
            return refused_mutex(heap, m, -EINVAL);
    }
    /* Unlocking clears the owner first, so one that is still named died, in this generation or
     * before. One that is not named was killed before its lock returned, or after its unlock
     * began. */
    uint64_t dead = SMI_LOAD(&m->owner);
    if ((dead & SMF_OWNER_SLOT) != 0 && (rc = settle_owner(t, dead)) < 0) {
        smi_raw_unlock(m->mutex);
        return rc;
    }
    uint64_t left = dead == 0 || (dead & SMF_OWNER_TX) ? SMI_LOAD(&m->owner) & SMF_LEFT : SMF_LEFT;
    SMI_STORE(&m->owner, t->name | left | flag); /* kill before it: the next one finds the same
                                                    owner */
    smi_mutex_note(t, m);
    return left ? SHMALLOC_OWNER_DIED : 0;
}

/* The answers of smi_raw_try(), or ETIMEDOUT. Meanwhile people can see who waits for what. */
static int wait_for(struct smi_thread *t, struct smf_user_mutex *m, uint64_t timeout_ns)
{
    SMI_STORE(&t->slot->waits_since, smi_os_tick());
    SMI_STORE(&t->slot->waits_for, (uint64_t)((uint8_t *)m - t->heap->base));
    int rc = smi_raw_wait(m->mutex, timeout_ns);
    SMI_STORE(&t->slot->waits_for, 0);
    return rc;
}

int smi_mutex_lock(struct smi_thread *t, shmalloc_mutex *mutex, uint64_t timeout_ns, uint64_t flag)
{
    int rc;
    shmalloc_heap *heap = t->heap;
    struct smf_user_mutex *m = find_mutex(heap, mutex, &rc);
    if (!m)
        return rc;
    if (!smi_mutex_is_current(heap, m) && (rc = renew(heap, m)) < 0)
        return rc;
    rc = smi_raw_try(m->mutex);
    if (rc == EBUSY && timeout_ns > 0)
        rc = wait_for(t, m, timeout_ns);
    if (rc != 0 && rc != EOWNERDEAD)
        return refused_mutex(heap, m, rc == EDEADLK && timeout_ns == 0 ? -EBUSY : -rc);
    return smi_mutex_inherit(t, m, rc, flag);
}

/* ---- to hold it, and to unlock ---- */

/* The mutex, if the thread holds it; NULL and *rc otherwise. In a forked child's copy of a private
 * heap no mutex is held, whatever the owner's word says. */
static struct smf_user_mutex *find_mine(const struct smi_thread *t, shmalloc_mutex *mutex, int *rc)
{
    const shmalloc_heap *heap = t->heap;
    struct smf_user_mutex *m = find_mutex(heap, mutex, rc);
    if (!m || ((SMI_LOAD(&m->owner) & ~SMF_LEFT) == t->name && smi_mutex_is_current(heap, m)))
        return m;
    if (smi_mutex_is_in_tx(t, m)) {
        *rc = smi_error(
            SHMALLOC_EINTX,
            "%s: the mutex at %p is held by this thread's transaction until its end; commit or "
            "abort that",
            heap->path, (void *)mutex);
        return NULL;
    }
    *rc = smi_error(
        SHMALLOC_ENOTOWNER,
        "%s: the calling thread does not hold the mutex at %p; whoever locked must unlock",
        heap->path, (void *)mutex);
    return NULL;
}

int smi_mutex_mine(struct smi_thread *t, shmalloc_mutex *mutex)
{
    int rc = 0;
    return find_mine(t, mutex, &rc) ? 0 : rc;
}

int smi_mutex_consistent(struct smi_thread *t, shmalloc_mutex *mutex)
{
    int rc = 0;
    struct smf_user_mutex *m = find_mine(t, mutex, &rc);
    if (m)
        SMI_STORE(&m->owner, t->name);
    return rc;
}

int smi_mutex_unlock(struct smi_thread *t, shmalloc_mutex *mutex)
{
    int rc;
    struct smf_user_mutex *m = find_mine(t, mutex, &rc);
    if (!m)
        return rc;
    smi_mutex_forget(t, m);
    SMI_STORE(&m->owner, SMI_LOAD(&m->owner) & SMF_LEFT); /* what an owner before left stays to be
                                                             told */
    return smi_raw_unlock(m->mutex);
}

void smi_mutex_unlock_tx(struct smi_thread *t, struct smf_user_mutex *m)
{
    smi_mutex_forget(t, m);
    SMI_STORE(&m->owner, SMI_LOAD(&m->owner) & SMF_LEFT);
    smi_raw_unlock(m->mutex);
}
