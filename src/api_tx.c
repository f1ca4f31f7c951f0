/* SPDX-License-Identifier: MIT */
/* api_tx.c - the public calls of transactions: find the one that is open, call down. */
#include <errno.h>

#include "life/context.h"
#include "life/registry.h"
#include "names/mutex.h"
#include "slots/block.h"
#include "tx/tx.h"

/* transactions: one looks whether somebody died, as calls that take the long way do */
#define LOOK_EVERY 64

static struct smi_thread *thread_for_tx(shmalloc_heap *heap, int *rc)
{
    struct smi_thread *t = smi_current;
    int may_stay =
        SMI_LIKELY(t->true_epoch == SMI_LOAD(&heap->epoch)) && SMI_LOAD(&heap->state->poison) == 0;
    if (may_stay && t->tx && t->tx->serial % LOOK_EVERY != 0)
        return t;
    return smi_thread_enter(heap, rc);
}

/* The transaction that is open in the heap; NULL and *rc otherwise. */
static struct smi_tx *find(shmalloc_heap *heap, int *rc)
{
    if (smi_tx_epoch != 0 && smi_thread_enter(heap, rc)) { /* another heap was used since */
        struct smi_tx *x = smi_tx_in(heap);
        if (x)
            return x;
    }
    *rc = heap->closed || heap->read_only
              ? smi_heap_writable(heap)
              : smi_error(SHMALLOC_ENOTX,
                          "%s: no transaction is open in the calling thread; begin one first",
                          heap->path);
    return NULL;
}

static inline struct smi_tx *open_in(shmalloc_heap *heap, int *rc)
{
    struct smi_tx *x = smi_tx_in(heap);
    return SMI_LIKELY(x) ? x : find(heap, rc);
}

int shmalloc_tx_begin(shmalloc_heap *heap)
{
    int rc;
    struct smi_tx *x = smi_tx_in(heap);
    struct smi_thread *t = x ? x->t : thread_for_tx(heap, &rc);
    if (!t)
        return rc;
    if (x || (x = smi_tx_of(t))) {
        smi_tx_nest(x);
        return 0;
    }
    if (SMI_UNLIKELY(smi_tx_epoch != 0 && smi_registry_has_epoch(smi_tx_epoch)))
        return smi_error(SHMALLOC_EINTX,
                         "%s: the calling thread has a transaction open in another heap; end that "
                         "first: one transaction "
                         "changes one heap",
                         heap->path);
    return smi_tx_begin(t);
}

int shmalloc_tx_commit(shmalloc_heap *heap)
{
    int rc;
    struct smi_tx *x = open_in(heap, &rc);
    return x ? smi_tx_commit(x) : rc;
}

int shmalloc_tx_abort(shmalloc_heap *heap)
{
    int rc;
    struct smi_tx *x = open_in(heap, &rc);
    return x ? smi_tx_abort(x, -ECANCELED) : rc;
}

int shmalloc_tx_lock(shmalloc_heap *heap, shmalloc_mutex *mutex)
{
    int rc;
    struct smi_tx *x = open_in(heap, &rc);
    return x ? smi_tx_lock(x, mutex) : rc;
}

int shmalloc_tx_add(shmalloc_heap *heap, const void *address, size_t len)
{
    int rc;
    struct smi_tx *x = open_in(heap, &rc);
    return x ? smi_tx_add(x, address, len) : rc;
}

int (shmalloc_tx_alloc)(shmalloc_heap *heap, size_t size, shmalloc_ref *out)
{
    int rc;
    struct smi_tx *x = open_in(heap, &rc);
    return x ? smi_tx_alloc(x, &(struct smi_request){.size = size}, out) : rc;
}

int (shmalloc_tx_free)(shmalloc_heap *heap, shmalloc_ref *ref)
{
    int rc;
    struct smi_tx *x = open_in(heap, &rc);
    return x ? smi_tx_free(x, ref) : rc;
}

int (shmalloc_tx_retire)(shmalloc_heap *heap, shmalloc_ref *ref)
{
    int rc;
    struct smi_tx *x = open_in(heap, &rc);
    return x ? smi_tx_retire(x, ref) : rc;
}

int shmalloc_tx_store(shmalloc_heap *heap, uint64_t *word, uint64_t value)
{
    int rc;
    struct smi_tx *x = open_in(heap, &rc);
    return x ? smi_tx_store(x, word, value) : rc;
}

/* Once: begin, the function, and the end that its answer asks for. */
static int run_once(shmalloc_heap *heap, int (*function)(shmalloc_heap *heap, void *arg), void *arg)
{
    int rc = shmalloc_tx_begin(heap);
    if (rc < 0)
        return rc;
    int answer = function(heap, arg);
    struct smi_tx *x = open_in(heap, &rc);
    if (!x) /* the function has ended it */
        return rc;
    rc = answer < 0 ? smi_tx_abort(x, answer) : smi_tx_commit(x);
    return rc < 0 ? rc : answer;
}

int shmalloc_tx_run(shmalloc_heap *heap, int (*function)(shmalloc_heap *heap, void *arg), void *arg)
{
    int rc, is_inner = smi_tx_in(heap) != NULL;
    if (!function)
        return smi_error(-EINVAL, "%s: no function to run", heap->path);
    while ((rc = run_once(heap, function, arg)) == SHMALLOC_ECONFLICT && !is_inner)
        smi_tx_wait(smi_current->tx);
    return rc;
}
