/* SPDX-License-Identifier: MIT */
/*
 * adapter_ralloc.h - a heap of Ralloc (Cai, Wen, Beadle, Kjellqvist, Hedayati, Scott:
 * "Understanding and optimizing persistent memory allocation", ISMM 2020), which one process at a
 * time may have open.
 */
#include <ralloc.hpp>

#define BENCH_ALLOCATE RP_malloc
#define BENCH_FREE RP_free
/* Not RP_realloc(), which copies the old size, also into a smaller block. */
#include "adapter_pointer.h"
