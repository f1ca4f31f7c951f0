/* SPDX-License-Identifier: MIT */
/*
 * damage.c - heaps with random bytes changed are opened and worked on.
 *
 *   damage [-n files] [-s seconds]
 *
 * Each image is a sound heap with one to six bytes changed, mostly in its metadata. Opening it may be refused, the
 * work may end in errors and a poisoned heap; it must not crash and must end. That is all that is asked: an error
 * that no check can see (a bit of a bitmap) hands a block out twice, which only the program could notice.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "support.h"

#define SLOTS 512
#define PATIENCE_S 20

static struct fixture f;
static uint8_t *sound, *changed;
static size_t image_size;

static void make_image(struct rng *rng)
{
    shmalloc_ref table, *slots;
    char name[16];
    must_work(shmalloc_root_get_or_create(f.heap, "table", 0, SLOTS * sizeof(*slots), NULL, NULL, &table) - 1);
    slots = shmalloc_ptr(f.heap, table);
    for (int i = 0; i < SLOTS; i++) {
        must_work(shmalloc_alloc(f.heap, 1 + rng_log_uniform(rng, 17), &slots[i]));
        if (i % 7 == 0)
            must_work(shmalloc_free(f.heap, &slots[i]));
    }
    for (int i = 0; i < 30; i++) {
        snprintf(name, sizeof(name), "root %d", i);
        must_work(shmalloc_root_set(f.heap, name, 0, slots[i]));
    }
    must_work(shmalloc_close(f.heap));
    f.heap = NULL;
    struct stat st;
    int fd = open(f.path, O_RDONLY);
    must(fd >= 0 && fstat(fd, &st) == 0, "cannot read the image");
    image_size = (size_t)st.st_size;
    sound = malloc(image_size);
    changed = malloc(image_size);
    must(sound && changed && pread(fd, sound, image_size, 0) == (ssize_t)image_size, "cannot read the image");
    close(fd);
}

/* Change the image; *places says where, for the report of a failure. */
static void change(struct rng *rng, char *places, size_t size)
{
    memcpy(changed, sound, image_size);
    size_t used = 0;
    places[0] = 0;
    for (uint64_t n = 1 + rng_below(rng, 6); n > 0; n--) {
        /* three in four in the fixed areas and the first chunk's words and descriptors */
        uint64_t at = rng_below(rng, 4) ? 4096 + rng_below(rng, 400000) : rng_below(rng, image_size);
        changed[at] = rng_below(rng, 2) ? (uint8_t)rng_next(rng) : changed[at] ^ (uint8_t)(1u << rng_below(rng, 8));
        used += (size_t)snprintf(places + used, size - used, " %#llx=%02x", (unsigned long long)at, changed[at]);
    }
}

static void work_on(shmalloc_heap *heap, struct rng *rng)
{
    shmalloc_ref outside[SLOTS] = {0}, table, *inside = NULL;
    if (shmalloc_root_get(heap, "table", 0, &table) == 0)
        inside = shmalloc_ptr_range(heap, table, sizeof(outside));
    for (int i = 0; i < 500; i++) {
        shmalloc_ref *ref = (inside && rng_below(rng, 2) ? inside : outside) + rng_below(rng, SLOTS);
        size_t size = 1 + rng_log_uniform(rng, rng_below(rng, 20) ? 12 : 19);
        switch (rng_below(rng, 8)) {
        case 0:
        case 1:
        case 2:
            if (*ref == 0)
                shmalloc_alloc(heap, size, ref);
            break;
        case 3:
            shmalloc_free(heap, ref);
            break;
        case 4:
            shmalloc_realloc(heap, ref, size);
            break;
        case 5:
            if (*ref == 0)
                shmalloc_alloc_tagged(heap, size, 7, ref);
            break;
        case 6:
            shmalloc_root_set(heap, "one more", 0, size);
            shmalloc_root_remove(heap, "one more");
            break;
        default:
            if (rng_below(rng, 10) == 0)
                shmalloc_trim(heap);
        }
    }
}

static int open_and_work(void *arg)
{
    struct rng rng = rng_from(*(uint64_t *)arg);
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = SHMALLOC_ACCEPT_UNCLEAN;
    shmalloc_heap *heap;
    alarm(PATIENCE_S);
    if (shmalloc_open(f.path, &options, &heap) < 0)
        return 1;
    work_on(heap, &rng);
    int sick = shmalloc_check(heap) < 0;
    shmalloc_stats stats = {.struct_size = sizeof(stats)};
    (void)shmalloc_get_stats(heap, &stats);
    shmalloc_close(heap);
    return sick ? 2 : 0;
}

int main(int argc, char **argv)
{
    unsigned files = 1000, seconds = 20, ends[3] = {0};
    for (int option; (option = getopt(argc, argv, "n:s:")) != -1;) {
        must(option == 'n' || option == 's', "usage: damage [-n files] [-s seconds]");
        *(option == 'n' ? &files : &seconds) = (unsigned)atoi(optarg);
    }
    struct rng rng = rng_from(test_seed());
    uint64_t end = now_ns() + seconds * 1000000000ull;
    fixture_begin_heap(&f, 0);
    make_image(&rng);
    unsigned done = 0;
    for (; done < files && now_ns() < end; done++) {
        char places[256];
        uint64_t seed = rng_next(&rng);
        change(&rng, places, sizeof(places));
        int fd = open(f.path, O_RDWR | O_CREAT | O_TRUNC, 0600);
        must(fd >= 0 && write(fd, changed, image_size) == (ssize_t)image_size, "cannot write the image");
        close(fd);
        int status = run_child(open_and_work, &seed);
        must(status >= 0, "file %u: ended by signal %d after%s", done, -status, places);
        must(status < 3, "file %u: status %d", done, status);
        ends[status]++;
    }
    printf("%u damaged heaps: %u refused, %u found damaged later, %u without a trace\n", done, ends[1], ends[2],
           ends[0]);
    free(sound);
    free(changed);
    fixture_end(&f);
    return 0;
}
