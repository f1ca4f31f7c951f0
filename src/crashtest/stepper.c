/* SPDX-License-Identifier: MIT */
/*
 * stepper.c - stepping a process with ptrace; see stepper.h.
 *
 * New threads of the process are traced from their first instruction, and run free but for the one
 * that marks BEGUN. Signals that end a process are taken for its failure; SIGALRM, with which
 * processes of a test limit their time, is counted and not delivered: the system call that it
 * interrupts goes on. Others are delivered.
 */
#include "crashtest/stepper.h"

#include <elf.h>
#include <errno.h>
#include <link.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

void smi_stepper_mark(uint32_t *phase, enum smi_phase reached)
{
    __atomic_store_n(phase, reached, __ATOMIC_SEQ_CST);
    raise(SIGSTOP);
}

static int failed(struct smi_stepper *s, int status)
{
    if (WIFSTOPPED(status) && WSTOPSIG(status) == SIGALRM)
        snprintf(s->failure, sizeof(s->failure), "it did not come to its end in time");
    else if (WIFSTOPPED(status) || WIFSIGNALED(status))
        snprintf(s->failure, sizeof(s->failure), "it was ended by a signal: %s",
                 strsignal(WIFSTOPPED(status) ? WSTOPSIG(status) : WTERMSIG(status)));
    else
        snprintf(s->failure, sizeof(s->failure), "it ended early, with exit status %d",
                 WEXITSTATUS(status));
    return -1;
}

static pid_t await(pid_t pid, int *status)
{
    pid_t got;
    while ((got = waitpid(pid, status, __WALL)) < 0 && errno == EINTR)
        ;
    return got;
}

static void resume(pid_t tid, int signal)
{
    ptrace(PTRACE_CONT, tid, 0, (void *)(intptr_t)signal);
}

static int is_fatal(int signal)
{
    return signal == SIGSEGV || signal == SIGBUS || signal == SIGABRT || signal == SIGILL ||
           signal == SIGFPE;
}

/* Signals that tracer and process speak with. */
static int is_ours(int signal)
{
    return signal == SIGTRAP || signal == SIGSTOP || signal == SIGALRM;
}

static int is_late(struct smi_stepper *s, int signal)
{
    return signal == SIGALRM && ++s->alarms == s->limit;
}

/* Let all threads run until one stops in that phase. */
static int run_to(struct smi_stepper *s, enum smi_phase phase)
{
    for (;;) {
        int status;
        pid_t tid = await(-s->pid, &status);
        if (tid < 0) {
            snprintf(s->failure, sizeof(s->failure), "waitpid: %s", strerror(errno));
            return -1;
        }
        if (!WIFSTOPPED(status)) {
            if (tid == s->pid)
                return failed(s, status);
            continue; /* one of its threads came to an end */
        }
        int signal = WSTOPSIG(status);
        if (signal == SIGSTOP && __atomic_load_n(s->phase, __ATOMIC_SEQ_CST) == phase) {
            s->tid = tid;
            return 0;
        }
        if (is_fatal(signal) || is_late(s, signal)) {
            s->tid = tid;
            return failed(s, status);
        }
        resume(tid, is_ours(signal) ? 0 : signal);
    }
}

static uint64_t address(const struct smi_stepper *s)
{
#if defined(__x86_64__) || defined(__aarch64__)
    struct user_regs_struct regs;
    struct iovec where = {&regs, sizeof(regs)};
    if (s->tid == 0 || ptrace(PTRACE_GETREGSET, s->tid, (void *)NT_PRSTATUS, &where) < 0)
        return 0;
#if defined(__x86_64__)
    return regs.rip;
#else
    return regs.pc;
#endif
#else
    (void)s;
    return 0;
#endif
}

static _Noreturn void begin_body(struct smi_stepper *s, void (*body)(void *), void *arg)
{
    setpgid(0, 0);
    if (ptrace(PTRACE_TRACEME, 0, 0, 0) < 0) {
        int error = errno;
        __atomic_store_n(s->phase, SMI_REFUSED, __ATOMIC_SEQ_CST);
        _exit(error);
    }
    raise(SIGSTOP); /* the tracer sets its options */
    body(arg);
    _exit(0);
}

int smi_stepper_start(struct smi_stepper *s, void (*body)(void *), void *arg)
{
    int status;
    *s = (struct smi_stepper){.phase = s->phase, .limit = s->limit};
    __atomic_store_n(s->phase, SMI_PREPARING, __ATOMIC_SEQ_CST);
    fflush(NULL); /* else the process could write the tracer's text once more */
    s->pid = s->tid = fork();
    if (s->pid < 0)
        return -errno;
    if (s->pid == 0)
        begin_body(s, body, arg);
    setpgid(s->pid, s->pid); /* whoever of the two comes first */
    await(s->pid, &status);
    if (WIFEXITED(status) && __atomic_load_n(s->phase, __ATOMIC_SEQ_CST) == SMI_REFUSED)
        return -WEXITSTATUS(status);
    if (!WIFSTOPPED(status))
        return failed(s, status);
    if (ptrace(PTRACE_SETOPTIONS, s->pid, 0, PTRACE_O_EXITKILL | PTRACE_O_TRACECLONE) < 0) {
        int error = errno;
        smi_stepper_kill(s);
        return -error;
    }
    resume(s->pid, 0);
    int rc = run_to(s, SMI_BEGUN);
    s->next = address(s);
    return rc;
}

int smi_stepper_finish(struct smi_stepper *s)
{
    if (s->tid != 0)
        resume(s->tid, 0);
    return run_to(s, SMI_ENDED);
}

/* Code that the kernel maps into every process. */
static int is_kernels(uint64_t at)
{
    static uint64_t start, end;
    if (end == 0) {
        const ElfW(Ehdr) *file = (const void *)getauxval(AT_SYSINFO_EHDR);
        const ElfW(Phdr) *part = file ? (const void *)((const char *)file + file->e_phoff) : NULL;
        for (unsigned i = 0; file && i < file->e_phnum; i++)
            if (part[i].p_type == PT_LOAD && (uintptr_t)file + part[i].p_memsz > end)
                end = (uintptr_t)file + part[i].p_memsz;
        start = (uintptr_t)file;
        end += end == 0;
    }
    return at >= start && at < end;
}

/* The end of one instruction; that of a system call may take its time. */
static int await_step(struct smi_stepper *s, int *status)
{
    do {
        if (ptrace(PTRACE_SINGLESTEP, s->tid, 0, (void *)(intptr_t)s->signal) < 0 ||
            await(s->tid, status) < 0) {
            snprintf(s->failure, sizeof(s->failure), "ptrace: %s", strerror(errno));
            return -1;
        }
        s->signal = 0;
        if (WIFSTOPPED(*status) && is_late(s, WSTOPSIG(*status)))
            return failed(s, *status);
    } while (WIFSTOPPED(*status) && WSTOPSIG(*status) == SIGALRM);
    return 0;
}

int smi_stepper_step(struct smi_stepper *s)
{
    int status;
    s->at = s->next;
    s->steps += !is_kernels(s->at);
    s->alarms = 0;
    if (await_step(s, &status) < 0)
        return -1;
    if (WIFSTOPPED(status)) {
        int signal = WSTOPSIG(status);
        if (signal == SIGSTOP && __atomic_load_n(s->phase, __ATOMIC_SEQ_CST) == SMI_ENDED)
            return 0;
        if (is_fatal(signal))
            return failed(s, status);
        s->signal = is_ours(signal) ? 0 : signal;
        s->next = address(s);
        return 1;
    }
    if (s->tid == s->pid)
        return failed(s, status);
    s->tid = 0; /* a thread that came to its end; the first one says the rest */
    return run_to(s, SMI_ENDED);
}

void smi_stepper_kill(struct smi_stepper *s)
{
    int status;
    pid_t got;
    kill(s->pid, SIGKILL);
    /* Its threads have to be awaited too: the first one is not reported before all others are. */
    while ((got = await(-s->pid, &status)) > 0 && (got != s->pid || WIFSTOPPED(status)))
        ;
}
