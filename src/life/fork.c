/* SPDX-License-Identifier: MIT */
/*
 * fork.c - a forked child's heaps; see fork.h.
 *
 * A forked child has its parent's memory but none of its claims: the epoch, in a page that the
 * kernel wipes in children, is 0, so every context it inherited is stale, and its first call
 * attaches anew.
 */
#include "life/fork.h"

#include <errno.h>

#include "handle/lock.h"
#include "life/attach.h"
#include "life/context.h"
#include "life/private.h"
#include "life/registry.h"
#include "platform/os.h"

/* How many times the thread that forks has taken the registry lock for it, under which this
 * changes: more than once when a handler that interrupts fork() forks. Where there are no other
 * threads it is not taken: each store after a fork costs a copy of its page. */
static unsigned holds_for_fork;

void smi_fork_before(void)
{
    if (smi_os_only_thread())
        return;
    smi_registry_lock();
    holds_for_fork++;
}

void smi_fork_after(void)
{
    if (holds_for_fork == 0)
        return;
    holds_for_fork--;
    smi_registry_unlock();
}

/* The process that forget_parent() ran in. */
static pid_t forgotten_by;
/* Did the thread that forked run it? Then its contexts; NULL: it has none, or ended. */
static int knows_forker;
static struct smi_thread **of_forker;

/* What this process inherited and may not use. The registry lock may be held by a thread that is
 * not here. */
static void forget_parent(void)
{
    smi_registry_renew();
    forgotten_by = (pid_t)smi_os_process_id();
    knows_forker = smi_os_thread_id() == smi_os_process_id(); /* it is the first thread of the
                                                                 child */
    of_forker = knows_forker && smi_contexts && smi_context_has_end() ? &smi_contexts : NULL;
    /* The memory of the parent's contexts is lost to the child: it may be in mid-change. Those of
     * private heaps are the child's, and may be used before the copy is settled, which is left to
     * the first call that takes the long way: most children only call exec. */
    if (smi_current != &smi_nobody && !(smi_current->heap && smi_current->is_private))
        smi_current = &smi_nobody;
    struct smi_thread **at = &smi_contexts;
    while (*at)
        if ((*at)->heap && (*at)->heap->is_private)
            at = &(*at)->next_in_thread;
        else
            *at = (*at)->next_in_thread;
    int any_private = 0;
    for (shmalloc_heap *heap = smi_heaps; heap; heap = heap->next)
        any_private |= heap->is_private;
    if (!any_private) /* else what this thread holds may be a lock of its copy */
        smi_lock_forget();
}

void smi_fork_after_in_child(void)
{
    forget_parent();
    smi_registry_forget(holds_for_fork);
    holds_for_fork = 0;
}

void smi_fork_forget(struct smi_thread **list)
{
    if (of_forker == list)
        of_forker = NULL;
}

static struct smi_thread *context_in(struct smi_thread *list, const shmalloc_heap *heap)
{
    while (list && list->heap != heap)
        list = list->next_in_thread;
    return list;
}

struct smi_thread *smi_fork_context(const shmalloc_heap *heap)
{
    struct smi_thread *t = context_in(smi_contexts, heap);
    if (!t && of_forker)
        t = context_in(*of_forker, heap);
    int is_told = t || knows_forker || heap->half_settled || heap->context_count != 1;
    /* _Fork() by the only thread */
    return is_told || heap->contexts->true_epoch == UINT64_MAX ? t : heap->contexts;
}

/* Under the registry lock, so that no fork copies a description that holds the attach lock. */
static int claim_locked(shmalloc_heap *heap)
{
    smi_registry_lock();
    int rc = smi_attach_lock(heap); /* the descriptor is new */
    if (rc == 0) {
        rc = smi_attach(heap, 0, 0);
        smi_attach_unlock(heap);
    }
    smi_registry_unlock();
    return rc;
}

static int claim_as_child(shmalloc_heap *heap)
{
    if (!smi_os_thread_known())
        return smi_error(
            -ENOTSUP,
            "%s: this process was made by a raw clone(2), so the C library takes it for its "
            "parent; make it with fork() or _Fork()",
            heap->path);
    heap->contexts = NULL;
    heap->context_count = 0;
    heap->liveness = NULL;
    heap->process_index = -1;
    int fd = smi_heap_reopen(heap); /* the parent's description shares the parent's locks */
    int rc = fd < 0 ? fd : smi_heap_replace_descriptor(heap, fd);
    return rc < 0 ? rc : claim_locked(heap);
}

int smi_fork_attach(shmalloc_heap *heap)
{
    while (__atomic_exchange_n(&heap->settling, 1, __ATOMIC_ACQUIRE) != 0)
        smi_os_sleep(100000);
    int rc = 0;
    if (__atomic_load_n(&heap->epoch, __ATOMIC_ACQUIRE) == 0) {
        if (forgotten_by != (pid_t)smi_os_process_id()) /* no atfork handler ran: _Fork(), or a raw
                                                           clone */
            forget_parent();
        if (heap->is_private) {
            smi_registry_lock();
            rc = smi_private_settle(heap);
            smi_registry_unlock();
        } else {
            rc = claim_as_child(heap);
        }
    }
    __atomic_store_n(&heap->settling, 0, __ATOMIC_RELEASE);
    return rc;
}

int smi_fork_settle(shmalloc_heap *heap)
{
    return __atomic_load_n(&heap->epoch, __ATOMIC_ACQUIRE) == 0 &&
                   SMI_LOAD(&heap->state->poison) == 0
               ? smi_fork_attach(heap)
               : 0;
}
