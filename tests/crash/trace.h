/* SPDX-License-Identifier: MIT */
/* trace.h - a process that is stepped through an operation of ops.h. */
#ifndef TEST_CRASH_TRACE_H
#define TEST_CRASH_TRACE_H

#include "crashtest/stepper.h"
#include "ops.h"

/* Start the operation and run it to BEGUN (with `at_repair`, on to the first repair of a lock). The
 * process is stopped then. */
int traced_start(struct smi_stepper *traced, const struct op *op, const char *path);

#endif
