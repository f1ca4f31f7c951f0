/* SPDX-License-Identifier: MIT */
/*
 * adopt.c - what the dead left comes back; see adopt.h.
 *
 * A process lives as long as somebody holds the OFD lock on its byte of the file; the kernel lets
 * go of it when the process's memory is gone, which is after all its threads' robust mutexes were
 * marked. So who can take the byte knows that every lock the victim held shows it. Adoption takes
 * the byte, never merely asks for it: of two that try, one gets it.
 *
 * Everything here may be killed at any instruction and is then done again by the next who looks: an
 * entry of the process table becomes free last.
 */
#include "life/adopt.h"

#include <errno.h>

#include "handle/lock.h"
#include "life/attach.h"
#include "platform/os.h"
#include "slots/stacks.h"
#include "tx/retire.h"
#include "tx/txlog.h"

#define WAITING_LOOKS_EVERY_NS 60000000ull /* of all threads of a process that wait together */

#define EACH_THREAD 64 /* slots whose return takes as long as that of an empty thread slot */

/* After this no lock shows the dead as its owner, and nothing is half done under one. */
static int pass_locks(shmalloc_heap *heap)
{
    return smi_lock_pass(heap, SMF_LOCK_CLASS_FIRST, heap->lock_count - 1);
}

/* What the lock guards is done anew by the next who adopts. But the table of thread slots may name
 * one that the page heap's log is about to undo. */
int smi_adopt_repair(shmalloc_heap *heap, uint32_t index)
{
    (void)index;
    return smi_lock_pass(heap, smi_lock_of_pages(heap), smi_lock_of_pages(heap));
}

/* The thread slot at `index` when the process owns it, else NULL. */
static struct smf_thread *slot_of(shmalloc_heap *heap, uint32_t index, uint32_t process)
{
    struct smf_thread *slot = smi_thread_slot(heap, index);
    return slot && slot->owner == process + 1ull ? slot : NULL;
}

int smi_adopt_settle(shmalloc_heap *heap, struct smf_thread *slot, uint32_t index)
{
    int rc = smi_stacks_resolve(heap, slot, index); /* first: it says what the log's words are */
    return rc == 0 ? smi_log_settle(heap, slot, index) : rc;
}

int smi_adopt_slot(shmalloc_heap *heap, struct smf_thread *slot, uint32_t index, uint64_t *most)
{
    int rc = smi_adopt_settle(heap, slot, index);
    if (rc == 0)
        rc = smi_log_release(heap, slot, index);
    if (rc == 0)
        rc = smi_retire_release(heap, slot, most);
    return rc != 0 ? rc : smi_stacks_release(heap, slot, index, most);
}

/* What decides over blocks first, for all threads: words and blocks are what they will be, whenever
 * the stacks come back. 1: some have not. */
static int release_threads_of(shmalloc_heap *heap, uint32_t process, uint64_t *most)
{
    uint32_t made = SMF_THREADS; /* slots are made in the order of the table; repair may have
                                    cleared an entry */
    int rc = 0;
    while (made > 0 && SMI_LOAD(&heap->threads[made - 1]) == 0)
        made--;
    for (uint32_t i = 0; rc == 0 && i < made; i++) {
        struct smf_thread *slot = slot_of(heap, i, process), *any = smi_thread_slot(heap, i);
        if (any && any->owner == 0) /* of a thread that was killed at the end of its end */
            smi_stacks_count_claims(heap, any);
        rc = slot ? smi_adopt_settle(heap, slot, i) : 0;
        /* after its step: until that is resolved, what it used may not be taken apart */
        if (slot && rc == 0 && !heap->is_older)
            SMI_STORE(&slot->using_structure, 0);
    }
    for (uint32_t i = 0; rc == 0 && i < made; i++) {
        struct smf_thread *slot = slot_of(heap, i, process);
        if (!slot)
            continue;
        rc = *most >= EACH_THREAD ? smi_adopt_slot(heap, slot, i, most) : 1;
        *most -= *most < EACH_THREAD ? *most : EACH_THREAD;
    }
    return rc;
}

/* Adopt process `i` if its byte can be taken on `fd`, a description of our own. 1: not all of it
 * yet. */
static int adopt_one(shmalloc_heap *heap, int fd, uint32_t i, uint64_t *most)
{
    int rc = smi_os_lock_byte(fd, SMF_LOCK_BYTES + i);
    if (rc < 0)
        /* alive, or somebody else is just claiming it */
        return rc == -EAGAIN ? 0 : smi_attach_cannot_look(heap, rc);
    if (heap->processes[i].state != 0) {
        SMI_STORE(&heap->processes[i].flags, 0); /* its sections are over */
        rc = pass_locks(heap);
        if (rc == 0)
            rc = release_threads_of(heap, i, most);
        if (rc == 0) { /* told before the entry is free: who adopts may be killed here, and the next
                          one tells again */
            smi_stacks_tell_adopted(heap);
            SMI_STORE(&heap->processes[i].state, 0);
        }
    }
    smi_os_unlock_byte(fd, SMF_LOCK_BYTES + i);
    return rc;
}

/* Is entry `i` that of another process? */
static int is_other(const shmalloc_heap *heap, uint32_t i)
{
    return (int)i != heap->process_index && SMI_LOAD(&heap->processes[i].state) != 0;
}

/* Asked on `fd`. 1, 0, or why it cannot be told. */
static int looks_dead(shmalloc_heap *heap, int fd, uint32_t i)
{
    if (!is_other(heap, i))
        return 0;
    int locked = smi_os_is_locked(fd, SMF_LOCK_BYTES + i, 1);
    return locked >= 0 ? !locked : smi_attach_cannot_look(heap, locked);
}

static int adopt_all(shmalloc_heap *heap, uint64_t most)
{
    /* A dead owner of the roots lock may have named its thread slot in the log; that lock comes
     * before RECOVER, so it is passed first. The dead take no lock any more. */
    int rc = smi_lock_acquire(heap, SMF_LOCK_ROOTS);
    if (rc < 0)
        return rc;
    smi_lock_release(heap, SMF_LOCK_ROOTS);
    rc = smi_lock_acquire(heap, SMF_LOCK_RECOVER);
    if (rc < 0)
        return rc;
    int fd = smi_heap_reopen(heap);
    rc = fd < 0 ? fd : 0;
    for (uint32_t i = 0; rc >= 0 && i < SMF_PROCESSES; i++) {
        int adopted = looks_dead(heap, fd, i);
        if (adopted > 0)
            adopted = adopt_one(heap, fd, i, &most);
        rc = adopted != 0 ? adopted : rc; /* 1 stays: all the dead are settled all the same */
    }
    smi_os_close(fd);
    smi_lock_release(heap, SMF_LOCK_RECOVER);
    if (rc == 1)
        SMI_STORE(&heap->adopt_wanted, 1);
    return rc == 1 ? 0 : rc;
}

int smi_adopt(shmalloc_heap *heap, uint64_t most)
{
    SMI_STORE(&heap->adopt_wanted, 0);
    int rc = 0, asked = 0;
    for (uint32_t i = 0; rc == 0 && i < SMF_PROCESSES; i++) {
        if (!is_other(heap, i))
            continue;
        if (!asked++ && (rc = smi_heap_descriptor(heap)) < 0)
            break;
        rc = looks_dead(heap, heap->fd, i);
        if (rc > 0)
            return adopt_all(heap, most);
    }
    return rc;
}

void smi_adopt_waiting(shmalloc_heap *heap)
{
    uint64_t now = smi_os_tick(), last = SMI_LOAD(&heap->waited_at);
    if (!heap->is_private && now - last > WAITING_LOOKS_EVERY_NS &&
        __atomic_compare_exchange_n(&heap->waited_at, &last, now, 0, __ATOMIC_RELAXED,
                                    __ATOMIC_RELAXED))
        smi_adopt(heap, SMI_ADOPT_SOME);
}
