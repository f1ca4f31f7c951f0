/* SPDX-License-Identifier: MIT */
/* mutex.h - shmalloc_mutex: a robust mutex in a user's block. */
#ifndef SMI_MUTEX_H
#define SMI_MUTEX_H

#include "slots/context.h"

/* As shmalloc_mutex_lock(); timeout_ns 0: do not wait, ~0: for ever. The thread must not be cancelled between the mutex and
 * its owner's name, nor in a repair. */
int smi_mutex_lock(struct smi_thread *t, shmalloc_mutex *mutex, uint64_t timeout_ns);

/* As shmalloc_mutex_unlock(). */
int smi_mutex_unlock(struct smi_thread *t, shmalloc_mutex *mutex);

#endif
