/* SPDX-License-Identifier: MIT */
/*
 * alive.c - does a thread that had the heap still have it? What protocols of users ask about their
 * peers.
 *
 * A thread slot and its serial name an attachment for ever, because who claims the slot next counts
 * the serial up. An attachment ends in order when its slot is given up: then the slot has no owner,
 * or another serial. Else it lives as long as its process, which the kernel knows: it keeps the
 * process's byte of the file locked until the memory is gone. So nothing is timed, and it does not
 * matter whether anybody has adopted the dead yet.
 *
 * A wrong "dead" would let somebody take what another one still uses. So what cannot be told is an
 * error, and whoever adopts a dead process, which locks the byte, makes it look alive meanwhile.
 */
#include "life/attach.h"
#include "life/context.h"
#include "life/fork.h"
#include "platform/os.h"

uint64_t shmalloc_self(shmalloc_heap *heap)
{
    struct smi_thread *t = smi_current;
    if (SMI_LIKELY(t->true_epoch == SMI_LOAD(&heap->epoch)))
        return t->name;
    int rc, state = smi_os_cancel_off();
    t = smi_thread_enter(heap, &rc);
    smi_os_cancel_restore(state);
    return t ? t->name : 0;
}

/* The thread slot at `index`; NULL and 0: there is none yet; NULL and a code: it cannot be seen. */
static int find_slot(const shmalloc_heap *heap, uint64_t index, struct smf_thread **out)
{
    *out = index < SMF_THREADS ? smi_thread_slot(heap, (uint32_t)index) : NULL;
    if (*out || index >= SMF_THREADS || SMI_LOAD(&heap->threads[index]) == 0)
        return 0;
    if (smi_heap_is_outgrown(heap))
        return smi_heap_outgrown(heap);
    return smi_error(SHMALLOC_ECORRUPT,
                     "%s: entry %llu of the thread table names no thread slot; `shmalloc-inspect "
                     "check` tells more",
                     heap->path, (unsigned long long)index);
}

/* The process that has the slot with that serial, plus 1; 0: nobody has. */
static uint64_t holder_of(const struct smf_thread *slot, uint64_t serial)
{
    /* acquire: the serial is not older than the owner, of whose claim it may tell */
    uint64_t owner = __atomic_load_n(&slot->owner, __ATOMIC_ACQUIRE);
    return SMI_LOAD(&slot->serial) == serial ? owner : 0;
}

/* Does the process of that entry live? Asked by a process that has the heap, by a reader, or by a
 * forked child that has not attached yet, for which the epoch is 0. */
static int process_lives(shmalloc_heap *heap, uint64_t process)
{
    int is_me =
        __atomic_load_n(&heap->epoch, __ATOMIC_ACQUIRE) != 0 && (int)process == heap->process_index;
    int rc = is_me ? 0 : smi_heap_descriptor(heap);
    if (is_me || rc < 0)
        return is_me ? 1 : rc;
    rc = smi_os_is_locked(heap->fd, SMF_LOCK_BYTES + process, 1);
    if (rc < 0)
        return smi_attach_cannot_look(heap, rc);
    /* where a lock may be lost */
    const char *unfit = rc ? NULL : smi_os_unfit_file_system(heap->fd);
    return unfit ? smi_error(SHMALLOC_EFILESYSTEM, "%s: lies on %s, which does not tell who lives",
                             heap->path, unfit)
                 : rc;
}

int shmalloc_is_alive(const shmalloc_heap *heap, uint64_t id)
{
    shmalloc_heap *h = (shmalloc_heap *)heap; /* whose descriptor may have to be made anew */
    uint64_t serial = id >> SMF_OWNER_SERIAL_SHIFT, index = (id & SMF_OWNER_SLOT) - 1;
    struct smf_thread *slot;
    int rc = heap->closed ? smi_heap_writable(h) : heap->is_private ? smi_fork_settle(h) : 0;
    if (rc == 0)
        rc = find_slot(heap, index, &slot);
    uint64_t owner = rc == 0 && slot && !(id & SMF_LEFT) ? holder_of(slot, serial) : 0;
    if (owner == 0)
        return rc;
    if (owner > SMF_PROCESSES)
        return smi_error(SHMALLOC_ECORRUPT,
                         "%s: thread slot %llu has the owner %llu, expected up to %d; "
                         "`shmalloc-inspect check` tells more",
                         heap->path, (unsigned long long)index, (unsigned long long)owner,
                         SMF_PROCESSES);
    rc = heap->is_private ? 1 : process_lives(h, owner - 1);
    return rc > 0 ? holder_of(slot, serial) == owner : rc; /* it may have ended, and another one
                                                              begun, meanwhile */
}
