/* SPDX-License-Identifier: MIT */
/*
 * adapter_malloc.h - malloc and free of whatever allocator the dynamic linker found first.
 */
#include <stdlib.h>

#define BENCH_ALLOCATE malloc
#define BENCH_FREE free
#define BENCH_REALLOCATE realloc
#include "adapter_pointer.h"
