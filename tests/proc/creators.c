/* SPDX-License-Identifier: MIT */
/*
 * creators.c - SIGKILL at random times during the making, opening and closing of heaps.
 *
 *   creators [-k kills] [-s seconds]
 *
 * Fails when a later open finds anything but a sound heap or no file, when a killed creator left
 * any other file behind, or when a memfd that a creator left half made cannot be made a heap.
 */
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "support.h"

static struct fixture f;
static int memory = -1; /* memfd of the present round; -1: a file at f.path */

static int open_either(unsigned flags, shmalloc_heap **out)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = flags;
    return memory >= 0 ? shmalloc_open_fd(memory, &options, out)
                       : shmalloc_open(f.path, &options, out);
}

/* Make or open it, change something, close it: to be killed anywhere in here. */
static int create(void *arg)
{
    shmalloc_heap *heap;
    shmalloc_ref ref;
    (void)arg;
    must_work(open_either(SHMALLOC_CREATE, &heap));
    must(shmalloc_root_get_or_create(heap, "made", 1, 1000, NULL, NULL, &ref) >= 0, "%s",
         shmalloc_errmsg());
    shmalloc_ref *made = shmalloc_ptr(heap, ref);
    must_work(shmalloc_ref_alloc(heap, 70000, made));
    must_work(shmalloc_ref_free(heap, made));
    return shmalloc_close(heap) < 0;
}

enum { SOUND = 0, ABSENT = 10 };

static int look(void *arg)
{
    shmalloc_heap *heap;
    shmalloc_ref ref = 0;
    (void)arg;
    int rc = open_either(memory >= 0 ? SHMALLOC_CREATE : 0, &heap);
    if (rc == -ENOENT && memory < 0)
        return ABSENT;
    must_work(rc);
    must_be_sound(heap);
    uint64_t known = 0;
    shmalloc_ref *made = NULL;
    if (shmalloc_root_get(heap, "made", 1, &ref) == 0 && (made = shmalloc_ptr(heap, ref)))
        known = 1 + (*made != 0); /* a kill between alloc and free keeps it */
    shmalloc_stats stats = heap_stats(heap);
    must(stats.allocated_blocks == known, "%llu blocks are allocated, %llu are named",
         (unsigned long long)stats.allocated_blocks, (unsigned long long)known);
    if (known)
        must_work(shmalloc_ref_free(heap, made));
    return shmalloc_close(heap) < 0;
}

static void must_be_alone(void)
{
    DIR *dir = opendir(f.dir);
    must(dir, "opendir %s", f.dir);
    for (struct dirent *e; (e = readdir(dir));)
        must(e->d_name[0] == '.' || strcmp(e->d_name, "heap") == 0, "a killed creator left %s",
             e->d_name);
    closedir(dir);
}

static int kill_at_some_time(struct rng *rng)
{
    pid_t pid = start_child(create, NULL);
    uint64_t until = now_ns() + rng_log_uniform(rng, 23);
    while (now_ns() < until)
        ;
    kill(pid, SIGKILL);
    int status = wait_child_within(pid, 10000);
    must(status == 0 || status == -SIGKILL, "creator: status %d", status);
    return status != 0;
}

int main(int argc, char **argv)
{
    uint64_t kills = 600, seconds = 30, killed = 0, absent = 0, sound = 0;
    for (int c; (c = getopt(argc, argv, "k:s:")) != -1;) {
        if (c == 'k')
            kills = strtoull(optarg, NULL, 0);
        else if (c == 's')
            seconds = strtoull(optarg, NULL, 0);
        else
            return fprintf(stderr, "usage: %s [-k kills] [-s seconds]\n", argv[0]), 2;
    }
    struct rng rng = rng_from(test_seed());
    fixture_begin(&f);
    uint64_t start = now_ns();
    while (killed < kills && now_ns() - start < seconds * 1000000000ull) {
        memory = rng_below(&rng, 3) ? -1 : memfd_create("heap", MFD_CLOEXEC);
        for (uint64_t n = 1 + rng_below(&rng, 3); n > 0; n--) /* the later ones find what the first
                                                                 left */
            killed += (uint64_t)kill_at_some_time(&rng);
        int status = wait_child_within(start_child(look, NULL), 20000);
        must(status == SOUND || status == ABSENT, "what the creator left: status %d", status);
        absent += status == ABSENT;
        sound += status == SOUND;
        must_be_alone();
        if (memory >= 0)
            close(memory);
        else if (status == SOUND)
            must_work(shmalloc_destroy(f.path));
    }
    printf("%llu creators killed in %.1f s: %llu times a sound heap, %llu times none\n",
           (unsigned long long)killed, (double)(now_ns() - start) / 1e9, (unsigned long long)sound,
           (unsigned long long)absent);
    fixture_end(&f);
    return 0;
}
