/* SPDX-License-Identifier: MIT */
/* map_damage.h - a small map in a private heap, all words that it consists of, and calls that must
 * bear whatever they hold. */
#ifndef TEST_MAP_DAMAGE_H
#define TEST_MAP_DAMAGE_H

#include <shmalloc/map.h>

enum {
    MAP_DAMAGE_KEYS = 90,
    MAP_DAMAGE_WORDS = 8000
};

struct map_damage {
    shmalloc_heap *heap;
    shmalloc_map map;
    uint64_t *word[MAP_DAMAGE_WORDS];
    unsigned words; /* of the header, stripes, arrays of segments, buckets and entries */
};

/* `transaction`: some entries are pending, and say that a transaction has them that is over. */
void map_damage_begin(struct map_damage *d, int transaction);
/* Every call, with keys that are there and others. Each must come back, with a result or a code
 * that damage may have. */
void map_damage_use(struct map_damage *d);
void map_damage_end(struct map_damage *d);

#endif
