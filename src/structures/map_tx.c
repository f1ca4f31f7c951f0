/* SPDX-License-Identifier: MIT */
/*
 * map_tx.c - what a transaction changes in a map.
 *
 * A change makes an entry that is pending: it names its transaction and, as `prev`, the word that
 * counts for all others until that is committed. The stripe stays locked till the end. So one store
 * to the transaction's phase makes all its changes visible; what follows only tidies up:
 *
 *   commit      `prev` is retired in the step that clears it; then the flag goes. An entry that
 *               says that there is no such key
 *               leaves its word, is counted out, and is retired
 *   roll back   the word is `prev` again, counted; then the entry is retired
 *
 * The log's entry names the pending entry from the start to the end, not the word, which a split
 * may move: an entry that no word has (not published yet, replaced by a later one of the same
 * transaction, or taken out of its word before a kill) is retired by that name. Each step finds by
 * the word and the flag whether it was done.
 *
 * On behalf of a dead thread the stripe is mended first, as far as the entries are concerned: a
 * split that was committed has left words behind, which must be gone before what they name is
 * freed.
 */
#include "structures/map_tx.h"

#include <errno.h>

#include "slots/block.h"
#include "slots/stacks.h"
#include "structures/map.h"
#include "structures/map_type.h"

/* tests/structures/map_seen.c plants a fault, to show that it finds it. */
#ifndef SMI_PLANTED
#define SMI_PLANTED(fault) 0
#endif

enum {
    STRIPE,
    HASH,
    WORDS
}; /* of an entry in the log */

/* ---- changing ---- */

int smi_map_is_mine(const struct smi_tx *x, const struct smf_map_entry *entry, uint64_t meta)
{
    return x && SMI_LOAD(&smi_map_pending(entry, meta)->transaction) == smi_tx_name(x);
}

/* The pending entry, which the log names. */
static int build_pending(struct smi_stripe *m, struct smi_tx *x, const struct smi_pair *pair,
                         uint64_t meta, uint64_t prev, struct smf_map_entry **out)
{
    uint64_t words[WORDS] = {smi_ref_in(m->heap, m->s), pair->hash}, *name;
    int rc = smi_retire_make_room(m->t); /* the bags must be there when the commit wants them */
    if (rc == 0)
        rc = smi_tx_note_block(x, SMI_MAP_KIND,
                               &(struct smi_request){.size = smi_map_entry_bytes(meta)}, words,
                               WORDS, &name);
    if (rc < 0)
        return rc;
    struct smf_map_entry *entry = *out = smi_at(m->heap, *name);
    smi_map_fill(entry, pair, meta);
    struct smf_map_pending *pending = smi_map_pending(entry, meta);
    SMI_STORE(&pending->transaction, smi_tx_name(x));
    SMI_STORE(&pending->prev, prev);
    return 0;
}

int smi_map_tx_store(struct smi_stripe *m, struct smi_tx *x, const struct smi_pair *pair,
                     struct smi_place *place, uint64_t absent)
{
    struct smf_map_entry *entry = NULL;
    uint64_t prev = place->word ? SMI_LOAD(place->word) : 0,
             meta = smi_map_meta(pair->klen, pair->vlen) | SMF_MAP_PENDING | absent;
    int was_there = place->word && !(place->meta & SMF_MAP_ABSENT);
    if (place->word && (place->meta & SMF_MAP_PENDING)) {
        if (place->meta == meta) { /* nobody else looks at it yet */
            smi_map_copy(smi_map_value(place->entry, meta), pair->value, pair->vlen);
            return !was_there;
        }
        prev = SMI_LOAD(&smi_map_pending(place->entry, place->meta)->prev);
    }
    int rc = place->word ? 0 : smi_stripe_make_hole(m, pair, place);
    if (rc == 0)
        rc = build_pending(m, x, pair, meta, prev, &entry);
    if (rc < 0)
        return rc;
    uint64_t word = smi_map_word_for(smi_ref_in(m->heap, entry), pair->hash);
    if (place->word) {
        smi_link_store(place->word, word);
    } else {
        smi_stripe_set(m, place->hole, word);
        smi_stripe_grow(m);
    }
    return !was_there;
}

/* ---- the end ---- */

/* *name, which nobody finds any more, is freed once nobody reads it; *name becomes 0 in that
 * step. */
static int retire_entry(const struct smi_log *log, uint64_t *name)
{
    uint64_t ref = SMI_LOAD(name) & SMF_MAP_REF;
    int rc;
    if (ref == 0)
        return 0;
    if (log->t) {
        rc = SMI_PLANTED(NO_GRACE) ? smi_block_free(log->t, ref, name)
                                   : smi_retire(log->t, ref, name);
    } else {
        rc = smi_log_end_readers(log);
        if (rc < 0)
            return rc;
        SMI_STORE(name, ref); /* without a tag, which only readers of an active transaction want */
        rc = smi_block_give(log->heap, ref, name);
    }
    /* Damage: it is none of the map's any more. Or, of a living thread, no grace period can be had:
     * the entry stays allocated, since a commit may not fail half way. */
    if (rc == SHMALLOC_EBADREF || rc == SHMALLOC_EDOUBLEFREE || (log->t && rc == -ENOTSUP)) {
        SMI_STORE(name, 0);
        rc = 0;
    }
    return rc;
}

/* The stripe of an entry in the log, mended, and the word that has the pending entry: NULL: none
 * has. */
static int find_pending(const struct smi_log *log, uint64_t ref, const uint64_t *words,
                        uint32_t count, struct smi_stripe *m, uint64_t **word)
{
    *m = (struct smi_stripe){log->heap, log->t, NULL};
    m->s = count == WORDS && words[STRIPE] % 64 == 0
               ? smi_map_at(log->heap, words[STRIPE], sizeof(*m->s))
               : NULL;
    if (!m->s)
        return smi_heap_poison(
            log->heap, "the transaction of thread slot %u names a stripe of a map that is none",
            log->index);
    int rc = log->t ? 0 : smi_stripe_repair(m);
    return rc < 0 ? rc : smi_stripe_find_ref(m, words[HASH], ref, word);
}

static int commit_entry(const struct smi_log *log, uint64_t *name, const uint64_t *words,
                        uint32_t count)
{
    struct smi_stripe m;
    uint64_t *word, meta = 0;
    int rc = find_pending(log, SMI_LOAD(name), words, count, &m, &word);
    if (rc < 0)
        return rc;
    struct smf_map_entry *entry = word ? smi_map_entry_at(log->heap, SMI_LOAD(word), &meta) : NULL;
    if (!entry)
        return retire_entry(log, name);
    if (!(meta & SMF_MAP_PENDING))
        return 0;
    rc = retire_entry(log, &smi_map_pending(entry, meta)->prev);
    if (rc < 0)
        return rc;
    if (meta & SMF_MAP_ABSENT) {
        smi_stripe_set(&m, word, 0);
        return retire_entry(log, name);
    }
    __atomic_store_n(&entry->meta, meta & ~SMF_MAP_PENDING, __ATOMIC_RELEASE);
    SMI_BARRIER();
    return 0;
}

static int roll_back_entry(const struct smi_log *log, uint64_t *name, const uint64_t *words,
                           uint32_t count)
{
    struct smi_stripe m;
    uint64_t *word, meta = 0;
    int rc = find_pending(log, SMI_LOAD(name), words, count, &m, &word);
    if (rc < 0)
        return rc;
    const struct smf_map_entry *entry =
        word ? smi_map_entry_at(log->heap, SMI_LOAD(word), &meta) : NULL;
    if (entry && !(meta & SMF_MAP_PENDING))
        return smi_stripe_damaged(&m, "an entry of a transaction is not pending");
    if (entry)
        smi_stripe_set(&m, word, SMI_LOAD(&smi_map_pending(entry, meta)->prev));
    return retire_entry(log, name);
}

static const struct smi_tx_kind kind = {.commit = commit_entry, .rollback = roll_back_entry};

void smi_map_take_part(void)
{
    smi_log_register(SMI_MAP_KIND, &kind);
}
