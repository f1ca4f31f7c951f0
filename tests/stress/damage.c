/* SPDX-License-Identifier: MIT */
/*
 * damage.c - heaps with random bytes changed are opened and worked on.
 *
 *   damage [-n files] [-s seconds] [-l]
 *
 * With -l the damage comes while two processes work on the heap: a third writes to its metadata, at
 * random, for as long as they do. Only the words of mutexes are left alone: a lock that seems to be
 * held by a living thread cannot be told from one that is.
 *
 * Each image is a sound heap with one to six bytes changed, mostly in its metadata. Opening it may
 * be refused, the work may end in errors and a poisoned heap; it must not crash and must end. That
 * is all that is asked: an error that no check can see (a bit of a bitmap) hands a block out twice,
 * which only the program could notice.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "format/layout.h"
#include "support.h"

#define SLOTS 512
#define PATIENCE_S 20

static struct fixture f;
static uint8_t *sound, *changed;
static size_t image_size;
static shmalloc_ref table; /* a block of refs */

static void make_image(struct rng *rng)
{
    shmalloc_ref *slots;
    char name[16];
    must_work(shmalloc_root_get_or_create(f.heap, "table", 0, SLOTS * sizeof(*slots), NULL, NULL,
                                          &table) -
              1);
    slots = shmalloc_ptr(f.heap, table);
    for (int i = 0; i < SLOTS; i++) {
        must_work(shmalloc_ref_alloc(f.heap, 1 + rng_log_uniform(rng, 17), &slots[i]));
        if (i % 7 == 0)
            must_work(shmalloc_ref_free(f.heap, &slots[i]));
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
    must(sound && changed && pread(fd, sound, image_size, 0) == (ssize_t)image_size,
         "cannot read the image");
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
        uint64_t at =
            rng_below(rng, 4) ? 4096 + rng_below(rng, 400000) : rng_below(rng, image_size);
        changed[at] = rng_below(rng, 2) ? (uint8_t)rng_next(rng)
                                        : changed[at] ^ (uint8_t)(1u << rng_below(rng, 8));
        used += (size_t)snprintf(places + used, size - used, " %#llx=%02x", (unsigned long long)at,
                                 changed[at]);
    }
}

static void work_on(shmalloc_heap *heap, struct rng *rng)
{
    shmalloc_ref outside[SLOTS] = {0}, root;
    shmalloc_ref *inside = shmalloc_ptr_range(heap, table, sizeof(outside));
    may_fail(shmalloc_root_get(heap, "table", 0, &root)); /* may be damaged: a program would store
                                                             anywhere */
    for (int i = 0; i < 500; i++) {
        shmalloc_ref *ref =
            (inside && rng_below(rng, 2) ? inside : outside) + rng_below(rng, SLOTS);
        size_t size = 1 + rng_log_uniform(rng, rng_below(rng, 20) ? 12 : 19);
        switch (rng_below(rng, 8)) {
        case 0:
        case 1:
        case 2:
            if (*ref == 0)
                may_fail(shmalloc_ref_alloc(heap, size, ref));
            break;
        case 3:
            shmalloc_ref_free(heap, ref);
            break;
        case 4:
            may_fail(shmalloc_ref_realloc(heap, ref, size));
            break;
        case 5:
            if (*ref == 0)
                may_fail(shmalloc_ref_alloc_tagged(heap, size, 7, ref));
            break;
        case 6:
            may_fail(shmalloc_root_set(heap, "one more", 0, size));
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
    shmalloc_stats stats = SHMALLOC_STATS_INIT;
    may_fail(shmalloc_get_stats(heap, &stats));
    shmalloc_close(heap);
    return sick ? 2 : 0;
}

/* ---- a heap at work ------------------------------------------------------------------------- */

#define WORKERS 2
#define ROUND_MS 40

struct live {
    uint32_t ready;       /* workers that have the heap open, and more */
    uint32_t stop;        /* the work of this round is over */
    uint64_t written;     /* words, by the one who writes */
    uint64_t steps;       /* of work_on, all rounds */
    uint64_t seeds[WORKERS + 1];
};
static struct live *live;

static int work_while_damaged(void *arg)
{
    struct rng rng = rng_from(*(uint64_t *)arg);
    shmalloc_heap *heap;
    alarm(PATIENCE_S);
    int rc = shmalloc_open(f.path, NULL, &heap);
    signal_word(&live->ready);
    if (rc < 0)
        return 1;
    while (!__atomic_load_n(&live->stop, __ATOMIC_RELAXED)) {
        work_on(heap, &rng);
        may_fail(shmalloc_check(heap));
        __atomic_fetch_add(&live->steps, 1, __ATOMIC_RELAXED);
    }
    shmalloc_close(heap);
    return 0;
}

/* A word of metadata; of locks one that is not the mutex's. */
static uint64_t metadata_word(struct rng *rng)
{
    const struct smf_header *header = (const struct smf_header *)(const void *)sound;
    const struct smf_areas *areas = &header->areas;
    const struct smf_chunk *chunk =
        (const struct smf_chunk *)(const void *)(sound + areas->directory);
    const struct {
        uint64_t at, size;
    } records[] = {
        {0, sizeof(struct smf_header)},
        {SMF_STATE_OFFSET, sizeof(struct smf_state)},
        {areas->runtime, sizeof(struct smf_runtime)},
        {areas->processes, 4 * sizeof(struct smf_process)},
        {areas->directory, 8 * sizeof(struct smf_chunk)},
        {areas->page_heap, sizeof(struct smf_page_heap)},
        {areas->roots, sizeof(struct smf_roots)},
        {areas->threads, 4 * sizeof(uint64_t)},
        {areas->central, areas->end - areas->central},
        {areas->end, chunk->page_count * sizeof(uint16_t)},
        {areas->end + chunk->page_count * sizeof(uint16_t),
         chunk->page_count * sizeof(struct smf_page)},
        {*(const uint64_t *)(const void *)(sound + areas->threads), SMF_THREAD_PAGES * SMF_PAGE},
        {areas->end, image_size - areas->end}, /* root records, side arrays, bitmap pages; and what
                                                  is the users' */
    };
    const uint64_t kinds = sizeof(records) / sizeof(records[0]), kind = rng_below(rng, kinds + 1);
    if (kind == kinds) /* statistics of a lock */
        return areas->locks + rng_below(rng, header->lock_count) * sizeof(struct smf_lock) +
               offsetof(struct smf_lock, waits) + rng_below(rng, 2) * 8;
    return records[kind].at + rng_below(rng, records[kind].size / 8) * 8;
}

static void write_word(uint8_t *base, struct rng *rng)
{
    uint64_t at = metadata_word(rng), *word = (uint64_t *)(void *)(base + at), value;
    switch (rng_below(rng, 5)) {
    case 0:
        value = *word ^ 1ull << rng_below(rng, 64);
        break;
    case 1:
        value = rng_next(rng);
        break;
    case 2:
        value = rng_below(rng, image_size >> SMF_PAGE_SHIFT)
                << (rng_below(rng, 2) ? SMF_PAGE_SHIFT : 0);
        break;
    case 3:
        value = *(uint64_t *)(void *)(base + metadata_word(rng));
        break;
    default:
        value = *word + rng_below(rng, 5) - 2;
    }
    __atomic_store_n(word, value, __ATOMIC_RELAXED);
    live->written++;
}

/* Heaps that are damaged slowly work on for longer. */
static int write_damage(void *arg)
{
    struct rng rng = rng_from(*(uint64_t *)arg);
    alarm(PATIENCE_S);
    int fd = open(f.path, O_RDWR);
    uint8_t *base = mmap(NULL, image_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    must(base != MAP_FAILED, "mmap");
    await_word(&live->ready, WORKERS);
    for (uint64_t pause = rng_log_uniform(&rng, 13);
         !__atomic_load_n(&live->stop, __ATOMIC_RELAXED);) {
        struct stat st;
        if (fstat(fd, &st) < 0 || (size_t)st.st_size < image_size)
            break; /* shortened: what is behind its end is no damage of ours */
        write_word(base, &rng);
        usleep((useconds_t)pause);
    }
    return 0;
}

static void write_image(const uint8_t *bytes)
{
    unlink(f.path);
    int fd = open(f.path, O_RDWR | O_CREAT | O_EXCL, 0600);
    must(fd >= 0 && write(fd, bytes, image_size) == (ssize_t)image_size, "cannot write the image");
    close(fd);
}

static void damage_live(struct rng *rng, unsigned rounds, uint64_t end)
{
    unsigned round = 0, refused = 0;
    live = shared_memory(sizeof(*live));
    for (; round < rounds && now_ns() < end; round++) {
        pid_t pids[WORKERS + 1];
        write_image(sound);
        live->ready = live->stop = 0;
        for (int i = 0; i <= WORKERS; i++) {
            live->seeds[i] = rng_next(rng);
            pids[i] = start_child(i < WORKERS ? work_while_damaged : write_damage, &live->seeds[i]);
        }
        await_word(&live->ready, WORKERS);
        usleep(ROUND_MS * 1000);
        __atomic_store_n(&live->stop, 1, __ATOMIC_RELAXED);
        for (int i = 0; i <= WORKERS; i++) {
            int status = wait_child(pids[i]);
            must(status >= 0, "round %u: process %d of %d ended by signal %d", round, i,
                 WORKERS + 1, -status);
        }
        uint64_t seed = rng_next(rng);
        int status = run_child(open_and_work, &seed);
        must(status >= 0, "round %u: ended by signal %d when opened again", round, -status);
        refused += status == 1;
    }
    must(live->written > round && live->steps > 0, "%u rounds: %llu words written, %llu steps",
         round, (unsigned long long)live->written, (unsigned long long)live->steps);
    printf("%u rounds, %llu words of live metadata written, %llu steps of work; %u heaps refused "
           "afterwards\n",
           round, (unsigned long long)live->written, (unsigned long long)live->steps, refused);
}

int main(int argc, char **argv)
{
    unsigned files = 1000, seconds = 20, ends[3] = {0};
    int is_live = 0;
    for (int option; (option = getopt(argc, argv, "n:s:l")) != -1;) {
        must(option != '?', "usage: damage [-n files] [-s seconds] [-l]");
        if (option == 'l')
            is_live = 1;
        else
            *(option == 'n' ? &files : &seconds) = (unsigned)atoi(optarg);
    }
    struct rng rng = rng_from(test_seed());
    uint64_t end = now_ns() + seconds * 1000000000ull;
    fixture_begin_heap(&f, 0);
    make_image(&rng);
    unsigned done = 0;
    if (is_live)
        damage_live(&rng, files, end);
    for (; !is_live && done < files && now_ns() < end; done++) {
        char places[256];
        uint64_t seed = rng_next(&rng);
        change(&rng, places, sizeof(places));
        write_image(changed);
        int status = run_child(open_and_work, &seed);
        must(status >= 0, "file %u: ended by signal %d after%s", done, -status, places);
        must(status < 3, "file %u: status %d", done, status);
        ends[status]++;
    }
    if (!is_live)
        printf("%u damaged heaps: %u refused, %u found damaged later, %u without a trace\n", done,
               ends[1], ends[2], ends[0]);
    free(sound);
    free(changed);
    fixture_end(&f);
    return 0;
}
