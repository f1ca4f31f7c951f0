/* SPDX-License-Identifier: MIT */
/*
 * walkers.c - statistics, lists and checks over a heap that other processes and threads change all
 * the time.
 *
 *   walkers [-s seconds]
 *
 * Not for ThreadSanitizer: the walkers read without locks, and say so. Fails when one of them
 * crashes, calls a sound heap damaged, or gives a figure that cannot be.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "support.h"

static struct fixture f;
static uint32_t *stop;

static void churn(shmalloc_heap *heap, struct rng *rng)
{
    shmalloc_ref refs[64] = {0};
    char name[16];
    for (int i = 0; i < 64; i++)
        must_work(shmalloc_ref_alloc_tagged(heap, 1 + rng_log_uniform(rng, 20), 3, &refs[i]));
    snprintf(name, sizeof(name), "%llu", (unsigned long long)rng_below(rng, 50));
    must_work(shmalloc_root_set(heap, name, 0, refs[0]));
    for (int i = 0; i < 64; i++)
        must_work(shmalloc_ref_free(heap, &refs[i]));
    if (rng_below(rng, 20) == 0)
        shmalloc_root_remove(heap, name);
    if (rng_below(rng, 20) == 0)
        must(shmalloc_trim(heap) >= 0, "%s", shmalloc_errmsg());
}

static int churn_as_process(void *arg)
{
    shmalloc_heap *heap = fixture_join(&f);
    struct rng rng = rng_from(*(uint64_t *)arg);
    while (!__atomic_load_n(stop, __ATOMIC_RELAXED))
        churn(heap, &rng);
    return shmalloc_close(heap) < 0;
}

static void *churn_as_thread(void *arg)
{
    struct rng rng = rng_from(*(uint64_t *)arg + 1);
    while (!__atomic_load_n(stop, __ATOMIC_RELAXED))
        churn(f.heap, &rng);
    return NULL;
}

static int look_at_block(const shmalloc_block *block, void *arg)
{
    uint64_t *last = arg;
    must(block->ref > *last && block->size > 0 && block->ref + block->size > block->ref,
         "block %#llx", (unsigned long long)block->ref);
    *last = block->ref;
    return 0;
}

static int look_at_root(const shmalloc_root *root, void *arg)
{
    (void)arg;
    must(atoi(root->name) < 50, "root %s", root->name);
    return 0;
}

static void walk(const shmalloc_heap *heap)
{
    uint64_t last = 0;
    shmalloc_stats s = heap_stats(heap);
    must(s.file_size <= s.max_size && s.free_pages <= s.file_size && s.roots <= 50,
         "figures that cannot be");
    must_work(shmalloc_each_block(heap, look_at_block, &last));
    must_work(shmalloc_root_each(heap, look_at_root, NULL));
    must_be_sound(heap);
}

static int walk_read_only(void *arg)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    shmalloc_heap *heap;
    (void)arg;
    options.flags = SHMALLOC_READ_ONLY;
    must_work(shmalloc_close(f.heap));
    must_work(shmalloc_open(f.path, &options, &heap));
    while (!__atomic_load_n(stop, __ATOMIC_RELAXED))
        walk(heap);
    return shmalloc_close(heap) < 0;
}

int main(int argc, char **argv)
{
    uint64_t seconds = 5, walks = 0, seed = test_seed();
    for (int c; (c = getopt(argc, argv, "s:")) != -1;) {
        if (c != 's')
            return fprintf(stderr, "usage: %s [-s seconds]\n", argv[0]), 2;
        seconds = strtoull(optarg, NULL, 0);
    }
    pthread_t thread;
    stop = shared_memory(sizeof(*stop));
    fixture_begin_heap(&f, 0);
    pid_t churner = start_child(churn_as_process, &seed),
          reader = start_child(walk_read_only, NULL);
    must(pthread_create(&thread, NULL, churn_as_thread, &seed) == 0, "pthread_create");
    for (uint64_t end = now_ns() + seconds * 1000000000ull; now_ns() < end; walks++)
        walk(f.heap);
    __atomic_store_n(stop, 1, __ATOMIC_RELAXED);
    pthread_join(thread, NULL);
    must(wait_child(churner) == 0 && wait_child(reader) == 0, "a child failed");
    must_be_sound(f.heap);
    must(heap_stats(f.heap).allocated == 0, "blocks are left");
    fixture_end(&f);
    printf("%llu walks over a moving heap\n", (unsigned long long)walks);
    return 0;
}
