/* SPDX-License-Identifier: MIT */
/*
 * tx.h - a thread's transaction: what it holds and logs, and how it ends.
 *
 * A thread has one transaction at a time, in one heap; beginning one in another joins it. The truth
 * is in the file: the thread slot's tx_state and the log (txlog.h). What is here, in private memory
 * of the thread's context, says where the log goes on, which mutexes are held, and spares a second
 * entry for the same bytes.
 *
 *   step                       stores                                       a kill leaves
 *   add                        entry; used                                  the old bytes, stored
 *     once more
 *   alloc                      entry with ref 0; used; link record takes 0, or a block that is
 *                              freed
 *   free, retire, store, kind  entry; used                                  nothing
 *   commit, nothing deferred   used = 0; idle; mutexes                      `used` decides
 *   commit                     committed; each entry: done, its ref = 0; committed: others finish
 *                              it used = 0; idle; mutexes
 *   roll back                  each entry from the last: undone; used       others go on
 *
 * Who finds the thread dead (the next owner of a mutex it held, or who adopts it) holds the RECOVER
 * lock, so that happens once, and finds the transaction idle if it happened before. Everything that
 * can fail is done before the mark.
 */
#ifndef SMI_TX_H
#define SMI_TX_H

#include "tx/txlog.h"

struct smi_request;

#define SMI_TX_MUTEXES 1024u /* the kernel looks at 2,048 of a thread that ends */
#define SMI_TX_SEEN 128u

struct smi_tx {
    struct smi_thread *t;
    struct smi_log log;  /* head NULL: not looked up yet */
    uint8_t *next;       /* where the next entry begins */
    uint64_t room;       /* bytes from there to the end of its chunk */
    uint64_t used;       /* as smf_log.used; that of an empty log, behind its head */
    uint64_t serial;
    uint32_t depth;      /* begins less ends */
    int doomed;          /* 0, or what the last end answers: one inside was aborted */
    uint32_t deferred;   /* entries that the commit has work with */
    uint32_t mutex_count;
    uint64_t low, high;  /* refs of all bytes that have an entry lie in between */
    uint64_t refused;    /* ref of the mutex that was not waited for last, and its owner then */
    uint64_t refused_owner;
    uint64_t mutex[SMI_TX_MUTEXES]; /* refs, ascending */
    struct {
        uint64_t serial, ref, end;
    } seen[SMI_TX_SEEN]; /* bytes that have an entry in the transaction of that serial */
};

/* The epoch of the heap that the calling thread's transaction is open in; 0, or one of no heap:
 * there is none. */
extern _Thread_local uint64_t smi_tx_epoch __attribute__((tls_model("initial-exec")));

/* The transaction that is open in a context of the calling thread; NULL: none. */
static inline struct smi_tx *smi_tx_of(const struct smi_thread *t)
{
    return SMI_LIKELY(t->true_epoch == smi_tx_epoch) ? t->tx : NULL;
}

/* The same in a heap, if its context was used last. */
static inline struct smi_tx *smi_tx_in(const shmalloc_heap *heap)
{
    struct smi_thread *t = smi_current;
    return SMI_LIKELY(t->true_epoch == SMI_LOAD(&heap->epoch)) ? smi_tx_of(t) : NULL;
}

/* The name by which others find the transaction's phase, to be stored with what it has not
 * committed yet. */
static inline uint64_t smi_tx_name(const struct smi_tx *x)
{
    return x->serial << 16 | (x->t->slot_index + 1);
}

/* SMF_TX_ACTIVE, SMF_TX_COMMITTED, or SMF_TX_IDLE: it is over, and what had its name is changed.
 * Never locks. */
enum smf_tx_phase smi_tx_phase(const shmalloc_heap *heap, uint64_t name);

/* Begin one; none is open in this thread. */
int smi_tx_begin(struct smi_thread *t);
/* Once more inside. */
static inline void smi_tx_nest(struct smi_tx *x)
{
    x->depth++;
}

/* End it, or the innermost. `cause` is what the commit of the whole answers when an inner one was
 * aborted. */
int smi_tx_commit(struct smi_tx *x);
int smi_tx_abort(struct smi_tx *x, int cause);
/* All of it, whatever the depth: the thread or the use of the heap ends. */
int smi_tx_end(struct smi_tx *x);

int smi_tx_lock(struct smi_tx *x, shmalloc_mutex *mutex);
int smi_tx_add(struct smi_tx *x, const void *address, uint64_t len);
/* `out`: a word in the heap, which is added, or not. */
int smi_tx_alloc(struct smi_tx *x, const struct smi_request *request, uint64_t *out);
int smi_tx_free(struct smi_tx *x, uint64_t *ref);
int smi_tx_retire(struct smi_tx *x, uint64_t *ref);
int smi_tx_store(struct smi_tx *x, uint64_t *word, uint64_t value);
/* An entry of a structure: see smi_log_register(). At most 8 words. */
int smi_tx_note(struct smi_tx *x, uint32_t kind, uint64_t ref, const uint64_t *words,
                uint32_t count);
/* The same of a new block, which the entry names from the start; *name is its ref. The structure's
 * handlers free it, or not. */
int smi_tx_note_block(struct smi_tx *x, uint32_t kind, const struct smi_request *request,
                      const uint64_t *words, uint32_t count, uint64_t **name);

/* Wait, with nothing held, till the mutex that was refused last may be free. It may be no mutex any
 * more, so it is only looked at. */
void smi_tx_wait(const struct smi_tx *x);

/* The private memory of a context goes. */
void smi_tx_drop(struct smi_thread *t);

#endif
