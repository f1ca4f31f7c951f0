/* SPDX-License-Identifier: MIT */
/*
 * support.h - what every test needs: a private directory, heaps in it, child processes, numbers
 * that can be drawn again, patterns that give a mixed-up block away, and the two questions that end
 * a test: is the heap sound, and is as much free as before?
 *
 * Nothing here depends on a test framework, so the programs under proc/, model/ and stress/ use it
 * as the unit tests do. A failed must() prints where and why and aborts: a framework reports a
 * crashed test, a parent sees SIGABRT, a plain program fails.
 */
#ifndef TEST_SUPPORT_H
#define TEST_SUPPORT_H

#include <stdint.h>
#include <sys/types.h>

#include <shmalloc/shmalloc.h>

/* What is built with AddressSanitizer cannot limit its address space, nor end threads behind its
 * back. */
#if defined(__SANITIZE_ADDRESS__)
#define TEST_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define TEST_ASAN 1
#endif
#endif
#ifndef TEST_ASAN
#define TEST_ASAN 0
#endif

/* ---- failing --------------------------------------------------------------------------------- */

_Noreturn void test_fail(const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Go on only when `condition` holds; the rest is a printf format and its arguments. */
#define must(condition, ...) ((condition) ? (void)0 : test_fail(__FILE__, __LINE__, __VA_ARGS__))

/* `call` returns a code of the library that has to be `code` (0 for success). */
#define must_code(call, code) test_code((call), (code), #call, __FILE__, __LINE__)
void test_code(int got, int wanted, const char *what, const char *file, int line);
#define must_work(call) must_code(call, 0)

/* Any answer of `call` is right, as of a heap that is damaged meanwhile. */
#define may_fail(call) ((void)!(call))

/* ---- places ---------------------------------------------------------------------------------- */

/* A directory of the test's own, below $SHMALLOC_TEST_DIR, else /dev/shm, else /tmp. */
struct fixture {
    char dir[160];
    char path[192];      /* of the heap file */
    shmalloc_heap *heap; /* NULL while none is open; fixture_end() closes it */
};

void fixture_begin(struct fixture *f);                 /* the directory only */
void fixture_begin_heap(struct fixture *f, unsigned flags); /* and a heap made with these flags */
void fixture_reopen(struct fixture *f);                /* close and open */
/* In a forked child: leave the inherited handle alone and come as an unrelated process would. */
shmalloc_heap *fixture_join(struct fixture *f);
void fixture_end(struct fixture *f);                   /* close, remove the directory */
/* Path of another file in the directory; valid until the fourth next call. */
const char *fixture_path(const struct fixture *f, const char *name);

/* Open or create; fails the test when that fails. */
shmalloc_heap *heap_create(const char *path, unsigned flags);
shmalloc_heap *heap_open(const char *path);

/* ---- processes ------------------------------------------------------------------------------- */

typedef int worker_fn(void *arg); /* 0 = pass; runs in a child that leaves through _exit */

/* Children of a test that failed or was stopped must not stay behind. */
void die_with_parent(pid_t parent);
pid_t start_child(worker_fn *fn, void *arg);
/* Exit status of the child, or the negated signal that ended it. */
int wait_child(pid_t pid);
/* The same within `milliseconds`; a child that takes longer is killed and fails the test. */
int wait_child_within(pid_t pid, unsigned milliseconds);
int run_child(worker_fn *fn, void *arg);
/* SIGKILL `pid` and reap it. */
void kill_child(pid_t pid);

/* Zeroed memory that children share with their parent. */
void *shared_memory(size_t size);
/* Sleep until `*word` is at least `value`; at most 20 s. */
void await_word(const uint32_t *word, uint32_t value);
/* Add 1 to a word that somebody awaits. */
void signal_word(uint32_t *word);

/* ---- time and chance ------------------------------------------------------------------------- */

uint64_t now_ns(void); /* CLOCK_MONOTONIC */

/* The seed of this run: $SHMALLOC_TEST_SEED, else fresh; printed to stderr when first asked for. */
uint64_t test_seed(void);

struct rng {
    uint64_t state;
};
struct rng rng_from(uint64_t seed);
uint64_t rng_next(struct rng *rng);
uint64_t rng_below(struct rng *rng, uint64_t bound);      /* 0 .. bound - 1 */
uint64_t rng_log_uniform(struct rng *rng, unsigned bits); /* every magnitude below 2^bits alike */
void rng_shuffle(struct rng *rng, uint64_t *items, size_t count);

/* ---- patterns -------------------------------------------------------------------------------- */

/* Byte i of the pattern of a stamp depends on both, so a block that another one overlaps, or that
 * moved by any distance, shows. A prefix of a pattern is the pattern of the prefix. */
void pattern_fill(void *block, size_t from, size_t to, uint64_t stamp);
/* Index of the first byte below `len` that differs, or `len`. */
size_t pattern_check(const void *block, size_t len, uint64_t stamp);
int all_zero(const void *block, size_t len);

/* ---- the end of a test ----------------------------------------------------------------------- */

/* What is in use, after everything cached here was given back; two of them can be compared. */
struct usage {
    uint64_t allocated;
    uint64_t blocks;
    uint64_t chunks;
    uint64_t held; /* bytes of the file that are neither metadata nor in free runs */
    uint64_t free_slots; /* bytes of free slots in slabs and caches */
};

shmalloc_stats heap_stats(const shmalloc_heap *heap);
/* Trim, then look. No other thread or process may have blocks cached for two of these to be
 * equal. */
struct usage usage_now(shmalloc_heap *heap);
/* The heap is sound and as much is in use as `before`. */
void must_be_as_before(shmalloc_heap *heap, const struct usage *before);
void must_be_sound(const shmalloc_heap *heap);

/* All blocks by each_block, ascending; free() the array. */
size_t all_blocks(const shmalloc_heap *heap, shmalloc_block **out);

#endif
