/* SPDX-License-Identifier: MIT */
/*
 * process.h - who uses the heap: this process's entry, its threads' contexts, forked children.
 */
#ifndef SMI_PROCESS_H
#define SMI_PROCESS_H

#include "slots/context.h"

/* Guards the process's list of heaps and every list of contexts. Comes before all heap locks. */
void smi_registry_lock(void);
void smi_registry_unlock(void);
int smi_registry_trylock(void); /* 1: got it, and did not have it */
/* The list itself; whoever changes it holds the registry lock. */
extern shmalloc_heap *smi_heaps;

/* Handlers of threads' ends and of forks; the first call that needs a context does it otherwise. */
void smi_process_set_up(void);

/* Claim an entry of the process table; the attach lock is held. SHMALLOC_EPROCESSES. */
int smi_process_claim(shmalloc_heap *heap);

/* Bring all of this process's thread slots to rest and leave the table; the attach lock and the registry
 * lock are held, no other thread is in a call. `cut_off`: the process ends, maybe in a signal handler that interrupted a
 * call, without a lock, of this thread. */
int smi_process_leave(shmalloc_heap *heap, int cut_off);
/* Leave as a killed process does, for want of the attach lock: others adopt what is left here. */
void smi_process_drop(shmalloc_heap *heap);

/*
 * The long way into the heap: the calling thread's context, made if need be; in a forked child after
 * attaching it; after looking for dead processes now and then. NULL with a message when the heap may not be
 * changed; *rc is why.
 */
struct smi_thread *smi_thread_enter(shmalloc_heap *heap, int *rc);

/* The same for a call that may also use a context which it shares: in private heaps, threads beyond the limit and
 * threads that are about to end have none of their own. smi_thread_leave_any() ends the use. */
struct smi_thread *smi_thread_enter_any(shmalloc_heap *heap, int *rc);
void smi_thread_leave_any(struct smi_thread *t);

/* A forked child's copy of a private heap comes to rest, before somebody looks at it. */
int smi_process_settle(shmalloc_heap *heap);

/* What claiming an entry is to files: a private heap has this process only. The registry lock is held. */
void smi_process_start_private(shmalloc_heap *heap);

/* Has no other thread of this process a context of the heap? The registry lock is held. */
int smi_only_mine(const shmalloc_heap *heap);

/* At the end of the process: can the heap be left in order? Not by a forked child that has not attached, nor by a child
 * in its parent's memory (vfork), nor in the middle of a change that a signal interrupted, nor while other threads run,
 * which may be in the middle of one. */
int smi_process_may_leave(const shmalloc_heap *heap);

#endif
