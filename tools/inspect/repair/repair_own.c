/* SPDX-License-Identifier: MIT */
/*
 * repair_own.c - the library's own blocks in a heap under repair: root records and side arrays.
 *
 * A record says its name, the name's length and its hash, and lies in the chain of its hash: what
 * one of them lost, the others give back. A block that nothing names but that is a whole record was
 * cut off its chain, and is bound again. One that is no record, and no side array that a slab
 * misses, is given back: nobody but the library ever had it.
 *
 * A record that cannot be read, or whose name another has too, is dropped, and said to be. What it
 * named stays allocated.
 */
#include "repair_plan.h"

#include <stdlib.h>
#include <string.h>

#include "format/sizeclass.h"

/* A set of refs: open addressing. */
struct refs {
    uint64_t *at;
    size_t room, count;
};

struct record {
    uint64_t ref;
    uint32_t bucket, order;
};

/* Instead of an orphan's class. */
#define TAKEN SMF_CLASSES         /* has become a side array */
#define NO_SIDE (SMF_CLASSES + 1) /* was a record: is given back */

struct own {
    struct smi_repair *r;
    struct refs named;   /* own blocks that something names */
    struct refs dropped; /* records that are not bound again */
    struct record *records;
    size_t record_count, record_room;
    struct smi_repair_words orphans; /* ref, class */
    struct smi_repair_words needy;   /* slabs without the side array they should have: page, class
                                        of it */
    uint64_t said_roots;
    int changed; /* chains have to be stored anew */
};

/* ---- sets ---- */

static size_t slot_for(const struct refs *set, uint64_t ref)
{
    size_t i = (ref / 8 * 0x9e3779b97f4a7c15ull) >> 20 & (set->room - 1);
    while (set->at[i] != 0 && set->at[i] != ref)
        i = (i + 1) & (set->room - 1);
    return i;
}

static int has(const struct refs *set, uint64_t ref)
{
    return set->room > 0 && set->at[slot_for(set, ref)] == ref;
}

/* 1 when it is new. */
static int add(struct own *o, struct refs *set, uint64_t ref)
{
    if (2 * (set->count + 1) > set->room) {
        struct refs more = {calloc(set->room ? 2 * set->room : 1024, sizeof(uint64_t)),
                            set->room ? 2 * set->room : 1024, set->count};
        if (!more.at) {
            o->r->failed = 1;
            return 0;
        }
        for (size_t i = 0; i < set->room; i++)
            if (set->at[i])
                more.at[slot_for(&more, set->at[i])] = set->at[i];
        free(set->at);
        *set = more;
    }
    size_t i = slot_for(set, ref);
    if (set->at[i] == ref)
        return 0;
    set->at[i] = ref;
    set->count++;
    return 1;
}

/* ---- own slots ---- */

/* Class of the library's own slot that begins at `ref`, or -1. */
static int own_class(struct smi_repair *r, uint64_t ref, uint32_t *slab, uint32_t *index)
{
    if (ref == 0 || smi_view_slot(&r->view, ref, slab, index) < 0)
        return -1;
    const struct smf_page *d = smi_view_page(&r->view, *slab);
    return d->arena == r->view.header.arena_count ? d->size_class : -1;
}

/* What is named is allocated. */
static void keep(struct own *o, uint64_t ref)
{
    uint32_t slab, index;
    if (own_class(o->r, ref, &slab, &index) < 0 || !smi_repair_bit(o->r, slab, index))
        return;
    smi_repair_say(o->r, "R1", ref,
                   "the library's own block at %#llx, which is in use, is not free",
                   (unsigned long long)ref);
    smi_repair_put_bit(o->r, SMI_TRUTHS, slab, index, 0);
}

/* ---- records ---- */

static uint32_t hash_of(const char *name, size_t len)
{
    return (uint32_t)smi_hash(name, len);
}

static char *name_of(const struct smf_root *root)
{
    return (char *)(uintptr_t)(root + 1);
}

/* Store the bytes of a record that were changed in a copy of it. */
static void store_record(struct own *o, uint64_t ref, const struct smf_root *copy, size_t len)
{
    for (size_t at = 0; at < len; at += 8) {
        uint64_t word;
        memcpy(&word, (const uint8_t *)copy + at, 8);
        smi_repair_put(o->r, SMI_TRUTHS, ref + at, word);
    }
}

/* One wrong byte in a name whose hash is right. */
static int find_name(char *name, size_t len, uint32_t hash)
{
    for (size_t i = 0; i < len; i++) {
        char was = name[i];
        for (int value = 1; value < 256; value++) {
            name[i] = (char)value;
            if (hash_of(name, len) == hash)
                return 1;
        }
        name[i] = was;
    }
    return 0;
}

/* Mend a record found in a chain, or one that nothing names (`bucket` NO_CHAIN), which its hash
 * alone proves to be one. Returns what was mended, "" for nothing, NULL when it cannot be. */
#define NO_CHAIN SMF_ROOT_BUCKETS
static const char *mend_record(struct own *o, uint64_t ref, uint32_t bucket, uint32_t size)
{
    union {
        struct smf_root root;
        char bytes[65536 + 8];
    } *copy = malloc(sizeof(*copy));
    const struct smf_root *root = smi_view_at(&o->r->view, ref, size);
    const char *done = NULL;
    size_t most =
        size - sizeof(*root) - 1 < SMF_ROOT_NAME_MAX ? size - sizeof(*root) - 1 : SMF_ROOT_NAME_MAX;
    if (!copy || !root) {
        o->r->failed |= !copy;
        free(copy);
        return NULL;
    }
    memcpy(copy, root, size);
    char *name = name_of(&copy->root);
    size_t len = strnlen(name, most + 1), said = root->name_len;
    if (len >= 1 && len <= most && len == said) {
        uint32_t hash = hash_of(name, len);
        if (hash == root->hash) {
            done = "";
        } else if (bucket == NO_CHAIN) {
            done = NULL;
        } else if (hash % SMF_ROOT_BUCKETS == bucket || root->hash % SMF_ROOT_BUCKETS != bucket) {
            copy->root.hash = hash;
            done = "gets the hash of its name";
        } else if (find_name(name, len, root->hash)) {
            done = "gets the name that its hash is of";
        } else {
            copy->root.hash = hash;
            done = "keeps the name it has, which is not what its hash is of";
        }
    } else if (len >= 1 && len <= most && hash_of(name, len) == root->hash) {
        copy->root.name_len = (uint32_t)len;
        done = "gets the length of its name";
    } else if (said >= 1 && said <= most && hash_of(name, said) == root->hash) {
        name[said] = 0;
        done = "gets the end of its name";
    }
    if (done && *done)
        store_record(o, ref, &copy->root, size & ~7u);
    free(copy);
    return done;
}

/* A whole record? */
static int is_record(struct smi_repair *r, uint64_t ref, uint32_t size)
{
    const struct smf_root *root = size > sizeof(*root) ? smi_view_root(&r->view, ref) : NULL;
    return root && sizeof(*root) + root->name_len + 1 <= size &&
           hash_of(name_of(root), root->name_len) == root->hash;
}

static void add_record(struct own *o, uint64_t ref)
{
    const struct smf_root *root = smi_view_at(&o->r->view, ref, sizeof(*root));
    if (o->record_count == o->record_room) {
        size_t room = 2 * o->record_room + 256;
        struct record *more = realloc(o->records, room * sizeof(*more));
        if (!more) {
            o->r->failed = 1;
            return;
        }
        o->records = more;
        o->record_room = room;
    }
    o->records[o->record_count] =
        (struct record){ref, root->hash % SMF_ROOT_BUCKETS, (uint32_t)o->record_count};
    o->record_count++;
}

static void drop_record(struct own *o, const char *invariant, uint64_t ref, const char *why)
{
    const struct smf_root *root = smi_view_at(&o->r->view, ref, sizeof(*root));
    smi_repair_say(o->r, invariant, ref,
                   "the root record at %#llx is dropped: %s; its name begins \"%.40s\", its type "
                   "is %#llx, and it names "
                   "%#llx, which stays allocated",
                   (unsigned long long)ref, why, name_of(root), (unsigned long long)root->type,
                   (unsigned long long)root->ref);
    add(o, &o->dropped, ref);
    o->changed = 1;
}

/* One link of a chain; returns the next, 0 at its end. */
static uint64_t follow(struct own *o, uint32_t bucket, uint64_t ref)
{
    struct smi_repair *r = o->r;
    uint32_t slab, index;
    int k = own_class(r, ref, &slab, &index);
    if (k < 0 || smi_classes[k].size <= sizeof(struct smf_root)) {
        smi_repair_say(r, "R1", ref, "chain %u of the roots ends before %#llx, where no record is",
                       bucket, (unsigned long long)ref);
        o->changed = 1;
        return 0;
    }
    if (has(&o->named, ref) || has(&o->dropped, ref)) {
        smi_repair_say(r, "R1", ref,
                       "chain %u of the roots ends before the record at %#llx, which it or another "
                       "has already",
                       bucket, (unsigned long long)ref);
        o->changed = 1;
        return 0;
    }
    const char *mended = mend_record(o, ref, bucket, smi_classes[k].size);
    const struct smf_root *root = smi_view_at(&r->view, ref, sizeof(*root));
    if (!mended) {
        drop_record(o, "R1", ref, "its name cannot be read");
    } else {
        if (*mended)
            smi_repair_say(r, "R4", ref, "root \"%.80s\" %s", name_of(root), mended);
        keep(o, ref);
        add(o, &o->named, ref);
        add_record(o, ref);
        if (root->hash % SMF_ROOT_BUCKETS != bucket) {
            smi_repair_say(r, "R1", ref, "root \"%.80s\" goes to the chain of its hash",
                           name_of(root));
            o->changed = 1;
        }
    }
    return root ? root->next : 0;
}

static uint64_t roots_ref(const struct own *o, size_t offset)
{
    return o->r->view.header.areas.roots + offset;
}

static void walk_chains(struct own *o)
{
    for (uint32_t i = 0; i < SMF_ROOT_BUCKETS && !o->r->failed; i++)
        for (uint64_t ref =
                 smi_repair_word(o->r, roots_ref(o, offsetof(struct smf_roots, bucket) + 8ull * i));
             ref != 0 && !o->r->failed;)
            ref = follow(o, i, ref);
}

static void mend_scratch(struct own *o)
{
    uint64_t at = roots_ref(o, offsetof(struct smf_roots, scratch)),
             ref = smi_repair_word(o->r, at);
    uint32_t slab, index;
    if (ref == 0)
        return;
    int usable = own_class(o->r, ref, &slab, &index) >= 0 && !smi_repair_bit(o->r, slab, index) &&
                 !has(&o->dropped, ref);
    if (usable && add(o, &o->named, ref))
        return;
    smi_repair_say(o->r, "O1", at, "no root is being made or removed: %#llx %s",
                   (unsigned long long)ref,
                   usable ? "is bound" : "is no block of the library's own");
    smi_repair_put(o->r, SMI_TRUTHS, at, 0);
}

/* ---- side arrays ---- */

static uint64_t side_ref(struct smi_repair *r, uint32_t page)
{
    return (uint64_t)((const uint8_t *)&smi_view_page(&r->view, page)->side - r->view.memory);
}

static uint64_t page_word_ref(struct smi_repair *r, uint64_t page)
{
    for (uint32_t i = 0; i < r->view.chunk_count; i++) {
        const struct smf_chunk *chunk = &r->view.chunks[i];
        if (page >= chunk->first_page && page - chunk->first_page < chunk->page_count)
            return smi_chunk_words_offset(chunk, &r->view.header.areas) +
                   (page - chunk->first_page) * sizeof(uint16_t);
    }
    return 0;
}

static void flag_side(struct smi_repair *r, const struct smi_piece *piece, int flag)
{
    for (uint32_t i = 0; i < piece->count; i++) {
        uint16_t word = smi_view_word(&r->view, (uint64_t)piece->page + i);
        uint16_t right = (uint16_t)(flag ? word | SMF_WORD_SIDE : word & ~SMF_WORD_SIDE);
        if (word != right)
            smi_repair_put_part(r, SMI_TRUTHS, page_word_ref(r, (uint64_t)piece->page + i),
                                sizeof(right), right);
    }
}

static size_t tag_bytes(uint32_t k)
{
    return ((size_t)smi_classes[k].slots * sizeof(uint16_t) + 7) & ~(size_t)7;
}

static uint32_t side_class(const struct smi_repair *r, uint32_t k)
{
    size_t bits = r->view.header.mode & SMF_HEAP_HARDENED
                      ? (smi_classes[k].slots + 63u) / 64 * sizeof(uint64_t)
                      : 0;
    return smi_class_of(tag_bytes(k) + bits);
}

static void look_at_side(struct own *o, const struct smi_piece *piece)
{
    struct smi_repair *r = o->r;
    uint32_t slab, index, wanted = side_class(r, piece->size_class);
    uint64_t side = smi_view_page(&r->view, piece->page)->side;
    int hardened = (r->view.header.mode & SMF_HEAP_HARDENED) != 0;
    int flagged = (smi_view_word(&r->view, piece->page) & SMF_WORD_SIDE) != 0;
    if (piece->arena == r->view.header.arena_count) {
        if (side || flagged)
            smi_repair_say(r, "S1", smi_repair_ref(piece->page),
                           "the slab at page %u of the library's own has no side array",
                           piece->page);
        smi_repair_put(r, SMI_TRUTHS, side_ref(r, piece->page), 0);
        flag_side(r, piece, 0);
        return;
    }
    int k = own_class(r, side, &slab, &index);
    if (k >= 0 && smi_classes[k].size >= smi_classes[wanted].size && !has(&o->dropped, side) &&
        !is_record(r, side, smi_classes[k].size) && add(o, &o->named, side)) {
        keep(o, side);
        flag_side(r, piece, 1);
    } else if (!smi_repair_is_pending(r, piece) && (side || flagged || hardened)) {
        smi_repair_note(r, &o->needy, piece->page, wanted);
    } else if (side) {
        smi_repair_put(r, SMI_TRUTHS, side_ref(r, piece->page), 0);
    }
}

/* How many entries of a list have this value, and the last of them. */
static size_t count_value(const struct smi_repair_words *list, uint64_t value, size_t *last)
{
    size_t n = 0;
    for (size_t i = 0; i < list->count; i++)
        if (list->at[i].value == value) {
            n++;
            *last = i;
        }
    return n;
}

/* A block of the library's own: one that nothing names, or a free slot. 0 when there is none. */
static uint64_t take_block(struct own *o, uint32_t k)
{
    struct smi_repair *r = o->r;
    size_t i = 0;
    uint32_t first;
    if (count_value(&o->orphans, k, &i) > 0) {
        o->orphans.at[i].value = TAKEN;
        return o->orphans.at[i].ref;
    }
    for (i = 0; i < r->pieces.count; i++) {
        const struct smi_piece *piece = &r->pieces.at[i];
        if (piece->kind != SMF_PAGE_SLAB || piece->arena != r->view.header.arena_count ||
            piece->size_class != k || smi_repair_is_pending(r, piece) ||
            smi_repair_free_slots(r, piece, &first) == 0)
            continue;
        uint32_t index = first * 64 + (uint32_t)__builtin_ctzll(
                                          smi_view_slab_bits(&r->view, piece->page, k, first));
        smi_repair_put_bit(r, SMI_TRUTHS, piece->page, index, 0);
        return smi_repair_ref(piece->page + smi_classes[k].bitmap_pages) +
               (uint64_t)index * smi_classes[k].size;
    }
    return 0;
}

static int is_cached(const struct smi_cached *cached, size_t count, uint64_t ref)
{
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (cached[middle].ref == ref)
            return 1;
        if (cached[middle].ref < ref)
            low = middle + 1;
        else
            high = middle;
    }
    return 0;
}

/* A new side array of a slab of a hardened heap: no tags, and a bit for each slot that a user
 * has. */
static void fill_side(struct smi_repair *r, const struct smi_piece *piece, uint64_t side)
{
    struct smi_cached *cached = NULL;
    size_t count = 0, tags = tag_bytes(piece->size_class);
    uint32_t k = piece->size_class, slots = smi_classes[k].slots;
    r->failed |= smi_view_cached(&r->view, &cached, &count) < 0;
    for (uint64_t at = 0; at < tags; at += 8)
        smi_repair_put(r, SMI_TRUTHS, side + at, 0);
    for (uint32_t w = 0; w < (slots + 63u) / 64 && !r->failed; w++) {
        uint64_t users = 0;
        for (uint32_t i = w * 64; i < slots && i < w * 64 + 64; i++) {
            uint64_t ref = smi_repair_ref(piece->page + smi_classes[k].bitmap_pages) +
                           (uint64_t)i * smi_classes[k].size;
            if (!smi_repair_bit(r, piece->page, i) && !is_cached(cached, count, ref))
                users |= 1ull << i % 64;
        }
        smi_repair_put(r, SMI_TRUTHS, side + tags + 8ull * w, users);
    }
    free(cached);
}

static void give_side(struct own *o, const struct smi_repair_word *needy)
{
    struct smi_repair *r = o->r;
    const struct smi_piece *piece = smi_repair_piece(r, needy->ref);
    uint32_t k = (uint32_t)needy->value;
    size_t orphan = 0, n;
    uint64_t side = 0;
    if (count_value(&o->needy, k, &n) == 1 && count_value(&o->orphans, k, &orphan) == 1) {
        side = o->orphans.at[orphan].ref;
        o->orphans.at[orphan].value = TAKEN;
        smi_repair_say(r, "S1", smi_repair_ref(piece->page),
                       "the slab at page %u gets its side array at %#llx again", piece->page,
                       (unsigned long long)side);
    } else if (r->view.header.mode & SMF_HEAP_HARDENED) {
        if ((side = take_block(o, k)) == 0) {
            smi_repair_refuse(r, "S1", smi_repair_ref(piece->page),
                              "the slab at page %u needs a side array, and no block of the "
                              "library's own is free for it",
                              piece->page);
            return;
        }
        fill_side(r, piece, side);
        smi_repair_say(r, "S1", smi_repair_ref(piece->page),
                       "the slab at page %u gets a new side array: its tags are lost", piece->page);
    } else {
        smi_repair_say(r, "S1", smi_repair_ref(piece->page),
                       "the slab at page %u has no side array: its tags are lost", piece->page);
    }
    if (side)
        add(o, &o->named, side);
    smi_repair_put(r, SMI_TRUTHS, side_ref(r, piece->page), side);
    flag_side(r, piece, side != 0);
}

/* ---- blocks that nothing names ---- */

/* A removed root leaves its record in a free slot: a bit that was lost must not bring it back. The
 * counts tell. */
static int is_bound(struct own *o, const struct smi_piece *piece, uint64_t ref)
{
    uint32_t first;
    uint32_t size = smi_classes[piece->size_class].size;
    return size > sizeof(struct smf_root) && !has(&o->dropped, ref) &&
           mend_record(o, ref, NO_CHAIN, size) &&
           (o->record_count < o->said_roots ||
            smi_view_page(&o->r->view, piece->page)->free_slots ==
                smi_repair_free_slots(o->r, piece, &first));
}

static void look_for_orphans(struct own *o, const struct smi_piece *piece)
{
    struct smi_repair *r = o->r;
    uint32_t k = piece->size_class;
    for (uint32_t i = 0; i < smi_classes[k].slots; i++) {
        uint64_t ref = smi_repair_ref(piece->page + smi_classes[k].bitmap_pages) +
                       (uint64_t)i * smi_classes[k].size;
        if (smi_repair_bit(r, piece->page, i) || has(&o->named, ref))
            continue;
        if (!is_bound(o, piece, ref)) {
            smi_repair_note(r, &o->orphans, ref, has(&o->dropped, ref) ? NO_SIDE : k);
            continue;
        }
        const struct smf_root *root = smi_view_at(&r->view, ref, sizeof(*root));
        smi_repair_say(r, "R1", ref, "root \"%.80s\", which no chain has, is bound again",
                       name_of(root));
        add(o, &o->named, ref);
        add_record(o, ref);
        o->changed = 1;
    }
}

static void free_orphans(struct own *o)
{
    for (size_t i = 0; i < o->orphans.count; i++) {
        uint32_t slab, index;
        uint64_t ref = o->orphans.at[i].ref;
        if (o->orphans.at[i].value == TAKEN || own_class(o->r, ref, &slab, &index) < 0)
            continue;
        smi_repair_say(o->r, "O1", ref,
                       "the library's own block at %#llx, which nothing names, is given back",
                       (unsigned long long)ref);
        smi_repair_put_bit(o->r, SMI_DERIVED, slab, index, 1);
    }
}

/* ---- chains ---- */

static int by_bucket(const void *a, const void *b)
{
    const struct record *x = a, *y = b;
    if (x->bucket != y->bucket)
        return x->bucket < y->bucket ? -1 : 1;
    return x->order < y->order ? -1 : x->order > y->order;
}

/* Of two with one name the first is the one that was always found. */
static void drop_doubles(struct own *o)
{
    for (size_t i = 0; i < o->record_count; i++)
        for (size_t j = i; j-- > 0 && o->records[j].bucket == o->records[i].bucket;) {
            const struct smf_root *a = smi_view_root(&o->r->view, o->records[j].ref),
                                  *b = smi_view_root(&o->r->view, o->records[i].ref);
            if (has(&o->dropped, o->records[j].ref) || !a || !b ||
                strcmp(name_of(a), name_of(b)) != 0)
                continue;
            drop_record(o, "R3", o->records[i].ref, "another root has its name");
            smi_repair_note(o->r, &o->orphans, o->records[i].ref, NO_SIDE);
            break;
        }
}

static void store_chains(struct own *o)
{
    size_t next = 0, kept = 0;
    for (uint32_t i = 0; i < SMF_ROOT_BUCKETS; i++) {
        uint64_t link = roots_ref(o, offsetof(struct smf_roots, bucket) + 8ull * i);
        for (; next < o->record_count && o->records[next].bucket == i; next++) {
            if (has(&o->dropped, o->records[next].ref))
                continue;
            if (o->changed)
                smi_repair_put(o->r, SMI_TRUTHS, link, o->records[next].ref);
            link = o->records[next].ref + offsetof(struct smf_root, next);
            kept++;
        }
        if (o->changed)
            smi_repair_put(o->r, SMI_TRUTHS, link, 0);
    }
    uint64_t at = roots_ref(o, offsetof(struct smf_roots, count));
    if (smi_repair_word(o->r, at) != kept)
        smi_repair_say(o->r, "R2", at, "the number of roots is %zu", kept);
    smi_repair_put(o->r, SMI_DERIVED, at, kept);
}

void smi_mend_own(struct smi_repair *r)
{
    struct own o = {.r = r};
    o.said_roots = smi_repair_word(r, roots_ref(&o, offsetof(struct smf_roots, count)));
    walk_chains(&o);
    mend_scratch(&o);
    for (size_t i = 0; i < r->pieces.count && !r->failed; i++)
        if (r->pieces.at[i].kind == SMF_PAGE_SLAB)
            look_at_side(&o, &r->pieces.at[i]);
    for (size_t i = 0; i < r->pieces.count && !r->failed; i++)
        if (r->pieces.at[i].kind == SMF_PAGE_SLAB &&
            r->pieces.at[i].arena == r->view.header.arena_count &&
            !smi_repair_is_pending(r, &r->pieces.at[i]))
            look_for_orphans(&o, &r->pieces.at[i]);
    for (size_t i = 0; i < o.needy.count && !r->failed; i++)
        give_side(&o, &o.needy.at[i]);
    if (o.record_count && !r->failed)
        qsort(o.records, o.record_count, sizeof(*o.records), by_bucket);
    if (!r->failed) {
        drop_doubles(&o);
        store_chains(&o);
        free_orphans(&o);
    }
    free(o.named.at);
    free(o.dropped.at);
    free(o.records);
    free(o.orphans.at);
    free(o.needy.at);
}
