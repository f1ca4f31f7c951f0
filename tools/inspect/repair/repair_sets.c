/* SPDX-License-Identifier: MIT */
/*
 * repair_sets.c - what is derived in a heap under repair: counts, and the ordered sets of free
 * spans and slabs.
 *
 * A set that is whole stays as it is; of another none of the old links is used.
 */
#include "repair_plan.h"

#include <stdio.h>
#include <stdlib.h>

#include "format/sizeclass.h"

/* ---- counts ---- */

static uint64_t at_of(const struct smi_repair *r, const void *address)
{
    return (uint64_t)((const uint8_t *)address - r->view.memory);
}

static void mend_slab_counts(struct smi_repair *r, const struct smi_piece *piece,
                             uint32_t free_slots, uint32_t first)
{
    const struct smf_page *d = smi_view_page(&r->view, piece->page);
    uint32_t hint = free_slots && d->hint > first ? first : d->hint;
    uint64_t right = (uint64_t)free_slots | (uint64_t)hint << 16 | (uint64_t)d->tag << 32 |
                     (uint64_t)(free_slots > 0) << 48;
    uint64_t at = at_of(r, &d->free_slots);
    if (smi_repair_word(r, at) == right)
        return;
    const char *invariant = d->free_slots != free_slots ? "C1" : hint != d->hint ? "C6" : "C2";
    smi_repair_say(
        r, invariant, smi_repair_ref(piece->page),
        "the slab at page %u says %u free slots from word %u on (it said %u from %u, in a set %u)",
        piece->page, free_slots, hint, d->free_slots, d->hint, d->in_set);
    smi_repair_put(r, SMI_DERIVED, at, right);
}

static void mend_number(struct smi_repair *r, const char *invariant, uint64_t at, uint64_t right,
                        const char *what)
{
    uint64_t was = smi_repair_word(r, at);
    if (was == right)
        return;
    smi_repair_say(r, invariant, at, "%s is %llu, not %llu", what, (unsigned long long)right,
                   (unsigned long long)was);
    smi_repair_put(r, SMI_DERIVED, at, right);
}

void smi_mend_counts(struct smi_repair *r)
{
    struct tally {
        uint64_t slabs, free_slots;
    } *tally = calloc(smi_repair_centrals(r), sizeof(*tally));
    uint64_t free_pages = 0;
    r->failed |= !tally;
    for (size_t i = 0; i < r->pieces.count && !r->failed; i++) {
        const struct smi_piece *piece = &r->pieces.at[i];
        uint32_t index = piece->arena * SMF_CLASSES + piece->size_class, first;
        free_pages += piece->kind == SMF_PAGE_FREE ? piece->count : 0;
        if (piece->kind != SMF_PAGE_SLAB || smi_repair_is_pending(r, piece))
            continue;
        uint32_t free_slots = smi_repair_free_slots(r, piece, &first);
        tally[index].slabs++;
        tally[index].free_slots += free_slots;
        mend_slab_counts(r, piece, free_slots, first);
    }
    for (uint32_t i = 0; i < smi_repair_centrals(r) && !r->failed; i++) {
        char what[64];
        snprintf(what, sizeof(what), "slab_count of arena %u, class %u", i / SMF_CLASSES,
                 i % SMF_CLASSES);
        mend_number(r, "C3", smi_repair_central(r, i, offsetof(struct smf_central, slab_count)),
                    tally[i].slabs, what);
        snprintf(what, sizeof(what), "free_slots of arena %u, class %u", i / SMF_CLASSES,
                 i % SMF_CLASSES);
        mend_number(r, "C3", smi_repair_central(r, i, offsetof(struct smf_central, free_slots)),
                    tally[i].free_slots, what);
    }
    if (!r->failed)
        mend_number(r, "P8",
                    r->view.header.areas.page_heap + offsetof(struct smf_page_heap, free_pages),
                    free_pages, "free_pages");
    free(tally);
}

/* ---- sets ---- */

/* A span and the set it belongs to: of free spans by length, 0..SMF_EXACT_SETS, then of slabs by
 * class. */
struct member {
    uint32_t set, page;
    uint64_t key;
    int seen;
};

#define SLAB_SETS (SMF_EXACT_SETS + 1u)

struct set {
    struct smi_repair *r;
    uint64_t root; /* ref of the word with its root */
    struct member *members;
    size_t count;
};

static int by_set(const void *a, const void *b)
{
    const struct member *x = a, *y = b;
    if (x->set != y->set)
        return x->set < y->set ? -1 : 1;
    return x->key < y->key ? -1 : x->key > y->key;
}

static struct member member_of(const struct smi_piece *piece)
{
    uint32_t index = piece->count <= SMF_EXACT_SETS ? piece->count - 1 : SMF_EXACT_SETS;
    if (piece->kind == SMF_PAGE_SLAB)
        return (struct member){SLAB_SETS + piece->arena * SMF_CLASSES + piece->size_class,
                               piece->page, (uint64_t)piece->page << 32, 0};
    return (struct member){index, piece->page,
                           index == SMF_EXACT_SETS ? (uint64_t)piece->count << 32 | piece->page
                                                   : (uint64_t)piece->page << 32,
                           0};
}

/* The member that a descriptor's page is, NULL when it is none: its key follows from the piece. */
static struct member *find_member(struct set *set, uint32_t page)
{
    const struct smi_piece *piece = smi_repair_piece(set->r, page);
    size_t low = 0, high = set->count;
    if (!piece || piece->page != page ||
        (piece->kind != SMF_PAGE_SLAB && piece->kind != SMF_PAGE_FREE))
        return NULL;
    struct member key = member_of(piece);
    while (low < high) {
        size_t middle = (low + high) / 2;
        int order = by_set(&key, &set->members[middle]);
        if (order == 0)
            return &set->members[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

struct node {
    uint64_t prefix;
    uint32_t page, depth;
};

/* Does the set lead to all its members, each once and on its side, and to nothing else? */
static int is_whole(struct set *set)
{
    struct node stack[2 * 64 + 2];
    size_t found = 0;
    unsigned used = 0;
    uint64_t root = smi_repair_word(set->r, set->root);
    if (root > UINT32_MAX)
        return 0;
    if (root)
        stack[used++] = (struct node){0, (uint32_t)root, 0};
    while (used > 0) {
        struct node node = stack[--used];
        struct member *member = find_member(set, node.page);
        if (!member || member->seen ||
            (node.depth > 0 && (member->key ^ node.prefix) >> (64 - node.depth) != 0))
            return 0;
        member->seen = 1;
        found++;
        const struct smf_page *d = smi_view_page(&set->r->view, node.page);
        if ((d->left || d->right) && node.depth == 63)
            return 0;
        if (d->right)
            stack[used++] =
                (struct node){node.prefix | 1ull << (63 - node.depth), d->right, node.depth + 1};
        if (d->left)
            stack[used++] = (struct node){node.prefix, d->left, node.depth + 1};
    }
    return found == set->count;
}

/* Insert as pageset.c does: down the bits of the key to the first empty place. */
static void insert(struct set *set, const struct member *member)
{
    struct smi_repair *r = set->r;
    uint64_t at = set->root, page = (uint32_t)smi_repair_word(r, at);
    unsigned bytes = 8;
    for (unsigned depth = 0; page != 0; depth++) {
        const struct smf_page *d = smi_view_page(&r->view, page);
        int right = (int)(member->key >> (63 - depth) & 1);
        at = at_of(r, right ? &d->right : &d->left);
        page = right ? d->right : d->left;
        bytes = 4;
    }
    smi_repair_put_part(r, SMI_DERIVED, at, bytes, member->page);
}

static void build(struct set *set)
{
    struct smi_repair *r = set->r;
    smi_repair_put(r, SMI_DERIVED, set->root, 0);
    for (size_t i = 0; i < set->count; i++)
        smi_repair_put(r, SMI_DERIVED,
                       at_of(r, &smi_view_page(&r->view, set->members[i].page)->left), 0);
    for (size_t i = 0; i < set->count; i++)
        insert(set, &set->members[i]);
}

static void mend_set(struct set *set, uint32_t id)
{
    if (is_whole(set))
        return;
    if (id < SLAB_SETS)
        smi_repair_say(set->r, "P3", set->root,
                       "the set of free spans of length %u%s is built anew, with %zu in it", id + 1,
                       id == SMF_EXACT_SETS ? " and more" : "", set->count);
    else
        smi_repair_say(set->r, "C2", set->root,
                       "the set of slabs of arena %u, class %u is built anew, with %zu in it",
                       (id - SLAB_SETS) / SMF_CLASSES, (id - SLAB_SETS) % SMF_CLASSES, set->count);
    build(set);
}

static void mend_set_bits(struct smi_repair *r)
{
    uint64_t at = r->view.header.areas.page_heap;
    for (uint32_t w = 0; w < 4; w++) {
        uint64_t ref = at + offsetof(struct smf_page_heap, set_bits) + 8ull * w, bits = 0,
                 mask = w < 3 ? UINT64_MAX : UINT64_MAX >> 1;
        for (uint32_t i = 0; i < 64; i++)
            if (smi_repair_word(r, at + offsetof(struct smf_page_heap, set) +
                                       8ull * (w * 64 + i)) != 0)
                bits |= 1ull << i;
        uint64_t was = smi_repair_word(r, ref); /* nobody looks at the bit of the set of all longer
                                                   spans */
        if (((was ^ bits) & mask) == 0)
            continue;
        smi_repair_say(
            r, "P7", ref,
            "word %u of the bits of sets of free spans that have members is %#llx, not %#llx", w,
            (unsigned long long)((bits & mask) | (was & ~mask)), (unsigned long long)was);
        smi_repair_put(r, SMI_DERIVED, ref, (bits & mask) | (was & ~mask));
    }
}

/* All that belongs to a set, by set and key. */
static struct member *members(struct smi_repair *r, size_t *count)
{
    struct member *list = calloc(r->pieces.count + 1, sizeof(*list));
    size_t n = 0;
    for (size_t i = 0; list && i < r->pieces.count; i++) {
        const struct smi_piece *piece = &r->pieces.at[i];
        if (piece->kind == SMF_PAGE_FREE ||
            (piece->kind == SMF_PAGE_SLAB && !smi_repair_is_pending(r, piece) &&
             smi_view_page(&r->view, piece->page)->free_slots > 0))
            list[n++] = member_of(piece);
    }
    if (n > 0)
        qsort(list, n, sizeof(*list), by_set);
    *count = n;
    return list;
}

void smi_mend_sets(struct smi_repair *r)
{
    size_t count = 0, at = 0;
    struct member *list = r->failed ? NULL : members(r, &count);
    r->failed |= !list;
    for (uint32_t id = 0; id < SLAB_SETS + smi_repair_centrals(r) && !r->failed; id++) {
        struct set set = {
            r,
            id < SLAB_SETS
                ? r->view.header.areas.page_heap + offsetof(struct smf_page_heap, set) + 8ull * id
                : smi_repair_central(r, id - SLAB_SETS, offsetof(struct smf_central, set)),
            list + at, 0};
        while (at < count && list[at].set == id)
            at++, set.count++;
        mend_set(&set, id);
    }
    if (!r->failed)
        mend_set_bits(r);
    free(list);
}
