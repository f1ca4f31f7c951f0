/* SPDX-License-Identifier: MIT */
/*
 * open.c - from a file to a handle and back.
 *
 * Opening: read and validate the identity, take the attach lock, map, then either take the heap
 * into use in a new generation or join those who have it. Closing: bring this process's thread
 * slots to rest, leave the table; the last one syncs and marks the file clean.
 */
#include "life/open.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "handle/lock.h"
#include "handle/mapping.h"
#include "handle/resident.h"
#include "life/adopt.h"
#include "life/attach.h"
#include "life/context.h"
#include "life/create.h"
#include "life/registry.h"
#include "look/check.h"
#include "names/roots.h"
#include "pages/pages.h"
#include "platform/os.h"
#include "slots/central.h"

#define ROOM_TO_RAISE 16 /* times its maximum is reserved for a heap, so that it can be raised */
#define RECOVER_ONLY 0x80000000u /* open flag of shmalloc_recover: nobody else may have it open */

/* Who repairs what a dead owner of a lock left. */
static void set_repairs(shmalloc_heap *heap)
{
    uint32_t pages = smi_lock_of_pages(heap);
    const struct smi_repair_row rows[] = {
        {SMF_LOCK_ROOTS, SMF_LOCK_ROOTS, smi_roots_repair},
        {SMF_LOCK_RECOVER, SMF_LOCK_RECOVER, smi_adopt_repair},
        {SMF_LOCK_CLASS_FIRST, pages - 1, smi_central_repair},
        {pages, pages, smi_pages_repair},
    };
    _Static_assert(sizeof(rows) < sizeof(heap->repairs), "the last row is empty");
    memcpy(heap->repairs, rows, sizeof(rows));
    heap->settle_slot = smi_adopt_settle;
}

void smi_open_set_areas(shmalloc_heap *heap, const struct smf_header *header)
{
    smi_handle_set_areas(heap, header);
    set_repairs(heap);
}

/* ---- opening ---- */

static int check_layout(const struct smf_header *h, const shmalloc_options *o, const char *path)
{
    if (!o->layout ||
        (strcmp(o->layout, h->layout_name) == 0 && o->layout_version == h->layout_version))
        return 0;
    return smi_error(
        SHMALLOC_ELAYOUT,
        "%s: holds layout \"%s\" version %llu, the program expects \"%s\" version %llu; run the "
        "program that made it, or one that converts its data and then calls shmalloc_set_layout()",
        path, h->layout_name, (unsigned long long)h->layout_version, o->layout,
        (unsigned long long)o->layout_version);
}

static int check_kind(const struct smi_file_info *info, const char *path)
{
    if (S_ISDIR(info->mode))
        return smi_refused(-EISDIR, "%s: cannot read", path);
    if (!S_ISREG(info->mode))
        return smi_error(SHMALLOC_ENOTHEAP,
                         "%s: not a regular file, which a heap is; give the name of one", path);
    return 0;
}

static int read_identity_once(int fd, const char *path, const shmalloc_options *o,
                              struct smi_identity *out)
{
    uint8_t bytes[SMF_RUNTIME_OFFSET + sizeof(out->runtime)];
    int64_t got = smi_os_read(fd, bytes, sizeof(bytes), 0);
    if (got >= 0) /* the length after the state: a heap that grows meanwhile is no shorter than it
                     says */
        got = smi_os_stat(fd, &out->file);
    if (got < 0)
        return smi_refused((int)got, "%s: cannot read", path);
    memcpy(&out->header, bytes, sizeof(out->header));
    memcpy(&out->state, bytes + SMF_STATE_OFFSET, sizeof(out->state));
    memcpy(&out->runtime, bytes + SMF_RUNTIME_OFFSET, sizeof(out->runtime));
    smi_layout_settle(&out->header, &out->state);
    int read_only = (o->flags & SHMALLOC_READ_ONLY) != 0;
    int rc = smi_layout_validate(&out->header, &out->state, out->file.size, read_only, path);
    if (rc == 0 && read_only && smi_format_is_older(&out->header))
        rc = smi_error(SHMALLOC_EVERSION,
                       "%s: file format version %u, expected %u; it is converted when it is opened "
                       "for writing: do that "
                       "once, or run `shmalloc-inspect check --repair --yes`",
                       path, out->header.format_version, SMF_FORMAT_VERSION);
    return rc < 0 ? rc : check_layout(&out->header, o, path);
}

static int read_identity(int fd, const char *path, const shmalloc_options *o,
                         struct smi_identity *out)
{
    int rc = SHMALLOC_ECORRUPT;
    for (int tries = 0; rc == SHMALLOC_ECORRUPT && tries < 3; tries++) {
        if (tries > 0) /* another process may just have cut the tail off between two of our reads */
            smi_os_sleep(1000000);
        rc = read_identity_once(fd, path, o, out);
    }
    return rc;
}

/* Addresses for a heap: room for a maximum that is raised later, too, but around a fixed base there
 * may be none. */
static uint64_t reservation(const struct smf_header *header, const struct smf_state *state)
{
    uint64_t most = state->max_size;
    if (header->fixed_base || most >= SMI_DEFAULT_MAX_SIZE)
        return most;
    return most < SMI_DEFAULT_MAX_SIZE / ROOM_TO_RAISE ? most * ROOM_TO_RAISE
                                                       : SMI_DEFAULT_MAX_SIZE;
}

/* `seen` is what the file held before anything was locked. */
static int map_and_attach(shmalloc_heap *heap, const shmalloc_options *o, struct smi_identity *seen)
{
    int accept = (o->flags & SHMALLOC_ACCEPT_UNCLEAN) != 0;
    int rc = heap->read_only && accept ? 0 : smi_attach_boot_id(heap->path, heap->boot_id);
    if (rc == 0 && !heap->read_only)
        rc = smi_attach_lock(heap);
    if (rc < 0)
        return rc;
    if (heap->read_only) {
        rc = smi_attach_readable(heap, seen, accept);
    } else {
        rc = read_identity(heap->fd, heap->path, o, seen);
        if (rc == 0)
            rc = smi_attach_storage(heap, seen, accept);
    }
    if (rc == 0)
        rc = smi_mapping_make(heap, reservation(&seen->header, &seen->state), seen->state.size,
                      (void *)(uintptr_t)seen->header.fixed_base);
    if (rc == 0) {
        smi_open_set_areas(heap, &seen->header);
        if (!heap->read_only)
            rc = smi_attach(heap, accept, (o->flags & RECOVER_ONLY) != 0);
        else if (!accept) /* a reader takes no entry; it only must not read what a crash may have
                             torn */
            rc = smi_attach_unclean(heap);
    }
    if (!heap->read_only)
        smi_attach_unlock(heap);
    return rc;
}

/* The handle this process has of the file already; counted. */
static shmalloc_heap *find_open(const struct smi_file_info *info, int read_only)
{
    for (shmalloc_heap *heap = smi_heaps; heap; heap = heap->next)
        if (!heap->is_private && heap->device == info->device && heap->inode == info->inode &&
            heap->read_only == read_only)
            return heap;
    return NULL;
}

/* Open what `fd` is; the descriptor becomes the handle's. The registry lock is held. */
static int open_registered(int fd, const char *path, const shmalloc_options *o, shmalloc_heap **out)
{
    SMI_ASSERT(smi_registry_is_held());
    int read_only = (o->flags & SHMALLOC_READ_ONLY) != 0;
    struct smi_file_info info;
    int rc = smi_os_stat(fd, &info);
    shmalloc_heap *heap = rc == 0 ? find_open(&info, read_only) : NULL;
    if (heap) {
        smi_os_close(fd);
        if (o->flags & RECOVER_ONLY)
            return smi_error(SHMALLOC_EBUSY, "%s: this process has the heap open; close it first",
                             path);
        struct smf_header header = *heap->header;
        smi_layout_settle(&header, heap->state);
        rc = check_layout(&header, o, path);
        if (rc == 0) {
            heap->handles++;
            *out = heap;
        }
        return rc;
    }
    struct smi_identity seen;
    rc = rc < 0 ? smi_refused(rc, "%s: cannot look at the file", path)
                : smi_create_check_place(fd, path, o);
    if (rc == 0)
        rc = check_kind(&info, path);
    if (rc == 0)
        rc = read_identity(fd, path, o, &seen); /* before anything is locked */
    if (rc == 0)
        rc = smi_handle_make(fd, &info, path, read_only, &heap);
    if (rc < 0) {
        smi_os_close(fd);
        return rc;
    }
    rc = map_and_attach(heap, o, &seen);
    if (rc < 0) {
        smi_handle_drop(heap);
        return rc;
    }
    smi_registry_add(heap);
    *out = heap;
    return 0;
}

static int open_file(int fd, const char *path, const shmalloc_options *options, shmalloc_heap **out)
{
    int state = smi_os_cancel_off();
    smi_registry_lock();
    int rc = open_registered(fd, path, options, out);
    smi_registry_unlock();
    if (rc == 0) /* may take long: forks and ends of threads need not wait */
        smi_resident_ask(*out, options->flags);
    smi_os_cancel_restore(state);
    return rc;
}

static int open_path(const char *path, const shmalloc_options *o, shmalloc_heap **out)
{
    for (int tries = 0; tries < 100; tries++) {
        int fd = -ENOENT;
        if (!(o->flags & SHMALLOC_CREATE) || !(o->flags & SHMALLOC_EXCLUSIVE))
            fd = smi_os_open(path, (o->flags & SHMALLOC_READ_ONLY) != 0);
        if (fd >= 0)
            return open_file(fd, path, o, out);
        if (fd != -ENOENT || !(o->flags & SHMALLOC_CREATE))
            return smi_refused_change(fd, -1, path, "%s: cannot open", path);
        /* to nothing, or it would have been opened */
        if (!(o->flags & SHMALLOC_EXCLUSIVE) && smi_os_is_link(path))
            return smi_error(-ENOENT,
                             "%s: is a symbolic link to a file that does not exist; remove it, or "
                             "make that file",
                             path);
        int rc = smi_create_file(path, o);
        if (rc < 0 && (rc != -EEXIST || (o->flags & SHMALLOC_EXCLUSIVE)))
            return rc;
        if (o->flags & SHMALLOC_EXCLUSIVE) {
            fd = smi_os_open(path, 0);
            return fd < 0 ? smi_refused_change(fd, -1, path, "%s: cannot open", path)
                          : open_file(fd, path, o, out);
        }
    }
    return smi_error(SHMALLOC_EBUSY, "%s: is created and removed by others all the time", path);
}

int shmalloc_open(const char *path, const shmalloc_options *options, shmalloc_heap **out)
{
    shmalloc_options o;
    if (!path || !*path || !out)
        return smi_error(-EINVAL, "shmalloc_open needs a path and a place for the handle");
    int rc = smi_create_options(options, path, &o);
    return rc < 0 ? rc : open_path(path, &o, out);
}

int shmalloc_open_fd(int fd, const shmalloc_options *options, shmalloc_heap **out)
{
    shmalloc_options o;
    char path[32];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    if (!out)
        return smi_error(-EINVAL, "shmalloc_open_fd needs a place for the handle");
    int rc = smi_create_options(options, path, &o);
    int own = rc < 0 ? -1 : smi_os_reopen(fd, (o.flags & SHMALLOC_READ_ONLY) != 0);
    if (rc == 0 && own < 0)
        rc = smi_refused_change(own, fd, NULL, "%s: cannot open the descriptor's file", path);
    if (rc == 0 && (o.flags & SHMALLOC_CREATE) && (rc = smi_create_in(own, path, &o)) < 0)
        smi_os_close(own);
    return rc < 0 ? rc : open_file(own, path, &o, out);
}

/* ---- closing ---- */

static int close_registered(shmalloc_heap *heap)
{
    if (heap->closed)
        return smi_error(SHMALLOC_ECLOSED, "the heap handle is closed");
    if (heap->handles > 1) {
        heap->handles--;
        return 0;
    }
    int rc = smi_context_end_transactions(heap);
    if (rc == -EBUSY)
        return rc;
    heap->handles = 0;
    if (heap->is_private)
        smi_attach_drop(heap);
    else if (!heap->read_only && heap->epoch != 0)
        rc = smi_attach_end(heap, 0);
    smi_registry_remove(heap);
    smi_handle_bury(heap);
    return rc;
}

int shmalloc_close(shmalloc_heap *heap)
{
    if (!heap)
        return 0;
    int state = smi_os_cancel_off();
    smi_registry_lock();
    int rc = close_registered(heap);
    smi_registry_unlock();
    smi_os_cancel_restore(state);
    return rc;
}

#define PATIENCE_MS 100

/* Is the calling thread the only one? One that was joined has given its contexts back, but the
 * kernel may still count it for a moment. */
static int is_alone(const shmalloc_heap *heap)
{
    for (int tries = 0; tries < PATIENCE_MS; tries++) {
        unsigned threads = smi_os_threads();
        if (threads <= 1)
            return threads == 1;
        if (smi_registry_trylock()) {
            int others_work = !smi_context_only_mine(heap);
            smi_registry_unlock();
            if (others_work)
                return 0;
        }
        smi_os_sleep(1000000);
    }
    return 0;
}

int smi_heap_may_leave(const shmalloc_heap *heap)
{
    return __atomic_load_n(&heap->epoch, __ATOMIC_ACQUIRE) != 0 && heap->process_index >= 0 &&
           heap->processes[heap->process_index].pid == smi_os_process_id() &&
           !smi_registry_is_held() && !smi_lock_may_be_held() && is_alone(heap);
}

/* A process that ends without closing: what it has cached goes back. If other threads of it may
 * still be at work, their stacks must be left alone; then the next process that looks adopts it. So
 * it does when a signal handler ends the process in the middle of a change under a lock, which only
 * repair can undo. */
__attribute__((destructor)) static void leave_all(void)
{
    if (smi_lock_may_be_held() || !smi_registry_trylock())
        return;
    for (shmalloc_heap *heap = smi_heaps; heap; heap = heap->next)
        if (!heap->read_only && !heap->is_private && !heap->stays && heap->epoch != 0 &&
            smi_context_only_mine(heap))
            smi_attach_end(heap, 1);
    smi_registry_unlock();
}

int smi_heap_leave(shmalloc_heap *heap)
{
    if (!smi_registry_trylock())
        return -EBUSY;
    int rc = smi_attach_end(heap, 1);
    smi_registry_unlock();
    return rc;
}

/* ---- the heap as a file ---- */

/* A link's name is not the heap's: to remove it would leave the heap. */
static int check_name(const char *path)
{
    struct smi_file_info name;
    int rc = smi_os_stat_path(path, 0, &name);
    if (rc < 0)
        return smi_refused(rc, "%s: cannot look at the file", path);
    if (!S_ISLNK(name.mode))
        return 0;
    char *heap = smi_os_absolute(path);
    rc = smi_error(
        -ELOOP, "%s: is a symbolic link; nothing was removed: give the name of the heap itself, %s",
        path, heap ? heap : "to which it leads");
    free(heap);
    return rc;
}

/* Take the attach lock, for as long as `fd` is open, unless somebody has the heap open: 1. */
static int is_in_use(int fd)
{
    int rc = smi_os_lock_byte(fd, SMF_ATTACH_BYTE);
    return rc == -EAGAIN ? 1 : rc < 0 ? rc : smi_os_is_locked(fd, SMF_LOCK_BYTES, SMF_PROCESSES);
}

int shmalloc_destroy(const char *path)
{
    struct smf_header header = {0};
    if (!path || !*path)
        return smi_error(-EINVAL, "shmalloc_destroy needs a path");
    int fd = smi_os_open(path, 0);
    if (fd < 0)
        return smi_refused_change(fd, -1, path, "%s: cannot open", path);
    int64_t got = smi_os_read(fd, &header, sizeof(header), 0);
    int rc = 0;
    if (got < 0)
        rc = smi_refused((int)got, "%s: cannot read", path);
    else if (header.magic != SMF_MAGIC)
        rc = smi_error(
            SHMALLOC_ENOTHEAP,
            "%s: not a shmalloc heap; nothing was removed: remove it with rm if you mean it", path);
    else if ((rc = check_name(path)) < 0)
        ;
    else if ((rc = is_in_use(fd)) > 0)
        rc = smi_error(
            SHMALLOC_EBUSY,
            "%s: processes have the heap open; nothing was removed: close it in all of them first",
            path);
    else if (rc < 0)
        smi_refused(rc, "%s: cannot look for locks on the file; nothing was removed", path);
    else if ((rc = smi_os_unlink(path)) < 0)
        smi_refused_change(rc, -1, path, "%s: cannot remove", path);
    smi_os_close(fd);
    return rc;
}

static int check_file(shmalloc_heap *heap)
{
    struct smi_view view;
    int rc = smi_heap_descriptor(heap);
    if (rc < 0)
        return rc;
    rc = smi_view_of_descriptor(&view, heap->fd, heap->path);
    if (rc == 0)
        rc = smi_check_or_error(&view);
    smi_view_finish(&view);
    return rc;
}

int shmalloc_recover(const char *path)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    shmalloc_heap *heap;
    if (!path || !*path)
        return smi_error(-EINVAL, "shmalloc_recover needs a path");
    options.flags = SHMALLOC_ACCEPT_UNCLEAN | RECOVER_ONLY;
    int rc = open_path(path, &options, &heap);
    if (rc < 0)
        return rc;
    rc = check_file(heap); /* also of a poisoned heap, to say what is wrong */
    if (rc == 0)
        return shmalloc_close(heap);
    char text[700];
    snprintf(text, sizeof(text), "%s", shmalloc_errmsg());
    if (rc == SHMALLOC_ECORRUPT) /* later opens may read, not change */
        SMI_STORE(&heap->state->poison, (uint64_t)-SHMALLOC_ECORRUPT);
    heap->unchecked = 1; /* the file could not be read, say: whether it is sound is as open as
                            before */
    shmalloc_close(heap);
    return rc == SHMALLOC_ECORRUPT
               ? smi_error(rc,
                           "%s; the heap's own data alone were judged, not what programs keep in "
                           "their blocks; "
                           "`shmalloc-inspect check --repair` tells what can be done",
                           text)
               : smi_error(rc, "%s", text);
}

int shmalloc_set_max_size(shmalloc_heap *heap, uint64_t bytes)
{
    int rc;
    if (!smi_thread_enter(heap, &rc))
        return rc;
    uint64_t size = smi_create_granules(bytes);
    if (bytes > SMF_MAX_SIZE || size < SMI_LOAD(&heap->state->max_size))
        return smi_error(
            -EINVAL, "%s: maximum size %llu is not between the present %llu and 16 TiB", heap->path,
            (unsigned long long)bytes, (unsigned long long)heap->state->max_size);
    SMI_STORE(&heap->state->max_size, size); /* one store */
    return 0;
}
