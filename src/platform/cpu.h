/* SPDX-License-Identifier: MIT */
/* cpu.h - where the calling thread runs: a hint, one load where the C library keeps the kernel's
 * answer. */
#ifndef SMI_CPU_H
#define SMI_CPU_H

#include <stdint.h>

#if defined(__has_include) && (defined(__x86_64__) || defined(__aarch64__))
#if __has_include(<sys/rseq.h>) /* glibc from 2.35 on */
#include <sys/rseq.h>
#define SMI_KNOWS_CPU 1
#endif
#endif

#ifdef SMI_KNOWS_CPU

/* 0 when it is not known. */
static inline uint32_t smi_cpu(void)
{
    const struct rseq *area =
        (const struct rseq *)(const void *)((const char *)__builtin_thread_pointer() +
                                            __rseq_offset);
    return __rseq_size != 0 ? __atomic_load_n(&area->cpu_id, __ATOMIC_RELAXED) : 0;
}
#else
static inline uint32_t smi_cpu(void)
{
    return 0;
}
#endif

/* In a loop that waits for another processor's store. */
static inline void smi_cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

#endif
