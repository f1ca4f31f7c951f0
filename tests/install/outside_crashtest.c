/* SPDX-License-Identifier: MIT */
/*
 * outside_crashtest.c - the least that a test with the kit is: one store, which no death can tear.
 */
#include <shmalloc/crashtest.h>

static uint64_t *number(shmalloc_heap *heap)
{
    shmalloc_ref ref;
    int rc = shmalloc_root_get_or_create(heap, "number", 0, sizeof(uint64_t), NULL, NULL, &ref);
    return rc < 0 ? NULL : (uint64_t *)shmalloc_ptr(heap, ref);
}

static int setup(shmalloc_heap *heap, void *arg)
{
    (void)arg;
    return number(heap) ? 0 : -1;
}

static int operation(shmalloc_heap *heap, void *arg)
{
    (void)arg;
    *number(heap) = 42;
    return 0;
}

static int describe(shmalloc_heap *heap, void *arg)
{
    (void)arg;
    shmalloc_crashtest_print("%d\n", (int)*number(heap));
    return 0;
}

int main(int argc, char **argv)
{
    shmalloc_crashtest test = SHMALLOC_CRASHTEST_INIT;
    test.setup = setup;
    test.operation = operation;
    test.describe = describe;
    return shmalloc_crashtest_main(argc, argv, &test);
}
