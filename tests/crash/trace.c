/* SPDX-License-Identifier: MIT */
/* trace.c - from an operation to a process at the beginning of what is to be stepped through; see
 * trace.h. */
#include "trace.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>

#include "handle/lock.h"
#include "support.h"

struct started {
    const struct op *op;
    const char *path;
};

static void body(void *arg)
{
    const struct started *started = arg;
    run_op(started->op, started->path);
}

#if defined(__x86_64__)
/* Run to the first instruction of `function`. */
static int run_to_function(struct smi_stepper *traced, void (*function)(void))
{
    int status;
    struct user_regs_struct regs;
    void *at = (void *)(uintptr_t)function;
    errno = 0;
    long code = ptrace(PTRACE_PEEKTEXT, traced->tid, at, 0);
    must(errno == 0, "peek: %s", strerror(errno));
    ptrace(PTRACE_POKETEXT, traced->tid, at, (void *)((code & ~0xffl) | 0xcc));
    ptrace(PTRACE_CONT, traced->tid, 0, 0);
    while (waitpid(traced->tid, &status, __WALL) < 0)
        must(errno == EINTR, "waitpid: %s", strerror(errno));
    must(WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP, "before the breakpoint: status %#x",
         status);
    ptrace(PTRACE_POKETEXT, traced->tid, at, (void *)code);
    ptrace(PTRACE_GETREGS, traced->tid, 0, &regs);
    regs.rip = (uintptr_t)at;
    ptrace(PTRACE_SETREGS, traced->tid, 0, &regs);
    return 0;
}
#else /* the whole attach is stepped through */
static int run_to_function(struct smi_stepper *traced, void (*function)(void))
{
    (void)traced;
    (void)function;
    return 0;
}
#endif

int traced_start(struct smi_stepper *traced, const struct op *op, const char *path)
{
    struct started started = {op, path};
    traced->phase = &control->phase;
    int rc = smi_stepper_start(traced, body, &started);
    if (rc == 0 && (op->traits & OP_REPAIR))
        rc = run_to_function(traced, (void (*)(void))smi_lock_repair);
    return rc;
}
