/* SPDX-License-Identifier: MIT */
/*
 * image.h - the bytes of a heap file in private memory, to be looked at and damaged.
 *
 * image_make() lets a child process fill a heap with some of everything and ends it as asked for;
 * what the file then holds is the image. Places in it are refs, as in the file.
 */
#ifndef TEST_IMAGE_H
#define TEST_IMAGE_H

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "format/layout.h"
#include "format/sizeclass.h"
#include "support.h"
#include "look/view.h"

struct image {
    uint8_t *bytes;
    uint64_t size;
};

/* ---- making --------------------------------------------------------------------------------- */

enum image_end { IMAGE_KILLED, IMAGE_CLOSED };

struct image_order {
    const char *path;
    unsigned flags;
    enum image_end end;
};

enum { IMAGE_SMALL = 3000, IMAGE_LARGE = 6, IMAGE_ROOTS = 300, IMAGE_RETIRED = 6 };

/* `count` blocks of which every other one is freed again. */
static inline void image_fill(shmalloc_heap *heap, int count, size_t size)
{
    static _Thread_local shmalloc_ref refs[IMAGE_SMALL];
    for (int i = 0; i < count; i++)
        must_work(shmalloc_ref_alloc(heap, size, &refs[i]));
    for (int i = 0; i < count; i += 2)
        must_work(shmalloc_ref_free(heap, &refs[i]));
}

/* Its end flushes its cache: many slabs with free slots. */
static inline void *image_thread(void *arg)
{
    image_fill(arg, 1000, 200);
    return NULL;
}

static inline void *image_thread_that_stays(void *arg)
{
    image_fill(((void **)arg)[0], 50, 128);
    signal_word(((void **)arg)[1]);
    for (;;)
        pause();
    return NULL;
}

/* A transaction that is open, in two chunks of its log. */
static inline void image_transact(shmalloc_heap *heap)
{
    shmalloc_ref ref;
    must_work(shmalloc_ref_alloc(heap, 30000, &ref));
    must_work(shmalloc_tx_begin(heap));
    /* they stay as they are: so whether it is rolled back */
    must_work(shmalloc_tx_add(heap, shmalloc_ptr(heap, ref), 30000));
    /* or forgotten changes nothing */
    must_work(shmalloc_tx_store(heap, shmalloc_ptr(heap, ref), 1));
}

static inline int image_child(void *arg)
{
    const struct image_order *order = arg;
    shmalloc_heap *heap = heap_create(order->path, order->flags);
    uint32_t ready = 0;
    void *args[] = {heap, &ready};
    pthread_t thread;
    image_fill(heap, IMAGE_SMALL, 64);   /* a cache with a span of its own */
    image_fill(heap, 600, 8);            /* slabs with a bitmap page */
    pthread_create(&thread, NULL, image_thread, heap);
    pthread_join(thread, NULL);
    image_fill(heap, IMAGE_LARGE, 9 * SMF_PAGE);   /* free spans of one length */
    image_fill(heap, IMAGE_LARGE, 300 * SMF_PAGE); /* and of the set of long ones */
    for (uint16_t i = 1; i < 20; i++) {
        shmalloc_ref ref;
        must_work(shmalloc_ref_alloc_tagged(heap, 500, i, &ref));
    }
    for (int i = 0; i < IMAGE_RETIRED; i++) { /* a bag that takes */
        shmalloc_ref ref;
        must_work(i % 2 ? shmalloc_ref_alloc(heap, 64, &ref)
                        : shmalloc_ref_alloc_tagged(heap, 500, 77, &ref));
        must_work(shmalloc_retire(heap, &ref));
    }
    for (int i = 0; i < IMAGE_ROOTS; i++) {
        char name[32];
        shmalloc_ref ref;
        snprintf(name, sizeof(name), "root %03d", i);
        must(shmalloc_root_get_or_create(heap, name, 0, 100, NULL, NULL, &ref) ==
                 SHMALLOC_CREATED,
             "%s exists", name);
    }
    pthread_create(&thread, NULL,
                   order->end == IMAGE_KILLED ? image_thread_that_stays : image_thread,
                   order->end == IMAGE_KILLED ? (void *)args : heap);
    if (order->end == IMAGE_KILLED) {
        await_word(&ready, 1);
        image_transact(heap);
        raise(SIGKILL);
    }
    pthread_join(thread, NULL);
    must_work(shmalloc_close(heap));
    return 0;
}

static inline struct image image_read(const char *path)
{
    int fd = open(path, O_RDONLY);
    must(fd >= 0, "%s", path);
    off_t size = lseek(fd, 0, SEEK_END);
    struct image m = {malloc((size_t)size), (uint64_t)size};
    for (uint64_t at = 0; at < m.size;) {
        ssize_t n = pread(fd, m.bytes + at, m.size - at, (off_t)at);
        must(n > 0, "read %s", path);
        at += (uint64_t)n;
    }
    close(fd);
    return m;
}

static inline void image_write(const struct image *m, const char *path)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    must(fd >= 0, "%s", path);
    must(ftruncate(fd, (off_t)m->size) == 0, "lengthen %s", path);
    for (uint64_t at = 0, len; at < m->size; at += len) { /* what is zero needs no writing */
        len = m->size - at < 65536 ? m->size - at : 65536;
        if (!all_zero(m->bytes + at, len))
            must(pwrite(fd, m->bytes + at, len, (off_t)at) == (ssize_t)len, "write %s", path);
    }
    close(fd);
}

static inline struct image image_make(struct fixture *f, unsigned flags, enum image_end end)
{
    struct image_order order = {f->path, flags, end};
    unlink(f->path);
    int status = run_child(image_child, &order);
    must(status == (end == IMAGE_KILLED ? -SIGKILL : 0), "the child ended with %d", status);
    return image_read(f->path);
}

/* ---- places --------------------------------------------------------------------------------- */

static inline void *image_at(const struct image *m, uint64_t ref)
{
    must(ref < m->size, "ref %#llx lies outside the image", (unsigned long long)ref);
    return m->bytes + ref;
}

static inline uint64_t image_ref(const struct image *m, const void *address)
{
    return (uint64_t)((const uint8_t *)address - m->bytes);
}

static inline struct smf_header *image_header(const struct image *m)
{
    return image_at(m, 0);
}

static inline struct smf_state *image_state(const struct image *m)
{
    return image_at(m, SMF_STATE_OFFSET);
}

static inline const struct smf_areas *image_areas(const struct image *m)
{
    return &image_header(m)->areas;
}

static inline struct smf_page_heap *image_page_heap(const struct image *m)
{
    return image_at(m, image_areas(m)->page_heap);
}

static inline struct smf_roots *image_roots(const struct image *m)
{
    return image_at(m, image_areas(m)->roots);
}

static inline struct smf_chunk *image_directory(const struct image *m)
{
    return image_at(m, image_areas(m)->directory);
}

static inline uint64_t *image_threads(const struct image *m)
{
    return image_at(m, image_areas(m)->threads);
}

static inline struct smf_central *image_central(const struct image *m, uint32_t arena, uint32_t k)
{
    return (struct smf_central *)image_at(m, image_areas(m)->central) + arena * SMF_CLASSES + k;
}

static inline const struct smf_chunk *image_chunk_of(const struct image *m, uint32_t page)
{
    const struct smf_chunk *chunk = image_directory(m);
    for (uint64_t i = 0; i < image_state(m)->chunk_count; i++, chunk++)
        if (page >= chunk->first_page && page - chunk->first_page < chunk->page_count)
            return chunk;
    must(0, "no chunk has page %u", page);
    return NULL;
}

static inline uint16_t *image_word(const struct image *m, uint32_t page)
{
    const struct smf_chunk *chunk = image_chunk_of(m, page);
    return (uint16_t *)image_at(m, smi_chunk_words_offset(chunk, image_areas(m))) +
           (page - chunk->first_page);
}

static inline struct smf_page *image_page(const struct image *m, uint32_t page)
{
    const struct smf_chunk *chunk = image_chunk_of(m, page);
    uint64_t at =
        smi_chunk_words_offset(chunk, image_areas(m)) + chunk->page_count * sizeof(uint16_t);
    return (struct smf_page *)image_at(m, at) + (page - chunk->first_page);
}

/* The first page from `from` on whose descriptor `is` accepts; fails the test when there is none.
 * */
typedef int image_is_fn(const struct image *m, uint32_t page, const struct smf_page *d);

#define image_find(m, from, is) image_find_named((m), (from), (is), #is)
static inline uint32_t image_find_named(const struct image *m, uint32_t from, image_is_fn *is,
                                        const char *name)
{
    for (uint32_t page = from; page < image_state(m)->size >> SMF_PAGE_SHIFT; page++)
        if (is(m, page, image_page(m, page)))
            return page;
    must(0, "the image has no page that %s", name);
    return 0;
}

static inline uint64_t image_page_ref(uint32_t page)
{
    return (uint64_t)page << SMF_PAGE_SHIFT;
}

/* The thread slot of the child's first thread, which has a cache in a span of its own. */
static inline struct smf_thread *image_thread_slot(const struct image *m, uint32_t i)
{
    return image_at(m, image_threads(m)[i]);
}

static inline uint64_t *image_open_array(const struct image *m, const struct smf_thread *thread,
                                         uint32_t k)
{
    return image_at(m, thread->stacks[k] & ~(uint64_t)SMF_STACK_PAGES);
}

/* The stack of class k, closed, as whoever adopts it does. */
static inline uint64_t *image_array(const struct image *m, const struct smf_thread *thread,
                                    uint32_t k)
{
    uint64_t *array = image_open_array(m, thread, k);
    array[0] = smi_stack_count(array, smi_stack_words(thread->stacks[k], k));
    return array;
}

#endif
