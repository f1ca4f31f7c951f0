/* SPDX-License-Identifier: MIT */
/*
 * direct_mutex.h - mutexes by names that nobody replaces: direct.h says why.
 *
 * glibc has had each function under a second name since it was young, and programs that were linked
 * then need that one; new ones are bound to it by its version. With another C library nothing
 * changes. The calls that stay replaceable are those that make attributes, which is done in no
 * malloc but the first, and the wait for a mutex that is held.
 */
#ifndef SMI_DIRECT_MUTEX_H
#define SMI_DIRECT_MUTEX_H

#include <pthread.h>

#if defined(SMI_DIRECT_CALLS) && defined(__GLIBC__)
#if defined(__x86_64__)
#define SMI_DIRECT_VERSION "GLIBC_2.2.5"
#elif defined(__aarch64__)
#define SMI_DIRECT_VERSION "GLIBC_2.17"
#elif defined(__riscv)
#define SMI_DIRECT_VERSION "GLIBC_2.27"
#endif
#endif

#ifdef SMI_DIRECT_VERSION
#define SMI_DIRECT_NAME(name)                                                                      \
    __asm__(".symver smi_direct_mutex_" #name ", __pthread_mutex_" #name "@" SMI_DIRECT_VERSION)
SMI_DIRECT_NAME(init);
SMI_DIRECT_NAME(lock);
SMI_DIRECT_NAME(trylock);
SMI_DIRECT_NAME(unlock);
extern int smi_direct_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attr);
extern int smi_direct_mutex_lock(pthread_mutex_t *mutex);
extern int smi_direct_mutex_trylock(pthread_mutex_t *mutex);
extern int smi_direct_mutex_unlock(pthread_mutex_t *mutex);
#define pthread_mutex_init(mutex, attr) smi_direct_mutex_init(mutex, attr)
#define pthread_mutex_lock(mutex) smi_direct_mutex_lock(mutex)
#define pthread_mutex_trylock(mutex) smi_direct_mutex_trylock(mutex)
#define pthread_mutex_unlock(mutex) smi_direct_mutex_unlock(mutex)
#endif

#endif
