/* SPDX-License-Identifier: MIT */
/*
 * debug.h - assertions about our own logic. What is read from the file is input, not an invariant:
 * it is tested always, and answered with SHMALLOC_ECORRUPT.
 */
#ifndef SMI_DEBUG_H
#define SMI_DEBUG_H

#include <assert.h>

#define SMI_ASSERT(condition) assert(condition)

#define SMI_LIKELY(x) __builtin_expect(!!(x), 1)
#define SMI_UNLIKELY(x) __builtin_expect(!!(x), 0)

/* The compiler knows nothing about the variable's value from here on. */
#define SMI_OPAQUE(variable) __asm__("" : "+r"(variable))

#endif
