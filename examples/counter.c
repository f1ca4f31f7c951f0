/* SPDX-License-Identifier: MIT */
/*
 * counter.c - the shortest useful program: a number that outlives the process that counts.
 *
 * The documentation quotes the program below word for word.
 */
#include <shmalloc/shmalloc.h>
#include <stdio.h>

struct counter { uint64_t runs; };

int main(void)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = SHMALLOC_CREATE;
    shmalloc_heap *heap;
    shmalloc_ref ref;
    if (shmalloc_open("runs.heap", &options, &heap) < 0 ||
        shmalloc_root_get_or_create(heap, "counter", 0, sizeof(struct counter), NULL, NULL,
                                    &ref) < 0)
        return fprintf(stderr, "%s\n", shmalloc_errmsg()), 1;
    struct counter *counter = shmalloc_ptr(heap, ref);
    printf("run %llu\n", (unsigned long long)++counter->runs);
    return shmalloc_close(heap) < 0;
}
