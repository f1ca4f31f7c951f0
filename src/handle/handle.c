/* SPDX-License-Identifier: MIT */
/* handle.c - what a handle knows of its heap and of its file; see handle.h. */
#include "handle/handle.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/outcome.h"
#include "handle/mapping.h"
#include "platform/os.h"

/* ---- state ---- */

int smi_heap_is_outgrown(const shmalloc_heap *heap)
{
    struct smi_file_info info;
    uint64_t size = SMI_LOAD(&heap->state->size);
    /* A damaged size is not the file's. */
    return SMI_UNLIKELY(size > heap->reserved) && !heap->is_private &&
           smi_os_stat(heap->fd, &info) == 0 && info.size >= size;
}

int smi_heap_outgrown(const shmalloc_heap *heap)
{
    return smi_error(SHMALLOC_EADDRESS,
                     "%s: another process has made the heap %llu bytes long, this one has "
                     "addresses for %llu of them; "
                     "close and open it again, with fewer heaps open or a higher limit on address "
                     "space (ulimit -v)",
                     heap->path, (unsigned long long)SMI_LOAD(&heap->state->size),
                     (unsigned long long)heap->reserved);
}

int smi_heap_poison(shmalloc_heap *heap, const char *format, ...)
{
    char text[400];
    if (smi_heap_is_outgrown(heap))
        return smi_heap_outgrown(heap);
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    if (!heap->read_only)
        SMI_STORE(&heap->state->poison, (uint64_t)-SHMALLOC_ECORRUPT);
    return smi_error(SHMALLOC_ECORRUPT, "%s: %s; the heap can now only be read", heap->path, text);
}

int smi_heap_double_free(const shmalloc_heap *heap, uint64_t ref)
{
    return smi_error(SHMALLOC_EDOUBLEFREE, "%s: block at %#llx is free already; free a block once",
                     heap->path, (unsigned long long)ref);
}

int smi_heap_writable(shmalloc_heap *heap)
{
    if (heap->closed)
        return smi_error(SHMALLOC_ECLOSED, "the heap handle is closed; open the heap again");
    if (heap->read_only)
        return smi_error(SHMALLOC_EREADONLY,
                         "%s: was opened read-only; open it for writing to change it", heap->path);
    if (SMI_LOAD(&heap->state->poison))
        return smi_error(
            SHMALLOC_EPOISONED,
            "%s: was found damaged (code -%llu) and can only be read; `shmalloc-inspect check "
            "--repair` tells what can be done",
            heap->path, (unsigned long long)SMI_LOAD(&heap->state->poison));
    return 0;
}

static int is_file_of(const shmalloc_heap *heap, const struct smi_file_info *info)
{
    return info->device == heap->device && info->inode == heap->inode;
}

/* Open the heap's file by its name; other files are not even opened. */
static int open_by_path(const shmalloc_heap *heap)
{
    struct smi_file_info info;
    int rc = smi_os_stat_path(heap->path, 1, &info);
    if (rc == -ENOENT || rc == -ENOTDIR || (rc == 0 && !is_file_of(heap, &info)))
        return -EBADF;
    if (rc < 0)
        return rc;
    int fd = smi_os_open(heap->path, heap->read_only);
    if (fd < 0)
        return fd == -ENOENT ? -EBADF : fd;
    rc = smi_os_stat(fd, &info);
    if (rc == 0 && is_file_of(heap, &info))
        rc = smi_os_mark(fd, heap->mark);
    else if (rc == 0)
        rc = -EBADF;
    if (rc < 0)
        smi_os_close(fd);
    return rc < 0 ? rc : fd;
}

/* Is the descriptor still the library's own? The mark tells also the program's own descriptor of
 * the same file from ours. Another file's that happens to have it, one in 2^30, is found out here.
 * 1, 0, or why it cannot be told. */
static int is_own(const shmalloc_heap *heap)
{
    struct smi_file_info info;
    if (!smi_os_has_mark(heap->fd, heap->mark))
        return 0;
    int rc = smi_os_stat(heap->fd, &info);
    return rc < 0 ? rc : is_file_of(heap, &info);
}

/* The descriptor is not the library's any more: make a new one, unless another thread has. */
static int replace_lost(shmalloc_heap *heap)
{
    while (__atomic_exchange_n(&heap->reopening, 1, __ATOMIC_ACQUIRE) != 0)
        smi_os_sleep(100000);
    int own = is_own(heap);
    if (own == 0) { /* somebody closed it, and its number may be another file's by now: leave that
                       alone */
        int fd = open_by_path(heap);
        SMI_STORE(&heap->fd, fd < 0 ? -1 : fd);
        own = fd < 0 ? fd : 1;
    }
    __atomic_store_n(&heap->reopening, 0, __ATOMIC_RELEASE);
    if (own == -EBADF)
        return smi_refused(own,
                           "%s: the library's descriptor was closed and the name does not lead to "
                           "the file any more",
                           heap->path);
    return own < 0 ? smi_refused_change(own, -1, heap->path,
                                        "%s: the library's descriptor was closed; cannot open the "
                                        "file again",
                                        heap->path)
                   : 0;
}

int smi_heap_descriptor(shmalloc_heap *heap)
{
    return heap->is_private || smi_os_has_mark(heap->fd, heap->mark) ? 0 : replace_lost(heap);
}

int smi_heap_look(shmalloc_heap *heap, struct smi_file_info *out)
{
    int rc = smi_heap_descriptor(heap);
    if (rc < 0)
        return rc;
    rc = smi_os_stat(heap->fd, out);
    if (rc == 0 && is_file_of(heap, out))
        return 0;
    rc = replace_lost(heap);
    if (rc == 0 && (rc = smi_os_stat(heap->fd, out)) < 0)
        rc = smi_refused(rc, "%s: cannot look at the file", heap->path);
    return rc;
}

int smi_heap_reopen(shmalloc_heap *heap)
{
    struct smi_file_info info;
    int rc = smi_heap_descriptor(heap), fd = -1;
    for (int tries = 0; rc == 0 && tries < 2; tries++) {
        rc = fd = smi_os_reopen(heap->fd, heap->read_only);
        if (fd >= 0)
            rc = smi_os_stat(fd, &info);
        if (rc == 0 && is_file_of(heap, &info))
            return fd;
        smi_os_close(fd);
        if (rc < 0)
            return smi_refused_change(rc, heap->fd, heap->path,
                                      "%s: cannot open the file once more by /proc/self/fd",
                                      heap->path);
        rc = replace_lost(heap); /* another file's description happens to have the mark */
    }
    return rc < 0 ? rc
                  : smi_refused(-EBADF,
                                "%s: the library's descriptor is another file's again and again",
                                heap->path);
}

/* Close the descriptor unless the program did. */
static void close_own(shmalloc_heap *heap)
{
    if (smi_os_has_mark(heap->fd, heap->mark))
        smi_os_close(heap->fd);
    heap->fd = -1;
}

int smi_heap_replace_descriptor(shmalloc_heap *heap, int fd)
{
    int rc = smi_os_mark(fd, heap->mark);
    if (rc < 0) {
        smi_os_close(fd);
        return smi_refused(rc, "%s: cannot look at the file", heap->path);
    }
    close_own(heap);
    heap->fd = fd;
    return 0;
}

uint64_t smi_heap_backed(const shmalloc_heap *heap, uint64_t size)
{
    struct smi_file_info info;
    uint64_t backed;
    if (heap->closed)
        return 0;
    if (heap->is_private)
        backed = SMI_LOAD(&heap->allowed);
    else if (smi_heap_look((shmalloc_heap *)heap, &info) == 0)
        backed = info.size < heap->reserved ? info.size : heap->reserved;
    else
        return size < heap->reserved ? size : heap->reserved; /* it cannot be looked at: it will be
                                                                 as it says */
    SMI_STORE(&((shmalloc_heap *)heap)->backed, backed); /* a handle is private memory */
    return size < backed ? size : backed;
}

/* bytes of a table, for 8 GiB of heap, and a multiple of any kernel's page */
#define TABLE_PIECE (1ull << 16)

uint64_t smi_handle_table_bytes(const shmalloc_heap *heap)
{
    size_t bytes = (heap->reserved >> SMF_GRANULE_SHIFT) * sizeof(uintptr_t);
    return (bytes + TABLE_PIECE - 1) & ~(TABLE_PIECE - 1);
}

int smi_heap_open_tables(shmalloc_heap *heap, uint64_t size)
{
    uint64_t needed = (size >> SMF_GRANULE_SHIFT) * sizeof(uintptr_t);
    needed = (needed + TABLE_PIECE - 1) & ~(TABLE_PIECE - 1);
    needed = needed < smi_handle_table_bytes(heap) ? needed : smi_handle_table_bytes(heap);
    if (!heap->is_private || needed <= heap->tables_open)
        return 0;
    int rc = smi_os_allow(heap->words, needed);
    if (rc == 0)
        rc = smi_os_allow(heap->descriptors, needed);
    if (rc == 0)
        heap->tables_open = needed;
    return rc;
}

int smi_heap_map_granule(const shmalloc_heap *heap, uint64_t granule)
{
    uint64_t page = granule << (SMF_GRANULE_SHIFT - SMF_PAGE_SHIFT);
    uint64_t count = SMI_LOAD(&heap->state->chunk_count);
    if (count > SMF_CHUNKS)
        return 0;
    for (uint64_t i = count; i-- > 0;) {
        struct smf_chunk chunk = heap->directory[i];
        if (page < chunk.first_page || page - chunk.first_page >= chunk.page_count)
            continue;
        uint64_t offset = smi_chunk_words_offset(&chunk, &heap->areas);
        if (chunk.first_page % (SMF_GRANULE >> SMF_PAGE_SHIFT) != 0 ||
            !smi_chunk_follows(&chunk, chunk.first_page, smi_size(heap) >> SMF_PAGE_SHIFT,
                               &heap->areas))
            return 0;
        uintptr_t words = (uintptr_t)heap->base + offset;
        uintptr_t descriptors = words + chunk.page_count * sizeof(uint16_t);
        /* Descriptors first: who sees the words' entry uses both. */
        __atomic_store_n(&heap->descriptors[granule],
                         descriptors - chunk.first_page * sizeof(struct smf_page),
                         __ATOMIC_RELAXED);
        __atomic_store_n(&heap->words[granule], words - chunk.first_page * sizeof(uint16_t),
                         __ATOMIC_RELEASE);
        return 1;
    }
    return 0;
}

struct smf_thread *smi_thread_slot(const shmalloc_heap *heap, uint32_t index)
{
    uint64_t ref = index < SMF_THREADS ? SMI_LOAD(&heap->threads[index]) : 0;
    if (ref == 0 || ref % SMF_PAGE != 0 || !smi_in_heap(heap, ref, SMF_THREAD_PAGES * SMF_PAGE))
        return NULL;
    return smi_at(heap, ref);
}

/* ---- handles ---- */

void smi_handle_set_areas(shmalloc_heap *heap, const struct smf_header *header)
{
    uint8_t *base = heap->base;
    heap->header = (void *)base;
    heap->areas = header->areas;
    const struct smf_areas *areas = &heap->areas;
    heap->state = (void *)(base + SMF_STATE_OFFSET);
    heap->runtime = (void *)(base + areas->runtime);
    heap->processes = (void *)(base + areas->processes);
    heap->locks = (void *)(base + areas->locks);
    heap->directory = (void *)(base + areas->directory);
    heap->page_heap = (void *)(base + areas->page_heap);
    heap->roots = (void *)(base + areas->roots);
    heap->threads = (void *)(base + areas->threads);
    heap->central = (void *)(base + areas->central);
    heap->arena_count = header->arena_count;
    heap->lock_count = header->lock_count;
    heap->hardened = (header->mode & SMF_HEAP_HARDENED) != 0;
}

shmalloc_heap *smi_handle_new(const char *path)
{
    shmalloc_heap *heap = smi_os_private(sizeof(*heap), offsetof(struct shmalloc_heap, base));
    if (!heap) {
        smi_refused(-ENOMEM, "%s: no private memory for a handle", path);
        return NULL;
    }
    heap->fd = -1;
    heap->path = heap->path_text;
    heap->handles = 1;
    heap->process_index = -1;
    return heap;
}

int smi_handle_make(int fd, const struct smi_file_info *info, const char *path, int read_only,
                    shmalloc_heap **out)
{
    shmalloc_heap *heap = smi_handle_new(path);
    if (!heap)
        return -ENOMEM;
    char *absolute = smi_os_absolute(path);
    snprintf(heap->path_text, sizeof(heap->path_text), "%s", absolute ? absolute : path);
    free(absolute);
    smi_os_random(&heap->mark, sizeof(heap->mark));
    heap->mark = heap->mark >> 1 | 1; /* no file system ends its files before that */
    int rc = smi_os_mark(fd, heap->mark);
    if (rc < 0) {
        smi_os_unmap(heap, sizeof(*heap));
        return smi_refused(rc, "%s: cannot look at the file", path);
    }
    heap->fd = fd;
    heap->read_only = read_only;
    heap->device = info->device;
    heap->inode = info->inode;
    *out = heap;
    return 0;
}

/* Give back what the handle owns: mapping, tables, descriptor. */
static void empty_handle(shmalloc_heap *heap)
{
    smi_mapping_drop(heap);
    close_own(heap);
}

void smi_handle_drop(shmalloc_heap *heap)
{
    if (!heap)
        return;
    empty_handle(heap);
    smi_os_unmap(heap, sizeof(*heap));
}

/* Handles that were closed: the last few of them are kept. */
#define TOMBSTONES 64
void smi_handle_bury(shmalloc_heap *heap)
{
    static shmalloc_heap *tombstones[TOMBSTONES];
    static unsigned next;
    static struct smf_state nothing; /* size 0: no ref is inside */
    empty_handle(heap);
    heap->closed = 1;
    heap->path = "closed heap";
    heap->state = &nothing;
    heap->base = NULL;
    heap->words = heap->descriptors = NULL;
    if (tombstones[next])
        smi_os_unmap(tombstones[next], sizeof(*heap));
    tombstones[next] = heap;
    next = (next + 1) % TOMBSTONES;
}
