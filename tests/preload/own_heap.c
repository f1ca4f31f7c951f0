/* SPDX-License-Identifier: MIT */
/*
 * own_heap.c - a program with a heap of its own: makes one in the file that is named, with a root
 * in it.
 */
#include <stdio.h>

#include <shmalloc/shmalloc.h>

int main(int argc, char **argv)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    shmalloc_heap *heap;
    shmalloc_ref ref;
    options.flags = SHMALLOC_CREATE;
    if (argc != 2 || shmalloc_open(argv[1], &options, &heap) < 0 ||
        shmalloc_root_get_or_create(heap, "data", 0, 100, NULL, NULL, &ref) < 0 ||
        shmalloc_close(heap) < 0)
        return fprintf(stderr, "own_heap: %s\n", shmalloc_errmsg()), 1;
    return 0;
}
