/* SPDX-License-Identifier: MIT */
/*
 * map_look.c - maps as those see them who look at a file: the check, the tool.
 *
 * Invariants (by number in reports):
 *   M1  stripes and table: a power of two of them, in one block
 *   M2  the array of segments, segments and chained buckets are blocks of their lengths
 *   M3  a word names an entry's block with the entry's tag, in the bucket of its hash, which is the
 *   hash of its key
 *   M4  no key is there twice
 *   M5  `count` is the number of words that are not 0
 *   M6  an entry is pending only while its transaction is open
 * What is under way (a count that follows from in_dest, a split) is looked at as its repair would
 * leave it.
 */
#include <stdio.h>
#include <stdlib.h>

#include "structures/map.h"
#include "structures/map_type.h"

/* ---- a map in a view ---- */

struct seen {
    struct smi_view *view;
    uint64_t ref;
    const struct smf_map *map;
    uint64_t stripes, table;
    smi_report_fn *report; /* may be NULL */
    void *arg;
};

struct seen_stripe {
    const struct seen *of;
    const struct smf_stripe *s;
    uint64_t number, buckets, dir;
    uint64_t target; /* bucket that a committed split filled last; 0 none */
    uint64_t entries; /* found */
};

/* What is done with each bucket of a chain; not 0 stops. */
typedef int bucket_fn(struct seen_stripe *stripe, uint64_t number, uint64_t ref,
                      const struct smf_bucket *bucket, void *arg);

static void report(const struct seen *seen, const char *invariant, uint64_t ref, const char *text)
{
    if (seen->report)
        seen->report(invariant, ref, text, seen->arg);
}

static int see_map(struct smi_view *view, uint64_t ref, struct seen *seen)
{
    const struct smf_map *map = smi_view_at(view, ref, sizeof(*map));
    *seen = (struct seen){.view = view, .ref = ref, .map = map, .stripes = map ? map->stripes : 0};
    if (!map || seen->stripes == 0 || seen->stripes > SMF_MAP_STRIPES_MAX ||
        (seen->stripes & (seen->stripes - 1)) != 0 || map->table % 64 != 0 ||
        !smi_view_at(view, map->table, seen->stripes * sizeof(struct smf_stripe)))
        return -1;
    seen->table = map->table;
    return 0;
}

static int see_stripe(const struct seen *seen, uint64_t i, struct seen_stripe *out)
{
    const struct smf_stripe *s = smi_view_at(seen->view, seen->table + i * sizeof(*s), sizeof(*s));
    if (!s)
        return -1;
    *out = (struct seen_stripe){
        .of = seen, .s = s, .number = i, .buckets = s->shape >> SMF_MOVES_BITS, .dir = s->dir};
    if (s->split != 0 && s->split == out->buckets && s->split > 8)
        out->target = s->split - 1;
    return out->buckets > seen->view->file_size / sizeof(struct smf_bucket) ? -1 : 0;
}

/* Ref of bucket `number`; 0 there is none. */
static uint64_t bucket_ref(struct seen_stripe *stripe, uint64_t number)
{
    uint64_t offset;
    uint32_t segment = smi_map_segment_of(number, &offset);
    const uint64_t *ref = stripe->dir % 8 == 0
                              ? smi_view_at(stripe->of->view, stripe->dir + 8ull * segment, 8)
                              : NULL;
    return ref && *ref != 0 && *ref % 64 == 0 ? *ref + offset * sizeof(struct smf_bucket) : 0;
}

/* All buckets of a chain. -1: it leads nowhere. */
static int each_bucket(struct seen_stripe *stripe, uint64_t number, bucket_fn *visit, void *arg)
{
    uint64_t ref = bucket_ref(stripe, number);
    for (uint32_t steps = 0; steps <= SMF_MAP_CHAIN_MAX; steps++) {
        const struct smf_bucket *bucket =
            ref != 0 && ref % 64 == 0 ? smi_view_at(stripe->of->view, ref, sizeof(*bucket)) : NULL;
        if (!bucket)
            return -1;
        int rc = visit(stripe, number, ref, bucket, arg);
        if (rc != 0)
            return rc;
        if (bucket->next == 0)
            return 0;
        ref = bucket->next;
    }
    return -1;
}

static const struct smf_map_entry *entry_of(const struct seen *seen, uint64_t word, uint64_t *meta)
{
    uint64_t ref = word & SMF_MAP_REF;
    const struct smf_map_entry *entry =
        ref % 8 == 0 ? smi_view_at(seen->view, ref, sizeof(*entry)) : NULL;
    *meta = entry ? entry->meta : 0;
    return entry ? smi_view_at(seen->view, ref, smi_map_entry_bytes(*meta)) : NULL;
}

/* Does a word of bucket `number` count, or was it left behind by the split that was committed
 * last? */
static int counts(const struct seen_stripe *stripe, uint64_t number,
                  const struct smf_map_entry *entry)
{
    return !(stripe->target && smi_map_bucket_of(entry->hash, stripe->buckets) == stripe->target &&
             number == stripe->target - (1ull << smi_map_log2(stripe->target)));
}

/* ---- the check ---- */

/* Words of a chain, to find what is there twice. */
struct chain_words {
    uint64_t *words;
    size_t count, room;
    int no_memory;
};

static int same_key(const struct seen *seen, uint64_t one, uint64_t other)
{
    uint64_t a, b;
    const struct smf_map_entry *x = entry_of(seen, one, &a), *y = entry_of(seen, other, &b);
    return x && y && x->hash == y->hash && smi_map_klen(a) == smi_map_klen(b) &&
           memcmp(smi_map_key(x), smi_map_key(y), smi_map_klen(a)) == 0;
}

/* 1: the same word is there already, which a kill may leave. */
static int remember(const struct seen_stripe *stripe, struct chain_words *chain, uint64_t word)
{
    for (size_t i = 0; i < chain->count; i++) {
        if (chain->words[i] == word)
            return 1;
        if (chain->words[i] >> SMF_MAP_TAG_SHIFT == word >> SMF_MAP_TAG_SHIFT &&
            same_key(stripe->of, chain->words[i], word))
            report(stripe->of, "M4", word & SMF_MAP_REF, "a map has this entry's key twice");
    }
    if (chain->count == chain->room) {
        size_t room = chain->room * 2 + 64;
        uint64_t *words = realloc(chain->words, room * sizeof(*words));
        if (!words) {
            chain->no_memory = 1;
            return 0;
        }
        chain->words = words;
        chain->room = room;
    }
    chain->words[chain->count++] = word;
    return 0;
}

static int transaction_is_open(const struct seen *seen, const struct smf_map_entry *entry,
                               uint64_t meta)
{
    const struct smf_map_pending *pending = smi_map_pending(entry, meta);
    uint64_t at;
    const struct smf_thread *thread =
        smi_view_thread(seen->view, (uint32_t)(pending->transaction & 0xffff) - 1, &at);
    return thread && thread->owner != 0 &&
           thread->tx_state >> SMF_TX_SERIAL == pending->transaction >> 16 &&
           (thread->tx_state & SMF_TX_PHASE) != SMF_TX_IDLE;
}

static void check_word(struct seen_stripe *stripe, uint64_t number, uint64_t at, uint64_t word,
                       struct chain_words *chain)
{
    uint64_t meta;
    const struct smf_map_entry *entry = entry_of(stripe->of, word, &meta);
    const struct smf_map *map = stripe->of->map;
    if (!entry ||
        !smi_structure_has_block(stripe->of->view, word & SMF_MAP_REF, smi_map_entry_bytes(meta))) {
        report(stripe->of, "M3", at, "a word of a map names no entry");
        return;
    }
    if (!counts(stripe, number, entry) || remember(stripe, chain, word))
        return;
    stripe->entries++;
    if (entry->hash != smi_map_hash(map->seed, smi_map_key(entry), smi_map_klen(meta)))
        report(stripe->of, "M3", word & SMF_MAP_REF,
               "an entry of a map has a hash that is not its key's");
    else if (smi_map_tag(entry->hash) != word >> SMF_MAP_TAG_SHIFT)
        report(stripe->of, "M3", at, "a word of a map has another tag than its entry");
    else if ((entry->hash & (stripe->of->stripes - 1)) != stripe->number ||
             smi_map_bucket_of(entry->hash, stripe->buckets) != number)
        report(stripe->of, "M3", at, "a word of a map lies in another bucket than its entry's");
    if ((meta & SMF_MAP_PENDING) && !transaction_is_open(stripe->of, entry, meta))
        report(stripe->of, "M6", word & SMF_MAP_REF,
               "an entry of a map is pending, and its transaction is over");
}

static int check_map_bucket(struct seen_stripe *stripe, uint64_t number, uint64_t ref,
                            const struct smf_bucket *bucket, void *arg)
{
    for (unsigned i = 0; i < SMF_MAP_SLOTS; i++)
        if (bucket->word[i] != 0 && number < stripe->buckets)
            check_word(stripe, number, ref + 8 * i, bucket->word[i], arg);
    if (bucket->next != 0 &&
        !smi_structure_has_block(stripe->of->view, bucket->next, sizeof(*bucket)))
        report(stripe->of, "M2", ref, "a bucket of a map names a next one that is no block");
    return 0;
}

/* As its repair would leave it. */
static uint64_t count_of(const struct seen_stripe *stripe)
{
    const struct smf_stripe *s = stripe->s;
    const uint64_t *word =
        s->in_dest % 8 == 0 && s->in_dest ? smi_view_at(stripe->of->view, s->in_dest, 8) : NULL;
    return word ? s->in_count + (*word != 0) - s->in_before : s->count;
}

/* How many segments have the stripe's buckets: the array has room for as many at least. */
static uint64_t segments_of(const struct seen_stripe *stripe)
{
    uint64_t offset;
    return stripe->buckets ? smi_map_segment_of(stripe->buckets - 1, &offset) + 1ull : 0;
}

static void check_segments(struct seen_stripe *stripe)
{
    struct smi_view *view = stripe->of->view;
    for (uint64_t i = 0; i < segments_of(stripe); i++) {
        const uint64_t *ref = smi_view_at(view, stripe->dir + 8 * i, 8);
        if (!ref ||
            !smi_structure_has_block(view, *ref, 64ull * smi_map_segment_buckets((uint32_t)i))) {
            report(stripe->of, "M2", stripe->dir + 8 * i,
                   "the array of segments of a map names what is no block of its length");
            return;
        }
    }
}

static void check_stripe(struct seen_stripe *stripe, struct chain_words *chain)
{
    uint64_t at = stripe->of->table + stripe->number * sizeof(struct smf_stripe);
    if (stripe->dir != 0 &&
        !smi_structure_has_block(stripe->of->view, stripe->dir,
                                 segments_of(stripe) * sizeof(uint64_t))) {
        report(stripe->of, "M2", at, "the array of segments of a map is no block of its length");
        return;
    }
    check_segments(stripe);
    for (uint64_t i = 0; i < stripe->buckets; i++) {
        chain->count = 0;
        if (each_bucket(stripe, i, check_map_bucket, chain) < 0) {
            report(stripe->of, "M2", at,
                   "a chain of buckets of a map leads nowhere or is too long");
            return;
        }
    }
    if (stripe->entries != count_of(stripe))
        report(stripe->of, "M5", at,
               "a stripe of a map has another number of entries than it says");
}

static void check(struct smi_view *view, uint64_t ref, smi_report_fn *report_to, void *arg)
{
    struct seen seen;
    struct chain_words chain = {0};
    int rc = see_map(view, ref, &seen);
    seen.report = report_to;
    seen.arg = arg;
    if (rc < 0 ||
        !smi_structure_has_block(view, seen.table, seen.stripes * sizeof(struct smf_stripe))) {
        report(&seen, "M1", ref, "a map's stripes are none");
        return;
    }
    for (uint64_t i = 0; i < seen.stripes && !chain.no_memory; i++) {
        struct seen_stripe stripe;
        if (see_stripe(&seen, i, &stripe) < 0)
            report(&seen, "M2", seen.table + i * sizeof(struct smf_stripe),
                   "a stripe of a map has more buckets than fit");
        else
            check_stripe(&stripe, &chain);
    }
    free(chain.words);
}

/* ---- the tool ---- */

static void describe_map(struct smi_view *view, uint64_t ref, char *text, size_t room)
{
    struct seen seen;
    uint64_t entries = 0, buckets = 0;
    if (see_map(view, ref, &seen) < 0) {
        snprintf(text, room, "damaged");
        return;
    }
    for (uint64_t i = 0; i < seen.stripes; i++) {
        struct seen_stripe stripe;
        if (see_stripe(&seen, i, &stripe) == 0) {
            entries += count_of(&stripe);
            buckets += stripe.buckets;
        }
    }
    snprintf(text, room, "%llu entries, load %.1f, %llu stripes%s", (unsigned long long)entries,
             buckets ? (double)entries / (double)buckets : 0.0, (unsigned long long)seen.stripes,
             seen.map->options & SMF_MAP_NESTED ? ", nested" : "");
}

struct parts {
    int (*visit)(uint64_t part, void *arg);
    void *arg;
};

static int visit_bucket(struct seen_stripe *stripe, uint64_t number, uint64_t ref,
                        const struct smf_bucket *bucket, void *arg)
{
    const struct parts *parts = arg;
    (void)ref;
    int rc = bucket->next ? parts->visit(bucket->next, parts->arg) : 0;
    for (unsigned i = 0; rc == 0 && number < stripe->buckets && i < SMF_MAP_SLOTS; i++) {
        uint64_t meta;
        const struct smf_map_entry *entry =
            bucket->word[i] ? entry_of(stripe->of, bucket->word[i], &meta) : NULL;
        if (!entry || !counts(stripe, number, entry))
            continue;
        rc = parts->visit(bucket->word[i] & SMF_MAP_REF, parts->arg);
        uint64_t prev =
            meta & SMF_MAP_PENDING ? smi_map_pending(entry, meta)->prev & SMF_MAP_REF : 0;
        if (rc == 0 && prev)
            rc = parts->visit(prev, parts->arg);
        if (rc == 0 && (stripe->of->map->options & SMF_MAP_NESTED) &&
            smi_map_vlen(meta) == sizeof(uint64_t)) {
            uint64_t nested;
            memcpy(&nested, smi_map_value(entry, meta), sizeof(nested));
            rc = nested ? parts->visit(nested, parts->arg) : 0;
        }
    }
    return rc;
}

static int each_ref_of(struct seen_stripe *stripe, struct parts *parts)
{
    if (stripe->dir == 0)
        return 0;
    int rc = parts->visit(stripe->dir, parts->arg);
    uint64_t offset, more = stripe->s->split == stripe->buckets + 1 &&
                            stripe->buckets; /* a bucket that is being filled */
    uint64_t last =
        smi_map_segment_of(stripe->buckets, &offset); /* the next one may be had already */
    for (uint64_t i = 0; rc == 0 && i <= last; i++) {
        const uint64_t *ref = smi_structure_has_block(stripe->of->view, stripe->dir, 8 * (i + 1))
                                  ? smi_view_at(stripe->of->view, stripe->dir + 8 * i, 8)
                                  : NULL;
        rc = ref && *ref ? parts->visit(*ref, parts->arg) : 0;
    }
    for (uint64_t i = 0; rc == 0 && i < stripe->buckets + more; i++) {
        rc = each_bucket(stripe, i, visit_bucket, parts);
        rc = rc < 0 ? 0 : rc; /* that it leads nowhere is the check's matter */
    }
    return rc;
}

static int each_ref(struct smi_view *view, uint64_t ref, int (*visit)(uint64_t part, void *arg),
                    void *arg)
{
    struct seen seen;
    struct parts parts = {visit, arg};
    if (see_map(view, ref, &seen) < 0)
        return 0;
    int rc = visit(seen.table, arg);
    for (uint64_t i = 0; rc == 0 && i < seen.stripes; i++) {
        struct seen_stripe stripe;
        if (see_stripe(&seen, i, &stripe) == 0)
            rc = each_ref_of(&stripe, &parts);
    }
    return rc;
}

struct items {
    smi_item_fn *visit;
    void *arg;
};

static int visit_items(struct seen_stripe *stripe, uint64_t number, uint64_t ref,
                       const struct smf_bucket *bucket, void *arg)
{
    const struct items *items = arg;
    int rc = 0;
    (void)ref;
    for (unsigned i = 0; rc == 0 && i < SMF_MAP_SLOTS; i++) {
        uint64_t meta;
        const struct smf_map_entry *entry =
            bucket->word[i] ? entry_of(stripe->of, bucket->word[i], &meta) : NULL;
        if (!entry || !counts(stripe, number, entry))
            continue;
        struct smi_item item = {.index = number,
                                .key = (const char *)smi_map_key(entry),
                                .key_length = smi_map_klen(meta),
                                .bytes = smi_map_value(entry, meta),
                                .length = smi_map_vlen(meta),
                                .ref = bucket->word[i] & SMF_MAP_REF,
                                .note = meta & SMF_MAP_PENDING ? "of an open transaction" : NULL};
        rc = items->visit(&item, items->arg);
    }
    return rc;
}

static int each_item(struct smi_view *view, uint64_t ref, smi_item_fn *visit, void *arg)
{
    struct seen seen;
    struct items items = {visit, arg};
    if (see_map(view, ref, &seen) < 0)
        return 0;
    for (uint64_t i = 0; i < seen.stripes; i++) {
        struct seen_stripe stripe;
        if (see_stripe(&seen, i, &stripe) < 0)
            continue;
        for (uint64_t k = 0; k < stripe.buckets; k++) {
            int rc = each_bucket(&stripe, k, visit_items, &items);
            if (rc > 0)
                return rc;
        }
    }
    return 0;
}

const struct smi_structure_type smi_map_type = {
    .tag = SMF_TAG_MAP,
    .name = "map",
    .check = check,
    .describe = describe_map,
    .each_ref = each_ref,
    .each_item = each_item,
    .free = smi_map_free,
};
