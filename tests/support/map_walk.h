/* SPDX-License-Identifier: MIT */
/* map_walk.h - what a map at rest is made of, seen through the mapping; nobody changes it
 * meanwhile. */
#ifndef TEST_MAP_WALK_H
#define TEST_MAP_WALK_H

#include <shmalloc/map.h>

struct map_walk {
    uint64_t entries, buckets, chained, segments;
    uint64_t
        blocks; /* header, table, arrays of segments, segments, chained buckets, entries */
    uint64_t splits; /* stripes with a split under way */
    uint64_t longest; /* chain, buckets */
};

/* Fails the test when a word is in the wrong bucket or has the wrong tag, a key is there twice, an
 * entry is pending, or a stripe's count is wrong. `mended`: nothing may be under way. */
void map_walk(const shmalloc_map *map, int mended, struct map_walk *out);

/* Call `visit` for each block that belongs to it, the header not included, also where something is
 * under way. */
void map_each_block(const shmalloc_map *map, int (*visit)(uint64_t part, void *arg), void *arg);

/* Blocks of the heap that are the program's, structures' included, after what waits in bags was
 * freed. */
uint64_t map_blocks_in_use(shmalloc_heap *heap);

#endif
