/* SPDX-License-Identifier: MIT */
/* wait.h - sleeping on a word in the heap; condition variables. */
#ifndef SMI_WAIT_H
#define SMI_WAIT_H

#include "slots/context.h"

/* Called now and then by who waits: looks for the dead, which smf_state.adoptions tells. */
typedef void smi_look(shmalloc_heap *heap);

/* As shmalloc_wait() and shmalloc_wake(). */
int smi_wait(struct smi_thread *t, const uint32_t *word, uint32_t expected, uint64_t timeout_ns,
             smi_look *look);
int smi_wake(shmalloc_heap *heap, const uint32_t *word, uint32_t count);

/* As shmalloc_cond_timedwait(), _signal() and _broadcast(); timeout_ns ~0: for ever. Not to be
 * cancelled. */
int smi_cond_wait(struct smi_thread *t, shmalloc_cond *cond, shmalloc_mutex *mutex,
                  uint64_t timeout_ns, smi_look *look);
int smi_cond_signal(shmalloc_heap *heap, shmalloc_cond *cond);
int smi_cond_broadcast(shmalloc_heap *heap, shmalloc_cond *cond);

#endif
