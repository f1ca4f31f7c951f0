/* SPDX-License-Identifier: MIT */
/*
 * faults.c - every system call of the library fails, once in each place where it is made.
 *
 * A scripted life of a heap: create, fill, grow, free with holes, trim, sync, roots, mutex, a
 * thread, a forked child, a second process, one that is killed, close, by descriptor, read-only,
 * recover, destroy. It runs as often as it makes system calls, times the errors that are plausible
 * for each; in each run one call fails (inject.h). What must hold:
 *
 *   - the call of the library answers with an error that names the file, or got by without the
 *     system call;
 *   - after an error nothing has changed, the heap is sound, and the same call then works;
 *   - at the end no descriptor, no mapping and no file is left, and no block more than there should
 *     be.
 *
 * A sync that failed is the exception: it is told until the heap is copied, and by the last close
 * too.
 *
 * Walkers read a heap in hundreds of equal steps: of a row of the same system call that is longer
 * than 32, the middle is tried at every 16th place only, unless --all is given.
 *
 * Usage: faults [--all] [--lasting] [--no-tmpfile] [--at POSITION]
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "inject.h"

enum { SMALL = 300, LARGE = 8, LARGE_SIZE = 300000, ROOM = SMALL + LARGE };

struct life {
    struct injected *injected; /* first: inject_run() sets it */
    const struct fixture *f;
    const char *name; /* that messages have */
    shmalloc_heap *heap;
    int only_creation;
};

/* ---- a call under injection ---- */

/* A sync fails for good; what else fails is over when the call is. */
static int sync_is_lost(const struct life *life)
{
    int number = life->injected->number;
    return number == SYS_fdatasync || number == SYS_msync;
}

/* From here on calls fail, and no message of an earlier failure is left that could pass for
 * theirs. */
static void arm(struct life *life)
{
    must_code(shmalloc_open_fd(-1, NULL, NULL), -EINVAL);
    inject_arm(life->injected);
}

static void must_be_explained(struct life *life, int64_t rc, const char *what)
{
    life->injected->refused++;
    must(life->injected->number >= 0, "%s: %d (%s) although nothing failed", what, (int)rc,
         shmalloc_errmsg());
    must(rc != SHMALLOC_ECORRUPT && rc != SHMALLOC_EPOISONED, "%s: %s", what, shmalloc_errmsg());
    must(strstr(shmalloc_errmsg(), life->name) || strstr(shmalloc_errmsg(), "/proc/self/fd/"),
         "%s: \"%s\" does not name the file", what, shmalloc_errmsg());
    if (life->heap)
        must_be_sound(life->heap);
}

/* `call` works, if not the first time then the second, when nothing fails any more. */
#define step(call)                                                                                 \
    do {                                                                                           \
        arm(life);                                                                                 \
        int64_t rc_ = (call);                                                                      \
        inject_disarm(life->injected);                                                             \
        if (rc_ < 0) {                                                                             \
            must_be_explained(life, rc_, #call);                                                   \
            rc_ = (call);                                                                          \
        }                                                                                          \
        must(rc_ >= 0, "once more, %s: %d (%s)", #call, (int)rc_, shmalloc_errmsg());              \
    } while (0)

/* The same for calls that answer with a sync that was lost, always. */
#define sync_step(call)                                                                            \
    do {                                                                                           \
        arm(life);                                                                                 \
        int64_t rc_ = (call);                                                                      \
        inject_disarm(life->injected);                                                             \
        if (rc_ < 0)                                                                               \
            must_be_explained(life, rc_, #call);                                                   \
        if (rc_ < 0 && !sync_is_lost(life))                                                        \
            rc_ = (call);                                                                          \
        must(rc_ >= 0 || sync_is_lost(life), "once more, %s: %d (%s)", #call, (int)rc_,            \
             shmalloc_errmsg());                                                                   \
    } while (0)

/* The handle is gone, whatever close answers; who got an error comes back and closes again. */
static void close_heap(struct life *life)
{
    shmalloc_heap *heap = life->heap;
    life->heap = NULL;
    arm(life);
    int rc = shmalloc_close(heap);
    inject_disarm(life->injected);
    if (rc == 0)
        return;
    must_be_explained(life, rc, "shmalloc_close");
    rc = shmalloc_close(heap_open(life->f->path));
    must(rc == 0 || sync_is_lost(life), "once more, shmalloc_close: %d (%s)", rc,
         shmalloc_errmsg());
}

static void open_heap(struct life *life, unsigned flags)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = flags;
    shmalloc_heap *heap = NULL;
    step(shmalloc_open(life->f->path, &options, &heap));
    life->heap = heap;
}

/* ---- the life ---- */

static shmalloc_ref *table_of(struct life *life)
{
    shmalloc_ref table = 0;
    step(shmalloc_root_get_or_create(life->heap, "table", 7, ROOM * sizeof(shmalloc_ref), NULL,
                                     NULL, &table));
    return shmalloc_ptr(life->heap, table);
}

static size_t small_size(int i)
{
    return 8 + (size_t)i * 37 % 3000;
}

static void fill(struct life *life, shmalloc_ref *table)
{
    for (int i = 0; i < SMALL; i++) {
        if (i % 50 == 7)
            step(shmalloc_ref_alloc_tagged(life->heap, small_size(i), (uint16_t)i, &table[i]));
        else
            step(shmalloc_ref_alloc(life->heap, small_size(i), &table[i]));
        pattern_fill(shmalloc_ptr(life->heap, table[i]), 0, small_size(i), (uint64_t)i);
    }
    for (int i = 0; i < LARGE; i++) {
        step(shmalloc_ref_alloc(life->heap, LARGE_SIZE, &table[SMALL + i]));
        pattern_fill(shmalloc_ptr(life->heap, table[SMALL + i]), 0, LARGE_SIZE, (uint64_t)i);
    }
}

static void check_contents(struct life *life, const shmalloc_ref *table)
{
    for (int i = 0; i < ROOM; i++) {
        size_t size = i < SMALL ? small_size(i) : LARGE_SIZE;
        if (table[i])
            must(pattern_check(shmalloc_ptr(life->heap, table[i]), size,
                               (uint64_t)(i < SMALL ? i : i - SMALL)) == size,
                 "block %d has changed", i);
    }
}

static void change(struct life *life, shmalloc_ref *table)
{
    step(shmalloc_set_give_back(life->heap, 0, 0)); /* a hole for every large block that goes */
    step(shmalloc_ref_realloc(life->heap, &table[SMALL], 2 * LARGE_SIZE));
    step(shmalloc_ref_realloc(life->heap, &table[SMALL], LARGE_SIZE));
    for (int i = 1; i < LARGE; i += 2)
        step(shmalloc_ref_free(life->heap, &table[SMALL + i]));
    /* a hole gets storage again */
    step(shmalloc_ref_alloc(life->heap, LARGE_SIZE, &table[SMALL + 1]));
    pattern_fill(shmalloc_ptr(life->heap, table[SMALL + 1]), 0, LARGE_SIZE, 1);
    for (int i = 0; i < SMALL; i += 2)
        step(shmalloc_ref_free(life->heap, &table[i]));
    step(shmalloc_trim(life->heap));
    step(shmalloc_set_max_size(life->heap, 2ull << 40));
    check_contents(life, table);
}

static int no_root(const shmalloc_root *root, void *arg)
{
    (void)root;
    (void)arg;
    return 0;
}

static int no_block(const shmalloc_block *block, void *arg)
{
    (void)block;
    (void)arg;
    return 0;
}

static void look_at_roots(struct life *life)
{
    shmalloc_ref ref;
    step(shmalloc_root_get(life->heap, "table", 7, &ref));
    step(shmalloc_root_each(life->heap, no_root, NULL));
}

/* Walkers read the file in many pieces: once is enough. */
static void look_at_all(struct life *life)
{
    shmalloc_stats stats = SHMALLOC_STATS_INIT;
    look_at_roots(life);
    step(shmalloc_get_stats(life->heap, &stats));
    step(shmalloc_each_block(life->heap, no_block, NULL));
    step(shmalloc_check(life->heap));
}

static void use_a_little(struct life *life)
{
    shmalloc_ref ref = 0, large = 0;
    shmalloc_mutex *mutex;
    step(shmalloc_ref_alloc_zeroed(life->heap, sizeof(*mutex), &ref));
    mutex = shmalloc_ptr(life->heap, ref);
    step(shmalloc_mutex_lock(life->heap, mutex));
    step(shmalloc_mutex_unlock(life->heap, mutex));
    step(shmalloc_ref_free(life->heap, &ref));
    step(shmalloc_ref_alloc(life->heap, LARGE_SIZE, &large));
    step(shmalloc_ref_free(life->heap, &large));
}

static void *thread_life(void *arg)
{
    use_a_little(arg);
    return NULL;
}

/* A child that goes on with what it inherited. */
static int forked_life(void *arg)
{
    struct life *life = arg;
    use_a_little(life);
    close_heap(life);
    return 0;
}

/* A process that comes by the path, and is killed while it has blocks cached. */
static int joining_life(void *arg)
{
    struct life *life = arg;
    must_work(shmalloc_close(life->heap)); /* inherited and never used */
    life->heap = NULL;
    open_heap(life, 0);
    use_a_little(life);
    kill(getpid(), SIGKILL);
    return 1;
}

static void by_descriptor(struct life *life)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    shmalloc_heap *heap = NULL;
    int fd = open(life->f->path, O_RDWR | O_CLOEXEC);
    step(shmalloc_open_fd(fd, NULL, &heap));
    close(fd);
    life->heap = heap;
    use_a_little(life);
    close_heap(life);
    options.flags = SHMALLOC_CREATE;
    fd = memfd_create("heap", MFD_CLOEXEC);
    step(shmalloc_open_fd(fd, &options, &heap));
    life->heap = heap;
    use_a_little(life);
    arm(life);
    life->heap = NULL;
    int rc = shmalloc_close(heap);
    inject_disarm(life->injected);
    if (rc < 0)
        must_be_explained(life, rc, "shmalloc_close of a memfd");
    close(fd);
}

static void must_be_accounted(struct life *life, uint64_t blocks)
{
    shmalloc_stats stats = heap_stats(life->heap);
    must(stats.allocated_blocks == blocks, "%llu blocks are allocated, %llu should be",
         (unsigned long long)stats.allocated_blocks, (unsigned long long)blocks);
    must_be_sound(life->heap);
}

static void live(struct life *life)
{
    open_heap(life, SHMALLOC_CREATE);
    if (life->only_creation) {
        close_heap(life);
        step(shmalloc_destroy(life->f->path));
        return;
    }
    shmalloc_ref *table = table_of(life);
    fill(life, table);
    change(life, table);
    look_at_roots(life);
    sync_step(shmalloc_sync(life->heap, 0, 0));
    pthread_t thread;
    must(pthread_create(&thread, NULL, thread_life, life) == 0 && pthread_join(thread, NULL) == 0,
         "a thread");
    must(run_child(forked_life, life) == 0, "the forked child");
    must(run_child(joining_life, life) == -SIGKILL, "the child that joins");
    use_a_little(life);
    must_be_accounted(life, 1 + SMALL / 2 + LARGE / 2 + 1);
    close_heap(life);
    open_heap(life, SHMALLOC_READ_ONLY);
    look_at_all(life);
    close_heap(life);
    sync_step(shmalloc_recover(life->f->path));
    by_descriptor(life);
    open_heap(life, 0);
    table = table_of(life);
    check_contents(life, table);
    for (int i = 0; i < ROOM; i++)
        step(shmalloc_ref_free(life->heap, &table[i]));
    must_be_accounted(life, 1);
    close_heap(life);
    step(shmalloc_destroy(life->f->path));
}

/* ---- nothing is left ---- */

static unsigned descriptors(void)
{
    unsigned count = 0;
    for (int fd = 0; fd < 256; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

/* Address space in use, and mappings of files in the test's directory. */
static uint64_t addresses(const struct life *life, unsigned *of_heap)
{
    char line[512];
    uint64_t sum = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    must(maps, "/proc/self/maps: %s", strerror(errno));
    *of_heap = 0;
    while (fgets(line, sizeof(line), maps)) {
        unsigned long from, to;
        if (sscanf(line, "%lx-%lx", &from, &to) == 2)
            sum += to - from;
        *of_heap += strstr(line, life->f->dir) || strstr(line, "memfd:");
    }
    fclose(maps);
    return sum;
}

static void must_be_empty(const char *dir)
{
    DIR *entries = opendir(dir);
    must(entries, "%s: %s", dir, strerror(errno));
    for (struct dirent *entry; (entry = readdir(entries));)
        must(entry->d_name[0] == '.', "%s/%s was left", dir, entry->d_name);
    closedir(entries);
}

/* A table of the handle takes 8 MiB of addresses, a mapping 1 TiB. Handles that were closed, and
 * what the C library has for threads, are smaller. */
enum { SLACK = 6 << 20 };

static void *warm_up(void *arg)
{
    char *volatile block = malloc(100000);
    free(block);
    return arg;
}

static int run_life(void *arg)
{
    struct life *life = arg;
    pthread_t thread; /* what the C library keeps for a thread stays from here on */
    must(pthread_create(&thread, NULL, warm_up, NULL) == 0 && pthread_join(thread, NULL) == 0,
         "a thread");
    unsigned fds = descriptors(), of_heap;
    uint64_t before = addresses(life, &of_heap), after;
    life->name = "heap";
    live(life);
    must(descriptors() == fds, "%u descriptors are open, %u were", descriptors(), fds);
    after = addresses(life, &of_heap);
    must(of_heap == 0, "%u mappings of heaps are left", of_heap);
    must(after < before + SLACK, "%llu KiB of addresses more",
         (unsigned long long)(after - before) >> 10);
    must_be_empty(life->f->dir);
    return 0;
}

/* ---- all positions ---- */

struct sum {
    unsigned runs, refusals, unnoticed, failures;
    unsigned of[1024]; /* by system call */
};

static int run_one(struct fixture *f, struct life *life, const struct injection *injection,
                   struct injected *injected)
{
    fixture_begin(f);
    int status = inject_run(run_life, life, injection, injected);
    fixture_end(f);
    return status;
}

/* In the middle of a long row of the same call, and not one of those that stand for it? */
static int is_one_of_many(const struct injected *whole, uint32_t position)
{
    uint32_t first = position - 1, last = position - 1;
    while (first > 0 && first < INJECT_SEEN && whole->seen[first - 1] == whole->seen[position - 1])
        first--;
    while (last + 1 < whole->calls && last + 1 < INJECT_SEEN &&
           whole->seen[last + 1] == whole->seen[position - 1])
        last++;
    return position - 1 - first > 8 && last + 1 - position > 8 && last - first > 32 &&
           position % 16 != 0;
}

static void report(const struct sum *sum, uint32_t positions)
{
    for (int number = 0; number < 1024; number++)
        if (sum->of[number])
            printf("  %5u  %s\n", sum->of[number], inject_name(number));
    printf("%u calls, %u failures: %u runs told of it, %u got by without, %u went wrong\n",
           positions, sum->runs, sum->refusals, sum->unnoticed, sum->failures);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"lasting", 0, NULL, 'l'}, {"no-tmpfile", 0, NULL, 't'},
                                            {"at", 1, NULL, 'a'}, {"all", 0, NULL, 'A'}, {0}};
    struct injection injection = {0};
    struct fixture f;
    struct life life = {.f = &f};
    static struct injected whole, injected;
    static struct sum sum;
    uint32_t at = 0;
    int all = 0;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (c == '?')
            return 2;
        injection.lasting |= c == 'l';
        injection.no_tmpfile |= c == 't';
        all |= c == 'A';
        at = c == 'a' ? (uint32_t)strtoul(optarg, NULL, 10) : at;
    }
    life.only_creation = injection.no_tmpfile;
    setvbuf(stdout, NULL, _IOLBF, 0);
    int status = run_one(&f, &life, &injection, &whole);
    if (status == NOT_POSSIBLE)
        return NOT_POSSIBLE;
    must(status == 0, "without a failure: %d", status);
    for (uint32_t position = at ? at : 1; position <= (at ? at : whole.calls); position++) {
        unsigned errors = 1;
        if (!at && !all && is_one_of_many(&whole, position))
            continue;
        for (unsigned choice = 0; choice < errors; choice++) {
            injection.position = position;
            injection.choice = choice;
            status = run_one(&f, &life, &injection, &injected);
            if (injected.number < 0)
                continue; /* this run took another way and was shorter */
            errors = inject_errors(injected.number);
            sum.runs++;
            sum.of[injected.number]++;
            sum.refusals += injected.refused > 0;
            sum.unnoticed += injected.refused == 0;
            sum.failures += status != 0;
            if (status != 0)
                printf("FAILED: position %u, %s answers \"%s\": status %d\n", position,
                       inject_name(injected.number), strerror(injected.error), status);
        }
    }
    report(&sum, whole.calls);
    return sum.failures > 0 || sum.runs == 0;
}
