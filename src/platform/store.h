/* SPDX-License-Identifier: MIT */
/* store.h - loads and stores that other processes see, or that a kill may cut between. */
#ifndef SMI_STORE_H
#define SMI_STORE_H

/* Stores stay in program order: on one processor a killed process's stores all arrive, so the
 * compiler is the only one to be kept from reordering. */
#define SMI_BARRIER() __atomic_signal_fence(__ATOMIC_SEQ_CST)
#define SMI_LOAD(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define SMI_STORE(p, v)                                                                            \
    do {                                                                                           \
        SMI_BARRIER();                                                                             \
        __atomic_store_n((p), (v), __ATOMIC_RELAXED);                                              \
        SMI_BARRIER();                                                                             \
    } while (0)

#endif
