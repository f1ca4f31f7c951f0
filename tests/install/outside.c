/* SPDX-License-Identifier: MIT */
/*
 * outside.c - the least that a user's program does: makes a heap unless it is there, closes it,
 * finds its data again.
 */
#include <shmalloc/shmalloc.h>

#include <stdio.h>

static int fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, shmalloc_errmsg());
    return 1;
}

int main(int argc, char **argv)
{
    if (argc != 2)
        return fprintf(stderr, "usage: outside HEAP\n"), 1;
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = SHMALLOC_CREATE;
    shmalloc_heap *heap;
    shmalloc_ref ref;
    if (shmalloc_open(argv[1], &options, &heap) < 0 || shmalloc_ref_dup(heap, "hello", 6, &ref) < 0)
        return fail("create");
    if (shmalloc_root_set(heap, "greeting", 0, ref) < 0 || shmalloc_close(heap) < 0)
        return fail("close");

    if (shmalloc_open(argv[1], NULL, &heap) < 0 ||
        shmalloc_root_get(heap, "greeting", 0, &ref) < 0)
        return fail("open again");
    puts(shmalloc_ptr(heap, ref));
    return shmalloc_close(heap) < 0 ? fail("close again") : 0;
}
