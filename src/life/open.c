/* SPDX-License-Identifier: MIT */
/*
 * open.c - open, create, close: from a file to a handle and back.
 *
 * Creation: the whole heap is built in a file without a name, which gets its name when it is complete; by
 * descriptor, the first word is stored last. Opening: read and validate the identity, take the attach lock,
 * map, then either take the heap into use in a new generation or join those who have it. Closing: bring this
 * process's thread slots to rest, leave the table; the last one syncs and marks the file clean.
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
#include "handle/storage.h"
#include "life/process.h"
#include "life/recover.h"
#include "look/check.h"
#include "names/roots.h"
#include "pages/pages.h"
#include "platform/os.h"
#include "slots/central.h"

#define DEFAULT_ARENAS 4
#define DEFAULT_DECAY_NS 10000000000ull
#define ROOM_TO_RAISE 16 /* times its maximum is reserved for a heap, so that it can be raised */
#define PRIVATE_SIZE (8ull << 20) /* of a private heap, at first: addresses, not memory */
#define RECOVER_ONLY 0x80000000u /* open flag of shmalloc_recover: nobody else may have it open */

/* Who repairs what a dead owner of a lock left. */
static void set_repairs(shmalloc_heap *heap)
{
    uint32_t pages = smi_lock_of_pages(heap);
    const struct smi_repair rows[] = {
        {SMF_LOCK_ROOTS, SMF_LOCK_ROOTS, smi_roots_repair},
        {SMF_LOCK_RECOVER, SMF_LOCK_RECOVER, smi_recover_repair},
        {SMF_LOCK_CLASS_FIRST, pages - 1, smi_central_repair},
        {pages, pages, smi_pages_repair},
    };
    _Static_assert(sizeof(rows) < sizeof(heap->repairs), "the last row is empty");
    memcpy(heap->repairs, rows, sizeof(rows));
}

static void set_areas(shmalloc_heap *heap, const struct smf_header *header)
{
    smi_handle_set_areas(heap, header);
    set_repairs(heap);
}

static int read_boot_id(const char *path, uint8_t out[16])
{
    int rc = smi_os_boot_id(out);
    return rc < 0 ? smi_refused(rc, "%s: cannot read the machine's boot id, expected 32 digits in "
                                    "/proc/sys/kernel/random/boot_id", path) : 0;
}

static const shmalloc_options defaults = SHMALLOC_OPTIONS_INIT;
static const char private_name[] = "private heap"; /* in messages */

/* ---- creation ---- */

static int check_options(const shmalloc_options *o, const char *path)
{
    if (o->struct_size != sizeof(*o))
        return smi_error(-EINVAL, "%s: options.struct_size is %zu, expected %zu; begin with "
                                  "SHMALLOC_OPTIONS_INIT",
                         path, o->struct_size, sizeof(*o));
    const unsigned known = SHMALLOC_CREATE | SHMALLOC_EXCLUSIVE | SHMALLOC_READ_ONLY | SHMALLOC_HARDENED |
                           SHMALLOC_ACCEPT_UNCLEAN | SHMALLOC_ANY_FILE_SYSTEM | SHMALLOC_PREFAULT |
                           SHMALLOC_HUGE_PAGES;
    if (o->flags & ~known)
        return smi_error(-EINVAL, "%s: unknown flags %#x; use a newer library, or those of enum shmalloc_flag", path,
                         o->flags & ~known);
    if (o->max_size > SMF_MAX_SIZE)
        return smi_error(-EINVAL, "%s: maximum size %llu is over the limit of 16 TiB", path,
                         (unsigned long long)o->max_size);
    if (o->initial_size > (o->max_size ? o->max_size : SMI_DEFAULT_MAX_SIZE))
        return smi_error(-EINVAL, "%s: initial size %llu is over the maximum size %llu", path,
                         (unsigned long long)o->initial_size,
                         (unsigned long long)(o->max_size ? o->max_size : SMI_DEFAULT_MAX_SIZE));
    if (o->arenas > SMF_ARENAS_MAX)
        return smi_error(-EINVAL, "%s: %u arenas are over the limit of %u", path, o->arenas, SMF_ARENAS_MAX);
    if (o->layout && strlen(o->layout) >= sizeof(((struct smf_header *)0)->layout_name))
        return smi_error(-EINVAL, "%s: layout name has %zu bytes, at most 63 fit", path, strlen(o->layout));
    if ((uintptr_t)o->base % SMI_MAP_UNIT != 0)
        return smi_error(-EINVAL, "%s: base %p is not a multiple of 2 MiB", path, o->base);
    if ((o->mode & ~07777u) != 0)
        return smi_error(-EINVAL, "%s: mode %o has more than permission bits", path, o->mode);
    if ((o->flags & SHMALLOC_READ_ONLY) && (o->flags & (SHMALLOC_CREATE | SHMALLOC_EXCLUSIVE)))
        return smi_error(-EINVAL, "%s: a heap cannot be created read-only", path);
    return 0;
}

static uint64_t round_granule(uint64_t n)
{
    return (n + SMF_GRANULE - 1) & ~(SMF_GRANULE - 1);
}

static int fill_header(struct smf_header *h, const shmalloc_options *o)
{
    struct smi_platform here;
    int rc = smi_os_platform(&here);
    if (rc < 0)
        return rc;
    h->format_version = SMF_FORMAT_VERSION;
    h->endian = SMF_ENDIAN;
    smi_os_random(h->uuid, sizeof(h->uuid));
    h->word_bits = 64;
    h->page_bytes = SMF_PAGE;
    h->os_page_bytes = here.os_page_bytes;
    h->machine = here.machine;
    h->mutex_fingerprint = here.mutex_fingerprint;
    h->mutex_bytes = here.mutex_bytes;
    h->class_count = SMF_CLASSES;
    h->arena_count = o->arenas ? o->arenas : DEFAULT_ARENAS;
    h->mode = o->flags & SHMALLOC_HARDENED ? SMF_HEAP_HARDENED : 0;
    h->fixed_base = (uintptr_t)o->base;
    h->layout_version = o->layout_version;
    if (o->layout)
        snprintf(h->layout_name, sizeof(h->layout_name), "%s", o->layout);
    smi_areas(h->arena_count, &h->areas, &h->lock_count);
    h->created_at = smi_os_now() / 1000000000ull;
    return 0;
}

/* Whose storage a new heap's is, so that its first attacher need not look for holes, and the first of a copy does. */
static void give_identity(shmalloc_heap *heap, const struct smf_runtime *runtime)
{
    struct smi_file_info info;
    *heap->runtime = *runtime;
    heap->runtime->device = heap->device;
    heap->runtime->inode = heap->inode;
    heap->runtime->stored = smi_os_stat(heap->fd, &info) == 0 ? info.blocks : 0;
}

/* The bytes of a new heap in an empty file; `runtime` is what /proc tells. */
static int format_file(int fd, const char *path, const shmalloc_options *o, const struct smf_runtime *runtime)
{
    struct smf_header header = {0};
    int rc = fill_header(&header, o);
    if (rc < 0)
        return smi_refused(rc, "%s: cannot make a robust mutex", path);
    uint64_t least = round_granule(header.areas.end + 8 * SMF_PAGE);
    uint64_t size = round_granule(o->initial_size);
    uint64_t max_size = round_granule(o->max_size ? o->max_size : SMI_DEFAULT_MAX_SIZE);
    size = size < least ? least : size;
    if (max_size < size)
        return smi_error(-EINVAL, "%s: maximum size %llu is below the %llu bytes that an empty heap has",
                         path, (unsigned long long)max_size, (unsigned long long)size);
    header.magic = SMF_MAGIC;
    header.checksum = smi_hash(&header, offsetof(struct smf_header, checksum));
    header.magic = 0;
    shmalloc_heap *heap = NULL;
    rc = smi_os_truncate(fd, size);
    if (rc == 0 && (rc = smi_os_reserve(fd, 0, header.areas.end)) < 0)
        smi_os_truncate(fd, 0);
    if (rc == 0)
        rc = smi_os_write(fd, &header, sizeof(header), 0);
    if (rc < 0)
        return smi_refused_change(rc, fd, NULL, "%s: cannot make a heap of %llu bytes", path, (unsigned long long)size);
    struct smi_file_info info;
    int own = smi_os_reopen(fd, 0);
    rc = own < 0 ? own : smi_os_stat(own, &info);
    if (rc == 0)
        rc = smi_handle_make(own, &info, path, 0, &heap);
    if (rc < 0)
        smi_os_close(own);
    if (rc == 0)
        rc = smi_mapping_make(heap, size, size, NULL);
    if (rc == 0) {
        set_areas(heap, &header);
        heap->state->max_size = max_size;
        heap->state->epoch = 1;
        heap->state->decay_ns = DEFAULT_DECAY_NS;
        heap->state->mark = SMF_CLEAN;
        rc = smi_pages_format(heap, size);
    }
    if (rc == 0) {
        give_identity(heap, runtime);
        SMI_STORE(&heap->header->magic, SMF_MAGIC);
    } else if (rc != SHMALLOC_EADDRESS) { /* which has its message */
        smi_refused_change(rc, fd, NULL, "%s: cannot make a heap of %llu bytes", path, (unsigned long long)size);
    }
    smi_handle_drop(heap);
    return rc;
}

static int check_file_system(int fd, const char *path, const shmalloc_options *o)
{
    const char *unfit = o->flags & (SHMALLOC_READ_ONLY | SHMALLOC_ANY_FILE_SYSTEM)
                            ? NULL
                            : smi_os_unfit_file_system(fd);
    if (!unfit)
        return 0;
    return smi_error(SHMALLOC_EFILESYSTEM,
                     "%s: lies on %s, which does not keep mappings and locks of several processes coherent; "
                     "put it on a local file system (in a container: a volume, or /dev/shm), or, if one process alone uses "
                     "it, open it with SHMALLOC_ANY_FILE_SYSTEM",
                     path, unfit);
}

/* What creation and the first attacher need of /proc: asked before there is a file. */
static int read_proc(const char *path, struct smf_runtime *out)
{
    memset(out, 0, sizeof(*out));
    int rc = read_boot_id(path, out->boot_id);
    if (rc < 0)
        return rc;
    rc = smi_os_pid_namespace(&out->pid_namespace);
    return rc < 0 ? smi_refused(rc, "%s: cannot read this process's PID namespace, /proc/self/ns/pid", path) : 0;
}

/* Make the heap under no name and link it into place. -EEXIST: somebody else was faster. */
static int create_file(const char *path, const shmalloc_options *o)
{
    char temp_name[PATH_MAX];
    struct smf_runtime runtime;
    int rc = read_proc(path, &runtime);
    if (rc < 0)
        return rc;
    int fd = smi_os_create_unnamed(path, o->mode ? o->mode : 0600, temp_name);
    if (fd < 0)
        return smi_refused_change(fd, -1, path, "%s: cannot create", path);
    rc = check_file_system(fd, path, o);
    if (rc == 0)
        rc = format_file(fd, path, o, &runtime);
    if (rc < 0)
        smi_os_discard(temp_name);
    else if ((rc = smi_os_publish(fd, path, temp_name)) < 0)
        smi_refused_change(rc, -1, path, "%s: cannot create", path);
    smi_os_close(fd);
    return rc;
}

/* ---- opening ---- */

static int check_layout(const struct smf_header *h, const shmalloc_options *o, const char *path)
{
    if (!o->layout || (strcmp(o->layout, h->layout_name) == 0 && o->layout_version == h->layout_version))
        return 0;
    return smi_error(SHMALLOC_ELAYOUT,
                     "%s: holds layout \"%s\" version %llu, the program expects \"%s\" version %llu; run the "
                     "program that made it, or convert it",
                     path, h->layout_name, (unsigned long long)h->layout_version, o->layout,
                     (unsigned long long)o->layout_version);
}

static int check_kind(const struct smi_file_info *info, const char *path)
{
    if (S_ISDIR(info->mode))
        return smi_refused(-EISDIR, "%s: cannot read", path);
    if (!S_ISREG(info->mode))
        return smi_error(SHMALLOC_ENOTHEAP, "%s: not a regular file, which a heap is; give the name of one", path);
    return 0;
}

static int read_identity_once(int fd, const char *path, const shmalloc_options *o, struct smi_identity *out)
{
    uint8_t bytes[SMF_RUNTIME_OFFSET + sizeof(out->runtime)];
    int64_t got = smi_os_read(fd, bytes, sizeof(bytes), 0);
    if (got >= 0) /* the length after the state: a heap that grows meanwhile is no shorter than it says */
        got = smi_os_stat(fd, &out->file);
    if (got < 0)
        return smi_refused((int)got, "%s: cannot read", path);
    memcpy(&out->header, bytes, sizeof(out->header));
    memcpy(&out->state, bytes + SMF_STATE_OFFSET, sizeof(out->state));
    memcpy(&out->runtime, bytes + SMF_RUNTIME_OFFSET, sizeof(out->runtime));
    int read_only = (o->flags & SHMALLOC_READ_ONLY) != 0;
    int rc = smi_layout_validate(&out->header, &out->state, out->file.size, read_only, path);
    if (rc == 0 && read_only && smi_format_is_older(&out->header))
        rc = smi_error(SHMALLOC_EVERSION,
                       "%s: file format version %u, expected %u; it is converted when it is opened for writing: do that "
                       "once, or run `shmalloc-inspect check --repair --yes`",
                       path, out->header.format_version, SMF_FORMAT_VERSION);
    return rc < 0 ? rc : check_layout(&out->header, o, path);
}

static int read_identity(int fd, const char *path, const shmalloc_options *o, struct smi_identity *out)
{
    int rc = SHMALLOC_ECORRUPT;
    for (int tries = 0; rc == SHMALLOC_ECORRUPT && tries < 3; tries++) {
        if (tries > 0) /* another process may just have cut the tail off between two of our reads */
            smi_os_sleep(1000000);
        rc = read_identity_once(fd, path, o, out);
    }
    return rc;
}

/* Addresses for a heap: room for a maximum that is raised later, too, but around a fixed base there may be none. */
static uint64_t reservation(const struct smf_header *header, const struct smf_state *state)
{
    uint64_t most = state->max_size;
    if (header->fixed_base || most >= SMI_DEFAULT_MAX_SIZE)
        return most;
    return most < SMI_DEFAULT_MAX_SIZE / ROOM_TO_RAISE ? most * ROOM_TO_RAISE : SMI_DEFAULT_MAX_SIZE;
}

/* `seen` is what the file held before anything was locked. */
static int map_and_attach(shmalloc_heap *heap, const shmalloc_options *o, struct smi_identity *seen)
{
    int accept = (o->flags & SHMALLOC_ACCEPT_UNCLEAN) != 0;
    int rc = heap->read_only && accept ? 0 : read_boot_id(heap->path, heap->boot_id);
    if (rc == 0 && !heap->read_only)
        rc = smi_attach_lock(heap);
    if (rc < 0)
        return rc;
    if (heap->read_only) {
        rc = smi_recover_readable(heap, seen, accept);
    } else {
        rc = read_identity(heap->fd, heap->path, o, seen);
        if (rc == 0)
            rc = smi_recover_storage(heap, seen, accept);
    }
    if (rc == 0)
        rc = smi_mapping_make(heap, reservation(&seen->header, &seen->state), seen->state.size,
                      (void *)(uintptr_t)seen->header.fixed_base);
    if (rc == 0) {
        set_areas(heap, &seen->header);
        if (!heap->read_only)
            rc = smi_recover_attach(heap, accept, (o->flags & RECOVER_ONLY) != 0);
        else if (!accept) /* a reader takes no entry; it only must not read what a crash may have torn */
            rc = smi_recover_unclean(heap);
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

/* The registry lock is held. */
static void register_heap(shmalloc_heap *heap)
{
    heap->next = smi_heaps;
    smi_heaps = heap;
}

/* Open what `fd` is; the descriptor becomes the handle's. The registry lock is held. */
static int open_registered(int fd, const char *path, const shmalloc_options *o, shmalloc_heap **out)
{
    int read_only = (o->flags & SHMALLOC_READ_ONLY) != 0;
    struct smi_file_info info;
    int rc = smi_os_stat(fd, &info);
    shmalloc_heap *heap = rc == 0 ? find_open(&info, read_only) : NULL;
    if (heap) {
        smi_os_close(fd);
        if (o->flags & RECOVER_ONLY)
            return smi_error(SHMALLOC_EBUSY, "%s: this process has the heap open; close it first", path);
        rc = check_layout(heap->header, o, path);
        if (rc == 0) {
            heap->handles++;
            *out = heap;
        }
        return rc;
    }
    struct smi_identity seen;
    rc = rc < 0 ? smi_refused(rc, "%s: cannot look at the file", path) : check_file_system(fd, path, o);
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
    register_heap(heap);
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
        if (!(o->flags & SHMALLOC_EXCLUSIVE) && smi_os_is_link(path)) /* to nothing, or it would have been opened */
            return smi_error(-ENOENT, "%s: is a symbolic link to a file that does not exist; remove it, or make that file",
                             path);
        int rc = create_file(path, o);
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
    const shmalloc_options *o = options ? options : &defaults;
    if (!path || !*path || !out)
        return smi_error(-EINVAL, "shmalloc_open needs a path and a place for the handle");
    int rc = check_options(o, path);
    return rc < 0 ? rc : open_path(path, o, out);
}

/* Has a creator by descriptor been killed before it stored the first word? */
static int is_unfinished(int fd)
{
    struct smf_header h;
    int64_t got = smi_os_read(fd, &h, sizeof(h), 0);
    return got == 0 || (got > 0 && h.magic == 0 && (h.endian == SMF_ENDIAN || h.endian == 0) &&
                        h.format_version <= SMF_FORMAT_VERSION && h.features_must == 0);
}

/* Make the heap in a descriptor unless it is made; one process at a time. */
static int create_in(int fd, const char *path, const shmalloc_options *o)
{
    uint64_t start = smi_os_tick();
    struct smf_runtime runtime;
    int rc;
    while ((rc = smi_os_lock_byte(fd, SMF_ATTACH_BYTE)) == -EAGAIN) {
        if (smi_os_tick() - start > 10000000000ull)
            return smi_error(SHMALLOC_EBUSY,
                             "%s: another process has been making a heap here for 10 seconds; is it stopped?",
                             path);
        smi_os_sleep(200000);
    }
    if (rc < 0)
        return smi_refused(rc, "%s: cannot lock", path);
    if (is_unfinished(fd) && (rc = read_proc(path, &runtime)) == 0) {
        rc = smi_os_truncate(fd, 0);
        rc = rc < 0 ? smi_refused_change(rc, fd, NULL, "%s: cannot empty the file", path)
                    : format_file(fd, path, o, &runtime);
    } else if (rc == 0 && (o->flags & SHMALLOC_EXCLUSIVE)) {
        rc = smi_error(-EEXIST, "%s: is not empty; without SHMALLOC_EXCLUSIVE it is opened", path);
    }
    smi_os_unlock_byte(fd, SMF_ATTACH_BYTE);
    return rc;
}

int shmalloc_open_fd(int fd, const shmalloc_options *options, shmalloc_heap **out)
{
    const shmalloc_options *o = options ? options : &defaults;
    char path[32];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    if (!out)
        return smi_error(-EINVAL, "shmalloc_open_fd needs a place for the handle");
    int rc = check_options(o, path);
    int own = rc < 0 ? -1 : smi_os_reopen(fd, (o->flags & SHMALLOC_READ_ONLY) != 0);
    if (rc == 0 && own < 0)
        rc = smi_refused_change(own, fd, NULL, "%s: cannot open the descriptor's file", path);
    if (rc == 0 && (o->flags & SHMALLOC_CREATE) && (rc = create_in(own, path, o)) < 0)
        smi_os_close(own);
    return rc < 0 ? rc : open_file(own, path, o, out);
}

/* ---- private heaps ---- */

static int check_private_options(const shmalloc_options *o)
{
    int rc = check_options(o, private_name);
    if (rc < 0)
        return rc;
    const unsigned fit = SHMALLOC_CREATE | SHMALLOC_HARDENED | SHMALLOC_HUGE_PAGES;
    if (o->flags & ~fit)
        return smi_error(-EINVAL, "%s: flags %#x are for heaps in files", private_name, o->flags & ~fit);
    return o->base ? smi_error(-EINVAL, "%s: a fixed base is for heaps in files", private_name) : 0;
}

/* The fixed areas in fresh memory; zeros are free mutexes, and nobody is there to be told of a death. */
static int format_private(shmalloc_heap *heap, const struct smf_header *header, uint64_t size)
{
    int rc = smi_storage_set_length(heap, size);
    if (rc < 0)
        return smi_refused(rc, "%s: cannot make a heap of %llu bytes", private_name, (unsigned long long)size);
    memcpy(heap->base, header, sizeof(*header));
    set_areas(heap, header);
    heap->state->max_size = heap->reserved;
    heap->state->epoch = 1;
    heap->state->decay_ns = DEFAULT_DECAY_NS;
    heap->state->mark = SMF_IN_USE;
    heap->state->generation = heap->runtime->generation = 1;
    return smi_pages_format(heap, size);
}

/* Map as much as there is, up to the maximum size, and lay the heap out. */
static int build_private(shmalloc_heap *heap, const shmalloc_options *o)
{
    struct smf_header header = {.magic = SMF_MAGIC};
    int rc = fill_header(&header, o);
    if (rc < 0)
        return smi_refused(rc, "%s: cannot make a robust mutex", private_name);
    header.checksum = smi_hash(&header, offsetof(struct smf_header, checksum));
    uint64_t least = round_granule(header.areas.end + 8 * SMF_PAGE);
    uint64_t size = round_granule(o->initial_size ? o->initial_size : PRIVATE_SIZE);
    uint64_t most = round_granule(o->max_size ? o->max_size : SMI_DEFAULT_MAX_SIZE);
    if (most < least)
        return smi_error(-EINVAL, "%s: maximum size %llu is below the %llu bytes that an empty heap has",
                         private_name, (unsigned long long)most, (unsigned long long)least);
    rc = smi_mapping_make(heap, most, least, NULL);
    if (rc < 0)
        return rc;
    most = most < heap->reserved ? most : heap->reserved;
    size = size < least ? least : size < most ? size : most;
    rc = format_private(heap, &header, size);
    if (rc == 0) {
        heap->state->max_size = most;
        if (o->flags & SHMALLOC_HUGE_PAGES)
            smi_os_want_huge(heap->base, heap->reserved);
    }
    return rc;
}

int shmalloc_open_private(const shmalloc_options *options, shmalloc_heap **out)
{
    const shmalloc_options *o = options ? options : &defaults;
    int rc = out ? check_private_options(o) : smi_error(-EINVAL, "%s: no place for the handle", private_name);
    shmalloc_heap *heap = rc == 0 ? smi_handle_new(private_name) : NULL;
    if (rc < 0 || !heap)
        return rc < 0 ? rc : -ENOMEM;
    heap->is_private = 1;
    heap->path = private_name;
    rc = build_private(heap, o);
    if (rc < 0) {
        smi_handle_drop(heap);
        return rc;
    }
    smi_registry_lock();
    smi_process_start_private(heap);
    register_heap(heap);
    smi_registry_unlock();
    *out = heap;
    return 0;
}

/* ---- closing ---- */

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
    return smi_refused(rc, "%s: is exact only while the machine is up, because it cannot be synced", heap->path);
}

/* Leave the heap; the registry lock is held. `cut_off`: see smi_process_leave(). */
static int detach(shmalloc_heap *heap, int cut_off)
{
    int rc = smi_heap_descriptor(heap);
    if (rc == 0)
        rc = smi_attach_lock(heap);
    if (rc < 0) {
        smi_process_drop(heap);
        return rc;
    }
    rc = smi_process_leave(heap, cut_off);
    int others = smi_others_alive(heap);
    if (rc == 0 && others < 0)
        rc = others;
    if (rc == 0 && others == 0 && heap->state->poison == 0 && !heap->unchecked) {
        rc = smi_recover_adopt(heap, SMI_ADOPT_ALL); /* nobody is alive: what the dead left is brought to rest */
        if (rc == 0)
            rc = mark_clean(heap);
    }
    smi_attach_unlock(heap);
    return rc;
}

static void unregister(shmalloc_heap *heap)
{
    shmalloc_heap **at = &smi_heaps;
    while (*at && *at != heap)
        at = &(*at)->next;
    if (*at)
        *at = heap->next;
}

static int close_registered(shmalloc_heap *heap)
{
    if (heap->closed)
        return smi_error(SHMALLOC_ECLOSED, "the heap handle is closed");
    if (--heap->handles > 0)
        return 0;
    int rc = 0;
    if (heap->is_private)
        smi_process_drop(heap);
    else if (!heap->read_only && heap->epoch != 0)
        rc = detach(heap, 0);
    unregister(heap);
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

/* A process that ends without closing: what it has cached goes back. If other threads of it may still be at
 * work, their caches must be left alone; then the next process that looks adopts it. So it does when a signal handler
 * ends the process in the middle of a change under a lock, which only repair can undo. */
__attribute__((destructor)) static void leave_all(void)
{
    if (smi_lock_any_held() || !smi_registry_trylock())
        return;
    for (shmalloc_heap *heap = smi_heaps; heap; heap = heap->next)
        if (!heap->read_only && !heap->is_private && !heap->stays && heap->epoch != 0 && smi_only_mine(heap))
            detach(heap, 1);
    smi_registry_unlock();
}

int smi_heap_leave(shmalloc_heap *heap)
{
    if (!smi_registry_trylock())
        return -EBUSY;
    int rc = detach(heap, 1);
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
    rc = smi_error(-ELOOP, "%s: is a symbolic link; nothing was removed: give the name of the heap itself, %s", path,
                   heap ? heap : "to which it leads");
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
        rc = smi_error(SHMALLOC_ENOTHEAP,
                       "%s: not a shmalloc heap; nothing was removed: remove it with rm if you mean it",
                       path);
    else if ((rc = check_name(path)) < 0)
        ;
    else if ((rc = is_in_use(fd)) > 0)
        rc = smi_error(SHMALLOC_EBUSY,
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
    rc = heap->state->poison ? smi_heap_writable(heap) : check_file(heap);
    if (rc == 0)
        return shmalloc_close(heap);
    char text[1024];
    snprintf(text, sizeof(text), "%s", shmalloc_errmsg());
    if (rc == SHMALLOC_EPOISONED)
        rc = SHMALLOC_ECORRUPT;
    if (rc == SHMALLOC_ECORRUPT) /* later opens may read, not change */
        SMI_STORE(&heap->state->poison, (uint64_t)-SHMALLOC_ECORRUPT);
    heap->unchecked = 1; /* the file could not be read, say: whether it is sound is as open as before */
    shmalloc_close(heap);
    return smi_error(rc, "%s", text);
}

int shmalloc_set_max_size(shmalloc_heap *heap, uint64_t bytes)
{
    int rc;
    if (!smi_thread_enter(heap, &rc))
        return rc;
    uint64_t size = round_granule(bytes);
    if (bytes > SMF_MAX_SIZE || size < SMI_LOAD(&heap->state->max_size))
        return smi_error(-EINVAL, "%s: maximum size %llu is not between the present %llu and 16 TiB",
                         heap->path, (unsigned long long)bytes,
                         (unsigned long long)heap->state->max_size);
    SMI_STORE(&heap->state->max_size, size); /* one store */
    return 0;
}
