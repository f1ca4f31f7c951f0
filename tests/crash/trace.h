/* SPDX-License-Identifier: MIT */
/* trace.h - a process that is stepped through an operation. */
#ifndef TEST_CRASH_TRACE_H
#define TEST_CRASH_TRACE_H

#include <stdint.h>
#include <sys/types.h>

#include "ops.h"

struct traced {
    pid_t pid;  /* the process */
    pid_t tid;  /* its thread that is stepped; 0: that has ended */
    uint64_t steps;
    char failure[256]; /* not empty: the process itself failed */
};

/* Start the operation and run it to "begin" (with `at_repair`, on to the first repair of a lock). The process
 * is stopped then. */
int traced_start(struct traced *traced, const struct op *op, const char *path);
/* Run on to "end" at full speed. */
int traced_finish(struct traced *traced);
/* One instruction (or system call) further: 1, or 0 at "end", or -1 when the process failed. */
int traced_step(struct traced *traced);
void traced_end(struct traced *traced);

/* Where the stepped thread is. This process was forked into it, so addresses mean the same. */
uint64_t traced_address(const struct traced *traced);
/* Print the source line of an address, if it can be found. */
void print_address(uint64_t address);

#endif
