/* SPDX-License-Identifier: MIT */
#include "map_walk.h"

#include "slots/block.h"
#include "structures/map.h"
#include "support.h"

static void walk_word(const shmalloc_map *map, const struct smf_bucket *first, const uint64_t *word,
                      uint64_t number, uint64_t buckets, struct map_walk *out)
{
    uint64_t meta, ref = *word & SMF_MAP_REF;
    must(smi_block_size(map->heap, ref) != 0, "bucket %llu names %#llx, which is no block",
         (unsigned long long)number, (unsigned long long)ref);
    const struct smf_map_entry *entry = smi_map_entry_at(map->heap, *word, &meta);
    must(entry, "bucket %llu names what lies outside the heap", (unsigned long long)number);
    must(!(meta & (SMF_MAP_PENDING | SMF_MAP_ABSENT)), "an entry is pending");
    must(smi_map_tag(entry->hash) == *word >> SMF_MAP_TAG_SHIFT, "tag of bucket %llu",
         (unsigned long long)number);
    must(smi_map_hash_of(map, smi_map_key(entry), smi_map_klen(meta)) == entry->hash,
         "hash of an entry");
    must(smi_map_bucket_of(entry->hash, buckets) == number,
         "an entry of bucket %llu is in bucket %llu",
         (unsigned long long)smi_map_bucket_of(entry->hash, buckets), (unsigned long long)number);
    for (const struct smf_bucket *b = first; b; b = b->next ? smi_at(map->heap, b->next) : NULL)
        for (unsigned i = 0; i < SMF_MAP_SLOTS; i++) {
            uint64_t other_meta;
            const struct smf_map_entry *other =
                &b->word[i] != word && b->word[i]
                    ? smi_map_entry_at(map->heap, b->word[i], &other_meta)
                    : NULL;
            must(!other || other->hash != entry->hash ||
                     smi_map_klen(other_meta) != smi_map_klen(meta) ||
                     memcmp(smi_map_key(other), smi_map_key(entry), smi_map_klen(meta)) != 0,
                 "a key is in bucket %llu twice", (unsigned long long)number);
        }
    out->entries++;
    out->blocks++;
}

static void walk_chain(const shmalloc_map *map, const struct smf_stripe *s, uint64_t number,
                       struct map_walk *out)
{
    uint64_t buckets = smi_stripe_buckets(s), length = 0;
    const struct smf_bucket *first = smi_map_bucket_at(map->heap, s->dir, number);
    for (const struct smf_bucket *b = first; b;
         b = b->next ? smi_at(map->heap, b->next) : NULL, length++) {
        out->chained += b != first;
        out->blocks += b != first;
        for (unsigned i = 0; number < buckets && i < SMF_MAP_SLOTS; i++)
            if (b->word[i])
                walk_word(map, first, &b->word[i], number, buckets, out);
    }
    if (length > out->longest)
        out->longest = length;
}

void map_walk(const shmalloc_map *map, int mended, struct map_walk *out)
{
    *out = (struct map_walk){.blocks = 2};
    for (uint64_t i = 0; i <= map->opaque[SMI_MAP_MASK]; i++) {
        const struct smf_stripe *s = smi_map_stripe(map, i);
        uint64_t buckets = smi_stripe_buckets(s), before = out->entries,
                 refs = smi_block_size(map->heap, s->dir) / 8;
        must(!mended || (s->in_dest == 0 && (s->split == 0 || s->split == buckets + 1)),
             "stripe %llu is not mended", (unsigned long long)i);
        out->buckets += buckets;
        out->splits += s->split != 0;
        out->blocks += s->dir != 0;
        for (uint64_t k = 0; s->dir && k < refs; k++) {
            uint64_t segment = ((const uint64_t *)smi_at(map->heap, s->dir))[k];
            must(!segment || smi_block_size(map->heap, segment) >=
                                 64ull * smi_map_segment_buckets((uint32_t)k),
                 "segment");
            out->segments += segment != 0;
            out->blocks += segment != 0;
        }
        for (uint64_t k = 0; k < buckets + (s->split == buckets + 1 && buckets); k++)
            walk_chain(map, s, k, out);
        must(out->entries - before == s->count, "stripe %llu: count %llu, found %llu",
             (unsigned long long)i, (unsigned long long)s->count,
             (unsigned long long)(out->entries - before));
    }
}

static void chain_blocks(const shmalloc_map *map, const struct smf_stripe *s, uint64_t number,
                         int (*visit)(uint64_t part, void *arg), void *arg)
{
    uint64_t buckets = smi_stripe_buckets(s);
    const struct smf_bucket *first = smi_map_bucket_at(map->heap, s->dir, number);
    for (const struct smf_bucket *b = first; b; b = b->next ? smi_at(map->heap, b->next) : NULL) {
        if (b->next)
            visit(b->next, arg);
        for (unsigned i = 0; number < buckets && i < SMF_MAP_SLOTS; i++)
            if (b->word[i])
                visit(b->word[i] & SMF_MAP_REF, arg);
    }
}

void map_each_block(const shmalloc_map *map, int (*visit)(uint64_t part, void *arg), void *arg)
{
    visit(map->opaque[SMI_MAP_TABLE], arg);
    for (uint64_t i = 0; i <= map->opaque[SMI_MAP_MASK]; i++) {
        const struct smf_stripe *s = smi_map_stripe(map, i);
        uint64_t buckets = smi_stripe_buckets(s), refs = smi_block_size(map->heap, s->dir) / 8;
        visit(s->dir, arg);
        for (uint64_t k = 0; s->dir && k < refs; k++)
            visit(((const uint64_t *)smi_at(map->heap, s->dir))[k], arg);
        for (uint64_t k = 0; k < buckets + (s->split == buckets + 1 && buckets); k++)
            chain_blocks(map, s, k, visit, arg);
    }
}

static int count(const shmalloc_block *block, void *arg)
{
    (void)block;
    ++*(uint64_t *)arg;
    return 0;
}

uint64_t map_blocks_in_use(shmalloc_heap *heap)
{
    uint64_t blocks = 0;
    int64_t rc = shmalloc_trim(heap);
    must(rc >= 0, "trim: %s", shmalloc_errmsg());
    must_work(shmalloc_each_block(heap, count, &blocks));
    return blocks;
}
