/* SPDX-License-Identifier: MIT */
/*
 * support.c - directories, heaps, children, random numbers, patterns and end-of-test questions.
 *
 * Owns nothing but the seed of the run. Children are reaped by those who started them; a directory
 * left behind means that its test died.
 */
#include "support.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* ---- failing --------------------------------------------------------------------------------- */

_Noreturn void test_fail(const char *file, int line, const char *format, ...)
{
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    fprintf(stderr, "%s:%d: [%d] %s\n", file, line, (int)getpid(), text);
    fflush(stderr);
    /* No core dump: with a mapped heap it would take long and keep the dead alive for its
     * neighbours. */
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
    abort();
}

void test_code(int got, int wanted, const char *what, const char *file, int line)
{
    if (got != wanted)
        test_fail(file, line, "%s: got %d (%s: %s), expected %d (%s)", what, got,
                  shmalloc_strerror(got), got < 0 ? shmalloc_errmsg() : "", wanted,
                  shmalloc_strerror(wanted));
}

/* ---- places ---------------------------------------------------------------------------------- */

void fixture_begin(struct fixture *f)
{
    const char *base = getenv("SHMALLOC_TEST_DIR");
    if (!base)
        base = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    memset(f, 0, sizeof(*f));
    int len = snprintf(f->dir, sizeof(f->dir), "%s/shmalloc-test-XXXXXX", base);
    must(len < (int)sizeof(f->dir), "SHMALLOC_TEST_DIR is too long");
    must(mkdtemp(f->dir), "mkdtemp %s: %s", f->dir, strerror(errno));
    snprintf(f->path, sizeof(f->path), "%s/heap", f->dir);
}

void fixture_begin_heap(struct fixture *f, unsigned flags)
{
    fixture_begin(f);
    f->heap = heap_create(f->path, flags);
}

void fixture_reopen(struct fixture *f)
{
    must_work(shmalloc_close(f->heap));
    f->heap = heap_open(f->path);
}

shmalloc_heap *fixture_join(struct fixture *f)
{
    must_work(shmalloc_close(f->heap)); /* the last handle of this process, which never attached */
    return f->heap = heap_open(f->path);
}

void fixture_end(struct fixture *f)
{
    if (f->heap)
        must_work(shmalloc_close(f->heap));
    f->heap = NULL;
    DIR *dir = opendir(f->dir);
    must(dir, "opendir %s: %s", f->dir, strerror(errno));
    for (struct dirent *entry; (entry = readdir(dir));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            unlinkat(dirfd(dir), entry->d_name, 0);
    closedir(dir);
    must(rmdir(f->dir) == 0, "rmdir %s: %s", f->dir, strerror(errno));
}

const char *fixture_path(const struct fixture *f, const char *name)
{
    static char paths[4][256];
    static unsigned next;
    char *path = paths[next++ % 4];
    int len = snprintf(path, sizeof(paths[0]), "%s/%s", f->dir, name);
    must(len < (int)sizeof(paths[0]), "%s is too long", name);
    return path;
}

shmalloc_heap *heap_create(const char *path, unsigned flags)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = SHMALLOC_CREATE | flags;
    shmalloc_heap *heap = NULL;
    must_work(shmalloc_open(path, &options, &heap));
    return heap;
}

shmalloc_heap *heap_open(const char *path)
{
    shmalloc_heap *heap = NULL;
    must_work(shmalloc_open(path, NULL, &heap));
    return heap;
}

/* ---- processes ------------------------------------------------------------------------------- */

void die_with_parent(pid_t parent)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent && getppid() != 0) /* 0: it is outside of our PID namespace */
        _exit(1);                              /* it was gone before we asked */
}

pid_t start_child(worker_fn *fn, void *arg)
{
    fflush(NULL); /* else the child could write the parent's text once more */
    pid_t parent = getpid(), pid = fork();
    must(pid >= 0, "fork: %s", strerror(errno));
    if (pid == 0) {
        die_with_parent(parent);
        _exit(fn(arg));
    }
    return pid;
}

int wait_child(pid_t pid)
{
    int status = 0;
    pid_t got;
    while ((got = waitpid(pid, &status, 0)) < 0 && errno == EINTR)
        ;
    must(got == pid, "waitpid %d: %s", (int)pid, strerror(errno));
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

int wait_child_within(pid_t pid, unsigned milliseconds)
{
    uint64_t deadline = now_ns() + milliseconds * 1000000ull;
    siginfo_t info;
    do {
        info.si_pid = 0;
        must(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0, "waitid: %s",
             strerror(errno));
        if (info.si_pid == pid)
            return wait_child(pid);
        nanosleep(&(struct timespec){0, 200000}, NULL);
    } while (now_ns() < deadline);
    kill_child(pid);
    test_fail(__FILE__, __LINE__, "child %d did not end within %u ms", (int)pid, milliseconds);
}

int run_child(worker_fn *fn, void *arg)
{
    return wait_child(start_child(fn, arg));
}

void kill_child(pid_t pid)
{
    kill(pid, SIGKILL);
    wait_child(pid);
}

void *shared_memory(size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    must(memory != MAP_FAILED, "mmap: %s", strerror(errno));
    return memory;
}

void await_word(const uint32_t *word, uint32_t value)
{
    const struct timespec second = {1, 0};
    uint64_t deadline = now_ns() + 20000000000ull;
    for (uint32_t now; (now = __atomic_load_n(word, __ATOMIC_ACQUIRE)) < value;) {
        syscall(SYS_futex, word, FUTEX_WAIT, now, &second, NULL, 0);
        must(now_ns() < deadline, "waited 20 s for another process or thread");
    }
}

void signal_word(uint32_t *word)
{
    __atomic_fetch_add(word, 1, __ATOMIC_RELEASE);
    syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* ---- time and chance ------------------------------------------------------------------------- */

uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

uint64_t test_seed(void)
{
    static uint64_t seed;
    if (seed)
        return seed;
    const char *given = getenv("SHMALLOC_TEST_SEED");
    if (given)
        seed = strtoull(given, NULL, 0);
    else if (getrandom(&seed, sizeof(seed), 0) != sizeof(seed))
        seed = now_ns();
    seed += !seed;
    fprintf(stderr, "seed: SHMALLOC_TEST_SEED=%llu\n", (unsigned long long)seed);
    return seed;
}

/* The finalizer of splitmix64: a bijection that leaves no trace of the input's structure. */
static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

struct rng rng_from(uint64_t seed)
{
    return (struct rng){mix(seed)};
}

uint64_t rng_next(struct rng *rng)
{
    rng->state += 0x9e3779b97f4a7c15ull;
    return mix(rng->state);
}

uint64_t rng_below(struct rng *rng, uint64_t bound)
{
    return rng_next(rng) % bound; /* the bias of small bounds does not matter to a test */
}

uint64_t rng_log_uniform(struct rng *rng, unsigned bits)
{
    return rng_next(rng) >> (63 - rng_below(rng, bits)) >> 1;
}

void rng_shuffle(struct rng *rng, uint64_t *items, size_t count)
{
    for (size_t i = count; i > 1; i--) {
        size_t j = rng_below(rng, i);
        uint64_t other = items[j];
        items[j] = items[i - 1];
        items[i - 1] = other;
    }
}

/* ---- patterns -------------------------------------------------------------------------------- */

static uint64_t pattern_word(uint64_t stamp, size_t word)
{
    return (stamp + word + 1) * 0x9e3779b97f4a7c15ull ^ stamp >> 32;
}

static uint8_t pattern_byte(uint64_t stamp, size_t at)
{
    return (uint8_t)(pattern_word(stamp, at / 8) >> (at % 8 * 8));
}

void pattern_fill(void *block, size_t from, size_t to, uint64_t stamp)
{
    uint8_t *bytes = block;
    for (; from < to && from % 8; from++)
        bytes[from] = pattern_byte(stamp, from);
    for (; from + 8 <= to; from += 8) {
        uint64_t word = pattern_word(stamp, from / 8);
        memcpy(bytes + from, &word, 8);
    }
    for (; from < to; from++)
        bytes[from] = pattern_byte(stamp, from);
}

size_t pattern_check(const void *block, size_t len, uint64_t stamp)
{
    const uint8_t *bytes = block;
    size_t at = 0;
    for (; at + 8 <= len; at += 8) {
        uint64_t word;
        memcpy(&word, bytes + at, 8);
        if (word != pattern_word(stamp, at / 8))
            break;
    }
    while (at < len && bytes[at] == pattern_byte(stamp, at))
        at++;
    return at;
}

int all_zero(const void *block, size_t len)
{
    const uint8_t *bytes = block;
    return len == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, len - 1) == 0);
}

/* ---- the end of a test ----------------------------------------------------------------------- */

shmalloc_stats heap_stats(const shmalloc_heap *heap)
{
    shmalloc_stats stats = SHMALLOC_STATS_INIT;
    must_work(shmalloc_get_stats(heap, &stats));
    return stats;
}

struct usage usage_now(shmalloc_heap *heap)
{
    int64_t given = shmalloc_trim(heap);
    must(given >= 0, "trim: %s", shmalloc_errmsg());
    shmalloc_stats stats = heap_stats(heap);
    return (struct usage){
        .allocated = stats.allocated,
        .blocks = stats.allocated_blocks,
        .chunks = stats.chunks,
        .held = stats.file_size - stats.metadata - stats.free_pages,
        .free_slots = stats.central_free + stats.cached,
    };
}

void must_be_sound(const shmalloc_heap *heap)
{
    must_work(shmalloc_check(heap));
}

void must_be_as_before(shmalloc_heap *heap, const struct usage *before)
{
    must_be_sound(heap);
    struct usage now = usage_now(heap);
    must(now.allocated == before->allocated && now.blocks == before->blocks,
         "%llu bytes in %llu blocks are allocated, there were %llu in %llu",
         (unsigned long long)now.allocated, (unsigned long long)now.blocks,
         (unsigned long long)before->allocated, (unsigned long long)before->blocks);
    /* A chunk loses less than a page to rounding; a slab or large block that was lost holds one at
     * least. */
    uint64_t rounding = now.chunks > before->chunks ? (now.chunks - before->chunks) * 8192 : 1;
    must(now.held < before->held + rounding,
         "%llu bytes are in neither metadata nor free runs, there were %llu; %llu chunks, there "
         "were %llu",
         (unsigned long long)now.held, (unsigned long long)before->held,
         (unsigned long long)now.chunks, (unsigned long long)before->chunks);
    must(now.allocated != 0 || now.free_slots == 0,
         "an empty heap holds %llu bytes of slots after trim", (unsigned long long)now.free_slots);
    must_be_sound(heap);
}

struct block_list {
    shmalloc_block *blocks;
    size_t count, room;
};

static int add_block(const shmalloc_block *block, void *arg)
{
    struct block_list *list = arg;
    if (list->count == list->room) {
        list->room = list->room ? list->room * 2 : 1024;
        list->blocks = realloc(list->blocks, list->room * sizeof(*list->blocks));
        must(list->blocks, "out of memory");
    }
    must(list->count == 0 || list->blocks[list->count - 1].ref < block->ref,
         "each_block is not ascending at %#llx", (unsigned long long)block->ref);
    list->blocks[list->count++] = *block;
    return 0;
}

size_t all_blocks(const shmalloc_heap *heap, shmalloc_block **out)
{
    struct block_list list = {0};
    must_work(shmalloc_each_block(heap, add_block, &list));
    *out = list.blocks;
    return list.count;
}
