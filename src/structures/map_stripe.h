/* SPDX-License-Identifier: MIT */
/*
 * map_stripe.h - one stripe of a map, for who holds its lock: finding a key, changing a word,
 * splitting a bucket, mending what a dead owner left.
 */
#ifndef SMI_MAP_STRIPE_H
#define SMI_MAP_STRIPE_H

#include "structures/map_shape.h"
#include "tx/retire.h"

/* A stripe as one call sees it. */
struct smi_stripe {
    shmalloc_heap *heap;
    struct smi_thread *t; /* of the caller; NULL: on behalf of a dead thread */
    struct smf_stripe *s;
};

/* A key, and what is to be its value. */
struct smi_pair {
    const void *key, *value;
    uint64_t hash, klen, vlen;
};

/* Where a key is, or could be. */
struct smi_place {
    uint64_t *word; /* of its entry; NULL: there is none */
    struct smf_map_entry *entry; /* what that word names, and */
    uint64_t meta; /* its word of that name */
    uint64_t *hole; /* a word that is 0; NULL: the chain has none up to the key or its end */
    struct smf_bucket
        *end; /* without a word: the chain's last bucket; NULL: the stripe has no bucket yet */
};

/* The bytes of an entry. */
static inline void smi_map_fill(struct smf_map_entry *entry, const struct smi_pair *pair,
                                uint64_t meta)
{
    SMI_STORE(&entry->hash, pair->hash);
    SMI_STORE(&entry->meta, meta);
    smi_map_copy(smi_map_key(entry), pair->key, pair->klen);
    smi_map_copy(smi_map_value(entry, meta), pair->value, pair->vlen);
}

static inline uint64_t smi_stripe_buckets(const struct smf_stripe *s)
{
    return SMI_LOAD(&s->shape) >> SMF_MOVES_BITS;
}

/* SHMALLOC_ECORRUPT, with a message that names the stripe. */
int smi_stripe_damaged(const struct smi_stripe *m, const char *what);

/* Look for the key. 0, or SHMALLOC_ECORRUPT. */
int smi_stripe_find(const struct smi_stripe *m, const struct smi_pair *pair,
                    struct smi_place *place);
/* The word that names the entry at `ref`, whose hash is that; NULL in *word: none does. */
int smi_stripe_find_ref(const struct smi_stripe *m, uint64_t hash, uint64_t ref, uint64_t **word);

/* See that place->hole is a word for a new key: if need be the stripe gets its first buckets, or
 * the chain one more. */
int smi_stripe_make_hole(struct smi_stripe *m, const struct smi_pair *pair,
                         struct smi_place *place);

/* A block that is to be the entry of that pair; nobody has it yet. */
int smi_stripe_build(struct smi_stripe *m, const struct smi_pair *pair, struct smi_fresh *fresh);

/* The word, which names an entry of that key, gets the new one; what it named is retired. All of
 * these may fail only where the file is damaged, and then change nothing. */
int smi_stripe_replace(struct smi_stripe *m, uint64_t *word, const struct smi_pair *pair,
                       const struct smi_fresh *fresh);
/* The word, which is 0, gets it, and it is counted. */
int smi_stripe_insert(struct smi_stripe *m, uint64_t *word, const struct smi_pair *pair,
                      const struct smi_fresh *fresh);
/* The word becomes 0, the entry is retired and counted out. */
int smi_stripe_erase(struct smi_stripe *m, uint64_t *word);

/* The word gets that value, 0 or an entry's, and the count follows; what it named is the
 * caller's. */
void smi_stripe_set(struct smi_stripe *m, uint64_t *word, uint64_t value);

/* After a split was committed: the words that it left behind become 0. Any number of times. */
int smi_stripe_clear_moved(struct smi_stripe *m);

/* Split a bucket if there are more entries than SMI_MAP_FULL for each. A failure is no loss: the
 * next put tries again. */
void smi_stripe_grow(struct smi_stripe *m);

/* What a dead owner left half done, whose link record was resolved: the count, and a split that was
 * committed. */
int smi_stripe_repair(struct smi_stripe *m);

#endif
