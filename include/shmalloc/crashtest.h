/* SPDX-License-Identifier: MIT */
/**
 * @file crashtest.h - is your own data structure in a shmalloc heap safe against death at any
 * instruction?
 *
 * A test names a state to begin with and an operation; the kit kills the operation at every
 * instruction that changes the heap, and looks at what is left. Link with `pkg-config --libs
 * shmalloc-crashtest`.
 *
 * @code
 *   #include <shmalloc/crashtest.h>
 *   #include "list.h" // the structure under test
 *
 *   static int setup(shmalloc_heap *heap, void *arg)
 *   {
 *       return list_push(heap, 1) < 0 || list_push(heap, 2) < 0;
 *   }
 *
 *   static int operation(shmalloc_heap *heap, void *arg)
 *   {
 *       return list_push(heap, 3);
 *   }
 *
 *   static int describe(shmalloc_heap *heap, void *arg)
 *   {
 *       for (struct node *node = list_first(heap); node; node = list_next(heap, node)) {
 *           shmalloc_crashtest_print("%d\n", node->value);
 *           shmalloc_crashtest_reached(shmalloc_ref_of(heap, node));
 *       }
 *       return 0;
 *   }
 *
 *   int main(int argc, char **argv)
 *   {
 *       shmalloc_crashtest test = SHMALLOC_CRASHTEST_INIT;
 *       test.setup = setup;
 *       test.operation = operation;
 *       test.recover = list_recover; // what the program does when it opens the heap after a death
 *       test.describe = describe;
 *       return shmalloc_crashtest_main(argc, argv, &test);
 *   }
 * @endcode
 *
 * What is found: a heap that cannot be opened or fails shmalloc_check(); what your verify() says; a
 * description that is neither that of the state before nor of the one after, or is the one before
 * again although the operation was seen to be done; blocks that nothing refers to; refs that lead
 * to no block; and who hangs or is ended by a signal meanwhile. Each fault is reported with the
 * instruction, its source line, the difference, a copy of the heap as it was left, and the command
 * that does exactly this once more.
 *
 * Callbacks run in processes that are forked from the caller: what they do to variables is not seen
 * by the others, and the caller's state at the call is where each process begins. The caller should
 * have one thread. Unlike the heap's library, this one prints: it is for tests.
 *
 * Needed: ptrace, for the first two modes (on x86-64; aarch64 is stepped the same way, on
 * processors with atomic instructions, but is not among the machines that the project is tested
 * on); addr2line of binutils, for source lines. Power loss is not simulated.
 */
#ifndef SHMALLOC_CRASHTEST_H
#define SHMALLOC_CRASHTEST_H

#include <stdio.h>

#include <shmalloc/shmalloc.h>

#ifdef __cplusplus
extern "C" {
#endif

/** Who dies when, for shmalloc_crashtest.modes. */
enum shmalloc_crashtest_mode {
    SHMALLOC_CRASHTEST_DEAD = 1,     /**< everybody, after each instruction that changed the heap:
                                          the next to open it is the first to attach */
    SHMALLOC_CRASHTEST_SURVIVOR = 2, /**< the process that runs the operation, by a real SIGKILL
                                          after each such instruction; another, attached before,
                                          goes on */
    SHMALLOC_CRASHTEST_RANDOM = 4,   /**< one of several that repeat the operation, by a real
                                          SIGKILL at a random time; another takes its place. Needs
                                          no ptrace. The callbacks must be right for several
                                          processes at once: use a shmalloc_mutex */
};

/** For shmalloc_crashtest.leaks: any number. */
#define SHMALLOC_CRASHTEST_ANY UINT64_MAX

/** A callback: 0, or another value when something is wrong; call shmalloc_crashtest_fail() to say
 * what. */
typedef int shmalloc_crashtest_fn(shmalloc_heap *heap, void *arg);

/** A test. Start from SHMALLOC_CRASHTEST_INIT; only `operation` must be given, 0 and NULL stand for
 * the
 *  default. */
typedef struct shmalloc_crashtest {
    size_t struct_size;               /**< sizeof(shmalloc_crashtest) as the program knows it */
    const char *name;                 /**< in the report and of kept files; the program's name */
    shmalloc_crashtest_fn *setup;     /**< makes the state before, in an empty heap */
    shmalloc_crashtest_fn *operation; /**< is killed. By one thread, and the same in every run; in
                                           random mode repeated */
    shmalloc_crashtest_fn *recover;   /**< what the program does after it has opened the heap or
                                           found an owner dead: takes its locks, repairs */
    shmalloc_crashtest_fn *verify;    /**< is the structure sound? */
    shmalloc_crashtest_fn *describe;  /**< its contents, by shmalloc_crashtest_print() and
                                           _reached(). Equal states must have equal texts */
    shmalloc_crashtest_fn *proceed;   /**< uses the structure further; it is verified again. In
                                           random mode called after each operation: let it take away
                                           what the operation added */
    void *arg;                        /**< for all of them */
    unsigned modes;                   /**< enum shmalloc_crashtest_mode, or-ed; dead and survivor */
    int between;                      /**< not 0: states between before and after are allowed: a
                                           description whose lines are all in one of the two, with
                                           all that are in both */
    uint64_t leaks;                   /**< unreferenced blocks that a death may leave; none */
    const shmalloc_options *options;  /**< of the heap; one arena and at most 64 MiB */
    const char *dir;                  /**< folder of the heaps under test; /dev/shm, else $TMPDIR,
                                           else /tmp */
    const char *keep;                 /**< folder of images that show a fault; the current one */
    uint64_t max_steps;               /**< instructions of the operation; 2,000,000 */
    unsigned timeout;                 /**< seconds that a callback may take; 10 */
    unsigned seconds;                 /**< that the modes survivor and random may take, each; 10 */
    unsigned kills;                   /**< that they may make, each; 200 */
    unsigned workers;                 /**< processes in random mode; 4 */
    uint64_t seed;                    /**< of random mode; a fresh one, printed */
    uint64_t step;                    /**< examine this instruction only, as a report names it;
                                           all */
    FILE *report;                     /**< where it goes; stdout */
} shmalloc_crashtest;

#define SHMALLOC_CRASHTEST_INIT                                                                    \
    { sizeof(shmalloc_crashtest), NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0, 0, 0, NULL,   \
      NULL, NULL, 0, 0, 0, 0, 0, 0, 0, NULL }

/**
 * Run a test in all its modes and report.
 *
 * @return 0: nothing was found; 1: at least one fault, all of them reported; or a negative code,
 *         said in the report, when it could not be told:
 *   -EINVAL      no operation, or a number out of range
 *   -EPERM       ptrace is refused: by a container, by /proc/sys/kernel/yama/ptrace_scope, or
 *                because the caller is traced itself
 *   -ENOTSUP     modes that step, on another processor than x86-64 and aarch64
 *   -ECANCELED   the test itself went wrong: setup() failed, the operation did something else in
 *                another run, or the heap takes more than 256 MiB
 *   others       from the system
 *
 * Threads:   call it from a process with one thread.
 * Cost:      some 10 us for each instruction and some 5 ms for each that changes the heap; for a
 *            survivor, the time until that instruction once more for each.
 */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_crashtest_run(const shmalloc_crashtest *test);

/**
 * The same with what the command line changes, and the result as an exit status: 0, 1, or 2 for a
 * negative code. `--help` lists the options: modes, budgets, `--step`. Arguments that are no
 * options are left to the program.
 */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_crashtest_main(int argc, char **argv, const shmalloc_crashtest *test);

/* ---- for callbacks --------------------------------------------------------------------------- */

/** Say what is wrong, once. @return -1, to be returned by the callback. */
SHMALLOC_API int shmalloc_crashtest_fail(const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 1, 2)))
#endif
    ;

/** In describe(): add to the description. Lines that end with a newline are compared as lines. At
 * most 256 KiB;
 *  what is more ends the process, for a cycle is likely. */
SHMALLOC_API void shmalloc_crashtest_print(const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 1, 2)))
#endif
    ;

/**
 * In describe(): the structure refers to the block `ref`, 0 being none. Blocks that roots name are
 * reached by themselves. Once a description of the state before or after has called this, all
 * allocated blocks must be reached, but for shmalloc_crashtest.leaks of them; what is no block is a
 * fault at any time.
 */
SHMALLOC_API void shmalloc_crashtest_reached(shmalloc_ref ref);

#ifdef __cplusplus
}
#endif

#endif
