/* SPDX-License-Identifier: MIT */
/* header_map.c - the header alone gives a caller all it needs, in C11 and in C++. */
#include <shmalloc/map.h>

int uses(shmalloc_heap *heap);

int uses(shmalloc_heap *heap)
{
    shmalloc_map map;
    shmalloc_map_options options = SHMALLOC_MAP_OPTIONS_INIT;
    char value[8];
    options.stripes = 1;
    if (shmalloc_map_open_root(heap, "words", &options, &map) < 0 ||
        shmalloc_map_put(&map, "key", 3, "value", 5) < 0)
        return 1;
    return shmalloc_map_get(&map, "key", 3, value, sizeof(value), NULL) != 1;
}
