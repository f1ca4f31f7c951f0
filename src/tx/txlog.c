/* SPDX-License-Identifier: MIT */
/* txlog.c - reading, undoing and finishing the log of transactions; see txlog.h. */
#include "tx/txlog.h"

#include <errno.h>
#include <string.h>

#include "handle/readers.h"
#include "pages/pages.h"
#include "slots/block.h"
#include "slots/stacks.h"
#include "slots/fast.h"
#include "tx/retire.h"

static const struct smi_tx_kind *kinds[SMF_ENTRY_KINDS];

void smi_log_register(uint32_t kind, const struct smi_tx_kind *handlers)
{
    SMI_ASSERT(kind < SMF_ENTRY_KINDS);
    kinds[kind] = handlers;
}

/* ---- chunks ---- */

static int damaged(const struct smi_log *log, const char *what)
{
    return smi_heap_poison(log->heap, "transaction log of thread slot %u is damaged: %s",
                           log->index, what);
}

static uint8_t *chunk_at(const shmalloc_heap *heap, uint64_t ref, uint64_t *bytes)
{
    const struct smf_page *d = ref % SMF_PAGE == 0 ? smi_page(heap, ref >> SMF_PAGE_SHIFT) : NULL;
    *bytes = d ? (uint64_t)SMI_LOAD(&d->page_count) << SMF_PAGE_SHIFT : 0;
    return *bytes > 0 && SMI_LOAD(&d->kind) == SMF_PAGE_META &&
                   SMI_LOAD(&d->tag) == SMF_PURPOSE_LOG && smi_in_heap(heap, ref, *bytes)
               ? smi_at(heap, ref)
               : NULL;
}

uint8_t *smi_log_chunk(const struct smi_log *log, uint64_t i, uint64_t *bytes)
{
    uint64_t ref = i == 0               ? SMI_LOAD(&log->slot->tx_log)
                   : i < SMF_LOG_CHUNKS ? SMI_LOAD(&log->head->chunk[i])
                                        : 0;
    return ref != 0 ? chunk_at(log->heap, ref, bytes) : NULL;
}

int smi_log_open(struct smi_log *log, shmalloc_heap *heap, struct smf_thread *slot, uint32_t index,
                 struct smi_thread *t)
{
    uint64_t bytes;
    *log = (struct smi_log){heap, slot, index, t, NULL};
    log->head = (struct smf_log *)(void *)smi_log_chunk(log, 0, &bytes);
    return log->head ? 0 : damaged(log, "it is no span of a log");
}

/* The chunk that `used` ends in, and how many of its bytes are in use; NULL: damaged. */
static uint8_t *last_chunk(const struct smi_log *log, uint64_t used, uint64_t *end)
{
    uint64_t bytes;
    uint8_t *chunk = smi_log_chunk(log, used >> SMF_LOG_CHUNK, &bytes);
    *end = used & ((1ull << SMF_LOG_CHUNK) - 1);
    return chunk && *end <= bytes ? chunk : NULL;
}

int smi_log_each(const struct smi_log *log,
                 int (*visit)(const struct smi_log *log, const struct smi_logged *logged,
                              struct smf_entry *entry, void *arg),
                 void *arg)
{
    uint64_t used = SMI_LOAD(&log->head->used), last = used >> SMF_LOG_CHUNK;
    for (uint64_t i = 0; used != 0 && i <= last && i < SMF_LOG_CHUNKS; i++) {
        uint64_t end,
            upto = i == last ? used : i << SMF_LOG_CHUNK | SMI_LOAD(&log->head->filled[i]);
        uint8_t *chunk = last_chunk(log, upto, &end);
        if (!chunk || upto >> SMF_LOG_CHUNK != i || end < smi_log_first(i))
            return damaged(log, "a chunk is none or is fuller than it can be");
        struct smi_logged logged;
        for (uint64_t at = smi_log_first(i); at < end; at += logged.bytes) {
            const char *wrong = smi_entry_read(chunk, at, end, &logged);
            if (wrong)
                return damaged(log, wrong);
            int rc = visit(log, &logged, (struct smf_entry *)(void *)(chunk + at), arg);
            if (rc != 0)
                return rc;
        }
    }
    return last < SMF_LOG_CHUNKS ? 0 : damaged(log, "it has more chunks than it can have");
}

/* ---- what entries stand for ---- */

/* Free the block that *word names; that becomes 0 in the same step. What the program has freed by
 * itself is done. */
static int give_logged(const struct smi_log *log, uint64_t *word, uint64_t ref)
{
    struct smi_thread *t = log->t;
    if (ref == 0)
        return 0;
    if (t && smi_serves(t, log->heap)) {
        struct smi_top *top = smi_top_of(t, ref);
        if (!top && smi_pagetable_learn(log->heap, ref)) {
            t->covered = smi_pagetable_covered(log->heap);
            top = smi_top_of(t, ref);
        }
        if (top) {
            smi_link_push(t, word, ref, top);
            return 0;
        }
    }
    int rc = t ? smi_block_free(t, ref, word) : smi_block_give(log->heap, ref, word);
    if (rc != SHMALLOC_EDOUBLEFREE && rc != SHMALLOC_EBADREF)
        return rc;
    SMI_STORE(word, 0);
    return 0;
}

/* The bytes are what they were. Whole words are stored as such, for those who read them without a
 * lock. */
static void put_back(uint8_t *to, const uint8_t *from, uint64_t len)
{
    for (; len > 0 && (uintptr_t)to % 8 != 0; len--, to++, from++)
        SMI_STORE(to, *from);
    for (; len >= 8; len -= 8, to += 8, from += 8) {
        uint64_t word;
        memcpy(&word, from, sizeof(word));
        SMI_STORE((uint64_t *)(void *)to, word);
    }
    for (; len > 0; len--, to++, from++)
        SMI_STORE(to, *from);
}

static int call_kind(const struct smi_log *log, const struct smi_logged *logged,
                     struct smf_entry *entry, int commit)
{
    uint32_t kind = logged->type - SMF_ENTRY_KIND;
    uint64_t words[SMF_ENTRY_WORDS] = {0};
    if (logged->ref == 0)
        return 0;
    if (!kinds[kind])
        return smi_error(SHMALLOC_EVERSION,
                         "%s: the transaction of thread slot %u has changed a structure of kind "
                         "%u, which this library "
                         "lacks; use a newer library",
                         log->heap->path, log->index, kind);
    memcpy(words, entry + 1, logged->len);
    int rc = (commit ? kinds[kind]->commit : kinds[kind]->rollback)(log, &entry->ref, words,
                                                                    logged->len / 8);
    if (rc == 0)
        SMI_STORE(&entry->ref, 0);
    return rc;
}

/* ---- rolling back ---- */

static int undo_entry(const struct smi_log *log, const struct smi_logged *logged,
                      struct smf_entry *entry)
{
    if (logged->type == SMF_ENTRY_ALLOC)
        return give_logged(log, &entry->ref, logged->ref);
    if (logged->type >= SMF_ENTRY_KIND)
        return call_kind(log, logged, entry, 0);
    if (logged->type != SMF_ENTRY_ADD)
        return 0;
    if (!smi_in_heap(log->heap, logged->ref, logged->len))
        return damaged(log, "an entry's bytes are not in the heap");
    put_back(smi_at(log->heap, logged->ref), (const uint8_t *)(entry + 1), logged->len);
    return 0;
}

int smi_log_undo(const struct smi_log *log)
{
    uint64_t used = SMI_LOAD(&log->head->used), end;
    while (used != 0) {
        uint64_t i = used >> SMF_LOG_CHUNK;
        uint8_t *chunk = last_chunk(log, used, &end);
        struct smi_logged logged;
        if (!chunk || end < smi_log_first(i))
            return damaged(log, "a chunk is none or is fuller than it can be");
        if (end == smi_log_first(i)) { /* no entry is left in this chunk */
            used = i == 0 ? 0 : (i - 1) << SMF_LOG_CHUNK | SMI_LOAD(&log->head->filled[i - 1]);
            if (i > 0 && used >> SMF_LOG_CHUNK != i - 1)
                return damaged(log, "a chunk is fuller than it can be");
            continue;
        }
        const char *wrong = smi_entry_before(chunk, smi_log_first(i), end, &logged);
        if (wrong)
            return damaged(log, wrong);
        int rc = undo_entry(log, &logged, (struct smf_entry *)(void *)(chunk + logged.at));
        if (rc < 0)
            return rc;
        /* Kill before this: it is undone again, which changes nothing. After: others may use what
         * it freed. */
        SMI_STORE(&log->head->used, used -= logged.bytes);
    }
    return 0;
}

/* ---- finishing ---- */

static int finish_store(const struct smi_log *log, const struct smi_logged *logged,
                        struct smf_entry *entry, void *arg)
{
    (void)arg;
    if (logged->type != SMF_ENTRY_STORE || logged->ref == 0)
        return 0;
    if (logged->ref % 8 != 0 || !smi_in_heap(log->heap, logged->ref, 8))
        return damaged(log, "the word of an entry is not in the heap");
    smi_link_store(smi_at(log->heap, logged->ref), *(const uint64_t *)(entry + 1));
    /* Blocks are freed when all words are stored; one that is freed may be others' when this is
     * done again. */
    SMI_STORE(&entry->ref, 0);
    return 0;
}

static int finish_kind(const struct smi_log *log, const struct smi_logged *logged,
                       struct smf_entry *entry, void *arg)
{
    (void)arg;
    return logged->type >= SMF_ENTRY_KIND ? call_kind(log, logged, entry, 1) : 0;
}

int smi_log_end_readers(const struct smi_log *log)
{
    uint64_t stamp = smi_readers_advance(log->heap);
    if (stamp == 0)
        return SHMALLOC_ECORRUPT;
    if (!smi_readers_oust(log->heap, stamp))
        return smi_error(-ENOTSUP,
                         "%s: this process has no membarrier, which readers in others rely on, so "
                         "it cannot finish the transaction of a dead thread; allow it the system "
                         "call membarrier(2)",
                         log->heap->path);
    return 0;
}

/* Free the block when no section can be reading it any more. */
static int retire_logged(const struct smi_log *log, uint64_t *word, uint64_t ref)
{
    if (ref == 0)
        return 0;
    int rc = log->t ? smi_retire(log->t, ref, word) : 0;
    if (rc == SHMALLOC_EDOUBLEFREE || rc == SHMALLOC_EBADREF ||
        rc == -ENOTSUP) { /* the last: it stays allocated */
        SMI_STORE(word, 0);
        return 0;
    }
    if (log->t && !smi_pages_lack_room(rc))
        return rc;
    rc = smi_log_end_readers(log);
    return rc < 0 ? rc : give_logged(log, word, ref);
}

static int finish_free(const struct smi_log *log, const struct smi_logged *logged,
                       struct smf_entry *entry, void *arg)
{
    (void)arg;
    return logged->type == SMF_ENTRY_FREE     ? give_logged(log, &entry->ref, logged->ref)
           : logged->type == SMF_ENTRY_RETIRE ? retire_logged(log, &entry->ref, logged->ref)
                                              : 0;
}

int smi_log_finish(const struct smi_log *log)
{
    int rc = smi_log_each(log, finish_store, NULL);
    if (rc == 0)
        rc = smi_log_each(log, finish_kind, NULL);
    return rc == 0 ? smi_log_each(log, finish_free, NULL) : rc;
}

/* ---- the dead ---- */

int smi_log_settle(shmalloc_heap *heap, struct smf_thread *slot, uint32_t index)
{
    /* an older heap has no transactions */
    uint64_t state = heap->is_older ? 0 : SMI_LOAD(&slot->tx_state);
    struct smi_log log;
    if ((state & SMF_TX_PHASE) == SMF_TX_IDLE)
        return 0;
    int rc = smi_log_open(&log, heap, slot, index, NULL);
    if (rc == 0 && (state & SMF_TX_PHASE) > SMF_TX_COMMITTED)
        rc = damaged(&log, "its state is none");
    if (rc == 0)
        rc = (state & SMF_TX_PHASE) == SMF_TX_COMMITTED ? smi_log_finish(&log) : smi_log_undo(&log);
    if (rc < 0)
        return rc;
    SMI_STORE(&log.head->used, 0);
    SMI_STORE(&slot->tx_state, state & ~SMF_TX_PHASE);
    return 0;
}

int smi_log_give(const struct smi_log *log, uint32_t from)
{
    int rc = 0;
    uint64_t bytes;
    for (uint32_t i = SMF_LOG_CHUNKS; rc == 0 && i-- > (from > 0 ? from : 1);) {
        uint64_t ref = SMI_LOAD(&log->head->chunk[i]);
        if (ref == 0)
            continue;
        if (!chunk_at(log->heap, ref, &bytes))
            return damaged(log, "what it names as a chunk is none");
        rc = smi_pages_give(log->heap, (uint32_t)(ref >> SMF_PAGE_SHIFT), SMF_PAGE_META,
                            &log->head->chunk[i], NULL);
    }
    if (rc == 0 && from == 0)
        rc = smi_pages_give(log->heap, (uint32_t)(SMI_LOAD(&log->slot->tx_log) >> SMF_PAGE_SHIFT),
                            SMF_PAGE_META, &log->slot->tx_log, NULL);
    return rc;
}

int smi_log_release(shmalloc_heap *heap, struct smf_thread *slot, uint32_t index)
{
    struct smi_log log;
    if (heap->is_older || SMI_LOAD(&slot->tx_log) == 0)
        return 0;
    int rc = smi_log_open(&log, heap, slot, index, NULL);
    return rc == 0 ? smi_log_give(&log, 0) : rc;
}
