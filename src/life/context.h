/* SPDX-License-Identifier: MIT */
/*
 * context.h - threads of this process that use heaps.
 */
#ifndef SMI_LIFE_CONTEXT_H
#define SMI_LIFE_CONTEXT_H

#include "slots/context.h"

/*
 * The long way into the heap: the calling thread's context, made if need be; in a forked child
 * after attaching it; after looking for dead processes now and then. NULL with a message when the
 * heap may not be changed; *rc is why.
 */
struct smi_thread *smi_thread_enter(shmalloc_heap *heap, int *rc);

/* The same for a call that may also use a context which it shares: in private heaps, threads beyond
 * the limit and threads that are about to end have none of their own. smi_thread_leave_any() ends
 * the use. */
struct smi_thread *smi_thread_enter_any(shmalloc_heap *heap, int *rc);
void smi_thread_leave_any(struct smi_thread *t);

/* Handlers of threads' ends and of forks; the first call that needs a context does it otherwise. */
void smi_context_set_up(void);
/* Is there a handler of threads' ends? A program may have taken all keys. */
int smi_context_has_end(void);

/* All contexts of the calling thread. */
extern _Thread_local struct smi_thread *smi_contexts;

/* Has no other thread of this process a context of the heap? The registry lock is held. */
int smi_context_only_mine(const shmalloc_heap *heap);

/* The heap is about to be closed: the calling thread's transaction in it is rolled back; -EBUSY
 * while another thread of this process has one. The registry lock is held. */
int smi_context_end_transactions(shmalloc_heap *heap);

/* Take a context out of its heap's list; the registry lock is held. */
void smi_context_disown(shmalloc_heap *heap, struct smi_thread *t);
/* Nobody has it any more: no list has it. The registry lock is held. */
void smi_context_to_pool(struct smi_thread *t);

/* The thread slot of a context comes to rest. `cut_off`: its thread may have stopped in the middle
 * of a call, where what it knows of its stacks is no truth; so they are closed by their words, as
 * those of the dead are, and not before the link record is resolved. */
int smi_context_release(shmalloc_heap *heap, struct smi_thread *t, int cut_off);

#endif
