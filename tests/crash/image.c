/* SPDX-License-Identifier: MIT */
/*
 * image.c - seeing changes of a heap file, and copying it; see image.h.
 *
 * Changes are found page by page against a copy. Holes are read as zeros through the mapping, which on tmpfs
 * gives them storage; that changes nothing that a heap relies on.
 */
#include "image.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "support.h"

static const uint8_t zeros[4096];

/* ---- looking ---- */

static uint8_t *private_bytes(void)
{
    uint8_t *bytes = mmap(NULL, IMAGE_MAX, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(bytes != MAP_FAILED, "mmap: %s", strerror(errno));
    return bytes;
}

static int open_image(struct image *image)
{
    image->fd = open(image->path, O_RDONLY | O_CLOEXEC);
    if (image->fd < 0)
        return 0;
    struct smf_header header;
    must(pread(image->fd, &header, sizeof(header), 0) == sizeof(header), "short header");
    image->locks = header.areas.locks;
    image->locks_end = header.areas.locks + header.lock_count * sizeof(struct smf_lock);
    image->file = mmap(NULL, IMAGE_MAX, PROT_READ, MAP_SHARED, image->fd, 0);
    if (!image->copy)
        image->copy = private_bytes();
    must(image->file != MAP_FAILED, "mmap: %s", strerror(errno));
    return 1;
}

void image_forget(struct image *image)
{
    if (image->fd >= 0) {
        munmap(image->file, IMAGE_MAX);
        munmap(image->copy, IMAGE_MAX);
        close(image->fd);
    }
    for (int i = 0; i < 2; i++)
        if (image->past[i])
            munmap(image->past[i], IMAGE_MAX);
    *image = (struct image){.path = image->path, .watch_locks = image->watch_locks, .fd = -1};
}

static uint64_t hash_words(const uint8_t *bytes, size_t len, uint64_t hash)
{
    for (size_t i = 0; i < len; i += 8) {
        uint64_t word;
        memcpy(&word, bytes + i, 8);
        hash = (hash ^ word) * 0x9e3779b97f4a7c15ull;
        hash ^= hash >> 29;
    }
    return hash;
}

static uint64_t hash_page(const struct image *image, uint64_t page)
{
    const uint8_t *at = image->copy + page * 4096;
    uint64_t start = page * 4096, end = start + 4096, hash = page + 1;
    uint64_t from = image->locks > start ? image->locks : start, to = image->locks_end < end ? image->locks_end : end;
    if (from >= to)
        return memcmp(at, zeros, 4096) == 0 ? 0 : hash_words(at, 4096, hash);
    hash = hash_words(at, from - start, hash);
    return hash_words(at + (to - start), end - to, hash);
}

/* Is the 4 KiB page part of a large block or of a free span? What is stored there makes no other image; but that
 * something was stored there does, once after each change of anything else. */
static int holds_no_metadata(const struct image *image, uint64_t os_page)
{
    uint64_t page = os_page * 4096 >> SMF_PAGE_SHIFT;
    const struct smf_header *header = (const void *)image->copy;
    const struct smf_state *state = (const void *)(image->copy + SMF_STATE_OFFSET);
    const struct smf_chunk *chunks = (const void *)(image->copy + header->areas.directory);
    for (uint64_t i = 0; i < state->chunk_count && i < SMF_CHUNKS; i++) {
        const struct smf_chunk *chunk = &chunks[i];
        if (page < chunk->first_page || page >= (uint64_t)chunk->first_page + chunk->page_count)
            continue;
        const struct smf_page *pages =
            (const void *)(image->copy + smi_chunk_words_offset(chunk, &header->areas) + chunk->page_count * 2ull);
        uint64_t data = smi_chunk_data_page(chunk, &header->areas), at = page;
        while (at > data && pages[at - chunk->first_page].kind == SMF_PAGE_NONE)
            at--;
        unsigned kind = at < data ? SMF_PAGE_META : pages[at - chunk->first_page].kind;
        return kind == SMF_PAGE_LARGE || kind == SMF_PAGE_FREE || kind == SMF_PAGE_FREE_TAIL;
    }
    return 0;
}

static void rehash(struct image *image, uint64_t page)
{
    uint64_t hash = hash_page(image, page);
    image->sum += hash - image->hashes[page];
    image->hashes[page] = hash;
}

/* The pages that hold metadata, as ranges. */
static void find_watched(struct image *image)
{
    image->ranges = 0;
    for (uint64_t page = 0; page < image->size / 4096; page++) {
        if (holds_no_metadata(image, page) ||
            (page * 4096 >= image->locks && (page + 1) * 4096 <= image->locks_end))
            continue;
        struct image_range *last = &image->range[image->ranges];
        if (image->ranges > 0 && last[-1].end == page * 4096)
            last[-1].end += 4096;
        else if (image->ranges < IMAGE_RANGES)
            image->range[image->ranges++] = (struct image_range){page * 4096, (page + 1) * 4096};
        else
            last[-1].end = (page + 1) * 4096;
    }
}

static int watched_changed(const struct image *image)
{
    for (unsigned i = 0; i < image->ranges; i++) {
        struct image_range r = image->range[i];
        if (memcmp(image->file + r.start, image->copy + r.start, r.end - r.start) != 0)
            return 1;
    }
    return 0;
}

/* Bring the copy up to date: 1 when a page without metadata changed. */
static int update_copy(struct image *image)
{
    int touched = 0;
    for (uint64_t at = 0; at < image->size; at += 4096) {
        if (memcmp(image->file + at, image->copy + at, 4096) == 0)
            continue;
        memcpy(image->copy + at, image->file + at, 4096);
        if (holds_no_metadata(image, at / 4096))
            touched = 1;
        else
            rehash(image, at / 4096);
    }
    return touched;
}

static void resize(struct image *image, uint64_t size)
{
    for (uint64_t page = size / 4096; page < image->size / 4096; page++) {
        memset(image->copy + page * 4096, 0, 4096);
        rehash(image, page);
    }
    image->sum += (size - image->size) * 0x9e3779b97f4a7c15ull;
    image->size = size;
}

/* Which locks have an owner? The low half of the first word of glibc's mutex is the futex. */
static uint64_t hash_held(const struct image *image)
{
    uint64_t hash = 0;
    for (uint64_t at = image->locks; at < image->locks_end; at += sizeof(struct smf_lock))
        if (((const struct smf_lock *)(const void *)(image->file + at))->mutex[0] & FUTEX_TID_MASK)
            hash += (at + 1) * 0x9e3779b97f4a7c15ull;
    return hash;
}

/* 1 when other locks are held than when this was asked last. */
static int held_changed(struct image *image)
{
    uint64_t held = image->watch_locks ? hash_held(image) : 0, before = image->held;
    image->sum += held - before;
    image->held = held;
    return held != before;
}

int image_look(struct image *image)
{
    struct stat st;
    uint64_t before = image->sum, was_touched = image->touched;
    if (image->fd < 0 && !open_image(image))
        return 0;
    must(fstat(image->fd, &st) == 0 && st.st_size <= IMAGE_MAX, "the heap has %lld bytes", (long long)st.st_size);
    /* Bytes without metadata are looked at with every change of others, and now and then. */
    if ((uint64_t)st.st_size == image->size && ++image->looks % 64 != 0 && !held_changed(image) &&
        !watched_changed(image))
        return 0;
    image->device = st.st_dev;
    image->inode = st.st_ino;
    resize(image, (uint64_t)st.st_size);
    held_changed(image);
    uint64_t touched = update_copy(image) | was_touched;
    if (image->sum != before) {
        touched = 0;
        find_watched(image);
    }
    image->sum += touched - was_touched;
    image->touched = touched;
    return image->sum != before;
}

void image_write(const struct image *image, const char *path)
{
    unlink(path);
    struct smf_runtime runtime;
    struct stat copy;
    memcpy(&runtime, image->copy + SMF_RUNTIME_OFFSET, sizeof(runtime));
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    must(fd >= 0 && ftruncate(fd, (off_t)image->size) == 0, "%s: %s", path, strerror(errno));
    for (uint64_t at = 0, end; at < image->size; at = end) {
        end = at + 4096;
        if (memcmp(image->copy + at, zeros, 4096) == 0)
            continue;
        while (end < image->size && memcmp(image->copy + end, zeros, 4096) != 0)
            end += 4096;
        must(pwrite(fd, image->copy + at, end - at, (off_t)at) == (ssize_t)(end - at), "%s: %s", path,
             strerror(errno));
    }
    if (fstat(fd, &copy) == 0 && runtime.inode == image->inode && runtime.device == image->device) {
        runtime.inode = copy.st_ino; /* who opens it shall take it for the file itself, not for a copy */
        runtime.device = copy.st_dev;
        must(pwrite(fd, &runtime, sizeof(runtime), SMF_RUNTIME_OFFSET) == sizeof(runtime), "%s: %s", path,
             strerror(errno));
    }
    close(fd);
}

void image_copy(const char *from, const char *to)
{
    struct image *image = calloc(1, sizeof(*image));
    must(image, "out of memory");
    image->path = from;
    image->fd = -1;
    image_look(image);
    image_write(image, to);
    image_forget(image);
    free(image);
}

int image_move(const char *path, int reboot)
{
    struct smf_runtime runtime;
    struct smf_state state;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    must(fd >= 0 && pread(fd, &runtime, sizeof(runtime), SMF_RUNTIME_OFFSET) == sizeof(runtime) &&
             pread(fd, &state, sizeof(state), SMF_STATE_OFFSET) == sizeof(state),
         "%s: %s", path, strerror(errno));
    if (reboot)
        runtime.boot_id[0] ^= 1;
    else
        runtime.inode ^= 1;
    must(pwrite(fd, &runtime, sizeof(runtime), SMF_RUNTIME_OFFSET) == sizeof(runtime), "%s: %s", path,
         strerror(errno));
    close(fd);
    return state.mark != SMF_CLEAN;
}

/* With a store between each two images, the oldest with what changed between the newer two lacks the middle store. */
static void write_without_middle(struct image *image, const char *path)
{
    uint8_t *now = image->copy, *mixed = image->past[1];
    for (uint64_t at = 0; at < image->size; at++)
        if (now[at] != image->past[0][at])
            mixed[at] = now[at];
    image->copy = mixed;
    image_write(image, path);
    image->copy = now;
}

int image_write_swapped(struct image *image, const char *path)
{
    int possible = image->past_size[0] == image->size && image->past_size[1] == image->size;
    for (int i = 0; i < 2; i++)
        if (!image->past[i])
            image->past[i] = private_bytes();
    if (possible)
        write_without_middle(image, path);
    uint8_t *oldest = image->past[1];
    image->past[1] = image->past[0];
    image->past[0] = oldest;
    memcpy(oldest, image->copy, image->size);
    image->past_size[1] = image->past_size[0];
    image->past_size[0] = image->size;
    return possible;
}

/* ---- what is in flight ---- */

struct parts {
    struct smf_page_heap *page_heap;
    struct smf_roots *roots;
    struct smf_central *central;
    uint32_t central_count, arenas;
    struct smf_process *entries;
    struct smf_lock *locks;
    uint32_t lock_count;
    struct smf_thread *thread[8]; /* the first is the stepped process's */
    unsigned threads;
};

static struct parts parts_of(uint8_t *bytes, uint64_t size)
{
    struct parts parts = {0};
    const struct smf_header *header = (void *)bytes;
    const struct smf_areas *areas = &header->areas;
    const uint64_t *threads = (void *)(bytes + areas->threads);
    parts.page_heap = (void *)(bytes + areas->page_heap);
    parts.roots = (void *)(bytes + areas->roots);
    parts.central = (void *)(bytes + areas->central);
    parts.arenas = header->arena_count;
    parts.entries = (void *)(bytes + areas->processes);
    parts.locks = (void *)(bytes + areas->locks);
    parts.lock_count = header->lock_count;
    parts.central_count = (header->arena_count + 1) * SMF_CLASSES;
    for (unsigned i = 0; i < 8; i++)
        if (threads[i] != 0 && threads[i] + sizeof(struct smf_thread) <= size)
            parts.thread[parts.threads++] = (void *)(bytes + threads[i]);
    return parts;
}

/* Locks that are held, or whose owner died before: a bit for each of their kinds. */
static uint64_t kinds_of_locks(const struct image *image)
{
    const struct smf_header *header = (const void *)image->copy;
    const struct smf_lock *locks = (const void *)(image->copy + image->locks);
    uint64_t bits = 0;
    for (uint32_t i = 0; i < header->lock_count; i++) {
        if (!(locks[i].mutex[0] & (FUTEX_TID_MASK | FUTEX_OWNER_DIED)))
            continue;
        bits |= i < SMF_LOCK_CLASS_FIRST ? 1ull << (13 + i)
                : i == header->lock_count - 1 ? 1ull << 29
                : 1ull << (30 + (i - SMF_LOCK_CLASS_FIRST) / SMF_CLASSES / header->arena_count);
    }
    return bits;
}

uint64_t image_in_flight(const struct image *image)
{
    if (image->fd < 0)
        return 0;
    struct parts p = parts_of(image->copy, image->size);
    uint64_t bits = (p.page_heap->log_count != 0) | (p.roots->log_count != 0) << 1 | (p.roots->scratch != 0) << 2;
    for (uint32_t i = 0; i < p.central_count; i++) {
        unsigned own = i / SMF_CLASSES == p.arenas;
        bits |= (uint64_t)(p.central[i].log_count != 0) << (3 + own);
        bits |= (uint64_t)(p.central[i].pending != 0) << (5 + own);
    }
    for (unsigned i = 0; i < p.threads; i++) {
        const struct smf_thread *t = p.thread[i];
        bits |= (uint64_t)(t->link.op == SMF_LINK_TAKE) << 7 | (uint64_t)(t->link.op == SMF_LINK_GIVE) << 8 |
                (uint64_t)(t->scratch != 0) << 9 | (uint64_t)(t->building != 0) << 10 |
                (uint64_t)(t->spare[0] != 0) << 11 | (uint64_t)(t->spare[1] != 0) << 12;
    }
    return image->watch_locks ? bits | kinds_of_locks(image) : bits;
}

const char *const planted_names[PLANTS] = {
    "nothing", "a log's last entry missing", "no link record", "no `pending`", "no `spare`", "no `scratch`",
    "no `building`", "adoption frees the thread slot first", "adoption frees the process entry first",
    "two stores in the wrong order", "a lock that does not tell of its owner's death"};

/* A stored log count goes down by one. */
static int drop_entry(uint64_t *count)
{
    if (*count == 0)
        return 0;
    --*count;
    return 1;
}

static int forget_word(uint64_t *word)
{
    int was = *word != 0;
    *word = 0;
    return was;
}

int image_plant(const char *path, enum planted what)
{
    int fd = open(path, O_RDWR | O_CLOEXEC), done = 0;
    struct stat st;
    must(fd >= 0 && fstat(fd, &st) == 0, "%s: %s", path, strerror(errno));
    uint8_t *bytes = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    must(bytes != MAP_FAILED, "mmap: %s", strerror(errno));
    struct parts p = parts_of(bytes, (uint64_t)st.st_size);
    if (what == PLANT_LOG)
        done = drop_entry(&p.page_heap->log_count) | drop_entry(&p.roots->log_count);
    for (uint32_t i = 0; i < p.central_count; i++) {
        if (what == PLANT_LOG)
            done |= drop_entry(&p.central[i].log_count);
        if (what == PLANT_PENDING)
            done |= forget_word(&p.central[i].pending);
    }
    if (what == PLANT_LINK)
        done |= forget_word(&p.thread[0]->link.op);
    if (what == PLANT_SPARE)
        done |= forget_word(&p.thread[0]->spare[0]) | forget_word(&p.thread[0]->spare[1]);
    if (what == PLANT_SCRATCH)
        done |= forget_word(&p.thread[0]->scratch);
    if (what == PLANT_BUILDING)
        done |= forget_word(&p.thread[0]->building);
    if (what == PLANT_SLOT)
        done |= forget_word(&p.thread[0]->owner);
    if (what == PLANT_ENTRY)
        done |= forget_word((uint64_t *)(void *)p.entries);
    for (uint32_t i = 0; what == PLANT_UNMARKED && i < p.lock_count; i++)
        done |= forget_word(p.locks[i].mutex);
    munmap(bytes, (size_t)st.st_size);
    close(fd);
    return done;
}
