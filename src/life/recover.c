/* SPDX-License-Identifier: MIT */
/*
 * recover.c - first attach, and adoption of the dead.
 *
 * A process lives as long as somebody holds the OFD lock on its byte of the file; the kernel lets go of it
 * when the process's memory is gone, which is after all its threads' robust mutexes were marked. So who can
 * take the byte knows that every lock the victim held shows it. Adoption takes the byte, never merely asks
 * for it: of two that try, one gets it.
 *
 * Everything here may be killed at any instruction and is then done again by the next who looks: an entry
 * of the process table becomes free last.
 */
#include "life/recover.h"

#include <errno.h>
#include <string.h>

#include "slots/cache.h"
#include "life/convert.h"
#include "life/holes.h"
#include "handle/lock.h"
#include "platform/os.h"
#include "pages/pages.h"
#include "life/process.h"

#define ATTACH_PATIENCE_NS 10000000000ull
#define EACH_THREAD 64 /* slots whose return takes as long as that of an empty thread slot */

int smi_attach_lock(shmalloc_heap *heap)
{
    uint64_t start = smi_os_tick();
    for (;;) {
        int rc = smi_os_lock_byte(heap->fd, SMF_ATTACH_BYTE);
        if (rc != -EAGAIN)
            return rc < 0 ? smi_refused(rc, "%s: cannot lock the file", heap->path) : 0;
        if (smi_os_tick() - start > ATTACH_PATIENCE_NS)
            return smi_error(SHMALLOC_EBUSY,
                             "%s: another process has been attaching or leaving for 10 seconds; is it "
                             "stopped?",
                             heap->path);
        smi_os_sleep(200000);
        if ((rc = smi_heap_descriptor(heap)) < 0)
            return rc;
    }
}

/* The mark alone is asked, which cannot fail: a lock that cannot be given back would stop everybody. */
void smi_attach_unlock(shmalloc_heap *heap)
{
    if (smi_os_has_mark(heap->fd, heap->mark))
        smi_os_unlock_byte(heap->fd, SMF_ATTACH_BYTE);
}

static int cannot_look(const shmalloc_heap *heap, int rc)
{
    return smi_refused(rc, "%s: cannot look for locks on the file", heap->path);
}

int smi_others_alive(shmalloc_heap *heap)
{
    int rc = smi_heap_descriptor(heap);
    if (rc < 0)
        return rc;
    int locked = smi_os_is_locked(heap->fd, SMF_LOCK_BYTES, SMF_PROCESSES);
    return locked < 0 ? cannot_look(heap, locked) : locked;
}

/* ---- first attach ---- */

/* Has this machine been running, and is this the file, since that identity was written? What was created and never
 * attached has one, too. */
static int is_of_file(const struct smf_runtime *was, const shmalloc_heap *heap)
{
    return memcmp(was->boot_id, heap->boot_id, 16) == 0 && was->device == heap->device && was->inode == heap->inode;
}

/* Was the heap in use when the machine stopped, or the file copied while in use? */
static int is_unclean(const shmalloc_heap *heap)
{
    return heap->state->mark == SMF_UNCHECKED ||
           (heap->state->mark == SMF_IN_USE && !is_of_file(heap->runtime, heap));
}

static int read_pid_namespace(const shmalloc_heap *heap, uint64_t *out)
{
    int rc = smi_os_pid_namespace(out);
    return rc < 0 ? smi_refused(rc, "%s: cannot read this process's PID namespace, /proc/self/ns/pid", heap->path) : 0;
}

int smi_recover_unclean(shmalloc_heap *heap)
{
    if (!is_unclean(heap))
        return 0;
    const char *why = heap->state->mark == SMF_UNCHECKED
                          ? "has not been checked since the machine stopped or the file was copied while in use"
                      : memcmp(heap->runtime->boot_id, heap->boot_id, 16) != 0
                          ? "was in use when the machine stopped"
                          : "is a copy of a heap that was in use";
    return smi_error(SHMALLOC_EUNCLEAN,
                     "%s: %s; have it checked by shmalloc_recover() or `shmalloc-inspect check --repair --yes`, or open it "
                     "with SHMALLOC_ACCEPT_UNCLEAN",
                     heap->path, why);
}

/* Does the file still have the storage that its last user left? Not when another heap's bytes, or its own older ones,
 * were written over it, or when zeros were turned into holes. */
static int has_lost_storage(const struct smi_identity *seen)
{
    return seen->state.mark == SMF_CLEAN && seen->file.blocks < seen->runtime.stored;
}

/* Is what its words say of the storage of this file true, or will it be found unclean? */
static int is_believed(const shmalloc_heap *heap, const struct smi_identity *seen, int accept_unclean)
{
    int is_same = is_of_file(&seen->runtime, heap);
    return is_same ? !has_lost_storage(seen) : seen->state.mark != SMF_CLEAN && !accept_unclean;
}

int smi_recover_storage(shmalloc_heap *heap, const struct smi_identity *seen, int accept_unclean)
{
    int rc = is_believed(heap, seen, accept_unclean) ? 1 : smi_others_alive(heap); /* whoever came first has seen to it */
    if (rc != 0)
        return rc < 0 ? rc : 0;
    int fd = smi_heap_reopen(heap); /* looking for holes moves the offset, by which the kept description is known */
    if (fd < 0)
        return fd;
    rc = smi_holes_fill(fd, heap->path);
    smi_os_close(fd);
    return rc;
}

int smi_recover_readable(shmalloc_heap *heap, const struct smi_identity *seen, int accept_unclean)
{
    uint64_t needed, left = is_believed(heap, seen, accept_unclean) ? UINT64_MAX : smi_os_free_for_reading(heap->fd);
    int rc = left == UINT64_MAX ? 1 : smi_others_alive(heap);
    if (rc != 0)
        return rc < 0 ? rc : 0;
    int fd = smi_heap_reopen(heap);
    if (fd < 0)
        return fd;
    rc = smi_holes_measure(fd, heap->path, &needed);
    smi_os_close(fd);
    if (rc < 0 || needed <= left)
        return rc;
    return smi_refused(-ENOSPC,
                       "%s: is a copy that has holes where pages are in use; on this file system (tmpfs) even to read them "
                       "takes storage, %llu bytes, and %llu are free",
                       heap->path, (unsigned long long)needed, (unsigned long long)left);
}

/* The descriptor was asked for just before, when others were looked for. */
static int set_mark(shmalloc_heap *heap, uint64_t mark)
{
    if (heap->state->mark == mark)
        return 0;
    SMI_STORE(&heap->state->mark, mark);
    int rc = smi_os_sync_file(heap->fd);
    return rc < 0 ? smi_refused(rc, "%s: cannot mark the heap in use", heap->path) : 0;
}

/* Whose heap this is from now on. A heap in use with another identity is unclean: so the mark of a clean one
 * changes after the identity, and that an unclean one is unchecked is marked before. What this machine could not sync
 * is no matter of another file, or of what the disk had after a reboot. */
static int take_identity(shmalloc_heap *heap)
{
    struct smf_runtime *runtime = heap->runtime;
    uint64_t pid_namespace;
    int rc = read_pid_namespace(heap, &pid_namespace);
    if (rc < 0)
        return rc;
    int unclean = is_unclean(heap);
    if (unclean && (rc = set_mark(heap, SMF_UNCHECKED)) < 0)
        return rc;
    if (!is_of_file(runtime, heap) && heap->state->sync_failed)
        SMI_STORE(&heap->state->sync_failed, 0);
    memcpy(runtime->boot_id, heap->boot_id, 16);
    runtime->device = heap->device;
    runtime->inode = heap->inode;
    runtime->pid_namespace = pid_namespace;
    SMI_BARRIER();
    return unclean ? 0 : set_mark(heap, SMF_IN_USE);
}

static int new_mutexes(shmalloc_heap *heap)
{
    struct smf_lock fresh = {{0}, 0, 0};
    int rc = smi_os_mutex_init(fresh.mutex);
    if (rc < 0)
        return smi_refused(rc, "%s: cannot make a robust mutex", heap->path);
    for (uint32_t i = 0; i < heap->lock_count; i++)
        heap->locks[i] = fresh;
    return 0;
}

/* Pages before classes, the library's classes before the users', roots last: each repair may use those
 * before it. */
static int repair_all(shmalloc_heap *heap)
{
    int rc = smi_lock_repair(heap, smi_lock_of_pages(heap));
    for (uint32_t i = smi_lock_of_pages(heap); rc == 0 && i-- > SMF_LOCK_CLASS_FIRST;)
        rc = smi_lock_repair(heap, i);
    if (rc == 0)
        rc = smi_lock_repair(heap, SMF_LOCK_ROOTS);
    return rc;
}

/* A heap that was closed in order has nothing to repair, and is spared the look at all its locks. */
static int first(shmalloc_heap *heap, int accept_unclean)
{
    int was_clean = heap->state->mark == SMF_CLEAN;
    int rc = accept_unclean ? 0 : smi_recover_unclean(heap);
    if (rc == 0)
        rc = take_identity(heap);
    if (rc == 0)
        rc = new_mutexes(heap);
    if (rc < 0)
        return rc;
    struct smf_runtime *runtime = heap->runtime;
    if (heap->state->poison == 0 && !was_clean)
        rc = repair_all(heap);
    if (heap->state->poison == 0 && rc == 0)
        rc = smi_pages_check_chunks(heap);
    if (rc < 0 && rc != SHMALLOC_ECORRUPT) /* a damaged heap is poisoned now: it can still be read */
        return rc;
    SMI_STORE(&heap->state->generation, heap->state->generation + 1);
    SMI_STORE(&runtime->generation, heap->state->generation);
    return 0;
}

static int join(shmalloc_heap *heap, int accept_unclean)
{
    uint64_t here, there = heap->runtime->pid_namespace;
    int rc = accept_unclean ? 0 : smi_recover_unclean(heap);
    if (rc == 0)
        rc = read_pid_namespace(heap, &here);
    if (rc < 0)
        return rc;
    if (heap->runtime->generation != heap->state->generation)
        return smi_error(SHMALLOC_ECORRUPT,
                         "%s: processes are attached in generation %llu, expected %llu; close it in all of them first",
                         heap->path, (unsigned long long)heap->runtime->generation,
                         (unsigned long long)heap->state->generation);
    if (here != there)
        return smi_error(SHMALLOC_EFOREIGN,
                         "%s: in use by processes of PID namespace %llu, this one is %llu; robust mutexes "
                         "need one namespace: run the programs in the same container or share its PID "
                         "namespace",
                         heap->path, (unsigned long long)there, (unsigned long long)here);
    return 0;
}

/* A heap of an older format becomes one of this. */
static int convert(shmalloc_heap *heap)
{
    if (!smi_convert_is_due(heap))
        return smi_convert_seal(heap);
    int rc = smi_convert_begin(heap);
    return rc < 0 ? rc : smi_convert_end(heap, smi_recover_adopt(heap, SMI_ADOPT_ALL));
}

int smi_recover_attach(shmalloc_heap *heap, int accept_unclean, int alone)
{
    int others = smi_others_alive(heap);
    if (others < 0)
        return others;
    if (others && alone)
        return smi_error(SHMALLOC_EBUSY,
                         "%s: other processes have the heap open; close it in all of them first",
                         heap->path);
    if (others && smi_convert_is_due(heap))
        return smi_convert_in_use(heap);
    int was_clean = heap->state->mark == SMF_CLEAN;
    int rc = others ? join(heap, accept_unclean) : first(heap, accept_unclean);
    if (rc == 0 && !others && (rc = convert(heap)) < 0 && was_clean) /* what was changed goes before the mark */
        was_clean = smi_os_has_mark(heap->fd, heap->mark) && smi_os_sync_file(heap->fd) == 0;
    if (rc == 0)
        rc = smi_process_claim(heap);
    if (rc < 0 && was_clean && !others && heap->state->poison == 0) {
        SMI_STORE(&heap->state->mark, SMF_CLEAN); /* nothing that outlives a reboot was changed */
        if (smi_os_has_mark(heap->fd, heap->mark)) /* the message stays that of the failure */
            smi_os_sync_file(heap->fd);
    }
    if (rc == 0 && heap->state->poison == 0) /* a poisoned heap stays as it is */
        smi_recover_adopt(heap, SMI_ADOPT_SOME);
    return rc;
}

/* ---- adoption ---- */

/* After this no lock shows the dead as its owner, and nothing is half done under one. */
static int pass_locks(shmalloc_heap *heap)
{
    return smi_lock_pass(heap, SMF_LOCK_CLASS_FIRST, heap->lock_count - 1);
}

/* What the lock guards is done anew by the next who adopts. But the table of thread slots may name one that the page
 * heap's log is about to undo. */
int smi_recover_repair(shmalloc_heap *heap, uint32_t index)
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

/* What decides over blocks first, for all threads: words and blocks are what they will be, whenever the caches come
 * back. 1: some have not. */
static int release_threads_of(shmalloc_heap *heap, uint32_t process, uint64_t *most)
{
    uint32_t made = SMF_THREADS; /* slots are made in the order of the table; repair may have cleared an entry */
    int rc = 0;
    while (made > 0 && SMI_LOAD(&heap->threads[made - 1]) == 0)
        made--;
    for (uint32_t i = 0; rc == 0 && i < made; i++) {
        struct smf_thread *slot = slot_of(heap, i, process);
        rc = slot ? smi_cache_settle(heap, slot, i) : 0;
    }
    for (uint32_t i = 0; rc == 0 && i < made; i++) {
        struct smf_thread *slot = slot_of(heap, i, process);
        if (!slot)
            continue;
        rc = *most >= EACH_THREAD ? smi_cache_release(heap, slot, i, most) : 1;
        *most -= *most < EACH_THREAD ? *most : EACH_THREAD;
    }
    return rc;
}

/* Adopt process `i` if its byte can be taken on `fd`, a description of our own. 1: not all of it yet. */
static int adopt_one(shmalloc_heap *heap, int fd, uint32_t i, uint64_t *most)
{
    int rc = smi_os_lock_byte(fd, SMF_LOCK_BYTES + i);
    if (rc < 0)
        return rc == -EAGAIN ? 0 : cannot_look(heap, rc); /* alive, or somebody else is just claiming it */
    if (heap->processes[i].state != 0) {
        rc = pass_locks(heap);
        if (rc == 0)
            rc = release_threads_of(heap, i, most);
        if (rc == 0)
            SMI_STORE(&heap->processes[i].state, 0);
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
    return locked >= 0 ? !locked : cannot_look(heap, locked);
}

static int adopt_all(shmalloc_heap *heap, uint64_t most)
{
    /* A dead owner of the roots lock may have named its thread slot in the log; that lock comes before
     * RECOVER, so it is passed first. The dead take no lock any more. */
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

int smi_recover_adopt(shmalloc_heap *heap, uint64_t most)
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
