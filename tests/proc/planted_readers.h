/* SPDX-License-Identifier: MIT */
/* planted_readers.h - mistakes in freeing what others may still read; all are to be noticed. */
#ifndef TEST_PLANTED_READERS_H
#define TEST_PLANTED_READERS_H

enum fault { FAULT_NONE, FAULT_NO_GRACE, FAULT_NO_OUSTING, FAULT_EARLY_STAMP, FAULTS };
extern enum fault planted_fault;

#endif
