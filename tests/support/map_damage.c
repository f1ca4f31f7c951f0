/* SPDX-License-Identifier: MIT */
#include "map_damage.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "map_walk.h"
#include "slots/block.h"
#include "structures/map.h"
#include "support.h"

static size_t key_of(char *key, unsigned i)
{
    return (size_t)sprintf(key, "%u%.*s", i, (int)(i % 11), "abcdefghijk");
}

static void add_words(struct map_damage *d, uint64_t ref, uint64_t bytes)
{
    for (uint64_t at = 0; at < bytes && d->words < MAP_DAMAGE_WORDS; at += 8)
        d->word[d->words++] = (uint64_t *)smi_at(d->heap, ref + at);
}

static int add_block(uint64_t ref, void *arg)
{
    struct map_damage *d = arg;
    uint64_t size = ref ? smi_block_size(d->heap, ref) : 0;
    if (ref != d->map.opaque[SMI_MAP_TABLE])
        add_words(d, ref, size < 2048 ? size : 2048);
    for (uint64_t i = 0; ref == d->map.opaque[SMI_MAP_TABLE] && i <= d->map.opaque[SMI_MAP_MASK];
         i++)
        add_words(d,
                  ref + i * sizeof(struct smf_stripe) +
                      sizeof(struct smf_user_mutex), /* that seems held to who lives */
                  sizeof(struct smf_stripe) - sizeof(struct smf_user_mutex));
    return 0;
}

void map_damage_begin(struct map_damage *d, int transaction)
{
    shmalloc_options heap_options = SHMALLOC_OPTIONS_INIT;
    shmalloc_map_options options = SHMALLOC_MAP_OPTIONS_INIT;
    char key[64] = {0};
    memset(d, 0, sizeof(*d));
    options.stripes = 2;
    heap_options.max_size = 16 << 20;
    heap_options.arenas = 1;
    must_work(shmalloc_open_private(&heap_options, &d->heap));
    must(shmalloc_map_open_root(d->heap, "map", &options, &d->map) == 1, "%s", shmalloc_errmsg());
    struct smf_map *header = smi_at(d->heap, d->map.ref);
    header->seed[0] = 1; /* the same map in each run */
    header->seed[1] = 2;
    must_work(shmalloc_map_open_root(d->heap, "map", NULL, &d->map));
    for (unsigned i = 0; i < MAP_DAMAGE_KEYS; i++)
        must(shmalloc_map_put(&d->map, key, key_of(key, i), key, 8 + i % 30) == 1, "%s",
             shmalloc_errmsg());
    for (unsigned i = 0; transaction && i < 10; i++) {
        struct smi_stripe m = {.heap = d->heap};
        struct smi_place place;
        struct smi_pair pair = {.key = key, .klen = key_of(key, i)};
        pair.hash = smi_map_hash_of(&d->map, key, pair.klen);
        m.s = smi_map_stripe(&d->map, pair.hash);
        must_work(smi_stripe_find(&m, &pair, &place));
        place.entry->meta |= SMF_MAP_PENDING | (i % 2 ? SMF_MAP_ABSENT : 0);
    }
    add_words(d, d->map.ref, sizeof(struct smf_map));
    map_each_block(&d->map, add_block, d);
}

static int visit(const void *key, size_t klen, const void *value, size_t vlen, void *arg)
{
    uint64_t sum = *(uint64_t *)arg;
    for (size_t i = 0; i < klen; i++)
        sum += ((const uint8_t *)key)[i];
    for (size_t i = 0; i < vlen; i++)
        sum += ((const uint8_t *)value)[i];
    *(uint64_t *)arg = sum;
    return 0;
}

static void must_answer(int64_t rc)
{
    static const int codes[] = {SHMALLOC_ECORRUPT,
                                SHMALLOC_EPOISONED,
                                SHMALLOC_EBADREF,
                                SHMALLOC_EDOUBLEFREE,
                                SHMALLOC_EFULL,
                                SHMALLOC_EGONE,
                                SHMALLOC_ETYPE,
                                SHMALLOC_EBUSY,
                                SHMALLOC_ENOTOWNER,
                                -EDEADLK,
                                -EINVAL,
                                -ENOMEM,
                                -ERANGE};
    int known = rc >= 0;
    for (size_t i = 0; i < sizeof(codes) / sizeof(codes[0]); i++)
        known |= rc == codes[i];
    must(known, "%lld: %s", (long long)rc, shmalloc_errmsg());
}

void map_damage_use(struct map_damage *d)
{
    char key[32], value[64] = {0};
    uint64_t sum = 0;
    shmalloc_map again;
    for (unsigned i = 0; i < MAP_DAMAGE_KEYS + 20; i += 3) {
        must_answer(shmalloc_map_get(&d->map, key, key_of(key, i), value, sizeof(value), NULL));
        must_answer(shmalloc_map_put(&d->map, key, key_of(key, i + 1), value, i % 64));
        must_answer(shmalloc_map_remove(&d->map, key, key_of(key, i + 2)));
        must_answer(shmalloc_map_add(&d->map, key, key_of(key, i), 1, NULL));
    }
    must_answer(shmalloc_map_each(&d->map, visit, &sum));
    must_answer(shmalloc_map_count(&d->map));
    must_answer(shmalloc_check(d->heap));
    must_answer(shmalloc_map_open(d->heap, d->map.ref, &again));
    must_answer(shmalloc_map_free_root(d->heap, "map"));
}

void map_damage_end(struct map_damage *d)
{
    must_work(shmalloc_close(d->heap));
}
