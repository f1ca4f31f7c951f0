/* SPDX-License-Identifier: MIT */
/*
 * attach.c - to become a process of a heap, and to leave it; see attach.h.
 *
 * Who comes first takes the heap into use in a new generation; the others join. Who leaves last
 * marks it clean. All of it may be killed at any instruction and is then done again by the next.
 */
#include "life/attach.h"

#include <errno.h>
#include <string.h>

#include "handle/lock.h"
#include "life/adopt.h"
#include "life/context.h"
#include "life/convert.h"
#include "life/holes.h"
#include "life/registry.h"
#include "life/stamp.h"
#include "pages/pages.h"
#include "platform/os.h"

#define ATTACH_PATIENCE_NS 10000000000ull

static uint64_t last_epoch;

int smi_attach_lock(shmalloc_heap *heap)
{
    uint64_t start = smi_os_tick();
    for (;;) {
        int rc = smi_os_lock_byte(heap->fd, SMF_ATTACH_BYTE);
        if (rc != -EAGAIN)
            return rc < 0 ? smi_refused(rc, "%s: cannot lock the file", heap->path) : 0;
        if (smi_os_tick() - start > ATTACH_PATIENCE_NS)
            return smi_error(
                SHMALLOC_EBUSY,
                "%s: another process has been attaching or leaving for 10 seconds; is it "
                "stopped?",
                heap->path);
        smi_os_sleep(200000);
        if ((rc = smi_heap_descriptor(heap)) < 0)
            return rc;
    }
}

/* The mark alone is asked, which cannot fail: a lock that cannot be given back would stop
 * everybody. */
void smi_attach_unlock(shmalloc_heap *heap)
{
    if (smi_os_has_mark(heap->fd, heap->mark))
        smi_os_unlock_byte(heap->fd, SMF_ATTACH_BYTE);
}

int smi_attach_cannot_look(const shmalloc_heap *heap, int rc)
{
    return smi_refused(rc, "%s: cannot look for locks on the file", heap->path);
}

/* Does somebody hold one of the bytes from entry `first` to before `end`? */
static int is_any_held(shmalloc_heap *heap, uint32_t first, uint32_t end)
{
    int locked = first < end ? smi_os_is_locked(heap->fd, SMF_LOCK_BYTES + first, end - first) : 0;
    return locked < 0 ? smi_attach_cannot_look(heap, locked) : locked;
}

int smi_others_alive(shmalloc_heap *heap)
{
    int rc = smi_heap_descriptor(heap);
    if (rc < 0)
        return rc;
    if (heap->process_index < 0)
        return is_any_held(heap, 0, SMF_PROCESSES);
    rc = is_any_held(heap, 0, (uint32_t)heap->process_index);
    return rc != 0 ? rc : is_any_held(heap, (uint32_t)heap->process_index + 1, SMF_PROCESSES);
}

/* ---- whose file it is ---- */

int smi_attach_boot_id(const char *path, uint8_t out[16])
{
    int rc = smi_os_boot_id(out);
    return rc < 0 ? smi_refused(rc, "%s: cannot read the machine's boot id, expected 32 digits in "
                                    "/proc/sys/kernel/random/boot_id", path) : 0;
}

/* Has this machine been running, and is this the file, since that identity was written? What was
 * created and never attached has one, too. */
static int is_of_file(const struct smf_runtime *was, const shmalloc_heap *heap)
{
    return memcmp(was->boot_id, heap->boot_id, 16) == 0 && was->device == heap->device &&
           was->inode == heap->inode;
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
    return rc < 0
               ? smi_refused(rc, "%s: cannot read this process's PID namespace, /proc/self/ns/pid",
                             heap->path)
               : 0;
}

int smi_attach_unclean(shmalloc_heap *heap)
{
    if (!is_unclean(heap))
        return 0;
    const char *why =
        heap->state->mark == SMF_UNCHECKED
            ? "has not been checked since the machine stopped or the file was copied while in use"
        : memcmp(heap->runtime->boot_id, heap->boot_id, 16) != 0
            ? "was in use when the machine stopped"
            : "is a copy of a heap that was in use";
    return smi_error(SHMALLOC_EUNCLEAN,
                     "%s: %s; have it checked by shmalloc_recover() or `shmalloc-inspect check "
                     "--repair --yes`, or open it "
                     "with SHMALLOC_ACCEPT_UNCLEAN",
                     heap->path, why);
}

/* Does the file still have the storage that its last user left? Not when another heap's bytes, or
 * its own older ones, were written over it, or when zeros were turned into holes. */
static int has_lost_storage(const struct smi_identity *seen)
{
    return seen->state.mark == SMF_CLEAN && seen->file.blocks < seen->runtime.stored;
}

/* Is what its words say of the storage of this file true, or will it be found unclean? */
static int is_believed(const shmalloc_heap *heap, const struct smi_identity *seen,
                       int accept_unclean)
{
    int is_same = is_of_file(&seen->runtime, heap);
    return is_same ? !has_lost_storage(seen) : seen->state.mark != SMF_CLEAN && !accept_unclean;
}

int smi_attach_storage(shmalloc_heap *heap, const struct smi_identity *seen, int accept_unclean)
{
    /* whoever came first has seen to it */
    int rc = is_believed(heap, seen, accept_unclean) ? 1 : smi_others_alive(heap);
    if (rc != 0)
        return rc < 0 ? rc : 0;
    int fd = smi_heap_reopen(heap); /* looking for holes moves the offset, by which the kept
                                       description is known */
    if (fd < 0)
        return fd;
    rc = smi_holes_fill(fd, heap->path);
    smi_os_close(fd);
    return rc;
}

int smi_attach_readable(shmalloc_heap *heap, const struct smi_identity *seen, int accept_unclean)
{
    uint64_t needed, left = is_believed(heap, seen, accept_unclean)
                                ? UINT64_MAX
                                : smi_os_free_for_reading(heap->fd);
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
                       "%s: is a copy that has holes where pages are in use; on this file system "
                       "(tmpfs) even to read them "
                       "takes storage, %llu bytes, and %llu are free",
                       heap->path, (unsigned long long)needed, (unsigned long long)left);
}

/* ---- the process's entry ---- */

static void fill_entry(struct smf_process *entry)
{
    entry->pid = smi_os_process_id();
    entry->attached_at = smi_os_now();
    entry->uid = smi_os_user_id();
    smi_os_describe_self(entry->name, &entry->start_time);
    entry->serial++;
    entry->flags = 0;
    SMI_STORE(&entry->state, 1);
}

uint64_t smi_attach_epoch(void)
{
    return __atomic_add_fetch(&last_epoch, 1, __ATOMIC_RELAXED);
}

/* Claim a free entry with `own`, a description of our own. -EAGAIN: there is none. */
static int claim_free(shmalloc_heap *heap, int own)
{
    int rc = -EAGAIN;
    for (uint32_t i = 0; rc == -EAGAIN && i < SMF_PROCESSES; i++) {
        if (SMI_LOAD(&heap->processes[i].state) != 0)
            continue;
        rc = smi_os_hold_byte(own, SMF_LOCK_BYTES + i, &heap->liveness);
        if (rc < 0)
            continue;
        fill_entry(&heap->processes[i]);
        heap->process_index = (int)i;
        heap->generation = heap->state->generation;
        __atomic_store_n(&heap->epoch, smi_attach_epoch(), __ATOMIC_RELEASE);
    }
    return rc < 0 && rc != -EAGAIN
               ? smi_refused(rc, "%s: cannot hold a lock on the file", heap->path)
               : rc;
}

static int claim_entry(shmalloc_heap *heap)
{
    int own = smi_heap_reopen(heap), rc = own < 0 ? own : claim_free(heap, own);
    if (rc == -EAGAIN && (rc = smi_adopt(heap, SMI_ADOPT_ALL)) == 0) /* the entries of the dead */
        rc = claim_free(heap, own);
    smi_os_close(own);
    if (rc != -EAGAIN)
        return rc;
    return smi_error(SHMALLOC_EPROCESSES,
                     "%s: %d processes have the heap open, which is the limit; close it in one",
                     heap->path, SMF_PROCESSES);
}

/* ---- the first, and who joins ---- */

/* The descriptor was asked for just before, when others were looked for. */
static int set_mark(shmalloc_heap *heap, uint64_t mark)
{
    if (heap->state->mark == mark)
        return 0;
    SMI_STORE(&heap->state->mark, mark);
    int rc = smi_os_sync_file(heap->fd);
    return rc < 0 ? smi_refused(rc, "%s: cannot mark the heap in use", heap->path) : 0;
}

/* Whose heap this is from now on. A heap in use with another identity is unclean: so the mark of a
 * clean one changes after the identity, and that an unclean one is unchecked is marked before. What
 * this machine could not sync is no matter of another file, or of what the disk had after a
 * reboot. */
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

/* Pages before classes, the library's classes before the users', roots last: each repair may use
 * those before it. */
static int repair_all(shmalloc_heap *heap)
{
    int rc = smi_lock_repair(heap, smi_lock_of_pages(heap));
    for (uint32_t i = smi_lock_of_pages(heap); rc == 0 && i-- > SMF_LOCK_CLASS_FIRST;)
        rc = smi_lock_repair(heap, i);
    if (rc == 0)
        rc = smi_lock_repair(heap, SMF_LOCK_ROOTS);
    return rc;
}

/* A heap that was closed in order has nothing to repair, and is spared the look at all its
 * locks. */
static int first(shmalloc_heap *heap, int accept_unclean)
{
    int was_clean = heap->state->mark == SMF_CLEAN;
    int rc = accept_unclean ? 0 : smi_attach_unclean(heap);
    if (rc == 0)
        rc = take_identity(heap);
    if (rc == 0)
        rc = smi_stamp_finish(heap);
    if (rc == 0)
        rc = new_mutexes(heap);
    if (rc < 0)
        return rc;
    struct smf_runtime *runtime = heap->runtime;
    if (heap->state->poison == 0 && !was_clean)
        rc = repair_all(heap);
    if (heap->state->poison == 0 && rc == 0)
        rc = smi_pages_check_chunks(heap);
    if (rc < 0 && rc != SHMALLOC_ECORRUPT) /* a damaged heap is poisoned now: it can still be
                                              read */
        return rc;
    SMI_STORE(&heap->state->generation, heap->state->generation + 1);
    SMI_STORE(&runtime->generation, heap->state->generation);
    return 0;
}

static int join_others(shmalloc_heap *heap, int accept_unclean)
{
    uint64_t here, there = heap->runtime->pid_namespace;
    int rc = accept_unclean ? 0 : smi_attach_unclean(heap);
    if (rc == 0)
        rc = read_pid_namespace(heap, &here);
    if (rc < 0)
        return rc;
    if (heap->runtime->generation != heap->state->generation)
        return smi_error(SHMALLOC_ECORRUPT,
                         "%s: processes are attached in generation %llu, expected %llu; close it "
                         "in all of them first",
                         heap->path, (unsigned long long)heap->runtime->generation,
                         (unsigned long long)heap->state->generation);
    if (here != there)
        return smi_error(
            SHMALLOC_EFOREIGN,
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
    return rc < 0 ? rc : smi_convert_end(heap, smi_adopt(heap, SMI_ADOPT_ALL));
}

int smi_attach(shmalloc_heap *heap, int accept_unclean, int alone)
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
    int rc = others ? join_others(heap, accept_unclean) : first(heap, accept_unclean);
    /* what was changed goes before the mark */
    if (rc == 0 && !others && (rc = convert(heap)) < 0 && was_clean)
        was_clean = smi_os_has_mark(heap->fd, heap->mark) && smi_os_sync_file(heap->fd) == 0;
    if (rc == 0)
        rc = claim_entry(heap);
    if (rc < 0 && was_clean && !others && heap->state->poison == 0) {
        SMI_STORE(&heap->state->mark, SMF_CLEAN); /* nothing that outlives a reboot was changed */
        if (smi_os_has_mark(heap->fd, heap->mark)) /* the message stays that of the failure */
            smi_os_sync_file(heap->fd);
    }
    heap->gives_before = heap->page_heap->gives;
    if (rc == 0 && heap->state->poison == 0) /* a poisoned heap stays as it is */
        smi_adopt(heap, SMI_ADOPT_SOME);
    return rc;
}

/* ---- leaving ---- */

void smi_attach_drop(shmalloc_heap *heap)
{
    __atomic_store_n(&heap->epoch, 0, __ATOMIC_RELEASE);
    while (heap->contexts)
        smi_context_disown(heap, heap->contexts);
    if (heap->shared)
        smi_context_to_pool(heap->shared);
    heap->shared = NULL;
    smi_os_unmap(heap->liveness, 4096);
    heap->liveness = NULL;
    heap->process_index = -1;
}

static int leave_table(shmalloc_heap *heap, int cut_off)
{
    int rc = 0;
    __atomic_store_n(&heap->epoch, 0, __ATOMIC_RELEASE);
    for (struct smi_thread *t = heap->contexts; t; t = t->next_in_heap)
        SMI_STORE(&t->serves, NULL);
    for (struct smi_thread *t = heap->contexts; t && heap->process_index >= 0 && rc == 0;
         t = t->next_in_heap)
        if (heap->state->poison == 0)
            rc = smi_context_release(heap, t, cut_off);
    if (heap->process_index >= 0 && rc == 0) /* else the next one adopts what is left */
        SMI_STORE(&heap->processes[heap->process_index].state, 0);
    smi_attach_drop(heap);
    return rc;
}

/* The last one out: data first, then the mark, each synced. */
static int mark_clean(shmalloc_heap *heap)
{
    uint64_t before = heap->state->mark;
    struct smi_file_info info;
    int rc = smi_heap_descriptor(heap);
    if (rc < 0)
        return rc;
    rc = heap->state->sync_failed ? -EIO : smi_os_sync_file(heap->fd);
    if (rc == 0) {
        heap->runtime->stored = smi_os_stat(heap->fd, &info) == 0 ? info.blocks : 0;
        SMI_STORE(&heap->state->mark, SMF_CLEAN);
        rc = smi_os_sync_file(heap->fd);
    }
    if (rc == 0)
        return 0;
    SMI_STORE(&heap->state->mark, before);
    SMI_STORE(&heap->state->sync_failed, (uint64_t)-rc);
    return smi_refused(rc, "%s: is exact only while the machine is up, because it cannot be synced",
                       heap->path);
}

int smi_attach_end(shmalloc_heap *heap, int cut_off)
{
    SMI_ASSERT(smi_registry_is_held());
    int rc = smi_heap_descriptor(heap);
    if (rc == 0)
        rc = smi_attach_lock(heap);
    if (rc < 0) {
        smi_attach_drop(heap);
        return rc;
    }
    rc = leave_table(heap, cut_off);
    if (rc == 1) /* for want of a membarrier: who adopts it can free what it retired */
        rc = 0;
    int others = smi_others_alive(heap);
    if (rc == 0 && others < 0)
        rc = others;
    if (rc == 0 && others == 0 && heap->state->poison == 0 && !heap->unchecked) {
        rc = smi_adopt(heap, SMI_ADOPT_ALL); /* nobody is alive: what the dead left is brought to
                                                rest */
        if (rc == 0 && SMI_LOAD(&heap->adopt_wanted)) /* among others of the dead, who count as
                                                         readers till then */
            rc = smi_adopt(heap, SMI_ADOPT_ALL);
        if (rc == 0)
            smi_pages_decay_last(heap); /* before the sync, which need not write it; a failure is no
                                           failure to close */
        if (rc == 0 && !SMI_LOAD(&heap->adopt_wanted))
            rc = mark_clean(heap);
    }
    smi_attach_unlock(heap);
    return rc;
}
