/* SPDX-License-Identifier: MIT */
/*
 * txlog.h - the log of a thread slot's transactions: reading it, rolling back and finishing what it
 * has.
 *
 * The log's owner does so at an abort or a commit, and whoever finds the owner dead does it in its
 * place: one rule for both. layout.h has the bytes. Nothing in them is trusted: what an entry says
 * is loaded once and compared with its bounds before it is used.
 *
 * Invariants (check.c):
 *   X1  tx_log and the chunks that are named begin spans of SMF_PURPOSE_LOG, each named once
 *   X2  entries fill the chunks up to `used`; each is of a known type and names what lies in the
 *       heap
 *   X3  an idle transaction has no entries; a thread slot without an owner has neither a
 *       transaction nor a log
 */
#ifndef SMI_TXLOG_H
#define SMI_TXLOG_H

#include "format/entry.h"
#include "slots/context.h"

/* A log in the mapping, and on whose behalf it is worked on. */
struct smi_log {
    shmalloc_heap *heap;
    struct smf_thread *slot;
    uint32_t index;          /* of the thread slot */
    struct smi_thread *t;    /* the owner's context; NULL: it is gone, and the RECOVER lock is
                                held */
    struct smf_log *head;
};

/* Chunk `i` of a log: its address and length, or NULL when what names it is no chunk. */
uint8_t *smi_log_chunk(const struct smi_log *log, uint64_t i, uint64_t *bytes);

/* The log of a thread slot. 0; SHMALLOC_ECORRUPT (poisoned) when tx_log names none. */
int smi_log_open(struct smi_log *log, shmalloc_heap *heap, struct smf_thread *slot, uint32_t index,
                 struct smi_thread *t);

/* Call `visit` for each entry, in order, until it returns something else than 0, which is returned.
 * `entry` is the head in the mapping. SHMALLOC_ECORRUPT (poisoned) when what follows is no
 * entry. */
int smi_log_each(const struct smi_log *log,
                 int (*visit)(const struct smi_log *log, const struct smi_logged *logged,
                              struct smf_entry *entry, void *arg),
                 void *arg);

/* Undo all entries, the last one first. Killed in between, it is called again. */
int smi_log_undo(const struct smi_log *log);

/* Do what the commit deferred: words, then structures, then blocks. Killed in between, it is called
 * again. */
int smi_log_finish(const struct smi_log *log);

/* Of a thread that is gone, whose link record is resolved: roll back or finish its transaction.
 * RECOVER held. */
int smi_log_settle(shmalloc_heap *heap, struct smf_thread *slot, uint32_t index);

/* Give the chunks from number `from` on back, from the last; 0: the log too. No transaction is
 * open. */
int smi_log_give(const struct smi_log *log, uint32_t from);
/* The same with all of the log of a thread that is gone. RECOVER held. */
int smi_log_release(shmalloc_heap *heap, struct smf_thread *slot, uint32_t index);

/*
 * What a structure keeps in a log: an entry with the number of its kind, a ref and words. Its
 * handlers are called for each such entry when the transaction commits, after the words of
 * smi_tx_store() and before blocks are freed, or is rolled back. `*name` is the entry's ref: who
 * frees what it names clears it in that step. They run on behalf of the owner
 * (log->t) or of a dead one (log->t is NULL, RECOVER held), may be killed and called again, and
 * after the commit must not fail for lack of room.
 */
struct smi_tx_kind {
    int (*commit)(const struct smi_log *log, uint64_t *name, const uint64_t *words,
                  uint32_t count);
    int (*rollback)(const struct smi_log *log, uint64_t *name, const uint64_t *words,
                    uint32_t count);
};
/* `kind` is less than SMF_ENTRY_KINDS. Before any heap is open. */
void smi_log_register(uint32_t kind, const struct smi_tx_kind *handlers);

/* Oust all read sections that are open, so that what is unlinked already may be freed. 0;
 * SHMALLOC_ECORRUPT; -ENOTSUP: this process has no membarrier, and somebody else has to do it. */
int smi_log_end_readers(const struct smi_log *log);

#endif
