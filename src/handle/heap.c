/* SPDX-License-Identifier: MIT */
/*
 * heap.c - open, create, close: from a file to a handle and back.
 *
 * Creation: the whole heap is built in a file without a name, which gets its name when it is complete; by
 * descriptor, the first word is stored last. Opening: read and validate the identity, take the attach lock,
 * map, then either take the heap into use in a new generation or join those who have it. Closing: bring this
 * process's thread slots to rest, leave the table; the last one syncs and marks the file clean.
 */
#include "handle/heap.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "look/check.h"
#include "handle/lock.h"
#include "platform/os.h"
#include "names/roots.h"
#include "pages/pages.h"
#include "handle/pagetable.h"
#include "life/process.h"
#include "life/recover.h"
#include "handle/resident.h"
#include "handle/storage.h"
#include "slots/central.h"

#define DEFAULT_MAX_SIZE (1ull << 40)
#define DEFAULT_ARENAS 4
#define DEFAULT_DECAY_NS 10000000000ull
#define MAP_UNIT (2ull << 20)
#define ADDRESSES (64ull << 40)   /* that heaps may take: half of what a process has on the usual machine */
#define STEP_OF_ADDRESSES (16ull << 40) /* after each of these a heap without a smaller maximum gets less */
#define ROOM_TO_RAISE 16 /* times its maximum is reserved for a heap, so that it can be raised */
#define PRIVATE_SIZE (8ull << 20) /* of a private heap, at first: addresses, not memory */
#define RECOVER_ONLY 0x80000000u /* open flag of shmalloc_recover: nobody else may have it open */

/* ---- state ---- */

int smi_heap_is_outgrown(const shmalloc_heap *heap)
{
    struct smi_file_info info;
    uint64_t size = SMI_LOAD(&heap->state->size);
    /* A damaged size is not the file's. */
    return SMI_UNLIKELY(size > heap->reserved) && !heap->is_private && smi_os_stat(heap->fd, &info) == 0 &&
           info.size >= size;
}

int smi_heap_outgrown(const shmalloc_heap *heap)
{
    return smi_error(SHMALLOC_EADDRESS,
                     "%s: another process has made the heap %llu bytes long, this one has addresses for %llu of them; "
                     "close and open it again, with fewer heaps open or a higher limit on address space (ulimit -v)",
                     heap->path, (unsigned long long)SMI_LOAD(&heap->state->size), (unsigned long long)heap->reserved);
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
    return smi_error(SHMALLOC_EDOUBLEFREE, "%s: block at %#llx is free already; free a block once", heap->path,
                     (unsigned long long)ref);
}

int smi_heap_writable(shmalloc_heap *heap)
{
    if (heap->closed)
        return smi_error(SHMALLOC_ECLOSED, "the heap handle is closed; open the heap again");
    if (heap->read_only)
        return smi_error(SHMALLOC_EREADONLY, "%s: was opened read-only; open it for writing to change it",
                         heap->path);
    if (SMI_LOAD(&heap->state->poison))
        return smi_error(SHMALLOC_EPOISONED,
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

/* Is the descriptor still the library's own? The mark tells also the program's own descriptor of the same file from
 * ours. Another file's that happens to have it, one in 2^30, is found out here. 1, 0, or why it cannot be told. */
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
    if (own == 0) { /* somebody closed it, and its number may be another file's by now: leave that alone */
        int fd = open_by_path(heap);
        SMI_STORE(&heap->fd, fd < 0 ? -1 : fd);
        own = fd < 0 ? fd : 1;
    }
    __atomic_store_n(&heap->reopening, 0, __ATOMIC_RELEASE);
    if (own == -EBADF)
        return smi_refused(own, "%s: the library's descriptor was closed and the name does not lead to the file any more",
                           heap->path);
    return own < 0 ? smi_refused_change(own, -1, heap->path, "%s: the library's descriptor was closed; cannot open the "
                                                             "file again", heap->path) : 0;
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
            return smi_refused_change(rc, heap->fd, heap->path, "%s: cannot open the file once more by /proc/self/fd",
                                      heap->path);
        rc = replace_lost(heap); /* another file's description happens to have the mark */
    }
    return rc < 0 ? rc : smi_refused(-EBADF, "%s: the library's descriptor is another file's again and again", heap->path);
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
        return size < heap->reserved ? size : heap->reserved; /* it cannot be looked at: it will be as it says */
    SMI_STORE(&((shmalloc_heap *)heap)->backed, backed); /* a handle is private memory */
    return size < backed ? size : backed;
}

#define TABLE_PIECE (1ull << 16) /* bytes of a table, for 8 GiB of heap, and a multiple of any kernel's page */

/* Of each of the two tables, which are one mapping. */
static size_t table_bytes(const shmalloc_heap *heap)
{
    size_t bytes = (heap->reserved >> SMF_GRANULE_SHIFT) * sizeof(uintptr_t);
    return (bytes + TABLE_PIECE - 1) & ~(TABLE_PIECE - 1);
}

int smi_heap_open_tables(shmalloc_heap *heap, uint64_t size)
{
    uint64_t needed = (size >> SMF_GRANULE_SHIFT) * sizeof(uintptr_t);
    needed = (needed + TABLE_PIECE - 1) & ~(TABLE_PIECE - 1);
    needed = needed < table_bytes(heap) ? needed : table_bytes(heap);
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
        uint64_t end = ((uint64_t)chunk.first_page + chunk.page_count) << SMF_PAGE_SHIFT;
        if (chunk.first_page % (SMF_GRANULE >> SMF_PAGE_SHIFT) != 0 || end % SMF_GRANULE != 0 ||
            end > smi_size(heap) || offset + smi_chunk_metadata_bytes(chunk.page_count) > end)
            return 0;
        uintptr_t words = (uintptr_t)heap->base + offset;
        uintptr_t descriptors = words + chunk.page_count * sizeof(uint16_t);
        /* Descriptors first: who sees the words' entry uses both. */
        __atomic_store_n(&heap->descriptors[granule],
                         descriptors - chunk.first_page * sizeof(struct smf_page), __ATOMIC_RELAXED);
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

/* ---- handle ---- */

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
    set_repairs(heap);
}

/* ---- addresses ---- */

/* Bytes that are reserved for the heaps of this process. */
static uint64_t addresses_taken;

/* How many there may be in all: the program needs some, too. */
static uint64_t addresses_for_heaps(void)
{
    uint64_t limit = smi_os_address_limit();
    limit -= limit / 4;
    return limit < ADDRESSES ? limit : ADDRESSES;
}

/* How many of `wanted` bytes of addresses the next heap gets, where there may be `all`. The first 16 heaps may have 1 TiB
 * each, the next 256 have 64 GiB, the next 4,096 have 4 GiB, and so on; under a limit a heap gets two thirds of what is
 * left. A greater maximum was asked for: it is granted while much is left. */
static uint64_t affordable(uint64_t wanted, uint64_t all)
{
    uint64_t taken = SMI_LOAD(&addresses_taken), step = DEFAULT_MAX_SIZE;
    uint64_t left = all > taken ? all - taken : 0;
    if (wanted > step && wanted <= left - left / 4 && all == ADDRESSES)
        step = wanted;
    for (uint64_t t = taken; t >= STEP_OF_ADDRESSES && step > MAP_UNIT; t -= STEP_OF_ADDRESSES)
        step /= 16;
    if (step > left / 3 * 2)
        step = left / 3 * 2;
    return wanted < step ? wanted : step;
}

static int no_addresses(const shmalloc_heap *heap, uint64_t size)
{
    return smi_error(SHMALLOC_EADDRESS,
                     "%s: no free address range of %llu bytes, expected that many at least; the heaps of this process "
                     "have %llu bytes and may have %llu, the rest is the program's; close some, or raise the limits on "
                     "address space (ulimit -v) and, with mlockall, on locked memory (ulimit -l)",
                     heap->path, (unsigned long long)size, (unsigned long long)SMI_LOAD(&addresses_taken),
                     (unsigned long long)addresses_for_heaps());
}

/* Give back what the handle owns: mapping, tables, descriptor. */
static void empty_handle(shmalloc_heap *heap)
{
    if (heap->base)
        __atomic_fetch_sub(&addresses_taken, heap->reserved, __ATOMIC_RELAXED);
    smi_os_unmap(heap->base, heap->base ? heap->reserved : 0);
    smi_os_unmap(heap->words, 2 * table_bytes(heap));
    smi_pagetable_drop(heap);
    close_own(heap);
}

static void drop_handle(shmalloc_heap *heap)
{
    if (!heap)
        return;
    empty_handle(heap);
    smi_os_unmap(heap, sizeof(*heap));
}

/* Handles that were closed, the last few of them: a thread that comes with one later gets an answer instead
 * of a fault. The registry lock is held. */
#define TOMBSTONES 64
static void bury_handle(shmalloc_heap *heap)
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

/* What memory of this process alone may hold (RLIMIT_DATA) is for blocks. */
static uintptr_t *new_tables(const shmalloc_heap *heap)
{
    size_t bytes = 2 * table_bytes(heap);
    return heap->is_private ? smi_os_reserve_zeros(bytes) : smi_os_private(bytes, 0);
}

/* Map what `heap->reserved` says, and the two tables. */
static int map_reserved(shmalloc_heap *heap, void *fixed)
{
    int rc = 0;
    if (!heap->is_private)
        rc = smi_os_map(heap->fd, heap->reserved, heap->read_only, fixed, (void **)&heap->base);
    else if (!(heap->base = smi_os_reserve_private(heap->reserved, heap->reserved >= 64 * SMI_PRIVATE_ALIGNMENT
                                                                       ? SMI_PRIVATE_ALIGNMENT
                                                                       : MAP_UNIT)))
        rc = -ENOMEM;
    if (rc < 0)
        return rc;
    heap->words = new_tables(heap);
    if (heap->words) {
        heap->descriptors = heap->words + table_bytes(heap) / sizeof(*heap->descriptors);
        smi_pagetable_make(heap);
        return 0;
    }
    smi_os_unmap(heap->base, heap->reserved);
    heap->base = NULL;
    return -ENOMEM;
}

/* Map the heap with addresses to spare: `wanted` bytes, or as many as can be spared, at least `size`, which a file was
 * seen to have. Who chose a base chose what lies around it. */
static int map_heap(shmalloc_heap *heap, uint64_t wanted, uint64_t size, void *fixed)
{
    int rc = -ENOMEM;
    uint64_t all = fixed ? 0 : addresses_for_heaps(), spared = fixed ? wanted : affordable(wanted, all);
    wanted = spared < size ? size : spared;
    if (!fixed && (size > all || SMI_LOAD(&addresses_taken) > all - size))
        return no_addresses(heap, size);
    heap->reserved = (wanted + MAP_UNIT - 1) & ~(MAP_UNIT - 1);
    while ((rc = map_reserved(heap, fixed)) < 0) {
        uint64_t half = (heap->reserved / 2 + MAP_UNIT - 1) & ~(MAP_UNIT - 1);
        if (rc != -ENOMEM || half < size || half == heap->reserved)
            break;
        heap->reserved = half; /* a limit on addresses: take what there is */
    }
    if (rc == 0) {
        heap->backed = heap->is_private ? 0 : size;
        __atomic_fetch_add(&addresses_taken, heap->reserved, __ATOMIC_RELAXED);
        return 0;
    }
    if (rc == -EADDRINUSE)
        return smi_error(SHMALLOC_EADDRESS,
                         "%s: the heap must be mapped at %p, where this process has something else; run it "
                         "without that, or make a heap without a fixed base",
                         heap->path, fixed);
    if (rc == -ENOMEM)
        return no_addresses(heap, size);
    return smi_refused_change(rc, heap->fd, heap->path, "%s: cannot map the file", heap->path);
}

static shmalloc_heap *new_handle(const char *path)
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

/* `info` is of `fd`. */
static int make_handle(int fd, const struct smi_file_info *info, const char *path, int read_only, shmalloc_heap **out)
{
    shmalloc_heap *heap = new_handle(path);
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
    if (o->initial_size > (o->max_size ? o->max_size : DEFAULT_MAX_SIZE))
        return smi_error(-EINVAL, "%s: initial size %llu is over the maximum size %llu", path,
                         (unsigned long long)o->initial_size,
                         (unsigned long long)(o->max_size ? o->max_size : DEFAULT_MAX_SIZE));
    if (o->arenas > SMF_ARENAS_MAX)
        return smi_error(-EINVAL, "%s: %u arenas are over the limit of %u", path, o->arenas, SMF_ARENAS_MAX);
    if (o->layout && strlen(o->layout) >= sizeof(((struct smf_header *)0)->layout_name))
        return smi_error(-EINVAL, "%s: layout name has %zu bytes, at most 63 fit", path, strlen(o->layout));
    if ((uintptr_t)o->base % MAP_UNIT != 0)
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
    uint64_t max_size = round_granule(o->max_size ? o->max_size : DEFAULT_MAX_SIZE);
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
        rc = make_handle(own, &info, path, 0, &heap);
    if (rc < 0)
        smi_os_close(own);
    if (rc == 0)
        rc = map_heap(heap, size, size, NULL);
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
    drop_handle(heap);
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
    if (header->fixed_base || most >= DEFAULT_MAX_SIZE)
        return most;
    return most < DEFAULT_MAX_SIZE / ROOM_TO_RAISE ? most * ROOM_TO_RAISE : DEFAULT_MAX_SIZE;
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
        rc = map_heap(heap, reservation(&seen->header, &seen->state), seen->state.size,
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
        rc = make_handle(fd, &info, path, read_only, &heap);
    if (rc < 0) {
        smi_os_close(fd);
        return rc;
    }
    rc = map_and_attach(heap, o, &seen);
    if (rc < 0) {
        drop_handle(heap);
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
    uint64_t most = round_granule(o->max_size ? o->max_size : DEFAULT_MAX_SIZE);
    if (most < least)
        return smi_error(-EINVAL, "%s: maximum size %llu is below the %llu bytes that an empty heap has",
                         private_name, (unsigned long long)most, (unsigned long long)least);
    rc = map_heap(heap, most, least, NULL);
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
    shmalloc_heap *heap = rc == 0 ? new_handle(private_name) : NULL;
    if (rc < 0 || !heap)
        return rc < 0 ? rc : -ENOMEM;
    heap->is_private = 1;
    heap->path = private_name;
    rc = build_private(heap, o);
    if (rc < 0) {
        drop_handle(heap);
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
    bury_handle(heap);
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
    rc = heap->state->poison ? smi_heap_writable(heap) : shmalloc_check(heap);
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
