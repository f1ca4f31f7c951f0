/* SPDX-License-Identifier: MIT */
/*
 * storage.h - what lies behind the heap: a file, or memory of this process alone.
 *
 * The same four operations for both. In a private heap length is what may be touched, and storage
 * comes with the first touch. All return 0 or a negated errno and set no message, but for a
 * descriptor that is gone.
 */
#ifndef SMI_STORAGE_H
#define SMI_STORAGE_H

#include "handle/handle.h"

/* The length of what is there; at least the heap's size, more when a grower died before it was
 * done. */
int smi_storage_length(shmalloc_heap *heap, uint64_t *out);
/* Make it that long; what was not there before, or was cut off, reads as zeros. */
int smi_storage_set_length(shmalloc_heap *heap, uint64_t length);
/* See that a range can be stored to. */
int smi_storage_reserve(shmalloc_heap *heap, uint64_t offset, uint64_t len);
/* Take storage away from a range, which then reads as zeros. */
int smi_storage_punch(shmalloc_heap *heap, uint64_t offset, uint64_t len);

/* What forbids changes of the file, whatever the permissions: enum smi_guard, or-ed. */
unsigned smi_storage_guards(shmalloc_heap *heap);

#endif
