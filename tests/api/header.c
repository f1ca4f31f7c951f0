/* SPDX-License-Identifier: MIT */
/*
 * header.c - the public header alone, before and without any other, twice, in C and in C++.
 */
#include <shmalloc/shmalloc.h>
#include <shmalloc/shmalloc.h>

static int visit_root(const shmalloc_root *root, void *arg)
{
    return root->name == arg;
}

/* Mentions what is more than a declaration: initialiser, callback types, the mutex's size. */
int use_header(shmalloc_heap *heap);
int use_header(shmalloc_heap *heap)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    shmalloc_mutex mutex = {{0}};
    shmalloc_stats stats = SHMALLOC_STATS_INIT;
    uint64_t word = 0;
    options.flags = SHMALLOC_CREATE | SHMALLOC_EXCLUSIVE;
    shmalloc_store(&word, 1);
    return shmalloc_load(&word) != 1 ||
           shmalloc_open("x", &options, &heap) == SHMALLOC_ELAYOUT ||
           shmalloc_mutex_lock(heap, &mutex) < 0 || shmalloc_heap_of(&word) == heap ||
           shmalloc_get_stats(heap, &stats) < 0 ||
           shmalloc_root_each(heap, visit_root, NULL) < 0 || sizeof(mutex) != 64;
}
