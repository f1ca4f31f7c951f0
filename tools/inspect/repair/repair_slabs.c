/* SPDX-License-Identifier: MIT */
/*
 * repair_slabs.c - bitmaps of slabs under repair, slabs on their way, and the user bits of hardened
 * heaps.
 *
 * A bitmap is a truth. But when a slab has other bits than its count says, a bit may stand for a
 * slot that somebody uses: then none of the slab's free slots is handed out again, unless all else
 * that its class says confirms the bits. The same when a word of it has bits that stand for no
 * slot. In a hardened heap the user bits say which.
 */
#include "repair_plan.h"

#include <stdlib.h>

#include "format/sizeclass.h"

/* Of its class and arena. */
static uint32_t index_of(const struct smi_piece *piece)
{
    return (uint32_t)piece->arena * SMF_CLASSES + piece->size_class;
}

/* ---- bits ---- */

static uint64_t bits_ref(struct smi_repair *r, uint32_t slab, uint32_t k, uint32_t w)
{
    if (smi_classes[k].bitmap_pages)
        return smi_repair_ref(slab) + 8ull * w;
    const struct smf_page *d = smi_view_page(&r->view, slab + w / 4ull);
    return d ? (uint64_t)((const uint8_t *)&d->bits[w % 4] - r->view.memory) : 0;
}

int smi_repair_bit(struct smi_repair *r, uint32_t slab, uint32_t index)
{
    uint32_t k = smi_view_page(&r->view, slab)->size_class;
    return (int)(smi_view_slab_bits(&r->view, slab, k, index / 64) >> index % 64 & 1);
}

void smi_repair_put_bit(struct smi_repair *r, enum smi_repair_stage stage, uint32_t slab,
                        uint32_t index, int value)
{
    uint32_t k = smi_view_page(&r->view, slab)->size_class;
    uint64_t bits = smi_view_slab_bits(&r->view, slab, k, index / 64), bit = 1ull << index % 64;
    smi_repair_put(r, stage, bits_ref(r, slab, k, index / 64), value ? bits | bit : bits & ~bit);
}

/* The bits of a slab's word that stand for slots. */
static uint64_t valid_bits(uint32_t k, uint32_t w)
{
    uint32_t slots = smi_classes[k].slots;
    return w * 64 >= slots ? 0 : slots - w * 64 >= 64 ? UINT64_MAX : (1ull << (slots - w * 64)) - 1;
}

static uint32_t bitmap_words(uint32_t k)
{
    return smi_classes[k].bitmap_pages ? (smi_classes[k].slots + 63u) / 64
                                       : smi_class_span_pages(k) * 4;
}

uint32_t smi_repair_free_slots(struct smi_repair *r, const struct smi_piece *piece, uint32_t *first)
{
    uint32_t count = 0;
    *first = UINT32_MAX;
    for (uint32_t w = 0; w < bitmap_words(piece->size_class); w++) {
        uint64_t bits = smi_view_slab_bits(&r->view, piece->page, piece->size_class, w) &
                        valid_bits(piece->size_class, w);
        if (bits && *first == UINT32_MAX)
            *first = w;
        count += (uint32_t)__builtin_popcountll(bits);
    }
    return count;
}

/* A word that lost its meaning may have the right number of bits by chance. */
static void clear_excess(struct smi_repair *r, struct smi_piece *piece)
{
    uint32_t k = piece->size_class, cleared = 0;
    for (uint32_t w = 0; w < bitmap_words(k); w++) {
        uint64_t bits = smi_view_slab_bits(&r->view, piece->page, k, w);
        if (!(bits & ~valid_bits(k, w)))
            continue;
        cleared++;
        piece->torn |= valid_bits(k, w) != 0;
        smi_repair_put(r, SMI_TRUTHS, bits_ref(r, piece->page, k, w), bits & valid_bits(k, w));
    }
    if (cleared)
        smi_repair_say(r, "C1", smi_repair_ref(piece->page),
                       "bits of the slab at page %u beyond its last slot are cleared", piece->page);
}

/* ---- slabs on their way ---- */

int smi_repair_is_pending(struct smi_repair *r, const struct smi_piece *piece)
{
    uint32_t index = index_of(piece);
    return smi_repair_word(r, smi_repair_central(
                                  r, index, offsetof(struct smf_central, pending))) == piece->page;
}

/* What `pending` names is given back at the next attach. So it must be a slab of the class, and one
 * that the class does not count any more, or not yet. */
static void mend_pending(struct smi_repair *r, uint32_t index, uint64_t tally)
{
    uint64_t at = smi_repair_central(r, index, offsetof(struct smf_central, pending)),
             page = smi_repair_word(r, at);
    const struct smi_piece *piece = smi_repair_piece(r, page);
    if (page == 0)
        return;
    const char *wrong = "no slab of it begins there";
    if (piece && piece->page == page && piece->kind == SMF_PAGE_SLAB &&
        index_of(piece) == index) {
        const struct smf_page *d = smi_view_page(&r->view, page);
        uint64_t said = smi_repair_word(
            r, smi_repair_central(r, index, offsetof(struct smf_central, slab_count)));
        wrong = d->in_set || d->free_slots || said >= tally ? "its class counts that slab as in use"
                                                            : NULL;
    }
    if (!wrong)
        return;
    smi_repair_say(r, "C7", at, "page %llu is not pending in arena %u, class %u: %s",
                   (unsigned long long)page, index / SMF_CLASSES, index % SMF_CLASSES, wrong);
    smi_repair_put(r, SMI_TRUTHS, at, 0);
}

/* ---- bitmaps ---- */

/* A class of an arena, as its slabs are. */
struct tally {
    uint64_t slabs, free_slots;
    uint64_t differing; /* slabs whose count is not that of their bits */
};

/* Slots of a slab that nobody can vouch for stay allocated. The counts that tell are made void
 * first, so that a repair that is killed half way does not believe the rest. */
static void keep_allocated(struct smi_repair *r, const struct smi_piece *piece, uint32_t free_slots)
{
    uint32_t k = piece->size_class, index = index_of(piece);
    const struct smf_page *d = smi_view_page(&r->view, piece->page);
    smi_repair_say(r, "C1", smi_repair_ref(piece->page),
                   "the slab at page %u has %u free slots, its count says %u and %s: all of them "
                   "stay allocated",
                   piece->page, free_slots, d->free_slots,
                   piece->torn ? "bits next to theirs stood for no slot"
                               : "the counts of its class do not confirm them");
    smi_repair_put(r, SMI_VOIDED,
                   smi_repair_central(r, index, offsetof(struct smf_central, free_slots)),
                   UINT64_MAX);
    smi_repair_put_part(r, SMI_VOIDED, (uint64_t)((const uint8_t *)&d->free_slots - r->view.memory),
                        2, 0);
    for (uint32_t w = 0; w < bitmap_words(k); w++)
        smi_repair_put(r, SMI_TRUTHS, bits_ref(r, piece->page, k, w), 0);
}

static void tally_bitmap(struct smi_repair *r, struct smi_piece *piece, struct tally *tally)
{
    uint32_t first;
    clear_excess(r, piece);
    uint32_t bits = smi_repair_free_slots(r, piece, &first);
    tally->slabs++;
    tally->free_slots += bits;
    tally->differing += smi_view_page(&r->view, piece->page)->free_slots != bits;
}

/* Does all else of the class say that a slab's bits are right and its own count is wrong? Two wrong
 * bitmaps may make the sum right, and so may a slab that was taken for another class's. */
static int confirms(struct smi_repair *r, uint32_t index, const struct tally *tally)
{
    return tally->differing == 1 &&
           smi_repair_word(
               r, smi_repair_central(r, index, offsetof(struct smf_central, slab_count))) ==
               tally->slabs &&
           smi_repair_word(
               r, smi_repair_central(r, index, offsetof(struct smf_central, free_slots))) ==
               tally->free_slots;
}

static void mend_bitmap(struct smi_repair *r, const struct smi_piece *piece,
                        const struct tally *tally)
{
    uint32_t first, bits = smi_repair_free_slots(r, piece, &first);
    if (bits && (piece->torn || (smi_view_page(&r->view, piece->page)->free_slots != bits &&
                                 !confirms(r, index_of(piece), tally))))
        keep_allocated(r, piece, bits);
}

static int is_slab_at_rest(struct smi_repair *r, const struct smi_piece *piece)
{
    return piece->kind == SMF_PAGE_SLAB && !smi_repair_is_pending(r, piece);
}

void smi_mend_bitmaps(struct smi_repair *r)
{
    struct smi_pieces *pieces = &r->pieces;
    struct tally *tally = calloc(smi_repair_centrals(r), sizeof(*tally));
    uint64_t *slabs = calloc(smi_repair_centrals(r), sizeof(*slabs));
    int hardened = (r->view.header.mode & SMF_HEAP_HARDENED) != 0;
    r->failed |= !tally || !slabs;
    for (size_t i = 0; i < pieces->count && !r->failed; i++)
        if (pieces->at[i].kind == SMF_PAGE_SLAB)
            slabs[index_of(&pieces->at[i])]++;
    for (uint32_t index = 0; index < smi_repair_centrals(r) && !r->failed; index++)
        mend_pending(r, index, slabs[index]);
    for (size_t i = 0; i < pieces->count && !r->failed; i++)
        if (is_slab_at_rest(r, &pieces->at[i]))
            tally_bitmap(r, &pieces->at[i], &tally[index_of(&pieces->at[i])]);
    for (size_t i = 0; i < pieces->count && !r->failed; i++)
        if (is_slab_at_rest(r, &pieces->at[i]) &&
            pieces->at[i].arena < r->view.header.arena_count && !hardened)
            mend_bitmap(r, &pieces->at[i], &tally[index_of(&pieces->at[i])]);
    free(tally);
    free(slabs);
}

/* ---- user bits ---- */

/* A slab of a hardened heap, its user bits, and how it differs from them. */
struct users {
    struct smi_repair *r;
    const struct smi_cached *cached;
    size_t cached_count, next;
    uint32_t without; /* slots in use without their bit */
    int mend_without;
};

static const struct smi_cached *cached_at(struct users *u, uint64_t ref)
{
    while (u->next < u->cached_count && u->cached[u->next].ref < ref)
        u->next++;
    return u->next < u->cached_count && u->cached[u->next].ref == ref ? &u->cached[u->next] : NULL;
}

static void look_at_users(struct users *u, const struct smi_piece *piece)
{
    struct smi_repair *r = u->r;
    uint32_t k = piece->size_class, kept = 0, set = 0;
    uint64_t tags = (smi_classes[k].slots * sizeof(uint16_t) + 7) & ~7ull;
    uint64_t users = smi_view_page(&r->view, piece->page)->side + tags;
    for (uint32_t i = 0; i < smi_classes[k].slots; i++) {
        uint64_t ref = smi_repair_ref(piece->page + smi_classes[k].bitmap_pages) +
                       (uint64_t)i * smi_classes[k].size;
        const struct smi_cached *cached = cached_at(u, ref);
        uint64_t word = users + i / 64 * 8, bit = 1ull << i % 64, value = smi_repair_word(r, word);
        int is_free = smi_repair_bit(r, piece->page, i);
        if (value & bit) {
            if (is_free)
                smi_repair_put_bit(r, SMI_TRUTHS, piece->page, i, 0);
            else if (cached && !cached->is_top)
                smi_repair_drop_cached(r, cached);
            kept += is_free || (cached && !cached->is_top);
        } else if (!is_free && !cached) {
            u->without++;
            if (u->mend_without)
                smi_repair_put(r, SMI_TRUTHS, word, value | bit);
            set += u->mend_without != 0;
        }
    }
    if (kept)
        smi_repair_say(r, "S2", smi_repair_ref(piece->page),
                       "%u slots of the slab at page %u, which are free and have their user's bit, "
                       "stay allocated",
                       kept, piece->page);
    if (set)
        smi_repair_say(r, "S2", smi_repair_ref(piece->page),
                       "%u slots of the slab at page %u in use get their user's bit", set,
                       piece->page);
}

static uint32_t owned_threads(struct smi_repair *r)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < SMF_THREADS; i++) {
        uint64_t ref;
        const struct smf_thread *thread = smi_view_thread(&r->view, i, &ref);
        count += thread && thread->owner != 0;
    }
    return count;
}

/* Each thread may have been giving one slot back. When more lack their bit than that, all get
 * it. */
void smi_mend_users(struct smi_repair *r)
{
    struct users u = {.r = r};
    struct smi_cached *cached = NULL;
    if (!(r->view.header.mode & SMF_HEAP_HARDENED))
        return;
    for (u.mend_without = 0; u.mend_without < 2 && !r->failed; u.mend_without++) {
        free(cached);
        cached = NULL;
        r->failed |= smi_view_cached(&r->view, &cached, &u.cached_count) < 0;
        u.cached = cached;
        u.next = u.without = 0;
        for (size_t i = 0; i < r->pieces.count && !r->failed; i++) {
            const struct smi_piece *piece = &r->pieces.at[i];
            if (piece->kind == SMF_PAGE_SLAB && piece->arena < r->view.header.arena_count &&
                !smi_repair_is_pending(r, piece) && smi_view_page(&r->view, piece->page)->side)
                look_at_users(&u, piece);
        }
        if (u.without <= owned_threads(r))
            break;
    }
    free(cached);
}
