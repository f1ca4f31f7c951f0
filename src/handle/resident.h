/* SPDX-License-Identifier: MIT */
/*
 * resident.h - what of the heap this process has in memory before it asks for it.
 */
#ifndef SMI_RESIDENT_H
#define SMI_RESIDENT_H

#include "handle/handle.h"

/* Do what SHMALLOC_PREFAULT and SHMALLOC_HUGE_PAGES in `flags` ask for, as far as the kernel goes
 * along: what was obtained is in heap->prefaulted and smi_resident_huge(). No lock is held. */
void smi_resident_ask(shmalloc_heap *heap, unsigned flags);

/* Bytes that this process maps in huge pages; 0 unless it asked for them. */
uint64_t smi_resident_huge(const shmalloc_heap *heap);

#endif
