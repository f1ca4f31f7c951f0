/* SPDX-License-Identifier: MIT */
/* main.h - what the command line adds to a run. */
#ifndef SMI_CRASHTEST_MAIN_H
#define SMI_CRASHTEST_MAIN_H

#include <shmalloc/crashtest.h>

/* `again`: the command that runs the test, but for mode and step. */
/* The caller's test as this library has it. 0 or -EINVAL. */
int smi_crashtest_take(shmalloc_crashtest *own, const shmalloc_crashtest *given);
int smi_crashtest_run(const shmalloc_crashtest *test, const char *again);

#endif
