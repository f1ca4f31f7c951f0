/* SPDX-License-Identifier: MIT */
/*
 * convert.h - a heap of an older format, which its first attacher makes one of this format.
 *
 * All of it happens under the attach lock, while nobody else is attached. What the dead left is
 * brought to rest in between, by the caller. A failure leaves a heap of the older format, with a
 * message.
 */
#ifndef SMI_CONVERT_H
#define SMI_CONVERT_H

#include "handle/handle.h"

/* Is the heap that was mapped of an older format? */
int smi_convert_is_due(const shmalloc_heap *heap);

/* SHMALLOC_EBUSY: it is, and programs of the older library have it open. */
int smi_convert_in_use(const shmalloc_heap *heap);

/* First: mutexes are new and logs undone. After it adoption reads the older thread slots. */
int smi_convert_begin(shmalloc_heap *heap);

/* Second: what the dead left was adopted, all of it, or `adopted` says why not. 0: it is a heap of
 * this format. */
int smi_convert_end(shmalloc_heap *heap, int adopted);

/* A conversion that was killed between its last two stores is finished. */
int smi_convert_seal(shmalloc_heap *heap);

/* For tests: is called after each step of a conversion. */
extern void (*smi_convert_step)(void);

#endif
