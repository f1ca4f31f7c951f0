/* SPDX-License-Identifier: MIT */
/*
 * test_heap_of.c - the heap that an address lies in, while heaps come and go.
 *
 * Would fail if an address beside a heap were given one, if one of several heaps hid another, or if
 * a heap that another thread closes meanwhile were looked at.
 */
#include <pthread.h>
#include <stdio.h>

#include "heap_suite.h"

HEAP_SUITE(heap_of, 0, 60);

Test(heap_of, addresses_of_several_heaps)
{
    shmalloc_heap *other = heap_create(fixture_path(&f, "other"), 0), *private_one, *reader;
    shmalloc_options read_only = SHMALLOC_OPTIONS_INIT;
    read_only.flags = SHMALLOC_READ_ONLY;
    must_work(shmalloc_open(f.path, &read_only, &reader));
    must_work(shmalloc_open_private(NULL, &private_one));
    shmalloc_heap *const heaps[] = {f.heap, other, private_one, reader};
    shmalloc_ref ref;
    must_work(shmalloc_ref_alloc(f.heap, 100, &ref));
    for (int i = 0; i < 4; i++) {
        uint8_t *base = shmalloc_ptr(heaps[i], 8);
        base -= 8;
        uint64_t size = heap_stats(heaps[i]).file_size;
        cr_assert_eq(shmalloc_heap_of(base), heaps[i], "%d", i);
        cr_assert_eq(shmalloc_heap_of(base + size - 1), heaps[i], "%d", i);
        cr_assert_neq(shmalloc_heap_of(base + size), heaps[i], "%d", i);
        cr_assert_neq(shmalloc_heap_of((void *)((uintptr_t)base - 1)), heaps[i], "%d", i);
    }
    cr_assert_eq(shmalloc_heap_of((uint8_t *)shmalloc_ptr(reader, ref) + 50), reader);
    uint8_t *gone = shmalloc_ptr(other, 4096);
    must_work(shmalloc_close(other));
    cr_assert_null(shmalloc_heap_of(gone));
    must_work(shmalloc_close(private_one));
    must_work(shmalloc_close(reader));
    cr_assert_null(shmalloc_heap_of(NULL));
    cr_assert_null(shmalloc_heap_of(&ref));
    cr_assert_null(shmalloc_heap_of(heaps));
    cr_assert_null(shmalloc_heap_of((void *)(uintptr_t)shmalloc_heap_of));
    must_work(shmalloc_ref_free(f.heap, &ref));
}

static int ask_as_child(void *arg)
{
    return shmalloc_heap_of(arg) == f.heap && shmalloc_heap_of(&arg) == NULL ? 0 : 1;
}

Test(heap_of, a_forked_child_knows_its_heaps)
{
    void *block = shmalloc_malloc(f.heap, 10);
    cr_assert_eq(run_child(ask_as_child, block), 0);
    must_work(shmalloc_free(f.heap, block));
}

/* As many as make a handle that was closed go away for good, and more. */
#define ROUNDS 200

struct coming_and_going {
    char path[200];
    uint32_t done;
};

static void *open_and_close(void *arg)
{
    struct coming_and_going *c = arg;
    for (int i = 0; i < ROUNDS; i++) {
        shmalloc_heap *heap = heap_open(c->path);
        must(shmalloc_heap_of(shmalloc_ptr(heap, 8)) == heap, "round %d", i);
        must_work(shmalloc_close(heap));
    }
    __atomic_store_n(&c->done, 1, __ATOMIC_RELEASE);
    return NULL;
}

Test(heap_of, others_open_and_close_meanwhile)
{
    struct coming_and_going c = {{0}, 0};
    snprintf(c.path, sizeof(c.path), "%s", fixture_path(&f, "other"));
    must_work(shmalloc_close(heap_create(c.path, 0)));
    void *block = shmalloc_malloc(f.heap, 10);
    pthread_t thread;
    must(pthread_create(&thread, NULL, open_and_close, &c) == 0, "no thread");
    do
        must(shmalloc_heap_of(block) == f.heap && !shmalloc_heap_of(&c), "another heap's");
    while (!__atomic_load_n(&c.done, __ATOMIC_ACQUIRE));
    pthread_join(thread, NULL);
    must_work(shmalloc_free(f.heap, block));
}
