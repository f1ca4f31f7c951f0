/* SPDX-License-Identifier: MIT */
/*
 * image.c - seeing changes of a heap file, and copying it; see image.h.
 *
 * Changes are found page by page against a copy. Holes are read as zeros through the mapping, which
 * on tmpfs gives them storage; that changes nothing that a heap relies on. The process may be one
 * that destroys the heap, so what the copy says about itself is compared with its bounds.
 */
#include "crashtest/image.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const uint8_t zeros[4096];

static __attribute__((format(printf, 2, 3))) int failed(struct smi_image *image, const char *format,
                                                        ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(image->failure, sizeof(image->failure), format, args);
    va_end(args);
    return -1;
}

/* ---- looking ---- */

/* 1; 0 when there is no file yet. */
static int open_image(struct smi_image *image)
{
    struct smf_header header;
    int fd = open(image->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? 0 : failed(image, "%s: %s", image->path, strerror(errno));
    if (pread(fd, &header, sizeof(header), 0) != sizeof(header) ||
        header.areas.end > SMI_IMAGE_MAX) {
        close(fd);
        return failed(image, "%s: not a heap, or one too large to be looked at", image->path);
    }
    image->file = mmap(NULL, SMI_IMAGE_MAX, PROT_READ, MAP_SHARED, fd, 0);
    image->copy = mmap(NULL, SMI_IMAGE_MAX, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    image->fd = fd; /* smi_image_forget() undoes the rest */
    if (image->file == MAP_FAILED || image->copy == MAP_FAILED)
        return failed(image, "mmap of %d bytes: %s", SMI_IMAGE_MAX, strerror(errno));
    image->areas = header.areas;
    image->locks_end = header.areas.locks + header.lock_count * sizeof(struct smf_lock);
    return 1;
}

void smi_image_forget(struct smi_image *image)
{
    if (image->fd >= 0) {
        if (image->file != MAP_FAILED)
            munmap(image->file, SMI_IMAGE_MAX);
        if (image->copy != MAP_FAILED)
            munmap(image->copy, SMI_IMAGE_MAX);
        close(image->fd);
    }
    const char *path = image->path;
    int large = image->large, watch_locks = image->watch_locks;
    memset(image, 0, sizeof(*image));
    image->path = path;
    image->large = large;
    image->watch_locks = watch_locks;
    image->fd = -1;
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

static uint64_t hash_page(const struct smi_image *image, uint64_t page)
{
    const uint8_t *at = image->copy + page * 4096;
    uint64_t start = page * 4096, end = start + 4096, hash = page + 1;
    uint64_t from = image->areas.locks > start ? image->areas.locks : start;
    uint64_t to = image->locks_end < end ? image->locks_end : end;
    if (from >= to)
        return memcmp(at, zeros, 4096) == 0 ? 0 : hash_words(at, 4096, hash);
    hash = hash_words(at, from - start, hash);
    return hash_words(at + (to - start), end - to, hash);
}

/* What a 4 KiB page holds, as far as looking at it is concerned. */
enum content {
    WATCHED,   /* metadata, slots: each change makes another image */
    BULK,      /* part of a large block */
    UNWATCHED, /* part of a free span. What is stored there makes no other image; but that something
                  was stored there does, once after each change of anything else */
};

static enum content content_of(const struct smi_image *image, uint64_t os_page)
{
    uint64_t page = os_page * 4096 >> SMF_PAGE_SHIFT;
    const struct smf_state *state = (const void *)(image->copy + SMF_STATE_OFFSET);
    const struct smf_chunk *chunks = (const void *)(image->copy + image->areas.directory);
    for (uint64_t i = 0; i < state->chunk_count && i < SMF_CHUNKS; i++) {
        const struct smf_chunk *chunk = &chunks[i];
        if (page < chunk->first_page || page >= (uint64_t)chunk->first_page + chunk->page_count)
            continue;
        uint64_t words = smi_chunk_words_offset(chunk, &image->areas);
        if (words + smi_chunk_metadata_bytes(chunk->page_count) > image->size)
            return WATCHED;
        const struct smf_page *pages =
            (const void *)(image->copy + words + chunk->page_count * 2ull);
        uint64_t data = smi_chunk_data_page(chunk, &image->areas), at = page;
        while (at > data && pages[at - chunk->first_page].kind == SMF_PAGE_NONE)
            at--;
        unsigned kind = at < data ? SMF_PAGE_META : pages[at - chunk->first_page].kind;
        if (kind == SMF_PAGE_LARGE)
            return BULK;
        return kind == SMF_PAGE_FREE || kind == SMF_PAGE_FREE_TAIL ? UNWATCHED : WATCHED;
    }
    return WATCHED;
}

static int makes_no_image(const struct smi_image *image, enum content content)
{
    return content == UNWATCHED || (content == BULK && !image->large);
}

static void rehash(struct smi_image *image, uint64_t page)
{
    uint64_t hash = hash_page(image, page);
    image->sum += hash - image->hashes[page];
    image->hashes[page] = hash;
}

/* The pages that are looked at each time, as ranges. */
static void find_watched(struct smi_image *image)
{
    image->ranges = 0;
    for (uint64_t page = 0; page < image->size / 4096; page++) {
        if (makes_no_image(image, content_of(image, page)) ||
            (page * 4096 >= image->areas.locks && (page + 1) * 4096 <= image->locks_end))
            continue;
        struct smi_image_range *last = &image->range[image->ranges];
        if (image->ranges > 0 && last[-1].end == page * 4096)
            last[-1].end += 4096;
        else if (image->ranges < SMI_IMAGE_RANGES)
            image->range[image->ranges++] =
                (struct smi_image_range){page * 4096, (page + 1) * 4096};
        else
            last[-1].end = (page + 1) * 4096;
    }
}

static int watched_changed(const struct smi_image *image)
{
    for (unsigned i = 0; i < image->ranges; i++) {
        struct smi_image_range r = image->range[i];
        if (memcmp(image->file + r.start, image->copy + r.start, r.end - r.start) != 0)
            return 1;
    }
    return 0;
}

/* Bring the copy up to date: 1 when a page changed that makes no other image. */
static int update_copy(struct smi_image *image)
{
    int touched = 0, others = 0;
    image->bulk = 0;
    for (uint64_t at = 0; at < image->size; at += 4096) {
        if (memcmp(image->file + at, image->copy + at, 4096) == 0)
            continue;
        memcpy(image->copy + at, image->file + at, 4096);
        enum content content = content_of(image, at / 4096);
        if (makes_no_image(image, content)) {
            touched = 1;
            continue;
        }
        rehash(image, at / 4096);
        if (content == BULK)
            image->bulk = 1;
        else
            others = 1;
    }
    image->bulk &= !others;
    return touched;
}

static void resize(struct smi_image *image, uint64_t size)
{
    for (uint64_t page = size / 4096; page < image->size / 4096; page++) {
        memset(image->copy + page * 4096, 0, 4096);
        rehash(image, page);
    }
    image->sum += (size - image->size) * 0x9e3779b97f4a7c15ull;
    image->size = size;
}

/* Which locks have an owner? The low half of the first word of glibc's mutex is the futex. */
static uint64_t hash_held(const struct smi_image *image)
{
    uint64_t hash = 0;
    for (uint64_t at = image->areas.locks; at < image->locks_end; at += sizeof(struct smf_lock))
        if (((const struct smf_lock *)(const void *)(image->file + at))->mutex[0] & FUTEX_TID_MASK)
            hash += (at + 1) * 0x9e3779b97f4a7c15ull;
    return hash;
}

/* 1 when other locks are held than when this was asked last. */
static int held_changed(struct smi_image *image)
{
    uint64_t held = image->watch_locks ? hash_held(image) : 0, before = image->held;
    image->sum += held - before;
    image->held = held;
    return held != before;
}

int smi_image_look(struct smi_image *image)
{
    struct stat st;
    uint64_t before = image->sum, was_touched = image->touched;
    int opened = image->fd >= 0 ? 1 : open_image(image);
    if (opened <= 0)
        return opened;
    if (fstat(image->fd, &st) < 0)
        return failed(image, "%s: %s", image->path, strerror(errno));
    if (st.st_size > SMI_IMAGE_MAX)
        return failed(image, "the heap has %lld bytes: at most %d can be looked at",
                      (long long)st.st_size, SMI_IMAGE_MAX);
    /* Bytes that make no image are looked at with every change of others, and now and then. */
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

/* ---- copying ---- */

static int write_pages(const struct smi_image *image, int fd)
{
    if (ftruncate(fd, (off_t)image->size) < 0)
        return -1;
    for (uint64_t at = 0, end; at < image->size; at = end) {
        end = at + 4096;
        if (memcmp(image->copy + at, zeros, 4096) == 0)
            continue;
        while (end < image->size && memcmp(image->copy + end, zeros, 4096) != 0)
            end += 4096;
        if (pwrite(fd, image->copy + at, end - at, (off_t)at) != (ssize_t)(end - at))
            return -1;
    }
    return 0;
}

int smi_image_write(struct smi_image *image, const char *path)
{
    struct smf_runtime runtime;
    struct stat copy;
    unlink(path);
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return failed(image, "%s: %s", path, strerror(errno));
    int rc = write_pages(image, fd);
    memcpy(&runtime, image->copy + SMF_RUNTIME_OFFSET, sizeof(runtime));
    if (rc == 0 && fstat(fd, &copy) == 0 && runtime.inode == image->inode &&
        runtime.device == image->device) {
        runtime.inode = copy.st_ino; /* who opens it shall take it for the file itself, not for a
                                        copy */
        runtime.device = copy.st_dev;
        rc = pwrite(fd, &runtime, sizeof(runtime), SMF_RUNTIME_OFFSET) == sizeof(runtime) ? 0 : -1;
    }
    if (rc < 0)
        failed(image, "%s: %s", path, strerror(errno));
    close(fd);
    return rc;
}
