/* SPDX-License-Identifier: MIT */
/*
 * header_crashtest.c - the kit's header alone, before and without any other, twice, in C and in
 * C++.
 */
#include <shmalloc/crashtest.h>
#include <shmalloc/crashtest.h>

static int operation(shmalloc_heap *heap, void *arg)
{
    shmalloc_crashtest_print("%s\n", (const char *)arg);
    shmalloc_crashtest_reached(0);
    return heap ? 0 : shmalloc_crashtest_fail("%d", 1);
}

/* Mentions what is more than a declaration: initialiser, callback type, modes. */
int use_header(int argc, char **argv);
int use_header(int argc, char **argv)
{
    shmalloc_crashtest test = SHMALLOC_CRASHTEST_INIT;
    shmalloc_crashtest_fn *callback = operation;
    test.operation = callback;
    test.leaks = SHMALLOC_CRASHTEST_ANY;
    test.modes = SHMALLOC_CRASHTEST_DEAD | SHMALLOC_CRASHTEST_SURVIVOR | SHMALLOC_CRASHTEST_RANDOM;
    return shmalloc_crashtest_run(&test) + shmalloc_crashtest_main(argc, argv, &test);
}
