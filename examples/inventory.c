/* SPDX-License-Identifier: MIT */
/*
 * inventory.c - what is in a heap: named roots, and blocks by the type tag they were made with.
 *
 *     inventory HEAP fill    make some blocks of three types
 *     inventory HEAP         list the roots, and add up blocks and bytes of each tag
 */
#include <shmalloc/shmalloc.h>

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum tag { TAG_NONE, TAG_CITY, TAG_ROAD, TAG_COUNT };

static const char *const tag_names[TAG_COUNT] = {"untagged", "city", "road"};

struct sums {
    uint64_t blocks[TAG_COUNT], bytes[TAG_COUNT];
};

static int fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, shmalloc_errmsg());
    return 1;
}

/* A root for each type, naming an array that owns blocks of that type. */
static int fill(shmalloc_heap *heap, const char *name, uint16_t tag, size_t size, size_t count)
{
    shmalloc_ref ref;
    int rc = shmalloc_root_get_or_create(heap, name, tag, count * sizeof(shmalloc_ref), NULL, NULL,
                                         &ref);
    if (rc < 0)
        return rc;
    shmalloc_ref *owned = shmalloc_ptr(heap, ref);
    for (size_t i = 0; i < count; i++)
        if (!owned[i] && (rc = shmalloc_ref_alloc_tagged(heap, size, tag, &owned[i])) < 0)
            return rc;
    return 0;
}

static int print_root(const shmalloc_root *root, void *arg)
{
    (void)arg;
    printf("root %s, type %" PRIu64 "\n", root->name, root->type);
    return 0;
}

static int add_block(const shmalloc_block *block, void *arg)
{
    struct sums *sums = arg;
    unsigned tag = block->tag < TAG_COUNT ? block->tag : TAG_NONE;
    sums->blocks[tag]++;
    sums->bytes[tag] += block->size;
    return 0;
}

static int list(shmalloc_heap *heap)
{
    struct sums sums = {{0}, {0}};
    if (shmalloc_root_each(heap, print_root, NULL) < 0)
        return fail("roots");
    if (shmalloc_each_block(heap, add_block, &sums) < 0)
        return fail("blocks");
    for (unsigned tag = 0; tag < TAG_COUNT; tag++)
        printf("%s: %" PRIu64 " blocks, %" PRIu64 " bytes\n", tag_names[tag], sums.blocks[tag],
               sums.bytes[tag]);
    return 0;
}

int main(int argc, char **argv)
{
    int fills = argc == 3 && strcmp(argv[2], "fill") == 0;
    if (argc != 2 && !fills)
        return fputs("usage: inventory HEAP [fill]\n", stderr), 2;
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = fills ? SHMALLOC_CREATE : SHMALLOC_READ_ONLY;
    shmalloc_heap *heap;
    if (shmalloc_open(argv[1], &options, &heap) < 0)
        return fail("open");
    int failed = 0;
    if (!fills)
        failed = list(heap);
    else if (fill(heap, "cities", TAG_CITY, 32, 10) < 0 ||
             fill(heap, "roads", TAG_ROAD, 48, 25) < 0)
        failed = fail("fill");
    return shmalloc_close(heap) < 0 ? fail("close") : failed;
}
