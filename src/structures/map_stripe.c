/* SPDX-License-Identifier: MIT */
/*
 * map_stripe.c - one stripe of a map, for who holds its lock.
 *
 * What readers without the lock rely on: a word names a whole entry from the instant it is stored;
 * entries, chained buckets and arrays of segments are retired, not freed; `shape` changes before a
 * word leaves its place for another one, so who missed a key and finds `shape` as it was did not
 * overlook it.
 *
 * What repair relies on, after a kill between any two stores:
 *   - an entry enters or leaves a word by one step of the link record, with the ref that the word
 *   had;
 *   - the count follows from `in_count`, `in_before` and what the word named by `in_dest` holds
 *   now;
 *   - a split is committed by the store to `shape`. Before that, its target is no bucket yet, and
 *   is filled anew. After
 *     that, moved words are cleared and chains shortened again, which may be done any number of
 *     times.
 */
#include "structures/map_stripe.h"

#include <errno.h>

#include "slots/block.h"

/* tests/structures/map_steps.c plants faults, to show that it finds them. */
#ifndef SMI_PLANTED
#define SMI_PLANTED(fault) 0
#endif

int smi_stripe_damaged(const struct smi_stripe *m, const char *what)
{
    return smi_error(SHMALLOC_ECORRUPT,
                     "%s: stripe of a map at %#llx: %s; shmalloc-inspect check tells more",
                     m->heap->path, (unsigned long long)smi_ref_in(m->heap, m->s), what);
}

/* ---- chains ---- */

/* A walk along a chain, which is bounded. */
struct chain {
    struct smf_bucket *bucket; /* NULL after the last, or where there is none */
    uint32_t steps;
    int damaged;
};

static struct chain chain_at(const struct smi_stripe *m, uint64_t number)
{
    struct smf_bucket *first = smi_map_bucket_at(m->heap, SMI_LOAD(&m->s->dir), number);
    return (struct chain){first, 0, first == NULL};
}

static void chain_next(const struct smi_stripe *m, struct chain *chain)
{
    uint64_t next = SMI_LOAD(&chain->bucket->next);
    chain->bucket = next ? smi_map_chained(m->heap, next) : NULL;
    chain->damaged = (next && !chain->bucket) || ++chain->steps > SMF_MAP_CHAIN_MAX;
    if (chain->damaged)
        chain->bucket = NULL;
}

static int chain_damaged(const struct smi_stripe *m)
{
    return smi_stripe_damaged(m, "a chain of buckets leads nowhere or is too long");
}

static int no_entry(const struct smi_stripe *m)
{
    return smi_stripe_damaged(m, "a word of a bucket names no entry");
}

int smi_stripe_find(const struct smi_stripe *m, const struct smi_pair *pair,
                    struct smi_place *place)
{
    uint64_t buckets = smi_stripe_buckets(m->s), tag = smi_map_tag(pair->hash);
    *place = (struct smi_place){0};
    if (buckets == 0)
        return 0;
    struct chain at = chain_at(m, smi_map_bucket_of(pair->hash, buckets));
    for (; at.bucket; chain_next(m, &at)) {
        for (unsigned mask = smi_map_matches(at.bucket, tag); mask; mask &= mask - 1) {
            uint64_t *word = &at.bucket->word[__builtin_ctz(mask)];
            place->entry = smi_map_entry_at(m->heap, SMI_LOAD(word), &place->meta);
            if (!place->entry)
                return no_entry(m);
            if (place->entry->hash == pair->hash && smi_map_klen(place->meta) == pair->klen &&
                smi_map_equal(smi_map_key(place->entry), pair->key, pair->klen)) {
                place->word = word;
                return 0;
            }
        }
        unsigned holes = place->hole ? 0 : smi_map_matches(at.bucket, 0);
        if (holes)
            place->hole = &at.bucket->word[__builtin_ctz(holes)];
        place->end = at.bucket;
    }
    return at.damaged ? chain_damaged(m) : 0;
}

int smi_stripe_find_ref(const struct smi_stripe *m, uint64_t hash, uint64_t ref, uint64_t **word)
{
    uint64_t buckets = smi_stripe_buckets(m->s);
    *word = NULL;
    if (buckets == 0)
        return 0;
    struct chain at = chain_at(m, smi_map_bucket_of(hash, buckets));
    for (; at.bucket; chain_next(m, &at))
        for (unsigned i = 0; i < SMF_MAP_SLOTS; i++)
            if ((SMI_LOAD(&at.bucket->word[i]) & SMF_MAP_REF) == ref) {
                *word = &at.bucket->word[i];
                return 0;
            }
    return at.damaged ? chain_damaged(m) : 0;
}

/* ---- entries ---- */

/* A block of zeros that the word *dest, which is 0, gets. The zeros are stored word by word, since
 * an ousted reader may still be looking at what was there. */
static int take_zeroed(struct smi_stripe *m, size_t size, uint64_t *dest)
{
    struct smi_fresh fresh;
    int rc = smi_fresh_make(m->t, size, &fresh);
    if (rc < 0)
        return rc;
    uint64_t *words = smi_at(m->heap, fresh.ref);
    for (size_t i = 0; i < size / sizeof(*words); i++)
        SMI_STORE(&words[i], 0);
    return smi_fresh_publish(m->t, &fresh, dest, 0, 0);
}

/* The first buckets. Nothing is committed before `shape`; who is killed in between leaves what the
 * next one uses. */
static int make_first(struct smi_stripe *m)
{
    enum {
        REFS = 16,
        BUCKETS = 8
    };
    struct smf_stripe *s = m->s;
    int rc = s->dir ? 0 : take_zeroed(m, REFS * sizeof(uint64_t), &s->dir);
    uint64_t *refs = rc == 0 ? smi_map_at(m->heap, s->dir, REFS * sizeof(uint64_t)) : NULL;
    if (!refs)
        return rc < 0 ? rc : smi_stripe_damaged(m, "the array of segments lies outside the heap");
    if (refs[0] == 0)
        rc = take_zeroed(m, BUCKETS * sizeof(struct smf_bucket), &refs[0]);
    if (rc == 0)
        __atomic_store_n(&s->shape, (uint64_t)BUCKETS << SMF_MOVES_BITS, __ATOMIC_RELEASE);
    return rc;
}

int smi_stripe_make_hole(struct smi_stripe *m, const struct smi_pair *pair, struct smi_place *place)
{
    int rc = 0;
    if (place->hole)
        return 0;
    if (!place->end) {
        rc = make_first(m);
        return rc < 0 ? rc : smi_stripe_find(m, pair, place);
    }
    rc = take_zeroed(m, sizeof(struct smf_bucket), &place->end->next);
    struct smf_bucket *bucket = rc == 0 ? smi_map_chained(m->heap, place->end->next) : NULL;
    if (!bucket)
        return rc < 0 ? rc : chain_damaged(m);
    place->hole = &bucket->word[0];
    return 0;
}

int smi_stripe_build(struct smi_stripe *m, const struct smi_pair *pair, struct smi_fresh *fresh)
{
    uint64_t meta = smi_map_meta(pair->klen, pair->vlen);
    int rc = smi_fresh_make(m->t, smi_map_entry_bytes(meta), fresh);
    if (rc == 0)
        smi_map_fill(smi_at(m->heap, fresh->ref), pair, meta);
    return rc;
}

/* ---- changing a word ---- */

static void announce(struct smi_stripe *m, uint64_t *word)
{
    struct smf_stripe *s = m->s;
    SMI_STORE(&s->in_before, SMI_LOAD(word) != 0);
    SMI_STORE(&s->in_count, s->count);
    SMI_STORE(&s->in_dest,
              smi_ref_in(m->heap, word)); /* kill from here: the count follows from the word */
}

static void counted(struct smi_stripe *m, uint64_t count)
{
    SMI_STORE(&m->s->count, count);
    SMI_STORE(&m->s->in_dest, 0);
}

int smi_stripe_replace(struct smi_stripe *m, uint64_t *word, const struct smi_pair *pair,
                       const struct smi_fresh *fresh)
{
    uint64_t bits = smi_map_tag(pair->hash) << SMF_MAP_TAG_SHIFT;
    int rc = smi_fresh_publish(m->t, fresh, word, bits, SMI_LOAD(word) & SMF_MAP_REF);
    if (SMI_UNLIKELY(rc < 0))
        smi_fresh_drop(m->t, fresh);
    return rc;
}

void smi_stripe_set(struct smi_stripe *m, uint64_t *word, uint64_t value)
{
    uint64_t count = m->s->count + (value != 0) - (SMI_LOAD(word) != 0);
    announce(m, word);
    smi_link_store(word, value);
    counted(m, count);
}

int smi_stripe_insert(struct smi_stripe *m, uint64_t *word, const struct smi_pair *pair,
                      const struct smi_fresh *fresh)
{
    announce(m, word);
    int rc = smi_stripe_replace(m, word, pair, fresh);
    counted(m, m->s->count + (rc == 0));
    return rc;
}

int smi_stripe_erase(struct smi_stripe *m, uint64_t *word)
{
    announce(m, word);
    int rc = smi_retire(m->t, SMI_LOAD(word) & SMF_MAP_REF, word);
    counted(m, m->s->count - (rc == 0));
    return rc;
}

/* ---- splitting ---- */

/* Does the word go to the bucket with bit `level` set? The tag has bits 8 to 26 of what chooses
 * buckets, the entry all. */
static int moves(const struct smi_stripe *m, uint64_t word, unsigned level)
{
    if (level >= 8 && level < 27)
        return (int)(word >> SMF_MAP_TAG_SHIFT >> (level - 8) & 1);
    uint64_t meta;
    const struct smf_map_entry *entry = smi_map_entry_at(m->heap, word, &meta);
    return entry ? (int)(smi_map_rest(entry->hash) >> level & 1) : no_entry(m);
}

/* Of the bucket that a split filled: the one it came from. */
static uint64_t source_of(uint64_t target)
{
    return target - (1ull << smi_map_log2(target));
}

/* The copies in the new bucket count. */
int smi_stripe_clear_moved(struct smi_stripe *m)
{
    uint64_t target = m->s->split - 1;
    unsigned level = smi_map_log2(target);
    struct chain at = chain_at(m, source_of(target));
    for (; at.bucket; chain_next(m, &at))
        for (unsigned i = 0; i < SMF_MAP_SLOTS; i++) {
            uint64_t word = SMI_LOAD(&at.bucket->word[i]);
            int goes = word ? moves(m, word, level) : 0;
            if (goes < 0)
                return goes;
            if (goes) /* release: after `shape` */
                __atomic_store_n(&at.bucket->word[i], 0, __ATOMIC_RELEASE);
        }
    return at.damaged ? chain_damaged(m) : 0;
}

/* A place in the chain before bucket `last` for its word, which may be there already: 1 it is, 0
 * *hole is one or NULL. */
static int place_before(const struct smi_stripe *m, struct chain at, const struct smf_bucket *last,
                        uint64_t word, uint64_t **hole)
{
    *hole = NULL;
    for (; at.bucket && at.bucket != last; chain_next(m, &at))
        for (unsigned i = 0; i < SMF_MAP_SLOTS; i++) {
            uint64_t here = SMI_LOAD(&at.bucket->word[i]);
            if (here == word)
                return 1;
            if (here == 0 && !*hole)
                *hole = &at.bucket->word[i];
        }
    return 0;
}

/* A word of a chain that has it twice goes; who passed the other place before and comes here looks
 * again. */
static void clear_double(struct smi_stripe *m, uint64_t *word)
{
    uint64_t shape = m->s->shape, moves = (shape + 1) & ((1ull << SMF_MOVES_BITS) - 1);
    __atomic_store_n(&m->s->shape, (shape >> SMF_MOVES_BITS << SMF_MOVES_BITS) | moves,
                     __ATOMIC_RELEASE);
    __atomic_store_n(word, 0, __ATOMIC_RELEASE);
}

/* Move the words of the chain's last bucket to holes in front of it. 1: it is empty now. */
static int empty_last(struct smi_stripe *m, struct chain first, struct smf_bucket *last)
{
    int empty = 1;
    for (unsigned i = 0; i < SMF_MAP_SLOTS; i++) {
        uint64_t word = SMI_LOAD(&last->word[i]), *hole;
        if (word == 0)
            continue;
        if (!place_before(m, first, last, word,
                          &hole)) { /* else somebody died after the next store */
            if (!hole) {
                empty = 0;
                continue;
            }
            __atomic_store_n(hole, word, __ATOMIC_RELEASE);
        }
        clear_double(m, &last->word[i]);
    }
    return empty;
}

/* Shorten the chain of a bucket as far as its words fit into less. */
static int shorten(struct smi_stripe *m, uint64_t number)
{
    for (uint32_t rounds = 0; rounds < SMF_MAP_CHAIN_MAX; rounds++) {
        struct chain first = chain_at(m, number), at = first;
        struct smf_bucket *last = first.bucket, *before = NULL;
        for (; at.bucket; chain_next(m, &at)) {
            if (at.bucket != first.bucket)
                before = last;
            last = at.bucket;
        }
        if (at.damaged)
            return chain_damaged(m);
        if (!before || !empty_last(m, first, last))
            return 0;
        int rc = smi_retire(m->t, SMI_LOAD(&before->next), &before->next);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* Somebody died while he shortened the chain: the word that he was moving may be in it twice. */
static int clear_doubles(struct smi_stripe *m, uint64_t number)
{
    uint64_t *hole;
    struct chain first = chain_at(m, number), at = first;
    for (; at.bucket; chain_next(m, &at))
        for (unsigned i = 0; at.bucket != first.bucket && i < SMF_MAP_SLOTS; i++) {
            uint64_t word = SMI_LOAD(&at.bucket->word[i]);
            if (word != 0 && place_before(m, first, at.bucket, word, &hole))
                clear_double(m, &at.bucket->word[i]);
        }
    return at.damaged ? chain_damaged(m) : 0;
}

/* After the split was committed; any number of times. On behalf of a dead thread only what would
 * leave words behind that name what it is about to free. */
static int finish_split(struct smi_stripe *m)
{
    if (SMI_PLANTED(SPLIT_NOT_FINISHED))
        SMI_STORE(&m->s->split, 0);
    if (SMI_PLANTED(SPLIT_NOT_FINISHED) || (SMI_PLANTED(MOVED_NOT_CLEARED) && !m->t))
        return 0;
    int rc = smi_stripe_clear_moved(m);
    if (rc == 0)
        rc = (m->t ? shorten : clear_doubles)(m, source_of(m->s->split - 1));
    if (rc == 0 && m->t)
        SMI_STORE(&m->s->split, 0);
    return rc;
}

/* Copy the words that move to the chain at `target`, whose words are 0. */
static int copy_moving(struct smi_stripe *m, struct smf_bucket *target, uint64_t source,
                       unsigned level)
{
    unsigned used = 0;
    struct chain at = chain_at(m, source);
    for (; at.bucket; chain_next(m, &at))
        for (unsigned i = 0; i < SMF_MAP_SLOTS; i++) {
            uint64_t word = SMI_LOAD(&at.bucket->word[i]);
            int rc = word ? moves(m, word, level) : 0;
            if (rc < 0)
                return rc;
            if (rc == 0)
                continue;
            if (used == SMF_MAP_SLOTS) {
                rc = target->next ? 0 : take_zeroed(m, sizeof(*target), &target->next);
                target = rc == 0 ? smi_map_chained(m->heap, target->next) : NULL;
                if (!target)
                    return rc < 0 ? rc : chain_damaged(m);
                used = 0;
            }
            SMI_STORE(&target->word[used++], word);
        }
    return at.damaged ? chain_damaged(m) : 0;
}

/* The words of the bucket that is about to be one become 0. What it has for a chain is left of
 * somebody who died filling it, if `again`; else it is what was in that memory. */
static int clear_target(struct smi_stripe *m, struct smf_bucket *target, int again)
{
    if (!again)
        SMI_STORE(&target->next, 0);
    struct chain at = {target, 0, 0};
    for (; at.bucket; chain_next(m, &at))
        for (unsigned i = 0; i < SMF_MAP_SLOTS; i++)
            SMI_STORE(&at.bucket->word[i], 0);
    return at.damaged ? chain_damaged(m) : 0;
}

/* The array of segments becomes twice as long. */
static int lengthen_dir(struct smi_stripe *m, const uint64_t *refs, uint64_t bytes)
{
    struct smi_fresh fresh;
    int rc = smi_fresh_make(m->t, bytes * 2, &fresh);
    if (rc < 0)
        return rc;
    uint64_t *longer = smi_at(m->heap, fresh.ref);
    smi_map_copy(longer, refs, bytes);
    for (uint64_t i = bytes / sizeof(*refs); i < bytes / sizeof(*refs) * 2; i++)
        SMI_STORE(&longer[i], 0);
    rc = smi_fresh_publish(m->t, &fresh, &m->s->dir, 0, m->s->dir);
    if (rc < 0)
        smi_fresh_drop(m->t, &fresh);
    return rc;
}

/* Where bucket `number`, the first that is none, is to be; memory is had for it. */
static int find_target(struct smi_stripe *m, uint64_t number, struct smf_bucket **target)
{
    uint64_t offset, bytes = smi_block_size(m->heap, m->s->dir);
    uint32_t segment = smi_map_segment_of(number, &offset);
    uint64_t *refs = smi_map_at(m->heap, m->s->dir, bytes);
    if (!refs || bytes == 0)
        return smi_stripe_damaged(m, "the array of segments is no block");
    if (segment >= bytes / sizeof(uint64_t)) {
        int rc = lengthen_dir(m, refs, bytes);
        if (rc < 0)
            return rc;
        refs = smi_at(m->heap, m->s->dir);
    }
    if (refs[segment] == 0) {
        struct smi_request request = {.size = sizeof(struct smf_bucket) *
                                              smi_map_segment_buckets(segment)};
        uint64_t ref;
        int rc = smi_block_take(m->t, &request, &refs[segment], &ref);
        if (rc < 0)
            return rc;
    }
    *target = smi_map_bucket_at(m->heap, m->s->dir, number);
    return *target ? 0 : smi_stripe_damaged(m, "a segment lies outside the heap");
}

static int split(struct smi_stripe *m)
{
    struct smf_stripe *s = m->s;
    struct smf_bucket *target = NULL;
    uint64_t number = smi_stripe_buckets(s), source = source_of(number);
    unsigned level = smi_map_log2(number);
    int rc = find_target(m, number, &target);
    if (rc < 0 || !target)
        return rc;
    rc = clear_target(m, target, s->split == number + 1);
    if (rc < 0)
        return rc;
    SMI_STORE(&s->split, number + 1); /* kill from here: the target's chain is the stripe's */
    rc = copy_moving(m, target, source, level);
    if (rc < 0)
        return rc;
    uint64_t count = s->shape & ((1ull << SMF_MOVES_BITS) - 1);
    __atomic_store_n(&s->shape, (number + 1) << SMF_MOVES_BITS | count,
                     __ATOMIC_RELEASE); /* commits */
    return finish_split(m);
}

void smi_stripe_grow(struct smi_stripe *m)
{
    /* Twice, so that a stripe whose split failed before catches up. */
    for (unsigned i = 0; i < 2; i++) {
        uint64_t buckets = smi_stripe_buckets(m->s);
        if (m->s->count <= (SMI_MAP_FULL + i) * buckets || buckets >= SMF_MAP_BUCKETS_MAX ||
            split(m) < 0)
            return;
    }
}

/* ---- what a dead owner left ---- */

int smi_stripe_repair(struct smi_stripe *m)
{
    struct smf_stripe *s = m->s;
    if (s->in_dest != 0) {
        const uint64_t *word = smi_map_at(m->heap, s->in_dest, sizeof(*word));
        if (!word || s->in_before > 1)
            return smi_stripe_damaged(m, "the change under way names no word");
        if (!SMI_PLANTED(COUNT_NOT_MENDED))
            SMI_STORE(&s->count, s->in_count + (SMI_LOAD(word) != 0) - s->in_before);
        SMI_STORE(&s->in_dest, 0);
    }
    if (s->split == 0 || smi_stripe_buckets(s) < s->split)
        return 0; /* not committed: the next split fills that bucket anew */
    if (smi_stripe_buckets(s) > s->split || s->split <= 8)
        return smi_stripe_damaged(m, "the split under way is of another bucket");
    return finish_split(m);
}
