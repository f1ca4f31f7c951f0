/* SPDX-License-Identifier: MIT */
/*
 * run.h - one run of a user's test: what its modes share.
 */
#ifndef SMI_CRASHTEST_RUN_H
#define SMI_CRASHTEST_RUN_H

#include <shmalloc/crashtest.h>

#include "crashtest/judge.h"
#include "crashtest/walk.h"

enum { SMI_CHANGES_MAX = 1 << 16 };

#define SMI_USUAL_STEPS 2000000u /* shmalloc_crashtest.max_steps, if the test says nothing */

struct smi_run {
    shmalloc_crashtest test; /* with the defaults in place */
    const char *again;       /* how to run it once more, but for mode and step */
    FILE *out;
    int terminal;            /* `out` is one */
    char dir[256];           /* of the run, removed at its end */
    char heap[300], copy[300];
    uint32_t *phase;
    struct smi_findings *before, *after; /* states of the operation, as the next to open finds
                                            them */
    struct smi_findings *found;          /* by a judge */
    struct smi_findings *expected;       /* by another one, for comparison */
    struct smi_findings *said;           /* by the process that is stepped */
    struct smi_image *image;
    struct smi_stepper stepper;
    uint64_t programs_at; /* the last instruction that was of the program's own code; 0 unknown */

    uint64_t steps;        /* instructions of the operation */
    uint32_t *change;      /* 0, for BEGUN, and the instructions that changed the heap to something
                              new */
    uint64_t changes;      /* number of them */
    int check_leaks;

    const char *mode;   /* that is running */
    uint64_t faults;    /* of this mode */
    uint64_t all_faults;
    uint64_t shown_ns; /* when progress was shown last */
};

uint64_t smi_now_ns(void);

/* ---- run.c: processes of the test ---- */

/* Start the operation in a heap of its own, at BEGUN: 0; 1 a fault was reported; < 0 the test
 * cannot go on. */
int smi_run_start(struct smi_run *run);
void smi_run_stop(struct smi_run *run);
/* Note where the stepped process is; call after every step. */
void smi_run_note_place(struct smi_run *run);
/* In a judge: one callback; ends the process when something is wrong. */
void smi_run_call(struct smi_run *run, shmalloc_heap *heap, shmalloc_crashtest_fn *fn,
                  const char *name);
/* In a judge: recover, check, verify, describe. */
void smi_run_look(struct smi_run *run, shmalloc_heap *heap);
/* In a judge: proceed, check, verify. */
void smi_run_proceed(struct smi_run *run, shmalloc_heap *heap);
/* In a judge: blocks and refs of the description agree. */
void smi_run_check_reached(struct smi_run *run, shmalloc_heap *heap);
/* Open `path` as the first to attach, in a process of its own, and do all of it. */
void smi_run_examine(struct smi_run *run, const char *path, struct smi_findings *out);

/* ---- modes: 0; < 0 the test cannot go on ---- */

int smi_scan(struct smi_run *run); /* before all that step: the states before and after, the
                                      changes; 1 a fault */
int smi_dead(struct smi_run *run);
int smi_survivor(struct smi_run *run);
int smi_random(struct smi_run *run);

/* ---- report.c ---- */

/* A line for a person who waits; nothing unless on a terminal. */
void smi_progress(struct smi_run *run, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* A line of the report. */
void smi_tell(struct smi_run *run, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* A fault at the current step, with run->image as what was left. `was`: the state that run->found
 * should be; NULL: that is not what is wrong. */
void smi_fault(struct smi_run *run, const char *why, const char *was);
/* Why the test cannot go on; returns `code`. */
int smi_cannot(struct smi_run *run, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* "1 fault", "2 faults". Valid until the next call. */
const char *smi_count_faults(uint64_t faults);

#endif
