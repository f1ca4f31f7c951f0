/* SPDX-License-Identifier: MIT */
/*
 * map_read.c - looking into a map without its locks.
 *
 * A look is a read section: what it may follow is retired, not freed, as long as the section is not
 * ousted. The rules: a ref is followed only if the section was not ousted after the ref was loaded,
 * and an answer counts only if it was not ousted after the last byte was copied.
 *
 * A hit needs nothing else, because entries do not change. A miss counts only if the stripe's shape
 * is what it was: otherwise the key may have moved meanwhile. An entry that is pending stands for
 * what its transaction's state says: committed, and the word still names it: itself; active: the
 * one before it; over: look again, the flag is about to go.
 *
 * Who has to look again too often takes the stripe's lock, under which nothing moves.
 */
#include <errno.h>
#include <stdlib.h>

#include "handle/readers.h"
#include "tx/section.h"
#include "platform/os.h"
#include "structures/map.h"
#include "structures/map_tx.h"

enum {
    ABSENT = 0,
    FOUND = 1,
    AGAIN = 2,
    TRIES = 4
};

struct look {
    const shmalloc_map *map;
    shmalloc_heap *heap;
    struct smi_thread *t;
    int locked; /* the stripe is the caller's: there is no section */
};

static inline int holds(const struct look *look)
{
    return SMI_LIKELY(look->locked || smi_section_is_valid(look->t));
}

/* A read section begins; it need not be asked at its end. */
static inline int begin(struct smi_thread *t)
{
    if (SMI_LIKELY(smi_section_begin(t)))
        return 0;
    int rc = smi_readers_join(t->heap, &t->section_fences);
    if (rc < 0)
        return rc;
    t->section = &t->slot->section_epoch;
    return smi_section_begin(t)
               ? 0
               : smi_heap_poison(t->heap,
                                 "the epoch of read sections changed to what it cannot be");
}

static int look_damaged(const struct look *look, const char *what)
{
    return smi_error(SHMALLOC_ECORRUPT, "%s: map at %#llx: %s; shmalloc-inspect check tells more",
                     look->heap->path, (unsigned long long)look->map->ref, what);
}

/* What a look found wrong counts only if its section held. */
static int unless_ousted(const struct look *look, const char *what)
{
    return holds(look) ? look_damaged(look, what) : AGAIN;
}

/* ---- one key ---- */

/* Which entry does a pending one stand for? FOUND: *entry and *meta; else ABSENT, AGAIN, or
 * damage. */
static int version_of(const struct look *look, const uint64_t *word, uint64_t seen,
                      struct smf_map_entry **entry, uint64_t *meta)
{
    const struct smf_map_pending *pending = smi_map_pending(*entry, *meta);
    uint64_t transaction = SMI_LOAD(&pending->transaction);
    uint64_t prev = __atomic_load_n(&pending->prev,
                                    __ATOMIC_ACQUIRE); /* before the state: a commit clears it */
    int is_mine = look->locked && smi_map_is_mine(smi_tx_of(look->t), *entry, *meta);
    enum smf_tx_phase phase = smi_tx_phase(look->heap, transaction);
    if (!holds(look))
        return AGAIN;
    if (phase == SMF_TX_COMMITTED ||
        is_mine) /* a later one of the same transaction may have taken its place before that */
        return __atomic_load_n(word, __ATOMIC_ACQUIRE) != seen ? AGAIN
               : *meta & SMF_MAP_ABSENT                        ? ABSENT
                                                               : FOUND;
    if (phase != SMF_TX_ACTIVE)
        return AGAIN;
    if (prev == 0)
        return ABSENT;
    *entry = smi_map_entry_at(look->heap, prev, meta);
    if (!*entry || *meta & SMF_MAP_PENDING)
        return unless_ousted(look, "a pending entry stands for one that is none");
    return FOUND;
}

/* Copy the value out. FOUND, or AGAIN. */
static int copy_value(const struct look *look, const struct smf_map_entry *entry, uint64_t meta,
                      void *buf, size_t cap, size_t *len)
{
    uint64_t vlen = smi_map_vlen(meta);
    const uint8_t *value = smi_map_value(entry, meta);
    if (vlen == 8 && cap >= 8) { /* a counter changes in place */
        uint64_t word = SMI_LOAD((const uint64_t *)(const void *)value);
        memcpy(buf, &word, 8);
    } else {
        smi_map_copy(buf, value, vlen < cap ? vlen : cap);
    }
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    if (!holds(look))
        return AGAIN;
    if (len)
        *len = vlen;
    return FOUND;
}

static inline void prefetch_entry(const void *entry)
{
    __builtin_prefetch((const char *)entry + 64);
    __builtin_prefetch((const char *)entry + 128);
}

/* The word of the bucket names the key's entry, perhaps. ABSENT: it does not; the key may still be
 * behind it. */
static inline int try_word(const struct look *look, const uint64_t *at, const struct smi_pair *pair,
                           struct smf_map_entry **entry, uint64_t *meta)
{
    uint64_t word = __atomic_load_n(at, __ATOMIC_ACQUIRE);
    if (SMI_UNLIKELY(word == 0)) /* it went meanwhile */
        return ABSENT;
    if (!holds(look))
        return AGAIN;
    *entry = smi_map_entry_at(look->heap, word, meta);
    if (SMI_UNLIKELY(!*entry))
        return unless_ousted(look, "a word of a bucket names no entry");
    prefetch_entry(*entry);
    if (SMI_LOAD(&(*entry)->hash) != pair->hash || smi_map_klen(*meta) != pair->klen ||
        !smi_map_equal(smi_map_key(*entry), pair->key, pair->klen))
        return ABSENT;
    return FOUND;
}

/* FOUND with the value copied, ABSENT, AGAIN, or damage. */
static inline int look_up(const struct look *look, struct smf_stripe *s,
                          const struct smi_pair *pair, void *buf, size_t cap, size_t *len)
{
    uint64_t shape = __atomic_load_n(&s->shape, __ATOMIC_ACQUIRE), tag = smi_map_tag(pair->hash),
             dir = SMI_LOAD(&s->dir);
    uint64_t buckets = shape >> SMF_MOVES_BITS;
    if (buckets == 0)
        return ABSENT;
    if (!holds(look))
        return AGAIN;
    const struct smf_bucket *bucket =
        smi_map_bucket_at(look->heap, dir, smi_map_bucket_of(pair->hash, buckets));
    for (uint32_t steps = 0; SMI_LIKELY(bucket != NULL) && steps <= SMF_MAP_CHAIN_MAX; steps++) {
        for (unsigned mask = smi_map_matches(bucket, tag); mask; mask &= mask - 1) {
            const uint64_t *word = &bucket->word[__builtin_ctz(mask)];
            struct smf_map_entry *entry;
            uint64_t meta;
            int rc = try_word(look, word, pair, &entry, &meta);
            if (rc == FOUND && SMI_UNLIKELY(meta & SMF_MAP_PENDING)) {
                rc = version_of(look, word,
                                smi_map_word_for(smi_ref_in(look->heap, entry), pair->hash), &entry,
                                &meta);
                if (rc == ABSENT)
                    return holds(look) ? ABSENT : AGAIN;
            }
            if (rc != ABSENT)
                return rc == FOUND ? copy_value(look, entry, meta, buf, cap, len) : rc;
        }
        uint64_t next = __atomic_load_n(&bucket->next, __ATOMIC_ACQUIRE);
        if (!holds(look))
            return AGAIN;
        if (SMI_LIKELY(next == 0)) {
            __atomic_thread_fence(__ATOMIC_ACQUIRE);
            return SMI_LOAD(&s->shape) == shape && holds(look) ? ABSENT : AGAIN;
        }
        bucket = smi_map_chained(look->heap, next);
    }
    return unless_ousted(look, "a chain of buckets leads nowhere or is too long");
}

/* With the stripe's lock. */
static int map_get_locked(const shmalloc_map *map, struct smi_thread *t,
                          const struct smi_pair *pair, void *buf, size_t cap, size_t *len)
{
    struct smi_stripe stripe;
    struct look look = {map, map->heap, t, 1};
    int state = smi_os_cancel_off(), rc = smi_map_lock(map, t, pair->hash, &stripe);
    if (rc == 0) {
        rc = look_up(&look, stripe.s, pair, buf, cap, len);
        smi_map_unlock(&stripe);
    }
    smi_os_cancel_restore(state);
    return rc == AGAIN ? look_damaged(&look, "an entry is pending whose transaction is over") : rc;
}

static int get(const shmalloc_map *map, struct smi_thread *t, const struct smi_pair *pair,
               void *buf, size_t cap, size_t *len)
{
    struct look look = {.map = map, .heap = map->heap, .t = t};
    if (smi_tx_of(t) != NULL) /* it must not be changed by others until the commit */
        return map_get_locked(map, t, pair, buf, cap, len);
    for (unsigned tries = 0; tries < TRIES; tries++) {
        int rc = begin(t);
        if (SMI_UNLIKELY(rc < 0))
            return rc;
        rc = look_up(&look, smi_map_stripe(map, pair->hash), pair, buf, cap, len);
        smi_section_end(t);
        if (SMI_LIKELY(rc != AGAIN))
            return rc;
    }
    return map_get_locked(map, t, pair, buf, cap, len);
}

int shmalloc_map_get(const shmalloc_map *map, const void *key, size_t klen, void *buf, size_t cap,
                     size_t *len)
{
    int rc;
    struct smi_thread *t = smi_map_enter(map, &rc);
    if (!t)
        return rc;
    rc = smi_map_check_key(map, key, klen);
    if (rc == 0 && !buf && cap != 0)
        rc = smi_error(-EINVAL, "%s: no buffer for %zu bytes of a value", map->heap->path, cap);
    if (rc == 0) {
        struct smi_pair pair = {.key = key, .klen = klen, .hash = smi_map_hash_of(map, key, klen)};
        rc = get(map, t, &pair, buf, cap, len);
    }
    smi_structure_leave(t);
    return rc;
}

/* ---- several keys ---- */

enum {
    AT_ONCE = 16
};

/* Ask for the bucket of each key, then for what its words name. Nothing is decided here: a prefetch
 * never faults. */
static void prefetch(const shmalloc_map *map, struct smi_thread *t, const struct smi_pair *pairs,
                     unsigned count)
{
    const struct smf_bucket *buckets[AT_ONCE];
    for (unsigned i = 0; i < count; i++) {
        const struct smf_stripe *s = smi_map_stripe(map, pairs[i].hash);
        uint64_t n = __atomic_load_n(&s->shape, __ATOMIC_ACQUIRE) >> SMF_MOVES_BITS;
        buckets[i] = n && smi_section_is_valid(t)
                         ? smi_map_bucket_at(map->heap, SMI_LOAD(&s->dir),
                                             smi_map_bucket_of(pairs[i].hash, n))
                         : NULL;
        __builtin_prefetch(buckets[i]);
    }
    for (unsigned i = 0; i < count && smi_section_is_valid(t); i++) {
        unsigned mask = buckets[i] ? smi_map_matches(buckets[i], smi_map_tag(pairs[i].hash)) : 0;
        uint64_t ref = mask ? SMI_LOAD(&buckets[i]->word[__builtin_ctz(mask)]) & SMF_MAP_REF : 0;
        const void *entry = (const void *)((uintptr_t)map->heap->base + ref);
        __builtin_prefetch(entry);
        prefetch_entry(entry);
    }
}

static int64_t get_batch(const shmalloc_map *map, struct smi_thread *t, shmalloc_map_item *items,
                         unsigned count)
{
    struct smi_pair pairs[AT_ONCE];
    int64_t found = 0;
    for (unsigned i = 0; i < count; i++) {
        int bad = smi_map_check_key(map, items[i].key, items[i].klen);
        if (bad < 0)
            return bad;
        uint64_t hash = smi_map_hash_of(map, items[i].key, items[i].klen);
        pairs[i] = (struct smi_pair){.key = items[i].key, .klen = items[i].klen, .hash = hash};
    }
    int rc = begin(t);
    if (rc < 0)
        return rc;
    prefetch(map, t, pairs, count);
    smi_section_end(t);
    for (unsigned i = 0; i < count; i++) {
        rc = get(map, t, &pairs[i], items[i].buf, items[i].cap, &items[i].len);
        if (rc < 0)
            return rc;
        items[i].found = rc;
        found += rc;
    }
    return found;
}

int64_t shmalloc_map_get_many(const shmalloc_map *map, shmalloc_map_item *items, size_t count)
{
    int rc;
    struct smi_thread *t = smi_map_enter(map, &rc);
    if (!t)
        return rc;
    int64_t found = 0;
    if (!items && count != 0)
        found = smi_error(-EINVAL, "%s: no items", map->heap->path);
    for (size_t from = 0; found >= 0 && from < count; from += AT_ONCE) {
        int64_t more = get_batch(map, t, items + from,
                                 count - from < AT_ONCE ? (unsigned)(count - from) : AT_ONCE);
        found = more < 0 ? more : found + more;
    }
    smi_structure_leave(t);
    return found;
}

/* ---- all entries ---- */

/* Copies of entries: its meta, then key and value, each padded. */
struct copies {
    uint8_t *bytes;
    size_t used, room;
    uint64_t
        *words; /* those of the chain that is being read, which a kill may have left in it twice */
    size_t word_count, word_room;
};

static int copies_room(void **at, size_t *room, size_t needed, size_t unit)
{
    if (needed <= *room)
        return 0;
    size_t more = *room * 2 > needed ? *room * 2 : needed * 2;
    void *bytes = realloc(*at, more * unit);
    if (!bytes)
        return smi_error(-ENOMEM, "no private memory for %zu bytes of a map's entries",
                         more * unit);
    *at = bytes;
    *room = more;
    return 0;
}

static int seen_before(struct copies *copies, uint64_t word)
{
    for (size_t i = 0; i < copies->word_count; i++)
        if (copies->words[i] == word)
            return 1;
    int rc = copies_room((void **)&copies->words, &copies->word_room, copies->word_count + 1,
                         sizeof(uint64_t));
    if (rc == 0)
        copies->words[copies->word_count++] = word;
    return rc;
}

static int copy_entry(struct copies *copies, const struct smf_map_entry *entry, uint64_t meta)
{
    size_t length = smi_map_pad(smi_map_klen(meta)) + smi_map_pad(smi_map_vlen(meta));
    int rc = copies_room((void **)&copies->bytes, &copies->room, copies->used + 8 + length, 1);
    if (rc < 0)
        return rc;
    memcpy(copies->bytes + copies->used, &meta, 8);
    smi_map_copy(copies->bytes + copies->used + 8, smi_map_key(entry), length);
    copies->used += 8 + length;
    return 0;
}

/* A word of bucket `number` of `buckets`. 0, AGAIN, or a negative code. */
static int read_word(const struct look *look, const uint64_t *at, uint64_t number, uint64_t buckets,
                     struct copies *copies)
{
    uint64_t word = __atomic_load_n(at, __ATOMIC_ACQUIRE), meta;
    if (word == 0)
        return 0;
    if (!holds(look))
        return AGAIN;
    struct smf_map_entry *entry = smi_map_entry_at(look->heap, word, &meta);
    if (!entry)
        return unless_ousted(look, "a word of a bucket names no entry");
    if (smi_map_bucket_of(SMI_LOAD(&entry->hash), buckets) != number)
        return holds(look) ? 0 : AGAIN; /* it moved, and this is what was left behind */
    int rc = seen_before(copies, word);
    if (rc != 0)
        return rc < 0 ? rc : 0;
    rc = meta & SMF_MAP_PENDING ? version_of(look, at, word, &entry, &meta) : FOUND;
    if (rc != FOUND)
        return rc == ABSENT ? 0 : rc;
    if (!holds(look)) /* its length may be another's */
        return AGAIN;
    return copy_entry(copies, entry, meta);
}

static int read_chain(const struct look *look, uint64_t dir, uint64_t number, uint64_t buckets,
                      struct copies *copies)
{
    const struct smf_bucket *bucket = smi_map_bucket_at(look->heap, dir, number);
    copies->word_count = 0;
    for (uint32_t steps = 0; bucket && steps <= SMF_MAP_CHAIN_MAX; steps++) {
        for (unsigned i = 0; i < SMF_MAP_SLOTS; i++) {
            int rc = read_word(look, &bucket->word[i], number, buckets, copies);
            if (rc != 0)
                return rc;
        }
        uint64_t next = __atomic_load_n(&bucket->next, __ATOMIC_ACQUIRE);
        if (!holds(look))
            return AGAIN;
        if (next == 0)
            return 0;
        bucket = smi_map_chained(look->heap, next);
    }
    return unless_ousted(look, "a chain of buckets leads nowhere or is too long");
}

/* Copy what is in the buckets that descend from bucket `number` of the `first` there were when the
 * stripe was begun. */
static int read_descendants(const struct look *look, struct smf_stripe *s, uint64_t number,
                            uint64_t first, struct copies *copies)
{
    uint64_t shape = __atomic_load_n(&s->shape, __ATOMIC_ACQUIRE), dir = SMI_LOAD(&s->dir);
    uint64_t buckets = shape >> SMF_MOVES_BITS, half = 1ull << smi_map_log2(first);
    uint64_t step = number < first - half || number >= half ? half * 2 : half;
    copies->used = 0;
    if (!holds(look))
        return AGAIN;
    if (buckets < first || buckets > smi_size(look->heap) / sizeof(struct smf_bucket))
        return unless_ousted(look, "a stripe has fewer buckets than before, or too many");
    for (uint64_t at = number; at < buckets; at += step) {
        int rc = read_chain(look, dir, at, buckets, copies);
        if (rc != 0)
            return rc;
    }
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    return holds(look) && SMI_LOAD(&s->shape) == shape ? 0 : AGAIN;
}

static int read_part_locked(struct look *look, uint64_t stripe, uint64_t number, uint64_t first,
                            struct copies *copies)
{
    struct smi_stripe m;
    int state = smi_os_cancel_off(), rc = smi_map_lock(look->map, look->t, stripe, &m);
    if (rc == 0) {
        look->locked = 1;
        rc = read_descendants(look, m.s, number, first, copies);
        smi_map_unlock(&m);
    }
    smi_os_cancel_restore(state);
    return rc == AGAIN ? look_damaged(look, "an entry is pending whose transaction is over") : rc;
}

static int read_part(const shmalloc_map *map, struct smi_thread *t, uint64_t stripe,
                     uint64_t number, uint64_t first, struct copies *copies)
{
    struct look look = {.map = map, .heap = map->heap, .t = t, .locked = smi_tx_of(t) != NULL};
    int rc = AGAIN;
    for (unsigned tries = 0; !look.locked && rc == AGAIN && tries < TRIES; tries++) {
        rc = begin(t);
        if (rc < 0)
            return rc;
        rc = read_descendants(&look, smi_map_stripe(map, stripe), number, first, copies);
        smi_section_end(t);
    }
    return rc == AGAIN ? read_part_locked(&look, stripe, number, first, copies) : rc;
}

static int visit_copies(const struct copies *copies, shmalloc_map_visit *visit, void *arg)
{
    int rc = 0;
    for (size_t at = 0; rc == 0 && at < copies->used;) {
        uint64_t meta;
        memcpy(&meta, copies->bytes + at, 8);
        const uint8_t *key = copies->bytes + at + 8, *value = key + smi_map_pad(smi_map_klen(meta));
        at += 8 + smi_map_pad(smi_map_klen(meta)) + smi_map_pad(smi_map_vlen(meta));
        rc = visit(key, smi_map_klen(meta), value, smi_map_vlen(meta), arg);
    }
    return rc;
}

int shmalloc_map_each(const shmalloc_map *map, shmalloc_map_visit *visit, void *arg)
{
    int rc;
    struct copies copies = {0};
    struct smi_thread *t = smi_map_enter(map, &rc);
    if (!t)
        return rc;
    if (!visit)
        rc = smi_error(-EINVAL, "%s: no function to visit entries with", map->heap->path);
    for (uint64_t stripe = 0; rc == 0 && stripe <= map->opaque[SMI_MAP_MASK]; stripe++) {
        uint64_t first = smi_stripe_buckets(smi_map_stripe(map, stripe));
        for (uint64_t number = 0; rc == 0 && number < first; number++) {
            rc = read_part(map, t, stripe, number, first, &copies);
            if (rc == 0)
                rc = visit_copies(&copies, visit, arg);
        }
    }
    free(copies.bytes);
    free(copies.words);
    smi_structure_leave(t);
    return rc;
}

int64_t shmalloc_map_count(const shmalloc_map *map)
{
    int rc;
    uint64_t count = 0;
    struct smi_thread *t = smi_map_enter(map, &rc);
    if (!t)
        return rc;
    for (uint64_t i = 0; i <= map->opaque[SMI_MAP_MASK]; i++) {
        count += SMI_LOAD(&smi_map_stripe(map, i)->count);
    }
    smi_structure_leave(t);
    return (int64_t)(count & INT64_MAX);
}
