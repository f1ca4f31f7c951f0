/* SPDX-License-Identifier: MIT */
/*
 * map_free.c - giving back what a map holds that nobody can use any more.
 *
 * It happens in steps, each of which clears the word that named what it frees, from the last bucket
 * to the first: a bucket's entries, its chain from the end, then it is no bucket any more
 * (`shape`); the segment it began; last the array of segments and the table of stripes. So whoever
 * goes on after a kill finds by `shape` where that is.
 */
#include "slots/block.h"
#include "structures/map.h"
#include "structures/map_type.h"

/* The parts of one stripe that is being freed. */
struct draining {
    struct smi_ending *ending;
    struct smi_stripe m;
    int nested; /* values are refs of structures */
};

/* A word with a tag: first without it, since only the ref says what is freed. */
static int end_word(struct draining *d, uint64_t *word)
{
    uint64_t meta;
    const struct smf_map_entry *entry = smi_map_entry_at(d->m.heap, SMI_LOAD(word), &meta);
    if (d->nested && entry && smi_map_vlen(meta) == sizeof(uint64_t)) {
        int rc = smi_part_end(d->ending, (uint64_t *)(void *)smi_map_value(entry, meta));
        if (rc != 0)
            return rc;
    }
    SMI_STORE(word, SMI_LOAD(word) & SMF_MAP_REF);
    return smi_part_end(d->ending, word);
}

/* The chain's last bucket, and what names it; NULL: it is the first one. */
static struct smf_bucket *last_of(struct draining *d, struct smf_bucket *bucket, uint64_t **name)
{
    *name = NULL;
    for (uint32_t steps = 0; SMI_LOAD(&bucket->next) != 0; steps++) {
        struct smf_bucket *next =
            steps < SMF_MAP_CHAIN_MAX ? smi_map_chained(d->m.heap, SMI_LOAD(&bucket->next)) : NULL;
        if (!next) { /* it leads nowhere: what it had is lost */
            SMI_STORE(&bucket->next, 0);
            break;
        }
        *name = &bucket->next;
        bucket = next;
    }
    return bucket;
}

/* All of a bucket's chain; `copies`: its words are another bucket's. */
static int end_chain(struct draining *d, struct smf_bucket *first, int copies)
{
    for (uint64_t *name;;) {
        struct smf_bucket *last = last_of(d, first, &name);
        for (unsigned i = 0; i < SMF_MAP_SLOTS; i++) {
            int rc = 0;
            if (copies)
                SMI_STORE(&last->word[i], 0);
            else if (SMI_LOAD(&last->word[i]) != 0)
                rc = end_word(d, &last->word[i]);
            if (rc != 0)
                return rc;
        }
        if (!name)
            return 0;
        int rc = smi_part_end(d->ending, name);
        if (rc != 0)
            return rc;
    }
}

/* The segment that bucket `number`, which is none any more, began. */
static int end_segment(struct draining *d, uint64_t number)
{
    uint64_t offset;
    uint32_t segment = smi_map_segment_of(number, &offset);
    uint64_t *name =
        offset == 0 ? smi_map_at(d->m.heap, d->m.s->dir + 8ull * segment, sizeof(*name)) : NULL;
    return name && segment < smi_block_size(d->m.heap, d->m.s->dir) / sizeof(*name)
               ? smi_part_end(d->ending, name)
               : 0;
}

/* A split under way: what was copied is no entry of its own, what was left behind no entry any
 * more. */
static int end_split(struct draining *d)
{
    struct smf_stripe *s = d->m.s;
    uint64_t number = SMI_LOAD(&s->split) - 1, buckets = smi_stripe_buckets(s);
    if (SMI_LOAD(&s->split) == 0)
        return 0;
    if (number == buckets) {
        struct smf_bucket *target = smi_map_bucket_at(d->m.heap, s->dir, number);
        int rc = target ? end_chain(d, target, 1) : 0;
        if (rc != 0)
            return rc;
    } else if (number + 1 == buckets) {
        smi_stripe_clear_moved(&d->m);
    }
    SMI_STORE(&s->split, 0);
    return 0;
}

/* The last of `buckets`, and what it leaves: *left buckets. */
static int end_bucket(struct draining *d, uint64_t buckets, uint64_t *left)
{
    uint64_t offset;
    struct smf_bucket *first = smi_map_bucket_at(d->m.heap, d->m.s->dir, buckets - 1);
    smi_map_segment_of(buckets - 1, &offset);
    *left = buckets - 1 -
            (first ? 0 : offset); /* of a segment that is none there is nothing to be freed */
    return first ? end_chain(d, first, 0) : 0;
}

static int drain_stripe(struct draining *d)
{
    struct smf_stripe *s = d->m.s;
    uint64_t most =
        smi_map_buckets_in(smi_block_size(d->m.heap, SMI_LOAD(&s->dir)) / sizeof(uint64_t));
    if (SMI_LOAD(&s->dir) == 0)
        return 0;
    int rc = end_split(d);
    while (rc == 0) {
        uint64_t left, said = smi_stripe_buckets(s), buckets = said < most ? said : most;
        rc = end_segment(d, buckets);
        if (rc != 0 || buckets == 0)
            break;
        rc = end_bucket(d, buckets, &left);
        if (rc == 0) /* kill from here: it is none any more */
            SMI_STORE(&s->shape, left << SMF_MOVES_BITS);
    }
    return rc == 0 ? smi_part_end(d->ending, &s->dir) : rc;
}

/* Is the stripe's lock that of a transaction of a thread that may go on? Nobody else can have it
 * any more. */
static int is_held(const struct draining *d)
{
    uint64_t owner = SMI_LOAD(&d->m.s->mutex.owner);
    const struct smf_thread *slot =
        owner & SMF_OWNER_SLOT ? smi_thread_slot(d->m.heap, (uint32_t)(owner & SMF_OWNER_SLOT) - 1)
                               : NULL;
    return slot && slot != d->ending->slot &&
           SMI_LOAD(&slot->serial) == owner >> SMF_OWNER_SERIAL_SHIFT &&
           SMI_LOAD(&slot->owner) != 0;
}

int smi_map_free(struct smi_ending *ending, struct smf_structure *head)
{
    struct smf_map *map = (struct smf_map *)head;
    uint64_t stripes = SMI_LOAD(&map->stripes), table = SMI_LOAD(&map->table);
    struct smf_stripe *first = smi_map_at(ending->heap, table, stripes * sizeof(*first));
    for (uint64_t i = 0; first && stripes <= SMF_MAP_STRIPES_MAX && i < stripes; i++) {
        struct draining d = {ending,
                             {ending->heap, NULL, &first[i]},
                             SMI_LOAD(&map->options) & SMF_MAP_NESTED ? 1 : 0};
        int rc = is_held(&d) ? 1 : drain_stripe(&d);
        if (rc != 0)
            return rc;
    }
    return smi_part_end(ending, &map->table);
}
