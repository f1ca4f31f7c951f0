/* SPDX-License-Identifier: MIT */
/*
 * undo.h - changes of several words under a lock, all or none.
 *
 * Before a word changes, its ref and old value go to the lock's log; then the log's count grows by
 * one; then the word is stored. Committing stores 0 to the count. Whoever takes the lock over from
 * a dead owner applies the log backwards first. Each step is one store, and storing old values
 * twice is harmless, so the repair may be killed too. Words have 8 bytes; words next to each other
 * that different locks guard must not share one.
 */
#ifndef SMI_UNDO_H
#define SMI_UNDO_H

#include "handle/handle.h"

struct smi_op {
    shmalloc_heap *heap;
    uint64_t *count;
    struct smf_undo *log;
    uint32_t used, capacity;
};

static inline struct smi_op smi_op_begin(shmalloc_heap *heap, uint64_t *count, struct smf_undo *log,
                                         uint32_t capacity)
{
    return (struct smi_op){heap, count, log, 0, capacity};
}

static inline void smi_set(struct smi_op *op, uint64_t *word, uint64_t value)
{
    /* Every operation has a bound below its log's capacity; see the table in src/README.md. */
    SMI_ASSERT(op->used < op->capacity);
    struct smf_undo *entry = &op->log[op->used++];
    entry->ref = (uint64_t)((uint8_t *)word - op->heap->base);
    entry->old = SMI_LOAD(word); /* others may try to change the mark of a large block meanwhile, in
                                    vain */
    SMI_STORE(op->count, op->used); /* kill here: undo stores the value the word still has */
    SMI_STORE(word, value);
}

/* The same for a word that the operation may have logged before: the first old value is the one to
 * keep. */
static inline void smi_set_again(struct smi_op *op, uint64_t *word, uint64_t value)
{
    uint64_t ref = (uint64_t)((uint8_t *)word - op->heap->base);
    for (uint32_t i = op->used; i-- > 0;)
        if (op->log[i].ref == ref) {
            SMI_STORE(word, value);
            return;
        }
    smi_set(op, word, value);
}

static inline void smi_op_commit(struct smi_op *op)
{
    SMI_STORE(op->count, 0);
    op->used = 0;
}

/* Undo what the log holds; also how an operation gives up half way. */
int smi_undo_apply(shmalloc_heap *heap, uint64_t *count, struct smf_undo *log, uint32_t capacity);

#endif
