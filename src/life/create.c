/* SPDX-License-Identifier: MIT */
/*
 * create.c - the bytes of a new heap; see create.h.
 *
 * The whole heap is built in a file without a name, which gets its name when it is complete; by
 * descriptor, the first word is stored last.
 */
#include "life/create.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "handle/mapping.h"
#include "life/attach.h"
#include "life/open.h"
#include "pages/pages.h"
#include "platform/os.h"
#include "platform/sized.h"

#define DEFAULT_ARENAS 4

static int check_options(const shmalloc_options *o, const char *path)
{
    const unsigned known = SHMALLOC_CREATE | SHMALLOC_EXCLUSIVE | SHMALLOC_READ_ONLY |
                           SHMALLOC_HARDENED | SHMALLOC_ACCEPT_UNCLEAN | SHMALLOC_ANY_FILE_SYSTEM |
                           SHMALLOC_PREFAULT | SHMALLOC_HUGE_PAGES;
    if (o->flags & ~known)
        return smi_error(
            -EINVAL, "%s: unknown flags %#x; use a newer library, or those of enum shmalloc_flag",
            path, o->flags & ~known);
    if (o->max_size > SMF_MAX_SIZE)
        return smi_error(-EINVAL, "%s: maximum size %llu is over the limit of 16 TiB", path,
                         (unsigned long long)o->max_size);
    if (o->initial_size > (o->max_size ? o->max_size : SMI_DEFAULT_MAX_SIZE))
        return smi_error(-EINVAL, "%s: initial size %llu is over the maximum size %llu", path,
                         (unsigned long long)o->initial_size,
                         (unsigned long long)(o->max_size ? o->max_size : SMI_DEFAULT_MAX_SIZE));
    if (o->arenas > SMF_ARENAS_MAX)
        return smi_error(-EINVAL, "%s: %u arenas are over the limit of %u", path, o->arenas,
                         SMF_ARENAS_MAX);
    if (o->layout && strlen(o->layout) >= sizeof(((struct smf_header *)0)->layout_name))
        return smi_error(-EINVAL, "%s: layout name has %zu bytes, at most 63 fit", path,
                         strlen(o->layout));
    if ((uintptr_t)o->base % SMI_MAP_UNIT != 0)
        return smi_error(-EINVAL, "%s: base %p is not a multiple of 2 MiB", path, o->base);
    if ((o->mode & ~07777u) != 0)
        return smi_error(-EINVAL, "%s: mode %o has more than permission bits", path, o->mode);
    if ((o->flags & SHMALLOC_READ_ONLY) && (o->flags & (SHMALLOC_CREATE | SHMALLOC_EXCLUSIVE)))
        return smi_error(-EINVAL, "%s: a heap cannot be created read-only", path);
    return 0;
}

int smi_create_options(const shmalloc_options *given, const char *path, shmalloc_options *out)
{
    const size_t least = offsetof(shmalloc_options, initial_size), known = sizeof(*out);
    *out = (shmalloc_options)SHMALLOC_OPTIONS_INIT;
    if (given && smi_sized_copy(out, given, least, known) < 0)
        return smi_error(
            -EINVAL,
            "%s: options.struct_size is %zu, expected a multiple of 8 from %zu to %zu, "
            "or more with zeros beyond that; begin with SHMALLOC_OPTIONS_INIT, or use "
            "a newer library than " SHMALLOC_VERSION,
            path, given->struct_size, least, known);
    return check_options(out, path);
}

uint64_t smi_create_granules(uint64_t n)
{
    return (n + SMF_GRANULE - 1) & ~(SMF_GRANULE - 1);
}

int smi_create_header(struct smf_header *h, const shmalloc_options *o)
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

/* Whose storage a new heap's is, so that its first attacher need not look for holes, and the first
 * of a copy does. */
static void give_identity(shmalloc_heap *heap, const struct smf_runtime *runtime)
{
    struct smi_file_info info;
    *heap->runtime = *runtime;
    heap->runtime->device = heap->device;
    heap->runtime->inode = heap->inode;
    heap->runtime->stored = smi_os_stat(heap->fd, &info) == 0 ? info.blocks : 0;
}

/* The bytes of a new heap in an empty file; `runtime` is what /proc tells. */
static int format_file(int fd, const char *path, const shmalloc_options *o,
                       const struct smf_runtime *runtime)
{
    struct smf_header header = {0};
    int rc = smi_create_header(&header, o);
    if (rc < 0)
        return smi_refused(rc, "%s: cannot make a robust mutex", path);
    uint64_t least = smi_create_granules(header.areas.end + 8 * SMF_PAGE);
    uint64_t size = smi_create_granules(o->initial_size);
    uint64_t max_size = smi_create_granules(o->max_size ? o->max_size : SMI_DEFAULT_MAX_SIZE);
    size = size < least ? least : size;
    if (max_size < size)
        return smi_error(-EINVAL,
                         "%s: maximum size %llu is below the %llu bytes that an empty heap has",
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
        return smi_refused_change(rc, fd, NULL, "%s: cannot make a heap of %llu bytes", path,
                                  (unsigned long long)size);
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
        smi_open_set_areas(heap, &header);
        heap->state->max_size = max_size;
        heap->state->epoch = 1;
        heap->state->decay_ns = SMI_DEFAULT_DECAY_NS;
        heap->state->mark = SMF_CLEAN;
        rc = smi_pages_format(heap, size);
    }
    if (rc == 0) {
        give_identity(heap, runtime);
        SMI_STORE(&heap->header->magic, SMF_MAGIC);
    } else if (rc != SHMALLOC_EADDRESS) { /* which has its message */
        smi_refused_change(rc, fd, NULL, "%s: cannot make a heap of %llu bytes", path,
                           (unsigned long long)size);
    }
    smi_handle_drop(heap);
    return rc;
}

int smi_create_check_place(int fd, const char *path, const shmalloc_options *o)
{
    const char *unfit = o->flags & (SHMALLOC_READ_ONLY | SHMALLOC_ANY_FILE_SYSTEM)
                            ? NULL
                            : smi_os_unfit_file_system(fd);
    if (!unfit)
        return 0;
    return smi_error(
        SHMALLOC_EFILESYSTEM,
        "%s: lies on %s, which does not keep mappings and locks of several processes coherent; "
        "put it on a local file system (in a container: a volume, or /dev/shm), or, if one process "
        "alone uses "
        "it, open it with SHMALLOC_ANY_FILE_SYSTEM",
        path, unfit);
}

/* What creation and the first attacher need of /proc: asked before there is a file. */
static int read_proc(const char *path, struct smf_runtime *out)
{
    memset(out, 0, sizeof(*out));
    int rc = smi_attach_boot_id(path, out->boot_id);
    if (rc < 0)
        return rc;
    rc = smi_os_pid_namespace(&out->pid_namespace);
    return rc < 0 ? smi_refused(
                        rc, "%s: cannot read this process's PID namespace, /proc/self/ns/pid", path)
                  : 0;
}

int smi_create_file(const char *path, const shmalloc_options *o)
{
    char temp_name[PATH_MAX];
    struct smf_runtime runtime;
    int rc = read_proc(path, &runtime);
    if (rc < 0)
        return rc;
    int fd = smi_os_create_unnamed(path, o->mode ? o->mode : 0600, temp_name);
    if (fd < 0)
        return smi_refused_change(fd, -1, path, "%s: cannot create", path);
    rc = smi_create_check_place(fd, path, o);
    if (rc == 0)
        rc = format_file(fd, path, o, &runtime);
    if (rc < 0)
        smi_os_discard(temp_name);
    else if ((rc = smi_os_publish(fd, path, temp_name)) < 0)
        smi_refused_change(rc, -1, path, "%s: cannot create", path);
    smi_os_close(fd);
    return rc;
}

/* Has a creator by descriptor been killed before it stored the first word? */
static int is_unfinished(int fd)
{
    struct smf_header h;
    int64_t got = smi_os_read(fd, &h, sizeof(h), 0);
    return got == 0 || (got > 0 && h.magic == 0 && (h.endian == SMF_ENDIAN || h.endian == 0) &&
                        h.format_version <= SMF_FORMAT_VERSION && h.features_must == 0);
}

int smi_create_in(int fd, const char *path, const shmalloc_options *o)
{
    uint64_t start = smi_os_tick();
    struct smf_runtime runtime;
    int rc;
    while ((rc = smi_os_lock_byte(fd, SMF_ATTACH_BYTE)) == -EAGAIN) {
        if (smi_os_tick() - start > 10000000000ull)
            return smi_error(
                SHMALLOC_EBUSY,
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
