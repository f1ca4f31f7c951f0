/* SPDX-License-Identifier: MIT */
/*
 * stepper.h - a process that is run instruction by instruction.
 *
 * It is a fork of its tracer and leads a process group of its own, so that nobody else's children
 * are waited for. Between the marks BEGUN and ENDED, which it sets itself, it may be stepped.
 */
#ifndef SMI_CRASHTEST_STEPPER_H
#define SMI_CRASHTEST_STEPPER_H

#include <stdint.h>
#include <sys/types.h>

/* How far the process is. */
enum smi_phase {
    SMI_PREPARING,
    SMI_BEGUN,
    SMI_ENDED,
    SMI_REFUSED /* by the kernel: no ptrace here */
};

struct smi_stepper {
    uint32_t *phase; /* in memory that tracer and process share; set by the caller */
    unsigned limit;  /* SIGALRMs, of a timer that the process sets, after which it is given up at
                        full speed or in one instruction; set by the caller, 0 none */
    unsigned alarms; /* so many came */
    pid_t pid;       /* the process */
    pid_t tid;       /* its thread that is stepped; 0: that has ended */
    int signal;      /* to be delivered with the next step; 0 none */
    uint64_t at, next; /* address of the last instruction, and of the one to come; 0 unknown. The
                          process was forked from this one, so addresses mean the same */
    uint64_t steps;    /* instructions so far. Those of the kernel's page with clock_gettime, which
                          change no file and are not equally many in every run, do not count */
    char failure[256]; /* not empty: the process itself failed */
};

/* In the process: stop here, so that the tracer sees the phase. */
void smi_stepper_mark(uint32_t *phase, enum smi_phase reached);

/* Start a process that executes body(arg), which must mark BEGUN and ENDED, and run it to BEGUN: 0;
 * -1 and `failure` when the process failed; a negated errno without when it could not be traced. */
int smi_stepper_start(struct smi_stepper *stepper, void (*body)(void *), void *arg);
/* Run on to ENDED at full speed. */
int smi_stepper_finish(struct smi_stepper *stepper);
/* One instruction (or system call) further: 1, or 0 at ENDED, or -1 when the process failed. */
int smi_stepper_step(struct smi_stepper *stepper);
/* SIGKILL the process, wherever it is, and reap it. */
void smi_stepper_kill(struct smi_stepper *stepper);

#endif
