/* SPDX-License-Identifier: MIT */
/*
 * map.h - what the files of the map share: an open map, the stripe of a key, the lock of a stripe.
 */
#ifndef SMI_MAP_H
#define SMI_MAP_H

#include <shmalloc/map.h>

#include "structures/map_hash.h"
#include "structures/map_stripe.h"
#include "structures/structures.h"

/* What shmalloc_map.opaque holds: copies of what never changes while the map lives. */
enum {
    SMI_MAP_LIFE,
    SMI_MAP_TABLE,
    SMI_MAP_MASK,
    SMI_MAP_SEED0,
    SMI_MAP_SEED1
};

static inline uint64_t smi_map_hash_of(const shmalloc_map *map, const void *key, size_t klen)
{
    return smi_map_hash(&map->opaque[SMI_MAP_SEED0], key, klen);
}

/* The stripe that a hash leads to. Opening the map has looked at the bounds of the table. */
static inline struct smf_stripe *smi_map_stripe(const shmalloc_map *map, uint64_t hash)
{
    struct smf_stripe *table = smi_at(map->heap, map->opaque[SMI_MAP_TABLE]);
    return &table[hash & map->opaque[SMI_MAP_MASK]];
}

/* A call on a map begins; until it ends, no part of the map is freed. NULL and *rc: it cannot. */
struct smi_thread *smi_map_enter(const shmalloc_map *map, int *rc);

/* 0, or -EINVAL, -ENAMETOOLONG. */
int smi_map_check_key(const shmalloc_map *map, const void *key, size_t klen);

/* Lock a stripe for a change, or for a look that must not be ousted, and mend what a dead owner
 * left. In a transaction the lock stays with it. Not to be cancelled. */
int smi_map_lock(const shmalloc_map *map, struct smi_thread *t, uint64_t hash,
                 struct smi_stripe *out);
void smi_map_unlock(const struct smi_stripe *m);

#endif
