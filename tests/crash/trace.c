/* SPDX-License-Identifier: MIT */
/*
 * trace.c - stepping a process with ptrace; see trace.h.
 *
 * The process is a fork of its tracer, so code lies at the same addresses in both. New threads of it are
 * traced from their first instruction, and run free but for the one that says "begin".
 */
#include "trace.h"

#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lock.h"
#include "support.h"

static int failed(struct traced *traced, const char *what, int status)
{
    if (WIFSTOPPED(status))
        snprintf(traced->failure, sizeof(traced->failure), "%s: stopped by %s", what,
                 strsignal(WSTOPSIG(status)));
    else
        snprintf(traced->failure, sizeof(traced->failure), "%s: ended with status %#x", what, status);
    return -1;
}

static pid_t await(pid_t pid, int *status)
{
    pid_t got;
    while ((got = waitpid(pid, status, __WALL)) < 0)
        must(errno == EINTR, "waitpid: %s", strerror(errno));
    return got;
}

static void resume(pid_t tid, int signal)
{
    ptrace(PTRACE_CONT, tid, 0, (void *)(intptr_t)signal);
}

/* Let all threads run until one stops in that phase. */
static int run_to(struct traced *traced, enum phase phase)
{
    for (;;) {
        int status;
        pid_t tid = await(-1, &status);
        if (!WIFSTOPPED(status)) {
            if (tid == traced->pid)
                return failed(traced, "the process", status);
            continue; /* one of its threads came to an end */
        }
        int signal = WSTOPSIG(status);
        if (signal == SIGSTOP && __atomic_load_n(&control->phase, __ATOMIC_SEQ_CST) == phase) {
            traced->tid = tid;
            return 0;
        }
        if (signal == SIGSEGV || signal == SIGBUS || signal == SIGABRT || signal == SIGILL)
            return failed(traced, "the process", status);
        resume(tid, signal == SIGSTOP || signal == SIGTRAP ? 0 : signal);
    }
}

#if defined(__x86_64__)
/* Run to the first instruction of `function`. */
static int run_to_function(struct traced *traced, void (*function)(void))
{
    int status;
    struct user_regs_struct regs;
    void *at = (void *)(uintptr_t)function;
    errno = 0;
    long code = ptrace(PTRACE_PEEKTEXT, traced->tid, at, 0);
    must(errno == 0, "peek: %s", strerror(errno));
    ptrace(PTRACE_POKETEXT, traced->tid, at, (void *)((code & ~0xffl) | 0xcc));
    resume(traced->tid, 0);
    await(traced->tid, &status);
    if (!WIFSTOPPED(status) || WSTOPSIG(status) != SIGTRAP)
        return failed(traced, "before the breakpoint", status);
    ptrace(PTRACE_POKETEXT, traced->tid, at, (void *)code);
    ptrace(PTRACE_GETREGS, traced->tid, 0, &regs);
    regs.rip = (uintptr_t)at;
    ptrace(PTRACE_SETREGS, traced->tid, 0, &regs);
    return 0;
}

uint64_t traced_address(const struct traced *traced)
{
    return traced->tid == 0 ? 0
                            : (uint64_t)ptrace(PTRACE_PEEKUSER, traced->tid,
                                               (void *)offsetof(struct user_regs_struct, rip), 0);
}
#else /* the whole attach is stepped through; a failure names the step alone */
static int run_to_function(struct traced *traced, void (*function)(void))
{
    (void)traced;
    (void)function;
    return 0;
}

uint64_t traced_address(const struct traced *traced)
{
    (void)traced;
    return 0;
}
#endif

int traced_start(struct traced *traced, const struct op *op, const char *path)
{
    int status;
    memset(traced, 0, sizeof(*traced));
    control->phase = PREPARING;
    fflush(NULL);
    traced->pid = traced->tid = fork();
    must(traced->pid >= 0, "fork: %s", strerror(errno));
    if (traced->pid == 0) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        run_op(op, path);
    }
    await(traced->pid, &status);
    must(WIFSTOPPED(status), "the process did not stop");
    must(ptrace(PTRACE_SETOPTIONS, traced->pid, 0, PTRACE_O_EXITKILL | PTRACE_O_TRACECLONE) == 0, "ptrace: %s",
         strerror(errno));
    resume(traced->pid, 0);
    int rc = run_to(traced, BEGUN);
    if (rc == 0 && (op->traits & OP_REPAIR))
        rc = run_to_function(traced, (void (*)(void))smi_lock_repair);
    return rc;
}

int traced_finish(struct traced *traced)
{
    if (traced->tid != 0)
        resume(traced->tid, 0);
    return run_to(traced, ENDED);
}

int traced_step(struct traced *traced)
{
    int status;
    traced->steps++;
    if (ptrace(PTRACE_SINGLESTEP, traced->tid, 0, 0) < 0)
        return failed(traced, strerror(errno), 0);
    await(traced->tid, &status);
    if (WIFSTOPPED(status)) {
        int signal = WSTOPSIG(status);
        if (signal == SIGTRAP)
            return 1;
        if (signal == SIGSTOP && __atomic_load_n(&control->phase, __ATOMIC_SEQ_CST) == ENDED)
            return 0;
        return failed(traced, "while stepped", status);
    }
    if (traced->tid == traced->pid)
        return failed(traced, "while stepped", status);
    traced->tid = 0; /* a thread that came to its end; the first one says the rest */
    return run_to(traced, ENDED);
}

void traced_end(struct traced *traced)
{
    int status;
    kill(traced->pid, SIGKILL);
    /* Its threads have to be awaited too: the first one is not reported before all others are. */
    while (await(-1, &status) != traced->pid || WIFSTOPPED(status))
        ;
}

void print_address(uint64_t address)
{
    Dl_info info;
    char command[512];
    if (address == 0 || !dladdr((void *)(uintptr_t)address, &info) || !info.dli_fname)
        return;
    printf("    at %#llx: ", (unsigned long long)address);
    if (info.dli_sname)
        printf("%s in %s ", info.dli_sname, info.dli_fname);
    fflush(stdout);
    snprintf(command, sizeof(command), "addr2line -pfie '%s' %#llx 2>/dev/null", info.dli_fname,
             (unsigned long long)(address - (uintptr_t)info.dli_fbase));
    if (system(command) != 0)
        printf("\n");
    fflush(stdout);
}
