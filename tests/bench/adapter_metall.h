/* SPDX-License-Identifier: MIT */
/*
 * adapter_metall.h - a datastore of Metall (Iwabuchi, Youssef, Velusamy, Gokhale, Pearce: "Metall:
 * A persistent memory allocator for data-centric analytics", Parallel Computing 111, 2022), which
 * one process at a time may have open and which is whole only after it was closed. Only
 * adapter_metall.cpp is C++.
 */
/* NULL when there is no room. */
void *metall_allocate(size_t size);
void metall_deallocate(void *block);

#define BENCH_ALLOCATE metall_allocate
#define BENCH_FREE metall_deallocate
#include "adapter_pointer.h"
