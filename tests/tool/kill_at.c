/* SPDX-License-Identifier: MIT */
/*
 * kill_at.c - run a program and kill it where it is about to change a file for the Nth time.
 *
 * Usage: kill_at N PROGRAM ARGUMENT...
 *
 * Counted are the system calls that write, lengthen, name or sync a file, at their entry. Exit
 * status: 100 when the program was killed, else its own.
 */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { KILLED = 100, CANNOT = 101 };

static int changes_a_file(uint64_t number)
{
    static const long numbers[] = {SYS_pwrite64, SYS_ftruncate, SYS_fallocate,
                                   SYS_linkat,   SYS_fdatasync, SYS_fsync};
    for (unsigned i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
        if (number == (uint64_t)numbers[i])
            return 1;
    return 0;
}

/* Is the child at the entry of such a call? The kernel's struct ptrace_syscall_info begins with a
 * byte that says where it is, and has the call's number in its fourth word. */
static int is_about_to(pid_t child)
{
    uint64_t info[16] = {0};
    if (ptrace(PTRACE_GET_SYSCALL_INFO, child, (void *)sizeof(info), info) < 0)
        return 0;
    return (info[0] & 0xff) == PTRACE_SYSCALL_INFO_ENTRY && changes_a_file(info[3]);
}

static int follow(pid_t child, long nth)
{
    int status, signal = 0;
    waitpid(child, &status, 0); /* stopped by itself, or at its exec */
    ptrace(PTRACE_SETOPTIONS, child, NULL, (void *)(PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL));
    for (;;) {
        ptrace(PTRACE_SYSCALL, child, NULL, (void *)(intptr_t)signal);
        if (waitpid(child, &status, 0) < 0)
            return CANNOT;
        if (WIFEXITED(status))
            return WEXITSTATUS(status);
        if (WIFSIGNALED(status))
            return CANNOT;
        int at_call = WSTOPSIG(status) == (SIGTRAP | 0x80);
        /* SIGTRAP: its exec */
        signal = at_call || WSTOPSIG(status) == SIGTRAP ? 0 : WSTOPSIG(status);
        if (!at_call || !is_about_to(child) || --nth > 0)
            continue;
        kill(child, SIGKILL);
        waitpid(child, &status, 0);
        return KILLED;
    }
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return CANNOT;
    pid_t child = fork();
    if (child == 0) {
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        raise(SIGSTOP);
        execv(argv[2], argv + 2);
        _exit(CANNOT);
    }
    return child < 0 ? CANNOT : follow(child, atol(argv[1]));
}
