/* SPDX-License-Identifier: MIT */
/* main.h - what the command line adds to a run. */
#ifndef SMI_CRASHTEST_MAIN_H
#define SMI_CRASHTEST_MAIN_H

#include <shmalloc/crashtest.h>

/* `again`: the command that runs the test, but for mode and step. */
int smi_crashtest_run(const shmalloc_crashtest *test, const char *again);

#endif
