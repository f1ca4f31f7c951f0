/* SPDX-License-Identifier: MIT */
/* fork.h - what a forked child does with its parent's heaps. */
#ifndef SMI_FORK_H
#define SMI_FORK_H

#include "slots/context.h"

/* Handlers for pthread_atfork(). */
void smi_fork_before(void);
void smi_fork_after(void);
void smi_fork_after_in_child(void);

/* A forked child's heap: attach as a process of its own, or settle the copy. The first of its
 * threads to come does it. */
int smi_fork_attach(shmalloc_heap *heap);

/* A forked child's copy of a private heap is settled, before somebody looks at it. */
int smi_fork_settle(shmalloc_heap *heap);

/* The context of the thread that forked; NULL: it has none, or ended. A thread that was made in the
 * child may be the first to come, and that one goes on with its context meanwhile, as far as it
 * needs no long way. */
struct smi_thread *smi_fork_context(const shmalloc_heap *heap);
/* The thread with that list of contexts ends. */
void smi_fork_forget(struct smi_thread **list);

#endif
