/* SPDX-License-Identifier: MIT */
/*
 * inject.h - one system call of a process fails: the kernel itself answers it with an error.
 *
 * The process and all its children run under a seccomp filter that reports the calls that can fail
 * to their parent, which answers each of them: go on, or fail with this errno. Only calls from the
 * C library's code count, so that sanitizers keep theirs, and only while the process says that it
 * is inside a call of the library under test.
 *
 * Giving back what one has does not fail on Linux before the work is done: close(2), munmap(2) and
 * the unlocking of a range as it was locked are left alone.
 */
#ifndef TEST_INJECT_H
#define TEST_INJECT_H

#include <stdint.h>

#include "support.h"

/* Which call fails, and how. */
struct injection {
    uint32_t position; /* the call's number in the run, from 1; 0 none */
    uint32_t choice;   /* which of the errors that are plausible for it, from 0 */
    int lasting;       /* so do all later calls of its kind, until the library returns */
    int no_tmpfile;    /* the file system has no unnamed files: besides, every O_TMPFILE fails */
};

#define INJECT_SEEN 8192u

/* What the run was like; shared by all processes of it. */
struct injected {
    uint32_t armed;   /* counts entries into the library; 0 outside */
    uint32_t entries; /* so far */
    uint32_t calls;   /* seen while armed */
    uint32_t fired;   /* `armed` when the call failed; 0: it was not reached */
    int number;       /* of the system call that failed, -1 none */
    int error;        /* its errno */
    uint32_t refused; /* calls of the library that answered with an error: counted by the run
                         itself */
    uint16_t seen[INJECT_SEEN]; /* which system calls they were, in order */
};

/* Run `fn` in a child under `injection`. Returns as run_child(); NOT_POSSIBLE when the kernel has
 * no such filter. */
enum { NOT_POSSIBLE = 77 };
int inject_run(worker_fn *fn, void *arg, const struct injection *injection, struct injected *out);

/* In the child: from here on calls count, and no longer. */
void inject_arm(struct injected *injected);
void inject_disarm(struct injected *injected);

/* Errors that are plausible for a system call: their number; 0 for one that is left alone. */
unsigned inject_errors(int number);
const char *inject_name(int number);

#endif
